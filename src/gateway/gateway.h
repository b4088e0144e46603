/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gateway: workflows that answer HTTP. May call base, region, engine, abi, workflow and worker.
 */
#ifndef RR_GATEWAY_GATEWAY_H
#define RR_GATEWAY_GATEWAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define RR_GATEWAY_MAX_LISTEN 16
#define RR_GATEWAY_MAX_ROUTES 256
#define RR_GATEWAY_LANES 4u /* messages at a time of a workflow with nodes; at most 32 */
#define RR_GATEWAY_MAX_CALLBACKS 64

struct rr_gateway_route {
    const char *path;     /* "/", or "/name": this path and all below it */
    const char *workflow; /* file */
};

/* Zero means the default, which rr_gateway_defaults() fills in. */
struct rr_gateway_options {
    const char *const *listen; /* HOST:PORT, [HOST]:PORT, :PORT or unix:PATH */
    size_t n_listen;
    const char *admin; /* where /healthz, /readyz and /metrics are; NULL: at all addresses */
    const struct rr_gateway_route *routes;
    size_t n_routes;
    uint64_t max_body_bytes;        /* 64 MiB */
    uint64_t max_memory_bytes;      /* of all bodies that are there or being received; 1/4 of RAM */
    uint64_t workflow_memory_bytes; /* of one workflow's messages and instances; 1/2 of RAM */
    uint64_t deadline_ns;           /* from the last byte of a request; 60 s */
    uint64_t drain_ns;              /* for what runs, after SIGTERM; 30 s */
    uint64_t idle_ns;               /* between requests; 60 s */
    uint64_t header_ns;             /* from a head's first byte to its last; 10 s */
    uint64_t duplicates_ns;         /* how long events are remembered; 0: not at all */
    uint64_t min_rate_bytes;        /* per second, of bodies and replies, after 5 s; 1024 */
    uint64_t spin_ns;               /* a thread polls before it sleeps; UINT64_MAX: never; 0: 20 to
                                       100 us, if clients ask again so soon */
    unsigned int max_header_bytes;  /* 16 KiB */
    unsigned int max_connections;   /* 4096 */
    unsigned int concurrency;       /* functions that run at once; max(8, 4 * cores) */
    unsigned int queue;             /* requests of one workflow that wait; 1024 */
    unsigned int threads;           /* that read and write; cores */
    const char *tls_cert, *tls_key; /* PEM files: TLS at all TCP addresses but @admin; NULL: none */
    const char *tls_client_ca;      /* only clients with a certificate of it; NULL: all */
    const struct rr_net_tls
        *node_tls; /* to other nodes; NULL: none, which @node_plain must allow */
    bool node_plain;
    const char *access_log;       /* file, "-": stdout; NULL: none */
    const char *otlp;             /* URL of a collector; NULL: as the environment says */
    const char *otlp_ratio;       /* of the traces that begin here; NULL: the same */
    const char *const *callbacks; /* who may be called back: HOST, HOST:PORT or *.DOMAIN */
    size_t n_callbacks;
    const char *const *callback_nets; /* ADDRESS[/BITS]: where names of these may be; none: see
                                         rr_callback_address_ok() */
    size_t n_callback_nets;
    const char *callback_ca; /* PEM file: whom https callbacks trust; NULL: whom the system does */
    bool no_cache, isolate, quiet;
    int verbose;
};

void rr_gateway_defaults(struct rr_gateway_options *o);
bool rr_gateway_net_ok(const char *net);           /* is it ADDRESS[/BITS]? */
bool rr_gateway_callback_ok(const char *callback); /* is it HOST, HOST:PORT or *.DOMAIN? */
/* Answer until SIGTERM or SIGINT, then finish what runs. SIGHUP: read the workflows again. */
int rr_gateway_run(const struct rr_gateway_options *options, struct rr_error *err);

#endif
