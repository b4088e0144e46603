/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel: moves messages between the processes of one trust domain. May call
 * base and region only.
 *
 * ring: records of any length from one producer to one consumer, in a sealed
 * memfd that both map. No system call is made once it is there, but to wake: whoever
 * sleeps says so in the ring, and the other wakes a futex there, or rings a doorbell
 * of the caller's choice.
 *
 * The other side is hostile until proven otherwise: it has the whole ring
 * mapped writable. At worst it makes records garbage, the ring full or empty
 * for ever, or broken (-EPROTO). It cannot make these functions loop, fault or
 * leave the mapping, which has a page without access on either side.
 *
 * The memfd: a page with the words below, each on cache lines of its own, then
 * RR_RING_BYTES of records. Indexes count bytes from the ring's start and never
 * wrap; they are multiples of 64. A record at index i is its body, at i, padded
 * to a multiple of 64 less 8. The 8 bytes before the body, the end of the
 * record before it, are its header: length, and a mark made of i. So a record
 * of up to 56 bytes is one cache line, and every body begins on one.
 */
#ifndef RR_CHANNEL_RING_H
#define RR_CHANNEL_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/wait.h"

#define RR_RING_BYTES (1u << 20) /* of records; a power of two */
/* Of one record's body: 256 KiB of payload in line, 64 KiB of metadata, and what describes them. */
#define RR_RING_MAX_RECORD (384u << 10)

#define RR_RING_HEAD_BYTES 4096u /* before the records */
#define RR_RING_FILE_BYTES (RR_RING_HEAD_BYTES + RR_RING_BYTES)

/* Where the shared words are in the file. */
enum rr_ring_word {
    RR_RING_TAIL = 0,              /* u64: index behind the last record; the producer's */
    RR_RING_HEAD = 128,            /* u64: index of the oldest record; the consumer's */
    RR_RING_CONSUMER_SLEEPS = 256, /* u32: after a record: 1: ring its doorbell; 2: wake a futex */
    RR_RING_PRODUCER_WAITS = 384   /* u32: bytes of room it sleeps for; 0: it does not */
};

enum rr_ring_side { RR_RING_PRODUCER, RR_RING_CONSUMER };

struct rr_ring; /* one process's end of it */

/**
 * rr_ring_new() - make a ring and map one end of it
 * @side: what this process is; the peer attaches as the other
 * @ret:  out, owned: rr_ring_free(); untouched on failure
 * @err:  out, optional
 *
 * Context: any thread. An end is then used by one thread at a time.
 * Return: 0 or RR_E_SYSTEM.
 */
int rr_ring_new(enum rr_ring_side side, struct rr_ring **ret, struct rr_error *err);

/**
 * rr_ring_attach() - map the other end of a ring that a peer made
 * @fd:   moved: ours on success, else still the caller's
 * @side: what this process is
 * @ret:  out, owned: rr_ring_free(); untouched on failure
 * @err:  out, optional
 *
 * The fd must carry F_SEAL_SHRINK|F_SEAL_GROW and have the exact size before it
 * is mapped, or the peer could cut it and turn a load into SIGBUS. Each side
 * begins at index 0, so an end can be attached once in a ring's life: who comes
 * back after a crash needs a new ring.
 *
 * Return: 0; RR_E_INVALID when the peer broke the contract (drop the peer);
 * RR_E_SYSTEM when we cannot continue.
 */
int rr_ring_attach(int fd, enum rr_ring_side side, struct rr_ring **ret, struct rr_error *err);
int rr_ring_fd(const struct rr_ring *ring); /* borrowed; to send to the peer */
/* Unmaps this end and closes its fd; the peer's lives on. NULL is allowed. */
void rr_ring_free(struct rr_ring *ring);

/* Bytes between the indexes as this side sees them, at most RR_RING_BYTES. By the end's thread. */
uint64_t rr_ring_used_bytes(const struct rr_ring *ring);
/* Did this side see an index or a header that the peer cannot have meant? For good: drop the peer.
 * A broken ring is full for its producer and -EPROTO for its consumer. */
bool rr_ring_broken(const struct rr_ring *ring);

/* --- the producer's end ----------------------------------------------------------------------- */

/**
 * rr_ring_reserve() - room for a record
 * @len: bytes, at most RR_RING_MAX_RECORD
 *
 * At most one reservation at a time; reserving again replaces it. Nothing of it
 * is seen by the consumer before rr_ring_commit(). What the room holds before it
 * is written is unspecified: older records of this ring.
 *
 * Return: borrowed until rr_ring_commit(): @len bytes in one piece, aligned to
 * 64, shared with the peer; NULL: full now.
 */
void *rr_ring_reserve(struct rr_ring *ring, uint32_t len);
/* Publish the reserved record. Several may be published before rr_ring_must_wake(). */
void rr_ring_commit(struct rr_ring *ring);
/**
 * rr_ring_must_wake() - after commits: does the consumer sleep, or is it about to?
 *
 * When true, ring its doorbell; the announcement is taken back, so that one sleep
 * gets one wake-up. A peer that announces all the time costs a doorbell per call.
 * A consumer that waits for the word itself is woken here.
 */
bool rr_ring_must_wake(struct rr_ring *ring);
/**
 * rr_ring_wait_space() - announce that the producer will sleep until @len bytes fit
 *
 * Return: false when they fit now: nothing was announced. True: sleep, with a look
 * at rr_ring_broken() first; the consumer rings once there is room. Announcing again
 * replaces the announcement; a reservation that succeeds leaves it, at the cost of
 * one wake-up too many.
 */
bool rr_ring_wait_space(struct rr_ring *ring, uint32_t len);

/* --- the consumer's end ----------------------------------------------------------------------- */

/**
 * rr_ring_peek() - look at the oldest record
 * @ret:     out, borrowed until rr_ring_release(): in shared memory, aligned to 64. The peer can
 *           still change it: copy what you check, then check the copy
 * @ret_len: out: bytes, at most RR_RING_MAX_RECORD, all inside of the mapping
 *
 * Peeking again without a release gives the same record.
 *
 * Return: 0; -EAGAIN: empty; -EPROTO: the peer broke the ring, and any further
 * call gives the same.
 */
int rr_ring_peek(struct rr_ring *ring, const void **ret, uint32_t *ret_len);
/* Done with the peeked record: its room is the producer's. */
void rr_ring_release(struct rr_ring *ring);
/**
 * rr_ring_sleep() - announce that the consumer will sleep
 * @word: out: what to wait for with rr_wait(); NULL: it waits for its doorbell
 *
 * Return: false: it must not, there is a record (or a broken ring) to peek at, and nothing is
 * announced.
 */
bool rr_ring_sleep(struct rr_ring *ring, struct futex_waitv *word);
/* Take the announcement back: woken by something else. A doorbell may still come. */
void rr_ring_awake(struct rr_ring *ring);
/* After releases: does the producer wait for room, and has it now? When true, ring its doorbell;
 * the announcement is taken back. */
bool rr_ring_must_wake_producer(struct rr_ring *ring);

#endif
