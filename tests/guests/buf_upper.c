/* SPDX-License-Identifier: Apache-2.0 */
/* upper.c for the buffer tier, into memory of its own. */
#include "../../bench/guests/buffer.h"

EXPORT(start) uint64_t start(void *in, uint32_t len)
{
    const char *p = in;
    char *out = malloc(len ? len : 1);
    if (!out)
        __builtin_trap();
    for (uint32_t i = 0; i < len; i++)
        out[i] = p[i] >= 'a' && p[i] <= 'z' ? (char)(p[i] - 'a' + 'A') : p[i];
    return result(out, len);
}
