/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <string.h>

#include "cli/cli.h"

static int check(int argc, char **argv)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'}, {0}};
    struct rr_worker_options worker = {0};
    struct rr_workflow *wf;
    struct rr_worker *w;
    bool json = false;
    int c, r;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c != 'j')
            return RR_E_USAGE;
        json = true;
    }
    if (argc - optind != 1)
        return cli_usage(&cli_check, "name one workflow file");
    r = cli_open(argv[optind], &worker, json, &wf, &w);
    if (r)
        return r;
    if (json) {
        struct json_object *o = json_object_new_object();

        json_object_object_add(o, "workflow", json_object_new_string(wf->name));
        json_object_object_add(o, "functions", json_object_new_int64((int64_t)wf->n_functions));
        json_object_object_add(o, "edges", json_object_new_int64((int64_t)wf->n_edges));
        cli_json_print(o, stdout);
    } else {
        printf("%s: workflow '%s' is fine: %zu function%s, %zu edge%s\n", argv[optind], wf->name,
               wf->n_functions, wf->n_functions == 1 ? "" : "s", wf->n_edges,
               wf->n_edges == 1 ? "" : "s");
    }
    rr_worker_free(w);
    rr_workflow_free(wf);
    return 0;
}

const struct cli_command cli_check = {
    .name = "check",
    .summary = "look for mistakes in a workflow and its modules",
    .help = "Usage: roadrunner check WORKFLOW [--json]\n\n"
            "Reads the workflow file, loads and compiles its modules, and reports the first\n"
            "mistake with file, line, column and a hint. Runs nothing.\n\n"
            "Options:\n"
            "  --json  machine-readable output\n",
    .run = check,
};
