# SPDX-License-Identifier: Apache-2.0
"""Bundles made to do harm: each is refused, or runs, with a reason, soon, and leaves nothing."""

import json
import os
import shutil
import time

import pytest
from conftest import SLOW, guest
from containers import OCI, can_make_containers, make_bundle, mounts, processes
from test_oci import oci  # noqa: F401 (a fixture)

pytestmark = pytest.mark.skipif(
    not can_make_containers(), reason="the system lets this user make no containers"
)


@pytest.fixture
def bundle(tmp_path):
    b = make_bundle(tmp_path, ["/stdio_upper.wasm"], ["stdio_upper"])
    yield b
    assert not mounts(str(b))
    assert not [x for x in processes().values() if str(b) in x and str(OCI) in x]


def change(bundle, **fields):
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**config, **fields}))


def run(oci, bundle, name="c1", **kw):  # noqa: F811
    started = time.monotonic()
    done = oci("run", "-b", bundle, name, ok=False, stdin=b"x", **kw)
    assert time.monotonic() - started < 20 * SLOW
    assert oci.state(name) is None
    return done.returncode, done.stdout, done.stderr.decode()


def no_rootfs(b):
    shutil.rmtree(b / "rootfs")


def file_as_rootfs(b):
    no_rootfs(b)
    (b / "rootfs").write_text("no folder")


def fifo_as_rootfs(b):
    no_rootfs(b)
    os.mkfifo(b / "rootfs")


def loop_as_rootfs(b):
    no_rootfs(b)
    (b / "rootfs").symlink_to("rootfs")


def fifo_as_config(b):
    (b / "config.json").unlink()
    os.mkfifo(b / "config.json")


def folder_as_config(b):
    (b / "config.json").unlink()
    (b / "config.json").mkdir()


def endless_config(b):
    (b / "config.json").unlink()
    (b / "config.json").symlink_to("/dev/zero")


def huge_annotation(b):
    change(b, annotations={"a": "x" * (17 << 20)})


def many_huge_annotations(b):
    change(b, annotations={f"a{n}": "x" * 1000 for n in range(20000)})


@pytest.mark.parametrize(
    "spoil, text",
    [
        (no_rootfs, "cannot use the root file system"),
        (file_as_rootfs, "cannot use the root file system"),
        (fifo_as_rootfs, "cannot use the root file system"),
        (loop_as_rootfs, "cannot use the root file system"),
        (fifo_as_config, "config.json"),
        (folder_as_config, "config.json"),
        (endless_config, "config.json"),
        (huge_annotation, "are the annotations this large?"),
        (many_huge_annotations, "are the annotations this large?"),
    ],
)
def test_is_refused(oci, bundle, spoil, text):  # noqa: F811
    spoil(bundle)
    status, out, told = run(oci, bundle)
    assert status != 0 and not out
    assert text in told, told


def test_large_annotations_are_passed_on(oci, bundle):  # noqa: F811
    change(bundle, annotations={f"example.org/{n}": "x" * 1000 for n in range(1000)})
    status, out, told = run(oci, bundle)
    assert (status, out) == (0, b"X"), told


def outside(folder):
    """A module of the machine's, not of the container's."""
    shutil.copy(guest("stdio_upper"), folder / "secret.wasm")
    return folder / "secret.wasm"


@pytest.mark.parametrize(
    "target",
    [
        "{host}",
        "../../../../../../../../..{host}",
        "/proc/self/root{host}",
        "/proc/1/root{host}",
        "/proc/1/cwd{host}",
        "/up{host}",  # a folder that leads out
    ],
)
def test_links_lead_nowhere_outside(oci, bundle, tmp_path_factory, target):  # noqa: F811
    host = outside(tmp_path_factory.mktemp("host"))
    (bundle / "rootfs/up").symlink_to("../../../../../../../..")
    (bundle / "rootfs/m.wasm").symlink_to(target.format(host=host))
    change(bundle, process=with_args(bundle, "/m.wasm"))
    status, out, told = run(oci, bundle)
    assert (status, out) == (127, b"") and "cannot find the module" in told


def with_args(bundle, *args):
    process = json.loads((bundle / "config.json").read_text())["process"]
    return {**process, "args": list(args)}


def fifo(path):
    os.mkfifo(path)


def device(path):
    os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero


def loop(path):
    path.symlink_to(path.name)


def folder_module(path):
    path.mkdir()


def sparse(path):
    with path.open("wb") as f:
        f.write(b"\0asm\1\0\0\0")
        f.truncate(8 << 30)


def cut_off(path):
    path.write_bytes(guest("stdio_upper").read_bytes()[:5000])


@pytest.mark.parametrize(
    "make, status, text",
    [
        (fifo, 126, "not a file"),
        (device, 126, "not a file"),
        (folder_module, 126, "not a file"),
        (loop, 127, "cannot find the module"),
        (sparse, 126, "m.wasm"),
        (cut_off, 126, "the module does not compile"),
    ],
)
def test_modules_that_are_none(oci, bundle, make, status, text):  # noqa: F811
    make(bundle / "rootfs/m.wasm")
    change(bundle, process=with_args(bundle, "/m.wasm"))
    got, out, told = run(oci, bundle)
    assert (got, out) == (status, b""), told
    assert text in told


@pytest.mark.parametrize("name", ["../c1", "a/b", "", ".", "..", "x" * 5000, "a\nb"])
def test_names_that_are_paths(oci, bundle, name):  # noqa: F811
    done = oci("run", "-b", bundle, name, ok=False, stdin=b"x")
    assert done.returncode != 0 and not done.stdout
    done = oci("delete", "--force", name, ok=False)
    assert done.returncode in (0, 1, 64)
    assert (bundle / "rootfs/stdio_upper.wasm").exists()
