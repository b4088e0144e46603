/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast a large payload is sent. TCP fills the queue before the slowest link, and whoever sends
 * something small over that link waits behind it, whatever connection it uses. So where the rate
 * stands still, which is how a link at its limit looks, we send a little slower than that: the
 * queue stays empty, and a small message passes as on an idle link. Where the rate moves (others
 * use the link, or a processor is the limit) TCP is left alone.
 *
 * Every now and then it is left alone for a moment, to see whether there is more by now.
 */
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>

#include "base/util.h"
#include "channel/netio.h"

#define WINDOW_NS 100000000ull     /* over which a rate is measured */
#define MAX_RATE 1000000000ull     /* bytes/s; above, nobody waits long for one burst */
#define N_STABLE 4                 /* windows of the same rate, before it is believed */
#define PROBE_NS 1000000000ull     /* before the first probe; doubled up to */
#define MAX_PROBE_NS 8000000000ull /* this */
#define BURST 65536u               /* that TCP hands to a device at once */

/* In thousandths: */
#define SAME 20      /* rates that differ by less are the same */
#define BUSY 900     /* of a window in which there was something to send: it counts */
#define ENDS 100     /* of a window in which an end was too slow: it tells nothing of the link */
#define TARGET 998   /* of the rate that was measured */
#define AT_LEAST 970 /* the same, while a queue must drain */
#define GONE 960     /* less than this of what we ask for: the link has changed */

static void set_rate(struct conn *c, uint64_t rate)
{
    c->pace.rate = rate;
    setsockopt(c->fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof(rate));
}

static void leave_alone(struct conn *c)
{
    c->pace.n_same = 0;
    c->pace.probing = false;
    if (c->pace.rate != UINT64_MAX)
        set_rate(c, UINT64_MAX);
}

static bool same(uint64_t a, uint64_t b)
{
    uint64_t apart = a > b ? a - b : b - a;

    return apart * 1000 < a * SAME;
}

/* Does a queue stand somewhere? */
static bool is_queue(const struct tcp_info *i, uint64_t rate)
{
    return i->tcpi_rtt > i->tcpi_min_rtt + BURST * 1000000ull / rate;
}

static void believe(struct conn *c, uint64_t rate)
{
    c->pace.link = rate;
    c->pace.probing = false;
    set_rate(c, rate * TARGET / 1000);
    c->pace.probe_ns = c->net->now_ns + c->pace.patience_ns;
}

/* Unpaced: has the rate stood still for long enough? */
static void on_free(struct conn *c, const struct tcp_info *i, uint64_t rate)
{
    struct pace *p = &c->pace;

    if (p->n_same && !same(p->sum / p->n_same, rate))
        p->n_same = 0;
    p->sum = p->n_same ? p->sum + rate : rate;
    if (++p->n_same < N_STABLE)
        return;
    rate = p->sum / p->n_same;
    p->n_same = 0;
    if (rate > MAX_RATE || !is_queue(i, rate))
        return;
    p->patience_ns = PROBE_NS;
    believe(c, rate);
}

static void on_paced(struct conn *c, const struct tcp_info *i, uint64_t rate)
{
    struct pace *p = &c->pace;

    if (rate * 1000 < p->rate * GONE) {
        leave_alone(c);
    } else if (c->net->now_ns >= p->probe_ns) {
        p->probing = true;
        setsockopt(c->fd, SOL_SOCKET, SO_MAX_PACING_RATE, &(uint64_t){UINT64_MAX},
                   sizeof(uint64_t));
    } else if (is_queue(i, p->link)) { /* others send a little, too */
        if (p->rate * 1000 > p->link * AT_LEAST)
            set_rate(c, p->rate * 996 / 1000);
    } else if (p->rate * 1000 < p->link * (TARGET - 1)) {
        set_rate(c, rr_min(p->rate * 1002 / 1000, p->link * TARGET / 1000));
    }
}

static void on_probed(struct conn *c, uint64_t rate)
{
    struct pace *p = &c->pace;

    if (rate > p->link && !same(p->link, rate)) {
        leave_alone(c);
        return;
    }
    p->patience_ns = rr_min(2 * p->patience_ns, MAX_PROBE_NS);
    believe(c, p->link);
}

void pace_look(struct conn *c)
{
    struct pace *p = &c->pace;
    uint64_t ns = c->net->now_ns - p->began_ns, bytes, busy_us, ends_us;
    struct tcp_info i = {0};
    socklen_t len = sizeof(i);

    if (ns < WINDOW_NS || c->unix_socket)
        return;
    if (getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &i, &len) < 0 ||
        len < offsetof(struct tcp_info, tcpi_delivered) || !i.tcpi_min_rtt)
        return; /* an old kernel */
    bytes = i.tcpi_bytes_acked - p->acked;
    busy_us = i.tcpi_busy_time - p->busy_us;
    ends_us = i.tcpi_rwnd_limited + i.tcpi_sndbuf_limited - p->ends_us;
    p->began_ns = c->net->now_ns;
    p->acked = i.tcpi_bytes_acked;
    p->busy_us = i.tcpi_busy_time;
    p->ends_us = i.tcpi_rwnd_limited + i.tcpi_sndbuf_limited;
    /* It was idle, and much may have changed; or one of the ends is the limit, not the link. */
    if (ns > 20 * WINDOW_NS || ends_us * 1000 * 1000 > ns * ENDS) {
        leave_alone(c);
        return;
    }
    if (busy_us * 1000 * 1000 < ns * BUSY || bytes == 0)
        return;
    bytes = bytes * 1000000 / (ns / 1000); /* per second */
    if (p->rate == UINT64_MAX || p->rate == 0)
        on_free(c, &i, bytes);
    else if (p->probing)
        on_probed(c, bytes);
    else
        on_paced(c, &i, bytes);
}
