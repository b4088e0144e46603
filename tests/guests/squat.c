/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes into $MIB MiB of its windows, behind where its messages lie, over and over for $MS ms, and
 * sends its input on.
 */
#include <roadrunner.h>

#include "guest.h"

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    volatile char *behind = (volatile char *)((0x40000000u + 0x80000000u) - (number("MIB") << 20));
    uint64_t end = now_ms() + number("MS");
    do {
        for (uint64_t n = 0; n < number("MIB") << 20; n += 4096)
            behind[n] = 1;
    } while (now_ms() < end);
    return rr_return(in.data, in.len);
}
