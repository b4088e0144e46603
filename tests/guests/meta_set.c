/* SPDX-License-Identifier: Apache-2.0 */
/* Moves its input's text into metadata: sends "x" with user-text = that text. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    char *out = rr_alloc("out", 1);
    if (!out)
        return 2;
    *out = 'x';
    rr_meta_set(out, "user-text", "a first value", 13);
    rr_meta_set(out, "user-text", in.data, in.len);
    rr_meta_set(out, "user-empty", "", 0);
    return rr_return(out, 1);
}
