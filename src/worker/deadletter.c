/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages whose receiver died each time that it got them. The parent appends them to a file: a
 * line of JSON, then as many bytes of payload as it says, then a line feed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "worker/remote.h"

static int append(const char *path, const char *head, const struct message *m)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    int r;

    if (fd < 0)
        return -errno;
    r = rr_write_all(fd, head, strlen(head));
    if (r == 0 && m->len)
        r = rr_write_all(fd, rr_message_data(m), m->len);
    if (r == 0)
        r = rr_write_all(fd, "\n", 1);
    if (close(fd) < 0 && r == 0)
        r = -errno;
    return r;
}

/* In the parent. @m: moved. */
void rr_remote_bury_here(struct remote *rm, struct message *m, int edge)
{
    const struct rr_workflow *wf = rm->w->wf;
    const struct rr_edge *e = &wf->edges[edge];
    const char *from = e->from < 0 ? "input" : wf->functions[e->from].name;
    const char *to = wf->functions[e->to].name;
    char head[768];
    int r = 0;

    /* names have no characters that JSON would want escaped */
    snprintf(head, sizeof(head),
             "{\"dead_letter\": 1, \"time\": %lld, \"workflow\": \"%s\", \"from\": \"%s\", "
             "\"from_port\": \"%s\", \"to\": \"%s\", \"to_port\": \"%s\", \"delivery_id\": "
             "\"%016llx\", \"attempts\": %u, \"payload_bytes\": %llu}\n",
             (long long)time(NULL), wf->name, from, e->from_port, to, e->to_port,
             (unsigned long long)m->id, e->attempts, (unsigned long long)m->len);
    if (wf->dead_letters)
        r = append(wf->dead_letters, head, m);
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
