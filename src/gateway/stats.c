/* SPDX-License-Identifier: Apache-2.0 */
/* Figures in Prometheus' text format. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

void rr_histogram_add(struct histogram *h, uint64_t ns)
{
    uint64_t units = ns / 16000;
    unsigned int n = units ? 64u - (unsigned int)__builtin_clzll(units) : 0;

    count(&h->buckets[rr_min(n, N_BUCKETS)], 1);
    count(&h->sum_ns, ns);
}

/* --- sums ------------------------------------------------------------------------------------ */

_Static_assert(sizeof(struct stats) % sizeof(counter) == 0, "it is an array of counters");

static void add(struct stats *sum, const struct stats *s)
{
    counter *to = (counter *)(void *)sum;
    const counter *from = (const counter *)(const void *)s;

    for (size_t n = 0; n < sizeof(*s) / sizeof(counter); n++)
        count(&to[n], counted(&from[n]));
}

static void sum_app(const struct gateway *gw, const struct app *app, struct stats *ret)
{
    memset(ret, 0, sizeof(*ret));
    for (unsigned int n = 0; n <= gw->n_threads; n++)
        add(ret, &app->seats[n].stats);
}

/* --- text ------------------------------------------------------------------------------------ */

static void head(FILE *f, const char *name, const char *type, const char *help)
{
    fprintf(f, "# HELP roadrunner_%s %s\n# TYPE roadrunner_%s %s\n", name, help, name, type);
}

static void one(FILE *f, const char *name, const char *type, const char *help, uint64_t value)
{
    head(f, name, type, help);
    fprintf(f, "roadrunner_%s %llu\n", name, (unsigned long long)value);
}

static void histogram(FILE *f, const char *name, const char *path, const struct histogram *h)
{
    uint64_t sum = 0;

    for (int n = 0; n < N_BUCKETS; n++) {
        sum += counted(&h->buckets[n]);
        fprintf(f, "roadrunner_%s_bucket{workflow=\"%s\",le=\"%.6g\"} %llu\n", name, path,
                16e-6 * (double)(1u << n), (unsigned long long)sum);
    }
    sum += counted(&h->buckets[N_BUCKETS]);
    fprintf(f,
            "roadrunner_%s_bucket{workflow=\"%s\",le=\"+Inf\"} %llu\n"
            "roadrunner_%s_sum{workflow=\"%s\"} %.9f\n"
            "roadrunner_%s_count{workflow=\"%s\"} %llu\n",
            name, path, (unsigned long long)sum, name, path, (double)counted(&h->sum_ns) / 1e9,
            name, path, (unsigned long long)sum);
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
    {"handoff_copied_bytes_total", "Payload that hand-offs copied.",
     offsetof(struct stats, handoff_copied_bytes)},
    {"instances_fresh_total", "Function runs in a new instance.", offsetof(struct stats, fresh)},
    {"instances_reused_total", "Function runs in a used instance.", offsetof(struct stats, reused)},
    {"runs_inline_total", "Workflow runs on the thread that read the request.",
     offsetof(struct stats, inline_runs)},
    {"runs_pool_total", "Workflow runs on a thread of the pool.",
     offsetof(struct stats, pool_runs)},
    {"runs_taken_over_total", "Inline runs that took long, so that another thread went on.",
     offsetof(struct stats, stolen_runs)},
    {"cancelled_total", "Requests whose client went away.", offsetof(struct stats, cancelled)},
};

static void handoffs(FILE *f, const struct generation *g, const struct stats *sums)
{
    head(f, "handoffs_total", "counter", "Hand-offs between functions, by path.");
    for (size_t n = 0; n < g->n_apps; n++)
        for (int k = 0; k < 5; k++)
            if (counted(&sums[n].handoffs[k]))
                fprintf(f, "roadrunner_handoffs_total{workflow=\"%s\",path=\"%s\"} %llu\n",
                        g->apps[n].route->path, rr_path_name((enum rr_path)k),
                        (unsigned long long)counted(&sums[n].handoffs[k]));
    head(f, "handoff_bytes_total", "counter", "Payload of hand-offs, by path.");
    for (size_t n = 0; n < g->n_apps; n++)
        for (int k = 0; k < 5; k++)
            if (counted(&sums[n].handoffs[k]))
                fprintf(f, "roadrunner_handoff_bytes_total{workflow=\"%s\",path=\"%s\"} %llu\n",
                        g->apps[n].route->path, rr_path_name((enum rr_path)k),
                        (unsigned long long)counted(&sums[n].handoff_bytes[k]));
}

static void memory(FILE *f, const struct generation *g)
{
    struct rr_arena_stats a;

    head(f, "live_bytes", "gauge", "Memory of messages on their way.");
    for (size_t n = 0; n < g->n_apps; n++) {
        rr_arena_stats(rr_worker_arena(g->apps[n].seats[0].worker), &a);
        fprintf(f, "roadrunner_live_bytes{workflow=\"%s\"} %llu\n", g->apps[n].route->path,
                (unsigned long long)a.live_bytes);
    }
    head(f, "warm_bytes", "gauge", "Memory kept warm for further messages.");
    for (size_t n = 0; n < g->n_apps; n++) {
        rr_arena_stats(rr_worker_arena(g->apps[n].seats[0].worker), &a);
        fprintf(f, "roadrunner_warm_bytes{workflow=\"%s\"} %llu\n", g->apps[n].route->path,
                (unsigned long long)a.warm_bytes);
    }
}

static void queues(FILE *f, struct gateway *gw, const struct generation *g)
{
    unsigned int depth, running;

    head(f, "queue_depth", "gauge", "Requests that wait for a thread.");
    for (size_t n = 0; n < g->n_apps; n++) {
        pthread_mutex_lock(&gw->pool.lock);
        depth = g->apps[n].n_queued;
        pthread_mutex_unlock(&gw->pool.lock);
        fprintf(f, "roadrunner_queue_depth{workflow=\"%s\"} %u\n", g->apps[n].route->path, depth);
    }
    pthread_mutex_lock(&gw->pool.lock);
    running = gw->pool.n_running;
    pthread_mutex_unlock(&gw->pool.lock);
    one(f, "pool_running", "gauge", "Threads of the pool that run a workflow.", running);
}

static void server(FILE *f, struct gateway *gw, const struct generation *g)
{
    one(f, "connections", "gauge", "Open connections.", atomic_load(&gw->n_connections));
    one(f, "connections_accepted_total", "counter", "Connections accepted.",
        atomic_load(&gw->n_accepted));
    one(f, "connections_refused_total", "counter", "Connections beyond the limit.",
        atomic_load(&gw->n_refused));
    one(f, "body_bytes", "gauge", "Memory reserved for bodies of requests.",
        atomic_load(&gw->memory_bytes));
    one(f, "generation", "gauge", "How often the workflows were read.", g->number);
    one(f, "reloads_refused_total", "counter", "Reloads that failed, so that the old stayed.",
        counted(&gw->n_bad_reloads));
    one(f, "log_lines_lost_total", "counter", "Access log lines that could not be written.",
        atomic_load(&gw->n_lost_lines));
    one(f, "uptime_seconds", "gauge", "Since the start.",
        (rr_now_ns() - gw->started_ns) / 1000000000u);
}

static void write_all(FILE *f, struct gateway *gw, const struct generation *g, struct stats *sums)
{
    struct stats loose;

    memset(&loose, 0, sizeof(loose));
    for (size_t n = 0; n < g->n_apps; n++)
        sum_app(gw, &g->apps[n], &sums[n]);
    for (unsigned int n = 0; n < gw->n_loops; n++)
        add(&loose, &gw->loops[n].stats);
    head(f, "requests_total", "counter", "Requests answered, by status.");
    for (size_t n = 0; n < g->n_apps; n++)
        requests(f, g->apps[n].route->path, &sums[n]);
    requests(f, "", &loose);
    head(f, "request_seconds", "histogram", "From a request's head to the end of its reply.");
    for (size_t n = 0; n < g->n_apps; n++)
        histogram(f, "request_seconds", g->apps[n].route->path, &sums[n].duration);
    head(f, "run_seconds", "histogram", "What workflows ran.");
    for (size_t n = 0; n < g->n_apps; n++)
        histogram(f, "run_seconds", g->apps[n].route->path, &sums[n].run);
    for (size_t k = 0; k < RR_ARRAY_LEN(totals); k++) {
        head(f, totals[k].name, "counter", totals[k].help);
        for (size_t n = 0; n < g->n_apps; n++)
            fprintf(f, "roadrunner_%s{workflow=\"%s\"} %llu\n", totals[k].name,
                    g->apps[n].route->path,
                    (unsigned long long)counted(
                        (counter *)(void *)((char *)&sums[n] + totals[k].offset)));
    }
    handoffs(f, g, sums);
    memory(f, g);
    queues(f, gw, g);
    rr_async_stats(f, gw);
    server(f, gw, g);
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
