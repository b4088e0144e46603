/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker: one message in, one message out, for who has them from elsewhere than a file. Several
 * workers of one workflow, each on a thread of its own, share what does not change: see
 * rr_worker_options.share.
 */
#ifndef RR_WORKER_SERVE_H
#define RR_WORKER_SERVE_H

#include "worker/worker.h"

/* A payload with metadata: a run of {u32 key_len, u32 value_len, key, value}, in the machine's byte
 * order, at most RR_ABI_MAX_METADATA bytes. */
struct message;

/* Is it that, each entry whole, no key empty? */
bool rr_meta_is_sound(const uint8_t *meta, size_t len);

/* The longest input that the workflow takes. */
uint64_t rr_worker_input_max(const struct rr_worker *w);
/* Instances of a function that wait to be used again; on the worker's thread. */
unsigned int rr_worker_idle(const struct rr_worker *w, int function);
/* Start the processes of isolated functions now, not at the first run. Return: 0 or an error;
 * rr_workflow_isolates() tells whether there are any. */
int rr_worker_start(struct rr_worker *w, struct rr_error *err);
bool rr_workflow_isolates(const struct rr_workflow *wf);

/**
 * rr_inbound_new() - room for an input
 * @w:    any worker of the workflow: only what they share is used
 * @len:  bytes to come, at most rr_worker_input_max()
 * @ret:  out, owned: rr_message_free() or rr_worker_run_message()
 *
 * Up to RR_SMALL_MAX bytes lie in a buffer, more in a region from the pool.
 *
 * Context: any thread. Return: 0 or RR_E_SYSTEM.
 */
int rr_inbound_new(const struct rr_worker *w, uint64_t len, struct message **ret,
                   struct rr_error *err);
/* Where the payload goes, and how much fits there. */
uint8_t *rr_inbound_room(struct message *m, uint64_t *ret_cap);
/* Room for @len bytes, of which @used are there. Return: bytes copied for it, or -1 with @err. */
int64_t rr_inbound_grow(const struct rr_worker *w, struct message *m, uint64_t used, uint64_t len,
                        struct rr_error *err);
/* It is there, @len bytes of it. @meta: moved, may be NULL. */
void rr_inbound_end(struct message *m, uint64_t len, uint8_t *meta, size_t meta_len);

/**
 * rr_worker_run_message() - send one message through the workflow
 * @m:            moved, whatever happens
 * @deadline_ns:  on rr_now_ns()'s clock, for every function that runs; 0: only their own
 * @ret:          out, owned: rr_message_free(); the result with the metadata that it was sent with
 *
 * As rr_worker_run(). Free the result on this thread and before the next run, or after
 * rr_outbound_own() if functions are isolated, or else anywhere after rr_outbound_detach().
 */
int rr_worker_run_message(struct rr_worker *w, struct message *m, uint64_t deadline_ns,
                          struct message **ret, struct rr_error *err);
/* It goes to another thread: nothing of this worker's is touched when it is freed. */
void rr_outbound_detach(struct message *m);
/* A result that another process lent becomes our own, and may then be freed anywhere. Return: bytes
 * copied for it; -1: there was no memory, and *@m is freed and NULL. */
int64_t rr_outbound_own(struct rr_worker *w, struct message **m, struct rr_error *err);
/* When much of the workflow's memory is in use: have other processes give back what they were lent,
 * which the next run would see to else, if there is memory for one. After rr_outbound_own(). */
void rr_worker_collect(struct rr_worker *w);
const uint8_t *rr_outbound_data(const struct message *m, uint64_t *ret_len);
const uint8_t *rr_outbound_meta(const struct message *m, size_t *ret_len);
void rr_message_free(struct message *m);
/* This thread has no more to do with messages: what it keeps for further ones is freed. */
void rr_message_thread_end(void);

#endif
