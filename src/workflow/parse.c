/* SPDX-License-Identifier: Apache-2.0 */
/* A tree of YAML nodes -> struct rr_workflow; rules that need the whole graph are in check.c. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "workflow/internal.h"

#define MEMORY_DEFAULT (256 * RR_MIB)
#define MEMORY_MIN (64ull << 10)
#define MEMORY_MAX (2 * RR_GIB) /* 1 GiB below the windows, 1 GiB above them */
#define DEADLINE_DEFAULT_NS 10000000000ull
#define DEADLINE_MAX_NS (7ull * 24 * 3600 * 1000000000)
#define INSTANCES_MAX 1024
#define ATTEMPTS_DEFAULT 3
#define QUEUE_MESSAGES_DEFAULT 1024
#define QUEUE_BYTES_DEFAULT (4 * RR_GIB)
#define DOMAIN_MESSAGES_DEFAULT 16384
#define DOMAIN_BYTES_DEFAULT (8 * RR_GIB)
#define CALLS_DEFAULT 10000
#define CALLS_BYTES_DEFAULT RR_GIB
#define CALLS_MEMORY_DEFAULT (256 * RR_MIB) /* without a folder for them */
#define KEEP_DEFAULT_NS 600000000000ull
#define BACKOFF_DEFAULT_NS 1000000000ull
#define ADDRESS_MAX 300
#define MAX_KEYS 14

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit size_units[] = {
    {"B", 1}, {"KiB", 1ull << 10}, {"MiB", RR_MIB}, {"GiB", RR_GIB}, {NULL, 0}};
static const struct unit time_units[] = {{"ns", 1},         {"us", 1000},        {"ms", 1000000},
                                         {"s", 1000000000}, {"m", 60000000000u}, {NULL, 0}};

struct fields {
    const struct yaml_node *values[MAX_KEYS]; /* by the index of the key; NULL: not given */
};

enum scalar { SCALAR_TEXT, SCALAR_NULL, SCALAR_BOOL, SCALAR_NUMBER };

static bool one_of(const char *text, const char *const *words)
{
    for (; *words; words++) {
        if (strcmp(text, *words) == 0)
            return true;
    }
    return false;
}

static bool is_number(const char *s)
{
    static const char *const special[] = {".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN", NULL};
    size_t digits, more;

    if (s[0] == '0' && s[1] == 'x')
        return s[2] && !s[2 + strspn(s + 2, "0123456789abcdefABCDEF")];
    if (s[0] == '0' && s[1] == 'o')
        return s[2] && !s[2 + strspn(s + 2, "01234567")];
    if (*s == '-' || *s == '+')
        s++;
    if (one_of(s, special))
        return true;
    digits = strspn(s, "0123456789");
    s += digits;
    if (*s == '.') {
        more = strspn(++s, "0123456789");
        digits += more;
        s += more;
    }
    if (digits == 0)
        return false;
    if (*s == 'e' || *s == 'E') {
        s++;
        if (*s == '-' || *s == '+')
            s++;
        if (!*s)
            return false;
        s += strspn(s, "0123456789");
    }
    return !*s;
}

/* YAML 1.2's core schema: what a scalar without quotes means to any other YAML reader. */
static enum scalar resolve(const struct yaml_node *node)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL", NULL};
    static const char *const bools[] = {"true", "True", "TRUE", "false", "False", "FALSE", NULL};

    if (!node->plain)
        return SCALAR_TEXT;
    if (one_of(node->text, nulls))
        return SCALAR_NULL;
    if (one_of(node->text, bools))
        return SCALAR_BOOL;
    return is_number(node->text) ? SCALAR_NUMBER : SCALAR_TEXT;
}

static const char *kind_text(const struct yaml_node *node)
{
    if (node->kind != YAML_SCALAR)
        return node->kind == YAML_LIST ? "a list" : "a map";
    switch (resolve(node)) {
    case SCALAR_NULL:
        return "empty";
    case SCALAR_BOOL:
        return "true or false";
    case SCALAR_NUMBER:
        return "a number";
    case SCALAR_TEXT:
        break;
    }
    return "a text";
}

static int want_kind(struct reader *r, const struct yaml_node *node, enum yaml_kind kind,
                     const char *what)
{
    if (node->kind == kind)
        return 0;
    if (kind == YAML_MAP)
        return rr_reader_fail(r, RR_E_INVALID, node->pos, "write `key: value` pairs",
                              "%s must be a map, not %s", what, kind_text(node));
    return rr_reader_fail(r, RR_E_INVALID, node->pos, "write [a, b] or lines that begin with `- `",
                          "%s must be a list, not %s", what, kind_text(node));
}

static int want_text(struct reader *r, const struct yaml_node *node, const char *what)
{
    enum scalar scalar = SCALAR_NULL;

    if (node->kind == YAML_SCALAR) {
        scalar = resolve(node);
        if (scalar == SCALAR_TEXT && node->len > 0)
            return 0;
    }
    return rr_reader_fail(r, RR_E_INVALID, node->pos,
                          scalar == SCALAR_NULL ? "write a text here"
                                                : "put quotes around it to make it a text",
                          "%s must be a text, not %s", what,
                          node->kind == YAML_SCALAR && node->len == 0 ? "empty" : kind_text(node));
}

static int want_name(struct reader *r, const struct yaml_node *node, const char *what)
{
    int rc = want_text(r, node, what);

    if (rc)
        return rc;
    if (!rr_name_valid(node->text, node->len))
        return rr_reader_fail(r, RR_E_INVALID, node->pos,
                              "a name is a letter and then up to 62 letters, digits, '_' or '-'",
                              "'%.80s' is not a valid %s", node->text, what);
    return 0;
}

static void hint_keys(char *hint, size_t size, const char *wanted, const char *const *keys)
{
    struct rr_nearest nearest;
    size_t used;

    rr_nearest_init(&nearest, wanted);
    for (const char *const *key = keys; *key; key++)
        rr_nearest_offer(&nearest, *key);
    if (nearest.best) {
        snprintf(hint, size, "did you mean '%s'?", nearest.best);
        return;
    }
    used = (size_t)snprintf(hint, size, "allowed here: %s", keys[0]);
    for (const char *const *key = keys + 1; *key && used < size; key++)
        used += (size_t)snprintf(hint + used, size - used, ", %s", *key);
}

static int read_fields(struct reader *r, const struct yaml_node *map, const char *what,
                       const char *const *keys, struct fields *ret)
{
    int rc = want_kind(r, map, YAML_MAP, what);
    char hint[256];

    *ret = (struct fields){0};
    if (rc)
        return rc;
    for (const struct yaml_node *key = map->first; key; key = key->next->next) {
        size_t i = 0;

        while (keys[i] && strcmp(keys[i], key->text) != 0)
            i++;
        if (!keys[i]) {
            hint_keys(hint, sizeof(hint), key->text, keys);
            return rr_reader_fail(r, RR_E_INVALID, key->pos, hint, "unknown key '%.80s' in %s",
                                  key->text, what);
        }
        ret->values[i] = key->next;
    }
    return 0;
}

/* "64MiB" or "10 s": digits, at most one space, unit. False when it is not that. */
static bool read_quantity(const char *s, const struct unit *units, uint64_t *ret)
{
    uint64_t n = 0;
    size_t digits = strspn(s, "0123456789");

    for (size_t i = 0; i < digits; i++) {
        if (__builtin_mul_overflow(n, 10, &n) ||
            __builtin_add_overflow(n, (uint64_t)(s[i] - '0'), &n))
            n = UINT64_MAX;
    }
    s += digits;
    if (*s == ' ')
        s++;
    for (; digits > 0 && units->name; units++) {
        if (strcmp(s, units->name) == 0) {
            if (__builtin_mul_overflow(n, units->factor, ret))
                *ret = UINT64_MAX;
            return true;
        }
    }
    return false;
}

static int read_size(struct reader *r, const struct yaml_node *node, const char *what, uint64_t min,
                     uint64_t max, uint64_t *ret)
{
    uint64_t bytes;

    if (node->kind != YAML_SCALAR || !read_quantity(node->text, size_units, &bytes))
        return rr_reader_fail(r, RR_E_INVALID, node->pos,
                              "write a whole number and a unit, B, KiB, MiB or GiB: 64MiB",
                              "%s is not a size: '%.80s'", what, node->text);
    if (bytes < min || bytes > max) {
        char hint[128];

        snprintf(hint, sizeof(hint), "choose a size from %s to %s", rr_bytes_text(min),
                 rr_bytes_text(max));
        return rr_reader_fail(r, RR_E_INVALID, node->pos, hint, "%s is out of range: %.80s", what,
                              node->text);
    }
    *ret = bytes;
    return 0;
}

static int read_deadline(struct reader *r, const struct yaml_node *node, uint64_t *ret)
{
    uint64_t ns;

    if (node->kind == YAML_SCALAR && strcmp(node->text, "none") == 0) {
        *ret = 0;
        return 0;
    }
    if (node->kind != YAML_SCALAR || !read_quantity(node->text, time_units, &ns))
        return rr_reader_fail(r, RR_E_INVALID, node->pos,
                              "write a whole number and a unit, ns, us, ms, s or m: 10s; or none",
                              "deadline is not a time: '%.80s'", node->text);
    if (ns == 0 || ns > DEADLINE_MAX_NS)
        return rr_reader_fail(r, RR_E_INVALID, node->pos,
                              "choose a time from 1ns to 10080m, or none for no deadline",
                              "deadline is out of range: %.80s", node->text);
    *ret = ns;
    return 0;
}

/* One number of a duration and its letter, such as 1.5S; past it, or NULL. */
static const char *read_part(const char *s, const char *letters, const uint64_t *seconds,
                             unsigned int *ret_letter, uint64_t *sum)
{
    uint64_t whole = 0, fraction = 0, scale = 1000000000, ns;
    const char *begin = s, *at;

    for (; *s >= '0' && *s <= '9'; s++)
        whole = whole > DEADLINE_MAX_NS ? whole : whole * 10 + (uint64_t)(*s - '0');
    if (s == begin)
        return NULL;
    if (*s == '.' || *s == ',') {
        for (begin = ++s; *s >= '0' && *s <= '9'; s++)
            if (scale > 1) {
                scale /= 10;
                fraction += (uint64_t)(*s - '0') * scale;
            }
        if (s == begin || *s != 'S')
            return NULL;
    }
    at = *s ? strchr(letters, *s) : NULL;
    if (!at || (unsigned int)(at - letters) < *ret_letter)
        return NULL;
    *ret_letter = (unsigned int)(at - letters) + 1; /* the next one must be smaller */
    if (__builtin_mul_overflow(whole, seconds[at - letters] * 1000000000, &ns) ||
        __builtin_add_overflow(ns + fraction, *sum, sum))
        *sum = UINT64_MAX;
    return s + 1;
}

/* ISO 8601: P1DT2H3M4.5S. Years and months have no fixed length, and are refused. */
static bool read_iso(const char *s, uint64_t *ret)
{
    static const uint64_t days[] = {7ull * 86400, 86400}, times[] = {3600, 60, 1};
    unsigned int letter = 0;
    uint64_t sum = 0;

    if (s[0] != 'P' || !s[1])
        return false;
    s++;
    while (*s && *s != 'T') {
        s = read_part(s, "WD", days, &letter, &sum);
        if (!s)
            return false;
    }
    if (*s == 'T') {
        letter = 0;
        s++;
        if (!*s)
            return false;
        while (*s) {
            s = read_part(s, "HMS", times, &letter, &sum);
            if (!s)
                return false;
        }
    }
    *ret = sum;
    return true;
}

static int read_duration(struct reader *r, const struct yaml_node *node, const char *what,
                         uint64_t *ret)
{
    uint64_t ns;

    if (node->kind != YAML_SCALAR || !read_iso(node->text, &ns))
        return rr_reader_fail(
            r, RR_E_INVALID, node->pos,
            "write a duration of ISO 8601, without years and months: PT0.5S, PT1M",
            "%s is not a duration: '%.80s'", what, node->text);
    if (ns == 0 || ns > DEADLINE_MAX_NS)
        return rr_reader_fail(r, RR_E_INVALID, node->pos, "choose one of up to P7D",
                              "%s is out of range: %.80s", what, node->text);
    *ret = ns;
    return 0;
}

/* A number from 1 to @max, as people write it: no sign, no zeros first, no quotes. */
static bool whole_number(const struct yaml_node *node, unsigned int max, unsigned int *ret)
{
    unsigned long n;
    char *end;

    if (node->kind != YAML_SCALAR || !node->plain || node->text[0] < '1' || node->text[0] > '9')
        return false;
    n = strtoul(node->text, &end, 10);
    if (*end || n > max)
        return false;
    *ret = (unsigned int)n;
    return true;
}

static int read_count(struct reader *r, const struct yaml_node *node, const char *what,
                      unsigned int max, unsigned int *ret)
{
    char hint[64];

    if (whole_number(node, max, ret))
        return 0;
    snprintf(hint, sizeof(hint), "write a number from 1 to %u", max);
    if (node->kind != YAML_SCALAR)
        return rr_reader_fail(r, RR_E_INVALID, node->pos, hint, "%s must be a number, not %s", what,
                              kind_text(node));
    return rr_reader_fail(r, RR_E_INVALID, node->pos, hint, "%s cannot be '%.80s'", what,
                          node->text);
}

/* One of two words; @ret: it is the second. */
static int read_word(struct reader *r, const struct yaml_node *node, const char *what,
                     const char *const words[2], const char *hint, bool *ret)
{
    if (node->kind != YAML_SCALAR)
        return rr_reader_fail(r, RR_E_INVALID, node->pos, hint, "%s must be a text, not %s", what,
                              kind_text(node));
    if (strcmp(node->text, words[0]) != 0 && strcmp(node->text, words[1]) != 0)
        return rr_reader_fail(r, RR_E_INVALID, node->pos, hint, "%s cannot be '%.80s'", what,
                              node->text);
    *ret = strcmp(node->text, words[1]) == 0;
    return 0;
}

static int read_isolation(struct reader *r, const struct yaml_node *node, bool *ret)
{
    static const char *const words[] = {"worker", "process"};

    return read_word(r, node, "isolation", words,
                     "write process (a process of its own) or worker (with the others)", ret);
}

static int read_instances(struct reader *r, const struct yaml_node *node, unsigned int *ret)
{
    if (node->kind == YAML_SCALAR && strcmp(node->text, "fresh") == 0) {
        *ret = 0;
        return 0;
    }
    if (whole_number(node, INSTANCES_MAX, ret))
        return 0;
    return rr_reader_fail(r, RR_E_INVALID, node->pos,
                          "write fresh (an instance per message) or a number from 1 to 1024",
                          "instances cannot be '%.80s'", node->text);
}

static int read_bool(struct reader *r, const struct yaml_node *node, const char *what, bool *ret)
{
    if (node->kind != YAML_SCALAR || resolve(node) != SCALAR_BOOL)
        return rr_reader_fail(r, RR_E_INVALID, node->pos, "write true or false",
                              "%s must be true or false", what);
    *ret = node->text[0] == 't' || node->text[0] == 'T';
    return 0;
}

static int copy_text(struct reader *r, const char *text, char **ret)
{
    *ret = strdup(text);
    return *ret ? 0 : rr_reader_no_memory(r);
}

/* A path as the workflow file's author sees it: relative to that file's folder. */
static int read_path(struct reader *r, const struct yaml_node *node, const char *what, char **ret)
{
    const char *base = strrchr(r->wf->path, '/');
    int rc = want_text(r, node, what);

    if (rc)
        return rc;
    if (node->text[0] == '/' || !base)
        return copy_text(r, node->text, ret);
    if (asprintf(ret, "%.*s%s", (int)(base - r->wf->path + 1), r->wf->path, node->text) < 0) {
        *ret = NULL;
        return rr_reader_no_memory(r);
    }
    return 0;
}

/* A value that reaches the guest as text, whatever YAML takes it for: 3, true, "a b". */
static int want_value(struct reader *r, const struct yaml_node *node, const char *what)
{
    if (node->kind == YAML_SCALAR && resolve(node) != SCALAR_NULL)
        return 0;
    return rr_reader_fail(r, RR_E_INVALID, node->pos, "write a text, or \"\" for an empty one",
                          "%s must be a text, not %s", what, kind_text(node));
}

static int read_args(struct reader *r, const struct yaml_node *list, struct rr_function *f)
{
    size_t n = 0;
    int rc = want_kind(r, list, YAML_LIST, "args");

    if (rc)
        return rc;
    f->args = calloc(list->n_children + 1, sizeof(char *));
    if (!f->args)
        return rr_reader_no_memory(r);
    for (const struct yaml_node *item = list->first; item && !rc; item = item->next) {
        rc = want_value(r, item, "an argument");
        if (!rc)
            rc = copy_text(r, item->text, &f->args[n++]);
    }
    return rc;
}

static bool is_env_name(const char *s)
{
    if (!*s || (*s >= '0' && *s <= '9'))
        return false;
    return !s[strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")];
}

static int read_env(struct reader *r, const struct yaml_node *map, struct rr_function *f)
{
    size_t n = 0;
    int rc = want_kind(r, map, YAML_MAP, "env");

    if (rc)
        return rc;
    f->env = calloc(map->n_children / 2 + 1, sizeof(char *));
    if (!f->env)
        return rr_reader_no_memory(r);
    for (const struct yaml_node *key = map->first; key; key = key->next->next) {
        if (!is_env_name(key->text))
            return rr_reader_fail(r, RR_E_INVALID, key->pos,
                                  "use letters, digits and '_', and no digit first",
                                  "'%.80s' is not a valid name of a variable", key->text);
        rc = want_value(r, key->next, "the value of a variable");
        if (rc)
            return rc;
        if (asprintf(&f->env[n], "%s=%s", key->text, key->next->text) < 0) {
            f->env[n] = NULL;
            return rr_reader_no_memory(r);
        }
        n++;
    }
    return 0;
}

static bool guest_path_valid(const char *path)
{
    if (path[0] != '/')
        return false;
    for (const char *part = path; part; part = strchr(part, '/')) {
        part++;
        if (strncmp(part, "..", 2) == 0 && (!part[2] || part[2] == '/'))
            return false;
    }
    return true;
}

static int read_folder(struct reader *r, const struct yaml_node *node, struct rr_function *f)
{
    static const char *const keys[] = {"host", "guest", "writable", NULL};
    struct rr_folder *folder = &f->folders[f->n_folders];
    const struct yaml_node *host, *guest;
    struct fields in;
    int rc = read_fields(r, node, "a folder", keys, &in);

    if (rc)
        return rc;
    host = in.values[0];
    guest = in.values[1];
    if (!host || !guest)
        return rr_reader_fail(r, RR_E_INVALID, node->pos, "write {host: data, guest: /data}",
                              "a folder needs '%s'", host ? "guest" : "host");
    f->n_folders++;
    folder->host_pos = host->pos;
    rc = read_path(r, host, "host", &folder->host);
    if (!rc)
        rc = want_text(r, guest, "guest");
    if (rc)
        return rc;
    if (!guest_path_valid(guest->text))
        return rr_reader_fail(r, RR_E_INVALID, guest->pos,
                              "write a path that begins with / and has no '..'",
                              "'%.200s' is not a path for the guest", guest->text);
    for (size_t i = 0; i + 1 < f->n_folders; i++) {
        if (strcmp(f->folders[i].guest, guest->text) == 0)
            return rr_reader_fail(r, RR_E_INVALID, guest->pos, "give each folder its own path",
                                  "two folders are both '%.200s' for the guest", guest->text);
    }
    rc = copy_text(r, guest->text, &folder->guest);
    if (!rc && in.values[2])
        rc = read_bool(r, in.values[2], "writable", &folder->writable);
    return rc;
}

static int read_folders(struct reader *r, const struct yaml_node *list, struct rr_function *f)
{
    int rc = want_kind(r, list, YAML_LIST, "folders");

    if (rc)
        return rc;
    if (list->n_children > RR_WORKFLOW_MAX_FOLDERS)
        return rr_reader_fail(r, RR_E_INVALID, list->pos, "give it a folder that holds the others",
                              "more than %d folders", RR_WORKFLOW_MAX_FOLDERS);
    f->folders = calloc(list->n_children + 1, sizeof(*f->folders));
    if (!f->folders)
        return rr_reader_no_memory(r);
    for (const struct yaml_node *item = list->first; item && !rc; item = item->next)
        rc = read_folder(r, item, f);
    return rc;
}

/* host:port, [v6]:port or unix:/path; what exactly is a host is for the resolver to say. */
static bool is_address(const char *text)
{
    const char *colon = strrchr(text, ':');
    unsigned long port;
    char *end;

    if (strlen(text) > ADDRESS_MAX)
        return false;
    if (strncmp(text, "unix:", 5) == 0)
        return text[5] == '/' && strlen(text + 5) < 100;
    if (!colon || colon == text || (text[0] == '[') != (colon[-1] == ']') ||
        (text[0] != '[' && strchr(text, ':') != colon))
        return false;
    port = strtoul(colon + 1, &end, 10);
    return colon[1] >= '0' && colon[1] <= '9' && !*end && port >= 1 && port <= 65535;
}

static int read_node(struct reader *r, const struct yaml_node *key, struct rr_node *node)
{
    static const char *const keys[] = {"address", "identity", NULL};
    struct fields in;
    char what[80];
    int rc = want_name(r, key, "name of a node");

    node->pos = key->pos;
    if (!rc)
        rc = copy_text(r, key->text, &node->name);
    snprintf(what, sizeof(what), "node '%.63s'", key->text);
    if (!rc)
        rc = read_fields(r, key->next, what, keys, &in);
    if (rc)
        return rc;
    if (!in.values[0])
        return rr_reader_fail(r, RR_E_INVALID, key->pos, "add `address: \"HOST:PORT\"`",
                              "%s has no address", what);
    rc = want_text(r, in.values[0], "address");
    if (!rc && !is_address(in.values[0]->text))
        rc = rr_reader_fail(r, RR_E_INVALID, in.values[0]->pos,
                            "write HOST:PORT, [IPv6]:PORT or unix:/PATH",
                            "'%.200s' is not an address", in.values[0]->text);
    if (!rc)
        rc = copy_text(r, in.values[0]->text, &node->address);
    if (!rc && in.values[1])
        rc = want_text(r, in.values[1], "identity");
    return rc || !in.values[1] ? rc : copy_text(r, in.values[1]->text, &node->identity);
}

static int read_nodes(struct reader *r, const struct yaml_node *map)
{
    struct rr_workflow *wf = r->wf;
    int rc = want_kind(r, map, YAML_MAP, "nodes");

    if (rc)
        return rc;
    if (map->n_children / 2 > RR_WORKFLOW_MAX_NODES)
        return rr_reader_fail(r, RR_E_INVALID, map->pos, "split the workflow", "more than %d nodes",
                              RR_WORKFLOW_MAX_NODES);
    wf->nodes = calloc(map->n_children / 2 + 1, sizeof(*wf->nodes));
    if (!wf->nodes)
        return rr_reader_no_memory(r);
    for (const struct yaml_node *key = map->first; key && !rc; key = key->next->next)
        rc = read_node(r, key, &wf->nodes[wf->n_nodes++]);
    return rc;
}

/* Where a function lives. @isolation: what the file says for it alone, or NULL. */
static int read_place(struct reader *r, const struct yaml_node *node,
                      const struct yaml_node *isolation, struct rr_function *f)
{
    struct rr_nearest near;
    char hint[160];
    int rc = want_text(r, node, "node");

    if (rc)
        return rc;
    f->node_pos = node->pos;
    rr_nearest_init(&near, node->text);
    for (size_t i = 0; i < r->wf->n_nodes && f->node < 0; i++) {
        rr_nearest_offer(&near, r->wf->nodes[i].name);
        if (strcmp(r->wf->nodes[i].name, node->text) == 0)
            f->node = (int)i;
    }
    snprintf(hint, sizeof(hint),
             near.best ? "did you mean '%.63s'?" : "add it under `nodes` with its address",
             near.best);
    if (f->node < 0)
        return rr_reader_fail(r, RR_E_INVALID, node->pos, hint, "there is no node '%.80s'",
                              node->text);
    if (isolation && f->isolated)
        return rr_reader_fail(r, RR_E_INVALID, isolation->pos,
                              "give it a node of its own: that is a process of its own",
                              "a function on another node cannot have `isolation: process`");
    f->isolated = false; /* the workflow's own word is for functions that live here */
    return 0;
}

static int read_allow(struct reader *r, const struct yaml_node *list, struct rr_function *f)
{
    size_t n = 0;
    int rc = want_kind(r, list, YAML_LIST, "allow");

    if (rc)
        return rc;
    if (list->n_children == 0 || list->n_children > RR_WORKFLOW_MAX_ALLOWED)
        return rr_reader_fail(r, RR_E_INVALID, list->pos,
                              "name who may send to it from other nodes, or leave the key out",
                              "allow takes 1 to %d identities", RR_WORKFLOW_MAX_ALLOWED);
    f->allow = calloc(list->n_children + 1, sizeof(char *));
    if (!f->allow)
        return rr_reader_no_memory(r);
    for (const struct yaml_node *item = list->first; item && !rc; item = item->next) {
        rc = want_text(r, item, "an identity");
        if (!rc)
            rc = copy_text(r, item->text, &f->allow[n++]);
    }
    return rc;
}

static int read_function(struct reader *r, const struct yaml_node *key, struct rr_function *f)
{
    static const char *const keys[] = {"module",    "memory", "deadline", "instances",
                                       "env",       "args",   "folders",  "calls",
                                       "isolation", "node",   "allow",    NULL};
    struct fields in;
    char what[80];
    int rc;

    f->memory_bytes = MEMORY_DEFAULT;
    f->deadline_ns = DEADLINE_DEFAULT_NS;
    f->isolated = r->isolated;
    f->node = RR_NODE_HERE;
    f->pos = key->pos;
    rc = want_name(r, key, "name of a function");
    if (!rc && strcmp(key->text, "input") == 0)
        rc = rr_reader_fail(r, RR_E_INVALID, key->pos, "choose another name",
                            "'input' stands for the workflow's input, not for a function");
    if (!rc)
        rc = copy_text(r, key->text, &f->name);
    snprintf(what, sizeof(what), "function '%.63s'", key->text);
    if (!rc)
        rc = read_fields(r, key->next, what, keys, &in);
    if (rc)
        return rc;
    if (!in.values[0])
        return rr_reader_fail(r, RR_E_INVALID, key->pos, "add `module: FILE.wasm`",
                              "%s has no module", what);
    f->module_pos = in.values[0]->pos;
    rc = read_path(r, in.values[0], "module", &f->module);
    if (!rc && in.values[1])
        rc = read_size(r, in.values[1], "memory", MEMORY_MIN, MEMORY_MAX, &f->memory_bytes);
    if (!rc && in.values[2])
        rc = read_deadline(r, in.values[2], &f->deadline_ns);
    if (!rc && in.values[3])
        rc = read_instances(r, in.values[3], &f->instances);
    if (!rc && in.values[4])
        rc = read_env(r, in.values[4], f);
    if (!rc && in.values[5])
        rc = read_args(r, in.values[5], f);
    if (!rc && in.values[6])
        rc = read_folders(r, in.values[6], f);
    if (!rc && in.values[8])
        rc = read_isolation(r, in.values[8], &f->isolated);
    if (!rc && in.values[9])
        rc = read_place(r, in.values[9], in.values[8], f);
    if (!rc && in.values[10])
        rc = read_allow(r, in.values[10], f);
    r->calls_nodes[f - r->wf->functions] = in.values[7];
    return rc;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct name_index *)a)->name, ((const struct name_index *)b)->name);
}

static int read_functions(struct reader *r, const struct yaml_node *map)
{
    size_t n = map->n_children / 2;
    struct rr_workflow *wf = r->wf;
    int rc = want_kind(r, map, YAML_MAP, "functions");

    if (rc)
        return rc;
    if (n == 0)
        return rr_reader_fail(r, RR_E_INVALID, map->pos, "add a function",
                              "the workflow has no functions");
    if (n > RR_WORKFLOW_MAX_FUNCTIONS)
        return rr_reader_fail(r, RR_E_INVALID, map->pos, "split the workflow",
                              "more than %d functions", RR_WORKFLOW_MAX_FUNCTIONS);
    wf->functions = calloc(n, sizeof(*wf->functions));
    r->by_name = calloc(n, sizeof(*r->by_name));
    r->calls_nodes = calloc(n, sizeof(struct yaml_node *));
    if (!wf->functions || !r->by_name || !r->calls_nodes)
        return rr_reader_no_memory(r);
    for (const struct yaml_node *key = map->first; key; key = key->next->next) {
        size_t i = wf->n_functions++;

        rc = read_function(r, key, &wf->functions[i]);
        if (rc)
            return rc;
        r->by_name[i] = (struct name_index){wf->functions[i].name, (int)i};
    }
    qsort(r->by_name, n, sizeof(*r->by_name), compare_names);
    return 0;
}

static int find_function(struct reader *r, const struct yaml_node *node, const char *name,
                         bool input_too, int *ret)
{
    struct name_index wanted = {name, 0};
    const struct name_index *found =
        bsearch(&wanted, r->by_name, r->wf->n_functions, sizeof(wanted), compare_names);
    struct rr_nearest nearest;
    char hint[128];

    if (found) {
        *ret = found->index;
        return 0;
    }
    rr_nearest_init(&nearest, name);
    for (size_t i = 0; i < r->wf->n_functions; i++)
        rr_nearest_offer(&nearest, r->wf->functions[i].name);
    if (input_too)
        rr_nearest_offer(&nearest, "input");
    if (nearest.best)
        snprintf(hint, sizeof(hint), "did you mean '%s'?", nearest.best);
    else
        snprintf(hint, sizeof(hint), "add '%s' under functions", name);
    return rr_reader_fail(r, RR_E_INVALID, node->pos, hint, "unknown function '%s'", name);
}

/* "f" or "f.port"; @port is copied out. */
static int read_endpoint(struct reader *r, const struct yaml_node *node, const char *what,
                         bool input_too, const char *default_port, int *ret_function,
                         char port[RR_WORKFLOW_MAX_NAME + 1])
{
    char name[RR_WORKFLOW_MAX_NAME + 1];
    const char *dot;
    size_t len;
    int rc = want_text(r, node, what);

    if (rc)
        return rc;
    dot = strchr(node->text, '.');
    len = dot ? (size_t)(dot - node->text) : node->len;
    if (!rr_name_valid(node->text, len) || (dot && !rr_name_valid(dot + 1, node->len - len - 1)))
        return rr_reader_fail(r, RR_E_INVALID, node->pos, "write FUNCTION or FUNCTION.PORT",
                              "'%.160s' is not a function and port", node->text);
    snprintf(name, sizeof(name), "%.*s", (int)len, node->text);
    if (strcmp(name, "input") == 0) {
        if (!input_too)
            return rr_reader_fail(r, RR_E_INVALID, node->pos, "name a function",
                                  "'input' is where the workflow begins: it cannot be %s",
                                  strcmp(what, "to") == 0 ? "the end of an edge" : "the result");
        if (dot)
            return rr_reader_fail(r, RR_E_INVALID, node->pos, "write `from: input`",
                                  "'input' has no ports");
        *ret_function = RR_NODE_INPUT;
    } else {
        rc = find_function(r, node, name, input_too, ret_function);
    }
    snprintf(port, RR_WORKFLOW_MAX_NAME + 1, "%s", dot ? dot + 1 : default_port);
    return rc;
}

struct rr_edge *rr_edge_add(struct reader *r, int from, const char *from_port, int to,
                            const char *to_port, struct rr_pos pos)
{
    struct rr_workflow *wf = r->wf;
    struct rr_edge *edge;

    if (wf->n_edges == RR_WORKFLOW_MAX_EDGES) {
        rr_reader_fail(r, RR_E_INVALID, pos, "split the workflow",
                       "more than %d edges (a name in `calls` counts as two)",
                       RR_WORKFLOW_MAX_EDGES);
        return NULL;
    }
    if (wf->n_edges == r->edges_room) {
        size_t room = r->edges_room ? 2 * r->edges_room : 16;
        struct rr_edge *grown = reallocarray(wf->edges, room, sizeof(*grown));

        if (!grown) {
            rr_reader_no_memory(r);
            return NULL;
        }
        wf->edges = grown;
        r->edges_room = room;
    }
    edge = &wf->edges[wf->n_edges];
    *edge = (struct rr_edge){.from = from, .to = to, .attempts = 1, .pos = pos};
    edge->from_port = strdup(from_port);
    edge->to_port = strdup(to_port);
    if (!edge->from_port || !edge->to_port) {
        free(edge->from_port);
        free(edge->to_port);
        rr_reader_no_memory(r);
        return NULL;
    }
    wf->n_edges++;
    return edge;
}

static int read_sink(struct reader *r, const struct yaml_node *node, char **ret)
{
    static const char *const keys[] = {"uri", NULL};
    const struct yaml_node *uri;
    struct fields in;
    int rc = read_fields(r, node, "deadLetterSink", keys, &in);

    uri = in.values[0];
    if (!rc && !uri)
        rc = rr_reader_fail(r, RR_E_INVALID, node->pos, "write {uri: \"http://...\"}",
                            "deadLetterSink needs 'uri'");
    if (!rc)
        rc = want_text(r, uri, "uri");
    if (rc)
        return rc;
    if ((strncmp(uri->text, "http://", 7) != 0 && strncmp(uri->text, "https://", 8) != 0) ||
        uri->len > 2000 || strpbrk(uri->text, " \t\r\n"))
        return rr_reader_fail(r, RR_E_INVALID, uri->pos,
                              "write an http:// or https:// address; a file is named by "
                              "`dead_letters` at the top level",
                              "'%.80s' is not a URI for dead letters", uri->text);
    return copy_text(r, uri->text, ret);
}

#define POLICY_KEYS "retry", "backoffPolicy", "backoffDelay", "timeout", "deadLetterSink"

/* @in: by the keys above, which are Knative's. */
static int read_policy(struct reader *r, const struct yaml_node *const *in, unsigned int max_retry,
                       struct rr_delivery *d)
{
    static const char *const words[] = {"exponential", "linear"};
    int rc = 0;

    d->given = true;
    if (in[0] && !(in[0]->kind == YAML_SCALAR && in[0]->plain && strcmp(in[0]->text, "0") == 0))
        rc = read_count(r, in[0], "retry", max_retry, &d->retry);
    if (!rc && in[1])
        rc = read_word(r, in[1], "backoffPolicy", words,
                       "write exponential (each pause twice the one before) or linear", &d->linear);
    if (!rc && in[2])
        rc = read_duration(r, in[2], "backoffDelay", &d->backoff_ns);
    if (!rc && in[3])
        rc = read_duration(r, in[3], "timeout", &d->timeout_ns);
    return rc || !in[4] ? rc : read_sink(r, in[4], &d->sink);
}

/* Where both ends live in the parent worker, its death ends the run: nobody is left to try again.
 */
static int fail_inside(struct reader *r, const struct rr_edge *edge, struct rr_pos pos)
{
    const char *to = r->wf->functions[edge->to].name;
    const char *from = edge->from < 0 ? "input" : r->wf->functions[edge->from].name;
    char hint[256];

    if (edge->from < 0)
        snprintf(hint, sizeof(hint), "isolate the function: `isolation: process` for '%s'", to);
    else
        snprintf(hint, sizeof(hint),
                 "isolate one of the two functions: `isolation: process` for '%s' or '%s'", from,
                 to);
    return rr_reader_fail(r, RR_E_INVALID, pos, hint,
                          "at-least-once has no meaning from '%s' to '%s': both are in one process",
                          from, to);
}

enum { EDGE_DELIVERY = 3, EDGE_ATTEMPTS, EDGE_RETRY, EDGE_POLICY, EDGE_DELAY };
static const char *const edge_keys[] = {
    "from", "to", "max", "delivery", "attempts", "retry", "backoffPolicy", "backoffDelay", NULL};

/* How long to wait before another delivery. */
static int read_backoff(struct reader *r, const struct yaml_node *const *in, struct rr_edge *edge)
{
    static const char *const words[] = {"exponential", "linear"};
    const struct yaml_node *first = in[EDGE_POLICY] ? in[EDGE_POLICY] : in[EDGE_DELAY];
    int rc = 0;

    if (!first)
        return 0;
    if (rr_edge_channel(r->wf, edge) == RR_CHANNEL_NETWORK)
        return rr_reader_fail(r, RR_E_INVALID, first->pos, "remove it",
                              "an edge between nodes has no backoff: its pauses are those of the "
                              "connection");
    edge->backs_off = true;
    edge->backoff_ns = BACKOFF_DEFAULT_NS;
    if (in[EDGE_POLICY])
        rc = read_word(r, in[EDGE_POLICY], "backoffPolicy", words,
                       "write exponential (each pause twice the one before) or linear",
                       &edge->linear);
    return rc || !in[EDGE_DELAY]
               ? rc
               : read_duration(r, in[EDGE_DELAY], "backoffDelay", &edge->backoff_ns);
}

/* Retries do not count the first attempt. */
static int read_attempts(struct reader *r, const struct yaml_node *const *in, struct rr_edge *edge)
{
    const struct yaml_node *retry = in[EDGE_RETRY];
    unsigned int n = 0;
    int rc = 0;

    edge->attempts = ATTEMPTS_DEFAULT;
    if (in[EDGE_ATTEMPTS] && retry)
        return rr_reader_fail(r, RR_E_INVALID, retry->pos, "keep one of the two",
                              "attempts and retry say the same: attempts counts the first one");
    if (in[EDGE_ATTEMPTS])
        return read_count(r, in[EDGE_ATTEMPTS], "attempts", RR_WORKFLOW_MAX_ATTEMPTS,
                          &edge->attempts);
    if (!retry)
        return 0;
    if (!(retry->kind == YAML_SCALAR && retry->plain && strcmp(retry->text, "0") == 0))
        rc = read_count(r, retry, "retry", RR_WORKFLOW_MAX_ATTEMPTS - 1, &n);
    edge->attempts = n + 1;
    return rc;
}

/* A receiver that fails gets its message again, and so does one that dies, where it can. */
static int read_again(struct reader *r, const struct yaml_node *node, struct rr_edge *edge)
{
    static const char *const keys[] = {POLICY_KEYS, "optional", NULL};
    struct rr_delivery *d = &edge->again;
    struct fields in;
    int rc = read_fields(r, node, "delivery of an edge", keys, &in);

    d->backoff_ns = BACKOFF_DEFAULT_NS;
    if (!rc)
        rc = read_policy(r, in.values, RR_WORKFLOW_MAX_ATTEMPTS - 1, d);
    if (!rc && in.values[5])
        rc = read_bool(r, in.values[5], "optional", &edge->optional);
    edge->attempts = d->retry + 1;
    edge->at_least_once = rr_edge_crosses(r->wf, edge);
    edge->backs_off = edge->at_least_once && (in.values[1] || in.values[2]) &&
                      rr_edge_channel(r->wf, edge) != RR_CHANNEL_NETWORK;
    edge->linear = d->linear;
    edge->backoff_ns = d->backoff_ns;
    return rc;
}

/* @in: by the indices above; NULL if not given. */
static int read_delivery(struct reader *r, const struct yaml_node *const *in, struct rr_edge *edge)
{
    static const char *const words[] = {"at-most-once", "at-least-once"};
    bool again = in[EDGE_DELIVERY] && in[EDGE_DELIVERY]->kind == YAML_MAP;
    int rc = 0;

    for (int n = EDGE_ATTEMPTS; n <= EDGE_DELAY && again; n++)
        if (in[n])
            return rr_reader_fail(r, RR_E_INVALID, in[n]->pos,
                                  "write it into `delivery`: retry, "
                                  "backoffPolicy, backoffDelay, timeout, deadLetterSink, optional",
                                  "%s stands beside `delivery: {...}`", edge_keys[n]);
    if (again)
        return read_again(r, in[EDGE_DELIVERY], edge);
    if (in[EDGE_DELIVERY])
        rc = read_word(r, in[EDGE_DELIVERY], "delivery", words,
                       "write at-most-once, at-least-once (again if its receiver dies), or "
                       "{retry: N, ...} (again if it fails)",
                       &edge->at_least_once);
    if (rc)
        return rc;
    for (int n = EDGE_ATTEMPTS; n <= EDGE_DELAY && !edge->at_least_once; n++)
        if (in[n])
            return rr_reader_fail(
                r, RR_E_INVALID, in[n]->pos, "add `delivery: at-least-once`, or remove it",
                "%s has no meaning for an edge that delivers at most once", edge_keys[n]);
    if (!edge->at_least_once)
        return 0;
    rc = read_attempts(r, in, edge);
    if (!rc)
        rc = read_backoff(r, in, edge);
    return rc || rr_edge_crosses(r->wf, edge) ? rc : fail_inside(r, edge, in[EDGE_DELIVERY]->pos);
}

static int read_edge(struct reader *r, const struct yaml_node *node)
{
    char from_port[RR_WORKFLOW_MAX_NAME + 1], to_port[RR_WORKFLOW_MAX_NAME + 1];
    int from, to, rc;
    struct rr_edge *edge;
    uint64_t max_bytes = 0;
    struct fields in;

    rc = read_fields(r, node, "an edge", edge_keys, &in);
    if (rc)
        return rc;
    if (!in.values[0] || !in.values[1])
        return rr_reader_fail(r, RR_E_INVALID, node->pos, "write {from: a, to: b}",
                              "an edge needs '%s'", in.values[0] ? "to" : "from");
    rc = read_endpoint(r, in.values[0], "from", true, "out", &from, from_port);
    if (!rc)
        rc = read_endpoint(r, in.values[1], "to", false, "in", &to, to_port);
    if (!rc && in.values[2])
        rc = read_size(r, in.values[2], "max", 1, RR_SLOT_LARGE, &max_bytes);
    if (rc)
        return rc;
    edge = rr_edge_add(r, from, from_port, to, to_port, node->pos);
    if (!edge)
        return r->err->code;
    edge->max_declared = in.values[2] != NULL;
    edge->max_bytes = max_bytes;
    return read_delivery(r, in.values, edge);
}

static int add_call(struct reader *r, int caller, int callee, struct rr_pos pos)
{
    char port[RR_WORKFLOW_MAX_NAME + 8];
    struct rr_edge *edge;

    snprintf(port, sizeof(port), "call:%s", r->wf->functions[callee].name);
    edge = rr_edge_add(r, caller, port, callee, "in", pos);
    if (!edge)
        return r->err->code;
    edge->is_call = true;
    snprintf(port, sizeof(port), "reply:%s", r->wf->functions[callee].name);
    edge = rr_edge_add(r, callee, "out", caller, port, pos);
    if (!edge)
        return r->err->code;
    edge->is_reply = true;
    return 0;
}

static int read_calls(struct reader *r, size_t caller)
{
    const struct yaml_node *list = r->calls_nodes[caller];
    struct rr_function *f = &r->wf->functions[caller];
    size_t n = 0;
    int callee, rc;

    f->calls = calloc((list ? list->n_children : 0) + 1, sizeof(char *));
    if (!f->calls)
        return rr_reader_no_memory(r);
    if (!list)
        return 0;
    rc = want_kind(r, list, YAML_LIST, "calls");
    for (const struct yaml_node *item = list->first; item && !rc; item = item->next) {
        rc = want_name(r, item, "name of a function");
        if (!rc)
            rc = find_function(r, item, item->text, false, &callee);
        for (size_t i = 0; i < n && !rc; i++) {
            if (strcmp(f->calls[i], item->text) == 0)
                rc = rr_reader_fail(r, RR_E_INVALID, item->pos, "remove one of the two",
                                    "'%s' is listed twice", item->text);
        }
        if (!rc)
            rc = copy_text(r, item->text, &f->calls[n++]);
        if (!rc)
            rc = add_call(r, (int)caller, callee, item->pos);
    }
    return rc;
}

static int read_edges(struct reader *r, const struct yaml_node *list)
{
    int rc = want_kind(r, list, YAML_LIST, "edges");

    for (const struct yaml_node *item = list->first; item && !rc; item = item->next)
        rc = read_edge(r, item);
    for (size_t i = 0; i < r->wf->n_functions && !rc; i++)
        rc = read_calls(r, i);
    for (size_t i = 0; i < r->wf->n_edges && !rc; i++) {
        if (r->wf->edges[i].from == RR_NODE_INPUT)
            return 0;
    }
    return rc ? rc
              : rr_reader_fail(r, RR_E_INVALID, list->pos, "add {from: input, to: FUNCTION}",
                               "no edge leads from the workflow's input");
}

static int read_version(struct reader *r, const struct yaml_node *map)
{
    for (const struct yaml_node *key = map->first; key; key = key->next->next) {
        if (strcmp(key->text, "version") != 0)
            continue;
        if (key->next->kind == YAML_SCALAR && key->next->plain && strcmp(key->next->text, "1") == 0)
            return 0;
        return rr_reader_fail(
            r, RR_E_INVALID, key->next->pos, "write `version: 1`, or use a newer roadrunner",
            "version '%.40s' of the workflow format is not known", key->next->text);
    }
    return rr_reader_fail(r, RR_E_INVALID, map->pos, "begin the file with `version: 1`",
                          "the workflow has no version");
}

/* The file's name without folder and suffix, made a name: "my flow.yaml" -> "my-flow". */
static int default_name(struct reader *r)
{
    const char *base = strrchr(r->wf->path, '/'), *dot;
    char name[RR_WORKFLOW_MAX_NAME + 1];
    size_t len;

    base = base ? base + 1 : r->wf->path;
    dot = strrchr(base, '.');
    len = dot ? (size_t)(dot - base) : strlen(base);
    if (len > RR_WORKFLOW_MAX_NAME)
        len = RR_WORKFLOW_MAX_NAME;
    memcpy(name, base, len);
    name[len] = '\0';
    if (!rr_name_valid(name, len < 1 ? 0 : 1))
        return copy_text(r, "workflow", &r->wf->name);
    for (size_t i = 1; i < len; i++) {
        char one[2] = {'a', name[i]};

        if (!rr_name_valid(one, 2))
            name[i] = '-';
    }
    return copy_text(r, name, &r->wf->name);
}

static int read_pool(struct reader *r, const struct yaml_node *node)
{
    static const char *const keys[] = {"ceiling", "scrub", NULL};
    const struct yaml_node *scrub;
    struct fields in;
    int rc = read_fields(r, node, "pool", keys, &in);

    if (!rc && in.values[0])
        rc = read_size(r, in.values[0], "ceiling", RR_MIB, 1024 * RR_GIB, &r->wf->pool_bytes);
    scrub = rc ? NULL : in.values[1];
    if (!scrub)
        return rc;
    r->wf->scrub_always = scrub->kind == YAML_SCALAR && strcmp(scrub->text, "always") == 0;
    if (!r->wf->scrub_always && (scrub->kind != YAML_SCALAR || strcmp(scrub->text, "domain") != 0))
        return rr_reader_fail(r, RR_E_INVALID, scrub->pos,
                              "write always, or domain (only before another workflow gets it)",
                              "scrub cannot be '%.80s'", scrub->text);
    return 0;
}

static int read_limits(struct reader *r, const struct yaml_node *node)
{
    static const char *const keys[] = {"queue_messages", "queue_bytes", "domain_messages",
                                       "domain_bytes", NULL};
    struct fields in;
    int rc = read_fields(r, node, "limits", keys, &in);

    if (!rc && in.values[0])
        rc = read_count(r, in.values[0], keys[0], RR_WORKFLOW_MAX_QUEUED, &r->wf->queue_messages);
    if (!rc && in.values[1])
        rc = read_size(r, in.values[1], keys[1], RR_MIB, 1024 * RR_GIB, &r->wf->queue_bytes);
    if (!rc && in.values[2])
        rc = read_count(r, in.values[2], keys[2], RR_WORKFLOW_MAX_DOMAIN, &r->wf->domain_messages);
    if (!rc && in.values[3])
        rc = read_size(r, in.values[3], keys[3], RR_MIB, 1024 * RR_GIB, &r->wf->domain_bytes);
    return rc;
}

/* For messages that `roadrunner serve` handles asynchronously. */
static int read_deliveries(struct reader *r, const struct yaml_node *node)
{
    static const char *const keys[] = {POLICY_KEYS, NULL};
    struct fields in;
    int rc = read_fields(r, node, "delivery", keys, &in);

    return rc ? rc : read_policy(r, in.values, RR_WORKFLOW_MAX_RETRY, &r->wf->delivery);
}

static int read_queue(struct reader *r, const struct yaml_node *node)
{
    static const char *const keys[] = {"path", "messages", "bytes", "keep", "always", NULL};
    struct rr_queue *q = &r->wf->queue;
    struct fields in;
    int rc = read_fields(r, node, "queue", keys, &in);

    if (!rc && in.values[0]) {
        q->path_pos = in.values[0]->pos;
        q->bytes = CALLS_BYTES_DEFAULT;
        rc = read_path(r, in.values[0], "path", &q->path);
    }
    if (!rc && in.values[1])
        rc = read_count(r, in.values[1], "messages", RR_WORKFLOW_MAX_CALLS, &q->messages);
    if (!rc && in.values[2])
        rc = read_size(r, in.values[2], "bytes", RR_MIB, 1024 * RR_GIB, &q->bytes);
    if (!rc && in.values[3])
        rc = read_duration(r, in.values[3], "keep", &q->keep_ns);
    return rc || !in.values[4] ? rc : read_bool(r, in.values[4], "always", &q->always);
}

/* What holds for the workflow as a whole. */
static int read_settings(struct reader *r, const struct fields *in)
{
    struct rr_workflow *wf = r->wf;
    int rc = 0;

    wf->queue_messages = QUEUE_MESSAGES_DEFAULT;
    wf->queue_bytes = QUEUE_BYTES_DEFAULT;
    wf->domain_messages = DOMAIN_MESSAGES_DEFAULT;
    wf->domain_bytes = DOMAIN_BYTES_DEFAULT;
    wf->delivery.backoff_ns = BACKOFF_DEFAULT_NS;
    wf->queue.messages = CALLS_DEFAULT;
    wf->queue.bytes = CALLS_MEMORY_DEFAULT;
    wf->queue.keep_ns = KEEP_DEFAULT_NS;
    if (in->values[1])
        rc = want_name(r, in->values[1], "name of a workflow");
    if (!rc)
        rc = in->values[1] ? copy_text(r, in->values[1]->text, &wf->name) : default_name(r);
    if (!rc && in->values[2])
        rc = read_pool(r, in->values[2]);
    if (!rc && in->values[3])
        rc = read_isolation(r, in->values[3], &r->isolated);
    if (!rc && in->values[4]) {
        wf->dead_letters_pos = in->values[4]->pos;
        rc = read_path(r, in->values[4], "dead_letters", &wf->dead_letters);
    }
    if (!rc && in->values[5])
        rc = read_limits(r, in->values[5]);
    if (!rc && in->values[6])
        rc = read_nodes(r, in->values[6]);
    if (!rc && in->values[7])
        rc = read_deadline(r, in->values[7], &wf->deadline_ns);
    if (!rc && in->values[11])
        rc = read_deliveries(r, in->values[11]);
    if (!rc && in->values[12])
        rc = read_queue(r, in->values[12]);
    return rc;
}

int rr_parse_tree(struct reader *r, const struct yaml_node *root)
{
    static const char *const keys[] = {
        "version",  "name",      "pool",  "isolation", "dead_letters", "limits", "nodes",
        "deadline", "functions", "edges", "result",    "delivery",     "queue",  NULL};
    char port[RR_WORKFLOW_MAX_NAME + 1];
    struct fields in;
    int rc;

    if (!root)
        return rr_reader_fail(r, RR_E_INVALID, (struct rr_pos){1, 1},
                              "begin the file with `version: 1`", "the file is empty");
    rc = want_kind(r, root, YAML_MAP, "a workflow");
    if (!rc)
        rc = read_version(r, root);
    if (!rc)
        rc = read_fields(r, root, "the workflow", keys, &in);
    for (size_t i = 8; i < 11 && !rc; i++) {
        if (!in.values[i])
            rc = rr_reader_fail(r, RR_E_INVALID, root->pos,
                                "a workflow has version, functions, edges and result",
                                "the workflow has no '%s'", keys[i]);
    }
    if (!rc)
        rc = read_settings(r, &in);
    if (!rc)
        rc = read_functions(r, in.values[8]);
    if (!rc)
        rc = read_edges(r, in.values[9]);
    if (rc)
        return rc;
    r->wf->result_pos = in.values[10]->pos;
    rc = read_endpoint(r, in.values[10], "result", false, "out", &r->wf->result, port);
    return rc ? rc : copy_text(r, port, &r->wf->result_port);
}
