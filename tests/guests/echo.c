/* SPDX-License-Identifier: Apache-2.0 */
/* Copies its input to a message of its own. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    char *out = rr_alloc("out", in.len);
    if (!out)
        return 2;
    memcpy(out, in.data, in.len);
    return rr_return(out, in.len);
}
