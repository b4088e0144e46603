/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages that were given up. They end in the process where the workflow is run: it POSTs them to
 * the sink of their edge, or appends them to a file: a line of JSON, then as many bytes of payload
 * as it says, then a line feed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/deadletter.h"
#include "worker/remote.h"

/* --- what is told of it ---------------------------------------------------------------------- */

/* {u32 key_len, u32 value_len, key, value} ..., sound already. */
static bool next_entry(const struct rr_dead_letter *l, size_t *at, const char *ret[2],
                       size_t ret_len[2])
{
    uint32_t lengths[2];

    if (*at >= l->meta_len)
        return false;
    memcpy(lengths, l->meta + *at, sizeof(lengths));
    ret[0] = (const char *)l->meta + *at + sizeof(lengths);
    ret[1] = ret[0] + lengths[0];
    ret_len[0] = lengths[0];
    ret_len[1] = lengths[1];
    *at += sizeof(lengths) + lengths[0] + lengths[1];
    return true;
}

static bool is(const char *name, size_t len, const char *what)
{
    return len == strlen(what) && memcmp(name, what, len) == 0;
}

/* One that an earlier letter had is not this one's. */
static bool is_ours(const char *name, size_t len)
{
    static const char *const ours[] = {"knativeerrordest", "knativeerrorcode", "knativeerrordata",
                                       "rrattempts"};

    for (size_t n = 0; n < RR_ARRAY_LEN(ours); n++)
        if (is(name, len, ours[n]))
            return true;
    return false;
}

struct telling {
    bool (*each)(void *user, const char *name, size_t name_len, const char *value, size_t len);
    void *user;
    bool event;
};

static bool tell_text(struct telling *t, const char *name, const char *value)
{
    return t->each(t->user, name, strlen(name), value, strlen(value));
}

static bool tell_entry(struct telling *t, const char *const entry[2], const size_t len[2])
{
    const char *name = entry[0];
    size_t name_len = len[0];

    if (is(name, name_len, "content-type")) {
        name = "datacontenttype";
        name_len = strlen(name);
    } else if (name_len > 3 && memcmp(name, "ce-", 3) == 0) {
        name += 3;
        name_len -= 3;
        t->event = t->event || is(name, name_len, "id");
        if (is_ours(name, name_len))
            return true;
    } else if (!is(name, name_len, "traceparent") && !is(name, name_len, "tracestate")) {
        return true;
    }
    return t->each(t->user, name, name_len, entry[1], len[1]);
}

bool rr_letter_attributes(const struct rr_dead_letter *l,
                          bool (*each)(void *user, const char *name, size_t name_len,
                                       const char *value, size_t len),
                          void *user)
{
    const struct rr_edge *e = l->edge >= 0 ? &l->wf->edges[l->edge] : NULL;
    struct telling t = {each, user, false};
    char source[RR_WORKFLOW_MAX_NAME + 16], dest[3 * RR_WORKFLOW_MAX_NAME + 32], number[16];
    const char *entry[2];
    size_t len[2];
    bool ok = true;

    for (size_t at = 0; ok && next_entry(l, &at, entry, len);)
        ok = tell_entry(&t, entry, len);
    snprintf(source, sizeof(source), "roadrunner:%s", l->wf->name);
    if (ok && !t.event)
        ok = tell_text(&t, "specversion", "1.0") && tell_text(&t, "id", l->id) &&
             tell_text(&t, "source", source) && tell_text(&t, "type", "roadrunner.message");
    if (e)
        snprintf(dest, sizeof(dest), "%s/%s.%s", source, l->wf->functions[e->to].name, e->to_port);
    ok = ok && tell_text(&t, "knativeerrordest", e ? dest : source);
    snprintf(number, sizeof(number), "%d", l->status);
    ok = ok && tell_text(&t, "knativeerrorcode", number);
    ok = ok && tell_text(&t, "knativeerrordata", l->error);
    snprintf(number, sizeof(number), "%u", l->attempts);
    return ok && tell_text(&t, "rrattempts", number);
}

/* --- files ----------------------------------------------------------------------------------- */

/* Whole, whoever else writes; 0 or negative errno, and then nothing is left of it. */
static int append(const char *path, const char *head, size_t head_len,
                  const struct rr_dead_letter *l)
{
    int fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    char piece[16384];
    off_t begin = 0;
    int r;

    if (fd < 0)
        return -errno;
    r = flock(fd, LOCK_EX) < 0 || (begin = lseek(fd, 0, SEEK_END)) < 0 ? -errno : 0;
    if (r) {
        close(fd);
        return r;
    }
    r = rr_write_all(fd, head, head_len);
    for (uint64_t at = 0, n; r == 0 && at < l->len; at += n) {
        n = rr_min(l->len - at, sizeof(piece));
        r = l->read(l->user, at, piece, n);
        if (r == 0)
            r = rr_write_all(fd, piece, n);
    }
    if (r == 0)
        r = rr_write_all(fd, "\n", 1);
    if (r == 0 && l->sync && fdatasync(fd) < 0)
        r = -errno;
    if (r && ftruncate(fd, begin) < 0)
        rr_log(0, "half a dead letter is left in %s: %s", path, strerror(errno));
    if (close(fd) < 0 && r == 0)
        r = -errno;
    return r;
}

/* What is no printable ASCII as CloudEvents have it in HTTP, so that any bytes are text. */
static void put_text(FILE *f, const char *text, size_t len, bool encode)
{
    fputc('"', f);
    for (size_t n = 0; n < len; n++) {
        unsigned char b = (unsigned char)text[n];

        if (encode && (b < 0x20 || b > 0x7e || b == '%'))
            fprintf(f, "%%%02X", b);
        else if (b < 0x20)
            fputc(' ', f);
        else if (b == '"' || b == '\\')
            fprintf(f, "\\%c", b);
        else
            fputc(b, f);
    }
    fputc('"', f);
}

struct listing {
    FILE *f;
    bool any;
};

static bool put_attribute(void *user, const char *name, size_t name_len, const char *value,
                          size_t len)
{
    struct listing *l = user;

    if (l->any)
        fputs(", ", l->f);
    l->any = true;
    put_text(l->f, name, name_len, true);
    fputs(": ", l->f);
    put_text(l->f, value, len, true);
    return true;
}

/* Names have no characters that JSON would want escaped. */
static void put_head(FILE *f, const struct rr_dead_letter *l)
{
    const struct rr_workflow *wf = l->wf;
    const struct rr_edge *e = wf->edges;
    struct listing list = {.f = f};

    if (l->edge >= 0)
        e = &wf->edges[l->edge];
    else
        while (e->from != RR_NODE_INPUT) /* there is one */
            e++;
    fprintf(f,
            "{\"dead_letter\": 1, \"time\": %lld, \"workflow\": \"%s\", \"from\": \"%s\", "
            "\"from_port\": \"%s\", \"to\": \"%s\", \"to_port\": \"%s\", \"delivery_id\": \"%s\", "
            "\"attempts\": %u, \"status\": %d, \"error\": ",
            (long long)time(NULL), wf->name, e->from < 0 ? "input" : wf->functions[e->from].name,
            e->from_port, wf->functions[e->to].name, e->to_port, l->id, l->attempts, l->status);
    put_text(f, l->error, strlen(l->error), false);
    fputs(", \"attributes\": {", f);
    rr_letter_attributes(l, put_attribute, &list);
    fprintf(f, "}, \"payload_bytes\": %llu}\n", (unsigned long long)l->len);
}

int rr_dead_letter(const struct rr_dead_letter *l)
{
    char *head = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&head, &len);
    int r = 0;

    if (!f)
        return -ENOMEM;
    put_head(f, l);
    if (fclose(f) != 0)
        r = -ENOMEM;
    if (r == 0)
        r = append(l->wf->dead_letters, head, len, l);
    free(head);
    return r;
}

/* --- on their way ---------------------------------------------------------------------------- */

static const char why_key[] = "rr-dead-letter"; /* metadata: "CODE ATTEMPTS TEXT" */

struct why {
    enum rr_code code;
    unsigned int attempts;
    char text[256];
};

static void set_why(struct message *m, const struct why *why)
{
    char value[sizeof(why->text) + 32];
    int n = snprintf(value, sizeof(value), "%d %u %s", (int)why->code, why->attempts, why->text);

    /* Without room for it there, it goes without. */
    rr_message_meta_set(m, why_key, sizeof(why_key) - 1, (const uint8_t *)value, (size_t)n);
}

/* What came from another process is checked. */
static bool get_why(const struct message *m, struct why *ret)
{
    size_t len;
    const uint8_t *value = rr_message_meta_get(m, why_key, sizeof(why_key) - 1, &len);
    char text[sizeof(ret->text) + 32], *end;
    unsigned long code, attempts;

    if (!value || len >= sizeof(text))
        return false;
    memcpy(text, value, len);
    text[len] = '\0';
    code = strtoul(text, &end, 10);
    attempts = strtoul(end, &end, 10);
    if (*end != ' ' || code == 0 || code > RR_E_CANCELLED || attempts == 0 ||
        attempts > 2ul * RR_WORKFLOW_MAX_ATTEMPTS)
        return false;
    *ret = (struct why){.code = (enum rr_code)code, .attempts = (unsigned int)attempts};
    snprintf(ret->text, sizeof(ret->text), "%s", end + 1);
    return true;
}

static int read_message(void *user, uint64_t at, void *to, size_t len)
{
    memcpy(to, rr_message_data(user) + at, len);
    return 0;
}

/* To its sink, else to the file. Return: where it is now; NULL: nowhere. */
static const char *put_away(struct rr_worker *w, struct message *m, int edge, const struct why *why)
{
    const struct rr_workflow *wf = w->wf;
    const struct rr_edge *e = &wf->edges[edge];
    char id[24];
    struct rr_dead_letter l = {.wf = wf,
                               .edge = edge,
                               .id = id,
                               .attempts = why->attempts,
                               .status = rr_error_status(why->code),
                               .error = why->text,
                               .meta = m->meta,
                               .meta_len = m->meta_len,
                               .len = m->len,
                               .read = read_message,
                               .user = m};
    struct rr_error err = {0};
    int r = -ENOENT;

    snprintf(id, sizeof(id), "%016llx", (unsigned long long)m->id);
    if (e->again.sink && w->post && w->post(w->post_user, e->again.sink, &l, &e->again, &err) == 0)
        return e->again.sink;
    if (e->again.sink)
        rr_log(0, "%s does not take a dead letter: %s", e->again.sink,
               w->post ? err.text : "it is not POSTed from here");
    if (wf->dead_letters)
        r = rr_dead_letter(&l);
    if (r < 0 && wf->dead_letters)
        rr_log(0, "cannot write to the dead letters %s: %s", wf->dead_letters, strerror(-r));
    return r == 0 ? wf->dead_letters : NULL;
}

/* @m: moved. Return: where it is now, or NULL. */
static const char *bury(struct rr_worker *w, struct message *m, int edge, const struct why *why)
{
    const char *where = put_away(w, m, edge, why);

    if (where && w->observer.buried)
        w->observer.buried(w->observer.user, edge);
    if (where && w->wf->edges[edge].again.given)
        rr_log(1, "function '%s': its message is given up after %u attempts, and now in %s",
               w->wf->functions[w->wf->edges[edge].to].name, why->attempts, where);
    rr_message_free(m);
    return where;
}

/* To who can put it away: the process where the workflow is run. */
static void send_letter(struct rr_worker *w, struct message *m, const struct why *why)
{
    int edge = m->edge;
    const struct rr_edge *e = &w->wf->edges[edge];
    struct rr_error err = {0};

    if (!e->optional && !e->again.sink && !w->wf->dead_letters && why->code != RR_E_DIED) {
        rr_message_free(m);
        return;
    }
    set_why(m, why);
    if (rr_remote_send(w, m, (int)w->wf->n_edges + 1, edge, &err))
        rr_log(0, "a dead letter is lost: %s", err.text);
}

void rr_letter_send(struct rr_worker *w, struct message *m, unsigned int attempts,
                    const struct rr_error *why)
{
    struct why y = {.code = why->code, .attempts = attempts};
    size_t len = strlen(why->text);

    if (len >= sizeof(y.text)) /* at a whole UTF-8 character */
        for (len = sizeof(y.text) - 1; len > 0 && ((unsigned char)why->text[len] & 0xc0) == 0x80;)
            len--;
    memcpy(y.text, why->text, len);
    if (w->remote && !rr_remote_is_origin(w->remote))
        send_letter(w, m, &y);
    else
        bury(w, m, m->edge, &y);
}

/* --- of receivers that died ------------------------------------------------------------------ */

static void describe(const struct rr_workflow *wf, const struct rr_edge *e, struct why *ret)
{
    *ret = (struct why){.code = RR_E_DIED, .attempts = e->attempts};
    snprintf(ret->text, sizeof(ret->text),
             rr_edge_channel(wf, e) == RR_CHANNEL_NETWORK
                 ? "function '%s': its node was lost %u times with a message from '%s'"
                 : "function '%s': its worker process died %u times with a message from '%s'",
             wf->functions[e->to].name, e->attempts,
             e->from < 0 ? "input" : wf->functions[e->from].name);
}

void rr_remote_bury_here(struct remote *rm, struct message *m, int edge)
{
    const struct rr_workflow *wf = rm->w->wf;
    const struct rr_edge *e = &wf->edges[edge];
    const char *where;
    struct why why;

    if (!get_why(m, &why))
        describe(wf, e, &why);
    where = bury(rm->w, m, edge, &why);
    if (!rm->active)
        return;
    if (e->optional) {
        rm->w->n_forgone++;
        return;
    }
    if (rm->failure.code || why.code != RR_E_DIED) /* its own process tells of other failures */
        return;
    rr_error_set(&rm->failure, RR_E_DIED,
                 where ? "look at the worker's log; the message lies in the dead letters"
                       : "look at the worker's log; `dead_letters` would keep the message",
                 "%s%s%s", why.text, where ? ", which is now in " : "", where ? where : "");
}

void rr_remote_bury(struct remote *rm, struct message *m)
{
    struct why why;

    describe(rm->w->wf, &rm->w->wf->edges[m->edge], &why);
    if (rr_remote_is_origin(rm))
        rr_remote_bury_here(rm, m, m->edge);
    else
        send_letter(rm->w, m, &why);
}
