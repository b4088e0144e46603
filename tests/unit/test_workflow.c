/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "workflow/workflow.h"

#define HEAD "version: 1\nfunctions:\n  a: {module: a.wasm}\n  b: {module: b.wasm}\nedges:\n"
#define IN "  - {from: input, to: a}\n"
#define NODES(entry)                                                                               \
    "version: 1\nnodes: {" entry "}\nfunctions: {a: {module: x}}\nedges: [{from: input, to: a}]\n" \
    "result: a\n"
#define PLACED(keys)                                                                 \
    "version: 1\nnodes: {b: {address: \"a:1\"}}\nfunctions:\n  a: {module: x, " keys \
    "}\nedges: [{from: input, to: a}]\nresult: a\n"
#define LIMITS(entry)                                                 \
    "version: 1\nlimits: {" entry                                     \
    "}\nfunctions: {a: {module: x}}\nedges: [{from: input, to: a}]\n" \
    "result: a\n"
#define TWO(isolation) \
    "version: 1\nisolation: " isolation "\nfunctions: {a: {module: x}, b: {module: x}}\nedges:\n"
#define LETTERS(from, to, more) \
    IN "  - {from: " from ", to: " to ", delivery: at-least-once" more "}\nresult: b\n"

static int parse(const char *text, struct rr_workflow **ret, struct rr_error *err)
{
    memset(err, 0, sizeof(*err));
    return rr_workflow_parse("dir/flow.yaml", text, strlen(text), ret, err);
}

static struct rr_workflow *good(const char *text)
{
    struct rr_workflow *wf = NULL;
    struct rr_error err;

    if (parse(text, &wf, &err) != 0)
        fail_msg("%s:%u:%u: %s", err.file, err.line, err.column, err.text);
    return wf;
}

static const struct {
    const char *text;
    unsigned int line; /* 0: any */
    const char *says, *hint;
} mistakes[] = {
    {"", 1, "empty", "version: 1"},
    {"version: 2\n", 1, "version", ""},
    {"functions: {}\n", 1, "version", ""},
    {"version: 1\nfunctions: [\n", 0, "", ""},
    {"version: 1\nversion: 1\n", 2, "version", ""},
    {HEAD IN "  - {from: a, to: c}\nresult: b\n", 7, "'c'", ""},
    {HEAD IN "  - {from: a, to: bb}\nresult: b\n", 7, "'bb'", "b"},
    {HEAD IN "  - {from: a, to: b}\nresult: nobody\n", 8, "'nobody'", ""},
    {HEAD IN "  - {from: a, to: input}\nresult: b\n", 7, "input", ""},
    {HEAD IN "  - {from: a}\nresult: b\n", 7, "'to'", "from"},
    {HEAD IN "  - {from: a, to: b, size: 3}\nresult: b\n", 7, "size", ""},
    {HEAD IN "  - {from: a, to: b, max: 3}\nresult: b\n", 7, "max", ""},
    {HEAD IN "  - {from: a, to: b, max: 2GiB}\nresult: b\n", 7, "max", ""},
    {HEAD IN "  - {from: a, to: b, max: -1MiB}\nresult: b\n", 7, "max", ""},
    {HEAD IN "  - {from: a, to: b}\n  - {from: a.x, to: b}\nresult: b\n", 8, "port 'in' of 'b'",
     ""},
    {HEAD IN "  - {from: a, to: b}\n  - {from: a, to: b.x}\nresult: b\n", 8, "twice", ""},
    {HEAD IN "  - {from: a, to: b}\n  - {from: b, to: a.back}\nresult: b\n", 0, "cycle", ""},
    {HEAD IN "  - {from: a, to: a.again}\nresult: a\n", 0, "", ""},
    {HEAD IN "result: a\n", 4, "'b'", ""},
    {HEAD "  - {from: a, to: b}\nresult: b\n", 0, "input", ""},
    {HEAD IN "  - {from: a, to: b}\n", 0, "result", ""},
    {"version: 1\nfunctions: {}\nedges: []\nresult: a\n", 0, "", ""},
    {"version: 1\nfunctions: {1a: {module: a.wasm}}\nedges: []\nresult: a\n", 2, "", ""},
    {"version: 1\nfunctions: {input: {module: a.wasm}}\nedges: []\nresult: a\n", 2, "input", ""},
    {"version: 1\nfunctions: {a: {}}\nedges: []\nresult: a\n", 2, "module", ""},
    {"version: 1\nfunctions: {a: {module: x, memory: lots}}\nedges: []\nresult: a\n", 2, "memory",
     ""},
    {"version: 1\nfunctions: {a: {module: x, memory: 9GiB}}\nedges: []\nresult: a\n", 2, "memory",
     ""},
    {"version: 1\nfunctions: {a: {module: x, deadline: 5}}\nedges: []\nresult: a\n", 2, "deadline",
     ""},
    {"version: 1\nfunctions: {a: {module: x, instances: 0}}\nedges: []\nresult: a\n", 2,
     "instances", ""},
    {"version: 1\nfunctions: {a: {module: x, instances: 5000}}\nedges: []\nresult: a\n", 2,
     "instances", ""},
    {"version: 1\nfunctions: {a: {module: x, env: [1]}}\nedges: []\nresult: a\n", 2, "env", ""},
    {"version: 1\nfunctions: {a: {module: x, memroy: 1MiB}}\nedges: []\nresult: a\n", 2, "memroy",
     "memory"},
    {"version: 1\nfunctions: {a: {module: x, calls: [b]}}\nedges: [{from: input, to: "
     "a}]\nresult: a\n",
     2, "'b'", ""},
    {"version: 1\nfunctions: {a: {module: x, calls: [b]}, b: {module: y, calls: [a]}}\n"
     "edges: [{from: input, to: a}]\nresult: a\n",
     0, "called by", ""},
    {"version: 1\nfunctions: {a: {module: x, calls: [b]}, b: {module: y}}\n"
     "edges: [{from: input, to: a}, {from: a, to: b}]\nresult: a\n",
     3, "called by", ""},
    {HEAD "  - {from: input, to: a, max: 1GiB}\n  - {from: a.x, to: b.x, max: 1GiB}\n"
          "  - {from: a.y, to: b.y, max: 1GiB}\nresult: b\n",
     0, "", ""},
    {"version: 1\nisolation: yes\nfunctions: {}\nedges: []\nresult: a\n", 2, "'yes'", "process"},
    {"version: 1\nisolation: [process]\nfunctions: {}\nedges: []\nresult: a\n", 2, "a list",
     "process"},
    {"version: 1\nisolaton: process\nfunctions: {}\nedges: []\nresult: a\n", 2, "'isolaton'",
     "isolation"},
    {"version: 1\ndead_letters: 3\nfunctions: {}\nedges: []\nresult: a\n", 2, "dead_letters",
     "quotes"},
    {"version: 1\ndead_letters:\nfunctions: {}\nedges: []\nresult: a\n", 2, "dead_letters", ""},
    {"version: 1\nlimits: 3\nfunctions: {}\nedges: []\nresult: a\n", 2, "limits", "pairs"},
    {LIMITS("messages: 3"), 2, "unknown key 'messages' in limits", ""},
    {LIMITS("queue_messages: 0"), 2, "queue_messages cannot be '0'", "from 1 to 65536"},
    {LIMITS("queue_messages: 65537"), 2, "queue_messages", "from 1 to 65536"},
    {LIMITS("queue_messages: 99999999999999999999"), 2, "queue_messages", ""},
    {LIMITS("queue_messages: \"3\""), 2, "queue_messages", ""},
    {LIMITS("queue_messages: {}"), 2, "a number, not a map", ""},
    {LIMITS("queue_bytes: 4"), 2, "queue_bytes", "unit"},
    {LIMITS("queue_bytes: 1023KiB"), 2, "queue_bytes", "1 MiB"},
    {LIMITS("queue_bytes: 1025GiB"), 2, "queue_bytes", "choose a size"},
    {LIMITS("domain_messages: 0"), 2, "domain_messages cannot be '0'", "from 1 to 16777216"},
    {LIMITS("domain_messages: 16777217"), 2, "domain_messages", "from 1 to 16777216"},
    {NODES("b: {}"), 2, "node 'b' has no address", "address"},
    {NODES("b: {address: nowhere}"), 2, "'nowhere' is not an address", "HOST:PORT"},
    {NODES("b: {address: \":1\"}"), 2, "not an address", "HOST:PORT"},
    {NODES("b: {address: \"a:0\"}"), 2, "not an address", "HOST:PORT"},
    {NODES("b: {address: \"a:65536\"}"), 2, "not an address", "HOST:PORT"},
    {NODES("b: {address: \"a:1x\"}"), 2, "not an address", "HOST:PORT"},
    {NODES("b: {address: \"::1:80\"}"), 2, "not an address", "IPv6"},
    {NODES("b: {address: \"unix:relative\"}"), 2, "not an address", "unix:/PATH"},
    {NODES("b: {addr: \"a:1\"}"), 2, "'addr'", "address"},
    {NODES("3: {address: \"a:1\"}"), 2, "name of a node", ""},
    {PLACED("node: c"), 4, "there is no node 'c'", ""},
    {PLACED("node: b, isolation: process"), 4, "cannot have `isolation: process`", "node"},
    {PLACED("node: b, allow: []"), 4, "1 to 64 identities", ""},
    {PLACED("node: b, allow: x"), 4, "allow", ""},
    {PLACED("node: {}"), 4, "node", ""},
    {LIMITS("domain_bytes: 4"), 2, "domain_bytes", "unit"},
    {LIMITS("domain_bytes: 1023KiB"), 2, "domain_bytes", "1 MiB"},
    {TWO("process") IN "  - {from: a, to: b, delivery: once}\nresult: b\n", 6, "'once'",
     "at-least-once"},
    {TWO("process") IN "  - {from: a, to: b, attempts: 2}\nresult: b\n", 6, "attempts",
     "delivery: at-least-once"},
    {TWO("process") IN "  - {from: a, to: b, delivery: at-most-once, attempts: 2}\nresult: b\n", 6,
     "at most once", "remove"},
    {TWO("process") LETTERS("a", "b", ", attempts: 0"), 6, "attempts", "1 to 100"},
    {TWO("process") LETTERS("a", "b", ", attempts: 101"), 6, "attempts", "1 to 100"},
    {TWO("process") LETTERS("a", "b", ", attempts: [1]"), 6, "not a list", "1 to 100"},
    {TWO("worker") LETTERS("a", "b", ""), 6, "at-least-once", "one of the two functions"},
    {TWO("worker") LETTERS("input", "b", ""), 6, "at-least-once", "`isolation: process` for 'b'"},
};

static void test_mistakes(void **state)
{
    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(mistakes); i++) {
        struct rr_workflow *wf = NULL;
        struct rr_error err;

        if (parse(mistakes[i].text, &wf, &err) != RR_E_INVALID)
            fail_msg("case %zu was taken: %s", i, err.text);
        assert_null(wf);
        if (!strstr(err.text, mistakes[i].says) || !strstr(err.hint, mistakes[i].hint) ||
            !err.hint[0])
            fail_msg("case %zu: %s (%s)", i, err.text, err.hint);
        if (strcmp(err.file, "dir/flow.yaml") != 0 || !err.line || !err.column ||
            (mistakes[i].line && err.line != mistakes[i].line))
            fail_msg("case %zu: %s:%u:%u: %s", i, err.file, err.line, err.column, err.text);
    }
}

/* Where exactly: line and column of the word that is wrong, and the whole of a cycle. */
static const struct {
    const char *text;
    unsigned int line, column;
    const char *says, *hint;
} positions[] = {
    {"a: 1\nb: \xff\n", 2, 4, "0xff", "UTF-8"},
    {"version: 1\nname: &x y\n", 2, 10, "anchors", "value"},
    {"version: 1\nname: !x y\n", 2, 10, "tags", "tag"},
    {"version: 1\nname: *x\n", 2, 8, "aliases", "value"},
    {"version: 1\n---\nversion: 1\n", 2, 1, "second", "one workflow"},
    {"version: 1\n[a]: b\n", 2, 1, "key", ""},
    {"- version: 1\n", 1, 1, "a workflow must be a map, not a list", "key: value"},
    {"version: 1\nfunctions:\n  a:\n    module:\nedges: []\nresult: a\n", 4, 5,
     "module must be a text, not empty", "write a text"},
    {"version: 1\nfunctions:\n  a: {module: x}\nedges:\n  -\nresult: a\n", 5, 3,
     "an edge must be a map, not empty", "key: value"},
    {"version: 1\nname: 9x\nfunctions: {}\nedges: []\nresult: a\n", 2, 7, "'9x'", "letter"},
    {"version: 1\nnmae: x\n", 2, 1, "unknown key 'nmae'", "'name'"},
    {"version: 1\nfunctions: {a: {module: 3}}\nedges: []\nresult: a\n", 2, 25,
     "a text, not a number", "quotes"},
    {"version: 1\nfunctions: {a: {module: x, args: [1, [2]]}}\nedges: []\nresult: a\n", 2, 38,
     "argument", ""},
    {"version: 1\nfunctions: {a: {module: x, env: {9: x}}}\nedges: []\nresult: a\n", 2, 34, "'9'",
     "digit"},
    {"version: 1\nfunctions: {a: {module: x, folders: [{host: d}]}}\nedges: []\nresult: a\n", 2, 38,
     "'guest'", "{host: data, guest: /data}"},
    {"version: 1\nfunctions: {a: {module: x, folders: [{host: d, guest: /a/../b}]}}\nedges: "
     "[]\n"
     "result: a\n",
     2, 55, "/a/../b", "'..'"},
    {"version: 1\nfunctions: {a: {module: x, folders: [{host: d, guest: /d, writable: 1}]}}\n"
     "edges: []\nresult: a\n",
     2, 69, "true or false", ""},
    {"version: 1\nfunctions: {a: {module: x, calls: [a]}}\nedges: [{from: input, to: "
     "a}]\nresult: a\n",
     3, 9, "'a' is called by 'a'", ""},
    {"version: 1\nfunctions:\n  a: {module: x, calls: [b, b]}\n  b: {module: x}\n"
     "edges: [{from: input, to: a}]\nresult: a\n",
     3, 29, "twice", "one of the two"},
    {"version: 1\nfunctions:\n  a: {module: x, calls: [b]}\n  b: {module: x, calls: [c]}\n"
     "  c: {module: x, calls: [b]}\nedges: [{from: input, to: a}]\nresult: a\n",
     5, 26, "b -> c -> b", "`calls`"},
    {"version: 1\nfunctions: {a: {module: x, calls: [b]}, b: {module: x}}\n"
     "edges: [{from: input, to: a}]\nresult: b\n",
     4, 9, "cannot give the result", "own entry"},
    {"version: 1\nfunctions: {a: {module: x}, b: {module: x}, c: {module: x}}\nedges:\n"
     "  - {from: input, to: a}\n  - {from: a, to: b}\n  - {from: c, to: a.x}\n"
     "  - {from: b, to: c}\nresult: c\n",
     7, 5, "c -> a -> b -> c", "remove this edge"},
    {HEAD IN "  - {from: input.x, to: b}\nresult: b\n", 7, 12, "'input' has no ports",
     "from: input"},
    {HEAD IN "  - {from: a, to: b.c.d}\nresult: b\n", 7, 19, "'b.c.d'", "FUNCTION.PORT"},
    {HEAD IN "  - {from: a, to: b}\nresult: input\n", 8, 9, "the result", "function"},
    /* halves: f0.x meets a.out at one end, b.out at the other, and those two fill both */
    {"version: 1\nfunctions: {f: {module: x}, a: {module: x}, b: {module: x}}\nedges:\n"
     "  - {from: input, to: f, max: 8MiB}\n  - {from: f, to: a, max: 512MiB}\n"
     "  - {from: a, to: b, max: 512MiB}\n  - {from: f.x, to: b.x, max: 8MiB}\nresult: b\n",
     7, 5, "a large and a small edge cannot share the address space of 'b'", "64MiB"},
    {HEAD "  - {from: input, to: a, max: 65MiB}\n  - {from: a.x, to: b.x, max: 1GiB}\n"
          "  - {from: a.y, to: b.y, max: 1GiB}\nresult: b\n",
     7, 5, "two large edges cannot share the address space of 'a'", "lower `max` to 64MiB"},
    {"version: 1\nfunctions: {a: {module: x, isolation: none}}\nedges: []\nresult: a\n", 2, 39,
     "isolation cannot be 'none'", "a process of its own"},
    {LIMITS("queue_messages: 7, queue_bytes: 2"), 2, 42, "queue_bytes is not a size", "64MiB"},
    {LIMITS("queue_messages: 7, depth: 2"), 2, 29, "'depth'", "queue_messages, queue_bytes"},
    {TWO("process") LETTERS("a", "b", ", attempts: 1000"), 6, 57, "attempts cannot be '1000'",
     "1 to 100"},
    {TWO("process") IN "  - {from: a, to: b, attempts: 2}\nresult: b\n", 6, 32,
     "delivers at most once", "`delivery: at-least-once`"},
    {TWO("worker") LETTERS("a", "b", ""), 6, 32, "from 'a' to 'b': both are in one process",
     "isolate one of the two functions: `isolation: process` for 'a' or 'b'"},
    {TWO("process") "  - {from: input, to: a, delivery: [at-least-once]}\nresult: b\n", 5, 36,
     "delivery must be a text, not a list", "at-most-once"},
};

static void test_positions(void **state)
{
    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(positions); i++) {
        struct rr_workflow *wf = NULL;
        struct rr_error err;

        assert_int_equal(parse(positions[i].text, &wf, &err), RR_E_INVALID);
        assert_null(wf);
        if (err.line != positions[i].line || err.column != positions[i].column ||
            !strstr(err.text, positions[i].says) || !strstr(err.hint, positions[i].hint) ||
            !err.hint[0])
            fail_msg("case %zu: %u:%u: %s (%s)", i, err.line, err.column, err.text, err.hint);
    }
}

static void test_fields(void **state)
{
    struct rr_workflow *wf = good(
        "version: 1\nname: all\nfunctions:\n"
        "  a:\n    module: sub/a.wasm\n    memory: 3MiB\n    deadline: 250ms\n    instances: 4\n"
        "    env: {LEVEL: \"3\", FLAG: true}\n    args: [--fast, \"two words\"]\n"
        "    folders: [{host: data, guest: /data, writable: true}, {host: /abs, guest: /abs}]\n"
        "    calls: [c]\n"
        "  b: {module: /b.wasm, deadline: none}\n  c: {module: c.wasm}\n"
        "edges:\n  - {from: input, to: a.first, max: 2MiB}\n  - {from: a.x, to: b}\nresult: b.y\n");
    const struct rr_function *a = &wf->functions[0];

    (void)state;
    assert_string_equal(wf->name, "all");
    assert_string_equal(a->module, "dir/sub/a.wasm");
    assert_int_equal(a->memory_bytes, 3 * RR_MIB);
    assert_int_equal(a->deadline_ns, 250000000);
    assert_int_equal(a->instances, 4);
    assert_string_equal(a->env[0], "LEVEL=3");
    assert_string_equal(a->env[1], "FLAG=true");
    assert_null(a->env[2]);
    assert_string_equal(a->args[1], "two words");
    assert_int_equal(a->n_folders, 2);
    assert_string_equal(a->folders[0].host, "dir/data");
    assert_true(a->folders[0].writable);
    assert_string_equal(a->folders[1].host, "/abs");
    assert_false(a->folders[1].writable);
    assert_string_equal(a->calls[0], "c");
    assert_string_equal(wf->functions[1].module, "/b.wasm");
    assert_int_equal(wf->functions[1].deadline_ns, 0);
    assert_int_equal(wf->functions[2].deadline_ns, 10000000000);
    assert_int_equal(wf->functions[2].memory_bytes, 256 * RR_MIB);
    assert_int_equal(wf->functions[2].instances, 0);
    assert_int_equal(wf->n_edges, 4);
    assert_int_equal(wf->edges[0].from, RR_NODE_INPUT);
    assert_string_equal(wf->edges[0].to_port, "first");
    assert_int_equal(wf->edges[0].max_bytes, 2 * RR_MIB);
    assert_int_equal(wf->edges[0].slot_bytes, RR_SLOT_SMALL);
    assert_true(wf->edges[2].is_call);
    assert_string_equal(wf->edges[2].from_port, "call:c");
    assert_true(wf->edges[3].is_reply);
    assert_string_equal(wf->edges[3].to_port, "reply:c");
    assert_int_equal(wf->result, 1);
    assert_string_equal(wf->result_port, "y");
    assert_int_equal(rr_workflow_find(wf, "c"), 2);
    assert_int_equal(rr_workflow_find(wf, "d"), -1);
    rr_workflow_free(wf);
}

static void test_delivery(void **state)
{
    static const struct {
        bool linear;
        uint64_t base_ns;
        unsigned int n;
        uint64_t ns;
    } pauses[] = {
        {true, 100, 1, 100},
        {true, 100, 3, 300},
        {false, 100, 1, 100},
        {false, 100, 2, 200},
        {false, 100, 4, 800},
        {false, 100, 0, 0},
        {false, 1000000000, 100, 86400000000000}, /* a day at most */
        {true, 86400000000000, 100, 86400000000000},
        {false, UINT64_MAX, 3, 86400000000000},
    };
    struct rr_workflow *wf =
        good("version: 1\ndelivery: {retry: 4, backoffPolicy: linear, backoffDelay: P1DT1H1M1.5S,\n"
             "  timeout: PT0.000000001S, deadLetterSink: {uri: \"http://x/y\"}}\n"
             "queue: {path: q, bytes: 5MiB, messages: 3, keep: P1W}\n"
             "functions: {a: {module: x}}\nedges: [{from: input, to: a}]\nresult: a\n");

    (void)state;
    assert_int_equal(wf->delivery.retry, 4);
    assert_true(wf->delivery.given && wf->delivery.linear);
    assert_int_equal(wf->delivery.backoff_ns, 90061500000000);
    assert_int_equal(wf->delivery.timeout_ns, 1);
    assert_string_equal(wf->delivery.sink, "http://x/y");
    assert_string_equal(wf->queue.path, "dir/q");
    assert_int_equal(wf->queue.bytes, 5 * RR_MIB);
    assert_int_equal(wf->queue.messages, 3);
    assert_int_equal(wf->queue.keep_ns, 7 * 86400000000000);
    assert_false(wf->queue.always);
    rr_workflow_free(wf);

    wf = good(HEAD IN "  - {from: a, to: b}\nresult: b\n");
    assert_false(wf->delivery.given);
    assert_int_equal(wf->delivery.retry, 0);
    assert_int_equal(wf->delivery.backoff_ns, 1000000000);
    assert_null(wf->queue.path);
    assert_int_equal(wf->queue.bytes, 256 * RR_MIB);
    rr_workflow_free(wf);

    for (size_t n = 0; n < RR_ARRAY_LEN(pauses); n++) {
        struct rr_delivery d = {.linear = pauses[n].linear, .backoff_ns = pauses[n].base_ns};

        assert_int_equal(rr_delivery_backoff_ns(&d, pauses[n].n), pauses[n].ns);
    }
}

static void test_processes(void **state)
{
    static const struct {
        int from, to;
        bool crosses, at_least_once;
        unsigned int attempts;
    } edges[] = {
        {RR_NODE_INPUT, 0, true, true, 5}, /* the parent worker -> a */
        {0, 1, true, true, 3},             /* a -> the parent worker */
        {1, 2, false, false, 1},           /* within it */
        {2, 3, true, false, 1},
        {3, 4, true, true, 1},  /* of two that are isolated */
        {2, 5, true, false, 1}, /* c calls f */
        {5, 2, true, false, 1},
    };
    struct rr_workflow *wf =
        good("version: 1\nisolation: process\ndead_letters: letters/all\n"
             "limits: {queue_messages: 65536, queue_bytes: 1MiB, domain_messages: 7,\n  "
             "domain_bytes: 2MiB}\nfunctions:\n"
             "  a: {module: x}\n  b: {module: x, isolation: worker}\n"
             "  c: {module: x, isolation: worker, calls: [f]}\n  d: {module: x}\n"
             "  e: {module: x, isolation: process}\n  f: {module: x}\nedges:\n"
             "  - {from: input, to: a, delivery: at-least-once, attempts: 5}\n"
             "  - {from: a, to: b, delivery: at-least-once}\n  - {from: b, to: c, max: 1MiB}\n"
             "  - {from: c, to: d, delivery: at-most-once, max: 1MiB}\n"
             "  - {from: d, to: e, attempts: 1, delivery: at-least-once}\nresult: e\n");

    (void)state;
    assert_string_equal(wf->dead_letters, "dir/letters/all");
    assert_int_equal(wf->dead_letters_pos.line, 3);
    assert_int_equal(wf->queue_messages, 65536);
    assert_int_equal(wf->queue_bytes, RR_MIB);
    assert_int_equal(wf->domain_messages, 7);
    assert_int_equal(wf->domain_bytes, 2 * RR_MIB);
    for (size_t i = 0; i < wf->n_functions; i++)
        assert_int_equal(wf->functions[i].isolated, i != 1 && i != 2);
    assert_int_equal(wf->n_edges, RR_ARRAY_LEN(edges));
    for (size_t i = 0; i < wf->n_edges; i++) {
        const struct rr_edge *e = &wf->edges[i];

        if (e->from != edges[i].from || e->to != edges[i].to ||
            rr_edge_crosses(wf, e) != edges[i].crosses ||
            e->at_least_once != edges[i].at_least_once || e->attempts != edges[i].attempts)
            fail_msg("edge %zu: %d -> %d, %d %d %u", i, e->from, e->to, rr_edge_crosses(wf, e),
                     e->at_least_once, e->attempts);
    }
    rr_workflow_free(wf);

    /* what holds without any of these keys */
    wf = good(HEAD IN "  - {from: a, to: b}\nresult: b\n");
    assert_null(wf->dead_letters);
    assert_int_equal(wf->queue_messages, 1024);
    assert_int_equal(wf->queue_bytes, 4 * RR_GIB);
    assert_int_equal(wf->domain_messages, 16384);
    assert_int_equal(wf->domain_bytes, 8 * RR_GIB);
    for (size_t i = 0; i < wf->n_edges; i++)
        assert_false(rr_edge_crosses(wf, &wf->edges[i]));
    rr_workflow_isolate_all(wf);
    assert_true(wf->functions[0].isolated && wf->functions[1].isolated);
    for (size_t i = 0; i < wf->n_edges; i++)
        assert_true(rr_edge_crosses(wf, &wf->edges[i]));
    rr_workflow_free(wf);
}

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a < b + b_len && b < a + a_len;
}

static bool at(const struct rr_edge *e, int f)
{
    return e->to == f || e->from == f;
}

/* Messages that can meet at a function never share addresses; a port's edges always do. */
static void check_layout(const struct rr_workflow *wf)
{
    for (size_t i = 0; i < wf->n_edges; i++) {
        const struct rr_edge *a = &wf->edges[i];

        assert_true(a->window >= RR_WINDOW_BASE && a->window + a->slot_bytes <= RR_WINDOW_END);
        assert_int_equal(a->window % a->slot_bytes, 0);
        assert_true(a->max_bytes > 0 && a->max_bytes <= a->slot_bytes);
        for (size_t k = 0; k < i; k++) {
            const struct rr_edge *b = &wf->edges[k];

            if (a->from == b->from && strcmp(a->from_port, b->from_port) == 0)
                assert_int_equal(a->window, b->window);
            else
                for (int f = 0; f < (int)wf->n_functions; f++)
                    if (at(a, f) && at(b, f) &&
                        !(a->is_call && b->is_call && a->to == f && b->to == f))
                        assert_false(overlap(a->window, a->slot_bytes, b->window, b->slot_bytes));
        }
        if (at(a, wf->result) &&
            !(a->from == wf->result && strcmp(a->from_port, wf->result_port) == 0))
            assert_false(
                overlap(a->window, a->slot_bytes, wf->result_window, wf->result_slot_bytes));
    }
}

static void test_layouts(void **state)
{
    static const struct {
        const char *text;
        uint64_t slot_of_first;
    } cases[] = {
        {HEAD IN "  - {from: a, to: b}\nresult: b\n", RR_SLOT_LARGE},
        {HEAD "  - {from: input, to: a, max: 65MiB}\n  - {from: a, to: b}\nresult: b\n",
         RR_SLOT_LARGE},
        {HEAD "  - {from: input, to: a, max: 64MiB}\n  - {from: a, to: b}\nresult: b\n",
         RR_SLOT_SMALL},
        /* three meet: the undeclared ones must make do with small slots */
        {HEAD IN "  - {from: a.x, to: b.x}\n  - {from: a.y, to: b.y}\nresult: b\n", RR_SLOT_SMALL},
        {HEAD IN "  - {from: a, to: b}\n  - {from: input, to: b.second}\nresult: b\n",
         RR_SLOT_SMALL},
        {HEAD "  - {from: input, to: a, max: 1GiB}\n  - {from: a, to: b, max: 1GiB}\nresult: b\n",
         RR_SLOT_LARGE},
    };

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        struct rr_workflow *wf = good(cases[i].text);

        check_layout(wf);
        if (wf->edges[0].slot_bytes != cases[i].slot_of_first)
            fail_msg("case %zu: a slot of %s", i, rr_bytes_text(wf->edges[0].slot_bytes));
        rr_workflow_free(wf);
    }
}

static void test_large_graphs(void **state)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    struct rr_workflow *wf;

    (void)state;
    fputs("version: 1\nfunctions:\n", f);
    for (int i = 0; i < 200; i++)
        fprintf(f, "  f%d: {module: f.wasm}\n", i);
    fputs("edges:\n  - {from: input, to: f0, max: 64MiB}\n", f);
    for (int i = 1; i < 100; i++)
        fprintf(f, "  - {from: f%d, to: f%d, max: %s}\n", i - 1, i, i % 2 ? "64MiB" : "1GiB");
    for (int i = 100; i < 200; i++)
        fprintf(f, "  - {from: f99, to: f%d}\n", i);
    fputs("result: f199\n", f);
    fclose(f);
    wf = good(text);
    check_layout(wf);
    for (size_t i = 1; i < wf->n_functions; i++) {
        int before = -1, after = -1;

        for (size_t k = 0; k < wf->n_functions; k++) {
            before = wf->order[k] == (i < 100 ? (int)i - 1 : 99) ? (int)k : before;
            after = wf->order[k] == (int)i ? (int)k : after;
        }
        assert_true(before >= 0 && before < after);
    }
    rr_workflow_free(wf);
    free(text);
}

static const struct rr_edge *edge_to(const struct rr_workflow *wf, const char *from, const char *to)
{
    for (size_t i = 0; i < wf->n_edges; i++)
        if (wf->edges[i].from == rr_workflow_find(wf, from) &&
            wf->edges[i].to == rr_workflow_find(wf, to))
            return &wf->edges[i];
    fail_msg("no edge from %s to %s", from, to);
    return NULL;
}

static void test_sharing(void **state)
{
    struct rr_workflow *wf =
        good("version: 1\nfunctions:\n  a: {module: x, calls: [c]}\n  b: {module: x, calls: [c]}\n"
             "  c: {module: x}\n  d: {module: x}\nedges:\n  - {from: input, to: a, max: 5MiB}\n"
             "  - {from: input, to: d, max: 3MiB}\n  - {from: input, to: b.in2}\n"
             "  - {from: a, to: b, max: 1B}\n"
             "  - {from: b, to: d.in2, max: 64MiB}\nresult: d\n");
    const struct rr_edge *ab = edge_to(wf, "a", "b");

    (void)state;
    check_layout(wf);
    assert_int_equal(ab->max_bytes, 1);
    assert_int_equal(ab->slot_bytes, RR_SLOT_SMALL);
    /* one port, so what is declared on one edge holds for all of them */
    for (size_t i = 0; i < 3; i++) {
        assert_true(wf->edges[i].max_declared);
        assert_int_equal(wf->edges[i].max_bytes, 5 * RR_MIB);
    }
    /* whoever called, the answer lies in the same window */
    assert_int_equal(edge_to(wf, "c", "a")->window, edge_to(wf, "c", "b")->window);
    assert_false(edge_to(wf, "a", "c")->max_declared);
    assert_int_equal(edge_to(wf, "a", "c")->max_bytes, edge_to(wf, "a", "c")->slot_bytes);
    rr_workflow_free(wf);

    /* the result alone, and with edges that carry it as well */
    wf = good(HEAD IN "  - {from: a, to: b}\nresult: a\n");
    check_layout(wf);
    assert_int_equal(wf->result_window, edge_to(wf, "a", "b")->window);
    assert_int_equal(wf->result_slot_bytes, edge_to(wf, "a", "b")->slot_bytes);
    rr_workflow_free(wf);
}

/* A callee has one request at a time, so many callers need no more room than one. */
static void test_many_callers(void **state)
{
    struct rr_workflow *wf;
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);

    (void)state;
    fputs("version: 1\nfunctions:\n  c: {module: x}\n", f);
    for (int i = 0; i < 40; i++)
        fprintf(f, "  f%d: {module: x, calls: [c]}\n", i);
    fputs("edges:\n  - {from: input, to: f0}\n", f);
    for (int i = 1; i < 40; i++)
        fprintf(f, "  - {from: f%d, to: f%d}\n", i - 1, i);
    fputs("result: f39\n", f);
    fclose(f);
    wf = good(text);
    free(text);
    check_layout(wf);
    assert_int_equal(wf->order[wf->n_functions - 1], 0);
    rr_workflow_free(wf);
}

/* @n small edges from s to j, and a large one if @large; the input and the result meet them. */
static int crowd(int n, bool large, struct rr_workflow **ret, struct rr_error *err)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    int r;

    fputs("version: 1\nfunctions: {s: {module: x}, j: {module: x}}\nedges:\n"
          "  - {from: input, to: s, max: 64MiB}\n",
          f);
    if (large)
        fputs("  - {from: s.big, to: j.big, max: 65MiB}\n", f);
    for (int i = 0; i < n; i++)
        fprintf(f, "  - {from: s.p%d, to: j.p%d, max: 64MiB}\n", i, i);
    fputs("result: j\n", f);
    fclose(f);
    r = parse(text, ret, err);
    free(text);
    return r;
}

static void test_crowds(void **state)
{
    struct rr_workflow *wf = NULL;
    struct rr_error err;

    (void)state;
    assert_int_equal(crowd(31, false, &wf, &err), 0);
    check_layout(wf);
    rr_workflow_free(wf);
    wf = NULL;
    assert_int_equal(crowd(32, false, &wf, &err), RR_E_INVALID);
    assert_int_equal(err.line, 36);
    assert_non_null(strstr(err.text, "33 messages"));
    assert_non_null(strstr(err.text, "room for 32"));

    assert_int_equal(crowd(15, true, &wf, &err), 0);
    check_layout(wf);
    rr_workflow_free(wf);
    wf = NULL;
    assert_int_equal(crowd(16, true, &wf, &err), RR_E_INVALID);
    assert_non_null(strstr(err.text, "'s.big' (line 5, max 65 MiB)"));
    assert_non_null(strstr(err.text, "room for 16"));
    assert_null(wf);
}

static void test_long_cycle(void **state)
{
    struct rr_workflow *wf = NULL;
    struct rr_error err;
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);

    (void)state;
    fputs("version: 1\nfunctions:\n", f);
    for (int i = 0; i < 40; i++)
        fprintf(f, "  f%d: {module: x}\n", i);
    fputs("edges:\n  - {from: input, to: f0}\n", f);
    for (int i = 0; i < 40; i++)
        fprintf(f, "  - {from: f%d, to: f%d.p}\n", i, (i + 1) % 40);
    fputs("result: f9\n", f);
    fclose(f);
    assert_int_equal(parse(text, &wf, &err), RR_E_INVALID);
    free(text);
    assert_non_null(strstr(err.text,
                           "f0 -> f1 -> f2 -> f3 -> f4 -> ... -> f35 -> f36 -> f37 -> f38 -> "
                           "f39 -> f0"));
    assert_int_equal(err.line, 84);
    assert_int_equal(err.column, 5);
}

static void test_examples(void **state)
{
    static const char *const names[] = {"hello", "tree", "call", "photo"};
    const char *guests = getenv("RR_GUESTS");

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(names); i++) {
        struct rr_workflow *wf = NULL;
        struct rr_error err;
        char path[512];

        snprintf(path, sizeof(path), "%s/examples/%s/workflow.yaml",
                 guests ? guests : "build/guests", names[i]);
        if (rr_workflow_load(path, &wf, &err) != 0)
            fail_msg("%s:%u: %s", err.file, err.line, err.text);
        check_layout(wf);
        rr_workflow_free(wf);
    }
}

static void write_file(const char *folder, const char *name, const char *text)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static void test_files(void **state)
{
#define ONE "version: 1\nfunctions:\n  f:\n    module: "
#define LETTER(path) "dead_letters: " path "\n"
#define END "\nedges: [{from: input, to: f}]\nresult: f\n"
    static const struct {
        const char *text;
        int code;
        unsigned int line, column;
        const char *says;
    } cases[] = {
        {ONE "there.wasm" END, 0, 0, 0, ""},
        {ONE "there.wasm\n    folders: [{host: ., guest: /d, writable: true}]" END, 0, 0, 0, ""},
        {ONE "gone.wasm" END, RR_E_NOINPUT, 4, 13, "gone.wasm"},
        {ONE "there.wasm/x" END, RR_E_NOINPUT, 4, 13, "Not a directory"},
        {ONE "." END, RR_E_NOINPUT, 4, 13, "not a regular file"},
        {ONE "there.wasm\n    folders: [{host: gone, guest: /d}]" END, RR_E_NOINPUT, 5, 22, "gone"},
        {ONE "there.wasm\n    folders: [{host: there.wasm, guest: /d}]" END, RR_E_NOINPUT, 5, 22,
         "not a directory"},
        {ONE "there.wasm" END LETTER("letters"), 0, 0, 0, ""},
        {ONE "there.wasm" END LETTER("there.wasm"), 0, 0, 0, ""},
        {ONE "there.wasm" END LETTER("gone/letters"), RR_E_NOINPUT, 7, 15, "gone/letters"},
        {ONE "there.wasm" END LETTER("letters/"), RR_E_NOINPUT, 7, 15, "No such file"},
        {ONE "there.wasm" END LETTER("there.wasm/x"), RR_E_NOINPUT, 7, 15, "Not a directory"},
        {ONE "there.wasm" END LETTER("."), RR_E_NOINPUT, 7, 15, "not a regular file"},
        {ONE "there.wasm" END LETTER("/dev/null"), RR_E_NOINPUT, 7, 15, "not a regular file"},
    };
    char folder[] = "/tmp/rr-workflow-XXXXXX", path[128], module[128];
    struct rr_workflow *wf = NULL;
    struct rr_error err;

    (void)state;
    assert_int_equal(rr_workflow_load("/nonexistent/flow.yaml", &wf, &err), RR_E_NOINPUT);
    assert_int_equal(rr_workflow_load("/tmp", &wf, &err), RR_E_NOINPUT);
    assert_true(err.hint[0]);

    assert_non_null(mkdtemp(folder));
    write_file(folder, "there.wasm", "");
    snprintf(path, sizeof(path), "%s/flow.yaml", folder);
    snprintf(module, sizeof(module), "%s/there.wasm", folder);
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        int r;

        write_file(folder, "flow.yaml", cases[i].text);
        memset(&err, 0, sizeof(err));
        r = rr_workflow_load(path, &wf, &err);
        if (r != cases[i].code || err.line != cases[i].line || err.column != cases[i].column ||
            !strstr(err.text, cases[i].says) ||
            (r && (!err.hint[0] || strcmp(err.file, path) != 0)))
            fail_msg("case %zu: %d at %s:%u:%u: %s (%s)", i, r, err.file, err.line, err.column,
                     err.text, err.hint);
        rr_workflow_free(wf);
        wf = NULL;
    }
    /* an unreadable module, a folder without room for letters; root may do all */
    if (geteuid() != 0) {
        write_file(folder, "flow.yaml", ONE "there.wasm" END LETTER("letters"));
        assert_int_equal(chmod(folder, 0500), 0);
        assert_int_equal(rr_workflow_load(path, &wf, &err), RR_E_NOINPUT);
        assert_int_equal(err.line, 7);
        assert_non_null(strstr(err.text, "Permission denied"));
        assert_int_equal(chmod(folder, 0700), 0);
        assert_int_equal(chmod(module, 0), 0);
        write_file(folder, "flow.yaml", ONE "there.wasm" END);
        assert_int_equal(rr_workflow_load(path, &wf, &err), RR_E_NOINPUT);
        assert_int_equal(err.line, 4);
    }
    unlink(module);
    unlink(path);
    rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mistakes),     cmocka_unit_test(test_positions),
        cmocka_unit_test(test_fields),       cmocka_unit_test(test_delivery),
        cmocka_unit_test(test_processes),    cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_sharing),      cmocka_unit_test(test_many_callers),
        cmocka_unit_test(test_crowds),       cmocka_unit_test(test_long_cycle),
        cmocka_unit_test(test_large_graphs), cmocka_unit_test(test_examples),
        cmocka_unit_test(test_files),
    };

    return cmocka_run_group_tests_name("workflow", tests, NULL, NULL);
}
