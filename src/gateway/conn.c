/* SPDX-License-Identifier: Apache-2.0 */
/* One connection: a request at a time, whatever the client sends ahead. */
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/internal.h"

#define TURN_BYTES (4 * RR_MIB) /* then others have their turn */
#define LINGER_BYTES (2u << 20) /* of a body that is refused: who sends it shall read why */
#define LINGER_NS 2000000000u
#define LAST_CALL_NS 100000000u
#define GRACE_NS 5000000000u /* before the rate of a body or reply is looked at */
#define FIRST_CHUNKS 16384u  /* room for a body of unknown length */
#define FRAMING_BYTES 64u    /* read at a time between chunks: what follows is copied */
#define NEAR_US 200u         /* so near is a peer on this machine, or in the next rack */
#define NEAR_WINDOW (2 * RR_MIB)

enum step { STEP_WAIT, STEP_ON, STEP_RUN, STEP_FREED };

struct conn *rr_conn_new(struct loop *loop, int fd, const struct listener *from)
{
    struct conn *c = calloc(1, sizeof(*c));

    if (!c)
        return NULL;
    c->kind = KIND_CONN;
    if (from->tls) {
        pthread_mutex_lock(&loop->gw->lock);
        c->ssl = rr_tls_accept(loop->gw->tls, fd);
        pthread_mutex_unlock(&loop->gw->lock);
        if (!c->ssl) {
            free(c);
            return NULL;
        }
    }
    c->fd = fd;
    c->loop = loop;
    c->admin = from->admin;
    c->tcp = from->tcp;
    c->readable = c->writable = true;
    c->since_ns = rr_now_ns();
    atomic_fetch_add(&loop->n_conns, 1);
    return c;
}

void rr_conn_begin(struct conn *c)
{
    struct loop *loop = c->loop;
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};

    c->next = loop->conns;
    if (c->next)
        c->next->prev = c;
    loop->conns = c;
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, c->fd, &e) < 0)
        rr_conn_close(c);
}

static void enter_at(struct conn *c, enum conn_state state, uint64_t now)
{
    c->state = state;
    c->since_ns = c->mark_ns = now;
    c->moved = c->mark_moved = 0;
}

static void enter(struct conn *c, enum conn_state state)
{
    enter_at(c, state, rr_now_ns());
}

/* --- what a request holds -------------------------------------------------------------------- */

static void give_budget_back(struct conn *c)
{
    rr_budget_give(&c->loop->gw->bodies, c->budget_bytes);
    c->budget_bytes = 0;
}

static bool take_budget(struct conn *c, uint64_t bytes)
{
    uint64_t more = bytes > c->budget_bytes ? bytes - c->budget_bytes : 0;

    if (!rr_budget_take(&c->loop->gw->bodies, more))
        return false;
    c->budget_bytes += more;
    return true;
}

static void end_request(struct conn *c)
{
    rr_trace_end(c);
    rr_message_free(rr_take(c->body));
    rr_message_free(rr_take(c->reply));
    rr_message_free(rr_take(c->job.in));
    rr_message_free(rr_take(c->job.out));
    free(rr_take(c->job.err));
    free(rr_take(c->meta.data));
    rr_event_end(c->loop->gw->events, c->event, false);
    c->event = 0;
    free(rr_take(c->head));
    c->trace[0] = '\0';
    rr_ask_free(rr_take(c->ask));
    give_budget_back(c);
    if (c->app)
        rr_generation_unref(c->app->generation);
    c->app = NULL;
}

static void drop_input(struct conn *c)
{
    if (c->in && !c->loop->spare)
        c->loop->spare = rr_take(c->in);
    free(rr_take(c->in));
    c->in_at = c->in_len = c->seen = 0;
}

void rr_conn_close(struct conn *c)
{
    struct loop *loop = c->loop;

    if (c->fd >= 0) {
        if (c->ssl)
            rr_tls_end(rr_take(c->ssl), true);
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
        shutdown(c->fd, SHUT_RDWR); /* a worker process may have a copy of it */
        close(c->fd);
        c->fd = -1;
        atomic_fetch_sub(&loop->gw->n_connections, 1);
    }
    if (c->state == CONN_WAIT) {
        atomic_store(&c->job.cancelled, true);
        c->gone = true;
        if (!rr_pool_withdraw(&loop->gw->pool, &c->job)) {
            if (!c->ask) /* it runs; the rest when it is done */
                rr_app_nudge(c->app);
            return;
        }
        count(&c->app->seats[loop->runner->id].stats.cancelled, 1);
    }
    end_request(c);
    drop_input(c);
    if (c->prev)
        c->prev->next = c->next;
    else
        loop->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    atomic_fetch_sub(&loop->n_conns, 1);
    if (c->is_ready) {
        struct conn **at = &loop->ready_first, *before = NULL;

        while (*at != c) {
            before = *at;
            at = &(*at)->ready_next;
        }
        *at = c->ready_next;
        if (loop->ready_last == c)
            loop->ready_last = before;
    }
    free(c);
}

static enum step freed(struct conn *c)
{
    rr_conn_close(c);
    return STEP_FREED;
}

/* --- reading --------------------------------------------------------------------------------- */

/* Return: bytes; 0: nothing now, or c->ended; -1: broken. */
static ssize_t receive(struct conn *c, struct iovec *iov, int n)
{
    size_t room = 0;
    ssize_t got;

    for (int k = 0; k < n; k++)
        room += iov[k].iov_len;
    do
        got = c->ssl ? rr_tls_readv(c->ssl, iov, n) : readv(c->fd, iov, n);
    while (got < 0 && errno == EINTR);
    if (got == 0) {
        c->ended = true;
        c->readable = false;
        return 0;
    }
    if (got < 0) {
        c->readable = false;
        return errno == EAGAIN ? 0 : -1;
    }
    c->moved += (uint64_t)got;
    /* All there was, and more would be told; but not that nothing more comes, if that is so. */
    if ((size_t)got < room && !c->ssl && !c->half_closed)
        c->readable = false;
    return got;
}

static ssize_t transmit(struct conn *c, struct iovec *iov, size_t n)
{
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = n};

    return c->ssl ? rr_tls_writev(c->ssl, iov, (int)n) : sendmsg(c->fd, &m, MSG_NOSIGNAL);
}

static bool have_buffer(struct conn *c)
{
    if (!c->in)
        c->in = c->loop->spare ? rr_take(c->loop->spare) : malloc(c->loop->gw->o.max_header_bytes);
    return c->in != NULL;
}

static struct iovec buffer_room(struct conn *c)
{
    if (c->in_at == c->in_len) {
        c->in_at = c->in_len = 0;
    } else if (c->in_at) {
        memmove(c->in, c->in + c->in_at, c->in_len - c->in_at);
        c->in_len -= c->in_at;
        c->in_at = 0;
    }
    return (struct iovec){c->in + c->in_len, c->loop->gw->o.max_header_bytes - c->in_len};
}

/* Answer, and have no more of this connection: where the next request begins is not known. */
static enum step refuse_for(struct conn *c, int status, const char *why)
{
    c->keep = false;
    rr_reply_problem(c, status, "%s", why);
    return STEP_ON;
}

static const char *why_refused(int status)
{
    switch (status) {
    case 408:
        return "the request came too slowly";
    case 414:
        return "the request's target is longer than 8 KiB";
    case 417:
        return "an Expect other than 100-continue is not supported";
    case 431:
        return "the request's head is too large: the server's --max-header bounds it, and 100 "
               "headers, and 64 KiB of metadata made of them";
    case 501:
        return "this method or transfer coding is not supported: send Content-Length, or chunked "
               "alone";
    case 505:
        return "only HTTP/1.1 and HTTP/1.0 are spoken here";
    default:
        return "the request is malformed";
    }
}

static enum step refuse(struct conn *c, int status)
{
    return refuse_for(c, status, why_refused(status));
}

static enum step overloaded(struct conn *c, const char *what)
{
    c->keep = c->keep && c->body_known == 0;
    rr_reply_problem(c, 503, "%s", what);
    return STEP_ON;
}

/* Is the peer near? Where nothing tells, it is not. */
static bool is_near(const struct conn *c)
{
    struct tcp_info info;
    socklen_t len = sizeof(info);

    return c->tcp && getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 &&
           len >= offsetof(struct tcp_info, tcpi_min_rtt) + sizeof(info.tcpi_min_rtt) &&
           info.tcpi_min_rtt < NEAR_US;
}

/*
 * Left alone, the kernel's receive window grows to 32 MiB, and a large body is written to memory by
 * its sender and read from there by us. What is on its way within 2 MiB stays in the caches: half
 * again as fast, from a peer on this machine. Over NEAR_US that much is still 80 Gbit/s. Set again
 * and again, since the kernel lifts it whenever it makes the buffer larger.
 */
static void keep_window(struct conn *c)
{
    int window = NEAR_WINDOW;

    if (c->body_len < c->next_window)
        return;
    if (!c->near && !is_near(c)) {
        c->next_window = UINT64_MAX;
        return;
    }
    c->near = true;
    c->next_window = c->body_len + NEAR_WINDOW / 2;
    /* no more than a hint */
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, &window, sizeof(window));
}

/* The body's length and room, or a refusal. */
static enum step begin_body(struct conn *c, const struct rr_http_request *rq)
{
    struct rr_error err;

    c->body_known = rq->chunked ? UINT64_MAX : rq->length;
    c->body_len = 0;
    c->chunks = (struct rr_chunks){0};
    if (!rq->chunked && rq->length > c->app->max_body_bytes) {
        c->keep = false;
        rr_reply_problem(c, 413, "the body has %llu bytes, and at most %llu are taken",
                         (unsigned long long)rq->length,
                         (unsigned long long)c->app->max_body_bytes);
        return STEP_ON;
    }
    if (!take_budget(c, rq->chunked ? FIRST_CHUNKS : rq->length))
        return overloaded(c, "too many bodies are in memory");
    if (rr_inbound_new(c->app->seats[0].worker,
                       rq->chunked ? rr_min(FIRST_CHUNKS, c->app->max_body_bytes) : rq->length,
                       &c->body, &err))
        return overloaded(c, "there is no memory for the body");
    if (rq->expects_continue && c->in_at == c->in_len) {
        static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";

        /* Nothing is on its way to the client, so there is room for this. */
        if (transmit(c, &(struct iovec){(void *)(uintptr_t)go_on, sizeof(go_on) - 1}, 1) !=
            sizeof(go_on) - 1)
            return freed(c);
    }
    c->next_window = rq->chunked ? NEAR_WINDOW : rq->length > NEAR_WINDOW ? 0 : UINT64_MAX;
    enter_at(c, CONN_BODY, c->begin_ns);
    return STEP_ON;
}

/* As "%.*s %.*s"; printf takes 100 ns for it. */
static void note_what(struct conn *c, const struct rr_http_request *rq)
{
    size_t method = rr_min(rq->method.len, 20), path = rr_min(rq->path.len, 90);

    memcpy(c->what, rq->method.at, method);
    c->what[method] = ' ';
    memcpy(c->what + method + 1, rq->path.at, path);
    c->what[method + 1 + path] = '\0';
}

static enum step begin_request(struct conn *c, const struct rr_http_request *rq)
{
    struct generation *g;
    int status;

    c->begin_ns = rr_now_ns();
    c->status = 0;
    c->body_len = 0;
    c->keep = rq->keep_alive && !atomic_load(&c->loop->gw->draining);
    c->no_body = rr_text_is(rq->method, "HEAD");
    c->old = rq->minor == 0;
    c->body_known = rq->chunked ? UINT64_MAX : rq->length;
    note_what(c, rq);
    c->trace[0] = '\0';
    c->job.begin_ns = c->job.start_ns = c->body_len = 0;
    if (rr_reply_builtin(c, rq))
        return STEP_ON;
    if (rr_ask_about(c, rq)) {
        if (c->in_at == c->in_len)
            drop_input(c);
        return c->state == CONN_WAIT ? STEP_WAIT : STEP_ON;
    }
    g = rr_generation_current(c->loop->gw);
    c->app = rr_generation_find(g, rq->path);
    if (!c->app) {
        rr_generation_unref(g);
        c->keep = c->keep && c->body_known == 0;
        rr_reply_problem(c, 404, "no workflow answers here");
        return STEP_ON;
    }
    c->meta = (struct meta){0};
    status = rr_meta_of_request(c, rq, &c->meta);
    if (status == 400)
        return refuse_for(c, status,
                          "a CloudEvent in binary mode needs ce-specversion 1.0, ce-id, ce-source "
                          "and ce-type, each once and not empty");
    if (status == 415)
        return refuse_for(c, status, "batches of CloudEvents are not supported: send one each");
    if (status)
        return refuse(c, status);
    return begin_body(c, rq);
}

static enum step advance_head(struct conn *c)
{
    struct rr_http_request rq;
    struct iovec iov;
    ssize_t n;

    while (c->in_at < c->in_len) {
        n = rr_http_parse(c->in + c->in_at, c->in_len - c->in_at, &c->seen, &rq);
        if (n > 0) {
            c->in_at += (size_t)n;
            return begin_request(c, &rq);
        }
        if (n < 0 || c->in_len - c->in_at == c->loop->gw->o.max_header_bytes) {
            c->begin_ns = rr_now_ns();
            snprintf(c->what, sizeof(c->what), "- -");
            return refuse(c, n < 0 ? (int)-n : 431);
        }
        break;
    }
    if (!c->readable)
        return c->ended ? freed(c) : STEP_WAIT;
    if (!have_buffer(c))
        return freed(c);
    iov = buffer_room(c);
    n = receive(c, &iov, 1);
    if (n < 0 || (n == 0 && c->ended))
        return freed(c);
    if (n > 0 && c->in_len == 0)
        c->since_ns = rr_now_ns(); /* the time for a head begins with its first byte */
    c->in_len += (size_t)n;
    if (n == 0 && c->in_at == c->in_len)
        drop_input(c);
    return n == 0 ? STEP_WAIT : STEP_ON;
}

/* --- bodies ---------------------------------------------------------------------------------- */

static void count_copied(struct conn *c, uint64_t n)
{
    count(&c->app->seats[c->loop->runner->id].stats.copied_in_bytes, n);
}

static enum step reject(struct conn *c, int status, const char *what)
{
    rr_reply_problem(c, status, "%s", what); /* the body was read, the connection can go on */
    return STEP_ON;
}

/* STEP_RUN: to be handled. */
static enum step begin_event(struct conn *c)
{
    uint64_t cap;
    int status = 0;

    if (c->structured)
        status = rr_event_unpack(&c->meta, rr_inbound_room(c->body, &cap), &c->body_len);
    if (status == 413)
        return reject(c, 413,
                      "events in structured mode have at most 1 MiB; send larger ones in "
                      "binary mode");
    if (status)
        return reject(
            c, status,
            "this is no CloudEvent in structured mode: a JSON object with specversion 1.0, id, "
            "source and type, and data or data_base64");
    if (c->structured)
        count_copied(c, c->body_len);
    switch (rr_event_begin(c->loop->gw->events, c->app->route->path, &c->meta, &c->event)) {
    case RR_EVENT_PENDING:
        return reject(c, 409, "this event is being handled");
    case RR_EVENT_DONE:
        rr_reply_empty(c, 202);
        return STEP_ON;
    case RR_EVENT_NEW:
        break;
    }
    return STEP_RUN;
}

static enum step end_body(struct conn *c)
{
    struct gateway *gw = c->loop->gw;
    struct job *job = &c->job;
    enum step step = begin_event(c);

    if (step != STEP_RUN)
        return step;
    if (rr_ask_wanted(c)) {
        rr_ask_accept(c);
        if (c->in_at == c->in_len)
            drop_input(c);
        return c->state == CONN_WAIT ? STEP_WAIT : STEP_ON;
    }
    rr_inbound_end(c->body, c->body_len, rr_take(c->meta.data), c->meta.len);
    *job = (struct job){.loop = c->loop, .app = c->app, .in = rr_take(c->body), .trace = c->spans};
    job->begin_ns = rr_now_ns();
    job->deadline_ns = gw->o.deadline_ns ? job->begin_ns + gw->o.deadline_ns : 0;
    count(&c->app->seats[c->loop->runner->id].stats.received_bytes, c->body_len);
    if (c->in_at == c->in_len)
        drop_input(c);
    enter_at(c, CONN_WAIT, job->begin_ns);
    if (rr_app_fast(c->app))
        return STEP_RUN;
    if (rr_pool_submit(&gw->pool, job, gw->o.queue))
        return STEP_WAIT;
    rr_message_free(rr_take(job->in));
    c->body_known = 0; /* it was read, the connection can go on */
    return overloaded(c, "too many requests are waiting");
}

/* Payload that came with what was read before. */
static void take_buffered(struct conn *c, uint8_t *to, uint64_t wanted)
{
    size_t n = (size_t)rr_min(wanted, c->in_len - c->in_at);

    if (!n)
        return;
    memcpy(to, c->in + c->in_at, n);
    c->in_at += n;
    c->body_len += n;
    count_copied(c, n);
}

/* Straight into the body; what lies behind it into the buffer. Return as receive(). */
static ssize_t receive_payload(struct conn *c, uint8_t *to, uint64_t wanted)
{
    struct iovec iov[2] = {{to, rr_min(wanted, TURN_BYTES)}};
    ssize_t n;
    int parts = 1;

    if (iov[0].iov_len == wanted && have_buffer(c)) {
        iov[1] = buffer_room(c);
        if (c->body_known == UINT64_MAX)
            iov[1].iov_len = rr_min(iov[1].iov_len, FRAMING_BYTES);
        parts = 2;
    }
    n = receive(c, iov, parts);
    if (n > 0) {
        uint64_t ours = rr_min((uint64_t)n, iov[0].iov_len);

        c->body_len += ours;
        c->in_len += (size_t)n - ours;
        keep_window(c);
    }
    return n;
}

static enum step advance_length(struct conn *c)
{
    uint64_t cap, turn = 0;
    uint8_t *data = rr_inbound_room(c->body, &cap);

    take_buffered(c, data + c->body_len, c->body_known - c->body_len);
    while (c->body_len < c->body_known) {
        ssize_t n;

        if (!c->readable)
            return c->ended ? freed(c) : STEP_WAIT;
        if (turn >= TURN_BYTES) {
            rr_loop_ready(c);
            return STEP_WAIT;
        }
        n = receive_payload(c, data + c->body_len, c->body_known - c->body_len);
        if (n < 0 || (n == 0 && c->ended))
            return freed(c);
        turn += (uint64_t)n;
    }
    return end_body(c);
}

/* Room for what the chunk has. */
static enum step make_room(struct conn *c, uint64_t wanted)
{
    struct rr_error err;
    uint64_t cap, to;
    int64_t copied;

    if (wanted > c->app->max_body_bytes - c->body_len) {
        c->keep = false;
        rr_reply_problem(c, 413, "the body has more than %llu bytes",
                         (unsigned long long)c->app->max_body_bytes);
        return STEP_ON;
    }
    wanted += c->body_len;
    rr_inbound_room(c->body, &cap);
    if (wanted > cap || wanted > c->budget_bytes) {
        /* doubled, lest it be copied with each chunk; from a buffer into a region once */
        to = wanted > cap ? rr_min(c->app->max_body_bytes, wanted > 2 * cap ? wanted : 2 * cap)
                          : rr_min(cap, rr_align_up(wanted, RR_MIB));
        if (!take_budget(c, wanted > cap ? rr_min(to, wanted + RR_SMALL_MAX) : to)) {
            c->keep = false;
            return overloaded(c, "too many bodies are in memory");
        }
        copied = rr_inbound_grow(c->app->seats[0].worker, c->body, c->body_len, to, &err);
        if (copied < 0) {
            c->keep = false;
            return overloaded(c, "there is no memory for the body");
        }
        count_copied(c, (uint64_t)copied);
    }
    return STEP_RUN;
}

/* Return: STEP_RUN: it goes on. */
static enum step take_chunk(struct conn *c, uint64_t *turn)
{
    uint64_t cap, before = c->body_len;
    enum step step = make_room(c, c->chunks.left);
    ssize_t n;

    if (step != STEP_RUN)
        return step;
    take_buffered(c, rr_inbound_room(c->body, &cap) + c->body_len, c->chunks.left);
    if (c->body_len == before) {
        if (!c->readable)
            return c->ended ? freed(c) : STEP_WAIT;
        n = receive_payload(c, rr_inbound_room(c->body, &cap) + c->body_len, c->chunks.left);
        if (n < 0 || (n == 0 && c->ended))
            return freed(c);
        if (n == 0)
            return STEP_WAIT;
    }
    *turn += c->body_len - before;
    rr_chunks_took(&c->chunks, c->body_len - before);
    return STEP_RUN;
}

/* Return: STEP_RUN: it goes on. */
static enum step take_framing(struct conn *c)
{
    ssize_t n;

    if (c->in_at == c->in_len) {
        struct iovec iov;

        if (!c->readable)
            return c->ended ? freed(c) : STEP_WAIT;
        if (!have_buffer(c))
            return freed(c);
        iov = buffer_room(c);
        iov.iov_len = rr_min(iov.iov_len, FRAMING_BYTES);
        n = receive(c, &iov, 1);
        if (n < 0 || (n == 0 && c->ended))
            return freed(c);
        if (n == 0)
            return STEP_WAIT;
        c->in_len += (size_t)n;
    }
    n = rr_chunks_feed(&c->chunks, c->in + c->in_at, c->in_len - c->in_at);
    if (n < 0)
        return refuse(c, 400);
    c->in_at += (size_t)n;
    return STEP_RUN;
}

static enum step advance_chunks(struct conn *c)
{
    enum step step = STEP_RUN;
    uint64_t turn = 0;

    while (step == STEP_RUN && c->chunks.state != RR_CHUNK_END) {
        if (turn >= TURN_BYTES) {
            rr_loop_ready(c);
            return STEP_WAIT;
        }
        step = c->chunks.state == RR_CHUNK_DATA ? take_chunk(c, &turn) : take_framing(c);
    }
    return step == STEP_RUN ? end_body(c) : step;
}

/* --- writing --------------------------------------------------------------------------------- */

static enum step end_reply(struct conn *c)
{
    bool keep = c->keep && !c->ended;

    rr_log_request(c);
    end_request(c);
    if (keep && !atomic_load(&c->loop->gw->draining)) {
        enter(c, CONN_HEAD);
        return STEP_ON;
    }
    /* What the client still sends would make the kernel throw our answer away with a reset. */
    if (!c->ended) {
        if (c->ssl)
            rr_tls_end(c->ssl, false);
        shutdown(c->fd, SHUT_WR);
    }
    enter(c, CONN_LINGER);
    return STEP_ON;
}

static enum step advance_write(struct conn *c)
{
    uint64_t all = c->head_len + c->out_len;

    /* One that was not handled: whoever reads so may send it again at once, over any connection. */
    rr_event_end(c->loop->gw->events, c->event, false);
    c->event = 0;
    while (c->out_at < all) {
        struct iovec iov[2];
        size_t parts = 0;
        ssize_t n;

        if (!c->writable)
            return STEP_WAIT;
        if (c->out_at < c->head_len)
            iov[parts++] = (struct iovec){c->head + c->out_at, c->head_len - c->out_at};
        if (c->out_len) {
            uint64_t at = c->out_at > c->head_len ? c->out_at - c->head_len : 0;

            iov[parts++] = (struct iovec){(void *)(uintptr_t)(c->out + at), c->out_len - at};
        }
        n = transmit(c, iov, parts);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            c->writable = false;
            return STEP_WAIT;
        }
        if (n < 0)
            return freed(c);
        c->out_at += (uint64_t)n;
        c->moved += (uint64_t)n;
    }
    return end_reply(c);
}

static enum step advance_linger(struct conn *c)
{
    char waste[4096];
    struct iovec iov = {waste, sizeof(waste)};

    if (c->ended || c->moved > LINGER_BYTES)
        return freed(c);
    if (!c->readable)
        return STEP_WAIT;
    if (receive(c, &iov, 1) < 0)
        return freed(c);
    return STEP_ON;
}

/* --- all of it ------------------------------------------------------------------------------- */

static enum step advance(struct conn *c)
{
    switch (c->state) {
    case CONN_HEAD:
        return advance_head(c);
    case CONN_BODY:
        return c->body_known == UINT64_MAX ? advance_chunks(c) : advance_length(c);
    case CONN_WRITE:
        return advance_write(c);
    case CONN_LINGER:
        return advance_linger(c);
    case CONN_WAIT:
        break;
    }
    return STEP_WAIT;
}

struct job *rr_conn_advance(struct conn *c, uint32_t events)
{
    enum step step;

    if (c->gone)
        return NULL;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        c->readable = true;
    if (events & EPOLLOUT)
        c->writable = true;
    if (events & EPOLLRDHUP)
        c->half_closed = true;
    if (events && c->ssl) /* either may have waited for the other */
        c->readable = c->writable = true;
    if (events & (EPOLLHUP | EPOLLERR) || (events & EPOLLRDHUP && c->state == CONN_WAIT)) {
        rr_conn_close(c); /* nobody waits for the answer */
        return NULL;
    }
    do
        step = advance(c);
    while (step == STEP_ON);
    return step == STEP_RUN ? &c->job : NULL;
}

static struct conn *conn_of(struct job *job)
{
    return (struct conn *)(void *)((char *)job - offsetof(struct conn, job));
}

void rr_conn_done(struct job *job)
{
    struct conn *c = conn_of(job);

    if (c->gone) {
        if (!c->ask)
            count(&c->app->seats[c->loop->runner->id].stats.cancelled, 1);
        c->state = CONN_HEAD; /* there is nothing left to wait for */
        rr_conn_close(c);
        return;
    }
    if (c->ask) {
        rr_ask_answer(c);
    } else if (job->err || !job->out) {
        rr_reply_error(c, job->err);
    } else {
        c->reply = rr_take(job->out);
        rr_reply_message(c);
        if (c->status < 400) { /* else its sender may send it again */
            rr_event_end(c->loop->gw->events, c->event, true);
            c->event = 0;
        }
    }
    rr_loop_ready(c);
}

/* Slower than it may be, over some seconds? */
static bool too_slow(struct conn *c, uint64_t now)
{
    uint64_t took = now - c->mark_ns, moved = c->moved - c->mark_moved;

    if (took < GRACE_NS)
        return false;
    c->mark_ns = now;
    c->mark_moved = c->moved;
    return moved / (took / 1000000000u) < c->loop->gw->o.min_rate_bytes;
}

void rr_conn_check(struct conn *c, uint64_t now)
{
    const struct rr_gateway_options *o = &c->loop->gw->o;
    bool idle = c->in_at == c->in_len;
    bool shaking = c->ssl && !rr_tls_shaken(c->ssl);

    if (c->gone || now < c->since_ns)
        return;
    switch (c->state) {
    case CONN_HEAD:
        /* at the end, those that have just come may still ask */
        if (idle && now - c->since_ns > (atomic_load(&c->loop->gw->draining) ? LAST_CALL_NS
                                         : shaking                           ? o->header_ns
                                                                             : o->idle_ns))
            rr_conn_close(c);
        else if (!idle && now - c->since_ns > o->header_ns) {
            c->begin_ns = now;
            snprintf(c->what, sizeof(c->what), "- -");
            refuse(c, 408);
            rr_loop_ready(c);
        }
        break;
    case CONN_BODY:
        if (too_slow(c, now)) {
            refuse(c, 408);
            rr_loop_ready(c);
        }
        break;
    case CONN_WRITE:
        if (too_slow(c, now))
            rr_conn_close(c);
        break;
    case CONN_LINGER:
        if (now - c->since_ns > LINGER_NS)
            rr_conn_close(c);
        break;
    case CONN_WAIT:
        if (c->job.deadline_ns && now > c->job.deadline_ns &&
            rr_pool_withdraw(&c->loop->gw->pool, &c->job)) {
            struct rr_error err = {.code = RR_E_DEADLINE};

            rr_reply_error(c, &err);
            rr_loop_ready(c);
        }
        break;
    }
}
