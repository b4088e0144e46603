# SPDX-License-Identifier: Apache-2.0
"""Kernel mode: functions in processes of their own, and what happens when those die."""

import fcntl
import filecmp
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import BIN, BUILD, GUESTS, KIB, MIB, SLOW, children_of, edge

EXAMPLES = GUESTS / "examples"
PROCESS = ["--isolation", "process"]


class Run:
    """A run in the background whose lines on stderr can be waited for."""

    def __init__(self, rr, path, data, *args):
        self.out, self.sockets = rr.folder / "out", rr.sockets
        (rr.folder / "in").write_bytes(data)
        self.p = subprocess.Popen(
            [BIN, "run", path, rr.folder / "in", "-o", self.out, "--json", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=rr.env,
        )
        self.lines = []
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.p.stderr:
            self.lines.append(line.decode(errors="replace"))

    def await_line(self, words, count=1, timeout=20):
        end = time.monotonic() + timeout * SLOW
        while time.monotonic() < end:
            found = [line for line in self.lines if words in line]
            if len(found) >= count:
                return found[-1]
            if self.p.poll() is not None:
                self.reader.join(5)
            time.sleep(0.005)
            if self.p.poll() is not None and len(found) < count:
                break
        raise AssertionError(f"no line with {words!r}: {self.lines}")

    def worker(self, name, timeout=20):
        end = time.monotonic() + timeout * SLOW
        while time.monotonic() < end:
            for pid, comm in children_of(self.p.pid).items():
                if comm == name[:15]:
                    return pid
            time.sleep(0.005)
        raise AssertionError(f"no worker {name}: {children_of(self.p.pid)}")

    def end(self, timeout=30):
        timer = threading.Timer(timeout * SLOW, self.p.kill)
        timer.start()
        out = self.p.stdout.read()
        self.status = self.p.wait()
        timer.cancel()
        self.reader.join(5)
        self.err = "".join(self.lines)
        self.report = json.loads(out) if out else None
        return self


def flow(rr, functions, edges, result, **top):
    path = rr.workflow(functions, edges, result)
    document = json.loads(path.read_text()) | {"isolation": "process"} | top
    path.write_text(json.dumps(document))
    return path


def reliable(a, b, attempts=3):
    return {"from": a, "to": b, "max": "64MiB", "delivery": "at-least-once", "attempts": attempts}


def assert_clean(run):
    memory = run.report["memory"]
    assert memory["live_regions"] == 0 and memory["live_bytes"] == 0, memory
    assert not [p for p in run.sockets.glob("roadrunner-*/*.sock")], "sockets are left"


# --- it works --------------------------------------------------------------------------------


@pytest.mark.parametrize("repeat", [1, 5])
def test_photo_is_the_same_in_processes(rr, tmp_path, repeat):
    photo = BUILD / "photo.jpg"
    if not photo.exists():
        pytest.skip("test_examples.py fetches the photograph")
    outs = []
    for name, args in (("one", []), ("many", PROCESS)):
        outs.append(tmp_path / name)
        path = EXAMPLES / "photo/workflow.yaml"
        r = rr("run", path, photo, "-o", outs[-1], "--json", "--repeat", repeat, *args)
        assert r.status == 0, r
    assert filecmp.cmp(*outs, shallow=False)
    report = json.loads(r.out)
    assert {h["channel"] for h in report["hops"]} == {"kernel"}
    assert all(h["copied_bytes"] == 0 for h in report["hops"] if h["payload_bytes"] > 256 * KIB)
    assert report["memory"]["live_regions"] == 0


def test_pointers_stay_valid_across_processes(rr):
    text = b"the quick brown fox jumps over the lazy dog " * 1000
    path = EXAMPLES / "tree/workflow.yaml"
    assert rr("run", path, *PROCESS, stdin=text).out == rr("run", path, stdin=text).out


@pytest.mark.parametrize("size", [1000, 5 * MIB])
def test_mixed_fan_out(rr, size):
    """One receiver in this process, one in another, and one that joins them."""
    functions = {
        "a": {"module": "upper"},
        "inside": {"module": "mutate"},
        "outside": {"module": "upper", "isolation": "process"},
        "join": {"module": "concat"},
    }
    edges = [edge(x, y, "64MiB") for x, y in [("input", "a"), ("a", "inside"), ("a", "outside")]]
    edges += [edge("inside", "join.i", "64MiB"), edge("outside", "join.o", "64MiB")]
    data = (b"abcdefgh" * (size // 8 + 1))[:size]
    path = rr.workflow(functions, edges, "join")
    r = rr("run", path, "--json", stdin=data)
    assert r.status == 0, r
    want = struct.pack("<Q", sum(data.upper()))
    assert r.out == b"i=" + want + b"\no=" + data.upper() + b"\n"
    channels = {(h["from"], h["to"]): h["channel"] for h in r.report["hops"]}
    assert channels["a", "inside"] == "user" and channels["a", "outside"] == "kernel"
    graph = json.loads(rr("explain", path, "--json").out)
    assert {(e["from"], e["to"]): e["channel"] for e in graph["edges"]} == channels


def test_forwarding_over_three_processes_copies_nothing(rr):
    functions = {name: "echo" for name in "abc"}
    path = flow(rr, functions, [edge("input", "a"), edge("a", "b"), edge("b", "c")], "c")
    data = os.urandom(3 * MIB)
    r = rr("run", path, "--json", "--repeat", "10", stdin=data)
    assert (r.status, r.out) == (0, data), r.err
    assert all(h["copied_bytes"] == 0 for h in r.report["hops"])
    assert r.report["memory"]["live_regions"] == 0


def test_trace_and_table_name_the_channel(rr, tmp_path):
    path = flow(rr, {"a": "echo"}, [edge("input", "a")], "a")
    r = rr("run", path, "--trace", tmp_path / "t.json", stdin=b"x")
    assert r.err.splitlines()[1].split()[5] == "kernel", r
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [e["args"]["channel"] for e in events if e["ph"] == "s"] == ["kernel"]


def test_many_messages_one_by_one(rr):
    """More than any ring holds: a slow receiver slows its sender, and nothing is lost."""
    path = flow(rr, {"a": "echo", "b": "upper"}, [edge("input", "a"), edge("a", "b")], "b")
    r = rr("run", path, "--repeat", "500", "--json", stdin=b"y" * (200 * KIB))
    assert (r.status, r.out) == (0, b"Y" * (200 * KIB)), r.err
    assert r.report["hops"][0]["messages"] == 500


# --- death -----------------------------------------------------------------------------------


def chain(rr, delivery, **more):
    functions = {"a": "echo", "slow": {"module": "slow", **more}, "b": "echo"}
    names = ["input", "a", "slow", "b"]
    make = reliable if delivery else (lambda x, y: edge(x, y, "64MiB"))
    edges = [make(x, y) for x, y in zip(names, names[1:], strict=False)]
    return flow(rr, functions, edges, "b", dead_letters="dead")


DATA = b"payload " * (MIB // 8)


@pytest.mark.parametrize("victim, wait", [("slow", "begin"), ("b", "begin"), ("a", "begin")])
def test_at_most_once_fails_and_names_the_dead(rr, victim, wait):
    """While it holds a message; before it has one; after it has sent it."""
    run = Run(rr, chain(rr, False, env={"MS": "700"}), DATA)
    run.await_line(wait)
    os.kill(run.worker(victim), signal.SIGKILL)
    run.end()
    assert run.status == 73, run.err
    assert f"function '{victim}': its worker process" in run.err
    assert "signal 9" in run.err and "hint: " in run.err
    assert run.report["error"]["code"] == "died"
    assert_clean(run)


@pytest.mark.parametrize("victim", ["slow", "a", "b"])
@pytest.mark.parametrize("data", [b"small", DATA], ids=["small", "large"])
def test_at_least_once_survives(rr, victim, data):
    run = Run(rr, chain(rr, True, env={"MS": "500"}), data)
    first = run.await_line("begin")
    os.kill(run.worker(victim), signal.SIGKILL)
    run.end()
    assert run.status == 0, run.err
    assert run.out.read_bytes() == data
    begins = [line.split() for line in run.lines if "begin" in line]
    assert begins[0][2] != "-" and begins[0][4] == "1", first
    if victim == "slow":
        assert len(begins) == 2 and begins[1][4] == "2", run.lines
    assert len({words[2] for words in begins}) == 1, "one message has one delivery id"
    assert_clean(run)


def test_dead_letters(rr, tmp_path):
    run = Run(rr, chain(rr, True, env={"MS": "5000"}), DATA)
    for n in range(3):
        run.await_line("begin", n + 1)
        os.kill(run.worker("slow"), signal.SIGKILL)
    run.end()
    assert run.status == 73, run.err
    assert "died 3 times with a message from 'a', which is now in " in run.err
    head, _, rest = (tmp_path / "dead").read_bytes().partition(b"\n")
    head = json.loads(head)
    assert (head["from"], head["to"], head["attempts"]) == ("a", "slow", 3)
    assert rest == DATA + b"\n" and head["payload_bytes"] == len(DATA)
    assert_clean(run)


@pytest.mark.parametrize("policy", ["linear", "exponential"])
def test_pauses_between_deliveries_grow(rr, policy):
    path = chain(rr, True, env={"MS": "5000"})
    document = json.loads(path.read_text())
    for e in document["edges"]:
        if e["to"] == "slow":
            del e["attempts"]
            e.update(retry=3, backoffPolicy=policy, backoffDelay="PT0.2S")
    path.write_text(json.dumps(document))
    run, times = Run(rr, path, DATA), []
    for n in range(4):
        run.await_line("begin", n + 1)
        times.append(time.monotonic())
        os.kill(run.worker("slow"), signal.SIGKILL)
    run.end()
    assert run.status == 73 and "died 4 times" in run.err, run.err
    pauses = [b - a for a, b in zip(times, times[1:], strict=False)]
    for pause, want in zip(pauses, [0.2, 0.4, 0.6 if policy == "linear" else 0.8], strict=True):
        assert want - 0.02 < pause, pauses
    assert_clean(run)


@pytest.mark.parametrize("delivery", [False, True])
def test_a_stopped_worker_is_noticed(rr, delivery):
    run = Run(rr, chain(rr, delivery, env={"MS": "300"}, deadline="1s"), DATA)
    run.await_line("begin")
    os.kill(run.worker("slow"), signal.SIGSTOP)
    run.end()
    assert "did not answer" in run.err
    if delivery:
        assert run.status == 0 and run.out.read_bytes() == DATA, run.err
    else:
        assert run.status == 73 and "function 'slow'" in run.err, run.err
    assert_clean(run)


def test_workers_go_with_their_parent(rr):
    run = Run(rr, chain(rr, False, env={"MS": "10000"}, deadline="20s"), DATA)
    run.await_line("begin")
    workers = children_of(run.p.pid)
    assert len(workers) == 4, workers
    run.p.kill()
    run.p.wait()
    end = time.monotonic() + 5 * SLOW
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.01)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not list(rr.sockets.glob("roadrunner-??????"))


def test_ctrl_c(rr):
    run = Run(rr, chain(rr, False, env={"MS": "10000"}, deadline="20s"), DATA)
    run.await_line("begin")
    workers = children_of(run.p.pid)
    begin = time.monotonic()
    run.p.send_signal(signal.SIGINT)
    run.end()
    assert run.status == 130 and time.monotonic() - begin < 5 * SLOW, run.err
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_killed_between_runs(rr):
    """A worker that dies while it has nothing to do is started again."""
    path = flow(
        rr,
        {"slow": {"module": "slow", "env": {"MS": "200"}}, "b": "echo"},
        [edge("input", "slow"), reliable("slow", "b")],
        "b",
    )
    run = Run(rr, path, b"x", "--repeat", "4")
    for n in range(3):
        run.await_line("begin", n + 1)
        os.kill(run.worker("b"), signal.SIGKILL)
    run.end()
    assert run.status == 0 and run.out.read_bytes() == b"x", run.err


# --- many messages ---------------------------------------------------------------------------


def tallies(run):
    """[(count, sum, twice, begin in us)], by what the counting functions said."""
    found = {}
    for line in run.lines:
        if ": tally " in line:
            name, _, words = line.partition(": ")
            number = [int(word) for word in words.split()[1::2]]
            found.setdefault(name, []).append(number)
    return found


def flood(rr, number, size, limits, slow_ms, extra=None, delivery=None):
    """A sender in a process; a slow receiver in another; with @extra, a fast one in a third."""
    make = delivery or (lambda a, b: edge(a, b, "64MiB"))
    env = {"N": str(number), "SIZE": str(size)} | ({"BOTH": "1"} if extra else {})
    functions = {
        "flood": {"module": "flood", "env": env, "deadline": "30s"},
        "slow": {"module": "tally", "instances": 1, "env": {"MS": str(slow_ms)}},
    }
    edges = [edge("input", "flood"), make("flood.each", "slow")]
    if extra:
        functions[extra] = {"module": "tally", "instances": 1}
        edges.append(make("flood.other", extra))
    return flow(rr, functions, edges, "flood", **({"limits": limits} if limits else {}))


def memfd_bytes(pid):
    """What the memory that a process has descriptors of takes: its messages, and rings."""
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(fd).startswith("/memfd:"):
                st = os.stat(fd)
                found[st.st_ino] = st.st_blocks * 512
        except OSError:
            pass
    return sum(found.values())


@pytest.mark.parametrize(
    "size, limits, held",
    [
        (3 * MIB, {"queue_messages": 4}, 4),
        (3 * MIB, {"queue_bytes": "8MiB"}, 2),
        (64, {"queue_messages": 4}, None),
        (3 * MIB, {"domain_messages": 4}, 4),
        (3 * MIB, {"domain_bytes": "8MiB"}, 2),
        (64, {"domain_messages": 4}, None),
    ],
)
def test_a_full_queue_holds_its_sender(rr, size, limits, held):
    number = 60
    run = Run(rr, flood(rr, number, size, limits, 10), b"")
    sender, peak = run.worker("flood"), 0
    while run.p.poll() is None:
        try:
            peak = max(peak, memfd_bytes(sender))
        except OSError:
            break
        time.sleep(0.002)
    run.end()
    assert run.status == 0, run.err
    assert tallies(run)["slow"][-1][:3] == [number, sum(range(number)), 0]
    if held:  # what waits, what is being written, and rings
        assert held * size <= peak + size and peak <= (held + 2) * size + 4 * MIB, peak
    assert_clean(run)


def test_a_slow_receiver_does_not_slow_another(rr):
    """The sender waits for the slow one; what it has sent to the fast one by then is handled."""
    number = 30
    path = flood(rr, number, 3 * MIB, {"queue_messages": 4}, 20, extra="fast")
    run = Run(rr, path, b"").end()
    assert run.status == 0, run.err
    found = tallies(run)
    for name in ("slow", "fast"):
        assert found[name][-1][:3] == [number, sum(range(number)), 0], name
    # number n leaves to the fast one once n - 4 or so are done at the slow one
    for n in range(8, number):
        assert found["fast"][n][3] < found["slow"][n][3], n
    assert_clean(run)


@pytest.mark.parametrize(
    "victims", [("slow", "b"), ("a", "slow"), ("a", "slow", "b")], ids="+".join
)
@pytest.mark.parametrize("data", [b"small", DATA], ids=["small", "large"])
def test_neighbours_that_die_together_lose_nothing(rr, victims, data):
    """`slow` has acked nothing before `b` is done, nor `a` before `slow` is."""
    functions = {"a": "echo", "slow": {"module": "slow", "env": {"MS": "1"}}}
    functions["b"] = {"module": "slow", "env": {"MS": "700"}}
    names = ["input", "a", "slow", "b"]
    edges = [reliable(x, y) for x, y in zip(names, names[1:], strict=False)]
    run = Run(rr, flow(rr, functions, edges, "b"), data)
    run.await_line("b: begin")
    for pid in [run.worker(name) for name in victims]:
        os.kill(pid, signal.SIGKILL)
    run.end()
    assert run.status == 0, run.err
    assert run.out.read_bytes() == data
    begins = [line.split() for line in run.lines if line.startswith("b: begin")]
    if "b" not in victims:  # it has the message still, and is not given it twice
        assert len(begins) == 1, run.lines
    assert len({words[2] for words in begins}) == 1, "one message has one delivery id"
    assert_clean(run)


@pytest.mark.parametrize("victim", ["middle", "flood"])
@pytest.mark.parametrize("size, number", [(64, 300), (256 * KIB, 100)])
def test_a_burst_arrives_exactly_once(rr, victim, size, number):
    """The receiver that counts is in the parent; a worker before it dies in the middle."""
    functions = {
        "flood": {"module": "flood", "env": {"N": str(number), "SIZE": str(size)}},
        "middle": {"module": "slow", "env": {"MS": "4"}},
        "count": {"module": "tally", "instances": 1, "isolation": "worker"},
    }
    # what waits in the queue of a worker that dies has used an attempt, too
    edges = [reliable("input", "flood"), reliable("flood.each", "middle", attempts=10)]
    edges.append(edge("middle", "count", "64MiB"))
    run = Run(rr, flow(rr, functions, edges, "flood"), b"x")
    for n in range(1, 4):
        run.await_line("tally", n * number // 5)
        os.kill(run.worker(victim), signal.SIGKILL)
        if victim == "flood":
            break
    run.end()
    assert run.status == 0, run.err
    assert tallies(run)["count"][-1][:3] == [number, sum(range(number)), 0]
    assert_clean(run)


def test_many_runs_leak_no_descriptors(rr):
    functions = {"a": "echo", "slow": {"module": "slow", "env": {"MS": "5"}}, "b": "echo"}
    names = ["input", "a", "slow", "b"]
    edges = [reliable(x, y) for x, y in zip(names, names[1:], strict=False)]
    run = Run(rr, flow(rr, functions, edges, "b"), b"x" * MIB, "--repeat", "200")
    counts = {}
    while run.p.poll() is None:
        begun = sum(": begin " in line for line in run.lines)
        try:
            counts[begun] = len(os.listdir(f"/proc/{run.p.pid}/fd"))
        except OSError:
            break
        time.sleep(0.005)
    run.end()
    assert run.status == 0 and run.report["runs"] == 200, run.err
    early = [count for begun, count in counts.items() if 20 <= begun < 60]
    late = [count for begun, count in counts.items() if 160 <= begun < 200]
    assert early and late and max(late) <= max(early), counts
    assert_clean(run)


# --- hostile peers ---------------------------------------------------------------------------


def hello(version=1, domain=b"flow", magic=b"RRLINK\0\0", kind=1):
    names = domain.ljust(64, b"\0") + b"evil".ljust(64, b"\0") + b"slow".ljust(64, b"\0")
    return struct.pack("<II", kind, version) + magic + names


def memfd(size, seals):
    fd = os.memfd_create("evil", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, 1033, seals)  # F_ADD_SEALS
    return fd


RING = (1 << 20) + 4096
CASES = {
    "nothing": lambda s: None,
    "garbage": lambda s: s.send(os.urandom(300)),
    "short": lambda s: s.send(b"x"),
    "huge": lambda s: s.send(os.urandom(100_000)),
    "version": lambda s: socket.send_fds(s, [hello(version=99)], [memfd(RING, 7)] * 2),
    "domain": lambda s: socket.send_fds(s, [hello(domain=b"other")], [memfd(RING, 7)] * 2),
    "magic": lambda s: socket.send_fds(s, [hello(magic=b"NOTLINK\0")], [memfd(RING, 7)] * 2),
    "no rings": lambda s: s.send(hello()),
    "one ring": lambda s: socket.send_fds(s, [hello()], [memfd(RING, 7)]),
    "many fds": lambda s: socket.send_fds(s, [hello()], [memfd(RING, 7)] * 20),
    "unsealed": lambda s: socket.send_fds(s, [hello()], [memfd(RING, 0)] * 2),
    "small ring": lambda s: socket.send_fds(s, [hello()], [memfd(4096, 7)] * 2),
    "a pipe": lambda s: socket.send_fds(s, [hello()], list(os.pipe())),
    "slot first": lambda s: socket.send_fds(s, [hello(kind=4)], [memfd(1 << 30, 7)]),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_peer_is_turned_away(rr, case):
    run = Run(rr, chain(rr, False, env={"MS": "600"}), DATA)
    run.await_line("begin")
    pid = run.worker("b")
    (path,) = rr.sockets.glob("roadrunner-??????/b.sock")
    fds = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
            s.settimeout(5)
            s.connect(str(path))
            try:
                CASES[case](s)
                time.sleep(0.005)
            except (BrokenPipeError, ConnectionResetError):
                pass
    time.sleep(0.05)
    assert len(os.listdir(f"/proc/{pid}/fd")) <= fds + 1, "descriptors leak"
    run.end()
    assert run.status == 0 and run.out.read_bytes() == DATA, run.err
    assert_clean(run)


def test_folder_of_sockets_is_private(rr):
    run = Run(rr, chain(rr, False, env={"MS": "300"}), b"x")
    run.await_line("begin")
    (folder,) = rr.sockets.glob("roadrunner-??????")
    assert folder.stat().st_mode & 0o777 == 0o700
    run.end()
    assert run.status == 0
    assert not folder.exists()


@pytest.mark.parametrize("isolation", ["process", "worker"])
def test_ps_shows_a_run(rr, isolation):
    """Also what happens in processes of their own; and it is gone with the run."""
    path = rr.workflow(
        {"one": "echo", "two": {"module": "slow", "env": {"MS": "60000"}, "deadline": "none"}},
        [("input", "one"), ("one", "two")],
        "two",
    )
    command = [BIN, "run", path, "--isolation", isolation]
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=rr.env)
    run.stdin.write(b"x" * (1 << 20))
    run.stdin.close()

    def ours():
        workers = json.loads(rr("ps", "--json", "--interval", "0").out)["workers"]
        return [w for w in workers if w["pid"] == run.pid]

    deadline = time.monotonic() + 30 * SLOW
    while not ours() or ours()[0]["functions"][1]["running"] == 0:
        assert time.monotonic() < deadline, ours()
        time.sleep(0.05)
    (worker,) = ours()
    assert worker["kind"] == "run" and worker["uid"] == os.geteuid()
    assert worker["functions"][0] == {"name": "one", "runs": 1, "running": 0}
    channel = "kernel" if isolation == "process" else "user"
    assert [(c["from"], c["to"], c["channel"], c["payload_bytes"]) for c in worker["channels"]] == [
        ("input", "one", channel, 1 << 20),
        ("one", "two", channel, 1 << 20),
    ]
    run.send_signal(signal.SIGINT)
    run.wait(30 * SLOW)
    run.stderr.close()
    assert not ours()
    assert not [f for f in os.listdir(rr.sockets) if f.startswith("roadrunner")]
