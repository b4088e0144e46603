/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection. Once its session is there, a main connection is read in large pieces, of which
 * frames are handled where they lie: a small message costs one system call. An extra connection,
 * and every one that greets, is read exactly frame by frame, so that payloads go from the socket
 * to their region and nowhere else.
 */
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "channel/netio.h"

#define READ_BUDGET (4u << 20) /* bytes before the next connection has its turn */
#define WRITE_BUDGET (4u << 20)
#define KEEP_BYTES (64u << 10) /* a larger buffer is freed when it is empty */
#define LOW_WATER (1 << 20)
#define LOW_WATER_TLS (1 << 19) /* who decrypts had better begin early */
#define TLS_PIECE (64u << 10)
#define MAX_DROPS 64 /* reads of what a peer sent that is hung up on */

/* --- queues of bytes ------------------------------------------------------------------------- */

bool bytes_room(struct bytes *b, size_t n)
{
    size_t len = bytes_len(b), cap = b->cap;
    uint8_t *data;

    if (n <= b->cap - b->end)
        return true;
    if (b->start && n <= b->cap - len && b->start >= len) {
        memcpy(b->data, b->data + b->start, len);
    } else {
        while (cap - len < n)
            cap = cap ? 2 * cap : 4096;
        data = malloc(cap);
        if (!data)
            return false;
        if (len)
            memcpy(data, b->data + b->start, len);
        free(b->data);
        b->data = data;
        b->cap = cap;
    }
    b->start = 0;
    b->end = len;
    return true;
}

bool bytes_add(struct bytes *b, const void *data, size_t n)
{
    if (!bytes_room(b, n))
        return false;
    if (n)
        memcpy(b->data + b->end, data, n);
    b->end += n;
    return true;
}

void bytes_free(struct bytes *b)
{
    free(b->data);
    *b = (struct bytes){0};
}

/* @n bytes of it have been used. */
static void bytes_take(struct bytes *b, size_t n)
{
    b->start += n;
    if (b->start < b->end)
        return;
    b->start = b->end = 0;
    if (b->cap > KEEP_BYTES)
        bytes_free(b);
}

/* --- life ------------------------------------------------------------------------------------ */

struct conn *conn_new(struct rr_net *net, int fd, bool accepted, bool unix_socket)
{
    struct conn *c = calloc(1, sizeof(*c));
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    int one = 1;

    if (!c)
        return NULL;
    *c = (struct conn){.kind = SOURCE_CONN,
                       .net = net,
                       .fd = fd,
                       .accepted = accepted,
                       .unix_socket = unix_socket,
                       .events = EPOLLIN,
                       .since_ns = net->now_ns,
                       .rx_ns = net->now_ns,
                       .progress_ns = net->now_ns};
    if (epoll_ctl(net->epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0) {
        free(c);
        return NULL;
    }
    if (!unix_socket)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    c->next = net->conns;
    if (net->conns)
        net->conns->prev = c;
    net->conns = c;
    net->stats.connections++;
    net_arm(net, net->now_ns + net->o.handshake_ns);
    return c;
}

/* The kernel would go on sending from regions that are somebody else's by then. */
static void forget_unsent(const struct conn *c)
{
    const struct linger now = {.l_onoff = 1};
    int queued = 0;

    if (ioctl(c->fd, SIOCOUTQ, &queued) < 0 || queued > 0)
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

void conn_close(struct conn *c)
{
    struct rr_net *net = c->net;

    if (c->state == CONN_CLOSED)
        return;
    if (c->accepted && !c->peer)
        net->n_pending--;
    if (c->extra)
        forget_unsent(c);
    c->state = CONN_CLOSED;
    close(c->fd); /* and so out of epoll */
    c->fd = -1;
    SSL_free(c->ssl);
    c->ssl = NULL;
    records_free(c->records);
    c->records = NULL;
    bytes_free(&c->cipher);
    bytes_free(&c->out);
    bytes_free(&c->between);
    c->queue = c->queue_last = NULL;
    c->chunk_to_send = 0;
    c->in = NULL;
    /* c->part may hold the frame that is being handled */
    if (net->hot == c)
        net->hot = NULL;
    if (c->prev)
        c->prev->next = c->next;
    else
        net->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    c->prev = NULL;
    c->next = net->closed;
    net->closed = c;
    net->stats.connections--;
    if (!net->pumping)
        net->again = true;
}

void conn_want(struct conn *c, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = c};

    if (c->state == CONN_CLOSED || c->events == events)
        return;
    c->events = events;
    epoll_ctl(c->net->epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

void conn_fail(struct conn *c, enum log_kind kind, const char *fmt, ...)
{
    bool mistake =
        kind == LOG_TLS || kind == LOG_GREETING || kind == LOG_ADMIT || kind == LOG_REFUSED;
    struct rr_net_peer *peer = c->peer;
    struct rr_error err;
    char text[512];
    va_list ap;

    if (c->state == CONN_CLOSED)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    rr_error_set(&err, mistake ? RR_E_INVALID : RR_E_DIED,
                 mistake
                     ? "give both ends what they expect of each other" /* time does not mend it */
                     : "it is tried again by and by",
                 "%s: %s", c->address[0] ? c->address : "peer", text);
    if (!peer || !peer->dialed || peer->up)
        net_log(c->net, kind, "%s", err.text);
    conn_close(c);
    if (!peer)
        return;
    if (c->extra && peer_elsewhere(peer, c))
        return;
    if (peer->main == c && peer->dialed && !peer->admitted &&
        peer->next_address < peer->n_addresses) { /* another address may do better */
        peer->main = NULL;
        peer->failure = err;
        peer_dial_next(peer);
    } else if (peer->main == c || c->extra) {
        peer_end(peer, &err);
    } else { /* one of several attempts */
        peer->failure = err;
        peer->n_attempts--;
        peer_dial_next(peer);
    }
}

void conn_broke(struct conn *c, const struct rr_error *err)
{
    c->net->stats.rule_breaks++;
    if (c->state == CONN_CLOSED)
        return;
    conn_put_error(c, REASON_BROKE_RULE, err->text);
    conn_fail(c, LOG_RULE, "%s", err->text);
}

/* The session is complete, or at least this connection of it. */
void conn_greeted(struct conn *c)
{
    static const int lowdelay = 0x10, throughput = 0x08; /* also choose the band in a qdisc */
    const int *tos = c->extra ? &throughput : &lowdelay;
    unsigned int timeout = (unsigned int)(c->net->o.patience_ns / 1000000);

    c->state = CONN_OPEN;
    c->rx_ns = c->progress_ns = c->net->now_ns;
    net_arm(c->net, c->net->now_ns + c->net->o.ping_ns);
    if (c->unix_socket)
        return;
    setsockopt(c->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof(timeout));
    setsockopt(c->fd, IPPROTO_IP, IP_TOS, tos, sizeof(*tos));
    setsockopt(c->fd, IPPROTO_IPV6, IPV6_TCLASS, tos, sizeof(*tos));
}

/* --- in -------------------------------------------------------------------------------------- */

/* As system calls themselves: each of glibc's is a point of cancellation, and costs two atomic
 * operations more where there are threads. Polling does little else. */
static ssize_t receive(int fd, struct iovec *v, size_t n)
{
    struct msghdr m = {.msg_iov = v, .msg_iovlen = n};

    if (n == 1)
        return syscall(SYS_recvfrom, fd, v->iov_base, v->iov_len, MSG_DONTWAIT, NULL, NULL);
    return syscall(SYS_recvmsg, fd, &m, MSG_DONTWAIT);
}

/* Bytes; -EAGAIN; -EPIPE, and the connection has failed. */
static ssize_t read_some(struct conn *c, struct iovec *v, size_t n)
{
    ssize_t r;

    if (c->ssl) {
        r = tls_read(c, v->iov_base, v->iov_len);
    } else {
        do
            r = receive(c->fd, v, n);
        while (r < 0 && errno == EINTR);
        c->net->stats.reads++;
        if (r > 0)
            c->net->stats.in_bytes += (uint64_t)r;
        else
            r = r < 0 && errno == EAGAIN ? -EAGAIN : -EPIPE;
    }
    if (r > 0) {
        c->rx_ns = c->net->now_ns;
        c->pinged = false;
    } else if (r == -EPIPE) {
        conn_fail(c, LOG_LOST, "the connection ended");
    }
    return r;
}

static void on_frame(struct conn *c, const struct rr_wire_header *h, const uint8_t *body)
{
    struct rr_error err;

    switch (c->state) {
    case CONN_GREETING:
        if (h->type == RR_WIRE_HELLO || h->type == RR_WIRE_ERROR) {
            peer_on_hello(c, h, body);
            return;
        }
        break;
    case CONN_OPEN:
        if (h->type != RR_WIRE_HELLO) {
            message_on_frame(c, h, body);
            return;
        }
        break;
    case CONN_CONNECTING:
    case CONN_TLS:
    case CONN_ADMITTING:
    case CONN_CLOSED:
    default:
        break;
    }
    rr_error_set(&err, RR_E_INVALID, rr_net_peer_hint, "it sent what nobody expects: type %u",
                 h->type);
    conn_broke(c, &err);
}

static bool get_header(struct conn *c, const uint8_t *from, struct rr_wire_header *h)
{
    struct rr_error err;

    if (c->state == CONN_GREETING && from[0] == 0x15 && from[1] == 3) {
        conn_fail(c, LOG_TLS, "it speaks TLS, and we do not");
        return false;
    }
    if (c->state == CONN_GREETING && from[0] == 0x16 && from[1] == 3) {
        conn_fail(c, LOG_TLS, "it speaks TLS, and we do not");
        return false;
    }
    if (rr_wire_get_header(from, h, &err) == 0 &&
        (c->state != CONN_GREETING || h->type == RR_WIRE_HELLO || h->type == RR_WIRE_ERROR))
        return true;
    if (c->state == CONN_GREETING) {
        c->net->stats.rule_breaks++;
        conn_fail(c, LOG_GREETING, "it does not speak our protocol");
    } else {
        conn_broke(c, &err);
    }
    return false;
}

/* Frames in @data; the last one may be cut off. Returns the bytes used. */
static size_t on_bytes(struct conn *c, const uint8_t *data, size_t len)
{
    size_t used = 0;

    while (c->state == CONN_OPEN && len - used >= RR_WIRE_HEADER) {
        struct rr_wire_header h;

        if (!get_header(c, data + used, &h))
            break;
        if (len - used - RR_WIRE_HEADER < h.len)
            break;
        used += RR_WIRE_HEADER;
        on_frame(c, &h, data + used);
        used += h.len;
    }
    return used;
}

/* What is missing of the frame in c->part. */
static size_t missing(const struct conn *c)
{
    const uint8_t *at = c->part.data + c->part.start;
    size_t have = bytes_len(&c->part);
    struct rr_wire_header h;

    if (have < RR_WIRE_HEADER)
        return RR_WIRE_HEADER - have;
    if (rr_wire_get_header(at, &h, NULL))
        return 0;
    return RR_WIRE_HEADER + h.len - have;
}

/* Bytes of c->part and then of the scratch. @fresh: bytes in the latter. */
static void on_pieces(struct conn *c, size_t fresh)
{
    const uint8_t *from = c->net->scratch;
    size_t used;

    while (c->state == CONN_OPEN && bytes_len(&c->part)) {
        size_t n = missing(c);

        if (n == 0) {
            used = on_bytes(c, c->part.data + c->part.start, bytes_len(&c->part));
            if (c->state == CONN_OPEN)
                bytes_take(&c->part, used);
            continue;
        }
        if (fresh == 0)
            return;
        n = rr_min(n, fresh);
        if (!bytes_add(&c->part, from, n)) {
            conn_fail(c, LOG_MEMORY, "no memory for a frame");
            return;
        }
        from += n;
        fresh -= n;
    }
    used = on_bytes(c, from, fresh);
    if (c->state == CONN_OPEN && used < fresh && !bytes_add(&c->part, from + used, fresh - used))
        conn_fail(c, LOG_MEMORY, "no memory for a frame");
}

static bool read_main(struct conn *c)
{
    size_t budget = READ_BUDGET;
    bool came = false;

    while (c->state == CONN_OPEN && budget) {
        struct iovec v[2];
        size_t n_v = 0, want = bytes_len(&c->part) ? missing(c) : 0, asked = RR_NET_SCRATCH;
        ssize_t n;

        if (want) { /* the rest of a frame goes to where its beginning lies */
            if (!bytes_room(&c->part, want)) {
                conn_fail(c, LOG_MEMORY, "no memory for a frame");
                break;
            }
            v[n_v++] = (struct iovec){c->part.data + c->part.end, want};
        }
        v[n_v++] = (struct iovec){c->net->scratch, RR_NET_SCRATCH};
        n = read_some(c, v, n_v);
        if (n <= 0)
            break;
        came = true;
        asked += want;
        budget -= rr_min((uint64_t)n, budget);
        want = rr_min(want, (uint64_t)n);
        c->part.end += want;
        on_pieces(c, (size_t)n - want);
        if (c->ssl ? !c->tls_more : (size_t)n < asked)
            break; /* nothing more is there now */
    }
    return came;
}

/* Wake us for much at once, as long as much is to come. */
static void set_low_water(struct conn *c, bool on)
{
    int n = !on ? 1 : c->ssl ? LOW_WATER_TLS : LOW_WATER;

    if (c->low_water == on || c->ktls || c->unix_socket)
        return;
    c->low_water = on;
    setsockopt(c->fd, SOL_SOCKET, SO_RCVLOWAT, &n, sizeof(n));
}

/* Of a chunk, and with it the next frame's header. */
static ssize_t read_chunk(struct conn *c)
{
    uint8_t *to = message_chunk_place(c);
    size_t want = c->chunk_left;
    struct iovec v[2];
    ssize_t n;

    if (!to) {
        to = c->net->scratch;
        want = rr_min(want, RR_NET_SCRATCH);
    }
    v[0] = (struct iovec){to, want};
    v[1] = (struct iovec){c->header, RR_WIRE_HEADER};
    n = read_some(c, v, want == c->chunk_left && !c->ssl ? 2 : 1);
    if (n <= 0)
        return n;
    want = rr_min(want, (uint64_t)n);
    c->header_got = (size_t)n - want;
    c->chunk_left -= want;
    if (c->in)
        c->in->got += want;
    if (c->chunk_left == 0)
        message_chunk_done(c);
    return n;
}

static ssize_t read_body(struct conn *c)
{
    struct iovec v;
    ssize_t n;

    if (c->header_got < RR_WIRE_HEADER) {
        v = (struct iovec){c->header + c->header_got, RR_WIRE_HEADER - c->header_got};
        n = read_some(c, &v, 1);
        if (n <= 0)
            return n;
        c->header_got += (size_t)n;
        return n;
    }
    v = (struct iovec){c->part.data + c->part.end, c->h.len - bytes_len(&c->part)};
    n = read_some(c, &v, 1);
    if (n > 0)
        c->part.end += (size_t)n;
    return n;
}

/* The header is whole: is the frame? */
static void on_exact(struct conn *c)
{
    struct rr_wire_header h;

    if (!bytes_len(&c->part) && !get_header(c, c->header, &c->h))
        return;
    h = c->h;
    if (h.type == RR_WIRE_CHUNK_DATA && c->state == CONN_OPEN) {
        c->header_got = 0;
        c->chunk_left = h.len;
        message_on_chunk(c, &h);
        return;
    }
    if (!bytes_room(&c->part, h.len - bytes_len(&c->part))) {
        conn_fail(c, LOG_MEMORY, "no memory for a frame");
        return;
    }
    if (bytes_len(&c->part) < h.len)
        return;
    c->header_got = 0;
    on_frame(c, &h, c->part.data + c->part.start);
    if (c->state != CONN_CLOSED)
        bytes_take(&c->part, bytes_len(&c->part));
}

static bool read_exact(struct conn *c)
{
    size_t budget = READ_BUDGET;
    bool came = false;

    while ((c->state == CONN_GREETING || (c->state == CONN_OPEN && c->extra)) && budget &&
           (c->events & EPOLLIN)) {
        ssize_t n = c->chunk_left ? read_chunk(c) : read_body(c);

        if (n <= 0)
            break;
        came = true;
        budget -= rr_min((uint64_t)n, budget);
        while (c->state != CONN_CLOSED && !c->chunk_left && c->header_got == RR_WIRE_HEADER) {
            size_t had = bytes_len(&c->part);

            on_exact(c);
            if (c->state == CONN_CLOSED || c->header_got == 0 || bytes_len(&c->part) == had)
                break;
        }
    }
    if (c->state == CONN_OPEN && c->extra)
        set_low_water(c, c->in && c->in->to && c->in->len - c->in->got > 2ull * LOW_WATER);
    return came;
}

bool conn_read(struct conn *c)
{
    bool came = false;

    if (c->state == CONN_GREETING || c->extra)
        came = read_exact(c);
    if (c->state == CONN_OPEN && !c->extra && (c->events & EPOLLIN))
        came = read_main(c) || came;
    if (c->state != CONN_CLOSED && c->tls_more && (c->events & EPOLLIN))
        c->net->again = true;
    return came;
}

/* --- out ------------------------------------------------------------------------------------- */

/* Bytes taken; -EAGAIN; -EPIPE. */
static ssize_t write_some(struct conn *c, const struct iovec *v, size_t n, bool more)
{
    struct msghdr m = {.msg_iov = (struct iovec *)(uintptr_t)v, .msg_iovlen = n};
    ssize_t r;

    if (c->ssl) {
        size_t len = 0;

        for (size_t i = 0; i < n; i++)
            len += v[i].iov_len;
        if (n > 1 && len <= 16384) { /* one record costs less than a few */
            uint8_t all[16384];

            len = 0;
            for (size_t i = 0; i < n; i++) {
                memcpy(all + len, v[i].iov_base, v[i].iov_len);
                len += v[i].iov_len;
            }
            return tls_write(c, all, len);
        }
        while (n > 1 && v->iov_len == 0) {
            v++;
            n--;
        }
        return tls_write(c, v->iov_base, rr_min(v->iov_len, TLS_PIECE));
    }
    do
        r = syscall(SYS_sendmsg, c->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT | (more ? MSG_MORE : 0));
    while (r < 0 && errno == EINTR);
    c->net->stats.writes++;
    if (r < 0)
        return errno == EAGAIN ? -EAGAIN : -EPIPE;
    c->net->stats.out_bytes += (uint64_t)r;
    c->tx_bytes += (uint64_t)r;
    return r;
}

/* 0: all is out; -EAGAIN; -EPIPE */
static int flush_out(struct conn *c, bool more)
{
    while (bytes_len(&c->out)) {
        struct iovec v = {c->out.data + c->out.start, bytes_len(&c->out)};
        ssize_t n = write_some(c, &v, 1, more);

        if (n < 0)
            return (int)n;
        bytes_take(&c->out, (size_t)n);
    }
    return 0;
}

/* A piece of a large payload, from its file where it has one. */
static ssize_t write_payload(struct conn *c, struct outgoing *m)
{
    uint64_t len = rr_min(c->chunk_to_send, WRITE_BUDGET);
    off_t offset = (off_t)(m->offset + m->sent);
    const uint8_t *data = m->data ? m->data : rr_region_data(m->region) + m->offset;
    ssize_t n = -ENOTSUP;

    if (c->ssl) {
        if (m->fd >= 0)
            n = tls_sendfile(c, m->fd, offset, len);
        return n == -ENOTSUP ? tls_write(c, data + m->sent, rr_min(len, TLS_PIECE)) : n;
    }
    if (m->fd < 0) {
        struct iovec v = {(void *)(uintptr_t)(data + m->sent), len};

        return write_some(c, &v, 1, len < m->len - m->sent);
    }
    do
        n = sendfile(c->fd, m->fd, &offset, len);
    while (n < 0 && errno == EINTR);
    c->net->stats.writes++;
    if (n < 0)
        return errno == EAGAIN ? -EAGAIN : -EPIPE;
    if (n == 0) /* the file is shorter than its slot: not ours */
        return -EPIPE;
    c->net->stats.out_bytes += (uint64_t)n;
    c->tx_bytes += (uint64_t)n;
    return n;
}

/* The first message goes behind the others, so that a shorter one need not wait for it. */
static void rotate(struct conn *c)
{
    struct outgoing *m = c->queue;

    if (!m->next)
        return;
    c->queue = m->next;
    m->next = NULL;
    c->queue_last->next = m;
    c->queue_last = m;
}

static void unlink_first(struct conn *c)
{
    struct outgoing *m = c->queue;

    c->queue = m->next;
    if (!c->queue)
        c->queue_last = NULL;
    c->n_queued--;
    m->next = NULL;
    m->conn = NULL;
    free(rr_take(m->head));
}

static void dequeue(struct conn *c)
{
    struct outgoing *m = c->queue;

    unlink_first(c);
    message_sent(m);
}

/* What goes before the next piece of payload. false: no memory. */
static bool put_next(struct conn *c, struct outgoing *m)
{
    uint8_t header[RR_WIRE_HEADER];

    if (m->cancelled && !m->head_sent) {
        unlink_first(c);
        message_unsent(m);
        return true;
    }
    if (m->cancelled) {
        if (!conn_put_frame(c, RR_WIRE_CANCEL, m->seq, NULL, 0))
            return false;
        dequeue(c);
        return true;
    }
    if (!m->head_sent) {
        struct iovec v = {m->head, m->head_bytes};

        m->head_sent = m->head_bytes;
        if (!conn_put(c, &v, 1))
            return false;
    }
    c->chunk_to_send = rr_min(m->len - m->sent, RR_WIRE_CHUNK);
    rr_wire_put_header(header, (uint32_t)c->chunk_to_send, RR_WIRE_CHUNK_DATA, 0, m->seq);
    return conn_put(c, &(struct iovec){header, sizeof(header)}, 1);
}

/* 0: nothing is left; 1: the budget is spent; -EAGAIN; -EPIPE */
static int write_queue(struct conn *c)
{
    size_t budget = WRITE_BUDGET;
    int r = 0;

    while (budget) {
        struct outgoing *m = c->queue;
        ssize_t n;

        if (!c->chunk_to_send && bytes_len(&c->between)) {
            struct iovec v = {c->between.data + c->between.start, bytes_len(&c->between)};

            if (!conn_put(c, &v, 1))
                return -EPIPE;
            bytes_take(&c->between, v.iov_len);
        }
        if (!c->chunk_to_send && m && !put_next(c, m))
            return -EPIPE;
        r = flush_out(c, c->chunk_to_send > 0);
        if (r || (!c->chunk_to_send && !c->queue))
            return r;
        if (!c->chunk_to_send)
            continue;
        n = write_payload(c, m);
        if (n < 0)
            return (int)n;
        m->sent += (uint64_t)n;
        c->chunk_to_send -= (uint64_t)n;
        c->net->stats.out_payload_bytes += (uint64_t)n;
        budget -= rr_min((uint64_t)n, budget);
        if (c->chunk_to_send)
            continue;
        if (m->sent == m->len)
            dequeue(c);
        else
            rotate(c);
    }
    return 1;
}

void conn_write(struct conn *c)
{
    int r;

    if (c->state == CONN_CLOSED || c->state == CONN_CONNECTING || c->state == CONN_TLS)
        return;
    r = c->queue || c->chunk_to_send || bytes_len(&c->between) ? write_queue(c)
                                                               : flush_out(c, false);
    if (c->state == CONN_CLOSED)
        return;
    if (c->queue && r != -EPIPE)
        pace_look(c);
    if (c->ssl && r != -EPIPE) { /* what was encrypted on the way, in one piece */
        int flushed = tls_flush(c);

        r = flushed ? flushed : r;
    }
    if (r == -EPIPE) {
        conn_fail(c, LOG_LOST, "the connection ended");
        return;
    }
    conn_want(c, (c->events & ~(uint32_t)EPOLLOUT) | (r ? EPOLLOUT : 0u));
}

bool conn_put(struct conn *c, const struct iovec *v, size_t n)
{
    size_t len = 0;

    for (size_t i = 0; i < n; i++)
        len += v[i].iov_len;
    if (c->state == CONN_CLOSED)
        return false;
    if (!bytes_room(&c->out, len)) {
        conn_fail(c, LOG_MEMORY, "no memory for a frame");
        return false;
    }
    for (size_t i = 0; i < n; i++)
        bytes_add(&c->out, v[i].iov_base, v[i].iov_len);
    return true;
}

bool conn_put_frame(struct conn *c, enum rr_wire_type type, uint64_t seq, const void *body,
                    uint32_t len)
{
    uint8_t header[RR_WIRE_HEADER];
    const struct iovec v[2] = {{header, sizeof(header)}, {(void *)(uintptr_t)body, len}};

    rr_wire_put_header(header, len, type, 0, seq);
    return conn_put(c, v, len ? 2 : 1);
}

void conn_put_between(struct conn *c, enum rr_wire_type type, uint64_t seq)
{
    uint8_t header[RR_WIRE_HEADER];

    if (!c->chunk_to_send) {
        if (conn_put_frame(c, type, seq, NULL, 0))
            conn_write(c);
        return;
    }
    rr_wire_put_header(header, 0, type, 0, seq);
    if (!bytes_add(&c->between, header, sizeof(header)))
        conn_fail(c, LOG_MEMORY, "no memory for a frame");
}

void conn_pong(struct conn *c, uint64_t seq)
{
    c->net->stats.pongs++;
    if (bytes_len(&c->out) > RR_NET_MAX_OUT || bytes_len(&c->between) > RR_NET_MAX_OUT)
        conn_fail(c, LOG_BUSY, "it does not read what it asks for");
    else
        conn_put_between(c, RR_WIRE_PONG, seq);
}

void conn_enqueue(struct conn *c, struct outgoing *m)
{
    m->conn = c;
    m->next = NULL;
    if (c->queue)
        c->queue_last->next = m;
    else
        c->queue = m;
    c->queue_last = m;
    c->n_queued++;
    conn_write(c);
}

void conn_put_error(struct conn *c, enum rr_net_reason reason, const char *text)
{
    uint8_t body[4 + RR_WIRE_MAX_TEXT] = {(uint8_t)reason};
    size_t n = rr_min(strlen(text), RR_WIRE_MAX_TEXT);
    uint8_t drop[4096];

    if (c->chunk_to_send || c->state == CONN_CLOSED || c->state < CONN_GREETING)
        return; /* in the midst of a payload nobody would understand it */
    for (size_t i = 0; i < n; i++)
        body[4 + i] = (uint8_t)text[i];
    if (!conn_put_frame(c, RR_WIRE_ERROR, 0, body, (uint32_t)(4 + n)) || flush_out(c, false))
        return;
    if (c->ssl)
        tls_flush(c);
    /* With something unread a close would reset the connection, and the text be lost. */
    shutdown(c->fd, SHUT_WR);
    for (int i = 0; i < MAX_DROPS && recv(c->fd, drop, sizeof(drop), MSG_DONTWAIT) > 0; i++)
        ;
}

bool conn_send(struct conn *c, const struct iovec *v, size_t n)
{
    struct iovec rest[5];
    ssize_t sent = 0;

    if (c->state == CONN_CLOSED)
        return false;
    if (!bytes_len(&c->out)) {
        sent = write_some(c, v, n, false);
        if (sent == -EPIPE) {
            conn_fail(c, LOG_LOST, "the connection ended");
            return false;
        }
        sent = sent < 0 ? 0 : sent;
    }
    memcpy(rest, v, n * sizeof(*v));
    for (size_t i = 0; i < n; i++) {
        size_t skip = rr_min((uint64_t)sent, rest[i].iov_len);

        rest[i].iov_base = (uint8_t *)rest[i].iov_base + skip;
        rest[i].iov_len -= skip;
        sent -= (ssize_t)skip;
    }
    for (size_t i = 0; i < n; i++)
        if (rest[i].iov_len && !conn_put(c, &rest[i], 1))
            return false;
    if (bytes_len(&c->out) || c->ssl)
        conn_write(c);
    return c->state != CONN_CLOSED;
}

/* --- time ------------------------------------------------------------------------------------ */

static void check_silence(struct conn *c)
{
    struct rr_net *net = c->net;
    uint64_t heard, now = net->now_ns;
    int queued = 0;

    if (now < c->rx_ns + net->o.ping_ns) {
        net_arm(net, c->rx_ns + net->o.ping_ns);
        return;
    }
    ioctl(c->fd, SIOCOUTQ, &queued);
    if (c->tx_bytes - (uint64_t)queued != c->tx_seen) { /* it takes in what we send */
        c->tx_seen = c->tx_bytes - (uint64_t)queued;
        c->progress_ns = now;
    }
    heard = c->rx_ns > c->progress_ns ? c->rx_ns : c->progress_ns;
    if (c->pinged && now >= heard + net->o.patience_ns) {
        conn_fail(c, LOG_SILENT, "it has not answered for %s", rr_duration_text(now - heard));
        return;
    }
    if (!c->pinged && !c->chunk_to_send && !bytes_len(&c->out)) {
        net->stats.pings++;
        if (!conn_put_frame(c, RR_WIRE_PING, now, NULL, 0))
            return;
        conn_write(c);
    }
    c->pinged = true;
    net_arm(net, now + net->o.ping_ns / 2);
}

void conn_timer(struct conn *c)
{
    struct rr_net *net = c->net;
    uint64_t end = c->since_ns + net->o.handshake_ns;

    if (c->state == CONN_CLOSED)
        return;
    if (c->state == CONN_OPEN && c->peer->up) {
        if (c->low_water) /* so that a little that comes is seen, too */
            conn_read(c);
        if (c->state == CONN_OPEN)
            check_silence(c);
        return;
    }
    if (net->now_ns < end) {
        net_arm(net, end);
        return;
    }
    if (c->state == CONN_CONNECTING)
        conn_fail(c, LOG_DIAL, "nobody answers");
    else
        conn_fail(c, LOG_TIMEOUT, "it has not greeted in time");
}
