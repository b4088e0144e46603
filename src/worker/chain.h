/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker: workflows that nobody has written down. Each function of a chain knows its own name and
 * who comes next; who begins a run asks one after the other, and so learns the line. Workflows
 * made of it are marked: their nodes agree on no more than that, see rr_workflow.chain.
 */
#ifndef RR_WORKER_CHAIN_H
#define RR_WORKER_CHAIN_H

#include "worker/worker.h"

#define RR_CHAIN_MAX 64 /* functions of other nodes */
#define RR_CHAIN_PATIENCE_NS 30000000000u

struct rr_chain {
    const char *name;       /* of the function here; NULL: this is where runs begin */
    const char *modules[2]; /* here: the second gets what the first sends; NULL: none */
    const char *next;       /* "NAME" or "NAME@HOST:PORT"; NULL: none */
    const char *dir;        /* where names without an address have their sockets; NULL: nowhere */
    uint64_t patience_ns;   /* for functions that are not there yet */
    const struct rr_net_tls *tls;
    bool plain; /* without TLS beyond this machine */
    bool again; /* messages are delivered at least once; all of the chain say so, or none */
};

/* Is it "NAME" or "NAME@ADDRESS"? */
bool rr_chain_next_valid(const char *next);

#define RR_CHAIN_PREFIX "chain:"
#define RR_CHAIN_AGAIN "at-least-once:" /* may come after it */

/* Where a command takes a workflow file: a file, or "chain:NAME" or "chain:NAME@HOST:PORT", the
 * chain that begins there; "chain:at-least-once:NAME", if it delivers so; a name alone is of the
 * folder rr_runtime_dir(). As the two functions. */
int rr_chain_open(const char *what, const struct rr_net_tls *tls, bool plain,
                  struct rr_workflow **ret, struct rr_error *err);

/**
 * rr_chain_load() - the workflow of a function, or of a whole chain
 * @c:    with a name: the function and who comes next. Without one: asks them all, and waits for
 *        those that are not there; rr_chain.modules may then be empty, too
 * @stop: set by a signal: give up; NULL: never
 *
 * Files are not looked at. The functions here have no deadline, and 2 GiB of memory.
 *
 * Return: 0; RR_E_DIED: one is not reached; RR_E_INVALID; RR_E_USAGE; RR_E_CANCELLED; RR_E_SYSTEM.
 */
int rr_chain_load(const struct rr_chain *c, const volatile bool *stop, struct rr_workflow **ret,
                  struct rr_error *err);

#endif
