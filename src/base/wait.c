/* SPDX-License-Identifier: Apache-2.0 */
#include "base/wait.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"

static _Thread_local _Atomic uint32_t heard; /* 1: SIGIO came since the wait began */

static void on_sigio(int number)
{
    (void)number;
    atomic_store_explicit(&heard, 1, memory_order_relaxed);
}

static void mask_sigio(int how)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGIO);
    pthread_sigmask(how, &set, NULL);
}

bool rr_wait_begin(void)
{
    struct sigaction action = {.sa_handler = on_sigio};

#ifdef __SANITIZE_THREAD__
    return false; /* it holds signals back until it thinks that the thread sleeps */
#endif
    if (syscall(SYS_futex_waitv, NULL, 0, 0, NULL, CLOCK_MONOTONIC) == 0 || errno != EINVAL)
        return false;
    mask_sigio(SIG_BLOCK);
    return sigaction(SIGIO, &action, NULL) == 0;
}

int rr_wait_watch(int fd)
{
    struct f_owner_ex owner = {F_OWNER_TID, gettid()};
    int flags = fcntl(fd, F_GETFL);

    /* a sandbox may allow no owner but its own process */
    if (fcntl(fd, F_SETOWN_EX, &owner) < 0 && fcntl(fd, F_SETOWN, getpid()) < 0)
        return -errno;
    return flags < 0 || fcntl(fd, F_SETFL, flags | O_ASYNC) < 0 ? -errno : 0;
}

struct futex_waitv rr_wait_word(_Atomic uint32_t *word, uint32_t value)
{
    return (struct futex_waitv){.val = value, .uaddr = (uintptr_t)word, .flags = FUTEX_32};
}

bool rr_wait(const struct futex_waitv *words, size_t n, int epoll_fd, uint64_t until_ns)
{
    struct timespec t = {(time_t)(until_ns / 1000000000u), (long)(until_ns % 1000000000u)};
    struct futex_waitv all[RR_WAIT_WORDS + 1];
    struct epoll_event e;
    bool ready;

    for (size_t k = 0; k < n; k++)
        all[k] = words[k];
    all[n] = rr_wait_word(&heard, 0);
    all[n].flags |= FUTEX_PRIVATE_FLAG;
    atomic_store_explicit(&heard, 0, memory_order_relaxed);
    mask_sigio(SIG_UNBLOCK);
    /* What comes after this look sets `heard`, and the wait ends, or does not begin. */
    ready = epoll_wait(epoll_fd, &e, 1, 0) != 0;
    if (!ready)
        syscall(SYS_futex_waitv, all, n + 1, 0, until_ns == UINT64_MAX ? NULL : &t,
                CLOCK_MONOTONIC);
    mask_sigio(SIG_BLOCK);
    return ready || atomic_load_explicit(&heard, memory_order_relaxed);
}

void rr_wait_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* --- what that takes ------------------------------------------------------------------------- */

#define ROUND_TRIPS 64
#define ROUND_TRIPS_NS 10000000u

struct pair {
    int there, back;
    cpu_set_t cpus[2]; /* one for each: on the same one they would take turns without sleeping */
};

/* False: there are not two. */
static bool choose_cpus(const cpu_set_t *all, cpu_set_t ret[2])
{
    int n = 0;

    for (size_t cpu = 0; cpu < CPU_SETSIZE && n < 2; cpu++)
        if (CPU_ISSET(cpu, all)) {
            CPU_ZERO(&ret[n]);
            CPU_SET(cpu, &ret[n++]);
        }
    return n == 2;
}

/* Until it is sent a 2. */
static void *answer(void *data)
{
    const struct pair *p = data;
    uint64_t n;

    sched_setaffinity(0, sizeof(p->cpus[1]), &p->cpus[1]);
    while (read(p->there, &n, sizeof(n)) == sizeof(n) && n == 1)
        if (write(p->back, &n, sizeof(n)) != sizeof(n))
            break;
    return NULL;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static uint64_t time_pair(const struct pair *p)
{
    uint64_t took[ROUND_TRIPS], one = 1, end = rr_now_ns() + ROUND_TRIPS_NS;
    size_t n = 0;

    while (n < ROUND_TRIPS && rr_now_ns() < end) {
        uint64_t begin = rr_now_ns(), got;

        if (write(p->there, &one, sizeof(one)) < 0 || read(p->back, &got, sizeof(got)) < 0)
            break;
        took[n++] = rr_now_ns() - begin;
    }
    qsort(took, n, sizeof(took[0]), compare);
    return n ? took[n / 2] : 0;
}

uint64_t rr_wait_round_trip_ns(void)
{
    struct pair p = {eventfd(0, EFD_CLOEXEC), eventfd(0, EFD_CLOEXEC), {{{0}}}};
    uint64_t two = 2, ns = 0;
    pthread_t thread;
    cpu_set_t before;
    bool apart = sched_getaffinity(0, sizeof(before), &before) == 0 &&
                 choose_cpus(&before, p.cpus) &&
                 sched_setaffinity(0, sizeof(p.cpus[0]), &p.cpus[0]) == 0;

    if (apart && p.there >= 0 && p.back >= 0 && pthread_create(&thread, NULL, answer, &p) == 0) {
        ns = time_pair(&p);
        if (write(p.there, &two, sizeof(two)) < 0)
            ns = 0;
        pthread_join(thread, NULL);
    }
    if (apart)
        sched_setaffinity(0, sizeof(before), &before);
    if (p.there >= 0)
        close(p.there);
    if (p.back >= 0)
        close(p.back);
    return ns;
}

/* --- yielding -------------------------------------------------------------------------------- */

#define LONG_NS 1500000u      /* a client that has much to do is back sooner */
#define LONG_MOST_NS 4000000u /* the host may have taken the CPU for longer, once */
#define GIVEN_NS 8000000u     /* so much is too much... */
#define FORGET 4              /* ...in four times the time: the host takes less */
#define KEEP_NS 20000000u     /* then it is kept for so long, twice as long, ... */
#define KEEP_MOST_NS 2560000000u

bool rr_yield_pays(const struct rr_yield *y, uint64_t now_ns)
{
    return now_ns >= y->until_ns;
}

void rr_yield_note(struct rr_yield *y, uint64_t before_ns, uint64_t now_ns)
{
    uint64_t took = now_ns - before_ns;

    y->given_ns -= rr_min(y->given_ns, (now_ns - y->last_ns) / FORGET);
    y->last_ns = now_ns;
    if (took >= LONG_NS)
        y->given_ns += rr_min(took, LONG_MOST_NS);
    if (y->given_ns == 0)
        y->keep_ns = 0;
    if (y->given_ns <= GIVEN_NS)
        return;
    y->given_ns = GIVEN_NS; /* the next time tells whether it is still so */
    y->keep_ns = y->keep_ns ? rr_min(2 * y->keep_ns, KEEP_MOST_NS) : KEEP_NS;
    y->until_ns = y->last_ns = now_ns + y->keep_ns;
}
