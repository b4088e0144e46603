/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What nodes tell each other besides messages: any bytes as any word. What is taken for a word says
 * the same when it is written and read again, and its texts end.
 *
 * An input is the word's number, one byte, then its bytes.
 */
#include <stdlib.h>
#include <string.h>

#include "worker/nodes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct word_of_node first, second;

static void check(bool good)
{
    if (!good)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    uint8_t again[RR_WORD_BYTES];
    size_t n;

    if (len == 0 || len > RR_WORD_BYTES)
        return 0;
    if (rr_word_get(data[0], data + 1, len - 1, &first) < 0)
        return 0;
    check(memchr(first.text, 0, sizeof(first.text)) &&
          memchr(first.error.text, 0, sizeof(first.error.text)) &&
          memchr(first.error.hint, 0, sizeof(first.error.hint)) &&
          memchr(first.error.file, 0, sizeof(first.error.file)) && first.n_events <= RR_EVENTS);
    n = rr_word_put(again, data[0], &first);
    check(n > 0 && rr_word_get(data[0], again, n, &second) == 0);
    check(second.run == first.run && second.a == first.a && second.b == first.b &&
          second.n == first.n && second.n_events == first.n_events &&
          strcmp(second.text, first.text) == 0 && second.error.code == first.error.code &&
          memcmp(second.session, first.session, sizeof(first.session)) == 0);
    return 0;
}
