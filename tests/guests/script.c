/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the calls that its input says, with whatever arguments it says: for
 * fuzz/fuzz_abi.c. A call is a byte for the import and some for each argument.
 */
#include <roadrunner.h>

static uint8_t text[65536];
static uint64_t n_text, at;
static uint32_t seen[16]; /* addresses that calls gave */
static uint32_t n_seen;

static uint8_t byte(void)
{
    return at < n_text ? text[at++] : 0;
}

static uint32_t word(void)
{
    uint32_t w = byte();
    w |= (uint32_t)byte() << 8;
    w |= (uint32_t)byte() << 16;
    return w | (uint32_t)byte() << 24;
}

/* Mostly an address that means something, so that calls get past the first check. */
static uint32_t address(void)
{
    uint8_t how = byte();
    if (how < 160)
        return seen[how % 16];
    if (how < 190)
        return seen[how % 16] + byte();
    if (how < 210)
        return rr_address(text) + byte();
    if (how < 230)
        return (uint32_t)byte() << 26;
    return word();
}

static uint64_t length(void)
{
    uint8_t how = byte();
    if (how < 100)
        return how;
    if (how < 200)
        return (uint64_t)byte() << (how % 20);
    if (how < 230)
        return word();
    return (uint64_t)word() << 32 | word();
}

struct name {
    const char *p;
    uint32_t len;
};

static struct name name(void)
{
    static const char *const names[] = {"out",    "a",       "big", "call:callee",
                                        "callee", "nowhere", "in"};
    uint8_t how = byte();
    if (how < 240) {
        const char *p = names[how % 7];
        return (struct name){p, (uint32_t)strlen(p)};
    }
    const char *p = (const char *)(uintptr_t)address();
    return (struct name){p, (uint32_t)length()};
}

static void note(uint32_t addr)
{
    seen[n_seen++ % 16] = addr;
}

static void touch(uint32_t addr, uint64_t len)
{
    /* one's own memory, or a trap: either is fine */
    if (addr >= 0x40000000u && addr < 0xc0000000u && len)
        *(volatile uint8_t *)(uintptr_t)addr = 1;
}

static void step(void)
{
    struct rr_message m;
    struct name n;
    uint32_t a;
    uint64_t len;
    switch (byte() % 12) {
    case 0:
        if (rr_sys_message_input(byte() % 4, &m) == 0)
            note(rr_address(m.data));
        break;
    case 1:
        n = name();
        len = length();
        a = rr_sys_message_alloc(n.p, n.len, len);
        note(a);
        touch(a, len);
        break;
    case 2:
        n = name();
        a = address();
        rr_sys_message_send(n.p, n.len, a, length());
        break;
    case 3:
        rr_sys_message_drop(address());
        break;
    case 4:
        rr_sys_message_keep(address());
        break;
    case 5:
        n = name();
        a = address();
        len = length();
        if (rr_sys_message_call(n.p, n.len, a, len, &m) == 0)
            note(rr_address(m.data));
        break;
    case 6:
        a = address();
        n = name();
        rr_sys_meta_get(a, n.p, n.len, (void *)(uintptr_t)address(), byte());
        break;
    case 7:
        a = address();
        n = name();
        rr_sys_meta_set(a, n.p, n.len, text, (uint32_t)length());
        break;
    case 8:
        rr_sys_log(byte(), (const char *)text, byte());
        break;
    case 9:
        rr_sys_message_input(byte(), (struct rr_message *)(uintptr_t)address());
        break;
    case 10:
        rr_sys_window_open();
        break;
    default:
        touch(address(), 1);
    }
}

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    n_text = in.len < sizeof(text) ? in.len : sizeof(text);
    memcpy(text, in.data, n_text);
    note(rr_address(in.data));
    while (at < n_text)
        step();
    return 0;
}
