/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "cli/cli.h"
#include "worker/status.h"

#define MAX_WORKERS 4096
#define MAX_FOLDERS 1024
#define ALL_NS 5000000000u /* for all workers together to answer */

struct entry {
    char domain[256];                  /* ""; none */
    struct rr_status_view now, before; /* before.pid 0: not seen then */
};

struct list {
    struct entry *entries;
    size_t n, n_before;
    const char *domain;
    unsigned int silent;
    bool second, full;
    struct {
        dev_t dev;
        ino_t ino;
    } seen[MAX_FOLDERS];
    size_t n_seen;
};

/* --- asking ---------------------------------------------------------------------------------- */

static struct entry *find(struct list *l, const struct rr_status_view *v)
{
    for (size_t n = 0; n < l->n; n++)
        if (l->entries[n].now.pid == v->pid && l->entries[n].now.started_ns == v->started_ns &&
            l->entries[n].now.n_edges == v->n_edges)
            return &l->entries[n];
    return NULL;
}

static void on_worker(void *user, struct rr_status_view *v)
{
    struct list *l = user;
    struct entry *e = find(l, v), *grown;

    if (e && l->second && !e->before.pid) {
        e->before = e->now;
        e->now = *v;
        *v = (struct rr_status_view){0};
    }
    if (e || l->second)
        return;
    if (l->n == MAX_WORKERS) {
        l->full = true;
        return;
    }
    grown = reallocarray(l->entries, l->n + 1, sizeof(*grown));
    if (!grown)
        return;
    l->entries = grown;
    l->entries[l->n] = (struct entry){.now = *v};
    snprintf(l->entries[l->n].domain, sizeof(l->entries[0].domain), "%s", l->domain);
    l->n++;
    *v = (struct rr_status_view){0};
}

/* Two names may be of one folder. */
static bool is_new(struct list *l, int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0 || l->n_seen == MAX_FOLDERS)
        return false;
    for (size_t n = 0; n < l->n_seen; n++)
        if (l->seen[n].dev == st.st_dev && l->seen[n].ino == st.st_ino)
            return false;
    l->seen[l->n_seen].dev = st.st_dev;
    l->seen[l->n_seen++].ino = st.st_ino;
    return true;
}

static void look(struct list *l, int at, const char *path, const char *domain, uint64_t until_ns)
{
    int fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd >= 0 && is_new(l, fd)) {
        l->domain = domain;
        l->silent += rr_status_each(fd, until_ns, on_worker, l);
    }
    if (fd >= 0)
        close(fd);
}

/* Each folder @below in a folder of @path. */
static void look_below(struct list *l, const char *path, const char *below, bool domains,
                       uint64_t until_ns)
{
    DIR *d = opendir(path);
    int fd = d ? dirfd(d) : -1;
    const struct dirent *e;
    char name[600];

    while (d && fd >= 0 && (e = readdir(d))) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(name, sizeof(name), "%s%s", e->d_name, below);
        look(l, fd, name, domains ? e->d_name : "", until_ns);
    }
    if (d)
        closedir(d);
}

/* Where workers may be; what the caller may not enter is not shown. */
static void look_everywhere(struct list *l)
{
    uint64_t until = rr_now_ns() + ALL_NS;
    const char *state = getenv("ROADRUNNER_STATE"), *session = getenv("XDG_RUNTIME_DIR");
    char path[4096];

    l->n_seen = 0;
    snprintf(path, sizeof(path), "%s/domains", state && *state ? state : "/run/roadrunner");
    look_below(l, path, "/shared", true, until);
    if (session && geteuid() != 0) {
        snprintf(path, sizeof(path), "%s/roadrunner/domains", session);
        look_below(l, path, "/shared", true, until);
    }
    look(l, AT_FDCWD, rr_runtime_dir(), "", until);
    look(l, AT_FDCWD, "/tmp", "", until);
    look_below(l, "/run/user", "", false, until);
}

/* --- what is shown --------------------------------------------------------------------------- */

/* Bytes per second between the two looks; negative: not known. */
static double rate(const struct entry *e, size_t edge, int channel)
{
    uint64_t before, now = e->now.edges[edge].by[channel].bytes;
    uint64_t ns = e->now.read_ns - e->before.read_ns;

    if (!e->before.pid || !ns)
        return -1;
    before = e->before.edges[edge].by[channel].bytes;
    return now < before ? 0 : (double)(now - before) * 1e9 / (double)ns;
}

static void add(struct json_object *o, const char *name, struct json_object *v)
{
    json_object_object_add(o, name, v);
}

static struct json_object *number(uint64_t n)
{
    return json_object_new_int64((int64_t)rr_min(n, (uint64_t)INT64_MAX));
}

static struct json_object *channels_json(const struct entry *e)
{
    struct json_object *list = json_object_new_array();

    for (size_t n = 0; n < e->now.n_edges; n++)
        for (int c = 0; c < RR_STATUS_CHANNELS; c++) {
            const struct rr_status_edge *edge = &e->now.edges[n];
            struct json_object *o;
            double r = rate(e, n, c);

            if (!edge->by[c].messages)
                continue;
            o = json_object_new_object();
            add(o, "from", json_object_new_string(edge->from));
            add(o, "to", json_object_new_string(edge->to));
            add(o, "channel", json_object_new_string(rr_channel_name((enum rr_channel)c)));
            add(o, "messages", number(edge->by[c].messages));
            add(o, "payload_bytes", number(edge->by[c].bytes));
            add(o, "copied_bytes", number(edge->by[c].copied_bytes));
            if (r >= 0)
                add(o, "bytes_per_second", json_object_new_double(r));
            json_object_array_add(list, o);
        }
    return list;
}

static struct json_object *worker_json(const struct entry *e)
{
    struct json_object *o = json_object_new_object(), *list = json_object_new_array();

    add(o, "pid", json_object_new_int(e->now.pid));
    add(o, "uid", json_object_new_int64(e->now.uid));
    add(o, "kind", json_object_new_string(e->now.kind));
    add(o, "domain", json_object_new_string(e->domain));
    add(o, "workflow", json_object_new_string(e->now.workflow));
    add(o, "node", json_object_new_string(e->now.node));
    add(o, "uptime_seconds",
        json_object_new_double((double)(e->now.read_ns - e->now.started_ns) / 1e9));
    for (size_t n = 0; n < e->now.n_functions; n++) {
        const struct rr_status_function *f = &e->now.functions[n];
        struct json_object *one = json_object_new_object();

        add(one, "name", json_object_new_string(f->name));
        add(one, "runs", number(f->runs));
        add(one, "running", number(f->running));
        json_object_array_add(list, one);
    }
    add(o, "functions", list);
    add(o, "channels", channels_json(e));
    return o;
}

static void print_json(const struct list *l)
{
    struct json_object *o = json_object_new_object(), *list = json_object_new_array();

    for (size_t n = 0; n < l->n; n++)
        json_object_array_add(list, worker_json(&l->entries[n]));
    add(o, "workers", list);
    add(o, "silent", number(l->silent));
    cli_json_print(o, stdout);
}

static void add_functions(struct cli_table *t, const struct entry *e)
{
    for (size_t n = 0; n < e->now.n_functions; n++) {
        const struct rr_status_function *f = &e->now.functions[n];
        char pid[16], runs[24], running[24];

        snprintf(pid, sizeof(pid), "%d", e->now.pid);
        snprintf(runs, sizeof(runs), "%llu", (unsigned long long)f->runs);
        snprintf(running, sizeof(running), "%llu", (unsigned long long)f->running);
        cli_table_row(t,
                      (const char *[]){pid, e->now.kind, *e->domain ? e->domain : "-",
                                       e->now.workflow, f->name, runs, running},
                      7);
    }
}

static void add_channels(struct cli_table *t, const struct entry *e)
{
    static const char *const head[] = {"PID",      "FROM",  "TO",     "CHANNEL",
                                       "MESSAGES", "BYTES", "COPIED", "THROUGHPUT"};

    for (size_t n = 0; n < e->now.n_edges; n++)
        for (int c = 0; c < RR_STATUS_CHANNELS; c++) {
            const struct rr_status_edge *edge = &e->now.edges[n];
            char pid[16], messages[24], bytes[40], copied[40], speed[40];
            double r = rate(e, n, c);

            if (!edge->by[c].messages)
                continue;
            if (t->n_rows == 0)
                cli_table_row(t, head, 8);
            snprintf(pid, sizeof(pid), "%d", e->now.pid);
            snprintf(messages, sizeof(messages), "%llu", (unsigned long long)edge->by[c].messages);
            snprintf(bytes, sizeof(bytes), "%s", rr_bytes_text(edge->by[c].bytes));
            snprintf(copied, sizeof(copied), "%s", rr_bytes_text(edge->by[c].copied_bytes));
            if (r < 0)
                snprintf(speed, sizeof(speed), "-");
            else
                snprintf(speed, sizeof(speed), "%s/s", rr_bytes_text((uint64_t)r));
            cli_table_row(t,
                          (const char *[]){pid, edge->from, edge->to,
                                           rr_channel_name((enum rr_channel)c), messages, bytes,
                                           copied, speed},
                          8);
        }
}

static void print_tables(const struct list *l)
{
    struct cli_table functions = {0}, channels = {0};

    cli_table_row(
        &functions,
        (const char *[]){"PID", "KIND", "DOMAIN", "WORKFLOW", "FUNCTION", "RUNS", "RUNNING"}, 7);
    for (size_t n = 0; n < l->n; n++) {
        add_functions(&functions, &l->entries[n]);
        add_channels(&channels, &l->entries[n]);
    }
    cli_table_print(&functions, stdout, "rllllrr");
    if (channels.n_rows)
        putchar('\n');
    cli_table_print(&channels, stdout, "rlllrrrr");
}

/* --- command --------------------------------------------------------------------------------- */

static int parse(int argc, char **argv, bool *json, double *interval)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'}, {"interval", required_argument, NULL, 'i'}, {0}};
    char *end;
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (c) {
        case 'j':
            *json = true;
            break;
        case 'i':
            *interval = strtod(optarg, &end);
            if (end == optarg || *end || !(*interval >= 0 && *interval <= 60))
                return cli_usage(&cli_ps, "--interval takes seconds from 0 to 60, not '%s'",
                                 optarg);
            break;
        default:
            return RR_E_USAGE;
        }
    return argc == optind ? 0 : cli_usage(&cli_ps, "'%s' is one word too many", argv[optind]);
}

static int run(int argc, char **argv)
{
    static struct list l;
    double interval = 0.5;
    bool json = false;
    int r = parse(argc, argv, &json, &interval);

    if (r)
        return r;
    look_everywhere(&l);
    if (interval > 0 && l.n > 0) {
        struct timespec t = {.tv_sec = (time_t)interval,
                             .tv_nsec = (long)((interval - (double)(time_t)interval) * 1e9)};

        nanosleep(&t, NULL);
        l.second = true;
        l.silent = 0;
        look_everywhere(&l);
    }
    if (json)
        print_json(&l);
    else
        print_tables(&l);
    if (l.silent)
        rr_log(1, "%u did not answer, or made no sense", l.silent);
    if (l.full)
        rr_log(1, "there are more than %d", MAX_WORKERS);
    for (size_t n = 0; n < l.n; n++) {
        rr_status_view_deinit(&l.entries[n].now);
        rr_status_view_deinit(&l.entries[n].before);
    }
    free(l.entries);
    return 0;
}

const struct cli_command cli_ps = {
    .name = "ps",
    .summary = "list the functions of this machine, and what goes between them",
    .help =
        "Usage: roadrunner ps [OPTION...]\n\n"
        "Lists functions that are hosted now, by `run`, `serve`, `worker` and in containers, and\n"
        "what came to them over which channel. Root sees all, others what is their own.\n\n"
        "Options:\n"
        "      --json           as JSON\n"
        "      --interval S     seconds over which throughput is measured (0.5); 0: not at all\n",
    .run = run,
};
