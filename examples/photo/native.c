/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The photo pipeline as one ordinary program: the same steps, no Wasm. Its
 * output is what the workflow's must be, byte for byte.
 *
 *   gcc -std=gnu17 -O2 -ffp-contract=off -isystem /usr/include/stb examples/photo/native.c -lm
 *   ./a.out IN.jpg OUT.jpg
 */
#include <errno.h>
#include <stdio.h>

#include "step_decode.h"
#include "step_encode.h"
#include "step_histogram.h"
#include "step_join.h"
#include "step_resize.h"

static void die(const char *what)
{
    fprintf(stderr, "native: %s: %s\n", what, errno ? strerror(errno) : "failed");
    exit(1);
}

static void *allocate(uint64_t n)
{
    void *p = malloc(n);
    if (!p)
        die("memory");
    return p;
}

static uint8_t *read_file(const char *path, size_t *ret_len)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0)
        die(path);
    long len = ftell(f);
    if (len < 0 || fseek(f, 0, SEEK_SET) != 0)
        die(path);
    uint8_t *data = allocate((uint64_t)len + 1);
    if (fread(data, 1, (size_t)len, f) != (size_t)len)
        die(path);
    fclose(f);
    *ret_len = (size_t)len;
    return data;
}

static void write_file(const char *path, const void *data, uint64_t len)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, len, f) != len || fclose(f) != 0)
        die(path);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fputs("usage: native IN OUT.jpg\n", stderr);
        return 64;
    }
    size_t len;
    uint8_t *file = read_file(argv[1], &len);
    uint32_t width, height;
    if (!step_decode_size(file, len, &width, &height))
        die("not a JPEG or PNG picture");
    struct picture *raw = allocate(picture_bytes(width, height));
    if (!step_decode(file, len, raw))
        die("decode");
    free(file);

    struct picture *small = allocate(picture_bytes(RESIZE_WIDTH, step_resize_height(raw)));
    struct picture *plot = allocate(picture_bytes(PLOT_WIDTH, PLOT_HEIGHT));
    if (!step_resize(raw, small))
        die("resize");
    step_histogram(raw, plot);
    free(raw);
    step_join(small, plot);
    free(plot);

    void *jpeg = allocate(step_encode_cap(small));
    uint64_t jpeg_len = step_encode(small, jpeg);
    if (jpeg_len == 0)
        die("encode");
    write_file(argv[2], jpeg, jpeg_len);
    free(jpeg);
    free(small);
    return 0;
}
