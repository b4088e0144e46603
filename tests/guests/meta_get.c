/* SPDX-License-Identifier: Apache-2.0 */
/* The other half of meta_set.c: answers with the text; checks absent, empty and cut values. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    int len = rr_meta_get(in.data, "user-text", NULL, 0);
    if (len < 0)
        return 3;
    if (rr_meta_get(in.data, "user-none", NULL, 0) != -1)
        return 4;
    char small[4] = "???";
    if (rr_meta_get(in.data, "user-empty", small, sizeof(small)) != 0 || small[0] != '\0')
        return 5;
    char *out = rr_alloc("out", (uint64_t)len + 1);
    if (!out)
        return 2;
    if (rr_meta_get(in.data, "user-text", out, (size_t)len + 1) != len)
        return 6;
    if (rr_meta_get(in.data, "user-text", small, sizeof(small)) != len ||
        strncmp(small, out, 3) != 0)
        return 7;
    return rr_return(out, (uint64_t)len);
}
