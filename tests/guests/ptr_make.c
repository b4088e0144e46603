/* SPDX-License-Identifier: Apache-2.0 */
/* Input: u64 length. A message of that length whose every page starts with a pointer to itself. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len != sizeof(uint64_t))
        return 1;
    uint64_t len;
    memcpy(&len, in.data, sizeof(len));
    char *out = rr_alloc("out", len);
    if (!out)
        return 2;
    for (uint64_t i = 0; i + sizeof(void *) <= len; i += 4096) {
        char *self = out + i;
        *(void **)self = self;
    }
    return rr_return(out, len);
}
