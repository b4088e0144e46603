/* SPDX-License-Identifier: Apache-2.0 */
/* struct request -> a payload of that length, all of it written. */
#include <roadrunner.h>

#include "bench.h"

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
    return rr_return(out, req.len_bytes);
}
