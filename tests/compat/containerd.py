"""A containerd of the tests' own, to ask what its application of layers leaves on disk."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR, S_ISLNK

import pytest

from nydus_service.errors import FormatError
from tests.compat.images import archive_layout, write_layout
from tests.layers import file, layer, pax_header, pax_records
from tests.tools import require_root, require_tool
from tests.trees import Tree, tree_of, walk_path

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

    def apply(self, layers: Sequence[bytes]) -> Path:
        """Unpack an image of these layers with the native snapshotter, which copies directories.

        Returns: its root. Raises: FormatError: containerd refuses them.
        """
        self._images += 1
        layout, archive = self._place / f"image{self._images}", self._place / "image.tar"
        # A comment makes the layer another: one that is known already would not be unpacked again.
        comment = pax_header(pax_records({"comment": b"%d" % self._images}), b"g")
        write_layout(layout, [comment + layers[0], *layers[1:]])
        archive_layout(layout, archive)
        name = f"example.com/case{self._images}"
        done = self.ctr("images", "import", "--base-name", name, "--snapshotter", "native", str(archive))
        shutil.rmtree(layout)
        if done.returncode:
            raise FormatError(done.stderr)
        snapshots = self._place / "root/io.containerd.snapshotter.v1.native/snapshots"
        return max(snapshots.iterdir(), key=lambda path: int(path.name))


@contextmanager
def running_containerd() -> Iterator[Containerd]:
    """Start a containerd, and end it with the block; skips where there is none that can unpack."""
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


def assert_left_by(containerd: Containerd, layers: Sequence[bytes], wanted: Tree) -> None:
    """Compare a tree with what containerd leaves of layers.

    Set aside: the root, which containerd leaves as its snapshotter made it, permissions of symlinks,
    and times that unpacking itself sets.
    """
    since = int(time.time())
    found = _comparable(tree_of(walk_path(os.fsencode(containerd.apply(layers)))), since)
    wanted = _comparable(wanted, since)
    for path, node in found.items():
        if node.mtime == SET_BY_UNPACKING and path in wanted:
            wanted[path] = replace(wanted[path], mtime=SET_BY_UNPACKING, mtime_nsec=0)
    assert found == wanted


def _comparable(tree: Tree, since: int) -> Tree:
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
