/* SPDX-License-Identifier: Apache-2.0 */
#include "shim/loop.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"

#define BATCH 32

struct rr_watch {
    struct rr_loop *loop;
    struct rr_watch *next_dead;
    int fd;
    void (*fn)(void *data, uint32_t events);
    void *data;
};

struct child {
    struct child *next;
    pid_t pid;
    void (*fn)(void *data, int status);
    void *data;
};

struct timer {
    struct timer *next;
    uint64_t at_ns;
    void (*fn)(void *data);
    void *data;
};

struct rr_loop {
    int epoll, signals;
    bool stop;
    struct rr_watch *on_signal, *dead;
    struct child *children;
    struct timer *timers; /* soonest first */
    void (*orphan)(void *data, pid_t pid, int status);
    void *orphan_data;
};

static struct child *take_child(struct rr_loop *l, pid_t pid)
{
    for (struct child **p = &l->children; *p; p = &(*p)->next)
        if ((*p)->pid == pid) {
            struct child *c = *p;

            *p = c->next;
            return c;
        }
    return NULL;
}

static void on_signal(void *data, uint32_t events)
{
    struct rr_loop *l = data;
    struct signalfd_siginfo info;
    int status;
    pid_t pid;

    (void)events;
    while (read(l->signals, &info, sizeof(info)) == sizeof(info))
        if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
            l->stop = true;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        struct child *c = take_child(l, pid);

        if (c)
            c->fn(c->data, status);
        else if (l->orphan)
            l->orphan(l->orphan_data, pid, status);
        free(c);
    }
}

int rr_loop_new(struct rr_loop **ret)
{
    struct rr_loop *l = calloc(1, sizeof(*l));
    sigset_t set;

    if (!l)
        return -ENOMEM;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    l->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (l->epoll >= 0 && l->signals >= 0)
        l->on_signal = rr_watch_new(l, l->signals, EPOLLIN, on_signal, l);
    if (!l->on_signal) {
        rr_loop_free(l);
        return -ENOMEM;
    }
    *ret = l;
    return 0;
}

static void free_dead(struct rr_loop *l)
{
    while (l->dead) {
        struct rr_watch *w = l->dead;

        l->dead = w->next_dead;
        free(w);
    }
}

void rr_loop_free(struct rr_loop *l)
{
    rr_watch_free(l->on_signal);
    free_dead(l);
    while (l->children) {
        struct child *c = l->children;

        l->children = c->next;
        free(c);
    }
    while (l->timers) {
        struct timer *t = l->timers;

        l->timers = t->next;
        free(t);
    }
    rr_close_cleanup(&l->signals);
    rr_close_cleanup(&l->epoll);
    free(l);
}

static void run_timers(struct rr_loop *l)
{
    while (l->timers && l->timers->at_ns <= rr_now_ns()) {
        struct timer *t = l->timers;

        l->timers = t->next;
        t->fn(t->data);
        free(t);
    }
}

static int wait_ms(const struct rr_loop *l)
{
    uint64_t now = rr_now_ns();

    if (!l->timers)
        return -1;
    return l->timers->at_ns <= now ? 0 : (int)rr_min((l->timers->at_ns - now) / 1000000 + 1, 60000);
}

int rr_loop_run(struct rr_loop *l)
{
    struct epoll_event events[BATCH];

    while (!l->stop) {
        int n = epoll_wait(l->epoll, events, BATCH, wait_ms(l));

        if (n < 0 && errno != EINTR)
            return -errno;
        for (int i = 0; i < n; i++) {
            struct rr_watch *w = events[i].data.ptr;

            if (w->fn)
                w->fn(w->data, events[i].events);
        }
        run_timers(l);
        free_dead(l);
    }
    return 0;
}

void rr_loop_stop(struct rr_loop *l)
{
    l->stop = true;
}

struct rr_watch *rr_watch_new(struct rr_loop *l, int fd, uint32_t events,
                              void (*fn)(void *data, uint32_t events), void *data)
{
    struct rr_watch *w = calloc(1, sizeof(*w));
    struct epoll_event e = {.events = events, .data.ptr = w};

    if (!w)
        return NULL;
    *w = (struct rr_watch){.loop = l, .fd = fd, .fn = fn, .data = data};
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &e) < 0) {
        free(w);
        return NULL;
    }
    return w;
}

void rr_watch_events(struct rr_watch *w, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = w};

    epoll_ctl(w->loop->epoll, EPOLL_CTL_MOD, w->fd, &e);
}

void rr_watch_free(struct rr_watch *w)
{
    if (!w)
        return;
    epoll_ctl(w->loop->epoll, EPOLL_CTL_DEL, w->fd, NULL);
    w->fn = NULL; /* an event of it may lie in the batch that is being worked on */
    w->next_dead = w->loop->dead;
    w->loop->dead = w;
}

int rr_loop_after(struct rr_loop *l, uint64_t ms, void (*fn)(void *data), void *data)
{
    struct timer *t = calloc(1, sizeof(*t)), **p = &l->timers;

    if (!t)
        return -ENOMEM;
    *t = (struct timer){.at_ns = rr_now_ns() + ms * 1000000, .fn = fn, .data = data};
    while (*p && (*p)->at_ns <= t->at_ns)
        p = &(*p)->next;
    t->next = *p;
    *p = t;
    return 0;
}

int rr_loop_child(struct rr_loop *l, pid_t pid, void (*fn)(void *data, int status), void *data)
{
    struct child *c = calloc(1, sizeof(*c));

    if (!c)
        return -ENOMEM;
    *c = (struct child){.next = l->children, .pid = pid, .fn = fn, .data = data};
    l->children = c;
    return 0;
}

void rr_loop_orphans(struct rr_loop *l, void (*fn)(void *data, pid_t pid, int status), void *data)
{
    l->orphan = fn;
    l->orphan_data = data;
}
