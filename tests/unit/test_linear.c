/* SPDX-License-Identifier: Apache-2.0 */
/* Pooled linear memories: zero for the next guest, closed where it has no memory. */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
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

    assert_null(rr_linear_get(&pool, INITIAL, LIMIT, windows, &l));
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

static int setup(void **state)
{
    (void)state;
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
    };

    return cmocka_run_group_tests_name("linear", tests, NULL, NULL);
}
