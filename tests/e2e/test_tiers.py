# SPDX-License-Identifier: Apache-2.0
"""The buffer and stdio tiers, alone and mixed with the window tier."""

import pytest
from conftest import KIB, MIB, guest

TEXT = b"The quick brown fox jumps over the lazy dog. "
UPPER = {"window": "upper", "buffer": "buf_upper", "stdio": "stdio_upper"}
SIZES = [0, 1, 4095, 256 * KIB, 256 * KIB + 1, 5 * MIB + 3]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("a", UPPER)
@pytest.mark.parametrize("b", UPPER)
@pytest.mark.parametrize("c", UPPER)
def test_any_tier_after_any(rr, a, b, c, size):
    data = (TEXT * (size // len(TEXT) + 1))[:size]
    r = rr.chain({"a": UPPER[a], "b": UPPER[b], "c": UPPER[c]}, data)
    assert r.status == 0, r
    assert r.out == data.upper()


@pytest.mark.parametrize("tier", UPPER)
@pytest.mark.parametrize("size", [100, 1 * MIB])
def test_fan_out_from_and_to(rr, tier, size):
    data = (TEXT * (size // len(TEXT) + 1))[:size]
    functions = {
        "a": UPPER[tier],
        "b": UPPER[tier],
        "c": "echo",
        "join": "concat",
    }
    edges = [
        ("input", "a", "64MiB"),
        ("a", "b", "64MiB"),
        ("a", "c", "64MiB"),
        ("b", "join.b", "64MiB"),
        ("c", "join.c", "64MiB"),
    ]
    r = rr.flow(functions, edges, "join", data)
    assert r.status == 0, r
    assert r.out == b"b=" + data.upper() + b"\nc=" + data.upper() + b"\n"


@pytest.mark.parametrize("module", ["buf_host", "buf_connect"])
@pytest.mark.parametrize("size", [10, 1 * MIB])
def test_prototype_imports_send(rr, module, size):
    r = rr.chain({"a": module, "b": "buf_upper"}, b"q" * size)
    assert r.status == 0, r
    assert r.out == b"Q" * size


def test_buffer_tier_swaps_pages(rr):
    r = rr.chain({"a": "buf_upper", "b": "buf_upper"}, b"z" * (20 * MIB + 5), "--json")
    assert r.status == 0, r
    hop = next(h for h in r.report["hops"] if h["to"] == "b")
    assert hop["path"] == "swap"
    assert hop["copied_bytes"] < 4 * 4096
    assert r.report["memory"]["live_regions"] == 0


@pytest.mark.parametrize("case", ["b", "w", "o"])
def test_lying_buffer_guest(rr, case):
    r = rr.chain({"a": "buf_bad"}, case.encode(), "--json")
    assert r.status == 70, r
    assert "function 'a'" in r.err and "outside of its memory" in r.err
    assert r.report["memory"]["live_regions"] == 0


def test_reused_buffer_instance(rr):
    r = rr.chain({"a": {"module": "buf_upper", "instances": 1}}, b"r" * (3 * MIB), "--repeat", 20)
    assert r.status == 0, r
    assert r.out == b"R" * (3 * MIB)


def test_stdio_exit_status(rr):
    r = rr.chain({"a": "stdio_fail"}, b"")
    assert r.status == 70, r
    assert "status 3" in r.err and "made of cheese" in r.err
    assert r.out == b""


def test_silent_command_sends_an_empty_message(rr):
    r = rr.chain({"a": "stdio_silent"}, b"text")
    assert (r.status, r.out) == (0, b""), r


def test_stdio_output_beyond_the_slot(rr):
    r = rr.flow(
        {"a": "stdio_upper", "b": "echo"},
        [("input", "a", "64MiB"), ("a", "b", "1MiB")],
        "b",
        b"x" * (2 * MIB),
        "--json",
    )
    assert r.status == 71, r
    assert "port 'out' takes at most 1 MiB" in r.err
    assert r.report["memory"]["live_regions"] == 0


def test_stdio_takes_one_input(rr):
    r = rr.flow(
        {"a": "echo", "b": "stdio_upper"},
        [("input", "a"), ("input", "b.in"), ("a", "b.second")],
        "b",
        b"",
    )
    assert r.status == 65, r
    assert "stdio tier, which has one input" in r.err


@pytest.mark.parametrize(
    "module, tier, why",
    [
        ("echo", "window", "roadrunner_handle"),
        ("buf_upper", "buffer", "allocate_memory"),
        ("stdio_upper", "stdio", "_start"),
    ],
)
def test_inspect(rr, module, tier, why):
    r = rr("inspect", guest(module))
    assert r.status == 0, r
    assert f"tier    {tier}: " in r.out.decode()
    assert why in r.out.decode()
