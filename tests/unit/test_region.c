/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "region/region.h"

#define SMALL (64 * RR_MIB)
#define LARGE RR_GIB

struct fixture {
    struct rr_arena *arena;
    uint8_t *window; /* 1 GiB-aligned; readable and writable, as a guest's */
};

static struct rr_arena *new_arena(enum rr_scrub scrub, uint64_t ceiling)
{
    struct rr_arena_options options = {.scrub = scrub, .ceiling_bytes = ceiling};
    struct rr_arena *arena = NULL;
    struct rr_error err;

    assert_int_equal(rr_arena_new(&options, &arena, &err), 0);
    return arena;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->arena = new_arena(RR_SCRUB_DOMAIN, 0);
    f->window = rr_reserve(2 * LARGE, LARGE);
    assert_non_null(f->window);
    assert_int_equal(mprotect(f->window, 2 * LARGE, PROT_READ | PROT_WRITE), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    rr_arena_free(f->arena);
    munmap(f->window, 2 * LARGE);
    free(f);
    return 0;
}

static struct rr_region *get(struct rr_arena *arena, enum rr_backing backing, uint64_t slot,
                             uint64_t bytes)
{
    struct rr_region *region = NULL;
    struct rr_error err;

    assert_int_equal(rr_region_get(arena, backing, slot, bytes, 0, &region, &err), 0);
    return region;
}

static void fill(uint8_t *p, uint64_t bytes, uint8_t seed)
{
    for (uint64_t i = 0; i < bytes; i += 512)
        p[i] = (uint8_t)(seed + i / 512);
}

static void assert_filled(const uint8_t *p, uint64_t bytes, uint8_t seed)
{
    for (uint64_t i = 0; i < bytes; i += 512)
        if (p[i] != (uint8_t)(seed + i / 512))
            fail_msg("byte %llu is %u", (unsigned long long)i, p[i]);
}

static void assert_zero(const uint8_t *p, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i += 512)
        if (p[i])
            fail_msg("byte %llu is %u, not 0", (unsigned long long)i, p[i]);
}

static struct rr_arena_stats stats_of(struct rr_arena *arena)
{
    struct rr_arena_stats s;

    rr_arena_stats(arena, &s);
    return s;
}

/* mremap() of a whole aligned range moves the contents; the old range is empty, and still ours. */
static void test_move(void **state)
{
    static const struct {
        enum rr_backing backing;
        uint64_t slot, bytes;
    } cases[] = {{RR_ANON, SMALL, 1},
                 {RR_ANON, SMALL, 5 * RR_MIB},
                 {RR_ANON, SMALL, SMALL},
                 {RR_ANON, LARGE, 3 * RR_MIB},
                 {RR_ANON, LARGE, 200 * RR_MIB},
                 {RR_MEMFD, SMALL, 5 * RR_MIB},
                 {RR_MEMFD, LARGE, 100 * RR_MIB}};
    struct fixture *f = *state;

    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        struct rr_region *r = get(f->arena, cases[i].backing, cases[i].slot, cases[i].bytes);
        uint8_t *home = rr_region_data(r), *second = f->window + LARGE;
        struct rr_error err;

        assert_int_equal((uintptr_t)home % cases[i].slot, 0);
        assert_true(rr_region_parked(r));
        fill(home, cases[i].bytes, 7);
        assert_int_equal(rr_region_move(r, f->window, cases[i].bytes, &err), 0);
        assert_ptr_equal(rr_region_data(r), f->window);
        assert_false(rr_region_parked(r));
        assert_filled(f->window, cases[i].bytes, 7);
        if (cases[i].backing == RR_ANON) /* a memfd shows there still, to us alone */
            assert_zero(home, cases[i].bytes);

        fill(f->window, cases[i].bytes, 9);
        assert_int_equal(rr_region_move(r, NULL, cases[i].bytes, &err), 0);
        assert_ptr_equal(rr_region_data(r), home);
        assert_zero(f->window, cases[i].bytes);
        assert_filled(home, cases[i].bytes, 9);
        /* the sender may scribble there: it is other memory */
        fill(f->window, cases[i].bytes, 1);
        assert_filled(home, cases[i].bytes, 9);

        assert_int_equal(rr_region_move(r, second, cases[i].bytes, &err), 0);
        assert_filled(second, cases[i].bytes, 9);
        rr_region_put(r); /* from where it is */
        assert_zero(second, cases[i].bytes);
    }
    assert_int_equal(stats_of(f->arena).live_regions, 0);
    assert_int_equal(stats_of(f->arena).copied_bytes, 0);
}

/* F_SEAL_SHRINK|F_SEAL_GROW: a mapped memfd cannot be cut under us. Found by its name in /proc. */
static void test_memfd_is_sealed(void **state)
{
    struct fixture *f = *state;
    struct rr_region *r = get(f->arena, RR_MEMFD, SMALL, 1);
    int found = 0;

    for (int fd = 3; fd < 64; fd++) {
        char path[64], link[128];
        ssize_t n;

        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        n = readlink(path, link, sizeof(link) - 1);
        if (n < 0)
            continue;
        link[n] = 0;
        if (!strstr(link, "roadrunner-region"))
            continue;
        found++;
        assert_int_equal(fcntl(fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW),
                         F_SEAL_SHRINK | F_SEAL_GROW);
        assert_int_equal(ftruncate(fd, 0), -1);
        assert_int_equal(errno, EPERM);
    }
    assert_int_equal(found, 1);
    rr_region_put(r);
}

static void test_views_are_private(void **state)
{
    struct fixture *f = *state;
    uint64_t bytes = 5 * RR_MIB;
    struct rr_region *r = get(f->arena, RR_MEMFD, SMALL, bytes), *a = NULL, *b = NULL;
    uint8_t *home = rr_region_data(r);
    struct rr_error err;

    fill(home, bytes, 3);
    assert_int_equal(rr_region_view(r, f->window, bytes, &a, &err), 0);
    assert_true(rr_region_shared(r));
    assert_int_equal(rr_region_view(r, NULL, bytes, &b, &err), 0);
    assert_filled(f->window, bytes, 3);
    assert_filled(rr_region_data(b), bytes, 3);
    fill(f->window, bytes, 77);
    assert_filled(rr_region_data(b), bytes, 3);
    assert_filled(home, bytes, 3);
    /* a view moves with what was written in it */
    assert_int_equal(rr_region_move(a, NULL, bytes, &err), 0);
    assert_zero(f->window, bytes);
    assert_filled(rr_region_data(a), bytes, 77);
    rr_region_put(r); /* the views hold it */
    assert_filled(rr_region_data(b), bytes, 3);
    rr_region_put(a);
    assert_int_equal(stats_of(f->arena).live_regions, 2);
    rr_region_put(b);
    assert_int_equal(stats_of(f->arena).live_regions, 0);
}

static void test_pool_reuses_and_scrubs(void **state)
{
    static const struct {
        enum rr_scrub scrub;
        uint64_t first, second;
        bool zero;
    } cases[] = {{RR_SCRUB_DOMAIN, 1, 1, false},
                 {RR_SCRUB_DOMAIN, 1, 2, true},
                 {RR_SCRUB_ALWAYS, 1, 1, true}};

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++)
        for (int backing = RR_ANON; backing <= RR_MEMFD; backing++) {
            struct rr_arena *arena = new_arena(cases[i].scrub, 0);
            struct rr_region *r = NULL;
            struct rr_error err;
            uint8_t *home;

            assert_int_equal(rr_region_get(arena, (enum rr_backing)backing, SMALL, RR_MIB,
                                           cases[i].first, &r, &err),
                             0);
            home = rr_region_data(r);
            /* through a window, as a guest would */
            uint8_t *window = rr_reserve(SMALL, SMALL);
            mprotect(window, SMALL, PROT_READ | PROT_WRITE);
            assert_int_equal(rr_region_move(r, window, RR_MIB, &err), 0);
            fill(window, RR_MIB, 1);
            window[40 * RR_MIB] = 5; /* beyond the payload */
            rr_region_put(r);
            assert_int_equal(stats_of(arena).warm_regions, 1);
            assert_int_equal(rr_region_get(arena, (enum rr_backing)backing, SMALL, RR_MIB,
                                           cases[i].second, &r, &err),
                             0);
            assert_ptr_equal(rr_region_data(r), home);
            if (cases[i].zero)
                assert_zero(home, RR_MIB);
            else
                assert_filled(home, RR_MIB, 1);
            assert_int_equal(home[40 * RR_MIB], 0);
            rr_region_put(r);
            munmap(window, SMALL);
            rr_arena_free(arena);
        }
}

/* One domain's policy is not another's, and can be changed. */
static void test_scrub_by_domain(void **state)
{
    struct fixture *f = *state;
    struct rr_region *r;
    struct rr_error err;

    assert_int_equal(rr_arena_set_scrub(f->arena, 7, RR_SCRUB_ALWAYS), 0);
    for (uint64_t domain = 6; domain <= 8; domain++) {
        assert_int_equal(rr_region_get(f->arena, RR_ANON, SMALL, RR_MIB, domain, &r, &err), 0);
        assert_int_equal(rr_region_move(r, f->window, RR_MIB, &err), 0);
        fill(f->window, RR_MIB, 3);
        rr_region_put(r);
        assert_int_equal(rr_region_get(f->arena, RR_ANON, SMALL, RR_MIB, domain, &r, &err), 0);
        if (domain == 7)
            assert_zero(rr_region_data(r), RR_MIB);
        else
            assert_filled(rr_region_data(r), RR_MIB, 3);
        rr_region_put(r);
    }
    assert_int_equal(rr_arena_set_scrub(f->arena, 7, RR_SCRUB_DOMAIN), 0);
    assert_int_equal(rr_region_get(f->arena, RR_ANON, SMALL, RR_MIB, 7, &r, &err), 0);
    assert_int_equal(rr_region_move(r, f->window, RR_MIB, &err), 0);
    fill(f->window, RR_MIB, 4);
    rr_region_put(r);
    assert_int_equal(rr_region_get(f->arena, RR_ANON, SMALL, RR_MIB, 7, &r, &err), 0);
    assert_filled(rr_region_data(r), RR_MIB, 4);
    rr_region_put(r);
}

static void test_accounts(void **state)
{
    struct fixture *f = *state;
    struct rr_region *a = get(f->arena, RR_ANON, SMALL, 10 * RR_MIB);
    struct rr_region *b = get(f->arena, RR_ANON, LARGE, 30 * RR_MIB);
    struct rr_error err;

    assert_int_equal(stats_of(f->arena).live_bytes, 40 * RR_MIB);
    assert_int_equal(rr_region_set_bytes(a, 20 * RR_MIB, NULL), 0);
    assert_int_equal(stats_of(f->arena).live_bytes, 50 * RR_MIB);
    assert_int_equal(rr_region_set_bytes(a, 1, NULL), 0);
    rr_region_move(b, f->window, 30 * RR_MIB, &err);
    rr_region_put(b);
    assert_int_equal(stats_of(f->arena).live_bytes, 1);
    assert_int_equal(stats_of(f->arena).peak_bytes, 50 * RR_MIB);
    assert_int_equal(stats_of(f->arena).warm_bytes, 30 * RR_MIB);
    rr_region_put(a);
    assert_int_equal(rr_arena_trim(f->arena, 0), 30 * RR_MIB);
    assert_int_equal(stats_of(f->arena).warm_bytes, 0);
    rr_region_put(NULL);
}

static uint64_t resident(const uint8_t *p, uint64_t bytes)
{
    unsigned char *vec = malloc(bytes / 4096);
    uint64_t n = 0;

    assert_int_equal(mincore((void *)(uintptr_t)p, bytes, vec), 0);
    for (uint64_t i = 0; i < bytes / 4096; i++)
        n += (vec[i] & 1) * 4096u;
    free(vec);
    return n;
}

static void test_warm_and_ceiling(void **state)
{
    struct rr_arena *arena = new_arena(RR_SCRUB_DOMAIN, 24 * RR_MIB);
    struct rr_region *r;

    (void)state;
    assert_int_equal(rr_arena_warm(arena, RR_ANON, SMALL, 16 * RR_MIB, 1), 0);
    rr_arena_settle(arena);
    assert_int_equal(stats_of(arena).warm_bytes, 16 * RR_MIB);
    r = get(arena, RR_ANON, SMALL, 16 * RR_MIB);
    assert_int_equal(resident(rr_region_data(r), 16 * RR_MIB), 16 * RR_MIB);
    rr_region_put(r);
    /* two would be 32 MiB: over the ceiling, so one is given back */
    assert_int_equal(rr_arena_warm(arena, RR_ANON, SMALL, 16 * RR_MIB, 2), 0);
    rr_arena_settle(arena);
    assert_true(stats_of(arena).warm_bytes <= 24 * RR_MIB);
    assert_int_equal(stats_of(arena).warm_regions, 2);
    assert_true(stats_of(arena).trims > 0);
    rr_arena_free(arena);
}

/* What was wanted at once is not kept for ever; what is in use stays warm. */
static void test_idle(void **state)
{
    const struct rr_arena_options options = {.ceiling_bytes = RR_GIB, .idle_ns = 50000000};
    static const enum rr_backing backings[] = {RR_ANON, RR_MEMFD};
    struct fixture *f = *state;

    for (size_t n = 0; n < RR_ARRAY_LEN(backings); n++) {
        struct rr_region *r[4];
        struct rr_arena *arena;
        struct rr_error err;

        assert_int_equal(rr_arena_new(&options, &arena, &err), 0);
        for (size_t k = 0; k < RR_ARRAY_LEN(r); k++) {
            r[k] = get(arena, backings[n], SMALL, 2 * RR_MIB);
            memset(rr_region_data(r[k]), 1, 2 * RR_MIB);
            assert_int_equal(rr_region_move(r[k], f->window, 2 * RR_MIB, &err), 0);
            assert_int_equal(rr_region_move(r[k], NULL, 0, &err), 0);
        }
        for (size_t k = 0; k < RR_ARRAY_LEN(r); k++)
            rr_region_put(r[k]);
        for (int k = 0; k < 10; k++) /* all were wanted just now */
            rr_region_put(get(arena, backings[n], SMALL, 2 * RR_MIB));
        assert_int_equal(stats_of(arena).warm_bytes, 8 * RR_MIB);
        usleep(60000);
        for (int k = 0; k < 20; k++) {
            r[0] = get(arena, backings[n], SMALL, 2 * RR_MIB);
            assert_int_equal(rr_region_data(r[0])[RR_MIB], 1); /* it is the warm one */
            rr_region_put(r[0]);
            usleep(1000);
        }
        assert_int_equal(stats_of(arena).warm_bytes, 2 * RR_MIB);
        assert_int_equal(stats_of(arena).warm_regions, 4);
        assert_int_equal(stats_of(arena).trims, 3);
        rr_arena_free(arena);
    }
}

/* A pair of connected TCP sockets: urgent data on one is POLLPRI on the other, as from PSI. */
static void urgent_pair(int fds[2])
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(listener, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&a, &len), 0);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fds[0], (struct sockaddr *)&a, sizeof(a)), 0);
    fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fds[1] >= 0);
    close(listener);
}

static void test_pressure_gives_the_pool_back(void **state)
{
    struct rr_arena_options options = {.watch_pressure = true};
    struct rr_arena *arena;
    struct rr_region *live;
    struct rr_error err;
    int fds[2];

    (void)state;
    urgent_pair(fds);
    options.pressure_fd = fds[1];
    assert_int_equal(rr_arena_new(&options, &arena, &err), 0);
    live = get(arena, RR_ANON, SMALL, RR_MIB);
    fill(rr_region_data(live), RR_MIB, 3);
    rr_arena_warm(arena, RR_ANON, SMALL, 16 * RR_MIB, 1);
    rr_arena_settle(arena);
    assert_int_equal(stats_of(arena).warm_bytes, 16 * RR_MIB);
    usleep(20000);
    assert_int_equal(stats_of(arena).warm_bytes, 16 * RR_MIB); /* not without pressure */
    assert_int_equal(send(fds[0], "!", 1, MSG_OOB), 1);
    for (int i = 0; i < 10000 && stats_of(arena).warm_bytes; i++)
        usleep(1000);
    assert_int_equal(stats_of(arena).warm_bytes, 0);
    assert_true(stats_of(arena).trims > 0);
    assert_filled(rr_region_data(live), RR_MIB, 3);
    rr_region_put(live);
    rr_arena_free(arena);
    close(fds[0]);
    close(fds[1]);
}

/* What is live stays within the budget, and what is warm within what that leaves. */
static void test_budget(void **state)
{
    struct rr_arena_options options = {0};
    struct rr_region *a, *b = NULL, *view;
    struct rr_arena *arena;
    struct rr_error err;
    struct rr_budget budget;

    (void)state;
    assert_int_equal(rr_budget_init(&budget, 10 * RR_MIB, 1), 0);
    options.budget = &budget;
    assert_int_equal(rr_arena_new(&options, &arena, &err), 0);
    a = get(arena, RR_MEMFD, RR_SLOT_SMALL, 6 * RR_MIB);
    assert_int_equal(rr_budget_used(&budget), 6 * RR_MIB);
    assert_int_equal(rr_region_get(arena, RR_ANON, RR_SLOT_SMALL, 4 * RR_MIB + 1, 0, &b, &err),
                     RR_E_SYSTEM);
    assert_non_null(strstr(err.text, "6 MiB of 10 MiB"));
    assert_null(b);
    assert_int_equal(rr_region_set_bytes(a, 11 * RR_MIB, &err), RR_E_SYSTEM);
    assert_int_equal(rr_budget_used(&budget), 6 * RR_MIB);
    assert_int_equal(rr_region_set_bytes(a, 10 * RR_MIB, &err), 0);
    assert_int_equal(rr_region_set_bytes(a, 8 * RR_MIB, &err), 0);
    assert_int_equal(rr_budget_used(&budget), 8 * RR_MIB);
    assert_int_equal(rr_region_view(a, NULL, 8 * RR_MIB, &view, &err), 0); /* of the same pages */
    assert_int_equal(rr_budget_used(&budget), 8 * RR_MIB);
    rr_region_put(view);
    assert_int_equal(rr_budget_used(&budget), 8 * RR_MIB);
    rr_region_put(a);
    assert_int_equal(rr_budget_used(&budget), 0);

    a = get(arena, RR_ANON, RR_SLOT_SMALL, 8 * RR_MIB);
    fill(rr_region_data(a), 8 * RR_MIB, 1);
    assert_int_equal(rr_arena_warm(arena, RR_ANON, RR_SLOT_SMALL, 8 * RR_MIB, 1), 0);
    rr_arena_settle(arena);
    assert_in_range(stats_of(arena).warm_bytes, 0, 2 * RR_MIB);
    rr_region_put(a);
    assert_int_equal(rr_arena_warm(arena, RR_ANON, RR_SLOT_SMALL, 8 * RR_MIB, 1), 0);
    rr_arena_settle(arena);
    assert_in_range(stats_of(arena).warm_bytes, 8 * RR_MIB, 10 * RR_MIB);
    a = get(arena, RR_MEMFD, RR_SLOT_SMALL, 9 * RR_MIB);
    assert_in_range(stats_of(arena).warm_bytes, 0, RR_MIB);
    rr_region_put(a);
    rr_arena_free(arena);
    assert_int_equal(rr_budget_used(&budget), 0);
    rr_budget_deinit(&budget);
}

static void test_limits(void **state)
{
    struct fixture *f = *state;
    struct rr_region *r = (struct rr_region *)8;
    struct rr_error err;

    assert_int_equal(rr_region_get(f->arena, RR_ANON, SMALL, SMALL + 1, 0, &r, &err), RR_E_LIMIT);
    assert_ptr_equal(r, (struct rr_region *)8);
    assert_non_null(strstr(err.text, "64 MiB"));
    assert_true(err.hint[0]);
}

static void ignore(void *data, struct rr_region *region)
{
    (void)data;
    (void)region;
}

/* What a peer lends must not be able to turn a load into SIGBUS. */
static void test_import_refuses(void **state)
{
    static const struct {
        const char *what;
        unsigned int flags, seals;
        uint64_t bytes, says;
        bool read_only;
        int want;
    } cases[] = {
        {"good", 0, F_SEAL_SHRINK | F_SEAL_GROW, SMALL, SMALL, false, 0},
        {"unsealed", 0, 0, SMALL, SMALL, false, RR_E_INVALID},
        {"may shrink", 0, F_SEAL_GROW, SMALL, SMALL, false, RR_E_INVALID},
        {"may grow", 0, F_SEAL_SHRINK, SMALL, SMALL, false, RR_E_INVALID},
        {"small", 0, F_SEAL_SHRINK | F_SEAL_GROW, SMALL - 4096, SMALL, false, RR_E_INVALID},
        {"large", 0, F_SEAL_SHRINK | F_SEAL_GROW, LARGE, SMALL, false, RR_E_INVALID},
        {"odd slot", 0, F_SEAL_SHRINK | F_SEAL_GROW, 4096, 4096, false, RR_E_INVALID},
        {"write-sealed", 0, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE, SMALL, SMALL, false,
         RR_E_INVALID},
        {"read-only", 0, F_SEAL_SHRINK | F_SEAL_GROW, SMALL, SMALL, true, RR_E_INVALID},
        {"hugetlb", MFD_HUGETLB, F_SEAL_SHRINK | F_SEAL_GROW, SMALL, SMALL, false, RR_E_INVALID},
    };
    struct fixture *f = *state;

    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        int fd = memfd_create("peer", MFD_CLOEXEC | MFD_ALLOW_SEALING | cases[i].flags);
        struct rr_region *r = NULL;
        struct rr_error err = {0};
        char path[64];
        int got;

        assert_true(fd >= 0);
        assert_int_equal(ftruncate(fd, (off_t)cases[i].bytes), 0);
        assert_int_equal(fcntl(fd, F_ADD_SEALS, cases[i].seals), 0);
        if (cases[i].read_only) {
            int writable = fd;

            snprintf(path, sizeof(path), "/proc/self/fd/%d", writable);
            fd = open(path, O_RDONLY | O_CLOEXEC);
            close(writable);
        }
        got = rr_region_import(f->arena, fd, cases[i].says, ignore, NULL, &r, &err);
        if (got != cases[i].want)
            fail_msg("%s: %d: %s", cases[i].what, got, err.text);
        if (got)
            close(fd);
        else
            rr_region_close(r);
    }
}

static void test_move_and_swap_pages(void **state)
{
    static const uint64_t offsets[] = {0, 4096, 2 * RR_MIB, 3 * RR_MIB + 8192};
    struct fixture *f = *state;

    for (size_t i = 0; i < RR_ARRAY_LEN(offsets); i++) {
        uint8_t *a = f->window + offsets[i], *b = f->window + LARGE + offsets[i];
        uint64_t len = 5 * RR_MIB;

        fill(a, len, 1);
        fill(b, len, 2);
        assert_int_equal(rr_region_swap_pages(f->arena, a, b, len), 0);
        assert_filled(a, len, 2);
        assert_filled(b, len, 1);
        /* the same again crosses no border of a mapping */
        assert_int_equal(rr_region_swap_pages(f->arena, a, b, len), 0);
        assert_filled(a, len, 1);
        assert_int_equal(rr_region_move_pages(f->arena, b, a, len), 0);
        assert_filled(b, len, 1);
        assert_zero(a, len);
        /* across borders it copies, and the contents are right all the same */
        fill(a, 2 * len, 5);
        rr_region_swap_pages(f->arena, b, a, 2 * len);
        assert_filled(b, 2 * len, 5);
        assert_int_equal(mmap(f->window, 2 * LARGE, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
                              0) == MAP_FAILED,
                         0);
    }
}

static void test_reset_mends_a_patched_region(void **state)
{
    struct fixture *f = *state;
    struct rr_region *r = get(f->arena, RR_ANON, SMALL, 8 * RR_MIB);
    struct rr_error err;

    fill(f->window, 4 * RR_MIB, 1);
    rr_region_move_pages(f->arena, rr_region_data(r) + RR_MIB, f->window + RR_MIB, RR_MIB);
    assert_int_equal(rr_region_reset(r), 0);
    assert_zero(rr_region_data(r), 8 * RR_MIB);
    assert_int_equal(rr_region_move(r, f->window + LARGE, 8 * RR_MIB, &err), 0);
    assert_int_equal(stats_of(f->arena).copies, 0);
    rr_region_put(r);
}

/* No hole: while regions move, another thread's mmap() must never land in a range that was left. */
struct intruder {
    atomic_bool stop;
    uint8_t *from, *to;
    unsigned int hits;
};

static void *intrude(void *data)
{
    struct intruder *in = data;

    while (!atomic_load(&in->stop)) {
        uint8_t *p =
            mmap(NULL, SMALL, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (p == MAP_FAILED)
            continue;
        in->hits += p < in->to && p + SMALL > in->from;
        munmap(p, SMALL);
    }
    return NULL;
}

static void test_no_hole(void **state)
{
    struct fixture *f = *state;
    struct intruder in = {.from = f->window, .to = f->window + 2 * LARGE};
    struct rr_error err;
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, intrude, &in), 0);
    for (int i = 0; i < 500; i++) {
        struct rr_region *r = get(f->arena, i % 2 ? RR_ANON : RR_MEMFD, SMALL, RR_MIB);

        rr_region_move(r, f->window, RR_MIB, &err);
        f->window[0] = 1;
        rr_region_move(r, NULL, RR_MIB, &err);
        f->window[0] = 2; /* would fault in a hole */
        rr_region_move(r, f->window + LARGE, RR_MIB, &err);
        assert_int_equal(f->window[LARGE], 1);
        rr_region_put(r);
    }
    atomic_store(&in.stop, true);
    pthread_join(thread, NULL);
    assert_int_equal(in.hits, 0);
}

static void *churn(void *data)
{
    struct rr_arena *arena = data;
    uint8_t *window = rr_reserve(SMALL, SMALL);
    struct rr_error err;

    mprotect(window, SMALL, PROT_READ | PROT_WRITE);
    for (int i = 0; i < 200; i++) {
        struct rr_region *r = NULL, *view = NULL;
        enum rr_backing backing = i % 3 ? RR_ANON : RR_MEMFD;

        if (rr_region_get(arena, backing, SMALL, RR_MIB, 0, &r, &err) != 0)
            return (void *)1;
        rr_region_data(r)[0] = (uint8_t)i;
        if (backing == RR_MEMFD && rr_region_view(r, window, RR_MIB, &view, &err) != 0)
            return (void *)1;
        if (backing == RR_ANON && rr_region_move(r, window, RR_MIB, &err) != 0)
            return (void *)1;
        if (window[0] != (uint8_t)i)
            return (void *)1;
        rr_region_put(view);
        rr_region_put(r);
        if (i % 50 == 0)
            rr_arena_trim(arena, 0);
    }
    munmap(window, SMALL);
    return NULL;
}

static void test_threads(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[4];

    rr_arena_warm(f->arena, RR_ANON, SMALL, RR_MIB, 4);
    for (size_t i = 0; i < RR_ARRAY_LEN(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, churn, f->arena), 0);
    for (size_t i = 0; i < RR_ARRAY_LEN(threads); i++) {
        void *bad;

        pthread_join(threads[i], &bad);
        assert_null(bad);
    }
    rr_arena_settle(f->arena);
    assert_int_equal(stats_of(f->arena).live_regions, 0);
}

/* --- mremap() denied, as a container's seccomp profile may do --------------------------------- */

static int deny_mremap(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mremap, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = RR_ARRAY_LEN(code), .filter = code};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static bool holds(const uint8_t *p, uint64_t bytes, uint8_t seed)
{
    for (uint64_t i = 0; i < bytes; i += 512)
        if (p[i] != (uint8_t)(seed + i / 512))
            return false;
    return true;
}

/* In the child. Returns the number of the check that failed, or 0. */
static int copying_child(struct fixture *f, enum rr_backing backing)
{
    struct rr_region *r = get(f->arena, backing, SMALL, 3 * RR_MIB);
    uint8_t *home = rr_region_data(r);
    struct rr_error err;
    uint8_t zero[4096] = {0};

    if (deny_mremap())
        return 1;
    fill(home, 3 * RR_MIB, 4);
    for (int i = 0; i < 3; i++) {
        if (rr_region_move(r, f->window, 3 * RR_MIB, &err) || !holds(f->window, 3 * RR_MIB, 4))
            return 2;
        if (memcmp(home, zero, sizeof(zero)) != 0)
            return 3;
        if (rr_region_move(r, NULL, 3 * RR_MIB, &err) || !holds(home, 3 * RR_MIB, 4))
            return 4;
        if (memcmp(f->window, zero, sizeof(zero)) != 0)
            return 5;
    }
    if (rr_region_swap_pages(f->arena, f->window, home, 8192) != 8192 || !holds(f->window, 8192, 4))
        return 6;
    rr_region_put(r);
    if (!stats_of(f->arena).copying || stats_of(f->arena).copied_bytes < 18 * RR_MIB)
        return 7;
    return stats_of(f->arena).live_regions ? 8 : 0;
}

static void test_copies_when_mremap_is_denied(void **state)
{
    struct fixture *f = *state;

    for (int backing = RR_ANON; backing <= RR_MEMFD; backing++) {
        char text[4096];
        int out[2], status;
        ssize_t n, len = 0;
        pid_t pid;

        assert_int_equal(pipe(out), 0);
        pid = fork();
        if (pid == 0) {
            dup2(out[1], 2);
            _exit(copying_child(f, (enum rr_backing)backing));
        }
        close(out[1]);
        while ((n = read(out[0], text + len, sizeof(text) - 1 - (size_t)len)) > 0)
            len += n;
        text[len] = 0;
        close(out[0]);
        waitpid(pid, &status, 0);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
        /* it says so, once */
        char *said = strstr(text, "refuses to move pages");
        assert_non_null(said);
        assert_null(strstr(said + 1, "refuses to move pages"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_move, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memfd_is_sealed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_views_are_private, setup, teardown),
        cmocka_unit_test(test_pool_reuses_and_scrubs),
        cmocka_unit_test_setup_teardown(test_scrub_by_domain, setup, teardown),
        cmocka_unit_test_setup_teardown(test_accounts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_idle, setup, teardown),
        cmocka_unit_test(test_warm_and_ceiling),
        cmocka_unit_test(test_pressure_gives_the_pool_back),
        cmocka_unit_test_setup_teardown(test_limits, setup, teardown),
        cmocka_unit_test(test_budget),
        cmocka_unit_test_setup_teardown(test_import_refuses, setup, teardown),
        cmocka_unit_test_setup_teardown(test_move_and_swap_pages, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reset_mends_a_patched_region, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_hole, setup, teardown),
        cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_copies_when_mremap_is_denied, setup, teardown),
    };

    return cmocka_run_group_tests_name("region", tests, NULL, NULL);
}
