/* SPDX-License-Identifier: Apache-2.0 */
/* Lies, as the first byte of its input says: a result out of bounds, or memory it cannot have. */
#include "../../bench/guests/buffer.h"

EXPORT(start) uint64_t start(void *in, uint32_t len)
{
    switch (len > 0 ? *(const char *)in : '\0') {
    case 'b': /* starts in memory, ends outside */
        return result(in, 0xf0000000u);
    case 'w': /* ptr + len wraps around */
        return result((void *)(uintptr_t)0xfffffff0u, 0x20);
    case 'o': /* all outside */
        return result((void *)(uintptr_t)0xf0000000u, 16);
    default:
        __builtin_trap();
    }
}
