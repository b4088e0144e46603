/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For a reused instance: keeps its first input for ever and answers every call
 * with "N FIRST": the number of calls so far, and the kept input as it is now.
 */
#include <roadrunner.h>

static struct rr_message kept;
static unsigned int n_calls;

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    if (n_calls++ == 0) {
        kept = in;
        rr_keep(kept.data);
    }
    char *out = rr_alloc("out", kept.len + 16);
    if (!out)
        return 2;
    int n = snprintf(out, 16, "%u ", n_calls);
    memcpy(out + n, kept.data, kept.len);
    return rr_return(out, kept.len + (unsigned int)n);
}
