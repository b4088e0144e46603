/* SPDX-License-Identifier: Apache-2.0 */
/* What differs from the runtime's own commands. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "oci/command.h"

#define VERSION_MIN "1.0.0"
#define VERSION_MAX "1.3.0"

/* --- descriptors that a container inherits --------------------------------------------------- */

/* The first that is free: after those that the caller passes on. */
static int first_fd(const struct call *c)
{
    const char *listen = getenv("LISTEN_FDS"), *preserve = call_get(c, "--preserve-fds", NULL);
    long n = (listen ? strtol(listen, NULL, 10) : 0) + (preserve ? strtol(preserve, NULL, 10) : 0);

    return n < 0 || n > 1000 ? 3 : (int)(3 + n);
}

static int place(int fd, int at, struct rr_error *err)
{
    if (dup2(fd, at) < 0)
        return rr_error_set(err, RR_E_SYSTEM, "raise the limit on files", "cannot pass a file: %s",
                            strerror(errno));
    return 0;
}

/* Have @n more passed on than the caller asked for. */
static void preserve(struct call *c, int n)
{
    static char text[16];
    const char *listen = getenv("LISTEN_FDS");
    long ours = first_fd(c) - 3 + n - (listen ? strtol(listen, NULL, 10) : 0);

    snprintf(text, sizeof(text), "%ld", ours);
    call_set(c, "--preserve-fds", NULL, text);
}

/* @fds (-1: none; moved) become descriptors of the container. @ret: their numbers there. */
static int pass_fds(struct call *c, int *fds, size_t n, int *ret, struct rr_error *err)
{
    int first = first_fd(c), passed = 0, r = 0;

    for (size_t i = 0; i < n; i++) { /* out of the way of where they go */
        int high = fds[i] < 0 ? -1 : fcntl(fds[i], F_DUPFD_CLOEXEC, first + (int)n);

        if (fds[i] >= 0)
            close(fds[i]);
        if (fds[i] >= 0 && high < 0 && r == 0)
            r = rr_error_set(err, RR_E_SYSTEM, "raise the limit on files", "cannot pass a file: %s",
                             strerror(errno));
        fds[i] = high;
        ret[i] = -1;
    }
    for (size_t i = 0; i < n; i++) { /* what is in their place is nobody's */
        if (fds[i] < 0)
            continue;
        if (r == 0)
            r = place(fds[i], first + passed, err);
        close(fds[i]);
        ret[i] = first + passed++;
    }
    if (r == 0)
        preserve(c, passed);
    return r;
}

/* --- create, run ----------------------------------------------------------------------------- */

static const char *cwd_of(const struct json_object *spec)
{
    struct json_object *process = NULL, *cwd = NULL;

    json_object_object_get_ex(spec, "process", &process);
    if (process)
        json_object_object_get_ex(process, "cwd", &cwd);
    return cwd ? json_object_get_string(cwd) : "/";
}

static const char *program_of(const struct json_object *spec)
{
    struct json_object *process = NULL, *args = NULL;

    json_object_object_get_ex(spec, "process", &process);
    json_object_object_get_ex(process, "args", &args);
    return json_object_get_string(json_object_array_get_idx(args, 0));
}

/* The compiled image of a module of the container; -1: none. */
static int image_of(const struct rr_bundle *b, const char *name)
{
    int module = name ? rr_rootfs_find(b->rootfs, b->spec, name, cwd_of(b->spec)) : -1, image = -1;

    if (module >= 0)
        image = rr_worker_image(module);
    rr_close_cleanup(&module); /* its number may be one that is passed on */
    return image;
}

/* Its place among others; @key "": it has none. */
static int domain_of(const struct call *c, const struct rr_bundle *b, char key[RR_OCI_DOMAIN],
                     struct rr_error *err)
{
    const struct rr_oci_giver giver = {.containerd = getenv("ROADRUNNER_CONTAINERD"),
                                       .domain = c->domain};

    return rr_oci_domain_key(b->spec, &giver, key, err);
}

static int join_domain(const struct call *c, const struct rr_bundle *b, int *ret_fd,
                       struct rr_error *err)
{
    char key[RR_OCI_DOMAIN];
    int r = domain_of(c, b, key, err);

    return r == 0 && *key ? rr_domain_join(key, b->path, ret_fd, err) : r;
}

/* An ordinary container that talks with those of its trust domain. @ret: it is one. */
static int make_gateway(const struct call *c, const struct rr_bundle *b, bool *ret,
                        struct rr_error *err)
{
    char key[RR_OCI_DOMAIN], path[PATH_MAX];
    int fd = -1, r = rr_oci_gateway_read(b->spec, ret, err);

    if (r || !*ret)
        return r;
    r = domain_of(c, b, key, err);
    if (r == 0 && !*key)
        r = rr_error_set(err, RR_E_INVALID, "docs/kubernetes.md tells where it comes from",
                         "annotation roadrunner.dev/gateway: the container has no trust domain");
    if (r == 0)
        r = rr_domain_join(key, b->path, &fd, err);
    if (r)
        return r;
    close(fd);
    rr_domain_path(key, path, sizeof(path));
    r = rr_oci_gateway_rewrite(b->spec, path, err);
    if (r)
        rr_domain_leave(b->path);
    return r;
}

/* Those of the workflow that the container runs or serves. */
static size_t find_modules(const struct rr_bundle *b, const struct rr_oci_chain *chain,
                           char *ret[RR_OCI_MAX_MODULES])
{
    const char *file = chain->workflow;
    __attribute__((cleanup(rr_free_cleanup))) char *text = NULL;
    __attribute__((cleanup(rr_close_cleanup))) int fd = -1;
    size_t len = 0;
    ssize_t n = 1;

    if (!file && rr_is_workflow_name(program_of(b->spec)))
        file = program_of(b->spec);
    if (file)
        fd = rr_rootfs_find(b->rootfs, b->spec, file, cwd_of(b->spec));
    text = fd < 0 ? NULL : malloc(RR_OCI_MAX_WORKFLOW);
    while (text && n > 0 && len < RR_OCI_MAX_WORKFLOW) {
        n = read(fd, text + len, RR_OCI_MAX_WORKFLOW - len);
        len += n > 0 ? (size_t)n : 0;
    }
    return text ? rr_oci_workflow_modules(text, len, file, ret) : 0;
}

static int make_wasm(struct call *c, struct rr_bundle *b, struct rr_error *err)
{
    enum { WORKER, IMAGE, SECOND, DOMAIN, MODULES };
    enum { N = MODULES + RR_OCI_MAX_MODULES };
    char *paths[RR_OCI_MAX_MODULES] = {NULL};
    struct rr_oci_fds told = {.paths = paths};
    struct rr_oci_chain chain = {0};
    int fds[N], at[N], r = rr_oci_chain_read(b->spec, &chain, err);

    for (size_t n = 0; n < N; n++)
        fds[n] = -1;
    if (r == 0 && chain.any)
        r = join_domain(c, b, &fds[DOMAIN], err);
    if (r == 0) {
        fds[IMAGE] = image_of(b, program_of(b->spec));
        fds[SECOND] = image_of(b, chain.second);
        told.n_modules = find_modules(b, &chain, paths);
        for (size_t n = 0; n < told.n_modules; n++)
            fds[MODULES + n] = image_of(b, paths[n]);
        r = rr_worker_open(&fds[WORKER], err);
    }
    if (r == 0)
        r = pass_fds(c, fds, N, at, err);
    if (r == 0)
        r = rr_bundle_rewrite(b->spec, at[WORKER], at[IMAGE], err);
    if (r == 0 && chain.any) {
        told.second = at[SECOND];
        told.domain = at[DOMAIN];
        memcpy(told.modules, &at[MODULES], sizeof(told.modules));
        r = rr_oci_chain_rewrite(b->spec, &chain, &told, err);
    }
    if (r && chain.any)
        rr_domain_leave(b->path);
    for (size_t n = 0; n < told.n_modules; n++)
        free(paths[n]);
    rr_oci_chain_deinit(&chain);
    return r;
}

/* A relative path is meant from here, and the runtime goes to the bundle. */
static void absolute_option(struct call *c, const char *name)
{
    const char *value = call_get(c, name, NULL);
    char cwd[PATH_MAX], *path;

    if (!value || *value == '/' || !getcwd(cwd, sizeof(cwd)) ||
        asprintf(&path, "%s/%s", cwd, value) < 0)
        return;
    call_set(c, name, NULL, path); /* kept until we end */
}

/* `run` deletes the container at its end, and so do we with what is ours. */
static int run_and_remove(struct call *c, const struct rr_bundle *b)
{
    int r = call_run(c, NULL, false);

    rr_bundle_remove_private(b->path);
    rr_domain_leave(b->path);
    return r < 0 ? 1 : r;
}

/* As runc has it; crun takes what it finds. */
static bool is_name(const char *id)
{
    for (const char *p = id; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("_+.-", *p))
            return false;
    return *id && strcmp(id, ".") != 0 && strcmp(id, "..") != 0;
}

int command_create(struct call *c)
{
    const char *bundle = call_get(c, "--bundle", "-b");
    struct rr_bundle *b = NULL;
    struct rr_error err = {0};
    char *private = NULL;
    bool ours = false;
    int r;

    if (c->id && !is_name(c->id)) {
        rr_error_set(&err, RR_E_INVALID, "letters, digits, '_', '+', '.' and '-'",
                     "'%.80s' is no name of a container", c->id);
        return call_fail(c, &err);
    }
    if (call_get(c, "--config", "-f")) /* crun's own; not a bundle as others know it */
        return call_exec(c);
    r = rr_bundle_open(bundle ? bundle : ".", &b, &err);
    if (r)
        return call_fail(c, &err);
    r = b->wasm ? make_wasm(c, b, &err) : make_gateway(c, b, &ours, &err);
    ours = ours || b->wasm;
    if (r == 0 && (rr_bundle_lower_version(b->spec, c->runtime) || ours)) {
        r = rr_bundle_write_private(b, &err);
        if (r == 0 && asprintf(&private, "%s/" RR_OCI_PRIVATE, b->path) > 0) {
            absolute_option(c, "--pid-file");
            absolute_option(c, "--console-socket");
            call_set(c, "--bundle", "-b", private);
        }
    }
    r = r ? call_fail(c, &err)
        : private && strcmp(c->command, "run") == 0 && !call_flag(c, "--detach", "-d")
            ? run_and_remove(c, b)
            : call_exec(c);
    rr_bundle_free(b);
    return r;
}

/* --- state, list, delete --------------------------------------------------------------------- */

/* The private folder is ours, not the caller's: show the bundle it lies in. */
static void hide_private(char *text)
{
    static const char suffix[] = "/" RR_OCI_PRIVATE;
    char *at = text;

    while ((at = strstr(at, suffix))) {
        char *end = at + sizeof(suffix) - 1;

        if (*end == '"' || *end == ' ' || *end == '\t' || *end == '\n')
            memmove(at, end, strlen(end) + 1);
        else
            at = end;
    }
}

int command_state(struct call *c)
{
    char *text = NULL;
    int r = call_run(c, &text, false);

    if (text) {
        hide_private(text);
        fputs(text, stdout);
    }
    free(text);
    return r < 0 ? 1 : r;
}

/* The state of @id. @ret: owned; NULL: there is no such container. */
static struct json_object *state_of(const struct call *c, const char *id)
{
    struct call state = {0};
    struct json_object *o = NULL;
    char *text = NULL;

    memcpy(state.runtime, c->runtime, sizeof(state.runtime));
    call_add(&state, "");
    call_add(&state, "--root");
    call_add(&state, c->root);
    call_add(&state, "state");
    call_add(&state, id);
    if (call_run(&state, &text, true) == 0 && text)
        o = json_tokener_parse(text);
    free(text);
    free(state.argv);
    return o;
}

/* The bundle's path without our folder; NULL if it has none of ours. */
static char *private_bundle(const struct json_object *state)
{
    static const char suffix[] = "/" RR_OCI_PRIVATE;
    struct json_object *v = NULL;
    const char *path;
    size_t len;

    json_object_object_get_ex(state, "bundle", &v);
    path = v ? json_object_get_string(v) : "";
    len = strlen(path);
    if (len < sizeof(suffix) || strcmp(path + len - (sizeof(suffix) - 1), suffix) != 0)
        return NULL;
    return strndup(path, len - (sizeof(suffix) - 1));
}

/* The bundle, if our folder is in it; else NULL. The shim says which it is, and spares the runtime
 * a question that takes as long as the deletion itself. */
static char *bundle_to_delete(const struct call *c)
{
    const char *told = getenv("ROADRUNNER_BUNDLE");
    struct json_object *state;
    char path[PATH_MAX], *ret;

    if (told && *told) {
        snprintf(path, sizeof(path), "%s/" RR_OCI_PRIVATE, told);
        return access(path, F_OK) == 0 ? strdup(told) : NULL;
    }
    state = c->id ? state_of(c, c->id) : NULL;
    ret = state ? private_bundle(state) : NULL;
    json_object_put(state);
    return ret;
}

int command_delete(struct call *c)
{
    __attribute__((cleanup(rr_free_cleanup))) char *bundle = bundle_to_delete(c);
    int r;

    if (!bundle)
        return call_exec(c);
    r = call_run(c, NULL, false);
    if (r == 0) {
        rr_bundle_remove_private(bundle);
        rr_domain_leave(bundle);
    }
    return r < 0 ? 1 : r;
}

/* --- checkpoint, restore --------------------------------------------------------------------- */

static int no_checkpoints(const struct call *c)
{
    struct rr_error err;

    rr_error_set(&err, RR_E_INVALID, "stop it, and start it again: its module's memory is not kept",
                 "%s: checkpoints of Wasm containers are neither made nor restored", c->command);
    return call_fail(c, &err);
}

int command_checkpoint(struct call *c)
{
    struct json_object *state = c->id ? state_of(c, c->id) : NULL;
    __attribute__((cleanup(rr_free_cleanup))) char *ours = state ? private_bundle(state) : NULL;

    json_object_put(state);
    return ours ? no_checkpoints(c) : call_exec(c);
}

int command_restore(struct call *c)
{
    const char *bundle = call_get(c, "--bundle", "-b");
    struct rr_bundle *b = NULL;
    struct rr_error err;
    bool wasm;

    if (rr_bundle_open(bundle ? bundle : ".", &b, &err) != 0)
        return call_fail(c, &err);
    wasm = b->wasm;
    rr_bundle_free(b);
    return wasm ? no_checkpoints(c) : call_exec(c);
}

/* --- exec ------------------------------------------------------------------------------------ */

/* The process that --process or the words describe; @ret: owned. */
static int read_process(struct call *c, size_t words, struct json_object **ret,
                        struct rr_error *err)
{
    const char *file = call_get(c, "--process", "-p");
    struct json_object *args;

    if (file) {
        int r = rr_oci_read_json(file, ret, err);

        if (r == 0 && !json_object_is_type(*ret, json_type_object)) {
            json_object_put(*ret);
            r = rr_error_set(err, RR_E_INVALID, "see the OCI runtime specification",
                             "%s holds no object", file);
        }
        return r;
    }
    *ret = json_object_new_object();
    args = json_object_new_array();
    for (size_t i = words; words && i < c->n; i++)
        json_object_array_add(args, json_object_new_string(c->argv[i]));
    json_object_object_add(*ret, "args", args);
    return 0;
}

static const char *first_arg(const struct json_object *process)
{
    struct json_object *args = NULL, *first;

    json_object_object_get_ex(process, "args", &args);
    if (!json_object_is_type(args, json_type_array) || json_object_array_length(args) == 0)
        return "";
    first = json_object_array_get_idx(args, 0);
    return json_object_is_type(first, json_type_string) ? json_object_get_string(first) : "";
}

/* "exec" or "status" if our worker is to run it; NULL: a program of the container's. */
static const char *exec_mode(const struct json_object *state, const struct json_object *process)
{
    __attribute__((cleanup(rr_close_cleanup))) int fd = -1;
    const char *name = first_arg(process);
    struct json_object *pid = NULL;
    char root[64];

    if (strcmp(name, "status") == 0)
        return name;
    if (rr_is_module_name(name))
        return "exec";
    json_object_object_get_ex(state, "pid", &pid);
    snprintf(root, sizeof(root), "/proc/%d/root", pid ? json_object_get_int(pid) : 0);
    fd = rr_rootfs_open(root, name);
    return fd >= 0 && rr_is_module_file(fd) ? "exec" : NULL;
}

/* The process in a file of memory, whose name the runtime can open. */
static int put_process(struct call *c, const struct json_object *process, struct rr_error *err)
{
    const char *text =
        json_object_to_json_string_ext((struct json_object *)(uintptr_t)process,
                                       JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
    int fd = memfd_create("process.json", 0), r = fd < 0 ? -errno : 0;
    static char path[64];

    if (r == 0)
        r = rr_write_all(fd, text, strlen(text));
    if (r < 0)
        return rr_error_set(err, RR_E_SYSTEM, "free some memory", "cannot pass the process: %s",
                            strerror(-r));
    /* beyond those that are passed on */
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fcntl(fd, F_DUPFD, 100));
    call_set(c, "--process", "-p", path);
    return 0;
}

static void put_words(struct call *c, size_t words, const struct json_object *process)
{
    struct json_object *args = NULL;

    json_object_object_get_ex(process, "args", &args);
    c->n = words;
    for (size_t i = 0; i < json_object_array_length(args); i++)
        call_add(c, json_object_get_string(json_object_array_get_idx(args, i)));
}

int command_exec(struct call *c)
{
    struct json_object *state = c->id ? state_of(c, c->id) : NULL, *process = NULL;
    __attribute__((cleanup(rr_free_cleanup))) char *bundle = NULL;
    struct rr_error err = {0};
    const char *mode = NULL;
    size_t id, words;
    int worker = -1, first = -1, r = 0;

    if (state)
        bundle = private_bundle(state);
    id = call_word(c, c->rest);
    words = id && id + 1 < c->n ? id + 1 : 0;
    if (words && strcmp(c->argv[words], "--") == 0)
        words++;
    if (bundle)
        r = read_process(c, words, &process, &err);
    if (r == 0 && process)
        mode = exec_mode(state, process);
    json_object_put(state);
    if (r == 0 && mode) {
        bool file = call_get(c, "--process", "-p");

        mode = strcmp(mode, "status") == 0 ? "status" : "exec";
        r = rr_worker_open(&worker, &err);
        if (r == 0)
            r = pass_fds(c, &worker, 1, &first, &err);
        if (r == 0)
            r = rr_process_rewrite(process, mode, first, -1, &err);
        if (r == 0 && file)
            r = put_process(c, process, &err);
        else if (r == 0)
            put_words(c, call_word(c, c->rest) + 1, process);
    }
    return r ? call_fail(c, &err) : call_exec(c); /* words of @process are used */
}

/* --- features -------------------------------------------------------------------------------- */

int command_features(struct call *c)
{
    struct json_object *o = NULL, *annotations;
    char *text = NULL;

    if (call_run(c, &text, true) == 0 && text)
        o = json_tokener_parse(text);
    free(text);
    if (!json_object_is_type(o, json_type_object)) { /* crun knows this command since 1.9 */
        json_object_put(o);
        o = json_object_new_object();
        json_object_object_add(o, "ociVersionMin", json_object_new_string(VERSION_MIN));
        json_object_object_add(o, "ociVersionMax", json_object_new_string(VERSION_MAX));
    }
    if (!json_object_object_get_ex(o, "annotations", &annotations)) {
        annotations = json_object_new_object();
        json_object_object_add(o, "annotations", annotations);
    }
    json_object_object_add(annotations, "dev.roadrunner.version",
                           json_object_new_string(RR_VERSION));
    json_object_object_add(annotations, "dev.roadrunner.runtime",
                           json_object_new_string(c->runtime));
    puts(json_object_to_json_string_ext(o,
                                        JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(o);
    return 0;
}
