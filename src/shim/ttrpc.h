/* SPDX-License-Identifier: Apache-2.0 */
/* shim: frames of ttrpc: a header of 10 bytes, then data. What comes in is untrusted. */
#ifndef RR_SHIM_TTRPC_H
#define RR_SHIM_TTRPC_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define RR_TTRPC_HEADER 10
#define RR_TTRPC_MAX_DATA (4u << 20)

enum rr_ttrpc_type { RR_TTRPC_REQUEST = 1, RR_TTRPC_RESPONSE = 2, RR_TTRPC_DATA = 3 };

struct rr_ttrpc_frame {
    uint32_t stream;
    uint8_t type, flags;
    const uint8_t *data; /* borrowed from what was parsed */
    uint32_t len;
};

/* The first frame of [@in, @in+len). Return: its bytes, header and all; 0: it is not all there;
 * -EMSGSIZE: longer than is allowed, -EPROTO: no type or stream that a client has. */
ssize_t rr_ttrpc_parse(const uint8_t *in, size_t len, struct rr_ttrpc_frame *ret);
void rr_ttrpc_header(uint8_t out[RR_TTRPC_HEADER], uint32_t stream, enum rr_ttrpc_type type,
                     uint32_t len);

/* Bytes that come or go in pieces. */
struct rr_buffer {
    uint8_t *data; /* owned */
    size_t len, room;
};

/* Room for @n more. 0 or -ENOMEM. */
int rr_buffer_room(struct rr_buffer *b, size_t n);
void rr_buffer_drop(struct rr_buffer *b, size_t n); /* from its start */
void rr_buffer_free(struct rr_buffer *b);

#endif
