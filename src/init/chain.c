/* SPDX-License-Identifier: Apache-2.0 */
/* Containers that hand messages on: what docs/kubernetes.md calls functions and entries. */
#include <errno.h>
#include <openssl/crypto.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "init/init.h"
#include "worker/chain.h"
#include "worker/node.h"

#define TLS_FOLDER "/etc/roadrunner/tls/"
#define DOMAIN_FOLDER "unix:/run/roadrunner/" /* in workflow files: the trust domain's folder */

extern char **environ;

static const struct rr_net_tls tls_files = {.cert_file = TLS_FOLDER "tls.crt",
                                            .key_file = TLS_FOLDER "tls.key",
                                            .ca_file = TLS_FOLDER "ca.crt"};

static bool ends(const char *text, const char *end)
{
    size_t len = strlen(text), n = strlen(end);

    return len > n && strcmp(text + len - n, end) == 0;
}

static bool is_workflow(const char *path)
{
    return ends(path, ".yaml") || ends(path, ".yml");
}

bool rr_init_is_chain(const struct rr_init_options *o)
{
    return o->function || o->next || o->workflow || o->second || is_workflow(o->argv[0]);
}

/* --- what the functions here see of the container -------------------------------------------- */

static char **copy_texts(char *const *texts)
{
    char **copy;
    size_t n = 0;

    while (texts[n])
        n++;
    copy = calloc(n + 1, sizeof(*copy));
    for (size_t k = 0; k < n && copy; k++)
        copy[k] = strdup(texts[k]);
    return copy;
}

/* As for a module that is run as a program. */
static int give_container(struct rr_function *f, char *const *args)
{
    size_t n = 0;
    const struct rr_preopen *folders = rr_init_folders(&n);

    f->folders = calloc(n, sizeof(*f->folders));
    f->env = copy_texts(environ); /* after $PWD was set */
    f->args = args ? copy_texts(args) : NULL;
    if (!f->folders || !f->env)
        return -ENOMEM;
    for (; f->n_folders < n; f->n_folders++) {
        struct rr_folder *to = &f->folders[f->n_folders];

        to->host = strdup(folders[f->n_folders].host);
        to->guest = strdup(folders[f->n_folders].guest);
        to->writable = folders[f->n_folders].writable;
        if (!to->host || !to->guest)
            return -ENOMEM;
    }
    return 0;
}

/* --- a workflow ------------------------------------------------------------------------------ */

/* The folder has no path in the container. */
static int place_nodes(struct rr_workflow *wf, const char *dir, struct rr_error *err)
{
    for (size_t n = 0; n < wf->n_nodes; n++) {
        struct rr_node *node = &wf->nodes[n];
        char *address;

        if (strncmp(node->address, DOMAIN_FOLDER, strlen(DOMAIN_FOLDER)) != 0)
            continue;
        if (!dir) {
            rr_error_set(err, RR_E_INVALID, "give the node an address HOST:PORT",
                         "node '%s' is reached in the trust domain, and this container has none",
                         node->name);
            rr_error_at(err, wf->path, node->pos.line, node->pos.column);
            return RR_E_INVALID;
        }
        if (asprintf(&address, "unix:%s/%s", dir, node->address + strlen(DOMAIN_FOLDER)) < 0)
            return rr_error_no_memory(err);
        free(node->address);
        node->address = address;
    }
    return 0;
}

static volatile bool interrupted;

static int load(const struct rr_init_options *o, const char *path, const char *dir,
                struct rr_workflow **ret, struct rr_error *err)
{
    const char *file = o->workflow ? o->workflow : is_workflow(path) ? path : NULL;
    struct rr_chain c = {.name = o->function,
                         .modules = {path, o->second},
                         .next = o->next,
                         .dir = dir,
                         .patience_ns = o->patience_s > 0 ? (uint64_t)o->patience_s * 1000000000u
                                                          : RR_CHAIN_PATIENCE_NS,
                         .tls = access(tls_files.cert_file, F_OK) == 0 ? &tls_files : NULL,
                         .plain = o->plain,
                         .again = o->again};
    int r;

    if (file) {
        r = rr_workflow_load_at(file, o->function, ret, err);
        return r ? r : place_nodes(*ret, dir, err);
    }
    r = rr_chain_load(&c, &interrupted, ret, err);
    for (size_t n = 0; r == 0 && n < (o->second ? 2 : 1); n++)
        if (give_container(&(*ret)->functions[n], n ? NULL : o->argv + 1) < 0)
            r = rr_error_no_memory(err);
    return r;
}

/* --- on the network -------------------------------------------------------------------------- */

/* Do messages leave this node? */
static bool leaves(const struct rr_init_options *o, const struct rr_workflow *wf)
{
    bool any = o->listen != NULL;

    for (size_t n = 0; n < wf->n_nodes; n++)
        any = any || (strncmp(wf->nodes[n].address, "unix:", 5) != 0 &&
                      (o->function || rr_workflow_has_nodes(wf)));
    return any;
}

static int protect(const struct rr_init_options *o, const struct rr_workflow *wf,
                   struct rr_worker_options *to, struct rr_error *err)
{
    bool tls = access(tls_files.cert_file, F_OK) == 0;

    if (leaves(o, wf) && !tls && !o->plain)
        return rr_error_set(err, RR_E_USAGE,
                            "mount tls.crt, tls.key and ca.crt at " TLS_FOLDER
                            ", or set roadrunner.dev/plain to \"true\" if whoever is on that "
                            "network may read and change messages",
                            "messages between nodes are not protected");
    to->tls = tls ? &tls_files : NULL;
    to->plain = !tls;
    to->network_only = o->domain_fd < 0;
    return 0;
}

/* --- serving --------------------------------------------------------------------------------- */

static struct rr_node_server *volatile serving;

static void on_stop(int number)
{
    struct rr_node_server *s = serving;

    if (!s)
        _exit(128 + number);
    rr_node_server_stop(s);
}

static void on_reload(int number)
{
    struct rr_node_server *s = serving;

    if (!s)
        _exit(128 + number);
    rr_node_server_reload(s);
}

static int listen_all(const struct rr_init_options *o, const struct rr_workflow *wf,
                      const char *dir, struct rr_node_server *s, struct rr_error *err)
{
    const char *own = wf->nodes[wf->here].address;
    char near[128];
    int r = 0;

    if (!dir && !o->listen && (wf->chain || strncmp(own, "unix:", 5) == 0))
        return rr_error_set(err, RR_E_INVALID,
                            "set roadrunner.dev/listen, such as :7400, or start it in a trust "
                            "domain: docs/kubernetes.md says how",
                            "nobody can reach function '%s'", o->function);
    if (dir) {
        if ((size_t)snprintf(near, sizeof(near), "unix:%s/%s", dir, o->function) >= sizeof(near))
            return rr_error_set(err, RR_E_INVALID, "give it a shorter name",
                                "'%s' is too long a name", o->function);
        r = rr_node_server_listen(s, near, err);
        if (r >= 0)
            chmod(near + strlen("unix:"), 0666); /* the folder says who may; other users, too */
    }
    if (r >= 0 && o->listen)
        r = rr_node_server_listen(s, o->listen, err);
    else if (r >= 0 && !wf->chain && strncmp(own, "unix:", 5) != 0)
        r = rr_node_server_listen(s, own, err);
    return r < 0 ? -r : 0;
}

static int serve(const struct rr_init_options *o, const struct rr_workflow *wf, const char *dir,
                 const struct rr_worker_options *options, struct rr_error *err)
{
    struct sigaction stop = {.sa_handler = on_stop}, reload = {.sa_handler = on_reload};
    struct rr_node_server *s = NULL;
    int r = rr_node_server_new(wf, options, &s, err);

    if (r == 0)
        r = listen_all(o, wf, dir, s, err);
    if (r == 0) {
        serving = s;
        sigaction(SIGTERM, &stop, NULL);
        sigaction(SIGINT, &stop, NULL);
        sigaction(SIGQUIT, &stop, NULL);
        sigaction(SIGHUP, &reload, NULL);
        fprintf(stderr, "roadrunner: function '%s' is served\n", o->function);
        r = rr_node_server_run(s, err);
        serving = NULL;
    }
    rr_node_server_free(s);
    return r;
}

/* --- running --------------------------------------------------------------------------------- */

static void on_hop(void *user, const struct rr_hop *h)
{
    const struct rr_workflow *wf = user;
    const struct rr_edge *e = &wf->edges[h->edge];

    fprintf(stderr, "roadrunner: %s -> %s: %s, %s, %llu bytes, %llu copied, %.1f us\n",
            e->from < 0 ? "input" : wf->functions[e->from].name, wf->functions[e->to].name,
            rr_channel_name(h->channel), rr_path_name(h->path),
            (unsigned long long)h->payload_bytes, (unsigned long long)h->copied_bytes,
            (double)h->handoff_ns / 1e3);
}

static void on_log(void *user, int function, int level, const char *text, size_t len)
{
    const struct rr_workflow *wf = user;

    if (wf->functions[function].node == RR_NODE_HERE) /* others have logs of their own */
        rr_function_log(wf->functions[function].name, level, text, len);
}

static int run(struct rr_worker *w, struct rr_error *err)
{
    struct rr_result result = {0};
    int r = rr_worker_run(w, STDIN_FILENO, &result, err);

    if (r)
        return r;
    r = rr_write_all(STDOUT_FILENO, result.data, result.len);
    rr_worker_release(w);
    return r < 0 ? rr_error_set(err, RR_E_OUTPUT, "is it read by anybody?",
                                "cannot write the result: %s", strerror(-r))
                 : 0;
}

/* --- compiled modules ------------------------------------------------------------------------ */

static bool same_file(const char *a, const char *b)
{
    struct stat one, two;

    return stat(a, &one) == 0 && stat(b, &two) == 0 && one.st_dev == two.st_dev &&
           one.st_ino == two.st_ino;
}

/* What the runtime made outside, under the names that the workflow has for the modules. */
static size_t collect_images(const struct rr_init_options *o, const char *path,
                             const struct rr_workflow *wf,
                             struct rr_worker_image images[RR_INIT_MAX_MODULES + 2])
{
    size_t n = 0;

    if (wf->chain && o->image_fd >= 0)
        images[n++] = (struct rr_worker_image){path, o->image_fd};
    if (wf->chain && o->second_fd >= 0)
        images[n++] = (struct rr_worker_image){o->second, o->second_fd};
    for (size_t k = 0; k < o->n_modules; k++)
        for (size_t f = 0; f < wf->n_functions; f++)
            if (same_file(o->modules[k].path, wf->functions[f].module)) {
                images[n++] = (struct rr_worker_image){wf->functions[f].module, o->modules[k].fd};
                break;
            }
    return n;
}

/* --- both ------------------------------------------------------------------------------------ */

int rr_init_chain(const struct rr_init_options *o, const char *path)
{
    struct rr_worker_image images[RR_INIT_MAX_MODULES + 2];
    struct rr_worker_options options = {.kind = o->function ? "function" : "entry",
                                        .log_here = true,
                                        .no_cache = true,
                                        .precompiled = o->precompiled,
                                        .arena.watch_pressure = true};
    struct rr_workflow *wf = NULL;
    struct rr_worker *w = NULL;
    struct rr_error err = {0};
    static char dir[32]; /* kept */
    int r;

    /* Its configuration is the image's, and can name code to load. */
    OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, NULL);
    if (o->domain_fd >= 0) {
        snprintf(dir, sizeof(dir), "/proc/self/fd/%d", o->domain_fd);
        rr_runtime_dir_set(dir);
    }
    if (o->trace)
        rr_log_set_level(2);
    r = load(o, path, *dir ? dir : NULL, &wf, &err);
    options.images = images;
    options.n_images = r == 0 ? collect_images(o, path, wf, images) : 0;
    if (r == 0)
        r = protect(o, wf, &options, &err);
    if (r == 0 && o->function) {
        r = serve(o, wf, *dir ? dir : NULL, &options, &err);
    } else if (r == 0) {
        options.observer =
            (struct rr_observer){.user = wf, .hop = o->trace ? on_hop : NULL, .log = on_log};
        r = rr_worker_new(wf, &options, &w, &err);
        if (r == 0)
            r = run(w, &err);
    }
    if (r)
        rr_init_tell(&err, r);
    rr_worker_free(w);
    rr_workflow_free(wf);
    return r;
}
