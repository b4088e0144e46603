# SPDX-License-Identifier: Apache-2.0
"""roadrunner serve: asynchronous messages, with real processes that are killed."""

import http.client
import http.server
import json
import os
import random
import shutil
import signal
import sqlite3
import ssl
import subprocess
import threading
import time
from contextlib import closing, contextmanager

import pytest
from conftest import BIN, MIB, SLOW, edge
from test_serve import Server, pki, wait_for  # noqa: F401

ASYNC = {"Prefer": "respond-async"}


class Flow:
    """A workflow of the guest `http`, with what `delivery` and `queue` say."""

    def __init__(self, rr, tmp_path):
        self.rr = rr
        self.folder = tmp_path
        (tmp_path / "data").mkdir()

    def __call__(self, name="flow.yaml", isolation=None, functions=None, edges=None, **fields):
        folders = [{"host": str(self.folder / "data"), "guest": "/data", "writable": True}]
        functions = functions or {"f": {"module": "http", "folders": folders}}
        path = self.rr.workflow(functions, edges or [edge("input", "f", "64MiB")], "f", name)
        document = json.loads(path.read_text())
        if isolation:
            document["isolation"] = isolation
        document.update(fields)
        path.write_text(json.dumps(document))
        return path

    def calls(self):
        """(id, attempt) as the function saw them, and when."""
        file = self.folder / "data/calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [tuple(line.split()) for line in lines]


@pytest.fixture
def flow(rr, tmp_path):
    return Flow(rr, tmp_path)


class Client(Server):
    def send(self, path="/echo", body=b"hello", headers=None, **kw):
        return self.ask(path, body, headers={**ASYNC, **(headers or {})}, **kw)

    def accepted(self, *args, **kw):
        r = self.send(*args, **kw)
        assert r.status == 202, r.body
        return r.headers["Location"]

    def state(self, location):
        r = self.ask(location)
        return json.loads(r.body) if r.status == 200 else {"state": "none"}

    def wait_state(self, location, want, seconds=20):
        wait_for(lambda: self.state(location)["state"] == want, f"{location} {want}", seconds)
        return self.state(location)


@pytest.fixture
def serve(rr):
    @contextmanager
    def start(*args, end=signal.SIGTERM, status=0, limits=None):
        process = subprocess.Popen(
            [BIN, "serve", *map(str, args), "--listen", "127.0.0.1:0"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=rr.env,
            preexec_fn=limits,
        )
        client = Client(process)
        try:
            assert client.ready.wait(60 * SLOW) and process.poll() is None, client.lines
            yield client
        finally:
            if process.poll() is None:
                process.send_signal(end)
            try:
                process.wait(60 * SLOW)
            finally:
                process.kill()
                client.reader.join(10)
        if end == signal.SIGTERM:
            assert process.returncode == status, "\n".join(client.lines)

    return start


class Receiver:
    """A server that callbacks and dead letters go to; @answers: statuses, the last one stays."""

    def __init__(self, answers=(200,), delay=0, tls=None):
        self.got = []
        self.answers = list(answers)
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(delay)
                answers = receiver.answers
                status = answers.pop(0) if len(answers) > 1 else answers[0]
                receiver.got.append((time.monotonic(), self.path, self.headers, body))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http{'s' if tls else ''}://{self.host}/hook"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls / "server.pem", tls / "server.key")
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, n=1):
        wait_for(lambda: len(self.got) >= n, f"{n} POSTs")
        return self.got

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver():
    made = []

    def make(*args, **kw):
        made.append(Receiver(*args, **kw))
        return made[-1]

    yield make
    for r in made:
        r.close()


# --- accepted, and fetched ----------------------------------------------------------------------


@pytest.mark.parametrize("queue", [None, "queue"])
@pytest.mark.parametrize("isolation", [None, "process"])
def test_accepted_and_fetched(serve, flow, queue, isolation):
    path = flow(isolation=isolation, **({"queue": {"path": queue}} if queue else {}))
    with serve(path) as s:
        for size in (0, 5, 16384, 16385, 3 * MIB + 7):
            body = os.urandom(size)
            r = s.send(body=body, headers={"Content-Type": "text/x"})
            assert r.status == 202 and r.headers["Preference-Applied"] == "respond-async"
            location = r.headers["Location"]
            assert location.endswith(r.headers["X-Call-Id"]) and json.loads(r.body)["id"]
            state = s.wait_state(location, "succeeded")
            assert state["attempts"] == 1 and state["status"] == 200 and state["bytes"] == size
            for _ in range(2):
                assert s.ask(state["result"]).body == body
        r = s.ask(s.accepted("/header?x-a=b") + "/result")
        wait_for(lambda: s.ask(location + "/result").status == 200, "a result")
        assert s.metric("async_accepted_total") == 6
        wait_for(lambda: s.metric("async_succeeded_total") == 6, "six succeeded")
        assert s.metric("async_depth") == 0 and s.metric("async_bytes") > 3 * MIB


def test_it_is_as_if_it_had_waited(serve, flow):
    """Status, headers and problems of a result are those of a synchronous reply."""
    with serve(flow()) as s:
        for path in ("/header?x-a=b", "/status/201", "/refuse", "/trap", "/meta"):
            location, now = s.accepted(path), s.ask(path, b"hello")
            wait_for(lambda at=location: s.ask(at + "/result").status != 202, path)
            then = s.ask(location + "/result")
            assert then.status == now.status
            assert then.headers["Content-Type"] == now.headers["Content-Type"]
            assert then.headers["x-a"] == now.headers["x-a"]
            if path == "/trap":
                late, at_once = json.loads(then.body), json.loads(now.body)
                assert len(late.pop("trace")) == len(at_once.pop("trace")) == 32
                assert late == at_once
            elif path != "/meta":
                assert then.body == now.body


def test_what_is_asked_of_it(serve, flow):
    with serve(flow()) as s:
        slow = s.accepted("/sleep?400")
        assert s.state(slow)["state"] in ("waiting", "running")
        r = s.ask(slow + "/result")
        assert r.status == 202 and r.headers["Retry-After"] and json.loads(r.body)["state"]
        assert s.ask(slow, method="PUT", body=b"").status == 405
        assert s.ask(slow + "/result", method="DELETE").status == 405
        assert s.ask(slow[:-1]).status == 404 and s.ask(slow + "x").status == 404
        assert s.ask(slow[:-1] + "/").status == 404
        assert s.ask(slow.replace("messages", "other")).status == 200  # a path like any other
        other = slow[:-2] + ("aa" if slow[-2:] != "aa" else "bb")
        assert s.ask(other).status == 404
        s.wait_state(slow, "succeeded")
        head = s.ask(slow + "/result", method="HEAD")
        assert head.status == 200 and head.body == b""
        assert s.ask(slow, method="DELETE").status == 204
        assert s.ask(slow).status == 404


def test_without_the_wish_it_waits(serve, flow):
    with serve(flow()) as s:
        assert s.ask("/echo", b"a").status == 200
        assert s.send(body=b"b", headers={"Prefer": "wait=5, respond-async"}).status == 202
        assert s.send(body=b"b", headers={"Prefer": "respond-asynchronously"}).status == 200
    with serve(flow(queue={"always": True})) as s:
        assert s.ask("/echo", b"a").status == 202


def test_results_are_forgotten(serve, flow):
    with serve(flow(queue={"path": "q", "keep": "PT1S"})) as s:
        at = s.accepted(body=b"x" * 20000)
        s.wait_state(at, "succeeded")
        wait_for(lambda: s.ask(at).status == 404, "it is forgotten")
        files = [f for f in os.listdir(flow.folder / "q") if f.endswith((".in", ".out"))]
        assert not files and s.metric("async_bytes") == 0


# --- retries, dead letters ----------------------------------------------------------------------


def letters(path):
    """The dead letters of a file: (head, payload)."""
    data, found = path.read_bytes() if path.exists() else b"", []
    while data:
        head, _, rest = data.partition(b"\n")
        head = json.loads(head)
        n = head["payload_bytes"]
        found.append((head, rest[:n]))
        assert rest[n : n + 1] == b"\n"
        data = rest[n + 1 :]
    return found


@pytest.mark.parametrize("policy", ["linear", "exponential"])
def test_retries_with_growing_pauses(serve, flow, policy):
    delivery = {"retry": 3, "backoffPolicy": policy, "backoffDelay": "PT0.2S"}
    with serve(flow(delivery=delivery, queue={"path": "q"})) as s:
        begin = time.monotonic()
        at = s.accepted("/flaky?3")
        state = s.wait_state(at, "succeeded")
        took = time.monotonic() - begin
        assert state["attempts"] == 4
        assert s.metric("async_retries_total") == 3
        # 0.2 + 0.4 + 0.6, or 0.2 + 0.4 + 0.8
        assert took > (1.2 if policy == "linear" else 1.4)
        assert flow.calls() == [(at[-32:], str(n)) for n in range(1, 5)]


@pytest.mark.parametrize("queue", [{}, {"path": "q"}])
def test_dead_letters_to_a_file(serve, flow, queue):
    delivery = {"retry": 1, "backoffDelay": "PT0.05S"}
    with serve(flow(delivery=delivery, dead_letters="dead", queue=queue)) as s:
        big = os.urandom(100000)
        one, two = s.accepted("/trap", b"lost"), s.accepted("/refuse", big)
        assert s.wait_state(one, "failed")["attempts"] == 2
        assert s.wait_state(two, "failed")["attempts"] == 1  # 422 would be the same again
        wait_for(lambda: len(letters(flow.folder / "dead")) == 2, "two letters")
        found = {head["delivery_id"]: (head, body) for head, body in letters(flow.folder / "dead")}
        head, body = found[one[-32:]]
        assert body == b"lost" and head["attempts"] == 2 and head["error"] and head["to"] == "f"
        assert found[two[-32:]][1] == big
        assert s.ask(two + "/result").status == 422
        assert s.metric("dead_letters_total") == 2 and s.metric("async_failed_total") == 2
        about = head["attributes"]
        assert about["id"] == one[-32:] and about["source"] == "roadrunner:flow" and about["type"]
        assert about["knativeerrordest"] == "roadrunner:flow" and about["rrattempts"] == "2"
        assert about["knativeerrorcode"] == "502" == str(head["status"])
        assert about["knativeerrordata"] == head["error"] and "traceparent" in about
        assert found[two[-32:]][0]["attributes"]["knativeerrorcode"] == "422"


def test_dead_letters_to_a_uri(serve, flow, receiver):
    sink = receiver([503, 200])
    delivery = {"retry": 1, "backoffDelay": "PT0.05S", "deadLetterSink": {"uri": sink.url}}
    event = {"ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-specversion": "1.0"}
    with serve(flow(delivery=delivery)) as s:
        at = s.accepted("/trap", b"lost", {"Content-Type": "text/x", **event})
        sink.wait(2)
        s.wait_state(at, "failed")
        _, path, headers, body = sink.got[1]
        assert path == "/hook" and body == b"lost" and headers["Content-Type"] == "text/x"
        assert headers["ce-id"] == "1" and headers["ce-knativeerrorcode"] == "502"
        assert headers["X-Call-Id"] == at[-32:] and headers["X-Delivery-Attempt"] == "2"
        assert headers["ce-knativeerrordest"] == "roadrunner:flow"
        assert headers["ce-knativeerrordata"] and headers["ce-rrattempts"] == "2"
        assert headers["traceparent"]
        earlier = {"ce-knativeerrorcode": "404", "ce-knativeerrordest": "http://elsewhere/"}
        s.accepted("/trap", b"plain", {"X-A": "b", **event, **earlier, "ce-id": "2"})
        headers = sink.wait(3)[2][2]
        assert headers.get_all("ce-knativeerrorcode") == ["502"] and headers["x-a"] is None
        assert headers.get_all("ce-knativeerrordest") == ["roadrunner:flow"]
        at = s.accepted("/trap", b"no event")
        _, _, headers, body = sink.wait(4)[3]
        assert body == b"no event" and headers["ce-id"] == at[-32:]
        assert headers["ce-specversion"] == "1.0" and headers["ce-type"] == "roadrunner.message"
        assert headers["ce-source"] == "roadrunner:flow" and headers["ce-rrattempts"] == "2"


def test_a_timeout_of_each_attempt(serve, flow):
    with serve(flow(delivery={"retry": 1, "timeout": "PT0.3S", "backoffDelay": "PT0.05S"})) as s:
        at = s.accepted("/loop")
        state = s.wait_state(at, "failed")
        assert state["attempts"] == 2 and state["status"] == 504


# --- callbacks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [{}, {"path": "q"}])
def test_callbacks(serve, flow, receiver, queue):
    hook = receiver([503, 500, 200])
    delivery = {"retry": 2, "backoffDelay": "PT0.1S"}
    with serve(flow(queue=queue, delivery=delivery), "--callback", hook.host) as s:
        body = os.urandom(200000)
        r = s.ask("/echo", body, headers={"X-Callback-Url": hook.url})
        assert r.status == 202
        got = hook.wait(3)
        assert all(one[3] == body for one in got)
        assert got[2][0] - got[1][0] > 0.19 and got[1][0] - got[0][0] > 0.09
        assert got[0][2]["X-Function-Status"] == "200"
        assert got[0][2]["X-Call-Id"] == r.headers["X-Call-Id"]
        s.wait_state(r.headers["Location"], "succeeded")
        assert s.metric("callbacks_total") == 1 and s.metric("callback_failures_total") == 0
        r = s.ask("/trap", b"", headers={"X-Callback-Url": hook.url})
        got = hook.wait(4)
        assert got[3][2]["X-Function-Status"] == "502"
        assert json.loads(got[3][3])["status"] == 502
        for header in ("x-a=b", "host=evil", "x-call-id=evil"):
            s.ask("/header?" + header, b"", headers={"X-Callback-Url": hook.url})
        got = hook.wait(7)
        assert [h["x-a"] for _, _, h, _ in got[4:] if h["x-a"]] == ["b"]
        for _, _, headers, _ in got:
            assert headers.get_all("Host") == [hook.host]
            assert [len(v) for v in headers.get_all("X-Call-Id")] == [32]


def test_callbacks_that_fail(serve, flow, receiver):
    hook, gone = receiver([302]), receiver()
    gone.server.server_close()
    allowed = ["--callback", "127.0.0.1"]
    with serve(flow(delivery={"retry": 0}), *allowed) as s:
        for url in (hook.url, gone.url.replace("hook", "x")):
            r = s.ask("/echo", b"a", headers={"X-Callback-Url": url})
            s.wait_state(r.headers["Location"], "succeeded")
            assert s.ask(r.headers["Location"] + "/result").body == b"a"
        assert s.metric("callback_failures_total") == 2
        assert len(hook.got) == 1  # redirects are not followed


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "http://localhost:{port}/",
        "http://127.0.0.1:{port}@evil/",
        "http://user@127.0.0.1:{port}/",
        "http://evil/127.0.0.1:{port}",
        "http://[::1]:{port}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
        "ftp://127.0.0.1:{port}/",
        "nonsense",
        "http://" + "a" * 3000,
    ],
)
def test_callbacks_that_are_not_allowed(serve, flow, receiver, url):
    hook = receiver()
    port = hook.server.server_port
    with serve(flow(), "--callback", hook.host, "--callback", "*.example.org") as s:
        r = s.ask("/echo", b"a", headers={"X-Callback-Url": url.format(port=port)})
        assert r.status == 403 and b"X-Callback-Url" in r.body
        assert not hook.got and s.metric("async_accepted_total") == 0


def test_names_that_lead_inside(serve, flow, receiver):
    """A name that is allowed does not lead to this machine, unless that was allowed, too."""
    hook = receiver()
    port = hook.server.server_port
    url = f"http://localhost:{port}/hook"
    path = flow(delivery={"retry": 0})
    for nets in ([], ["10.0.0.0/8", "fd00::/8"]):
        options = [word for net in nets for word in ("--callback-net", net)]
        with serve(path, "--callback", "localhost", *options) as s:
            r = s.ask("/echo", b"a", headers={"X-Callback-Url": url})
            assert r.status == 202
            s.wait_log("where callbacks may not go: see --callback-net")
            wait_for(lambda s=s: s.metric("callback_failures_total") == 1, "it is given up")
            assert s.ask(r.headers["Location"] + "/result").body == b"a" and not hook.got
    nets = ["--callback-net", "127.0.0.1", "--callback-net", "::1/128"]
    with serve(path, "--callback", "localhost", *nets) as s:
        assert s.ask("/echo", b"a", headers={"X-Callback-Url": url}).status == 202
        assert hook.wait()[0][3] == b"a"


@pytest.mark.parametrize("net", ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/", "1.2.3", "::1/-1"])
def test_networks_that_are_none(rr, flow, net):
    r = rr("serve", flow(), "--callback-net", net)
    assert r.status == 64 and "ADDRESS/BITS" in r.err


def test_callbacks_by_https(serve, flow, receiver, pki):  # noqa: F811
    hook = receiver(tls=pki)
    options = ["--callback", hook.host]
    path = flow(delivery={"retry": 0})
    with serve(path, *options) as s:  # whom the system trusts
        r = s.ask("/echo", b"a", headers={"X-Callback-Url": hook.url})
        s.wait_log("the callback of message")
        assert not hook.got
    with serve(path, *options, "--callback-ca", pki / "ca.pem") as s:
        r = s.ask("/echo", b"a", headers={"X-Callback-Url": hook.url})
        s.wait_state(r.headers["Location"], "succeeded")
        assert hook.got[0][3] == b"a"


def test_callbacks_need_the_operator(serve, flow):
    with serve(flow()) as s:
        r = s.ask("/echo", b"a", headers={"X-Callback-Url": "http://127.0.0.1/"})
        assert r.status == 403 and b"--callback" in r.body


# --- bounds, cancelling -------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [{}, {"path": "q"}])
def test_no_more_than_the_queue_holds(serve, flow, queue):
    path = flow(queue={"messages": 3, "bytes": "1MiB", **queue})
    with serve(path, "--concurrency", "2") as s:
        got = [s.send("/sleep?600") for _ in range(5)]
        assert [r.status for r in got] == [202] * 3 + [503] * 2
        assert got[4].headers["Retry-After"]
        assert s.metric("async_refused_total") == 2
        assert s.ask("/echo", b"a").status == 200  # who waits for an answer has threads, too
        for r in got[:3]:
            s.wait_state(r.headers["Location"], "succeeded")
        assert s.send("/sleep?500", b"x" * 700000).status == 202
        r = s.send("/sleep?500", b"x" * 700000)
        assert r.status == 503 and b"too large together" in r.body
        # results give way to messages
        wait_for(lambda: s.send("/echo", b"y" * 900000).status == 202, "there is room")


def test_cancelled_by_the_client(serve, flow):
    with serve(flow(queue={"path": "q"}), "--concurrency", "2") as s:
        first, second = s.accepted("/sleep?700"), s.accepted("/call")
        assert s.ask(second, method="DELETE").status == 204
        assert s.ask(first, method="DELETE").status == 204
        assert s.ask(first).status == 404 and s.ask(second).status == 404
        wait_for(lambda: s.metric("async_depth") == 0, "nothing is left")
        assert not flow.calls()
        loop = s.accepted("/loop")
        wait_for(lambda: s.state(loop)["state"] == "running", "it runs")
        assert s.ask(loop, method="DELETE").status == 204
        wait_for(lambda: s.metric("async_depth") == 0, "it is stopped", 5)


# --- the queue on disk --------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", [None, "process"])
def test_killed_again_and_again(serve, flow, isolation):
    """Each accepted message is done, though the server is killed at random moments."""
    kills = int(os.environ.get("RR_KILLS", "5"))
    seed = int(os.environ.get("RR_SEED", str(random.randrange(1 << 30))))
    chance = random.Random(seed)
    queue = {"path": "q", "messages": 1000000}
    path = flow(queue=queue, isolation=isolation, delivery={"retry": 2, "backoffDelay": "PT0.05S"})
    accepted = {}
    for _ in range(kills):
        with serve(path, "--concurrency", "4", end=signal.SIGKILL) as s:
            threads = [
                threading.Thread(target=feed, args=(s, accepted, chance.random())) for _ in range(3)
            ]
            for t in threads:
                t.start()
            time.sleep(chance.random() * 0.3 * min(SLOW, 3))
            s.process.kill()
            for t in threads:
                t.join()
    with serve(path) as s:
        wait_for(lambda: s.metric("async_depth") == 0, f"all are done, seed {seed}", 60)
        for at, body in accepted.items():
            r = s.ask(at + "/result")
            assert r.status == 200 and r.body == body, (seed, at, r.status)
    print(f"{kills} kills, {len(accepted)} messages, 0 lost")


def feed(s, accepted, seed):
    chance = random.Random(seed)
    try:
        while True:
            body = os.urandom(chance.choice([10, 5000, 40000]))
            r = s.send(chance.choice(["/echo", "/x/echo"]), body)
            if r.status == 202:
                accepted[r.headers["Location"]] = body
    except OSError:
        pass
    except http.client.HTTPException:
        pass


def test_attempts_are_counted_over_kills(serve, flow):
    path = flow(queue={"path": "q"})
    with serve(path, end=signal.SIGKILL) as s:
        at = s.accepted("/sleep?60000")
        s.wait_state(at, "running")
        s.process.kill()
        s.process.wait()
    with serve(path, "--drain", "1s", end=signal.SIGTERM) as s:
        assert any("1 messages" in line for line in s.lines)
        wait_for(lambda: s.state(at)["attempts"] == 2, "the second attempt")
        assert s.metric("async_recovered_total") == 1
        assert s.ask(at, method="DELETE").status == 204
        s.process.kill()  # a function that sleeps is not interrupted
        s.process.wait()
        s.process.returncode = 0


@pytest.mark.parametrize("isolation", [None, "process"])
def test_what_waits_survives_sigterm(serve, flow, isolation, receiver):
    hook = receiver([503])
    path = flow(queue={"path": "q"}, isolation=isolation)
    with serve(path, "--concurrency", "2", "--callback", hook.host) as s:
        called = s.ask("/echo", b"a", headers={"X-Callback-Url": hook.url}).headers["Location"]
        hook.wait(1)
        many = [s.accepted("/sleep?300") for _ in range(4)]
    hook.answers = [200]
    with serve(path, "--callback", hook.host) as s:
        for at in many:
            s.wait_state(at, "succeeded")
        s.wait_state(called, "succeeded")
        assert hook.got[-1][3] == b"a"


def test_in_memory_the_drain_works_it_off(serve, flow):
    with serve(flow(), "--concurrency", "2") as s:
        for _ in range(4):
            s.accepted("/call")
        s.process.send_signal(signal.SIGTERM)
        s.process.wait(30 * SLOW)
        assert len(flow.calls()) == 4
    with serve(flow(dead_letters="dead"), "--concurrency", "2", "--drain", "1s") as s:
        s.accepted("/loop")
        s.accepted("/call", b"kept")
    assert sorted(body for _, body in letters(flow.folder / "dead")) == [b"hello", b"kept"]
    s.wait_log("were not done")


def test_reload_keeps_them(serve, flow):
    bad = {"retry": 5, "backoffDelay": "PT0.2S"}
    path = flow(queue={"path": "q"}, delivery=bad)
    with serve(path) as s:
        at = s.accepted("/flaky?2")
        wait_for(lambda: s.state(at)["state"] == "retrying", "it failed once")
        s.process.send_signal(signal.SIGHUP)
        s.wait_log("reloaded")
        assert s.wait_state(at, "succeeded")["attempts"] == 3
        flow(queue={"path": "elsewhere"})
        s.process.send_signal(signal.SIGHUP)
        s.wait_log("reload refused")
        assert s.send().status == 202


def test_events_are_known_after_a_restart(serve, flow):
    event = {"ce-source": "/s", "ce-type": "t", "ce-specversion": "1.0"}
    path = flow(queue={"path": "q"})
    with serve(path, "--duplicates", "1m", end=signal.SIGKILL) as s:
        at = s.accepted("/call", b"a", {**event, "ce-id": "1"})
        s.wait_state(at, "succeeded")
    with serve(path, "--duplicates", "1m") as s:
        r = s.send("/call", b"a", {**event, "ce-id": "1"})
        assert r.status == 202 and "Location" not in r.headers
        s.wait_state(s.accepted("/call", b"a", {**event, "ce-id": "2"}), "succeeded")
        assert len(flow.calls()) == 2


def fails_to_start(rr, path):
    r = rr("serve", path, "--listen", "127.0.0.1:0")
    assert r.status != 0
    return r.err


def test_damaged_queues_are_refused(rr, serve, flow):
    path = flow(queue={"path": "q"}, delivery={"retry": 1, "backoffDelay": "PT1H"})
    with serve(path) as s:
        for _ in range(50):
            s.accepted("/flaky?9", os.urandom(5000))
        big = s.accepted("/flaky?9", os.urandom(50000))
        wait_for(lambda: s.metric("async_retries_total") == 51, "all wait for their turn")
    folder = flow.folder / "q"
    shutil.copytree(folder, flow.folder / "good")

    def again():
        shutil.rmtree(folder)
        shutil.copytree(flow.folder / "good", folder)

    (folder / (big[-32:] + ".in")).unlink()
    assert "is damaged" in fails_to_start(rr, path)
    again()
    size = (folder / "queue.db").stat().st_size
    with open(folder / "queue.db", "r+b") as f:
        f.seek(4096)
        f.write(os.urandom(size - 4096))
    err = fails_to_start(rr, path)
    assert "is damaged" in err and "backup" in err and "flow.yaml" in err
    again()
    (folder / "queue.db").write_bytes(os.urandom(size))
    assert "is damaged" in fails_to_start(rr, path)
    again()
    for change in (
        "id='../../../etc/passwd'",
        "attempts=-1",
        "failures=attempts+1",
        "created=9223372036854775807",
        "status=1000000",
        "error=hex(zeroblob(500))",
        "state=3",
    ):
        with closing(sqlite3.connect(folder / "queue.db", isolation_level=None)) as db:
            db.execute(f"UPDATE calls SET {change} WHERE seq=1")
        assert "makes no sense" in fails_to_start(rr, path), change
        again()
    with closing(sqlite3.connect(folder / "queue.db", isolation_level=None)) as db:
        db.execute("UPDATE calls SET due=0, meta=x'ff00000000ffffff41' WHERE seq=1")
    with serve(path) as s:
        s.wait_log("is given up after")
        assert s.metric("async_failed_total") == 1 and s.metric("async_depth") == 50
    again()
    with closing(sqlite3.connect(folder / "queue.db", isolation_level=None)) as db:
        db.execute("PRAGMA user_version=7")
    assert "version 7" in fails_to_start(rr, path)
    again()
    os.chmod(folder, 0o777)
    assert "chmod" in fails_to_start(rr, path)
    again()
    with serve(path) as s:
        assert s.metric("async_depth") == 51
        assert "another server" in fails_to_start(rr, path)


def test_a_full_disk(serve, flow):
    """As far as a limit on files can stand for it: SIGXFSZ is ignored, writes fail."""
    import resource

    def limits():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300000, resource.RLIM_INFINITY))

    path = flow(queue={"path": "q"})
    with serve(path, limits=limits) as s:
        good = s.accepted(body=b"a" * 100)
        s.wait_state(good, "succeeded")
        r = s.send(body=b"b" * 400000)  # a file
        assert r.status == 503 and r.headers["Retry-After"] and b"cannot be written" in r.body
        statuses = [s.send(body=b"c" * 16000).status for _ in range(40)]  # rows
        assert statuses[0] == 202 and statuses[-1] == 503
        assert s.ask("/echo", b"a").status == 200
        s.wait_log("cannot be written")
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(s.process.pid, resource.RLIMIT_FSIZE, unlimited)
        wait_for(lambda: s.send(body=b"d" * 16000).status == 202, "there is room again")
        resource.prlimit(s.process.pid, resource.RLIMIT_FSIZE, (300000, resource.RLIM_INFINITY))
        s.send(body=b"e" * 16000)
    with serve(path) as s:
        wait_for(lambda: s.metric("async_depth") == 0, "those that were accepted are done")
        assert s.state(good)["state"] == "succeeded"
        assert s.send(body=b"c" * 16000).status == 202
