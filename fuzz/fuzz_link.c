/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile peer at both kinds of link. It sends any notes with any descriptors, puts any records
 * into the rings, overwrites their words and goes away when it likes, while we receive, move, put,
 * forward and send. Whatever it does, what we are handed can be touched, and afterwards no
 * descriptor is left open and no region live.
 *
 * An input is a sequence of steps of 4 bytes: what to do, and a number of 24 bits. Some steps take
 * bytes of what follows.
 */
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>

/* The source itself: the peer needs the protocol's structures, which no header has. */
#include "channel/link.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define MAX_STEPS 300
#define SLOT (64 * RR_MIB)
#define N_HELD 6
#define QUEUE 16

enum {
    FD_GOOD,
    FD_GOOD2,
    FD_UNSEALED,
    FD_READ_ONLY,
    FD_SMALL,
    FD_PIPE,
    FD_FILE,
    FD_LISTENER,
    N_FDS
};

/* Made once, for all inputs. */
static struct {
    char dir[64];
    int ours, theirs; /* listeners */
    int fds[N_FDS];
    uint8_t *window;
} base;

/* Something received that is not done with. */
struct held {
    struct rr_region *region;
    uint64_t seq;
    bool used, to_ack;
};

struct peer {
    int fd;
    struct rr_ring *there, *back; /* the peer's ends; NULL: not made or not got yet */
};

struct fuzz {
    const uint8_t *data, *end;
    struct rr_link_domain domain;
    struct rr_link *r, *s; /* ours; NULL: dropped */
    struct peer a, b;      /* a sends to r, b receives from s */
    struct held held[N_HELD];
    struct rr_region *in_window; /* one of the held */
    uint64_t b_seq;
};

static void check(bool good)
{
    if (!good)
        abort();
}

static size_t count_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    size_t n = 0;

    check(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* --- set-up ---------------------------------------------------------------------------------- */

static int memfd(uint64_t bytes, int seals)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    check(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, seals) == 0);
    return fd;
}

static void clean_up(void)
{
    char path[128];

    for (int n = 0; n < 2; n++) {
        snprintf(path, sizeof(path), "%s/%s.sock", base.dir, n ? "theirs" : "ours");
        unlink(path);
    }
    rmdir(base.dir);
}

static void set_up(void)
{
    struct rr_link_domain d = {0};
    int pipes[2];

    snprintf(base.dir, sizeof(base.dir), "/tmp/rr-fuzz-link-XXXXXX");
    check(mkdtemp(base.dir) && atexit(clean_up) == 0);
    snprintf(d.dir, sizeof(d.dir), "%s", base.dir);
    base.ours = rr_link_listen(&d, "ours");
    base.theirs = rr_link_listen(&d, "theirs");
    base.window = rr_reserve(SLOT, SLOT);
    check(base.ours >= 0 && base.theirs >= 0 && base.window && pipe2(pipes, O_CLOEXEC) == 0);
    base.fds[FD_GOOD] = memfd(SLOT, F_SEAL_SHRINK | F_SEAL_GROW);
    base.fds[FD_GOOD2] = memfd(SLOT, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    base.fds[FD_UNSEALED] = memfd(SLOT, F_SEAL_GROW);
    base.fds[FD_READ_ONLY] = memfd(SLOT, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
    base.fds[FD_SMALL] = memfd(SLOT - 4096, F_SEAL_SHRINK | F_SEAL_GROW);
    base.fds[FD_PIPE] = pipes[0];
    base.fds[FD_FILE] = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    base.fds[FD_LISTENER] = base.theirs;
}

/* Over or under the region that was lent, the peer that has died may use it still. */
static void done(void *user, void *cookie, bool acked, bool lost)
{
    struct rr_region *region = cookie;

    (void)user;
    (void)acked;
    if (region && lost)
        rr_region_forsake(region);
    rr_region_put(region);
}

static int connect_raw(const struct fuzz *f)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_un a;

    check(address(&f->domain, "ours", &a) == 0 &&
          connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
    return fd;
}

static void open_a(struct fuzz *f)
{
    f->a = (struct peer){.fd = connect_raw(f)};
    check(rr_link_accept(&f->domain, base.ours, &f->r, NULL) == 0);
}

/* The peer takes our greeting: it needs the rings to do harm. */
static void open_b(struct fuzz *f)
{
    struct rr_link link = {0};
    int fds[MAX_FDS];
    struct note note;
    size_t n;

    check(rr_link_connect(&f->domain, "ours", "theirs", done, f, &f->s, NULL) == 0);
    f->b = (struct peer){.fd = accept4(base.theirs, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    link.fd = f->b.fd;
    check(f->b.fd >= 0 && receive_note(&link, &note, fds, &n) == 0 && n == 2);
    check(rr_ring_attach(fds[0], RR_RING_CONSUMER, &f->b.there, NULL) == 0 &&
          rr_ring_attach(fds[1], RR_RING_PRODUCER, &f->b.back, NULL) == 0);
    f->b_seq = 0;
}

static void close_peer(struct peer *p)
{
    if (p->fd >= 0)
        close(p->fd);
    rr_ring_free(p->there);
    rr_ring_free(p->back);
    *p = (struct peer){.fd = -1};
}

/* --- what the peer does ---------------------------------------------------------------------- */

/* Bytes of the input; zeroes where there are no more. */
static void take(struct fuzz *f, void *to, size_t n)
{
    size_t have = rr_min(n, (uint64_t)(f->end - f->data));

    memset(to, 0, n);
    memcpy(to, f->data, have);
    f->data += have;
}

static void raw_send(int fd, const void *bytes, size_t len, const int *fds, size_t n_fds)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(4 * sizeof(int))];
    } control = {0};
    struct iovec iov = {(void *)(uintptr_t)bytes, len};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd < 0)
        return;
    if (n_fds) {
        m.msg_control = control.space;
        m.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, n_fds * sizeof(int));
    }
    (void)!sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT); /* if it does not fit, so be it */
}

/* Any note: bits of @v choose its type, length and descriptors; its text comes from the input. */
static void any_note(struct fuzz *f, int fd, uint32_t v)
{
    struct note note = {.type = v & 7, .version = v & 8 ? v : RR_LINK_VERSION, .magic = MAGIC};
    size_t len = v & 16 ? v >> 8 & 255 : sizeof(note), n_fds = v >> 5 & 7;
    int fds[4];

    take(f, note.text, v >> 16 & 31);
    n_fds = n_fds > 4 ? 0 : n_fds;
    for (size_t n = 0; n < n_fds; n++)
        fds[n] = base.fds[(v >> 12 & 7) + n < N_FDS ? (v >> 12 & 7) + n : n];
    raw_send(fd, &note, rr_min(len, sizeof(note)), fds, n_fds);
}

static void greet_as_a(struct fuzz *f, uint32_t v)
{
    struct note note = {.type = NOTE_HELLO,
                        .version = RR_LINK_VERSION,
                        .magic = MAGIC,
                        .hello = {"domain", "theirs", "ours"}};
    int fds[2];

    if (f->a.fd < 0)
        return;
    if (!f->a.there)
        check(rr_ring_new(RR_RING_PRODUCER, &f->a.there, NULL) == 0 &&
              rr_ring_new(RR_RING_CONSUMER, &f->a.back, NULL) == 0);
    fds[0] = v & 1 ? rr_ring_fd(f->a.back) : rr_ring_fd(f->a.there);
    fds[1] = v & 2 ? base.fds[v >> 2 & 7] : rr_ring_fd(f->a.back);
    if (v & 32)
        memset(note.text + (v >> 6) % 192, (int)(v >> 16), 1);
    raw_send(f->a.fd, &note, sizeof(note), fds, 2);
}

static void lend(struct fuzz *f, uint32_t v)
{
    struct note note = {.type = NOTE_SLOT, .version = RR_LINK_VERSION, .magic = MAGIC};

    note.slot.slot_bytes = v & 64 ? (v & 128 ? RR_GIB : v) : SLOT;
    note.slot.number = v & 256 ? v >> 8 << (v >> 20) : v & 3;
    raw_send(f->a.fd, &note, sizeof(note), &base.fds[v & 32 ? v >> 2 & 7 : v >> 2 & 1], 1);
}

static void publish(struct rr_ring *ring, const void *bytes, size_t n, uint32_t len)
{
    uint8_t *to = ring ? rr_ring_reserve(ring, len) : NULL;

    if (!to)
        return;
    memcpy(to, bytes, rr_min(n, len));
    rr_ring_commit(ring);
    rr_ring_must_wake(ring);
}

/* A record that may be believed, of which as many words as @v says are what the input says. */
static void record(struct fuzz *f, uint32_t v)
{
    static const uint32_t lens[] = {0, 1, 56, 4096, 70000, RR_LINK_INLINE, RR_LINK_INLINE + 1, 300};
    struct record h = {.run = 1,
                       .id = 2,
                       .seq = v >> 8 & 15,
                       .len = lens[v & 7],
                       .offset = v & 8 ? v : 0,
                       .window = RR_GIB + (v >> 4 & 15) * SLOT,
                       .slot_bytes = SLOT,
                       .flags = v >> 12 & 15,
                       .meta_len = v & 16 ? 5 : 0,
                       .number = v >> 16 & 3};
    uint32_t len;

    if (v >> 18 & 1)
        h.meta_len = lens[v >> 19 & 7];
    len = inline_at(h.meta_len) + (h.flags & RECORD_INLINE ? (uint32_t)h.len : 0);
    for (uint32_t n = v >> 22; n; n--) {
        uint8_t at[2];
        uint64_t word;

        take(f, at, sizeof(at));
        take(f, &word, at[1] & 7);
        word = at[1] & 8 ? ~word : at[1] & 16 ? word << (at[1] & 32 ? 26 : 58) : word;
        memcpy((uint8_t *)&h + at[0] % (sizeof(h) / 8) * 8, &word, sizeof(word));
    }
    len += v >> 23 & v & 1;
    publish(f->a.there, &h, sizeof(h), (uint32_t)rr_min(len, RR_RING_MAX_RECORD));
}

static void raw_record(struct fuzz *f, struct rr_ring *ring, uint32_t v)
{
    uint8_t bytes[256];

    take(f, bytes, v & 255);
    publish(ring, bytes, v & 255, v & 256 ? v >> 8 : v & 255);
}

static void give_back(struct fuzz *f, uint32_t v)
{
    struct back b = {.seq = v & 1 ? f->b_seq++ : v >> 4 & 31, .what = v >> 1 & 3};

    if (v & 8)
        b.seq = ~b.seq << (v >> 4 & 63);
    publish(f->b.back, &b, sizeof(b), v >> 12 == 7 ? v & 63 : sizeof(b));
}

/* Over the words of a ring, or anywhere in it. */
static void scribble(const struct rr_ring *ring, uint32_t v)
{
    static const size_t words[] = {RR_RING_TAIL, RR_RING_HEAD, RR_RING_CONSUMER_SLEEPS,
                                   RR_RING_PRODUCER_WAITS};
    uint64_t value = v >> 4, old;
    uint8_t *raw;
    size_t at;

    if (!ring)
        return;
    raw = mmap(NULL, RR_RING_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, rr_ring_fd(ring), 0);
    check(raw != MAP_FAILED);
    at = v & 4 ? RR_RING_HEAD_BYTES + value % 64 * 8 : words[v & 3];
    memcpy(&old, raw + at, sizeof(old));
    value = v & 8 ? old + value * 64 : value << (v >> 4 & 31);
    memcpy(raw + at, &value, sizeof(value));
    munmap(raw, RR_RING_FILE_BYTES);
}

static void drain(struct rr_ring *ring, uint32_t v)
{
    const void *record;
    uint32_t len;

    for (v = v % 32 + 1; ring && v && rr_ring_peek(ring, &record, &len) == 0; v--) {
        rr_ring_release(ring);
        rr_ring_must_wake_producer(ring);
    }
}

/* --- what we do ------------------------------------------------------------------------------ */

static void drop_r(struct fuzz *f)
{
    for (size_t n = 0; n < N_HELD; n++)
        f->held[n].to_ack = false;
    rr_link_free(rr_take(f->r));
}

static void touch(const uint8_t *p, uint64_t len)
{
    volatile uint8_t sink = 0;

    if (!len)
        return;
    sink ^= p[0];
    sink ^= p[len / 2];
    sink ^= p[len - 1];
    (void)sink;
}

static void put_held(struct fuzz *f, struct held *h)
{
    if (h->region && f->in_window == h->region)
        f->in_window = NULL;
    rr_region_put(h->region);
    if (h->to_ack)
        rr_link_ack(f->r, h->seq);
    *h = (struct held){0};
}

static void receive(struct fuzz *f, uint32_t v)
{
    struct held *h = &f->held[v % N_HELD];
    struct rr_error err = {0};
    struct rr_packet p;
    int r = f->r ? rr_link_receive(f->r, &p, &err) : -EAGAIN;

    if (r == -EAGAIN)
        return;
    if (r) {
        check(r > 0 && err.code == (enum rr_code)r && err.text[0]);
        drop_r(f);
        return;
    }
    check(p.meta_len <= RR_LINK_MAX_META && !p.data == !!p.region);
    check(p.window >= RR_GIB && p.window + p.slot_bytes <= 3 * RR_GIB &&
          p.window % p.slot_bytes == 0);
    touch(p.meta, p.meta_len);
    if (p.data) {
        check(p.len <= RR_LINK_INLINE && p.offset == 0);
        touch(p.data, p.len);
    } else {
        check(rr_region_slot_bytes(p.region) == p.slot_bytes && p.offset <= p.slot_bytes &&
              p.len <= p.slot_bytes - p.offset && rr_region_parked(p.region));
        touch(rr_region_data(p.region) + p.offset, p.len);
    }
    rr_link_received(f->r);
    if (h->used)
        put_held(f, h);
    *h = (struct held){.region = p.region, .seq = p.seq, .used = true, .to_ack = p.acked};
}

static void hand_over(struct fuzz *f, struct rr_packet p, struct rr_region *owned)
{
    struct rr_error err = {0};
    int r = f->s ? rr_link_send(f->s, &p, owned, &err) : -EAGAIN;

    check(r <= 0 || (err.code == (enum rr_code)r && err.text[0]));
    if (r)
        rr_region_put(owned);
    if (r > 0)
        rr_link_free(rr_take(f->s));
}

static void send_new(struct fuzz *f, uint32_t v)
{
    static const uint8_t bytes[RR_LINK_INLINE];
    struct rr_packet p = {.len = v >> 4,
                          .window = RR_GIB,
                          .slot_bytes = SLOT,
                          .acked = v & 1,
                          .shared = v & 2,
                          .meta = bytes,
                          .meta_len = v >> 8};

    if (v & 4) {
        check(rr_region_get(f->domain.arena, RR_MEMFD, SLOT, p.len, 0, &p.region, NULL) == 0);
    } else {
        p.data = bytes;
        p.len %= v & 8 ? RR_LINK_INLINE + 1 : 100;
    }
    hand_over(f, p, p.region);
}

static void move_home(struct fuzz *f, struct held *h)
{
    if (f->in_window != h->region)
        return;
    check(rr_region_move(h->region, NULL, 4096, NULL) == 0 && rr_region_parked(h->region));
    f->in_window = NULL;
}

/* Something with a region that was received, as the worker does it. */
static void use_held(struct fuzz *f, uint32_t v)
{
    struct held *h = &f->held[v % N_HELD];
    struct rr_region *view;

    if (v & 8 || !h->region) {
        put_held(f, h);
        return;
    }
    switch (v >> 4 & 3) {
    case 0:
        if (rr_region_shared(h->region)) {
            check(rr_region_view(h->region, NULL, 4096, &view, NULL) == 0);
            rr_region_data(view)[0]++;
            rr_region_put(view);
        } else if (!f->in_window) {
            check(rr_region_move(h->region, base.window, 4096, NULL) == 0);
            f->in_window = h->region;
        }
        touch(rr_region_data(h->region), SLOT);
        break;
    case 1:
        move_home(f, h);
        break;
    default: { /* on to the other peer */
        struct rr_packet p = {.len = v >> 8, .window = RR_GIB, .slot_bytes = SLOT};

        move_home(f, h);
        p.shared = rr_region_shared(h->region);
        p.acked = v & 64;
        p.region = rr_take(h->region);
        put_held(f, h);
        hand_over(f, p, p.region);
        break;
    }
    }
}

static bool works(int r, const struct rr_error *err)
{
    check(r == 0 || r == -EPIPE || (r > 0 && err->code == (enum rr_code)r && err->text[0]));
    return r == 0;
}

static void look(struct fuzz *f, struct rr_link **link, uint32_t v)
{
    struct rr_error err = {0};
    int r = 0;

    if (!*link)
        return;
    switch (v & 7) {
    case 0:
    case 1:
    case 2:
        r = rr_link_pump(*link, &err);
        break;
    case 3:
    case 4:
        r = rr_link_poll(*link, &err);
        break;
    case 5:
        rr_link_sleep(*link, NULL);
        break;
    case 6:
        rr_link_awake(*link);
        break;
    default:
        rr_link_pending(*link);
        break;
    }
    if (works(r, &err) || (r == -EPIPE && v & 8))
        return;
    if (*link == f->r)
        drop_r(f);
    else
        rr_link_free(rr_take(f->s));
}

/* --- steps ----------------------------------------------------------------------------------- */

static void hang_up(struct fuzz *f, uint32_t v)
{
    switch (v & 3) {
    case 0:
        close_peer(&f->a);
        break;
    case 1:
        close_peer(&f->b);
        break;
    case 2:
        close_peer(&f->a);
        drop_r(f);
        open_a(f);
        break;
    default:
        close_peer(&f->b);
        rr_link_free(rr_take(f->s));
        open_b(f);
        break;
    }
}

static void peer_step(struct fuzz *f, uint8_t what, uint32_t v)
{
    struct rr_ring *rings[] = {f->a.there, f->a.back, f->b.there, f->b.back};

    switch (what & 7) {
    case 0:
        any_note(f, what & 8 ? f->b.fd : f->a.fd, v);
        break;
    case 1:
        greet_as_a(f, v);
        break;
    case 2:
        lend(f, v);
        break;
    case 3:
        record(f, v);
        break;
    case 4:
        raw_record(f, what & 8 ? f->b.back : f->a.there, v);
        break;
    case 5:
        give_back(f, v);
        break;
    case 6:
        if (what & 8)
            drain(what & 16 ? f->a.back : f->b.there, v);
        else
            scribble(rings[what >> 4 & 3], v);
        break;
    default:
        hang_up(f, v);
        break;
    }
}

static void our_step(struct fuzz *f, uint8_t what, uint32_t v)
{
    switch (what & 7) {
    case 0:
        look(f, &f->r, v);
        break;
    case 1:
        look(f, &f->s, v);
        break;
    case 2:
    case 3:
        receive(f, v);
        break;
    case 4:
    case 5:
        use_held(f, v);
        break;
    default:
        send_new(f, v);
        break;
    }
}

static void run(struct fuzz *f)
{
    static const struct rr_arena_options options = {.ceiling_bytes = RR_GIB};
    struct rr_arena_stats stats;

    f->domain = (struct rr_link_domain){.name = "domain",
                                        .uids = {getuid(), getuid()},
                                        .queue_messages = QUEUE,
                                        .queue_bytes = 8 * RR_MIB};
    snprintf(f->domain.dir, sizeof(f->domain.dir), "%s", base.dir);
    check(rr_arena_new(&options, &f->domain.arena, NULL) == 0);
    open_a(f);
    open_b(f);
    for (int n = 0; f->end - f->data >= 4 && n < MAX_STEPS; n++) {
        uint8_t b[4];
        uint32_t v;

        take(f, b, sizeof(b));
        v = b[1] | (uint32_t)b[2] << 8 | (uint32_t)b[3] << 16;
        if (b[0] & 128)
            our_step(f, b[0], v);
        else
            peer_step(f, b[0], v);
    }
    for (size_t n = 0; n < N_HELD; n++)
        if (n % 2 == 0) /* the others outlive the link */
            put_held(f, &f->held[n]);
    drop_r(f);
    for (size_t n = 0; n < N_HELD; n++)
        put_held(f, &f->held[n]);
    rr_link_free(f->s);
    close_peer(&f->a);
    close_peer(&f->b);
    rr_arena_stats(f->domain.arena, &stats);
    check(stats.live_regions == 0 && stats.live_bytes == 0);
    rr_arena_free(f->domain.arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct fuzz f = {.data = data, .end = data + len};
    size_t n_fds;

    if (!base.window)
        set_up();
    n_fds = count_fds();
    run(&f);
    check(count_fds() == n_fds);
    return 0;
}
