/* SPDX-License-Identifier: Apache-2.0 */
/* What hand-offs cost on this machine: moves of regions, with memcpy as the peer in the same run.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"
#include "cli/cli.h"

#define MAX_SIZES 16

struct bench {
    uint64_t sizes[MAX_SIZES];
    size_t n_sizes;
    unsigned int repeat;
    bool json;
    struct cli_progress progress;
};

struct figures {
    uint64_t size, move_ns, copy_ns, view_ns;
};

static int parse_size(const char *text, uint64_t *ret)
{
    static const struct {
        const char *suffix;
        uint64_t factor;
    } units[] = {{"", 1},         {"B", 1},          {"K", 1u << 10}, {"KiB", 1u << 10},
                 {"M", 1u << 20}, {"MiB", 1u << 20}, {"G", 1u << 30}, {"GiB", 1u << 30}};
    char *end;
    uint64_t n;

    errno = 0;
    n = strtoull(text, &end, 10);
    for (size_t k = 0; k < RR_ARRAY_LEN(units); k++)
        if (end != text && *text != '-' && !errno && strcmp(end, units[k].suffix) == 0 && n > 0 &&
            n <= RR_GIB / units[k].factor) {
            *ret = n * units[k].factor;
            return 0;
        }
    return cli_usage(&cli_bench, "'%s' is not a size from 1 to 1GiB", text);
}

static int parse_sizes(struct bench *b, char *list)
{
    b->n_sizes = 0;
    for (char *save, *one = strtok_r(list, ",", &save); one; one = strtok_r(NULL, ",", &save)) {
        if (b->n_sizes == MAX_SIZES)
            return cli_usage(&cli_bench, "at most %d sizes", MAX_SIZES);
        if (parse_size(one, &b->sizes[b->n_sizes++]))
            return RR_E_USAGE;
    }
    return b->n_sizes ? 0 : cli_usage(&cli_bench, "--sizes needs a list like 1MiB,100MiB");
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static uint64_t median(uint64_t *v, size_t n)
{
    qsort(v, n, sizeof(*v), compare);
    return v[n / 2];
}

/* A round: region -> window a -> home -> window b, as between two functions; and the memcpy. */
static int one_round(struct rr_arena *arena, uint8_t *windows[2], uint64_t slot, uint64_t size,
                     uint64_t ns[3], struct rr_error *err)
{
    struct rr_region *region = NULL, *copy = NULL, *file = NULL, *view = NULL;
    uint64_t t0;
    int r = rr_region_get(arena, RR_ANON, slot, size, 0, &region, err);

    if (r == 0)
        r = rr_region_move(region, windows[0], size, err);
    if (r == 0) {
        memset(windows[0], 1, size);
        t0 = rr_now_ns();
        r = rr_region_move(region, NULL, size, err);
        if (r == 0)
            r = rr_region_move(region, windows[1], size, err);
        ns[0] = rr_now_ns() - t0;
    }
    if (r == 0)
        r = rr_region_get(arena, RR_ANON, slot, size, 0, &copy, err);
    if (r == 0) {
        memset(rr_region_data(copy), 1, size);
        t0 = rr_now_ns();
        memcpy(rr_region_data(copy), windows[1], size);
        ns[1] = rr_now_ns() - t0;
        r = rr_region_get(arena, RR_MEMFD, slot, size, 0, &file, err);
    }
    if (r == 0) {
        t0 = rr_now_ns();
        r = rr_region_view(file, windows[0], size, &view, err);
        ns[2] = rr_now_ns() - t0;
    }
    rr_region_put(view);
    rr_region_put(file);
    rr_region_put(copy);
    rr_region_put(region);
    return r;
}

static int measure(struct bench *b, struct rr_arena *arena, uint8_t *windows[2], uint64_t size,
                   size_t done, struct figures *ret, struct rr_error *err)
{
    uint64_t slot = size <= RR_SLOT_SMALL ? RR_SLOT_SMALL : RR_SLOT_LARGE;
    uint64_t *ns = calloc(3 * (size_t)b->repeat, sizeof(*ns)), round[3] = {0};
    int r = ns ? 0 : rr_error_no_memory(err);

    for (unsigned int n = 0; n <= b->repeat && r == 0; n++) { /* round 0 warms */
        r = one_round(arena, windows, slot, size, round, err);
        for (size_t k = 0; k < 3 && n > 0; k++)
            ns[k * b->repeat + n - 1] = round[k];
        cli_progress_show(&b->progress, "measuring", done * (b->repeat + 1) + n,
                          b->n_sizes * (b->repeat + 1));
    }
    if (r == 0)
        *ret = (struct figures){size, median(ns, b->repeat), median(ns + b->repeat, b->repeat),
                                median(ns + 2 * (size_t)b->repeat, b->repeat)};
    free(ns);
    return r;
}

static void print_figures(const struct bench *b, const struct figures *all, bool copying)
{
    static const char *const head[] = {"payload", "hand-off", "memcpy", "ratio", "view"};
    struct cli_table t = {0};

    cli_table_row(&t, head, 5);
    for (size_t n = 0; n < b->n_sizes; n++) {
        char ratio[32];

        snprintf(ratio, sizeof(ratio), "%.1fx",
                 (double)all[n].copy_ns / (double)(all[n].move_ns ? all[n].move_ns : 1));

        const char *row[] = {rr_bytes_text(all[n].size), rr_duration_text(all[n].move_ns),
                             rr_duration_text(all[n].copy_ns), ratio,
                             rr_duration_text(all[n].view_ns)};

        cli_table_row(&t, row, 5);
    }
    cli_table_print(&t, stdout, "rrrrr");
    printf("Medians of %u. hand-off: out of one window into another; memcpy: into warm memory;\n"
           "view: one copy-on-write mapping of a fan-out.%s\n",
           b->repeat, copying ? " This kernel refuses to move pages: hand-offs copy." : "");
}

static void print_json(const struct bench *b, const struct figures *all, bool copying)
{
    struct json_object *o = json_object_new_object(), *list = json_object_new_array();

    for (size_t n = 0; n < b->n_sizes; n++) {
        struct json_object *one = json_object_new_object();

        json_object_object_add(one, "payload_bytes", json_object_new_int64((int64_t)all[n].size));
        json_object_object_add(one, "handoff_ns", json_object_new_int64((int64_t)all[n].move_ns));
        json_object_object_add(one, "memcpy_ns", json_object_new_int64((int64_t)all[n].copy_ns));
        json_object_object_add(one, "view_ns", json_object_new_int64((int64_t)all[n].view_ns));
        json_object_array_add(list, one);
    }
    json_object_object_add(o, "repeat", json_object_new_int64(b->repeat));
    json_object_object_add(o, "copying", json_object_new_boolean(copying));
    json_object_object_add(o, "figures", list);
    cli_json_print(o, stdout);
}

static int run_bench(struct bench *b)
{
    struct rr_arena_options options = {0};
    struct rr_arena *arena = NULL;
    struct figures all[MAX_SIZES];
    struct rr_arena_stats stats;
    struct rr_error err;
    uint8_t *windows = rr_reserve(2 * RR_GIB, RR_GIB), *both[2];
    int r = rr_arena_new(&options, &arena, &err);

    if (r == 0 && (!windows || mprotect(windows, 2 * RR_GIB, PROT_READ | PROT_WRITE) < 0))
        r = rr_error_set(&err, RR_E_SYSTEM, "raise the limit on address space",
                         "cannot reserve 2 GiB of address space: %s", strerror(errno));
    both[0] = windows;
    both[1] = windows + RR_GIB;
    for (size_t n = 0; n < b->n_sizes && r == 0; n++)
        r = measure(b, arena, both, b->sizes[n], n, &all[n], &err);
    cli_progress_clear(&b->progress);
    if (r == 0) {
        rr_arena_stats(arena, &stats);
        if (b->json)
            print_json(b, all, stats.copying);
        else
            print_figures(b, all, stats.copying);
    }
    rr_arena_free(arena);
    if (windows)
        munmap(windows, 2 * RR_GIB);
    return r ? cli_report_error(&err, b->json) : 0;
}

static int bench(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"sizes", required_argument, NULL, 's'},
                                            {"repeat", required_argument, NULL, 'n'},
                                            {0}};
    struct bench b = {.sizes = {RR_MIB, 16 * RR_MIB, 100 * RR_MIB, 500 * RR_MIB, RR_GIB},
                      .n_sizes = 5,
                      .repeat = 21};
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        char *end;

        if (c == 'j') {
            b.json = true;
        } else if (c == 's') {
            if (parse_sizes(&b, optarg))
                return RR_E_USAGE;
        } else if (c == 'n') {
            unsigned long n = strtoul(optarg, &end, 10);

            if (*end || end == optarg || *optarg == '-' || n < 1 || n > 10000)
                return cli_usage(&cli_bench, "--repeat takes a number from 1 to 10000");
            b.repeat = (unsigned int)n;
        } else {
            return RR_E_USAGE;
        }
    }
    if (optind != argc)
        return cli_usage(&cli_bench, "it takes no operands");
    return run_bench(&b);
}

const struct cli_command cli_bench = {
    .name = "bench",
    .summary = "measure what hand-offs cost on this machine",
    .help = "Usage: roadrunner bench [--sizes LIST] [--repeat N] [--json]\n\n"
            "Moves messages between two windows and compares that with memcpy in the same run.\n"
            "Needs twice as much memory as the largest size.\n\n"
            "Options:\n"
            "  --sizes LIST  payloads, up to 1GiB (default 1MiB,16MiB,100MiB,500MiB,1GiB)\n"
            "  --repeat N    measurements of each (default 21)\n"
            "  --json        machine-readable output\n",
    .run = bench,
};
