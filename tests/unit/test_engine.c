/* SPDX-License-Identifier: Apache-2.0 */
/* The engine on small modules that are written here as bytes. */
#include "test.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "engine/engine.h"

/*
 * (module (memory (export "memory") 1)
 *   (func (export "loop") (loop br 0))
 *   (func (export "grow") (param i32) (result i32) local.get 0 memory.grow)
 *   (func (export "poke") (param i32) local.get 0 i32.const 1 i32.store8)
 *   (func (export "peek") (param i32) (result i32) local.get 0 i32.load8_u)
 *   (func (export "deep") call 4)
 *   (func (export "trap") unreachable)
 *   (func (export "one") (result i32) i32.const 1))
 */
static const uint8_t module_bytes[] = {
    0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00, 0x01, 0x11, 0x04, 0x60, 0x00, 0x00, 0x60, 0x01,
    0x7f, 0x01, 0x7f, 0x60, 0x01, 0x7f, 0x00, 0x60, 0x00, 0x01, 0x7f, 0x03, 0x08, 0x07, 0x00, 0x01,
    0x02, 0x01, 0x00, 0x00, 0x03, 0x05, 0x03, 0x01, 0x00, 0x01, 0x07, 0x3a, 0x08, 0x06, 0x6d, 0x65,
    0x6d, 0x6f, 0x72, 0x79, 0x02, 0x00, 0x04, 0x6c, 0x6f, 0x6f, 0x70, 0x00, 0x00, 0x04, 0x67, 0x72,
    0x6f, 0x77, 0x00, 0x01, 0x04, 0x70, 0x6f, 0x6b, 0x65, 0x00, 0x02, 0x04, 0x70, 0x65, 0x65, 0x6b,
    0x00, 0x03, 0x04, 0x64, 0x65, 0x65, 0x70, 0x00, 0x04, 0x04, 0x74, 0x72, 0x61, 0x70, 0x00, 0x05,
    0x03, 0x6f, 0x6e, 0x65, 0x00, 0x06, 0x0a, 0x30, 0x07, 0x07, 0x00, 0x03, 0x40, 0x0c, 0x00, 0x0b,
    0x0b, 0x06, 0x00, 0x20, 0x00, 0x40, 0x00, 0x0b, 0x09, 0x00, 0x20, 0x00, 0x41, 0x01, 0x3a, 0x00,
    0x00, 0x0b, 0x07, 0x00, 0x20, 0x00, 0x2d, 0x00, 0x00, 0x0b, 0x04, 0x00, 0x10, 0x04, 0x0b, 0x03,
    0x00, 0x00, 0x0b, 0x04, 0x00, 0x41, 0x01, 0x0b,
};

static struct rr_engine *engine;
static struct rr_module *module;

/* The engine installs its signal handlers once; cmocka puts its own over them in every test. */
static const int trap_signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
static struct sigaction engine_actions[RR_ARRAY_LEN(trap_signals)];

static void save_engine_signals(void)
{
    struct rr_engine_options options = {.no_cache = true};
    struct rr_engine *first;
    struct rr_error err;

    if (rr_engine_new(&options, &first, &err) != 0)
        abort();
    rr_engine_free(first);
    for (size_t i = 0; i < RR_ARRAY_LEN(trap_signals); i++)
        sigaction(trap_signals[i], NULL, &engine_actions[i]);
}

static void use_engine_signals(void)
{
    for (size_t i = 0; i < RR_ARRAY_LEN(trap_signals); i++)
        sigaction(trap_signals[i], &engine_actions[i], NULL);
}

static int load_bytes(const void *bytes, size_t len, struct rr_module **ret, struct rr_error *err)
{
    char path[] = "/tmp/rr-module-XXXXXX";
    int fd = mkstemp(path), r;

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, len), (ssize_t)len);
    close(fd);
    r = rr_module_load(engine, path, ret, err);
    unlink(path);
    return r;
}

static int setup(void **state)
{
    struct rr_engine_options options = {.no_cache = true};
    struct rr_error err;

    (void)state;
    assert_int_equal(rr_engine_new(&options, &engine, &err), 0);
    if (load_bytes(module_bytes, sizeof(module_bytes), &module, &err) != 0)
        fail_msg("%s", err.text);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    rr_module_free(module);
    rr_engine_free(engine);
    return 0;
}

static struct rr_instance *new_instance(uint64_t memory_bytes)
{
    struct rr_instance_options options = {.memory_bytes = memory_bytes};
    struct rr_instance *inst = NULL;
    struct rr_error err;

    if (rr_instance_new(module, &options, &inst, &err) != 0)
        fail_msg("%s", err.text);
    return inst;
}

static int call(struct rr_instance *inst, const char *name, int32_t *arg, uint64_t deadline_ns,
                struct rr_error *err)
{
    union rr_value v = {.i32 = *arg};
    int r = rr_instance_call(inst, rr_instance_export(inst, name), &v, 1, deadline_ns, err);

    *arg = v.i32;
    return r;
}

static void test_rejects(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
        enum rr_code code;
        const char *text;
    } cases[] = {
        {"", 0, RR_E_INVALID, "not a WebAssembly module"},
        {"hello, world", 12, RR_E_INVALID, "not a WebAssembly module"},
        {"\0asm\2\0\0\0", 8, RR_E_INVALID, "version"},
        {"\0asm\x0d\0\1\0", 8, RR_E_INVALID, "component"},
        {(const char *)module_bytes, sizeof(module_bytes) - 3, RR_E_INVALID, "does not compile"},
    };
    struct rr_module *m = NULL;
    struct rr_error err;

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        assert_int_equal(load_bytes(cases[i].bytes, cases[i].len, &m, &err), cases[i].code);
        if (!strstr(err.text, cases[i].text) || !err.hint[0])
            fail_msg("case %zu: %s", i, err.text);
        assert_null(m);
    }
    assert_int_equal(rr_module_load(engine, "/nonexistent.wasm", &m, &err), RR_E_NOINPUT);
    assert_int_equal(rr_module_load(engine, "/tmp", &m, &err), RR_E_NOINPUT);
}

static void test_exports(void **state)
{
    (void)state;
    assert_true(rr_module_has_func(module, "grow", "i>i"));
    assert_true(rr_module_has_func(module, "grow", NULL));
    assert_false(rr_module_has_func(module, "grow", "ii>i"));
    assert_false(rr_module_has_func(module, "memory", NULL));
    assert_true(rr_module_has_memory(module));
}

static void test_outcomes(void **state)
{
    static const struct {
        const char *name;
        int32_t arg;
        int code;
        int32_t result;
        const char *text;
    } cases[] = {
        {"one", 0, 0, 1, ""},
        {"grow", 1, 0, 1, ""},
        {"trap", 0, RR_E_GUEST, 0, "unreachable"},
        {"peek", 65535, 0, 0, ""}, /* in the next instance */
        {"grow", 100, 0, -1, ""},  /* over the limit of 1 MiB */
        {"peek", 2 << 20, RR_E_LIMIT, 0, "limit"},
        {"peek", 2 << 20, RR_E_GUEST, 0, "out of bounds"},
        {"deep", 0, RR_E_LIMIT, 0, "call stack"},
        {"one", 0, 0, 1, ""},
    };
    struct rr_instance *inst = new_instance(RR_MIB);
    struct rr_error err = {0};

    (void)state;
    use_engine_signals();
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        int32_t v = cases[i].arg;

        err.text[0] = 0;
        if (call(inst, cases[i].name, &v, 0, &err) != cases[i].code ||
            (cases[i].code == 0 && v != cases[i].result) || !strstr(err.text, cases[i].text))
            fail_msg("case %zu: %d %s", i, v, err.text);
        if (rr_instance_export(inst, "nothing") != -1)
            fail_msg("an export that does not exist");
        if (i % 3 == 2) { /* an instance has room for a few lookups */
            rr_instance_free(inst);
            inst = new_instance(RR_MIB);
        }
    }
    rr_instance_free(inst);
}

/* What one instance wrote anywhere is not there for the next, which gets its memory. */
static void test_pooled_memory_is_zero(void **state)
{
    struct rr_error err;

    (void)state;
    for (int round = 0; round < 5; round++) {
        struct rr_instance *inst = new_instance(64 * RR_MIB);
        static const uint64_t places[] = {0, 70000, 3 * RR_MIB, RR_GIB + 5, 3 * RR_GIB - 1};
        int32_t pages = 600;

        assert_int_equal(call(inst, "grow", &pages, 0, &err), 0);
        assert_int_equal(rr_instance_open_windows(inst), 0);
        assert_int_equal(rr_instance_memory_bytes(inst), 3 * RR_GIB);
        assert_int_equal(rr_instance_heap_bytes(inst), 601 * 65536);
        for (size_t i = 0; i < RR_ARRAY_LEN(places); i++) {
            int32_t at = (int32_t)(uint32_t)places[i];

            assert_int_equal(call(inst, "peek", &at, 0, &err), 0);
            if (at)
                fail_msg("byte at %llx is %d", (unsigned long long)places[i], at);
            rr_instance_memory(inst)[places[i]] = 0xaa;
            if (i == 1) { /* exports are looked up once each in this test */
                rr_instance_memory(inst)[places[i]] = 0xbb;
            }
        }
        rr_instance_free(inst);
    }
}

static void test_slice(void **state)
{
    static const struct {
        uint32_t addr;
        uint64_t len;
        bool ok;
    } cases[] = {{0, 0, true},          {0, 65536, true},       {0, 65537, false},
                 {65536, 0, true},      {65537, 0, false},      {65535, 1, true},
                 {65535, 2, false},     {0xffffffff, 1, false}, {1, UINT64_MAX, false},
                 {0, UINT64_MAX, false}};
    struct rr_instance *inst = new_instance(RR_MIB);

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++)
        assert_int_equal(rr_instance_slice(inst, cases[i].addr, cases[i].len) != NULL, cases[i].ok);
    rr_instance_free(inst);
}

static void test_deadline(void **state)
{
    static const uint64_t ms[] = {1, 20, 100};
    struct rr_error err;

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(ms); i++) {
        struct rr_instance *inst = new_instance(RR_MIB);
        uint64_t begin = rr_now_ns(), end;
        int32_t v = 0;

        assert_int_equal(call(inst, "loop", &v, begin + ms[i] * 1000000, &err), RR_E_DEADLINE);
        end = rr_now_ns();
        assert_true(end - begin >= ms[i] * 1000000);
        /* within 10 ms on a machine of its own; this one may be busy, or sanitized */
        assert_true(end - begin < (ms[i] + 1000) * 1000000);
        rr_instance_free(inst);
    }
}

static void *loop_until(void *data)
{
    struct rr_instance *inst = new_instance(RR_MIB);
    uint64_t ms = (uintptr_t)data, begin = rr_now_ns();
    struct rr_error err;
    int32_t v = 0;
    int r = call(inst, "loop", &v, begin + ms * 1000000, &err);
    bool early = rr_now_ns() - begin < ms * 1000000;

    rr_instance_free(inst);
    return r == RR_E_DEADLINE && !early ? NULL : (void *)1;
}

/* Each has its own deadline, and none stops another early. */
static void test_deadlines_of_many(void **state)
{
    pthread_t threads[6];

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(threads); i++)
        pthread_create(&threads[i], NULL, loop_until, (void *)(uintptr_t)(300 - 50 * i));
    for (size_t i = 0; i < RR_ARRAY_LEN(threads); i++) {
        void *bad;

        pthread_join(threads[i], &bad);
        assert_null(bad);
    }
}

static void *cancel_soon(void *data)
{
    usleep(50000);
    rr_engine_cancel(engine);
    return data;
}

static void test_cancel(void **state)
{
    struct rr_instance *inst = new_instance(RR_MIB);
    struct rr_error err;
    pthread_t thread;
    int32_t v = 0;

    (void)state;
    pthread_create(&thread, NULL, cancel_soon, NULL);
    assert_int_equal(call(inst, "loop", &v, 0, &err), RR_E_CANCELLED);
    pthread_join(thread, NULL);
    assert_true(rr_engine_cancelled(engine));
    assert_int_equal(call(inst, "one", &v, 0, &err), RR_E_CANCELLED);
    rr_instance_free(inst);
}

static void test_cache(void **state)
{
    struct rr_engine *plain = engine;
    struct rr_engine_options options = {0};
    char dir[] = "/tmp/rr-engine-XXXXXX", command[64];
    enum rr_cached want[] = {RR_CACHE_MISS, RR_CACHE_HIT};
    struct rr_error err;

    (void)state;
    assert_non_null(mkdtemp(dir));
    setenv("ROADRUNNER_CACHE_DIR", dir, 1);
    for (size_t i = 0; i < RR_ARRAY_LEN(want); i++) {
        struct rr_module *m = NULL;

        assert_int_equal(rr_engine_new(&options, &engine, &err), 0);
        assert_int_equal(load_bytes(module_bytes, sizeof(module_bytes), &m, &err), 0);
        assert_int_equal(rr_module_cached(m), want[i]);
        rr_module_free(m);
        rr_engine_free(engine);
    }
    engine = plain;
    assert_int_equal(rr_module_cached(module), RR_CACHE_OFF);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_rejects, setup, teardown),
        cmocka_unit_test_setup_teardown(test_exports, setup, teardown),
        cmocka_unit_test_setup_teardown(test_outcomes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pooled_memory_is_zero, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slice, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deadline, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deadlines_of_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cache, setup, teardown),
    };

    save_engine_signals();
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
