/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A node for tests of the wire: sends every message and word back, and acks every target.
 *
 *   net-peer listen AT [CERT KEY CA]     prints the port
 *   net-peer dial TARGET [CERT KEY CA]
 *
 * What it does not do by itself, a message's kind asks for: 1: no ack; 2: no echo; 3: neither;
 * 4: refuse its payload. Word 0xffffffff ends it with success; each end of a session is a line
 * on stdout.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "channel/net.h"

enum { KIND_NO_ACK = 1, KIND_NO_ECHO = 2, KIND_REFUSE = 4 };

static struct {
    struct rr_net *net;
    struct rr_arena *arena;
    bool quit;
} self;

/* A region that is on its way back. */
struct lent {
    struct rr_region *region;
    uint32_t n_targets;
};

_Noreturn static void die(const char *what, const char *why)
{
    fprintf(stderr, "net-peer: %s: %s\n", what, why);
    exit(1);
}

static int place(void *user, struct rr_net_peer *peer, const struct rr_net_packet *head,
                 struct rr_region **ret, struct rr_error *err)
{
    (void)user;
    (void)peer;
    if (head->kind == KIND_REFUSE)
        return rr_error_set(err, RR_E_LIMIT, NULL, "asked to refuse");
    return rr_region_get(self.arena, RR_MEMFD, head->slot_bytes, head->offset + head->len, 0, ret,
                         err);
}

static void send_back(struct rr_net_peer *peer, const struct rr_net_packet *p)
{
    struct rr_net_target *targets = calloc(p->n_targets, sizeof(*targets));
    struct rr_net_packet back = *p;
    struct lent *lent = calloc(1, sizeof(*lent));
    int r;

    if (!targets || !lent)
        die("echo", "no memory");
    for (uint32_t n = 0; n < p->n_targets; n++) {
        targets[n] = p->targets[n];
        targets[n].from = p->targets[n].to;
        targets[n].to = p->targets[n].from;
    }
    back.targets = targets;
    *lent = (struct lent){p->region, p->n_targets};
    r = rr_net_send(peer, &back, p->region ? lent : NULL, NULL);
    if (r)
        die("echo", r == -EAGAIN ? "no credit" : "failed");
    if (!p->region)
        free(lent);
    free(targets);
}

static void message(void *user, struct rr_net_peer *peer, struct rr_net_packet *p)
{
    (void)user;
    for (uint32_t n = 0; !(p->kind & KIND_NO_ACK) && n < p->n_targets; n++)
        rr_net_ack(peer, p->seq, n);
    if (p->kind & KIND_NO_ECHO)
        rr_region_put(p->region);
    else
        send_back(peer, p);
}

static void control(void *user, struct rr_net_peer *peer, uint32_t word, const void *data,
                    size_t len)
{
    (void)user;
    self.quit = self.quit || word == UINT32_MAX;
    rr_net_control(peer, word, data, len, NULL);
}

static void up(void *user, struct rr_net_peer *peer)
{
    const char *name = rr_net_peer_text(peer, "node");

    (void)user;
    printf("up %s %s\n", name ? name : "-", rr_net_peer_identity(peer));
    fflush(stdout);
}

static void down(void *user, struct rr_net_peer *peer, const struct rr_error *why, bool gone)
{
    (void)user;
    (void)peer;
    (void)gone;
    printf("down %s\n", why->text);
    fflush(stdout);
}

static void done(void *user, struct rr_net_peer *peer, void *cookie, uint32_t target, bool acked,
                 bool lost, const struct rr_error *refused)
{
    struct lent *lent = cookie;

    (void)user;
    (void)peer;
    (void)target;
    (void)acked;
    (void)lost;
    (void)refused;
    if (!lent || --lent->n_targets > 0)
        return;
    rr_region_put(lent->region);
    free(lent);
}

static void cancelled(void *user, struct rr_net_peer *peer, uint64_t seq)
{
    (void)user;
    (void)peer;
    (void)seq;
    printf("cancelled\n");
    fflush(stdout);
}

static void begin(int argc, char **argv)
{
    const struct rr_arena_options arena = {.ceiling_bytes = RR_GIB};
    struct rr_wire_text texts[] = {{"node", "net-peer"}};
    struct rr_net_options o = {.events = {.place = place,
                                          .message = message,
                                          .control = control,
                                          .up = up,
                                          .down = down,
                                          .done = done,
                                          .cancelled = cancelled},
                               .texts = texts,
                               .n_texts = 1,
                               .plain = argc < 6,
                               .any_host = true,
                               .ping_ns = 300000000,
                               .patience_ns = 2000000000};
    struct rr_net_peer *peer;
    struct rr_error err = {0};
    int port;

    if (argc >= 6)
        o.tls = (struct rr_net_tls){argv[3], argv[4], argv[5]};
    if (rr_arena_new(&arena, &self.arena, &err) || rr_net_new(&o, &self.net, &err))
        die("start", err.text);
    if (strcmp(argv[1], "listen") == 0) {
        port = rr_net_listen(self.net, argv[2], &err);
        if (port < 0)
            die("listen", err.text);
        printf("%d\n", port);
        fflush(stdout);
    } else if (rr_net_dial(self.net, argv[2], &peer, &err)) {
        die("dial", err.text);
    }
}

int main(int argc, char **argv)
{
    struct rr_arena_stats stats;

    if (argc < 3)
        die("usage", "net-peer listen|dial ADDRESS [CERT KEY CA]");
    begin(argc, argv);
    while (!self.quit) {
        struct pollfd fd = {.fd = rr_net_fd(self.net), .events = POLLIN};
        uint64_t now = rr_now_ns(), next = rr_net_next_ns(self.net);

        poll(&fd, 1, next <= now ? 0 : (int)rr_min((next - now) / 1000000 + 1, 1000));
        if (rr_net_pump(self.net, true, NULL) < 0)
            die("pump", "failed");
    }
    rr_net_free(self.net);
    rr_arena_stats(self.arena, &stats);
    if (stats.live_regions)
        die("end", "a region is still live");
    rr_arena_free(self.arena);
    return 0;
}
