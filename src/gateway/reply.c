/* SPDX-License-Identifier: Apache-2.0 */
/* What is answered: results, problems, and what the server says about itself. */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/internal.h"

#define LOG_BYTES 65536u

/* --- heads ----------------------------------------------------------------------------------- */

/* Appends to c->head, which is large enough. */
__attribute__((format(printf, 2, 3))) static void add(struct conn *c, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsprintf(c->head + c->head_len, fmt, ap);
    va_end(ap);
    c->head_len += (size_t)n;
}

static void add_text(struct conn *c, const char *at, size_t len)
{
    memcpy(c->head + c->head_len, at, len);
    c->head_len += len;
}

static void add_number(struct conn *c, uint64_t n)
{
    char digits[20];
    size_t at = sizeof(digits);

    do
        digits[--at] = (char)('0' + n % 10);
    while (n /= 10);
    add_text(c, digits + at, sizeof(digits) - at);
}

static const char *date_of(struct loop *loop)
{
    struct timespec now;
    struct tm tm;

    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    if (now.tv_sec != loop->date_s) {
        loop->date_s = now.tv_sec;
        gmtime_r(&now.tv_sec, &tm);
        strftime(loop->date, sizeof(loop->date), "%a, %d %b %Y %H:%M:%S GMT", &tm);
    }
    return loop->date;
}

static void start(struct conn *c, int status)
{
    char line[16] = "HTTP/1.1 000 ";
    const char *reason = rr_http_reason(status), *date = date_of(c->loop);

    c->status = status;
    c->head_len = 0;
    c->out = NULL;
    c->out_len = c->out_at = 0;
    line[9] = (char)('0' + status / 100);
    line[10] = (char)('0' + status / 10 % 10);
    line[11] = (char)('0' + status % 10);
    add_text(c, line, 13);
    add_text(c, reason, strlen(reason));
    add_text(c, "\r\nDate: ", 8);
    add_text(c, date, strlen(date));
    add_text(c, "\r\nServer: roadrunner\r\n", 22);
}

static void end(struct conn *c)
{
    if (!c->keep)
        add_text(c, "Connection: close\r\n", 19);
    else if (c->old)
        add_text(c, "Connection: keep-alive\r\n", 24);
    add_text(c, "\r\n", 2);
    c->state = CONN_WRITE;
    c->since_ns = c->mark_ns = rr_now_ns();
    c->moved = c->mark_moved = 0;
}

static void give_up(struct conn *c) /* without memory for an answer */
{
    c->head_len = c->out_len = c->out_at = 0;
    c->status = 503;
    c->keep = false;
    c->state = CONN_WRITE;
}

/* @headers: whole lines. @body: ours, follows the head in the same memory. */
static void reply_text(struct conn *c, int status, const char *headers, const char *type,
                       const char *body, size_t len)
{
    free(c->head);
    c->head = malloc(512 + strlen(headers) + len);
    if (!c->head) {
        give_up(c);
        return;
    }
    start(c, status);
    add_text(c, headers, strlen(headers));
    if (status != 204)
        add(c, "Content-Type: %s\r\nContent-Length: %zu\r\n", type, len);
    if (status == 503)
        add(c, "Retry-After: 1\r\n");
    end(c);
    if (!c->no_body && status != 204)
        add_text(c, body, len);
}

void rr_reply_text(struct conn *c, int status, const char *headers, const char *type,
                   const char *body)
{
    reply_text(c, status, headers, type, body, strlen(body));
}

void rr_reply_empty(struct conn *c, int status)
{
    reply_text(c, status, "", "text/plain", "", 0);
}

char *rr_problem_text(int status, const char *detail, const char *traceparent)
{
    bool traced = traceparent[0] != '\0';
    char *text;

    return asprintf(&text, "{\"title\":\"%s\",\"status\":%d,\"detail\":\"%s\"%s%.32s%s}\n",
                    rr_http_reason(status), status, detail, traced ? ",\"trace\":\"" : "",
                    traced ? traceparent + 3 : "", traced ? "\"" : "") < 0
               ? NULL
               : text;
}

void rr_reply_problem(struct conn *c, int status, const char *fmt, ...)
{
    char detail[200], *body;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(detail, sizeof(detail), fmt, ap);
    va_end(ap);
    body = rr_problem_text(status, detail, c->trace);
    if (body)
        reply_text(c, status, "", "application/problem+json", body, strlen(body));
    else
        give_up(c);
    free(body);
}

const char *rr_problem_of(const struct rr_error *err)
{
    enum rr_code code = err ? err->code : RR_E_SYSTEM;

    if (code == RR_E_DEADLINE)
        return "the deadline passed";
    if (code == RR_E_LIMIT)
        return "a function reached a limit";
    if (code == RR_E_DIED)
        return "a function's process ended";
    if (code == RR_E_CANCELLED)
        return "the server is stopping";
    if (rr_error_status(code) == 503)
        return "the server is short of memory";
    return rr_error_status(code) == 500 ? "the server failed" : "a function failed";
}

/* What went wrong inside is for the log; the client learns of which kind it was. */
void rr_reply_error(struct conn *c, const struct rr_error *err)
{
    enum rr_code code = err ? err->code : RR_E_SYSTEM;

    if (err && err->text[0] && code != RR_E_CANCELLED)
        rr_log(0, "%s: %s (trace %.32s)", c->app->route->path, err->text, c->trace + 3);
    rr_reply_problem(c, rr_error_status(code), "%s", rr_problem_of(err));
}

/* --- results --------------------------------------------------------------------------------- */

/* Ours, or of the connection: not for functions to set. */
static bool may_set(struct rr_text name)
{
    static const char *const ours[] = {"connection", "content-length",    "content-type", "date",
                                       "keep-alive", "transfer-encoding", "server",       "te",
                                       "trailer",    "upgrade",           "status"};

    for (size_t n = 0; n < RR_ARRAY_LEN(ours); n++)
        if (rr_text_is_word(name, ours[n]))
            return false;
    return rr_http_name_ok(name.at, name.len);
}

int rr_reply_status(const uint8_t *meta, size_t len)
{
    struct rr_text t;

    if (!rr_meta_find(meta, len, "http-status", &t))
        return 200;
    if (t.len != 3 || t.at[0] < '2' || t.at[0] > '5' || t.at[1] < '0' || t.at[1] > '9' ||
        t.at[2] < '0' || t.at[2] > '9')
        return 0;
    return (t.at[0] - '0') * 100 + (t.at[1] - '0') * 10 + (t.at[2] - '0');
}

bool rr_reply_header(struct rr_text key, struct rr_text value, struct rr_text *ret_name)
{
    static const char prefix[] = "http-reply-header:";

    if (key.len < sizeof(prefix) || memcmp(key.at, prefix, sizeof(prefix) - 1) != 0)
        return false;
    *ret_name = (struct rr_text){key.at + sizeof(prefix) - 1, key.len - (sizeof(prefix) - 1)};
    return may_set(*ret_name) && rr_http_value_ok(value.at, value.len);
}

static void add_headers(struct conn *c, const uint8_t *meta, size_t len)
{
    struct rr_text key, value, name;

    for (size_t at = 0; rr_meta_next(meta, len, &at, &key, &value);) {
        if (!rr_reply_header(key, value, &name))
            continue;
        add_text(c, name.at, name.len);
        add_text(c, ": ", 2);
        add_text(c, value.at, value.len);
        add_text(c, "\r\n", 2);
    }
}

void rr_reply_message(struct conn *c)
{
    size_t meta_len;
    const uint8_t *meta = rr_outbound_meta(c->reply, &meta_len);
    uint64_t len;
    const uint8_t *data = rr_outbound_data(c->reply, &len);

    if (!rr_reply_status(meta, meta_len)) {
        rr_log(0, "%s: a function set an http-status that is none from 200 to 599",
               c->app->route->path);
        rr_reply_problem(c, 502, "a function failed");
        return;
    }
    rr_reply_result(c, meta, meta_len, data, len);
    if (!c->no_body)
        count(&c->app->seats[c->loop->runner->id].stats.sent_bytes, len);
}

void rr_reply_result(struct conn *c, const uint8_t *meta, size_t meta_len, const uint8_t *data,
                     uint64_t len)
{
    int status = rr_reply_status(meta, meta_len);
    struct rr_text type = {"application/octet-stream", 24}, set;

    free(c->head);
    c->head = malloc(512 + 2 * meta_len);
    if (!c->head) {
        give_up(c);
        return;
    }
    start(c, status);
    add_headers(c, meta, meta_len);
    if (status == 204 || status == 304) {
        c->no_body = true;
    } else {
        if (rr_meta_find(meta, meta_len, "content-type", &set) && set.len &&
            rr_http_value_ok(set.at, set.len))
            type = set;
        add_text(c, "Content-Type: ", 14);
        add_text(c, type.at, type.len);
        add_text(c, "\r\nContent-Length: ", 18);
        add_number(c, len);
        add_text(c, "\r\n", 2);
    }
    end(c);
    if (!c->no_body) {
        c->out = data;
        c->out_len = len;
    }
}

/* --- about the server ------------------------------------------------------------------------ */

static void reply_metrics(struct conn *c)
{
    size_t len;
    char *text = rr_stats_text(c->loop->gw, &len);

    if (text)
        reply_text(c, 200, "", "text/plain; version=0.0.4; charset=utf-8", text, len);
    else
        rr_reply_problem(c, 503, "the server is short of memory");
    free(text);
}

static void reply_figures(struct conn *c)
{
    size_t len;
    char *text = rr_graph_json(c->loop->gw, &len);

    if (text)
        reply_text(c, 200, "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n",
                   "application/json", text, len);
    else
        rr_reply_problem(c, 503, "the server is short of memory");
    free(text);
}

static void reply_page(struct conn *c)
{
    char headers[1024];

    snprintf(headers, sizeof(headers),
             "Content-Security-Policy: %s\r\nX-Content-Type-Options: nosniff\r\n"
             "X-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\n"
             "Cache-Control: no-cache\r\n",
             rr_page_policy);
    reply_text(c, 200, headers, "text/html; charset=utf-8", rr_page, rr_page_len);
}

static void reply_health(struct conn *c)
{
    reply_text(c, 200, "", "text/plain", "ok\n", 3);
}

static void reply_ready(struct conn *c)
{
    if (atomic_load(&c->loop->gw->draining))
        rr_reply_problem(c, 503, "the server is stopping");
    else
        reply_health(c);
}

static const struct {
    const char *path;
    void (*reply)(struct conn *c);
} builtins[] = {{"/healthz", reply_health},
                {"/readyz", reply_ready},
                {"/metrics", reply_metrics},
                {"/ui", reply_page},
                {"/ui/data", reply_figures}};

bool rr_reply_builtin(struct conn *c, const struct rr_http_request *rq)
{
    size_t n = 0;

    if (c->loop->gw->o.admin && !c->admin)
        return false;
    while (n < RR_ARRAY_LEN(builtins) && !rr_text_is(rq->path, builtins[n].path))
        n++;
    if (n == RR_ARRAY_LEN(builtins) && !c->admin)
        return false;
    c->keep = c->keep && c->body_known == 0;
    if (n == RR_ARRAY_LEN(builtins))
        rr_reply_problem(c, 404, "workflows answer elsewhere");
    else if (!rr_text_is(rq->method, "GET") && !c->no_body)
        rr_reply_problem(c, 405, "only GET and HEAD are answered here");
    else
        builtins[n].reply(c);
    return true;
}

/* --- the access log -------------------------------------------------------------------------- */

void rr_log_flush(struct loop *loop)
{
    struct pollfd p = {.fd = loop->gw->log_fd, .events = POLLOUT};

    if (!loop->log_len)
        return;
    /* Who does not read the log must not hold up those who ask. */
    if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT) ||
        rr_write_all(loop->gw->log_fd, loop->log, loop->log_len) < 0)
        atomic_fetch_add(&loop->gw->n_lost_lines, loop->n_log_lines);
    loop->log_len = 0;
    loop->n_log_lines = 0;
}

static void add_escaped(char *to, size_t *at, const char *s, char until)
{
    for (; *s && *s != until; s++) {
        if (*s == '"' || *s == '\\')
            to[(*at)++] = '\\';
        to[(*at)++] = *s;
    }
}

void rr_log_request(struct conn *c)
{
    struct loop *loop = c->loop;
    struct stats *s = c->app ? &c->app->seats[loop->runner->id].stats : &loop->stats;
    uint64_t now = rr_now_ns(), ns = now - c->begin_ns;
    const char *space = strchr(c->what, ' ');
    char line[800], time[40];
    struct timespec t;
    struct tm tm;
    size_t at;

    count(&s->requests[rr_status_index(c->status)], 1);
    rr_histogram_add(&s->duration, ns, REQUEST_UNIT_NS, 1);
    if (loop->gw->log_fd < 0)
        return;
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &tm);
    strftime(time, sizeof(time), "%Y-%m-%dT%H:%M:%S", &tm);
    at = (size_t)sprintf(line, "{\"time\":\"%s.%03ldZ\",\"method\":\"", time, t.tv_nsec / 1000000);
    add_escaped(line, &at, c->what, ' ');
    at += (size_t)sprintf(line + at, "\",\"path\":\"");
    add_escaped(line, &at, space ? space + 1 : "", '\0');
    at +=
        (size_t)sprintf(line + at,
                        "\",\"status\":%d,\"received\":%llu,\"sent\":%llu,\"seconds\":%.6f,"
                        "\"trace\":\"%.32s\"}\n",
                        c->status, (unsigned long long)c->body_len, (unsigned long long)c->out_len,
                        (double)ns / 1e9, c->trace[0] ? c->trace + 3 : "");
    if (!loop->log)
        loop->log = malloc(LOG_BYTES);
    if (!loop->log)
        return;
    if (loop->log_len + at > LOG_BYTES)
        rr_log_flush(loop);
    memcpy(loop->log + loop->log_len, line, at);
    loop->log_len += at;
    loop->n_log_lines++;
}
