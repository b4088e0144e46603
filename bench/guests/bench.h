/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the benchmark guests share: a 16-byte request, a stream of u64 that is
 * cheap enough to write and to sum that memory is the limit.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stdint.h>
#include <string.h>

struct request {
    uint64_t len_bytes; /* of the payload; a multiple of 32 is filled and summed whole */
    uint64_t seed;
};

/* Never inlined, so that every benchmark runs the same loops. */
__attribute__((noinline, unused)) static void fill(uint64_t *p, uint64_t len_bytes, uint64_t seed)
{
    uint64_t n = len_bytes / sizeof(*p) & ~(uint64_t)3;
    for (uint64_t i = 0; i < n; i += 4) {
        p[i] = seed + i;
        p[i + 1] = seed ^ i;
        p[i + 2] = seed - i;
        p[i + 3] = ~i;
    }
}

/* Four accumulators: one chain of additions would be slower than the memory. */
__attribute__((noinline, unused)) static uint64_t sum(const uint64_t *p, uint64_t len_bytes)
{
    uint64_t n = len_bytes / sizeof(*p) & ~(uint64_t)3;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (uint64_t i = 0; i < n; i += 4) {
        a += p[i];
        b += p[i + 1];
        c += p[i + 2];
        d += p[i + 3];
    }
    return a + b + c + d;
}

#endif
