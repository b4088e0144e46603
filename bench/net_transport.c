/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network channel alone, and what it is compared with; bench/net.py runs both ends in
 * namespaces of their own.
 *
 *   net_transport serve AT [CERT KEY CA]
 *   net_transport send TARGET BYTES COUNT [CERT KEY CA]       large messages, one behind the other
 *   net_transport fanout TARGET BYTES COUNT [CERT KEY CA]     the same, each to 16 functions
 *   net_transport echo TARGET BYTES COUNT [CERT KEY CA]       round trips
 *   net_transport beside TARGET BYTES COUNT LARGE [CERT KEY CA]  round trips beside large messages
 *   net_transport tcp-serve PORT | tcp-echo HOST PORT BYTES COUNT    bare ping-pong
 *   net_transport tls-serve PORT CERT KEY CA | tls-send HOST PORT BYTES COUNT CERT KEY CA
 *
 * WARM=BYTES: the server has regions of that size ready. SPIN_US: poll for so long before sleeping.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "channel/net.h"

#define SLOT RR_SLOT_LARGE
#define DEPTH 2 /* large messages on their way */

enum { WORD_QUIT = 1 };

struct side {
    struct rr_net *net;
    struct rr_arena *arena;
    struct rr_net_peer *peer;
    struct rr_region *regions[DEPTH + 2]; /* warm ones to receive into */
    struct rr_region *large;
    uint8_t *small;
    uint64_t n_done, n_echoes, bytes, spin_ns;
    uint32_t n_targets;
    bool is_server, up, quit;
};

_Noreturn static void die(const char *what, const char *why)
{
    fprintf(stderr, "net_transport: %s: %s\n", what, why);
    exit(1);
}

static double cpu_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* --- the channel ----------------------------------------------------------------------------- */

static struct rr_net_packet packet(const struct rr_net_target *t, uint64_t len)
{
    return (struct rr_net_packet){
        .window = RR_WINDOW_BASE, .slot_bytes = SLOT, .len = len, .targets = t, .n_targets = 1};
}

#define T {.from = "a.out", .to = "b.in", .attempt = 1}
static const struct rr_net_target plain_target[16] = {T, T, T, T, T, T, T, T,
                                                      T, T, T, T, T, T, T, T};
#undef T

static int place(void *user, struct rr_net_peer *peer, const struct rr_net_packet *head,
                 struct rr_region **ret, struct rr_error *err)
{
    struct side *s = user;

    (void)peer;
    for (size_t n = 0; n < RR_ARRAY_LEN(s->regions); n++)
        if (s->regions[n]) {
            *ret = rr_take(s->regions[n]);
            return 0;
        }
    return rr_region_get(s->arena, RR_MEMFD, SLOT, head->len, 0, ret, err);
}

static void message(void *user, struct rr_net_peer *peer, struct rr_net_packet *p)
{
    struct side *s = user;
    struct rr_net_packet back = packet(plain_target, p->len);

    s->bytes += p->len;
    if (p->region) {
        size_t n = 0;

        while (n < RR_ARRAY_LEN(s->regions) && s->regions[n])
            n++;
        if (n < RR_ARRAY_LEN(s->regions))
            s->regions[n] = p->region;
        else
            rr_region_put(p->region);
        return;
    }
    s->n_echoes++;
    if (!s->is_server)
        return;
    back.data = p->data;
    if (rr_net_send(peer, &back, NULL, NULL))
        die("echo", "cannot send");
}

static void control(void *user, struct rr_net_peer *peer, uint32_t word, const void *data,
                    size_t len)
{
    (void)peer;
    (void)data;
    (void)len;
    ((struct side *)user)->quit = word == WORD_QUIT;
}

static void up(void *user, struct rr_net_peer *peer)
{
    struct side *s = user;

    s->peer = peer;
    s->up = true;
}

static void down(void *user, struct rr_net_peer *peer, const struct rr_error *why, bool gone)
{
    (void)user;
    (void)peer;
    (void)gone;
    fprintf(stderr, "down: %s\n", why->text);
}

static void done(void *user, struct rr_net_peer *peer, void *cookie, uint32_t target, bool acked,
                 bool lost, const struct rr_error *refused)
{
    (void)peer;
    (void)cookie;
    (void)target;
    (void)acked;
    if (lost || refused)
        die("a message", refused ? refused->text : "lost");
    ((struct side *)user)->n_done++;
}

static void wait_for(struct side *s)
{
    uint64_t end = s->spin_ns ? rr_now_ns() + s->spin_ns : 0;

    while (s->spin_ns && rr_now_ns() < end)
        if (rr_net_poll(s->net, NULL))
            return;
    rr_net_sleep(s->net, UINT64_MAX);
    if (rr_net_pump(s->net, true, NULL) < 0)
        die("pump", "failed");
}

static void new_side(struct side *s, char **tls)
{
    const struct rr_arena_options arena = {.ceiling_bytes = 8 * RR_GIB};
    struct rr_error err = {0};
    struct rr_net_options o = {.events = {.place = place,
                                          .message = message,
                                          .control = control,
                                          .up = up,
                                          .down = down,
                                          .done = done},
                               .user = s,
                               .plain = !tls[0],
                               .any_host = true};

    if (tls[0])
        o.tls = (struct rr_net_tls){tls[0], tls[1], tls[2]};
    if (getenv("SPIN_US"))
        s->spin_ns = strtoull(getenv("SPIN_US"), NULL, 10) * 1000;
    if (rr_arena_new(&arena, &s->arena, &err))
        die("arena", err.text);
    if (rr_net_new(&o, &s->net, &err))
        die("net", err.text);
}

static struct rr_region *warm(struct side *s, uint64_t bytes)
{
    struct rr_region *r;
    struct rr_error err = {0};

    if (rr_region_get(s->arena, RR_MEMFD, SLOT, bytes, 0, &r, &err))
        die("region", err.text);
    memset(rr_region_data(r), 7, bytes);
    return r;
}

static void serve(const char *at, char **tls)
{
    struct side s = {.is_server = true};
    struct rr_net_stats stats;
    struct rr_error err = {0};
    uint64_t warm_bytes = getenv("WARM") ? strtoull(getenv("WARM"), NULL, 10) : 0;

    new_side(&s, tls);
    for (size_t n = 0; warm_bytes && n < RR_ARRAY_LEN(s.regions); n++)
        s.regions[n] = warm(&s, warm_bytes);
    if (rr_net_listen(s.net, at, &err) < 0)
        die("listen", err.text);
    while (!s.up)
        wait_for(&s);
    double cpu = cpu_seconds();
    while (!s.quit)
        wait_for(&s);
    rr_net_stats(s.net, &stats);
    printf("{\"end\": \"serve\", \"cpu_s\": %.4f, \"bytes\": %llu, \"reads\": %llu, \"copied\": "
           "%llu}\n",
           cpu_seconds() - cpu, (unsigned long long)s.bytes, (unsigned long long)stats.reads,
           (unsigned long long)stats.copied_bytes);
}

static void dial(struct side *s, const char *target, char **tls)
{
    struct rr_error err = {0};

    new_side(s, tls);
    if (rr_net_dial(s->net, target, &s->peer, &err))
        die("dial", err.text);
    while (!s->up) {
        rr_net_pump(s->net, true, NULL);
        poll(NULL, 0, 1);
    }
}

static void quit(struct side *s)
{
    rr_net_control(s->peer, WORD_QUIT, NULL, 0, NULL);
    rr_net_free(s->net);
}

static void send_large(struct side *s, uint64_t len)
{
    struct rr_net_packet p = packet(plain_target, len);

    p.region = s->large;
    p.n_targets = s->n_targets ? s->n_targets : 1;
    if (rr_net_send(s->peer, &p, NULL, NULL))
        die("send", "no credit");
}

static void send_all(struct side *s, uint64_t len, uint64_t count)
{
    struct rr_net_stats stats;
    uint64_t began, sent = 0;
    double cpu, seconds;

    s->large = warm(s, len);
    cpu = cpu_seconds();
    began = rr_now_ns();
    uint32_t per = s->n_targets ? s->n_targets : 1;

    while (s->n_done < count * per) {
        while (sent < count && sent - s->n_done / per < DEPTH) {
            send_large(s, len);
            sent++;
        }
        wait_for(s);
    }
    seconds = (double)(rr_now_ns() - began) / 1e9;
    rr_net_stats(s->net, &stats);
    printf("{\"end\": \"send\", \"bytes\": %llu, \"seconds\": %.4f, \"mb_per_s\": %.1f, \"cpu_s\": "
           "%.4f, \"writes\": %llu, \"wire_per_payload\": %.5f}\n",
           (unsigned long long)(len * count), seconds, (double)(len * count) / seconds / 1e6,
           cpu_seconds() - cpu, (unsigned long long)stats.writes,
           (double)stats.out_bytes / (double)(len * count));
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void print_times(const char *end, uint64_t *ns, uint64_t count)
{
    qsort(ns, count, sizeof(*ns), compare);
    printf("{\"end\": \"%s\", \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"min_us\": "
           "%.1f}\n",
           end, (double)ns[count / 2] / 1e3, (double)ns[count * 9 / 10] / 1e3,
           (double)ns[count * 99 / 100] / 1e3, (double)ns[0] / 1e3);
}

static void echo_all(struct side *s, uint64_t len, uint64_t count, uint64_t large, const char *name)
{
    struct rr_net_packet p = packet(plain_target, len);
    uint64_t *ns = calloc(count, sizeof(*ns)), sent = 0;

    s->small = calloc(1, len + 1);
    p.data = s->small;
    for (uint64_t n = 0; n < count; n++) {
        uint64_t began;

        if (large) /* and a pause, so that they meet it at any place */
            for (uint64_t end = rr_now_ns() + 5000000; rr_now_ns() < end;) {
                while (sent - s->n_done < DEPTH) {
                    send_large(s, large);
                    sent++;
                }
                wait_for(s);
            }
        began = rr_now_ns();
        s->n_echoes = 0;
        if (rr_net_send(s->peer, &p, NULL, NULL))
            die("send", "no credit");
        while (!s->n_echoes)
            wait_for(s);
        ns[n] = rr_now_ns() - began;
    }
    print_times(name, ns, count);
}

/* --- bare TCP -------------------------------------------------------------------------------- */

static int tcp_accept(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1, c;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 1))
        die("listen", strerror(errno));
    c = accept(fd, NULL, NULL);
    setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    close(fd);
    return c;
}

static int tcp_connect(const char *host, int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

    inet_pton(AF_INET, host, &a.sin_addr);
    for (int n = 0; connect(fd, (struct sockaddr *)&a, sizeof(a)); n++) {
        if (n > 200)
            die("connect", strerror(errno));
        poll(NULL, 0, 10);
        close(fd);
        fd = socket(AF_INET, SOCK_STREAM, 0);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

static bool polling; /* or asleep, as SPIN_US says for the channel */

static bool read_all(int fd, uint8_t *to, size_t len)
{
    for (size_t got = 0; got < len;) {
        ssize_t n = recv(fd, to + got, len - got, polling ? MSG_DONTWAIT : 0);

        if (n < 0 && errno == EAGAIN)
            continue;
        if (n <= 0)
            return false;
        got += (size_t)n;
    }
    return true;
}

static void tcp_serve(int port)
{
    int fd = tcp_accept(port);
    uint32_t len;
    uint8_t *buffer;

    if (!read_all(fd, (uint8_t *)&len, sizeof(len)))
        return;
    buffer = calloc(1, len);
    while (read_all(fd, buffer, len))
        rr_write_all(fd, buffer, len);
}

static void tcp_echo(const char *host, int port, uint32_t len, uint64_t count)
{
    int fd = tcp_connect(host, port);
    uint8_t *buffer = calloc(1, len);
    uint64_t *ns = calloc(count, sizeof(*ns));

    rr_write_all(fd, &len, sizeof(len));
    for (uint64_t n = 0; n < count; n++) {
        uint64_t began = rr_now_ns();

        rr_write_all(fd, buffer, len);
        read_all(fd, buffer, len);
        ns[n] = rr_now_ns() - began;
    }
    print_times("tcp-echo", ns, count);
}

/* --- plain OpenSSL --------------------------------------------------------------------------- */

static SSL *tls_over(int fd, bool server, char **tls)
{
    SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    SSL *ssl;

    SSL_CTX_use_certificate_chain_file(ctx, tls[0]);
    SSL_CTX_use_PrivateKey_file(ctx, tls[1], SSL_FILETYPE_PEM);
    SSL_CTX_load_verify_locations(ctx, tls[2], NULL);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    if (getenv("CIPHER"))
        SSL_CTX_set_ciphersuites(ctx, getenv("CIPHER"));
    ssl = SSL_new(ctx);
    SSL_set_fd(ssl, fd);
    if ((server ? SSL_accept(ssl) : SSL_connect(ssl)) != 1)
        die("TLS", ERR_reason_error_string(ERR_peek_last_error()));
    return ssl;
}

static void tls_serve(int port, char **tls)
{
    SSL *ssl = tls_over(tcp_accept(port), true, tls);
    size_t room = 512 * RR_MIB;
    uint8_t *to = malloc(room);
    uint64_t bytes = 0;
    size_t at = 0;
    double cpu;

    memset(to, 1, room);
    cpu = cpu_seconds();
    for (;;) {
        int n = SSL_read(ssl, to + at, (int)rr_min(room - at, 1u << 20));

        if (n <= 0)
            break;
        bytes += (uint64_t)n;
        at = (at + (size_t)n) % room;
    }
    printf("{\"end\": \"tls-serve\", \"cpu_s\": %.4f, \"bytes\": %llu}\n", cpu_seconds() - cpu,
           (unsigned long long)bytes);
}

static void tls_send(const char *host, int port, uint64_t len, uint64_t count, char **tls)
{
    SSL *ssl = tls_over(tcp_connect(host, port), false, tls);
    uint8_t *from = malloc(len);
    double cpu, seconds;
    uint64_t began;

    memset(from, 7, len);
    cpu = cpu_seconds();
    began = rr_now_ns();
    for (uint64_t n = 0; n < count; n++)
        for (uint64_t at = 0; at < len;) {
            int r = SSL_write(ssl, from + at, (int)rr_min(len - at, 1u << 20));

            if (r <= 0)
                die("SSL_write", "failed");
            at += (uint64_t)r;
        }
    seconds = (double)(rr_now_ns() - began) / 1e9;
    SSL_shutdown(ssl);
    printf("{\"end\": \"tls-send\", \"mb_per_s\": %.1f, \"cpu_s\": %.4f, \"cipher\": \"%s\"}\n",
           (double)(len * count) / seconds / 1e6, cpu_seconds() - cpu, SSL_get_cipher(ssl));
}

int main(int argc, char **argv)
{
    static char *none[3];
    char **a = argv + 2;
    const char *mode = argc > 2 ? argv[1] : "";
    int n = argc - 2;
    struct side s = {0};

    polling = getenv("SPIN_US") && strtoull(getenv("SPIN_US"), NULL, 10) > 0;
#define NUMBER(i) strtoull(a[i], NULL, 10)
    if (strcmp(mode, "serve") == 0) {
        serve(a[0], n > 3 ? a + 1 : none);
    } else if (strcmp(mode, "send") == 0 && n >= 3) {
        dial(&s, a[0], n > 5 ? a + 3 : none);
        send_all(&s, NUMBER(1), NUMBER(2));
        quit(&s);
    } else if (strcmp(mode, "fanout") == 0 && n >= 3) {
        s.n_targets = RR_ARRAY_LEN(plain_target);
        dial(&s, a[0], n > 5 ? a + 3 : none);
        send_all(&s, NUMBER(1), NUMBER(2));
        quit(&s);
    } else if (strcmp(mode, "echo") == 0 && n >= 3) {
        dial(&s, a[0], n > 5 ? a + 3 : none);
        echo_all(&s, NUMBER(1), NUMBER(2), 0, "echo");
        quit(&s);
    } else if (strcmp(mode, "beside") == 0 && n >= 4) {
        dial(&s, a[0], n > 6 ? a + 4 : none);
        s.large = warm(&s, NUMBER(3));
        echo_all(&s, NUMBER(1), NUMBER(2), NUMBER(3), "beside");
        quit(&s);
    } else if (strcmp(mode, "tcp-serve") == 0) {
        tcp_serve((int)NUMBER(0));
    } else if (strcmp(mode, "tcp-echo") == 0 && n >= 4) {
        tcp_echo(a[0], (int)NUMBER(1), (uint32_t)NUMBER(2), NUMBER(3));
    } else if (strcmp(mode, "tls-serve") == 0 && n >= 4) {
        tls_serve((int)NUMBER(0), a + 1);
    } else if (strcmp(mode, "tls-send") == 0 && n >= 7) {
        tls_send(a[0], (int)NUMBER(1), NUMBER(2), NUMBER(3), a + 4);
    } else {
        die("usage", "see the comment in its source");
    }
    return 0;
}
