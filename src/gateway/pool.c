/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that run workflows, and pollers. */
#include <stdlib.h>

#include "base/util.h"
#include "gateway/internal.h"

void rr_pool_init(struct pool *pool, unsigned int max_running)
{
    *pool = (struct pool){.max_running = max_running};
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
}

void rr_pool_deinit(struct pool *pool)
{
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
}

/* --- queues ---------------------------------------------------------------------------------- */

/* The ring of workflows with jobs: each in turn gets a thread. */
static void ring_add(struct pool *pool, struct app *app)
{
    if (!pool->apps) {
        pool->apps = app->next = app;
        return;
    }
    app->next = pool->apps->next; /* the last in turn: just behind the one that is next... */
    pool->apps->next = app;       /* ...so that nobody waits longer than a round */
}

static void ring_remove(struct pool *pool, struct app *app)
{
    struct app *before = app;

    while (before->next != app)
        before = before->next;
    before->next = app->next;
    if (pool->apps == app)
        pool->apps = app->next == app ? NULL : app->next;
    app->next = NULL;
}

static void unlink_job(struct pool *pool, struct job *job)
{
    struct app *app = job->app;
    struct job **at = &app->first, *before = NULL;

    while (*at != job) {
        before = *at;
        at = &(*at)->next;
    }
    *at = job->next;
    if (app->last == job)
        app->last = before;
    job->next = NULL;
    job->queued = false;
    app->n_queued--;
    pool->n_queued--;
    if (!app->first)
        ring_remove(pool, app);
}

bool rr_pool_submit(struct pool *pool, struct job *job, unsigned int max_queued)
{
    struct app *app = job->app;
    bool room;

    pthread_mutex_lock(&pool->lock);
    room = app->n_queued < max_queued;
    if (room) {
        job->next = NULL;
        job->queued = true;
        if (app->last)
            app->last->next = job;
        else
            app->first = job;
        app->last = job;
        if (app->n_queued++ == 0)
            ring_add(pool, app);
        pool->n_queued++;
        pthread_cond_signal(&pool->wake);
    }
    pthread_mutex_unlock(&pool->lock);
    return room;
}

bool rr_pool_withdraw(struct pool *pool, struct job *job)
{
    bool queued;

    pthread_mutex_lock(&pool->lock);
    queued = job->queued;
    if (queued)
        unlink_job(pool, job);
    pthread_mutex_unlock(&pool->lock);
    return queued;
}

/* One workflow may not take all threads from the others. */
static unsigned int share_of(const struct pool *pool, const struct app *app)
{
    if (app->isolated)
        return app->n_lanes;
    if (app->generation->n_apps == 1 || pool->max_running < 2)
        return pool->max_running;
    return pool->max_running -
           (unsigned int)rr_min(pool->max_running - 1, app->generation->n_apps - 1);
}

static struct job *take_job(struct pool *pool)
{
    struct app *app = pool->apps, *first = app;
    struct job *job;

    if (!app || pool->n_running >= pool->max_running)
        return NULL;
    do {
        if (app->n_running < share_of(pool, app)) {
            job = app->first;
            pool->apps = app->next;
            unlink_job(pool, job);
            app->n_running++;
            pool->n_running++;
            job->lane = (unsigned int)__builtin_ctz(~app->busy_lanes);
            app->busy_lanes |= app->isolated ? 1u << job->lane : 0;
            return job;
        }
        app = app->next;
    } while (app != first);
    return NULL;
}

void rr_pool_adopt(struct pool *pool, struct poller *p)
{
    pthread_mutex_lock(&pool->lock);
    p->next_orphan = pool->orphans;
    pool->orphans = p;
    pthread_cond_signal(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

void rr_pool_stop(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

void *rr_pool_main(void *thread)
{
    struct thread *t = thread;
    struct pool *pool = &t->gw->pool;

    pthread_mutex_lock(&pool->lock);
    while (!pool->stop || pool->apps || pool->orphans) {
        struct poller *p = pool->orphans;
        struct job *job;

        if (p) {
            pool->orphans = p->next_orphan;
            pthread_mutex_unlock(&pool->lock);
            rr_poller_run(p, t);
            pthread_mutex_lock(&pool->lock);
        } else if ((job = take_job(pool))) {
            struct app *app = job->app;

            pthread_mutex_unlock(&pool->lock);
            if (job->of_call)
                rr_async_run(job, t);
            else
                rr_job_run(job, t);
            count(&app->seats[t->id].stats.pool_runs, 1);
            pthread_mutex_lock(&pool->lock);
            app->busy_lanes &= ~(1u << job->lane);
            app->n_running--; /* before it is told: then the workflow may go */
            pool->n_running--;
            pthread_mutex_unlock(&pool->lock);
            if (job->of_call)
                rr_async_ran(job);
            else
                rr_loop_post(job);
            pthread_mutex_lock(&pool->lock);
        } else {
            pthread_cond_wait(&pool->wake, &pool->lock);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    rr_message_thread_end();
    return NULL;
}

/* --- runs ------------------------------------------------------------------------------------ */

bool rr_app_fast(const struct app *app)
{
    return !app->isolated && atomic_load_explicit(&app->n_known, memory_order_relaxed) >= 4 &&
           atomic_load_explicit(&app->usual_ns, memory_order_relaxed) < FAST_NS;
}

/* Races lose an observation, no more. One slow run counts at once, fast ones have to last. */
static void learn(struct app *app, uint64_t ns)
{
    uint64_t usual = atomic_load_explicit(&app->usual_ns, memory_order_relaxed);

    usual = usual == UINT64_MAX ? ns : usual - usual / 8 + ns / 8;
    atomic_store_explicit(&app->usual_ns, usual, memory_order_relaxed);
    if (atomic_load_explicit(&app->n_known, memory_order_relaxed) < 4)
        atomic_fetch_add_explicit(&app->n_known, 1, memory_order_relaxed);
}

static void fail(struct job *job, const struct rr_error *err)
{
    job->err = malloc(sizeof(*job->err));
    if (job->err)
        *job->err = *err;
}

void rr_job_run(struct job *job, struct thread *t)
{
    struct app *app = job->app;
    struct seat *seat = &app->seats[app->isolated ? job->lane : t->id];
    struct seat *told = app->n_lanes == 1 ? &app->seats[t->gw->n_threads] : seat;
    struct rr_error err = {0};
    int r = 0;

    job->start_ns = rr_now_ns();
    if (atomic_load(&job->cancelled))
        r = rr_error_set(&err, RR_E_CANCELLED, "", "the client has gone");
    else if (job->deadline_ns && job->start_ns >= job->deadline_ns)
        r = rr_error_set(&err, RR_E_DEADLINE, "raise --concurrency or --deadline",
                         "its deadline passed before a thread was free");
    if (r == 0) {
        told->trace = job->trace;
        if (job->trace)
            job->trace->since_ns = job->start_ns;
        rr_worker_stop_by(seat->worker, &job->cancelled);
        r = rr_worker_run_message(seat->worker, rr_take(job->in), job->deadline_ns, &job->out,
                                  &err);
        rr_worker_stop_by(seat->worker, NULL);
        told->trace = NULL;
        job->end_ns = rr_now_ns();
        learn(app, job->end_ns - job->start_ns);
        rr_histogram_add(&app->seats[t->id].stats.run, job->end_ns - job->start_ns, REQUEST_UNIT_NS,
                         1);
    }
    rr_message_free(rr_take(job->in));
    /* What other processes lend goes back at once, and not from another thread: at most a copy. */
    if (r == 0 && app->isolated) {
        int64_t copied = rr_outbound_own(seat->worker, &job->out, &err);

        r = copied < 0 ? (int)err.code : 0;
        count(&app->seats[t->id].stats.copied_out_bytes, copied > 0 ? (uint64_t)copied : 0);
    }
    rr_outbound_detach(job->out);
    if (app->isolated)
        rr_worker_collect(seat->worker);
    if (r)
        fail(job, &err);
}
