# SPDX-License-Identifier: Apache-2.0
"""Pods as a kubelet asks for them, with its own client (tests/cri), of a real containerd."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT, SLOW, guest
from containers import BUSYBOX, can_make_containers, cgroups, make_image, mounts, processes
from test_containerd import CACHE, CYCLES, Containerd, find_containerd, shims

CRI = CACHE / "cri/cri"
ROOT_CGROUP = f"rr-cri-{os.getpid()}"  # version 1: one for each controller; made by nobody else

pytestmark = pytest.mark.skipif(
    not can_make_containers(), reason="the system lets this user make no containers"
)

# Of the two versions. Pods share the machine's network here, so that no CNI plugin is asked.
OWN = {
    1: """[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "test.local/pause:1"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
""",
    2: """[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "test.local/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
""",
}


def snippet(version):
    """What an operator adds to the configuration: the very file that we ship."""
    text = (ROOT / f"deploy/containerd-v{version + 1}.toml").read_text()
    return text.replace(f"version = {version + 1}\n", "")


class Kubelet:
    def __init__(self, containerd, folder):
        self.containerd, self.folder, self.n = containerd, folder, 0

    def __call__(self, *args, stdin=None, ok=True, timeout=120):
        if isinstance(stdin, dict):
            stdin = json.dumps(stdin).encode()
        done = subprocess.run(
            [str(a) for a in (CRI, self.containerd.folder / "c.sock", *args)],
            input=stdin or b"",
            capture_output=True,
            timeout=timeout * SLOW,
        )
        assert not ok or done.returncode == 0, done
        return done

    def ask(self, *args, **kw):
        return json.loads(self(*args, **kw).stdout)

    def wait(self):
        """Its plugin gets ready after containerd itself."""
        eventually(lambda: self("info", ok=False).returncode == 0)


def eventually(true):
    """Until what is asked is true, whatever it is; and that."""
    for _ in range(int(200 * SLOW)):
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came true")


def in_cgroup(part):
    """Processes of a container."""
    found = []
    for p in processes():
        try:
            if part in Path(f"/proc/{p}/cgroup").read_text():
                found.append(p)
        except OSError:
            pass  # gone
    return found


def sandbox(name, logs):
    return {
        "metadata": {"name": name, "uid": name, "namespace": "test", "attempt": 0},
        "log_directory": str(logs),
        "linux": {
            "cgroup_parent": f"/{ROOT_CGROUP}/{name}",
            "security_context": {"namespace_options": {"network": "NODE", "pid": "CONTAINER"}},
        },
    }


def container(name, *args, image="test.local/upper:1", **config):
    return {
        "metadata": {"name": name, "attempt": 0},
        "image": {"image": image},
        "command": list(args),
        "log_path": f"{name}.log",
        "linux": {"resources": {"memory_limit_in_bytes": 256 << 20, "cpu_shares": 100}},
        **config,
    }


class Pod:
    def __init__(self, kubelet, handler="roadrunner"):
        kubelet.n += 1
        self.kubelet, self.containers = kubelet, {}
        self.name = f"pod{kubelet.n}"
        self.logs = kubelet.folder / self.name
        self.config = sandbox(self.name, self.logs)
        self.logs.mkdir()
        self.id = kubelet("run", handler, stdin=self.config).stdout.decode().strip()

    def create(self, name, *args, **config):
        request = {"config": container(name, *args, **config), "sandbox_config": self.config}
        done = self.kubelet("create", self.id, stdin=request).stdout
        self.containers[name] = done.decode().strip()
        return self.containers[name]

    def start(self, name, *args, ready=None, **config):
        container = self.create(name, *args, **config)
        self.kubelet("start", container)
        if ready:
            self.wait_log(name, ready)
        return container

    def log(self, name):
        done = self.kubelet("logs", self.containers[name], self.logs / f"{name}.log")
        return done.stdout.decode() + done.stderr.decode()

    def wait_log(self, name, text):
        path = self.logs / f"{name}.log"
        eventually(lambda: path.exists() and text in path.read_text())

    def status(self, name):
        return self.kubelet.ask("status", self.containers[name])["status"]

    def ended(self, name):
        """Its status, once it has ended."""
        eventually(lambda: self.status(name)["state"] == "CONTAINER_EXITED")
        return self.status(name)

    def is_ready(self):
        return self.kubelet.ask("status-pod", self.id)["status"]["state"] == "SANDBOX_READY"

    def shim(self):
        """The only one, for all of its containers."""
        ids = (self.id, *self.containers.values())
        own = str(self.kubelet.containerd.folder)
        (found,) = [
            pid
            for pid, line in processes().items()
            if "shim-roadrunner" in line and own in line and any(f"-id {i} " in line for i in ids)
        ]
        return found

    def remove(self):
        for command in ("stop-pod", "rm-pod"):
            self.kubelet(command, self.id)


@pytest.fixture(scope="module", params=[1, 2])
def kubelet(request, cache, tmp_path_factory):
    if not find_containerd(request.param):
        pytest.skip(f"containerd {request.param} was not built: tools/setup oci needs Go for it")
    if not CRI.exists():
        pytest.skip("the CRI client was not built: tools/setup oci needs Go for it")
    folder = Path(tempfile.mkdtemp(prefix="rr-cri-", dir="/tmp"))
    text = OWN[request.param] + snippet(request.param)
    containerd = Containerd(request.param, folder, cache, text)
    names = ("sleeper", "hog", "stdio_upper", "stdio_fail", "start_trap")
    files = {f"{n}.wasm": guest(n).read_bytes() for n in names}
    files["bin/busybox"] = BUSYBOX.read_bytes()
    pause = ["/bin/busybox", "sleep", "1000000"]
    where = tmp_path_factory.mktemp("images")
    for image in (
        make_image(where / "upper.tar", "test.local/upper:1", ["/stdio_upper.wasm"], files),
        make_image(
            where / "pause.tar", "test.local/pause:1", pause, {"bin/busybox": files["bin/busybox"]}
        ),
    ):
        containerd("-n", "k8s.io", "image", "import", image)
    k = Kubelet(containerd, tmp_path_factory.mktemp("logs"))
    k.wait()
    yield k
    containerd.stop()
    assert not shims(folder)
    assert not mounts(str(folder))
    assert not cgroups(f"{ROOT_CGROUP}/pod")
    for path in reversed(cgroups(ROOT_CGROUP)):
        os.rmdir(path)
    shutil.rmtree(folder)


@pytest.fixture
def pod(kubelet):
    p = Pod(kubelet)
    yield p
    p.remove()
    for name in (p.id, *p.containers.values()):
        eventually(lambda name=name: not [x for x in processes().values() if name in x])
        assert not mounts(name) and not cgroups(name)
    for path in reversed(cgroups(f"{ROOT_CGROUP}/{p.name}")):
        os.rmdir(path)  # the kubelet's work


def test_modules_and_a_program_in_one_pod(kubelet, pod):
    pod.start("wait", "/sleeper.wasm", ready="ready")
    pod.start("upper", "/stdio_upper.wasm", "x")
    script = "trap 'echo bye; exit 3' TERM; echo side; while :; do sleep 0.1; done"
    pod.start("side", "/bin/busybox", "sh", "-c", script, ready="side")
    assert pod.shim()

    assert pod.ended("upper")["reason"] == "Completed"
    assert "1 arguments, first x" in pod.log("upper")
    assert pod.log("wait") == "ready\n"
    assert "stdout F side" in (pod.logs / "side.log").read_text()

    status = json.loads(kubelet("exec-sync", pod.containers["wait"], 10, "status").stdout.decode())
    assert status["module"] == "/sleeper.wasm"
    done = kubelet("exec", pod.containers["wait"], "/stdio_upper.wasm", stdin=b"in")
    assert done.stdout == b"IN", done
    box = ["/bin/busybox", "sh", "-c", "echo $0 1>&2; exit 7", "word"]
    for name in ("wait", "side"):  # a program of the image, in either
        done = kubelet("exec-sync", pod.containers[name], 10, *box, ok=False)
        assert done.returncode == 7 and b"word" in done.stderr, done
    done = kubelet("exec-sync", pod.containers["side"], 1, "/bin/busybox", "sleep", "60", ok=False)
    assert done.returncode == 125 and b"timed out" in done.stderr, done

    for name in ("wait", "side"):
        figures = kubelet.ask("stats", pod.containers[name])
        assert int(figures["memory"]["working_set_bytes"]["value"]) > 4096
        assert int(figures["cpu"]["usage_core_nano_seconds"]["value"]) > 0
    assert int(kubelet.ask("stats-pod", pod.id)["linux"]["cpu"]["timestamp"]) > 0

    limits = {"linux": {"memory_limit_in_bytes": 200 << 20, "cpu_shares": 200}}
    kubelet("update", pod.containers["wait"], stdin=limits)
    files = ("memory.limit_in_bytes", "memory.max")  # of the versions of cgroups
    paths = [Path(p, f) for p in cgroups(pod.containers["wait"]) for f in files]
    assert [int(p.read_text()) for p in paths if p.exists()] == [200 << 20]

    started = time.monotonic()
    kubelet("stop", pod.containers["wait"], 30)
    kubelet("stop", pod.containers["side"], 30)
    assert time.monotonic() - started < 10 * SLOW
    assert pod.ended("wait")["exit_code"] == 143
    assert pod.ended("side")["exit_code"] == 3
    assert pod.log("side").endswith("bye\n")
    kubelet("rm", pod.containers["wait"])
    assert kubelet.ask("status-pod", pod.id)["status"]["state"] == "SANDBOX_READY"


def test_ends_have_their_reasons(kubelet, pod):
    pod.start("fail", "/stdio_fail.wasm")
    pod.start("trap", "/start_trap.wasm")
    pod.start("none", "/missing.wasm")
    memory = {"resources": {"memory_limit_in_bytes": 48 << 20}}
    pod.start("hog", "/hog.wasm", linux=memory)
    status = pod.ended("fail")
    assert (status["exit_code"], status["reason"]) == (3, "Error")
    assert "made of cheese" in pod.log("fail")
    assert pod.ended("trap")["exit_code"] == 134 and "trap: " in pod.log("trap")
    assert pod.ended("none")["exit_code"] == 127
    assert "cannot find the module" in pod.log("none")
    status = pod.ended("hog")
    assert (status["exit_code"], status["reason"]) == (137, "OOMKilled")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_pods_survive_containerd(kubelet, pod, how):
    pod.start("wait", "/sleeper.wasm", ready="ready")
    pod.start("side", "/bin/busybox", "sleep", "1000")
    pod.start("gone", "/sleeper.wasm", ready="ready")
    pod.create("made", "/sleeper.wasm")
    shim = pod.shim()
    pid = kubelet.ask("exec-sync", pod.containers["wait"], 10, "status")["pid"]
    (worker,) = in_cgroup(pod.containers["gone"])
    kubelet.containerd.stop(how)
    os.kill(worker, signal.SIGKILL)
    kubelet.containerd.start()
    kubelet.wait()
    assert pod.shim() == shim and pod.is_ready()
    for name in ("wait", "side"):
        assert pod.status(name)["state"] == "CONTAINER_RUNNING"
    assert pod.ended("gone")["exit_code"] == 137
    assert kubelet.ask("exec-sync", pod.containers["wait"], 10, "status")["pid"] == pid
    kubelet("start", pod.containers["made"])
    pod.start("new", "/sleeper.wasm", ready="ready")
    assert pod.log("wait") == "ready\n"
    kubelet("stop", pod.containers["wait"], 10)
    assert pod.ended("wait")["exit_code"] == 143


def test_a_killed_shim_ends_its_pod(kubelet, pod):
    pod.start("wait", "/sleeper.wasm", ready="ready")
    other = Pod(kubelet)
    other.start("wait", "/sleeper.wasm", ready="ready")
    os.kill(pod.shim(), signal.SIGKILL)
    assert pod.ended("wait")["exit_code"] != 0
    eventually(lambda: not pod.is_ready())
    assert other.status("wait")["state"] == "CONTAINER_RUNNING"
    other.remove()


def test_a_killed_worker_ends_only_its_container(kubelet, pod):
    pod.start("a", "/sleeper.wasm", ready="ready")
    pod.start("b", "/sleeper.wasm", ready="ready")
    (worker,) = in_cgroup(pod.containers["a"])
    os.kill(worker, signal.SIGKILL)
    status = pod.ended("a")
    assert (status["exit_code"], status["reason"]) == (137, "Error")
    pod.start("again", "/sleeper.wasm", ready="ready")
    assert pod.status("b")["state"] == "CONTAINER_RUNNING"


def test_removed_in_any_order(kubelet):
    """What is created, running, or ended, when its pod goes."""
    before = set(processes())
    for _ in range(3):
        pod = Pod(kubelet)
        pod.create("created", "/sleeper.wasm")
        pod.start("runs", "/sleeper.wasm")
        pod.start("ended", "/stdio_upper.wasm")
        pod.remove()

    def left():
        new = [line for p, line in processes().items() if p not in before]
        return [line for line in new if str(kubelet.containerd.folder) in line]

    eventually(lambda: not left())
    assert not kubelet.ask("pods")["items"]
    for path in reversed(cgroups(f"{ROOT_CGROUP}/pod")):
        os.rmdir(path)


def footprint(pid):
    """Descriptors of a process, children and memory of its own in KiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return len(os.listdir(f"/proc/{pid}/fd")), len(children), private


def is_dead(path):
    """Nobody listens at it."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        try:
            s.connect(str(path))
            s.shutdown(socket.SHUT_WR)
            s.recv(1)  # it has let go of this connection: its descriptors are counted
        except ConnectionRefusedError:
            return True
        except OSError:  # it went meanwhile
            return False
    return False


def dead_sockets():
    folder = Path("/run/containerd/s")
    return {p for p in folder.iterdir() if is_dead(p)} if folder.exists() else set()


def left_of(ids, kubelet):
    """What is still there of containers: the machine is others', too."""
    ids = set(ids)

    def among(lines):
        return [x for x in lines if ids & set(re.findall("[0-9a-f]{64}", x))]

    bundles = kubelet.containerd.folder / "state/io.containerd.runtime.v2.task/k8s.io"
    state = Path("/run/containerd/roadrunner/k8s.io")
    found = {
        "processes": among(processes().values()),
        "mounts": among(mounts("")),
        "cgroups": among(map(str, cgroups(ROOT_CGROUP))),
        "bundles": among(p.name for p in bundles.iterdir()),
        "state": among(p.name for p in state.iterdir()) if state.exists() else [],
    }
    return {key: value for key, value in found.items() if value}


def cycle(kubelet, verb, where, n, request):
    before = dead_sockets()
    done = kubelet(verb, where, n, 2, stdin=request, timeout=120 + n)
    ids = done.stdout.decode().split()
    assert len(ids) >= n
    for _ in range(int(200 * SLOW)):
        left = left_of(ids, kubelet), dead_sockets() - before
        if not any(left):
            return ids
        time.sleep(0.05)
    raise AssertionError(left)


def test_cycles_in_a_pod(kubelet, pod):
    """Created, started, ended in all ways, removed, two at a time: its shim stays what it was."""
    config = container("x", "/sleeper.wasm", log_path="")
    request = {"config": config, "sandbox_config": pod.config}
    cycle(kubelet, "cycles", pod.id, 10, request)
    before = footprint(pod.shim())
    cycle(kubelet, "cycles", pod.id, CYCLES, request)
    after = footprint(pod.shim())
    print(f"{CYCLES} cycles: descriptors, children, KiB of the shim: {before}, then {after}")
    assert after[:2] == before[:2]
    assert after[2] <= before[2] + 128
    assert not kubelet.ask("ps")["containers"]


def test_cycles_of_pods(kubelet):
    """The same with pods, each with a shim of its own."""
    config = container("x", "/sleeper.wasm", log_path="")
    request = {"config": config, "sandbox_config": sandbox("cycles", kubelet.folder)}
    n = max(CYCLES // 3, 9)
    ids = cycle(kubelet, "cycles-pods", "roadrunner", n, request)
    print(f"{n} pods with {len(ids) - n} containers")
    eventually(lambda: not shims(kubelet.containerd.folder))
    for path in reversed(cgroups(f"{ROOT_CGROUP}/cycles")):
        os.rmdir(path)  # the kubelet's work
