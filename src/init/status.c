/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "init/init.h"
#include "worker/status.h"

#define ASK_NS 1000000000u

/* What /proc/PID/stat tells that we want. */
struct usage {
    char state;
    double cpu_s, age_s;
    uint64_t memory_bytes;
};

static size_t read_proc(const char *pid, const char *name, char *out, size_t size)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = NULL;
    char path[64];
    size_t n;

    snprintf(path, sizeof(path), "/proc/%s/%s", pid, name);
    f = fopen(path, "re");
    n = f ? fread(out, 1, size - 1, f) : 0;
    out[n] = 0;
    return n;
}

/* The words of a command line, which are in no need of quotes. Returns where the module's is. */
static const char *module_of(const char *line, size_t len, int *ret_domain_fd)
{
    const char *words[40] = {0}, *p = line;
    size_t n = 0;

    *ret_domain_fd = -1;

    while (p < line + len && n < RR_ARRAY_LEN(words)) {
        words[n++] = p;
        p += strlen(p) + 1;
    }
    if (n < 3 || strncmp(words[0], "/proc/self/fd/", 14) != 0 || strcmp(words[1], "container") != 0)
        return NULL;
    for (size_t i = 2; i + 1 < n; i++) {
        if (strcmp(words[i], "--") == 0)
            return words[i + 1];
        if (strcmp(words[i], "--domain-fd") == 0)
            *ret_domain_fd = (int)strtol(words[i + 1], NULL, 10);
    }
    return NULL;
}

/* Pods may share a PID namespace: the container is the one with our file system. */
static bool same_root(const char *pid)
{
    char path[64], ours[64] = "", theirs[64] = "";

    snprintf(path, sizeof(path), "/proc/%s/ns/mnt", pid);
    if (readlink("/proc/self/ns/mnt", ours, sizeof(ours) - 1) < 0 ||
        readlink(path, theirs, sizeof(theirs) - 1) < 0)
        return true; /* not to be told */
    return strcmp(ours, theirs) == 0;
}

static bool find_main(char pid[16], char *module, size_t size, int *ret_domain_fd)
{
    DIR *d = opendir("/proc");
    bool found = false;
    struct dirent *e;
    char line[4096];

    while (d && !found && (e = readdir(d))) {
        const char *m;
        size_t len;

        if (e->d_name[0] < '1' || e->d_name[0] > '9' || strlen(e->d_name) > 15)
            continue;
        len = read_proc(e->d_name, "cmdline", line, sizeof(line));
        m = module_of(line, len, ret_domain_fd);
        found = m && same_root(e->d_name);
        if (found) {
            memcpy(pid, e->d_name, strlen(e->d_name) + 1);
            snprintf(module, size, "%s", m);
        }
    }
    if (d)
        closedir(d);
    return found;
}

static void read_usage(const char *pid, struct usage *u)
{
    double tick = (double)sysconf(_SC_CLK_TCK);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), field[25] = {0};
    char text[1024], *p, *save = NULL;
    struct timespec now;
    size_t n = 2; /* proc(5) counts from 1; the name, field 2, may hold blanks */

    read_proc(pid, "stat", text, sizeof(text));
    p = strrchr(text, ')');
    for (p = p ? strtok_r(p + 1, " ", &save) : NULL; p && ++n < RR_ARRAY_LEN(field);
         p = strtok_r(NULL, " ", &save)) {
        if (n == 3)
            u->state = *p;
        else
            field[n] = strtoull(p, NULL, 10);
    }
    clock_gettime(CLOCK_BOOTTIME, &now);
    u->cpu_s = (double)(field[14] + field[15]) / tick;
    u->age_s = (double)now.tv_sec + (double)now.tv_nsec / 1e9 - (double)field[22] / tick;
    u->memory_bytes = field[24] * page;
}

static void put_string(const char *text)
{
    putchar('"');
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        if (*p == '"' || *p == '\\')
            printf("\\%c", *p);
        else if (*p < 0x20)
            printf("\\u%04x", *p);
        else
            putchar(*p);
    putchar('"');
}

/* --- what it hands on ------------------------------------------------------------------------ */

struct wanted {
    pid_t pid;
    bool found;
};

static void put_view(const struct rr_status_view *v)
{
    const char *comma = "";

    fputs(", \"functions\": [", stdout);
    for (size_t n = 0; n < v->n_functions; n++)
        printf("%s{\"name\": \"%s\", \"runs\": %llu, \"running\": %llu}", n ? ", " : "",
               v->functions[n].name, (unsigned long long)v->functions[n].runs,
               (unsigned long long)v->functions[n].running);
    fputs("], \"channels\": [", stdout);
    for (size_t n = 0; n < v->n_edges; n++)
        for (int c = 0; c < RR_STATUS_CHANNELS; c++) {
            const struct rr_status_edge *e = &v->edges[n];

            if (!e->by[c].messages)
                continue;
            printf("%s{\"from\": \"%s\", \"to\": \"%s\", \"channel\": \"%s\", \"messages\": %llu, "
                   "\"payload_bytes\": %llu, \"copied_bytes\": %llu}",
                   comma, e->from, e->to, rr_channel_name((enum rr_channel)c),
                   (unsigned long long)e->by[c].messages, (unsigned long long)e->by[c].bytes,
                   (unsigned long long)e->by[c].copied_bytes);
            comma = ", ";
        }
    putchar(']');
}

static void on_view(void *user, struct rr_status_view *v)
{
    struct wanted *w = user;

    if (v->pid == w->pid && !w->found)
        put_view(v);
    w->found = w->found || v->pid == w->pid;
}

/* As `roadrunner ps` shows it on the node. */
static void put_chain(const char *pid, int domain_fd)
{
    struct wanted w = {.pid = (pid_t)strtol(pid, NULL, 10)};
    char path[64];
    int fd;

    snprintf(path, sizeof(path), "/proc/%s/fd/%d", pid, domain_fd);
    fd = domain_fd < 0 ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    rr_status_each(fd, rr_now_ns() + ASK_NS, on_view, &w);
    close(fd);
}

int rr_init_status(void)
{
    int domain_fd = -1;
    struct usage u = {.state = '?'};
    char pid[16], module[4096];

    if (!find_main(pid, module, sizeof(module), &domain_fd)) {
        rr_log(0, "the container's module does not run");
        return 1;
    }
    read_usage(pid, &u);
    fputs("{\"module\": ", stdout);
    put_string(module);
    printf(", \"state\": \"%s\", \"pid\": %s, \"uptime_seconds\": %.2f, \"cpu_seconds\": %.2f, "
           "\"memory_bytes\": %llu, \"version\": \"" RR_VERSION "\"",
           u.state == 'R'   ? "running"
           : u.state == 'Z' ? "ended"
                            : "waiting",
           pid, u.age_s, u.cpu_s, (unsigned long long)u.memory_bytes);
    put_chain(pid, domain_fd);
    puts("}");
    return fflush(stdout) == 0 ? 0 : 1;
}
