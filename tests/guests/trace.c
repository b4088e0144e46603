/* SPDX-License-Identifier: Apache-2.0 */
/* A new message: "TRACEPARENT TRACESTATE\n" of its input, - where there is none, and the input. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    char parent[64] = "-", state[600] = "-";
    if (rr_input(0, &in) != 0)
        return 1;
    if (rr_meta_get(in.data, "traceparent", parent, sizeof(parent)) < 0)
        strcpy(parent, "-");
    if (rr_meta_get(in.data, "tracestate", state, sizeof(state)) < 0)
        strcpy(state, "-");
    char *out = rr_alloc("out", in.len + 700);
    if (!out)
        return 2;
    int len = snprintf(out, 700, "%s %s\n", parent, state);
    memcpy(out + len, in.data, in.len);
    return rr_return(out, (uint64_t)len + in.len);
}
