/* SPDX-License-Identifier: Apache-2.0 */
#include "base/util.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static atomic_int log_level = 1;

void rr_free_cleanup(void *p)
{
    free(*(void **)p);
}

void rr_close_cleanup(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

void rr_file_cleanup(FILE **f)
{
    if (*f)
        fclose(*f);
}

void rr_log_set_level(int level)
{
    atomic_store(&log_level, level);
}

void rr_log(int level, const char *fmt, ...)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    char line[2048];
    va_list ap;

    if (level > atomic_load(&log_level))
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    fprintf(stderr, "roadrunner: %s: %s\n", names[level < 0 ? 0 : level > 3 ? 3 : level], line);
}

long long rr_read_number(FILE *f, long long none)
{
    char text[64], *end;
    long long v;

    if (!f || !fgets(text, sizeof(text), f))
        return none;
    v = strtoll(text, &end, 10);
    return end == text ? none : v;
}

int rr_write_all(int fd, const void *data, size_t len)
{
    const char *p = data;

    while (len > 0) {
        ssize_t n = write(fd, p, len > (1u << 30) ? (1u << 30) : len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static char *next_buffer(void)
{
    static _Thread_local char buffers[8][32];
    static _Thread_local unsigned int n;

    return buffers[n++ % 8];
}

const char *rr_bytes_text(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    char *out = next_buffer();
    double v = (double)bytes;
    size_t u = 0;

    for (; v >= 1024 && u + 1 < RR_ARRAY_LEN(units); u++)
        v /= 1024;
    snprintf(out, 32, u && v < 100 && v != (double)(uint64_t)v ? "%.1f %s" : "%.0f %s", v,
             units[u]);
    return out;
}

const char *rr_duration_text(uint64_t ns)
{
    char *out = next_buffer();

    if (ns < 1000)
        snprintf(out, 32, "%u ns", (unsigned int)ns);
    else if (ns < 1000000)
        snprintf(out, 32, "%.1f us", (double)ns / 1e3);
    else if (ns < 1000000000)
        snprintf(out, 32, "%.1f ms", (double)ns / 1e6);
    else
        snprintf(out, 32, "%.2f s", (double)ns / 1e9);
    return out;
}

void rr_hex(const uint8_t *from, size_t n, char *to)
{
    for (size_t i = 0; i < n; i++)
        snprintf(to + 2 * i, 3, "%02x", from[i]);
}
