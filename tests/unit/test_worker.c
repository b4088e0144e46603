/* SPDX-License-Identifier: Apache-2.0 */
/* One worker over many runs: what a bad guest does ends its own run and no other. */
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/worker.h"

#define PAYLOAD (600u << 10) /* large enough to be moved, not copied */

struct fixture {
    char path[64];
    struct rr_workflow *wf;
    struct rr_worker *w;
};

static struct fixture open_worker(const char *instances)
{
    struct rr_worker_options options = {.no_cache = true};
    struct fixture f = {.path = "/tmp/rr-test-worker-XXXXXX"};
    const char *guests = getenv("RR_GUESTS");
    struct rr_error err = {0};
    int fd = mkstemp(f.path);

    assert_true(fd >= 0);
    dprintf(fd,
            "version: 1\n"
            "functions:\n"
            "  bad: {module: %s/tests/bad.wasm, env: {CASE: input}, deadline: 300ms, "
            "memory: 16MiB, instances: %s}\n"
            "  good: {module: %s/tests/echo.wasm, instances: %s}\n"
            "edges:\n"
            "  - {from: input, to: bad, max: 1MiB}\n"
            "  - {from: bad, to: good, max: 1MiB}\n"
            "result: good\n",
            guests, instances, guests, instances);
    close(fd);
    if (rr_workflow_load(f.path, &f.wf, &err) || rr_worker_new(f.wf, &options, &f.w, &err))
        fail_msg("%s", err.text);
    return f;
}

static void close_worker(struct fixture *f)
{
    rr_worker_free(f->w);
    rr_workflow_free(f->wf);
    unlink(f->path);
}

/* @name and then bytes that tell whether they arrive. */
static int run(struct rr_worker *w, const char *name, struct rr_result *ret, struct rr_error *err)
{
    uint8_t *data = calloc(1, PAYLOAD);
    int fd = memfd_create("input", MFD_CLOEXEC), r;

    memcpy(data, name, strlen(name));
    for (size_t i = 64; i < PAYLOAD; i++)
        data[i] = (uint8_t)(i * 31 + (size_t)name[0]);
    assert_int_equal(rr_write_all(fd, data, PAYLOAD), 0);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    memset(err, 0, sizeof(*err));
    r = rr_worker_run(w, fd, ret, err);
    if (r == 0) {
        assert_int_equal(ret->len, PAYLOAD);
        assert_memory_equal(ret->data, data, PAYLOAD);
    }
    close(fd);
    free(data);
    return r;
}

static void assert_all_back(struct rr_worker *w)
{
    struct rr_arena_stats stats;

    rr_worker_release(w);
    rr_arena_stats(rr_worker_arena(w), &stats);
    assert_int_equal(stats.live_regions, 0);
    assert_int_equal(stats.live_bytes, 0);
}

static void test_goes_on_after_any_failure(void **state)
{
    static const struct {
        const char *name;
        int code;
    } cases[] = {
        {"trap", RR_E_GUEST},           {"loop", RR_E_DEADLINE},
        {"exhaust-grow", RR_E_LIMIT},   {"exhaust-touch", RR_E_GUEST},
        {"recurse-stack", RR_E_LIMIT},  {"recurse-memory", RR_E_GUEST},
        {"send-twice", RR_E_GUEST},     {"send-half", RR_E_GUEST},
        {"send-too-long", RR_E_LIMIT},  {"port-unknown", RR_E_INVALID},
        {"alloc-huge", RR_E_LIMIT},     {"meta-sum-too-large", RR_E_LIMIT},
        {"call-unknown", RR_E_INVALID}, {"trap-after-send", RR_E_GUEST},
        {"no-send", RR_E_GUEST},        {"fail-after-send", RR_E_GUEST},
        {"exit", RR_E_GUEST},
    };
    static const char *const instances[] = {"fresh", "2"};

    (void)state;
    for (size_t k = 0; k < RR_ARRAY_LEN(instances); k++) {
        struct fixture f = open_worker(instances[k]);
        struct rr_result result;
        struct rr_error err;

        assert_int_equal(run(f.w, "none", &result, &err), 0);
        for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
            int r = run(f.w, cases[i].name, &result, &err);

            if (r != cases[i].code || strncmp(err.text, "function 'bad': ", 16) != 0)
                fail_msg("%s: %d: %s", cases[i].name, r, err.text);
            assert_true(err.hint[0]);
            assert_all_back(f.w);
            if (run(f.w, "none", &result, &err) != 0)
                fail_msg("after %s: %s", cases[i].name, err.text);
            assert_all_back(f.w);
        }
        close_worker(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goes_on_after_any_failure),
    };

    return cmocka_run_group_tests_name("worker", tests, NULL, NULL);
}
