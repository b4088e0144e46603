/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parent of worker processes. They are forked from a zygote, which was forked itself before any
 * guest ran: its children share the compiled modules with the parent, page for page, and no thread
 * of the parent's is missing in them.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/nodes.h"
#include "worker/remote.h"

#define READY_NS 10000000000u  /* for all workers to be ready */
#define SILENCE_NS 2000000000u /* beyond a function's deadline: its worker does not answer */
#define QUIET_NS 5000000u      /* without a result: ask whether the run is over */
#define BACKOFF_NS 10000000ull /* before the second start, doubled for each further one */
#define BACKOFF_MAX_NS RR_EDGE_BACKOFF_MAX_NS
#define STOP_NS 1000000000u /* for workers to end by themselves */
#define KILLED_STARTS 10    /* in a row, before a worker counts as one that does not start */
#define NOBODY 65534

/* --- the zygote ------------------------------------------------------------------------------ */

struct order {
    int32_t function; /* to be started; in a notice: -1 */
    int32_t pid, status;
};

static int send_with_fd(int socket, const struct order *o, int fd)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec iov = {(void *)(uintptr_t)o, sizeof(*o)};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd >= 0) {
        m.msg_control = control.space;
        m.msg_controllen = sizeof(control.space);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    }
    return sendmsg(socket, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Return: 0; -EAGAIN; -EPIPE when the other is gone. */
static int receive_with_fd(int socket, struct order *o, int *ret_fd, int flags)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {o, sizeof(*o)};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof(control.space)};
    struct cmsghdr *c;
    ssize_t n;

    *ret_fd = -1;
    do
        n = recvmsg(socket, &m, MSG_CMSG_CLOEXEC | flags);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return -EAGAIN;
    if (n != sizeof(*o))
        return -EPIPE;
    c = CMSG_FIRSTHDR(&m);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
        memcpy(ret_fd, CMSG_DATA(c), sizeof(int));
    return 0;
}

static void zygote_start(struct rr_worker *w, int socket, int function, int control_fd)
{
    struct order o = {.function = function, .pid = fork()};
    int pid_fd;

    if (o.pid == 0) {
        sigset_t none;

        close(socket);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        rr_child_main(w, function, control_fd);
    }
    close(control_fd);
    o.pid = o.pid < 0 ? -errno : o.pid;
    w->remote->children[function].pid = o.pid;
    pid_fd = o.pid > 0 ? (int)syscall(SYS_pidfd_open, o.pid, 0) : -1;
    send_with_fd(socket, &o, pid_fd);
    if (pid_fd >= 0)
        close(pid_fd);
}

static void zygote_reap(struct remote *rm, int socket)
{
    struct order o = {.function = -1};
    int status;

    while ((o.pid = waitpid(-1, &status, WNOHANG)) > 0) {
        o.status = status;
        for (size_t n = 0; n < rm->n_children; n++)
            if (rm->children[n].pid == o.pid)
                rm->children[n].pid = 0;
        send_with_fd(socket, &o, -1);
    }
}

static void remove_dir(struct remote *rm)
{
    char path[192];

    if (!rm->domain.dir[0])
        return;
    for (size_t n = 0; n <= rm->n_children; n++) {
        const char *name = n < rm->n_children ? rm->w->wf->functions[n].name : ".result";

        snprintf(path, sizeof(path), "%s/%s.sock", rm->domain.dir, name);
        unlink(path);
        snprintf(path, sizeof(path), "%s/.new-%s.sock", rm->domain.dir, name);
        unlink(path);
    }
    rmdir(rm->domain.dir);
}

/* The parent is gone without a word: leave nothing behind. */
static _Noreturn void zygote_end(struct remote *rm)
{
    for (size_t n = 0; n < rm->n_children; n++)
        if (rm->children[n].pid > 0)
            kill(rm->children[n].pid, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    remove_dir(rm);
    _exit(0);
}

static _Noreturn void zygote_main(struct rr_worker *w, int socket)
{
    struct pollfd fds[2] = {{.fd = socket, .events = POLLIN}, {.events = POLLIN}};
    sigset_t set;

    setpgid(0, 0); /* Ctrl-C is for the parent */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_DFL);
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    fds[1].fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    for (;;) {
        struct signalfd_siginfo info;
        struct order o;
        int fd, r;

        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            _exit(1);
        while (read(fds[1].fd, &info, sizeof(info)) > 0)
            ;
        zygote_reap(w->remote, socket);
        r = receive_with_fd(socket, &o, &fd, MSG_DONTWAIT);
        if (r == -EPIPE)
            zygote_end(w->remote);
        if (r == 0 && fd >= 0)
            zygote_start(w, socket, o.function, fd);
    }
}

static int make_zygote(struct rr_worker *w, struct rr_error *err)
{
    struct remote *rm = w->remote;
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return rr_error_set(err, RR_E_SYSTEM, "raise the limit on descriptors", "no socket: %s",
                            strerror(errno));
    fflush(NULL);
    rm->zygote_pid = fork();
    if (rm->zygote_pid == 0) {
        close(fds[0]);
        zygote_main(w, fds[1]);
    }
    close(fds[1]);
    if (rm->zygote_pid < 0) {
        close(fds[0]);
        return rr_error_set(err, RR_E_SYSTEM, "raise the limit on processes", "cannot fork: %s",
                            strerror(errno));
    }
    rm->zygote_fd = fds[0];
    rr_remote_watch(rm, fds[0]);
    return 0;
}

/* --- deaths ---------------------------------------------------------------------------------- */

static const char *function_name(const struct remote *rm, const struct child *c)
{
    return rm->w->wf->functions[c->function].name;
}

static void describe(const struct child *c, char *text, size_t size)
{
    if (!c->reaped)
        snprintf(text, size, "ended");
    else if (WIFSIGNALED(c->status))
        snprintf(text, size, "was ended by signal %d (%s)", WTERMSIG(c->status),
                 strsignal(WTERMSIG(c->status)));
    else
        snprintf(text, size, "ended with status %d", WEXITSTATUS(c->status));
}

/* The zygote has reaped one. */
static void on_notice(struct remote *rm, const struct order *o)
{
    for (size_t n = 0; n < rm->n_children; n++)
        if (o->function < 0 && rm->children[n].pid == o->pid && o->pid > 0) {
            rm->children[n].reaped = true;
            rm->children[n].status = o->status;
        }
}

static void hear_zygote(struct remote *rm)
{
    struct order o;
    int fd;

    while (receive_with_fd(rm->zygote_fd, &o, &fd, MSG_DONTWAIT) == 0) {
        if (fd >= 0)
            close(fd);
        on_notice(rm, &o);
    }
}

static void kill_child(const struct child *c)
{
    if (c->pid_fd >= 0)
        syscall(SYS_pidfd_send_signal, c->pid_fd, SIGKILL, NULL, 0);
}

static void fail_run(struct remote *rm, const struct child *c, enum rr_code code, const char *hint,
                     const char *what)
{
    if (rm->active && !rm->failure.code)
        rr_error_set(&rm->failure, code, hint, "function '%s': %s", function_name(rm, c), what);
}

/* Do all its messages come again? */
static bool outlives(const struct remote *rm, const struct child *c)
{
    const struct rr_workflow *wf = rm->w->wf;

    for (size_t n = 0; n < wf->n_edges; n++)
        if (wf->edges[n].to == c->function && !wf->edges[n].at_least_once)
            return false;
    /* one that does not even start will not do better, unless somebody else ended it */
    return c->ready || (c->reaped && WIFSIGNALED(c->status) && c->n_starts < KILLED_STARTS);
}

/* What edges say, the longest; else ours. 5 s at most, or the next run would not wait for it. */
static uint64_t pause_of(const struct remote *rm, const struct child *c)
{
    const struct rr_workflow *wf = rm->w->wf;
    uint64_t pause =
        c->n_starts ? rr_min(BACKOFF_MAX_NS, BACKOFF_NS << rr_min(c->n_starts, 16)) : 0;

    for (size_t n = 0; n < wf->n_edges; n++) {
        const struct rr_edge *e = &wf->edges[n];
        struct rr_delivery d = {.linear = e->linear, .backoff_ns = e->backoff_ns};
        uint64_t wanted;

        if (e->to != c->function || !e->backs_off)
            continue;
        wanted = rr_min(BACKOFF_MAX_NS, rr_delivery_backoff_ns(&d, c->n_failed));
        pause = wanted > pause ? wanted : pause;
    }
    return pause;
}

static void died(struct remote *rm, struct child *c)
{
    struct pollfd p = {.fd = rm->zygote_fd, .events = POLLIN};
    char how[128], text[192];

    close(c->control_fd);
    c->control_fd = -1;
    for (int tries = 0; !c->reaped && tries < 100 && poll(&p, 1, 10) >= 0; tries++)
        hear_zygote(rm);
    if (c->pid_fd >= 0)
        close(c->pid_fd);
    c->pid_fd = -1;
    describe(c, how, sizeof(how));
    snprintf(text, sizeof(text), "its worker process %d %s%s", (int)c->pid, how,
             c->silent ? ": it did not answer" : "");
    rr_log(rm->stopping ? 3 : 1, "function '%s': %s", function_name(rm, c), text);
    if (!outlives(rm, c))
        fail_run(rm, c, RR_E_DIED,
                 "look at its log; with `delivery: at-least-once` a new worker gets its messages",
                 text);
    rm->n_deaths++;
    c->pid = 0;
    c->ready = false;
    c->asked_ns = 0;
    if (atomic_exchange(&c->pulse->handled, 0)) /* it worked: not one that dies at once */
        c->n_starts = c->n_failed = 0;
    c->n_failed++;
    atomic_store(&rm->domain.shares[c->function].messages, 0); /* it has nothing under way */
    atomic_store(&rm->domain.shares[c->function].bytes, 0);
    if (rm->w->budget)
        atomic_store(&rm->w->budget->shares[1 + c->function].used_bytes, 0);
    c->again_ns = rr_now_ns() + pause_of(rm, c);
}

/* --- starts ---------------------------------------------------------------------------------- */

static int start(struct remote *rm, struct child *c, struct rr_error *err)
{
    struct order o = {.function = c->function};
    int fds[2], pid_fd = -1, r = 0;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return rr_error_set(err, RR_E_SYSTEM, "raise the limit on descriptors", "no socket: %s",
                            strerror(errno));
    r = send_with_fd(rm->zygote_fd, &o, fds[1]);
    close(fds[1]);
    /* deaths may be told before it answers */
    while (r == 0) {
        r = receive_with_fd(rm->zygote_fd, &o, &pid_fd, 0);
        if (r == 0 && o.function == c->function)
            break;
        if (r == 0)
            on_notice(rm, &o);
    }
    if (r < 0 || o.pid < 0) {
        close(fds[0]);
        return rr_error_set(err, RR_E_SYSTEM, "raise the limit on processes",
                            "function '%s': cannot start its worker process: %s",
                            function_name(rm, c), strerror(r < 0 ? -r : -o.pid));
    }
    c->pid = o.pid;
    c->pid_fd = pid_fd;
    c->control_fd = fds[0];
    c->reaped = c->ready = c->silent = c->idle = false;
    c->again_ns = 0;
    c->n_starts++;
    c->answered = 0;
    c->asked_ns = 0;
    c->started_ns = rr_now_ns();
    atomic_store(&c->pulse->handling_since_ns, 0);
    rr_remote_watch(rm, c->control_fd);
    return 0;
}

static void start_again(struct remote *rm)
{
    uint64_t now = rr_now_ns();

    for (size_t n = 0; n < rm->n_children; n++) {
        struct child *c = &rm->children[n];
        const struct rr_observer *o = &rm->w->observer;
        bool again = c->again_ns != 0;
        struct rr_error err;

        if (!c->isolated || c->control_fd >= 0 || now < c->again_ns)
            continue;
        if (start(rm, c, &err)) {
            rr_log(1, "%s", err.text);
            c->again_ns = now + BACKOFF_MAX_NS;
        } else if (again && o->restart) {
            o->restart(o->user, c->function);
        }
    }
}

/* --- what the workers say -------------------------------------------------------------------- */

static void on_events(struct remote *rm, const struct child *c, const struct control *m)
{
    const struct rr_observer *o = &rm->w->observer;

    for (uint32_t n = 0; n < m->n; n++) {
        struct event e = m->events[n];

        if (e.is_span && o->span && e.span.n > 0) {
            uint8_t fresh; /* whatever the worker wrote there; a bool has two values */

            memcpy(&fresh, &e.span.fresh, sizeof(fresh));
            e.span.fresh = fresh != 0;
            e.span.function = c->function;
            o->span(o->user, &e.span);
        } else if (!e.is_span && o->hop && e.hop.edge >= 0 &&
                   (size_t)e.hop.edge < rm->w->wf->n_edges && e.hop.path <= RR_PATH_STREAM) {
            o->hop(o->user, &e.hop);
        }
    }
}

static void on_failed(struct remote *rm, struct child *c, const struct control *m)
{
    if (!c->ready) /* it could not even start */
        rr_log(0, "function '%s': its worker process: %s", function_name(rm, c), m->error.text);
    if ((m->run == rm->run || !c->ready) && rm->active && !rm->failure.code)
        rm->failure = m->error;
    if (strcmp(rr_error_name(rm->failure.code), "unknown") == 0)
        rm->failure.code = RR_E_GUEST;
}

static void on_word(struct remote *rm, struct child *c, const struct control *m)
{
    const struct rr_observer *o = &rm->w->observer;

    switch ((enum word)m->word) {
    case WORD_READY:
        c->ready = true;
        break;
    case WORD_FAILED:
        on_failed(rm, c, m);
        break;
    case WORD_IDLE:
        rm->n_idle_words++;
        break;
    case WORD_ANSWER:
        if (m->a != rm->question)
            break;
        c->answered = m->a;
        c->asked_ns = 0;
        c->idle = m->answer.idle;
        c->activity = m->b;
        memcpy(c->pending, m->answer.pending, sizeof(c->pending));
        break;
    case WORD_EVENTS:
        on_events(rm, c, m);
        break;
    case WORD_LOG:
        if (o->log)
            o->log(o->user, c->function, m->n > 3 ? 3 : (int)m->n, m->text, strlen(m->text));
        break;
    case WORD_ASK:
    case WORD_RUN:
    case WORD_QUIT:
        break;
    }
}

void rr_processes_hear(struct remote *rm)
{
    struct control m;

    if (rm->zygote_fd < 0) /* only other nodes */
        return;
    hear_zygote(rm);
    for (size_t n = 0; n < rm->n_children; n++) {
        struct child *c = &rm->children[n];
        int r = c->control_fd < 0 ? -EAGAIN : 0;

        while (r == 0) {
            r = rr_control_receive(c->control_fd, &m);
            if (r == 0)
                on_word(rm, c, &m);
        }
        if (r == -EPROTO)
            kill_child(c);
        if (r != -EAGAIN)
            died(rm, c);
    }
    if (!rm->stopping)
        start_again(rm);
}

/* --- life ------------------------------------------------------------------------------------ */

static const char *given_dir;

void rr_runtime_dir_set(const char *dir)
{
    given_dir = dir;
}

const char *rr_runtime_dir(void)
{
    const char *base = given_dir ? given_dir : getenv("XDG_RUNTIME_DIR");

    return base && *base == '/' && strlen(base) <= 40 ? base : "/tmp";
}

/* A folder for the sockets, which only we and the workers may enter. */
static int make_dir(struct remote *rm, struct rr_error *err)
{
    const char *base = rr_runtime_dir();
    struct stat st;
    bool plain = true;

    for (size_t n = 0; n < rm->w->wf->n_functions; n++)
        plain = plain && !(rm->w->wf->functions[n].isolated && rm->w->wf->functions[n].n_folders);
    /* Another user could not open the folders of guests. */
    rm->child_uid = geteuid() == 0 && plain ? NOBODY : (uid_t)-1;
    rm->child_gid = rm->child_uid == NOBODY ? NOBODY : (gid_t)-1;
    rm->domain.uids[0] = geteuid();
    rm->domain.uids[1] = rm->child_uid == NOBODY ? NOBODY : geteuid();
    if (rm->child_uid == NOBODY && (stat(base, &st) < 0 || !(st.st_mode & S_IXOTH)))
        base = "/tmp"; /* what systemd gives root is closed to the workers */
    snprintf(rm->domain.dir, sizeof(rm->domain.dir), "%s/roadrunner-XXXXXX", base);
    if (!mkdtemp(rm->domain.dir) ||
        (rm->child_uid == NOBODY && chown(rm->domain.dir, rm->child_uid, rm->child_gid) < 0)) {
        rr_error_set(err, RR_E_SYSTEM, "set XDG_RUNTIME_DIR to a folder that you may write to",
                     "cannot make a folder for sockets: %s: %s", rm->domain.dir, strerror(errno));
        rm->domain.dir[0] = 0;
        return RR_E_SYSTEM;
    }
    return 0;
}

static size_t common_bytes(const struct remote *rm)
{
    return rr_align_up(rm->w->wf->n_functions * sizeof(struct pulse), 64) +
           (rm->w->wf->n_functions + 1) * sizeof(struct rr_link_share);
}

/* What parent and workers share: a pulse of each worker, and what each process has under way. */
static int make_common(struct remote *rm)
{
    const struct rr_workflow *wf = rm->w->wf;
    uint8_t *common =
        mmap(NULL, common_bytes(rm), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (common == MAP_FAILED)
        return -ENOMEM;
    rm->pulses = (struct pulse *)common;
    rm->domain.shares =
        (struct rr_link_share *)(common + rr_align_up(wf->n_functions * sizeof(struct pulse), 64));
    rm->domain.n_shares = wf->n_functions + 1;
    rm->domain.own = &rm->domain.shares[wf->n_functions];
    return 0;
}

/* Three descriptors for each worker, three for each link, one for each region that is lent: more
 * than the 1024 that many start with. Without right to as many as the limit says it goes on. */
static void raise_files(void)
{
    struct rlimit l;

    if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
        l.rlim_cur = l.rlim_max;
        setrlimit(RLIMIT_NOFILE, &l);
    }
}

static int make_children(struct remote *rm, struct rr_error *err)
{
    const struct rr_workflow *wf = rm->w->wf;

    rm->children = calloc(wf->n_functions, sizeof(*rm->children));
    if (!rm->children || make_common(rm) < 0)
        return rr_error_no_memory(err);
    rm->n_children = wf->n_functions;
    for (size_t n = 0; n < wf->n_functions; n++)
        rm->children[n] = (struct child){.function = (int)n,
                                         .isolated = wf->functions[n].isolated,
                                         .control_fd = -1,
                                         .pid_fd = -1,
                                         .pulse = &rm->pulses[n]};
    return 0;
}

static int listen_all(struct remote *rm, struct rr_error *err)
{
    const struct rr_workflow *wf = rm->w->wf;
    int r = rr_remote_listen(rm, &rm->domain,
                             (int)wf->n_functions); /* for the result, and dead letters */

    for (size_t n = 0; n < wf->n_functions && r == 0; n++) {
        bool wanted = false;

        for (size_t k = 0; k < wf->n_edges; k++)
            wanted = wanted || (wf->edges[k].to == (int)n && wf->edges[k].from >= 0 &&
                                wf->functions[wf->edges[k].from].isolated);
        if (wanted && !wf->functions[n].isolated)
            r = rr_remote_listen(rm, &rm->domain, (int)n);
    }
    return r == 0 ? 0
                  : rr_error_set(err, RR_E_SYSTEM, "raise the limit on descriptors",
                                 "cannot listen for messages: %s", strerror(-r));
}

static bool all_ready(const struct remote *rm)
{
    for (size_t n = 0; n < rm->n_children; n++)
        if (rm->children[n].isolated && !rm->children[n].ready)
            return false;
    return rr_nodes_ready(rm);
}

/* Workers that died are started again, after a while; a run begins when all are there. */
static int await_ready(struct remote *rm, struct rr_error *err)
{
    uint64_t give_up = rr_now_ns() + READY_NS;

    while (!all_ready(rm)) {
        rm->look = true;
        if (rr_remote_pump(rm, false, err) < 0)
            return (int)err->code;
        if (rr_worker_cancelled(rm->w))
            return rr_error_set(err, RR_E_CANCELLED, "", "interrupted");
        for (size_t n = 0; n < rm->n_children && rr_now_ns() > give_up; n++)
            if (rm->children[n].isolated && !rm->children[n].ready)
                return rr_error_set(err, RR_E_DIED, "see the lines above",
                                    "function '%s': its worker process does not get ready",
                                    function_name(rm, &rm->children[n]));
        if (!all_ready(rm))
            rr_remote_sleep(rm, rr_now_ns() + 1000000);
    }
    return 0;
}

int rr_processes_start(struct rr_worker *w, struct rr_error *err)
{
    struct remote *rm;
    int r = 0;

    if (!w->remote) {
        rr_arena_probe(w->arena); /* and not by each worker, which would say so again */
        r = rr_engine_before_fork(w->engine, err);
        if (r == 0)
            r = rr_remote_new(w, err);
        if (r)
            return r;
        rm = w->remote;
        raise_files();
        r = make_dir(rm, err);
        if (r == 0)
            r = make_children(rm, err);
        if (r == 0)
            r = make_zygote(w, err);
        if (r == 0)
            r = listen_all(rm, err);
        if (r) { /* or the next run would take it for a whole one */
            rr_processes_stop(rm);
            rr_remote_free(rm);
            w->remote = NULL;
            return r;
        }
        start_again(rm);
    }
    return r ? r : await_ready(w->remote, err);
}

static void tell_all(struct remote *rm, const struct control *c)
{
    for (size_t n = 0; n < rm->n_children; n++)
        if (rm->children[n].control_fd >= 0)
            rr_control_send(rm->children[n].control_fd, c);
}

static bool any_left(const struct remote *rm)
{
    for (size_t n = 0; n < rm->n_children; n++)
        if (rm->children[n].control_fd >= 0)
            return true;
    return false;
}

void rr_processes_stop(struct remote *rm)
{
    struct control quit = {.word = WORD_QUIT};
    uint64_t give_up = rr_now_ns() + STOP_NS;

    rm->stopping = true;
    rm->active = false;
    if (rr_worker_cancelled(rm->w)) /* what runs does not look at its control socket */
        give_up = 0;
    if (rm->zygote_fd >= 0) {
        tell_all(rm, &quit);
        while (any_left(rm) && rr_now_ns() < give_up) {
            struct pollfd p = {.fd = rm->epoll_fd, .events = POLLIN};

            poll(&p, 1, 10);
            rr_processes_hear(rm);
        }
        for (size_t n = 0; n < rm->n_children; n++)
            kill_child(&rm->children[n]);
        for (size_t n = 0; n < rm->n_children; n++)
            if (rm->children[n].control_fd >= 0)
                died(rm, &rm->children[n]);
        shutdown(rm->zygote_fd, SHUT_RDWR); /* zygotes made since have copies of it */
        close(rm->zygote_fd);
        waitpid(rm->zygote_pid, NULL, 0);
    }
    remove_dir(rm);
    if (rm->pulses)
        munmap(rm->pulses, common_bytes(rm));
    rm->domain.own = NULL;
    free(rm->children);
}

/* --- is the run over? ------------------------------------------------------------------------ */

struct round {
    uint64_t activity;
    bool asked, idle_before;
    unsigned int idle_words, n_deaths;
    uint64_t next_ns;
};

static void ask_all(struct remote *rm, struct round *round)
{
    struct control c = {.word = WORD_ASK, .run = rm->run, .a = ++rm->question};

    for (size_t n = 0; n < rm->n_children; n++) {
        struct child *child = &rm->children[n];

        if (!child->asked_ns)
            child->seen_ns = rr_now_ns(); /* its silence begins now */
        child->asked_ns = child->isolated ? rr_now_ns() : 0;
    }
    tell_all(rm, &c);
    rr_nodes_ask(rm, rm->question);
    round->asked = true;
    round->idle_words = rm->n_idle_words;
    round->n_deaths = rm->n_deaths;
}

/* All have answered: 1, and whether all were idle, and what they had done in all. */
static bool answered(const struct remote *rm, bool *ret_idle, uint64_t *ret_activity)
{
    *ret_idle = true;
    *ret_activity = rm->activity;
    for (size_t n = 0; n < rm->n_children; n++) {
        const struct child *c = &rm->children[n];

        if (!c->isolated)
            continue;
        if (c->answered != rm->question)
            return false;
        *ret_idle = *ret_idle && c->idle;
        *ret_activity += c->activity;
    }
    return rr_nodes_answered(rm, ret_idle, ret_activity);
}

/* One that is at the same message for longer than it may, or does not answer with none at hand. */
static void check_silence(struct remote *rm)
{
    uint64_t now = rr_now_ns();

    for (size_t n = 0; n < rm->n_children; n++) {
        struct child *c = &rm->children[n];
        uint64_t handled = atomic_load(&c->pulse->handled);
        uint64_t since = atomic_load(&c->pulse->handling_since_ns);
        uint64_t deadline = rm->w->wf->functions[n].deadline_ns;

        if (c->control_fd >= 0 && !c->ready && now - c->started_ns > READY_NS) {
            c->silent = true;
            kill_child(c);
        }
        if (!c->asked_ns || c->control_fd < 0 || handled != c->seen_handled) {
            c->seen_handled = handled;
            c->seen_ns = now;
            continue;
        }
        if ((since && !deadline) || now - c->seen_ns < (since ? deadline : 0) + SILENCE_NS)
            continue;
        c->silent = true;
        c->asked_ns = 0;
        kill_child(c);
    }
}

/* Two rounds of questions in which nobody had anything to do, and nothing was done in between: then
 * nothing is on its way either. Returns whether the run is over. */
static bool evaluate(struct rr_worker *w, struct round *round)
{
    struct remote *rm = w->remote;
    uint64_t now = rr_now_ns(), activity;
    bool idle, over;

    if (round->asked && round->n_deaths != rm->n_deaths) { /* one will never answer */
        *round = (struct round){.next_ns = now + QUIET_NS};
        return false;
    }
    if (!round->asked) {
        if (!all_ready(rm))
            round->next_ns = now + QUIET_NS;
        else if (now >= round->next_ns || (w->result && rm->n_idle_words != round->idle_words))
            ask_all(rm, round);
        return false;
    }
    if (!answered(rm, &idle, &activity))
        return false;
    idle = idle && rr_remote_n_unacked(rm) == 0;
    over = idle && round->idle_before && activity == round->activity;
    round->idle_before = idle;
    round->activity = activity;
    round->asked = false;
    round->next_ns = idle ? 0 : now + QUIET_NS;
    return over;
}

int rr_processes_settle(struct rr_worker *w, struct rr_error *err)
{
    struct remote *rm = w->remote;
    struct round round = {.next_ns = w->result ? 0 : rr_now_ns() + QUIET_NS};
    bool had_result = w->result != NULL;
    int r;

    for (;;) {
        if (rr_remote_pump(rm, true, err) < 0)
            return (int)err->code;
        r = rr_remote_interrupted(rm, rm->run, err);
        if (r)
            return r;
        if (w->ready_first >= 0)
            return 1;
        if (w->result && !had_result) {
            had_result = true;
            round.next_ns = 0;
        }
        if (evaluate(w, &round))
            return 0;
        check_silence(rm);
        if (!round.asked && round.next_ns == 0)
            continue;
        rr_remote_sleep(rm, rr_now_ns() + QUIET_NS);
    }
}

/* What is still on its way is of no more use to anybody. */
void rr_processes_end_run(struct remote *rm)
{
    struct control c = {.word = WORD_RUN, .run = rm->run + 1};

    rr_remote_new_run(rm, rm->run + 1);
    rm->active = false;
    rm->failure.code = RR_OK;
    tell_all(rm, &c);
    rr_nodes_end_run(rm);
}

bool rr_processes_pending(const struct remote *rm, char *text, size_t size)
{
    for (size_t n = 0; n < rm->n_children; n++)
        if (rm->children[n].isolated && rm->children[n].pending[0]) {
            snprintf(text, size, "%s", rm->children[n].pending);
            return true;
        }
    return rr_nodes_pending(rm, text, size);
}

void rr_processes_collect(struct remote *rm, uint64_t wait_ns)
{
    uint64_t give_up = rr_now_ns() + wait_ns;
    struct rr_error err;

    while (rr_remote_n_lent(rm) > 0 && rr_now_ns() < give_up) {
        rm->look = true;
        if (rr_remote_pump(rm, true, &err) < 0)
            rr_log(1, "%s", err.text);
        if (rr_remote_n_lent(rm) > 0)
            rr_remote_sleep(rm, rr_now_ns() + 1000000);
    }
}
