/* SPDX-License-Identifier: Apache-2.0 */
/*
 * worker: a node, which serves functions of a workflow to whoever runs it elsewhere.
 */
#ifndef RR_WORKER_NODE_H
#define RR_WORKER_NODE_H

#include "worker/worker.h"

struct rr_node_server;

/**
 * rr_node_server_new() - load the modules that live on this node
 * @wf:  of rr_workflow_load_at(); borrowed
 * @ret: out, owned: rr_node_server_free()
 */
int rr_node_server_new(const struct rr_workflow *wf, const struct rr_worker_options *options,
                       struct rr_node_server **ret, struct rr_error *err);
void rr_node_server_free(struct rr_node_server *s);
/* As rr_net_listen(): the port, 0 for a Unix socket, or a negative code. */
int rr_node_server_listen(struct rr_node_server *s, const char *at, struct rr_error *err);
/* Serve until rr_node_server_stop(). 0 or RR_E_SYSTEM. */
int rr_node_server_run(struct rr_node_server *s, struct rr_error *err);
/* Async-signal-safe: what has begun is finished first; a second time: it is not. */
void rr_node_server_stop(struct rr_node_server *s);
/* Async-signal-safe: read the TLS files again. */
void rr_node_server_reload(struct rr_node_server *s);

#endif
