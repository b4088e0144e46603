/* SPDX-License-Identifier: Apache-2.0 */
/* consume.c without an answer: reads all of its input and sends nothing. */
#include "bench.h"

#include <roadrunner.h>

static volatile uint64_t last;

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    last = sum(in.data, in.len);
    return 0;
}
