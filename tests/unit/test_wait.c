/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "base/wait.h"
#include "channel/ring.h"

#define PATIENCE_NS 10000000000u
#define SOON_NS 20000000u

struct place {
    _Atomic uint32_t *words; /* two, in memory that a fork shares */
    int fds[2], epoll_fd;
};

static int arrive(void **state)
{
    struct place *p = calloc(1, sizeof(*p));
    struct epoll_event e = {.events = EPOLLIN};

    assert_non_null(p);
    *state = p;
    p->words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(p->words != MAP_FAILED);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, p->fds), 0);
    p->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    assert_int_equal(epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, p->fds[0], &e), 0);
    return 0;
}

static int leave(void **state)
{
    struct place *p = *state;

    munmap(p->words, 4096);
    close(p->fds[0]);
    close(p->fds[1]);
    close(p->epoll_fd);
    free(p);
    return 0;
}

static bool begin(const struct place *p)
{
    if (!rr_wait_begin())
        return false;
    assert_int_equal(rr_wait_watch(p->fds[0]), 0);
    return true;
}

static void change_first(struct place *p)
{
    p->words[0] = 1;
    rr_wait_wake(&p->words[0]);
}

static void change_second(struct place *p)
{
    p->words[1] = 1;
    rr_wait_wake(&p->words[1]);
}

static void say(struct place *p)
{
    assert_int_equal(send(p->fds[1], "x", 1, 0), 1);
}

static void hang_up(struct place *p)
{
    shutdown(p->fds[1], SHUT_RDWR);
}

static void nothing(struct place *p)
{
    (void)p;
}

static const struct reason {
    const char *name;
    void (*act)(struct place *p);
    bool ready, late;
} reasons[] = {
    {"the first word", change_first, false, false},
    {"the second word", change_second, false, false},
    {"a message", say, true, false},
    {"an end", hang_up, true, false},
    {"time", nothing, false, true},
};

struct later {
    struct place *p;
    const struct reason *reason;
};

static void *act_later(void *data)
{
    struct later *l = data;

    usleep(5000);
    l->reason->act(l->p);
    return NULL;
}

static void wait_for(struct place *p, const struct reason *reason, bool before)
{
    struct futex_waitv words[] = {rr_wait_word(&p->words[0], 0), rr_wait_word(&p->words[1], 0)};
    struct later l = {p, reason};
    uint64_t start = rr_now_ns(), until = start + (reason->late ? SOON_NS : PATIENCE_NS);
    pthread_t thread;
    bool ready;

    if (before)
        reason->act(p);
    else
        assert_int_equal(pthread_create(&thread, NULL, act_later, &l), 0);
    do
        ready = rr_wait(words, 2, p->epoll_fd, until);
    while (!ready && !p->words[0] && !p->words[1] && rr_now_ns() < until);
    if (!before)
        pthread_join(thread, NULL);
    if (ready != reason->ready || (rr_now_ns() >= until) != reason->late)
        fail_msg("%s, %s: ready %d after %llu us", reason->name, before ? "before" : "later", ready,
                 (unsigned long long)(rr_now_ns() - start) / 1000);
}

static void test_reasons(void **state)
{
    for (size_t k = 0; k < 2 * RR_ARRAY_LEN(reasons); k++) {
        void *fresh;

        arrive(&fresh);
        if (!begin(fresh)) {
            leave(&fresh);
            skip();
        }
        wait_for(fresh, &reasons[k / 2], k % 2);
        leave(&fresh);
    }
    (void)state;
}

/* What is there stays a reason, until it is read; and what was read is none. */
static void test_level(void **state)
{
    struct place *p = *state;
    char c;

    if (!begin(p))
        skip();
    say(p);
    for (int k = 0; k < 3; k++)
        assert_true(rr_wait(NULL, 0, p->epoll_fd, UINT64_MAX));
    assert_int_equal(recv(p->fds[0], &c, 1, 0), 1);
    assert_false(rr_wait(NULL, 0, p->epoll_fd, rr_now_ns() + 1000000));
}

/* Another process answers each word, and each message, at once: not one wake-up is lost. */
static void test_none_lost(void **state)
{
    struct place *p = *state;
    pid_t pid;
    int status;

    if (!begin(p))
        skip();
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint32_t k = 1; k <= 5000; k++) {
            while (p->words[1] < k)
                rr_cpu_pause();
            if (k % 3) {
                p->words[0] = k;
                rr_wait_wake(&p->words[0]);
            } else if (send(p->fds[1], &k, sizeof(k), 0) < 0) {
                _exit(1);
            }
        }
        _exit(0);
    }
    for (uint32_t k = 1; k <= 5000; k++) {
        uint64_t until = rr_now_ns() + PATIENCE_NS;
        uint32_t got = 0, before = p->words[0];

        p->words[1] = k;
        while (got != k) {
            struct futex_waitv word = rr_wait_word(&p->words[0], before);

            rr_wait(&word, 1, p->epoll_fd, until);
            if (k % 3)
                got = p->words[0];
            else if (recv(p->fds[0], &got, sizeof(got), MSG_DONTWAIT) < 0)
                got = 0;
            if (rr_now_ns() > until)
                fail_msg("wake-up %u was lost", k);
        }
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* A consumer of a ring that waits for the word there needs no doorbell. */
static void test_ring(void **state)
{
    struct place *p = *state;
    struct rr_ring *producer, *consumer;
    struct rr_error err;
    struct futex_waitv word = {0};
    const void *record;
    uint32_t len;

    if (!begin(p))
        skip();
    assert_int_equal(rr_ring_new(RR_RING_PRODUCER, &producer, &err), 0);
    assert_int_equal(rr_ring_attach(dup(rr_ring_fd(producer)), RR_RING_CONSUMER, &consumer, &err),
                     0);
    assert_true(rr_ring_sleep(consumer, &word));
    assert_non_null(rr_ring_reserve(producer, 8));
    rr_ring_commit(producer);
    assert_false(rr_ring_must_wake(producer)); /* it has */
    rr_wait(&word, 1, p->epoll_fd, UINT64_MAX);
    rr_ring_awake(consumer);
    assert_int_equal(rr_ring_peek(consumer, &record, &len), 0);
    word = (struct futex_waitv){0};
    assert_false(rr_ring_sleep(consumer, &word)); /* there is a record: nothing to wait for */
    assert_int_equal(word.uaddr, 0);
    rr_ring_free(producer);
    rr_ring_free(consumer);
}

static int lowest_free_fd(void)
{
    int fd = dup(0);

    close(fd);
    return fd;
}

/* Plausible, soon known, and nothing is left behind. */
static void test_round_trip(void **state)
{
    uint64_t begin = rr_now_ns(), ns;
    int fd = lowest_free_fd();
    cpu_set_t before, after;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    ns = rr_wait_round_trip_ns();
    assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
    if (CPU_COUNT(&before) > 1)
        assert_in_range(ns, 500, PATIENCE_NS);
    else
        assert_int_equal(ns, 0);
    assert_in_range(rr_now_ns() - begin, ns, PATIENCE_NS);
    assert_int_equal(lowest_free_fd(), fd);
}

/* --- yielding -------------------------------------------------------------------------------- */

#define MS 1000000u

/* One that does so again and again for @for_ms: each time it takes the next of @took_us, and works
 * for @work_us. Return: the share of it all in which the CPU was kept, in percent. */
static unsigned int kept(struct rr_yield *y, uint64_t *now, const unsigned int took_us[4],
                         unsigned int work_us, unsigned int for_ms)
{
    uint64_t begin = *now, end = begin + (uint64_t)for_ms * MS, sum = 0;

    for (unsigned int n = 0; *now < end; n++) {
        uint64_t before = *now;

        if (rr_yield_pays(y, before)) {
            *now += took_us[n % 4] * 1000;
            rr_yield_note(y, before, *now);
        } else {
            sum += work_us * 1000;
        }
        *now += work_us * 1000;
    }
    return (unsigned int)(100 * sum / (*now - begin));
}

static void test_yield(void **state)
{
    static const struct {
        const char *what;
        unsigned int took_us[4], work_us, least, most; /* percent */
    } rows[] = {
        {"nobody wants it", {1, 1, 1, 1}, 1, 0, 0},
        {"a client", {10, 200, 1, 300}, 50, 0, 0},
        {"a busy client", {900, 900, 900, 900}, 100, 0, 0},
        {"the host, now and then", {14000, 1, 1, 1}, 20000, 0, 0},
        {"one that computes", {4000, 4000, 4000, 4000}, 50, 80, 100},
        {"with short slices", {3000, 3000, 1000, 3000}, 50, 80, 100},
        {"and a client", {4000, 100, 2000, 10}, 50, 80, 100},
        {"we do much, too", {4000, 4000, 4000, 4000}, 3000, 80, 100},
    };

    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(rows); n++) {
        struct rr_yield y = {0};
        uint64_t now = 1000000ull * MS;
        unsigned int share = kept(&y, &now, rows[n].took_us, rows[n].work_us, 2000);

        if (share < rows[n].least || share > rows[n].most)
            fail_msg("%s: kept for %u %% of the time", rows[n].what, share);
    }
}

/* It is found out again whether others compute, ever more seldom. */
static void test_yield_tries_again(void **state)
{
    static const unsigned int hog[4] = {4000, 4000, 4000, 4000}, free_cpu[4] = {1, 1, 1, 1};
    uint64_t now = 1000000ull * MS;
    struct rr_yield y = {0};

    (void)state;
    kept(&y, &now, hog, 50, 60000);
    assert_in_range(kept(&y, &now, hog, 50, 60000), 99, 99); /* 4 ms of each 2.6 s are not */
    kept(&y, &now, free_cpu, 50, 2600);                      /* until the next try */
    assert_int_equal(kept(&y, &now, free_cpu, 50, 1000), 0);
    kept(&y, &now, hog, 50, 20); /* and it begins anew, with 20 ms */
    assert_in_range(y.until_ns, now, now + 20 * MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reasons),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_yield),
        cmocka_unit_test(test_yield_tries_again),
        cmocka_unit_test_setup_teardown(test_level, arrive, leave),
        cmocka_unit_test_setup_teardown(test_none_lost, arrive, leave),
        cmocka_unit_test_setup_teardown(test_ring, arrive, leave),
    };

    return cmocka_run_group_tests_name("wait", tests, NULL, NULL);
}
