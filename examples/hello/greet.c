/* SPDX-License-Identifier: Apache-2.0 */
/* A function of the window tier: "NAME" -> "Hello, NAME!". */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message name;
    if (rr_input(0, &name) != 0)
        return 1;
    const char *text = name.data;
    uint64_t len = name.len;
    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == ' '))
        len--;

    size_t cap = len + sizeof("Hello, !\n");
    char *out = rr_alloc("out", cap);
    if (!out)
        return 2;
    int n = snprintf(out, cap, "Hello, %.*s!\n", (int)len, text);
    rr_log(RR_INFO, "greeted somebody");
    return rr_return(out, (uint64_t)n);
}
