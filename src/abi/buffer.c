/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The prototype's ABI: the guest allocates its inputs itself. The host asks for
 * a little more than the payload has and begins where the address is congruent
 * to the source, so that whole pages move and only the two ends are copied.
 */
#include <string.h>

#include "abi/abi.h"
#include "base/util.h"

#define PAGE 4096u
#define SWAP_MIN (256u << 10) /* below, copying is cheaper */

static int send_payload(struct rr_instance *inst, union rr_value *args)
{
    struct rr_guest *g = rr_instance_user(inst);
    uint32_t addr = (uint32_t)args[0].i32, len = (uint32_t)args[1].i32;
    uint8_t *data = rr_instance_slice(inst, addr, len);
    int r;

    if (!data)
        return rr_instance_fail(inst, RR_E_GUEST, "pass an address inside the guest's own memory",
                                "a payload at 0x%x, %s long, lies outside of its memory", addr,
                                rr_bytes_text(len));
    r = g->ops->emit(g, data, len);
    args[0].i32 = 0;
    return r;
}

/* Fill the guest's [dst, dst+len) with the payload; returns the bytes copied. */
static uint64_t fill(const struct rr_abi_input *in, uint8_t *dst)
{
    uint64_t head, body;

    if (!in->movable || in->len < SWAP_MIN) {
        memcpy(dst, in->data, in->len);
        return in->len;
    }
    head = rr_align_up((uint64_t)(uintptr_t)in->data, PAGE) - (uint64_t)(uintptr_t)in->data;
    body = (in->len - head) & ~(uint64_t)(PAGE - 1);
    memcpy(dst, in->data, head);
    memcpy(dst + head + body, in->data + head + body, in->len - head - body);
    return in->len - body + rr_region_swap_pages(in->arena, dst + head, in->data + head, body);
}

/* Memory of the guest's for the input: @ret_ptr is what it gave, @ret_addr where to write. */
static int allocate(struct rr_guest *g, const struct rr_abi_input *in, uint64_t deadline_ns,
                    uint32_t *ret_ptr, uint32_t *ret_addr, struct rr_error *err)
{
    uint64_t align = !in->movable || in->len < SWAP_MIN ? 1
                     : in->len < 2 * RR_HUGE            ? PAGE
                                                        : RR_HUGE;
    uint64_t want = in->len + align - 1, skip;
    union rr_value v = {.i32 = (int32_t)(uint32_t)want};
    uint32_t ptr;
    int r;

    if (want > INT32_MAX)
        return rr_error_set(err, RR_E_LIMIT, "use the window tier for messages of this size",
                            "a message of %s is too long for the buffer tier",
                            rr_bytes_text(in->len));
    r = rr_instance_call(g->inst, g->allocate, &v, 1, deadline_ns, err);
    if (r)
        return r;
    ptr = (uint32_t)v.i32;
    if (ptr == 0)
        return rr_error_set(err, RR_E_LIMIT, "raise `memory` of this function",
                            "its allocate_memory has no %s for the input", rr_bytes_text(want));
    skip = ((uint64_t)(uintptr_t)in->data - ptr) & (align - 1);
    if (!rr_instance_slice(g->inst, ptr, want))
        return rr_error_set(err, RR_E_GUEST, "return memory of the length asked for",
                            "its allocate_memory(%llu) returned 0x%x, outside of its memory",
                            (unsigned long long)want, ptr);
    *ret_ptr = ptr;
    *ret_addr = ptr + (uint32_t)skip;
    return 0;
}

static int deallocate(struct rr_guest *g, uint32_t ptr, uint64_t deadline_ns, struct rr_error *err)
{
    union rr_value v = {.i32 = (int32_t)ptr};

    return rr_instance_call(g->inst, g->deallocate, &v, 1, deadline_ns, err);
}

int rr_buffer_handle(struct rr_guest *g, struct rr_abi_input *in, uint64_t deadline_ns,
                     struct rr_error *err)
{
    union rr_value v[2] = {{0}};
    uint32_t input = 0, addr = 0, result, len;
    uint8_t *data;
    int r = allocate(g, in, deadline_ns, &input, &addr, err);

    if (r)
        return r;
    in->copied_bytes = fill(in, rr_instance_memory(g->inst) + addr);
    v[0].i32 = (int32_t)addr;
    v[1].i32 = (int32_t)(uint32_t)in->len;
    in->ready_ns = rr_now_ns();
    r = rr_instance_call(g->inst, g->handle, v, 2, deadline_ns, err);
    if (r)
        return r;
    result = (uint32_t)((uint64_t)v[0].i64 >> 32);
    len = (uint32_t)(uint64_t)v[0].i64;
    if (result) {
        data = rr_instance_slice(g->inst, result, len);
        if (!data)
            return rr_error_set(err, RR_E_GUEST,
                                "return (pointer << 32) | length of memory you own",
                                "its result at 0x%x, %s long, lies outside of its memory", result,
                                rr_bytes_text(len));
        r = g->ops->emit(g, data, len);
        if (r) /* emit records why with the instance, as for an import; there is no trap to carry it
                */
            return rr_instance_fault(g->inst, err);
    }
    r = deallocate(g, input, deadline_ns, err);
    if (r == 0 && result && (result < input || result - input >= in->len + RR_HUGE))
        r = deallocate(g, result, deadline_ns, err);
    return r;
}

const struct rr_host_func rr_buffer_funcs[] = {
    {"wasi_export", "read_memory_host", "ii>i", send_payload},
    {"cwasi_export", "func_connect", "ii>i", send_payload},
};
const size_t rr_buffer_n_funcs = RR_ARRAY_LEN(rr_buffer_funcs);
