/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the path says: /echo the body; /meta the metadata that it was given, a line each;
 * /status/NNN; /header?NAME=VALUE; /trap; /loop; /sleep?MS; /big?BYTES; /none sends nothing;
 * /flaky?N answers 503 in the first N attempts, /refuse 422 always, /call the id and attempt of an
 * asynchronous message, which also go to the file /data/calls, if there is that folder.
 */
#include <roadrunner.h>
#include <stdio.h>
#include <time.h>

static char path[256], query[256];

static void *say(const char *text)
{
    char *out = rr_alloc("out", strlen(text));
    memcpy(out, text, strlen(text));
    return out;
}

static int meta(const struct rr_message *in)
{
    static const char *const keys[] = {"http-method",      "http-path",   "http-query",
                                       "content-type",     "traceparent", "http-header:x-a",
                                       "http-header:host", "ce-id",       "ce-source",
                                       "ce-type",          "ce-subject",  "ce-num"};
    static char text[4096];
    char value[512];
    for (size_t n = 0; n < sizeof(keys) / sizeof(keys[0]); n++) {
        if (rr_meta_get(in->data, keys[n], value, sizeof(value)) < 0)
            strcpy(value, "-");
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s=%s\n", keys[n], value);
    }
    snprintf(text + strlen(text), sizeof(text) - strlen(text), "body=%.*s", (int)in->len,
             (const char *)in->data);
    char *out = say(text);
    rr_set_content_type(out, "text/plain");
    return rr_return(out, strlen(text));
}

static int with_header(void)
{
    char *equals = strchr(query, '='), *out = say("ok");
    if (equals) {
        *equals = '\0';
        rr_http_set_header(out, query, equals + 1);
    }
    return rr_return(out, 2);
}

static int big(uint64_t len)
{
    char *out = rr_alloc("out", len);
    if (!out)
        return 3;
    memset(out, 'b', len);
    return rr_return(out, len);
}

static int slow(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
    return rr_return(say("slept"), 5);
}

/* "ID ATTEMPT", of an asynchronous message. */
static int call(const struct rr_message *in, long fails)
{
    char id[40] = "-", attempt[16] = "-", text[80];
    rr_meta_get(in->data, "rr-call-id", id, sizeof(id));
    rr_meta_get(in->data, "rr-call-attempt", attempt, sizeof(attempt));
    snprintf(text, sizeof(text), "%s %s", id, attempt);
    FILE *f = fopen("/data/calls", "a");
    if (f) {
        fprintf(f, "%s\n", text);
        fclose(f);
    }
    char *out = say(text);
    if (atol(attempt) <= fails)
        rr_http_set_status(out, 503);
    return rr_return(out, strlen(text));
}

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    rr_meta_get(in.data, "http-path", path, sizeof(path));
    if (rr_meta_get(in.data, "http-query", query, sizeof(query)) < 0)
        query[0] = '\0';
    char *last = strrchr(path, '/');
    if (strstr(path, "/status/")) {
        char *out = say("status");
        rr_http_set_status(out, atoi(last + 1));
        return rr_return(out, 6);
    }
    if (strcmp(last, "/refuse") == 0) {
        char *out = say("refused");
        rr_http_set_status(out, 422);
        return rr_return(out, 7);
    }
    if (strcmp(last, "/flaky") == 0 || strcmp(last, "/call") == 0)
        return call(&in, atol(query));
    if (strcmp(last, "/meta") == 0)
        return meta(&in);
    if (strcmp(last, "/header") == 0)
        return with_header();
    if (strcmp(last, "/trap") == 0)
        __builtin_trap();
    if (strcmp(last, "/big") == 0)
        return big(strtoull(query, NULL, 10));
    if (strcmp(last, "/sleep") == 0)
        return slow(atol(query));
    if (strcmp(last, "/none") == 0)
        return 0;
    for (volatile int n = 0; strcmp(last, "/loop") == 0; n++)
        ;
    return rr_return(in.data, in.len);
}
