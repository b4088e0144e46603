/* SPDX-License-Identifier: Apache-2.0 */
/* base: cleanup attributes, clocks, arithmetic and diagnostics. */
#ifndef RR_BASE_UTIL_H
#define RR_BASE_UTIL_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#define RR_AUTO(type) __attribute__((cleanup(type##_cleanup))) /* needs <type>_cleanup() */
#define RR_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define RR_MIB (1ull << 20)
#define RR_GIB (1ull << 30)

/* What regions, links and workflows agree on: the two sizes of a message's slot, and where the
 * windows for them lie in linear memory. */
#define RR_SLOT_SMALL (64 * RR_MIB)
#define RR_SLOT_LARGE RR_GIB
#define RR_WINDOW_BASE RR_GIB
#define RR_WINDOW_END (3 * RR_GIB)

/* Pooled memory that was not wanted for so long, while other was, is given back: one piece per
 * look. */
#define RR_IDLE_NS 60000000000u
#define RR_IDLE_LOOKS 256 /* in that time */

/* Move ownership out of @p: returns its value and leaves NULL. */
#define rr_take(p)              \
    __extension__({             \
        __typeof__(p) t_ = (p); \
        (p) = NULL;             \
        t_;                     \
    })

static inline uint64_t rr_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint64_t rr_align_up(uint64_t v, uint64_t to) /* @to: a power of two */
{
    return (v + to - 1) & ~(to - 1);
}

static inline uint64_t rr_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline void rr_cpu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* In a loop that polls: a pause long enough (0.2 to 0.5 us) that the other thread of the core,
 * which may be the one that is waited for, has the core almost to itself. */
static inline void rr_cpu_relax(void)
{
    for (int n = 0; n < 16; n++)
        rr_cpu_pause();
}

void rr_free_cleanup(void *p);  /* for __attribute__((cleanup)) on heap pointers */
void rr_close_cleanup(int *fd); /* closes unless negative */
void rr_file_cleanup(FILE **f);

/* One line to stderr, prefixed; @level 0 error, 1 warning, 2 info, 3 debug. */
/* @n bytes as 2 * @n hexadecimal digits and a NUL. */
void rr_hex(const uint8_t *from, size_t n, char *to);
__attribute__((format(printf, 2, 3))) void rr_log(int level, const char *fmt, ...);
void rr_log_set_level(int level); /* lines above it are dropped; default 1 */

/* The number that a file begins with, or @none. */
long long rr_read_number(FILE *f, long long none);
/* Write all of @len bytes, also over short writes and EINTR. 0 or negative errno. */
int rr_write_all(int fd, const void *data, size_t len);
/* Text of a byte count, as "1.5 MiB", in one of eight rotating per-thread buffers. */
const char *rr_bytes_text(uint64_t bytes);
const char *rr_duration_text(uint64_t ns);

#endif
