/* SPDX-License-Identifier: Apache-2.0 */
/* Sends its input on, untouched and unread. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    return rr_return(in.data, in.len);
}
