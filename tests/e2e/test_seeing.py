# SPDX-License-Identifier: Apache-2.0
"""What roadrunner serve tells about itself: metrics, traces, its page; and clients from registries."""

import gzip
import json
import os
import re
import signal
import site
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import browser
import pytest
import test_serve
from conftest import GUESTS, KIB, MIB, ROOT, SLOW, edge
from test_serve import wait_for

# Packages of tools/setup test, which Debian does not have.
site.addsitedir(str(ROOT / ".venv/lib/python{}.{}/site-packages".format(*sys.version_info)))

serve, flow, pki = test_serve.serve, test_serve.flow, test_serve.pki


@pytest.fixture(autouse=True)
def no_delay(rr):
    rr.env["OTEL_BSP_SCHEDULE_DELAY"] = "50"


EXAMPLES = GUESTS / "examples"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"


# --- metrics ----------------------------------------------------------------------------------


def series(s, port=None):
    """{(name, {label: value}): value} of /metrics, labels as sorted pairs."""
    found = {}
    for line in s.ask("/metrics", port=port).body.decode().splitlines():
        if m := re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line):
            labels = tuple(sorted(re.findall(r'(\w+)="([^"]*)"', m[2] or "")))
            assert (m[1], labels) not in found, line  # or Prometheus refuses all of it
            found[m[1], labels] = float(m[3])
    return found


@pytest.fixture
def diamond(rr):
    """One message, large, to two functions, and both of theirs to one."""

    def make(**fields):
        return rr.workflow(
            {name: {"module": "echo", **fields} for name in "abc"}
            | {"j": {"module": "concat", **fields}},
            [
                edge("input", "a", "64MiB"),
                edge("a", "b", "64MiB"),
                edge("a", "c", "64MiB"),
                edge("b", "j.left", "64MiB"),
                edge("c", "j.right", "64MiB"),
            ],
            "j",
        )

    return make


def test_figures_of_edges(serve, rr):
    """Counts, bytes and copies of each edge are what was sent over it."""
    path = rr.workflow(
        {"a": "echo", "b": "echo", "up": "stdio_upper"},
        [edge("input", "a", "64MiB"), edge("a", "b", "64MiB"), edge("b", "up", "64MiB")],
        "up",
    )
    with serve(path) as s:
        for size in (MIB, MIB, 1000):
            assert s.ask("/", b"x" * size).body == b"X" * size
        for end in (("input", "a"), ("a", "b"), ("b", "up")):
            labels = {"from": end[0], "to": end[1]}
            wait_for(lambda labels=labels: s.metric("edge_handoffs_total", **labels) == 3, end)
            assert s.metric("edge_bytes_total", **labels) == 2 * MIB + 1000
            assert s.metric("edge_handoff_seconds_total", **labels) > 0
        # large ones were moved, the small one copied; a command reads and writes streams
        assert 1000 <= s.metric("edge_copied_bytes_total", **{"from": "input"}) <= 2000
        assert 1000 <= s.metric("edge_copied_bytes_total", **{"from": "a"}) <= 2000
        assert s.metric("edge_copied_bytes_total", **{"from": "b"}) >= 2 * MIB + 1000
        assert s.metric("handoffs_total", channel="user", tier="window", path="move") == 4
        assert s.metric("handoffs_total", channel="user", tier="window", path="copy") == 2
        assert s.metric("handoffs_total", channel="user", tier="stdio", path="stdio") == 3
        assert s.metric("handoff_bytes_total", tier="window") == 2 * (2 * MIB + 1000)
        assert s.metric("handoff_seconds_count", tier="window") == 6
        assert s.metric("function_seconds_count", function="up") == 3
        assert s.metric("instances_fresh_total", function="b") == 3


def test_figures_of_a_fan_out(serve, diamond):
    with serve(diamond()) as s:
        assert len(s.ask("/", b"x" * MIB).body) == 2 * MIB + 13
        wait_for(lambda: s.metric("edge_handoffs_total") == 5, "all are counted")
        assert s.metric("edge_bytes_total", **{"from": "a"}) == 2 * MIB
        assert s.metric("edge_bytes_total", to_port="right") == MIB
        assert s.metric("handoffs_total", path="view") >= 1
        assert s.metric("handoff_copied_bytes_total") == 0


def test_calls_have_edges(serve):
    with serve(EXAMPLES / "call/workflow.yaml") as s:
        assert b"0.70" in s.ask("/", b"apple 2\n").body
        for port, size in ({"from_port": "call:price"}, 5), ({"to_port": "reply:price"}, 8):
            wait_for(lambda p=port: s.metric("edge_handoffs_total", **p) == 1, port)
            assert s.metric("edge_bytes_total", **port) == size


def test_what_the_list_asks_for(serve, diamond):
    """Requests, queue depth, hand-offs by channel and tier, payload and copied bytes, histograms of
    hand-offs and of execution, instances, warm pages, restarts."""
    with serve(diamond(isolation="process")) as s:
        assert len(s.ask("/", b"x" * MIB).body) == 2 * MIB + 13
        wait_for(lambda: s.metric("edge_handoffs_total") == 5, "all are told")
        found = series(s)
        names = {name for name, _ in found}
        for name in [
            "requests_total",
            "queue_depth",
            "queue_limit",
            "received_bytes_total",
            "sent_bytes_total",
            "request_copied_bytes_total",
            "reply_copied_bytes_total",
            "handoff_copied_bytes_total",
            "request_seconds_bucket",
            "run_seconds_bucket",
            "function_seconds_bucket",
            "warm_bytes",
            "warm_regions",
            "live_bytes",
            "live_regions",
            "instances_fresh_total",
            "instances_reused_total",
            "process_restarts_total",
            "pool_running",
            "pool_limit",
            "reloads_total",
            "build_info",
        ]:
            assert f"roadrunner_{name}" in names, name
        assert {"process_resident_memory_bytes", "process_cpu_seconds_total"} <= names
        kernel = {"channel": "kernel", "tier": "window"}
        assert s.metric("handoffs_total", **kernel) == 5
        assert s.metric("handoff_bytes_total", **kernel) == 5 * MIB
        assert s.metric("handoff_seconds_count", **kernel) == 5
    assert "roadrunner_instances" not in names  # nothing is known of those of other processes


def test_prometheus_own_client_reads_them(serve, flow):
    from prometheus_client.parser import text_string_to_metric_families

    with serve("-r", f"/a={flow()}", "-r", f"/b={flow('echo', 'b.yaml')}") as s:
        for path in ("/a/echo", "/a/trap", "/b", "/none"):
            s.ask(path, b"x")
        wait_for(lambda: s.metric("requests_total") >= 4, "all are counted")
        r = s.ask("/metrics")
        assert r.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = {f.name: f for f in text_string_to_metric_families(r.body.decode())}
        assert families["roadrunner_handoff_seconds"].type == "histogram"
        requests = families["roadrunner_requests"]
        assert requests.type == "counter" and requests.documentation
        counts = {(x.labels["workflow"], x.labels["code"]): x.value for x in requests.samples}
        assert counts["/a", "502"] == counts["/b", "200"] == counts["", "404"] == 1
        assert all(f.type != "unknown" and f.documentation for f in families.values())


def test_histograms_add_up(serve, flow):
    with serve(flow()) as s:
        for _ in range(7):
            s.ask("/echo", b"x")
        wait_for(lambda: s.metric("request_seconds_count", workflow="/") == 7, "all are counted")
        found = series(s)
        for name in ("request_seconds", "run_seconds", "handoff_seconds", "function_seconds"):
            rows = [
                (float(dict(labels)["le"]), value)
                for (n, labels), value in found.items()
                if n == f"roadrunner_{name}_bucket"
            ]
            bounds, values = zip(*rows, strict=True)
            assert list(bounds) == sorted(bounds) and bounds[-1] == float("inf"), name
            assert list(values) == sorted(values) and values[-1] == 7, name
        assert 0 < s.metric("handoff_seconds_sum") < s.metric("request_seconds_sum")


def test_instances_that_wait_and_run(serve, flow):
    with serve(flow(instances=2), "--concurrency", "2") as s:
        threads, out = test_serve.ask_many(s, "/sleep?700", 2)
        running = {"state": "running", "function": "f"}
        wait_for(lambda: s.metric("instances", **running) == 2, "two run")
        for t in threads:
            t.join()
        assert out == [200, 200]
        wait_for(lambda: s.metric("instances", **running) == 0, "none runs")
        assert s.metric("instances", state="idle") >= 1
        assert s.metric("instances_fresh_total") == 2


def test_restarts_are_counted(serve, flow):
    with serve(flow(isolation="process")) as s:
        assert s.metric("process_restarts_total", function="f") == 0
        for n in (1, 2):
            assert s.ask("/echo", b"x").status == 200
            children = Path(f"/proc/{s.process.pid}/task/{s.process.pid}/children").read_text()
            workers = [
                pid
                for zygote in children.split()
                for pid in Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
            ]
            assert len(workers) == 1
            os.kill(int(workers[0]), signal.SIGKILL)
            wait_for(lambda: s.ask("/echo", b"x").status == 200, "it works again")
            assert s.metric("process_restarts_total", function="f") == n


def test_reloads_are_counted(serve, flow):
    with serve(flow()) as s:
        s.ask("/echo", b"x")
        s.process.send_signal(signal.SIGHUP)
        wait_for(lambda: s.metric("reloads_total") == 1, "reloaded")


# --- traces -----------------------------------------------------------------------------------


class Collector:
    """Takes OTLP, and answers with the @statuses given before it begins to take it."""

    def __init__(self, statuses=(), wait=0, tls=None):
        self.statuses, self.wait = list(statuses), wait
        self.headers, self.paths, self.batches, self.bad, self.n = [], [], [], [], 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.n += 1
                time.sleep(outer.wait)
                status = outer.statuses.pop(0) if outer.statuses else 200
                if status == 200:
                    try:
                        outer.take(self, body)
                    except Exception as e:
                        outer.bad.append(repr(e))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server.server_port}"
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(tls / "server.pem", tls / "server.key")
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, handler, body):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        size = request.ByteSize()
        request.DiscardUnknownFields()
        assert request.ByteSize() == size, "fields that are none"
        self.headers.append(dict(handler.headers))
        self.paths.append(handler.path)
        self.batches.append(request)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        assert not self.bad

    @property
    def spans(self):
        return [
            span
            for batch in self.batches
            for resource in batch.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def of_kind(self, kind):
        return [span for span in self.spans if span.kind == kind]

    @property
    def resource(self):
        return attributes(self.batches[0].resource_spans[0].resource)


def attributes(thing):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in thing.attributes}


INTERNAL, SERVER, CONSUMER = 1, 2, 5
CPU = "process_cpu_seconds_total"


def test_a_trace_has_what_happened(serve, rr):
    path = rr.workflow(
        {"a": "http", "b": "echo", "up": "stdio_upper"},
        [edge("input", "a", "64MiB"), edge("a", "b", "64MiB"), edge("b", "up", "64MiB")],
        "up",
    )
    with Collector() as c, serve(path, "--otlp", c.url) as s:
        begin = time.time_ns()
        r = s.ask("/echo?q", b"x" * MIB, headers={"traceparent": TRACE + "01"})
        assert r.status == 200
        wait_for(lambda: len(c.spans) == 7, "all are sent")
        end = time.time_ns()
        assert c.paths == ["/v1/traces"] and c.headers[0]["Content-Type"] == (
            "application/x-protobuf"
        )
        (root,) = c.of_kind(SERVER)
        assert {span.trace_id.hex() for span in c.spans} == {TRACE[3:35]}
        assert root.parent_span_id.hex() == TRACE[36:52] and root.name == "POST /"
        assert len({span.span_id for span in c.spans}) == 7
        seen = attributes(root)
        assert seen["http.request.method"] == "POST" and seen["url.path"] == "/echo"
        assert seen["http.response.status_code"] == 200 and seen["http.route"] == "/"
        assert seen["http.request.body.size"] == seen["http.response.body.size"] == MIB
        for span in c.spans:
            assert begin - 10**7 <= span.start_time_unix_nano <= span.end_time_unix_nano <= end
            if span is not root:
                assert span.parent_span_id == root.span_id
                assert root.start_time_unix_nano <= span.start_time_unix_nano
                assert span.end_time_unix_nano <= root.end_time_unix_nano
        inner = {span.name: attributes(span) for span in c.of_kind(INTERNAL)}
        assert set(inner) == {"a", "b", "up", "input -> a", "a -> b", "b -> up"}
        assert inner["a"]["roadrunner.tier"] == "window" and inner["a"]["faas.coldstart"] is True
        hop = inner["a -> b"]
        assert hop["roadrunner.channel"] == "user" and hop["roadrunner.tier"] == "window"
        assert hop["roadrunner.path"] == "move" and hop["roadrunner.copied_bytes"] == 0
        assert hop["roadrunner.payload_bytes"] == MIB and hop["roadrunner.handoff_ns"] > 0
        assert inner["b -> up"]["roadrunner.tier"] == "stdio"
        assert inner["b -> up"]["roadrunner.copied_bytes"] >= MIB
        assert c.resource["service.name"] == "roadrunner" and "service.version" in c.resource
        assert s.metric("trace_spans_sent_total") == 7


def test_functions_run_in_the_span_of_the_request(serve, flow):
    with Collector() as c, serve(flow(), "--otlp", c.url) as s:
        seen = s.ask("/meta").body.decode()
        (trace,) = re.findall(r"traceparent=00-([0-9a-f]{32})-([0-9a-f]{16})-01\n", seen)
        wait_for(lambda: c.of_kind(SERVER), "it is sent")
        (root,) = c.of_kind(SERVER)
        assert (root.trace_id.hex(), root.span_id.hex()) == trace and not root.parent_span_id


@pytest.mark.parametrize("isolated", [False, True])
def test_messages_carry_the_trace(serve, rr, isolated):
    """Also those that functions make anew, in any tier; a tracestate goes with it."""
    extra = {"isolation": "process"} if isolated else {}
    path = rr.workflow(
        {
            "a": {"module": "trace", **extra},
            "b": "trace",
            "up": "stdio_upper",
            "c": {"module": "trace", **extra},
        },
        [edge("input", "a"), edge("a", "b"), edge("b", "up"), edge("up", "c")],
        "c",
    )
    with serve(path) as s:
        for state in ("k=v", "-", "k=" + "v" * 510, "k=" + "v" * 511):
            headers = {"traceparent": TRACE + "00"} | ({"tracestate": state} if state > "-" else {})
            lines = s.ask("/", b"x", headers=headers).body.decode().lower().splitlines()
            seen = [line.split(" ") for line in lines[:3]]
            assert lines[3] == "x" and {p for p, _ in seen} == {seen[0][0]}
            assert seen[0][0].startswith(TRACE[:36]) and seen[0][0] != TRACE + "00"
            # what is longer than has to be passed on goes no further than where it came
            assert [t for _, t in seen[:2]] == ["-" if len(state) > 512 else state] * 2, state
            assert seen[2][1] == ("-" if len(state) > 599 else state[:599])


def test_failures_are_marked(serve, flow):
    with Collector() as c, serve(flow(), "--otlp", c.url) as s:
        r = s.ask("/trap")
        assert r.status == 502
        s.ask("/status/404")
        wait_for(lambda: len(c.of_kind(SERVER)) == 2, "they are sent")
        by_status = {attributes(x)["http.response.status_code"]: x for x in c.of_kind(SERVER)}
        assert by_status[502].status.code == 2 and "trap" in by_status[502].status.message
        assert by_status[404].status.code == 0
        # a client finds its trace in the log by what it was told
        assert json.loads(r.body)["trace"] == by_status[502].trace_id.hex()
        s.wait_log(f"(trace {by_status[502].trace_id.hex()})")


@pytest.mark.parametrize("isolated", [False, True])
def test_traces_of_many_do_not_mix(serve, diamond, isolated):
    extra = {"isolation": "process"} if isolated else {}
    with Collector() as c, serve(diamond(**extra), "--otlp", c.url) as s:
        for _ in range(12):
            assert s.ask("/", b"x" * 300 * KIB).status == 200
        wait_for(lambda: len(c.of_kind(SERVER)) == 12, "they are sent")
        names = {}
        for span in c.of_kind(INTERNAL):
            names.setdefault(span.trace_id, []).append(span.name)
        want = sorted(["a", "b", "c", "j", "input -> a", "a -> b", "a -> c", "b -> j", "c -> j"])
        assert len(names) == 12
        for found in names.values():
            if isolated:  # some come together, or late
                assert set(found) <= set(want)
            else:
                assert sorted(found) == want
        channels = {attributes(x).get("roadrunner.channel") for x in c.of_kind(INTERNAL)}
        assert ("kernel" if isolated else "user") in channels


def test_who_is_traced(serve, flow):
    """The caller decides, and without one the ratio."""
    with Collector() as c, serve(flow(), "--otlp", c.url, "--otlp-ratio", "0") as s:
        for flags in ("00", "02"):
            s.ask("/echo", headers={"traceparent": TRACE + flags})
        for _ in range(20):
            assert b"-00\n" in s.ask("/meta").body
        s.ask("/echo", headers={"traceparent": TRACE + "03"})
        wait_for(lambda: c.of_kind(SERVER), "it is sent")
        time.sleep(0.3)
        assert len(c.of_kind(SERVER)) == 1
    with Collector() as c, serve(flow(), "--otlp", c.url, "--otlp-ratio", "0.5") as s:
        flags = [re.search(rb"traceparent=\S+-(..)\n", s.ask("/meta").body)[1] for _ in range(80)]
        n = flags.count(b"01")
        assert 15 < n < 65 and n + flags.count(b"00") == 80  # 5.6 sigma
        wait_for(lambda: len(c.of_kind(SERVER)) == n, "they are sent")


def test_settings_of_the_environment(serve, flow, rr):
    with Collector() as c:
        rr.env |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": c.url + "/base/",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=a%20b%3D, x-other=2",
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test,service.name=no",
        }
        with serve(flow()) as s:
            s.ask("/echo")
            wait_for(lambda: c.batches, "it is sent")
        assert c.paths[0] == "/base/v1/traces"
        assert c.headers[0]["x-key"] == "a b=" and c.headers[0]["x-other"] == "2"
        assert c.resource["service.name"] == "shop"
        assert c.resource["deployment.environment"] == "test"
    with Collector() as c:
        rr.env |= {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": c.url + "/all/of/it",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0",
        }
        with serve(flow()) as s:
            s.ask("/echo")
            s.ask("/echo", headers={"traceparent": TRACE + "01"})
        # at the end, what waits is sent
        assert len(c.of_kind(SERVER)) == 1 and c.paths == ["/all/of/it"]
    for off in ({"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}):
        rr.env |= off
        with serve(flow()) as s:
            s.ask("/echo", headers={"traceparent": TRACE + "01"})
            assert "roadrunner_trace" not in s.ask("/metrics").body.decode()
        rr.env.pop(*off)


def test_a_collector_behind_tls(serve, flow, rr, pki):
    with Collector(tls=pki) as c:
        with serve(flow(), "--otlp", c.url) as s:  # nobody vouches for it
            s.ask("/echo")
            s.wait_log("traces do not reach 127.0.0.1")
        assert not c.batches
        rr.env["OTEL_EXPORTER_OTLP_CERTIFICATE"] = str(pki / "ca.pem")
        with serve(flow(), "--otlp", c.url) as s:
            s.ask("/echo")
            wait_for(lambda: c.batches, "it is sent")


@pytest.mark.parametrize(
    "args, env, what",
    [
        (["--otlp", "localhost"], {}, "give a URL"),
        (["--otlp", "ftp://x"], {}, "give a URL"),
        (["--otlp", "http://me:secret@x"], {}, "OTEL_EXPORTER_OTLP_HEADERS"),
        (["--otlp", "http://x", "--otlp-ratio", "2"], {}, "from 0"),
        (["--otlp", "http://x", "--otlp-ratio", "0.1x"], {}, "from 0"),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "x y"}, "give a URL"),
        (["--otlp", "http://x"], {"OTEL_EXPORTER_OTLP_HEADERS": "a"}, "key=value"),
        (["--otlp", "http://x"], {"OTEL_EXPORTER_OTLP_HEADERS": "a=b%0d%0ac: d"}, "control"),
        (["--otlp", "http://x"], {"OTEL_EXPORTER_OTLP_TIMEOUT": "x"}, "milliseconds"),
        (
            [],
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "http/protobuf",
        ),
    ],
)
def test_bad_settings(rr, flow, args, env, what):
    r = rr("serve", flow(), *args, env=env, timeout=20 * SLOW)
    assert r.status == 64 and what in r.err and "secret" not in r.err, r


def test_a_collector_that_is_away(serve, flow):
    """Requests do not wait for it, nothing grows, and what is lost is counted."""
    with Collector(statuses=[503, 429]) as c, serve(flow(), "--otlp", c.url) as s:
        s.ask("/echo")
        s.wait_log("traces do not reach 127.0.0.1")
        s.wait_log("traces reach 127.0.0.1")
        assert c.n == 3 and len(c.of_kind(SERVER)) == 1
        assert s.metric("trace_spans_dropped_total") == 0
    with Collector(statuses=[400] * 9) as c, serve(flow(), "--otlp", c.url) as s:
        s.ask("/echo")
        wait_for(lambda: s.metric("trace_spans_dropped_total", reason="send") == 3, "dropped")
        assert c.n == 1  # it would be refused again


def test_the_queue_of_traces_is_bounded(serve, flow):
    with Collector(wait=60 * SLOW) as c:
        with serve(flow(), "--otlp", c.url) as s:
            with s.connect() as one:
                ask = b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"
                got, asked = 0, 0
                while s.metric("trace_spans_dropped_total", reason="queue") < 100:
                    one.sendall(ask * 500)
                    asked += 500
                    while got < asked:
                        got += one.recv(1 << 20).count(b"HTTP/1.1 200")
                    assert asked < 20000, "it takes all"
            assert s.metric("trace_spans_waiting") <= 16384
            begin = time.monotonic()
        assert time.monotonic() - begin < 10 * SLOW  # it does not hold up the end either
        c.wait = 0


# --- the page ---------------------------------------------------------------------------------


def test_the_page_is_where_metrics_are(serve, flow):
    with serve(flow(), "--admin", "127.0.0.1:0") as s:
        for path in ("/ui", "/ui/data"):
            assert "http-path" in s.ask(path + "/meta").body.decode()  # the workflow's
            assert s.ask(path).headers["Content-Type"] == "application/octet-stream"
        r = s.ask("/ui", port=s.ports[1])
        assert r.status == 200 and r.headers["Content-Type"] == "text/html; charset=utf-8"
        assert r.body == (ROOT / "src/gateway/ui.html").read_bytes()
        assert s.ask("/ui", method="HEAD", port=s.ports[1]).body == b""
        for path in ("/ui", "/ui/data"):
            assert s.ask(path, b"x", port=s.ports[1]).status == 405
        assert s.ask("/ui/x", port=s.ports[1]).status == 404
    with serve(flow()) as s:
        assert s.ask("/ui").headers["Content-Type"] == "text/html; charset=utf-8"


def test_the_page_may_do_little(serve, flow):
    with serve(flow()) as s:
        r = s.ask("/ui")
        rules = dict(
            rule.split(" ", 1) for rule in r.headers["Content-Security-Policy"].split("; ")
        )
        assert rules["default-src"] == "'none'" and rules["connect-src"] == "'self'"
        for kind in ("script-src", "style-src"):
            assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules[kind])
        assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
        assert r.headers["X-Content-Type-Options"] == "nosniff"
        page = r.body.decode()
        assert not re.search(r"(?:src|href)=[\"']?(?!data:)[a-z/]", page)
        assert len(gzip.compress(r.body)) < 40 * KIB


def test_data_of_the_page(serve, rr):
    flows = [EXAMPLES / f"{name}/workflow.yaml" for name in ("hello", "call")]
    with serve(*flows) as s:
        for _ in range(3):
            s.ask("/hello", b"world")
        s.ask("/call", b"apple 3\n")
        wait_for(lambda: s.metric("requests_total", code="200", workflow="/hello") == 3, "counted")
        r = s.ask("/ui/data")
        assert r.headers["Content-Type"] == "application/json"
        hello, call = json.loads(r.body)["workflows"]
        assert (hello["path"], hello["requests"], hello["result"]) == ("/hello", {"200": 3}, 1)
        assert [(f["name"], f["tier"], f["fresh"]) for f in hello["functions"]] == [
            ("greet", "window", 3),
            ("shout", "stdio", 3),
        ]
        first = hello["edges"][0]
        assert (first["from"], first["to"], first["n"], first["bytes"]) == (-1, 0, 3, 15)
        assert first["copied"] >= 15 and sum(first["cost"]["counts"]) == 3
        assert [e["kind"] for e in call["edges"]] == ["edge", "call", "reply"]


@pytest.fixture(scope="module")
def page():
    if why := browser.missing():
        pytest.skip(why)
    with browser.Browser(60 * SLOW) as b:
        yield b


def asking(s, path, body, stop):
    def run():
        while not stop.is_set():
            s.ask(path, body)
            time.sleep(0.02)

    t = threading.Thread(target=run)
    t.start()
    return t


def texts(page, what):
    return page.js(f"return [...document.querySelectorAll({what!r})].map((e) => e.textContent)")


def test_the_page_in_a_browser(serve, rr, page, diamond):
    files = [EXAMPLES / "hello/workflow.yaml", diamond()]
    stop = threading.Event()
    with serve("-r", f"/hello={files[0]}", "-r", f"/diamond={files[1]}") as s:
        threads = [asking(s, "/hello", b"x", stop), asking(s, "/diamond", b"x" * MIB, stop)]
        try:
            page.screen(1300, 900)
            page.scheme("light")
            page.open(f"http://127.0.0.1:{s.port}/ui")
            wait_for(lambda: len(texts(page, ".edge.busy .first")) == 3, "edges are at work")
            assert texts(page, ".node .name") == ["request", "greet", "shout", "reply"]
            assert any("copied" in t for t in texts(page, ".edge text"))
            tabs = texts(page, "#tabs button")
            assert [t.split(" ")[0][:8] for t in tabs][0].startswith("/hello")

            page.js("document.querySelectorAll('#tabs button')[1].click()")
            wait_for(lambda: len(texts(page, ".edge.busy .first")) == 6, "the other one is shown")
            names = texts(page, ".node .name")
            assert set(names) == {"request", "a", "b", "c", "j", "reply"}
            wait_for(lambda: texts(page, "#tiles dd")[0] != "0/s", "requests are counted")
            rows = dict(
                page.js(
                    "return [...document.querySelectorAll('#edges tbody tr')]"
                    ".map((r) => [r.cells[0].textContent, [...r.cells].map((c) => c.textContent)])"
                )
            )
            assert len(rows) == 5 and rows["c \u2192 j.right"][5] == "0"  # nothing copied
            assert rows["a \u2192 b"][2] in ("view", "move", "move, view", "view, move")
            assert re.fullmatch(r"[0-9.]+ [\u00b5m]?s", rows["a \u2192 b"][6])
            assert not overlaps(page)
            light = page.js("return getComputedStyle(document.body).backgroundColor")
            page.scheme("dark")
            wait_for(
                lambda: page.js("return getComputedStyle(document.body).backgroundColor") != light,
                "it is dark",
            )

            page.screen(360, 740)
            wait_for(lambda: page.js("return innerWidth") == 360, "a phone")
            wait_for(lambda: not overlaps(page), "it is laid out anew")
            width = page.js("return document.documentElement.scrollWidth")
            assert width <= 360, "it is as wide as a phone"
            small = page.js(
                "return [...document.querySelectorAll('body *')].filter((e) => e.childElementCount"
                " === 0 && e.getClientRects().length && e.textContent.trim())"
                ".map((e) => parseFloat(getComputedStyle(e).fontSize)).filter((n) => n < 11)"
            )
            assert not small, "nothing is too small to read"
        finally:
            stop.set()
            for t in threads:
                t.join()
        assert page.complaints() == []
    wait_for(lambda: "not answered" in texts(page, "#notice")[0], "it says that it is stale")
    page.complaints()


def overlaps(page):
    """Boxes of functions that lie on each other."""
    return page.js(
        "const b = [...document.querySelectorAll('.node')].map((e) => e.getBoundingClientRect());"
        "return b.some((x, n) => b.some((y, k) => k > n && x.left < y.right && y.left < x.right"
        " && x.top < y.bottom && y.top < x.bottom))"
    )


# --- what others bring ------------------------------------------------------------------------


def told_by_the_docs():
    """{metric: its labels} of the table in docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text()
    table = text.split("| metric | what |\n|---|---|\n")[1].split("\n\n")[0]
    found = {}
    for line in table.splitlines():
        cell = line.split(" | ")[0]
        shared = re.search(r"`\{([^}]*)\}`", cell)  # those of all names before
        for name, own in re.findall(r"`([a-z_]+)(?:\{([^}]*)\})?`", cell):
            prefix = "" if name in ("process_resident_memory_bytes", CPU) else "roadrunner_"
            labels = own or (shared[1] if shared else "")
            found[prefix + name] = {x.strip() for x in labels.split(",")} - {""}
    return found


def test_the_dashboard_asks_for_what_there_is(serve, diamond):
    """Each metric of each expression, with the labels that it is chosen and summed by."""
    import promql_parser

    with Collector() as c, serve(diamond(isolation="process"), "--otlp", c.url) as s:
        s.ask("/", b"x")
        wait_for(lambda: s.metric("edge_handoffs_total") == 5, "all are told")
        known = {}
        for name, labels in series(s):
            known.setdefault(name, set()).update(k for k, _ in labels)
    known["roadrunner_instances"] = {"workflow", "function", "state"}  # of those not isolated
    documented = told_by_the_docs()
    text = (ROOT / "docs/operations.md").read_text()
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}
    assert set(documented) <= plain and len(documented) > 50
    for name in plain:
        assert re.search(rf"`(roadrunner_)?{name.removeprefix('roadrunner_')}[`{{]", text), name
    for name, labels in documented.items():
        assert labels <= known.get(name, known.get(f"{name}_bucket", set())), name
    dashboard = json.loads((ROOT / "deploy/grafana/roadrunner.json").read_text())
    queries = [t["expr"] for p in dashboard["panels"] for t in p.get("targets", [])]
    queries += [v["definition"] for v in dashboard["templating"]["list"] if "definition" in v]
    assert len(queries) > 30
    scraped = {"job", "instance"}  # Prometheus adds them
    for query in queries:
        names = re.findall(r"\b(?:roadrunner|process)_\w+", query)
        assert names, query
        labels = set()
        for group in re.findall(r"\b(?:by|without) \(([^)]*)\)", query):
            labels |= {x.strip() for x in group.split(",")}
        for name in names:
            assert name in known, f"{name} in {query}"
            chosen = re.findall(r"(\w+)=~?\"", query)
            assert labels | set(chosen) <= known[name] | scraped, query
        if not query.startswith("label_values("):
            promql_parser.parse(query.replace("$__rate_interval", "1m"))
    ids = [p["id"] for p in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_events_of_the_sdk(serve, flow):
    """The CloudEvents SDK for Python, both modes, and its own reading of a reply."""
    from cloudevents.core.bindings import http as binding
    from cloudevents.core.v1.event import CloudEvent

    given = {"type": "com.example.t", "source": "/s p", "subject": "\u20ac 1", "num": "7"}
    with serve(flow(), "--duplicates", "1m") as s:
        for n, write in enumerate((binding.to_binary_event, binding.to_structured_event)):
            event = CloudEvent(
                {**given, "id": f"id-{n}", "datacontenttype": "application/json"}, {"a": 1}
            )
            message = write(event)
            r = s.ask("/meta", message.body, headers=message.headers)
            assert r.status == 200, r.body
            seen = dict(line.split("=", 1) for line in r.body.decode().splitlines())
            assert seen["ce-id"] == f"id-{n}" and seen["ce-type"] == "com.example.t"
            assert seen["ce-source"] == "/s p" and seen["ce-num"] == "7"
            assert seen["ce-subject"] == "\u20ac 1" and json.loads(seen["body"]) == {"a": 1}
            assert seen["content-type"] == "application/json"
            assert s.ask("/meta", message.body, headers=message.headers).status == 202
        data = os.urandom(3 * MIB)
        message = binding.to_binary_event(
            CloudEvent({**given, "datacontenttype": "application/octet-stream"}, data)
        )
        assert s.ask("/echo", message.body, headers=message.headers).body == data


def test_traces_of_asynchronous_messages(serve, rr):
    """What was accepted is one span, and each attempt at it another within, with what ran."""
    path = rr.workflow({"f": "http"}, [edge("input", "f")], "f")
    document = json.loads(path.read_text())
    document["delivery"] = {"retry": 2, "backoffPolicy": "linear", "backoffDelay": "PT0.05S"}
    path.write_text(json.dumps(document))
    ask = {"Prefer": "respond-async", "traceparent": TRACE + "01"}
    with Collector() as c, serve(path, "--otlp", c.url) as s:
        assert s.ask("/trap", b"x", headers=ask).status == 202
        wait_for(lambda: len(c.of_kind(CONSUMER)) == 3, "all attempts are sent")
        (root,) = c.of_kind(SERVER)
        assert attributes(root)["http.response.status_code"] == 202
        attempts = sorted(c.of_kind(CONSUMER), key=lambda x: attributes(x)["roadrunner.attempt"])
        for n, span in enumerate(attempts, 1):
            assert span.trace_id.hex() == TRACE[3:35] and span.parent_span_id == root.span_id
            assert attributes(span)["roadrunner.attempt"] == n
            assert span.status.code == 2 and "trap" in span.status.message
            inner = [x.name for x in c.spans if x.parent_span_id == span.span_id]
            assert sorted(inner) == ["f", "input -> f"]
        assert s.ask("/echo", b"x", headers={**ask, "traceparent": TRACE + "00"}).status == 202
        wait_for(lambda: s.metric("async_succeeded_total") == 1, "it is done")
        time.sleep(0.2)
        assert len(c.of_kind(CONSUMER)) == 3
