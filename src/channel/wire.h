/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel: what goes over the wire between nodes. Encodes and decodes frames, and checks every
 * byte of them; does no I/O and keeps no state. docs/wire.md has the tables.
 */
#ifndef RR_CHANNEL_WIRE_H
#define RR_CHANNEL_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct rr_region;

#define RR_WIRE_MAGIC "RRWIRE\0" /* and its NUL: 8 bytes */
#define RR_WIRE_VERSION 1
#define RR_WIRE_HEADER 16u           /* bytes of every frame's header */
#define RR_WIRE_INLINE (256u << 10)  /* payloads up to here lie in the DATA frame */
#define RR_WIRE_CHUNK (1u << 20)     /* larger ones come in pieces of at most this */
#define RR_WIRE_MAX_META (64u << 10) /* bytes of metadata */
#define RR_WIRE_MAX_CONTROL (64u << 10)
#define RR_WIRE_MAX_TARGETS 1024
#define RR_WIRE_MAX_NAME 127          /* bytes of "function.port" */
#define RR_WIRE_MAX_HELLO (16u << 10) /* bytes after its header */
#define RR_WIRE_MAX_TEXTS 32
#define RR_WIRE_MAX_TEXT 1023 /* bytes of a value of HELLO, or of an error's text */
#define RR_WIRE_MAX_KEY 31
#define RR_WIRE_MAX_WINDOW 32768u /* messages that may be on their way */
#define RR_WIRE_MAX_BULK 8        /* bulk connections of a session */

/* No frame is longer, whatever its type. */
#define RR_WIRE_MAX_FRAME (1u << 20)

enum rr_wire_type {
    RR_WIRE_HELLO = 1,
    RR_WIRE_DATA,
    RR_WIRE_CHUNK_DATA,
    RR_WIRE_BACK,
    RR_WIRE_REFUSE,
    RR_WIRE_CREDIT,
    RR_WIRE_CANCEL,
    RR_WIRE_PING,
    RR_WIRE_PONG,
    RR_WIRE_ERROR,
    RR_WIRE_CONTROL,
    RR_WIRE_GOODBYE
};

enum { RR_WIRE_BULK = 1, RR_WIRE_FIXED = 2 }; /* flags of DATA */

struct rr_wire_header {
    uint32_t len; /* bytes behind the header */
    uint8_t type, flags;
    uint64_t seq;
};

/* What a receiver grants: totals since the session began, in HELLO the first of them. */
struct rr_wire_credit {
    uint64_t messages, inline_bytes, bulk_bytes, control_bytes;
};

enum rr_wire_role { RR_WIRE_MAIN = 1, RR_WIRE_EXTRA };

struct rr_wire_text {
    char key[RR_WIRE_MAX_KEY + 1];
    char value[RR_WIRE_MAX_TEXT + 1];
};

struct rr_wire_hello {
    uint32_t version, features;
    uint8_t session[16]; /* made by who dials; who listens repeats it */
    uint32_t role, index, n_bulk;
    struct rr_wire_credit credit;
    uint32_t n_texts;
    const struct rr_wire_text *texts; /* encode: borrowed */
};

enum rr_wire_back { RR_WIRE_RECEIVED = 1, RR_WIRE_ACK, RR_WIRE_CANCELLED };

#define RR_WIRE_BACK_BYTES 16u

struct rr_wire_back_row {
    uint64_t seq;
    uint32_t target; /* of RR_WIRE_ACK */
    uint32_t what;
};

/* To whom a message goes. */
struct rr_net_target {
    const char *from, *to; /* "function.port"; in: valid as long as the packet */
    uint64_t id;           /* delivery id */
    uint32_t attempt;      /* 1 at first */
    bool acked;            /* the receiver is to say when it has handled it: rr_net_ack() */
};

/* A message on its way to another node. */
struct rr_net_packet {
    uint8_t session[16]; /* opaque */
    uint64_t run;
    uint32_t kind; /* opaque */
    int32_t status;
    uint64_t deadline_ns; /* that remain; 0: none */
    uint64_t window, slot_bytes;
    bool fixed;      /* a guest has seen its address */
    uint64_t age_ns; /* since its sender sent it; opaque */
    uint64_t copied_bytes;
    const uint8_t *meta; /* borrowed */
    uint32_t meta_len;
    uint64_t len, offset;     /* payload bytes; where they begin in the slot, at both ends */
    const uint8_t *data;      /* the payload; NULL: in @region at @offset */
    struct rr_region *region; /* out: borrowed until it is done; in: owned by the callee */
    const struct rr_net_target *targets;
    uint32_t n_targets;
    uint64_t seq; /* in: for rr_net_ack() and rr_net_release(); 0: neither is wanted */
};

/* Bytes that rr_wire_put_data() writes: header, head, targets and metadata; 0: a limit is passed.
 */
size_t rr_wire_data_bytes(const struct rr_net_packet *p);
/* All of a DATA frame but an inline payload. @to has room for @bytes: rr_wire_data_bytes(). */
void rr_wire_put_data(uint8_t *to, size_t bytes, const struct rr_net_packet *p, uint64_t seq);
/* A header alone. */
void rr_wire_put_header(uint8_t to[RR_WIRE_HEADER], uint32_t len, enum rr_wire_type type,
                        uint8_t flags, uint64_t seq);
void rr_wire_put_back(uint8_t to[RR_WIRE_BACK_BYTES], const struct rr_wire_back_row *row);
void rr_wire_put_credit(uint8_t to[32], const struct rr_wire_credit *credit);
/* A whole HELLO frame; returns its bytes, 0: it does not fit @size, or a text is too long. */
size_t rr_wire_put_hello(uint8_t *to, size_t size, const struct rr_wire_hello *h);

/**
 * rr_wire_get_header() - read a header and check what can be checked by it alone
 * Return: 0, RR_E_INVALID.
 */
int rr_wire_get_header(const uint8_t from[RR_WIRE_HEADER], struct rr_wire_header *ret,
                       struct rr_error *err);
/**
 * rr_wire_get_hello() - read what follows a HELLO's header
 * @texts: out: room for RR_WIRE_MAX_TEXTS; @ret->texts points there
 * Return: 0; RR_E_INVALID; RR_E_USAGE: another version, and only @ret->version is set.
 */
int rr_wire_get_hello(const uint8_t *from, size_t len, struct rr_wire_text *texts,
                      struct rr_wire_hello *ret, struct rr_error *err);
/**
 * rr_wire_get_data() - read what follows a DATA frame's header
 * @targets: out: room for RR_WIRE_MAX_TARGETS
 * @names:   out: room for RR_WIRE_NAMES_BYTES, where their names go
 *
 * @ret points into @from, @targets and @names. @ret->data is NULL for a bulk payload.
 * Return: 0, RR_E_INVALID.
 */
#define RR_WIRE_NAMES_BYTES (RR_WIRE_MAX_TARGETS * 2u * (RR_WIRE_MAX_NAME + 1u))
int rr_wire_get_data(const struct rr_wire_header *h, const uint8_t *from,
                     struct rr_net_target *targets, char *names, struct rr_net_packet *ret,
                     struct rr_error *err);
void rr_wire_get_back(const uint8_t from[RR_WIRE_BACK_BYTES], struct rr_wire_back_row *ret);
void rr_wire_get_credit(const uint8_t from[32], struct rr_wire_credit *ret);
/* A text for people that came from a peer: printable, ended, at most @size with its NUL. */
void rr_wire_get_text(const uint8_t *from, size_t len, char *ret, size_t size);

#endif
