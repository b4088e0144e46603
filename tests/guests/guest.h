/* SPDX-License-Identifier: Apache-2.0 */
/* What several guests of the tests want: numbers of their environment, and the time. */
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

static inline uint64_t number(const char *name)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : 0;
}

static inline uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}
