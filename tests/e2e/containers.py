# SPDX-License-Identifier: Apache-2.0
"""Bundles, images and what is left of containers: shared by the tests of the OCI parts."""

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

from conftest import BUILD, guest
from image import make_image  # noqa: F401 (for those who import us)

OCI = BUILD / "roadrunner-oci"
NUMBERS = itertools.count()
BUSYBOX = Path("/bin/busybox")

SECCOMP = {  # enough to see that the worker lives with a filter
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": ["ptrace", "bpf", "mount", "io_uring_setup"], "action": "SCMP_ACT_ERRNO"}
    ],
}


def can_make_containers():
    return os.geteuid() == 0 and (
        subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )


def spec(args, **changes):
    document = {
        "ociVersion": "1.3.0",  # as containerd 2 writes it, and crun 1.8 refuses it
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin", "NAME=value"],
            "cwd": "/",
            "capabilities": {k: [] for k in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 64, "soft": 64}],
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"],
            },
        ],
        "linux": {
            "namespaces": [{"type": t} for t in ("pid", "mount", "ipc", "uts", "network")],
            # else the container's name, which tests beside these may have, too
            "cgroupsPath": f"/rr-test-{os.getpid()}-{next(NUMBERS)}",
            "seccomp": SECCOMP,
        },
    }
    process = changes.pop("process", {})
    document.update(changes)
    document["process"].update(process)
    return document


def make_rootfs(folder, guests=(), busybox=False):
    for name in ("proc", "dev", "tmp", "bin", "data"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in guests:
        shutil.copy(guest(name), folder / f"{name}.wasm")
    if busybox:
        shutil.copy(BUSYBOX, folder / "bin/busybox")


def make_bundle(folder, args, guests=(), busybox=False, **changes):
    make_rootfs(folder / "rootfs", guests, busybox)
    (folder / "config.json").write_text(json.dumps(spec(args, **changes)))
    return folder


# --- what is left ---------------------------------------------------------------------------------


def processes():
    """Command lines of all that runs, by process id."""
    found = {}
    for p in Path("/proc").glob("[0-9]*"):
        try:
            line = (p / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if (p / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found[int(p.name)] = line
        except OSError:
            pass
    return found


def cgroups(part):
    """Folders of cgroups whose path has @part."""
    return [p for p, _, _ in os.walk("/sys/fs/cgroup") if part in p]


def mounts(part):
    return [line for line in Path("/proc/mounts").read_text().splitlines() if part in line]
