/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Folders of trust domains, on the host:
 *
 *   /run/roadrunner/domains/KEY/users/   a file for each container that was given the folder: the
 *                                        path of its bundle
 *                               shared/  what they are given
 *
 * Only root can get there by path. What lies in shared/ was made by containers and is hostile: it
 * is never followed or read here, only removed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "oci/oci.h"

#define MAX_DEPTH 8 /* of what is removed; workers make two levels */

static int failed(struct rr_error *err, const char *path, int error)
{
    return rr_error_set(err, RR_E_SYSTEM, "set ROADRUNNER_STATE to a folder that can be written",
                        "the trust domain's folder: %s: %s", path, strerror(error));
}

/* A folder in another one, made if need be; must be our own. A descriptor or -errno. */
static int folder(int at, const char *name, mode_t mode, bool make)
{
    struct stat st;
    int fd, r = 0;

    if (make && mkdirat(at, name, mode & 0777) < 0 && errno != EEXIST)
        return -errno;
    fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0)
        r = -errno;
    if (r == 0 && st.st_uid != geteuid())
        r = -EPERM;
    if (r == 0 && make && (st.st_mode & 07777) != mode && fchmod(fd, mode) < 0)
        r = -errno;
    if (r < 0)
        close(fd);
    return r < 0 ? r : fd;
}

static void state_path(char ret[PATH_MAX])
{
    const char *own = getenv("ROADRUNNER_STATE"), *session = getenv("XDG_RUNTIME_DIR");

    if (own && *own)
        snprintf(ret, PATH_MAX, "%s", own);
    else if (!rr_oci_is_node() && session)
        snprintf(ret, PATH_MAX, "%s/roadrunner", session);
    else
        snprintf(ret, PATH_MAX, "/run/roadrunner");
}

void rr_domain_path(const char *key, char *ret, size_t size)
{
    char state[PATH_MAX];

    state_path(state);
    snprintf(ret, size, "%s/domains/%s/shared", state, key);
}

/* The folder of all domains, locked; -errno. */
static int open_all(bool make)
{
    char path[PATH_MAX];
    int state, fd;

    state_path(path);
    state = folder(AT_FDCWD, path, 0711, make);
    if (state < 0)
        return state;
    fd = folder(state, "domains", 0700, make);
    close(state);
    while (fd >= 0 && flock(fd, LOCK_EX) < 0)
        if (errno != EINTR) {
            close(fd);
            return -errno;
        }
    return fd;
}

static uint64_t hash(const char *text)
{
    uint64_t h = 0xcbf29ce484222325;

    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 0x100000001b3;
    return h;
}

static void user_name(const char *bundle, char ret[17])
{
    snprintf(ret, 17, "%016llx", (unsigned long long)hash(bundle));
}

/* --- removing -------------------------------------------------------------------------------- */

static bool is_dot(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static DIR *open_dir(int at, const char *name)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);

    if (!d && fd >= 0)
        close(fd);
    return d;
}

/* Links are removed, not followed. */
static void remove_tree(int at, const char *name, int depth)
{
    DIR *d = depth < MAX_DEPTH ? open_dir(at, name) : NULL;
    int fd = d ? dirfd(d) : -1;
    const struct dirent *e;

    while (d && fd >= 0 && (e = readdir(d)))
        if (!is_dot(e->d_name) && unlinkat(fd, e->d_name, 0) < 0)
            remove_tree(fd, e->d_name, depth + 1);
    if (d)
        closedir(d);
    unlinkat(at, name, AT_REMOVEDIR);
}

/* Is the bundle of this user still there? */
static bool bundle_lives(int users, const char *name)
{
    char path[PATH_MAX];
    int fd = openat(users, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, path, sizeof(path) - 1);

    if (fd >= 0)
        close(fd);
    path[n < 0 ? 0 : n] = 0;
    return n > 0 && access(path, F_OK) == 0;
}

/* Nobody uses it: it goes. */
static void sweep_one(int all, const char *key, const char *gone)
{
    int domain = folder(all, key, 0700, false);
    DIR *users = domain < 0 ? NULL : open_dir(domain, "users");
    int fd = users ? dirfd(users) : -1;
    const struct dirent *e;
    bool used = false;

    while (users && fd >= 0 && (e = readdir(users))) {
        if (is_dot(e->d_name))
            continue;
        if (strcmp(e->d_name, gone) == 0 || !bundle_lives(fd, e->d_name))
            unlinkat(fd, e->d_name, 0);
        else
            used = true;
    }
    if (users)
        closedir(users);
    if (domain >= 0)
        close(domain);
    if (!used)
        remove_tree(all, key, 0);
}

static void sweep(int all, const char *gone)
{
    int fd = openat(all, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *e;

    while (d && (e = readdir(d)))
        if (!is_dot(e->d_name))
            sweep_one(all, e->d_name, gone);
    if (d)
        closedir(d);
    else if (fd >= 0)
        close(fd);
}

void rr_domain_leave(const char *bundle)
{
    int all = open_all(false);
    char name[17];

    if (all < 0)
        return;
    user_name(bundle, name);
    sweep(all, name);
    close(all);
}

/* --- joining --------------------------------------------------------------------------------- */

/*
 * A descriptor of a plain folder would be a way out of the container: to "..". Of a mount that is
 * attached nowhere it is not, and no path of the container leads there, so no guest finds it.
 */
static int detached(int shared)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC};
    int fd = (int)syscall(SYS_open_tree, shared, "",
                          OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);

    if (fd < 0)
        return -errno;
    if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0) {
        int r = -errno;

        close(fd);
        return r;
    }
    return fd;
}

static int add_user(int domain, const char *bundle)
{
    int users = folder(domain, "users", 0700, true), fd, r;
    char name[17];

    if (users < 0)
        return users;
    user_name(bundle, name);
    fd = openat(users, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    r = fd < 0 ? -errno : rr_write_all(fd, bundle, strlen(bundle));
    if (fd >= 0)
        close(fd);
    close(users);
    return r;
}

int rr_domain_join(const char *key, const char *bundle, int *ret_fd, struct rr_error *err)
{
    int all = open_all(true), domain = -1, shared = -1, fd = -1, r = all < 0 ? all : 0;

    if (r == 0) {
        sweep(all, "");
        domain = folder(all, key, 0700, true);
        r = domain < 0 ? domain : add_user(domain, bundle);
    }
    if (r == 0) {
        shared = folder(domain, "shared", 01777, true); /* containers have users of their own */
        fd = shared < 0 ? shared : detached(shared);
        r = fd < 0 ? fd : 0;
    }
    if (shared >= 0)
        close(shared);
    if (domain >= 0)
        close(domain);
    if (all >= 0)
        close(all);
    if (r < 0) {
        rr_domain_leave(bundle);
        return failed(err, key, -r);
    }
    *ret_fd = fd;
    return 0;
}
