/* SPDX-License-Identifier: Apache-2.0 */
/* Figures of a container's cgroups, of either version. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "shim/shim.h"

#define ROOT "/sys/fs/cgroup"
#define MAX_PIDS 65536
#define MAX_DEPTH 16
#define ANNOUNCED_NS 10000000u /* how long an announcement holds, at least */

/* --- which ----------------------------------------------------------------------------------- */

static bool has_word(const char *list, const char *word)
{
    size_t n = strlen(word);

    for (const char *p = list; (p = strstr(p, word)); p += n)
        if ((p == list || p[-1] == ',') && (!p[n] || p[n] == ','))
            return true;
    return false;
}

static void set_path(char **to, const char *root, const char *controllers, const char *path)
{
    if (*to || asprintf(to, "%s%s%s%s", root, *controllers ? "/" : "", controllers, path) < 0)
        return;
    if (access(*to, F_OK) != 0)
        free(rr_take(*to));
}

static bool is_v2(const char *root)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/cgroup.controllers", root);
    return access(path, F_OK) == 0;
}

static void take_line(struct rr_cgroup *c, const char *root, char *line)
{
    char *controllers = strchr(line, ':'),
         *path = controllers ? strchr(controllers + 1, ':') : NULL;

    if (!path)
        return;
    *path++ = 0;
    controllers++;
    path[strcspn(path, "\n")] = 0;
    if (!*controllers) {
        if (!is_v2(root))
            return; /* beside version 1 */
        c->v2 = true;
        set_path(&c->memory, root, "", path);
        set_path(&c->cpu, root, "", path);
        set_path(&c->pids, root, "", path);
        return;
    }
    if (has_word(controllers, "memory"))
        set_path(&c->memory, root, controllers, path);
    if (has_word(controllers, "cpu"))
        set_path(&c->cpu, root, controllers, path);
    if (has_word(controllers, "cpuacct"))
        set_path(&c->cpuacct, root, controllers, path);
    if (has_word(controllers, "pids"))
        set_path(&c->pids, root, controllers, path);
}

void rr_cgroup_read(struct rr_cgroup *c, const char *root, const char *path)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = fopen(path, "re");
    __attribute__((cleanup(rr_free_cleanup))) char *line = NULL;
    size_t cap = 0;

    *c = (struct rr_cgroup){.oom_fd = -1};
    while (f && getline(&line, &cap, f) > 0)
        take_line(c, root, line);
}

void rr_cgroup_find(struct rr_cgroup *c, pid_t pid)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/cgroup", pid);
    rr_cgroup_read(c, ROOT, path);
}

void rr_cgroup_free(struct rr_cgroup *c)
{
    rr_watch_free(c->on_oom);
    if (c->oom_fd > 0)
        close(c->oom_fd);
    free(c->memory);
    free(c->cpu);
    free(c->cpuacct);
    free(c->pids);
    *c = (struct rr_cgroup){.oom_fd = -1};
}

/*
 * The first move of a process to another cgroup waits in the kernel until all CPUs have seen that
 * moves are under way: a grace period of RCU, 10 to 20 ms, in the middle of making a container. One
 * that changes nothing has the wait begin now, in a child that nobody waits for.
 */
void rr_cgroup_announce(void)
{
    static uint64_t last_ns;
    uint64_t now = rr_now_ns();
    struct rr_cgroup c;
    char path[4096];
    int fd;

    if (last_ns && now - last_ns < ANNOUNCED_NS)
        return;
    last_ns = now;
    if (fork() != 0)
        return;
    close_range(0, ~0u, 0);
    rr_cgroup_find(&c, getpid());
    snprintf(path, sizeof(path), "%s/cgroup.procs", c.cpu ? c.cpu : c.memory ? c.memory : "");
    fd = open(path, O_WRONLY | O_CLOEXEC);
    _exit(fd >= 0 && write(fd, "0", 1) == 1 ? 0 : 1);
}

/* --- reading --------------------------------------------------------------------------------- */

static FILE *open_in(const char *folder, const char *name)
{
    char path[4096];

    if (!folder)
        return NULL;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return fopen(path, "re");
}

/* A file of one number; "max" and what does not exist is @none. */
static uint64_t number(const char *folder, const char *name, uint64_t none)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = open_in(folder, name);
    char text[64], *end;
    uint64_t v;

    if (!f || !fgets(text, sizeof(text), f))
        return none;
    v = strtoull(text, &end, 10);
    return end == text ? none : v;
}

struct key {
    const char *name;
    uint64_t *to;
};

/* A file of lines "name number". */
static void keyed(const char *folder, const char *name, const struct key *keys, size_t n)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = open_in(folder, name);
    char line[160];

    while (f && fgets(line, sizeof(line), f)) {
        char *value = strchr(line, ' ');

        if (!value)
            continue;
        *value++ = 0;
        for (size_t i = 0; i < n; i++)
            if (strcmp(line, keys[i].name) == 0)
                *keys[i].to = strtoull(value, NULL, 10);
    }
}

static bool pack(Rr__Pb__Any *ret, const char *url, const ProtobufCMessage *m)
{
    ret->type_url = (char *)(uintptr_t)url;
    ret->value.len = protobuf_c_message_get_packed_size(m);
    ret->value.data = malloc(ret->value.len + 1);
    if (ret->value.data)
        protobuf_c_message_pack(m, ret->value.data);
    return ret->value.data != NULL;
}

static void memory1(const char *folder, Rr__Pb__Memory1 *m, Rr__Pb__MemoryEntry1 *usage,
                    Rr__Pb__MemoryEntry1 *swap)
{
    const struct key keys[] = {{"cache", &m->cache},
                               {"rss", &m->rss},
                               {"mapped_file", &m->mapped_file},
                               {"pgfault", &m->pg_fault},
                               {"pgmajfault", &m->pg_maj_fault},
                               {"inactive_anon", &m->inactive_anon},
                               {"active_anon", &m->active_anon},
                               {"inactive_file", &m->inactive_file},
                               {"active_file", &m->active_file},
                               {"hierarchical_memory_limit", &m->hierarchical_memory_limit},
                               {"total_cache", &m->total_cache},
                               {"total_rss", &m->total_rss},
                               {"total_mapped_file", &m->total_mapped_file},
                               {"total_pgfault", &m->total_pg_fault},
                               {"total_pgmajfault", &m->total_pg_maj_fault},
                               {"total_inactive_anon", &m->total_inactive_anon},
                               {"total_active_anon", &m->total_active_anon},
                               {"total_inactive_file", &m->total_inactive_file},
                               {"total_active_file", &m->total_active_file}};

    keyed(folder, "memory.stat", keys, RR_ARRAY_LEN(keys));
    usage->usage = number(folder, "memory.usage_in_bytes", 0);
    usage->max = number(folder, "memory.max_usage_in_bytes", 0);
    usage->failcnt = number(folder, "memory.failcnt", 0);
    usage->limit = number(folder, "memory.limit_in_bytes", 0);
    swap->usage = number(folder, "memory.memsw.usage_in_bytes", 0);
    swap->limit = number(folder, "memory.memsw.limit_in_bytes", 0);
    m->usage = usage;
    m->swap = swap;
}

static bool stats1(const struct rr_cgroup *c, Rr__Pb__Any *ret)
{
    Rr__Pb__Metrics1 m = RR__PB__METRICS1__INIT;
    Rr__Pb__Pids pids = RR__PB__PIDS__INIT;
    Rr__Pb__Cpu1 cpu = RR__PB__CPU1__INIT;
    Rr__Pb__CpuUsage1 usage = RR__PB__CPU_USAGE1__INIT;
    Rr__Pb__Throttle1 throttle = RR__PB__THROTTLE1__INIT;
    Rr__Pb__Memory1 memory = RR__PB__MEMORY1__INIT;
    Rr__Pb__MemoryEntry1 used = RR__PB__MEMORY_ENTRY1__INIT, swap = RR__PB__MEMORY_ENTRY1__INIT;
    Rr__Pb__OomControl1 oom = RR__PB__OOM_CONTROL1__INIT;
    const struct key throttles[] = {{"nr_periods", &throttle.periods},
                                    {"nr_throttled", &throttle.throttled_periods},
                                    {"throttled_time", &throttle.throttled_time}},
                     ooms[] = {{"oom_kill_disable", &oom.oom_kill_disable},
                               {"under_oom", &oom.under_oom},
                               {"oom_kill", &oom.oom_kill}},
                     ticks[] = {{"user", &usage.user}, {"system", &usage.kernel}};
    uint64_t tick_ns = 1000000000u / (uint64_t)sysconf(_SC_CLK_TCK);

    pids.current = number(c->pids, "pids.current", 0);
    pids.limit = number(c->pids, "pids.max", 0);
    m.pids = &pids;
    usage.total = number(c->cpuacct, "cpuacct.usage", 0);
    keyed(c->cpuacct, "cpuacct.stat", ticks, RR_ARRAY_LEN(ticks));
    usage.user *= tick_ns;
    usage.kernel *= tick_ns;
    keyed(c->cpu, "cpu.stat", throttles, RR_ARRAY_LEN(throttles));
    cpu.usage = &usage;
    cpu.throttling = &throttle;
    m.cpu = &cpu;
    memory1(c->memory, &memory, &used, &swap);
    m.memory = &memory;
    keyed(c->memory, "memory.oom_control", ooms, RR_ARRAY_LEN(ooms));
    m.memory_oom_control = &oom;
    return pack(ret, "io.containerd.cgroups.v1.Metrics", &m.base);
}

static void memory2(const char *folder, Rr__Pb__Memory2 *m)
{
    const struct key keys[] = {{"anon", &m->anon},
                               {"file", &m->file},
                               {"kernel_stack", &m->kernel_stack},
                               {"slab", &m->slab},
                               {"shmem", &m->shmem},
                               {"file_mapped", &m->file_mapped},
                               {"inactive_anon", &m->inactive_anon},
                               {"active_anon", &m->active_anon},
                               {"inactive_file", &m->inactive_file},
                               {"active_file", &m->active_file},
                               {"unevictable", &m->unevictable},
                               {"pgfault", &m->pgfault},
                               {"pgmajfault", &m->pgmajfault}};

    keyed(folder, "memory.stat", keys, RR_ARRAY_LEN(keys));
    m->usage = number(folder, "memory.current", 0);
    m->usage_limit = number(folder, "memory.max", UINT64_MAX);
    m->swap_usage = number(folder, "memory.swap.current", 0);
    m->swap_limit = number(folder, "memory.swap.max", UINT64_MAX);
}

static bool stats2(const struct rr_cgroup *c, Rr__Pb__Any *ret)
{
    Rr__Pb__Metrics2 m = RR__PB__METRICS2__INIT;
    Rr__Pb__Pids pids = RR__PB__PIDS__INIT;
    Rr__Pb__Cpu2 cpu = RR__PB__CPU2__INIT;
    Rr__Pb__Memory2 memory = RR__PB__MEMORY2__INIT;
    Rr__Pb__MemoryEvents2 events = RR__PB__MEMORY_EVENTS2__INIT;
    const struct key cpus[] = {{"usage_usec", &cpu.usage_usec},
                               {"user_usec", &cpu.user_usec},
                               {"system_usec", &cpu.system_usec},
                               {"nr_periods", &cpu.nr_periods},
                               {"nr_throttled", &cpu.nr_throttled},
                               {"throttled_usec", &cpu.throttled_usec}},
                     kills[] = {{"low", &events.low},
                                {"high", &events.high},
                                {"max", &events.max},
                                {"oom", &events.oom},
                                {"oom_kill", &events.oom_kill}};

    pids.current = number(c->pids, "pids.current", 0);
    pids.limit = number(c->pids, "pids.max", 0);
    keyed(c->cpu, "cpu.stat", cpus, RR_ARRAY_LEN(cpus));
    memory2(c->memory, &memory);
    keyed(c->memory, "memory.events", kills, RR_ARRAY_LEN(kills));
    m.pids = &pids;
    m.cpu = &cpu;
    m.memory = &memory;
    m.memory_events = &events;
    return pack(ret, "io.containerd.cgroups.v2.Metrics", &m.base);
}

bool rr_cgroup_stats(const struct rr_cgroup *c, Rr__Pb__Any *ret)
{
    if (!c->memory && !c->cpu && !c->cpuacct && !c->pids)
        return false;
    return c->v2 ? stats2(c, ret) : stats1(c, ret);
}

/* --- out of memory --------------------------------------------------------------------------- */

static uint64_t oom_kills(const struct rr_cgroup *c)
{
    uint64_t n = 0;
    const struct key key = {"oom_kill", &n};

    keyed(c->memory, c->v2 ? "memory.events" : "memory.oom_control", &key, 1);
    return n;
}

/* Version 1: an eventfd, whose number and that of the file to watch are written to a third. */
static int watch1(const char *folder)
{
    __attribute__((cleanup(rr_close_cleanup))) int oom = -1, control = -1;
    char path[4096], text[64];
    int fd, n;

    snprintf(path, sizeof(path), "%s/memory.oom_control", folder);
    oom = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof(path), "%s/cgroup.event_control", folder);
    control = open(path, O_WRONLY | O_CLOEXEC);
    fd = oom >= 0 && control >= 0 ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
    n = snprintf(text, sizeof(text), "%d %d", fd, oom);
    if (fd >= 0 && write(control, text, (size_t)n) != n) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static int watch2(const char *folder)
{
    char path[4096];
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

    snprintf(path, sizeof(path), "%s/memory.events", folder);
    if (fd >= 0 && inotify_add_watch(fd, path, IN_MODIFY) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

void rr_cgroup_watch_oom(struct rr_cgroup *c, struct rr_loop *l, void (*fn)(void *data, uint32_t),
                         void *data)
{
    if (!c->memory || c->oom_fd >= 0)
        return;
    c->oom_fd = c->v2 ? watch2(c->memory) : watch1(c->memory);
    if (c->oom_fd >= 0)
        c->on_oom = rr_watch_new(l, c->oom_fd, EPOLLIN, fn, data);
}

/* Version 1 tells of it before the kill is counted, and again when the folder goes. */
bool rr_cgroup_oom_happened(struct rr_cgroup *c)
{
    uint64_t n = oom_kills(c), before = c->oom_kills;
    bool told = false;
    char drain[1024];

    if (c->oom_fd >= 0)
        while (read(c->oom_fd, drain, sizeof(drain)) > 0)
            told = !c->v2 && access(c->memory, F_OK) == 0;
    if (told && n == before)
        n++; /* it will be */
    c->oom_kills = n;
    return n > before;
}

/* --- processes ------------------------------------------------------------------------------- */

static void add_pids(const char *folder, pid_t **list, size_t *n, int depth)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = open_in(folder, "cgroup.procs");
    struct dirent *e;
    DIR *d;
    long long pid;

    while (*n < MAX_PIDS && (pid = rr_read_number(f, 0)) > 0) {
        pid_t *more = realloc(*list, (*n + 1) * sizeof(**list));

        if (!more)
            return;
        *list = more;
        (*list)[(*n)++] = (pid_t)pid;
    }
    d = depth > 0 ? opendir(folder) : NULL;
    while (d && (e = readdir(d))) {
        char *below;

        if (e->d_type != DT_DIR || e->d_name[0] == '.' ||
            asprintf(&below, "%s/%s", folder, e->d_name) < 0)
            continue;
        add_pids(below, list, n, depth - 1);
        free(below);
    }
    if (d)
        closedir(d);
}

size_t rr_cgroup_pids(const struct rr_cgroup *c, pid_t **ret)
{
    const char *folder = c->pids ? c->pids : c->memory ? c->memory : c->cpu;
    size_t n = 0;

    *ret = NULL;
    if (folder)
        add_pids(folder, ret, &n, MAX_DEPTH);
    return n;
}
