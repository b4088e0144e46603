/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/util.h"
#include "engine/engine.h"
#include "init/init.h"

#define MAX_COMPILE_S 120

static int usage(void)
{
    fputs("Usage: roadrunner-worker container|exec [--image-fd N] -- MODULE [ARG...]\n"
          "       roadrunner-worker status\n"
          "       roadrunner-worker prepare MODULE\n"
          "       roadrunner-worker --version\n\n"
          "The first process of a Wasm container. roadrunner-oci and the shim start it; `prepare`\n"
          "compiles a module into the node's cache and prints where.\n",
          stderr);
    return RR_E_USAGE;
}

/* argv[0] is the mode. */
static int run(int argc, char **argv)
{
    struct rr_init_options o = {.image_fd = -1};
    int n = 1;

    if (n + 1 < argc && strcmp(argv[n], "--image-fd") == 0) {
        char *end;
        long fd = strtol(argv[n + 1], &end, 10);

        if (*end || fd < 3 || fd > 1 << 20)
            return usage();
        o.image_fd = (int)fd;
        fcntl(o.image_fd, F_SETFD, FD_CLOEXEC);
        n += 2;
    }
    if (n + 1 >= argc || strcmp(argv[n], "--") != 0)
        return usage();
    o.argv = argv + n + 1;
    return rr_init_container(&o);
}

static int prepare(const char *path)
{
    __attribute__((cleanup(rr_free_cleanup))) char *entry = NULL;
    struct rr_error err = {0};
    struct rlimit cpu = {MAX_COMPILE_S, MAX_COMPILE_S};

    setrlimit(RLIMIT_CPU, &cpu); /* it runs outside of the container's cgroup */
    if (rr_module_prepare(path, &entry, &err) != 0) {
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
