/* SPDX-License-Identifier: Apache-2.0 */
/* The least a function can do: looks at nothing, sends one byte. */
#include <roadrunner.h>

int rr_handle(void)
{
    char *out = rr_alloc("out", 1);
    if (!out)
        return 1;
    *out = 0;
    return rr_return(out, 1);
}
