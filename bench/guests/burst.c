/* SPDX-License-Identifier: Apache-2.0 */
/* struct request -> seed messages of len_bytes on port "each", all of it written; then one on
 * "out". */
#include <roadrunner.h>

#include "bench.h"

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len != sizeof(struct request))
        return 1;
    struct request req;
    memcpy(&req, in.data, sizeof(req));
    for (uint64_t n = 0; n < req.seed; n++) {
        uint64_t *each = rr_alloc("each", req.len_bytes);
        if (!each)
            return 2;
        memset(each, (int)n, req.len_bytes);
        rr_send("each", each, req.len_bytes);
    }
    void *out = rr_alloc("out", 1);
    return out ? rr_return(out, 1) : 3;
}
