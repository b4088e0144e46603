/* SPDX-License-Identifier: Apache-2.0 */
/* Wants 300 MiB before it runs: beyond the default memory limit. */
#include <roadrunner.h>

static volatile uint8_t data[300 << 20];

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    data[sizeof(data) - 1] = 1;
    return rr_return(in.data, in.len);
}
