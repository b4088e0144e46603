/* SPDX-License-Identifier: Apache-2.0 */
/* What guests ask for. Pointers are checked by abi/ already; ownership is checked here. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/internal.h"
#include "worker/nodes.h"
#include "worker/remote.h"

#define PAGE 4096u

static struct instance *instance_of(struct rr_guest *g)
{
    return (struct instance *)g;
}

static struct fn *fn_of(struct instance *i)
{
    return &i->w->fns[i->fn];
}

static int fail_system(struct instance *i, const struct rr_error *err)
{
    return rr_instance_fail(i->guest.inst, err->code, err->hint, "%s", err->text);
}

static int no_memory(struct instance *i)
{
    return rr_instance_fail(i->guest.inst, RR_E_SYSTEM, "free some memory", "out of memory");
}

static int unknown_port(struct instance *i, const char *call, const char *name)
{
    char names[256] = "", hint[320];
    size_t used = 0;

    for (size_t n = 0; n < fn_of(i)->n_ports && used < sizeof(names) - 70; n++)
        used += (size_t)snprintf(names + used, sizeof(names) - used, "%s'%s'", n ? ", " : "",
                                 fn_of(i)->ports[n].name);
    snprintf(hint, sizeof(hint), "add an edge from it to the workflow; it has %s",
             used ? names : "no output port");
    return rr_instance_fail(i->guest.inst, RR_E_INVALID, hint, "%s: the workflow has no port '%s'",
                            call, name);
}

/* A port that messages can be sent to; for calls there is message_call(). */
static int get_port(struct instance *i, const char *call, const char *name, bool for_call,
                    struct port **ret)
{
    struct port *port = rr_port_find(fn_of(i), name);

    if (!port && strncmp(name, "call:", 5) == 0)
        return rr_instance_fail(i->guest.inst, RR_E_INVALID, "list it under `calls`",
                                "%s: it may not call '%s'", call, name + 5);
    if (!port)
        return unknown_port(i, call, name);
    if (port->callee >= 0 && !for_call)
        return rr_instance_fail(i->guest.inst, RR_E_INVALID, "use message_call",
                                "%s: port '%s' is for calls", call, name);
    *ret = port;
    return 0;
}

static int too_long(struct instance *i, const char *call, const struct port *port, uint64_t len)
{
    return rr_instance_fail(i->guest.inst, RR_E_LIMIT, "raise `max` of its edge, up to 1GiB",
                            "%s: a message of %s, but port '%s' takes at most %s", call,
                            rr_bytes_text(len), port->name, rr_bytes_text(port->max_bytes));
}

static int not_owned(struct instance *i, const char *call, uint32_t addr)
{
    return rr_instance_fail(i->guest.inst, RR_E_GUEST,
                            "pass the start of a buffer or input that was neither sent nor dropped",
                            "%s: it owns no message at 0x%x", call, addr);
}

static int op_input(struct rr_guest *g, uint32_t index, struct rr_abi_message *ret)
{
    struct instance *i = instance_of(g);
    uint32_t n = 0;

    for (size_t k = 0; k < i->n_held; k++) {
        const struct held *h = &i->held[k];

        if (!h->input || n++ != index)
            continue;
        *ret = (struct rr_abi_message){h->addr, h->m->len, h->port};
        break;
    }
    return 0;
}

static int op_alloc(struct rr_guest *g, const char *name, uint64_t len, uint32_t *ret_addr)
{
    struct instance *i = instance_of(g);
    struct rr_error err;
    struct message *m;
    struct port *port;
    struct held *h;
    int r = get_port(i, "message_alloc", name, true, &port);

    if (r)
        return r;
    if (len > port->max_bytes)
        return too_long(i, "message_alloc", port, len);
    for (size_t n = 0; n < i->n_held; n++)
        if (!i->held[n].input && !i->held[n].kept && i->held[n].port == port->name)
            return rr_instance_fail(g->inst, RR_E_GUEST, "send or drop that one first",
                                    "message_alloc: port '%s' has a buffer already, at 0x%x", name,
                                    i->held[n].addr);
    m = rr_message_new();
    if (!m)
        return no_memory(i);
    m->slot_bytes = port->slot_bytes;
    m->window = rr_window_find(i, port->window, m->slot_bytes);
    if (!m->window && len <= RR_SLOT_SMALL) { /* forwarded messages may lie in both halves */
        m->slot_bytes = RR_SLOT_SMALL;
        m->window = rr_window_find(i, port->window, m->slot_bytes);
    }
    if (!m->window) {
        rr_message_free(m);
        return rr_instance_fail(g->inst, RR_E_LIMIT,
                                "drop or send what it holds, or lower `max` of the edges to 64MiB",
                                "message_alloc: no window is free for port '%s'", name);
    }
    m->fixed = true;
    /* Small ones need no region: the window is the guest's own memory. */
    if (len > RR_SMALL_MAX) {
        rr_instance_map(g->inst);
        r = rr_region_get(i->w->arena, rr_port_backing(i->w, port), m->slot_bytes, len, 0,
                          &m->region, &err);
        if (r == 0)
            r = rr_region_move(m->region, rr_instance_memory(g->inst) + m->window, len, &err);
    } else {
        rr_instance_touch(g->inst, (uint32_t)m->window, len);
    }
    h = r ? NULL : rr_held_add(i, m, (uint32_t)m->window, rr_align_up(len ? len : 1, PAGE));
    if (!h) {
        rr_message_free(m);
        return r ? fail_system(i, &err) : no_memory(i);
    }
    h->port = port->name;
    *ret_addr = (uint32_t)m->window;
    return 0;
}

/* Bytes of ours, for up to RR_SMALL_MAX bytes at the message's window. */
static int to_small(struct instance *i, struct message *m, uint8_t *at, uint64_t len)
{
    if (!m->small || m->small->refs > 1 || m->small->cap < len) {
        struct small *s = rr_small_new(len);

        if (!s)
            return -ENOMEM;
        rr_small_unref(m->small);
        m->small = s;
    }
    memcpy(m->small->data, at, len);
    m->copied_bytes = len;
    if (m->region) {
        rr_region_put(m->region);
        m->region = NULL;
        m->offset = 0;
    } else {
        memset(at, 0, len); /* the sender has lost it when the call returns */
    }
    (void)i;
    return 0;
}

/* Several receivers share a memfd; a message that came another way is copied into one. */
static int to_memfd(struct instance *i, struct message *m, uint64_t len, struct rr_error *err)
{
    struct rr_region *region;
    int r;

    if (rr_region_backing(m->region) == RR_MEMFD && !rr_region_shared(m->region))
        return 0;
    r = rr_region_get(i->w->arena, RR_MEMFD, rr_region_slot_bytes(m->region), m->offset + len, 0,
                      &region, err);
    if (r)
        return r;
    memcpy(rr_region_data(region) + m->offset, rr_region_data(m->region) + m->offset, len);
    m->copied_bytes = len;
    rr_region_put(m->region);
    m->region = region;
    return 0;
}

/* Take a held message out of the guest's memory. On success its payload is parked; @cover: to be
 * given to rr_cover() before the guest runs again. */
static int detach(struct instance *i, struct held *h, uint64_t len, bool several,
                  struct rr_cover *cover)
{
    struct message *m = h->m;
    uint8_t *at = rr_instance_memory(i->guest.inst) + h->addr;
    struct rr_error err;
    int r = 0;

    *cover = (struct rr_cover){0};
    m->copied_bytes = 0;
    m->path = RR_PATH_MOVE;
    if (!m->region || (several && len <= RR_SMALL_MAX)) {
        if (to_small(i, m, at, len) < 0)
            return no_memory(i);
    } else {
        r = rr_region_leave(m->region, m->offset + len, cover, &err);
        if (r == 0 && several)
            r = to_memfd(i, m, len, &err);
        if (r)
            return fail_system(i, &err);
        rr_region_set_bytes(m->region, rr_region_backing(m->region) == RR_VIEW ? 0 : len, NULL);
    }
    m->len = len;
    m->fixed = true; /* also what came from outside: it may have been given pointers here */
    rr_held_remove(i, h);
    return 0;
}

static int reply_edge(const struct port *port, const struct rr_workflow *wf, int caller)
{
    for (size_t n = 0; n < port->n_edges; n++)
        if (wf->edges[port->edges[n]].to == caller)
            return port->edges[n];
    return -1;
}

static int set_once(struct instance *i, struct message **place, struct message *m, const char *what)
{
    if (*place) {
        rr_message_free(m);
        return rr_instance_fail(i->guest.inst, RR_E_INVALID, "send it once per run",
                                "it sends a second %s", what);
    }
    *place = m;
    return 0;
}

static bool over_network(const struct rr_worker *w, int edge)
{
    return w->remote && rr_nodes_reach(w->remote, w->wf->edges[edge].to);
}

/* Hand a parked message to all who receive from @port. @m: moved. */
static int send_on(struct instance *i, struct port *port, struct message *m)
{
    struct rr_worker *w = i->w;
    size_t left = rr_port_receivers(port);
    struct rr_error err;
    int r = 0;

    if (w->remote && w->remote->nodes) {
        r = rr_remote_send_to_nodes(w, m, port->edges, port->n_edges, &err);
        if (r)
            fail_system(i, &err);
    }
    for (size_t n = 0; n < left && r == 0; n++) {
        struct message *one;

        if (n < port->n_edges && over_network(w, port->edges[n]))
            continue;
        one = n + 1 < left ? rr_message_share(m) : rr_take(m);

        if (!one) {
            r = no_memory(i);
        } else if (n < port->n_edges) {
            r = rr_enqueue(w, one, port->edges[n], &err);
            if (r)
                fail_system(i, &err);
        } else if (rr_hosted(w, RR_NODE_INPUT)) {
            r = set_once(i, &w->result, one, "result");
        } else {
            r = rr_remote_send(w, one, (int)w->wf->n_edges, 0, &err);
            if (r)
                fail_system(i, &err);
        }
    }
    rr_message_free(m);
    return r;
}

static int stage(struct instance *i, struct port *port, struct message *m)
{
    if (i->n_sent > RR_MAX_QUEUED) {
        rr_message_free(m);
        return rr_instance_fail(i->guest.inst, RR_E_LIMIT, "send fewer messages per run",
                                "%d messages are on their way already", RR_MAX_QUEUED);
    }
    m->staged_for = port;
    m->next = NULL;
    *(i->staged ? i->staged_last : &i->staged) = m;
    i->staged_last = &m->next;
    return 0;
}

int rr_staged_send(struct instance *i, struct rr_error *err)
{
    while (i->staged) {
        struct message *m = i->staged;

        i->staged = m->next;
        m->next = NULL;
        if (send_on(i, m->staged_for, m))
            return rr_instance_fault(i->guest.inst, err);
    }
    return 0;
}

void rr_staged_drop(struct instance *i)
{
    while (i->staged) {
        struct message *m = i->staged;

        i->staged = m->next;
        rr_message_free(m);
    }
}

/* Its sender has let go of it. @m: moved. */
static int dispatch(struct instance *i, struct port *port, struct message *m)
{
    i->n_sent++;
    m->deadline_ns = i->run_deadline_ns;
    rr_message_trace_set(m, &i->trace);
    m->id = rr_id_mix(rr_id_mix(i->in_id, i->n_sent), (uint64_t)i->fn);
    if (m->len > port->seen_bytes)
        port->seen_bytes = m->len;
    if (port->reply) {
        m->edge = reply_edge(port, i->w->wf, i->caller);
        return set_once(i, &i->reply, m, "reply");
    }
    return i->stages ? stage(i, port, m) : send_on(i, port, m);
}

/* The guest has lost the message when this returns, or does not run again. @r: of what was done. */
static int finish_cover(struct instance *i, const struct rr_cover *cover, int r)
{
    struct rr_error err;

    if (rr_cover(cover, &err) == 0)
        return r;
    return r ? r : fail_system(i, &err);
}

static int op_send(struct rr_guest *g, const char *name, uint32_t addr, uint64_t len)
{
    struct rr_cover cover;
    struct instance *i = instance_of(g);
    uint64_t sent_ns = rr_now_ns();
    struct held *h = rr_held_find(i, addr);
    struct message *m;
    struct port *port;
    int r = get_port(i, "message_send", name, false, &port);

    if (r)
        return r;
    if (!h)
        return not_owned(i, "message_send", addr);
    if (len > port->max_bytes)
        return too_long(i, "message_send", port, len);
    if (len > h->cap)
        return rr_instance_fail(g->inst, RR_E_LIMIT, "allocate as much as is sent",
                                "message_send: %s from a buffer of %s", rr_bytes_text(len),
                                rr_bytes_text(h->cap));
    m = h->m;
    r = detach(i, h, len, rr_port_receivers(port) > 1 || port->again, &cover);
    if (r)
        return r;
    m->sent_ns = sent_ns;
    m->send_cost_ns = rr_now_ns() - sent_ns;
    r = dispatch(i, port, m);
    return finish_cover(i, &cover, r);
}

static int op_drop(struct rr_guest *g, uint32_t addr)
{
    struct instance *i = instance_of(g);
    struct held *h = rr_held_find(i, addr);
    struct message *m;

    if (!h)
        return not_owned(i, "message_drop", addr);
    m = h->m;
    if (!m->region)
        memset(rr_instance_memory(g->inst) + h->addr, 0, rr_min(h->cap, RR_SMALL_MAX));
    rr_held_remove(i, h);
    rr_message_free(m);
    return 0;
}

static int op_keep(struct rr_guest *g, uint32_t addr)
{
    struct instance *i = instance_of(g);
    struct held *h = rr_held_find(i, addr);

    if (!h)
        return not_owned(i, "message_keep", addr);
    h->kept = true;
    return 0;
}

/* The reply becomes an input of the caller's. */
static int take_reply(struct instance *i, struct message *reply, struct rr_abi_message *ret)
{
    const char *port = i->w->wf->edges[reply->edge].to_port;
    uint64_t begin_ns = rr_now_ns();
    struct rr_error err;
    struct rr_hop hop;
    int r = rr_deliver(i, reply, port, &err);

    if (r) {
        rr_message_free(reply);
        return fail_system(i, &err);
    }
    *ret = (struct rr_abi_message){(uint32_t)(reply->window + reply->offset), reply->len, port};
    hop = (struct rr_hop){reply->edge,
                          reply->path,
                          rr_message_channel(i->w, reply),
                          reply->len,
                          reply->copied_bytes,
                          reply->sent_ns,
                          rr_now_ns(),
                          0,
                          1};
    hop.handoff_ns = reply->send_cost_ns + hop.received_ns - begin_ns;
    rr_status_hop(i->w->status, hop.edge, hop.channel, hop.payload_bytes, hop.copied_bytes);
    if (i->w->observer.hop)
        i->w->observer.hop(i->w->observer.user, &hop);
    return 0;
}

static int op_call(struct rr_guest *g, const char *fn, uint32_t addr, uint64_t len,
                   struct rr_abi_message *ret, int32_t *ret_status)
{
    struct instance *i = instance_of(g);
    uint64_t sent_ns = rr_now_ns();
    struct held *h = rr_held_find(i, addr);
    struct message *m, *reply = NULL;
    char name[RR_ABI_MAX_PORT + 8];
    struct rr_error err;
    struct rr_cover cover;
    struct port *port;
    int r, status = 0;

    rr_error_clear(&err);
    memcpy(name, "call:", sizeof("call:"));
    memcpy(name + strlen("call:"), fn, strlen(fn) + 1); /* printf takes 100 ns for it */
    r = get_port(i, "message_call", name, true, &port);
    if (r)
        return r;
    if (!h)
        return not_owned(i, "message_call", addr);
    if (len > port->max_bytes || len > h->cap)
        return too_long(i, "message_call", port, len);
    m = h->m;
    r = detach(i, h, len, false, &cover);
    if (r == 0)
        r = finish_cover(i, &cover, 0);
    if (r)
        return r;
    m->sent_ns = sent_ns;
    m->send_cost_ns = rr_now_ns() - sent_ns;
    m->edge = port->edges[0];
    m->deadline_ns = i->deadline_ns;
    rr_message_trace_set(m, &i->trace);
    if (rr_hosted(i->w, port->callee)) {
        r = rr_function_run(i->w, port->callee, &m, i->fn, i->deadline_ns, &status, &reply, &err);
    } else {
        r = rr_remote_send(i->w, m, m->edge, 0, &err);
        if (r == 0)
            r = rr_remote_reply(i->w, i->deadline_ns, &reply, &status, &err);
        if (r == 0 && status)
            rr_message_free(rr_take(reply));
    }
    if (r)
        return fail_system(i, &err);
    *ret_status = status;
    return status ? 0 : take_reply(i, reply, ret);
}

static int op_meta_get(struct rr_guest *g, uint32_t addr, const char *key, size_t key_len,
                       const uint8_t **ret, size_t *ret_len)
{
    struct held *h = rr_held_find(instance_of(g), addr);

    if (!h)
        return not_owned(instance_of(g), "meta_get", addr);
    *ret = rr_message_meta_get(h->m, key, key_len, ret_len);
    return 0;
}

static int op_meta_set(struct rr_guest *g, uint32_t addr, const char *key, size_t key_len,
                       const uint8_t *value, size_t value_len)
{
    struct held *h = rr_held_find(instance_of(g), addr);
    int r;

    if (!h)
        return not_owned(instance_of(g), "meta_set", addr);
    r = rr_message_meta_set(h->m, key, key_len, value, value_len);
    if (r == -E2BIG)
        return rr_instance_fail(g->inst, RR_E_LIMIT, "put large values into the payload",
                                "meta_set: metadata of more than 64 KiB");
    return r ? no_memory(instance_of(g)) : 0;
}

static void op_log(struct rr_guest *g, int level, const char *text, size_t len)
{
    struct instance *i = instance_of(g);

    if (i->w->observer.log)
        i->w->observer.log(i->w->observer.user, i->fn, level, text, len);
}

/* --- buffer tier ----------------------------------------------------------------------------- */

/* The region of the port's last message, if this one has its shape; else one from the pool. */
static int take_spare(struct instance *i, struct port *port, struct message *m, uint64_t offset,
                      uint64_t len, struct rr_error *err)
{
    struct rr_region *spare = rr_take(port->spare);

    m->spare_of = port;
    if (spare)
        rr_region_idle(spare, false);
    if (spare && port->spare_offset == offset && port->spare_len == len) {
        m->region = spare;
        return rr_region_set_bytes(spare, len, err);
    }
    if (spare)
        rr_region_reset(spare);
    rr_region_put(spare);
    return rr_region_get(i->w->arena, RR_ANON, m->slot_bytes, offset + len, 0, &m->region, err);
}

/* Fill a parked region from the guest's memory: whole pages move, the ends are copied. */
static int gather_pages(struct instance *i, struct port *port, struct message *m, uint8_t *data,
                        uint64_t len, struct rr_error *err)
{
    uint64_t offset = (uint64_t)(uintptr_t)data & (RR_HUGE - 1);
    uint64_t head = rr_align_up(offset, PAGE) - offset, body = (len - head) & ~(uint64_t)(PAGE - 1);
    uint8_t *to;
    int r = take_spare(i, port, m, offset, len, err);

    if (r)
        return r;
    to = rr_region_data(m->region) + offset;
    memcpy(to, data, head);
    memcpy(to + head + body, data + head + body, len - head - body);
    m->copied_bytes = len - body + rr_region_swap_pages(i->w->arena, to + head, data + head, body);
    m->offset = offset;
    m->patched = true;
    m->path = RR_PATH_SWAP;
    return 0;
}

static int copy_out(struct instance *i, struct message *m, const uint8_t *data, uint64_t len,
                    bool several, struct rr_error *err)
{
    int r = 0;

    m->copied_bytes = len;
    m->path = RR_PATH_COPY;
    if (len <= RR_SMALL_MAX) {
        m->small = rr_small_new(len);
        if (!m->small)
            return rr_error_no_memory(err);
    } else {
        r = rr_region_get(i->w->arena, several ? RR_MEMFD : RR_ANON, m->slot_bytes, len, 0,
                          &m->region, err);
    }
    if (r == 0)
        memcpy(rr_message_data(m), data, len);
    return r;
}

static int op_emit(struct rr_guest *g, uint8_t *data, uint64_t len)
{
    struct instance *i = instance_of(g);
    struct message *m;
    struct rr_error err;
    struct port *port;
    uint64_t sent_ns = rr_now_ns();
    bool several;
    int r = get_port(i, "a payload", "out", false, &port);

    if (r)
        return r;
    if (len > port->max_bytes)
        return too_long(i, "a payload", port, len);
    m = rr_message_new();
    if (!m)
        return no_memory(i);
    m->len = len;
    m->window = port->window;
    m->slot_bytes = port->slot_bytes;
    several = rr_port_receivers(port) > 1 || port->crosses || port->again;
    if (!several && len > RR_SMALL_MAX && len + RR_HUGE <= port->slot_bytes)
        r = gather_pages(i, port, m, data, len, &err);
    else
        r = copy_out(i, m, data, len, several, &err);
    if (r) {
        rr_message_free(m);
        return fail_system(i, &err);
    }
    m->sent_ns = sent_ns;
    m->send_cost_ns = rr_now_ns() - sent_ns;
    return dispatch(i, port, m);
}

/* --- stdout and stderr ----------------------------------------------------------------------- */

static void put_line(struct instance *i, int stream)
{
    if (i->line_len[stream] && i->w->observer.log)
        i->w->observer.log(i->w->observer.user, i->fn, stream == 0 ? 2 : 1, i->lines[stream],
                           i->line_len[stream]);
    i->line_len[stream] = 0;
}

void rr_instance_flush_lines(struct instance *i)
{
    put_line(i, 0);
    put_line(i, 1);
}

static void log_bytes(struct instance *i, int stream, const uint8_t *data, size_t len)
{
    for (size_t n = 0; n < len; n++) {
        if (data[n] == '\n' || i->line_len[stream] == LINE_BYTES)
            put_line(i, stream);
        if (data[n] != '\n')
            i->lines[stream][i->line_len[stream]++] = (char)data[n];
    }
}

/* Out of the small buffer, once it no longer fits, and on. */
static int grow_out(struct instance *i, const struct port *port, uint64_t wanted,
                    struct rr_error *err)
{
    struct message *m = i->out;
    uint64_t room = rr_min(wanted > 2 * i->out_room ? wanted : 2 * i->out_room, port->max_bytes);
    int r = m->region ? rr_region_set_bytes(m->region, room, err)
                      : rr_region_get(i->w->arena, rr_port_backing(i->w, port), port->slot_bytes,
                                      room, 0, &m->region, err);

    if (r)
        return r;
    if (m->small)
        memcpy(rr_region_data(m->region), m->small->data, m->len);
    rr_small_unref(rr_take(m->small));
    i->out_room = room;
    return 0;
}

static int start_out(struct instance *i, const struct port *port, struct rr_error *err)
{
    i->out = rr_message_new();
    if (i->out)
        i->out->small = rr_small_new(RR_SMALL_MAX);
    if (!i->out || !i->out->small)
        return rr_error_no_memory(err);
    i->out->window = port->window;
    i->out->slot_bytes = port->slot_bytes;
    i->out_room = rr_min(RR_SMALL_MAX, port->max_bytes);
    return 0;
}

static int append_out(struct instance *i, const uint8_t *data, size_t len)
{
    struct port *port = rr_port_find(fn_of(i), "out");
    struct rr_error err;
    int r = 0;

    if (!port)
        return unknown_port(i, "stdout", "out");
    if (!i->out)
        r = start_out(i, port, &err);
    if (r)
        return fail_system(i, &err);
    if (len > port->max_bytes - i->out->len)
        return too_long(i, "stdout", port, i->out->len + len);
    if (i->out->len + len > i->out_room)
        r = grow_out(i, port, i->out->len + len, &err);
    if (r)
        return fail_system(i, &err);
    memcpy(rr_message_data(i->out) + i->out->len, data, len);
    i->out->len += len;
    return 0;
}

bool rr_instance_output(void *user, int stream, const uint8_t *data, size_t len)
{
    struct instance *i = user;

    if (i->guest.tier == RR_TIER_STDIO && stream == 1)
        return append_out(i, data, len) == 0;
    log_bytes(i, stream == 1 ? 0 : 1, data, len);
    return true;
}

/* A command's output is its message, also when it is empty. */
int rr_out_flush(struct instance *i, struct rr_error *err)
{
    struct port *port = rr_port_find(fn_of(i), "out");
    uint64_t now = rr_now_ns();
    struct message *m;

    if (!port)
        return 0;
    if (!i->out && start_out(i, port, err))
        return RR_E_SYSTEM;
    m = rr_take(i->out);
    m->copied_bytes = m->len;
    m->path = RR_PATH_STREAM;
    m->sent_ns = now;
    if (m->region)
        rr_region_set_bytes(m->region, m->len, NULL);
    if (dispatch(i, port, m))
        return rr_instance_fault(i->guest.inst, err);
    return 0;
}

const struct rr_abi_ops rr_worker_ops = {
    .input = op_input,
    .alloc = op_alloc,
    .send = op_send,
    .drop = op_drop,
    .keep = op_keep,
    .call = op_call,
    .meta_get = op_meta_get,
    .meta_set = op_meta_set,
    .log = op_log,
    .emit = op_emit,
};
