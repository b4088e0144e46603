/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/linear.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "region/region.h"

#define PAGE 4096u
#define HULL_BYTES (2 * RR_MIB) /* looked at for pages in use */
#define HULL_MAX (128ull << 10) /* zeroing more costs more than to fault them in again */
#define LOOK_EVERY 64           /* uses */
#define KEPT_MAX (256u << 10)   /* of one small message */
#define GAP_STEP 65536u

static _Thread_local struct rr_linear *volatile running;
static struct sigaction previous_action;

/* --- the gap --------------------------------------------------------------------------------- */

static bool in_gap(const struct rr_linear *l, uintptr_t addr)
{
    uintptr_t base = (uintptr_t)l->base;

    return l->opened && addr >= base + l->open_bytes && addr < base + RR_WINDOW_BASE;
}

static void pass_on(int number, siginfo_t *info, void *context)
{
    if (previous_action.sa_flags & SA_SIGINFO)
        previous_action.sa_sigaction(number, info, context);
    else if (previous_action.sa_handler == SIG_DFL || previous_action.sa_handler == SIG_IGN)
        sigaction(number, &previous_action, NULL); /* it happens again, and ends the process */
    else
        previous_action.sa_handler(number);
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    uintptr_t addr = (uintptr_t)info->si_addr & ~(uintptr_t)(GAP_STEP - 1);
    struct rr_linear *l = running;

    if (l && in_gap(l, (uintptr_t)info->si_addr) &&
        mprotect((void *)addr, GAP_STEP, PROT_READ | PROT_WRITE) == 0)
        l->gap_touched = 1;
    else
        pass_on(number, info, context);
}

static void catch_faults(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &previous_action);
}

void rr_linear_catch_faults(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, catch_faults);
}

struct rr_linear *rr_linear_enter(struct rr_linear *l)
{
    struct rr_linear *before = running;

    running = l;
    return before;
}

void rr_linear_leave(struct rr_linear *before)
{
    running = before;
}

/* --- growth ---------------------------------------------------------------------------------- */

static int map(struct rr_linear *l, uint64_t from, uint64_t to, int protection)
{
    return mmap(l->base + from, to - from, protection,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED
               ? -1
               : 0;
}

static const char *open_windows(struct rr_linear *l)
{
    if (!l->mapped && map(l, RR_WINDOW_BASE, RR_WINDOW_END, PROT_READ | PROT_WRITE) < 0)
        return "mmap";
    l->mapped = true;
    l->opened = true;
    l->opening = false;
    l->below_bytes = l->size_bytes;
    l->size_bytes = l->high_bytes = RR_WINDOW_END;
    return NULL;
}

uint64_t rr_linear_heap_bytes(const struct rr_linear *l)
{
    return l->opened ? l->below_bytes + l->size_bytes - RR_WINDOW_END : l->size_bytes;
}

const char *rr_linear_grow(struct rr_linear *l, uint64_t size)
{
    uint64_t *end = l->opened ? &l->high_bytes : &l->open_bytes;

    if (size <= l->size_bytes)
        return NULL;
    if (l->opening && size == RR_WINDOW_END)
        return open_windows(l);
    if (rr_linear_heap_bytes(l) + size - l->size_bytes > l->limit_bytes) {
        l->limit_hit = true;
        return "memory limit";
    }
    if (size > RR_LINEAR_BYTES)
        return "beyond 4 GiB";
    if (size > *end) {
        if (map(l, *end, size, PROT_READ | PROT_WRITE) < 0)
            return "mmap";
        *end = size;
    }
    l->size_bytes = size;
    return NULL;
}

void rr_linear_touch(struct rr_linear *l, uint64_t begin, uint64_t end)
{
    size_t at = 0;

    begin &= ~(uint64_t)(PAGE - 1);
    end = rr_align_up(end, PAGE);
    if (end - begin > KEPT_MAX || end <= begin)
        return;
    while (at < l->n_kept && l->kept[at].end <= begin)
        at++;
    if (at < l->n_kept && l->kept[at].begin < end) { /* they overlap: the longer one of a place */
        if (l->kept[at].begin == begin && (at + 1 == l->n_kept || l->kept[at + 1].begin >= end))
            l->kept[at].end = end > l->kept[at].end ? end : l->kept[at].end;
        return;
    }
    if (l->n_kept == RR_LINEAR_MAX_KEPT)
        return;
    memmove(&l->kept[at + 1], &l->kept[at], (l->n_kept - at) * sizeof(l->kept[0]));
    l->kept[at].begin = begin;
    l->kept[at].end = end;
    l->n_kept++;
}

/* --- the pool -------------------------------------------------------------------------------- */

static void destroy(struct rr_linear *l)
{
    munmap(l->base, RR_LINEAR_BYTES + RR_LINEAR_GUARD);
    free(l);
}

/*
 * A small guest dirties a few pages, the same ones each time. Zeroing those costs less than to free
 * them and fault them in again for the next instance (2 us each).
 */
static void find_hull(struct rr_linear *l)
{
    uint64_t len = rr_min(HULL_BYTES, rr_min(l->open_bytes, l->initial_bytes));
    unsigned char resident[HULL_BYTES / PAGE];
    uint64_t begin = len, end = 0;

    if (len && mincore(l->base, len, resident) == 0)
        for (uint64_t at = 0; at < len; at += PAGE)
            if (resident[at / PAGE] & 1) {
                begin = rr_min(begin, at);
                end = at + PAGE;
            }
    l->hull_begin = l->hull_end = 0;
    if (end > begin && end - begin <= HULL_MAX) {
        l->hull_begin = begin;
        l->hull_end = end;
    }
}

static int drop(struct rr_linear *l, uint64_t from, uint64_t to)
{
    return to > from ? madvise(l->base + from, to - from, MADV_DONTNEED) : 0;
}

/* To drop the page table of a window, with its one page, and to get both anew costs 10 us. */
static int wipe_windows(struct rr_linear *l)
{
    uint64_t at = RR_WINDOW_BASE;
    int r = 0;

    for (size_t n = 0; n < l->n_kept; n++) {
        r |= drop(l, at, l->kept[n].begin);
        at = l->kept[n].end;
        memset(l->base + l->kept[n].begin, 0, at - l->kept[n].begin);
    }
    return r | drop(l, at, RR_WINDOW_END);
}

/* All zero again, and closed beyond what the next one starts with; windows stay mapped. */
static int wipe(struct rr_linear *l)
{
    int r = 0;

    if (l->n_uses++ % LOOK_EVERY == 0) {
        find_hull(l);
        l->n_kept = 0;
    }
    if (l->opened && l->high_bytes > RR_WINDOW_END)
        r |= map(l, RR_WINDOW_END, l->high_bytes, PROT_NONE);
    if (l->mapped && l->open_bytes <= RR_WINDOW_BASE) {
        r |= wipe_windows(l);
        if (l->gap_touched)
            r |= map(l, l->open_bytes, RR_WINDOW_BASE, PROT_NONE);
    } else if (l->open_bytes > l->initial_bytes) {
        uint64_t end = l->mapped && l->open_bytes < RR_WINDOW_END ? RR_WINDOW_END : l->open_bytes;

        r |= map(l, l->initial_bytes, end, PROT_NONE);
        l->open_bytes = l->initial_bytes;
        l->mapped = false;
        l->n_kept = 0;
    }
    memset(l->base + l->hull_begin, 0, l->hull_end - l->hull_begin);
    r |= drop(l, 0, l->hull_begin);
    r |= drop(l, l->hull_end, l->open_bytes);
    return r;
}

void rr_linear_put(struct rr_linear *l)
{
    struct rr_linear_pool *pool = l->pool;

    if (wipe(l) != 0) {
        destroy(l);
        return;
    }
    pthread_mutex_lock(&pool->lock);
    l->next = pool->first;
    pool->first = l;
    pthread_mutex_unlock(&pool->lock);
}

void rr_linear_pool_free(struct rr_linear_pool *pool)
{
    while (pool->first) {
        struct rr_linear *l = pool->first;

        pool->first = l->next;
        destroy(l);
    }
}

/* The kind must match: what is open beyond a guest's size would not trap. */
static struct rr_linear *take(struct rr_linear_pool *pool, uint64_t minimum, bool windows)
{
    struct rr_linear *l = NULL;

    pthread_mutex_lock(&pool->lock);
    for (struct rr_linear **p = &pool->first; *p; p = &(*p)->next)
        if ((*p)->initial_bytes == minimum && (*p)->mapped == windows) {
            l = *p;
            *p = l->next;
            break;
        }
    pthread_mutex_unlock(&pool->lock);
    return l;
}

const char *rr_linear_get(struct rr_linear_pool *pool, uint64_t minimum, uint64_t limit_bytes,
                          bool windows, struct rr_linear **ret)
{
    struct rr_linear *l = take(pool, minimum, windows);
    const char *wrong;

    if (!l) {
        l = calloc(1, sizeof(*l));
        if (!l)
            return "out of memory";
        l->pool = pool;
        l->base = rr_reserve(RR_LINEAR_BYTES + RR_LINEAR_GUARD, RR_GIB);
        if (!l->base) {
            free(l);
            return "no address space for linear memory";
        }
    }
    l->initial_bytes = minimum;
    l->size_bytes = l->below_bytes = 0;
    l->limit_bytes = limit_bytes;
    l->opened = l->opening = l->limit_hit = false;
    l->gap_touched = 0;
    wrong = rr_linear_grow(l, minimum);
    if (wrong) {
        destroy(l);
        return wrong;
    }
    *ret = l;
    return NULL;
}
