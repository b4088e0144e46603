/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine: linear memories of our own, which never move and are pooled. Knows nothing of Wasmtime.
 *
 *   0 .. open_bytes          heap, stack, data: readable and writable
 *     .. 1 GiB               closed: the guest traps there, see rr_linear_enter() for the host
 *   1 GiB .. 3 GiB           windows, once they were opened
 *   3 GiB .. high_bytes      heap that grew after that
 *     .. 4 GiB and a guard   closed
 *
 * To wipe a memory for the next guest, the pages that this one touched must be known. To have the
 * kernel drop all of them costs three system calls that interrupt the other threads' CPUs. So a
 * memory whose guests keep to a few pages is fenced: the pages they have used before stay open and
 * are zeroed, all others are closed. Who touches one of those is let in, by the handler of SIGSEGV,
 * and the fence is gone until it has been learnt anew.
 */
#ifndef RR_ENGINE_LINEAR_H
#define RR_ENGINE_LINEAR_H

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/budget.h"
#include "base/util.h"

#define RR_LINEAR_BYTES (4 * RR_GIB)
#define RR_LINEAR_GUARD (64 * RR_MIB)

#define RR_LINEAR_MAX_KEPT 8
#define RR_LINEAR_MAX_RUNS 8

struct rr_linear_run {
    uint64_t begin, end;
};

struct rr_linear_pool {
    pthread_mutex_t lock;
    struct rr_linear *first; /* the last put is the first */
    size_t n;
    struct rr_budget *budget; /* borrowed: what guests may have; NULL: no matter */
    uint64_t idle_ns; /* one that was not wanted for so long, while others were, is given back; 0: a
                         minute */
    uint64_t next_look_ns;
};

/* What rr_linear_get() and rr_linear_grow() say when the budget has no more. */
extern const char rr_linear_over_budget[];

struct rr_linear {
    struct rr_linear *next;
    struct rr_linear_pool *pool;
    uint64_t put_ns;
    uint8_t *base;
    uint64_t size_bytes; /* what the guest sees */
    uint64_t open_bytes, high_bytes, initial_bytes, limit_bytes;
    uint64_t below_bytes;                          /* size when the windows were opened */
    uint64_t wanted_bytes;                         /* and did not get from the budget */
    uint64_t stray_bytes;                          /* see rr_linear_weigh() */
    struct rr_linear_run runs[RR_LINEAR_MAX_RUNS]; /* pages of the heap that stay, zeroed */
    struct rr_linear_run kept[RR_LINEAR_MAX_KEPT]; /* the same in the windows: small messages */
    uint64_t fenced_bytes;                         /* open_bytes then */
    size_t n_runs, n_kept;                         /* both in their order */
    const void *owner;                             /* whose guests used it last */
    unsigned int n_uses;                           /* of this owner's, without a fence */
    unsigned int n_open, n_fenced, patience;       /* in a row; until a fence is tried */
    volatile sig_atomic_t fenced;                  /* all but runs and kept is closed */
    volatile sig_atomic_t strayed;                 /* this guest went over the fence */
    bool may_fence, clean, wide;                   /* wide: it got more than could be kept */
    bool mapped;                                   /* the windows are readable and writable */
    bool opened;                                   /* by this guest */
    bool opening; /* the next growth is to the end of the windows */
    bool limit_hit;
    volatile sig_atomic_t gap_touched;
};

/**
 * rr_linear_get() - a memory of @minimum bytes, all zero
 * @owner:   what its guest is an instance of; only compared
 * @windows: a guest that opens windows is expected: one whose windows are mapped saves time
 * @fence:   whoever touches it is between rr_linear_enter() and rr_linear_leave(), or has called
 *           rr_linear_touch(), and no system call is given an address in it
 * @ret:     out, owned: rr_linear_put()
 *
 * Return: NULL, or what is wrong, a constant.
 */
const char *rr_linear_get(struct rr_linear_pool *pool, uint64_t minimum, uint64_t limit_bytes,
                          const void *owner, bool windows, bool fence, struct rr_linear **ret);
/* Wipe it and pool it. */
void rr_linear_put(struct rr_linear *l);
void rr_linear_pool_free(struct rr_linear_pool *pool);
/* NULL, or what is wrong, a constant. */
const char *rr_linear_grow(struct rr_linear *l, uint64_t size_bytes);
/* [@begin, @end) in the windows holds a small message: its pages are to stay, and be zeroed. */
void rr_linear_touch(struct rr_linear *l, uint64_t begin, uint64_t end);
/* Something is to be mapped into the windows. */
void rr_linear_unfence(struct rr_linear *l);
/* Take from the budget, too, what this guest has written into the windows beside what is mapped
 * there, which has been taken: @mapped_bytes. False: there is not enough. Some 0.1 ms. */
bool rr_linear_weigh(struct rr_linear *l, uint64_t mapped_bytes);
/* What counts as heap: all but the windows and the gap below them. */
uint64_t rr_linear_heap_bytes(const struct rr_linear *l);

/*
 * A pointer that a guest passes to the host may point into the gap below the windows, which is part
 * of its memory. Host code on this thread that follows it finds zeroes there, and no crash.
 * Return: the memory entered before, for rr_linear_leave().
 */
struct rr_linear *rr_linear_enter(struct rr_linear *l);
void rr_linear_leave(struct rr_linear *before);
/* Once per process, before the engine installs its own handler, which passes on what is not its. */
void rr_linear_catch_faults(void);
/* And after it, for the engine takes all faults of guests for its own. */
void rr_linear_catch_strays(void);

#endif
