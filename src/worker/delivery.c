/* SPDX-License-Identifier: Apache-2.0 */
/*
 * At-least-once delivery. A sender keeps a message until it is acked; the ack means that the
 * message is safe without the sender: it was handled, and what its handler sent on is acked, too,
 * or is not to be. So a message survives the death of any number of workers, as long as the parent
 * lives.
 *
 * What is owed to a sender is a debt. The message holds a reference to it, then its handler, then
 * every message that this sends over an at-least-once edge; the last one to go pays it.
 */
#include <stdlib.h>

#include "base/util.h"
#include "worker/remote.h"

struct debt {
    struct remote *rm;
    unsigned int refs;
    uint64_t id;      /* of the delivery; 0: of a handler with several inputs */
    struct ack first; /* its sender's */
    struct ack *more; /* of the same message, which came again */
    size_t n_more;
    struct debt **of; /* what a handler with several inputs owes */
    size_t n_of;
};

/* A message that may come twice. */
struct seen {
    uint64_t id;       /* 0: free */
    struct debt *debt; /* borrowed; NULL: it is safe */
};

bool rr_delivery_may_repeat(const struct rr_workflow *wf, size_t edge)
{
    int from = edge < wf->n_edges ? wf->edges[edge].from : wf->result;

    if (edge < wf->n_edges && wf->edges[edge].at_least_once)
        return true;
    for (size_t n = 0; n < wf->n_edges && from >= 0; n++)
        if (wf->edges[n].to == from && wf->edges[n].at_least_once)
            return true; /* its sender may die, and send it again when it has been started again */
    return false;
}

/* --- what has been seen ---------------------------------------------------------------------- */

static struct seen *place_of(struct seen *table, size_t room, uint64_t id)
{
    size_t at = id & (room - 1);

    while (table[at].id && table[at].id != id)
        at = (at + 1) & (room - 1);
    return &table[at];
}

/* Its entry, made if there is none; NULL without memory: a message rather comes twice than not. */
static struct seen *look_up(struct remote *rm, uint64_t id)
{
    struct seen *s;

    if (4 * (rm->n_seen + 1) > 3 * rm->room_seen) {
        size_t room = rm->room_seen ? 2 * rm->room_seen : 64;
        struct seen *grown = calloc(room, sizeof(*grown));

        if (!grown)
            return NULL;
        for (size_t n = 0; n < rm->room_seen; n++)
            if (rm->seen[n].id)
                *place_of(grown, room, rm->seen[n].id) = rm->seen[n];
        free(rm->seen);
        rm->seen = grown;
        rm->room_seen = room;
    }
    s = place_of(rm->seen, rm->room_seen, id);
    return s;
}

void rr_delivery_forget(struct remote *rm)
{
    free(rm->seen);
    rm->seen = NULL;
    rm->n_seen = rm->room_seen = 0;
}

/* --- debts ----------------------------------------------------------------------------------- */

struct debt *rr_debt_ref(struct debt *d)
{
    if (d)
        d->refs++;
    return d;
}

static void pay(struct debt *d)
{
    struct remote *rm = d->rm;
    struct seen *s = rm->seen ? place_of(rm->seen, rm->room_seen, d->id) : NULL;

    if (s && s->debt == d)
        s->debt = NULL;
    rr_remote_ack(rm, d->first);
    for (size_t n = 0; n < d->n_more; n++)
        rr_remote_ack(rm, d->more[n]);
    free(d->more);
    free(d);
}

void rr_debt_unref(struct debt *d)
{
    if (!d || --d->refs > 0)
        return;
    for (size_t n = 0; n < d->n_of; n++) /* a handler's inputs have none of their own */
        if (--d->of[n]->refs == 0)
            pay(d->of[n]);
    free(d->of);
    pay(d);
}

/* The same message from a sender that has been started again: it waits for the same. */
static void owe_more(struct debt *d, struct ack ack)
{
    struct ack *grown = reallocarray(d->more, d->n_more + 1, sizeof(*grown));

    if (!grown) {
        rr_remote_ack(d->rm, ack); /* too early, rather than never */
        return;
    }
    grown[d->n_more++] = ack;
    d->more = grown;
}

bool rr_delivery_begin(struct remote *rm, struct message *m, bool repeats, struct ack ack)
{
    uint64_t id = m->id ? m->id : 1;
    struct seen *s = repeats ? look_up(rm, id) : NULL;

    if (s && s->id) {
        if (s->debt && ack.link)
            owe_more(s->debt, ack);
        else
            rr_remote_ack(rm, ack);
        return false;
    }
    if (ack.link) {
        m->debt = calloc(1, sizeof(*m->debt));
        if (m->debt)
            *m->debt = (struct debt){.rm = rm, .refs = 1, .id = id, .first = ack};
        else
            rr_remote_ack(rm, ack);
    }
    if (s) {
        *s = (struct seen){id, m->debt};
        rm->n_seen++;
    }
    return true;
}

/* --- handlers -------------------------------------------------------------------------------- */

/* What the handler of several inputs owes: all that they owe. */
static struct debt *join(struct remote *rm, struct message **inputs, size_t n)
{
    struct debt *d = calloc(1, sizeof(*d));

    if (d)
        *d = (struct debt){.rm = rm, .refs = 1, .of = calloc(n, sizeof(struct debt *))};
    for (size_t k = 0; k < n; k++) {
        struct debt *one = rr_take(inputs[k]->debt);

        if (d && d->of && one)
            d->of[d->n_of++] = one;
        else
            rr_debt_unref(one);
    }
    return d;
}

struct debt *rr_delivery_enter(struct rr_worker *w, struct message **inputs, size_t n)
{
    struct remote *rm = w->remote;
    struct debt *before = rm ? rm->debt : NULL;
    bool any = false;

    for (size_t k = 0; k < n; k++)
        any = any || inputs[k]->debt;
    if (n == 1 && any)
        rm->debt = rr_take(inputs[0]->debt);
    else if (any)
        rm->debt = join(rm, inputs, n);
    else
        rr_debt_ref(before); /* of who calls, if this is a call */
    return before;
}

void rr_delivery_leave(struct rr_worker *w, struct debt *before)
{
    if (!w->remote)
        return;
    rr_debt_unref(w->remote->debt);
    w->remote->debt = before;
}
