/* SPDX-License-Identifier: Apache-2.0 */
/* What a node does for one origin: a worker of its own, with the runs of that origin one by one. */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/nodes.h"

#define AWAY_NS 30000000000u /* for an origin to come back */
#define EVENTS_NS 100000000u /* after which events are told, with no answer to go along with */

/* --- what it tells --------------------------------------------------------------------------- */

static void say(struct remote *rm, enum node_word word, struct word_of_node *w)
{
    if (rm->origin)
        rr_nodes_say(rm, rm->origin, word, w);
}

static void say_events(struct remote *rm)
{
    static _Thread_local struct word_of_node w; /* one thread; too large for a stack */
    struct control *c = &rm->events->c;

    if (!c->n)
        return;
    w.now_ns = rr_now_ns();
    w.n_events = c->n;
    memcpy(w.events, c->events, c->n * sizeof(w.events[0]));
    say(rm, NODE_EVENTS, &w);
    c->n = 0;
}

/* Few at a time would cost more than what they tell of. */
static struct event *next_event(struct remote *rm)
{
    if (rm->events->c.n == RR_EVENTS)
        say_events(rm);
    if (rm->events->c.n == 0)
        rm->events->tried_ns = rr_now_ns();
    return &rm->events->c.events[rm->events->c.n++];
}

static void on_hop(void *user, const struct rr_hop *hop)
{
    *next_event(user) = (struct event){.is_span = 0, .hop = *hop};
}

static void on_span(void *user, const struct rr_span *span)
{
    *next_event(user) = (struct event){.is_span = 1, .span = *span};
}

static void on_log(void *user, int function, int level, const char *text, size_t len)
{
    static _Thread_local struct word_of_node w;
    const struct remote *rm = user;

    if (rm->w->log_here)
        rr_function_log(rm->w->wf->functions[function].name, level, text, len);
    else if (!rm->origin) /* nobody else to hear it */
        rr_log(level, "function '%s': %.*s", rm->w->wf->functions[function].name, (int)len, text);
    if (!rm->origin)
        return;
    w.n = (uint32_t)level;
    w.function = (uint32_t)function;
    len = rr_min(len, sizeof(w.text) - 1);
    memcpy(w.text, text, len);
    w.text[len] = 0;
    say(user, NODE_LOG, &w);
}

static void say_failure(struct remote *rm, const struct rr_error *error)
{
    static _Thread_local struct word_of_node w;

    w.error = *error;
    say_events(rm);
    say(rm, NODE_FAILED, &w);
}

static void answer(struct remote *rm)
{
    static _Thread_local struct word_of_node w;

    w.a = rm->question;
    w.b = rm->activity;
    w.idle = rm->w->ready_first < 0 && rr_remote_n_unacked(rm) == 0;
    if (!rr_queue_pending(rm->w, w.text, sizeof(w.text)))
        w.text[0] = 0;
    say_events(rm);
    say(rm, NODE_ANSWER, &w);
    rm->question = 0;
    rm->owes_idle = !w.idle;
}

/* It has asked, and heard that we were not. */
static void tell_idle(struct remote *rm)
{
    static _Thread_local struct word_of_node w;

    if (!rm->owes_idle || rr_remote_n_unacked(rm) > 0)
        return;
    rm->owes_idle = false;
    w.b = rm->activity;
    say_events(rm);
    say(rm, NODE_IDLE, &w);
}

/* --- what it hears --------------------------------------------------------------------------- */

void rr_session_hear(struct remote *rm, enum node_word word, const struct word_of_node *w)
{
    switch (word) {
    case NODE_ASK:
        if (w->run > rm->run) /* nothing of this run has come here yet */
            rr_remote_new_run(rm, w->run);
        rm->active = rm->active || w->run == rm->run;
        if (w->run == rm->run)
            rm->question = w->a;
        break;
    case NODE_RUN:
        if (w->run <= rm->run) /* words and messages overtake each other: the next has begun */
            break;
        rr_remote_new_run(rm, w->run);
        rm->active = false;
        break;
    case NODE_CLOSE:
        rm->ended = true;
        break;
    case NODE_LINK: /* of the origin, or of another node */
        if (!rm->w->network_only)
            rr_near_found(rm, (int)w->n - 1, w->text);
        break;
    case NODE_ANSWER:
    case NODE_IDLE:
    case NODE_FAILED:
    case NODE_EVENTS:
    case NODE_LOG:
        break;
    }
}

/* --- life ------------------------------------------------------------------------------------ */

/* What went wrong is the origin's to hear; the run is over here. */
static void fail(struct remote *rm, uint64_t run, const struct rr_error *err)
{
    if (rm->run != run || rm->ended)
        return;
    say_failure(rm, err);
    rr_remote_new_run(rm, run + 1);
    rm->active = false;
}

static int take_error(struct rr_error *from, struct rr_error *to)
{
    int r = (int)from->code;

    if (r)
        *to = *from;
    from->code = RR_OK;
    return r;
}

bool rr_session_work(struct remote *rm)
{
    uint64_t run = rm->run, before = rm->activity;
    struct rr_error err;
    int r = 0;

    rr_error_clear(&err);
    if (rm->near && rr_remote_pump(rm, true, &err) < 0)
        r = (int)err.code;

    if (r == 0)
        r = take_error(&rm->arrival, &err);
    if (r == 0 && rm->origin) /* else it is told when that is back */
        r = take_error(&rm->failure, &err);
    if (r == 0 && rm->again)
        rr_remote_send_again(rm);
    if (r == 0 && rm->w->ready_first >= 0) {
        rm->w->named = false;
        r = rr_run_ready(rm->w, &err);
    }
    if (r)
        fail(rm, run, &err);
    if (rm->question)
        answer(rm);
    if (rm->w->ready_first < 0)
        tell_idle(rm);
    if (rm->events->c.n && rr_now_ns() - rm->events->tried_ns > EVENTS_NS)
        say_events(rm);
    return rm->activity != before || rm->w->ready_first >= 0;
}

bool rr_session_over(const struct remote *rm)
{
    return rm->ended || (!rm->origin && rr_now_ns() - rm->away_ns > AWAY_NS);
}

int rr_session_new(struct nodes *nodes, const uint8_t id[RR_SESSION_BYTES], struct rr_worker **ret,
                   struct rr_error *err)
{
    struct rr_worker *w;
    struct remote *rm;
    const struct rr_worker *base = rr_nodes_base(nodes);
    const struct rr_worker_options o = {.share = base,
                                        .spin_ns = base->spin_ns ? base->spin_ns : UINT64_MAX,
                                        .network_only = base->network_only};
    int r = rr_worker_new(base->wf, &o, &w, err);

    if (r)
        return r;
    r = rr_remote_new(w, err);
    if (r) {
        rr_worker_free(w);
        return r;
    }
    rm = w->remote;
    rm->events = calloc(1, sizeof(*rm->events));
    if (!rm->events) {
        rr_worker_free(w);
        return rr_error_no_memory(err);
    }
    rm->nodes = nodes;
    rm->run = 0; /* the origin's numbers begin with 1 */
    rm->away_ns = rr_now_ns();
    memcpy(rm->session, id, RR_SESSION_BYTES);
    if (rr_net_watch(rr_nodes_net(nodes), rm->epoll_fd, true) < 0) {
        rr_worker_free(w);
        return rr_error_set(err, RR_E_SYSTEM, "raise the limit on descriptors", "out of memory");
    }
    w->observer = (struct rr_observer){.user = rm, .hop = on_hop, .span = on_span, .log = on_log};
    *ret = w;
    return 0;
}

void rr_session_free(struct rr_worker *w)
{
    rr_nodes_forget(w->remote);
    rr_worker_free(w);
}
