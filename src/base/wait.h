/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base: sleep until a word in memory is changed, or a descriptor has something, whichever is first;
 * and what it costs to sleep, or not to.
 *
 * Other processes wake by FUTEX_WAKE on a word that both map; descriptors by SIGIO, which is
 * blocked at all times but inside rr_wait(). So there is no second thread, and the fast way is a
 * futex alone.
 */
#ifndef RR_BASE_WAIT_H
#define RR_BASE_WAIT_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RR_WAIT_WORDS 32 /* of 127; each takes 50 ns */

/* Make this thread one that may rr_wait(). False: it cannot here (Linux before 5.16, or a filter of
 * calls), and nothing has changed. */
bool rr_wait_begin(void);
/* Let @fd end the waits of this thread, of which there is one per descriptor: the last to call.
 * Also to be added to what rr_wait() gets as @epoll_fd. Return: 0 or negative errno. */
int rr_wait_watch(int fd);
/* An entry of @words below: sleep while *@word is @value. */
struct futex_waitv rr_wait_word(_Atomic uint32_t *word, uint32_t value);
/**
 * rr_wait() - sleep
 * @words:    borrowed, at most RR_WAIT_WORDS
 * @epoll_fd: of the watched descriptors: what is ready already ends the wait at once
 * @until_ns: monotonic clock; UINT64_MAX: for ever
 *
 * Return: whether there is something at a descriptor. Wakes up without a reason at times.
 */
bool rr_wait(const struct futex_waitv *words, size_t n, int epoll_fd, uint64_t until_ns);
/* Wake who waits for @word, in whatever process. */
void rr_wait_wake(_Atomic uint32_t *word);
/* What it takes on this machine to wake a thread on another CPU that is idle, and be woken by it:
 * the median of some tries, in 10 ms at most. 0: it cannot be known. */
uint64_t rr_wait_round_trip_ns(void);

/* Of a thread that yields its CPU: whether those who want it, too, only compute. These keep it for
 * milliseconds each time, and a thread that sleeps instead is woken before them. All 0 at first. */
struct rr_yield {
    uint64_t given_ns; /* in long pieces, as of @last_ns; the rest is forgotten */
    uint64_t last_ns;
    uint64_t keep_ns;  /* how long the CPU was kept when it was last; 0: it need not be */
    uint64_t until_ns; /* it is kept */
};
/* False: better keep the CPU, or sleep. */
bool rr_yield_pays(const struct rr_yield *y, uint64_t now_ns);
/* It did so from @before_ns to @now_ns. */
void rr_yield_note(struct rr_yield *y, uint64_t before_ns, uint64_t now_ns);

#endif
