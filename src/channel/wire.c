/* SPDX-License-Identifier: Apache-2.0 */
#include "channel/wire.h"

#include <endian.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

/* Bytes that never change their place; docs/wire.md has the fields. */
enum {
    HELLO_BYTES = 80, /* before its texts */
    DATA_BYTES = 104, /* before its targets */
    TARGET_BYTES = 16 /* before its names */
};

static const char peer_hint[] = "the peer is broken, hostile or of another version; restart it";

__attribute__((format(printf, 2, 3))) static int invalid(struct rr_error *err, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return rr_error_set(err, RR_E_INVALID, peer_hint, "%s", text);
}

/* --- numbers --------------------------------------------------------------------------------- */

static uint8_t *put16(uint8_t *to, uint16_t v)
{
    v = htole16(v);
    memcpy(to, &v, sizeof(v));
    return to + sizeof(v);
}

static uint8_t *put32(uint8_t *to, uint32_t v)
{
    v = htole32(v);
    memcpy(to, &v, sizeof(v));
    return to + sizeof(v);
}

static uint8_t *put64(uint8_t *to, uint64_t v)
{
    v = htole64(v);
    memcpy(to, &v, sizeof(v));
    return to + sizeof(v);
}

static uint8_t *put_bytes(uint8_t *to, const void *bytes, size_t len)
{
    if (len)
        memcpy(to, bytes, len);
    return to + len;
}

static uint16_t get16(const uint8_t *from)
{
    uint16_t v;

    memcpy(&v, from, sizeof(v));
    return le16toh(v);
}

static uint32_t get32(const uint8_t *from)
{
    uint32_t v;

    memcpy(&v, from, sizeof(v));
    return le32toh(v);
}

static uint64_t get64(const uint8_t *from)
{
    uint64_t v;

    memcpy(&v, from, sizeof(v));
    return le64toh(v);
}

/* --- headers and short frames ---------------------------------------------------------------- */

void rr_wire_put_header(uint8_t to[RR_WIRE_HEADER], uint32_t len, enum rr_wire_type type,
                        uint8_t flags, uint64_t seq)
{
    to = put32(to, len);
    *to++ = (uint8_t)type;
    *to++ = flags;
    to = put16(to, 0);
    put64(to, seq);
}

/* What the lengths of a type may be. */
static const struct {
    uint32_t min, max, unit;
    bool seq; /* it names a message */
} frames[] = {
    [RR_WIRE_HELLO] = {HELLO_BYTES, RR_WIRE_MAX_HELLO, 1, false},
    [RR_WIRE_DATA] = {DATA_BYTES + TARGET_BYTES + 2, RR_WIRE_MAX_FRAME, 1, true},
    [RR_WIRE_CHUNK_DATA] = {1, RR_WIRE_CHUNK, 1, true},
    [RR_WIRE_BACK] = {RR_WIRE_BACK_BYTES, RR_WIRE_BACK_BYTES * 4096, RR_WIRE_BACK_BYTES, false},
    [RR_WIRE_REFUSE] = {4, 4 + RR_WIRE_MAX_TEXT, 1, true},
    [RR_WIRE_CREDIT] = {32, 32, 1, false},
    [RR_WIRE_CANCEL] = {0, 0, 1, true},
    [RR_WIRE_PING] = {0, 0, 1, true},
    [RR_WIRE_PONG] = {0, 0, 1, true},
    [RR_WIRE_ERROR] = {4, 4 + RR_WIRE_MAX_TEXT, 1, false},
    [RR_WIRE_CONTROL] = {4, 4 + RR_WIRE_MAX_CONTROL, 1, false},
    [RR_WIRE_GOODBYE] = {0, 0, 1, false},
};

int rr_wire_get_header(const uint8_t from[RR_WIRE_HEADER], struct rr_wire_header *ret,
                       struct rr_error *err)
{
    struct rr_wire_header h = {
        .len = get32(from), .type = from[4], .flags = from[5], .seq = get64(from + 8)};

    if (h.type == 0 || h.type >= RR_ARRAY_LEN(frames))
        return invalid(err, "a frame of no known type: %u", h.type);
    if (h.len < frames[h.type].min || h.len > frames[h.type].max ||
        h.len % frames[h.type].unit != 0)
        return invalid(err, "a frame of type %u and the wrong length: %u", h.type, h.len);
    if (get16(from + 6) != 0 ||
        (h.flags != 0 &&
         (h.type != RR_WIRE_DATA || (h.flags & ~(RR_WIRE_BULK | RR_WIRE_FIXED)) != 0)))
        return invalid(err, "a frame of type %u with flags that nobody knows", h.type);
    if (!frames[h.type].seq && h.seq != 0)
        return invalid(err, "a frame of type %u that names a message", h.type);
    *ret = h;
    return 0;
}

void rr_wire_put_back(uint8_t to[RR_WIRE_BACK_BYTES], const struct rr_wire_back_row *row)
{
    to = put64(to, row->seq);
    to = put32(to, row->target);
    put32(to, row->what);
}

void rr_wire_get_back(const uint8_t from[RR_WIRE_BACK_BYTES], struct rr_wire_back_row *ret)
{
    *ret = (struct rr_wire_back_row){get64(from), get32(from + 8), get32(from + 12)};
}

void rr_wire_put_credit(uint8_t to[32], const struct rr_wire_credit *credit)
{
    to = put64(to, credit->messages);
    to = put64(to, credit->inline_bytes);
    to = put64(to, credit->bulk_bytes);
    put64(to, credit->control_bytes);
}

void rr_wire_get_credit(const uint8_t from[32], struct rr_wire_credit *ret)
{
    *ret =
        (struct rr_wire_credit){get64(from), get64(from + 8), get64(from + 16), get64(from + 24)};
}

void rr_wire_get_text(const uint8_t *from, size_t len, char *ret, size_t size)
{
    size_t n = rr_min(len, size - 1);

    for (size_t i = 0; i < n; i++)
        ret[i] = (char)(from[i] < 0x20 || from[i] >= 0x7f ? '?' : from[i]);
    ret[n] = 0;
}

/* --- HELLO ----------------------------------------------------------------------------------- */

static bool is_key(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (text[i] < 0x21 || text[i] > 0x7e)
            return false;
    return len > 0;
}

size_t rr_wire_put_hello(uint8_t *to, size_t size, const struct rr_wire_hello *h)
{
    size_t bytes = RR_WIRE_HEADER + HELLO_BYTES;
    uint8_t *at = to;

    if (h->n_texts > RR_WIRE_MAX_TEXTS)
        return 0;
    for (uint32_t n = 0; n < h->n_texts; n++) {
        size_t key = strnlen(h->texts[n].key, sizeof(h->texts[n].key));
        size_t value = strnlen(h->texts[n].value, sizeof(h->texts[n].value));

        if (!is_key(h->texts[n].key, key) || key > RR_WIRE_MAX_KEY || value > RR_WIRE_MAX_TEXT)
            return 0;
        bytes += 4 + key + value;
    }
    if (bytes > size || bytes - RR_WIRE_HEADER > RR_WIRE_MAX_HELLO)
        return 0;
    rr_wire_put_header(at, (uint32_t)(bytes - RR_WIRE_HEADER), RR_WIRE_HELLO, 0, 0);
    at = put_bytes(at + RR_WIRE_HEADER, RR_WIRE_MAGIC, 8);
    at = put32(at, h->version);
    at = put32(at, h->features);
    at = put_bytes(at, h->session, sizeof(h->session));
    at = put32(at, h->role);
    at = put32(at, h->index);
    at = put32(at, h->n_bulk);
    at = put32(at, h->n_texts);
    rr_wire_put_credit(at, &h->credit);
    at += 32;
    for (uint32_t n = 0; n < h->n_texts; n++) {
        size_t key = strlen(h->texts[n].key), value = strlen(h->texts[n].value);

        at = put16(at, (uint16_t)key);
        at = put16(at, (uint16_t)value);
        at = put_bytes(at, h->texts[n].key, key);
        at = put_bytes(at, h->texts[n].value, value);
    }
    return bytes;
}

static int get_texts(const uint8_t *from, size_t len, struct rr_wire_text *texts,
                     const struct rr_wire_hello *h, struct rr_error *err)
{
    for (uint32_t n = 0; n < h->n_texts; n++) {
        size_t key, value;

        if (len < 4)
            return invalid(err, "the greeting's texts are cut off");
        key = get16(from);
        value = get16(from + 2);
        if (key > RR_WIRE_MAX_KEY || value > RR_WIRE_MAX_TEXT || key + value > len - 4)
            return invalid(err, "a text of the greeting is too long");
        from += 4;
        if (!is_key((const char *)from, key))
            return invalid(err, "a text of the greeting has no proper name");
        memcpy(texts[n].key, from, key);
        texts[n].key[key] = 0;
        if (memchr(from + key, 0, value))
            return invalid(err, "a text of the greeting holds a NUL");
        memcpy(texts[n].value, from + key, value);
        texts[n].value[value] = 0;
        from += key + value;
        len -= 4 + key + value;
        for (uint32_t i = 0; i < n; i++)
            if (strcmp(texts[i].key, texts[n].key) == 0)
                return invalid(err, "the greeting has a text twice");
    }
    return len ? invalid(err, "the greeting has bytes behind its end") : 0;
}

int rr_wire_get_hello(const uint8_t *from, size_t len, struct rr_wire_text *texts,
                      struct rr_wire_hello *ret, struct rr_error *err)
{
    struct rr_wire_hello h = {.texts = texts};
    int r;

    if (len < 16 || memcmp(from, RR_WIRE_MAGIC, 8) != 0)
        return invalid(err, "the greeting is not one of this protocol");
    h.version = get32(from + 8);
    if (h.version != RR_WIRE_VERSION) { /* the rest may look like anything */
        ret->version = h.version;
        return rr_error_set(err, RR_E_USAGE, "run the same version of roadrunner on both nodes",
                            "the peer speaks version %u of the protocol, we speak %d", h.version,
                            RR_WIRE_VERSION);
    }
    if (len < HELLO_BYTES)
        return invalid(err, "the greeting is cut off");
    h.features = get32(from + 12);
    memcpy(h.session, from + 16, sizeof(h.session));
    h.role = get32(from + 32);
    h.index = get32(from + 36);
    h.n_bulk = get32(from + 40);
    h.n_texts = get32(from + 44);
    rr_wire_get_credit(from + 48, &h.credit);
    if ((h.role != RR_WIRE_MAIN && h.role != RR_WIRE_EXTRA) || h.n_bulk < 1 ||
        h.n_bulk > RR_WIRE_MAX_BULK || h.index >= h.n_bulk ||
        (h.role == RR_WIRE_MAIN && h.index != 0))
        return invalid(err, "the greeting is for no connection that there is");
    if (h.credit.messages < 1 || h.credit.messages > RR_WIRE_MAX_WINDOW)
        return invalid(err, "the greeting grants no message, or too many");
    if (h.n_texts > RR_WIRE_MAX_TEXTS)
        return invalid(err, "the greeting has too many texts");
    r = get_texts(from + HELLO_BYTES, len - HELLO_BYTES, texts, &h, err);
    if (r == 0)
        *ret = h;
    return r;
}

/* --- DATA ------------------------------------------------------------------------------------ */

/* Does the payload lie in its slot, and the slot in a window? */
static bool check_place(const struct rr_net_packet *p)
{
    if (p->slot_bytes != RR_SLOT_SMALL && p->slot_bytes != RR_SLOT_LARGE)
        return false;
    if (p->len > p->slot_bytes || p->offset > p->slot_bytes - p->len)
        return false;
    if (p->window == 0)
        return !p->fixed; /* it has no window yet */
    return p->window % p->slot_bytes == 0 && p->window >= RR_WINDOW_BASE &&
           p->window < RR_WINDOW_END;
}

/* Are the metadata entries whole? docs/kernel-channel.md has their format. */
static bool check_meta(const uint8_t *meta, size_t len)
{
    while (len > 0) {
        uint64_t key, value; /* the sum of two of them fits */

        if (len < 8)
            return false;
        key = get32(meta);
        value = get32(meta + 4);
        if (key == 0 || key + value > len - 8)
            return false;
        meta += 8 + key + value;
        len -= 8 + key + value;
    }
    return true;
}

size_t rr_wire_data_bytes(const struct rr_net_packet *p)
{
    size_t bytes = RR_WIRE_HEADER + DATA_BYTES;

    if (p->n_targets < 1 || p->n_targets > RR_WIRE_MAX_TARGETS || p->meta_len > RR_WIRE_MAX_META ||
        !check_place(p) || !check_meta(p->meta, p->meta_len))
        return 0;
    for (uint32_t n = 0; n < p->n_targets; n++) {
        size_t from = strnlen(p->targets[n].from, RR_WIRE_MAX_NAME + 1);
        size_t to = strnlen(p->targets[n].to, RR_WIRE_MAX_NAME + 1);

        if (from > RR_WIRE_MAX_NAME || to > RR_WIRE_MAX_NAME || p->targets[n].attempt < 1 ||
            !is_key(p->targets[n].from, from) || !is_key(p->targets[n].to, to))
            return 0;
        bytes += TARGET_BYTES + from + to;
    }
    return bytes + p->meta_len;
}

void rr_wire_put_data(uint8_t *to, size_t bytes, const struct rr_net_packet *p, uint64_t seq)
{
    bool bulk = p->len > RR_WIRE_INLINE;

    rr_wire_put_header(to, (uint32_t)(bytes - RR_WIRE_HEADER + (bulk ? 0 : p->len)), RR_WIRE_DATA,
                       (uint8_t)((bulk ? RR_WIRE_BULK : 0) | (p->fixed ? RR_WIRE_FIXED : 0)), seq);
    to = put_bytes(to + RR_WIRE_HEADER, p->session, sizeof(p->session));
    to = put64(to, p->run);
    to = put64(to, p->len);
    to = put64(to, p->offset);
    to = put64(to, p->window);
    to = put64(to, p->slot_bytes);
    to = put64(to, p->deadline_ns);
    to = put64(to, p->age_ns);
    to = put64(to, p->copied_bytes);
    to = put32(to, p->kind);
    to = put32(to, (uint32_t)p->status);
    to = put32(to, p->n_targets);
    to = put32(to, p->meta_len);
    to = put64(to, 0);
    for (uint32_t n = 0; n < p->n_targets; n++) {
        const struct rr_net_target *t = &p->targets[n];
        size_t from_len = strlen(t->from), to_len = strlen(t->to);

        to = put64(to, t->id);
        to = put32(to, t->attempt);
        *to++ = t->acked;
        *to++ = (uint8_t)from_len;
        *to++ = (uint8_t)to_len;
        *to++ = 0;
        to = put_bytes(to, t->from, from_len);
        to = put_bytes(to, t->to, to_len);
    }
    put_bytes(to, p->meta, p->meta_len);
}

/* A name as a text of its own; NULL: it has a character that is none of a name. */
static const char *get_name(const uint8_t *from, size_t len, char **names)
{
    char *name = *names;

    if (!is_key((const char *)from, len))
        return NULL;
    memcpy(name, from, len);
    name[len] = 0;
    *names = name + len + 1;
    return name;
}

/* Return: bytes read; 0: broken. */
static size_t get_target(const uint8_t *from, size_t len, struct rr_net_target *t, char **names)
{
    size_t from_len, to_len;

    if (len < TARGET_BYTES)
        return 0;
    from_len = from[13];
    to_len = from[14];
    *t = (struct rr_net_target){
        .id = get64(from), .attempt = get32(from + 8), .acked = from[12] == 1};
    if (from[12] > 1 || from[15] != 0 || t->attempt < 1 || from_len > RR_WIRE_MAX_NAME ||
        to_len > RR_WIRE_MAX_NAME || from_len + to_len > len - TARGET_BYTES)
        return 0;
    t->from = get_name(from + TARGET_BYTES, from_len, names);
    t->to = get_name(from + TARGET_BYTES + from_len, to_len, names);
    return t->from && t->to ? TARGET_BYTES + from_len + to_len : 0;
}

int rr_wire_get_data(const struct rr_wire_header *h, const uint8_t *from,
                     struct rr_net_target *targets, char *names, struct rr_net_packet *ret,
                     struct rr_error *err)
{
    struct rr_net_packet p = {.run = get64(from + 16),
                              .len = get64(from + 24),
                              .offset = get64(from + 32),
                              .window = get64(from + 40),
                              .slot_bytes = get64(from + 48),
                              .deadline_ns = get64(from + 56),
                              .age_ns = get64(from + 64),
                              .copied_bytes = get64(from + 72),
                              .kind = get32(from + 80),
                              .status = (int32_t)get32(from + 84),
                              .n_targets = get32(from + 88),
                              .meta_len = get32(from + 92),
                              .fixed = (h->flags & RR_WIRE_FIXED) != 0,
                              .targets = targets,
                              .seq = h->seq};
    bool bulk = (h->flags & RR_WIRE_BULK) != 0, acked = false;
    size_t left = h->len - DATA_BYTES;

    memcpy(p.session, from, sizeof(p.session));
    if (get64(from + 96) != 0)
        return invalid(err, "a message with words that nobody knows");
    if (bulk != (p.len > RR_WIRE_INLINE) || !check_place(&p))
        return invalid(err, "a message whose payload is out of its place");
    if (p.n_targets < 1 || p.n_targets > RR_WIRE_MAX_TARGETS || p.meta_len > RR_WIRE_MAX_META)
        return invalid(err, "a message with too many targets, or too much metadata");
    from += DATA_BYTES;
    for (uint32_t n = 0; n < p.n_targets; n++) {
        size_t used = get_target(from, left, &targets[n], &names);

        if (!used)
            return invalid(err, "a message with a broken target");
        acked = acked || targets[n].acked;
        from += used;
        left -= used;
    }
    if (left < p.meta_len || left - p.meta_len != (bulk ? 0 : p.len))
        return invalid(err, "a message of the wrong length");
    if (!check_meta(from, p.meta_len))
        return invalid(err, "a message whose metadata is broken");
    if ((h->seq != 0) != (bulk || acked))
        return invalid(err, "a message that has a number and needs none, or the reverse");
    p.meta = p.meta_len ? from : NULL;
    p.data = bulk ? NULL : from + p.meta_len;
    *ret = p;
    return 0;
}
