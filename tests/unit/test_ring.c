/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

/* The source itself: two ends over one mapping, where ThreadSanitizer sees that both use the same
 * bytes, cannot be had through the interface. */
#include "channel/ring.c"

#define PATIENCE_MS 60000 /* a wake-up that takes longer was lost */

struct pair {
    struct rr_ring *p, *c;
};

static struct pair new_pair(void)
{
    struct rr_error err;
    struct pair x;

    assert_int_equal(rr_ring_new(RR_RING_PRODUCER, &x.p, &err), 0);
    assert_int_equal(
        rr_ring_attach(fcntl(rr_ring_fd(x.p), F_DUPFD_CLOEXEC, 0), RR_RING_CONSUMER, &x.c, &err),
        0);
    return x;
}

static void free_pair(struct pair *x)
{
    rr_ring_free(x->p);
    rr_ring_free(x->c);
}

static uint8_t byte_of(uint64_t i, uint32_t at)
{
    return (uint8_t)(i * 7 + at * 3 + (at >> 8));
}

static void fill(uint8_t *p, uint32_t len, uint64_t i)
{
    for (uint32_t k = 0; k < len; k++)
        p[k] = byte_of(i, k);
}

static bool filled(const uint8_t *p, uint32_t len, uint64_t i)
{
    for (uint32_t k = 0; k < len; k++)
        if (p[k] != byte_of(i, k))
            return false;
    return true;
}

static bool put(struct rr_ring *p, uint32_t len, uint64_t i)
{
    uint8_t *body = rr_ring_reserve(p, len);

    if (!body)
        return false;
    assert_int_equal((uintptr_t)body % 64, 0);
    fill(body, len, i);
    rr_ring_commit(p);
    return true;
}

static void take(struct rr_ring *c, uint32_t len, uint64_t i)
{
    const void *body = NULL;
    uint32_t got = 0;

    assert_int_equal(rr_ring_peek(c, &body, &got), 0);
    assert_int_equal(got, len);
    assert_int_equal((uintptr_t)body % 64, 0);
    assert_true(filled(body, len, i));
    rr_ring_release(c);
}

static int peek(struct rr_ring *c)
{
    const void *body;
    uint32_t len;

    return rr_ring_peek(c, &body, &len);
}

static uint64_t next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed >> 33;
}

static const uint32_t lengths[] = {0,
                                   1,
                                   8,
                                   55,
                                   56,
                                   57,
                                   63,
                                   64,
                                   65,
                                   119,
                                   120,
                                   4096,
                                   4097,
                                   9999,
                                   65536,
                                   256u << 10,
                                   300001,
                                   RR_RING_MAX_RECORD - 1,
                                   RR_RING_MAX_RECORD};

/* Every length at many places, and so over the end of the ring. */
static void test_round_trip(void **state)
{
    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(lengths); i++) {
        struct pair x = new_pair();
        uint64_t turns = 2 * RR_RING_BYTES / step_of(lengths[i]) + 3;

        for (uint64_t n = 0; n < turns && n < 600; n++) {
            assert_true(put(x.p, lengths[i], n));
            take(x.c, lengths[i], n);
        }
        assert_int_equal(peek(x.c), -EAGAIN);
        free_pair(&x);
    }
}

static void test_full_and_empty(void **state)
{
    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(lengths); i++) {
        struct pair x = new_pair();
        uint32_t len = lengths[i];
        uint64_t n = 0;

        assert_int_equal(peek(x.c), -EAGAIN);
        assert_int_equal(rr_ring_used_bytes(x.c), 0);
        while (rr_ring_reserve(x.p, len)) {
            rr_ring_commit(x.p);
            n++;
        }
        assert_int_equal(n, RR_RING_BYTES / step_of(len));
        assert_int_equal(rr_ring_used_bytes(x.p), n * step_of(len));
        assert_int_equal(rr_ring_used_bytes(x.c), n * step_of(len));
        assert_int_equal(peek(x.c), 0);
        assert_null(rr_ring_reserve(x.p, len)); /* a peeked record is still there */
        rr_ring_release(x.c);
        assert_true(put(x.p, len, 1));
        assert_null(rr_ring_reserve(x.p, len));
        while (peek(x.c) == 0)
            rr_ring_release(x.c);
        assert_int_equal(peek(x.c), -EAGAIN);
        assert_int_equal(rr_ring_used_bytes(x.p), 0);
        assert_false(rr_ring_broken(x.p) || rr_ring_broken(x.c));
        free_pair(&x);
    }
}

/* Any mix of lengths comes out in the order in which it went in. */
static void test_order(void **state)
{
    struct pair x = new_pair();
    uint64_t seed = 1, in = 0, out = 0;
    uint32_t len[65536];

    (void)state;
    while (out < 20000) {
        uint32_t want = lengths[next_random(&seed) % (in % 100 ? 11 : RR_ARRAY_LEN(lengths))];

        if (next_random(&seed) % 100 < 52 && in - out < RR_ARRAY_LEN(len) && put(x.p, want, in)) {
            len[in++ % RR_ARRAY_LEN(len)] = want;
        } else if (in > out) {
            take(x.c, len[out % RR_ARRAY_LEN(len)], out);
            out++;
        }
    }
    free_pair(&x);
}

static void test_one_reservation(void **state)
{
    struct pair x = new_pair();

    (void)state;
    assert_non_null(rr_ring_reserve(x.p, 5000));
    assert_int_equal(peek(x.c), -EAGAIN); /* nothing is seen before it is committed */
    assert_true(put(x.p, 10, 3));         /* replaces it */
    take(x.c, 10, 3);
    assert_int_equal(peek(x.c), -EAGAIN);
    assert_true(put(x.p, 20, 4));
    assert_int_equal(peek(x.c), 0);
    take(x.c, 20, 4); /* peeking twice is the same record */
    free_pair(&x);
}

static void test_sleep_and_wake(void **state)
{
    struct pair x = new_pair();

    (void)state;
    assert_true(put(x.p, 1, 0));
    assert_false(rr_ring_must_wake(x.p));   /* nobody sleeps */
    assert_false(rr_ring_sleep(x.c, NULL)); /* there is a record */
    take(x.c, 1, 0);
    assert_true(rr_ring_sleep(x.c, NULL));
    assert_true(put(x.p, 1, 1));
    assert_true(rr_ring_must_wake(x.p));
    assert_false(rr_ring_must_wake(x.p)); /* one sleep, one wake-up */
    take(x.c, 1, 1);
    assert_true(rr_ring_sleep(x.c, NULL));
    rr_ring_awake(x.c);
    assert_true(put(x.p, 1, 2));
    assert_false(rr_ring_must_wake(x.p));
    take(x.c, 1, 2);

    assert_false(rr_ring_wait_space(x.p, RR_RING_MAX_RECORD));
    while (put(x.p, 1000, 3))
        ;
    assert_true(rr_ring_wait_space(x.p, 3000));
    assert_false(rr_ring_must_wake_producer(x.c)); /* no room yet */
    take(x.c, 1000, 3);
    assert_false(rr_ring_must_wake_producer(x.c)); /* too little */
    take(x.c, 1000, 3);
    take(x.c, 1000, 3);
    assert_true(rr_ring_must_wake_producer(x.c));
    assert_false(rr_ring_must_wake_producer(x.c));
    assert_false(rr_ring_wait_space(x.p, 3000));
    assert_true(put(x.p, 3000, 4));
    free_pair(&x);
}

/* --- two sides at once ------------------------------------------------------------------------ */

struct traffic {
    struct rr_ring *p, *c;
    int data_fd, space_fd; /* doorbells: eventfds */
    uint64_t records;
    unsigned int batch; /* committed or released before the other is woken */
    const char *failed;
};

static uint32_t traffic_len(uint64_t i)
{
    if (i % 4096 == 4095)
        return RR_RING_MAX_RECORD - (uint32_t)(i % 100);
    if (i % 512 == 511)
        return 65536;
    return (uint32_t)(i * 2654435761u % 200);
}

static void ring_bell(int fd)
{
    uint64_t one = 1;

    if (write(fd, &one, sizeof(one)) != sizeof(one))
        abort();
}

static bool doze(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint64_t n;

    return poll(&p, 1, PATIENCE_MS) == 1 && read(fd, &n, sizeof(n)) == sizeof(n);
}

static void wake_consumer(struct traffic *t)
{
    if (rr_ring_must_wake(t->p))
        ring_bell(t->data_fd);
}

static void wake_producer(struct traffic *t)
{
    if (rr_ring_must_wake_producer(t->c))
        ring_bell(t->space_fd);
}

static void *produce(void *data)
{
    struct traffic *t = data;

    for (uint64_t i = 0; i < t->records; i++) {
        uint32_t len = traffic_len(i);
        uint8_t *body;

        while (!(body = rr_ring_reserve(t->p, len))) {
            wake_consumer(t); /* it may sleep on what was not announced yet */
            if (rr_ring_broken(t->p) || (rr_ring_wait_space(t->p, len) && !doze(t->space_fd))) {
                t->failed = "the producer was not woken";
                return NULL;
            }
        }
        fill(body, len, i);
        rr_ring_commit(t->p);
        if (i % t->batch == 0)
            wake_consumer(t);
        if (i % 30000 == 29999)
            usleep(2000); /* let the consumer find it empty */
    }
    wake_consumer(t);
    return NULL;
}

static const char *consume(struct traffic *t)
{
    for (uint64_t i = 0; i < t->records;) {
        const void *body;
        uint32_t len;
        int r = rr_ring_peek(t->c, &body, &len);

        if (r == -EAGAIN) {
            wake_producer(t);
            if (rr_ring_sleep(t->c, NULL) && !doze(t->data_fd))
                return "the consumer was not woken";
            continue;
        }
        if (r != 0)
            return "broken";
        if (len != traffic_len(i))
            return "a wrong length";
        if (!filled(body, len, i))
            return "wrong bytes";
        rr_ring_release(t->c);
        if (i % t->batch == 0)
            wake_producer(t);
        if (++i % 30000 == 15000)
            usleep(2000); /* let the producer find it full */
    }
    return NULL;
}

static void run_threads(struct traffic *t)
{
    pthread_t thread;
    const char *failed;

    t->data_fd = eventfd(0, EFD_CLOEXEC);
    t->space_fd = eventfd(0, EFD_CLOEXEC);
    assert_int_equal(pthread_create(&thread, NULL, produce, t), 0);
    failed = consume(t);
    if (failed)
        fail_msg("%s", failed); /* the producer may wait for ever: do not join it */
    pthread_join(thread, NULL);
    if (t->failed)
        fail_msg("%s", t->failed);
    assert_int_equal(rr_ring_used_bytes(t->c), 0);
    close(t->data_fd);
    close(t->space_fd);
}

static void test_threads(void **state)
{
    static const unsigned int batches[] = {1, 16};

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(batches); i++) {
        struct pair x = new_pair();
        struct traffic t = {.p = x.p, .c = x.c, .records = 300000, .batch = batches[i]};

        run_threads(&t);
        free_pair(&x);
    }
}

/* Both ends over one mapping, so that ThreadSanitizer can judge what orders their accesses. */
static void test_threads_in_one_mapping(void **state)
{
    struct pair x = new_pair();
    struct rr_ring *c = aligned_alloc(128, rr_align_up(sizeof(*c), 128));
    /* a large batch: waking orders accesses too, and would hide what commit and release forget */
    struct traffic t = {.p = x.p, .c = c, .records = 100000, .batch = 1000};

    (void)state;
    *c = *x.p;
    c->side = RR_RING_CONSUMER;
    run_threads(&t);
    free(c);
    free_pair(&x);
}

/*
 * Announcements against commits and releases at the same moment, a great many times: the two go in
 * step, so that a wake-up that is lost is not made good by the next. A bell is a counter, and
 * sleeping is spinning on it.
 */
struct step {
    struct rr_ring *p, *c;
    atomic_uint_fast64_t bell, sent, taken;
    uint64_t turns;
    const char *failed;
};

static bool spin_until(atomic_uint_fast64_t *word, uint64_t value)
{
    uint64_t end = 0;

    for (uint64_t i = 1; atomic_load(word) < value; i++)
        if (i % 4096 == 0) {
            end = end ? end : rr_now_ns() + PATIENCE_MS * 1000000ull;
            if (rr_now_ns() > end)
                return false;
            sched_yield();
        }
    return true;
}

static void dawdle(uint64_t *seed)
{
    for (volatile uint64_t n = next_random(seed) % 64; n; n = n - 1)
        ;
}

/* Sends only when all was taken, and the consumer is about to sleep. */
static void *send_in_step(void *data)
{
    struct step *s = data;
    uint64_t seed = 1;

    for (uint64_t i = 0; i < s->turns; i++) {
        if (!spin_until(&s->taken, i)) {
            s->failed = "the consumer sleeps on a record";
            return NULL;
        }
        dawdle(&seed);
        rr_ring_reserve(s->p, 8);
        rr_ring_commit(s->p);
        if (rr_ring_must_wake(s->p))
            atomic_fetch_add(&s->bell, 1);
    }
    return NULL;
}

static void *take_in_step(void *data)
{
    struct step *s = data;
    uint64_t seed = 2, bells = 0;

    for (uint64_t i = 0; i < s->turns; i++) {
        while (peek(s->c) != 0)
            if (rr_ring_sleep(s->c, NULL) && !spin_until(&s->bell, ++bells))
                return NULL;
        rr_ring_release(s->c);
        atomic_store(&s->taken, i + 1);
        dawdle(&seed);
    }
    return NULL;
}

/* Two of the longest fill the ring. Makes room for one only when it is full. */
static void *make_room_in_step(void *data)
{
    struct step *s = data;
    uint64_t seed = 3;

    for (uint64_t i = 0; i < s->turns; i++) {
        if (!spin_until(&s->sent, i + 2)) {
            s->failed = "the producer sleeps on room";
            return NULL;
        }
        dawdle(&seed);
        if (peek(s->c) != 0)
            s->failed = "no record";
        rr_ring_release(s->c);
        if (rr_ring_must_wake_producer(s->c))
            atomic_fetch_add(&s->bell, 1);
    }
    return NULL;
}

static void *fill_in_step(void *data)
{
    struct step *s = data;
    uint64_t seed = 4, bells = 0;

    for (uint64_t i = 0; i < s->turns + 2; i++) {
        while (!rr_ring_reserve(s->p, RR_RING_MAX_RECORD))
            if (rr_ring_wait_space(s->p, RR_RING_MAX_RECORD) && !spin_until(&s->bell, ++bells))
                return NULL;
        rr_ring_commit(s->p);
        atomic_store(&s->sent, i + 1);
        dawdle(&seed);
    }
    return NULL;
}

static void test_no_wake_up_is_lost(void **state)
{
    static void *(*const sides[][2])(void *) = {{send_in_step, take_in_step},
                                                {make_room_in_step, fill_in_step}};

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(sides); i++) {
        struct pair x = new_pair();
        struct step s = {.p = x.p, .c = x.c, .turns = 200000};
        pthread_t threads[2];

        for (size_t k = 0; k < 2; k++)
            assert_int_equal(pthread_create(&threads[k], NULL, sides[i][k], &s), 0);
        for (size_t k = 0; k < 2; k++)
            pthread_join(threads[k], NULL);
        if (s.failed)
            fail_msg("%s", s.failed);
        free_pair(&x);
    }
}

/* The producer is another process, which attaches, sends and is gone. */
static void test_processes(void **state)
{
    struct traffic t = {.records = 50000, .batch = 1};
    struct rr_error err;
    int status;
    pid_t pid;

    (void)state;
    t.data_fd = eventfd(0, EFD_CLOEXEC);
    t.space_fd = eventfd(0, EFD_CLOEXEC);
    assert_int_equal(rr_ring_new(RR_RING_CONSUMER, &t.c, &err), 0);
    pid = fork();
    if (pid == 0) {
        if (rr_ring_attach(rr_ring_fd(t.c), RR_RING_PRODUCER, &t.p, &err) != 0)
            _exit(1);
        produce(&t);
        _exit(t.failed ? 2 : 0);
    }
    assert_null(consume(&t));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(peek(t.c), -EAGAIN);
    assert_true(rr_ring_sleep(t.c, NULL));
    rr_ring_free(t.c);
    close(t.data_fd);
    close(t.space_fd);
}

/* --- peers that are no friends ---------------------------------------------------------------- */

enum kind { MEMFD, READ_ONLY, TMPFILE, SHM_FILE, PIPE, CLOSED };

static int make_fd(enum kind kind, off_t bytes, int seals)
{
    char path[64];
    int fds[2], fd;

    switch (kind) {
    case MEMFD:
    case READ_ONLY:
        fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        assert_int_equal(ftruncate(fd, bytes), 0);
        if (seals)
            assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
        if (kind == MEMFD)
            return fd;
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        fds[0] = open(path, O_RDONLY | O_CLOEXEC);
        close(fd);
        return fds[0];
    case TMPFILE:
    case SHM_FILE:
        snprintf(path, sizeof(path), "%s/rr-ring-XXXXXX", kind == TMPFILE ? "/tmp" : "/dev/shm");
        fd = mkstemp(path);
        assert_true(fd >= 0);
        unlink(path);
        assert_int_equal(ftruncate(fd, bytes), 0);
        return fd;
    case PIPE:
        assert_int_equal(pipe(fds), 0);
        close(fds[1]);
        return fds[0];
    case CLOSED:
        break;
    }
    return -1;
}

static void test_attach_refuses(void **state)
{
    static const struct {
        enum kind kind;
        off_t bytes;
        int seals;
        const char *text; /* part of what is said; NULL: accepted */
    } cases[] = {
        {MEMFD, RR_RING_FILE_BYTES, F_SEAL_SHRINK | F_SEAL_GROW, NULL},
        {MEMFD, RR_RING_FILE_BYTES, 0, "not sealed"},
        {MEMFD, RR_RING_FILE_BYTES, F_SEAL_SHRINK, "not sealed"},
        {MEMFD, RR_RING_FILE_BYTES, F_SEAL_GROW, "not sealed"},
        {MEMFD, 0, F_SEAL_SHRINK | F_SEAL_GROW, "another size"},
        {MEMFD, RR_RING_FILE_BYTES - 1, F_SEAL_SHRINK | F_SEAL_GROW, "another size"},
        {MEMFD, RR_RING_FILE_BYTES - 4096, F_SEAL_SHRINK | F_SEAL_GROW, "another size"},
        {MEMFD, RR_RING_FILE_BYTES + 1, F_SEAL_SHRINK | F_SEAL_GROW, "another size"},
        {MEMFD, (off_t)1 << 40, F_SEAL_SHRINK | F_SEAL_GROW, "another size"},
        {MEMFD, RR_RING_FILE_BYTES, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE, "writing"},
        {READ_ONLY, RR_RING_FILE_BYTES, F_SEAL_SHRINK | F_SEAL_GROW, "reading and writing"},
        {TMPFILE, RR_RING_FILE_BYTES, 0, "no ring"},
        {SHM_FILE, RR_RING_FILE_BYTES, 0, "not sealed"},
        {PIPE, 0, 0, "not a memfd"},
        {CLOSED, 0, 0, "not a memfd"},
    };

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        int fd = make_fd(cases[i].kind, cases[i].bytes, cases[i].seals);
        struct rr_ring *ring = NULL;
        struct rr_error err = {0};
        int r = rr_ring_attach(fd, RR_RING_CONSUMER, &ring, &err);

        if (!cases[i].text) {
            assert_int_equal(r, 0);
            assert_int_equal(rr_ring_fd(ring), fd);
            rr_ring_free(ring);
            assert_int_equal(fcntl(fd, F_GETFD), -1); /* it was moved */
            continue;
        }
        assert_int_equal(r, RR_E_INVALID);
        assert_null(ring);
        assert_true(err.hint[0]);
        if (!strstr(err.text, cases[i].text))
            fail_msg("case %zu: %s", i, err.text);
        if (fd >= 0)
            assert_int_equal(close(fd), 0); /* still ours */
    }
}

/* F_SEAL_SHRINK|F_SEAL_GROW: neither side can cut a ring under the other, nor take the seals off.
 */
static void test_is_sealed(void **state)
{
    struct pair x = new_pair();
    int fd = rr_ring_fd(x.p);

    (void)state;
    assert_int_equal(ftruncate(fd, 4096), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(fd, 2 * RR_RING_FILE_BYTES), -1);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    /* a hole reads as zeroes: no record, and no SIGBUS */
    assert_true(put(x.p, 100, 1));
    assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, RR_RING_HEAD_BYTES,
                               RR_RING_BYTES),
                     0);
    assert_int_equal(peek(x.c), -EPROTO);
    free_pair(&x);
}

/* The whole file, as a hostile peer sees it. */
static uint8_t *map_raw(const struct rr_ring *ring)
{
    uint8_t *p =
        mmap(NULL, RR_RING_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, rr_ring_fd(ring), 0);

    assert_true(p != MAP_FAILED);
    return p;
}

static void poke(uint8_t *raw, size_t at, uint64_t value)
{
    memcpy(raw + at, &value, sizeof(value));
}

#define H(index, len) ((uint64_t)((uint32_t)((index) / 64) ^ MARK) << 32 | (len))
#define HEADER_AT(index) (RR_RING_HEAD_BYTES + (((index) - 8) & MASK))

/* Three records of 100 bytes, 128 in the ring, of which the consumer looked at none. */
static void test_hostile_producer(void **state)
{
    static const struct {
        size_t at;
        uint64_t value;
        unsigned int good; /* records read before */
        int then;
    } cases[] = {
        {RR_RING_TAIL, 384, 3, -EAGAIN},
        {RR_RING_TAIL, 0, 0, -EAGAIN},
        {RR_RING_TAIL, 256, 2, -EAGAIN},
        {RR_RING_TAIL, 383, 0, -EPROTO},
        {RR_RING_TAIL, 385, 0, -EPROTO},
        {RR_RING_TAIL, 448, 3, -EPROTO}, /* no header there */
        {RR_RING_TAIL, 320, 2, -EPROTO}, /* the last is longer */
        {RR_RING_TAIL, RR_RING_BYTES, 3, -EPROTO},
        {RR_RING_TAIL, RR_RING_BYTES + 64, 0, -EPROTO},
        {RR_RING_TAIL, 1ull << 32, 0, -EPROTO},
        {RR_RING_TAIL, 1ull << 63, 0, -EPROTO},
        {RR_RING_TAIL, UINT64_MAX, 0, -EPROTO},
        {RR_RING_TAIL, UINT64_MAX - 63, 0, -EPROTO},
        {HEADER_AT(0u), H(0, 100), 3, -EAGAIN},
        {HEADER_AT(0u), H(0, 120), 3, -EAGAIN},
        {HEADER_AT(0u), H(0, 121), 1, -EPROTO}, /* the next header is not there */
        {HEADER_AT(0u), H(0, 376), 1, -EAGAIN},
        {HEADER_AT(0u), H(0, 377), 0, -EPROTO},
        {HEADER_AT(0u), H(0, RR_RING_MAX_RECORD), 0, -EPROTO},
        {HEADER_AT(0u), H(0, RR_RING_MAX_RECORD + 1), 0, -EPROTO},
        {HEADER_AT(0u), H(0, UINT32_MAX), 0, -EPROTO},
        {HEADER_AT(0u), H(0, UINT32_MAX - 7), 0, -EPROTO},
        {HEADER_AT(0u), H(0, UINT32_MAX - 71), 0, -EPROTO},
        {HEADER_AT(0u), H(64, 100), 0, -EPROTO},
        {HEADER_AT(0u), 0, 0, -EPROTO},
        {HEADER_AT(0u), UINT64_MAX, 0, -EPROTO},
        {HEADER_AT(128u), 100, 1, -EPROTO},
        {RR_RING_HEAD, UINT64_MAX, 3, -EAGAIN}, /* our own word is never read back */
        {RR_RING_PRODUCER_WAITS, UINT32_MAX, 3, -EAGAIN},
    };

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        struct pair x = new_pair();
        uint8_t *raw = map_raw(x.p);
        unsigned int good = 0;
        int r;

        for (unsigned int n = 0; n < 3; n++)
            assert_true(put(x.p, 100, n));
        poke(raw, cases[i].at, cases[i].value);
        assert_true(rr_ring_used_bytes(x.c) <= RR_RING_BYTES);
        while ((r = peek(x.c)) == 0) {
            rr_ring_release(x.c);
            rr_ring_must_wake_producer(x.c);
            good++;
        }
        if (r != cases[i].then || good != cases[i].good)
            fail_msg("case %zu: %u records, then %d", i, good, r);
        assert_int_equal(rr_ring_broken(x.c), r == -EPROTO);
        assert_int_equal(rr_ring_sleep(x.c, NULL),
                         r == -EAGAIN); /* never asleep on a broken ring */
        poke(raw, RR_RING_TAIL, 384);
        if (r == -EPROTO)
            assert_int_equal(peek(x.c), -EPROTO); /* for good */
        munmap(raw, RR_RING_FILE_BYTES);
        free_pair(&x);
    }
}

/* A tail that goes back after it was seen. */
static void test_tail_goes_back(void **state)
{
    struct pair x = new_pair();
    uint8_t *raw = map_raw(x.p);

    (void)state;
    assert_true(put(x.p, 100, 0));
    take(x.c, 100, 0);
    poke(raw, RR_RING_TAIL, 64);
    assert_int_equal(peek(x.c), -EPROTO);
    munmap(raw, RR_RING_FILE_BYTES);
    free_pair(&x);
}

/* A full ring of 8192 records of 128 bytes, of which 4 were released and the producer saw it. */
static void test_hostile_consumer(void **state)
{
    static const struct {
        size_t at;
        uint64_t value;
        unsigned int room; /* for records */
        bool broken;
    } cases[] = {
        {RR_RING_HEAD, 512, 0, false},
        {RR_RING_HEAD, 640, 1, false},
        {RR_RING_HEAD, RR_RING_BYTES + 512, 8192, false},
        {RR_RING_HEAD, RR_RING_BYTES + 576, 0, true}, /* beyond the tail */
        {RR_RING_HEAD, 448, 0, true},                 /* back */
        {RR_RING_HEAD, 0, 0, true},
        {RR_RING_HEAD, 641, 0, true},
        {RR_RING_HEAD, 1ull << 40, 0, true},
        {RR_RING_HEAD, 1ull << 63, 0, true},
        {RR_RING_HEAD, UINT64_MAX, 0, true},
        {RR_RING_HEAD, UINT64_MAX - 63, 0, true},
        {RR_RING_TAIL, UINT64_MAX, 0, false}, /* our own word is never read back */
        {RR_RING_CONSUMER_SLEEPS, UINT64_MAX, 0, false},
    };

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        struct pair x = new_pair();
        uint8_t *raw = map_raw(x.p);
        unsigned int n = 0;

        for (n = 0; n < 8192; n++)
            assert_true(put(x.p, 100, n));
        for (n = 0; n < 4; n++)
            take(x.c, 100, n);
        for (n = 0; n < 4; n++)
            assert_true(put(x.p, 100, n));
        assert_null(rr_ring_reserve(x.p, 100));

        poke(raw, cases[i].at, cases[i].value);
        assert_true(rr_ring_used_bytes(x.p) <= RR_RING_BYTES);
        for (n = 0; put(x.p, 100, n); n++)
            rr_ring_must_wake(x.p);
        if (n != cases[i].room || rr_ring_broken(x.p) != cases[i].broken)
            fail_msg("case %zu: room for %u, broken %d", i, n, rr_ring_broken(x.p));
        assert_true(rr_ring_wait_space(x.p, 100));
        poke(raw, RR_RING_HEAD, RR_RING_BYTES + 512);
        assert_int_equal(rr_ring_reserve(x.p, 100) == NULL,
                         cases[i].broken || cases[i].room == 8192);
        munmap(raw, RR_RING_FILE_BYTES);
        free_pair(&x);
    }
}

struct scribbler {
    atomic_bool stop;
    uint8_t *raw;
    uint64_t seed;
};

/* Random words anywhere, and such as may be believed at the places that matter. */
static void *scribble(void *data)
{
    struct scribbler *s = data;

    while (!atomic_load_explicit(&s->stop, memory_order_relaxed)) {
        uint64_t r = next_random(&s->seed), tail, head, index;

        memcpy(&tail, s->raw + RR_RING_TAIL, sizeof(tail));
        memcpy(&head, s->raw + RR_RING_HEAD, sizeof(head));
        switch (next_random(&s->seed) % 8) {
        case 0:
            poke(s->raw, r % 512 / 8 * 8, next_random(&s->seed) << (r % 40));
            break;
        case 1:
        case 2:
            poke(s->raw, RR_RING_TAIL, tail + r % 40 * 64);
            break;
        case 3:
            poke(s->raw, RR_RING_HEAD, head + r % 40 * 64);
            break;
        case 4:
        case 5:
            index = head & ~63ull;
            for (uint64_t end = index + 4096; index != end; index += 64)
                poke(s->raw, HEADER_AT(index), H(index, r % (RR_RING_MAX_RECORD + 2)));
            break;
        case 6:
            poke(s->raw, RR_RING_CONSUMER_SLEEPS + r % 2 * 128, r);
            break;
        default:
            poke(s->raw, r % (RR_RING_FILE_BYTES / 8) * 8, r);
            break;
        }
    }
    return NULL;
}

static uint64_t consume_garbage(struct rr_ring *c)
{
    uint64_t sum = 0;

    for (unsigned int n = 0; n < 3000 && !rr_ring_broken(c); n++) {
        const uint8_t *p;
        const void *body;
        uint32_t len;

        rr_ring_must_wake_producer(c);
        if (rr_ring_sleep(c, NULL))
            rr_ring_awake(c);
        if (rr_ring_peek(c, &body, &len) != 0)
            continue;
        p = body;
        for (uint32_t i = 0; i < len; i += i + 64 < len ? 64 : 1)
            sum += p[i];
        assert_true(len <= RR_RING_MAX_RECORD && rr_ring_used_bytes(c) <= RR_RING_BYTES);
        rr_ring_release(c);
    }
    return sum;
}

static void produce_garbage(struct rr_ring *p)
{
    for (unsigned int n = 0; n < 3000 && !rr_ring_broken(p); n++) {
        uint32_t len = lengths[n % RR_ARRAY_LEN(lengths)];
        uint8_t *body = rr_ring_reserve(p, len);

        rr_ring_must_wake(p);
        rr_ring_wait_space(p, len);
        assert_true(rr_ring_used_bytes(p) <= RR_RING_BYTES);
        if (!body)
            continue;
        memset(body, (int)n, len);
        rr_ring_commit(p);
    }
}

/* Either side works on while a thread scribbles over all of the ring. */
static void test_scribbler(void **state)
{
    (void)state;
    for (uint64_t round = 0; round < 300; round++) {
        enum rr_ring_side side = round % 2 ? RR_RING_PRODUCER : RR_RING_CONSUMER;
        struct scribbler s = {.seed = round};
        struct rr_ring *ring;
        struct rr_error err;
        pthread_t thread;

        assert_int_equal(rr_ring_new(side, &ring, &err), 0);
        s.raw = map_raw(ring);
        assert_int_equal(pthread_create(&thread, NULL, scribble, &s), 0);
        if (side == RR_RING_CONSUMER)
            consume_garbage(ring);
        else
            produce_garbage(ring);
        atomic_store(&s.stop, true);
        pthread_join(thread, NULL);
        munmap(s.raw, RR_RING_FILE_BYTES);
        rr_ring_free(ring);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_full_and_empty),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_one_reservation),
        cmocka_unit_test(test_sleep_and_wake),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_threads_in_one_mapping),
        cmocka_unit_test(test_no_wake_up_is_lost),
        cmocka_unit_test(test_processes),
        cmocka_unit_test(test_attach_refuses),
        cmocka_unit_test(test_is_sealed),
        cmocka_unit_test(test_hostile_producer),
        cmocka_unit_test(test_tail_goes_back),
        cmocka_unit_test(test_hostile_consumer),
        cmocka_unit_test(test_scribbler),
    };

    return cmocka_run_group_tests_name("ring", tests, NULL, NULL);
}
