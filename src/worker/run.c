/* SPDX-License-Identifier: Apache-2.0 */
/* The run queue: a function runs when each of its inputs has a message. */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/internal.h"
#include "worker/nodes.h"
#include "worker/remote.h"
#include "worker/serve.h"

#define COLLECT_NS 1000000000u    /* for lent regions to come back after a run */
#define COLLECT_SOON_NS 20000000u /* the same when another waits; functions may keep some */
#define READ_STEP (4 * RR_MIB)    /* between looks at cancellation and the progress bar */

int rr_name_error(struct rr_worker *w, struct rr_error *err, enum rr_code code, const char *hint,
                  const char *fmt, ...)
{
    char text[sizeof(err->text)];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    w->named = true;
    return rr_error_set(err, code, hint, "%s", text);
}

/* "function 'x': ...", once: the failure of a callee already names it. */
static int name_function(struct rr_worker *w, int fn, struct rr_error *err)
{
    if (!w->named)
        rr_name_error(w, err, err->code, err->hint, "function '%s': %s", w->fns[fn].spec->name,
                      err->text);
    return (int)err->code;
}

/* --- the queue ------------------------------------------------------------------------------- */

static void make_ready(struct rr_worker *w, int fn)
{
    w->fns[fn].next_ready = -1;
    if (w->ready_last >= 0)
        w->fns[w->ready_last].next_ready = fn;
    else
        w->ready_first = fn;
    w->ready_last = fn;
}

static struct inlet *inlet_of(struct fn *f, int edge)
{
    for (size_t n = 0; n < f->n_inlets; n++)
        if (f->inlets[n].edge == edge)
            return &f->inlets[n];
    return &f->inlets[0]; /* of a callee, for its other callers */
}

/* Small messages that wait are counted together, and from here on: so that a run of a few has
 * nothing to count. */
#define QUEUE_FREE RR_MIB
#define QUEUE_STEP RR_MIB

static uint64_t queued_cost(const struct message *m)
{
    return sizeof(*m) + m->meta_len + (m->small ? m->small->cap : 0);
}

static bool note_queued(struct rr_worker *w, const struct message *m)
{
    uint64_t bytes = w->queued_bytes + queued_cost(m);

    if (bytes > QUEUE_FREE + w->queue_charged) {
        uint64_t more = rr_align_up(bytes - QUEUE_FREE - w->queue_charged, QUEUE_STEP);

        if (!rr_budget_take(w->budget, more))
            return false;
        w->queue_charged += more;
    }
    w->queued_bytes = bytes;
    return true;
}

static void note_queue_empty(struct rr_worker *w)
{
    rr_budget_give(w->budget, w->queue_charged);
    w->queued_bytes = w->queue_charged = 0;
}

int rr_enqueue(struct rr_worker *w, struct message *m, int edge, struct rr_error *err)
{
    int to = w->wf->edges[edge].to;

    m->id = rr_id_mix(m->id, (uint64_t)edge);
    if (!rr_hosted(w, to))
        return rr_remote_send(w, m, edge, 0, err);
    return rr_enqueue_here(w, m, edge, err);
}

int rr_enqueue_here(struct rr_worker *w, struct message *m, int edge, struct rr_error *err)
{
    struct fn *f = &w->fns[w->wf->edges[edge].to];
    struct inlet *inlet = inlet_of(f, edge);

    if (w->n_queued == RR_MAX_QUEUED) {
        rr_message_free(m);
        return rr_error_set(err, RR_E_LIMIT, "send fewer messages per run",
                            "%d messages are on their way already", RR_MAX_QUEUED);
    }
    if (!note_queued(w, m)) {
        rr_message_free(m);
        return rr_budget_refuse(w->budget, QUEUE_STEP, err);
    }
    w->n_queued++;
    m->edge = edge;
    m->next = NULL;
    if (inlet->last) {
        inlet->last->next = m;
    } else {
        inlet->first = m;
        if (++f->n_filled == f->n_inlets)
            make_ready(w, w->wf->edges[edge].to);
    }
    inlet->last = m;
    return 0;
}

static void take_inputs(struct rr_worker *w, struct fn *f, struct message **ret)
{
    for (size_t n = 0; n < f->n_inlets; n++) {
        struct inlet *inlet = &f->inlets[n];

        ret[n] = inlet->first;
        inlet->first = ret[n]->next;
        ret[n]->next = NULL;
        if (!inlet->first) {
            inlet->last = NULL;
            f->n_filled--;
        }
        w->queued_bytes -= rr_min(queued_cost(ret[n]), w->queued_bytes);
        if (--w->n_queued == 0)
            note_queue_empty(w);
    }
}

void rr_queue_drain(struct rr_worker *w)
{
    for (size_t n = 0; n < w->wf->n_functions; n++) {
        struct fn *f = &w->fns[n];

        for (size_t k = 0; k < f->n_inlets; k++)
            while (f->inlets[k].first) {
                struct message *m = f->inlets[k].first;

                f->inlets[k].first = m->next;
                rr_message_free(m);
            }
        for (size_t k = 0; k < f->n_inlets; k++)
            f->inlets[k].last = NULL;
        f->n_filled = 0;
    }
    w->n_queued = 0;
    note_queue_empty(w);
    w->ready_first = w->ready_last = -1;
}

/* --- one function ---------------------------------------------------------------------------- */

enum rr_channel rr_message_channel(const struct rr_worker *w, const struct message *m)
{
    return m->by_link ? RR_CHANNEL_KERNEL : rr_edge_channel(w->wf, &w->wf->edges[m->edge]);
}

static void observe_hops(struct rr_worker *w, struct message **inputs, size_t n,
                         uint64_t deliver_ns, uint64_t received_ns)
{
    for (size_t k = 0; k < n && (w->observer.hop || w->status); k++) {
        const struct message *m = inputs[k];
        struct rr_hop hop = {m->edge,
                             m->path,
                             rr_message_channel(w, m),
                             m->len,
                             m->copied_bytes,
                             m->sent_ns,
                             received_ns,
                             m->send_cost_ns + received_ns - deliver_ns,
                             1};

        rr_status_hop(w->status, hop.edge, hop.channel, hop.payload_bytes, hop.copied_bytes);
        if (w->observer.hop)
            w->observer.hop(w->observer.user, &hop);
    }
}

/* Window tier: all inputs into windows. What is delivered belongs to the instance. */
static int handle_windows(struct instance *i, struct message **inputs, size_t n, int *ret_status,
                          struct rr_span *span, struct rr_error *err)
{
    struct rr_worker *w = i->w;
    uint64_t deliver_ns = span->fresh ? rr_now_ns() : span->begin_ns;
    int r = 0;

    for (size_t k = 0; k < n && r == 0; k++) {
        r = rr_deliver(i, inputs[k], w->wf->edges[inputs[k]->edge].to_port, err);
        if (r)
            for (size_t rest = k; rest < n; rest++)
                rr_message_free(inputs[rest]);
    }
    if (r)
        return r;
    span->start_ns = rr_now_ns();
    observe_hops(w, inputs, n, deliver_ns, span->start_ns);
    return rr_guest_handle(&i->guest, NULL, i->deadline_ns, ret_status, err);
}

/* Buffer and stdio tier: one input, which the guest gets a copy or the pages of. */
static int handle_input(struct instance *i, struct message *m, int *ret_status,
                        struct rr_span *span, struct rr_error *err)
{
    uint64_t deliver_ns = rr_now_ns();
    struct rr_abi_input in = {
        .arena = i->w->arena,
        .data = rr_message_data(m),
        .len = m->len,
        .movable = m->region && rr_region_backing(m->region) == RR_ANON,
    };
    int r = rr_guest_handle(&i->guest, &in, i->deadline_ns, ret_status, err);

    span->start_ns = in.ready_ns ? in.ready_ns : rr_now_ns();
    m->copied_bytes += in.copied_bytes;
    if (i->guest.tier == RR_TIER_STDIO)
        m->path = RR_PATH_STREAM;
    else
        m->path = in.movable && in.copied_bytes < m->len ? RR_PATH_SWAP : RR_PATH_COPY;
    m->patched = m->patched || (m->path == RR_PATH_SWAP && m->region);
    if (r == 0)
        observe_hops(i->w, &m, 1, deliver_ns, span->start_ns);
    rr_message_free(m);
    return r;
}

static bool must_send(const struct fn *f)
{
    for (size_t n = 0; n < f->n_ports; n++)
        if (f->ports[n].callee < 0)
            return true;
    return false;
}

static int check_outcome(struct rr_worker *w, struct instance *i, int status, struct rr_error *err)
{
    struct fn *f = &w->fns[i->fn];

    if (status && i->caller < 0 && rr_instance_lacked_memory(i->guest.inst, err))
        return (int)err->code;
    if (status && i->caller < 0)
        return rr_error_set(err, RR_E_GUEST,
                            "see its log; its own documentation says what that means",
                            "it failed with status %d", status);
    if (status == 0 && i->n_sent == 0 && must_send(f))
        return rr_error_set(err, RR_E_GUEST, "send on each of its ports before it returns",
                            "it returned without sending a message on port '%s'", f->ports[0].name);
    return 0;
}

static int handle(struct rr_worker *w, struct instance *i, struct message **inputs, int *ret_status,
                  struct rr_span *span, struct rr_error *err)
{
    struct fn *f = &w->fns[i->fn];
    int r;

    i->in_id = 0;
    for (size_t n = 0; n < f->n_inlets; n++)
        i->in_id ^= inputs[n]->id;
    i->trace.parent_len = 0;
    for (size_t n = 0; n < f->n_inlets && !rr_message_trace_get(inputs[n], &i->trace); n++)
        ;
    i->n_sent = 0;
    *ret_status = 0;
    if (f->tier == RR_TIER_WINDOW)
        r = handle_windows(i, inputs, f->n_inlets, ret_status, span, err);
    else
        r = handle_input(i, inputs[0], ret_status, span, err);
    span->end_ns = rr_now_ns();
    if (r == 0) /* an output that was refused, and a guest that did not look */
        r = rr_instance_fault(i->guest.inst, err);
    if (r == 0 && f->tier == RR_TIER_STDIO && *ret_status == 0)
        r = rr_out_flush(i, err);
    if (r == 0)
        r = check_outcome(w, i, *ret_status, err);
    return r || !i->staged ? r : rr_staged_send(i, err);
}

/* 0: none. */
static uint64_t sooner(uint64_t a, uint64_t b)
{
    return a && (!b || a < b) ? a : b;
}

static int too_deep(struct rr_error *err)
{
    return rr_error_set(err, RR_E_LIMIT, "let functions send to each other instead of calling",
                        "calls are nested more than %d deep", RR_MAX_CALL_DEPTH);
}

int rr_function_attempt(struct rr_worker *w, int fn, struct message **inputs,
                        const struct attempt *a, int *ret_status, struct message **ret_reply,
                        struct rr_error *err)
{
    struct fn *f = &w->fns[fn];
    struct rr_span span = {.function = fn, .begin_ns = rr_now_ns(), .n = 1};
    uint64_t deadline_ns =
        sooner(a->deadline_ns, f->spec->deadline_ns ? span.begin_ns + f->spec->deadline_ns : 0);
    struct instance *i = NULL;
    struct debt *before;
    int r = w->depth == RR_MAX_CALL_DEPTH
                ? too_deep(err)
                : rr_instance_take(w, fn, deadline_ns, &i, &span.fresh, err);

    if (r) {
        for (size_t n = 0; n < f->n_inlets; n++)
            rr_message_free(inputs[n]);
        return name_function(w, fn, err);
    }
    i->deadline_ns = deadline_ns;
    i->run_deadline_ns = a->run_deadline_ns;
    i->caller = a->caller;
    i->stages = a->stages;
    rr_instance_stop_by(i->guest.inst, w->stop);
    w->depth++;
    if (w->observer.begin)
        w->observer.begin(w->observer.user, fn);
    rr_status_begin(w->status, fn);
    rr_remote_pulse(w, span.begin_ns);
    before = rr_delivery_enter(w, inputs, f->n_inlets);
    r = handle(w, i, inputs, ret_status, &span, err);
    rr_delivery_leave(w, before);
    rr_remote_pulse(w, 0);
    rr_status_end(w->status, fn);
    w->depth--;
    if (r == 0 && ret_reply)
        *ret_reply = rr_take(i->reply);
    span.heap_bytes = rr_instance_heap_bytes(i->guest.inst);
    rr_message_free(rr_take(i->reply)); /* of a call that failed */
    rr_instance_give(i, r == 0);
    if (!span.start_ns) /* it failed before its handler ran */
        span.start_ns = span.end_ns;
    if (w->observer.span)
        w->observer.span(w->observer.user, &span);
    return r ? name_function(w, fn, err) : 0;
}

int rr_function_run(struct rr_worker *w, int fn, struct message **inputs, int caller,
                    uint64_t deadline_ns, int *ret_status, struct message **ret_reply,
                    struct rr_error *err)
{
    struct attempt a = {.caller = caller};

    for (size_t n = 0; n < w->fns[fn].n_inlets; n++)
        deadline_ns = sooner(deadline_ns, inputs[n]->deadline_ns);
    if (w->wf->edges[inputs[0]->edge].again.given)
        return rr_function_try(w, fn, inputs, deadline_ns, err);
    a.deadline_ns = a.run_deadline_ns = deadline_ns;
    return rr_function_attempt(w, fn, inputs, &a, ret_status, ret_reply, err);
}

/* --- input ----------------------------------------------------------------------------------- */

static int input_too_long(struct rr_worker *w, uint64_t len, struct rr_error *err)
{
    const struct rr_edge *e = &w->wf->edges[w->input.edges[0]];

    rr_error_set(err, RR_E_LIMIT, "raise `max` of this edge, up to 1GiB, or use a smaller input",
                 "the input has %s%s, but the edge takes at most %s", len ? "" : "more than ",
                 rr_bytes_text(len ? len : w->input.max_bytes), rr_bytes_text(w->input.max_bytes));
    rr_error_at(err, w->wf->path, e->pos.line, e->pos.column);
    return RR_E_LIMIT;
}

/* Read until @cap or the end. */
static int read_some(struct rr_worker *w, int fd, uint8_t *to, uint64_t cap, uint64_t before,
                     uint64_t total, uint64_t *ret_len, struct rr_error *err)
{
    uint64_t len = 0;

    while (len < cap) {
        ssize_t n = read(fd, to + len, rr_min(cap - len, READ_STEP));

        if (rr_worker_cancelled(w))
            return rr_error_set(err, RR_E_CANCELLED, "", "interrupted");
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return rr_error_set(err, RR_E_NOINPUT, "check the file and the disk",
                                "cannot read the input: %s", strerror(errno));
        if (n == 0)
            break;
        len += (uint64_t)n;
        if (w->observer.progress)
            w->observer.progress(w->observer.user, "reading", before + len, total);
    }
    *ret_len = len;
    return 0;
}

static int read_large(struct rr_worker *w, int fd, struct message *m, uint64_t total,
                      struct rr_error *err)
{
    uint64_t more = 0;
    uint8_t extra;
    int r = rr_region_get(w->arena, rr_port_backing(w, &w->input), w->input.slot_bytes, m->len, 0,
                          &m->region, err);

    if (r)
        return r;
    memcpy(rr_region_data(m->region), m->small->data, m->len);
    rr_small_unref(rr_take(m->small));
    r = read_some(w, fd, rr_region_data(m->region) + m->len, w->input.max_bytes - m->len, m->len,
                  total, &more, err);
    m->len += more;
    if (r == 0)
        r = rr_region_set_bytes(m->region, m->len, err);
    if (r == 0 && m->len == w->input.max_bytes) {
        r = read_some(w, fd, &extra, 1, m->len, total, &more, err);
        if (r == 0 && more)
            r = input_too_long(w, 0, err);
    }
    return r;
}

static int read_input(struct rr_worker *w, int fd, struct message *m, struct rr_error *err)
{
    struct stat st;
    uint64_t total = 0;
    int r;

    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode))
        return rr_error_set(err, RR_E_NOINPUT, "name a file", "the input is a folder");
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        total = (uint64_t)st.st_size;
    if (total > w->input.max_bytes)
        return input_too_long(w, total, err);
    m->window = w->input.window;
    m->slot_bytes = w->input.slot_bytes;
    m->small = rr_small_new(RR_SMALL_MAX);
    if (!m->small)
        return rr_error_no_memory(err);
    r = read_some(w, fd, m->small->data, RR_SMALL_MAX, 0, total, &m->len, err);
    if (r == 0 && m->len > w->input.max_bytes)
        r = input_too_long(w, m->len, err);
    if (r == 0 && m->len == RR_SMALL_MAX && w->input.max_bytes > RR_SMALL_MAX)
        r = read_large(w, fd, m, total, err);
    if (m->len > w->input.seen_bytes)
        w->input.seen_bytes = m->len;
    return r;
}

/* @m: moved; with an @fd it is read from there. */
static int send_input(struct rr_worker *w, int fd, struct message *m, struct rr_error *err)
{
    int r = 0;

    if (fd >= 0) {
        m = rr_message_new();
        r = m ? read_input(w, fd, m, err) : rr_error_no_memory(err);
    }
    if (r == 0) {
        m->sent_ns = rr_now_ns();
        m->id = rr_id_mix(w->nonce, ++w->n_runs);
        m->deadline_ns =
            sooner(w->deadline_ns, w->wf->deadline_ns ? m->sent_ns + w->wf->deadline_ns : 0);
    }
    if (r == 0 && w->remote && w->remote->nodes)
        r = rr_remote_send_to_nodes(w, m, w->input.edges, w->input.n_edges, err);
    for (size_t n = 0; n < w->input.n_edges && r == 0; n++) {
        struct message *one;

        if (w->remote && rr_nodes_reach(w->remote, w->wf->edges[w->input.edges[n]].to))
            continue;
        one = n + 1 < w->input.n_edges ? rr_message_share(m) : rr_take(m);

        r = one ? rr_enqueue(w, one, w->input.edges[n], err) : rr_error_no_memory(err);
    }
    rr_message_free(m);
    return r;
}

/* --- a run ----------------------------------------------------------------------------------- */

/* A request from another process: its answer goes back over the edge after the request's. */
static int serve_call(struct rr_worker *w, int fn, struct message **inputs, struct rr_error *err)
{
    int edge = inputs[0]->edge, status = 0, r;
    struct message *reply = NULL;

    r = rr_function_run(w, fn, inputs, w->wf->edges[edge].from, 0, &status, &reply, err);
    if (r)
        return r;
    if (!reply) /* it failed: only its status goes back */
        reply = rr_message_new();
    if (reply && !reply->small && !reply->region) {
        reply->small = rr_small_new(1);
        reply->window = w->wf->edges[edge + 1].window;
        reply->slot_bytes = w->wf->edges[edge + 1].slot_bytes;
    }
    if (!reply || (!reply->small && !reply->region)) {
        rr_message_free(reply);
        return rr_error_no_memory(err);
    }
    return rr_remote_send(w, reply, edge + 1, status, err);
}

int rr_run_ready(struct rr_worker *w, struct rr_error *err)
{
    while (w->ready_first >= 0) {
        int fn = w->ready_first, status = 0, r;
        struct fn *f = &w->fns[fn];
        struct message *few[8], **inputs;

        if (rr_worker_cancelled(w))
            return rr_error_set(err, RR_E_CANCELLED, "", "interrupted");
        inputs = f->n_inlets <= RR_ARRAY_LEN(few) ? few : calloc(f->n_inlets, sizeof(few[0]));
        if (!inputs)
            return rr_error_no_memory(err);
        w->ready_first = f->next_ready;
        if (w->ready_first < 0)
            w->ready_last = -1;
        take_inputs(w, f, inputs);
        if (f->n_filled == f->n_inlets)
            make_ready(w, fn);
        if (w->wf->edges[inputs[0]->edge].is_call)
            r = serve_call(w, fn, inputs, err);
        else
            r = rr_function_run(w, fn, inputs, -1, 0, &status, NULL, err);
        if (inputs != few)
            free(inputs);
        if (r)
            return r;
    }
    return 0;
}

bool rr_queue_pending(const struct rr_worker *w, char *text, size_t size)
{
    for (size_t n = 0; n < w->wf->n_functions; n++) {
        const struct fn *f = &w->fns[n];

        for (size_t k = 0; f->n_filled && k < f->n_inlets; k++) {
            const struct rr_edge *e = &w->wf->edges[f->inlets[k].edge];

            if (f->inlets[k].first)
                continue;
            snprintf(text, size,
                     "function '%s' did not send on port '%s', and '%s' waits for it on port '%s'",
                     e->from < 0 ? "input" : w->wf->functions[e->from].name, e->from_port,
                     f->spec->name, e->to_port);
            return true;
        }
    }
    return false;
}

/* Everything has run: is anything left over? */
static int check_complete(struct rr_worker *w, struct rr_error *err)
{
    static const char hint[] = "make it send on that port whenever it runs";
    char text[400];

    /* What waits for a message that was forgone waits in vain. */
    if (w->n_forgone || (!rr_queue_pending(w, text, sizeof(text)) &&
                         !(w->remote && rr_processes_pending(w->remote, text, sizeof(text))))) {
        if (w->result)
            return 0;
        snprintf(text, sizeof(text), "function '%s' sent no result on port '%s'",
                 w->wf->functions[w->wf->result].name, w->wf->result_port);
    }
    if (w->remote && w->remote->n_deaths != w->remote->n_deaths_before)
        return rr_error_set(err, RR_E_DIED, "run it again",
                            "%s: a message was lost with the worker processes that died", text);
    return rr_error_set(err, RR_E_GUEST, hint, "%s", text);
}

static int run_all(struct rr_worker *w, int fd, struct message *m, struct rr_error *err)
{
    int r = rr_worker_start(w, err);

    if (r == 0 && w->remote) {
        w->remote->active = true;
        w->remote->n_deaths_before = w->remote->n_deaths;
    }
    if (r == 0)
        r = send_input(w, fd, rr_take(m), err);
    rr_message_free(m);
    if (r == 0)
        r = rr_run_ready(w, err);
    while (r == 0 && w->remote) {
        r = rr_processes_settle(w, err);
        if (r == 0)
            break;
        r = r == 1 ? rr_run_ready(w, err) : r;
    }
    return r ? r : check_complete(w, err);
}

static int run_one(struct rr_worker *w, int fd, struct message *m, struct rr_error *err)
{
    struct rr_error spare;
    int r;

    err = err ? err : &spare;
    rr_worker_release(w);
    w->named = false;
    w->depth = 0;
    w->n_forgone = 0;
    r = run_all(w, fd, m, err);
    rr_queue_drain(w);
    if (w->remote)
        rr_processes_end_run(w->remote);
    if (r)
        rr_worker_release(w);
    return r;
}

int rr_worker_run(struct rr_worker *w, int fd, struct rr_result *ret, struct rr_error *err)
{
    int r = run_one(w, fd, NULL, err);

    if (r == 0)
        *ret = (struct rr_result){rr_message_data(w->result), w->result->len};
    return r;
}

int rr_worker_run_message(struct rr_worker *w, struct message *m, uint64_t deadline_ns,
                          struct message **ret, struct rr_error *err)
{
    int r;

    w->deadline_ns = deadline_ns;
    r = run_one(w, -1, m, err);
    w->deadline_ns = 0;
    if (r == 0)
        *ret = rr_take(w->result);
    return r;
}

void rr_worker_release(struct rr_worker *w)
{
    rr_message_free(rr_take(w->result));
    if (w->remote)
        rr_processes_collect(w->remote, COLLECT_NS);
}

void rr_worker_collect(struct rr_worker *w)
{
    if (w->remote && w->budget && rr_budget_used(w->budget) > w->budget->limit_bytes / 8)
        rr_processes_collect(w->remote, COLLECT_SOON_NS);
}
