#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kills worker processes at random moments, and checks that every message arrives all the same.

    tests/soak/kills.py [--kills N] [--minutes M] [--seed S] [--build DIR] [--verbose]

Each session is one `roadrunner run --repeat` of functions in processes of their own, on edges with
at-least-once delivery; sessions take turns at a chain and a fan-out with a join, small messages and
large ones. Kills do not wait for what they did: neighbours die together, too, and workers that have just
been started. The last function checks every run's
result. The last line is `N kills, M runs, 0 failed`; exit status 1 when something failed.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
DEADLINE_S = 2
SILENCE_S = DEADLINE_S + 3  # a stopped worker is noticed by then
SESSION_S = 20
PAUSE_S = 0.07  # between kills, on average
STOPS = 0.01  # of all kills: a signal that stops the worker

CHAIN = [("input", "first"), ("first", "second"), ("second", "check")]
FAN = [("input", "first"), ("first", "left"), ("first", "right")]
FAN += [("left", "check.left"), ("right", "check.right")]
FLOWS = [(name, edges, size) for size in (200, 3 * MIB) for name, edges in
         (("chain", CHAIN), ("fan", FAN))]  # fmt: skip


def checksum(data):
    """As tests/guests/check.c has it."""
    whole, h = len(data) // 8 * 8, len(data)
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, whole, 8)]
    for word in words + list(data[whole:]):
        h = (h * 31 + word) & (1 << 64) - 1
    return h


def workflow(folder, guests, edges, data):
    functions = {}
    for _, to in edges:
        name = to.partition(".")[0]
        functions[name] = {
            "module": str(guests / ("check.wasm" if name == "check" else "slow.wasm")),
            "env": {"MS": "3", "SUM": str(checksum(data))},
            "deadline": f"{DEADLINE_S}s",
        }
    more = {"max": "64MiB", "delivery": "at-least-once", "attempts": 100}
    document = {
        "version": 1,
        "isolation": "process",
        "functions": functions,
        "edges": [{"from": a, "to": b, **more} for a, b in edges],
        "result": "check",
    }
    path = folder / "flow.yaml"
    path.write_text(json.dumps(document))
    return path, functions


def children_of(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found


def workers_of(pid):
    return [worker for zygote in children_of(pid) for worker in children_of(zygote)]


def sample(pid):
    """Descriptors, mappings and bytes of shared memory of the parent; None: it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        maps = Path(f"/proc/{pid}/maps").read_text().count("\n")
        shared = [line.split()[1] for line in status.splitlines() if line.startswith("RssShmem")]
        return len(os.listdir(f"/proc/{pid}/fd")), maps, int(shared[0]) << 10
    except (OSError, IndexError):
        return None


def grown(samples):
    """What is larger at the end than at the beginning, as a text; "" is good."""
    samples = samples[len(samples) // 20 :]  # the start
    tenth = len(samples) // 10
    if tenth < 8:
        return ""
    texts = []
    for n, (name, slack) in enumerate((("descriptors", 6), ("mappings", 12), ("memory", 12 * MIB))):
        # with all workers there: a dead one has closed what the parent had for it
        first, last = (statistics.quantiles((s[n] for s in part), n=10)[-1]
                       for part in (samples[:tenth], samples[-tenth:]))  # fmt: skip
        if last > first + slack:
            texts.append(f"{name} of the parent grew from {first:.0f} to {last:.0f}")
    return ", ".join(texts)


def hit(pid, number):
    """Only who still is what we took it for: a number may be used again."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def is_stopped(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


class Session:
    def __init__(self, options, flow, repeat, progress):
        self.options, self.flow, self.repeat, self.progress = options, flow, repeat, progress
        self.kills = self.runs = 0
        self.samples, self.failures, self.log = [], [], []

    def run(self):
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            self.folder = Path(folder)
            self.sockets = self.folder / "run"
            self.sockets.mkdir()
            for one in (self.folder, self.sockets):  # root's workers are another user
                one.chmod(0o711)
            _, edges, size = self.flow
            self.data = random.randbytes(size)
            path, self.functions = workflow(self.folder, self.options.guests, edges, self.data)
            (self.folder / "in").write_bytes(self.data)
            begin = time.monotonic()
            self.start(path)
            self.kill_some(begin + 3 * SESSION_S)
            self.await_end(60)
            self.seconds = time.monotonic() - begin
            self.check()
        return self

    def start(self, path):
        env = {**os.environ, "XDG_RUNTIME_DIR": str(self.sockets)}
        env["ROADRUNNER_CACHE_DIR"] = str(self.options.cache)
        command = [self.options.build / "roadrunner", "run", path, self.folder / "in", "--json"]
        command += ["-o", self.folder / "out", "--repeat", str(self.repeat)]
        self.p = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.p.stderr:
            text = line.decode(errors="replace").rstrip()
            if ": begin " not in text:
                self.log.append(text)

    def look(self):
        self.progress(self.kills)
        one = sample(self.p.pid)
        if one and self.p.poll() is None:
            self.samples.append(one)

    def kill_some(self, latest):
        stopped = {}
        while self.p.poll() is None and time.monotonic() < latest + 30:
            now = time.monotonic()
            self.look()
            stopped = {pid: end for pid, end in stopped.items() if is_stopped(pid)}
            for pid, end in stopped.items():
                if now > end:
                    hit(pid, signal.SIGCONT)  # some go on before anybody noticed, some too late
            # others wait for one that is stopped, and are not to die many times
            time.sleep(min(1, random.expovariate(1 / (PAUSE_S if not stopped else 10 * PAUSE_S))))
            workers = [pid for pid in workers_of(self.p.pid) if pid not in stopped]
            if now > latest or not workers:
                continue
            pid = random.choice(workers)
            stop = random.random() < STOPS and not stopped
            if not hit(pid, signal.SIGSTOP if stop else signal.SIGKILL):
                continue
            self.kills += 1
            if stop:
                # not in between: a handler that was stopped that long has passed its deadline
                short, long = random.uniform(0, DEADLINE_S / 2), random.uniform(1, 2) * SILENCE_S
                stopped[pid] = now + random.choice((short, long))

    def await_end(self, seconds):
        timer = threading.Timer(seconds, self.p.kill)
        timer.start()
        out = self.p.stdout.read()
        self.status = self.p.wait()
        self.hung = not timer.is_alive()
        timer.cancel()
        self.reader.join(5)
        self.report = json.loads(out) if out else {}
        self.runs = self.report.get("runs", 0)

    def check(self):
        def fail(condition, text):
            if condition:
                self.failures.append(text)

        fail(self.hung, "it did not end")
        fail(self.status != 0, f"it ended with status {self.status}")
        if self.status == 0:
            fail((self.folder / "out").read_bytes() != self.data, "its result is wrong")
            fail(self.runs != self.repeat, f"{self.runs} of {self.repeat} runs")
        memory = self.report.get("memory", {"live_regions": "?"})
        fail(memory["live_regions"] != 0, f"{memory['live_regions']} regions are live at its end")
        fail(any(self.sockets.iterdir()), "its folder of sockets is left")
        end = time.monotonic() + 2
        while self.left() and time.monotonic() < end:
            time.sleep(0.01)
        fail(self.left(), f"processes are left: {self.left()}")
        fail(grown(self.samples), grown(self.samples))
        for line in self.log:  # signal 9 is ours
            strange = "was ended by signal" in line and "signal 9" not in line
            fail(strange or "ended with status" in line or "is damaged" in line, line)

    def left(self):
        """Processes that still have our workflow on their command line."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and str(self.folder) in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
            except OSError:
                pass
        return found

    def say(self):
        name, _, size = self.flow
        text = f"{name} of {size} bytes: {self.kills} kills, {self.runs} runs, {self.seconds:.0f} s"
        if self.samples:
            text += f", first {self.samples[0]}, last {self.samples[-1]}"
        for line in [text, *self.failures, *(self.log[-30:] if self.failures else [])]:
            print("  " + line if line is not text else line, file=sys.stderr)


class Progress:
    def __init__(self, kills, end):
        self.kills, self.end, self.done = kills, end, 0
        self.tty = sys.stderr.isatty()

    def __call__(self, more):
        if self.tty:
            left = max(0, self.end - time.monotonic())
            text = f"{self.done + more} of {self.kills} kills, {left:.0f} s left"
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self):
        if self.tty:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def parse():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--kills", type=int, default=1000, help="at least (default 1000)")
    p.add_argument("--minutes", type=float, default=5, help="at least (default 5)")
    p.add_argument("--seed", type=int, default=None, help="of the random moments")
    p.add_argument("--build", type=Path, default=ROOT / "build", help="build folder")
    p.add_argument("--verbose", action="store_true", help="a line for each session")
    return p.parse_args()


def main():
    options = parse()
    options.build = options.build.resolve()
    options.guests = options.build / "guests/tests"
    random.seed(options.seed)
    end = time.monotonic() + 60 * options.minutes
    progress = Progress(options.kills, end)
    kills = runs = failed = n = 0
    rates = {}
    with tempfile.TemporaryDirectory(prefix="soak-cache-") as cache:
        options.cache = cache
        while kills < options.kills or time.monotonic() < end:
            flow = FLOWS[n % len(FLOWS)]
            seconds = min(SESSION_S, max(3, end - time.monotonic()))
            repeat = int(rates[flow[0], flow[2]] * seconds) + 20 if n >= len(FLOWS) else 150
            s = Session(options, flow, repeat, progress).run()
            rates[flow[0], flow[2]] = s.runs / s.seconds
            kills, runs, n = kills + s.kills, runs + s.runs, n + 1
            failed += bool(s.failures)
            progress.done = kills
            if options.verbose or s.failures:
                progress.clear()
                s.say()
    progress.clear()
    print(f"{kills} kills, {runs} runs, {failed} failed")
    return 1 if failed or kills == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
