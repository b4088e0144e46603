/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reports what WASI gives it, a line each: "arg N", "env NAME=VALUE", what
 * reading $READ_FILE and writing $WRITE_FILE came to.
 */
#include <errno.h>
#include <roadrunner.h>
#include <wasi/api.h>

extern char **environ;

#define CAP (64 * 1024)

static char *out;
static size_t len;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(out + len, CAP - len, format, args);
    va_end(args);
    if (n < 0 || len + (size_t)n >= CAP)
        __builtin_trap();
    len += (size_t)n;
}

/* A reactor has no main(), so it asks for its arguments. */
static int say_args(void)
{
    size_t n_args, n_bytes;
    if (__wasi_args_sizes_get(&n_args, &n_bytes) != 0)
        return -1;
    uint8_t **argv = calloc(n_args + 1, sizeof(*argv));
    uint8_t *text = malloc(n_bytes + 1);
    if (!argv || !text || __wasi_args_get(argv, text) != 0)
        return -1;
    for (size_t i = 0; i < n_args; i++)
        say("arg %s\n", (const char *)argv[i]);
    return 0;
}

static void read_file(const char *path)
{
    char buf[4096];
    FILE *f = fopen(path, "r");
    if (!f) {
        say("read %s: %s\n", path, strerror(errno));
        return;
    }
    size_t n = fread(buf, 1, sizeof(buf), f);
    fclose(f);
    say("read %s: %.*s\n", path, (int)n, buf);
}

static void write_file(const char *path)
{
    FILE *f = fopen(path, "w");
    if (!f) {
        say("write %s: %s\n", path, strerror(errno));
        return;
    }
    fputs("written by the guest\n", f);
    say("write %s: %s\n", path, fclose(f) == 0 ? "ok" : strerror(errno));
}

int rr_handle(void)
{
    out = rr_alloc("out", CAP);
    if (!out)
        return 2;
    len = 0;
    if (say_args() != 0)
        return 3;
    for (char **e = environ; *e; e++)
        say("env %s\n", *e);
    if (getenv("READ_FILE"))
        read_file(getenv("READ_FILE"));
    if (getenv("WRITE_FILE"))
        write_file(getenv("WRITE_FILE"));
    return rr_return(out, len);
}
