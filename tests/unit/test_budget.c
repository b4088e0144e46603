/* SPDX-License-Identifier: Apache-2.0 */
/* What a trust domain may have, over all its processes; and what the machine has. */
#include "test.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/budget.h"
#include "base/util.h"

static void test_limit(void **state)
{
    struct rr_budget b;

    (void)state;
    assert_int_equal(rr_budget_init(&b, 100, 1), 0);
    assert_true(rr_budget_take(&b, 60));
    assert_false(rr_budget_take(&b, 41));
    assert_int_equal(rr_budget_used(&b), 60);
    assert_int_equal(rr_budget_left(&b), 40);
    assert_true(rr_budget_take(&b, 40));
    assert_false(rr_budget_take(&b, 1));
    assert_true(rr_budget_take(&b, 0));
    assert_int_equal(rr_budget_left(&b), 0);
    rr_budget_give(&b, 100);
    assert_int_equal(rr_budget_used(&b), 0);
    assert_false(rr_budget_take(&b, UINT64_MAX)); /* no overflow */
    assert_false(rr_budget_take(&b, 101));
    assert_int_equal(rr_budget_used(&b), 0);
    rr_budget_deinit(&b);
}

static void test_none(void **state)
{
    struct rr_budget b;

    (void)state;
    assert_true(rr_budget_take(NULL, UINT64_MAX));
    rr_budget_give(NULL, 1);
    assert_int_equal(rr_budget_left(NULL), UINT64_MAX);
    assert_int_equal(rr_budget_init(&b, 0, 1), 0);
    assert_true(rr_budget_take(&b, UINT64_MAX));
    assert_int_equal(rr_budget_used(&b), 0);
    assert_int_equal(rr_budget_left(&b), UINT64_MAX);
    rr_budget_deinit(&b);
}

/* Children count, and those that die without giving back are written off. */
static void test_processes(void **state)
{
    struct rr_budget b;
    int fds[2], status;
    char c;
    pid_t pid;

    (void)state;
    assert_int_equal(rr_budget_init(&b, 100, 3), 0);
    assert_true(rr_budget_take(&b, 30));
    assert_int_equal(pipe(fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        b.own = &b.shares[2];
        c = rr_budget_take(&b, 50) && !rr_budget_take(&b, 21) ? 'y' : 'n';
        if (write(fds[1], &c, 1) == 1)
            pause();
        _exit(1);
    }
    assert_int_equal(read(fds[0], &c, 1), 1);
    assert_int_equal(c, 'y');
    assert_int_equal(rr_budget_used(&b), 80);
    assert_false(rr_budget_take(&b, 21));
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(rr_budget_used(&b), 80);
    atomic_store(&b.shares[2].used_bytes, 0);
    assert_true(rr_budget_take(&b, 70));
    close(fds[0]);
    close(fds[1]);
    rr_budget_deinit(&b);
}

static struct rr_budget crowded;
static atomic_int holders, most;

/* There is enough for one of them at a time. */
static void *crowd(void *unused)
{
    for (int n = 0; n < 50000; n++) {
        int now;

        if (!rr_budget_take(&crowded, 7))
            continue;
        now = atomic_fetch_add(&holders, 1) + 1;
        if (now > atomic_load(&most))
            atomic_store(&most, now);
        atomic_fetch_sub(&holders, 1);
        rr_budget_give(&crowded, 7);
    }
    return unused;
}

static void test_threads(void **state)
{
    pthread_t threads[4];

    (void)state;
    assert_int_equal(rr_budget_init(&crowded, 10, 1), 0);
    for (size_t n = 0; n < RR_ARRAY_LEN(threads); n++)
        assert_int_equal(pthread_create(&threads[n], NULL, crowd, NULL), 0);
    for (size_t n = 0; n < RR_ARRAY_LEN(threads); n++)
        pthread_join(threads[n], NULL);
    assert_int_equal(atomic_load(&most), 1);
    assert_int_equal(rr_budget_used(&crowded), 0);
    rr_budget_deinit(&crowded);
}

/* --- the machine ----------------------------------------------------------------------------- */

struct file {
    const char *path, *text;
};

static const struct {
    const char *what;
    uint64_t bytes;
    struct file files[6];
} groups[] = {
    {"nothing there", UINT64_MAX, {{0}}},
    {"version 2",
     1000,
     {{"proc/self/cgroup", "0::/a/b\n"},
      {"sys/fs/cgroup/a/b/memory.max", "1000\n"},
      {"sys/fs/cgroup/a/memory.max", "max\n"}}},
    {"above it",
     500,
     {{"proc/self/cgroup", "0::/a/b\n"},
      {"sys/fs/cgroup/a/b/memory.max", "max\n"},
      {"sys/fs/cgroup/a/memory.max", "500\n"}}},
    {"a container's root",
     700,
     {{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/memory.max", "700\n"}}},
    {"version 1",
     900,
     {{"proc/self/cgroup", "7:cpu,cpuacct:/x\n6:memory:/x/y\n0::/\n"},
      {"sys/fs/cgroup/memory/x/y/memory.limit_in_bytes", "9223372036854771712\n"},
      {"sys/fs/cgroup/memory/x/memory.limit_in_bytes", "900\n"},
      {"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"}}},
    {"no limit",
     UINT64_MAX,
     {{"proc/self/cgroup", "0::/a\n"}, {"sys/fs/cgroup/a/memory.max", "max\n"}}},
    {"nonsense",
     UINT64_MAX,
     {{"proc/self/cgroup", "\n:\n0:\n::\n0::a\n"}, {"sys/fs/cgroup/memory.max", "none\n"}}},
};

static void write_file(const char *root, const struct file *f)
{
    char path[512];
    FILE *to;

    snprintf(path, sizeof(path), "%s/%s", root, f->path);
    for (char *p = strchr(path + strlen(root) + 1, '/'); p; p = strchr(p + 1, '/')) {
        *p = '\0';
        mkdir(path, 0755);
        *p = '/';
    }
    to = fopen(path, "w");
    assert_non_null(to);
    fputs(f->text, to);
    fclose(to);
}

static void test_groups(void **state)
{
    (void)state;
    for (size_t k = 0; k < RR_ARRAY_LEN(groups); k++) {
        char root[] = "/tmp/rr-groups-XXXXXX", command[64];

        print_message("%s\n", groups[k].what);
        assert_non_null(mkdtemp(root));
        for (size_t n = 0; n < RR_ARRAY_LEN(groups[k].files) && groups[k].files[n].path; n++)
            write_file(root, &groups[k].files[n]);
        assert_int_equal(rr_cgroup_memory(root), groups[k].bytes);
        snprintf(command, sizeof(command), "rm -r '%s'", root);
        assert_int_equal(system(command), 0);
    }
    assert_true(rr_machine_memory() > 0);
    assert_true(rr_machine_memory() <=
                (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limit),   cmocka_unit_test(test_none),
        cmocka_unit_test(test_threads), cmocka_unit_test(test_processes),
        cmocka_unit_test(test_groups),
    };

    return cmocka_run_group_tests_name("budget", tests, NULL, NULL);
}
