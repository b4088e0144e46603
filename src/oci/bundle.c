/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "oci/oci.h"

#define MAX_DEPTH 32

/* What asks other runtimes to run Wasm: they must not, we do. */
static const char *const handler_annotations[] = {"run.oci.handler", "module.wasm.image/variant"};

/* --- reading --------------------------------------------------------------------------------- */

static int wrong(struct rr_error *err, const char *field, const char *what)
{
    return rr_error_set(err, RR_E_INVALID, "see the OCI runtime specification",
                        "config.json: %s %s", field, what);
}

/* A member that may be missing: @ret NULL then. */
static int member(const struct json_object *o, const char *path, const char *name,
                  enum json_type type, struct json_object **ret, struct rr_error *err)
{
    static const char *const must[] = {
        [json_type_object] = "must be an object",
        [json_type_array] = "must be a list",
        [json_type_string] = "must be a string",
    };
    struct json_object *v = NULL;

    json_object_object_get_ex(o, name, &v);
    if (v && json_object_get_type(v) != type)
        return wrong(err, path, must[type]);
    *ret = v;
    return 0;
}

static bool plain_string(const struct json_object *v)
{
    const char *text = json_object_get_string((struct json_object *)(uintptr_t)v);

    return json_object_get_type(v) == json_type_string &&
           strlen(text) == (size_t)json_object_get_string_len(v); /* no NUL in it */
}

static int check_strings(const struct json_object *list, const char *path, struct rr_error *err)
{
    for (size_t i = 0; list && i < json_object_array_length(list); i++)
        if (!plain_string(json_object_array_get_idx(list, i)))
            return wrong(err, path, "must hold strings only, without NUL characters");
    return 0;
}

static int check_process(const struct json_object *spec, struct rr_error *err)
{
    struct json_object *process, *args, *env, *cwd;
    int r = member(spec, "process", "process", json_type_object, &process, err);

    if (r || !process)
        return r;
    r = member(process, "process.args", "args", json_type_array, &args, err);
    if (r == 0)
        r = check_strings(args, "process.args", err);
    if (r == 0 && args && json_object_array_length(args) == 0)
        r = wrong(err, "process.args", "is empty: it must name the program");
    if (r == 0)
        r = member(process, "process.env", "env", json_type_array, &env, err);
    if (r == 0)
        r = check_strings(env, "process.env", err);
    if (r == 0)
        r = member(process, "process.cwd", "cwd", json_type_string, &cwd, err);
    if (r == 0 && cwd && !plain_string(cwd))
        r = wrong(err, "process.cwd", "must have no NUL characters");
    return r;
}

static int check_annotations(const struct json_object *spec, struct rr_error *err)
{
    struct json_object *annotations;
    int r = member(spec, "annotations", "annotations", json_type_object, &annotations, err);

    if (r || !annotations)
        return r;
    json_object_object_foreach(annotations, key, value)
    {
        (void)key;
        if (!plain_string(value))
            return wrong(err, "annotations", "must hold strings only");
    }
    return 0;
}

static int check_mounts(const struct json_object *spec, struct rr_error *err)
{
    static const char *const fields[][2] = {{"mounts[].destination", "destination"},
                                            {"mounts[].type", "type"},
                                            {"mounts[].source", "source"}};
    struct json_object *mounts, *options, *v;
    int r = member(spec, "mounts", "mounts", json_type_array, &mounts, err);

    for (size_t i = 0; r == 0 && mounts && i < json_object_array_length(mounts); i++) {
        const struct json_object *m = json_object_array_get_idx(mounts, i);

        if (!json_object_is_type(m, json_type_object))
            return wrong(err, "mounts", "must hold objects only");
        for (size_t f = 0; r == 0 && f < RR_ARRAY_LEN(fields); f++) {
            r = member(m, fields[f][0], fields[f][1], json_type_string, &v, err);
            if (r == 0 && v && !plain_string(v))
                r = wrong(err, fields[f][0], "must have no NUL characters");
        }
        if (r == 0)
            r = member(m, "mounts[].options", "options", json_type_array, &options, err);
        if (r == 0)
            r = check_strings(options, "mounts[].options", err);
    }
    return r;
}

static int check_root(const struct json_object *spec, struct rr_error *err)
{
    struct json_object *root, *path = NULL;
    int r = member(spec, "root", "root", json_type_object, &root, err);

    if (r == 0 && root)
        r = member(root, "root.path", "path", json_type_string, &path, err);
    if (r == 0 && root && (!path || !plain_string(path) || !*json_object_get_string(path)))
        r = wrong(err, "root.path", "is missing: it must name the root file system");
    return r;
}

static int parse_json(const char *text, size_t len, struct json_object **ret, struct rr_error *err)
{
    struct json_tokener *t;
    struct json_object *o;
    enum json_tokener_error e;

    if (len > RR_OCI_MAX_CONFIG)
        return rr_error_set(err, RR_E_LIMIT, "are the annotations this large?",
                            "config.json has %s; at most %s", rr_bytes_text(len),
                            rr_bytes_text(RR_OCI_MAX_CONFIG));
    t = json_tokener_new_ex(MAX_DEPTH);
    if (!t)
        return rr_error_no_memory(err);
    o = json_tokener_parse_ex(t, text, (int)len);
    e = json_tokener_get_error(t);
    if (e == json_tokener_continue && o == NULL)
        e = json_tokener_error_parse_eof;
    for (size_t i = json_tokener_get_parse_end(t); e == json_tokener_success && i < len; i++)
        if (!strchr(" \t\r\n", text[i]) || !text[i])
            e = json_tokener_error_parse_unexpected;
    json_tokener_free(t);
    if (e != json_tokener_success) {
        json_object_put(o);
        return rr_error_set(err, RR_E_INVALID, "write it anew: roadrunner-oci spec",
                            "config.json is no JSON: %s", json_tokener_error_desc(e));
    }
    *ret = o;
    return 0;
}

int rr_bundle_parse(const char *text, size_t len, struct json_object **ret, struct rr_error *err)
{
    struct json_object *spec = NULL, *version;
    int r = parse_json(text, len, &spec, err);

    if (r)
        return r;
    if (!json_object_is_type(spec, json_type_object))
        r = wrong(err, "its top level", "must be an object");
    if (r == 0)
        r = member(spec, "ociVersion", "ociVersion", json_type_string, &version, err);
    if (r == 0)
        r = check_process(spec, err);
    if (r == 0)
        r = check_root(spec, err);
    if (r == 0)
        r = check_annotations(spec, err);
    if (r == 0)
        r = check_mounts(spec, err);
    if (r) {
        json_object_put(spec);
        return r;
    }
    *ret = spec;
    return 0;
}

/* All of a regular file; @ret: owned, free(). */
static int read_text(const char *path, char **ret, size_t *ret_len, struct rr_error *err)
{
    __attribute__((cleanup(rr_close_cleanup))) int fd =
        open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    __attribute__((cleanup(rr_free_cleanup))) char *text = NULL;
    struct stat st;
    size_t len = 0;

    if (fd < 0 || fstat(fd, &st) < 0)
        return rr_error_set(err, RR_E_NOINPUT, "check the path of the bundle", "cannot read %s: %s",
                            path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return rr_error_set(err, RR_E_NOINPUT, "check the bundle", "%s is not a file", path);
    if (st.st_size > RR_OCI_MAX_CONFIG)
        return rr_error_set(err, RR_E_LIMIT, "are the annotations this large?",
                            "%s has %s; at most %s", path, rr_bytes_text((uint64_t)st.st_size),
                            rr_bytes_text(RR_OCI_MAX_CONFIG));
    text = malloc((size_t)st.st_size + 1);
    if (!text)
        return rr_error_no_memory(err);
    while (len < (size_t)st.st_size) {
        ssize_t n = read(fd, text + len, (size_t)st.st_size - len);

        if (n <= 0)
            break;
        len += (size_t)n;
    }
    *ret_len = len;
    *ret = rr_take(text);
    return 0;
}

int rr_oci_read_json(const char *path, struct json_object **ret, struct rr_error *err)
{
    __attribute__((cleanup(rr_free_cleanup))) char *text = NULL;
    size_t len;
    int r = read_text(path, &text, &len, err);

    return r ? r : parse_json(text, len, ret, err);
}

const char *rr_bundle_annotation(const struct json_object *spec, const char *name)
{
    struct json_object *annotations = NULL, *v = NULL;

    json_object_object_get_ex(spec, "annotations", &annotations);
    if (annotations)
        json_object_object_get_ex(annotations, name, &v);
    return v ? json_object_get_string(v) : NULL;
}

static const char *string_at(const struct json_object *o, const char *name)
{
    struct json_object *v = NULL;

    json_object_object_get_ex(o, name, &v);
    return v ? json_object_get_string(v) : NULL;
}

/*
 * What its file says, and its name. Annotations that ask for Wasm are set for whole pods, whose
 * sidecars and pause containers are ordinary programs: so they cannot make one of those a module,
 * and a module needs none.
 */
static void classify(struct rr_bundle *b)
{
    __attribute__((cleanup(rr_close_cleanup))) int fd = -1;
    struct json_object *process = NULL, *args = NULL;
    const char *type = rr_bundle_annotation(b->spec, "io.kubernetes.cri.container-type"), *name,
               *cwd;

    json_object_object_get_ex(b->spec, "process", &process);
    if (process)
        json_object_object_get_ex(process, "args", &args);
    if (!args || !b->rootfs || (type && strcmp(type, "sandbox") == 0))
        return;
    name = json_object_get_string(json_object_array_get_idx(args, 0));
    cwd = string_at(process, "cwd");
    b->wasm = rr_is_module_name(name) || rr_is_workflow_name(name);
    if (b->wasm)
        return;
    fd = rr_rootfs_find(b->rootfs, b->spec, name, cwd ? cwd : "/");
    b->wasm = fd >= 0 && rr_is_module_file(fd);
}

static int absolute(const char *base, const char *path, char **ret)
{
    int n = *path == '/' ? asprintf(ret, "%s", path) : asprintf(ret, "%s/%s", base, path);

    return n < 0 ? -ENOMEM : 0;
}

/* The runtimes below only tell of a mount that they cannot make in it. */
static int check_root_folder(const struct rr_bundle *b, struct rr_error *err)
{
    struct stat st;

    if (!b->rootfs)
        return 0;
    if (stat(b->rootfs, &st) == 0) {
        if (S_ISDIR(st.st_mode))
            return 0;
        errno = ENOTDIR;
    }
    return rr_error_set(err, RR_E_NOINPUT, "correct root.path in config.json",
                        "cannot use the root file system %s: %s", b->rootfs, strerror(errno));
}

int rr_bundle_open(const char *path, struct rr_bundle **ret, struct rr_error *err)
{
    __attribute__((cleanup(rr_free_cleanup))) char *text = NULL;
    struct rr_bundle *b = calloc(1, sizeof(*b));
    struct json_object *root = NULL;
    char config[PATH_MAX];
    size_t len = 0;
    int r = 0;

    if (!b)
        return rr_error_no_memory(err);
    b->path = realpath(path, NULL);
    if (!b->path)
        r = rr_error_set(err, RR_E_NOINPUT, "check --bundle", "cannot open the bundle %s: %s", path,
                         strerror(errno));
    if (r == 0) {
        snprintf(config, sizeof(config), "%s/config.json", b->path);
        r = read_text(config, &text, &len, err);
    }
    if (r == 0)
        r = rr_bundle_parse(text, len, &b->spec, err);
    if (r == 0) {
        json_object_object_get_ex(b->spec, "root", &root);
        if (root && absolute(b->path, string_at(root, "path"), &b->rootfs) < 0)
            r = rr_error_no_memory(err);
    }
    if (r == 0)
        r = check_root_folder(b, err);
    if (r) {
        rr_bundle_free(b);
        return r;
    }
    classify(b);
    *ret = b;
    return 0;
}

void rr_bundle_free(struct rr_bundle *b)
{
    if (!b)
        return;
    json_object_put(b->spec);
    free(b->path);
    free(b->rootfs);
    free(b);
}

/* --- rewriting ------------------------------------------------------------------------------- */

static void append(struct json_object *list, const char *text)
{
    json_object_array_add(list, json_object_new_string(text));
}

/* It is the operator's to say: who starts us, not who made the image. */
static int read_precompiled(bool *ret, struct rr_error *err)
{
    const char *value = getenv("ROADRUNNER_PRECOMPILED");

    *ret = value && strcmp(value, "allow") == 0;
    if (*ret || !value || !*value || strcmp(value, "refuse") == 0)
        return 0;
    return rr_error_set(err, RR_E_USAGE, "set it to allow or refuse, or not at all",
                        "ROADRUNNER_PRECOMPILED is '%.40s'", value);
}

int rr_process_rewrite(struct json_object *process, const char *mode, int worker_fd, int image_fd,
                       struct rr_error *err)
{
    struct json_object *args = NULL, *list;
    bool precompiled;
    char text[64];
    int r = read_precompiled(&precompiled, err);

    if (r)
        return r;
    json_object_object_get_ex(process, "args", &args);
    if (!json_object_is_type(args, json_type_array) || json_object_array_length(args) == 0 ||
        check_strings(args, "process.args", NULL))
        return wrong(err, "process.args", "must be a list of strings that names the program");
    list = json_object_new_array();
    snprintf(text, sizeof(text), "/proc/self/fd/%d", worker_fd);
    append(list, text);
    append(list, mode);
    if (strcmp(mode, "status") != 0) {
        if (image_fd >= 0) {
            append(list, "--image-fd");
            snprintf(text, sizeof(text), "%d", image_fd);
            append(list, text);
        }
        if (precompiled)
            append(list, "--precompiled");
        append(list, "--");
        for (size_t i = 0; i < json_object_array_length(args); i++)
            append(list, json_object_get_string(json_object_array_get_idx(args, i)));
    }
    json_object_object_add(process, "args", list);
    return 0;
}

static bool has_proc(const struct json_object *spec)
{
    struct json_object *mounts = NULL;

    json_object_object_get_ex(spec, "mounts", &mounts);
    for (size_t i = 0; mounts && i < json_object_array_length(mounts); i++) {
        const char *to = string_at(json_object_array_get_idx(mounts, i), "destination");

        if (to && (strcmp(to, "/proc") == 0 || strcmp(to, "/proc/") == 0))
            return true;
    }
    return false;
}

int rr_bundle_rewrite(struct json_object *spec, int worker_fd, int image_fd, struct rr_error *err)
{
    struct json_object *process = NULL, *annotations = NULL;

    json_object_object_get_ex(spec, "process", &process);
    json_object_object_get_ex(spec, "annotations", &annotations);
    if (!has_proc(spec))
        return rr_error_set(err, RR_E_INVALID, "add a mount of type proc at /proc",
                            "config.json: mounts: a Wasm container needs /proc");
    if (!process)
        return wrong(err, "process", "is missing");
    for (size_t i = 0; annotations && i < RR_ARRAY_LEN(handler_annotations); i++)
        json_object_object_del(annotations, handler_annotations[i]);
    return rr_process_rewrite(process, "container", worker_fd, image_fd, err);
}

bool rr_bundle_lower_version(struct json_object *spec, const char *runtime)
{
    const char *base = strrchr(runtime, '/'), *version = string_at(spec, "ociVersion");
    char *end;

    base = base ? base + 1 : runtime;
    if (strncmp(base, "crun", 4) != 0 || !version || strncmp(version, "1.", 2) != 0 ||
        strtoul(version + 2, &end, 10) < 2 || *end != '.')
        return false;
    json_object_object_add(spec, "ociVersion", json_object_new_string("1.1.0"));
    return true;
}

/* --- the private folder ---------------------------------------------------------------------- */

/* Relative sources of bind mounts are meant from the bundle. */
static void absolute_sources(const struct rr_bundle *b)
{
    struct json_object *mounts = NULL;
    char *path;

    json_object_object_get_ex(b->spec, "mounts", &mounts);
    for (size_t i = 0; mounts && i < json_object_array_length(mounts); i++) {
        struct json_object *m = json_object_array_get_idx(mounts, i), *options = NULL;
        const char *source = string_at(m, "source"), *type = string_at(m, "type");
        bool bind = type && strcmp(type, "bind") == 0;

        json_object_object_get_ex(m, "options", &options);
        for (size_t k = 0; options && k < json_object_array_length(options); k++) {
            const char *o = json_object_get_string(json_object_array_get_idx(options, k));

            bind = bind || strcmp(o, "bind") == 0 || strcmp(o, "rbind") == 0;
        }
        if (!bind || !source || *source == '/' || absolute(b->path, source, &path) < 0)
            continue;
        json_object_object_add(m, "source", json_object_new_string(path));
        free(path);
    }
}

int rr_bundle_write_private(const struct rr_bundle *b, struct rr_error *err)
{
    __attribute__((cleanup(rr_close_cleanup))) int fd = -1;
    struct json_object *root = NULL;
    char path[PATH_MAX];
    const char *text;
    int r;

    json_object_object_get_ex(b->spec, "root", &root);
    if (root && b->rootfs)
        json_object_object_add(root, "path", json_object_new_string(b->rootfs));
    absolute_sources(b);
    text = json_object_to_json_string_ext(b->spec,
                                          JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
    snprintf(path, sizeof(path), "%s/" RR_OCI_PRIVATE, b->path);
    r = mkdir(path, 0700) < 0 && errno != EEXIST ? -errno : 0;
    if (r == 0) {
        snprintf(path, sizeof(path), "%s/" RR_OCI_PRIVATE "/config.json", b->path);
        unlink(path); /* never through a link that lies there */
        fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        r = fd < 0 ? -errno : rr_write_all(fd, text, strlen(text));
    }
    return r < 0 ? rr_error_set(err, RR_E_SYSTEM, "make the bundle's folder writable",
                                "cannot write %s: %s", path, strerror(-r))
                 : 0;
}

void rr_bundle_remove_private(const char *bundle)
{
    char path[PATH_MAX];

    snprintf(path, sizeof(path), "%s/" RR_OCI_PRIVATE "/config.json", bundle);
    unlink(path);
    *strrchr(path, '/') = 0;
    rmdir(path);
}
