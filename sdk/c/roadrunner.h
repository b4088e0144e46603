/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Roadrunner guest SDK for C and C++: one header, no library.
 *
 * Write one function and compile it as a WASI reactor:
 *
 *     #include <roadrunner.h>
 *
 *     int rr_handle(void)
 *     {
 *         struct rr_message in;
 *         rr_input(0, &in);
 *         char *out = rr_alloc("out", in.len);
 *         if (!out)
 *             return 1;
 *         memcpy(out, in.data, in.len);
 *         return rr_return(out, in.len);
 *     }
 *
 *     clang --target=wasm32-wasi -O2 -mexec-model=reactor -Isdk/c f.c -o f.wasm
 *
 * The header supplies the exports `roadrunner_abi` and `roadrunner_handle`.
 * They are weak, so a module of several files may include it in each of them;
 * define RR_NO_ENTRY to write the exports yourself.
 *
 * Lengths are bytes. Ports, keys and function names are NUL-terminated UTF-8;
 * a NULL port means "out". A call with a bad pointer, a length beyond its slot,
 * a port the workflow does not have, or a buffer the function does not own
 * stops the function with a message that names the fault: such mistakes have
 * no return value to check. docs/guest-abi.md is the reference.
 */
#ifndef ROADRUNNER_H
#define ROADRUNNER_H

#ifndef __wasm32__
#error "roadrunner.h is for WebAssembly guests: compile with --target=wasm32-wasi"
#endif

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RR_ABI_VERSION 1
#define RR_MAX_PORT 63              /* bytes of a port's or function's name */
#define RR_MAX_METADATA (64 * 1024) /* bytes of all keys and values of one message */

#ifdef __cplusplus
extern "C" {
#endif

/**
 * struct rr_message - one message that this function owns
 *
 * @data is writable. It keeps its address along the whole workflow, so the
 * payload may hold pointers into itself. What the function neither sends nor
 * keeps is dropped when rr_handle() returns.
 */
struct rr_message {
    void *data;
    uint32_t reserved;
    uint64_t len;
    char port[RR_MAX_PORT + 1]; /* the input port it came to, NUL-terminated */
};

enum rr_level { RR_ERROR, RR_WARN, RR_INFO, RR_DEBUG };

/* What the function does with one set of inputs: 0, or a failure status > 0. */
int rr_handle(void);

/* The imports as they are; the functions below are the way to use them. */
#define RR_IMPORT(name) __attribute__((import_module("roadrunner"), import_name(#name)))
RR_IMPORT(window_open) int32_t rr_sys_window_open(void);
RR_IMPORT(message_input) int32_t rr_sys_message_input(uint32_t index, struct rr_message *ret);
RR_IMPORT(message_alloc)
uint32_t rr_sys_message_alloc(const char *port, uint32_t port_len, uint64_t len);
RR_IMPORT(message_send)
int32_t rr_sys_message_send(const char *port, uint32_t port_len, uint32_t addr, uint64_t len);
RR_IMPORT(message_drop) int32_t rr_sys_message_drop(uint32_t addr);
RR_IMPORT(message_keep) int32_t rr_sys_message_keep(uint32_t addr);
RR_IMPORT(message_call)
int32_t rr_sys_message_call(const char *fn, uint32_t fn_len, uint32_t addr, uint64_t len,
                            struct rr_message *ret_reply);
RR_IMPORT(meta_get)
int32_t rr_sys_meta_get(uint32_t addr, const char *key, uint32_t key_len, void *buf, uint32_t cap);
RR_IMPORT(meta_set)
int32_t rr_sys_meta_set(uint32_t addr, const char *key, uint32_t key_len, const void *value,
                        uint32_t value_len);
RR_IMPORT(log) int32_t rr_sys_log(int32_t level, const char *text, uint32_t len);
#undef RR_IMPORT

static inline uint32_t rr_address(const void *p)
{
    return (uint32_t)(uintptr_t)p;
}

static inline const char *rr_port_name(const char *port)
{
    return port ? port : "out";
}

/**
 * rr_input() - look at an input
 * @index:  0-based; a function with several input ports gets one message of
 *          each, in the order of the workflow file's edges
 * @ret:    out, owned by the function from the start; untouched on failure
 *
 * Return: 0; -1 when there is no such input.
 */
static inline int rr_input(uint32_t index, struct rr_message *ret)
{
    return rr_sys_message_input(index, ret);
}

/* The input that came to @port. Return: 0; -1 when there is none. */
static inline int rr_input_on(const char *port, struct rr_message *ret)
{
    struct rr_message m;
    for (uint32_t i = 0; rr_input(i, &m) == 0; i++) {
        if (strcmp(m.port, port) == 0) {
            *ret = m;
            return 0;
        }
    }
    return -1;
}

/**
 * rr_alloc() - get a buffer to write a message for @port into
 * @len:  bytes wanted, at most the edge's `max`
 *
 * The contents are unspecified: warm memory is handed out as it is. A port has
 * one window, so send or drop its buffer before asking for the next; to ask
 * for a second stops the function.
 *
 * Return: the buffer, 4 KiB-aligned, owned: rr_send() or rr_drop(); NULL when
 * there is no memory for it.
 */
static inline void *rr_alloc(const char *port, uint64_t len)
{
    port = rr_port_name(port);
    return (void *)(uintptr_t)rr_sys_message_alloc(port, (uint32_t)strlen(port), len);
}

/**
 * rr_send() - hand a buffer to the port's receivers
 * @p:    start of a buffer of rr_alloc(), or of an input; moved
 * @len:  bytes that the message has, from @p
 *
 * When it returns the function can no longer read or write the message; what
 * lies at @p then is other memory or none. Nothing is copied.
 *
 * Return: 0.
 */
static inline int rr_send(const char *port, const void *p, uint64_t len)
{
    port = rr_port_name(port);
    return rr_sys_message_send(port, (uint32_t)strlen(port), rr_address(p), len);
}

/* rr_send() on port "out"; `return rr_return(p, len);` ends a handler well. */
static inline int rr_return(const void *p, uint64_t len)
{
    return rr_send("out", p, len);
}

/* Give up a buffer or an input (@p: moved) before the handler returns. Return: 0. */
static inline int rr_drop(const void *p)
{
    return rr_sys_message_drop(rr_address(p));
}

/**
 * rr_keep() - keep an input beyond the return of the handler
 *
 * For functions with `instances: N`, whose memory outlives a message. The
 * input stays where it is until rr_drop() or rr_send() in a later call.
 *
 * Return: 0.
 */
static inline int rr_keep(const void *p)
{
    return rr_sys_message_keep(rr_address(p));
}

/* A buffer to call @fn with: rr_alloc() for the port "call:FN". NULL: no memory, or @fn is
 * longer than RR_MAX_PORT. */
static inline void *rr_call_alloc(const char *fn, uint64_t len)
{
    char port[sizeof("call:") + RR_MAX_PORT] = "call:";
    if (strlen(fn) > RR_MAX_PORT)
        return NULL;
    strcpy(port + 5, fn);
    return rr_alloc(port, len);
}

/**
 * rr_call() - send a message to a function and wait for its reply
 * @fn:         name of a function in this one's `calls` list
 * @p:          buffer of rr_call_alloc(@fn), moved
 * @len:        bytes
 * @ret_reply:  out, owned like an input; untouched on failure
 *
 * Return: 0; else the callee's failure status.
 */
static inline int rr_call(const char *fn, const void *p, uint64_t len, struct rr_message *ret_reply)
{
    return rr_sys_message_call(fn, (uint32_t)strlen(fn), rr_address(p), len, ret_reply);
}

/**
 * rr_meta_get() - read a metadata value of an input or buffer
 * @buf:  out: as much of the value as fits in @cap - 1 bytes, and a NUL;
 *        may be NULL when @cap is 0
 *
 * Return: the whole length of the value without the NUL (it was cut when that
 * is >= @cap); -1 when the message has no such key.
 */
static inline int rr_meta_get(const void *p, const char *key, char *buf, size_t cap)
{
    uint32_t room = cap > 0 ? (uint32_t)(cap - 1) : 0;
    int len = rr_sys_meta_get(rr_address(p), key, (uint32_t)strlen(key), buf, room);
    if (len >= 0 && cap > 0)
        buf[(uint32_t)len < room ? (uint32_t)len : room] = '\0';
    return len;
}

/* Set a metadata value of an input or buffer; it travels with the message. Return: 0. */
static inline int rr_meta_set(const void *p, const char *key, const void *value, size_t len)
{
    return rr_sys_meta_set(rr_address(p), key, (uint32_t)strlen(key), value, (uint32_t)len);
}

/*
 * HTTP, where the workflow is served (`roadrunner serve`). Requests are metadata of the input:
 * http-method, http-path, http-query, content-type, http-header:NAME with NAME in lower case.
 * Replies are metadata of the result; without any they are 200 and application/octet-stream.
 */

/* A header of the request, as rr_meta_get(); @name in lower case, at most 100 bytes of it. */
static inline int rr_http_header(const void *p, const char *name, char *buf, size_t cap)
{
    char key[sizeof("http-header:") + 100] = "http-header:";
    strncat(key, name, 100);
    return rr_meta_get(p, key, buf, cap);
}

/* The reply's status, 200 to 599, before @p is sent. Return: 0. */
static inline int rr_http_set_status(const void *p, int status)
{
    char text[3] = {(char)('0' + status / 100 % 10), (char)('0' + status / 10 % 10),
                    (char)('0' + status % 10)};
    return rr_meta_set(p, "http-status", text, sizeof(text));
}

/* A header of the reply; @name as above. Headers of the connection and of framing are not set. */
static inline int rr_http_set_header(const void *p, const char *name, const char *value)
{
    char key[sizeof("http-reply-header:") + 100] = "http-reply-header:";
    strncat(key, name, 100);
    return rr_meta_set(p, key, value, strlen(value));
}

/* What the payload is, such as "image/jpeg". */
static inline int rr_set_content_type(const void *p, const char *type)
{
    return rr_meta_set(p, "content-type", type, strlen(type));
}

/* One line for the function's log. Return: 0. */
static inline int rr_log(enum rr_level level, const char *text)
{
    return rr_sys_log((int32_t)level, text, (uint32_t)strlen(text));
}

/* rr_log() with printf's formats, cut at 511 bytes. Adds about 20 KB to the module. */
__attribute__((format(printf, 2, 3))) static inline int rr_logf(enum rr_level level,
                                                                const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return rr_log(level, text);
}

#ifndef RR_NO_ENTRY
__attribute__((weak, export_name("roadrunner_abi"))) int32_t roadrunner_abi(void);
__attribute__((weak, export_name("roadrunner_handle"))) int32_t roadrunner_handle(void);

/*
 * wasi-libc's malloc takes all memory up to memory.size at its first call. So
 * it must be called before the windows open, or it would claim them; volatile
 * keeps the compiler from removing the pair.
 */
__attribute__((weak)) int32_t roadrunner_abi(void)
{
    void *volatile p = malloc(1);
    free(p);
    return rr_sys_window_open() == 0 ? RR_ABI_VERSION : -1;
}

__attribute__((weak)) int32_t roadrunner_handle(void)
{
    return rr_handle();
}
#endif

#ifdef __cplusplus
}
#endif

#endif
