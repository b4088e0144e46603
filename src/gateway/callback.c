/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POSTs by libcurl. Redirects are not followed and proxies not
 * asked: who is called is who was allowed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/async.h"
#include "gateway/curl.h"

#define MAX_PARALLEL 64u
#define MAX_ANSWER 65536u /* bytes of an answer, which nobody reads */
#define CONNECT_MS 10000L

/* One that is under way. */
struct transfer {
    struct transfer *next;
    struct callbacks *cb;
    struct post *post;
    CURL *easy;
    struct curl_slist *headers;
    uint64_t sent, received;
    char refused[64]; /* the address that its name has, where it may not go; empty: none */
};

struct callbacks {
    const struct rr_curl *f;
    const struct rr_gateway_options *o;
    CURLM *multi;
    pthread_t thread;
    bool runs;
    pthread_mutex_t lock;
    struct post *first, *last; /* under the lock: that wait */
    bool stop;                 /* under the lock */
    struct transfer *transfers;
    unsigned int n_transfers;
};

/* --- who may be called ----------------------------------------------------------------------- */

/* HOST[:PORT] or [IPv6][:PORT]; *.DOMAIN for all below it. */
bool rr_gateway_callback_ok(const char *allowed)
{
    size_t n = strlen(allowed);

    return n > 0 && n < 300 && strpbrk(allowed, "/@?# \t") == NULL && strcmp(allowed, "*") != 0 &&
           (allowed[0] != '*' || (allowed[1] == '.' && allowed[2]));
}

static bool matches(const char *entry, const char *host, const char *port)
{
    const char *bracket = strrchr(entry, ']'), *colon = strrchr(entry, ':');
    size_t len = strlen(entry), host_len = strlen(host);

    if (colon && (!bracket || colon > bracket)) {
        if (strcmp(colon + 1, port) != 0)
            return false;
        len = (size_t)(colon - entry);
    }
    if (entry[0] == '*') {
        entry++;
        len--;
        return host_len > len && strncasecmp(host + host_len - len, entry, len) == 0;
    }
    return host_len == len && strncasecmp(host, entry, len) == 0;
}

static const char *judge(const struct callbacks *cb, CURLU *u, const char *url)
{
    char *scheme = NULL, *host = NULL, *port = NULL, *user = NULL;
    const char *why = "X-Callback-Url is no http:// or https:// URL";

    if (strlen(url) <= CALL_MAX_URL && cb->f->url_set(u, CURLUPART_URL, url, 0) == 0 &&
        cb->f->url_get(u, CURLUPART_SCHEME, &scheme, 0) == 0 &&
        (strcmp(scheme, "http") == 0 || strcmp(scheme, "https") == 0) &&
        cb->f->url_get(u, CURLUPART_HOST, &host, 0) == 0 &&
        cb->f->url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == 0) {
        why =
            "the host of X-Callback-Url is none that the server's operator allows: see --callback";
        for (size_t n = 0; n < cb->o->n_callbacks; n++)
            if (matches(cb->o->callbacks[n], host, port))
                why = NULL;
        if (cb->f->url_get(u, CURLUPART_USER, &user, 0) == 0)
            why = "X-Callback-Url must not have a user";
    }
    cb->f->free(scheme);
    cb->f->free(host);
    cb->f->free(port);
    cb->f->free(user);
    return why;
}

/* The parser that reads it here is the one that will follow it. */
const char *rr_callback_refused(struct callbacks *cb, const char *url)
{
    const char *why;
    CURLU *u;

    if (!cb || !cb->o->n_callbacks)
        return "this server calls nobody back: see --callback";
    u = cb->f->url();
    why = u ? judge(cb, u, url) : "the server is short of memory";
    cb->f->url_cleanup(u);
    return why;
}

/* --- transfers ------------------------------------------------------------------------------- */

static size_t give(char *to, size_t size, size_t n, void *user)
{
    struct transfer *t = user;
    const struct post *p = t->post;
    size_t len = (size_t)rr_min(size * n, p->len - t->sent);

    if (len && p->read(p->reader, t->sent, to, len))
        return CURL_READFUNC_ABORT;
    t->sent += len;
    return len;
}

/* For a connection that turned out to be closed. */
static int rewind_body(void *user, curl_off_t offset, int origin)
{
    struct transfer *t = user;

    if (origin != SEEK_SET || offset < 0)
        return CURL_SEEKFUNC_CANTSEEK;
    t->sent = (uint64_t)offset;
    return CURL_SEEKFUNC_OK;
}

static size_t drop(char *data, size_t size, size_t n, void *user)
{
    struct transfer *t = user;

    (void)data;
    t->received += size * n;
    return t->received > MAX_ANSWER ? 0 : size * n; /* less than came: it is broken off */
}

/* Literal addresses are what was allowed itself. */
static bool has_name(const struct rr_curl *f, const char *url)
{
    CURLU *u = f->url();
    char *host = NULL;
    struct in_addr a;
    bool name = !u || f->url_set(u, CURLUPART_URL, url, 0) ||
                f->url_get(u, CURLUPART_HOST, &host, 0) ||
                (host[0] != '[' && inet_pton(AF_INET, host, &a) != 1);

    f->free(host);
    f->url_cleanup(u);
    return name;
}

/* The one moment at which it is known whom a name means, and nothing was sent yet. */
static curl_socket_t open_socket(void *user, curlsocktype purpose, struct curl_sockaddr *a)
{
    struct transfer *t = user;
    const struct rr_gateway_options *o = t->cb->o;
    char text[NI_MAXHOST] = "?";

    (void)purpose;
    if (rr_callback_address_ok(&a->addr, a->addrlen, o->callback_nets, o->n_callback_nets))
        return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
    getnameinfo(&a->addr, a->addrlen, text, sizeof(text), NULL, 0, NI_NUMERICHOST);
    snprintf(t->refused, sizeof(t->refused), "%.63s", text);
    return CURL_SOCKET_BAD;
}

static void set_options(const struct rr_curl *f, struct transfer *t, const char *ca)
{
    const struct post *p = t->post;
    CURL *e = t->easy;

    f->setopt(e, CURLOPT_URL, p->url);
    f->setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
    f->setopt(e, CURLOPT_FOLLOWLOCATION, 0L);
    f->setopt(e, CURLOPT_PROXY, "");
    f->setopt(e, CURLOPT_NOSIGNAL, 1L);
    f->setopt(e, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_MS);
    f->setopt(e, CURLOPT_TIMEOUT_MS, (long)(p->timeout_ns / 1000000 + 1));
    f->setopt(e, CURLOPT_HTTPHEADER, t->headers);
    f->setopt(e, CURLOPT_USERAGENT, "roadrunner/" RR_VERSION);
    f->setopt(e, CURLOPT_POST, 1L);
    f->setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)p->len);
    if (p->len) {
        f->setopt(e, CURLOPT_READFUNCTION, give);
        f->setopt(e, CURLOPT_READDATA, t);
        f->setopt(e, CURLOPT_SEEKFUNCTION, rewind_body);
        f->setopt(e, CURLOPT_SEEKDATA, t);
    } else {
        f->setopt(e, CURLOPT_POSTFIELDS, "");
    }
    f->setopt(e, CURLOPT_WRITEFUNCTION, drop);
    f->setopt(e, CURLOPT_WRITEDATA, t);
    if (ca)
        f->setopt(e, CURLOPT_CAINFO, ca);
    if (p->chosen && has_name(f, p->url)) {
        f->setopt(e, CURLOPT_OPENSOCKETFUNCTION, open_socket);
        f->setopt(e, CURLOPT_OPENSOCKETDATA, t);
    }
    f->setopt(e, CURLOPT_PRIVATE, t);
}

static void end_transfer(struct callbacks *cb, struct transfer *t)
{
    struct transfer **at;

    for (at = &cb->transfers; *at && *at != t; at = &(*at)->next)
        ;
    if (*at) {
        *at = t->next;
        cb->n_transfers--;
    }
    if (t->easy) {
        cb->f->multi_remove(cb->multi, t->easy);
        cb->f->cleanup(t->easy);
    }
    cb->f->free_list(t->headers);
    free(t);
}

static bool add_headers(const struct rr_curl *f, struct transfer *t)
{
    for (char **h = t->post->headers; h && *h; h++) {
        struct curl_slist *more = f->append(t->headers, *h);

        if (!more)
            return false;
        t->headers = more;
    }
    return true;
}

static void begin(struct callbacks *cb, struct post *p)
{
    struct transfer *t = calloc(1, sizeof(*t));

    p->status = 0;
    snprintf(p->error, sizeof(p->error), "there is no memory for it");
    if (!t) {
        p->done(p);
        return;
    }
    t->cb = cb;
    t->post = p;
    t->easy = cb->f->init();
    if (t->easy && add_headers(cb->f, t)) {
        set_options(cb->f, t, cb->o->callback_ca);
        if (cb->f->multi_add(cb->multi, t->easy) == CURLM_OK) {
            t->next = cb->transfers;
            cb->transfers = t;
            cb->n_transfers++;
            return;
        }
    }
    end_transfer(cb, t);
    p->done(p);
}

/* Who answers at length has answered. */
static void set_outcome(const struct rr_curl *f, const struct transfer *t, CURLcode code)
{
    long status = 0;

    f->getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
    t->post->status = code == CURLE_OK || t->received > MAX_ANSWER ? (int)status : 0;
    if (code && t->refused[0])
        snprintf(t->post->error, sizeof(t->post->error),
                 "its host is at %s, where callbacks may not go: see --callback-net", t->refused);
    else
        snprintf(t->post->error, sizeof(t->post->error), "%s", f->text(code));
}

void rr_post_now(const struct rr_curl *f, const char *ca, struct post *p)
{
    struct transfer t = {.post = p, .easy = f->init()};

    p->status = 0;
    snprintf(p->error, sizeof(p->error), "there is no memory for it");
    if (t.easy && add_headers(f, &t)) {
        set_options(f, &t, ca);
        set_outcome(f, &t, f->perform(t.easy));
    }
    if (t.easy)
        f->cleanup(t.easy);
    f->free_list(t.headers);
}

static void take_ended(struct callbacks *cb)
{
    struct transfer *t;
    CURLMsg *m;
    int left;

    while ((m = cb->f->multi_read(cb->multi, &left))) {
        CURLcode code = m->data.result;
        struct post *p;

        if (m->msg != CURLMSG_DONE)
            continue;
        cb->f->getinfo(m->easy_handle, CURLINFO_PRIVATE, &t);
        p = t->post;
        set_outcome(cb->f, t, code);
        end_transfer(cb, t);
        p->done(p);
    }
}

static bool take_new(struct callbacks *cb)
{
    bool stop;

    pthread_mutex_lock(&cb->lock);
    while (cb->first && cb->n_transfers < MAX_PARALLEL) {
        struct post *p = cb->first;

        cb->first = p->next;
        if (!cb->first)
            cb->last = NULL;
        pthread_mutex_unlock(&cb->lock);
        begin(cb, p);
        pthread_mutex_lock(&cb->lock);
    }
    stop = cb->stop;
    pthread_mutex_unlock(&cb->lock);
    return !stop;
}

static void *callbacks_main(void *user)
{
    struct callbacks *cb = user;
    int running;

    while (take_new(cb)) {
        cb->f->multi_perform(cb->multi, &running);
        take_ended(cb);
        cb->f->multi_poll(cb->multi, NULL, 0, 1000, NULL);
    }
    while (cb->transfers)
        end_transfer(cb, cb->transfers);
    return NULL;
}

/* --- all of it ------------------------------------------------------------------------------- */

int rr_callbacks_new(const struct rr_gateway_options *o, struct callbacks **ret,
                     struct rr_error *err)
{
    struct callbacks *cb = calloc(1, sizeof(*cb));
    int r;

    if (!cb)
        return rr_error_no_memory(err);
    pthread_mutex_init(&cb->lock, NULL);
    cb->o = o;
    r = rr_curl_load(&cb->f, err);
    if (r == 0 && o->callback_ca && access(o->callback_ca, R_OK) < 0)
        r = rr_error_set(err, RR_E_NOINPUT, "name a PEM file with certificates of authorities",
                         "cannot read %.300s: %s", o->callback_ca, strerror(errno));
    if (r == 0 && !(cb->multi = cb->f->multi_init()))
        r = rr_error_no_memory(err);
    if (r == 0 && pthread_create(&cb->thread, NULL, callbacks_main, cb) != 0)
        r = rr_error_set(err, RR_E_SYSTEM, "raise the limit on threads", "cannot start a thread");
    if (r) {
        if (cb->multi)
            cb->f->multi_cleanup(cb->multi);
        pthread_mutex_destroy(&cb->lock);
        free(cb);
        return r;
    }
    cb->runs = true;
    *ret = cb;
    return 0;
}

void rr_callbacks_send(struct callbacks *cb, struct post *p)
{
    p->next = NULL;
    pthread_mutex_lock(&cb->lock);
    if (cb->last)
        cb->last->next = p;
    else
        cb->first = p;
    cb->last = p;
    pthread_mutex_unlock(&cb->lock);
    cb->f->multi_wakeup(cb->multi);
}

void rr_callbacks_free(struct callbacks *cb)
{
    if (!cb)
        return;
    pthread_mutex_lock(&cb->lock);
    cb->stop = true;
    pthread_mutex_unlock(&cb->lock);
    cb->f->multi_wakeup(cb->multi);
    pthread_join(cb->thread, NULL);
    cb->f->multi_cleanup(cb->multi);
    pthread_mutex_destroy(&cb->lock);
    free(cb);
}
