/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that serve whatever loop has something to do. */
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/internal.h"

#define SCAN_NS 1000000000u
#define DRAIN_SCAN_NS 20000000u
#define NAP_NS 20000u /* see asks_again() */
#define LUCK 256u
#define STUCK_NS 5000000u  /* such a run holds a loop up; in less, others may have had the CPU */
#define RESCUE_NS 1000000u /* how often a poller looks at its neighbour */
#define LIGHT_NS 50000u    /* what an instance made ahead may cost */
#define KEEP_NS 900000000u /* instances made ahead, once nobody asks */

/* --- what was put off ------------------------------------------------------------------------ */

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
static bool yield(struct poller *p)
{
    uint64_t before = rr_now_ns();

    if (!rr_yield_pays(&p->yields, before))
        return false;
    sched_yield();
    rr_yield_note(&p->yields, before, rr_now_ns());
    return true;
}

/* Another loop instead of the one at hand, if one has something to do, within this time. */
static bool change(struct poller *p, int timeout_ms)
{
    struct epoll_event e;

    if (epoll_wait(p->gw->poll_fd, &e, 1, timeout_ms) <= 0)
        return false;
    if (p->loop)
        rr_loop_release(p->loop);
    p->loop = e.data.ptr; /* NULL: all is over */
    if (p->loop) {
        rr_loop_take(p->loop, p);
        rr_loop_turn(p->loop);
    }
    return true;
}

/* Is there something to do? The loop at hand is kept as long as nothing else is: a client that asks
 * again at once wakes nobody. */
static bool look(struct poller *p)
{
    return change(p, 0) || (p->loop && rr_loop_turn(p->loop));
}

/* Do what was put off, as long as nothing comes. */
static bool tidy(struct poller *p)
{
    struct thread *t = p->runner;
    struct generation *g;
    struct rr_worker *w;
    bool came;

    if (!t->untidy)
        return false;
    if (look(p))
        return true;
    w = last_worker(t, &g);
    t->untidy = t->prepared = w != NULL;
    for (came = false; !came && t->untidy; came = look(p)) {
        /* a client may have read its answer, and asked again */
        if (yield(p) && look(p)) {
            came = true;
            break;
        }
        t->untidy = rr_worker_tidy(w);
    }
    rr_generation_unref(g);
    return came;
}

/* --- running --------------------------------------------------------------------------------- */

/* Run it here. False: that took long, and @p is another thread's now. */
static bool run_inline(struct poller *p, struct job *job, struct thread *t)
{
    uint64_t since = rr_now_ns(), expected = since;

    atomic_store(&p->running_since_ns, since);
    note_run(t, job->app, since);
    rr_job_run(job, t);
    if (atomic_compare_exchange_strong(&p->running_since_ns, &expected, 0)) {
        count(&job->app->seats[t->id].stats.inline_runs, 1);
        rr_conn_done(job);
        return true;
    }
    count(&job->app->seats[t->id].stats.stolen_runs, 1);
    settle(t);
    rr_loop_post(job); /* the last touch: it may be freed from here on */
    return false;
}

void rr_poller_rescue(struct poller *p, uint64_t now)
{
    uint64_t since = atomic_load(&p->running_since_ns);

    if (since > POLLER_STOLEN && now > since && now - since > STUCK_NS &&
        atomic_compare_exchange_strong(&p->running_since_ns, &since, POLLER_STOLEN))
        rr_pool_adopt(&p->gw->pool, p);
}

/* The watch sleeps while nothing happens. */
static void wake_watch(struct gateway *gw)
{
    uint64_t one = 1;

    if (atomic_load(&gw->parked) && atomic_exchange(&gw->parked, false) &&
        write(gw->watch_fd, &one, sizeof(one)) < 0)
        return;
}

/* --- waiting --------------------------------------------------------------------------------- */

/* Every loop looks at its connections once a second, or sooner at those of a server that ends. */
static void tell_all(struct gateway *gw, uint64_t now)
{
    uint64_t due = atomic_load(&gw->next_scan_ns);
    bool draining = atomic_load(&gw->draining);

    if (now < due || !atomic_compare_exchange_strong(&gw->next_scan_ns, &due,
                                                     now + (draining ? DRAIN_SCAN_NS : SCAN_NS)))
        return;
    for (unsigned int n = 0; n < gw->n_loops; n++)
        if (draining || atomic_load(&gw->loops[n].n_conns))
            rr_loop_kick(&gw->loops[n]);
}

/* The client that was answered last asks again, so soon that polling would have seen it: @slept,
 * this thread was woken, too. Of many that ask at random times one is often soon, but to poll for
 * them takes the CPU from who else wants it. */
static bool asks_again(const struct poller *p, uint64_t ns, bool slept)
{
    const struct loop *loop = p->loop;
    uint64_t poll_ns = p->gw->poll_ns;

    return loop->n_events && loop->events[0].data.ptr == p->last &&
           ns <= (slept ? 2 * poll_ns + NAP_NS : poll_ns);
}

/* For as long as waking up would take. */
static bool poll_events(struct poller *p, uint64_t until)
{
    do
        if (look(p))
            return true;
    while (yield(p) && rr_now_ns() < until);
    return false;
}

/* A client that asks again as soon as it is answered would be held up by our sleep. */
static bool sleep_or_poll(struct poller *p, int timeout_ms)
{
    struct gateway *gw = p->gw;
    uint64_t since = rr_now_ns();
    bool polled = false, came = false;

    if (gw->poll_always || p->luck > LUCK / 2) {
        polled = atomic_fetch_add(&gw->n_polling, 1) < gw->max_polling;
        if (polled)
            came = poll_events(p, since + gw->poll_ns);
        atomic_fetch_sub(&gw->n_polling, 1);
    }
    if (!came) {
        if (p->loop)
            rr_loop_release(rr_take(p->loop));
        came = change(p, timeout_ms);
    }
    if (p->loop && asks_again(p, rr_now_ns() - since, !polled))
        p->luck += (LUCK - p->luck) / 8;
    else
        p->luck -= p->luck / 8;
    return came;
}

static void wait_for_work(struct poller *p)
{
    struct gateway *gw = p->gw;
    uint64_t now = rr_now_ns();
    int timeout_ms;

    tell_all(gw, now);
    if (now >= p->next_rescue_ns) { /* seldom: it writes there with each run */
        rr_poller_rescue(&gw->pollers[(p->id + 1) % gw->n_pollers], now);
        p->next_rescue_ns = now + RESCUE_NS;
    }
    timeout_ms = atomic_load(&gw->draining)                               ? 20
                 : atomic_load(&gw->n_connections) || p->runner->prepared ? 1000
                                                                          : -1;
    if (p->loop && !rr_loop_rest(p->loop))
        rr_loop_release(rr_take(p->loop));
    if (!tidy(p) && !sleep_or_poll(p, timeout_ms) && rr_now_ns() - p->runner->ran_ns > KEEP_NS)
        settle(p->runner);
    atomic_fetch_add(&p->n_turns, 1); /* seen by the watch before it looks away, or: */
    wake_watch(gw);
}

void rr_poller_run(struct poller *p, struct thread *t)
{
    struct job *job;

    p->runner = t;
    if (p->loop)
        p->loop->runner = t;
    atomic_store(&p->running_since_ns, 0);
    while (!atomic_load(&p->gw->stop)) {
        if (!p->loop || !rr_loop_next(p->loop, &job))
            wait_for_work(p);
        else if (job && !run_inline(p, job, t))
            return;
    }
}
