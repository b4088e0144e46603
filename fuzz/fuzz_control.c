/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a worker process that was taken over may say to its parent: words of any length, number and
 * content. The parent goes on, ends that worker if the word is none, and what its observer is told
 * is sound: numbers of edges and functions that exist, a code that is known, texts that end.
 *
 * An input is a row of packets: 2 bytes of length, then the packet.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/remote.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define MAX_PACKETS 64

static const char flow[] = "version: 1\nisolation: process\nfunctions:\n  a: {module: a.wasm}\n"
                           "  b: {module: b.wasm}\nedges:\n  - {from: input, to: a}\n"
                           "  - {from: a, to: b}\nresult: b\n";

static struct rr_workflow *wf;
static struct rr_arena *arena;
static uint64_t told; /* so that nothing is optimized away */

static void check(bool good)
{
    if (!good)
        abort();
}

static void on_hop(void *user, const struct rr_hop *hop)
{
    (void)user;
    check(hop->edge >= 0 && (size_t)hop->edge < wf->n_edges);
    told += strlen(rr_path_name(hop->path)) + hop->n;
}

static void on_span(void *user, const struct rr_span *span)
{
    uint8_t fresh;

    (void)user;
    memcpy(&fresh, &span->fresh, 1);
    check(span->function == 0 && span->n > 0 && fresh <= 1);
}

static void on_log(void *user, int function, int level, const char *text, size_t len)
{
    (void)user;
    check(function == 0 && level >= 0 && level <= 3 && strlen(text) == len);
}

static void prepare(void)
{
    const struct rr_arena_options options = {.ceiling_bytes = RR_MIB};

    if (wf)
        return;
    check(rr_workflow_parse("flow.yaml", flow, sizeof(flow) - 1, &wf, NULL) == 0);
    check(rr_arena_new(&options, &arena, NULL) == 0);
    rr_log_set_level(-1);
}

/* What it says goes into the socket's buffer; what does not fit is left out. */
static void speak(int fd, const uint8_t *data, size_t len)
{
    for (int n = 0; n < MAX_PACKETS && len >= 2; n++) {
        size_t want = (size_t)data[0] | (size_t)data[1] << 8, size;

        data += 2;
        len -= 2;
        size = rr_min(want, len);
        if (send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            return;
        data += size;
        len -= size;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct rr_worker w = {.observer = {.hop = on_hop, .span = on_span, .log = on_log}};
    struct rr_link_share shares[3] = {0};
    struct pulse pulse = {0};
    struct child children[2] = {0};
    struct remote *rm;
    int control[2], zygote[2];

    prepare();
    w.wf = wf;
    w.arena = arena;
    check(rr_remote_new(&w, NULL) == 0);
    rm = w.remote;
    check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) == 0);
    check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, zygote) == 0);
    children[0] = (struct child){.function = 0,
                                 .isolated = true,
                                 .control_fd = control[0],
                                 .pid_fd = -1,
                                 .pulse = &pulse,
                                 .pid = 1,
                                 .reaped = true};
    children[1] = (struct child){.function = 1, .control_fd = -1, .pid_fd = -1, .pulse = &pulse};
    rm->children = children;
    rm->n_children = 2;
    rm->zygote_fd = zygote[0];
    rm->domain.shares = shares;
    rm->active = rm->stopping = true; /* stopping: it is not started again */
    rm->question = 1;
    speak(control[1], data, len);
    rr_processes_hear(rm);
    check(children[0].answered <= 1);
    check(memchr(rm->failure.text, 0, sizeof(rm->failure.text)) &&
          memchr(rm->failure.hint, 0, sizeof(rm->failure.hint)) &&
          memchr(children[0].pending, 0, sizeof(children[0].pending)));
    check(rm->failure.code == 0 || strcmp(rr_error_name(rm->failure.code), "unknown") != 0);
    close(control[1]);
    rr_processes_hear(rm);
    check(children[0].control_fd < 0 && rm->n_deaths == 1);
    close(zygote[0]);
    close(zygote[1]);
    rm->children = NULL;
    rr_remote_free(rm);
    return 0;
}
