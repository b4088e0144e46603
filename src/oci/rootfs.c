/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "oci/oci.h"

bool rr_is_workflow_name(const char *name)
{
    size_t len = strlen(name);

    return (len > 5 && strcmp(name + len - 5, ".yaml") == 0) ||
           (len > 4 && strcmp(name + len - 4, ".yml") == 0);
}

bool rr_is_module_name(const char *name)
{
    static const char *const suffixes[] = {".wasm", ".cwasm", ".wat"};
    size_t len = strlen(name);

    for (size_t i = 0; i < RR_ARRAY_LEN(suffixes); i++) {
        size_t n = strlen(suffixes[i]);

        if (len > n && strcmp(name + len - n, suffixes[i]) == 0)
            return true;
    }
    return false;
}

bool rr_is_module_file(int fd)
{
    char magic[4];

    return pread(fd, magic, sizeof(magic), 0) == sizeof(magic) && memcmp(magic, "\0asm", 4) == 0;
}

/* Nothing is opened but a regular file: opening a FIFO or a device may block, or do things. */
static int reopen_regular(int path_fd)
{
    char link[64];
    struct stat st;
    int fd;

    if (fstat(path_fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", path_fd);
    fd = open(link, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int rr_rootfs_open(const char *root, const char *path)
{
    __attribute__((cleanup(rr_close_cleanup))) int dir = -1, found = -1;
    struct open_how how = {.flags = O_PATH | O_CLOEXEC,
                           .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};

    dir = open(root, O_PATH | O_CLOEXEC | O_DIRECTORY);
    if (dir < 0)
        return -errno;
    found = (int)syscall(SYS_openat2, dir, path, &how, sizeof(how));
    return found < 0 ? -errno : reopen_regular(found);
}

static const char *string_at(const struct json_object *o, const char *name)
{
    struct json_object *v = NULL;

    json_object_object_get_ex(o, name, &v);
    return v ? json_object_get_string(v) : NULL;
}

/* The rest of @path below @folder; NULL if it is not. */
static const char *below(const char *folder, const char *path)
{
    size_t n = strlen(folder);

    while (n > 0 && folder[n - 1] == '/')
        n--;
    return strncmp(folder, path, n) == 0 && (path[n] == '/' || !path[n]) ? path + n : NULL;
}

/* A file of the root file system or, where a mount lies over it, of what is mounted. */
static int open_at(const char *rootfs, const struct json_object *spec, const char *path)
{
    struct json_object *mounts = NULL;

    json_object_object_get_ex(spec, "mounts", &mounts);
    for (size_t i = mounts ? json_object_array_length(mounts) : 0; i-- > 0;) {
        const struct json_object *m = json_object_array_get_idx(mounts, i);
        const char *to = string_at(m, "destination"), *from = string_at(m, "source");
        const char *rest = to ? below(to, path) : NULL;

        if (!rest)
            continue;
        if (!from || *from != '/')
            return -ENOENT; /* no files of before */
        if (*rest)
            return rr_rootfs_open(from, rest);
        __attribute__((cleanup(rr_close_cleanup))) int fd = open(from, O_PATH | O_CLOEXEC);

        return fd < 0 ? -errno : reopen_regular(fd);
    }
    return rr_rootfs_open(rootfs, path);
}

static const char *path_variable(const struct json_object *spec)
{
    struct json_object *process = NULL, *env = NULL;

    json_object_object_get_ex(spec, "process", &process);
    if (process)
        json_object_object_get_ex(process, "env", &env);
    for (size_t i = 0; env && i < json_object_array_length(env); i++) {
        const char *text = json_object_get_string(json_object_array_get_idx(env, i));

        if (strncmp(text, "PATH=", 5) == 0)
            return text + 5;
    }
    return "";
}

/* As the worker does it: see find_module() in init/container.c. */
int rr_rootfs_find(const char *rootfs, const struct json_object *spec, const char *name,
                   const char *cwd)
{
    char path[PATH_MAX];
    int fd;

    if (*name == '/')
        return open_at(rootfs, spec, name);
    snprintf(path, sizeof(path), "%s/%s", strcmp(cwd, "/") == 0 ? "" : cwd, name);
    fd = open_at(rootfs, spec, path);
    if (fd >= 0 || strchr(name, '/'))
        return fd;
    for (const char *p = path_variable(spec); *p && fd < 0;) {
        size_t len = strcspn(p, ":");

        snprintf(path, sizeof(path), "%.*s/%s", (int)len, p, name);
        if (len > 0)
            fd = open_at(rootfs, spec, path);
        p += len + (p[len] == ':');
    }
    if (fd < 0) {
        snprintf(path, sizeof(path), "/%s", name);
        fd = open_at(rootfs, spec, path);
    }
    return fd;
}
