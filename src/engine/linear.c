/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/linear.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "region/region.h"

#define PAGE 4096u
#define LOOKED_AT (2 * RR_MIB)  /* for pages in use */
#define RUNS_MAX (128ull << 10) /* zeroing more costs more than to fault them in again */
#define LOOK_EVERY 64           /* uses */
#define PATIENCE 4u             /* uses before a fence */
#define PATIENCE_MAX 4096u
#define POOL_MAX 128u         /* idle ones before an owner takes another's */
#define KEPT_MAX (256u << 10) /* of one small message */
#define GAP_STEP 65536u
#define WEIGHED_AT_ONCE (64 * RR_MIB)

const char rr_linear_over_budget[] = "the workflow's memory is in use";

static _Thread_local struct rr_linear *volatile running;
static struct sigaction previous_action, engines_action;

/* --- the fence ------------------------------------------------------------------------------- */

static bool behind_fence(const struct rr_linear *l, uint64_t at)
{
    return at < l->open_bytes || (l->mapped && at >= RR_WINDOW_BASE && at < RR_WINDOW_END);
}

static int protect(const struct rr_linear *l, uint64_t from, uint64_t to, int protection)
{
    return to > from ? mprotect(l->base + from, to - from, protection) : 0;
}

static int protect_all(const struct rr_linear *l, int protection)
{
    return protect(l, 0, l->open_bytes, protection) |
           (l->mapped ? protect(l, RR_WINDOW_BASE, RR_WINDOW_END, protection) : 0);
}

static int unfence(struct rr_linear *l)
{
    if (protect_all(l, PROT_READ | PROT_WRITE) != 0)
        return -1;
    l->fenced = 0;
    return 0;
}

static int fence(struct rr_linear *l)
{
    int r = protect_all(l, PROT_NONE);

    for (size_t n = 0; n < l->n_runs; n++)
        r |= protect(l, l->runs[n].begin, l->runs[n].end, PROT_READ | PROT_WRITE);
    for (size_t n = 0; n < l->n_kept; n++)
        r |= protect(l, l->kept[n].begin, l->kept[n].end, PROT_READ | PROT_WRITE);
    l->fenced = r == 0;
    l->fenced_bytes = l->open_bytes;
    return r;
}

/* --- the gap --------------------------------------------------------------------------------- */

static bool in_gap(const struct rr_linear *l, uintptr_t addr)
{
    uintptr_t base = (uintptr_t)l->base;

    return l->opened && addr >= base + l->open_bytes && addr < base + RR_WINDOW_BASE;
}

static void pass_on(const struct sigaction *to, int number, siginfo_t *info, void *context)
{
    if (to->sa_flags & SA_SIGINFO)
        to->sa_sigaction(number, info, context);
    else if (to->sa_handler == SIG_DFL || to->sa_handler == SIG_IGN)
        sigaction(number, to, NULL); /* it happens again, and ends the process */
    else
        to->sa_handler(number);
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    uintptr_t addr = (uintptr_t)info->si_addr & ~(uintptr_t)(GAP_STEP - 1);
    struct rr_linear *l = running;

    if (l && in_gap(l, (uintptr_t)info->si_addr) &&
        mprotect((void *)addr, GAP_STEP, PROT_READ | PROT_WRITE) == 0)
        l->gap_touched = 1;
    else
        pass_on(&previous_action, number, info, context);
}

static void on_stray(int number, siginfo_t *info, void *context)
{
    uintptr_t addr = (uintptr_t)info->si_addr;
    struct rr_linear *l = running;

    if (l && l->fenced && behind_fence(l, addr - (uintptr_t)l->base) && unfence(l) == 0)
        l->strayed = 1;
    else
        pass_on(&engines_action, number, info, context);
}

static void catch_with(void (*handler)(int, siginfo_t *, void *), struct sigaction *ret_before)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, ret_before);
}

static void catch_faults(void)
{
    catch_with(on_fault, &previous_action);
}

static void catch_strays(void)
{
    catch_with(on_stray, &engines_action);
}

void rr_linear_catch_faults(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, catch_faults);
}

void rr_linear_catch_strays(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, catch_strays);
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

static int map(const struct rr_linear *l, uint64_t from, uint64_t to, int protection)
{
    return mmap(l->base + from, to - from, protection,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED
               ? -1
               : 0;
}

static const char *open_windows(struct rr_linear *l)
{
    if (!l->mapped) {
        rr_linear_unfence(l); /* it has no fence here */
        if (l->fenced || map(l, RR_WINDOW_BASE, RR_WINDOW_END, PROT_READ | PROT_WRITE) < 0)
            return "mmap";
    }
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
    if (!rr_budget_take(l->pool->budget, size - l->size_bytes)) {
        l->wanted_bytes = size - l->size_bytes;
        return rr_linear_over_budget;
    }
    if (size > *end) {
        if (map(l, *end, size, PROT_READ | PROT_WRITE) < 0) {
            rr_budget_give(l->pool->budget, size - l->size_bytes);
            return "mmap";
        }
        *end = size;
    }
    l->size_bytes = size;
    return NULL;
}

void rr_linear_touch(struct rr_linear *l, uint64_t begin, uint64_t end)
{
    size_t at = 0;

    if (end <= begin)
        return;
    begin &= ~(uint64_t)(PAGE - 1);
    end = rr_align_up(end, PAGE);
    while (at < l->n_kept && l->kept[at].end <= begin)
        at++;
    if (l->fenced) {
        if (at < l->n_kept && l->kept[at].begin <= begin && l->kept[at].end >= end)
            return;
        if (unfence(l) == 0)
            l->strayed = 1;
    }
    if (end - begin > KEPT_MAX) {
        l->wide = true;
        return;
    }
    if (at < l->n_kept && l->kept[at].begin < end) { /* they overlap: the longer one of a place */
        if (l->kept[at].begin == begin && (at + 1 == l->n_kept || l->kept[at + 1].begin >= end))
            l->kept[at].end = end > l->kept[at].end ? end : l->kept[at].end;
        return;
    }
    if (l->n_kept == RR_LINEAR_MAX_KEPT) {
        l->wide = true;
        return;
    }
    memmove(&l->kept[at + 1], &l->kept[at], (l->n_kept - at) * sizeof(l->kept[0]));
    l->kept[at].begin = begin;
    l->kept[at].end = end;
    l->n_kept++;
}

void rr_linear_unfence(struct rr_linear *l)
{
    l->wide = true;
    if (l->fenced && unfence(l) == 0)
        l->strayed = 1;
}

/* --- what a guest takes without asking -------------------------------------------------------- */

static uint64_t resident_bytes(const struct rr_linear *l, uint64_t from, uint64_t to)
{
    unsigned char resident[WEIGHED_AT_ONCE / PAGE];
    uint64_t n = 0;

    for (; from < to; from += WEIGHED_AT_ONCE)
        if (mincore(l->base + from, WEIGHED_AT_ONCE, resident) == 0)
            for (size_t k = 0; k < sizeof(resident); k++)
                n += resident[k] & 1;
    return n * PAGE;
}

bool rr_linear_weigh(struct rr_linear *l, uint64_t mapped_bytes)
{
    uint64_t bytes, before = l->stray_bytes;

    if (!l->opened || l->fenced || !l->pool->budget)
        return true;
    bytes = resident_bytes(l, RR_WINDOW_BASE, RR_WINDOW_END);
    bytes -= rr_min(bytes, mapped_bytes);
    if (bytes > before && !rr_budget_take(l->pool->budget, bytes - before)) {
        l->wanted_bytes = bytes - before;
        return false;
    }
    if (bytes < before)
        rr_budget_give(l->pool->budget, before - bytes);
    l->stray_bytes = bytes;
    return true;
}

/* --- the pool -------------------------------------------------------------------------------- */

static void destroy(struct rr_linear *l)
{
    munmap(l->base, RR_LINEAR_BYTES + RR_LINEAR_GUARD);
    free(l);
}

static void add_run(struct rr_linear_run *runs, size_t *n, uint64_t begin, uint64_t end)
{
    /* With no room for another, over the hole before it, too. */
    if (*n && (runs[*n - 1].end == begin || *n == RR_LINEAR_MAX_RUNS))
        runs[*n - 1].end = end;
    else
        runs[(*n)++] = (struct rr_linear_run){begin, end};
}

static bool in_runs(const struct rr_linear *l, uint64_t at)
{
    for (size_t n = 0; n < l->n_runs; n++)
        if (at >= l->runs[n].begin && at < l->runs[n].end)
            return true;
    return false;
}

/*
 * A small guest dirties a few pages, the same ones each time. Zeroing those costs less than to free
 * them and fault them in again for the next instance (2 us each). @more: beside those known
 * already. False: there are too many.
 */
static bool find_runs(struct rr_linear *l, bool more)
{
    bool stays = l->mapped && l->open_bytes <= RR_WINDOW_BASE; /* what has grown: see wipe_all() */
    uint64_t len = rr_min(LOOKED_AT, stays ? l->open_bytes : l->initial_bytes), sum = 0;
    unsigned char resident[LOOKED_AT / PAGE];
    struct rr_linear_run runs[RR_LINEAR_MAX_RUNS];
    size_t n_runs = 0;

    if (len && mincore(l->base, len, resident) == 0)
        for (uint64_t at = 0; at < len; at += PAGE)
            if (resident[at / PAGE] & 1 || (more && in_runs(l, at)))
                add_run(runs, &n_runs, at, at + PAGE);
    for (size_t n = 0; n < n_runs; n++)
        sum += runs[n].end - runs[n].begin;
    l->n_runs = sum <= RUNS_MAX ? n_runs : 0;
    memcpy(l->runs, runs, l->n_runs * sizeof(runs[0]));
    return sum <= RUNS_MAX;
}

static int drop(const struct rr_linear *l, uint64_t from, uint64_t to)
{
    return to > from ? madvise(l->base + from, to - from, MADV_DONTNEED) : 0;
}

static void zero(const struct rr_linear *l, const struct rr_linear_run *runs, size_t n)
{
    for (size_t k = 0; k < n; k++)
        memset(l->base + runs[k].begin, 0, runs[k].end - runs[k].begin);
}

/* [@from, @to) but for @runs, which are in there. */
static int drop_between(const struct rr_linear *l, uint64_t from, uint64_t to,
                        const struct rr_linear_run *runs, size_t n)
{
    int r = 0;

    for (size_t k = 0; k < n; k++) {
        r |= drop(l, from, runs[k].begin);
        from = runs[k].end;
    }
    return r | drop(l, from, to);
}

/* What lies between close runs is zeroed too: that costs less than one more system call. */
static int wipe_heap(struct rr_linear *l, bool drop_all)
{
    struct rr_linear_run hull = {0, 0};

    if (l->n_runs)
        hull = (struct rr_linear_run){l->runs[0].begin, l->runs[l->n_runs - 1].end};
    if (drop_all || hull.end - hull.begin > RUNS_MAX)
        return drop(l, 0, l->open_bytes);
    zero(l, &hull, 1);
    return drop_between(l, 0, l->open_bytes, &hull, 1);
}

static int close_high(const struct rr_linear *l)
{
    if (!l->opened || l->high_bytes == RR_WINDOW_END)
        return 0;
    return map(l, RR_WINDOW_END, l->high_bytes, PROT_NONE);
}

/* All zero again, and closed beyond what the next one starts with; windows stay mapped. */
static int wipe_all(struct rr_linear *l, bool drop_all)
{
    int r = close_high(l);

    if (l->mapped && l->open_bytes <= RR_WINDOW_BASE) {
        /* To drop the page table of a window, with its one page, and to get both anew costs 10 us.
         */
        zero(l, l->kept, l->n_kept);
        r |= drop_between(l, RR_WINDOW_BASE, RR_WINDOW_END, l->kept, l->n_kept);
        if (l->gap_touched)
            r |= map(l, l->open_bytes, RR_WINDOW_BASE, PROT_NONE);
    } else if (l->open_bytes > l->initial_bytes) {
        uint64_t end = l->mapped && l->open_bytes < RR_WINDOW_END ? RR_WINDOW_END : l->open_bytes;

        r |= map(l, l->initial_bytes, end, PROT_NONE);
        l->open_bytes = l->initial_bytes;
        l->mapped = false;
        l->n_kept = 0;
    }
    return r | wipe_heap(l, drop_all);
}

/* Its guest touched only what is open, and nothing was mapped. */
static bool kept_to_fence(const struct rr_linear *l)
{
    return l->fenced && !l->gap_touched && l->open_bytes == l->fenced_bytes;
}

/* A fence that did not last makes the next one wait longer. */
static void wait_longer(struct rr_linear *l)
{
    l->patience = l->n_fenced >= LOOK_EVERY
                      ? PATIENCE
                      : (unsigned int)rr_min(2ull * l->patience, PATIENCE_MAX);
    l->n_fenced = l->n_open = 0;
    l->clean = false;
}

/* Is it to have a fence now? One guest is given a memory without any pages first: those that it
 * has then are those that it used. */
static bool learn(struct rr_linear *l)
{
    if (l->strayed)
        wait_longer(l);
    if (!l->may_fence || l->n_open++ < l->patience)
        return false;
    if (!l->clean) {
        l->clean = true;
        return false;
    }
    l->clean = false;
    if (!l->wide && find_runs(l, true))
        return true;
    wait_longer(l);
    return false;
}

static int wipe(struct rr_linear *l)
{
    bool to_fence;
    int r;

    if (kept_to_fence(l)) {
        l->n_fenced++;
        zero(l, l->runs, l->n_runs);
        zero(l, l->kept, l->n_kept);
        return close_high(l);
    }
    if (l->fenced && unfence(l) != 0)
        return -1;
    to_fence = learn(l);
    if (l->n_uses++ % LOOK_EVERY == 0 && !to_fence) {
        find_runs(l, false);
        l->n_kept = 0;
    }
    r = wipe_all(l, to_fence || l->clean);
    return r == 0 && to_fence ? fence(l) : r;
}

/* Out of the pool, with the lock held: one that has been there for long; or NULL. */
static struct rr_linear *take_idle(struct rr_linear_pool *pool, uint64_t now)
{
    uint64_t idle_ns = pool->idle_ns ? pool->idle_ns : RR_IDLE_NS;
    struct rr_linear **last = &pool->first, *l;

    if (now < pool->next_look_ns)
        return NULL;
    pool->next_look_ns = now + idle_ns / RR_IDLE_LOOKS;
    while ((*last)->next)
        last = &(*last)->next;
    l = *last;
    if (now - l->put_ns <= idle_ns)
        return NULL;
    *last = NULL;
    pool->n--;
    return l;
}

void rr_linear_put(struct rr_linear *l)
{
    struct rr_linear_pool *pool = l->pool;
    struct rr_linear *idle;

    rr_budget_give(pool->budget, rr_linear_heap_bytes(l) + l->stray_bytes);
    l->stray_bytes = 0;
    if (wipe(l) != 0) {
        destroy(l);
        return;
    }
    l->put_ns = rr_now_ns();
    pthread_mutex_lock(&pool->lock);
    l->next = pool->first;
    pool->first = l;
    pool->n++;
    idle = take_idle(pool, l->put_ns);
    pthread_mutex_unlock(&pool->lock);
    if (idle)
        destroy(idle);
}

void rr_linear_pool_free(struct rr_linear_pool *pool)
{
    while (pool->first) {
        struct rr_linear *l = pool->first;

        pool->first = l->next;
        destroy(l);
    }
    pool->n = 0;
}

/* The kind must match: what is open beyond a guest's size would not trap. */
static struct rr_linear *take(struct rr_linear_pool *pool, uint64_t minimum, const void *owner,
                              bool windows)
{
    struct rr_linear **best = NULL, *l = NULL;

    pthread_mutex_lock(&pool->lock);
    for (struct rr_linear **p = &pool->first; *p; p = &(*p)->next) {
        if ((*p)->initial_bytes != minimum || (*p)->mapped != windows)
            continue;
        if (!best && pool->n >= POOL_MAX)
            best = p;
        if ((*p)->owner == owner) {
            best = p;
            break;
        }
    }
    if (best) {
        l = *best;
        *best = l->next;
        pool->n--;
    }
    pthread_mutex_unlock(&pool->lock);
    return l;
}

static struct rr_linear *create(struct rr_linear_pool *pool)
{
    struct rr_linear *l = calloc(1, sizeof(*l));

    if (!l)
        return NULL;
    l->pool = pool;
    l->base = rr_reserve(RR_LINEAR_BYTES + RR_LINEAR_GUARD, RR_GIB);
    if (!l->base) {
        free(l);
        return NULL;
    }
    return l;
}

/* Another module's guests use other pages. */
static const char *change_owner(struct rr_linear *l, const void *owner)
{
    if (l->fenced && unfence(l) != 0)
        return "mprotect";
    l->n_runs = l->n_kept = 0;
    if (l->owner && (drop(l, 0, l->open_bytes) != 0 ||
                     (l->mapped && drop(l, RR_WINDOW_BASE, RR_WINDOW_END) != 0)))
        return "madvise";
    l->owner = owner;
    l->n_uses = l->n_open = l->n_fenced = 0;
    l->clean = false;
    l->patience = PATIENCE;
    return NULL;
}

const char *rr_linear_get(struct rr_linear_pool *pool, uint64_t minimum, uint64_t limit_bytes,
                          const void *owner, bool windows, bool fence, struct rr_linear **ret)
{
    struct rr_linear *l = take(pool, minimum, owner, windows);
    const char *wrong = NULL;

    if (!l && !(l = create(pool)))
        return "no memory, or no address space for linear memory";
    if (l->owner != owner || !l->patience)
        wrong = change_owner(l, owner);
    else if (l->fenced && !fence && unfence(l) != 0)
        wrong = "mprotect";
    l->initial_bytes = minimum;
    l->size_bytes = l->below_bytes = 0;
    l->limit_bytes = limit_bytes;
    l->opened = l->opening = l->limit_hit = l->wide = false;
    l->wanted_bytes = 0;
    l->may_fence = fence;
    l->gap_touched = l->strayed = 0;
    if (!wrong)
        wrong = rr_linear_grow(l, minimum);
    if (wrong) {
        destroy(l);
        return wrong;
    }
    *ret = l;
    return NULL;
}
