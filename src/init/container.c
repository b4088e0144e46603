/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/util.h"
#include "engine/engine.h"
#include "init/init.h"

#define MAX_FOLDERS 128 /* of the root, when the working directory is another */

extern char **environ;

/* --- signals --------------------------------------------------------------------------------- */

/*
 * A guest knows no signals. What would end a program ends it at once, between two instructions of
 * the guest or in a wait: output is not buffered here, so nothing is lost. The kernel does it for
 * any process but the first of a PID namespace, which has to do it itself.
 */
static void on_end(int signo)
{
    _exit(128 + signo);
}

static void take_signals(void)
{
    static const int ends[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2,
                               SIGALRM, SIGPROF, SIGPOLL, SIGXCPU, SIGXFSZ, SIGVTALRM};
    struct sigaction end = {.sa_handler = on_end}, ignore = {.sa_handler = SIG_IGN};
    sigset_t none;

    sigfillset(&end.sa_mask);
    for (size_t i = 0; i < RR_ARRAY_LEN(ends); i++)
        sigaction(ends[i], &end, NULL);
    for (int i = SIGRTMIN; i <= SIGRTMAX; i++)
        sigaction(i, &end, NULL);
    sigaction(SIGPIPE, &ignore, NULL); /* the guest is told by its write */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* --- the module's file ----------------------------------------------------------------------- */

static bool join(char *out, size_t size, const char *folder, size_t len, const char *name)
{
    int n = snprintf(out, size, "%.*s/%s", (int)len, folder, name);

    return n > 0 && (size_t)n < size && access(out, F_OK) == 0;
}

/* As a shell would, and besides in the working directory and at the root, where images have it. */
static void find_module(const char *name, char *out, size_t size)
{
    const char *path = getenv("PATH");

    snprintf(out, size, "%s", name);
    if (strchr(name, '/') || access(name, F_OK) == 0)
        return;
    for (const char *p = path; p && *p;) {
        size_t len = strcspn(p, ":");

        if (len > 0 && join(out, size, p, len, name))
            return;
        p += len + (p[len] == ':');
    }
    if (!join(out, size, "", 0, name))
        snprintf(out, size, "%s", name);
}

/* --- its folders ----------------------------------------------------------------------------- */

struct folders {
    struct rr_preopen list[MAX_FOLDERS + 2];
    char names[MAX_FOLDERS][280];
    size_t n;
};

static void add_folder(struct folders *f, const char *host, const char *guest)
{
    f->list[f->n++] = (struct rr_preopen){.host = host, .guest = guest, .writable = true};
}

/*
 * The container's files, with the kernel's say on who may write what. WASI has no working
 * directory: C and Rust guests look a relative name up in "/" or ".", whichever of the two comes
 * last, and an absolute one there, too, unless a longer folder fits. So ".", if it is not the root,
 * comes last, and each folder of the root before it. Go guests go by $PWD instead.
 */
static void collect_folders(struct folders *f)
{
    char cwd[4096];
    struct dirent *e;
    DIR *d;

    f->n = 0;
    add_folder(f, "/", "/");
    if (!getcwd(cwd, sizeof(cwd)) || strcmp(cwd, "/") == 0)
        return;
    setenv("PWD", cwd, 0);
    d = opendir("/");
    while (d && (e = readdir(d)) && f->n <= MAX_FOLDERS) {
        char *name = f->names[f->n - 1];
        DIR *can_open;

        if (e->d_type != DT_DIR || strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        snprintf(name, sizeof(f->names[0]), "/%s", e->d_name);
        can_open = opendir(name);
        if (!can_open)
            continue;
        closedir(can_open);
        add_folder(f, name, name);
    }
    if (d)
        closedir(d);
    add_folder(f, ".", ".");
}

/* --- run ------------------------------------------------------------------------------------- */

int rr_init_tell(const struct rr_error *err, int status)
{
    if (err->file[0] && err->line)
        rr_log(0, "%s:%u:%u: %s", err->file, err->line, err->column, err->text);
    else
        rr_log(0, "%s", err->text);
    if (err->hint[0])
        fprintf(stderr, "  hint: %s\n", err->hint);
    return status;
}

static int call_start(struct rr_instance *inst, const char *path)
{
    int start = rr_instance_export(inst, "_start"), r, status;
    union rr_value v = {0};
    struct rr_error err = {0};

    if (start < 0) {
        rr_error_set(&err, RR_E_INVALID, "build a WASI command, which has main()",
                     "%s exports no _start", path);
        return rr_init_tell(&err, RR_INIT_NOT_RUN);
    }
    r = rr_instance_call(inst, start, &v, 1, 0, &err);
    status = rr_instance_exit_status(inst);
    if (r == 0 || status >= 0)
        return status < 0 ? 0 : status & 0xff;
    return rr_init_tell(&err, RR_INIT_TRAPPED);
}

const struct rr_preopen *rr_init_folders(size_t *ret_n)
{
    static struct folders folders; /* large */

    if (!folders.n)
        collect_folders(&folders);
    *ret_n = folders.n;
    return folders.list;
}

static int run_module(struct rr_module *m, const char *path, char **argv)
{
    struct rr_instance_options o = {.memory_bytes = 4 * RR_GIB, .args = (const char *const *)argv};
    struct rr_instance *inst = NULL;
    struct rr_error err = {0};
    int status;

    o.folders = rr_init_folders(&o.n_folders);
    o.env = (const char *const *)environ; /* after $PWD was set */
    if (rr_instance_new(m, &o, &inst, &err) != 0)
        return rr_init_tell(&err, RR_INIT_TRAPPED);
    status = call_start(inst, path);
    rr_instance_free(inst);
    return status;
}

int rr_init_container(const struct rr_init_options *o)
{
    struct rr_engine_options eo = {
        .no_cache = true, .inherit_stdio = true, .precompiled = o->precompiled};
    struct rr_engine *engine = NULL;
    struct rr_module *m = NULL;
    struct rr_error err = {0};
    const char *base;
    char path[4096];
    int r, status;

    take_signals();
    find_module(o->argv[0], path, sizeof(path));
    base = strrchr(path, '/');
    prctl(PR_SET_NAME, base ? base + 1 : path);
    if (!o->workflow && access(path, F_OK) != 0) {
        rr_error_set(&err, RR_E_NOINPUT, "check the entrypoint of the image, or the command",
                     "cannot find the module %s: %s", o->argv[0], strerror(errno));
        return rr_init_tell(&err, RR_INIT_NOT_FOUND);
    }
    if (rr_init_is_chain(o))
        return rr_init_chain(o, path);
    r = rr_engine_new(&eo, &engine, &err);
    if (r == 0)
        r = rr_module_load_image(engine, path, o->image_fd, &m, &err);
    if (o->image_fd >= 0)
        close(o->image_fd);
    status = r ? rr_init_tell(&err, RR_INIT_NOT_RUN) : run_module(m, path, o->argv);
    rr_module_free(m);
    rr_engine_free(engine);
    return status;
}
