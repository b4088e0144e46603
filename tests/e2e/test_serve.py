# SPDX-License-Identifier: Apache-2.0
"""roadrunner serve, with real clients: curl, http.client, and raw sockets for what these refuse to
send."""

import http.client
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from conftest import BIN, GUESTS, KIB, MIB, ROOT, SLOW, children_of, edge

EXAMPLES = GUESTS / "examples"
HOST = b"Host: a\r\n"


class Server:
    def __init__(self, process):
        self.process = process
        self.ports = []
        self.lines = []
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            text = line.decode(errors="replace").rstrip()
            self.lines.append(text)
            if match := re.search(r"listening at https?://.*:(\d+)$", text):
                self.ports.append(int(match[1]))
            if text == "roadrunner: ready":
                self.ready.set()
        self.ready.set()

    @property
    def port(self):
        return self.ports[0]

    def connect(self, port=None):
        return socket.create_connection(("127.0.0.1", port or self.port), timeout=30 * SLOW)

    def raw(self, data, port=None):
        """What comes back for these bytes, until the server closes."""
        with self.connect(port) as s:
            s.sendall(data)
            return read_all(s)

    def ask(self, path="/", body=None, method=None, headers=None, port=None):
        c = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=20 * SLOW)
        c.request(method or ("POST" if body is not None else "GET"), path, body, headers or {})
        r = c.getresponse()
        r.body = r.read()
        c.close()
        return r

    def metric(self, name, **labels):
        text = self.ask("/metrics").body.decode()
        want = {f'{k}="{v}"' for k, v in labels.items()}
        total = 0.0
        for line in text.splitlines():
            m = re.fullmatch(r"roadrunner_(\w+)(?:\{(.*)\})? (\S+)", line)
            if m and m[1] == name and want <= set((m[2] or "").split(",")):
                total += float(m[3])
        return total

    def wait_log(self, text):
        wait_for(lambda: any(text in line for line in self.lines), text)


def read_all(s):
    out = b""
    try:
        while data := s.recv(65536):
            out += data
    except ConnectionResetError:
        pass
    return out


def wait_for(condition, what, seconds=20):
    until = time.monotonic() + seconds * SLOW
    while not condition():
        assert time.monotonic() < until, f"never: {what}"
        time.sleep(0.02)


@pytest.fixture
def serve(rr, tmp_path):
    @contextmanager
    def start(*args, listen="127.0.0.1:0", shell=None, **kw):
        command = [BIN, "serve", *map(str, args), *(["--listen", listen] if listen else [])]
        process = subprocess.Popen(
            ["bash", "-c", shell, BIN, *map(str, args)] if shell else command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=rr.env,
            **kw,
        )
        server = Server(process)
        try:
            assert server.ready.wait(60 * SLOW) and process.poll() is None, server.lines
            yield server
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(30 * SLOW)
            finally:
                process.kill()
                server.reader.join(10)
        assert process.returncode == 0, server.lines

    return start


@pytest.fixture
def flow(rr):
    def make(module="http", name="flow.yaml", max="64MiB", **fields):
        return rr.workflow(
            {"f": {"module": module, **fields}}, [edge("input", "f", max)], "f", name
        )

    return make


# --- requests and replies ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5000, 256 * KIB, 256 * KIB + 1, 3 * MIB + 7])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_come_back(serve, flow, tmp_path, size, chunked):
    data, out = os.urandom(size), tmp_path / "out"
    (tmp_path / "in").write_bytes(data)
    with serve(flow()) as s:
        for _ in range(6):  # the first ones in the pool, then inline
            subprocess.run(
                ["curl", "-sS", "--fail", "-o", out, "--data-binary", f"@{tmp_path}/in"]
                + (["-H", "Transfer-Encoding: chunked"] if chunked else [])
                + [f"http://127.0.0.1:{s.port}/echo"],
                check=True,
            )
            assert out.read_bytes() == data
        if size > MIB and not chunked:  # at most what came with the head
            assert s.metric("request_copied_bytes_total") <= 6 * 16 * KIB
        assert s.metric("reply_copied_bytes_total") == 0


def test_functions_see_the_request(serve, flow):
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with serve(flow()) as s:
        r = s.ask(
            "/x/meta?a=b%20c",
            b"hi",
            "PUT",
            {"X-A": "one", "Content-Type": "text/css", "traceparent": trace},
        )
        seen = dict(line.split("=", 1) for line in r.body.decode().splitlines())
        assert r.status == 200 and r.headers["Content-Type"] == "text/plain"
        assert seen["http-method"] == "PUT" and seen["http-path"] == "/x/meta"
        assert seen["http-query"] == "a=b%20c" and seen["content-type"] == "text/css"
        assert seen["http-header:x-a"] == "one" and seen["http-header:host"].startswith("127.")
        assert seen["traceparent"][:35] == trace[:35] and seen["traceparent"][-2:] == "01"
        assert seen["traceparent"] != trace
        r = s.raw(
            b"GET /meta HTTP/1.1\r\n" + HOST + b"X-A: 1\r\nConnection: close\r\nx-a: 2\r\n\r\n"
        )
        assert b"http-header:x-a=1, 2\n" in r and b"http-query=-\n" in r
        assert re.search(rb"traceparent=00-[0-9a-f]{32}-[0-9a-f]{16}-00\n", r)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "00",
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "ff-" + "1" * 32 + "-" + "2" * 16 + "-01",
    ],
)
def test_a_bad_trace_is_not_taken(serve, flow, bad):
    with serve(flow()) as s:
        r = s.ask("/meta", headers={"traceparent": bad})
        assert re.search(rb"traceparent=00-(?!0{32})[0-9a-f]{32}-[0-9a-f]{16}-00\n", r.body)


def test_functions_make_the_reply(serve, flow):
    with serve(flow()) as s:
        assert s.ask("/status/418").status == 418
        r = s.ask("/status/204")
        assert r.status == 204 and r.body == b"" and "Content-Length" not in r.headers
        for status in (99, 101, 600, 999):
            assert s.ask(f"/status/{status}").status == 502
        assert s.ask("/header?x-b=c").headers["x-b"] == "c"
        for name in ("connection", "content-length", "Transfer-Encoding", "a:", "(a)"):
            r = s.ask(f"/header?{name}=7-7")
            assert r.status == 200 and r.body == b"ok" and "7-7" not in str(r.headers)
        r = s.ask("/echo", method="HEAD")
        assert r.status == 200 and r.body == b""
        assert s.ask("/echo").status == 200


def test_failures_have_their_status(serve, flow, rr):
    with serve(flow(), "--deadline", "500ms") as s:
        for path, status, what in [
            ("/trap", 502, "a function failed"),
            ("/none", 502, "a function failed"),
            ("/loop", 504, "the deadline passed"),
        ]:
            r = s.ask(path)
            problem = json.loads(r.body)
            assert (r.status, problem["status"], problem["detail"]) == (status, status, what)
            assert r.headers["Content-Type"] == "application/problem+json"
        assert s.ask("/echo", b"x").body == b"x"
        s.wait_log("function 'f': trap")  # the log says more


def test_keep_alive_and_pipelining(serve, flow):
    one = b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
    two = (
        b"POST /echo HTTP/1.1\r\n"
        + HOST
        + b"Transfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n"
    )
    last = b"GET /status/201 HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    with serve(flow()) as s:
        for step in (1000, 7, 1):
            data, c = one * 3 + two * 2 + one + last, s.connect()
            c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for n in range(0, len(data), step):
                c.sendall(data[n : n + step])
            out = read_all(c)
            assert out.count(b"HTTP/1.1 200 OK") == 6 and out.count(b"\r\n\r\nabc") == 4
            assert out.count(b"\r\n\r\nde") == 2 and out.endswith(b"\r\n\r\nstatus")
        assert s.metric("connections_accepted_total") == 4  # and this one
        r = s.raw(b"GET /echo HTTP/1.0\r\n\r\n")
        assert b"Connection: close" in r
        with s.connect() as c:
            for _ in range(3):
                c.sendall(b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                assert b"Connection: keep-alive" in c.recv(4096)


def test_a_client_that_says_all_at_once(serve, flow):
    """Request, end of sending; then it waits for the reply."""
    with serve(flow()) as s:
        for _ in range(8):
            with s.connect() as c:
                begin = time.monotonic()
                c.sendall(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\nhi")
                c.shutdown(socket.SHUT_WR)
                out = read_all(c)
                assert (out == b"" or out.endswith(b"hi")) and time.monotonic() - begin < 5 * SLOW


def test_expect_continue(serve, flow):
    head = b"POST /echo HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nConnection: close\r\n"
    with serve(flow(), "--max-body", "1KiB") as s, s.connect() as c:
        c.sendall(head + b"Content-Length: 2\r\n\r\n")
        assert c.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        c.sendall(b"hi")
        assert read_all(c).endswith(b"\r\n\r\nhi")
        r = s.raw(head + b"Content-Length: 2000\r\n\r\n")
        assert r.startswith(b"HTTP/1.1 413 ") and b"100 Continue" not in r


def test_window_of_a_large_body_stays_small(serve, flow):
    """What a client nearby has on its way fits into caches. The kernel lifts the window now and
    then: it counts where it is mostly."""
    snd_wnd, size = 228, 32 * MIB  # offset in struct tcp_info

    def window():
        with s.connect() as c:
            c.sendall(
                b"POST /status/200 HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size
            )
            seen = []
            for _ in range(size // MIB):
                c.sendall(bytes(MIB))
                info = c.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                seen.append(struct.unpack_from("I", info, snd_wnd)[0])
            assert c.recv(100).startswith(b"HTTP/1.1 200 ")
            return sorted(seen)[len(seen) // 2]

    with serve(flow()) as s:
        windows = [window() for _ in range(5)]
        assert sum(w <= 2 * MIB for w in windows) >= 4, windows


# --- hostile ----------------------------------------------------------------------------------

CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
HOSTILE = [
    (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    (b"GET / HTTP/1.1\n" + HOST + b"\r\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + HOST + b"X : y\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n z\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400),
    (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n",
        400,
    ),
    (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999\r\n\r\n", 413),
    (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 20000, 431),
    (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 200 + b"\r\n", 431),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    (CHUNKED + b"zz\r\n", 400),
    (CHUNKED + b"1\r\nab\r\n0\r\n\r\n", 400),
    (CHUNKED + b"1\na\r\n0\r\n\r\n", 400),
    (CHUNKED + b"fffffffffffff\r\n", 413),
    (CHUNKED + b"1;" + b"x" * 400, 400),
    (CHUNKED + b"0\r\nX: " + b"y" * 10000, 400),
]


def test_hostile_requests_are_refused(serve, flow):
    """One reply, then the end: what follows is not taken for a request."""
    with serve(flow()) as s:
        for data, status in HOSTILE:
            r = s.raw(data + b"\r\n\r\nGET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n")
            assert r.startswith(b"HTTP/1.1 %d " % status), (data, r)
            assert r.count(b"HTTP/1.1") == 1, (data, r)
        assert s.ask("/echo", b"x").status == 200
        wait_for(lambda: s.metric("connections") == 1, "they are closed")
        wait_for(lambda: s.metric("live_bytes") + s.metric("body_bytes") == 0, "all is back")


@pytest.mark.parametrize(
    ("head", "status", "says"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nce-specversion: 1.0\r\nce-id: 1\r\n", 400, "ce-type"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-maybe\r\n", 417, "100-continue"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n", 501, "coding"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n", 501, "method"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n", 414, "8 KiB"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/cloudevents-batch+json\r\n",
            415,
            "batches",
        ),
    ],
)
def test_refusals_say_why(serve, flow, head, status, says):
    with serve(flow()) as s:
        reply = s.raw(
            head + b"Content-Length: 0\r\n\r\n" if b"Transfer" not in head else head + b"\r\n"
        )
        head, _, body = reply.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status) and says in json.loads(body)["detail"]


def test_limits_of_bodies(serve, flow):
    with serve(flow(max="64KiB"), "--max-body", "1GiB") as s:
        assert s.ask("/echo", b"x" * 65536).status == 200
        assert s.ask("/echo", b"x" * 65537).status == 413
        r = s.raw(CHUNKED + b"10000\r\n" + b"x" * 65536 + b"\r\n1\r\nx\r\n0\r\n\r\n")
        assert r.startswith(b"HTTP/1.1 413 ")
    with serve(flow(), "--max-memory", "1MiB") as s:
        assert s.ask("/echo", b"x" * MIB).status == 200
        r = s.ask("/echo", b"x" * (MIB + 1))
        assert r.status == 503 and r.headers["Retry-After"]
        with s.connect() as c:  # what is promised counts
            c.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 600000\r\n\r\n")
            wait_for(lambda: s.metric("body_bytes") == 600000, "it counts")
            assert s.ask("/echo", b"x" * 600000).status == 503
        wait_for(lambda: s.metric("body_bytes") == 0, "it is given back")
        assert s.ask("/echo", b"x" * 600000).status == 200


def all_is_back(s):
    """Of fresh instances none stays for long, once nobody asks."""
    wait_for(lambda: s.metric("memory_bytes") == 0, "its memory is back")


def test_memory_of_a_workflow(serve, flow):
    """Whoever wants more is told so, with 503, and what is left goes to those who want less."""
    with serve(flow(max="1GiB"), "--max-body", "1GiB", "--workflow-memory", "32MiB") as s:
        assert s.metric("memory_limit_bytes") == 32 * MIB
        assert s.ask("/echo", b"x" * (20 * MIB)).status == 200
        for request, why in [  # the bodies are refused before they are read
            (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 40000000\r\n\r\n", "for the body"),
            (CHUNKED + b"2625a00\r\n", "for the body"),
            (b"GET /big?40000000 HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", "short of"),
        ]:
            head, _, body = s.raw(request).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: " in head, request
            assert why in json.loads(body)["detail"], request
            assert s.ask("/echo", b"y" * MIB).body == b"y" * MIB
        s.wait_log("its workflow has")
        with s.connect() as c:  # what is promised counts
            c.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 25000000\r\n\r\n")
            wait_for(lambda: s.metric("memory_bytes") >= 25000000, "it counts")
            head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 10000000\r\n\r\n"
            assert s.raw(head).startswith(b"HTTP/1.1 503 ")
        all_is_back(s)
        assert s.ask("/echo", b"x" * 10000000).status == 200


@pytest.mark.parametrize("isolated", [False, True])
def test_memory_of_guests_counts(serve, rr, isolated):
    """Heaps, outputs and small messages that wait; other workflows do not notice."""

    def flow(name, env_of, least, most):
        out = []
        for size, amount in [("less", least), ("more", most)]:
            functions = {"f": {"module": name, "memory": "1GiB", "env": env_of(amount)}}
            edges = [edge("input", "f", "64MiB")]
            if name == "flood":
                functions["g"] = {"module": "tally", "instances": 1}
                edges.append(edge("f.each", "g", "1MiB"))
            path = rr.workflow(functions, edges, "f", f"{name}-{size}.yaml")
            out += ["-r", f"/{name}/{size}={path}"]
        return out

    routes = flow("heap", lambda mib: {"HEAP_MIB": str(mib)}, 10, 100)
    routes += flow("flood", lambda n: {"N": str(n), "SIZE": "4096"}, 500, 30000)
    routes += flow("stdio_upper", lambda n: {}, 0, 0)
    options = ["--isolation", "process"] if isolated else []
    with serve(*routes, "--workflow-memory", "64MiB", *options) as s:
        for _ in range(5):
            for name in "heap", "flood":
                if name == "flood" and isolated:
                    continue  # there the queues of links hold the sender
                r = s.ask(f"/{name}/more", b"x")
                assert r.status == 503 and r.headers["Retry-After"], (name, r.body)
                assert s.ask(f"/{name}/less", b"x").status == 200, name
            # it is there twice: as input and as output
            assert s.ask("/stdio_upper/less", b"x" * (20 * MIB)).body == b"X" * (20 * MIB)
            assert s.ask("/stdio_upper/less", b"x" * (40 * MIB)).status == 503
        s.wait_log("of memory, and its workflow has")
        wait_for(lambda: s.metric("memory_bytes", workflow="/heap/more") == 0, "it is back")
        wait_for(lambda: s.metric("memory_bytes", workflow="/stdio_upper/less") == 0, "it is back")


@pytest.mark.parametrize("isolated", [False, True])
def test_memory_that_nobody_asked_for_counts(serve, rr, isolated):
    """A function may write anywhere in its windows, but not for long."""
    routes = []
    for mib in 20, 200:
        env = {"MIB": str(mib), "MS": "700"}
        path = rr.workflow(
            {"f": {"module": "squat", "env": env}},
            [edge("input", "f", "64MiB")],
            "f",
            f"squat-{mib}.yaml",
        )
        routes += ["-r", f"/{mib}={path}"]
    options = ["--isolation", "process"] if isolated else []
    with serve(*routes, "--workflow-memory", "64MiB", *options) as s:
        for _ in range(3):
            # once as a message, once beside it
            assert s.ask("/20", b"x" * (20 * MIB)).status == 200
            r = s.ask("/200", b"x")
            assert r.status == 503 and r.headers["Retry-After"]
            assert s.metric("memory_bytes", workflow="/200") < MIB
        s.wait_log("of memory, and its workflow has")
        all_is_back(s)


def test_memory_of_the_dead_is_given_back(serve, rr):
    """A process that is killed takes nothing with it."""
    w = rr.workflow(
        {"sleeper": {"module": "http", "deadline": "60s"}},
        [edge("input", "sleeper", "64MiB")],
        "sleeper",
    )
    with serve(w, "--workflow-memory", "64MiB", "--isolation", "process") as s:
        assert s.ask("/echo", b"x").status == 200
        with s.connect() as c:
            head = b"POST /sleep?30000 HTTP/1.1\r\n" + HOST + b"Content-Length: 9000000\r\n\r\n"
            c.sendall(head + b"x" * 9000000)
            wait_for(lambda: s.metric("memory_bytes") > 9000000, "it runs")
            for pid, name in children_of(s.process.pid).items():
                if name == "sleeper":
                    os.kill(pid, signal.SIGKILL)
            assert c.recv(20).startswith(b"HTTP/1.1 502 ")
        all_is_back(s)
        wait_for(lambda: s.ask("/echo", b"x").status == 200, "another works")


def test_slow_clients_are_dropped(serve, flow):
    with serve(flow(), "--header-time", "1s", "--idle", "2s", "--min-rate", "1KiB") as s:
        begin = time.monotonic()
        with s.connect() as head, s.connect() as idle, s.connect() as body:
            head.sendall(b"GET / HTTP/1.1\r\n")
            body.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\nabc")
            assert read_all(head).startswith(b"HTTP/1.1 408 ")
            assert read_all(idle) == b""
            assert read_all(body).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - begin < 20 * SLOW
        with s.connect() as reader:  # asks, and does not read
            reader.sendall(b"GET /big?30000000 HTTP/1.1\r\n" + HOST + b"\r\n")
            wait_for(lambda: s.metric("connections") == 1, "it is closed")
        wait_for(lambda: s.metric("live_bytes") == 0, "all is back")


def test_many_connections(serve, flow):
    with serve(flow(), "--max-connections", "20") as s:
        held = [s.connect() for _ in range(20)]
        time.sleep(0.3)
        r = s.raw(b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n")
        assert r.startswith(b"HTTP/1.1 503 ") and b"Retry-After" in r
        for c in held:
            c.close()
        wait_for(lambda: s.ask("/echo").status == 200, "there is room again")


# --- concurrency ------------------------------------------------------------------------------


def ask_many(s, path, n):
    """Statuses of @n requests at once."""
    out = [None] * n

    def one(k):
        out[k] = s.ask(path).status

    threads = [threading.Thread(target=one, args=(k,)) for k in range(n)]
    for t in threads:
        t.start()
    return threads, out


def test_more_than_the_queue_holds_is_shed(serve, flow):
    with serve(flow(), "--concurrency", "1", "--queue", "2") as s:
        threads, out = ask_many(s, "/sleep?700", 8)
        for t in threads:
            t.join()
        assert sorted(out) == [200] * 3 + [503] * 5
        wait_for(lambda: s.metric("requests_total", code="503") == 5, "all are counted")


def test_each_request_has_clean_memory(serve, rr):
    """Whichever pages the one before it used, and from several connections at once."""
    path = rr.workflow({"f": {"module": "stain"}}, [edge("input", "f", "64MiB")], "f")
    places = [5, 4096, 70_000, 300_000, MIB - 1, MIB + 100, MIB + 65_536, 2 * MIB - 1]

    def ask(c, look, *at):
        c.request("POST", "/", struct.pack(f"<{1 + len(at)}I", look, *at))
        return c.getresponse().read()

    def client(seed, wrong):
        pick = random.Random(seed)
        c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=20 * SLOW)
        for n in range(300):
            if n % 100 == 50:
                got, want = ask(c, 1), b"0 0"  # a look at all of it
            elif n % 40 == 39:
                at = pick.sample(places, 3)
                got, want = ask(c, 0, *at), b"0 %d" % at[-1]
            else:
                got, want = ask(c, 0, places[1], places[5]), b"0 %d" % places[5]
            if got != want:
                wrong.append((n, got, want))
        c.close()

    with serve(path) as s:
        wrong = []
        clients = [threading.Thread(target=client, args=(n, wrong)) for n in range(4)]
        for c in clients:
            c.start()
        for c in clients:
            c.join()
        assert wrong == []


def test_those_who_leave_are_not_served(serve, flow):
    with serve(flow(), "--concurrency", "1") as s:
        first, _ = ask_many(s, "/sleep?800", 1)
        wait_for(lambda: s.metric("pool_running") == 1, "it runs")
        for _ in range(5):
            with s.connect() as c:
                c.sendall(b"GET /sleep?800 HTTP/1.1\r\n" + HOST + b"\r\n")
                time.sleep(0.05)
        wait_for(lambda: s.metric("queue_depth") == 0, "they are forgotten")
        first[0].join()
        wait_for(lambda: s.metric("cancelled_total") == 5, "they are counted")
        assert s.metric("run_seconds_count") == 1


def test_what_runs_for_nobody_is_stopped(serve, flow):
    with serve(flow(), "--concurrency", "2") as s:
        for _ in range(3):
            with s.connect() as c:
                c.sendall(b"GET /loop HTTP/1.1\r\n" + HOST + b"\r\n")
                time.sleep(0.2)
        wait_for(lambda: s.metric("cancelled_total") == 3, "they are stopped", 5)
        assert s.metric("pool_running") == 0
        assert s.ask("/echo", b"a").body == b"a"


def test_a_slow_workflow_does_not_starve_others(serve, flow):
    with serve(flow(name="a.yaml"), "-r", f"/b={flow('echo', 'b.yaml')}") as s:
        threads, out = ask_many(s, "/a/sleep?2000", 30)
        time.sleep(0.3)
        begin = time.monotonic()
        for _ in range(20):
            assert s.ask("/b", b"x").status == 200
        assert time.monotonic() - begin < 1.5 * SLOW
        for t in threads:
            t.join()
        assert out == [200] * 30


@pytest.mark.parametrize("threads", [1, 2])
def test_a_sudden_long_run_does_not_hold_others_up(serve, flow, threads):
    """The workflow is known to be fast, so it runs on the thread that reads."""
    with serve(flow(), "--threads", threads, "--deadline", "10s") as s, s.connect() as c:
        for _ in range(50):
            assert s.ask("/echo", b"x").status == 200
        assert s.metric("runs_inline_total") > 0
        c.sendall(b"GET /sleep?3000 HTTP/1.1\r\n" + HOST + b"\r\n")
        time.sleep(0.1)
        for _ in range(20):
            assert s.ask("/echo", b"x").status == 200
        assert not select.select([c], [], [], 0)[0], "the others had to wait for the long run"
        assert c.recv(4096).endswith(b"slept")
        assert s.metric("runs_taken_over_total") >= 1


def epoll_sets(pid):
    """How many sockets each epoll descriptor of a process watches."""
    links = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            links[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
    found = {}
    for fd, link in links.items():
        if link == "anon_inode:[eventpoll]":
            info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
            watched = re.findall(r"^tfd: *(\d+)", info, re.M)
            found[fd] = sum(links.get(w, "").startswith("socket:") for w in watched)
    return found


def test_connections_are_spread_over_loops(serve, flow):
    """Of which there are two per thread."""
    with serve(flow(), "--threads", "3") as s, ExitStack() as stack:
        pid = s.process.pid
        idle = epoll_sets(pid)  # those that listen

        def connections():
            return sorted(c for fd, n in epoll_sets(pid).items() if (c := n - idle[fd]))

        few = [stack.enter_context(s.connect()) for _ in range(9)]
        wait_for(lambda: connections() == [1] * 3 + [2] * 3, "nine connections")
        for c in few[:5]:
            c.close()
        wait_for(lambda: sum(connections()) == 4, "four connections")
        more = [stack.enter_context(s.connect()) for _ in range(8)]
        wait_for(lambda: connections() == [2] * 6, "twelve connections")
        for c in few[5:] + more:
            c.sendall(b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\n" + HOST + b"\r\nhi")
            assert c.recv(4096).endswith(b"hi")


def test_connections_may_come_and_go_at_once(serve, flow):
    """Each is handed to another thread, or not, while it ends."""
    with serve(flow(), "--threads", "4") as s:
        for _ in range(20):
            with ExitStack() as stack:
                for k in range(16):
                    c = stack.enter_context(s.connect())
                    if k % 2:
                        c.sendall(b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n")
        assert s.ask("/echo", b"x").status == 200
        wait_for(lambda: s.metric("connections") == 1, "all connections ended")


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rests(pid):
    before = cpu_seconds(pid)
    time.sleep(0.3)
    return cpu_seconds(pid) - before < 0.1


def test_threads_poll_if_asked_to(serve, flow):
    def cpu_of_ten_requests(spin):
        with serve(flow(), "--spin", spin) as s:
            assert s.ask("/echo", b"x").status == 200
            before = cpu_seconds(s.process.pid)
            for _ in range(10):
                time.sleep(0.1)
                assert s.ask("/echo", b"x").status == 200
            used = cpu_seconds(s.process.pid) - before
            wait_for(lambda: rests(s.process.pid), "it sleeps again")
        return used

    assert cpu_of_ten_requests(100000) > cpu_of_ten_requests(0) + 0.3


def test_many_clients_at_once(serve, flow):
    """Everybody gets their own."""
    with serve(flow(), "-v") as s:
        wrong = []

        def client(k):
            c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=20 * SLOW)
            for n in range(40):
                body = bytes([k]) * (1 << (n % 20))
                c.request("POST", "/echo", body)
                if c.getresponse().read() != body:
                    wrong.append((k, n))

        threads = [threading.Thread(target=client, args=(k,)) for k in range(16)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not wrong
        # counted once it was sent, which its reader may see first
        answered = {"code": "200", "workflow": "/"}
        wait_for(lambda: s.metric("requests_total", **answered) == 640, "all are counted")
        wait_for(lambda: s.metric("live_bytes") + s.metric("body_bytes") == 0, "all is back")


# --- CloudEvents ------------------------------------------------------------------------------


EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
JSON_EVENT = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


def seen_by(reply):
    return dict(line.split("=", 1) for line in reply.body.decode().splitlines())


def structured(s, event, path="/meta"):
    text = event if isinstance(event, (str, bytes)) else json.dumps(event)
    return s.ask(
        path, text, headers={"Content-Type": "application/cloudevents+json; charset=utf-8"}
    )


def test_events_in_binary_mode(serve, flow):
    with serve(flow()) as s:
        r = s.ask("/meta", b"hi", headers={**EVENT, "Ce-Subject": "%E2%82%AC 1%", "ce-num": "7"})
        seen = seen_by(r)
        assert seen["ce-id"] == "1" and seen["ce-source"] == "/s" and seen["ce-type"] == "t"
        assert seen["ce-subject"] == "€ 1%" and seen["ce-num"] == "7" and seen["body"] == "hi"
        for missing in ("ce-id", "ce-source", "ce-type"):
            headers = {k: v for k, v in EVENT.items() if k != missing}
            assert s.ask("/meta", b"", headers=headers).status == 400
        assert s.ask("/meta", b"", headers={**EVENT, "ce-specversion": "0.3"}).status == 400
        batch = {"Content-Type": "application/cloudevents-batch+json"}
        assert s.ask("/meta", b"[]", headers=batch).status == 415


@pytest.mark.parametrize(
    "extra, type, body",
    [
        ({}, "application/json", ""),
        ({"data": {"a": [1, {"data": "}"}]}}, "application/json", '{"a": [1, {"data": "}"}]}'),
        ({"data": 12345678901234567890123}, "application/json", "12345678901234567890123"),
        ({"data": 'q"\\'}, "application/json", '"q\\"\\\\"'),
        ({"data": "text", "datacontenttype": "text/plain"}, "text/plain", "text"),
        ({"data_base64": "aGk=", "datacontenttype": "x/y"}, "x/y", "hi"),
        ({"data_base64": "aGkh", "datacontenttype": "x/y"}, "x/y", "hi!"),
        ({"data": None, "subject": None}, "application/json", "null"),
    ],
)
def test_events_in_structured_mode(serve, flow, extra, type, body):
    with serve(flow()) as s:
        seen = seen_by(structured(s, {**JSON_EVENT, "num": 7, **extra}))
        assert seen["ce-id"] == "1" and seen["ce-num"] == "7" and seen["ce-type"] == "t"
        assert seen["content-type"] == type and seen["body"] == body


def test_events_that_are_none(serve, flow):
    with serve(flow()) as s:
        for bad in [
            "",
            "{",
            "[]",
            "{}",
            json.dumps(JSON_EVENT) + "x",
            json.dumps({**JSON_EVENT, "specversion": "2.0"}),
            json.dumps({**JSON_EVENT, "id": ""}),
            json.dumps({**JSON_EVENT, "Bad": "1"}),
            json.dumps({**JSON_EVENT, "a": {}}),
            json.dumps({**JSON_EVENT, "data": 1, "data_base64": "aGk="}),
            json.dumps({**JSON_EVENT, "data_base64": "a"}),
            json.dumps({**JSON_EVENT, "data_base64": 1}),
            json.dumps(JSON_EVENT)[:-1] + ', "data": 1, "data": 2}',
            json.dumps({**JSON_EVENT, "data": [[]]}).replace("[[]]", "[" * 100 + "]" * 100),
            json.dumps(JSON_EVENT).encode().replace(b'"t"', b'"\xff"'),
        ]:
            assert structured(s, bad).status == 400, bad
        assert structured(s, {**JSON_EVENT, "data": "x" * MIB}).status == 413
        assert structured(s, JSON_EVENT).status == 200


def test_duplicates(serve, flow):
    with serve(flow(), "--duplicates", "1500ms") as s:
        assert s.ask("/echo", b"x", headers=EVENT).body == b"x"
        r = s.ask("/echo", b"x", headers=EVENT)
        assert (r.status, r.body) == (202, b"")
        assert structured(s, JSON_EVENT).status == 202
        for other in ({"ce-id": "2"}, {"ce-source": "/t"}):
            assert s.ask("/echo", b"x", headers={**EVENT, **other}).status == 200
        failing = {**EVENT, "ce-id": "3"}
        assert s.ask("/trap", b"x", headers=failing).status == 502
        assert s.ask("/status/503", b"x", headers=failing).status == 503
        assert s.ask("/echo", b"x", headers=failing).status == 200
        assert s.ask("/echo", b"x", headers=failing).status == 202
        with s.connect() as c:
            c.sendall(
                b"POST /sleep?900 HTTP/1.1\r\n" + HOST + b"ce-specversion: 1.0\r\nce-id: 4\r\n"
                b"ce-source: /s\r\nce-type: t\r\n\r\n"
            )
            time.sleep(0.3)
            assert s.ask("/echo", b"x", headers={**EVENT, "ce-id": "4"}).status == 409
            assert c.recv(4096).endswith(b"slept")
        time.sleep(1.6)
        assert s.ask("/echo", b"x", headers=EVENT).status == 200
    with serve(flow()) as s:
        assert [s.ask("/echo", b"x", headers=EVENT).status for _ in range(2)] == [200, 200]


def test_an_event_that_failed_may_come_again_at_once(serve, flow):
    """Over another connection, which another thread may have."""
    with serve(flow(), "--duplicates", "60s") as s:
        clients = [http.client.HTTPConnection("127.0.0.1", s.port) for _ in range(8)]

        def ask(n, path):
            c = clients[n % len(clients)]
            c.request("POST", path, b"x", {**EVENT, "ce-id": str(n // 3)})
            r = c.getresponse()
            r.read()
            return r.status

        for n in range(0, 1200, 3):
            assert (ask(n, "/status/503"), ask(n + 1, "/echo")) == (503, 200), n
        for c in clients:
            c.close()


# --- life -------------------------------------------------------------------------------------


def test_sigterm_lets_what_runs_finish(serve, flow):
    with serve(flow()) as s:
        threads, out = ask_many(s, "/sleep?1000", 3)
        idle = s.connect()
        wait_for(lambda: s.metric("pool_running") == 3, "they run")
        s.process.send_signal(signal.SIGTERM)
        assert read_all(idle) == b""
        for t in threads:
            t.join()
        assert out == [200] * 3
        s.process.wait(10)
        with pytest.raises(ConnectionRefusedError):
            s.connect()


def test_a_drain_has_an_end(serve, flow):
    with serve(flow(), "--drain", "500ms", "--deadline", "1m") as s:
        threads, out = ask_many(s, "/loop", 1)
        wait_for(lambda: s.metric("pool_running") == 1, "it runs")
        begin = time.monotonic()
        s.process.send_signal(signal.SIGTERM)
        s.process.wait(20 * SLOW)
        threads[0].join()
        assert out == [503] and time.monotonic() - begin < 5 * SLOW


def test_reload(serve, flow, rr, tmp_path):
    shutil.copy(GUESTS / "tests/http.wasm", tmp_path / "f.wasm")
    path = rr.workflow({"f": {"module": str(tmp_path / "f.wasm")}}, [edge("input", "f")], "f")
    with serve(path, "-v") as s:
        failed, stop = [], threading.Event()

        def keep_asking():
            while not stop.is_set():
                if s.ask("/echo", b"x").status != 200:
                    failed.append(1)

        t = threading.Thread(target=keep_asking)
        t.start()
        for n in range(1, 4):
            s.process.send_signal(signal.SIGHUP)
            wait_for(lambda n=n: s.metric("generation") == n, "reloaded")
        (tmp_path / "f.wasm").write_bytes(b"not wasm")
        s.process.send_signal(signal.SIGHUP)
        s.wait_log("reload refused")
        assert s.metric("reloads_refused_total") == 1 and s.metric("generation") == 3
        stop.set()
        t.join()
        assert not failed and s.ask("/echo", b"x").body == b"x"


def test_unix_socket(serve, flow, tmp_path):
    path = tmp_path / "s"
    for _ in range(2):
        with serve(flow(), listen=f"unix:{path}"):
            r = subprocess.run(
                ["curl", "-sS", "--unix-socket", path, "-d", "hi", "http://x/echo"],
                check=True,
                capture_output=True,
            )
            assert r.stdout == b"hi"
        assert not path.exists()
    stale = socket.socket(socket.AF_UNIX)  # of a server that was killed
    stale.bind(str(path))
    stale.close()
    with serve(flow(), listen=f"unix:{path}"):
        pass


def test_socket_activation(serve, flow):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        # LISTEN_PID is the server's own, which only a shell in between knows beforehand
        script = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" serve "$1" 3<&{fd}'
        with serve(flow(), listen=None, shell=script, pass_fds=(fd,)) as s:
            assert s.ask("/echo", b"hi", port=port).body == b"hi"
            assert not s.ports


def test_ipv6_and_admin(serve, flow):
    with serve(flow(), "--admin", "127.0.0.1:0", listen="[::1]:0") as s:
        c = http.client.HTTPConnection("::1", s.ports[0])
        c.request("GET", "/echo")
        assert c.getresponse().status == 200
        c = http.client.HTTPConnection("::1", s.ports[0])
        c.request("GET", "/metrics")
        assert b"roadrunner_" not in c.getresponse().read()
        for path, status in [("/metrics", 200), ("/healthz", 200), ("/readyz", 200), ("/x", 404)]:
            assert s.ask(path, port=s.ports[1]).status == status
        assert s.ask("/metrics", b"x", port=s.ports[1]).status == 405


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """An authority, and certificates for a server and a client."""
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*args):
        subprocess.run(["openssl", *args], check=True, cwd=folder, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(
            *f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial".split(),
            *f"-extfile ext -out {name}.pem".split(),
        )
    return folder


def test_tls(serve, flow, pki, tmp_path):
    data = os.urandom(3 * MIB + 5)
    (tmp_path / "in").write_bytes(data)
    files = ["--tls-cert", pki / "server.pem", "--tls-key", pki / "server.key"]
    with serve(flow(), *files, "--header-time", "1s", "--admin", "127.0.0.1:0") as s:
        curl = [
            "curl",
            "-sS",
            "--fail",
            "--cacert",
            pki / "ca.pem",
            f"https://127.0.0.1:{s.port}/echo",
        ]
        for more in ([], ["-H", "Transfer-Encoding: chunked"], ["--tls-max", "1.2"]):
            for _ in range(3):
                r = subprocess.run(
                    [*curl, *more, "--data-binary", f"@{tmp_path}/in"], capture_output=True
                )
                assert r.returncode == 0 and r.stdout == data, r.stderr
        context = ssl.create_default_context(cafile=pki / "ca.pem")
        context.set_alpn_protocols(["h2", "http/1.1"])
        with context.wrap_socket(s.connect(), server_hostname="127.0.0.1") as c:
            assert c.selected_alpn_protocol() == "http/1.1"
            c.sendall(
                b"GET /big?9000000 HTTP/1.1\r\n"
                + HOST
                + b"\r\n" * 1
                + b"GET /status/418 HTTP/1.1\r\n"
            )
            c.sendall(HOST + b"Connection: close\r\n\r\n")
            out = read_all(c)  # ends with a notice, or this would raise
            assert len(out) > 9000000 and b"HTTP/1.1 418 " in out[-300:]
        assert b"HTTP/1.1 200" not in s.raw(b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n")
        with s.connect() as c:  # a handshake has its time, too
            c.sendall(b"\x16\x03\x01")
            assert read_all(c) == b""
        assert s.ask("/readyz", port=s.ports[1]).status == 200
        s.process.send_signal(signal.SIGHUP)
        s.wait_log("roadrunner: reloaded")
        assert subprocess.run([*curl, "-d", "x"], capture_output=True).stdout == b"x"
    with serve(flow(), *files, "--tls-client-ca", pki / "ca.pem") as s:
        curl = [
            "curl",
            "-sS",
            "--cacert",
            pki / "ca.pem",
            f"https://127.0.0.1:{s.port}/echo",
            "-d",
            "x",
        ]
        assert subprocess.run(curl, capture_output=True).returncode != 0
        cert = ["--cert", pki / "client.pem", "--key", pki / "client.key"]
        assert subprocess.run([*curl, *cert], capture_output=True).stdout == b"x"


def test_access_log(serve, flow, tmp_path):
    log = tmp_path / "log"
    with serve(flow(), "--access-log", log, "--threads", "1") as s:
        s.ask('/echo"\\', b"abc")
        s.ask("/trap")
        s.raw(b"bad\r\n\r\n")
        wait_for(lambda: log.read_text().count("\n") == 3, "log")  # it comes after the reply
        log.rename(tmp_path / "old")
        s.process.send_signal(signal.SIGHUP)
        s.wait_log("reloaded")
        s.ask("/echo")
    assert json.loads(log.read_text())["path"] == "/echo"
    log = tmp_path / "old"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(x["method"], x["path"], x["status"]) for x in lines] == [
        ("POST", '/echo"\\', 200),
        ("GET", "/trap", 502),
        ("-", "-", 400),
    ]
    assert lines[0]["received"] == lines[0]["sent"] == 3 and len(lines[0]["trace"]) == 32


def test_metrics_are_well_formed(serve, flow):
    with serve(flow()) as s:
        for _ in range(10):
            s.ask("/echo", b"x" * 300000)
        wait_for(lambda: s.metric("request_seconds_count", workflow="/") == 10, "all are counted")
        text = s.ask("/metrics").body.decode()
        typed = set()
        for line in text.splitlines():
            if m := re.fullmatch(r"# TYPE (\S+) (counter|gauge|histogram)", line):
                assert m[1] not in typed
                typed.add(m[1])
            elif not line.startswith("# HELP "):
                assert re.fullmatch(r'\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [0-9.e+-]+', line), line
                name = re.sub(r"_(bucket|sum|count)$", "", re.match(r"\w+", line)[0])
                assert name in typed or re.match(r"\w+", line)[0] in typed
        assert s.metric("handoffs_total", path="move") == 10


def test_isolated_functions(serve, rr):
    path = rr.workflow(
        {"f": {"module": "http", "isolation": "process"}}, [edge("input", "f", "64MiB")], "f"
    )
    data = os.urandom(5 * MIB)
    with serve(path) as s:
        assert s.ask("/echo", b"small").body == b"small"
        for _ in range(3):
            assert s.ask("/echo", data).body == data
        assert s.ask("/trap").status == 502
        assert s.ask("/status/207").status == 207
        threads, out = ask_many(s, "/echo", 10)
        for t in threads:
            t.join()
        assert out == [200] * 10


def test_isolated_workflows_come_and_go(serve, flow):
    """The processes of one hold nothing of another's: a reload and the end wait for none."""
    paths = [flow(name=f"{name}.yaml", isolation="process") for name in "ab"]
    with serve("-r", f"/a={paths[0]}", "-r", f"/b={paths[1]}") as s:
        for n in range(1, 4):
            for name in "ab":
                assert s.ask(f"/{name}/echo", b"x").body == b"x"
            before = children_of(s.process.pid)
            assert len(before) == 4, before  # each has a process that starts others, and one of f
            s.process.send_signal(signal.SIGHUP)
            wait_for(lambda n=n: s.metric("reloads_total") == n, "it is read again")
            wait_for(
                lambda old=before: not old.keys() & children_of(s.process.pid).keys(), "they end"
            )
        s.process.send_signal(signal.SIGTERM)
        s.process.wait(10 * SLOW)
        assert s.process.returncode == 0


def test_routes(serve, flow):
    with serve("-r", f"/a={flow()}", "-r", f"/a/b={flow('echo', 'b.yaml')}") as s:
        assert s.ask("/a/status/201").status == 201
        assert s.ask("/a/b/status/201", b"x").status == 200
        assert s.ask("/a/bc/status/201").status == 201
        assert s.ask("/ab").status == 404 and s.ask("/").status == 404


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["FLOW", "--listen", "nowhere"],
        ["FLOW", "--listen", "::1:80"],
        ["FLOW", "--queue", "0"],
        ["FLOW", "--spin", "-1"],
        ["FLOW", "--spin", "100001"],
        ["FLOW", "--deadline", "1h"],
        ["FLOW", "--max-body", "2GiB"],
        ["FLOW", "--tls-cert", "x"],
        ["FLOW", "--tls-client-ca", "x"],
        ["-r", "a=FLOW"],
        ["-r", "/a/=FLOW"],
        ["-r", "/a=FLOW", "-r", "/a=FLOW"],
    ],
)
def test_bad_options(rr, flow, args):
    path = str(flow())
    r = rr("serve", *[a.replace("FLOW", path) for a in args], timeout=20 * SLOW)
    assert r.status == 64 and r.err


def test_configuration(serve, flow, rr, tmp_path):
    """A file, the environment, the command line: the last one that says something wins."""
    a, b = flow(name="a.yaml"), flow(name="b.yaml")
    conf = tmp_path / "serve.conf"
    conf.write_text(
        f"# options\n\nroute = /a={a}\nroute=/b={b}\n max-body = 1KiB \nqueue = 7\r\n"
        "concurrency = 3\nno-cache = false\nverbose = 1\nspin = 0"
    )
    rr.env["ROADRUNNER_SERVE_MAX_BODY"] = "2KiB"
    rr.env["ROADRUNNER_SERVE_CONCURRENCY"] = "4"
    with serve("--config", conf, "--concurrency", "5") as s:
        assert s.ask("/a/echo", b"x" * 2048).status == 200
        assert s.ask("/b/echo", b"x" * 2049).status == 413
        assert s.metric("queue_limit") == 7 and s.metric("pool_limit") == 5
    rr.env["ROADRUNNER_SERVE_CONFIG"] = str(conf)
    rr.env["ROADRUNNER_SERVE_ROUTE"] = f"/c={a} /d={b}"
    with serve() as s:
        assert s.ask("/c/echo", b"x").status == 200 == s.ask("/d/echo", b"x").status
        assert s.ask("/a/echo", b"x").status == 404 and s.metric("pool_limit") == 4
    del rr.env["ROADRUNNER_SERVE_ROUTE"]
    conf.write_text(f"workflow = {b}\n")
    with serve(a) as s:
        assert s.ask("/echo", b"x").status == 200


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max-body = lots\n", "max-body"),
        ("spin = 1ms\n", "--spin takes microseconds"),
        ("\nmax_body = 1KiB\n", "no option 'max_body'"),
        ("quiet = perhaps", "true or false"),
        ("listen", "option = value"),
        ("config = other", "no option 'config'"),
        ("a\0b = 1", "no file of options"),
        ("#" * 300000, "no file of options"),
        (None, "cannot read"),
    ],
)
def test_bad_configuration(rr, flow, tmp_path, text, says):
    if text is not None:
        (tmp_path / "serve.conf").write_text(text)
    r = rr("serve", flow(), "--config", tmp_path / "serve.conf")
    assert r.status in (64, 65, 66) and says in r.err and "serve.conf" in r.err, r
    r = rr("serve", flow(), env={"ROADRUNNER_SERVE_QUEUE": "many"})
    assert r.status == 64 and "ROADRUNNER_SERVE_QUEUE" in r.err


def test_a_taken_address(serve, flow, rr):
    with serve(flow()) as s:
        r = rr("serve", flow(), "--listen", f"127.0.0.1:{s.port}", timeout=20 * SLOW)
        assert r.status == 75 and "Address already in use" in r.err


def test_photo_over_http(serve, tmp_path):
    photo, native = tmp_path / "photo.jpg", tmp_path / "native.jpg"
    subprocess.run([ROOT / "tools/get-photo", photo], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([os.environ["RR_PHOTO_NATIVE"], photo, native], check=True)
    with serve(EXAMPLES / "photo/workflow.yaml") as s:
        for _ in range(3):
            r = subprocess.run(
                ["curl", "-sS", "--fail", "--data-binary", f"@{photo}", f"127.0.0.1:{s.port}/"],
                check=True,
                capture_output=True,
            )
            assert r.stdout == native.read_bytes()
