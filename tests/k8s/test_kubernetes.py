# SPDX-License-Identifier: Apache-2.0
"""Wasm containers on a real Kubernetes, of two nodes: see cluster.py."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import BIN, BUILD, OURS, ROOT, SERVICES, SLOW, Cluster, eventually, images
from containers import cgroups

LOAD = Path(__file__).with_name("load.py")
IMAGES = {
    "roadrunner-installer:0.1.0": "test.local/roadrunner-installer:1",
    "function:1": "test.local/modules:1",
    "hello:1": "test.local/modules:1",
    "busybox:1": "test.local/box:1",
    "serve:1": "test.local/serve:1",
}

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="it makes namespaces, as root"),
    pytest.mark.skipif(not (BIN / "kubelet").exists(), reason="tests/k8s/build builds Kubernetes"),
]


def manifest(name):
    """A file that we ship, with the images of the tests."""
    text = (ROOT / "deploy" / name).read_text()
    for ours, theirs in IMAGES.items():
        text = text.replace(f"image: {ours}", f"image: {theirs}")
    return text.replace("/bin/sh, -c", "/bin/busybox, sh, -c").replace("sleep 3600]", "sleep 3600]")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The first node is set up by hand, the second by the installer."""
    c = Cluster(images(tmp_path_factory.mktemp("images")))
    try:
        c.start(installed=(True, False))
        c.apply(manifest("installer.yaml"))
        c(*["rollout", "status", "-n", "kube-system", "ds/roadrunner-installer", "--timeout=90s"])
        c.space.run("ip", "route", "add", SERVICES, "via", c.nodes[0].ip)
        yield c
    finally:
        if keep := os.environ.get("RR_K8S_LOGS"):  # a folder for those of the daemons
            for path in [*c.folder.glob("*.log"), *c.folder.glob("node*/*.log")]:
                name = str(path.relative_to(c.folder)).replace("/", "-")
                shutil.copy(path, Path(keep) / name)
        c.stop()


@pytest.fixture
def k(cluster, request):
    """A namespace for each test: it goes, and what is in it with it."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_")).strip("-")[:50]
    space = Namespace(cluster, name)
    yield space
    ids = [i for node in cluster.nodes for i in containers_of(node, name)]
    space.end()

    def left():
        lines = [x for node in cluster.nodes for x in node.space.processes().values()]
        return [i for i in ids if any(i in x for x in lines) or cgroups(i)]

    eventually(lambda: not left(), 30, left)


class Namespace:
    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name
        cluster("create", "namespace", name)
        eventually(lambda: self("get", "sa", "default", ok=False).returncode == 0)

    def __call__(self, *args, **kw):
        return self.cluster("-n", self.name, *args, **kw)

    def end(self):
        """All pods, now; the rest in the background."""
        self("delete", "deployments", "--all", "--timeout=60s")
        self("delete", "pods", "--all", "--grace-period=2", "--timeout=60s")
        self.cluster("delete", "namespace", self.name, "--wait=false")

    def apply(self, what):
        return self.cluster.apply(what, "-n", self.name)

    def pod(self, name, *containers, node=None, **spec):
        """@containers: of fields, or words that a container called c is to run."""
        made = []
        for c in containers:
            c = c if isinstance(c, dict) else {"name": "c", "command": list(c)}
            made.append({"image": "test.local/modules:1", **c})
        meta = {"name": name, "annotations": spec.pop("annotations", {}), "labels": {"app": name}}
        fields = {"runtimeClassName": "roadrunner", "restartPolicy": "Never", **spec}
        if node:
            fields["nodeSelector"] = {"kubernetes.io/hostname": f"node{node}"}
        fields["containers"] = made
        self.apply([{"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": fields}])

    def get(self, name):
        return json.loads(self("get", "pod", name, "-o", "json").stdout)

    def state(self, name, container="c"):
        statuses = self.get(name)["status"].get("containerStatuses", [])
        return next((s for s in statuses if s["name"] == container), {})

    def wait(self, name, condition="Ready", seconds=60):
        done = self("wait", f"--for=condition={condition}", name, f"--timeout={seconds}s", ok=False)
        assert done.returncode == 0, (done, self("describe", name).stdout.decode()[-3000:])

    def running(self, name):
        self.wait(f"pod/{name}")
        return self.state(name)["containerID"].removeprefix("containerd://")

    def ended(self, name, container="c"):
        """How it ended, once it has."""
        eventually(lambda: "terminated" in self.state(name, container).get("state", {}), 60)
        return self.state(name, container)["state"]["terminated"]

    def logs(self, name, *args):
        return self("logs", name, *args).stdout.decode()

    def exec(self, name, *command, **kw):
        return self("exec", name, "--", *command, **kw)


def containers_of(node, namespace):
    """Ids of a namespace's containers, sandboxes among them."""
    match = f'labels."io.kubernetes.pod.namespace"=={namespace}'
    return node.ctr("containers", "ls", "-q", match).stdout.decode().split()


def processes_of(part):
    """Of a container, by a part of its cgroup's name."""
    found = []
    for p in Path("/proc").glob("[0-9]*"):
        try:
            if part in (p / "cgroup").read_text():
                found.append(int(p.name))
        except OSError:
            pass
    return found


SLEEPER = {"name": "c", "command": ["/sleeper.wasm"]}


def test_installer(cluster):
    node = cluster.nodes[1]
    for name in OURS:
        assert node.run("test", "-x", f"/usr/local/bin/{name}")
    pods = cluster.get("pods", "-n", "kube-system", "-l", "app=roadrunner-installer")["items"]
    for pod in pods:
        (ran,) = pod["status"]["initContainerStatuses"]
        assert ran["restartCount"] == 0 and ran["state"]["terminated"]["reason"] == "Completed"
    logs = {
        p["spec"]["nodeName"]: cluster.text(
            "logs", "-n", "kube-system", p["metadata"]["name"], "-c", "install"
        )
        for p in pods
    }
    assert logs == {
        "node1": "/host/containerd/config.toml has the runtime\n",
        "node2": "installed roadrunner-worker\ninstalled roadrunner-oci\n"
        "installed containerd-shim-roadrunner-v1\n"
        "configured containerd; it is started anew\ncontainerd is back\n",
    }
    assert "runc" in node.run("cat", "/etc/containerd/config.toml").stdout.decode()
    assert node.run("test", "-e", "/etc/containerd/config.toml.before-roadrunner")


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").glob("*.yaml")), ids=lambda p: p.name)
def test_manifests_are_accepted(cluster, path):
    done = cluster.apply(path.read_text(), "--dry-run=server", "--validate=strict")
    assert b"dry run" in done.stdout


def test_deployment_of_functions(k):
    """Logs, exec, probes and figures, on both nodes; as restricted as pods can be."""
    k.cluster("label", "namespace", k.name, "pod-security.kubernetes.io/enforce=restricted")
    k.apply(manifest("function.yaml"))
    k("rollout", "status", "deployment/function", "--timeout=60s")
    pods = json.loads(k("get", "pods", "-o", "json").stdout)["items"]
    assert len(pods) == 2
    for pod in pods:
        name = pod["metadata"]["name"]
        assert k.logs(name) == "ready\n"
        status = json.loads(k.exec(name, "status").stdout)
        assert status["module"] == "/sleeper.wasm", status
        done = k("exec", "-i", name, "--", "/stdio_upper.wasm", stdin="in")
        assert done.stdout == b"IN"
    nodes = {p["spec"]["nodeName"] for p in pods}

    def figures():
        found = []
        for node in nodes:
            raw = k.cluster.text("get", "--raw", f"/api/v1/nodes/{node}/proxy/stats/summary")
            for pod in json.loads(raw)["pods"]:
                if pod["podRef"]["namespace"] == k.name and pod.get("containers"):
                    c = pod["containers"][0]
                    if c["memory"].get("workingSetBytes") and c["cpu"].get("usageCoreNanoSeconds"):
                        found.append(c)
        return len(found) == 2

    eventually(figures, 60)  # what `kubectl top` shows, where a metrics server is
    pods = json.loads(k("get", "pods", "-o", "json").stdout)["items"]
    assert [s["restartCount"] for p in pods for s in p["status"]["containerStatuses"]] == [0, 0]


def test_a_probe_that_fails_restarts(k):
    probe = {"exec": {"command": ["/stdio_fail.wasm"]}, "periodSeconds": 1, "failureThreshold": 1}
    container = {**SLEEPER, "livenessProbe": probe}
    k.pod("p", container, restartPolicy="Always", terminationGracePeriodSeconds=5)
    eventually(lambda: k.state("p").get("restartCount", 0) > 0, 60)
    assert k.state("p")["lastState"]["terminated"]["exitCode"] == 143


def test_module_and_sidecar(k):
    k.apply(manifest("pod.yaml"))
    k.wait("pod/hello")
    assert k.logs("hello", "-c", "module") == "ready\n"
    done = k("exec", "hello", "-c", "sidecar", "--", "/bin/busybox", "id", "-u")
    assert done.stdout == b"0\n"
    node = k.cluster.nodes[int(k.get("hello")["spec"]["nodeName"][-1]) - 1]
    ours = [
        p
        for p in node.shims()
        if any(i in node.space.processes()[p] for i in containers_of(node, k.name))
    ]
    assert len(ours) == 1  # for all of the pod


def test_kubectl_debug(k):
    """An ephemeral container, of programs, beside a module's worker, which it sees."""
    k.pod("p", SLEEPER)
    k.running("p")
    k("debug", "p", "--image=test.local/box:1", "--container=d", "--target=c", "--profile=general",
      "--", "/bin/busybox", "sleep", "1000")  # fmt: skip

    def state():
        found = k.get("p")["status"].get("ephemeralContainerStatuses", [])
        return found and "running" in found[0]["state"]

    eventually(state, 60, lambda: k("describe", "pod", "p").stdout.decode()[-2000:])
    done = k("exec", "p", "-c", "d", "--", "/bin/busybox", "ps", "-o", "args")
    assert b"/sleeper.wasm" in done.stdout and b"sleep 1000" in done.stdout, done


def test_limits_and_reasons(k):
    limits = {"resources": {"limits": {"memory": "48Mi", "cpu": "500m"}}}
    k.pod("hog", {"name": "c", "command": ["/hog.wasm"], **limits})
    k.pod("fail", ["/stdio_fail.wasm"])
    k.pod("trap", ["/start_trap.wasm"])
    k.pod("none", ["/missing.wasm"])
    ended = k.ended("hog")
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
    ended = k.ended("fail")
    assert (ended["reason"], ended["exitCode"]) == ("Error", 3)
    assert "made of cheese" in k.logs("fail")
    assert k.ended("trap")["exitCode"] == 134 and "trap: " in k.logs("trap")
    assert k.ended("none")["exitCode"] == 127 and "cannot find the module" in k.logs("none")


def test_deleted_within_the_grace_period(k):
    k.pod("soft", SLEEPER, terminationGracePeriodSeconds=60)
    k.pod("hard", {"name": "c", "command": ["/bin/busybox", "sh", "-c", "trap '' TERM; echo ready; sleep 1000"]},
          terminationGracePeriodSeconds=3)  # fmt: skip
    for name in ("soft", "hard"):
        k.running(name)
        started = time.monotonic()
        k("delete", "pod", name, "--timeout=40s")
        assert time.monotonic() - started < 20 * SLOW


def test_rolling_update_and_scaling_under_load(k):
    """From outside of the nodes, through the Service: no request fails."""
    k.apply(manifest("serve.yaml"))
    k("rollout", "status", "deployment/serve", "--timeout=90s")
    address = json.loads(k("get", "service", "serve", "-o", "json").stdout)["spec"]["clusterIP"]
    outer = k.cluster.space.enter()
    probe = [*outer, "curl", "-sf", "--max-time", "5", "-d", "hello", f"http://{address}/"]
    eventually(lambda: subprocess.run(probe, capture_output=True).stdout == b"hello", 30)
    load = subprocess.Popen(
        [*outer, sys.executable, LOAD, address, "80", "4"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    time.sleep(2)
    k("scale", "deployment/serve", "--replicas=4")
    k("rollout", "status", "deployment/serve", "--timeout=120s")
    k("set", "env", "deployment/serve", "CHANGED=1")
    k("rollout", "status", "deployment/serve", "--timeout=180s", timeout=200)
    k("scale", "deployment/serve", "--replicas=1")
    time.sleep(8)
    told = json.loads(load.communicate()[0])
    assert not told["failed"], (len(told["failed"]), told["failed"][:5])
    assert told["ok"] > 100
    print(f"{told['ok']} requests")


def test_a_killed_worker_is_started_again(k):
    k.pod("p", SLEEPER, restartPolicy="Always")
    (pid,) = processes_of(k.running("p"))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: k.state("p").get("restartCount") == 1 and "running" in k.state("p")["state"])
    assert k.state("p")["lastState"]["terminated"]["exitCode"] == 137


def test_a_killed_shim(k):
    """Its pod gets another sandbox, and nothing of the first is left."""
    k.pod("p", SLEEPER, restartPolicy="Always", node=1)
    first = k.running("p")
    node = k.cluster.nodes[0]
    old = containers_of(node, k.name)
    (shim,) = [p for p in node.shims() if any(i in node.space.processes()[p] for i in old)]
    os.kill(shim, signal.SIGKILL)
    eventually(lambda: not processes_of(first), 30)
    eventually(lambda: k.state("p").get("ready") and k.state("p")["containerID"][-64:] != first, 90)
    assert k.exec("p", "status").returncode == 0
    assert not [line for line in node.space.processes().values() if any(i in line for i in old if i != k.running("p"))
                and "shim" in line]  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_restarted_containerd(k, how):
    side = {"name": "side", "command": ["/bin/busybox", "sleep", "1000"]}
    k.pod("p", SLEEPER, side, node=2, terminationGracePeriodSeconds=5)
    first = k.running("p")
    pids = processes_of(first)
    node = k.cluster.nodes[1]
    before = node.daemon("containerd")
    os.kill(before, how)
    eventually(
        lambda: (
            node.ctr("version", ok=False).returncode == 0 and node.daemon("containerd") != before
        )
    )
    eventually(lambda: k.exec("p", "status", ok=False).returncode == 0, 30)
    assert k.running("p") == first and processes_of(first) == pids
    assert k.state("p")["restartCount"] == 0 and k.state("p", "side")["restartCount"] == 0
    k.pod("q", SLEEPER, node=2)  # new ones, too
    k.running("q")
    assert k.logs("p", "-c", "c") == "ready\n"
    k("delete", "pod", "p", "--timeout=40s")


# --- chains ----------------------------------------------------------------------------------------


LARGE = b"word" * 100_000  # messages up to 256 KiB are copied
TLS = "/etc/roadrunner/tls"


def with_tls(spec):
    """Has the Secret where Wasm containers look for it."""
    spec["volumes"] = [{"name": "tls", "secret": {"secretName": "tls"}}]
    spec["containers"][0]["volumeMounts"] = [{"name": "tls", "mountPath": TLS}]


def function(name, module, node, tls=False, **annotations):
    """A Deployment of one function: `next`, `listen` and others are annotations of its pods."""
    notes = {f"roadrunner.dev/{key}": value for key, value in annotations.items()}
    container = {
        "name": "c",
        "image": "test.local/modules:1",
        "command": [f"/{module}.wasm"],
        "livenessProbe": {"exec": {"command": ["status"]}, "periodSeconds": 5},
        "resources": {"limits": {"memory": "256Mi"}},
    }
    spec = {
        "runtimeClassName": "roadrunner",
        "nodeSelector": {"kubernetes.io/hostname": f"node{node}"},
        "terminationGracePeriodSeconds": 10,
        "containers": [container],
    }
    if tls:
        with_tls(spec)
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "strategy": {"type": "Recreate"},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {"roadrunner.dev/function": name, **notes},
                },
                "spec": spec,
            },
        },
    }


def gateway(k, first, node, tls=False):
    """deploy/serve.yaml, for the chain that begins at @first."""
    deployment, entrance = k.cluster.objects(manifest("serve.yaml"))
    for one in (deployment, entrance):
        del one["metadata"]["namespace"]
    deployment["spec"]["replicas"] = 1
    template = deployment["spec"]["template"]
    template["metadata"]["annotations"] = {"roadrunner.dev/gateway": "true"}
    template["spec"]["nodeSelector"] = {"kubernetes.io/hostname": f"node{node}"}
    command = template["spec"]["containers"][0]["command"]
    command[2] = f"chain:{first}"
    if tls:
        with_tls(template["spec"])
        files = {"cert": "tls.crt", "key": "tls.key", "ca": "ca.crt"}
        for option, file in files.items():
            command += [f"--node-{option}", f"{TLS}/{file}"]
    return [deployment, entrance]


def service(name, port, address=None):
    spec = {"selector": {"app": name}, "ports": [{"port": port, "targetPort": port}]}
    if address:
        spec["clusterIP"] = address
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def ask(k, body, seconds=60):
    """From outside, through the Service, until the chain is there; what comes back."""
    address = json.loads(k("get", "service", "serve", "-o", "json").stdout)["spec"]["clusterIP"]
    command = [*k.cluster.space.enter(), "curl", "-s", "--max-time", "20", "-w", "\n%{http_code}"]
    command += ["--data-binary", "@-", f"http://{address}/"]
    told = []

    def answered():
        done = subprocess.run(command, input=body, capture_output=True)
        reply, _, status = done.stdout.rpartition(b"\n")
        told[:] = [status, reply[:200], done.stderr]
        return (reply,) if status == b"200" else None

    return eventually(answered, seconds, lambda: told)[0]


def entry(k, node, target, data, tls=False, **annotations):
    """A pod whose stdin goes through the chain. Its status and log."""
    notes = {"next": target, "trace": "true", "patience": "3", **annotations}
    container = {"name": "c", "command": ["/echo.wasm"], "stdin": True, "stdinOnce": True}
    notes = {f"roadrunner.dev/{key}": value for key, value in notes.items()}
    spec = {"containers": [container]}
    if tls:
        with_tls(spec)
    k.pod("entry", *spec.pop("containers"), node=node, annotations=notes, **spec)
    eventually(lambda: set(k.state("entry").get("state", {})) & {"running", "terminated"})
    k("attach", "-i", "entry", stdin=data, ok=False, timeout=20)
    return k.ended("entry")["exitCode"], k.logs("entry")


def hops(log):
    """What is traced, which may lie within a long line of the output."""
    found = re.findall(r"roadrunner: (\w+) -> (\w+): (\w+), \w+, (\d+) bytes, (\d+) copied", log)
    return [(a, b, kind, int(n), int(copied)) for a, b, kind, n, copied in found]


def cluster_ps(node):
    text = node.run(BUILD / "roadrunner", "ps", "--json", "--interval", "0").stdout
    return json.loads(text)["workers"]


def test_chain_on_one_node(k):
    """A request from outside, through `serve`, two functions in pods of their own, and back."""
    k.apply([function("one", "upper", 1, next="two"), function("two", "concat", 1)])
    k.apply(gateway(k, "one", 1))
    for name in ("one", "two", "serve"):
        k("rollout", "status", f"deployment/{name}", "--timeout=60s")
    assert ask(k, b"first") == b"in=FIRST\n"
    data = os.urandom(3000).hex().encode() * 1000
    assert ask(k, data) == b"in=" + data.upper() + b"\n"
    status, log = entry(k, 1, "one", LARGE)
    came = "in=" + LARGE.decode().upper() in re.sub("roadrunner: .*\n", "", log)
    assert status == 0 and came, (status, log[:2000])
    kinds = hops(log)
    assert {h[:3] for h in kinds} == {
        ("input", "entry", "user"),
        ("entry", "one", "kernel"),
        ("one", "two", "kernel"),
    }, kinds
    assert all(h[4] == 0 for h in kinds), kinds

    listed = cluster_ps(k.cluster.nodes[0])
    ours = {
        w["functions"][0]["name"]: w
        for w in listed
        if w["functions"] and w["domain"] == f"k8s.{k.name}"
    }
    assert {"one", "two"} <= set(ours), listed
    for name in ("one", "two"):
        channels = ours[name]["channels"]
        assert {c["channel"] for c in channels} == {"kernel"}, channels  # the first message, too
        assert sum(c["payload_bytes"] for c in channels) >= len(data), channels
        assert sum(c["copied_bytes"] for c in channels) < 10_000, channels  # the small ones

    k("rollout", "restart", "deployment/two")  # and again, with another worker
    k("rollout", "status", "deployment/two", "--timeout=60s")
    assert ask(k, b"again") == b"in=AGAIN\n"


def test_chain_over_two_nodes(k):
    """With TLS, whose files are a Secret."""
    address = "10.96.77.10"
    keys = k.cluster.keys
    keys.cert("function", "/CN=function", "serverAuth,clientAuth", f"IP:{address}")
    k("create", "secret", "generic", "tls", "--from-file=tls.crt=" + keys / "function.crt",
      "--from-file=tls.key=" + keys / "function.key", "--from-file=ca.crt=" + keys / "ca.crt")  # fmt: skip
    k.apply([service("two", 7400, address)])
    k.apply([
        function("one", "upper", 1, tls=True, next=f"two@{address}:7400"),
        function("two", "concat", 2, tls=True, listen=":7400"),
    ])  # fmt: skip
    k.apply(gateway(k, "one", 1, tls=True))
    for name in ("one", "two", "serve"):
        k("rollout", "status", f"deployment/{name}", "--timeout=60s")
    data = os.urandom(3000).hex().encode() * 1000
    assert ask(k, data) == b"in=" + data.upper() + b"\n"
    status, log = entry(k, 1, "one", LARGE, tls=True)
    assert status == 0, log[:2000]
    assert {h[:3] for h in hops(log)} == {
        ("input", "entry", "user"),
        ("entry", "one", "kernel"),
        ("one", "two", "network"),
    }, hops(log)


def test_another_namespace_is_out_of_reach(k, cluster):
    """Not by a name, nor by what it says of itself."""
    k.apply([function("one", "upper", 1)])
    k("rollout", "status", "deployment/one", "--timeout=60s")
    other = Namespace(cluster, "foreign")
    try:
        for domain in (None, k.name, f"../k8s.{k.name}", f"k8s.{k.name}"):
            notes = {"domain": domain} if domain else {}
            status, log = entry(other, 1, "one", b"secret", **notes)
            assert status != 0 and "SECRET" not in log, (domain, log)
            other("delete", "pod", "entry", "--timeout=40s")
    finally:
        other.end()
    status, log = entry(k, 1, "one", b"secret")
    assert status == 0 and "SECRET" in log
