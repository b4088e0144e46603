/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker: hosts the instances of one workflow and runs messages through it. A
 * hand-off runs the receiver on the same thread as soon as the sender returned.
 * May call base, region, engine, abi and workflow.
 */
#ifndef RR_WORKER_WORKER_H
#define RR_WORKER_WORKER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi/abi.h"
#include "base/error.h"
#include "channel/net.h"
#include "engine/engine.h"
#include "region/region.h"
#include "workflow/workflow.h"

#define RR_SMALL_MAX (256u << 10) /* payloads up to here are copied: it costs less than a move */
#define RR_MAX_QUEUED 65536       /* messages on their way at once */
#define RR_MAX_CALL_DEPTH 12
#define RR_SPIN_ADAPTIVE_NS 50000u /* a process polls up to so long before it sleeps */

/* How a message changed hands. */
enum rr_path {
    RR_PATH_MOVE,  /* page tables moved */
    RR_PATH_VIEW,  /* copy-on-write view of a shared region */
    RR_PATH_SWAP,  /* whole pages moved into the receiver's own memory, the ends copied */
    RR_PATH_COPY,  /* copied */
    RR_PATH_STREAM /* read and written as stdin and stdout */
};

struct rr_hop {
    int edge; /* index into the workflow's edges */
    enum rr_path path;
    enum rr_channel channel; /* that it took: between nodes of one machine not the network */
    uint64_t payload_bytes;
    uint64_t copied_bytes; /* at the sender and at the receiver */
    uint64_t sent_ns;      /* the sender called send */
    uint64_t received_ns;  /* the receiver's handler was about to run */
    uint64_t handoff_ns;   /* work of the hand-off: without instantiation and without what else
                              ran in between */
    uint64_t n;            /* messages it stands for: of very many, some are told together; their
                              copied_bytes are summed */
};

struct rr_span {
    int function;
    uint64_t begin_ns; /* an instance is wanted */
    uint64_t start_ns; /* its handler starts */
    uint64_t end_ns;   /* it has returned */
    uint64_t heap_bytes;
    bool fresh; /* an instance was made for it */
    uint64_t n; /* runs it stands for, as above */
};

struct rr_dead_letter; /* deadletter.h */

/* Told what happens, on the worker's thread; members may be NULL. */
struct rr_observer {
    void *user;
    /* An instance of this process begins to handle a message; its span follows. */
    void (*begin)(void *user, int function);
    /* A function's process ended, and another was started. */
    void (*restart)(void *user, int function);
    /* A message of this edge is delivered again to a function that failed; and was put away. */
    void (*again)(void *user, int edge);
    void (*buried)(void *user, int edge);
    void (*hop)(void *user, const struct rr_hop *hop);
    void (*span)(void *user, const struct rr_span *span);
    void (*log)(void *user, int function, int level, const char *text, size_t len);
    void (*progress)(void *user, const char *what, uint64_t done,
                     uint64_t total); /* total 0: unknown */
};

struct rr_worker_options {
    bool no_cache, precompiled; /* see rr_engine_options */
    /* Another worker of the same workflow, which outlives this one: its arena, engine and modules
     * are used. Each of the two may run on a thread of its own, but not if functions are isolated.
     */
    const struct rr_worker *share;
    /* The same, but of its arena only: for workers with functions on other nodes, each of which has
     * connections of its own, that its engine works for while guests run. */
    const struct rr_worker *beside;
    /* What its messages and instances may have, in all processes of this machine that are its own;
     * 0: no matter. Of @share or @beside, if there is one. */
    uint64_t memory_bytes;
    uint64_t spin_ns; /* 0: RR_SPIN_ADAPTIVE_NS; more: poll so long; UINT64_MAX: never poll */
    struct rr_arena_options arena;
    struct rr_observer observer;
    /* How to talk to other nodes; borrowed for the worker's life. */
    const struct rr_net_tls *tls; /* NULL: none, which @plain must allow, but for Unix sockets */
    bool plain;
    bool network_only; /* also between nodes that are on one machine */
    /* For a process without a cache, see rr_module_load_image(): compiled modules, by the path that
     * the workflow has. */
    const struct rr_worker_image {
        const char *module;
        int fd;
    } *images;
    size_t n_images;
    bool log_here; /* a node: what functions log goes to our stderr, too, not to origins alone */
    /* POST a dead letter to the sink of its edge, as @d says, and wait for it. 0 or an error. NULL:
     * nothing is POSTed from here. */
    int (*post)(void *user, const char *uri, const struct rr_dead_letter *l,
                const struct rr_delivery *d, struct rr_error *err);
    void *post_user;
    const char *kind; /* for `roadrunner ps`, see status.h; NULL: it is not told */
};

/* Where folders for the sockets of processes are made, instead of $XDG_RUNTIME_DIR; kept. */
void rr_runtime_dir_set(const char *dir);
const char *rr_runtime_dir(void);

/* What a function logs, on stderr; @level as rr_log()'s, of which debug is left out. */
void rr_function_log(const char *name, int level, const char *text, size_t len);

struct rr_result {
    const uint8_t *data; /* borrowed until rr_worker_release() */
    uint64_t len;
};

struct rr_worker;

/**
 * rr_worker_new() - load a workflow's modules
 * @wf:  borrowed for the worker's life
 * @err: a module that does not fit the workflow is reported with the file's line
 */
int rr_worker_new(const struct rr_workflow *wf, const struct rr_worker_options *options,
                  struct rr_worker **ret, struct rr_error *err);
void rr_worker_free(struct rr_worker *w);

/**
 * rr_worker_run() - send one message through the workflow
 * @fd:    borrowed; read to its end
 * @ret:   out: the result
 *
 * One run at a time. Whatever happens, all regions are back in the pool
 * afterwards, but for the result's and for what reused instances keep.
 *
 * Return: 0 or an enum rr_code; the worker can run the next message either way,
 * unless it was cancelled.
 */
int rr_worker_run(struct rr_worker *w, int fd, struct rr_result *ret, struct rr_error *err);
void rr_worker_release(struct rr_worker *w);
/* Async-signal-safe: what runs now, and everything later, ends with RR_E_CANCELLED. */
void rr_worker_cancel(struct rr_worker *w);
bool rr_worker_cancelled(const struct rr_worker *w);
/* The runs that follow end with RR_E_CANCELLED once *@stop (borrowed; NULL: never) is true: what
 * runs sees it after rr_worker_nudge(), which any thread may call for all workers that share
 * modules. Functions in other processes go on to their end or deadline. */
void rr_worker_stop_by(struct rr_worker *w, const atomic_bool *stop);
void rr_worker_nudge(struct rr_worker *w);
/* Have regions of the sizes seen so far warmed in the background; wait with rr_arena_settle(). */
void rr_worker_warm(struct rr_worker *w);
/* What does not belong to a run is put off: an instance that has served is destroyed, and fresh
 * ones are made for the runs to come, by rr_worker_tidy(), as long as they are small and to make
 * one takes less than @light_ns. 0: nothing is put off. */
void rr_worker_defer(struct rr_worker *w, uint64_t light_ns);
/* Some 5 us of that work, for who has nothing else to do. false: nothing was left. */
bool rr_worker_tidy(struct rr_worker *w);
/* Destroy what has served, and what was made ahead: nobody asks any more. */
void rr_worker_settle(struct rr_worker *w);
/* What it has of memory_bytes; 0 without a limit. Any thread. */
uint64_t rr_worker_memory(const struct rr_worker *w);
struct rr_arena *rr_worker_arena(struct rr_worker *w);

enum rr_tier rr_worker_tier(const struct rr_worker *w, int function);
const char *rr_worker_why(const struct rr_worker *w, int function);
enum rr_cached rr_worker_cached(const struct rr_worker *w, int function);
/* The path that large messages of an edge take. */
enum rr_path rr_worker_path(const struct rr_worker *w, int edge);
const char *rr_path_name(enum rr_path path);

#endif
