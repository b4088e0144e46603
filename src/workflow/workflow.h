/* SPDX-License-Identifier: Apache-2.0 */
/*
 * workflow: a YAML file -> a validated graph -> window addresses for its edges.
 * Knows nothing of the engine: what a module exports is checked by the worker.
 */
#ifndef RR_WORKFLOW_WORKFLOW_H
#define RR_WORKFLOW_WORKFLOW_H

#include <stdbool.h>
#include <stdio.h>

#include "base/error.h"
#include "base/util.h"

#define RR_WORKFLOW_MAX_FUNCTIONS 1024
#define RR_WORKFLOW_MAX_EDGES 4096 /* the two of each call included */
#define RR_WORKFLOW_MAX_NAME 63    /* [A-Za-z][A-Za-z0-9_-]* */
#define RR_WORKFLOW_MAX_FOLDERS 64 /* of one function */
#define RR_WORKFLOW_MAX_NODES 256
#define RR_WORKFLOW_MAX_ALLOWED 64      /* identities for one function */
#define RR_WORKFLOW_MAX_FILE (1u << 20) /* bytes of YAML */
#define RR_WORKFLOW_MAX_ATTEMPTS 100
#define RR_WORKFLOW_MAX_RETRY 100
#define RR_EDGE_BACKOFF_MAX_NS 5000000000ull /* a thread waits meanwhile */
#define RR_WORKFLOW_MAX_CALLS 10000000       /* in the queue of `roadrunner serve` */
#define RR_WORKFLOW_MAX_QUEUED 65536         /* messages on one link */
#define RR_WORKFLOW_MAX_DOMAIN 16777216      /* and on all of them */

struct rr_pos {
    unsigned int line, column; /* 1-based */
};

struct rr_folder {
    char *host, *guest; /* owned; host is resolved against the workflow file's folder */
    bool writable;
    struct rr_pos host_pos;
};

struct rr_function {
    char *name;             /* owned, like all strings here */
    char *module;           /* path, resolved against the workflow file's folder */
    uint64_t memory_bytes;  /* limit of the heap; default 256 MiB */
    uint64_t deadline_ns;   /* per message; default 10 s; 0 = none */
    unsigned int instances; /* 0: a fresh instance per message (default); N: at most N, reused */
    char **env;             /* "NAME=value", NULL-terminated */
    char **args;            /* NULL-terminated, without argv[0] */
    struct rr_folder *folders;
    size_t n_folders;
    char **calls;  /* names of functions it may call; NULL-terminated */
    bool isolated; /* lives alone in a process of its own */
    int node;      /* where it lives; RR_NODE_HERE: where the workflow is run */
    char **allow;  /* who may send to it from other nodes; NULL-terminated; NULL: whoever has a
                      certificate of our CA */
    struct rr_pos node_pos;
    struct rr_pos pos, module_pos;
};

#define RR_NODE_HERE (-1)

/* Another machine, or another process somewhere, that hosts functions. */
struct rr_node {
    char *name;
    char *address;  /* host:port, [v6]:port or unix:/path */
    char *identity; /* that its certificate must name; NULL: the host of its address */
    char *next;     /* of a chain: who comes after it, as it says itself; "": nobody */
    struct rr_pos pos;
};

#define RR_NODE_INPUT (-1) /* `from: input`, the workflow's own input */

/* What becomes of a message that failed, of a whole run or of one edge: Knative's delivery, by its
 * names. */
struct rr_delivery {
    bool given;          /* the file has `delivery` */
    unsigned int retry;  /* further attempts after the first */
    bool linear;         /* backoffPolicy; else exponential */
    uint64_t backoff_ns; /* backoffDelay */
    uint64_t timeout_ns; /* of one attempt; 0: none */
    char *sink;          /* deadLetterSink.uri; NULL: none */
};

/*
 * Besides the edges of the file there are two for each name in a function's
 * `calls`: caller "call:NAME" -> callee "in" (is_call), and back again, callee
 * "out" -> caller "reply:NAME" (is_reply). They follow the edges of the file.
 */
struct rr_edge {
    int from; /* index of the function, or RR_NODE_INPUT */
    int to;   /* index of the function */
    bool is_call, is_reply;
    bool at_least_once;    /* only where rr_edge_crosses() */
    unsigned int attempts; /* deliveries of one message, the first included; 1 unless
                              at_least_once */
    bool backs_off;        /* the file says how long to wait before another delivery: */
    bool linear;           /* as in struct rr_delivery */
    uint64_t backoff_ns;
    /* `given`: it is delivered again to a receiver that failed, not only to one that died. All or
     * none of the edges into a function have it. */
    struct rr_delivery again;
    bool optional;             /* the run goes on without it, once it was given up */
    char *from_port, *to_port; /* default "out" and "in" */
    bool max_declared;         /* the file says `max` for this output port */
    uint64_t max_bytes;        /* of the output port: the largest `max` declared for it;
                                  else what its slot holds */
    uint64_t slot_bytes;       /* RR_SLOT_SMALL or RR_SLOT_LARGE */
    uint64_t window;           /* guest address assigned at load; edges of one
                                  output port (fan-out, replies) share it */
    struct rr_pos pos;         /* of the edge or of the name in `calls` */
};

/* Where `roadrunner serve` keeps asynchronous messages, and how many. */
struct rr_queue {
    char *path; /* folder, resolved like a module; NULL: in memory */
    struct rr_pos path_pos;
    unsigned int messages; /* 10000 */
    uint64_t bytes;        /* 1 GiB; without @path 256 MiB */
    uint64_t keep_ns;      /* how long results can be fetched; 10 min */
    bool always;           /* every request is asynchronous */
};

struct rr_workflow {
    char *path, *name;
    uint64_t pool_bytes;  /* warm memory kept between messages; 0: the default */
    bool scrub_always;    /* zero each message's memory before it serves another */
    uint64_t deadline_ns; /* for a run, from its input on; 0: none */
    char *dead_letters;   /* file for messages whose last attempt failed, resolved like a module;
                             NULL: such a message fails the run */
    struct rr_pos dead_letters_pos;
    struct rr_delivery delivery;
    struct rr_queue queue;
    unsigned int queue_messages;  /* what may wait on one link between two processes; */
    uint64_t queue_bytes;         /* defaults 1024 and 4 GiB */
    unsigned int domain_messages; /* the same over all links; defaults 16384 and 8 GiB */
    uint64_t domain_bytes;
    struct rr_node *nodes;
    size_t n_nodes;
    int here; /* the node that this process is; RR_NODE_HERE: where the workflow is run */
    /* A line that no file has, see worker/chain.h. Each node knows itself (function, edge and node
     * 0) and the next one (1), whatever their numbers are elsewhere. */
    bool chain;
    bool again; /* of a chain: its messages are delivered at least once */
    struct rr_function *functions;
    size_t n_functions;
    struct rr_edge *edges;
    size_t n_edges;
    int result;             /* function whose port is the result */
    char *result_port;      /* default "out" */
    uint64_t result_window; /* its address; that of the edges which carry it as well */
    uint64_t result_slot_bytes;
    struct rr_pos result_pos;
    int *order; /* n_functions indices: a function comes after those that
                   send to it and after those that call it */
};

/**
 * rr_workflow_load() - read, check and lay out a workflow file
 * @path:  the YAML file
 * @ret:   out, owned: rr_workflow_free(); untouched on failure
 * @err:   optional; carries file, line, column and a hint
 *
 * A function may hold all its messages at once, so those that meet at it (its
 * inputs, its output ports, its calls and their replies, the result) never
 * share window space. An output port without a declared maximum takes a large
 * slot if all fit, else a small one. Module files and folders must exist, and
 * the dead letters' file must be writable.
 *
 * Return: 0 or an enum rr_code (RR_E_NOINPUT, RR_E_INVALID, RR_E_SYSTEM).
 */
int rr_workflow_load(const char *path, struct rr_workflow **ret, struct rr_error *err);
/* The same for node @node of the workflow, whose functions' files alone must exist; NULL: for where
 * it is run. */
int rr_workflow_load_at(const char *path, const char *node, struct rr_workflow **ret,
                        struct rr_error *err);
/* The same from memory, for tests and fuzzing: @path names it and resolves other
 * paths; no file is looked at. */
int rr_workflow_parse(const char *path, const char *text, size_t len, struct rr_workflow **ret,
                      struct rr_error *err);
void rr_workflow_free(struct rr_workflow *wf);
int rr_workflow_find(const struct rr_workflow *wf, const char *name); /* index or -1 */

enum rr_channel { RR_CHANNEL_USER, RR_CHANNEL_KERNEL, RR_CHANNEL_NETWORK };
/* By where its two ends live. */
enum rr_channel rr_edge_channel(const struct rr_workflow *wf, const struct rr_edge *e);
const char *rr_channel_name(enum rr_channel channel);
/* Where a function lives, or the input (RR_NODE_INPUT) and the result (n_functions). */
int rr_node_of(const struct rr_workflow *wf, int function);
bool rr_workflow_has_nodes(const struct rr_workflow *wf); /* some functions live elsewhere */
/* Of all that two nodes must agree on: what is sent where, and under which addresses. As
 * hexadecimal digits. */
#define RR_DIGEST_TEXT 65
int rr_workflow_digest(const struct rr_workflow *wf, char ret[RR_DIGEST_TEXT]);

/*
 * Sender and receiver live in different processes: an isolated function lives
 * alone, functions of other nodes there, all others and the workflow's input in the parent worker.
 */
bool rr_edge_crosses(const struct rr_workflow *wf, const struct rr_edge *e);
/* Before attempt @n + 1, after @n attempts failed. */
uint64_t rr_delivery_backoff_ns(const struct rr_delivery *d, unsigned int n);
/* Give every function that lives here a process of its own, whatever the file says. */
void rr_workflow_isolate_all(struct rr_workflow *wf);

#endif
