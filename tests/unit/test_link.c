/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>

/* The source itself: what a hostile peer says cannot be said through the interface. */
#include "channel/link.c"

#define SLOT (64 * RR_MIB)
#define WINDOW (RR_GIB + SLOT)
#define QUEUE 8
#define HEAD_BYTES 128u /* of a record without metadata, see inline_at() */

struct outcome {
    unsigned int n;
    void *cookie; /* the last one's */
    bool acked, lost;
};

/* Two ends in one process, each with an arena of its own. */
struct pair {
    struct rr_link_domain from, to;
    struct rr_link *s, *r;
    struct outcome done;
    struct rr_error err;
    int listener;
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
    if (n != fds_before)
        print_error("%u descriptors before, %u after\n", fds_before, n);
    return n != fds_before;
}

static void done(void *user, void *cookie, bool acked, bool lost)
{
    struct outcome *o = user;

    *o = (struct outcome){o->n + 1, cookie, acked, lost};
}

static void new_domain(struct rr_link_domain *d, const char *dir)
{
    const struct rr_arena_options options = {.ceiling_bytes = RR_GIB};

    *d = (struct rr_link_domain){.name = "domain",
                                 .uids = {getuid(), getuid()},
                                 .queue_messages = QUEUE,
                                 .queue_bytes = 64 * RR_MIB};
    snprintf(d->dir, sizeof(d->dir), "%s", dir);
    assert_int_equal(rr_arena_new(&options, &d->arena, NULL), 0);
}

/* All but the links. */
static void new_domains(struct pair *x)
{
    char dir[] = "/tmp/rr-link-XXXXXX";

    *x = (struct pair){.listener = -1};
    assert_non_null(mkdtemp(dir));
    new_domain(&x->from, dir);
    new_domain(&x->to, dir);
    x->listener = rr_link_listen(&x->to, "f");
    assert_true(x->listener >= 0);
}

static int connect_to(struct pair *x)
{
    return rr_link_connect(&x->from, "g", "f", done, &x->done, &x->s, &x->err);
}

static int accept_from(struct pair *x)
{
    return rr_link_accept(&x->to, x->listener, &x->r, &x->err);
}

static void new_pair(struct pair *x)
{
    new_domains(x);
    assert_int_equal(connect_to(x), 0);
    assert_int_equal(accept_from(x), 0);
    assert_int_equal(rr_link_pump(x->r, &x->err), 0);
    assert_int_equal(rr_link_pump(x->s, &x->err), 0);
}

static void check_empty(struct rr_arena *arena)
{
    struct rr_arena_stats stats;

    rr_arena_stats(arena, &stats);
    assert_int_equal(stats.live_regions, 0);
    assert_int_equal(stats.live_bytes, 0);
}

static void free_pair(struct pair *x)
{
    char path[128];

    rr_link_free(x->s);
    rr_link_free(x->r);
    close(x->listener);
    snprintf(path, sizeof(path), "%s/f.sock", x->to.dir);
    unlink(path);
    assert_int_equal(rmdir(x->to.dir), 0);
    check_empty(x->from.arena);
    check_empty(x->to.arena);
    rr_arena_free(x->from.arena);
    rr_arena_free(x->to.arena);
}

/* A region of the sender's in which @text lies. */
static struct rr_region *new_region(struct rr_link_domain *d, const char *text)
{
    struct rr_region *region;

    assert_int_equal(rr_region_get(d->arena, RR_MEMFD, SLOT, strlen(text) + 1, 0, &region, NULL),
                     0);
    memcpy(rr_region_data(region), text, strlen(text) + 1);
    return region;
}

static struct rr_packet region_packet(struct rr_region *region, uint64_t len)
{
    return (struct rr_packet){
        .len = len, .window = WINDOW, .slot_bytes = SLOT, .attempt = 1, .region = region};
}

static struct rr_packet data_packet(const void *data, uint64_t len)
{
    return (struct rr_packet){
        .len = len, .window = WINDOW, .slot_bytes = SLOT, .attempt = 1, .data = data};
}

static struct rr_packet receive(struct pair *x)
{
    struct rr_packet got;

    assert_int_equal(rr_link_receive(x->r, &got, &x->err), 0);
    rr_link_received(x->r);
    return got;
}

static int receive_error(struct pair *x)
{
    struct rr_packet got;

    return rr_link_receive(x->r, &got, &x->err);
}

static void check_done(struct pair *x, unsigned int n, const void *cookie, bool acked, bool lost)
{
    assert_int_equal(x->done.n, n);
    assert_ptr_equal(x->done.cookie, cookie);
    assert_int_equal(x->done.acked, acked);
    assert_int_equal(x->done.lost, lost);
}

/* --- what works ------------------------------------------------------------------------------ */

static void test_inline(void **state)
{
    static const struct {
        uint32_t meta_len, len;
    } cases[] = {{0, 0}, {1, 0}, {0, 1}, {17, 100}, {RR_LINK_MAX_META, RR_LINK_INLINE}};
    static uint8_t meta[RR_LINK_MAX_META], data[RR_LINK_INLINE];
    struct pair x;

    (void)state;
    new_pair(&x);
    assert_string_equal(rr_link_peer(x.r), "g");
    assert_string_equal(rr_link_peer(x.s), "f");
    assert_int_equal(rr_link_peer_pid(x.r), getpid());
    assert_int_equal(rr_link_peer_pid(x.s), getpid());
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7 + (i >> 8));
    memcpy(meta, data + 1, sizeof(meta));
    for (size_t i = 0; i < 4 * RR_ARRAY_LEN(cases); i++) {
        uint32_t meta_len = cases[i / 4].meta_len, len = cases[i / 4].len;
        struct rr_packet p = {.run = ~i,
                              .id = i + (1ull << 40),
                              .edge = 77,
                              .attempt = 3,
                              .len = len,
                              .window = WINDOW,
                              .slot_bytes = SLOT,
                              .status = -5,
                              .fixed = i & 1,
                              .sent_ns = i + 1,
                              .send_cost_ns = i + 2,
                              .copied_bytes = i + 3,
                              .meta = meta,
                              .meta_len = meta_len,
                              .data = data};
        struct rr_packet got;

        assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
        assert_int_equal(rr_link_receive(x.r, &got, &x.err), 0);
        assert_int_equal(got.run, p.run);
        assert_int_equal(got.id, p.id);
        assert_int_equal(got.edge, p.edge);
        assert_int_equal(got.attempt, p.attempt);
        assert_int_equal(got.len, p.len);
        assert_int_equal(got.offset, 0);
        assert_int_equal(got.window, p.window);
        assert_int_equal(got.slot_bytes, p.slot_bytes);
        assert_int_equal(got.status, p.status);
        assert_int_equal(got.fixed, p.fixed);
        assert_int_equal(got.acked, false);
        assert_int_equal(got.shared, false);
        assert_int_equal(got.sent_ns, p.sent_ns);
        assert_int_equal(got.send_cost_ns, p.send_cost_ns);
        assert_int_equal(got.copied_bytes, p.copied_bytes);
        assert_int_equal(got.meta_len, meta_len);
        assert_memory_equal(got.meta, meta, meta_len);
        assert_memory_equal(got.data, data, len);
        assert_null(got.region);
        rr_link_received(x.r);
        assert_int_equal(receive_error(&x), -EAGAIN);
    }
    assert_int_equal(rr_link_n_waiting(x.s), 0);
    assert_int_equal(x.done.n, 0);
    free_pair(&x);
}

/* There, to a window, home and back. */
static void test_region(void **state)
{
    uint8_t *window = rr_reserve(SLOT, SLOT);
    struct rr_region *region;
    struct rr_packet p, got;
    struct pair x;

    (void)state;
    new_pair(&x);
    region = new_region(&x.from, "one hello");
    p = region_packet(region, 5);
    p.offset = 4;
    p.meta = (const uint8_t *)"m";
    p.meta_len = 1;
    assert_int_equal(rr_link_send(x.s, &p, &p, &x.err), 0);
    assert_int_equal(rr_link_n_waiting(x.s), 1);
    assert_int_equal(rr_link_n_unacked(x.s), 0);
    got = receive(&x);
    assert_int_equal(got.len, 5);
    assert_int_equal(got.offset, 4);
    assert_null(got.data);
    assert_memory_equal(got.meta, "m", 1);
    assert_true(rr_region_parked(got.region));
    assert_false(rr_region_shared(got.region));
    assert_memory_equal(rr_region_data(got.region), "one hello", 10);

    assert_int_equal(rr_region_move(got.region, window, 9, &x.err), 0);
    assert_memory_equal(window, "one hello", 10);
    memcpy(window, "two", 3);
    assert_memory_equal(rr_region_data(region), "two hello", 10);
    assert_int_equal(rr_link_pump(x.s, &x.err), 0);
    assert_int_equal(x.done.n, 0);
    assert_int_equal(rr_region_move(got.region, NULL, 9, &x.err), 0);
    assert_memory_equal(rr_region_data(got.region), "two hello", 10);
    assert_int_equal(window[0], 0);
    assert_int_equal(rr_region_move(got.region, window, 9, &x.err), 0);
    rr_region_put(got.region); /* from the window */
    assert_int_equal(window[0], 0);
    assert_int_equal(rr_link_poll(x.s, &x.err), 0);
    check_done(&x, 1, &p, false, false);
    assert_int_equal(rr_link_n_waiting(x.s), 0);
    rr_region_put(region);
    munmap(window, SLOT);
    free_pair(&x);
}

static void test_acked(void **state)
{
    struct rr_region *region;
    struct rr_packet p, got;
    struct pair x;

    (void)state;
    new_pair(&x);
    region = new_region(&x.from, "hello");
    for (int i = 0; i < 3; i++) { /* in line; a region acked first; one put first */
        p = i ? region_packet(region, 5) : data_packet("hello", 5);
        p.acked = true;
        assert_int_equal(rr_link_send(x.s, &p, &p, &x.err), 0);
        assert_int_equal(rr_link_n_waiting(x.s), 1);
        assert_int_equal(rr_link_n_unacked(x.s), 1);
        got = receive(&x);
        assert_true(got.acked);
        if (i == 1)
            rr_link_ack(x.r, got.seq);
        if (i)
            rr_region_put(got.region);
        else
            assert_memory_equal(got.data, "hello", 5);
        if (i != 1) {
            assert_int_equal(rr_link_pump(x.s, &x.err), 0);
            assert_int_equal(x.done.n, i);
            assert_int_equal(rr_link_n_unacked(x.s), 1);
            rr_link_ack(x.r, got.seq);
        }
        assert_int_equal(rr_link_pump(x.s, &x.err), 0);
        check_done(&x, (unsigned int)i + 1, &p, true, false);
        assert_int_equal(rr_link_n_waiting(x.s), 0);
        assert_int_equal(rr_link_n_unacked(x.s), 0);
    }
    /* acked, and held on to */
    assert_int_equal(rr_link_send(x.s, &p, &p, &x.err), 0);
    got = receive(&x);
    rr_link_ack(x.r, got.seq);
    assert_int_equal(rr_link_pump(x.s, &x.err), 0);
    assert_int_equal(x.done.n, 3);
    assert_int_equal(rr_link_n_waiting(x.s), 1);
    assert_int_equal(rr_link_n_unacked(x.s), 0);
    rr_region_put(got.region);
    assert_int_equal(rr_link_pump(x.s, &x.err), 0);
    check_done(&x, 4, &p, true, false);
    rr_region_put(region);
    free_pair(&x);
}

static ino_t inode(const struct rr_region *region)
{
    struct stat st;

    assert_int_equal(fstat(rr_region_fd(region), &st), 0);
    return st.st_ino;
}

/* What came over one link goes on over another: the same pages, and back the same way. */
static void test_forward(void **state)
{
    struct rr_packet p, got, last;
    struct rr_region *region;
    struct pair x, y;

    (void)state;
    new_pair(&x);
    new_pair(&y);
    region = new_region(&x.from, "hello");
    for (unsigned int i = 1; i <= 3; i++) {
        p = region_packet(region, 5);
        assert_int_equal(rr_link_send(x.s, &p, &p, &x.err), 0);
        got = receive(&x);
        assert_int_equal(rr_link_send(y.s, &got, &got, &y.err), 0);
        last = receive(&y);
        assert_int_equal(inode(last.region), inode(region));
        assert_memory_equal(rr_region_data(last.region), "hello", 5);
        rr_region_data(region)[0] = 'j';
        assert_memory_equal(rr_region_data(last.region), "jello", 5);
        rr_region_data(region)[0] = 'h';
        rr_region_put(last.region);
        assert_int_equal(rr_link_pump(y.s, &y.err), 0);
        check_done(&y, i, &got, false, false);
        assert_int_equal(rr_link_pump(x.s, &x.err), 0);
        assert_int_equal(x.done.n, i - 1);
        rr_region_put(got.region);
        assert_int_equal(rr_link_pump(x.s, &x.err), 0);
        check_done(&x, i, &p, false, false);
    }
    rr_region_put(region);
    free_pair(&y);
    free_pair(&x);
}

static void test_shared(void **state)
{
    struct rr_region *region, *view;
    struct rr_packet p, got;
    struct pair x;

    (void)state;
    new_pair(&x);
    region = new_region(&x.from, "hello");
    for (int i = 0; i < 4; i++) {
        p = region_packet(region, 5);
        p.shared = i % 2;
        assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
        got = receive(&x);
        assert_int_equal(got.shared, i % 2);
        assert_int_equal(rr_region_shared(got.region), i % 2);
        if (i % 2) {
            assert_int_equal(rr_region_view(got.region, NULL, 5, &view, &x.err), 0);
            memcpy(rr_region_data(view), "jelly", 5);
            assert_memory_equal(rr_region_data(region), "hello", 5);
            rr_region_put(view);
        }
        rr_region_put(got.region);
        assert_int_equal(rr_link_pump(x.s, &x.err), 0);
        assert_int_equal(x.done.n, i + 1);
    }
    rr_region_put(region);
    free_pair(&x);
}

/* A memfd crosses once. */
static void test_again(void **state)
{
    struct rr_region *region, *first = NULL;
    unsigned int fds = 0;
    struct pair x;

    (void)state;
    new_pair(&x);
    region = new_region(&x.from, "hello");
    for (unsigned int i = 0; i < 100; i++) {
        struct rr_packet p = region_packet(region, 5), got;

        assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
        got = receive(&x);
        first = i ? first : got.region;
        assert_ptr_equal(got.region, first);
        rr_region_put(got.region);
        assert_int_equal(rr_link_pump(x.s, &x.err), 0);
        fds = i ? fds : count_fds();
    }
    assert_int_equal(count_fds(), fds);
    assert_int_equal(x.done.n, 100);
    rr_region_put(region);
    free_pair(&x);
}

/* --- bounds ---------------------------------------------------------------------------------- */

static void test_full_by_messages(void **state)
{
    struct rr_packet p = data_packet("x", 1), got[QUEUE];
    struct pair x;

    (void)state;
    new_pair(&x);
    p.acked = true;
    for (unsigned int i = 0; i < QUEUE; i++)
        assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), -EAGAIN);
    for (unsigned int i = 0; i < QUEUE; i++)
        got[i] = receive(&x);
    assert_int_equal(rr_link_pump(x.s, &x.err), 0);
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), -EAGAIN); /* taken is not done with */
    rr_link_ack(x.r, got[0].seq);
    assert_int_equal(rr_link_pump(x.s, &x.err), 0);
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), -EAGAIN);
    for (unsigned int i = QUEUE - 1; i > 0; i--)
        rr_link_ack(x.r, got[i].seq);
    got[0] = receive(&x);
    rr_link_ack(x.r, got[0].seq);
    assert_int_equal(rr_link_pump(x.s, &x.err), 0);
    assert_int_equal(rr_link_n_waiting(x.s), 0);
    assert_int_equal(x.done.n, QUEUE + 1);
    free_pair(&x);
}

static void test_full_by_bytes(void **state)
{
    struct rr_region *regions[3];
    struct rr_packet p, got[2];
    struct pair x;

    (void)state;
    new_pair(&x);
    x.from.queue_bytes = 2 * RR_MIB;
    for (size_t i = 0; i < RR_ARRAY_LEN(regions); i++)
        regions[i] = new_region(&x.from, "hello");
    p = region_packet(regions[2], 3 * RR_MIB); /* more than the bound: alone */
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
    p = region_packet(regions[0], 1);
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), -EAGAIN);
    got[0] = receive(&x);
    rr_region_put(got[0].region);
    assert_int_equal(rr_link_pump(x.s, &x.err), 0);
    for (size_t i = 0; i < 2; i++) {
        p = region_packet(regions[i], RR_MIB);
        assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
        got[i] = receive(&x);
    }
    p = region_packet(regions[2], 1);
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), -EAGAIN);
    p = data_packet("x", 1); /* bounded by the ring alone */
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
    receive(&x);
    rr_region_put(got[1].region);
    p = region_packet(regions[2], RR_MIB);
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), -EAGAIN);
    assert_int_equal(rr_link_pump(x.s, &x.err), 0);
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
    rr_region_put(receive(&x).region);
    rr_region_put(got[0].region);
    assert_int_equal(rr_link_pump(x.s, &x.err), 0);
    assert_int_equal(x.done.n, 4);
    for (size_t i = 0; i < RR_ARRAY_LEN(regions); i++)
        rr_region_put(regions[i]);
    free_pair(&x);
}

/* Another process of the domain has much under way: one message per link passes, no more. */
static void test_full_by_domain(void **state)
{
    static const struct {
        uint64_t messages, bytes; /* of the other */
        int expected;
    } table[] = {{0, 0, 0}, {1, RR_MIB, 0}, {2, RR_MIB, -EAGAIN}, {1, 2 * RR_MIB, -EAGAIN}};
    struct rr_link_share shares[2] = {0};
    struct rr_packet first, second, got;
    struct rr_region *regions[2];
    struct pair x;

    (void)state;
    new_pair(&x);
    x.from.shares = shares;
    x.from.own = &shares[0];
    x.from.n_shares = 2;
    x.from.domain_messages = 3;
    x.from.domain_bytes = 3 * RR_MIB;
    for (size_t i = 0; i < 2; i++)
        regions[i] = new_region(&x.from, "hello");
    first = region_packet(regions[0], RR_MIB);
    second = region_packet(regions[1], RR_MIB);
    for (size_t i = 0; i < RR_ARRAY_LEN(table); i++) {
        atomic_store(&shares[1].messages, table[i].messages);
        atomic_store(&shares[1].bytes, table[i].bytes);
        assert_int_equal(rr_link_send(x.s, &first, NULL, &x.err), 0);
        assert_int_equal(rr_link_send(x.s, &second, NULL, &x.err), table[i].expected);
        got = receive(&x);
        rr_region_put(got.region);
        if (table[i].expected == 0) {
            assert_int_equal(atomic_load(&shares[0].messages), 2);
            assert_int_equal(atomic_load(&shares[0].bytes), 2 * RR_MIB);
            rr_region_put(receive(&x).region);
        }
        assert_int_equal(rr_link_pump(x.s, &x.err), 0);
        assert_int_equal(atomic_load(&shares[0].messages), 0);
        assert_int_equal(atomic_load(&shares[0].bytes), 0);
    }
    for (size_t i = 0; i < 2; i++)
        rr_region_put(regions[i]);
    free_pair(&x);
}

static bool readable(const struct rr_link *link)
{
    struct pollfd p = {.fd = rr_link_fd(link), .events = POLLIN};

    return poll(&p, 1, 0) == 1;
}

/* Who waits for room in the ring is woken when there is. */
static void test_full_ring(void **state)
{
    static const uint8_t data[RR_LINK_INLINE];
    struct rr_packet p = data_packet(data, sizeof(data));
    unsigned int n = 0;
    struct pair x;

    (void)state;
    new_pair(&x);
    while (rr_link_send(x.s, &p, NULL, &x.err) == 0)
        n++;
    assert_true(n >= 3 && n <= RR_RING_BYTES / RR_LINK_INLINE);
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), -EAGAIN);
    assert_false(readable(x.s));
    receive(&x);
    assert_true(readable(x.s));
    assert_int_equal(rr_link_pump(x.s, &x.err), 0);
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
    free_pair(&x);
}

/* --- deaths and waking ----------------------------------------------------------------------- */

static void test_receiver_dies(void **state)
{
    struct rr_region *region;
    struct rr_packet p, got;
    struct pair x;

    (void)state;
    for (int i = 0; i < 3; i++) { /* it took nothing, one, or has put it */
        new_pair(&x);
        region = new_region(&x.from, "hello");
        p = region_packet(region, 5);
        assert_int_equal(rr_link_send(x.s, &p, &p, &x.err), 0);
        if (i)
            got = receive(&x);
        if (i == 2)
            rr_region_put(got.region);
        rr_link_free(rr_take(x.r));
        if (i == 1)
            rr_region_put(got.region); /* outlives its link */
        assert_true(readable(x.s));
        assert_int_equal(rr_link_pump(x.s, &x.err), -EPIPE);
        assert_int_equal(x.done.n, i == 2);
        p = data_packet("x", 1);
        p.acked = true;
        assert_int_equal(rr_link_send(x.s, &p, &x, &x.err), 0); /* nobody will read it */
        rr_link_free(rr_take(x.s));
        check_done(&x, 2, &x, false, true);
        rr_region_put(region);
        free_pair(&x);
    }
}

/* Whatever it had read and said before, and however the receiver finds out. */
static void test_sender_dies(void **state)
{
    struct rr_region *region;
    struct rr_packet p, got;
    struct pair x;

    (void)state;
    for (int i = 0; i < 8; i++) {
        new_domains(&x);
        assert_int_equal(connect_to(&x), 0);
        assert_int_equal(accept_from(&x), 0);
        if (i & 1)
            assert_int_equal(rr_link_pump(x.r, &x.err), 0);
        if (i & 2) /* it has read the welcome: the socket reports an end, else a reset */
            assert_int_equal(rr_link_pump(x.s, &x.err), 0);
        region = new_region(&x.from, "hello");
        p = data_packet("first", 5);
        assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
        p = region_packet(region, 5);
        assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
        rr_link_free(rr_take(x.s));
        check_done(&x, 1, NULL, false, true);
        rr_region_forsake(region); /* as if this were another process: the pages stay */
        rr_region_put(region);
        if (i & 4 || !(i & 1))
            assert_int_equal(rr_link_pump(x.r, &x.err), -EPIPE);
        got = receive(&x);
        assert_memory_equal(got.data, "first", 5);
        got = receive(&x);
        assert_memory_equal(rr_region_data(got.region), "hello", 5);
        assert_int_equal(receive_error(&x), -EAGAIN);
        rr_region_put(got.region);
        assert_int_equal(rr_link_pump(x.r, &x.err), -EPIPE);
        free_pair(&x);
    }
}

static void test_sleep_and_wake(void **state)
{
    struct rr_packet p = data_packet("x", 1), got;
    struct pair x;

    (void)state;
    new_pair(&x);
    p.acked = true;
    assert_false(rr_link_pending(x.r));
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
    assert_false(readable(x.r)); /* nobody sleeps */
    assert_true(rr_link_pending(x.r));
    assert_false(rr_link_sleep(x.r, NULL));
    got = receive(&x);
    assert_false(rr_link_pending(x.r));
    assert_true(rr_link_sleep(x.r, NULL));
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
    assert_true(readable(x.r));
    rr_link_awake(x.r);
    assert_int_equal(rr_link_pump(x.r, &x.err), 0);
    assert_false(readable(x.r));
    receive(&x);
    assert_true(rr_link_sleep(x.r, NULL)); /* and back before anything came */
    rr_link_awake(x.r);
    assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
    assert_false(readable(x.r));

    assert_true(rr_link_sleep(x.s, NULL));
    rr_link_ack(x.r, got.seq);
    assert_true(readable(x.s));
    assert_true(rr_link_pending(x.s));
    assert_false(rr_link_sleep(x.s, NULL));
    rr_link_awake(x.s);
    assert_int_equal(rr_link_pump(x.s, &x.err), 0);
    assert_int_equal(x.done.n, 1);
    assert_false(rr_link_pending(x.s));
    free_pair(&x);
}

/* --- refused --------------------------------------------------------------------------------- */

static void test_nobody(void **state)
{
    struct pair x;

    (void)state;
    new_domains(&x);
    assert_int_equal(accept_from(&x), -EAGAIN);
    assert_int_equal(rr_link_connect(&x.from, "g", "h", done, NULL, &x.s, &x.err), -EAGAIN);
    assert_null(x.s);
    close(x.listener);
    assert_int_equal(connect_to(&x), -EAGAIN); /* its socket is left there */
    x.listener = rr_link_listen(&x.to, "f");
    assert_true(x.listener >= 0);
    assert_int_equal(connect_to(&x), 0);
    free_pair(&x);
}

static void test_other_domain(void **state)
{
    struct pair x;

    (void)state;
    new_domains(&x);
    snprintf(x.from.name, sizeof(x.from.name), "other");
    assert_int_equal(connect_to(&x), 0);
    assert_int_equal(accept_from(&x), 0);
    assert_int_equal(rr_link_pump(x.r, &x.err), RR_E_INVALID);
    assert_non_null(strstr(x.err.text, "trust domain"));
    assert_int_equal(rr_link_pump(x.r, &x.err), RR_E_INVALID); /* for good */
    assert_int_equal(rr_link_pump(x.s, &x.err), RR_E_INVALID);
    assert_non_null(strstr(x.err.text, "trust domain"));
    free_pair(&x);
}

static void test_other_user(void **state)
{
    struct pair x;

    (void)state;
    new_domains(&x);
    x.from.uids[0] = x.from.uids[1] = getuid() + 1;
    assert_int_equal(connect_to(&x), RR_E_INVALID);
    assert_null(x.s);
    assert_int_equal(accept_from(&x), 0);
    assert_int_equal(rr_link_pump(x.r, &x.err), -EPIPE);
    rr_link_free(rr_take(x.r));

    x.from.uids[1] = getuid(); /* the second will do */
    assert_int_equal(connect_to(&x), 0);
    x.to.uids[0] = x.to.uids[1] = getuid() + 1;
    assert_int_equal(accept_from(&x), RR_E_INVALID);
    assert_null(x.r);
    assert_int_equal(rr_link_pump(x.s, &x.err), -EPIPE);
    free_pair(&x);
}

/* A socket that is connected to the receiver of @x, which has accepted it. */
static int raw_peer(struct pair *x)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct sockaddr_un a;

    assert_int_equal(address(&x->to, "f", &a), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(accept_from(x), 0);
    return fd;
}

static void raw_send(int fd, const void *bytes, size_t len, const int *fds, size_t n_fds)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(4 * sizeof(int))];
    } control = {0};
    struct iovec iov = {(void *)(uintptr_t)bytes, len};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

    if (n_fds) {
        m.msg_control = control.space;
        m.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, n_fds * sizeof(int));
    }
    assert_int_equal(sendmsg(fd, &m, MSG_NOSIGNAL), len);
}

static struct note hello(void)
{
    return (struct note){.type = NOTE_HELLO,
                         .version = RR_LINK_VERSION,
                         .magic = MAGIC,
                         .hello = {"domain", "g", "f"}};
}

/* Greetings that are refused, each with as many descriptors as it says; none is kept. */
static void test_greetings(void **state)
{
    static const struct {
        uint32_t type, version;
        const char *domain, *from;
        size_t len, n_fds;
        bool rings;
    } cases[] = {
        {NOTE_HELLO, RR_LINK_VERSION + 1, "domain", "g", sizeof(struct note), 2, true},
        {NOTE_HELLO, 0, "domain", "g", sizeof(struct note), 2, true},
        {NOTE_HELLO, RR_LINK_VERSION, "other", "g", sizeof(struct note), 2, true},
        {NOTE_HELLO, RR_LINK_VERSION, "", "g", sizeof(struct note), 2, true},
        {NOTE_HELLO, RR_LINK_VERSION, "domain", "a/b", sizeof(struct note), 2, true},
        {NOTE_HELLO, RR_LINK_VERSION, "domain", "", sizeof(struct note), 2, true},
        {NOTE_HELLO, RR_LINK_VERSION, "domain", "g", sizeof(struct note), 2, false},
        {NOTE_HELLO, RR_LINK_VERSION, "domain", "g", sizeof(struct note), 1, true},
        {NOTE_HELLO, RR_LINK_VERSION, "domain", "g", sizeof(struct note), 0, true},
        {NOTE_HELLO, RR_LINK_VERSION, "domain", "g", sizeof(struct note), 3, true},
        {NOTE_HELLO, RR_LINK_VERSION, "domain", "g", sizeof(struct note) - 1, 2, true},
        {NOTE_HELLO, RR_LINK_VERSION, "domain", "g", 1, 2, true},
        {NOTE_HELLO, RR_LINK_VERSION, "domain", "g", 0, 2, true},
        {NOTE_WELCOME, RR_LINK_VERSION, "domain", "g", sizeof(struct note), 0, true},
        {NOTE_SLOT, RR_LINK_VERSION, "domain", "g", sizeof(struct note), 1, true},
        {NOTE_KICK, RR_LINK_VERSION, "domain", "g", sizeof(struct note), 1, true},
        {99, RR_LINK_VERSION, "domain", "g", sizeof(struct note), 2, true},
    };

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        struct note note = hello();
        struct rr_ring *rings[2];
        int fds[3], peer;
        struct pair x;

        new_domains(&x);
        peer = raw_peer(&x);
        note.type = cases[i].type;
        note.version = cases[i].version;
        snprintf(note.hello.domain, 64, "%s", cases[i].domain);
        snprintf(note.hello.from, 64, "%s", cases[i].from);
        for (size_t k = 0; k < 2; k++) {
            assert_int_equal(rr_ring_new(RR_RING_PRODUCER, &rings[k], NULL), 0);
            fds[k] = rr_ring_fd(rings[k]);
        }
        fds[2] = x.listener;
        raw_send(peer, &note, cases[i].len, cases[i].rings ? fds : fds + 1, cases[i].n_fds);
        if (rr_link_pump(x.r, &x.err) == 0)
            fail_msg("case %zu is taken", i);
        assert_int_equal(receive_error(&x), -EAGAIN);
        close(peer);
        rr_ring_free(rings[0]);
        rr_ring_free(rings[1]);
        free_pair(&x);
    }
}

/* Names that are not ended are cut nowhere: they are refused. */
static void test_long_name(void **state)
{
    struct note note = hello();
    struct pair x;
    int peer;

    (void)state;
    new_domains(&x);
    peer = raw_peer(&x);
    memset(note.hello.from, 'g', sizeof(note.hello.from));
    raw_send(peer, &note, sizeof(note), NULL, 0);
    assert_int_equal(rr_link_pump(x.r, &x.err), RR_E_INVALID);
    close(peer);
    free_pair(&x);
}

/* Records that an honest sender never writes, over a link that else is honest. */
static void test_records(void **state)
{
    static const struct {
        uint64_t len, offset, window, slot_bytes;
        uint32_t flags, meta_len, number, bytes;
    } cases[] = {
        {0, 0, WINDOW, SLOT, RECORD_INLINE, 0, 0, 8},
        {0, 0, WINDOW, SLOT, RECORD_INLINE, 0, 0, HEAD_BYTES + 1},
        {1, 0, WINDOW, SLOT, RECORD_INLINE, 0, 0, HEAD_BYTES},
        {UINT64_MAX, 0, WINDOW, SLOT, RECORD_INLINE, 0, 0, HEAD_BYTES},
        {0, 0, WINDOW, SLOT, RECORD_INLINE, RR_LINK_MAX_META + 1, 0, HEAD_BYTES},
        {0, 0, WINDOW, SLOT, RECORD_INLINE, UINT32_MAX, 0, HEAD_BYTES},
        {0, 0, WINDOW, SLOT, RECORD_INLINE | 16, 0, 0, HEAD_BYTES},
        {0, 0, WINDOW + 1, SLOT, RECORD_INLINE, 0, 0, HEAD_BYTES},
        {0, 0, 0, SLOT, RECORD_INLINE, 0, 0, HEAD_BYTES},
        {0, 0, 3 * RR_GIB, SLOT, RECORD_INLINE, 0, 0, HEAD_BYTES},
        {0, 0, 2 * RR_GIB + SLOT, RR_GIB, RECORD_INLINE, 0, 0, HEAD_BYTES},
        {0, 0, RR_GIB + SLOT, RR_GIB, RECORD_INLINE, 0, 0, HEAD_BYTES},
        {0, 0, WINDOW, SLOT + 1, RECORD_INLINE, 0, 0, HEAD_BYTES},
        {1, SLOT, WINDOW, SLOT, 0, 0, 0, HEAD_BYTES},
        {UINT64_MAX, 1, WINDOW, SLOT, 0, 0, 0, HEAD_BYTES},
        {1, UINT64_MAX, WINDOW, SLOT, 0, 0, 0, HEAD_BYTES},
        {1, 0, WINDOW, SLOT, 0, 0, 1, HEAD_BYTES},          /* was not lent */
        {1, 0, WINDOW, SLOT, 0, 0, UINT32_MAX, HEAD_BYTES}, /* nor that */
        {1, 0, RR_GIB, RR_GIB, 0, 0, 0, HEAD_BYTES},        /* its slot is another */
        {1, SLOT, RR_GIB, RR_GIB, 0, 0, 0, HEAD_BYTES},
    };

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        struct record h = {.len = cases[i].len,
                           .offset = cases[i].offset,
                           .window = cases[i].window,
                           .slot_bytes = cases[i].slot_bytes,
                           .flags = cases[i].flags,
                           .meta_len = cases[i].meta_len,
                           .number = cases[i].number + 1}; /* they begin at 1 */
        struct rr_region *region;
        struct rr_packet p;
        struct pair x;
        uint8_t *to;

        new_pair(&x);
        region = new_region(&x.from, "hello"); /* the first */
        p = region_packet(region, 5);
        assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
        rr_region_put(receive(&x).region);
        to = rr_ring_reserve(x.s->there, cases[i].bytes);
        memcpy(to, &h, rr_min(sizeof(h), cases[i].bytes));
        rr_ring_commit(x.s->there);
        if (receive_error(&x) != RR_E_INVALID)
            fail_msg("case %zu is taken", i);
        assert_int_equal(receive_error(&x), -EAGAIN);
        assert_int_equal(rr_link_pump(x.r, &x.err), RR_E_INVALID);
        rr_link_free(rr_take(x.s));
        rr_region_put(region);
        free_pair(&x);
    }
}

/* A receiver that gives back what it was not given, or twice. */
static void test_backs(void **state)
{
    static const struct {
        uint64_t seq;
        uint32_t what;
        unsigned int times;
        bool good;
    } cases[] = {{0, BACK_FREED, 1, true},
                 {0, BACK_FREED, 2, false},
                 {0, BACK_ACK, 1, true},
                 {0, BACK_ACK, 2, false},
                 {0, 0, 1, false},
                 {0, BACK_LOST, 1, true},
                 {0, BACK_LOST, 2, false},
                 {0, 4, 1, false},
                 {1, BACK_ACK, 1, true},
                 {1, BACK_FREED, 1, false},
                 {1, BACK_ACK, 2, false},
                 {2, BACK_FREED, 1, false},
                 {QUEUE, BACK_ACK, 1, false},
                 {UINT64_MAX, BACK_ACK, 1, false}};

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        struct rr_region *region;
        struct rr_packet p;
        struct pair x;
        int r;

        new_pair(&x);
        region = new_region(&x.from, "hello");
        p = region_packet(region, 5); /* 0 */
        p.acked = true;
        assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
        p = data_packet("hello", 5); /* 1 */
        p.acked = true;
        assert_int_equal(rr_link_send(x.s, &p, NULL, &x.err), 0);
        for (unsigned int n = 0; n < cases[i].times; n++)
            back_say(x.r, cases[i].seq, cases[i].what);
        r = rr_link_pump(x.s, &x.err);
        if (r != (cases[i].good ? 0 : RR_E_INVALID))
            fail_msg("case %zu: %d", i, r);
        rr_link_free(rr_take(x.s));
        assert_int_equal(x.done.n, 2);
        rr_region_put(region);
        free_pair(&x);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, before, after)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_inline),           TEST(test_region),        TEST(test_acked),
        TEST(test_forward),          TEST(test_shared),        TEST(test_again),
        TEST(test_full_by_messages), TEST(test_full_by_bytes), TEST(test_full_by_domain),
        TEST(test_full_ring),        TEST(test_receiver_dies), TEST(test_sender_dies),
        TEST(test_sleep_and_wake),   TEST(test_nobody),        TEST(test_other_domain),
        TEST(test_other_user),       TEST(test_greetings),     TEST(test_long_name),
        TEST(test_records),          TEST(test_backs),
    };

    return cmocka_run_group_tests_name("link", tests, NULL, NULL);
}
