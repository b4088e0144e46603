/* SPDX-License-Identifier: Apache-2.0 */
/* A node that serves functions. One thread: a function runs as soon as its messages are there. */
#include "worker/node.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/nodes.h"

#define EXPIRE_NS 1000000000u /* between looks for sessions that are over */
#define LOOK_NS 200000u       /* between looks at all sockets of a process that never sleeps */
#define DRAIN_NS 10000000000u /* for what has begun, when it is to stop */

struct rr_node_server {
    struct rr_worker *base;
    struct nodes *nodes;
    int wake_fd;
    atomic_int stops;
    atomic_bool reload, woken;
    uint64_t spin_ns, spin_max_ns, looked_ns, expired_ns, stop_ns;
};

int rr_node_server_new(const struct rr_workflow *wf, const struct rr_worker_options *options,
                       struct rr_node_server **ret, struct rr_error *err)
{
    struct rr_node_server *s = calloc(1, sizeof(*s));
    int r;

    if (!s)
        return rr_error_no_memory(err);
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r = s->wake_fd < 0 ? rr_error_set(err, RR_E_SYSTEM, "raise the limit on descriptors",
                                      "no eventfd: %s", strerror(errno))
                       : rr_worker_new(wf, options, &s->base, err);
    if (r == 0)
        r = rr_nodes_new(s->base, true, &s->nodes, err);
    if (r == 0 && rr_net_watch(rr_nodes_net(s->nodes), s->wake_fd, true) < 0)
        r = rr_error_no_memory(err);
    if (r) {
        rr_node_server_free(s);
        return r;
    }
    s->spin_max_ns = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? s->base->spin_ns : 0;
    s->spin_ns = s->spin_max_ns;
    *ret = s;
    return 0;
}

void rr_node_server_free(struct rr_node_server *s)
{
    if (!s)
        return;
    rr_nodes_free(s->nodes);
    rr_worker_free(s->base);
    if (s->wake_fd >= 0)
        close(s->wake_fd);
    free(s);
}

int rr_node_server_listen(struct rr_node_server *s, const char *at, struct rr_error *err)
{
    return rr_net_listen(rr_nodes_net(s->nodes), at, err);
}

static void wake(struct rr_node_server *s)
{
    uint64_t one = 1;
    int saved = errno;

    while (write(s->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
    atomic_store(&s->woken, true); /* afterwards, or what was written might stay */
    errno = saved;
}

void rr_node_server_stop(struct rr_node_server *s)
{
    if (atomic_fetch_add(&s->stops, 1) > 0)
        rr_worker_cancel(s->base);
    wake(s);
}

void rr_node_server_reload(struct rr_node_server *s)
{
    atomic_store(&s->reload, true);
    wake(s);
}

/* Everything that has come, for all sessions. True: there was something. While a guest runs, an
 * origin may come: then the list of sessions is another. */
static bool work(struct rr_node_server *s)
{
    struct rr_worker **sessions;
    bool busy = false;
    size_t n;

    for (size_t k = 0; sessions = rr_nodes_sessions(s->nodes, &n), k < n; k++)
        busy = rr_session_work(sessions[k]->remote) || busy;
    return busy;
}

static bool any_over(struct rr_node_server *s)
{
    size_t n;
    struct rr_worker **sessions = rr_nodes_sessions(s->nodes, &n);

    for (size_t k = 0; k < n; k++)
        if (sessions[k]->remote->ended)
            return true;
    return false;
}

static bool anything_left(struct rr_node_server *s)
{
    size_t n;
    struct rr_worker **sessions = rr_nodes_sessions(s->nodes, &n);

    for (size_t k = 0; k < n; k++)
        if (sessions[k]->remote->active && sessions[k]->remote->origin)
            return true;
    return false;
}

static bool came(struct rr_node_server *s)
{
    size_t n;
    struct rr_worker **sessions = rr_nodes_sessions(s->nodes, &n);

    for (size_t k = 0; k < n; k++)
        if (rr_remote_came(sessions[k]->remote))
            return true;
    return rr_nodes_poll(s->nodes);
}

/* As rr_remote_spin(). */
static bool spin(struct rr_node_server *s)
{
    uint64_t begin = rr_now_ns(), now = begin;

    if (!s->spin_ns)
        return false;
    do {
        if (now - s->looked_ns > LOOK_NS)
            return true; /* at all sockets, and come back */
        for (int k = 0; k < RR_POLLS; k++)
            if (came(s)) {
                s->spin_ns = rr_min(s->spin_max_ns, 2 * s->spin_ns + 1000);
                return true;
            }
        now = rr_now_ns();
    } while (now - begin < s->spin_ns);
    if (s->spin_max_ns <= RR_SPIN_ADAPTIVE_NS) /* beyond, polling was asked for */
        s->spin_ns = s->spin_ns > 2000 ? s->spin_ns / 2 : 1000;
    return false;
}

/* The network wakes it, and what that watches: signals, and the links of sessions that are near. */
static void doze(struct rr_node_server *s)
{
    struct rr_net *net = rr_nodes_net(s->nodes);
    uint64_t now = rr_now_ns(), until = now + EXPIRE_NS, count;
    size_t n;
    struct rr_worker **sessions = rr_nodes_sessions(s->nodes, &n);
    bool quiet = true;

    for (size_t k = 0; k < n; k++)
        if (sessions[k]->remote->near)
            quiet = rr_remote_announce(sessions[k]->remote, NULL, NULL) && quiet;
    if (rr_net_n_waiting(net) || anything_left(s)) /* for a peer that is dialed, or room */
        until = now + 2000000;
    rr_net_sleep(net, quiet ? until : 0);
    sessions = rr_nodes_sessions(s->nodes, &n);
    for (size_t k = 0; k < n; k++)
        if (sessions[k]->remote->near) {
            rr_remote_awake(sessions[k]->remote);
            sessions[k]->remote->look = true; /* at its sockets */
        }
    if (atomic_exchange(&s->woken, false))
        while (read(s->wake_fd, &count, sizeof(count)) > 0)
            ;
    if (!rr_nodes_poll(s->nodes)) /* most often it is the same connection again */
        s->looked_ns = 0;
}

static void reload(struct rr_node_server *s)
{
    struct rr_error err;

    if (!atomic_exchange(&s->reload, false))
        return;
    if (rr_net_reload_tls(rr_nodes_net(s->nodes), &err))
        rr_log(0, "the certificate stays as it was: %s", err.text);
    else
        rr_log(2, "the certificate was read again");
}

/* Once it is to stop: is it done, or has it taken too long? */
static bool over(struct rr_node_server *s)
{
    int stops = atomic_load(&s->stops);

    if (!stops)
        return false;
    if (!s->stop_ns)
        s->stop_ns = rr_now_ns();
    return stops > 1 || !anything_left(s) || rr_now_ns() - s->stop_ns > DRAIN_NS;
}

int rr_node_server_run(struct rr_node_server *s, struct rr_error *err)
{
    rr_status_open(s->base->status);
    while (!over(s)) {
        int come = 0;
        bool busy;

        reload(s);
        busy = work(s); /* first, so that acks ride on what it sends */
        if (rr_now_ns() - s->looked_ns > LOOK_NS) {
            come = rr_nodes_pump(s->nodes, err);
            s->looked_ns = rr_now_ns();
        }
        if (come < 0)
            return (int)err->code;
        if (rr_now_ns() - s->expired_ns > EXPIRE_NS) {
            s->expired_ns = rr_now_ns();
            rr_net_listen_again(rr_nodes_net(s->nodes));
            rr_nodes_expire(s->nodes);
        } else if (any_over(s)) {
            rr_nodes_expire(s->nodes);
        }
        if (!busy && !come && !spin(s))
            doze(s);
    }
    return 0;
}
