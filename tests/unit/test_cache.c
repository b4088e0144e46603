/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "abi/abi.h"
#include "base/cache.h"
#include "base/util.h"
#include "engine/engine.h"

static char dir[64];

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/rr-cache-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command);
}

static void key_of(const char *text, uint8_t key[RR_DIGEST_BYTES])
{
    rr_digest(text, strlen(text), NULL, 0, key);
}

static void entry_path(char path[512])
{
    FILE *p;
    char command[128];

    snprintf(command, sizeof(command), "find %s -type f", dir);
    p = popen(command, "r");
    assert_non_null(p);
    assert_non_null(fgets(path, 512, p));
    path[strcspn(path, "\n")] = 0;
    pclose(p);
}

static void test_digest(void **state)
{
    /* FIPS 180-2's example */
    static const uint8_t abc[4] = {0xba, 0x78, 0x16, 0xbf};
    uint8_t one[RR_DIGEST_BYTES], two[RR_DIGEST_BYTES];

    (void)state;
    key_of("abc", one);
    assert_memory_equal(one, abc, sizeof(abc));
    rr_digest("a", 1, "bc", 2, two);
    assert_memory_equal(one, two, sizeof(one));
}

static void test_round_trip(void **state)
{
    uint8_t key[RR_DIGEST_BYTES], other[RR_DIGEST_BYTES], *image = NULL;
    size_t len = 0;

    (void)state;
    key_of("k", key);
    key_of("other", other);
    assert_int_equal(rr_cache_load(dir, key, &image, &len), -ENOENT);
    assert_int_equal(rr_cache_store(dir, key, (const uint8_t *)"native code", 11), 0);
    assert_int_equal(rr_cache_load(dir, key, &image, &len), 0);
    assert_int_equal(len, 11);
    assert_memory_equal(image, "native code", 11);
    free(image);
    assert_int_equal(rr_cache_load(dir, other, &image, &len), -ENOENT);
    assert_int_equal(rr_cache_store(dir, key, (const uint8_t *)"newer", 5), 0);
    assert_int_equal(rr_cache_load(dir, key, &image, &len), 0);
    assert_memory_equal(image, "newer", 5);
    free(image);
}

/* No byte of an entry can be changed, added or taken away unnoticed. */
static void test_any_damage_is_noticed(void **state)
{
    uint8_t key[RR_DIGEST_BYTES], good[4096], *image = NULL;
    char path[512];
    size_t len = 0;
    ssize_t n;
    int fd;

    (void)state;
    key_of("k", key);
    assert_int_equal(rr_cache_store(dir, key, (const uint8_t *)"native code", 11), 0);
    entry_path(path);
    fd = open(path, O_RDONLY);
    n = read(fd, good, sizeof(good));
    close(fd);
    assert_true(n > 11);
    for (ssize_t i = -3; i < n; i++) {
        uint8_t bad[4200];
        size_t size = (size_t)n;

        memcpy(bad, good, size);
        if (i == -3)
            bad[size++] = 0;
        else if (i == -2)
            size--;
        else if (i == -1)
            size = 0;
        else
            bad[i] ^= 0x40;
        fd = open(path, O_WRONLY | O_TRUNC);
        assert_int_equal(write(fd, bad, size), (ssize_t)size);
        close(fd);
        image = (uint8_t *)8;
        assert_int_equal(rr_cache_load(dir, key, &image, &len), -EBADMSG);
        assert_ptr_equal(image, (uint8_t *)8);
    }
    assert_int_equal(rr_cache_store(dir, key, (const uint8_t *)"again", 5), 0);
    assert_int_equal(rr_cache_load(dir, key, &image, &len), 0);
    free(image);
}

static void test_folder(void **state)
{
    char path[128], *found = NULL;
    struct stat st;

    (void)state;
    snprintf(path, sizeof(path), "%s/made/here", dir);
    setenv("ROADRUNNER_CACHE_DIR", path, 1);
    assert_int_equal(rr_cache_dir(&found), 0);
    assert_string_equal(found, path);
    free(found);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);

    chmod(path, 0770);
    assert_int_equal(rr_cache_dir(&found), -EPERM);
    chmod(path, 0700);
    if (geteuid() == 0) {
        assert_int_equal(chown(path, 12345, 12345), 0);
        assert_int_equal(rr_cache_dir(&found), -EPERM);
    }
    unsetenv("ROADRUNNER_CACHE_DIR");
    setenv("XDG_CACHE_HOME", dir, 1);
    assert_int_equal(rr_cache_dir(&found), 0);
    snprintf(path, sizeof(path), "%s/roadrunner/aot", dir);
    assert_string_equal(found, path);
    free(found);
    unsetenv("XDG_CACHE_HOME");
}

static void *store_and_load(void *data)
{
    uint8_t key[RR_DIGEST_BYTES], text[65536];

    rr_digest("shared", 6, NULL, 0, key);
    for (int i = 0; i < 40; i++) {
        uint8_t *image = NULL;
        size_t len = 0;

        memset(text, (int)(uintptr_t)data, sizeof(text));
        if (rr_cache_store(dir, key, text, sizeof(text)) != 0)
            return (void *)1;
        if (rr_cache_load(dir, key, &image, &len) != 0 || len != sizeof(text))
            return (void *)2;
        for (size_t k = 1; k < len; k++)
            if (image[k] != image[0])
                return (void *)3;
        free(image);
    }
    return NULL;
}

static void test_writers_and_readers_at_once(void **state)
{
    pthread_t threads[4];

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, store_and_load, (void *)(i + 1)), 0);
    for (size_t i = 0; i < RR_ARRAY_LEN(threads); i++) {
        void *r;

        pthread_join(threads[i], &r);
        assert_null(r);
    }
}

static int open_module(void)
{
    const char *guests = getenv("RR_GUESTS");
    char path[512];
    int fd;

    snprintf(path, sizeof(path), "%s/bench/exit.wasm", guests ? guests : "build/guests");
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

/* What makes containers finds what the worker stored, without the engine; and nothing else. */
static void test_is_found_without_the_engine(void **state)
{
    char path[64], *entry = NULL, first[8];
    int module = open_module(), fd, damaged;
    struct rr_error err;

    (void)state;
    setenv("ROADRUNNER_CACHE_DIR", dir, 1);
    assert_int_equal(rr_cache_open(module, RR_MIB, RR_ENGINE_VERSION), -ENOENT);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", module);
    assert_int_equal(rr_module_prepare(path, rr_abi_define, &entry, &err), 0);
    assert_int_equal(rr_cache_open(module, RR_MIB, "wasmtime 0"), -ENOENT);
    assert_int_equal(rr_cache_open(module, 16, RR_ENGINE_VERSION), -EFBIG);
    fd = rr_cache_open(module, RR_MIB, RR_ENGINE_VERSION);
    assert_true(fd >= 0);
    assert_int_equal(read(fd, first, sizeof(first)), sizeof(first));
    assert_memory_equal(first, "RRAOT", 5);
    close(fd);

    damaged = open(entry, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(damaged, "x", 1, lseek(damaged, 0, SEEK_END) - 1), 1);
    close(damaged);
    assert_int_equal(rr_cache_open(module, RR_MIB, RR_ENGINE_VERSION), -EBADMSG);
    free(entry);
    close(module);
    unsetenv("ROADRUNNER_CACHE_DIR");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_digest),
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_any_damage_is_noticed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_is_found_without_the_engine, setup, teardown),
        cmocka_unit_test_setup_teardown(test_folder, setup, teardown),
        cmocka_unit_test_setup_teardown(test_writers_and_readers_at_once, setup, teardown),
    };

    return cmocka_run_group_tests_name("cache", tests, NULL, NULL);
}
