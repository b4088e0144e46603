/* SPDX-License-Identifier: Apache-2.0 */
#include "gateway/http.h"

#include <string.h>
#include <strings.h>

#include "base/util.h"

/* picohttpparser, which Debian ships within libh2o: see docs/adr/0008. No header of it is
 * installed. */
struct phr_header {
    const char *name; /* NULL: the line continues the one before */
    size_t name_len;
    const char *value;
    size_t value_len;
};
int phr_parse_request(const char *buf, size_t len, const char **method, size_t *method_len,
                      const char **path, size_t *path_len, int *minor_version,
                      struct phr_header *headers, size_t *num_headers, size_t last_len);

static bool is_token(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

bool rr_http_name_ok(const char *at, size_t len)
{
    for (size_t n = 0; n < len; n++)
        if (!is_token((unsigned char)at[n]))
            return false;
    return len > 0;
}

bool rr_http_value_ok(const char *at, size_t len)
{
    for (size_t n = 0; n < len; n++)
        if (((unsigned char)at[n] < 0x20 && at[n] != '\t') || at[n] == 0x7f)
            return false;
    return true;
}

char rr_lower(char c)
{
    static const char lower[] = "abcdefghijklmnopqrstuvwxyz";

    if (c >= 'A' && c <= 'Z')
        return lower[c - 'A'];
    return c;
}

bool rr_text_is(struct rr_text t, const char *s)
{
    return strlen(s) == t.len && memcmp(t.at, s, t.len) == 0;
}

bool rr_text_is_word(struct rr_text t, const char *s)
{
    return strlen(s) == t.len && strncasecmp(t.at, s, t.len) == 0;
}

static struct rr_text trim(struct rr_text t)
{
    while (t.len && (*t.at == ' ' || *t.at == '\t')) {
        t.at++;
        t.len--;
    }
    while (t.len && (t.at[t.len - 1] == ' ' || t.at[t.len - 1] == '\t'))
        t.len--;
    return t;
}

bool rr_text_has(struct rr_text list, const char *word)
{
    while (list.len) {
        const char *comma = memchr(list.at, ',', list.len);
        size_t len = comma ? (size_t)(comma - list.at) : list.len;
        const char *semicolon = memchr(list.at, ';', len);
        struct rr_text one = {list.at, semicolon ? (size_t)(semicolon - list.at) : len};

        if (rr_text_is_word(trim(one), word))
            return true;
        list.at += comma ? len + 1 : len;
        list.len -= comma ? len + 1 : len;
    }
    return false;
}

const struct rr_text *rr_http_header(const struct rr_http_request *rq, const char *name)
{
    for (size_t n = 0; n < rq->n_headers; n++)
        if (rr_text_is_word(rq->headers[n].name, name))
            return &rq->headers[n].value;
    return NULL;
}

/* The parser takes a line that ends with LF alone; another reader may not. */
static bool lines_ok(const char *buf, size_t len)
{
    const char *end = buf + len, *p = buf;

    while ((p = memchr(p, '\n', (size_t)(end - p)))) {
        if (p == buf || p[-1] != '\r')
            return false;
        p++;
    }
    for (p = buf; (p = memchr(p, '\r', (size_t)(end - p))); p++)
        if (p + 1 < end && p[1] != '\n')
            return false;
    return true;
}

static int parse_length(struct rr_text t, uint64_t *ret)
{
    uint64_t n = 0;

    if (t.len == 0 || t.len > 19)
        return -400;
    for (size_t k = 0; k < t.len; k++) {
        if (t.at[k] < '0' || t.at[k] > '9')
            return -400;
        n = n * 10 + (uint64_t)(t.at[k] - '0');
    }
    if (n > (uint64_t)INT64_MAX)
        return -400;
    *ret = n;
    return 0;
}

static int use_connection(struct rr_http_request *rq, struct rr_text value)
{
    if (rr_text_has(value, "close"))
        rq->keep_alive = false;
    else if (rq->minor == 0 && rr_text_has(value, "keep-alive"))
        rq->keep_alive = true;
    return 0;
}

static int use_length(struct rr_http_request *rq, struct rr_text value)
{
    if (rq->has_length)
        return -400; /* also twice the same */
    rq->has_length = true;
    return parse_length(value, &rq->length);
}

static int use_coding(struct rr_http_request *rq, struct rr_text value)
{
    if (rq->chunked || rq->minor == 0)
        return -400;
    if (!rr_text_is_word(value, "chunked"))
        return -501;
    rq->chunked = true;
    return 0;
}

static int use_host(struct rr_http_request *rq, struct rr_text value)
{
    if (rq->host.at)
        return -400;
    for (size_t n = 0; n < value.len; n++)
        if ((unsigned char)value.at[n] <= ' ' || strchr("/?#@\\,", value.at[n]))
            return -400;
    rq->host = value;
    return 0;
}

static int use_expect(struct rr_http_request *rq, struct rr_text value)
{
    if (!rr_text_is_word(value, "100-continue"))
        return -417;
    rq->expects_continue = rq->minor >= 1;
    return 0;
}

/* What framing and the connection depend on. */
static int use_headers(struct rr_http_request *rq)
{
    static const struct {
        const char *name;
        int (*use)(struct rr_http_request *rq, struct rr_text value);
    } known[] = {{"host", use_host},
                 {"connection", use_connection},
                 {"content-length", use_length},
                 {"transfer-encoding", use_coding},
                 {"expect", use_expect}};
    int r = 0;

    rq->keep_alive = rq->minor >= 1;
    for (size_t n = 0; n < rq->n_headers && r == 0; n++)
        for (size_t k = 0; k < RR_ARRAY_LEN(known) && r == 0; k++)
            if (rr_text_is_word(rq->headers[n].name, known[k].name))
                r = known[k].use(rq, rq->headers[n].value);
    if (r)
        return r;
    if (rq->chunked && rq->has_length)
        return -400;
    if (rq->minor >= 1 && !rq->host.at)
        return -400;
    if (!rq->chunked && !rq->length)
        rq->expects_continue = false;
    return 0;
}

/* `/path?query`, `http://host/path?query`, or `*` for OPTIONS. */
static int use_target(struct rr_http_request *rq, struct rr_text t)
{
    const char *mark;

    if (t.len > RR_HTTP_MAX_TARGET)
        return -414;
    for (size_t n = 0; n < t.len; n++)
        if ((unsigned char)t.at[n] <= ' ' || (unsigned char)t.at[n] >= 0x7f || t.at[n] == '#')
            return -400;
    if (rr_text_is(rq->method, "CONNECT"))
        return -501;
    if (rr_text_is(t, "*") && rr_text_is(rq->method, "OPTIONS")) {
        rq->path = t;
        return 0;
    }
    if (t.len > 7 && strncasecmp(t.at, "http://", 7) == 0) {
        mark = memchr(t.at + 7, '/', t.len - 7);
        if (!mark)
            return -400;
        t = (struct rr_text){mark, t.len - (size_t)(mark - t.at)};
    }
    if (t.len == 0 || *t.at != '/')
        return -400;
    mark = memchr(t.at, '?', t.len);
    rq->path = (struct rr_text){t.at, mark ? (size_t)(mark - t.at) : t.len};
    if (mark)
        rq->query = (struct rr_text){mark + 1, t.len - rq->path.len - 1};
    return 0;
}

ssize_t rr_http_parse(const char *buf, size_t len, size_t *seen, struct rr_http_request *ret)
{
    struct phr_header headers[RR_HTTP_MAX_HEADERS];
    size_t n = RR_HTTP_MAX_HEADERS;
    struct rr_text method = {0}, target = {0};
    int minor = 0, r;

    r = phr_parse_request(buf, len, &method.at, &method.len, &target.at, &target.len, &minor,
                          headers, &n, *seen);
    if (r == -2) {
        *seen = len;
        return lines_ok(buf, len) ? 0 : -400;
    }
    if (r < 0)
        return n == RR_HTTP_MAX_HEADERS ? -431 : -400;
    if (!lines_ok(buf, (size_t)r) || !rr_http_name_ok(method.at, method.len))
        return -400;
    if (minor > 1)
        return -505;
    *ret = (struct rr_http_request){.method = method, .minor = minor, .n_headers = n};
    for (size_t k = 0; k < n; k++) {
        if (!headers[k].name || !rr_http_name_ok(headers[k].name, headers[k].name_len) ||
            !rr_http_value_ok(headers[k].value, headers[k].value_len))
            return -400;
        ret->headers[k] =
            (struct rr_http_header){{headers[k].name, headers[k].name_len},
                                    trim((struct rr_text){headers[k].value, headers[k].value_len})};
    }
    *seen = 0;
    n = (size_t)r;
    r = use_target(ret, target);
    if (r == 0)
        r = use_headers(ret);
    return r ? r : (ssize_t)n;
}

/* --- chunks ---------------------------------------------------------------------------------- */

int rr_hex_digit(char c)
{
    int lower = c | 0x20;

    if (c >= '0' && c <= '9')
        return c - '0';
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

static int feed_size(struct rr_chunks *c, char b)
{
    int digit = rr_hex_digit(b);

    if (++c->line > RR_HTTP_MAX_LINE)
        return -1;
    if (digit >= 0) {
        if (++c->digits > 15)
            return -1;
        c->left = c->left * 16 + (uint64_t)digit;
        return 0;
    }
    if (c->digits == 0 || (b != '\r' && b != ';'))
        return -1;
    c->state = b == '\r' ? RR_CHUNK_SIZE_LF : RR_CHUNK_EXTENSION;
    return 0;
}

static int feed_extension(struct rr_chunks *c, char b)
{
    if (++c->line > RR_HTTP_MAX_LINE)
        return -1;
    if (b == '\r')
        c->state = RR_CHUNK_SIZE_LF;
    else if (!rr_http_value_ok(&b, 1))
        return -1;
    return 0;
}

/* Lines of `name: value`, which are dropped, and an empty one. */
static int feed_trailer(struct rr_chunks *c, char b)
{
    if (++c->trailer > RR_HTTP_MAX_TRAILER)
        return -1;
    if (b == '\r') {
        if (c->line && !c->colon)
            return -1;
        c->state = RR_CHUNK_TRAILER_LF;
        return 0;
    }
    if (b == ':' && c->line)
        c->colon = true;
    if (c->colon ? !rr_http_value_ok(&b, 1) : !is_token((unsigned char)b))
        return -1;
    c->line++;
    return 0;
}

static int feed_lf(struct rr_chunks *c, char b)
{
    bool last = c->state == RR_CHUNK_SIZE_LF && c->left == 0;
    bool end = c->state == RR_CHUNK_TRAILER_LF && c->line == 0;

    if (b != '\n')
        return -1;
    if (c->state == RR_CHUNK_SIZE_LF)
        c->state = last ? RR_CHUNK_TRAILER : RR_CHUNK_DATA;
    else if (c->state == RR_CHUNK_DATA_LF)
        c->state = RR_CHUNK_SIZE;
    else
        c->state = end ? RR_CHUNK_END : RR_CHUNK_TRAILER;
    c->line = c->digits = 0;
    c->colon = false;
    return 0;
}

static int feed_one(struct rr_chunks *c, char b)
{
    switch (c->state) {
    case RR_CHUNK_SIZE:
        return feed_size(c, b);
    case RR_CHUNK_EXTENSION:
        return feed_extension(c, b);
    case RR_CHUNK_DATA_CR:
        c->state = RR_CHUNK_DATA_LF;
        return b == '\r' ? 0 : -1;
    case RR_CHUNK_TRAILER:
        return feed_trailer(c, b);
    case RR_CHUNK_SIZE_LF:
    case RR_CHUNK_DATA_LF:
    case RR_CHUNK_TRAILER_LF:
        return feed_lf(c, b);
    case RR_CHUNK_DATA:
    case RR_CHUNK_END:
        break;
    }
    return -1;
}

ssize_t rr_chunks_feed(struct rr_chunks *c, const char *buf, size_t len)
{
    size_t n = 0;

    while (n < len && c->state != RR_CHUNK_DATA && c->state != RR_CHUNK_END)
        if (feed_one(c, buf[n++]) < 0)
            return -1;
    return (ssize_t)n;
}

void rr_chunks_took(struct rr_chunks *c, uint64_t n)
{
    c->left -= n;
    if (c->left == 0)
        c->state = RR_CHUNK_DATA_CR;
}

const char *rr_http_reason(int status)
{
    static const struct {
        int status;
        const char *reason;
    } known[] = {
        {200, "OK"},
        {201, "Created"},
        {202, "Accepted"},
        {204, "No Content"},
        {301, "Moved Permanently"},
        {302, "Found"},
        {304, "Not Modified"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {409, "Conflict"},
        {411, "Length Required"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {422, "Unprocessable Content"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {499, "Client Closed Request"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
    };

    for (size_t n = 0; n < RR_ARRAY_LEN(known); n++)
        if (known[n].status == status)
            return known[n].reason;
    return "Unknown";
}
