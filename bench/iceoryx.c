/* SPDX-License-Identifier: Apache-2.0 */
/* Round trips between two processes over iceoryx, both polling: the peer of small messages.
 *
 * Starts iceoryx's daemon RouDi with its built-in configuration, whose largest chunk is 4 MiB,
 * and stops it by its pid. One daemon serves a machine: where another one runs, this one ends
 * at once, and the program with it.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <iceoryx_binding_c/api.h>

#include "base/util.h"
#include "measure.h"

struct end {
    iox_pub_storage_t pub_storage;
    iox_sub_storage_t sub_storage;
    iox_pub_t pub; /* owned; close_end() frees it */
    iox_sub_t sub; /* owned; close_end() frees it */
};

/* Becomes RouDi, which tells its state on stdout. */
static void roudi(const struct measure *m, void *data)
{
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    (void)m;
    (void)data;
    if (null_fd < 0 || dup2(null_fd, STDOUT_FILENO) < 0)
        measure_die("/dev/null: %s", strerror(errno));
    execlp("iox-roudi", "iox-roudi", "--log-level", "error", (char *)NULL);
    measure_die("iox-roudi: %s: install the package iceoryx", strerror(errno));
}

/* It sends SIGTERM to programs that it still knows, so that both ends are gone before. */
static void stop_roudi(pid_t pid)
{
    int status;

    if (kill(pid, SIGTERM) < 0)
        measure_die("kill: %s", strerror(errno));
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            measure_die("waitpid: %s", strerror(errno));
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* Waits for the daemon, and for the other end to be there. */
static void open_end(struct end *e, const char *name, const char *out, const char *in)
{
    iox_pub_options_t pub;
    iox_sub_options_t sub;

    iox_set_loglevel(Iceoryx_LogLevel_Error);
    iox_runtime_init(name);
    iox_pub_options_init(&pub);
    iox_sub_options_init(&sub);
    e->pub = iox_pub_init(&e->pub_storage, "roadrunner", "bench", out, &pub);
    e->sub = iox_sub_init(&e->sub_storage, "roadrunner", "bench", in, &sub);
    if (!e->pub || !e->sub)
        measure_die("iceoryx: no publisher or subscriber");
    while (!iox_pub_has_subscribers(e->pub) ||
           iox_sub_get_subscription_state(e->sub) != SubscribeState_SUBSCRIBED)
        nap();
}

/* What the library holds besides, it gives back to the daemon at exit. */
static void close_end(struct end *e)
{
    iox_sub_deinit(e->sub);
    iox_pub_deinit(e->pub);
    iox_runtime_shutdown();
}

static void publish(struct end *e, size_t size, uint8_t round)
{
    void *payload = NULL;
    enum iox_AllocationResult r = iox_pub_loan_chunk(e->pub, &payload, (uint32_t)size);

    if (r != AllocationResult_SUCCESS)
        measure_die("iceoryx: no chunk of %zu bytes (iox_AllocationResult %d)", size, (int)r);
    memset(payload, round, size);
    iox_pub_publish_chunk(e->pub, payload);
}

/* Returns the chunk, which is to be released. */
static const void *take(struct end *e, size_t size, uint8_t round)
{
    const void *payload = NULL;
    const uint8_t *bytes;
    enum iox_ChunkReceiveResult r;

    do {
        r = iox_sub_take_chunk(e->sub, &payload);
    } while (r == ChunkReceiveResult_NO_CHUNK_AVAILABLE);
    if (r != ChunkReceiveResult_SUCCESS)
        measure_die("iceoryx: cannot take a chunk (iox_ChunkReceiveResult %d)", (int)r);
    bytes = payload;
    if (bytes[0] != round || bytes[size - 1] != round)
        measure_die("the payload arrived wrong");
    return payload;
}

static void pong(const struct measure *m, void *data)
{
    struct end e = {0};

    (void)data;
    open_end(&e, "roadrunner-bench-pong", "pong", "ping");
    for (size_t n = 0; n < m->repeat + 1; n++) {
        const void *payload = take(&e, m->size_bytes, (uint8_t)n);

        /* In favour of iceoryx: it releases after its answer, while the other end is busy. */
        publish(&e, m->size_bytes, (uint8_t)~n);
        iox_sub_release_chunk(e.sub, payload);
    }
    while (iox_pub_has_subscribers(e.pub)) /* the other end has yet to take the last one */
        nap();
    close_end(&e);
}

static uint64_t one_round(struct end *e, size_t size, size_t n)
{
    uint64_t begin = rr_now_ns();

    publish(e, size, (uint8_t)n);
    iox_sub_release_chunk(e->sub, take(e, size, (uint8_t)~n));
    return rr_now_ns() - begin;
}

static void ping(const struct measure *m, void *data)
{
    struct end e = {0};

    (void)data;
    open_end(&e, "roadrunner-bench-ping", "ping", "pong");
    one_round(&e, m->size_bytes, 0);
    for (size_t n = 0; n < m->repeat; n++)
        m->samples_ns[n] = one_round(&e, m->size_bytes, n + 1);
    close_end(&e);
}

int main(int argc, char **argv)
{
    static const char usage[] = "bench-iceoryx [--size BYTES] [--repeat N]";
    pid_t roudi_pid, ends[2];
    struct measure m;

    measure_parse(&m, argc, argv, usage);
    if (m.mode || m.size_bytes == 0 || m.size_bytes > UINT32_MAX)
        measure_die("usage: %s", usage);
    m.mode = "iceoryx";
    /* On SIGTERM the daemon removes its files, which SIGKILL would leave behind. */
    roudi_pid = measure_fork(&m, roudi, NULL, SIGTERM);
    ends[0] = measure_fork(&m, pong, NULL, SIGKILL);
    ends[1] = measure_fork(&m, ping, NULL, SIGKILL);
    measure_wait(ends[0], ends[1]);
    stop_roudi(roudi_pid);
    measure_finish(&m, NULL, 0);
    return 0;
}
