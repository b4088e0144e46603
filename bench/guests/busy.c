/* SPDX-License-Identifier: Apache-2.0 */
/* Computes for some milliseconds, and sends one byte. */
#include <roadrunner.h>

int rr_handle(void)
{
    volatile uint32_t x = 1;
    for (uint32_t n = 0; n < 2000000; n++)
        x = x * 1664525u + 1013904223u;
    uint8_t *out = rr_alloc("out", 1);
    if (!out)
        return 1;
    *out = (uint8_t)x;
    return rr_return(out, 1);
}
