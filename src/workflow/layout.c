/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Window addresses, the way a compiler assigns registers. What is placed is an
 * output port (the workflow's input is one, too): all its edges share a window.
 * Two ports conflict when their messages can lie in one function at once, and
 * then their windows may not overlap.
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "workflow/internal.h"

#define SLOTS ((RR_WINDOW_END - RR_WINDOW_BASE) / RR_SLOT_SMALL) /* small ones: 32 */
#define MAX_TRIES 16 /* then all undeclared ports become small: a file may not cost seconds */
#define LARGE (RR_SLOT_LARGE / RR_SLOT_SMALL)                    /* small ones in a large: 16 */

_Static_assert(SLOTS == 32, "a set of slots is a 32-bit mask");

struct place {
    int from;
    const char *port;
    int edge;           /* the first of its edges; -1: the result alone */
    uint64_t max_bytes; /* largest that is declared; 0: none */
    bool large;
    uint32_t slots;     /* assigned; 0: not yet */
};

struct layout {
    struct reader *r;
    struct place *places;
    size_t n_places;
    int *of_edge;     /* place of each edge */
    int result;       /* place of the result */
    size_t *at;       /* places at each function, one list after the other */
    size_t *first;    /* n_functions + 1 indices into at */
};

static bool must_be_large(const struct place *p)
{
    return p->max_bytes > RR_SLOT_SMALL;
}

/* --- places ---------------------------------------------------------------------------------- */

static int compare_edges(const void *a, const void *b)
{
    const struct rr_edge *ea = *(const struct rr_edge *const *)a;
    const struct rr_edge *eb = *(const struct rr_edge *const *)b;
    int order = (ea->from > eb->from) - (ea->from < eb->from);

    if (!order)
        order = strcmp(ea->from_port, eb->from_port);
    return order ? order : (ea > eb) - (ea < eb);
}

static int find_places(struct layout *l)
{
    struct rr_workflow *wf = l->r->wf;
    const struct rr_edge **sorted = calloc(wf->n_edges + 1, sizeof(struct rr_edge *));

    l->places = calloc(wf->n_edges + 1, sizeof(*l->places));
    l->of_edge = calloc(wf->n_edges + 1, sizeof(*l->of_edge));
    if (!sorted || !l->places || !l->of_edge) {
        free(sorted);
        return rr_reader_no_memory(l->r);
    }
    for (size_t i = 0; i < wf->n_edges; i++)
        sorted[i] = &wf->edges[i];
    qsort(sorted, wf->n_edges, sizeof(struct rr_edge *), compare_edges);
    l->result = -1;
    for (size_t i = 0; i < wf->n_edges; i++) {
        const struct rr_edge *e = sorted[i];
        struct place *p = l->n_places ? &l->places[l->n_places - 1] : NULL;

        if (!p || p->from != e->from || strcmp(p->port, e->from_port) != 0) {
            p = &l->places[l->n_places++];
            *p = (struct place){.from = e->from, .port = e->from_port, .edge = (int)(e - wf->edges)};
        }
        if (e->max_declared && e->max_bytes > p->max_bytes)
            p->max_bytes = e->max_bytes;
        l->of_edge[e - wf->edges] = (int)(p - l->places);
        if (e->from == wf->result && strcmp(e->from_port, wf->result_port) == 0)
            l->result = (int)(p - l->places);
    }
    free(sorted);
    if (l->result < 0) {
        l->result = (int)l->n_places;
        l->places[l->n_places++] =
            (struct place){.from = wf->result, .port = wf->result_port, .edge = -1};
    }
    return 0;
}

/* Which places meet at which function: its ports', and those whose edges lead to it. */
static int find_meetings(struct layout *l)
{
    struct rr_workflow *wf = l->r->wf;
    size_t n = l->n_places + wf->n_edges;

    l->first = calloc(wf->n_functions + 2, sizeof(*l->first));
    l->at = calloc(n + 1, sizeof(*l->at));
    if (!l->first || !l->at)
        return rr_reader_no_memory(l->r);
    for (size_t i = 0; i < l->n_places; i++) {
        if (l->places[i].from >= 0)
            l->first[l->places[i].from + 2]++;
    }
    for (size_t i = 0; i < wf->n_edges; i++)
        l->first[wf->edges[i].to + 2]++;
    for (size_t f = 1; f < wf->n_functions + 2; f++)
        l->first[f] += l->first[f - 1];
    /* first[f + 1] is where f's list goes on, and ends up as where it ends */
    for (size_t i = 0; i < l->n_places; i++) {
        if (l->places[i].from >= 0)
            l->at[l->first[l->places[i].from + 1]++] = i;
    }
    for (size_t i = 0; i < wf->n_edges; i++)
        l->at[l->first[wf->edges[i].to + 1]++] = (size_t)l->of_edge[i];
    return 0;
}

/* --- assignment ------------------------------------------------------------------------------ */

/* Slots that places which meet @place at some function have already. */
static uint32_t taken_by_others(const struct layout *l, size_t place)
{
    const struct rr_workflow *wf = l->r->wf;
    uint32_t taken = 0;

    for (size_t i = 0; i < wf->n_functions; i++) {
        bool here = false;

        for (size_t k = l->first[i]; k < l->first[i + 1]; k++)
            here = here || l->at[k] == place;
        for (size_t k = l->first[i]; here && k < l->first[i + 1]; k++)
            if (l->at[k] != place)
                taken |= l->places[l->at[k]].slots;
    }
    return taken;
}

/* Small ones from the end, so that the large ones at the start stay whole. */
static bool assign_one(struct layout *l, size_t place)
{
    struct place *p = &l->places[place];
    uint32_t taken = taken_by_others(l, place);

    for (unsigned int i = 0; p->large && i < SLOTS; i += LARGE) {
        uint32_t slots = 0xffffu << i;

        if (!(taken & slots)) {
            p->slots = slots;
            return true;
        }
    }
    for (unsigned int i = SLOTS; !p->large && i > 0; i--) {
        if (!(taken & 1u << (i - 1))) {
            p->slots = 1u << (i - 1);
            return true;
        }
    }
    return false;
}

/* Large ones first: they are hard to place. Returns the place that finds no room, or -1. */
static int assign_all(struct layout *l)
{
    for (size_t i = 0; i < l->n_places; i++)
        l->places[i].slots = 0;
    for (int pass = 0; pass < 3; pass++)
        for (size_t i = 0; i < l->n_places; i++) {
            const struct place *p = &l->places[i];

            if (pass == (must_be_large(p) ? 0 : p->large ? 1 : 2) && !assign_one(l, i))
                return (int)i;
        }
    return -1;
}

static void place_name(const struct layout *l, const struct place *p, char out[160])
{
    if (p->from < 0)
        snprintf(out, 160, "input");
    else
        snprintf(out, 160, "%s.%s", l->r->wf->functions[p->from].name, p->port);
}

static struct rr_pos place_pos(const struct layout *l, const struct place *p)
{
    return p->edge >= 0 ? l->r->wf->edges[p->edge].pos : l->r->wf->result_pos;
}

/* Name a function at which too much meets, and another large message there. */
static int report_full(struct layout *l, int place)
{
    const struct rr_workflow *wf = l->r->wf;
    const struct place *p = &l->places[place], *other = NULL;
    char name[160], other_name[160] = "";
    size_t function = 0;

    for (size_t f = 0; f < wf->n_functions && !other; f++) {
        bool here = false;

        for (size_t k = l->first[f]; k < l->first[f + 1]; k++)
            here = here || l->at[k] == (size_t)place;
        for (size_t k = l->first[f]; here && k < l->first[f + 1]; k++)
            if (l->at[k] != (size_t)place && l->places[l->at[k]].slots &&
                (!other || l->places[l->at[k]].large)) {
                other = &l->places[l->at[k]];
                function = f;
            }
    }
    place_name(l, p, name);
    if (other)
        place_name(l, other, other_name);
    if (must_be_large(p))
        return rr_reader_fail(
            l->r, RR_E_INVALID, place_pos(l, p),
            "lower `max` to 64MiB where that is enough, or split the function: two messages above "
            "64 MiB fit one function's address space, and no small one beside them",
            "the messages of '%s' (%s) and '%s'%s%s%s cannot share the address space", name,
            rr_bytes_text(p->max_bytes), other_name, other ? " meet at '" : "",
            other ? wf->functions[function].name : "", other ? "' and" : "");
    return rr_reader_fail(l->r, RR_E_INVALID, place_pos(l, p),
                          "split the function: 32 messages of up to 64 MiB fit one function's "
                          "address space",
                          "too many messages meet: '%s' finds no room at '%s'", name,
                          wf->functions[function].name);
}

/*
 * A port that declares no maximum gets a large slot where that leaves room for
 * the others. Where it does not, the undeclared ones that meet the port without
 * room become small, and with them it is tried again.
 */
static int assign(struct layout *l)
{
    int full, tries = 0;

    for (size_t i = 0; i < l->n_places; i++)
        l->places[i].large = must_be_large(&l->places[i]) || l->places[i].max_bytes == 0;
    while ((full = assign_all(l)) >= 0) {
        struct rr_workflow *wf = l->r->wf;
        bool shrunk = false;

        for (size_t f = 0; f < wf->n_functions; f++) {
            bool here = false;

            for (size_t k = l->first[f]; k < l->first[f + 1]; k++)
                here = here || l->at[k] == (size_t)full || tries > MAX_TRIES;
            for (size_t k = l->first[f]; here && k < l->first[f + 1]; k++) {
                struct place *p = &l->places[l->at[k]];

                shrunk = shrunk || (p->large && !must_be_large(p));
                p->large = must_be_large(p);
            }
        }
        tries++;
        if (!shrunk)
            return report_full(l, full);
    }
    return 0;
}

static uint64_t window_of(const struct place *p)
{
    return RR_WINDOW_BASE + (unsigned int)__builtin_ctz(p->slots) * RR_SLOT_SMALL;
}

static void store(struct layout *l)
{
    struct rr_workflow *wf = l->r->wf;
    const struct place *result = &l->places[l->result];

    for (size_t i = 0; i < wf->n_edges; i++) {
        const struct place *p = &l->places[l->of_edge[i]];
        struct rr_edge *e = &wf->edges[i];

        e->slot_bytes = p->large ? RR_SLOT_LARGE : RR_SLOT_SMALL;
        e->max_bytes = p->max_bytes ? p->max_bytes : e->slot_bytes;
        e->window = window_of(p);
    }
    wf->result_slot_bytes = result->large ? RR_SLOT_LARGE : RR_SLOT_SMALL;
    wf->result_window = window_of(result);
}

int rr_layout_assign(struct reader *r)
{
    struct layout l = {.r = r};
    int rc = find_places(&l);

    if (!rc)
        rc = find_meetings(&l);
    if (!rc)
        rc = assign(&l);
    if (!rc)
        store(&l);
    free(l.places);
    free(l.of_edge);
    free(l.at);
    free(l.first);
    return rc;
}
