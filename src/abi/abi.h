/* SPDX-License-Identifier: Apache-2.0 */
/*
 * abi: what guests and the host say to each other, one file per guest ABI.
 * Checks everything a guest hands over; who owns which message is the worker's
 * business, which it answers through struct rr_abi_ops. May call base, region
 * and engine.
 */
#ifndef RR_ABI_ABI_H
#define RR_ABI_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "engine/engine.h"
#include "region/region.h"

#define RR_ABI_VERSION 1
#define RR_ABI_MAX_PORT 63
#define RR_ABI_MAX_METADATA (64u << 10)
#define RR_ABI_MAX_LOG (16u << 10) /* bytes of one log entry; longer ones are cut */

enum rr_tier { RR_TIER_WINDOW, RR_TIER_BUFFER, RR_TIER_STDIO };

struct rr_guest;

/* A message as its owner sees it. */
struct rr_abi_message {
    uint32_t addr;
    uint64_t len;
    const char *port; /* borrowed */
};

/*
 * What guests ask for, already free of bad pointers. Each returns 0, or an enum
 * rr_code after rr_instance_fail(): the guest traps. Strings are borrowed.
 */
struct rr_abi_ops {
    /* @ret->port == NULL: past the last input */
    int (*input)(struct rr_guest *g, uint32_t index, struct rr_abi_message *ret);
    int (*alloc)(struct rr_guest *g, const char *port, uint64_t len, uint32_t *ret_addr);
    int (*send)(struct rr_guest *g, const char *port, uint32_t addr, uint64_t len);
    int (*drop)(struct rr_guest *g, uint32_t addr);
    int (*keep)(struct rr_guest *g, uint32_t addr);
    int (*call)(struct rr_guest *g, const char *fn, uint32_t addr, uint64_t len,
                struct rr_abi_message *ret_reply, int32_t *ret_status);
    /* @ret: borrowed until the next call; NULL: no such key */
    int (*meta_get)(struct rr_guest *g, uint32_t addr, const char *key, size_t key_len,
                    const uint8_t **ret, size_t *ret_len);
    int (*meta_set)(struct rr_guest *g, uint32_t addr, const char *key, size_t key_len,
                    const uint8_t *value, size_t value_len);
    void (*log)(struct rr_guest *g, int level, const char *text, size_t len);
    /* Buffer tier: send [@data, @data+@len) of the guest's own memory on port "out". */
    int (*emit)(struct rr_guest *g, uint8_t *data, uint64_t len);
};

/* An instance as its ABI sees it; the first member of what rr_instance_user() points to. */
struct rr_guest {
    const struct rr_abi_ops *ops;
    struct rr_instance *inst; /* borrowed */
    enum rr_tier tier;
    int handle, allocate, deallocate; /* exports */
};

/* The input of a buffer or stdio guest, where the host has it. */
struct rr_abi_input {
    struct rr_arena *arena;
    uint8_t *data; /* borrowed */
    uint64_t len;
    bool movable;          /* its pages are private anonymous and of no more use to the host */
    uint64_t copied_bytes; /* out */
    uint64_t ready_ns;     /* out: when the guest's handler was about to start */
};

const char *rr_tier_name(enum rr_tier tier);
/**
 * rr_abi_detect() - which tier does a module get, and why
 * @why:  out: one sentence
 * @err:  a module with no known ABI, or a flawed one, gives RR_E_INVALID
 */
int rr_abi_detect(const struct rr_module *module, enum rr_tier *ret, char *why, size_t why_size,
                  struct rr_error *err);
/* Define all imports; once per engine, before the first module is loaded. */
int rr_abi_define(struct rr_engine *engine, struct rr_error *err);
/* Run the guest's start-up exports. */
int rr_guest_start(struct rr_guest *g, uint64_t deadline_ns, struct rr_error *err);
/**
 * rr_guest_handle() - let the guest handle what it has got
 * @in:          NULL in the window tier, whose inputs lie in its windows
 * @ret_status:  the guest's failure status, 0 = success
 *
 * Return: 0 or an enum rr_code.
 */
int rr_guest_handle(struct rr_guest *g, struct rr_abi_input *in, uint64_t deadline_ns,
                    int *ret_status, struct rr_error *err);

/* Between the files of abi/ only. */
extern const struct rr_host_func rr_native_funcs[], rr_buffer_funcs[];
extern const size_t rr_native_n_funcs, rr_buffer_n_funcs;
int rr_buffer_handle(struct rr_guest *g, struct rr_abi_input *in, uint64_t deadline_ns,
                     struct rr_error *err);
int rr_stdio_handle(struct rr_guest *g, struct rr_abi_input *in, uint64_t deadline_ns,
                    int *ret_status, struct rr_error *err);

#endif
