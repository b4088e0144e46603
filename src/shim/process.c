/* SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "shim/task.h"

void timestamp(Rr__Pb__Timestamp *ret, const struct timespec *t)
{
    ret->seconds = t->tv_sec;
    ret->nanos = (int32_t)t->tv_nsec;
}

pid_t read_pid_file(const char *path)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = fopen(path, "re");

    return (pid_t)rr_read_number(f, 0);
}

void proc_init(struct proc *p, struct task *t, const char *exec_id)
{
    *p = (struct proc){.task = t, .exec_id = strdup(exec_id), .status = TASK_CREATED};
}

static void answer_waiters(struct proc *p)
{
    Rr__Pb__WaitResponse r = RR__PB__WAIT_RESPONSE__INIT;
    Rr__Pb__Timestamp at = RR__PB__TIMESTAMP__INIT;

    timestamp(&at, &p->exited_at);
    r.exit_status = p->exit_status;
    r.exited_at = &at;
    while (p->waiters) {
        struct waiter *w = p->waiters;

        p->waiters = w->next;
        rr_rpc_reply(w->rpc, &r.base);
        free(w);
    }
}

void proc_deinit(struct proc *p)
{
    if (p->waiters)
        answer_waiters(p);
    if (p->io_open)
        rr_io_close(&p->io);
    for (int n = 0; n < 3; n++)
        free(p->io.paths[n]);
    free(p->exec_id);
    free(p->spec);
}

void proc_wait(struct proc *p, struct rr_rpc *rpc)
{
    struct waiter *w = calloc(1, sizeof(*w));

    if (!w) {
        rr_rpc_fail(rpc, RR_STATUS_INTERNAL, "out of memory");
        return;
    }
    *w = (struct waiter){.next = p->waiters, .rpc = rpc};
    p->waiters = w;
    if (p->status == TASK_STOPPED)
        answer_waiters(p);
}

/* --- ends ------------------------------------------------------------------------------------ */

static void publish_exit(struct proc *p)
{
    Rr__Pb__TaskExit e = RR__PB__TASK_EXIT__INIT;
    Rr__Pb__Timestamp at = RR__PB__TIMESTAMP__INIT;

    timestamp(&at, &p->exited_at);
    e.container_id = p->task->id;
    e.id = *p->exec_id ? p->exec_id : p->task->id;
    e.pid = (uint32_t)p->pid;
    e.exit_status = p->exit_status;
    e.exited_at = &at;
    rr_events_send(p->task->all->events, "/tasks/exit", "TaskExit", &e.base);
}

static bool execs_run(const struct task *t)
{
    for (const struct proc *p = t->execs; p; p = p->next)
        if (p->pid > 0 && p->status == TASK_RUNNING)
            return true;
    return false;
}

static void stop(struct proc *p)
{
    if (p == &p->task->init)
        task_check_oom(p->task); /* told before its end */
    p->status = TASK_STOPPED;
    if (p->io_open)
        rr_io_close(&p->io);
    p->io_open = false;
    publish_exit(p);
    answer_waiters(p);
}

/*
 * The end of a container's first process is told after those of the others in it, which the kernel
 * ends with it, or, where the PID namespace is not its own, we do.
 */
void proc_tell_end(struct proc *p)
{
    struct task *t = p->task;

    if (!p->ended || p->busy || p->status == TASK_STOPPED)
        return;
    if (p == &t->init) {
        t->init_ended = true;
        for (struct proc *e = t->execs; e; e = e->next)
            if (e->status == TASK_RUNNING && e->pid > 0 && !e->ended)
                kill(e->pid, SIGKILL);
    } else {
        stop(p);
    }
    if (t->init_ended && t->init.status != TASK_STOPPED && !execs_run(t))
        stop(&t->init);
}

static void set_end(struct proc *p, int status, const struct timespec *at)
{
    p->ended = true;
    p->exited_at = *at;
    p->exit_status =
        (unsigned int)(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
    proc_tell_end(p);
}

void proc_named(struct proc *p, pid_t pid)
{
    p->pid = pid;
    for (struct early **e = &p->task->all->early; *e; e = &(*e)->next)
        if ((*e)->pid == pid) {
            struct early *found = *e;

            *e = found->next;
            set_end(p, found->status, &found->at);
            free(found);
            return;
        }
}

void proc_started(struct proc *p)
{
    p->status = TASK_RUNNING;
    p->busy = false;
    proc_tell_end(p);
}

/* --- children -------------------------------------------------------------------------------- */

static struct proc *find_pid(struct rr_tasks *all, pid_t pid)
{
    for (struct task *t = all->first; t; t = t->next) {
        if (t->init.pid == pid && !t->init.ended)
            return &t->init;
        for (struct proc *p = t->execs; p; p = p->next)
            if (p->pid == pid && !p->ended)
                return p;
    }
    return NULL;
}

void tasks_on_orphan(void *data, pid_t pid, int status)
{
    struct rr_tasks *all = data;
    struct proc *p = find_pid(all, pid);
    struct timespec now;
    struct early *e;

    clock_gettime(CLOCK_REALTIME, &now);
    if (p) {
        set_end(p, status, &now);
        return;
    }
    e = all->n_unknown ? calloc(1, sizeof(*e)) : NULL;
    if (!e)
        return; /* one that a container left to us */
    *e = (struct early){.next = all->early, .pid = pid, .status = status, .at = now};
    all->early = e;
}

void tasks_expect(struct rr_tasks *all)
{
    all->n_unknown++;
}

void tasks_expected(struct rr_tasks *all)
{
    if (--all->n_unknown > 0)
        return;
    while (all->early) {
        struct early *e = all->early;

        all->early = e->next;
        free(e);
    }
}
