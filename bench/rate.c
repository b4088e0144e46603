/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP requests at a given rate, for latencies that a server's users would see: they come at
 * random, one by one, whether those before were answered or not (Poisson), each on a connection
 * that is free. A latency counts from the moment at which the request was due, not sent: who is
 * kept waiting by this program, or for a connection, waits.
 *
 *   bench-rate PORT RATE SECONDS CONNECTIONS        prints latencies in ns, one a line
 */
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 1024
#define SECOND 1000000000ull

struct client {
    int fd;
    uint64_t due_ns; /* of the request that is on its way */
    size_t got;
    char reply[4096];
};

static struct client clients[MAX_CONNECTIONS], *idle[MAX_CONNECTIONS];
static size_t n_idle;
static uint64_t *latencies, n_latencies;

static void fail(const char *what)
{
    fprintf(stderr, "bench-rate: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static void dial(struct client *c, int epoll_fd, uint16_t port)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    int on = 1;

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof(a)) < 0 ||
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0 ||
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e) < 0)
        fail("connect");
    idle[n_idle++] = c;
}

static void ask(uint64_t due_ns)
{
    static const char request[] = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    struct client *c = idle[--n_idle];

    c->due_ns = due_ns;
    c->got = 0;
    if (send(c->fd, request, sizeof(request) - 1, MSG_NOSIGNAL) != (ssize_t)sizeof(request) - 1)
        fail("send");
}

/* Length of a whole reply of status 200, which may hold zeroes; 0: more is to come. */
static size_t whole(const char *reply, size_t len)
{
    static const char empty[] = "\r\n0\r\n\r\n"; /* the last chunk; ours have no such data */
    const char *end = memmem(reply, len, "\r\n\r\n", 4), *length;

    if (!end)
        return 0;
    if (strncmp(reply, "HTTP/1.1 200 ", 13) != 0) {
        fprintf(stderr, "bench-rate: %.60s\n", reply);
        exit(1);
    }
    length = strcasestr(reply, "\r\ncontent-length:");
    if (length && length < end)
        return (size_t)(end + 4 - reply) + strtoul(length + 17, NULL, 10);
    end = memmem(end + 4, len - (size_t)(end + 4 - reply), empty, sizeof(empty) - 1);
    return end ? (size_t)(end - reply) + sizeof(empty) - 1 : 0;
}

static void take(struct client *c)
{
    ssize_t n = recv(c->fd, c->reply + c->got, sizeof(c->reply) - 1 - c->got, 0);
    size_t all;

    if (n <= 0)
        fail("recv");
    c->got += (size_t)n;
    c->reply[c->got] = '\0';
    all = whole(c->reply, c->got);
    if (all == 0 || c->got < all)
        return;
    latencies[n_latencies++] = now_ns() - c->due_ns;
    idle[n_idle++] = c;
}

int main(int argc, char **argv)
{
    double rate = argc > 2 ? atof(argv[2]) : 0, seconds = argc > 3 ? atof(argv[3]) : 0;
    size_t n_clients = argc > 4 ? strtoul(argv[4], NULL, 10) : 0;
    uint64_t due, end, most = (uint64_t)(rate * seconds * 1.5) + 1000, asked = 0;
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);

    if (rate <= 0 || seconds <= 0 || !n_clients || n_clients > MAX_CONNECTIONS) {
        fputs("usage: bench-rate PORT RATE SECONDS CONNECTIONS\n", stderr);
        return 2;
    }
    latencies = calloc(most, sizeof(*latencies));
    if (!latencies || epoll_fd < 0)
        fail("start");
    prctl(PR_SET_TIMERSLACK, 1);
    srand48(42);
    for (size_t n = 0; n < n_clients; n++)
        dial(&clients[n], epoll_fd, (uint16_t)atoi(argv[1]));
    due = now_ns();
    end = due + (uint64_t)(seconds * 1e9);
    while (due < end || n_latencies < asked) {
        struct epoll_event events[64];
        uint64_t now = now_ns();
        struct timespec wait = {1, 0};
        int n;

        while (due <= now && due < end && n_idle && asked < most) {
            ask(due);
            asked++;
            due += (uint64_t)(-log(1 - drand48()) / rate * 1e9);
        }
        if (due < end && n_idle) {
            uint64_t left = due > now ? due - now : 0;

            wait = (struct timespec){(time_t)(left / SECOND), (long)(left % SECOND)};
        }
        n = epoll_pwait2(epoll_fd, events, 64, &wait, NULL);
        for (int k = 0; k < n; k++)
            take(events[k].data.ptr);
        if (now > end + 10 * SECOND) {
            fputs("bench-rate: replies are missing\n", stderr);
            return 1;
        }
    }
    for (uint64_t n = 0; n < n_latencies; n++)
        printf("%llu\n", (unsigned long long)latencies[n]);
    return 0;
}
