"""The tree that verification makes of layers, from tar-splits of its own."""

import hashlib
import io
import os
from collections.abc import Sequence
from stat import S_ISREG

from nydus_service.tarsplit.recorder import TarSplitRecorder
from nydus_service.treeverify.apply import Overlay
from nydus_service.treeverify.source import apply_layer
from nydus_service.treeverify.tarsplit import TarSplitReader
from tests.trees import Node, Tree

WHOLE_FILE = 1 << 24


def noted_tree(layers: Sequence[bytes]) -> Tree:
    """The tree that verification makes of the layers. Raises: FormatError: it refuses them."""
    overlay = Overlay()
    for data in layers:
        tar_split = bytearray()
        recorder = TarSplitRecorder(tar_split.extend, WHOLE_FILE, "sha256")
        recorder.feed(data)
        recorder.finish()
        apply_layer(overlay, TarSplitReader(io.BytesIO(bytes(tar_split))), "of the case")
    nodes = {b"/": overlay.merge()}
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
