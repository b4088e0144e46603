/* SPDX-License-Identifier: Apache-2.0 */
/* Start, signals, reload, end; and the watch over pollers that a long run holds up. */
#include "gateway/gateway.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "base/wait.h"
#include "gateway/async.h"
#include "gateway/internal.h"

/* Pollers that are held up go to other threads. Their neighbours see it when they have something to
 * do; where none has, the watch does. It seldom looks: to wake up may take 0.1 ms. */
#define WATCH_MS 20
#define WATCH_ALONE_MS 2 /* there is one poller */
#define LOOPS 2          /* per poller */
#define POLL_MIN_NS 20000u
#define POLL_MAX_NS 100000u
#define PARK_NS 100000000u    /* without events, the watch sleeps */
#define CANCEL_NS 2000000000u /* for what is interrupted after the drain */
#define SECOND 1000000000ull

static void preset64(uint64_t *value, uint64_t usual)
{
    *value = *value ? *value : usual;
}

static void preset(unsigned int *value, unsigned int usual)
{
    *value = *value ? *value : usual;
}

void rr_gateway_defaults(struct rr_gateway_options *o)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t memory = rr_machine_memory();

    preset(&o->threads, cores > 0 ? (unsigned int)rr_min((uint64_t)cores, 64) : 1);
    preset(&o->concurrency, o->threads > 2 ? 4 * o->threads : 8);
    preset(&o->queue, 1024);
    preset(&o->max_connections, 4096);
    preset(&o->max_header_bytes, 16u << 10);
    preset64(&o->max_body_bytes, 64 * RR_MIB);
    preset64(&o->max_memory_bytes, memory / 4);
    preset64(&o->workflow_memory_bytes, memory / 2);
    preset64(&o->deadline_ns, 60 * SECOND);
    preset64(&o->drain_ns, 30 * SECOND);
    preset64(&o->idle_ns, 60 * SECOND);
    preset64(&o->header_ns, 10 * SECOND);
    preset64(&o->min_rate_bytes, 1024);
}

/* --- start ----------------------------------------------------------------------------------- */

static int open_log(struct gateway *gw, struct rr_error *err)
{
    const char *path = gw->o.access_log;

    gw->log_fd = -1;
    if (!path)
        return 0;
    gw->log_fd = strcmp(path, "-") == 0
                     ? fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3)
                     : open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    if (gw->log_fd >= 0)
        return 0;
    return rr_error_set(err, RR_E_OUTPUT, "give a file that you may write to",
                        "cannot write the access log %s: %s", path, strerror(errno));
}

/* Connections are descriptors: as many as we may have. */
static void raise_files(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* A client that asks again at once does so after it has woken up and worked a little: polling for
 * so long costs about what two wake-ups do, its own and ours. */
static uint64_t poll_ns(void)
{
    uint64_t ns = rr_wait_round_trip_ns() * 3 / 2;

    return ns < POLL_MIN_NS ? POLL_MIN_NS : rr_min(ns, POLL_MAX_NS);
}

/* Of zeros. */
static void *many(size_t n, size_t bytes)
{
    void *all = aligned_alloc(64, n * bytes);

    return all ? memset(all, 0, n * bytes) : NULL;
}

static int init_loops(struct gateway *gw, struct rr_error *err)
{
    struct epoll_event stop = {.events = EPOLLIN};
    int r = 0;

    gw->pollers = many(gw->n_pollers, sizeof(*gw->pollers));
    gw->loops = many(gw->n_loops, sizeof(*gw->loops));
    if (!gw->threads || !gw->loops || !gw->pollers)
        return rr_error_no_memory(err);
    gw->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    gw->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (gw->poll_fd < 0 || gw->stop_fd < 0 ||
        epoll_ctl(gw->poll_fd, EPOLL_CTL_ADD, gw->stop_fd, &stop) < 0)
        return rr_error_set(err, RR_E_SYSTEM, "raise the limit on descriptors", "no epoll: %s",
                            strerror(errno));
    for (unsigned int n = 0; n < gw->n_loops && r == 0; n++)
        r = rr_loop_init(gw, &gw->loops[n], err);
    for (unsigned int n = 0; n < gw->n_pollers; n++) {
        gw->pollers[n].id = n;
        gw->pollers[n].gw = gw;
    }
    return r;
}

static int init(struct gateway *gw, struct rr_error *err)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int r = open_log(gw, err);

    gw->n_pollers = gw->o.threads;
    /* So that two that ask at once are seldom in the same one. */
    gw->n_loops = gw->n_pollers > 1 ? LOOPS * gw->n_pollers : 1;
    if (gw->o.spin_ns) {
        gw->poll_always = gw->o.spin_ns != UINT64_MAX;
        gw->max_polling = gw->poll_always ? gw->n_pollers : 0;
        gw->poll_ns = gw->o.spin_ns;
    } else {
        gw->max_polling = cores > 1 ? (unsigned int)cores / 2 : 0;
        gw->poll_ns = poll_ns();
    }
    if (r == 0 && rr_budget_init(&gw->bodies, gw->o.max_memory_bytes, 1))
        r = rr_error_no_memory(err);
    /* Each poller can lose its thread to a long run, and then needs another. */
    gw->n_threads = 2 * gw->n_pollers + gw->o.concurrency;
    gw->threads = calloc(gw->n_threads, sizeof(*gw->threads));
    if (r == 0)
        r = init_loops(gw, err);
    if (r)
        return r;
    if (gw->o.duplicates_ns && !(gw->events = rr_events_new(gw->o.duplicates_ns)))
        return rr_error_no_memory(err);
    if (gw->o.tls_cert)
        r = rr_tls_new(&gw->o, &gw->tls, err);
    if (r == 0 && rr_otlp_wanted(gw->o.otlp))
        r = rr_otlp_new(&gw->o, &gw->otlp, err);
    if (r)
        return r;
    raise_files();
    gw->watch_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    gw->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    r = rr_listen_all(gw, err);
    if (r == 0)
        r = rr_generation_new(gw, &gw->generation, err);
    return r ? r : rr_async_new(gw, err);
}

static int start_threads(struct gateway *gw, struct rr_error *err)
{
    for (unsigned int n = 0; n < gw->n_pollers; n++)
        rr_pool_adopt(&gw->pool, &gw->pollers[n]);
    for (unsigned int n = 0; n < gw->n_threads; n++) {
        struct thread *t = &gw->threads[n];

        *t = (struct thread){.gw = gw, .id = n};
        if (pthread_create(&t->thread, NULL, rr_pool_main, t) != 0)
            return rr_error_set(err, RR_E_SYSTEM, "lower --concurrency", "cannot start a thread");
        t->runs = true;
    }
    return 0;
}

/* Type=notify of systemd: sd_notify(3). */
static void notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd;

    if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof(a.sun_path))
        return;
    memcpy(a.sun_path, path, strlen(path));
    if (path[0] == '@')
        a.sun_path[0] = '\0';
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&a,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path))) < 0)
        rr_log(1, "cannot tell systemd: %s", strerror(errno));
    close(fd);
}

/* --- signals --------------------------------------------------------------------------------- */

/* The old file may have been moved away. */
static void reopen_log(struct gateway *gw)
{
    int fd;

    if (gw->log_fd < 0 || strcmp(gw->o.access_log, "-") == 0)
        return;
    fd = open(gw->o.access_log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    if (fd < 0 || dup3(fd, gw->log_fd, O_CLOEXEC) < 0)
        rr_log(0, "cannot open the access log anew: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
}

static void reload(struct gateway *gw)
{
    struct generation *g = NULL, *old;
    struct ssl_ctx_st *tls = NULL, *old_tls;
    struct rr_error err = {0};

    notify("RELOADING=1");
    reopen_log(gw);
    if ((gw->tls && rr_tls_new(&gw->o, &tls, &err)) || rr_generation_new(gw, &g, &err) ||
        rr_async_fits(gw, g, &err)) {
        rr_generation_unref(g);
        rr_tls_free(tls);
        count(&gw->n_bad_reloads, 1);
        rr_log(0, "reload refused, what was loaded stays: %s%s%s", err.file,
               err.file[0] ? ": " : "", err.text);
        notify("READY=1");
        return;
    }
    pthread_mutex_lock(&gw->lock);
    old = gw->generation;
    g->number = old->number + 1;
    gw->generation = g;
    old_tls = gw->tls;
    gw->tls = tls;
    pthread_mutex_unlock(&gw->lock);
    rr_generation_unref(old);
    rr_tls_free(old_tls); /* connections hold on to what they began with */
    count(&gw->n_reloads, 1);
    if (!gw->o.quiet)
        fprintf(stderr, "roadrunner: reloaded\n");
    notify("READY=1");
}

static uint64_t turns(const struct gateway *gw)
{
    uint64_t sum = 0;

    for (unsigned int n = 0; n < gw->n_pollers; n++)
        sum += atomic_load(&gw->pollers[n].n_turns) +
               (atomic_load(&gw->pollers[n].running_since_ns) > POLLER_STOLEN);
    return sum;
}

/* Watches until a signal, which it returns. @until_ns 0: for ever; else 0 when no connection is
 * left, or -1 at that time. */
static int watch(struct gateway *gw, int signal_fd, uint64_t until_ns)
{
    struct pollfd fds[2] = {{.fd = signal_fd, .events = POLLIN},
                            {.fd = gw->watch_fd, .events = POLLIN}};
    uint64_t seen = turns(gw), seen_ns = rr_now_ns(), n, now;
    int pause_ms = gw->n_pollers > 1 ? WATCH_MS : WATCH_ALONE_MS;
    struct signalfd_siginfo info;

    for (;;) {
        bool parked = atomic_load(&gw->parked);

        if (poll(fds, 2, parked && !until_ns ? -1 : pause_ms) < 0 && errno != EINTR)
            return -1;
        if (read(gw->watch_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
            return -1;
        if (read(signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
            return (int)info.ssi_signo;
        now = rr_now_ns();
        for (unsigned int k = 0; k < gw->n_pollers; k++)
            rr_poller_rescue(&gw->pollers[k], now);
        if (until_ns && atomic_load(&gw->n_connections) == 0 && rr_async_idle(gw))
            return 0;
        if (until_ns && now > until_ns)
            return -1;
        if (turns(gw) != seen) {
            seen = turns(gw);
            seen_ns = now;
        } else if (!parked && now - seen_ns > PARK_NS) {
            atomic_store(&gw->parked,
                         true); /* looked at again before it sleeps, in the next turn */
            if (turns(gw) != seen)
                atomic_store(&gw->parked, false);
        }
    }
}

static void kick_all(struct gateway *gw)
{
    for (unsigned int n = 0; n < gw->n_loops; n++)
        rr_loop_kick(&gw->loops[n]);
}

/* Nothing new; what runs may finish. */
static void drain(struct gateway *gw, int signal_fd)
{
    uint64_t until = rr_now_ns() + gw->o.drain_ns;
    int r;

    notify("STOPPING=1");
    if (!gw->o.quiet)
        fprintf(stderr, "roadrunner: stopping, for at most %s\n", rr_duration_text(gw->o.drain_ns));
    atomic_store(&gw->draining, true);
    atomic_store(&gw->next_scan_ns, 0);
    kick_all(gw);
    do
        r = watch(gw, signal_fd, until);
    while (r == SIGHUP || r == SIGTERM); /* but a second Ctrl-C means now */
    if (r == 0)
        return;
    rr_log(0, "requests are interrupted");
    atomic_store(&gw->halted, true);
    rr_generations_cancel(gw);
    watch(gw, signal_fd, rr_now_ns() + CANCEL_NS);
}

static void stop(struct gateway *gw)
{
    atomic_store(&gw->stop, true);
    if (gw->stop_fd > 0 && eventfd_write(gw->stop_fd, 1) < 0)
        rr_log(0, "cannot stop the pollers: %s", strerror(errno));
    rr_pool_stop(&gw->pool);
    for (unsigned int n = 0; n < gw->n_threads; n++)
        if (gw->threads && gw->threads[n].runs)
            pthread_join(gw->threads[n].thread, NULL);
    rr_async_stop(gw);
    for (unsigned int n = 0; gw->loops && n < gw->n_loops; n++)
        rr_loop_deinit(&gw->loops[n]);
    rr_async_free(gw);
    rr_generation_unref(gw->generation);
    rr_message_thread_end();
    for (size_t n = 0; n < gw->o.n_listen; n++)
        if (strncmp(gw->o.listen[n], "unix:", 5) == 0 && gw->bound)
            unlink(gw->o.listen[n] + 5);
    if (gw->log_fd >= 0)
        close(gw->log_fd);
    if (gw->watch_fd > 0)
        close(gw->watch_fd);
    if (gw->spare_fd > 0)
        close(gw->spare_fd);
    rr_events_free(gw->events);
    rr_otlp_free(gw->otlp);
    rr_tls_free(gw->tls);
    if (gw->poll_fd > 0)
        close(gw->poll_fd);
    if (gw->stop_fd > 0)
        close(gw->stop_fd);
    free(gw->threads);
    free(gw->loops);
    free(gw->pollers);
    rr_budget_deinit(&gw->bodies);
    rr_pool_deinit(&gw->pool);
    pthread_mutex_destroy(&gw->lock);
}

static int serve(struct gateway *gw, int signal_fd, struct rr_error *err)
{
    int r = start_threads(gw, err);

    if (r == 0 && gw->otlp)
        r = rr_otlp_start(gw->otlp, err);
    if (r)
        return r;
    notify("READY=1");
    if (!gw->o.quiet)
        fprintf(stderr, "roadrunner: ready\n");
    while (watch(gw, signal_fd, 0) == SIGHUP)
        reload(gw);
    drain(gw, signal_fd);
    return 0;
}

static bool is_halted(void *user)
{
    return atomic_load(&((struct gateway *)user)->halted);
}

int rr_gateway_run(const struct rr_gateway_options *options, struct rr_error *err)
{
    struct gateway gw = {.o = *options, .started_ns = rr_now_ns(), .log_fd = -1};
    sigset_t set, before;
    int signal_fd, r;

    rr_gateway_defaults(&gw.o);
    gw.letters = (struct rr_letters){gw.o.callback_ca, is_halted, &gw};
    pthread_mutex_init(&gw.lock, NULL);
    rr_pool_init(&gw.pool, gw.o.concurrency);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, &before); /* before there are threads that would take them */
    r = init(&gw, err);
    gw.bound = r == 0;
    signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (r == 0 && signal_fd < 0)
        r = rr_error_set(err, RR_E_SYSTEM, "raise the limit on descriptors", "no signalfd: %s",
                         strerror(errno));
    if (r == 0)
        r = serve(&gw, signal_fd, err);
    stop(&gw);
    if (signal_fd >= 0)
        close(signal_fd);
    sigprocmask(SIG_SETMASK, &before, NULL);
    return r;
}
