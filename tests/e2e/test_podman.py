# SPDX-License-Identifier: Apache-2.0
"""`podman --runtime roadrunner-oci`, on crun and on runc."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from conftest import SLOW, guest
from containers import (
    BUSYBOX,
    OCI,
    can_make_containers,
    cgroups,
    make_image,
    mounts,
    processes,
)

pytestmark = [
    pytest.mark.skipif(
        not can_make_containers(), reason="the system lets this user make no containers"
    ),
    pytest.mark.skipif(not shutil.which("podman"), reason="podman is not installed"),
]

STATE = Path("/run/roadrunner/oci")
IMAGE = "test.local/modules:1"
NOBODY = 65534


class Podman:
    """In a mount namespace, which takes podman's mounts along when it ends."""

    def __init__(self, folder, cache):
        self.folder = folder
        self.holder = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", "echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert self.holder.stdout.readline() == b"ready\n"
        for runtime in ("crun", "runc"):  # podman itself passes no environment on
            path = folder / f"on-{runtime}"
            path.write_text(f"""#!/bin/sh
export ROADRUNNER_RUNTIME={runtime} ROADRUNNER_CACHE_DIR={cache}
exec {OCI} "$@"
""")
            path.chmod(0o755)
        self.runtime = "crun"

    def stop(self):
        self.holder.kill()
        self.holder.wait()

    def __call__(self, *args, stdin=b"", ok=True):
        command = ["nsenter", "-t", self.holder.pid, "-m", "podman", "--root", self.folder / "root"]
        command += ["--runroot", self.folder / "run", "--tmpdir", self.folder / "tmp"]
        command += ["--runtime", self.folder / f"on-{self.runtime}", "--events-backend=none"]
        command += ["--cgroup-manager=cgroupfs", *args]
        done = subprocess.run(
            [str(c) for c in command], input=stdin, capture_output=True, timeout=60 * SLOW
        )
        assert not ok or done.returncode == 0, done
        return done

    def run(self, *args, options=(), **kw):
        limits = ("nofile=1024:1024", "nproc=1024:1024")  # those of its own may be above ours
        more = [o for limit in limits for o in ("--ulimit", limit)]
        return self("run", "--network=none", *more, *options, IMAGE, *args, **kw)

    def start(self, name, *args, options=()):
        self.run(*args, options=["-d", "--name", name, *options])
        for _ in range(int(200 * SLOW)):
            if b"ready" in self("logs", name).stdout:
                return
            time.sleep(0.05)
        raise AssertionError(self("logs", name))

    def inspect(self, name):
        return json.loads(self("inspect", name).stdout)[0]


@pytest.fixture(scope="module")
def engine(cache, tmp_path_factory):
    folder = Path(tempfile.mkdtemp(prefix="rr-pod-", dir="/tmp"))
    names = ("sleeper", "stdio_upper", "stdio_fail", "start_trap", "container")
    files = {f"{n}.wasm": guest(n).read_bytes() for n in names}
    files["bin/busybox"] = BUSYBOX.read_bytes()
    archive = tmp_path_factory.mktemp("images") / "modules.tar"
    p = Podman(folder, cache)
    p("load", "-i", make_image(archive, IMAGE, ["/stdio_upper.wasm"], files))
    yield p
    assert not p("ps", "-aq").stdout
    p.stop()
    shutil.rmtree(folder)


@pytest.fixture(params=["crun", "runc"])
def podman(engine, request):
    engine.runtime = request.param
    yield engine
    engine("rm", "-af", "-t", "0")


def entry(word):
    return ["--entrypoint", json.dumps([word])]


def test_a_module_runs(podman):
    done = podman.run("x", options=["--rm", "-i"], stdin=b"hello")
    assert done.stdout == b"HELLO" and b"1 arguments, first x" in done.stderr
    done = podman.run(options=["--rm", *entry("/stdio_fail.wasm")], ok=False)
    assert done.returncode == 3 and b"cheese" in done.stderr
    done = podman.run(options=["--rm", *entry("/start_trap.wasm")], ok=False)
    assert done.returncode == 134 and b"trap: " in done.stderr


def test_environment_folder_and_volume(podman, tmp_path):
    (tmp_path / "here.txt").write_text("volume")
    options = ["--rm", "-e", "A=b", "-w", "/data", "-v", f"{tmp_path}:/data:ro"]
    done = podman.run(options=[*options, *entry("/container.wasm")], ok=False)
    lines = done.stdout.decode().splitlines()
    assert "A=b" in lines and "PWD=/data" in lines and "here.txt: volume" in lines, done
    assert "write /data/new.txt: no" in lines and done.returncode == 3


def test_life_of_a_container(podman):
    podman.start("c1", options=entry("/sleeper.wasm"))
    pid, name = podman.inspect("c1")["State"]["Pid"], podman.inspect("c1")["Id"]
    state = STATE / name / {"crun": "status", "runc": "state.json"}[podman.runtime]
    assert state.exists()  # it is what it says
    assert json.loads(podman("exec", "c1", "status").stdout)["module"] == "/sleeper.wasm"
    assert podman("exec", "-i", "c1", "/stdio_upper.wasm", stdin=b"in").stdout == b"IN"
    done = podman("exec", "c1", "/bin/busybox", "sh", "-c", "exit 7", ok=False)
    assert done.returncode == 7
    assert str(pid).encode() in podman("top", "c1", "hpid").stdout
    podman("pause", "c1")
    assert podman.inspect("c1")["State"]["Status"] == "paused"
    podman("unpause", "c1")
    started = time.monotonic()
    podman("stop", "-t", "30", "c1")
    assert time.monotonic() - started < 15 * SLOW
    assert podman.inspect("c1")["State"]["ExitCode"] == 143
    assert podman("logs", "c1").stdout == b"ready\n"
    podman("start", "c1")
    podman("kill", "c1")
    podman("wait", "c1")
    assert podman.inspect("c1")["State"]["ExitCode"] == 137
    podman("rm", "c1")
    assert not state.parent.exists()
    assert not cgroups(name) and not mounts(name)
    assert not [line for line in processes().values() if name in line]


def test_a_linux_image_is_passed_through(podman):
    script = ["sh", "-c", "echo linux; exit 5"]
    done = podman.run(*script, options=["--rm", *entry("/bin/busybox")], ok=False)
    assert done.stdout == b"linux\n" and done.returncode == 5


@pytest.fixture
def rootless(tmp_path):
    """podman of a user without rights, ids of others included, with folders of his own; on runc,
    as crun refuses this machine's cgroups if it may not unmount some."""
    folder = Path(tempfile.mkdtemp(prefix="rr-pr-", dir="/tmp"))
    for name in ("bin", "run", "home", "rootfs/proc", "rootfs/dev", "rootfs/tmp"):
        (folder / name).mkdir(parents=True)
    for name in ("roadrunner-oci", "roadrunner-worker"):
        shutil.copy(OCI.with_name(name), folder / "bin")
    for name in ("stdio_upper", "stdio_fail", "sleeper"):
        shutil.copy(guest(name), folder / "rootfs")
    runtime = folder / "bin/on-runc"
    text = f'#!/bin/sh\nexport ROADRUNNER_RUNTIME=runc\nexec {folder}/bin/roadrunner-oci "$@"\n'
    runtime.write_text(text)
    runtime.chmod(0o755)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    (folder / "run").chmod(0o700)

    def podman(*args, stdin=b""):
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "podman"]
        command += ["--log-level=error", "--root", folder / "root", "--runroot", folder / "run/p"]
        command += ["--runtime", runtime, "--events-backend=none", "--cgroup-manager=cgroupfs"]
        env = {"PATH": os.environ["PATH"], "HOME": f"{folder}/home"}
        return subprocess.run(
            [str(c) for c in (*command, *args)],
            input=stdin,
            capture_output=True,
            env={**env, "XDG_RUNTIME_DIR": f"{folder}/run"},
            cwd=folder,
            timeout=60 * SLOW,
        )

    podman.folder = folder
    yield podman
    pause = folder / "run/libpod/tmp/pause.pid"
    if pause.exists():
        os.kill(int(pause.read_text()), signal.SIGKILL)
    subprocess.run(["rm", "-rf", folder])


def test_rootless(rootless):
    run = ["run", "--network=none", "--rootfs", f"{rootless.folder}/rootfs"]
    done = rootless(*run[:1], "-i", "--rm", *run[1:], "/stdio_upper.wasm", "x", stdin=b"rootless")
    assert done.stdout == b"ROOTLESS" and b"1 arguments, first x" in done.stderr, done
    done = rootless(*run[:1], "--rm", *run[1:], "/stdio_fail.wasm")
    assert done.returncode == 3 and b"cheese" in done.stderr, done
    assert rootless(*run[:1], "-d", "--name", "c1", *run[1:], "/sleeper.wasm").returncode == 0
    done = rootless("exec", "c1", "status")
    assert done.returncode == 0 and json.loads(done.stdout)["module"] == "/sleeper.wasm", done
    assert list((rootless.folder / "run/roadrunner-oci").iterdir())
    assert rootless("stop", "-t", "10", "c1").returncode == 0
    assert json.loads(rootless("inspect", "c1").stdout)[0]["State"]["ExitCode"] == 143
    assert rootless("rm", "c1").returncode == 0
    assert not list((rootless.folder / "run/roadrunner-oci").iterdir())
    assert list((rootless.folder / "home").rglob("*.aot"))  # compiled once for this user
