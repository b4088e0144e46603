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
    };

    return cmocka_run_group_tests_name("oci", tests, NULL, NULL);
}
