/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The input is a list of little-endian u32: whether to look at all of a static array, and places in
 * it. The reply is how many bytes of it are not 0, and the last place, all of which it then stains.
 */
#include <roadrunner.h>

static unsigned char all[2u << 20];

int rr_handle(void)
{
    unsigned int n_dirty = 0, last = 0;
    struct rr_message in;
    char *out;

    if (rr_input(0, &in) != 0)
        return 1;
    const uint32_t *word = in.data;
    uint64_t n = in.len / sizeof(*word);

    for (unsigned int i = 0; n && word[0] && i < sizeof(all); i++)
        n_dirty += all[i] != 0;
    for (uint64_t i = 1; i < n; i++) {
        last = word[i] % sizeof(all);
        n_dirty += all[last] != 0;
        all[last] = 0x5a;
    }
    out = rr_alloc("out", 32);
    if (!out)
        return 2;
    return rr_return(out, (uint64_t)snprintf(out, 32, "%u %u", n_dirty, last));
}
