/* SPDX-License-Identifier: Apache-2.0 */
/* Asynchronous messages, as connections see them: handing one over, and asking after it. */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/util.h"
#include "gateway/async.h"

static bool header_of(const struct conn *c, const char *name, struct rr_text *ret)
{
    return rr_meta_find(c->meta.data, c->meta.len, name, ret);
}

bool rr_ask_wanted(const struct conn *c)
{
    struct rr_text t;

    return c->app->wf->queue.always || header_of(c, "http-header:x-callback-url", &t) ||
           (header_of(c, "http-header:prefer", &t) && rr_text_has(t, "respond-async"));
}

void rr_ask_free(struct ask *ask)
{
    if (!ask)
        return;
    rr_call_free(ask->call);
    rr_message_free(ask->in);
    rr_blob_unref(ask->result);
    if (ask->budget_bytes)
        rr_budget_give(&ask->gw->bodies, ask->budget_bytes);
    free(ask->meta);
    free(ask->text);
    free(ask);
}

static bool random_id(char id[CALL_ID + 1])
{
    uint8_t bytes[CALL_ID / 2];

    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        return false;
    rr_hex(bytes, sizeof(bytes), id);
    return true;
}

/* The URL, if it may be called. False: it was answered. */
static bool take_callback(struct conn *c, struct call *call)
{
    struct rr_text t;
    const char *why;

    if (!header_of(c, "http-header:x-callback-url", &t))
        return true;
    call->callback = strndup(t.at, t.len);
    if (!call->callback)
        why = "the server is short of memory";
    else
        why = rr_callback_refused(rr_async_callbacks(c->loop->gw), call->callback);
    if (!why)
        return true;
    rr_reply_problem(c, call->callback ? 403 : 503, "%s", why);
    return false;
}

/* The body: a short one is copied here, a long one by a thread that has the time. */
static bool take_body(struct conn *c, struct call *call, struct ask *ask)
{
    uint64_t cap;

    if (c->body_len > CALL_INLINE) {
        rr_inbound_end(c->body, c->body_len, NULL, 0);
        ask->in = rr_take(c->body);
        return true;
    }
    call->body = rr_blob_new(c->body_len);
    if (call->body)
        memcpy(call->body->data, rr_inbound_room(c->body, &cap), c->body_len);
    rr_message_free(rr_take(c->body));
    return call->body != NULL;
}

static bool make_call(struct conn *c, struct call *call)
{
    struct timespec now;

    if (!random_id(call->id)) {
        rr_reply_problem(c, 503, "there are no random numbers");
        return false;
    }
    if (!take_callback(c, call))
        return false;
    clock_gettime(CLOCK_REALTIME, &now);
    call->created_ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    call->queue = rr_async_queue(c->loop->gw, (size_t)(c->app - c->app->generation->apps));
    call->has_event =
        c->loop->gw->events && rr_event_key(c->app->route->path, &c->meta, call->event);
    return true;
}

static bool is_full(const struct conn *c, const struct queue *q)
{
    const struct rr_queue *limits = &c->app->wf->queue;

    return atomic_load_explicit(&q->depth, memory_order_relaxed) >= limits->messages;
}

static void hand_over(struct conn *c, struct ask *ask)
{
    c->ask = ask;
    c->job = (struct job){.loop = c->loop, .app = c->app};
    ask->job = &c->job;
    c->state = CONN_WAIT;
    c->since_ns = rr_now_ns();
    rr_async_send(c->loop->gw, ask);
}

void rr_ask_accept(struct conn *c)
{
    struct ask *ask = calloc(1, sizeof(*ask));
    struct call *call = calloc(1, sizeof(*call));

    count(&c->app->seats[c->loop->runner->id].stats.received_bytes, c->body_len);
    if (!ask || !call) {
        rr_reply_problem(c, 503, "the server is short of memory");
    } else if (make_call(c, call)) {
        if (is_full(c, call->queue)) { /* before a long body is written */
            atomic_fetch_add(&call->queue->refused, 1);
            rr_reply_problem(c, 503, "too many asynchronous messages are waiting");
        } else if (!take_body(c, call, ask)) {
            rr_reply_problem(c, 503, "the server is short of memory");
        } else {
            count(&c->app->seats[c->loop->runner->id].stats.copied_in_bytes, c->body_len);
            call->meta = rr_take(c->meta.data);
            call->meta_len = c->meta.len;
            ask->what = ASK_ACCEPT;
            ask->call = call;
            memcpy(ask->id, call->id, sizeof(ask->id));
            hand_over(c, ask);
            return;
        }
    }
    rr_call_free(call);
    rr_ask_free(ask);
}

/* ID or ID/result. */
static bool parse_path(struct rr_text path, char id[CALL_ID + 1], bool *result)
{
    static const char prefix[] = RR_ASK_PATH, suffix[] = "/result";
    size_t len = sizeof(prefix) - 1;

    if (path.len < len + CALL_ID)
        return false;
    for (size_t n = 0; n < CALL_ID; n++) {
        id[n] = path.at[len + n];
        if (!(id[n] >= '0' && id[n] <= '9') && !(id[n] >= 'a' && id[n] <= 'f'))
            return false;
    }
    id[CALL_ID] = '\0';
    len += CALL_ID;
    *result = path.len == len + sizeof(suffix) - 1 &&
              memcmp(path.at + len, suffix, sizeof(suffix) - 1) == 0;
    return path.len == len || *result;
}

bool rr_ask_about(struct conn *c, const struct rr_http_request *rq)
{
    static const char prefix[] = RR_ASK_PATH;
    bool get = rr_text_is(rq->method, "GET") || c->no_body, result = false;
    struct ask *ask;

    if (rq->path.len < sizeof(prefix) - 1 || memcmp(rq->path.at, prefix, sizeof(prefix) - 1) != 0)
        return false;
    c->keep = c->keep && c->body_known == 0;
    ask = calloc(1, sizeof(*ask));
    if (!ask) {
        rr_reply_problem(c, 503, "the server is short of memory");
    } else if (!parse_path(rq->path, ask->id, &result)) {
        rr_reply_problem(c, 404, "this is no address of an asynchronous message");
    } else if (!get && (result || !rr_text_is(rq->method, "DELETE"))) {
        rr_reply_problem(c, 405, "a message takes GET, HEAD and DELETE, its result GET and HEAD");
    } else {
        ask->what = !get ? ASK_CANCEL : result ? ASK_RESULT : ASK_STATE;
        hand_over(c, ask);
        return true;
    }
    rr_ask_free(ask);
    return true;
}

static void answer_accepted(struct conn *c, const struct ask *ask)
{
    char headers[256], body[160];

    snprintf(headers, sizeof(headers),
             "Location: " RR_ASK_PATH "%s\r\nX-Call-Id: %s\r\n"
             "Preference-Applied: respond-async\r\n",
             ask->id, ask->id);
    snprintf(body, sizeof(body), "{\"id\": \"%s\", \"state\": \"waiting\"}\n", ask->id);
    rr_reply_text(c, 202, headers, "application/json", body);
    rr_event_end(c->loop->gw->events, c->event, true); /* it will be handled, come what may */
    c->event = 0;
}

void rr_ask_answer(struct conn *c)
{
    struct ask *ask = c->ask;

    if (ask->status >= 400)
        rr_reply_problem(c, ask->status, "%s", ask->why);
    else if (ask->what == ASK_ACCEPT)
        answer_accepted(c, ask);
    else if (ask->result)
        rr_reply_result(c, ask->meta, ask->meta_len, ask->result->data, ask->result->len);
    else if (ask->what == ASK_CANCEL)
        rr_reply_empty(c, 204);
    else if (!ask->text)
        rr_reply_problem(c, 503, "the server is short of memory");
    else
        rr_reply_text(c, ask->status,
                      ask->status == 202 ? "Retry-After: 1\r\nCache-Control: no-store\r\n"
                                         : "Cache-Control: no-store\r\n",
                      "application/json", ask->text);
}
