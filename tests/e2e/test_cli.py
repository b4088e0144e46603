# SPDX-License-Identifier: Apache-2.0
"""The command line: what scripts and people get."""

import ctypes
import json
import os
import struct
import subprocess
import xml.etree.ElementTree as ET

import pytest
from conftest import BIN, GUESTS, MIB, ROOT, edge, guest

PHOTO = GUESTS / "examples/photo/workflow.yaml"


def test_version_and_help(rr):
    assert b"roadrunner " in rr("--version").out and b"wasmtime 48" in rr("--version").out
    assert b"Commands:" in rr("--help").out
    for command in ("run", "serve", "check", "explain", "inspect", "compile", "bench"):
        text = rr(command, "--help").out
        assert text.startswith(f"Usage: roadrunner {command}".encode())
        assert rr("help", command).out == text


def test_check(rr):
    r = rr("check", PHOTO)
    assert r.status == 0 and b"5 functions, 6 edges" in r.out, r
    assert json.loads(rr("check", PHOTO, "--json").out) == {
        "workflow": "photo",
        "functions": 5,
        "edges": 6,
    }


def test_explain_text_and_json(rr):
    text = rr("explain", PHOTO).out.decode()
    assert "decode.raw -> resize" in text and "view" in text
    graph = json.loads(rr("explain", PHOTO, "--json").out)
    assert [f["name"] for f in graph["functions"]] == [
        "decode",
        "resize",
        "histogram",
        "join",
        "encode",
    ]
    assert all(f["tier"] == "window" for f in graph["functions"])
    assert len(graph["edges"]) == 6
    raw = [e for e in graph["edges"] if e["from"] == "decode.raw"]
    assert raw[0]["window"] == raw[1]["window"] and raw[0]["slot_bytes"] == 1 << 30


def test_explain_svg_is_well_formed(rr, tmp_path):
    path = tmp_path / "graph.svg"
    assert rr("explain", PHOTO, "--svg", path).status == 0
    root = ET.parse(path).getroot()
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"input", "result", "decode", "resize", "histogram", "join", "encode"} <= set(texts)


def test_explain_calls(rr):
    graph = json.loads(rr("explain", GUESTS / "examples/call/workflow.yaml", "--json").out)
    assert {"call:price", "reply:price"} <= {
        part.partition(".")[2] for e in graph["edges"] for part in (e["from"], e["to"])
    }


def test_explain_processes(rr):
    path = rr.workflow(
        {"a": "echo", "b": {"module": "echo", "isolation": "process"}, "c": "echo"},
        [
            edge("input", "a"),
            {**edge("a", "b"), "delivery": "at-least-once"},
            edge("b", "c"),
        ],
        "c",
    )
    graph = json.loads(rr("explain", path, "--json").out)
    assert [f["isolation"] for f in graph["functions"]] == ["worker", "process", "worker"]
    assert [(e["channel"], e["delivery"]) for e in graph["edges"]] == [
        ("user", "at-most-once"),
        ("kernel", "at-least-once"),
        ("kernel", "at-most-once"),
    ]
    functions, edges = rr("explain", path).out.decode().split("\n\n")[1:3]
    assert [line.split()[-1] for line in functions.splitlines()] == [
        "isolation",
        "worker",
        "process",
        "worker",
    ]
    assert [line.split()[3] for line in edges.splitlines()[1:]] == ["user", "kernel", "kernel"]
    root = ET.fromstring(rr("explain", path, "--svg", "-").out)
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text") if t.text]
    assert [t.split(", ")[1] for t in texts if "\u2192" in t and ", " in t] == [
        "user",
        "kernel",
        "kernel",
    ]


def test_json_errors(rr, tmp_path):
    path = rr.workflow({"f": "echo"}, [edge("input", "g")], "f")
    for command in ("run", "check", "explain"):
        extra = ["-o", tmp_path / "out"] if command == "run" else []
        r = rr(command, path, "--json", *extra)
        error = json.loads(r.out)["error"]
        assert error["code"] == "invalid" and error["exit_status"] == r.status == 65
        assert error["line"] > 1 and error["column"] > 1 and error["hint"] and error["text"]


def test_run_json_goes_where_the_result_does_not(rr, tmp_path):
    path = rr.workflow({"f": "echo"}, [edge("input", "f")], "f")
    r = rr("run", path, "--json", stdin=b"abc")
    assert r.out == b"abc"
    assert r.report["hops"][0]["payload_bytes"] == 3
    r = rr("run", path, "--json", "-o", tmp_path / "out", stdin=b"abc")
    assert json.loads(r.out)["result_bytes"] == 3


def test_hop_table(rr):
    r = rr("run", rr.workflow({"f": "echo"}, [edge("input", "f", "64MiB")], "f"), stdin=b"x" * MIB)
    head, row = r.err.splitlines()[:2]
    assert head.split() == ["hop", "payload", "channel", "tier", "path", "hand-off", "copied"]
    assert row.split()[:3] == ["input", "->", "f"] and "1 MiB" in row and row.endswith("0 B")
    assert "\033" not in r.err
    assert rr("run", rr.folder / "flow.yaml", "-q", stdin=b"x").err == ""


def test_logs_of_functions(rr):
    path = rr.workflow({"p": "print"}, [edge("input", "p")], "p")
    lines = rr("run", path, stdin=b"abc").err.splitlines()
    for line in (
        "p: stdout of 3 bytes",
        "p: warning: stderr line",
        "p: warning: stderr without an end",
        "p: error: log error",
        "p: warning: log warn",
        "p: log info",
    ):
        assert line in lines
    assert "p: debug: log debug" not in lines
    assert "p: debug: log debug" in rr("run", path, "-v", stdin=b"abc").err
    assert "log warn" not in rr("run", path, "-q", stdin=b"abc").err


def test_log_cannot_forge_lines_or_colours(rr, tmp_path):
    r = rr("check", tmp_path / "a\033[31mb\nroadrunner: error: forged")
    assert "\033" not in r.err and "\nroadrunner: error: forged" not in r.err


def test_trace_is_chromes_format(rr, tmp_path):
    trace = tmp_path / "t.json"
    path = rr.workflow({"a": "echo", "b": "upper"}, [edge("input", "a"), edge("a", "b")], "b")
    assert rr("run", path, "--trace", trace, "--repeat", "3", stdin=b"x").status == 0
    events = json.loads(trace.read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X" and e["cat"] == "function"]
    assert [s["name"] for s in spans] == ["a", "b"] * 3
    assert all(s["dur"] > 0 for s in spans)
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert len(starts) == 6 and starts.keys() == ends.keys()
    assert all(ends[k]["ts"] >= starts[k]["ts"] for k in starts)
    assert rr("run", path, "--trace", tmp_path / "no/t.json", stdin=b"x").status == 74


def test_repeat_of_stdin(rr):
    path = rr.workflow({"f": "echo"}, [edge("input", "f", "64MiB")], "f")
    r = rr("run", path, "--repeat", "4", "--json", stdin=b"y" * (3 * MIB))
    assert r.out == b"y" * (3 * MIB)
    assert r.report["runs"] == 4 and r.report["hops"][0]["messages"] == 4


def test_wasi_args_env_folders(rr, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "in.txt").write_text("from the host")
    function = {
        "module": "wasi",
        "args": ["--fast", "a b"],
        "env": {"COLOUR": "red", "READ_FILE": "/data/in.txt", "WRITE_FILE": "/data/out.txt"},
        "folders": [{"host": "data", "guest": "/data", "writable": True}],
    }
    r = rr.chain({"w": function})
    lines = r.out.decode().splitlines()
    assert lines[:3] == ["arg w", "arg --fast", "arg a b"], r
    assert "env COLOUR=red" in lines and "read /data/in.txt: from the host" in lines
    assert (data / "out.txt").read_text() == "written by the guest\n"
    assert not [line for line in lines if line.startswith("env HOME")]


@pytest.mark.parametrize("path", ["/data/../../secret", "/secret", "../secret", "/data/link"])
def test_wasi_sandbox(rr, tmp_path, path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").write_text("hidden")
    os.symlink(tmp_path / "secret", tmp_path / "data/link")
    function = {
        "module": "wasi",
        "env": {"READ_FILE": path, "WRITE_FILE": "/data/new"},
        "folders": [{"host": "data", "guest": "/data"}],
    }
    r = rr.chain({"w": function})
    assert r.status == 0, r
    assert b"hidden" not in r.out
    assert not (tmp_path / "data/new").exists(), "a read-only folder was written to"


def test_inspect_json_and_failure(rr, tmp_path):
    (tmp_path / "x.wasm").write_bytes(b"nonsense")
    r = rr("inspect", "--json", guest("echo"), tmp_path / "x.wasm", guest("no_abi"))
    assert r.status == 65
    good, broken, unfit = json.loads(r.out)
    assert (
        good["tier"] == "window" and {"name": "roadrunner_abi", "kind": "func"} in good["exports"]
    )
    assert broken["error"]["code"] == "invalid" and "error" in unfit and unfit["exports"]


# --- the cache ---------------------------------------------------------------------------------


@pytest.fixture
def own_cache(rr, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    rr.env["ROADRUNNER_CACHE_DIR"] = str(folder)
    return folder


def cached(rr, path):
    return rr("run", path, "--json", stdin=b"x").report["functions"][0]["cache"]


def damage(data, how):
    middle = len(data) // 2
    return {
        "empty": b"",
        "short": data[:middle],
        "long": data + b"x",
        "head": b"X" + data[1:],
        "middle": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "end": data[:-1] + bytes([data[-1] ^ 0x80]),
        "other": open(BIN, "rb").read(100000),
    }[how]


@pytest.mark.parametrize("how", ["empty", "short", "long", "head", "middle", "end", "other"])
def test_damaged_image_is_rebuilt(rr, own_cache, how):
    path = rr.workflow({"f": "echo"}, [edge("input", "f")], "f")
    assert cached(rr, path) == "miss"
    assert cached(rr, path) == "hit"
    (entry,) = [p for p in own_cache.iterdir() if p.is_file()]
    good = entry.read_bytes()
    entry.write_bytes(damage(good, how))
    assert cached(rr, path) == "rebuilt"
    assert entry.read_bytes() == good or cached(rr, path) == "hit"


def test_image_of_another_module_is_not_run(rr, own_cache):
    a = rr.workflow({"f": "echo"}, [edge("input", "f")], "f", "a.yaml")
    assert cached(rr, a) == "miss"
    (first,) = [p for p in own_cache.iterdir() if p.is_file()]
    b = rr.workflow({"f": "upper"}, [edge("input", "f")], "f", "b.yaml")
    assert cached(rr, b) == "miss"
    (second,) = [p for p in own_cache.iterdir() if p.is_file() and p != first]
    second.write_bytes(first.read_bytes())
    r = rr("run", b, stdin=b"abc")
    assert r.out == b"ABC", r


def test_cache_folder_open_to_others_is_not_used(rr, own_cache):
    own_cache.chmod(0o777)
    path = rr.workflow({"f": "echo"}, [edge("input", "f")], "f")
    r = rr("run", path, stdin=b"x")
    assert (r.status, r.out) == (0, b"x")
    assert "ROADRUNNER_CACHE_DIR" in r.err
    assert not list(own_cache.iterdir())


def test_compile_ahead(rr, own_cache):
    path = rr.workflow({"f": "echo", "g": "upper"}, [edge("input", "f"), edge("f", "g")], "g")
    assert rr("compile", path).status == 0
    assert cached(rr, path) == "hit"
    assert b"already" in rr("compile", guest("echo")).out


# --- the kernel says no ------------------------------------------------------------------------


def deny_mremap():
    """A seccomp filter as of a container: mremap() gives EPERM."""
    libc = ctypes.CDLL(None, use_errno=True)
    nr = {"x86_64": 25, "aarch64": 216}[os.uname().machine]
    code = b"".join(
        struct.pack("<HBBI", *i)
        for i in [
            (0x20, 0, 0, 0),
            (0x15, 0, 1, nr),
            (0x06, 0, 0, 0x00050001),
            (0x06, 0, 0, 0x7FFF0000),
        ]
    )
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    program = Program(4, ctypes.addressof(buffer))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0


def test_without_mremap_messages_are_copied(rr):
    functions = {"a": "upper", "b": "echo", "c": "mutate", "d": "upper", "e": "upper"}
    functions["join"] = "concat"
    pairs = [("input", "a"), ("a", "b"), ("b", "c"), ("b", "d"), ("b", "e")]
    edges = [edge(x, y, "64MiB") for x, y in pairs]
    edges += [edge(x, f"join.{x}", "64MiB") for x in "cde"]
    data = b"copy me " * (MIB // 4)
    path = rr.workflow(functions, edges, "join")
    want = rr("run", path, stdin=data)
    r = rr("run", path, "--json", stdin=data, preexec_fn=deny_mremap)
    assert r.status == want.status == 0, r
    assert r.out == want.out
    assert r.err.count("refuses to move pages") == 1
    assert r.report["memory"]["copying"] is True and r.report["memory"]["copies"] > 0


def test_bench_command(rr):
    r = rr("bench", "--sizes", "1MiB,4MiB", "--repeat", "5", "--json")
    assert r.status == 0, r
    figures = json.loads(r.out)["figures"]
    assert [f["payload_bytes"] for f in figures] == [MIB, 4 * MIB]
    assert all(f["handoff_ns"] > 0 and f["memcpy_ns"] > 0 for f in figures)
    assert b"hand-off" in rr("bench", "--sizes", "1MiB", "--repeat", "1").out


def test_completions_know_every_option(rr):
    text = (ROOT / "completions/roadrunner.bash").read_text()
    commands = ("run", "serve", "worker", "check", "explain", "inspect", "compile", "ps", "bench")
    for command in commands:
        assert command in text
        for word in (
            subprocess.run([BIN, command, "--help"], capture_output=True).stdout.decode().split()
        ):
            if word.startswith("--") and word.strip(",").isascii():
                assert word.strip("[],") in text, (command, word)
