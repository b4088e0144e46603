/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "measure.h"

#define MAX_REPEAT 10000000

void measure_die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(EXIT_FAILURE);
}

static size_t parse_number(const char *text, size_t min, size_t max, const char *usage)
{
    char *end;
    unsigned long long n;

    errno = 0;
    n = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-' || n < min || n > max)
        measure_die("'%s' is not a number from %zu to %zu; usage: %s", text, min, max, usage);
    return (size_t)n;
}

void measure_parse(struct measure *m, int argc, char **argv, const char *usage)
{
    static const struct option options[] = {
        {"size", required_argument, NULL, 's'}, {"repeat", required_argument, NULL, 'n'}, {0}};
    int c;

    *m = (struct measure){.size_bytes = 4096, .repeat = 21};
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 's')
            m->size_bytes = parse_number(optarg, 0, 4 * RR_GIB, usage);
        else if (c == 'n')
            m->repeat = parse_number(optarg, 1, MAX_REPEAT, usage);
        else
            measure_die("usage: %s", usage);
    }
    if (optind < argc)
        m->mode = argv[optind++];
    if (optind < argc)
        measure_die("usage: %s", usage);
    m->samples_ns = mmap(NULL, m->repeat * sizeof(*m->samples_ns), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (m->samples_ns == MAP_FAILED)
        measure_die("mmap: %s", strerror(errno));
}

pid_t measure_fork(const struct measure *m, void (*run)(const struct measure *, void *data),
                   void *data, int death_signal)
{
    pid_t parent = getpid(), pid = fork();

    if (pid < 0)
        measure_die("fork: %s", strerror(errno));
    if (pid > 0)
        return pid;
    if (prctl(PR_SET_PDEATHSIG, death_signal) < 0)
        measure_die("prctl: %s", strerror(errno));
    if (getppid() != parent)
        measure_die("the parent is gone");
    run(m, data);
    exit(EXIT_SUCCESS);
}

void measure_wait(pid_t one, pid_t other)
{
    for (int n_left = 2; n_left > 0;) {
        int status;
        pid_t pid = wait(&status);

        if (pid < 0 && errno == EINTR)
            continue;
        if (pid < 0)
            measure_die("wait: %s", strerror(errno));
        if ((pid != one && pid != other) || status != 0)
            measure_die("process %d of the benchmark ended early or failed (wait status %d)",
                        (int)pid, status);
        n_left--;
    }
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

void measure_finish(struct measure *m, const char *extra, uint64_t value)
{
    size_t n = m->repeat;

    qsort(m->samples_ns, n, sizeof(*m->samples_ns), compare);
    printf("{\"mode\": \"%s\", \"size_bytes\": %zu, \"repeat\": %zu, \"min_ns\": %" PRIu64
           ", \"p50_ns\": %" PRIu64 ", \"p99_ns\": %" PRIu64,
           m->mode, m->size_bytes, n, m->samples_ns[0], m->samples_ns[n / 2],
           m->samples_ns[n - 1 - n / 100]);
    if (extra)
        printf(", \"%s\": %" PRIu64, extra, value);
    printf("}\n");
    if (fflush(stdout) != 0)
        measure_die("write: %s", strerror(errno));
}
