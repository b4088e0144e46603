/* SPDX-License-Identifier: Apache-2.0 */
/* Links of this process to others, and the messages that come and go over them. */
#include "worker/remote.h"
#include "worker/serve.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/nodes.h"

#define BURST 64                /* messages taken from a link before the next one has its turn */
#define CHAIN_RESULT (1u << 20) /* number of a chain's result, between processes */
#define LOOK_NS 200000u         /* between looks at the sockets of a process that never sleeps */
#define EAGER_NS 3000u          /* an answer is most likely at once */
#define CONNECT_RETRY_NS 2000000u
#define SEND_SPIN_NS 100000u
#define NODE_PATIENCE_NS 10000000000u /* for a node that cannot be reached */
#define SEND_PATIENCE_NS 10000000000u /* while a queue is full */

bool rr_hosted(const struct rr_worker *w, int function)
{
    if (w->remote && w->remote->self >= 0)
        return function == w->remote->self;
    if (rr_node_of(w->wf, function) != w->wf->here)
        return false;
    /* who gives the input gets the result */
    return !w->remote || function == RR_NODE_INPUT || !w->wf->functions[function].isolated;
}

bool rr_remote_is_origin(const struct remote *rm)
{
    return rm->self < 0 && rm->w->wf->here == RR_NODE_HERE;
}

static const char *name_of(const struct rr_worker *w, int function)
{
    return function < (int)w->wf->n_functions ? w->wf->functions[function].name : ".result";
}

void rr_remote_watch(struct remote *rm, int fd)
{
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};

    epoll_ctl(rm->epoll_fd, EPOLL_CTL_ADD, fd, &e);
    if (rm->waits && (!pthread_equal(rm->thread, pthread_self()) || rr_wait_watch(fd) < 0))
        rm->waits = false; /* epoll does it all */
}

void rr_remote_pulse(const struct rr_worker *w, uint64_t since_ns)
{
    if (!w->remote || !w->remote->pulse || w->depth > 1)
        return;
    atomic_store(&w->remote->pulse->handling_since_ns, since_ns);
    if (!since_ns)
        atomic_fetch_add(&w->remote->pulse->handled, 1);
}

int rr_remote_new(struct rr_worker *w, struct rr_error *err)
{
    struct remote *rm = calloc(1, sizeof(*rm));

    if (rm) {
        rm->outs = calloc(w->wf->n_functions + 1, sizeof(struct rr_link *));
        rm->repeats =
            calloc(w->wf->n_edges + 2, sizeof(bool)); /* and the result, and dead letters */
        rm->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    }
    if (!rm || !rm->outs || !rm->repeats || rm->epoll_fd < 0) {
        if (rm) {
            free(rm->outs);
            free(rm->repeats);
        }
        free(rm);
        return rr_error_no_memory(err);
    }
    rm->w = w;
    rm->self = -1;
    rm->control_fd = rm->zygote_fd = -1;
    rm->domain.arena = w->arena;
    rm->domain.queue_messages =
        w->wf->queue_messages < RR_LINK_MAX_QUEUE ? w->wf->queue_messages : RR_LINK_MAX_QUEUE;
    rm->domain.queue_bytes = w->wf->queue_bytes;
    rm->domain.domain_messages = w->wf->domain_messages;
    rm->domain.domain_bytes = w->wf->domain_bytes;
    snprintf(rm->domain.name, sizeof(rm->domain.name), "%s", w->wf->name);
    rm->spin_max_ns = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? w->spin_ns : 0;
    rm->spin_ns = rm->spin_max_ns;
    rm->run = 1;
    rm->thread = pthread_self();
    rm->waits = rr_wait_begin();
    for (size_t n = 0; n <= w->wf->n_edges; n++)
        rm->repeats[n] = rr_delivery_may_repeat(w->wf, n);
    w->remote = rm;
    return 0;
}

static void drop_again(struct remote *rm)
{
    while (rm->again) {
        struct message *m = rm->again;

        rm->again = m->next;
        rr_message_free(m);
    }
}

void rr_remote_free(struct remote *rm)
{
    if (!rm)
        return;
    if (rr_remote_is_origin(rm) && rm->nodes) {
        rr_origin_close(rm);
        rr_nodes_free(rm->nodes);
    }
    for (size_t n = 0; n <= rm->w->wf->n_functions; n++)
        rr_link_free(rm->outs[n]);
    drop_again(rm);
    for (size_t n = 0; n < rm->n_ins; n++)
        rr_link_free(rm->ins[n].link);
    rr_delivery_forget(rm);
    rr_near_free(rm);
    for (size_t n = 0; n < rm->n_listeners; n++)
        close(rm->listeners[n].fd);
    rr_message_free(rm->reply);
    free(rm->outs);
    free(rm->states);
    free(rm->repeats);
    free(rm->ins);
    free(rm->listeners);
    free(rm->events);
    close(rm->epoll_fd);
    free(rm);
}

int rr_remote_listen(struct remote *rm, struct rr_link_domain *domain, int function)
{
    struct listener *grown = reallocarray(rm->listeners, rm->n_listeners + 1, sizeof(*grown));
    int fd;

    if (!grown)
        return -ENOMEM;
    rm->listeners = grown;
    fd = rr_link_listen(domain, name_of(rm->w, function));
    if (fd < 0)
        return fd;
    grown[rm->n_listeners++] = (struct listener){fd, domain};
    rr_remote_watch(rm, fd);
    return 0;
}

unsigned int rr_remote_n_unacked(const struct remote *rm)
{
    unsigned int n = rm->n_outgoing; /* their receiver says so when it has them */

    for (size_t k = 0; k <= rm->w->wf->n_functions; k++)
        if (rm->outs[k])
            n += rr_link_n_unacked(rm->outs[k]);
    for (const struct message *m = rm->again; m; m = m->next)
        n++;
    return n;
}

unsigned int rr_remote_n_lent(const struct remote *rm)
{
    unsigned int n = rm->n_outgoing;

    for (size_t k = 0; k <= rm->w->wf->n_functions; k++)
        if (rm->outs[k])
            n += rr_link_n_waiting(rm->outs[k]);
    return n;
}

/* --- messages that go ------------------------------------------------------------------------ */

bool rr_remote_at_least_once(const struct remote *rm, int edge)
{
    return edge < (int)rm->w->wf->n_edges && rm->w->wf->edges[edge].at_least_once;
}

void rr_remote_send_later(struct remote *rm, struct message *m)
{
    struct message **last = &rm->again;

    while (*last)
        last = &(*last)->next;
    m->next = NULL;
    *last = m;
}

bool rr_remote_send_once_more(struct remote *rm, struct message *m)
{
    if (!rr_remote_at_least_once(rm, m->edge) || m->run != rm->run || rm->stopping || rm->ended)
        return false;
    m->attempt++;
    rr_remote_send_later(rm, m);
    return true;
}

static void packet_done(void *user, void *cookie, bool acked, bool lost)
{
    struct remote *rm = user;
    struct message *m = cookie;

    if (lost && !acked && rr_remote_send_once_more(rm, m))
        return;
    /* what was to be acked was lent as a copy, which goes no further */
    if (lost && m->region && !rr_remote_at_least_once(rm, m->edge))
        rr_region_forsake(m->region);
    rr_message_free(m);
}

/* Payload where another process can map it, or in a buffer of ours. */
static int make_sendable(struct rr_worker *w, struct message *m, struct rr_error *err)
{
    if (m->small || (rr_region_backing(m->region) == RR_MEMFD && !m->patched))
        return 0;
    return rr_message_regather(w->arena, m, RR_MEMFD, err);
}

/* In a chain each end has its own numbers: what comes to a function is its edge 0. */
static uint32_t edge_for_link(const struct rr_workflow *wf, int edge)
{
    if (!wf->chain)
        return (uint32_t)edge;
    return edge < (int)wf->n_edges ? 0 : CHAIN_RESULT + (uint32_t)edge - (uint32_t)wf->n_edges;
}

static uint32_t edge_from_link(const struct rr_workflow *wf, uint32_t edge)
{
    if (!wf->chain || edge < CHAIN_RESULT)
        return edge;
    return edge - CHAIN_RESULT > 1 ? UINT32_MAX : edge - CHAIN_RESULT + (uint32_t)wf->n_edges;
}

static void to_packet(const struct remote *rm, const struct message *m, struct rr_packet *p)
{
    bool acked = rr_remote_at_least_once(rm, m->edge);

    *p = (struct rr_packet){
        .run = rm->run,
        .edge = edge_for_link(rm->w->wf, m->edge),
        .id = m->id,
        .attempt = m->attempt,
        .acked = acked,
        .len = m->len,
        .offset = m->offset,
        .window = m->window,
        .slot_bytes = m->slot_bytes,
        .fixed = m->fixed,
        .shared = m->region && (acked || rr_region_shared(m->region)),
        .status = m->status,
        .sent_ns = m->sent_ns,
        .send_cost_ns = m->send_cost_ns,
        .copied_bytes = m->copied_bytes,
        .deadline_ns = m->deadline_ns,
        .meta = m->meta,
        .meta_len = (uint32_t)m->meta_len,
        .data = m->small ? m->small->data : NULL,
        .region = m->region,
    };
}

static int connect_to(struct remote *rm, int to, struct rr_error *err)
{
    const char *from = rm->self < 0 ? ".parent" : name_of(rm->w, rm->self);
    struct rr_link_domain *near = rr_nodes_elsewhere(rm, to) ? rr_near_domain(rm, to) : NULL;
    int r = rr_link_connect(near ? near : &rm->domain, from, name_of(rm->w, to), packet_done, rm,
                            &rm->outs[to], err);

    if (r == 0)
        rr_remote_watch(rm, rr_link_fd(rm->outs[to]));
    return r;
}

/* What ends a wait early: the parent knows of a failure, a worker that its run or its life is over.
 */
int rr_remote_interrupted(struct remote *rm, uint64_t run, struct rr_error *err)
{
    if (rr_worker_cancelled(rm->w) || rm->ended || rm->run != run)
        return rr_error_set(err, RR_E_CANCELLED, "", "interrupted");
    if (rm->failure.code) {
        *err = rm->failure;
        rm->w->named = true;
        return (int)err->code;
    }
    return rm->states ? rr_nodes_check(rm, NODE_PATIENCE_NS, err) : 0;
}

/* @m: on success moved to the link or the peer, or freed if that has copied it. */
static int try_send(struct remote *rm, int to, struct message *m, struct rr_error *err)
{
    struct rr_packet p;
    int r;

    if (rr_nodes_reach(rm, to))
        return rr_nodes_send(rm, &m, &m->edge, 1, err);
    r = rm->outs[to] ? 0 : connect_to(rm, to, err);
    if (r && rr_nodes_elsewhere(rm, to)) { /* then by the network */
        rr_near_lost(rm, rr_node_of(rm->w->wf, to));
        return -EAGAIN;
    }
    if (r)
        return r;
    to_packet(rm, m, &p);
    r = rr_link_send(rm->outs[to], &p, m, err);
    if (r == 0 && p.data && !p.acked)
        rr_message_free(m);
    if (r && r != -EAGAIN) {
        struct rr_link *broken = rm->outs[to];

        rm->outs[to] = NULL;
        rr_link_free(broken);
    }
    return r;
}

/* A full queue has room again soon, as a rule: look for a while before asking to be woken. */
static int poll_send(struct remote *rm, int to, struct message *m, struct rr_error *err)
{
    uint64_t begin = rr_now_ns(), limit = rr_min(rm->spin_max_ns, SEND_SPIN_NS);
    int r = -EAGAIN;

    if (!rm->outs[to] || !limit)
        return r;
    rr_link_set_polling(rm->outs[to], true);
    do {
        rr_cpu_relax();
        r = rr_link_poll(rm->outs[to], err) ? -EAGAIN : try_send(rm, to, m, err);
    } while (r == -EAGAIN && rm->outs[to] && rr_now_ns() - begin < limit);
    if (rm->outs[to])
        rr_link_set_polling(rm->outs[to], false);
    return r;
}

static int too_slow(struct rr_worker *w, int to, struct rr_error *err)
{
    if (rr_nodes_reach(w->remote, to) && rr_nodes_why(w->remote, to, err))
        return (int)err->code;
    return rr_error_set(err, RR_E_DEADLINE, "raise its instances or `limits`, or send less",
                        "function '%s' takes no more messages: its queue is full", name_of(w, to));
}

static int receiver_of(const struct rr_workflow *wf, int edge)
{
    return edge < (int)wf->n_edges ? wf->edges[edge].to : (int)wf->n_functions;
}

static void stamp(struct remote *rm, struct message *m, int edge, int32_t status)
{
    m->edge = edge;
    m->run = rm->run;
    m->status = status;
    m->attempt = 1;
    if (rr_remote_at_least_once(rm, edge) && !m->debt)
        m->debt = rr_debt_ref(rm->debt);
}

/* Not now: take in what comes back, and sleep a while. */
static int wait_to_send(struct remote *rm, int to, uint64_t run, uint64_t *give_up,
                        struct rr_error *err)
{
    uint64_t now = rr_now_ns();
    int r;

    *give_up = *give_up ? *give_up : now + SEND_PATIENCE_NS;
    r = now < *give_up ? 0 : too_slow(rm->w, to, err);
    if (r == 0 && rr_remote_pump(rm, false, err) < 0)
        r = (int)err->code;
    if (r == 0)
        r = rr_remote_interrupted(rm, run, err);
    if (r == 0)
        rr_remote_sleep(rm, now + CONNECT_RETRY_NS);
    return r;
}

int rr_remote_send(struct rr_worker *w, struct message *m, int edge, int32_t status,
                   struct rr_error *err)
{
    struct remote *rm = w->remote;
    uint64_t run = rm->run, give_up = 0;
    int to = receiver_of(w->wf, edge), r = make_sendable(w, m, err);

    stamp(rm, m, edge, status);
    while (r == 0) {
        r = try_send(rm, to, m, err);
        if (r == -EAGAIN)
            r = poll_send(rm, to, m, err);
        if (r == 0)
            return 0;
        if (r == -EAGAIN)
            r = wait_to_send(rm, to, run, &give_up, err);
    }
    rr_message_free(m);
    return r;
}

/* To all of @edges that lead to node @node. */
static int send_to_node(struct rr_worker *w, const struct message *m, const int *edges, size_t n,
                        int node, struct rr_error *err)
{
    struct message **ms = calloc(n, sizeof(struct message *));
    int *its = calloc(n, sizeof(*its)), r = 0;
    uint64_t run = w->remote->run, give_up = 0;
    uint32_t count = 0;

    for (size_t k = 0; k < n && ms && its && r == 0; k++) {
        if (rr_node_of(w->wf, w->wf->edges[edges[k]].to) != node)
            continue;
        ms[count] = rr_message_share(m);
        if (!ms[count]) {
            r = rr_error_no_memory(err);
            break;
        }
        ms[count]->id = rr_id_mix(m->id, (uint64_t)edges[k]);
        stamp(w->remote, ms[count], edges[k], 0);
        its[count++] = edges[k];
    }
    if (!ms || !its)
        r = rr_error_no_memory(err);
    while (r == 0) {
        r = rr_nodes_send(w->remote, ms, its, count, err);
        if (r == 0)
            count = 0; /* moved */
        if (r != -EAGAIN)
            break;
        r = wait_to_send(w->remote, w->wf->edges[its[0]].to, run, &give_up, err);
    }
    for (uint32_t k = 0; k < count; k++)
        rr_message_free(ms[k]);
    free(ms);
    free(its);
    return r;
}

int rr_remote_send_to_nodes(struct rr_worker *w, struct message *m, const int *edges, size_t n,
                            struct rr_error *err)
{
    int r = 0;

    for (size_t k = 0; k < n && r == 0; k++) {
        int to = w->wf->edges[edges[k]].to;
        bool first = rr_nodes_reach(w->remote, to);

        for (size_t before = 0; before < k && first; before++)
            first = rr_node_of(w->wf, w->wf->edges[edges[before]].to) != rr_node_of(w->wf, to);
        if (first)
            r = make_sendable(w, m, err);
        if (first && r == 0)
            r = send_to_node(w, m, edges, n, rr_node_of(w->wf, to), err);
    }
    return r;
}

/* Once more, to the worker or node that has taken the place of the one that died; or on from one
 * process to another. */
void rr_remote_send_again(struct remote *rm)
{
    struct rr_error err;

    while (rm->again) {
        struct message *m = rm->again;
        const struct rr_edge *e = &rm->w->wf->edges[m->edge];
        int r;

        rm->again = m->next;
        if (m->attempt > e->attempts) {
            rr_remote_bury(rm, m);
            continue;
        }
        r = make_sendable(rm->w, m, &err);
        if (r == 0)
            r = try_send(rm, e->to, m, &err);
        if (r == 0)
            continue;
        m->next = rm->again;
        rm->again = m;
        if (r != -EAGAIN)
            rr_log(1, "%s", err.text);
        return;
    }
}

void rr_remote_ack(struct remote *rm, struct ack ack)
{
    if (ack.link & RR_ACK_NODE)
        rr_nodes_ack(rm, ack);
    for (size_t n = 0; n < rm->n_ins && ack.link; n++)
        if (rm->ins[n].id == ack.link)
            rr_link_ack(rm->ins[n].link, ack.seq);
}

/* --- messages that come ---------------------------------------------------------------------- */

/* The peer may change both still: what was copied is checked. */
static int copy_packet(const struct rr_packet *p, struct message *m, struct rr_error *err)
{
    if (rr_message_fill(m, p->meta, p->meta_len, p->data, p->len) < 0)
        return rr_error_no_memory(err);
    return rr_meta_is_sound(m->meta, m->meta_len)
               ? 0
               : rr_error_set(err, RR_E_INVALID, "restart it", "a peer sent bad metadata");
}

/* May this link bring a message over this edge? */
static bool edge_is_ours(const struct remote *rm, uint32_t edge)
{
    const struct rr_workflow *wf = rm->w->wf;

    if (edge == wf->n_edges)
        return rr_remote_is_origin(rm) &&
               (wf->functions[wf->result].isolated || rr_node_of(wf, wf->result) != RR_NODE_HERE);
    if (edge == wf->n_edges + 1) /* a dead letter */
        return rr_remote_is_origin(rm);
    if (edge >= wf->n_edges || !rr_edge_crosses(wf, &wf->edges[edge]) ||
        wf->edges[edge].slot_bytes == 0)
        return false;
    if (rm->self >= 0)
        return wf->edges[edge].to == rm->self;
    /* of functions that live here, some in processes of their own; or from one of these to a node
     */
    return rr_node_of(wf, wf->edges[edge].to) == wf->here ||
           (rm->nodes && wf->edges[edge].from >= 0 && wf->functions[wf->edges[edge].from].isolated);
}

/* Into the queue, or to who waits for it. @m: moved. */
static int hand_in(struct remote *rm, struct message *m, struct rr_error *err)
{
    struct rr_worker *w = rm->w;
    int n_edges = (int)w->wf->n_edges;

    if (m->edge == n_edges + 1) {
        if (m->status < 0 || m->status >= n_edges)
            rr_message_free(m);
        else
            rr_remote_bury_here(rm, m, m->status);
        return 0;
    }
    if (m->edge == n_edges) {
        if (w->result) {
            rr_message_free(m);
            return rr_error_set(err, RR_E_INVALID, "send it once per run",
                                "function '%s': it sends a second result",
                                name_of(w, w->wf->result));
        }
        w->result = m;
        return 0;
    }
    if (!rr_hosted(w, w->wf->edges[m->edge].to)) { /* between a process of ours and a node */
        rr_remote_send_later(rm, m);
        return 0;
    }
    if (w->wf->edges[m->edge].is_reply) {
        rr_message_free(rm->reply);
        rm->reply = m;
        rm->reply_status = m->status;
        rm->replied = true;
        return 0;
    }
    return rr_enqueue_here(w, m, m->edge, err);
}

void rr_remote_new_run(struct remote *rm, uint64_t run)
{
    if (run <= rm->run)
        return; /* heard twice: in a message, and from the parent */
    rm->run = run;
    rr_nodes_cancel(rm);
    if (!rr_remote_is_origin(rm))
        rm->failure.code = RR_OK;
    rr_queue_drain(rm->w);
    drop_again(rm);
    rr_delivery_forget(rm);
    rr_message_free(rr_take(rm->reply));
    rm->replied = false;
}

int rr_remote_arrived(struct remote *rm, struct message *m, struct ack ack, struct rr_error *err)
{
    bool alive;

    rm->activity++;
    if (!rr_remote_is_origin(rm) && m->run > rm->run)
        rr_remote_new_run(rm, m->run);
    alive = m->run == rm->run;
    rm->active = rm->active || alive;
    if (!rr_delivery_begin(rm, m, alive && rm->repeats[m->edge], ack) || !alive) {
        rr_message_free(m);
        return 0;
    }
    if (rr_remote_at_least_once(rm, m->edge) && rr_message_mark(m) < 0) {
        rr_message_free(m);
        return rr_error_no_memory(err);
    }
    return hand_in(rm, m, err);
}

/* Returns 1: taken in; 0: none there; -1: the link is to be dropped; -2: @err ends the run. */
static int take_one(struct remote *rm, const struct in *in, struct rr_error *err)
{
    struct rr_link *link = in->link;
    struct rr_packet p;
    struct message *m;
    int r = rr_link_receive(link, &p, err);

    if (r == -EAGAIN)
        return 0;
    if (r)
        return -1;
    m = rr_message_new();
    r = m ? copy_packet(&p, m, err) : rr_error_no_memory(err);
    rr_link_received(link);
    if (m)
        m->region = p.region;
    else
        rr_region_put(p.region);
    p.edge = edge_from_link(rm->w->wf, p.edge);
    if (r || !edge_is_ours(rm, p.edge)) {
        rr_message_free(m);
        return -1;
    }
    m->len = p.len;
    m->offset = p.data ? 0 : p.offset;
    m->window = p.window;
    m->slot_bytes = p.slot_bytes;
    m->fixed = p.fixed;
    m->edge = (int)p.edge;
    m->sent_ns = p.sent_ns;
    m->send_cost_ns = p.send_cost_ns;
    m->copied_bytes += p.copied_bytes;
    m->deadline_ns = p.deadline_ns;
    m->path = p.data ? RR_PATH_COPY : RR_PATH_MOVE;
    m->id = p.id;
    m->attempt = p.attempt;
    m->run = p.run;
    m->status = p.status;
    m->by_link = true;
    return rr_remote_arrived(rm, m, (struct ack){.link = p.acked ? in->id : 0, .seq = p.seq}, err)
               ? -2
               : 1;
}

/* --- links ----------------------------------------------------------------------------------- */

static void drop_in(struct remote *rm, size_t n, const struct rr_error *why)
{
    if (why && why->code)
        rr_log(1, "a link is dropped: %s", why->text);
    rr_link_free(rm->ins[n].link);
    rm->ins[n] = rm->ins[--rm->n_ins];
}

static void accept_all(struct remote *rm)
{
    for (size_t n = 0; n < rm->n_listeners; n++)
        for (;;) {
            struct rr_link *link;
            struct rr_error err;
            struct in *grown;
            int r = rr_link_accept(rm->listeners[n].domain, rm->listeners[n].fd, &link, &err);

            if (r == -EAGAIN)
                break;
            if (r) {
                rr_log(1, "a peer is turned away: %s", err.text);
                if (r == RR_E_SYSTEM)
                    break;
                continue;
            }
            grown = rm->n_ins < RR_MAX_LINKS ? reallocarray(rm->ins, rm->n_ins + 1, sizeof(*grown))
                                             : NULL;
            if (!grown) {
                rr_link_free(link);
                break;
            }
            rm->ins = grown;
            rm->ins[rm->n_ins++] = (struct in){link, ++rm->n_links};
            rr_remote_watch(rm, rr_link_fd(link));
        }
}

static int pump_ins(struct remote *rm, bool sockets, bool messages, struct rr_error *err)
{
    int taken = 0;

    for (size_t n = 0; n < rm->n_ins;) {
        struct rr_link *link = rm->ins[n].link;
        struct rr_error why;
        int gone, r = 1;

        rr_error_clear(&why);
        gone = sockets ? rr_link_pump(link, &why) : 0;
        for (int k = 0; k < BURST && r == 1 && messages && (gone == 0 || gone == -EPIPE); k++) {
            r = take_one(rm, &rm->ins[n], &why);
            taken += r == 1;
        }
        if (r == -2) {
            *err = why;
            return -1;
        }
        /* what a dead sender had sent before it died is taken in first */
        if (r == -1 || (gone && (gone != -EPIPE || (messages && r == 0))))
            drop_in(rm, n, r == -1 || gone != -EPIPE ? &why : NULL);
        else
            n++;
    }
    return taken;
}

static void pump_outs(struct remote *rm, bool sockets)
{
    for (size_t n = 0; n <= rm->w->wf->n_functions; n++) {
        struct rr_link *link = rm->outs[n];
        struct rr_error why;
        int r;

        if (!link)
            continue;
        rr_error_clear(&why);
        r = sockets ? rr_link_pump(link, &why) : rr_link_poll(link, &why);
        if (r == 0)
            continue;
        if (r != -EPIPE)
            rr_log(1, "a link is dropped: %s", why.text);
        rm->outs[n] = NULL;
        rr_link_free(link);
    }
}

/* Its messages are taken in by callbacks, for all sessions of this process. */
static int pump_nodes(struct remote *rm, int taken, struct rr_error *err)
{
    uint64_t before = rm->activity;

    if (rr_nodes_pump(rm->nodes, err) < 0)
        return -1;
    if (!rm->arrival.code)
        return taken < 0 ? taken : taken + (int)(rm->activity - before);
    *err = rm->arrival;
    rm->arrival.code = RR_OK;
    return -1;
}

/* The rings first: what has come is not to wait for the sockets, where seldom anything is. */
int rr_remote_pump(struct remote *rm, bool messages, struct rr_error *err)
{
    int taken = 0;
    uint64_t now;

    pump_outs(rm, false);
    taken = pump_ins(rm, false, messages, err);
    if (rm->nodes)
        taken = pump_nodes(rm, taken, err);
    if (taken < 0)
        return taken;
    now = rr_now_ns();
    if (taken || (!rm->look && now - rm->looked_ns < LOOK_NS))
        return taken;
    rm->looked_ns = now;
    rm->look = false;
    if (rm->self < 0)
        rr_processes_hear(rm);
    else
        rr_child_hear(rm);
    accept_all(rm);
    pump_outs(rm, true);
    if (rm->again)
        rr_remote_send_again(rm);
    return pump_ins(rm, true, messages, err);
}

/* --- sleep ----------------------------------------------------------------------------------- */

/* Rings need no system call. */
bool rr_remote_came(struct remote *rm)
{
    for (size_t n = 0; n < rm->n_ins; n++)
        if (rr_link_pending(rm->ins[n].link))
            return true;
    for (size_t n = 0; n <= rm->w->wf->n_functions; n++)
        if (rm->outs[n] && rr_link_pending(rm->outs[n]))
            return true;
    return false;
}

static bool something_came(struct remote *rm)
{
    return rr_remote_came(rm) || (rm->nodes && rr_nodes_poll(rm->nodes));
}

static bool announce(struct rr_link *link, struct futex_waitv *words, size_t *n)
{
    struct futex_waitv word = {0};
    bool quiet = rr_link_sleep(link, words && *n < RR_WAIT_WORDS ? &word : NULL);

    if (word.uaddr)
        words[(*n)++] = word;
    return quiet;
}

bool rr_remote_announce(struct remote *rm, struct futex_waitv *words, size_t *ret_n)
{
    bool quiet = true;

    for (size_t n = 0; n < rm->n_ins; n++)
        quiet = announce(rm->ins[n].link, words, ret_n) && quiet;
    for (size_t n = 0; n <= rm->w->wf->n_functions; n++)
        if (rm->outs[n])
            quiet = announce(rm->outs[n], words, ret_n) && quiet;
    return quiet;
}

void rr_remote_awake(struct remote *rm)
{
    for (size_t n = 0; n < rm->n_ins; n++)
        rr_link_awake(rm->ins[n].link);
    for (size_t n = 0; n <= rm->w->wf->n_functions; n++)
        if (rm->outs[n])
            rr_link_awake(rm->outs[n]);
}

/* A wait that ended while we spun makes the next spin longer, one that did not, shorter. */
bool rr_remote_spin(struct remote *rm)
{
    uint64_t begin = rr_now_ns(), now = begin;

    if (!rm->spin_ns)
        return false;
    do {
        if (now - rm->looked_ns > LOOK_NS)
            return true; /* at the sockets, and come back */
        for (int k = 0; k < RR_POLLS; k++) {
            if (something_came(rm)) {
                rm->spin_ns = rr_min(rm->spin_max_ns, 2 * rm->spin_ns + 1000);
                return true;
            }
            if (rm->nodes) /* it was a system call: time enough has passed */
                continue;
            if (now - begin < EAGER_NS)
                rr_cpu_pause();
            else
                rr_cpu_relax();
        }
        now = rr_now_ns();
    } while (now - begin < rm->spin_ns);
    if (rm->spin_max_ns <= RR_SPIN_ADAPTIVE_NS) /* beyond, polling was asked for */
        rm->spin_ns = rm->spin_ns > 2000 ? rm->spin_ns / 2 : 1000;
    return false;
}

void rr_remote_sleep(struct remote *rm, uint64_t deadline_ns)
{
    if (!rr_remote_spin(rm))
        rr_remote_doze(rm, deadline_ns);
}

void rr_remote_doze(struct remote *rm, uint64_t deadline_ns)
{
    bool waits = rm->waits && !rm->nodes && pthread_equal(rm->thread, pthread_self());
    struct futex_waitv words[RR_WAIT_WORDS];
    struct epoll_event events[16];
    uint64_t now;
    int timeout = -1;
    size_t n = 0;

    if (rr_remote_announce(rm, waits ? words : NULL, &n)) {
        now = rr_now_ns();
        if (rm->again) /* nobody tells when the new worker listens */
            deadline_ns = rr_min(deadline_ns, now + CONNECT_RETRY_NS);
        if (deadline_ns != UINT64_MAX)
            timeout =
                deadline_ns <= now ? 0 : (int)rr_min((deadline_ns - now) / 1000000 + 1, 60000);
        if (rm->nodes) { /* which watch our descriptors, too */
            rr_net_sleep(rr_nodes_net(rm->nodes), deadline_ns);
            rm->look = true;
        } else if (waits) {
            rm->look = rr_wait(words, n, rm->epoll_fd, deadline_ns);
        } else {
            rm->look = epoll_wait(rm->epoll_fd, events, 16, timeout) != 0;
        }
    }
    rr_remote_awake(rm);
}

/* --- calls ----------------------------------------------------------------------------------- */

int rr_remote_reply(struct rr_worker *w, uint64_t deadline_ns, struct message **ret,
                    int *ret_status, struct rr_error *err)
{
    struct remote *rm = w->remote;
    uint64_t run = rm->run;

    for (;;) {
        int r = 0;

        if (rm->replied) {
            *ret = rr_take(rm->reply);
            *ret_status = rm->reply_status;
            rm->replied = false;
            return 0;
        }
        r = rr_remote_interrupted(rm, run, err);
        if (r == 0 && deadline_ns && rr_now_ns() > deadline_ns)
            r = rr_error_set(err, RR_E_DEADLINE, "raise `deadline` of this function",
                             "its deadline passed while it waited for a reply");
        if (r)
            return r;
        /* what has come already ends the sleep at once */
        rr_remote_sleep(rm, deadline_ns ? deadline_ns : UINT64_MAX);
        if (!rm->replied && rm->nodes)
            rr_nodes_poll(rm->nodes);
        if ((!rm->replied || rm->arrival.code) && rr_remote_pump(rm, true, err) < 0)
            return (int)err->code;
    }
}
