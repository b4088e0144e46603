/* SPDX-License-Identifier: Apache-2.0 */
/* A set of connections, and the thread that serves them. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/internal.h"

#define ACCEPTS 64 /* per turn */
#define SCAN_NS 1000000000u
#define NAP_NS 20000u /* see asks_again() */
#define LUCK 256u
#define STUCK_NS 5000000u  /* such a run holds a loop up; in less, others may have had the CPU */
#define RESCUE_NS 1000000u /* how often a loop looks at its neighbour */
#define LIGHT_NS 50000u    /* what an instance made ahead may cost */
#define KEEP_NS 900000000u /* instances made ahead, once nobody asks */

int rr_loop_init(struct gateway *gw, struct loop *loop, unsigned int id, struct rr_error *err)
{
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &loop->wake_kind};

    loop->id = id;
    loop->gw = gw;
    loop->wake_kind = KIND_WAKE;
    pthread_mutex_init(&loop->lock, NULL);
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->epoll_fd < 0 || loop->wake_fd < 0 ||
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &e) < 0)
        return rr_error_set(err, RR_E_SYSTEM, "raise the limit on descriptors", "no epoll: %s",
                            strerror(errno));
    if (getrandom(&loop->random, sizeof(loop->random), 0) < 0)
        loop->random = rr_now_ns() + id;
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

/* --- running --------------------------------------------------------------------------------- */

/* The worker of what @t ran last, with a reference to its generation, or NULL: it is gone. */
static struct rr_worker *last_worker(const struct thread *t, struct generation **ret)
{
    struct generation *g = rr_generation_current(t->gw);

    *ret = g;
    return g->number == t->generation ? g->apps[t->app].seats[t->id].worker : NULL;
}

/* Nothing is put off any more, and nothing kept for those who might ask. */
static void settle(struct thread *t)
{
    struct generation *g;
    struct rr_worker *w;

    if (!t->untidy && !t->prepared)
        return;
    w = last_worker(t, &g);
    if (w) {
        rr_worker_settle(w);
        rr_worker_defer(w, 0);
    }
    rr_generation_unref(g);
    t->untidy = t->prepared = false;
}

static void note_run(struct thread *t, const struct app *app, uint64_t now)
{
    size_t index = (size_t)(app - app->generation->apps);

    if (t->generation != app->generation->number || t->app != index)
        settle(t);
    t->generation = app->generation->number;
    t->app = index;
    t->ran_ns = now;
    t->untidy = true;
    rr_worker_defer(app->seats[t->id].worker, LIGHT_NS);
}

/* Who wants this CPU has it first; a client, say, for the answer it got. False: it was kept. */
static bool yield(struct loop *loop)
{
    uint64_t before = rr_now_ns();

    if (!rr_yield_pays(&loop->yields, before))
        return false;
    sched_yield();
    rr_yield_note(&loop->yields, before, rr_now_ns());
    return true;
}

/* What has come. */
static int peek(struct loop *loop)
{
    return epoll_wait(loop->epoll_fd, loop->events, N_EVENTS, 0);
}

/* Do what was put off, as long as nothing comes. */
static int tidy(struct loop *loop)
{
    struct thread *t = loop->runner;
    struct generation *g;
    struct rr_worker *w;
    int n = 0;

    if (!t->untidy)
        return 0;
    w = last_worker(t, &g);
    t->untidy = t->prepared = w != NULL;
    while (n == 0 && t->untidy) {
        n = peek(loop);
        if (n == 0 && yield(loop)) /* a client may have read its answer, and asked again */
            n = peek(loop);
        if (n == 0)
            t->untidy = rr_worker_tidy(w);
    }
    rr_generation_unref(g);
    return n;
}

/* Run it here. False: that took long, and the loop is another thread's now. */
static bool run_inline(struct loop *loop, struct job *job, struct thread *t)
{
    uint64_t since = rr_now_ns(), expected = since;

    atomic_store(&loop->running_since_ns, since);
    note_run(t, job->app, since);
    rr_job_run(job, t);
    if (atomic_compare_exchange_strong(&loop->running_since_ns, &expected, 0)) {
        count(&job->app->seats[t->id].stats.inline_runs, 1);
        rr_conn_done(job);
        return true;
    }
    count(&job->app->seats[t->id].stats.stolen_runs, 1);
    settle(t);
    rr_loop_post(job); /* the last touch: it may be freed from here on */
    return false;
}

static void scan(struct loop *loop, uint64_t now)
{
    struct conn *next;

    for (struct conn *c = loop->conns; c; c = next) {
        next = c->next;
        rr_conn_check(c, now);
    }
    loop->next_scan_ns = now + SCAN_NS;
}

/* The next piece of work; a job that is to be run here, or NULL. False: there is none left. */
static bool next_piece(struct loop *loop, struct job **ret)
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
            loop->last = e->data.ptr;
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

/* The watch sleeps while nothing happens. */
static void wake_watch(struct gateway *gw)
{
    uint64_t one = 1;

    if (atomic_load(&gw->parked) && atomic_exchange(&gw->parked, false) &&
        write(gw->watch_fd, &one, sizeof(one)) < 0)
        return;
}

void rr_loop_rescue(struct loop *loop, uint64_t now)
{
    uint64_t since = atomic_load(&loop->running_since_ns);

    if (since > LOOP_STOLEN && now > since && now - since > STUCK_NS &&
        atomic_compare_exchange_strong(&loop->running_since_ns, &since, LOOP_STOLEN))
        rr_pool_adopt(&loop->gw->pool, loop);
}

/* Connections may end here, so no event of theirs may be at hand. */
static void scan_if_due(struct loop *loop)
{
    struct gateway *gw = loop->gw;
    bool draining = atomic_load(&gw->draining);
    uint64_t now = rr_now_ns();

    if (now >= loop->next_rescue_ns) { /* seldom: it writes there with each run */
        rr_loop_rescue(&gw->loops[(loop->id + 1) % gw->n_loops], now);
        loop->next_rescue_ns = now + RESCUE_NS;
    }
    if (draining && loop->listening) {
        for (size_t n = 0; n < loop->n_listeners; n++)
            accept_some(loop, &loop->listeners[n]); /* who came in time */
        rr_listen_close(loop);
    }
    if (draining || now >= loop->next_scan_ns)
        scan(loop, now);
}

/* The client that was answered last asks again, so soon that polling would have seen it: @slept,
 * this thread was woken, too. Of many that ask at random times one is often soon, but to poll for
 * them takes the CPU from who else wants it. */
static bool asks_again(const struct loop *loop, uint64_t ns, bool slept)
{
    uint64_t poll_ns = loop->gw->poll_ns;

    return loop->events[0].data.ptr == loop->last && ns <= (slept ? 2 * poll_ns + NAP_NS : poll_ns);
}

/* For as long as waking up would take. */
static int poll_events(struct loop *loop, uint64_t until)
{
    int n;

    do
        n = peek(loop);
    while (n == 0 && yield(loop) && rr_now_ns() < until);
    return n;
}

/* A client that asks again as soon as it is answered would be held up by our sleep. */
static int sleep_or_poll(struct loop *loop, int timeout)
{
    struct gateway *gw = loop->gw;
    bool polled = false;
    int n = tidy(loop);
    uint64_t since;

    if (n > 0)
        return n;
    since = rr_now_ns();
    if (gw->poll_always || loop->luck > LUCK / 2) {
        polled = atomic_fetch_add(&gw->n_polling, 1) < gw->max_polling;
        if (polled)
            n = poll_events(loop, since + gw->poll_ns);
        atomic_fetch_sub(&gw->n_polling, 1);
    }
    if (n == 0)
        n = epoll_wait(loop->epoll_fd, loop->events, N_EVENTS, timeout);
    if (n > 0 && asks_again(loop, rr_now_ns() - since, !polled))
        loop->luck += (LUCK - loop->luck) / 8;
    else
        loop->luck -= loop->luck / 8;
    return n;
}

static void wait_for_events(struct loop *loop)
{
    int timeout;

    scan_if_due(loop);
    timeout = loop->ready_first                         ? 0
              : atomic_load(&loop->gw->draining)        ? 20
              : loop->n_conns || loop->runner->prepared ? 1000
                                                        : -1;
    if (timeout)
        rr_log_flush(loop);
    loop->next_event = 0;
    loop->n_events = timeout ? sleep_or_poll(loop, timeout) : peek(loop);
    if (loop->n_events < 0)
        loop->n_events = 0;
    if (loop->n_events == 0 && rr_now_ns() - loop->runner->ran_ns > KEEP_NS)
        settle(loop->runner);
    atomic_fetch_add(&loop->n_turns, 1); /* seen by the watch before it looks away, or: */
    wake_watch(loop->gw);
    /* Those that are ready now; who becomes so meanwhile waits until others were looked at. */
    loop->n_ready_turn = N_EVENTS;
}

void rr_loop_run(struct loop *loop, struct thread *t)
{
    struct job *job;

    loop->runner = t;
    atomic_store(&loop->running_since_ns, 0);
    while (!atomic_load(&loop->gw->stop)) {
        if (!next_piece(loop, &job)) {
            wait_for_events(loop);
            continue;
        }
        if (job && !run_inline(loop, job, t))
            return;
    }
}
