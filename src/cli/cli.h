/* SPDX-License-Identifier: Apache-2.0 */
/* cli: the `roadrunner` command, one file per subcommand. May call everything. */
#ifndef RR_CLI_CLI_H
#define RR_CLI_CLI_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/error.h"
#include "worker/worker.h"

struct cli_command {
    const char *name, *summary, *help;
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; returns the exit status */
};

extern const struct cli_command cli_run, cli_check, cli_explain, cli_inspect, cli_compile,
    cli_bench, cli_worker, cli_serve, cli_ps;

/* One line and a hint on stderr; returns the exit status. */
int cli_error(const struct rr_error *err);
__attribute__((format(printf, 2, 3))) int cli_usage(const struct cli_command *c, const char *fmt,
                                                    ...);

/* Is @f a terminal that wants colours? */
bool cli_colour(FILE *f);

/* A table whose columns are as wide as needed; the first row is its head. */
struct cli_table {
    unsigned int n_columns, n_rows, room;
    char **cells;
};
void cli_table_row(struct cli_table *t, const char *const *cells, unsigned int n);
/* Print and free. @right: one letter per column, 'r' = to the right. */
void cli_table_print(struct cli_table *t, FILE *f, const char *right);

/* A progress bar on stderr, drawn only on a terminal and after a second. */
struct cli_progress {
    uint64_t began_ns, drawn_ns;
    bool off, drawn;
};
void cli_progress_show(struct cli_progress *p, const char *what, uint64_t done, uint64_t total);
void cli_progress_clear(struct cli_progress *p);

/* Print and free. */
void cli_json_print(struct json_object *o, FILE *f);
struct json_object *cli_json_error(const struct rr_error *err);

/* Load a workflow and its modules; reports mistakes itself. Returns the exit status. */
int cli_open(const char *path, const struct rr_worker_options *options, bool json,
             struct rr_workflow **ret_wf, struct rr_worker **ret);
extern const char *const cli_cached_names[];

/* Name of an edge's end, "decode.raw". */
void cli_edge_ends(const struct rr_workflow *wf, const struct rr_edge *e, char from[160],
                   char to[160]);
/* Of commands that talk to other nodes. */
struct cli_net {
    struct rr_net_tls tls;
    bool plain, network_only;
};
enum { CLI_TLS_CERT = 1000, CLI_TLS_KEY, CLI_TLS_CA, CLI_PLAIN, CLI_NETWORK_ONLY };
/* clang-format off */
#define CLI_NET_OPTIONS \
    {"tls-cert", required_argument, NULL, CLI_TLS_CERT}, \
    {"tls-key", required_argument, NULL, CLI_TLS_KEY}, \
    {"tls-ca", required_argument, NULL, CLI_TLS_CA}, \
    {"plain", no_argument, NULL, CLI_PLAIN}, \
    {"network-only", no_argument, NULL, CLI_NETWORK_ONLY}
/* clang-format on */
#define CLI_NET_HELP                                                             \
    "      --tls-cert FILE  our certificate (PEM), which other nodes check\n"    \
    "      --tls-key FILE   its private key\n"                                   \
    "      --tls-ca FILE    certificates of who may sign those of other nodes\n" \
    "      --plain          no TLS between nodes\n"                              \
    "      --network-only   use the network also to nodes on this machine\n"
/* True: it was one of these. */
bool cli_net_option(struct cli_net *net, int c, const char *text);
bool cli_only_unix(const struct rr_workflow *wf);
/* @net: borrowed for the worker's life. 0 or RR_E_USAGE. */
int cli_net_apply(const struct cli_net *net, bool only_unix, struct rr_worker_options *options,
                  struct rr_error *err);
#define CLI_MAX_SPIN_US 10000000u /* of run and worker */
/* Microseconds, up to @max_us; 0 is `never`: *@ret is nanoseconds, UINT64_MAX for never. */
int cli_parse_spin(const struct cli_command *c, const char *text, unsigned int max_us,
                   uint64_t *ret);
int cli_report_error(const struct rr_error *err, bool json);

#endif
