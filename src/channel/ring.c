/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each side reads of the other's is one index, one flag and, as consumer, a
 * header per record. Each is loaded once into a local variable, checked there, and
 * the checked value is what is used. What a side needs to know of itself it keeps
 * in private memory and never reads back.
 *
 * No wake-up is lost, because each side first stores what it has to say and then
 * loads what the other has said, all four sequentially consistent:
 *
 *      consumer, before it sleeps        producer, after a record
 *        sleeps = 1 or 2                   tail = new
 *        load tail: still empty? sleep     load sleeps: not 0? wake it
 *
 * These operations have one order that both agree on. If the producer's load missed
 * it, then it comes before the store to `sleeps`, so `tail = new` comes before the load of
 * the tail, and the consumer does not sleep. The same with head and `waits` for a
 * producer that waits for room. A commit itself is a plain release store, so that a
 * batch pays for one barrier: rr_ring_must_wake() stores the tail once more. (A
 * fence would do, but ThreadSanitizer does not know fences.)
 */
#include "channel/ring.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"

#define LINE 64u
#define OWN_LINES 128u /* lines are fetched in pairs */
#define HEADER_BYTES 8u
#define GUARD_BYTES 4096u
#define MASK (RR_RING_BYTES - 1)
#define RESERVED_BYTES (2u * GUARD_BYTES + RR_RING_HEAD_BYTES + 2u * RR_RING_BYTES)
#define MARK 0x52696e67u

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2,
               "words between processes need no lock");
_Static_assert((RR_RING_BYTES & MASK) == 0, "indexes are cut with a mask");
_Static_assert(2 * (RR_RING_MAX_RECORD + LINE) <= RR_RING_BYTES,
               "one of the longest can be written while one is read");

/* On lines of its own: two ends in one process belong to two threads. */
struct rr_ring {
    uint8_t *map;     /* guard, words, records, the same records again, guard */
    uint8_t *words;   /* shared */
    uint8_t *records; /* shared; a record may run over the end into the second mapping */
    uint64_t own;     /* our index: the producer's tail, the consumer's head */
    uint64_t seen;    /* the other's, as last loaded and found good */
    uint32_t step;    /* bytes that the reserved or peeked record takes; 0: there is none */
    uint32_t len;     /* of its body */
    enum rr_ring_side side;
    bool broken;
    int fd; /* owned */
};

static _Atomic uint64_t *index_word(const struct rr_ring *ring, enum rr_ring_side side)
{
    return (_Atomic uint64_t *)(void *)(ring->words +
                                        (side == RR_RING_PRODUCER ? RR_RING_TAIL : RR_RING_HEAD));
}

static _Atomic uint32_t *flag_word(const struct rr_ring *ring, enum rr_ring_word word)
{
    return (_Atomic uint32_t *)(void *)(ring->words + word);
}

/* The header of the record at @index. */
static _Atomic uint64_t *header_word(const struct rr_ring *ring, uint64_t index)
{
    return (_Atomic uint64_t *)(void *)(ring->records + ((index - HEADER_BYTES) & MASK));
}

/* Tells a header from what else may lie there: zeroes, old headers, bytes of a body. */
static uint32_t mark_of(uint64_t index)
{
    return (uint32_t)(index / LINE) ^ MARK;
}

/* Bytes that a record with @len bytes of body takes: with the header of the next. */
static uint32_t step_of(uint32_t len)
{
    return (uint32_t)rr_align_up((uint64_t)len + HEADER_BYTES, LINE);
}

static uint64_t used(const struct rr_ring *ring)
{
    return ring->side == RR_RING_PRODUCER ? ring->own - ring->seen : ring->seen - ring->own;
}

/*
 * Load the other's index. A head may only go from where it was seen up to our tail, a
 * tail from where it was seen up to a ring's length beyond our head. Both fit in one
 * comparison of differences, which are right modulo 2^64 whatever was loaded.
 */
static void look(struct rr_ring *ring, memory_order order)
{
    bool producer = ring->side == RR_RING_PRODUCER;
    uint64_t v = atomic_load_explicit(
        index_word(ring, producer ? RR_RING_CONSUMER : RR_RING_PRODUCER), order);
    uint64_t moved = v - ring->seen;
    uint64_t most = producer ? used(ring) : RR_RING_BYTES - used(ring);

    if (moved > most || v % LINE)
        ring->broken = true;
    else
        ring->seen = v;
}

/* Publish our index. */
static void store_own(struct rr_ring *ring, memory_order order)
{
    atomic_store_explicit(index_word(ring, ring->side), ring->own, order);
}

/* --- making and mapping ----------------------------------------------------------------------- */

/*
 * All of the range is ours from the first call on; the file is then mapped over its
 * middle, so that no other thread's mapping can land in it. 0 or negative errno.
 */
static int map_file(struct rr_ring *ring, int fd)
{
    static const struct {
        size_t at, bytes;
        off_t from;
    } parts[] = {{GUARD_BYTES, RR_RING_FILE_BYTES, 0},
                 {GUARD_BYTES + RR_RING_FILE_BYTES, RR_RING_BYTES, RR_RING_HEAD_BYTES}};
    uint8_t *p =
        mmap(NULL, RESERVED_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        return -errno;
    for (size_t i = 0; i < RR_ARRAY_LEN(parts); i++)
        if (mmap(p + parts[i].at, parts[i].bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                 fd, parts[i].from) == MAP_FAILED) {
            int r = -errno;

            munmap(p, RESERVED_BYTES);
            return r;
        }
    ring->map = p;
    ring->words = p + GUARD_BYTES;
    ring->records = ring->words + RR_RING_HEAD_BYTES;
    return 0;
}

/* An end over @fd, which it does not own yet. 0 or negative errno. */
static int new_end(int fd, enum rr_ring_side side, struct rr_ring **ret)
{
    struct rr_ring *ring = aligned_alloc(OWN_LINES, rr_align_up(sizeof(*ring), OWN_LINES));
    int r;

    if (!ring)
        return -ENOMEM;
    *ring = (struct rr_ring){.side = side, .fd = -1};
    r = map_file(ring, fd);
    if (r != 0) {
        free(ring);
        return r;
    }
    *ret = ring;
    return 0;
}

static int map_error(struct rr_error *err, int r)
{
    return rr_error_set(err, RR_E_SYSTEM,
                        "raise the limits on address space, mappings and descriptors",
                        "cannot map a ring: %s", strerror(-r));
}

int rr_ring_new(enum rr_ring_side side, struct rr_ring **ret, struct rr_error *err)
{
    int fd = memfd_create("roadrunner-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING), r;
    struct rr_ring *ring;

    if (fd < 0 || ftruncate(fd, RR_RING_FILE_BYTES) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        r = rr_error_set(err, RR_E_SYSTEM, "raise the limit on descriptors; free some memory",
                         "cannot make a memfd for a ring: %s", strerror(errno));
        rr_close_cleanup(&fd);
        return r;
    }
    r = new_end(fd, side, &ring);
    if (r != 0) {
        close(fd);
        return map_error(err, r);
    }
    ring->fd = fd;
    *ret = ring;
    return 0;
}

static int refuse(struct rr_error *err, const char *what)
{
    return rr_error_set(err, RR_E_INVALID, "drop the peer; are both of one version?",
                        "the descriptor that the peer sent is no ring: %s", what);
}

int rr_ring_attach(int fd, enum rr_ring_side side, struct rr_ring **ret, struct rr_error *err)
{
    /* Only memfds have these seals: any other file of tmpfs is sealed against sealing. */
    int seals = fcntl(fd, F_GET_SEALS), flags = fcntl(fd, F_GETFL), r;
    struct rr_ring *ring;
    struct stat st;

    if (seals < 0 || flags < 0)
        return refuse(err, "it is not a memfd");
    if ((seals & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW))
        return refuse(err, "its size is not sealed");
    if ((flags & O_ACCMODE) != O_RDWR)
        return refuse(err, "it is not open for reading and writing");
    if (fstat(fd, &st) < 0 || st.st_size != (off_t)RR_RING_FILE_BYTES)
        return refuse(err, "it has another size");
    r = new_end(fd, side, &ring);
    if (r == -EPERM || r == -EACCES)
        return refuse(err, "it is sealed against writing");
    if (r != 0)
        return map_error(err, r);
    ring->fd = fd;
    *ret = ring;
    return 0;
}

int rr_ring_fd(const struct rr_ring *ring)
{
    return ring->fd;
}

void rr_ring_free(struct rr_ring *ring)
{
    if (!ring)
        return;
    munmap(ring->map, RESERVED_BYTES);
    if (ring->fd >= 0)
        close(ring->fd);
    free(ring);
}

uint64_t rr_ring_used_bytes(const struct rr_ring *ring)
{
    bool producer = ring->side == RR_RING_PRODUCER;
    uint64_t v = atomic_load_explicit(
        index_word(ring, producer ? RR_RING_CONSUMER : RR_RING_PRODUCER), memory_order_relaxed);

    return rr_min(producer ? ring->own - v : v - ring->own, RR_RING_BYTES);
}

bool rr_ring_broken(const struct rr_ring *ring)
{
    return ring->broken;
}

/* --- the producer's end ----------------------------------------------------------------------- */

static bool fits(const struct rr_ring *ring, uint32_t step)
{
    return !ring->broken && step <= RR_RING_BYTES - used(ring);
}

void *rr_ring_reserve(struct rr_ring *ring, uint32_t len)
{
    uint32_t step;

    assert(ring->side == RR_RING_PRODUCER && len <= RR_RING_MAX_RECORD);
    step = step_of(len);
    ring->step = 0;
    if (!fits(ring, step)) {
        look(ring, memory_order_acquire);
        if (!fits(ring, step))
            return NULL;
    }
    ring->step = step;
    ring->len = len;
    return ring->records + (ring->own & MASK);
}

void rr_ring_commit(struct rr_ring *ring)
{
    uint64_t header = (uint64_t)mark_of(ring->own) << 32 | ring->len;

    assert(ring->side == RR_RING_PRODUCER && ring->step);
    /* These bytes are of no body, and the header that they were was released long ago. */
    atomic_store_explicit(header_word(ring, ring->own), header, memory_order_relaxed);
    ring->own += ring->step;
    ring->step = 0;
    store_own(ring, memory_order_release);
}

/* How a consumer sleeps. */
enum { AWAKE, AT_DOORBELL, AT_WORD };

/* Two at once cannot both take it, and a wake-up more than needed does no harm. */
static uint32_t take_flag(_Atomic uint32_t *flag)
{
    return atomic_exchange_explicit(flag, 0, memory_order_acq_rel);
}

bool rr_ring_must_wake(struct rr_ring *ring)
{
    _Atomic uint32_t *flag = flag_word(ring, RR_RING_CONSUMER_SLEEPS);
    uint32_t how;

    assert(ring->side == RR_RING_PRODUCER);
    store_own(ring, memory_order_seq_cst); /* see the head of this file */
    if (atomic_load_explicit(flag, memory_order_seq_cst) == AWAKE)
        return false;
    how = take_flag(flag);
    if (how == AT_WORD)
        rr_wait_wake(flag);
    return how != AWAKE && how != AT_WORD;
}

bool rr_ring_wait_space(struct rr_ring *ring, uint32_t len)
{
    _Atomic uint32_t *flag = flag_word(ring, RR_RING_PRODUCER_WAITS);
    uint32_t step;

    assert(ring->side == RR_RING_PRODUCER && len <= RR_RING_MAX_RECORD);
    step = step_of(len);
    if (fits(ring, step))
        return false;
    atomic_store_explicit(flag, step, memory_order_seq_cst);
    look(ring, memory_order_seq_cst);
    if (!fits(ring, step))
        return true;
    atomic_store_explicit(flag, 0, memory_order_relaxed);
    return false;
}

/* --- the consumer's end ----------------------------------------------------------------------- */

/* Check the header of the record at our head; there is one. */
static bool read_header(struct rr_ring *ring)
{
    uint64_t header =
        atomic_load_explicit(header_word(ring, ring->own), memory_order_relaxed); /* once */
    uint32_t len = (uint32_t)header;

    if (header >> 32 != mark_of(ring->own) || len > RR_RING_MAX_RECORD || step_of(len) > used(ring))
        return false;
    ring->len = len;
    ring->step = step_of(len);
    return true;
}

int rr_ring_peek(struct rr_ring *ring, const void **ret, uint32_t *ret_len)
{
    assert(ring->side == RR_RING_CONSUMER);
    if (!ring->broken && !ring->step) {
        if (used(ring) == 0)
            look(ring, memory_order_acquire);
        if (!ring->broken && used(ring) == 0)
            return -EAGAIN;
        if (!ring->broken)
            ring->broken = !read_header(ring);
    }
    if (ring->broken)
        return -EPROTO;
    *ret = ring->records + (ring->own & MASK);
    *ret_len = ring->len;
    return 0;
}

void rr_ring_release(struct rr_ring *ring)
{
    assert(ring->side == RR_RING_CONSUMER && ring->step);
    ring->own += ring->step;
    ring->step = 0;
    store_own(ring, memory_order_release);
}

bool rr_ring_sleep(struct rr_ring *ring, struct futex_waitv *word)
{
    _Atomic uint32_t *flag = flag_word(ring, RR_RING_CONSUMER_SLEEPS);
    uint32_t how = word ? AT_WORD : AT_DOORBELL;

    assert(ring->side == RR_RING_CONSUMER);
    if (ring->broken || used(ring))
        return false;
    atomic_store_explicit(flag, how, memory_order_seq_cst);
    look(ring, memory_order_seq_cst);
    if (!ring->broken && used(ring) == 0) {
        if (word)
            *word = rr_wait_word(flag, how);
        return true;
    }
    atomic_store_explicit(flag, 0, memory_order_relaxed);
    return false;
}

void rr_ring_awake(struct rr_ring *ring)
{
    assert(ring->side == RR_RING_CONSUMER);
    atomic_store_explicit(flag_word(ring, RR_RING_CONSUMER_SLEEPS), 0, memory_order_relaxed);
}

bool rr_ring_must_wake_producer(struct rr_ring *ring)
{
    _Atomic uint32_t *flag = flag_word(ring, RR_RING_PRODUCER_WAITS);
    uint32_t step;

    assert(ring->side == RR_RING_CONSUMER);
    store_own(ring, memory_order_seq_cst);
    step = atomic_load_explicit(flag, memory_order_seq_cst);
    if (!step)
        return false;
    /* It stored its tail before it announced: this is the tail at which it waits. */
    look(ring, memory_order_acquire);
    if (!ring->broken && step > RR_RING_BYTES - used(ring))
        return false;
    return take_flag(flag) != 0;
}
