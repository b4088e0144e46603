/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/report.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/util.h"

#define MAX_SAMPLES 200000u /* of each kind and edge or function; later ones are not kept */
#define MAX_EVENTS 200000u  /* in a trace */

struct samples {
    uint64_t *v;
    size_t n, room;
};

struct edge_figures {
    struct samples handoff, latency;
    uint64_t n, payload_bytes, copied_bytes; /* bytes of the last one, copied of all */
    enum rr_path path;
    enum rr_channel channel; /* of the last one */
};

struct function_figures {
    struct samples start, run;
    uint64_t n, n_fresh, heap_bytes;
};

struct report {
    const struct rr_workflow *wf;
    struct edge_figures *edges;
    struct function_figures *functions;
    struct samples totals;
    uint64_t result_bytes, first_start_ns;
    struct rr_span *spans;
    struct rr_hop *hops;
    size_t n_spans, n_hops, spans_room, hops_room;
};

struct report *report_new(const struct rr_workflow *wf)
{
    struct report *rp = calloc(1, sizeof(*rp));

    if (!rp)
        return NULL;
    rp->wf = wf;
    rp->edges = calloc(wf->n_edges, sizeof(*rp->edges));
    rp->functions = calloc(wf->n_functions, sizeof(*rp->functions));
    if (!rp->edges || !rp->functions) {
        free(rp->edges);
        free(rp->functions);
        free(rp);
        return NULL;
    }
    return rp;
}

void report_free(struct report *rp)
{
    if (!rp)
        return;
    for (size_t n = 0; n < rp->wf->n_edges; n++) {
        free(rp->edges[n].handoff.v);
        free(rp->edges[n].latency.v);
    }
    for (size_t n = 0; n < rp->wf->n_functions; n++) {
        free(rp->functions[n].start.v);
        free(rp->functions[n].run.v);
    }
    free(rp->edges);
    free(rp->functions);
    free(rp->totals.v);
    free(rp->spans);
    free(rp->hops);
    free(rp);
}

static void add_sample(struct samples *s, uint64_t v)
{
    if (s->n == s->room && s->n < MAX_SAMPLES) {
        size_t room = s->room ? 2 * s->room : 16;
        uint64_t *grown = reallocarray(s->v, room, sizeof(*grown));

        if (!grown)
            return;
        s->v = grown;
        s->room = room;
    }
    if (s->n < s->room)
        s->v[s->n++] = v;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static uint64_t quantile(struct samples *s, double q)
{
    if (!s->n)
        return 0;
    qsort(s->v, s->n, sizeof(*s->v), compare);
    return s->v[(size_t)(q * (double)(s->n - 1) + 0.5)];
}

void report_hop(struct report *rp, const struct rr_hop *hop)
{
    struct edge_figures *e;

    if (!rp)
        return;
    e = &rp->edges[hop->edge];
    e->n += hop->n;
    e->payload_bytes = hop->payload_bytes;
    e->copied_bytes += hop->copied_bytes;
    e->path = hop->path;
    e->channel = hop->channel;
    add_sample(&e->handoff, hop->handoff_ns);
    add_sample(&e->latency, hop->received_ns - hop->sent_ns);
    if (rp->n_hops == rp->hops_room && rp->n_hops < MAX_EVENTS) {
        size_t room = rp->hops_room ? 2 * rp->hops_room : 64;
        struct rr_hop *grown = reallocarray(rp->hops, room, sizeof(*grown));

        if (!grown)
            return;
        rp->hops = grown;
        rp->hops_room = room;
    }
    if (rp->n_hops < rp->hops_room)
        rp->hops[rp->n_hops++] = *hop;
}

void report_span(struct report *rp, const struct rr_span *span)
{
    struct function_figures *f;

    if (!rp)
        return;
    if (!rp->first_start_ns || span->start_ns < rp->first_start_ns)
        rp->first_start_ns = span->start_ns;
    f = &rp->functions[span->function];
    f->n += span->n;
    f->n_fresh += span->fresh ? span->n : 0;
    f->heap_bytes = span->heap_bytes > f->heap_bytes ? span->heap_bytes : f->heap_bytes;
    add_sample(&f->start, span->start_ns - span->begin_ns);
    add_sample(&f->run, span->end_ns - span->start_ns);
    if (rp->n_spans == rp->spans_room && rp->n_spans < MAX_EVENTS) {
        size_t room = rp->spans_room ? 2 * rp->spans_room : 64;
        struct rr_span *grown = reallocarray(rp->spans, room, sizeof(*grown));

        if (!grown)
            return;
        rp->spans = grown;
        rp->spans_room = room;
    }
    if (rp->n_spans < rp->spans_room)
        rp->spans[rp->n_spans++] = *span;
}

void report_run(struct report *rp, uint64_t total_ns, uint64_t result_bytes)
{
    if (!rp)
        return;
    add_sample(&rp->totals, total_ns);
    rp->result_bytes = result_bytes;
}

/* The tier of a hop is the lower one of its two ends. */
static const char *hop_tier(const struct report *rp, struct rr_worker *w, const struct rr_edge *e)
{
    enum rr_tier from = e->from < 0 ? RR_TIER_WINDOW : rr_worker_tier(w, e->from);
    enum rr_tier to = rr_worker_tier(w, e->to);

    (void)rp;
    return rr_tier_name(from > to ? from : to);
}

static uint64_t peak_rss_bytes(void)
{
    struct rusage u;

    return getrusage(RUSAGE_SELF, &u) == 0 ? (uint64_t)u.ru_maxrss * 1024 : 0;
}

void report_print(struct report *rp, struct rr_worker *w, FILE *f)
{
    static const char *const head[] = {"hop",  "payload",  "channel", "tier",
                                       "path", "hand-off", "copied"};
    struct cli_table t = {0};
    struct rr_arena_stats stats;

    if (!rp)
        return;
    cli_table_row(&t, head, 7);
    for (size_t n = 0; n < rp->wf->n_edges; n++) {
        const struct rr_edge *edge = &rp->wf->edges[n];
        struct edge_figures *e = &rp->edges[n];
        char from[160], to[160], hop[340];

        if (!e->n)
            continue;
        cli_edge_ends(rp->wf, edge, from, to);
        snprintf(hop, sizeof(hop), "%s -> %s", from, to);

        const char *row[] = {hop,
                             rr_bytes_text(e->payload_bytes),
                             rr_channel_name(e->channel),
                             hop_tier(rp, w, edge),
                             rr_path_name(e->path),
                             rr_duration_text(quantile(&e->handoff, 0.5)),
                             rr_bytes_text(e->copied_bytes / e->n)};

        cli_table_row(&t, row, 7);
    }
    cli_table_print(&t, f, "lrlllrr");
    rr_arena_stats(rr_worker_arena(w), &stats);
    fprintf(f, "%s in %s", rr_bytes_text(rp->result_bytes),
            rr_duration_text(quantile(&rp->totals, 0.5)));
    if (rp->totals.n > 1)
        fprintf(f, " (median of %zu runs)", rp->totals.n);
    fprintf(f, "; messages took at most %s\n", rr_bytes_text(stats.peak_bytes));
}

/* --- JSON ------------------------------------------------------------------------------------ */

static void add_u64(struct json_object *o, const char *key, uint64_t v)
{
    json_object_object_add(o, key, json_object_new_int64((int64_t)v));
}

static void add_text(struct json_object *o, const char *key, const char *v)
{
    json_object_object_add(o, key, json_object_new_string(v));
}

static void add_quantiles(struct json_object *o, const char *key, struct samples *s)
{
    struct json_object *q = json_object_new_object();

    add_u64(q, "min", quantile(s, 0));
    add_u64(q, "p50", quantile(s, 0.5));
    add_u64(q, "p99", quantile(s, 0.99));
    add_u64(q, "max", quantile(s, 1));
    json_object_object_add(o, key, q);
}

static struct json_object *edges_json(struct report *rp, struct rr_worker *w)
{
    struct json_object *list = json_object_new_array();

    for (size_t n = 0; n < rp->wf->n_edges; n++) {
        const struct rr_edge *edge = &rp->wf->edges[n];
        struct edge_figures *e = &rp->edges[n];
        struct json_object *o;
        char from[160], to[160];

        if (!e->n)
            continue;
        cli_edge_ends(rp->wf, edge, from, to);
        o = json_object_new_object();
        add_text(o, "from", from);
        add_text(o, "to", to);
        add_text(o, "channel", rr_channel_name(e->channel));
        add_text(o, "tier", hop_tier(rp, w, edge));
        add_text(o, "path", rr_path_name(e->path));
        add_u64(o, "messages", e->n);
        add_u64(o, "payload_bytes", e->payload_bytes);
        add_u64(o, "copied_bytes", e->copied_bytes);
        add_quantiles(o, "handoff_ns", &e->handoff);
        add_quantiles(o, "latency_ns", &e->latency);
        json_object_array_add(list, o);
    }
    return list;
}

static struct json_object *functions_json(struct report *rp, struct rr_worker *w)
{
    struct json_object *list = json_object_new_array();

    for (size_t n = 0; n < rp->wf->n_functions; n++) {
        struct function_figures *f = &rp->functions[n];
        struct json_object *o = json_object_new_object();

        add_text(o, "name", rp->wf->functions[n].name);
        add_text(o, "tier", rr_tier_name(rr_worker_tier(w, (int)n)));
        add_text(o, "cache", cli_cached_names[rr_worker_cached(w, (int)n)]);
        add_u64(o, "messages", f->n);
        add_u64(o, "fresh_instances", f->n_fresh);
        add_u64(o, "heap_bytes", f->heap_bytes);
        add_quantiles(o, "start_ns", &f->start);
        add_quantiles(o, "run_ns", &f->run);
        json_object_array_add(list, o);
    }
    return list;
}

static struct json_object *memory_json(struct rr_worker *w)
{
    struct json_object *o = json_object_new_object();
    struct rr_arena_stats s;

    rr_arena_stats(rr_worker_arena(w), &s);
    add_u64(o, "live_regions", s.live_regions);
    add_u64(o, "live_bytes", s.live_bytes);
    add_u64(o, "warm_regions", s.warm_regions);
    add_u64(o, "warm_bytes", s.warm_bytes);
    add_u64(o, "peak_bytes", s.peak_bytes);
    add_u64(o, "moves", s.moves);
    add_u64(o, "copies", s.copies);
    json_object_object_add(o, "copying", json_object_new_boolean(s.copying));
    add_u64(o, "peak_rss_bytes", peak_rss_bytes());
    return o;
}

void report_json(struct report *rp, struct rr_worker *w, const struct rr_error *failure, FILE *f)
{
    struct json_object *o = json_object_new_object();

    if (!rp) {
        json_object_put(o);
        return;
    }
    add_text(o, "workflow", rp->wf->name);
    add_u64(o, "runs", rp->totals.n);
    if (failure)
        json_object_object_add(o, "error", cli_json_error(failure));
    add_u64(o, "result_bytes", rp->result_bytes);
    add_u64(o, "first_instruction_monotonic_ns", rp->first_start_ns);
    add_quantiles(o, "total_ns", &rp->totals);
    json_object_object_add(o, "hops", edges_json(rp, w));
    json_object_object_add(o, "functions", functions_json(rp, w));
    json_object_object_add(o, "memory", memory_json(w));
    cli_json_print(o, f);
}

void report_failure(const struct rr_error *err, FILE *f)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "error", cli_json_error(err));
    cli_json_print(o, f);
}

/* --- trace ----------------------------------------------------------------------------------- */

/* Chrome's trace format: one row per function, arrows for messages; times in microseconds. */
static void trace_spans(struct report *rp, FILE *f)
{
    for (size_t n = 0; n < rp->wf->n_functions; n++)
        fprintf(f,
                "%s{\"ph\":\"M\",\"pid\":1,\"tid\":%zu,\"name\":\"thread_name\","
                "\"args\":{\"name\":\"%s\"}}",
                n ? ",\n" : "", n + 1, rp->wf->functions[n].name);
    for (size_t n = 0; n < rp->n_spans; n++) {
        const struct rr_span *s = &rp->spans[n];
        const char *name = rp->wf->functions[s->function].name;

        fprintf(f,
                ",\n{\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"name\":\"start\",\"cat\":\"instance\","
                "\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"fresh\":%s}}",
                s->function + 1, (double)s->begin_ns / 1e3,
                (double)(s->start_ns - s->begin_ns) / 1e3, s->fresh ? "true" : "false");
        fprintf(f,
                ",\n{\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"name\":\"%s\",\"cat\":\"function\","
                "\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"heap_bytes\":%llu}}",
                s->function + 1, name, (double)s->start_ns / 1e3,
                (double)(s->end_ns - s->start_ns) / 1e3, (unsigned long long)s->heap_bytes);
    }
}

static void trace_hops(struct report *rp, FILE *f)
{
    for (size_t n = 0; n < rp->n_hops; n++) {
        const struct rr_hop *h = &rp->hops[n];
        const struct rr_edge *e = &rp->wf->edges[h->edge];
        char from[160], to[160];

        cli_edge_ends(rp->wf, e, from, to);
        fprintf(f,
                ",\n{\"ph\":\"s\",\"pid\":1,\"tid\":%d,\"id\":%zu,\"name\":\"%s -> %s\","
                "\"cat\":\"message\",\"ts\":%.3f,\"args\":{\"channel\":\"%s\",\"path\":\"%s\","
                "\"payload_bytes\":%llu,\"copied_bytes\":%llu,\"handoff_us\":%.3f}}",
                e->from < 0 ? e->to + 1 : e->from + 1, n, from, to, (double)h->sent_ns / 1e3,
                rr_channel_name(h->channel), rr_path_name(h->path), (unsigned long long)h->payload_bytes,
                (unsigned long long)h->copied_bytes, (double)h->handoff_ns / 1e3);
        fprintf(f,
                ",\n{\"ph\":\"f\",\"bp\":\"e\",\"pid\":1,\"tid\":%d,\"id\":%zu,"
                "\"name\":\"%s -> %s\",\"cat\":\"message\",\"ts\":%.3f}",
                e->to + 1, n, from, to, (double)h->received_ns / 1e3);
    }
}

int report_trace(struct report *rp, const char *path)
{
    FILE *f = fopen(path, "we");
    bool failed;

    if (!f || !rp) {
        if (f)
            fclose(f);
        return -1;
    }
    fputs("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n", f);
    trace_spans(rp, f);
    trace_hops(rp, f);
    fputs("\n]}\n", f);
    failed = ferror(f);
    return fclose(f) != 0 || failed ? -1 : 0;
}
