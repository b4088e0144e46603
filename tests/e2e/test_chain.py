# SPDX-License-Identifier: Apache-2.0
"""Containers that hand messages on to each other: by crun and runc, and under containerd."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import BIN, BUILD, GUESTS, KIB, MIB, SLOW, edge, guest
from containers import can_make_containers, make_bundle, make_image, mounts, processes, spec
from test_containerd import RUNTIME, Containerd, find_containerd, shims
from test_nodes import LOCAL, Certificates, free_port
from test_oci import Oci

pytestmark = pytest.mark.skipif(
    not can_make_containers(), reason="the system lets this user make no containers"
)


class Chain(Oci):
    """Containers by hand, in a trust domain unless it says otherwise."""

    def __init__(self, folder, cache, runtime):
        super().__init__(folder, cache, runtime)
        self.folder = folder
        self.env["ROADRUNNER_STATE"] = str(folder / "rr")
        self.names = []

    def bundle(self, name, module, args=(), annotations=None, net=True, tls=None, **changes):
        """@net: in a network namespace of its own; @tls: a certificate's files, as options."""
        if not net:
            linux = spec([])["linux"]
            linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "network"]
            changes["linux"] = linux
        if tls:
            keys = self.folder / name / "rootfs/etc/roadrunner/tls"
            keys.mkdir(parents=True, exist_ok=True)
            for option, file in {"cert": "tls.crt", "key": "tls.key", "ca": "ca.crt"}.items():
                shutil.copy(tls[tls.index(f"--tls-{option}") + 1], keys / file)
        return make_bundle(
            self.folder / name,
            [f"/{module}.wasm", *args],
            [module],
            annotations={
                f"roadrunner.dev/{k}" if "." not in k else k: v
                for k, v in (annotations or {}).items()
            },
            **changes,
        )

    def start(self, name, module, domain="d", wait="is served", **kw):
        """A container in the background. Its log, once it says @wait."""
        bundle = self.bundle(name, module, **kw)
        log = bundle / "log"
        with log.open("wb") as out:
            done = subprocess.run(
                self.command(*self.domain(domain), "create", "-b", bundle, name),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.env,
                timeout=60 * SLOW,
            )
        assert done.returncode == 0, log.read_text()
        self.names.append(name)
        self("start", name)
        deadline = time.monotonic() + 20 * SLOW
        while wait and wait not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        return log

    @staticmethod
    def hops(text):
        """Who gave what to whom, by which channel: what an entry with TRACE tells, in any order."""
        return {h[:3] for h in re.findall(rb"(\w+) -> (\w+): (\w+), ", text)}

    @staticmethod
    def domain(name):
        return ["--domain", name] if name else []

    def run(self, name, module, stdin=b"", domain="d", **kw):
        bundle = self.bundle(name, module, **kw)
        return self(*self.domain(domain), "run", "-b", bundle, name, stdin=stdin, ok=False)

    def delete(self, name, how="KILL"):
        self("kill", name, how, ok=False)
        self.wait(name)
        self("delete", name)
        self.names.remove(name)

    def domains(self):
        folder = self.folder / "rr/domains"
        return sorted(p.name for p in folder.iterdir()) if folder.exists() else []

    def end(self):
        for name in list(self.names):
            self.delete(name)
        assert self.domains() == []


@pytest.fixture
def chain(request, cache):
    with tempfile.TemporaryDirectory(prefix="rr-ch-", dir="/tmp") as folder:
        chain = Chain(Path(folder), cache, getattr(request, "param", "runc"))
        yield chain
        chain.end()


TRACE = {"trace": "true"}


@pytest.mark.parametrize("chain", ["crun", "runc"], indirect=True)
def test_three_containers_of_one_domain(chain):
    chain.start("c", "concat", annotations={"function": "c", **TRACE})
    chain.start("b", "upper", annotations={"function": "b", "next": "c", **TRACE})
    data = os.urandom(100 * MIB // 64) * 64
    done = chain.run("a", "echo", data, annotations={"next": "b", **TRACE})
    assert done.returncode == 0, done.stderr
    hops = re.findall(rb"(\w+) -> (\w+): (\w+), (\w+), (\d+) bytes, (\d+) copied", done.stderr)
    assert [h[:3] for h in hops] == [
        (b"input", b"entry", b"user"),
        (b"entry", b"b", b"kernel"),
        (b"b", b"c", b"kernel"),
    ], done.stderr
    assert all(int(h[4]) == len(data) and int(h[5]) == 0 for h in hops)
    assert done.stdout == b"in=" + data.upper() + b"\n"


def test_one_entry_after_the_other(chain):
    """The first message between functions that never met does without the network, too; and what
    a function holds for an entry goes with it: it may have 64 files."""
    chain.start("c", "concat", annotations={"function": "c"})
    chain.start("b", "upper", annotations={"function": "b", "next": "c"})
    bundle = chain.bundle("a", "echo", annotations={"next": "b", **TRACE})
    for _ in range(15):
        done = chain("--domain", "d", "run", "-b", bundle, "a", stdin=b"x" * 400_000)
        assert chain.hops(done.stderr) == {
            (b"input", b"entry", b"user"),
            (b"entry", b"b", b"kernel"),
            (b"b", b"c", b"kernel"),
        }, done.stderr


def test_a_pipe_ends_the_result(chain):
    """Payloads of all sizes, the empty one too, and none of them waits for more."""
    chain.start("b", "upper", annotations={"function": "b"})
    for data in (b"", b"x", b"abc" * 100_000):
        done = chain.run("a", "echo", data, annotations={"next": "b"})
        assert done.returncode == 0 and done.stdout == data.upper(), done.stderr


def test_programs_are_functions_too(chain):
    """WASI commands: stdin and stdout are the messages, arguments and stderr the container's."""
    log = chain.start("b", "stdio_upper", args=["x"], annotations={"function": "b"}, wait=None)
    done = chain.run("a", "stdio_upper", b"hello", annotations={"next": "b"})
    assert done.stdout == b"HELLO" and b"0 arguments" in done.stderr
    assert "1 arguments, first x" in log.read_text()


def test_who_is_missing_is_named(chain):
    done = chain.run("a", "echo", b"x", annotations={"next": "b", "patience": "1"})
    assert done.returncode == 73
    assert b"function 'b' cannot be reached" in done.stderr
    assert b"roadrunner.dev/function=b" in done.stderr
    done = chain.run("a", "echo", b"x", domain=None, annotations={"next": "b"})
    assert done.returncode == 65 and b"has no trust domain" in done.stderr
    done = chain.run("a", "echo", b"x", domain=None, annotations={"function": "b"})
    assert done.returncode == 65 and b"nobody can reach" in done.stderr


def test_an_entry_waits_for_functions(chain):
    bundle = chain.bundle("a", "echo", annotations={"next": "b"})
    entry = subprocess.Popen(
        chain.command("--domain", "d", "run", "-b", bundle, "a"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=chain.env,
    )
    time.sleep(0.5)
    chain.start("b", "upper", annotations={"function": "b"})
    assert entry.communicate(b"late", timeout=30 * SLOW)[0] == b"LATE"


def test_domains_do_not_meet(chain):
    chain.start("b", "upper", annotations={"function": "b"}, busybox=True)
    chain.start("x", "upper", domain="other", annotations={"function": "x"}, busybox=True)
    done = chain.run("a", "echo", b"x", domain="other", annotations={"next": "b", "patience": "1"})
    assert done.returncode == 73 and b"'b' cannot be reached" in done.stderr
    # An annotation makes a domain smaller, and never another one.
    own = {"next": "b", "patience": "1", "domain": "part"}
    assert chain.run("a", "echo", b"x", annotations=own).returncode == 73
    assert chain.domains() == ["domain.d", "domain.other"]
    wrong = chain.run("a", "echo", b"x", annotations={"next": "b", "domain": "../d"})
    assert wrong.returncode != 0 and b"no name of a trust domain" in wrong.stderr
    # What a container was given leads nowhere else.
    script = (
        "for f in /proc/1/fd/*; do [ -d $f/ ] && /bin/busybox ls $f/ $f/.. $f/../../..; done; true"
    )
    done = chain("exec", "x", "/bin/busybox", "sh", "-c", script)
    names = set(re.findall(rb"^[\w.]+$", done.stdout, re.M))
    assert {n for n in names if not n.startswith(b"roadrunner.status.")} == {b"x"}, done
    # Nor is there a path to it.
    done = chain("exec", "x", "/bin/busybox", "find", "/", "-xdev", "-type", "s")
    assert done.stdout == b""


def test_a_function_is_killed_and_started_again(chain):
    chain.start("b", "upper", annotations={"function": "b"})
    assert chain.run("a", "echo", b"one", annotations={"next": "b"}).stdout == b"ONE"
    chain.delete("b")
    done = chain.run("a", "echo", b"x", annotations={"next": "b", "patience": "1"})
    assert done.returncode == 73
    chain.start("b", "upper", annotations={"function": "b"})
    assert chain.run("a", "echo", b"two", annotations={"next": "b"}).stdout == b"TWO"


def test_of_replicas_the_newest_has_the_name(chain):
    """As in a rolling update, and when a Deployment is scaled down, which ends the newest first."""

    def says():
        done = chain.run("a", "echo", b"x", annotations={"next": "b"})
        return done.stdout or done.stderr

    chain.start("one", "echo", annotations={"function": "b"})
    chain.start("two", "upper", annotations={"function": "b"})
    assert says() == b"X"
    chain.start("three", "concat", annotations={"function": "b"})
    assert says() == b"in=x\n"
    chain.delete("one", "TERM")
    assert says() == b"in=x\n"
    chain.delete("three", "KILL")
    assert says() == b"X"
    chain.start("one", "echo", annotations={"function": "b"})
    assert says() == b"x"
    chain.delete("one", "TERM")
    assert says() == b"X"


@pytest.mark.parametrize("users, channel", [((1000, 1000), b"kernel"), ((1000, 0), b"network")])
def test_users(chain, users, channel):
    """Those of other users are strangers: the kernel copies for them."""
    as_user = [{"user": {"uid": u, "gid": u}} for u in users]
    chain.start("b", "upper", annotations={"function": "b"}, process=as_user[0])
    data = b"user" * 200_000
    done = chain.run("a", "echo", data, annotations={"next": "b", **TRACE}, process=as_user[1])
    assert done.stdout == data.upper(), done.stderr
    assert b"entry -> b: " + channel in done.stderr, done.stderr


@pytest.mark.parametrize("chain", ["crun", "runc"], indirect=True)
def test_user_namespaces(chain):
    """Of one mapping they lend each other memory; others are strangers, root on the node, too."""
    chain.folder.chmod(0o755)

    def mapped(first):
        linux, ids = spec([])["linux"], [{"containerID": 0, "hostID": first, "size": 65536}]
        linux["namespaces"].append({"type": "user"})
        return {"linux": {**linux, "uidMappings": ids, "gidMappings": ids}}

    chain.start("b", "upper", annotations={"function": "b"}, **mapped(100000))
    assert json.loads(chain("exec", "b", "status").stdout)["module"] == "/upper.wasm"
    assert chain("exec", "b", "/upper.wasm", ok=False).returncode == 126  # no program, but found
    data = b"mapped" * 100_000
    for n, (own, channel) in enumerate(
        ((mapped(100000), b"kernel"), (mapped(300000), b"network"), ({}, b"network"))
    ):
        done = chain.run(f"a{n}", "echo", data, annotations={"next": "b", **TRACE}, **own)
        assert done.stdout == data.upper(), done.stderr
        assert (b"entry", b"b", channel) in chain.hops(done.stderr), done.stderr


def test_a_function_dies_with_a_message_at_hand(chain):
    chain.start("b", "slow", annotations={"function": "b"}, process={"env": ["MS=20000"]})
    bundle = chain.bundle("a", "echo", annotations={"next": "b"})
    entry = subprocess.Popen(
        chain.command("--domain", "d", "run", "-b", bundle, "a"),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=chain.env,
    )
    entry.stdin.write(b"x")
    entry.stdin.close()
    time.sleep(1)
    chain.delete("b")
    chain.start("b", "upper", annotations={"function": "b"})
    told = entry.stderr.read()
    assert entry.wait(30 * SLOW) == 73 and b"'b'" in told, told


AGAIN = {"delivery": "at-least-once"}


@pytest.mark.parametrize("victim", ["b", "c"])
def test_a_chain_delivers_again(chain, victim):
    """A function is killed with a message at hand; the one that takes its place gets it."""
    slow = {"process": {"env": ["MS=1000"]}}

    def start(name):
        notes = {"function": name, **({"next": "c"} if name == "b" else {}), **AGAIN}
        module, more = ("slow", slow) if name == victim else ("echo", {})
        return chain.start(name, module, annotations=notes, **more)

    start("c")
    start("b")
    bundle = chain.bundle("a", "upper", annotations={"next": "b", **AGAIN, **TRACE})
    entry = subprocess.Popen(
        chain.command("--domain", "d", "run", "-b", bundle, "a"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=chain.env,
    )
    entry.stdin.write(b"again" * 100_000)
    entry.stdin.close()
    deadline = time.monotonic() + 20 * SLOW
    while "begin" not in (chain.folder / victim / "log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    chain.delete(victim)
    log = start(victim)
    assert entry.stdout.read() == b"AGAIN" * 100_000, entry.stderr.read()
    assert entry.wait(30 * SLOW) == 0
    assert re.search("attempt [23]", log.read_text())


def test_all_of_a_chain_deliver_alike(chain):
    chain.start("b", "upper", annotations={"function": "b", **AGAIN})
    done = chain.run("a", "echo", b"x", annotations={"next": "b"})
    assert done.returncode == 73 and b"delivers otherwise" in done.stderr, done
    args = [BIN, "run", "chain:at-least-once:b"]
    bundle = linux_bundle(chain, "g", args, annotations=GATEWAY)
    assert chain("--domain", "d", "run", "-b", bundle, "g", stdin=b"x").stdout == b"X"
    done = chain.run("a", "echo", b"x", annotations={"next": "b", "delivery": "twice"})
    assert done.returncode != 0 and b"no way of delivery" in done.stderr, done


def test_sigterm_ends_a_function(chain):
    """At once when it has nothing to do, else when that is done."""
    chain.start("b", "upper", annotations={"function": "b"})
    chain("kill", "b", "TERM")
    chain.wait("b")
    chain.start("c", "slow", annotations={"function": "c"}, process={"env": ["MS=1500"]})
    entry = subprocess.Popen(
        chain.command(
            "--domain", "d", "run", "-b", chain.bundle("a", "echo", annotations={"next": "c"}), "a"
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=chain.env,
    )
    entry.stdin.write(b"at hand")
    entry.stdin.close()
    deadline = time.monotonic() + 20 * SLOW
    while "begin" not in (chain.folder / "c/log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    chain("kill", "c", "TERM")
    assert entry.stdout.read() == b"at hand", entry.stderr.read()
    assert entry.wait(30 * SLOW) == 0
    chain.wait("c")


def test_the_prototypes_contract(chain):
    """A guest with its exports and imports, and its annotations."""
    chain.start(
        "b", "buf_upper", annotations={"secondary.function": "true", "roadrunner.dev/domain": "p"}
    )
    done = chain.run(
        "a",
        "buf_connect",
        b"by func_connect",
        annotations={
            "target.function": "/buf_upper.wasm",
            "roadrunner.dev/domain": "p",
        },
    )
    assert done.stdout == b"BY FUNC_CONNECT", done.stderr


def test_two_modules_of_one_image(chain):
    for annotations in (
        {"secondary.function": "/upper.wasm"},
        {"secondary.function": "/upper.wasm", **TRACE},
    ):
        bundle = chain.bundle("a", "echo", annotations=annotations)
        (bundle / "rootfs/upper.wasm").write_bytes(guest("upper").read_bytes())
        done = chain("run", "-b", bundle, "a", stdin=b"two in one")
        assert done.stdout == b"TWO IN ONE"
    assert b"entry -> entry_2: user" in done.stderr


WORKFLOW = """version: 1
functions:
  one: {module: /echo.wasm}
  two: {module: /upper.wasm}
edges:
  - {from: input, to: one}
  - {from: one, to: two}
result: two
"""


def test_a_workflow_is_the_program(chain):
    bundle = make_bundle(chain.folder / "w", ["/flow.yaml"], ["echo", "upper"])
    (bundle / "rootfs/flow.yaml").write_text(WORKFLOW)
    assert chain("run", "-b", bundle, "w", stdin=b"hello").stdout == b"HELLO"
    (bundle / "rootfs/flow.yaml").write_text(WORKFLOW.replace("to: two", "to: tow"))
    done = chain("run", "-b", bundle, "w", ok=False)
    assert done.returncode == 65 and b"/flow.yaml:7:21: unknown function 'tow'" in done.stderr


NODES = """version: 1
nodes:
  b: {address: "unix:/run/roadrunner/b"}
functions:
  one: {module: /echo.wasm}
  two: {module: /upper.wasm, node: b}
edges:
  - {from: input, to: one}
  - {from: one, to: two, delivery: at-least-once}
result: two
"""


FLOW = {"workflow": "/flow.yaml", **TRACE}


def start_node(chain, text):
    make_bundle(chain.folder / "b", ["/x"], ["upper", "slow"])
    (chain.folder / "b/rootfs/flow.yaml").write_text(text)
    chain.start("b", "upper", annotations={"function": "b", **FLOW})
    line = processes()[chain.state("b")["pid"]]
    assert re.search("--module-fd [0-9]+ /(upper|slow).wasm", line), line  # compiled outside


def make_origin(chain, text):
    bundle = chain.bundle("a", "echo", annotations=FLOW)
    (bundle / "rootfs/flow.yaml").write_text(text)
    return bundle


def test_a_workflow_over_containers(chain):
    start_node(chain, NODES)
    bundle = make_origin(chain, NODES)
    done = chain("--domain", "d", "run", "-b", bundle, "a", stdin=b"hello")
    assert done.stdout == b"HELLO" and b"one -> two: kernel" in done.stderr
    other = make_origin(chain, NODES.replace("delivery: at-least-once", "max: 1MiB"))
    done = chain("--domain", "d", "run", "-b", other, "a", stdin=b"hello", ok=False)
    assert done.returncode == 73 and b"another version of the workflow" in done.stderr


def test_a_workflow_delivers_again(chain):
    """A container is killed with a message at hand; the one that takes its place gets it."""
    text = NODES.replace("/upper.wasm, node: b", "/slow.wasm, node: b, env: {MS: 1500}")
    start_node(chain, text)
    entry = subprocess.Popen(
        chain.command("--domain", "d", "run", "-b", make_origin(chain, text), "a"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=chain.env,
    )
    entry.stdin.write(b"x" * MIB)
    entry.stdin.close()
    time.sleep(1)
    chain.delete("b")
    start_node(chain, text)
    assert entry.stdout.read() == b"x" * MIB
    assert entry.wait(30 * SLOW) == 0, entry.stderr.read()
    assert re.search("attempt [23]", (chain.folder / "b/log").read_text())


@pytest.mark.parametrize(
    "annotations, says",
    [
        ({"next": "b", "workflow": "/w"}, b"does not go with"),
        ({"listen": ":1"}, b"is for functions"),
        ({"next": "b", "plain": "yes"}, b"neither true nor false"),
        ({"next": "b", "patience": "0"}, b"no number of seconds"),
        ({"next": "x" * 5000}, b"is too long"),
        ({"secondary.function": "nothing"}, b"names no module"),
        ({"next": "b c"}, b"names no function"),
        ({"next": "-b"}, b"names no function"),
        ({"function": "a/b"}, b"is no name"),
        ({"function": "b", "next": "b"}, b"comes after itself"),
        ({"next": "b@host:1"}, b"are not protected"),
        ({"function": "b", "listen": ":1"}, b"are not protected"),
    ],
)
def test_mistakes_are_named(chain, annotations, says):
    done = chain.run("a", "echo", b"x", annotations=annotations)
    assert done.returncode != 0 and says in done.stderr, done
    assert not chain.domains()


def ps(chain, *args, command=BIN, **kw):
    done = subprocess.run(
        [command, "ps", *args], capture_output=True, env=chain.env, timeout=30 * SLOW, **kw
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def ps_json(chain):
    document = json.loads(ps(chain, "--json", "--interval", "0"))
    return [w for w in document["workers"] if w["domain"] == "domain.d"]


def test_ps_and_status(chain):
    chain.start("c", "concat", annotations={"function": "c"})
    chain.start("b", "upper", annotations={"function": "b", "next": "c"})
    for data in (b"x" * 1000, b"x" * MIB):
        chain.run("a", "echo", data, annotations={"next": "b"})
    workers = {w["functions"][0]["name"]: w for w in ps_json(chain)}
    assert set(workers) == {"b", "c"}
    for name, worker in workers.items():
        assert worker["pid"] == chain.state(name)["pid"] and worker["kind"] == "function"
        assert worker["functions"] == [{"name": name, "runs": 2, "running": 0}]
        (channel,) = worker["channels"]
        assert channel["channel"] == "kernel" and channel["messages"] == 2
        assert channel["payload_bytes"] == MIB + 1000
        assert channel["copied_bytes"] < 10_000  # the small one
        inside = json.loads(chain("exec", name, "status").stdout)
        assert inside["functions"] == worker["functions"]
        assert inside["channels"] == worker["channels"] and inside["pid"] == 1
    table = ps(chain)
    assert re.search(r"domain.d +chain +b +2 +0\n", table)
    assert re.search(r"input +b +kernel +2 +1.0 MiB", table), table
    # Somebody else sees nothing of it.
    chain.folder.chmod(0o711)
    command = shutil.copy(BIN, chain.folder / "roadrunner")
    nobody = ps(chain, "--json", "--interval", "0", command=command, user=65534, cwd="/")
    assert not [w for w in json.loads(nobody)["workers"] if w["domain"]]


def test_ps_does_not_believe_or_wait(chain):
    chain.start("b", "upper", annotations={"function": "b"})
    (folder,) = (chain.folder / "rr/domains").glob("*/shared")
    (folder / "roadrunner.status.link").symlink_to("/run/nothing")
    (folder / "roadrunner.status.file").write_bytes(b"x" * 100)
    os.mkfifo(folder / "roadrunner.status.fifo")
    hostile = []
    for name, says in (("silent", None), ("garbage", b"\0" * 500), ("endless", b"x" * MIB)):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / f"roadrunner.status.{name}"))
        listener.listen()
        hostile.append(listener)

        def answer(listener=listener, says=says):
            while True:
                try:
                    connection = listener.accept()[0]
                    while says:
                        connection.sendall(says)
                        if len(says) < MIB:
                            connection.close()
                            break
                    time.sleep(3)
                except OSError:
                    return

        threading.Thread(target=answer, daemon=True).start()
    begin = time.monotonic()
    assert [w["functions"][0]["name"] for w in ps_json(chain)] == ["b"]
    assert time.monotonic() - begin < 3 * SLOW
    for listener in hostile:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


HOST = ["/usr", "/lib", "/lib64", "/bin", "/etc/ssl", str(BUILD)]


def linux_bundle(chain, name, args, **changes):
    """An ordinary container with this machine's programs and ours."""
    bundle = make_bundle(chain.folder / name, args, **changes)
    document = json.loads((bundle / "config.json").read_text())
    for path in HOST:
        (bundle / "rootfs" / path[1:]).mkdir(parents=True, exist_ok=True)
        mount = {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
        document["mounts"].append(mount)
    document["linux"]["namespaces"] = [n for n in document["linux"]["namespaces"] if n["type"] != "network"]  # fmt: skip
    (bundle / "config.json").write_text(json.dumps(document))
    return bundle


GATEWAY = {"roadrunner.dev/gateway": "true"}


def test_an_ordinary_container_begins_a_chain(chain):
    chain.start("c", "concat", annotations={"function": "c"})
    chain.start("b", "upper", annotations={"function": "b", "next": "c"})
    args = [BIN, "run", "chain:b", "--json"]
    bundle = linux_bundle(chain, "g", args, annotations=GATEWAY)
    data = b"gateway" * 1_000_000
    done = chain("--domain", "d", "run", "-b", bundle, "g", stdin=data)
    assert done.stdout == b"in=" + data.upper() + b"\n"
    report = json.loads(done.stderr[done.stderr.index(b"{\n") :])
    assert [(e["from"], e["to"], e["channel"], e["copied_bytes"]) for e in report["hops"]] == [
        ("input", "b", "kernel", 0),
        ("b", "c", "kernel", 0),
    ]
    done = chain("run", "-b", bundle, "g", ok=False)
    assert done.returncode != 0 and b"no trust domain" in done.stderr


def post(address, data):
    """Once it listens."""
    end = time.monotonic() + 20 * SLOW
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/", data, timeout=20) as reply:
                return reply.read()
        except urllib.error.URLError as error:
            refused = isinstance(error.reason, ConnectionRefusedError)
            if not refused or time.monotonic() > end:
                raise
            time.sleep(0.05)


def test_serve_begins_a_chain(chain):
    """An HTTP request goes into the chain and back; functions may be started again in between."""
    chain.start("b", "upper", annotations={"function": "b"})
    address = f"127.0.0.1:{20000 + os.getpid() % 20000}"
    bundle = linux_bundle(chain, "g", [BIN, "serve", "chain:b", "-l", address], annotations=GATEWAY)
    done = subprocess.run(
        chain.command("--domain", "d", "create", "-b", bundle, "g"),
        stdin=subprocess.DEVNULL,
        stdout=(bundle / "log").open("wb"),
        stderr=subprocess.STDOUT,
        env=chain.env,
    )
    assert done.returncode == 0, (bundle / "log").read_text()
    chain.names.append("g")
    chain("start", "g")

    for _ in range(3):
        assert post(address, b"over http" * 50_000) == b"OVER HTTP" * 50_000
    chain.delete("b")
    chain.start("b", "upper", annotations={"function": "b"})
    assert post(address, b"again") == b"AGAIN", (bundle / "log").read_text()


# --- over the network ------------------------------------------------------------------------------


class Served:
    """`roadrunner serve` on the machine itself."""

    def __init__(self, rr, *args):
        self.address = f"127.0.0.1:{free_port()}"
        command = [BIN, "serve", *map(str, args), "-l", self.address]
        self.p = subprocess.Popen(command, stderr=subprocess.PIPE, env=rr.env)

    def post(self, data):
        return post(self.address, data)

    def end(self):
        self.p.terminate()
        told = self.p.communicate(timeout=20 * SLOW)[1]
        assert self.p.returncode == 0, told
        return told


@pytest.mark.parametrize("tls", [False, True])
def test_a_chain_by_its_address(chain, rr, tmp_path, tls):
    """run, serve, and an entry, of no trust domain, reach `b`, and by it `c`, with TLS or without."""
    certificates = Certificates(tmp_path / "certificates") if tls else None
    where = {n: f"127.0.0.1:{free_port()}" for n in "bc"}

    def of(name, **annotations):
        own = {"net": False, "domain": None, "annotations": annotations}
        if tls:
            return {**own, "tls": certificates.make(name, LOCAL)}
        return {**own, "annotations": {"plain": "true", **annotations}}

    chain.start("c", "concat", **of("c", function="c", listen=where["c"]))
    chain.start("b", "upper", **of("b", function="b", listen=where["b"], next=f"c@{where['c']}"))
    begin, data = f"b@{where['b']}", b"far away" * 50_000
    mine = certificates.make("mine", LOCAL)[1:] if tls else ["--plain"]
    done = rr("run", f"chain:{begin}", *mine, "--json", stdin=data)
    assert (done.status, done.out) == (0, b"in=" + data.upper() + b"\n"), done
    assert [h["channel"] for h in done.report["hops"]] == ["network"] * 2
    served = Served(rr, f"chain:{begin}", *(w.replace("--tls-", "--node-") if isinstance(w, str)
                    else w for w in mine if w != "--plain"), *([] if tls else ["--node-plain"]))  # fmt: skip
    for _ in range(2):
        assert served.post(data) == b"in=" + data.upper() + b"\n"
    served.end()
    done = chain.run("a", "echo", data, **of("a", next=begin, **TRACE))
    assert done.stdout == b"in=" + data.upper() + b"\n", done.stderr
    assert chain.hops(done.stderr) == {
        (b"input", b"entry", b"user"),
        (b"entry", b"b", b"network"),
        (b"b", b"c", b"network"),
    }, done.stderr

    # Who has not the same idea of protection gets nowhere.
    shutil.rmtree(chain.folder / "a")
    own = {"next": begin, "patience": "1", **({"plain": "true"} if tls else {})}
    done = chain.run("a", "echo", b"x", net=False, domain=None, annotations=own)
    assert done.returncode == (73 if tls else 64) and not done.stdout, done
    if tls:
        certificates.make_ca("other")
        certificates.make("stranger", LOCAL, ca="other")
        own = of("a", next=begin, patience="1")
        own["tls"] = certificates.options("stranger", ca="other")
        done = chain.run("a", "echo", b"x", **own)
        assert done.returncode == 73 and b"certificate" in done.stderr and not done.stdout, done


# --- containerd ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2])
def containerd(request, cache, tmp_path_factory):
    if not find_containerd(request.param):
        pytest.skip(f"containerd {request.param} was not built: tools/setup test needs Go for it")
    with tempfile.TemporaryDirectory(prefix="rr-cc-", dir="/tmp") as name:
        folder = Path(name)
        daemon = Containerd(request.param, folder, cache)
        files = {f"{n}.wasm": guest(n).read_bytes() for n in ("echo", "upper")}
        image = make_image(folder / "i.tar", "t/chain:1", ["/echo.wasm"], files)
        daemon("image", "import", image)
        yield daemon
        daemon.stop()
        assert not mounts(str(folder))


def options(**annotations):
    return [w for k, v in annotations.items() for w in ("--annotation", f"roadrunner.dev/{k}={v}")]


def start_task(containerd, name, *args, **annotations):
    log = containerd.folder / f"{name}.log"
    log.unlink(missing_ok=True)
    containerd("run", "-d", "--log-uri", f"file://{log}", *RUNTIME, "--seccomp",
               *options(**annotations), "t/chain:1", name, *args)  # fmt: skip
    for _ in range(int(200 * SLOW)):
        if log.exists() and "is served" in log.read_text():
            return log
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def end_task(containerd, name):
    containerd("task", "rm", "-f", name)
    containerd("container", "rm", name)


def test_two_tasks_of_containerd(containerd):
    start_task(containerd, "b", "/upper.wasm", domain="d", function="b")
    to_b = ["--seccomp", *options(domain="d", next="b", trace="true", patience="1")]
    done = containerd.run("t/chain:1", "a", stdin=b"hello" * 100_000, options=to_b)
    assert done.stdout == b"HELLO" * 100_000, done.stderr
    assert b"entry -> b: kernel, move, 500000 bytes, 0 copied" in done.stderr
    for other in (options(domain="e", next="b", patience="1"), options(next="b", patience="1")):
        done = containerd.run("t/chain:1", "a", stdin=b"x", options=other)
        assert done.returncode in (65, 73) and b"'b'" in done.stderr
    domains = containerd.folder / "rr/domains"
    assert [p.name for p in domains.iterdir()] == ["containerd.default+d"]
    # Whatever its end, the folder goes with the last one.
    os.kill(containerd.status("b")[1], signal.SIGKILL)
    containerd.wait("b", "STOPPED")
    end_task(containerd, "b")
    assert not list(domains.iterdir())
    start_task(containerd, "b", "/upper.wasm", domain="d", function="b")
    (shim,) = [p for p in shims(containerd.folder) if "-id b " in processes()[p]]
    os.kill(shim, signal.SIGKILL)
    for _ in range(200):
        if not list(domains.iterdir()):
            break
        time.sleep(0.05)
    assert not list(domains.iterdir())
    containerd("container", "rm", "b")


PHOTO = GUESTS / "examples/photo"


@pytest.fixture
def two_nodes(cache, namespaces):
    """A containerd in each of two network namespaces, each with a folder of domains of its own."""
    version = 2 if find_containerd(2) else 1
    files = {f.name: f.read_bytes() for f in PHOTO.glob("*.wasm")}
    with tempfile.TemporaryDirectory(prefix="rr-cn-", dir="/tmp") as name:
        daemons = []
        for n in range(2):
            folder = Path(name) / str(n)
            folder.mkdir()
            inside = ["nsenter", f"--net=/var/run/netns/{namespaces.names[n]}"]
            daemons.append(Containerd(version, folder, cache, prefix=inside))
            image = make_image(folder / "i.tar", "t/photo:1", ["/join.wasm"], files)
            daemons[-1]("image", "import", image)
        yield daemons
        for daemon in daemons:
            daemon.stop()


def photo_workflow(path, address):
    """As test_nodes.py has it, with the modules of the image."""
    functions = {
        name: {"module": f"/{name}.wasm", **({"node": "b"} if name in ("resize", "join") else {})}
        for name in ("decode", "resize", "histogram", "join", "encode")
    }
    functions["decode"]["memory"] = "512MiB"
    edges = [
        edge("input", "decode", "64MiB"),
        edge("decode.raw", "resize", "512MiB"),
        edge("decode.raw", "histogram", "512MiB"),
        edge("resize", "join.picture", "64MiB"),
        edge("histogram", "join.plot", "64MiB"),
        edge("join", "encode", "64MiB"),
    ]
    document = {
        "version": 1,
        "name": "photo",
        "nodes": {"b": {"address": address}},
        "functions": functions,
        "edges": edges,
        "result": "encode",
    }
    path.write_text(json.dumps(document))


def test_the_photo_pipeline_over_two_nodes(photo, two_nodes, namespaces, tmp_path):
    photo_workflow(tmp_path / "flow.yaml", f"{namespaces.net}.2:7400")
    mount = f"type=bind,src={tmp_path}/flow.yaml,dst=/flow.yaml,options=rbind:ro"
    common = ["--net-host", "--mount", mount]
    flow = {"workflow": "/flow.yaml", "plain": "true", "domain": "photo"}
    log = two_nodes[1].folder / "b.log"
    two_nodes[1](
        "run", "-d", "--log-uri", f"file://{log}", *RUNTIME, *common,
        *options(function="b", **flow), "t/photo:1", "b",
    )  # fmt: skip
    done = two_nodes[0].run(
        "t/photo:1",
        "a",
        stdin=photo.read_bytes(),
        options=[*common, *options(trace="true", **flow)],
    )
    assert done.returncode == 0, (done.stderr, log.read_text())
    subprocess.run([os.environ["RR_PHOTO_NATIVE"], photo, tmp_path / "one"], check=True)
    assert done.stdout == (tmp_path / "one").read_bytes()
    hops = re.findall(r"(\w+) -> (\w+): (\w+), \w+, (\d+) bytes, (\d+)", done.stderr.decode())
    channels = {(h[0], h[1]): h[2] for h in hops}
    assert channels["decode", "resize"] == "network" and channels["resize", "join"] == "user"
    assert all(h[4] == "0" for h in hops if int(h[3]) > 256 * KIB), hops
    end_task(two_nodes[1], "b")


def test_a_chain_over_two_nodes(two_nodes, namespaces):
    """By annotations alone; the function restarts, and the next run finds it again."""
    address = f"{namespaces.net}.2:7400"
    log = two_nodes[1].folder / "b.log"
    serve = [
        "run", "-d", "--log-uri", f"file://{log}", *RUNTIME, "--net-host",
        *options(function="encode", listen=":7400", plain="true"), "t/photo:1", "b", "/encode.wasm",
    ]  # fmt: skip
    entry = options(next=f"encode@{address}", plain="true", trace="true")
    entry += ["--net-host"]
    for n in range(2):
        two_nodes[1](*serve)
        done = two_nodes[0].run("t/photo:1", "a", "/join.wasm", stdin=b"no picture", options=entry)
        # It got there, and what it says comes back: it wants a picture.
        assert done.returncode == 70 and b"function 'e" in done.stderr, (n, done.stderr)
        end_task(two_nodes[1], "b")
