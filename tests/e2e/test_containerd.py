# SPDX-License-Identifier: Apache-2.0
"""The containerd shim, under Debian's containerd 1.6 and under containerd 2."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from conftest import BUILD, SLOW, guest
from containers import BUSYBOX, can_make_containers, cgroups, make_image, mounts, processes

CACHE = Path(os.environ.get("RR_ENGINE_CACHE", Path.home() / ".cache/roadrunner"))
NUMBERS = itertools.count()
CYCLES = int(os.environ.get("RR_CYCLES", "25"))
RUNTIME = ["--runtime", "io.containerd.roadrunner.v1"]

pytestmark = pytest.mark.skipif(
    not can_make_containers(), reason="the system lets this user make no containers"
)


def find_containerd(version):
    """Folder of containerd and ctr: Debian's, or the one that tools/setup built."""
    folder = Path("/usr/bin") if version == 1 else CACHE / "containerd"
    return folder if (folder / "containerd").exists() else None


class Containerd:
    def __init__(self, version, folder, cache, config=None, prefix=()):
        """@config: TOML after its own tables, instead of none of the CRI plugin; @prefix: words before
        the command."""
        self.version = version
        self.bin = find_containerd(version)
        self.folder = folder
        self.prefix = prefix  # what runs it
        self.env = {
            **os.environ,
            "PATH": f"{BUILD}:{os.environ['PATH']}",
            "ROADRUNNER_CACHE_DIR": str(cache),
            "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1",
            "ROADRUNNER_STATE": str(folder / "rr"),
        }
        (folder / "config.toml").write_text(
            f"""version = {version + 1 if config else 2}
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{"" if config else '"io.containerd.grpc.v1.cri"'}]
[grpc]
  address = "{folder}/c.sock"
[ttrpc]
  address = "{folder}/c.sock.ttrpc"
{config or ""}"""
        )
        self.process = None
        self.start()

    def start(self):
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [*self.prefix, self.bin / "containerd", "--config", self.folder / "config.toml"],
            stdout=log,
            stderr=log,
            env=self.env,
            start_new_session=True,
        )
        for _ in range(int(100 * SLOW)):
            if self("version", ok=False).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(20)

    def command(self, *args):
        return [str(a) for a in (self.bin / "ctr", "-a", self.folder / "c.sock", *args)]

    def __call__(self, *args, stdin=b"", ok=True, timeout=60):
        done = subprocess.run(
            self.command(*args),
            input=stdin,
            capture_output=True,
            env=self.env,
            timeout=timeout * SLOW,
        )
        assert not ok or done.returncode == 0, done.stderr
        return done

    def run(self, image, name, *args, stdin=b"", ok=False, options=()):
        return self("run", "--rm", *RUNTIME, *options, image, name, *args, stdin=stdin, ok=ok)

    def status(self, name):
        for line in self("task", "ls").stdout.decode().splitlines():
            words = line.split()
            if words[0] == name:
                return words[2], int(words[1])
        return None, 0

    def wait(self, name, status):
        for _ in range(int(100 * SLOW)):
            if self.status(name)[0] == status:
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} is {self.status(name)[0]}, not {status}")

    def bundle(self, name):
        return self.folder / f"state/io.containerd.runtime.v2.task/default/{name}"


def images(folder):
    module = guest("stdio_upper").read_bytes()
    files = {
        "stdio_upper.wasm": module,
        "stdio_fail.wasm": guest("stdio_fail").read_bytes(),
        "sleeper.wasm": guest("sleeper").read_bytes(),
        "hog.wasm": guest("hog").read_bytes(),
        "bin/busybox": BUSYBOX.read_bytes(),
    }
    return [
        (make_image(folder / "upper.tar", "t/upper:1", ["/stdio_upper.wasm"], files), None),
        (
            make_image(
                folder / "wasi.tar",
                "t/wasi:1",
                ["/stdio_upper.wasm"],
                {"stdio_upper.wasm": module},
                ("wasi", "wasm"),
            ),
            "wasi/wasm",
        ),
        (
            make_image(
                folder / "box.tar",
                "t/box:1",
                ["/bin/busybox"],
                {"bin/busybox": BUSYBOX.read_bytes()},
            ),
            None,
        ),
    ]


@pytest.fixture(scope="module", params=[1, 2])
def containerd(request, cache, tmp_path_factory):
    if not find_containerd(request.param):
        pytest.skip(f"containerd {request.param} was not built: tools/setup test needs Go for it")
    # Short, as the paths of sockets have to be.
    folder = Path(tempfile.mkdtemp(prefix="rr-cd-", dir="/tmp"))
    daemon = Containerd(request.param, folder, cache)
    for path, platform in images(tmp_path_factory.mktemp("images")):
        where = ["--platform", platform] if platform else []
        local = ["--local"] if where and request.param == 2 else []
        daemon("image", "import", *local, *where, path)
    yield daemon
    daemon.stop()
    assert not shims(folder)
    assert not mounts(str(folder))
    shutil.rmtree(folder)


def shims(folder):
    return [
        pid
        for pid, line in processes().items()
        if "containerd-shim-roadrunner" in line and str(folder) in line
    ]


def shim_of(containerd, waiting):
    (pid,) = [p for p in shims(containerd.folder) if f"-id {waiting.name} " in processes()[p]]
    return pid


class Waiting:
    """A container that runs until it is ended."""

    def __init__(self, containerd, name):
        self.containerd, self.name = containerd, name
        self.log = containerd.folder / f"{name}.log"
        uri = f"file://{self.log}"
        containerd("run", "-d", "--log-uri", uri, *RUNTIME, "t/upper:1", name, "/sleeper.wasm")
        for _ in range(int(100 * SLOW)):
            if self.log.exists() and b"ready" in self.log.read_bytes():
                break
            time.sleep(0.05)
        self.state, self.pid = containerd.status(name)
        assert self.state == "RUNNING"

    def exec(self, *args, exec_id="e1", **kw):
        return self.containerd("task", "exec", "--exec-id", exec_id, self.name, *args, **kw)

    def kill(self, name):
        self.containerd("task", "kill", "-s", name, self.name)

    def end(self):
        """Its exit status, once it has ended; and removed."""
        self.containerd.wait(self.name, "STOPPED")
        told = self.containerd("task", "rm", self.name).stderr.decode()
        self.containerd("container", "rm", self.name)
        found = re.search(r"non-zero exit code (\d+)", told)
        return int(found[1]) if found else 0


@pytest.fixture
def waiting(containerd, request):
    w = Waiting(containerd, f"w{os.getpid()}-{next(NUMBERS)}")
    yield w
    containerd("task", "rm", "-f", w.name, ok=False)
    containerd("container", "rm", w.name, ok=False)


def test_a_module_runs(containerd):
    done = containerd.run("t/upper:1", "c1", "/stdio_upper.wasm", "x", stdin=b"hello")
    assert done.stdout == b"HELLO" and done.returncode == 0
    assert b"1 arguments, first x" in done.stderr


def test_an_image_for_wasi(containerd):
    done = containerd.run(
        "t/wasi:1", "c1", stdin=b"hello", options=["--platform", "wasi/wasm"], ok=True
    )
    assert done.stdout == b"HELLO"


def test_exit_status(containerd):
    assert containerd.run("t/upper:1", "c1", "/stdio_fail.wasm").returncode == 3
    done = containerd.run("t/upper:1", "c1", "/missing.wasm")
    assert done.returncode == 127 and b"cannot find the module" in done.stderr
    done = containerd.run("t/box:1", "c1", "/bin/busybox", "sh", "-c", "echo linux; exit 5")
    assert done.returncode == 5 and done.stdout == b"linux\n"


def test_a_shim_that_outlives_an_upgrade_runs_what_was_installed(containerd, tmp_path):
    for name in ("containerd-shim-roadrunner-v1", "roadrunner-oci", "roadrunner-worker"):
        shutil.copy(BUILD / name, tmp_path)
    shim = tmp_path / "containerd-shim-roadrunner-v1"
    options = ["-d", "--null-io", "--runtime", shim]
    containerd("run", *options, "t/upper:1", "c1", "/sleeper.wasm")
    told = tmp_path / "told"
    newer = tmp_path / "newer"
    newer.write_text(f'#!/bin/sh\necho "$@" >>{told}\nexec {BUILD}/roadrunner-oci "$@"\n')
    newer.chmod(0o755)
    newer.rename(tmp_path / "roadrunner-oci")
    shutil.copy(shim, newer)
    newer.rename(shim)
    containerd("task", "kill", "-s", "KILL", "c1")
    containerd.wait("c1", "STOPPED")
    containerd("task", "rm", "c1", ok=False)  # tells the exit status by its own
    assert " delete " in told.read_text()
    containerd("container", "rm", "c1")


def test_exec(waiting):
    assert json.loads(waiting.exec("status").stdout)["module"] == "/sleeper.wasm"
    assert waiting.exec("/stdio_upper.wasm", stdin=b"in", exec_id="e2").stdout == b"IN"
    done = waiting.exec("/bin/busybox", "sh", "-c", "exit 7", exec_id="e3", ok=False)
    assert done.returncode == 7
    assert waiting.exec("/none", exec_id="e4", ok=False).returncode != 0


def test_terminal(containerd):
    script = "tty; read line; echo got $line"
    ctr = " ".join(containerd.command("run", "--rm", "-t", *RUNTIME, "t/box:1", "c1"))
    done = subprocess.run(
        ["script", "-qec", f"{ctr} /bin/busybox sh -c '{script}'", "/dev/null"],
        input=b"word\n",
        capture_output=True,
        env=containerd.env,
        timeout=30 * SLOW,
    )
    assert b"/dev/pts/0" in done.stdout and b"got word" in done.stdout


@pytest.mark.parametrize("name, status", [("TERM", 143), ("INT", 130), ("KILL", 137)])
def test_signals(waiting, name, status):
    waiting.kill(name)
    assert waiting.end() == status


def test_pause_stats_pids_update(containerd, waiting):
    name = waiting.name
    assert str(waiting.pid) in containerd("task", "ps", name).stdout.decode()
    figures = json.loads(containerd("task", "metrics", "--format", "json", name).stdout)
    assert "usage" in figures["memory"] and figures["pids"]["current"] >= 1
    containerd("task", "pause", name)
    assert containerd.status(name)[0] == "PAUSED"
    containerd("task", "resume", name)
    assert containerd.status(name)[0] == "RUNNING"


def test_out_of_memory_is_told(containerd):
    events = subprocess.Popen(
        containerd.command("events"), stdout=subprocess.PIPE, env=containerd.env
    )
    time.sleep(0.5 * SLOW)
    limit = ["--memory-limit", str(48 << 20)]
    done = containerd.run("t/upper:1", "c1", "/hog.wasm", options=limit)
    time.sleep(0.5 * SLOW)
    events.kill()
    told = events.communicate()[0].decode()
    assert done.returncode == 137, done
    assert "/tasks/oom" in told


def test_events_are_in_order(containerd):
    events = subprocess.Popen(
        containerd.command("events"), stdout=subprocess.PIPE, env=containerd.env
    )
    time.sleep(0.5 * SLOW)
    containerd.run("t/upper:1", "c1", stdin=b"x")  # ctr itself waits for ever without a byte
    time.sleep(0.5 * SLOW)
    events.kill()
    told = events.communicate()[0].decode()
    topics = [w for w in told.split() if w.startswith("/tasks/")]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_tasks_survive_containerd(containerd, waiting, how):
    containerd.stop(how)
    containerd.start()
    assert containerd.status(waiting.name) == (waiting.state, waiting.pid)
    assert json.loads(waiting.exec("status").stdout)["pid"] == 1
    waiting.kill("TERM")
    assert waiting.end() == 143


def test_an_end_while_containerd_is_away_is_told(containerd, waiting):
    containerd.stop(signal.SIGKILL)
    os.kill(waiting.pid, signal.SIGTERM)
    containerd.start()
    assert waiting.end() == 143


def test_a_killed_shim_leaves_nothing(containerd, waiting):
    shim = shim_of(containerd, waiting)
    os.kill(shim, signal.SIGKILL)
    for _ in range(200):
        if waiting.pid not in processes() and not containerd.bundle(waiting.name).exists():
            break
        time.sleep(0.05)
    assert waiting.pid not in processes()
    assert not containerd.bundle(waiting.name).exists()
    assert containerd.status(waiting.name)[0] is None
    assert not cgroups(f"default/{waiting.name}")


def test_a_killed_worker(waiting):
    os.kill(waiting.pid, signal.SIGKILL)
    assert waiting.end() == 137


def test_a_shim_is_small(containerd, waiting):
    shim = shim_of(containerd, waiting)
    rollup = Path(f"/proc/{shim}/smaps_rollup").read_text()
    private = sum(
        int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")
    )
    assert private < 3 << 10 or SLOW > 1, rollup


LOGGER = """#!/bin/sh
echo "$CONTAINER_NAMESPACE $CONTAINER_ID $1" >>"$2"
[ "$3" != slow ] || sleep 0.5
[ "$3" != lazy ] || exit 0
echo ready >&5
exec 5>&-
sed 's/^/err: /' <&4 >>"$2" &
sed 's/^/out: /' <&3 >>"$2"
wait
echo ended >>"$2"
"""


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_output_may_go_to_a_program(containerd, tmp_path, scheme):
    """As nerdctl has it: it gets all that is written, and ends with the container."""
    if containerd.version == 1 and scheme == "binary-v2":
        pytest.skip("containerd 1.6 does not know binary-v2")
    name, log = f"l{os.getpid()}-{next(NUMBERS)}", tmp_path / "log"
    program = tmp_path / "logger"
    program.write_text(LOGGER)
    program.chmod(0o755)

    def run(uri, *command, ok=True):
        return containerd("run", "-d", "--log-uri", uri, *RUNTIME, *command, ok=ok)

    script = "echo one; echo two >&2; grep SigIgn /proc/self/status"
    box = ("t/box:1", name, "/bin/busybox", "sh", "-c", script)
    run(f"{scheme}://{program}?to={log}&slow", *box)
    containerd.wait(name, "STOPPED")
    containerd("task", "rm", name)
    for _ in range(int(100 * SLOW)):
        if "ended" in log.read_text():
            break
        time.sleep(0.05)
    lines = log.read_text().splitlines()
    assert lines[0] == f"default {name} to" and lines[-1] == "ended"
    assert "out: one" in lines and "err: two" in lines
    (ignored,) = [x.split()[2] for x in lines if "SigIgn" in x]
    assert not int(ignored, 16) & 1 << signal.SIGPIPE - 1  # a shim ignores it
    assert not [x for x in processes().values() if str(program) in x]
    containerd("container", "rm", name)

    for uri, says in (
        (f"{scheme}:///nothing?to={log}", "No such file"),
        (f"{scheme}://{program}?to={log}&lazy", "a byte to say"),
    ):
        if "lazy" in uri and scheme == "binary":
            continue  # there its end is as good as its word
        done = run(uri, *box, ok=False)
        assert done.returncode != 0 and says in done.stderr.decode(), done
        containerd("container", "rm", name)
    assert containerd.status(name)[0] is None


def test_cycles_leave_nothing(containerd):
    sockets = set(os.listdir("/run/containerd/s")) if os.path.exists("/run/containerd/s") else set()
    before = set(processes())
    for i in range(CYCLES):
        containerd("run", "-d", "--null-io", *RUNTIME, "t/upper:1", f"n{i}", "/sleeper.wasm")
        if i % 3 == 0:
            containerd("task", "kill", "-s", "KILL" if i % 2 else "TERM", f"n{i}", ok=False)
        if i % 10 == 4:
            os.kill(shims(containerd.folder)[0], signal.SIGKILL)
        containerd("task", "rm", "-f", f"n{i}", ok=False)
        containerd("container", "rm", f"n{i}")
    time.sleep(0.5 * SLOW)
    left = {
        pid: line
        for pid, line in processes().items()
        if pid not in before and ("shim-roadrunner" in line or " container " in line)
    }
    assert not left
    assert not mounts(str(containerd.folder))
    assert set(os.listdir("/run/containerd/s")) <= sockets
    assert not cgroups("default/n")
    assert not list(containerd.bundle("").iterdir())
    state = Path("/run/containerd/roadrunner/default")
    assert not state.exists() or not [p for p in state.iterdir() if p.name.startswith("n")]
