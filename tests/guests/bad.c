/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One function, many mistakes: the environment variable CASE names the one to
 * make; "input" leaves it to the input, which begins with the name and a NUL. A case that the host
 * must stop never comes back from its call; where it does come back, the function ends with
 * SURVIVED.
 */
#include <roadrunner.h>
#include <stdbool.h>

enum { SURVIVED = 99 };

#define PAGE 4096
#define SLOT (1ull << 30)

static struct rr_message in;

/* What the compiler cannot see through: it may assume that malloc() succeeds,
 * and that no recursion is endless. */
static void *volatile sink;
static volatile int never;

static char *page(void)
{
    char *p = rr_alloc("out", PAGE);
    if (!p)
        exit(98);
    memset(p, 'p', PAGE);
    return p;
}

static int trap(void)
{
    __builtin_trap();
}

static int divide(void)
{
    volatile int n = 7, zero = 0;
    return n / zero;
}

static int load(void)
{
    return *(volatile char *)(uintptr_t)0xfffffff0u;
}

static int loop(void)
{
    for (volatile unsigned int i = 0;; i++)
        ;
}

/* Asks politely; malloc() must say no, and the function says so. */
static int exhaust_malloc(void)
{
    uint64_t n_bytes = 0;
    while ((sink = malloc(1 << 20)))
        n_bytes += 1 << 20;
    rr_logf(RR_ERROR, "out of memory after %llu bytes", (unsigned long long)n_bytes);
    return 12;
}

/* The same, with every page written. */
static int exhaust_touch(void)
{
    while ((sink = malloc(1 << 20)))
        memset(sink, 1, 1 << 20);
    return 12;
}

/* What a runtime without a malloc does: grow, do not look, write. */
static int exhaust_grow(void)
{
    while (__builtin_wasm_memory_grow(0, 16) != (size_t)-1)
        ;
    *(volatile char *)(__builtin_wasm_memory_size(0) * 65536) = 1;
    return SURVIVED;
}

/* Fills the stack in linear memory ... */
__attribute__((noinline)) static int recurse(volatile char *below)
{
    volatile char frame[1024];
    frame[0] = below[0];
    if (never)
        return 0;
    return recurse(frame) + frame[0];
}

/* ... and the engine's own stack, with frames that have nothing in memory. */
__attribute__((noinline)) static int descend(int n)
{
    if (never)
        return 0;
    int deeper = descend(n + 1);
    __asm__ volatile("" : "+r"(deeper)); /* or it would become a loop */
    return deeper + n;
}

static int send_out_of_bounds(void)
{
    return rr_send("out", (void *)(uintptr_t)0xfffff000u, PAGE);
}

static int send_null(void)
{
    return rr_send("out", NULL, PAGE);
}

/* An address within its own buffer, but not the start of it. */
static int send_half(void)
{
    return rr_send("out", page() + PAGE / 2, PAGE / 2);
}

static int send_heap(void)
{
    char *p = malloc(PAGE);
    memset(p, 'h', PAGE);
    return rr_send("out", p, PAGE);
}

/* In the windows' range, where the function has no message. */
static int send_hole(void)
{
    return rr_send("out", (void *)(uintptr_t)0x7ff00000u, PAGE);
}

static int send_twice(void)
{
    char *p = page();
    rr_send("out", p, PAGE);
    return rr_send("out", p, PAGE);
}

static int send_after_drop(void)
{
    char *p = page();
    rr_drop(p);
    return rr_send("out", p, PAGE);
}

static int send_dropped_input(void)
{
    rr_drop(in.data);
    return rr_send("out", in.data, in.len);
}

static int drop_twice(void)
{
    char *p = page();
    rr_drop(p);
    return rr_drop(p);
}

static int keep_sent(void)
{
    char *p = page();
    rr_send("out", p, PAGE);
    return rr_keep(p);
}

static int port_unknown(void)
{
    return rr_send("nowhere", page(), PAGE);
}

static int port_unknown_alloc(void)
{
    rr_alloc("nowhere", PAGE);
    return SURVIVED;
}

static int port_out_of_bounds(void)
{
    rr_sys_message_alloc((const char *)(uintptr_t)0xffffff00u, 64, PAGE);
    return SURVIVED;
}

static int port_huge(void)
{
    rr_sys_message_alloc((const char *)(uintptr_t)16, 0xffffffffu, PAGE);
    return SURVIVED;
}

static int alloc_too_long(void)
{
    rr_alloc("out", SLOT + 1);
    return SURVIVED;
}

static int alloc_huge(void)
{
    rr_alloc("out", UINT64_MAX);
    return SURVIVED;
}

static int send_too_long(void)
{
    return rr_send("out", page(), SLOT + 1);
}

static int send_huge(void)
{
    return rr_send("out", page(), UINT64_MAX);
}

static int meta_value_too_large(void)
{
    static char value[RR_MAX_METADATA + 1];
    return rr_meta_set(page(), "user-large", value, sizeof(value));
}

static int meta_sum_too_large(void)
{
    static char value[1024];
    char *p = page();
    for (int i = 0; i <= RR_MAX_METADATA / (int)sizeof(value); i++) {
        char key[32];
        snprintf(key, sizeof(key), "user-%d", i);
        rr_meta_set(p, key, value, sizeof(value));
    }
    return SURVIVED;
}

static int meta_out_of_bounds(void)
{
    rr_sys_meta_set(rr_address(page()), "key", 3, (void *)(uintptr_t)0xffffff00u, 512);
    return SURVIVED;
}

static int meta_of_sent(void)
{
    char *p = page();
    rr_send("out", p, PAGE);
    return rr_meta_set(p, "key", "value", 5);
}

static int input_out_of_bounds(void)
{
    rr_sys_message_input(0, (struct rr_message *)(uintptr_t)0xffffffd0u);
    return SURVIVED;
}

static int log_out_of_bounds(void)
{
    return rr_sys_log(RR_INFO, (const char *)(uintptr_t)0xffffff00u, 512);
}

static int call_unknown(void)
{
    rr_call_alloc("nobody", PAGE);
    return SURVIVED;
}

static int call_wrong_buffer(void)
{
    struct rr_message reply;
    return rr_call("nobody", page(), PAGE, &reply);
}

static int no_send(void)
{
    return 0;
}

static int no_send_owning(void)
{
    page();
    return 0;
}

static int fail(void)
{
    return 7;
}

static int fail_log(void)
{
    rr_log(RR_ERROR, "the reason is in the log");
    return 7;
}

static int fail_negative(void)
{
    return -3;
}

static int fail_after_send(void)
{
    rr_send("out", page(), PAGE);
    return 7;
}

static int trap_after_send(void)
{
    rr_send("out", page(), PAGE);
    __builtin_trap();
}

static int leave(void)
{
    exit(5);
}

static int recurse_memory(void)
{
    return recurse(in.data);
}

static int recurse_stack(void)
{
    return descend(0);
}

static const struct {
    const char *name;
    int (*run)(void);
    bool stopped; /* the host must not let it return */
} cases[] = {
    {"trap", trap, true},
    {"divide", divide, true},
    {"load", load, true},
    {"loop", loop, true},
    {"exhaust-malloc", exhaust_malloc, false},
    {"exhaust-touch", exhaust_touch, false},
    {"exhaust-grow", exhaust_grow, true},
    {"recurse-memory", recurse_memory, true},
    {"recurse-stack", recurse_stack, true},
    {"send-out-of-bounds", send_out_of_bounds, true},
    {"send-null", send_null, true},
    {"send-half", send_half, true},
    {"send-heap", send_heap, true},
    {"send-hole", send_hole, true},
    {"send-twice", send_twice, true},
    {"send-after-drop", send_after_drop, true},
    {"send-dropped-input", send_dropped_input, true},
    {"send-too-long", send_too_long, true},
    {"send-huge", send_huge, true},
    {"drop-twice", drop_twice, true},
    {"keep-sent", keep_sent, true},
    {"port-unknown", port_unknown, true},
    {"port-unknown-alloc", port_unknown_alloc, true},
    {"port-out-of-bounds", port_out_of_bounds, true},
    {"port-huge", port_huge, true},
    {"alloc-too-long", alloc_too_long, true},
    {"alloc-huge", alloc_huge, true},
    {"meta-value-too-large", meta_value_too_large, true},
    {"meta-sum-too-large", meta_sum_too_large, true},
    {"meta-out-of-bounds", meta_out_of_bounds, true},
    {"meta-of-sent", meta_of_sent, true},
    {"input-out-of-bounds", input_out_of_bounds, true},
    {"log-out-of-bounds", log_out_of_bounds, true},
    {"call-unknown", call_unknown, true},
    {"call-wrong-buffer", call_wrong_buffer, true},
    {"trap-after-send", trap_after_send, true},
    {"no-send", no_send, false},
    {"no-send-owning", no_send_owning, false},
    {"fail", fail, false},
    {"fail-log", fail_log, false},
    {"fail-negative", fail_negative, false},
    {"fail-after-send", fail_after_send, false},
    {"exit", leave, true},
};

int rr_handle(void)
{
    const char *name = getenv("CASE");
    if (rr_input(0, &in) != 0 || !name)
        return 97;
    if (strcmp(name, "input") == 0)
        name = in.data;
    if (strcmp(name, "none") == 0)
        return rr_return(in.data, in.len);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (strcmp(name, cases[i].name) == 0) {
            int status = cases[i].run();
            return cases[i].stopped ? SURVIVED : status;
        }
    }
    return 96;
}
