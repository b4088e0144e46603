/* SPDX-License-Identifier: Apache-2.0 */
/* A worker process: hosts one function, and hears the parent. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/sandbox.h"
#include "base/util.h"
#include "worker/remote.h"

#define MAX_FILES 65536 /* rings, and memfds: its own and those that it was lent */
#define OOM_SCORE 100   /* more than the parent's: it can be started again */
#define TRY_NS 100000u  /* between attempts to tell a parent that does not listen */

/* --- what it tells --------------------------------------------------------------------------- */

static void say(struct remote *rm, const struct control *c)
{
    if (rr_control_send(rm->control_fd, c) < 0)
        rm->ended = true;
}

static void say_events(struct remote *rm)
{
    struct control *c = &rm->events->c;

    if (!c->n)
        return;
    c->word = WORD_EVENTS;
    c->run = rm->run;
    say(rm, c);
    c->n = 0;
}

/* A parent that does not listen just now, since it runs a function itself, is no reason to wait. */
static bool room_for_event(struct remote *rm, uint64_t now)
{
    struct control *c = &rm->events->c;

    if (c->n < RR_EVENTS)
        return true;
    c->word = WORD_EVENTS;
    c->run = rm->run;
    if (now - rm->events->tried_ns < TRY_NS)
        return false;
    rm->events->tried_ns = now;
    if (rr_control_try_send(rm->control_fd, c) < 0)
        return false;
    c->n = 0;
    return true;
}

/* Without room it counts with the last one of its kind. */
static void on_hop(void *user, const struct rr_hop *hop)
{
    struct remote *rm = user;
    struct control *c = &rm->events->c;

    if (room_for_event(rm, hop->received_ns)) {
        c->events[c->n++] = (struct event){.is_span = 0, .hop = *hop};
        return;
    }
    for (uint32_t n = RR_EVENTS; n-- > 0;)
        if (!c->events[n].is_span && c->events[n].hop.edge == hop->edge) {
            c->events[n].hop.n++;
            c->events[n].hop.copied_bytes += hop->copied_bytes;
            return;
        }
    say_events(rm);
    on_hop(user, hop);
}

static void on_span(void *user, const struct rr_span *span)
{
    struct remote *rm = user;
    struct control *c = &rm->events->c;

    if (room_for_event(rm, span->end_ns)) {
        c->events[c->n++] = (struct event){.is_span = 1, .span = *span};
        return;
    }
    for (uint32_t n = RR_EVENTS; n-- > 0;)
        if (c->events[n].is_span) {
            c->events[n].span.n++;
            return;
        }
    say_events(rm);
    on_span(user, span);
}

static void on_log(void *user, int function, int level, const char *text, size_t len)
{
    struct control c = {.word = WORD_LOG, .n = (uint32_t)level};

    (void)function;
    memcpy(c.text, text, rr_min(len, sizeof(c.text) - 1));
    say(user, &c);
}

static void say_failure(struct remote *rm, const struct rr_error *error)
{
    struct control c = {.word = WORD_FAILED, .run = rm->run, .error = *error};

    say_events(rm);
    say(rm, &c);
}

static void answer(struct remote *rm, uint64_t question)
{
    struct control c = {.word = WORD_ANSWER, .run = rm->run, .a = question, .b = rm->activity};

    c.answer.idle = rm->w->ready_first < 0 && rr_remote_n_unacked(rm) == 0;
    if (!rr_queue_pending(rm->w, c.answer.pending, sizeof(c.answer.pending)))
        c.answer.pending[0] = 0;
    say_events(rm);
    say(rm, &c);
}

/* --- what it hears --------------------------------------------------------------------------- */

void rr_child_hear(struct remote *rm)
{
    struct control c;
    int r;

    while ((r = rr_control_receive(rm->control_fd, &c)) == 0) {
        if (c.word == WORD_QUIT)
            rm->ended = true;
        else if (c.word == WORD_RUN)
            rr_remote_new_run(rm, c.run);
        else if (c.word == WORD_ASK)
            rm->question = c.a;
    }
    if (r != -EAGAIN)
        rm->ended = true;
}

/* --- life ------------------------------------------------------------------------------------ */

/* When memory runs out, the kernel is to end a worker, not its parent. Best effort. */
static void go_first(void)
{
    int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    char text[16] = "";

    if (fd < 0)
        return;
    if (read(fd, text, sizeof(text) - 1) > 0) {
        long score = strtol(text, NULL, 10) + OOM_SCORE;
        int n = snprintf(text, sizeof(text), "%ld", score > 1000 ? 1000 : score);

        if (pwrite(fd, text, (size_t)n, 0) < 0)
            rr_log(2, "cannot become the first to go when memory runs out: %s", strerror(errno));
    }
    close(fd);
}

static int settle_down(struct remote *rm, struct rr_error *err)
{
    const struct rr_function *f = &rm->w->wf->functions[rm->self];
    struct rr_sandbox_path *paths = calloc(f->n_folders + 1, sizeof(*paths));
    struct rr_sandbox_options o = {.paths = paths,
                                   .n_paths = f->n_folders,
                                   .uid = rm->child_uid,
                                   .gid = rm->child_gid,
                                   .max_files = MAX_FILES};
    struct rr_sandbox_report report;
    int r;

    if (!paths)
        return rr_error_no_memory(err);
    for (size_t n = 0; n < f->n_folders; n++)
        paths[n] = (struct rr_sandbox_path){f->folders[n].host, f->folders[n].writable};
    go_first();
    r = rr_sandbox_enter(&o, &report, err);
    free(paths);
    if (r)
        return r;
    if (!report.landlock || !report.seccomp)
        rr_log(2, "function '%s': this kernel has no %s: its process is less confined", f->name,
               report.seccomp ? "landlock" : "seccomp");
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0) /* a change of user clears it, so only now */
        return rr_error_set(err, RR_E_SYSTEM, "report this", "cannot tie its life to the parent's");
    if (getppid() == 1) /* it has gone already */
        rm->ended = true;
    rr_arena_after_fork(rm->w->arena);
    return rr_engine_after_fork(rm->w->engine, err);
}

static int move_in(struct remote *rm, int function, int control_fd, struct rr_error *err)
{
    int r;

    prctl(PR_SET_NAME, rm->w->wf->functions[function].name); /* the first 15 bytes of it */
    rm->self = function;
    rm->control_fd = control_fd;
    rm->pulse = rm->children[function].pulse;
    rm->domain.own = &rm->domain.shares[function];
    if (rm->w->budget)
        rm->w->budget->own = &rm->w->budget->shares[1 + function];
    rm->events = calloc(1, sizeof(*rm->events));
    close(rm->epoll_fd);
    rm->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    rm->n_listeners = rm->n_ins = 0; /* of the parent, if it had some when the zygote was made */
    if (!rm->events || rm->epoll_fd < 0)
        return rr_error_no_memory(err);
    rm->w->observer =
        (struct rr_observer){.user = rm, .hop = on_hop, .span = on_span, .log = on_log};
    rr_remote_watch(rm, control_fd);
    r = rr_remote_listen(rm, &rm->domain, function);
    if (r < 0)
        return rr_error_set(err, RR_E_SYSTEM, "check the folder of sockets",
                            "cannot listen for messages: %s", strerror(-r));
    return settle_down(rm, err);
}

/* Everything that has come is handled; what goes wrong is the parent's to hear. */
static void work(struct remote *rm)
{
    uint64_t run = rm->run;
    struct rr_error err;
    int r;

    rr_error_clear(&err);
    r = rr_remote_pump(rm, true, &err) < 0 ? (int)err.code : 0;

    while (r == 0 && rm->w->ready_first >= 0 && !rm->ended) {
        rm->w->named = false;
        run = rm->run;
        r = rr_run_ready(rm->w, &err);
        if (r == 0 && rr_remote_pump(rm, true, &err) < 0)
            r = (int)err.code;
    }
    if (r && rm->run == run && !rm->ended) {
        say_failure(rm, &err);
        rr_remote_new_run(rm, run + 1);
    }
    if (rm->question) {
        answer(rm, rm->question);
        rm->question = 0;
    }
}

/* Only when it is about to sleep: a message that follows at once is not to wait for this. */
static void tell_idle(struct remote *rm)
{
    struct control c = {.word = WORD_IDLE, .run = rm->run, .b = rm->activity};

    if (rm->activity == rm->told_activity)
        return;
    rm->told_activity = rm->activity;
    say_events(rm);
    say(rm, &c);
}

_Noreturn void rr_child_main(struct rr_worker *w, int function, int control_fd)
{
    struct remote *rm = w->remote;
    struct control ready = {.word = WORD_READY};
    struct rr_error err = {0};

    if (move_in(rm, function, control_fd, &err)) {
        say_failure(rm, &err);
        _exit(1);
    }
    say(rm, &ready);
    while (!rm->ended) {
        work(rm);
        if (rm->w->ready_first >= 0 || rm->ended || rr_remote_spin(rm))
            continue;
        tell_idle(rm);
        rr_remote_doze(rm, UINT64_MAX);
    }
    _exit(0);
}
