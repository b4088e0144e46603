/* SPDX-License-Identifier: Apache-2.0 */
/* struct request -> a payload to port "here" in the first two calls of this instance, and to "there" in
 * all others; 8 bytes to the one of the two that does not get it. */
#include <roadrunner.h>

#include "bench.h"

static int n_calls;

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len != sizeof(struct request))
        return 1;
    struct request req;
    memcpy(&req, in.data, sizeof(req));
    const char *large = n_calls++ < 2 ? "here" : "there";
    const char *small = large[0] == 'h' ? "there" : "here";
    uint64_t *out = rr_alloc(large, req.len_bytes), *other = rr_alloc(small, 8);
    if (!out || !other)
        return 2;
    fill(out, req.len_bytes, req.seed);
    *other = 1;
    rr_send(small, other, 8);
    return rr_send(large, out, req.len_bytes);
}
