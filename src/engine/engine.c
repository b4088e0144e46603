/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wasi.h>
#include <wasm.h>
#include <wasmtime.h>

#include "base/cache.h"
#include "base/util.h"
#include "engine/linear.h"

#define MAX_EXPORTS 8
#define NEVER UINT64_MAX
#define WEIGH_NS 100000000u         /* between looks at a guest's windows */
#define START_LIMIT_NS 10000000000u /* a start function may not loop for ever */

_Static_assert(sizeof(union rr_value) == sizeof(wasmtime_val_raw_t), "arrays pass through");

struct rr_engine {
    wasm_engine_t *engine;
    wasmtime_linker_t *linker, *wasi; /* wasi: the functions that ours shadow */
    wasmtime_module_t *io;            /* compiled when first wanted */
    char *cache_dir;
    uint8_t platform[RR_DIGEST_BYTES];
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t alarm;
    struct rr_linear_pool memories;
    void (*tick)(void *user); /* NULL: none */
    void *tick_user;
    uint64_t tick_ns;
    atomic_uint_fast64_t alarm_ns; /* when the epoch is raised next; NEVER */
    uint64_t sleeping_until_ns;    /* under the lock */
    atomic_bool cancelled, stop;
    bool inherit_stdio, precompiled;
};

struct rr_module {
    struct rr_engine *engine;
    wasmtime_module_t *module;
    wasmtime_instance_pre_t *pre;
    enum rr_cached cached;
    bool wasi;
    atomic_bool opens_windows; /* an instance of it did; only a hint */
    char *path;
};

struct rr_instance {
    struct rr_module *module;
    wasmtime_store_t *store;
    wasmtime_context_t *ctx;
    wasmtime_instance_t instance;
    struct rr_linear *memory;
    wasmtime_func_t exports[MAX_EXPORTS];
    size_t n_exports;
    uint64_t deadline_ns;
    const atomic_bool *stop; /* borrowed; NULL: none */
    struct rr_error fault;
    int exit_status;
    bool fence;
    const uint8_t *stdin_data;
    size_t stdin_len;
    wasmtime_func_t io[2]; /* read, write: see io_wasm */
    struct rr_linear *io_memory;
    bool (*output)(void *user, int stream, const uint8_t *data, size_t len);
    uint64_t (*mapped)(void *user);
    uint64_t weigh_ns; /* when its windows are looked at next */
    void *user;
    struct stream {
        struct rr_instance *inst;
        int number;
    } streams[2];
};

/* The memory creator has no way to tell which store a memory is for: the thread that
 * instantiates leaves a note here. */
static _Thread_local struct rr_instance *instantiating;
static _Thread_local uint64_t instantiating_limit;
static _Thread_local struct rr_linear *newest_memory;

/* --- linear memory ---------------------------------------------------------------------- */

static uint8_t *linear_get(void *env, size_t *size, size_t *max)
{
    struct rr_linear *l = env;

    *size = l->size_bytes;
    *max = RR_LINEAR_BYTES;
    return l->base;
}

static wasmtime_error_t *linear_grow(void *env, size_t size)
{
    const char *wrong = rr_linear_grow(env, size);

    return wrong ? wasmtime_error_new(wrong) : NULL;
}

static void linear_put(void *env)
{
    rr_linear_put(env);
}

int rr_instance_lacked_memory(const struct rr_instance *inst, struct rr_error *err)
{
    const struct rr_linear *l = inst->memory;

    return l && l->wanted_bytes ? rr_budget_refuse(l->pool->budget, l->wanted_bytes, err) : 0;
}

static wasmtime_error_t *linear_new(void *env, const wasm_memorytype_t *ty, size_t minimum,
                                    size_t maximum, size_t reserved, size_t guard,
                                    wasmtime_linear_memory_t *ret)
{
    struct rr_engine *engine = env;
    struct rr_module *owner = instantiating ? instantiating->module : NULL;
    struct rr_linear *l = NULL;
    const char *wrong;

    (void)ty;
    (void)maximum;
    if (reserved > RR_LINEAR_BYTES || guard > RR_LINEAR_GUARD)
        return wasmtime_error_new("the engine wants a larger reservation");
    wrong = rr_linear_get(&engine->memories, minimum, instantiating_limit, owner,
                          owner && owner->opens_windows, owner && instantiating->fence, &l);
    if (wrong) {
        if (instantiating && wrong == rr_linear_over_budget)
            rr_budget_refuse(engine->memories.budget, minimum, &instantiating->fault);
        else if (instantiating && minimum > instantiating_limit)
            rr_error_set(&instantiating->fault, RR_E_LIMIT, "raise `memory` of this function",
                         "its module starts with %s of memory, over the limit of %s",
                         rr_bytes_text(minimum), rr_bytes_text(instantiating_limit));
        return wasmtime_error_new(wrong);
    }
    if (instantiating) {
        instantiating->memory = l;
        rr_linear_enter(l); /* data segments come next; instantiate() leaves it */
    }
    newest_memory = l;
    *ret = (wasmtime_linear_memory_t){
        .env = l, .get_memory = linear_get, .grow_memory = linear_grow, .finalizer = linear_put};
    return NULL;
}

/* --- errors -------------------------------------------------------------------------------- */

static int take_error(wasmtime_error_t *e, struct rr_error *err, enum rr_code code,
                      const char *hint, const char *what)
{
    wasm_byte_vec_t text;

    wasmtime_error_message(e, &text);
    wasmtime_error_delete(e);
    for (size_t i = 0; i < text.size; i++)
        if (text.data[i] == '\n') /* causes come on lines of their own */
            text.data[i] = ' ';
    rr_error_set(err, code, hint, "%s%.*s", what, (int)rr_min(text.size, 600), text.data);
    wasm_byte_vec_delete(&text);
    return code;
}

int rr_instance_fail(struct rr_instance *inst, enum rr_code code, const char *hint, const char *fmt,
                     ...)
{
    char text[sizeof(inst->fault.text)];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return rr_error_set(&inst->fault, code, hint, "%s", text);
}

int rr_instance_fault(const struct rr_instance *inst, struct rr_error *err)
{
    if (err && inst->fault.code) /* it is large */
        *err = inst->fault;
    return (int)inst->fault.code;
}

static int trap_code_error(struct rr_instance *inst, wasmtime_trap_code_t code, const char *text,
                           struct rr_error *err)
{
    if (code == WASMTIME_TRAP_CODE_STACK_OVERFLOW)
        return rr_error_set(err, RR_E_LIMIT, "look for recursion without end",
                            "its call stack is exhausted");
    if (rr_instance_lacked_memory(inst, err))
        return (int)err->code;
    if (inst->memory && inst->memory->limit_hit)
        return rr_error_set(err, RR_E_LIMIT, "raise `memory` of this function",
                            "it trapped after its memory limit of %s was reached: %s",
                            rr_bytes_text(inst->memory->limit_bytes), text);
    return rr_error_set(err, RR_E_GUEST,
                        "build the guest with -g and look at the function named in the trace",
                        "trap: %s", text);
}

/*
 * The engine's text is a backtrace with causes. Of it: the cause, and the function
 * where it happened ("0: 0x63e - module!function"), which is what people look for.
 */
static void trap_text(const wasm_byte_vec_t *text, char *out, size_t size)
{
    static const char cause[] = "wasm trap: ", frame[] = " - ";
    const char *end = text->data + text->size;
    const char *what = memmem(text->data, text->size, cause, sizeof(cause) - 1);
    const char *where = memmem(text->data, text->size, frame, sizeof(frame) - 1);
    const char *what_end, *where_end;

    what = what ? what + sizeof(cause) - 1 : text->data;
    what_end = memchr(what, '\n', (size_t)(end - what));
    snprintf(out, size, "%.*s", (int)rr_min((uint64_t)((what_end ? what_end : end) - what), 400),
             what);
    if (!where || what == text->data)
        return;
    where += sizeof(frame) - 1;
    where_end = memchr(where, '\n', (size_t)(end - where));
    snprintf(out + strlen(out), size - strlen(out), ", in %.*s",
             (int)rr_min((uint64_t)((where_end ? where_end : end) - where), 200), where);
}

static int take_trap(struct rr_instance *inst, wasmtime_error_t *e, wasm_trap_t *trap,
                     struct rr_error *err)
{
    wasm_byte_vec_t text = {0};
    wasmtime_trap_code_t code;
    int r, status;

    if (inst->fault.code) {
        *err = inst->fault;
        r = (int)err->code;
    } else if (e && wasmtime_error_exit_status(e, &status)) {
        inst->exit_status = status;
        r = status == 0 ? 0 : rr_instance_lacked_memory(inst, err);
        if (status && r == 0)
            r = rr_error_set(err, RR_E_GUEST, "see the function's log",
                             "it ended with exit status %d", status);
    } else {
        if (trap)
            wasm_trap_message(trap, &text);
        else
            wasmtime_error_message(e, &text);
        if (text.size && !text.data[text.size - 1])
            text.size--;
        char copy[700];

        trap_text(&text, copy, sizeof(copy));
        if (!trap || !wasmtime_trap_code(trap, &code))
            code = (wasmtime_trap_code_t)255;
        r = trap_code_error(inst, code, copy, err);
        wasm_byte_vec_delete(&text);
    }
    if (e)
        wasmtime_error_delete(e);
    if (trap)
        wasm_trap_delete(trap);
    return r;
}

/* --- epochs -------------------------------------------------------------------------------- */

/*
 * The epoch is raised when the earliest deadline passes, not by a steady tick: a
 * thread that woke every millisecond would make each page-table move interrupt its
 * CPU (measured: 20 us instead of 5). When it is raised, what runs and has time left
 * says so again.
 */
static void *alarm_main(void *data)
{
    struct rr_engine *engine = data;

    pthread_mutex_lock(&engine->lock);
    while (!atomic_load(&engine->stop)) {
        uint64_t at = atomic_load(&engine->alarm_ns), now = rr_now_ns();

        if (at <= now) {
            atomic_store(&engine->alarm_ns, NEVER); /* before the epoch: see set_alarm() */
            wasmtime_engine_increment_epoch(engine->engine);
            continue;
        }
        engine->sleeping_until_ns = at;
        if (at == NEVER) {
            pthread_cond_wait(&engine->wake, &engine->lock);
        } else {
            struct timespec t = {(time_t)(at / 1000000000u), (long)(at % 1000000000u)};

            pthread_cond_timedwait(&engine->wake, &engine->lock, &t);
        }
        engine->sleeping_until_ns = 0;
    }
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

/*
 * Have the epoch raised at @at_ns or before. The caller has set its epoch deadline
 * already: whoever raises the epoch in between took the alarm first, which is seen here.
 */
static void set_alarm(struct rr_engine *engine, uint64_t at_ns)
{
    uint64_t now_set = atomic_load(&engine->alarm_ns);

    while (at_ns < now_set)
        if (atomic_compare_exchange_weak(&engine->alarm_ns, &now_set, at_ns)) {
            pthread_mutex_lock(&engine->lock);
            if (at_ns < engine->sleeping_until_ns)
                pthread_cond_signal(&engine->wake);
            pthread_mutex_unlock(&engine->lock);
            return;
        }
}

void rr_engine_set_tick(struct rr_engine *engine, uint64_t every_ns, void (*fn)(void *user),
                        void *user)
{
    engine->tick = fn;
    engine->tick_user = user;
    engine->tick_ns = every_ns;
}

/* The next time at which what runs is to look up. */
static void set_next_alarm(const struct rr_instance *inst)
{
    struct rr_engine *engine = inst->module->engine;
    uint64_t at = engine->tick ? rr_now_ns() + engine->tick_ns : NEVER;

    if (inst->deadline_ns && inst->deadline_ns < at)
        at = inst->deadline_ns;
    if (inst->weigh_ns < at)
        at = inst->weigh_ns;
    if (at != NEVER)
        set_alarm(engine, at);
}

/* When its windows, if it has opened them, are to be looked at next. */
static uint64_t next_look_ns(const struct rr_instance *inst)
{
    return inst->mapped && inst->module->engine->memories.budget && inst->memory &&
                   inst->memory->opened
               ? rr_now_ns() + WEIGH_NS
               : NEVER;
}

/* False: its windows have more than is left. */
static bool weigh(struct rr_instance *inst)
{
    inst->weigh_ns = next_look_ns(inst);
    return rr_linear_weigh(inst->memory, inst->mapped(inst->user));
}

static bool is_stopped(const struct rr_instance *inst)
{
    return atomic_load(&inst->module->engine->cancelled) || (inst->stop && atomic_load(inst->stop));
}

void rr_instance_stop_by(struct rr_instance *inst, const atomic_bool *stop)
{
    inst->stop = stop;
}

void rr_engine_nudge(struct rr_engine *engine)
{
    wasmtime_engine_increment_epoch(engine->engine); /* one atomic addition */
}

/* Before a guest runs; @deadline_ns 0: none. */
static int run_begin(struct rr_instance *inst, uint64_t deadline_ns)
{
    inst->deadline_ns = deadline_ns;
    inst->fault.code = RR_OK;
    wasmtime_context_set_epoch_deadline(inst->ctx, 1);
    if (is_stopped(inst)) /* after the line above: a later cancel raises the epoch */
        return rr_error_set(&inst->fault, RR_E_CANCELLED, "", "interrupted");
    inst->weigh_ns = next_look_ns(inst);
    set_next_alarm(inst);
    return 0;
}

static wasmtime_error_t *on_epoch(wasmtime_context_t *ctx, void *data, uint64_t *delta,
                                  wasmtime_update_deadline_kind_t *kind)
{
    struct rr_instance *inst = data;
    struct rr_engine *engine = inst->module->engine;

    *delta = 1;
    *kind = WASMTIME_UPDATE_DEADLINE_CONTINUE;
    if (is_stopped(inst)) {
        rr_error_set(&inst->fault, RR_E_CANCELLED, "", "interrupted");
        return wasmtime_error_new("cancelled");
    }
    if (engine->tick)
        engine->tick(engine->tick_user);
    if (inst->deadline_ns && rr_now_ns() >= inst->deadline_ns) {
        rr_error_set(&inst->fault, RR_E_DEADLINE,
                     "raise `deadline` of this function, or look for a loop without end",
                     "it was stopped at its deadline");
        return wasmtime_error_new("deadline");
    }
    if (rr_now_ns() >= inst->weigh_ns && !weigh(inst)) {
        rr_instance_lacked_memory(inst, &inst->fault);
        return wasmtime_error_new("memory");
    }
    wasmtime_context_set_epoch_deadline(ctx, 1);
    set_next_alarm(inst);
    return NULL;
}

void rr_engine_cancel(struct rr_engine *engine)
{
    atomic_store(&engine->cancelled, true);
    rr_engine_nudge(engine);
}

bool rr_engine_cancelled(const struct rr_engine *engine)
{
    return atomic_load(&engine->cancelled);
}

/* --- engine -------------------------------------------------------------------------------- */

const char *rr_engine_version(void)
{
    return RR_ENGINE_VERSION;
}

static wasm_functype_t *parse_type(const char *text)
{
    wasm_valtype_t *types[2][16];
    size_t n[2] = {0, 0}, side = 0;
    wasm_valtype_vec_t params, results;

    for (const char *p = text; *p; p++) {
        if (*p == '>')
            side = 1;
        else
            types[side][n[side]++] = wasm_valtype_new(*p == 'I' ? WASM_I64 : WASM_I32);
    }
    wasm_valtype_vec_new(&params, n[0], types[0]);
    wasm_valtype_vec_new(&results, n[1], types[1]);
    return wasm_functype_new(&params, &results);
}

static wasm_trap_t *call_host(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *args,
                              size_t n)
{
    const struct rr_host_func *f = env;
    struct rr_instance *inst = wasmtime_context_get_data(wasmtime_caller_context(caller));

    (void)n;
    if (f->fn(inst, (union rr_value *)(void *)args) == 0)
        return NULL;
    return wasmtime_trap_new(inst->fault.text, strlen(inst->fault.text));
}

int rr_engine_define(struct rr_engine *engine, const struct rr_host_func *funcs, size_t n,
                     struct rr_error *err)
{
    for (size_t i = 0; i < n; i++) {
        wasm_functype_t *type = parse_type(funcs[i].type);
        wasmtime_error_t *e = wasmtime_linker_define_func_unchecked(
            engine->linker, funcs[i].module, strlen(funcs[i].module), funcs[i].name,
            strlen(funcs[i].name), type, call_host, (void *)(uintptr_t)&funcs[i], NULL);

        wasm_functype_delete(type);
        if (e)
            return take_error(e, err, RR_E_SYSTEM, "report this", "cannot define host functions: ");
    }
    return 0;
}

/*
 * WASI's functions use the memory of the instance that calls them, and a call from the host has
 * none. So reads and writes of other files than the standard ones go through this module, whose
 * memory is copied from and to:
 *
 *   (import "wasi_snapshot_preview1" "fd_read" (func (param i32 i32 i32 i32) (result i32)))
 *   (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
 *   (memory (export "memory") 2 2)
 *   (func (export "r") (param i32) (result i32)
 *     local.get 0  i32.const 0  i32.const 1  i32.const 8  call 0)
 *   (func (export "w") (param i32) (result i32)
 *     local.get 0  i32.const 0  i32.const 1  i32.const 8  call 1)
 */
static const uint8_t io_wasm[] = {
    0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00, 0x01, 0x0e, 0x02, 0x60, 0x04, 0x7f, 0x7f, 0x7f,
    0x7f, 0x01, 0x7f, 0x60, 0x01, 0x7f, 0x01, 0x7f, 0x02, 0x44, 0x02, 0x16, 0x77, 0x61, 0x73, 0x69,
    0x5f, 0x73, 0x6e, 0x61, 0x70, 0x73, 0x68, 0x6f, 0x74, 0x5f, 0x70, 0x72, 0x65, 0x76, 0x69, 0x65,
    0x77, 0x31, 0x07, 0x66, 0x64, 0x5f, 0x72, 0x65, 0x61, 0x64, 0x00, 0x00, 0x16, 0x77, 0x61, 0x73,
    0x69, 0x5f, 0x73, 0x6e, 0x61, 0x70, 0x73, 0x68, 0x6f, 0x74, 0x5f, 0x70, 0x72, 0x65, 0x76, 0x69,
    0x65, 0x77, 0x31, 0x08, 0x66, 0x64, 0x5f, 0x77, 0x72, 0x69, 0x74, 0x65, 0x00, 0x00, 0x03, 0x03,
    0x02, 0x01, 0x01, 0x05, 0x04, 0x01, 0x01, 0x02, 0x02, 0x07, 0x12, 0x03, 0x06, 0x6d, 0x65, 0x6d,
    0x6f, 0x72, 0x79, 0x02, 0x00, 0x01, 0x72, 0x00, 0x02, 0x01, 0x77, 0x00, 0x03, 0x0a, 0x1b, 0x02,
    0x0c, 0x00, 0x20, 0x00, 0x41, 0x00, 0x41, 0x01, 0x41, 0x08, 0x10, 0x00, 0x0b, 0x0c, 0x00, 0x20,
    0x00, 0x41, 0x00, 0x41, 0x01, 0x41, 0x08, 0x10, 0x01, 0x0b,
};
#define IO_BUFFER 16u /* after the one iovec at 0 and the count at 8 */
#define IO_BYTES ((128u << 10) - IO_BUFFER)
#define WASI_EFAULT 21
#define WASI_EIO 29

static wasmtime_error_t *compile_io(struct rr_engine *engine)
{
    wasmtime_error_t *e = NULL;

    pthread_mutex_lock(&engine->lock);
    if (!engine->io)
        e = wasmtime_module_new(engine->engine, io_wasm, sizeof(io_wasm), &engine->io);
    pthread_mutex_unlock(&engine->lock);
    return e;
}

static int make_io(struct rr_instance *inst)
{
    struct rr_engine *engine = inst->module->engine;
    struct rr_instance *outer = instantiating;
    wasmtime_extern_t items[2];
    wasmtime_instance_t instance;
    wasmtime_error_t *e = NULL;
    wasm_trap_t *trap = NULL;

    e = compile_io(engine);
    if (!e) {
        instantiating = NULL;
        instantiating_limit = RR_MIB;
        e = wasmtime_linker_instantiate(engine->wasi, inst->ctx, engine->io, &instance, &trap);
        instantiating = outer;
    }
    if (e)
        wasmtime_error_delete(e);
    if (trap)
        wasm_trap_delete(trap);
    if (e || trap || !wasmtime_instance_export_get(inst->ctx, &instance, "r", 1, &items[0]) ||
        !wasmtime_instance_export_get(inst->ctx, &instance, "w", 1, &items[1]))
        return -EIO;
    inst->io[0] = items[0].of.func;
    inst->io[1] = items[1].of.func;
    inst->io_memory = newest_memory;
    return 0;
}

/* One iovec's worth of a file. Returns WASI's errno; @ret: bytes. */
static int file_io(struct rr_instance *inst, bool write, int32_t fd, uint8_t *data, uint32_t len,
                   uint32_t *ret, wasm_trap_t **trap)
{
    uint32_t iovec[2] = {IO_BUFFER, (uint32_t)rr_min(len, IO_BYTES)};
    wasmtime_val_raw_t v = {.i32 = fd};
    wasmtime_error_t *e;

    if (!inst->io_memory && make_io(inst) < 0)
        return WASI_EIO;
    memcpy(inst->io_memory->base, iovec, sizeof(iovec));
    if (write)
        memcpy(inst->io_memory->base + IO_BUFFER, data, iovec[1]);
    e = wasmtime_func_call_unchecked(inst->ctx, &inst->io[write], &v, 1, trap);
    if (e)
        wasmtime_error_delete(e);
    if (e || *trap)
        return WASI_EIO;
    if (v.i32)
        return v.i32;
    memcpy(ret, inst->io_memory->base + 8, sizeof(*ret));
    *ret = (uint32_t)rr_min(*ret, iovec[1]);
    if (!write)
        memcpy(data, inst->io_memory->base + IO_BUFFER, *ret);
    return 0;
}

/* The message itself, one copy, straight into the guest's buffers. */
static int stdin_read(struct rr_instance *inst, uint8_t *data, uint32_t len, uint32_t *ret)
{
    *ret = (uint32_t)rr_min(len, inst->stdin_len);
    memcpy(data, inst->stdin_data, *ret);
    inst->stdin_data += *ret;
    inst->stdin_len -= *ret;
    return 0;
}

/* The engine's own way hands each write to another thread. */
static int output_write(struct rr_instance *inst, int32_t fd, const uint8_t *data, uint32_t len,
                        uint32_t *ret)
{
    if (inst->output && !inst->output(inst->user, fd, data, len))
        return WASI_EIO;
    *ret = len;
    return 0;
}

static int one_io(struct rr_instance *inst, bool write, int32_t fd, uint8_t *data, uint32_t len,
                  uint32_t *ret, wasm_trap_t **trap)
{
    if (!write && fd == 0 && inst->stdin_data)
        return stdin_read(inst, data, len, ret);
    if (write && (fd == 1 || fd == 2))
        return output_write(inst, fd, data, len, ret);
    return file_io(inst, write, fd, data, len, ret, trap);
}

/* WASI's fd_read and fd_write; @env is not NULL for the latter. */
static wasm_trap_t *shadow_io(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *args,
                              size_t n)
{
    struct rr_instance *inst = wasmtime_context_get_data(wasmtime_caller_context(caller));
    uint32_t count = (uint32_t)args[2].i32, done = 0, io[2];
    uint8_t *vec = rr_instance_slice(inst, (uint32_t)args[1].i32, 8ull * count);
    uint8_t *ret = rr_instance_slice(inst, (uint32_t)args[3].i32, 4), *data;
    wasm_trap_t *trap = NULL;
    int32_t fd = args[0].i32;

    (void)n;
    args[0].i32 = vec && ret ? 0 : WASI_EFAULT;
    for (uint32_t i = 0; args[0].i32 == 0 && i < count; i++) {
        uint32_t got = 0;

        memcpy(io, vec + 8ull * i, sizeof(io));
        io[1] = (uint32_t)rr_min(io[1], UINT32_MAX - done);
        data = rr_instance_slice(inst, io[0], io[1]);
        args[0].i32 = data ? one_io(inst, env != NULL, fd, data, io[1], &got, &trap) : WASI_EFAULT;
        done += got;
        if (got < io[1])
            break; /* a short count is what WASI allows */
    }
    if (done)
        args[0].i32 = 0;
    if (args[0].i32 == 0)
        memcpy(ret, &done, sizeof(done));
    return trap;
}

static wasm_config_t *make_config(struct rr_engine *engine)
{
    wasm_config_t *config = wasm_config_new();
    wasmtime_memory_creator_t creator = {.env = engine, .new_memory = linear_new};

    wasmtime_config_host_memory_creator_set(config, &creator);
    wasmtime_config_memory_init_cow_set(config, false); /* a memory image panics with a creator */
    wasmtime_config_memory_reservation_set(config, RR_LINEAR_BYTES);
    wasmtime_config_memory_guard_size_set(config, 32 * RR_MIB);
    wasmtime_config_memory_may_move_set(config, false);
    wasmtime_config_epoch_interruption_set(config, true);
    wasmtime_config_max_wasm_stack_set(config, 512u << 10);
#ifdef __SANITIZE_THREAD__
    wasmtime_config_parallel_compilation_set(config, false); /* its threads' locks are not seen */
#endif
    wasmtime_config_wasm_memory64_set(config, false);
    wasmtime_config_wasm_multi_memory_set(config, false);
    return config;
}

static int define_wasi(struct rr_engine *engine, struct rr_error *err)
{
    wasmtime_linker_t *linkers[] = {engine->linker, engine->wasi};
    wasm_functype_t *type;
    wasmtime_error_t *e = NULL;

    for (size_t i = 0; i < 2 && !e; i++)
        e = wasmtime_linker_define_wasi(linkers[i]);
    if (!e && !engine->inherit_stdio) {
        wasmtime_linker_allow_shadowing(engine->linker, true);
        type = parse_type("iiii>i");
        e = wasmtime_linker_define_func_unchecked(engine->linker, "wasi_snapshot_preview1", 22,
                                                  "fd_read", 7, type, shadow_io, NULL, NULL);
        if (!e)
            e = wasmtime_linker_define_func_unchecked(engine->linker, "wasi_snapshot_preview1", 22,
                                                      "fd_write", 8, type, shadow_io, engine, NULL);
        wasm_functype_delete(type);
        wasmtime_linker_allow_shadowing(engine->linker, false);
    }
    return e ? take_error(e, err, RR_E_SYSTEM, "report this", "cannot define WASI: ") : 0;
}

static void init_locks(struct rr_engine *engine)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->memories.lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&engine->wake, &attr);
    pthread_condattr_destroy(&attr);
}

int rr_engine_new(const struct rr_engine_options *options, struct rr_engine **ret,
                  struct rr_error *err)
{
    struct rr_engine *engine = calloc(1, sizeof(*engine));
    int r;

    if (!engine)
        return rr_error_no_memory(err);
    init_locks(engine);
    atomic_store(&engine->alarm_ns, NEVER);
    rr_linear_catch_faults();
    engine->engine = wasm_engine_new_with_config(make_config(engine));
    rr_linear_catch_strays();
    engine->inherit_stdio = options->inherit_stdio;
    engine->precompiled = options->precompiled;
    engine->memories.budget = options->budget;
    engine->linker = wasmtime_linker_new(engine->engine);
    engine->wasi = wasmtime_linker_new(engine->engine);
    if (!options->no_cache) {
        r = rr_cache_dir(&engine->cache_dir);
        if (r < 0)
            rr_log(1,
                   "no cache of compiled modules: %s; set ROADRUNNER_CACHE_DIR to a folder that "
                   "only you can write to",
                   strerror(-r));
    }
    rr_cache_platform(rr_engine_version(), engine->platform);
    r = define_wasi(engine, err);
    if (r == 0 && pthread_create(&engine->alarm, NULL, alarm_main, engine) != 0)
        r = rr_error_set(err, RR_E_SYSTEM, "raise the limit on processes", "cannot start a thread");
    if (r) {
        engine->alarm = 0;
        rr_engine_free(engine);
        return r;
    }
    *ret = engine;
    return 0;
}

int rr_engine_before_fork(struct rr_engine *engine, struct rr_error *err)
{
    wasmtime_error_t *e = compile_io(engine);

    return e ? take_error(e, err, RR_E_SYSTEM, "report this", "cannot compile a helper: ") : 0;
}

int rr_engine_after_fork(struct rr_engine *engine, struct rr_error *err)
{
    init_locks(engine);
    atomic_store(&engine->alarm_ns, NEVER);
    engine->sleeping_until_ns = 0;
    if (pthread_create(&engine->alarm, NULL, alarm_main, engine) == 0)
        return 0;
    engine->alarm = 0;
    return rr_error_set(err, RR_E_SYSTEM, "raise the limit on processes", "cannot start a thread");
}

void rr_engine_free(struct rr_engine *engine)
{
    if (!engine)
        return;
    if (engine->alarm) {
        pthread_mutex_lock(&engine->lock);
        atomic_store(&engine->stop, true);
        pthread_cond_signal(&engine->wake);
        pthread_mutex_unlock(&engine->lock);
        pthread_join(engine->alarm, NULL);
    }
    if (engine->io)
        wasmtime_module_delete(engine->io);
    wasmtime_linker_delete(engine->linker);
    wasmtime_linker_delete(engine->wasi);
    wasm_engine_delete(engine->engine);
    rr_linear_pool_free(&engine->memories);
    pthread_mutex_destroy(&engine->memories.lock);
    pthread_cond_destroy(&engine->wake);
    pthread_mutex_destroy(&engine->lock);
    free(engine->cache_dir);
    free(engine);
}

/* --- modules ------------------------------------------------------------------------------- */

static int read_file(const char *path, uint8_t **ret, size_t *ret_len, struct rr_error *err)
{
    __attribute__((cleanup(rr_close_cleanup))) int fd =
        open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* it may be a FIFO */
    __attribute__((cleanup(rr_free_cleanup))) uint8_t *data = NULL;
    struct stat st;
    size_t done = 0;

    if (fd < 0 || fstat(fd, &st) < 0)
        return rr_error_set(err, RR_E_NOINPUT, "check the path and its permissions",
                            "cannot read %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return rr_error_set(err, RR_E_NOINPUT, "name a .wasm file", "%s is not a file", path);
    if ((uint64_t)st.st_size > RR_MAX_MODULE)
        return rr_error_set(err, RR_E_LIMIT, "strip the module", "%s has %s; at most %s", path,
                            rr_bytes_text((uint64_t)st.st_size), rr_bytes_text(RR_MAX_MODULE));
    data = malloc((size_t)st.st_size + 1);
    if (!data)
        return rr_error_no_memory(err);
    while (done < (size_t)st.st_size) {
        ssize_t n = read(fd, data + done, (size_t)st.st_size - done);

        if (n <= 0)
            return rr_error_set(err, RR_E_NOINPUT, "try again", "cannot read %s", path);
        done += (size_t)n;
    }
    *ret_len = done;
    *ret = rr_take(data);
    return 0;
}

static bool is_compiled(const uint8_t *data, size_t len)
{
    return len >= 4 && memcmp(data, "\177ELF", 4) == 0;
}

static int check_wasm(const char *path, const uint8_t *data, size_t len, struct rr_error *err)
{
    static const char hint[] = "build a core module for wasm32-wasi; see docs/guest-abi.md";

    if (is_compiled(data, len))
        return rr_error_set(err, RR_E_INVALID, "give the .wasm file it was made from",
                            "%s is compiled code, which is not taken from others", path);
    if (len < 8 || memcmp(data, "\0asm", 4) != 0)
        return rr_error_set(err, RR_E_INVALID, hint, "%s is not a WebAssembly module", path);
    if (data[4] == 0x0d && data[6] == 1)
        return rr_error_set(err, RR_E_INVALID, hint,
                            "%s is a component; roadrunner runs core modules", path);
    if (memcmp(data + 4, "\1\0\0\0", 4) != 0)
        return rr_error_set(err, RR_E_INVALID, hint, "%s has an unknown WebAssembly version", path);
    return 0;
}

static int compile(struct rr_module *m, const uint8_t *data, size_t len, struct rr_error *err)
{
    wasmtime_error_t *e = wasmtime_module_new(m->engine->engine, data, len, &m->module);

    if (!e)
        return 0;
    rr_log(3, "compilation of %s failed", m->path);
    return take_error(e, err, RR_E_INVALID, "rebuild the module; is the file complete?",
                      "the module does not compile: ");
}

static void key_of(const uint8_t *data, size_t len, const uint8_t platform[RR_DIGEST_BYTES],
                   uint8_t key[RR_DIGEST_BYTES])
{
    uint8_t digest[RR_DIGEST_BYTES];

    rr_digest(data, len, NULL, 0, digest);
    rr_cache_key(digest, platform, key);
}

/* From the image at @image_fd, or, when that is negative, from the cache. */
static int load_compiled(struct rr_module *m, const uint8_t key[RR_DIGEST_BYTES], int image_fd)
{
    __attribute__((cleanup(rr_free_cleanup))) uint8_t *image = NULL;
    wasmtime_error_t *e;
    size_t len;
    int r = image_fd >= 0 ? rr_cache_load_fd(image_fd, key, &image, &len)
                          : rr_cache_load(m->engine->cache_dir, key, &image, &len);

    if (r)
        return r;
    e = wasmtime_module_deserialize(m->engine->engine, image, len, &m->module);
    if (!e)
        return 0;
    wasmtime_error_delete(e);
    return -EBADMSG;
}

static void store_compiled(struct rr_module *m, const uint8_t key[RR_DIGEST_BYTES])
{
    wasm_byte_vec_t bytes;
    wasmtime_error_t *e = wasmtime_module_serialize(m->module, &bytes);
    int r;

    if (e) {
        wasmtime_error_delete(e);
        return;
    }
    r = rr_cache_store(m->engine->cache_dir, key, (const uint8_t *)bytes.data, bytes.size);
    if (r < 0)
        rr_log(1, "cannot store a compiled module: %s", strerror(-r));
    wasm_byte_vec_delete(&bytes);
}

static int from_cache_or_compile(struct rr_module *m, const uint8_t *data, size_t len, int image_fd,
                                 struct rr_error *err)
{
    uint8_t key[RR_DIGEST_BYTES];
    int r;

    if (image_fd < 0 && !m->engine->cache_dir)
        return compile(m, data, len, err);
    key_of(data, len, m->engine->platform, key);
    r = load_compiled(m, key, image_fd);
    m->cached = r == 0 ? RR_CACHE_HIT : r == -ENOENT ? RR_CACHE_MISS : RR_CACHE_REBUILT;
    if (r == 0)
        return 0;
    if (m->cached == RR_CACHE_REBUILT)
        rr_log(2, "%s: its compiled image is damaged or foreign; it is built again", m->path);
    r = compile(m, data, len, err);
    if (r == 0 && m->engine->cache_dir)
        store_compiled(m, key);
    return r;
}

static void note_wasi(void *data, const char *module, const char *name, const char *kind)
{
    (void)name;
    (void)kind;
    if (strcmp(module, "wasi_snapshot_preview1") == 0)
        ((struct rr_module *)data)->wasi = true;
}

int rr_module_load(struct rr_engine *engine, const char *path, struct rr_module **ret,
                   struct rr_error *err)
{
    return rr_module_load_image(engine, path, -1, ret, err);
}

/* The engine checks that it is one of its own making; not, that nobody has changed it. */
static int take_compiled(struct rr_module *m, const uint8_t *data, size_t len, struct rr_error *err)
{
    wasmtime_error_t *e = wasmtime_module_deserialize(m->engine->engine, data, len, &m->module);

    return e ? take_error(e, err, RR_E_INVALID,
                          "make it with `roadrunner compile -o` of this version, for this CPU",
                          "its compiled code does not fit: ")
             : 0;
}

int rr_module_save(const struct rr_module *module, const char *path, struct rr_error *err)
{
    __attribute__((cleanup(rr_close_cleanup))) int fd = -1;
    wasm_byte_vec_t bytes;
    wasmtime_error_t *e = wasmtime_module_serialize(module->module, &bytes);
    int r;

    if (e)
        return take_error(e, err, RR_E_SYSTEM, "", "the module cannot be stored: ");
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    r = fd < 0 ? -errno : rr_write_all(fd, bytes.data, bytes.size);
    wasm_byte_vec_delete(&bytes);
    return r < 0 ? rr_error_set(err, RR_E_OUTPUT, "check the folder, and room on its disk",
                                "cannot write %s: %s", path, strerror(-r))
                 : 0;
}

int rr_module_load_image(struct rr_engine *engine, const char *path, int image_fd,
                         struct rr_module **ret, struct rr_error *err)
{
    __attribute__((cleanup(rr_free_cleanup))) uint8_t *data = NULL;
    size_t len = 0;
    int r = read_file(path, &data, &len, err);
    bool compiled = r == 0 && engine->precompiled && is_compiled(data, len);
    struct rr_module *m;
    wasmtime_error_t *e;

    if (r == 0 && !compiled)
        r = check_wasm(path, data, len, err);
    if (r)
        return r;
    m = calloc(1, sizeof(*m));
    if (!m || !(m->path = strdup(path))) {
        free(m);
        return rr_error_no_memory(err);
    }
    m->engine = engine;
    r = compiled ? take_compiled(m, data, len, err)
                 : from_cache_or_compile(m, data, len, image_fd, err);
    if (r == 0) {
        e = wasmtime_linker_instantiate_pre(engine->linker, m->module, &m->pre);
        if (e)
            r = take_error(e, err, RR_E_INVALID,
                           "a function may import wasi_snapshot_preview1 and roadrunner; see "
                           "docs/guest-abi.md",
                           "");
    }
    if (r) {
        rr_module_free(m);
        return r;
    }
    rr_module_each(m, false, note_wasi, m);
    *ret = m;
    return 0;
}

int rr_module_prepare(const char *path,
                      int (*define)(struct rr_engine *engine, struct rr_error *err),
                      char **ret_path, struct rr_error *err)
{
    __attribute__((cleanup(rr_free_cleanup))) uint8_t *data = NULL, *image = NULL;
    __attribute__((cleanup(rr_free_cleanup))) char *dir = NULL, *entry = NULL;
    uint8_t platform[RR_DIGEST_BYTES], key[RR_DIGEST_BYTES];
    struct rr_engine_options options = {0};
    struct rr_engine *engine = NULL;
    struct rr_module *m = NULL;
    size_t len = 0, image_len;
    int r = read_file(path, &data, &len, err);

    if (r == 0)
        r = check_wasm(path, data, len, err);
    if (r)
        return r;
    rr_cache_platform(rr_engine_version(), platform);
    key_of(data, len, platform, key);
    r = rr_cache_dir(&dir);
    if (r == 0)
        r = rr_cache_path(dir, key, &entry);
    if (r < 0)
        return rr_error_set(err, RR_E_SYSTEM, "set ROADRUNNER_CACHE_DIR to a folder of your own",
                            "there is no cache of compiled modules: %s", strerror(-r));
    if (rr_cache_load(dir, key, &image, &image_len) < 0) {
        r = rr_engine_new(&options, &engine, err);
        if (r == 0)
            r = define(engine, err);
        if (r == 0)
            r = rr_module_load(engine, path, &m, err);
        rr_module_free(m);
        rr_engine_free(engine);
        if (r)
            return r;
    }
    *ret_path = rr_take(entry);
    return 0;
}

void rr_module_free(struct rr_module *m)
{
    if (!m)
        return;
    if (m->pre)
        wasmtime_instance_pre_delete(m->pre);
    if (m->module)
        wasmtime_module_delete(m->module);
    free(m->path);
    free(m);
}

enum rr_cached rr_module_cached(const struct rr_module *m)
{
    return m->cached;
}

/* "ii>I" of a function type; '?' for any other type of value. */
static void type_text(const wasm_functype_t *type, char *out, size_t cap)
{
    const wasm_valtype_vec_t *vecs[2] = {wasm_functype_params(type), wasm_functype_results(type)};
    size_t n = 0;

    for (size_t v = 0; v < 2; v++) {
        for (size_t i = 0; i < vecs[v]->size && n + 2 < cap; i++) {
            wasm_valkind_t kind = wasm_valtype_kind(vecs[v]->data[i]);

            out[n++] = "?iI"[kind == WASM_I32 ? 1 : kind == WASM_I64 ? 2 : 0];
        }
        if (v == 0 && n + 2 < cap)
            out[n++] = '>';
    }
    out[n] = 0;
}

static bool name_is(const wasm_name_t *name, const char *text)
{
    return name->size == strlen(text) && memcmp(name->data, text, name->size) == 0;
}

bool rr_module_has_func(const struct rr_module *m, const char *name, const char *type)
{
    wasm_exporttype_vec_t exports;
    bool found = false;

    wasmtime_module_exports(m->module, &exports);
    for (size_t i = 0; i < exports.size && !found; i++) {
        const wasm_externtype_t *t = wasm_exporttype_type(exports.data[i]);
        char text[40];

        if (!name_is(wasm_exporttype_name(exports.data[i]), name) ||
            wasm_externtype_kind(t) != WASM_EXTERN_FUNC)
            continue;
        type_text(wasm_externtype_as_functype_const(t), text, sizeof(text));
        found = !type || strcmp(text, type) == 0;
    }
    wasm_exporttype_vec_delete(&exports);
    return found;
}

bool rr_module_has_memory(const struct rr_module *m)
{
    wasm_exporttype_vec_t exports;
    bool found = false;

    wasmtime_module_exports(m->module, &exports);
    for (size_t i = 0; i < exports.size && !found; i++)
        found = name_is(wasm_exporttype_name(exports.data[i]), "memory") &&
                wasm_externtype_kind(wasm_exporttype_type(exports.data[i])) == WASM_EXTERN_MEMORY;
    wasm_exporttype_vec_delete(&exports);
    return found;
}

static void copy_name(const wasm_name_t *name, char out[128])
{
    snprintf(out, 128, "%.*s", (int)rr_min(name->size, 120), name->data);
}

static const char *kind_name(const wasm_externtype_t *type)
{
    static const char *const names[] = {"func", "global", "table", "memory"};
    wasm_externkind_t kind = wasm_externtype_kind(type);

    return kind < RR_ARRAY_LEN(names) ? names[kind] : "other";
}

void rr_module_each(const struct rr_module *m, bool exports,
                    void (*fn)(void *data, const char *module, const char *name, const char *kind),
                    void *data)
{
    char module[128], name[128];

    if (exports) {
        wasm_exporttype_vec_t v;

        wasmtime_module_exports(m->module, &v);
        for (size_t i = 0; i < v.size; i++) {
            copy_name(wasm_exporttype_name(v.data[i]), name);
            fn(data, "", name, kind_name(wasm_exporttype_type(v.data[i])));
        }
        wasm_exporttype_vec_delete(&v);
    } else {
        wasm_importtype_vec_t v;

        wasmtime_module_imports(m->module, &v);
        for (size_t i = 0; i < v.size; i++) {
            copy_name(wasm_importtype_module(v.data[i]), module);
            copy_name(wasm_importtype_name(v.data[i]), name);
            fn(data, module, name, kind_name(wasm_importtype_type(v.data[i])));
        }
        wasm_importtype_vec_delete(&v);
    }
}

/* --- instances ----------------------------------------------------------------------------- */

static ptrdiff_t on_output(void *data, const unsigned char *bytes, size_t len)
{
    struct stream *s = data;

    if (!s->inst->output || s->inst->output(s->inst->user, s->number, bytes, len))
        return (ptrdiff_t)len;
    return -EIO;
}

/* As two lists, which @copies, of as many, backs. */
static void split_env(const char *const *env, size_t n, const char **names, const char **values,
                      char **copies)
{
    for (size_t i = 0; i < n; i++) {
        char *eq;

        copies[i] = strdup(env[i]);
        eq = copies[i] ? strchr(copies[i], '=') : NULL;
        names[i] = copies[i] ? copies[i] : "";
        values[i] = eq ? eq + 1 : "";
        if (eq)
            *eq = 0;
    }
}

static int set_env(wasi_config_t *config, const char *const *env, struct rr_error *err)
{
    __attribute__((cleanup(rr_free_cleanup))) void *room = NULL;
    const char **names;
    size_t n = 0;

    while (env && env[n])
        n++;
    room = calloc(3 * n + 1, sizeof(char *));
    if (!room)
        return rr_error_no_memory(err);
    names = room;
    split_env(env, n, names, names + n, (char **)room + 2 * n);
    wasi_config_set_env(config, n, names, names + n);
    for (size_t i = 0; i < n; i++)
        free(((char **)room)[2 * n + i]);
    return 0;
}

static void set_streams(struct rr_instance *inst, wasi_config_t *config)
{
    if (inst->module->engine->inherit_stdio) {
        wasi_config_inherit_stdin(config);
        wasi_config_inherit_stdout(config);
        wasi_config_inherit_stderr(config);
        return;
    }
    inst->streams[0] = (struct stream){inst, 1};
    inst->streams[1] = (struct stream){inst, 2};
    wasi_config_set_stdout_custom(config, on_output, &inst->streams[0], NULL);
    wasi_config_set_stderr_custom(config, on_output, &inst->streams[1], NULL);
}

static int set_wasi(struct rr_instance *inst, const struct rr_instance_options *o,
                    struct rr_error *err)
{
    wasi_config_t *config = wasi_config_new();
    size_t n_args = 0;
    int r;

    while (o->args && o->args[n_args])
        n_args++;
    wasi_config_set_argv(config, n_args, (const char **)(uintptr_t)o->args);
    r = set_env(config, o->env, err);
    set_streams(inst, config);
    for (size_t i = 0; i < o->n_folders && r == 0; i++)
        if (!wasi_config_preopen_dir(config, o->folders[i].host, o->folders[i].guest,
                                     o->folders[i].writable))
            r = rr_error_set(err, RR_E_NOINPUT, "check `folders` of this function",
                             "cannot open folder %s", o->folders[i].host);
    if (r) {
        wasi_config_delete(config);
        return r;
    }
    wasmtime_error_t *e = wasmtime_context_set_wasi(inst->ctx, config);

    return e ? take_error(e, err, RR_E_SYSTEM, "report this", "cannot set up WASI: ") : 0;
}

static int instantiate(struct rr_instance *inst, const struct rr_instance_options *o,
                       struct rr_error *err)
{
    struct rr_linear *before;
    wasm_trap_t *trap = NULL;
    wasmtime_error_t *e;

    if (run_begin(inst, o->deadline_ns ? o->deadline_ns : rr_now_ns() + START_LIMIT_NS))
        return rr_instance_fault(inst, err);
    instantiating = inst;
    instantiating_limit = o->memory_bytes;
    before = rr_linear_enter(NULL);
    e = wasmtime_instance_pre_instantiate(inst->module->pre, inst->ctx, &inst->instance, &trap);
    rr_linear_leave(before);
    instantiating = NULL;
    return e || trap ? take_trap(inst, e, trap, err) : 0;
}

int rr_instance_new(struct rr_module *m, const struct rr_instance_options *o,
                    struct rr_instance **ret, struct rr_error *err)
{
    struct rr_instance *inst = calloc(1, sizeof(*inst));
    int r = 0;

    if (!inst)
        return rr_error_no_memory(err);
    inst->module = m;
    inst->user = o->user;
    inst->output = o->output;
    inst->mapped = o->mapped;
    /* The engine reads and writes files of folders straight from and to guests' memory. */
    inst->fence = o->fence && !m->engine->inherit_stdio && o->n_folders == 0;
    inst->exit_status = -1;
    inst->store = wasmtime_store_new(m->engine->engine, inst, NULL);
    inst->ctx = wasmtime_store_context(inst->store);
    wasmtime_store_epoch_deadline_callback(inst->store, on_epoch, inst, NULL);
    if (m->wasi)
        r = set_wasi(inst, o, err);
    if (r == 0)
        r = instantiate(inst, o, err);
    if (r) {
        rr_instance_free(inst);
        return r;
    }
    *ret = inst;
    return 0;
}

void rr_instance_free(struct rr_instance *inst)
{
    if (!inst)
        return;
    wasmtime_store_delete(inst->store);
    free(inst);
}

void *rr_instance_user(struct rr_instance *inst)
{
    return inst->user;
}

void rr_instance_set_stdin(struct rr_instance *inst, const uint8_t *data, size_t len)
{
    inst->stdin_data = data;
    inst->stdin_len = len;
}

int rr_instance_export(struct rr_instance *inst, const char *name)
{
    wasmtime_extern_t item;

    if (inst->n_exports == MAX_EXPORTS ||
        !wasmtime_instance_export_get(inst->ctx, &inst->instance, name, strlen(name), &item) ||
        item.kind != WASMTIME_EXTERN_FUNC)
        return -1;
    inst->exports[inst->n_exports] = item.of.func;
    return (int)inst->n_exports++;
}

int rr_instance_call(struct rr_instance *inst, int export, union rr_value *args, size_t n_args,
                     uint64_t deadline_ns, struct rr_error *err)
{
    wasm_trap_t *trap = NULL;
    wasmtime_error_t *e;

    struct rr_linear *before;

    if (run_begin(inst, deadline_ns))
        return rr_instance_fault(inst, err);
    before = rr_linear_enter(inst->memory);
    e = wasmtime_func_call_unchecked(inst->ctx, &inst->exports[export],
                                     (wasmtime_val_raw_t *)(void *)args, n_args ? n_args : 1,
                                     &trap);
    rr_linear_leave(before);
    return e || trap ? take_trap(inst, e, trap, err) : 0;
}

int rr_instance_exit_status(const struct rr_instance *inst)
{
    return inst->exit_status;
}

uint8_t *rr_instance_memory(struct rr_instance *inst)
{
    return inst->memory ? inst->memory->base : NULL;
}

uint64_t rr_instance_memory_bytes(struct rr_instance *inst)
{
    return inst->memory ? inst->memory->size_bytes : 0;
}

uint64_t rr_instance_heap_bytes(struct rr_instance *inst)
{
    return inst->memory ? rr_linear_heap_bytes(inst->memory) : 0;
}

uint8_t *rr_instance_slice(struct rr_instance *inst, uint32_t addr, uint64_t len)
{
    uint64_t size = rr_instance_memory_bytes(inst);

    return len <= size && addr <= size - len && inst->memory ? inst->memory->base + addr : NULL;
}

void rr_instance_touch(struct rr_instance *inst, uint32_t addr, uint64_t len)
{
    if (inst->memory)
        rr_linear_touch(inst->memory, addr, addr + len);
}

void rr_instance_map(struct rr_instance *inst)
{
    if (inst->memory)
        rr_linear_unfence(inst->memory);
}

int rr_instance_open_windows(struct rr_instance *inst)
{
    wasmtime_extern_t item;
    uint64_t previous;
    wasmtime_error_t *e;

    if (rr_instance_memory_bytes(inst) >= RR_WINDOW_END)
        return 0;
    if (!wasmtime_instance_export_get(inst->ctx, &inst->instance, "memory", 6, &item) ||
        item.kind != WASMTIME_EXTERN_MEMORY)
        return rr_instance_fail(inst, RR_E_INVALID, "export the memory as `memory`",
                                "it has no memory to open windows in");
    if (inst->memory->size_bytes > RR_WINDOW_BASE)
        return rr_instance_fail(inst, RR_E_LIMIT, "open the windows before the heap grows to 1 GiB",
                                "its heap already reaches into the windows");
    inst->memory->opening = true;
    e = wasmtime_memory_grow(inst->ctx, &item.of.memory,
                             (RR_WINDOW_END - inst->memory->size_bytes) / 65536, &previous);
    inst->memory->opening = false;
    inst->module->opens_windows = true;
    if (e) {
        struct rr_error why;

        take_error(e, &why, RR_E_LIMIT, "", "");
        return rr_instance_fail(inst, RR_E_LIMIT, "let the module's memory grow to 4 GiB",
                                "its memory cannot grow to 3 GiB for the windows: %s", why.text);
    }
    inst->weigh_ns = next_look_ns(inst);
    set_next_alarm(inst);
    return 0;
}
