/* SPDX-License-Identifier: Apache-2.0 */
/* As produce.c, but streams through 256 MiB of its own before it sends: cold caches, whatever the
 * payload. */
#include <roadrunner.h>

#include "bench.h"

static uint64_t scratch[(256u << 20) / sizeof(uint64_t)];

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len != sizeof(struct request))
        return 1;
    struct request req;
    memcpy(&req, in.data, sizeof(req));
    uint64_t *out = rr_alloc("out", req.len_bytes);
    if (!out)
        return 2;
    fill(out, req.len_bytes, req.seed);
    fill(scratch, sizeof(scratch), req.seed);
    return rr_return(out, req.len_bytes);
}
