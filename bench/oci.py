# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of containers: under a containerd of our own, as root, beside containerd's own shim."""

import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/e2e"))

from image import make_image  # noqa: E402

CACHE = Path(os.environ.get("RR_ENGINE_CACHE", Path.home() / ".cache/roadrunner"))
OURS, PEER = "io.containerd.roadrunner.v1", "io.containerd.runc.v2"
DENSITY = 100
# crun refuses a machine with both versions of cgroups mounted: it gets a view with one.
ONE_CGROUP = ["unshare", "-m", "sh", "-c"]
ONE_CGROUP += ['! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec "$@"']
ONE_CGROUP += ["sh"]


def lacks(b):
    """What is missing for these, or None."""
    if os.geteuid() != 0:
        return "it needs root"
    for program in (find(2) or find(1) or "containerd", "runc", "crun", b.build / "bench-exit"):
        if not shutil.which(program):
            return f"there is no {program}: see tools/setup oci, and `make bench`"
    return None


def find(version):
    """containerd 2 as tools/setup built it, or Debian's."""
    path = CACHE / "containerd/containerd" if version == 2 else Path("/usr/bin/containerd")
    return path if path.exists() else None


def private_kb(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


class Containerd:
    """with Containerd(b) as c: c("run", ...). @version: 2 if it is there; @at: a prefix."""

    def __init__(self, b, version=2, at=()):
        program = find(version) or find(1)
        self.version = 2 if program == find(2) else 1
        self.bin, self.at, self.build = program.parent, list(at), b.build
        self.folder = Path(tempfile.mkdtemp(prefix="rr-oci-", dir="/tmp"))
        (self.folder / "cache").mkdir(mode=0o700)
        self.env = {
            **os.environ,
            "PATH": f"{b.build}:{self.bin}:{os.environ['PATH']}",
            "ROADRUNNER_CACHE_DIR": str(self.folder / "cache"),
            "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1",
        }
        (self.folder / "config.toml").write_text(
            f"""version = 2
root = "{self.folder}/root"
state = "{self.folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{self.folder}/c.sock"
[ttrpc]
  address = "{self.folder}/c.sock.ttrpc"
"""
        )

    def __enter__(self):
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [*self.at, self.bin / "containerd", "--config", self.folder / "config.toml"],
            stdout=log,
            stderr=log,
            env=self.env,
        )
        for _ in range(100):
            if self("version", ok=False).returncode == 0:
                break
            time.sleep(0.1)
        modules = self.build / "guests"
        files = {
            "exit.wasm": (modules / "bench/exit.wasm").read_bytes(),
            "sleeper.wasm": (modules / "tests/sleeper.wasm").read_bytes(),
            "exit": (self.build / "bench-exit").read_bytes(),
            "busybox": Path("/bin/busybox").read_bytes(),
        }
        image = make_image(self.folder / "i.tar", "test.local/b:1", ["/exit.wasm"], files)
        self("image", "import", image)
        return self

    def __exit__(self, *_):
        for line in self("task", "ls", "-q").stdout.decode().split():
            self("task", "rm", "-f", line, ok=False)
            self("container", "rm", line, ok=False)
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder)

    def __call__(self, *args, ok=True):
        command = [*self.at, self.bin / "ctr", "-a", self.folder / "c.sock", *args]
        done = subprocess.run(list(map(str, command)), capture_output=True, env=self.env)
        if ok and done.returncode:
            raise SystemExit(f"bench: ctr {' '.join(args)}: {done.stderr.decode()}")
        return done

    def run(self, runtime, name, *args, options=()):
        command = ["--runtime", runtime, *options, "test.local/b:1", name, *args]
        return self("run", "--null-io", *command)

    def seconds(self, runtime, program, *options):
        started = time.monotonic()
        self.run(runtime, "b1", program, options=["--rm", *options])
        return time.monotonic() - started

    def shim(self, name):
        """Its process: of the two that have the name, `start` is gone."""
        for p in Path("/proc").glob("[0-9]*"):
            try:
                line = (p / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"containerd-shim" in line[0] and name.encode() in line:
                return int(p.name)
        raise SystemExit(f"bench: no shim of {name}")

    def worker(self, name):
        for line in self("task", "ls").stdout.decode().splitlines():
            if line.split()[0] == name:
                return int(line.split()[1])
        raise SystemExit(f"bench: {name} does not run")


def oci_ctr_run(b):
    """`ctr run` of a module that does nothing, against a program that does, on runc."""
    with Containerd(b) as c:
        ours, peers = [], []
        for n in range(4 * b.rounds + 1):
            a = c.seconds(OURS, "/exit.wasm")
            p = c.seconds(PEER, "/exit")
            if n > 0:
                ours.append(a)
                peers.append(p)
    a, p = statistics.median(ours), statistics.median(peers)
    ratio = statistics.median(x / y for x, y in zip(ours, peers, strict=True))
    return b.record("oci_ctr_run", ratio, "x the time of runc's shim", 0.6, ratio <= 0.6,
                    f"{PEER}, containerd {c.version}", p * 1e3, ms=a * 1e3)  # fmt: skip


def oci_churn(b):
    """Tasks from create to delete, four clients at a time, on crun: containerd 1.6, as what later
    ones write is refused by crun 1.8 when their own shim hands it on."""
    each, clients = 5, 4

    def rate(c, runtime, program, options):
        started = time.monotonic()
        script = 'for i in $(seq "$1"); do shift 0; "$2" -a "$3" run --rm --null-io --runtime "$4" '
        script += '$5 test.local/b:1 "$6-$i" "$7" || exit 1; done'
        common = [c.bin / "ctr", c.folder / "c.sock", runtime, options]
        running = [
            subprocess.Popen(
                [*c.at, "sh", "-c", script, "sh", str(each), *map(str, common), f"k{n}", program],
                env=c.env,
                stderr=subprocess.DEVNULL,
            )
            for n in range(clients)
        ]
        if any(p.wait() for p in running):
            raise SystemExit("bench: ctr run failed")
        return each * clients / (time.monotonic() - started)

    with Containerd(b, 1, ONE_CGROUP) as c:
        c.run(OURS, "warm", "/exit.wasm", options=["--rm"])
        ours, peers = [], []
        for _ in range(b.rounds):
            ours.append(rate(c, OURS, "/exit.wasm", ""))
            peers.append(rate(c, PEER, "/exit", "--runc-binary crun"))
    a, p = statistics.median(ours), statistics.median(peers)
    ratio = statistics.median(x / y for x, y in zip(ours, peers, strict=True))
    return b.record("oci_churn", ratio, "x faster", 1.2, ratio >= 1.2, f"{PEER} with crun", p,
                    tasks_per_s=a)  # fmt: skip


def oci_shim_memory(b):
    with Containerd(b) as c:
        c.run(OURS, "ours", "/sleeper.wasm", options=["-d"])
        c.run(PEER, "peer", "/busybox", "sleep", "1000", options=["-d"])
        time.sleep(1)
        a, p = (private_kb(c.shim(name)) / 1024 for name in ("ours", "peer"))
    return b.record("oci_shim_memory", a, "MiB", 3, a <= 3, PEER, p)


def oci_density(b):
    """100 pods of one container each, all asleep."""
    with Containerd(b) as c:
        names = [f"d{n}" for n in range(DENSITY)]
        for name in names:
            c.run(OURS, name, "/sleeper.wasm", options=["-d"])
        time.sleep(1)
        tasks = {x.split()[0]: int(x.split()[1]) for x in
                 c("task", "ls").stdout.decode().splitlines()[1:]}  # fmt: skip
        shims = [private_kb(c.shim(name)) / 1024 for name in names]
        workers = [private_kb(tasks[name]) / 1024 for name in names]
    value = (sum(shims) + sum(workers)) / DENSITY
    return b.record("oci_density", value, "MiB per pod", 10, value <= 10,
                    shim_mib=sum(shims) / DENSITY, worker_mib=sum(workers) / DENSITY)  # fmt: skip


# --- a shim without containerd: as little protobuf and ttrpc as that needs ----------------------


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


class Shim:
    """A shim started by hand, for the containers of a bundle's folder."""

    def __init__(self, b, folder, env):
        self.stream = 1
        done = subprocess.run(
            [
                b.build / "containerd-shim-roadrunner-v1",
                "-namespace",
                "bench",
                "-id",
                "shim",
                "-address",
                folder / "none.sock",
                "start",
            ],  # fmt: skip
            cwd=folder,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env={**env, "TTRPC_ADDRESS": str(folder / "none.sock.ttrpc")},
        )
        address = done.stdout.decode().strip().removeprefix("unix://")
        if done.returncode or not address:
            raise SystemExit(f"bench: the shim did not start: {done.stderr.decode()}")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(address)

    def call(self, method, *fields):
        payload = b"".join(field(n, v) for n, v in fields)
        request = field(1, "containerd.task.v2.Task") + field(2, method) + field(3, payload)
        self.socket.sendall(struct.pack(">IIBB", len(request), self.stream, 1, 0) + request)
        self.stream += 2
        head = self.read(10)
        answer = self.read(struct.unpack(">I", head[:4])[0])
        if answer[:1] == b"\x0a" and answer[1]:
            raise SystemExit(f"bench: {method}: {answer!r}")

    def read(self, n):
        data = b""
        while len(data) < n:
            more = self.socket.recv(n - len(data))
            if not more:
                raise SystemExit("bench: the shim hung up")
            data += more
        return data


def bundle(b, folder, name, program):
    """As `crun spec` makes them, of a program that does nothing."""
    path = folder / name
    for part in ("proc", "dev", "sys"):
        (path / "rootfs" / part).mkdir(parents=True)
    shutil.copy(b.guests / "bench/exit.wasm", path / "rootfs")
    shutil.copy(b.build / "bench-exit", path / "rootfs/exit")
    subprocess.run(["crun", "spec"], cwd=path, check=True)
    config = json.loads((path / "config.json").read_text())
    config["process"].update(terminal=False, args=[program])
    (path / "config.json").write_text(json.dumps(config))
    return path


def spawn(*args):
    null = [(os.POSIX_SPAWN_OPEN, n, "/dev/null", os.O_RDWR, 0) for n in range(3)]
    pid = os.posix_spawnp(args[0], args, os.environ, file_actions=null)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f"bench: {args} failed")


def crun_times(root, path, n):
    """Milliseconds of `crun create` and `crun start`, a line each."""
    for _ in range(int(n)):
        started = time.monotonic()
        spawn("crun", "--root", root, "create", "-b", path, "peer")
        spawn("crun", "--root", root, "start", "peer")
        print((time.monotonic() - started) * 1e3)
        spawn("crun", "--root", root, "delete", "--force", "peer")


def oci_create_start(b):
    """Create and Start as the shim answers them, beyond what crun takes for as much."""
    n, ours, peers = 10, [], []
    with tempfile.TemporaryDirectory(prefix="rr-oci-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "cache").mkdir(mode=0o700)
        env = {**os.environ, "ROADRUNNER_CACHE_DIR": str(folder / "cache")}
        module = bundle(b, folder, "ours", "/exit.wasm")
        peer = bundle(b, folder, "peer", "/exit")
        shim = Shim(b, folder, env)
        for turn in range(b.rounds + 1):
            for k in range(n if turn else 1):  # the first compiles
                task = f"t{turn}-{k}"
                started = time.monotonic()
                shim.call("Create", (1, task), (2, str(module)))
                shim.call("Start", (1, task))
                if turn:
                    ours.append((time.monotonic() - started) * 1e3)
                shim.call("Wait", (1, task))
                shim.call("Delete", (1, task))
            command = [*ONE_CGROUP, sys.executable, __file__, "crun", folder / "root", peer, str(n)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            if turn:
                peers += map(float, done.stdout.split())
        shim.call("Shutdown", (1, "shim"), (2, 1))
    a, p = statistics.median(ours), statistics.median(peers)
    return b.record("oci_create_start", a - p, "ms beyond crun", 5, a - p <= 5, "crun", p, ms=a)


if __name__ == "__main__":
    crun_times(*sys.argv[2:])
