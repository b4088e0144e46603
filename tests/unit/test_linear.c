/* SPDX-License-Identifier: Apache-2.0 */
/* Pooled linear memories: zero for the next guest, closed where it has no memory. */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "engine/linear.h"

#define INITIAL (320u << 10)
#define LIMIT (64 * RR_MIB)

static struct rr_linear_pool pool;

/* May the kernel read there? It answers instead of faulting. */
static bool readable(const struct rr_linear *l, uint64_t at)
{
    int fds[2];
    ssize_t n;

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    n = write(fds[1], l->base + at, 1);
    assert_true(n == 1 || errno == EFAULT);
    close(fds[0]);
    close(fds[1]);
    return n == 1;
}

static struct rr_linear *get(bool windows)
{
    struct rr_linear *l = NULL;

    assert_null(rr_linear_get(&pool, INITIAL, LIMIT, &pool, windows, false, &l));
    assert_int_equal(l->size_bytes, INITIAL);
    return l;
}

static void open_windows(struct rr_linear *l)
{
    l->opening = true;
    assert_null(rr_linear_grow(l, RR_WINDOW_END));
    assert_true(l->opened);
}

static void test_layout(void **state)
{
    struct rr_linear *l = get(false);

    (void)state;
    assert_true((uintptr_t)l->base % RR_GIB == 0);
    assert_true(readable(l, INITIAL - 1));
    assert_false(readable(l, INITIAL));
    assert_null(rr_linear_grow(l, 2 * INITIAL));
    assert_true(readable(l, 2 * INITIAL - 1));
    open_windows(l);
    assert_int_equal(rr_linear_heap_bytes(l), 2 * INITIAL);
    assert_false(readable(l, RR_WINDOW_BASE - 1));
    assert_true(readable(l, RR_WINDOW_BASE));
    assert_true(readable(l, RR_WINDOW_END - 1));
    assert_false(readable(l, RR_WINDOW_END));
    assert_null(rr_linear_grow(l, RR_WINDOW_END + RR_MIB));
    assert_int_equal(rr_linear_heap_bytes(l), 2 * INITIAL + RR_MIB);
    assert_true(readable(l, RR_WINDOW_END + RR_MIB - 1));
    assert_false(l->limit_hit);
    assert_string_equal(rr_linear_grow(l, RR_WINDOW_END + LIMIT), "memory limit");
    assert_true(l->limit_hit);
    rr_linear_put(l);
}

/* To grow to the end of the windows is no way around the limit. */
static void test_only_the_host_opens_windows(void **state)
{
    struct rr_linear *l = get(false);

    (void)state;
    assert_non_null(rr_linear_grow(l, RR_WINDOW_END));
    assert_true(l->limit_hit);
    assert_false(l->opened);
    rr_linear_put(l);
}

static void test_pooled_memory_is_zero(void **state)
{
    static const uint64_t places[] = {
        0,
        4096,
        INITIAL - 1,
        RR_WINDOW_BASE,
        RR_WINDOW_BASE + 5000,
        RR_WINDOW_BASE + 40 * RR_MIB,
        RR_WINDOW_BASE + 64 * RR_MIB + 8192,
        RR_WINDOW_END - 1,
    };
    uint8_t *base = NULL;

    (void)state;
    /* More than one round of looks at which pages are in use. */
    for (int round = 0; round < 150; round++) {
        struct rr_linear *l = get(round > 0);

        assert_true(!base || l->base == base);
        base = l->base;
        open_windows(l);
        for (size_t i = 0; i < RR_ARRAY_LEN(places); i++) {
            assert_true(base[places[i]] == 0);
            base[places[i]] = 0x5a;
        }
        rr_linear_touch(l, RR_WINDOW_BASE, RR_WINDOW_BASE + 4999 + (unsigned int)round);
        rr_linear_touch(l, RR_WINDOW_BASE + 64 * RR_MIB, RR_WINDOW_BASE + 64 * RR_MIB + 8193);
        for (uint64_t n = 0; n < 20; n++) /* more than are kept */
            rr_linear_touch(l, RR_WINDOW_BASE + (100 + n) * RR_MIB,
                            RR_WINDOW_BASE + (100 + n) * RR_MIB + 1);
        assert_true(l->n_kept <= RR_LINEAR_MAX_KEPT);
        for (size_t n = 1; n < l->n_kept; n++)
            assert_true(l->kept[n - 1].end <= l->kept[n].begin);
        rr_linear_put(l);
    }
}

/* A guest without windows never gets a memory whose windows are open: there it would not trap. */
static void test_kinds_do_not_mix(void **state)
{
    struct rr_linear *with = get(true), *without;

    (void)state;
    open_windows(with);
    rr_linear_put(with);
    without = get(false);
    assert_ptr_not_equal(with, without);
    assert_false(readable(without, RR_WINDOW_BASE));
    rr_linear_put(without);
}

static void test_host_may_follow_pointers_into_the_gap(void **state)
{
    struct rr_linear *l = get(true), *before, *again;
    volatile uint8_t *gap;

    (void)state;
    rr_linear_catch_faults(); /* here: cmocka installs handlers of its own before each test */
    open_windows(l);
    gap = l->base + 500 * RR_MIB;
    assert_false(readable(l, 500 * RR_MIB));
    before = rr_linear_enter(l);
    assert_null(before);
    assert_int_equal(*gap, 0);
    *gap = 7;
    assert_int_equal(*gap, 7);
    rr_linear_leave(before);
    rr_linear_put(l);
    again = get(true);
    assert_ptr_equal(again, l);
    assert_false(readable(l, 500 * RR_MIB));
    rr_linear_put(again);
}

/* --- the fence ------------------------------------------------------------------------------- */

static int memory_fd;

/* Whatever its protection. */
static uint8_t byte_at(const struct rr_linear *l, uint64_t at)
{
    uint8_t b = 0xff;

    assert_int_equal(pread(memory_fd, &b, 1, (off_t)(uintptr_t)(l->base + at)), 1);
    return b;
}

struct guest {
    const void *owner;
    uint64_t pages[4]; /* of the heap, or of windows, written without being announced; 0: none */
    uint64_t message;  /* in the windows, announced; 0: none */
    uint64_t grow;
    bool maps; /* a region into the first window, and out again */
    bool ends; /* before it opens its windows */
};

/* One guest's life. Every place that any guest may have written to is zero when it begins. */
static struct rr_linear *live(const struct guest *g, const uint64_t *places, size_t n_places)
{
    struct rr_linear *l = NULL, *before;

    assert_null(
        rr_linear_get(&pool, INITIAL, LIMIT, g->owner, pool.first && pool.first->mapped, true, &l));
    for (size_t n = 0; n < n_places; n++)
        if (places[n] < l->open_bytes || (l->mapped && places[n] >= RR_WINDOW_BASE))
            assert_int_equal(byte_at(l, places[n]), 0);
    assert_int_equal(byte_at(l, RR_WINDOW_END + 100), 0);
    before = rr_linear_enter(l);
    if (!g->ends)
        open_windows(l);
    if (g->message) {
        rr_linear_touch(l, g->message, g->message + 5000);
        memset(l->base + g->message, 0x5a, 5000);
    }
    for (size_t n = 0; n < RR_ARRAY_LEN(g->pages) && g->pages[n]; n++) {
        assert_int_equal(l->base[g->pages[n]], 0);
        l->base[g->pages[n]] = 0x5a;
    }
    if (g->maps) {
        rr_linear_unfence(l);
        assert_ptr_equal(mmap(l->base + RR_WINDOW_BASE, RR_MIB, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
                         l->base + RR_WINDOW_BASE);
        l->base[RR_WINDOW_BASE + 8192] = 0x5a;
    }
    if (g->grow) {
        assert_null(rr_linear_grow(l, RR_WINDOW_END + g->grow));
        memset(l->base + RR_WINDOW_END, 0x5a, g->grow);
    }
    rr_linear_leave(before);
    rr_linear_put(l);
    return l;
}

static void live_until_fenced(const struct guest *g)
{
    struct rr_linear *l = NULL;
    int n = 0;

    do
        l = live(g, NULL, 0);
    while (!l->fenced && n++ < 100);
    assert_true(l->fenced);
}

static const char a, b; /* owners */
static const uint64_t places[] = {
    1,
    4096,
    70000,
    INITIAL - 1,
    RR_WINDOW_BASE + 1,
    RR_WINDOW_BASE + 4999,
    RR_WINDOW_BASE + 8192,
    RR_WINDOW_BASE + 64 * RR_MIB,
    RR_WINDOW_BASE + 64 * RR_MIB + 4999,
    RR_WINDOW_END - 1,
};

/* None sees anything of another's. */
static void live_many_lives(void)
{
    unsigned int seed = 1, n_fenced = 0;
    struct guest guest;

    for (int n = 0; n < 3000; n++) {
        size_t n_pages = 0;

        guest = (struct guest){.owner = rand_r(&seed) % 16 ? &a : &b};
        for (size_t k = 0; k < RR_ARRAY_LEN(places) && n_pages < 4; k++)
            if (rand_r(&seed) % (n % 1000 < 500 ? 200 : 5) == 0 || k == 1)
                guest.pages[n_pages++] = places[k];
        if (rand_r(&seed) % 8)
            guest.message = RR_WINDOW_BASE + 64 * RR_MIB * (rand_r(&seed) % 50 == 0);
        if (guest.message) /* it writes there already */
            for (size_t k = 1; k < 4; k++)
                guest.pages[k] = guest.pages[k] >= RR_WINDOW_BASE ? 0 : guest.pages[k];
        guest.maps = !guest.pages[1] && rand_r(&seed) % 100 == 0;
        guest.grow = rand_r(&seed) % 100 ? 0 : 65536;
        n_fenced += (unsigned int)live(&guest, places, RR_ARRAY_LEN(places))->fenced;
    }
    assert_true(n_fenced > 100);
}

static void test_fence(void **state)
{
    struct guest usual = {.owner = &a, .pages = {4096, 70000}, .message = RR_WINDOW_BASE};
    struct guest odd = usual, other = {.owner = &b, .pages = {1, INITIAL - 1}};
    struct rr_linear *l;

    (void)state;
    rr_linear_catch_strays(); /* here: see above */
    memory_fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    assert_true(memory_fd >= 0);

    /* What is not there yet when it is fenced. */
    odd.message = 0;
    odd.ends = true;
    live_until_fenced(&odd);
    odd.ends = false;
    odd.pages[2] = RR_WINDOW_BASE + 64 * RR_MIB;
    for (int n = 0; n < 3; n++)
        live(&odd, places, RR_ARRAY_LEN(places));
    odd = usual;

    /* The pages that guests use stay open, all others are closed, also within the windows. */
    live_until_fenced(&usual);
    l = live(&usual, places, RR_ARRAY_LEN(places));
    assert_true(l->fenced);
    assert_true(readable(l, 4096));
    assert_true(readable(l, 70000));
    assert_true(readable(l, RR_WINDOW_BASE + 4999));
    assert_false(readable(l, 1));
    assert_false(readable(l, INITIAL - 1));
    assert_false(readable(l, RR_WINDOW_BASE + 8192));
    assert_false(readable(l, RR_WINDOW_END - 1));

    /* Who goes elsewhere is let in, and the next one sees nothing of it. */
    odd.pages[2] = 1;
    odd.pages[3] = RR_WINDOW_END - 1;
    l = live(&odd, places, RR_ARRAY_LEN(places));
    assert_false(l->fenced);
    live(&usual, places, RR_ARRAY_LEN(places));

    /* What is learnt then holds for both. */
    odd.pages[3] = 0;
    for (int n = 0; n < 20; n++)
        live(&odd, places, RR_ARRAY_LEN(places));
    live_until_fenced(&usual);
    l = live(&odd, places, RR_ARRAY_LEN(places));
    assert_true(l->fenced);

    /* A region in a window, a message elsewhere, and growth. */
    odd = usual;
    odd.maps = true;
    l = live(&odd, places, RR_ARRAY_LEN(places));
    assert_false(l->fenced);
    live_until_fenced(&usual);
    odd = usual;
    odd.message = RR_WINDOW_BASE + 64 * RR_MIB;
    l = live(&odd, places, RR_ARRAY_LEN(places));
    assert_false(l->fenced);
    live_until_fenced(&usual);
    odd = usual;
    odd.grow = RR_MIB;
    live(&odd, places, RR_ARRAY_LEN(places));
    live_until_fenced(&usual);

    /* Another module's guests do not get this fence. */
    l = live(&other, places, RR_ARRAY_LEN(places));
    assert_ptr_equal(l->owner, &b);
    live(&usual, places, RR_ARRAY_LEN(places));

    live_many_lives();
    close(memory_fd);
}

/* Modules of one size have memories of their own, up to a number. */
static void test_owners(void **state)
{
    static const char owners[300];
    struct rr_linear *l = NULL;

    (void)state;
    for (size_t round = 0; round < 2; round++)
        for (size_t n = 0; n < RR_ARRAY_LEN(owners); n++) {
            assert_null(rr_linear_get(&pool, INITIAL, LIMIT, &owners[n], false, true, &l));
            assert_ptr_equal(l->owner, &owners[n]);
            assert_int_equal(l->base[5000], 0);
            l->base[5000] = 1;
            rr_linear_put(l);
        }
    assert_true(pool.n > 1 && pool.n < 200);
}

/* A burst's memories are given back, while others are in use; those last put are kept. */
static void test_idle_ones_go(void **state)
{
    struct rr_linear *burst[20];
    size_t before;

    (void)state;
    pool.idle_ns = 20000000;
    for (size_t n = 0; n < RR_ARRAY_LEN(burst); n++)
        burst[n] = get(n % 2);
    for (size_t n = 0; n < RR_ARRAY_LEN(burst); n++)
        rr_linear_put(burst[n]);
    assert_int_equal(pool.n, 20);
    for (size_t n = 0; n < 1000 && pool.n > 1; n++) {
        before = pool.n;
        rr_linear_put(get(false));
        assert_true(pool.n == before || pool.n == before - 1);
        usleep(1000);
    }
    assert_int_equal(pool.n, 1);
    assert_null(pool.first->next);
    rr_linear_put(get(false));
}

static void test_budget(void **state)
{
    struct rr_linear *l, *other = NULL;
    struct rr_budget budget;

    (void)state;
    assert_int_equal(rr_budget_init(&budget, 3 * INITIAL, 1), 0);
    pool.budget = &budget;
    l = get(true);
    assert_int_equal(rr_budget_used(&budget), INITIAL);
    open_windows(l);
    assert_int_equal(rr_budget_used(&budget), INITIAL); /* what lies there is counted as messages */
    assert_null(rr_linear_grow(l, RR_WINDOW_END + INITIAL));
    assert_int_equal(rr_budget_used(&budget), 2 * INITIAL);
    assert_ptr_equal(rr_linear_grow(l, RR_WINDOW_END + 3 * INITIAL), rr_linear_over_budget);
    assert_int_equal(l->wanted_bytes, 2 * INITIAL);
    assert_false(l->limit_hit);
    assert_int_equal(rr_budget_used(&budget), 2 * INITIAL);
    assert_false(readable(l, RR_WINDOW_END + INITIAL));
    assert_int_equal(rr_linear_heap_bytes(l), 2 * INITIAL);
    assert_ptr_equal(rr_linear_get(&pool, 2 * INITIAL, LIMIT, &pool, false, false, &other),
                     rr_linear_over_budget);
    assert_null(other);
    rr_linear_put(l);
    assert_int_equal(rr_budget_used(&budget), 0);
    l = get(true);
    assert_int_equal(l->wanted_bytes, 0);
    rr_linear_put(l);
    assert_int_equal(rr_budget_used(&budget), 0);
    rr_budget_deinit(&budget);
}

/* What it writes into windows where no message lies counts, too, as soon as somebody looks. */
static void test_windows_are_weighed(void **state)
{
    struct rr_budget budget;
    struct rr_linear *l;

    (void)state;
    assert_int_equal(rr_budget_init(&budget, INITIAL + 4 * RR_MIB, 1), 0);
    pool.budget = &budget;
    l = get(true);
    assert_true(rr_linear_weigh(l, 0)); /* none are open */
    open_windows(l);
    assert_true(rr_linear_weigh(l, 0));
    assert_int_equal(rr_budget_used(&budget), INITIAL);
    memset(l->base + RR_WINDOW_BASE, 1, 2 * RR_MIB);
    memset(l->base + RR_WINDOW_END - RR_MIB, 1, RR_MIB);
    assert_true(rr_linear_weigh(l, 0));
    assert_int_equal(rr_budget_used(&budget), INITIAL + 3 * RR_MIB);
    assert_true(rr_linear_weigh(l, RR_MIB)); /* of it a message */
    assert_int_equal(rr_budget_used(&budget), INITIAL + 2 * RR_MIB);
    assert_true(rr_linear_weigh(l, 8 * RR_MIB));
    assert_int_equal(rr_budget_used(&budget), INITIAL);
    memset(l->base + 2 * RR_GIB, 1, 2 * RR_MIB);
    assert_false(rr_linear_weigh(l, 0));
    assert_int_equal(rr_budget_used(&budget), INITIAL);
    assert_true(rr_linear_weigh(l, 2 * RR_MIB));
    rr_linear_put(l);
    assert_int_equal(rr_budget_used(&budget), 0);
    l = get(true);
    open_windows(l);
    assert_true(rr_linear_weigh(l, 0)); /* nothing is left there */
    assert_int_equal(rr_budget_used(&budget), INITIAL);
    rr_linear_put(l);
    rr_budget_deinit(&budget);
}

static int setup(void **state)
{
    (void)state;
    pool = (struct rr_linear_pool){0};
    pthread_mutex_init(&pool.lock, NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    rr_linear_pool_free(&pool);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_layout, setup, teardown),
        cmocka_unit_test_setup_teardown(test_only_the_host_opens_windows, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pooled_memory_is_zero, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kinds_do_not_mix, setup, teardown),
        cmocka_unit_test_setup_teardown(test_host_may_follow_pointers_into_the_gap, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_fence, setup, teardown),
        cmocka_unit_test_setup_teardown(test_owners, setup, teardown),
        cmocka_unit_test_setup_teardown(test_idle_ones_go, setup, teardown),
        cmocka_unit_test_setup_teardown(test_budget, setup, teardown),
        cmocka_unit_test_setup_teardown(test_windows_are_weighed, setup, teardown),
    };

    return cmocka_run_group_tests_name("linear", tests, NULL, NULL);
}
