/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection's bytes: heads and bodies, one after the other, as a client sends them. What comes
 * in pieces is what comes at once; views lie within the bytes; and what was taken can be told again
 * in one way only: the head, written anew in the plainest form, is parsed to the same.
 *
 * The first byte is the size of the pieces.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "gateway/http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check(bool good)
{
    if (!good)
        abort();
}

static void check_text(struct rr_text t, const char *buf, size_t len)
{
    check(!t.at || (t.at >= buf && t.at + t.len <= buf + len));
}

static bool same(struct rr_text a, struct rr_text b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0);
}

static void append(char **at, struct rr_text t)
{
    if (t.len)
        memcpy(*at, t.at, t.len);
    *at += t.len;
}

static void append_string(char **at, const char *s)
{
    append(at, (struct rr_text){s, strlen(s)});
}

static void check_again(const struct rr_http_request *rq, size_t len)
{
    static struct rr_http_request again;
    char *text = malloc(2 * len + 1024), *at = text;
    size_t seen = 0;

    append(&at, rq->method);
    append_string(&at, " ");
    append(&at, rq->path);
    if (rq->query.at) {
        append_string(&at, "?");
        append(&at, rq->query);
    }
    append_string(&at, rq->minor ? " HTTP/1.1\r\n" : " HTTP/1.0\r\n");
    for (size_t n = 0; n < rq->n_headers; n++) {
        append(&at, rq->headers[n].name);
        append_string(&at, ":");
        append(&at, rq->headers[n].value);
        append_string(&at, "\r\n");
    }
    append_string(&at, "\r\n");
    check(rr_http_parse(text, (size_t)(at - text), &seen, &again) == at - text);
    check(again.length == rq->length && again.chunked == rq->chunked &&
          again.keep_alive == rq->keep_alive && again.n_headers == rq->n_headers &&
          same(again.path, rq->path) && same(again.query, rq->query) && same(again.host, rq->host));
    free(text);
}

static void check_request(const struct rr_http_request *rq, const char *buf, size_t len)
{
    check_text(rq->method, buf, len);
    check_text(rq->path, buf, len);
    check_text(rq->query, buf, len);
    check_text(rq->host, buf, len);
    check(!(rq->chunked && rq->has_length) && rq->n_headers <= RR_HTTP_MAX_HEADERS);
    check(rq->has_length || rq->length == 0);
    for (size_t n = 0; n < rq->n_headers; n++) {
        check_text(rq->headers[n].name, buf, len);
        check_text(rq->headers[n].value, buf, len);
        check(rr_http_name_ok(rq->headers[n].name.at, rq->headers[n].name.len));
        check(rr_http_value_ok(rq->headers[n].value.at, rq->headers[n].value.len));
    }
    check_again(rq, len);
}

/* Return: bytes of the body, or -1 when it is malformed or not all there. */
static ssize_t chunks(const char *buf, size_t len, size_t step, uint64_t *ret_payload)
{
    struct rr_chunks c = {0};
    size_t at = 0;

    *ret_payload = 0;
    while (c.state != RR_CHUNK_END) {
        size_t n = rr_min(step, len - at);
        ssize_t r;

        if (n == 0)
            return -1;
        if (c.state == RR_CHUNK_DATA) {
            n = rr_min(n, c.left);
            check(n > 0);
            rr_chunks_took(&c, n);
            *ret_payload += n;
            at += n;
            continue;
        }
        r = rr_chunks_feed(&c, buf + at, n);
        if (r < 0)
            return -1;
        check((size_t)r <= n && r > 0);
        at += (size_t)r;
    }
    return (ssize_t)at;
}

static ssize_t body(const struct rr_http_request *rq, const char *buf, size_t len, size_t step)
{
    uint64_t one, other;
    ssize_t r;

    if (!rq->chunked)
        return rq->length <= len ? (ssize_t)rq->length : -1;
    r = chunks(buf, len, step, &one);
    check(chunks(buf, len, SIZE_MAX, &other) == r && (r < 0 || one == other));
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct rr_http_request rq, whole;
    size_t step = len ? (size_t)data[0] % 64 + 1 : 1, at = 0;
    char *buf;

    if (len < 2)
        return 0;
    len--;
    buf = malloc(len); /* exactly as long: what is read beyond is noticed */
    memcpy(buf, data + 1, len);
    while (at < len) {
        size_t seen = 0, there = 0;
        ssize_t r = 0, n;

        while (r == 0 && there < len - at) {
            there = rr_min(there + step, len - at);
            r = rr_http_parse(buf + at, there, &seen, &rq);
        }
        if (r <= 0)
            break;
        seen = 0;
        check(rr_http_parse(buf + at, len - at, &seen, &whole) == r);
        check_request(&rq, buf + at, (size_t)r);
        at += (size_t)r;
        n = body(&rq, buf + at, len - at, step);
        if (n < 0)
            break;
        at += (size_t)n;
    }
    free(buf);
    return 0;
}
