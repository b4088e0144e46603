/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP/1.1 as bytes: the head of a request, the framing of a chunked body, the head of a reply.
 * Knows no sockets. Strict where two readers of the same bytes could see different requests.
 */
#ifndef RR_GATEWAY_HTTP_H
#define RR_GATEWAY_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define RR_HTTP_MAX_HEADERS 100
#define RR_HTTP_MAX_TARGET 8192u
#define RR_HTTP_MAX_LINE 256u     /* of a chunk's size, with its extensions */
#define RR_HTTP_MAX_TRAILER 8192u /* bytes after the last chunk */

/* Borrowed from the buffer that was parsed; not NUL-terminated. */
struct rr_text {
    const char *at;
    size_t len;
};

struct rr_http_header {
    struct rr_text name, value;
};

struct rr_http_request {
    struct rr_text method, path, query, host; /* path: as it came, not decoded; query: after '?' */
    int minor;                                /* HTTP/1.minor */
    bool keep_alive, expects_continue, chunked, has_length;
    uint64_t length; /* of the body; 0 without one */
    struct rr_http_header headers[RR_HTTP_MAX_HEADERS];
    size_t n_headers;
};

/**
 * rr_http_parse() - the head of a request
 * @seen:  in and out: how much of @buf was there at the last call, 0 at first
 *
 * Return: bytes of the head; 0: it is not complete; else the negative HTTP status to refuse it
 * with, after which nothing more is known about where requests begin.
 */
ssize_t rr_http_parse(const char *buf, size_t len, size_t *seen, struct rr_http_request *ret);
/* A header's value; NULL: there is none. @name in lower case. */
const struct rr_text *rr_http_header(const struct rr_http_request *rq, const char *name);
char rr_lower(char c);
int rr_hex_digit(char c);                              /* -1: it is none */
bool rr_text_is(struct rr_text t, const char *s);      /* the same bytes */
bool rr_text_is_word(struct rr_text t, const char *s); /* but for the case; @s in lower case */
/* Does a list such as `a, b;q=1` have @word? */
bool rr_text_has(struct rr_text list, const char *word);

/* Where in a chunked body we are. Zeroed: at its start. */
struct rr_chunks {
    enum {
        RR_CHUNK_SIZE,
        RR_CHUNK_EXTENSION,
        RR_CHUNK_SIZE_LF,
        RR_CHUNK_DATA,
        RR_CHUNK_DATA_CR,
        RR_CHUNK_DATA_LF,
        RR_CHUNK_TRAILER,
        RR_CHUNK_TRAILER_LF,
        RR_CHUNK_END
    } state;
    uint64_t left; /* bytes of payload that come next, in RR_CHUNK_DATA */
    unsigned int digits, line, trailer;
    bool colon; /* the trailer's line has one */
};

/**
 * rr_chunks_feed() - read framing, up to where payload begins or all ends
 *
 * Return: bytes of @buf used; -1: it is no chunked body. With RR_CHUNK_DATA, take up to @c->left
 * bytes of payload from what follows, and say so with rr_chunks_took().
 */
ssize_t rr_chunks_feed(struct rr_chunks *c, const char *buf, size_t len);
void rr_chunks_took(struct rr_chunks *c, uint64_t n);

const char *rr_http_reason(int status);
/* May a reply's header be called so, and have such a value? */
bool rr_http_name_ok(const char *at, size_t len);
bool rr_http_value_ok(const char *at, size_t len);

#endif
