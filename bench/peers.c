/* SPDX-License-Identifier: Apache-2.0 */
/* What others do between two processes of one node: the peers of hand-offs through the kernel.
 *
 * In each round the receiver says go and waits; the sender notes the time and sends; the receiver
 * notes the time when it has all of it in its own memory.
 * Buffers are populated, with huge pages where the kernel grants them; round 0 is not counted.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/util.h"
#include "measure.h"

/* Each on a cache line of its own. */
struct shared {
    alignas(64) atomic_uint go;           /* the round that the sender may begin */
    alignas(64) atomic_uint sent;         /* the round whose payload lies in shared memory */
    alignas(64) atomic_ullong started_ns; /* when the sender began it */
    atomic_ullong n_slept;                /* waits that really slept */
};

struct link {
    const struct mode *mode; /* borrowed */
    struct shared *shared;   /* mapped by both */
    uint8_t *memory;         /* of shm-memcpy: mapped by both */
    uint8_t *buffer;         /* of each process: its own */
    size_t size_bytes;
    int receive_fd, send_fd;
    size_t pipe_bytes;
};

struct mode {
    const char *name;
    void (*open)(struct link *l);
    void (*send)(struct link *l, unsigned int round);
    void (*receive)(struct link *l, unsigned int round);
    bool spin;  /* a ping-pong that polls */
    bool apart; /* the two on different CPUs, if there are two */
};

/* -- signals between the two -------------------------------------------------------------- */

static void post(atomic_uint *word, unsigned int round, bool spin)
{
    atomic_store_explicit(word, round, memory_order_release);
    if (!spin && syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0) < 0)
        measure_die("futex: %s", strerror(errno));
}

static void await(struct shared *s, atomic_uint *word, unsigned int round, bool spin)
{
    unsigned int seen;

    while ((seen = atomic_load_explicit(word, memory_order_acquire)) != round) {
        if (spin)
            continue;
        if (syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0) == 0)
            atomic_fetch_add_explicit(&s->n_slept, 1, memory_order_relaxed);
        else if (errno != EAGAIN && errno != EINTR)
            measure_die("futex: %s", strerror(errno));
    }
}

/* -- memory ------------------------------------------------------------------------------- */

static void *map(size_t size, int flags, int fd)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

    if (p == MAP_FAILED)
        measure_die("mmap: %s", strerror(errno));
    return p;
}

static uint8_t *populated(size_t size, int flags, int fd)
{
    uint8_t *p = map(size, flags, fd);

    /* Only faster where it is granted: a kernel may have no huge pages. */
    if (madvise(p, size, MADV_HUGEPAGE) < 0 && errno != EINVAL)
        measure_die("madvise: %s", strerror(errno));
    memset(p, 0x5a, size);
    return p;
}

/* -- streams ------------------------------------------------------------------------------ */

static void open_socket(struct link *l)
{
    int fds[2], wanted = 4 << 20; /* the kernel makes it what wmem_max allows */

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 ||
        setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &wanted, sizeof(wanted)) < 0)
        measure_die("socketpair: %s", strerror(errno));
    l->receive_fd = fds[0];
    l->send_fd = fds[1];
}

static int largest_pipe(void)
{
    FILE *f = fopen("/proc/sys/fs/pipe-max-size", "re");
    char text[32] = "";
    long n = 0;

    if (f && fgets(text, sizeof(text), f))
        n = strtol(text, NULL, 10);
    if (f)
        fclose(f);
    return n >= 4096 && n <= INT_MAX ? (int)n : 1 << 20;
}

static void open_pipe(struct link *l)
{
    int fds[2], wanted = largest_pipe(), got;

    if (pipe2(fds, O_CLOEXEC) < 0)
        measure_die("pipe: %s", strerror(errno));
    /* EPERM: the pages of all pipes of this user are limited as well. */
    while ((got = fcntl(fds[1], F_SETPIPE_SZ, wanted)) < 0 && errno == EPERM && wanted > 4096)
        wanted /= 2;
    if (got < 0)
        measure_die("F_SETPIPE_SZ: %s", strerror(errno));
    l->pipe_bytes = (size_t)got;
    l->receive_fd = fds[0];
    l->send_fd = fds[1];
}

static void send_stream(struct link *l, unsigned int round)
{
    (void)round;
    for (size_t done = 0; done < l->size_bytes;) {
        ssize_t n = write(l->send_fd, l->buffer + done, l->size_bytes - done);

        if (n >= 0)
            done += (size_t)n;
        else if (errno != EINTR)
            measure_die("write: %s", strerror(errno));
    }
}

/* The pages stay the sender's: it leaves them alone until the receiver says go again. */
static void send_vmsplice(struct link *l, unsigned int round)
{
    (void)round;
    for (size_t done = 0; done < l->size_bytes;) {
        struct iovec part = {.iov_base = l->buffer + done, .iov_len = l->size_bytes - done};
        ssize_t n = vmsplice(l->send_fd, &part, 1, 0);

        if (n >= 0)
            done += (size_t)n;
        else if (errno != EINTR)
            measure_die("vmsplice: %s", strerror(errno));
    }
}

static void receive_stream(struct link *l, unsigned int round)
{
    (void)round;
    for (size_t done = 0; done < l->size_bytes;) {
        ssize_t n = read(l->receive_fd, l->buffer + done, l->size_bytes - done);

        if (n > 0)
            done += (size_t)n;
        else if (n == 0)
            measure_die("the sender closed its end");
        else if (errno != EINTR)
            measure_die("read: %s", strerror(errno));
    }
}

/* -- shared memory ------------------------------------------------------------------------ */

static void open_memory(struct link *l)
{
    int fd = memfd_create("bench", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)l->size_bytes) < 0)
        measure_die("memfd: %s", strerror(errno));
    l->memory = populated(l->size_bytes, MAP_SHARED, fd);
    close(fd);
}

static void send_memory(struct link *l, unsigned int round)
{
    memcpy(l->memory, l->buffer, l->size_bytes);
    post(&l->shared->sent, round, false);
}

static void receive_memory(struct link *l, unsigned int round)
{
    await(l->shared, &l->shared->sent, round, false);
    memcpy(l->buffer, l->memory, l->size_bytes);
}

/* -- rounds ------------------------------------------------------------------------------- */

static const struct mode modes[] = {
    {"socket", open_socket, send_stream, receive_stream, false, false},
    {"pipe", open_pipe, send_stream, receive_stream, false, false},
    {"vmsplice", open_pipe, send_vmsplice, receive_stream, false, false},
    {"shm-memcpy", open_memory, send_memory, receive_memory, false, false},
    {"futex", NULL, NULL, NULL, false, false},
    {"futex-apart", NULL, NULL, NULL, false, true},
    {"futex-spin", NULL, NULL, NULL, true, false},
};

/* Stays until the last round was measured: freeing its memory takes time, too. */
/* To the first or the last of the CPUs that we may use. */
static void stay_at(bool last)
{
    cpu_set_t may, one;

    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof(may), &may) < 0)
        measure_die("sched_getaffinity: %s", strerror(errno));
    for (size_t n = 0; n < CPU_SETSIZE && (last || CPU_COUNT(&one) == 0); n++)
        if (CPU_ISSET(n, &may)) {
            CPU_ZERO(&one);
            CPU_SET(n, &one);
        }
    if (sched_setaffinity(0, sizeof(one), &one) < 0)
        measure_die("sched_setaffinity: %s", strerror(errno));
}

static void sender(const struct measure *m, void *data)
{
    struct link *l = data;
    struct shared *s = l->shared;

    if (l->mode->apart)
        stay_at(false);
    if (l->size_bytes)
        l->buffer = populated(l->size_bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    for (unsigned int round = 1; round <= m->repeat + 1; round++) {
        await(s, &s->go, round, l->mode->spin);
        if (!l->mode->send) {
            post(&s->sent, round, l->mode->spin);
            continue;
        }
        l->buffer[0] = l->buffer[l->size_bytes - 1] = (uint8_t)round;
        atomic_store_explicit(&s->started_ns, rr_now_ns(), memory_order_release);
        l->mode->send(l, round);
    }
    await(s, &s->go, 0, false);
}

/* From before the sender's first step to after the receiver's last; a ping-pong: both ways. */
static uint64_t one_round(struct link *l, unsigned int round)
{
    struct shared *s = l->shared;
    uint64_t begin = rr_now_ns(), end;

    post(&s->go, round, l->mode->spin);
    if (!l->mode->receive) {
        await(s, &s->sent, round, l->mode->spin);
        return rr_now_ns() - begin;
    }
    l->mode->receive(l, round);
    end = rr_now_ns();
    if (l->buffer[0] != (uint8_t)round || l->buffer[l->size_bytes - 1] != (uint8_t)round)
        measure_die("round %u: the payload arrived wrong", round);
    return end - atomic_load_explicit(&s->started_ns, memory_order_acquire);
}

static void receiver(const struct measure *m, void *data)
{
    struct link *l = data;

    if (l->mode->apart)
        stay_at(true);
    if (l->size_bytes)
        l->buffer = populated(l->size_bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    one_round(l, 1);
    for (size_t n = 0; n < m->repeat; n++)
        m->samples_ns[n] = one_round(l, (unsigned int)(n + 2));
    post(&l->shared->go, 0, false);
}

static const struct mode *find_mode(const char *name)
{
    for (size_t n = 0; name && n < RR_ARRAY_LEN(modes); n++)
        if (strcmp(modes[n].name, name) == 0)
            return &modes[n];
    return NULL;
}

int main(int argc, char **argv)
{
    static const char usage[] = "bench-peers socket|pipe|vmsplice|shm-memcpy|futex|futex-apart|"
                                "futex-spin [--size BYTES] [--repeat N]; futex* ignore the size";
    struct link l = {.receive_fd = -1, .send_fd = -1};
    struct measure m;
    pid_t ends[2];

    measure_parse(&m, argc, argv, usage);
    l.mode = find_mode(m.mode);
    if (!l.mode || (l.mode->send && m.size_bytes == 0))
        measure_die("usage: %s", usage);
    if (!l.mode->send)
        m.size_bytes = 0;
    l.size_bytes = m.size_bytes;
    l.shared = map(sizeof(*l.shared), MAP_SHARED | MAP_ANONYMOUS, -1);
    if (l.mode->open)
        l.mode->open(&l);

    ends[0] = measure_fork(&m, sender, &l, SIGKILL);
    ends[1] = measure_fork(&m, receiver, &l, SIGKILL);
    measure_wait(ends[0], ends[1]);
    if (l.pipe_bytes)
        measure_finish(&m, "pipe_bytes", l.pipe_bytes);
    else
        measure_finish(&m, l.mode->send ? NULL : "slept", atomic_load(&l.shared->n_slept));
    return 0;
}
