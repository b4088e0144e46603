/* SPDX-License-Identifier: Apache-2.0 */
/* Raw picture -> the plot of its colours. */
#include <roadrunner.h>

#include "step_histogram.h"

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || !picture_valid(in.data, in.len))
        return 1;
    uint64_t len = picture_bytes(PLOT_WIDTH, PLOT_HEIGHT);
    struct picture *out = rr_alloc("out", len);
    if (!out)
        return 2;
    step_histogram(in.data, out);
    return rr_return(out, len);
}
