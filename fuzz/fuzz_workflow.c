/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a workflow file: an error that says where, or a layout without overlaps. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "workflow/workflow.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static bool meets(const struct rr_edge *e, int f)
{
    return e->to == f || e->from == f;
}

static bool overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a < b + b_bytes && b < a + a_bytes;
}

/* The result shares the window of the edges that carry it, and no other at its function. */
static void check_result(const struct rr_workflow *wf)
{
    for (size_t i = 0; i < wf->n_edges; i++) {
        const struct rr_edge *e = &wf->edges[i];
        bool same = e->from == wf->result && strcmp(e->from_port, wf->result_port) == 0;

        if (same ? e->window != wf->result_window || e->slot_bytes != wf->result_slot_bytes
                 : meets(e, wf->result) &&
                       overlap(e->window, e->slot_bytes, wf->result_window, wf->result_slot_bytes))
            abort();
    }
}

/* Each function once, after those that send to it and those that call it. */
static void check_order(const struct rr_workflow *wf)
{
    size_t *rank = calloc(wf->n_functions, sizeof(*rank)); /* from 1 on */

    for (size_t i = 0; rank && i < wf->n_functions; i++) {
        if (rank[wf->order[i]])
            abort();
        rank[wf->order[i]] = i + 1;
    }
    for (size_t i = 0; rank && i < wf->n_edges; i++) {
        const struct rr_edge *e = &wf->edges[i];

        if (!e->is_reply && e->from >= 0 && rank[e->from] >= rank[e->to])
            abort();
    }
    free(rank);
}

/* Messages of different ports that can be at one function do not share addresses. */
static void check_layout(const struct rr_workflow *wf)
{
    for (size_t a = 0; a < wf->n_edges; a++) {
        const struct rr_edge *x = &wf->edges[a];

        if (x->window < RR_WINDOW_BASE || x->window + x->slot_bytes > RR_WINDOW_END ||
            x->window % x->slot_bytes || x->max_bytes > x->slot_bytes)
            abort();
        for (size_t b = 0; b < a; b++) {
            const struct rr_edge *y = &wf->edges[b];
            bool same = x->from == y->from && strcmp(x->from_port, y->from_port) == 0;
            bool clash = overlap(x->window, x->slot_bytes, y->window, y->slot_bytes);
            bool requests = x->is_call && y->is_call && x->to == y->to;

            if (same && x->window != y->window)
                abort();
            for (int f = 0; !same && clash && f < (int)wf->n_functions; f++)
                if (meets(x, f) && meets(y, f) && !(requests && f == x->to))
                    abort();
        }
    }
}

/* What is left to be known about processes: delivery only where there are two, all within limits.
 */
static void check_processes(struct rr_workflow *wf)
{
    if (wf->queue_messages < 1 || wf->queue_messages > RR_WORKFLOW_MAX_QUEUED ||
        wf->queue_bytes < 1u << 20 || wf->queue_bytes > 1ull << 40)
        abort();
    for (size_t i = 0; i < wf->n_edges; i++) {
        const struct rr_edge *e = &wf->edges[i];

        if (e->attempts < 1 || e->attempts > RR_WORKFLOW_MAX_ATTEMPTS ||
            (e->at_least_once ? !rr_edge_crosses(wf, e) || e->is_call || e->is_reply
                              : e->attempts != 1))
            abort();
    }
    rr_workflow_isolate_all(wf);
    for (size_t i = 0; i < wf->n_edges; i++) {
        if (!rr_edge_crosses(wf, &wf->edges[i]))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct rr_workflow *wf = NULL;
    struct rr_error err = {0};
    int r = rr_workflow_parse("fuzz.yaml", (const char *)data, len, &wf, &err);

    if (r == 0) {
        if (wf->n_edges < 300)
            check_layout(wf);
        check_result(wf);
        check_order(wf);
        check_processes(wf);
        rr_workflow_free(wf);
    } else if (!err.text[0] || (int)err.code != r ||
               (err.code == RR_E_INVALID &&
                (!err.hint[0] || !err.file[0] || !err.line || !err.column))) {
        abort();
    }
    return 0;
}
