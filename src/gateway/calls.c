/* SPDX-License-Identifier: Apache-2.0 */
/* Asynchronous messages in their order: by id, by time and in line; their payloads; and what
 * threads tell each other of them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/async.h"

#define FIRST_BUCKETS 1024u

/* --- payloads -------------------------------------------------------------------------------- */

struct blob *rr_blob_absent(uint64_t len)
{
    struct blob *b = calloc(1, sizeof(*b));

    if (!b)
        return NULL;
    atomic_store(&b->refs, 1);
    b->len = len;
    b->fd = -1;
    return b;
}

struct blob *rr_blob_new(uint64_t len)
{
    struct blob *b = rr_blob_absent(len);

    if (b && !(b->data = malloc(len ? len : 1)))
        free(rr_take(b));
    return b;
}

struct blob *rr_blob_ref(struct blob *b)
{
    atomic_fetch_add(&b->refs, 1);
    return b;
}

void rr_blob_unref(struct blob *b)
{
    if (!b || atomic_fetch_sub(&b->refs, 1) != 1)
        return;
    if (b->fd >= 0)
        close(b->fd);
    free(b->data);
    free(b);
}

int rr_blob_read(const struct blob *b, uint64_t at, void *to, size_t len)
{
    char *p = to;

    if (b->data) {
        memcpy(to, b->data + at, len);
        return 0;
    }
    while (len) {
        ssize_t n = pread(b->fd, p, len, (off_t)at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        p += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

/* --- lists, timers, ids ---------------------------------------------------------------------- */

void rr_list_add(struct list *l, struct call *c)
{
    c->list = l;
    c->next = NULL;
    c->prev = l->last;
    if (l->last)
        l->last->next = c;
    else
        l->first = c;
    l->last = c;
}

void rr_list_remove(struct call *c)
{
    struct list *l = c->list;

    if (!l)
        return;
    if (c->prev)
        c->prev->next = c->next;
    else
        l->first = c->next;
    if (c->next)
        c->next->prev = c->prev;
    else
        l->last = c->prev;
    c->list = NULL;
    c->prev = c->next = NULL;
}

static void heap_set(struct calls *a, size_t at, struct call *c)
{
    a->heap[at] = c;
    c->timer = at + 1;
}

static void heap_up(struct calls *a, size_t at)
{
    struct call *c = a->heap[at];

    for (; at > 0 && a->heap[(at - 1) / 2]->due_ns > c->due_ns; at = (at - 1) / 2)
        heap_set(a, at, a->heap[(at - 1) / 2]);
    heap_set(a, at, c);
}

static void heap_down(struct calls *a, size_t at)
{
    struct call *c = a->heap[at];

    for (size_t child; (child = 2 * at + 1) < a->n_timers; at = child) {
        if (child + 1 < a->n_timers && a->heap[child + 1]->due_ns < a->heap[child]->due_ns)
            child++;
        if (a->heap[child]->due_ns >= c->due_ns)
            break;
        heap_set(a, at, a->heap[child]);
    }
    heap_set(a, at, c);
}

void rr_timer_clear(struct calls *a, struct call *c)
{
    size_t at = c->timer - 1;
    struct call *last;

    if (!c->timer)
        return;
    c->timer = 0;
    last = a->heap[--a->n_timers];
    if (last == c)
        return;
    heap_set(a, at, last);
    heap_up(a, at);
    heap_down(a, last->timer - 1);
}

void rr_timer_set(struct calls *a, struct call *c, uint64_t due_ns)
{
    rr_timer_clear(a, c);
    c->due_ns = due_ns;
    a->heap[a->n_timers++] = c;
    heap_up(a, a->n_timers - 1);
}

/* Ids are random already. */
static struct call **bucket_of(const struct calls *a, const char *id)
{
    uint64_t h = 0;

    for (int n = 0; n < 16; n++)
        h = h << 4 | (uint64_t)(rr_hex_digit(id[n]) & 15);
    return &a->buckets[h & (a->n_buckets - 1)];
}

struct call *rr_calls_find(const struct calls *a, const char *id)
{
    struct call *c = *bucket_of(a, id);

    while (c && memcmp(c->id, id, CALL_ID) != 0)
        c = c->bucket_next;
    return c;
}

static bool grow_buckets(struct calls *a)
{
    size_t n = a->n_buckets ? 2 * a->n_buckets : FIRST_BUCKETS, before = a->n_buckets;
    struct call **old = a->buckets, **more = calloc(n, sizeof(struct call *));

    if (!more)
        return false;
    a->buckets = more;
    a->n_buckets = n;
    for (size_t k = 0; k < before; k++)
        for (struct call *c = old[k], *next; c; c = next) {
            next = c->bucket_next;
            c->bucket_next = *bucket_of(a, c->id);
            *bucket_of(a, c->id) = c;
        }
    free(old);
    return true;
}

bool rr_calls_add(struct calls *a, struct call *c)
{
    if (a->n == a->heap_room) {
        size_t room = a->heap_room ? 2 * a->heap_room : FIRST_BUCKETS;
        struct call **heap = reallocarray(a->heap, room, sizeof(struct call *));

        if (!heap)
            return false;
        a->heap = heap;
        a->heap_room = room;
    }
    if (a->n >= a->n_buckets && !grow_buckets(a) && !a->n_buckets)
        return false;
    a->n++;
    c->bucket_next = *bucket_of(a, c->id);
    *bucket_of(a, c->id) = c;
    return true;
}

void rr_calls_remove(struct calls *a, struct call *c)
{
    struct call **at = bucket_of(a, c->id);

    while (*at != c)
        at = &(*at)->bucket_next;
    *at = c->bucket_next;
    a->n--;
    rr_timer_clear(a, c);
    rr_list_remove(c);
}

bool rr_calls_init(struct calls *a)
{
    *a = (struct calls){0};
    return grow_buckets(a);
}

void rr_calls_deinit(struct calls *a)
{
    free(a->buckets);
    free(a->heap);
}

/* --- what threads are told ------------------------------------------------------------------- */

void rr_inbox_init(struct inbox *in)
{
    pthread_condattr_t clock;

    *in = (struct inbox){0};
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&in->lock, NULL);
    pthread_cond_init(&in->wake, &clock);
    pthread_condattr_destroy(&clock);
}

void rr_inbox_deinit(struct inbox *in)
{
    pthread_mutex_destroy(&in->lock);
    pthread_cond_destroy(&in->wake);
}

void rr_inbox_put(struct inbox *in, struct item *item)
{
    pthread_mutex_lock(&in->lock);
    item->next = NULL;
    *(in->first ? &in->last->next : &in->first) = item;
    in->last = item;
    pthread_cond_signal(&in->wake);
    pthread_mutex_unlock(&in->lock);
}

void rr_inbox_stop(struct inbox *in)
{
    pthread_mutex_lock(&in->lock);
    in->stop = true;
    pthread_cond_signal(&in->wake);
    pthread_mutex_unlock(&in->lock);
}

bool rr_inbox_take(struct inbox *in, uint64_t until_ns, struct item **ret)
{
    struct timespec t = {(time_t)(until_ns / 1000000000), (long)(until_ns % 1000000000)};
    bool more;

    pthread_mutex_lock(&in->lock);
    while (until_ns == UINT64_MAX && !in->first && !in->stop)
        pthread_cond_wait(&in->wake, &in->lock);
    while (!in->first && !in->stop && rr_now_ns() < until_ns)
        pthread_cond_timedwait(&in->wake, &in->lock, &t);
    *ret = rr_take(in->first);
    more = *ret || !in->stop;
    pthread_mutex_unlock(&in->lock);
    return more;
}
