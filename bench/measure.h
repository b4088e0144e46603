/* SPDX-License-Identifier: Apache-2.0 */
/* What the programs with peers share: arguments, the process at the other end, percentiles.
 * Nobody could go on after an error, so every one is printed and ends the program.
 */
#ifndef RR_BENCH_MEASURE_H
#define RR_BENCH_MEASURE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct measure {
    const char *mode; /* borrowed from argv, or NULL */
    size_t size_bytes, repeat;
    uint64_t *samples_ns; /* @repeat of them, in memory that children share; owned by the program */
};

_Noreturn __attribute__((format(printf, 1, 2))) void measure_die(const char *format, ...);

/* Reads `[MODE] --size BYTES --repeat N`; @usage is the line to print where that fails. */
void measure_parse(struct measure *m, int argc, char **argv, const char *usage);

/**
 * measure_fork() - run one end, or a helper, in a process of its own
 * @run:           what it does; when that returns, it exits with success
 * @data:          borrowed: handed to @run
 * @death_signal:  what it gets when its parent dies
 */
pid_t measure_fork(const struct measure *m, void (*run)(const struct measure *, void *data),
                   void *data, int death_signal);

/* Waits until both ends have succeeded; any other end of any child ends the program. */
void measure_wait(pid_t one, pid_t other);

/* Prints the figures as one line of JSON, with @extra and its value where it is not NULL. */
void measure_finish(struct measure *m, const char *extra, uint64_t value);

#endif
