/* SPDX-License-Identifier: Apache-2.0 */
/* The root file system, as containerd describes it: what mount(8) would be told. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "shim/shim.h"

#define MAX_DATA 4095 /* a page: what mount(2) takes */

static const struct {
    const char *name;
    unsigned long set, clear;
} flags[] = {
    {"ro", MS_RDONLY, 0},
    {"rw", 0, MS_RDONLY},
    {"bind", MS_BIND, 0},
    {"rbind", MS_BIND | MS_REC, 0},
    {"nosuid", MS_NOSUID, 0},
    {"suid", 0, MS_NOSUID},
    {"nodev", MS_NODEV, 0},
    {"dev", 0, MS_NODEV},
    {"noexec", MS_NOEXEC, 0},
    {"exec", 0, MS_NOEXEC},
    {"noatime", MS_NOATIME, 0},
    {"atime", 0, MS_NOATIME},
    {"nodiratime", MS_NODIRATIME, 0},
    {"relatime", MS_RELATIME, 0},
    {"strictatime", MS_STRICTATIME, 0},
    {"sync", MS_SYNCHRONOUS, 0},
    {"dirsync", MS_DIRSYNC, 0},
    {"defaults", 0, 0},
};

static bool take_flag(const char *option, unsigned long *ret)
{
    for (size_t i = 0; i < RR_ARRAY_LEN(flags); i++)
        if (strcmp(option, flags[i].name) == 0) {
            *ret = (*ret | flags[i].set) & ~flags[i].clear;
            return true;
        }
    return false;
}

/* The folder that all of "A:B:C" lie in, with its slash: 0: none but the root. */
static size_t common_folder(const char *list)
{
    size_t common = strcspn(list, ":");

    for (const char *p = list; *p; p += strcspn(p, ":"), p += *p == ':') {
        size_t n = 0;

        while (n < common && p[n] == list[n])
            n++;
        common = n;
    }
    while (common > 0 && list[common - 1] != '/')
        common--;
    return common > 1 ? common : 0;
}

/* @list without the first @cut bytes of each path. */
static void append_short(char *out, const char *list, size_t cut)
{
    while (*list) {
        size_t n = strcspn(list, ":");

        strncat(out, list + cut, n - cut);
        list += n;
        if (*list == ':') {
            strcat(out, ":"); /* NOLINT(clang-analyzer-security.insecureAPI.strcpy) */
            list++;
        }
    }
}

/* Many layers make a long option. Named from the folder they share, they fit. */
/* NOLINTBEGIN(clang-analyzer-security.insecureAPI.strcpy): @data has room for all options */
static char *join_options(const Rr__Pb__Mount *m, unsigned long *ret_flags, char **ret_folder)
{
    static const char lower[] = "lowerdir=";
    size_t len = 1;
    char *data;

    for (size_t i = 0; i < m->n_options; i++)
        len += strlen(m->options[i]) + 1;
    data = calloc(1, len);
    for (size_t i = 0; data && i < m->n_options; i++) {
        const char *o = m->options[i];
        size_t cut = 0;

        if (take_flag(o, ret_flags) || strncmp(o, "X-", 2) == 0 || strncmp(o, "x-", 2) == 0)
            continue;
        if (*data)
            strcat(data, ",");
        if (len > MAX_DATA && strncmp(o, lower, sizeof(lower) - 1) == 0)
            cut = common_folder(o + sizeof(lower) - 1);
        if (cut == 0) {
            strcat(data, o);
            continue;
        }
        *ret_folder = strndup(o + sizeof(lower) - 1, cut);
        strcat(data, lower);
        append_short(data, o + sizeof(lower) - 1, cut);
    }
    return data;
}

/* NOLINTEND(clang-analyzer-security.insecureAPI.strcpy) */

/* From another folder, without going there ourselves. */
static int mount_from(const char *folder, const char *source, const char *target, const char *type,
                      unsigned long f, const char *data)
{
    int status = 0;
    pid_t pid;

    if (!folder)
        return mount(source, target, type, f, data) < 0 ? -errno : 0;
    pid = fork();
    if (pid == 0)
        _exit(chdir(folder) < 0 || mount(source, target, type, f, data) < 0 ? errno : 0);
    if (pid < 0)
        return -errno;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
}

static int mount_one(const Rr__Pb__Mount *m, const char *target, struct rr_error *err)
{
    __attribute__((cleanup(rr_free_cleanup))) char *folder = NULL, *data = NULL, *where = NULL;
    unsigned long f = 0;
    int r;

    data = join_options(m, &f, &folder);
    if (!data || asprintf(&where, "%s%s%s", target, *m->target ? "/" : "", m->target) < 0)
        return rr_error_no_memory(err);
    if (strlen(data) > MAX_DATA)
        return rr_error_set(err, RR_E_LIMIT, "use an image with fewer layers",
                            "the options of the root file system's mount are too long");
    if (strcmp(m->type, "bind") == 0)
        f |= MS_BIND;
    r = mount_from(folder, m->source, where, m->type,
                   f & MS_BIND ? f & ~(unsigned long)MS_RDONLY : f, data);
    if (r == 0 && (f & MS_BIND) && (f & ~(unsigned long)(MS_BIND | MS_REC)))
        r = mount("", where, "", (f & ~(unsigned long)MS_REC) | MS_REMOUNT, "") < 0 ? -errno : 0;
    return r < 0
               ? rr_error_set(err, RR_E_SYSTEM, "", "cannot mount the root file system (%s %s): %s",
                              m->type, m->source, strerror(-r))
               : 0;
}

int rr_mount_all(Rr__Pb__Mount *const *mounts, size_t n, const char *target, struct rr_error *err)
{
    int r = 0;

    if (n > 0 && mkdir(target, 0711) < 0 && errno != EEXIST)
        return rr_error_set(err, RR_E_SYSTEM, "", "cannot make %s: %s", target, strerror(errno));
    for (size_t i = 0; i < n && r == 0; i++)
        r = mount_one(mounts[i], target, err);
    if (r)
        rr_unmount_all(target);
    return r;
}

/* The last mount at or below @target; in @ret. */
static bool last_mount(const char *target, char *ret, size_t size)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = fopen("/proc/self/mountinfo", "re");
    __attribute__((cleanup(rr_free_cleanup))) char *line = NULL;
    size_t cap = 0, n = strlen(target);
    bool found = false;

    while (f && getline(&line, &cap, f) > 0) {
        char *save = NULL, *p = strtok_r(line, " ", &save);

        for (int i = 0; i < 4 && p; i++)
            p = strtok_r(NULL, " ", &save);
        if (p && strncmp(p, target, n) == 0 && (!p[n] || p[n] == '/')) {
            snprintf(ret, size, "%s", p);
            found = true;
        }
    }
    return found;
}

void rr_unmount_all(const char *target)
{
    char path[4096];

    for (int i = 0; i < 1000 && last_mount(target, path, sizeof(path)); i++)
        if (umount2(path, UMOUNT_NOFOLLOW) < 0 && umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
            return;
}
