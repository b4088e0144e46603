# SPDX-License-Identifier: Apache-2.0
"""Network mode: functions on several nodes, and what happens when these or the way there fail."""

import concurrent.futures
import contextlib
import filecmp
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
from conftest import BIN, BUILD, GUESTS, KIB, MIB, SLOW, edge
from test_processes import Run, assert_clean

PHOTO = GUESTS / "examples/photo"
NET = ["--plain", "--network-only"]
DATA = b"payload " * (MIB // 8)


# --- nodes -----------------------------------------------------------------------------------


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Node:
    """`roadrunner worker` in the background."""

    def __init__(self, rr, path, name, *args, prefix=(), tls=("--plain",), wait=True):
        self.command = [*prefix, BIN, "worker", path, "--node", name, "-v", *tls, *args]
        self.env, self.lines = rr.env, []
        self.start(wait)

    def start(self, wait=True):
        before = sum("listens at" in line for line in self.lines)
        self.p = subprocess.Popen(
            [str(word) for word in self.command], stderr=subprocess.PIPE, env=self.env
        )
        self.reader = threading.Thread(target=self.read, args=(self.p,), daemon=True)
        self.reader.start()
        if wait:
            self.await_line("listens at", count=1 + before)

    def read(self, p):
        for line in p.stderr:
            self.lines.append(line.decode(errors="replace"))

    def await_line(self, words, count=1, timeout=20):
        end = time.monotonic() + timeout * SLOW
        while time.monotonic() < end:
            if sum(words in line for line in self.lines) >= count:
                return
            if self.p.poll() is not None:
                self.reader.join(5)
                break
            time.sleep(0.005)
        assert sum(words in line for line in self.lines) >= count, (words, self.lines)

    def kill(self, number=signal.SIGKILL):
        self.p.send_signal(number)
        self.p.wait(20 * SLOW)
        self.reader.join(5)

    @property
    def err(self):
        return "".join(self.lines)


@pytest.fixture
def nodes():
    """Starts nodes, and ends those that are left."""
    with contextlib.ExitStack() as stack:

        def start(*args, **kw):
            node = Node(*args, **kw)
            stack.callback(lambda: node.p.poll() is None and node.kill())
            return node

        yield start


def flow(rr, functions, edges, result, **top):
    """Functions with `node`; top: `nodes` as {name: address}, and keys of the workflow."""
    path = rr.workflow(functions, edges, result)
    top["nodes"] = {name: {"address": at} for name, at in top.get("nodes", {}).items()}
    path.write_text(json.dumps(json.loads(path.read_text()) | top))
    return path


def at_b(module="upper", **more):
    return {"module": module, "node": "b", **more}


def chain(rr, address, module="upper", delivery=None, **more):
    """a here, u on node b, c here."""
    functions = {"a": "echo", "u": at_b(module, **more), "c": "echo"}
    names = ["input", "a", "u", "c"]
    edges = [edge(x, y, "64MiB") for x, y in zip(names, names[1:], strict=False)]
    if delivery:
        edges[1] |= {"delivery": "at-least-once", "attempts": 20}
        edges[2] |= {"delivery": "at-least-once", "attempts": 20}
    return flow(rr, functions, edges, "c", nodes={"b": address})


class Proxy:
    """Between two nodes; can cut, hold up, or spoil what goes through it."""

    def __init__(self, port):
        self.target = ("127.0.0.1", port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.pairs, self.bytes, self.cut_at = [], 0, None
        self.stalled, self.closed, self.spoil = False, False, False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.closed:
            ready, _, _ = select.select([self.listener], [], [], 0.05)
            if ready:
                a, _ = self.listener.accept()
                try:
                    b = socket.create_connection(self.target)
                except OSError:
                    a.close()
                    continue
                self.pairs.append((a, b))
                for x, y in ((a, b), (b, a)):
                    threading.Thread(target=self.copy, args=(x, y), daemon=True).start()

    def copy(self, x, y):
        try:
            while True:
                data = x.recv(65536)
                if not data:
                    break
                while self.stalled:
                    time.sleep(0.01)
                if self.spoil:
                    data = bytes(byte ^ 0x55 for byte in data)
                self.bytes += len(data)
                if self.cut_at is not None and self.bytes >= self.cut_at:
                    self.cut_at = None
                    self.cut()
                    break
                y.sendall(data)
        except OSError:
            pass
        for one in (x, y):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def cut(self):
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    one.close()

    def close(self):
        self.closed = True
        self.thread.join()
        self.cut()
        self.listener.close()


@pytest.fixture
def proxy():
    made = []

    def start(port):
        made.append(Proxy(port))
        return made[-1]

    yield start
    for one in made:
        one.close()


# --- it works --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 256 * KIB, 256 * KIB + 1, 3 * MIB + 7, 40 * MIB])
def test_sizes(rr, nodes, size):
    path = chain(rr, f"127.0.0.1:{free_port()}", "echo")
    nodes(rr, path, "b")
    data = os.urandom(size)
    r = rr("run", path, *NET, "--json", "--repeat", "3", stdin=data)
    assert (r.status, r.out == data) == (0, True), r.err
    hops = {(h["from"], h["to"]): h for h in r.report["hops"]}
    assert hops["a", "u"]["channel"] == hops["u", "c"]["channel"] == "network"
    if size > 256 * KIB:
        assert all(h["copied_bytes"] == 0 for h in hops.values()), hops
    assert r.report["memory"]["live_regions"] == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", "localhost", "unix"])
def test_addresses(rr, nodes, address):
    port = free_port()
    at = f"unix:{rr.sockets}/node" if address == "unix" else f"{address}:{port}"
    path = chain(rr, at)
    nodes(rr, path, "b", tls=() if address == "unix" else ("--plain",))
    r = rr(
        "run", path, "--network-only", *([] if address == "unix" else ["--plain"]), stdin=b"hello"
    )
    assert (r.status, r.out) == (0, b"HELLO"), r


def test_explain_knows_the_channel_without_the_node(rr):
    path = chain(rr, "nowhere.invalid:7400")
    graph = json.loads(rr("explain", path, "--json").out)
    assert [e["channel"] for e in graph["edges"]] == ["user", "network", "network"]


def test_pointers_stay_valid_across_nodes(rr, nodes):
    document = {
        "version": 1,
        "nodes": {"b": {"address": f"127.0.0.1:{free_port()}"}},
        "functions": {
            "make": {"module": str(GUESTS / "tests/ptr_make.wasm")},
            "check": {"module": str(GUESTS / "tests/ptr_check.wasm"), "node": "b"},
        },
        "edges": [edge("input", "make"), edge("make", "check", "64MiB")],
        "result": "check",
    }
    path = rr.folder / "flow.yaml"
    path.write_text(json.dumps(document))
    nodes(rr, path, "b")
    want = rr.chain({"make": "ptr_make", "check": "ptr_check"}, b"100000")
    r = rr("run", path, *NET, stdin=b"100000")
    assert (r.status, r.out) == (want.status, want.out), r


@pytest.mark.parametrize("size", [1000, 5 * MIB])
def test_mixed_fan_out(rr, nodes, size):
    """Receivers in this process, in another, and two on a node; and one that joins them."""
    functions = {
        "a": "upper",
        "here": "mutate",
        "beside": {"module": "mutate", "isolation": "process"},
        "u": at_b("mutate"),
        "v": at_b("upper"),
        "join": {"module": "concat"},
    }
    edges = [edge("input", "a", "64MiB")]
    for name in ("here", "beside", "u", "v"):
        edges += [edge("a", name, "64MiB"), edge(name, f"join.{name[0]}", "64MiB")]
    path = flow(rr, functions, edges, "join", nodes={"b": f"127.0.0.1:{free_port()}"})
    nodes(rr, path, "b")
    data = (b"abcdefgh" * (size // 8 + 1))[:size]
    r = rr("run", path, *NET, "--json", "--repeat", "3", stdin=data)
    assert r.status == 0, r
    want = struct.pack("<Q", sum(data.upper()))
    for line in (b"h=" + want, b"b=" + want, b"u=" + want, b"v=" + data.upper()):
        assert line + b"\n" in r.out
    channels = {(h["from"], h["to"]): h["channel"] for h in r.report["hops"]}
    assert channels["a", "here"] == "user" and channels["a", "beside"] == "kernel"
    assert channels["a", "u"] == channels["a", "v"] == "network"
    assert r.report["memory"]["live_regions"] == 0


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_between_processes_and_nodes(rr, nodes, size):
    """A process of its own sends to a node, and gets from one: through the parent."""
    functions = {
        "a": {"module": "echo", "isolation": "process"},
        "u": at_b(),
        "c": {"module": "echo", "isolation": "process"},
    }
    edges = [edge(x, y, "64MiB") for x, y in (("input", "a"), ("a", "u"), ("u", "c"))]
    path = flow(rr, functions, edges, "c", nodes={"b": f"127.0.0.1:{free_port()}"})
    nodes(rr, path, "b")
    r = rr("run", path, *NET, "--json", "--repeat", "5", stdin=b"x" * size)
    assert (r.status, r.out) == (0, b"X" * size), r
    assert r.report["memory"]["live_regions"] == 0


def test_nodes_send_to_each_other(rr, nodes):
    functions = {"u": at_b(), "v": {"module": "echo", "node": "d"}, "w": at_b("echo")}
    names = ["input", "u", "v", "w"]
    edges = [edge(x, y, "64MiB") for x, y in zip(names, names[1:], strict=False)]
    where = {name: f"127.0.0.1:{free_port()}" for name in "bd"}
    path = flow(rr, functions, edges, "w", nodes=where)
    for name in where:
        nodes(rr, path, name)
    for data in (b"small", DATA):
        r = rr("run", path, *NET, "--repeat", "3", stdin=data)
        assert (r.status, r.out) == (0, data.upper()), r


@pytest.mark.parametrize("caller, callee", [(None, "b"), ("b", None), ("b", "d")])
@pytest.mark.parametrize("size", [10, MIB])
def test_calls(rr, nodes, caller, callee, size):
    functions = {
        "caller": {"module": "caller", "calls": ["callee"]},
        "callee": {"module": "upper"},
    }
    for name, where in (("caller", caller), ("callee", callee)):
        if where:
            functions[name]["node"] = where
    where = {name: f"127.0.0.1:{free_port()}" for name in "bd"}
    path = flow(rr, functions, [edge("input", "caller")], "caller", nodes=where)
    for name in {caller, callee} - {None}:
        nodes(rr, path, name)
    r = rr("run", path, *NET, stdin=b"y" * size)
    assert (r.status, r.out) == (0, b"Y" * 2 * size), r


def test_many_origins_at_once(rr, nodes):
    path = chain(rr, f"127.0.0.1:{free_port()}")
    node = nodes(rr, path, "b")
    runs = []
    for n in range(8):
        (rr.folder / str(n)).mkdir()
        (rr.folder / str(n) / "in").write_bytes(bytes([97 + n]) * MIB)
        command = [BIN, "run", path, rr.folder / str(n) / "in", "-o", rr.folder / str(n) / "out"]
        command += [*NET, "--repeat", "20", "-q"]
        runs.append(subprocess.Popen(command, env=rr.env))
    assert [p.wait(60 * SLOW) for p in runs] == [0] * 8
    for n in range(8):
        assert (rr.folder / str(n) / "out").read_bytes() == bytes([65 + n]) * MIB
    assert node.p.poll() is None


@pytest.mark.parametrize("net", [NET, ["--plain"]])
def test_origins_come_while_a_function_runs(rr, nodes, net):
    """And what a node holds for them goes with them, at once."""
    path = flow(
        rr,
        {"u": at_b("slow", env={"MS": "40"})},
        [edge("input", "u")],
        "u",
        nodes={"b": f"127.0.0.1:{free_port()}"},
    )
    node = nodes(rr, path, "b")
    files = len(os.listdir(f"/proc/{node.p.pid}/fd"))
    (rr.folder / "in").write_bytes(b"x")
    command = [BIN, "run", path, rr.folder / "in", "-q", *net]
    runs = [subprocess.Popen(command, env=rr.env, stdout=subprocess.PIPE) for _ in range(12)]
    assert [p.communicate(timeout=60 * SLOW)[0] for p in runs] == [b"x"] * 12, node.err
    assert node.p.poll() is None
    end = time.monotonic() + 0.5 * SLOW
    while (now := len(os.listdir(f"/proc/{node.p.pid}/fd"))) > files and time.monotonic() < end:
        time.sleep(0.01)
    assert now == files


def test_log_lines_and_failures_reach_the_origin(rr, nodes):
    path = chain(rr, f"127.0.0.1:{free_port()}", "bad", env={"HOW": "trap"})
    nodes(rr, path, "b")
    r = rr("run", path, *NET, "-v", stdin=b"trap")
    assert r.status != 0 and "function 'u'" in r.err, r


def test_node_is_done_before_it_stops(rr, nodes):
    path = chain(rr, f"127.0.0.1:{free_port()}", "slow", env={"MS": "800"})
    node = nodes(rr, path, "b")
    run = Run(rr, path, b"x", *NET)
    run.await_line("begin")
    node.kill(signal.SIGTERM)
    run.end()
    assert (run.status, node.p.returncode) == (0, 0), (run.err, node.lines)
    assert run.out.read_bytes() == b"x"


# --- nodes of one machine ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_near_nodes_do_without_the_network(rr, nodes, size):
    """Two nodes and the origin on this machine: all messages go over links."""
    functions = {"u": at_b(), "v": {"module": "echo", "node": "d"}, "c": "echo"}
    names = ["input", "u", "v", "c"]
    edges = [edge(x, y, "64MiB") for x, y in zip(names, names[1:], strict=False)]
    where = {name: f"127.0.0.1:{free_port()}" for name in "bd"}
    path = flow(rr, functions, edges, "c", nodes=where)
    both = [nodes(rr, path, name) for name in where]
    r = rr("run", path, "--plain", "--json", "--repeat", "5", stdin=b"x" * size)
    assert (r.status, r.out) == (0, b"X" * size), (r, [n.lines for n in both])
    assert [h["channel"] for h in r.report["hops"]] == ["kernel"] * 3, r.report["hops"]
    if size > 256 * KIB:
        assert all(h["copied_bytes"] == 0 for h in r.report["hops"])
    assert r.report["memory"]["live_regions"] == 0
    for node in both:
        node.await_line("is away")
        node.kill(signal.SIGTERM)
    assert not list(rr.sockets.glob("roadrunner.*")), "folders of sockets are left"


def test_near_nodes_know_each_other_before_the_first_message(rr, nodes):
    """The word, over the network, of who is near is not overtaken by a message over a link."""
    functions = {"u": at_b(), "v": {"module": "echo", "node": "d"}}
    edges = [edge("input", "u", "64MiB"), edge("u", "v", "64MiB")]
    where = {name: f"127.0.0.1:{free_port()}" for name in "bd"}
    path = flow(rr, functions, edges, "v", nodes=where)
    for name in where:
        nodes(rr, path, name)
    for _ in range(20):
        r = rr("run", path, "--plain", "--json", stdin=b"x")
        assert [h["channel"] for h in r.report["hops"]] == ["kernel"] * 2, r.report["hops"]


def test_near_nodes_sleep_and_wake(rr, nodes):
    """No polling at either end: links wake who sleeps."""
    path = chain(rr, f"127.0.0.1:{free_port()}", "slow", env={"MS": "20"})
    nodes(rr, path, "b", "--spin", "0")
    r = rr("run", path, "--plain", "--json", "--spin", "0", "--repeat", "30", stdin=b"x")
    assert (r.status, r.out) == (0, b"x"), r
    assert r.report["total_ns"]["p50"] < 100e6 * SLOW, r.report["total_ns"]


@pytest.mark.parametrize("delivery", [False, True])
def test_a_near_node_dies(rr, nodes, delivery):
    path = chain(rr, f"127.0.0.1:{free_port()}", "slow", delivery, env={"MS": "600"})
    node = nodes(rr, path, "b")
    run = Run(rr, path, DATA, "--plain")
    run.await_line("begin")
    node.kill()
    node.start()
    run.end()
    if delivery:
        assert run.status == 0, run.err
        assert run.out.read_bytes() == DATA
    else:
        assert run.status == 73 and "node 'b'" in run.err, run.err
    assert_clean(run)


# --- faults ----------------------------------------------------------------------------------


def test_nobody_there(rr):
    path = chain(rr, f"127.0.0.1:{free_port()}")
    r = rr("run", path, *NET, stdin=b"x")
    assert r.status == 73 and "node 'b' at 127.0.0.1:" in r.err and "refused" in r.err, r


def test_a_node_may_come_late(rr, nodes):
    path = chain(rr, f"127.0.0.1:{free_port()}")
    run = Run(rr, path, b"x", *NET)
    time.sleep(0.5)
    nodes(rr, path, "b")
    run.end()
    assert (run.status, run.out.read_bytes()) == (0, b"X"), run.err


@pytest.mark.parametrize("delivery", [False, True])
@pytest.mark.parametrize("data", [b"small", DATA], ids=["small", "large"])
def test_a_node_dies(rr, nodes, delivery, data):
    """While it handles a message; it is started again."""
    path = chain(rr, f"127.0.0.1:{free_port()}", "slow", delivery, env={"MS": "600"})
    node = nodes(rr, path, "b")
    run = Run(rr, path, data, *NET)
    run.await_line("begin")
    node.kill()
    node.start()
    run.end()
    if delivery:
        assert run.status == 0, run.err
        assert run.out.read_bytes() == data
        begins = [line.split() for line in run.lines if "begin" in line]
        assert len({words[2] for words in begins}) == 1 and begins[-1][4] == "2", begins
    else:
        assert run.status == 73 and "node 'b'" in run.err and "hint: " in run.err, run.err
    assert_clean(run)


@pytest.mark.parametrize("delivery", [False, True])
def test_connection_lost_in_the_middle_of_a_message(rr, nodes, proxy, delivery):
    port = free_port()
    between = proxy(port)
    path = chain(rr, f"127.0.0.1:{between.port}", "echo", delivery)
    nodes(rr, path, "b", "--listen", f"127.0.0.1:{port}")
    between.cut_at = 5 * MIB
    data = os.urandom(20 * MIB)
    run = Run(rr, path, data, *NET).end()
    if delivery:
        assert run.status == 0, run.err
        assert run.out.read_bytes() == data
    else:
        assert run.status == 73 and "was lost with a message for" in run.err, run.err
    assert_clean(run)


def test_dead_letters_of_a_node_come_to_the_origin(rr, nodes):
    """Node b sends to d, which dies with each delivery."""
    functions = {
        "u": at_b("echo"),
        "v": {"module": "slow", "node": "d", "env": {"MS": "3000"}},
    }
    edges = [edge("input", "u", "64MiB"), {"from": "u", "to": "v", "max": "64MiB"}]
    edges[1] |= {"delivery": "at-least-once", "attempts": 2}
    where = {name: f"127.0.0.1:{free_port()}" for name in "bd"}
    path = flow(rr, functions, edges, "v", nodes=where, dead_letters="dead")
    nodes(rr, path, "b")
    node = nodes(rr, path, "d")
    run = Run(rr, path, DATA, *NET)
    for n in range(2):  # where the line goes: the origin may not have come back yet
        end = time.monotonic() + 20 * SLOW
        while sum("begin" in line for line in run.lines + node.lines) <= n:
            assert time.monotonic() < end, (run.lines, node.lines)
            time.sleep(0.01)
        node.kill()
        node.start()
    run.end()
    assert run.status == 73 and "lost 2 times with a message from 'u'" in run.err, run.err
    head, _, rest = (path.parent / "dead").read_bytes().partition(b"\n")
    assert json.loads(head)["to"] == "v" and rest == DATA + b"\n"
    assert_clean(run)


def test_connection_lost_again_and_again(rr, nodes, proxy):
    port = free_port()
    between = proxy(port)
    path = chain(rr, f"127.0.0.1:{between.port}", "echo", True)
    node = nodes(rr, path, "b", "--listen", f"127.0.0.1:{port}")
    data = os.urandom(MIB)
    run = Run(rr, path, data, *NET, "--repeat", "60")
    while run.p.poll() is None:
        time.sleep(0.3)
        between.cut()
    run.end()
    assert run.status == 0, run.err
    assert run.out.read_bytes() == data
    assert node.p.poll() is None
    assert_clean(run)


@pytest.mark.parametrize("delivery", [False, True])
def test_half_open(rr, nodes, proxy, delivery):
    """Nothing comes through any more, and nobody says so: pings notice."""
    port = free_port()
    between = proxy(port)
    path = chain(rr, f"127.0.0.1:{between.port}", "slow", delivery, env={"MS": "300"})
    nodes(rr, path, "b", "--listen", f"127.0.0.1:{port}")
    run = Run(rr, path, b"x", *NET)
    run.await_line("begin")
    between.stalled = True
    time.sleep(11)  # longer than the patience for a silent peer
    between.cut()
    between.stalled = False
    run.end(60)
    if delivery:
        assert run.status == 0, run.err
        assert run.out.read_bytes() == b"x"
    else:
        assert run.status == 73 and "node 'b'" in run.err, run.err
    assert_clean(run)


def test_spoiled_bytes(rr, nodes, proxy):
    port = free_port()
    between = proxy(port)
    path = chain(rr, f"127.0.0.1:{between.port}")
    node = nodes(rr, path, "b", "--listen", f"127.0.0.1:{port}")
    between.spoil = True
    r = rr("run", path, *NET, stdin=b"x")
    assert r.status == 73, r
    between.spoil = False
    between.cut()
    assert rr("run", path, *NET, stdin=b"x").out == b"X"
    assert node.p.poll() is None


def test_garbage_and_idle_connections_do_no_harm(rr, nodes):
    port = free_port()
    path = chain(rr, f"127.0.0.1:{port}")
    node = nodes(rr, path, "b")
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(400)]
    for one in idle[::3]:
        with contextlib.suppress(OSError):
            one.sendall(os.urandom(4096))
    r = rr("run", path, *NET, stdin=b"x")
    assert (r.status, r.out) == (0, b"X"), r
    for one in idle:
        one.close()
    assert len(node.lines) < 40, node.lines
    assert len(os.listdir(f"/proc/{node.p.pid}/fd")) < 300


def test_another_version_of_the_workflow(rr, nodes):
    path = chain(rr, f"127.0.0.1:{free_port()}")
    nodes(rr, path, "b")
    other = path.with_name("other.yaml")
    text = path.read_text().replace('"64MiB"', '"32MiB"')
    other.write_text(text)
    r = rr("run", other, "--plain", stdin=b"x")
    assert r.status == 73 and "another version of the workflow" in r.err, r


def test_another_node(rr, nodes):
    port = free_port()
    path = flow(
        rr,
        {"u": at_b(), "v": {"module": "echo", "node": "d"}},
        [edge("input", "u"), edge("u", "v")],
        "v",
        nodes={"b": f"127.0.0.1:{port}", "d": f"127.0.0.1:{free_port()}"},
    )
    nodes(rr, path, "d", "--listen", f"127.0.0.1:{port}")
    r = rr("run", path, *NET, stdin=b"x")
    assert r.status == 73 and "another node than the workflow's file says" in r.err, r


@pytest.mark.parametrize(
    "args, words",
    [
        ([], "messages between nodes are not protected"),
        (["--tls-cert", "x"], "go together"),
        (["--plain", "--tls-cert", "x", "--tls-key", "x", "--tls-ca", "x"], "exclude each other"),
        (["--tls-cert", "/no", "--tls-key", "/no", "--tls-ca", "/no"], "/no"),
    ],
)
def test_how_nodes_are_to_talk_must_be_said(rr, args, words):
    path = chain(rr, "127.0.0.1:9")
    r = rr("run", path, *args, stdin=b"x")
    assert r.status in (64, 66, 73) and words in r.err and "hint: " in r.err, r


# --- TLS -------------------------------------------------------------------------------------


def openssl(*args, stdin=None):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, input=stdin)


class Certificates:
    """A CA of our own, and certificates by it."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.ca = self.make_ca("ca")

    def make_ca(self, name):
        key, cert = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={name}")  # fmt: skip
        return cert

    def make(self, name, names, ca="ca"):
        key, cert = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        request, more = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        more.write_text(f"subjectAltName={names}\n")
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                "-keyout", key, "-out", request, "-subj", f"/CN={name}")  # fmt: skip
        openssl("x509", "-req", "-in", request, "-CA", self.folder / f"{ca}.pem",
                "-CAkey", self.folder / f"{ca}.key", "-CAcreateserial", "-days", "2",
                "-extfile", more, "-out", cert)  # fmt: skip
        return self.options(name)

    def options(self, name, ca="ca"):
        f = self.folder
        return ["--network-only", "--tls-cert", f / f"{name}.pem", "--tls-key", f / f"{name}.key",
                "--tls-ca", f / f"{ca}.pem"]  # fmt: skip


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path / "certificates")


LOCAL = "IP:127.0.0.1,DNS:localhost"


@pytest.mark.parametrize("size", [5, 20 * MIB])
def test_tls(rr, nodes, certificates, size):
    path = chain(rr, f"127.0.0.1:{free_port()}", "echo")
    nodes(rr, path, "b", tls=certificates.make("b", LOCAL))
    data = os.urandom(size)
    mine = certificates.make("origin", "URI:spiffe://test/origin")
    r = rr("run", path, *mine, "--json", "--repeat", "3", stdin=data)
    assert (r.status, r.out == data) == (0, True), r.err
    assert "not protected" not in r.err and "can read" not in r.err


def test_tls_of_another_ca(rr, nodes, certificates):
    path = chain(rr, f"127.0.0.1:{free_port()}")
    node = nodes(rr, path, "b", tls=certificates.make("b", LOCAL))
    certificates.make_ca("other")
    certificates.make("stranger", LOCAL, ca="other")
    for options in (
        certificates.options("stranger"),  # the node does not know its CA
        certificates.options("b", ca="other"),  # nor it the node's
        NET,
    ):
        r = rr("run", path, *options, stdin=b"x")
        assert r.status == 73 and "node 'b'" in r.err, r
    r = rr("run", path, *certificates.make("origin", LOCAL), stdin=b"x")
    assert (r.status, r.out) == (0, b"X"), (r, node.lines)


def test_tls_host_and_identity(rr, nodes, certificates):
    path = chain(rr, f"127.0.0.1:{free_port()}")
    mine = certificates.make("origin", LOCAL)
    node = nodes(rr, path, "b", tls=certificates.make("b", "URI:spiffe://test/b"))
    r = rr("run", path, *mine, stdin=b"x")
    assert r.status == 73, r  # no 127.0.0.1 in it
    node.kill()
    document = json.loads(path.read_text())
    for identity, status in (("spiffe://test/b", 0), ("spiffe://test/other", 73)):
        document["nodes"]["b"]["identity"] = identity
        path.write_text(json.dumps(document))
        node = nodes(rr, path, "b", tls=certificates.options("b"))
        r = rr("run", path, *mine, stdin=b"x")
        assert r.status == status, r
        node.kill()


def test_tls_allow(rr, nodes, certificates):
    """Who may send to a function is named by identity."""
    allow = ["spiffe://test/good"]
    path = chain(rr, f"127.0.0.1:{free_port()}", allow=allow)
    node = nodes(rr, path, "b", tls=certificates.make("b", LOCAL))
    good = certificates.make("good", "URI:spiffe://test/good")
    bad = certificates.make("bad", "URI:spiffe://test/bad")
    r = rr("run", path, *good, stdin=b"x")
    assert (r.status, r.out) == (0, b"X"), r
    for data in (b"x", DATA):
        r = rr("run", path, *bad, stdin=data)
        assert r.status == 73 or "may not come" in r.err, (r, node.lines)
        assert r.status != 0 and "may not come" in r.err + node.err, (r, node.lines)
    assert rr("run", path, *good, stdin=b"x").out == b"X"


def test_tls_certificates_are_read_again(rr, nodes, certificates):
    path = chain(rr, f"127.0.0.1:{free_port()}")
    mine = certificates.make("origin", LOCAL)
    certificates.make_ca("old")
    node_tls = certificates.make("b", LOCAL, ca="old")
    node = nodes(rr, path, "b", tls=node_tls)
    assert rr("run", path, *mine, stdin=b"x").status == 73
    certificates.make("b", LOCAL)  # the same files, signed by the CA that all know
    node.p.send_signal(signal.SIGHUP)
    node.await_line("the certificate was read again")
    r = rr("run", path, *mine, stdin=b"x")
    assert (r.status, r.out) == (0, b"X"), (r, node.lines)
    (certificates.folder / "b.pem").write_text("no certificate\n")
    node.p.send_signal(signal.SIGHUP)
    node.await_line("the certificate stays as it was")
    assert rr("run", path, *mine, stdin=b"x").out == b"X"


# --- two network namespaces ------------------------------------------------------------------


def photo_flow(rr, address):
    """The photo pipeline; half of it on the other node."""
    functions = {
        name: {"module": str(PHOTO / f"{name}.wasm")}
        for name in ("decode", "resize", "histogram", "join", "encode")
    }
    functions["decode"]["memory"] = "512MiB"
    for name in ("resize", "join"):
        functions[name]["node"] = "b"
    edges = [
        edge("input", "decode", "64MiB"),
        edge("decode.raw", "resize", "512MiB"),
        edge("decode.raw", "histogram", "512MiB"),
        edge("resize", "join.picture", "64MiB"),
        edge("histogram", "join.plot", "64MiB"),
        edge("join", "encode", "64MiB"),
    ]
    return flow(rr, functions, edges, "encode", nodes={"b": address})


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
def test_photo_over_two_nodes(rr, nodes, namespaces, certificates, tmp_path, v6):
    photo = BUILD / "photo.jpg"
    if not photo.exists():
        pytest.skip("test_examples.py fetches the photograph")
    address = "[fd99::2]:7400" if v6 else f"{namespaces.net}.2:7400"
    path = photo_flow(rr, address)
    names = f"IP:fd99::2,IP:{namespaces.net}.2"
    nodes(rr, path, "b", prefix=namespaces.inside(1), tls=certificates.make("b", names))
    mine = certificates.make("origin", "DNS:origin")
    outs = [tmp_path / "one", tmp_path / "two"]
    r = rr("run", PHOTO / "workflow.yaml", photo, "-o", outs[0])
    assert r.status == 0, r
    command = [*namespaces.inside(0), BIN, "run", path, photo, "-o", outs[1], "--json", *mine]
    p = subprocess.run([str(x) for x in command], env=rr.env, capture_output=True)
    assert p.returncode == 0, p.stderr
    assert filecmp.cmp(*outs, shallow=False)
    report = json.loads(p.stdout)
    hops = {(h["from"], h["to"]): h for h in report["hops"]}
    assert hops["decode.raw", "resize"]["channel"] == "network"
    assert all(h["copied_bytes"] == 0 for h in hops.values() if h["payload_bytes"] > 256 * KIB)
    assert report["memory"]["live_regions"] == 0


@pytest.mark.parametrize("delivery", [False, True])
def test_the_link_goes_down(rr, nodes, namespaces, delivery):
    path = chain(rr, f"{namespaces.net}.2:7400", "slow", delivery, env={"MS": "200"})
    nodes(rr, path, "b", prefix=namespaces.inside(1))
    (rr.folder / "in").write_bytes(DATA)
    command = [*namespaces.inside(0), BIN, "run", path, rr.folder / "in", "-o", rr.folder / "out",
               *NET, "--repeat", "40"]  # fmt: skip
    p = subprocess.Popen([str(x) for x in command], env=rr.env, stderr=subprocess.PIPE)
    time.sleep(1.5)
    namespaces.ip("-n", namespaces.names[0], "link", "set", "rra", "down")
    time.sleep(2)
    namespaces.ip("-n", namespaces.names[0], "link", "set", "rra", "up")
    _, err = p.communicate(timeout=120 * SLOW)
    assert p.returncode == 0, err  # TCP itself bears two seconds
    assert (rr.folder / "out").read_bytes() == DATA


# --- deadlines -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "process", "node"])
def test_a_deadline_travels_with_the_message(rr, nodes, where):
    """Of the run: a function with all the time in the world is stopped by it, wherever it lives."""
    functions = {"a": "echo", "u": {"module": "bad", "env": {"CASE": "loop"}, "deadline": "none"}}
    if where == "node":
        functions["u"]["node"] = "b"
    if where == "process":
        functions["u"]["isolation"] = "process"
    at = {"b": f"127.0.0.1:{free_port()}"}
    path = flow(rr, functions, [edge("input", "a"), edge("a", "u")], "u", nodes=at, deadline="1s")
    if where == "node":
        nodes(rr, path, "b")
    begin = time.monotonic()
    r = rr("run", path, *NET, stdin=b"x")
    assert r.status == 72 and "function 'u'" in r.err and "deadline" in r.err, r
    assert 0.9 < time.monotonic() - begin < 8 * SLOW


# --- over HTTP -------------------------------------------------------------------------------


def test_serve_has_several_requests_on_their_way(rr, nodes):
    """While `a` works on one here, others are at the node `b`, or here as well."""
    functions = {
        "a": {"module": "slow", "env": {"MS": "300"}},
        "b": {"module": "upper", "node": "b"},
    }
    edges = [edge("input", "a", "4MiB"), edge("a", "b", "4MiB")]
    path = rr.workflow(functions, edges, "b")
    document = json.loads(path.read_text())
    document["nodes"] = {"b": {"address": f"127.0.0.1:{free_port()}"}}
    path.write_text(json.dumps(document))
    nodes(rr, path, "b")
    port = free_port()
    command = [BIN, "serve", path, "-l", f"127.0.0.1:{port}", "--node-plain", "--concurrency", "8"]
    server = subprocess.Popen([str(c) for c in command], env=rr.env, stderr=subprocess.PIPE)
    try:
        for line in server.stderr:
            if line == b"roadrunner: ready\n":
                break
        url, most, data = f"http://127.0.0.1:{port}", 0, os.urandom(MIB)
        ask = lambda body: urllib.request.urlopen(url + "/", body, timeout=60 * SLOW).read()  # noqa: E731
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, body) for body in [data, b"x"] * 6]
            while not all(a.done() for a in asked):
                text = urllib.request.urlopen(url + "/metrics").read().decode()
                running = re.search(r"^roadrunner_pool_running (\d+)", text, re.M)
                most = max(most, int(running[1]))
                time.sleep(0.02)
            assert [a.result() for a in asked] == [data.upper(), b"X"] * 6
        assert most == 4
        server.terminate()
        assert server.wait(30 * SLOW) == 0
    finally:
        server.kill()
        server.stderr.close()


def test_serve_reaches_nodes(rr, nodes):
    """Also one that comes later, and one that was started again between two requests."""
    path = chain(rr, f"127.0.0.1:{free_port()}")
    r = rr("serve", path, "-l", "127.0.0.1:0")
    assert r.status == 64 and "are not protected" in r.err, r
    port = free_port()
    command = [BIN, "serve", path, "-l", f"127.0.0.1:{port}", "--node-plain", "-q"]
    server = subprocess.Popen([str(c) for c in command], env=rr.env, stderr=subprocess.PIPE)

    def post(data):
        deadline = time.monotonic() + 30 * SLOW
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", data) as reply:
                    return reply.read()
            except urllib.error.HTTPError:
                raise
            except urllib.error.URLError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    try:
        node = nodes(rr, path, "b")
        assert post(b"one") == b"ONE"
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(post, [DATA, b"x"] * 8))
        assert answers == [DATA.upper(), b"X"] * 8
        node.kill()
        node.start()
        assert post(b"again") == b"AGAIN"
        server.terminate()
        assert server.wait(30 * SLOW) == 0
    finally:
        server.kill()
        server.stderr.close()
