# SPDX-License-Identifier: Apache-2.0
"""The examples do what their READMEs say."""

import filecmp
import json
import os
import re
import subprocess
from collections import Counter

import pytest
from conftest import GUESTS, MIB, ROOT

EXAMPLES = GUESTS / "examples"


@pytest.fixture(scope="session")
def native(photo, tmp_path_factory):
    out = tmp_path_factory.mktemp("native") / "native.jpg"
    subprocess.run([os.environ["RR_PHOTO_NATIVE"], photo, out], check=True)
    return out


def test_hello(rr):
    r = rr("run", EXAMPLES / "hello/workflow.yaml", stdin=b"world")
    assert r.status == 0, r
    assert b"HELLO" in r.out and b"WORLD" in r.out


def test_tree_counts_words_without_serializing(rr):
    text = (ROOT / "docs/guest-abi.md").read_bytes()
    r = rr("run", EXAMPLES / "tree/workflow.yaml", stdin=text)
    assert r.status == 0, r
    words = Counter(re.findall(r"[A-Za-z0-9]+", text.decode()))
    head, *lines = r.out.splitlines()
    assert head.startswith(b"# %d words" % len(lines))
    answer = dict(line.rsplit(b" ", 1) for line in lines)
    assert {k.decode(): int(v) for k, v in answer.items()} == words


def test_tree_large_moves_without_copies(rr, tmp_path):
    text = tmp_path / "text"
    names = (
        f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676 % 26)}" for i in range(17576)
    )
    text.write_text(" ".join(n + "x" * 20 for n in names))
    r = rr("run", EXAMPLES / "tree/workflow.yaml", text, "--json")
    assert r.status == 0, r
    hops = {(h["from"], h["to"]): h for h in r.report["hops"]}
    assert hops["build", "balance"]["path"] == "move"
    assert hops["build", "balance"]["copied_bytes"] == 0
    assert hops["balance", "print"]["copied_bytes"] == 0
    assert len(r.out.splitlines()) == 1 + 17576


def test_call(rr):
    r = rr("run", EXAMPLES / "call/workflow.yaml", stdin=b"apple 3\nbread 2\nunicorn 1\n")
    assert r.status == 0, r
    assert b"apple" in r.out and b"total" in r.out.lower()


@pytest.mark.parametrize("repeat", [1, 3])
def test_photo_equals_native(rr, photo, native, tmp_path, repeat):
    out = tmp_path / "out.jpg"
    r = rr("run", EXAMPLES / "photo/workflow.yaml", photo, "-o", out, "--repeat", repeat, "--json")
    assert r.status == 0, r
    assert filecmp.cmp(out, native, shallow=False)
    report = json.loads(r.out)
    hops = {(h["from"], h["to"]): h for h in report["hops"]}
    raw = hops["decode.raw", "resize"]
    assert raw["payload_bytes"] > 60_000_000
    assert raw["path"] == "view"
    assert all(h["copied_bytes"] == 0 for h in report["hops"] if h["payload_bytes"] > MIB / 4)
    assert report["memory"]["live_regions"] == 0


def test_photo_without_a_cache(rr, photo, native, tmp_path):
    out = tmp_path / "out.jpg"
    r = rr("run", EXAMPLES / "photo/workflow.yaml", photo, "-o", out, "--no-cache")
    assert r.status == 0, r
    assert filecmp.cmp(out, native, shallow=False)
    assert "decode.raw -> resize" in r.err


def test_photo_refuses_text(rr):
    r = rr("run", EXAMPLES / "photo/workflow.yaml", stdin=b"not a picture")
    assert r.status == 70
    assert "function 'decode'" in r.err
