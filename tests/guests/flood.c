/* SPDX-License-Identifier: Apache-2.0 */
/*
 * N messages of SIZE bytes on port "each", numbered from 0 in their first word, then one on "out"
 * with N. With BOTH set, each also goes out on port "other", small, before.
 */
#include <roadrunner.h>

#include "guest.h"

static int send_one(const char *port, uint64_t n, uint64_t size)
{
    uint64_t *p = rr_alloc(port, size);
    if (!p)
        return 2;
    p[0] = n;
    p[size / sizeof(*p) - 1] = n;
    return rr_send(port, p, size);
}

int rr_handle(void)
{
    uint64_t n = number("N"), size = number("SIZE");
    int r = 0;
    for (uint64_t i = 0; i < n && r == 0; i++) {
        if (number("BOTH"))
            r = send_one("other", i, 64);
        if (r == 0)
            r = send_one("each", i, size);
    }
    return r ? r : send_one("out", n, 8);
}
