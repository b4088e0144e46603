/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a workflow file: an error that says where, or a layout without overlaps. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "workflow/workflow.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct window {
    uint64_t from, to;
    int source;
    const char *port;
};

static bool meets(const struct rr_workflow *wf, const struct rr_edge *e, int f)
{
    (void)wf;
    return e->to == f || e->from == f;
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
            bool overlap = x->window < y->window + y->slot_bytes &&
                           y->window < x->window + x->slot_bytes;
            bool requests = x->is_call && y->is_call && x->to == y->to;

            if (same && x->window != y->window)
                abort();
            for (int f = 0; !same && overlap && !requests && f < (int)wf->n_functions; f++)
                if (meets(wf, x, f) && meets(wf, y, f))
                    abort();
        }
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
        rr_workflow_free(wf);
    } else if (!err.text[0] || (int)err.code != r ||
               (err.code == RR_E_INVALID && (!err.hint[0] || !err.file[0]))) {
        abort();
    }
    return 0;
}
