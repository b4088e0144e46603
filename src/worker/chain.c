/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/chain.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "channel/net.h"

#define MAX_ADDRESS 300
#define LOOK_NS 50000000u

struct hop {
    char name[RR_WORKFLOW_MAX_NAME + 1], address[MAX_ADDRESS];
    char next[RR_WORKFLOW_MAX_NAME + MAX_ADDRESS];
};

/* --- asking ---------------------------------------------------------------------------------- */

struct asker {
    const struct rr_chain *chain;
    const volatile bool *stop;
    struct rr_net *net;
    struct hop *hop;
    bool answered;
    struct rr_error why;
};

static bool name_valid(const char *name, size_t len)
{
    if (len == 0 || len > RR_WORKFLOW_MAX_NAME || !isalpha((unsigned char)name[0]))
        return false;
    for (size_t n = 1; n < len; n++)
        if (!isalnum((unsigned char)name[n]) && name[n] != '_' && name[n] != '-')
            return false;
    return true;
}

bool rr_chain_next_valid(const char *next)
{
    size_t len = strcspn(next, "@"), rest = strlen(next + len);

    for (const char *p = next; *p; p++)
        if ((unsigned char)*p <= ' ' || *p == '"' || *p == '\\')
            return false;
    return name_valid(next, len) && (rest == 0 || (rest > 3 && rest < MAX_ADDRESS));
}

static int on_admit(void *user, struct rr_net_peer *peer, struct rr_error *err)
{
    struct asker *a = user;
    const char *node = rr_net_peer_text(peer, "node"), *next = rr_net_peer_text(peer, "next");

    if (!next || (*next && !rr_chain_next_valid(next)))
        rr_error_set(&a->why, RR_E_INVALID,
                     "start it with the annotation roadrunner.dev/function, without "
                     "roadrunner.dev/workflow",
                     "what answers there is no function of a chain");
    else if (!node || strcmp(node, a->hop->name) != 0)
        rr_error_set(&a->why, RR_E_INVALID, "correct its address in roadrunner.dev/next",
                     "what answers there is another function");
    else
        a->why.code = RR_OK;
    if (a->why.code) {
        *err = a->why;
        return (int)a->why.code;
    }
    snprintf(a->hop->next, sizeof(a->hop->next), "%s", next);
    a->answered = true;
    return 0;
}

static void on_down(void *user, struct rr_net_peer *peer, const struct rr_error *why, bool gone)
{
    struct asker *a = user;

    (void)peer;
    (void)gone;
    if (a->why.code != RR_E_INVALID)
        a->why = *why;
}

/* We only ask. */
static int on_place(void *user, struct rr_net_peer *peer, const struct rr_net_packet *p,
                    struct rr_region **ret, struct rr_error *err)
{
    (void)user;
    (void)peer;
    (void)p;
    (void)ret;
    return rr_error_set(err, RR_E_INVALID, "restart it", "a message comes to nobody");
}

static void on_message(void *user, struct rr_net_peer *peer, struct rr_net_packet *p)
{
    struct rr_error err;

    (void)user;
    rr_region_put(rr_take(p->region));
    rr_error_set(&err, RR_E_INVALID, "restart it", "a message comes to nobody");
    rr_net_peer_reset(peer, &err);
}

static bool is_unix(const char *address)
{
    return strncmp(address, "unix:", 5) == 0;
}

static int open_net(struct asker *a, struct rr_error *err)
{
    const struct rr_workflow any = {.chain = true, .again = a->chain->again};
    struct rr_wire_text texts[2] = {{.key = "workflow", .value = "chain"}, {.key = "digest"}};
    struct rr_net_options o = {
        .events = {.place = on_place, .message = on_message, .admit = on_admit, .down = on_down},
        .user = a,
        .plain = !a->chain->tls,
        .texts = texts,
        .n_texts = 2,
        .backoff_max_ns = 200000000,
    };

    if (rr_workflow_digest(&any, texts[1].value) < 0)
        return rr_error_no_memory(err);
    if (a->chain->tls)
        o.tls = *a->chain->tls;
    return rr_net_new(&o, &a->net, err);
}

static int missing(const struct asker *a, struct rr_error *err)
{
    const struct hop *h = a->hop;
    char hint[sizeof(err->hint)];

    snprintf(hint, sizeof(hint),
             is_unix(h->address)
                 ? "start a container with the annotation roadrunner.dev/function=%s in the same "
                   "trust domain, or say where it is: %s@HOST:PORT"
                 : "is it started, with roadrunner.dev/listen, and is this its address?",
             h->name, h->name);
    return rr_error_set(err, RR_E_DIED, a->why.code == RR_E_INVALID ? a->why.hint : hint,
                        "function '%s' cannot be reached at %s: %s", h->name,
                        is_unix(h->address) ? "this node" : h->address,
                        a->why.code ? a->why.text : "it does not answer");
}

static int ask(struct asker *a, uint64_t until_ns, struct rr_error *err)
{
    struct rr_net_peer *peer = NULL;
    int r;

    a->answered = false;
    a->why = (struct rr_error){0};
    if (!is_unix(a->hop->address) && !a->chain->tls && !a->chain->plain)
        return rr_error_set(err, RR_E_USAGE,
                            "mount tls.crt, tls.key and ca.crt at /etc/roadrunner/tls, or set "
                            "roadrunner.dev/plain to \"true\" if whoever is on that network may "
                            "read and change messages",
                            "messages to '%s' at %s are not protected", a->hop->name,
                            a->hop->address);
    r = rr_net_dial(a->net, a->hop->address, &peer, err);
    while (r == 0 && !a->answered) {
        if (rr_net_pump(a->net, true, err) < 0)
            r = (int)err->code;
        else if (a->stop && *a->stop)
            r = rr_error_set(err, RR_E_CANCELLED, "", "interrupted");
        else if (a->why.code == RR_E_INVALID || rr_now_ns() > until_ns)
            r = missing(a, err);
        else if (!a->answered)
            rr_net_sleep(a->net, rr_now_ns() + LOOK_NS);
    }
    rr_net_peer_free(peer);
    return r;
}

/* --- the line -------------------------------------------------------------------------------- */

/* @from: who says it; NULL: we. */
static int resolve(const struct rr_chain *c, const struct hop *from, const char *next,
                   struct hop *ret, struct rr_error *err)
{
    const char *at = strchr(next, '@');
    size_t len = at ? (size_t)(at - next) : strlen(next);

    *ret = (struct hop){0};
    if (!rr_chain_next_valid(next))
        return rr_error_set(err, RR_E_INVALID, "write NAME or NAME@HOST:PORT",
                            "roadrunner.dev/next: '%.80s' names no function", next);
    memcpy(ret->name, next, len);
    if (at)
        snprintf(ret->address, sizeof(ret->address), "%s", at + 1);
    else if (!c->dir || (from && !is_unix(from->address))) /* its domain may be another than ours */
        return rr_error_set(err, RR_E_INVALID, "write NAME@HOST:PORT",
                            "function '%s' has no address, and %s", ret->name,
                            from ? "who names it is not of this trust domain"
                                 : "this container has no trust domain");
    else
        snprintf(ret->address, sizeof(ret->address), "unix:%s/%s", c->dir, ret->name);
    return 0;
}

static int follow(const struct rr_chain *c, const volatile bool *stop, struct hop *hops,
                  size_t *ret_n, struct rr_error *err)
{
    struct asker a = {.chain = c, .stop = stop};
    uint64_t until = rr_now_ns() + c->patience_ns;
    const char *next = c->next;
    size_t n = 0;
    int r = open_net(&a, err);

    while (r == 0 && next && *next) {
        if (n == RR_CHAIN_MAX)
            r = rr_error_set(err, RR_E_LIMIT, "is it a ring?",
                             "the chain has more than %d functions", RR_CHAIN_MAX);
        if (r == 0)
            r = resolve(c, n ? &hops[n - 1] : NULL, next, &hops[n], err);
        for (size_t k = 0; k < n && r == 0; k++)
            if (strcmp(hops[k].name, hops[n].name) == 0)
                r = rr_error_set(err, RR_E_INVALID, "correct roadrunner.dev/next of one of them",
                                 "the chain is a ring: '%s' comes again after '%s'", hops[n].name,
                                 hops[n - 1].name);
        a.hop = &hops[n];
        if (r == 0)
            r = ask(&a, until, err);
        if (r == 0)
            next = hops[n++].next;
    }
    rr_net_free(a.net);
    *ret_n = n;
    return r;
}

/* --- the workflow ---------------------------------------------------------------------------- */

/* Of the functions here; those of other nodes keep their own. */
static void name_here(const struct rr_chain *c, size_t n, const struct hop *hops, size_t n_hops,
                      char out[RR_WORKFLOW_MAX_NAME + 1])
{
    const char *base = c->name ? c->name : "entry";

    if (n == 0)
        snprintf(out, RR_WORKFLOW_MAX_NAME + 1, "%s", base);
    else
        snprintf(out, RR_WORKFLOW_MAX_NAME + 1, "%.50s_%zu", base, n + 1);
    for (size_t k = 0; k < n_hops; k++)
        if (strcmp(hops[k].name, out) == 0)
            snprintf(out, RR_WORKFLOW_MAX_NAME + 1, "%.50s_here%zu", base, n);
}

static size_t n_modules(const struct rr_chain *c)
{
    return c->modules[0] ? c->modules[1] ? 2 : 1 : 0;
}

/* As a file would have it; paths and addresses, which may have any characters, come later. */
static char *write_text(const struct rr_chain *c, const struct hop *hops, size_t n_hops,
                        size_t *ret_len)
{
    char here[2][RR_WORKFLOW_MAX_NAME + 1];
    size_t n_here = n_modules(c);
    const char *before = "input";
    char *text = NULL;
    FILE *f = open_memstream(&text, ret_len);

    if (!f)
        return NULL;
    fputs("version: 1\nname: chain\n", f);
    if (c->name || n_hops > 0)
        fputs("nodes:\n", f);
    if (c->name)
        fprintf(f, "  %s: {address: \"unix:/x\"}\n", c->name);
    for (size_t n = 0; n < n_hops; n++)
        fprintf(f, "  %s: {address: \"unix:/x\"}\n", hops[n].name);
    fputs("functions:\n", f);
    for (size_t n = 0; n < n_here; n++) {
        name_here(c, n, hops, n_hops, here[n]);
        fprintf(f, "  %s: {module: x, memory: 2GiB, deadline: none%s%s}\n", here[n],
                c->name ? ", node: " : "", c->name ? c->name : "");
    }
    for (size_t n = 0; n < n_hops; n++)
        fprintf(f, "  %s: {module: x, memory: 2GiB, deadline: none, node: %s}\n", hops[n].name,
                hops[n].name);
    fputs("edges:\n", f);
    for (size_t n = 0; n < n_here + n_hops; n++) {
        const char *to = n < n_here ? here[n] : hops[n - n_here].name;

        /* within a process there is nothing to deliver again */
        fprintf(f, "  - {from: %s, to: %s%s}\n", before, to,
                c->again && (c->name || n >= n_here) ? ", delivery: at-least-once" : "");
        before = to;
    }
    fprintf(f, "result: %s\n", before);
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

static int set_text(char **at, const char *text)
{
    char *copy = strdup(text);

    if (!copy)
        return -1;
    free(*at);
    *at = copy;
    return 0;
}

static int fill(struct rr_workflow *wf, const struct rr_chain *c, const struct hop *hops,
                size_t n_hops)
{
    size_t first = c->name ? 1 : 0; /* of the nodes: our own */
    int r = 0;

    for (size_t n = 0; n < n_modules(c); n++)
        r |= set_text(&wf->functions[n].module, c->modules[n]);
    for (size_t n = 0; n < n_hops; n++) {
        r |= set_text(&wf->nodes[first + n].address, hops[n].address);
        r |= set_text(&wf->nodes[first + n].next, hops[n].next);
    }
    if (c->name)
        r |= set_text(&wf->nodes[0].next, c->next ? c->next : "");
    wf->here = c->name ? 0 : RR_NODE_HERE;
    wf->chain = true;
    wf->again = c->again;
    return r;
}

int rr_chain_load(const struct rr_chain *c, const volatile bool *stop, struct rr_workflow **ret,
                  struct rr_error *err)
{
    __attribute__((cleanup(rr_free_cleanup))) struct hop *hops =
        calloc(RR_CHAIN_MAX + 1, sizeof(*hops));
    __attribute__((cleanup(rr_free_cleanup))) char *text = NULL;
    struct rr_workflow *wf = NULL;
    size_t n_hops = 0, len = 0;
    int r = 0;

    if (!hops)
        return rr_error_no_memory(err);
    if (c->name && !name_valid(c->name, strlen(c->name)))
        return rr_error_set(err, RR_E_INVALID, "begin with a letter; then letters, digits, _ and -",
                            "roadrunner.dev/function: '%.80s' is no name", c->name);
    if (c->name && c->next) {
        r = resolve(c, NULL, c->next, &hops[0], err);
        n_hops = 1;
        if (r == 0 && strcmp(hops[0].name, c->name) == 0)
            r = rr_error_set(err, RR_E_INVALID, "correct roadrunner.dev/next",
                             "'%s' comes after itself", c->name);
    } else if (!c->name) {
        r = follow(c, stop, hops, &n_hops, err);
    }
    if (r)
        return r;
    text = write_text(c, hops, n_hops, &len);
    if (!text)
        return rr_error_no_memory(err);
    r = rr_workflow_parse("annotations", text, len, &wf, err);
    if (r == 0 && fill(wf, c, hops, n_hops) < 0)
        r = rr_error_no_memory(err);
    if (r == 0)
        *ret = wf;
    else
        rr_workflow_free(wf);
    return r;
}

int rr_chain_open(const char *what, const struct rr_net_tls *tls, bool plain,
                  struct rr_workflow **ret, struct rr_error *err)
{
    struct rr_chain c = {
        .dir = rr_runtime_dir(), .patience_ns = RR_CHAIN_PATIENCE_NS, .tls = tls, .plain = plain};

    if (strncmp(what, RR_CHAIN_PREFIX, strlen(RR_CHAIN_PREFIX)) != 0)
        return rr_workflow_load(what, ret, err);
    c.next = what + strlen(RR_CHAIN_PREFIX);
    c.again = strncmp(c.next, RR_CHAIN_AGAIN, strlen(RR_CHAIN_AGAIN)) == 0;
    c.next += c.again ? strlen(RR_CHAIN_AGAIN) : 0;
    return rr_chain_load(&c, NULL, ret, err);
}
