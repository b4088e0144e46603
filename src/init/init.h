/* SPDX-License-Identifier: Apache-2.0 */
/*
 * init: `roadrunner-worker`, the first process of a Wasm container, and what runs beside it there.
 * It is one static file, because a container has no libraries, and is started from a descriptor,
 * because it is no file of the container. May call base and engine.
 */
#ifndef RR_INIT_INIT_H
#define RR_INIT_INIT_H

#include <stdbool.h>

struct rr_init_options {
    int image_fd; /* the module's compiled image, made by the runtime outside; -1: none */
    char **argv;  /* the module's path, and what the guest is given; NULL-terminated */
};

/* Exit statuses of shells and containers, which orchestrators know. */
#define RR_INIT_TRAPPED 134   /* as of a program that was aborted */
#define RR_INIT_NOT_RUN 126   /* found, but no module that can run */
#define RR_INIT_NOT_FOUND 127 /* no such file */

/* Run a module as a program with our streams; returns the exit status. */
int rr_init_container(const struct rr_init_options *o);
/* Print what the container's main module is doing, as JSON; returns the exit status. */
int rr_init_status(void);

#endif
