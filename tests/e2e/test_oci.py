# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime command, by hand, on the real crun and runc."""

import errno
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from conftest import SLOW, guest
from containers import (
    OCI,
    can_make_containers,
    cgroups,
    make_bundle,
    mounts,
    processes,
    spec,
)

pytestmark = pytest.mark.skipif(
    not can_make_containers(), reason="the system lets this user make no containers"
)


class Oci:
    def __init__(self, folder, cache, runtime):
        self.root = folder / "state"
        self.runtime = runtime
        self.env = {
            **os.environ,
            "ROADRUNNER_RUNTIME": runtime,
            "ROADRUNNER_CACHE_DIR": str(cache),
        }

    def command(self, *args):
        return [str(c) for c in (OCI, "--root", self.root, *args)]

    def __call__(self, *args, stdin=b"", ok=True, **kw):
        done = subprocess.run(
            self.command(*args),
            input=stdin,
            capture_output=True,
            env=self.env,
            timeout=60 * SLOW,
            **kw,
        )
        assert not ok or done.returncode == 0, done.stderr
        return done

    def state(self, name):
        done = self("state", name, ok=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def wait(self, name, status="stopped"):
        for _ in range(int(200 * SLOW)):
            if self.state(name)["status"] == status:
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} is {self.state(name)['status']}, not {status}")


@pytest.fixture(params=["crun", "runc"])
def oci(request, cache):
    with tempfile.TemporaryDirectory(prefix="rr-oci-", dir="/tmp") as folder:
        yield Oci(Path(folder), cache, request.param)


def spawn(oci, bundle, name, stdin=None, **kw):
    """create, with files for its streams, as an engine would: `run` would wait for the pipes."""
    out = (bundle / "out").open("w+b")
    done = subprocess.run(
        oci.command("create", "-b", bundle, name),
        stdin=stdin or subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        env=oci.env,
        timeout=60 * SLOW,
        **kw,
    )
    out.seek(0)
    assert done.returncode == 0, out.read()
    return out


def held_stdin():
    """A pipe that stays open: a guest that reads it waits."""
    r, w = os.pipe()
    return os.fdopen(r, "rb"), w


def test_runs_a_module_as_a_program(oci, tmp_path):
    bundle = make_bundle(tmp_path, ["/stdio_upper.wasm", "one", "two"], ["stdio_upper"])
    done = oci("run", "-b", bundle, "c1", stdin=b"hello")
    assert done.stdout == b"HELLO"
    assert b"2 arguments, first one" in done.stderr
    assert not (bundle / ".roadrunner").exists()
    assert oci.state("c1") is None


@pytest.mark.parametrize("user", [0, 1000])
def test_environment_user_and_files(oci, tmp_path, user):
    bundle = make_bundle(
        tmp_path,
        ["container.wasm"],  # in the working directory
        process={"cwd": "/data", "user": {"uid": user, "gid": user}, "args": ["container.wasm"]},
    )
    shutil.copy(guest("container"), bundle / "rootfs/data/container.wasm")
    (bundle / "rootfs/data/here.txt").write_text("relative")
    (bundle / "rootfs/there.txt").write_text("absolute")
    done = oci("run", "-b", bundle, "c1", ok=False)
    lines = done.stdout.decode().splitlines()
    assert "NAME=value" in lines and "PWD=/data" in lines, done
    assert "here.txt: relative" in lines
    assert "/data/here.txt: relative" in lines
    assert "write /data/new.txt: no" in lines  # the root is read-only
    assert done.returncode == 3


def test_writes_where_the_container_may(oci, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    bundle = make_bundle(tmp_path / "b", ["/container.wasm"], ["container"])
    config = json.loads((bundle / "config.json").read_text())
    bind = {"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind"]}
    config["mounts"].append(bind)
    (bundle / "config.json").write_text(json.dumps(config))
    done = oci("run", "-b", bundle, "c1", ok=False)
    assert b"write /data/new.txt: yes" in done.stdout
    assert (volume / "new.txt").read_text() == "new"
    (volume / "new.txt").unlink()
    bind["options"] = ["rbind", "ro"]
    (bundle / "config.json").write_text(json.dumps(config))
    done = oci("run", "-b", bundle, "c1", ok=False)
    assert b"write /data/new.txt: no" in done.stdout
    assert not list(volume.iterdir())


def test_life_of_a_container(oci, tmp_path):
    bundle = make_bundle(tmp_path, ["/stdio_upper.wasm"], ["stdio_upper", "stdio_fail"])
    before = (bundle / "config.json").read_bytes()
    stdin, hold = held_stdin()
    with stdin:
        spawn(oci, bundle, "c1", stdin)
    state = oci.state("c1")
    assert state["status"] == "created" and state["bundle"] == str(bundle)
    assert (bundle / "config.json").read_bytes() == before
    assert b"roadrunner" not in oci("list").stdout
    oci("start", "c1")
    time.sleep(0.3 * SLOW)
    status = json.loads(oci("exec", "c1", "status").stdout)
    assert status["module"] == "/stdio_upper.wasm" and status["state"] == "waiting"
    assert status["memory_bytes"] < 32 << 20
    done = oci("exec", "c1", "stdio_upper.wasm", "x", stdin=b"exec")
    assert done.stdout == b"EXEC"
    assert oci("exec", "c1", "/stdio_fail.wasm", ok=False).returncode == 3
    assert str(oci.state("c1")["pid"]).encode() in oci("ps", "c1").stdout
    oci("kill", "c1", "TERM")
    oci.wait("c1")
    os.close(hold)
    oci("delete", "c1")
    assert not (bundle / ".roadrunner").exists()
    assert oci.state("c1") is None
    assert oci("kill", "c1", "TERM", ok=False).returncode != 0


def test_exit_status_of_signals(oci, tmp_path):
    bundle = make_bundle(tmp_path, ["/stdio_upper.wasm"], ["stdio_upper"])
    for signal, status in (("TERM", 143), ("INT", 130), ("HUP", 129), ("KILL", 137)):
        stdin, hold = held_stdin()
        process = subprocess.Popen(oci.command("run", "-b", bundle, "c1"), stdin=stdin, env=oci.env)
        stdin.close()
        for _ in range(int(100 * SLOW)):
            state = oci.state("c1")
            if state and state["status"] == "running":
                break
            time.sleep(0.05)
        time.sleep(0.2 * SLOW)
        oci("kill", "c1", signal)
        assert process.wait(20 * SLOW) == status
        os.close(hold)


def test_pause_and_resume(oci, tmp_path):
    bundle = make_bundle(tmp_path, ["/stdio_upper.wasm"], ["stdio_upper"])
    config = json.loads((bundle / "config.json").read_text())
    cgroup = f"rr-{tmp_path.name}-{os.getpid()}"  # one left frozen by a run that failed is another
    config["linux"]["cgroupsPath"] = f"/{cgroup}"
    (bundle / "config.json").write_text(json.dumps(config))
    stdin, hold = held_stdin()
    with stdin:
        spawn(oci, bundle, "c1", stdin)
    oci("start", "c1")
    oci("pause", "c1")
    oci.wait("c1", "paused")
    oci("resume", "c1")
    oci.wait("c1", "running")
    oci("update", "--memory", "67108864", "c1")
    oci("delete", "--force", "c1")
    os.close(hold)
    assert not cgroups(cgroup)


def test_checkpoints_are_refused(oci, tmp_path):
    """Not half made: what is frozen with a module cannot be thawed elsewhere."""
    bundle = make_bundle(tmp_path, ["/sleeper.wasm"], ["sleeper"])
    out = spawn(oci, bundle, "c1")
    oci("start", "c1")
    for command in (("checkpoint", "c1"), ("restore", "-b", bundle, "c2")):
        done = oci(*command, ok=False)
        assert done.returncode != 0 and b"neither made nor restored" in done.stderr, done
    assert oci.state("c1")["status"] == "running"
    oci("delete", "--force", "c1")
    out.close()


def test_a_linux_bundle_is_passed_through(oci, tmp_path):
    bundle = make_bundle(
        tmp_path, ["/bin/busybox", "sh", "-c", "echo $NAME; exit 5"], ["upper"], busybox=True
    )
    before = (bundle / "config.json").read_bytes()
    done = oci("run", "-b", bundle, "c1", ok=False)
    assert done.stdout == b"value\n" and done.returncode == 5
    assert (bundle / "config.json").read_bytes() == before


def test_the_worker_cannot_be_changed_from_inside(oci, tmp_path):
    """A process of the container's, as root, reaches the worker through /proc, to change it."""
    bundle = make_bundle(tmp_path, ["/stdio_upper.wasm"], ["stdio_upper"], busybox=True)
    stdin, hold = held_stdin()
    with stdin:
        spawn(oci, bundle, "c1", stdin)
    oci("start", "c1")
    time.sleep(0.2 * SLOW)
    # While it runs, writing is refused for another reason ("Text file busy"); its mode is not.
    script = "/bin/busybox chmod 0755 /proc/1/exe; : >> /proc/1/exe && echo WRITTEN"
    done = oci("exec", "c1", "/bin/busybox", "sh", "-c", script, ok=False)
    oci("delete", "--force", "c1")
    os.close(hold)
    assert b"WRITTEN" not in done.stdout
    assert b"Read-only file system" in done.stderr, done


def test_crun_cannot_be_changed_from_inside(tmp_path, cache):
    """Until it starts, a container's process is crun; our shim has it run from a mount of its own,
    where it takes the place of the copy that crun would make of itself."""
    oci = Oci(tmp_path, cache, "crun")
    oci.env["ROADRUNNER_CONTAINERD"] = "default"
    bundle = make_bundle(tmp_path, ["/stdio_upper.wasm"], ["stdio_upper"])
    spawn(oci, bundle, "c1")
    exe = f"/proc/{oci.state('c1')['pid']}/exe"
    assert os.statvfs(exe).f_flag & os.ST_RDONLY
    with pytest.raises(OSError) as refused:  # writing is refused for another reason, too
        os.chmod(exe, 0o755)
    assert refused.value.errno == errno.EROFS
    oci("delete", "--force", "c1")


@pytest.mark.parametrize(
    "module, status, text",
    [
        ("no_abi.wasm", 126, "exports no _start"),
        ("missing.wasm", 127, "cannot find the module"),
        ("text.wasm", 126, "not a WebAssembly module"),
        ("native.cwasm", 126, "compiled code"),
        ("fifo.wasm", 126, "not a file"),
        ("outside.wasm", 127, "cannot find the module"),
        ("trap.wasm", 134, "trap: "),
    ],
)
def test_a_module_that_does_not_run_says_why(oci, tmp_path, module, status, text):
    bundle = make_bundle(tmp_path, ["/" + module], ["no_abi"])
    rootfs = bundle / "rootfs"
    (rootfs / "text.wasm").write_text("no module")
    (rootfs / "native.cwasm").write_bytes(b"\x7fELF" + bytes(60))
    os.mkfifo(rootfs / "fifo.wasm")
    (rootfs / "outside.wasm").symlink_to(guest("stdio_upper"))
    shutil.copy(guest("start_trap"), rootfs / "trap.wasm")
    done = oci("run", "-b", bundle, "c1", ok=False)
    assert done.returncode == status, done
    assert text in done.stderr.decode()


def test_precompiled_code_is_the_operators_to_allow(oci, rr, tmp_path):
    """An image's .cwasm is native code: refused, unless who runs the node says otherwise."""
    bundle = make_bundle(tmp_path, ["/upper.cwasm"], ["stdio_upper"])
    code = bundle / "rootfs/upper.cwasm"
    done = rr("compile", guest("stdio_upper"), "-o", code)
    assert done.status == 0 and code.read_bytes()[:4] == b"\x7fELF", done

    def run():
        return oci("run", "-b", bundle, "c1", ok=False, stdin=b"hello")

    refused = run()
    assert refused.returncode == 126 and b"compiled code" in refused.stderr, refused
    oci.env["ROADRUNNER_PRECOMPILED"] = "allow"
    done = run()
    assert (done.returncode, done.stdout) == (0, b"HELLO"), done
    code.write_bytes(b"\x7fELF" + bytes(60))
    done = run()
    assert done.returncode == 126 and b"does not fit" in done.stderr, done
    oci.env["ROADRUNNER_PRECOMPILED"] = "yes"
    done = run()
    assert done.returncode != 0 and b"set it to allow or refuse" in done.stderr, done


@pytest.mark.parametrize(
    "change, text",
    [
        (b"{", "config.json is no JSON"),
        (b"[]", "its top level must be an object"),
        (b'{"process": {"args": "x"}}', "process.args must be a list"),
        (b'{"process": {"args": []}}', "process.args is empty"),
        (b'{"root": {"path": 1}}', "root.path must be a string"),
        (b'{"annotations": {"a": 1}}', "annotations must hold strings only"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "config.json is no JSON"),
        (None, "cannot read"),
    ],
)
def test_broken_bundles(oci, tmp_path, change, text):
    bundle = make_bundle(tmp_path, ["/upper.wasm"])
    (bundle / "config.json").unlink()
    if change:
        (bundle / "config.json").write_bytes(change)
    log = tmp_path / "log.json"
    done = oci("--log", log, "--log-format", "json", "create", "-b", bundle, "c1", ok=False)
    assert done.returncode == 1
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["level"] == "error" and text in last["msg"]
    assert text in done.stderr.decode()


def test_no_proc(oci, tmp_path):
    bundle = make_bundle(tmp_path, ["/upper.wasm"], ["upper"], mounts=[])
    done = oci("create", "-b", bundle, "c1", ok=False)
    assert b"needs /proc" in done.stderr


def test_commands_that_need_no_container(oci, tmp_path):
    assert b"roadrunner-oci version" in oci("--version").stdout
    features = json.loads(oci("features").stdout)
    assert features["annotations"]["dev.roadrunner.version"]
    oci("spec", cwd=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["process"]
    assert oci("nonsense", ok=False).returncode != 0


def test_nothing_is_left(oci, tmp_path):
    """Created, started, killed at random moments, deleted."""
    bundle = make_bundle(
        tmp_path,
        ["/stdio_upper.wasm"],
        ["stdio_upper"],
        linux={**spec([])["linux"], "cgroupsPath": f"/rr-cycles-{os.getpid()}"},
    )
    before = set(processes())
    for i in range(25):
        stdin, hold = held_stdin()
        with stdin:
            out = spawn(oci, bundle, "c1", stdin)
        if i % 5:
            oci("start", "c1")
        if i % 3 == 0:
            oci("kill", "c1", "KILL" if i % 2 else "TERM", ok=False)
        oci("delete", "--force", "c1")
        os.close(hold)
        out.close()
    assert not [
        line for pid, line in processes().items() if pid not in before and " container " in line
    ]
    assert not cgroups(f"rr-cycles-{os.getpid()}")
    assert not mounts(str(tmp_path))
    assert not list(oci.root.iterdir())
    assert sorted(p.name for p in bundle.iterdir()) == ["config.json", "out", "rootfs"]
