/* SPDX-License-Identifier: Apache-2.0 */
#include "workflow/workflow.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workflow/internal.h"

int rr_reader_fail(struct reader *r, enum rr_code code, struct rr_pos pos, const char *hint,
                   const char *fmt, ...)
{
    char text[sizeof(r->err->text)];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    rr_error_set(r->err, code, hint, "%s", text);
    rr_error_at(r->err, r->wf->path, pos.line, pos.column);
    return code;
}

int rr_reader_no_memory(struct reader *r)
{
    return rr_error_set(r->err, RR_E_SYSTEM, "free some memory and try again",
                        "not enough memory to read the workflow");
}

static void free_texts(char **texts)
{
    for (char **text = texts; text && *text; text++)
        free(*text);
    free(texts);
}

void rr_workflow_free(struct rr_workflow *wf)
{
    if (!wf)
        return;
    for (size_t i = 0; i < wf->n_functions; i++) {
        struct rr_function *f = &wf->functions[i];

        for (size_t k = 0; k < f->n_folders; k++) {
            free(f->folders[k].host);
            free(f->folders[k].guest);
        }
        free(f->folders);
        free_texts(f->env);
        free_texts(f->args);
        free_texts(f->calls);
        free(f->name);
        free(f->module);
    }
    for (size_t i = 0; i < wf->n_edges; i++) {
        free(wf->edges[i].from_port);
        free(wf->edges[i].to_port);
    }
    free(wf->functions);
    free(wf->edges);
    free(wf->path);
    free(wf->name);
    free(wf->result_port);
    free(wf->dead_letters);
    free(wf->order);
    free(wf);
}

int rr_workflow_find(const struct rr_workflow *wf, const char *name)
{
    for (size_t i = 0; i < wf->n_functions; i++) {
        if (strcmp(wf->functions[i].name, name) == 0)
            return (int)i;
    }
    return -1;
}

bool rr_edge_crosses(const struct rr_workflow *wf, const struct rr_edge *e)
{
    /* No edge leads from a function to itself: that would be a cycle. */
    return wf->functions[e->to].isolated ||
           (e->from != RR_NODE_INPUT && wf->functions[e->from].isolated);
}

void rr_workflow_isolate_all(struct rr_workflow *wf)
{
    for (size_t i = 0; i < wf->n_functions; i++)
        wf->functions[i].isolated = true;
}

static int read_all(struct reader *r, const char *text, size_t len, bool check_files)
{
    struct yaml_doc doc;
    int rc = rr_yaml_read(&doc, r->wf->path, text, len, r->err);

    if (rc)
        return rc;
    rc = rr_parse_tree(r, doc.root);
    rr_yaml_deinit(&doc);
    if (!rc)
        rc = rr_check_graph(r);
    if (!rc)
        rc = rr_layout_assign(r);
    if (!rc && check_files)
        rc = rr_check_files(r);
    return rc;
}

static int parse(const char *path, const char *text, size_t len, bool check_files,
                 struct rr_workflow **ret, struct rr_error *err)
{
    struct rr_error spare;
    struct reader r = {.err = err ? err : &spare};
    int rc;

    r.wf = calloc(1, sizeof(*r.wf));
    if (!r.wf)
        return rr_reader_no_memory(&r);
    r.wf->path = strdup(path);
    rc = r.wf->path ? read_all(&r, text, len, check_files) : rr_reader_no_memory(&r);
    free(r.by_name);
    free(r.calls_nodes);
    if (rc)
        rr_workflow_free(r.wf);
    else
        *ret = r.wf;
    return rc;
}

int rr_workflow_parse(const char *path, const char *text, size_t len, struct rr_workflow **ret,
                      struct rr_error *err)
{
    return parse(path, text, len, false, ret, err);
}

static int fail_file(struct rr_error *err, const char *path, int error)
{
    rr_error_set(err, RR_E_NOINPUT, "give the path of a workflow file that you may read",
                 "cannot read the workflow: %s", strerror(error));
    rr_error_at(err, path, 0, 0);
    return RR_E_NOINPUT;
}

int rr_workflow_load(const char *path, struct rr_workflow **ret, struct rr_error *err)
{
    size_t len = 0, room = RR_WORKFLOW_MAX_FILE + 1; /* one more than allowed tells too long */
    ssize_t n = 1;
    char *text;
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return fail_file(err, path, errno);
    text = malloc(room);
    if (!text) {
        close(fd);
        return rr_error_set(err, RR_E_SYSTEM, "free some memory and try again",
                            "not enough memory to read the workflow");
    }
    while (n != 0 && len < room && !rc) {
        n = read(fd, text + len, room - len);
        if (n > 0)
            len += (size_t)n;
        else if (n < 0 && errno != EINTR)
            rc = fail_file(err, path, errno);
    }
    close(fd);
    if (!rc)
        rc = parse(path, text, len, true, ret, err);
    free(text);
    return rc;
}
