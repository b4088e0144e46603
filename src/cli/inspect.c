/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "cli/cli.h"

struct listing {
    struct json_object *list;
    FILE *out;
    const char *prefix;
};

static void list_one(void *data, const char *module, const char *name, const char *kind)
{
    struct listing *l = data;

    if (l->list) {
        struct json_object *o = json_object_new_object();

        if (*module)
            json_object_object_add(o, "module", json_object_new_string(module));
        json_object_object_add(o, "name", json_object_new_string(name));
        json_object_object_add(o, "kind", json_object_new_string(kind));
        json_object_array_add(l->list, o);
    } else {
        fprintf(l->out, "  %-7s %-7s %s%s%s\n", l->prefix, kind, module, *module ? "." : "", name);
    }
}

static void describe_json(const char *path, struct rr_module *m, int r, enum rr_tier tier,
                          const char *why, const struct rr_error *err, struct json_object *all)
{
    struct json_object *o = json_object_new_object();
    struct listing l = {0};

    json_object_object_add(o, "module", json_object_new_string(path));
    if (r == 0) {
        json_object_object_add(o, "tier", json_object_new_string(rr_tier_name(tier)));
        json_object_object_add(o, "why", json_object_new_string(why));
    } else {
        json_object_object_add(o, "error", cli_json_error(err));
    }
    if (m) {
        json_object_object_add(o, "cache",
                               json_object_new_string(cli_cached_names[rr_module_cached(m)]));
        l.list = json_object_new_array();
        rr_module_each(m, false, list_one, &l);
        json_object_object_add(o, "imports", l.list);
        l.list = json_object_new_array();
        rr_module_each(m, true, list_one, &l);
        json_object_object_add(o, "exports", l.list);
    }
    json_object_array_add(all, o);
}

static void describe(const char *path, struct rr_module *m, enum rr_tier tier, const char *why)
{
    static const char *const costs[] = {"page tables move: independent of the length",
                                        "whole pages are swapped, the ends copied",
                                        "a copy each way"};
    struct listing l = {.out = stdout};

    printf("%s\n  tier    %s: %s\n  cost    %s\n", path, rr_tier_name(tier), why, costs[tier]);
    l.prefix = "import";
    rr_module_each(m, false, list_one, &l);
    l.prefix = "export";
    rr_module_each(m, true, list_one, &l);
}

static int inspect_one(struct rr_engine *engine, const char *path, struct json_object *all)
{
    struct rr_error err = {0}, why_not;
    struct rr_module *m = NULL;
    enum rr_tier tier = RR_TIER_WINDOW;
    char why[160] = "";
    int r = rr_module_load(engine, path, &m, &err);

    if (r == 0) {
        r = rr_abi_detect(m, &tier, why, sizeof(why), &why_not);
        if (r) {
            rr_error_set(&err, why_not.code, why_not.hint, "%s", why_not.text);
            rr_error_at(&err, path, 0, 0);
        }
    }
    if (all)
        describe_json(path, m, r, tier, why, &err, all);
    else if (r == 0)
        describe(path, m, tier, why);
    if (r)
        cli_error(&err);
    rr_module_free(m);
    return r;
}

static int inspect(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'}, {0}};
    struct rr_engine_options eo = {0};
    struct json_object *all = NULL;
    struct rr_engine *engine = NULL;
    struct rr_error err;
    bool json = false;
    int c, r, status = 0;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c != 'j')
            return RR_E_USAGE;
        json = true;
    }
    if (optind == argc)
        return cli_usage(&cli_inspect, "name a module");
    r = rr_engine_new(&eo, &engine, &err);
    if (r == 0)
        r = rr_abi_define(engine, &err);
    if (r) {
        rr_engine_free(engine);
        return cli_report_error(&err, json);
    }
    if (json)
        all = json_object_new_array();
    for (int n = optind; n < argc; n++) {
        r = inspect_one(engine, argv[n], all);
        status = status ? status : r;
    }
    if (json)
        cli_json_print(all, stdout);
    rr_engine_free(engine);
    return status;
}

const struct cli_command cli_inspect = {
    .name = "inspect",
    .summary = "tell which tier a module gets, and why",
    .help = "Usage: roadrunner inspect MODULE... [--json]\n\n"
            "Tells the tier (window, buffer or stdio) that each module gets, why, what its\n"
            "hand-offs cost, and what it imports and exports.\n\n"
            "Options:\n"
            "  --json  machine-readable output\n",
    .run = inspect,
};
