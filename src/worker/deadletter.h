/* SPDX-License-Identifier: Apache-2.0 */
/* worker: messages that were given up. */
#ifndef RR_WORKER_DEADLETTER_H
#define RR_WORKER_DEADLETTER_H

#include "workflow/workflow.h"

struct rr_dead_letter {
    const struct rr_workflow *wf;
    int edge;       /* index; -1: an input of the workflow, after attempts at whole runs */
    const char *id; /* letters and digits */
    unsigned int attempts;
    int status; /* of the last one, as HTTP has it */
    const char *error;
    const uint8_t *meta; /* as a message has it; NULL: none */
    size_t meta_len;
    uint64_t len;
    int (*read)(void *user, uint64_t at, void *to, size_t len); /* 0 or negative errno */
    void *user;
    bool sync; /* it is on the disk when this returns */
};

/*
 * What it has as a CloudEvent, by the names of attributes, with `datacontenttype`, `traceparent`
 * and `tracestate`: those of the message, or, if that is none, some that make it one; Knative's
 * knativeerrordest, knativeerrorcode and knativeerrordata; and rrattempts. @value is borrowed, and
 * may have any bytes. @each returns false to end it, as does this then.
 */
bool rr_letter_attributes(const struct rr_dead_letter *l,
                          bool (*each)(void *user, const char *name, size_t name_len,
                                       const char *value, size_t len),
                          void *user);
/* Append it to the workflow's file. Return: 0 or negative errno; then nothing is left of it. */
int rr_dead_letter(const struct rr_dead_letter *l);

#endif
