/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Window addresses for output ports, the way a compiler assigns registers.
 *
 * The windows are two halves of 1 GiB. A large port takes a half, a small one
 * a sixteenth of a half. Two ports meet where a function may hold a message of
 * each at once; their windows must not overlap then. If one of two that meet
 * is large, they need different halves, so the halves are a two-colouring,
 * found exactly. Within its half a small port takes the first slot that is free.
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "workflow/internal.h"

#define HALF_SLOTS ((unsigned int)(RR_SLOT_LARGE / RR_SLOT_SMALL))
#define N_SLOTS ((unsigned int)((RR_WINDOW_END - RR_WINDOW_BASE) / RR_SLOT_SMALL))
#define HALF_MASK ((1u << HALF_SLOTS) - 1)

_Static_assert(RR_WINDOW_END - RR_WINDOW_BASE == 2 * RR_SLOT_LARGE && N_SLOTS == 32,
               "two halves, and a slot per bit of port.slots");

struct port {
    int from;
    const char *name;
    bool is_call, declared, large;
    uint64_t max_bytes; /* the largest that is declared */
    size_t first, n;    /* its edges: layout.edges[first] and so on */
    bool seen;          /* has a half */
    unsigned int half;  /* 0 or 1 */
    uint32_t slots;     /* a bit for each small slot it covers; 0 until it is placed */
};

struct layout {
    struct reader *r;
    struct rr_workflow *wf;
    int *rank;          /* of each function: its place in wf->order */
    size_t *edges;      /* indices of edges, those of one port side by side */
    struct port *ports; /* senders first */
    size_t n_ports, result;
    size_t *met; /* the ports at function f: met[begin[f]] up to met[begin[f + 1]] */
    size_t *begin;
    size_t *queue; /* ports whose halves depend on each other */
    struct {
        size_t p, q;  /* ports that meet at @function and came to the same half, or */
        int function; /* -1: port @p found no slot */
    } clash;
};

static int rank_of(const struct layout *l, int function)
{
    return function == RR_NODE_INPUT ? -1 : l->rank[function];
}

static int compare_ports(const void *a, const void *b, void *layout)
{
    const struct layout *l = layout;
    size_t ia = *(const size_t *)a, ib = *(const size_t *)b;
    const struct rr_edge *ea = &l->wf->edges[ia], *eb = &l->wf->edges[ib];
    int order = rank_of(l, ea->from) - rank_of(l, eb->from);

    if (!order)
        order = strcmp(ea->from_port, eb->from_port);
    return order ? order : (ia > ib) - (ia < ib);
}

/* The @k-th of the n + 1 ends of a port: its receivers, then its sender. Negative: the input. */
static int end_of(const struct layout *l, const struct port *p, size_t k)
{
    return k < p->n ? l->wf->edges[l->edges[p->first + k]].to : p->from;
}

static void find_ports(struct layout *l)
{
    struct rr_workflow *wf = l->wf;

    for (size_t i = 0; i < wf->n_functions; i++)
        l->rank[wf->order[i]] = (int)i;
    for (size_t i = 0; i < wf->n_edges; i++)
        l->edges[i] = i;
    qsort_r(l->edges, wf->n_edges, sizeof(*l->edges), compare_ports, l);
    l->result = wf->n_edges; /* none yet */
    for (size_t i = 0; i < wf->n_edges; i++) {
        const struct rr_edge *e = &wf->edges[l->edges[i]];
        struct port *p = l->n_ports ? &l->ports[l->n_ports - 1] : NULL;

        if (!p || p->from != e->from || strcmp(p->name, e->from_port) != 0) {
            p = &l->ports[l->n_ports++];
            *p = (struct port){
                .from = e->from, .name = e->from_port, .is_call = e->is_call, .first = i};
            if (p->from == wf->result && strcmp(p->name, wf->result_port) == 0)
                l->result = l->n_ports - 1;
        }
        p->n++;
        if (e->max_declared) {
            p->declared = true;
            if (e->max_bytes > p->max_bytes)
                p->max_bytes = e->max_bytes;
        }
    }
    if (l->result == wf->n_edges) {
        l->result = l->n_ports++;
        l->ports[l->result] = (struct port){.from = wf->result, .name = wf->result_port};
    }
    for (size_t i = 0; i < l->n_ports; i++)
        l->ports[i].large = !l->ports[i].declared || l->ports[i].max_bytes > RR_SLOT_SMALL;
}

static void find_meetings(struct layout *l)
{
    size_t n = l->wf->n_functions;

    for (size_t i = 0; i < l->n_ports; i++) {
        for (size_t k = 0; k <= l->ports[i].n; k++) {
            int f = end_of(l, &l->ports[i], k);

            if (f >= 0)
                l->begin[f + 1]++;
        }
    }
    for (size_t f = 0; f < n; f++)
        l->begin[f + 1] += l->begin[f];
    for (size_t i = l->n_ports; i-- > 0;) {
        for (size_t k = 0; k <= l->ports[i].n; k++) {
            int f = end_of(l, &l->ports[i], k);

            if (f >= 0)
                l->met[--l->begin[f + 1]] = i;
        }
    }
    /* Counting down has left each begin at [f + 1]; the end of the last is the sum. */
    for (size_t f = 0; f < n; f++)
        l->begin[f] = l->begin[f + 1];
    l->begin[n] = 0;
    for (size_t i = 0; i < l->n_ports; i++)
        l->begin[n] += l->ports[i].n + (l->ports[i].from >= 0);
}

static int layout_init(struct layout *l, struct reader *r)
{
    size_t n_functions = r->wf->n_functions, n_ports = r->wf->n_edges + 1;

    *l = (struct layout){.r = r, .wf = r->wf};
    l->rank = calloc(n_functions, sizeof(*l->rank));
    l->edges = calloc(n_ports, sizeof(*l->edges));
    l->ports = calloc(n_ports, sizeof(*l->ports));
    l->met = calloc(2 * n_ports, sizeof(*l->met));
    l->begin = calloc(n_functions + 1, sizeof(*l->begin));
    l->queue = calloc(n_ports, sizeof(*l->queue));
    if (!l->rank || !l->edges || !l->ports || !l->met || !l->begin || !l->queue)
        return rr_reader_no_memory(r);
    find_ports(l);
    find_meetings(l);
    return 0;
}

static void layout_deinit(struct layout *l)
{
    free(l->rank);
    free(l->edges);
    free(l->ports);
    free(l->met);
    free(l->begin);
    free(l->queue);
}

/* An instance answers one request at a time, so those of several callers may overlap. */
static bool is_request(const struct port *p, int function)
{
    return p->is_call && p->from != function;
}

static bool meet(const struct port *p, const struct port *q, int function)
{
    return p != q && !(is_request(p, function) && is_request(q, function));
}

/* Small slots that all messages at a function need together. */
static size_t demand(const struct layout *l, int function)
{
    size_t sum = 0, request = 0;

    for (size_t i = l->begin[function]; i < l->begin[function + 1]; i++) {
        const struct port *p = &l->ports[l->met[i]];
        size_t slots = p->large ? HALF_SLOTS : 1;

        if (!is_request(p, function))
            sum += slots;
        else if (slots > request)
            request = slots;
    }
    return sum + request;
}

static bool demote(struct port *p)
{
    bool can = p->large && !p->declared;

    if (can)
        p->large = false;
    return can;
}

static bool demote_at(struct layout *l, int function)
{
    bool any = false;

    for (size_t i = l->begin[function]; i < l->begin[function + 1]; i++)
        any = demote(&l->ports[l->met[i]]) || any;
    return any;
}

static bool demote_all(struct layout *l)
{
    bool any = false;

    for (size_t i = 0; i < l->n_ports; i++)
        any = demote(&l->ports[i]) || any;
    return any;
}

/* Give halves to @seed and whatever depends on it. Returns how many are queued; 0: clash. */
static size_t colour(struct layout *l, size_t seed)
{
    size_t n = 0;

    l->ports[seed].seen = true;
    l->ports[seed].half = 0;
    l->queue[n++] = seed;
    for (size_t done = 0; done < n; done++) {
        const struct port *p = &l->ports[l->queue[done]];

        for (size_t k = 0; k <= p->n; k++) {
            int f = end_of(l, p, k);

            for (size_t i = f < 0 ? 0 : l->begin[f]; f >= 0 && i < l->begin[f + 1]; i++) {
                struct port *q = &l->ports[l->met[i]];

                if (!meet(p, q, f) || !(p->large || q->large))
                    continue;
                if (!q->seen) {
                    q->seen = true;
                    q->half = !p->half;
                    l->queue[n++] = l->met[i];
                } else if (q->half == p->half) {
                    l->clash.p = l->queue[done];
                    l->clash.q = l->met[i];
                    l->clash.function = f;
                    return 0;
                }
            }
        }
    }
    return n;
}

static uint32_t taken_around(const struct layout *l, const struct port *p)
{
    uint32_t taken = 0;

    for (size_t k = 0; k <= p->n; k++) {
        int f = end_of(l, p, k);

        for (size_t i = f < 0 ? 0 : l->begin[f]; f >= 0 && i < l->begin[f + 1]; i++) {
            const struct port *q = &l->ports[l->met[i]];

            if (meet(p, q, f))
                taken |= q->slots;
        }
    }
    return taken;
}

/* Slots for the first @n of the queue, their halves swapped if @flip. */
static bool place(struct layout *l, size_t n, unsigned int flip)
{
    for (size_t i = 0; i < n; i++)
        l->ports[l->queue[i]].slots = 0;
    for (size_t i = 0; i < n; i++) {
        struct port *p = &l->ports[l->queue[i]];
        uint32_t half = HALF_MASK << ((p->half ^ flip) * HALF_SLOTS);
        uint32_t left = half & ~taken_around(l, p);

        p->slots = p->large ? half : left & -left;
        if (!left) {
            l->clash.p = l->queue[i];
            l->clash.function = -1;
            return false;
        }
    }
    return true;
}

/* Ports that meet a large one have no choice, so they are placed before the free ones. */
static bool place_all(struct layout *l)
{
    for (size_t i = 0; i < l->n_ports; i++) {
        l->ports[i].seen = false;
        l->ports[i].slots = 0;
    }
    for (int free_ones = 0; free_ones < 2; free_ones++) {
        for (size_t i = 0; i < l->n_ports; i++) {
            size_t n;

            if (l->ports[i].seen || (!free_ones && !l->ports[i].large))
                continue;
            n = colour(l, i);
            if (!n || (!place(l, n, 0) && !place(l, n, 1)))
                return false;
        }
    }
    return true;
}

/* Where the file has @p at @function: the edge that leads there, or the first that leaves it. */
static struct rr_pos pos_at(const struct layout *l, const struct port *p, int function)
{
    for (size_t k = 0; k < p->n; k++) {
        const struct rr_edge *e = &l->wf->edges[l->edges[p->first + k]];

        if (e->to == function || p->from == function)
            return e->pos;
    }
    return p->n ? l->wf->edges[l->edges[p->first]].pos : l->wf->result_pos;
}

static struct rr_pos later(struct rr_pos a, struct rr_pos b)
{
    if (a.line != b.line)
        return a.line > b.line ? a : b;
    return a.column > b.column ? a : b;
}

/* "decode.raw (line 12, max 512 MiB)" */
static const char *port_text(const struct layout *l, const struct port *p, int function,
                             char text[256])
{
    const char *from = p->from < 0 ? "input" : l->wf->functions[p->from].name;

    snprintf(text, 256, "'%s%s%s' (line %u, %s%s)", from, p->from < 0 ? "" : ".",
             p->from < 0 ? "" : p->name, pos_at(l, p, function).line, p->declared ? "max " : "",
             p->declared ? rr_bytes_text(p->max_bytes) : "no max");
    return text;
}

static const char large_hint[] =
    "lower `max` to 64MiB on edges that allow it: a function has 2 GiB for all the messages "
    "it may hold, and above 64MiB a message takes 1 GiB of that";

/* No way around it: the messages at @function need more than there is. */
static int fail_crowded(struct layout *l, int function)
{
    const struct port *large[2] = {NULL, NULL};
    const char *name = l->wf->functions[function].name;
    struct rr_pos last = {0, 0};
    char a[256], b[256];
    size_t n_large = 0, n = 0, requests = 0;

    for (size_t i = l->begin[function]; i < l->begin[function + 1]; i++) {
        const struct port *p = &l->ports[l->met[i]];

        last = later(last, pos_at(l, p, function));
        n++;
        requests += is_request(p, function);
        if (p->large && n_large++ < 2)
            large[n_large - 1] = p;
    }
    if (requests)
        n -= requests - 1;
    if (n_large >= 2)
        return rr_reader_fail(
            l->r, RR_E_INVALID, later(pos_at(l, large[0], function), pos_at(l, large[1], function)),
            large_hint,
            "two large edges cannot share the address space of '%s', which may hold %zu messages "
            "at once: %s and %s",
            name, n, port_text(l, large[0], function, a), port_text(l, large[1], function, b));
    if (n_large)
        return rr_reader_fail(l->r, RR_E_INVALID, last, large_hint,
                              "'%s' may hold %zu messages at once, but beside the large one of %s "
                              "its address space has room for %u",
                              name, n, port_text(l, large[0], function, a), HALF_SLOTS);
    return rr_reader_fail(l->r, RR_E_INVALID, last,
                          "join messages in stages, by functions in between",
                          "'%s' may hold %zu messages at once (inputs, output ports, calls and "
                          "replies), but its address space has room for %u",
                          name, n, N_SLOTS);
}

/* The messages at each function fit, but not all of those together. */
static int fail_clash(struct layout *l)
{
    const struct port *p = &l->ports[l->clash.p], *q = &l->ports[l->clash.q];
    int function = l->clash.function;
    char a[256], b[256];

    if (function < 0)
        return rr_reader_fail(l->r, RR_E_INVALID, pos_at(l, p, p->from), large_hint,
                              "the address space has no room left for the messages of %s, with "
                              "all that its sender and receivers may hold beside them",
                              port_text(l, p, p->from, a));
    return rr_reader_fail(
        l->r, RR_E_INVALID, later(pos_at(l, p, function), pos_at(l, q, function)), large_hint,
        "%s cannot share the address space of '%s': %s and %s, because of large edges that they "
        "meet elsewhere",
        p->large && q->large ? "two large edges" : "a large and a small edge",
        l->wf->functions[function].name, port_text(l, p, function, a),
        port_text(l, q, function, b));
}

static int assign(struct layout *l)
{
    for (int f = 0; f < (int)l->wf->n_functions; f++) {
        if (demand(l, f) > N_SLOTS)
            demote_at(l, f);
        if (demand(l, f) > N_SLOTS)
            return fail_crowded(l, f);
    }
    /* Each round makes at least one port small, or gives up. */
    while (!place_all(l)) {
        int f = l->clash.function;

        if (!(f >= 0 && demote_at(l, f)) && !demote_all(l))
            return fail_clash(l);
    }
    return 0;
}

static uint64_t window_of(const struct port *p)
{
    return RR_WINDOW_BASE + (unsigned int)__builtin_ctz(p->slots) * RR_SLOT_SMALL;
}

int rr_layout_assign(struct reader *r)
{
    struct layout l;
    int rc = layout_init(&l, r);

    if (!rc)
        rc = assign(&l);
    for (size_t i = 0; i < l.n_ports && !rc; i++) {
        const struct port *p = &l.ports[i];

        for (size_t k = 0; k < p->n; k++) {
            struct rr_edge *e = &r->wf->edges[l.edges[p->first + k]];

            e->window = window_of(p);
            e->slot_bytes = p->large ? RR_SLOT_LARGE : RR_SLOT_SMALL;
            e->max_declared = p->declared;
            e->max_bytes = p->declared ? p->max_bytes : e->slot_bytes;
        }
        if (i == l.result) {
            r->wf->result_window = window_of(p);
            r->wf->result_slot_bytes = p->large ? RR_SLOT_LARGE : RR_SLOT_SMALL;
        }
    }
    layout_deinit(&l);
    return rc;
}
