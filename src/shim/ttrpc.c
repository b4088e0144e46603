/* SPDX-License-Identifier: Apache-2.0 */
#include "shim/ttrpc.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

ssize_t rr_ttrpc_parse(const uint8_t *in, size_t len, struct rr_ttrpc_frame *ret)
{
    struct rr_ttrpc_frame f;
    uint32_t words[2];

    if (len < RR_TTRPC_HEADER)
        return 0;
    memcpy(words, in, sizeof(words));
    f = (struct rr_ttrpc_frame){.len = be32toh(words[0]),
                                .stream = be32toh(words[1]),
                                .type = in[8],
                                .flags = in[9],
                                .data = in + RR_TTRPC_HEADER};
    if (f.len > RR_TTRPC_MAX_DATA)
        return -EMSGSIZE;
    if (f.type < RR_TTRPC_REQUEST || f.type > RR_TTRPC_DATA || f.stream % 2 == 0)
        return -EPROTO;
    if (len - RR_TTRPC_HEADER < f.len)
        return 0;
    *ret = f;
    return (ssize_t)(RR_TTRPC_HEADER + f.len);
}

void rr_ttrpc_header(uint8_t out[RR_TTRPC_HEADER], uint32_t stream, enum rr_ttrpc_type type,
                     uint32_t len)
{
    uint32_t words[2] = {htobe32(len), htobe32(stream)};

    memcpy(out, words, sizeof(words));
    out[8] = (uint8_t)type;
    out[9] = 0;
}

int rr_buffer_room(struct rr_buffer *b, size_t n)
{
    size_t room = b->room ? b->room : 1024;
    uint8_t *data;

    if (b->room - b->len >= n)
        return 0;
    while (room - b->len < n)
        room *= 2;
    data = realloc(b->data, room);
    if (!data)
        return -ENOMEM;
    b->data = data;
    b->room = room;
    return 0;
}

void rr_buffer_drop(struct rr_buffer *b, size_t n)
{
    b->len -= n;
    memmove(b->data, b->data + n, b->len);
    if (b->len == 0 && b->room > 16384) /* one long request is no reason to keep its room */
        rr_buffer_free(b);
}

void rr_buffer_free(struct rr_buffer *b)
{
    free(b->data);
    *b = (struct rr_buffer){0};
}
