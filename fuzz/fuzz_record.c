/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records of TLS from a peer that has the keys: of any type and content, whole, in pieces or
 * changed on the way, read in pieces of any size. No byte is written beyond where it was wanted,
 * and what is read is what was sent.
 *
 * An input is a sequence of steps: what to do, a number of 16 bits, and bytes that some steps take.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define RECORDS_PER_KEY 8

/* The source itself: the peer seals what no header lets it. */
#include "channel/net_record.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define MAX_STEPS 64
#define MARGIN 64

static void check(bool good)
{
    if (!good)
        abort();
}

static struct records *with_known_keys(uint16_t suite, bool server)
{
    struct records *t = records_new();
    char line[200];

    check(t);
    for (unsigned int side = 0; side < 2; side++) {
        snprintf(line, sizeof(line), "%s_TRAFFIC_SECRET_0 00 %0*x", side ? "SERVER" : "CLIENT",
                 suite == 0x1302 ? 96 : 64, 0x1234 + side);
        records_on_secret(t, line);
    }
    check(records_begin(t, suite, server));
    return t;
}

struct fuzz {
    struct rr_net net;
    struct conn c;
    struct records *peer;
    int theirs;
    bool honest, over; /* all bytes so far are of records that we made; the end was read */
    struct bytes sent; /* what is to be read */
};

static void put(struct fuzz *f, const uint8_t *data, size_t len)
{
    while (len) {
        ssize_t n = write(f->theirs, data, len);

        if (n <= 0)
            return;
        data += n;
        len -= (size_t)n;
    }
}

static void put_record(struct fuzz *f, uint8_t type, const uint8_t *data, size_t len, int damage)
{
    struct bytes out = {0};

    if (f->over)
        return;
    check(seal(&f->peer->out, &out, type, data, len));
    if (damage >= 0) {
        out.data[(size_t)damage % out.end] ^= 0x10;
        f->honest = false;
    }
    if (type == DATA && len <= MAX_PLAIN && f->honest)
        check(bytes_add(&f->sent, data, len));
    else if (type != DATA)
        f->honest = false; /* it may end the connection, or change the key */
    put(f, out.data, out.end);
    bytes_free(&out);
}

static void read_some_of_it(struct fuzz *f, size_t len)
{
    uint8_t *to = malloc(len + MARGIN);
    ssize_t n;

    check(to);
    memset(to, 0xa5, len + MARGIN);
    n = records_read(&f->c, to, len);
    check(n == -EAGAIN || n == -EPIPE || (n > 0 && n <= (ssize_t)len) || (n == -EAGAIN && !len));
    for (size_t i = 0; i < MARGIN; i++)
        check(to[len + i] == 0xa5);
    if (n > 0) {
        size_t known = rr_min((size_t)n, bytes_len(&f->sent));

        check(memcmp(to, f->sent.data + f->sent.start, known) == 0);
        f->sent.start += known;
    }
    f->over = n == -EPIPE;
    f->c.cipher.start = f->c.cipher.end = 0; /* nobody reads what we say */
    free(to);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const uint16_t suites[] = {0x1301, 0x1302, 0x1303};
    static uint8_t zeroes[MAX_PLAIN + 300];
    struct fuzz f = {.honest = true};
    uint16_t suite;
    int fds[2];

    if (len < 1)
        return 0;
    suite = suites[data[0] % 3];
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    f.theirs = fds[1];
    f.net.epoll_fd = -1;
    f.net.closing = true;
    f.net.conns = &f.c;
    f.net.stats.connections = 1;
    f.c.net = &f.net;
    f.c.fd = fds[0];
    f.c.state = CONN_OPEN;
    f.c.extra = data[0] & 8;
    f.c.records = with_known_keys(suite, data[0] & 4);
    f.peer = with_known_keys(suite, !(data[0] & 4));
    data++;
    len--;
    for (int n = 0; n < MAX_STEPS && len >= 3 && !f.over; n++) {
        uint8_t what = data[0];
        size_t number = data[1] | (size_t)data[2] << 8, bytes;

        data += 3;
        len -= 3;
        bytes = rr_min(number, len);
        switch (what % 7) {
        case 0:
            put_record(&f, DATA, data, bytes, -1);
            break;
        case 1:
            put_record(&f, (what & 8) ? HANDSHAKE : ALERT, data, bytes, -1);
            break;
        case 2:
            put_record(&f, what >> 3, data, bytes, -1);
            break;
        case 3: /* large, or too large */
            bytes = 0;
            put_record(&f, DATA, zeroes, rr_min(number, sizeof(zeroes) - 64), -1);
            break;
        case 4:
            put_record(&f, DATA, data, bytes, (int)number);
            break;
        case 5: /* no record at all */
            f.honest = false;
            put(&f, data, bytes);
            break;
        case 6:
        default:
            bytes = 0;
            read_some_of_it(&f, number);
            break;
        }
        data += bytes;
        len -= bytes;
    }
    for (int n = 0; n < 100 && !f.over; n++)
        read_some_of_it(&f, 50000);
    if (f.c.state != CONN_CLOSED)
        conn_close(&f.c);
    bytes_free(&f.c.cipher);
    bytes_free(&f.sent);
    records_free(f.peer);
    close(f.theirs);
    return 0;
}
