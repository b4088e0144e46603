/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Peers. Who dials tries the addresses of its target, the next one when one has failed or takes
 * long; greets over the first that answers; then opens the extra connections. Both sides call the
 * session up when all of them have greeted.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/util.h"
#include "channel/netio.h"

#define NEXT_ADDRESS_NS 250000000ull /* before the next address is tried beside this one */
#define ASK_AGAIN_NS 100000000ull
#define ADDRESS_KEY "rr-address" /* where a session's listener can be reached itself */

struct rr_net_peer *peer_new(struct rr_net *net)
{
    struct rr_net_peer *peer = calloc(1, sizeof(*peer));

    if (!peer)
        return NULL;
    peer->net = net;
    peer->refs = 1;
    peer->next = net->peers;
    if (net->peers)
        net->peers->prev = peer;
    net->peers = peer;
    return peer;
}

void peer_ref(struct rr_net_peer *peer)
{
    peer->refs++;
}

void peer_unref(struct rr_net_peer *peer)
{
    struct rr_net *net = peer->net;

    if (--peer->refs > 0)
        return;
    for (struct rr_net_peer **p = &net->dirty; *p; p = &(*p)->next_dirty)
        if (*p == peer) {
            *p = peer->next_dirty;
            break;
        }
    if (peer->prev)
        peer->prev->next = peer->next;
    else
        net->peers = peer->next;
    if (peer->next)
        peer->next->prev = peer->prev;
    free(peer->target);
    free(peer->names);
    free(peer->texts);
    free(peer);
}

/* --- the end of a session -------------------------------------------------------------------- */

/* Exponential, with jitter: many that lost the same peer are not to come back at once. */
static uint64_t backoff(const struct rr_net_peer *peer)
{
    const struct rr_net_options *o = &peer->net->o;
    uint64_t ns = o->backoff_ns;
    uint32_t random = 0;

    for (unsigned int n = 1; n < peer->failures && ns < o->backoff_max_ns; n++)
        ns *= 2;
    ns = rr_min(ns, o->backoff_max_ns);
    (void)!getrandom(&random, sizeof(random), GRND_NONBLOCK);
    return ns / 2 + ns / 2 * (random % 1024) / 1023;
}

static void close_all(struct rr_net_peer *peer)
{
    struct conn *next;

    for (struct conn *c = peer->net->conns; c; c = next) {
        next = c->next;
        if (c->peer == peer)
            conn_close(c);
    }
    peer->main = NULL;
    memset(peer->extra, 0, sizeof(peer->extra));
    peer->n_open = peer->n_attempts = 0;
}

void peer_end(struct rr_net_peer *peer, const struct rr_error *why)
{
    struct rr_net *net = peer->net;
    bool was_up = peer->up;
    struct rr_error goodbye;
    struct event *e;

    if (!why) {
        rr_error_set(&goodbye, RR_E_DIED, "it is tried again by and by", "%s: it said goodbye",
                     peer->address);
        why = &goodbye;
    } else if (was_up) {
        net->stats.losses++;
    }
    net->n_accepted -= !peer->dialed;
    net->stats.peers_up -= was_up;
    peer->up = false;
    close_all(peer);
    message_end(peer);
    e = was_up || peer->dialed ? net_event(peer, EVENT_DOWN, 0) : NULL;
    if (e)
        net_event_error(e, why);
    peer->admitted = peer->no_session = peer->elsewhere = peer->starved = false;
    peer->n_sessions++;
    if (!peer->dialed) { /* the event holds on to it */
        peer_unref(peer);
        return;
    }
    resolver_forget(net->resolver, peer);
    peer->failures = was_up ? 1 : peer->failures + 1;
    peer->n_addresses = peer->next_address = 0;
    peer->dial_ns = net->now_ns + backoff(peer);
    net_arm(net, peer->dial_ns);
}

/* --- dialing --------------------------------------------------------------------------------- */

static void connect_failed(struct rr_net_peer *peer, const struct sockaddr_storage *a, int error)
{
    char text[80];

    net_address_text(a, text, sizeof(text));
    rr_error_set(&peer->failure, RR_E_DIED, "it is tried again by and by", "%s: %s", text,
                 strerror(error));
}

static struct conn *connect_to(struct rr_net_peer *peer, const struct sockaddr_storage *a)
{
    int fd = socket(a->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), error;
    struct conn *c;

    peer->net->stats.attempts++;
    if (fd < 0 || (connect(fd, (const void *)a, net_address_len(a)) < 0 && errno != EINPROGRESS)) {
        error = errno;
        if (fd >= 0)
            close(fd);
        connect_failed(peer, a, error);
        return NULL;
    }
    c = conn_new(peer->net, fd, false, a->ss_family == AF_UNIX);
    if (!c) {
        close(fd);
        connect_failed(peer, a, ENOMEM);
        return NULL;
    }
    c->peer = peer;
    net_address_text(a, c->address, sizeof(c->address));
    conn_want(c, EPOLLOUT);
    return c;
}

void peer_dial_next(struct rr_net_peer *peer)
{
    struct rr_net *net = peer->net;

    while (!peer->main && peer->next_address < peer->n_addresses) {
        if (!connect_to(peer, &peer->addresses[peer->next_address++]))
            continue;
        peer->n_attempts++;
        peer->dial_ns =
            peer->next_address < peer->n_addresses ? net->now_ns + NEXT_ADDRESS_NS : UINT64_MAX;
        net_arm(net, peer->dial_ns);
        return;
    }
    if (!peer->main && !peer->n_attempts) {
        net_log(net, LOG_DIAL, "cannot reach %s: %s", peer->target, peer->failure.text);
        peer_end(peer, &peer->failure);
    }
}

void peer_resolved(struct rr_net_peer *peer, const struct sockaddr_storage *addresses, uint32_t n,
                   const char *failure)
{
    uint32_t from[2] = {0, 0};

    if (n == 0) {
        rr_error_set(&peer->failure, RR_E_DIED, "it is tried again by and by", "%s: %s",
                     peer->target, failure);
        net_log(peer->net, LOG_DIAL, "cannot reach %s", peer->failure.text);
        peer_end(peer, &peer->failure);
        return;
    }
    /* families take turns: one of them may lead nowhere */
    peer->n_addresses = 0;
    for (uint32_t turn = addresses[0].ss_family != AF_INET; peer->n_addresses < n; turn ^= 1) {
        const sa_family_t family = turn ? AF_INET6 : AF_INET;

        while (from[turn] < n && addresses[from[turn]].ss_family != family)
            from[turn]++;
        if (from[turn] < n)
            peer->addresses[peer->n_addresses++] = addresses[from[turn]++];
    }
    peer->next_address = 0;
    peer_dial_next(peer);
}

static void ask(struct rr_net_peer *peer, const char *host, const char *port)
{
    struct rr_net *net = peer->net;
    int r = resolver_ask(net->resolver, peer, host, port);

    peer->n_addresses = 0;
    if (r == -EAGAIN) {
        peer->dial_ns = net->now_ns + ASK_AGAIN_NS;
        net_arm(net, peer->dial_ns);
    } else if (r < 0) {
        peer_resolved(peer, NULL, 0, strerror(-r));
    }
}

void peer_redial(struct rr_net_peer *peer)
{
    struct sockaddr_un *u = (void *)&peer->addresses[0];
    char host[256], port[16];

    peer->dial_ns = UINT64_MAX;
    peer->next_address = 0;
    peer->n_addresses = 1;
    if (strncmp(peer->target, "unix:", 5) == 0) {
        *u = (struct sockaddr_un){.sun_family = AF_UNIX};
        snprintf(u->sun_path, sizeof(u->sun_path), "%s", peer->target + 5);
    } else {
        if (!net_split(peer->target, host, sizeof(host), port, sizeof(port)))
            return; /* it was checked */
        if (!net_numeric(host, port, false, &peer->addresses[0])) {
            ask(peer, host, port);
            return;
        }
    }
    peer_dial_next(peer);
}

void peer_timer(struct rr_net_peer *peer)
{
    struct rr_net *net = peer->net;

    if (!peer->dialed || peer->freed || peer->dial_ns == UINT64_MAX)
        return;
    if (net->now_ns < peer->dial_ns) {
        net_arm(net, peer->dial_ns);
        return;
    }
    if (peer->next_address < peer->n_addresses)
        peer_dial_next(peer);
    else
        peer_redial(peer);
}

/* --- greeting -------------------------------------------------------------------------------- */

/* Our own HELLO. */
static void send_hello(struct conn *c)
{
    const struct rr_net_options *o = &c->net->o;
    struct rr_net_peer *peer = c->peer;
    struct rr_wire_text texts[RR_WIRE_MAX_TEXTS];
    struct rr_wire_hello h = {.version = RR_WIRE_VERSION,
                              .role = c->extra ? RR_WIRE_EXTRA : RR_WIRE_MAIN,
                              .index = c->index,
                              .n_bulk = peer->n_bulk,
                              .credit = {o->window_messages, o->window_inline_bytes,
                                         o->window_bulk_bytes, RR_NET_CONTROL_WINDOW},
                              .texts = texts};
    uint8_t bytes[RR_WIRE_HEADER + RR_WIRE_MAX_HELLO];
    struct sockaddr_storage self;
    socklen_t len = sizeof(self);
    size_t n;

    memcpy(h.session, peer->session, sizeof(h.session));
    for (; !c->extra && h.n_texts < o->n_texts; h.n_texts++)
        texts[h.n_texts] = o->texts[h.n_texts];
    if (!c->extra && c->accepted && !c->unix_socket &&
        getsockname(c->fd, (struct sockaddr *)&self, &len) == 0) {
        struct rr_wire_text *t = &texts[h.n_texts++];

        *t = (struct rr_wire_text){.key = ADDRESS_KEY};
        net_address_text(&self, t->value, sizeof(t->value));
    }
    n = rr_wire_put_hello(bytes, sizeof(bytes), &h);
    if (conn_put(c, &(struct iovec){bytes, n}, 1))
        conn_write(c);
}

void peer_greet(struct conn *c)
{
    c->state = CONN_GREETING;
    conn_want(c, EPOLLIN);
    if (!c->accepted)
        send_hello(c);
    if (c->tls_more)
        conn_read(c);
}

/* The TCP connection is there. */
static void begin(struct conn *c)
{
    char host[256], port[16];
    bool named = c->peer && net_split(c->peer->target ? c->peer->target : "", host, sizeof(host),
                                      port, sizeof(port));

    if (c->unix_socket || !c->net->server) {
        peer_greet(c);
        return;
    }
    c->state = CONN_TLS;
    if (tls_start(c, named ? host : NULL) < 0) {
        conn_fail(c, LOG_TLS, "cannot begin TLS");
        return;
    }
    conn_want(c, EPOLLIN);
    if (!c->accepted)
        conn_ready(c, EPOLLIN);
}

void peer_accepted(struct conn *c)
{
    begin(c);
}

void peer_connected(struct conn *c)
{
    struct rr_net_peer *peer = c->peer;
    int error = 0;
    socklen_t len = sizeof(error);
    struct conn *next;

    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (error) {
        conn_fail(c, LOG_DIAL, "%s", strerror(error));
        return;
    }
    if (!c->extra) {
        len = sizeof(peer->reached);
        getpeername(c->fd, (struct sockaddr *)&peer->reached, &len);
        if (peer->reached.ss_family == AF_UNIX) { /* its listener may see it under another name */
            struct sockaddr_un *u = (void *)&peer->reached;

            snprintf(u->sun_path, sizeof(u->sun_path), "%s", peer->target + 5);
        }
        for (struct conn *other = peer->net->conns; other; other = next) {
            next = other->next;
            if (other != c && other->peer == peer)
                conn_close(other); /* it came too late */
        }
        peer->main = c;
        peer->n_attempts = 0;
        peer->dial_ns = UINT64_MAX;
        peer->n_bulk = peer->net->o.n_bulk;
        snprintf(peer->address, sizeof(peer->address), "%s", c->address);
        if (getrandom(peer->session, sizeof(peer->session), 0) != sizeof(peer->session)) {
            conn_fail(c, LOG_DIAL, "no random numbers");
            return;
        }
    }
    begin(c);
}

static void dial_extra(struct rr_net_peer *peer, uint32_t index)
{
    struct conn *c = connect_to(peer, &peer->reached);

    if (!c) {
        peer_end(peer, &peer->failure);
        return;
    }
    c->extra = true;
    c->index = index;
    peer->extra[index] = c;
}

bool peer_elsewhere(struct rr_net_peer *peer, struct conn *c)
{
    const char *at = peer->no_session ? rr_net_peer_text(peer, ADDRESS_KEY) : NULL;
    struct sockaddr_storage a;
    char host[256], port[16];

    if (!at || peer->elsewhere || !peer->dialed || !peer->admitted ||
        !net_split(at, host, sizeof(host), port, sizeof(port)) ||
        !net_numeric(host, port, false, &a))
        return false;
    /* A balancer in between has led it to another node. */
    peer->elsewhere = true;
    peer->reached = a;
    peer->extra[c->index] = NULL;
    dial_extra(peer, c->index);
    return true;
}

static void maybe_up(struct rr_net_peer *peer)
{
    if (peer->up || peer->n_open < peer->n_bulk)
        return;
    peer->up = true;
    peer->failures = 0;
    peer->net->stats.sessions++;
    peer->net->stats.peers_up++;
    conn_want(peer->main, peer->main->events | EPOLLIN);
    for (uint32_t n = 0; n < peer->n_bulk; n++)
        conn_want(peer->extra[n], peer->extra[n]->events | EPOLLIN);
    peer->net->again = true;
    net_event(peer, EVENT_UP, 0);
}

static void refuse(struct conn *c, enum rr_net_reason reason, enum log_kind kind, const char *text)
{
    c->net->stats.refused_connections++;
    conn_put_error(c, reason, text);
    conn_fail(c, kind, "%s", text);
}

/* Who is at the other end of @c: 32 bytes that only the same one has. */
static void fingerprint(struct conn *c, uint8_t ret[32])
{
    struct ucred who = {.uid = (uid_t)-1};
    socklen_t len = sizeof(who);

    memset(ret, 0, 32);
    if (c->ssl) {
        tls_fingerprint(c, ret);
    } else if (c->unix_socket) {
        getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &who, &len);
        memcpy(ret, &who.uid, sizeof(who.uid));
    }
}

static int identify(struct conn *c, struct rr_net_peer *peer)
{
    uid_t uid;

    fingerprint(c, peer->fingerprint);
    peer->identity[0] = 0;
    free(rr_take(peer->names));
    if (c->ssl)
        return tls_identity(c, peer);
    memcpy(&uid, peer->fingerprint, sizeof(uid));
    if (c->unix_socket)
        snprintf(peer->identity, sizeof(peer->identity), "uid:%u", uid);
    return 0;
}

static int keep_texts(struct rr_net_peer *peer, const struct rr_wire_hello *h)
{
    struct rr_wire_text *texts = malloc((h->n_texts + 1) * sizeof(*texts));

    if (!texts)
        return -ENOMEM;
    memcpy(texts, h->texts, h->n_texts * sizeof(*texts));
    free(peer->texts);
    peer->texts = texts;
    peer->n_texts = h->n_texts;
    return 0;
}

/* A main connection has greeted: ask whether the peer is welcome. */
static void on_main(struct conn *c, struct rr_net_peer *peer, const struct rr_wire_hello *h)
{
    if (identify(c, peer) || keep_texts(peer, h) || message_begin(peer, &h->credit)) {
        conn_fail(c, LOG_MEMORY, "no memory for a session");
        return;
    }
    c->state = CONN_ADMITTING;
    conn_want(c, 0);
    net_event(peer, EVENT_ADMIT, 0);
}

static void on_first_hello(struct conn *c, const struct rr_wire_hello *h)
{
    struct rr_net *net = c->net;
    struct rr_net_peer *peer;

    for (peer = net->peers; peer; peer = peer->next)
        if (!peer->dialed && peer->main &&
            CRYPTO_memcmp(peer->session, h->session, sizeof(h->session)) == 0)
            break;
    if (peer) {
        refuse(c, REASON_BROKE_RULE, LOG_GREETING, "a session of that number is here already");
        return;
    }
    if (net->n_accepted >= net->o.max_peers) {
        refuse(c, REASON_BUSY, LOG_BUSY, "too many peers are here already");
        return;
    }
    peer = peer_new(net);
    if (!peer) {
        refuse(c, REASON_BUSY, LOG_MEMORY, "no memory for a peer");
        return;
    }
    net->n_accepted++;
    net->n_pending--;
    c->peer = peer;
    peer->main = c;
    peer->n_bulk = h->n_bulk;
    memcpy(peer->session, h->session, sizeof(peer->session));
    snprintf(peer->address, sizeof(peer->address), "%s", c->address);
    on_main(c, peer, h);
}

static void on_extra_hello(struct conn *c, const struct rr_wire_hello *h)
{
    struct rr_net *net = c->net;
    uint8_t who[32];
    struct rr_net_peer *peer;

    fingerprint(c, who);
    for (peer = net->peers; peer; peer = peer->next)
        if (!peer->dialed && peer->main && peer->admitted &&
            CRYPTO_memcmp(peer->session, h->session, sizeof(h->session)) == 0 &&
            CRYPTO_memcmp(peer->fingerprint, who, sizeof(who)) == 0)
            break;
    if (!peer || h->index >= peer->n_bulk || peer->extra[h->index] || peer->up) {
        refuse(c, REASON_NO_SESSION, LOG_GREETING, "no session waits for this connection");
        return;
    }
    net->n_pending--;
    c->peer = peer;
    c->extra = true;
    c->index = h->index;
    peer->extra[c->index] = c;
    peer->n_open++;
    send_hello(c);
    if (c->state == CONN_CLOSED)
        return;
    conn_greeted(c);
    maybe_up(peer);
}

static void on_answer(struct conn *c, const struct rr_wire_hello *h)
{
    struct rr_net_peer *peer = c->peer;
    uint8_t who[32];

    if (CRYPTO_memcmp(h->session, peer->session, sizeof(h->session)) != 0 || h->index != c->index ||
        (h->role == RR_WIRE_EXTRA) != c->extra) {
        refuse(c, REASON_BROKE_RULE, LOG_GREETING, "its answer is for another connection");
        return;
    }
    if (!c->extra) {
        on_main(c, peer, h);
        return;
    }
    fingerprint(c, who);
    if (CRYPTO_memcmp(peer->fingerprint, who, sizeof(who)) != 0) {
        refuse(c, REASON_BROKE_RULE, LOG_GREETING, "an extra connection leads to somebody else");
        return;
    }
    peer->n_open++;
    conn_greeted(c);
    conn_want(c, 0); /* the other side may be up before us: what it sends must wait */
    maybe_up(peer);
}

void peer_on_hello(struct conn *c, const struct rr_wire_header *h, const uint8_t *body)
{
    struct rr_wire_text texts[RR_WIRE_MAX_TEXTS];
    struct rr_wire_hello hello;
    struct rr_error err;
    char text[256];
    int r;

    if (h->type == RR_WIRE_ERROR) {
        rr_wire_get_text(body + 4, h->len - 4, text, sizeof(text));
        if (c->peer && c->extra)
            c->peer->no_session = body[0] == REASON_NO_SESSION;
        conn_fail(c, LOG_REFUSED, "it refused us: %s", text);
        return;
    }
    r = rr_wire_get_hello(body, h->len, texts, &hello, &err);
    if (r) {
        c->net->stats.rule_breaks++;
        refuse(c, r == RR_E_USAGE ? REASON_VERSION : REASON_BROKE_RULE, LOG_GREETING, err.text);
    } else if (!c->accepted) {
        on_answer(c, &hello);
    } else if (hello.role == RR_WIRE_MAIN) {
        on_first_hello(c, &hello);
    } else {
        on_extra_hello(c, &hello);
    }
}

void peer_admit(struct event *e)
{
    struct rr_net_peer *peer = e->peer;
    struct rr_net *net = peer->net;
    struct rr_error err = {0};
    struct conn *c = peer->main;

    if (e->session != peer->n_sessions || !c || c->state != CONN_ADMITTING)
        return;
    if (net->o.events.admit && net->o.events.admit(net->o.user, peer, &err)) {
        if (peer->main == c) {
            net->stats.refused_connections++;
            c->state = CONN_GREETING;
            conn_put_error(c, REASON_NOT_ADMITTED, err.text);
            conn_fail(c, LOG_ADMIT, "not admitted: %s", err.text);
        }
        return;
    }
    if (peer->main != c || c->state != CONN_ADMITTING)
        return;
    peer->admitted = true;
    c->state = CONN_GREETING;
    if (!peer->dialed)
        send_hello(c);
    if (c->state == CONN_CLOSED)
        return;
    conn_greeted(c);
    for (uint32_t n = 0; peer->dialed && peer->main == c && n < peer->n_bulk; n++)
        dial_extra(peer, n);
}

/* --- what callers ask ------------------------------------------------------------------------ */

int rr_net_dial(struct rr_net *net, const char *target, struct rr_net_peer **ret,
                struct rr_error *err)
{
    char host[256], port[16];
    struct rr_net_peer *peer;
    size_t path = strncmp(target, "unix:", 5) == 0 ? strlen(target + 5) : 0;

    if (!(path && path < sizeof(((struct sockaddr_un *)NULL)->sun_path)) &&
        (path || !net_split(target, host, sizeof(host), port, sizeof(port)) || !*host ||
         strcmp(port, "0") == 0))
        return rr_error_set(err, RR_E_USAGE, "write host:port, [v6]:port or unix:/path",
                            "'%s' is no address of a node", target);
    peer = peer_new(net);
    if (peer)
        peer->target = strdup(target);
    if (!peer || !peer->target) {
        if (peer)
            peer_unref(peer);
        return rr_error_set(err, RR_E_SYSTEM, NULL, "no memory for a peer");
    }
    peer->dialed = true;
    snprintf(peer->address, sizeof(peer->address), "%.79s", target);
    peer->dial_ns = 0;
    net_arm(net, 0);
    *ret = peer;
    return 0;
}

void rr_net_peer_free(struct rr_net_peer *peer)
{
    struct rr_net *net = peer ? peer->net : NULL;

    if (!peer || peer->freed)
        return;
    peer->freed = true;
    resolver_forget(net->resolver, peer);
    if (peer->main && peer->main->state == CONN_OPEN) {
        message_flush(peer);
        if (peer->main && conn_put_frame(peer->main, RR_WIRE_GOODBYE, 0, NULL, 0))
            conn_write(peer->main);
    }
    if (!peer->dialed) {
        if (peer->main)
            peer_end(peer, NULL);
        return;
    }
    net->stats.peers_up -= peer->up;
    peer->up = false;
    close_all(peer);
    message_end(peer);
    peer->n_sessions++;
    peer_unref(peer);
}

void rr_net_peer_reset(struct rr_net_peer *peer, const struct rr_error *why)
{
    if (!peer->main)
        return;
    conn_put_error(peer->main, REASON_RESET, why->text);
    conn_fail(peer->main, LOG_REFUSED, "%s", why->text);
}

const char *rr_net_peer_text(const struct rr_net_peer *peer, const char *key)
{
    for (uint32_t n = 0; n < peer->n_texts; n++)
        if (strcmp(peer->texts[n].key, key) == 0)
            return peer->texts[n].value;
    return NULL;
}

const char *rr_net_peer_identity(const struct rr_net_peer *peer)
{
    return peer->identity;
}

bool rr_net_peer_is(const struct rr_net_peer *peer, const char *identity)
{
    if (!*identity)
        return false;
    for (const char *name = peer->names; name && *name; name += strlen(name) + 1)
        if (strcmp(name, identity) == 0)
            return true;
    return strcmp(peer->identity, identity) == 0;
}

const char *rr_net_peer_target(const struct rr_net_peer *peer)
{
    return peer->target ? peer->target : "";
}

const char *rr_net_peer_address(const struct rr_net_peer *peer)
{
    return peer->address;
}

bool rr_net_peer_up(const struct rr_net_peer *peer)
{
    return peer->up;
}

bool rr_net_peer_dialed(const struct rr_net_peer *peer)
{
    return peer->dialed;
}

uint64_t rr_net_peer_rtt_ns(const struct rr_net_peer *peer)
{
    struct tcp_info info;
    socklen_t len = sizeof(info);

    if (!peer->main || peer->main->unix_socket ||
        getsockopt(peer->main->fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0)
        return 0;
    return info.tcpi_rtt * 1000ull;
}

void rr_net_peer_set_data(struct rr_net_peer *peer, void *data)
{
    peer->data = data;
}

void *rr_net_peer_data(const struct rr_net_peer *peer)
{
    return peer->data;
}
