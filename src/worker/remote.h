/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by the files of worker/ only: workflows whose functions live in several processes.
 *
 *   remote.c    links of this process, messages that come and go over them
 *   process.c   the parent: starts worker processes, hears from them, notices their death
 *   child.c     a worker process: hosts one function
 *   delivery.c  acks, and messages that come twice
 *   control.c   what parent and workers tell each other
 *   deadletter.c  messages that nobody could handle
 */
#ifndef RR_WORKER_REMOTE_H
#define RR_WORKER_REMOTE_H

#include <pthread.h>
#include <stdatomic.h>

#include "channel/link.h"
#include "worker/internal.h"

#define RR_POLLS 8        /* between looks at the clock */
#define RR_MAX_LINKS 4096 /* into one process */

/* A sender that waits for an ack: link 0 is none. */
struct ack {
    uint64_t link, seq;
    uint32_t target; /* of a message from another node */
};
#define RR_ACK_NODE (1ull << 63) /* in link: of another node */

/* A page that a worker process shares with its parent, which may look at any time. */
struct pulse {
    atomic_uint_fast64_t handling_since_ns; /* a message; 0: none */
    atomic_uint_fast64_t handled;           /* messages so far */
};

struct child {
    int function;
    pid_t pid;
    int control_fd;      /* of the parent; -1: it does not run */
    int pid_fd;          /* -1 */
    struct pulse *pulse; /* shared */
    bool ready;          /* it has said so */
    uint64_t answered;   /* the last question it answered */
    bool idle;           /* as it said then */
    uint64_t activity;   /* the same */
    uint64_t asked_ns;   /* when it was asked what it has not answered; 0: nothing */
    bool isolated, reaped, silent;
    int status;        /* of wait(), when it was reaped */
    uint64_t again_ns; /* when it may be started again */
    uint64_t started_ns;
    unsigned int n_failed; /* deaths since it last did its work */
    unsigned int n_starts;
    uint64_t seen_handled, seen_ns; /* its pulse, and when it changed last */
    char pending[192];              /* what a join in it waits for; "" */
};

struct remote {
    struct rr_worker *w;
    int self; /* the function that lives here; -1: this is the parent */
    struct rr_link_domain domain;
    int epoll_fd;
    bool waits; /* for futexes of the rings, when it sleeps on this thread: */
    pthread_t thread;
    struct listener {
        int fd;
        struct rr_link_domain *domain;
    } *listeners;
    size_t n_listeners;
    struct rr_link **outs; /* by receiving function, and the result last; NULL: not connected */
    struct in {
        struct rr_link *link;
        uint64_t id; /* never used again */
    } *ins;
    size_t n_ins;
    uint64_t n_links;      /* so far */
    struct message *again; /* to be sent once more: their receiver died */
    bool *repeats;         /* by edge, and the result: may its messages come twice? */
    struct seen *seen;     /* this run's messages that may come twice: a hash table */
    size_t n_seen, room_seen;
    struct debt *debt; /* of the messages that are being handled; owned reference */
    /* other nodes */
    struct nodes *nodes;       /* owned by the origin, borrowed by sessions; NULL: none */
    struct node_state *states; /* origin: by node */
    uint8_t session[16];
    struct rr_net_peer *origin; /* session: who runs the workflow; NULL: away, since: */
    uint64_t away_ns;
    struct batch *batches;   /* on their way to other nodes */
    unsigned int n_outgoing; /* their targets */
    struct near *near;       /* nodes that are on this machine; NULL: none so far */
    struct rr_error arrival; /* code != 0: a message that came ends the run */
    uint64_t run;            /* messages of earlier ones are dropped */
    uint64_t activity;
    uint64_t spin_ns, spin_max_ns;
    bool look; /* at the sockets: epoll said so */
    uint64_t looked_ns;
    /* a caller waits for a reply */
    struct message *reply;
    int32_t reply_status;
    bool replied;
    /* worker process */
    int control_fd;
    struct pulse *pulse;
    struct event_batch *events;
    uint64_t told_activity; /* when it said last that it was idle; of a session: looked last */
    bool owes_idle;         /* session: the origin waits to hear it */
    bool ended;             /* the parent is gone, or wants us to go */
    /* parent */
    struct child *children;
    size_t n_children;
    int zygote_fd;
    pid_t zygote_pid;
    uint64_t question;
    struct rr_error failure; /* code != 0: of the current run */
    bool active, stopping;   /* a run is; all is */
    struct pulse *pulses;
    uid_t child_uid; /* (uid_t)-1: ours */
    gid_t child_gid;
    unsigned int n_idle_words, n_deaths, n_deaths_before; /* before: this run */
};

/* remote.c */
bool rr_hosted(const struct rr_worker *w, int function);
int rr_remote_new(struct rr_worker *w, struct rr_error *err);
void rr_remote_free(struct remote *rm);
/* Listen for messages to @function (or the result: n_functions). 0 or negative errno. */
int rr_remote_listen(struct remote *rm, struct rr_link_domain *domain, int function);
/* Send @m (moved) over @edge, or as the result (n_edges); waits while the queue is full. */
int rr_remote_send(struct rr_worker *w, struct message *m, int edge, int32_t status,
                   struct rr_error *err);
/* Send @m (borrowed) over those of @edges that lead to other nodes: once to each node. */
int rr_remote_send_to_nodes(struct rr_worker *w, struct message *m, const int *edges, size_t n,
                            struct rr_error *err);
/* Take in what has come, without waiting; @messages: or only what is done with. Returns the number
 * of messages; -1 with @err when something came that ends the run. */
int rr_remote_pump(struct remote *rm, bool messages, struct rr_error *err);
/* Tell all who send over links to wake us; false when one was faster. @words: out: RR_WAIT_WORDS
 * at most, for rr_wait(); NULL: by our sockets. */
bool rr_remote_announce(struct remote *rm, struct futex_waitv *words, size_t *ret_n);
void rr_remote_awake(struct remote *rm);
/* Has something come over one of them? */
bool rr_remote_came(struct remote *rm);
/* Sleep until something may have come, or @deadline_ns. */
void rr_remote_sleep(struct remote *rm, uint64_t deadline_ns);
/* The two halves of it: poll a while, true when there is something to do; sleep. */
bool rr_remote_spin(struct remote *rm);
void rr_remote_doze(struct remote *rm, uint64_t deadline_ns);
/* What ends a wait early: 0, or @err: the run failed elsewhere, is another than @run, or is
 * cancelled. */
int rr_remote_interrupted(struct remote *rm, uint64_t run, struct rr_error *err);
/**
 * rr_remote_arrived() - a message has come, from another process or node
 * @m:    moved; its edge, run, id and attempt are set. Edge n_edges: the result; n_edges + 1: a
 *        dead letter of edge m->status
 * @ack:  its sender's; link 0: it wants none
 *
 * Return: 0; an error that ends the run.
 */
int rr_remote_arrived(struct remote *rm, struct message *m, struct ack ack, struct rr_error *err);
/* It was lost with its receiver. True: it goes once more, and is moved. */
bool rr_remote_send_once_more(struct remote *rm, struct message *m);
/* Send it when it can be sent: it is to go on, or to go once more. @m: moved. */
void rr_remote_send_later(struct remote *rm, struct message *m);
void rr_remote_send_again(struct remote *rm); /* what can be sent of these */
bool rr_remote_at_least_once(const struct remote *rm, int edge);
/* Is this where the workflow is run? */
bool rr_remote_is_origin(const struct remote *rm);
/* Wait for the reply to a call. */
int rr_remote_reply(struct rr_worker *w, uint64_t deadline_ns, struct message **ret,
                    int *ret_status, struct rr_error *err);
/* Messages that a receiver is yet to handle, or they come again. */
unsigned int rr_remote_n_unacked(const struct remote *rm);
/* Drop what is of an earlier run. */
void rr_remote_new_run(struct remote *rm, uint64_t run);
unsigned int rr_remote_n_lent(const struct remote *rm);
/* The parent may see that a message is handled since @since_ns, or was (0). */
void rr_remote_pulse(const struct rr_worker *w, uint64_t since_ns);
void rr_remote_watch(struct remote *rm, int fd);

void rr_remote_ack(struct remote *rm, struct ack ack);

/* delivery.c */
/* Can a message of @edge (n_edges: the result) come twice? */
bool rr_delivery_may_repeat(const struct rr_workflow *wf, size_t edge);
/* @m has come, and its sender wants @ack once @m is safe. @repeats: it may have come before.
 * Returns false when it had: drop it. */
bool rr_delivery_begin(struct remote *rm, struct message *m, bool repeats, struct ack ack);
/* @inputs are about to be handled: what is sent until rr_delivery_leave() is made of them.
 * Returns what that gets. */
struct debt *rr_delivery_enter(struct rr_worker *w, struct message **inputs, size_t n);
void rr_delivery_leave(struct rr_worker *w, struct debt *before);
/* Of the run that is over: what has been seen. */
void rr_delivery_forget(struct remote *rm);
/* NULL is allowed. */
struct debt *rr_debt_ref(struct debt *d);
void rr_debt_unref(struct debt *d);

/* deadletter.c: the last attempt has failed. @m: moved. */
void rr_remote_bury(struct remote *rm, struct message *m);
void rr_remote_bury_here(struct remote *rm, struct message *m, int edge);

/* process.c */
/* Where folders of sockets are made: XDG_RUNTIME_DIR if it is short enough, or /tmp. */
const char *rr_runtime_dir(void);
int rr_processes_start(struct rr_worker *w, struct rr_error *err);
void rr_processes_stop(struct remote *rm);
/* The parent hears its children. A child's failure is in rm->failure. */
void rr_processes_hear(struct remote *rm);
/* Is the run over? Asks all, twice. Waits. 0: over; 1: go on; else an error. */
int rr_processes_settle(struct rr_worker *w, struct rr_error *err);
void rr_processes_end_run(struct remote *rm);
/* What a join in a worker process waits for. */
bool rr_processes_pending(const struct remote *rm, char *text, size_t size);
/* Between runs: regions that were lent come back, within @wait_ns. */
void rr_processes_collect(struct remote *rm, uint64_t wait_ns);

/* child.c */
_Noreturn void rr_child_main(struct rr_worker *w, int function, int control_fd);
/* In a worker process: hear the parent. */
void rr_child_hear(struct remote *rm);

/* control.c */
#define RR_EVENTS 64

enum word {
    WORD_READY = 1, /* child */
    WORD_FAILED,    /* child: error, of run */
    WORD_IDLE,      /* child: it has run out of work */
    WORD_ANSWER,    /* child: a = question, b = activity, idle, pending */
    WORD_EVENTS,    /* child: n events */
    WORD_LOG,       /* child: n = level, text */
    WORD_ASK,       /* parent: a = question */
    WORD_RUN,       /* parent: drop what is of an earlier run than run */
    WORD_QUIT       /* parent */
};

struct event {
    uint32_t is_span, reserved;
    union {
        struct rr_hop hop;
        struct rr_span span;
    };
};

struct control {
    uint32_t word, n;
    uint64_t run, a, b;
    union {
        struct rr_error error;
        struct {
            uint32_t idle, reserved; /* no bool: it comes from outside */
            char pending[192];
        } answer;
        struct event events[RR_EVENTS];
        char text[1024];
    };
};

struct event_batch {
    struct control c;
    uint64_t tried_ns; /* to tell them; of a session: since when the first one waits */
};

/* Whole or not at all; waits for room. 0 or negative errno (-EPIPE: the other is gone). */
int rr_control_send(int fd, const struct control *c);
/* The same without waiting: -EAGAIN. */
int rr_control_try_send(int fd, const struct control *c);
/* Without waiting: 0, -EAGAIN, -EPIPE, or -EPROTO. Texts end with a NUL. */
int rr_control_receive(int fd, struct control *c);

#endif
