/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "gateway/http.h"

#define HOST "Host: a\r\n"

static struct rr_http_request parsed;

/* From a copy that ends with the text: a sanitizer sees what is read beyond. */
static int parse(const char *text)
{
    size_t len = strlen(text), seen = 0;
    char *copy = malloc(len ? len : 1);
    ssize_t r;

    assert_non_null(copy);
    memcpy(copy, text, len);
    r = rr_http_parse(copy, len, &seen, &parsed);
    free(copy);
    return (int)r;
}

/* --- heads ----------------------------------------------------------------------------------- */

#define GOOD 1

static const struct {
    const char *text;
    int expected; /* GOOD: all of it is a head; 0: more is needed; else the refusal */
} heads[] = {
    {"GET / HTTP/1.1\r\n" HOST "\r\n", GOOD},
    {"\r\nGET / HTTP/1.1\r\n" HOST "\r\n", GOOD},
    {"GET /a?b=c HTTP/1.1\r\n" HOST "X: \r\n\r\n", GOOD},
    {"GET http://a/b HTTP/1.1\r\n" HOST "\r\n", GOOD},
    {"OPTIONS * HTTP/1.1\r\n" HOST "\r\n", GOOD},
    {"GET / HTTP/1.0\r\n\r\n", GOOD},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n", GOOD},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length:12 \r\n\r\n", GOOD},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: Chunked\r\n\r\n", GOOD},
    {"", 0},
    {"GET / HT", 0},
    {"GET / HTTP/1.1\r\n" HOST, 0},
    {"GET / HTTP/1.1\r\n" HOST "\r", 0},
    /* line ends */
    {"GET / HTTP/1.1\n" HOST "\r\n", -400},
    {"GET / HTTP/1.1\r\nHost: a\n\r\n", -400},
    {"GET / HTTP/1.1\r\n" HOST "\n", -400},
    {"\nGET / HTTP/1.1\r\n" HOST "\r\n", -400},
    {"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", -400},
    {"GET / HTTP/1.1\r\nHost: a\n", -400}, /* at once, and not when it is complete */
    /* names and values */
    {"GET / HTTP/1.1\r\nHost : a\r\n\r\n", -400},
    {"GET / HTTP/1.1\r\n Host: a\r\n\r\n", -400},
    {"GET / HTTP/1.1\r\n" HOST "X: a\r\n b\r\n\r\n", -400},
    {"GET / HTTP/1.1\r\n" HOST "X: a\r\n\tb\r\n\r\n", -400},
    {"GET / HTTP/1.1\r\n" HOST "X\r\n\r\n", -400},
    {"GET / HTTP/1.1\r\n" HOST ": x\r\n\r\n", -400},
    {"GET / HTTP/1.1\r\n" HOST "X(: x\r\n\r\n", -400},
    {"GET / HTTP/1.1\r\n" HOST "X: a\x01\r\n\r\n", -400},
    {"GET / HTTP/1.1\r\n" HOST "X: a\x7f\r\n\r\n", -400},
    /* the first line */
    {"GET  / HTTP/1.1\r\n" HOST "\r\n", -400},
    {"GET / HTTP/1.1 \r\n" HOST "\r\n", -400},
    {"GET /\r\n" HOST "\r\n", -400},
    {"G(T / HTTP/1.1\r\n" HOST "\r\n", -400},
    {"GET a HTTP/1.1\r\n" HOST "\r\n", -400},
    {"GET /a#b HTTP/1.1\r\n" HOST "\r\n", -400},
    {"GET /\xc3\xa4 HTTP/1.1\r\n" HOST "\r\n", -400},
    {"GET * HTTP/1.1\r\n" HOST "\r\n", -400},
    {"GET http://a HTTP/1.1\r\n" HOST "\r\n", -400},
    {"CONNECT a:1 HTTP/1.1\r\n" HOST "\r\n", -501},
    {"GET / HTTP/2.0\r\n" HOST "\r\n", -400},
    {"GET / HTTP/1.2\r\n" HOST "\r\n", -505},
    {"GET / http/1.1\r\n" HOST "\r\n", -400},
    /* hosts */
    {"GET / HTTP/1.1\r\n\r\n", -400},
    {"GET / HTTP/1.1\r\n" HOST HOST "\r\n", -400},
    {"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", -400},
    {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", -400},
    /* framing */
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nContent-Length: 1\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1, 1\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: +1\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: -1\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 0x1\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1 1\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: \r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 9223372036854775808\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 18446744073709551617\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
     -400},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip, chunked\r\n\r\n", -501},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked, identity\r\n\r\n", -501},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: xchunked\r\n\r\n", -501},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding:\r\n\r\n", -501},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding : chunked\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: \x0b"
     "chunked\r\n\r\n",
     -400},
    {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", -400},
    {"POST / HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n", GOOD},
    {"POST / HTTP/1.1\r\n" HOST "Expect: a miracle\r\n\r\n", -417},
};

static void test_heads(void **state)
{
    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(heads); n++) {
        int r = parse(heads[n].text);
        int expected = heads[n].expected == GOOD ? (int)strlen(heads[n].text) : heads[n].expected;

        if (r != expected)
            fail_msg("%s\n-> %d, expected %d", heads[n].text, r, expected);
    }
}

static void test_nul(void **state)
{
    static const char text[] = "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n";
    size_t seen = 0;

    (void)state;
    assert_int_equal(rr_http_parse(text, sizeof(text) - 1, &seen, &parsed), -400);
}

/* What comes byte by byte is the same as what comes at once. */
static void test_pieces(void **state)
{
    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(heads); n++) {
        size_t len = strlen(heads[n].text), seen = 0;
        ssize_t r = 0;

        for (size_t k = 1; k <= len && r == 0; k++)
            r = rr_http_parse(heads[n].text, k, &seen, &parsed);
        assert_int_equal(r, heads[n].expected == GOOD ? (ssize_t)len : heads[n].expected);
    }
}

static void test_fields(void **state)
{
    static const char text[] = "POST /a/b?c=d&e HTTP/1.1\r\nHOST: x:80\r\nContent-Length: 7\r\n"
                               "X-Y:  z \t\r\nExpect: 100-continue\r\n\r\nbody";
    size_t seen = 0;

    (void)state;
    assert_int_equal(rr_http_parse(text, sizeof(text) - 1, &seen, &parsed), sizeof(text) - 5);
    assert_true(rr_text_is(parsed.method, "POST") && rr_text_is(parsed.path, "/a/b"));
    assert_true(rr_text_is(parsed.query, "c=d&e") && rr_text_is(parsed.host, "x:80"));
    assert_true(parsed.keep_alive && parsed.expects_continue && parsed.has_length);
    assert_int_equal(parsed.length, 7);
    assert_true(rr_text_is(*rr_http_header(&parsed, "x-y"), "z"));
    assert_null(rr_http_header(&parsed, "x-z"));
}

static const struct {
    const char *text;
    bool keep;
} connections[] = {
    {"GET / HTTP/1.1\r\n" HOST "\r\n", true},
    {"GET / HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n", false},
    {"GET / HTTP/1.1\r\n" HOST "Connection: x, Close\r\n\r\n", false},
    {"GET / HTTP/1.1\r\n" HOST "Connection: closed\r\n\r\n", true},
    {"GET / HTTP/1.0\r\n\r\n", false},
    {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true},
};

static void test_connections(void **state)
{
    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(connections); n++) {
        size_t seen = 0;

        assert_true(
            rr_http_parse(connections[n].text, strlen(connections[n].text), &seen, &parsed) > 0);
        assert_int_equal(parsed.keep_alive, connections[n].keep);
    }
}

static void test_limits(void **state)
{
    static char text[200000];
    size_t len;

    (void)state;
    for (size_t n = RR_HTTP_MAX_HEADERS - 1; n <= RR_HTTP_MAX_HEADERS; n++) {
        len = (size_t)sprintf(text, "GET / HTTP/1.1\r\n" HOST);
        for (size_t k = 0; k < n; k++)
            len += (size_t)sprintf(text + len, "X-%zu: y\r\n", k);
        sprintf(text + len, "\r\n");
        assert_int_equal(parse(text) > 0, n < RR_HTTP_MAX_HEADERS);
    }
    assert_int_equal(parse(text), -431);
    len = (size_t)sprintf(text, "GET /");
    memset(text + len, 'a', RR_HTTP_MAX_TARGET);
    sprintf(text + len + RR_HTTP_MAX_TARGET, " HTTP/1.1\r\n" HOST "\r\n");
    assert_int_equal(parse(text), -414);
    sprintf(text + len + RR_HTTP_MAX_TARGET - 1, " HTTP/1.1\r\n" HOST "\r\n");
    assert_true(parse(text) > 0);
}

/* --- chunks ---------------------------------------------------------------------------------- */

static const struct {
    const char *text, *payload; /* NULL: refused */
    size_t used;                /* 0: all */
} bodies[] = {
    {"0\r\n\r\n", "", 0},
    {"3\r\nabc\r\n0\r\n\r\n", "abc", 0},
    {"3\r\nabc\r\n0\r\n\r\nGET /", "abc", 13},
    {"1\r\na\r\n00002\r\nbc\r\n000\r\n\r\n", "abc", 0},
    {"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", 0},
    {"3;a=b\r\nabc\r\n0;c=\"d\"\r\n\r\n", "abc", 0},
    {"1\r\na\r\n0\r\nX: y\r\nZ:\r\n\r\n", "a", 0},
    {"\r\n", NULL, 0},
    {"g\r\n", NULL, 0},
    {" 1\r\na", NULL, 0},
    {"1 \r\na", NULL, 0},
    {"+1\r\na", NULL, 0},
    {"-1\r\na", NULL, 0},
    {"0x1\r\na", NULL, 0},
    {";a\r\n", NULL, 0},
    {"1\na\r\n0\r\n\r\n", NULL, 0},
    {"1\r\na\n0\r\n\r\n", NULL, 0},
    {"1\r\nab\r\n0\r\n\r\n", NULL, 0},
    {"1\r\na0\r\n\r\n", NULL, 0},
    {"1;a\nb\r\na\r\n0\r\n\r\n", NULL, 0},
    {"1;\x01\r\na\r\n0\r\n\r\n", NULL, 0},
    {"1\ra\r\n", NULL, 0},
    {"1\r.a\r\n0\r\n\r\n", NULL, 0},
    {"1\r\na\r.0\r\n\r\n", NULL, 0},
    {"1\r\na\r\n0\r\n\r.", NULL, 0},
    {"0\r\nX\r\n\r\n", NULL, 0},
    {"0\r\n X: y\r\n\r\n", NULL, 0},
    {"0\r\nX : y\r\n\r\n", NULL, 0},
    {"0\r\nX: y\n\r\n", NULL, 0},
    {"0\r\n\n", NULL, 0},
    {"ffffffffffffffff\r\n", NULL, 0},
    {"10000000000000000\r\n", NULL, 0},
};

/* Takes it in pieces of @step bytes. Return: payload bytes in @out, or -1. */
static ssize_t unchunk(const char *text, size_t len, size_t step, char *out, size_t *used)
{
    struct rr_chunks c = {0};
    size_t at = 0, n_out = 0;

    while (at < len && c.state != RR_CHUNK_END) {
        size_t n = rr_min(step, len - at);

        if (c.state == RR_CHUNK_DATA) {
            n = rr_min(n, c.left);
            memcpy(out + n_out, text + at, n);
            n_out += n;
            rr_chunks_took(&c, n);
        } else {
            ssize_t r = rr_chunks_feed(&c, text + at, n);

            if (r < 0)
                return -1;
            n = (size_t)r;
        }
        at += n;
    }
    *used = at;
    return c.state == RR_CHUNK_END ? (ssize_t)n_out : -2;
}

static void test_chunks(void **state)
{
    char out[100];
    size_t used = 0;

    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(bodies); n++)
        for (size_t step = 1; step < 40; step++) {
            size_t len = strlen(bodies[n].text);
            ssize_t r = unchunk(bodies[n].text, len, step, out, &used);

            if (!bodies[n].payload) {
                if (r != -1)
                    fail_msg("taken: %s", bodies[n].text);
                continue;
            }
            if (r != (ssize_t)strlen(bodies[n].payload))
                fail_msg("%zd of %s in steps of %zu", r, bodies[n].text, step);
            assert_memory_equal(out, bodies[n].payload, (size_t)r);
            assert_int_equal(used, bodies[n].used ? bodies[n].used : len);
        }
}

static void test_chunk_limits(void **state)
{
    struct rr_chunks c = {0};
    char line[RR_HTTP_MAX_TRAILER + 100];

    (void)state;
    memset(line, '0', sizeof(line));
    assert_int_equal(rr_chunks_feed(&c, line, 15), 15);
    assert_int_equal(rr_chunks_feed(&c, line, 1), -1);
    c = (struct rr_chunks){0};
    memset(line, 'a', sizeof(line));
    memcpy(line, "1;", 2);
    assert_int_equal(rr_chunks_feed(&c, line, sizeof(line)), -1);
    c = (struct rr_chunks){0};
    memset(line, 'a', sizeof(line));
    memcpy(line, "0\r\nx:", 5);
    assert_int_equal(rr_chunks_feed(&c, line, sizeof(line)), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heads),       cmocka_unit_test(test_nul),
        cmocka_unit_test(test_pieces),      cmocka_unit_test(test_fields),
        cmocka_unit_test(test_connections), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_chunks),      cmocka_unit_test(test_chunk_limits),
    };

    return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
