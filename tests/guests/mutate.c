/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For fan-out: sums its input's bytes, then writes over all of them. Every
 * sibling must answer with the same 8-byte sum.
 */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    volatile uint8_t *p = in.data;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < in.len; i++)
        sum += p[i];
    for (uint64_t i = 0; i < in.len; i++)
        p[i] = (uint8_t)~p[i];
    uint64_t *out = rr_alloc("out", sizeof(*out));
    if (!out)
        return 2;
    *out = sum;
    return rr_return(out, sizeof(*out));
}
