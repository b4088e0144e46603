/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages whose receiver died each time that it got them. The parent appends them to a file: a
 * line of JSON, then as many bytes of payload as it says, then a line feed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/deadletter.h"
#include "worker/remote.h"

/* Whole, whoever else writes; 0 or negative errno, and then nothing is left of it. */
static int append(const char *path, const char *head, const struct rr_dead_letter *l)
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
    r = rr_write_all(fd, head, strlen(head));
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

/* Names have no characters that JSON would want escaped; an error's text may. */
static void make_head(char *head, size_t size, const struct rr_workflow *wf,
                      const struct rr_edge *e, const struct rr_dead_letter *l)
{
    char error[200] = "";
    size_t n;

    for (n = 0; l->error && l->error[n] && n < sizeof(error) - 1; n++) {
        error[n] = l->error[n];
        if ((unsigned char)error[n] < 0x20 || strchr("\"\\", error[n]))
            error[n] = ' ';
    }
    error[n] = '\0';
    snprintf(head, size,
             "{\"dead_letter\": 1, \"time\": %lld, \"workflow\": \"%s\", \"from\": \"%s\", "
             "\"from_port\": \"%s\", \"to\": \"%s\", \"to_port\": \"%s\", \"delivery_id\": "
             "\"%s\", \"attempts\": %u, %s%s%s\"payload_bytes\": %llu}\n",
             (long long)time(NULL), wf->name, e->from < 0 ? "input" : wf->functions[e->from].name,
             e->from_port, wf->functions[e->to].name, e->to_port, l->id, l->attempts,
             n ? "\"error\": \"" : "", error, n ? "\", " : "", (unsigned long long)l->len);
}

int rr_dead_letter(const struct rr_workflow *wf, const struct rr_dead_letter *l)
{
    const struct rr_edge *e = wf->edges;
    char head[1024];

    while (e->from != RR_NODE_INPUT) /* there is one */
        e++;
    make_head(head, sizeof(head), wf, e, l);
    return append(wf->dead_letters, head, l);
}

static int read_message(void *user, uint64_t at, void *to, size_t len)
{
    memcpy(to, rr_message_data(user) + at, len);
    return 0;
}

/* In the parent. @m: moved. */
void rr_remote_bury_here(struct remote *rm, struct message *m, int edge)
{
    const struct rr_workflow *wf = rm->w->wf;
    const struct rr_edge *e = &wf->edges[edge];
    const char *from = e->from < 0 ? "input" : wf->functions[e->from].name;
    const char *to = wf->functions[e->to].name;
    char head[1024], id[24];
    struct rr_dead_letter l = {
        .id = id, .attempts = e->attempts, .len = m->len, .read = read_message, .user = m};
    int r = 0;

    snprintf(id, sizeof(id), "%016llx", (unsigned long long)m->id);
    make_head(head, sizeof(head), wf, e, &l);
    if (wf->dead_letters)
        r = append(wf->dead_letters, head, &l);
    rr_message_free(m);
    if (r < 0)
        rr_log(0, "cannot write to the dead letters %s: %s", wf->dead_letters, strerror(-r));
    if (!rm->active || rm->failure.code)
        return;
    rr_error_set(
        &rm->failure, RR_E_DIED,
        wf->dead_letters ? "look at the worker's log; the message lies in the dead letters"
                         : "look at the worker's log; `dead_letters` would keep the message",
        rr_edge_channel(wf, e) == RR_CHANNEL_NETWORK
            ? "function '%s': its node was lost %u times with a message from '%s'%s%s"
            : "function '%s': its worker process died %u times with a message from '%s'%s%s",
        to, e->attempts, from, wf->dead_letters && r == 0 ? ", which is now in " : "",
        wf->dead_letters && r == 0 ? wf->dead_letters : "");
}

void rr_remote_bury(struct remote *rm, struct message *m)
{
    int edge = m->edge;
    struct rr_error err = {0};

    if (rr_remote_is_origin(rm))
        rr_remote_bury_here(rm, m, edge);
    else if (rr_remote_send(rm->w, m, (int)rm->w->wf->n_edges + 1, edge, &err))
        rr_log(0, "a dead letter is lost: %s", err.text);
}
