/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "oci/command.h"

#define SHOW_VERSION (-1)
#define SHOW_HELP (-2)
#define DEFAULT_ROOT "/run/roadrunner/oci"

static const char help[] =
    "Usage: roadrunner-oci [OPTION...] COMMAND [OPTION...] [ID]\n\n"
    "An OCI runtime: runs WebAssembly modules as containers. Namespaces, cgroups, mounts and the\n"
    "rest are made by crun or runc; a container that is no module is theirs altogether.\n\n"
    "Commands: create, start, state, kill, delete, run, exec, list, ps, pause, resume, update,\n"
    "events, features, spec; their options are those of the runtime below.\n"
    "In a Wasm container `exec ID MODULE [ARG...]` runs a module, `exec ID status` tells how it "
    "is.\n\n"
    "Options:\n"
    "  --root FOLDER           state of containers (" DEFAULT_ROOT ")\n"
    "  --domain NAME           trust domain of containers that hand messages on\n"
    "  --log FILE              errors go there, too\n"
    "  --log-format text|json\n"
    "  --systemd-cgroup        have systemd make the cgroups\n"
    "  --debug\n"
    "  --version, --help\n\n"
    "Environment:\n"
    "  ROADRUNNER_RUNTIME    the runtime below: a name or a path (crun, or else runc)\n"
    "  ROADRUNNER_WORKER     roadrunner-worker, if it does not lie beside this command\n"
    "  ROADRUNNER_CACHE_DIR  folder of compiled modules (/var/cache/roadrunner)\n"
    "  ROADRUNNER_STATE      folder of trust domains (/run/roadrunner)\n"
    "  ROADRUNNER_PRECOMPILED  allow: compiled modules (.cwasm) of images, which are native code\n"
    "  ROADRUNNER_CONTAINERD set by our shim: containerd's namespace\n";

static const struct {
    const char *name;
    int (*run)(struct call *c);
} commands[] = {
    {"create", command_create},     {"run", command_create},
    {"exec", command_exec},         {"delete", command_delete},
    {"state", command_state},       {"list", command_state},
    {"features", command_features}, {"checkpoint", command_checkpoint},
    {"restore", command_restore},
};

static int usage(const char *what, const char *word)
{
    fprintf(stderr, "roadrunner-oci: error: %s%s\n  hint: roadrunner-oci --help\n", what, word);
    return RR_E_USAGE;
}

/* For a user without rights over the system: in the folder of the session. */
static const char *default_root(void)
{
    const char *session = getenv("XDG_RUNTIME_DIR");
    char *path = NULL;

    if (rr_oci_is_node() || !session || asprintf(&path, "%s/roadrunner-oci", session) < 0) {
        mkdir("/run/roadrunner", 0711);
        return DEFAULT_ROOT;
    }
    return path; /* kept until we end */
}

/* Global options: we read them, and the runtime gets them. Returns where the command is; 0: none.
 */
static int read_globals(struct call *c, int argc, char **argv)
{
    static const char *const valued[] = {
        "--root", "--domain", "--log", "--log-format", "--log-level", "--criu", "--cgroup-manager"};

    for (int n = 1; n < argc; n++) {
        const char *word = argv[n], *value = strchr(word, '=');
        size_t len = value ? (size_t)(value - word) : strlen(word);
        bool has_value = false;

        if (word[0] != '-')
            return n;
        if (strcmp(word, "--version") == 0 || strcmp(word, "-v") == 0)
            return SHOW_VERSION;
        if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
            return SHOW_HELP;
        for (size_t i = 0; i < RR_ARRAY_LEN(valued); i++)
            has_value =
                has_value || (strlen(valued[i]) == len && strncmp(valued[i], word, len) == 0);
        value = value ? value + 1 : has_value && n + 1 < argc ? argv[++n] : NULL;
        if (has_value && !value)
            return 0;
        if (strncmp(word, "--root", len) == 0 && len == 6) {
            c->root = value;
            continue;
        }
        if (strncmp(word, "--domain", len) == 0 && len == 8) {
            c->domain = value;
            continue;
        }
        if (strncmp(word, "--log", len) == 0 && len == 5)
            c->log = value;
        if (strncmp(word, "--log-format", len) == 0 && len == 12)
            c->log_json = strcmp(value, "json") == 0;
        call_add(c, word);
        if (has_value && !strchr(word, '='))
            call_add(c, value);
    }
    return 0;
}

static int print_version(void)
{
    char runtime[4096];
    struct rr_error err;

    printf("roadrunner-oci version %s\nspec: 1.3.0\n", RR_VERSION);
    if (rr_runtime_find(NULL, NULL, true, runtime, sizeof(runtime), &err) == 0)
        printf("runtime: %s\n", runtime);
    return fflush(stdout) == 0 ? 0 : RR_E_OUTPUT;
}

static int print_help(void)
{
    fputs(help, stdout);
    return fflush(stdout) == 0 ? 0 : RR_E_OUTPUT;
}

static int run(struct call *c)
{
    for (size_t i = 0; i < RR_ARRAY_LEN(commands); i++)
        if (strcmp(c->command, commands[i].name) == 0)
            return commands[i].run(c);
    return call_exec(c); /* the runtime's business */
}

/* They find a container by what the runtime keeps of it, and touch no cgroup that is not its own.
 */
static bool needs_no_view(const char *command)
{
    static const char *const names[] = {"start", "state", "kill", "delete", "list", "ps"};

    for (size_t i = 0; i < RR_ARRAY_LEN(names); i++)
        if (strcmp(command, names[i]) == 0)
            return true;
    return false;
}

int rr_oci_cli(int argc, char **argv)
{
    struct rr_error err = {0};
    static struct call c; /* with all that it points to: kept until we end */
    size_t id;
    int at;

    call_add(&c, "");
    at = read_globals(&c, argc, argv);
    if (at < 0)
        return at == SHOW_VERSION ? print_version() : print_help();
    if (at == 0)
        return usage("name a command", "");
    c.root = c.root ? c.root : default_root();
    call_add(&c, "--root");
    call_add(&c, c.root);
    c.command = argv[at];
    call_add(&c, c.command);
    c.rest = c.n;
    for (int n = at + 1; n < argc; n++)
        call_add(&c, argv[n]);
    id = call_word(&c, c.rest);
    c.id = id ? c.argv[id] : NULL;
    if (rr_runtime_find(c.root, c.id, !needs_no_view(c.command), c.runtime, sizeof(c.runtime),
                        &err) != 0)
        return call_fail(&c, &err);
    return run(&c);
}
