/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For one reused instance: counts messages of flood.c, each of which must come once, and says what
 * has come so far, and when this one came, in us. Takes MS milliseconds over each.
 */
#include <roadrunner.h>
#include <time.h>

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

int rr_handle(void)
{
    static uint8_t seen[65536];
    static uint64_t count, sum, twice;
    const char *ms = getenv("MS");
    uint64_t begin = now_us(), end = begin + (ms ? strtoull(ms, NULL, 10) * 1000 : 0);
    struct rr_message in;
    uint64_t n;
    if (rr_input(0, &in) != 0 || in.len < sizeof(n))
        return 1;
    n = *(uint64_t *)in.data;
    if (n >= sizeof(seen) || n != ((uint64_t *)in.data)[in.len / sizeof(n) - 1])
        return 9;
    twice += seen[n];
    seen[n] = 1;
    count++;
    sum += n;
    while (now_us() < end)
        ;
    rr_logf(RR_INFO, "tally %llu sum %llu twice %llu at %llu", (unsigned long long)count,
            (unsigned long long)sum, (unsigned long long)twice, (unsigned long long)begin);
    return 0;
}
