/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "gateway/async.h"

#define N 5000u

static struct call *make(unsigned int n)
{
    struct call *c = calloc(1, sizeof(*c));

    assert_non_null(c);
    /* not in order of its hash, and many in one bucket */
    snprintf(c->id, sizeof(c->id), "%016x%016x", n % 977 * 2654435761u, n);
    return c;
}

static unsigned int next_random(unsigned int *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

static void test_by_id_and_by_time(void **state)
{
    static struct call *all[N];
    struct calls calls;
    unsigned int seed = 1;
    uint64_t last = 0;
    size_t left = 0;

    (void)state;
    assert_true(rr_calls_init(&calls));
    for (unsigned int n = 0; n < N; n++) {
        all[n] = make(n);
        assert_true(rr_calls_add(&calls, all[n]));
        rr_timer_set(&calls, all[n], next_random(&seed) % 1000);
    }
    for (unsigned int n = 0; n < N; n++)
        assert_ptr_equal(rr_calls_find(&calls, all[n]->id), all[n]);
    for (unsigned int n = 0; n < N; n++) {
        if (n % 3 == 0)
            rr_timer_clear(&calls, all[n]);
        else if (n % 3 == 1)
            rr_timer_set(&calls, all[n], next_random(&seed) % 1000);
    }
    for (unsigned int n = 0; n < N; n += 5) {
        rr_calls_remove(&calls, all[n]);
        assert_null(rr_calls_find(&calls, all[n]->id));
        free(rr_take(all[n]));
    }
    for (unsigned int n = 0; n < N; n++)
        left += all[n] && all[n]->timer;
    assert_int_equal(left, calls.n_timers);
    while (calls.n_timers) {
        struct call *c = calls.heap[0];

        assert_true(c->due_ns >= last);
        last = c->due_ns;
        rr_timer_clear(&calls, c);
        assert_int_equal(c->timer, 0);
    }
    for (unsigned int n = 0; n < N; n++) {
        if (all[n])
            rr_calls_remove(&calls, all[n]);
        free(all[n]);
    }
    assert_int_equal(calls.n, 0);
    rr_calls_deinit(&calls);
}

static void test_in_line(void **state)
{
    struct call *c[3] = {make(0), make(1), make(2)};
    struct list l = {0};

    (void)state;
    for (int n = 0; n < 3; n++)
        rr_list_add(&l, c[n]);
    rr_list_remove(c[1]);
    rr_list_remove(c[1]);
    assert_true(l.first == c[0] && l.last == c[2] && c[0]->next == c[2] && c[2]->prev == c[0]);
    rr_list_add(&l, c[1]);
    rr_list_remove(c[0]);
    assert_true(l.first == c[2] && l.last == c[1]);
    rr_list_remove(c[2]);
    rr_list_remove(c[1]);
    assert_true(!l.first && !l.last);
    for (int n = 0; n < 3; n++)
        free(c[n]);
}

#define ITEMS 10000u

static void *put_many(void *user)
{
    static struct item items[ITEMS];

    for (size_t n = 0; n < ITEMS; n++)
        rr_inbox_put(user, &items[n]);
    rr_inbox_stop(user);
    return items;
}

static void test_what_is_told(void **state)
{
    struct inbox in;
    struct item *items, *expected = NULL;
    pthread_t thread;
    void *first;
    size_t n = 0;

    (void)state;
    rr_inbox_init(&in);
    assert_true(rr_inbox_take(&in, 0, &items));
    assert_null(items);
    assert_true(rr_inbox_take(&in, rr_now_ns() + 1000000, &items));
    assert_null(items);
    assert_int_equal(pthread_create(&thread, NULL, put_many, &in), 0);
    while (rr_inbox_take(&in, UINT64_MAX, &items))
        for (; items; items = items->next, n++) {
            assert_true(!expected || items == expected);
            expected = items + 1;
        }
    pthread_join(thread, &first);
    assert_true(expected == (struct item *)first + ITEMS);
    assert_int_equal(n, ITEMS);
    rr_inbox_deinit(&in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_id_and_by_time),
        cmocka_unit_test(test_in_line),
        cmocka_unit_test(test_what_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
