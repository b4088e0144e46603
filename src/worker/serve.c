/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/serve.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/internal.h"
#include "worker/nodes.h"
#include "worker/remote.h"

uint64_t rr_worker_input_max(const struct rr_worker *w)
{
    return w->input.max_bytes;
}

unsigned int rr_worker_idle(const struct rr_worker *w, int function)
{
    return w->fns[function].n_idle;
}

bool rr_workflow_isolates(const struct rr_workflow *wf)
{
    for (size_t n = 0; n < wf->n_functions; n++)
        if (wf->functions[n].isolated)
            return true;
    return false;
}

int rr_worker_start(struct rr_worker *w, struct rr_error *err)
{
    int r = rr_workflow_isolates(w->wf) ? rr_processes_start(w, err) : 0;

    rr_status_open(w->status); /* now that no more is forked here */
    return r == 0 && rr_workflow_has_nodes(w->wf) ? rr_nodes_start(w, err) : r;
}

int rr_inbound_new(const struct rr_worker *w, uint64_t len, struct message **ret,
                   struct rr_error *err)
{
    struct message *m = rr_message_new();
    int r = 0;

    if (!m)
        return rr_error_no_memory(err);
    m->window = w->input.window;
    m->slot_bytes = w->input.slot_bytes;
    if (len > RR_SMALL_MAX)
        r = rr_region_get(w->arena, rr_port_backing(w, &w->input), m->slot_bytes, len, 0,
                          &m->region, err);
    else if (!(m->small = rr_small_new(len ? len : 1)))
        r = rr_error_no_memory(err);
    if (r) {
        rr_message_free(m);
        return r;
    }
    *ret = m;
    return 0;
}

uint8_t *rr_inbound_room(struct message *m, uint64_t *ret_cap)
{
    *ret_cap = m->small ? m->small->cap : m->slot_bytes;
    return rr_message_data(m);
}

int64_t rr_inbound_grow(const struct rr_worker *w, struct message *m, uint64_t used, uint64_t len,
                        struct rr_error *err)
{
    struct message *larger;
    uint64_t cap;
    uint8_t *from = rr_inbound_room(m, &cap);

    if (len <= cap)
        return m->region && rr_region_set_bytes(m->region, len, err) ? -1 : 0;
    if (rr_inbound_new(w, len, &larger, err))
        return -1;
    memcpy(rr_message_data(larger), from, used);
    rr_small_unref(m->small);
    m->small = rr_take(larger->small);
    m->region = rr_take(larger->region);
    rr_message_free(larger);
    return (int64_t)used;
}

void rr_inbound_end(struct message *m, uint64_t len, uint8_t *meta, size_t meta_len)
{
    m->len = len;
    if (m->region)
        rr_region_set_bytes(m->region, len, NULL);
    free(m->meta);
    m->meta = meta;
    m->meta_len = meta_len;
}

int64_t rr_outbound_own(struct rr_worker *w, struct message **m, struct rr_error *err)
{
    int64_t copied = 0;

    if ((*m)->region) {
        if (rr_message_regather(w->arena, *m, RR_ANON, err)) {
            rr_message_free(rr_take(*m));
            return -1;
        }
        copied = (int64_t)(*m)->len;
    }
    rr_debt_unref(rr_take((*m)->debt)); /* it is safe here */
    return copied;
}

void rr_outbound_detach(struct message *m)
{
    if (m)
        m->spare_of = NULL;
}

const uint8_t *rr_outbound_data(const struct message *m, uint64_t *ret_len)
{
    *ret_len = m->len;
    return rr_message_data(m);
}

const uint8_t *rr_outbound_meta(const struct message *m, size_t *ret_len)
{
    *ret_len = m->meta_len;
    return m->meta;
}
