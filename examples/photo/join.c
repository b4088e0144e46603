/* SPDX-License-Identifier: Apache-2.0 */
/* Picture and plot -> the picture with the plot in its corner: the same message, sent on. */
#include <roadrunner.h>

#include "step_join.h"

int rr_handle(void)
{
    struct rr_message picture, plot;
    if (rr_input_on("picture", &picture) != 0 || !picture_valid(picture.data, picture.len) ||
        rr_input_on("plot", &plot) != 0 || !picture_valid(plot.data, plot.len))
        return 1;
    step_join(picture.data, plot.data);
    return rr_return(picture.data, picture.len);
}
