/* SPDX-License-Identifier: Apache-2.0 */
/* produce.c and consume.c in one function: struct request -> 8-byte sum. */
#include <roadrunner.h>

#include "bench.h"

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len != sizeof(struct request))
        return 1;
    struct request req;
    memcpy(&req, in.data, sizeof(req));
    uint64_t *buf = rr_alloc("out", req.len_bytes);
    if (!buf)
        return 2;
    fill(buf, req.len_bytes, req.seed);
    buf[0] = sum(buf, req.len_bytes);
    return rr_return(buf, sizeof(buf[0]));
}
