/* SPDX-License-Identifier: Apache-2.0 */
#include "channel/link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "channel/ring.h"

#define MAGIC "RRLINK\0"
#define MAX_SLOTS 65536u /* regions that one link may lend */
#define MAX_FDS 2
#define MAX_NOTES 4096
#define BACKLOG 128

static const char peer_hint[] = "the peer is broken, hostile or of another version; restart it";

/* --- what goes over the socket --------------------------------------------------------------- */

enum note_type { NOTE_HELLO = 1, NOTE_WELCOME, NOTE_REFUSED, NOTE_SLOT, NOTE_KICK };

struct note {
    uint32_t type, version;
    char magic[8];
    union {
        struct {
            char domain[64], from[64], to[64];
        } hello; /* with the ring there and the ring back */
        char text[192];
        struct {
            uint64_t slot_bytes;
            uint32_t number;
        } slot; /* with its memfd */
    };
};

/* --- what goes through the rings ------------------------------------------------------------- */

enum { RECORD_INLINE = 1, RECORD_SHARED = 2, RECORD_FIXED = 4, RECORD_ACKED = 8 };

struct record { /* then the metadata, then, on the next multiple of 64 bytes, an inline payload */
    uint64_t run, id, seq, len, offset, window, slot_bytes, sent_ns, send_cost_ns, copied_bytes,
        deadline_ns;
    uint32_t edge, attempt, flags, meta_len, number;
    int32_t status;
};

enum { BACK_FREED = 1, BACK_ACK = 2, BACK_LOST = 3 }; /* lost: freed, but see rr_region_forsake() */

struct back {
    uint64_t seq;
    uint32_t what, reserved;
};

/* A packet that a sender waits for. */
struct waiting {
    uint64_t seq, bytes;
    void *cookie;
    bool used, freed, acked; /* what has come back, or need not */
    bool was_acked, lost;
};

/* A region that a receiver was lent. */
struct slot {
    struct rr_link *link;
    struct rr_region *region;
    uint64_t seq;
    bool lent;
};

struct rr_link {
    struct rr_link_domain *domain;
    struct rr_ring *there, *back;
    int fd;
    bool sender, greeted, broken, polling;
    pid_t peer_pid;
    char peer[RR_LINK_MAX_NAME + 1];
    /* sender */
    rr_link_done done;
    void *user;
    struct waiting *waiting; /* by seq modulo the queue's length */
    unsigned int n_waiting, n_unacked;
    uint64_t next_seq, waiting_bytes;
    uint8_t announced[MAX_SLOTS / 8];
    /* receiver */
    struct slot **slots;
    uint32_t n_slots;
};

static int broke(struct rr_link *link, struct rr_error *err, const char *what)
{
    link->broken = true;
    return rr_error_set(err, RR_E_INVALID, peer_hint, "process %d, peer '%s': %s",
                        (int)link->peer_pid, link->peer, what);
}

static int system_error(struct rr_error *err, const char *what, int error)
{
    return rr_error_set(err, RR_E_SYSTEM, "raise the limits on descriptors and memory", "%s: %s",
                        what, strerror(error));
}

/* --- sockets --------------------------------------------------------------------------------- */

static int address(const struct rr_link_domain *domain, const char *name, struct sockaddr_un *ret)
{
    int n;

    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    n = snprintf(ret->sun_path, sizeof(ret->sun_path), "%s/%s.sock", domain->dir, name);
    return n < 0 || (size_t)n >= sizeof(ret->sun_path) ? -ENAMETOOLONG : 0;
}

int rr_link_listen(const struct rr_link_domain *domain, const char *name)
{
    struct sockaddr_un a, final;
    char hidden[RR_LINK_MAX_NAME + 8];
    int r = address(domain, name, &final), fd;

    snprintf(hidden, sizeof(hidden), ".new-%s", name);
    if (r == 0)
        r = address(domain, hidden, &a);
    if (r < 0)
        return r;
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    unlink(a.sun_path);
    /* Who may enter the folder may connect; who else has no way here. It gets its name, from a
     * worker that was here before, once it can be connected to. */
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || chmod(a.sun_path, 0666) < 0 ||
        listen(fd, BACKLOG) < 0 || rename(a.sun_path, final.sun_path) < 0) {
        r = -errno;
        unlink(a.sun_path);
        close(fd);
        return r;
    }
    return fd;
}

static int send_note(const struct rr_link *link, struct note *note, const int *fds, size_t n_fds)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control = {0};
    struct iovec iov = {note, sizeof(*note)};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

    note->version = RR_LINK_VERSION;
    memcpy(note->magic, MAGIC, sizeof(note->magic));
    if (n_fds) {
        m.msg_control = control.space;
        m.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, n_fds * sizeof(int));
    }
    return sendmsg(link->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* A kick that does not fit the socket's buffer is not needed: others lie there. */
static void kick(const struct rr_link *link)
{
    struct note note = {.type = NOTE_KICK};

    send_note(link, &note, NULL, 0);
}

static void close_fds(int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* All descriptors that came, typed and counted; none is left open but those returned. */
static int take_fds(struct msghdr *m, int fds[MAX_FDS], size_t *ret_n)
{
    size_t n = 0;
    int r = 0;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            r = -EPROTO;
            continue;
        }
        for (size_t i = 0; i < count; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (n < MAX_FDS) {
                fds[n++] = fd;
            } else {
                close(fd);
                r = -EPROTO;
            }
        }
    }
    if (m->msg_flags & (MSG_CTRUNC | MSG_TRUNC))
        r = -EPROTO;
    if (r < 0) {
        close_fds(fds, n);
        n = 0;
    }
    *ret_n = n;
    return r;
}

/* 0: a note; -EAGAIN: none; -EPIPE: the peer is gone; -EPROTO */
static int receive_note(const struct rr_link *link, struct note *note, int fds[MAX_FDS],
                        size_t *ret_n)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control;
    struct iovec iov = {note, sizeof(*note)};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof(control.space)};
    ssize_t n;
    int r;

    /* A peer that closes with something unread resets us: told once, before what it had sent. */
    do
        n = recvmsg(link->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && (errno == EINTR || errno == ECONNRESET));
    if (n < 0)
        return errno == EAGAIN ? -EAGAIN : -EPIPE;
    r = take_fds(&m, fds, ret_n);
    if (r < 0)
        return r;
    if (n == 0) { /* an end, or an empty note, which may carry descriptors */
        close_fds(fds, *ret_n);
        return -EPIPE;
    }
    if (n == sizeof(*note) && memcmp(note->magic, MAGIC, sizeof(note->magic)) == 0)
        return 0;
    close_fds(fds, *ret_n);
    return -EPROTO;
}

/* --- slots ----------------------------------------------------------------------------------- */

static void back_say(struct rr_link *link, uint64_t seq, uint32_t what)
{
    struct back *b = link->broken ? NULL : rr_ring_reserve(link->back, sizeof(*b));

    if (!b) { /* bounded by the sender's queue: one that lets it fill up breaks the rules */
        link->broken = true;
        return;
    }
    *b = (struct back){.seq = seq, .what = what};
    rr_ring_commit(link->back);
    if (rr_ring_must_wake(link->back))
        kick(link);
}

static void slot_freed(void *data, struct rr_region *region)
{
    struct slot *s = data;

    if (!rr_region_forsaken(region)) {
        s->lent = false;
        back_say(s->link, s->seq, BACK_FREED);
        return;
    }
    /* We had lent it on, to one that died: its owner is not to use it again either. */
    back_say(s->link, s->seq, BACK_LOST);
    rr_region_close(region);
    s->region = NULL; /* the slot stays lent: its number comes no more */
}

static int add_slot(struct rr_link *link, const struct note *note, int fd, struct rr_error *err)
{
    uint32_t number = note->slot.number;
    struct slot *s;
    int r;

    if (number >= MAX_SLOTS || (number < link->n_slots && link->slots[number]))
        return broke(link, err, "it lends a slot twice, or too many");
    if (number >= link->n_slots) {
        uint32_t n = number + 1 > 2 * link->n_slots ? number + 1 : 2 * link->n_slots;
        struct slot **grown;

        n = n > MAX_SLOTS ? MAX_SLOTS : n;
        grown = reallocarray(link->slots, n, sizeof(struct slot *));
        if (!grown)
            return system_error(err, "no memory for slots", ENOMEM);
        memset(grown + link->n_slots, 0, (n - link->n_slots) * sizeof(struct slot *));
        link->slots = grown;
        link->n_slots = n;
    }
    s = calloc(1, sizeof(*s));
    if (!s)
        return system_error(err, "no memory for slots", ENOMEM);
    s->link = link;
    r = rr_region_import(link->domain->arena, fd, note->slot.slot_bytes, slot_freed, s, &s->region,
                         err);
    if (r) {
        free(s);
        link->broken = true;
        return r;
    }
    link->slots[number] = s;
    return 0;
}

/* --- handshake ------------------------------------------------------------------------------- */

static bool is_name(const char *text, size_t size)
{
    size_t n = strnlen(text, size);

    if (n == 0 || n >= size)
        return false;
    for (size_t i = 0; i < n; i++)
        if (text[i] < 0x21 || text[i] > 0x7e || text[i] == '/')
            return false;
    return true;
}

static int refuse(struct rr_link *link, struct rr_error *err, const char *why)
{
    struct note note = {.type = NOTE_REFUSED};

    snprintf(note.text, sizeof(note.text), "%s", why);
    send_note(link, &note, NULL, 0);
    return broke(link, err, why);
}

static int on_hello(struct rr_link *link, const struct note *note, int *fds, size_t n_fds,
                    struct rr_error *err)
{
    struct note welcome = {.type = NOTE_WELCOME};
    int r;

    if (note->version != RR_LINK_VERSION)
        return refuse(link, err, "it speaks another version of the protocol");
    if (n_fds != 2 || !is_name(note->hello.domain, 64) || !is_name(note->hello.from, 64) ||
        !is_name(note->hello.to, 64))
        return refuse(link, err, "its greeting is malformed");
    if (strcmp(note->hello.domain, link->domain->name) != 0)
        return refuse(link, err, "it belongs to another trust domain");
    memcpy(link->peer, note->hello.from, sizeof(link->peer));
    r = rr_ring_attach(fds[0], RR_RING_CONSUMER, &link->there, err);
    if (r == 0) {
        fds[0] = -1;
        r = rr_ring_attach(fds[1], RR_RING_PRODUCER, &link->back, err);
    }
    if (r) {
        link->broken = true;
        return r;
    }
    fds[1] = -1;
    link->greeted = true;
    send_note(link, &welcome, NULL, 0);
    return 0;
}

static int on_note(struct rr_link *link, const struct note *note, int *fds, size_t n_fds,
                   struct rr_error *err)
{
    char text[sizeof(note->text) + 40];

    if (note->type == NOTE_KICK && n_fds == 0)
        return 0;
    if (!link->sender && !link->greeted && note->type == NOTE_HELLO)
        return on_hello(link, note, fds, n_fds, err);
    if (!link->sender && link->greeted && note->type == NOTE_SLOT && n_fds == 1) {
        int r = add_slot(link, note, fds[0], err);

        fds[0] = r ? fds[0] : -1;
        return r;
    }
    if (link->sender && note->type == NOTE_WELCOME && n_fds == 0) {
        link->greeted = true;
        return 0;
    }
    if (link->sender && note->type == NOTE_REFUSED) {
        snprintf(text, sizeof(text), "it refused us: %.*s", (int)sizeof(note->text) - 1,
                 note->text);
        for (char *p = text; *p; p++)
            *p = (char)((unsigned char)*p < 0x20 || *p == 0x7f ? '?' : *p);
        return broke(link, err, text);
    }
    return broke(link, err, "it sent what nobody expects");
}

static int read_socket(struct rr_link *link, struct rr_error *err)
{
    int fds[MAX_FDS] = {-1, -1}, r;
    struct note note;
    size_t n_fds = 0;

    /* bounded: a peer that never stops is not to keep us here; poll tells of the rest */
    for (int n = 0; n < MAX_NOTES; n++) {
        r = receive_note(link, &note, fds, &n_fds);
        if (r == -EAGAIN)
            return 0;
        if (r == -EPIPE)
            return r;
        if (r < 0)
            return broke(link, err, "it sent something that is no note");
        r = on_note(link, &note, fds, n_fds, err);
        close_fds(fds, n_fds);
        if (r)
            return r;
    }
    return 0;
}

/* --- sender ---------------------------------------------------------------------------------- */

static void unshare(const struct rr_link_domain *d, uint64_t bytes)
{
    if (!d->own)
        return;
    atomic_fetch_sub(&d->own->messages, 1);
    atomic_fetch_sub(&d->own->bytes, bytes);
}

/* Count it, then look at the sum: two that do so at once may both wait, but not both go on. */
static bool share(const struct rr_link *link, uint64_t bytes)
{
    const struct rr_link_domain *d = link->domain;
    uint64_t n_messages = 0, n_bytes = 0;

    if (!d->own)
        return true;
    atomic_fetch_add(&d->own->messages, 1);
    atomic_fetch_add(&d->own->bytes, bytes);
    if (link->n_waiting == 0) /* or a slow receiver would stop them all for good */
        return true;
    for (size_t n = 0; n < d->n_shares; n++) {
        n_messages += atomic_load(&d->shares[n].messages);
        n_bytes += atomic_load(&d->shares[n].bytes);
    }
    if (n_messages <= d->domain_messages && n_bytes <= d->domain_bytes)
        return true;
    unshare(d, bytes);
    return false;
}

static void settle(struct rr_link *link, struct waiting *w, bool lost)
{
    void *cookie = w->cookie;
    bool acked = w->was_acked;

    link->waiting_bytes -= w->bytes;
    link->n_waiting--;
    unshare(link->domain, w->bytes);
    link->n_unacked -= !w->acked;
    w->used = false;
    link->done(link->user, cookie, acked, lost);
}

static int read_back(struct rr_link *link, struct rr_error *err)
{
    const void *record;
    uint32_t len;
    int r;

    while ((r = rr_ring_peek(link->back, &record, &len)) == 0) {
        struct waiting *w;
        struct back b;

        if (len != sizeof(b))
            return broke(link, err, "its ring back holds a record of the wrong length");
        memcpy(&b, record, sizeof(b));
        rr_ring_release(link->back);
        w = &link->waiting[b.seq % link->domain->queue_messages];
        if (!w->used || w->seq != b.seq)
            return broke(link, err, "it gives back what it was not given");
        if ((b.what == BACK_FREED || b.what == BACK_LOST) && !w->freed) {
            w->freed = true;
            w->lost = b.what == BACK_LOST;
        } else if (b.what == BACK_ACK && !w->acked)
            w->acked = w->was_acked = true;
        else
            return broke(link, err, "it gives something back twice");
        link->n_unacked -= b.what == BACK_ACK;
        if (w->freed && w->acked)
            settle(link, w, w->lost);
    }
    return r == -EAGAIN ? 0 : broke(link, err, "its ring back is damaged");
}

static int announce(struct rr_link *link, struct rr_region *region, uint64_t slot_bytes)
{
    uint32_t number = rr_region_number(region);
    struct note note = {.type = NOTE_SLOT, .slot = {slot_bytes, number}};
    int fd = rr_region_fd(region), r;

    if (number >= MAX_SLOTS)
        return -ENFILE;
    if (link->announced[number / 8] & 1u << number % 8)
        return 0;
    r = send_note(link, &note, &fd, 1);
    if (r == 0)
        link->announced[number / 8] |= (uint8_t)(1u << number % 8);
    return r;
}

static uint32_t inline_at(uint32_t meta_len)
{
    return (uint32_t)rr_align_up(sizeof(struct record) + meta_len, 64);
}

static void fill_record(struct rr_link *link, const struct rr_packet *p, uint8_t *to)
{
    struct record head = {
        .run = p->run,
        .id = p->id,
        .seq = link->next_seq,
        .len = p->len,
        .offset = p->data ? 0 : p->offset,
        .window = p->window,
        .slot_bytes = p->slot_bytes,
        .sent_ns = p->sent_ns,
        .send_cost_ns = p->send_cost_ns,
        .copied_bytes = p->copied_bytes,
        .deadline_ns = p->deadline_ns,
        .edge = p->edge,
        .attempt = p->attempt,
        .flags = (p->data ? RECORD_INLINE : 0u) | (p->shared ? RECORD_SHARED : 0u) |
                 (p->fixed ? RECORD_FIXED : 0u) | (p->acked ? RECORD_ACKED : 0u),
        .meta_len = p->meta_len,
        .number = p->data ? 0 : rr_region_number(p->region),
        .status = p->status,
    };

    memcpy(to, &head, sizeof(head));
    if (p->meta_len)
        memcpy(to + sizeof(head), p->meta, p->meta_len);
    if (p->data)
        memcpy(to + inline_at(p->meta_len), p->data, p->len);
}

/* Is there a place for it, and memory? */
static bool queue_full(const struct rr_link *link, const struct rr_packet *p)
{
    const struct rr_link_domain *d = link->domain;

    if (p->data && !p->acked)
        return false;
    return link->waiting[link->next_seq % d->queue_messages].used ||
           (link->n_waiting > 0 &&
            p->len > d->queue_bytes - rr_min(d->queue_bytes, link->waiting_bytes));
}

int rr_link_send(struct rr_link *link, const struct rr_packet *p, void *cookie,
                 struct rr_error *err)
{
    uint32_t len = inline_at(p->meta_len) + (p->data ? (uint32_t)p->len : 0);
    struct waiting *w;
    uint8_t *to;
    int r;

    if (link->broken)
        return broke(link, err, "it was dropped");
    if (queue_full(link, p))
        return -EAGAIN;
    to = rr_ring_reserve(link->there, len);
    while (!to) {
        if (rr_ring_broken(link->there))
            return broke(link, err, "its ring is damaged");
        if (link->polling || rr_ring_wait_space(link->there, len))
            return -EAGAIN;
        to = rr_ring_reserve(link->there, len);
    }
    r = p->data ? 0 : announce(link, p->region, rr_region_slot_bytes(p->region));
    if (r == -EAGAIN || r == -EPIPE || r == -ECONNRESET)
        return -EAGAIN; /* a death is noticed by rr_link_pump() */
    if (r < 0)
        return system_error(err, "cannot lend memory to a peer", -r);
    if ((!p->data || p->acked) && !share(link, p->len))
        return -EAGAIN;
    fill_record(link, p, to);
    if (!p->data || p->acked) {
        w = &link->waiting[link->next_seq % link->domain->queue_messages];
        *w = (struct waiting){.seq = link->next_seq,
                              .bytes = p->len,
                              .cookie = cookie,
                              .used = true,
                              .freed = p->data != NULL,
                              .acked = !p->acked};
        link->n_waiting++;
        link->n_unacked += p->acked;
        link->waiting_bytes += p->len;
        link->next_seq++;
    }
    rr_ring_commit(link->there);
    if (rr_ring_must_wake(link->there))
        kick(link);
    return 0;
}

void rr_link_set_polling(struct rr_link *link, bool on)
{
    link->polling = on;
}

unsigned int rr_link_n_waiting(const struct rr_link *link)
{
    return link->n_waiting;
}

unsigned int rr_link_n_unacked(const struct rr_link *link)
{
    return link->n_unacked;
}

/* --- receiver -------------------------------------------------------------------------------- */

static const char *check_record(const struct record *h, uint32_t len)
{
    bool in_ring = h->flags & RECORD_INLINE;

    if (h->flags & ~(uint32_t)15)
        return "a record has unknown flags";
    if (h->meta_len > RR_LINK_MAX_META)
        return "a record has too much metadata";
    if (h->slot_bytes != RR_SLOT_SMALL && h->slot_bytes != RR_SLOT_LARGE)
        return "a record names a slot of no known size";
    if (h->window % h->slot_bytes || h->window < RR_WINDOW_BASE ||
        h->window > RR_WINDOW_END - h->slot_bytes)
        return "a record names a window that is none";
    if (in_ring && (h->len > RR_LINK_INLINE || inline_at(h->meta_len) + h->len != len))
        return "a record is not as long as it says";
    if (!in_ring && (len != inline_at(h->meta_len) || h->offset > h->slot_bytes ||
                     h->len > h->slot_bytes - h->offset))
        return "a record's payload lies outside of its slot";
    return NULL;
}

static int borrow(struct rr_link *link, const struct record *h, struct rr_packet *ret,
                  struct rr_error *err)
{
    struct slot *s = h->number < link->n_slots ? link->slots[h->number] : NULL;
    int r;

    if (!s) { /* it was lent over the socket before the record was published */
        r = read_socket(link, err);
        if (r && r != -EPIPE)
            return r;
        s = h->number < link->n_slots ? link->slots[h->number] : NULL;
    }
    if (!s || s->lent)
        return broke(link, err,
                     s ? "it sends a region that we have already"
                       : "it sends a region that it did not lend");
    if (h->slot_bytes != rr_region_slot_bytes(s->region)) /* or it would not fit its window */
        return broke(link, err, "a record names another slot than the one it is in");
    s->lent = true;
    s->seq = h->seq;
    rr_region_borrow(s->region, h->offset + h->len, h->flags & RECORD_SHARED);
    ret->region = s->region;
    return 0;
}

int rr_link_receive(struct rr_link *link, struct rr_packet *ret, struct rr_error *err)
{
    const uint8_t *record;
    const void *peeked;
    struct record h;
    const char *wrong;
    uint32_t len;
    int r = link->greeted && !link->broken ? rr_ring_peek(link->there, &peeked, &len) : -EAGAIN;

    if (r == -EAGAIN)
        return r;
    if (r < 0)
        return broke(link, err, "its ring is damaged");
    record = peeked;
    if (len < sizeof(h))
        return broke(link, err, "a record is too short");
    memcpy(&h, record, sizeof(h));
    wrong = check_record(&h, len);
    if (wrong)
        return broke(link, err, wrong);
    *ret = (struct rr_packet){
        .run = h.run,
        .id = h.id,
        .edge = h.edge,
        .attempt = h.attempt,
        .len = h.len,
        .offset = h.flags & RECORD_INLINE ? 0 : h.offset,
        .window = h.window,
        .slot_bytes = h.slot_bytes,
        .status = h.status,
        .fixed = h.flags & RECORD_FIXED,
        .acked = h.flags & RECORD_ACKED,
        .shared = h.flags & RECORD_SHARED,
        .sent_ns = h.sent_ns,
        .send_cost_ns = h.send_cost_ns,
        .copied_bytes = h.copied_bytes,
        .deadline_ns = h.deadline_ns,
        .meta = record + sizeof(h),
        .meta_len = h.meta_len,
        .seq = h.seq,
    };
    if (!(h.flags & RECORD_INLINE))
        return borrow(link, &h, ret, err);
    ret->data = record + inline_at(h.meta_len);
    return 0;
}

void rr_link_received(struct rr_link *link)
{
    rr_ring_release(link->there);
    if (rr_ring_must_wake_producer(link->there))
        kick(link);
}

void rr_link_ack(struct rr_link *link, uint64_t seq)
{
    back_say(link, seq, BACK_ACK);
}

/* --- life ------------------------------------------------------------------------------------ */

static struct rr_link *link_new(struct rr_link_domain *domain, bool sender, int fd)
{
    struct rr_link *link = calloc(1, sizeof(*link));

    if (!link)
        return NULL;
    link->domain = domain;
    link->sender = sender;
    link->fd = fd;
    snprintf(link->peer, sizeof(link->peer), "?");
    return link;
}

/* Who is at the other end; the kernel vouches for it. */
static int check_peer(struct rr_link *link, struct rr_error *err)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);

    if (getsockopt(link->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
        return system_error(err, "cannot tell who a peer is", errno);
    link->peer_pid = cred.pid;
    if (cred.uid == link->domain->uids[0] || cred.uid == link->domain->uids[1])
        return 0;
    return rr_error_set(err, RR_E_INVALID, "run all workers of a domain as one user",
                        "process %d of user %u may not talk to us", (int)cred.pid,
                        (unsigned int)cred.uid);
}

static int greet(struct rr_link *link, const char *from, const char *to, struct rr_error *err)
{
    struct note hello = {.type = NOTE_HELLO};
    int fds[2], r = rr_ring_new(RR_RING_PRODUCER, &link->there, err);

    if (r == 0)
        r = rr_ring_new(RR_RING_CONSUMER, &link->back, err);
    link->waiting = calloc(link->domain->queue_messages, sizeof(*link->waiting));
    if (r == 0 && !link->waiting)
        r = system_error(err, "no memory for a queue", ENOMEM);
    if (r)
        return r;
    fds[0] = rr_ring_fd(link->there);
    fds[1] = rr_ring_fd(link->back);
    snprintf(link->peer, sizeof(link->peer), "%s", to);
    snprintf(hello.hello.domain, sizeof(hello.hello.domain), "%s", link->domain->name);
    snprintf(hello.hello.from, sizeof(hello.hello.from), "%s", from);
    snprintf(hello.hello.to, sizeof(hello.hello.to), "%s", to);
    r = send_note(link, &hello, fds, 2);
    if (r == -EPIPE || r == -ECONNRESET) /* it died before it accepted us */
        return -EAGAIN;
    return r < 0 ? system_error(err, "cannot greet a peer", -r) : 0;
}

int rr_link_connect(struct rr_link_domain *domain, const char *from, const char *to,
                    rr_link_done done, void *user, struct rr_link **ret, struct rr_error *err)
{
    struct sockaddr_un a;
    struct rr_link *link;
    int fd, r = address(domain, to, &a);

    if (r < 0)
        return system_error(err, "the folder of sockets", -r);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return system_error(err, "no socket", errno);
    if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
        r = errno;
        close(fd);
        return r == ENOENT || r == ECONNREFUSED || r == EAGAIN
                   ? -EAGAIN
                   : system_error(err, "cannot reach a peer", r);
    }
    link = link_new(domain, true, fd);
    if (!link) {
        close(fd);
        return system_error(err, "no memory for a link", ENOMEM);
    }
    link->done = done;
    link->user = user;
    r = check_peer(link, err);
    if (r == 0)
        r = greet(link, from, to, err);
    if (r) {
        rr_link_free(link);
        return r;
    }
    *ret = link;
    return 0;
}

int rr_link_accept(struct rr_link_domain *domain, int listener, struct rr_link **ret,
                   struct rr_error *err)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK), r;
    struct rr_link *link;

    if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR))
        return -EAGAIN;
    if (fd < 0)
        return system_error(err, "cannot accept a peer", errno);
    link = link_new(domain, false, fd);
    if (!link) {
        close(fd);
        return system_error(err, "no memory for a link", ENOMEM);
    }
    r = check_peer(link, err);
    if (r) {
        rr_link_free(link);
        return r;
    }
    *ret = link;
    return 0;
}

void rr_link_free(struct rr_link *link)
{
    if (!link)
        return;
    link->broken = true; /* nothing goes back any more */
    for (unsigned int n = 0; link->waiting && n < link->domain->queue_messages; n++)
        if (link->waiting[n].used)
            settle(link, &link->waiting[n], true);
    for (uint32_t n = 0; n < link->n_slots; n++)
        if (link->slots[n]) {
            if (link->slots[n]->region)
                rr_region_close(link->slots[n]->region);
            free(link->slots[n]);
        }
    free(link->slots);
    free(link->waiting);
    rr_ring_free(link->there);
    rr_ring_free(link->back);
    close(link->fd);
    free(link);
}

int rr_link_pump(struct rr_link *link, struct rr_error *err)
{
    int r, back = 0;

    if (link->broken)
        return broke(link, err, "it was dropped");
    r = read_socket(link, err);
    if (link->sender && (r == 0 || r == -EPIPE))
        back = read_back(link, err);
    return r == 0 ? back : r;
}

int rr_link_poll(struct rr_link *link, struct rr_error *err)
{
    if (link->broken)
        return broke(link, err, "it was dropped");
    return link->sender ? read_back(link, err) : 0;
}

bool rr_link_pending(struct rr_link *link)
{
    struct rr_ring *in = link->sender ? link->back : link->there;
    const void *record;
    uint32_t len;

    return in && rr_ring_peek(in, &record, &len) != -EAGAIN;
}

bool rr_link_sleep(struct rr_link *link, struct futex_waitv *word)
{
    struct rr_ring *in = link->sender ? link->back : link->there;

    return !in || rr_ring_sleep(in, word);
}

void rr_link_awake(struct rr_link *link)
{
    struct rr_ring *in = link->sender ? link->back : link->there;

    if (in)
        rr_ring_awake(in);
}

int rr_link_fd(const struct rr_link *link)
{
    return link->fd;
}

const char *rr_link_peer(const struct rr_link *link)
{
    return link->peer;
}

pid_t rr_link_peer_pid(const struct rr_link *link)
{
    return link->peer_pid;
}
