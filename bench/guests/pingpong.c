/* SPDX-License-Identifier: Apache-2.0 */
/* struct request -> calls `echo` seed times with len_bytes, and sends the nanoseconds of each
 * round. */
#include <roadrunner.h>
#include <time.h>

#include "bench.h"

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int one_round(uint64_t len_bytes, uint8_t n)
{
    struct rr_message reply;
    uint8_t *out = rr_call_alloc("echo", len_bytes);
    if (!out)
        return 1;
    memset(out, n, len_bytes);
    if (rr_call("echo", out, len_bytes, &reply) != 0)
        return 2;
    int wrong = ((uint8_t *)reply.data)[0] != n || ((uint8_t *)reply.data)[len_bytes - 1] != n;
    rr_drop(reply.data);
    return wrong ? 3 : 0;
}

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len != sizeof(struct request))
        return 1;
    struct request req;
    memcpy(&req, in.data, sizeof(req));
    uint64_t *ns = rr_alloc("out", req.seed * sizeof(*ns));
    if (!ns)
        return 2;
    for (uint64_t n = 0; n < req.seed; n++) {
        uint64_t begin = now_ns();
        int r = one_round(req.len_bytes, (uint8_t)n);
        if (r)
            return 2 + r;
        ns[n] = now_ns() - begin;
    }
    return rr_return(ns, req.seed * sizeof(*ns));
}
