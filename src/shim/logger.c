/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that takes a container's output, as nerdctl has one: descriptors 3 and 4 are what the
 * container writes, and it closes 5 when it is ready, or (binary-v2) writes a byte there before.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "shim/shim.h"

#define READY_MS 10000 /* for it to say so; nothing else is done meanwhile */
#define GRACE_MS 10000 /* for it to work off what it was given */

extern char **environ;

/* --- its words ------------------------------------------------------------------------------- */

static int digit(char c)
{
    return isdigit((unsigned char)c)    ? c - '0'
           : isxdigit((unsigned char)c) ? tolower((unsigned char)c) - 'a' + 10
                                        : -1;
}

/* [@from, @end) to @to, with what is escaped; NULL: it is no text. Returns the end of it, a NUL. */
static char *decode(const char *from, const char *end, bool query, char *to)
{
    while (from < end) {
        char c = *from++;

        if (c == '%') {
            int high = end - from >= 2 ? digit(from[0]) : -1;
            int low = high < 0 ? -1 : digit(from[1]);

            if (low < 0 || (high == 0 && low == 0))
                return NULL;
            c = (char)(high * 16 + low);
            from += 2;
        } else if (c == '+' && query) {
            c = ' ';
        }
        *to++ = c;
    }
    *to = 0;
    return to;
}

size_t rr_logger_words(const char *uri, char room[RR_LOGGER_MAX], const char *ret[RR_LOGGER_WORDS])
{
    const char *p = strstr(uri, "://");
    size_t n = 0;
    char *to = room;

    if (!p || p[3] != '/' || strlen(uri) >= RR_LOGGER_MAX)
        return 0;
    p += 3;
    while (n < RR_LOGGER_WORDS - 1) { /* the program, then keys and values by turns */
        const char *ends = n == 0 ? "?" : n % 2 ? "=&" : "&";
        const char *end = p + strcspn(p, ends);
        bool key_alone = n % 2 == 1 && *end != '=';

        ret[n++] = to;
        to = decode(p, end, n > 1, to);
        if (!to)
            return 0;
        to++;
        if (key_alone && n < RR_LOGGER_WORDS - 1)
            ret[n++] = "";
        ret[n] = NULL;
        if (!*end || !end[1])
            return n;
        p = end + 1;
    }
    return 0;
}

/* --- its start ------------------------------------------------------------------------------- */

/* A pipe whose end @theirs (0: they read) is out of the way of 3, 4 and 5. */
static int make_pipe(int theirs, int fds[2])
{
    int high;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return -errno;
    high = fcntl(fds[theirs], F_DUPFD_CLOEXEC, 10);
    close(fds[theirs]);
    fds[theirs] = high;
    return high < 0 ? -errno : 0;
}

static char **environment(const struct rr_io_names *names, char *own[2])
{
    size_t n = 0;
    char **env;

    while (environ[n])
        n++;
    env = calloc(n + 3, sizeof(*env));
    if (!env || asprintf(&own[0], "CONTAINER_ID=%s", names->container) < 0 ||
        asprintf(&own[1], "CONTAINER_NAMESPACE=%s", names->namespace) < 0) {
        free(env);
        return NULL;
    }
    env[0] = own[0];
    env[1] = own[1];
    memcpy(env + 2, environ, n * sizeof(*env));
    return env;
}

static int spawn(const struct rr_io_names *names, const int theirs[3], pid_t *ret)
{
    char room[RR_LOGGER_MAX], *own[2] = {NULL, NULL}, **env;
    const char *words[RR_LOGGER_WORDS];
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, pipe;
    int r;

    if (rr_logger_words(names->out, room, words) == 0)
        return -EINVAL;
    env = environment(names, own);
    if (!env)
        return -ENOMEM;
    sigemptyset(&none);
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &pipe);
    posix_spawn_file_actions_init(&actions);
    for (int n = 0; n < 3; n++) {
        posix_spawn_file_actions_addopen(&actions, n, "/dev/null", n ? O_WRONLY : O_RDONLY, 0);
        posix_spawn_file_actions_adddup2(&actions, theirs[n], 3 + n);
    }
    r = posix_spawn(ret, words[0], &actions, &attr, (char **)(uintptr_t)words, env);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    free(env);
    free(own[0]);
    free(own[1]);
    return -r;
}

/* Its word on descriptor 5. */
static int await(int fd, const char *uri)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    ssize_t n;
    char byte;
    int r;

    do
        r = poll(&p, 1, READY_MS);
    while (r < 0 && errno == EINTR);
    if (r <= 0)
        return -ETIMEDOUT;
    n = read(fd, &byte, 1);
    return n < 0 ? -errno : n == 0 && strncmp(uri, "binary-v2:", 10) == 0 ? -EPIPE : 0;
}

static const char *reason(int error)
{
    return error == ETIMEDOUT ? "it does not get ready: it must close descriptor 5"
           : error == EPIPE  ? "it ended, or closed descriptor 5, without a byte to say it is ready"
           : error == EINVAL ? "write binary:///PROGRAM?KEY=VALUE, at most 15 keys"
                             : strerror(error);
}

int rr_logger_start(const struct rr_io_names *names, int ret_fds[2], int *ret_pidfd,
                    struct rr_error *err)
{
    int pipes[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}}, theirs[3], r = 0, pidfd = -1;
    pid_t pid = 0;

    for (int n = 0; n < 3 && r == 0; n++) {
        r = make_pipe(n == 2, pipes[n]);
        theirs[n] = pipes[n][n == 2];
    }
    if (r == 0)
        r = spawn(names, theirs, &pid);
    for (int n = 0; n < 3; n++)
        rr_close_cleanup(&pipes[n][n == 2]);
    if (r == 0) {
        pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        r = await(pipes[2][0], names->out);
        if (r < 0)
            kill(pid, SIGKILL); /* the loop reaps it */
    }
    rr_close_cleanup(&pipes[2][0]);
    if (r == 0) {
        ret_fds[0] = pipes[0][1];
        ret_fds[1] = pipes[1][1];
        *ret_pidfd = pidfd;
        return 0;
    }
    rr_close_cleanup(&pipes[0][1]);
    rr_close_cleanup(&pipes[1][1]);
    rr_close_cleanup(&pidfd);
    return rr_error_set(err, RR_E_SYSTEM, "try it by hand, with descriptors 3, 4 and 5",
                        "the logger %s: %s", names->out, reason(-r));
}

/* --- its end --------------------------------------------------------------------------------- */

static void terminate(void *data)
{
    int pidfd = (int)(intptr_t)data;

    syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0); /* most often it is gone */
    close(pidfd);
}

void rr_logger_end(struct rr_loop *l, int pidfd)
{
    void *data = (void *)(intptr_t)pidfd;

    if (rr_loop_after(l, GRACE_MS, terminate, data) < 0)
        terminate(data);
}
