/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "cli/cli.h"
#include "cli/report.h"
#include "gateway/letter.h"
#include "worker/chain.h"

#define MAX_REPEAT 10000000u

struct request {
    const char *workflow, *input, *output, *trace;
    unsigned int repeat;
    bool json, no_cache, quiet, isolate;
    uint64_t spin_ns;
    struct cli_net net;
    int verbose;
};

struct session {
    struct request rq;
    struct rr_workflow *wf;
    struct rr_worker *worker;
    struct report *report;
    struct cli_progress progress;
};

static struct rr_worker *volatile interrupted_worker;

static void on_signal(int number)
{
    (void)number;
    if (interrupted_worker)
        rr_worker_cancel(interrupted_worker);
}

/* The second Ctrl-C ends the process at once. Reads are not restarted. */
static void catch_signals(struct rr_worker *w)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};

    interrupted_worker = w;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* --- options --------------------------------------------------------------------------------- */

static int parse_repeat(const char *text, unsigned int *ret)
{
    char *end;
    unsigned long n;

    errno = 0;
    n = strtoul(text, &end, 10);
    if (errno || *end || end == text || *text == '-' || n < 1 || n > MAX_REPEAT)
        return cli_usage(&cli_run, "--repeat takes a number from 1 to %u, not '%s'", MAX_REPEAT,
                         text);
    *ret = (unsigned int)n;
    return 0;
}

static int parse_operands(struct request *rq, int argc, char **argv)
{
    if (optind == argc || argc - optind > 2)
        return cli_usage(&cli_run, "name a workflow file%s",
                         argc - optind > 2 ? " and at most one input" : "");
    rq->workflow = argv[optind];
    if (argc - optind == 2) {
        if (rq->input)
            return cli_usage(&cli_run, "two inputs: '%s' and '%s'", rq->input, argv[optind + 1]);
        rq->input = argv[optind + 1];
    }
    if (!rq->input)
        rq->input = "-";
    if (!rq->output)
        rq->output = "-";
    return 0;
}

static int parse(struct request *rq, int argc, char **argv)
{
    static const struct option options[] = {{"input", required_argument, NULL, 'i'},
                                            {"output", required_argument, NULL, 'o'},
                                            {"repeat", required_argument, NULL, 'n'},
                                            {"trace", required_argument, NULL, 't'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"no-cache", no_argument, NULL, 'c'},
                                            {"isolation", required_argument, NULL, 'I'},
                                            {"spin", required_argument, NULL, 's'},
                                            CLI_NET_OPTIONS,
                                            {"verbose", no_argument, NULL, 'v'},
                                            {"quiet", no_argument, NULL, 'q'},
                                            {0}};
    int c, r;

    while ((c = getopt_long(argc, argv, "i:o:vq", options, NULL)) != -1) {
        if (cli_net_option(&rq->net, c, optarg))
            continue;
        switch (c) {
        case 'i':
            rq->input = optarg;
            break;
        case 'o':
            rq->output = optarg;
            break;
        case 't':
            rq->trace = optarg;
            break;
        case 'j':
            rq->json = true;
            break;
        case 'c':
            rq->no_cache = true;
            break;
        case 'I':
            rq->isolate = strcmp(optarg, "process") == 0;
            if (!rq->isolate && strcmp(optarg, "worker") != 0)
                return cli_usage(&cli_run, "--isolation takes process or worker, not '%s'", optarg);
            break;
        case 's':
            r = cli_parse_spin(&cli_run, optarg, CLI_MAX_SPIN_US, &rq->spin_ns);
            if (r)
                return r;
            break;
        case 'v':
            rq->verbose++;
            break;
        case 'q':
            rq->quiet = true;
            break;
        case 'n':
            r = parse_repeat(optarg, &rq->repeat);
            if (r)
                return r;
            break;
        default:
            return RR_E_USAGE;
        }
    }
    return parse_operands(rq, argc, argv);
}

/* --- input and output ------------------------------------------------------------------------ */

static int open_input(const struct request *rq, int *ret_fd, struct rr_error *err)
{
    if (strcmp(rq->input, "-") == 0) {
        *ret_fd = STDIN_FILENO;
        return 0;
    }
    *ret_fd = open(rq->input, O_RDONLY | O_CLOEXEC);
    if (*ret_fd >= 0)
        return 0;
    rr_error_set(err, RR_E_NOINPUT, "give a file that you may read, or - for stdin",
                 "cannot read the input: %s", strerror(errno));
    rr_error_at(err, rq->input, 0, 0);
    return RR_E_NOINPUT;
}

/* What can be read only once is kept for the further runs. */
static int keep_input(int *fd, struct rr_error *err)
{
    char buffer[65536];
    int copy, r = 0;

    if (lseek(*fd, 0, SEEK_SET) == 0)
        return 0;
    copy = memfd_create("roadrunner-input", MFD_CLOEXEC);
    if (copy < 0)
        return rr_error_set(err, RR_E_SYSTEM, "give the input as a file",
                            "cannot keep the input for --repeat: %s", strerror(errno));
    for (ssize_t n = 1; n > 0 && r == 0;) {
        n = read(*fd, buffer, sizeof(buffer));
        if (n < 0 && errno != EINTR)
            r = -errno;
        else if (n > 0)
            r = rr_write_all(copy, buffer, (size_t)n);
    }
    if (r == 0 && lseek(copy, 0, SEEK_SET) < 0)
        r = -errno;
    if (r < 0) {
        close(copy);
        return rr_error_set(err, RR_E_NOINPUT, "give the input as a file",
                            "cannot keep the input for --repeat: %s", strerror(-r));
    }
    *fd = copy;
    return 0;
}

static int output_failed(const char *path, int error, struct rr_error *err)
{
    rr_error_set(err, RR_E_OUTPUT,
                 error == ENOSPC ? "free some space" : "give a path that you may write to",
                 "cannot write the result: %s", strerror(error));
    if (strcmp(path, "-") != 0)
        rr_error_at(err, path, 0, 0);
    return RR_E_OUTPUT;
}

static int write_data(struct session *s, int fd, const struct rr_result *res)
{
    uint64_t done = 0;
    int r = 0;

    while (done < res->len && r == 0) {
        uint64_t n = rr_min(res->len - done, 8 * RR_MIB);

        if (rr_worker_cancelled(s->worker))
            return -EINTR;
        r = rr_write_all(fd, res->data + done, n);
        done += n;
        cli_progress_show(&s->progress, "writing", done, res->len);
    }
    cli_progress_clear(&s->progress);
    return r;
}

/* A regular file appears whole or not at all. */
static int write_file(struct session *s, const struct rr_result *res, struct rr_error *err)
{
    const char *path = s->rq.output;
    __attribute__((cleanup(rr_free_cleanup))) char *temporary = NULL;
    struct stat st;
    bool special = stat(path, &st) == 0 && !S_ISREG(st.st_mode);
    int fd, r;

    if (asprintf(&temporary, "%s.XXXXXX", path) < 0) {
        temporary = NULL;
        return rr_error_no_memory(err);
    }
    fd = special ? open(path, O_WRONLY | O_CLOEXEC) : mkostemp(temporary, O_CLOEXEC);
    if (fd < 0)
        return output_failed(path, errno, err);
    r = write_data(s, fd, res);
    if (r == 0 && !special && fchmod(fd, 0644) < 0)
        r = -errno;
    if (close(fd) < 0 && r == 0)
        r = -errno;
    if (r == 0 && !special && rename(temporary, path) < 0)
        r = -errno;
    if (r < 0 && !special)
        unlink(temporary);
    return r < 0 ? output_failed(path, -r, err) : 0;
}

static int write_result(struct session *s, const struct rr_result *res, struct rr_error *err)
{
    int r;

    if (strcmp(s->rq.output, "-") != 0)
        return write_file(s, res, err);
    if (isatty(STDOUT_FILENO) && memchr(res->data, 0, rr_min(res->len, 4096)))
        return rr_error_set(err, RR_E_OUTPUT, "write it to a file with -o, or pipe it on",
                            "the result is binary: %s are not written to a terminal",
                            rr_bytes_text(res->len));
    r = write_data(s, STDOUT_FILENO, res);
    return r < 0 ? output_failed("-", -r, err) : 0;
}

/* --- observing ------------------------------------------------------------------------------- */

static void on_hop(void *user, const struct rr_hop *hop)
{
    report_hop(((struct session *)user)->report, hop);
}

static void on_span(void *user, const struct rr_span *span)
{
    report_span(((struct session *)user)->report, span);
}

/* A line is one write: processes of functions write to the same stderr. */
static void on_log(void *user, int function, int level, const char *text, size_t len)
{
    static const char *const names[] = {"error: ", "warning: ", "", "debug: "};
    struct session *s = user;
    char *copy;

    if (level > (s->rq.quiet ? 0 : s->rq.verbose ? 3 : 2) || !(copy = malloc(len + 1)))
        return;
    cli_progress_clear(&s->progress);
    for (size_t n = 0; n < len; n++)
        copy[n] = (char)((unsigned char)text[n] < 0x20 && text[n] != '\t' ? ' ' : text[n]);
    copy[len] = '\0';
    fprintf(stderr, "%s: %s%s\n", s->wf->functions[function].name, names[level], copy);
    free(copy);
}

static void on_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    cli_progress_show(&((struct session *)user)->progress, what, done, total);
}

static bool is_cancelled(void *user)
{
    return rr_worker_cancelled(((struct session *)user)->worker);
}

/* --- the run --------------------------------------------------------------------------------- */

static int run_all(struct session *s, int fd, struct rr_result *result, struct rr_error *err)
{
    for (unsigned int n = 0; n < s->rq.repeat; n++) {
        uint64_t begin;
        int r;

        if (n > 0 && lseek(fd, 0, SEEK_SET) < 0)
            return rr_error_set(err, RR_E_NOINPUT, "give the input as a file",
                                "cannot read the input again: %s", strerror(errno));
        begin = rr_now_ns();
        r = rr_worker_run(s->worker, fd, result, err);
        if (r)
            return r;
        report_run(s->report, rr_now_ns() - begin, result->len);
        if (s->rq.repeat > 1)
            cli_progress_show(&s->progress, "running", n + 1, s->rq.repeat);
        if (n == 0 && s->rq.repeat > 1) {
            rr_worker_release(s->worker);
            rr_worker_warm(s->worker);
            rr_arena_settle(rr_worker_arena(s->worker));
        }
    }
    cli_progress_clear(&s->progress);
    return 0;
}

static int run_once(struct session *s, struct rr_error *err)
{
    struct rr_result result = {0};
    int fd = -1, first, r = open_input(&s->rq, &fd, err);

    first = fd;
    if (r == 0 && s->rq.repeat > 1)
        r = keep_input(&fd, err);
    if (r == 0)
        r = run_all(s, fd, &result, err);
    if (first > STDIN_FILENO)
        close(first);
    if (fd != first && fd > STDIN_FILENO)
        close(fd);
    return r ? r : write_result(s, &result, err);
}

static int print_report(struct session *s, const struct rr_error *failure)
{
    bool to_stdout = strcmp(s->rq.output, "-") != 0;

    rr_worker_release(s->worker);
    if (s->rq.json)
        report_json(s->report, s->worker, failure, to_stdout ? stdout : stderr);
    else if (!failure && !s->rq.quiet)
        report_print(s->report, s->worker, stderr);
    if (s->rq.trace && report_trace(s->report, s->rq.trace) < 0) {
        struct rr_error err;

        output_failed(s->rq.trace, errno, &err);
        return cli_error(&err);
    }
    return 0;
}

static int run(int argc, char **argv)
{
    struct session s = {.rq.repeat = 1};
    struct rr_worker_options options = {
        .arena.watch_pressure = true,
        .observer = {
            .user = &s, .hop = on_hop, .span = on_span, .log = on_log, .progress = on_progress}};
    struct rr_letters letters = {.stop = is_cancelled, .user = &s};
    struct rr_error err = {0};
    int status = parse(&s.rq, argc, argv), r;

    if (status)
        return status;
    rr_log_set_level(s.rq.quiet ? 0 : 1 + s.rq.verbose);
    s.progress.off = s.rq.quiet;
    options.no_cache = s.rq.no_cache;
    options.spin_ns = s.rq.spin_ns;
    options.kind = "run";
    r = rr_chain_open(s.rq.workflow, s.rq.net.tls.cert_file ? &s.rq.net.tls : NULL, s.rq.net.plain,
                      &s.wf, &err);
    if (r == 0 && s.rq.isolate)
        rr_workflow_isolate_all(s.wf);
    if (r == 0 && rr_workflow_has_nodes(s.wf))
        r = cli_net_apply(&s.rq.net, cli_only_unix(s.wf), &options, &err);
    if (r == 0)
        r = rr_letters_prepare(s.wf, &err);
    options.post = rr_letter_post;
    options.post_user = &letters;
    if (r == 0)
        r = rr_worker_new(s.wf, &options, &s.worker, &err);
    cli_progress_clear(&s.progress);
    s.report = r == 0 ? report_new(s.wf) : NULL;
    if (r) {
        if (s.rq.json)
            report_failure(&err, strcmp(s.rq.output, "-") != 0 ? stdout : stderr);
        status = cli_error(&err);
    } else {
        catch_signals(s.worker);
        status = run_once(&s, &err);
        cli_progress_clear(&s.progress);
        if (status && rr_worker_cancelled(s.worker))
            status = rr_error_set(&err, RR_E_CANCELLED, "", "interrupted");
        if (status)
            cli_error(&err);
        r = print_report(&s, status ? &err : NULL);
        status = status ? status : r;
    }
    interrupted_worker = NULL;
    report_free(s.report);
    rr_worker_free(s.worker);
    rr_workflow_free(s.wf);
    return status;
}

const struct cli_command cli_run = {
    .name = "run",
    .summary = "run a workflow on an input",
    .help =
        "Usage: roadrunner run WORKFLOW|chain:NAME[@HOST:PORT] [INPUT] [OPTION...]\n\n"
        "Sends INPUT (a file, or stdin) through the workflow, or through the chain of containers\n"
        "that begins at NAME (chain:at-least-once:NAME if it delivers so), and writes its result.\n"
        "What each hand-off cost is printed on stderr.\n\n"
        "Options:\n"
        "  -i, --input FILE   the input; - is stdin (default)\n"
        "  -o, --output FILE  the result; - is stdout (default)\n"
        "      --repeat N     run N times; the figures are medians, the result is the last one's\n"
        "      --trace FILE   write a trace for Chrome's about:tracing or Perfetto\n"
        "      --json         the figures as JSON: on stdout if the result goes to a file, else "
        "on\n"
        "                     stderr\n"
        "      --isolation process\n"
        "                     run each function in a process of its own, whatever the file says\n"
        "      --spin US      how long a process polls before it sleeps, in microseconds; 0: "
        "never\n"
        "                     (default: up to 50, less where it does not pay)\n" CLI_NET_HELP
        "      --no-cache     compile the modules anew and store nothing\n"
        "  -v, --verbose      more messages; twice: still more\n"
        "  -q, --quiet        nothing but errors\n",
    .run = run,
};
