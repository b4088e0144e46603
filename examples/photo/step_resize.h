/* SPDX-License-Identifier: Apache-2.0 */
/* Picture -> one RESIZE_WIDTH pixels wide, sharpened by an unsharp mask. */
#ifndef STEP_RESIZE_H
#define STEP_RESIZE_H

#include "picture.h"

#if __has_include(<stb_image_resize2.h>)
#define STBIR_NO_SIMD /* the compiler's scalar code is the same everywhere */
#define STB_IMAGE_RESIZE_IMPLEMENTATION
#include <stb_image_resize2.h>
#else
#define STB_IMAGE_RESIZE_IMPLEMENTATION
#include <stb_image_resize.h>
#endif

#define RESIZE_WIDTH 1920

static inline uint32_t step_resize_height(const struct picture *in)
{
    uint64_t h = ((uint64_t)in->height * RESIZE_WIDTH + in->width / 2) / in->width;
    return h > 0 ? (uint32_t)h : 1;
}

static inline uint8_t resize_clamp(int v)
{
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* One row: @above, @row and @below are the picture before; @out may not overlap them. */
static inline void sharpen_row(uint8_t *out, const uint8_t *above, const uint8_t *row,
                               const uint8_t *below, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t l = i < PICTURE_CHANNELS ? i : i - PICTURE_CHANNELS;
        size_t r = i + PICTURE_CHANNELS < n ? i + PICTURE_CHANNELS : i;
        int blur = above[l] + 2 * above[i] + above[r] + 2 * row[l] + 4 * row[i] + 2 * row[r] +
                   below[l] + 2 * below[i] + below[r];
        out[i] = resize_clamp(row[i] + (16 * row[i] - blur) / 16);
    }
}

/* In place, with copies of two rows as they were before. */
static inline bool sharpen(struct picture *p)
{
    size_t n = (size_t)p->width * PICTURE_CHANNELS;
    uint8_t *above = malloc(2 * n), *row = above + n;
    if (!above)
        return false;
    memcpy(above, p->pixels, n);
    for (uint32_t y = 0; y < p->height; y++) {
        uint8_t *out = p->pixels + y * n;
        const uint8_t *below = y + 1 < p->height ? out + n : row;
        memcpy(row, out, n);
        sharpen_row(out, above, row, below, n);
        memcpy(above, row, n);
    }
    free(above);
    return true;
}

/* @ret: memory for picture_bytes(RESIZE_WIDTH, step_resize_height()). */
static inline bool step_resize(const struct picture *in, struct picture *ret)
{
    uint32_t height = step_resize_height(in);
#if __has_include(<stb_image_resize2.h>)
    bool good = stbir_resize_uint8_linear(in->pixels, (int)in->width, (int)in->height, 0,
                                          ret->pixels, RESIZE_WIDTH, (int)height, 0, STBIR_RGB);
#else
    bool good = stbir_resize_uint8(in->pixels, (int)in->width, (int)in->height, 0, ret->pixels,
                                   RESIZE_WIDTH, (int)height, 0, PICTURE_CHANNELS);
#endif
    if (!good)
        return false;
    picture_init(ret, RESIZE_WIDTH, height);
    return sharpen(ret);
}

#endif
