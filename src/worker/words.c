/* SPDX-License-Identifier: Apache-2.0 */
/* What nodes tell each other besides messages: little-endian, as docs/wire.md has it. */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "worker/nodes.h"

/* Both ways; once @bad is set, nothing more is written or read. */
struct cursor {
    uint8_t *to; /* NULL: reading */
    const uint8_t *from;
    size_t at, len;
    bool bad;
};

static void bytes(struct cursor *c, void *data, size_t len)
{
    if (c->bad || len > c->len - c->at) {
        c->bad = true;
        return;
    }
    if (c->to)
        memcpy(c->to + c->at, data, len);
    else
        memcpy(data, c->from + c->at, len);
    c->at += len;
}

static void u64(struct cursor *c, uint64_t *n)
{
    uint64_t le = htole64(*n);

    bytes(c, &le, sizeof(le));
    if (!c->to && !c->bad)
        *n = le64toh(le);
}

static void u32(struct cursor *c, uint32_t *n)
{
    uint32_t le = htole32(*n);

    bytes(c, &le, sizeof(le));
    if (!c->to && !c->bad)
        *n = le32toh(le);
}

static void i32(struct cursor *c, int *n)
{
    uint32_t bits = (uint32_t)*n;

    u32(c, &bits);
    *n = (int)bits;
}

/* u16 length, then so many bytes. @size: of the array, with the NUL that the wire does not have. */
static void text(struct cursor *c, char *s, size_t size)
{
    uint16_t len = (uint16_t)(c->to ? strnlen(s, size - 1) : 0), le = htole16(len);

    bytes(c, &le, sizeof(le));
    len = le16toh(le);
    if (len >= size)
        c->bad = true;
    bytes(c, s, c->bad ? 0 : len);
    if (!c->to)
        s[c->bad ? 0 : len] = 0;
}

static void error(struct cursor *c, struct rr_error *e)
{
    uint32_t code = (uint32_t)e->code;

    u32(c, &code);
    e->code = (enum rr_code)code;
    u32(c, &e->line);
    u32(c, &e->column);
    text(c, e->file, sizeof(e->file));
    text(c, e->text, sizeof(e->text));
    text(c, e->hint, sizeof(e->hint));
    if (!c->to && strcmp(rr_error_name(e->code), "unknown") == 0)
        e->code = RR_E_GUEST;
}

static void hop(struct cursor *c, struct rr_hop *h)
{
    uint32_t path = (uint32_t)h->path, channel = (uint32_t)h->channel;

    i32(c, &h->edge);
    u32(c, &path);
    h->path = (enum rr_path)path;
    u32(c, &channel);
    h->channel = (enum rr_channel)channel;
    u64(c, &h->payload_bytes);
    u64(c, &h->copied_bytes);
    u64(c, &h->sent_ns);
    u64(c, &h->received_ns);
    u64(c, &h->handoff_ns);
    u64(c, &h->n);
    if (path > RR_PATH_STREAM || channel > RR_CHANNEL_NETWORK)
        c->bad = true;
}

static void span(struct cursor *c, struct rr_span *s)
{
    uint32_t fresh = s->fresh;

    i32(c, &s->function);
    u32(c, &fresh);
    s->fresh = fresh != 0;
    u64(c, &s->begin_ns);
    u64(c, &s->start_ns);
    u64(c, &s->end_ns);
    u64(c, &s->heap_bytes);
    u64(c, &s->n);
}

static void events(struct cursor *c, struct word_of_node *w)
{
    u64(c, &w->now_ns);
    u32(c, &w->n_events);
    if (w->n_events > RR_EVENTS)
        c->bad = true;
    for (uint32_t n = 0; n < w->n_events && !c->bad; n++) {
        u32(c, &w->events[n].is_span);
        if (w->events[n].is_span)
            span(c, &w->events[n].span);
        else
            hop(c, &w->events[n].hop);
    }
}

static void word_of(struct cursor *c, uint32_t word, struct word_of_node *w)
{
    bytes(c, w->session, sizeof(w->session));
    u64(c, &w->run);
    switch (word) {
    case NODE_ASK:
        u64(c, &w->a);
        break;
    case NODE_ANSWER:
        u64(c, &w->a);
        u64(c, &w->b);
        u32(c, &w->idle);
        text(c, w->text, sizeof(w->text));
        break;
    case NODE_IDLE:
        u64(c, &w->b);
        break;
    case NODE_FAILED:
        error(c, &w->error);
        break;
    case NODE_EVENTS:
        events(c, w);
        break;
    case NODE_LINK:
        u32(c, &w->n);
        text(c, w->text, sizeof(w->text));
        break;
    case NODE_LOG:
        u32(c, &w->n);
        u32(c, &w->function);
        text(c, w->text, sizeof(w->text));
        break;
    case NODE_RUN:
    case NODE_CLOSE:
        break;
    default:
        c->bad = true;
    }
}

size_t rr_word_put(uint8_t to[RR_WORD_BYTES], enum node_word word, const struct word_of_node *w)
{
    struct cursor c = {.to = to, .len = RR_WORD_BYTES};

    word_of(&c, word, (struct word_of_node *)(uintptr_t)w); /* it is only read */
    return c.bad ? 0 : c.at;
}

int rr_word_get(uint32_t word, const uint8_t *from, size_t len, struct word_of_node *ret)
{
    struct cursor c = {.from = from, .len = len};

    *ret = (struct word_of_node){0};
    word_of(&c, word, ret);
    return c.bad || c.at != len ? -EPROTO : 0;
}
