/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel: messages between nodes. May call base and region; knows nothing of workflows.
 *
 * A net holds peers. A peer is another node, reached by a session: one main connection for small
 * messages, control words and all that is said about messages, and extra ones for large payloads,
 * so that none of these waits behind one. When one connection of a session breaks, all of it ends,
 * and who dialed begins a new one. docs/wire.md has the protocol.
 *
 * A large payload goes from its region's memfd into the socket by sendfile(), and from the socket
 * into the receiver's region by recv(): no copy in user space. It must not change until it is done
 * with: the kernel still reads it.
 *
 * Everything from a peer is checked after it was copied; a peer that breaks a rule loses its
 * session. One thread; callbacks come from rr_net_pump() only, and may call anything here but
 * rr_net_pump(), which then does nothing, and rr_net_free().
 */
#ifndef RR_CHANNEL_NET_H
#define RR_CHANNEL_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "channel/wire.h"
#include "region/region.h"

struct rr_net;
struct rr_net_peer;

/* All but @place come only from rr_net_pump(net, true), in the order in which things happened.
 * NULL where nobody cares, except for @place and @message. */
struct rr_net_events {
    /**
     * place - a payload of more than RR_WIRE_INLINE bytes is about to come
     * @head: the message without payload, valid during the call
     * @ret:  a parked region, moved; of a slot that holds offset + len
     * @err:  why not, for the sender
     *
     * Also called by rr_net_pump(net, false): it must not run guests. Return: 0, or an error: the
     * message is refused and its payload dropped, all else goes on.
     */
    int (*place)(void *user, struct rr_net_peer *peer, const struct rr_net_packet *head,
                 struct rr_region **ret, struct rr_error *err);
    /* A message is whole. @p is valid during the call, but its region is the callee's, to put. */
    void (*message)(void *user, struct rr_net_peer *peer, struct rr_net_packet *p);
    /* rr_net_control() of the other side. */
    void (*control)(void *user, struct rr_net_peer *peer, uint32_t word, const void *data,
                    size_t len);
    /* May this peer have a session? Its identity and texts are known. Return: 0, or an error, whose
     * text the peer is told. */
    int (*admit)(void *user, struct rr_net_peer *peer, struct rr_error *err);
    void (*up)(void *user, struct rr_net_peer *peer);
    /* After up(), or while dialing: each time an attempt fails. @why is RR_E_INVALID when the two
     * ends do not fit each other (TLS, protocol, admit()), RR_E_DIED when nobody is there or was
     * lost. @gone: the peer had dialed us: it is freed after the call; else it is dialed again by
     * and by. */
    void (*down)(void *user, struct rr_net_peer *peer, const struct rr_error *why, bool gone);
    /**
     * done - a target of a sent message needs nothing more; once per target
     * @acked:   the receiver called rr_net_ack()
     * @lost:    the session has ended, so nobody knows. A receiver on this host may still read the
     *           pages of a large payload, from its socket: rr_region_forsake() them
     * @refused: NULL, or why the receiver did not take it
     *
     * Called for targets with acked, and for all targets of a message of more than RR_WIRE_INLINE
     * bytes; for no others, which are done with when rr_net_send() returns. The payload may be
     * changed or freed when this has come for all targets of a message for which it comes.
     */
    void (*done)(void *user, struct rr_net_peer *peer, void *cookie, uint32_t target, bool acked,
                 bool lost, const struct rr_error *refused);
    /* rr_net_send() or rr_net_control() had returned -EAGAIN: try again. */
    void (*ready)(void *user, struct rr_net_peer *peer);
    /* The sender has given up a message that message() had brought. */
    void (*cancelled)(void *user, struct rr_net_peer *peer, uint64_t seq);
};

struct rr_net_tls {
    const char *cert_file, *key_file, *ca_file; /* PEM; cert_file may hold a chain */
};

struct rr_net_options { /* 0: the default in brackets */
    struct rr_net_events events;
    void *user;
    bool plain;            /* no TLS, for TCP; asked for by name */
    struct rr_net_tls tls; /* copied */
    bool any_host;         /* do not compare a dialed host with its certificate: admit() will */
    struct rr_wire_text *texts; /* copied: what HELLO announces */
    uint32_t n_texts;
    uint32_t n_bulk;               /* extra connections of sessions that we dial [1] */
    uint32_t max_peers;            /* accepted sessions [1024] */
    uint32_t max_pending;          /* accepted connections that have not greeted [256] */
    uint32_t window_messages;      /* not done with, from one peer [1024] */
    uint64_t window_inline_bytes;  /* the same, of small ones [16 MiB] */
    uint64_t window_bulk_bytes;    /* the same, of large ones [4 GiB]; one alone may be larger */
    uint64_t handshake_ns;         /* from connect to the end of the greeting [5 s] */
    uint64_t ping_ns, patience_ns; /* ping after silence [2 s]; then give up after [10 s] */
    uint64_t backoff_ns, backoff_max_ns; /* before the next attempt [50 ms, doubled up to 5 s] */
};

struct rr_net_stats {
    uint64_t in_bytes, out_bytes; /* on sockets; TLS: as encrypted */
    uint64_t in_messages, out_messages;
    uint64_t in_payload_bytes, out_payload_bytes;
    /* Of large payloads, in user space: always 0. OpenSSL copies within itself where the kernel has
     * no TLS; that is not counted. */
    uint64_t copied_bytes;
    uint64_t small_copied_bytes; /* of small messages that had to wait */
    uint64_t sessions, losses;   /* sessions that came up; that ended without a goodbye */
    uint64_t attempts;           /* connects tried */
    uint64_t pings, pongs;
    uint64_t refused_connections, rule_breaks, refused_messages;
    uint64_t retransmitted; /* segments, by TCP, of connections that are open now */
    uint64_t reads, writes; /* system calls on sockets */
    uint32_t peers_up, connections;
    bool kernel_tls; /* of the newest TLS connection: the kernel encrypts */
};

/**
 * rr_net_new()
 * @ret: out, owned: rr_net_free()
 *
 * Where SIGPIPE would end the process, it is ignored from now on.
 *
 * Return: 0; RR_E_USAGE: neither TLS files nor plain; RR_E_NOINPUT: one cannot be read;
 * RR_E_INVALID: certificate and key do not match, or a text is too long; RR_E_SYSTEM.
 */
int rr_net_new(const struct rr_net_options *options, struct rr_net **ret, struct rr_error *err);
/* Says goodbye and closes everything; messages not done with are lost: done() and down() are called
 * for the last time. Peers go with it. */
void rr_net_free(struct rr_net *net);
/* Read the TLS files again; new connections use them. On failure all stays as it was. */
int rr_net_reload_tls(struct rr_net *net, struct rr_error *err);

/**
 * rr_net_listen() - accept peers
 * @at: "host:port", "[v6]:port", ":port" (all addresses), "unix:/path"; port 0: any. A numeric
 *      address, or "localhost".
 *
 * Return: the bound port, 0 for Unix; negative: -RR_E_USAGE, -RR_E_SYSTEM.
 */
int rr_net_listen(struct rr_net *net, const char *at, struct rr_error *err);
/* Whoever listens last at a Unix socket's path has it. Take those back that nobody listens at any
 * more: a newer process has gone, or been killed. */
void rr_net_listen_again(struct rr_net *net);
/**
 * rr_net_dial() - reach a peer, and reach it again whenever its session ends
 * @target: "host:port", "[v6]:port", "unix:/path"; a name is resolved anew for each attempt, and
 *          all its addresses are tried
 * @ret:    out, owned: rr_net_peer_free()
 *
 * Does not wait; up() or down() tells. Return: 0, RR_E_USAGE, RR_E_SYSTEM.
 */
int rr_net_dial(struct rr_net *net, const char *target, struct rr_net_peer **ret,
                struct rr_error *err);
/* End its session with a goodbye; what is not done with is lost, and done() comes for it from the
 * next pump, but no down(). An accepted peer needs no freeing. */
void rr_net_peer_free(struct rr_net_peer *peer);
/* End its session for a reason that it is told; a dialed peer is dialed again. */
void rr_net_peer_reset(struct rr_net_peer *peer, const struct rr_error *why);

/* Texts of the peer's HELLO; NULL: it has not sent that one, or is down. */
const char *rr_net_peer_text(const struct rr_net_peer *peer, const char *key);
/* Who it is by its certificate: the first URI of its alternative names, or DNS name, or its common
 * name. "" for plain TCP; "uid:N" for a Unix socket. */
const char *rr_net_peer_identity(const struct rr_net_peer *peer);
/* Is it one of the names of its certificate? */
bool rr_net_peer_is(const struct rr_net_peer *peer, const char *identity);
const char *rr_net_peer_target(const struct rr_net_peer *peer);  /* as dialed; "" if accepted */
const char *rr_net_peer_address(const struct rr_net_peer *peer); /* of the other end, for people */
bool rr_net_peer_up(const struct rr_net_peer *peer);
bool rr_net_peer_dialed(const struct rr_net_peer *peer);
/* The round trip that TCP measured, 0: unknown. */
uint64_t rr_net_peer_rtt_ns(const struct rr_net_peer *peer);
void rr_net_peer_set_data(struct rr_net_peer *peer,
                          void *data); /* the caller's own; NULL at first */
void *rr_net_peer_data(const struct rr_net_peer *peer);

/**
 * rr_net_send() - send a message
 * @p:      copied; a payload of up to RR_WIRE_INLINE bytes too, a larger one is borrowed until
 *          done() has come for all targets
 * @cookie: for done()
 *
 * Small messages are written at once. Messages keep no order among each other. A region may move
 * meanwhile, but its pages must be mapped where rr_region_data() says.
 *
 * Return: 0; -EAGAIN: not up, or the peer grants no more, or too much waits: ready() tells;
 * RR_E_LIMIT: it could never be sent.
 */
int rr_net_send(struct rr_net_peer *peer, const struct rr_net_packet *p, void *cookie,
                struct rr_error *err);
/* Give up a message: what is left of it is not sent, and done() comes for all its targets, when the
 * receiver does not need the payload any more. */
void rr_net_cancel(struct rr_net_peer *peer, const void *cookie);
/* A target of a message that came has been handled. Of an ended session: does nothing. Goes out
 * with the next send, or the next pump that delivers nothing. */
void rr_net_ack(struct rr_net_peer *peer, uint64_t seq, uint32_t target);
/* In message(): the sender is granted no more for this one until it is released. Without it, a
 * message counts until message() returns and all its targets that want one have their ack. */
void rr_net_hold(struct rr_net_peer *peer, uint64_t seq);
void rr_net_release(struct rr_net_peer *peer, uint64_t seq);
/**
 * rr_net_control() - send a word, in order with other words of the session
 * @len: <= RR_WIRE_MAX_CONTROL
 * Return: 0; -EAGAIN: not up, or too many wait: ready() tells; RR_E_LIMIT.
 */
int rr_net_control(struct rr_net_peer *peer, uint32_t word, const void *data, size_t len,
                   struct rr_error *err);

/**
 * rr_net_pump() - move what can be moved, without waiting
 * @deliver: false: keep what has come for a later call; only @place is called
 * Return: the number of events delivered; negative: -RR_E_SYSTEM.
 */
int rr_net_pump(struct rr_net *net, bool deliver, struct rr_error *err);
/* As rr_net_pump(net, true), but looks only at the connection by which something came last: one
 * system call when nothing has come. For loops that poll. Return: as rr_net_pump(). */
int rr_net_poll(struct rr_net *net, struct rr_error *err);
/* Write the acks that wait for something to go along with. A pump that delivers nothing does it, so
 * this saves who is about to sleep a pump. */
void rr_net_flush(struct rr_net *net);
/* To be polled for reading, also inside another epoll; borrowed. */
int rr_net_fd(const struct rr_net *net);
/**
 * rr_net_sleep() - wait until there is something to do, or a watched descriptor is ready
 * @until_ns: monotonic clock; rr_net_next_ns() counts, too
 *
 * A round trip between two nodes that sleep takes 5 to 10 us less than with rr_net_fd() inside
 * another epoll: a caller with few descriptors of its own does better to have them watched here.
 */
void rr_net_sleep(struct rr_net *net, uint64_t until_ns);
/* While @on, rr_net_sleep() returns when @fd (borrowed) is ready to read. 0 or negative errno. */
int rr_net_watch(struct rr_net *net, int fd, bool on);
/* When to call rr_net_pump(net, true) at the latest, whatever rr_net_fd() says; monotonic clock. 0:
 * at once; UINT64_MAX: no need. */
uint64_t rr_net_next_ns(const struct rr_net *net);
/* Messages sent that are not done with; of all peers. */
unsigned int rr_net_n_waiting(const struct rr_net *net);
unsigned int rr_net_peer_n_waiting(const struct rr_net_peer *peer);
void rr_net_stats(const struct rr_net *net, struct rr_net_stats *ret);

#endif
