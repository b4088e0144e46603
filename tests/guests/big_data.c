/* SPDX-License-Identifier: Apache-2.0 */
/* A module with 4 MiB of initialized data; answers with its sum. */
#include <roadrunner.h>

static volatile uint8_t data[4 << 20] = {[0 ...(4 << 20) - 1] = 3};

int rr_handle(void)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < sizeof(data); i++) {
        sum += data[i];
        data[i] = 0; /* the next instance must not see this */
    }
    uint64_t *out = rr_alloc("out", sizeof(*out));
    if (!out)
        return 2;
    *out = sum;
    return rr_return(out, sizeof(*out));
}
