/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by the files of gateway/ only:
 *   http.c    bytes of HTTP, no sockets
 *   listen.c  addresses and sockets
 *   loop.c    threads that wait for connections
 *   conn.c    one connection
 *   reply.c   what is answered
 *   meta.c    metadata of requests and replies
 *   pool.c    threads that run workflows
 *   tls.c     TLS
 *   event.c   CloudEvents
 *   app.c     workflows, and their reload
 *   ask.c     asynchronous messages, as connections see them; async.h has the rest
 *   stats.c   figures
 *   graph.c   figures of a workflow's functions and edges, and the page that shows them
 *   trace.c   what a request's trace has
 *   otlp.c    traces on their way to a collector
 *   curl.c    libcurl, when it is wanted
 *
 * Threads. A loop is a set of connections with an epoll, run by one thread at a time, which alone
 * touches them. It runs workflows that are known to be fast itself; should one of these take long,
 * another loop, or the watch in gateway.c, takes the loop away and another thread goes on with it.
 * All other workflows go to the pool.
 */
#ifndef RR_GATEWAY_INTERNAL_H
#define RR_GATEWAY_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/epoll.h>

#include "base/wait.h"
#include "gateway/gateway.h"
#include "gateway/http.h"
#include "gateway/letter.h"
#include "worker/serve.h"

#define N_BUCKETS 24 /* of a histogram: up to its unit, then each twice the one before */
#define REQUEST_UNIT_NS 16000u
#define FUNCTION_UNIT_NS 1000u
#define HANDOFF_UNIT_NS 250u
#define N_PATHS (RR_PATH_STREAM + 1)
#define N_STATUS 40
#define N_EVENTS 128
#define POLLER_STOLEN 1u /* of poller.running_since_ns */
#define FAST_NS 1000000u

typedef _Atomic uint64_t counter; /* one thread writes, any may read */

static inline void count(counter *c, uint64_t n)
{
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

static inline uint64_t counted(const counter *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

struct histogram {
    counter buckets[N_BUCKETS + 1], sum_ns;
};

struct stats {
    counter requests[N_STATUS]; /* by the index of status_index() */
    struct histogram duration, run;
    counter received_bytes, sent_bytes;
    counter copied_in_bytes;  /* of bodies, in user space, before the first function */
    counter copied_out_bytes; /* of replies; stays 0 */
    counter inline_runs, pool_runs, stolen_runs, cancelled;
};

struct edge_stats {
    counter handoffs[N_PATHS], bytes[N_PATHS], copied_bytes;
    counter again, buried;
    struct histogram cost; /* rr_hop.handoff_ns */
};

struct fn_stats {
    counter begun, fresh, reused, restarts;
    counter idle; /* no count: instances that wait, as of the last run */
    struct histogram run;
};

struct app;
struct ask;
struct async;
struct conn;
struct gateway;
struct loop;
struct thread;
struct trace_event;

/* Of a request that is traced: one thread at a time has it, that of the loop or that of the run. */
struct trace {
    char parent[17];            /* the caller's span, in hexadecimal; empty: it began here */
    char context[56];           /* the traceparent that it continues, of an asynchronous message */
    uint64_t since_ns;          /* of the run */
    struct trace_event *events; /* owned */
    unsigned int n, room, n_dropped;
};

/* What one thread has of one workflow. */
struct seat {
    struct app *app;
    struct rr_worker *worker; /* owned */
    struct edge_stats *edges; /* owned */
    struct fn_stats *fns;     /* owned */
    struct trace *trace;      /* borrowed: of what it runs now; NULL: nobody wants one */
    struct stats stats;
} __attribute__((aligned(64)));

struct job {
    struct job *next;
    struct loop *loop;
    struct app *app;
    struct message *in, *out;       /* owned */
    uint64_t deadline_ns, begin_ns; /* begin: it could have run */
    uint64_t start_ns, end_ns;      /* it ran */
    atomic_bool cancelled;
    bool queued;          /* under the pool's lock */
    bool of_call;         /* of an asynchronous message, not of a connection */
    unsigned int lane;    /* of an isolated app, while it runs */
    struct rr_error *err; /* owned; NULL: it went well */
    struct trace *trace;  /* borrowed; NULL: none is wanted */
};

/* A workflow and its path. */
struct app {
    struct app *next; /* of those with a queue, under the pool's lock */
    struct generation *generation;
    const struct rr_gateway_route *route;
    struct rr_workflow *wf;
    /* One per thread; of an isolated one only the first have workers, one for each lane, and there
     * is one more, for what that of a single lane tells. */
    struct seat *seats;
    bool isolated;        /* some functions live in other processes, or on other nodes: it runs in
                             the pool */
    unsigned int n_lanes; /* how many of its messages at a time then; else 0 */
    uint32_t busy_lanes;  /* bits, under the pool's lock */
    uint64_t max_body_bytes;
    _Atomic uint64_t usual_ns; /* moving average of a run; UINT64_MAX: unknown */
    atomic_uint n_known;
    /* under the pool's lock: */
    struct job *first, *last;
    unsigned int n_queued, n_running;
};

/* The workflows as of one reading of their files. */
struct generation {
    struct gateway *gw;
    struct generation *next; /* of all that live, under gw->lock */
    atomic_uint refs;
    unsigned int number;
    struct app *apps;
    size_t n_apps;
};

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct app *apps; /* ring of those with jobs: @apps is next */
    struct poller *orphans;
    unsigned int n_running, max_running, n_queued;
    bool stop;
};

enum kind { KIND_LISTENER, KIND_CONN, KIND_WAKE };

struct listener {
    enum kind kind; /* first */
    int fd;
    bool admin, tcp, tls;
};

struct loop {
    struct gateway *gw;
    int epoll_fd, wake_fd;
    enum kind wake_kind;
    _Atomic(struct poller *) holder; /* NULL: none; the rest is the holder's, where not said else */
    struct thread *runner;           /* of the holder, also of the last one */
    struct listener *listeners;      /* owned */
    size_t n_listeners;
    bool listening;
    struct conn *conns;
    atomic_uint n_conns; /* with those that are handed over */
    struct conn *ready_first, *ready_last;
    /* Here and not on a stack, since another thread may have to go on with them. */
    struct epoll_event events[N_EVENTS];
    int n_events, next_event, n_ready_turn;
    uint64_t next_scan_ns;
    uint64_t random;
    char date[40];
    int64_t date_s;
    char *spare; /* a buffer for heads */
    char *log;
    size_t log_len;
    uint64_t n_log_lines; /* in it */
    struct stats stats;   /* of what reached no workflow */
    pthread_mutex_t lock;
    struct job *done;   /* under the lock */
    struct conn *given; /* under the lock: another loop accepted them */
    bool told;          /* under the lock: wake_fd is written */
} __attribute__((aligned(64)));

/* Whoever takes loops that have something to do, one after the other, in whatever order that comes:
 * so none waits while another is free. As many as --threads says, each in a thread of the pool. */
struct poller {
    unsigned int id;
    struct gateway *gw;
    struct thread *runner;
    struct loop *loop; /* at hand; NULL: none */
    struct poller *next_orphan;
    unsigned int luck; /* of 256: how often polling would have been better than sleeping */
    const void *last;  /* the connection with the last event, only compared */
    uint64_t next_rescue_ns;
    struct rr_yield yields;
    _Atomic uint64_t n_turns;
    /* When it began to run a workflow itself; 0: it does not; POLLER_STOLEN. */
    _Atomic uint64_t running_since_ns;
} __attribute__((aligned(64)));

struct thread {
    struct gateway *gw;
    unsigned int id;
    pthread_t thread;
    bool runs;
    /* The workflow that it ran last for a loop, which may be gone: by number. */
    unsigned int generation;
    size_t app;
    uint64_t ran_ns;
    bool untidy, prepared; /* the worker has put something off; has instances ready */
};

struct gateway {
    struct rr_gateway_options o;
    struct loop *loops;
    unsigned int n_loops;
    struct poller *pollers;
    unsigned int n_pollers;
    int poll_fd;                   /* of the loops that nobody holds and have something to do */
    int stop_fd;                   /* in it: readable once all pollers are to stop */
    _Atomic uint64_t next_scan_ns; /* all loops are told then */
    struct thread *threads;
    unsigned int n_threads;
    struct pool pool;
    pthread_mutex_t lock; /* generation, tls */
    struct generation *generation, *all;
    struct ssl_ctx_st *tls; /* NULL: none */
    atomic_uint n_connections;
    struct rr_budget bodies; /* of requests, and results read from the disk */
    atomic_bool draining, stop;
    atomic_bool halted; /* what runs is interrupted */
    atomic_bool parked; /* the watch sleeps */
    atomic_uint n_polling;
    bool poll_always; /* --spin; else only where that has paid */
    unsigned int max_polling;
    uint64_t poll_ns; /* how long each polls */
    int watch_fd;
    int log_fd;
    struct rr_events *events; /* NULL: all are taken for new */
    struct rr_otlp *otlp;     /* NULL: traces are not sent */
    struct async *async;
    struct rr_letters letters;
    bool bound;   /* its sockets are ours, and their files */
    int spare_fd; /* closed to accept and refuse a connection when there are no others */
    counter n_refused, n_accepted, n_reloads, n_bad_reloads;
    _Atomic uint64_t n_lost_lines;
    uint64_t started_ns;
};

/* Metadata being written. */
struct meta {
    uint8_t *data; /* owned */
    size_t len, cap;
    bool failed;
};

enum conn_state { CONN_HEAD, CONN_BODY, CONN_WAIT, CONN_WRITE, CONN_LINGER };

struct conn {
    enum kind kind; /* first */
    enum conn_state state;
    int fd;
    struct ssl_st *ssl; /* owned; NULL: no TLS */
    struct loop *loop;
    struct conn *prev, *next, *ready_next;
    bool half_closed; /* nothing more comes, but for what is there already */
    bool readable, writable, ended, is_ready, admin, tcp;
    bool keep, no_body; /* of the request: keep the connection; a reply without a body */
    bool old;           /* HTTP/1.0 */
    bool gone;          /* to be freed when its job is done */
    bool near;          /* it was seen that the peer is */
    char *in;           /* owned: what was received and not used, [in_at, in_len) */
    size_t in_at, in_len, seen;
    struct app *app; /* owned reference to its generation */
    struct job job;
    struct ask *ask;               /* owned: about asynchronous messages */
    struct message *body;          /* owned: being received */
    uint64_t body_len, body_known; /* UINT64_MAX: chunked */
    uint64_t next_window;          /* body_len at which the window is set; UINT64_MAX: it is not */
    uint64_t budget_bytes;         /* taken from gw->bodies */
    struct rr_chunks chunks;
    struct meta meta;             /* of the request */
    bool structured;              /* a CloudEvent in JSON */
    uint32_t event;               /* rr_event_end() */
    uint64_t since_ns;            /* the state began */
    uint64_t moved;               /* bytes, in this state */
    uint64_t mark_ns, mark_moved; /* when its speed was last looked at */
    uint64_t begin_ns;            /* of the request */
    char *head; /* owned: of the reply; a body of our own follows in the same memory */
    size_t head_len;
    struct message *reply; /* owned */
    const uint8_t *out;
    uint64_t out_len, out_at; /* over head and out */
    int status;
    char what[120];      /* method and path, for the log */
    char trace[56];      /* traceparent, as the functions get it */
    struct trace *spans; /* owned; NULL: it is not traced */
};

/* listen.c */
int rr_listen_all(struct gateway *gw, struct rr_error *err);
void rr_listen_close(struct loop *loop);

/* loop.c */
int rr_loop_init(struct gateway *gw, struct loop *loop, struct rr_error *err);
void rr_loop_deinit(struct loop *loop);
/* From any thread: a job is done. */
void rr_loop_post(struct job *job);
/* From any thread: it is to be looked at. */
void rr_loop_kick(struct loop *loop);
void rr_loop_ready(struct conn *c);
/* It is @p's from here on, which saw that it has something to do. */
void rr_loop_take(struct loop *loop, struct poller *p);
/* Whoever else may have it, as soon as it has something to do. */
void rr_loop_release(struct loop *loop);
/* Look at what has come. False: nothing. */
bool rr_loop_turn(struct loop *loop);
/* After its turn: what is due at times. False: some connections wait for the next turn. */
bool rr_loop_rest(struct loop *loop);
/* The next piece of work; a job that is to be run here, or NULL. False: there is none left, for
 * now. */
bool rr_loop_next(struct loop *loop, struct job **ret);

/* poller.c */
/* Until all is over, or it is another thread's, since a run took long. */
void rr_poller_run(struct poller *p, struct thread *t);
/* If its thread runs a workflow for long, it goes on with another. */
void rr_poller_rescue(struct poller *p, uint64_t now);

/* conn.c */
/* One for @loop, whose thread has to begin it; until then it is in no list. */
struct conn *rr_conn_new(struct loop *loop, int fd, const struct listener *from);
void rr_conn_begin(struct conn *c);
/* Do what can be done now. Return: a job to run here, or NULL. @c may be freed. */
struct job *rr_conn_advance(struct conn *c, uint32_t events);
void rr_conn_done(struct job *job);
/* Once a second. */
void rr_conn_check(struct conn *c, uint64_t now);
void rr_conn_close(struct conn *c);

/* reply.c */
void rr_reply_message(struct conn *c);
void rr_reply_empty(struct conn *c, int status);
void rr_reply_error(struct conn *c, const struct rr_error *err);
__attribute__((format(printf, 3, 4))) void rr_reply_problem(struct conn *c, int status,
                                                            const char *fmt, ...);
/* Any status, headers that are whole lines, and a body of our own. */
void rr_reply_text(struct conn *c, int status, const char *headers, const char *type,
                   const char *body);
/* A result with its metadata, which stays until the reply is written. */
void rr_reply_result(struct conn *c, const uint8_t *meta, size_t meta_len, const uint8_t *data,
                     uint64_t len);
/* The status that a function set; 0: none that can be. */
int rr_reply_status(const uint8_t *meta, size_t len);
/* The text of a problem; owned, NULL without memory. @traceparent: of the request; "": none. */
char *rr_problem_text(int status, const char *detail, const char *traceparent);
const char *rr_problem_of(const struct rr_error *err); /* for clients */
/* Is this entry a header for the client, and which? */
bool rr_reply_header(struct rr_text key, struct rr_text value, struct rr_text *ret_name);
/* /healthz and its like. False: it is not one of them. */
bool rr_reply_builtin(struct conn *c, const struct rr_http_request *rq);
void rr_log_request(struct conn *c);
void rr_log_flush(struct loop *loop);

/* meta.c */
void rr_meta_put(struct meta *m, const char *prefix, struct rr_text key, struct rr_text value);
/* Walk over entries; *@at from 0. False at the end. */
bool rr_meta_next(const uint8_t *meta, size_t len, size_t *at, struct rr_text *key,
                  struct rr_text *value);
bool rr_meta_find(const uint8_t *meta, size_t len, const char *key, struct rr_text *ret);
/* 0, or the status to refuse it with. */
int rr_meta_of_request(struct conn *c, const struct rr_http_request *rq, struct meta *m);
uint64_t rr_random(uint64_t *state); /* for ids, not for secrets; not 0 */

/* tls.c */
struct iovec;
struct ssl_st;
struct ssl_ctx_st;
int rr_tls_new(const struct rr_gateway_options *o, struct ssl_ctx_st **ret, struct rr_error *err);
void rr_tls_free(struct ssl_ctx_st *ctx);
struct ssl_st *rr_tls_accept(struct ssl_ctx_st *ctx, int fd); /* NULL without memory */
/* Tell the other that nothing follows; @last: free it. */
void rr_tls_end(struct ssl_st *ssl, bool last);
bool rr_tls_shaken(const struct ssl_st *ssl);
/* As readv() and writev(), with EAGAIN; less than asked for means neither that nothing more is
 * there, nor that nothing more fits. */
ssize_t rr_tls_readv(struct ssl_st *ssl, const struct iovec *iov, int n);
ssize_t rr_tls_writev(struct ssl_st *ssl, const struct iovec *iov, int n);

/* event.c */
struct rr_events; /* those that were handled, so that they are not again */
enum rr_event_seen { RR_EVENT_NEW, RR_EVENT_PENDING, RR_EVENT_DONE };
struct rr_events *rr_events_new(uint64_t window_ns);
void rr_events_free(struct rr_events *e);
bool rr_event_structured(struct rr_text content_type);
/* An attribute as metadata; false: it is an ordinary header. */
bool rr_event_header(struct meta *m, struct rr_text name, struct rr_text value);
int rr_event_check(const struct meta *m);
/* Structured mode: attributes into @m, and only the data stays in @payload. 0 or a status. */
int rr_event_unpack(struct meta *m, uint8_t *payload, uint64_t *len);
/* @ret: to be ended, if it is new; 0: it is no event, or all are taken for new. */
enum rr_event_seen rr_event_begin(struct rr_events *e, const char *path, const struct meta *m,
                                  uint32_t *ret);
void rr_event_end(struct rr_events *e, uint32_t event, bool done);

/* SHA-256 of what tells an event from others. False: it is none. */
bool rr_event_key(const char *path, const struct meta *m, uint8_t ret[32]);
/* It was handled @ago_ns ago, before a restart. */
void rr_event_restore(struct rr_events *e, const uint8_t key[32], uint64_t ago_ns);

/* ask.c */
/* Does the request, whose body is there, want to be answered before it is handled? */
bool rr_ask_wanted(const struct conn *c);
/* Hand it over. True: it waits for rr_conn_done(), or is answered already. */
void rr_ask_accept(struct conn *c);
/* About one that was accepted. False: the path is none of ours. */
bool rr_ask_about(struct conn *c, const struct rr_http_request *rq);
void rr_ask_answer(struct conn *c);
void rr_ask_free(struct ask *ask);

/* async.c, as far as the pool and stats need it */
void rr_async_run(struct job *job, struct thread *t);
void rr_async_ran(struct job *job);
void rr_async_stats(FILE *f, struct gateway *gw);

/* pool.c */
void rr_pool_init(struct pool *pool, unsigned int max_running);
void rr_pool_deinit(struct pool *pool);
/* False: its queue is full. */
bool rr_pool_submit(struct pool *pool, struct job *job, unsigned int max_queued);
/* True: it had not begun, and will not. */
bool rr_pool_withdraw(struct pool *pool, struct job *job);
void rr_pool_adopt(struct pool *pool, struct poller *p);
void rr_pool_stop(struct pool *pool);
void *rr_pool_main(void *thread);
void rr_job_run(struct job *job, struct thread *t);
bool rr_app_fast(const struct app *app);

/* app.c */
int rr_generation_new(struct gateway *gw, struct generation **ret, struct rr_error *err);
struct generation *rr_generation_current(struct gateway *gw); /* with a reference */
void rr_generation_unref(struct generation *g);
/* What runs looks whether it is to be stopped. */
void rr_app_nudge(const struct app *app);
/* Interrupt what runs, old or new. */
void rr_generations_cancel(struct gateway *gw);
struct app *rr_generation_find(struct generation *g, struct rr_text path);

/* stats.c */
unsigned int rr_status_index(int status);
int rr_status_at(unsigned int index); /* 0: others */
void rr_histogram_add(struct histogram *h, uint64_t ns, uint64_t unit_ns, uint64_t n);
/* @to and @from are of counters only. */
void rr_counters_add(void *to, const void *from, size_t bytes);
void rr_stats_sum(const struct app *app, struct stats *ret);
unsigned int rr_queue_depth(struct app *app);
void rr_stats_head(FILE *f, const char *name, const char *type, const char *help);
void rr_stats_histogram(FILE *f, const char *name, const char *labels, const struct histogram *h,
                        uint64_t unit_ns);
/* Prometheus text; owned, NULL without memory. */
char *rr_stats_text(struct gateway *gw, size_t *ret_len);

/* graph.c */
/* What workers tell: @user is a seat. */
void rr_graph_hop(void *user, const struct rr_hop *hop);
void rr_graph_begin(void *user, int function);
void rr_graph_span(void *user, const struct rr_span *span);
void rr_graph_restart(void *user, int function);
void rr_graph_again(void *user, int edge);
void rr_graph_buried(void *user, int edge);
int rr_graph_init(struct seat *seat);
void rr_graph_deinit(struct seat *seat);
void rr_graph_text(FILE *f, const struct generation *g);
/* JSON for the page; owned, NULL without memory. */
char *rr_graph_json(struct gateway *gw, size_t *ret_len);

/* trace.c */
struct trace *rr_trace_new(void); /* NULL without memory */
void rr_trace_free(struct trace *t);
void rr_trace_hop(struct trace *t, const struct rr_hop *hop);
void rr_trace_span(struct trace *t, const struct rr_span *span);
/* The request is over: give its trace to gw->otlp. */
void rr_trace_end(struct conn *c);
/* The same for an attempt at an asynchronous message, in the trace of its request; NULL: none. */
struct trace *rr_trace_begin_attempt(const struct job *job);
void rr_trace_end_attempt(struct trace *t, const struct job *job, unsigned int attempt);

/* Protobuf being written. */
struct rr_pb {
    uint8_t *data; /* owned */
    size_t len, cap;
    bool failed;
};

#define RR_OTLP_SPANS 2 /* the field of ScopeSpans that spans are */

void rr_pb_raw(struct rr_pb *b, const void *data, size_t len);
void rr_pb_uint(struct rr_pb *b, unsigned int field, uint64_t v);
void rr_pb_text(struct rr_pb *b, unsigned int field, const char *s, size_t len);
size_t rr_pb_begin(struct rr_pb *b, unsigned int field); /* of a message; for rr_pb_end() */
void rr_pb_end(struct rr_pb *b, size_t begin);
/* KeyValue with a string. */
void rr_pb_attribute(struct rr_pb *b, unsigned int field, const char *key, const char *value,
                     size_t len);

/* otlp.c */
struct rr_otlp;
/* Are traces sent anywhere? @option: of the command line, or NULL; else the environment says. */
bool rr_otlp_wanted(const char *option);
int rr_otlp_new(const struct rr_gateway_options *options, struct rr_otlp **ret,
                struct rr_error *err);
int rr_otlp_start(struct rr_otlp *o, struct rr_error *err);
/* What waits is sent, within 2 seconds. */
void rr_otlp_free(struct rr_otlp *o);
/* Is a trace that begins here to be sent? */
bool rr_otlp_samples(const struct rr_otlp *o, uint64_t random);
/* @data: moved; spans as fields of ScopeSpans; NULL: there was no memory. Never waits. */
void rr_otlp_push(struct rr_otlp *o, uint8_t *data, size_t len, unsigned int n_spans,
                  unsigned int n_beyond);
void rr_otlp_text(FILE *f, struct rr_otlp *o);

/* The page, made by tools/embed-page. */
extern const char rr_page[];
extern const size_t rr_page_len;
extern const char rr_page_policy[]; /* its Content-Security-Policy */

#endif
