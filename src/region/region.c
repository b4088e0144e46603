/* SPDX-License-Identifier: Apache-2.0 */
#include "region/region.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/util.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define MAX_JOBS 64
#define SCRATCH_BYTES (2 * RR_GIB)
#define VIEW_POPULATE (32 * RR_MIB)
#define WARM_STEP (8 * RR_MIB) /* populated at once, so that the mmap lock is not held long */

struct rr_region {
    struct rr_arena *arena;
    struct rr_region *next;   /* in the pool */
    struct rr_region *parent; /* of a view; owned reference */
    enum rr_backing backing;
    uint64_t slot_bytes;
    uint64_t map_bytes;  /* length of the mapping that moves; a view's is shorter than its slot */
    uint8_t *home, *at;  /* at: where the pages are now */
    bool lent;           /* memfd: parked, and its home's page tables given up for the views' */
    uint64_t bytes;      /* accounted as live */
    uint64_t warm_bytes; /* from the start, populated at most up to here */
    uint64_t collapsed;  /* memfd: huge pages up to here */
    uint64_t domain;
    uint64_t put_ns; /* into the pool */
    atomic_uint refs;
    int fd;
    uint32_t number;
    bool forsaken;
    /* Imported ones only: */
    void (*freed)(void *data, struct rr_region *region);
    void *freed_data;
    uint64_t mapped_bytes; /* page tables of the home are populated up to here */
    bool shared, closed;
};

struct warm_job {
    enum rr_backing backing;
    uint64_t slot_bytes, bytes;
    unsigned int count;
};

struct policy {
    uint64_t domain;
    enum rr_scrub scrub;
};

struct rr_arena {
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    struct rr_region *pool[3][2]; /* by backing and slot class */
    struct rr_arena_options options;
    struct rr_arena_stats stats;
    uint64_t next_look_ns;   /* for regions that are idle */
    struct policy *policies; /* of domains that have one of their own */
    size_t n_policies;
    struct warm_job jobs[MAX_JOBS];
    unsigned int n_jobs;
    bool busy, warmer_runs, pressure_runs;
    atomic_bool stop, copying;
    atomic_uint_fast64_t moves;
    atomic_uint next_number;
    pthread_mutex_t swap_lock;
    uint8_t *scratch; /* SCRATCH_BYTES, reserved when first wanted */
    pthread_t warmer, pressure;
    int stop_pipe[2];
};

static size_t class_of(uint64_t slot_bytes)
{
    return slot_bytes > RR_SLOT_SMALL;
}

uint8_t *rr_reserve(uint64_t bytes, uint64_t align)
{
    uint8_t *raw =
        mmap(NULL, bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint8_t *base;

    if (raw == MAP_FAILED)
        return NULL;
    base = (uint8_t *)rr_align_up((uint64_t)(uintptr_t)raw, align);
    if (base > raw)
        munmap(raw, (size_t)(base - raw));
    if (raw + align > base)
        munmap(base + bytes, (size_t)(raw + align - base));
    return base;
}

/* Fresh anonymous zero pages over [p, p+len), in one step: no hole in between. */
static int map_anonymous(uint8_t *p, uint64_t len)
{
    return mmap(p, len, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED
               ? -errno
               : 0;
}

/* The same for a home. A window is not to have huge pages: small messages are written there. */
static int map_home(struct rr_region *region)
{
    int r = map_anonymous(region->home, region->slot_bytes);

    if (r == 0)
        madvise(region->home, region->slot_bytes, MADV_HUGEPAGE);
    return r;
}

static void destroy(struct rr_region *region)
{
    munmap(region->home, region->slot_bytes);
    if (region->fd >= 0)
        close(region->fd);
    free(region);
}

static int sealed_memfd(uint64_t bytes)
{
    int fd = memfd_create("roadrunner-region", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)bytes) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int r = -errno;

        close(fd);
        return r;
    }
    return fd;
}

static int create(struct rr_arena *arena, enum rr_backing backing, uint64_t slot_bytes,
                  struct rr_region **ret)
{
    struct rr_region *region = calloc(1, sizeof(*region));
    int r = 0;

    if (!region)
        return -ENOMEM;
    *region = (struct rr_region){.arena = arena,
                                 .backing = backing,
                                 .slot_bytes = slot_bytes,
                                 .map_bytes = slot_bytes,
                                 .fd = -1};
    region->home = rr_reserve(slot_bytes, slot_bytes);
    if (!region->home) {
        free(region);
        return -ENOMEM;
    }
    region->at = region->home;
    if (backing == RR_ANON) {
        r = map_home(region);
    } else if (backing == RR_MEMFD) {
        region->fd = r = sealed_memfd(slot_bytes);
        if (r >= 0)
            r = mmap(region->home, slot_bytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_FIXED | MAP_NORESERVE, region->fd, 0) == MAP_FAILED
                    ? -errno
                    : 0;
    }
    if (r < 0) {
        destroy(region);
        return r;
    }
    *ret = region;
    return 0;
}

/* Give the pages beyond @keep back to the system. */
static void discard(struct rr_region *region, uint64_t keep)
{
    uint8_t *from = region->home + keep;

    if (keep >= region->slot_bytes)
        return;
    if (region->backing == RR_MEMFD)
        madvise(from, region->slot_bytes - keep, MADV_REMOVE);
    else
        madvise(from, region->slot_bytes - keep, MADV_DONTNEED);
    region->warm_bytes = rr_min(region->warm_bytes, keep);
    region->collapsed = rr_min(region->collapsed, keep);
}

static void *warmer_main(void *data);
static void *pressure_main(void *data);

int rr_arena_new(const struct rr_arena_options *options, struct rr_arena **ret,
                 struct rr_error *err)
{
    struct rr_arena *arena = calloc(1, sizeof(*arena));

    if (!arena)
        return rr_error_no_memory(err);
    arena->options = *options;
    if (!arena->options.ceiling_bytes)
        arena->options.ceiling_bytes = rr_machine_memory() / 4;
    if (!arena->options.idle_ns)
        arena->options.idle_ns = RR_IDLE_NS;
    arena->stop_pipe[0] = arena->stop_pipe[1] = -1;
    pthread_mutex_init(&arena->lock, NULL);
    pthread_mutex_init(&arena->swap_lock, NULL);
    pthread_cond_init(&arena->wake, NULL);
    pthread_cond_init(&arena->idle, NULL);
    if (options->watch_pressure && pipe2(arena->stop_pipe, O_CLOEXEC) == 0)
        arena->pressure_runs = pthread_create(&arena->pressure, NULL, pressure_main, arena) == 0;
    *ret = arena;
    return 0;
}

void rr_arena_after_fork(struct rr_arena *arena)
{
    pthread_mutex_init(&arena->lock, NULL);
    pthread_mutex_init(&arena->swap_lock, NULL);
    pthread_cond_init(&arena->wake, NULL);
    pthread_cond_init(&arena->idle, NULL);
    arena->warmer_runs = arena->pressure_runs = arena->busy = false;
    arena->n_jobs = 0;
    for (size_t i = 0; i < 2; i++)
        if (arena->stop_pipe[i] >= 0) {
            close(arena->stop_pipe[i]);
            arena->stop_pipe[i] = -1;
        }
}

void rr_arena_free(struct rr_arena *arena)
{
    if (!arena)
        return;
    pthread_mutex_lock(&arena->lock);
    arena->stop = true;
    pthread_cond_broadcast(&arena->wake);
    pthread_mutex_unlock(&arena->lock);
    if (arena->warmer_runs)
        pthread_join(arena->warmer, NULL);
    if (arena->pressure_runs) {
        if (write(arena->stop_pipe[1], "", 1) < 0) /* forked processes have copies of it */
            rr_log(0, "cannot stop a thread: %s", strerror(errno));
        close(arena->stop_pipe[1]);
        pthread_join(arena->pressure, NULL);
        close(arena->stop_pipe[0]);
    } else if (arena->stop_pipe[0] >= 0) {
        close(arena->stop_pipe[0]);
        close(arena->stop_pipe[1]);
    }
    for (size_t b = 0; b < RR_ARRAY_LEN(arena->pool); b++)
        for (size_t c = 0; c < RR_ARRAY_LEN(arena->pool[b]); c++)
            while (arena->pool[b][c]) {
                struct rr_region *region = arena->pool[b][c];

                arena->pool[b][c] = region->next;
                destroy(region);
            }
    if (arena->scratch)
        munmap(arena->scratch, SCRATCH_BYTES);
    free(arena->policies);
    pthread_mutex_destroy(&arena->swap_lock);
    pthread_cond_destroy(&arena->wake);
    pthread_cond_destroy(&arena->idle);
    pthread_mutex_destroy(&arena->lock);
    free(arena);
}

void rr_arena_stats(struct rr_arena *arena, struct rr_arena_stats *ret)
{
    pthread_mutex_lock(&arena->lock);
    *ret = arena->stats;
    ret->moves = atomic_load(&arena->moves);
    ret->copying = atomic_load(&arena->copying);
    pthread_mutex_unlock(&arena->lock);
}

/* Called with the lock held, and keeps it: the pool must not change under the walk. */
static uint64_t trim_locked(struct rr_arena *arena, uint64_t keep_bytes)
{
    uint64_t before = arena->stats.warm_bytes;

    for (size_t b = 0; b < RR_ARRAY_LEN(arena->pool); b++)
        for (size_t c = 0; c < RR_ARRAY_LEN(arena->pool[b]); c++)
            for (struct rr_region *r = arena->pool[b][c]; r; r = r->next) {
                if (arena->stats.warm_bytes <= keep_bytes)
                    goto done;
                arena->stats.warm_bytes -= r->warm_bytes;
                discard(r, 0);
            }
done:
    if (before != arena->stats.warm_bytes)
        arena->stats.trims++;
    return before - arena->stats.warm_bytes;
}

uint64_t rr_arena_trim(struct rr_arena *arena, uint64_t keep_bytes)
{
    uint64_t n;

    pthread_mutex_lock(&arena->lock);
    n = trim_locked(arena, keep_bytes);
    pthread_mutex_unlock(&arena->lock);
    return n;
}

/* With the lock held. */
static struct policy *policy_of(struct rr_arena *arena, uint64_t domain)
{
    for (size_t n = 0; n < arena->n_policies; n++)
        if (arena->policies[n].domain == domain)
            return &arena->policies[n];
    return NULL;
}

int rr_arena_set_scrub(struct rr_arena *arena, uint64_t domain, enum rr_scrub scrub)
{
    struct policy *policy, *grown;
    int r = 0;

    pthread_mutex_lock(&arena->lock);
    policy = policy_of(arena, domain);
    if (policy) {
        policy->scrub = scrub;
    } else {
        grown = reallocarray(arena->policies, arena->n_policies + 1, sizeof(*grown));
        if (grown) {
            arena->policies = grown;
            grown[arena->n_policies++] = (struct policy){domain, scrub};
        } else {
            r = -ENOMEM;
        }
    }
    pthread_mutex_unlock(&arena->lock);
    return r;
}

static bool scrub_always(struct rr_arena *arena, uint64_t domain)
{
    const struct policy *policy = policy_of(arena, domain);

    return (policy ? policy->scrub : arena->options.scrub) == RR_SCRUB_ALWAYS;
}

static struct rr_region **pool_of(struct rr_arena *arena, const struct rr_region *region)
{
    return &arena->pool[region->backing][class_of(region->slot_bytes)];
}

static void pool_insert(struct rr_arena *arena, struct rr_region **at, struct rr_region *region)
{
    region->next = *at;
    *at = region;
    arena->stats.warm_bytes += region->warm_bytes;
    arena->stats.warm_regions++;
}

static struct rr_region *pool_remove(struct rr_arena *arena, struct rr_region **at)
{
    struct rr_region *region = *at;

    *at = region->next;
    region->next = NULL;
    arena->stats.warm_bytes -= region->warm_bytes;
    arena->stats.warm_regions--;
    return region;
}

/* The pooled region that fits best: of the same domain first, then the warmest. */
static struct rr_region *pool_take(struct rr_arena *arena, enum rr_backing backing,
                                   uint64_t slot_bytes, uint64_t domain)
{
    struct rr_region **best = NULL;

    for (struct rr_region **p = &arena->pool[backing][class_of(slot_bytes)]; *p; p = &(*p)->next) {
        bool same = (*p)->domain == domain;

        if (!best || (same && (*best)->domain != domain) ||
            (same == ((*best)->domain == domain) && (*p)->warm_bytes > (*best)->warm_bytes))
            best = p;
        if (same && (*best)->domain == domain && (*best)->warm_bytes > 0)
            break;
    }
    return best ? pool_remove(arena, best) : NULL;
}

static void account_live(struct rr_arena *arena, struct rr_region *region, uint64_t bytes)
{
    arena->stats.live_bytes += bytes - region->bytes; /* modular: shrinks as well */
    region->bytes = bytes;
    if (arena->stats.live_bytes > arena->stats.peak_bytes)
        arena->stats.peak_bytes = arena->stats.live_bytes;
}

/* What others lend is theirs to account for. */
static struct rr_budget *budget_of(const struct rr_region *region)
{
    return region->freed ? NULL : region->arena->options.budget;
}

/* What is warm makes room for what is live. With the lock held. */
static void keep_ceiling(struct rr_arena *arena)
{
    uint64_t ceiling = rr_min(arena->options.ceiling_bytes, rr_budget_left(arena->options.budget));

    if (arena->stats.warm_bytes > ceiling)
        trim_locked(arena, ceiling);
}

int rr_region_set_bytes(struct rr_region *region, uint64_t bytes, struct rr_error *err)
{
    struct rr_arena *arena = region->arena;

    if (bytes > region->bytes && !rr_budget_take(budget_of(region), bytes - region->bytes))
        return rr_budget_refuse(arena->options.budget, bytes, err);
    if (bytes < region->bytes)
        rr_budget_give(budget_of(region), region->bytes - bytes);
    pthread_mutex_lock(&arena->lock);
    account_live(arena, region, bytes);
    keep_ceiling(arena);
    pthread_mutex_unlock(&arena->lock);
    return 0;
}

static int get(struct rr_arena *arena, enum rr_backing backing, uint64_t slot_bytes, uint64_t bytes,
               uint64_t domain, struct rr_region **ret, struct rr_error *err)
{
    struct rr_region *region;
    int r = 0;

    if (!rr_budget_take(arena->options.budget, bytes))
        return rr_budget_refuse(arena->options.budget, bytes, err);
    pthread_mutex_lock(&arena->lock);
    region = pool_take(arena, backing, slot_bytes, domain);
    pthread_mutex_unlock(&arena->lock);
    if (!region)
        r = create(arena, backing, slot_bytes, &region);
    if (r < 0) {
        rr_budget_give(arena->options.budget, bytes);
        return rr_error_set(
            err, RR_E_SYSTEM, "raise the limits on address space, mappings and descriptors",
            "no %s of address space for a message: %s", rr_bytes_text(slot_bytes), strerror(-r));
    }
    pthread_mutex_lock(&arena->lock);
    if (region->domain != domain && region->warm_bytes) {
        discard(region, 0);
        arena->stats.scrubs++;
    }
    region->domain = domain;
    atomic_store(&region->refs, 1);
    arena->stats.live_regions++;
    region->bytes = 0;
    account_live(arena, region, bytes);
    keep_ceiling(arena);
    pthread_mutex_unlock(&arena->lock);
    *ret = region;
    return 0;
}

int rr_region_get(struct rr_arena *arena, enum rr_backing backing, uint64_t slot_bytes,
                  uint64_t bytes, uint64_t domain, struct rr_region **ret, struct rr_error *err)
{
    if (bytes > slot_bytes)
        return rr_error_set(err, RR_E_LIMIT, "raise `max` on the edge, up to 1GiB",
                            "a message of %s does not fit a slot of %s", rr_bytes_text(bytes),
                            rr_bytes_text(slot_bytes));
    return get(arena, backing, slot_bytes, bytes, domain, ret, err);
}

struct rr_region *rr_region_ref(struct rr_region *region)
{
    atomic_fetch_add(&region->refs, 1);
    return region;
}

static void pool_give(struct rr_arena *arena, struct rr_region *region)
{
    pool_insert(arena, pool_of(arena, region), region);
    region->put_ns = rr_now_ns();
    keep_ceiling(arena);
}

/* Out of the pool, with the lock held: a warm region that those which were put before @region have
 * done without for long; the last put is the first taken. NULL: there is none, or somebody looked
 * just now. */
static struct rr_region *take_idle(struct rr_arena *arena, struct rr_region *region)
{
    uint64_t idle_ns = arena->options.idle_ns;
    struct rr_region **oldest = NULL;

    if (region->put_ns < arena->next_look_ns)
        return NULL;
    arena->next_look_ns = region->put_ns + idle_ns / RR_IDLE_LOOKS;
    for (struct rr_region **p = &region->next; *p; p = &(*p)->next)
        if ((*p)->warm_bytes && region->put_ns - (*p)->put_ns > idle_ns)
            oldest = p;
    if (!oldest)
        return NULL;
    arena->stats.trims++;
    return pool_remove(arena, oldest);
}

static void put_view(struct rr_region *view)
{
    /* wherever the view's pages are, the range goes back to plain memory */
    if (map_anonymous(view->at, view->map_bytes) < 0)
        rr_log(0, "cannot take a view back: %s", strerror(errno));
    view->at = view->home;
    rr_region_put(rr_take(view->parent));
}

/* Back to the peer, or gone for good. */
static void put_foreign(struct rr_region *region)
{
    if (region->freed && !region->closed)
        region->freed(region->freed_data, region);
    else
        destroy(region);
}

void rr_region_put(struct rr_region *region)
{
    struct rr_region *idle, **last;
    struct rr_arena *arena;

    if (!region || atomic_fetch_sub(&region->refs, 1) > 1)
        return;
    arena = region->arena;
    if (region->backing == RR_VIEW)
        put_view(region);
    else if (region->at != region->home && rr_region_move(region, NULL, 0, NULL) != 0)
        rr_log(0, "cannot take a region back from its window");

    rr_budget_give(budget_of(region), region->bytes);
    pthread_mutex_lock(&arena->lock);
    arena->stats.live_regions--;
    account_live(arena, region, 0);
    if (region->freed || region->forsaken) {
        pthread_mutex_unlock(&arena->lock);
        put_foreign(region);
        return;
    }
    if (region->backing != RR_VIEW) {
        bool always = scrub_always(arena, region->domain);

        /* The owner could write anywhere in the slot: what lies beyond the payload was
         * never accounted and goes back. On an unpopulated range this costs 1 us. */
        discard(region, always ? 0 : rr_align_up(region->warm_bytes, RR_HUGE));
        arena->stats.scrubs += always;
    }
    pool_give(arena, region);
    idle = take_idle(arena, region);
    pthread_mutex_unlock(&arena->lock);
    if (!idle)
        return;
    discard(idle, 0); /* takes long where it is large */
    pthread_mutex_lock(&arena->lock);
    for (last = pool_of(arena, idle); *last; last = &(*last)->next)
        ; /* behind those that are warm, which are taken first */
    pool_insert(arena, last, idle);
    pthread_mutex_unlock(&arena->lock);
}

static void report_copying(struct rr_arena *arena, int error)
{
    if (!atomic_exchange(&arena->copying, true))
        rr_log(1,
               "the kernel refuses to move pages (mremap: %s); hand-offs copy from now on. "
               "Allow mremap in the seccomp profile to get them back",
               strerror(error));
}

void rr_arena_probe(struct rr_arena *arena)
{
    uint8_t *pages = rr_reserve(8192, 4096);

    if (!pages)
        return;
    if (mprotect(pages, 8192, PROT_READ | PROT_WRITE) == 0 &&
        mremap(pages, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, pages + 4096) ==
            MAP_FAILED)
        report_copying(arena, errno);
    munmap(pages, 8192);
}

/* Copying fall-back: same contract, with memcpy in place of the move. */
static int move_by_copy(struct rr_region *region, uint8_t *dst, uint64_t bytes,
                        struct rr_error *err)
{
    uint8_t *src = region->at;

    memcpy(dst, src, bytes);
    if (map_anonymous(src, region->map_bytes) < 0)
        return rr_error_set(err, RR_E_SYSTEM, "see dmesg; free memory mappings",
                            "cannot take a message's memory away from its sender: %s",
                            strerror(errno));
    pthread_mutex_lock(&region->arena->lock);
    region->arena->stats.copies++;
    region->arena->stats.copied_bytes += bytes;
    pthread_mutex_unlock(&region->arena->lock);
    return 0;
}

/* A memfd's home must show the file again before anything is copied into it, and a view's, which is
 * a mere reservation, must be memory. */
static int restore_home(struct rr_region *region)
{
    if (region->backing == RR_VIEW)
        return map_anonymous(region->home, region->map_bytes);
    if (region->backing == RR_MEMFD &&
        mmap(region->home, region->slot_bytes, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED | MAP_NORESERVE, region->fd, 0) == MAP_FAILED)
        return -errno;
    return 0;
}

static int move_refused(struct rr_region *region, uint8_t *dst, uint64_t bytes, int error,
                        struct rr_error *err)
{
    /* EFAULT/EINVAL here would be our own fault, not a policy: never hidden by a copy */
    if (error != EPERM && error != ENOSYS && error != EACCES && error != ENOMEM)
        return rr_error_set(err, RR_E_SYSTEM, "report this with the kernel version",
                            "cannot move a message's pages: %s", strerror(error));
    if (error != ENOMEM)
        report_copying(region->arena, error);
    if (dst == region->home && restore_home(region) < 0)
        return rr_error_set(err, RR_E_SYSTEM, "free memory mappings", "cannot map a message: %s",
                            strerror(errno));
    return move_by_copy(region, dst, bytes, err);
}

int rr_cover(const struct rr_cover *cover, struct rr_error *err)
{
    if (!cover->at || map_anonymous(cover->at, cover->bytes) == 0)
        return 0;
    return rr_error_set(err, RR_E_SYSTEM, "free memory mappings",
                        "cannot take a message's memory away from its sender: %s", strerror(errno));
}

/* @later: out: what is left to be covered */
static int move(struct rr_region *region, uint8_t *to, uint64_t bytes, struct rr_cover *later,
                struct rr_error *err)
{
    uint8_t *from = region->at;
    int r = 0;

    *later = (struct rr_cover){0};
    if (to == from)
        return 0;
    region->warm_bytes =
        rr_min(region->slot_bytes, bytes > region->warm_bytes ? bytes : region->warm_bytes);
    if (atomic_load(&region->arena->copying)) {
        r = move_refused(region, to, bytes, EPERM, err);
    } else if (mremap(from, region->map_bytes, region->map_bytes,
                      MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == MAP_FAILED) {
        r = move_refused(region, to, bytes, errno, err);
    } else {
        atomic_fetch_add(&region->arena->moves, 1);
        /* A home that is left shows the file still, but only to us, and is mapped over when the
         * region comes back. */
        if (region->backing != RR_ANON && from != region->home)
            *later = (struct rr_cover){from, region->map_bytes};
    }
    if (r)
        return r;
    region->at = to;
    region->lent = false;
    return 0;
}

int rr_region_leave(struct rr_region *region, uint64_t bytes, struct rr_cover *ret,
                    struct rr_error *err)
{
    return move(region, region->home, bytes, ret, err);
}

int rr_region_move(struct rr_region *region, void *dst, uint64_t bytes, struct rr_error *err)
{
    struct rr_cover cover;
    int r = move(region, dst ? dst : region->home, bytes, &cover, err);

    return r ? r : rr_cover(&cover, err);
}

int rr_region_view(struct rr_region *region, void *dst, uint64_t bytes, struct rr_region **ret,
                   struct rr_error *err)
{
    struct rr_region *view;
    uint64_t map_bytes = rr_min(rr_align_up(bytes ? bytes : 1, RR_HUGE), region->slot_bytes);
    int r = get(region->arena, RR_VIEW, region->slot_bytes, 0, region->domain, &view, err);
    uint8_t *to;

    if (r)
        return r;
    view->map_bytes = map_bytes;
    /* The pages stay in the memfd; mapped here as well they would count twice as resident. */
    if (rr_region_parked(region) && !region->lent)
        region->lent = madvise(region->home, map_bytes, MADV_DONTNEED) == 0;
    to = dst ? dst : view->home;
    if (mmap(to, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
             region->fd, 0) == MAP_FAILED) {
        r = rr_error_set(err, RR_E_SYSTEM, "raise vm.max_map_count", "cannot map a view: %s",
                         strerror(errno));
        view->map_bytes = 4096; /* put_view() must find a range of its own */
        view->parent = rr_region_ref(region);
        rr_region_put(view);
        return r;
    }
    if (region->collapsed >= map_bytes) /* a few entries, each of which would cost a fault */
        madvise(to, rr_min(map_bytes, VIEW_POPULATE), MADV_POPULATE_READ);
    view->at = to;
    view->parent = rr_region_ref(region);
    *ret = view;
    return 0;
}

uint64_t rr_region_move_pages(struct rr_arena *arena, uint8_t *dst, uint8_t *src, uint64_t len)
{
    if (!len)
        return 0;
    if (!atomic_load(&arena->copying)) {
        if (mremap(src, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, dst) !=
            MAP_FAILED) {
            atomic_fetch_add(&arena->moves, 1);
            return 0;
        }
        if (errno == EPERM || errno == ENOSYS || errno == EACCES)
            report_copying(arena, errno);
    }
    memcpy(dst, src, len);
    madvise(src, len, MADV_DONTNEED);
    pthread_mutex_lock(&arena->lock);
    arena->stats.copies++;
    arena->stats.copied_bytes += len;
    pthread_mutex_unlock(&arena->lock);
    return len;
}

static bool remap(uint8_t *from, uint8_t *to, uint64_t len)
{
    return mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) !=
           MAP_FAILED;
}

/* Returns false with nothing changed, but that @dst's pages may be gone. */
static bool swap(struct rr_arena *arena, uint8_t *dst, uint8_t *src, uint64_t len)
{
    uint8_t *aside;

    if (!arena->scratch)
        arena->scratch = rr_reserve(SCRATCH_BYTES, RR_HUGE);
    if (!arena->scratch || len > SCRATCH_BYTES - RR_HUGE)
        return false;
    aside = arena->scratch + ((uint64_t)(uintptr_t)dst & (RR_HUGE - 1));
    if (!remap(dst, aside, len))
        return false;
    if (!remap(src, dst, len)) {
        remap(aside, dst, len);
        return false;
    }
    if (!remap(aside, src, len)) /* they are lost to the pool, not to anybody's data */
        madvise(aside, len, MADV_DONTNEED);
    return true;
}

uint64_t rr_region_swap_pages(struct rr_arena *arena, uint8_t *dst, uint8_t *src, uint64_t len)
{
    bool done = false;

    if (!len)
        return 0;
    if (!atomic_load(&arena->copying)) {
        pthread_mutex_lock(&arena->swap_lock);
        done = swap(arena, dst, src, len);
        pthread_mutex_unlock(&arena->swap_lock);
    }
    if (!done)
        return rr_region_move_pages(arena, dst, src, len);
    atomic_fetch_add(&arena->moves, 1);
    return 0;
}

uint8_t *rr_region_data(const struct rr_region *region)
{
    return region->at;
}

uint64_t rr_region_resident_bytes(const struct rr_region *region)
{
    uint64_t bytes = region->bytes > region->warm_bytes ? region->bytes : region->warm_bytes;

    return rr_min(rr_align_up(bytes, RR_HUGE), region->slot_bytes);
}

uint64_t rr_region_slot_bytes(const struct rr_region *region)
{
    return region->slot_bytes;
}

enum rr_backing rr_region_backing(const struct rr_region *region)
{
    return region->backing;
}

bool rr_region_parked(const struct rr_region *region)
{
    return region->at == region->home;
}

bool rr_region_shared(const struct rr_region *region)
{
    return region->shared || atomic_load(&region->refs) > 1;
}

void rr_region_idle(struct rr_region *region, bool idle)
{
    struct rr_arena *arena = region->arena;

    if (idle)
        rr_budget_give(budget_of(region), region->bytes);
    pthread_mutex_lock(&arena->lock);
    arena->stats.live_regions += idle ? -1ull : 1;
    arena->stats.warm_regions += idle ? 1 : -1ull;
    if (idle)
        account_live(arena, region, 0);
    pthread_mutex_unlock(&arena->lock);
}

int rr_region_reset(struct rr_region *region)
{
    region->warm_bytes = 0;
    return map_home(region);
}

/* --- regions of other processes ------------------------------------------------------------ */

int rr_region_fd(const struct rr_region *region)
{
    return region->fd;
}

uint32_t rr_region_number(struct rr_region *region)
{
    if (!region->number)
        region->number = 1 + atomic_fetch_add(&region->arena->next_number, 1);
    return region->number;
}

void rr_region_forsake(struct rr_region *region)
{
    region->forsaken = true;
}

bool rr_region_forsaken(const struct rr_region *region)
{
    return region->forsaken;
}

static int check_memfd(int fd, uint64_t slot_bytes, struct rr_error *err)
{
    static const char hint[] = "the peer is broken or hostile; restart it";
    int seals = fcntl(fd, F_GET_SEALS);
    struct statfs fs;
    struct stat st;

    if (slot_bytes != RR_SLOT_SMALL && slot_bytes != RR_SLOT_LARGE)
        return rr_error_set(err, RR_E_INVALID, hint, "a peer lends a slot of %llu bytes",
                            (unsigned long long)slot_bytes);
    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW))
        return rr_error_set(err, RR_E_INVALID, hint,
                            "a peer lends memory that is not sealed against shrinking");
    if ((seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) ||
        (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDWR)
        return rr_error_set(err, RR_E_INVALID, hint, "a peer lends memory that is read-only");
    /* of pages that are reserved ahead, touching one too many is SIGBUS */
    if (fstatfs(fd, &fs) < 0 || fs.f_type == HUGETLBFS_MAGIC)
        return rr_error_set(err, RR_E_INVALID, hint, "a peer lends memory of hugetlbfs");
    if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != slot_bytes)
        return rr_error_set(err, RR_E_INVALID, hint,
                            "a peer lends memory that is not as long as its slot");
    return 0;
}

int rr_region_import(struct rr_arena *arena, int fd, uint64_t slot_bytes,
                     void (*freed)(void *data, struct rr_region *region), void *data,
                     struct rr_region **ret, struct rr_error *err)
{
    struct rr_region *region;
    int r = check_memfd(fd, slot_bytes, err);

    if (r)
        return r;
    r = create(arena, RR_VIEW, slot_bytes, &region); /* with an empty home */
    if (r == 0) {
        region->backing = RR_MEMFD;
        region->fd = fd;
        r = restore_home(region);
        if (r < 0) {
            region->fd = -1;
            destroy(region);
        }
    }
    if (r < 0)
        return rr_error_set(err, RR_E_SYSTEM, "raise the limits on address space and mappings",
                            "cannot map a peer's region: %s", strerror(-r));
    region->freed = freed;
    region->freed_data = data;
    *ret = region;
    return 0;
}

void rr_region_borrow(struct rr_region *region, uint64_t bytes, bool shared)
{
    uint64_t end = rr_min(rr_align_up(bytes, RR_HUGE), region->slot_bytes);
    struct rr_arena *arena = region->arena;

    if (!shared && end > region->mapped_bytes) {
        /* once: what is mapped stays so while it is moved back and forth */
        madvise(region->home + region->mapped_bytes, end - region->mapped_bytes,
                MADV_POPULATE_WRITE);
        region->mapped_bytes = end;
    }
    region->shared = shared;
    atomic_store(&region->refs, 1);
    pthread_mutex_lock(&arena->lock);
    arena->stats.live_regions++;
    region->bytes = 0;
    account_live(arena, region, bytes);
    pthread_mutex_unlock(&arena->lock);
}

void rr_region_close(struct rr_region *region)
{
    region->closed = true;
    if (atomic_load(&region->refs) == 0)
        destroy(region);
}

/* --- background: warming, collapse, pressure ------------------------------------------- */

static void warm_region(struct rr_arena *arena, struct rr_region *region, uint64_t bytes)
{
    uint64_t done = region->warm_bytes;

    while (done < bytes && !arena->stop) {
        uint64_t n = rr_min(WARM_STEP, bytes - done);

        if (madvise(region->home + done, rr_align_up(n, RR_HUGE), MADV_POPULATE_WRITE) < 0)
            break;
        done += n;
    }
    region->warm_bytes = done;
    if (region->backing != RR_MEMFD)
        return;
    for (done = region->collapsed; done + RR_HUGE <= rr_align_up(bytes, RR_HUGE) && !arena->stop;) {
        if (madvise(region->home + done, RR_HUGE, MADV_COLLAPSE) < 0)
            break; /* no huge page free: 4 KiB pages do as well, slower */
        done += RR_HUGE;
    }
    pthread_mutex_lock(&arena->lock);
    arena->stats.collapsed_bytes += done - region->collapsed;
    pthread_mutex_unlock(&arena->lock);
    region->collapsed = done;
}

static void warm_job(struct rr_arena *arena, const struct warm_job *job)
{
    struct rr_region *held = NULL, *region;
    struct rr_error err;

    for (unsigned int i = 0; i < job->count && !arena->stop; i++) {
        if (get(arena, job->backing, job->slot_bytes, 0, 0, &region, &err) != 0)
            break;
        warm_region(arena, region, job->bytes);
        region->next = held;
        held = region;
    }
    while ((region = held)) {
        held = region->next;
        rr_region_put(region);
    }
}

static void *warmer_main(void *data)
{
    struct rr_arena *arena = data;

    pthread_mutex_lock(&arena->lock);
    while (!arena->stop) {
        struct warm_job job;

        if (!arena->n_jobs) {
            arena->busy = false;
            pthread_cond_broadcast(&arena->idle);
            pthread_cond_wait(&arena->wake, &arena->lock);
            continue;
        }
        arena->busy = true;
        job = arena->jobs[--arena->n_jobs];
        pthread_mutex_unlock(&arena->lock);
        warm_job(arena, &job);
        pthread_mutex_lock(&arena->lock);
    }
    arena->busy = false;
    pthread_cond_broadcast(&arena->idle);
    pthread_mutex_unlock(&arena->lock);
    return NULL;
}

int rr_arena_warm(struct rr_arena *arena, enum rr_backing backing, uint64_t slot_bytes,
                  uint64_t bytes, unsigned int count)
{
    int r = 0;

    pthread_mutex_lock(&arena->lock);
    if (!arena->warmer_runs)
        arena->warmer_runs = pthread_create(&arena->warmer, NULL, warmer_main, arena) == 0;
    if (!arena->warmer_runs || arena->n_jobs == MAX_JOBS) {
        r = -EAGAIN;
    } else {
        arena->jobs[arena->n_jobs++] =
            (struct warm_job){backing, slot_bytes, rr_min(bytes, slot_bytes), count};
        arena->busy = true;
        pthread_cond_signal(&arena->wake);
    }
    pthread_mutex_unlock(&arena->lock);
    return r;
}

void rr_arena_settle(struct rr_arena *arena)
{
    pthread_mutex_lock(&arena->lock);
    while (arena->warmer_runs && !arena->stop && (arena->busy || arena->n_jobs))
        pthread_cond_wait(&arena->idle, &arena->lock);
    pthread_mutex_unlock(&arena->lock);
}

/* Less than a twentieth of the memory is left, what the page cache would give up included. */
static bool memory_is_short(void)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = fopen("/proc/meminfo", "re");
    unsigned long long total = 0, available = ULLONG_MAX;
    char line[128];

    while (f && fgets(line, sizeof(line), f)) {
        if (strncmp(line, "MemTotal:", 9) == 0)
            total = strtoull(line + 9, NULL, 10);
        if (strncmp(line, "MemAvailable:", 13) == 0)
            available = strtoull(line + 13, NULL, 10);
    }
    return available < total / 20;
}

/* A descriptor of ours that gets POLLPRI under pressure; -1 when there is none. */
static int open_pressure(const struct rr_arena *arena)
{
    /* 10 % of 2 s, the shortest window that the kernel grants to all users */
    static const char trigger[] = "some 200000 2000000";
    int fd;

    if (arena->options.pressure_fd > 0)
        return fcntl(arena->options.pressure_fd, F_DUPFD_CLOEXEC, 3);
    fd = open("/proc/pressure/memory", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0 && write(fd, trigger, sizeof(trigger)) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* PSI tells of pressure at once; where the kernel has none, free memory is looked at each second.
 */
static void *pressure_main(void *data)
{
    struct rr_arena *arena = data;
    int psi = open_pressure(arena);

    for (;;) {
        struct pollfd fds[2] = {{.fd = arena->stop_pipe[0], .events = POLLIN},
                                {.fd = psi, .events = POLLPRI}};
        int n = poll(fds, 2, psi >= 0 ? -1 : 1000);

        if (n < 0 && errno != EINTR)
            break;
        if (fds[0].revents)
            break;
        if ((n == 0 && memory_is_short()) || (n > 0 && (fds[1].revents & POLLPRI))) {
            uint64_t freed = rr_arena_trim(arena, 0);

            if (freed)
                rr_log(2, "memory pressure: gave back %s of warm regions", rr_bytes_text(freed));
        }
        if (n > 0 && (fds[1].revents & POLLERR)) {
            close(psi);
            psi = -1;
        }
    }
    if (psi >= 0)
        close(psi);
    return NULL;
}
