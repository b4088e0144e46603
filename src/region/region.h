/* SPDX-License-Identifier: Apache-2.0 */
/*
 * region: arenas of warm, pooled, slot-aligned memory and the hand-off that
 * moves page tables between owners. May call base only; knows nothing of Wasm.
 *
 * A region always has a home: an address range of its own in the arena. Its
 * pages are either at home (parked) or at one window that the caller named.
 * Kernel behaviour this leans on, each pinned by a test in test_region.c:
 *  - mremap() of a whole 1 GiB-aligned GiB relinks one page-table page;
 *  - MREMAP_DONTUNMAP leaves the old range mapped and empty, so there is no
 *    moment at which another thread's mmap() could land in it;
 *  - a MAP_SHARED or file-private old range would still read the file, so it is
 *    replaced by anonymous memory before the hand-off returns.
 */
#ifndef RR_REGION_REGION_H
#define RR_REGION_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/budget.h"
#include "base/error.h"

#define RR_HUGE (2ull << 20)

enum rr_backing {
    RR_ANON,  /* private anonymous, huge pages; one owner at a time */
    RR_MEMFD, /* sealed memfd; can lend copy-on-write views */
    RR_VIEW   /* copy-on-write view of a memfd region */
};

enum rr_scrub {
    RR_SCRUB_DOMAIN, /* zero when a region changes trust domain (default) */
    RR_SCRUB_ALWAYS  /* zero whenever a region goes back to the pool */
};

struct rr_arena_options {
    uint64_t ceiling_bytes; /* pooled warm bytes kept, if the budget leaves them; more is given
                               back; 0 = 1/4 of RAM */
    enum rr_scrub scrub;    /* of domains that rr_arena_set_scrub() was not told about */
    uint64_t idle_ns; /* a warm region that was not wanted for so long, while others were, is given
                         back; 0: a minute */
    struct rr_budget *budget; /* borrowed: what regions of ours that are live take; NULL: none */
    bool watch_pressure;      /* trim when the kernel reports memory pressure */
    int pressure_fd; /* borrowed; POLLPRI on it means pressure; 0: the kernel's own report */
};

struct rr_arena_stats {
    uint64_t live_bytes, live_regions; /* handed out and not put back */
    uint64_t warm_bytes, warm_regions; /* pooled */
    uint64_t peak_bytes;               /* largest live_bytes seen */
    uint64_t moves, copies, copied_bytes, scrubs, trims, collapsed_bytes;
    bool copying; /* the kernel refused a move: hand-offs copy */
};

struct rr_arena;
struct rr_region;

/* Create and destroy; every region must have been put back before rr_arena_free(). */
int rr_arena_new(const struct rr_arena_options *options, struct rr_arena **ret,
                 struct rr_error *err);
void rr_arena_free(struct rr_arena *arena);
void rr_arena_stats(struct rr_arena *arena, struct rr_arena_stats *ret);
/* Find out now whether the kernel refuses to move pages. */
void rr_arena_probe(struct rr_arena *arena);
/* In a child after fork(): its threads are gone, its locks as they were. */
void rr_arena_after_fork(struct rr_arena *arena);
/* Give pooled pages back until at most @keep_bytes stay warm; returns the bytes given back. */
uint64_t rr_arena_trim(struct rr_arena *arena, uint64_t keep_bytes);
/* The scrub policy of one trust domain, from now on. 0 or -ENOMEM. */
int rr_arena_set_scrub(struct rr_arena *arena, uint64_t domain, enum rr_scrub scrub);
/* Ask the background thread for @count pooled regions with @bytes populated in each. */
int rr_arena_warm(struct rr_arena *arena, enum rr_backing backing, uint64_t slot_bytes,
                  uint64_t bytes, unsigned int count);
/* Wait until the background thread has nothing left to do. */
void rr_arena_settle(struct rr_arena *arena);

/**
 * rr_region_get() - take a region from the pool, or make one
 * @backing:    RR_ANON or RR_MEMFD
 * @slot_bytes: 64 MiB or 1 GiB
 * @bytes:      what will be used of it, for the accounts; <= @slot_bytes
 * @domain:     trust domain; pages that served another are zeroed first
 * @ret:        out, owned: rr_region_put()
 *
 * Context: any thread. Contents are unspecified unless zeroed as above.
 * Return: 0, RR_E_LIMIT or RR_E_SYSTEM.
 */
int rr_region_get(struct rr_arena *arena, enum rr_backing backing, uint64_t slot_bytes,
                  uint64_t bytes, uint64_t domain, struct rr_region **ret, struct rr_error *err);
/* Back to the pool, from wherever the pages are; NULL is allowed. */
void rr_region_put(struct rr_region *region);
/* A further reference to a memfd region whose views are lent; dropped by rr_region_put(). */
struct rr_region *rr_region_ref(struct rr_region *region);

/**
 * rr_region_move() - hand the pages over to @dst
 * @dst:   a range of slot size, slot-aligned, whose pages the caller gives up;
 *         NULL moves the region home
 * @bytes: how much of it is payload (all that a copying fall-back has to copy)
 *
 * When it returns, a window that it left is mapped, anonymous and reads as zero.
 *
 * Return: 0 or RR_E_SYSTEM; on failure the region has not moved.
 */
int rr_region_move(struct rr_region *region, void *dst, uint64_t bytes, struct rr_error *err);
/* What a window still shows after its pages were taken, until rr_cover(). */
struct rr_cover {
    uint8_t *at; /* NULL: nothing */
    uint64_t bytes;
};
/**
 * rr_region_leave() - as rr_region_move(region, NULL, ...), but the window is covered later
 * @ret: to be given to rr_cover() before its owner runs again
 *
 * What remains to be done does not hold up whoever waits for the region.
 */
int rr_region_leave(struct rr_region *region, uint64_t bytes, struct rr_cover *ret,
                    struct rr_error *err);
int rr_cover(const struct rr_cover *cover, struct rr_error *err);
/**
 * rr_region_view() - lend a private copy-on-write view of a parked memfd region
 * @dst:   slot-aligned range whose pages the caller gives up, or NULL for the view's own home
 * @bytes: payload; the view covers it rounded up to 2 MiB
 * @ret:   out, owned: rr_region_put(); holds a reference to @region
 */
int rr_region_view(struct rr_region *region, void *dst, uint64_t bytes, struct rr_region **ret,
                   struct rr_error *err);

/* --- regions of other processes ------------------------------------------------------------ */

/* The memfd of a region, borrowed, to lend to a peer; -1: it has none. */
int rr_region_fd(const struct rr_region *region);
/* Distinct for each region of an arena; given when it is first asked for, from 1. */
uint32_t rr_region_number(struct rr_region *region);
/* A peer that held it has died, and somebody it lent it to may use it still: it is not to be
 * pooled when it is put back, but unmapped. */
void rr_region_forsake(struct rr_region *region);
bool rr_region_forsaken(const struct rr_region *region);

/**
 * rr_region_import() - adopt a memfd that a peer lends
 * @fd:         moved on success, else still the caller's
 * @slot_bytes: what the peer says; untrusted
 * @freed:      called with @data when the last reference is put, with the pages at home: give it
 *              back to the peer; the region stays ours to rr_region_borrow() again
 * @ret:        out, owned: rr_region_close(); idle until it is borrowed
 *
 * The memfd must carry F_SEAL_SHRINK|F_SEAL_GROW and be as long as its slot, or the peer
 * could turn our loads into SIGBUS.
 *
 * Context: any thread. Return: 0, RR_E_INVALID when the peer broke the contract, RR_E_SYSTEM.
 */
int rr_region_import(struct rr_arena *arena, int fd, uint64_t slot_bytes,
                     void (*freed)(void *data, struct rr_region *region), void *data,
                     struct rr_region **ret, struct rr_error *err);
/**
 * rr_region_borrow() - the peer has handed over what is in it
 * @bytes:  of payload, from the slot's start; <= the slot
 * @shared: others read the same: changes must go to a view (rr_region_shared() says so)
 *
 * Maps what was not mapped before. One reference: rr_region_put().
 */
void rr_region_borrow(struct rr_region *region, uint64_t bytes, bool shared);
/* Unmap an idle imported region; one that is in use goes with its last reference. */
void rr_region_close(struct rr_region *region);

/**
 * rr_region_move_pages() - move whole pages between a region and any other range
 * @src, @dst: congruent modulo @len's alignment; both mapped private anonymous
 * Moves without leaving a hole; falls back to copying. Return: bytes copied, or 0.
 */
uint64_t rr_region_move_pages(struct rr_arena *arena, uint8_t *dst, uint8_t *src, uint64_t len);

/**
 * rr_region_swap_pages() - the same, and what was at @dst comes to @src
 *
 * Pages that are replaced need not be freed, nor faulted in again. Where either range is of
 * several mappings it falls back to rr_region_move_pages(). Return: bytes copied.
 */
uint64_t rr_region_swap_pages(struct rr_arena *arena, uint8_t *dst, uint8_t *src, uint64_t len);

uint8_t *rr_region_data(const struct rr_region *region); /* where the pages are now */
/* What of it may be resident: at least what its owner asked for. */
uint64_t rr_region_resident_bytes(const struct rr_region *region);
uint64_t rr_region_slot_bytes(const struct rr_region *region);
enum rr_backing rr_region_backing(const struct rr_region *region);
bool rr_region_parked(const struct rr_region *region);
/* Do others hold a reference or a view? */
bool rr_region_shared(const struct rr_region *region);
/* Make a parked anonymous region one mapping again after rr_region_move_pages() patched it; what
 * it held is gone. 0 or negative errno. */
int rr_region_reset(struct rr_region *region);
/* Account a region that its holder keeps for later as warm, or as live again. */
void rr_region_idle(struct rr_region *region, bool idle);
/* Change the accounted size: before its owner uses more than it asked for, or once it is known to
 * be less. 0, or RR_E_SYSTEM beyond the budget, and then it stays as it was. */
int rr_region_set_bytes(struct rr_region *region, uint64_t bytes, struct rr_error *err);

/* Reserve @bytes of address space aligned to @align; PROT_NONE. NULL when refused. */
uint8_t *rr_reserve(uint64_t bytes, uint64_t align);

#endif
