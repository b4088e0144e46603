/* SPDX-License-Identifier: Apache-2.0 */
/* Payload of u64 that are all the same -> that word, 8 bytes; else fails with 9. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len < sizeof(uint64_t))
        return 1;
    const uint64_t *p = in.data;
    for (uint64_t i = 1; i < in.len / sizeof(*p); i++) {
        if (p[i] != p[0]) {
            rr_logf(RR_ERROR, "word %llu differs from the first", (unsigned long long)i);
            return 9;
        }
    }
    uint64_t *out = rr_alloc("out", sizeof(*out));
    if (!out)
        return 2;
    *out = p[0];
    return rr_return(out, sizeof(*out));
}
