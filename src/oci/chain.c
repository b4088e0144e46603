/* SPDX-License-Identifier: Apache-2.0 */
/* What annotations make of a Wasm container besides a program, and which trust domain it is of. */
#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "oci/oci.h"

#define MAX_VALUE 4096 /* bytes of one of our annotations */
#define MAX_DOMAIN 63
#define POD "@pod"

static int wrong(struct rr_error *err, const char *name, const char *hint, const char *what)
{
    return rr_error_set(err, RR_E_INVALID, hint, "annotation %s: %s", name, what);
}

/* NULL: not set, or empty. */
static const char *value_of(const struct json_object *spec, const char *name)
{
    const char *text = rr_bundle_annotation(spec, name);

    return text && *text ? text : NULL;
}

static int take(const struct json_object *spec, const char *name, char **ret, struct rr_error *err)
{
    const char *text = value_of(spec, name);

    if (!text)
        return 0;
    if (strlen(text) > MAX_VALUE)
        return wrong(err, name, "4096 bytes are enough", "is too long");
    *ret = strdup(text);
    return *ret ? 0 : rr_error_no_memory(err);
}

static int take_flag(const struct json_object *spec, const char *name, bool *ret,
                     struct rr_error *err)
{
    const char *text = value_of(spec, name);

    *ret = text && strcmp(text, "true") == 0;
    if (text && !*ret && strcmp(text, "false") != 0)
        return wrong(err, name, "write \"true\" or \"false\"", "is neither true nor false");
    return 0;
}

static int take_patience(const struct json_object *spec, unsigned int *ret, struct rr_error *err)
{
    const char *name = "roadrunner.dev/patience", *text = value_of(spec, name);
    char *end = NULL;
    unsigned long n = text && isdigit((unsigned char)*text) ? strtoul(text, &end, 10) : 0;

    if (text && (n == 0 || n > 3600 || *end))
        return wrong(err, name, "seconds, 1 to 3600", "is no number of seconds");
    *ret = (unsigned int)n;
    return 0;
}

/* As a workflow file has it for its edges. */
static int take_delivery(const struct json_object *spec, struct rr_oci_chain *c,
                         struct rr_error *err)
{
    const char *name = "roadrunner.dev/delivery", *text = value_of(spec, name);

    c->again = text && strcmp(text, "at-least-once") == 0;
    if (text && !c->again && strcmp(text, "at-most-once") != 0)
        return wrong(err, name, "write \"at-least-once\" or \"at-most-once\"",
                     "is no way of delivery");
    if (text && c->workflow)
        return wrong(err, name, "write `delivery` at the edges of the workflow file",
                     "does not go with roadrunner.dev/workflow");
    return 0;
}

/* "/dir/func_b.wasm" -> "func_b". */
static char *short_name(const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    size_t len = strlen(base);

    if (len > 5 && strcmp(base + len - 5, ".wasm") == 0)
        len -= 5;
    return strndup(base, len);
}

static const char *program_of(const struct json_object *spec)
{
    struct json_object *process = NULL, *args = NULL, *first;

    json_object_object_get_ex(spec, "process", &process);
    json_object_object_get_ex(process, "args", &args);
    first = args ? json_object_array_get_idx(args, 0) : NULL;
    return first ? json_object_get_string(first) : "";
}

/* The prototype's, where ours are not set. */
static int take_prototype(const struct json_object *spec, struct rr_oci_chain *c,
                          struct rr_error *err)
{
    const char *secondary = value_of(spec, "secondary.function");
    const char *target = value_of(spec, "target.function");
    const char *address = value_of(spec, "target.address");
    __attribute__((cleanup(rr_free_cleanup))) char *name = target ? short_name(target) : NULL;

    if (secondary && strcmp(secondary, "true") == 0 && !c->function) {
        c->function = short_name(program_of(spec));
    } else if (secondary && rr_is_module_name(secondary)) {
        c->second = strdup(secondary);
    } else if (secondary && strcmp(secondary, "true") != 0 && strcmp(secondary, "false") != 0) {
        return wrong(err, "secondary.function", "write \"true\", or the path of a .wasm file",
                     "names no module");
    }
    if (!name || c->next)
        return 0;
    if (!address)
        c->next = rr_take(name);
    else if (asprintf(&c->next, "%s@%s", name, address) < 0)
        c->next = NULL;
    return c->next ? 0 : rr_error_no_memory(err);
}

int rr_oci_chain_read(const struct json_object *spec, struct rr_oci_chain *ret,
                      struct rr_error *err)
{
    struct rr_oci_chain c = {0};
    int r = take(spec, "roadrunner.dev/function", &c.function, err);

    if (r == 0)
        r = take(spec, "roadrunner.dev/next", &c.next, err);
    if (r == 0)
        r = take(spec, "roadrunner.dev/listen", &c.listen, err);
    if (r == 0)
        r = take(spec, "roadrunner.dev/workflow", &c.workflow, err);
    if (r == 0)
        r = take_patience(spec, &c.patience_s, err);
    if (r == 0)
        r = take_flag(spec, "roadrunner.dev/plain", &c.plain, err);
    if (r == 0)
        r = take_flag(spec, "roadrunner.dev/trace", &c.trace, err);
    if (r == 0)
        r = take_delivery(spec, &c, err);
    if (r == 0)
        r = take_prototype(spec, &c, err);
    if (r == 0 && c.workflow && c.next)
        r = wrong(err, "roadrunner.dev/next", "leave it out: the workflow says who comes next",
                  "does not go with roadrunner.dev/workflow");
    if (r == 0 && c.listen && !c.function)
        r = wrong(err, "roadrunner.dev/listen", "set roadrunner.dev/function, too",
                  "is for functions");
    if (r) {
        rr_oci_chain_deinit(&c);
        return r;
    }
    c.any = c.function || c.next || c.workflow || c.second || rr_is_workflow_name(program_of(spec));
    *ret = c;
    return 0;
}

void rr_oci_chain_deinit(struct rr_oci_chain *c)
{
    free(c->function);
    free(c->next);
    free(c->listen);
    free(c->workflow);
    free(c->second);
    *c = (struct rr_oci_chain){0};
}

/* --- modules of a workflow -------------------------------------------------------------------- */

/* The value after `module:`, without quotes. */
static char *module_at(const char *text, const char *end, const char *folder, size_t folder_len)
{
    const char *last;
    char *path;

    while (text < end && (*text == ' ' || *text == '\t'))
        text++;
    for (last = text; last < end && !strchr(",}\r\n", *last) && last - text < PATH_MAX; last++)
        ;
    while (last > text && strchr(" \t\"'", last[-1]))
        last--;
    while (text < last && strchr("\"'", *text))
        text++;
    if (text == last || memchr(text, 0, (size_t)(last - text)))
        return NULL;
    if (*text == '/')
        return strndup(text, (size_t)(last - text));
    if (asprintf(&path, "%.*s/%.*s", (int)folder_len, folder, (int)(last - text), text) < 0)
        return NULL;
    return path;
}

size_t rr_oci_workflow_modules(const char *text, size_t len, const char *path,
                               char *ret[RR_OCI_MAX_MODULES])
{
    static const char key[] = "module:";
    const char *end = text + len, *slash = strrchr(path, '/'), *at = text;
    size_t n = 0;

    while (n < RR_OCI_MAX_MODULES && (at = memmem(at, (size_t)(end - at), key, strlen(key)))) {
        char *one;

        at += strlen(key);
        one = module_at(at, end, path, slash ? (size_t)(slash - path) : 0);
        for (size_t k = 0; k < n && one; k++)
            if (strcmp(ret[k], one) == 0) {
                free(one);
                one = NULL;
            }
        if (one)
            ret[n++] = one;
    }
    return n;
}

/* --- for the worker -------------------------------------------------------------------------- */

static void add(struct json_object *list, const char *word)
{
    json_object_array_add(list, json_object_new_string(word));
}

static void add_text(struct json_object *list, const char *option, const char *value)
{
    if (!value)
        return;
    add(list, option);
    add(list, value);
}

/* Negative: none. */
static void add_number(struct json_object *list, const char *option, int n)
{
    char text[16];

    snprintf(text, sizeof(text), "%d", n);
    if (n >= 0)
        add_text(list, option, text);
}

static void add_modules(struct json_object *list, const struct rr_oci_fds *fds)
{
    for (size_t n = 0; n < fds->n_modules; n++) {
        char *text;

        if (fds->modules[n] < 0 || asprintf(&text, "%d=%s", fds->modules[n], fds->paths[n]) < 0)
            continue;
        add_text(list, "--module-fd", text);
        free(text);
    }
}

int rr_oci_chain_rewrite(struct json_object *spec, const struct rr_oci_chain *c,
                         const struct rr_oci_fds *fds, struct rr_error *err)
{
    struct json_object *process = NULL, *args = NULL, *list;
    bool done = false;

    json_object_object_get_ex(spec, "process", &process);
    json_object_object_get_ex(process, "args", &args);
    list = json_object_new_array();
    if (!list || !args) {
        json_object_put(list);
        return rr_error_no_memory(err);
    }
    for (size_t i = 0; i < json_object_array_length(args); i++) {
        const char *word = json_object_get_string(json_object_array_get_idx(args, i));

        if (!done && strcmp(word, "--") == 0) { /* what is before it is ours */
            done = true;
            add_text(list, "--function", c->function);
            add_text(list, "--next", c->next);
            add_text(list, "--listen", c->listen);
            add_text(list, "--workflow", c->workflow);
            add_text(list, "--second", c->second);
            add_number(list, "--patience", c->patience_s ? (int)c->patience_s : -1);
            add_number(list, "--second-fd", fds->second);
            add_number(list, "--domain-fd", fds->domain);
            add_modules(list, fds);
            if (c->plain)
                add(list, "--plain");
            if (c->trace)
                add(list, "--trace");
            if (c->again)
                add(list, "--again");
        }
        add(list, word);
    }
    json_object_object_add(process, "args", list);
    return 0;
}

/* --- ordinary containers --------------------------------------------------------------------- */

int rr_oci_gateway_read(const struct json_object *spec, bool *ret, struct rr_error *err)
{
    const char *type = value_of(spec, "io.kubernetes.cri.container-type");

    *ret = false;
    if (type && strcmp(type, "sandbox") == 0) /* it has its pod's annotations */
        return 0;
    return take_flag(spec, "roadrunner.dev/gateway", ret, err);
}

static struct json_object *list_of(struct json_object *o, const char *name)
{
    struct json_object *list = NULL;

    json_object_object_get_ex(o, name, &list);
    if (!list) {
        list = json_object_new_array();
        json_object_object_add(o, name, list);
    }
    return list;
}

int rr_oci_gateway_rewrite(struct json_object *spec, const char *folder, struct rr_error *err)
{
    static const char *const words[] = {"rbind", "rw", "nosuid", "nodev", "noexec"};
    struct json_object *mount = json_object_new_object(), *options = json_object_new_array(),
                       *process = NULL, *env;
    bool set = false;

    json_object_object_get_ex(spec, "process", &process);
    if (!mount || !options || !process) {
        json_object_put(mount);
        json_object_put(options);
        return rr_error_no_memory(err);
    }
    for (size_t i = 0; i < RR_ARRAY_LEN(words); i++)
        add(options, words[i]);
    json_object_object_add(mount, "destination", json_object_new_string("/run/roadrunner"));
    json_object_object_add(mount, "type", json_object_new_string("bind"));
    json_object_object_add(mount, "source", json_object_new_string(folder));
    json_object_object_add(mount, "options", options);
    json_object_array_add(list_of(spec, "mounts"), mount);
    env = list_of(process, "env");
    for (size_t i = 0; i < json_object_array_length(env); i++)
        set = set || strncmp(json_object_get_string(json_object_array_get_idx(env, i)),
                             "XDG_RUNTIME_DIR=", 16) == 0;
    if (!set)
        add(env, "XDG_RUNTIME_DIR=/run/roadrunner");
    return 0;
}

/* --- trust domains --------------------------------------------------------------------------- */

static bool domain_valid(const char *name)
{
    size_t len = strlen(name);

    if (len == 0 || len > MAX_DOMAIN || !isalnum((unsigned char)name[0]))
        return false;
    for (size_t n = 1; n < len; n++)
        if (!isalnum((unsigned char)name[n]) && !strchr("._-", name[n]))
            return false;
    return true;
}

static int domain_wrong(struct rr_error *err, const char *what, const char *name)
{
    return rr_error_set(err, RR_E_INVALID,
                        "letters, digits, '.', '_' and '-', at most 63, a letter or digit first",
                        "%s: '%.80s' is no name of a trust domain", what, name);
}

int rr_oci_domain_key(const struct json_object *spec, const struct rr_oci_giver *giver,
                      char ret[RR_OCI_DOMAIN], struct rr_error *err)
{
    const char *space = value_of(spec, "io.kubernetes.cri.sandbox-namespace");
    const char *pod = value_of(spec, "io.kubernetes.cri.sandbox-id");
    const char *part = value_of(spec, "roadrunner.dev/domain");
    const char *kind, *of;

    *ret = 0;
    if (giver->domain) {
        kind = "domain";
        of = giver->domain;
    } else if (giver->containerd && space) {
        kind = "k8s";
        of = space;
    } else if (giver->containerd && part) {
        kind = "containerd";
        of = giver->containerd;
    } else {
        return 0;
    }
    if (!domain_valid(of))
        return domain_wrong(err, "the trust domain", of);
    if (part && strcmp(part, POD) == 0 && strcmp(kind, "k8s") == 0 && pod && domain_valid(pod)) {
        snprintf(ret, RR_OCI_DOMAIN, "%s.%s+pod+%.63s", kind, of, pod);
        return 0;
    }
    if (part && !domain_valid(part))
        return domain_wrong(err, "annotation roadrunner.dev/domain", part);
    snprintf(ret, RR_OCI_DOMAIN, "%s.%s%s%s", kind, of, part ? "+" : "", part ? part : "");
    return 0;
}
