/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/internal.h"
#include "worker/remote.h"
#include "worker/serve.h"

uint64_t rr_id_mix(uint64_t a, uint64_t b)
{
    uint64_t x = a + 0x9e3779b97f4a7c15u * (b + 1); /* splitmix64 */

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

struct message *rr_message_new(void)
{
    return calloc(1, sizeof(struct message));
}

/* Buffers of the usual size are kept: malloc() takes 100 ns for them. */
#define KEPT_CAP 4096u
#define KEPT_MIN 1024u /* below, malloc() is as fast, and many small messages may wait */
#define MAX_KEPT 32
static _Thread_local struct {
    struct small *s[MAX_KEPT];
    size_t n;
} spare;

struct small *rr_small_new(uint64_t cap)
{
    struct small *s;

    if (cap > KEPT_MIN && cap <= KEPT_CAP)
        cap = KEPT_CAP;
    s = cap == KEPT_CAP && spare.n ? spare.s[--spare.n] : malloc(sizeof(*s) + cap);

    if (s) {
        s->refs = 1;
        s->cap = cap;
    }
    return s;
}

void rr_small_unref(struct small *s)
{
    if (!s || --s->refs > 0)
        return;
    if (s->cap == KEPT_CAP && spare.n < MAX_KEPT)
        spare.s[spare.n++] = s;
    else
        free(s);
}

void rr_message_thread_end(void)
{
    while (spare.n)
        free(spare.s[--spare.n]);
}

void rr_message_free(struct message *m)
{
    if (!m)
        return;
    rr_small_unref(m->small);
    if (m->patched && m->spare_of && !m->spare_of->spare) {
        m->spare_of->spare = m->region;
        m->spare_of->spare_offset = m->offset;
        m->spare_of->spare_len = m->len;
        rr_region_idle(m->region, true);
    } else {
        if (m->patched && rr_region_reset(m->region) < 0)
            rr_log(0, "cannot mend a region"); /* it stays usable, but copies */
        rr_region_put(m->region);
    }
    rr_debt_unref(m->debt);
    free(m->meta);
    free(m);
}

int rr_message_fill(struct message *m, const uint8_t *meta, size_t meta_len, const uint8_t *data,
                    uint64_t len)
{
    if (meta_len) {
        m->meta = malloc(meta_len);
        if (!m->meta)
            return -ENOMEM;
        memcpy(m->meta, meta, meta_len);
        m->meta_len = meta_len;
    }
    if (!data)
        return 0;
    m->small = rr_small_new(len);
    if (!m->small)
        return -ENOMEM;
    memcpy(m->small->data, data, len);
    m->copied_bytes += len;
    return 0;
}

int rr_message_regather(struct rr_arena *arena, struct message *m, enum rr_backing backing,
                        struct rr_error *err)
{
    struct rr_region *region;
    int r = rr_region_get(arena, backing, m->slot_bytes, m->len, 0, &region, err);

    if (r)
        return r;
    memcpy(rr_region_data(region), rr_message_data(m), m->len);
    m->copied_bytes += m->len;
    if (m->patched)
        rr_region_reset(m->region);
    rr_region_put(m->region);
    m->region = region;
    m->patched = false;
    m->offset = 0;
    return 0;
}

uint8_t *rr_message_data(const struct message *m)
{
    return m->small ? m->small->data : rr_region_data(m->region) + m->offset;
}

struct message *rr_message_share(const struct message *m)
{
    struct message *s = malloc(sizeof(*s));

    if (!s)
        return NULL;
    *s = *m;
    s->next = NULL;
    s->debt = NULL;
    s->copied_bytes = 0; /* counted once */
    if (m->meta) {
        s->meta = malloc(m->meta_len);
        if (!s->meta) {
            free(s);
            return NULL;
        }
        memcpy(s->meta, m->meta, m->meta_len);
    }
    if (s->small)
        s->small->refs++;
    else
        rr_region_ref(s->region);
    return s;
}

bool rr_meta_is_sound(const uint8_t *meta, size_t len)
{
    for (size_t at = 0; at < len;) {
        uint32_t lengths[2];

        if (len - at < sizeof(lengths))
            return false;
        memcpy(lengths, meta + at, sizeof(lengths));
        at += sizeof(lengths);
        if (lengths[0] == 0 || lengths[0] > len - at || lengths[1] > len - at - lengths[0])
            return false;
        at += (size_t)lengths[0] + lengths[1];
    }
    return true;
}

struct entry {
    uint32_t key_len, value_len;
};

/* Offset of @key's entry, or meta_len. */
static size_t meta_find(const struct message *m, const char *key, size_t key_len, struct entry *ret)
{
    size_t at = 0;

    while (at < m->meta_len) {
        memcpy(ret, m->meta + at, sizeof(*ret));
        if (ret->key_len == key_len && memcmp(m->meta + at + sizeof(*ret), key, key_len) == 0)
            break;
        at += sizeof(*ret) + ret->key_len + ret->value_len;
    }
    return at;
}

const uint8_t *rr_message_meta_get(const struct message *m, const char *key, size_t key_len,
                                   size_t *ret_len)
{
    struct entry e;
    size_t at = meta_find(m, key, key_len, &e);

    if (at == m->meta_len)
        return NULL;
    *ret_len = e.value_len;
    return m->meta + at + sizeof(e) + e.key_len;
}

int rr_message_meta_set(struct message *m, const char *key, size_t key_len, const uint8_t *value,
                        size_t value_len)
{
    struct entry e = {0};
    size_t at = meta_find(m, key, key_len, &e);
    size_t old = at < m->meta_len ? sizeof(e) + e.key_len + e.value_len : 0;
    size_t kept = m->meta_len - old, len;
    uint8_t *meta;

    if (key_len > RR_ABI_MAX_METADATA || value_len > RR_ABI_MAX_METADATA ||
        kept + sizeof(e) + key_len + value_len > RR_ABI_MAX_METADATA)
        return -E2BIG;
    len = kept + sizeof(e) + key_len + value_len;
    meta = malloc(len);
    if (!meta)
        return -ENOMEM;
    if (at)
        memcpy(meta, m->meta, at);
    if (kept > at)
        memcpy(meta + at, m->meta + at + old, kept - at);
    e = (struct entry){(uint32_t)key_len, (uint32_t)value_len};
    memcpy(meta + kept, &e, sizeof(e));
    memcpy(meta + kept + sizeof(e), key, key_len);
    if (value_len)
        memcpy(meta + kept + sizeof(e) + key_len, value, value_len);
    free(m->meta);
    m->meta = meta;
    m->meta_len = len;
    return 0;
}

int rr_message_mark(struct message *m)
{
    static const char id_key[] = "rr-delivery-id", attempt_key[] = "rr-attempt";
    char id[24], attempt[16];
    int r;

    snprintf(id, sizeof(id), "%016llx", (unsigned long long)m->id);
    snprintf(attempt, sizeof(attempt), "%u", m->attempt);
    r = rr_message_meta_set(m, id_key, sizeof(id_key) - 1, (const uint8_t *)id, strlen(id));
    if (r == 0)
        r = rr_message_meta_set(m, attempt_key, sizeof(attempt_key) - 1, (const uint8_t *)attempt,
                                strlen(attempt));
    return r == -ENOMEM ? r : 0; /* with metadata that is full already it goes without */
}

/* --- trace context --------------------------------------------------------------------------- */

static const char parent_key[] = "traceparent", state_key[] = "tracestate";

static uint16_t copy_value(const struct message *m, const char *key, size_t key_len, char *to,
                           size_t cap)
{
    size_t len;
    const uint8_t *value = rr_message_meta_get(m, key, key_len, &len);

    if (!value || len > cap)
        return 0;
    memcpy(to, value, len);
    return (uint16_t)len;
}

bool rr_message_trace_get(const struct message *m, struct trace_context *ret)
{
    ret->parent_len = ret->state_len = 0;
    if (!m->meta_len)
        return false;
    ret->parent_len =
        copy_value(m, parent_key, sizeof(parent_key) - 1, ret->parent, sizeof(ret->parent));
    if (ret->parent_len)
        ret->state_len =
            copy_value(m, state_key, sizeof(state_key) - 1, ret->state, sizeof(ret->state));
    return ret->parent_len != 0;
}

void rr_message_trace_set(struct message *m, const struct trace_context *t)
{
    size_t len;

    if (!t->parent_len || rr_message_meta_get(m, parent_key, sizeof(parent_key) - 1, &len) ||
        rr_message_meta_set(m, parent_key, sizeof(parent_key) - 1, (const uint8_t *)t->parent,
                            t->parent_len))
        return;
    if (t->state_len)
        rr_message_meta_set(m, state_key, sizeof(state_key) - 1, (const uint8_t *)t->state,
                            t->state_len);
}
