/* SPDX-License-Identifier: Apache-2.0 */
/* Lays a plot over the lower right corner of a picture, in place. */
#ifndef STEP_JOIN_H
#define STEP_JOIN_H

#include "picture.h"

#define JOIN_MARGIN 24

static inline void step_join(struct picture *p, const struct picture *plot)
{
    if (p->width < plot->width + 2 * JOIN_MARGIN || p->height < plot->height + 2 * JOIN_MARGIN)
        return; /* no room: the picture stays as it is */
    uint32_t left = p->width - plot->width - JOIN_MARGIN;
    uint32_t top = p->height - plot->height - JOIN_MARGIN;
    size_t n = (size_t)plot->width * PICTURE_CHANNELS;
    for (uint32_t y = 0; y < plot->height; y++) {
        uint8_t *out = p->pixels + ((size_t)(top + y) * p->width + left) * PICTURE_CHANNELS;
        const uint8_t *in = plot->pixels + y * n;
        for (size_t i = 0; i < n; i++)
            out[i] = (uint8_t)((out[i] + 3 * in[i]) / 4);
    }
}

#endif
