# SPDX-License-Identifier: Apache-2.0
"""Images as OCI archives, for tests and benchmarks."""

import hashlib
import io
import json
import tarfile
from pathlib import Path


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
