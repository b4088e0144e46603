/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine: Wasmtime behind a small interface: load, compile, cache, instantiate,
 * call, interrupt. engine.c is the one file that knows Wasmtime. Linear memory
 * is ours: a 1 GiB-aligned reservation of 4 GiB and a guard, which never moves.
 * May call base and region.
 */
#ifndef RR_ENGINE_ENGINE_H
#define RR_ENGINE_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/budget.h"
#include "base/error.h"

struct rr_engine;
struct rr_module;
struct rr_instance;

/* One argument or result; as wide as the engine's own so that arrays pass through. */
union rr_value {
    int32_t i32;
    int64_t i64;
    uint8_t v128[16];
};

/**
 * rr_host_fn - a function that guests import
 * @args: in: the arguments; out: the result in [0]
 *
 * Return: 0, or an enum rr_code after rr_instance_fail(): the guest traps.
 */
typedef int (*rr_host_fn)(struct rr_instance *inst, union rr_value *args);

struct rr_host_func {
    const char *module, *name;
    const char *type; /* "iiI>i": i = i32, I = i64, results after '>' */
    rr_host_fn fn;
};

struct rr_engine_options {
    bool no_cache;    /* compile always, store nothing */
    bool precompiled; /* take what rr_module_save() wrote, whoever gives it: it is native code */
    bool wasm_stack_check;
    /* Borrowed: of guests' memories, and of what they write into their windows beside messages,
     * which is looked at every 100 ms; NULL: no matter. */
    struct rr_budget *budget;
    bool inherit_stdio; /* guests have this process's own streams: no @output, no set_stdin() */
};

enum rr_cached { RR_CACHE_OFF, RR_CACHE_MISS, RR_CACHE_HIT, RR_CACHE_REBUILT };

int rr_engine_new(const struct rr_engine_options *options, struct rr_engine **ret,
                  struct rr_error *err);
void rr_engine_free(struct rr_engine *engine);
/* Before fork(): compile now what would be compiled when it is first wanted. */
int rr_engine_before_fork(struct rr_engine *engine, struct rr_error *err);
/* In a child after fork(), once it may have threads: it has none of the parent's. */
int rr_engine_after_fork(struct rr_engine *engine, struct rr_error *err);
/* Before the first rr_module_load(). */
int rr_engine_define(struct rr_engine *engine, const struct rr_host_func *funcs, size_t n,
                     struct rr_error *err);
/* While guests run, call @fn about every @every_ns on their thread, between two of their
 * instructions: it must not touch instances. NULL: no more. */
void rr_engine_set_tick(struct rr_engine *engine, uint64_t every_ns, void (*fn)(void *user),
                        void *user);
const char *rr_engine_version(void);
/* Stop what runs at its next check (within 5 ms) with RR_E_CANCELLED. Async-signal-safe. */
void rr_engine_cancel(struct rr_engine *engine);
bool rr_engine_cancelled(const struct rr_engine *engine);
/* Have what runs look at its rr_instance_stop_by(). From any thread. */
void rr_engine_nudge(struct rr_engine *engine);

/**
 * rr_module_load() - read, compile or take from the cache
 * Return: 0, RR_E_NOINPUT, RR_E_INVALID (not Wasm, truncated, unknown imports) or RR_E_SYSTEM.
 */
int rr_module_load(struct rr_engine *engine, const char *path, struct rr_module **ret,
                   struct rr_error *err);
/**
 * rr_module_load_image() - the same, for a process that has no cache of its own
 * @image_fd: borrowed: an entry of a trusted process's cache, which is compiled code. One that is
 *            damaged, of another module or of another engine is not used: the module is compiled.
 */
int rr_module_load_image(struct rr_engine *engine, const char *path, int image_fd,
                         struct rr_module **ret, struct rr_error *err);
/**
 * rr_module_prepare() - see that the cache has a module's compiled image
 * @define:   of what modules may import besides WASI: rr_abi_define()
 * @ret_path: out, owned, free(): the entry, for rr_module_load_image()
 *
 * What is there already costs no more than reading it. Return: as rr_module_load().
 */
int rr_module_prepare(const char *path,
                      int (*define)(struct rr_engine *engine, struct rr_error *err),
                      char **ret_path, struct rr_error *err);
/* Write the compiled image to a new file at @path. 0 or RR_E_OUTPUT. */
int rr_module_save(const struct rr_module *module, const char *path, struct rr_error *err);
void rr_module_free(struct rr_module *module);
enum rr_cached rr_module_cached(const struct rr_module *module);
/* Does it export function @name with @type ("i>I", or NULL for any)? */
bool rr_module_has_func(const struct rr_module *module, const char *name, const char *type);
bool rr_module_has_memory(const struct rr_module *module);
/* Calls @fn for each import "module" "name" and, with @exports, each export ("" name). */
void rr_module_each(const struct rr_module *module, bool exports,
                    void (*fn)(void *data, const char *module, const char *name, const char *kind),
                    void *data);

struct rr_preopen {
    const char *host, *guest;
    bool writable;
};

struct rr_instance_options {
    uint64_t memory_bytes;   /* limit of the heap; windows are not counted */
    uint64_t deadline_ns;    /* for its start function; 0 = 10 s from now */
    const char *const *args; /* NULL-terminated, argv[0] first */
    const char *const *env;  /* "NAME=value", NULL-terminated */
    const struct rr_preopen *folders;
    size_t n_folders;
    /* The host touches its memory only during calls, and in windows after rr_instance_touch() and
     * rr_instance_map(). */
    bool fence;
    bool inherit_stdio; /* streams 0 to 2 are this process's own; @output is not called */
    /* Output of the guest; @stream 1 or 2. Return false to fail the write. */
    bool (*output)(void *user, int stream, const uint8_t *data, size_t len);
    /* How much of its windows has been taken from the budget already, as messages. */
    uint64_t (*mapped)(void *user);
    void *user; /* also rr_instance_user() */
};

int rr_instance_new(struct rr_module *module, const struct rr_instance_options *options,
                    struct rr_instance **ret, struct rr_error *err);
/* From now on it ends with RR_E_CANCELLED once *@stop (borrowed; NULL: never) is true and the
 * engine was nudged. */
void rr_instance_stop_by(struct rr_instance *inst, const atomic_bool *stop);
void rr_instance_free(struct rr_instance *inst);
void *rr_instance_user(struct rr_instance *inst);
void rr_instance_set_stdin(struct rr_instance *inst, const uint8_t *data,
                           size_t len); /* borrowed */

/* An export, looked up once; < 0 when it does not exist. */
int rr_instance_export(struct rr_instance *inst, const char *name);
/**
 * rr_instance_call() - run an export
 * @export:      from rr_instance_export()
 * @args:        in and out
 * @deadline_ns: on rr_now_ns()'s clock; 0 = none
 *
 * Return: 0, RR_E_GUEST (trap), RR_E_LIMIT, RR_E_DEADLINE, RR_E_CANCELLED or what
 * rr_instance_fail() was given.
 */
int rr_instance_call(struct rr_instance *inst, int export, union rr_value *args, size_t n_args,
                     uint64_t deadline_ns, struct rr_error *err);
/* Exit status of a WASI command that ended by proc_exit; -1 when it did not. */
int rr_instance_exit_status(const struct rr_instance *inst);
/* Record why a host function refuses; returns @code. */
__attribute__((format(printf, 4, 5))) int rr_instance_fail(struct rr_instance *inst,
                                                           enum rr_code code, const char *hint,
                                                           const char *fmt, ...);
/* What rr_instance_fail() recorded last, into @err; returns its code. */
int rr_instance_fault(const struct rr_instance *inst, struct rr_error *err);

/* Linear memory: base never moves; size in bytes. */
uint8_t *rr_instance_memory(struct rr_instance *inst);
uint64_t rr_instance_memory_bytes(struct rr_instance *inst);
/* Host pointer to [addr, addr+len), or NULL when it is out of bounds. */
uint8_t *rr_instance_slice(struct rr_instance *inst, uint32_t addr, uint64_t len);
/* A small message lies, or will, at [addr, addr+len) of the windows. */
void rr_instance_touch(struct rr_instance *inst, uint32_t addr, uint64_t len);
/* A region is to be moved into the windows. */
void rr_instance_map(struct rr_instance *inst);
/* Open the windows: memory grows to 3 GiB if it is smaller. 0 or RR_E_LIMIT. */
int rr_instance_open_windows(struct rr_instance *inst);
/* 0, or RR_E_SYSTEM if its memory could not grow for want of budget. */
int rr_instance_lacked_memory(const struct rr_instance *inst, struct rr_error *err);
/* The heap beyond @bytes of linear memory's start was in use at its peak. */
uint64_t rr_instance_heap_bytes(struct rr_instance *inst);

#endif
