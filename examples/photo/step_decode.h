/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JPEG or PNG -> picture. stb_image allocates the pixels that it returns; the
 * allocator below recognizes that allocation by its size and serves it from
 * the picture itself, so that the raw picture is written once, where it is sent
 * from, and never copied.
 */
#ifndef STEP_DECODE_H
#define STEP_DECODE_H

#include "picture.h"

static struct {
    uint8_t *pixels; /* borrowed */
    size_t n_bytes;
    bool taken;
} decode_target;

static void *decode_malloc(size_t n)
{
    /* stb_image asks for a byte more when it decodes JPEG. */
    bool fits = n == decode_target.n_bytes || n == decode_target.n_bytes + 1;
    if (!decode_target.pixels || decode_target.taken || !fits)
        return malloc(n);
    decode_target.taken = true;
    return decode_target.pixels;
}

static void decode_free(void *p)
{
    if (p && p == decode_target.pixels)
        decode_target.taken = false;
    else
        free(p);
}

static void *decode_realloc(void *p, size_t n_old, size_t n)
{
    if (!p || p != decode_target.pixels)
        return realloc(p, n);
    void *moved = malloc(n);
    if (!moved)
        return NULL;
    memcpy(moved, p, n_old < n ? n_old : n);
    decode_target.taken = false;
    return moved;
}

#define STBI_MALLOC(n) decode_malloc(n)
#define STBI_REALLOC_SIZED(p, n_old, n) decode_realloc(p, n_old, n)
#define STBI_FREE(p) decode_free(p)
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_SIMD
#define STBI_NO_THREAD_LOCALS
#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>

/* The size of the picture in @file, before any work is done. */
static inline bool step_decode_size(const void *file, size_t len, uint32_t *ret_width,
                                    uint32_t *ret_height)
{
    int width, height, channels;
    if (len > INT32_MAX || !stbi_info_from_memory(file, (int)len, &width, &height, &channels) ||
        (uint64_t)width * (uint64_t)height > PICTURE_MAX_PIXELS)
        return false;
    *ret_width = (uint32_t)width;
    *ret_height = (uint32_t)height;
    return true;
}

/* @ret: memory for picture_bytes() of step_decode_size(). */
static inline bool step_decode(const void *file, size_t len, struct picture *ret)
{
    uint32_t w, h;
    if (!step_decode_size(file, len, &w, &h))
        return false;
    decode_target.pixels = ret->pixels;
    decode_target.n_bytes = (size_t)picture_pixel_bytes(w, h);
    decode_target.taken = false;
    int width, height, channels;
    uint8_t *pixels =
        stbi_load_from_memory(file, (int)len, &width, &height, &channels, PICTURE_CHANNELS);
    bool good = pixels && (uint32_t)width == w && (uint32_t)height == h;
    if (good && pixels != ret->pixels)
        memcpy(ret->pixels, pixels, decode_target.n_bytes);
    decode_free(pixels);
    decode_target.pixels = NULL;
    if (good)
        picture_init(ret, w, h);
    return good;
}

#endif
