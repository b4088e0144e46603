/* SPDX-License-Identifier: Apache-2.0 */
/* Payload -> u64 of its first byte and, above it, its last: two loads, however long it is. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len == 0)
        return 1;
    const uint8_t *p = in.data;
    uint64_t seen = p[0] | (uint64_t)p[in.len - 1] << 8;
    uint64_t *out = rr_alloc("out", sizeof(*out));
    if (!out)
        return 2;
    *out = seen;
    return rr_return(out, sizeof(*out));
}
