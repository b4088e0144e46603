/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any use of both ends of a ring, and any corruption of its words, headers and
 * records in between: every byte that the ring hands out can be touched, what is
 * broken stays broken, and as long as nothing was corrupted what goes in comes out.
 * A ring's mapping has pages without access around it, so that an overrun faults.
 *
 * An input is a sequence of steps of 4 bytes: what to do, and a number of 24 bits.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"
#include "channel/ring.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define MAX_STEPS 400
#define MARK 0x52696e67u /* as in ring.c: a fuzzer would not find it */

struct fuzz {
    struct rr_ring *p, *c;
    uint8_t *raw; /* the file, as a hostile peer maps it */
    bool corrupt; /* something was overwritten: what is read may be garbage */
    bool reserved, peeked;
    uint8_t *body; /* reserved */
    uint32_t len;
    uint32_t lens[MAX_STEPS]; /* of the records committed, in order */
    size_t in, out;
};

static void check(bool good)
{
    if (!good)
        abort();
}

static struct fuzz *start(void)
{
    struct fuzz *f = calloc(1, sizeof(*f));

    check(f && rr_ring_new(RR_RING_CONSUMER, &f->c, NULL) == 0);
    check(rr_ring_attach(fcntl(rr_ring_fd(f->c), F_DUPFD_CLOEXEC, 0), RR_RING_PRODUCER, &f->p,
                         NULL) == 0);
    f->raw =
        mmap(NULL, RR_RING_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, rr_ring_fd(f->c), 0);
    check(f->raw != MAP_FAILED);
    return f;
}

static void stop(struct fuzz *f)
{
    munmap(f->raw, RR_RING_FILE_BYTES);
    rr_ring_free(f->p);
    rr_ring_free(f->c);
    free(f);
}

static uint64_t load(const struct fuzz *f, size_t at)
{
    uint64_t v;

    memcpy(&v, f->raw + at, sizeof(v));
    return v;
}

static void poke(struct fuzz *f, size_t at, uint64_t v)
{
    memcpy(f->raw + at, &v, sizeof(v));
    f->corrupt = true;
}

static void reserve(struct fuzz *f, uint32_t v)
{
    f->len = v % (RR_RING_MAX_RECORD + 1);
    f->body = rr_ring_reserve(f->p, f->len);
    f->reserved = f->body != NULL;
    check(!f->reserved || !rr_ring_broken(f->p));
    if (f->reserved && f->len) {
        /* both ends and something of each page: all of a long one takes too long */
        for (uint32_t i = 0; i < f->len; i += 4096)
            f->body[i] = (uint8_t)f->in;
        f->body[f->len - 1] = (uint8_t)f->in;
    }
}

static void commit(struct fuzz *f)
{
    if (!f->reserved)
        return;
    rr_ring_commit(f->p);
    f->reserved = false;
    f->lens[f->in++] = f->len;
}

static void peek(struct fuzz *f)
{
    bool was_broken = rr_ring_broken(f->c);
    volatile uint8_t sink = 0;
    const uint8_t *body;
    const void *p;
    uint32_t n;
    int r = rr_ring_peek(f->c, &p, &n);

    check(r == 0 || r == -EAGAIN || r == -EPROTO);
    check((r == -EPROTO) == rr_ring_broken(f->c) && (!was_broken || r == -EPROTO));
    f->peeked = r == 0 || (r == -EPROTO && f->peeked);
    if (r != 0) {
        check(f->corrupt || (r == -EAGAIN && f->in == f->out));
        return;
    }
    body = p;
    check(n <= RR_RING_MAX_RECORD && (uintptr_t)body % 64 == 0);
    for (uint32_t i = 0; i < n; i += 4096)
        sink ^= body[i];
    if (n)
        sink ^= body[n - 1];
    (void)sink;
    if (!f->corrupt)
        check(f->out < f->in && n == f->lens[f->out] &&
              (!n || (body[0] == (uint8_t)f->out && body[n - 1] == (uint8_t)f->out)));
}

static void release(struct fuzz *f)
{
    if (!f->peeked)
        return;
    rr_ring_release(f->c);
    f->peeked = false;
    f->out++;
}

/* What each side says of sleeping must fit what is in the ring. */
static void wait_and_wake(struct fuzz *f, uint32_t v)
{
    uint32_t len = v / 8 % (RR_RING_MAX_RECORD + 1);
    struct futex_waitv word = {0};
    bool said;

    switch (v % 8) {
    case 0:
        said = rr_ring_sleep(f->c, v / 8 % 2 ? &word : NULL);
        check(!said || !rr_ring_broken(f->c));
        check((word.uaddr != 0) == (said && v / 8 % 2));
        check(f->corrupt || said == (f->in == f->out));
        break;
    case 1:
        rr_ring_awake(f->c);
        check(f->corrupt || !rr_ring_must_wake(f->p));
        break;
    case 2:
        rr_ring_must_wake(f->p);
        break;
    case 3:
        said = rr_ring_wait_space(f->p, len);
        check(said || !rr_ring_broken(f->p));
        if (!said)
            reserve(f, len);
        check(said || f->reserved);
        break;
    default:
        said = rr_ring_must_wake_producer(f->c);
        check(f->corrupt || !said || !rr_ring_must_wake_producer(f->c));
        break;
    }
}

static void corrupt(struct fuzz *f, uint8_t what, uint32_t v)
{
    uint64_t head = load(f, RR_RING_HEAD), tail = load(f, RR_RING_TAIL);
    uint64_t index = head + v % 4 * 64;

    switch (what % 8) {
    case 0: /* a step that may be believed */
        poke(f, RR_RING_TAIL, tail + (uint64_t)v * 64);
        break;
    case 1:
        poke(f, RR_RING_HEAD, head + (uint64_t)v * 64);
        break;
    case 2:
        poke(f, RR_RING_TAIL, (uint64_t)v << (v % 48));
        break;
    case 3:
        poke(f, RR_RING_HEAD, (uint64_t)v << (v % 48));
        break;
    case 4: /* a header of any length, near the head */
        poke(f, RR_RING_HEAD_BYTES + ((index - 8) & (RR_RING_BYTES - 8)),
             (uint64_t)((uint32_t)(index / 64) ^ MARK) << 32 | v / 4);
        break;
    case 5:
        poke(f, RR_RING_HEAD_BYTES + ((index - 8) & (RR_RING_BYTES - 8)), ~(uint64_t)v);
        break;
    case 6:
        poke(f, v & 1 ? RR_RING_CONSUMER_SLEEPS : RR_RING_PRODUCER_WAITS, v >> 1);
        break;
    default:
        poke(f, v % (RR_RING_FILE_BYTES / 8) * 8, ~0ull << (v % 64));
        break;
    }
}

static void step(struct fuzz *f, uint8_t what, uint32_t v)
{
    switch (what % 8) {
    case 0:
        reserve(f, v);
        break;
    case 1:
        reserve(f, v % 300);
        commit(f);
        break;
    case 2:
        commit(f);
        break;
    case 3:
        peek(f);
        break;
    case 4:
        release(f);
        break;
    case 5:
        peek(f);
        release(f);
        break;
    case 6:
        wait_and_wake(f, v);
        break;
    default:
        corrupt(f, what / 8, v);
        break;
    }
    check(rr_ring_used_bytes(f->p) <= RR_RING_BYTES && rr_ring_used_bytes(f->c) <= RR_RING_BYTES);
    check(f->corrupt || !(rr_ring_broken(f->p) || rr_ring_broken(f->c)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct fuzz *f = start();

    for (size_t i = 0; i + 4 <= len && i / 4 < MAX_STEPS; i += 4)
        step(f, data[i], data[i + 1] | (uint32_t)data[i + 2] << 8 | (uint32_t)data[i + 3] << 16);
    stop(f);
    return 0;
}
