/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asynchronous messages: answered with 202 before they are handled. Shared by
 *   async.c     what becomes of each, and when
 *   calls.c     in which order; payloads
 *   store.c     where they lie meanwhile
 *   post.c      what is POSTed
 *   callback.c  POSTs of results and dead letters
 *   target.c    addresses that these may go to
 *
 * One thread, in async.c, alone touches calls, timers and stores' databases; what others want of
 * it, they put into its inbox. Payloads beyond CALL_INLINE are written and read by another, so that
 * the first is never held up by a large one.
 */
#ifndef RR_GATEWAY_ASYNC_H
#define RR_GATEWAY_ASYNC_H

#include "gateway/internal.h"
#include "worker/deadletter.h"

#define RR_ASK_PATH "/.roadrunner/messages/" /* and an id: where clients ask */
#define CALL_ID 32 /* hexadecimal digits, of random bits: who knows it may ask */
#define CALL_INLINE                                                               \
    16384u /* payloads up to here lie in the database, longer ones in a file each \
            */
#define CALL_MAX_URL 2000u
#define CALL_MAX_INTERRUPTED                                             \
    100u /* attempts in whose midst the server died: it may be the cause \
          */

/* A payload; shared by whoever reads it. */
struct blob {
    atomic_uint refs;
    uint64_t len;
    uint8_t *data; /* owned; NULL: */
    int fd;        /* owned; it lies in this file, or with -1 in the store, and is not loaded */
};

enum call_state {
    CALL_WAITING, /* for a thread, or for its next attempt */
    CALL_RUNNING,
    CALL_BURYING, /* its dead letter is on its way to a URI */
    CALL_POSTING, /* its result is on its way to its callback */
    CALL_DONE,
    CALL_FAILED
};

struct queue;

struct list {
    struct call *first, *last;
};

/* What the thread is told. */
struct item {
    struct item *next;
    enum { ITEM_ASK, ITEM_RAN, ITEM_POSTED } kind;
};

struct call {
    struct call *bucket_next; /* of the same hash */
    struct call *prev, *next; /* of the same list: ready or finished ones of a queue */
    struct list *list;        /* that one; NULL: none */
    struct queue *queue;
    char id[CALL_ID + 1];
    enum call_state state;
    unsigned int attempts, failures; /* begun; ended badly */
    unsigned int posts;              /* failed POSTs, of a dead letter or of a result */
    int status;                      /* HTTP's, of what came out last; 0: nothing yet */
    char error[160];
    char *callback;              /* owned; NULL: none */
    uint8_t *meta, *result_meta; /* owned; NULL while they are in the store only */
    size_t meta_len, result_meta_len;
    struct blob *body, *result; /* references; NULL: gone */
    uint64_t due_ns;            /* the timer's */
    size_t timer;               /* index + 1 in the heap; 0: none is set */
    int64_t created_ms;         /* since 1970 */
    bool stored;                /* in the store */
    bool dirty, removed;        /* to be written there; to be gone from it */
    bool cancelled;             /* its client wants no more of it */
    bool finished;              /* there is a result, or a failure */
    bool body_file, result_file;
    bool has_event;
    struct call *dirty_next;
    uint8_t event[32]; /* rr_event_key() */
    struct job job;    /* while it runs */
    struct item ran;
    struct sending *sending; /* owned: while something is POSTed */
    struct ask *asker;       /* who waits for it to be stored */
};

/* What becomes of the asynchronous messages of one path. It outlives reloads. */
struct queue {
    struct gateway *gw;
    size_t route;
    struct store *store; /* NULL: in memory */
    char *path;          /* owned: the store's */
    struct list ready, finished;
    unsigned int n_pending, n_finished, n_running;
    uint64_t bytes;
    struct call *dirty;
    uint64_t retry_ns; /* the store did not take what is dirty: when to try again; 0: it did */
    /* read by others: */
    counter depth, held_bytes, done, failed, retries, buried, posted, posts_failed, recovered;
    _Atomic uint64_t accepted, refused;
};

/* calls.c */
struct blob *rr_blob_new(uint64_t len);    /* with room for it */
struct blob *rr_blob_absent(uint64_t len); /* in a store */
struct blob *rr_blob_ref(struct blob *b);
void rr_blob_unref(struct blob *b);
/* Copy [at, at + len) to @to. Return: 0 or negative errno. */
int rr_blob_read(const struct blob *b, uint64_t at, void *to, size_t len);
void rr_list_add(struct list *l, struct call *c); /* at its end */
void rr_list_remove(struct call *c);              /* from the one that it is in, if it is in one */

struct calls {
    struct call **buckets; /* by id */
    size_t n_buckets, n;
    struct call **heap; /* timers, the next one first; has room for all calls */
    size_t n_timers, heap_room;
};

bool rr_calls_init(struct calls *a); /* false without memory, as rr_calls_add() */
void rr_calls_deinit(struct calls *a);
bool rr_calls_add(struct calls *a, struct call *c);
void rr_calls_remove(struct calls *a, struct call *c); /* and from its list, and its timer */
struct call *rr_calls_find(const struct calls *a, const char *id);
void rr_timer_set(struct calls *a, struct call *c, uint64_t due_ns);
void rr_timer_clear(struct calls *a, struct call *c);

struct inbox {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct item *first, *last; /* under the lock, as: */
    bool stop;
};

void rr_inbox_init(struct inbox *in);
void rr_inbox_deinit(struct inbox *in);
void rr_inbox_put(struct inbox *in, struct item *item);
void rr_inbox_stop(struct inbox *in);
/* All that is there, in order; waits for it until then (UINT64_MAX: for ever), and may come back
 * with none. False: it was stopped, and is empty. */
bool rr_inbox_take(struct inbox *in, uint64_t until_ns, struct item **ret);

/* async.c */
void rr_call_free(struct call *c);

/* What a connection asks, and what it is answered: it waits meanwhile. */
struct ask {
    struct item item; /* first */
    enum { ASK_ACCEPT, ASK_STATE, ASK_RESULT, ASK_CANCEL } what;
    struct job *job; /* the connection's: rr_loop_post() answers */
    struct gateway *gw;
    struct call *call;  /* owned, of ASK_ACCEPT until it is taken */
    struct message *in; /* owned: its body, if it is long */
    char id[CALL_ID + 1];
    int status; /* out, and the rest as fits: */
    const char *why;
    char *text;    /* owned: JSON */
    uint8_t *meta; /* owned: of a result, with: */
    size_t meta_len;
    struct blob *result;
    uint64_t budget_bytes; /* counted in gw->memory_bytes */
};

/* async.c */
struct async;
int rr_async_new(struct gateway *gw, struct rr_error *err);
void rr_async_stop(struct gateway *gw); /* all asks are answered; threads of the pool have ended */
void rr_async_free(struct gateway *gw);
bool rr_async_idle(struct gateway *gw); /* the server may end without losing anything */
/* Does another reading of the workflows fit to what is there? */
int rr_async_fits(struct gateway *gw, const struct generation *g, struct rr_error *err);
void rr_async_send(struct gateway *gw, struct ask *ask);
struct queue *rr_async_queue(struct gateway *gw, size_t route);
struct callbacks *rr_async_callbacks(struct gateway *gw);

/* store.c: in SQLite, in a folder of its own */
struct store;
int rr_store_open(const char *path, struct store **ret, struct rr_error *err);
void rr_store_close(struct store *s);
/* All calls that are there, in the order in which they came, without their payloads. @take: each is
 * owned by it. Due times are since 1970 here, in ms. */
int rr_store_recover(struct store *s, void *user, void (*take)(void *user, struct call *c),
                     struct rr_error *err);
/* Events that were accepted since @since_ms; older ones are forgotten. */
int rr_store_events(struct store *s, int64_t since_ms, void *user,
                    void (*take)(void *user, const uint8_t key[32], int64_t ms));
/* Everything between begin and commit is on the disk, or not at all; all return 0 or RR_E_SYSTEM.
 */
int rr_store_begin(struct store *s);
int rr_store_put(struct store *s, struct call *c, int64_t due_ms); /* new or changed */
int rr_store_remove(struct store *s, const struct call *c);
int rr_store_commit(struct store *s);
void rr_store_rollback(struct store *s);
const char *rr_store_why(const struct store *s); /* of the last failure */
/* Metadata and payload, which are not in memory: its own, or with @result those of its result. */
int rr_store_load(struct store *s, struct call *c, bool result);
/* From any thread: a file of a call; on the disk when this returns. 0 or negative errno. */
int rr_store_write(const struct store *s, const char *id, bool result, const void *data,
                   uint64_t len);
void rr_store_unlink(const struct store *s, const char *id, bool result);
int rr_store_open_file(const struct store *s, const char *id, bool result, uint64_t len);

/* post.c */
struct headers {
    char **lines; /* owned: "NAME: VALUE", NULL-terminated; NULL: none */
    size_t n;
    bool failed; /* for want of memory */
};

void rr_headers_text(struct headers *h, const char *name, const char *value);
void rr_headers_number(struct headers *h, const char *name, unsigned int value);
/* The content's type, and what a function set. */
void rr_headers_result(struct headers *h, const uint8_t *meta, size_t len);
/* As a CloudEvent in binary mode. */
void rr_headers_letter(struct headers *h, const struct rr_dead_letter *l);
void rr_headers_free(struct headers *h);
/* As Knative has it; 0: there was no answer. */
bool rr_post_may_retry(int status);

/* callback.c: by libcurl, on a thread of its own */
struct callbacks;
struct post {
    struct post *next;
    const char *url; /* borrowed until done, as all of it */
    char **headers;  /* of struct headers */
    uint64_t len;    /* of the body */
    int (*read)(void *user, uint64_t at, void *to, size_t len); /* 0 or negative errno */
    void *reader;                                               /* its user */
    uint64_t timeout_ns;
    bool chosen; /* its host was, by a client: rr_callback_address_ok() holds for names */
    void (*done)(struct post *p); /* on that thread */
    void *user;
    int status; /* out: HTTP's; 0: there was no answer, and @error tells why */
    char error[160];
};
struct rr_curl;
/* On this thread, whoever it goes to. @ca: PEM file, or NULL. done() is not called. */
void rr_post_now(const struct rr_curl *f, const char *ca, struct post *p);
/* @o: borrowed; who may be called back, and whom https trusts. */
int rr_callbacks_new(const struct rr_gateway_options *o, struct callbacks **ret,
                     struct rr_error *err);
/* Nothing is done() after this; what was under way is not. */
void rr_callbacks_free(struct callbacks *cb);
/* Return: NULL: it may be called back; else why not. */
const char *rr_callback_refused(struct callbacks *cb, const char *url);
void rr_callbacks_send(struct callbacks *cb, struct post *p);

/* target.c */
struct sockaddr;
/* May a callback go there, whose host is a name? @nets: only there; without any, wherever it is not
 * to this machine or link, nor to what tells machines of a cloud their secrets. */
bool rr_callback_address_ok(const struct sockaddr *a, size_t len, const char *const *nets,
                            size_t n_nets);

#endif
