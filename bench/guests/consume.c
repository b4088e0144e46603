/* SPDX-License-Identifier: Apache-2.0 */
/* Payload -> the sum of its u64, 8 bytes. The receiving half of both.c. */
#include <roadrunner.h>

#include "bench.h"

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    uint64_t *out = rr_alloc("out", sizeof(*out));
    if (!out)
        return 2;
    *out = sum(in.data, in.len);
    return rr_return(out, sizeof(*out));
}
