/* SPDX-License-Identifier: Apache-2.0 */
/* What a process tells of itself, which may be hostile. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "worker/status.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check_text(const char *text, size_t size)
{
    if (!memchr(text, 0, size))
        abort();
    for (; *text; text++)
        if (*text <= ' ' || *text >= 0x7f)
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct rr_status_view v;

    if (rr_status_parse(data, len, &v) != 0)
        return 0;
    check_text(v.kind, sizeof(v.kind));
    check_text(v.workflow, sizeof(v.workflow));
    check_text(v.node, sizeof(v.node));
    if (v.started_ns > v.read_ns)
        abort();
    for (size_t n = 0; n < v.n_functions; n++)
        check_text(v.functions[n].name, sizeof(v.functions[n].name));
    for (size_t n = 0; n < v.n_edges; n++) {
        check_text(v.edges[n].from, sizeof(v.edges[n].from));
        check_text(v.edges[n].to, sizeof(v.edges[n].to));
    }
    rr_status_view_deinit(&v);
    return 0;
}
