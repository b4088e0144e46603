/* SPDX-License-Identifier: Apache-2.0 */
#include <openssl/crypto.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli.h"

static const struct cli_command *const commands[] = {&cli_run,     &cli_serve,   &cli_worker,
                                                     &cli_check,   &cli_explain, &cli_inspect,
                                                     &cli_compile, &cli_ps,      &cli_bench};

static void print_help(FILE *f)
{
    fputs("Usage: roadrunner COMMAND [OPTION...]\n\n"
          "Runs workflows of WebAssembly functions; messages change hands without a copy.\n\n"
          "Commands:\n",
          f);
    for (size_t n = 0; n < RR_ARRAY_LEN(commands); n++)
        fprintf(f, "  %-9s %s\n", commands[n]->name, commands[n]->summary);
    fputs("\nOptions:\n"
          "  --help     this text; `roadrunner COMMAND --help` for a command's\n"
          "  --version  versions of roadrunner and of its engine\n\n"
          "Environment:\n"
          "  ROADRUNNER_CACHE_DIR  folder of compiled modules (~/.cache/roadrunner/aot)\n"
          "  NO_COLOR              no colours\n\n"
          "Exit status: 0 success, 64 usage, 65 invalid workflow or module, 66 missing input,\n"
          "70 a function failed, 71 limit, 72 deadline, 73 a worker process or node was lost,\n"
          "74 output, 75 system, 130 interrupted.\n",
          f);
}

static const struct cli_command *find(const char *name)
{
    for (size_t n = 0; n < RR_ARRAY_LEN(commands); n++)
        if (strcmp(commands[n]->name, name) == 0)
            return commands[n];
    return NULL;
}

static int run(const struct cli_command *c, int argc, char **argv)
{
    for (int n = 1; n < argc && strcmp(argv[n], "--") != 0; n++)
        if (strcmp(argv[n], "--help") == 0 || strcmp(argv[n], "-h") == 0) {
            fputs(c->help, stdout);
            return 0;
        }
    /* In a container its configuration would be the image's, and can name code to load. */
    OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, NULL);
    return c->run(argc, argv);
}

static int finish(int status)
{
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == 0) {
        fputs("roadrunner: error: cannot write to stdout\n", stderr);
        return RR_E_OUTPUT;
    }
    return status;
}

int main(int argc, char **argv)
{
    const struct cli_command *c;

    if (argc < 2) {
        print_help(stderr);
        return RR_E_USAGE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("roadrunner %s\n%s\n", RR_VERSION, rr_engine_version());
        return finish(0);
    }
    if (strcmp(argv[1], "help") == 0 && argc > 2 && (c = find(argv[2]))) {
        fputs(c->help, stdout);
        return finish(0);
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return finish(0);
    }
    c = find(argv[1]);
    if (!c) {
        fprintf(stderr, "roadrunner: unknown command '%s'\n  hint: roadrunner --help\n", argv[1]);
        return RR_E_USAGE;
    }
    return finish(run(c, argc - 1, argv + 1));
}
