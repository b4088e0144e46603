/* SPDX-License-Identifier: Apache-2.0 */
/* Headers of what is POSTed, and POSTs of dead letters for which a run waits. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "gateway/async.h"
#include "gateway/curl.h"
#include "gateway/letter.h"

#define POST_TIMEOUT_NS 30000000000ull
#define NAP_NS 10000000u

/* --- headers --------------------------------------------------------------------------------- */

static void add(struct headers *h, const char *prefix, struct rr_text name, struct rr_text value)
{
    char **grown = reallocarray(h->lines, h->n + 2, sizeof(char *));
    bool event = strcmp(prefix, "ce-") == 0;
    char *line, *at;

    h->lines = grown ? grown : h->lines;
    line = grown ? malloc(strlen(prefix) + name.len + 2 + 3 * value.len + 1) : NULL;
    if (!line) {
        h->failed = true;
        return;
    }
    at = line + sprintf(line, "%s%.*s: ", prefix, (int)name.len, name.at);
    for (size_t k = 0; k < value.len; k++) {
        uint8_t b = (uint8_t)value.at[k];

        /* As CloudEvents have what is no printable ASCII. */
        if (b < 0x20 || b > 0x7e || (event && b == '%'))
            at += sprintf(at, "%%%02X", b);
        else
            *at++ = (char)b;
    }
    *at = '\0';
    h->lines[h->n++] = line;
    h->lines[h->n] = NULL;
}

void rr_headers_text(struct headers *h, const char *name, const char *value)
{
    add(h, "", (struct rr_text){name, strlen(name)}, (struct rr_text){value, strlen(value)});
}

void rr_headers_number(struct headers *h, const char *name, unsigned int value)
{
    char text[16];

    snprintf(text, sizeof(text), "%u", value);
    rr_headers_text(h, name, text);
}

/* Headers of a request that are not a function's to choose. */
static bool is_ours(struct rr_text name)
{
    static const char *const ours[] = {"host",
                                       "expect",
                                       "proxy-authorization",
                                       "x-call-id",
                                       "x-function-status",
                                       "x-delivery-attempt"};

    for (size_t n = 0; n < RR_ARRAY_LEN(ours); n++)
        if (rr_text_is_word(name, ours[n]))
            return true;
    return false;
}

void rr_headers_result(struct headers *h, const uint8_t *meta, size_t len)
{
    struct rr_text key, value, name;

    for (size_t at = 0; rr_meta_next(meta, len, &at, &key, &value);) {
        if (rr_text_is(key, "content-type"))
            name = (struct rr_text){"Content-Type", 12};
        else if (rr_text_is(key, "traceparent"))
            name = key;
        else if (!rr_reply_header(key, value, &name))
            continue;
        if (name.len < 256 && rr_http_name_ok(name.at, name.len) && !is_ours(name))
            add(h, "", name, value);
    }
}

static bool add_attribute(void *user, const char *name, size_t name_len, const char *value,
                          size_t len)
{
    struct headers *h = user;
    struct rr_text n = {name, name_len}, v = {value, len};

    if (rr_text_is(n, "datacontenttype"))
        add(h, "", (struct rr_text){"Content-Type", 12}, v);
    else if (rr_text_is(n, "traceparent") || rr_text_is(n, "tracestate"))
        add(h, "", n, v);
    else if (name_len < 256 && rr_http_name_ok(name, name_len))
        add(h, "ce-", n, v);
    return !h->failed;
}

void rr_headers_letter(struct headers *h, const struct rr_dead_letter *l)
{
    if (!rr_letter_attributes(l, add_attribute, h))
        h->failed = true;
}

void rr_headers_free(struct headers *h)
{
    for (size_t n = 0; n < h->n; n++)
        free(h->lines[n]);
    free(h->lines);
    *h = (struct headers){0};
}

bool rr_post_may_retry(int status)
{
    return status == 0 || status == 404 || status == 408 || status == 409 || status == 429 ||
           status >= 500;
}

/* --- letters of an edge ---------------------------------------------------------------------- */

bool rr_letters_wanted(const struct rr_workflow *wf)
{
    for (size_t n = 0; n < wf->n_edges; n++)
        if (wf->edges[n].again.sink)
            return true;
    return false;
}

int rr_letters_prepare(const struct rr_workflow *wf, struct rr_error *err)
{
    const struct rr_curl *f;

    return rr_letters_wanted(wf) ? rr_curl_load(&f, err) : 0;
}

static int post_once(const struct rr_curl *f, const char *ca, const char *uri,
                     const struct rr_dead_letter *l, const struct rr_delivery *d, unsigned int n,
                     struct post *ret, struct rr_error *err)
{
    struct headers h = {0};

    rr_headers_letter(&h, l);
    rr_headers_number(&h, "X-Delivery-Attempt", n);
    rr_headers_text(&h, "Expect", "");
    *ret = (struct post){.url = uri,
                         .headers = h.lines,
                         .len = l->len,
                         .read = l->read,
                         .reader = l->user,
                         .timeout_ns = d->timeout_ns ? d->timeout_ns : POST_TIMEOUT_NS};
    if (h.failed)
        rr_error_no_memory(err);
    else
        rr_post_now(f, ca, ret);
    rr_headers_free(&h);
    ret->headers = NULL;
    return h.failed ? RR_E_SYSTEM : 0;
}

int rr_letter_post(void *user, const char *uri, const struct rr_dead_letter *l,
                   const struct rr_delivery *d, struct rr_error *err)
{
    const struct rr_letters *letters = user;
    const struct rr_curl *f;
    struct post p;
    int r = rr_curl_load(&f, err);

    for (unsigned int n = 1; r == 0; n++) {
        uint64_t pause = rr_min(rr_delivery_backoff_ns(d, n), RR_EDGE_BACKOFF_MAX_NS);

        r = post_once(f, letters->ca, uri, l, d, n, &p, err);
        if (r || (p.status >= 200 && p.status < 300))
            return r;
        if (!rr_post_may_retry(p.status) || n > d->retry)
            break;
        for (uint64_t end = rr_now_ns() + pause; rr_now_ns() < end;) {
            struct timespec t = {0, NAP_NS};

            if (letters->stop && letters->stop(letters->user))
                return rr_error_set(err, RR_E_CANCELLED, "", "the program ends");
            nanosleep(&t, NULL);
        }
    }
    if (r)
        return r;
    if (p.status)
        return rr_error_set(err, RR_E_OUTPUT, "", "it was answered with %d", p.status);
    return rr_error_set(err, RR_E_OUTPUT, "", "%s", p.error);
}
