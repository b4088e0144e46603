/* SPDX-License-Identifier: Apache-2.0 */
#include "abi/abi.h"

#include <stdio.h>

#include "base/util.h"

const char *rr_tier_name(enum rr_tier tier)
{
    static const char *const names[] = {"window", "buffer", "stdio"};

    return names[tier];
}

static int detect_window(const struct rr_module *m, char *why, size_t why_size,
                         struct rr_error *err)
{
    if (!rr_module_has_func(m, "roadrunner_abi", ">i"))
        return rr_error_set(
            err, RR_E_INVALID, "include roadrunner.h, which supplies it",
            "it exports roadrunner_handle, but no roadrunner_abi of type () -> i32");
    if (!rr_module_has_func(m, "roadrunner_handle", ">i"))
        return rr_error_set(err, RR_E_INVALID, "include roadrunner.h, which supplies it",
                            "it has no export roadrunner_handle of type () -> i32");
    if (!rr_module_has_memory(m))
        return rr_error_set(err, RR_E_INVALID, "export it: -Wl,--export-memory",
                            "it does not export its memory");
    snprintf(why, why_size, "it exports roadrunner_abi and roadrunner_handle");
    return 0;
}

static int detect_buffer(const struct rr_module *m, char *why, size_t why_size,
                         struct rr_error *err)
{
    static const char *const wanted[][2] = {
        {"allocate_memory", "i>i"}, {"deallocate_memory", "i>"}, {"start", "ii>I"}};

    for (size_t i = 0; i < RR_ARRAY_LEN(wanted); i++)
        if (!rr_module_has_func(m, wanted[i][0], wanted[i][1]))
            return rr_error_set(err, RR_E_INVALID, "see the buffer tier in docs/guest-abi.md",
                                "it exports allocate_memory, but no %s of the right type",
                                wanted[i][0]);
    if (!rr_module_has_memory(m))
        return rr_error_set(err, RR_E_INVALID, "export it: -Wl,--export-memory",
                            "it does not export its memory");
    snprintf(why, why_size, "it exports allocate_memory, deallocate_memory and start");
    return 0;
}

int rr_abi_detect(const struct rr_module *m, enum rr_tier *ret, char *why, size_t why_size,
                  struct rr_error *err)
{
    int r;

    if (rr_module_has_func(m, "roadrunner_handle", NULL) ||
        rr_module_has_func(m, "roadrunner_abi", NULL)) {
        r = detect_window(m, why, why_size, err);
        if (r == 0)
            *ret = RR_TIER_WINDOW;
        return r;
    }
    if (rr_module_has_func(m, "allocate_memory", NULL)) {
        r = detect_buffer(m, why, why_size, err);
        if (r == 0)
            *ret = RR_TIER_BUFFER;
        return r;
    }
    if (rr_module_has_func(m, "_start", ">")) {
        if (!rr_module_has_memory(m))
            return rr_error_set(err, RR_E_INVALID, "export it: -Wl,--export-memory",
                                "it exports _start, but not its memory");
        snprintf(why, why_size, "it exports _start: a WASI command");
        *ret = RR_TIER_STDIO;
        return 0;
    }
    return rr_error_set(err, RR_E_INVALID,
                        "include roadrunner.h, or build a WASI command; see docs/guest-abi.md",
                        "it exports no function ABI: neither roadrunner_handle, nor "
                        "allocate_memory and start, nor _start");
}

int rr_abi_define(struct rr_engine *engine, struct rr_error *err)
{
    int r = rr_engine_define(engine, rr_native_funcs, rr_native_n_funcs, err);

    return r ? r : rr_engine_define(engine, rr_buffer_funcs, rr_buffer_n_funcs, err);
}

/* @ret: the export's result, when it has one. */
static int call_if_there(struct rr_guest *g, const char *name, uint64_t deadline_ns, int32_t *ret,
                         struct rr_error *err)
{
    union rr_value v = {0};
    int export = rr_instance_export(g->inst, name), r;

    if (export < 0)
        return 0;
    r = rr_instance_call(g->inst, export, &v, 1, deadline_ns, err);
    if (r == 0 && ret)
        *ret = v.i32;
    return r;
}

static int start_window(struct rr_guest *g, uint64_t deadline_ns, struct rr_error *err)
{
    int32_t version = 0;
    int r = call_if_there(g, "roadrunner_abi", deadline_ns, &version, err);

    if (r)
        return r;
    if (version == -1)
        return rr_error_set(err, RR_E_LIMIT,
                            "declare no maximum memory below 3 GiB and fewer than 1 GiB of data",
                            "it could not open its windows");
    if (version != RR_ABI_VERSION)
        return rr_error_set(err, RR_E_INVALID,
                            version > RR_ABI_VERSION ? "use a newer roadrunner"
                                                     : "build it with a newer roadrunner.h",
                            "it was built for version %d of the roadrunner ABI; this is version %d",
                            version, RR_ABI_VERSION);
    if (rr_instance_memory_bytes(g->inst) < 3 * RR_GIB)
        return rr_error_set(err, RR_E_INVALID, "call window_open in roadrunner_abi",
                            "its roadrunner_abi did not open the windows");
    g->handle = rr_instance_export(g->inst, "roadrunner_handle");
    return 0;
}

int rr_guest_start(struct rr_guest *g, uint64_t deadline_ns, struct rr_error *err)
{
    int r = 0;

    switch (g->tier) {
    case RR_TIER_WINDOW:
        r = call_if_there(g, "_initialize", deadline_ns, NULL, err);
        return r ? r : start_window(g, deadline_ns, err);
    case RR_TIER_BUFFER:
        r = call_if_there(g, "_initialize", deadline_ns, NULL, err);
        g->allocate = rr_instance_export(g->inst, "allocate_memory");
        g->deallocate = rr_instance_export(g->inst, "deallocate_memory");
        g->handle = rr_instance_export(g->inst, "start");
        return r;
    case RR_TIER_STDIO:
        g->handle = rr_instance_export(g->inst, "_start");
        return 0;
    }
    return r;
}

int rr_guest_handle(struct rr_guest *g, struct rr_abi_input *in, uint64_t deadline_ns,
                    int *ret_status, struct rr_error *err)
{
    union rr_value v = {0};
    int r;

    *ret_status = 0;
    if (g->tier == RR_TIER_BUFFER)
        return rr_buffer_handle(g, in, deadline_ns, err);
    if (g->tier == RR_TIER_STDIO)
        return rr_stdio_handle(g, in, deadline_ns, ret_status, err);
    r = rr_instance_call(g->inst, g->handle, &v, 1, deadline_ns, err);
    if (r == 0)
        *ret_status = v.i32;
    return r;
}
