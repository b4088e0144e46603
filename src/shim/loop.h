/* SPDX-License-Identifier: Apache-2.0 */
/* shim: one loop for everything: descriptors, timers, and ends of processes. */
#ifndef RR_SHIM_LOOP_H
#define RR_SHIM_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct rr_watch;
struct rr_loop;

int rr_loop_new(struct rr_loop **ret); /* 0 or -errno */
void rr_loop_free(struct rr_loop *l);
/* Until rr_loop_stop(). */
int rr_loop_run(struct rr_loop *l);
void rr_loop_stop(struct rr_loop *l);

/* Call @fn when @fd (borrowed) has @events of epoll. NULL: out of memory, or no such descriptor. */
struct rr_watch *rr_watch_new(struct rr_loop *l, int fd, uint32_t events,
                              void (*fn)(void *data, uint32_t events), void *data);
void rr_watch_events(struct rr_watch *w, uint32_t events);
/* Never called again, not even for events that have happened. NULL is fine. */
void rr_watch_free(struct rr_watch *w);

/* Call @fn once, in @ms; -errno. */
int rr_loop_after(struct rr_loop *l, uint64_t ms, void (*fn)(void *data), void *data);

/* Call @fn when the child @pid ends; @status: as of waitpid(). */
int rr_loop_child(struct rr_loop *l, pid_t pid, void (*fn)(void *data, int status), void *data);
/* Children that nobody waits for by their id: processes of containers. */
void rr_loop_orphans(struct rr_loop *l, void (*fn)(void *data, pid_t pid, int status), void *data);

#endif
