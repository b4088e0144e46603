/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata of requests and replies: what functions see of HTTP. */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "gateway/internal.h"

static struct rr_text text_of(const char *s)
{
    return (struct rr_text){s, strlen(s)};
}

static bool reserve(struct meta *m, size_t more)
{
    size_t cap = m->cap ? m->cap : 512;
    uint8_t *data;

    while (cap < m->len + more)
        cap *= 2;
    if (cap == m->cap)
        return true;
    data = realloc(m->data, cap);
    if (!data)
        return false;
    m->data = data;
    m->cap = cap;
    return true;
}

void rr_meta_put(struct meta *m, const char *prefix, struct rr_text key, struct rr_text value)
{
    uint32_t sizes[2] = {(uint32_t)(strlen(prefix) + key.len), (uint32_t)value.len};
    size_t more = sizeof(sizes) + strlen(prefix) + key.len + value.len;

    if (m->failed || m->len + more > RR_ABI_MAX_METADATA || !reserve(m, more)) {
        m->failed = true;
        return;
    }
    memcpy(m->data + m->len, sizes, sizeof(sizes));
    m->len += sizeof(sizes);
    memcpy(m->data + m->len, prefix, strlen(prefix));
    m->len += strlen(prefix);
    for (size_t n = 0; n < key.len; n++)
        m->data[m->len++] = (uint8_t)rr_lower(key.at[n]);
    if (value.len)
        memcpy(m->data + m->len, value.at, value.len);
    m->len += value.len;
}

bool rr_meta_next(const uint8_t *meta, size_t len, size_t *at, struct rr_text *key,
                  struct rr_text *value)
{
    uint32_t sizes[2];

    if (len - *at < sizeof(sizes))
        return false;
    memcpy(sizes, meta + *at, sizeof(sizes));
    if ((uint64_t)sizes[0] + sizes[1] > len - *at - sizeof(sizes))
        return false;
    *key = (struct rr_text){(const char *)meta + *at + sizeof(sizes), sizes[0]};
    *value = (struct rr_text){key->at + sizes[0], sizes[1]};
    *at += sizeof(sizes) + sizes[0] + sizes[1];
    return true;
}

bool rr_meta_find(const uint8_t *meta, size_t len, const char *key, struct rr_text *ret)
{
    struct rr_text k, v;

    for (size_t at = 0; rr_meta_next(meta, len, &at, &k, &v);)
        if (rr_text_is(k, key)) {
            *ret = v;
            return true;
        }
    return false;
}

/* --- traces ---------------------------------------------------------------------------------- */

static bool is_hex(const char *at, size_t len)
{
    for (size_t n = 0; n < len; n++)
        if (!(at[n] >= '0' && at[n] <= '9') && !(at[n] >= 'a' && at[n] <= 'f'))
            return false;
    return true;
}

static bool is_zero(const char *at, size_t len)
{
    for (size_t n = 0; n < len; n++)
        if (at[n] != '0')
            return false;
    return true;
}

/* 00-TRACE-SPAN-FLAGS; of later versions that much, too. */
static bool trace_ok(struct rr_text t)
{
    return t.len >= 55 && is_hex(t.at, 2) && memcmp(t.at, "ff", 2) != 0 &&
           (t.len == 55 || (memcmp(t.at, "00", 2) != 0 && t.at[55] == '-')) && t.at[2] == '-' &&
           is_hex(t.at + 3, 32) && !is_zero(t.at + 3, 32) && t.at[35] == '-' &&
           is_hex(t.at + 36, 16) && !is_zero(t.at + 36, 16) && t.at[52] == '-' &&
           is_hex(t.at + 53, 2);
}

uint64_t rr_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u; /* splitmix64 */

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (x ^ x >> 31) | 1;
}

static void put_hex(char *to, uint64_t v)
{
    for (int n = 15; n >= 0; n--, v >>= 4)
        to[n] = "0123456789abcdef"[v & 15];
}

/* Our own span, within the caller's trace if it has one. The caller says whether it is to be sent
 * to a collector; without one we say it, to functions as well. */
static void make_trace(struct conn *c, const struct rr_text *caller)
{
    const struct rr_otlp *otlp = c->loop->gw->otlp;
    bool ours = !caller || !trace_ok(*caller);
    bool sampled = otlp && ours && rr_otlp_samples(otlp, rr_random(&c->loop->random));

    memcpy(c->trace, "00-", 3);
    c->trace[35] = c->trace[52] = '-';
    if (ours) {
        put_hex(c->trace + 3, rr_random(&c->loop->random));
        put_hex(c->trace + 19, rr_random(&c->loop->random));
        memcpy(c->trace + 53, sampled ? "01" : "00", 2);
    } else {
        memcpy(c->trace + 3, caller->at + 3, 32);
        memcpy(c->trace + 53, caller->at + 53, 2);
        sampled = rr_hex_digit(c->trace[54]) & 1;
    }
    put_hex(c->trace + 36, rr_random(&c->loop->random));
    c->trace[55] = '\0';
    if (!otlp || !sampled || !(c->spans = rr_trace_new()))
        return;
    if (!ours)
        memcpy(c->spans->parent, caller->at + 36, 16);
}

/* --- requests -------------------------------------------------------------------------------- */

/* Of the connection, not of the message. */
static bool is_hop(struct rr_text name)
{
    static const char *const hop[] = {
        "connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "trailer",
        "upgrade",    "expect",     "content-length"};

    for (size_t n = 0; n < RR_ARRAY_LEN(hop); n++)
        if (rr_text_is_word(name, hop[n]))
            return true;
    return false;
}

static bool same_name(struct rr_text a, struct rr_text b)
{
    if (a.len != b.len)
        return false;
    for (size_t n = 0; n < a.len; n++)
        if (rr_lower(a.at[n]) != rr_lower(b.at[n]))
            return false;
    return true;
}

/* One entry for all lines of a name. */
static void put_header(struct meta *m, const struct rr_http_request *rq, size_t n)
{
    struct rr_text name = rq->headers[n].name, value = rq->headers[n].value;
    char *joined = NULL;
    size_t len = 0;

    for (size_t k = 0; k < n; k++)
        if (same_name(rq->headers[k].name, name))
            return;
    for (size_t k = n + 1; k < rq->n_headers; k++)
        if (same_name(rq->headers[k].name, name)) {
            char *more = realloc(joined, (joined ? len : value.len) + 2 + rq->headers[k].value.len);

            if (!more) {
                m->failed = true;
                break;
            }
            if (!joined) {
                memcpy(more, value.at, value.len);
                len = value.len;
            }
            joined = more;
            memcpy(joined + len, rr_text_is_word(name, "cookie") ? "; " : ", ", 2);
            memcpy(joined + len + 2, rq->headers[k].value.at, rq->headers[k].value.len);
            len += 2 + rq->headers[k].value.len;
        }
    rr_meta_put(m, "http-header:", name, joined ? (struct rr_text){joined, len} : value);
    free(joined);
}

int rr_meta_of_request(struct conn *c, const struct rr_http_request *rq, struct meta *m)
{
    const struct rr_text *type = rr_http_header(rq, "content-type"), *state;

    make_trace(c, rr_http_header(rq, "traceparent"));
    rr_meta_put(m, "", text_of("http-method"), rq->method);
    rr_meta_put(m, "", text_of("http-path"), rq->path);
    if (rq->query.at)
        rr_meta_put(m, "", text_of("http-query"), rq->query);
    c->structured = type && rr_event_structured(*type);
    if (type && !c->structured)
        rr_meta_put(m, "", text_of("content-type"), *type);
    rr_meta_put(m, "", text_of("traceparent"), (struct rr_text){c->trace, 55});
    state = rr_http_header(rq, "tracestate");
    if (state)
        rr_meta_put(m, "", text_of("tracestate"), *state);
    for (size_t n = 0; n < rq->n_headers; n++)
        if (!is_hop(rq->headers[n].name) &&
            (c->structured || !rr_event_header(m, rq->headers[n].name, rq->headers[n].value)))
            put_header(m, rq, n);
    if (m->failed)
        return 431;
    if (!c->structured && rr_event_check(m) < 0)
        return 400;
    return type && rr_text_has(*type, "application/cloudevents-batch+json") ? 415 : 0;
}
