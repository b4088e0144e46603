/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A heap of $HEAP_MIB MiB (default 300) beside open windows: fills it, sends a
 * message, and checks that neither touched the other. Answers with the lowest
 * and highest heap address.
 */
#include <roadrunner.h>

#define MIB (1 << 20)

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    const char *ask = getenv("HEAP_MIB");
    int n = ask ? atoi(ask) : 300;
    uint32_t **block = calloc((size_t)n, sizeof(*block));
    if (!block)
        return 2;
    uint32_t first = *(uint8_t *)in.data, low = UINT32_MAX, high = 0;
    for (int i = 0; i < n; i++) {
        block[i] = malloc(MIB);
        if (!block[i])
            return 3;
        uint32_t at = rr_address(block[i]);
        /* The windows are not the heap's. */
        if (at + MIB > 0x40000000u && at < 0xc0000000u)
            return 4;
        low = at < low ? at : low;
        high = at > high ? at : high;
        for (int j = 0; j < MIB / 4; j++)
            block[i][j] = (uint32_t)(i ^ j);
    }
    char *out = rr_alloc("out", 64);
    if (!out)
        return 5;
    memset(out, 0xff, 64);
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < MIB / 4; j++) {
            if (block[i][j] != (uint32_t)(i ^ j))
                return 6;
        }
    }
    if (*(uint8_t *)in.data != first)
        return 7;
    return rr_return(out, (uint64_t)snprintf(out, 64, "%u %u", low, high));
}
