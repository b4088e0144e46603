/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Traces on their way to a collector: a bounded queue, and a thread that sends batches of it with
 * OTLP over HTTP. Who answers requests never waits for it; what finds no room is counted.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/curl.h"
#include "gateway/internal.h"

#define MAX_SPANS 16384u /* in the queue */
#define MAX_BYTES (8u << 20)
#define BATCH_SPANS 512u
#define BATCH_BYTES (1u << 20)
#define DELAY_MS 1000u /* spans wait at most so long for others */
#define MAX_TRIES 5u
#define BACKOFF_NS 500000000u /* and each time twice as long */
#define LAST_NS 2000000000u   /* for what is there when the server stops */
#define TIMEOUT_MS 10000u

/* Spans, written already. */
struct batch {
    struct batch *next;
    uint8_t *data; /* owned */
    size_t len;
    unsigned int n_spans;
};

struct rr_otlp {
    const struct rr_curl *f;
    char *url, *name; /* owned; name: host and port, for the log */
    struct curl_slist *headers;
    const char *ca_file; /* of the environment */
    long timeout_ms, delay_ms;
    double ratio;
    struct rr_pb resource; /* what every request begins with */
    CURL *curl;
    char curl_error[CURL_ERROR_SIZE];
    pthread_t thread;
    bool runs;
    bool failing; /* only the thread's: the last one did not arrive */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct batch *first, *last; /* under the lock, and what follows */
    unsigned int n_spans;
    size_t n_bytes;
    _Atomic uint64_t stop_ns; /* when to be done; 0: not yet */
    _Atomic uint64_t n_sent, n_full, n_failed, n_beyond;
};

/* --- what the environment says --------------------------------------------------------------- */

static const char *setting(const char *name)
{
    const char *value = getenv(name);

    return value && value[0] ? value : NULL;
}

static int bad(struct rr_error *err, const char *what, const char *value, const char *hint)
{
    return rr_error_set(err, RR_E_USAGE, hint, "%s does not take '%.200s'", what, value);
}

static bool get_part(const struct rr_otlp *o, const CURLU *u, CURLUPart part, char **ret)
{
    return o->f->url_get(u, part, ret, CURLU_DEFAULT_PORT) == CURLUE_OK;
}

/* The collector's URL, and what the log calls it. @whole: nothing is added to it. */
static int set_parts(struct rr_otlp *o, CURLU *u, bool whole)
{
    char *path = NULL, *host = NULL, *port = NULL, *url = NULL, *longer = NULL;
    size_t len;
    int r = -1;

    if (!get_part(o, u, CURLUPART_PATH, &path) || !get_part(o, u, CURLUPART_HOST, &host) ||
        !get_part(o, u, CURLUPART_PORT, &port))
        goto out;
    len = strlen(path);
    while (len && path[len - 1] == '/')
        len--;
    if (!whole && (asprintf(&longer, "%.*s/v1/traces", (int)len, path) < 0 ||
                   o->f->url_set(u, CURLUPART_PATH, longer, 0) != CURLUE_OK))
        goto out;
    if (!get_part(o, u, CURLUPART_URL, &url))
        goto out;
    o->url = strdup(url);
    r = o->url && asprintf(&o->name, "%s:%s", host, port) > 0 ? 0 : -1;
out:
    free(longer);
    o->f->free(path);
    o->f->free(host);
    o->f->free(port);
    o->f->free(url);
    return r;
}

static int set_url(struct rr_otlp *o, const char *option, const char *text, bool whole,
                   struct rr_error *err)
{
    CURLU *u = o->f->url();
    char *scheme = NULL, *user = NULL;
    bool good = u && o->f->url_set(u, CURLUPART_URL, text, 0) == CURLUE_OK &&
                get_part(o, u, CURLUPART_SCHEME, &scheme) &&
                (strcmp(scheme, "http") == 0 || strcmp(scheme, "https") == 0);
    int r = 0;

    if (good && get_part(o, u, CURLUPART_USER, &user))
        r = rr_error_set(err, RR_E_USAGE, "put them into OTEL_EXPORTER_OTLP_HEADERS",
                         "%s takes a URL without a user and a password", option);
    else if (!good)
        r = bad(err, option, text, "give a URL such as http://localhost:4318");
    else if (set_parts(o, u, whole))
        r = rr_error_no_memory(err);
    o->f->free(user);
    o->f->free(scheme);
    o->f->url_cleanup(u);
    return r;
}

static int choose_url(struct rr_otlp *o, const char *option, struct rr_error *err)
{
    const char *protocol = setting("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), *text;

    if (option)
        return set_url(o, "--otlp", option, false, err);
    protocol = protocol ? protocol : setting("OTEL_EXPORTER_OTLP_PROTOCOL");
    if (protocol && strcmp(protocol, "http/protobuf") != 0)
        return bad(err, "OTEL_EXPORTER_OTLP_PROTOCOL", protocol,
                   "set it to http/protobuf, and the endpoint to the collector's port for that, "
                   "which usually is 4318");
    if ((text = setting("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")))
        return set_url(o, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", text, true, err);
    return set_url(o, "OTEL_EXPORTER_OTLP_ENDPOINT", setting("OTEL_EXPORTER_OTLP_ENDPOINT"), false,
                   err);
}

static int choose_ratio(struct rr_otlp *o, const char *option, struct rr_error *err)
{
    const char *sampler = setting("OTEL_TRACES_SAMPLER"), *text = option;
    char *end;

    o->ratio = 1;
    if (!text && sampler && strstr(sampler, "always_off"))
        text = "0";
    if (!text && sampler && strstr(sampler, "traceidratio"))
        text = setting("OTEL_TRACES_SAMPLER_ARG");
    if (!text)
        return 0;
    o->ratio = strtod(text, &end);
    if (end != text && !*end && o->ratio >= 0 && o->ratio <= 1)
        return 0;
    return bad(err, option ? "--otlp-ratio" : "OTEL_TRACES_SAMPLER_ARG", text,
               "give a number from 0 (no traces but those that callers want) to 1 (all)");
}

static int milliseconds(const char *name, long usual, long *ret, struct rr_error *err)
{
    const char *text = setting(name);
    char *end = NULL;

    *ret = text ? strtol(text, &end, 10) : usual;
    if (!text || (!*end && *ret >= 1 && *ret <= 600000))
        return 0;
    return bad(err, name, text, "give milliseconds, from 1 to 600000");
}

/* "key=value,key=value", the values with %XX; @put is told each. */
static int each_pair(const char *option, const char *text,
                     int (*put)(struct rr_otlp *o, const char *key, const char *value, int len),
                     struct rr_otlp *o, struct rr_error *err)
{
    RR_AUTO(rr_free) char *copy = text ? strdup(text) : NULL;
    char *rest = copy, *pair;

    if (text && !copy)
        return rr_error_no_memory(err);
    while (rest && (pair = strsep(&rest, ","))) {
        char *equals = strchr(pair, '='), *value;
        int len = 0, r;

        pair += strspn(pair, " ");
        if (!*pair)
            continue;
        if (!equals || equals <= pair)
            return bad(err, option, pair, "give key=value,key=value");
        *equals = '\0';
        value = o->f->unescape(o->curl, equals + 1, 0, &len);
        r = value ? put(o, pair, value, len) : -ENOMEM;
        o->f->free(value);
        if (r)
            return bad(err, option, pair, "give key=value,key=value, without control characters");
    }
    return 0;
}

static int add_line(struct rr_otlp *o, const char *line)
{
    struct curl_slist *more = o->f->append(o->headers, line);

    if (!more)
        return -ENOMEM;
    o->headers = more;
    return 0;
}

static int put_header(struct rr_otlp *o, const char *key, const char *value, int len)
{
    RR_AUTO(rr_free) char *line = NULL;

    if (!rr_http_name_ok(key, strlen(key)) || !rr_http_value_ok(value, (size_t)len) ||
        asprintf(&line, "%s: %.*s", key, len, value) < 0)
        return -EINVAL;
    return add_line(o, line);
}

static int put_attribute(struct rr_otlp *o, const char *key, const char *value, int len)
{
    if (strcmp(key, "service.name") != 0 || !setting("OTEL_SERVICE_NAME"))
        rr_pb_attribute(&o->resource, 1, key, value, (size_t)len);
    return 0;
}

static bool names_service(void)
{
    const char *attributes = setting("OTEL_RESOURCE_ATTRIBUTES");

    return attributes && strstr(attributes, "service.name=");
}

static int make_resource(struct rr_otlp *o, struct rr_error *err)
{
    const char *name = setting("OTEL_SERVICE_NAME");
    size_t resource = rr_pb_begin(&o->resource, 1);
    char host[256] = "";
    int r;

    if (name || !names_service()) {
        name = name ? name : "roadrunner";
        rr_pb_attribute(&o->resource, 1, "service.name", name, strlen(name));
    }
    rr_pb_attribute(&o->resource, 1, "service.version", RR_VERSION, strlen(RR_VERSION));
    if (gethostname(host, sizeof(host) - 1) == 0)
        rr_pb_attribute(&o->resource, 1, "host.name", host, strlen(host));
    r = each_pair("OTEL_RESOURCE_ATTRIBUTES", setting("OTEL_RESOURCE_ATTRIBUTES"), put_attribute, o,
                  err);
    rr_pb_end(&o->resource, resource);
    return r == 0 && o->resource.failed ? rr_error_no_memory(err) : r;
}

/* --- the queue ------------------------------------------------------------------------------- */

bool rr_otlp_samples(const struct rr_otlp *o, uint64_t random)
{
    return (double)(random >> 11) * 0x1p-53 < o->ratio;
}

static void batch_free(struct batch *b)
{
    if (!b)
        return;
    free(b->data);
    free(b);
}

void rr_otlp_push(struct rr_otlp *o, uint8_t *data, size_t len, unsigned int n_spans,
                  unsigned int n_beyond)
{
    struct batch *b = data ? malloc(sizeof(*b)) : NULL;
    bool room = false;

    atomic_fetch_add(&o->n_beyond, n_beyond);
    if (b) {
        *b = (struct batch){.data = data, .len = len, .n_spans = n_spans};
        pthread_mutex_lock(&o->lock);
        room = o->n_spans + n_spans <= MAX_SPANS && o->n_bytes + len <= MAX_BYTES;
        if (room) {
            if (o->last)
                o->last->next = b;
            else
                o->first = b;
            o->last = b;
            if (o->n_spans == 0 ||
                (o->n_spans < BATCH_SPANS && o->n_spans + n_spans >= BATCH_SPANS))
                pthread_cond_signal(&o->wake);
            o->n_spans += n_spans;
            o->n_bytes += len;
        }
        pthread_mutex_unlock(&o->lock);
    }
    if (room)
        return;
    free(b);
    free(data);
    atomic_fetch_add(&o->n_full, n_spans);
}

/* Under the lock: until @until_ns, something new, or the end. */
static void wait_until(struct rr_otlp *o, uint64_t until_ns)
{
    struct timespec t = {(time_t)(until_ns / 1000000000u), (long)(until_ns % 1000000000u)};

    pthread_cond_timedwait(&o->wake, &o->lock, &t);
}

/* A request's worth of what waits; NULL: there is nothing more, and the server stops. */
static struct batch *take_some(struct rr_otlp *o, unsigned int *ret_n)
{
    struct batch *taken = NULL, **at = &taken;
    uint64_t until;
    size_t len = 0;

    *ret_n = 0;
    pthread_mutex_lock(&o->lock);
    while (!o->first && !atomic_load(&o->stop_ns))
        pthread_cond_wait(&o->wake, &o->lock);
    until = rr_now_ns() + (uint64_t)o->delay_ms * 1000000u;
    while (o->n_spans < BATCH_SPANS && !atomic_load(&o->stop_ns) && rr_now_ns() < until)
        wait_until(o, until);
    while (o->first && *ret_n < BATCH_SPANS && len < BATCH_BYTES) {
        struct batch *b = o->first;

        o->first = b->next;
        if (!o->first)
            o->last = NULL;
        b->next = NULL;
        *at = b;
        at = &b->next;
        *ret_n += b->n_spans;
        len += b->len;
    }
    o->n_spans -= *ret_n;
    o->n_bytes -= len;
    pthread_mutex_unlock(&o->lock);
    return taken;
}

/* --- sending --------------------------------------------------------------------------------- */

/* ExportTraceServiceRequest{resource_spans: {resource, scope_spans: {scope, spans...}}} */
static void make_body(struct rr_otlp *o, const struct batch *batches, struct rr_pb *body)
{
    size_t resource, scope_spans, scope;

    body->len = 0;
    resource = rr_pb_begin(body, 1);
    rr_pb_raw(body, o->resource.data, o->resource.len);
    scope_spans = rr_pb_begin(body, 2);
    scope = rr_pb_begin(body, 1);
    rr_pb_text(body, 1, "roadrunner", 10);
    rr_pb_text(body, 2, RR_VERSION, strlen(RR_VERSION));
    rr_pb_end(body, scope);
    for (const struct batch *b = batches; b; b = b->next)
        rr_pb_raw(body, b->data, b->len);
    rr_pb_end(body, scope_spans);
    rr_pb_end(body, resource);
}

static size_t ignore(char *data, size_t size, size_t n, void *user)
{
    size_t *left = user;

    (void)data;
    if (size * n > *left)
        return 0; /* whatever answers so much is no collector */
    *left -= size * n;
    return size * n;
}

static int progress(void *user, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    const struct rr_otlp *o = user;
    uint64_t stop = atomic_load(&o->stop_ns);

    (void)a, (void)b, (void)c, (void)d;
    return stop && rr_now_ns() > stop;
}

/* Return: HTTP status, or 0. */
static long post(struct rr_otlp *o, const struct rr_pb *body, char *why, size_t why_size)
{
    size_t left = 1u << 16;
    long status = 0;
    CURLcode r;

    o->f->setopt(o->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)body->len);
    o->f->setopt(o->curl, CURLOPT_POSTFIELDS, body->data);
    o->f->setopt(o->curl, CURLOPT_WRITEDATA, &left);
    o->curl_error[0] = '\0';
    r = o->f->perform(o->curl);
    if (r != CURLE_OK) {
        snprintf(why, why_size, "%s", o->curl_error[0] ? o->curl_error : o->f->text(r));
        return 0;
    }
    o->f->getinfo(o->curl, CURLINFO_RESPONSE_CODE, &status);
    snprintf(why, why_size, "it answered with status %ld", status);
    return status;
}

static bool worth_another(long status)
{
    return status == 0 || status == 429 || status == 502 || status == 503 || status == 504;
}

static void report(struct rr_otlp *o, bool good, const char *why)
{
    if (!good && !o->failing)
        rr_log(1, "traces do not reach %s: %s; until they do, spans are dropped and counted",
               o->name, why);
    else if (good && o->failing)
        rr_log(1, "traces reach %s again", o->name);
    o->failing = !good;
}

static void send_body(struct rr_otlp *o, const struct rr_pb *body, unsigned int n_spans)
{
    char why[CURL_ERROR_SIZE] = "no memory";
    uint64_t pause = BACKOFF_NS;

    for (unsigned int n = 1; !body->failed; n++, pause *= 2) {
        long status = post(o, body, why, sizeof(why));

        if (status >= 200 && status < 300) {
            atomic_fetch_add(&o->n_sent, n_spans);
            report(o, true, why);
            return;
        }
        report(o, false, why);
        if (!worth_another(status) || n == MAX_TRIES || atomic_load(&o->stop_ns))
            break;
        pthread_mutex_lock(&o->lock);
        for (uint64_t until = rr_now_ns() + pause;
             rr_now_ns() < until && !atomic_load(&o->stop_ns);)
            wait_until(o, until);
        pthread_mutex_unlock(&o->lock);
    }
    atomic_fetch_add(&o->n_failed, n_spans);
}

static void *main_loop(void *user)
{
    struct rr_otlp *o = user;
    struct rr_pb body = {0};
    struct batch *taken;
    unsigned int n;

    while ((taken = take_some(o, &n))) {
        body.failed = false;
        make_body(o, taken, &body);
        while (taken) {
            struct batch *next = taken->next;

            batch_free(taken);
            taken = next;
        }
        send_body(o, &body, n);
    }
    free(body.data);
    return NULL;
}

/* --- life ------------------------------------------------------------------------------------ */

bool rr_otlp_wanted(const char *option)
{
    const char *off = setting("OTEL_SDK_DISABLED"), *exporter = setting("OTEL_TRACES_EXPORTER");

    if (option)
        return true;
    if ((off && strcasecmp(off, "true") == 0) || (exporter && strcmp(exporter, "none") == 0))
        return false;
    return setting("OTEL_EXPORTER_OTLP_ENDPOINT") || setting("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
}

static int configure(struct rr_otlp *o, const struct rr_gateway_options *options,
                     struct rr_error *err)
{
    const char *headers = setting("OTEL_EXPORTER_OTLP_TRACES_HEADERS");
    int r = choose_url(o, options->otlp, err);

    if (r == 0)
        r = milliseconds("OTEL_EXPORTER_OTLP_TIMEOUT", TIMEOUT_MS, &o->timeout_ms, err);
    if (r == 0)
        r = milliseconds("OTEL_BSP_SCHEDULE_DELAY", DELAY_MS, &o->delay_ms, err);
    if (r == 0)
        r = choose_ratio(o, options->otlp_ratio, err);
    if (r == 0)
        r = each_pair("OTEL_EXPORTER_OTLP_HEADERS",
                      headers ? headers : setting("OTEL_EXPORTER_OTLP_HEADERS"), put_header, o,
                      err);
    if (r == 0 &&
        (add_line(o, "Expect:") || put_header(o, "Content-Type", "application/x-protobuf", 22) ||
         put_header(o, "User-Agent", "roadrunner/" RR_VERSION,
                    (int)strlen("roadrunner/" RR_VERSION))))
        r = rr_error_no_memory(err);
    return r ? r : make_resource(o, err);
}

static void configure_curl(struct rr_otlp *o)
{
    const char *ca = setting("OTEL_EXPORTER_OTLP_CERTIFICATE");

    o->f->setopt(o->curl, CURLOPT_URL, o->url);
    o->f->setopt(o->curl, CURLOPT_PROTOCOLS_STR, "http,https");
    o->f->setopt(o->curl, CURLOPT_HTTPHEADER, o->headers);
    o->f->setopt(o->curl, CURLOPT_POST, 1L);
    o->f->setopt(o->curl, CURLOPT_NOSIGNAL, 1L);
    o->f->setopt(o->curl, CURLOPT_QUICK_EXIT, 1L); /* do not wait for names at the end */
    o->f->setopt(o->curl, CURLOPT_TIMEOUT_MS, o->timeout_ms);
    o->f->setopt(o->curl, CURLOPT_WRITEFUNCTION, ignore);
    o->f->setopt(o->curl, CURLOPT_ERRORBUFFER, o->curl_error);
    o->f->setopt(o->curl, CURLOPT_NOPROGRESS, 0L);
    o->f->setopt(o->curl, CURLOPT_XFERINFOFUNCTION, progress);
    o->f->setopt(o->curl, CURLOPT_XFERINFODATA, o);
    if (ca)
        o->f->setopt(o->curl, CURLOPT_CAINFO, ca);
}

int rr_otlp_new(const struct rr_gateway_options *options, struct rr_otlp **ret,
                struct rr_error *err)
{
    struct rr_otlp *o = calloc(1, sizeof(*o));
    pthread_condattr_t attr;
    int r = 0;

    if (!o)
        return rr_error_no_memory(err);
    pthread_mutex_init(&o->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&o->wake, &attr);
    pthread_condattr_destroy(&attr);
    r = rr_curl_load(&o->f, err);
    if (r == 0 && !(o->curl = o->f->init()))
        r = rr_error_no_memory(err);
    if (r == 0)
        r = configure(o, options, err);
    if (r) {
        rr_otlp_free(o);
        return r;
    }
    configure_curl(o);
    *ret = o;
    return 0;
}

int rr_otlp_start(struct rr_otlp *o, struct rr_error *err)
{
    if (pthread_create(&o->thread, NULL, main_loop, o) != 0)
        return rr_error_set(err, RR_E_SYSTEM, "raise the limit on threads",
                            "cannot start a thread");
    o->runs = true;
    return 0;
}

void rr_otlp_free(struct rr_otlp *o)
{
    if (!o)
        return;
    if (o->runs) {
        atomic_store(&o->stop_ns, rr_now_ns() + LAST_NS);
        pthread_mutex_lock(&o->lock);
        pthread_cond_signal(&o->wake);
        pthread_mutex_unlock(&o->lock);
        pthread_join(o->thread, NULL);
    }
    while (o->first) {
        struct batch *next = o->first->next;

        batch_free(o->first);
        o->first = next;
    }
    if (o->curl)
        o->f->cleanup(o->curl);
    if (o->headers)
        o->f->free_list(o->headers);
    free(o->resource.data);
    free(o->url);
    free(o->name);
    pthread_cond_destroy(&o->wake);
    pthread_mutex_destroy(&o->lock);
    free(o);
}

void rr_otlp_text(FILE *f, struct rr_otlp *o)
{
    unsigned int waiting;

    if (!o)
        return;
    pthread_mutex_lock(&o->lock);
    waiting = o->n_spans;
    pthread_mutex_unlock(&o->lock);
    rr_stats_head(f, "trace_spans_sent_total", "counter", "Spans that the collector took.");
    fprintf(f, "roadrunner_trace_spans_sent_total %llu\n",
            (unsigned long long)atomic_load(&o->n_sent));
    rr_stats_head(f, "trace_spans_dropped_total", "counter",
                  "Spans dropped: the queue was full, sending failed, a request had too many.");
    fprintf(f,
            "roadrunner_trace_spans_dropped_total{reason=\"queue\"} %llu\n"
            "roadrunner_trace_spans_dropped_total{reason=\"send\"} %llu\n"
            "roadrunner_trace_spans_dropped_total{reason=\"request\"} %llu\n",
            (unsigned long long)atomic_load(&o->n_full),
            (unsigned long long)atomic_load(&o->n_failed),
            (unsigned long long)atomic_load(&o->n_beyond));
    rr_stats_head(f, "trace_spans_waiting", "gauge", "Spans that wait to be sent.");
    fprintf(f, "roadrunner_trace_spans_waiting %u\n", waiting);
}
