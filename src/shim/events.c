/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "shim/shim.h"
#include "shim/ttrpc.h"

#define MAX_QUEUED 4096
#define RETRY_MS 300

struct event {
    struct event *next;
    size_t len;
    uint8_t data[]; /* a request */
};

struct rr_events {
    struct rr_loop *loop;
    const char *address, *namespace;
    struct rr_watch *watch;
    int fd;
    uint32_t stream;
    bool waiting, retrying; /* for the answer to the first; for another try */
    size_t n, sent;         /* queued; bytes of the first that were sent, header and all */
    struct event *first, **last;
    struct rr_buffer in;
};

static void push(struct rr_events *e);

static void disconnect(struct rr_events *e)
{
    rr_watch_free(e->watch);
    e->watch = NULL;
    rr_close_cleanup(&e->fd);
    e->fd = -1;
    e->stream = 0;
    e->waiting = false;
    e->sent = 0;
    e->in.len = 0;
}

static void retry(void *data)
{
    struct rr_events *e = data;

    e->retrying = false;
    push(e);
}

static void later(struct rr_events *e)
{
    disconnect(e);
    if (!e->retrying && rr_loop_after(e->loop, RETRY_MS, retry, e) == 0)
        e->retrying = true;
}

static void pop(struct rr_events *e)
{
    struct event *first = e->first;

    e->first = first->next;
    if (!e->first)
        e->last = &e->first;
    e->n--;
    free(first);
}

static void on_answer(struct rr_events *e)
{
    struct rr_ttrpc_frame f;
    ssize_t n;

    while (e->first && (n = rr_ttrpc_parse(e->in.data, e->in.len, &f)) != 0) {
        if (n < 0) {
            later(e);
            return;
        }
        if (e->waiting && f.type == RR_TTRPC_RESPONSE && f.stream == e->stream) {
            pop(e); /* also one that is refused: it would be again */
            e->waiting = false;
            e->sent = 0;
        }
        rr_buffer_drop(&e->in, (size_t)n);
    }
    push(e);
}

static void on_events(void *data, uint32_t events)
{
    struct rr_events *e = data;
    ssize_t n;

    if (events & EPOLLOUT)
        push(e);
    if (e->fd < 0 || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    n = rr_buffer_room(&e->in, 512) < 0
            ? 0
            : recv(e->fd, e->in.data + e->in.len, e->in.room - e->in.len, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        if (e->first)
            later(e);
        else
            disconnect(e);
    } else if (n > 0) {
        e->in.len += (size_t)n;
        on_answer(e);
    }
}

static int connect_to(struct rr_events *e)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    const char *path = strncmp(e->address, "unix://", 7) == 0 ? e->address + 7 : e->address;

    if (!*path || strlen(path) >= sizeof(to.sun_path))
        return -EINVAL;
    memcpy(to.sun_path, path, strlen(path));
    e->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (e->fd < 0 || connect(e->fd, (struct sockaddr *)&to, sizeof(to)) < 0)
        return -errno;
    e->watch = rr_watch_new(e->loop, e->fd, EPOLLIN, on_events, e);
    return e->watch ? 0 : -ENOMEM;
}

/* One at a time: the next goes when the one before was taken. */
static void push(struct rr_events *e)
{
    uint8_t header[RR_TTRPC_HEADER];

    if (!e->first || e->waiting || e->retrying)
        return;
    if ((e->fd < 0 && connect_to(e) < 0) || e->fd < 0) {
        later(e);
        return;
    }
    if (e->sent == 0)
        e->stream += e->stream ? 2 : 1;
    rr_ttrpc_header(header, e->stream, RR_TTRPC_REQUEST, (uint32_t)e->first->len);
    while (e->sent < sizeof(header) + e->first->len) {
        size_t head = sizeof(header) - rr_min(e->sent, sizeof(header)),
               body = e->sent - (sizeof(header) - head);
        struct iovec v[2] = {{header + sizeof(header) - head, head},
                             {e->first->data + body, e->first->len - body}};
        struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};
        ssize_t n = sendmsg(e->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EAGAIN) {
            rr_watch_events(e->watch, EPOLLIN | EPOLLOUT);
            return;
        }
        if (n < 0 && errno != EINTR) {
            later(e);
            return;
        }
        e->sent += n > 0 ? (size_t)n : 0;
    }
    e->waiting = true;
    rr_watch_events(e->watch, EPOLLIN);
}

static struct event *encode(const struct rr_events *e, const char *topic, const char *type,
                            const ProtobufCMessage *message)
{
    Rr__Pb__ForwardRequest forward = RR__PB__FORWARD_REQUEST__INIT;
    Rr__Pb__Envelope envelope = RR__PB__ENVELOPE__INIT;
    Rr__Pb__Timestamp stamp = RR__PB__TIMESTAMP__INIT;
    Rr__Pb__Request q = RR__PB__REQUEST__INIT;
    Rr__Pb__Any any = RR__PB__ANY__INIT;
    struct event *event = NULL;
    struct timespec now;
    char url[64];

    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(url, sizeof(url), "containerd.events.%s", type);
    stamp.seconds = now.tv_sec;
    stamp.nanos = (int32_t)now.tv_nsec;
    any.type_url = url;
    any.value.len = protobuf_c_message_get_packed_size(message);
    any.value.data = malloc(any.value.len + 1);
    envelope.timestamp = &stamp;
    envelope.namespace_ = (char *)(uintptr_t)e->namespace;
    envelope.topic = (char *)(uintptr_t)topic;
    envelope.event = &any;
    forward.envelope = &envelope;
    q.service = (char *)(uintptr_t)"containerd.services.events.ttrpc.v1.Events";
    q.method = (char *)(uintptr_t)"Forward";
    if (any.value.data) {
        protobuf_c_message_pack(message, any.value.data);
        q.payload.len = rr__pb__forward_request__get_packed_size(&forward);
        q.payload.data = malloc(q.payload.len + 1);
    }
    if (q.payload.data) {
        size_t len;

        rr__pb__forward_request__pack(&forward, q.payload.data);
        len = rr__pb__request__get_packed_size(&q);
        event = calloc(1, sizeof(*event) + len);
        if (event) {
            event->len = len;
            rr__pb__request__pack(&q, event->data);
        }
    }
    free(any.value.data);
    free(q.payload.data);
    return event;
}

void rr_events_send(struct rr_events *e, const char *topic, const char *type,
                    const ProtobufCMessage *message)
{
    struct event *event = e->n < MAX_QUEUED && *e->address ? encode(e, topic, type, message) : NULL;

    if (!event) {
        rr_log(1, "an event was lost: %s", topic);
        return;
    }
    *e->last = event;
    e->last = &event->next;
    e->n++;
    push(e);
}

bool rr_events_idle(const struct rr_events *e)
{
    return !e->first;
}

int rr_events_new(struct rr_loop *l, const char *address, const char *namespace,
                  struct rr_events **ret)
{
    struct rr_events *e = calloc(1, sizeof(*e));

    if (!e)
        return -ENOMEM;
    *e = (struct rr_events){.loop = l, .address = address, .namespace = namespace, .fd = -1};
    e->last = &e->first;
    *ret = e;
    return 0;
}

void rr_events_free(struct rr_events *e)
{
    disconnect(e);
    while (e->first)
        pop(e);
    rr_buffer_free(&e->in);
    free(e);
}
