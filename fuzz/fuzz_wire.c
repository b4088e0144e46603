/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What comes over the wire. The first byte chooses: a greeting, a message's frame, or a hostile
 * peer in a session with us. The peer greets as it should, then sends any frames over both
 * connections, while we receive, ack and send. Whatever it does, no region stays live and no
 * descriptor open.
 *
 * What is decoded is encoded again: the same bytes must come out.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "channel/net.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define MAX_STEPS 200
#define LARGE (RR_WIRE_INLINE + 5000u)

static void check(bool good)
{
    if (!good)
        abort();
}

/* --- frames alone ---------------------------------------------------------------------------- */

static void hello(const uint8_t *data, size_t len)
{
    static struct rr_wire_text texts[RR_WIRE_MAX_TEXTS];
    static uint8_t again[RR_WIRE_HEADER + RR_WIRE_MAX_HELLO];
    struct rr_wire_hello h = {0};
    size_t n;

    if (len > RR_WIRE_MAX_HELLO || rr_wire_get_hello(data, len, texts, &h, NULL))
        return;
    n = rr_wire_put_hello(again, sizeof(again), &h);
    check(n == RR_WIRE_HEADER + len && memcmp(again + RR_WIRE_HEADER, data, len) == 0);
}

static void message_frame(const uint8_t *data, size_t len)
{
    static struct rr_net_target targets[RR_WIRE_MAX_TARGETS];
    static char names[RR_WIRE_NAMES_BYTES];
    struct rr_net_packet p = {0};
    struct rr_wire_header h;
    uint8_t *again;
    size_t n;

    if (len < RR_WIRE_HEADER || rr_wire_get_header(data, &h, NULL) || h.type != RR_WIRE_DATA ||
        h.len != len - RR_WIRE_HEADER ||
        rr_wire_get_data(&h, data + RR_WIRE_HEADER, targets, names, &p, NULL))
        return;
    n = rr_wire_data_bytes(&p);
    check(n > 0 && n + (p.data ? p.len : 0) == len);
    again = malloc(n);
    check(again);
    rr_wire_put_data(again, n, &p, p.seq);
    check(memcmp(again, data, n) == 0);
    free(again);
}

/* --- a session ------------------------------------------------------------------------------- */

static struct {
    char path[64];
    struct rr_arena *arena;
    uint8_t *large;
} base;

struct fuzz {
    const uint8_t *data, *end;
    struct rr_net *net;
    struct rr_net_peer *peer; /* NULL: down */
    int fds[2];               /* the hostile peer's: main, extra */
    uint64_t seqs[8];         /* of what has come */
    uint32_t n_seqs, n_done, n_sent, v;
    bool up;
};

static int place(void *user, struct rr_net_peer *peer, const struct rr_net_packet *head,
                 struct rr_region **ret, struct rr_error *err)
{
    struct fuzz *f = user;

    (void)peer;
    if (f->v % 5 == 0)
        return rr_error_set(err, RR_E_LIMIT, NULL, "no");
    return rr_region_get(base.arena, RR_MEMFD, head->slot_bytes, head->len, 0, ret, err);
}

static void message(void *user, struct rr_net_peer *peer, struct rr_net_packet *p)
{
    struct fuzz *f = user;
    unsigned int sum = 0;

    for (uint32_t n = 0; n < p->n_targets; n++)
        sum += (unsigned int)(strlen(p->targets[n].from) + strlen(p->targets[n].to));
    for (uint32_t n = 0; n < p->meta_len; n++)
        sum += p->meta[n];
    if (p->data)
        for (uint64_t n = 0; n < p->len; n++)
            sum += p->data[n];
    check(sum || !p->len || p->n_targets);
    if (f->v % 3 == 0)
        rr_net_hold(peer, p->seq);
    if (f->v % 2 == 0)
        rr_net_ack(peer, p->seq, 0);
    f->seqs[f->n_seqs++ % RR_ARRAY_LEN(f->seqs)] = p->seq;
    rr_region_put(p->region);
}

static void up(void *user, struct rr_net_peer *peer)
{
    struct fuzz *f = user;

    f->peer = peer;
    f->up = true;
}

static void down(void *user, struct rr_net_peer *peer, const struct rr_error *why, bool gone)
{
    struct fuzz *f = user;

    (void)peer;
    check(gone && why->text[0]);
    f->peer = NULL;
}

static void done(void *user, struct rr_net_peer *peer, void *cookie, uint32_t target, bool acked,
                 bool lost, const struct rr_error *refused)
{
    struct fuzz *f = user;

    (void)peer;
    (void)cookie;
    check(target < 2 && acked + lost + (refused != NULL) <= 1);
    f->n_done++;
}

static void clean_up(void)
{
    free(base.large);
    rr_arena_free(base.arena);
}

static void set_up(void)
{
    const struct rr_arena_options o = {.ceiling_bytes = RR_GIB};

    snprintf(base.path, sizeof(base.path), "/tmp/rr-fuzz-wire-%d.sock", (int)getpid());
    base.large = calloc(1, LARGE);
    check(base.large && rr_arena_new(&o, &base.arena, NULL) == 0 && atexit(clean_up) == 0);
    rr_log_set_level(-1);
}

static void pump(struct fuzz *f, bool deliver)
{
    check(rr_net_pump(f->net, deliver, NULL) >= 0);
}

static void drain(const struct fuzz *f)
{
    uint8_t bytes[65536];

    for (size_t n = 0; n < 2; n++)
        while (recv(f->fds[n], bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
            ;
}

static void open_session(struct fuzz *f)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    char at[80];

    snprintf(at, sizeof(at), "unix:%s", base.path);
    memcpy(a.sun_path, base.path, sizeof(base.path));
    check(rr_net_listen(f->net, at, NULL) == 0);
    for (uint32_t n = 0; n < 2; n++) {
        struct rr_wire_hello h = {.version = RR_WIRE_VERSION,
                                  .session = {1, 2, 3},
                                  .role = n ? RR_WIRE_EXTRA : RR_WIRE_MAIN,
                                  .n_bulk = 1,
                                  .credit = {16, RR_MIB, 4 * RR_MIB, RR_MIB}};
        uint8_t bytes[512];
        size_t len = rr_wire_put_hello(bytes, sizeof(bytes), &h);

        f->fds[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        check(f->fds[n] >= 0 && connect(f->fds[n], (struct sockaddr *)&a, sizeof(a)) == 0 &&
              send(f->fds[n], bytes, len, 0) == (ssize_t)len);
        for (int i = 0; i < 4; i++)
            pump(f, true);
    }
    check(f->up);
}

/* Bytes of the input; zeroes where there are no more. */
static void take(struct fuzz *f, void *to, size_t n)
{
    size_t have = rr_min(n, (uint64_t)(f->end - f->data));

    memset(to, 0, n);
    memcpy(to, f->data, have);
    f->data += have;
}

static void raw(const struct fuzz *f, uint32_t which, const void *bytes, size_t len)
{
    (void)!send(f->fds[which & 1], bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* A message that may be believed, of which a word is what the input says. */
static void send_message(struct fuzz *f, uint32_t v)
{
    static const uint64_t lens[] = {0, 1, 300, RR_WIRE_INLINE, LARGE, LARGE, 70000, 5};
    const struct rr_net_target t[2] = {{"a.out", "b.in", 7, 1, (v & 8) != 0},
                                       {"a.out", "c.in", 8, 1, (v & 16) != 0}};
    struct rr_net_packet p = {.window = RR_WINDOW_BASE,
                              .slot_bytes = RR_SLOT_SMALL,
                              .len = lens[v & 7],
                              .targets = t,
                              .n_targets = 1 + (v >> 5 & 1)};
    bool bulk = p.len > RR_WIRE_INLINE, acked = t[0].acked || (p.n_targets > 1 && t[1].acked);
    uint8_t bytes[512];
    size_t n = rr_wire_data_bytes(&p);
    uint64_t word;

    rr_wire_put_data(bytes, n, &p,
                     bulk || acked ? (uint64_t)(v >> 8 & 3) << 16 | (v >> 10 & 7) : 0);
    if (v >> 13 & 1) {
        take(f, &word, 1 + (v >> 14 & 7));
        memcpy(bytes + (v >> 17) % (n - 8), &word, sizeof(word));
    }
    raw(f, v >> 25 & 1 ? !bulk : bulk, bytes, n);
    if (!bulk)
        raw(f, 0, base.large, p.len);
}

static void send_frame(struct fuzz *f, uint32_t v)
{
    uint8_t bytes[RR_WIRE_HEADER + 256];
    uint32_t len = v >> 8 & 255;

    if ((v & 15) == RR_WIRE_CHUNK_DATA) {
        len = v >> 4 & 1 ? LARGE : v >> 8 & 0xffff;
        rr_wire_put_header(bytes, len, RR_WIRE_CHUNK_DATA, 0,
                           (uint64_t)(v >> 24 & 3) << 16 | (v >> 26 & 7));
        raw(f, 1, bytes, RR_WIRE_HEADER);
        raw(f, 1, base.large, rr_min(len, LARGE));
        return;
    }
    take(f, bytes + RR_WIRE_HEADER, len);
    rr_wire_put_header(bytes, len, v & 15, 0,
                       v >> 4 & 1 ? (uint64_t)(v >> 24 & 3) << 16 | (v >> 26 & 7) : 0);
    raw(f, v >> 5, bytes, RR_WIRE_HEADER + len);
}

/* Rows about what we sent: mostly of numbers that there are. */
static void send_back(struct fuzz *f, uint32_t v)
{
    uint8_t bytes[RR_WIRE_HEADER + RR_WIRE_BACK_BYTES];
    const struct rr_wire_back_row row = {(uint64_t)(v & 7) << 16 | (v >> 3 & 7), v >> 6 & 1,
                                         v >> 7 & 3};

    rr_wire_put_header(bytes, RR_WIRE_BACK_BYTES, RR_WIRE_BACK, 0, 0);
    rr_wire_put_back(bytes + RR_WIRE_HEADER, &row);
    raw(f, 0, bytes, sizeof(bytes));
}

static void we_send(struct fuzz *f, uint32_t v)
{
    const struct rr_net_target t[2] = {{"b.out", "a.in", 7, 1, (v & 1) != 0},
                                       {"b.out", "d.in", 7, 1, true}};
    struct rr_net_packet p = {.window = RR_WINDOW_BASE,
                              .slot_bytes = RR_SLOT_SMALL,
                              .len = v & 2 ? LARGE : 100,
                              .data = base.large,
                              .targets = t,
                              .n_targets = 1 + (v >> 2 & 1)};

    if (f->peer && rr_net_send(f->peer, &p, f, NULL) == 0)
        f->n_sent += p.len > 100 || p.n_targets > 1 || t[0].acked;
}

static void step(struct fuzz *f, uint32_t what, uint32_t v)
{
    f->v = v;
    switch (what % 8) {
    case 0:
        send_message(f, v);
        break;
    case 1:
        send_frame(f, v);
        break;
    case 2:
        send_back(f, v);
        break;
    case 3:
        we_send(f, v);
        break;
    case 4:
        if (f->peer)
            rr_net_ack(f->peer, f->seqs[v & 7], v >> 3 & 1);
        break;
    case 5:
        if (f->peer)
            rr_net_release(f->peer, f->seqs[v & 7]);
        break;
    case 6:
        if (f->peer && v & 1)
            rr_net_cancel(f->peer, f);
        else
            drain(f);
        break;
    default:
        pump(f, v & 1);
        break;
    }
}

static void session(const uint8_t *data, size_t len)
{
    struct fuzz f = {.data = data, .end = data + len, .fds = {-1, -1}};
    const struct rr_net_options o = {
        .events = {.place = place, .message = message, .up = up, .down = down, .done = done},
        .user = &f,
        .plain = true,
        .window_messages = 8};
    struct rr_arena_stats stats;

    check(rr_net_new(&o, &f.net, NULL) == 0);
    open_session(&f);
    for (int n = 0; n < MAX_STEPS && f.data < f.end; n++) {
        uint8_t bytes[5];

        take(&f, bytes, sizeof(bytes));
        step(&f, bytes[0],
             (uint32_t)bytes[1] | (uint32_t)bytes[2] << 8 | (uint32_t)bytes[3] << 16 |
                 (uint32_t)bytes[4] << 24);
        pump(&f, n % 3 != 0);
    }
    pump(&f, true);
    rr_net_free(f.net);
    close(f.fds[0]);
    close(f.fds[1]);
    check(f.n_done >= f.n_sent);
    rr_arena_stats(base.arena, &stats);
    check(stats.live_regions == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (!base.arena)
        set_up();
    if (len < 1)
        return 0;
    if (data[0] % 4 == 0)
        hello(data + 1, len - 1);
    else if (data[0] % 4 == 1)
        message_frame(data + 1, len - 1);
    else
        session(data + 1, len - 1);
    return 0;
}
