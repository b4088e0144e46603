/* SPDX-License-Identifier: Apache-2.0 */
/* Where the workflow is run: the nodes that host its functions, and what they say. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/nodes.h"

#define NEAR_NS 1000000000u   /* for a node of this machine to say where it listens */
#define READY_NS 10000000000u /* for all nodes to be reached */

static const char *name_of(const struct remote *rm, int node)
{
    return rm->w->wf->nodes[node].name;
}

static bool wanted(const struct remote *rm, size_t node)
{
    return rm->states && rm->states[node].wanted;
}

/* --- reached or not -------------------------------------------------------------------------- */

/* Do all messages for functions of this node come again? */
static bool outlives(const struct remote *rm, int node)
{
    const struct rr_workflow *wf = rm->w->wf;

    for (size_t n = 0; n < wf->n_edges; n++)
        if (rr_node_of(wf, wf->edges[n].to) == node && !wf->edges[n].at_least_once)
            return false;
    return true;
}

void rr_nodes_found(struct remote *rm, int node, const char *incarnation, bool near)
{
    struct node_state *s = &rm->states[node];
    bool other = s->incarnation[0] && strcmp(s->incarnation, incarnation ? incarnation : "") != 0;

    rr_log(2, "node '%s' is reached%s", name_of(rm, node), other ? ": it was started again" : "");
    s->up = true;
    s->up_ns = rr_now_ns();
    s->near = near;
    s->told_near = false;
    s->why.code = RR_OK;
    snprintf(s->incarnation, sizeof(s->incarnation), "%s", incarnation ? incarnation : "");
    if (!other)
        return;
    rm->n_deaths++;
    if (rm->active && !rm->failure.code && !outlives(rm, node))
        rr_error_set(&rm->failure, RR_E_DIED,
                     "look at its log; with `delivery: at-least-once` it would get its messages",
                     "node '%s' was started again: what it had at hand is lost", name_of(rm, node));
}

void rr_nodes_missed(struct remote *rm, int node, const struct rr_error *why)
{
    struct node_state *s = &rm->states[node];

    if (s->up && !rm->stopping)
        rr_log(1, "node '%s' is not reached any more: %s", name_of(rm, node), why->text);
    if (s->up) {
        rm->n_deaths++; /* it will not answer */
        s->down_ns = rr_now_ns();
    }
    s->up = false;
    rr_near_lost(rm, node);
    s->why = *why;
}

bool rr_nodes_ready(const struct remote *rm)
{
    for (size_t n = 0; n < rm->w->wf->n_nodes; n++) {
        const struct node_state *s = &rm->states[n];

        if (wanted(rm, n) && (!s->up || (s->near && rr_now_ns() - s->up_ns < NEAR_NS)))
            return false;
    }
    return true;
}

int rr_nodes_check(struct remote *rm, uint64_t patience_ns, struct rr_error *err)
{
    uint64_t now = rr_now_ns();

    for (size_t n = 0; n < rm->w->wf->n_nodes; n++) {
        const struct node_state *s = &rm->states[n];

        if (!wanted(rm, n) || s->up || now - s->down_ns < patience_ns)
            continue;
        rm->w->named = true;
        return rr_error_set(
            err, RR_E_DIED,
            s->why.code && *s->why.hint ? s->why.hint : "is it started, and does it listen there?",
            "node '%s' at %s cannot be reached: %s", name_of(rm, (int)n),
            rm->w->wf->nodes[n].address, s->why.code ? s->why.text : "it does not answer");
    }
    return 0;
}

/* A mistake that time does not mend: another workflow, another certificate. */
static bool hopeless(const struct remote *rm)
{
    for (size_t n = 0; n < rm->w->wf->n_nodes; n++)
        if (wanted(rm, n) && !rm->states[n].up && rm->states[n].why.code == RR_E_INVALID)
            return true;
    return false;
}

static bool told_near(const struct remote *rm)
{
    for (size_t n = 0; n < rm->w->wf->n_nodes; n++)
        if (rm->states[n].up && rm->states[n].told_near)
            return true;
    return false;
}

/* Messages overtake words: until a node has answered what was asked after the word, it may take its
 * near neighbour for a distant one. It may also be busy with another origin, for long. */
static int await_introductions(struct remote *rm, struct rr_error *err)
{
    uint64_t give_up = rr_now_ns() + NEAR_NS;

    if (!told_near(rm))
        return 0;
    rr_nodes_ask(rm, ++rm->question);
    while (told_near(rm) && rr_now_ns() < give_up) {
        if (rr_remote_pump(rm, false, err) < 0)
            return (int)err->code;
        if (rr_worker_cancelled(rm->w))
            return rr_error_set(err, RR_E_CANCELLED, "", "interrupted");
        if (told_near(rm))
            rr_remote_sleep(rm, rr_now_ns() + 20000000);
    }
    return 0;
}

static int await_nodes(struct remote *rm, struct rr_error *err)
{
    uint64_t give_up = rr_now_ns() + READY_NS;

    while (!rr_nodes_ready(rm)) {
        if (rr_remote_pump(rm, false, err) < 0)
            return (int)err->code;
        if (rr_worker_cancelled(rm->w))
            return rr_error_set(err, RR_E_CANCELLED, "", "interrupted");
        if (rr_now_ns() > give_up || hopeless(rm))
            return rr_nodes_check(rm, 0, err);
        if (!rr_nodes_ready(rm))
            rr_remote_sleep(rm, rr_now_ns() + 20000000);
    }
    return await_introductions(rm, err);
}

int rr_nodes_start(struct rr_worker *w, struct rr_error *err)
{
    const struct rr_workflow *wf = w->wf;
    struct remote *rm;
    int r = w->remote ? 0 : rr_remote_new(w, err);

    rm = w->remote;
    if (r || rm->nodes) {
        /* Since the last run nobody looked whether all are still there. */
        if (r == 0 && rr_remote_pump(rm, false, err) < 0)
            r = (int)err->code;
        return r ? r : await_nodes(rm, err);
    }
    free(rm->states); /* of a start that failed */
    rm->states = calloc(wf->n_nodes, sizeof(*rm->states));
    if (!rm->states)
        return rr_error_no_memory(err);
    r = rr_nodes_new(w, false, &rm->nodes, err);
    if (r == 0 && rr_net_watch(rr_nodes_net(rm->nodes), rm->epoll_fd, true) < 0)
        r = rr_error_no_memory(err);
    for (size_t n = 0; n < wf->n_functions; n++)
        if (wf->functions[n].node >= 0)
            rm->states[wf->functions[n].node] =
                (struct node_state){.wanted = true, .down_ns = rr_now_ns()};
    for (size_t n = 0; n < wf->n_nodes && r == 0; n++)
        if (wanted(rm, n) && !rr_nodes_dial(rm->nodes, (int)n, err))
            r = (int)err->code;
    return r ? r : await_nodes(rm, err);
}

/* --- is the run over? ------------------------------------------------------------------------ */

static void tell_all(struct remote *rm, enum node_word word, uint64_t question)
{
    static _Thread_local struct word_of_node w; /* one thread; too large for a stack */
    struct rr_error err;

    w.a = question;
    for (size_t n = 0; n < rm->w->wf->n_nodes; n++)
        if (wanted(rm, n) && rm->states[n].up)
            rr_nodes_say(rm, rr_nodes_dial(rm->nodes, (int)n, &err), word, &w);
}

void rr_nodes_ask(struct remote *rm, uint64_t question)
{
    if (rm->states)
        tell_all(rm, NODE_ASK, question);
}

bool rr_nodes_answered(const struct remote *rm, bool *idle, uint64_t *activity)
{
    for (size_t n = 0; n < rm->w->wf->n_nodes; n++) {
        if (!wanted(rm, n))
            continue;
        if (rm->states[n].answered != rm->question)
            return false;
        *idle = *idle && rm->states[n].idle;
        *activity += rm->states[n].activity;
    }
    return true;
}

/* @rm->run is the next one already. */
void rr_nodes_end_run(struct remote *rm)
{
    if (!rm->states)
        return;
    tell_all(rm, NODE_RUN, 0);
    for (size_t n = 0; n < rm->w->wf->n_nodes; n++)
        rm->states[n].pending[0] = 0;
}

void rr_origin_close(struct remote *rm)
{
    tell_all(rm, NODE_CLOSE, 0);
}

bool rr_nodes_pending(const struct remote *rm, char *text, size_t size)
{
    for (size_t n = 0; n < rm->w->wf->n_nodes; n++)
        if (wanted(rm, n) && rm->states[n].pending[0]) {
            snprintf(text, size, "%s", rm->states[n].pending);
            return true;
        }
    return false;
}

/* --- what nodes say -------------------------------------------------------------------------- */

/* The function that lives on a node of a chain, which calls it 0, and the edge to it: 0, too. What
 * else it has there is not known here: -1. */
static int of_chain(const struct rr_workflow *wf, int node, int number)
{
    for (size_t n = 0; n < wf->n_functions && number == 0; n++)
        if (wf->functions[n].node == node)
            return (int)n; /* edge n leads to function n */
    return -1;
}

/* Their clocks are not ours: what they tell is moved by the difference, which half a round trip
 * makes uncertain. */
static void on_events(struct remote *rm, int node, struct word_of_node *w)
{
    const struct rr_workflow *wf = rm->w->wf;
    const struct rr_observer *o = &rm->w->observer;
    struct rr_error err;
    struct rr_net_peer *peer = rr_nodes_dial(rm->nodes, node, &err);
    uint64_t shift = rr_now_ns() - w->now_ns - (peer ? rr_net_peer_rtt_ns(peer) / 2 : 0);

    for (uint32_t n = 0; n < w->n_events; n++) {
        struct rr_span *s = &w->events[n].span;
        struct rr_hop *h = &w->events[n].hop;

        if (wf->chain && w->events[n].is_span)
            s->function = of_chain(wf, node, s->function);
        else if (wf->chain)
            h->edge = of_chain(wf, node, h->edge);

        if (w->events[n].is_span) {
            if (s->function < 0 || s->function >= (int)wf->n_functions ||
                rr_node_of(wf, s->function) != node || !s->n || !o->span)
                continue;
            s->begin_ns += shift;
            s->start_ns += shift;
            s->end_ns += shift;
            o->span(o->user, s);
        } else if (h->edge >= 0 && h->edge < (int)wf->n_edges && o->hop) {
            h->sent_ns += shift;
            h->received_ns += shift;
            o->hop(o->user, h);
        }
    }
}

void rr_origin_hear(struct remote *rm, int node, enum node_word word, struct word_of_node *w)
{
    const struct rr_workflow *wf = rm->w->wf;
    const struct rr_observer *o = &rm->w->observer;
    struct node_state *s = &rm->states[node];

    switch (word) {
    case NODE_ANSWER:
        if (w->a != rm->question || w->run != rm->run)
            break;
        s->answered = w->a;
        s->told_near = false;
        s->idle = w->idle != 0;
        s->activity = w->b;
        snprintf(s->pending, sizeof(s->pending), "%.191s", w->text);
        break;
    case NODE_IDLE:
        rm->n_idle_words++;
        break;
    case NODE_FAILED:
        if (w->run == rm->run && rm->active && !rm->failure.code)
            rm->failure = w->error;
        break;
    case NODE_EVENTS:
        on_events(rm, node, w);
        break;
    case NODE_LOG:
        if (wf->chain)
            w->function = (uint32_t)of_chain(wf, node, 0);
        if (o->log && w->function < wf->n_functions && rr_node_of(wf, (int)w->function) == node)
            o->log(o->user, (int)w->function, w->n > 3 ? 3 : (int)w->n, w->text, strlen(w->text));
        break;
    case NODE_LINK:
        s->near = false;
        if (!rm->w->network_only && rr_near_found(rm, node, w->text))
            rr_nodes_introduce(rm, node);
        break;
    case NODE_ASK:
    case NODE_RUN:
    case NODE_CLOSE:
        break;
    }
}
