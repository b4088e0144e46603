/* SPDX-License-Identifier: Apache-2.0 */
/* Has the host read and write in the gap below the windows; CASE=load goes there itself. */
#include <roadrunner.h>
#include <unistd.h>
#include <wasi/api.h>

int rr_handle(void)
{
    uint8_t *gap = (uint8_t *)0x20000000, seen = 0;
    const char *name = getenv("CASE");
    if (name && strcmp(name, "load") == 0)
        return *(volatile uint8_t *)gap;
    for (int i = 0; i < 64; i++)
        if (write(2, gap + (i << 16), 1) != 1)
            return 2;
    if (__wasi_random_get(gap, 64) != 0)
        return 3;
    for (int i = 0; i < 64; i++)
        seen |= ((volatile uint8_t *)gap)[i];
    uint8_t *out = rr_alloc("out", 1);
    *out = seen ? '+' : '-';
    return rr_return(out, 1);
}
