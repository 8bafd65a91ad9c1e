"""umoci as a second opinion on the right tree, where containerd's two snapshotters agree.

Where they do not, umoci follows the native one, which applies layers to a plain directory as umoci does. What
else umoci does in its own way is left out of the images, by `_prepared`:

- It sets no metadata that a hard link's own entry has: the first entry of the file counts.
- It makes no directory for a whiteout or an opaque mark alone.
- It sets xattrs in `trusted.`, and fails where the kernel refuses an xattr.
- A whiteout or an opaque mark hides nothing of its own layer, in the lowest layer neither, as the OCI
  image-spec says, and as the right tree does. The snapshotters remove entries then: `agreed_tree` sets such
  images aside.
- It takes a uid or gid of -1 for an error.
"""

import os
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from nydus_service.errors import FormatError
from tests.compat.equality import Right, comparable, differences
from tests.compat.images import write_layout
from tests.compat.randomstacks import Stack, random_stack, shrunk
from tests.compat.stacks import Entry, Layer, tar_of
from tests.compat.unpacking import Unpacker
from tests.tools import require_tool
from tests.trees import Tree, tree_of, walk_path

IMAGES = 80
SEED = 1


def unpacked_by_umoci(stack: Stack) -> Tree:
    """Raises: FormatError: umoci refuses the image."""
    with TemporaryDirectory() as work:
        write_layout(Path(work, "layout"), [tar_of(entries) for entries in stack])
        argv = [str(require_tool("umoci").path), "unpack", "--image", f"{work}/layout:test", f"{work}/bundle"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise FormatError(done.stderr[-500:])
        return tree_of(walk_path(os.fsencode(f"{work}/bundle/rootfs")))


def _prepared(stack: Stack) -> Stack:
    """A stack without what umoci does in its own way."""
    return [_prepared_layer(entries) for entries in stack]


def _prepared_layer(entries: Layer) -> Layer:
    has_links = any(entry.kind == "hardlink" for entry in entries)
    prepared = []
    for entry in entries:
        plain = replace(entry, xattrs=(), uid=max(entry.uid, 0), gid=max(entry.gid, 0))
        if entry.kind in ("whiteout", "opaque"):
            directory = entry.path if entry.kind == "opaque" else entry.path.rpartition("/")[0]
            prepared += [Entry("directory", directory, mode=0o755)] if directory else []
        elif has_links and entry.kind != "directory":
            usual = 0o777 if entry.kind == "symlink" else 0o644
            plain = replace(plain, mode=usual, uid=0, gid=0, mtime=0, mtime_nsec=0)
        prepared.append(plain)
    return prepared


def agreed_tree(unpacker: Unpacker, stack: Stack) -> Right | None:
    """The tree that both snapshotters leave; None where they differ, or a mark may hide its own layer's."""
    for number, entries in enumerate(stack):
        own = {entry.path for entry in entries if entry.kind != "whiteout"}
        for mark in entries:
            hides_own = mark.kind == "whiteout" and any(
                f"{path}/".startswith(f"{mark.path}/") for path in own
            )
            if hides_own or (number == 0 and mark.kind == "opaque"):
                return None
    layers = [tar_of(entries) for entries in stack]
    since = int(time.time())
    try:
        tree, other = unpacker.tree(layers), unpacker.tree(layers, "native")
    except FormatError:
        return None
    return Right(tree, since) if comparable(tree, since) == comparable(other, since) else None


def objections(unpacker: Unpacker, stack: Stack) -> list[str] | None:
    """Where umoci does not agree with both snapshotters; None where they do not agree themselves."""
    agreed = agreed_tree(unpacker, stack)
    if agreed is None:
        return None
    try:
        return differences(unpacked_by_umoci(stack), agreed)
    except FormatError as exc:
        return [str(exc)]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_umoci_agrees(unpacker: Unpacker) -> None:
    require_tool("umoci")
    random = Random(SEED)
    asked, failing = 0, []
    while asked < IMAGES:
        stack = _prepared(random_stack(random))
        found = objections(unpacker, stack)
        if found is not None:
            asked += 1
            if found:
                failing.append(stack)
    ask = partial(objections, unpacker)
    shown = [shrunk(stack, lambda one: bool(ask(one))) for stack in failing[:5]]
    assert not failing, [(stack, ask(stack)) for stack in shown]
