/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes that turn out to be processes of one machine, of one user: their messages go over links, as
 * between a parent and its workers, and not over the network that introduced them. Each tells the
 * others the folder where it listens; who finds no such folder of its own user stays with the
 * network.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/nodes.h"

#define PREFIX "roadrunner."
#define MAX_TRIES 16 /* to make a folder */
#define BOOT_ID "/proc/sys/kernel/random/boot_id"

struct near {
    int lock_fd;                /* of the folder, as long as we live */
    struct rr_link_domain own;  /* where we listen */
    struct rr_link_domain of[]; /* by node + 1, the origin first; dir "": it is not near */
};

void rr_near_host(char ret[RR_HOST_TEXT])
{
    int fd = open(BOOT_ID, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, ret, RR_HOST_TEXT - 1);

    if (fd >= 0)
        close(fd);
    ret[n < 0 ? 0 : n] = 0;
    ret[strcspn(ret, "\n")] = 0;
}

static void fill(const struct remote *rm, struct rr_link_domain *d, const char *dir)
{
    *d = (struct rr_link_domain){
        .uids = {geteuid(), geteuid()},
        .arena = rm->w->arena,
        .queue_messages = rm->domain.queue_messages,
        .queue_bytes = rm->domain.queue_bytes,
    };
    rr_hex(rm->session, sizeof(rm->session), d->name); /* nobody else's session can be meant */
    snprintf(d->dir, sizeof(d->dir), "%s", dir);
}

/* Of the sockets in it; nothing else is there. */
static void empty(int dir_fd)
{
    int fd = dup(dir_fd);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *e;

    while (d && (e = readdir(d)))
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            unlinkat(dir_fd, e->d_name, 0);
    if (d)
        closedir(d);
    else if (fd >= 0)
        close(fd);
}

/* For all that comes from other nodes: to functions that live here, and the result. */
static int listen_all(struct remote *rm)
{
    const struct rr_workflow *wf = rm->w->wf;
    int r =
        rr_remote_is_origin(rm) ? rr_remote_listen(rm, &rm->near->own, (int)wf->n_functions) : 0;

    for (size_t n = 0; n < wf->n_functions && r == 0; n++) {
        bool wanted = false;

        for (size_t k = 0; k < wf->n_edges; k++)
            wanted = wanted || (wf->edges[k].to == (int)n &&
                                rr_edge_channel(wf, &wf->edges[k]) == RR_CHANNEL_NETWORK);
        if (wanted && wf->functions[n].node == wf->here)
            r = rr_remote_listen(rm, &rm->near->own, (int)n);
    }
    return r;
}

/* What processes that were killed have left: nobody holds its lock. One that is just being made may
 * go as well; its maker then makes another. */
static void sweep(const char *base)
{
    DIR *d = opendir(base);
    int base_fd = d ? dirfd(d) : -1;
    const struct dirent *e;

    while (d && base_fd >= 0 && (e = readdir(d))) {
        int fd = strncmp(e->d_name, PREFIX, strlen(PREFIX)) == 0
                     ? openat(base_fd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                     : -1;
        struct stat st;

        if (fd < 0)
            continue;
        if (fstat(fd, &st) == 0 && st.st_uid == geteuid() && flock(fd, LOCK_EX | LOCK_NB) == 0) {
            empty(fd);
            unlinkat(base_fd, e->d_name, AT_REMOVEDIR);
        }
        close(fd);
    }
    if (d)
        closedir(d);
}

/* Somebody who sweeps may hold the lock of a folder that was just made, or have removed it. */
static bool lock(int fd)
{
    struct stat st;

    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return false;
    errno = ENOENT;
    return fstat(fd, &st) == 0 && st.st_nlink > 0;
}

/* A folder of our own, with its lock. */
static int make_dir(struct near *near, char dir[96])
{
    int r = 0;

    for (int n = 0; n < MAX_TRIES; n++) {
        snprintf(dir, 96, "%s/" PREFIX "XXXXXX", rr_runtime_dir());
        if (!mkdtemp(dir))
            return -errno;
        near->lock_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (near->lock_fd >= 0 && lock(near->lock_fd))
            return 0;
        r = -errno;
        if (near->lock_fd >= 0)
            close(near->lock_fd);
        rmdir(dir);
        if (r != -ENOENT && r != -EWOULDBLOCK)
            break;
    }
    return r;
}

int rr_near_open(struct remote *rm)
{
    size_t n_listeners = rm->n_listeners;
    char dir[96];
    int r;

    if (rm->near)
        return 0;
    rm->near =
        calloc(1, sizeof(*rm->near) + (rm->w->wf->n_nodes + 1) * sizeof(struct rr_link_domain));
    if (!rm->near)
        return -ENOMEM;
    sweep(rr_runtime_dir());
    r = make_dir(rm->near, dir);
    if (r < 0) {
        free(rr_take(rm->near));
    } else {
        fill(rm, &rm->near->own, dir);
        r = listen_all(rm);
        if (r == 0)
            return 0;
        while (rm->n_listeners > n_listeners)
            close(rm->listeners[--rm->n_listeners].fd);
        rr_near_free(rm);
    }
    rr_log(1, "messages of this machine go over the network: %s: %s", dir, strerror(-r));
    return r;
}

void rr_near_free(struct remote *rm)
{
    if (!rm->near)
        return;
    empty(rm->near->lock_fd);
    rmdir(rm->near->own.dir);
    close(rm->near->lock_fd);
    free(rr_take(rm->near));
}

const char *rr_near_dir(const struct remote *rm, int node)
{
    if (!rm->near)
        return "";
    return node == rm->w->wf->here ? rm->near->own.dir : rm->near->of[node + 1].dir;
}

struct rr_link_domain *rr_near_domain(const struct remote *rm, int to)
{
    struct rr_link_domain *d = rm->near ? &rm->near->of[rr_node_of(rm->w->wf, to) + 1] : NULL;

    return d && d->dir[0] ? d : NULL;
}

/* Links to it end by themselves. */
void rr_near_lost(struct remote *rm, int node)
{
    if (rm->near)
        rm->near->of[node + 1].dir[0] = 0;
}

/* Told by a peer: nothing but a folder of ours, made for this, is taken for one. */
static bool is_ours(const char *dir)
{
    const char *slash = strrchr(dir, '/');
    struct stat st;

    return dir[0] == '/' && strlen(dir) < sizeof(((struct rr_link_domain *)0)->dir) &&
           strncmp(slash + 1, PREFIX, strlen(PREFIX)) == 0 &&
           strlen(slash + 1) == strlen(PREFIX) + 6 && lstat(dir, &st) == 0 && S_ISDIR(st.st_mode) &&
           st.st_uid == geteuid() && (st.st_mode & 077) == 0;
}

/* Another view of the file system may have our folder under another name. */
static const char *as_we_see(const char *dir, char other[96])
{
    const char *slash = strrchr(dir, '/');
    int n = slash ? snprintf(other, 96, "%s%s", rr_runtime_dir(), slash) : 0;

    return n > 0 && n < 96 && !is_ours(dir) ? other : dir;
}

bool rr_near_found(struct remote *rm, int node, const char *told)
{
    char other[96];
    const char *dir = as_we_see(told, other);

    if (node < RR_NODE_HERE || node >= (int)rm->w->wf->n_nodes || node == rm->w->wf->here ||
        !is_ours(dir) || rr_near_open(rm) < 0)
        return false;
    if (strcmp(rm->near->of[node + 1].dir, dir) != 0)
        rr_log(2, "node '%s' is near: messages do not go over the network",
               node < 0 ? "origin" : rm->w->wf->nodes[node].name);
    fill(rm, &rm->near->of[node + 1], dir);
    return true;
}
