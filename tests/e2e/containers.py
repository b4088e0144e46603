# SPDX-License-Identifier: Apache-2.0
"""Bundles, images and what is left of containers: shared by the tests of the OCI parts."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from conftest import BUILD, guest

OCI = BUILD / "roadrunner-oci"
BUSYBOX = Path("/bin/busybox")

# crun refuses a machine with both versions of cgroups mounted: it gets a view with one.
ONE_CGROUP = (
    'if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"'
)

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


def one_cgroup(command):
    return ["unshare", "-m", "sh", "-c", ONE_CGROUP, "sh", *map(str, command)]


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


# --- images, as OCI archives ---------------------------------------------------------------------


def _tar(entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, data, mode in entries:
            info = tarfile.TarInfo(path)
            info.mode = mode
            if data is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_image(path, name, entrypoint, files, platform=("linux", "amd64"), cwd="/"):
    """@files: path in the image -> bytes."""
    folders = {str(p) for f in files for p in Path(f).parents if str(p) != "."}
    entries = [(f, None, 0o755) for f in sorted(folders | {"tmp", "proc", "dev"})]
    layer = _tar(entries + [(f, data, 0o755) for f, data in files.items()])
    blobs = {}

    def add(data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def add_json(value):
        return add(json.dumps(value).encode())

    where = dict(zip(("os", "architecture"), platform, strict=True))
    media = "application/vnd.oci.image."
    layer_blob = add(layer)
    config = add_json(
        {
            **where,
            "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"], "WorkingDir": cwd},
            "rootfs": {"type": "layers", "diff_ids": [layer_blob["digest"]]},
        }
    )
    manifest = add_json(
        {
            "schemaVersion": 2,
            "mediaType": media + "manifest.v1+json",
            "config": {"mediaType": media + "config.v1+json", **config},
            "layers": [{"mediaType": media + "layer.v1.tar", **layer_blob}],
        }
    )
    index = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [
                {
                    "mediaType": media + "manifest.v1+json",
                    **manifest,
                    "platform": where,
                    "annotations": {
                        "io.containerd.image.name": name,
                        "org.opencontainers.image.ref.name": name,
                    },
                }
            ],
        }
    ).encode()
    path.write_bytes(
        _tar(
            [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644), ("index.json", index, 0o644)]
            + [(blob, data, 0o644) for blob, data in blobs.items()]
        )
    )
    return path


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
