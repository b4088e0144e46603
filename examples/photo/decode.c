/* SPDX-License-Identifier: Apache-2.0 */
/* A JPEG or PNG file -> the raw picture, on port "raw". */
#include <roadrunner.h>

#include "step_decode.h"

int rr_handle(void)
{
    struct rr_message in;
    uint32_t width, height;
    if (rr_input(0, &in) != 0)
        return 1;
    if (!step_decode_size(in.data, (size_t)in.len, &width, &height)) {
        rr_log(RR_ERROR, "the input is not a JPEG or PNG picture, or it is too large");
        return 2;
    }
    uint64_t len = picture_bytes(width, height);
    struct picture *out = rr_alloc("raw", len);
    if (!out) {
        rr_logf(RR_ERROR, "no memory for a picture of %u x %u", width, height);
        return 3;
    }
    if (!step_decode(in.data, (size_t)in.len, out)) {
        rr_logf(RR_ERROR, "cannot decode: %s", stbi_failure_reason());
        return 4;
    }
    rr_logf(RR_INFO, "%u x %u", width, height);
    return rr_send("raw", out, len);
}
