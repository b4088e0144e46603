/* SPDX-License-Identifier: Apache-2.0 */
#include "channel/net.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "channel/netio.h"

#define BACKLOG 512
#define MAX_TRIES 5    /* to take the place of who listens */
#define MAX_ACCEPTS 64 /* at once */
#define MAX_SOURCES 64 /* that one pump looks at */
#define LOG_AGAIN_NS 60000000000ull
#define TICK_NS 20000000ull /* timers may be late by this, so that many are looked at together */
#define MAX_SKIPPED 16 /* pumps that look at the hot connection alone, before all have a turn */

static const char *const log_texts[RR_NET_LOG_KINDS] = {
    [LOG_ACCEPT] = "cannot accept a peer",
    [LOG_TLS] = "TLS failed",
    [LOG_GREETING] = "a peer did not greet properly",
    [LOG_RULE] = "a peer broke a rule",
    [LOG_BUSY] = "a limit was reached",
    [LOG_ADMIT] = "a peer is not welcome",
    [LOG_LOST] = "a peer was lost",
    [LOG_DIAL] = "dialing",
    [LOG_SILENT] = "a peer is silent",
    [LOG_TIMEOUT] = "a peer is too slow",
    [LOG_REFUSED] = "a session was refused",
    [LOG_MEMORY] = "out of memory",
};

void net_log(struct rr_net *net, enum log_kind kind, const char *fmt, ...)
{
    uint64_t now = rr_now_ns();
    char text[640], more[48] = "";
    va_list ap;

    if (net->closing)
        return;
    if (net->logged[kind].at_ns && now < net->logged[kind].at_ns + LOG_AGAIN_NS) {
        net->logged[kind].n++;
        return;
    }
    if (net->logged[kind].n)
        snprintf(more, sizeof(more), " (and %u before it)", net->logged[kind].n);
    net->logged[kind].at_ns = now;
    net->logged[kind].n = 0;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    rr_log(1, "network: %s: %s%s", log_texts[kind], text, more);
}

void net_arm(struct rr_net *net, uint64_t at_ns)
{
    if (at_ns < net->next_ns)
        net->next_ns = at_ns;
}

/* --- events ---------------------------------------------------------------------------------- */

static void event_free(struct event *e)
{
    rr_region_put(e->region);
    free(e->head);
    free(e->err);
    peer_unref(e->peer);
    free(e);
}

struct event *net_event(struct rr_net_peer *peer, enum event_kind kind, size_t len)
{
    struct rr_net *net = peer->net;
    struct event *e = malloc(sizeof(*e) + len);

    if (!e) {
        if (peer->main)
            conn_fail(peer->main, LOG_MEMORY, "no memory for what has come");
        return NULL;
    }
    *e = (struct event){.kind = kind, .peer = peer, .session = peer->n_sessions, .len = len};
    peer_ref(peer);
    if (net->events)
        net->events_last->next = e;
    else
        net->events = e;
    net->events_last = e;
    if (!net->pumping)
        net->again = true;
    return e;
}

void net_event_error(struct event *e, const struct rr_error *err)
{
    e->err = malloc(sizeof(*e->err));
    if (e->err)
        *e->err = *err;
}

static void deliver_one(struct rr_net *net, struct event *e)
{
    static const struct rr_error unknown = {.code = RR_E_DIED, .text = "the session has ended"};
    const struct rr_net_events *on = &net->o.events;
    struct rr_net_peer *peer = e->peer;

    if (peer->freed && e->kind != EVENT_DONE)
        return;
    switch (e->kind) {
    case EVENT_MESSAGE:
        message_deliver(e);
        break;
    case EVENT_CONTROL:
        if (on->control)
            on->control(net->o.user, peer, e->word, e->data, e->len);
        if (peer->n_sessions == e->session)
            peer->granted.control_bytes += e->len + RR_NET_CONTROL_COST;
        break;
    case EVENT_ADMIT:
        peer_admit(e);
        break;
    case EVENT_UP:
        if (on->up)
            on->up(net->o.user, peer);
        break;
    case EVENT_DOWN:
        if (on->down)
            on->down(net->o.user, peer, e->err ? e->err : &unknown, !peer->dialed);
        break;
    case EVENT_DONE:
        if (on->done)
            on->done(net->o.user, peer, e->cookie, e->target, e->acked, e->lost, e->err);
        break;
    case EVENT_READY:
        if (on->ready && peer->up)
            on->ready(net->o.user, peer);
        break;
    case EVENT_CANCELLED:
        if (on->cancelled)
            on->cancelled(net->o.user, peer, e->handle);
        break;
    case EVENT_NOTHING:
    default:
        return;
    }
    net->n_delivered += e->kind != EVENT_MESSAGE;
}

static void deliver_all(struct rr_net *net)
{
    while (net->events) {
        struct event *e = net->events;

        net->events = e->next;
        deliver_one(net, e);
        event_free(e);
    }
}

bool net_direct(const struct rr_net *net)
{
    return net->deliver && !net->events;
}

/* --- listeners ------------------------------------------------------------------------------- */

/* Room for one more that has not greeted: the oldest such one goes. */
static void make_room(struct rr_net *net)
{
    struct conn *oldest = NULL;

    for (struct conn *c = net->conns; c; c = c->next)
        if (c->accepted && !c->peer)
            oldest = c;
    if (!oldest)
        return;
    net->stats.refused_connections++;
    conn_fail(oldest, LOG_BUSY, "more than %u connections have not greeted", net->o.max_pending);
}

static void on_accept(struct rr_net *net, const struct listener *l)
{
    for (int n = 0; n < MAX_ACCEPTS; n++) {
        struct sockaddr_storage a = {0};
        socklen_t len = sizeof(a);
        int fd = accept4(l->fd, (struct sockaddr *)&a, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        struct conn *c;

        if (fd < 0) {
            if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
                net_log(net, LOG_ACCEPT, "%s", strerror(errno));
                make_room(net); /* descriptors are short */
            }
            return;
        }
        if (net->n_pending >= net->o.max_pending)
            make_room(net);
        c = conn_new(net, fd, true, l->unix_socket);
        if (!c) {
            net_log(net, LOG_ACCEPT, "no memory");
            close(fd);
            return;
        }
        net->n_pending++;
        if (l->unix_socket)
            snprintf(c->address, sizeof(c->address), "%.79s", l->path);
        else
            net_address_text(&a, c->address, sizeof(c->address));
        peer_accepted(c);
    }
}

static int listen_failed(struct rr_error *err, const char *at, int error)
{
    rr_error_set(err, RR_E_SYSTEM, "choose another address, or port 0", "cannot listen on %s: %s",
                 at, strerror(error));
    return -RR_E_SYSTEM;
}

static int listen_on(const struct sockaddr_storage *a)
{
    int fd = socket(a->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1, none = 0;
    int r;

    if (fd < 0)
        return -errno;
    if (a->ss_family != AF_UNIX)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (a->ss_family == AF_INET6) /* "::" takes IPv4 peers, too */
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &none, sizeof(none));
    if (bind(fd, (const void *)a, net_address_len(a)) < 0 || listen(fd, BACKLOG) < 0) {
        r = -errno;
        close(fd);
        return r;
    }
    return fd;
}

/* Instead of whoever was here before; who takes his place back may be faster, once. */
static int listen_unix(const struct sockaddr_storage *a)
{
    const struct sockaddr_un *u = (const void *)a;
    int r = -EADDRINUSE;

    for (int n = 0; n < MAX_TRIES && r == -EADDRINUSE; n++) {
        unlink(u->sun_path);
        r = listen_on(a);
    }
    return r;
}

static int parse_listen(const char *at, struct sockaddr_storage *a, struct rr_error *err)
{
    const char *path = strncmp(at, "unix:", 5) == 0 ? at + 5 : NULL;
    struct sockaddr_un *u = (void *)a;
    char host[256], port[16];

    *a = (struct sockaddr_storage){0};
    if (path && *path && strnlen(path, sizeof(u->sun_path)) < sizeof(u->sun_path)) {
        u->sun_family = AF_UNIX;
        memcpy(u->sun_path, path, strlen(path));
        return 0;
    }
    if (!path && net_split(at, host, sizeof(host), port, sizeof(port)) &&
        net_numeric(host, port, true, a))
        return 0;
    return rr_error_set(err, RR_E_USAGE, "write address:port, [v6]:port, :port or unix:/path",
                        "'%s' is no address to listen on", at);
}

static ino_t inode_of(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0 ? st.st_ino : 0;
}

static bool still_ours(const struct listener *l)
{
    return l->inode && inode_of(l->path) == l->inode;
}

int rr_net_listen(struct rr_net *net, const char *at, struct rr_error *err)
{
    struct sockaddr_storage a;
    struct listener *l;
    struct epoll_event e = {.events = EPOLLIN};
    socklen_t len = sizeof(a);
    int r = parse_listen(at, &a, err);

    if (r)
        return -r;
    r = a.ss_family == AF_UNIX ? listen_unix(&a) : listen_on(&a);
    if (r == -EAFNOSUPPORT && at[0] == ':') { /* a node without IPv6 */
        char v4[32];

        snprintf(v4, sizeof(v4), "0.0.0.0%.20s", at);
        return rr_net_listen(net, v4, err);
    }
    if (r < 0)
        return listen_failed(err, at, -r);
    l = calloc(1, sizeof(*l));
    e.data.ptr = l;
    if (!l || epoll_ctl(net->epoll_fd, EPOLL_CTL_ADD, r, &e) < 0) {
        close(r);
        free(l);
        return listen_failed(err, at, ENOMEM);
    }
    *l = (struct listener){
        .kind = SOURCE_LISTENER, .next = net->listeners, .fd = r, .unix_socket = at[0] == 'u'};
    net->listeners = l;
    if (l->unix_socket) {
        snprintf(l->path, sizeof(l->path), "%s", at + 5);
        l->inode = inode_of(l->path);
        l->mode = 0600;
        return 0;
    }
    getsockname(l->fd, (struct sockaddr *)&a, &len);
    return ntohs(a.ss_family == AF_INET ? ((struct sockaddr_in *)(void *)&a)->sin_port
                                        : ((struct sockaddr_in6 *)(void *)&a)->sin6_port);
}

/* Of another type than what listens there: it is refused for that, and nobody is disturbed. */
static bool somebody_listens(const struct sockaddr_storage *a)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool nobody =
        fd >= 0 && connect(fd, (const void *)a, net_address_len(a)) < 0 && errno == ECONNREFUSED;

    if (fd >= 0)
        close(fd);
    return !nobody;
}

static void listen_again(struct rr_net *net, struct listener *l)
{
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = l};
    struct sockaddr_storage a = {0};
    struct sockaddr_un *u = (void *)&a;
    int fd;

    u->sun_family = AF_UNIX;
    memcpy(u->sun_path, l->path, sizeof(u->sun_path));
    if (inode_of(l->path) && somebody_listens(&a))
        return;
    fd = listen_unix(&a);
    if (fd < 0 || epoll_ctl(net->epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0) {
        rr_close_cleanup(&fd);
        return;
    }
    close(l->fd);
    l->fd = fd;
    l->inode = inode_of(l->path);
    chmod(l->path, l->mode);
    rr_log(2, "nobody listened at %s any more: we do", l->path);
}

void rr_net_listen_again(struct rr_net *net)
{
    struct stat st;

    for (struct listener *l = net->listeners; l; l = l->next) {
        if (!l->unix_socket)
            continue;
        if (lstat(l->path, &st) == 0 && st.st_ino == l->inode)
            l->mode = st.st_mode & 0777;
        else
            listen_again(net, l);
    }
}

/* --- nets ------------------------------------------------------------------------------------ */

static void set_defaults(struct rr_net_options *o)
{
    o->n_bulk = o->n_bulk ? o->n_bulk : 1;
    o->n_bulk = o->n_bulk > RR_WIRE_MAX_BULK ? RR_WIRE_MAX_BULK : o->n_bulk;
    o->max_peers = o->max_peers ? o->max_peers : 1024;
    o->max_pending = o->max_pending ? o->max_pending : 256;
    o->window_messages = o->window_messages ? o->window_messages : 1024;
    if (o->window_messages > RR_WIRE_MAX_WINDOW)
        o->window_messages = RR_WIRE_MAX_WINDOW;
    o->window_inline_bytes = o->window_inline_bytes ? o->window_inline_bytes : 16 * RR_MIB;
    if (o->window_inline_bytes < RR_MIB) /* a message must fit what is left of three quarters */
        o->window_inline_bytes = RR_MIB;
    o->window_bulk_bytes = o->window_bulk_bytes ? o->window_bulk_bytes : 4 * RR_GIB;
    o->handshake_ns = o->handshake_ns ? o->handshake_ns : 5000000000u;
    o->ping_ns = o->ping_ns ? o->ping_ns : 2000000000u;
    o->patience_ns = o->patience_ns ? o->patience_ns : 10000000000u;
    o->backoff_ns = o->backoff_ns ? o->backoff_ns : 50000000u;
    o->backoff_max_ns = o->backoff_max_ns ? o->backoff_max_ns : 5000000000u;
}

static int copy_options(struct rr_net *net, const struct rr_net_options *o, struct rr_error *err)
{
    struct rr_wire_hello h = {.n_texts = o->n_texts, .texts = o->texts};
    const size_t room = RR_WIRE_HEADER + RR_WIRE_MAX_HELLO;
    uint8_t *bytes = malloc(room);
    /* one text is ours */
    bool fits =
        bytes && o->n_texts < RR_WIRE_MAX_TEXTS && rr_wire_put_hello(bytes, room - 256, &h) > 0;

    free(bytes);
    net->o = *o;
    net->o.texts = NULL;
    net->o.tls = (struct rr_net_tls){0};
    if (!fits)
        return rr_error_set(err, RR_E_INVALID, NULL, "what this node announces is too long");
    set_defaults(&net->o);
    net->o.texts = calloc(o->n_texts + 1, sizeof(*o->texts));
    if (!net->o.texts)
        return rr_error_set(err, RR_E_SYSTEM, NULL, "no memory for the network");
    if (o->n_texts)
        memcpy(net->o.texts, o->texts, o->n_texts * sizeof(*o->texts));
    if (o->plain)
        return 0;
    if (!o->tls.cert_file || !o->tls.key_file || !o->tls.ca_file)
        return rr_error_set(err, RR_E_USAGE, "name its files, or ask for plain TCP by name",
                            "TLS needs a certificate, its key and the CA's certificate");
    net->o.tls.cert_file = strdup(o->tls.cert_file);
    net->o.tls.key_file = strdup(o->tls.key_file);
    net->o.tls.ca_file = strdup(o->tls.ca_file);
    if (!net->o.tls.cert_file || !net->o.tls.key_file || !net->o.tls.ca_file)
        return rr_error_set(err, RR_E_SYSTEM, NULL, "no memory for the network");
    return rr_net_reload_tls(net, err);
}

static int set_up(struct rr_net *net, struct rr_error *err)
{
    static enum source_kind resolver_source = SOURCE_RESOLVER;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &resolver_source};
    int fd = -1;

    net->scratch = malloc(RR_NET_SCRATCH);
    net->targets = calloc(RR_WIRE_MAX_TARGETS, sizeof(*net->targets));
    net->names = malloc((size_t)RR_WIRE_NAMES_BYTES);
    net->resolver = resolver_new(&fd);
    net->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!net->scratch || !net->targets || !net->names || !net->resolver || net->epoll_fd < 0 ||
        epoll_ctl(net->epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0)
        return rr_error_set(err, RR_E_SYSTEM, "raise the limits on memory and descriptors",
                            "cannot set up the network");
    return 0;
}

int rr_net_new(const struct rr_net_options *options, struct rr_net **ret, struct rr_error *err)
{
    struct rr_net *net = calloc(1, sizeof(*net));
    struct sigaction pipe_action;
    int r;

    if (!net)
        return rr_error_set(err, RR_E_SYSTEM, NULL, "no memory for the network");
    if (sigaction(SIGPIPE, NULL, &pipe_action) == 0 && pipe_action.sa_handler == SIG_DFL)
        signal(SIGPIPE, SIG_IGN); /* sendfile() takes no MSG_NOSIGNAL */
    net->epoll_fd = -1;
    net->next_ns = UINT64_MAX;
    net->now_ns = rr_now_ns();
    r = copy_options(net, options, err);
    if (r == 0)
        r = set_up(net, err);
    if (r) {
        rr_net_free(net);
        return r;
    }
    *ret = net;
    return 0;
}

int rr_net_reload_tls(struct rr_net *net, struct rr_error *err)
{
    SSL_CTX *server, *client;
    int r;

    if (net->o.plain)
        return 0;
    r = tls_load(&net->o, &server, &client, err);
    if (r)
        return r;
    SSL_CTX_free(net->server);
    SSL_CTX_free(net->client);
    net->server = server;
    net->client = client;
    return 0;
}

static void free_closed(struct rr_net *net)
{
    while (net->closed) {
        struct conn *c = net->closed;

        net->closed = c->next;
        bytes_free(&c->part);
        free(c);
    }
}

static void free_strings(struct rr_net *net)
{
    free((void *)(uintptr_t)net->o.tls.cert_file);
    free((void *)(uintptr_t)net->o.tls.key_file);
    free((void *)(uintptr_t)net->o.tls.ca_file);
    free(net->o.texts);
}

void rr_net_free(struct rr_net *net)
{
    if (!net)
        return;
    net->closing = true;
    net->pumping = true;
    while (net->listeners) {
        struct listener *l = net->listeners;

        net->listeners = l->next;
        close(l->fd);
        if (l->unix_socket && still_ours(l)) /* or a newer process has taken its place */
            unlink(l->path);
        free(l);
    }
    for (struct rr_net_peer *peer = net->peers, *next; peer; peer = next) {
        next = peer->next;
        if (peer->main && peer->main->state == CONN_OPEN) {
            message_flush(peer);
            if (peer->main && conn_put_frame(peer->main, RR_WIRE_GOODBYE, 0, NULL, 0))
                conn_write(peer->main);
        }
        if (peer->main || peer->dialed)
            peer_end(peer, NULL);
    }
    while (net->conns)
        conn_close(net->conns);
    deliver_all(net);
    while (net->peers)
        peer_unref(net->peers);
    free_closed(net);
    message_free_spares(net);
    resolver_free(net->resolver);
    if (net->epoll_fd >= 0)
        close(net->epoll_fd);
    SSL_CTX_free(net->server);
    SSL_CTX_free(net->client);
    free_strings(net);
    bytes_free(&net->head);
    free(net->scratch);
    free(net->targets);
    free(net->names);
    free(net);
}

/* --- the pump -------------------------------------------------------------------------------- */

void conn_ready(struct conn *c, uint32_t events)
{
    char text[256];
    int r;

    switch (c->state) {
    case CONN_CONNECTING:
        if (c->peer && !c->accepted)
            peer_connected(c);
        break;
    case CONN_TLS:
        r = tls_handshake(c, text, sizeof(text));
        if (r < 0)
            conn_fail(c, LOG_TLS, "TLS: %s", text);
        else if (r > 0)
            peer_greet(c);
        else
            conn_want(c, EPOLLIN | (bytes_len(&c->cipher) ? EPOLLOUT : 0u));
        break;
    case CONN_GREETING:
    case CONN_ADMITTING:
    case CONN_OPEN:
        if (events & EPOLLOUT)
            conn_write(c);
        if (c->state == CONN_CLOSED)
            break;
        if (c->events & EPOLLIN) {
            if (conn_read(c) && !c->extra && c->state == CONN_OPEN)
                c->net->hot = c;
        } else if (events & (EPOLLHUP | EPOLLERR)) {
            conn_fail(c, LOG_LOST, "the connection ended");
        }
        break;
    case CONN_CLOSED:
    default:
        break;
    }
}

static void look(struct rr_net *net, const struct epoll_event *e)
{
    enum source_kind *kind = e->data.ptr;

    switch (*kind) {
    case SOURCE_CONN:
        conn_ready(e->data.ptr, e->events);
        break;
    case SOURCE_LISTENER:
        on_accept(net, e->data.ptr);
        break;
    case SOURCE_RESOLVER:
        resolver_collect(net->resolver);
        break;
    case SOURCE_WATCHED: /* it is the caller's to look at */
    default:
        break;
    }
    if (net->deliver)
        deliver_all(net);
}

static bool is_extra(const struct epoll_event *e)
{
    const struct conn *c = e->data.ptr;

    return c->kind == SOURCE_CONN && c->extra;
}

/* Small messages first: what is behind a large payload waits for megabytes. */
static int look_at_all(struct rr_net *net)
{
    struct epoll_event e[MAX_SOURCES];
    int n = epoll_wait(net->epoll_fd, e, MAX_SOURCES, 0);

    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    for (int i = 0; i < n; i++)
        if (!is_extra(&e[i]))
            look(net, &e[i]);
    for (int i = 0; i < n; i++)
        if (is_extra(&e[i])) /* a closed one is freed later, so it can be looked at */
            look(net, &e[i]);
    return 0;
}

static void look_at_timers(struct rr_net *net)
{
    struct rr_net_peer *next_peer;
    struct conn *next;

    /* Nothing is delivered meanwhile, so that no peer is freed. */

    if (net->now_ns < net->next_ns)
        return;
    net->next_ns = UINT64_MAX;
    for (struct rr_net_peer *peer = net->peers; peer; peer = next_peer) {
        next_peer = peer->next;
        peer_timer(peer);
    }
    for (struct conn *c = net->conns; c; c = next) {
        next = c->next;
        conn_timer(c);
        if (next && next->state == CONN_CLOSED)
            next = net->conns;
    }
    if (net->next_ns != UINT64_MAX)
        net->next_ns += TICK_NS;
}

/* Bytes that lie decrypted, where no descriptor tells of them. */
static void look_again(struct rr_net *net)
{
    struct conn *next;

    net->again = false;
    if (!net->server)
        return;
    for (struct conn *c = net->conns; c; c = next) {
        next = c->next;
        if (c->tls_more && (c->events & EPOLLIN) && c->state != CONN_TLS) {
            conn_read(c);
            if (next && next->state == CONN_CLOSED)
                next = net->conns;
        }
    }
}

static void flush_all(struct rr_net *net)
{
    while (net->dirty) {
        struct rr_net_peer *peer = net->dirty;

        net->dirty = peer->next_dirty;
        peer->dirty = false;
        message_flush(peer);
    }
}

void rr_net_flush(struct rr_net *net)
{
    if (net->pumping)
        return;
    net->pumping = true;
    flush_all(net);
    free_closed(net);
    net->pumping = false;
}

static void finish_pump(struct rr_net *net)
{
    if (net->deliver)
        deliver_all(net);
    if (!net->n_delivered) /* else what the caller does next may send something, to go along with */
        flush_all(net);
    free_closed(net);
    net->pumping = false;
    if (net->deliver && net->events)
        net->again = true;
}

static bool look_at_hot(struct rr_net *net)
{
    return net->hot && net->hot->state == CONN_OPEN && conn_read(net->hot);
}

int rr_net_pump(struct rr_net *net, bool deliver, struct rr_error *err)
{
    int r = 0;

    if (net->pumping)
        return 0;
    net->pumping = true;
    net->deliver = deliver;
    net->now_ns = rr_now_ns();
    net->n_delivered = 0;
    if (net->again)
        look_again(net);
    /* mostly it is the same connection again, and one system call less to look there at once */
    if (look_at_hot(net) && net->skipped++ < MAX_SKIPPED && !net->closed) {
        look_at_timers(net);
    } else {
        net->skipped = 0;
        r = look_at_all(net);
        look_at_timers(net);
    }
    finish_pump(net);
    if (r < 0) {
        rr_error_set(err, RR_E_SYSTEM, NULL, "cannot wait for the network: %s", strerror(-r));
        return -RR_E_SYSTEM;
    }
    return (int)net->n_delivered;
}

int rr_net_poll(struct rr_net *net, struct rr_error *err)
{
    if (net->pumping)
        return 0;
    if (!net->hot || net->again || net->events)
        return rr_net_pump(net, true, err);
    net->pumping = true;
    net->deliver = true;
    net->n_delivered = 0;
    look_at_hot(net);
    finish_pump(net);
    return (int)net->n_delivered;
}

int rr_net_watch(struct rr_net *net, int fd, bool on)
{
    static enum source_kind watched = SOURCE_WATCHED;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &watched};

    return epoll_ctl(net->epoll_fd, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, fd, &e) < 0 ? -errno : 0;
}

void rr_net_sleep(struct rr_net *net, uint64_t until_ns)
{
    uint64_t now = rr_now_ns(), ns;
    struct epoll_event e;
    struct timespec t;

    rr_net_flush(net);
    until_ns = rr_min(until_ns, rr_net_next_ns(net));
    ns = until_ns > now ? rr_min(until_ns - now, 3600000000000u) : 0;
    t = (struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
    if (epoll_pwait2(net->epoll_fd, &e, 1, &t, NULL) < 0 && errno == ENOSYS)
        epoll_wait(net->epoll_fd, &e, 1, (int)((ns + 999999) / 1000000));
}

int rr_net_fd(const struct rr_net *net)
{
    return net->epoll_fd;
}

uint64_t rr_net_next_ns(const struct rr_net *net)
{
    bool owes = false;

    for (const struct rr_net_peer *peer = net->dirty; peer && !owes; peer = peer->next_dirty)
        owes = message_owes(peer);
    return net->again || owes || net->events ? 0 : net->next_ns;
}

void rr_net_stats(const struct rr_net *net, struct rr_net_stats *ret)
{
    *ret = net->stats;
    for (const struct conn *c = net->conns; c; c = c->next) {
        struct tcp_info info = {0};
        socklen_t len = sizeof(info);

        if (!c->unix_socket && getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0)
            ret->retransmitted += info.tcpi_total_retrans;
    }
}
