/* SPDX-License-Identifier: Apache-2.0 */
/* Workflows: what is read from files, and one worker per thread for each. */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "gateway/internal.h"
#include "gateway/letter.h"
#include "worker/chain.h"

/* --- what workers tell ----------------------------------------------------------------------- */

/* One line, whole, whoever else writes. */
static void on_log(void *user, int function, int level, const char *text, size_t len)
{
    static const char *const names[] = {"error: ", "warning: ", "", "debug: "};
    const struct seat *seat = user;
    const struct rr_gateway_options *o = &seat->app->generation->gw->o;

    if (level > (o->quiet ? 0 : o->verbose ? 3 : 2))
        return;
    flockfile(stderr);
    fprintf(stderr, "%s %s: %s", seat->app->route->path, seat->app->wf->functions[function].name,
            names[level]);
    for (size_t n = 0; n < len; n++)
        putc_unlocked((unsigned char)text[n] < 0x20 && text[n] != '\t' ? ' ' : text[n], stderr);
    putc_unlocked('\n', stderr);
    funlockfile(stderr);
}

/* --- loading --------------------------------------------------------------------------------- */

/* Does it reach beyond this machine? */
static bool leaves(const struct rr_workflow *wf)
{
    for (size_t n = 0; n < wf->n_nodes; n++)
        if (strncmp(wf->nodes[n].address, "unix:", 5) != 0)
            return rr_workflow_has_nodes(wf);
    return false;
}

static int make_seats(struct gateway *gw, struct app *app, struct rr_error *err)
{
    struct rr_worker_options options = {
        .kind = "serve",
        .no_cache = gw->o.no_cache,
        .arena.watch_pressure = true,
        .memory_bytes = gw->o.workflow_memory_bytes,
        .tls = gw->o.node_tls,
        .plain = !gw->o.node_tls,
        .post = rr_letter_post,
        .post_user = &gw->letters,
        .observer = {.begin = rr_graph_begin,
                     .restart = rr_graph_restart,
                     .again = rr_graph_again,
                     .buried = rr_graph_buried,
                     .hop = rr_graph_hop,
                     .span = rr_graph_span,
                     .log = on_log},
    };
    int r = 0;

    app->seats = aligned_alloc(64, (gw->n_threads + 1) * sizeof(*app->seats));
    if (!app->seats)
        return rr_error_no_memory(err);
    memset(app->seats, 0, (gw->n_threads + 1) * sizeof(*app->seats));
    for (unsigned int n = 0; n <= gw->n_threads; n++) {
        app->seats[n].app = app;
        if (rr_graph_init(&app->seats[n]))
            return rr_error_no_memory(err);
    }
    app->isolated = rr_workflow_isolates(app->wf) || rr_workflow_has_nodes(app->wf);
    if (!gw->o.node_tls && !gw->o.node_plain && leaves(app->wf)) {
        rr_error_set(
            err, RR_E_USAGE,
            "give --node-cert, --node-key and --node-ca; or --node-plain, if whoever is on "
            "that network may read and change messages",
            "messages to the nodes of this workflow are not protected");
        rr_error_at(err, app->route->workflow, 0, 0);
        return RR_E_USAGE;
    }
    if (rr_workflow_isolates(app->wf))
        app->n_lanes = 1; /* a further one would have all the processes once more */
    else if (app->isolated)
        app->n_lanes = (unsigned int)rr_min(RR_GATEWAY_LANES, gw->n_threads);
    for (unsigned int n = 0; n < (app->isolated ? app->n_lanes : gw->n_threads) && r == 0; n++) {
        options.observer.user = &app->seats[app->n_lanes == 1 ? gw->n_threads : n];
        r = rr_worker_new(app->wf, &options, &app->seats[n].worker, err);
        options.share = app->isolated ? NULL : app->seats[0].worker;
        options.beside = app->isolated ? app->seats[0].worker : NULL;
    }
    /* Other nodes may come later. */
    return r || rr_workflow_has_nodes(app->wf) ? r : rr_worker_start(app->seats[0].worker, err);
}

static int load(struct gateway *gw, struct generation *g, size_t n, struct rr_error *err)
{
    struct app *app = &g->apps[n];
    int r;

    app->generation = g;
    app->route = &gw->o.routes[n];
    atomic_store(&app->usual_ns, UINT64_MAX);
    r = rr_chain_open(app->route->workflow, gw->o.node_tls, gw->o.node_plain, &app->wf, err);
    if (r)
        return r;
    if (gw->o.isolate)
        rr_workflow_isolate_all(app->wf);
    r = make_seats(gw, app, err);
    if (r == 0)
        app->max_body_bytes =
            rr_min(gw->o.max_body_bytes, rr_worker_input_max(app->seats[0].worker));
    return r;
}

static void destroy(struct generation *g)
{
    for (size_t n = 0; n < g->n_apps; n++) {
        struct app *app = &g->apps[n];

        for (unsigned int k = g->gw->n_threads; app->seats && k > 0; k--)
            rr_worker_free(app->seats[k - 1].worker); /* the first has what the others use */
        for (unsigned int k = 0; app->seats && k <= g->gw->n_threads; k++)
            rr_graph_deinit(&app->seats[k]);
        free(app->seats);
        rr_workflow_free(app->wf);
    }
    free(g->apps);
    free(g);
}

int rr_generation_new(struct gateway *gw, struct generation **ret, struct rr_error *err)
{
    struct generation *g = calloc(1, sizeof(*g));
    int r = 0;

    if (!g)
        return rr_error_no_memory(err);
    g->gw = gw;
    atomic_store(&g->refs, 1);
    g->n_apps = gw->o.n_routes;
    g->apps = calloc(g->n_apps, sizeof(*g->apps));
    if (!g->apps) {
        free(g);
        return rr_error_no_memory(err);
    }
    for (size_t n = 0; n < g->n_apps && r == 0; n++)
        r = load(gw, g, n, err);
    if (r) {
        destroy(g);
        return r;
    }
    pthread_mutex_lock(&gw->lock);
    g->next = gw->all;
    gw->all = g;
    pthread_mutex_unlock(&gw->lock);
    *ret = g;
    return 0;
}

/* The first seats have them. */
static unsigned int n_engines(const struct app *app)
{
    return app->n_lanes ? app->n_lanes : 1;
}

void rr_generations_cancel(struct gateway *gw)
{
    pthread_mutex_lock(&gw->lock);
    for (struct generation *g = gw->all; g; g = g->next)
        for (size_t n = 0; n < g->n_apps; n++)
            for (unsigned int k = 0; k < n_engines(&g->apps[n]); k++)
                rr_worker_cancel(g->apps[n].seats[k].worker);
    pthread_mutex_unlock(&gw->lock);
}

void rr_app_nudge(const struct app *app)
{
    for (unsigned int k = 0; k < n_engines(app); k++)
        rr_worker_nudge(app->seats[k].worker);
}

struct generation *rr_generation_current(struct gateway *gw)
{
    struct generation *g;

    pthread_mutex_lock(&gw->lock);
    g = gw->generation;
    atomic_fetch_add(&g->refs, 1);
    pthread_mutex_unlock(&gw->lock);
    return g;
}

void rr_generation_unref(struct generation *g)
{
    struct generation **at;

    if (!g || atomic_fetch_sub(&g->refs, 1) != 1)
        return;
    pthread_mutex_lock(&g->gw->lock);
    for (at = &g->gw->all; *at != g; at = &(*at)->next)
        ;
    *at = g->next;
    pthread_mutex_unlock(&g->gw->lock);
    destroy(g);
}

/* The longest path wins. */
struct app *rr_generation_find(struct generation *g, struct rr_text path)
{
    struct app *best = NULL;
    size_t best_len = 0;

    for (size_t n = 0; n < g->n_apps; n++) {
        const char *route = g->apps[n].route->path;
        size_t len = strlen(route);

        if (strcmp(route, "/") == 0)
            len = 0;
        if (path.len < len || memcmp(path.at, route, len) != 0 ||
            (path.len > len && path.at[len] != '/'))
            continue;
        if (!best || len > best_len) {
            best = &g->apps[n];
            best_len = len;
        }
    }
    return best;
}
