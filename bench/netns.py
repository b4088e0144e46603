# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces joined by a veth pair, for what two nodes would do.

Each namespace lives as long as a process that waits for the end of its input, which is ours to
close: so both go with their interfaces however this process ends, by a signal, too. Needs root.
"""

import os
import subprocess


class Pair:
    """with Pair() as net: subprocess.run(net.at_a("ping", "-c1", net.b))"""

    a, b = "10.77.0.1", "10.77.0.2"

    def __init__(self):
        self.holders = []

    def __enter__(self):
        try:
            self.holders = [self._holder(), self._holder()]
            one, two = (h.pid for h in self.holders)
            self._do(self.at_a("ip", "link", "add", "rr0", "type", "veth", "peer", "name", "rr0",
                               "netns", two))  # fmt: skip
            for at, address in ((self.at_a, self.a), (self.at_b, self.b)):
                self._do(at("ip", "link", "set", "lo", "up"))
                self._do(at("ip", "address", "add", f"{address}/24", "dev", "rr0"))
                self._do(at("ip", "link", "set", "rr0", "up"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for h in self.holders:
            h.stdin.close()
            h.wait()
        self.holders = []

    @staticmethod
    def _holder():
        h = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        h.stdin.write(b"\n")
        h.stdin.flush()
        if h.stdout.read(1) != b"\n":
            raise PermissionError("cannot make a network namespace: it needs root")
        return h

    @staticmethod
    def _do(command):
        subprocess.run(command, check=True)

    def _at(self, n, command):
        return ["nsenter", f"--net=/proc/{self.holders[n].pid}/ns/net", *map(str, command)]

    def at_a(self, *command):
        """The command line that runs @command in the first namespace, as the same process."""
        return self._at(0, command)

    def at_b(self, *command):
        return self._at(1, command)

    def limit(self, bytes_per_second):
        """Both directions, by a token bucket with the queue that it brings."""
        for at in (self.at_a, self.at_b):
            self._do(at("tc", "qdisc", "replace", "dev", "rr0", "root", "tbf", "rate",
                        f"{bytes_per_second * 8}bit", "burst", "128k", "limit", "1000000"))  # fmt: skip

    def keep_order(self):
        """Packets of a connection are received in the order in which they were sent, as from a wire.
        Else those sent by one CPU overtake those of another, and TCP takes the latter for lost."""
        cpus = (1 << min(os.cpu_count(), 32)) - 1
        set_up = (
            f"mount -t sysfs none /sys && echo {cpus:x} >/sys/class/net/rr0/queues/rx-0/rps_cpus"
        )
        for at in (self.at_a, self.at_b):
            self._do(at("unshare", "--mount", "sh", "-c", set_up))

    def sent_bytes(self):
        """By the first interface: (bytes, packets)."""
        out = subprocess.run(
            self.at_a("cat", "/proc/net/dev"), stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        fields = next(line for line in out.splitlines() if "rr0:" in line).split(":")[1].split()
        return int(fields[8]), int(fields[9])
