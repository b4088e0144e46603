/* SPDX-License-Identifier: Apache-2.0 */
/* How often this instance has been called, as text: "1" in every fresh one. */
#include <roadrunner.h>

static unsigned int n_calls;

int rr_handle(void)
{
    char *out = rr_alloc("out", 16);
    if (!out)
        return 1;
    return rr_return(out, (uint64_t)snprintf(out, 16, "%u", ++n_calls));
}
