/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "abi/abi.h"
#include "base/util.h"
#include "engine/engine.h"
#include "init/init.h"

#define MAX_COMPILE_S 120

static int usage(void)
{
    fputs("Usage: roadrunner-worker container|exec [OPTION...] -- MODULE [ARG...]\n"
          "       roadrunner-worker status\n"
          "       roadrunner-worker prepare MODULE\n"
          "       roadrunner-worker --version\n\n"
          "The first process of a Wasm container. roadrunner-oci and the shim start it; `prepare`\n"
          "compiles a module into the node's cache and prints where.\n\n"
          "Options: descriptors, --image-fd N, --second-fd N, --domain-fd N, --module-fd N=PATH; "
          "and what annotations\n"
          "say, --function NAME, --next NAME[@ADDRESS], --listen ADDRESS, --workflow FILE,\n"
          "--second MODULE, --patience S, --plain, --trace, --again.\n",
          stderr);
    return RR_E_USAGE;
}

static bool take_fd(const char *text, int *ret)
{
    char *end;
    long fd = strtol(text, &end, 10);

    if (end == text || *end || fd < 3 || fd > 1 << 20)
        return false;
    *ret = (int)fd;
    return fcntl(*ret, F_SETFD, FD_CLOEXEC) == 0;
}

/* NUMBER=PATH */
static bool take_module(struct rr_init_options *o, char *text)
{
    char *equals = strchr(text, '=');

    if (!equals || o->n_modules == RR_INIT_MAX_MODULES)
        return false;
    *equals = 0;
    o->modules[o->n_modules].path = equals + 1;
    return take_fd(text, &o->modules[o->n_modules++].fd);
}

/* argv[0] is the mode. */
static int run(int argc, char **argv)
{
    static const struct option options[] = {{"image-fd", required_argument, NULL, 'i'},
                                            {"second-fd", required_argument, NULL, 'j'},
                                            {"domain-fd", required_argument, NULL, 'd'},
                                            {"module-fd", required_argument, NULL, 'm'},
                                            {"function", required_argument, NULL, 'f'},
                                            {"next", required_argument, NULL, 'n'},
                                            {"listen", required_argument, NULL, 'l'},
                                            {"workflow", required_argument, NULL, 'w'},
                                            {"second", required_argument, NULL, 's'},
                                            {"patience", required_argument, NULL, 'q'},
                                            {"plain", no_argument, NULL, 'p'},
                                            {"precompiled", no_argument, NULL, 'c'},
                                            {"trace", no_argument, NULL, 't'},
                                            {"again", no_argument, NULL, 'a'},
                                            {0}};
    struct rr_init_options o = {.image_fd = -1, .second_fd = -1, .domain_fd = -1};
    bool good = true;
    int c;

    while (good && (c = getopt_long(argc, argv, "+", options, NULL)) != -1) {
        const char **texts[] = {['f'] = &o.function, ['n'] = &o.next,   ['l'] = &o.listen,
                                ['w'] = &o.workflow, ['s'] = &o.second, ['t'] = NULL};
        int *fds[] = {['d'] = &o.domain_fd, ['i'] = &o.image_fd, ['j'] = &o.second_fd};

        if (c == 'p')
            o.plain = true;
        else if (c == 'c')
            o.precompiled = true;
        else if (c == 't')
            o.trace = true;
        else if (c == 'a')
            o.again = true;
        else if (c == 'm')
            good = take_module(&o, optarg);
        else if (c == 'q')
            o.patience_s = (int)strtol(optarg, NULL, 10); /* the runtime has checked it */
        else if (c == 'i' || c == 'j' || c == 'd')
            good = take_fd(optarg, fds[c]);
        else if (c != '?')
            *texts[c] = optarg;
        else
            good = false;
    }
    if (!good || optind >= argc || strcmp(argv[optind - 1], "--") != 0)
        return usage();
    o.argv = argv + optind;
    return rr_init_container(&o);
}

static int prepare(const char *path)
{
    __attribute__((cleanup(rr_free_cleanup))) char *entry = NULL;
    struct rr_error err = {0};
    struct rlimit cpu = {MAX_COMPILE_S, MAX_COMPILE_S};

    setrlimit(RLIMIT_CPU, &cpu); /* it runs outside of the container's cgroup */
    if (rr_module_prepare(path, rr_abi_define, &entry, &err) != 0) {
        rr_log(0, "%s", err.text);
        return (int)err.code;
    }
    puts(entry);
    return fflush(stdout) == 0 ? 0 : RR_E_OUTPUT;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";

    if (strcmp(mode, "container") == 0 || strcmp(mode, "exec") == 0)
        return run(argc - 1, argv + 1);
    if (strcmp(mode, "status") == 0 && argc == 2)
        return rr_init_status();
    if (strcmp(mode, "prepare") == 0 && argc == 3)
        return prepare(argv[2]);
    if (strcmp(mode, "--version") == 0) {
        printf("roadrunner-worker %s\n%s\n", RR_VERSION, rr_engine_version());
        return fflush(stdout) == 0 ? 0 : RR_E_OUTPUT;
    }
    return usage();
}
