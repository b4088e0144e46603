/* SPDX-License-Identifier: Apache-2.0 */
/* What HTTP costs with nothing behind it: whatever comes over a connection is answered at once,
 * with the same bytes. bench-bare-http PORT, at 127.0.0.1; two threads. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "measure.h"

static const char reply[] = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n"
                            "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\nx";

static int listen_at(unsigned int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 1024) < 0)
        measure_die("cannot listen at port %u", port);
    return fd;
}

static void add(int epoll_fd, int fd)
{
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    int on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0)
        close(fd);
}

static void *serve(void *port)
{
    int listen_fd = listen_at(*(const unsigned int *)port), epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[64];
    char in[4096];

    add(epoll_fd, listen_fd);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 64, -1);

        for (int k = 0; k < n; k++) {
            int fd = events[k].data.fd;

            if (fd == listen_fd) {
                fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (fd >= 0)
                    add(epoll_fd, fd);
            } else if (read(fd, in, sizeof(in)) <= 0 ||
                       write(fd, reply, sizeof(reply) - 1) != (ssize_t)sizeof(reply) - 1) {
                close(fd);
            }
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    unsigned int port = argc == 2 ? (unsigned int)strtoul(argv[1], NULL, 10) : 0;
    pthread_t thread;

    if (!port || port > 65535)
        measure_die("usage: bench-bare-http PORT");
    if (pthread_create(&thread, NULL, serve, &port) != 0)
        measure_die("no thread");
    serve(&port);
    return 0;
}
