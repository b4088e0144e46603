/* SPDX-License-Identifier: Apache-2.0 */
/* struct request -> sends len_bytes on port `large`, then calls `echo` seed times with 4 KiB, 5 ms
 * apart, and sends the nanoseconds of each call. */
#include <roadrunner.h>
#include <time.h>

#include "bench.h"

#define SMALL 4096
#define PAUSE_NS 5000000u

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int send_large(const struct request *req)
{
    uint64_t *large = rr_alloc("large", req->len_bytes);
    if (!large)
        return 1;
    fill(large, req->len_bytes, req->seed);
    return rr_send("large", large, req->len_bytes) != 0;
}

static int call_small(uint8_t n, uint64_t *ret_ns)
{
    struct rr_message reply;
    uint64_t begin = now_ns();
    while (now_ns() - begin < PAUSE_NS)
        ;
    begin = now_ns();
    uint8_t *out = rr_call_alloc("echo", SMALL);
    if (!out)
        return 1;
    memset(out, n, SMALL);
    if (rr_call("echo", out, SMALL, &reply) != 0)
        return 2;
    *ret_ns = now_ns() - begin;
    int wrong = ((uint8_t *)reply.data)[SMALL - 1] != n;
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
    if (send_large(&req) != 0)
        return 3;
    for (uint64_t n = 0; n < req.seed; n++) {
        int r = call_small((uint8_t)n, &ns[n]);
        if (r)
            return 3 + r;
    }
    return rr_send("out", ns, req.seed * sizeof(*ns));
}
