/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cache.h"
#include "base/util.h"
#include "oci/oci.h"

#define MAX_WORKER (256 * RR_MIB)
#define NODE_CACHE "/var/cache/roadrunner"

extern char **environ;

/* --- crun or runc ---------------------------------------------------------------------------- */

/* Where they are when a daemon's $PATH is short. */
static const char usual_path[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

static bool search(const char *path, const char *name, char *ret, size_t size)
{
    for (const char *p = path; p && *p;) {
        size_t len = strcspn(p, ":");
        int n = snprintf(ret, size, "%.*s/%s", (int)len, p, name);

        if (len > 0 && n > 0 && (size_t)n < size && access(ret, X_OK) == 0)
            return true;
        p += len + (p[len] == ':');
    }
    return false;
}

static bool find_program(const char *name, char *ret, size_t size)
{
    if (strchr(name, '/')) {
        snprintf(ret, size, "%s", name);
        return access(ret, X_OK) == 0;
    }
    return search(getenv("PATH"), name, ret, size) || search(usual_path, name, ret, size);
}

/*
 * crun refuses machines that have both versions of cgroups mounted: it, and so we, get a view with
 * one. Only what is below that folder is private: mounts of containers are seen outside as ever.
 */
static bool suit_crun(void)
{
    struct statfs fs;

    if (statfs("/sys/fs/cgroup/unified", &fs) < 0 || fs.f_type != CGROUP2_SUPER_MAGIC)
        return true;
    return unshare(CLONE_NEWNS) == 0 &&
           mount(NULL, "/sys/fs/cgroup", NULL, MS_PRIVATE | MS_REC, NULL) == 0 &&
           umount2("/sys/fs/cgroup/unified", MNT_DETACH) == 0;
}

static bool is_crun(const char *path)
{
    const char *name = strrchr(path, '/');

    return strcmp(name ? name + 1 : path, "crun") == 0;
}

/* Each keeps a file of its own for a container. */
static const char *maker(const char *root, const char *id)
{
    static const char *const files[][2] = {{"status", "crun"}, {"state.json", "runc"}};
    char path[PATH_MAX];

    for (size_t i = 0; root && id && i < RR_ARRAY_LEN(files); i++) {
        int n = snprintf(path, sizeof(path), "%s/%s/%s", root, id, files[i][0]);

        if (n > 0 && (size_t)n < sizeof(path) && access(path, F_OK) == 0)
            return files[i][1];
    }
    return NULL;
}

int rr_runtime_find(const char *root, const char *id, bool view, char *ret, size_t size,
                    struct rr_error *err)
{
    const char *wanted = getenv("ROADRUNNER_RUNTIME"), *made = maker(root, id);

    if (wanted && !*wanted)
        wanted = NULL;
    if (wanted && !find_program(wanted, ret, size))
        return rr_error_set(err, RR_E_NOINPUT, "correct ROADRUNNER_RUNTIME",
                            "cannot find the runtime %s", wanted);
    if (!wanted && (!made || !find_program(made, ret, size)) && !find_program("crun", ret, size) &&
        !find_program("runc", ret, size))
        return rr_error_set(err, RR_E_NOINPUT, "install crun or runc, or set ROADRUNNER_RUNTIME",
                            "found neither crun nor runc");
    if (view && is_crun(ret) && !suit_crun() && !wanted && !made &&
        !find_program("runc", ret, size))
        find_program("crun", ret, size); /* it says itself what it lacks */
    return 0;
}

/* --- files that containers can reach through /proc ------------------------------------------- */

/* A mount of its own, read-only, that no folder shows. -errno. */
static int read_only_mount(const char *path)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
    int r, tree = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

    if (tree < 0)
        return -errno;
    if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0) {
        r = -errno;
        close(tree);
        return r;
    }
    return tree;
}

/*
 * crun makes sure that no container can write to its file, and starts over from a mount like this
 * one if it has to make it itself: half of the time that its short commands take. It looks whether
 * the mount is read-only, whatever the environment says. Only for our shim: a user's own
 * may be under rules that go by a program's path.
 */
int rr_runtime_open(const char *path)
{
    int fd = is_crun(path) && getenv("ROADRUNNER_CONTAINERD") ? read_only_mount(path) : -1;

    return fd < 0 ? -1 : fd;
}

/* --- the worker ------------------------------------------------------------------------------ */

static int worker_path(char *ret, size_t size, struct rr_error *err)
{
    const char *own = getenv("ROADRUNNER_WORKER");
    ssize_t n;
    char *end;

    if (own && *own) {
        snprintf(ret, size, "%s", own);
    } else {
        n = readlink("/proc/self/exe", ret, size - 20);
        ret[n < 0 ? 0 : n] = 0;
        end = strrchr(ret, '/');
        memcpy(end ? end : ret, "/roadrunner-worker", sizeof("/roadrunner-worker"));
    }
    if (access(ret, X_OK) == 0)
        return 0;
    return rr_error_set(err, RR_E_NOINPUT, "put it beside this command, or set ROADRUNNER_WORKER",
                        "cannot run %s: %s", ret, strerror(errno));
}

static int open_read_only(const char *path)
{
    __attribute__((cleanup(rr_close_cleanup))) int tree = read_only_mount(path);
    char link[64];
    int fd;

    if (tree < 0)
        return tree;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", tree);
    fd = open(link, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* For kernels, or users, that may not: a copy that nobody can change, at the cost of its memory. */
static int copy_sealed(const char *path)
{
    __attribute__((cleanup(rr_close_cleanup))) int from = open(path, O_RDONLY | O_CLOEXEC);
    int fd = -1, r = 0;
    struct stat st;
    off_t at = 0;

    if (from < 0 || fstat(from, &st) < 0)
        return -errno;
    if (st.st_size > (off_t)MAX_WORKER)
        return -EFBIG;
    fd = memfd_create("roadrunner-worker", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    while (at < st.st_size && r == 0)
        if (sendfile(fd, from, &at, (size_t)(st.st_size - at)) <= 0)
            r = errno ? -errno : -EIO;
    if (r == 0 &&
        (fchmod(fd, 0755) < 0 ||
         fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0))
        r = -errno;
    if (r < 0)
        close(fd);
    return r < 0 ? r : fd;
}

/*
 * A process of the container can open its own program, /proc/PID/exe, and root could write to it
 * there: to the file that all containers of the node run. So never a plain descriptor of it.
 */
int rr_worker_open(int *ret_fd, struct rr_error *err)
{
    char path[PATH_MAX];
    int fd, r = worker_path(path, sizeof(path), err);

    if (r)
        return r;
    fd = open_read_only(path);
    if (fd < 0)
        fd = copy_sealed(path);
    if (fd < 0)
        return rr_error_set(err, RR_E_SYSTEM, "check its permissions", "cannot open %s: %s", path,
                            strerror(-fd));
    *ret_fd = fd;
    return 0;
}

bool rr_oci_is_node(void)
{
    return geteuid() == 0 && access("/run", W_OK) == 0;
}

/* --- compiled images ------------------------------------------------------------------------- */

/* Standard output of the worker in the mode `prepare`; its errors are for the container to tell. */
static int run_prepare(const char *worker, int module_fd, char *ret, size_t size)
{
    __attribute__((cleanup(rr_close_cleanup))) int read_fd = -1;
    char module[64], mode[] = "prepare", name[] = "roadrunner-worker",
                     *argv[] = {name, mode, module, NULL};
    posix_spawn_file_actions_t actions;
    int pipe_fd[2], status = -1, copy, r;
    size_t len = 0;
    ssize_t n;
    pid_t pid;

    copy = fcntl(module_fd, F_DUPFD, 10); /* inherited */
    if (copy < 0 || pipe2(pipe_fd, O_CLOEXEC) < 0) {
        close(copy);
        return -errno;
    }
    read_fd = pipe_fd[0];
    snprintf(module, sizeof(module), "/proc/self/fd/%d", copy);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, pipe_fd[1], 1);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    r = posix_spawn(&pid, worker, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_fd[1]);
    close(copy);
    if (r)
        return -r;
    while (len < size - 1 && (n = read(read_fd, ret + len, size - 1 - len)) != 0) {
        if (n < 0 && errno != EINTR)
            break;
        len += n > 0 ? (size_t)n : 0;
    }
    ret[len] = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    ret[strcspn(ret, "\n")] = 0;
    return status == 0 && *ret == '/' ? 0 : -EINVAL;
}

int rr_worker_image(int module_fd)
{
    char worker[PATH_MAX], entry[PATH_MAX];
    struct rr_error err;
    char magic[4];
    int fd;

    if (pread(module_fd, magic, 4, 0) == 4 && memcmp(magic, "\177ELF", 4) == 0)
        return -1;        /* compiled already */
    if (rr_oci_is_node()) /* a daemon has no home */
        setenv("ROADRUNNER_CACHE_DIR", NODE_CACHE, 0);
    fd = rr_cache_open(module_fd, RR_MAX_MODULE, RR_ENGINE_VERSION);
    if (fd >= 0)
        return fd;
    if (worker_path(worker, sizeof(worker), &err) ||
        run_prepare(worker, module_fd, entry, sizeof(entry)) < 0)
        return -1;
    return open(entry, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
}
