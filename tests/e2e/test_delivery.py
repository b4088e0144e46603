# SPDX-License-Identifier: Apache-2.0
"""`delivery` of an edge: a function that fails gets its message again, and nobody else notices."""

import json
import os
import signal
import threading
import time

import pytest
from conftest import KIB, MIB, SLOW, edge
from test_async import letters, receiver, serve  # noqa: F401
from test_nodes import free_port, nodes  # noqa: F401
from test_processes import Run, assert_clean
from test_serve import wait_for

DATA = os.urandom(3 * MIB + 5)


def again(a, b, max="64MiB", **delivery):
    return {"from": a, "to": b, "max": max, "delivery": {"backoffDelay": "PT0.05S", **delivery}}


def flaky(fails, how="trap", **fields):
    env = {"FAILS": str(fails), "HOW": how, "MS": str(fields.pop("ms", 0))}
    return {"module": "flaky", "env": env, **fields}


@pytest.fixture
def flow(rr):
    def make(functions, edges, result, **top):
        path = rr.workflow(functions, edges, result)
        path.write_text(json.dumps(json.loads(path.read_text()) | top))
        return path

    return make


def chain(flow, b, name="once", **delivery):
    """input -> a -> b; `a` says when it runs."""
    top = {k: delivery.pop(k) for k in ("dead_letters", "isolation", "deadline") if k in delivery}
    functions = {"a": flaky(0), "b": b, "c": "echo"}
    edges = [edge("input", "a", "64MiB"), again("a", "b", **delivery), edge("b", "c", "64MiB")]
    return flow(functions, edges, "c", **top)


def attempts(lines, function="b"):
    """(id, attempt) of the deliveries that a function told of."""
    words = [line.split() for line in lines if f"{function}: delivery" in line]
    return [(w[2], int(w[4])) for w in words]


# --- it works -----------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["worker", "process"])
@pytest.mark.parametrize("how", ["trap", "status", "sent"])
@pytest.mark.parametrize("data", [b"", b"small", DATA], ids=["empty", "small", "large"])
def test_a_function_that_fails_gets_its_message_again(rr, flow, isolation, how, data):
    path = chain(flow, flaky(2, how), retry=2, isolation=isolation)
    r = rr("run", path, "--json", stdin=data)
    assert r.status == 0 and r.out == data, r
    told = attempts(r.err.splitlines())
    assert [n for _, n in told] == [1, 2, 3] and len({i for i, _ in told}) == 1, r.err
    assert len(attempts(r.err.splitlines(), "a")) == 1, "only what failed runs again"
    assert r.report["memory"]["live_regions"] == 0


@pytest.mark.parametrize("isolation", ["worker", "process"])
def test_after_the_last_attempt_it_is_a_dead_letter(rr, flow, tmp_path, isolation):
    path = chain(flow, flaky(9), retry=2, dead_letters="dead", isolation=isolation)
    r = rr("run", path, "--json", stdin=DATA)
    assert r.status == 70 and [n for _, n in attempts(r.err.splitlines())] == [1, 2, 3], r
    ((head, body),) = letters(tmp_path / "dead")
    assert body == DATA, "as it was before `b` wrote into it"
    assert (head["from"], head["to"], head["attempts"]) == ("a", "b", 3)
    assert head["delivery_id"] == attempts(r.err.splitlines())[0][0] and head["status"] == 502
    assert abs(head["time"] - time.time()) < 60 and "'b'" in head["error"]
    about = head["attributes"]
    assert about["knativeerrordest"] == "roadrunner:flow/b.in"
    assert about["knativeerrorcode"] == "502" and about["rrattempts"] == "3"
    assert about["knativeerrordata"].startswith("function 'b'")
    assert about["id"] == head["delivery_id"] and about["specversion"] == "1.0"
    assert about["source"] == "roadrunner:flow" and about["type"]


def test_without_dead_letters_it_fails_like_any_other(rr, flow):
    r = rr("run", chain(flow, flaky(9, "status"), retry=1), stdin=b"x")
    assert r.status == 70 and "it failed with status 7" in r.err
    assert len(attempts(r.err.splitlines())) == 2


@pytest.mark.parametrize("policy", ["linear", "exponential"])
def test_pauses_grow(rr, flow, policy):
    path = chain(flow, flaky(3), retry=3, backoffPolicy=policy, backoffDelay="PT0.1S")
    begin = time.monotonic()
    assert rr("run", path, stdin=b"x").status == 0
    took = time.monotonic() - begin
    assert took > (0.6 if policy == "linear" else 0.7)


def test_a_timeout_of_each_attempt(rr, flow):
    r = rr("run", chain(flow, flaky(1, "loop"), retry=1, timeout="PT0.3S"), stdin=b"x")
    assert r.status == 0 and r.out == b"x" and len(attempts(r.err.splitlines())) == 2, r


def test_the_deadline_of_the_run_bounds_it(rr, flow, tmp_path):
    """A pause that would end after it is not begun."""
    path = chain(
        flow, flaky(9), retry=9, backoffDelay="PT1S", deadline="2500ms", dead_letters="dead"
    )
    begin = time.monotonic()
    r = rr("run", path, stdin=b"x")
    assert r.status == 70 and time.monotonic() - begin < 2.5 + 5 * (SLOW - 1), r
    assert len(attempts(r.err.splitlines())) == 2  # the third would be after 1 + 2 s
    assert letters(tmp_path / "dead")[0][0]["attempts"] == 2


def test_an_interrupt_ends_the_pause(rr, flow):
    run = Run(rr, chain(flow, flaky(9), retry=9, backoffDelay="PT5S"), b"x")
    run.await_line("the next one in")
    begin = time.monotonic()
    run.p.send_signal(signal.SIGINT)
    run.end()
    assert run.status == 130 and time.monotonic() - begin < 3 * SLOW, run.err


# --- payloads are not copied ---------------------------------------------------------------------


def test_a_message_is_not_copied_for_it(rr, flow):
    """Each attempt has a copy-on-write view: what is copied is what `b` writes to, by the kernel."""
    data = os.urandom(40 * MIB)
    r = rr("run", chain(flow, flaky(1), retry=1), "--json", stdin=data)
    assert r.status == 0 and r.out == data, r
    (hop,) = [h for h in r.report["hops"] if h["to"] == "b"]
    assert (hop["path"], hop["messages"], hop["copied_bytes"]) == ("view", 2, 0), hop


def test_other_tiers(rr, flow, tmp_path):
    """Modules without windows: one fails by its memory limit, one by its status."""
    data = b"a" * (2 * MIB)
    for functions, status in (
        ({"a": {"module": "buf_upper", "memory": "1MiB"}}, 71),
        ({"a": {"module": "stdio_fail"}}, 70),
    ):
        path = flow(functions, [again("input", "a", retry=1)], "a", dead_letters="dead")
        r = rr("run", path, stdin=data)
        assert r.status == status and "attempt 1 of 2" in r.err, r
        assert letters(tmp_path / "dead")[-1][1] == data
    for module in ("buf_upper", "stdio_upper"):
        r = rr("run", flow({"a": module}, [again("input", "a", retry=1)], "a"), stdin=data)
        assert r.status == 0 and r.out == data.upper(), r


# --- joins, fan-outs, what is optional ------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["worker", "process"])
def test_a_join_gets_all_its_inputs_again(rr, flow, isolation):
    functions = {"a": "echo", "b": "echo", "j": flaky(2)}
    edges = [
        edge("input", "a", "4MiB"),
        edge("input", "b", "4MiB"),
        again("a", "j.one", "4MiB", retry=5),
        again("b", "j.two", "4MiB", retry=2),
    ]
    path = flow(functions, edges, "j", isolation=isolation, dead_letters="dead")
    r = rr("run", path, stdin=DATA)
    assert r.status == 0 and r.out == DATA, r
    assert len(attempts(r.err.splitlines(), "j")) == 3
    functions["j"] = flaky(9)
    r = rr("run", flow(functions, edges, "j", isolation=isolation, dead_letters="dead"), stdin=DATA)
    assert r.status == 70 and len(attempts(r.err.splitlines(), "j")) == 3, "the fewest retries"
    found = letters(path.parent / "dead")
    assert {head["to_port"] for head, _ in found} == {"one", "two"}
    assert all(body == DATA for _, body in found)


@pytest.mark.parametrize("isolation", ["worker", "process"])
def test_a_run_goes_on_without_what_is_optional(rr, flow, tmp_path, isolation):
    """`side` fails for good, and `join` waits for it in vain; the result is of `c`."""
    functions = {"a": "echo", "c": "echo", "side": flaky(9), "join": "concat"}
    edges = [
        edge("input", "a", "64MiB"),
        edge("a", "c", "64MiB"),
        again("a", "side", retry=1, optional=True),
        edge("side", "join.a", "64MiB"),
        edge("a", "join.b", "64MiB"),
    ]
    path = flow(functions, edges, "c", dead_letters="dead", isolation=isolation)
    r = rr("run", path, "--json", stdin=DATA)
    assert r.status == 0 and r.out == DATA, r
    assert "the run goes on without it" in r.err
    ((head, body),) = letters(tmp_path / "dead")
    assert head["to"] == "side" and body == DATA
    assert r.report["memory"]["live_regions"] == 0


def test_both_a_failure_and_a_death(rr, flow):
    """Isolated: `b` fails once, and its process is killed once; neither ends the run."""
    path = chain(flow, flaky(2, ms=400), retry=3, isolation="process")
    run = Run(rr, path, DATA)
    run.await_line("b: delivery")
    run.await_line("b: delivery", 2)
    os.kill(run.worker("b"), signal.SIGKILL)
    run.end()
    assert run.status == 0 and run.out.read_bytes() == DATA, run.err
    assert_clean(run)


@pytest.mark.parametrize("fails", [2, 9])
def test_between_nodes(rr, flow, nodes, tmp_path, fails):  # noqa: F811
    """The node tries again; what it gives up goes to the dead letters where the workflow is run."""
    functions = {"a": "echo", "b": flaky(fails, node="far"), "c": "echo"}
    edges = [
        edge("input", "a", "64MiB"),
        again("a", "b", retry=2),
        edge("b", "c", "64MiB"),
    ]
    at = {"far": {"address": f"127.0.0.1:{free_port()}"}}
    path = flow(functions, edges, "c", nodes=at, dead_letters="dead")
    node = nodes(rr, path, "far")
    r = rr("run", path, "--plain", stdin=DATA)
    if fails == 2:
        assert r.status == 0 and r.out == DATA, (r, node.err)
    else:
        assert r.status == 70, (r, node.err)
        wait_for(lambda: letters(tmp_path / "dead"), "a dead letter")
        ((head, body),) = letters(tmp_path / "dead")
        assert body == DATA and head["attempts"] == 3 and head["to"] == "b"
        assert head["attributes"]["knativeerrordata"].startswith("function 'b'")
    assert len(attempts(r.err.splitlines() + node.lines)) >= 3


# --- serve ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["worker", "process"])
def test_serve_delivers_again(serve, flow, isolation):  # noqa: F811
    path = chain(flow, flaky(1), retry=1, isolation=isolation)
    with serve(path) as s:
        for size in (5, 300 * KIB):
            body = os.urandom(size)
            assert s.ask("/", body).body == body
        if isolation == "worker":
            assert s.metric("edge_redeliveries_total", to="b") == 2


def test_pauses_do_not_hold_others_up(serve, flow):  # noqa: F811
    """Requests of another workflow are answered while several wait for their pauses."""
    slow = chain(flow, flaky(1), retry=1, backoffDelay="PT1S")
    slow = slow.rename(slow.with_name("slow.yaml"))
    quick = flow({"a": "echo"}, [edge("input", "a", "64MiB")], "a")
    with serve("--route", f"/slow={slow}", "--route", f"/quick={quick}") as s:
        waiting = [threading.Thread(target=s.ask, args=("/slow", b"x")) for _ in range(4)]
        for t in waiting:
            t.start()
        wait_for(lambda: "the next one in" in "\n".join(s.lines), "a pause")
        begin = time.monotonic()
        assert s.ask("/quick", b"y").body == b"y" and time.monotonic() - begin < 0.7 * SLOW
        for t in waiting:
            t.join()


def test_dead_letters_of_an_edge_to_a_uri(serve, flow, receiver, tmp_path):  # noqa: F811
    sink = receiver([503, 200])
    path = chain(flow, flaky(9), retry=1, deadLetterSink={"uri": sink.url}, dead_letters="dead")
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with serve(path) as s:
        headers = {"traceparent": parent, "Content-Type": "text/x"}
        assert s.ask("/", DATA, headers=headers).status == 502
        _, where, got, body = sink.wait(2)[1]
        assert where == "/hook" and body == DATA and got["X-Delivery-Attempt"] == "2"
        assert got["ce-knativeerrordest"] == "roadrunner:flow/b.in"
        assert got["ce-knativeerrorcode"] == "502" and got["ce-rrattempts"] == "2"
        assert got["ce-knativeerrordata"].startswith("function 'b'") and got["ce-id"]
        assert got["traceparent"].split("-")[1] == parent.split("-")[1]
        assert not (tmp_path / "dead").exists()
        sink.answers[:] = [400]
        assert s.ask("/", b"second").status == 502
        assert letters(tmp_path / "dead")[0][1] == b"second", "who refuses it leaves it to the file"


def test_run_posts_dead_letters_too(rr, flow, receiver):  # noqa: F811
    sink = receiver()
    path = chain(flow, flaky(9), retry=0, deadLetterSink={"uri": sink.url})
    assert rr("run", path, stdin=DATA).status == 70
    assert sink.got[0][3] == DATA
    sink.close()
    r = rr("run", path, stdin=DATA)
    assert r.status == 70 and "does not take a dead letter" in r.err


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "says"),
    [
        ([{**edge("input", "a"), "delivery": {"retry": 100}}], "retry"),
        ([{**edge("input", "a"), "delivery": {"retries": 1}}], "unknown"),
        ([{**edge("input", "a"), "delivery": {"retry": 1}, "retry": 1}], "beside"),
        ([{**edge("input", "a"), "delivery": {"optional": True}}], "cannot be optional"),
        ([{**edge("input", "a"), "delivery": {"deadLetterSink": {"uri": "ftp://x"}}}], "URI"),
        ([{**edge("input", "a"), "delivery": {"timeout": "1s"}}], "timeout"),
        ([{**edge("input", "a.x"), "delivery": {}}, edge("input", "a.y")], "together"),
    ],
)
def test_mistakes(rr, flow, edges, says):
    r = rr("check", flow({"a": "echo"}, edges, "a"))
    assert r.status == 65 and says in r.err and "hint" in r.err, r
