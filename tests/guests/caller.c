/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls the function "callee" with a copy of its input, twice, and answers with
 * both replies; with "status N" when the callee fails.
 */
#include <roadrunner.h>

static int call(const struct rr_message *in, struct rr_message *reply)
{
    char *p = rr_call_alloc("callee", in->len);
    if (!p)
        return -1;
    memcpy(p, in->data, in->len);
    return rr_call("callee", p, in->len, reply);
}

int rr_handle(void)
{
    struct rr_message in, reply;
    if (rr_input(0, &in) != 0)
        return 1;
    char *out = rr_alloc("out", 2 * in.len + 4096);
    if (!out)
        return 2;
    uint64_t len = 0;
    for (int i = 0; i < 2; i++) {
        int status = call(&in, &reply);
        if (status != 0)
            return rr_return(out, (uint64_t)snprintf(out, 32, "status %d", status));
        if (len + reply.len > 2 * in.len + 4096)
            return 3;
        memcpy(out + len, reply.data, reply.len);
        len += reply.len;
        rr_drop(reply.data);
    }
    return rr_return(out, len);
}
