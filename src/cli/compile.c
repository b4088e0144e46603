/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli.h"

static bool has_suffix(const char *text, const char *suffix)
{
    size_t a = strlen(text), b = strlen(suffix);

    return a >= b && strcmp(text + a - b, suffix) == 0;
}

static bool is_workflow(const char *path)
{
    return has_suffix(path, ".yaml") || has_suffix(path, ".yml");
}

/* @to: where its compiled image is to be written, too; NULL: nowhere. */
static int compile_module(struct rr_engine *engine, const char *path, const char *to, bool quiet)
{
    uint64_t begin = rr_now_ns();
    struct rr_module *m = NULL;
    struct rr_error err = {0};

    if (rr_module_load(engine, path, &m, &err) != 0)
        return cli_error(&err);
    if (to && rr_module_save(m, to, &err) != 0) {
        rr_module_free(m);
        return cli_error(&err);
    }
    if (!quiet)
        printf("%s: %s, %s\n", path,
               rr_module_cached(m) == RR_CACHE_HIT ? "was compiled already" : "compiled",
               rr_duration_text(rr_now_ns() - begin));
    rr_module_free(m);
    return 0;
}

static int compile_workflow(struct rr_engine *engine, const char *path, bool quiet)
{
    struct rr_workflow *wf;
    struct rr_error err;
    int status = 0;

    if (rr_workflow_load(path, &wf, &err) != 0)
        return cli_error(&err);
    for (size_t n = 0; n < wf->n_functions; n++) {
        bool before = false;

        for (size_t k = 0; k < n; k++)
            before = before || strcmp(wf->functions[k].module, wf->functions[n].module) == 0;
        if (!before) {
            int r = compile_module(engine, wf->functions[n].module, NULL, quiet);

            status = status ? status : r;
        }
    }
    rr_workflow_free(wf);
    return status;
}

static int compile(int argc, char **argv)
{
    static const struct option options[] = {
        {"quiet", no_argument, NULL, 'q'}, {"output", required_argument, NULL, 'o'}, {0}};
    struct cli_progress progress = {0};
    struct rr_engine_options eo = {0};
    struct rr_engine *engine = NULL;
    struct rr_error err;
    const char *to = NULL;
    bool quiet = false;
    int c, r, status = 0;

    while ((c = getopt_long(argc, argv, "qo:", options, NULL)) != -1) {
        if (c == 'q')
            quiet = true;
        else if (c == 'o')
            to = optarg;
        else
            return RR_E_USAGE;
    }
    if (optind == argc)
        return cli_usage(&cli_compile, "name a module or a workflow file");
    if (to && (optind + 1 != argc || is_workflow(argv[optind])))
        return cli_usage(&cli_compile, "-o takes one module");
    r = rr_engine_new(&eo, &engine, &err);
    if (r == 0)
        r = rr_abi_define(engine, &err);
    if (r) {
        rr_engine_free(engine);
        return cli_error(&err);
    }
    for (int n = optind; n < argc; n++) {
        cli_progress_show(&progress, "compiling", (uint64_t)(n - optind),
                          (uint64_t)(argc - optind));
        r = is_workflow(argv[n]) ? compile_workflow(engine, argv[n], quiet)
                                 : compile_module(engine, argv[n], to, quiet);
        status = status ? status : r;
    }
    cli_progress_clear(&progress);
    rr_engine_free(engine);
    return status;
}

const struct cli_command cli_compile = {
    .name = "compile",
    .summary = "compile modules into the cache ahead of their first run",
    .help =
        "Usage: roadrunner compile MODULE|WORKFLOW... [-q] [-o FILE]\n\n"
        "Compiles modules, or all those of a workflow (.yaml, .yml), into the cache, so that\n"
        "their first run starts as fast as the second.\n\n"
        "Options:\n"
        "  -q, --quiet        print mistakes only\n"
        "  -o, --output FILE  write the compiled module there, too: native code for this CPU and\n"
        "                     version, for containers on nodes whose operator allows it\n",
    .run = compile,
};
