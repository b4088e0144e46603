/* SPDX-License-Identifier: Apache-2.0 */
/*
 * consume.c without a hand-off: struct request -> 8-byte sum of a buffer that
 * this function allocated and filled itself at its first call, and keeps. For
 * a reused instance (`instances: 1`); the base line of the fan-out.
 */
#include <roadrunner.h>

#include "bench.h"

static uint64_t *own;
static uint64_t own_bytes;

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len != sizeof(struct request))
        return 1;
    struct request req;
    memcpy(&req, in.data, sizeof(req));
    if (own_bytes != req.len_bytes) {
        free(own);
        own = malloc(req.len_bytes);
        own_bytes = own ? req.len_bytes : 0;
        if (!own)
            return 2;
        fill(own, own_bytes, req.seed);
    }
    uint64_t *out = rr_alloc("out", sizeof(*out));
    if (!out)
        return 3;
    *out = sum(own, own_bytes);
    return rr_return(out, sizeof(*out));
}
