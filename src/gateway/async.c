/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of asynchronous messages. In each turn the thread takes what it was told, moves
 * calls from state to state, writes all that changed in one commit per store, and only then
 * answers, and starts what is ready. So what a client heard of is on the disk, and many share the
 * wait for it.
 */
#include "gateway/async.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/letter.h"

#define RETRY_STORE_NS 1000000000u
#define PRUNE_NS 60000000000ull
#define POST_TIMEOUT_NS 30000000000ull
#define POST_RETRY 5u /* without `delivery` */

/* A POST under way. */
struct sending {
    struct post post;
    struct item item;
    struct async *a;
    struct call *call;
    struct headers headers; /* owned, as: */
    char *url;
    struct blob *body; /* a reference */
};

struct async {
    struct gateway *gw;
    pthread_t thread, storer;
    bool runs, storer_runs;
    struct inbox inbox, to_store; /* what the two are told */
    struct queue *queues;         /* one per path */
    size_t n_queues;
    struct calls calls;
    struct list starting; /* when what changed is written */
    _Atomic(struct callbacks *) callbacks;
    unsigned int n_sending;
    atomic_uint busy;
    uint64_t next_prune_ns;
    bool halted; /* workflows are interrupted: the end is near */
};

static int64_t wall_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Numbers that others read. */
static void show(struct queue *q)
{
    atomic_store_explicit(&q->depth, q->n_pending, memory_order_relaxed);
    atomic_store_explicit(&q->held_bytes, q->bytes, memory_order_relaxed);
}

static void show_busy(struct async *a)
{
    unsigned int busy = a->n_sending;

    for (size_t n = 0; n < a->n_queues; n++) {
        const struct queue *q = &a->queues[n];

        busy += q->store ? q->n_running + (q->dirty && !q->retry_ns) : q->n_pending;
    }
    atomic_store(&a->busy, busy);
}

/* --- calls ----------------------------------------------------------------------------------- */

static void free_sending(struct sending *s)
{
    if (!s)
        return;
    rr_headers_free(&s->headers);
    rr_blob_unref(s->body);
    free(s->url);
    free(s);
}

void rr_call_free(struct call *c)
{
    if (!c)
        return;
    free_sending(c->sending);
    rr_blob_unref(c->body);
    rr_blob_unref(c->result);
    free(c->meta);
    free(c->result_meta);
    free(c->callback);
    free(c->job.err);
    free(c);
}

/* It changed, and is written at the end of this turn. */
static void touch(struct call *c)
{
    if (c->dirty)
        return;
    c->dirty = true;
    c->dirty_next = c->queue->dirty;
    c->queue->dirty = c;
}

static void drop_body(struct call *c)
{
    if (c->body)
        c->queue->bytes -= c->body->len;
    rr_blob_unref(rr_take(c->body));
}

static void set_result(struct call *c, struct blob *b)
{
    if (c->result)
        c->queue->bytes -= c->result->len;
    rr_blob_unref(c->result);
    c->result = b;
    if (b)
        c->queue->bytes += b->len;
}

/* Nobody will ask for it again. */
static void drop_call(struct async *a, struct call *c)
{
    struct queue *q = c->queue;

    if (c->state == CALL_DONE || c->state == CALL_FAILED)
        q->n_finished--;
    else
        q->n_pending--;
    drop_body(c);
    set_result(c, NULL);
    rr_calls_remove(&a->calls, c);
    c->removed = true;
    touch(c);
}

static struct generation *current(struct queue *q, struct app **ret)
{
    struct generation *g = rr_generation_current(q->gw);

    *ret = &g->apps[q->route];
    return g;
}

/* All that was asked of it is done. */
static void end_call(struct async *a, struct call *c)
{
    struct queue *q = c->queue;
    struct app *app;
    struct generation *g = current(q, &app);
    bool good = c->status < 400;

    c->state = good ? CALL_DONE : CALL_FAILED;
    count(good ? &q->done : &q->failed, 1);
    q->n_pending--;
    q->n_finished++;
    rr_list_add(&q->finished, c);
    rr_timer_set(&a->calls, c, rr_now_ns() + app->wf->queue.keep_ns);
    while (q->n_finished > app->wf->queue.messages)
        drop_call(a, q->finished.first);
    rr_generation_unref(g);
    touch(c);
}

/* --- dead letters, callbacks ----------------------------------------------------------------- */

static int read_body(void *user, uint64_t at, void *to, size_t len)
{
    return rr_blob_read(user, at, to, len);
}

static struct rr_dead_letter letter_of(const struct call *c, const struct rr_workflow *wf)
{
    return (struct rr_dead_letter){.wf = wf,
                                   .edge = -1,
                                   .id = c->id,
                                   .attempts = c->attempts,
                                   .status = c->status,
                                   .error = c->error,
                                   .meta = c->meta,
                                   .meta_len = c->meta_len,
                                   .len = c->body ? c->body->len : 0,
                                   .read = read_body,
                                   .user = c->body,
                                   .sync = c->queue->store != NULL};
}

static bool make_headers(struct sending *s, const struct call *c, const struct rr_workflow *wf,
                         bool result)
{
    struct rr_dead_letter l = letter_of(c, wf);

    if (result)
        rr_headers_result(&s->headers, c->result_meta, c->result_meta_len);
    else
        rr_headers_letter(&s->headers, &l);
    rr_headers_text(&s->headers, "X-Call-Id", c->id);
    rr_headers_number(&s->headers, "X-Function-Status", (unsigned int)c->status);
    rr_headers_number(&s->headers, "X-Delivery-Attempt", c->posts + 1);
    rr_headers_text(&s->headers, "Expect", ""); /* no round trip before the body */
    s->post.headers = s->headers.lines;
    return !s->headers.failed;
}

static void on_posted(struct post *p)
{
    struct sending *s = p->user;

    rr_inbox_put(&s->a->inbox, &s->item);
}

static struct sending *make_sending(struct async *a, struct call *c, const char *url,
                                    const struct rr_workflow *wf)
{
    const struct rr_delivery *d = &wf->delivery;
    bool result = c->state == CALL_POSTING;
    struct sending *s = calloc(1, sizeof(*s));

    if (!s)
        return NULL;
    s->a = a;
    s->call = c;
    s->item.kind = ITEM_POSTED;
    s->url = strdup(url);
    s->post = (struct post){.url = s->url,
                            .timeout_ns = d->timeout_ns ? d->timeout_ns : POST_TIMEOUT_NS,
                            .chosen = result,
                            .done = on_posted,
                            .user = s};
    if (!s->url || !make_headers(s, c, wf, result)) {
        free_sending(s);
        return NULL;
    }
    s->body = rr_blob_ref(result ? c->result : c->body);
    s->post.len = s->body->len;
    s->post.read = read_body;
    s->post.reader = s->body;
    return s;
}

/* Its payload and metadata are at hand. */
static bool present(struct call *c, bool result)
{
    const struct blob *b = result ? c->result : c->body;

    if (!c->queue->store || ((result ? c->result_meta : c->meta) && b && (b->data || b->fd >= 0)))
        return true;
    if (b && rr_store_load(c->queue->store, c, result) == 0)
        return true;
    rr_log(0, "message %s in %s cannot be read: %s", c->id, c->queue->path,
           b ? rr_store_why(c->queue->store) : "it is gone");
    return false;
}

/* POST a dead letter or a result. Return: NULL, or why not. */
static const char *send_now(struct async *a, struct call *c, const struct rr_workflow *wf)
{
    struct callbacks *cb = atomic_load(&a->callbacks);
    const char *url = c->state == CALL_POSTING ? c->callback : wf->delivery.sink;
    const char *why;

    if (!cb || !url)
        return "nobody may be called back, or there is no deadLetterSink any more";
    if (c->state == CALL_POSTING && (why = rr_callback_refused(cb, url)))
        return why;
    if (!present(c, c->state == CALL_POSTING))
        return "it cannot be read";
    c->sending = make_sending(a, c, url, wf);
    if (!c->sending)
        return "there is no memory for it";
    a->n_sending++;
    rr_callbacks_send(cb, &c->sending->post);
    return NULL;
}

static void bury_in_file(struct call *c, const struct rr_workflow *wf)
{
    struct rr_dead_letter l;
    int r = -EIO;

    if (c->body && present(c, false)) {
        l = letter_of(c, wf);
        r = rr_dead_letter(&l);
    }
    if (r)
        rr_log(0, "message %s cannot be written to the dead letters %s: %s", c->id,
               wf->dead_letters, strerror(-r));
    else
        count(&c->queue->buried, 1);
}

static void post_or_retry(struct async *a, struct call *c);

/* Its dead letter is where it should be. */
static void after_burial(struct async *a, struct call *c)
{
    drop_body(c);
    c->posts = 0;
    if (!c->result_meta && c->queue->store && c->stored)
        present(c, true); /* so that all of it is written, without the body */
    if (!c->callback) {
        end_call(a, c);
        return;
    }
    c->state = CALL_POSTING;
    touch(c);
    post_or_retry(a, c);
}

static void post_failed(struct async *a, struct call *c, const char *why)
{
    struct queue *q = c->queue;
    struct app *app;
    struct generation *g = current(q, &app);
    const struct rr_workflow *wf = app->wf;

    if (c->state == CALL_BURYING) {
        rr_log(0, "%s: the dead letter of message %s was not taken: %s", app->route->path, c->id,
               why);
        if (wf->dead_letters)
            bury_in_file(c, wf);
    } else {
        rr_log(0, "%s: the callback of message %s failed, its result can be fetched: %s",
               app->route->path, c->id, why);
    }
    rr_generation_unref(g);
    count(&q->posts_failed, 1);
    if (c->state == CALL_BURYING)
        after_burial(a, c);
    else
        end_call(a, c);
}

static void post_or_retry(struct async *a, struct call *c)
{
    struct app *app;
    struct generation *g = current(c->queue, &app);
    const char *why = send_now(a, c, app->wf);

    rr_generation_unref(g);
    if (why)
        post_failed(a, c, why);
}

static void posted(struct async *a, struct sending *s)
{
    struct call *c = s->call;
    int status = s->post.status;
    struct app *app;
    struct generation *g;
    const struct rr_delivery *d;
    uint64_t pause = 0;
    char why[200];

    if (status)
        snprintf(why, sizeof(why), "it was answered with %d", status);
    else
        snprintf(why, sizeof(why), "%s", s->post.error);
    c->sending = NULL;
    free_sending(s);
    a->n_sending--;
    if (c->cancelled) {
        drop_call(a, c);
        return;
    }
    if (status >= 200 && status < 300) {
        count(c->state == CALL_BURYING ? &c->queue->buried : &c->queue->posted, 1);
        if (c->state == CALL_BURYING)
            after_burial(a, c);
        else
            end_call(a, c);
        return;
    }
    g = current(c->queue, &app);
    d = &app->wf->delivery;
    if (rr_post_may_retry(status) && c->posts < (d->given ? d->retry : POST_RETRY))
        pause = rr_delivery_backoff_ns(d, ++c->posts);
    rr_generation_unref(g);
    if (!pause) {
        post_failed(a, c, why);
        return;
    }
    count(&c->queue->retries, 1);
    rr_timer_set(&a->calls, c, rr_now_ns() + pause);
    touch(c);
}

/* --- attempts -------------------------------------------------------------------------------- */

/* What a failure is told as. */
static void make_problem(struct call *c)
{
    char detail[sizeof(c->error) + 1], status[8], trace[56] = "", *text;
    struct rr_text parent;
    struct meta m = {0};
    struct blob *b;
    size_t n;

    for (n = 0; c->error[n]; n++) {
        detail[n] = c->error[n];
        if ((unsigned char)detail[n] < 0x20 || strchr("\"\\", detail[n]))
            detail[n] = ' ';
    }
    detail[n] = '\0';
    if (c->meta && rr_meta_find(c->meta, c->meta_len, "traceparent", &parent) &&
        parent.len == sizeof(trace) - 1)
        memcpy(trace, parent.at, parent.len);
    text = rr_problem_text(c->status, detail, trace);
    snprintf(status, sizeof(status), "%d", c->status);
    rr_meta_put(&m, "", (struct rr_text){"content-type", 12},
                (struct rr_text){"application/problem+json", 24});
    rr_meta_put(&m, "", (struct rr_text){"http-status", 11},
                (struct rr_text){status, strlen(status)});
    b = rr_blob_new(text ? strlen(text) : 0);
    if (b && text)
        memcpy(b->data, text, strlen(text));
    free(text);
    free(c->result_meta);
    c->result_meta = m.data;
    c->result_meta_len = m.len;
    set_result(c, b);
}

static void lost(struct async *a, struct call *c)
{
    struct app *app;
    struct generation *g = current(c->queue, &app);
    const struct rr_workflow *wf = app->wf;
    bool sink = wf->delivery.sink != NULL;

    rr_log(0, "%s: message %s is given up after %u attempts: %s%s", app->route->path, c->id,
           c->attempts, c->error,
           sink || wf->dead_letters ? "" : "; `dead_letters` or `deadLetterSink` would keep it");
    if (!c->result)
        make_problem(c);
    c->finished = true;
    c->state = CALL_BURYING;
    touch(c);
    if (!sink && wf->dead_letters)
        bury_in_file(c, wf);
    rr_generation_unref(g);
    if (sink)
        post_or_retry(a, c);
    else
        after_burial(a, c);
}

static void wait_again(struct async *a, struct call *c, uint64_t pause)
{
    c->state = CALL_WAITING;
    if (c->result_file)
        rr_store_unlink(c->queue->store, c->id, true);
    c->result_file = false;
    set_result(c, NULL);
    free(rr_take(c->result_meta));
    c->result_meta_len = 0;
    if (pause)
        rr_timer_set(&a->calls, c, rr_now_ns() + pause);
    else
        rr_list_add(&c->queue->ready, c);
    touch(c);
}

static void attempt_failed(struct async *a, struct call *c, const struct rr_delivery *d)
{
    c->failures++;
    if (!rr_post_may_retry(c->status) || c->failures > d->retry) {
        lost(a, c);
        return;
    }
    count(&c->queue->retries, 1);
    wait_again(a, c, rr_delivery_backoff_ns(d, c->failures));
}

static void succeeded(struct async *a, struct call *c)
{
    c->error[0] = '\0';
    c->finished = true;
    drop_body(c);
    if (!c->callback) {
        end_call(a, c);
        return;
    }
    c->state = CALL_POSTING;
    touch(c);
    post_or_retry(a, c);
}

static void judge(struct call *c, const struct job *job)
{
    const char *what = "a function answered with an error";

    c->status = job->err    ? rr_error_status(job->err->code)
                : c->result ? rr_reply_status(c->result_meta, c->result_meta_len)
                            : 503;
    if (job->err || !c->result)
        what = rr_problem_of(job->err);
    else if (!c->status)
        what = "a function set an http-status that is none from 200 to 599";
    if (!c->status)
        c->status = 502;
    snprintf(c->error, sizeof(c->error), "%s", what);
    if (job->err && job->err->text[0] && job->err->code != RR_E_CANCELLED)
        rr_log(0, "%s: message %s, attempt %u: %s", job->app->route->path, c->id, c->attempts,
               job->err->text);
}

static void ran(struct async *a, struct call *c)
{
    struct app *app = c->job.app;
    bool stopped = c->job.err && c->job.err->code == RR_E_CANCELLED;

    c->queue->n_running--;
    judge(c, &c->job);
    free(rr_take(c->job.err));
    if (c->result)
        c->queue->bytes += c->result->len;
    if (c->cancelled) {
        drop_call(a, c);
    } else if (c->status < 400) {
        succeeded(a, c);
    } else if (stopped) {
        a->halted = true; /* it did not fail: the server ends */
        wait_again(a, c, 0);
    } else {
        attempt_failed(a, c, &app->wf->delivery);
    }
    rr_generation_unref(app->generation);
}

/* On a thread of the pool: its payload into a window, and its result out of one. */
static int load_input(struct call *c, struct rr_error *err)
{
    struct app *app = c->job.app;
    const struct rr_worker *w = app->seats[0].worker;
    struct meta m = {0};
    char attempt[16];
    uint64_t cap;
    int r;

    if (c->body->len > rr_worker_input_max(w))
        return rr_error_set(err, RR_E_LIMIT, "raise the `max` of the input's edge",
                            "the message is longer than the input's `max`, which was lowered");
    r = rr_inbound_new(w, c->body->len, &c->job.in, err);
    if (r)
        return r;
    if (rr_blob_read(c->body, 0, rr_inbound_room(c->job.in, &cap), c->body->len))
        return rr_error_set(err, RR_E_SYSTEM, "look at the disk", "the message cannot be read");
    m.data = malloc(c->meta_len ? c->meta_len : 1);
    if (!m.data)
        return rr_error_no_memory(err);
    memcpy(m.data, c->meta, c->meta_len);
    m.cap = c->meta_len ? c->meta_len : 1;
    m.len = c->meta_len;
    snprintf(attempt, sizeof(attempt), "%u", c->attempts);
    rr_meta_put(&m, "", (struct rr_text){"rr-call-id", 10}, (struct rr_text){c->id, CALL_ID});
    rr_meta_put(&m, "", (struct rr_text){"rr-call-attempt", 15},
                (struct rr_text){attempt, strlen(attempt)});
    rr_inbound_end(c->job.in, c->body->len, m.data, m.len);
    return 0;
}

static int take_result(struct call *c, struct rr_error *err)
{
    struct store *store = c->queue->store;
    const uint8_t *data, *meta;
    uint64_t len;
    size_t meta_len;
    int r = 0;

    data = rr_outbound_data(c->job.out, &len);
    meta = rr_outbound_meta(c->job.out, &meta_len);
    c->result_meta = malloc(meta_len ? meta_len : 1);
    c->result = store && len > CALL_INLINE ? rr_blob_absent(len) : rr_blob_new(len);
    if (!c->result_meta || !c->result)
        r = rr_error_no_memory(err);
    if (r == 0 && c->result->data)
        memcpy(c->result->data, data, len);
    if (r == 0 && !c->result->data) {
        r = rr_store_write(store, c->id, true, data, len);
        c->result_file = r == 0;
        if (r)
            r = rr_error_set(err, RR_E_SYSTEM, "make room on the queue's disk",
                             "the result cannot be written to %.300s: %s", c->queue->path,
                             strerror(-r));
    }
    if (r) {
        rr_blob_unref(rr_take(c->result));
        return r;
    }
    if (meta_len)
        memcpy(c->result_meta, meta, meta_len);
    c->result_meta_len = meta_len;
    return 0;
}

static struct call *call_of(struct job *job)
{
    return (struct call *)(void *)((char *)job - offsetof(struct call, job));
}

void rr_async_run(struct job *job, struct thread *t)
{
    struct call *c = call_of(job);
    struct rr_error err = {0};
    int r = load_input(c, &err);

    if (r == 0) {
        job->trace = rr_trace_begin_attempt(job);
        rr_job_run(job, t);
        rr_trace_end_attempt(rr_take(job->trace), job, c->attempts);
        if (!job->err && job->out)
            r = take_result(c, &err);
    }
    rr_message_free(rr_take(job->in));
    rr_message_free(rr_take(job->out));
    if (r && !job->err && (job->err = malloc(sizeof(err))))
        *job->err = err;
}

void rr_async_ran(struct job *job)
{
    struct call *c = call_of(job);

    c->ran.kind = ITEM_RAN;
    rr_inbox_put(&c->queue->gw->async->inbox, &c->ran);
}

/* --- starting -------------------------------------------------------------------------------- */

static bool held_back(const struct queue *q)
{
    return q->store && atomic_load(&q->gw->draining);
}

/* They get half of the threads, and who waits for an answer the others. */
static void start_ready(struct async *a, struct queue *q)
{
    struct app *app;
    struct generation *g;
    unsigned int most;

    if (!q->ready.first || a->halted || held_back(q))
        return;
    g = current(q, &app);
    most = (app->isolated ? app->n_lanes : q->gw->o.concurrency) / 2;
    rr_generation_unref(g);
    while (q->ready.first && q->n_running < (most ? most : 1)) {
        struct call *c = q->ready.first;

        rr_list_remove(c);
        c->state = CALL_RUNNING;
        c->attempts++;
        q->n_running++;
        rr_list_add(&a->starting, c);
        touch(c);
    }
}

static void launch(struct async *a, struct call *c)
{
    struct queue *q = c->queue;
    uint64_t now = rr_now_ns(), most = q->gw->o.deadline_ns;
    const struct rr_delivery *d;
    struct app *app;
    struct generation *g = current(q, &app);

    rr_list_remove(c);
    d = &app->wf->delivery;
    if (!present(c, false)) {
        q->n_running--;
        c->status = 503;
        snprintf(c->error, sizeof(c->error), "the message cannot be read");
        attempt_failed(a, c, d);
        rr_generation_unref(g);
        return;
    }
    c->job = (struct job){.app = app, .of_call = true, .begin_ns = now};
    if (d->timeout_ns)
        most = most ? rr_min(most, d->timeout_ns) : d->timeout_ns;
    c->job.deadline_ns = most ? now + most : 0;
    rr_pool_submit(&q->gw->pool, &c->job, UINT32_MAX);
}

/* --- writing what changed -------------------------------------------------------------------- */

static void answer(struct ask *ask)
{
    rr_loop_post(ask->job);
}

static void refuse(struct queue *q, struct ask *ask, const char *why)
{
    ask->status = 503;
    ask->why = why;
    if (ask->call && ask->call->body_file)
        rr_store_unlink(q->store, ask->call->id, false);
    rr_call_free(rr_take(ask->call));
    atomic_fetch_add(&q->refused, 1);
    answer(ask);
}

/* When it is due, or would be forgotten. */
static int64_t due_ms(const struct call *c)
{
    uint64_t now = rr_now_ns();

    return c->timer && c->due_ns > now ? wall_ms() + (int64_t)((c->due_ns - now) / 1000000) : 0;
}

static int write_all(struct queue *q)
{
    int r = q->store ? rr_store_begin(q->store) : 0;

    for (struct call *c = q->dirty; c && q->store && r == 0; c = c->dirty_next)
        if (!c->removed)
            r = rr_store_put(q->store, c, due_ms(c));
        else if (c->stored)
            r = rr_store_remove(q->store, c);
    if (q->store && r == 0)
        r = rr_store_commit(q->store);
    if (r)
        rr_store_rollback(q->store);
    return r;
}

static void forget(struct blob **b)
{
    struct blob *absent = *b && ((*b)->data || (*b)->fd >= 0) ? rr_blob_absent((*b)->len) : NULL;

    if (absent) {
        rr_blob_unref(*b);
        *b = absent;
    }
}

/* It is written: what is no longer wanted goes, and in a store also what it has. */
static void settle(struct call *c)
{
    struct store *store = c->queue->store;
    struct ask *ask = rr_take(c->asker);

    c->dirty = false;
    c->stored = store != NULL;
    if (ask) {
        ask->status = 202;
        answer(ask);
    }
    if (store && c->body_file && (c->removed || !c->body)) {
        rr_store_unlink(store, c->id, false);
        c->body_file = false;
    }
    if (store && c->result_file && c->removed)
        rr_store_unlink(store, c->id, true);
    if (c->removed) {
        rr_call_free(c);
        return;
    }
    if (!store || c->state == CALL_RUNNING || c->sending)
        return;
    forget(&c->body);
    forget(&c->result);
    free(rr_take(c->meta));
    free(rr_take(c->result_meta));
}

/* The disk is full, or broken: those that nobody was told of are refused, the others wait. */
static bool refuse_new(struct async *a, struct queue *q, const char *why)
{
    struct call *dirty = rr_take(q->dirty);
    bool any = false;

    for (struct call *c = dirty, *next; c; c = next) {
        struct ask *ask = rr_take(c->asker);

        next = c->dirty_next;
        if (!ask) {
            c->dirty_next = q->dirty;
            q->dirty = c;
            continue;
        }
        any = true;
        if (c->state == CALL_RUNNING)
            q->n_running--;
        q->n_pending--;
        drop_body(c);
        rr_calls_remove(&a->calls, c);
        ask->call = c;
        show(q);
        refuse(q, ask, why);
    }
    return any;
}

static void write_queue(struct async *a, struct queue *q)
{
    struct call *dirty;

    if (!q->dirty || rr_now_ns() < q->retry_ns)
        return;
    show(q);
    show_busy(a);
    if (write_all(q)) {
        rr_log(0, "the queue in %s cannot be written, new messages are refused: %s", q->path,
               rr_store_why(q->store));
        q->retry_ns = rr_now_ns() + RETRY_STORE_NS;
        if (!refuse_new(a, q, "the queue cannot be written") || !q->dirty || write_all(q))
            return;
    }
    q->retry_ns = 0;
    dirty = rr_take(q->dirty);
    while (dirty) {
        struct call *c = dirty;

        dirty = c->dirty_next;
        settle(c);
    }
    show_busy(a);
}

/* --- what is asked --------------------------------------------------------------------------- */

/* Room for another; finished ones make some. */
static const char *full(struct async *a, struct queue *q, const struct rr_queue *limits,
                        uint64_t len)
{
    if (q->n_pending >= limits->messages)
        return "too many asynchronous messages are waiting";
    while (q->bytes + len > limits->bytes && q->finished.first)
        drop_call(a, q->finished.first);
    return q->bytes + len > limits->bytes && q->n_pending
               ? "the asynchronous messages that are waiting are too large together"
               : NULL;
}

static void accept_call(struct async *a, struct ask *ask)
{
    struct call *c = ask->call;
    struct queue *q = c->queue;
    const char *why = ask->why;

    if (!why && rr_now_ns() < q->retry_ns)
        why = "the queue cannot be written";
    if (!why)
        why = full(a, q, &ask->job->app->wf->queue, c->body->len);
    if (!why && !rr_calls_add(&a->calls, c))
        why = "the server is short of memory";
    if (why) {
        refuse(q, ask, why);
        return;
    }
    ask->call = NULL;
    c->asker = ask;
    q->bytes += c->body->len;
    q->n_pending++;
    atomic_fetch_add(&q->accepted, 1);
    rr_list_add(&q->ready, c);
    touch(c);
}

static const char *state_name(const struct call *c)
{
    switch (c->state) {
    case CALL_WAITING:
        return c->failures ? "retrying" : "waiting";
    case CALL_RUNNING:
        return "running";
    case CALL_POSTING:
        return "calling-back";
    case CALL_DONE:
        return "succeeded";
    case CALL_BURYING:
    case CALL_FAILED:
        return "failed";
    }
    return "";
}

static char *state_text(const struct call *c)
{
    struct json_object *o = json_object_new_object();
    char time[40], result[96], *text;
    time_t s = (time_t)(c->created_ms / 1000);
    struct tm tm;

    gmtime_r(&s, &tm);
    strftime(time, sizeof(time), "%Y-%m-%dT%H:%M:%SZ", &tm);
    json_object_object_add(o, "id", json_object_new_string(c->id));
    json_object_object_add(o, "state", json_object_new_string(state_name(c)));
    json_object_object_add(o, "attempts", json_object_new_int64(c->attempts));
    json_object_object_add(o, "accepted", json_object_new_string(time));
    if (c->status)
        json_object_object_add(o, "status", json_object_new_int(c->status));
    if (c->status >= 400)
        json_object_object_add(o, "error", json_object_new_string(c->error));
    if (c->finished && c->result) {
        snprintf(result, sizeof(result), RR_ASK_PATH "%s/result", c->id);
        json_object_object_add(o, "result", json_object_new_string(result));
        json_object_object_add(o, "bytes", json_object_new_int64((int64_t)c->result->len));
    }
    if (asprintf(&text, "%s\n",
                 json_object_to_json_string_ext(o, JSON_C_TO_STRING_SPACED |
                                                       JSON_C_TO_STRING_NOSLASHESCAPE)) < 0)
        text = NULL;
    json_object_put(o);
    return text;
}

static void give_result(struct async *a, struct ask *ask, struct call *c)
{
    uint64_t len = c->result->len;
    bool file;

    ask->status = 503;
    ask->why = "the server is short of memory";
    if (present(c, true) && (ask->meta = malloc(c->result_meta_len + 1))) {
        memcpy(ask->meta, c->result_meta, c->result_meta_len);
        ask->meta_len = c->result_meta_len;
        ask->result = rr_blob_ref(c->result);
        ask->status = 200;
    }
    if (c->queue->store && !c->dirty && !c->sending && c->state > CALL_RUNNING) {
        forget(&c->result);
        free(rr_take(c->result_meta));
    }
    file = ask->result && !ask->result->data;
    if (file && !rr_budget_take(&a->gw->bodies, len)) {
        ask->status = 503;
        file = false;
    } else if (file) {
        ask->budget_bytes = len;
    }
    if (file)
        rr_inbox_put(&a->to_store, &ask->item);
    else
        answer(ask);
}

static void cancel(struct async *a, struct call *c)
{
    c->cancelled = true;
    if (c->state == CALL_RUNNING) { /* and so it was launched */
        atomic_store(&c->job.cancelled, true);
        rr_app_nudge(c->job.app);
    } else if (!c->sending) {
        drop_call(a, c);
    }
}

static void take_ask(struct async *a, struct ask *ask)
{
    struct call *c = ask->what == ASK_ACCEPT ? NULL : rr_calls_find(&a->calls, ask->id);

    if (ask->what == ASK_ACCEPT) {
        accept_call(a, ask);
        return;
    }
    if (!c || c->cancelled) {
        ask->status = 404;
        ask->why = "there is no such message, or it was done some time ago";
        answer(ask);
        return;
    }
    if (ask->what == ASK_RESULT && c->finished && c->result) {
        give_result(a, ask, c);
        return;
    }
    ask->status = ask->what == ASK_CANCEL ? 204 : ask->what == ASK_STATE ? 200 : 202;
    if (ask->what == ASK_CANCEL)
        cancel(a, c);
    else
        ask->text = state_text(c);
    answer(ask);
}

/* --- the thread ------------------------------------------------------------------------------ */

static void fire(struct async *a, struct call *c)
{
    rr_timer_clear(&a->calls, c);
    switch (c->state) {
    case CALL_WAITING:
        rr_list_add(&c->queue->ready, c);
        break;
    case CALL_BURYING:
    case CALL_POSTING:
        if (!held_back(c->queue)) /* else after the restart */
            post_or_retry(a, c);
        break;
    case CALL_DONE:
    case CALL_FAILED:
        drop_call(a, c);
        break;
    case CALL_RUNNING:
        break;
    }
}

static void take_item(struct async *a, struct item *item)
{
    switch (item->kind) {
    case ITEM_ASK:
        take_ask(a, (struct ask *)(void *)item);
        break;
    case ITEM_RAN:
        ran(a, (struct call *)(void *)((char *)item - offsetof(struct call, ran)));
        break;
    case ITEM_POSTED:
        posted(a, (struct sending *)(void *)((char *)item - offsetof(struct sending, item)));
        break;
    }
}

static void prune_events(struct async *a, uint64_t now)
{
    if (!a->gw->events || now < a->next_prune_ns)
        return;
    a->next_prune_ns = now + PRUNE_NS;
    for (size_t n = 0; n < a->n_queues; n++)
        if (a->queues[n].store)
            rr_store_events(a->queues[n].store,
                            wall_ms() - (int64_t)(a->gw->o.duplicates_ns / 1000000), NULL, NULL);
}

static void turn(struct async *a, struct item *items)
{
    uint64_t now;

    for (struct item *next; items; items = next) {
        next = items->next;
        take_item(a, items);
    }
    now = rr_now_ns();
    while (a->calls.n_timers && a->calls.heap[0]->due_ns <= now)
        fire(a, a->calls.heap[0]);
    for (size_t n = 0; n < a->n_queues; n++)
        start_ready(a, &a->queues[n]);
    for (size_t n = 0; n < a->n_queues; n++)
        write_queue(a, &a->queues[n]);
    while (a->starting.first)
        launch(a, a->starting.first);
    for (size_t n = 0; n < a->n_queues; n++)
        show(&a->queues[n]);
    show_busy(a);
    prune_events(a, now);
}

/* When there is something to do though nothing is told; 0: never. */
static uint64_t next_ns(const struct async *a)
{
    uint64_t at = a->calls.n_timers ? a->calls.heap[0]->due_ns : UINT64_MAX;

    for (size_t n = 0; n < a->n_queues; n++) {
        if (a->queues[n].dirty) /* by what was launched, or since the store failed */
            at = rr_min(at, a->queues[n].retry_ns);
        if (a->queues[n].store && a->gw->events)
            at = rr_min(at, a->next_prune_ns);
    }
    return at;
}

static void *async_main(void *user)
{
    struct async *a = user;
    struct item *items;

    for (uint64_t at = 0; rr_inbox_take(&a->inbox, at, &items); at = next_ns(a))
        turn(a, items);
    return NULL;
}

/* --- long payloads --------------------------------------------------------------------------- */

static void store_body(struct ask *ask)
{
    struct call *c = ask->call;
    struct store *store = c->queue->store;
    uint64_t len;
    const uint8_t *data = rr_outbound_data(ask->in, &len);
    int r = 0;

    c->body = store ? rr_blob_absent(len) : rr_blob_new(len);
    if (!c->body)
        r = -ENOMEM;
    else if (store)
        r = rr_store_write(store, c->id, false, data, len);
    else
        memcpy(c->body->data, data, len);
    c->body_file = store && r == 0;
    rr_message_free(rr_take(ask->in));
    if (r == 0)
        return;
    ask->why = r == -ENOMEM ? "the server is short of memory" : "the queue cannot be written";
    rr_log(0, "a message cannot be stored%s%s: %s", store ? " in " : "",
           store ? c->queue->path : "", strerror(-r));
}

static void read_result(struct ask *ask)
{
    struct blob *b = rr_blob_new(ask->result->len);

    if (!b || rr_blob_read(ask->result, 0, b->data, b->len)) {
        rr_blob_unref(b);
        ask->status = 503;
        ask->why = "the result cannot be read";
        return;
    }
    rr_blob_unref(ask->result);
    ask->result = b;
}

static void *storer_main(void *user)
{
    struct async *a = user;
    struct item *items;

    while (rr_inbox_take(&a->to_store, UINT64_MAX, &items))
        for (struct item *next; items; items = next) {
            struct ask *ask = (struct ask *)(void *)items;

            next = items->next;
            if (ask->what == ASK_ACCEPT) {
                store_body(ask);
                rr_inbox_put(&a->inbox, items);
            } else {
                read_result(ask);
                answer(ask);
            }
        }
    rr_message_thread_end();
    return NULL;
}

void rr_async_send(struct gateway *gw, struct ask *ask)
{
    ask->gw = gw;
    ask->item.kind = ITEM_ASK;
    rr_inbox_put(ask->in ? &gw->async->to_store : &gw->async->inbox, &ask->item);
}

/* --- start and end --------------------------------------------------------------------------- */

struct queue *rr_async_queue(struct gateway *gw, size_t route)
{
    return &gw->async->queues[route];
}

struct callbacks *rr_async_callbacks(struct gateway *gw)
{
    return atomic_load(&gw->async->callbacks);
}

bool rr_async_idle(struct gateway *gw)
{
    return !gw->async || atomic_load(&gw->async->busy) == 0;
}

/* From an earlier life of the server. */
static void restore(void *user, struct call *c)
{
    struct queue *q = user;
    struct async *a = q->gw->async;
    int64_t left = (int64_t)c->due_ns - wall_ms(); /* due_ns is in ms of 1970 here */
    uint64_t due = rr_now_ns() + (left > 0 ? (uint64_t)left * 1000000 : 0);

    c->queue = q;
    if (!rr_calls_add(&a->calls, c)) {
        rr_log(0, "message %s stays in %s for want of memory", c->id, q->path);
        rr_call_free(c);
        return;
    }
    q->bytes += (c->body ? c->body->len : 0) + (c->result ? c->result->len : 0);
    if (c->state == CALL_DONE || c->state == CALL_FAILED) {
        q->n_finished++;
        rr_list_add(&q->finished, c);
        rr_timer_set(&a->calls, c, due);
        return;
    }
    q->n_pending++;
    count(&q->recovered, 1);
    if (c->state > CALL_RUNNING || (c->state == CALL_WAITING && left > 0)) {
        rr_timer_set(&a->calls, c, due);
        return;
    }
    c->state = CALL_WAITING;
    if (c->attempts - c->failures > CALL_MAX_INTERRUPTED) {
        c->status = 502;
        snprintf(c->error, sizeof(c->error), "the server ended in each of its last %u attempts",
                 c->attempts - c->failures);
        lost(a, c);
        return;
    }
    rr_list_add(&q->ready, c);
}

static void restore_event(void *user, const uint8_t key[32], int64_t ms)
{
    struct queue *q = user;
    int64_t ago = wall_ms() - ms;

    rr_event_restore(q->gw->events, key, ago > 0 ? (uint64_t)ago * 1000000 : 0);
}

static int open_queue(struct async *a, size_t n, const struct rr_workflow *wf, struct rr_error *err)
{
    struct queue *q = &a->queues[n];
    int64_t since;
    int r;

    q->gw = a->gw;
    q->route = n;
    if (!wf->queue.path)
        return 0;
    for (size_t k = 0; k < n; k++)
        if (a->queues[k].path && strcmp(a->queues[k].path, wf->queue.path) == 0)
            return rr_error_set(err, RR_E_INVALID, "give each workflow a folder of its own",
                                "two workflows have their queues in %.300s", wf->queue.path);
    q->path = strdup(wf->queue.path);
    r = q->path ? rr_store_open(q->path, &q->store, err) : rr_error_no_memory(err);
    if (r == 0)
        r = rr_store_recover(q->store, q, restore, err);
    since = wall_ms() - (int64_t)(a->gw->o.duplicates_ns / 1000000);
    if (r == 0 && a->gw->events && rr_store_events(q->store, since, q, restore_event))
        r = rr_error_set(err, RR_E_OUTPUT, "look at the folder and its disk",
                         "the events in %.300s cannot be read", q->path);
    if (r) {
        rr_error_at(err, wf->path, wf->queue.path_pos.line, wf->queue.path_pos.column);
        return r;
    }
    show(q);
    if (q->n_pending && !a->gw->o.quiet)
        fprintf(stderr, "roadrunner: %u messages in %s go on\n", q->n_pending, q->path);
    return 0;
}

static int want_callbacks(struct async *a, const struct generation *g, struct rr_error *err)
{
    const struct rr_gateway_options *o = &a->gw->o;
    struct callbacks *cb = NULL;
    bool wanted = o->n_callbacks > 0;
    int r;

    for (size_t n = 0; n < g->n_apps; n++)
        wanted = wanted || g->apps[n].wf->delivery.sink || rr_letters_wanted(g->apps[n].wf);
    if (!wanted || atomic_load(&a->callbacks))
        return 0;
    r = rr_callbacks_new(o, &cb, err);
    if (r == 0)
        atomic_store(&a->callbacks, cb);
    return r;
}

int rr_async_fits(struct gateway *gw, const struct generation *g, struct rr_error *err)
{
    for (size_t n = 0; n < g->n_apps; n++) {
        const char *now = gw->async->queues[n].path, *then = g->apps[n].wf->queue.path;

        if (now != then && (!now || !then || strcmp(now, then) != 0)) {
            rr_error_set(err, RR_E_INVALID, "restart the server to move a queue",
                         "the queue's path is another than at the start");
            rr_error_at(err, g->apps[n].route->workflow, 0, 0);
            return RR_E_INVALID;
        }
    }
    return want_callbacks(gw->async, g, err);
}

int rr_async_new(struct gateway *gw, struct rr_error *err)
{
    struct async *a = calloc(1, sizeof(*a));
    int r;

    if (!a)
        return rr_error_no_memory(err);
    gw->async = a;
    a->gw = gw;
    rr_inbox_init(&a->inbox);
    rr_inbox_init(&a->to_store);
    a->queues = calloc(gw->o.n_routes, sizeof(*a->queues));
    if (!a->queues || !rr_calls_init(&a->calls))
        return rr_error_no_memory(err);
    a->n_queues = gw->o.n_routes;
    r = want_callbacks(a, gw->generation, err);
    for (size_t n = 0; n < a->n_queues && r == 0; n++)
        r = open_queue(a, n, gw->generation->apps[n].wf, err);
    if (r)
        return r;
    a->storer_runs = pthread_create(&a->storer, NULL, storer_main, a) == 0;
    a->runs = a->storer_runs && pthread_create(&a->thread, NULL, async_main, a) == 0;
    if (!a->runs)
        return rr_error_set(err, RR_E_SYSTEM, "raise the limit on threads",
                            "cannot start a thread");
    return 0;
}

void rr_async_stop(struct gateway *gw)
{
    struct async *a = gw->async;

    if (!a)
        return;
    if (a->storer_runs) {
        rr_inbox_stop(&a->to_store);
        pthread_join(a->storer, NULL);
    }
    rr_callbacks_free(atomic_exchange(&a->callbacks, NULL));
    if (a->runs) {
        rr_inbox_stop(&a->inbox);
        pthread_join(a->thread, NULL);
    }
}

/* Those that only memory has end with it. */
static void give_up(struct queue *q, struct call *c, const struct rr_workflow *wf, unsigned int *n)
{
    if (q->store || c->state == CALL_DONE || c->state == CALL_FAILED)
        return;
    ++*n;
    if (c->state == CALL_WAITING && wf->dead_letters) {
        snprintf(c->error, sizeof(c->error), "the server ended");
        bury_in_file(c, wf);
    }
}

void rr_async_free(struct gateway *gw)
{
    struct async *a = rr_take(gw->async);
    unsigned int lost_calls = 0;

    if (!a)
        return;
    for (size_t n = 0; n < a->n_queues; n++) /* those that a store did not hear of any more */
        for (struct call *c = a->queues[n].dirty, *next; c; c = next) {
            next = c->dirty_next;
            if (c->removed)
                rr_call_free(c);
        }
    for (size_t n = 0; n < a->calls.n_buckets; n++)
        for (struct call *c = a->calls.buckets[n], *next; c; c = next) {
            next = c->bucket_next;
            give_up(c->queue, c, gw->generation->apps[c->queue->route].wf, &lost_calls);
            rr_call_free(c);
        }
    if (lost_calls)
        rr_log(0, "%u asynchronous messages were not done: `queue: {path: DIR}` would keep them",
               lost_calls);
    for (size_t n = 0; n < a->n_queues; n++) {
        rr_store_close(a->queues[n].store);
        free(a->queues[n].path);
    }
    free(a->queues);
    rr_calls_deinit(&a->calls);
    rr_inbox_deinit(&a->inbox);
    rr_inbox_deinit(&a->to_store);
    free(a);
}

/* --- figures --------------------------------------------------------------------------------- */

static const struct {
    const char *name, *type, *help;
    size_t offset;
} figures[] = {
    {"async_depth", "gauge", "Asynchronous messages that are not done.",
     offsetof(struct queue, depth)},
    {"async_bytes", "gauge", "Payload of asynchronous messages and of results that are kept.",
     offsetof(struct queue, held_bytes)},
    {"async_accepted_total", "counter", "Asynchronous messages accepted.",
     offsetof(struct queue, accepted)},
    {"async_refused_total", "counter", "Asynchronous messages refused, for want of room.",
     offsetof(struct queue, refused)},
    {"async_recovered_total", "counter", "Asynchronous messages found at the start.",
     offsetof(struct queue, recovered)},
    {"async_succeeded_total", "counter", "Asynchronous messages that went well.",
     offsetof(struct queue, done)},
    {"async_failed_total", "counter", "Asynchronous messages that were given up.",
     offsetof(struct queue, failed)},
    {"async_retries_total", "counter", "Further attempts, callbacks included.",
     offsetof(struct queue, retries)},
    {"dead_letters_total", "counter", "Messages given up that were put aside.",
     offsetof(struct queue, buried)},
    {"callbacks_total", "counter", "Results that callbacks took.", offsetof(struct queue, posted)},
    {"callback_failures_total", "counter", "Results and dead letters that nobody took.",
     offsetof(struct queue, posts_failed)},
};

void rr_async_stats(FILE *f, struct gateway *gw)
{
    for (size_t k = 0; k < RR_ARRAY_LEN(figures); k++) {
        fprintf(f, "# HELP roadrunner_%s %s\n# TYPE roadrunner_%s %s\n", figures[k].name,
                figures[k].help, figures[k].name, figures[k].type);
        for (size_t n = 0; n < gw->async->n_queues; n++)
            fprintf(f, "roadrunner_%s{workflow=\"%s\"} %llu\n", figures[k].name,
                    gw->o.routes[n].path,
                    (unsigned long long)counted(
                        (const counter *)(const void *)((const char *)&gw->async->queues[n] +
                                                        figures[k].offset)));
    }
}
