/* SPDX-License-Identifier: Apache-2.0 */
/* The Task service of containerd, versions 2 and 3, which differ in their name. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "shim/task.h"

#define DEFAULT_ROOT "/run/containerd/roadrunner"

static char *text(const char *s)
{
    return (char *)(uintptr_t)s; /* protobuf-c's messages have no const; it only reads */
}

static void reply_empty(struct rr_rpc *rpc)
{
    Rr__Pb__Empty empty = RR__PB__EMPTY__INIT;

    rr_rpc_reply(rpc, &empty.base);
}

static void reply_pid(struct rr_rpc *rpc, pid_t pid)
{
    Rr__Pb__PidResponse r = RR__PB__PID_RESPONSE__INIT;

    r.pid = (uint32_t)pid;
    rr_rpc_reply(rpc, &r.base);
}

static struct task *find_task(struct rr_tasks *all, const char *id)
{
    for (struct task *t = all->first; t; t = t->next)
        if (strcmp(t->id, id) == 0)
            return t;
    return NULL;
}

static struct proc *find_proc(struct task *t, const char *exec_id)
{
    if (!*exec_id)
        return &t->init;
    for (struct proc *p = t->execs; p; p = p->next)
        if (strcmp(p->exec_id, exec_id) == 0)
            return p;
    return NULL;
}

/* What a request is about; answers it when there is none. */
static struct proc *wanted(struct rr_tasks *all, struct rr_rpc *rpc, const char *id,
                           const char *exec_id)
{
    struct task *t = find_task(all, id);
    struct proc *p = t ? find_proc(t, exec_id) : NULL;

    if (!p)
        rr_rpc_fail(rpc, RR_STATUS_NOT_FOUND, "%s %s does not exist: not found",
                    t ? "process" : "container", t ? exec_id : id);
    return p;
}

static struct pending *pending_new(struct rr_rpc *rpc, struct proc *p)
{
    struct pending *d = calloc(1, sizeof(*d));

    if (d)
        *d = (struct pending){.rpc = rpc, .task = p->task, .proc = p};
    else
        rr_rpc_fail(rpc, RR_STATUS_INTERNAL, "out of memory");
    return d;
}

static void pending_free(struct pending *d)
{
    if (d->file)
        unlink(d->file);
    if (d->pid_file)
        unlink(d->pid_file);
    free(d->file);
    free(d->pid_file);
    free(d);
}

void rr_job_init(struct rr_job *job, const struct task *t)
{
    *job = (struct rr_job){.bundle = t->bundle, .binary = t->binary, .fds = {-1, -1, -1}};
    rr_job_add(job, "--root");
    rr_job_add(job, t->root);
    if (t->systemd_cgroup)
        rr_job_add(job, "--systemd-cgroup");
}

/* Start @job for @d, or answer and free it. */
static bool start_job(struct rr_job *job, struct pending *d,
                      void (*done)(void *data, int status, const char *error))
{
    int r;

    job->done = done;
    job->data = d;
    r = rr_job_start(d->task->all->loop, job);
    if (r == 0)
        return true;
    d->proc->busy = false;
    rr_rpc_fail(d->rpc, RR_STATUS_INTERNAL, "cannot start a process for it: %s", strerror(-r));
    return false;
}

/* --- Create ---------------------------------------------------------------------------------- */

static char *rootfs_of(const struct task *t)
{
    char *path = NULL;

    return asprintf(&path, "%s/rootfs", t->bundle) < 0 ? NULL : path;
}

static void unmount_rootfs(const struct task *t)
{
    __attribute__((cleanup(rr_free_cleanup))) char *path = rootfs_of(t);

    if (path)
        rr_unmount_all(path);
}

static void free_task(struct task *t)
{
    for (struct task **p = &t->all->first; *p; p = &(*p)->next)
        if (*p == t) {
            *p = t->next;
            break;
        }
    while (t->execs) {
        struct proc *p = t->execs;

        t->execs = p->next;
        proc_deinit(p);
        free(p);
    }
    proc_deinit(&t->init);
    rr_cgroup_free(&t->cgroup);
    free(t->id);
    free(t->bundle);
    free(t->root);
    free(t->binary);
    free(t);
}

/* Containers of namespaces do not see each other: each has a folder of state. */
static int read_options(struct task *t, const Rr__Pb__Any *any)
{
    Rr__Pb__Options *o = NULL;
    const char *root = DEFAULT_ROOT;
    int n;

    if (any && strstr(any->type_url, "containerd.runc.v1.Options"))
        o = rr__pb__options__unpack(NULL, any->value.len, any->value.data);
    if (o && *o->root)
        root = o->root;
    n = asprintf(&t->root, "%s/%s", root, t->all->namespace);
    t->binary = strdup(o ? o->binary_name : "");
    t->systemd_cgroup = o && o->systemd_cgroup;
    t->no_pivot = o && o->no_pivot_root;
    t->no_new_keyring = o && o->no_new_keyring;
    if (o)
        rr__pb__options__free_unpacked(o, NULL);
    return n < 0 || !t->binary ? -ENOMEM : 0;
}

/* For `delete`, which may come when nobody is left who knows. */
static void write_options(const struct task *t)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = NULL;
    char path[4096];

    snprintf(path, sizeof(path), "%s/.shim", t->bundle);
    f = fopen(path, "we");
    if (f)
        fprintf(f, "%s\n%s\n", t->root, t->binary);
}

static struct task *new_task(struct rr_tasks *all, const Rr__Pb__CreateTaskRequest *q)
{
    struct task *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->all = all;
    t->cgroup.oom_fd = -1;
    t->id = strdup(q->id);
    t->bundle = strdup(q->bundle);
    proc_init(&t->init, t, "");
    t->next = all->first;
    all->first = t;
    if (t->id && t->bundle && t->init.exec_id && read_options(t, q->options) == 0)
        return t;
    free_task(t);
    return NULL;
}

static void publish_create(const struct task *t)
{
    Rr__Pb__TaskCreate e = RR__PB__TASK_CREATE__INIT;
    Rr__Pb__TaskIO io = RR__PB__TASK_IO__INIT;

    io.stdin = t->init.io.paths[0];
    io.stdout = t->init.io.paths[1];
    io.stderr = t->init.io.paths[2];
    io.terminal = t->init.io.terminal;
    e.container_id = t->id;
    e.bundle = t->bundle;
    e.io = &io;
    e.pid = (uint32_t)t->init.pid;
    rr_events_send(t->all->events, "/tasks/create", "TaskCreate", &e.base);
}

void task_check_oom(struct task *t)
{
    Rr__Pb__TaskNote e = RR__PB__TASK_NOTE__INIT;

    e.container_id = t->id;
    if (rr_cgroup_oom_happened(&t->cgroup))
        rr_events_send(t->all->events, "/tasks/oom", "TaskOOM", &e.base);
}

static void on_oom(void *data, uint32_t events)
{
    (void)events;
    task_check_oom(data);
}

static void on_created(void *data, int status, const char *error)
{
    struct pending *d = data;
    struct task *t = d->task;
    pid_t pid = status == 0 ? read_pid_file(d->pid_file) : 0;

    t->init.busy = false;
    rr_io_started(&t->init.io);
    if (pid > 0) {
        t->init.pid = pid;
        rr_cgroup_find(&t->cgroup, pid);
        rr_cgroup_watch_oom(&t->cgroup, t->all->loop, on_oom, t);
        publish_create(t);
        reply_pid(d->rpc, pid);
        proc_named(&t->init, pid);
    } else {
        rr_rpc_fail(d->rpc, RR_STATUS_UNKNOWN, "OCI runtime create failed: %s",
                    *error ? error : "it named no process");
        unmount_rootfs(t);
    }
    tasks_expected(t->all);
    if (pid <= 0)
        free_task(t);
    d->pid_file = (free(d->pid_file), NULL); /* init.pid stays, as other shims leave it */
    pending_free(d);
}

static void create_job(struct task *t, struct pending *d)
{
    struct rr_job job;

    rr_job_init(&job, t);
    rr_job_add(&job, "create");
    rr_job_add(&job, "--bundle");
    rr_job_add(&job, t->bundle);
    rr_job_add(&job, "--pid-file");
    rr_job_add(&job, d->pid_file);
    if (t->init.io.terminal) {
        rr_job_add(&job, "--console-socket");
        rr_job_add(&job, t->init.io.console_path);
    }
    if (t->no_pivot)
        rr_job_add(&job, "--no-pivot");
    if (t->no_new_keyring)
        rr_job_add(&job, "--no-new-keyring");
    rr_job_add(&job, t->id);
    memcpy(job.fds, t->init.io.child, sizeof(job.fds));
    t->init.busy = true;
    tasks_expect(t->all);
    if (!start_job(&job, d, on_created)) {
        tasks_expected(t->all);
        unmount_rootfs(t);
        free_task(t);
        pending_free(d);
    }
}

static void do_create(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__CreateTaskRequest *q = m;
    const struct rr_io_names names = {.in = q->stdin,
                                      .out = q->stdout,
                                      .err = q->stderr,
                                      .terminal = q->terminal,
                                      .container = q->id,
                                      .namespace = all->namespace};
    __attribute__((cleanup(rr_free_cleanup))) char *rootfs = NULL;
    struct rr_error err = {0};
    struct pending *d;
    struct task *t;
    int r;

    if (find_task(all, q->id)) {
        rr_rpc_fail(rpc, RR_STATUS_EXISTS, "container %s exists already", q->id);
        return;
    }
    if (*q->checkpoint) {
        rr_rpc_fail(rpc, RR_STATUS_UNIMPLEMENTED, "checkpoints are not restored");
        return;
    }
    rr_cgroup_announce();
    t = new_task(all, q);
    rootfs = t ? rootfs_of(t) : NULL;
    if (!t || !rootfs) {
        rr_rpc_fail(rpc, RR_STATUS_INTERNAL, "out of memory");
        return;
    }
    write_options(t);
    r = rr_mount_all(q->rootfs, q->n_rootfs, rootfs, &err);
    if (r == 0) {
        r = rr_io_open(&t->init.io, all->loop, &names, &err);
        t->init.io_open = r == 0;
    }
    d = r == 0 ? pending_new(rpc, &t->init) : NULL;
    if (d && asprintf(&d->pid_file, "%s/init.pid", t->bundle) > 0) {
        create_job(t, d);
        return;
    }
    if (r)
        rr_rpc_fail(rpc, RR_STATUS_UNKNOWN, "%s", err.text);
    unmount_rootfs(t);
    free_task(t);
}

/* --- Start ----------------------------------------------------------------------------------- */

static void on_started(void *data, int status, const char *error)
{
    struct pending *d = data;
    struct proc *p = d->proc;
    Rr__Pb__TaskStart e = RR__PB__TASK_START__INIT;

    if (status == 0) {
        e.container_id = p->task->id;
        e.pid = (uint32_t)p->pid;
        rr_events_send(p->task->all->events, "/tasks/start", "TaskStart", &e.base);
        reply_pid(d->rpc, p->pid);
        proc_started(p);
    } else {
        rr_rpc_fail(d->rpc, RR_STATUS_UNKNOWN, "OCI runtime start failed: %s", error);
        p->busy = false;
        proc_tell_end(p);
    }
    pending_free(d);
}

static void on_exec_started(void *data, int status, const char *error)
{
    struct pending *d = data;
    struct proc *p = d->proc;
    Rr__Pb__TaskExec e = RR__PB__TASK_EXEC__INIT;
    pid_t pid = status == 0 ? read_pid_file(d->pid_file) : 0;

    rr_io_started(&p->io);
    if (pid > 0) {
        p->pid = pid;
        e.container_id = p->task->id;
        e.exec_id = p->exec_id;
        e.pid = (uint32_t)pid;
        rr_events_send(p->task->all->events, "/tasks/exec-started", "TaskExecStarted", &e.base);
        reply_pid(d->rpc, pid);
        p->status = TASK_RUNNING;
        proc_named(p, pid);
        proc_started(p);
    } else {
        rr_rpc_fail(d->rpc, RR_STATUS_UNKNOWN, "OCI runtime exec failed: %s",
                    *error ? error : "it named no process");
        p->busy = false;
        p->status = TASK_STOPPED; /* never ran; may be deleted */
        p->exit_status = 255;
        clock_gettime(CLOCK_REALTIME, &p->exited_at);
        rr_io_close(&p->io);
        p->io_open = false;
    }
    tasks_expected(p->task->all);
    pending_free(d);
}

static bool write_spec(const char *path, const char *spec)
{
    __attribute__((cleanup(rr_close_cleanup))) int fd =
        open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);

    return fd >= 0 && rr_write_all(fd, spec, strlen(spec)) == 0;
}

static void start_exec(struct proc *p, struct pending *d)
{
    struct task *t = p->task;
    struct rr_job job;
    unsigned int n = t->all->n_files++;

    if (asprintf(&d->file, "%s/.exec-%u.json", t->bundle, n) < 0 ||
        asprintf(&d->pid_file, "%s/.exec-%u.pid", t->bundle, n) < 0 ||
        !write_spec(d->file, p->spec)) {
        rr_rpc_fail(d->rpc, RR_STATUS_INTERNAL, "cannot write to %s", t->bundle);
        p->busy = false;
        pending_free(d);
        return;
    }
    rr_job_init(&job, t);
    rr_job_add(&job, "exec");
    rr_job_add(&job, "--process");
    rr_job_add(&job, d->file);
    rr_job_add(&job, "--detach");
    rr_job_add(&job, "--pid-file");
    rr_job_add(&job, d->pid_file);
    if (p->io.terminal) {
        rr_job_add(&job, "--console-socket");
        rr_job_add(&job, p->io.console_path);
    }
    rr_job_add(&job, t->id);
    memcpy(job.fds, p->io.child, sizeof(job.fds));
    tasks_expect(t->all);
    if (!start_job(&job, d, on_exec_started)) {
        tasks_expected(t->all);
        pending_free(d);
    }
}

static void do_start(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__IdRequest *q = m;
    struct proc *p = wanted(all, rpc, q->id, q->exec_id);
    struct pending *d;
    struct rr_job job;

    if (!p)
        return;
    if (p->status != TASK_CREATED || p->busy || p->ended) {
        rr_rpc_fail(rpc, RR_STATUS_PRECONDITION,
                    "it cannot be started: it is not in state created");
        return;
    }
    d = pending_new(rpc, p);
    if (!d)
        return;
    p->busy = true;
    if (*p->exec_id) {
        start_exec(p, d);
        return;
    }
    rr_job_init(&job, p->task);
    rr_job_add(&job, "start");
    rr_job_add(&job, p->task->id);
    if (!start_job(&job, d, on_started))
        pending_free(d);
}

/* --- Exec ------------------------------------------------------------------------------------ */

static void do_exec(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__ExecRequest *q = m;
    const struct rr_io_names names = {.in = q->stdin,
                                      .out = q->stdout,
                                      .err = q->stderr,
                                      .terminal = q->terminal,
                                      .container = q->id,
                                      .namespace = all->namespace};
    struct task *t = find_task(all, q->id);
    Rr__Pb__TaskExec e = RR__PB__TASK_EXEC__INIT;
    struct rr_error err = {0};
    struct proc *p;

    if (!t) {
        rr_rpc_fail(rpc, RR_STATUS_NOT_FOUND, "container %s does not exist: not found", q->id);
        return;
    }
    if (!*q->exec_id || find_proc(t, q->exec_id)) {
        rr_rpc_fail(rpc, RR_STATUS_EXISTS, "process %s exists already", q->exec_id);
        return;
    }
    if (t->init.status != TASK_RUNNING || !q->spec) {
        rr_rpc_fail(rpc, RR_STATUS_PRECONDITION, "container %s does not run", q->id);
        return;
    }
    p = calloc(1, sizeof(*p));
    if (p) {
        proc_init(p, t, q->exec_id);
        p->spec = strndup((const char *)q->spec->value.data, q->spec->value.len);
    }
    if (!p || !p->spec || !p->exec_id) {
        rr_rpc_fail(rpc, RR_STATUS_INTERNAL, "out of memory");
        free(p);
        return;
    }
    if (rr_io_open(&p->io, all->loop, &names, &err) != 0) {
        rr_rpc_fail(rpc, RR_STATUS_UNKNOWN, "%s", err.text);
        proc_deinit(p);
        free(p);
        return;
    }
    p->io_open = true;
    p->next = t->execs;
    t->execs = p;
    e.container_id = t->id;
    e.exec_id = p->exec_id;
    rr_events_send(all->events, "/tasks/exec-added", "TaskExecAdded", &e.base);
    reply_empty(rpc);
}

/* --- Delete ---------------------------------------------------------------------------------- */

static void reply_exit(struct rr_rpc *rpc, const struct proc *p)
{
    Rr__Pb__ExitResponse r = RR__PB__EXIT_RESPONSE__INIT;
    Rr__Pb__Timestamp at = RR__PB__TIMESTAMP__INIT;

    timestamp(&at, &p->exited_at);
    r.pid = (uint32_t)p->pid;
    r.exit_status = p->exit_status;
    r.exited_at = &at;
    rr_rpc_reply(rpc, &r.base);
}

static void on_deleted(void *data, int status, const char *error)
{
    struct pending *d = data;
    struct task *t = d->task;
    Rr__Pb__TaskDelete e = RR__PB__TASK_DELETE__INIT;
    Rr__Pb__Timestamp at = RR__PB__TIMESTAMP__INIT;

    t->init.busy = false;
    proc_tell_end(&t->init); /* the one that was created and never started */
    if (status != 0 && !strstr(error, "not exist") && !strstr(error, "No such file")) {
        rr_rpc_fail(d->rpc, RR_STATUS_UNKNOWN, "OCI runtime delete failed: %s", error);
        pending_free(d);
        return;
    }
    if (!t->init.ended) { /* its end is on its way */
        t->init.exit_status = 128 + SIGKILL;
        clock_gettime(CLOCK_REALTIME, &t->init.exited_at);
    }
    unmount_rootfs(t);
    timestamp(&at, &t->init.exited_at);
    e.container_id = t->id;
    e.pid = (uint32_t)t->init.pid;
    e.exit_status = t->init.exit_status;
    e.exited_at = &at;
    rr_events_send(t->all->events, "/tasks/delete", "TaskDelete", &e.base);
    reply_exit(d->rpc, &t->init);
    free_task(t);
    pending_free(d);
}

static void delete_exec(struct rr_rpc *rpc, struct proc *p)
{
    struct task *t = p->task;

    reply_exit(rpc, p);
    for (struct proc **at = &t->execs; *at; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
    proc_deinit(p);
    free(p);
}

static void do_delete(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__IdRequest *q = m;
    struct proc *p = wanted(all, rpc, q->id, q->exec_id);
    struct pending *d;
    struct rr_job job;

    if (!p)
        return;
    if (p->status == TASK_RUNNING || p->busy) {
        rr_rpc_fail(rpc, RR_STATUS_PRECONDITION, "a running process cannot be deleted");
        return;
    }
    if (*p->exec_id) {
        delete_exec(rpc, p);
        return;
    }
    d = pending_new(rpc, p);
    if (!d)
        return;
    p->busy = true;
    rr_job_init(&job, p->task);
    rr_job_add(&job, "delete");
    rr_job_add(&job, "--force");
    rr_job_add(&job, p->task->id);
    if (!start_job(&job, d, on_deleted))
        pending_free(d);
}

/* --- Kill ------------------------------------------------------------------------------------ */

static void on_killed(void *data, int status, const char *error)
{
    struct pending *d = data;

    if (status == 0)
        reply_empty(d->rpc);
    else
        rr_rpc_fail(d->rpc, RR_STATUS_UNKNOWN, "OCI runtime kill failed: %s", error);
    pending_free(d);
}

static void kill_all(struct proc *p, struct rr_rpc *rpc, uint32_t signo)
{
    struct pending *d = pending_new(rpc, p);
    struct rr_job job;
    char number[16];

    if (!d)
        return;
    snprintf(number, sizeof(number), "%u", signo);
    rr_job_init(&job, p->task);
    rr_job_add(&job, "kill");
    rr_job_add(&job, "--all");
    rr_job_add(&job, p->task->id);
    rr_job_add(&job, number);
    if (!start_job(&job, d, on_killed))
        pending_free(d);
}

static void do_kill(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__KillRequest *q = m;
    struct proc *p = wanted(all, rpc, q->id, q->exec_id);

    if (!p)
        return;
    if (p->ended || p->status == TASK_STOPPED || p->pid <= 0)
        rr_rpc_fail(rpc, RR_STATUS_NOT_FOUND, "process already finished: not found");
    else if (q->all && p == &p->task->init)
        kill_all(p, rpc, q->signal);
    else if (kill(p->pid, (int)q->signal) < 0) /* not reaped yet: it is still this process */
        rr_rpc_fail(rpc, errno == ESRCH ? RR_STATUS_NOT_FOUND : RR_STATUS_UNKNOWN,
                    "cannot send signal %u: %s", q->signal, strerror(errno));
    else
        reply_empty(rpc);
}

/* --- Pause, Resume, Update ------------------------------------------------------------------- */

static void publish_note(const struct task *t, const char *topic, const char *type)
{
    Rr__Pb__TaskNote e = RR__PB__TASK_NOTE__INIT;

    e.container_id = t->id;
    rr_events_send(t->all->events, topic, type, &e.base);
}

static void on_paused(void *data, int status, const char *error)
{
    struct pending *d = data;

    if (status == 0) {
        d->task->paused = true;
        publish_note(d->task, "/tasks/paused", "TaskPaused");
    }
    on_killed(d, status, error);
}

static void on_resumed(void *data, int status, const char *error)
{
    struct pending *d = data;

    if (status == 0) {
        d->task->paused = false;
        publish_note(d->task, "/tasks/resumed", "TaskResumed");
    }
    on_killed(d, status, error);
}

static void simple_job(struct rr_tasks *all, struct rr_rpc *rpc, const void *m, const char *command,
                       void (*done)(void *data, int status, const char *error))
{
    const Rr__Pb__IdRequest *q = m;
    struct proc *p = wanted(all, rpc, q->id, "");
    struct pending *d = p ? pending_new(rpc, p) : NULL;
    struct rr_job job;

    if (!d)
        return;
    rr_job_init(&job, p->task);
    rr_job_add(&job, command);
    rr_job_add(&job, p->task->id);
    if (!start_job(&job, d, done))
        pending_free(d);
}

static void do_pause(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    simple_job(all, rpc, m, "pause", on_paused);
}

static void do_resume(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    simple_job(all, rpc, m, "resume", on_resumed);
}

static void do_update(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__UpdateRequest *q = m;
    struct proc *p = wanted(all, rpc, q->id, "");
    struct pending *d = p ? pending_new(rpc, p) : NULL;
    __attribute__((cleanup(rr_free_cleanup))) char *spec = NULL;
    struct rr_job job;

    if (!d)
        return;
    spec = q->resources ? strndup((const char *)q->resources->value.data, q->resources->value.len)
                        : NULL;
    if (!spec || asprintf(&d->file, "%s/.update-%u.json", p->task->bundle, all->n_files++) < 0 ||
        !write_spec(d->file, spec)) {
        rr_rpc_fail(rpc, RR_STATUS_INVALID, "there are no resources to set");
        pending_free(d);
        return;
    }
    rr_job_init(&job, p->task);
    rr_job_add(&job, "update");
    rr_job_add(&job, "--resources");
    rr_job_add(&job, d->file);
    rr_job_add(&job, p->task->id);
    if (!start_job(&job, d, on_killed))
        pending_free(d);
}

/* --- what only asks -------------------------------------------------------------------------- */

static void do_state(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__IdRequest *q = m;
    const struct proc *p = wanted(all, rpc, q->id, q->exec_id);
    Rr__Pb__StateResponse r = RR__PB__STATE_RESPONSE__INIT;
    Rr__Pb__Timestamp at = RR__PB__TIMESTAMP__INIT;

    if (!p)
        return;
    r.id = p->task->id;
    r.bundle = p->task->bundle;
    r.pid = (uint32_t)p->pid;
    r.status = (int32_t)(p->task->paused && p->status == TASK_RUNNING ? TASK_PAUSED : p->status);
    r.stdin = p->io.paths[0];
    r.stdout = p->io.paths[1];
    r.stderr = p->io.paths[2];
    r.terminal = p->io.terminal;
    r.exit_status = p->exit_status;
    timestamp(&at, &p->exited_at);
    r.exited_at = p->status == TASK_STOPPED ? &at : NULL;
    r.exec_id = p->exec_id;
    rr_rpc_reply(rpc, &r.base);
}

static void do_wait(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__IdRequest *q = m;
    struct proc *p = wanted(all, rpc, q->id, q->exec_id);

    if (p)
        proc_wait(p, rpc);
}

/* The process is one of exec's: say which. */
static void name_exec(const struct task *t, Rr__Pb__ProcessInfo *info, Rr__Pb__Any *any)
{
    Rr__Pb__ProcessDetails details = RR__PB__PROCESS_DETAILS__INIT;

    for (const struct proc *p = t->execs; p; p = p->next) {
        if (p->pid != (pid_t)info->pid)
            continue;
        details.exec_id = p->exec_id;
        any->type_url = text("containerd.runc.v1.ProcessDetails");
        any->value.len = rr__pb__process_details__get_packed_size(&details);
        any->value.data = malloc(any->value.len + 1);
        if (!any->value.data)
            return;
        rr__pb__process_details__pack(&details, any->value.data);
        info->info = any;
    }
}

static void do_pids(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__IdRequest *q = m;
    const struct proc *p = wanted(all, rpc, q->id, "");
    __attribute__((cleanup(rr_free_cleanup))) pid_t *pids = NULL;
    __attribute__((cleanup(rr_free_cleanup))) struct entry {
        Rr__Pb__ProcessInfo info, *self;
        Rr__Pb__Any any;
    } *list = NULL;
    __attribute__((cleanup(rr_free_cleanup))) Rr__Pb__ProcessInfo **pointers = NULL;
    Rr__Pb__PidsResponse r = RR__PB__PIDS_RESPONSE__INIT;
    size_t n;

    if (!p)
        return;
    n = rr_cgroup_pids(&p->task->cgroup, &pids);
    if (n == 0 && p->ended) {
        /* "None" would have a containerd that comes back take the task, and its status, away. */
        rr_rpc_fail(rpc, RR_STATUS_PRECONDITION, "container %s does not run", q->id);
        return;
    }
    list = calloc(n + 1, sizeof(*list));
    pointers = calloc(n + 1, sizeof(*pointers));
    if (!list || !pointers) {
        rr_rpc_fail(rpc, RR_STATUS_INTERNAL, "out of memory");
        return;
    }
    for (size_t i = 0; i < n || (n == 0 && i == 0 && p->pid > 0 && !p->ended); i++) {
        rr__pb__process_info__init(&list[i].info);
        rr__pb__any__init(&list[i].any);
        list[i].info.pid = (uint32_t)(n ? pids[i] : p->pid);
        name_exec(p->task, &list[i].info, &list[i].any);
        pointers[i] = &list[i].info;
        r.n_processes++;
    }
    r.processes = pointers;
    rr_rpc_reply(rpc, &r.base);
    for (size_t i = 0; i < r.n_processes; i++)
        free(list[i].any.value.data);
}

static void do_stats(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__IdRequest *q = m;
    const struct proc *p = wanted(all, rpc, q->id, "");
    Rr__Pb__StatsResponse r = RR__PB__STATS_RESPONSE__INIT;
    Rr__Pb__Any any = RR__PB__ANY__INIT;

    if (!p)
        return;
    if (!rr_cgroup_stats(&p->task->cgroup, &any)) {
        rr_rpc_fail(rpc, RR_STATUS_NOT_FOUND, "container %s has no cgroup: not found", q->id);
        return;
    }
    r.stats = &any;
    rr_rpc_reply(rpc, &r.base);
    free(any.value.data);
}

static void do_connect(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__IdRequest *q = m;
    const struct task *t = find_task(all, q->id);
    Rr__Pb__ConnectResponse r = RR__PB__CONNECT_RESPONSE__INIT;

    r.shim_pid = (uint32_t)getpid();
    r.task_pid = t ? (uint32_t)t->init.pid : 0;
    r.version = text(RR_VERSION);
    rr_rpc_reply(rpc, &r.base);
}

/* --- streams --------------------------------------------------------------------------------- */

static void do_resize(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__ResizeRequest *q = m;
    struct proc *p = wanted(all, rpc, q->id, q->exec_id);
    int r;

    if (!p)
        return;
    r = p->io_open && p->io.terminal ? rr_io_resize(&p->io, (uint16_t)q->width, (uint16_t)q->height)
                                     : 0;
    if (r == 0)
        reply_empty(rpc);
    else
        rr_rpc_fail(rpc, RR_STATUS_UNKNOWN, "cannot set the size: %s", strerror(-r));
}

static void do_close_io(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    const Rr__Pb__CloseIORequest *q = m;
    struct proc *p = wanted(all, rpc, q->id, q->exec_id);

    if (!p)
        return;
    if (q->stdin && p->io_open)
        rr_io_close_stdin(&p->io);
    reply_empty(rpc);
}

/* --- the end --------------------------------------------------------------------------------- */

/* Events that are on their way are waited for, but not for ever. */
static void end(void *data)
{
    struct rr_tasks *all = data;
    static unsigned int tries;

    if (all->first)
        return; /* a container came in between */
    if (rr_events_idle(all->events) || tries++ > 400)
        rr_loop_stop(all->loop);
    else
        rr_loop_after(all->loop, 5, end, all);
}

static void do_shutdown(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    (void)m;
    reply_empty(rpc);
    if (!all->first)
        rr_loop_after(all->loop, 0, end, all);
}

static void do_checkpoint(struct rr_tasks *all, struct rr_rpc *rpc, const void *m)
{
    (void)all;
    (void)m;
    rr_rpc_fail(rpc, RR_STATUS_UNIMPLEMENTED, "checkpoints are not made");
}

/* --- which call ------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    const ProtobufCMessageDescriptor *type;
    void (*fn)(struct rr_tasks *all, struct rr_rpc *rpc, const void *m);
} calls[] = {
    {"State", &rr__pb__id_request__descriptor, do_state},
    {"Create", &rr__pb__create_task_request__descriptor, do_create},
    {"Start", &rr__pb__id_request__descriptor, do_start},
    {"Delete", &rr__pb__id_request__descriptor, do_delete},
    {"Pids", &rr__pb__id_request__descriptor, do_pids},
    {"Pause", &rr__pb__id_request__descriptor, do_pause},
    {"Resume", &rr__pb__id_request__descriptor, do_resume},
    {"Checkpoint", &rr__pb__id_request__descriptor, do_checkpoint},
    {"Kill", &rr__pb__kill_request__descriptor, do_kill},
    {"Exec", &rr__pb__exec_request__descriptor, do_exec},
    {"ResizePty", &rr__pb__resize_request__descriptor, do_resize},
    {"CloseIO", &rr__pb__close_iorequest__descriptor, do_close_io},
    {"Update", &rr__pb__update_request__descriptor, do_update},
    {"Wait", &rr__pb__id_request__descriptor, do_wait},
    {"Stats", &rr__pb__id_request__descriptor, do_stats},
    {"Connect", &rr__pb__id_request__descriptor, do_connect},
    {"Shutdown", &rr__pb__shutdown_request__descriptor, do_shutdown},
};

void rr_tasks_call(void *user, struct rr_rpc *rpc, const char *method, const uint8_t *data,
                   size_t len)
{
    rr_log(3, "%s", method);
    for (size_t i = 0; i < RR_ARRAY_LEN(calls); i++) {
        ProtobufCMessage *m;

        if (strcmp(method, calls[i].name) != 0)
            continue;
        m = protobuf_c_message_unpack(calls[i].type, NULL, len, data);
        if (!m) {
            rr_rpc_fail(rpc, RR_STATUS_INVALID, "the request is no message of %s", method);
            return;
        }
        calls[i].fn(user, rpc, m);
        protobuf_c_message_free_unpacked(m, NULL);
        return;
    }
    rr_rpc_fail(rpc, RR_STATUS_UNIMPLEMENTED, "method %s", method);
}

int rr_tasks_new(struct rr_loop *l, struct rr_events *events, const char *namespace,
                 struct rr_tasks **ret)
{
    struct rr_tasks *all = calloc(1, sizeof(*all));

    if (!all)
        return -ENOMEM;
    *all = (struct rr_tasks){.loop = l, .events = events, .namespace = namespace};
    rr_loop_orphans(l, tasks_on_orphan, all);
    *ret = all;
    return 0;
}

void rr_tasks_free(struct rr_tasks *all)
{
    while (all->first) /* they go on without us, until containerd has them removed */
        free_task(all->first);
    free(all);
}
