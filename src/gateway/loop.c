/* SPDX-License-Identifier: Apache-2.0 */
/* A set of connections. Pollers take it in turns to serve it, one at a time. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/internal.h"

#define ACCEPTS 64               /* per turn */
#define LEAST_SCAN_NS 900000000u /* all are told once a second, see tell_all() */

int rr_loop_init(struct gateway *gw, struct loop *loop, struct rr_error *err)
{
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &loop->wake_kind};
    struct epoll_event held = {.events = EPOLLIN | EPOLLONESHOT, .data.ptr = loop};

    loop->gw = gw;
    loop->wake_kind = KIND_WAKE;
    pthread_mutex_init(&loop->lock, NULL);
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->epoll_fd < 0 || loop->wake_fd < 0 ||
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &e) < 0 ||
        epoll_ctl(gw->poll_fd, EPOLL_CTL_ADD, loop->epoll_fd, &held) < 0)
        return rr_error_set(err, RR_E_SYSTEM, "raise the limit on descriptors", "no epoll: %s",
                            strerror(errno));
    if (getrandom(&loop->random, sizeof(loop->random), 0) < 0)
        loop->random = rr_now_ns();
    return 0;
}

/* What other threads have for this loop: jobs that are done, connections that it is given. */
static void take_posted(struct loop *loop)
{
    struct conn *given;
    struct job *done;
    uint64_t n;

    if (read(loop->wake_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
        return;
    pthread_mutex_lock(&loop->lock);
    done = rr_take(loop->done);
    given = rr_take(loop->given);
    loop->told = false;
    pthread_mutex_unlock(&loop->lock);
    while (done) {
        struct job *job = done;

        done = job->next;
        rr_conn_done(job);
    }
    while (given) {
        struct conn *c = given;

        given = c->next;
        rr_conn_begin(c);
    }
}

void rr_loop_deinit(struct loop *loop)
{
    if (!loop->gw)
        return;
    take_posted(loop);
    while (loop->conns)
        rr_conn_close(loop->conns);
    rr_listen_close(loop);
    rr_log_flush(loop);
    free(loop->listeners);
    free(loop->spare);
    free(loop->log);
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    if (loop->wake_fd >= 0)
        close(loop->wake_fd);
    pthread_mutex_destroy(&loop->lock);
}

void rr_loop_kick(struct loop *loop)
{
    uint64_t one = 1;

    if (write(loop->wake_fd, &one, sizeof(one)) < 0)
        return; /* it is full: the loop is awake */
}

/* Its lists have something new. */
static void unlock_and_tell(struct loop *loop)
{
    bool tell = !loop->told;

    loop->told = true;
    pthread_mutex_unlock(&loop->lock);
    if (tell)
        rr_loop_kick(loop);
}

void rr_loop_post(struct job *job)
{
    struct loop *loop = job->loop;

    pthread_mutex_lock(&loop->lock);
    job->next = loop->done;
    loop->done = job;
    unlock_and_tell(loop);
}

void rr_loop_ready(struct conn *c)
{
    struct loop *loop = c->loop;

    if (c->is_ready)
        return;
    c->is_ready = true;
    c->ready_next = NULL;
    if (loop->ready_last)
        loop->ready_last->ready_next = c;
    else
        loop->ready_first = c;
    loop->ready_last = c;
}

/* --- accepting ------------------------------------------------------------------------------- */

static void refuse(int fd)
{
    static const char busy[] = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n"
                               "Retry-After: 1\r\nConnection: close\r\n\r\n";

    if (send(fd, busy, sizeof(busy) - 1, MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
        shutdown(fd, SHUT_WR);
    close(fd);
}

/* No descriptors are left: the one in reserve lets us tell so, rather than leave clients waiting.
 */
static void accept_without(struct gateway *gw, int listen_fd)
{
    int fd;

    pthread_mutex_lock(&gw->lock);
    close(gw->spare_fd);
    fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        refuse(fd);
    gw->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    pthread_mutex_unlock(&gw->lock);
    atomic_fetch_add(&gw->n_refused, 1);
}

/* The kernel spreads connections over the loops by chance, a few often all to the same one. */
static struct loop *least_busy(struct loop *loop)
{
    struct gateway *gw = loop->gw;
    struct loop *least = loop;
    unsigned int n_least = atomic_load(&loop->n_conns);

    if (atomic_load(&gw->draining))
        return loop;
    for (unsigned int n = 0; n < gw->n_loops; n++) {
        unsigned int n_conns = atomic_load(&gw->loops[n].n_conns);

        if (n_conns < n_least) {
            least = &gw->loops[n];
            n_least = n_conns;
        }
    }
    return least;
}

static void give(struct conn *c)
{
    struct loop *loop = c->loop;

    pthread_mutex_lock(&loop->lock);
    c->next = loop->given;
    loop->given = c;
    unlock_and_tell(loop);
}

static void add_conn(struct loop *loop, int fd, const struct listener *from)
{
    struct gateway *gw = loop->gw;
    struct conn *c = NULL;
    int on = 1;

    if (atomic_fetch_add(&gw->n_connections, 1) < gw->o.max_connections)
        c = rr_conn_new(least_busy(loop), fd, from);
    if (!c) {
        atomic_fetch_sub(&gw->n_connections, 1);
        atomic_fetch_add(&gw->n_refused, 1);
        refuse(fd);
        return;
    }
    atomic_fetch_add(&gw->n_accepted, 1);
    if (from->tcp)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (c->loop == loop)
        rr_conn_begin(c);
    else
        give(c);
}

static void accept_some(struct loop *loop, const struct listener *l)
{
    for (int n = 0; n < ACCEPTS; n++) {
        int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE)
                accept_without(loop->gw, l->fd);
            if (errno != ECONNABORTED && errno != EINTR)
                return;
            continue;
        }
        add_conn(loop, fd, l);
    }
}

/* --- turns ------------------------------------------------------------------------------------ */

static void scan(struct loop *loop, uint64_t now)
{
    struct conn *next;

    for (struct conn *c = loop->conns; c; c = next) {
        next = c->next;
        rr_conn_check(c, now);
    }
    loop->next_scan_ns = now + LEAST_SCAN_NS;
}

/* Connections may end here, so no event of theirs may be at hand. */
static void scan_if_due(struct loop *loop)
{
    bool draining = atomic_load(&loop->gw->draining);
    uint64_t now = rr_now_ns();

    if (draining && loop->listening) {
        for (size_t n = 0; n < loop->n_listeners; n++)
            accept_some(loop, &loop->listeners[n]); /* who came in time */
        rr_listen_close(loop);
    }
    if (draining || now >= loop->next_scan_ns)
        scan(loop, now);
}

bool rr_loop_turn(struct loop *loop)
{
    int n = epoll_wait(loop->epoll_fd, loop->events, N_EVENTS, 0);

    loop->n_events = n > 0 ? n : 0;
    loop->next_event = 0;
    /* Those that are ready now; who becomes so meanwhile waits until others were looked at. */
    loop->n_ready_turn = N_EVENTS;
    return n > 0;
}

void rr_loop_take(struct loop *loop, struct poller *p)
{
    /* with what rr_loop_release() does: what the last holder wrote is seen here */
    atomic_exchange(&loop->holder, p);
    loop->runner = p->runner;
}

bool rr_loop_rest(struct loop *loop)
{
    scan_if_due(loop);
    rr_log_flush(loop);
    return !loop->ready_first;
}

void rr_loop_release(struct loop *loop)
{
    struct epoll_event e = {.events = EPOLLIN | EPOLLONESHOT, .data.ptr = loop};

    if (loop->ready_first)
        rr_loop_kick(loop); /* its turn comes again, after that of others */
    atomic_store(&loop->holder, NULL);
    if (epoll_ctl(loop->gw->poll_fd, EPOLL_CTL_MOD, loop->epoll_fd, &e) < 0)
        abort(); /* it was added, and has not been closed */
}

bool rr_loop_next(struct loop *loop, struct job **ret)
{
    struct epoll_event *e;

    *ret = NULL;
    if (loop->next_event < loop->n_events) {
        e = &loop->events[loop->next_event++];
        switch (*(enum kind *)e->data.ptr) {
        case KIND_LISTENER:
            accept_some(loop, e->data.ptr);
            break;
        case KIND_WAKE:
            take_posted(loop);
            break;
        case KIND_CONN:
            atomic_load_explicit(&loop->holder, memory_order_relaxed)->last = e->data.ptr;
            *ret = rr_conn_advance(e->data.ptr, e->events);
            break;
        }
        return true;
    }
    if (loop->n_ready_turn > 0 && loop->ready_first) {
        struct conn *c = loop->ready_first;

        loop->n_ready_turn--;
        loop->ready_first = c->ready_next;
        if (!loop->ready_first)
            loop->ready_last = NULL;
        c->is_ready = false;
        *ret = rr_conn_advance(c, 0);
        return true;
    }
    return false;
}
