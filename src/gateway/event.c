/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CloudEvents 1.0 over HTTP: attributes are metadata `ce-NAME`, the data is the payload, in binary
 * mode and in structured mode alike. And which events were handled already.
 */
#include <json-c/json.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "gateway/internal.h"

#define MAX_STRUCTURED RR_MIB /* larger data belongs into binary mode, where it is not parsed */
#define MAX_ATTRIBUTE 4096u
#define N_SEEN 65536u

static struct rr_text text_of(const char *s)
{
    return (struct rr_text){s, strlen(s)};
}

static bool name_ok(struct rr_text name)
{
    for (size_t n = 0; n < name.len; n++)
        if (!(name.at[n] >= 'a' && name.at[n] <= 'z') && !(name.at[n] >= '0' && name.at[n] <= '9'))
            return false;
    return name.len > 0 && name.len <= 64;
}

bool rr_event_structured(struct rr_text type)
{
    const char *semicolon = memchr(type.at, ';', type.len);

    if (semicolon)
        type.len = (size_t)(semicolon - type.at);
    while (type.len && type.at[type.len - 1] == ' ')
        type.len--;
    return rr_text_is_word(type, "application/cloudevents+json");
}

/* --- binary mode ----------------------------------------------------------------------------- */

/* A header's value has what is not printable ASCII as %XX. */
static size_t decode(struct rr_text value, char *out)
{
    size_t len = 0;

    for (size_t n = 0; n < value.len; n++) {
        int high = value.at[n] == '%' && n + 2 < value.len ? rr_hex_digit(value.at[n + 1]) : -1;
        int low = high >= 0 ? rr_hex_digit(value.at[n + 2]) : -1;

        out[len] = value.at[n];
        if (low >= 0) {
            memcpy(&out[len], &(uint8_t){(uint8_t)(high * 16 + low)}, 1);
            n += 2;
        }
        len++;
    }
    return len;
}

bool rr_event_header(struct meta *m, struct rr_text name, struct rr_text value)
{
    char lower[65], out[MAX_ATTRIBUTE];

    if (name.len < 4 || name.len > sizeof(lower) + 2 || (name.at[0] | 0x20) != 'c' ||
        (name.at[1] | 0x20) != 'e' || name.at[2] != '-' || value.len > sizeof(out))
        return false;
    for (size_t n = 3; n < name.len; n++)
        lower[n - 3] = rr_lower(name.at[n]);
    name = (struct rr_text){lower, name.len - 3};
    if (!name_ok(name))
        return false;
    rr_meta_put(m, "ce-", name, (struct rr_text){out, decode(value, out)});
    return true;
}

/* Is it an event? Return: 1; 0: no; -1: it wants to be one, but what each has is missing. */
int rr_event_check(const struct meta *m)
{
    static const char *const required[] = {"ce-id", "ce-source", "ce-type"};
    struct rr_text t;

    if (!rr_meta_find(m->data, m->len, "ce-specversion", &t))
        return 0;
    if (!rr_text_is(t, "1.0"))
        return -1;
    for (size_t n = 0; n < RR_ARRAY_LEN(required); n++)
        if (!rr_meta_find(m->data, m->len, required[n], &t) || t.len == 0)
            return -1;
    return 1;
}

/* --- structured mode ------------------------------------------------------------------------- */

/* Of JSON that is known to be good: past the value at @at. */
static size_t skip_value(const char *s, size_t len, size_t at)
{
    unsigned int depth = 0;
    bool quoted = false;

    for (; at < len; at++) {
        if (quoted) {
            if (s[at] == '\\')
                at++;
            else if (s[at] == '"')
                quoted = false;
        } else if (s[at] == '"') {
            quoted = true;
        } else if (s[at] == '{' || s[at] == '[') {
            depth++;
        } else if (depth && (s[at] == '}' || s[at] == ']')) {
            depth--;
        } else if (!depth && (s[at] == ',' || s[at] == '}')) {
            break;
        }
    }
    return at;
}

static size_t skip_space(const char *s, size_t len, size_t at)
{
    while (at < len && (s[at] == ' ' || s[at] == '\t' || s[at] == '\n' || s[at] == '\r'))
        at++;
    return at;
}

/* The bytes of member "data", as they are. False: there is none, or more than one. */
static bool find_data(const char *s, size_t len, struct rr_text *ret)
{
    size_t at = skip_space(s, len, 0) + 1, n = 0; /* behind the brace */

    while ((at = skip_space(s, len, at)) < len && s[at] == '"') {
        size_t name = at + 1, end = name;

        while (end < len && s[end] != '"')
            end += s[end] == '\\' ? 2 : 1;
        at = skip_space(s, len, skip_space(s, len, end + 1) + 1); /* and the colon */
        if (end - name == 4 && end < len && memcmp(s + name, "data", 4) == 0) {
            n++;
            ret->at = s + at;
            ret->len = skip_value(s, len, at) - at;
        }
        at = skip_value(s, len, at) + 1;
    }
    while (n == 1 && ret->len && strchr(" \t\r\n", ret->at[ret->len - 1]))
        ret->len--;
    return n == 1;
}

static bool put_attribute(struct meta *m, const char *name, struct json_object *value)
{
    struct rr_text v;

    if (!name_ok(text_of(name)) || json_object_is_type(value, json_type_object) ||
        json_object_is_type(value, json_type_array))
        return false;
    if (!value) /* null: as if it was not there */
        return true;
    v = (struct rr_text){json_object_get_string(value), 0};
    v.len = json_object_is_type(value, json_type_string) ? (size_t)json_object_get_string_len(value)
                                                         : strlen(v.at);
    if (v.len > MAX_ATTRIBUTE)
        return false;
    if (strcmp(name, "datacontenttype") == 0)
        rr_meta_put(m, "", text_of("content-type"), v);
    else
        rr_meta_put(m, "ce-", text_of(name), v);
    return true;
}

/* Return: bytes, or -1. In place: what is decoded is shorter. */
static int64_t decode_base64(uint8_t *to, const char *from, size_t len)
{
    int n;

    if (len % 4 || len > INT32_MAX)
        return -1;
    n = EVP_DecodeBlock(to, (const unsigned char *)from, (int)len);
    for (size_t k = 0; n > 0 && k < 2 && len && from[len - 1 - k] == '='; k++)
        n--; /* what pads it was decoded, too */
    return n < 0 ? -1 : n;
}

/* JSON, as it came; or a string without its quotes, if the data is no JSON. */
static int64_t take_data(uint8_t *payload, size_t len, struct json_object *data, bool is_json)
{
    struct rr_text span;
    int64_t n;

    if (!find_data((const char *)payload, len, &span))
        return -1;
    if (!is_json && json_object_is_type(data, json_type_string)) {
        n = json_object_get_string_len(data);
        memcpy(payload, json_object_get_string(data), (size_t)n);
        return n;
    }
    memmove(payload, span.at, span.len);
    return (int64_t)span.len;
}

static bool is_json_type(const char *type)
{
    size_t len = strcspn(type, "; ");

    return len >= 4 && (strncasecmp(type + len - 4, "json", 4) == 0);
}

static int64_t unpack(struct meta *m, struct json_object *event, uint8_t *payload, size_t len)
{
    struct json_object *data = NULL, *base64 = NULL, *type = NULL;
    struct json_object_iterator at = json_object_iter_begin(event);
    struct json_object_iterator end = json_object_iter_end(event);
    bool has_data = json_object_object_get_ex(event, "data", &data);
    bool has_base64 = json_object_object_get_ex(event, "data_base64", &base64);

    for (; !json_object_iter_equal(&at, &end); json_object_iter_next(&at)) {
        const char *name = json_object_iter_peek_name(&at);

        if (strcmp(name, "data") != 0 && strcmp(name, "data_base64") != 0 &&
            !put_attribute(m, name, json_object_iter_peek_value(&at)))
            return -1;
    }
    if (has_data && has_base64)
        return -1;
    if (has_base64)
        return json_object_is_type(base64, json_type_string)
                   ? decode_base64(payload, json_object_get_string(base64),
                                   (size_t)json_object_get_string_len(base64))
                   : -1;
    json_object_object_get_ex(event, "datacontenttype", &type);
    if (!type)
        rr_meta_put(m, "", text_of("content-type"), text_of("application/json"));
    return has_data
               ? take_data(payload, len, data, !type || is_json_type(json_object_get_string(type)))
               : 0;
}

int rr_event_unpack(struct meta *m, uint8_t *payload, uint64_t *len)
{
    struct json_tokener *tokener;
    struct json_object *event;
    int64_t n = -1;

    if (*len > MAX_STRUCTURED)
        return 413;
    tokener = json_tokener_new();
    if (!tokener)
        return 503;
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    event = json_tokener_parse_ex(tokener, (const char *)payload, (int)*len);
    if (event && json_object_is_type(event, json_type_object) &&
        json_tokener_get_error(tokener) == json_tokener_success &&
        skip_space((const char *)payload, *len, json_tokener_get_parse_end(tokener)) == *len)
        n = unpack(m, event, payload, *len);
    json_object_put(event);
    json_tokener_free(tokener);
    if (n < 0 || m->failed || rr_event_check(m) != 1)
        return 400;
    *len = (uint64_t)n;
    return 0;
}

/* --- duplicates ------------------------------------------------------------------------------ */

struct entry {
    uint8_t digest[16];
    uint64_t begin_ns;
    uint32_t next; /* of the same bucket; index + 1 */
    enum { FREE, PENDING, DONE } state;
};

struct rr_events {
    pthread_mutex_t lock;
    uint8_t secret[16];    /* so that nobody can choose what shares a bucket */
    uint64_t window_ns, n; /* entries ever made: the next one goes to n % N_SEEN */
    uint32_t buckets[N_SEEN];
    struct entry entries[N_SEEN];
};

struct rr_events *rr_events_new(uint64_t window_ns)
{
    struct rr_events *e = calloc(1, sizeof(*e));

    if (!e)
        return NULL;
    pthread_mutex_init(&e->lock, NULL);
    e->window_ns = window_ns;
    if (RAND_bytes(e->secret, sizeof(e->secret)) != 1) {
        rr_events_free(e);
        return NULL;
    }
    return e;
}

void rr_events_free(struct rr_events *e)
{
    if (e)
        pthread_mutex_destroy(&e->lock);
    free(e);
}

static uint32_t *bucket_of(struct rr_events *e, const uint8_t *digest)
{
    uint32_t n;

    memcpy(&n, digest, sizeof(n));
    return &e->buckets[n % N_SEEN];
}

bool rr_event_key(const char *path, const struct meta *m, uint8_t ret[32])
{
    struct rr_text source, id;
    uint8_t out[EVP_MAX_MD_SIZE];
    uint64_t lens[2];
    EVP_MD_CTX *ctx;
    bool good;

    if (!rr_meta_find(m->data, m->len, "ce-source", &source) ||
        !rr_meta_find(m->data, m->len, "ce-id", &id))
        return false;
    lens[0] = source.len;
    lens[1] = id.len;
    ctx = EVP_MD_CTX_new();
    good = ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1 &&
           EVP_DigestUpdate(ctx, lens, sizeof(lens)) == 1 &&
           EVP_DigestUpdate(ctx, source.at, source.len) == 1 &&
           EVP_DigestUpdate(ctx, id.at, id.len) == 1 &&
           EVP_DigestUpdate(ctx, path, strlen(path)) == 1 &&
           EVP_DigestFinal_ex(ctx, out, NULL) == 1;
    EVP_MD_CTX_free(ctx);
    if (good)
        memcpy(ret, out, 32);
    return good;
}

/* The key is known outside, and on disks; the digest, which chooses the bucket, is not. */
static bool digest(const struct rr_events *e, const uint8_t key[32], uint8_t ret[16])
{
    uint8_t out[EVP_MAX_MD_SIZE];
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool good = ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1 &&
                EVP_DigestUpdate(ctx, e->secret, sizeof(e->secret)) == 1 &&
                EVP_DigestUpdate(ctx, key, 32) == 1 && EVP_DigestFinal_ex(ctx, out, NULL) == 1;

    EVP_MD_CTX_free(ctx);
    if (good)
        memcpy(ret, out, 16);
    return good;
}

static void unlink_entry(struct rr_events *e, uint32_t at)
{
    uint32_t *p = bucket_of(e, e->entries[at].digest);

    while (*p != at + 1)
        p = &e->entries[*p - 1].next;
    *p = e->entries[at].next;
    e->entries[at].state = FREE;
}

/* A place for a new one: the oldest, unless that is being handled. */
static uint32_t make_place(struct rr_events *e)
{
    uint32_t at = (uint32_t)(e->n++ % N_SEEN);

    for (unsigned int n = 0; e->entries[at].state == PENDING && n < N_SEEN; n++)
        at = (uint32_t)(e->n++ % N_SEEN);
    if (e->entries[at].state != FREE)
        unlink_entry(e, at);
    return at;
}

static uint32_t add_entry(struct rr_events *e, const uint8_t d[16], uint64_t begin_ns)
{
    uint32_t at = make_place(e);

    memcpy(e->entries[at].digest, d, 16);
    e->entries[at].begin_ns = begin_ns;
    e->entries[at].state = PENDING;
    e->entries[at].next = *bucket_of(e, d);
    *bucket_of(e, d) = at + 1;
    return at;
}

void rr_event_restore(struct rr_events *e, const uint8_t key[32], uint64_t ago_ns)
{
    uint64_t now = rr_now_ns();
    uint8_t d[16];

    if (ago_ns >= e->window_ns || !digest(e, key, d))
        return;
    pthread_mutex_lock(&e->lock);
    e->entries[add_entry(e, d, now - ago_ns)].state = DONE; /* may be before the clock's zero */
    pthread_mutex_unlock(&e->lock);
}

enum rr_event_seen rr_event_begin(struct rr_events *e, const char *path, const struct meta *m,
                                  uint32_t *ret)
{
    enum rr_event_seen seen = RR_EVENT_NEW;
    uint64_t now = rr_now_ns();
    uint8_t key[32], d[16];
    uint32_t at;

    *ret = 0;
    if (!e || !rr_event_key(path, m, key) || !digest(e, key, d))
        return RR_EVENT_NEW;
    pthread_mutex_lock(&e->lock);
    at = *bucket_of(e, d);
    while (at && memcmp(e->entries[at - 1].digest, d, sizeof(d)) != 0)
        at = e->entries[at - 1].next;
    if (at && e->entries[at - 1].state == PENDING) {
        seen = RR_EVENT_PENDING;
    } else if (at && now - e->entries[at - 1].begin_ns < e->window_ns) {
        seen = RR_EVENT_DONE;
    } else {
        if (at)
            unlink_entry(e, at - 1);
        at = add_entry(e, d, now);
        *ret = at + 1;
    }
    pthread_mutex_unlock(&e->lock);
    return seen;
}

void rr_event_end(struct rr_events *e, uint32_t event, bool done)
{
    if (!event)
        return;
    pthread_mutex_lock(&e->lock);
    if (done) {
        e->entries[event - 1].state = DONE;
        e->entries[event - 1].begin_ns = rr_now_ns();
    } else {
        unlink_entry(e, event - 1); /* it may come again */
    }
    pthread_mutex_unlock(&e->lock);
}
