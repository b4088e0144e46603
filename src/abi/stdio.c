/* SPDX-License-Identifier: Apache-2.0 */
/* Unmodified WASI commands: stdin reads the message, stdout writes the next. */
#include "abi/abi.h"

#include "base/util.h"

int rr_stdio_handle(struct rr_guest *g, struct rr_abi_input *in, uint64_t deadline_ns,
                    int *ret_status, struct rr_error *err)
{
    static const uint8_t nothing[1];
    union rr_value v = {0};
    int r;

    rr_instance_set_stdin(g->inst, in->data ? in->data : nothing, in->len);
    in->copied_bytes = in->len;
    in->ready_ns = rr_now_ns();
    r = rr_instance_call(g->inst, g->handle, &v, 1, deadline_ns, err);
    if (r == RR_E_GUEST && rr_instance_exit_status(g->inst) > 0) {
        *ret_status = rr_instance_exit_status(g->inst);
        return 0;
    }
    return r;
}
