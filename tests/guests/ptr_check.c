/* SPDX-License-Identifier: Apache-2.0 */
/* Checks ptr_make.c's pointers and sends the message on; a chain of these ends in "at ADDRESS". */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    char *p = in.data;
    for (uint64_t i = 0; i + sizeof(void *) <= in.len; i += 4096) {
        char *self;
        memcpy(&self, p + i, sizeof(self));
        if (self != p + i) {
            rr_logf(RR_ERROR, "pointer at %p says %p", (void *)(p + i), (void *)self);
            return 9;
        }
    }
    if (!getenv("LAST"))
        return rr_return(p, in.len);
    char *out = rr_alloc("out", 32);
    if (!out)
        return 2;
    return rr_return(out, (uint64_t)snprintf(out, 32, "at %p", (void *)p));
}
