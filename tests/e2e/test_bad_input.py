# SPDX-License-Identifier: Apache-2.0
"""Hostile and broken input: a named cause, a remedy, an exit status, nothing leaked."""

import ctypes
import os
import resource
import signal
import subprocess
import time

import pytest
from conftest import BIN, MIB, SLOW, edge, guest

# case of bad.c: exit status, words of the message
GUEST = {
    "trap": (70, "unreachable"),
    "divide": (70, "divide by zero"),
    "load": (70, "out of bounds memory access"),
    "loop": (72, "stopped at its deadline"),
    "exhaust-malloc": (70, "status 12"),
    "exhaust-touch": (70, "status 12"),
    "exhaust-grow": (71, "memory limit"),
    "recurse-memory": (70, "out of bounds memory access"),
    "recurse-stack": (71, "call stack is exhausted"),
    "send-out-of-bounds": (70, "owns no message at 0xfffff000"),
    "send-null": (70, "owns no message at 0x0"),
    "send-half": (70, "owns no message"),
    "send-heap": (70, "owns no message"),
    "send-hole": (70, "owns no message at 0x7ff00000"),
    "send-twice": (70, "owns no message"),
    "send-after-drop": (70, "owns no message"),
    "send-dropped-input": (70, "owns no message"),
    "send-too-long": (71, "takes at most"),
    "send-huge": (71, "takes at most"),
    "drop-twice": (70, "message_drop: it owns no message"),
    "keep-sent": (70, "message_keep: it owns no message"),
    "port-unknown": (65, "no port 'nowhere'"),
    "port-unknown-alloc": (65, "no port 'nowhere'"),
    "port-out-of-bounds": (65, "64 bytes"),
    "port-huge": (65, "bytes"),
    "alloc-too-long": (71, "takes at most"),
    "alloc-huge": (71, "takes at most"),
    "meta-value-too-large": (71, "more than 64 KiB"),
    "meta-sum-too-large": (71, "more than 64 KiB"),
    "meta-out-of-bounds": (70, "outside of its memory"),
    "meta-of-sent": (70, "meta_set: it owns no message"),
    "input-out-of-bounds": (70, "outside of its memory"),
    "log-out-of-bounds": (70, "outside of its memory"),
    "call-unknown": (65, "it may not call 'nobody'"),
    "call-wrong-buffer": (65, "it may not call 'nobody'"),
    "trap-after-send": (70, "unreachable"),
    "no-send": (70, "without sending"),
    "no-send-owning": (70, "without sending"),
    "fail": (70, "status 7"),
    "fail-log": (70, "status 7"),
    "fail-negative": (70, "status -3"),
    "fail-after-send": (70, "status 7"),
    "exit": (70, "exit status 5"),
}


@pytest.mark.parametrize("instances", ["fresh", 2])
@pytest.mark.parametrize("case", GUEST)
def test_bad_guest(rr, case, instances):
    status, words = GUEST[case]
    functions = {
        "good": "echo",
        "bad": {
            "module": "bad",
            "env": {"CASE": case},
            "deadline": "300ms" if case == "loop" else "60s",
            "memory": "64MiB",
            "instances": instances,
        },
        "next": "echo",
    }
    r = rr.chain(functions, b"x" * (MIB // 2), "--json")
    assert r.status == status, r
    assert "error: function 'bad': " in r.err and words in r.err, r
    assert "hint: " in r.err
    assert r.out == b""
    memory = r.report["memory"]
    assert memory["live_regions"] == 0 and memory["live_bytes"] == 0
    assert r.report["error"]["exit_status"] == status


def test_the_other_functions_are_unaffected(rr):
    """The same worker goes on after a failure: the second run of a repeat would fail alike."""
    r = rr.chain({"a": {"module": "bad", "env": {"CASE": "none"}}}, b"fine", "--repeat", 3)
    assert (r.status, r.out) == (0, b"fine"), r


def test_deadline_is_kept_within_10_ms(rr):
    function = {"module": "bad", "env": {"CASE": "loop"}, "deadline": "100ms"}
    path = rr.workflow({"bad": function}, [edge("input", "bad")], "bad")
    rr("compile", path)
    overs = []
    for _ in range(5):
        begin = time.monotonic()
        r = rr("run", path)
        overs.append(time.monotonic() - begin - 0.1)
        assert r.status == 72, r
    # process start and end included
    assert min(overs) < 0.060 * SLOW, overs


# --- modules -----------------------------------------------------------------------------------


def wasm(case):
    good = guest("echo").read_bytes()
    return {
        "empty": b"",
        "text": b"#!/bin/sh\necho hello\n",
        "truncated": good[: len(good) // 2],
        "magic only": b"\0asm",
        "version": b"\0asm\2\0\0\0" + good[8:],
        "component": b"\0asm\x0d\0\1\0",
        "elf": open(BIN, "rb").read(4096),
        "flipped": good[:200] + bytes(b ^ 0xFF for b in good[200:260]) + good[260:],
    }[case]


@pytest.mark.parametrize(
    "case, words",
    [
        ("empty", "not a WebAssembly module"),
        ("text", "not a WebAssembly module"),
        ("truncated", "does not compile"),
        ("magic only", "not a WebAssembly module"),
        ("version", "unknown WebAssembly version"),
        ("component", "is a component"),
        ("elf", "compiled code"),
        ("flipped", "module"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check", "explain"])
def test_broken_module(rr, tmp_path, case, words, command):
    module = tmp_path / "broken.wasm"
    module.write_bytes(wasm(case))
    path = rr.workflow({"f": {"module": str(module)}}, [edge("input", "f")], "f")
    r = rr(command, path)
    assert r.status == 65, r
    assert words in r.err and "broken.wasm" in r.err and "flow.yaml:" in r.err and "hint: " in r.err


@pytest.mark.parametrize(
    "module, status, words",
    [
        ("no_abi", 65, "no function ABI"),
        ("no_memory", 65, "memory"),
        ("wrong_type", 65, "roadrunner_handle"),
        ("unknown_import", 65, "unknown import"),
        ("future_abi", 65, "version"),
        ("start_trap", 70, "unreachable"),
        ("start_loop", 72, "deadline"),
    ],
)
def test_module_that_does_not_fit(rr, module, status, words):
    function = {"module": module, "deadline": "300ms"}
    r = rr.chain({"f": function}, b"")
    assert r.status == status, r
    assert "function 'f'" in r.err and words in r.err and "hint: " in r.err


def test_memory_limit_below_the_module(rr):
    r = rr.chain({"f": {"module": "big_bss", "memory": "64KiB"}}, b"")
    assert r.status == 71, r
    assert "function 'f'" in r.err and "over the limit of 64 KiB" in r.err


# --- files -------------------------------------------------------------------------------------


@pytest.fixture
def echo(rr):
    return rr.workflow({"f": "echo"}, [edge("input", "f", "1MiB")], "f")


@pytest.mark.parametrize(
    "name, status, words",
    [
        ("missing", 66, "No such file"),
        (".", 66, "folder"),
    ],
)
def test_unreadable_input(rr, echo, tmp_path, name, status, words):
    r = rr("run", echo, "-i", tmp_path / name)
    assert r.status == status, r
    assert words in r.err and "hint: " in r.err


def drop_dac():
    """Root may read everything; without these capabilities only what the modes say."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_forbidden_input(rr, echo, tmp_path):
    path = tmp_path / "forbidden"
    path.write_bytes(b"x")
    path.chmod(0)
    r = rr("run", echo, path, preexec_fn=drop_dac)
    assert r.status == 66, r
    assert "Permission denied" in r.err and "forbidden" in r.err and "hint: " in r.err


def test_input_beyond_the_edge(rr, echo, tmp_path):
    (tmp_path / "big").write_bytes(b"b" * (MIB + 1))
    for r in (
        rr("run", echo, tmp_path / "big"),
        rr("run", echo, stdin=b"b" * (MIB + 1)),
    ):
        assert r.status == 71, r
        assert "at most 1 MiB" in r.err and "flow.yaml:" in r.err
    assert rr("run", echo, stdin=b"b" * MIB).out == b"b" * MIB


def test_disk_full(rr, echo):
    r = rr("run", echo, "-o", "/dev/full", stdin=b"text")
    assert r.status == 74, r
    assert "No space left" in r.err and "/dev/full" in r.err and "hint: " in r.err
    with open("/dev/full", "wb") as full:
        p = subprocess.run(
            [BIN, "run", echo], input=b"text", stdout=full, stderr=subprocess.PIPE, env=rr.env
        )
    assert p.returncode == 74, p.stderr


def test_disk_quota(rr, echo, tmp_path):
    """A file that cannot grow: the result is not left half written."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    rr("compile", echo)
    out = tmp_path / "out"
    r = rr("run", echo, "-o", out, stdin=b"x" * MIB, preexec_fn=limit)
    assert r.status == 74, r
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith("out")]


def test_output_folder_missing(rr, echo, tmp_path):
    r = rr("run", echo, "-o", tmp_path / "no/out", stdin=b"x")
    assert r.status == 74, r
    assert "no/out" in r.err


def test_closed_pipe(rr, echo):
    p = subprocess.Popen(
        [BIN, "run", echo, "-q"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=rr.env,
    )
    p.stdout.close()
    _, err = p.communicate(b"x" * MIB, timeout=60 * SLOW)
    assert p.returncode == 74, err


def test_result_replaces_the_file_whole(rr, echo, tmp_path):
    out = tmp_path / "out"
    out.write_bytes(b"old" * 1000)
    assert rr("run", echo, "-o", out, stdin=b"new").status == 0
    assert out.read_bytes() == b"new"
    assert os.stat(out).st_mode & 0o777 == 0o644


# --- Ctrl-C ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_while_a_guest_runs(rr, tmp_path, number):
    function = {"module": "bad", "env": {"CASE": "loop"}, "deadline": "none"}
    path = rr.workflow({"bad": function}, [edge("input", "bad")], "bad")
    rr("compile", path)
    p = subprocess.Popen(
        [BIN, "run", path, "-o", tmp_path / "out", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=rr.env,
    )
    time.sleep(0.5 * SLOW)
    assert p.poll() is None
    p.send_signal(number)
    out, err = p.communicate(timeout=20 * SLOW)
    assert p.returncode == 130, err
    assert b"interrupted" in err
    assert b'"live_regions": 0' in out
    assert not [x.name for x in tmp_path.iterdir() if x.name.startswith("out")]


def test_interrupt_while_reading(rr, echo):
    p = subprocess.Popen(
        [BIN, "run", echo],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=rr.env,
    )
    time.sleep(0.5 * SLOW)
    p.send_signal(signal.SIGINT)
    assert p.wait(timeout=20 * SLOW) == 130
    p.stdin.close()


# --- workflow and command line -----------------------------------------------------------------


@pytest.mark.parametrize(
    "text, status, words",
    [
        ("", 65, "empty"),
        ("version: 2\n", 65, "version"),
        ("version: 1\nfunctions: [\n", 65, ":"),
        ("\0\1\2", 65, ":"),
        (
            "version: 1\nfunctions: {f: {module: nowhere.wasm}}\nedges: [{from: input, to: f}]\nresult: f\n",
            66,
            "nowhere.wasm",
        ),
        (
            "version: 1\nfunctions: {f: {module: flow.yaml}}\nedges: [{from: input, to: g}]\nresult: f\n",
            65,
            "'g'",
        ),
        (
            "version: 1\nfunctions: {a: {module: flow.yaml}, b: {module: flow.yaml}}\n"
            "edges: [{from: input, to: a}, {from: a, to: b}, {from: b, to: a.back}]\nresult: b\n",
            65,
            "cycle",
        ),
    ],
)
def test_workflow_mistakes(rr, tmp_path, text, status, words):
    path = tmp_path / "flow.yaml"
    path.write_text(text)
    for command in ("run", "check", "explain"):
        r = rr(command, path)
        assert r.status == status, r
        assert words in r.err and "flow.yaml:" in r.err and "hint: " in r.err, r


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["fly"],
        ["run"],
        ["run", "a", "b", "c"],
        ["run", "a", "--repeat", "0"],
        ["run", "a", "--repeat", "-1"],
        ["run", "a", "--repeat", "many"],
        ["run", "a", "--nonsense"],
        ["check"],
        ["explain"],
        ["inspect"],
        ["compile"],
        ["bench", "--sizes", "2GiB"],
        ["bench", "--sizes", "-1"],
        ["bench", "--repeat", "0"],
        ["bench", "x"],
    ],
)
def test_usage(rr, args):
    r = rr(*args)
    assert r.status == 64, r
    assert r.out == b"" and r.err


def test_full_stdout_of_help(rr):
    with open("/dev/full", "wb") as full:
        p = subprocess.run([BIN, "--version"], stdout=full, stderr=subprocess.PIPE)
    assert p.returncode == 74
