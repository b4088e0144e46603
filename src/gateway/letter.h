/* SPDX-License-Identifier: Apache-2.0 */
/* gateway: dead letters of edges, for whoever has a worker. May call base, workflow and worker. */
#ifndef RR_GATEWAY_LETTER_H
#define RR_GATEWAY_LETTER_H

#include "worker/deadletter.h"

struct rr_letters {
    const char *ca;           /* PEM file: whom https trusts; NULL: whom the system does */
    bool (*stop)(void *user); /* ends the wait between two POSTs; may be NULL */
    void *user;
};

bool rr_letters_wanted(const struct rr_workflow *wf); /* it has such sinks */
/* If so, before there are threads. 0 or an error. */
int rr_letters_prepare(const struct rr_workflow *wf, struct rr_error *err);
/* rr_worker_options.post; @user: a struct rr_letters. Redirects and proxies as for callbacks. */
int rr_letter_post(void *user, const char *uri, const struct rr_dead_letter *l,
                   const struct rr_delivery *d, struct rr_error *err);

#endif
