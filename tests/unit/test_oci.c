/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "oci/oci.h"
#include "shim/shim.h"
#include "shim/ttrpc.h"

static void test_what_is_wrong_is_named(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "is no JSON"},
        {"{} x", "is no JSON"},
        {"[]", "its top level"},
        {"{\"process\": 1}", "process must be an object"},
        {"{\"process\": {\"args\": {}}}", "process.args must be a list"},
        {"{\"process\": {\"args\": [1]}}", "process.args must hold strings"},
        {"{\"process\": {\"args\": [\"a\\u0000\"]}}", "process.args must hold strings"},
        {"{\"process\": {\"env\": [null]}}", "process.env must hold strings"},
        {"{\"root\": {}}", "root.path is missing"},
        {"{\"annotations\": {\"a\": []}}", "annotations must hold strings"},
        {"{\"mounts\": [1]}", "mounts must hold objects"},
        {"{\"mounts\": [{\"options\": \"ro\"}]}", "mounts[].options must be a list"},
    };

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        struct json_object *spec = NULL;
        struct rr_error err = {0};

        assert_int_equal(rr_bundle_parse(cases[i].text, strlen(cases[i].text), &spec, &err),
                         RR_E_INVALID);
        assert_null(spec);
        assert_non_null(strstr(err.text, cases[i].says));
        assert_true(err.hint[0]);
    }
}

static const char wasm[] =
    "{\"ociVersion\":\"1.3.0\",\"process\":{\"args\":[\"/a.wasm\",\"b\"]},"
    "\"annotations\":{\"run.oci.handler\":\"wasm\",\"x\":\"y\"},"
    "\"mounts\":[{\"destination\":\"/proc\"}],\"unknown\":{\"n\":18446744073709551615}}";

static void test_a_program_becomes_the_worker(void **state)
{
    struct json_object *spec = NULL;
    struct rr_error err;
    const char *text;

    (void)state;
    assert_int_equal(rr_bundle_parse(wasm, strlen(wasm), &spec, &err), 0);
    assert_int_equal(rr_bundle_rewrite(spec, 5, 6, &err), 0);
    assert_false(rr_bundle_lower_version(spec, "/usr/sbin/runc"));
    assert_true(rr_bundle_lower_version(spec, "/usr/bin/crun"));
    text = json_object_to_json_string_ext(spec,
                                          JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
    assert_non_null(strstr(text, "[\"/proc/self/fd/5\",\"container\",\"--image-fd\",\"6\",\"--\","
                                 "\"/a.wasm\",\"b\"]"));
    assert_null(strstr(text, "run.oci.handler"));
    assert_non_null(strstr(text, "\"x\":\"y\""));
    assert_non_null(strstr(text, "\"n\":18446744073709551615")); /* what we do not know stays */
    assert_non_null(strstr(text, "\"ociVersion\":\"1.1.0\""));
    json_object_put(spec);
}

/* Links of a root file system lead nowhere else, and nothing but files is opened. */
static void test_files_of_a_root(void **state)
{
    char root[] = "/tmp/rr-oci-XXXXXX", path[128], command[64];
    int fd;

    (void)state;
    assert_non_null(mkdtemp(root));
    snprintf(path, sizeof(path), "%s/m.wasm", root);
    fd = open(path, O_WRONLY | O_CREAT, 0644);
    assert_int_equal(write(fd, "\0asm\1\0\0\0", 8), 8);
    close(fd);
    snprintf(path, sizeof(path), "%s/out", root);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    snprintf(path, sizeof(path), "%s/in", root);
    assert_int_equal(symlink("/m.wasm", path), 0);
    snprintf(path, sizeof(path), "%s/up", root);
    assert_int_equal(symlink("../../../../etc/passwd", path), 0);
    snprintf(path, sizeof(path), "%s/fifo", root);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(rr_rootfs_open(root, "/out"), -ENOENT);
    assert_int_equal(rr_rootfs_open(root, "/up"), -ENOENT);
    assert_int_equal(rr_rootfs_open(root, "/../../etc/passwd"), -ENOENT);
    assert_int_equal(rr_rootfs_open(root, "/fifo"), -EINVAL);
    assert_int_equal(rr_rootfs_open(root, "/"), -EINVAL);
    fd = rr_rootfs_open(root, "/in");
    assert_true(fd >= 0);
    assert_true(rr_is_module_file(fd));
    close(fd);
    snprintf(command, sizeof(command), "rm -rf %s", root);
    assert_int_equal(system(command), 0);
}

static void test_frames(void **state)
{
    uint8_t frame[RR_TTRPC_HEADER + 3] = {0};
    struct rr_ttrpc_frame f;

    (void)state;
    rr_ttrpc_header(frame, 7, RR_TTRPC_REQUEST, 3);
    for (size_t n = 0; n < sizeof(frame); n++)
        assert_int_equal(rr_ttrpc_parse(frame, n, &f), 0);
    assert_int_equal(rr_ttrpc_parse(frame, sizeof(frame), &f), (ssize_t)sizeof(frame));
    assert_int_equal(f.stream, 7);
    assert_int_equal(f.len, 3);
    rr_ttrpc_header(frame, 8, RR_TTRPC_REQUEST, 3);
    assert_int_equal(rr_ttrpc_parse(frame, sizeof(frame), &f), -EPROTO);
    rr_ttrpc_header(frame, 7, RR_TTRPC_REQUEST, RR_TTRPC_MAX_DATA + 1);
    assert_int_equal(rr_ttrpc_parse(frame, sizeof(frame), &f), -EMSGSIZE);
}

static void test_buffer(void **state)
{
    struct rr_buffer b = {0};

    (void)state;
    assert_int_equal(rr_buffer_room(&b, 5000), 0);
    memcpy(b.data, "abcdef", 6);
    b.len = 6;
    rr_buffer_drop(&b, 2);
    assert_int_equal(b.len, 4);
    assert_memory_equal(b.data, "cdef", 4);
    rr_buffer_free(&b);
    assert_null(b.data);
}

static struct json_object *annotated(const char *annotations)
{
    struct json_object *spec = NULL;
    struct rr_error err;
    char text[1024];

    snprintf(text, sizeof(text), "{\"process\":{\"args\":[\"/d/f_b.wasm\"]},\"annotations\":{%s}}",
             annotations);
    assert_int_equal(rr_bundle_parse(text, strlen(text), &spec, &err), 0);
    return spec;
}

static void test_who_gives_a_trust_domain(void **state)
{
#define SPACE "\"io.kubernetes.cri.sandbox-namespace\":\"shop\""
#define POD "\"io.kubernetes.cri.sandbox-id\":\"abc\""
#define PART(x) "\"roadrunner.dev/domain\":\"" x "\""
    static const struct {
        const char *containerd, *domain, *annotations, *key; /* NULL: refused */
    } cases[] = {
        {"k8s.io", NULL, SPACE, "k8s.shop"},
        {"k8s.io", NULL, SPACE "," PART("x"), "k8s.shop+x"},
        {"k8s.io", NULL, SPACE "," POD "," PART("@pod"), "k8s.shop+pod+abc"},
        {"k8s.io", NULL, SPACE "," PART("x/../y"), NULL},
        {"k8s.io", NULL, SPACE "," PART("pod+abc"), NULL},
        {"k8s.io", NULL, "\"io.kubernetes.cri.sandbox-namespace\":\"../etc\"", NULL},
        {"default", NULL, PART("x"), "containerd.default+x"},
        {"default", NULL, PART("@pod"), NULL},
        {"default", NULL, "", ""},
        {NULL, NULL, SPACE "," PART("x"), ""}, /* they may be the image's */
        {NULL, "own", SPACE "," PART("x"), "domain.own+x"},
        {NULL, "own", "", "domain.own"},
        {NULL, ".", "", NULL},
    };
    char key[RR_OCI_DOMAIN];

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        const struct rr_oci_giver giver = {cases[i].containerd, cases[i].domain};
        struct json_object *spec = annotated(cases[i].annotations);
        struct rr_error err;
        int r = rr_oci_domain_key(spec, &giver, key, &err);

        assert_int_equal(r, cases[i].key ? 0 : RR_E_INVALID);
        if (cases[i].key)
            assert_string_equal(key, cases[i].key);
        json_object_put(spec);
    }
}

static void test_the_prototypes_annotations(void **state)
{
    struct json_object *spec =
        annotated("\"secondary.function\":\"true\",\"target.function\":\"/func_c.wasm\","
                  "\"target.address\":\"host:1234\"");
    struct rr_oci_chain c;
    struct rr_error err;

    (void)state;
    assert_int_equal(rr_oci_chain_read(spec, &c, &err), 0);
    assert_string_equal(c.function, "f_b");
    assert_string_equal(c.next, "func_c@host:1234");
    assert_true(c.any);
    rr_oci_chain_deinit(&c);
    json_object_put(spec);
}

/* --- loggers --------------------------------------------------------------------------------- */

static void test_words_of_a_logger(void **state)
{
    static const struct {
        const char *uri, *words[8];
    } cases[] = {
        {"binary:///bin/log", {"/bin/log"}},
        {"binary:///bin/log?", {"/bin/log"}},
        {"binary:///bin/log?a=b", {"/bin/log", "a", "b"}},
        {"binary-v2:///bin/l%20og?a=b+c&d&e=%2Fx=y",
         {"/bin/l og", "a", "b c", "d", "", "e", "/x=y"}},
        {"binary:///a+b?=", {"/a+b", ""}},
        {"binary://bin/log", {NULL}},
        {"binary:///bin/%zz", {NULL}},
        {"binary:///bin/%2", {NULL}},
        {"binary:///bin/%00", {NULL}},
        {"binary", {NULL}},
        {"", {NULL}},
        {"binary:///a?1&2&3&4&5&6&7&8&9&10&11&12&13&14&15&16&17", {NULL}},
    };
    char room[RR_LOGGER_MAX], huge[RR_LOGGER_MAX + 1];
    const char *words[RR_LOGGER_WORDS];

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        size_t n = rr_logger_words(cases[i].uri, room, words), k;

        for (k = 0; cases[i].words[k]; k++) {
            assert_true(k < n);
            assert_string_equal(words[k], cases[i].words[k]);
        }
        assert_int_equal(n, k);
    }
    memset(huge, 'x', sizeof(huge) - 1);
    memcpy(huge, "binary:///", 10);
    huge[sizeof(huge) - 1] = 0;
    assert_int_equal(rr_logger_words(huge, room, words), 0);
    huge[sizeof(huge) - 2] = 0;
    assert_int_equal(rr_logger_words(huge, room, words), 1);
}

/* --- cgroups, of version 2: the machine that tests run on may have the other ------------------ */

static void put(const char *folder, const char *name, const char *text)
{
    char path[300];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

struct told {
    struct rr_loop *loop;
    struct rr_cgroup *cgroup;
    const char *folder;
    unsigned int n, n_oom;
};

static void on_change(void *data, uint32_t events)
{
    struct told *t = data;

    (void)events;
    t->n++;
    t->n_oom += rr_cgroup_oom_happened(t->cgroup);
    if (t->n_oom)
        rr_loop_stop(t->loop);
}

/* First another event, which is no kill. */
static void one_fails(void *data)
{
    const struct told *t = data;

    put(t->folder, "memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 0\n");
}

static void one_is_killed(void *data)
{
    const struct told *t = data;

    put(t->folder, "memory.events", "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\n");
}

static void give_up(void *data)
{
    rr_loop_stop(((struct told *)data)->loop);
}

static void check_stats(const struct rr_cgroup *c)
{
    Rr__Pb__Any any = RR__PB__ANY__INIT;
    Rr__Pb__Metrics2 *m;

    assert_true(rr_cgroup_stats(c, &any));
    assert_non_null(strstr(any.type_url, "io.containerd.cgroups.v2.Metrics"));
    m = rr__pb__metrics2__unpack(NULL, any.value.len, any.value.data);
    assert_non_null(m);
    assert_int_equal(m->pids->current, 3);
    assert_true(m->pids->limit == 0 || m->pids->limit == 100);
    assert_int_equal(m->cpu->usage_usec, 1234567);
    assert_int_equal(m->cpu->throttled_usec, 9);
    assert_int_equal(m->memory->usage, 5000000);
    assert_true(m->memory->usage_limit == UINT64_MAX);
    assert_int_equal(m->memory->anon, 4000000);
    assert_int_equal(m->memory->inactive_file, 77);
    assert_int_equal(m->memory_events->max, 4);
    assert_int_equal(m->memory_events->oom_kill, 0);
    rr__pb__metrics2__free_unpacked(m, NULL);
    free(any.value.data);
}

static void test_cgroups_of_version_2(void **state)
{
    char root[] = "/tmp/rr-cgroup-XXXXXX", folder[64], below[80], file[64], command[64];
    struct rr_cgroup c;
    struct told told = {.cgroup = &c, .folder = folder};
    pid_t *pids = NULL;

    (void)state;
    assert_non_null(mkdtemp(root));
    snprintf(folder, sizeof(folder), "%s/pod", root);
    snprintf(below, sizeof(below), "%s/below", folder);
    snprintf(file, sizeof(file), "%s/of-a-process", root);
    assert_int_equal(mkdir(folder, 0700) | mkdir(below, 0700), 0);
    put(root, "of-a-process", "1:name=systemd:/pod\n0::/pod\n");
    put(folder, "memory.current", "5000000\n");
    put(folder, "memory.max", "max\n");
    put(folder, "memory.stat", "anon 4000000\nfile 9\ninactive_file 77\n");
    put(folder, "memory.events", "low 0\nhigh 0\nmax 4\noom 0\noom_kill 0\n");
    put(folder, "cpu.stat", "usage_usec 1234567\nuser_usec 1\nthrottled_usec 9\n");
    put(folder, "pids.current", "3\n");
    put(folder, "pids.max", "100\n");
    put(folder, "cgroup.procs", "10\n11\n");
    put(below, "cgroup.procs", "12\n");

    rr_cgroup_read(&c, root, file); /* version 2 is there for nothing but names */
    assert_false(c.v2);
    rr_cgroup_free(&c);
    put(root, "cgroup.controllers", "cpu memory pids\n");
    rr_cgroup_read(&c, root, file);
    assert_true(c.v2);
    assert_string_equal(c.memory, folder);
    check_stats(&c);
    assert_int_equal(rr_cgroup_pids(&c, &pids), 3);
    free(pids);

    assert_int_equal(rr_loop_new(&told.loop), 0);
    rr_cgroup_watch_oom(&c, told.loop, on_change, &told);
    assert_true(c.oom_fd >= 0);
    assert_int_equal(rr_loop_after(told.loop, 1, one_fails, &told), 0);
    assert_int_equal(rr_loop_after(told.loop, 50, one_is_killed, &told), 0);
    assert_int_equal(rr_loop_after(told.loop, 20000, give_up, &told), 0);
    assert_int_equal(rr_loop_run(told.loop), 0);
    assert_int_equal(told.n_oom, 1);
    assert_true(told.n >= 2);
    assert_false(rr_cgroup_oom_happened(&c)); /* it was told */
    rr_cgroup_free(&c);
    rr_loop_free(told.loop);
    snprintf(command, sizeof(command), "rm -rf %s", root);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_wrong_is_named),
        cmocka_unit_test(test_a_program_becomes_the_worker),
        cmocka_unit_test(test_files_of_a_root),
        cmocka_unit_test(test_frames),
        cmocka_unit_test(test_buffer),
        cmocka_unit_test(test_who_gives_a_trust_domain),
        cmocka_unit_test(test_the_prototypes_annotations),
        cmocka_unit_test(test_words_of_a_logger),
        cmocka_unit_test(test_cgroups_of_version_2),
    };

    return cmocka_run_group_tests_name("oci", tests, NULL, NULL);
}
