"""Verification's idea of what applying layers leaves, against containerd itself.

A containerd of our own, with the native snapshotter, unpacks one image for each case; what is then on
disk is compared with the tree that verify/overlay.py makes of the notes of the same layers. Set aside:
the root, which containerd leaves as its snapshotter made it, and times that unpacking itself sets.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG

import pytest

from nydus_service.errors import FormatError
from nydus_service.oci.layernotes import NotesRecorder
from nydus_service.verify.notes import LayerNotes
from nydus_service.verify.overlay import Overlay
from nydus_service.verify.source import apply_layer
from tests.layers import (
    block_device,
    char_device,
    directory,
    entry,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    pax_sparse,
    symlink,
    whiteout,
)
from tests.tools import require_root, require_tool
from tests.trees import Node, Tree, tree_of, walk_path

Layers = Sequence[bytes]

CONFIG = """\
version = 2
root = "{place}/root"
state = "{place}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{place}/socket"
[ttrpc]
  address = "{place}/ttrpc"
"""
START_S = 20
WHOLE_FILE = 1 << 24
SET_BY_UNPACKING = -1


class Containerd:
    """A running containerd; it keeps everything below one directory."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._images = 0

    def ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ctr and wait for it."""
        argv = ["ctr", "--address", str(self._place / "socket"), *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)

    def apply(self, layers: Layers) -> Path:
        """Unpack an image of these layers; returns its root.

        Raises: FormatError: containerd refuses them.
        """
        self._images += 1
        archive = self._place / "image.tar"
        write_archive(archive, layers, f"example.com/case:{self._images}")
        done = self.ctr("images", "import", "--snapshotter", "native", str(archive))
        if done.returncode:
            raise FormatError(done.stderr)
        snapshots = self._place / "root/io.containerd.snapshotter.v1.native/snapshots"
        return max(snapshots.iterdir(), key=lambda path: int(path.name))


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    require_root()
    require_tool("ctr", (1, 6))
    program = require_tool("containerd", (1, 6)).path
    place = Path(tempfile.mkdtemp(prefix="ctrd"))  # a socket's path has to be short
    (place / "config.toml").write_text(CONFIG.format(place=place))
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([program, "--config", place / "config.toml"], stdout=log, stderr=log)
    try:
        started = Containerd(place)
        deadline = time.monotonic() + START_S
        while started.ctr("version").returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"containerd does not start here: {(place / 'log').read_text()[-500:]}")
        try:
            started.apply([layer(file("f"))])
        except FormatError as exc:
            pytest.skip(f"containerd cannot unpack an image here: {exc}")
        yield started
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(place)


def write_archive(path: Path, layers: Layers, name: str) -> None:
    """Write an OCI archive of one image with uncompressed layers."""
    blobs: dict[str, bytes] = {}

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    listed = [put(data, "layer.v1.tar") for data in layers]
    rootfs = {"type": "layers", "diff_ids": [one["digest"] for one in listed]}
    config = put(
        json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode(), "config.v1+json"
    )
    manifest = {"schemaVersion": 2, "config": config, "layers": listed}
    described = put(json.dumps(manifest).encode(), "manifest.v1+json")
    described["annotations"] = {"io.containerd.image.name": name}
    files = {f"blobs/sha256/{digest}": data for digest, data in blobs.items()}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()
    with tarfile.open(path, "w") as tar:
        for member, data in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def expected(layers: Layers) -> Tree:
    """The tree that verification makes of the layers. Raises: FormatError: it refuses them."""
    overlay = Overlay()
    for data in layers:
        notes = bytearray()
        recorder = NotesRecorder(notes.extend, WHOLE_FILE, "sha256")
        recorder.feed(data)
        recorder.finish()
        apply_layer(overlay, LayerNotes(io.BytesIO(bytes(notes))), "of the case")
    nodes = {b"/": overlay.root}
    pending = [b"/"]
    while pending:
        path = pending.pop()
        for name, child in (nodes[path].children or {}).items():
            below = path.rstrip(b"/") + b"/" + name
            nodes[below] = child
            if child.children is not None:
                pending.append(below)
    first: dict[int, bytes] = {}
    for path in sorted(nodes):
        first.setdefault(id(nodes[path]), path)
    empty = hashlib.sha256().hexdigest()
    return {
        path: Node(
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            mtime=node.mtime,
            mtime_nsec=node.mtime_nsec,
            xattrs={os.fsdecode(name): value.hex() for name, value in node.xattrs.items()},
            inode=first[id(node)],
            size=node.size,
            rdev=node.rdev,
            target=node.target,
            sha256=(node.digests.hex() or empty) if S_ISREG(node.mode) else "",
        )
        for path, node in nodes.items()
    }


def comparable(tree: Tree, since: int) -> Tree:
    """Without the root, permissions of symlinks, and times of directories from `since` on."""
    nodes = {}
    for path, node in tree.items():
        if path == b"/":
            continue
        if S_ISLNK(node.mode):
            node = replace(node, mode=node.mode | 0o777)
        if S_ISDIR(node.mode) and node.mtime >= since:
            node = replace(node, mtime=SET_BY_UNPACKING, mtime_nsec=0)
        nodes[path] = node
    return nodes


ACL = bytes.fromhex(
    "0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000000ffffffff"
)
CAPABILITY = {"security.capability": b"\x01\0\0\x02\0 \n\0\0\0\0\0\0\0\0\0\0\0\0\0"}
LONG = "d" * 150 + "/" + "n" * 200

CASES: dict[str, Layers] = {
    "every type": [
        layer(
            directory("d", mode=0o1777, uid=1, gid=2, mtime=3),
            file("d/f", b"content", mode=0o6755, uid=4, gid=5, mtime=6),
            symlink("d/s", "../x", uid=7),
            char_device("c", 5, 300, mode=0o600),
            block_device("b", 259, 70000),
            fifo("p", blank=True),
            entry("p2", b"6", device=(1, 2)),
            file(LONG, b"long"),
            file(b"\xff\xfe\n", b"no text"),
        )
    ],
    "paths": [layer(file("./a//b/./c"), file("../../x"), file("p/../y"), file("/abs"), entry("z/", b"0"))],
    "times": [
        layer(
            file("a", pax={"mtime": b"1.25"}),
            file("b", pax={"mtime": b"-1.5"}),
            file("c", pax={"mtime": b"9223372037"}),
            file("d", mtime=-5, style="gnu"),
            directory("e", pax={"mtime": b"7.000000009"}),
        )
    ],
    "sparse": [layer(*(pax_sparse(f"f{v}", 30000, [(9000, b"data")], v) for v in ("0.0", "0.1", "1.0")))],
    "implied directories": [
        layer(directory("d", mode=0o700, uid=1, mtime=2, xattrs={"user.a": b"1"}), file("n/o/f", uid=9)),
        layer(file("d/f"), whiteout("m/x"), opaque("q/r"), file("n/o/g")),
    ],
    "implied below setgid": [
        layer(directory("s", mode=0o2755, gid=7), file("s/a/b/f"), directory("s/d"), file("s/g"))
    ],
    "implied, then described": [layer(file("d/f"), directory("d", mode=0o700, mtime=4))],
    "symlinks in paths": [
        layer(
            directory("usr/lib"),
            symlink("lib", "usr/lib"),
            symlink("a/b/l", "/x/y"),
            symlink("up", "../../etc"),
        ),
        layer(file("lib/f"), file("lib/n/g"), file("a/b/l/f"), file("up/f"), whiteout("lib/none")),
        layer(directory("lib"), file("lib/own")),
    ],
    "symlinks and dots": [layer(symlink("l", "gone/../d"), file("l/f"), symlink("m", "l/../e"), file("m/g"))],
    "same path": [
        layer(
            file("a/b/c"), file("d"), directory("e", mode=0o700), file("e/f"), file("g"), hardlink("h", "g")
        ),
        layer(file("a", b"1"), directory("d"), directory("e", uid=3, mtime=4), symlink("g", "h")),
    ],
    "directory, file, directory": [
        layer(file("d/lower"), file("e/f")),
        layer(directory("d"), file("d/f"), file("d"), directory("d"), file("e")),
        layer(directory("e")),
    ],
    "whiteouts": [
        layer(
            file("a"),
            file("d/b/c"),
            file("e"),
            symlink("l", "a"),
            file("r", b"old"),
            directory("k", mode=0o700),
        ),
        layer(
            whiteout("a"),
            whiteout("d"),
            whiteout("l"),
            whiteout("r"),
            file("r", b"new"),
            file("e2"),
            whiteout("e2"),
        ),
        layer(whiteout("k"), file("k/new")),
    ],
    "whiteouts as other types": [layer(file("d/x")), layer(directory("d/.wh.x"), file(".wh..wh.aufs"))],
    "opaque marks": [
        layer(file("d/low"), file("d/sub/low"), file("e/low"), directory("d/keep", mode=0o700)),
        layer(opaque("d"), file("d/own"), file("d/sub/own"), file("e/own"), directory("e/sub"), opaque("e")),
    ],
    "an opaque root": [layer(file("a"), file("d/b")), layer(file("n"), opaque())],
    "hard links": [
        layer(
            file("a", b"1", mode=0o600, uid=1, mtime=1, xattrs={"user.a": b"1"}),
            hardlink("b", "a", mode=0o4711, uid=2, gid=3, mtime=4, xattrs={"user.b": b"2"}),
            hardlink("d/c", "/a", mode=0o644, uid=5, gid=6, mtime=7),
            symlink("s", "a"),
            hardlink("t", "s", mode=0o600, uid=4, mtime=44),
            fifo("p"),
            hardlink("q", "p", mode=0o600),
            file("r", b"1"),
            hardlink("r2", "r"),
            file("r", b"22"),
        )
    ],
    "hard links into lower layers": [
        layer(file("a", b"1", mode=0o600), file("d/x"), symlink("l", "d")),
        layer(hardlink("b", "a", mode=0o640, uid=9, mtime=8), hardlink("y", "l/x"), whiteout("a")),
    ],
    "hard links and opaque marks": [layer(file("d/a", b"1")), layer(hardlink("d/b", "d/a"), opaque("d"))],
    "xattrs": [
        layer(
            file("f", xattrs={"user.a": b"\n\0", "trusted.t": b"1", "com.apple.q": b"2", **CAPABILITY}),
            symlink("l", "f", xattrs={"user.a": b"1", "security.b": b"2"}),
            fifo("p", xattrs={"user.a": b"1"}),
            file("acl", mode=0o640, xattrs={"system.posix_acl_access": ACL}),
            directory("d", xattrs={"user.a": b"1"}),
            directory("d", xattrs={"user.b": b"2"}),
        )
    ],
    "capabilities of hard links": [
        layer(
            file("a", xattrs=CAPABILITY),
            hardlink("b", "a"),
            file("c", xattrs=CAPABILITY),
            hardlink("d", "c", xattrs=CAPABILITY),
        )
    ],
}

REFUSED: dict[str, Layers] = {
    "below a file": [layer(file("a")), layer(file("a/b"))],
    "below a fifo": [layer(fifo("a"), file("a/b/c"))],
    "a loop of symlinks": [layer(symlink("a", "b"), symlink("b", "a"), file("a/f"))],
    "a hard link to nothing": [layer(hardlink("h", "gone"))],
    "a hard link to what comes later": [layer(hardlink("h", "f"), file("f"))],
    "a hard link to a directory": [layer(directory("d"), hardlink("h", "d"))],
    "a hard link to itself": [layer(file("f"), hardlink("f", "f"))],
    "a hard link to what it replaces": [layer(file("d/f"), hardlink("d", "d/f"))],
    "a hard link below a file": [layer(file("f"), hardlink("h", "f/x"))],
    "a whiteout without a name": [layer(file("d/.wh."))],
    "a whiteout of the directory": [layer(file("d/.wh.."))],
    "a whiteout of the parent": [layer(file("d/.wh..."))],
    "a long name": [layer(file("n" * 256))],
    "a long target": [layer(symlink("l", "t" * 4096))],
    "an empty target": [layer(entry("l", b"2"))],
    "a cut file": [layer(file("f", bytes(5000)))[:3000]],
    "a damaged header": [layer(file("f"))[:100] + b"x" + layer(file("f"))[101:]],
    "an owner that is no number": [layer(file("f", pax={"uid": b"x"}))],
    "a time that is no number": [layer(file("f", pax={"mtime": b"1.x"}))],
    "an unknown type": [layer(entry("f", b"Z"))],
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_is_what_we_say(case: str, containerd: Containerd) -> None:
    since = int(time.time())
    found = comparable(tree_of(walk_path(os.fsencode(containerd.apply(CASES[case])))), since)
    wanted = comparable(expected(CASES[case]), since)
    for path, node in found.items():
        if node.mtime == SET_BY_UNPACKING and path in wanted:
            wanted[path] = replace(wanted[path], mtime=SET_BY_UNPACKING, mtime_nsec=0)
    assert found == wanted


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_we_refuse(case: str, containerd: Containerd) -> None:
    with pytest.raises(FormatError):
        containerd.apply(REFUSED[case])
    with pytest.raises(FormatError):
        expected(REFUSED[case])
