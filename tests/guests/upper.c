/* SPDX-License-Identifier: Apache-2.0 */
/* Makes ASCII letters large, in place, and sends its input on. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    char *p = in.data;
    for (uint64_t i = 0; i < in.len; i++) {
        if (p[i] >= 'a' && p[i] <= 'z')
            p[i] = (char)(p[i] - 'a' + 'A');
    }
    return rr_return(p, in.len);
}
