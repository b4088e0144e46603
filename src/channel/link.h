/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel: hand-off between processes of one node. May call base and region.
 *
 * A link carries messages one way, from a process to a function in another: a Unix socket by which
 * the two meet, lend each other memory and notice each other's death; a ring of descriptors, with
 * small payloads inside; and a ring back for what is done with. Large payloads lie in memfds that
 * the receiver maps once: a message then costs one record. docs/kernel-channel.md has the protocol.
 *
 * Everything from the peer is checked once, after it was copied. A peer that breaks a rule is
 * dropped.
 */
#ifndef RR_CHANNEL_LINK_H
#define RR_CHANNEL_LINK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/wait.h"
#include "region/region.h"

#define RR_LINK_VERSION 1
#define RR_LINK_INLINE (256u << 10)  /* payloads up to here travel in the ring */
#define RR_LINK_MAX_META (64u << 10) /* bytes of metadata */
#define RR_LINK_MAX_QUEUE 4000       /* messages not done with on one link */
#define RR_LINK_MAX_NAME 63

/* What one process of a domain has sent and is not done with, where all others can see it. */
struct rr_link_share {
    _Alignas(64) atomic_uint_fast64_t messages;
    atomic_uint_fast64_t bytes;
};

/* What both ends of all links of a process share; outlives them. */
struct rr_link_domain {
    char dir[96];  /* mode 0700, one socket per function: DIR/NAME.sock */
    char name[64]; /* of the trust domain */
    uid_t uids[2]; /* whom we talk to */
    struct rr_arena *arena;
    unsigned int queue_messages; /* bounds of what is not done with on one link */
    uint64_t queue_bytes;
    /* Bounds of the same over all links of all processes; shares: in memory that they share, one of
     * them our own. A link with nothing under way may always send one more. NULL: no such bounds.
     */
    struct rr_link_share *shares, *own;
    size_t n_shares;
    uint64_t domain_messages, domain_bytes;
};

/* A message on its way. */
struct rr_packet {
    uint64_t run, id;       /* which run it belongs to; delivery id */
    uint32_t edge, attempt; /* attempt: 1 at first */
    uint64_t len, offset;   /* payload bytes; where they begin in the region */
    uint64_t window, slot_bytes;
    int32_t status; /* of a function that was called */
    bool fixed;     /* a guest has seen its address */
    bool acked;     /* the receiver is to say when it has handled it, see rr_link_ack() */
    bool shared;
    uint64_t sent_ns, send_cost_ns, copied_bytes;
    uint64_t deadline_ns; /* of the monotonic clock, which both have; 0: none */
    const uint8_t *meta;  /* borrowed */
    uint32_t meta_len;
    const uint8_t *data;      /* payload of up to RR_LINK_INLINE bytes; NULL: in the region */
    struct rr_region *region; /* out: borrowed by the link until it is done; in: owned */
    uint64_t seq;             /* in: for rr_link_ack() */
};

struct rr_link;

/**
 * rr_link_done - a packet with a region, or one that was to be acked, is done with
 * @acked: the receiver has handled it
 * @lost:  the peer has died: it may have lent the region to others, see rr_region_forsake()
 */
typedef void (*rr_link_done)(void *user, void *cookie, bool acked, bool lost);

/* A socket to accept senders for function @name on. Return: descriptor, or negative errno. */
int rr_link_listen(const struct rr_link_domain *domain, const char *name);

/**
 * rr_link_connect() - become a sender for function @to
 * @from: our name, for the peer's messages
 * @done: called from rr_link_pump() and rr_link_free()
 *
 * Does not wait for the peer: what is sent before it looks waits in the ring.
 *
 * Return: 0; -EAGAIN: nobody listens there (yet); RR_E_SYSTEM.
 */
int rr_link_connect(struct rr_link_domain *domain, const char *from, const char *to,
                    rr_link_done done, void *user, struct rr_link **ret, struct rr_error *err);
/* The other end. Return: 0; -EAGAIN: nobody there; RR_E_INVALID: not of our domain; RR_E_SYSTEM. */
int rr_link_accept(struct rr_link_domain *domain, int listener, struct rr_link **ret,
                   struct rr_error *err);
/* At a sender, packets that are not done with are lost. */
void rr_link_free(struct rr_link *link);

int rr_link_fd(const struct rr_link *link); /* of its socket, to poll; borrowed */
const char *rr_link_peer(const struct rr_link *link);
pid_t rr_link_peer_pid(const struct rr_link *link);

/**
 * rr_link_pump() - read the socket and the ring back
 * Return: 0; -EPIPE: the peer is gone (a receiver may still read what it sent); RR_E_INVALID: the
 * peer broke a rule; RR_E_SYSTEM. After any of these but 0, free it.
 */
int rr_link_pump(struct rr_link *link, struct rr_error *err);

/* The ring back alone, without a system call. Return: as rr_link_pump(). */
int rr_link_poll(struct rr_link *link, struct rr_error *err);

/**
 * rr_link_send() - hand a packet over
 * @p:      copied
 * @cookie: for @done; it is called for packets with a region or p->acked, and for no others
 *
 * Return: 0; -EAGAIN: the queue is full; RR_E_*.
 */
int rr_link_send(struct rr_link *link, const struct rr_packet *p, void *cookie,
                 struct rr_error *err);
/* While @on, a sender that finds the queue full does not ask to be woken: it will look again. */
void rr_link_set_polling(struct rr_link *link, bool on);
/* Packets not done with, and those of them that are not acked. */
unsigned int rr_link_n_waiting(const struct rr_link *link);
unsigned int rr_link_n_unacked(const struct rr_link *link);

/**
 * rr_link_receive() - look at the next packet
 * Its data and meta lie in shared memory, which the peer may change still: copy, then check. Its
 * region is parked at home and is the caller's to put.
 *
 * Return: 0; -EAGAIN: none; RR_E_INVALID; RR_E_SYSTEM.
 */
int rr_link_receive(struct rr_link *link, struct rr_packet *ret, struct rr_error *err);
void rr_link_received(struct rr_link *link); /* give its record back */
/* The packet was handled, and need not come again. */
void rr_link_ack(struct rr_link *link, uint64_t seq);

/* Has something come into the ring? Without a system call. */
bool rr_link_pending(struct rr_link *link);
/* Before the process sleeps: false when there is something to do after all. @word: out: as of
 * rr_ring_sleep(), and as it was when there is no ring yet; NULL: wait for the socket alone. */
bool rr_link_sleep(struct rr_link *link, struct futex_waitv *word);
void rr_link_awake(struct rr_link *link);

#endif
