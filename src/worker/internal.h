/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by the files of worker/ only:
 *   load.c      modules, ports, tiers
 *   message.c   a payload between its owners, metadata
 *   instance.c  instances, and what they hold in their windows
 *   guest.c     what guests ask for: alloc, send, call ...
 *   run.c       the run queue
 *   again.c     deliveries to a function that failed
 */
#ifndef RR_WORKER_INTERNAL_H
#define RR_WORKER_INTERNAL_H

#include "worker/deadletter.h"
#include "worker/status.h"
#include "worker/worker.h"

struct small {
    unsigned int refs;
    uint64_t cap;
    uint8_t data[];
};

struct debt; /* remote.h */

/* One message for one receiver. Its payload is in exactly one of three places: small (a buffer of
 * ours), region (parked, or in the window of its owner), or, while its sender fills it, in the
 * sender's memory at its window (both NULL). */
struct message {
    struct message *next;
    struct small *small;      /* owned reference */
    struct rr_region *region; /* owned */
    uint64_t offset;          /* of the payload in the region */
    bool patched;             /* the region's home is in pieces: rr_region_reset() */
    struct port *spare_of;    /* of a patched one: the port that may use its region again */
    struct port *staged_for;  /* while it waits for its sender to end well */
    uint64_t len;
    uint64_t window, slot_bytes;
    bool fixed;    /* a guest has seen its address: it may hold pointers into itself */
    uint8_t *meta; /* owned: {u32 key_len, u32 value_len, key, value} ... */
    size_t meta_len;
    int edge;
    uint64_t id;          /* the same whenever its sender handles the same message again */
    uint64_t run;         /* it was sent in */
    bool by_link;         /* it came from another process of this machine */
    int32_t status;       /* of a function that was called, beside its reply */
    unsigned int attempt; /* of delivery, for edges that deliver at least once */
    struct debt *debt;    /* owned reference: settled when it is done with, or NULL */
    enum rr_path path;
    uint64_t sent_ns, send_cost_ns, copied_bytes;
    uint64_t deadline_ns; /* of what is made of it, too; 0: none */
};

/* A message in an instance's window, or a buffer for one. */
struct held {
    struct message *m;
    uint32_t addr;
    uint64_t cap;
    const char *port; /* borrowed */
    bool input, kept;
};

struct port {
    const char *name;
    int *edges;
    size_t n_edges;
    bool result, reply, crosses; /* crosses: some of its receivers live in other processes */
    bool again;                  /* some of them may get a message several times */
    int callee;                  /* of a port for calls; else -1 */
    uint64_t window, slot_bytes, max_bytes;
    uint64_t seen_bytes; /* largest message yet */
    /* Buffer tier: a region whose pieces fit a message of this offset and length, pages and all. */
    struct rr_region *spare;
    uint64_t spare_offset, spare_len;
};

struct inlet {
    int edge;
    struct message *first, *last;
};

struct fn {
    const struct rr_function *spec;
    struct rr_module *module;
    enum rr_tier tier;
    char why[160];
    const char **args;
    struct rr_preopen *folders;
    struct inlet *inlets;
    size_t n_inlets, n_filled;
    struct port *ports;
    size_t n_ports;
    struct instance *idle;
    unsigned int n_idle;
    /* Of fresh ones, made ahead; see rr_worker_tidy(). */
    struct instance *ready;
    unsigned int n_ready;
    bool light;       /* to make and to keep one costs little */
    bool lacks;       /* in the worker's list of those that lack some */
    int next_lacking; /* -1: the last */
    int next_ready;
    bool warned; /* of a message at another address */
};

/* W3C trace context of the inputs: what is sent has it, too, unless it has one of its own. */
struct trace_context {
    uint16_t parent_len, state_len; /* 0: none */
    char parent[56];
    char state[512]; /* as much as has to be passed on; longer ones are left out */
};

#define LINE_BYTES 1024

struct instance {
    struct rr_guest guest; /* first: rr_instance_user() points here */
    struct rr_worker *w;
    int fn;
    struct instance *next;
    struct held *held;
    size_t n_held, room;
    uint64_t deadline_ns;
    uint64_t run_deadline_ns; /* of its inputs, and so of what it sends; 0: none */
    uint64_t in_id;           /* of the inputs it has now */
    uint64_t made_ns;         /* ahead */
    struct trace_context trace;
    size_t n_sent;
    bool stages; /* it may run again with the same inputs: what it sends goes when it ended well */
    struct message *staged, **staged_last;
    int caller; /* function that waits for the reply; -1 */
    struct message *reply;
    struct message *out; /* stdio: what it has written so far */
    uint64_t out_room;
    char lines[2][LINE_BYTES];
    size_t line_len[2];
};

struct rr_worker {
    const struct rr_workflow *wf;
    const struct rr_worker
        *share; /* borrowed: whose arena, engine and modules these are, or NULL */
    const struct rr_worker *beside; /* the same of the arena only */
    struct rr_observer observer;
    struct rr_budget *budget; /* of all workers of the workflow; NULL: none */
    struct rr_arena *arena;
    struct rr_engine *engine;
    struct fn *fns;
    struct port input;
    int ready_first, ready_last;          /* functions with all inputs, linked by next_ready */
    size_t n_queued, n_forgone;           /* forgone: in this run, of edges that are optional */
    uint64_t queued_bytes, queue_charged; /* of it; taken from the budget for them */
    struct message *result;
    uint64_t light_ns;      /* see rr_worker_defer() */
    struct instance *spent; /* to be destroyed */
    unsigned int n_spent;
    int first_lacking; /* functions that lack instances made ahead; -1: none */
    unsigned int depth;
    bool named;              /* the error at hand names its function already */
    uint64_t spin_ns;        /* how long a process polls before it sleeps */
    uint64_t deadline_ns;    /* of the run; 0: only those of its functions */
    const atomic_bool *stop; /* of the run, borrowed; NULL: none */
    uint64_t n_runs;
    uint64_t nonce;               /* makes ids of one worker's messages differ from another's */
    struct remote *remote;        /* NULL: all functions live in this process */
    const struct rr_net_tls *tls; /* how to reach other nodes; NULL: plain, if @plain */
    bool plain, network_only, log_here;
    bool lends; /* messages go to other processes, or several times to one function */
    const struct rr_worker_image *images;
    size_t n_images;
    struct rr_status *status; /* NULL: not told; of @share */
    int (*post)(void *user, const char *uri, const struct rr_dead_letter *l,
                const struct rr_delivery *d, struct rr_error *err);
    void *post_user;
};

/* message.c */
/* An id made of others, the same each time. */
uint64_t rr_id_mix(uint64_t a, uint64_t b);
struct message *rr_message_new(void);
void rr_message_free(struct message *m);
/* Copy metadata, and a payload that is not in a region (@data may be NULL). 0 or -ENOMEM. */
int rr_message_fill(struct message *m, const uint8_t *meta, size_t meta_len, const uint8_t *data,
                    uint64_t len);
/* Bytes where the host can read them, of a message that no guest holds. */
uint8_t *rr_message_data(const struct message *m);
struct small *rr_small_new(uint64_t cap);
void rr_small_unref(struct small *s);
/* Copy the payload into a region of its own, from its start: what lies in pieces, in a view, or in
 * memory that cannot go where it is to go. */
int rr_message_regather(struct rr_arena *arena, struct message *m, enum rr_backing backing,
                        struct rr_error *err);
/* A second message with the same payload, for another receiver; small or memfd only. */
struct message *rr_message_share(const struct message *m);
const uint8_t *rr_message_meta_get(const struct message *m, const char *key, size_t key_len,
                                   size_t *ret_len);
/* Where @m has one; false: it has none. */
bool rr_message_trace_get(const struct message *m, struct trace_context *ret);
/* Without memory or room for it, it goes without. */
void rr_message_trace_set(struct message *m, const struct trace_context *t);
/* 0, -ENOMEM, or -E2BIG beyond RR_ABI_MAX_METADATA. */
int rr_message_meta_set(struct message *m, const char *key, size_t key_len, const uint8_t *value,
                        size_t value_len);

/* Tell its function by what it can know a repeated delivery. 0 or -ENOMEM. */
int rr_message_mark(struct message *m);

/* load.c */
struct port *rr_port_find(struct fn *f, const char *name);
size_t rr_port_receivers(const struct port *port);
/* What a message for it is to lie in, so that it can go wherever it may be sent. */
enum rr_backing rr_port_backing(const struct rr_worker *w, const struct port *port);

/* instance.c */
int rr_instance_take(struct rr_worker *w, int fn, uint64_t deadline_ns, struct instance **ret,
                     bool *ret_fresh, struct rr_error *err);
/* Give up what it holds and did not keep; back to the idle ones, or the end of it. */
void rr_instance_give(struct instance *i, bool healthy);
void rr_instance_destroy(struct instance *i);
struct held *rr_held_find(struct instance *i, uint32_t addr);
struct held *rr_held_add(struct instance *i, struct message *m, uint32_t addr, uint64_t cap);
void rr_held_remove(struct instance *i, struct held *h);
/* A free window: @preferred if nothing held overlaps it; 0 when there is none. */
uint64_t rr_window_find(const struct instance *i, uint64_t preferred, uint64_t slot_bytes);
/* Map or copy a message into the window of its receiver. @m: moved on success. */
int rr_deliver(struct instance *i, struct message *m, const char *port, struct rr_error *err);

/* guest.c */
extern const struct rr_abi_ops rr_worker_ops;
int rr_out_flush(struct instance *i, struct rr_error *err);
/* It ended well: send what it staged. */
int rr_staged_send(struct instance *i, struct rr_error *err);
void rr_staged_drop(struct instance *i);
bool rr_instance_output(void *user, int stream, const uint8_t *data, size_t len);
void rr_instance_flush_lines(struct instance *i);

/* again.c */
/* The same as rr_function_run(), for edges that say what to do when it fails. */
int rr_function_try(struct rr_worker *w, int fn, struct message **inputs, uint64_t deadline_ns,
                    struct rr_error *err);

/* deadletter.c */
/* It was given up, as its edge and @why say. @m: moved. */
void rr_letter_send(struct rr_worker *w, struct message *m, unsigned int attempts,
                    const struct rr_error *why);

/* run.c */
enum rr_channel rr_message_channel(const struct rr_worker *w, const struct message *m);
/* Run what is ready until nothing is. */
int rr_run_ready(struct rr_worker *w, struct rr_error *err);
void rr_queue_drain(struct rr_worker *w);
/* What a join waits for, into @text; false: nothing is left over. */
bool rr_queue_pending(const struct rr_worker *w, char *text, size_t size);
int rr_enqueue(struct rr_worker *w, struct message *m, int edge, struct rr_error *err);
/* The same for one whose receiver is known to live here. */
int rr_enqueue_here(struct rr_worker *w, struct message *m, int edge, struct rr_error *err);
/* One attempt of it. */
struct attempt {
    int caller;
    uint64_t deadline_ns, run_deadline_ns; /* of this run of it, and of what it sends; 0: none */
    bool stages;
};
int rr_function_attempt(struct rr_worker *w, int fn, struct message **inputs,
                        const struct attempt *a, int *ret_status, struct message **ret_reply,
                        struct rr_error *err);
/* Let @fn handle @inputs (one per inlet; moved). @ret_reply: for calls. */
int rr_function_run(struct rr_worker *w, int fn, struct message **inputs, int caller,
                    uint64_t deadline_ns, int *ret_status, struct message **ret_reply,
                    struct rr_error *err);
__attribute__((format(printf, 5, 6))) int rr_name_error(struct rr_worker *w, struct rr_error *err,
                                                        enum rr_code code, const char *hint,
                                                        const char *fmt, ...);

#endif
