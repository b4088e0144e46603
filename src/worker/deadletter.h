/* SPDX-License-Identifier: Apache-2.0 */
/* worker: messages that were given up, for who has them elsewhere than in a run. */
#ifndef RR_WORKER_DEADLETTER_H
#define RR_WORKER_DEADLETTER_H

#include "workflow/workflow.h"

/* An input of the workflow. */
struct rr_dead_letter {
    const char *id; /* letters and digits */
    unsigned int attempts;
    const char *error;
    uint64_t len;
    int (*read)(void *user, uint64_t at, void *to, size_t len); /* 0 or negative errno */
    void *user;
    bool sync; /* it is on the disk when this returns */
};

/* Append it to the workflow's file. Return: 0 or negative errno; then nothing is left of it. */
int rr_dead_letter(const struct rr_workflow *wf, const struct rr_dead_letter *l);

#endif
