/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli.h"
#include "gateway/gateway.h"
#include "worker/chain.h"

#define MAX_SPIN_US 100000u /* connections are looked after once a second, between */

/* Options that may be repeated. */
enum { LIST_LISTEN, LIST_ROUTE, LIST_CALLBACK, LIST_NET, LIST_WORKFLOW, N_LISTS };

struct request {
    struct rr_gateway_options o;
    const char *listen[RR_GATEWAY_MAX_LISTEN];
    const char *callbacks[RR_GATEWAY_MAX_CALLBACKS];
    const char *callback_nets[RR_GATEWAY_MAX_CALLBACKS];
    struct rr_gateway_route routes[RR_GATEWAY_MAX_ROUTES];
    char *paths[RR_GATEWAY_MAX_ROUTES]; /* owned; NULL where the route's path is borrowed */
    const char *workflows[RR_GATEWAY_MAX_ROUTES]; /* without a path of their own */
    size_t n_workflows;
    struct rr_net_tls node;
    /* Where an option comes from: a later source replaces what an earlier one said. */
    enum source { FROM_FILE, FROM_ENVIRONMENT, FROM_FLAGS } source;
    enum source list_source[N_LISTS];
    char **texts; /* owned: of a file and of the environment */
    size_t n_texts;
};

/* --- values ---------------------------------------------------------------------------------- */

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit sizes[] = {
    {"", 1}, {"KiB", 1ull << 10}, {"MiB", 1ull << 20}, {"GiB", 1ull << 30}, {NULL, 0}};
static const struct unit times[] = {
    {"", 1000000000}, {"ms", 1000000}, {"s", 1000000000}, {"m", 60000000000}, {NULL, 0}};
static const struct unit numbers[] = {{"", 1}, {NULL, 0}};

static int parse_number(const char *option, const char *text, const struct unit *units,
                        uint64_t max, uint64_t *ret)
{
    const char *end = text;
    uint64_t n = 0;

    while (*end >= '0' && *end <= '9' && n < UINT64_MAX / 16)
        n = n * 10 + (uint64_t)(*end++ - '0');
    for (; end > text && units->name; units++)
        if (strcmp(end, units->name) == 0) {
            if (n == 0 || n > max / units->factor)
                break;
            *ret = n * units->factor;
            return 0;
        }
    return cli_usage(&cli_serve, "--%s does not take '%s'", option, text);
}

/* Options that take a number. */
struct number {
    const char *name;
    const struct unit *units;
    uint64_t max;
    size_t offset;
    bool wide; /* uint64_t, else unsigned int */
};

#define AT(field) offsetof(struct rr_gateway_options, field)
static const struct number number_options[] = {
    {"max-body", sizes, RR_GIB, AT(max_body_bytes), true},
    {"max-memory", sizes, 1ull << 50, AT(max_memory_bytes), true},
    {"workflow-memory", sizes, 1ull << 50, AT(workflow_memory_bytes), true},
    {"max-header", sizes, 1u << 20, AT(max_header_bytes), false},
    {"max-connections", numbers, 1u << 20, AT(max_connections), false},
    {"concurrency", numbers, 4096, AT(concurrency), false},
    {"queue", numbers, 1u << 20, AT(queue), false},
    {"threads", numbers, 256, AT(threads), false},
    {"deadline", times, 86400000000000ull, AT(deadline_ns), true},
    {"drain", times, 86400000000000ull, AT(drain_ns), true},
    {"idle", times, 86400000000000ull, AT(idle_ns), true},
    {"duplicates", times, 86400000000000ull, AT(duplicates_ns), true},
    {"header-time", times, 3600000000000ull, AT(header_ns), true},
    {"min-rate", sizes, 1ull << 40, AT(min_rate_bytes), true},
};
#define N_NUMBERS RR_ARRAY_LEN(number_options)

static int take_number(struct request *rq, size_t n, const char *text)
{
    const struct number *o = &number_options[n];
    char *at = (char *)&rq->o + o->offset;
    uint64_t value = 0;
    int r = parse_number(o->name, text, o->units, o->max, &value);

    if (r)
        return r;
    if (o->wide)
        memcpy(at, &value, sizeof(value));
    else
        memcpy(at, &(unsigned int){(unsigned int)value}, sizeof(unsigned int));
    return 0;
}

/* --- routes ---------------------------------------------------------------------------------- */

static int add_route(struct request *rq, const char *path, const char *workflow)
{
    size_t len = strlen(path);

    if (rq->o.n_routes == RR_GATEWAY_MAX_ROUTES)
        return cli_usage(&cli_serve, "at most %d workflows", RR_GATEWAY_MAX_ROUTES);
    if (len > 512)
        return cli_usage(&cli_serve, "a path has at most 512 characters");
    if (path[0] != '/' || (len > 1 && path[len - 1] == '/'))
        return cli_usage(&cli_serve, "a path begins with / and does not end with it, unlike '%s'",
                         path);
    for (const char *p = path; *p; p++)
        if (*p <= ' ' || *p >= 0x7f || strchr("\"\\?#", *p))
            return cli_usage(&cli_serve, "the path '%s' has characters that are none of a path",
                             path);
    for (size_t n = 0; n < rq->o.n_routes; n++)
        if (strcmp(rq->routes[n].path, path) == 0)
            return cli_usage(&cli_serve, "two workflows at %s: '%s' and '%s'", path,
                             rq->routes[n].workflow, workflow);
    rq->routes[rq->o.n_routes++] = (struct rr_gateway_route){path, workflow};
    return 0;
}

/* Another value of an option that may be repeated: the first one of its source replaces others. */
static void begin_list(struct request *rq, int list, size_t *n)
{
    if (rq->list_source[list] != rq->source)
        *n = 0;
    rq->list_source[list] = rq->source;
}

/* --route PATH=FILE */
static int parse_route(struct request *rq, char *text)
{
    char *equals = strchr(text, '=');

    begin_list(rq, LIST_ROUTE, &rq->o.n_routes);
    if (!equals || !equals[1])
        return cli_usage(&cli_serve, "--route takes PATH=WORKFLOW, not '%s'", text);
    *equals = '\0';
    return add_route(rq, text, equals + 1);
}

/* The workflow's `name`, or else that of its file; of a chain that of its first function. */
static int path_of(const char *file, char **ret)
{
    struct rr_workflow *wf = NULL;
    struct rr_error err = {0};
    const char *chain = strncmp(file, RR_CHAIN_PREFIX, strlen(RR_CHAIN_PREFIX)) == 0
                            ? file + strlen(RR_CHAIN_PREFIX)
                            : NULL;
    int r;

    if (chain && strncmp(chain, RR_CHAIN_AGAIN, strlen(RR_CHAIN_AGAIN)) == 0)
        chain += strlen(RR_CHAIN_AGAIN);
    if (chain)
        return asprintf(ret, "/%.*s", (int)strcspn(chain, "@"), chain) < 0 ? RR_E_SYSTEM : 0;
    r = rr_workflow_load(file, &wf, &err);

    if (r) {
        cli_error(&err);
        return r;
    }
    r = asprintf(ret, "/%s", wf->name) < 0 ? RR_E_SYSTEM : 0;
    rr_workflow_free(wf);
    return r;
}

static int add_workflow(struct request *rq, const char *file)
{
    begin_list(rq, LIST_WORKFLOW, &rq->n_workflows);
    if (rq->n_workflows == RR_GATEWAY_MAX_ROUTES)
        return cli_usage(&cli_serve, "at most %d workflows", RR_GATEWAY_MAX_ROUTES);
    rq->workflows[rq->n_workflows++] = file;
    return 0;
}

/* One workflow alone answers at /, several each at /NAME. */
static int route_workflows(struct request *rq)
{
    bool alone = rq->n_workflows == 1 && rq->o.n_routes == 0;

    if (rq->n_workflows == 0 && rq->o.n_routes == 0)
        return cli_usage(&cli_serve, "name a workflow file");
    for (size_t k = 0; k < rq->n_workflows; k++) {
        size_t n = rq->o.n_routes;
        int r = n == RR_GATEWAY_MAX_ROUTES || alone ? 0 : path_of(rq->workflows[k], &rq->paths[n]);

        if (r == 0)
            r = add_route(rq, alone || !rq->paths[n] ? "/" : rq->paths[n], rq->workflows[k]);
        if (r)
            return r;
    }
    return 0;
}

/* --- options --------------------------------------------------------------------------------- */

/* Options that are a text, and where it goes. */
static const struct {
    int c;
    size_t at;
} texts[] = {
    {'a', offsetof(struct request, o.admin)},
    {'C', offsetof(struct request, o.tls_cert)},
    {'K', offsetof(struct request, o.tls_key)},
    {'T', offsetof(struct request, o.tls_client_ca)},
    {'x', offsetof(struct request, node.cert_file)},
    {'y', offsetof(struct request, node.key_file)},
    {'z', offsetof(struct request, node.ca_file)},
    {'A', offsetof(struct request, o.access_log)},
    {'O', offsetof(struct request, o.otlp)},
    {'R', offsetof(struct request, o.otlp_ratio)},
    {'b', offsetof(struct request, o.callback_ca)},
};

static int take_listed(struct request *rq, int list, const char **values, size_t *n, size_t most,
                       const char *text)
{
    begin_list(rq, list, n);
    if (*n == most)
        return cli_usage(&cli_serve, "at most %zu of --%s", most,
                         list == LIST_LISTEN     ? "listen"
                         : list == LIST_CALLBACK ? "callback"
                                                 : "callback-net");
    values[(*n)++] = text;
    return 0;
}

static int take_option(struct request *rq, int c, char *text)
{
    for (size_t n = 0; n < RR_ARRAY_LEN(texts); n++)
        if (texts[n].c == c) {
            memcpy((char *)rq + texts[n].at, &text, sizeof(text));
            return 0;
        }
    switch (c) {
    case 'l':
        return take_listed(rq, LIST_LISTEN, rq->listen, &rq->o.n_listen, RR_GATEWAY_MAX_LISTEN,
                           text);
    case 'r':
        return parse_route(rq, text);
    case 'p':
        rq->o.node_plain = true;
        return 0;
    case 'I':
        rq->o.isolate = strcmp(text, "process") == 0;
        if (!rq->o.isolate && strcmp(text, "worker") != 0)
            return cli_usage(&cli_serve, "--isolation takes process or worker, not '%s'", text);
        return 0;
    case 'B':
        if (!rr_gateway_callback_ok(text))
            return cli_usage(&cli_serve, "--callback takes HOST, HOST:PORT or *.DOMAIN, not '%s'",
                             text);
        return take_listed(rq, LIST_CALLBACK, rq->callbacks, &rq->o.n_callbacks,
                           RR_GATEWAY_MAX_CALLBACKS, text);
    case 'N':
        if (!rr_gateway_net_ok(text))
            return cli_usage(&cli_serve, "--callback-net takes ADDRESS or ADDRESS/BITS, not '%s'",
                             text);
        return take_listed(rq, LIST_NET, rq->callback_nets, &rq->o.n_callback_nets,
                           RR_GATEWAY_MAX_CALLBACKS, text);
    case 's':
        return cli_parse_spin(&cli_serve, text, MAX_SPIN_US, &rq->o.spin_ns);
    case 'c':
        rq->o.no_cache = true;
        return 0;
    case 'v':
        rq->o.verbose++;
        return 0;
    case 'q':
        rq->o.quiet = true;
        return 0;
    default:
        return RR_E_USAGE;
    }
}

/* How to talk to other nodes. */
static int take_nodes(struct request *rq)
{
    const struct rr_net_tls *t = &rq->node;
    bool any = t->cert_file || t->key_file || t->ca_file;

    if (any && !(t->cert_file && t->key_file && t->ca_file))
        return cli_usage(&cli_serve, "--node-cert, --node-key and --node-ca go together");
    if (any && rq->o.node_plain)
        return cli_usage(&cli_serve, "--node-plain and TLS exclude each other");
    rq->o.node_tls = any ? t : NULL;
    return 0;
}

static const struct option words[] = {
    {"listen", required_argument, NULL, 'l'},
    {"admin", required_argument, NULL, 'a'},
    {"route", required_argument, NULL, 'r'},
    {"access-log", required_argument, NULL, 'A'},
    {"tls-cert", required_argument, NULL, 'C'},
    {"tls-key", required_argument, NULL, 'K'},
    {"tls-client-ca", required_argument, NULL, 'T'},
    {"otlp", required_argument, NULL, 'O'},
    {"otlp-ratio", required_argument, NULL, 'R'},
    {"node-cert", required_argument, NULL, 'x'},
    {"node-key", required_argument, NULL, 'y'},
    {"node-ca", required_argument, NULL, 'z'},
    {"node-plain", no_argument, NULL, 'p'},
    {"isolation", required_argument, NULL, 'I'},
    {"callback", required_argument, NULL, 'B'},
    {"callback-net", required_argument, NULL, 'N'},
    {"callback-ca", required_argument, NULL, 'b'},
    {"spin", required_argument, NULL, 's'},
    {"no-cache", no_argument, NULL, 'c'},
    {"verbose", no_argument, NULL, 'v'},
    {"quiet", no_argument, NULL, 'q'},
    {"config", required_argument, NULL, 'F'},
};
#define N_WORDS RR_ARRAY_LEN(words)

/* --- files and the environment --------------------------------------------------------------- */

#define MAX_CONFIG (256u << 10)

/* A copy that lives as long as @rq: what is parsed keeps pieces of it. */
static char *keep(struct request *rq, const char *text, size_t len)
{
    char **grown = reallocarray(rq->texts, rq->n_texts + 1, sizeof(char *));
    char *copy = grown ? strndup(text, len) : NULL;

    rq->texts = grown ? grown : rq->texts;
    if (copy)
        rq->texts[rq->n_texts++] = copy;
    return copy;
}

/* As `--name value` would be; of those without a value true or false, or how often. */
static int take_word(struct request *rq, const struct option *o, char *text)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    int r = 0;

    if (o->has_arg == required_argument)
        return take_option(rq, o->val, text);
    if (strcmp(text, "true") == 0)
        n = 1;
    else if (strcmp(text, "false") == 0)
        n = 0;
    else if (end == text || *end || n > 2)
        return cli_usage(&cli_serve, "%s is true or false, not '%s'", o->name, text);
    for (; n > 0 && r == 0; n--)
        r = take_option(rq, o->val, NULL);
    return r;
}

static int take_named(struct request *rq, const char *name, char *text)
{
    for (size_t n = 0; n < N_NUMBERS; n++)
        if (strcmp(number_options[n].name, name) == 0)
            return take_number(rq, n, text);
    for (size_t n = 0; n < N_WORDS; n++)
        if (strcmp(words[n].name, name) == 0 && words[n].val != 'F')
            return take_word(rq, &words[n], text);
    if (strcmp(name, "workflow") == 0)
        return add_workflow(rq, text);
    return cli_usage(&cli_serve, "there is no option '%s'", name);
}

static char *trim(char *text)
{
    size_t len;

    text += strspn(text, " \t\r");
    len = strlen(text);
    while (len > 0 && strchr(" \t\r", text[len - 1]))
        text[--len] = '\0';
    return text;
}

/* A line of a file: NAME = VALUE, or a comment. */
static int take_line(struct request *rq, char *line)
{
    char *text = trim(line), *equals = strchr(text, '=');

    if (!*text || *text == '#')
        return 0;
    if (!equals)
        return cli_usage(&cli_serve, "'%s' is no `option = value`", text);
    *equals = '\0';
    return take_named(rq, trim(text), trim(equals + 1));
}

static int take_lines(struct request *rq, const char *path, char *text)
{
    unsigned int line = 1;
    char *end;
    int r = 0;

    for (; text && r == 0; text = end ? end + 1 : NULL, line++) {
        end = strchr(text, '\n');
        if (end)
            *end = '\0';
        r = take_line(rq, text);
        if (r)
            fprintf(stderr, "  in %s, line %u\n", path, line);
    }
    return r;
}

static int take_file(struct request *rq, const char *path)
{
    static char text[MAX_CONFIG + 1];
    struct rr_error err = {0};
    FILE *f = fopen(path, "re");
    size_t len = f ? fread(text, 1, sizeof(text), f) : 0;
    bool bad = !f || ferror(f);
    int error = errno;

    if (f)
        fclose(f);
    if (bad)
        rr_error_set(&err, RR_E_NOINPUT, "name a file that you may read", "cannot read it: %s",
                     strerror(error));
    else if (len > MAX_CONFIG || memchr(text, 0, len))
        rr_error_set(&err, RR_E_INVALID, "it is a text, with lines like `listen = :8080`",
                     "it is no file of options");
    if (err.code) {
        rr_error_at(&err, path, 0, 0);
        return cli_error(&err);
    }
    rq->source = FROM_FILE;
    if (!keep(rq, text, len)) {
        rr_error_no_memory(&err);
        return cli_error(&err);
    }
    return take_lines(rq, path, rq->texts[rq->n_texts - 1]);
}

/* ROADRUNNER_SERVE_MAX_BODY and so on; of those that may be repeated several, with spaces between.
 */
static int take_variable(struct request *rq, const char *name, bool list)
{
    static const char prefix[] = "ROADRUNNER_SERVE_";
    char variable[64], *copy, *save = NULL;
    const char *value;
    int r = 0;

    snprintf(variable, sizeof(variable), "%s%s", prefix, name);
    for (char *p = variable + sizeof(prefix) - 1; *p; p++)
        *p = (char)(*p == '-' ? '_' : *p >= 'a' && *p <= 'z' ? *p - 'a' + 'A' : *p);
    value = getenv(variable);
    copy = value && *value ? keep(rq, value, strlen(value)) : NULL;
    if (copy && !list)
        r = take_named(rq, name, copy);
    for (char *one = copy && list ? strtok_r(copy, " \t\n", &save) : NULL; one && r == 0;
         one = strtok_r(NULL, " \t\n", &save))
        r = take_named(rq, name, one);
    if (r)
        fprintf(stderr, "  in the environment: %s\n", variable);
    return r;
}

static int take_environment(struct request *rq)
{
    int r = 0;

    rq->source = FROM_ENVIRONMENT;
    for (size_t n = 0; n < N_NUMBERS && r == 0; n++)
        r = take_variable(rq, number_options[n].name, false);
    for (size_t n = 0; n < N_WORDS && r == 0; n++)
        if (words[n].val != 'F')
            r = take_variable(rq, words[n].name, strchr("lrBN", words[n].val) != NULL);
    return r ? r : take_variable(rq, "workflow", true);
}

/* --- the command line ------------------------------------------------------------------------ */

static const char shorts[] = "l:r:vq";

static void long_options(struct option ret[N_NUMBERS + N_WORDS + 1])
{
    memcpy(ret, words, sizeof(words));
    for (size_t n = 0; n < N_NUMBERS; n++)
        ret[N_WORDS + n] =
            (struct option){number_options[n].name, required_argument, NULL, 1000 + (int)n};
    ret[N_NUMBERS + N_WORDS] = (struct option){0};
}

/* The file, which comes before all else. */
static int take_config(struct request *rq, int argc, char **argv, const struct option *options)
{
    const char *path = getenv("ROADRUNNER_SERVE_CONFIG");
    int c, r;

    while ((c = getopt_long(argc, argv, shorts, options, NULL)) != -1) {
        if (c == '?')
            return RR_E_USAGE;
        if (c == 'F')
            path = optarg;
    }
    optind = 0; /* from the beginning, once more */
    r = path && *path ? take_file(rq, path) : 0;
    return r ? r : take_environment(rq);
}

static int take_flags(struct request *rq, int argc, char **argv, const struct option *options)
{
    int c, r = 0;

    rq->source = FROM_FLAGS;
    while (r == 0 && (c = getopt_long(argc, argv, shorts, options, NULL)) != -1)
        if (c != 'F')
            r = c >= 1000 ? take_number(rq, (size_t)c - 1000, optarg) : take_option(rq, c, optarg);
    for (; r == 0 && optind < argc; optind++)
        r = add_workflow(rq, argv[optind]);
    return r;
}

static int parse(struct request *rq, int argc, char **argv)
{
    struct option options[N_NUMBERS + N_WORDS + 1];
    int r;

    long_options(options);
    r = take_config(rq, argc, argv, options);
    if (r == 0)
        r = take_flags(rq, argc, argv, options);
    if (r == 0 && (!rq->o.tls_cert != !rq->o.tls_key || (rq->o.tls_client_ca && !rq->o.tls_cert)))
        r = cli_usage(&cli_serve,
                      "--tls-cert and --tls-key go together, --tls-client-ca with both");
    if (r == 0)
        r = take_nodes(rq);
    return r ? r : route_workflows(rq);
}

static int run(int argc, char **argv)
{
    static struct request rq;
    struct rr_error err = {0};
    int r;

    rq.o.listen = rq.listen;
    rq.o.routes = rq.routes;
    rq.o.callbacks = rq.callbacks;
    rq.o.callback_nets = rq.callback_nets;
    r = parse(&rq, argc, argv);
    if (r == 0) {
        rr_log_set_level(rq.o.quiet ? 0 : 1 + rq.o.verbose);
        r = rr_gateway_run(&rq.o, &err);
        if (r)
            r = cli_error(&err);
    }
    for (size_t n = 0; n < RR_GATEWAY_MAX_ROUTES; n++)
        free(rq.paths[n]);
    for (size_t n = 0; n < rq.n_texts; n++)
        free(rq.texts[n]);
    free(rq.texts);
    return r;
}

const struct cli_command cli_serve = {
    .name = "serve",
    .summary = "answer HTTP requests with workflows",
    .help =
        "Usage: roadrunner serve WORKFLOW|chain:NAME[@HOST:PORT]... [OPTION...]\n\n"
        "Each request's body goes through a workflow, or through the chain of containers that\n"
        "begins at NAME (chain:at-least-once:NAME if it delivers so); the result is the reply.\n"
        "One workflow answers at all paths, of several each at /NAME. SIGTERM ends it when what\n"
        "runs has been answered, SIGHUP reads the workflows and modules again.\n\n"
        "Options, which a file and the environment may give as well: as lines `max-body = 1GiB`,\n"
        "and as ROADRUNNER_SERVE_MAX_BODY=1GiB. Options of the command line come before these, "
        "and\n"
        "the environment before the file.\n"
        "      --config FILE    of options, and `workflow = FILE` (default:\n"
        "                       $ROADRUNNER_SERVE_CONFIG, or none)\n"
        "  -l, --listen ADDR    HOST:PORT, [HOST]:PORT, :PORT or unix:PATH; may be repeated\n"
        "                       (default: 127.0.0.1:8080, or systemd's sockets)\n"
        "  -r, --route PATH=WORKFLOW\n"
        "                       answer at PATH and below it; may be repeated\n"
        "      --admin ADDR     /healthz, /readyz, /metrics and /ui, the page that shows the\n"
        "                       workflows at work, are there and nowhere else\n"
        "      --access-log FILE\n"
        "                       one line of JSON per request; - is stdout (default: none)\n"
        "      --otlp URL       send traces to this collector, with OTLP over HTTP (default:\n"
        "                       $OTEL_EXPORTER_OTLP_ENDPOINT, or none)\n"
        "      --otlp-ratio R   of the traces that begin here, 0 to 1 (1)\n"
        "      --tls-cert FILE, --tls-key FILE\n"
        "                       certificate chain and key, PEM: TLS at all TCP addresses but "
        "--admin\n"
        "      --tls-client-ca FILE\n"
        "                       let in only who has a certificate of these authorities\n"
        "      --deadline TIME  for a request, once it has been read (60s)\n"
        "      --concurrency N  workflows that run at once (4 per core, at least 8)\n"
        "      --queue N        requests that wait, per workflow; more get 503 (1024)\n"
        "      --duplicates TIME\n"
        "                       CloudEvents with source and id of one that was handled before,\n"
        "                       up to so long ago, are answered with 202 and not handled again\n"
        "      --callback HOST[:PORT]\n"
        "                       results may be POSTed there, if X-Callback-Url asks for it; also\n"
        "                       *.DOMAIN; may be repeated (default: nowhere)\n"
        "      --callback-net ADDRESS[/BITS]\n"
        "                       names of --callback may only be at such addresses; may be "
        "repeated\n"
        "                       (default: anywhere but at this machine and link, and where clouds\n"
        "                       keep metadata)\n"
        "      --callback-ca FILE\n"
        "                       authorities that https callbacks trust, PEM (default: the "
        "system's)\n"
        "      --max-body SIZE  (64MiB); the `max` of the input's edge holds, too\n"
        "      --max-memory SIZE\n"
        "                       of all bodies of requests together (a quarter of the memory)\n"
        "      --workflow-memory SIZE\n"
        "                       of a workflow's messages and functions together (half the "
        "memory)\n"
        "      --max-header SIZE      of a request's head (16KiB)\n"
        "      --max-connections N    (4096)\n"
        "      --header-time TIME     for a request's head (10s)\n"
        "      --idle TIME            between requests of a connection (60s)\n"
        "      --min-rate SIZE        per second, of bodies and replies (1KiB)\n"
        "      --drain TIME           for what runs, after SIGTERM (30s)\n"
        "      --threads N            that read and write (one per core)\n"
        "      --spin US        how long such a thread polls before it sleeps, in microseconds, "
        "up\n"
        "                       to 100000; 0: never (default: 20 to 100, and only if clients\n"
        "                       ask again so soon)\n"
        "      --node-cert FILE, --node-key FILE, --node-ca FILE\n"
        "                       to talk TLS with the nodes of workflows\n"
        "      --node-plain     without TLS: whoever is on that network can read and change "
        "messages\n"
        "      --isolation process    run each function in a process of its own\n"
        "      --no-cache             compile the modules anew and store nothing\n"
        "  -v, --verbose        more messages; twice: still more\n"
        "  -q, --quiet          nothing but errors\n",
    .run = run,
};
