"""`check` and `inspect`: show the contents of a bootstrap, or of a blob with an inlined one."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from nydus_service.errors import NotFoundError, UsageError, from_os_error
from nydus_service.rafs import blob as sections
from nydus_service.rafs.constants import (
    BLOB_FEATURE_NAMES,
    BLOCK_SIZE,
    EROFS_MAGIC,
    SUPERBLOCK_OFFSET,
)
from nydus_service.rafs.overlay import find
from nydus_service.rafs.reader import Bootstrap, read_bootstrap
from nydus_service.rafs.tree import Inode, walk


def load(path: Path, blob_dir: Path | None = None) -> Bootstrap:
    """Read a bootstrap, or the one inlined in a nydus blob, from a file.

    Args:
        path: the file; its name up to the first dot is the id of a blob with inlined metadata.
        blob_dir: directory to look for `path` in if `path` itself does not exist.
    Raises:
        FormatError: the file is neither, or is damaged.
        NotFoundError, NotAllowedError: the file cannot be read.
    """
    if blob_dir is not None and not path.exists():
        path = blob_dir / path
    return read_bootstrap(load_data(path), blob_id=path.name.split(".")[0] or None)


def load_data(path: Path) -> bytes:
    """Read the bytes of a bootstrap, or of the one inlined in a nydus blob. Raises: as `load`."""
    try:
        with path.open("rb") as file:
            head = file.read(BLOCK_SIZE)
            if head[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + 4] == EROFS_MAGIC.to_bytes(4, "little"):
                return head + file.read()
            size = file.seek(0, os.SEEK_END)
            search = sections.read_entry(sections.BOOTSTRAP, size)
            return sections.run(search, lambda offset, size: os.pread(file.fileno(), size, offset))
    except OSError as exc:
        raise from_os_error(exc, f"read {path}") from exc


def report(bootstrap: Bootstrap) -> Iterator[str]:
    """Yield the lines that `nydus-image check` prints."""
    yield "RAFS filesystem metadata is valid, referenced data blobs: "
    for index, blob in enumerate(bootstrap.blobs):
        yield (
            f"\t {index}: {blob.blob_id}, compressed size {blob.compressed_size}, "
            f"uncompressed size {blob.uncompressed_size}, chunk size: {blob.chunk_size}, "
            f"chunk count: {blob.chunk_count}, features: {feature_names(blob.features)}"
        )


def feature_names(features: int) -> str:
    return " ".join(name for bit, name in sorted(BLOB_FEATURE_NAMES.items()) if features & bit)


def list_inodes(bootstrap: Bootstrap) -> Iterator[str]:
    """Yield one JSON object per name, in depth-first order."""
    for path, inode in walk(bootstrap.root):
        yield json.dumps(describe(path, inode))


def describe(path: bytes, inode: Inode) -> dict[str, object]:
    """Describe one name as JSON values; bytes that are not UTF-8 are decoded as by os.fsdecode."""
    description: dict[str, object] = {
        "path": os.fsdecode(path),
        "mode": inode.mode,
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "mtime": inode.mtime,
        "mtime_nsec": inode.mtime_nsec,
        "xattrs": {os.fsdecode(name): value.hex() for name, value in inode.xattrs.items()},
    }
    if inode.rdev:
        description["rdev"] = inode.rdev
    if inode.is_symlink():
        description["symlink"] = os.fsdecode(inode.target)
    if inode.chunks:
        description["chunks"] = [
            {
                "blob": chunk.blob.blob_id,
                "index": chunk.index,
                "digest": chunk.digest.hex(),
                "offset": chunk.compressed_offset,
                "stored": chunk.compressed_size,
                "size": chunk.uncompressed_size,
            }
            for chunk in inode.chunks
        ]
    return description


def answer(bootstrap: Bootstrap, request: str) -> object:
    """The answer to `inspect --request`, as a JSON value.

    Raises: UsageError: the request is unknown. NotFoundError: the path does not exist in the image.
    """
    verb, _, argument = request.strip().partition(" ")
    if verb == "stats":
        return {"inodes_count": bootstrap.superblock.inos}
    if verb == "blobs":
        return [
            {
                "blob_id": blob.blob_id,
                "readahead_offset": 0,
                "readahead_size": 0,
                "decompressed_size": blob.uncompressed_size,
                "compressed_size": blob.compressed_size,
            }
            for blob in bootstrap.blobs
        ]
    if verb == "prefetch":
        paths: dict[int, list[str]] = {}
        for path, inode in walk(bootstrap.root):
            paths.setdefault(id(inode), []).append(os.fsdecode(path))
        return [{"path": paths[id(inode)]} for inode in bootstrap.prefetch]
    if verb in ("ls", "stat"):
        return _look_up(bootstrap, verb, argument.strip() or "/")
    raise UsageError(f"unknown request {request!r}; known: stats, blobs, prefetch, ls PATH, stat PATH")


def _look_up(bootstrap: Bootstrap, verb: str, path: str) -> object:
    inode = find(bootstrap.root, os.fsencode(path))
    if inode is None:
        raise NotFoundError(f"no {path!r} in this image")
    if verb == "stat" or inode.children is None:
        return describe(os.fsencode(path), inode)
    return [os.fsdecode(name) for name in sorted(inode.children)]
