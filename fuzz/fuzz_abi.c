/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any calls of a guest, and any bytes as a module. An input that begins with
 * "\0asm" is a module: it is loaded, and what has an ABI is run. All others are
 * the script of tests/guests/script.c, which makes the calls that they say with
 * the arguments that they say. Whatever happens, all regions are back at the end.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker/worker.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void die(const char *what, const struct rr_error *err)
{
    fprintf(stderr, "fuzz_abi: %s: %s\n", what, err ? err->text : "");
    abort();
}

static int memfd_of(const uint8_t *data, size_t len)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    if (fd < 0 || write(fd, data, len) != (ssize_t)len || lseek(fd, 0, SEEK_SET) < 0)
        die("memfd", NULL);
    return fd;
}

static struct rr_workflow *load_workflow(const char *text)
{
    char path[] = "/tmp/fuzz-abi-XXXXXX";
    struct rr_workflow *wf = NULL;
    struct rr_error err;
    int fd = mkstemp(path);

    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        die("workflow file", NULL);
    close(fd);
    if (rr_workflow_load(path, &wf, &err) != 0)
        die("workflow", &err);
    unlink(path);
    return wf;
}

static struct rr_worker *script_worker(void)
{
    static struct rr_workflow *wf;
    static struct rr_worker *w;
    struct rr_worker_options options = {.no_cache = true};
    struct rr_error err;
    char text[4096];
    const char *g = getenv("RR_GUESTS");

    if (w)
        return w;
    g = g ? g : "build/guests";
    snprintf(
        text, sizeof(text),
        "version: 1\n"
        "functions:\n"
        "  script: {module: %s/tests/script.wasm, calls: [callee], memory: 16MiB, deadline: 2s}\n"
        "  callee: {module: %s/tests/echo.wasm}\n"
        "  next: {module: %s/tests/echo.wasm, instances: 1}\n"
        "  other: {module: %s/tests/upper.wasm}\n"
        "edges:\n"
        "  - {from: input, to: script, max: 1MiB}\n"
        "  - {from: script, to: next, max: 64MiB}\n"
        "  - {from: script.a, to: next.a, max: 1MiB}\n"
        "  - {from: script.a, to: other, max: 1MiB}\n"
        "  - {from: script.big, to: next.big, max: 512MiB}\n"
        "result: next\n",
        g, g, g, g);
    wf = load_workflow(text);
    if (rr_worker_new(wf, &options, &w, &err) != 0)
        die("worker", &err);
    return w;
}

static void check_regions(struct rr_worker *w)
{
    struct rr_arena_stats stats;

    rr_worker_release(w);
    rr_arena_stats(rr_worker_arena(w), &stats);
    if (stats.live_regions || stats.live_bytes)
        die("regions are missing", NULL);
}

static void run_script(const uint8_t *data, size_t len)
{
    struct rr_worker *w = script_worker();
    struct rr_result result;
    struct rr_error err = {0};
    int fd = memfd_of(data, len);
    int r = rr_worker_run(w, fd, &result, &err);

    close(fd);
    if (r && (!err.text[0] || (int)err.code != r))
        die("an error without a text", NULL);
    check_regions(w);
}

static void run_module(const uint8_t *data, size_t len)
{
    struct rr_worker_options options = {.no_cache = true};
    struct rr_workflow *wf;
    struct rr_worker *w = NULL;
    struct rr_result result;
    struct rr_error err = {0};
    int fd = memfd_of(data, len), input = memfd_of((const uint8_t *)"input", 5);
    char text[512];
    int r;

    snprintf(
        text, sizeof(text),
        "version: 1\nfunctions: {f: {module: /proc/self/fd/%d, memory: 16MiB, deadline: 50ms}}\n"
        "edges: [{from: input, to: f, max: 1MiB}]\nresult: f\n",
        fd);
    wf = load_workflow(text);
    r = rr_worker_new(wf, &options, &w, &err);
    if (r == 0) {
        r = rr_worker_run(w, input, &result, &err);
        check_regions(w);
    }
    if (r && (!err.text[0] || (int)err.code != r))
        die("an error without a text", NULL);
    rr_worker_free(w);
    rr_workflow_free(wf);
    close(fd);
    close(input);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len > 65536)
        return 0;
    if (len >= 4 && memcmp(data, "\0asm", 4) == 0)
        run_module(data, len);
    else
        run_script(data, len);
    return 0;
}
