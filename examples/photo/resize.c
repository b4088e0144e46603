/* SPDX-License-Identifier: Apache-2.0 */
/* Raw picture -> a smaller, sharpened one. */
#include <roadrunner.h>

#include "step_resize.h"

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || !picture_valid(in.data, in.len))
        return 1;
    uint64_t len = picture_bytes(RESIZE_WIDTH, step_resize_height(in.data));
    struct picture *out = rr_alloc("out", len);
    if (!out || !step_resize(in.data, out)) {
        rr_log(RR_ERROR, "out of memory");
        return 2;
    }
    return rr_return(out, len);
}
