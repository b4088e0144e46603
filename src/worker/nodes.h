/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by the files of worker/ only: workflows whose functions live on several nodes.
 *
 *   nodes.c    this process among others: peers, messages to and from them
 *   words.c    what nodes tell each other besides messages; docs/wire.md has the tables
 *   origin.c   where the workflow is run: nodes that are reached, or not; is the run over?
 *   near.c     nodes that are on this machine
 *   session.c  what a node does for one origin
 *   node.c     a node that serves functions
 *
 * The origin is where the workflow is run: it has the input and the result, dials all nodes, and
 * asks when a run is over. A node has a session for each origin, which is a worker of its own: it
 * shares the engine, the modules and the arena with others. Nodes dial each other when they have
 * messages for each other.
 */
#ifndef RR_WORKER_NODES_H
#define RR_WORKER_NODES_H

#include "channel/net.h"
#include "worker/remote.h"

#define RR_SESSION_BYTES 16
#define RR_SESSION_TEXT 33

/* What the origin knows of a node. */
struct node_state {
    bool near;       /* it is on this machine, and has not said yet where it listens */
    bool wanted, up; /* it hosts functions; it is reached */
    uint64_t up_ns;
    uint64_t down_ns;     /* since when it is not */
    char incarnation[33]; /* of its process, "" before it was reached */
    struct rr_error why;  /* of the last failure to reach it */
    bool told_near;       /* where others listen, and has not answered since */
    uint64_t answered;    /* the last question it answered */
    uint64_t to_ask;      /* it has not been asked yet; 0: nothing */
    bool idle;            /* as it said then, for the run that it was asked about */
    uint64_t activity;    /* the same */
    char pending[192];    /* what a join there waits for; "" */
};

/* A message on its way to several functions of one node. */
struct batch {
    struct batch *next; /* of its session */
    struct remote *rm;  /* NULL: the session has ended */
    struct rr_net_peer *peer;
    uint64_t run;
    uint32_t n, left;
    struct message *m[]; /* by target; NULL: done with */
};

/* --- words ----------------------------------------------------------------------------------- */

enum node_word {
    NODE_ASK = 1, /* origin: question a: is anything left to do? */
    NODE_ANSWER,  /* node: to question a: b messages taken in, idle, pending */
    NODE_IDLE,    /* node: it has run out of work */
    NODE_FAILED,  /* node: error */
    NODE_RUN,     /* origin: drop what is of an earlier run than run */
    NODE_EVENTS,  /* node: now_ns by its clock, events */
    NODE_LOG,     /* node: n = level, function, text */
    NODE_CLOSE,   /* origin: the session is over */
    NODE_LINK     /* node n - 1 (0: the origin) is near, and listens in folder text */
};

/* Any word; what it does not have is 0. */
struct word_of_node {
    uint8_t session[RR_SESSION_BYTES];
    uint64_t run, a, b, now_ns;
    uint32_t n, function, idle;
    struct rr_error error;
    uint32_t n_events;
    struct event events[RR_EVENTS];
    char text[1024]; /* of LOG; of ANSWER what a join waits for */
};

#define RR_WORD_BYTES (8u << 10) /* no word is longer */

/* Bytes written to @to. */
size_t rr_word_put(uint8_t to[RR_WORD_BYTES], enum node_word word, const struct word_of_node *w);
/* From a peer: checked. 0 or -EPROTO. Events and edges in them are not: the caller knows how many
 * there are. */
int rr_word_get(uint32_t word, const uint8_t *from, size_t len, struct word_of_node *ret);

/* --- nodes ----------------------------------------------------------------------------------- */

/* @serving: sessions come and go; else this is the origin, and the one session its own. */
int rr_nodes_new(struct rr_worker *base, bool serving, struct nodes **ret, struct rr_error *err);
void rr_nodes_free(struct nodes *nodes);
struct rr_net *rr_nodes_net(struct nodes *nodes);
struct rr_worker *rr_nodes_base(struct nodes *nodes);
/* To the origin of a session, or to a node; kept while there is no room. Session and run are set.
 */
void rr_nodes_say(struct remote *rm, struct rr_net_peer *peer, enum node_word word,
                  struct word_of_node *w);
/* The peer of a node that was dialed; it is, if need be. NULL with @err. */
struct rr_net_peer *rr_nodes_dial(struct nodes *nodes, int node, struct rr_error *err);
struct rr_worker **rr_nodes_sessions(struct nodes *nodes, size_t *ret_n);
/* Free those that are over. */
void rr_nodes_expire(struct nodes *nodes);
/* Return: how much has come; -1 with @err. */
int rr_nodes_pump(struct nodes *nodes, struct rr_error *err);

/* As rr_nodes_pump(), but looks only where something came last: for loops that poll, and pump now
 * and then. Returns whether something has come. */
bool rr_nodes_poll(struct nodes *nodes);

/* Does @to (n_functions: the result) live on another node? */
bool rr_nodes_elsewhere(const struct remote *rm, int to);
/* Do messages for @to (n_functions: the result) go over the network from this process? */
bool rr_nodes_reach(const struct remote *rm, int to);
/* Why nothing reaches it, into @err; 0: it is reached. */
int rr_nodes_why(const struct remote *rm, int to, struct rr_error *err);
/**
 * rr_nodes_send() - hand a message to functions of one node
 * @ms:    one message for each of @n edges, with one payload; moved on success
 * @edges: all to functions of one node; or n_edges (the result), n_edges + 1 (a dead letter)
 *
 * Return: 0; -EAGAIN: not now; RR_E_*.
 */
int rr_nodes_send(struct remote *rm, struct message **ms, const int *edges, uint32_t n,
                  struct rr_error *err);
void rr_nodes_ack(struct remote *rm, struct ack ack);
/* Tell @node where we and other near nodes listen, and these where it does. */
void rr_nodes_introduce(struct remote *rm, int node);
/* Give up what is on its way and of a run that is over. */
void rr_nodes_cancel(struct remote *rm);
/* The same for good: @rm is about to go. */
void rr_nodes_forget(struct remote *rm);

/* origin.c */
/* Reach all nodes of the workflow that host functions. Waits. */
int rr_nodes_start(struct rr_worker *w, struct rr_error *err);
void rr_nodes_ask(struct remote *rm, uint64_t question);
/* All have answered the last question: then whether all were idle, and what they had done, is
 * added. */
bool rr_nodes_answered(const struct remote *rm, bool *idle, uint64_t *activity);
bool rr_nodes_ready(const struct remote *rm);
/* Names a node that cannot be reached for too long; 0 when there is none. */
int rr_nodes_check(struct remote *rm, uint64_t patience_ns, struct rr_error *err);
void rr_nodes_end_run(struct remote *rm);
/* Before the end: sessions need not wait for us to come back. */
void rr_origin_close(struct remote *rm);
bool rr_nodes_pending(const struct remote *rm, char *text, size_t size);
/* What nodes.c hears of a node. */
void rr_nodes_found(struct remote *rm, int node, const char *incarnation, bool near);
void rr_nodes_missed(struct remote *rm, int node, const struct rr_error *why);
void rr_origin_hear(struct remote *rm, int node, enum node_word word, struct word_of_node *w);

/* near.c */
#define RR_HOST_TEXT 64
/* What processes of one machine have in common. */
void rr_near_host(char ret[RR_HOST_TEXT]);
/* Make a folder, and listen there. 0 or negative errno. */
int rr_near_open(struct remote *rm);
void rr_near_free(struct remote *rm);
/* Where a node listens, or this process itself; "": it is not near. */
const char *rr_near_dir(const struct remote *rm, int node);
/* Where function @to (n_functions: the result) is reached; NULL: it is not near. */
struct rr_link_domain *rr_near_domain(const struct remote *rm, int to);
/* A peer says where @node listens; false: there is no such folder for us. */
bool rr_near_found(struct remote *rm, int node, const char *dir);
void rr_near_lost(struct remote *rm, int node);

/* session.c */
int rr_session_new(struct nodes *nodes, const uint8_t id[RR_SESSION_BYTES], struct rr_worker **ret,
                   struct rr_error *err);
void rr_session_free(struct rr_worker *w);
/* Handle what has come for it, and answer its origin. True: something was done. */
bool rr_session_work(struct remote *rm);
void rr_session_hear(struct remote *rm, enum node_word word, const struct word_of_node *w);
/* Is its origin gone for good? */
bool rr_session_over(const struct remote *rm);

#endif
