/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the first and last byte of its input, and sends one. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len == 0)
        return 1;
    uint8_t ends = ((uint8_t *)in.data)[0] ^ ((uint8_t *)in.data)[in.len - 1];
    uint8_t *out = rr_alloc("out", 1);
    if (!out)
        return 2;
    *out = ends;
    return rr_return(out, 1);
}
