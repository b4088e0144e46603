/* SPDX-License-Identifier: Apache-2.0 */
/* Rules for the graph as a whole, the order of its functions, and the files it names. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "workflow/internal.h"

/* "reply:NAME" must fit the 64 bytes that the guest ABI has for the name of a port. */
#define MAX_CALLEE_NAME 57

static const char *name_of(const struct reader *r, int function)
{
    return function == RR_NODE_INPUT ? "input" : r->wf->functions[function].name;
}

/*
 * A callee gets requests and answers them: nothing else may feed it or take its
 * replies, or a message would reach it that nobody waits for.
 */
static int check_callees(struct reader *r)
{
    struct rr_workflow *wf = r->wf;
    const char *hint = "give the callee its own entry under functions; two may use one module";
    int *called_by = calloc(wf->n_functions, sizeof(*called_by)); /* caller + 1 */
    int rc = 0;

    if (!called_by)
        return rr_reader_no_memory(r);
    for (size_t i = 0; i < wf->n_edges && !rc; i++) {
        const struct rr_edge *e = &wf->edges[i];

        if (!e->is_call)
            continue;
        called_by[e->to] = e->from + 1;
        if (strlen(name_of(r, e->to)) > MAX_CALLEE_NAME)
            rc = rr_reader_fail(r, RR_E_INVALID, e->pos, "choose a shorter name",
                                "the name of '%s' is too long for a function that is called: "
                                "at most %d characters",
                                name_of(r, e->to), MAX_CALLEE_NAME);
    }
    for (size_t i = 0; i < wf->n_edges && !rc; i++) {
        const struct rr_edge *e = &wf->edges[i];
        int callee = -1;

        if (e->is_call || e->is_reply)
            continue;
        if (e->from >= 0 && called_by[e->from])
            callee = e->from;
        if (called_by[e->to])
            callee = e->to;
        if (callee >= 0)
            rc = rr_reader_fail(r, RR_E_INVALID, e->pos, hint,
                                "'%s' is called by '%s', so it cannot have edges as well",
                                name_of(r, callee), name_of(r, called_by[callee] - 1));
    }
    if (!rc && called_by[wf->result])
        rc = rr_reader_fail(r, RR_E_INVALID, wf->result_pos, hint,
                            "'%s' is called by '%s', so it cannot give the result",
                            name_of(r, wf->result), name_of(r, called_by[wf->result] - 1));
    free(called_by);
    return rc;
}

static int compare_targets(const void *a, const void *b)
{
    const struct rr_edge *ea = *(const struct rr_edge *const *)a;
    const struct rr_edge *eb = *(const struct rr_edge *const *)b;
    int order = (ea->to > eb->to) - (ea->to < eb->to);

    if (!order)
        order = strcmp(ea->to_port, eb->to_port);
    return order ? order : (ea > eb) - (ea < eb);
}

static int compare_pairs(const void *a, const void *b)
{
    const struct rr_edge *ea = *(const struct rr_edge *const *)a;
    const struct rr_edge *eb = *(const struct rr_edge *const *)b;
    int order = (ea->to > eb->to) - (ea->to < eb->to);

    if (!order)
        order = (ea->from > eb->from) - (ea->from < eb->from);
    if (!order)
        order = strcmp(ea->from_port, eb->from_port);
    return order ? order : (ea > eb) - (ea < eb);
}

static int two_into_one_port(struct reader *r, const struct rr_edge *a, const struct rr_edge *b)
{
    char hint[256];

    snprintf(hint, sizeof(hint), "give each its own port, as in {from: %.63s, to: %.63s.second}",
             name_of(r, b->from), name_of(r, b->to));
    return rr_reader_fail(r, RR_E_INVALID, b->pos, hint,
                          "two edges lead into port '%s' of '%s', the other is in line %u",
                          b->to_port, name_of(r, b->to), a->pos.line);
}

/* One message has one address, so a function cannot have it on two ports at once. */
static int same_message_twice(struct reader *r, const struct rr_edge *a, const struct rr_edge *b)
{
    return rr_reader_fail(r, RR_E_INVALID, b->pos,
                          "keep one of the two edges, or send the second copy on another port",
                          "the message of '%s%s%s' reaches '%s' twice, on ports '%s' and '%s'",
                          name_of(r, b->from), b->from < 0 ? "" : ".",
                          b->from < 0 ? "" : b->from_port, name_of(r, b->to), a->to_port,
                          b->to_port);
}

static int check_ports(struct reader *r)
{
    struct rr_workflow *wf = r->wf;
    const struct rr_edge **sorted = calloc(wf->n_edges, sizeof(struct rr_edge *));
    size_t n = 0;
    int rc = 0;

    if (!sorted)
        return rr_reader_no_memory(r);
    for (size_t i = 0; i < wf->n_edges; i++) {
        if (!wf->edges[i].is_call && !wf->edges[i].is_reply)
            sorted[n++] = &wf->edges[i];
    }
    qsort(sorted, n, sizeof(struct rr_edge *), compare_targets);
    for (size_t i = 1; i < n && !rc; i++) {
        const struct rr_edge *a = sorted[i - 1], *b = sorted[i];

        if (a->to == b->to && strcmp(a->to_port, b->to_port) == 0)
            rc = two_into_one_port(r, a, b);
    }
    qsort(sorted, n, sizeof(struct rr_edge *), compare_pairs);
    for (size_t i = 1; i < n && !rc; i++) {
        const struct rr_edge *a = sorted[i - 1], *b = sorted[i];

        if (a->to == b->to && a->from == b->from && strcmp(a->from_port, b->from_port) == 0)
            rc = same_message_twice(r, a, b);
    }
    free(sorted);
    return rc;
}

static int check_inputs(struct reader *r)
{
    struct rr_workflow *wf = r->wf;
    bool *fed = calloc(wf->n_functions, sizeof(*fed));
    char hint[256];
    int rc = 0;

    if (!fed)
        return rr_reader_no_memory(r);
    for (size_t i = 0; i < wf->n_edges; i++) {
        if (!wf->edges[i].is_reply)
            fed[wf->edges[i].to] = true;
    }
    /* Without cycles it is enough that each has an input: follow them back, and one is `input`. */
    for (size_t i = 0; i < wf->n_functions && !rc; i++) {
        const struct rr_function *f = &wf->functions[i];

        if (fed[i])
            continue;
        snprintf(hint, sizeof(hint), "add {from: input, to: %s}, or remove the function", f->name);
        rc = rr_reader_fail(r, RR_E_INVALID, f->pos, hint,
                            "no message can reach '%s': no edge leads to it and nothing calls it",
                            f->name);
    }
    free(fed);
    return rc;
}

/* What runs before what: the edges of the file and the requests, but not the replies. */
static bool orders(const struct rr_edge *e)
{
    return !e->is_reply && e->from >= 0;
}

/* "a -> b -> c -> a", its middle left out when it is long; @back lists them from last to first. */
static void cycle_text(const struct reader *r, const int *back, size_t n, char *text, size_t size)
{
    const size_t shown = 10; /* of up to 63 letters each */
    size_t used = 0;

    for (size_t i = n; i > 0; i--) {
        if (n > shown && i == n - shown / 2) {
            used += (size_t)snprintf(text + used, size - used, "... -> ");
            i = shown / 2;
        }
        used += (size_t)snprintf(text + used, size - used, "%s -> ", name_of(r, back[i - 1]));
    }
    snprintf(text + used, size - used, "%s", name_of(r, back[n - 1]));
}

static int cycle_fail(struct reader *r, const struct rr_edge *last, const int *back, size_t n)
{
    char path[800];

    cycle_text(r, back, n, path, sizeof(path));
    if (last->is_call)
        return rr_reader_fail(r, RR_E_INVALID, last->pos,
                              "remove it from `calls`: a function waits for the one it calls",
                              "functions call each other in a cycle: %s", path);
    return rr_reader_fail(r, RR_E_INVALID, last->pos,
                          "remove this edge: messages flow one way, from the input to the result",
                          "edges form a cycle: %s", path);
}

/*
 * Every function left in @waits (> 0) has a predecessor that is left too, so
 * walking back must come to a function seen before: that is a cycle.
 */
static int report_cycle(struct reader *r, const unsigned int *waits)
{
    struct rr_workflow *wf = r->wf;
    const struct rr_edge **before = calloc(wf->n_functions, sizeof(struct rr_edge *));
    const struct rr_edge *last = NULL;
    bool *seen = calloc(wf->n_functions, sizeof(*seen));
    int *back = calloc(wf->n_functions, sizeof(*back));
    size_t n = 0;
    int f = 0, rc;

    if (before && seen && back) {
        for (size_t i = 0; i < wf->n_edges; i++) {
            const struct rr_edge *e = &wf->edges[i];

            if (orders(e) && waits[e->from] && waits[e->to])
                before[e->to] = e;
        }
        while (!waits[f])
            f++;
        for (; !seen[f]; f = before[f]->from)
            seen[f] = true;
        /* It is reported where it closes: at its last edge in the file. */
        for (int g = f; !last || g != f; g = before[g]->from) {
            if (!last || before[g] > last)
                last = before[g];
        }
        for (f = last->from; f != last->to; f = before[f]->from)
            back[n++] = f;
        back[n++] = last->to;
        rc = cycle_fail(r, last, back, n);
    } else {
        rc = rr_reader_no_memory(r);
    }
    free(before);
    free(seen);
    free(back);
    return rc;
}

/* Fills wf->order, first come first served, so that it follows the file where it may. */
static int order_functions(struct reader *r)
{
    struct rr_workflow *wf = r->wf;
    unsigned int *waits = calloc(wf->n_functions, sizeof(*waits)); /* for so many others */
    size_t n = 0;
    int rc = 0;

    wf->order = calloc(wf->n_functions, sizeof(*wf->order));
    if (!waits || !wf->order) {
        free(waits);
        return rr_reader_no_memory(r);
    }
    for (size_t i = 0; i < wf->n_edges; i++) {
        if (orders(&wf->edges[i]))
            waits[wf->edges[i].to]++;
    }
    for (size_t i = 0; i < wf->n_functions; i++) {
        if (!waits[i])
            wf->order[n++] = (int)i;
    }
    for (size_t done = 0; done < n; done++) {
        for (size_t i = 0; i < wf->n_edges; i++) {
            const struct rr_edge *e = &wf->edges[i];

            if (orders(e) && e->from == wf->order[done] && --waits[e->to] == 0)
                wf->order[n++] = e->to;
        }
    }
    if (n < wf->n_functions)
        rc = report_cycle(r, waits);
    free(waits);
    return rc;
}

/* Inputs come together, and so they come again. */
static int check_again(struct reader *r)
{
    const struct rr_workflow *wf = r->wf;
    const struct rr_edge **first = calloc(wf->n_functions, sizeof(struct rr_edge *));
    int rc = 0;

    if (!first)
        return rr_reader_no_memory(r);
    for (size_t i = 0; i < wf->n_edges && !rc; i++) {
        const struct rr_edge *e = &wf->edges[i], *f = first[e->to];

        if (e->is_call || e->is_reply)
            continue;
        if (f && f->again.given != e->again.given)
            rc = rr_reader_fail(r, RR_E_INVALID, e->again.given ? f->pos : e->pos,
                                "add `delivery: {...}` to all edges into it, or to none",
                                "'%s' gets this message together with others that are delivered "
                                "again when it fails",
                                name_of(r, e->to));
        first[e->to] = e;
    }
    free(first);
    return rc;
}

/* What the result is made of cannot be missing. */
static int check_optional(struct reader *r)
{
    const struct rr_workflow *wf = r->wf;
    bool *needed = calloc(wf->n_functions, sizeof(*needed));
    int rc = 0;

    if (!needed)
        return rr_reader_no_memory(r);
    needed[wf->result] = true;
    for (size_t n = wf->n_functions; n > 0; n--) /* from last to first */
        for (size_t i = 0; i < wf->n_edges; i++) {
            const struct rr_edge *e = &wf->edges[i];

            if (orders(e) && e->from == wf->order[n - 1] && needed[e->to])
                needed[e->from] = true;
        }
    for (size_t i = 0; i < wf->n_edges && !rc; i++) {
        const struct rr_edge *e = &wf->edges[i];

        if (e->optional && needed[e->to])
            rc = rr_reader_fail(r, RR_E_INVALID, e->pos,
                                "remove `optional`, or take the result from another function",
                                "a message to '%s' cannot be optional: the result is made of it",
                                name_of(r, e->to));
    }
    free(needed);
    return rc;
}

int rr_check_graph(struct reader *r)
{
    int rc = check_inputs(r);

    if (!rc)
        rc = check_callees(r);
    if (!rc)
        rc = check_ports(r);
    if (!rc)
        rc = order_functions(r);
    if (!rc)
        rc = check_again(r);
    return rc ? rc : check_optional(r);
}

static int check_module(struct reader *r, const struct rr_function *f)
{
    struct stat st;

    if (stat(f->module, &st) < 0)
        return rr_reader_fail(
            r, RR_E_NOINPUT, f->module_pos,
            errno == ENOENT ? "build it, or correct the path, which is relative to this file"
                            : "give a path that you may read",
            "the module of '%s' cannot be read: %.400s: %s", f->name, f->module, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return rr_reader_fail(r, RR_E_NOINPUT, f->module_pos, "name a .wasm file",
                              "the module of '%s' is not a regular file: %.400s", f->name,
                              f->module);
    if (faccessat(AT_FDCWD, f->module, R_OK, AT_EACCESS) < 0)
        return rr_reader_fail(r, RR_E_NOINPUT, f->module_pos, "give a path that you may read",
                              "the module of '%s' cannot be read: %.400s: %s", f->name, f->module,
                              strerror(errno));
    return 0;
}

static int check_folder(struct reader *r, const struct rr_function *f, const struct rr_folder *dir)
{
    int mode = R_OK | X_OK | (dir->writable ? W_OK : 0);
    struct stat st;

    if (stat(dir->host, &st) < 0)
        return rr_reader_fail(
            r, RR_E_NOINPUT, dir->host_pos,
            errno == ENOENT ? "create it, or correct the path, which is relative to this file"
                            : "give a folder that you may read",
            "a folder of '%s' cannot be opened: %.400s: %s", f->name, dir->host, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return rr_reader_fail(r, RR_E_NOINPUT, dir->host_pos, "name the folder that holds it",
                              "a folder of '%s' is not a directory: %.400s", f->name, dir->host);
    if (faccessat(AT_FDCWD, dir->host, mode, AT_EACCESS) < 0)
        return rr_reader_fail(r, RR_E_NOINPUT, dir->host_pos,
                              dir->writable ? "give a folder that you may read and write"
                                            : "give a folder that you may read",
                              "a folder of '%s' cannot be opened: %.400s: %s", f->name, dir->host,
                              strerror(errno));
    return 0;
}

/* The file is made when the first letter comes; until then its folder must let us. */
static int check_dead_letters(struct reader *r)
{
    const char *path = r->wf->dead_letters, *slash = strrchr(path, '/');
    const char *hint = "create its folder, or correct the path, which is relative to this file";
    char folder[PATH_MAX];
    struct stat st;
    int error;

    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path + 1) : 1,
             slash ? path : ".");
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return rr_reader_fail(r, RR_E_NOINPUT, r->wf->dead_letters_pos, "name a file in a folder",
                              "dead_letters is not a regular file: %.400s", path);
    if (faccessat(AT_FDCWD, folder, W_OK | X_OK, AT_EACCESS) == 0 &&
        (faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == 0 || errno == ENOENT))
        return 0;
    error = errno;
    return rr_reader_fail(r, RR_E_NOINPUT, r->wf->dead_letters_pos,
                          error == ENOENT ? hint : "give a path in a folder that you may write to",
                          "dead_letters cannot be written: %.400s: %s", path, strerror(error));
}

/* The server makes it, and looks whether it may write there. */
static int check_queue(struct reader *r)
{
    const char *path = r->wf->queue.path, *slash = strrchr(path, '/');
    struct rr_pos pos = r->wf->queue.path_pos;
    char folder[PATH_MAX];
    struct stat st;

    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path + 1) : 1,
             slash ? path : ".");
    if (stat(path, &st) == 0 ? !S_ISDIR(st.st_mode) : errno == ENOTDIR)
        return rr_reader_fail(r, RR_E_NOINPUT, pos, "name a folder, which may be yet to make",
                              "the queue's path is no folder: %.400s", path);
    if (stat(path, &st) < 0 && stat(folder, &st) < 0)
        return rr_reader_fail(r, RR_E_NOINPUT, pos,
                              "create its folder, or correct the path, which is relative to this "
                              "file",
                              "the queue cannot be made: %.400s: %s", path, strerror(errno));
    return 0;
}

int rr_check_files(struct reader *r)
{
    int rc = 0;

    for (size_t i = 0; i < r->wf->n_functions && !rc; i++) {
        const struct rr_function *f = &r->wf->functions[i];

        if (f->node != r->wf->here)
            continue;
        rc = check_module(r, f);
        for (size_t k = 0; k < f->n_folders && !rc; k++)
            rc = check_folder(r, f, &f->folders[k]);
    }
    if (!rc && r->wf->dead_letters && r->wf->here == RR_NODE_HERE)
        rc = check_dead_letters(r);
    if (!rc && r->wf->queue.path && r->wf->here == RR_NODE_HERE)
        rc = check_queue(r);
    return rc;
}
