/* SPDX-License-Identifier: Apache-2.0 */
/* Picture -> a plot, itself a picture, of how often each value of red, green and blue occurs. */
#ifndef STEP_HISTOGRAM_H
#define STEP_HISTOGRAM_H

#include "picture.h"

#define PLOT_WIDTH 512 /* two columns a value */
#define PLOT_HEIGHT 256

static inline void histogram_count(const struct picture *in, uint32_t n[PICTURE_CHANNELS][256])
{
    memset(n, 0, sizeof(n[0]) * PICTURE_CHANNELS);
    const uint8_t *end = in->pixels + picture_pixel_bytes(in->width, in->height);
    for (const uint8_t *p = in->pixels; p < end; p += PICTURE_CHANNELS) {
        n[0][p[0]]++;
        n[1][p[1]]++;
        n[2][p[2]]++;
    }
}

/* @ret: memory for picture_bytes(PLOT_WIDTH, PLOT_HEIGHT). */
static inline void step_histogram(const struct picture *in, struct picture *ret)
{
    uint32_t n[PICTURE_CHANNELS][256];
    histogram_count(in, n);
    /* Full height is four times the mean: a few clipped values must not dwarf the rest. */
    uint64_t top = 1 + 4 * (uint64_t)in->width * in->height / 256;
    picture_init(ret, PLOT_WIDTH, PLOT_HEIGHT);
    for (uint32_t y = 0; y < PLOT_HEIGHT; y++) {
        for (uint32_t x = 0; x < PLOT_WIDTH; x++) {
            uint8_t *out = ret->pixels + (size_t)(y * PLOT_WIDTH + x) * PICTURE_CHANNELS;
            for (int c = 0; c < PICTURE_CHANNELS; c++) {
                uint64_t height = n[c][x / 2] * (uint64_t)PLOT_HEIGHT / top;
                out[c] = PLOT_HEIGHT - y <= height ? 235 : 24;
            }
        }
    }
}

#endif
