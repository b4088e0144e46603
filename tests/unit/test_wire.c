/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "channel/wire.h"

static struct rr_net_target targets[RR_WIRE_MAX_TARGETS];
static char names[RR_WIRE_NAMES_BYTES];

static struct rr_net_packet good_packet(const struct rr_net_target *t)
{
    static const uint8_t meta[] = {1, 0, 0, 0, 2, 0, 0, 0, 'k', 'v', 'w'};

    return (struct rr_net_packet){.session = {1, 2, 3},
                                  .run = 4,
                                  .kind = 5,
                                  .status = -6,
                                  .deadline_ns = 7,
                                  .window = RR_WINDOW_BASE + RR_SLOT_SMALL,
                                  .slot_bytes = RR_SLOT_SMALL,
                                  .fixed = true,
                                  .age_ns = 8,
                                  .copied_bytes = 9,
                                  .meta = meta,
                                  .meta_len = sizeof(meta),
                                  .len = 10,
                                  .offset = 11,
                                  .data = (const uint8_t *)"0123456789",
                                  .targets = t,
                                  .n_targets = 2};
}

static const struct rr_net_target two[2] = {{"a.out", "b.in", 77, 1, true},
                                            {"a.out", "c.in", 78, 3, false}};

/* A whole frame; returns its bytes. */
static size_t put(uint8_t *to, const struct rr_net_packet *p, uint64_t seq)
{
    size_t n = rr_wire_data_bytes(p);

    assert_true(n > 0);
    rr_wire_put_data(to, n, p, seq);
    if (p->data && p->len <= RR_WIRE_INLINE) {
        memcpy(to + n, p->data, p->len);
        n += p->len;
    }
    return n;
}

static int get(const uint8_t *from, size_t len, struct rr_net_packet *p, struct rr_error *err)
{
    struct rr_wire_header h;
    int r = rr_wire_get_header(from, &h, err);

    if (r)
        return r;
    assert_int_equal(h.len, len - RR_WIRE_HEADER);
    return rr_wire_get_data(&h, from + RR_WIRE_HEADER, targets, names, p, err);
}

static void test_data(void **state)
{
    struct rr_net_packet p = good_packet(two), q;
    struct rr_error err = {0};
    uint8_t frame[1024];
    size_t n = put(frame, &p, 0x30001);

    (void)state;
    assert_int_equal(get(frame, n, &q, &err), 0);
    assert_memory_equal(q.session, p.session, 16);
    assert_int_equal(q.run, 4);
    assert_int_equal(q.kind, 5);
    assert_int_equal(q.status, -6);
    assert_int_equal(q.deadline_ns, 7);
    assert_int_equal(q.window, p.window);
    assert_int_equal(q.slot_bytes, p.slot_bytes);
    assert_true(q.fixed);
    assert_int_equal(q.age_ns, 8);
    assert_int_equal(q.copied_bytes, 9);
    assert_int_equal(q.len, 10);
    assert_int_equal(q.offset, 11);
    assert_memory_equal(q.data, "0123456789", 10);
    assert_int_equal(q.meta_len, p.meta_len);
    assert_memory_equal(q.meta, p.meta, p.meta_len);
    assert_int_equal(q.seq, 0x30001);
    assert_int_equal(q.n_targets, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_string_equal(q.targets[i].from, two[i].from);
        assert_string_equal(q.targets[i].to, two[i].to);
        assert_int_equal(q.targets[i].id, two[i].id);
        assert_int_equal(q.targets[i].attempt, two[i].attempt);
        assert_int_equal(q.targets[i].acked, two[i].acked);
    }
}

/* What must not be sent is not encoded, and a peer that sends it is found out. */
static void test_limits(void **state)
{
    char long_name[RR_WIRE_MAX_NAME + 2];
    struct rr_net_target *many = calloc(RR_WIRE_MAX_TARGETS + 1, sizeof(*many)), odd = two[0];
    struct rr_net_packet p, q;
    struct rr_error err;
    uint8_t *frame = malloc(RR_WIRE_MAX_FRAME);
    size_t n;

    (void)state;
    assert_non_null(many);
    assert_non_null(frame);
    memset(long_name, 'x', sizeof(long_name));
    long_name[RR_WIRE_MAX_NAME] = 0;
    for (size_t i = 0; i <= RR_WIRE_MAX_TARGETS; i++)
        many[i] = (struct rr_net_target){long_name, long_name, i, 1, true};
    /* the largest of all */
    p = good_packet(many);
    p.n_targets = RR_WIRE_MAX_TARGETS;
    p.len = RR_WIRE_INLINE;
    p.data = calloc(1, RR_WIRE_INLINE);
    p.meta_len = RR_WIRE_MAX_META;
    uint8_t *meta = calloc(1, RR_WIRE_MAX_META);
    const uint32_t lens[2] = {1, RR_WIRE_MAX_META - 9};

    assert_non_null(meta);
    memcpy(meta, lens, sizeof(lens));
    p.meta = meta;
    n = put(frame, &p, 1);
    assert_true(n <= RR_WIRE_MAX_FRAME);
    assert_int_equal(get(frame, n, &q, &err), 0);
    assert_int_equal(q.n_targets, RR_WIRE_MAX_TARGETS);
    assert_string_equal(q.targets[RR_WIRE_MAX_TARGETS - 1].to, long_name);
    p.n_targets++;
    assert_int_equal(rr_wire_data_bytes(&p), 0);
    free((void *)(uintptr_t)p.data);
    free(meta);

    p = good_packet(&odd);
    p.n_targets = 1;
    assert_true(rr_wire_data_bytes(&p) > 0);
    long_name[RR_WIRE_MAX_NAME] = 'x';
    long_name[RR_WIRE_MAX_NAME + 1] = 0;
    odd.from = long_name;
    assert_int_equal(rr_wire_data_bytes(&p), 0);
    odd.from = "a b";
    assert_int_equal(rr_wire_data_bytes(&p), 0);
    odd.from = "";
    assert_int_equal(rr_wire_data_bytes(&p), 0);
    odd.from = "a.out";
    odd.attempt = 0;
    assert_int_equal(rr_wire_data_bytes(&p), 0);
    odd.attempt = 1;
    p.offset = RR_SLOT_SMALL;
    assert_int_equal(rr_wire_data_bytes(&p), 0);
    p.offset = 0;
    p.window++;
    assert_int_equal(rr_wire_data_bytes(&p), 0);
    p.window = 0; /* none yet; but no guest has seen it then */
    assert_int_equal(rr_wire_data_bytes(&p), 0);
    p.fixed = false;
    assert_true(rr_wire_data_bytes(&p) > 0);
    p.slot_bytes = RR_MIB;
    assert_int_equal(rr_wire_data_bytes(&p), 0);
    free(frame);
    free(many);
}

/* Each byte of a frame, changed to any value: either it is refused, or it means what it says. */
static void test_changed_bytes(void **state)
{
    struct rr_net_packet p = good_packet(two), q;
    uint8_t frame[1024], again[1024];
    size_t n = put(frame, &p, 0x30001), good = 0;

    (void)state;
    for (size_t at = 0; at < n; at++)
        for (unsigned int v = 1; v < 256; v++) {
            struct rr_wire_header h;
            struct rr_error err = {0};

            frame[at] = (uint8_t)(frame[at] ^ v);
            if (rr_wire_get_header(frame, &h, &err) == 0 && h.type == RR_WIRE_DATA &&
                h.len == n - RR_WIRE_HEADER && get(frame, n, &q, &err) == 0) {
                assert_int_equal(put(again, &q, q.seq), n);
                assert_memory_equal(again, frame, n);
                good++;
            }
            frame[at] = (uint8_t)(frame[at] ^ v);
        }
    assert_true(good > 1000);
    /* cut off anywhere */
    for (size_t len = RR_WIRE_HEADER; len < n; len++) {
        uint8_t *exact = malloc(len);

        assert_non_null(exact);
        memcpy(exact, frame, len);
        rr_wire_put_header(exact, (uint32_t)(len - RR_WIRE_HEADER), RR_WIRE_DATA, RR_WIRE_FIXED,
                           0x30001);
        assert_int_equal(get(exact, len, &q, NULL), RR_E_INVALID);
        free(exact);
    }
}

static void test_headers(void **state)
{
    static const struct {
        uint32_t len;
        uint8_t type, flags, reserved;
        uint64_t seq;
        int expected;
    } table[] = {
        {0, RR_WIRE_PING, 0, 0, 5, 0},
        {1, RR_WIRE_PING, 0, 0, 5, RR_E_INVALID},
        {0, 0, 0, 0, 0, RR_E_INVALID},
        {0, RR_WIRE_GOODBYE, 0, 0, 0, 0},
        {0, RR_WIRE_GOODBYE, 0, 0, 1, RR_E_INVALID},
        {0, RR_WIRE_GOODBYE + 1, 0, 0, 0, RR_E_INVALID},
        {0, 255, 0, 0, 0, RR_E_INVALID},
        {32, RR_WIRE_CREDIT, 0, 0, 0, 0},
        {31, RR_WIRE_CREDIT, 0, 0, 0, RR_E_INVALID},
        {16, RR_WIRE_BACK, 0, 0, 0, 0},
        {24, RR_WIRE_BACK, 0, 0, 0, RR_E_INVALID},
        {0, RR_WIRE_BACK, 0, 0, 0, RR_E_INVALID},
        {65536, RR_WIRE_BACK, 0, 0, 0, 0},
        {65552, RR_WIRE_BACK, 0, 0, 0, RR_E_INVALID},
        {RR_WIRE_CHUNK, RR_WIRE_CHUNK_DATA, 0, 0, 9, 0},
        {RR_WIRE_CHUNK + 1, RR_WIRE_CHUNK_DATA, 0, 0, 9, RR_E_INVALID},
        {0, RR_WIRE_CHUNK_DATA, 0, 0, 9, RR_E_INVALID},
        {200, RR_WIRE_DATA, 3, 0, 9, 0},
        {200, RR_WIRE_DATA, 4, 0, 9, RR_E_INVALID},
        {200, RR_WIRE_DATA, 0, 1, 9, RR_E_INVALID},
        {UINT32_MAX, RR_WIRE_DATA, 0, 0, 9, RR_E_INVALID},
        {32, RR_WIRE_CREDIT, 1, 0, 0, RR_E_INVALID},
        {RR_WIRE_MAX_HELLO + 1, RR_WIRE_HELLO, 0, 0, 0, RR_E_INVALID},
    };

    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(table); n++) {
        uint8_t bytes[RR_WIRE_HEADER];
        struct rr_wire_header h = {0};
        struct rr_error err = {0};

        rr_wire_put_header(bytes, table[n].len, table[n].type, table[n].flags, table[n].seq);
        bytes[6] = table[n].reserved;
        if (rr_wire_get_header(bytes, &h, &err) != table[n].expected)
            fail_msg("row %zu: %s", n, err.text);
        if (table[n].expected == 0) {
            assert_int_equal(h.len, table[n].len);
            assert_int_equal(h.seq, table[n].seq);
        }
    }
}

static void test_hello(void **state)
{
    struct rr_wire_text texts[3] = {{"node", "a"}, {"workflow", ""}, {"node", "b"}};
    static struct rr_wire_text out[RR_WIRE_MAX_TEXTS];
    struct rr_wire_hello h = {.version = RR_WIRE_VERSION,
                              .features = 6,
                              .session = {9},
                              .role = RR_WIRE_MAIN,
                              .n_bulk = 2,
                              .credit = {1, 2, 3, 4},
                              .n_texts = 2,
                              .texts = texts},
                         q;
    struct rr_error err = {0};
    uint8_t frame[512];
    size_t n = rr_wire_put_hello(frame, sizeof(frame), &h);

    (void)state;
    assert_true(n > RR_WIRE_HEADER);
    assert_int_equal(rr_wire_get_hello(frame + RR_WIRE_HEADER, n - RR_WIRE_HEADER, out, &q, &err),
                     0);
    assert_int_equal(q.features, 6);
    assert_int_equal(q.n_bulk, 2);
    assert_int_equal(q.credit.control_bytes, 4);
    assert_string_equal(q.texts[0].value, "a");
    assert_string_equal(q.texts[1].key, "workflow");
    for (size_t len = 0; len < n - RR_WIRE_HEADER; len++) {
        uint8_t *exact = malloc(len + 1);

        assert_non_null(exact);
        memcpy(exact, frame + RR_WIRE_HEADER, len);
        assert_int_equal(rr_wire_get_hello(exact, len, out, &q, NULL), RR_E_INVALID);
        free(exact);
    }
    frame[RR_WIRE_HEADER + 8]++;
    assert_int_equal(rr_wire_get_hello(frame + RR_WIRE_HEADER, n - RR_WIRE_HEADER, out, &q, &err),
                     RR_E_USAGE);
    assert_int_equal(q.version, RR_WIRE_VERSION + 1);
    h.n_texts = 3; /* a text twice */
    n = rr_wire_put_hello(frame, sizeof(frame), &h);
    assert_int_equal(rr_wire_get_hello(frame + RR_WIRE_HEADER, n - RR_WIRE_HEADER, out, &q, &err),
                     RR_E_INVALID);
    assert_int_equal(rr_wire_put_hello(frame, 100, &h), 0); /* no room */
    texts[0].key[0] = ' ';
    assert_int_equal(rr_wire_put_hello(frame, sizeof(frame), &h), 0);
}

static void test_text(void **state)
{
    char text[6];

    (void)state;
    rr_wire_get_text((const uint8_t *)"a\n\x7f\xffz", 5, text, sizeof(text));
    assert_string_equal(text, "a???z");
    rr_wire_get_text((const uint8_t *)"1234567", 7, text, sizeof(text));
    assert_string_equal(text, "12345");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_data),          cmocka_unit_test(test_limits),
        cmocka_unit_test(test_changed_bytes), cmocka_unit_test(test_headers),
        cmocka_unit_test(test_hello),         cmocka_unit_test(test_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
