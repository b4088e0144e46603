/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of a session: messages, what is said about them, and what each side grants the other. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "channel/netio.h"

#define SLOT_OF(seq) ((uint32_t)((seq) & 0xffff))
#define MAX_SPARE 256
#define MAX_BACKS (1u << 20) /* bytes of rows that wait until they are written */

static int broke(struct rr_error *err, const char *what)
{
    return rr_error_set(err, RR_E_INVALID, rr_net_peer_hint, "%s", what);
}

static void set_bit(uint64_t *bits, uint32_t n)
{
    bits[n / 64] |= 1ull << n % 64;
}

static bool get_bit(const uint64_t *bits, uint32_t n)
{
    return (bits[n / 64] & 1ull << n % 64) != 0;
}

static void clear_bit(uint64_t *bits, uint32_t n)
{
    bits[n / 64] &= ~(1ull << n % 64);
}

/* --- a session's tables ---------------------------------------------------------------------- */

int message_begin(struct rr_net_peer *peer, const struct rr_wire_credit *window)
{
    const struct rr_net_options *o = &peer->net->o;

    peer->n_outs = (uint32_t)window->messages;
    peer->outs = calloc(peer->n_outs, sizeof(*peer->outs));
    peer->free_outs = calloc(peer->n_outs, sizeof(*peer->free_outs));
    peer->ins = calloc(o->window_messages, sizeof(*peer->ins));
    if (!peer->outs || !peer->free_outs || !peer->ins)
        return -ENOMEM;
    peer->n_free_outs = peer->n_outs;
    for (uint32_t n = 0; n < peer->n_outs; n++)
        peer->free_outs[n] = (uint16_t)(peer->n_outs - 1 - n);
    peer->sent = peer->got = (struct rr_wire_credit){0};
    peer->granted_us = peer->window_of_peer = *window;
    peer->granted = (struct rr_wire_credit){o->window_messages, o->window_inline_bytes,
                                            o->window_bulk_bytes, RR_NET_CONTROL_WINDOW};
    peer->told = peer->granted;
    return 0;
}

static void set_dirty(struct rr_net_peer *peer)
{
    if (peer->dirty)
        return;
    peer->dirty = true;
    peer->next_dirty = peer->net->dirty;
    peer->net->dirty = peer;
}

/* The slot may be used again. */
static void free_out(struct rr_net_peer *peer, struct outgoing *m)
{
    peer->outs[SLOT_OF(m->seq)] = NULL;
    peer->free_outs[peer->n_free_outs++] = (uint16_t)SLOT_OF(m->seq);
    peer->n_waiting--;
    peer->net->n_waiting--;
    free(m->head);
    free(m->refusal);
    if (peer->net->n_spare_outs >= MAX_SPARE) {
        free(m);
        return;
    }
    m->spare = peer->net->spare_outs;
    peer->net->spare_outs = m;
    peer->net->n_spare_outs++;
}

static struct event *queue_done(struct rr_net_peer *peer, void *cookie, uint32_t target, bool acked,
                                bool lost)
{
    struct event *e = net_event(peer, EVENT_DONE, 0);

    if (!e)
        return NULL;
    e->cookie = cookie;
    e->target = target;
    e->acked = acked;
    e->lost = lost;
    return e;
}

/* Nothing more comes about @m. */
static void finish_out(struct rr_net_peer *peer, struct outgoing *m, bool lost)
{
    for (uint32_t n = 0; n < m->n_targets; n++)
        if (get_bit(m->open, n)) {
            struct event *e = queue_done(peer, m->cookie, n, false, lost);

            if (e && !lost && m->refusal)
                net_event_error(e, m->refusal);
        }
    free_out(peer, m);
}

static void free_in(struct rr_net_peer *peer, struct incoming *in)
{
    peer->ins[SLOT_OF(in->seq)] = NULL;
    if (in->conn && in->conn->in == in)
        in->conn->in = NULL;
    rr_region_put(in->region);
    free(in->head);
    if (peer->net->n_spare_ins >= MAX_SPARE) {
        free(in);
        return;
    }
    in->spare = peer->net->spare_ins;
    peer->net->spare_ins = in;
    peer->net->n_spare_ins++;
}

void message_free_spares(struct rr_net *net)
{
    while (net->spare_outs) {
        struct outgoing *m = net->spare_outs;

        net->spare_outs = m->spare;
        free(m);
    }
    while (net->spare_ins) {
        struct incoming *in = net->spare_ins;

        net->spare_ins = in->spare;
        free(in);
    }
}

void message_end(struct rr_net_peer *peer)
{
    for (uint32_t n = 0; peer->outs && n < peer->n_outs; n++)
        if (peer->outs[n])
            finish_out(peer, peer->outs[n], true);
    for (uint32_t n = 0; peer->ins && n < peer->net->o.window_messages; n++)
        if (peer->ins[n])
            free_in(peer, peer->ins[n]);
    free(rr_take(peer->outs));
    free(rr_take(peer->free_outs));
    free(rr_take(peer->ins));
    peer->n_outs = peer->n_free_outs = 0;
    bytes_free(&peer->backs);
}

/* --- what we tell about messages ------------------------------------------------------------- */

static void say_back(struct rr_net_peer *peer, uint64_t seq, uint32_t target, uint32_t what)
{
    const struct rr_wire_back_row row = {seq, target, what};
    uint8_t bytes[RR_WIRE_BACK_BYTES];

    if (!peer->main)
        return;
    rr_wire_put_back(bytes, &row);
    if (!bytes_add(&peer->backs, bytes, sizeof(bytes)))
        conn_fail(peer->main, LOG_MEMORY, "no memory for acks");
    else
        set_dirty(peer);
}

static bool must_tell_credit(const struct rr_net_peer *peer)
{
    const struct rr_net_options *o = &peer->net->o;

    return peer->granted.messages - peer->told.messages > o->window_messages / 4 ||
           peer->granted.inline_bytes - peer->told.inline_bytes > o->window_inline_bytes / 4 ||
           peer->granted.bulk_bytes != peer->told.bulk_bytes ||
           peer->granted.control_bytes - peer->told.control_bytes > RR_NET_CONTROL_WINDOW / 4;
}

/* Room for what message_owed() points to. */
struct owed {
    uint8_t back[RR_WIRE_HEADER], credit[RR_WIRE_HEADER + 32];
    size_t rows;
};

/* Up to 3 pieces: what is to be told goes with whatever is sent next. */
static size_t owed_pieces(struct rr_net_peer *peer, struct owed *o, struct iovec v[3])
{
    size_t n = 0;

    o->rows = rr_min(bytes_len(&peer->backs), RR_WIRE_BACK_BYTES * 4096ull);
    if (o->rows) {
        rr_wire_put_header(o->back, (uint32_t)o->rows, RR_WIRE_BACK, 0, 0);
        v[n++] = (struct iovec){o->back, sizeof(o->back)};
        v[n++] = (struct iovec){peer->backs.data + peer->backs.start, o->rows};
    }
    if (must_tell_credit(peer)) {
        peer->told = peer->granted;
        rr_wire_put_header(o->credit, 32, RR_WIRE_CREDIT, 0, 0);
        rr_wire_put_credit(o->credit + RR_WIRE_HEADER, &peer->told);
        v[n++] = (struct iovec){o->credit, sizeof(o->credit)};
    }
    return n;
}

static void owed_sent(struct rr_net_peer *peer, const struct owed *o)
{
    if (!o->rows || !bytes_len(&peer->backs))
        return;
    peer->backs.start += o->rows;
    if (peer->backs.start == peer->backs.end)
        peer->backs.start = peer->backs.end = 0;
}

bool message_owes(const struct rr_net_peer *peer)
{
    return bytes_len(&peer->backs) || must_tell_credit(peer);
}

void message_flush(struct rr_net_peer *peer)
{
    struct iovec v[3];
    struct owed o;
    size_t n;

    while (peer->main && peer->main->state == CONN_OPEN && (n = owed_pieces(peer, &o, v)) > 0) {
        if (bytes_len(&peer->backs) > MAX_BACKS && bytes_len(&peer->main->out) > RR_NET_MAX_OUT) {
            conn_fail(peer->main, LOG_BUSY, "it does not read its acks");
            return;
        }
        if (!conn_send(peer->main, v, n))
            return;
        owed_sent(peer, &o);
    }
    if (peer->main && peer->main->state == CONN_OPEN && bytes_len(&peer->main->out))
        conn_write(peer->main);
}

/* --- what comes ------------------------------------------------------------------------------ */

static struct incoming *find_in(const struct rr_net_peer *peer, uint64_t handle)
{
    uint32_t slot = SLOT_OF(handle);
    struct incoming *in = peer->ins && slot < peer->net->o.window_messages ? peer->ins[slot] : NULL;

    return in && in->handle == handle ? in : NULL;
}

/* By the sender's number. */
static struct incoming *find_seq(const struct rr_net_peer *peer, uint64_t seq)
{
    uint32_t slot = SLOT_OF(seq);
    struct incoming *in = slot < peer->net->o.window_messages ? peer->ins[slot] : NULL;

    return in && in->seq == seq ? in : NULL;
}

static void grant(struct rr_net_peer *peer, bool bulk, uint64_t cost)
{
    peer->granted.messages++;
    if (bulk)
        peer->granted.bulk_bytes += cost;
    else
        peer->granted.inline_bytes += cost;
    if (must_tell_credit(peer))
        set_dirty(peer);
}

/* Is @in done with? */
static void settle_in(struct rr_net_peer *peer, struct incoming *in)
{
    if (!in->delivered || in->held || in->n_open)
        return;
    grant(peer, in->bulk, in->cost);
    free_in(peer, in);
}

static uint64_t inline_cost(const struct rr_net_packet *p)
{
    return p->len + p->meta_len + RR_NET_MESSAGE_COST;
}

/* @p: with our handle, which is 0 where nothing is said back. */
static void deliver(struct rr_net_peer *peer, struct rr_net_packet *p, uint64_t session)
{
    uint64_t cost = inline_cost(p), handle = p->seq;
    struct rr_net *net = peer->net;
    struct incoming *in;

    net->n_delivered++;
    net->stats.in_messages++;
    net->stats.in_payload_bytes += p->len;
    net->o.events.message(net->o.user, peer, p);
    if (peer->n_sessions != session || !peer->ins)
        return;
    if (!handle) {
        grant(peer, false, cost);
        return;
    }
    in = find_in(peer, handle);
    if (in) {
        in->delivered = true;
        settle_in(peer, in);
    }
}

void message_deliver(struct event *e)
{
    struct rr_net *net = e->peer->net;
    struct rr_net_packet p;

    /* it was checked when it came */
    if (rr_wire_get_data(&e->h, e->head ? e->head : e->data, net->targets, net->names, &p, NULL))
        return;
    p.seq = e->handle;
    p.age_ns += rr_now_ns() - e->came_ns; /* its payload took this long, or it has waited */
    p.region = rr_take(e->region);
    deliver(e->peer, &p, e->session);
}

static int take_credit(struct rr_net_peer *peer, const struct rr_net_packet *p, bool bulk,
                       struct rr_error *err)
{
    uint64_t *got = bulk ? &peer->got.bulk_bytes : &peer->got.inline_bytes;
    uint64_t granted = bulk ? peer->granted.bulk_bytes : peer->granted.inline_bytes;
    uint64_t cost = bulk ? p->len : inline_cost(p);
    /* one alone may be larger than the window */
    bool alone = bulk && *got + peer->net->o.window_bulk_bytes == granted;

    if (peer->got.messages >= peer->granted.messages ||
        (!alone && (*got > granted || cost > granted - *got)))
        return broke(err, "it sent more than it was granted");
    peer->got.messages++;
    *got += cost;
    return 0;
}

static struct incoming *new_in(struct rr_net_peer *peer, const struct rr_net_packet *p, bool bulk)
{
    struct rr_net *net = peer->net;
    struct incoming *in = net->spare_ins ? net->spare_ins : malloc(sizeof(*in));

    if (!in)
        return NULL;
    if (in == net->spare_ins) {
        net->spare_ins = in->spare;
        net->n_spare_ins--;
    }
    *in = (struct incoming){0};
    in->seq = p->seq;
    in->handle = ++peer->in_count << 16 | SLOT_OF(p->seq);
    in->bulk = bulk;
    in->cost = bulk ? p->len : inline_cost(p);
    in->n_targets = p->n_targets;
    for (uint32_t n = 0; n < p->n_targets; n++)
        if (p->targets[n].acked) {
            set_bit(in->open, n);
            in->n_open++;
        }
    peer->ins[SLOT_OF(p->seq)] = in;
    return in;
}

/* A region to receive into; else the payload is dropped when it comes. */
static void place(struct conn *c, struct incoming *in, struct rr_net_packet *p)
{
    struct rr_net *net = c->net;
    struct rr_net_peer *peer = c->peer;
    struct rr_region *region = NULL;
    struct rr_error err = {0};
    uint8_t body[4 + RR_WIRE_MAX_TEXT];
    uint64_t handle = in->handle;
    size_t len;
    int r;

    p->seq = handle;
    r = net->o.events.place(net->o.user, peer, p, &region, &err);
    if (find_in(peer, handle) != in) { /* the callee has ended the session */
        rr_region_put(region);
        return;
    }
    if (r == 0 && rr_region_slot_bytes(region) >= p->offset + p->len) {
        in->region = region;
        in->to = rr_region_data(region) + p->offset;
        return;
    }
    rr_region_put(region);
    in->refused = true;
    net->stats.refused_messages++;
    len = rr_min(strlen(err.text), RR_WIRE_MAX_TEXT);
    memcpy(body, (uint8_t[4]){(uint8_t)err.code, (uint8_t)(err.code >> 8)}, 4);
    memcpy(body + 4, err.text, len);
    if (conn_put_frame(peer->main, RR_WIRE_REFUSE, in->seq, body, (uint32_t)(4 + len)))
        conn_write(peer->main);
}

static void on_bulk(struct conn *c, const struct rr_wire_header *h, const uint8_t *body,
                    struct rr_net_packet *p)
{
    struct incoming *in = new_in(c->peer, p, true);

    if (in)
        in->head = malloc(h->len);
    if (!in || !in->head) {
        conn_fail(c, LOG_MEMORY, "no memory for a message");
        return;
    }
    memcpy(in->head, body, h->len);
    in->h = *h;
    in->came_ns = rr_now_ns();
    in->len = p->len;
    in->conn = c;
    place(c, in, p);
}

static int on_data(struct conn *c, const struct rr_wire_header *h, const uint8_t *body,
                   struct rr_error *err)
{
    struct rr_net_peer *peer = c->peer;
    struct rr_net *net = c->net;
    bool bulk = (h->flags & RR_WIRE_BULK) != 0;
    struct incoming *in = NULL;
    struct rr_net_packet p;
    struct event *e;
    int r = rr_wire_get_data(h, body, net->targets, net->names, &p, err);

    if (r)
        return r;
    if (bulk != c->extra)
        return broke(err, "it sent a message over the wrong connection");
    if (h->seq && (SLOT_OF(h->seq) >= net->o.window_messages || peer->ins[SLOT_OF(h->seq)]))
        return broke(err, "it used the number of a message that is not done with");
    r = take_credit(peer, &p, bulk, err);
    if (r)
        return r;
    if (bulk) {
        on_bulk(c, h, body, &p);
        return 0;
    }
    if (h->seq && !(in = new_in(peer, &p, false)))
        conn_fail(c, LOG_MEMORY, "no memory for a message");
    if (c->state == CONN_CLOSED)
        return 0;
    p.seq = in ? in->handle : 0;
    if (net_direct(net)) {
        deliver(peer, &p, peer->n_sessions);
        return 0;
    }
    e = net_event(peer, EVENT_MESSAGE, h->len);
    if (!e)
        return 0;
    memcpy(e->data, body, h->len);
    e->h = *h;
    e->came_ns = rr_now_ns();
    e->handle = p.seq;
    net->stats.small_copied_bytes += p.len;
    return 0;
}

/* --- a large payload comes ------------------------------------------------------------------- */

/* The message is whole, or what was left of it has been dropped. */
static void whole(struct rr_net_peer *peer, struct incoming *in)
{
    struct event *e;

    in->whole = true;
    in->conn = NULL;
    say_back(peer, in->seq, 0, in->cancelled ? RR_WIRE_CANCELLED : RR_WIRE_RECEIVED);
    if (in->refused || in->cancelled) {
        grant(peer, true, in->cost);
        free_in(peer, in);
        return;
    }
    e = net_event(peer, EVENT_MESSAGE, 0);
    if (!e)
        return;
    e->h = in->h;
    e->came_ns = in->came_ns;
    e->handle = in->handle;
    e->head = rr_take(in->head);
    e->region = rr_take(in->region);
    in->to = NULL;
}

void message_on_chunk(struct conn *c, const struct rr_wire_header *h)
{
    struct rr_net_peer *peer = c->peer;
    struct incoming *in = c->extra ? find_seq(peer, h->seq) : NULL;
    struct rr_error err;

    if (!in || in->conn != c || h->len > in->len - in->got) {
        broke(&err, "it sent payload of no message, or too much of it");
        c->chunk_left = 0;
        conn_broke(c, &err);
        return;
    }
    c->in = in;
}

uint8_t *message_chunk_place(struct conn *c)
{
    return c->in && c->in->to ? c->in->to + c->in->got : NULL;
}

void message_chunk_done(struct conn *c)
{
    struct incoming *in = c->in;

    c->in = NULL;
    if (in && in->got == in->len)
        whole(c->peer, in);
}

/* --- what the peer says about ours ----------------------------------------------------------- */

static struct outgoing *find_out(const struct rr_net_peer *peer, uint64_t seq)
{
    uint32_t slot = SLOT_OF(seq);
    struct outgoing *m = slot < peer->n_outs ? peer->outs[slot] : NULL;

    return m && m->seq == seq ? m : NULL;
}

static void tell_ready(struct rr_net_peer *peer)
{
    if (!peer->starved)
        return;
    peer->starved = false;
    net_event(peer, EVENT_READY, 0);
}

static void on_received(struct rr_net_peer *peer, struct outgoing *m)
{
    m->received = true;
    if (m->refusal) {
        finish_out(peer, m, false);
        return;
    }
    for (uint32_t n = 0; n < m->n_targets; n++)
        if (!get_bit(m->wanted, n)) {
            clear_bit(m->open, n);
            m->n_open--;
            queue_done(peer, m->cookie, n, false, false);
        }
    if (m->n_open == 0)
        free_out(peer, m);
}

static void on_acked(struct rr_net_peer *peer, struct outgoing *m, uint32_t target)
{
    struct rr_net *net = peer->net;
    void *cookie = m->cookie;

    clear_bit(m->open, target);
    if (--m->n_open == 0)
        free_out(peer, m);
    if (!net->o.events.done)
        return;
    if (!net_direct(net)) {
        queue_done(peer, cookie, target, true, false);
        return;
    }
    net->n_delivered++;
    net->o.events.done(net->o.user, peer, cookie, target, true, false, NULL);
}

static int on_back_row(struct rr_net_peer *peer, const struct rr_wire_back_row *row,
                       struct rr_error *err)
{
    struct outgoing *m = find_out(peer, row->seq);

    if (!m || m->conn) /* what is still being sent cannot have come */
        return broke(err, "it gives back what it was not given");
    switch (row->what) {
    case RR_WIRE_RECEIVED:
        if (!m->bulk || m->received)
            break;
        on_received(peer, m);
        return 0;
    case RR_WIRE_ACK:
        if (row->target >= m->n_targets || !get_bit(m->open, row->target) ||
            !get_bit(m->wanted, row->target) || (m->bulk && !m->received) || m->refusal)
            break;
        on_acked(peer, m, row->target);
        return 0;
    case RR_WIRE_CANCELLED:
        if (!m->cancelled)
            break;
        finish_out(peer, m, false);
        return 0;
    default:
        break;
    }
    return broke(err, "it says of a message what cannot be");
}

static int on_back(struct conn *c, const struct rr_wire_header *h, const uint8_t *body,
                   struct rr_error *err)
{
    for (uint32_t at = 0; at < h->len && c->state == CONN_OPEN; at += RR_WIRE_BACK_BYTES) {
        struct rr_wire_back_row row;
        int r;

        rr_wire_get_back(body + at, &row);
        r = on_back_row(c->peer, &row, err);
        if (r)
            return r;
    }
    if (c->state == CONN_OPEN)
        tell_ready(c->peer);
    return 0;
}

static int on_refuse(struct rr_net_peer *peer, const struct rr_wire_header *h, const uint8_t *body,
                     struct rr_error *err)
{
    struct outgoing *m = find_out(peer, h->seq);
    char text[RR_WIRE_MAX_TEXT + 1];

    if (!m || !m->bulk || m->received || m->refusal)
        return broke(err, "it refuses what it was not given");
    rr_wire_get_text(body + 4, h->len - 4, text, sizeof(text));
    m->refusal = calloc(1, sizeof(*m->refusal));
    if (!m->refusal)
        return rr_error_set(err, RR_E_SYSTEM, NULL, "no memory for a refusal");
    rr_error_set(m->refusal, RR_E_LIMIT, "see the log of that node", "%s refused a message: %s",
                 peer->address, text);
    if (m->conn) /* the rest need not go out */
        m->cancelled = true;
    return 0;
}

static int on_credit(struct rr_net_peer *peer, const uint8_t *body, struct rr_error *err)
{
    const struct rr_wire_credit *old = &peer->granted_us, *w = &peer->window_of_peer;
    struct rr_wire_credit c;

    rr_wire_get_credit(body, &c);
    /* it gives back what was used, and no more */
    if (c.messages < old->messages || c.inline_bytes < old->inline_bytes ||
        c.bulk_bytes < old->bulk_bytes || c.control_bytes < old->control_bytes ||
        c.messages - w->messages > peer->sent.messages ||
        c.inline_bytes - w->inline_bytes > peer->sent.inline_bytes ||
        c.bulk_bytes - w->bulk_bytes > peer->sent.bulk_bytes ||
        c.control_bytes - w->control_bytes > peer->sent.control_bytes)
        return broke(err, "it grants what cannot be");
    peer->granted_us = c;
    tell_ready(peer);
    return 0;
}

/* An event that is yet to be delivered: its message is given up. */
static void forget_event(struct rr_net *net, uint64_t handle, const struct rr_net_peer *peer)
{
    for (struct event *e = net->events; e; e = e->next)
        if (e->kind == EVENT_MESSAGE && e->peer == peer && e->handle == handle) {
            e->kind = EVENT_NOTHING;
            rr_region_put(rr_take(e->region));
        }
}

static int on_cancel(struct conn *c, const struct rr_wire_header *h, struct rr_error *err)
{
    struct rr_net_peer *peer = c->peer;
    struct incoming *in = find_seq(peer, h->seq);
    struct event *e;

    if (!in) /* our last word about it is on its way */
        return 0;
    if (c->extra != in->bulk || (in->conn && in->conn != c))
        return broke(err, "it cancels a message over another connection");
    in->cancelled = true;
    if (in->bulk && !in->whole) {
        whole(peer, in);
        return 0;
    }
    if (in->n_open) /* else it knows that nothing is left to come */
        say_back(peer, in->seq, 0, RR_WIRE_CANCELLED);
    grant(peer, in->bulk, in->cost);
    if (in->delivered) {
        e = net_event(peer, EVENT_CANCELLED, 0);
        if (e)
            e->handle = in->handle;
    } else {
        forget_event(c->net, in->handle, peer);
    }
    if (find_seq(peer, h->seq) == in)
        free_in(peer, in);
    return 0;
}

static int on_control(struct conn *c, const struct rr_wire_header *h, const uint8_t *body,
                      struct rr_error *err)
{
    struct rr_net_peer *peer = c->peer;
    struct rr_net *net = c->net;
    uint64_t cost = h->len - 4 + RR_NET_CONTROL_COST;
    uint32_t word = (uint32_t)body[0] | (uint32_t)body[1] << 8 | (uint32_t)body[2] << 16 |
                    (uint32_t)body[3] << 24;
    struct event *e;

    if (cost > peer->granted.control_bytes - peer->got.control_bytes)
        return broke(err, "it sent more words than it was granted");
    peer->got.control_bytes += cost;
    if (net_direct(net)) {
        uint64_t session = peer->n_sessions;

        net->n_delivered++;
        if (net->o.events.control)
            net->o.events.control(net->o.user, peer, word, body + 4, h->len - 4);
        if (peer->n_sessions == session) {
            peer->granted.control_bytes += cost;
            set_dirty(peer);
        }
        return 0;
    }
    e = net_event(peer, EVENT_CONTROL, h->len - 4);
    if (e) {
        e->word = word;
        memcpy(e->data, body + 4, h->len - 4);
    }
    return 0;
}

static void on_error(struct conn *c, const struct rr_wire_header *h, const uint8_t *body)
{
    char text[RR_WIRE_MAX_TEXT + 1];

    rr_wire_get_text(body + 4, h->len - 4, text, sizeof(text));
    conn_fail(c, LOG_LOST, "it ended the session: %s", text);
}

void message_on_frame(struct conn *c, const struct rr_wire_header *h, const uint8_t *body)
{
    struct rr_net_peer *peer = c->peer;
    struct rr_error err;
    int r = -1;

    rr_error_clear(&err);
    peer_ref(peer); /* a callback, or a broken rule, may end its session */
    switch (h->type) {
    case RR_WIRE_DATA:
        r = peer->up ? on_data(c, h, body, &err) : -1;
        break;
    case RR_WIRE_CANCEL:
        r = peer->up ? on_cancel(c, h, &err) : -1;
        break;
    case RR_WIRE_PING:
        conn_pong(c, h->seq);
        r = 0;
        break;
    case RR_WIRE_PONG:
        r = 0;
        break;
    case RR_WIRE_ERROR:
        on_error(c, h, body);
        r = 0;
        break;
    case RR_WIRE_BACK:
        r = c->extra || !peer->up ? -1 : on_back(c, h, body, &err);
        break;
    case RR_WIRE_REFUSE:
        r = c->extra || !peer->up ? -1 : on_refuse(peer, h, body, &err);
        break;
    case RR_WIRE_CREDIT:
        r = c->extra || !peer->up ? -1 : on_credit(peer, body, &err);
        break;
    case RR_WIRE_CONTROL:
        r = c->extra || !peer->up ? -1 : on_control(c, h, body, &err);
        break;
    case RR_WIRE_GOODBYE:
        if (!c->extra)
            peer_end(peer, NULL);
        r = c->extra ? -1 : 0;
        break;
    default:
        break;
    }
    if (r < 0)
        broke(&err, "it sent what nobody expects");
    if (r)
        conn_broke(c, &err);
    peer_unref(peer);
}

/* --- what we send ---------------------------------------------------------------------------- */

/* All of it is out, or its end was. */
void message_sent(struct outgoing *m)
{
    if (!m->cancelled || m->sent < m->len)
        return;
    /* too late to stop, but the receiver may drop it */
    conn_put_between(m->via, RR_WIRE_CANCEL, m->seq);
}

void message_unsent(struct outgoing *m)
{
    struct rr_net_peer *peer = m->peer;

    peer->sent.messages--;
    peer->sent.bulk_bytes -= m->len;
    finish_out(peer, m, false);
    tell_ready(peer);
}

static bool has_credit(const struct rr_net_peer *peer, const struct rr_net_packet *p, bool bulk)
{
    const struct rr_wire_credit *sent = &peer->sent, *granted = &peer->granted_us;

    if (sent->messages >= granted->messages)
        return false;
    if (!bulk)
        return sent->inline_bytes + inline_cost(p) <= granted->inline_bytes;
    return sent->bulk_bytes + p->len <= granted->bulk_bytes ||
           sent->bulk_bytes + peer->window_of_peer.bulk_bytes == granted->bulk_bytes;
}

static struct outgoing *new_out(struct rr_net_peer *peer, const struct rr_net_packet *p,
                                void *cookie, bool bulk)
{
    struct rr_net *net = peer->net;
    struct outgoing *m = net->spare_outs ? net->spare_outs : malloc(sizeof(*m));

    if (!m)
        return NULL;
    if (m == net->spare_outs) {
        net->spare_outs = m->spare;
        net->n_spare_outs--;
    }
    *m = (struct outgoing){0};
    m->seq = ++peer->out_count << 16 | peer->free_outs[--peer->n_free_outs];
    m->cookie = cookie;
    m->peer = peer;
    m->bulk = bulk;
    m->n_targets = p->n_targets;
    for (uint32_t n = 0; n < p->n_targets; n++) {
        if (p->targets[n].acked)
            set_bit(m->wanted, n);
        if (p->targets[n].acked || bulk) {
            set_bit(m->open, n);
            m->n_open++;
        }
    }
    peer->outs[SLOT_OF(m->seq)] = m;
    peer->n_waiting++;
    net->n_waiting++;
    return m;
}

static int send_bulk(struct rr_net_peer *peer, const struct rr_net_packet *p, struct outgoing *m,
                     size_t bytes)
{
    struct conn *c = peer->extra[0];

    m->head = malloc(bytes);
    if (!m->head)
        return -ENOMEM;
    m->head_bytes = bytes;
    rr_wire_put_data(m->head, bytes, p, m->seq);
    m->len = p->len;
    m->offset = p->offset;
    m->fd = p->data ? -1 : rr_region_fd(p->region);
    m->data = p->data;
    m->region = p->region;
    for (uint32_t n = 1; n < peer->n_bulk; n++)
        if (peer->extra[n]->n_queued < c->n_queued)
            c = peer->extra[n];
    m->via = c;
    conn_enqueue(c, m);
    return 0;
}

static int send_inline(struct rr_net_peer *peer, const struct rr_net_packet *p, uint64_t seq,
                       size_t bytes)
{
    struct bytes *head = &peer->net->head;
    const uint8_t *data = p->data || !p->len ? p->data : rr_region_data(p->region) + p->offset;
    struct iovec v[5];
    struct owed o;
    size_t n;

    head->start = head->end = 0;
    if (!bytes_room(head, bytes))
        return -ENOMEM;
    rr_wire_put_data(head->data, bytes, p, seq);
    n = owed_pieces(peer, &o, v);
    v[n++] = (struct iovec){head->data, bytes};
    if (p->len)
        v[n++] = (struct iovec){(void *)(uintptr_t)data, p->len};
    if (conn_send(peer->main, v, n))
        owed_sent(peer, &o);
    peer->net->stats.out_payload_bytes += p->len;
    return 0;
}

int rr_net_send(struct rr_net_peer *peer, const struct rr_net_packet *p, void *cookie,
                struct rr_error *err)
{
    size_t bytes = rr_wire_data_bytes(p);
    bool bulk = p->len > RR_WIRE_INLINE, acked = false;
    struct outgoing *m = NULL;
    int r;

    if (!bytes)
        return rr_error_set(err, RR_E_LIMIT, NULL,
                            "a message with a name, metadata or a payload that is too long");
    for (uint32_t n = 0; n < p->n_targets; n++)
        acked = acked || p->targets[n].acked;
    if (!peer->up || !has_credit(peer, p, bulk) || ((bulk || acked) && !peer->n_free_outs) ||
        (!bulk && bytes_len(&peer->main->out) > RR_NET_MAX_OUT)) {
        peer->starved = true;
        return -EAGAIN;
    }
    if ((bulk || acked) && !(m = new_out(peer, p, cookie, bulk)))
        return rr_error_set(err, RR_E_SYSTEM, NULL, "no memory for a message");
    peer->sent.messages++;
    if (bulk)
        peer->sent.bulk_bytes += p->len;
    else
        peer->sent.inline_bytes += inline_cost(p);
    peer->net->stats.out_messages++;
    r = bulk ? send_bulk(peer, p, m, bytes) : send_inline(peer, p, m ? m->seq : 0, bytes);
    if (r == 0)
        return 0;
    if (m)
        free_out(peer, m);
    conn_fail(peer->main, LOG_MEMORY, "no memory for a message");
    return rr_error_set(err, RR_E_SYSTEM, NULL, "no memory for a message");
}

void rr_net_cancel(struct rr_net_peer *peer, const void *cookie)
{
    for (uint32_t n = 0; peer->up && n < peer->n_outs; n++) {
        struct outgoing *m = peer->outs[n];

        if (!m || m->cookie != cookie || m->cancelled)
            continue;
        m->cancelled = true;
        if (m->conn)
            conn_write(m->conn);
        else /* behind the message, on its way */
            conn_put_between(m->bulk ? m->via : peer->main, RR_WIRE_CANCEL, m->seq);
    }
}

void rr_net_ack(struct rr_net_peer *peer, uint64_t seq, uint32_t target)
{
    struct incoming *in = find_in(peer, seq);

    if (!in || target >= in->n_targets || !get_bit(in->open, target))
        return;
    clear_bit(in->open, target);
    in->n_open--;
    say_back(peer, in->seq, target, RR_WIRE_ACK);
    if (find_in(peer, seq) == in)
        settle_in(peer, in);
}

void rr_net_hold(struct rr_net_peer *peer, uint64_t seq)
{
    struct incoming *in = find_in(peer, seq);

    if (in)
        in->held = true;
}

void rr_net_release(struct rr_net_peer *peer, uint64_t seq)
{
    struct incoming *in = find_in(peer, seq);

    if (!in || !in->held)
        return;
    in->held = false;
    settle_in(peer, in);
}

int rr_net_control(struct rr_net_peer *peer, uint32_t word, const void *data, size_t len,
                   struct rr_error *err)
{
    const uint8_t number[4] = {(uint8_t)word, (uint8_t)(word >> 8), (uint8_t)(word >> 16),
                               (uint8_t)(word >> 24)};
    uint8_t header[RR_WIRE_HEADER];
    struct iovec v[3] = {{header, sizeof(header)},
                         {(void *)(uintptr_t)number, sizeof(number)},
                         {(void *)(uintptr_t)data, len}};
    uint64_t cost = len + RR_NET_CONTROL_COST;

    if (len > RR_WIRE_MAX_CONTROL)
        return rr_error_set(err, RR_E_LIMIT, NULL, "a control word with too much data");
    if (!peer->up || peer->sent.control_bytes + cost > peer->granted_us.control_bytes) {
        peer->starved = true;
        return -EAGAIN;
    }
    peer->sent.control_bytes += cost;
    rr_wire_put_header(header, (uint32_t)(sizeof(number) + len), RR_WIRE_CONTROL, 0, 0);
    conn_send(peer->main, v, len ? 3 : 2);
    return 0;
}

unsigned int rr_net_n_waiting(const struct rr_net *net)
{
    return net->n_waiting;
}

unsigned int rr_net_peer_n_waiting(const struct rr_net_peer *peer)
{
    return peer->n_waiting;
}
