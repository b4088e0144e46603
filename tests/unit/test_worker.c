/* SPDX-License-Identifier: Apache-2.0 */
/* One worker over many runs: what a bad guest does ends its own run and no other. */
#include "test.h"

#include <inttypes.h>
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

static struct fixture open_text(const char *yaml, const struct rr_worker_options *options)
{
    struct fixture f = {.path = "/tmp/rr-test-worker-XXXXXX"};
    struct rr_error err = {0};
    int fd = mkstemp(f.path);

    assert_true(fd >= 0);
    assert_int_equal(rr_write_all(fd, yaml, strlen(yaml)), 0);
    close(fd);
    if (rr_workflow_load(f.path, &f.wf, &err) || rr_worker_new(f.wf, options, &f.w, &err))
        fail_msg("%s", err.text);
    return f;
}

static struct fixture open_worker(const char *instances)
{
    struct rr_worker_options options = {.no_cache = true};
    const char *guests = getenv("RR_GUESTS");
    char yaml[8192];

    snprintf(yaml, sizeof(yaml),
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
    return open_text(yaml, &options);
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

/* --- ahead of time, and behind it ------------------------------------------------------------ */

static void on_span(void *user, const struct rr_span *span)
{
    *(unsigned int *)user += span->fresh;
}

static struct fixture open_one(const char *module, const char *instances, unsigned int *n_fresh)
{
    struct rr_worker_options options = {.no_cache = true,
                                        .observer = {.span = on_span, .user = n_fresh}};
    char yaml[4096];

    snprintf(yaml, sizeof(yaml),
             "version: 1\n"
             "functions: {f: {module: %s/tests/%s.wasm, instances: %s}}\n"
             "edges: [{from: input, to: f, max: 1MiB}]\n"
             "result: f\n",
             getenv("RR_GUESTS"), module, instances);
    return open_text(yaml, &options);
}

/* Returns what it answers, a number of 8 bytes as text, in a buffer that lasts until the next. */
static const char *ask(struct rr_worker *w, const void *data, size_t len)
{
    static char text[64];
    int fd = memfd_create("input", MFD_CLOEXEC);
    struct rr_result result;
    struct rr_error err;
    uint64_t number;

    assert_int_equal(rr_write_all(fd, data, len), 0);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    if (rr_worker_run(w, fd, &result, &err))
        snprintf(text, sizeof(text), "error %d", err.code);
    else if (result.len == sizeof(number) && memcpy(&number, result.data, sizeof(number)))
        snprintf(text, sizeof(text), "%" PRIu64, number);
    else
        snprintf(text, sizeof(text), "%.*s", (int)result.len, (const char *)result.data);
    rr_worker_release(w);
    close(fd);
    return text;
}

static unsigned int tidy(struct rr_worker *w)
{
    unsigned int n = 0;

    while (rr_worker_tidy(w))
        n++;
    return n;
}

/* Whatever is put off or made ahead, each run has an instance that nobody had before. */
static void test_ahead(void)
{
    static const uint32_t places[] = {1, 5, 70000, 1 << 20};
    unsigned int n_fresh = 0, n = 0, made;
    struct fixture f = open_one("stain", "fresh", &n_fresh);

    ask(f.w, places, sizeof(places));
    assert_int_equal(tidy(f.w), 0);
    rr_worker_defer(f.w, UINT64_MAX);
    for (n = 1; n < 60; n++) {
        assert_string_equal(ask(f.w, places, sizeof(places)), "0 1048576");
        if (n % 20 == 0)
            tidy(f.w); /* then the next ones find some */
        else if (n % 7 == 0)
            rr_worker_tidy(f.w);
    }
    assert_int_equal(n_fresh, n);
    for (n = 0, made = 0; n < 10 && made != 2; n++) { /* on a busy machine they may be too old */
        tidy(f.w);
        ask(f.w, places, sizeof(places));
        made = tidy(f.w);
    }
    assert_int_equal(made, 2); /* one destroyed, one made */
    rr_worker_settle(f.w);
    assert_int_equal(tidy(f.w), 0);
    assert_string_equal(ask(f.w, places, sizeof(places)), "0 1048576");
    close_worker(&f);
}

static void test_ahead_of_others(void)
{
    static const struct {
        const char *module, *instances, *first, *second;
        unsigned int min_steps, max_steps;
    } table[] = {
        {"count", "fresh", "1", "1", 1, 20},
        {"count", "2", "1", "2", 0, 0},
        {"stdio_upper", "fresh", "AB", "AB", 1, 1}, /* it is destroyed */
        /* one step, which finds that it is not worth it */
        {"start_trap", "fresh", NULL, NULL, 1, 1},
        {"big_data", "fresh", "12582912", "12582912", 1, 1},
    };

    for (size_t k = 0; k < RR_ARRAY_LEN(table); k++) {
        unsigned int n_fresh = 0;
        struct fixture f = open_one(table[k].module, table[k].instances, &n_fresh);
        char trap[16];

        print_message("%s\n", table[k].module);
        snprintf(trap, sizeof(trap), "error %d", RR_E_GUEST);
        rr_worker_defer(f.w, UINT64_MAX);
        assert_string_equal(ask(f.w, "ab", 2), table[k].first ? table[k].first : trap);
        assert_in_range(tidy(f.w), table[k].min_steps, table[k].max_steps);
        assert_string_equal(ask(f.w, "ab", 2), table[k].second ? table[k].second : trap);
        close_worker(&f);
    }
}

/* Those made ahead are not kept for long. */
static void test_ahead_is_not_old(void)
{
    unsigned int n_fresh = 0, full = 0, again = 0;
    struct fixture f = open_one("count", "fresh", &n_fresh);

    rr_worker_defer(f.w, UINT64_MAX);
    /* A step destroys or makes one. Were the old ones not dropped, only two would be made in place
     * of those that were taken. */
    for (int n = 0; n < 3 && (full != 1 + 8 || again != 2 + 8); n++) {
        rr_worker_settle(f.w);
        ask(f.w, "", 0);
        full = tidy(f.w);
        usleep(1100000);
        assert_string_equal(ask(f.w, "", 0), "1");
        assert_string_equal(ask(f.w, "", 0), "1");
        again = tidy(f.w);
    }
    assert_int_equal(full, 1 + 8);
    assert_int_equal(again, 2 + 8);
    close_worker(&f);
}

/* One test, as the engine has handlers of its own for what guests do, and cmocka sets its own
 * before each. */
static void test_all(void **state)
{
    test_goes_on_after_any_failure(state);
    test_ahead();
    test_ahead_of_others();
    test_ahead_is_not_old();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all),
    };

    return cmocka_run_group_tests_name("worker", tests, NULL, NULL);
}
