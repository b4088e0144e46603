/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "oci/oci.h"
#include "shim/shim.h"

struct running {
    void (*done)(void *data, int status, const char *error);
    void *data;
    char *log; /* owned: path */
};

void rr_job_add(struct rr_job *job, const char *word)
{
    for (size_t i = 0; i + 1 < RR_ARRAY_LEN(job->argv); i++)
        if (!job->argv[i]) {
            job->argv[i] = word;
            return;
        }
}

static void put_env(const char *name, const char *value)
{
    if (value && *value)
        setenv(name, value, 1);
}

/*
 * A shim lives as long as its pod, and may find that other programs have been installed since. What
 * fits the worker that lies there now is then not its own code, but what lies beside that.
 */
static void become_newer(const char **argv)
{
    static const char gone[] = " (deleted)", name[] = "/roadrunner-oci";
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - sizeof(name));
    size_t len = n < 0 ? 0 : (size_t)n;
    char *slash;

    path[len] = 0;
    if (len < sizeof(gone) || strcmp(path + len - (sizeof(gone) - 1), gone) != 0)
        return;
    slash = strrchr(path, '/');
    memcpy(slash ? slash : path, name, sizeof(name));
    execv(path, (char **)(uintptr_t)argv);
}

/* The child's: does not return. */
static void become(const struct rr_job *job, const char *log, int bundle_fd)
{
    const char *argv[48] = {"roadrunner-oci", "--log", log, "--log-format", "json"};
    int n = 5;
    sigset_t none;

    while (n < 47 && job->argv[n - 5]) {
        argv[n] = job->argv[n - 5];
        n++;
    }
    put_env("ROADRUNNER_RUNTIME", job->binary);
    put_env("ROADRUNNER_BUNDLE", job->bundle);
    rr_log_set_level(1);
    for (int k = 0; k < 3; k++) {
        int fd = job->fds[k] >= 0 ? job->fds[k] : open("/dev/null", k ? O_WRONLY : O_RDONLY);

        if (fd < 0 || dup2(fd, k) < 0)
            _exit(1);
    }
    if (bundle_fd >= 0 && fchdir(bundle_fd) < 0)
        _exit(1);
    close_range(3, ~0u, 0); /* a deletion waits for the runtime, and would keep our sockets */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    become_newer(argv);
    n = rr_oci_cli(n, (char **)(uintptr_t)argv);
    fflush(stdout);
    _exit(n);
}

/*
 * What `roadrunner-oci` does, done by a child of ours: half a millisecond less than to start that
 * for each command, and it keeps what others put into config.json out of this process.
 */
static int spawn(const struct rr_job *job, const char *log, pid_t *ret)
{
    __attribute__((cleanup(rr_close_cleanup))) int bundle_fd = -1;

    if (job->bundle && (bundle_fd = open(job->bundle, O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0)
        return -errno;
    *ret = fork();
    if (*ret == 0)
        become(job, log, bundle_fd);
    return *ret < 0 ? -errno : 0;
}

/* The message of the log's last error. */
static void last_error(const char *log, char *out, size_t size)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = fopen(log, "re");
    __attribute__((cleanup(rr_free_cleanup))) char *line = NULL;
    size_t cap = 0;

    while (f && getline(&line, &cap, f) > 0) {
        struct json_object *o = json_tokener_parse(line), *level = NULL, *msg = NULL;

        if (json_object_is_type(o, json_type_object)) {
            json_object_object_get_ex(o, "level", &level);
            json_object_object_get_ex(o, "msg", &msg);
        }
        if (msg && (!level || strcmp(json_object_get_string(level), "error") == 0))
            snprintf(out, size, "%s", json_object_get_string(msg));
        json_object_put(o);
    }
}

static char *log_path(const struct rr_job *job)
{
    static unsigned int n;
    char *path = NULL;

    return asprintf(&path, "%s/.runtime-%d-%u.log", job->bundle ? job->bundle : "/run", getpid(),
                    n++) < 0
               ? NULL
               : path;
}

static void on_done(void *data, int status)
{
    struct running *r = data;
    char text[1024] = "";
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);

    if (code != 0)
        last_error(r->log, text, sizeof(text));
    unlink(r->log);
    if (code != 0 && !text[0])
        snprintf(text, sizeof(text), "the runtime ended with status %d and no message", code);
    r->done(r->data, code, text);
    free(r->log);
    free(r);
}

int rr_job_start(struct rr_loop *l, const struct rr_job *job)
{
    struct running *r = calloc(1, sizeof(*r));
    int e = -ENOMEM;
    pid_t pid;

    if (r && (r->log = log_path(job))) {
        r->done = job->done;
        r->data = job->data;
        e = spawn(job, r->log, &pid);
    }
    if (e == 0)
        e = rr_loop_child(l, pid, on_done, r);
    if (e < 0) {
        free(r ? r->log : NULL);
        free(r);
    }
    return e;
}

int rr_job_wait(const struct rr_job *job)
{
    __attribute__((cleanup(rr_free_cleanup))) char *log = log_path(job);
    int status = -1;
    pid_t pid;

    if (!log || spawn(job, log, &pid) < 0)
        return -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    unlink(log);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
