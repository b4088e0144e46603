/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What travels between the photo pipeline's functions, and its native twin's
 * steps: a header and 8-bit RGB pixels, one piece of memory. All arithmetic
 * here and in the step_*.h is on integers, or on floats in a fixed order, so
 * that a native build gives the same bytes as the Wasm functions.
 */
#ifndef PICTURE_H
#define PICTURE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PICTURE_MAGIC 0x31425052u /* "RPB1" */
#define PICTURE_CHANNELS 3
#define PICTURE_MAX_PIXELS (1u << 28)

struct picture {
    uint32_t magic, width, height, channels;
    uint8_t reserved[48];
    uint8_t pixels[]; /* rows from the top, no padding */
};

static inline uint64_t picture_pixel_bytes(uint32_t width, uint32_t height)
{
    return (uint64_t)width * height * PICTURE_CHANNELS;
}

/* What a picture takes; one byte more than its pixels need, see step_decode.h. */
static inline uint64_t picture_bytes(uint32_t width, uint32_t height)
{
    return sizeof(struct picture) + picture_pixel_bytes(width, height) + 1;
}

static inline void picture_init(struct picture *p, uint32_t width, uint32_t height)
{
    *p = (struct picture){PICTURE_MAGIC, width, height, PICTURE_CHANNELS, {0}};
}

/* Is there a whole picture in @len bytes at @p? */
static inline bool picture_valid(const struct picture *p, uint64_t len)
{
    return len >= sizeof(*p) && p->magic == PICTURE_MAGIC && p->channels == PICTURE_CHANNELS &&
           p->width > 0 && p->height > 0 && (uint64_t)p->width * p->height <= PICTURE_MAX_PIXELS &&
           len >= picture_bytes(p->width, p->height);
}

#endif
