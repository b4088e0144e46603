/* SPDX-License-Identifier: Apache-2.0 */
/* produce.c for the buffer tier: the module owns its memory and knows no SDK. */
#include "buffer.h"

#include "bench.h"

EXPORT(start) uint64_t start(void *in, uint32_t len)
{
    struct request req;
    if (len != sizeof(req))
        __builtin_trap();
    memcpy(&req, in, sizeof(req));
    uint64_t *out = malloc(req.len_bytes);
    if (!out)
        __builtin_trap();
    fill(out, req.len_bytes, req.seed);
    return result(out, (uint32_t)req.len_bytes);
}
