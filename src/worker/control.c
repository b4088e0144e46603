/* SPDX-License-Identifier: Apache-2.0 */
/* What parent and worker processes tell each other, over a socket that the parent made. */
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#include "worker/remote.h"

static size_t length_of(const struct control *c)
{
    switch ((enum word)c->word) {
    case WORD_FAILED:
        return offsetof(struct control, error) + sizeof(c->error);
    case WORD_ANSWER:
        return offsetof(struct control, answer) + sizeof(c->answer);
    case WORD_EVENTS:
        return c->n > RR_EVENTS ? 0
                                : offsetof(struct control, events) + c->n * sizeof(c->events[0]);
    case WORD_LOG:
        return offsetof(struct control, text) + sizeof(c->text);
    case WORD_READY:
    case WORD_IDLE:
    case WORD_ASK:
    case WORD_RUN:
    case WORD_QUIT:
        return offsetof(struct control, error);
    }
    return 0;
}

int rr_control_try_send(int fd, const struct control *c)
{
    if (send(fd, c, length_of(c), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
        return 0;
    return errno == EAGAIN || errno == EINTR ? -EAGAIN : -EPIPE;
}

int rr_control_send(int fd, const struct control *c)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLOUT};

        int r = rr_control_try_send(fd, c);

        if (r != -EAGAIN)
            return r;
        poll(&p, 1, -1);
    }
}

int rr_control_receive(int fd, struct control *c)
{
    ssize_t n;

    do
        n = recv(fd, c, sizeof(*c), MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN ? -EAGAIN : -EPIPE;
    if (n == 0)
        return -EPIPE;
    if ((size_t)n < offsetof(struct control, error) || (size_t)n != length_of(c))
        return -EPROTO;
    if (c->word == WORD_FAILED) {
        c->error.file[sizeof(c->error.file) - 1] = 0;
        c->error.text[sizeof(c->error.text) - 1] = 0;
        c->error.hint[sizeof(c->error.hint) - 1] = 0;
    } else if (c->word == WORD_ANSWER) {
        c->answer.pending[sizeof(c->answer.pending) - 1] = 0;
    } else if (c->word == WORD_LOG) {
        c->text[sizeof(c->text) - 1] = 0;
    }
    return 0;
}
