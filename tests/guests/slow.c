/* SPDX-License-Identifier: Apache-2.0 */
/* Takes MS milliseconds (default 300) over each message, says which delivery it is, and sends it
 * on. */
#include <roadrunner.h>

#include "guest.h"

int rr_handle(void)
{
    struct rr_message in;
    char id[32] = "-", attempt[8] = "-";
    const char *ms = getenv("MS");
    uint64_t end = now_ms() + (ms ? strtoull(ms, NULL, 10) : 300);
    if (rr_input(0, &in) != 0)
        return 1;
    rr_meta_get(in.data, "rr-delivery-id", id, sizeof(id));
    rr_meta_get(in.data, "rr-attempt", attempt, sizeof(attempt));
    rr_logf(RR_INFO, "begin %s attempt %s", id, attempt);
    ((uint8_t *)in.data)[0] ^= 1; /* what a second delivery must not see */
    while (now_ms() < end)
        ;
    ((uint8_t *)in.data)[0] ^= 1;
    return rr_return(in.data, in.len);
}
