/* SPDX-License-Identifier: Apache-2.0 */
/* The `roadrunner` ABI: every pointer and length of a guest is checked here. */
#include <string.h>

#include "abi/abi.h"
#include "base/util.h"

#define MESSAGE_BYTES 80 /* struct rr_message of the SDK */

static const char pointer_hint[] = "pass an address inside the guest's own memory";

static struct rr_guest *guest_of(struct rr_instance *inst)
{
    return rr_instance_user(inst);
}

static int bad_pointer(struct rr_instance *inst, const char *call, const char *what, uint32_t addr,
                       uint64_t len)
{
    return rr_instance_fail(inst, RR_E_GUEST, pointer_hint,
                            "%s: %s at 0x%x, %s long, lies outside of its memory", call, what, addr,
                            rr_bytes_text(len));
}

/* A name out of the guest's memory into @out. */
static int get_name(struct rr_instance *inst, const char *call, const char *what, int32_t addr,
                    int32_t len, char out[RR_ABI_MAX_PORT + 1])
{
    uint32_t n = (uint32_t)len;
    const uint8_t *p;

    if (n == 0 || n > RR_ABI_MAX_PORT)
        return rr_instance_fail(inst, RR_E_INVALID, "use a name of the workflow file",
                                "%s: a %s of %u bytes; it has 1 to %d", call, what, n,
                                RR_ABI_MAX_PORT);
    p = rr_instance_slice(inst, (uint32_t)addr, n);
    if (!p)
        return bad_pointer(inst, call, what, (uint32_t)addr, n);
    memcpy(out, p, n);
    out[n] = 0;
    for (uint32_t i = 0; i < n; i++)
        if (out[i] < 0x21 || out[i] > 0x7e)
            return rr_instance_fail(inst, RR_E_INVALID, "use a name of the workflow file",
                                    "%s: the %s is not a name", call, what);
    return 0;
}

static void put_message(uint8_t *out, const struct rr_abi_message *m)
{
    uint32_t zero = 0;

    memcpy(out, &m->addr, 4);
    memcpy(out + 4, &zero, 4);
    memcpy(out + 8, &m->len, 8);
    memset(out + 16, 0, RR_ABI_MAX_PORT + 1);
    memcpy(out + 16, m->port, strnlen(m->port, RR_ABI_MAX_PORT));
}

static int window_open(struct rr_instance *inst, union rr_value *args)
{
    int r = rr_instance_open_windows(inst);

    args[0].i32 = 0;
    return r;
}

static int message_input(struct rr_instance *inst, union rr_value *args)
{
    struct rr_abi_message m = {0};
    uint8_t *out = rr_instance_slice(inst, (uint32_t)args[1].i32, MESSAGE_BYTES);
    int r;

    if (!out)
        return bad_pointer(inst, "message_input", "the place for the description",
                           (uint32_t)args[1].i32, MESSAGE_BYTES);
    r = guest_of(inst)->ops->input(guest_of(inst), (uint32_t)args[0].i32, &m);
    if (r)
        return r;
    args[0].i32 = m.port ? 0 : -1;
    if (m.port)
        put_message(out, &m);
    return 0;
}

static int message_alloc(struct rr_instance *inst, union rr_value *args)
{
    char port[RR_ABI_MAX_PORT + 1];
    uint32_t addr = 0;
    int r = get_name(inst, "message_alloc", "port", args[0].i32, args[1].i32, port);

    if (r == 0)
        r = guest_of(inst)->ops->alloc(guest_of(inst), port, (uint64_t)args[2].i64, &addr);
    args[0].i32 = (int32_t)addr;
    return r;
}

static int message_send(struct rr_instance *inst, union rr_value *args)
{
    char port[RR_ABI_MAX_PORT + 1];
    int r = get_name(inst, "message_send", "port", args[0].i32, args[1].i32, port);

    if (r == 0)
        r = guest_of(inst)->ops->send(guest_of(inst), port, (uint32_t)args[2].i32,
                                      (uint64_t)args[3].i64);
    args[0].i32 = 0;
    return r;
}

static int message_drop(struct rr_instance *inst, union rr_value *args)
{
    int r = guest_of(inst)->ops->drop(guest_of(inst), (uint32_t)args[0].i32);

    args[0].i32 = 0;
    return r;
}

static int message_keep(struct rr_instance *inst, union rr_value *args)
{
    int r = guest_of(inst)->ops->keep(guest_of(inst), (uint32_t)args[0].i32);

    args[0].i32 = 0;
    return r;
}

static int message_call(struct rr_instance *inst, union rr_value *args)
{
    char fn[RR_ABI_MAX_PORT + 1];
    struct rr_abi_message reply = {0};
    uint32_t out_addr = (uint32_t)args[4].i32;
    int32_t status = 0;
    uint8_t *out;
    int r = get_name(inst, "message_call", "function", args[0].i32, args[1].i32, fn);

    if (r)
        return r;
    if (!rr_instance_slice(inst, out_addr, MESSAGE_BYTES))
        return bad_pointer(inst, "message_call", "the place for the reply", out_addr,
                           MESSAGE_BYTES);
    r = guest_of(inst)->ops->call(guest_of(inst), fn, (uint32_t)args[2].i32, (uint64_t)args[3].i64,
                                  &reply, &status);
    if (r)
        return r;
    args[0].i32 = status;
    if (status == 0) {
        out = rr_instance_slice(inst, out_addr, MESSAGE_BYTES);
        put_message(out, &reply);
    }
    return 0;
}

static int meta_get(struct rr_instance *inst, union rr_value *args)
{
    uint32_t key_addr = (uint32_t)args[1].i32, key_len = (uint32_t)args[2].i32;
    uint32_t buf_addr = (uint32_t)args[3].i32, cap = (uint32_t)args[4].i32;
    const uint8_t *key = rr_instance_slice(inst, key_addr, key_len), *value = NULL;
    uint8_t *buf = rr_instance_slice(inst, cap ? buf_addr : 0, cap);
    size_t len = 0;
    int r;

    if (!key)
        return bad_pointer(inst, "meta_get", "the key", key_addr, key_len);
    if (!buf)
        return bad_pointer(inst, "meta_get", "the buffer", buf_addr, cap);
    r = guest_of(inst)->ops->meta_get(guest_of(inst), (uint32_t)args[0].i32, (const char *)key,
                                      key_len, &value, &len);
    if (r)
        return r;
    args[0].i32 = value ? (int32_t)len : -1;
    if (value)
        memcpy(buf, value, rr_min(len, cap));
    return 0;
}

static int meta_set(struct rr_instance *inst, union rr_value *args)
{
    uint32_t key_addr = (uint32_t)args[1].i32, key_len = (uint32_t)args[2].i32;
    uint32_t value_addr = (uint32_t)args[3].i32, value_len = (uint32_t)args[4].i32;
    const uint8_t *key = rr_instance_slice(inst, key_addr, key_len);
    const uint8_t *value = rr_instance_slice(inst, value_len ? value_addr : 0, value_len);
    int r;

    if (!key)
        return bad_pointer(inst, "meta_set", "the key", key_addr, key_len);
    if (!value)
        return bad_pointer(inst, "meta_set", "the value", value_addr, value_len);
    if (key_len == 0)
        return rr_instance_fail(inst, RR_E_INVALID, "name the value", "meta_set: an empty key");
    r = guest_of(inst)->ops->meta_set(guest_of(inst), (uint32_t)args[0].i32, (const char *)key,
                                      key_len, value, value_len);
    args[0].i32 = 0;
    return r;
}

static int log_text(struct rr_instance *inst, union rr_value *args)
{
    uint32_t addr = (uint32_t)args[1].i32, len = (uint32_t)args[2].i32;
    const uint8_t *text = rr_instance_slice(inst, addr, len);
    int level = args[0].i32;

    if (!text)
        return bad_pointer(inst, "log", "the text", addr, len);
    guest_of(inst)->ops->log(guest_of(inst), level < 0 || level > 3 ? 3 : level, (const char *)text,
                             rr_min(len, RR_ABI_MAX_LOG));
    args[0].i32 = 0;
    return 0;
}

const struct rr_host_func rr_native_funcs[] = {
    {"roadrunner", "window_open", ">i", window_open},
    {"roadrunner", "message_input", "ii>i", message_input},
    {"roadrunner", "message_alloc", "iiI>i", message_alloc},
    {"roadrunner", "message_send", "iiiI>i", message_send},
    {"roadrunner", "message_drop", "i>i", message_drop},
    {"roadrunner", "message_keep", "i>i", message_keep},
    {"roadrunner", "message_call", "iiiIi>i", message_call},
    {"roadrunner", "meta_get", "iiiii>i", meta_get},
    {"roadrunner", "meta_set", "iiiii>i", meta_set},
    {"roadrunner", "log", "iii>i", log_text},
};
const size_t rr_native_n_funcs = RR_ARRAY_LEN(rr_native_funcs);
