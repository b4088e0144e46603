/* SPDX-License-Identifier: Apache-2.0 */
/* Names to addresses. getaddrinfo() may wait for many seconds, so each question has a thread, which
 * lives on when nobody wants its answer any more. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/util.h"
#include "channel/netio.h"

#define MAX_QUESTIONS 16

struct question {
    struct question *next; /* of the answered ones */
    struct resolver *resolver;
    const struct rr_net_peer *peer; /* what for; only the net's thread looks at it */
    char host[256], port[16];
    struct sockaddr_storage addresses[RR_NET_MAX_ADDRESSES];
    uint32_t n;
    char failure[128];
};

struct resolver {
    pthread_mutex_t lock;
    unsigned int refs; /* of the net and of each thread */
    int fd;
    struct question *answered;
    struct question *asked[MAX_QUESTIONS]; /* the net's thread only */
};

static void unref(struct resolver *r)
{
    bool last;

    pthread_mutex_lock(&r->lock);
    last = --r->refs == 0;
    pthread_mutex_unlock(&r->lock);
    if (!last)
        return;
    while (r->answered) {
        struct question *q = r->answered;

        r->answered = q->next;
        free(q);
    }
    pthread_mutex_destroy(&r->lock);
    close(r->fd);
    free(r);
}

struct resolver *resolver_new(int *ret_fd)
{
    struct resolver *r = calloc(1, sizeof(*r));

    if (!r)
        return NULL;
    r->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->fd < 0) {
        free(r);
        return NULL;
    }
    pthread_mutex_init(&r->lock, NULL);
    r->refs = 1;
    *ret_fd = r->fd;
    return r;
}

void resolver_free(struct resolver *r)
{
    if (r)
        unref(r);
}

static void look_up(struct question *q)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
    struct addrinfo *list = NULL;
    int r = getaddrinfo(q->host, q->port, &hints, &list);

    if (r) {
        snprintf(q->failure, sizeof(q->failure), "%s",
                 r == EAI_SYSTEM ? strerror(errno) : gai_strerror(r));
        return;
    }
    for (const struct addrinfo *a = list; a && q->n < RR_NET_MAX_ADDRESSES; a = a->ai_next)
        if ((a->ai_family == AF_INET || a->ai_family == AF_INET6) &&
            a->ai_addrlen <= sizeof(q->addresses[0]))
            memcpy(&q->addresses[q->n++], a->ai_addr, a->ai_addrlen);
    freeaddrinfo(list);
}

static void *thread(void *data)
{
    struct question *q = data;
    struct resolver *r = q->resolver;
    uint64_t one = 1;

    look_up(q);
    pthread_mutex_lock(&r->lock);
    q->next = r->answered;
    r->answered = q;
    (void)!write(r->fd, &one, sizeof(one));
    pthread_mutex_unlock(&r->lock);
    unref(r);
    return NULL;
}

int resolver_ask(struct resolver *r, struct rr_net_peer *peer, const char *host, const char *port)
{
    struct question *q;
    pthread_attr_t attr;
    pthread_t id;
    sigset_t all, before;
    size_t n = 0;
    int error;

    while (n < MAX_QUESTIONS && r->asked[n])
        n++;
    if (n == MAX_QUESTIONS)
        return -EAGAIN;
    q = calloc(1, sizeof(*q));
    if (!q)
        return -ENOMEM;
    q->resolver = r;
    q->peer = peer;
    snprintf(q->host, sizeof(q->host), "%s", host);
    snprintf(q->port, sizeof(q->port), "%s", port);
    pthread_mutex_lock(&r->lock);
    r->refs++;
    pthread_mutex_unlock(&r->lock);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* they are the caller's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&id, &attr, thread, q);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (error) {
        unref(r);
        free(q);
        return -error;
    }
    r->asked[n] = q;
    return 0;
}

void resolver_forget(struct resolver *r, const struct rr_net_peer *peer)
{
    for (size_t n = 0; r && n < MAX_QUESTIONS; n++)
        if (r->asked[n] && r->asked[n]->peer == peer)
            r->asked[n]->peer = NULL;
}

void resolver_collect(struct resolver *r)
{
    struct question *q;
    uint64_t count;

    (void)!read(r->fd, &count, sizeof(count));
    pthread_mutex_lock(&r->lock);
    q = rr_take(r->answered);
    pthread_mutex_unlock(&r->lock);
    while (q) {
        struct question *next = q->next;

        for (size_t n = 0; n < MAX_QUESTIONS; n++)
            if (r->asked[n] == q)
                r->asked[n] = NULL;
        if (q->peer) /* who asked lives, and waits for it */
            peer_resolved((struct rr_net_peer *)(uintptr_t)q->peer, q->addresses, q->n,
                          q->failure[0] ? q->failure : "the name has no address");
        free(q);
        q = next;
    }
}

/* --- addresses ------------------------------------------------------------------------------- */

bool net_split(const char *text, char *host, size_t host_size, char *port, size_t port_size)
{
    const char *colon = strrchr(text, ':'), *end = colon;
    unsigned long number;
    char *rest;
    size_t n;

    if (!colon || !colon[1])
        return false;
    if (*text == '[') {
        text++;
        if (end == text || end[-1] != ']')
            return false;
        end--;
    } else if (memchr(text, ':', (size_t)(colon - text))) {
        return false; /* an IPv6 address needs brackets */
    }
    n = (size_t)(end - text);
    number = strtoul(colon + 1, &rest, 10);
    if (n >= host_size || *rest || number > 65535 || colon[1] < '0' || colon[1] > '9')
        return false;
    memcpy(host, text, n);
    host[n] = 0;
    snprintf(port, port_size, "%lu", number);
    return true;
}

bool net_numeric(const char *host, const char *port, bool passive, struct sockaddr_storage *ret)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV |
                                               (passive ? AI_PASSIVE : 0)};
    struct addrinfo *list = NULL;

    if (passive && strcmp(host, "localhost") == 0)
        host = "127.0.0.1";
    if (!*host && passive)
        host = "::";
    if (getaddrinfo(host, port, &hints, &list) != 0)
        return false;
    *ret = (struct sockaddr_storage){0};
    memcpy(ret, list->ai_addr, list->ai_addrlen);
    freeaddrinfo(list);
    return true;
}

socklen_t net_address_len(const struct sockaddr_storage *a)
{
    if (a->ss_family == AF_INET)
        return sizeof(struct sockaddr_in);
    if (a->ss_family == AF_INET6)
        return sizeof(struct sockaddr_in6);
    return sizeof(struct sockaddr_un);
}

void net_address_text(const struct sockaddr_storage *a, char *ret, size_t size)
{
    char host[64], port[16];

    if (a->ss_family == AF_UNIX) {
        const struct sockaddr_un *u = (const void *)a;

        snprintf(ret, size, "unix:%.*s", (int)sizeof(u->sun_path) - 1, u->sun_path);
    } else if (getnameinfo((const void *)a, net_address_len(a), host, sizeof(host), port,
                           sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) == 0) {
        snprintf(ret, size, a->ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    } else {
        snprintf(ret, size, "?");
    }
}
