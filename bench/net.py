#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The network channel between two network namespaces, without workers and guests.

    bench/net.py [--build DIR] [--rounds N] [--only NAME]

Needs root, iperf3 and openssl. Prints one line per figure and a list of them as JSON. Peers
take turns; every figure is a median.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MB = 1_000_000
LINK = 100 * MB  # bytes/s of the limited link
HEADERS = 66  # Ethernet, IPv4, TCP with timestamps, of each packet of the limited link
MTU = 1500
HOSTS = ("10.77.0.1", "10.77.0.2")
FIGURES = {}


def figure(f):
    FIGURES[f.__name__] = f
    return f


def sh(*args):
    subprocess.run([str(a) for a in args], check=True)


class Nodes:
    """Two namespaces with a veth pair between them."""

    def __init__(self, build, folder):
        self.binary = build / "bench-net-transport"
        self.names = [f"rr{os.getpid()}{end}" for end in "ab"]
        self.devices = [f"rr{os.getpid()}{end}" for end in "ab"]
        self.folder = folder

    def __enter__(self):
        a, b = self.names
        for name in self.names:
            sh("ip", "netns", "add", name)
        da, db = self.devices
        sh("ip", "link", "add", da, "netns", a, "type", "veth", "peer", "name", db, "netns", b)
        for name, device, host in zip(self.names, self.devices, HOSTS, strict=True):
            sh("ip", "-n", name, "addr", "add", f"{host}/24", "dev", device)
            sh("ip", "-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, *_):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False)

    @contextlib.contextmanager
    def limited(self, inner=None):
        """100 MB/s both ways; @inner: the queue within, else the shaper's own, first in first out."""
        for name, device in zip(self.names, self.devices, strict=True):
            tc = ("tc", "-n", name, "qdisc")
            sh(
                *tc, "add", "dev", device, "root", "handle", "1:", "tbf",
                "rate", f"{LINK * 8 // MB}mbit", "burst", "128k", "limit", "1000000",
            )  # fmt: skip
            if inner:
                sh(*tc, "add", "dev", device, "parent", "1:", inner)
        try:
            yield
        finally:
            for name, device in zip(self.names, self.devices, strict=True):
                sh("tc", "-n", name, "qdisc", "del", "dev", device, "root")

    def popen(self, end, *args, **env):
        command = ["ip", "netns", "exec", self.names[end], *[str(a) for a in args]]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **env},
        )  # fmt: skip

    def pair(self, serve, client, **env):
        """Runs both ends; returns what they printed last, as JSON, the client's first."""
        server = self.popen(1, *serve, **env)
        time.sleep(0.3)
        if "WARM" in env:
            time.sleep(0.2 + int(env["WARM"]) / 500 / MB)
        try:
            out = self.popen(0, *client, **env).communicate(timeout=120)[0]
            return json.loads(out), server.communicate(timeout=10)[0]
        finally:
            server.kill()
            server.wait()

    def channel(self, mode, *args, tls=(), **env):
        port = 7000
        out, served = self.pair(
            [self.binary, "serve", f"{HOSTS[1]}:{port}", *tls],
            [self.binary, mode, f"{HOSTS[1]}:{port}", *args, *tls],
            **env,
        )
        return out, json.loads(served)

    def iperf(self, n_bytes):
        """Bytes/s, and CPU seconds of both ends per GB."""
        out, _ = self.pair(
            ["iperf3", "-s", "-1"], ["iperf3", "-Z", "-c", HOSTS[1], "-n", n_bytes, "--json"]
        )
        sent, cpu = out["end"]["sum_sent"], out["end"]["cpu_utilization_percent"]
        seconds = sent["seconds"] * (cpu["host_total"] + cpu["remote_total"]) / 100
        return sent["bytes"] / sent["seconds"], seconds / (sent["bytes"] / 1e9)

    def certificates(self):
        def openssl(*args):
            subprocess.run(["openssl", *args], cwd=self.folder, check=True, capture_output=True)

        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        openssl("req", "-x509", *key, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key")
        openssl(
            "req", "-x509", *key, "-subj", "/CN=node", *signed, "-keyout", "n.key", "-out", "n.pem"
        )
        return [str(self.folder / f) for f in ("n.pem", "n.key", "ca.pem")]


def record(name, value, unit, target, holds, **more):
    return {"name": name, "value": value, "unit": unit, "target": target, "holds": holds, **more}


def median(values):
    return statistics.median(values)


@figure
def throughput(nodes, rounds):
    """Bytes per second and CPU seconds per GB, against iperf3 -Z."""
    for size in (100 * MB, 500 * MB):
        ours, cpu, theirs, their_cpu = [], [], [], []
        for _ in range(rounds):
            count = 4000 * MB // size
            out, served = nodes.channel("send", size, count, WARM=str(size))
            ours.append(out["mb_per_s"] * MB)
            cpu.append((out["cpu_s"] + served["cpu_s"]) / (out["bytes"] / 1e9))
            assert served["copied"] == 0
            rate, seconds = nodes.iperf(4000 * MB)
            theirs.append(rate)
            their_cpu.append(seconds)
        value = median(ours) / median(theirs)
        name = f"net_throughput_vs_iperf3_{size // MB}mb"
        yield record(name, value, "x", ">= 1", value >= 1, ours=median(ours), peer=median(theirs))
        value = median(cpu) / median(their_cpu)
        name = f"net_cpu_vs_iperf3_{size // MB}mb"
        yield record(name, value, "x", "<= 1", value <= 1, ours=median(cpu), peer=median(their_cpu))


@figure
def small(nodes, rounds):
    """A round trip of 4 KiB, against a bare one."""
    ours, theirs, polled = [], [], []
    for _ in range(rounds):
        theirs.append(
            nodes.pair(
                [nodes.binary, "tcp-serve", 7100],
                [nodes.binary, "tcp-echo", HOSTS[1], 7100, 4096, 10000],
            )[0]["p50_us"]
        )
        ours.append(nodes.channel("echo", 4096, 10000)[0]["p50_us"])
        polled.append(nodes.channel("echo", 4096, 10000, SPIN_US="50")[0]["p50_us"])
    value = median(ours) / median(theirs)
    yield record(
        "net_small_rtt", value, "x", "<= 1.15", value <= 1.15,
        ours=median(ours), peer=median(theirs), polling=median(polled),
    )  # fmt: skip


@figure
def limited(nodes, rounds):
    """Large messages on a link of 100 MB/s, and small ones beside them."""
    payload_rate = LINK * (MTU - HEADERS + 14) / (MTU + 14)
    for inner in (None, "pfifo_fast"):
        with nodes.limited(inner):
            rates, idle, beside, late = [], [], [], []
            for _ in range(rounds):
                out, _ = nodes.channel("send", 500 * MB, 2, WARM=str(500 * MB))
                rates.append(out["mb_per_s"] * MB)
                idle.append(nodes.channel("echo", 4096, 500)[0]["p50_us"])
                out, _ = nodes.channel("beside", 4096, 1500, 500 * MB, WARM=str(500 * MB))
                beside.append(out["p50_us"])
                late.append(out["p90_us"])
        queue = inner or "fifo"
        value = median(rates) / payload_rate
        yield record(
            f"net_limited_link_{queue}", value, "x", ">= 0.99", value >= 0.99, ours=median(rates)
        )
        value = median(beside) / median(idle)
        yield record(
            f"net_no_blocking_{queue}", value, "x", "<= 2", value <= 2,
            ours=median(beside), peer=median(idle), p90=median(late),
        )  # fmt: skip


@figure
def fanout(nodes, rounds):
    """Bytes on the wire for a message to 16 functions of a node."""
    out, _ = nodes.channel("fanout", 10 * MB, 5, WARM=str(10 * MB))
    value = out["wire_per_payload"]
    yield record("net_fanout_once", value, "payloads", "<= 1.02", value <= 1.02)


@figure
def tls(nodes, rounds):
    """The same bytes with TLS, against a plain OpenSSL transfer."""
    files = nodes.certificates()
    ours, cpu, theirs, their_cpu = [], [], [], []
    size, count = 100 * MB, 15
    for _ in range(rounds):
        out, served = nodes.channel("send", size, count, tls=files, WARM=str(size))
        ours.append(out["mb_per_s"])
        cpu.append(out["cpu_s"] + served["cpu_s"])
        out, served = nodes.pair(
            [nodes.binary, "tls-serve", 7200, *files],
            [nodes.binary, "tls-send", HOSTS[1], 7200, size, count, *files],
            CIPHER="TLS_AES_128_GCM_SHA256",  # which is what ours agree on
        )
        theirs.append(out["mb_per_s"])
        their_cpu.append(out["cpu_s"] + json.loads(served)["cpu_s"])
    value = median(ours) / median(theirs)
    yield record(
        "net_tls_vs_openssl", value, "x", ">= 1", value >= 1, ours=median(ours), peer=median(theirs),
        cpu=median(cpu) / median(their_cpu),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=FIGURES)
    args = parser.parse_args()
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="roadrunner-bench-net-") as folder,
        Nodes(args.build.resolve(), Path(folder)) as nodes,
    ):
        for name, f in FIGURES.items():
            if args.only in (None, name):
                for r in f(nodes, args.rounds):
                    more = {
                        k: round(v, 2)
                        for k, v in r.items()
                        if k in ("ours", "peer", "p90", "polling", "cpu")
                    }
                    print(f"{r['name']:32} {r['value']:7.3f} {r['unit']}  {r['target']:8} {'ok' if r['holds'] else 'MISSED'}  {more}", file=sys.stderr, flush=True)  # fmt: skip
                    results.append(r)
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
