/* SPDX-License-Identifier: Apache-2.0 */
/* Raw picture -> JPEG file. */
#include <roadrunner.h>

#include "step_encode.h"

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || !picture_valid(in.data, in.len))
        return 1;
    void *out = rr_alloc("out", step_encode_cap(in.data));
    if (!out)
        return 2;
    uint64_t len = step_encode(in.data, out);
    if (len == 0) {
        rr_log(RR_ERROR, "cannot encode the picture");
        return 3;
    }
    rr_meta_set(out, "content-type", "image/jpeg", strlen("image/jpeg"));
    return rr_return(out, len);
}
