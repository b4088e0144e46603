/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker: what a process does, for others to look at: a socket at which a thread of its own gives a
 * copy of its figures to whoever may enter the folder. Who asks takes nothing of it for granted,
 * and waits for nobody for long.
 */
#ifndef RR_WORKER_STATUS_H
#define RR_WORKER_STATUS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "workflow/workflow.h"

#define RR_STATUS_NAME 64
#define RR_STATUS_PREFIX "roadrunner.status."
#define RR_STATUS_MAX_BYTES (4u << 20)
#define RR_STATUS_CHANNELS 3

struct rr_status; /* of this process */

/* What one reads; texts end with NUL and have printable characters only. */
struct rr_status_function {
    char name[RR_STATUS_NAME];
    uint64_t runs, running;
};

struct rr_status_edge {
    char from[2 * RR_STATUS_NAME], to[2 * RR_STATUS_NAME];
    struct {
        uint64_t messages, bytes, copied_bytes;
    } by[RR_STATUS_CHANNELS]; /* by enum rr_channel */
};

struct rr_status_view {
    pid_t pid; /* as the kernel says; */
    uid_t uid; /* the same */
    char kind[RR_STATUS_NAME], workflow[RR_STATUS_NAME], node[RR_STATUS_NAME];
    uint64_t started_ns, read_ns;         /* CLOCK_BOOTTIME */
    struct rr_status_function *functions; /* those that live there */
    size_t n_functions;
    struct rr_status_edge *edges; /* into them */
    size_t n_edges;
};

/* Figures, which children that are forked from now on share. @kind: what the process is, for
 * people. NULL: without memory; the process goes on without. */
struct rr_status *rr_status_new(const struct rr_workflow *wf, const char *kind);
/* Begin to tell them, at a socket in rr_runtime_dir(): once there is nothing to fork any more,
 * since it takes a thread. Only the first time does something. Any thread. NULL: nothing. */
void rr_status_open(struct rr_status *s);
/* Before further threads count in it. */
void rr_status_share(struct rr_status *s);
void rr_status_free(struct rr_status *s); /* removes the socket */

/* NULL: nothing is told. Any thread, and children that fork() made. */
void rr_status_hop(struct rr_status *s, int edge, enum rr_channel channel, uint64_t bytes,
                   uint64_t copied_bytes);
void rr_status_begin(struct rr_status *s, int function);
void rr_status_end(struct rr_status *s, int function);

/* @ret: owned, rr_status_view_deinit(). 0 or -EINVAL, -ENOMEM. */
int rr_status_parse(const uint8_t *data, size_t len, struct rr_status_view *ret);
/* Ask at a socket in @dir_fd. 0; -ECONNREFUSED: its process is gone; another negative errno. */
int rr_status_ask(int dir_fd, const char *name, uint64_t until_ns, struct rr_status_view *ret);
void rr_status_view_deinit(struct rr_status_view *v);
/* All in a folder, until then. @seen: takes what it wants of it. Returns how many did not answer.
 */
unsigned int rr_status_each(int dir_fd, uint64_t until_ns,
                            void (*seen)(void *user, struct rr_status_view *v), void *user);

#endif
