/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses and sockets to accept from. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/internal.h"

#define BACKLOG 1024
#define SYSTEMD_FIRST 3 /* sd_listen_fds(3) */

static int fail(struct rr_error *err, const char *address, const char *why)
{
    return rr_error_set(err, RR_E_SYSTEM, "give another --listen, or end who has it",
                        "cannot listen at %s: %s", address, why);
}

static int add(struct loop *loop, int fd, bool admin, bool tcp, struct rr_error *err)
{
    struct listener *l;

    if (!loop->listeners) {
        loop->listeners = calloc(RR_GATEWAY_MAX_LISTEN + 2, sizeof(*loop->listeners));
        if (!loop->listeners) {
            close(fd);
            return rr_error_no_memory(err);
        }
    }
    l = &loop->listeners[loop->n_listeners++];
    *l = (struct listener){KIND_LISTENER, fd, admin, tcp, tcp && !admin && loop->gw->tls};
    return 0;
}

/* As many loops as there are pollers accept from one socket; each has a descriptor of its own for
 * it. */
static int share(struct gateway *gw, int fd, bool admin, bool tcp, struct rr_error *err)
{
    int r = 0;

    for (unsigned int n = 0; n < gw->n_pollers && r == 0; n++) {
        int own = n + 1 < gw->n_pollers ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : fd;

        r = own < 0 ? fail(err, "a shared socket", strerror(errno))
                    : add(&gw->loops[n], own, admin, tcp, err);
    }
    return r;
}

static int listen_unix(struct gateway *gw, const char *path, bool admin, struct rr_error *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct stat st;
    int fd;

    if (strlen(path) >= sizeof(a.sun_path))
        return fail(err, path, "the path is too long");
    memcpy(a.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fail(err, path, strerror(errno));
    /* What a server that died left behind refuses connections. */
    if (stat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
        if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0 && errno == ECONNREFUSED)
            unlink(path);
        close(fd);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    }
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, BACKLOG) < 0) {
        fail(err, path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return RR_E_SYSTEM;
    }
    if (!gw->o.quiet)
        fprintf(stderr, "roadrunner: listening at unix:%s\n", path);
    return share(gw, fd, admin, false, err);
}

static int bind_one(const struct sockaddr *a, socklen_t len, bool shared)
{
    int fd = socket(a->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1, off = 0;

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (shared)
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
    if (a->sa_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    if (bind(fd, a, len) < 0 || (shared && listen(fd, BACKLOG) < 0)) {
        int r = -errno;

        close(fd);
        return r;
    }
    return fd;
}

static void announce(struct gateway *gw, int fd, bool admin)
{
    struct sockaddr_storage a = {0};
    socklen_t len = sizeof(a);
    char host[80], port[16];

    if (gw->o.quiet || getsockname(fd, (struct sockaddr *)&a, &len) < 0 ||
        getnameinfo((struct sockaddr *)&a, len, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return;
    fprintf(stderr,
            a.ss_family == AF_INET6 ? "roadrunner: listening at %s://[%s]:%s\n"
                                    : "roadrunner: listening at %s://%s:%s\n",
            gw->tls && !admin ? "https" : "http", host, port);
}

/* A socket per poller, among which the kernel spreads connections. */
static int listen_tcp_at(struct gateway *gw, struct addrinfo *ai, const char *text, bool admin,
                         struct rr_error *err)
{
    struct sockaddr_storage a;
    socklen_t len = ai->ai_addrlen;
    int fd, r = 0;

    memcpy(&a, ai->ai_addr, len);
    /* Shared sockets would let a second server of the same user in. */
    fd = bind_one((struct sockaddr *)&a, len, false);
    if (fd < 0)
        return fail(err, text, strerror(-fd));
    close(fd);
    for (unsigned int n = 0; n < gw->n_pollers && r == 0; n++) {
        fd = bind_one((struct sockaddr *)&a, len, true);
        if (fd < 0)
            return fail(err, text, strerror(-fd));
        getsockname(fd, (struct sockaddr *)&a, &len); /* the port, if it was 0 */
        if (n == 0)
            announce(gw, fd, admin);
        r = add(&gw->loops[n], fd, admin, true, err);
    }
    return r;
}

static int listen_tcp(struct gateway *gw, const char *text, bool admin, struct rr_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *ai = NULL;
    const char *colon = strrchr(text, ':');
    char host[256];
    size_t len;
    int r;

    if (!colon || !colon[1] || (size_t)(colon - text) >= sizeof(host))
        return rr_error_set(err, RR_E_USAGE, "write HOST:PORT, [HOST]:PORT, :PORT or unix:PATH",
                            "'%s' is no address to listen at", text);
    len = (size_t)(colon - text);
    memcpy(host, text, len);
    host[len] = '\0';
    if (len > 1 && host[0] == '[' && host[len - 1] == ']') {
        host[len - 1] = '\0';
        memmove(host, host + 1, len - 1);
    } else if (strchr(host, ':')) {
        return rr_error_set(err, RR_E_USAGE, "write IPv6 addresses as [HOST]:PORT",
                            "'%s' is no address to listen at", text);
    }
    hints.ai_family = len ? AF_UNSPEC : AF_INET6; /* all, of both kinds */
    r = getaddrinfo(len ? host : NULL, colon + 1, &hints, &ai);
    if (r && !len) {
        hints.ai_family = AF_INET;
        r = getaddrinfo(NULL, colon + 1, &hints, &ai);
    }
    if (r)
        return fail(err, text, gai_strerror(r));
    r = listen_tcp_at(gw, ai, text, admin, err);
    freeaddrinfo(ai);
    return r;
}

static int listen_at(struct gateway *gw, const char *text, bool admin, struct rr_error *err)
{
    if (strncmp(text, "unix:", 5) == 0)
        return listen_unix(gw, text + 5, admin, err);
    return listen_tcp(gw, text, admin, err);
}

/* Sockets that systemd opened for us. */
static int listen_activated(struct gateway *gw, unsigned int *ret_n, struct rr_error *err)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    unsigned long n = fds ? strtoul(fds, NULL, 10) : 0;
    int r = 0;

    *ret_n = 0;
    if (!pid || strtol(pid, NULL, 10) != getpid() || n == 0)
        return 0;
    if (n > RR_GATEWAY_MAX_LISTEN)
        return fail(err, "LISTEN_FDS", "too many sockets");
    for (int fd = SYSTEMD_FIRST; fd < SYSTEMD_FIRST + (int)n && r == 0; fd++) {
        int listens = 0, domain = 0;
        socklen_t len = sizeof(int);

        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0 || !listens)
            return fail(err, "a socket of LISTEN_FDS", "it does not listen");
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len);
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        r = share(gw, fd, false, domain != AF_UNIX, err);
        ++*ret_n;
    }
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    return r;
}

int rr_listen_all(struct gateway *gw, struct rr_error *err)
{
    unsigned int n_activated;
    int r = listen_activated(gw, &n_activated, err);

    for (size_t n = 0; n < gw->o.n_listen && r == 0; n++)
        r = listen_at(gw, gw->o.listen[n], false, err);
    if (r == 0 && gw->o.n_listen == 0 && n_activated == 0)
        r = listen_at(gw, "127.0.0.1:8080", false, err);
    if (r == 0 && gw->o.admin)
        r = listen_at(gw, gw->o.admin, true, err);
    for (unsigned int n = 0; n < gw->n_pollers && r == 0; n++) {
        struct loop *loop = &gw->loops[n];

        for (size_t k = 0; k < loop->n_listeners && r == 0; k++) {
            /* of those that wait at a shared socket, one is woken */
            struct epoll_event e = {.events = EPOLLIN | EPOLLEXCLUSIVE,
                                    .data.ptr = &loop->listeners[k]};

            if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->listeners[k].fd, &e) < 0)
                r = fail(err, "a socket", strerror(errno));
        }
        loop->listening = true;
    }
    return r;
}

void rr_listen_close(struct loop *loop)
{
    for (size_t n = 0; n < loop->n_listeners; n++) {
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, loop->listeners[n].fd, NULL);
        close(loop->listeners[n].fd);
    }
    /* Their memory stays: events of this turn may point there. */
    if (loop->n_listeners)
        loop->listening = false;
    loop->n_listeners = 0;
}
