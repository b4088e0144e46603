/* SPDX-License-Identifier: Apache-2.0 */
/* For fan-in: all inputs in their order, as "PORT=BYTES\n" each. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    uint64_t len = 0;
    for (uint32_t i = 0; rr_input(i, &in) == 0; i++)
        len += strlen(in.port) + in.len + 2;
    char *out = rr_alloc("out", len);
    if (!out)
        return 2;
    char *p = out;
    for (uint32_t i = 0; rr_input(i, &in) == 0; i++) {
        p = stpcpy(p, in.port);
        *p++ = '=';
        memcpy(p, in.data, in.len);
        p += in.len;
        *p++ = '\n';
    }
    return rr_return(out, len);
}
