/* SPDX-License-Identifier: Apache-2.0 */
/* Modules of a workflow: load, find the tier, check that the two fit. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/internal.h"
#include "worker/remote.h"
#include "worker/serve.h"

struct port *rr_port_find(struct fn *f, const char *name)
{
    for (size_t n = 0; n < f->n_ports; n++)
        if (strcmp(f->ports[n].name, name) == 0)
            return &f->ports[n];
    return NULL;
}

size_t rr_port_receivers(const struct port *port)
{
    return port->reply ? 1 : port->n_edges + port->result;
}

enum rr_backing rr_port_backing(const struct rr_worker *w, const struct port *port)
{
    return w->lends || rr_port_receivers(port) > 1 ? RR_MEMFD : RR_ANON;
}

static int port_add_edge(struct port *port, const struct rr_workflow *wf, int edge)
{
    const struct rr_edge *e = &wf->edges[edge];
    int *edges = reallocarray(port->edges, port->n_edges + 1, sizeof(*edges));

    if (!edges)
        return -1;
    port->edges = edges;
    port->edges[port->n_edges++] = edge;
    port->name = e->from_port;
    port->callee = e->is_call ? e->to : -1;
    port->reply = e->is_reply;
    port->crosses = port->crosses || rr_edge_crosses(wf, e);
    port->again = port->again || e->again.given;
    port->window = e->window;
    port->slot_bytes = e->slot_bytes;
    port->max_bytes = rr_min(e->max_bytes, e->slot_bytes);
    return 0;
}

static struct port *port_new(struct fn *f, const char *name)
{
    struct port *ports = reallocarray(f->ports, f->n_ports + 1, sizeof(*ports));

    if (!ports)
        return NULL;
    f->ports = ports;
    ports[f->n_ports] = (struct port){.name = name, .callee = -1};
    return &f->ports[f->n_ports++];
}

static int add_inlet(struct fn *f, int edge)
{
    struct inlet *inlets = reallocarray(f->inlets, f->n_inlets + 1, sizeof(*inlets));

    if (!inlets)
        return -1;
    f->inlets = inlets;
    inlets[f->n_inlets++] = (struct inlet){.edge = edge};
    return 0;
}

/* A callee has one input, whoever calls: the edges of its callers share the first inlet. */
static int connect(struct rr_worker *w, int edge)
{
    const struct rr_edge *e = &w->wf->edges[edge];
    struct port *port;

    if (!e->is_reply && (!e->is_call || w->fns[e->to].n_inlets == 0) &&
        add_inlet(&w->fns[e->to], edge) < 0)
        return -1;
    if (e->from == RR_NODE_INPUT)
        return port_add_edge(&w->input, w->wf, edge);
    port = rr_port_find(&w->fns[e->from], e->from_port);
    if (!port)
        port = port_new(&w->fns[e->from], e->from_port);
    return port ? port_add_edge(port, w->wf, edge) : -1;
}

static int connect_all(struct rr_worker *w, struct rr_error *err)
{
    const struct rr_workflow *wf = w->wf;
    struct fn *last = &w->fns[wf->result];
    struct port *port;

    for (size_t i = 0; i < wf->n_edges; i++)
        if (connect(w, (int)i) < 0)
            return rr_error_no_memory(err);
    port = rr_port_find(last, wf->result_port);
    if (!port) {
        port = port_new(last, wf->result_port);
        if (!port)
            return rr_error_no_memory(err);
        port->window = wf->result_window;
        port->slot_bytes = wf->result_slot_bytes;
        port->max_bytes = wf->result_slot_bytes;
    }
    port->result = true;
    port->crosses = port->crosses || wf->functions[wf->result].isolated ||
                    rr_node_of(wf, wf->result) != RR_NODE_HERE;
    return 0;
}

static int misfit(const struct rr_worker *w, const struct fn *f, struct rr_pos pos,
                  const char *what, struct rr_error *err)
{
    rr_error_set(err, RR_E_INVALID, "use the window tier: build it with roadrunner.h",
                 "function '%s' is of the %s tier, which has %s", f->spec->name,
                 rr_tier_name(f->tier), what);
    rr_error_at(err, w->wf->path, pos.line, pos.column);
    return RR_E_INVALID;
}

/* The lower tiers have one input and one output. */
static int check_fit(const struct rr_worker *w, const struct fn *f, struct rr_error *err)
{
    if (f->tier == RR_TIER_WINDOW)
        return 0;
    if (f->n_inlets > 1)
        return misfit(w, f, w->wf->edges[f->inlets[1].edge].pos, "one input", err);
    for (size_t n = 0; n < f->n_ports; n++) {
        const struct port *port = &f->ports[n];
        struct rr_pos pos = port->n_edges ? w->wf->edges[port->edges[0]].pos : w->wf->result_pos;

        if (port->callee >= 0)
            return misfit(w, f, pos, "no calls", err);
        if (strcmp(port->name, "out") != 0)
            return misfit(w, f, pos, "one output port, 'out'", err);
    }
    return 0;
}

/* -1: none. */
static int image_of(const struct rr_worker *w, const char *module)
{
    for (size_t n = 0; n < w->n_images; n++)
        if (strcmp(w->images[n].module, module) == 0)
            return w->images[n].fd;
    return -1;
}

static int load_module(struct rr_worker *w, size_t n, struct rr_error *err)
{
    struct fn *f = &w->fns[n];
    struct rr_error why = {0};
    int image, r;

    if (w->share) {
        f->module = w->share->fns[n].module;
        f->tier = w->share->fns[n].tier;
        memcpy(f->why, w->share->fns[n].why, sizeof(f->why));
        return 0;
    }
    for (size_t k = 0; k < n; k++)
        if (w->fns[k].module && strcmp(w->fns[k].spec->module, f->spec->module) == 0) {
            f->module = w->fns[k].module;
            f->tier = w->fns[k].tier;
            memcpy(f->why, w->fns[k].why, sizeof(f->why));
            return 0;
        }
    image = image_of(w, f->spec->module);
    if (image >= 0)
        r = rr_module_load_image(w->engine, f->spec->module, image, &f->module, &why);
    else
        r = rr_module_load(w->engine, f->spec->module, &f->module, &why);
    if (r == 0)
        r = rr_abi_detect(f->module, &f->tier, f->why, sizeof(f->why), &why);
    if (r == 0)
        return 0;
    rr_error_set(err, (enum rr_code)r, why.hint, "function '%s': module %s: %s", f->spec->name,
                 f->spec->module, why.text);
    rr_error_at(err, w->wf->path, f->spec->module_pos.line, f->spec->module_pos.column);
    return r;
}

static int prepare(struct fn *f, struct rr_error *err)
{
    size_t n = 0;

    while (f->spec->args && f->spec->args[n])
        n++;
    f->args = calloc(n + 2, sizeof(*f->args));
    f->folders = calloc(f->spec->n_folders + 1, sizeof(*f->folders));
    if (!f->args || !f->folders)
        return rr_error_no_memory(err);
    f->args[0] = f->spec->name;
    for (size_t k = 0; k < n; k++)
        f->args[k + 1] = f->spec->args[k];
    for (size_t k = 0; k < f->spec->n_folders; k++)
        f->folders[k] = (struct rr_preopen){f->spec->folders[k].host, f->spec->folders[k].guest,
                                            f->spec->folders[k].writable};
    return 0;
}

static int load_all(struct rr_worker *w, struct rr_error *err)
{
    int r = connect_all(w, err);

    for (size_t n = 0; n < w->wf->n_functions && r == 0; n++) {
        if (w->fns[n].spec->node != w->wf->here)
            continue;
        if (w->observer.progress)
            w->observer.progress(w->observer.user, "loading", n, w->wf->n_functions);
        r = load_module(w, n, err);
        if (r == 0)
            r = prepare(&w->fns[n], err);
        if (r == 0)
            r = check_fit(w, &w->fns[n], err);
    }
    return r;
}

/* A share for this process, and one for each that a function may have. */
static int make_budget(struct rr_worker *w, uint64_t bytes)
{
    struct rr_budget *b = malloc(sizeof(*b));

    if (!b ||
        rr_budget_init(b, bytes, 1 + (rr_workflow_isolates(w->wf) ? w->wf->n_functions : 0))) {
        free(b);
        return -ENOMEM;
    }
    w->budget = b;
    return 0;
}

/* What all workers of a workflow share. */
static int make_common(struct rr_worker *w, const struct rr_worker_options *options,
                       struct rr_error *err)
{
    const struct rr_worker *other = w->share ? w->share : w->beside;
    struct rr_engine_options engine = {.no_cache = options->no_cache,
                                       .precompiled = options->precompiled};
    struct rr_arena_options arena = options->arena;
    int r;

    if (other)
        w->budget = other->budget;
    else if (options->memory_bytes && make_budget(w, options->memory_bytes))
        return rr_error_no_memory(err);
    if (w->share) {
        w->arena = w->share->arena;
        w->engine = w->share->engine;
        return 0;
    }
    arena.budget = engine.budget = w->budget;
    if (w->wf->pool_bytes)
        arena.ceiling_bytes = w->wf->pool_bytes;
    if (w->wf->scrub_always)
        arena.scrub = RR_SCRUB_ALWAYS;
    if (w->beside)
        w->arena = w->beside->arena;
    r = w->beside ? 0 : rr_arena_new(&arena, &w->arena, err);
    if (r == 0)
        r = rr_engine_new(&engine, &w->engine, err);
    return r ? r : rr_abi_define(w->engine, err);
}

/* Where some messages are lent, any may be: what came over one edge may go on over another. */
static bool lends(const struct rr_workflow *wf)
{
    bool any = wf->chain || wf->here != RR_NODE_HERE || rr_workflow_isolates(wf) ||
               rr_workflow_has_nodes(wf);

    for (size_t n = 0; n < wf->n_edges && !any; n++)
        any = wf->edges[n].again.given;
    return any;
}

int rr_worker_new(const struct rr_workflow *wf, const struct rr_worker_options *options,
                  struct rr_worker **ret, struct rr_error *err)
{
    struct rr_worker *w = calloc(1, sizeof(*w));
    int r;

    if (!w)
        return rr_error_no_memory(err);
    w->wf = wf;
    w->share = options->share;
    w->beside = options->beside;
    w->observer = options->observer;
    w->nonce = rr_id_mix(rr_id_mix(rr_now_ns(), (uint64_t)getpid()), (uint64_t)(uintptr_t)w);
    w->spin_ns = options->spin_ns == 0            ? RR_SPIN_ADAPTIVE_NS
                 : options->spin_ns == UINT64_MAX ? 0
                                                  : options->spin_ns;
    w->tls = options->tls;
    w->plain = options->plain;
    w->post = options->post;
    w->lends = lends(wf);
    w->post_user = options->post_user;
    w->network_only = options->network_only;
    w->log_here = options->share ? options->share->log_here : options->log_here;
    w->images = options->images;
    w->n_images = options->n_images;
    w->input = (struct port){.name = "input", .callee = -1};
    w->ready_first = w->ready_last = w->first_lacking = -1;
    w->fns = calloc(wf->n_functions, sizeof(*w->fns));
    r = w->fns ? 0 : rr_error_no_memory(err);
    for (size_t n = 0; r == 0 && n < wf->n_functions; n++)
        w->fns[n].spec = &wf->functions[n];
    if (r == 0)
        r = make_common(w, options, err);
    if (r == 0)
        r = load_all(w, err);
    if (r == 0)
        w->status = w->share        ? w->share->status
                    : w->beside     ? w->beside->status
                    : options->kind ? rr_status_new(wf, options->kind)
                                    : NULL;
    if (w->share || w->beside)
        rr_status_share(w->status);
    if (r) {
        rr_worker_free(w);
        return r;
    }
    *ret = w;
    return 0;
}

static void free_fn(struct rr_worker *w, size_t n)
{
    struct fn *f = &w->fns[n];
    bool shared = w->share != NULL;

    for (size_t k = 0; k < n; k++)
        shared = shared || w->fns[k].module == f->module;
    if (!shared)
        rr_module_free(f->module);
    for (size_t k = 0; k < f->n_ports; k++) {
        if (f->ports[k].spare) {
            rr_region_idle(f->ports[k].spare, false);
            rr_region_reset(f->ports[k].spare);
            rr_region_put(f->ports[k].spare);
        }
        free(f->ports[k].edges);
    }
    free(f->ports);
    free(f->inlets);
    free(f->args);
    free(f->folders);
}

void rr_worker_free(struct rr_worker *w)
{
    if (!w)
        return;
    rr_worker_release(w);
    w->observer = (struct rr_observer){0}; /* workers may have more to say, but it may be gone */
    if (w->remote)
        rr_processes_stop(w->remote);
    rr_worker_settle(w);
    for (size_t n = 0; w->fns && n < w->wf->n_functions; n++)
        while (w->fns[n].idle) {
            struct instance *i = w->fns[n].idle;

            w->fns[n].idle = i->next;
            rr_instance_destroy(i);
        }
    rr_remote_free(w->remote);
    for (size_t n = w->fns ? w->wf->n_functions : 0; n > 0; n--)
        free_fn(w, n - 1);
    free(w->fns);
    free(w->input.edges);
    if (!w->share && !w->beside)
        rr_status_free(w->status);
    if (!w->share)
        rr_engine_free(w->engine);
    if (!w->share && !w->beside) {
        rr_arena_free(w->arena);
        if (w->budget)
            rr_budget_deinit(w->budget);
        free(w->budget);
    }
    free(w);
}

uint64_t rr_worker_memory(const struct rr_worker *w)
{
    return w->budget ? rr_budget_used(w->budget) : 0;
}

struct rr_arena *rr_worker_arena(struct rr_worker *w)
{
    return w->arena;
}

void rr_function_log(const char *name, int level, const char *text, size_t len)
{
    static const char *const levels[] = {"error: ", "warning: ", ""};

    if (level < 0 || level > 2)
        return;
    flockfile(stderr);
    fprintf(stderr, "%s: %s", name, levels[level]);
    for (size_t n = 0; n < len; n++) /* lines of others cannot be made up */
        putc_unlocked((unsigned char)text[n] < 0x20 && text[n] != '\t' ? ' ' : text[n], stderr);
    putc_unlocked('\n', stderr);
    funlockfile(stderr);
}

enum rr_tier rr_worker_tier(const struct rr_worker *w, int function)
{
    return w->fns[function].tier;
}

const char *rr_worker_why(const struct rr_worker *w, int function)
{
    return w->fns[function].why;
}

enum rr_cached rr_worker_cached(const struct rr_worker *w, int function)
{
    return w->fns[function].module ? rr_module_cached(w->fns[function].module) : RR_CACHE_OFF;
}

enum rr_path rr_worker_path(const struct rr_worker *w, int edge)
{
    const struct rr_edge *e = &w->wf->edges[edge];
    struct port *port = e->from == RR_NODE_INPUT ? (struct port *)(uintptr_t)&w->input
                                                 : rr_port_find(&w->fns[e->from], e->from_port);
    enum rr_tier from = e->from == RR_NODE_INPUT ? RR_TIER_WINDOW : w->fns[e->from].tier;
    enum rr_tier to = w->fns[e->to].tier;
    bool several = rr_port_receivers(port) > 1 || port->again;

    if (from == RR_TIER_STDIO || to == RR_TIER_STDIO)
        return RR_PATH_STREAM;
    if (to == RR_TIER_BUFFER)
        return several ? RR_PATH_COPY : RR_PATH_SWAP;
    if (from == RR_TIER_BUFFER)
        return RR_PATH_COPY;
    return several ? RR_PATH_VIEW : RR_PATH_MOVE;
}

const char *rr_path_name(enum rr_path path)
{
    static const char *const names[] = {"move", "view", "swap", "copy", "stdio"};

    return names[path];
}

void rr_worker_cancel(struct rr_worker *w)
{
    rr_engine_cancel(w->engine);
}

bool rr_worker_cancelled(const struct rr_worker *w)
{
    return rr_engine_cancelled(w->engine) || (w->stop && atomic_load(w->stop));
}

void rr_worker_stop_by(struct rr_worker *w, const atomic_bool *stop)
{
    w->stop = stop;
}

void rr_worker_nudge(struct rr_worker *w)
{
    rr_engine_nudge(w->engine);
}

static void warm_port(struct rr_worker *w, const struct port *port)
{
    if (port->seen_bytes > RR_SMALL_MAX)
        rr_arena_warm(w->arena, rr_port_backing(w, port), port->slot_bytes, port->seen_bytes, 1);
}

void rr_worker_warm(struct rr_worker *w)
{
    warm_port(w, &w->input);
    for (size_t n = 0; n < w->wf->n_functions; n++)
        for (size_t k = 0; k < w->fns[n].n_ports; k++)
            warm_port(w, &w->fns[n].ports[k]);
}
