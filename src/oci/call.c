/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "oci/command.h"

#define MAX_OUTPUT (16u << 20)

extern char **environ;

/* Options of commands that take a value, of crun and of runc. */
static const char *const with_value[] = {
    "--bundle",   "-b",        "--config",    "-f",       "--console-socket",
    "--pid-file", "--process", "-p",          "--cwd",    "--preserve-fds",
    "--env",      "-e",        "--user",      "-u",       "--additional-gids",
    "-g",         "--cap",     "-c",          "--cgroup", "--process-label",
    "--apparmor", "--format",  "--resources", "-r"};

void call_add(struct call *c, const char *word)
{
    if (c->n + 2 > c->room) {
        size_t room = c->room ? 2 * c->room : 32;
        char **argv = realloc(c->argv, room * sizeof(*argv));

        if (!argv) {
            fputs("roadrunner-oci: error: out of memory\n", stderr);
            exit(RR_E_SYSTEM);
        }
        c->argv = argv;
        c->room = room;
    }
    c->argv[c->n++] = (char *)(uintptr_t)word;
    c->argv[c->n] = NULL;
}

static bool takes_value(const char *word)
{
    for (size_t i = 0; i < RR_ARRAY_LEN(with_value); i++)
        if (strcmp(word, with_value[i]) == 0)
            return true;
    return false;
}

/* Words that the option at argv[@i] has; 0: none of these names. @value: out. */
static size_t option_at(const struct call *c, size_t i, const char *name, const char *short_name,
                        const char **value)
{
    const char *word = c->argv[i];
    size_t len = strlen(name);

    if (strncmp(word, name, len) == 0 && word[len] == '=') {
        *value = word + len + 1;
        return 1;
    }
    if (strcmp(word, name) != 0 && (!short_name || strcmp(word, short_name) != 0))
        return 0;
    *value = i + 1 < c->n ? c->argv[i + 1] : NULL;
    return *value ? 2 : 1;
}

size_t call_word(const struct call *c, size_t from)
{
    for (size_t i = from; i < c->n; i++) {
        if (strcmp(c->argv[i], "--") == 0)
            return i + 1 < c->n ? i + 1 : 0;
        if (c->argv[i][0] != '-' || !c->argv[i][1])
            return i;
        if (takes_value(c->argv[i]))
            i++;
    }
    return 0;
}

const char *call_get(const struct call *c, const char *name, const char *short_name)
{
    size_t end = call_word(c, c->rest);
    const char *value = NULL;

    for (size_t i = c->rest; i < (end ? end : c->n); i++)
        if (option_at(c, i, name, short_name, &value) == 0 && takes_value(c->argv[i]))
            i++;
    return value;
}

bool call_flag(const struct call *c, const char *name, const char *short_name)
{
    size_t end = call_word(c, c->rest);

    for (size_t i = c->rest; i < (end ? end : c->n); i++)
        if (strcmp(c->argv[i], name) == 0 || strcmp(c->argv[i], short_name) == 0)
            return true;
    return false;
}

void call_set(struct call *c, const char *name, const char *short_name, const char *value)
{
    size_t end = call_word(c, c->rest), n;
    const char *old;

    for (size_t i = c->rest; i < (end ? end : c->n);) {
        n = option_at(c, i, name, short_name, &old);
        if (n) {
            memmove(c->argv + i, c->argv + i + n, (c->n + 1 - i - n) * sizeof(*c->argv));
            c->n -= n;
            end -= end ? n : 0;
        } else {
            i += takes_value(c->argv[i]) ? 2 : 1;
        }
    }
    if (!value)
        return;
    call_add(c, NULL);
    call_add(c, NULL);
    memmove(c->argv + c->rest + 2, c->argv + c->rest, (c->n - 2 - c->rest) * sizeof(*c->argv));
    c->argv[c->rest] = (char *)(uintptr_t)name;
    c->argv[c->rest + 1] = (char *)(uintptr_t)value;
    c->argv[c->n] = NULL;
}

int call_exec(struct call *c)
{
    struct rr_error err = {0};
    int fd;

    c->argv[0] = c->runtime;
    fd = rr_runtime_open(c->runtime);
    if (fd >= 0) {
        setenv(RR_RUNTIME_CLONED, "1", 1);
        execveat(fd, "", c->argv, environ, AT_EMPTY_PATH);
        unsetenv(RR_RUNTIME_CLONED); /* a script, it may be */
        close(fd);
    }
    execv(c->runtime, c->argv);
    rr_error_set(&err, RR_E_SYSTEM, "is it a program of this machine?", "cannot run %s: %s",
                 c->runtime, strerror(errno));
    return call_fail(c, &err);
}

static char *read_output(int fd)
{
    size_t len = 0, room = 4096;
    char *text = malloc(room);
    ssize_t n;

    while (text && len < MAX_OUTPUT && (n = read(fd, text + len, room - len - 1)) != 0) {
        if (n < 0 && errno != EINTR)
            break;
        len += n > 0 ? (size_t)n : 0;
        if (len + 1 == room) {
            char *more = realloc(text, 2 * room);

            if (!more)
                break;
            text = more;
            room *= 2;
        }
    }
    if (text)
        text[len] = 0;
    return text;
}

static void become_runtime(struct call *c, int output, bool quiet)
{
    int null = quiet ? open("/dev/null", O_WRONLY | O_CLOEXEC) : -1;

    if (output >= 0)
        dup2(output, STDOUT_FILENO);
    if (null >= 0)
        dup2(null, STDERR_FILENO);
    _exit(call_exec(c));
}

int call_run(struct call *c, char **ret, bool quiet)
{
    __attribute__((cleanup(rr_close_cleanup))) int read_fd = -1;
    int pipe_fd[2] = {-1, -1}, status = -1;
    char *text = NULL;
    pid_t pid;

    if (ret && pipe2(pipe_fd, O_CLOEXEC) < 0)
        return -1;
    read_fd = pipe_fd[0];
    fflush(stdout);
    pid = fork();
    if (pid == 0)
        become_runtime(c, pipe_fd[1], quiet);
    rr_close_cleanup(&pipe_fd[1]);
    if (pid < 0)
        return -1;
    if (ret)
        text = read_output(read_fd);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (ret)
        *ret = text;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* One line as the runtime below writes them, which containerd and podman read. */
static void log_line(const struct call *c, const char *text)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = fopen(c->log, "ae");
    struct timespec now;
    char stamp[40];
    struct tm tm;

    if (!f)
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (c->log_json) {
        struct json_object *o = json_object_new_object();

        json_object_object_add(o, "level", json_object_new_string("error"));
        json_object_object_add(o, "msg", json_object_new_string(text));
        json_object_object_add(o, "time", json_object_new_string(stamp));
        fprintf(f, "%s\n",
                json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN |
                                                      JSON_C_TO_STRING_NOSLASHESCAPE));
        json_object_put(o);
    } else {
        fprintf(f, "time=\"%s\" level=error msg=\"%s\"\n", stamp, text);
    }
}

int call_fail(const struct call *c, const struct rr_error *err)
{
    char text[sizeof(err->text) + sizeof(err->hint) + 8];

    fprintf(stderr, "roadrunner-oci: error: %s\n", err->text);
    if (err->hint[0])
        fprintf(stderr, "  hint: %s\n", err->hint);
    snprintf(text, sizeof(text), err->hint[0] ? "%s (%s)" : "%s", err->text, err->hint);
    if (c->log)
        log_line(c, text);
    return err->code == RR_E_USAGE ? RR_E_USAGE : 1; /* as crun and runc do */
}
