# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema and `roadrunner check` agree."""

import copy
import json

import jsonschema
import pytest
from conftest import ROOT, guest

SCHEMA = json.loads((ROOT / "docs/workflow.schema.json").read_text())
EDGE = {"from": "a", "to": "b", "delivery": "at-least-once"}
GOOD = {
    "version": 1,
    "name": "all",
    "pool": {"ceiling": "1GiB", "scrub": "always"},
    "isolation": "worker",
    "dead_letters": "letters",
    "nodes": {"gpu": {"address": "10.0.0.2:7400", "identity": "spiffe://x/gpu"}},
    "deadline": "30s",
    "limits": {
        "queue_messages": 64,
        "queue_bytes": "1GiB",
        "domain_messages": 640,
        "domain_bytes": "4GiB",
    },
    "delivery": {
        "retry": 3,
        "backoffPolicy": "linear",
        "backoffDelay": "PT0.5S",
        "timeout": "PT1M30S",
        "deadLetterSink": {"uri": "http://letters.example.org/x"},
    },
    "queue": {"path": "q", "messages": 7, "bytes": "2MiB", "keep": "P1DT2H", "always": True},
    "functions": {
        "a": {
            "module": str(guest("echo")),
            "memory": "3MiB",
            "deadline": "250ms",
            "instances": 4,
            "env": {"LEVEL": "3"},
            "args": ["--fast"],
            "folders": [{"host": ".", "guest": "/data", "writable": True}],
            "calls": ["c"],
        },
        "b": {
            "module": str(guest("echo")),
            "deadline": "none",
            "instances": "fresh",
            "isolation": "process",
        },
        "c": {"module": str(guest("echo"))},
    },
    "edges": [
        {"from": "input", "to": "a.in", "max": "2MiB", "delivery": "at-most-once"},
        {"from": "a", "to": "b", "delivery": "at-least-once", "attempts": 5},
    ],
    "result": "b.out",
}


def changed(path, value):
    document = copy.deepcopy(GOOD)
    at = document
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return document


BAD = [
    changed(["version"], 2),
    changed(["version"], None),
    changed(["edges"], None),
    changed(["result"], None),
    changed(["extra"], 1),
    changed(["name"], "not a name"),
    changed(["pool", "ceiling"], "much"),
    changed(["pool", "scrub"], "never"),
    changed(["pool", "depth"], 2),
    changed(["functions", "a", "module"], None),
    changed(["functions", "a", "memory"], "3 bananas"),
    changed(["functions", "a", "deadline"], "soon"),
    changed(["functions", "a", "instances"], 0),
    changed(["functions", "a", "instances"], 2000),
    changed(["functions", "a", "memroy"], "1MiB"),
    changed(["functions", "a", "folders", 0, "host"], None),
    changed(["functions", "input"], {"module": "x"}),
    changed(["edges", 1, "to"], None),
    changed(["edges", 1, "max"], "1"),
    changed(["edges", 1, "to"], "b.c.d"),
    changed(["isolation"], "none"),
    changed(["functions", "b", "isolation"], True),
    changed(["dead_letters"], ""),
    changed(["dead_letters"], 3),
    changed(["limits"], []),
    changed(["limits", "queue_messages"], 0),
    changed(["limits", "queue_messages"], 65537),
    changed(["limits", "queue_messages"], "64"),
    changed(["limits", "queue_bytes"], 4),
    changed(["limits", "domain_messages"], 16777217),
    changed(["limits", "domain_bytes"], "64"),
    changed(["limits", "queue"], 4),
    changed(["delivery"], "at-least-once"),
    changed(["delivery", "retry"], -1),
    changed(["delivery", "retry"], 101),
    changed(["delivery", "backoffPolicy"], "random"),
    changed(["delivery", "backoffDelay"], "1s"),
    changed(["delivery", "backoffDelay"], "P"),
    changed(["delivery", "backoffDelay"], "PT"),
    changed(["delivery", "backoffDelay"], "P1Y"),
    changed(["delivery", "backoffDelay"], "P1M"),
    changed(["delivery", "timeout"], "PT1S1M"),
    changed(["delivery", "timeout"], "PT1.5M"),
    changed(["delivery", "timeout"], 3),
    changed(["delivery", "deadLetterSink"], "http://x/"),
    changed(["delivery", "deadLetterSink"], {}),
    changed(["delivery", "deadLetterSink", "uri"], "ftp://x/"),
    changed(["delivery", "deadLetterSink", "ref"], "x"),
    changed(["delivery", "attempts"], 3),
    changed(["queue"], "q"),
    changed(["queue", "path"], ""),
    changed(["queue", "messages"], 0),
    changed(["queue", "bytes"], 5),
    changed(["queue", "keep"], "10m"),
    changed(["queue", "always"], "yes"),
    changed(["queue", "depth"], 3),
    changed(["edges", 1, "delivery"], "once"),
    changed(["edges", 1], {**EDGE, "retry": 100}),
    changed(["edges", 1], {**EDGE, "retry": 3, "attempts": 3}),
    changed(["edges", 1], {**EDGE, "backoffPolicy": "random"}),
    changed(["edges", 1], {**EDGE, "backoffDelay": "1s"}),
    changed(["edges", 0, "retry"], 3),
    changed(["edges", 0, "backoffDelay"], "PT1S"),
    changed(["edges", 1, "attempts"], 0),
    changed(["edges", 1, "attempts"], 101),
    changed(["edges", 1, "delivery"], "at-most-once"),  # with attempts
    changed(["edges", 1, "delivery"], None),
    changed(["edges", 0, "delivery"], {"retry": 100}),
    changed(["edges", 0, "delivery"], {"optional": "yes"}),
    changed(["edges", 0, "delivery"], {"deadLetterSink": {"uri": "ftp://x/"}}),
    changed(["edges", 1], {**EDGE, "delivery": {}, "retry": 1}),
]
ALSO_GOOD = [
    changed(["delivery"], {}),
    changed(["delivery", "retry"], 0),
    changed(["delivery", "timeout"], "P1W"),
    changed(["delivery", "timeout"], "PT1H0,25S"),
    changed(["delivery", "backoffPolicy"], "exponential"),
    changed(["queue"], {}),
    changed(["isolation"], "process"),
    changed(["isolation"], None),
    changed(["dead_letters"], None),
    changed(["limits"], {}),
    changed(["limits", "queue_bytes"], "1MiB"),
    changed(["edges", 1, "attempts"], None),
    changed(["edges", 1], {**EDGE, "retry": 0, "backoffPolicy": "linear"}),
    changed(["edges", 1], {**EDGE, "retry": 99, "backoffDelay": "PT0.1S"}),
    changed(["functions", "a", "isolation"], "process"),
    changed(["edges", 0, "delivery"], {}),
    changed(
        ["edges", 0, "delivery"],
        {
            "retry": 99,
            "backoffPolicy": "linear",
            "backoffDelay": "PT1S",
            "timeout": "PT2S",
            "deadLetterSink": {"uri": "http://x/"},
            "optional": False,
        },
    ),
]


def check(rr, tmp_path, document):
    path = tmp_path / "flow.yaml"
    path.write_text(json.dumps(document))
    return rr("check", path)


@pytest.mark.parametrize("document", [GOOD, *ALSO_GOOD])
def test_good(rr, tmp_path, document):
    jsonschema.validate(document, SCHEMA)
    r = check(rr, tmp_path, document)
    assert r.status == 0, r


@pytest.mark.parametrize("document", BAD)
def test_bad(rr, tmp_path, document):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)
    r = check(rr, tmp_path, document)
    assert r.status == 65, r


def test_delivery_needs_two_processes(rr, tmp_path):
    """The schema cannot know where functions live; the command does."""
    document = changed(["functions", "b", "isolation"], None)
    r = check(rr, tmp_path, document)
    assert r.status == 65 and "isolate one of the two functions" in r.err, r


def test_dead_letters_need_a_folder(rr, tmp_path):
    r = check(rr, tmp_path, changed(["dead_letters"], "gone/letters"))
    assert r.status == 66 and "dead_letters" in r.err and "gone/letters" in r.err, r


def test_queues_need_a_folder(rr, tmp_path):
    r = check(rr, tmp_path, changed(["queue", "path"], "gone/q"))
    assert r.status == 66 and "gone/q" in r.err, r
    (tmp_path / "file").write_text("")
    r = check(rr, tmp_path, changed(["queue", "path"], "file"))
    assert r.status == 66 and "file" in r.err, r


def test_explain_tells_of_delivery(rr, tmp_path):
    path = tmp_path / "flow.yaml"
    path.write_text(json.dumps(GOOD))
    r = rr("explain", path)
    assert b"3 retries, linear from 500.0 ms" in r.out and b"letters.example.org" in r.out, r
    delivery = json.loads(rr("explain", path, "--json").out)["delivery"]
    assert delivery["retry"] == 3 and delivery["backoffDelay_ns"] == 500000000
    assert delivery["queue"]["path"].endswith("/q")
