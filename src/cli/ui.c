/* SPDX-License-Identifier: Apache-2.0 */
/* What people look at: errors, tables, progress bars, JSON. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "cli/cli.h"

const char *const cli_cached_names[] = {"off", "miss", "hit", "rebuilt"};

bool cli_colour(FILE *f)
{
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");

    return isatty(fileno(f)) && !(no && *no) && !(term && strcmp(term, "dumb") == 0);
}

/* Bytes of guests and files on a terminal: no control characters. */
static void put_text(FILE *f, const char *text)
{
    for (; *text; text++)
        fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, f);
}

int cli_error(const struct rr_error *err)
{
    bool colour = cli_colour(stderr);

    fprintf(stderr, "roadrunner: %serror:%s ", colour ? "\033[1;31m" : "", colour ? "\033[0m" : "");
    if (err->file[0]) {
        put_text(stderr, err->file);
        if (err->line)
            fprintf(stderr, ":%u:%u", err->line, err->column);
        fputs(": ", stderr);
    }
    put_text(stderr, err->text);
    fputc('\n', stderr);
    if (err->hint[0]) {
        fprintf(stderr, "  %shint:%s ", colour ? "\033[1m" : "", colour ? "\033[0m" : "");
        put_text(stderr, err->hint);
        fputc('\n', stderr);
    }
    return (int)err->code;
}

struct json_object *cli_json_error(const struct rr_error *err)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "code", json_object_new_string(rr_error_name(err->code)));
    json_object_object_add(o, "exit_status", json_object_new_int((int)err->code));
    if (err->file[0])
        json_object_object_add(o, "file", json_object_new_string(err->file));
    if (err->line) {
        json_object_object_add(o, "line", json_object_new_int64(err->line));
        json_object_object_add(o, "column", json_object_new_int64(err->column));
    }
    json_object_object_add(o, "text", json_object_new_string(err->text));
    json_object_object_add(o, "hint", json_object_new_string(err->hint));
    return o;
}

int cli_report_error(const struct rr_error *err, bool json)
{
    if (json) {
        struct json_object *o = json_object_new_object();

        json_object_object_add(o, "error", cli_json_error(err));
        cli_json_print(o, stdout);
    }
    return cli_error(err);
}

int cli_usage(const struct cli_command *c, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "roadrunner %s: ", c->name);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\n  hint: roadrunner %s --help\n", c->name);
    return RR_E_USAGE;
}

void cli_json_print(struct json_object *o, FILE *f)
{
    fprintf(f, "%s\n",
            json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
                                                  JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(o);
}

void cli_table_row(struct cli_table *t, const char *const *cells, unsigned int n)
{
    if (t->n_rows == t->room) {
        unsigned int room = t->room ? 2 * t->room : 16;
        char **grown = reallocarray(t->cells, (size_t)room * n, sizeof(char *));

        if (!grown)
            return; /* a table for people: rather short than fatal */
        t->cells = grown;
        t->room = room;
        t->n_columns = n;
    }
    for (unsigned int k = 0; k < n; k++)
        t->cells[t->n_rows * n + k] = strdup(cells[k]);
    t->n_rows++;
}

void cli_table_print(struct cli_table *t, FILE *f, const char *right)
{
    bool colour = cli_colour(f);

    for (unsigned int row = 0; row < t->n_rows; row++) {
        fputs(row == 0 && colour ? "\033[1m" : "", f);
        for (unsigned int k = 0; k < t->n_columns; k++) {
            const char *cell = t->cells[row * t->n_columns + k];
            int width = 0;

            for (unsigned int r = 0; r < t->n_rows; r++) {
                const char *other = t->cells[r * t->n_columns + k];

                width = other && (int)strlen(other) > width ? (int)strlen(other) : width;
            }
            if (right[k] != 'r')
                width = k + 1 == t->n_columns ? 0 : -width;
            fprintf(f, "%s%*s", k ? "  " : "", width, cell ? cell : "");
        }
        fputs(row == 0 && colour ? "\033[0m\n" : "\n", f);
    }
    for (unsigned int k = 0; k < t->n_rows * t->n_columns; k++)
        free(t->cells[k]);
    free(t->cells);
    *t = (struct cli_table){0};
}

void cli_progress_show(struct cli_progress *p, const char *what, uint64_t done, uint64_t total)
{
    uint64_t now = rr_now_ns();
    char bar[31];
    size_t full;

    if (!p->began_ns) {
        p->began_ns = now;
        p->off = p->off || !isatty(STDERR_FILENO);
    }
    if (p->off || now - p->began_ns < 1000000000u || now - p->drawn_ns < 100000000u)
        return;
    p->drawn_ns = now;
    p->drawn = true;
    if (!total) {
        fprintf(stderr, "\r\033[K%s %s", what, rr_bytes_text(done));
        return;
    }
    full = (size_t)(30.0 * (double)rr_min(done, total) / (double)total);
    memset(bar, '.', 30);
    memset(bar, '#', full);
    bar[30] = 0;
    fprintf(stderr, "\r\033[K%s [%s] %3.0f %%", what, bar, 100.0 * (double)done / (double)total);
}

void cli_progress_clear(struct cli_progress *p)
{
    if (p->drawn)
        fputs("\r\033[K", stderr);
    p->drawn = false;
    p->began_ns = 0;
}

void cli_edge_ends(const struct rr_workflow *wf, const struct rr_edge *e, char from[160],
                   char to[160])
{
    if (e->from == RR_NODE_INPUT)
        snprintf(from, 160, "input");
    else if (strcmp(e->from_port, "out") == 0)
        snprintf(from, 160, "%s", wf->functions[e->from].name);
    else
        snprintf(from, 160, "%s.%s", wf->functions[e->from].name, e->from_port);
    if (strcmp(e->to_port, "in") == 0)
        snprintf(to, 160, "%s", wf->functions[e->to].name);
    else
        snprintf(to, 160, "%s.%s", wf->functions[e->to].name, e->to_port);
}

int cli_open(const char *path, const struct rr_worker_options *options, bool json,
             struct rr_workflow **ret_wf, struct rr_worker **ret)
{
    struct rr_workflow *wf = NULL;
    struct rr_error err = {0};
    int r = rr_workflow_load(path, &wf, &err);

    if (r == 0)
        r = rr_worker_new(wf, options, ret, &err);
    if (r) {
        rr_workflow_free(wf);
        return cli_report_error(&err, json);
    }
    *ret_wf = wf;
    return 0;
}
