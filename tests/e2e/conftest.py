# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests share: they run the real command on real modules."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("RR_ROOT", Path(__file__).resolve().parents[2]))
BUILD = Path(os.environ.get("RR_BUILD", ROOT / "build"))
BIN = os.environ.get("RR_BIN", str(BUILD / "roadrunner"))
GUESTS = Path(os.environ.get("RR_GUESTS", BUILD / "guests"))
KIB = 1 << 10
MIB = 1 << 20

# Sanitized builds are slower by this.
RUN_ARGS = os.environ.get("RR_RUN_ARGS", "").split()  # added to every `roadrunner run`
SLOW = float(os.environ.get("RR_SLOW", "1"))


class Result:
    def __init__(self, process):
        self.status = process.returncode
        self.out = process.stdout
        self.err = process.stderr.decode(errors="replace")

    def __repr__(self):
        return f"status {self.status}\nstdout: {self.out[:300]!r}\nstderr: {self.err}"

    @property
    def report(self):
        """The JSON report that `run --json` leaves on stderr, after what functions logged."""
        return json.loads(self.err[self.err.index("\n{\n") :] if "\n{\n" in self.err else self.err)


class Runner:
    def __init__(self, folder, cache, sockets):
        self.folder = folder
        self.sockets = sockets
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "ROADRUNNER_CACHE_DIR": str(cache),
            "XDG_RUNTIME_DIR": str(sockets),
        }
        self.env.update(
            {
                k: v
                for k, v in os.environ.items()
                if k.endswith("SAN_OPTIONS") or k == "TSAN_OPTIONS"
            }
        )

    def __call__(self, *args, stdin=b"", env=None, **kw):
        kw.setdefault("timeout", 120 * SLOW)
        return Result(
            subprocess.run(
                [BIN, *map(str, args), *(RUN_ARGS if args and args[0] == "run" else [])],
                input=stdin,
                capture_output=True,
                env={**self.env, **(env or {})},
                **kw,
            )
        )

    def workflow(self, functions, edges, result, name="flow.yaml"):
        """Writes a workflow file; a function is a module's name, or its fields."""
        spec = {}
        for key, value in functions.items():
            fields = {"module": value} if isinstance(value, str) else dict(value)
            if "/" not in fields["module"]:
                fields["module"] = str(guest(fields["module"]))
            spec[key] = fields
        document = {
            "version": 1,
            "functions": spec,
            "edges": [e if isinstance(e, dict) else edge(*e) for e in edges],
            "result": result,
        }
        path = self.folder / name
        path.write_text(json.dumps(document, indent=1))
        return path

    def flow(self, functions, edges, result, stdin=b"", *args, **kw):
        return self("run", self.workflow(functions, edges, result), *args, stdin=stdin, **kw)

    def chain(self, functions, stdin=b"", *args, max="64MiB", **kw):
        """Runs functions one after the other."""
        names = list(functions)
        edges = [edge(a, b, max) for a, b in zip(["input", *names[:-1]], names, strict=True)]
        return self.flow(functions, edges, names[-1], stdin, *args, **kw)


def edge(a, b, max=None):
    return {"from": a, "to": b, **({"max": max} if max else {})}


def children_of(pid):
    """All descendants: {pid: name}."""
    found, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :]
            parents[int(entry.name)] = (int(rest.split()[1]), name, rest.split()[0])
    todo = [pid]
    while todo:
        one = todo.pop()
        for child, (parent, name, state) in parents.items():
            if parent == one and state != "Z":
                found[child] = name
                todo.append(child)
    return found


def guest(name, kind="tests"):
    return GUESTS / kind / f"{name}.wasm"


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    folder.chmod(0o700)
    return folder


@pytest.fixture
def rr(tmp_path, cache):
    # Short, as the paths of sockets have to be, and open to the user that workers become.
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as sockets:
        os.chmod(sockets, 0o755)
        yield Runner(tmp_path, cache, Path(sockets))


@pytest.fixture(scope="session")
def photo():
    path = BUILD / "photo.jpg"
    if not path.exists():
        subprocess.run([ROOT / "tools/get-photo", path], check=True, stdout=subprocess.DEVNULL)
    return path


class Namespaces:
    """Two of them, joined by a veth pair: 10.99.N.1 and 10.99.N.2."""

    def __init__(self):
        self.names = [f"rr-{os.getpid()}-{x}" for x in "ab"]
        self.net = f"10.99.{os.getpid() % 250}"
        for name in self.names:
            self.ip("netns", "add", name)
        self.ip("link", "add", "rra", "netns", self.names[0], "type", "veth", "peer", "name", "rrb",
                "netns", self.names[1])  # fmt: skip
        for n, (name, dev) in enumerate(zip(self.names, ("rra", "rrb"), strict=True)):
            self.ip("-n", name, "addr", "add", f"{self.net}.{n + 1}/24", "dev", dev)
            self.ip("-n", name, "addr", "add", f"fd99::{n + 1}/64", "dev", dev, "nodad")
            self.ip("-n", name, "link", "set", dev, "up")
            self.ip("-n", name, "link", "set", "lo", "up")

    @staticmethod
    def ip(*args):
        subprocess.run(["ip", *args], check=True, capture_output=True)

    def inside(self, n):
        return ["ip", "netns", "exec", self.names[n]]

    def close(self):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def namespaces():
    try:
        two = Namespaces()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield two
    two.close()
