/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process writes into containerd's FIFOs itself; nothing is copied here. We hold a FIFO open for
 * reading and writing as long as the process lives, so that it is not told of an end when
 * containerd goes away and comes back. Only terminals are copied: their other end is ours.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "shim/shim.h"

static void drop(struct rr_watch **w)
{
    rr_watch_free(*w);
    *w = NULL;
}

/* --- FIFOs and files ------------------------------------------------------------------------- */

static void on_notify(void *data, uint32_t events)
{
    (void)events;
    rr_io_close_stdin(data);
}

/*
 * A process that reads stdin before its writer has opened it would take that for the end. So we
 * are a writer, too, until the other has written, or closed: from then on its end is the end.
 */
static int follow_stdin(struct rr_io *io, const char *path)
{
    io->notify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (io->notify < 0 || inotify_add_watch(io->notify, path, IN_MODIFY | IN_CLOSE_WRITE) < 0)
        return -errno;
    io->on_notify = rr_watch_new(io->loop, io->notify, EPOLLIN, on_notify, io);
    return io->on_notify ? 0 : -ENOMEM;
}

static int open_fifo(struct rr_io *io, int n, const char *path)
{
    struct stat st;
    int fd;

    fd = n == 0 && !io->terminal ? follow_stdin(io, path) : 0; /* before it can be opened */
    if (fd < 0)
        return fd;
    io->keep[n] = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (io->keep[n] < 0 || fstat(io->keep[n], &st) < 0)
        return -errno;
    if (!S_ISFIFO(st.st_mode))
        return -EINVAL;
    if (io->terminal)
        return 0;
    fd = open(path, (n == 0 ? O_RDONLY : O_WRONLY) | O_CLOEXEC); /* does not wait: we are there */
    if (fd < 0)
        return -errno;
    io->child[n] = fd;
    return 0;
}

static void make_parents(char *path)
{
    for (char *p = strchr(path + 1, '/'); p; p = strchr(p + 1, '/')) {
        *p = 0;
        mkdir(path, 0755);
        *p = '/';
    }
}

static int open_file(struct rr_io *io, int n, const char *path)
{
    __attribute__((cleanup(rr_free_cleanup))) char *copy = strdup(path);

    if (copy)
        make_parents(copy);
    io->child[n] = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    return io->child[n] < 0 ? -errno : 0;
}

static bool is_logger(const char *uri)
{
    return strncmp(uri, "binary://", 9) == 0 || strncmp(uri, "binary-v2://", 12) == 0;
}

/* One for both outputs; a terminal has but one. */
static int open_logger(struct rr_io *io, const struct rr_io_names *names, struct rr_error *err)
{
    int fds[2], r = rr_logger_start(names, fds, &io->logger, err);

    if (r)
        return r;
    for (int n = 1; n < 3; n++) {
        io->paths[n] = strdup(n == 1 ? names->out : names->err);
        if (!io->terminal)
            io->child[n] = fds[n - 1];
        else if (n == 1)
            io->keep[n] = fds[0];
        else
            close(fds[1]);
    }
    if (io->terminal)
        fcntl(io->keep[1], F_SETFL, O_NONBLOCK);
    return io->paths[1] && io->paths[2] ? 0 : rr_error_no_memory(err);
}

static int open_one(struct rr_io *io, int n, const char *uri, struct rr_error *err)
{
    const char *scheme = strstr(uri, "://"), *path = uri;
    int r;

    if (!*uri)
        return 0;
    if (!scheme) {
        r = open_fifo(io, n, uri);
    } else if (strncmp(uri, "fifo://", 7) == 0) {
        r = open_fifo(io, n, path = uri + 7);
    } else if (strncmp(uri, "file://", 7) == 0 && n > 0 && !io->terminal) {
        path = uri + 7;
        r = open_file(io, n, path);
    } else {
        return rr_error_set(err, RR_E_INVALID, "use a FIFO, a file, or a program (binary:///...)",
                            "the stream %s is of a kind that this shim does not know", uri);
    }
    return r < 0 ? rr_error_set(err, RR_E_SYSTEM, "", "cannot open the stream %s: %s", path,
                                strerror(-r))
                 : 0;
}

/* --- terminals ------------------------------------------------------------------------------- */

/* What @c holds goes to @to; true: all of it. */
static bool put(struct rr_copy *c, int to)
{
    while (c->len > 0) {
        ssize_t n = write(to, c->data, c->len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno != EAGAIN;
        c->len -= (size_t)n;
        memmove(c->data, c->data + n, c->len);
    }
    return true;
}

static void set_output_events(struct rr_io *io)
{
    bool full = io->out->len > 0;

    if (io->on_master)
        rr_watch_events(io->on_master, (full ? 0u : EPOLLIN) | (io->in->len ? EPOLLOUT : 0u));
    if (io->on_output)
        rr_watch_events(io->on_output, full ? EPOLLOUT : 0u);
    if (io->on_input)
        rr_watch_events(io->on_input, io->in->len ? 0u : EPOLLIN);
}

static void on_master(void *data, uint32_t events)
{
    struct rr_io *io = data;

    if (io->out->len == 0 && (events & (EPOLLIN | EPOLLHUP))) {
        ssize_t n = read(io->master, io->out->data, sizeof(io->out->data));

        if (n > 0) {
            io->out->len = (size_t)n;
            if (io->keep[1] < 0)
                io->out->len = 0;
            else
                put(io->out, io->keep[1]);
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            drop(&io->on_master); /* EIO: nobody has the terminal any more */
            return;
        }
    }
    if (events & EPOLLOUT)
        put(io->in, io->master);
    set_output_events(io);
}

static void on_output(void *data, uint32_t events)
{
    struct rr_io *io = data;

    if (events & EPOLLOUT)
        put(io->out, io->keep[1]);
    set_output_events(io);
}

static void on_input(void *data, uint32_t events)
{
    struct rr_io *io = data;
    ssize_t n;

    (void)events;
    if (io->in->len == 0 && (n = read(io->keep[0], io->in->data, sizeof(io->in->data))) > 0) {
        io->in->len = (size_t)n;
        put(io->in, io->master);
    }
    set_output_events(io);
}

/* One descriptor comes with a message of the runtime's. */
static int receive_fd(int from)
{
    char text[4096], control[CMSG_SPACE(sizeof(int))];
    struct iovec v = {text, sizeof(text)};
    struct msghdr m = {
        .msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *c;
    int fd = -1;

    if (recvmsg(from, &m, MSG_CMSG_CLOEXEC) <= 0)
        return -1;
    c = CMSG_FIRSTHDR(&m);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
        c->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

static void remove_console(struct rr_io *io)
{
    drop(&io->on_console);
    rr_close_cleanup(&io->console_listen);
    io->console_listen = -1;
    if (io->console_path[0])
        unlink(io->console_path);
    if (io->console_dir[0])
        rmdir(io->console_dir);
    io->console_path[0] = io->console_dir[0] = 0;
}

static void on_console(void *data, uint32_t events)
{
    struct rr_io *io = data;
    __attribute__((cleanup(rr_close_cleanup))) int fd =
        accept4(io->console_listen, NULL, NULL, SOCK_CLOEXEC);

    (void)events;
    if (fd < 0)
        return;
    io->master = receive_fd(fd);
    remove_console(io);
    if (io->master < 0)
        return;
    fcntl(io->master, F_SETFL, O_RDWR | O_NONBLOCK);
    if (io->width)
        rr_io_resize(io, io->width, io->height);
    io->on_master = rr_watch_new(io->loop, io->master, EPOLLIN, on_master, io);
    if (io->keep[0] >= 0)
        io->on_input = rr_watch_new(io->loop, io->keep[0], EPOLLIN, on_input, io);
    if (io->keep[1] >= 0) {
        /* Its own end: what we keep may be read from, too, and would say it can be written. */
        io->on_output = rr_watch_new(io->loop, io->keep[1], 0, on_output, io);
    }
}

static int open_console(struct rr_io *io)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};

    io->in = calloc(1, sizeof(*io->in));
    io->out = calloc(1, sizeof(*io->out));
    if (!io->in || !io->out)
        return -ENOMEM;
    snprintf(io->console_dir, sizeof(io->console_dir), "/run/rr-console-XXXXXX");
    if (!mkdtemp(io->console_dir)) {
        io->console_dir[0] = 0;
        return -errno;
    }
    snprintf(io->console_path, sizeof(io->console_path), "%s/s", io->console_dir);
    memcpy(at.sun_path, io->console_path, sizeof(io->console_path));
    io->console_listen = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (io->console_listen < 0 ||
        bind(io->console_listen, (struct sockaddr *)&at, sizeof(at)) < 0 ||
        listen(io->console_listen, 1) < 0)
        return -errno;
    io->on_console = rr_watch_new(io->loop, io->console_listen, EPOLLIN, on_console, io);
    return io->on_console ? 0 : -ENOMEM;
}

/* --- all of a process's ---------------------------------------------------------------------- */

int rr_io_open(struct rr_io *io, struct rr_loop *l, const struct rr_io_names *names,
               struct rr_error *err)
{
    const char *uris[3] = {names->in, names->out, names->terminal ? "" : names->err};
    int n_uris = is_logger(names->out) ? 1 : 3, r = 0;

    *io = (struct rr_io){.terminal = names->terminal,
                         .child = {-1, -1, -1},
                         .keep = {-1, -1, -1},
                         .console_listen = -1,
                         .master = -1,
                         .notify = -1,
                         .logger = -1,
                         .loop = l};
    for (int n = 0; n < n_uris && r == 0; n++) {
        io->paths[n] = strdup(uris[n]);
        r = io->paths[n] ? open_one(io, n, uris[n], err) : rr_error_no_memory(err);
    }
    if (r == 0 && n_uris == 1)
        r = open_logger(io, names, err);
    if (r == 0 && names->terminal) {
        int e = open_console(io);

        if (e < 0)
            r = rr_error_set(err, RR_E_SYSTEM, "", "cannot make a socket for the terminal: %s",
                             strerror(-e));
    }
    if (r)
        rr_io_close(io);
    return r;
}

void rr_io_started(struct rr_io *io)
{
    for (int n = 0; n < 3; n++) {
        rr_close_cleanup(&io->child[n]);
        io->child[n] = -1;
    }
}

void rr_io_close_stdin(struct rr_io *io)
{
    drop(&io->on_input);
    drop(&io->on_notify);
    rr_close_cleanup(&io->notify);
    rr_close_cleanup(&io->keep[0]);
    io->notify = io->keep[0] = -1;
}

int rr_io_resize(struct rr_io *io, uint16_t width, uint16_t height)
{
    struct winsize size = {.ws_col = width, .ws_row = height};

    io->width = width;
    io->height = height;
    if (io->master < 0)
        return 0; /* when it comes */
    return ioctl(io->master, TIOCSWINSZ, &size) < 0 ? -errno : 0;
}

void rr_io_close(struct rr_io *io)
{
    /* The last words on a terminal. */
    for (int n = 0; n < 64 && io->on_master && io->out->len == 0; n++)
        on_master(io, EPOLLIN);
    drop(&io->on_master);
    drop(&io->on_output);
    rr_io_close_stdin(io);
    remove_console(io);
    rr_io_started(io);
    for (int n = 1; n < 3; n++) {
        rr_close_cleanup(&io->keep[n]);
        io->keep[n] = -1;
    }
    rr_close_cleanup(&io->master);
    io->master = -1;
    if (io->logger >= 0)
        rr_logger_end(io->loop, io->logger);
    io->logger = -1;
    free(rr_take(io->in));
    free(rr_take(io->out));
}
