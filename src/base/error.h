/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base: error texts, cleanup attributes, clocks and logging. May call nothing
 * but libc; every other part may call it.
 */
#ifndef RR_BASE_ERROR_H
#define RR_BASE_ERROR_H

#include <stddef.h>
#include <stdint.h>

/* Documented conditions; each has one exit code and one name (rr_error_name()). */
enum rr_code {
    RR_OK = 0,
    RR_E_USAGE = 64,     /* command line */
    RR_E_INVALID = 65,   /* workflow, module or message breaks a rule */
    RR_E_NOINPUT = 66,   /* a file is missing or unreadable */
    RR_E_GUEST = 70,     /* a function trapped or returned a failure */
    RR_E_LIMIT = 71,     /* a limit was reached: memory, length, metadata */
    RR_E_DEADLINE = 72,  /* a function passed its deadline */
    RR_E_DIED = 73,      /* a worker process ended, or does not answer */
    RR_E_OUTPUT = 74,    /* the result could not be written */
    RR_E_SYSTEM = 75,    /* the system refused: out of memory, syscalls */
    RR_E_CANCELLED = 130 /* interrupted */
};

/**
 * struct rr_error - what failed, on what, and what to do about it
 *
 * Owned by the caller; filling it allocates nothing. @line and @column are
 * 1-based, 0 when unknown.
 */
struct rr_error {
    enum rr_code code;
    unsigned int line, column;
    char file[512];
    char text[1024];
    char hint[512];
};

/* No error, without writing to 2 KiB of texts: for where each message passes. */
static inline void rr_error_clear(struct rr_error *err)
{
    err->code = RR_OK;
    err->line = err->column = 0;
    err->file[0] = err->text[0] = err->hint[0] = '\0';
}

/* RR_E_SYSTEM: out of memory. */
int rr_error_no_memory(struct rr_error *err);
/* Fill @err (may be NULL) and return @code. */
__attribute__((format(printf, 4, 5))) int rr_error_set(struct rr_error *err, enum rr_code code,
                                                       const char *hint, const char *fmt, ...);
/* Add a position to an error that was just set. */
void rr_error_at(struct rr_error *err, const char *file, unsigned int line, unsigned int column);
const char *rr_error_name(enum rr_code code);
int rr_error_status(enum rr_code code); /* as HTTP has it */

#endif
