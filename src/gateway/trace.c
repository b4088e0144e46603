/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a request's trace has: itself, the functions that ran, the hand-offs between them. Written
 * as OTLP's protobuf once the reply was sent, on the thread that sent it: names may be gone later.
 *
 * Field numbers are those of opentelemetry/proto/trace/v1/trace.proto.
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "gateway/internal.h"

#define MAX_EVENTS 512u /* per request; further ones are counted as dropped */

struct trace_event {
    bool is_span;
    union {
        struct rr_span span;
        struct rr_hop hop;
    };
};

/* --- what happened --------------------------------------------------------------------------- */

struct trace *rr_trace_new(void)
{
    return calloc(1, sizeof(struct trace));
}

void rr_trace_free(struct trace *t)
{
    if (!t)
        return;
    free(t->events);
    free(t);
}

/* What other processes tell may come late: then it belongs to a request before. */
static struct trace_event *next_event(struct trace *t, uint64_t begin_ns)
{
    if (begin_ns < t->since_ns)
        return NULL;
    if (t->n == t->room && t->room < MAX_EVENTS) {
        unsigned int room = t->room ? 2 * t->room : 16;
        struct trace_event *events = reallocarray(t->events, room, sizeof(*events));

        if (events) {
            t->events = events;
            t->room = room;
        }
    }
    if (t->n == t->room) {
        t->n_dropped++;
        return NULL;
    }
    return &t->events[t->n++];
}

void rr_trace_hop(struct trace *t, const struct rr_hop *hop)
{
    struct trace_event *e = next_event(t, hop->sent_ns);

    if (e)
        *e = (struct trace_event){.is_span = false, .hop = *hop};
}

void rr_trace_span(struct trace *t, const struct rr_span *span)
{
    struct trace_event *e = next_event(t, span->begin_ns);

    if (e)
        *e = (struct trace_event){.is_span = true, .span = *span};
}

/* --- protobuf -------------------------------------------------------------------------------- */

enum wire { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

void rr_pb_raw(struct rr_pb *b, const void *data, size_t len)
{
    if (b->failed || !len)
        return;
    if (b->len + len > b->cap) {
        size_t cap = rr_align_up(2 * (b->len + len), 1024);
        uint8_t *more = realloc(b->data, cap);

        if (!more) {
            b->failed = true;
            return;
        }
        b->data = more;
        b->cap = cap;
    }
    memcpy(b->data + b->len, data, len);
    b->len += len;
}

static void put_varint(struct rr_pb *b, uint64_t v)
{
    uint8_t bytes[10];
    size_t n = 0;

    for (; v >= 0x80; v >>= 7)
        bytes[n++] = (uint8_t)(v | 0x80);
    bytes[n++] = (uint8_t)v;
    rr_pb_raw(b, bytes, n);
}

static void put_tag(struct rr_pb *b, unsigned int field, enum wire wire)
{
    put_varint(b, field << 3 | (unsigned int)wire);
}

void rr_pb_uint(struct rr_pb *b, unsigned int field, uint64_t v)
{
    put_tag(b, field, WIRE_VARINT);
    put_varint(b, v);
}

/* @bytes: 8 or 4 */
static void put_fixed(struct rr_pb *b, unsigned int field, uint64_t v, size_t bytes)
{
    uint8_t le[8];

    for (size_t n = 0; n < bytes; n++)
        le[n] = (uint8_t)(v >> 8 * n);
    put_tag(b, field, bytes == 8 ? WIRE_FIXED64 : WIRE_FIXED32);
    rr_pb_raw(b, le, bytes);
}

static void put_bytes(struct rr_pb *b, unsigned int field, const void *data, size_t len)
{
    put_tag(b, field, WIRE_BYTES);
    put_varint(b, len);
    rr_pb_raw(b, data, len);
}

/* A string of protobuf is UTF-8, and one that is not makes a collector refuse the whole batch: what
 * is not ASCII becomes '?'. */
void rr_pb_text(struct rr_pb *b, unsigned int field, const char *s, size_t len)
{
    put_tag(b, field, WIRE_BYTES);
    put_varint(b, len);
    for (size_t n = 0; n < len; n++)
        rr_pb_raw(b, s[n] >= ' ' && s[n] < 0x7f ? &s[n] : "?", 1);
}

#define NESTED_BYTES 4 /* of a length, however small it is: written before it is known */

size_t rr_pb_begin(struct rr_pb *b, unsigned int field)
{
    put_tag(b, field, WIRE_BYTES);
    rr_pb_raw(b, "\0\0\0", NESTED_BYTES);
    return b->len;
}

void rr_pb_end(struct rr_pb *b, size_t begin)
{
    size_t len = b->len - begin;

    if (b->failed)
        return;
    if (len >> 7 * NESTED_BYTES) {
        b->failed = true;
        return;
    }
    for (size_t n = 0; n < NESTED_BYTES; n++, len >>= 7)
        b->data[begin - NESTED_BYTES + n] =
            (uint8_t)((len & 0x7f) | (n + 1 < NESTED_BYTES ? 0x80 : 0));
}

void rr_pb_attribute(struct rr_pb *b, unsigned int field, const char *key, const char *value,
                     size_t len)
{
    size_t attribute = rr_pb_begin(b, field), any;

    rr_pb_text(b, 1, key, strlen(key));
    any = rr_pb_begin(b, 2);
    rr_pb_text(b, 1, value, len);
    rr_pb_end(b, any);
    rr_pb_end(b, attribute);
}

/* --- spans ----------------------------------------------------------------------------------- */

enum {
    SPAN_TRACE_ID = 1,
    SPAN_ID = 2,
    SPAN_PARENT = 4,
    SPAN_NAME = 5,
    SPAN_KIND = 6,
    SPAN_START = 7,
    SPAN_END = 8,
    SPAN_ATTRIBUTE = 9,
    SPAN_STATUS = 15,
    SPAN_FLAGS = 16
};
enum { KIND_INTERNAL = 1, KIND_SERVER = 2, KIND_CONSUMER = 5 };
enum { STATUS_MESSAGE = 2, STATUS_CODE = 3 };
enum { STATUS_ERROR = 2 };
enum { FLAG_SAMPLED = 1, FLAG_REMOTE_KNOWN = 0x100, FLAG_REMOTE = 0x200 };

static void say_text(struct rr_pb *b, const char *key, const char *value)
{
    rr_pb_attribute(b, SPAN_ATTRIBUTE, key, value, strlen(value));
}

static void say(struct rr_pb *b, const char *key, enum wire wire, uint64_t value)
{
    size_t attribute = rr_pb_begin(b, SPAN_ATTRIBUTE), any;

    rr_pb_text(b, 1, key, strlen(key));
    any = rr_pb_begin(b, 2);
    rr_pb_uint(b, wire == WIRE_VARINT ? 3 : 2, value); /* int_value, bool_value */
    rr_pb_end(b, any);
    rr_pb_end(b, attribute);
}

static void say_number(struct rr_pb *b, const char *key, uint64_t value)
{
    say(b, key, WIRE_VARINT, rr_min(value, INT64_MAX));
}

static void say_bool(struct rr_pb *b, const char *key, bool value)
{
    say(b, key, WIRE_BYTES, value);
}

static void from_hex(const char *hex, size_t n, uint8_t *to)
{
    for (size_t k = 0; k < n; k++)
        to[k] = (uint8_t)(rr_hex_digit(hex[2 * k]) << 4 | rr_hex_digit(hex[2 * k + 1]));
}

struct writer {
    struct rr_pb b;
    const struct app *app;
    uint64_t *random;                 /* state of rr_random() */
    uint8_t trace_id[16], span_id[8]; /* of the request */
    uint64_t to_unix_ns;
    unsigned int n;
};

static void put_ids(struct writer *w, const uint8_t *id, const uint8_t *parent)
{
    put_bytes(&w->b, SPAN_TRACE_ID, w->trace_id, sizeof(w->trace_id));
    put_bytes(&w->b, SPAN_ID, id, 8);
    if (parent)
        put_bytes(&w->b, SPAN_PARENT, parent, 8);
}

static void put_times(struct writer *w, uint64_t begin_ns, uint64_t end_ns)
{
    put_fixed(&w->b, SPAN_START, begin_ns + w->to_unix_ns, 8);
    put_fixed(&w->b, SPAN_END, (end_ns > begin_ns ? end_ns : begin_ns) + w->to_unix_ns, 8);
}

/* A span within the request's. */
static size_t begin_inner(struct writer *w, const char *name, uint64_t begin_ns, uint64_t end_ns)
{
    size_t span = rr_pb_begin(&w->b, RR_OTLP_SPANS);
    uint64_t id = rr_random(w->random);

    put_ids(w, (const uint8_t *)&id, w->span_id);
    rr_pb_text(&w->b, SPAN_NAME, name, strlen(name));
    rr_pb_uint(&w->b, SPAN_KIND, KIND_INTERNAL);
    put_times(w, begin_ns, end_ns);
    w->n++;
    return span;
}

static void put_function(struct writer *w, const struct rr_span *s)
{
    const struct app *app = w->app;
    const char *name = app->wf->functions[s->function].name;
    size_t span = begin_inner(w, name, s->begin_ns, s->end_ns);

    say_text(&w->b, "roadrunner.function", name);
    say_text(&w->b, "roadrunner.tier",
             rr_tier_name(rr_worker_tier(app->seats[0].worker, s->function)));
    say_bool(&w->b, "faas.coldstart", s->fresh);
    say_number(&w->b, "roadrunner.instantiation_ns",
               s->start_ns > s->begin_ns ? s->start_ns - s->begin_ns : 0);
    say_number(&w->b, "roadrunner.heap_bytes", s->heap_bytes);
    if (s->n > 1)
        say_number(&w->b, "roadrunner.runs", s->n);
    rr_pb_end(&w->b, span);
}

static void put_handoff(struct writer *w, const struct rr_hop *h)
{
    const struct app *app = w->app;
    const struct rr_edge *e = &app->wf->edges[h->edge];
    const char *to = app->wf->functions[e->to].name;
    const char *from = e->from == RR_NODE_INPUT ? "input" : app->wf->functions[e->from].name;
    char name[160];
    size_t span;

    snprintf(name, sizeof(name), "%s -> %s", from, to);
    span = begin_inner(w, name, h->sent_ns, h->received_ns);
    say_text(&w->b, "roadrunner.from", from);
    say_text(&w->b, "roadrunner.to", to);
    say_text(&w->b, "roadrunner.port", e->to_port);
    say_text(&w->b, "roadrunner.channel", rr_channel_name(h->channel));
    say_text(&w->b, "roadrunner.tier", rr_tier_name(rr_worker_tier(app->seats[0].worker, e->to)));
    say_text(&w->b, "roadrunner.path", rr_path_name(h->path));
    say_number(&w->b, "roadrunner.payload_bytes", h->payload_bytes);
    say_number(&w->b, "roadrunner.copied_bytes", h->copied_bytes);
    say_number(&w->b, "roadrunner.handoff_ns", h->handoff_ns);
    if (h->n > 1)
        say_number(&w->b, "roadrunner.messages", h->n);
    rr_pb_end(&w->b, span);
}

static void put_status(struct writer *w, const char *message)
{
    size_t status = rr_pb_begin(&w->b, SPAN_STATUS);

    rr_pb_text(&w->b, STATUS_MESSAGE, message, strlen(message));
    rr_pb_uint(&w->b, STATUS_CODE, STATUS_ERROR);
    rr_pb_end(&w->b, status);
}

static const char *known_method(const char *what)
{
    static const char *const methods[] = {"GET",    "HEAD",    "POST",  "PUT",
                                          "DELETE", "OPTIONS", "PATCH", "QUERY"};

    for (size_t n = 0; n < RR_ARRAY_LEN(methods); n++)
        if (strncmp(what, methods[n], strlen(methods[n])) == 0 && what[strlen(methods[n])] == ' ')
            return methods[n];
    return "_OTHER"; /* clients may make up as many as they like */
}

static void request_attributes(struct writer *w, const struct conn *c, const char *method)
{
    const char *space = strchr(c->what, ' ');

    say_text(&w->b, "http.request.method", method);
    say_text(&w->b, "http.route", c->app->route->path);
    say_text(&w->b, "url.path", space ? space + 1 : "");
    say_text(&w->b, "url.scheme", c->ssl ? "https" : "http");
    say_text(&w->b, "roadrunner.workflow", c->app->wf->name);
    say_number(&w->b, "http.request.body.size", c->body_len);
    if (c->job.start_ns > c->job.begin_ns)
        say_number(&w->b, "roadrunner.queue_ns", c->job.start_ns - c->job.begin_ns);
    if (!c->status)
        return;
    say_number(&w->b, "http.response.status_code", (uint64_t)c->status);
    say_number(&w->b, "http.response.body.size", c->out_len);
}

static void put_request(struct writer *w, const struct conn *c, uint64_t end_ns)
{
    const char *method = known_method(c->what);
    bool remote = c->spans->parent[0];
    uint8_t parent[8];
    char name[600];
    size_t span = rr_pb_begin(&w->b, RR_OTLP_SPANS);

    if (remote)
        from_hex(c->spans->parent, 8, parent);
    put_ids(w, w->span_id, remote ? parent : NULL);
    snprintf(name, sizeof(name), "%s %s", strcmp(method, "_OTHER") ? method : "HTTP",
             c->app->route->path);
    rr_pb_text(&w->b, SPAN_NAME, name, strlen(name));
    rr_pb_uint(&w->b, SPAN_KIND, KIND_SERVER);
    put_times(w, c->begin_ns, end_ns);
    request_attributes(w, c, method);
    if (!c->status)
        put_status(w, "the client went away");
    else if (c->status >= 500)
        put_status(w, c->job.err ? c->job.err->text : rr_http_reason(c->status));
    put_fixed(&w->b, SPAN_FLAGS, FLAG_SAMPLED | FLAG_REMOTE_KNOWN | (remote ? FLAG_REMOTE : 0), 4);
    rr_pb_end(&w->b, span);
    w->n++;
}

static uint64_t unix_offset(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec - rr_now_ns();
}

static void put_events(struct writer *w, const struct trace *t)
{
    for (unsigned int n = 0; n < t->n; n++) {
        if (t->events[n].is_span)
            put_function(w, &t->events[n].span);
        else
            put_handoff(w, &t->events[n].hop);
    }
}

static void push(struct writer *w, struct rr_otlp *otlp, const struct trace *t)
{
    if (w->b.failed)
        free(rr_take(w->b.data));
    rr_otlp_push(otlp, w->b.data, w->b.len, w->n, t->n_dropped);
}

void rr_trace_end(struct conn *c)
{
    struct trace *t = c->spans;
    struct writer w = {.app = c->app, .random = &c->loop->random};

    if (!t)
        return;
    if (c->app) {
        w.to_unix_ns = unix_offset();
        from_hex(c->trace + 3, sizeof(w.trace_id), w.trace_id);
        from_hex(c->trace + 36, sizeof(w.span_id), w.span_id);
        put_request(&w, c, rr_now_ns());
        put_events(&w, t);
        push(&w, c->loop->gw->otlp, t);
    }
    rr_trace_free(rr_take(c->spans));
}

/* --- asynchronous messages ------------------------------------------------------------------- */

struct trace *rr_trace_begin_attempt(const struct job *job)
{
    struct gateway *gw = job->app->generation->gw;
    struct rr_text parent;
    struct trace *t;
    size_t len;
    const uint8_t *meta = rr_outbound_meta(job->in, &len);

    /* what the request before it was given, and so well formed unless the store was changed */
    if (!gw->otlp || !rr_meta_find(meta, len, "traceparent", &parent) || parent.len != 55 ||
        !(rr_hex_digit(parent.at[54]) & 1) || !(t = rr_trace_new()))
        return NULL;
    memcpy(t->context, parent.at, parent.len);
    return t;
}

void rr_trace_end_attempt(struct trace *t, const struct job *job, unsigned int attempt)
{
    uint64_t random = rr_now_ns() ^ (uint64_t)(uintptr_t)t, id = rr_random(&random);
    struct writer w = {.app = job->app, .random = &random, .to_unix_ns = unix_offset()};
    uint8_t parent[8];
    char name[600];
    size_t span;

    if (!t)
        return;
    from_hex(t->context + 3, sizeof(w.trace_id), w.trace_id);
    from_hex(t->context + 36, sizeof(parent), parent);
    memcpy(w.span_id, &id, sizeof(w.span_id));
    span = rr_pb_begin(&w.b, RR_OTLP_SPANS);
    put_ids(&w, w.span_id, parent);
    snprintf(name, sizeof(name), "attempt %s", job->app->route->path);
    rr_pb_text(&w.b, SPAN_NAME, name, strlen(name));
    rr_pb_uint(&w.b, SPAN_KIND, KIND_CONSUMER);
    put_times(&w, job->start_ns, job->end_ns ? job->end_ns : rr_now_ns());
    say_text(&w.b, "http.route", job->app->route->path);
    say_text(&w.b, "roadrunner.workflow", job->app->wf->name);
    say_number(&w.b, "roadrunner.attempt", attempt);
    if (job->err)
        put_status(&w, job->err->text);
    rr_pb_end(&w.b, span);
    w.n++;
    put_events(&w, t);
    push(&w, job->app->generation->gw->otlp, t);
    rr_trace_free(t);
}
