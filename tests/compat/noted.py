"""The tree that verification makes of layers, from its own notes of them."""

import hashlib
import io
import os
from collections.abc import Sequence
from stat import S_ISREG

from nydus_service.oci.layernotes import NotesRecorder
from nydus_service.verify.notes import LayerNotes
from nydus_service.verify.overlay import Overlay
from nydus_service.verify.source import apply_layer
from tests.trees import Node, Tree

WHOLE_FILE = 1 << 24


def noted_tree(layers: Sequence[bytes]) -> Tree:
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
