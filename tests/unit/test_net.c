/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "channel/net.h"

#define SLOT RR_SLOT_SMALL
#define WINDOW RR_WINDOW_BASE
#define MAX_SEEN 64

/* What happened at one end. */
struct end {
    struct rr_net *net;
    struct rr_arena *arena;
    struct rr_net_peer *peer; /* dialed, or the last that came up */
    unsigned int n_up, n_down, n_gone, n_messages, n_control, n_done, n_acked, n_lost, n_refused,
        n_ready, n_cancelled, n_placed;
    struct {
        uint64_t run, seq, len, sum;
        uint32_t n_targets;
        int32_t status;
        char from[64], to[64];
        uint8_t meta[64];
        uint32_t meta_len;
    } seen[MAX_SEEN];
    uint32_t words[MAX_SEEN];
    char last_control[64];
    struct rr_error why;
    bool refuse_place, refuse_peer, hold, ack_at_once, keep;
    struct rr_region *kept;
    void *cookie;
};

static unsigned int fds_before;

static int before(void **state)
{
    (void)state;
    fds_before = count_fds();
    return 0;
}

static int after(void **state)
{
    unsigned int n = count_fds();

    (void)state;
    for (int i = 0; n > fds_before && i < 500; i++) { /* a look-up may go on behind our back */
        poll(NULL, 0, 10);
        n = count_fds();
    }
    if (n != fds_before)
        print_error("%u descriptors before, %u after\n", fds_before, n);
    return n != fds_before;
}

static uint64_t sum_of(const uint8_t *p, uint64_t len)
{
    uint64_t sum = len;

    for (uint64_t n = 0; n < len; n++)
        sum = sum * 31 + p[n];
    return sum;
}

static int place(void *user, struct rr_net_peer *peer, const struct rr_net_packet *head,
                 struct rr_region **ret, struct rr_error *err)
{
    struct end *e = user;

    (void)peer;
    e->n_placed++;
    if (e->refuse_place)
        return rr_error_set(err, RR_E_LIMIT, NULL, "there is no room");
    return rr_region_get(e->arena, RR_MEMFD, head->slot_bytes, head->len, 0, ret, err);
}

static void message(void *user, struct rr_net_peer *peer, struct rr_net_packet *p)
{
    struct end *e = user;
    const uint8_t *data = p->data ? p->data : rr_region_data(p->region) + p->offset;
    unsigned int n = e->n_messages++ % MAX_SEEN;

    e->seen[n].run = p->run;
    e->seen[n].seq = p->seq;
    e->seen[n].len = p->len;
    e->seen[n].sum = sum_of(data, p->len);
    e->seen[n].n_targets = p->n_targets;
    e->seen[n].status = p->status;
    snprintf(e->seen[n].from, 64, "%s", p->targets[p->n_targets - 1].from);
    snprintf(e->seen[n].to, 64, "%s", p->targets[p->n_targets - 1].to);
    e->seen[n].meta_len = p->meta_len;
    if (p->meta_len && p->meta_len <= 64)
        memcpy(e->seen[n].meta, p->meta, p->meta_len);
    if (e->hold)
        rr_net_hold(peer, p->seq);
    for (uint32_t t = 0; e->ack_at_once && t < p->n_targets; t++)
        rr_net_ack(peer, p->seq, t);
    if (e->keep)
        e->kept = p->region;
    else
        rr_region_put(p->region);
}

static void control(void *user, struct rr_net_peer *peer, uint32_t word, const void *data,
                    size_t len)
{
    struct end *e = user;

    (void)peer;
    e->words[e->n_control++ % MAX_SEEN] = word;
    if (len < 64) {
        memcpy(e->last_control, data, len);
        e->last_control[len] = 0;
    }
}

static int admit(void *user, struct rr_net_peer *peer, struct rr_error *err)
{
    struct end *e = user;

    (void)peer;
    return e->refuse_peer ? rr_error_set(err, RR_E_INVALID, NULL, "you are nobody") : 0;
}

static void up(void *user, struct rr_net_peer *peer)
{
    struct end *e = user;

    e->peer = peer;
    e->n_up++;
}

static void down(void *user, struct rr_net_peer *peer, const struct rr_error *why, bool gone)
{
    struct end *e = user;

    e->n_down++;
    e->n_gone += gone;
    e->why = *why;
    if (gone && e->peer == peer)
        e->peer = NULL;
}

static void done(void *user, struct rr_net_peer *peer, void *cookie, uint32_t target, bool acked,
                 bool lost, const struct rr_error *refused)
{
    struct end *e = user;

    (void)peer;
    (void)target;
    e->cookie = cookie;
    e->n_done++;
    e->n_acked += acked;
    e->n_lost += lost;
    e->n_refused += refused != NULL;
    if (refused)
        e->why = *refused;
}

static void ready(void *user, struct rr_net_peer *peer)
{
    (void)peer;
    ((struct end *)user)->n_ready++;
}

static void cancelled(void *user, struct rr_net_peer *peer, uint64_t seq)
{
    (void)peer;
    (void)seq;
    ((struct end *)user)->n_cancelled++;
}

static struct rr_net_options options_of(struct end *e)
{
    return (struct rr_net_options){
        .events = {place, message, control, admit, up, down, done, ready, cancelled},
        .user = e,
        .plain = true,
        .backoff_ns = 5000000,
        .backoff_max_ns = 20000000};
}

static void new_end(struct end *e, const struct rr_net_options *o)
{
    const struct rr_arena_options arena = {.ceiling_bytes = RR_GIB};
    struct rr_net_options options;
    struct rr_error err = {0};

    *e = (struct end){0};
    assert_int_equal(rr_arena_new(&arena, &e->arena, NULL), 0);
    options = options_of(e);
    if (o) {
        options = *o;
        options.user = e;
    }
    if (rr_net_new(&options, &e->net, &err))
        fail_msg("%s", err.text);
}

static void free_end(struct end *e)
{
    struct rr_arena_stats stats;

    rr_net_free(e->net);
    rr_arena_stats(e->arena, &stats);
    assert_int_equal(stats.live_regions, 0);
    rr_arena_free(e->arena);
}

/* Both ends, until @what is @value; fails after 5 s. */
#define UNTIL(a, b, condition)                                                    \
    do {                                                                          \
        uint64_t end_ = rr_now_ns() + 10000000000u;                               \
        while (!(condition)) {                                                    \
            pump_both(a, b);                                                      \
            if (rr_now_ns() > end_)                                               \
                fail_msg("never: %s; last error: %s", #condition, (a)->why.text); \
        }                                                                         \
    } while (0)

static void pump_both(struct end *a, struct end *b)
{
    struct pollfd fds[2] = {{.fd = rr_net_fd(a->net), .events = POLLIN},
                            {.fd = b ? rr_net_fd(b->net) : -1, .events = POLLIN}};

    poll(fds, 2, 1);
    assert_true(rr_net_pump(a->net, true, NULL) >= 0);
    if (b)
        assert_true(rr_net_pump(b->net, true, NULL) >= 0);
}

static void spend(struct end *a, struct end *b, uint64_t ns)
{
    uint64_t end = rr_now_ns() + ns;

    while (rr_now_ns() < end)
        pump_both(a, b);
}

/* A listens, b dials. */
static void connect_ends(struct end *a, struct end *b, const char *listen_at)
{
    struct rr_error err = {0};
    char target[128];
    int port = rr_net_listen(a->net, listen_at, &err);

    if (port < 0)
        fail_msg("%s", err.text);
    if (port)
        snprintf(target, sizeof(target), "%.*s:%d", (int)(strrchr(listen_at, ':') - listen_at),
                 listen_at, port);
    else
        snprintf(target, sizeof(target), "%s", listen_at);
    assert_int_equal(rr_net_dial(b->net, target, &b->peer, NULL), 0);
    UNTIL(a, b, a->n_up == 1 && b->n_up == 1);
}

static void new_pair(struct end *a, struct end *b)
{
    new_end(a, NULL);
    new_end(b, NULL);
    connect_ends(a, b, "127.0.0.1:0");
}

static void free_pair(struct end *a, struct end *b)
{
    free_end(a);
    free_end(b);
}

static struct rr_net_target one_target(bool acked)
{
    return (struct rr_net_target){
        .from = "a.out", .to = "b.in", .id = 7, .attempt = 1, .acked = acked};
}

static struct rr_net_packet packet(const struct rr_net_target *t, const void *data, uint64_t len)
{
    return (struct rr_net_packet){.run = 42,
                                  .kind = 3,
                                  .status = -5,
                                  .window = WINDOW,
                                  .slot_bytes = SLOT,
                                  .len = len,
                                  .data = data,
                                  .targets = t,
                                  .n_targets = 1};
}

static struct rr_region *new_region(struct end *e, enum rr_backing backing, uint64_t len)
{
    struct rr_region *region;
    uint8_t *data;

    assert_int_equal(rr_region_get(e->arena, backing, SLOT, SLOT, 0, &region, NULL), 0);
    data = rr_region_data(region);
    for (uint64_t n = 0; n < len; n++)
        data[n] = (uint8_t)(n * 7 + n / 4096);
    return region;
}

/* --- tests ----------------------------------------------------------------------------------- */

static void test_small(void **state)
{
    static const uint8_t meta[] = {1, 0, 0, 0, 2, 0, 0, 0, 'k', 'v', 'w'};
    struct rr_net_target t = one_target(false);
    struct end a, b;

    (void)state;
    new_pair(&a, &b);
    for (uint32_t len = 0; len <= RR_WIRE_INLINE; len = len * 5 + 1) {
        uint8_t *data = calloc(1, len + 1);
        struct rr_net_packet p = packet(&t, data, len);
        unsigned int before_n = a.n_messages;

        for (uint32_t n = 0; n < len; n++)
            data[n] = (uint8_t)(n + len);
        p.meta = meta;
        p.meta_len = sizeof(meta);
        assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), 0);
        UNTIL(&a, &b, a.n_messages == before_n + 1);
        assert_int_equal(a.seen[before_n].len, len);
        assert_true(a.seen[before_n].sum == sum_of(data, len));
        assert_int_equal(a.seen[before_n].run, 42);
        assert_int_equal(a.seen[before_n].status, -5);
        assert_string_equal(a.seen[before_n].to, "b.in");
        assert_int_equal(a.seen[before_n].meta_len, sizeof(meta));
        assert_memory_equal(a.seen[before_n].meta, meta, sizeof(meta));
        free(data);
    }
    assert_int_equal(b.n_done, 0);
    assert_int_equal(rr_net_n_waiting(b.net), 0);
    free_pair(&a, &b);
}

static void test_large(void **state)
{
    struct rr_net_target t = one_target(false);
    static const enum rr_backing backings[] = {RR_MEMFD, RR_ANON};
    static const uint64_t lens[] = {RR_WIRE_INLINE + 1, RR_WIRE_CHUNK, RR_WIRE_CHUNK + 1,
                                    10 * RR_MIB + 123};
    struct rr_net_stats stats;
    struct end a, b;
    unsigned int n = 0;

    (void)state;
    new_pair(&a, &b);
    for (size_t i = 0; i < RR_ARRAY_LEN(lens); i++)
        for (size_t k = 0; k < 2; k++, n++) {
            struct rr_region *region = new_region(&b, backings[k], lens[i] + 4096);
            struct rr_net_packet p = packet(&t, NULL, lens[i]);

            p.region = region;
            p.offset = 4096;
            assert_int_equal(rr_net_send(b.peer, &p, &t, NULL), 0);
            UNTIL(&a, &b, b.n_done == n + 1 && a.n_messages == n + 1);
            assert_ptr_equal(b.cookie, &t);
            assert_int_equal(a.seen[n].len, lens[i]);
            assert_true(a.seen[n].sum == sum_of(rr_region_data(region) + 4096, lens[i]));
            rr_region_put(region);
        }
    rr_net_stats(a.net, &stats);
    assert_int_equal(stats.copied_bytes, 0);
    assert_int_equal(b.n_acked + b.n_lost, 0);
    free_pair(&a, &b);
}

static void test_acks_and_targets(void **state)
{
    struct rr_net_target t[3] = {one_target(true), one_target(false), one_target(true)};
    struct rr_net_packet p = packet(t, "hello", 5);
    struct rr_region *region;
    struct end a, b;

    (void)state;
    new_pair(&a, &b);
    p.n_targets = 3;
    assert_int_equal(rr_net_send(b.peer, &p, t, NULL), 0);
    UNTIL(&a, &b, a.n_messages == 1);
    assert_int_equal(a.seen[0].n_targets, 3);
    spend(&a, &b, 20000000);
    assert_int_equal(b.n_done, 0);
    assert_int_equal(rr_net_n_waiting(b.net), 1);
    rr_net_ack(a.peer, a.seen[0].seq, 2);
    rr_net_ack(a.peer, a.seen[0].seq, 2); /* twice, a target without ack, one there is not */
    rr_net_ack(a.peer, a.seen[0].seq, 1);
    rr_net_ack(a.peer, a.seen[0].seq, 99);
    UNTIL(&a, &b, b.n_done == 1);
    rr_net_ack(a.peer, a.seen[0].seq, 0);
    UNTIL(&a, &b, b.n_done == 2);
    assert_int_equal(b.n_acked, 2);
    assert_int_equal(rr_net_n_waiting(b.net), 0);

    region = new_region(&b, RR_MEMFD, RR_MIB);
    p.data = NULL;
    p.region = region;
    p.len = RR_MIB;
    assert_int_equal(rr_net_send(b.peer, &p, t, NULL), 0);
    UNTIL(&a, &b, b.n_done == 3); /* the one without an ack */
    rr_net_ack(a.peer, a.seen[1].seq, 0);
    rr_net_ack(a.peer, a.seen[1].seq, 2);
    UNTIL(&a, &b, b.n_done == 5);
    assert_int_equal(b.n_acked, 4);
    rr_region_put(region);
    free_pair(&a, &b);
}

static void test_control(void **state)
{
    struct end a, b;
    char *much = calloc(1, RR_WIRE_MAX_CONTROL + 1);

    (void)state;
    new_pair(&a, &b);
    for (uint32_t n = 0; n < 20; n++)
        assert_int_equal(rr_net_control(n % 2 ? a.peer : b.peer, n, "abc", 3, NULL), 0);
    UNTIL(&a, &b, a.n_control == 10 && b.n_control == 10);
    for (uint32_t n = 0; n < 10; n++) {
        assert_int_equal(a.words[n], 2 * n);
        assert_int_equal(b.words[n], 2 * n + 1);
    }
    assert_string_equal(a.last_control, "abc");
    assert_int_equal(rr_net_control(b.peer, 1, much, RR_WIRE_MAX_CONTROL + 1, NULL), RR_E_LIMIT);
    /* many: it ends with -EAGAIN, and goes on when they are read */
    a.n_control = b.n_ready = 0;
    for (uint32_t n = 0;; n++)
        if (rr_net_control(b.peer, n, much, RR_WIRE_MAX_CONTROL, NULL)) {
            UNTIL(&a, &b, a.n_control == n && b.n_ready > 0);
            break;
        }
    assert_int_equal(rr_net_control(b.peer, 1, NULL, 0, NULL), 0);
    free(much);
    free_pair(&a, &b);
}

static void test_credit(void **state)
{
    struct rr_net_target t = one_target(true);
    struct rr_net_packet p = packet(&t, "x", 1);
    struct rr_net_options o;
    struct end a, b;
    unsigned int n = 0;
    int r;

    (void)state;
    new_end(&b, NULL);
    o = options_of(&a);
    o.window_messages = 8;
    new_end(&a, &o);
    connect_ends(&a, &b, "127.0.0.1:0");
    while ((r = rr_net_send(b.peer, &p, NULL, NULL)) == 0)
        n++;
    assert_int_equal(r, -EAGAIN);
    assert_int_equal(n, 8);
    UNTIL(&a, &b, a.n_messages == 8);
    assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), -EAGAIN);
    for (n = 0; n < 8; n++)
        rr_net_ack(a.peer, a.seen[n].seq, 0);
    UNTIL(&a, &b, b.n_ready >= 1 && b.n_done == 8);
    for (n = 0; n < 6; n++)
        assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), 0);
    /* without acks it is delivery that counts, unless held */
    t.acked = false;
    a.ack_at_once = true;
    for (n = 0; n < 1000; n++) {
        while ((r = rr_net_send(b.peer, &p, NULL, NULL)) == -EAGAIN)
            pump_both(&a, &b);
        assert_int_equal(r, 0);
    }
    UNTIL(&a, &b, a.n_messages == 1014);
    free_pair(&a, &b);
}

static void test_hold(void **state)
{
    struct rr_net_target t = one_target(false);
    struct rr_net_packet p = packet(&t, NULL, 20 * RR_MIB);
    struct rr_net_options o;
    struct end a, b;

    (void)state;
    new_end(&b, NULL);
    o = options_of(&a);
    o.window_bulk_bytes = 10 * RR_MIB; /* less than one message: one at a time */
    new_end(&a, &o);
    connect_ends(&a, &b, "127.0.0.1:0");
    p.region = new_region(&b, RR_MEMFD, 100);
    a.hold = true;
    assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), 0);
    assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), -EAGAIN);
    UNTIL(&a, &b, a.n_messages == 1 && b.n_done == 1);
    spend(&a, &b, 10000000);
    assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), -EAGAIN);
    rr_net_release(a.peer, a.seen[0].seq);
    UNTIL(&a, &b, rr_net_send(b.peer, &p, NULL, NULL) == 0);
    UNTIL(&a, &b, a.n_messages == 2);
    rr_region_put(p.region);
    free_pair(&a, &b);
}

static void test_refused(void **state)
{
    struct rr_net_target t[2] = {one_target(true), one_target(false)};
    struct rr_net_packet p = packet(t, NULL, 30 * RR_MIB);
    struct end a, b;

    (void)state;
    new_pair(&a, &b);
    p.n_targets = 2;
    p.region = new_region(&b, RR_MEMFD, 100);
    a.refuse_place = true;
    assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), 0);
    UNTIL(&a, &b, b.n_done == 2);
    assert_int_equal(b.n_refused, 2);
    assert_non_null(strstr(b.why.text, "there is no room"));
    a.refuse_place = false;
    for (int n = 0; n < 3; n++)
        assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), 0);
    UNTIL(&a, &b, a.n_messages == 3 && b.n_done == 5);
    assert_int_equal(b.n_down, 0);
    rr_region_put(p.region);
    free_pair(&a, &b);
}

static void test_cancel(void **state)
{
    struct rr_net_target t = one_target(true);
    struct rr_net_packet p = packet(&t, NULL, 60 * RR_MIB);
    int cookies[8];
    struct end a, b;

    (void)state;
    new_pair(&a, &b);
    p.region = new_region(&b, RR_MEMFD, 100);
    for (int n = 0; n < 4; n++)
        assert_int_equal(rr_net_send(b.peer, &p, &cookies[n], NULL), 0);
    rr_net_cancel(b.peer, &cookies[0]); /* begun */
    rr_net_cancel(b.peer, &cookies[3]); /* not begun */
    UNTIL(&a, &b, b.n_done == 2 && a.n_messages == 2);
    assert_int_equal(b.n_acked + b.n_lost, 0);
    rr_net_cancel(b.peer, &cookies[1]); /* delivered */
    UNTIL(&a, &b, b.n_done == 3 && a.n_cancelled == 1);
    rr_net_ack(a.peer, a.seen[0].seq, 0);
    rr_net_ack(a.peer, a.seen[1].seq, 0);
    UNTIL(&a, &b, b.n_done == 4);
    assert_int_equal(b.n_acked, 1);
    /* at any moment */
    for (int n = 0; n < 40; n++) {
        a.ack_at_once = n % 2;
        p.len = ((uint64_t)n % 5 + 1) * RR_MIB;
        assert_int_equal(rr_net_send(b.peer, &p, &cookies[4], NULL), 0);
        for (int i = 0; i < n % 7; i++)
            pump_both(&b, n % 3 ? &a : NULL);
        rr_net_cancel(b.peer, &cookies[4]);
        UNTIL(&a, &b, b.n_done == 5u + (unsigned int)n);
    }
    assert_int_equal(a.n_down + b.n_down, 0);
    rr_region_put(p.region);
    free_pair(&a, &b);
}

/* Small messages and words pass a large one. */
static void test_no_blocking(void **state)
{
    struct rr_net_target t = one_target(false);
    struct rr_net_packet large = packet(&t, NULL, 60 * RR_MIB), small = packet(&t, "x", 1);
    struct end a, b;

    (void)state;
    new_pair(&a, &b);
    large.region = new_region(&b, RR_MEMFD, 100);
    assert_int_equal(rr_net_send(b.peer, &large, NULL, NULL), 0);
    assert_int_equal(rr_net_send(b.peer, &small, NULL, NULL), 0);
    UNTIL(&a, &b, a.n_messages == 2);
    assert_int_equal(a.seen[0].len, 1);
    /* and a shorter large one need not wait for a longer */
    assert_int_equal(rr_net_send(b.peer, &large, NULL, NULL), 0);
    large.len = RR_MIB;
    assert_int_equal(rr_net_send(b.peer, &large, NULL, NULL), 0);
    UNTIL(&a, &b, a.n_messages == 4);
    assert_int_equal(a.seen[2].len, RR_MIB);
    UNTIL(&a, &b, b.n_done == 3);
    rr_region_put(large.region);
    free_pair(&a, &b);
}

/* While a guest runs: bytes move, but nothing is delivered. */
static void test_not_delivered(void **state)
{
    struct rr_net_target t = one_target(true);
    struct rr_net_packet small = packet(&t, "abc", 3), large = packet(&t, NULL, 3 * RR_MIB);
    struct end a, b;

    (void)state;
    new_pair(&a, &b);
    large.region = new_region(&b, RR_MEMFD, 3 * RR_MIB);
    assert_int_equal(rr_net_send(b.peer, &small, NULL, NULL), 0);
    assert_int_equal(rr_net_send(b.peer, &large, NULL, NULL), 0);
    assert_int_equal(rr_net_control(b.peer, 5, "w", 1, NULL), 0);
    for (int n = 0; n < 200; n++) {
        assert_true(rr_net_pump(a.net, false, NULL) == 0);
        assert_true(rr_net_pump(b.net, true, NULL) >= 0);
    }
    assert_int_equal(a.n_messages + a.n_control, 0);
    assert_int_equal(a.n_placed, 1);
    assert_int_equal(rr_net_next_ns(a.net), 0);
    assert_true(rr_net_pump(a.net, true, NULL) == 3);
    assert_int_equal(a.n_messages, 2);
    assert_int_equal(a.n_control, 1);
    assert_int_equal(a.seen[0].sum, sum_of((const uint8_t *)"abc", 3));
    assert_true(a.seen[1].sum == sum_of(rr_region_data(large.region), large.len));
    rr_region_put(large.region);
    free_pair(&a, &b);
}

static void test_families(void **state)
{
    static const char *const at[] = {"127.0.0.1:0", "[::1]:0", "localhost:0",
                                     "unix:/tmp/rr-test-net.sock"};
    struct rr_net_target t = one_target(false);
    struct rr_net_packet p = packet(&t, NULL, 2 * RR_MIB);

    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(at); n++) {
        struct end a, b;

        new_end(&a, NULL);
        new_end(&b, NULL);
        connect_ends(&a, &b, at[n]);
        p.region = new_region(&b, RR_MEMFD, 2 * RR_MIB);
        assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), 0);
        UNTIL(&a, &b, a.n_messages == 1 && b.n_done == 1);
        rr_region_put(p.region);
        free_pair(&a, &b);
    }
}

/* The listener goes and comes back: what was not acked is lost, and the peer is dialed again. */
static void test_restart(void **state)
{
    struct rr_net_target t = one_target(true);
    struct rr_net_packet p = packet(&t, "x", 1);
    struct end a, b;
    char at[32];
    int port;

    (void)state;
    new_end(&a, NULL);
    new_end(&b, NULL);
    port = rr_net_listen(a.net, "127.0.0.1:0", NULL);
    snprintf(at, sizeof(at), "127.0.0.1:%d", port);
    assert_int_equal(rr_net_dial(b.net, at, &b.peer, NULL), 0);
    assert_int_equal(rr_net_send(b.peer, &p, &t, NULL), -EAGAIN);
    UNTIL(&a, &b, a.n_up == 1 && b.n_up == 1 && b.n_ready <= 1);
    for (unsigned int n = 1; n <= 3; n++) {
        assert_int_equal(rr_net_send(b.peer, &p, &t, NULL), 0);
        UNTIL(&a, &b, a.n_messages == 1);
        free_end(&a);
        while (b.n_down < 2 * n)
            pump_both(&b, NULL);
        assert_int_equal(b.n_lost, n);
        assert_int_equal(rr_net_peer_up(b.peer), 0);
        new_end(&a, NULL);
        assert_true(rr_net_listen(a.net, at, NULL) == port);
        UNTIL(&a, &b, a.n_up == 1 && b.n_up == n + 1);
        b.n_down = 2 * n;
    }
    free_pair(&a, &b);
}

static void test_refused_peer(void **state)
{
    struct end a, b;

    (void)state;
    new_end(&a, NULL);
    new_end(&b, NULL);
    a.refuse_peer = true;
    rr_log_set_level(0);
    {
        char at[32];

        snprintf(at, sizeof(at), "127.0.0.1:%d", rr_net_listen(a.net, "127.0.0.1:0", NULL));
        assert_int_equal(rr_net_dial(b.net, at, &b.peer, NULL), 0);
    }
    UNTIL(&b, &a, b.n_down >= 2);
    assert_non_null(strstr(b.why.text, "you are nobody"));
    assert_int_equal(a.n_up + a.n_down + b.n_up, 0);
    a.refuse_peer = false;
    UNTIL(&b, &a, b.n_up == 1);
    rr_log_set_level(1);
    free_pair(&a, &b);
}

static void test_free_peer(void **state)
{
    struct rr_net_target t = one_target(true);
    struct rr_net_packet p = packet(&t, "x", 1);
    struct end a, b;

    (void)state;
    new_pair(&a, &b);
    assert_int_equal(rr_net_send(b.peer, &p, &t, NULL), 0);
    UNTIL(&a, &b, a.n_messages == 1);
    rr_net_peer_free(b.peer);
    UNTIL(&a, &b, b.n_lost == 1 && a.n_gone == 1);
    assert_non_null(strstr(a.why.text, "goodbye"));
    assert_int_equal(b.n_down, 0);
    free_pair(&a, &b);
}

/* --- at random ------------------------------------------------------------------------------- */

#define N_SENT 4000

/* A message of the test below: which of its targets are still to be done. */
struct sent {
    uint32_t open; /* by target, a bit */
    bool large;
};

static struct chaos {
    struct end ends[2];
    struct sent sent[N_SENT];
    struct rr_region *region;
    uint32_t n_sent, n_delivered, random;
    struct {
        unsigned int end;
        uint64_t seq;
    } seen[64];
} chaos;

static uint32_t chance(uint32_t n)
{
    chaos.random = chaos.random * 1664525 + 1013904223;
    return (chaos.random >> 8) % n;
}

static int chaos_place(void *user, struct rr_net_peer *peer, const struct rr_net_packet *head,
                       struct rr_region **ret, struct rr_error *err)
{
    struct end *e = user;

    (void)peer;
    if (chance(8) == 0)
        return rr_error_set(err, RR_E_LIMIT, NULL, "by chance");
    return rr_region_get(e->arena, chance(2) ? RR_MEMFD : RR_ANON, head->slot_bytes, head->len, 0,
                         ret, err);
}

static void chaos_message(void *user, struct rr_net_peer *peer, struct rr_net_packet *p)
{
    struct end *e = user;
    const uint8_t *data = p->data ? p->data : rr_region_data(p->region) + p->offset;

    /* what came is what was sent, from wherever it began */
    for (uint64_t n = 0; n < p->len; n += 1 + p->len / 64)
        if (data[n] != (uint8_t)((n + p->offset) * 7 + (n + p->offset) / 4096))
            fail_msg("byte %llu of %llu is wrong", (unsigned long long)n,
                     (unsigned long long)p->len);
    chaos.seen[chaos.n_delivered % 64].end = e != &chaos.ends[0];
    chaos.seen[chaos.n_delivered++ % 64].seq = p->seq;
    if (chance(3) == 0)
        rr_net_hold(peer, p->seq);
    for (uint32_t t = 0; t < p->n_targets; t++)
        if (chance(2))
            rr_net_ack(peer, p->seq, t);
    rr_region_put(p->region);
    if (chance(300) == 0)
        rr_net_peer_reset(peer, &(struct rr_error){.text = "by chance"});
}

static void chaos_done(void *user, struct rr_net_peer *peer, void *cookie, uint32_t target,
                       bool acked, bool lost, const struct rr_error *refused)
{
    struct sent *m = cookie;

    (void)user;
    (void)peer;
    assert_true(m >= chaos.sent && m < chaos.sent + N_SENT);
    assert_true(acked + lost + (refused != NULL) <= 1);
    if (!(m->open & 1u << target))
        fail_msg("target %u of message %ld is done twice, or had no need", target,
                 (long)(m - chaos.sent));
    m->open &= ~(1u << target);
}

static void chaos_send(struct end *e)
{
    struct rr_net_target t[5];
    struct rr_net_packet p = packet(t, NULL, chance(3) ? chance(5000) : chance(3000000));
    struct sent *m = &chaos.sent[chaos.n_sent];
    int r;

    if (chaos.n_sent == N_SENT || !e->peer)
        return;
    p.n_targets = 1 + chance(5);
    p.region = chaos.region;
    p.offset = chance(2) ? chance(100000) : 0;
    *m = (struct sent){.large = p.len > RR_WIRE_INLINE};
    for (uint32_t n = 0; n < p.n_targets; n++) {
        t[n] = one_target(chance(2));
        if (m->large || t[n].acked)
            m->open |= 1u << n;
    }
    r = rr_net_send(e->peer, &p, m, NULL);
    assert_true(r == 0 || r == -EAGAIN);
    if (r == 0)
        chaos.n_sent++;
}

static void chaos_step(void)
{
    unsigned int which = chance(2), seen = chance(64);
    struct end *e = &chaos.ends[which];

    switch (chance(6)) {
    case 0:
        chaos_send(e);
        break;
    case 1:
        e = &chaos.ends[chaos.seen[seen].end];
        if (e->peer) {
            for (uint32_t n = 0; n < 5; n++)
                rr_net_ack(e->peer, chaos.seen[seen].seq, n);
            rr_net_release(e->peer, chaos.seen[seen].seq);
        }
        break;
    case 2:
        if (e->peer && chaos.n_sent && chance(4) == 0)
            rr_net_cancel(
                e->peer,
                &chaos.sent[chaos.n_sent - 1 - chance(chaos.n_sent < 8 ? chaos.n_sent : 8)]);
        break;
    case 3:
        if (e->peer)
            rr_net_control(e->peer, 1, "abc", 3, NULL);
        break;
    default:
        assert_true(rr_net_pump(e->net, chance(4) > 0, NULL) >= 0);
        break;
    }
}

/* Sends, acks, cancels and lost sessions in any order: each target is done exactly once. */
static void test_chaos(void **state)
{
    char at[32];

    (void)state;
    rr_log_set_level(0);
    for (uint32_t seed = 1; seed <= 4; seed++) {
        chaos = (struct chaos){.random = seed};
        for (int n = 0; n < 2; n++) {
            struct end *e = &chaos.ends[n];
            struct rr_net_options o = options_of(e);

            o.events.place = chaos_place;
            o.events.message = chaos_message;
            o.events.done = chaos_done;
            o.n_bulk = 2;
            o.window_messages = 32;
            new_end(e, &o);
        }
        chaos.region = new_region(&chaos.ends[0], RR_MEMFD, 4000000);
        snprintf(at, sizeof(at), "127.0.0.1:%d",
                 rr_net_listen(chaos.ends[0].net, "127.0.0.1:0", NULL));
        assert_int_equal(rr_net_dial(chaos.ends[1].net, at, &chaos.ends[1].peer, NULL), 0);
        for (int n = 0; n < 10000; n++) {
            chaos_step();
            if (!chaos.ends[0].peer || !rr_net_peer_up(chaos.ends[1].peer))
                pump_both(&chaos.ends[0], &chaos.ends[1]);
        }
        assert_true(chaos.n_sent > 300 && chaos.n_delivered > 200);
        rr_net_free(rr_take(chaos.ends[1].net));
        rr_net_free(rr_take(chaos.ends[0].net));
        for (uint32_t n = 0; n < chaos.n_sent; n++)
            assert_int_equal(chaos.sent[n].open, 0);
        rr_region_put(chaos.region);
        free_end(&chaos.ends[0]);
        free_end(&chaos.ends[1]);
    }
    rr_log_set_level(1);
}

/* --- TLS ------------------------------------------------------------------------------------- */

struct authority {
    EVP_PKEY *key;
    X509 *cert;
};

static void add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509_EXTENSION *e;

    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    assert_non_null(e);
    X509_add_ext(cert, e, -1);
    X509_EXTENSION_free(e);
}

/* A certificate for @name, of @ca or, where that is NULL, of itself. */
static struct authority issue(const struct authority *ca, const char *name,
                              const char *alternatives)
{
    static long serial = 1;
    struct authority a = {EVP_EC_gen("P-256"), X509_new()};
    X509_NAME *subject = X509_get_subject_name(a.cert);

    X509_set_version(a.cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(a.cert), serial++);
    X509_gmtime_adj(X509_getm_notBefore(a.cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(a.cert), 3600);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(a.cert, ca ? X509_get_subject_name(ca->cert) : subject);
    X509_set_pubkey(a.cert, a.key);
    if (!ca)
        add_extension(a.cert, a.cert, NID_basic_constraints, "critical,CA:TRUE");
    if (alternatives)
        add_extension(a.cert, ca->cert, NID_subject_alt_name, alternatives);
    assert_true(X509_sign(a.cert, ca ? ca->key : a.key, EVP_sha256()) > 0);
    return a;
}

static void free_authority(struct authority *a)
{
    EVP_PKEY_free(a->key);
    X509_free(a->cert);
}

static void write_pem(const char *dir, const char *name, const struct authority *a)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s.pem", dir, name);
    f = fopen(path, "w");
    assert_non_null(f);
    PEM_write_X509(f, a->cert);
    fclose(f);
    snprintf(path, sizeof(path), "%s/%s.key", dir, name);
    f = fopen(path, "w");
    assert_non_null(f);
    PEM_write_PrivateKey(f, a->key, NULL, NULL, 0, NULL, NULL);
    fclose(f);
}

/* A folder with two CAs, nodes a and b of the first, and a stranger of the second. */
struct pki {
    char dir[32];
    char cert[2][64], key[2][64], ca[64];
};

static void new_pki(struct pki *p)
{
    struct authority ca = issue(NULL, "ca", NULL), other = issue(NULL, "other ca", NULL);
    struct authority a = issue(&ca, "node-a", "URI:spiffe://rr/a,DNS:node-a,IP:127.0.0.1"),
                     b = issue(&ca, "node-b", "DNS:node-b"),
                     stranger = issue(&other, "node-b", "DNS:node-b");

    snprintf(p->dir, sizeof(p->dir), "/tmp/rr-net-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    write_pem(p->dir, "ca", &ca);
    write_pem(p->dir, "a", &a);
    write_pem(p->dir, "b", &b);
    write_pem(p->dir, "stranger", &stranger);
    free_authority(&ca);
    free_authority(&other);
    free_authority(&a);
    free_authority(&b);
    free_authority(&stranger);
}

static void free_pki(const struct pki *p)
{
    static const char *const names[] = {"ca", "a", "b", "stranger"};
    char path[128];

    for (size_t n = 0; n < RR_ARRAY_LEN(names); n++) {
        snprintf(path, sizeof(path), "%s/%s.pem", p->dir, names[n]);
        unlink(path);
        snprintf(path, sizeof(path), "%s/%s.key", p->dir, names[n]);
        unlink(path);
    }
    assert_int_equal(rmdir(p->dir), 0);
}

static void new_tls_end(struct end *e, struct pki *p, const char *name, bool any_host)
{
    static char cert[128], key[128], ca[128];
    struct rr_net_options o = options_of(e);

    snprintf(cert, sizeof(cert), "%s/%s.pem", p->dir, name);
    snprintf(key, sizeof(key), "%s/%s.key", p->dir, name);
    snprintf(ca, sizeof(ca), "%s/ca.pem", p->dir);
    o.plain = false;
    o.any_host = any_host;
    o.tls = (struct rr_net_tls){cert, key, ca};
    new_end(e, &o);
}

static void test_tls(void **state)
{
    struct rr_net_target t = one_target(true);
    struct rr_net_packet p = packet(&t, NULL, 20 * RR_MIB + 77), small = packet(&t, "abc", 3);
    struct rr_net_stats stats;
    struct end a, b;
    struct pki pki;

    (void)state;
    new_pki(&pki);
    new_tls_end(&a, &pki, "a", false);
    new_tls_end(&b, &pki, "b", false);
    connect_ends(&a, &b, "127.0.0.1:0");
    assert_string_equal(rr_net_peer_identity(b.peer), "spiffe://rr/a");
    assert_string_equal(rr_net_peer_identity(a.peer), "node-b");
    assert_true(rr_net_peer_is(b.peer, "node-a"));
    assert_false(rr_net_peer_is(b.peer, "node-b"));
    a.ack_at_once = b.ack_at_once = true;
    p.region = new_region(&b, RR_MEMFD, p.len);
    for (int n = 0; n < 3; n++) {
        assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), 0);
        assert_int_equal(rr_net_send(b.peer, &small, NULL, NULL), 0);
        assert_int_equal(rr_net_send(a.peer, &small, NULL, NULL), 0);
    }
    UNTIL(&a, &b, a.n_messages == 6 && b.n_done == 6 && a.n_done == 3);
    for (unsigned int n = 0; n < 6; n++)
        if (a.seen[n].len > 3)
            assert_true(a.seen[n].sum == sum_of(rr_region_data(p.region), p.len));
    rr_net_stats(b.net, &stats);
    assert_true(stats.out_bytes > 3 * p.len);
    rr_region_put(p.region);
    free_pair(&a, &b);
    free_pki(&pki);
}

/* Wrong certificate, wrong host, no certificate at all, files that are not there, and a reload. */
static void test_tls_refused(void **state)
{
    struct rr_error err = {0};
    struct end a, b, s, plain;
    char at[32], from[128], to[128];
    struct pki pki;

    (void)state;
    rr_log_set_level(0);
    new_pki(&pki);
    new_tls_end(&a, &pki, "a", false);
    snprintf(at, sizeof(at), "127.0.0.1:%d", rr_net_listen(a.net, "127.0.0.1:0", NULL));
    new_tls_end(&s, &pki, "stranger", false);
    assert_int_equal(rr_net_dial(s.net, at, &s.peer, NULL), 0);
    UNTIL(&s, &a, s.n_down >= 2);
    new_end(&plain, NULL);
    assert_int_equal(rr_net_dial(plain.net, at, &plain.peer, NULL), 0);
    UNTIL(&plain, &a, plain.n_down >= 2);
    assert_int_equal(a.n_up + s.n_up + plain.n_up, 0);
    free_end(&plain);

    /* b's certificate does not name the host */
    new_tls_end(&b, &pki, "b", false);
    snprintf(at, sizeof(at), "127.0.0.1:%d", rr_net_listen(b.net, "127.0.0.1:0", NULL));
    assert_int_equal(rr_net_dial(a.net, at, &a.peer, NULL), 0);
    UNTIL(&a, &b, a.n_down >= 1);
    assert_non_null(strstr(a.why.text, "IP address mismatch"));
    rr_net_peer_free(a.peer);

    /* a reload that fails changes nothing; one that works is used for new connections */
    snprintf(from, sizeof(from), "%s/stranger.pem", pki.dir);
    assert_int_equal(unlink(from), 0);
    assert_int_equal(rr_net_reload_tls(s.net, &err), RR_E_NOINPUT);
    assert_non_null(strstr(err.text, "stranger.pem"));
    snprintf(to, sizeof(to), "%s/b.pem", pki.dir);
    assert_int_equal(link(to, from), 0);
    assert_int_equal(rr_net_reload_tls(s.net, &err), RR_E_INVALID); /* another's key */
    snprintf(from, sizeof(from), "%s/stranger.key", pki.dir);
    snprintf(to, sizeof(to), "%s/b.key", pki.dir);
    assert_int_equal(unlink(from), 0);
    assert_int_equal(link(to, from), 0);
    if (rr_net_reload_tls(s.net, &err))
        fail_msg("%s", err.text);
    UNTIL(&s, &a, s.n_up == 1 && a.n_up == 1);
    rr_log_set_level(1);
    free_end(&a);
    free_end(&b);
    free_end(&s);
    free_pki(&pki);
}

/* --- hostile and broken peers ---------------------------------------------------------------- */

static int raw_connect(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    return fd;
}

/* Has the other end hung up? What it says first is read. */
static bool is_closed(int fd)
{
    char bytes[2048];
    ssize_t n;

    while ((n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
        ;
    return n == 0 || errno != EAGAIN;
}

static size_t good_hello(uint8_t *to, size_t size, uint8_t session, uint32_t role)
{
    struct rr_wire_hello h = {.version = RR_WIRE_VERSION,
                              .session = {session},
                              .role = role,
                              .n_bulk = 1,
                              .credit = {16, RR_MIB, RR_MIB, RR_MIB}};

    return rr_wire_put_hello(to, size, &h);
}

static void test_garbage(void **state)
{
    static const char *const texts[] = {"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                                        "\x16\x03\x01\x02\x00\x01",
                                        "\xff\xff\xff\xff\x01\0\0\0\0\0\0\0\0\0\0\0"};
    static const size_t lens[] = {27, 16, 16};
    struct rr_net_target t = one_target(false);
    struct rr_net_packet p = packet(&t, "x", 1);
    uint8_t hello[512];
    struct end a, b;
    int port, fd;
    size_t n;

    (void)state;
    rr_log_set_level(0);
    new_pair(&a, &b);
    port = rr_net_listen(a.net, "127.0.0.1:0", NULL);
    for (size_t i = 0; i < RR_ARRAY_LEN(texts); i++) {
        uint8_t bytes[32] = {0};

        memcpy(bytes, texts[i], i == 1 ? 6 : lens[i] < 27 ? lens[i] : 27);
        fd = raw_connect(port);
        assert_int_equal(send(fd, bytes, lens[i], 0), (ssize_t)lens[i]);
        UNTIL(&a, &b, is_closed(fd));
        close(fd);
    }
    /* another version, an extra connection of no session, a hello of which a byte is wrong */
    for (unsigned int i = 0; i < 4; i++) {
        n = good_hello(hello, sizeof(hello), 1, i == 1 ? RR_WIRE_EXTRA : RR_WIRE_MAIN);
        hello[RR_WIRE_HEADER + 8] = (uint8_t)(hello[RR_WIRE_HEADER + 8] + (i == 0));
        hello[RR_WIRE_HEADER] ^= i == 2;
        hello[RR_WIRE_HEADER + 32] = i == 3 ? 8 : hello[RR_WIRE_HEADER + 32];
        fd = raw_connect(port);
        assert_int_equal(send(fd, hello, n, 0), (ssize_t)n);
        UNTIL(&a, &b, is_closed(fd));
        close(fd);
    }
    assert_int_equal(a.n_up, 1);
    assert_int_equal(a.n_down + b.n_down, 0);
    assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), 0);
    UNTIL(&a, &b, a.n_messages == 1);
    rr_log_set_level(1);
    free_pair(&a, &b);
}

/* Hundreds that connect and say nothing: few are kept, and not for long. */
static void test_many_idle(void **state)
{
    struct rr_net_target t = one_target(false);
    struct rr_net_packet p = packet(&t, "x", 1);
    struct rr_net_options o;
    struct rr_net_stats stats;
    int fds[600], port;
    struct end a, b;

    (void)state;
    rr_log_set_level(0);
    new_end(&b, NULL);
    o = options_of(&a);
    o.max_pending = 50;
    o.handshake_ns = 300000000;
    new_end(&a, &o);
    connect_ends(&a, &b, "127.0.0.1:0");
    port = rr_net_listen(a.net, "127.0.0.1:0", NULL);
    for (size_t n = 0; n < RR_ARRAY_LEN(fds); n++) {
        fds[n] = raw_connect(port);
        pump_both(&a, &b);
        rr_net_stats(a.net, &stats);
        assert_true(stats.connections <= 52);
    }
    assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), 0);
    UNTIL(&a, &b, a.n_messages == 1);
    UNTIL(&a, &b, (rr_net_stats(a.net, &stats), stats.connections == 2)); /* they did not greet */
    for (size_t n = 0; n < RR_ARRAY_LEN(fds); n++)
        close(fds[n]);
    rr_log_set_level(1);
    free_pair(&a, &b);
}

/* A peer that greets and then is silent: half-open, as after a lost cable. */
static void test_silent(void **state)
{
    uint8_t hello[512];
    struct rr_net_options o;
    struct end a;
    size_t n;
    int fd, extra, port;

    (void)state;
    rr_log_set_level(0);
    o = options_of(&a);
    o.ping_ns = 50000000;
    o.patience_ns = 200000000;
    new_end(&a, &o);
    port = rr_net_listen(a.net, "127.0.0.1:0", NULL);
    fd = raw_connect(port);
    n = good_hello(hello, sizeof(hello), 9, RR_WIRE_MAIN);
    assert_int_equal(send(fd, hello, n, 0), (ssize_t)n);
    spend(&a, &(struct end){.net = a.net}, 50000000);
    extra = raw_connect(port);
    n = good_hello(hello, sizeof(hello), 9, RR_WIRE_EXTRA);
    assert_int_equal(send(extra, hello, n, 0), (ssize_t)n);
    UNTIL(&a, &(struct end){.net = a.net}, a.n_up == 1);
    UNTIL(&a, &(struct end){.net = a.net}, a.n_down == 1);
    assert_non_null(strstr(a.why.text, "has not answered"));
    close(fd);
    close(extra);
    rr_log_set_level(1);
    free_end(&a);
}

/* Sleeping: until something comes, a watched descriptor is ready, or time is up. */
static void test_sleep(void **state)
{
    struct rr_net_target t = one_target(false);
    struct rr_net_packet p = packet(&t, "x", 1);
    struct end a, b;
    int pipes[2];
    uint64_t began;

    (void)state;
    new_pair(&a, &b);
    spend(&a, &b, 10000000);
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(rr_net_watch(a.net, pipes[0], true), 0);
    began = rr_now_ns();
    rr_net_sleep(a.net, began + 20000000);
    assert_true(rr_now_ns() >= began + 20000000);
    assert_int_equal(write(pipes[1], "x", 1), 1);
    rr_net_sleep(a.net, began + 10000000000);
    assert_true(rr_net_pump(a.net, true, NULL) == 0);
    assert_int_equal(rr_net_watch(a.net, pipes[0], false), 0);
    assert_int_equal(rr_net_send(b.peer, &p, NULL, NULL), 0);
    rr_net_sleep(a.net, began + 10000000000);
    assert_true(rr_net_pump(a.net, true, NULL) == 1);
    assert_true(rr_now_ns() < began + 5000000000);
    close(pipes[0]);
    close(pipes[1]);
    free_pair(&a, &b);
}

/* A name that has no address is asked for again and again, and does no harm. */
static void test_names(void **state)
{
    struct rr_error err = {0};
    static const char *const bad[] = {"",       "host",    "host:",      "host:x", ":80",
                                      "a:b:80", "[::1]80", "host:70000", "unix:",  "host:0"};
    struct rr_net_peer *peer;
    struct end a, b;

    (void)state;
    rr_log_set_level(0);
    new_end(&a, NULL);
    new_end(&b, NULL);
    for (size_t n = 0; n < RR_ARRAY_LEN(bad); n++)
        assert_int_equal(rr_net_dial(a.net, bad[n], &peer, &err), RR_E_USAGE);
    assert_int_equal(rr_net_dial(a.net, "no-such-name.invalid:80", &peer, &err), 0);
    UNTIL(&a, &b, a.n_down >= 2);
    assert_non_null(strstr(a.why.text, "no-such-name.invalid"));
    rr_log_set_level(1);
    free_pair(&a, &b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_small, before, after),
        cmocka_unit_test_setup_teardown(test_large, before, after),
        cmocka_unit_test_setup_teardown(test_acks_and_targets, before, after),
        cmocka_unit_test_setup_teardown(test_control, before, after),
        cmocka_unit_test_setup_teardown(test_credit, before, after),
        cmocka_unit_test_setup_teardown(test_hold, before, after),
        cmocka_unit_test_setup_teardown(test_refused, before, after),
        cmocka_unit_test_setup_teardown(test_cancel, before, after),
        cmocka_unit_test_setup_teardown(test_no_blocking, before, after),
        cmocka_unit_test_setup_teardown(test_not_delivered, before, after),
        cmocka_unit_test_setup_teardown(test_families, before, after),
        cmocka_unit_test_setup_teardown(test_restart, before, after),
        cmocka_unit_test_setup_teardown(test_refused_peer, before, after),
        cmocka_unit_test_setup_teardown(test_free_peer, before, after),
        cmocka_unit_test_setup_teardown(test_chaos, before, after),
        cmocka_unit_test_setup_teardown(test_tls, before, after),
        cmocka_unit_test_setup_teardown(test_tls_refused, before, after),
        cmocka_unit_test_setup_teardown(test_garbage, before, after),
        cmocka_unit_test_setup_teardown(test_many_idle, before, after),
        cmocka_unit_test_setup_teardown(test_silent, before, after),
        cmocka_unit_test_setup_teardown(test_sleep, before, after),
        cmocka_unit_test_setup_teardown(test_names, before, after),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
