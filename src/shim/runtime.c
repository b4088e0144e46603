/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "oci/oci.h"
#include "shim/shim.h"

extern char **environ;

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

/* It lies beside us. */
static void command_path(char out[4096])
{
    const char *own = getenv("ROADRUNNER_OCI");
    ssize_t n;
    char *end;

    if (own && *own) {
        snprintf(out, 4096, "%s", own);
        return;
    }
    n = readlink("/proc/self/exe", out, 4000);
    out[n < 0 ? 0 : n] = 0;
    end = strrchr(out, '/');
    memcpy(end ? end : out, "/roadrunner-oci", sizeof("/roadrunner-oci"));
}

/* Ours, and what is for roadrunner-oci; @ret_own: owned, what is new in it. */
static char **environment(const struct rr_job *job, char *ret_own[2])
{
    static const char *const names[] = {"ROADRUNNER_RUNTIME", "ROADRUNNER_BUNDLE"};
    const char *const values[] = {job->binary, job->bundle};
    size_t n = 0, k = 0;
    char **env;

    while (environ[n])
        n++;
    env = calloc(n + 3, sizeof(*env));
    for (size_t i = 0; env && environ[i]; i++) {
        size_t len = strcspn(environ[i], "=");

        for (n = 0; n < 2; n++)
            if (values[n] && *values[n] && strlen(names[n]) == len &&
                strncmp(environ[i], names[n], len) == 0)
                break;
        if (n == 2)
            env[k++] = environ[i];
    }
    for (size_t i = 0; env && i < 2; i++) {
        if (!values[i] || !*values[i])
            continue;
        if (asprintf(&ret_own[i], "%s=%s", names[i], values[i]) < 0) {
            ret_own[i] = NULL;
            free(rr_take(env));
        } else {
            env[k++] = ret_own[i];
        }
    }
    return env;
}

static int spawn(const struct rr_job *job, const char *log, pid_t *ret)
{
    char *own[2] = {NULL, NULL};
    const char *argv[48] = {"roadrunner-oci", "--log", log, "--log-format", "json"};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    char path[4096], **env;
    sigset_t none;
    int r;

    for (size_t i = 0; job->argv[i] && i + 6 < RR_ARRAY_LEN(argv); i++)
        argv[5 + i] = job->argv[i];
    env = environment(job, own);
    if (!env) {
        free(own[0]);
        free(own[1]);
        return -ENOMEM;
    }
    command_path(path);
    sigemptyset(&none);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawn_file_actions_init(&actions);
    for (int n = 0; n < 3; n++)
        if (job->fds[n] >= 0)
            posix_spawn_file_actions_adddup2(&actions, job->fds[n], n);
        else
            posix_spawn_file_actions_addopen(&actions, n, "/dev/null", n ? O_WRONLY : O_RDONLY, 0);
    if (job->bundle)
        posix_spawn_file_actions_addchdir_np(&actions, job->bundle);
    r = posix_spawn(ret, path, &actions, &attr, (char **)(uintptr_t)argv, env);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    free(env);
    free(own[0]);
    free(own[1]);
    if (r)
        rr_log(0, "cannot run %s: %s", path, strerror(r));
    return -r;
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
