/* SPDX-License-Identifier: Apache-2.0 */
/* shim: between task.c (what is asked) and process.c (what happens to processes). */
#ifndef RR_SHIM_TASK_H
#define RR_SHIM_TASK_H

#include "shim/shim.h"

/* As containerd counts them. */
enum task_status { TASK_UNKNOWN, TASK_CREATED, TASK_RUNNING, TASK_STOPPED, TASK_PAUSED };

struct waiter {
    struct waiter *next;
    struct rr_rpc *rpc;
};

/* A container's first process, or one of exec. */
struct proc {
    struct proc *next;
    struct task *task;
    char *exec_id; /* owned; "": the first */
    char *spec;    /* owned: of exec, its process as JSON */
    pid_t pid;
    enum task_status status; /* never TASK_PAUSED */
    bool busy;               /* a job that makes, starts or removes it is under way */
    bool ended;              /* and reaped; not yet told if the start is still under way */
    unsigned int exit_status;
    struct timespec exited_at;
    struct rr_io io;
    bool io_open;
    struct waiter *waiters;
};

struct task {
    struct task *next;
    struct rr_tasks *all;
    char *id, *bundle, *root, *binary; /* owned; root: of the runtime's state */
    bool systemd_cgroup, no_pivot, no_new_keyring;
    bool paused, init_ended; /* init_ended: told once the exec'd ones have */
    struct proc init, *execs;
    struct rr_cgroup cgroup;
};

/* The end of a child that nobody knows yet: the answer that names it is under way. */
struct early {
    struct early *next;
    pid_t pid;
    int status;
    struct timespec at;
};

struct rr_tasks {
    struct rr_loop *loop;
    struct rr_events *events;
    const char *namespace;
    struct task *first;
    struct early *early;
    unsigned int n_unknown; /* jobs that will name a process */
    unsigned int n_files;
};

/* A request, and what it is about, while a job is under way. */
struct pending {
    struct rr_rpc *rpc;
    struct task *task;
    struct proc *proc;
    char *file, *pid_file; /* owned */
};

/* task.c */
void task_check_oom(struct task *t); /* tell containerd if the kernel killed for want of memory */
void rr_job_init(struct rr_job *job, const struct task *t);

/* process.c */
void proc_init(struct proc *p, struct task *t, const char *exec_id);
void proc_deinit(struct proc *p);
/* It has this pid now; its end may have come before. */
void proc_named(struct proc *p, pid_t pid);
/* It runs, and containerd has been told: now its end may be. */
void proc_started(struct proc *p);
/* Tell of an end that has not been told. */
void proc_tell_end(struct proc *p);
void proc_wait(struct proc *p, struct rr_rpc *rpc);
void tasks_on_orphan(void *data, pid_t pid, int status);
void tasks_expect(struct rr_tasks *all);   /* a job that will name a process begins */
void tasks_expected(struct rr_tasks *all); /* and has ended */
void timestamp(Rr__Pb__Timestamp *ret, const struct timespec *t);
pid_t read_pid_file(const char *path);

#endif
