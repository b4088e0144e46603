/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the first and last byte of its input, and sends nothing. */
#include <roadrunner.h>

static volatile uint8_t seen;

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len == 0)
        return 1;
    seen = ((uint8_t *)in.data)[0] ^ ((uint8_t *)in.data)[in.len - 1];
    return 0;
}
