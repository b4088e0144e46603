/* SPDX-License-Identifier: Apache-2.0 */
/* Any input -> a message of 4 KiB, all of it written; asks nothing of the input. */
#include <roadrunner.h>

#include "bench.h"

int rr_handle(void)
{
    uint64_t *out = rr_alloc("out", 4096);
    if (!out)
        return 1;
    fill(out, 4096, 1);
    return rr_return(out, 4096);
}
