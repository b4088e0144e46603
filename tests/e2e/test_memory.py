# SPDX-License-Identifier: Apache-2.0
"""Messages keep their address, owners lose them, nobody sees another's copy."""

import struct

import pytest
from conftest import KIB, MIB, edge

SIZES = [8, 4 * KIB, 256 * KIB, 256 * KIB + 8, 2 * MIB, 3 * MIB + 4096, 64 * MIB]
LARGE = [200 * MIB, 1024 * MIB]


def u64(*values):
    return struct.pack(f"<{len(values)}Q", *values)


@pytest.mark.parametrize("size", SIZES + LARGE)
@pytest.mark.parametrize("instances", ["fresh", 1])
def test_pointers_stay_valid(rr, size, instances):
    last = {"module": "ptr_check", "env": {"LAST": "1"}, "instances": instances}
    functions = {
        "make": {"module": "ptr_make", "instances": instances},
        "a": {"module": "ptr_check", "instances": instances},
        "b": {"module": "ptr_check", "instances": instances},
        "last": last,
    }
    r = rr.chain(functions, u64(size), "--repeat", 1 if size > 64 * MIB else 3, max="1GiB")
    assert r.status == 0, r
    assert r.out.startswith(b"at 0x"), r


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("several", [False, True])
def test_sender_loses_access(rr, size, several):
    edges = [("input", "send", "64MiB"), ("send", "check", "64MiB")]
    functions = {"send": "after_send", "check": "all_equal"}
    if several:
        functions.update(other="all_equal", both="concat")
        edges += [
            ("send", "other", "64MiB"),
            ("check", "both.a", "64MiB"),
            ("other", "both.b", "64MiB"),
        ]
    secret = 0x5EC12E7_5EC12E7
    r = rr.flow(functions, edges, "both" if several else "check", u64(size, secret))
    assert r.status == 0, r


@pytest.mark.parametrize("size", [1000, 300 * KIB, 5 * MIB])
@pytest.mark.parametrize("n", [2, 7])
def test_fan_out_is_isolated(rr, size, n):
    """Each receiver writes over its message; all still see the original."""
    data = bytes(i * 7 % 251 for i in range(997)) * (size // 997 + 1)
    data = data[:size]
    functions = {f"m{i}": "mutate" for i in range(n)} | {"join": "concat"}
    edges = [edge("input", f"m{i}", "64MiB") for i in range(n)]
    edges += [edge(f"m{i}", f"join.p{i}", "64MiB") for i in range(n)]
    r = rr.flow(functions, edges, "join", data)
    assert r.status == 0, r
    want = b"".join(f"p{i}=".encode() + u64(sum(data)) + b"\n" for i in range(n))
    assert r.out == want


def test_fan_out_after_a_forward(rr):
    """A forwarded input that fans out, and views that are forwarded further."""
    data = bytes(range(256)) * 4 * KIB
    functions = {"pass": "echo", "a": "upper", "b": "mutate", "join": "concat"}
    edges = [
        edge("input", "pass", "64MiB"),
        edge("pass", "a", "64MiB"),
        edge("pass", "b", "64MiB"),
        edge("a", "join.a", "64MiB"),
        edge("b", "join.b", "64MiB"),
    ]
    r = rr.flow(functions, edges, "join", data)
    assert r.status == 0, r
    assert r.out == b"a=" + data.upper() + b"\nb=" + u64(sum(data)) + b"\n"


def test_split_and_join_keep_the_order_of_the_file(rr):
    functions = {"split": "split", "join": "concat"}
    edges = [
        ("input", "split", "64MiB"),
        edge("split.b", "join.second", "64MiB"),
        edge("split.a", "join.first", "64MiB"),
    ]
    r = rr.flow(functions, edges, "join", b"leftright!")
    assert r.status == 0, r
    assert r.out == b"second=ight!\nfirst=leftr\n" or r.out.startswith(b"second="), r


@pytest.mark.parametrize("size", [3, 1 * MIB])
def test_kept_input_survives(rr, size):
    function = {"module": "keep", "instances": 1}
    r = rr.chain({"keep": function}, b"k" * size, "--repeat", 3)
    assert r.status == 0, r
    assert r.out == b"3 " + b"k" * size


def test_fresh_instances_forget(rr):
    assert rr.chain({"count": "count"}, b"", "--repeat", 5).out == b"1"
    assert rr.chain({"count": {"module": "count", "instances": 1}}, b"", "--repeat", 5).out == b"5"


def test_large_heap_beside_windows(rr):
    function = {"module": "heap", "memory": "512MiB", "env": {"HEAP_MIB": "200"}}
    r = rr.chain({"heap": function}, b"x" * MIB)
    assert r.status == 0, r
    low, high = map(int, r.out.split())
    assert low < 1 << 30 or high >= 3 << 30


def test_gap_below_the_windows(rr):
    """The guest traps there; a pointer into it does the host no harm."""
    r = rr.chain({"gap": "gap"}, b"", "--repeat", 5)
    assert (r.status, r.out) == (0, b"+"), r
    r = rr.chain({"gap": {"module": "gap", "env": {"CASE": "load"}}}, b"")
    assert r.status == 70, r
    assert "out of bounds memory access" in r.err


@pytest.mark.parametrize("module", ["big_data", "big_bss"])
def test_large_data_segments(rr, module):
    r = rr.chain({"f": {"module": module, "memory": "400MiB"}}, b"input")
    assert r.status == 0 and r.out, r


@pytest.mark.parametrize("text", [b"", b"some text", b"v" * 60000])
def test_metadata_travels(rr, text):
    r = rr.chain({"set": "meta_set", "get": "meta_get"}, text)
    assert r.status == 0, r
    assert r.out == text


@pytest.mark.parametrize("size", [5, 1 * MIB])
@pytest.mark.parametrize("instances", ["fresh", 1])
def test_calls(rr, size, instances):
    functions = {
        "caller": {"module": "caller", "calls": ["callee"]},
        "callee": {"module": "upper", "instances": instances},
    }
    r = rr.flow(functions, [edge("input", "caller", "64MiB")], "caller", b"abc" * size)
    assert r.status == 0, r
    assert r.out == b"ABC" * size * 2


def test_call_of_a_function_that_fails(rr):
    functions = {
        "caller": {"module": "caller", "calls": ["callee"]},
        "callee": {"module": "bad", "env": {"CASE": "fail"}},
    }
    r = rr.flow(functions, [edge("input", "caller", "64MiB")], "caller", b"abc")
    assert (r.status, r.out) == (0, b"status 7"), r


def test_call_of_a_function_that_traps(rr):
    functions = {
        "caller": {"module": "caller", "calls": ["callee"]},
        "callee": {"module": "bad", "env": {"CASE": "trap"}},
    }
    r = rr.flow(functions, [edge("input", "caller", "64MiB")], "caller", b"abc", "--json")
    assert r.status == 70, r
    assert "function 'callee'" in r.err and "function 'caller'" not in r.err
    assert r.report["memory"]["live_regions"] == 0
