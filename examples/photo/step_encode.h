/* SPDX-License-Identifier: Apache-2.0 */
/* Picture -> JPEG. */
#ifndef STEP_ENCODE_H
#define STEP_ENCODE_H

#include "picture.h"

#define STBI_WRITE_NO_STDIO
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb_image_write.h>

#define ENCODE_QUALITY 90

struct encode_buffer {
    uint8_t *data; /* borrowed */
    uint64_t len, cap;
    bool overflow;
};

/* More than a JPEG of this quality takes, even of noise; what is not written costs nothing. */
static inline uint64_t step_encode_cap(const struct picture *in)
{
    return 2 * picture_pixel_bytes(in->width, in->height) + 64 * 1024;
}

static inline void encode_append(void *context, void *data, int n)
{
    struct encode_buffer *b = context;
    if ((uint64_t)n > b->cap - b->len) {
        b->overflow = true;
        return;
    }
    memcpy(b->data + b->len, data, (size_t)n);
    b->len += (uint64_t)n;
}

/* @ret: memory for step_encode_cap(). Returns the JPEG's length; 0 when it failed. */
static inline uint64_t step_encode(const struct picture *in, void *ret)
{
    struct encode_buffer b = {ret, 0, step_encode_cap(in), false};
    int good = stbi_write_jpg_to_func(encode_append, &b, (int)in->width, (int)in->height,
                                      PICTURE_CHANNELS, in->pixels, ENCODE_QUALITY);
    return good && !b.overflow ? b.len : 0;
}

#endif
