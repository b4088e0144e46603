/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "shim/shim.h"
#include "shim/ttrpc.h"

#define MAX_CONNECTIONS 64
#define MAX_PENDING (64u << 20) /* answers that a client does not take */

struct conn {
    struct conn *next;
    struct rr_server *server;
    struct rr_watch *watch;
    int fd; /* -1: gone, kept for requests that are under way */
    unsigned int n_rpcs;
    struct rr_buffer in, out;
};

struct rr_server {
    struct rr_loop *loop;
    struct rr_watch *watch;
    int fd;
    rr_rpc_fn fn;
    void *user;
    struct conn *conns;
    unsigned int n_conns;
};

struct rr_rpc {
    struct conn *conn;
    uint32_t stream;
};

static void free_if_done(struct conn *c)
{
    if (c->fd >= 0 || c->n_rpcs > 0)
        return;
    for (struct conn **p = &c->server->conns; *p; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
    rr_buffer_free(&c->in);
    rr_buffer_free(&c->out);
    free(c);
}

static void hang_up(struct conn *c)
{
    if (c->fd < 0)
        return;
    rr_watch_free(c->watch);
    close(c->fd);
    c->fd = -1;
    c->server->n_conns--;
}

static void flush(struct conn *c)
{
    while (c->fd >= 0 && c->out.len > 0) {
        ssize_t n = send(c->fd, c->out.data, c->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0) {
            hang_up(c);
            return;
        }
        rr_buffer_drop(&c->out, (size_t)n);
    }
    if (c->fd >= 0)
        rr_watch_events(c->watch, EPOLLIN | (c->out.len ? EPOLLOUT : 0u));
}

static void answer(struct rr_rpc *rpc, const Rr__Pb__Response *r)
{
    size_t len = rr__pb__response__get_packed_size(r);
    struct conn *c = rpc->conn;

    if (c->fd >= 0 && (len > RR_TTRPC_MAX_DATA || c->out.len + len > MAX_PENDING ||
                       rr_buffer_room(&c->out, RR_TTRPC_HEADER + len) < 0))
        hang_up(c);
    if (c->fd >= 0) {
        rr_ttrpc_header(c->out.data + c->out.len, rpc->stream, RR_TTRPC_RESPONSE, (uint32_t)len);
        rr__pb__response__pack(r, c->out.data + c->out.len + RR_TTRPC_HEADER);
        c->out.len += RR_TTRPC_HEADER + len;
        flush(c);
    }
    c->n_rpcs--;
    free(rpc);
    free_if_done(c);
}

void rr_rpc_reply(struct rr_rpc *rpc, const ProtobufCMessage *message)
{
    Rr__Pb__Response r = RR__PB__RESPONSE__INIT;
    Rr__Pb__Status ok = RR__PB__STATUS__INIT;

    r.status = &ok;
    r.payload.len = protobuf_c_message_get_packed_size(message);
    r.payload.data = malloc(r.payload.len + 1);
    if (!r.payload.data) {
        rr_rpc_fail(rpc, RR_STATUS_INTERNAL, "out of memory");
        return;
    }
    protobuf_c_message_pack(message, r.payload.data);
    answer(rpc, &r);
    free(r.payload.data);
}

void rr_rpc_fail(struct rr_rpc *rpc, enum rr_status code, const char *fmt, ...)
{
    Rr__Pb__Response r = RR__PB__RESPONSE__INIT;
    Rr__Pb__Status status = RR__PB__STATUS__INIT;
    char text[2048];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    status.code = (int32_t)code;
    status.message = text;
    r.status = &status;
    answer(rpc, &r);
}

static bool is_task_service(const char *name)
{
    return strcmp(name, "containerd.task.v2.Task") == 0 ||
           strcmp(name, "containerd.task.v3.Task") == 0;
}

static void handle(struct conn *c, const struct rr_ttrpc_frame *f)
{
    struct rr_rpc *rpc = malloc(sizeof(*rpc));
    Rr__Pb__Request *q;

    if (!rpc) {
        hang_up(c);
        return;
    }
    *rpc = (struct rr_rpc){.conn = c, .stream = f->stream};
    c->n_rpcs++;
    q = rr__pb__request__unpack(NULL, f->len, f->data);
    if (!q) {
        rr_rpc_fail(rpc, RR_STATUS_INVALID, "the request is no message of ttrpc");
        return;
    }
    if (is_task_service(q->service)) /* the answer may come before or after */
        c->server->fn(c->server->user, rpc, q->method, q->payload.data, q->payload.len);
    else
        rr_rpc_fail(rpc, RR_STATUS_UNIMPLEMENTED, "service %s", q->service);
    rr__pb__request__free_unpacked(q, NULL);
}

static void work_off(struct conn *c)
{
    struct rr_ttrpc_frame f;
    size_t at = 0;
    ssize_t n;

    while (c->fd >= 0 && (n = rr_ttrpc_parse(c->in.data + at, c->in.len - at, &f)) != 0) {
        if (n < 0) {
            rr_log(1, "a client sent no ttrpc: %s", strerror((int)-n));
            hang_up(c);
            return;
        }
        at += (size_t)n;
        if (f.type == RR_TTRPC_REQUEST) /* no streams here: data is nobody's */
            handle(c, &f);
    }
    if (at > 0)
        rr_buffer_drop(&c->in, at);
}

static void on_conn(void *data, uint32_t events)
{
    struct conn *c = data;
    ssize_t n;

    c->n_rpcs++; /* not freed under us */
    if (events & EPOLLOUT)
        flush(c);
    if (c->fd >= 0 && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
        n = rr_buffer_room(&c->in, 4096) < 0
                ? 0
                : recv(c->fd, c->in.data + c->in.len, c->in.room - c->in.len, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            hang_up(c);
        else if (n > 0) {
            c->in.len += (size_t)n;
            work_off(c);
        }
    }
    c->n_rpcs--;
    free_if_done(c);
}

static bool peer_may(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

static void on_listen(void *data, uint32_t events)
{
    struct rr_server *s = data;
    struct conn *c;
    int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    (void)events;
    if (fd < 0)
        return;
    c = s->n_conns < MAX_CONNECTIONS && peer_may(fd) ? calloc(1, sizeof(*c)) : NULL;
    if (!c) {
        close(fd);
        return;
    }
    c->server = s;
    c->fd = fd;
    c->watch = rr_watch_new(s->loop, fd, EPOLLIN, on_conn, c);
    if (!c->watch) {
        close(fd);
        free(c);
        return;
    }
    c->next = s->conns;
    s->conns = c;
    s->n_conns++;
}

int rr_server_new(struct rr_loop *l, int listen_fd, rr_rpc_fn fn, void *user,
                  struct rr_server **ret)
{
    struct rr_server *s = calloc(1, sizeof(*s));

    if (!s)
        return -ENOMEM;
    *s = (struct rr_server){.loop = l, .fd = listen_fd, .fn = fn, .user = user};
    s->watch = rr_watch_new(l, listen_fd, EPOLLIN, on_listen, s);
    if (!s->watch) {
        free(s);
        return -ENOMEM;
    }
    *ret = s;
    return 0;
}

/* Answers that are still to come are dropped by then. */
void rr_server_free(struct rr_server *s)
{
    while (s->conns) {
        struct conn *c = s->conns;

        hang_up(c);
        c->n_rpcs = 0;
        free_if_done(c);
    }
    rr_watch_free(s->watch);
    close(s->fd);
    free(s);
}
