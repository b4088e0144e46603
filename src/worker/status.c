/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/status.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/worker.h"

#define MAGIC 0x3154535252525272u /* changes with the layout */
#define MAX_ENTRIES 65536         /* of a folder that is looked at */
#define PATIENCE_NS 200000000u    /* with one end of a conversation, by the other */
#define STACK (256u << 10)

/* What is told: a head, functions, edges. Numbers are of this machine. */
struct head {
    uint64_t magic, started_ns;
    char kind[RR_STATUS_NAME], workflow[RR_STATUS_NAME], node[RR_STATUS_NAME];
    uint32_t n_functions, n_edges;
};

struct told_function {
    char name[RR_STATUS_NAME];
    _Atomic uint64_t runs, running;
    uint32_t here, pad;
};

struct told_edge {
    char from[2 * RR_STATUS_NAME], to[2 * RR_STATUS_NAME];
    struct {
        _Atomic uint64_t messages, bytes, copied_bytes;
    } by[RR_STATUS_CHANNELS];
    uint32_t here, pad;
};

struct rr_status {
    int fd;
    pid_t pid; /* whose the socket is: children leave it alone; 0: nobody's yet */
    atomic_bool opened;
    bool several; /* threads count */
    pthread_t thread;
    size_t bytes;
    struct head *head; /* shared with children */
    struct told_function *functions;
    struct told_edge *edges;
    char path[108];
};

static uint64_t boot_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static size_t told_bytes(size_t n_functions, size_t n_edges)
{
    return sizeof(struct head) + n_functions * sizeof(struct told_function) +
           n_edges * sizeof(struct told_edge);
}

/* --- telling --------------------------------------------------------------------------------- */

/* A socket in a folder that may be hostile: the one that lies there, and not what a link names. */
static int connect_to(int dir_fd, const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int at = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), fd = -1, r = 0;
    struct stat st;

    if (at < 0)
        return -errno;
    snprintf(a.sun_path, sizeof(a.sun_path), "/proc/self/fd/%d", at);
    if (fstat(at, &st) < 0 || !S_ISSOCK(st.st_mode))
        r = -EINVAL;
    if (r == 0)
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (r == 0 && (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0))
        r = -errno;
    close(at);
    if (r < 0 && fd >= 0)
        close(fd);
    return r < 0 ? r : fd;
}

static bool is_status(const char *name)
{
    return strncmp(name, RR_STATUS_PREFIX, strlen(RR_STATUS_PREFIX)) == 0;
}

/* What processes left that were killed. */
static void sweep(const char *dir)
{
    DIR *d = opendir(dir);
    int dir_fd = d ? dirfd(d) : -1;
    const struct dirent *e;
    int left = MAX_ENTRIES;

    while (d && dir_fd >= 0 && left-- > 0 && (e = readdir(d))) {
        struct stat st;
        int fd;

        if (!is_status(e->d_name) || fstatat(dir_fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            st.st_uid != geteuid())
            continue;
        fd = connect_to(dir_fd, e->d_name);
        if (fd == -ECONNREFUSED)
            unlinkat(dir_fd, e->d_name, 0);
        else if (fd >= 0)
            close(fd);
    }
    if (d)
        closedir(d);
}

static void fill(struct rr_status *s, const struct rr_workflow *wf, const char *kind)
{
    struct head *h = s->head;

    snprintf(h->kind, sizeof(h->kind), "%s", kind);
    snprintf(h->workflow, sizeof(h->workflow), "%.63s", wf->name);
    snprintf(h->node, sizeof(h->node), "%.63s", wf->here < 0 ? "" : wf->nodes[wf->here].name);
    h->n_functions = (uint32_t)wf->n_functions;
    h->n_edges = (uint32_t)wf->n_edges;
    h->started_ns = boot_ns();
    s->functions = (struct told_function *)(void *)(h + 1);
    s->edges = (struct told_edge *)(void *)(s->functions + wf->n_functions);
    for (size_t n = 0; n < wf->n_functions; n++) {
        snprintf(s->functions[n].name, RR_STATUS_NAME, "%.63s", wf->functions[n].name);
        s->functions[n].here = wf->functions[n].node == wf->here;
    }
    for (size_t n = 0; n < wf->n_edges; n++) {
        const struct rr_edge *e = &wf->edges[n];

        snprintf(s->edges[n].from, sizeof(s->edges[n].from), "%.63s%s%.60s",
                 e->from < 0 ? "input" : wf->functions[e->from].name,
                 strcmp(e->from_port, "out") == 0 || e->from < 0 ? "" : ".",
                 strcmp(e->from_port, "out") == 0 || e->from < 0 ? "" : e->from_port);
        snprintf(s->edges[n].to, sizeof(s->edges[n].to), "%.63s%s%.60s", wf->functions[e->to].name,
                 strcmp(e->to_port, "in") == 0 ? "" : ".",
                 strcmp(e->to_port, "in") == 0 ? "" : e->to_port);
        s->edges[n].here = wf->functions[e->to].node == wf->here;
    }
    h->magic = MAGIC;
}

/* Whoever may come gets all and is left. */
static void *tell(void *data)
{
    const struct rr_status *s = data;
    const struct timeval patience = {.tv_usec = PATIENCE_NS / 1000};

    for (;;) {
        int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC);

        if (fd < 0 && (errno == EINVAL || errno == EBADF)) /* shut down */
            return NULL;
        if (fd < 0) {
            usleep(10000);
            continue;
        }
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
        for (size_t done = 0; done < s->bytes;) {
            ssize_t n = send(fd, (const char *)s->head + done, s->bytes - done, MSG_NOSIGNAL);

            if (n <= 0)
                break;
            done += (size_t)n;
        }
        close(fd);
    }
}

static int start_thread(struct rr_status *s)
{
    pthread_attr_t attr;
    sigset_t all, before;
    int r;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&s->thread, &attr, tell, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return -r;
}

/* It appears when there is somebody to answer. */
static int listen_at(struct rr_status *s)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    uint8_t random[8];
    char name[17];

    if (getrandom(random, sizeof(random), 0) != sizeof(random))
        return -EIO;
    rr_hex(random, sizeof(random), name);
    snprintf(s->path, sizeof(s->path), "%.60s/" RR_STATUS_PREFIX "%s", rr_runtime_dir(), name);
    snprintf(a.sun_path, sizeof(a.sun_path), "%.60s/roadrunner-%s", rr_runtime_dir(), name);
    s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s->fd < 0)
        return -errno;
    if (bind(s->fd, (struct sockaddr *)&a, sizeof(a)) < 0)
        return -errno;
    if (chmod(a.sun_path, 0600) < 0 || listen(s->fd, 16) < 0 || rename(a.sun_path, s->path) < 0) {
        int r = -errno;

        unlink(a.sun_path);
        return r;
    }
    return 0;
}

struct rr_status *rr_status_new(const struct rr_workflow *wf, const char *kind)
{
    struct rr_status *s = calloc(1, sizeof(*s));
    void *at;

    if (!s)
        return NULL;
    s->fd = -1;
    s->bytes = told_bytes(wf->n_functions, wf->n_edges);
    at = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        free(s);
        return NULL;
    }
    s->head = at;
    fill(s, wf, kind);
    return s;
}

void rr_status_open(struct rr_status *s)
{
    int r;

    if (!s || atomic_exchange(&s->opened, true))
        return;
    sweep(rr_runtime_dir());
    r = listen_at(s);
    if (r == 0)
        r = start_thread(s);
    if (r == 0) {
        s->pid = getpid();
        return;
    }
    rr_log(2, "roadrunner ps will not show this process: %s: %s", s->path, strerror(-r));
    if (s->fd >= 0)
        close(s->fd);
    unlink(s->path);
    s->fd = -1;
}

void rr_status_free(struct rr_status *s)
{
    if (!s)
        return;
    if (s->pid == getpid()) {
        unlink(s->path);
        shutdown(s->fd, SHUT_RDWR); /* wakes the thread */
        pthread_join(s->thread, NULL);
    }
    if (s->fd >= 0)
        close(s->fd);
    munmap(s->head, s->bytes);
    free(s);
}

void rr_status_share(struct rr_status *s)
{
    if (s)
        s->several = true;
}

/* Each counter is of one function's process: with one thread there, nobody else writes to it. */
static void add(const struct rr_status *s, _Atomic uint64_t *to, uint64_t n)
{
    if (s->several)
        atomic_fetch_add_explicit(to, n, memory_order_relaxed);
    else
        atomic_store_explicit(to, atomic_load_explicit(to, memory_order_relaxed) + n,
                              memory_order_relaxed);
}

void rr_status_hop(struct rr_status *s, int edge, enum rr_channel channel, uint64_t bytes,
                   uint64_t copied_bytes)
{
    if (!s)
        return;
    add(s, &s->edges[edge].by[channel].messages, 1);
    add(s, &s->edges[edge].by[channel].bytes, bytes);
    add(s, &s->edges[edge].by[channel].copied_bytes, copied_bytes);
}

void rr_status_begin(struct rr_status *s, int function)
{
    if (s)
        add(s, &s->functions[function].running, 1);
}

void rr_status_end(struct rr_status *s, int function)
{
    if (!s)
        return;
    add(s, &s->functions[function].runs, 1);
    add(s, &s->functions[function].running, UINT64_MAX); /* less one */
}

/* --- looking --------------------------------------------------------------------------------- */

/* It goes to a terminal. */
static void take_text(char *to, const char *from, size_t size)
{
    size_t n = 0;

    for (; n + 1 < size && from[n]; n++) {
        bool good = from[n] > ' ' && from[n] < 0x7f && from[n] != '"' && from[n] != '\\';

        to[n] = '?';
        if (good)
            to[n] = from[n];
    }
    to[n] = 0;
}

static void take_function(const uint8_t *at, struct rr_status_view *v)
{
    struct told_function f;

    memcpy(&f, at, sizeof(f));
    if (!f.here)
        return;
    take_text(v->functions[v->n_functions].name, f.name, RR_STATUS_NAME);
    v->functions[v->n_functions].runs = f.runs;
    v->functions[v->n_functions].running = f.running;
    v->n_functions++;
}

static void take_edge(const uint8_t *at, struct rr_status_view *v)
{
    struct rr_status_edge *to = &v->edges[v->n_edges];
    struct told_edge e;

    memcpy(&e, at, sizeof(e));
    if (!e.here)
        return;
    take_text(to->from, e.from, sizeof(to->from));
    take_text(to->to, e.to, sizeof(to->to));
    for (int n = 0; n < RR_STATUS_CHANNELS; n++) {
        to->by[n].messages = e.by[n].messages;
        to->by[n].bytes = e.by[n].bytes;
        to->by[n].copied_bytes = e.by[n].copied_bytes;
    }
    v->n_edges++;
}

int rr_status_parse(const uint8_t *data, size_t len, struct rr_status_view *ret)
{
    struct rr_status_view v = {.read_ns = boot_ns()};
    struct head h;

    if (len < sizeof(h))
        return -EINVAL;
    memcpy(&h, data, sizeof(h));
    if (h.magic != MAGIC || h.n_functions > RR_WORKFLOW_MAX_FUNCTIONS ||
        h.n_edges > RR_WORKFLOW_MAX_EDGES || len != told_bytes(h.n_functions, h.n_edges))
        return -EINVAL;
    take_text(v.kind, h.kind, sizeof(v.kind));
    take_text(v.workflow, h.workflow, sizeof(v.workflow));
    take_text(v.node, h.node, sizeof(v.node));
    v.started_ns = rr_min(h.started_ns, v.read_ns);
    v.functions = calloc(h.n_functions + 1u, sizeof(*v.functions));
    v.edges = calloc(h.n_edges + 1u, sizeof(*v.edges));
    if (!v.functions || !v.edges) {
        rr_status_view_deinit(&v);
        return -ENOMEM;
    }
    data += sizeof(h);
    for (uint32_t n = 0; n < h.n_functions; n++, data += sizeof(struct told_function))
        take_function(data, &v);
    for (uint32_t n = 0; n < h.n_edges; n++, data += sizeof(struct told_edge))
        take_edge(data, &v);
    *ret = v;
    return 0;
}

/* Until it has said all; no longer, and no more. */
static int read_all(int fd, uint8_t *to, size_t room, uint64_t until_ns, size_t *ret_len)
{
    size_t len = 0;

    for (;;) {
        ssize_t n = read(fd, to + len, room - len);
        int why = n < 0 ? errno : 0;
        uint64_t now = rr_now_ns();
        struct pollfd p = {.fd = fd, .events = POLLIN};

        if (n == 0) {
            *ret_len = len;
            return 0;
        }
        if (n > 0)
            len += (size_t)n;
        else if (why != EAGAIN && why != EINTR)
            return -why;
        if (len == room)
            return -EFBIG;
        if (now >= until_ns)
            return -ETIMEDOUT;
        if (n < 0)
            poll(&p, 1, (int)((until_ns - now) / 1000000 + 1));
    }
}

int rr_status_ask(int dir_fd, const char *name, uint64_t until_ns, struct rr_status_view *ret)
{
    __attribute__((cleanup(rr_close_cleanup))) int fd = connect_to(dir_fd, name);
    __attribute__((cleanup(rr_free_cleanup))) uint8_t *data = NULL;
    uint64_t own = rr_now_ns() + PATIENCE_NS;
    struct ucred who = {0};
    socklen_t len = sizeof(who);
    size_t n = 0;
    int r;

    if (fd < 0)
        return fd;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0)
        return -errno;
    data = malloc(RR_STATUS_MAX_BYTES);
    if (!data)
        return -ENOMEM;
    r = read_all(fd, data, RR_STATUS_MAX_BYTES, rr_min(own, until_ns), &n);
    if (r == 0)
        r = rr_status_parse(data, n, ret);
    if (r == 0) {
        ret->pid = who.pid;
        ret->uid = who.uid;
    }
    return r;
}

void rr_status_view_deinit(struct rr_status_view *v)
{
    free(v->functions);
    free(v->edges);
    *v = (struct rr_status_view){0};
}

unsigned int rr_status_each(int dir_fd, uint64_t until_ns,
                            void (*seen)(void *user, struct rr_status_view *v), void *user)
{
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), left = MAX_ENTRIES;
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *e;
    unsigned int silent = 0;

    while (d && left-- > 0 && (e = readdir(d))) {
        struct rr_status_view v;
        int r;

        if (!is_status(e->d_name))
            continue;
        r = rr_now_ns() < until_ns ? rr_status_ask(fd, e->d_name, until_ns, &v) : -ETIMEDOUT;
        if (r == 0) {
            seen(user, &v);
            rr_status_view_deinit(&v);
        } else if (r != -ECONNREFUSED && r != -ENOENT && r != -EACCES) {
            silent++;
        }
    }
    if (d)
        closedir(d);
    else if (fd >= 0)
        close(fd);
    return silent;
}
