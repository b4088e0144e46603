/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli.h"
#include "worker/node.h"

#define MAX_LISTEN 16

struct request {
    const char *workflow, *node, *listen[MAX_LISTEN];
    size_t n_listen;
    struct cli_net net;
    uint64_t spin_ns;
    bool no_cache, quiet;
    int verbose;
};

static struct rr_node_server *volatile serving;

static void on_signal(int number)
{
    if (!serving)
        return;
    if (number == SIGHUP)
        rr_node_server_reload(serving);
    else
        rr_node_server_stop(serving);
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int parse(struct request *rq, int argc, char **argv)
{
    static const struct option options[] = {{"node", required_argument, NULL, 'n'},
                                            {"listen", required_argument, NULL, 'l'},
                                            CLI_NET_OPTIONS,
                                            {"spin", required_argument, NULL, 's'},
                                            {"no-cache", no_argument, NULL, 'c'},
                                            {"verbose", no_argument, NULL, 'v'},
                                            {"quiet", no_argument, NULL, 'q'},
                                            {0}};
    int c, r;

    while ((c = getopt_long(argc, argv, "vq", options, NULL)) != -1) {
        if (cli_net_option(&rq->net, c, optarg))
            continue;
        switch (c) {
        case 'n':
            rq->node = optarg;
            break;
        case 'l':
            if (rq->n_listen == MAX_LISTEN)
                return cli_usage(&cli_worker, "more than %d addresses to listen at", MAX_LISTEN);
            rq->listen[rq->n_listen++] = optarg;
            break;
        case 's':
            r = cli_parse_spin(&cli_worker, optarg, CLI_MAX_SPIN_US, &rq->spin_ns);
            if (r)
                return r;
            break;
        case 'c':
            rq->no_cache = true;
            break;
        case 'v':
            rq->verbose++;
            break;
        case 'q':
            rq->quiet = true;
            break;
        default:
            return RR_E_USAGE;
        }
    }
    if (argc - optind != 1)
        return cli_usage(&cli_worker, "name one workflow file");
    rq->workflow = argv[optind];
    if (!rq->node)
        return cli_usage(&cli_worker, "say which node of the workflow this is: --node NAME");
    return 0;
}

/* Where to listen: what was asked for, or the node's own address. */
static int listen_all(const struct request *rq, const struct rr_workflow *wf,
                      struct rr_node_server *s, struct rr_error *err)
{
    const char *own = wf->nodes[wf->here].address;

    for (size_t n = 0; n < (rq->n_listen ? rq->n_listen : 1); n++) {
        const char *at = rq->n_listen ? rq->listen[n] : own;
        int port = rr_node_server_listen(s, at, err);

        if (port < 0)
            return -port;
        if (rq->quiet)
            continue;
        if (port)
            fprintf(stderr, "roadrunner: node '%s' listens at %s, port %d\n", rq->node, at, port);
        else
            fprintf(stderr, "roadrunner: node '%s' listens at %s\n", rq->node, at);
    }
    return 0;
}

static bool all_unix(const struct request *rq, const struct rr_workflow *wf)
{
    for (size_t n = 0; n < rq->n_listen; n++)
        if (strncmp(rq->listen[n], "unix:", 5) != 0)
            return false;
    return cli_only_unix(wf);
}

static int serve(const struct request *rq, struct rr_error *err)
{
    struct rr_worker_options options = {.kind = "worker",
                                        .no_cache = rq->no_cache,
                                        .spin_ns = rq->spin_ns,
                                        .arena.watch_pressure = true};
    struct rr_workflow *wf = NULL;
    struct rr_node_server *s = NULL;
    int r = rr_workflow_load_at(rq->workflow, rq->node, &wf, err);

    if (r == 0)
        r = cli_net_apply(&rq->net, all_unix(rq, wf), &options, err);
    if (r == 0)
        r = rr_node_server_new(wf, &options, &s, err);
    if (r == 0)
        r = listen_all(rq, wf, s, err);
    if (r == 0) {
        serving = s;
        catch_signals();
        r = rr_node_server_run(s, err);
        serving = NULL;
    }
    rr_node_server_free(s);
    rr_workflow_free(wf);
    return r;
}

static int run(int argc, char **argv)
{
    struct request rq = {0};
    struct rr_error err = {0};
    int status = parse(&rq, argc, argv);

    if (status)
        return status;
    rr_log_set_level(rq.quiet ? 0 : 1 + rq.verbose);
    return serve(&rq, &err) ? cli_error(&err) : 0;
}

const struct cli_command cli_worker = {
    .name = "worker",
    .summary = "serve the functions of one node to workflows that run elsewhere",
    .help = "Usage: roadrunner worker WORKFLOW --node NAME [OPTION...]\n\n"
            "Hosts the functions of WORKFLOW that have `node: NAME`. Who runs the same workflow\n"
            "elsewhere sends them messages. Ends with SIGTERM, when what has begun is done.\n\n"
            "Options:\n"
            "      --node NAME      which node of the workflow this is\n"
            "      --listen ADDR    HOST:PORT, [IPv6]:PORT, :PORT or unix:/PATH; may be repeated\n"
            "                       (default: the node's own address)\n" CLI_NET_HELP
            "      --spin US        how long to poll before it sleeps, in microseconds; 0: never\n"
            "      --no-cache       compile the modules anew and store nothing\n"
            "  -v, --verbose        more messages; twice: still more\n"
            "  -q, --quiet          nothing but errors\n",
    .run = run,
};
