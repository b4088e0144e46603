/* SPDX-License-Identifier: Apache-2.0 */
/* Options of commands that talk to other nodes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli.h"

int cli_parse_spin(const struct cli_command *c, const char *text, unsigned int max_us,
                   uint64_t *ret)
{
    char *end;
    unsigned long n;

    errno = 0;
    n = strtoul(text, &end, 10);
    if (errno || *end || end == text || *text == '-' || n > max_us)
        return cli_usage(c, "--spin takes microseconds from 0 to %u, not '%s'", max_us, text);
    *ret = n ? n * 1000 : UINT64_MAX;
    return 0;
}

bool cli_net_option(struct cli_net *net, int c, const char *text)
{
    switch (c) {
    case CLI_TLS_CERT:
        net->tls.cert_file = text;
        return true;
    case CLI_TLS_KEY:
        net->tls.key_file = text;
        return true;
    case CLI_TLS_CA:
        net->tls.ca_file = text;
        return true;
    case CLI_PLAIN:
        net->plain = true;
        return true;
    case CLI_NETWORK_ONLY:
        net->network_only = true;
        return true;
    default:
        return false;
    }
}

bool cli_only_unix(const struct rr_workflow *wf)
{
    for (size_t n = 0; n < wf->n_nodes; n++)
        if (strncmp(wf->nodes[n].address, "unix:", 5) != 0)
            return false;
    return true;
}

int cli_net_apply(const struct cli_net *net, bool only_unix, struct rr_worker_options *options,
                  struct rr_error *err)
{
    const char *cert = net->tls.cert_file, *key = net->tls.key_file, *ca = net->tls.ca_file;
    bool any = cert || key || ca;

    if (any && !(cert && key && ca))
        return rr_error_set(err, RR_E_USAGE, "both ends show a certificate of one CA",
                            "--tls-cert, --tls-key and --tls-ca go together");
    if (any && net->plain)
        return rr_error_set(err, RR_E_USAGE, "leave one of the two out",
                            "--plain and TLS exclude each other");
    if (!any && !net->plain && !only_unix)
        return rr_error_set(err, RR_E_USAGE,
                            "give --tls-cert, --tls-key and --tls-ca; or --plain, if whoever is on "
                            "that network may read and change messages",
                            "messages between nodes are not protected");
    if (net->plain && !only_unix)
        rr_log(1,
               "--plain: whoever is on the network between the nodes can read and change messages");
    options->network_only = net->network_only;
    options->plain = !any;
    options->tls = any ? &net->tls : NULL;
    return 0;
}
