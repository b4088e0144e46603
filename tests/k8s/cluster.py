# SPDX-License-Identifier: Apache-2.0
"""
A Kubernetes of two nodes on one machine, in namespaces of its own: nothing of it is seen from
outside but its cgroups, and all of it ends with the process that made it.

    tests/k8s/cluster.py [COMMAND...]    runs COMMAND, or a shell, with $KUBECTL

The outer PID and network namespace holds the control plane and a bridge. Each node is within it: a
PID, mount, network and UTS namespace with containerd, kubelet and kube-proxy, a /run, /var/lib/kubelet,
/var/log, /etc/containerd and /usr/local/bin of its own.
"""

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))

from conftest import BUILD, SLOW, guest  # noqa: E402
from containers import BUSYBOX, make_image  # noqa: E402

CACHE = Path(os.environ.get("RR_ENGINE_CACHE", Path.home() / ".cache/roadrunner"))
BIN = (CACHE / "k8s/bin").resolve()  # as /proc names programs
NET = "172.30.0"  # node n has .(10+n); its pods 10.77.n.0/24
API = f"{NET}.1"
SERVICES = "10.96.0.0/16"
CGROUP = "rr-k8s"
OURS = "roadrunner-oci", "roadrunner-worker", "containerd-shim-roadrunner-v1"

# Of the machine, not of a namespace: the kubelet is shown files that say what it wants.
SYSCTLS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}


def end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def eventually(true, seconds=60, what=None):
    """Until it is true; and what it is. @what: tells what is wrong."""
    end = time.monotonic() + seconds * SLOW
    while True:
        found = true()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(str(what()) if what else "it never came true")
        time.sleep(0.1)


def cgroup_roots():
    """Folders in which cgroups are made: of version 1 one for each controller."""
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():
        return [top]
    return [p for p in top.iterdir() if p.is_dir() and not p.is_symlink() and p.name != "unified"]


def make_cgroup(name):
    for top in cgroup_roots():
        folder = top / name
        folder.mkdir(exist_ok=True)
        for part in ("cpuset.cpus", "cpuset.mems"):
            if (top / part).exists() and not (top / "cgroup.controllers").exists():
                (folder / part).write_text((top / part).read_text())


def remove_cgroups(name):
    """Ends what is in them, too, if a run that was killed left any."""
    tops = [top / name for top in [*cgroup_roots(), Path("/sys/fs/cgroup/unified")]]
    for top in tops:
        for path, _, _ in os.walk(top, topdown=False):
            for pid in Path(path, "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
    for top in tops:
        for path, _, _ in os.walk(top, topdown=False):
            for _ in range(50):
                try:
                    os.rmdir(path)
                    break
                except FileNotFoundError:
                    break
                except OSError:  # what was in it is not quite gone
                    time.sleep(0.1)


class Space:
    """Namespaces, and their first process, which is our child, or the kernel's when we end."""

    def __init__(self, kinds, script, folder, name, within=None):
        self.folder, self.name, self.kinds = folder, name, kinds
        ready = folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        path = folder / f"{name}.sh"
        path.write_text(f"set -e\n{script}\ntouch {ready}\nexec {BIN}/pause\n")
        options = [f"--{k}" for k in kinds]
        self.process = subprocess.Popen(
            [
                *(within.enter() if within else []),
                *["unshare", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"],
                *options,
                *["bash", path],
            ],
            stdout=(folder / f"{name}.log").open("w"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=end_with_parent,
        )
        eventually(ready.exists, 20, lambda: (folder / f"{name}.log").read_text())
        self.pid = eventually(self.first, 20)

    def first(self):
        """The process that holds the namespaces, once it is there."""
        pid = self.process.pid
        with contextlib.suppress(OSError):  # of the script
            while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                pid = int(children[0])
            return pid if os.readlink(f"/proc/{pid}/exe") == str(BIN / "pause") else None
        return None

    def enter(self):
        flags = {"pid": "-p", "mount": "-m", "net": "-n", "uts": "-u"}
        return ["nsenter", "-t", str(self.pid), *[flags[k] for k in self.kinds], "--"]

    def run(self, *command, ok=True, timeout=60, stdin=b""):
        # Not by us: nsenter's child, which is what takes long, would live on.
        done = subprocess.run(
            [*self.enter(), "timeout", str(timeout * SLOW), *map(str, command)],
            input=stdin,
            capture_output=True,
            preexec_fn=end_with_parent,
        )
        assert not ok or done.returncode == 0, done
        return done

    def spawn(self, name, *command, restart=False):
        """A daemon; one that @restart wants is started again whenever it ends."""
        command = shlex.join(map(str, command))
        loop = f"while :; do {command}; sleep 0.2; done" if restart else f"exec {command}"
        return subprocess.Popen(
            [*self.enter(), "env", f"PATH={BIN}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
            + ["sh", "-c", loop],
            stdout=(self.folder / f"{name}.log").open("a"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=end_with_parent,
        )

    def processes(self):
        """Command lines by process id, as seen from outside."""
        ours = os.readlink(f"/proc/{self.pid}/ns/mnt")
        found = {}
        for p in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(p / "ns/mnt") == ours:
                    found[int(p.name)] = (p / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found


class Keys:
    """Certificates, by openssl, and files that say who uses which."""

    def __init__(self, folder, nodes):
        self.folder = folder
        folder.mkdir()
        self.openssl("genrsa", "-out", "sa.key", "2048")
        self.openssl("rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
        self.key("ca")
        self.openssl(
            *["req", "-x509", "-new", "-key", "ca.key", "-days", "3650", "-subj", "/CN=test-ca"],
            *["-addext", "keyUsage=critical,digitalSignature,keyCertSign,cRLSign"],
            *["-out", "ca.crt"],
        )
        names = f"DNS:kubernetes.default.svc,IP:127.0.0.1,IP:{API},IP:10.96.0.1"
        self.cert("apiserver", "/CN=kube-apiserver", "serverAuth", names)
        for name, subject in {
            "kubelet-client": "/O=system:masters/CN=kubelet-client",
            "admin": "/O=system:masters/CN=admin",
            "manager": "/CN=system:kube-controller-manager",
            "scheduler": "/CN=system:kube-scheduler",
            "proxy": "/CN=system:kube-proxy",
            **{n: f"/O=system:nodes/CN=system:node:{n}" for n in nodes},
        }.items():
            self.cert(name, subject, "clientAuth")
            self.config(name)

    def openssl(self, *args):
        subprocess.run(["openssl", *args], cwd=self.folder, check=True, capture_output=True)

    def key(self, name):
        self.openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")

    def cert(self, name, subject, usage, names=None):
        self.key(name)
        self.openssl("req", "-new", "-key", f"{name}.key", "-subj", subject, "-out", f"{name}.csr")
        text = f"basicConstraints=CA:FALSE\nextendedKeyUsage={usage}\n"
        text += f"subjectAltName={names}\n" if names else ""
        (self.folder / f"{name}.ext").write_text(text)
        self.openssl(
            *["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key"],
            *["-CAcreateserial", "-days", "3650", "-extfile", f"{name}.ext", "-out", f"{name}.crt"],
        )

    def config(self, name):
        server = {"server": f"https://{API}:6443", "certificate-authority": self / "ca.crt"}
        user = {"client-certificate": self / f"{name}.crt", "client-key": self / f"{name}.key"}
        text = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": server}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        (self.folder / f"{name}.conf").write_text(json.dumps(text))

    def __truediv__(self, name):
        return str(self.folder / name)


class Node:
    """@installed: with our programs and their configuration, as an operator would put them there."""

    def __init__(self, cluster, number, installed=True):
        self.cluster, self.number = cluster, number
        self.name = f"node{number}"
        self.ip = f"{NET}.{10 + number}"
        self.folder = cluster.folder / self.name
        self.own = {}
        for path in ("run", "var/lib/kubelet", "var/lib/cni", "var/log", "var/cache"):
            self.bind(path)
        for path in ("etc/containerd", "usr/local/bin", "etc/cni/net.d"):
            self.bind(path)
        self.write("etc/cni/net.d/10-test.conflist", self.cni())
        self.write("etc/containerd/config.toml", self.containerd())
        if installed:
            self.install()
        self.space = self.make()
        self.connect()
        self.start()

    def bind(self, path):
        self.own[path] = self.folder / path.replace("/", "-")
        self.own[path].mkdir(parents=True)

    def write(self, path, text):
        folder, _, name = path.rpartition("/")
        (self.own[folder] / name).write_text(text if isinstance(text, str) else json.dumps(text))

    def install(self):
        for name in OURS:
            shutil.copy(BUILD / name, self.own["usr/local/bin"])
        text = (ROOT / "deploy/containerd-v3.toml").read_text().replace("version = 3\n", "")
        with (self.own["etc/containerd"] / "config.toml").open("a") as f:
            f.write(text)

    def make(self):
        make_cgroup(f"{CGROUP}-{self.name}")
        script = ["mount --make-rshared /"]
        for path, folder in self.own.items():
            script += [f"mkdir -p /{path}", f"mount --bind {folder} /{path}"]
        script += ["mount --make-rshared /var/lib/kubelet"]
        for name, value in SYSCTLS.items():
            path = self.folder / name.replace("/", ".")
            path.write_text(f"{value}\n")
            script += [f"mount --bind {path} /proc/sys/{name}"]
        script += [f"hostname {self.name}", "ip link set lo up"]
        script += ["echo 1 >/proc/sys/net/ipv4/ip_forward"]
        kinds = ["pid", "mount", "net", "uts"]
        return Space(kinds, "\n".join(script), self.folder, "node", self.cluster.space)

    def connect(self):
        outer, veth = self.cluster.space, f"veth{self.number}"
        outer.run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0")
        outer.run("ip", "link", "set", veth, "master", "br0", "up")
        # as the outer namespace counts processes
        inner = next(
            line.split()[-2]
            for line in Path(f"/proc/{self.space.pid}/status").read_text().splitlines()
            if line.startswith("NSpid")
        )
        outer.run("ip", "link", "set", "eth0", "netns", inner)
        self.run("ip", "addr", "add", f"{self.ip}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", API)
        outer.run("ip", "route", "add", f"10.77.{self.number}.0/24", "via", self.ip)

    def cni(self):
        ranges = [[{"subnet": f"10.77.{self.number}.0/24"}]]
        ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True}
        return {"cniVersion": "1.0.0", "name": "test", "plugins": [{**bridge, "ipam": ipam}]}

    def containerd(self):
        return f"""version = 3
root = "{self.folder}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "test.local/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{BIN}/cni"]
"""

    def start(self):
        keys = self.cluster.keys
        kubelet = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CGROUP}-{self.name}",
            "failSwapOn": False,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": keys / "ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",
            "resolvConf": "/etc/resolv.conf",
            "clusterDomain": "cluster.local",
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
            "healthzBindAddress": "127.0.0.1",
            "shutdownGracePeriod": "0s",
        }
        proxy = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": keys / "proxy.conf"},
            "clusterCIDR": "10.77.0.0/16",
            "hostnameOverride": self.name,
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
        }
        (self.folder / "kubelet.json").write_text(json.dumps(kubelet))
        (self.folder / "proxy.json").write_text(json.dumps(proxy))
        self.space.spawn("containerd", BIN / "containerd", restart=True)
        eventually(
            lambda: self.ctr("version", ok=False).returncode == 0, 30, self.log("containerd")
        )
        for path in self.cluster.images:
            self.ctr("images", "import", path)
        self.space.spawn(
            *["kubelet", BIN / "kubelet", "--config", self.folder / "kubelet.json"],
            *["--kubeconfig", keys / f"{self.name}.conf", "--hostname-override", self.name],
            *["--node-ip", self.ip, "--cert-dir", "/var/lib/kubelet/pki"],
            restart=True,
        )
        self.space.spawn("proxy", BIN / "kube-proxy", "--config", self.folder / "proxy.json")

    def log(self, name):
        return lambda: (self.folder / f"{name}.log").read_text()[-3000:]

    def run(self, *command, **kw):
        return self.space.run(*command, **kw)

    def ctr(self, *command, **kw):
        return self.run(BIN / "ctr", "-n", "k8s.io", *command, **kw)

    def shims(self):
        found = self.space.processes()
        return [p for p, line in found.items() if "shim-roadrunner" in line and " -id " in line]

    def daemon(self, name):
        """Its process: not the shell that starts it again."""
        found = self.space.processes()
        (pid,) = [p for p, line in found.items() if line.startswith(f"{BIN}/{name} ")]
        return pid


class Cluster:
    def __init__(self, images):
        """@images: archives that each node gets."""
        for top in (CGROUP + "-node1", CGROUP + "-node2"):
            remove_cgroups(top)
        self.folder = Path(tempfile.mkdtemp(prefix="rr-k8s-", dir="/tmp"))
        box = {"bin/busybox": BUSYBOX.read_bytes()}
        files = {"pause": (BIN / "pause").read_bytes()}
        self.images = [
            *images,
            make_image(self.folder / "pause.tar", "test.local/pause:1", ["/pause"], files),
            make_image(self.folder / "box.tar", "test.local/box:1", ["/bin/busybox", "sh"], box),
        ]
        self.keys = Keys(self.folder / "keys", ["node1", "node2"])
        script = f"""ip link set lo up
ip link add br0 type bridge
ip addr add {API}/24 dev br0
ip link set br0 up
echo 1 >/proc/sys/net/ipv4/ip_forward
"""
        self.space = Space(["pid", "mount", "net", "uts"], script, self.folder, "outer")
        self.nodes = []

    def start(self, installed=(True, True)):
        self.control()
        self.nodes += [Node(self, n + 1, yes) for n, yes in enumerate(installed)]
        for node in self.nodes:
            eventually(lambda node=node: self.is_ready(node.name), 90, node.log("kubelet"))
        self.apply((ROOT / "deploy/runtimeclass.yaml").read_text())
        eventually(lambda: self("get", "sa", "default", ok=False).returncode == 0)
        return self

    def control(self):
        keys, spawn = self.keys, self.space.spawn
        url = "http://127.0.0.1:2379"
        spawn(
            *["etcd", BIN / "etcd", "--data-dir", self.folder / "etcd"],
            *["--listen-client-urls", url, "--advertise-client-urls", url],
            *["--unsafe-no-fsync", "--log-level", "warn"],
        )
        spawn(
            *["apiserver", BIN / "kube-apiserver", "--etcd-servers", url],
            *["--bind-address", "0.0.0.0", "--advertise-address", API, "--secure-port", "6443"],
            *["--tls-cert-file", keys / "apiserver.crt"],
            *["--tls-private-key-file", keys / "apiserver.key"],
            *["--client-ca-file", keys / "ca.crt"],
            *["--service-account-issuer", "https://kubernetes.default.svc"],
            *["--service-account-key-file", keys / "sa.pub"],
            *["--service-account-signing-key-file", keys / "sa.key"],
            *["--service-cluster-ip-range", SERVICES, "--authorization-mode", "Node,RBAC"],
            *["--enable-admission-plugins", "NodeRestriction", "--allow-privileged=true"],
            *["--kubelet-client-certificate", keys / "kubelet-client.crt"],
            *["--kubelet-client-key", keys / "kubelet-client.key"],
            *["--kubelet-preferred-address-types", "InternalIP"],
            *["--cert-dir", self.folder / "apiserver"],
        )
        log = self.folder / "apiserver.log"
        eventually(
            lambda: self("get", "--raw", "/readyz", ok=False).returncode == 0,
            120,
            lambda: log.read_text()[-3000:],
        )
        for name, program, more in (
            (
                "manager",
                "kube-controller-manager",
                [
                    *["--service-account-private-key-file", keys / "sa.key"],
                    *["--root-ca-file", keys / "ca.crt", "--use-service-account-credentials=true"],
                ],
            ),
            ("scheduler", "kube-scheduler", []),
        ):
            conf = keys / f"{name}.conf"
            spawn(
                *[name, BIN / program, "--leader-elect=false", "--bind-address", "127.0.0.1"],
                *["--kubeconfig", conf, "--authentication-kubeconfig", conf],
                *["--authorization-kubeconfig", conf, "--cert-dir", self.folder / name, *more],
            )

    def is_ready(self, name):
        path = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        return self("get", "node", name, "-o", path, ok=False).stdout == b"True"

    def kubectl(self, *args):
        conf = self.keys / "admin.conf"
        return [*self.space.enter(), str(BIN / "kubectl"), "--kubeconfig", conf, *map(str, args)]

    def __call__(self, *args, ok=True, stdin=b"", timeout=90):
        stdin = stdin.encode() if isinstance(stdin, str) else stdin
        command = [BIN / "kubectl", "--kubeconfig", self.keys / "admin.conf", *args]
        return self.space.run(*command, ok=ok, timeout=timeout, stdin=stdin)

    def text(self, *args, **kw):
        return self(*args, **kw).stdout.decode()

    def get(self, *args):
        return json.loads(self("get", *args, "-o", "json").stdout)

    def objects(self, text):
        """Those of a manifest."""
        text = self(
            "create", "--dry-run=client", "-o", "json", "-f", "-", stdin=text
        ).stdout.decode()
        found, at = [], 0
        while at < len(text.rstrip()):
            one, at = json.JSONDecoder().raw_decode(text, at)
            found.append(one)
            at += len(text[at:]) - len(text[at:].lstrip())
        return found

    def apply(self, what, *args):
        """@what: YAML or JSON, or such as will be JSON."""
        if isinstance(what, list):
            what = {"apiVersion": "v1", "kind": "List", "items": what}
        text = what if isinstance(what, str) else json.dumps(what)
        return self("apply", "-f", "-", *args, stdin=text)

    def stop(self):
        self.space.process.kill()  # and the kernel all that is in it
        self.space.process.wait()
        for node in self.nodes:
            node.space.process.wait()
            remove_cgroups(f"{CGROUP}-{node.name}")
        shutil.rmtree(self.folder)


def images(folder):
    """Of modules, and of `roadrunner serve` with the libraries that it needs."""
    names = ("sleeper", "hog", "stdio_upper", "stdio_fail", "start_trap", "echo", "upper", "concat")
    files = {f"{n}.wasm": guest(n).read_bytes() for n in names}
    files["bin/busybox"] = BUSYBOX.read_bytes()
    flow = """version: 1
functions:
  echo: {module: echo.wasm}
edges:
  - {from: input, to: echo, max: 1MiB}
result: echo
"""
    serve = {
        "roadrunner": (BUILD / "roadrunner").read_bytes(),
        "flow.yaml": flow.encode(),
        "echo.wasm": guest("echo").read_bytes(),
        "bin/busybox": files["bin/busybox"],
    }
    listed = subprocess.run(["ldd", BUILD / "roadrunner"], capture_output=True, check=True).stdout
    for word in listed.decode().split():
        if word.startswith("/"):
            serve[word[1:]] = Path(word).read_bytes()
    ours = {f"programs/{n}": (BUILD / n).read_bytes() for n in OURS}
    return [
        make_image(folder / "mod.tar", "test.local/modules:1", ["/sleeper.wasm"], files),
        make_image(folder / "srv.tar", "test.local/serve:1", ["/roadrunner"], serve),
        make_image(
            *[folder / "inst.tar", "test.local/roadrunner-installer:1", ["/bin/busybox", "sh"]],
            {**ours, "bin/busybox": files["bin/busybox"]},
        ),
    ]


def main():
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(images(Path(folder)))
        try:
            cluster.start()
            env = {**os.environ, "KUBECTL": shlex.join(cluster.kubectl())}
            subprocess.run(sys.argv[1:] or ["bash"], env=env)
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
