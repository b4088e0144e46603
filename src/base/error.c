/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Cut at @size and at a whole UTF-8 character: texts end up in JSON and on terminals. */
static void copy_text(char *to, size_t size, const char *from)
{
    size_t len = from ? strnlen(from, size) : 0;

    if (len == size) {
        len = size - 1;
        while (len > 0 && ((unsigned char)from[len] & 0xc0) == 0x80)
            len--;
    }
    if (len > 0)
        memmove(to, from, len); /* a caller may pass the error's own text */
    to[len] = '\0';
}

int rr_error_set(struct rr_error *err, enum rr_code code, const char *hint, const char *fmt, ...)
{
    char text[sizeof(err->text) + 1];
    va_list ap;
    int n;

    if (!err)
        return code;

    /* Formatted aside: an argument may be the very text that is replaced. */
    va_start(ap, fmt);
    n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    copy_text(err->hint, sizeof(err->hint), hint);
    copy_text(err->text, sizeof(err->text), n < 0 ? fmt : text);
    err->code = code;
    err->line = 0;
    err->column = 0;
    err->file[0] = '\0';
    return code;
}

int rr_error_no_memory(struct rr_error *err)
{
    return rr_error_set(err, RR_E_SYSTEM, "free some memory", "out of memory");
}

void rr_error_at(struct rr_error *err, const char *file, unsigned int line, unsigned int column)
{
    if (!err)
        return;
    copy_text(err->file, sizeof(err->file), file);
    err->line = line;
    err->column = column;
}

const char *rr_error_name(enum rr_code code)
{
    switch (code) {
    case RR_OK:
        return "ok";
    case RR_E_USAGE:
        return "usage";
    case RR_E_INVALID:
        return "invalid";
    case RR_E_NOINPUT:
        return "no-input";
    case RR_E_GUEST:
        return "guest";
    case RR_E_LIMIT:
        return "limit";
    case RR_E_DEADLINE:
        return "deadline";
    case RR_E_DIED:
        return "died";
    case RR_E_OUTPUT:
        return "output";
    case RR_E_SYSTEM:
        return "system";
    case RR_E_CANCELLED:
        return "cancelled";
    }
    return "unknown";
}

int rr_error_status(enum rr_code code)
{
    switch (code) {
    case RR_OK:
        return 200;
    case RR_E_DEADLINE:
        return 504;
    case RR_E_SYSTEM:
    case RR_E_CANCELLED:
        return 503;
    case RR_E_GUEST:
    case RR_E_LIMIT:
    case RR_E_DIED:
    case RR_E_INVALID:
        return 502;
    case RR_E_USAGE:
    case RR_E_NOINPUT:
    case RR_E_OUTPUT:
        return 500;
    }
    return 500;
}
