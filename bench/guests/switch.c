/* SPDX-License-Identifier: Apache-2.0 */
/* Drops its input and sends 8 bytes in the first two calls of this instance; sends it on in all
 * others. */
#include <roadrunner.h>

static int n_calls;

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    if (n_calls++ >= 2)
        return rr_return(in.data, in.len);
    rr_drop(in.data);
    uint64_t *out = rr_alloc("out", sizeof(*out));
    if (!out)
        return 2;
    *out = 1;
    return rr_return(out, sizeof(*out));
}
