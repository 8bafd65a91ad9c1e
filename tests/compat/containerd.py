"""A containerd of the tests' own, to ask what its application of layers leaves on disk."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from stat import S_ISDIR, S_ISLNK
from tempfile import TemporaryDirectory

import pytest

from nydus_service.errors import FormatError
from tests.compat.images import archive_layout, write_layout
from tests.containerd import Daemon, running_daemon
from tests.layers import file, layer, pax_header, pax_records
from tests.trees import Tree, tree_of, walk_path

NAMESPACE = "default"
SET_BY_UNPACKING = -1


class Containerd:
    """A running containerd, to unpack layers with."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._images = 0

    def apply(self, layers: Sequence[bytes]) -> Path:
        """Unpack an image of these layers with the native snapshotter, which copies directories.

        Returns: its root. Raises: FormatError: containerd refuses them.
        """
        self._images += 1
        place = self._daemon.work
        layout, archive = place / f"image{self._images}", place / "image.tar"
        # A comment makes the layer another: one that is known already would not be unpacked again.
        comment = pax_header(pax_records({"comment": b"%d" % self._images}), b"g")
        write_layout(layout, [comment + layers[0], *layers[1:]])
        archive_layout(layout, archive)
        shutil.rmtree(layout)
        how = ("--base-name", f"example.com/case{self._images}", "--snapshotter", "native")
        done = self._daemon.run_ctr("-n", NAMESPACE, "images", "import", *how, str(archive))
        if done.returncode:
            raise FormatError(done.stderr)
        snapshots = place / "root/io.containerd.snapshotter.v1.native/snapshots"
        return max(snapshots.iterdir(), key=lambda path: int(path.name))


@contextmanager
def running_containerd() -> Iterator[Containerd]:
    """Start a containerd, and end it with the block; skips where there is none that can unpack."""
    with TemporaryDirectory(prefix="ctrd") as work, running_daemon("1.6", Path(work)) as daemon:
        started = Containerd(daemon)
        try:
            started.apply([layer(file("f"))])
        except FormatError as exc:
            pytest.skip(f"containerd cannot unpack an image here: {exc}")
        yield started


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
