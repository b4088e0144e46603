/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fills a message with a secret, sends it, then looks for the secret where the
 * message was, and scribbles over the place. Input: u64 length, u64 secret.
 * Fails with 9 when a word of the secret can still be read. Whoever gets the
 * message must find the secret in every word of it (all_equal.c).
 */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len != 16)
        return 1;
    uint64_t ask[2];
    memcpy(ask, in.data, sizeof(ask));
    uint64_t n = ask[0] / sizeof(uint64_t);
    volatile uint64_t *p = rr_alloc("out", ask[0]);
    if (!p)
        return 2;
    for (uint64_t i = 0; i < n; i++)
        p[i] = ask[1];
    rr_return((const void *)p, ask[0]);

    uint64_t n_seen = 0;
    for (uint64_t i = 0; i < n; i++) {
        n_seen += p[i] == ask[1];
        p[i] = ~ask[1];
    }
    if (n_seen != 0) {
        rr_logf(RR_ERROR, "%llu of %llu words can be read after send", (unsigned long long)n_seen,
                (unsigned long long)n);
        return 9;
    }
    return 0;
}
