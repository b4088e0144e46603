/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deliveries to a function that failed, as `delivery` of its edges says. Its inputs stay here as
 * they came: each attempt gets copy-on-write views of them, or copies of small ones. What it sends
 * goes when an attempt ended well, so that nobody sees what came of one that failed.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/util.h"
#include "worker/internal.h"
#include "worker/nodes.h"
#include "worker/remote.h"

#define NAP_NS 10000000u /* between looks at who ends the wait */

/* What the edges of all inputs say: the fewest retries, the shortest timeout, the longest pause. */
struct policy {
    const struct rr_worker *w;
    struct message *const *inputs;
    size_t n;
};

static const struct rr_edge *edge_of(const struct policy *p, size_t k)
{
    return &p->w->wf->edges[p->inputs[k]->edge];
}

static unsigned int most_attempts(const struct policy *p)
{
    unsigned int retry = edge_of(p, 0)->again.retry;

    for (size_t k = 1; k < p->n; k++)
        retry = (unsigned int)rr_min(retry, edge_of(p, k)->again.retry);
    return retry + 1;
}

static uint64_t timeout_of(const struct policy *p)
{
    uint64_t timeout = 0;

    for (size_t k = 0; k < p->n; k++) {
        uint64_t ns = edge_of(p, k)->again.timeout_ns;

        timeout = ns && (!timeout || ns < timeout) ? ns : timeout;
    }
    return timeout;
}

static uint64_t pause_of(const struct policy *p, unsigned int n_failed)
{
    uint64_t pause = 0;

    for (size_t k = 0; k < p->n; k++) {
        uint64_t ns = rr_delivery_backoff_ns(&edge_of(p, k)->again, n_failed);

        pause = ns > pause ? ns : pause;
    }
    return rr_min(pause, RR_EDGE_BACKOFF_MAX_NS);
}

static bool is_optional(const struct policy *p)
{
    bool optional = true;

    for (size_t k = 0; k < p->n; k++)
        optional = optional && edge_of(p, k)->optional;
    return optional;
}

/* Where several may read it, and nobody changes it. */
static int keep(struct rr_worker *w, struct message **inputs, size_t n, struct rr_error *err)
{
    int r = 0;

    for (size_t k = 0; k < n && r == 0; k++) {
        struct message *m = inputs[k];

        if (m->region && (m->patched || rr_region_backing(m->region) != RR_MEMFD))
            r = rr_message_regather(w->arena, m, RR_MEMFD, err);
    }
    return r;
}

static int share(struct message *const *kept, struct message **ret, size_t n, unsigned int attempt,
                 struct rr_error *err)
{
    for (size_t k = 0; k < n; k++) {
        struct message *m = ret[k] = rr_message_share(kept[k]);

        if (m && attempt == 1)
            m->copied_bytes = kept[k]->copied_bytes;
        if (m) /* those before it were to a process that died */
            m->attempt = attempt + (m->attempt ? m->attempt - 1 : 0);
        if (m && rr_message_mark(m) == 0)
            continue;
        rr_message_free(m);
        while (k > 0)
            rr_message_free(ret[--k]);
        return rr_error_no_memory(err);
    }
    return 0;
}

static int pause_for(struct rr_worker *w, uint64_t ns, struct rr_error *err)
{
    uint64_t until = rr_now_ns() + ns, run = w->remote ? w->remote->run : 0, now;

    while ((now = rr_now_ns()) < until) {
        struct timespec t = {0, (long)rr_min(until - now, NAP_NS)};
        int r = 0;

        if (w->remote && rr_remote_pump(w->remote, false, err) < 0)
            r = (int)err->code;
        if (w->remote && r == 0)
            r = rr_remote_interrupted(w->remote, run, err);
        else if (rr_worker_cancelled(w))
            r = rr_error_set(err, RR_E_CANCELLED, "", "interrupted");
        if (r)
            return r;
        nanosleep(&t, NULL);
    }
    return 0;
}

/* Is there to be another one, and when? An attempt that could not begin in time is not waited for.
 */
static bool again_after(const struct policy *p, unsigned int attempt, uint64_t deadline_ns,
                        enum rr_code code, uint64_t *ret_pause)
{
    *ret_pause = pause_of(p, attempt);
    return code != RR_E_CANCELLED && attempt < most_attempts(p) && !rr_worker_cancelled(p->w) &&
           (!deadline_ns || rr_now_ns() + *ret_pause < deadline_ns);
}

static int run_attempts(struct rr_worker *w, int fn, const struct policy *p, struct message **now,
                        uint64_t deadline_ns, unsigned int *ret_n, struct rr_error *err)
{
    struct attempt a = {.caller = -1, .run_deadline_ns = deadline_ns, .stages = true};
    uint64_t timeout = timeout_of(p), pause;
    int status, r;

    for (*ret_n = 1;; ++*ret_n) {
        r = share(p->inputs, now, p->n, *ret_n, err);
        if (r)
            return r;
        a.deadline_ns = timeout ? rr_now_ns() + timeout : 0;
        if (deadline_ns && (!a.deadline_ns || deadline_ns < a.deadline_ns))
            a.deadline_ns = deadline_ns;
        w->named = false;
        r = rr_function_attempt(w, fn, now, &a, &status, NULL, err);
        if (r == 0 || !again_after(p, *ret_n, deadline_ns, (enum rr_code)r, &pause))
            return r;
        rr_log(1, "%s: attempt %u of %u, the next one in %s", err->text, *ret_n, most_attempts(p),
               rr_duration_text(pause));
        for (size_t k = 0; k < p->n && w->observer.again; k++)
            w->observer.again(w->observer.user, p->inputs[k]->edge);
        r = pause_for(w, pause, err);
        if (r)
            return r;
    }
}

/* @p's inputs: moved. */
static int give_up(struct rr_worker *w, const struct policy *p, struct message **kept,
                   unsigned int attempts, struct rr_error *err)
{
    bool optional = is_optional(p);
    int r = (int)err->code;

    for (size_t k = 0; k < p->n; k++)
        rr_letter_send(w, rr_take(kept[k]), attempts, err);
    if (!optional)
        return r;
    rr_log(1, "%s: the run goes on without it", err->text);
    w->n_forgone++;
    return 0;
}

int rr_function_try(struct rr_worker *w, int fn, struct message **inputs, uint64_t deadline_ns,
                    struct rr_error *err)
{
    size_t n = w->fns[fn].n_inlets;
    struct message **now = calloc(n, sizeof(struct message *));
    struct policy p = {w, inputs, n};
    struct debt *before = rr_delivery_enter(w, inputs, n);
    unsigned int attempts = 0;
    int r = now ? keep(w, inputs, n, err) : rr_error_no_memory(err);

    if (r == 0) {
        r = run_attempts(w, fn, &p, now, deadline_ns, &attempts, err);
        if (r && r != RR_E_CANCELLED)
            r = give_up(w, &p, inputs, attempts, err);
    }
    for (size_t k = 0; k < n; k++)
        rr_message_free(rr_take(inputs[k]));
    rr_delivery_leave(w, before);
    free(now);
    return r;
}
