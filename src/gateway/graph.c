/* SPDX-License-Identifier: Apache-2.0 */
/* Figures of a workflow's functions and edges: counted where they happen, one writer each, and
 * summed up when somebody looks. */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "gateway/internal.h"

/* --- what workers tell ----------------------------------------------------------------------- */

void rr_graph_hop(void *user, const struct rr_hop *hop)
{
    struct seat *seat = user;
    struct edge_stats *e = &seat->edges[hop->edge];

    count(&e->handoffs[hop->path], hop->n);
    count(&e->bytes[hop->path], hop->payload_bytes * hop->n);
    count(&e->copied_bytes, hop->copied_bytes);
    rr_histogram_add(&e->cost, hop->handoff_ns, HANDOFF_UNIT_NS, hop->n);
    if (seat->trace)
        rr_trace_hop(seat->trace, hop);
}

void rr_graph_begin(void *user, int function)
{
    count(&((struct seat *)user)->fns[function].begun, 1);
}

void rr_graph_span(void *user, const struct rr_span *span)
{
    struct seat *seat = user;
    struct fn_stats *f = &seat->fns[span->function];

    count(span->fresh ? &f->fresh : &f->reused, span->n);
    rr_histogram_add(&f->run, span->end_ns - span->start_ns, FUNCTION_UNIT_NS, span->n);
    atomic_store_explicit(
        &f->idle,
        rr_worker_idle(seat->worker ? seat->worker : seat->app->seats[0].worker, span->function),
        memory_order_relaxed);
    if (seat->trace)
        rr_trace_span(seat->trace, span);
}

void rr_graph_restart(void *user, int function)
{
    count(&((struct seat *)user)->fns[function].restarts, 1);
}

void rr_graph_again(void *user, int edge)
{
    count(&((struct seat *)user)->edges[edge].again, 1);
}

void rr_graph_buried(void *user, int edge)
{
    count(&((struct seat *)user)->edges[edge].buried, 1);
}

int rr_graph_init(struct seat *seat)
{
    seat->edges = calloc(seat->app->wf->n_edges, sizeof(*seat->edges));
    seat->fns = calloc(seat->app->wf->n_functions, sizeof(*seat->fns));
    return seat->edges && seat->fns ? 0 : -1;
}

void rr_graph_deinit(struct seat *seat)
{
    free(seat->edges);
    free(seat->fns);
}

/* --- sums ------------------------------------------------------------------------------------ */

_Static_assert(sizeof(struct edge_stats) % sizeof(counter) == 0, "it is an array of counters");
_Static_assert(sizeof(struct fn_stats) % sizeof(counter) == 0, "it is an array of counters");

struct sums {
    const struct app *app;
    struct edge_stats *edges; /* owned */
    struct fn_stats *fns;     /* owned */
};

static void sums_free(struct sums *all, size_t n)
{
    for (size_t k = 0; all && k < n; k++) {
        free(all[k].edges);
        free(all[k].fns);
    }
    free(all);
}

/* NULL without memory. */
static struct sums *sum_up(const struct generation *g)
{
    struct sums *all = calloc(g->n_apps, sizeof(*all));

    for (size_t n = 0; all && n < g->n_apps; n++) {
        const struct app *app = &g->apps[n];
        size_t n_edges = app->wf->n_edges, n_functions = app->wf->n_functions;
        struct sums *s = &all[n];

        s->app = app;
        s->edges = calloc(n_edges, sizeof(*s->edges));
        s->fns = calloc(n_functions, sizeof(*s->fns));
        if (!s->edges || !s->fns) {
            sums_free(all, g->n_apps);
            return NULL;
        }
        for (unsigned int k = 0; k <= g->gw->n_threads; k++) {
            rr_counters_add(s->edges, app->seats[k].edges, n_edges * sizeof(*s->edges));
            rr_counters_add(s->fns, app->seats[k].fns, n_functions * sizeof(*s->fns));
        }
    }
    return all;
}

static uint64_t total(const counter *c)
{
    uint64_t sum = 0;

    for (int n = 0; n < N_PATHS; n++)
        sum += counted(&c[n]);
    return sum;
}

static enum rr_tier tier_of(const struct app *app, int function)
{
    return rr_worker_tier(app->seats[0].worker, function);
}

static const char *sender_of(const struct rr_workflow *wf, const struct rr_edge *e)
{
    return e->from == RR_NODE_INPUT ? "input" : wf->functions[e->from].name;
}

/* The counters were not read at one moment. */
static uint64_t running(const struct fn_stats *f)
{
    uint64_t ended = counted(&f->fresh) + counted(&f->reused), begun = counted(&f->begun);

    return begun > ended ? begun - ended : 0;
}

/* --- Prometheus' text ------------------------------------------------------------------------ */

#define N_CHANNELS (RR_CHANNEL_NETWORK + 1)
#define N_TIERS (RR_TIER_STDIO + 1)

/* Hand-offs of one workflow by channel and tier. */
struct kinds {
    struct edge_stats by[N_CHANNELS][N_TIERS];
};

static void sort_kinds(const struct sums *s, struct kinds *ret)
{
    const struct rr_workflow *wf = s->app->wf;

    for (size_t n = 0; n < wf->n_edges; n++)
        rr_counters_add(
            &ret->by[rr_edge_channel(wf, &wf->edges[n])][tier_of(s->app, wf->edges[n].to)],
            &s->edges[n], sizeof(*s->edges));
}

static void by_path(FILE *f, const char *name, const char *labels, const counter *values,
                    const counter *present)
{
    for (int p = 0; p < N_PATHS; p++)
        if (counted(&present[p]))
            fprintf(f, "roadrunner_%s{%s,path=\"%s\"} %llu\n", name, labels,
                    rr_path_name((enum rr_path)p), (unsigned long long)counted(&values[p]));
}

enum kind_metric { HANDOFFS, BYTES, COPIED, SECONDS };

static void kind_text(FILE *f, enum kind_metric what, const char *labels,
                      const struct edge_stats *e)
{
    switch (what) {
    case HANDOFFS:
        by_path(f, "handoffs_total", labels, e->handoffs, e->handoffs);
        break;
    case BYTES:
        by_path(f, "handoff_bytes_total", labels, e->bytes, e->handoffs);
        break;
    case COPIED:
        fprintf(f, "roadrunner_handoff_copied_bytes_total{%s} %llu\n", labels,
                (unsigned long long)counted(&e->copied_bytes));
        break;
    case SECONDS:
        rr_stats_histogram(f, "handoff_seconds", labels, &e->cost, HANDOFF_UNIT_NS);
        break;
    }
}

/* Channels and tiers that the workflow has, whether or not a message came. */
static bool has_kind(const struct app *app, int channel, int tier)
{
    for (size_t n = 0; n < app->wf->n_edges; n++)
        if ((int)rr_edge_channel(app->wf, &app->wf->edges[n]) == channel &&
            (int)tier_of(app, app->wf->edges[n].to) == tier)
            return true;
    return false;
}

static void kinds_text(FILE *f, const struct sums *all, const struct kinds *kinds, size_t n_apps,
                       enum kind_metric what)
{
    char labels[1024];

    for (size_t n = 0; n < n_apps; n++)
        for (int c = 0; c < N_CHANNELS; c++)
            for (int t = 0; t < N_TIERS; t++) {
                if (!has_kind(all[n].app, c, t))
                    continue;
                snprintf(labels, sizeof(labels), "workflow=\"%s\",channel=\"%s\",tier=\"%s\"",
                         all[n].app->route->path, rr_channel_name((enum rr_channel)c),
                         rr_tier_name((enum rr_tier)t));
                kind_text(f, what, labels, &kinds[n].by[c][t]);
            }
}

static void handoffs_text(FILE *f, const struct sums *all, size_t n_apps)
{
    struct kinds *kinds = calloc(n_apps, sizeof(*kinds));

    if (!kinds)
        return;
    for (size_t n = 0; n < n_apps; n++)
        sort_kinds(&all[n], &kinds[n]);
    rr_stats_head(f, "handoffs_total", "counter",
                  "Hand-offs, by channel, tier of the receiver, and path.");
    kinds_text(f, all, kinds, n_apps, HANDOFFS);
    rr_stats_head(f, "handoff_bytes_total", "counter", "Payload of hand-offs.");
    kinds_text(f, all, kinds, n_apps, BYTES);
    rr_stats_head(f, "handoff_copied_bytes_total", "counter", "Payload that hand-offs copied.");
    kinds_text(f, all, kinds, n_apps, COPIED);
    rr_stats_head(f, "handoff_seconds", "histogram", "Work of a hand-off, at both ends.");
    kinds_text(f, all, kinds, n_apps, SECONDS);
    free(kinds);
}

static void edge_value(FILE *f, int what, const struct edge_stats *e)
{
    if (what == 5)
        fprintf(f, "%.9f\n", (double)counted(&e->cost.sum_ns) / 1e9);
    else
        fprintf(f, "%llu\n",
                (unsigned long long)(what == 0   ? total(e->handoffs)
                                     : what == 1 ? total(e->bytes)
                                     : what == 2 ? counted(&e->copied_bytes)
                                     : what == 3 ? counted(&e->again)
                                                 : counted(&e->buried)));
}

static void edges_text(FILE *f, const struct sums *all, size_t n_apps)
{
    static const struct {
        const char *name, *help;
    } metrics[] = {{"edge_handoffs_total", "Hand-offs over an edge."},
                   {"edge_bytes_total", "Payload of hand-offs over an edge."},
                   {"edge_copied_bytes_total", "Payload that hand-offs over an edge copied."},
                   {"edge_redeliveries_total", "Deliveries to a function that had failed."},
                   {"edge_dead_letters_total", "Messages of an edge that were put aside."},
                   {"edge_handoff_seconds_total", "Work of hand-offs over an edge."}};

    for (int k = 0; k < (int)RR_ARRAY_LEN(metrics); k++) {
        rr_stats_head(f, metrics[k].name, "counter", metrics[k].help);
        for (size_t n = 0; n < n_apps; n++) {
            const struct rr_workflow *wf = all[n].app->wf;

            for (size_t m = 0; m < wf->n_edges; m++) {
                const struct rr_edge *e = &wf->edges[m];

                fprintf(f,
                        "roadrunner_%s{workflow=\"%s\",from=\"%s\",from_port=\"%s\",to=\"%s\","
                        "to_port=\"%s\"} ",
                        metrics[k].name, all[n].app->route->path, sender_of(wf, e),
                        e->from == RR_NODE_INPUT ? "" : e->from_port, wf->functions[e->to].name,
                        e->to_port);
                edge_value(f, k, &all[n].edges[m]);
            }
        }
    }
}

static void function_value(FILE *f, int what, const char *labels, const struct fn_stats *s,
                           bool isolated)
{
    if (what == 0)
        rr_stats_histogram(f, "function_seconds", labels, &s->run, FUNCTION_UNIT_NS);
    else if (what == 1)
        fprintf(f, "roadrunner_instances_fresh_total{%s} %llu\n", labels,
                (unsigned long long)counted(&s->fresh));
    else if (what == 2)
        fprintf(f, "roadrunner_instances_reused_total{%s} %llu\n", labels,
                (unsigned long long)counted(&s->reused));
    else if (what == 3 && !isolated)
        fprintf(f,
                "roadrunner_instances{%s,state=\"running\"} %llu\n"
                "roadrunner_instances{%s,state=\"idle\"} %llu\n",
                labels, (unsigned long long)running(s), labels,
                (unsigned long long)counted(&s->idle));
    else if (what == 4 && isolated)
        fprintf(f, "roadrunner_process_restarts_total{%s} %llu\n", labels,
                (unsigned long long)counted(&s->restarts));
}

static void functions_text(FILE *f, const struct sums *all, size_t n_apps)
{
    static const struct {
        const char *name, *type, *help;
    } metrics[] = {
        {"function_seconds", "histogram", "What functions ran, without instantiation."},
        {"instances_fresh_total", "counter", "Function runs in a new instance."},
        {"instances_reused_total", "counter", "Function runs in a used instance."},
        {"instances", "gauge", "Instances of functions without a process of their own."},
        {"process_restarts_total", "counter", "Processes of functions that ended unexpectedly."}};
    char labels[1024];

    for (int k = 0; k < (int)RR_ARRAY_LEN(metrics); k++) {
        rr_stats_head(f, metrics[k].name, metrics[k].type, metrics[k].help);
        for (size_t n = 0; n < n_apps; n++) {
            const struct rr_workflow *wf = all[n].app->wf;

            for (size_t m = 0; m < wf->n_functions; m++) {
                snprintf(labels, sizeof(labels), "workflow=\"%s\",function=\"%s\"",
                         all[n].app->route->path, wf->functions[m].name);
                function_value(f, k, labels, &all[n].fns[m], wf->functions[m].isolated);
            }
        }
    }
}

void rr_graph_text(FILE *f, const struct generation *g)
{
    struct sums *all = sum_up(g);

    if (!all)
        return;
    handoffs_text(f, all, g->n_apps);
    edges_text(f, all, g->n_apps);
    functions_text(f, all, g->n_apps);
    sums_free(all, g->n_apps);
}

/* --- the page's JSON ------------------------------------------------------------------------- */

/*
 * Names of functions and ports and paths of routes have no characters that JSON would escape:
 * the workflow's reader and the command line refuse others.
 */
static void json_histogram(FILE *f, const char *name, const struct histogram *h, uint64_t unit_ns)
{
    int last = N_BUCKETS;

    while (last > 0 && !counted(&h->buckets[last]))
        last--;
    fprintf(f, "\"%s\":{\"unit\":%llu,\"sum\":%llu,\"counts\":[", name, (unsigned long long)unit_ns,
            (unsigned long long)counted(&h->sum_ns));
    for (int n = 0; n <= last; n++)
        fprintf(f, "%s%llu", n ? "," : "", (unsigned long long)counted(&h->buckets[n]));
    fputs("]}", f);
}

static void json_functions(FILE *f, const struct sums *s)
{
    const struct rr_workflow *wf = s->app->wf;

    for (size_t n = 0; n < wf->n_functions; n++) {
        const struct fn_stats *fn = &s->fns[n];

        fprintf(f,
                "%s{\"name\":\"%s\",\"tier\":\"%s\",\"isolated\":%s,\"fresh\":%llu,"
                "\"reused\":%llu,\"running\":%llu,\"idle\":%llu,\"restarts\":%llu,",
                n ? "," : "", wf->functions[n].name, rr_tier_name(tier_of(s->app, (int)n)),
                wf->functions[n].isolated ? "true" : "false",
                (unsigned long long)counted(&fn->fresh), (unsigned long long)counted(&fn->reused),
                (unsigned long long)running(fn), (unsigned long long)counted(&fn->idle),
                (unsigned long long)counted(&fn->restarts));
        json_histogram(f, "seconds", &fn->run, FUNCTION_UNIT_NS);
        fputc('}', f);
    }
}

static void json_edges(FILE *f, const struct sums *s)
{
    const struct rr_workflow *wf = s->app->wf;

    for (size_t n = 0; n < wf->n_edges; n++) {
        const struct rr_edge *e = &wf->edges[n];
        const struct edge_stats *c = &s->edges[n];
        bool first = true;

        fprintf(f,
                "%s{\"from\":%d,\"to\":%d,\"from_port\":\"%s\",\"to_port\":\"%s\","
                "\"kind\":\"%s\",\"channel\":\"%s\",\"n\":%llu,\"bytes\":%llu,\"copied\":%llu,"
                "\"paths\":{",
                n ? "," : "", e->from == RR_NODE_INPUT ? -1 : e->from, e->to,
                e->from == RR_NODE_INPUT ? "" : e->from_port, e->to_port,
                e->is_call    ? "call"
                : e->is_reply ? "reply"
                              : "edge",
                rr_channel_name(rr_edge_channel(wf, e)), (unsigned long long)total(c->handoffs),
                (unsigned long long)total(c->bytes), (unsigned long long)counted(&c->copied_bytes));
        for (int p = 0; p < N_PATHS; p++)
            if (counted(&c->handoffs[p])) {
                fprintf(f, "%s\"%s\":%llu", first ? "" : ",", rr_path_name((enum rr_path)p),
                        (unsigned long long)counted(&c->handoffs[p]));
                first = false;
            }
        fputs("},", f);
        json_histogram(f, "cost", &c->cost, HANDOFF_UNIT_NS);
        fputc('}', f);
    }
}

static void json_requests(FILE *f, const struct stats *s)
{
    bool first = true;

    fputs("\"requests\":{", f);
    for (unsigned int n = 0; n < N_STATUS; n++)
        if (counted(&s->requests[n])) {
            fprintf(f, "%s\"%d\":%llu", first ? "" : ",", rr_status_at(n),
                    (unsigned long long)counted(&s->requests[n]));
            first = false;
        }
    fputs("},", f);
    json_histogram(f, "seconds", &s->duration, REQUEST_UNIT_NS);
}

static void json_workflow(FILE *f, struct app *app, const struct sums *s)
{
    struct rr_arena_stats a;
    struct stats sum;

    rr_stats_sum(app, &sum);
    rr_arena_stats(rr_worker_arena(app->seats[0].worker), &a);
    fprintf(f,
            "{\"path\":\"%s\",\"name\":\"%s\",\"result\":%d,\"queue\":%u,\"live\":%llu,"
            "\"warm\":%llu,\"received\":%llu,\"sent\":%llu,",
            app->route->path, app->wf->name, app->wf->result, rr_queue_depth(app),
            (unsigned long long)a.live_bytes, (unsigned long long)a.warm_bytes,
            (unsigned long long)counted(&sum.received_bytes),
            (unsigned long long)counted(&sum.sent_bytes));
    json_requests(f, &sum);
    fputs(",\"functions\":[", f);
    json_functions(f, s);
    fputs("],\"edges\":[", f);
    json_edges(f, s);
    fputs("]}", f);
}

static void json_all(FILE *f, struct gateway *gw, const struct generation *g,
                     const struct sums *all)
{
    uint64_t now = rr_now_ns();

    fprintf(f,
            "{\"version\":\"" RR_VERSION "\",\"now_ns\":%llu,\"uptime_s\":%llu,\"generation\":%u,"
            "\"draining\":%s,\"connections\":%u,\"workflows\":[",
            (unsigned long long)now, (unsigned long long)((now - gw->started_ns) / 1000000000u),
            g->number, atomic_load(&gw->draining) ? "true" : "false",
            atomic_load(&gw->n_connections));
    for (size_t n = 0; n < g->n_apps; n++) {
        if (n)
            fputc(',', f);
        json_workflow(f, &g->apps[n], &all[n]);
    }
    fputs("]}\n", f);
}

char *rr_graph_json(struct gateway *gw, size_t *ret_len)
{
    struct generation *g = rr_generation_current(gw);
    struct sums *all = sum_up(g);
    char *text = NULL;
    FILE *f = all ? open_memstream(&text, ret_len) : NULL;

    if (f) {
        json_all(f, gw, g, all);
        if (fclose(f) != 0) {
            free(text);
            text = NULL;
        }
    }
    sums_free(all, g->n_apps);
    rr_generation_unref(g);
    return text;
}
