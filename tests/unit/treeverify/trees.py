"""Layers to trees, and their results, for the tests of this room."""

import io

from nydus_service.tarsplit.recorder import TarSplitRecorder
from nydus_service.treeverify.apply import Overlay, SourceInode
from nydus_service.treeverify.source import apply_layer
from nydus_service.treeverify.tarsplit import TarSplitReader

CHUNK = 4096


def tar_split_of(tar: bytes, chunk_size: int = CHUNK, digester: str = "blake3") -> bytes:
    """The tar-split that a recorder makes of a layer's tar."""
    out = bytearray()
    recorder = TarSplitRecorder(out.extend, chunk_size, digester)
    recorder.feed(tar)
    recorder.finish()
    return bytes(out)


def overlay_of(*tars: bytes) -> Overlay:
    """The tree that layers make, lowest first."""
    overlay = Overlay()
    for index, tar in enumerate(tars):
        apply_layer(overlay, TarSplitReader(io.BytesIO(tar_split_of(tar))), f"layer{index}")
    return overlay


def files(overlay: Overlay) -> dict[str, SourceInode]:
    """All files but the root, by their path without a leading slash."""
    found: dict[str, SourceInode] = {}
    pending: list[tuple[str, SourceInode]] = [("", overlay.merge())]
    while pending:
        prefix, directory = pending.pop()
        assert directory.children is not None
        for name, node in directory.children.items():
            path = prefix + name.decode(errors="surrogateescape")
            found[path] = node
            if node.children is not None:
                pending.append((path + "/", node))
    return found


def names(overlay: Overlay) -> list[str]:
    """The paths of all files, sorted."""
    return sorted(files(overlay))
