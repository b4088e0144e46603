/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli.h"

static void window_text(const struct rr_edge *e, char out[64])
{
    snprintf(out, 64, "0x%08llx + %s", (unsigned long long)e->window, rr_bytes_text(e->slot_bytes));
}

static const char *channel_name(const struct rr_workflow *wf, const struct rr_edge *e)
{
    return rr_channel_name(rr_edge_channel(wf, e));
}

static const char *isolation_name(const struct rr_function *f)
{
    return f->isolated ? "process" : "worker";
}

/* --- text ------------------------------------------------------------------------------------ */

static void print_functions(const struct rr_workflow *wf, struct rr_worker *w)
{
    static const char *const head[] = {"function", "tier",      "because",  "memory",
                                       "deadline", "instances", "isolation"};
    struct cli_table t = {0};

    cli_table_row(&t, head, 7);
    for (size_t n = 0; n < wf->n_functions; n++) {
        const struct rr_function *f = &wf->functions[n];
        char instances[24];

        snprintf(instances, sizeof(instances), "%u reused", f->instances);

        const char *row[] = {f->name,
                             rr_tier_name(rr_worker_tier(w, (int)n)),
                             rr_worker_why(w, (int)n),
                             rr_bytes_text(f->memory_bytes),
                             f->deadline_ns ? rr_duration_text(f->deadline_ns) : "none",
                             f->instances ? instances : "fresh",
                             isolation_name(f)};

        cli_table_row(&t, row, 7);
    }
    cli_table_print(&t, stdout, "lllrrll");
}

static void print_edges(const struct rr_workflow *wf, struct rr_worker *w)
{
    static const char *const head[] = {"edge", "channel", "path", "max", "window"};
    struct cli_table t = {0};

    cli_table_row(&t, head, 5);
    for (size_t n = 0; n < wf->n_edges; n++) {
        const struct rr_edge *e = &wf->edges[n];
        char from[160], to[160], edge[340], window[64];

        cli_edge_ends(wf, e, from, to);
        snprintf(edge, sizeof(edge), "%s -> %s", from, to);
        window_text(e, window);

        const char *row[] = {edge, channel_name(wf, e), rr_path_name(rr_worker_path(w, (int)n)),
                             rr_bytes_text(rr_min(e->max_bytes, e->slot_bytes)), window};

        cli_table_row(&t, row, 5);
    }
    cli_table_print(&t, stdout, "lllrl");
}

/* Of asynchronous messages. */
static void print_delivery(const struct rr_workflow *wf)
{
    const struct rr_delivery *d = &wf->delivery;

    if (!d->given && !wf->queue.path && !wf->queue.always)
        return;
    printf("\nAsynchronous messages: %u %s", d->retry, d->retry == 1 ? "retry" : "retries");
    if (d->retry)
        printf(", %s from %s", d->linear ? "linear" : "exponential",
               rr_duration_text(d->backoff_ns));
    if (d->timeout_ns)
        printf(", timeout %s", rr_duration_text(d->timeout_ns));
    printf(", dead letters: %s; %s%s\n",
           d->sink            ? d->sink
           : wf->dead_letters ? wf->dead_letters
                              : "none",
           wf->queue.path ? "queue: " : "in memory", wf->queue.path ? wf->queue.path : "");
}

/* Of edges that deliver again to a function that failed. */
static void print_again(const struct rr_workflow *wf)
{
    for (size_t n = 0; n < wf->n_edges; n++) {
        const struct rr_edge *e = &wf->edges[n];
        char from[160], to[160];

        if (!e->again.given)
            continue;
        cli_edge_ends(wf, e, from, to);
        printf("\n%s -> %s: %u %s", from, to, e->again.retry,
               e->again.retry == 1 ? "retry" : "retries");
        if (e->again.retry)
            printf(", %s from %s", e->again.linear ? "linear" : "exponential",
                   rr_duration_text(e->again.backoff_ns));
        if (e->again.timeout_ns)
            printf(", timeout %s", rr_duration_text(e->again.timeout_ns));
        printf(", dead letters: %s%s\n",
               e->again.sink      ? e->again.sink
               : wf->dead_letters ? wf->dead_letters
                                  : "none",
               e->optional ? "; the run goes on without it" : "");
    }
}

static void print_text(const struct rr_workflow *wf, struct rr_worker *w)
{
    printf("workflow %s, result from %s.%s\n\n", wf->name, wf->functions[wf->result].name,
           wf->result_port);
    print_functions(wf, w);
    putchar('\n');
    print_edges(wf, w);
    printf("\nA path holds for messages above %s; smaller ones are copied.\n",
           rr_bytes_text(RR_SMALL_MAX));
    print_again(wf);
    print_delivery(wf);
}

/* --- JSON ------------------------------------------------------------------------------------ */

static void add(struct json_object *o, const char *key, const char *text)
{
    json_object_object_add(o, key, json_object_new_string(text));
}

static void number(struct json_object *o, const char *key, uint64_t value)
{
    json_object_object_add(o, key, json_object_new_int64((int64_t)value));
}

static struct json_object *policy_json(const struct rr_delivery *d)
{
    struct json_object *o = json_object_new_object();

    number(o, "retry", d->retry);
    add(o, "backoffPolicy", d->linear ? "linear" : "exponential");
    number(o, "backoffDelay_ns", d->backoff_ns);
    if (d->timeout_ns)
        number(o, "timeout_ns", d->timeout_ns);
    if (d->sink)
        add(o, "deadLetterSink", d->sink);
    return o;
}

static struct json_object *again_json(const struct rr_edge *e)
{
    struct json_object *o = policy_json(&e->again);

    json_object_object_add(o, "optional", json_object_new_boolean(e->optional));
    return o;
}

static struct json_object *delivery_json(const struct rr_workflow *wf)
{
    struct json_object *o = policy_json(&wf->delivery), *queue = json_object_new_object();

    if (wf->queue.path)
        add(queue, "path", wf->queue.path);
    number(queue, "messages", wf->queue.messages);
    number(queue, "bytes", wf->queue.bytes);
    number(queue, "keep_ns", wf->queue.keep_ns);
    json_object_object_add(queue, "always", json_object_new_boolean(wf->queue.always));
    json_object_object_add(o, "queue", queue);
    return o;
}

static void print_json(const struct rr_workflow *wf, struct rr_worker *w)
{
    struct json_object *o = json_object_new_object(), *functions = json_object_new_array();
    struct json_object *edges = json_object_new_array();

    for (size_t n = 0; n < wf->n_functions; n++) {
        const struct rr_function *f = &wf->functions[n];
        struct json_object *one = json_object_new_object();

        add(one, "name", f->name);
        add(one, "module", f->module);
        add(one, "tier", rr_tier_name(rr_worker_tier(w, (int)n)));
        add(one, "why", rr_worker_why(w, (int)n));
        json_object_object_add(one, "memory_bytes",
                               json_object_new_int64((int64_t)f->memory_bytes));
        json_object_object_add(one, "deadline_ns", json_object_new_int64((int64_t)f->deadline_ns));
        json_object_object_add(one, "instances", json_object_new_int64(f->instances));
        add(one, "isolation", isolation_name(f));
        json_object_array_add(functions, one);
    }
    for (size_t n = 0; n < wf->n_edges; n++) {
        const struct rr_edge *e = &wf->edges[n];
        struct json_object *one = json_object_new_object();
        char from[160], to[160];

        cli_edge_ends(wf, e, from, to);
        add(one, "from", from);
        add(one, "to", to);
        add(one, "channel", channel_name(wf, e));
        add(one, "delivery", e->at_least_once ? "at-least-once" : "at-most-once");
        if (e->again.given)
            json_object_object_add(one, "again", again_json(e));
        add(one, "path", rr_path_name(rr_worker_path(w, (int)n)));
        json_object_object_add(one, "max_bytes",
                               json_object_new_int64((int64_t)rr_min(e->max_bytes, e->slot_bytes)));
        json_object_object_add(one, "slot_bytes", json_object_new_int64((int64_t)e->slot_bytes));
        json_object_object_add(one, "window", json_object_new_int64((int64_t)e->window));
        json_object_array_add(edges, one);
    }
    add(o, "workflow", wf->name);
    add(o, "result", wf->functions[wf->result].name);
    add(o, "result_port", wf->result_port);
    json_object_object_add(o, "functions", functions);
    json_object_object_add(o, "edges", edges);
    json_object_object_add(o, "delivery", delivery_json(wf));
    cli_json_print(o, stdout);
}

/* --- SVG ------------------------------------------------------------------------------------- */

#define BOX_W 190
#define BOX_H 54
#define GAP_X 170
#define GAP_Y 34
#define MARGIN 24

struct place {
    int column, row;
};

/* Columns by the longest way from the input; rows in the order of execution. */
static int lay_out(const struct rr_workflow *wf, struct place *places, int *ret_rows)
{
    int *used = calloc(wf->n_functions + 2, sizeof(*used)), columns = 1;

    if (!used)
        return -1;
    for (size_t k = 0; k < wf->n_functions; k++) {
        int f = wf->order[k];

        places[f].column = 1;
        for (size_t n = 0; n < wf->n_edges; n++) {
            const struct rr_edge *e = &wf->edges[n];

            if (e->to == f && e->from >= 0 && !e->is_reply &&
                places[e->from].column >= places[f].column)
                places[f].column = places[e->from].column + 1;
        }
        places[f].row = used[places[f].column]++;
        columns = places[f].column + 1 > columns ? places[f].column + 1 : columns;
        *ret_rows = used[places[f].column] > *ret_rows ? used[places[f].column] : *ret_rows;
    }
    free(used);
    return columns;
}

static void box(FILE *f, int column, int row, const char *name, const char *below, const char *kind)
{
    int x = MARGIN + column * (BOX_W + GAP_X), y = MARGIN + row * (BOX_H + GAP_Y);

    fprintf(f,
            "<g class=\"%s\"><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"8\"/>"
            "<text x=\"%d\" y=\"%d\" class=\"name\">%s</text>"
            "<text x=\"%d\" y=\"%d\">%s</text></g>\n",
            kind, x, y, BOX_W, BOX_H, x + BOX_W / 2, y + 23, name, x + BOX_W / 2, y + 41, below);
}

static void arrow(FILE *f, struct place a, struct place b, const char *label, const char *below,
                  bool reply)
{
    int x1 = MARGIN + a.column * (BOX_W + GAP_X) + BOX_W;
    int y1 = MARGIN + a.row * (BOX_H + GAP_Y) + BOX_H / 2 + (reply ? 10 : 0);
    int x2 = MARGIN + b.column * (BOX_W + GAP_X), y2 = MARGIN + b.row * (BOX_H + GAP_Y) + BOX_H / 2;
    int mid = (x1 + x2) / 2, text_y = (y1 + y2) / 2 - 6;

    if (reply) { /* back from the callee: beside the way there */
        x1 -= BOX_W;
        x2 += BOX_W;
        y2 += 10;
        text_y += 30;
    }
    fprintf(f, "<path d=\"M%d %d C%d %d %d %d %d %d\"%s/>\n", x1, y1, mid, y1, mid, y2,
            x2 + (reply ? 6 : -6), y2, reply ? " class=\"reply\"" : "");
    fprintf(f,
            "<text x=\"%d\" y=\"%d\" class=\"edge\">%s</text>"
            "<text x=\"%d\" y=\"%d\" class=\"slot\">%s</text>\n",
            mid, text_y, label, mid, text_y + 13, below);
}

static void svg_edges(FILE *f, const struct rr_workflow *wf, struct rr_worker *w,
                      const struct place *places)
{
    for (size_t n = 0; n < wf->n_edges; n++) {
        const struct rr_edge *e = &wf->edges[n];
        struct place from = e->from < 0 ? (struct place){0, 0} : places[e->from];
        char label[200], slot[64];

        snprintf(label, sizeof(label), "%s &#8594; %s, %s, %s", e->from < 0 ? "" : e->from_port,
                 e->to_port, channel_name(wf, e), rr_path_name(rr_worker_path(w, (int)n)));
        window_text(e, slot);
        arrow(f, from, places[e->to], label, slot, e->is_reply);
    }
}

static void svg_body(FILE *f, const struct rr_workflow *wf, struct rr_worker *w,
                     const struct place *places, int columns, int rows)
{
    struct place result = {columns, places[wf->result].row};
    int width = 2 * MARGIN + (columns + 1) * BOX_W + columns * GAP_X;
    int height = 2 * MARGIN + rows * BOX_H + (rows - 1) * GAP_Y + 20;

    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
            "height=\"%d\" role=\"img\">\n<title>workflow %s</title>\n"
            "<style>text{font:12px system-ui,sans-serif;text-anchor:middle;fill:#24292f}"
            ".name{font-weight:600;font-size:14px}.edge{font-size:11px}"
            ".slot{font-size:10px;fill:#57606a}"
            "rect{fill:#fff;stroke:#57606a;stroke-width:1.5}"
            ".window rect{fill:#dafbe1;stroke:#1a7f37}.buffer rect{fill:#fff8c5;stroke:#9a6700}"
            ".stdio rect{fill:#ffebe9;stroke:#cf222e}"
            "path{fill:none;stroke:#57606a;stroke-width:1.5;marker-end:url(#a)}"
            ".reply{stroke-dasharray:4 3}</style>\n"
            "<defs><marker id=\"a\" markerWidth=\"8\" markerHeight=\"8\" refX=\"6\" refY=\"4\" "
            "orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" style=\"fill:#57606a;stroke:none;"
            "marker-end:none\"/></marker></defs>\n"
            "<rect width=\"100%%\" height=\"100%%\" style=\"fill:#fff;stroke:none\"/>\n",
            width, height, width, height, wf->name);
    svg_edges(f, wf, w, places);
    arrow(f, places[wf->result], result, wf->result_port, "", false);
    box(f, 0, 0, "input", "file or stdin", "end");
    for (size_t n = 0; n < wf->n_functions; n++) {
        const char *tier = rr_tier_name(rr_worker_tier(w, (int)n));

        box(f, places[n].column, places[n].row, wf->functions[n].name, tier, tier);
    }
    box(f, result.column, result.row, "result", "file or stdout", "end");
    fputs("</svg>\n", f);
}

static int write_svg(const char *path, const struct rr_workflow *wf, struct rr_worker *w)
{
    struct place *places = calloc(wf->n_functions, sizeof(*places));
    struct rr_error err;
    int rows = 1, columns = places ? lay_out(wf, places, &rows) : -1;
    FILE *f = strcmp(path, "-") == 0 ? stdout : fopen(path, "we");
    bool failed = !f || columns < 0;

    if (!failed) {
        svg_body(f, wf, w, places, columns, rows);
        failed = ferror(f);
    }
    if (f && f != stdout)
        failed = fclose(f) != 0 || failed;
    free(places);
    if (!failed)
        return 0;
    rr_error_set(&err, RR_E_OUTPUT, "give a path that you may write to", "cannot write the SVG: %s",
                 strerror(errno));
    rr_error_at(&err, path, 0, 0);
    return cli_error(&err);
}

static int explain(int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'}, {"svg", required_argument, NULL, 's'}, {0}};
    struct rr_worker_options worker = {0};
    const char *svg = NULL;
    struct rr_workflow *wf;
    struct rr_worker *w;
    bool json = false;
    int c, r;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'j')
            json = true;
        else if (c == 's')
            svg = optarg;
        else
            return RR_E_USAGE;
    }
    if (argc - optind != 1)
        return cli_usage(&cli_explain, "name one workflow file");
    r = cli_open(argv[optind], &worker, json, &wf, &w);
    if (r)
        return r;
    if (svg)
        r = write_svg(svg, wf, w);
    if (json)
        print_json(wf, w);
    else if (!svg)
        print_text(wf, w);
    rr_worker_free(w);
    rr_workflow_free(wf);
    return r;
}

const struct cli_command cli_explain = {
    .name = "explain",
    .summary = "show a workflow's graph with tiers, paths and slots",
    .help = "Usage: roadrunner explain WORKFLOW [--json] [--svg FILE]\n\n"
            "Shows what will happen when the workflow runs: the tier of each function and why,\n"
            "and whether it has a process of its own; for each edge the channel (kernel between\n"
            "processes, else user), the path of large messages, and the window, the addresses at\n"
            "which its messages lie in every function.\n\n"
            "Options:\n"
            "  --json      machine-readable output\n"
            "  --svg FILE  draw the graph; - is stdout\n",
    .run = explain,
};
