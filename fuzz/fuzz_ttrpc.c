/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as what a client sends: frames, and requests in them. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shim/shim.h"
#include "shim/ttrpc.h"
#include <shim.pb-c.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* Of a logger's URI. */
static void words(const char *uri)
{
    const char *words[RR_LOGGER_WORDS];
    static char room[RR_LOGGER_MAX];
    size_t n = rr_logger_words(uri, room, words);

    if (n >= RR_LOGGER_WORDS || (n > 0 && words[n] != NULL))
        abort();
    for (size_t i = 0; i < n; i++)
        if (words[i][0] && words[i] + strlen(words[i]) >= room + sizeof(room))
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct rr_ttrpc_frame f;
    size_t at = 0;
    ssize_t n;

    while ((n = rr_ttrpc_parse(data + at, len - at, &f)) > 0) {
        Rr__Pb__Request *q;

        if ((size_t)n > len - at || f.data + f.len > data + len || f.len > RR_TTRPC_MAX_DATA)
            abort();
        q = rr__pb__request__unpack(NULL, f.len, f.data);
        if (q) {
            Rr__Pb__CreateTaskRequest *c =
                rr__pb__create_task_request__unpack(NULL, q->payload.len, q->payload.data);

            if (c)
                words(c->stdout);
            if (c)
                rr__pb__create_task_request__free_unpacked(c, NULL);
            rr__pb__request__free_unpacked(q, NULL);
        }
        at += (size_t)n;
    }
    return 0;
}
