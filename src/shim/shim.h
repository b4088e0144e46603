/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shim: containerd's side of a pod's containers: answers its Task service over ttrpc, tells it what
 * happens, keeps their streams. Containers are made by children that do what roadrunner-oci does.
 * May call base and oci.
 */
#ifndef RR_SHIM_SHIM_H
#define RR_SHIM_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "base/error.h"
#include "shim/loop.h"
#include <shim.pb-c.h>

/* Of gRPC; containerd turns them into its own errors. */
enum rr_status {
    RR_STATUS_OK = 0,
    RR_STATUS_UNKNOWN = 2,
    RR_STATUS_INVALID = 3,
    RR_STATUS_NOT_FOUND = 5,
    RR_STATUS_EXISTS = 6,
    RR_STATUS_PRECONDITION = 9,
    RR_STATUS_UNIMPLEMENTED = 12,
    RR_STATUS_INTERNAL = 13
};

/* --- server.c: connections, requests, answers ------------------------------------------------ */

struct rr_server;
struct rr_rpc; /* a request that waits for its answer, which is given exactly once */

/* @method of the Task service; answers at once or later. @data is borrowed. */
typedef void (*rr_rpc_fn)(void *user, struct rr_rpc *rpc, const char *method, const uint8_t *data,
                          size_t len);

/* @listen_fd: moved. */
int rr_server_new(struct rr_loop *l, int listen_fd, rr_rpc_fn fn, void *user,
                  struct rr_server **ret);
void rr_server_free(struct rr_server *s);
void rr_rpc_reply(struct rr_rpc *rpc, const ProtobufCMessage *message);
__attribute__((format(printf, 3, 4))) void rr_rpc_fail(struct rr_rpc *rpc, enum rr_status code,
                                                       const char *fmt, ...);

/* --- events.c -------------------------------------------------------------------------------- */

struct rr_events;

/* @address: of containerd's ttrpc socket; @namespace: borrowed, both. */
int rr_events_new(struct rr_loop *l, const char *address, const char *namespace,
                  struct rr_events **ret);
void rr_events_free(struct rr_events *e);
/* In order, and again once containerd is back. @type: of the event, without its package. */
void rr_events_send(struct rr_events *e, const char *topic, const char *type,
                    const ProtobufCMessage *event);
bool rr_events_idle(const struct rr_events *e);

/* --- io.c: streams of a process -------------------------------------------------------------- */

struct rr_io {
    char *paths[3]; /* as containerd named them; owned, "" for none */
    bool terminal;
    int child[3], keep[3]; /* for the process; and so that neither side sees an early end */
    int console_listen, master;
    char console_path[64], console_dir[48];
    int notify; /* of what its writer does with stdin */
    int logger; /* pidfd of the program that reads what is written; -1: none */
    struct rr_watch *on_console, *on_master, *on_input, *on_output, *on_notify;
    struct rr_loop *loop;
    struct rr_copy {
        uint8_t data[8192];
        size_t len;
    } *in, *out;
    uint16_t width, height;
};

/* What containerd names, and whose they are. */
struct rr_io_names {
    const char *in, *out, *err;
    bool terminal;
    const char *container, *namespace;
};

/* Open them. 0, or an enum rr_code: RR_E_INVALID for what we do not know. */
int rr_io_open(struct rr_io *io, struct rr_loop *l, const struct rr_io_names *names,
               struct rr_error *err);
void rr_io_started(struct rr_io *io);     /* the process has its copies */
void rr_io_close_stdin(struct rr_io *io); /* for good */
int rr_io_resize(struct rr_io *io, uint16_t width, uint16_t height);
void rr_io_close(struct rr_io *io);

/* --- logger.c: a program that takes a container's output ------------------------------------- */

#define RR_LOGGER_MAX 4096 /* characters of its URI */
#define RR_LOGGER_WORDS 32

/* "binary:///PROGRAM?KEY=VALUE" as words; text of @ret in @room. Returns how many; 0: it is none.
 */
size_t rr_logger_words(const char *uri, char room[RR_LOGGER_MAX], const char *ret[RR_LOGGER_WORDS]);
/* Start it, and wait until it is ready. @ret_fds: owned: where its two inputs are written. */
int rr_logger_start(const struct rr_io_names *names, int ret_fds[2], int *ret_pidfd,
                    struct rr_error *err);
/* It sees the end of its input: if that does not end it, a signal does. @pidfd: moved. */
void rr_logger_end(struct rr_loop *l, int pidfd);

/* --- mount.c --------------------------------------------------------------------------------- */

int rr_mount_all(Rr__Pb__Mount *const *mounts, size_t n, const char *target, struct rr_error *err);
void rr_unmount_all(const char *target); /* and what is mounted below it */

/* --- cgroup.c -------------------------------------------------------------------------------- */

struct rr_cgroup {
    bool v2;
    char *memory, *cpu, *cpuacct, *pids; /* folders; with v2 all the same; NULL: none */
    int oom_fd;                          /* eventfd, or inotify */
    struct rr_watch *on_oom;
    uint64_t oom_kills;
};

/* Of a process, while it lives. */
void rr_cgroup_find(struct rr_cgroup *c, pid_t pid);
/* As its file @path says it, below @root. */
void rr_cgroup_read(struct rr_cgroup *c, const char *root, const char *path);
void rr_cgroup_free(struct rr_cgroup *c);
/* A container will be made soon. */
void rr_cgroup_announce(void);
/* @ret: owned value, free(); false: there are no figures. */
bool rr_cgroup_stats(const struct rr_cgroup *c, Rr__Pb__Any *ret);
/* Call @fn when the kernel kills for want of memory. */
void rr_cgroup_watch_oom(struct rr_cgroup *c, struct rr_loop *l, void (*fn)(void *data, uint32_t),
                         void *data);
/* Has it killed anew, since it was asked last? */
bool rr_cgroup_oom_happened(struct rr_cgroup *c);
/* Processes in it and below. @ret: owned. */
size_t rr_cgroup_pids(const struct rr_cgroup *c, pid_t **ret);

/* --- task.c, process.c: the Task service ----------------------------------------------------- */

struct rr_tasks;

int rr_tasks_new(struct rr_loop *l, struct rr_events *events, const char *namespace,
                 struct rr_tasks **ret);
void rr_tasks_free(struct rr_tasks *t);
void rr_tasks_call(void *user, struct rr_rpc *rpc, const char *method, const uint8_t *data,
                   size_t len);

/* --- runtime.c: commands of roadrunner-oci, run aside ----------------------------------------- */

struct rr_job {
    const char *bundle; /* its folder, and where the log goes */
    const char *binary; /* the runtime below; "" for its default */
    const char *argv[32];
    int fds[3]; /* of its streams; -1: /dev/null */
    void (*done)(void *data, int status, const char *error);
    void *data;
};

/* Runs @job; @done is called later, with @error a text when it failed. 0 or -errno: not started. */
int rr_job_start(struct rr_loop *l, const struct rr_job *job);
/* The same, at once; returns the status. */
int rr_job_wait(const struct rr_job *job);
/* Adds a word to job->argv. */
void rr_job_add(struct rr_job *job, const char *word);

#endif
