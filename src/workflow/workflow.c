/* SPDX-License-Identifier: Apache-2.0 */
#include "workflow/workflow.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
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
        free_texts(f->allow);
    }
    for (size_t i = 0; i < wf->n_nodes; i++) {
        free(wf->nodes[i].name);
        free(wf->nodes[i].address);
        free(wf->nodes[i].identity);
        free(wf->nodes[i].next);
    }
    free(wf->nodes);
    for (size_t i = 0; i < wf->n_edges; i++) {
        free(wf->edges[i].from_port);
        free(wf->edges[i].to_port);
        free(wf->edges[i].again.sink);
    }
    free(wf->functions);
    free(wf->edges);
    free(wf->path);
    free(wf->name);
    free(wf->result_port);
    free(wf->dead_letters);
    free(wf->delivery.sink);
    free(wf->queue.path);
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

uint64_t rr_delivery_backoff_ns(const struct rr_delivery *d, unsigned int n)
{
    const uint64_t most = 24ull * 3600 * 1000000000;
    uint64_t factor = d->linear ? n : n > 32 ? 1ull << 32 : n ? 1ull << (n - 1) : 0;
    uint64_t ns;

    return __builtin_mul_overflow(d->backoff_ns, factor, &ns) ? most : rr_min(ns, most);
}

int rr_node_of(const struct rr_workflow *wf, int function)
{
    return function < 0 || function >= (int)wf->n_functions ? RR_NODE_HERE
                                                            : wf->functions[function].node;
}

enum rr_channel rr_edge_channel(const struct rr_workflow *wf, const struct rr_edge *e)
{
    if (rr_node_of(wf, e->from) != rr_node_of(wf, e->to))
        return RR_CHANNEL_NETWORK;
    /* No edge leads from a function to itself: that would be a cycle. */
    return wf->functions[e->to].isolated ||
                   (e->from != RR_NODE_INPUT && wf->functions[e->from].isolated)
               ? RR_CHANNEL_KERNEL
               : RR_CHANNEL_USER;
}

const char *rr_channel_name(enum rr_channel channel)
{
    static const char *const names[] = {"user", "kernel", "network"};

    return names[channel];
}

bool rr_edge_crosses(const struct rr_workflow *wf, const struct rr_edge *e)
{
    return rr_edge_channel(wf, e) != RR_CHANNEL_USER;
}

bool rr_workflow_has_nodes(const struct rr_workflow *wf)
{
    for (size_t i = 0; i < wf->n_functions; i++)
        if (wf->functions[i].node != RR_NODE_HERE)
            return true;
    return false;
}

void rr_workflow_isolate_all(struct rr_workflow *wf)
{
    for (size_t i = 0; i < wf->n_functions; i++)
        wf->functions[i].isolated = wf->functions[i].node == RR_NODE_HERE;
}

static void digest_text(EVP_MD_CTX *ctx, const char *text)
{
    EVP_DigestUpdate(ctx, text, strlen(text) + 1);
}

static void digest_number(EVP_MD_CTX *ctx, uint64_t n)
{
    n = htole64(n);
    EVP_DigestUpdate(ctx, &n, sizeof(n));
}

static void digest_all(EVP_MD_CTX *ctx, const struct rr_workflow *wf)
{
    if (wf->chain) { /* where a chain is run more is known of it than at its nodes */
        digest_text(ctx, wf->again ? "roadrunner chain 1, at least once" : "roadrunner chain 1");
        return;
    }
    digest_text(ctx, wf->name);
    for (size_t i = 0; i < wf->n_functions; i++) {
        digest_text(ctx, wf->functions[i].name);
        digest_text(ctx, wf->functions[i].node < 0 ? "" : wf->nodes[wf->functions[i].node].name);
    }
    for (size_t i = 0; i < wf->n_edges; i++) {
        const struct rr_edge *e = &wf->edges[i];

        digest_number(ctx, (uint64_t)(int64_t)e->from);
        digest_text(ctx, e->from_port);
        digest_number(ctx, (uint64_t)e->to);
        digest_text(ctx, e->to_port);
        digest_number(ctx, e->at_least_once ? e->attempts : 0);
        digest_number(ctx, e->max_bytes);
        digest_number(ctx, e->slot_bytes);
        digest_number(ctx, e->window);
    }
    digest_number(ctx, (uint64_t)wf->result);
    digest_text(ctx, wf->result_port);
    digest_number(ctx, wf->result_window);
}

int rr_workflow_digest(const struct rr_workflow *wf, char ret[RR_DIGEST_TEXT])
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int r = -ENOMEM;

    if (ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1) {
        digest_all(ctx, wf);
        r = EVP_DigestFinal_ex(ctx, sum, NULL) == 1 ? 0 : -ENOMEM;
    }
    EVP_MD_CTX_free(ctx);
    if (r == 0)
        rr_hex(sum, RR_DIGEST_TEXT / 2, ret);
    return r;
}

/* Which node we are must be known before files are looked at. */
static int find_here(struct reader *r, const char *node)
{
    struct rr_nearest near;
    char hint[160];

    rr_nearest_init(&near, node);
    for (size_t i = 0; i < r->wf->n_nodes; i++) {
        if (strcmp(r->wf->nodes[i].name, node) == 0) {
            r->wf->here = (int)i;
            return 0;
        }
        rr_nearest_offer(&near, r->wf->nodes[i].name);
    }
    snprintf(hint, sizeof(hint), near.best ? "did you mean '%.63s'?" : "add it under `nodes`",
             near.best);
    return rr_reader_fail(r, RR_E_INVALID, (struct rr_pos){1, 1}, hint,
                          "the workflow has no node '%.80s'", node);
}

static int read_all(struct reader *r, const char *text, size_t len, bool check_files,
                    const char *node)
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
    if (!rc && node)
        rc = find_here(r, node);
    if (!rc && check_files)
        rc = rr_check_files(r);
    return rc;
}

static int parse(const char *path, const char *text, size_t len, bool check_files, const char *node,
                 struct rr_workflow **ret, struct rr_error *err)
{
    struct rr_error spare;
    struct reader r = {.err = err ? err : &spare};
    int rc;

    r.wf = calloc(1, sizeof(*r.wf));
    if (!r.wf)
        return rr_reader_no_memory(&r);
    r.wf->here = RR_NODE_HERE;
    r.wf->path = strdup(path);
    rc = r.wf->path ? read_all(&r, text, len, check_files, node) : rr_reader_no_memory(&r);
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
    return parse(path, text, len, false, NULL, ret, err);
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
    return rr_workflow_load_at(path, NULL, ret, err);
}

int rr_workflow_load_at(const char *path, const char *node, struct rr_workflow **ret,
                        struct rr_error *err)
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
        rc = parse(path, text, len, true, node, ret, err);
    free(text);
    return rc;
}
