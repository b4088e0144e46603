/* SPDX-License-Identifier: Apache-2.0 */
/*
 * init: `roadrunner-worker`, the first process of a Wasm container, and what runs beside it there.
 * It is one static file, because a container has no libraries, and is started from a descriptor,
 * because it is no file of the container. May call worker and what that may.
 */
#ifndef RR_INIT_INIT_H
#define RR_INIT_INIT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "engine/engine.h"

#define RR_INIT_MAX_MODULES 8

struct rr_init_options {
    int image_fd; /* the module's compiled image, made by the runtime outside; -1: none */
    char **argv;  /* the module's path, and what the guest is given; NULL-terminated */
    /* What annotations say; NULL, -1 or false: nothing. */
    const char *function, *next, *listen, *workflow, *second;
    int second_fd; /* the second module's compiled image */
    int domain_fd; /* the folder of the trust domain */
    struct {       /* compiled modules of a workflow */
        const char *path;
        int fd;
    } modules[RR_INIT_MAX_MODULES];
    size_t n_modules;
    int patience_s; /* 0: the usual */
    bool plain, trace, again;
    bool precompiled; /* the operator allows compiled code from images */
};

/* Exit statuses of shells and containers, which orchestrators know. */
#define RR_INIT_TRAPPED 134   /* as of a program that was aborted */
#define RR_INIT_NOT_RUN 126   /* found, but no module that can run */
#define RR_INIT_NOT_FOUND 127 /* no such file */

/* container.c: a module as a program with our streams; or what the options make of it. Returns the
 * exit status. */
int rr_init_container(const struct rr_init_options *o);
/* chain.c: a function of a chain or a workflow, or where one is run. @path: of the module. */
bool rr_init_is_chain(const struct rr_init_options *o);
int rr_init_chain(const struct rr_init_options *o, const char *path);
/* The container's folders as a guest is to see them, last the one that relative names are looked up
 * in; $PWD is set. Kept. */
const struct rr_preopen *rr_init_folders(size_t *ret_n);
/* Tell on stderr; returns @status. */
int rr_init_tell(const struct rr_error *err, int status);
/* Print what the container's main module is doing, as JSON; returns the exit status. */
int rr_init_status(void);

#endif
