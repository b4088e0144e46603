/* SPDX-License-Identifier: Apache-2.0 */
/* Figures in Prometheus' text format. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/internal.h"

static const int statuses[N_STATUS] = {0,   200, 201, 202, 204, 206, 301, 302, 303, 304,
                                       307, 308, 400, 401, 403, 404, 405, 406, 408, 409,
                                       410, 411, 413, 414, 415, 417, 422, 429, 431, 500,
                                       501, 502, 503, 504, 505, 203, 205, 300, 412, 507};

unsigned int rr_status_index(int status)
{
    for (unsigned int n = 1; n < N_STATUS; n++)
        if (statuses[n] == status)
            return n;
    return 0;
}

int rr_status_at(unsigned int index)
{
    return statuses[index];
}

void rr_histogram_add(struct histogram *h, uint64_t ns, uint64_t unit_ns, uint64_t n)
{
    uint64_t units = ns / unit_ns;
    unsigned int k = units ? 64u - (unsigned int)__builtin_clzll(units) : 0;

    count(&h->buckets[rr_min(k, N_BUCKETS)], n);
    count(&h->sum_ns, ns * n);
}

/* --- sums ------------------------------------------------------------------------------------ */

_Static_assert(sizeof(struct stats) % sizeof(counter) == 0, "it is an array of counters");

void rr_counters_add(void *to, const void *from, size_t bytes)
{
    counter *sum = to;
    const counter *c = from;

    for (size_t n = 0; n < bytes / sizeof(counter); n++)
        count(&sum[n], counted(&c[n]));
}

void rr_stats_sum(const struct app *app, struct stats *ret)
{
    memset(ret, 0, sizeof(*ret));
    for (unsigned int n = 0; n <= app->generation->gw->n_threads; n++)
        rr_counters_add(ret, &app->seats[n].stats, sizeof(*ret));
}

unsigned int rr_queue_depth(struct app *app)
{
    struct pool *pool = &app->generation->gw->pool;
    unsigned int depth;

    pthread_mutex_lock(&pool->lock);
    depth = app->n_queued;
    pthread_mutex_unlock(&pool->lock);
    return depth;
}

/* --- text ------------------------------------------------------------------------------------ */

void rr_stats_head(FILE *f, const char *name, const char *type, const char *help)
{
    fprintf(f, "# HELP roadrunner_%s %s\n# TYPE roadrunner_%s %s\n", name, help, name, type);
}

static void one(FILE *f, const char *name, const char *type, const char *help, uint64_t value)
{
    rr_stats_head(f, name, type, help);
    fprintf(f, "roadrunner_%s %llu\n", name, (unsigned long long)value);
}

void rr_stats_histogram(FILE *f, const char *name, const char *labels, const struct histogram *h,
                        uint64_t unit_ns)
{
    uint64_t sum = 0;

    for (int n = 0; n < N_BUCKETS; n++) {
        sum += counted(&h->buckets[n]);
        fprintf(f, "roadrunner_%s_bucket{%s,le=\"%.8g\"} %llu\n", name, labels,
                (double)unit_ns / 1e9 * (double)(1u << n), (unsigned long long)sum);
    }
    sum += counted(&h->buckets[N_BUCKETS]);
    fprintf(f,
            "roadrunner_%s_bucket{%s,le=\"+Inf\"} %llu\n"
            "roadrunner_%s_sum{%s} %.9f\n"
            "roadrunner_%s_count{%s} %llu\n",
            name, labels, (unsigned long long)sum, name, labels, (double)counted(&h->sum_ns) / 1e9,
            name, labels, (unsigned long long)sum);
}

static void histograms(FILE *f, const char *name, const struct generation *g,
                       const struct stats *sums, size_t offset)
{
    for (size_t n = 0; n < g->n_apps; n++) {
        RR_AUTO(rr_free) char *labels = NULL;

        if (asprintf(&labels, "workflow=\"%s\"", g->apps[n].route->path) < 0)
            return;
        rr_stats_histogram(
            f, name, labels,
            (const struct histogram *)(const void *)((const char *)&sums[n] + offset),
            REQUEST_UNIT_NS);
    }
}

static void requests(FILE *f, const char *path, const struct stats *s)
{
    char code[8];

    for (unsigned int n = 0; n < N_STATUS; n++) {
        if (!counted(&s->requests[n]))
            continue;
        snprintf(code, sizeof(code), "%d", statuses[n]);
        fprintf(f, "roadrunner_requests_total{workflow=\"%s\",code=\"%s\"} %llu\n", path,
                n ? code : "other", (unsigned long long)counted(&s->requests[n]));
    }
}

static const struct {
    const char *name, *help;
    size_t offset;
} totals[] = {
    {"received_bytes_total", "Payload of requests.", offsetof(struct stats, received_bytes)},
    {"sent_bytes_total", "Payload of replies.", offsetof(struct stats, sent_bytes)},
    {"request_copied_bytes_total", "Payload of requests that was copied in user space.",
     offsetof(struct stats, copied_in_bytes)},
    {"reply_copied_bytes_total", "Payload of replies that was copied in user space.",
     offsetof(struct stats, copied_out_bytes)},
    {"runs_inline_total", "Workflow runs on the thread that read the request.",
     offsetof(struct stats, inline_runs)},
    {"runs_pool_total", "Workflow runs on a thread of the pool.",
     offsetof(struct stats, pool_runs)},
    {"runs_taken_over_total", "Inline runs that took long, so that another thread went on.",
     offsetof(struct stats, stolen_runs)},
    {"cancelled_total", "Requests whose client went away.", offsetof(struct stats, cancelled)},
};

/* Of arenas. */
static const struct {
    const char *name, *type, *help;
    size_t offset;
} arenas[] = {
    {"live_bytes", "gauge", "Memory of messages on their way.",
     offsetof(struct rr_arena_stats, live_bytes)},
    {"live_regions", "gauge", "Regions of messages on their way.",
     offsetof(struct rr_arena_stats, live_regions)},
    {"peak_live_bytes", "gauge", "The most memory that messages had at once.",
     offsetof(struct rr_arena_stats, peak_bytes)},
    {"warm_bytes", "gauge", "Memory kept warm for further messages.",
     offsetof(struct rr_arena_stats, warm_bytes)},
    {"warm_regions", "gauge", "Regions kept warm for further messages.",
     offsetof(struct rr_arena_stats, warm_regions)},
    {"region_moves_total", "counter", "Moves of a region's page tables.",
     offsetof(struct rr_arena_stats, moves)},
    {"region_copies_total", "counter", "Moves that the kernel refused, so that it was copied.",
     offsetof(struct rr_arena_stats, copies)},
    {"region_trims_total", "counter", "Times that warm memory was given back.",
     offsetof(struct rr_arena_stats, trims)},
};

static void memory(FILE *f, const struct generation *g)
{
    RR_AUTO(rr_free) struct rr_arena_stats *a = calloc(g->n_apps, sizeof(*a));

    if (!a)
        return;
    for (size_t n = 0; n < g->n_apps; n++)
        rr_arena_stats(rr_worker_arena(g->apps[n].seats[0].worker), &a[n]);
    for (size_t k = 0; k < RR_ARRAY_LEN(arenas); k++) {
        rr_stats_head(f, arenas[k].name, arenas[k].type, arenas[k].help);
        for (size_t n = 0; n < g->n_apps; n++) {
            uint64_t value;

            memcpy(&value, (const char *)&a[n] + arenas[k].offset, sizeof(value));
            fprintf(f, "roadrunner_%s{workflow=\"%s\"} %llu\n", arenas[k].name,
                    g->apps[n].route->path, (unsigned long long)value);
        }
    }
    rr_stats_head(f, "memory_bytes", "gauge", "What messages and instances have.");
    for (size_t n = 0; n < g->n_apps; n++)
        fprintf(f, "roadrunner_memory_bytes{workflow=\"%s\"} %llu\n", g->apps[n].route->path,
                (unsigned long long)rr_worker_memory(g->apps[n].seats[0].worker));
    one(f, "memory_limit_bytes", "gauge", "What those of one workflow may have.",
        g->gw->o.workflow_memory_bytes);
}

static void queues(FILE *f, struct gateway *gw, const struct generation *g)
{
    unsigned int running;

    rr_stats_head(f, "queue_depth", "gauge", "Requests that wait for a thread.");
    for (size_t n = 0; n < g->n_apps; n++)
        fprintf(f, "roadrunner_queue_depth{workflow=\"%s\"} %u\n", g->apps[n].route->path,
                rr_queue_depth(&g->apps[n]));
    pthread_mutex_lock(&gw->pool.lock);
    running = gw->pool.n_running;
    pthread_mutex_unlock(&gw->pool.lock);
    one(f, "queue_limit", "gauge", "Requests of one workflow that may wait.", gw->o.queue);
    one(f, "pool_running", "gauge", "Threads of the pool that run a workflow.", running);
    one(f, "pool_limit", "gauge", "Threads of the pool that may run a workflow.",
        gw->o.concurrency);
}

static void server(FILE *f, struct gateway *gw, const struct generation *g)
{
    one(f, "connections", "gauge", "Open connections.", atomic_load(&gw->n_connections));
    one(f, "connections_accepted_total", "counter", "Connections accepted.",
        atomic_load(&gw->n_accepted));
    one(f, "connections_refused_total", "counter", "Connections beyond the limit.",
        atomic_load(&gw->n_refused));
    one(f, "body_bytes", "gauge", "Memory reserved for bodies of requests.",
        rr_budget_used(&gw->bodies));
    one(f, "generation", "gauge", "How often the workflows were read.", g->number);
    one(f, "reloads_total", "counter", "Reloads that took effect.", counted(&gw->n_reloads));
    one(f, "reloads_refused_total", "counter", "Reloads that failed, so that the old stayed.",
        counted(&gw->n_bad_reloads));
    one(f, "log_lines_lost_total", "counter", "Access log lines that could not be written.",
        atomic_load(&gw->n_lost_lines));
    one(f, "uptime_seconds", "gauge", "Since the start.",
        (rr_now_ns() - gw->started_ns) / 1000000000u);
}

/* The second number of statm: pages. */
static uint64_t resident_bytes(void)
{
    RR_AUTO(rr_file) FILE *statm = fopen("/proc/self/statm", "re");
    char line[128], *at;

    if (!statm || !fgets(line, sizeof(line), statm) || !(at = strchr(line, ' ')))
        return 0;
    return strtoull(at, NULL, 10) * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* What Prometheus' own clients call so. */
static void process(FILE *f)
{
    struct rusage u;

    fprintf(f,
            "# HELP process_resident_memory_bytes Memory of this process.\n"
            "# TYPE process_resident_memory_bytes gauge\n"
            "process_resident_memory_bytes %llu\n",
            (unsigned long long)resident_bytes());
    if (getrusage(RUSAGE_SELF, &u) == 0)
        fprintf(f,
                "# HELP process_cpu_seconds_total CPU time of this process.\n"
                "# TYPE process_cpu_seconds_total counter\n"
                "process_cpu_seconds_total %.6f\n",
                (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                    (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
    rr_stats_head(f, "build_info", "gauge", "Always 1; the version is in its label.");
    fprintf(f, "roadrunner_build_info{version=\"" RR_VERSION "\"} 1\n");
}

static void write_all(FILE *f, struct gateway *gw, const struct generation *g, struct stats *sums)
{
    struct stats loose;

    memset(&loose, 0, sizeof(loose));
    for (size_t n = 0; n < g->n_apps; n++)
        rr_stats_sum(&g->apps[n], &sums[n]);
    for (unsigned int n = 0; n < gw->n_loops; n++)
        rr_counters_add(&loose, &gw->loops[n].stats, sizeof(loose));
    rr_stats_head(f, "requests_total", "counter", "Requests answered, by status.");
    for (size_t n = 0; n < g->n_apps; n++)
        requests(f, g->apps[n].route->path, &sums[n]);
    requests(f, "", &loose);
    rr_stats_head(f, "request_seconds", "histogram",
                  "From a request's head to the end of its reply.");
    histograms(f, "request_seconds", g, sums, offsetof(struct stats, duration));
    rr_stats_head(f, "run_seconds", "histogram", "What workflows ran.");
    histograms(f, "run_seconds", g, sums, offsetof(struct stats, run));
    for (size_t k = 0; k < RR_ARRAY_LEN(totals); k++) {
        rr_stats_head(f, totals[k].name, "counter", totals[k].help);
        for (size_t n = 0; n < g->n_apps; n++)
            fprintf(f, "roadrunner_%s{workflow=\"%s\"} %llu\n", totals[k].name,
                    g->apps[n].route->path,
                    (unsigned long long)counted(
                        (counter *)(void *)((char *)&sums[n] + totals[k].offset)));
    }
    rr_graph_text(f, g);
    memory(f, g);
    queues(f, gw, g);
    rr_async_stats(f, gw);
    server(f, gw, g);
    rr_otlp_text(f, gw->otlp);
    process(f);
}

char *rr_stats_text(struct gateway *gw, size_t *ret_len)
{
    struct generation *g = rr_generation_current(gw);
    struct stats *sums = calloc(g->n_apps, sizeof(*sums));
    char *text = NULL;
    FILE *f = sums ? open_memstream(&text, ret_len) : NULL;

    if (f) {
        write_all(f, gw, g, sums);
        if (fclose(f) != 0) {
            free(text);
            text = NULL;
        }
    }
    free(sums);
    rr_generation_unref(g);
    return text;
}
