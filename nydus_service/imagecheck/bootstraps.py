"""Summarise a bootstrap."""

from msgspec import Struct

from nydus_service.rafs.constants import BLOB_FEATURE_NAMES
from nydus_service.rafs.reader import Bootstrap
from nydus_service.rafs.tree import Blob, walk


class BlobFacts(Struct, frozen=True, kw_only=True):
    """A row of the blob table; sizes in bytes."""

    id: str
    chunks: int
    compressor: str
    compressed_size: int
    uncompressed_size: int
    features: tuple[str, ...]


class BootstrapFacts(Struct, frozen=True, kw_only=True):
    """A summary of a bootstrap.

    Attributes:
        names: number of names of all files; a hard link counts once for each of its names.
        content_bytes: bytes of all regular files; a hard link counts once.
        flags: of the superblock, in hex.
        prefetch: number of entries in the prefetch table.
    """

    fs_version: int
    names: int
    inodes: int
    directories: int
    files: int
    symlinks: int
    special: int
    content_bytes: int
    chunk_size: int
    compressor: str
    digester: str
    flags: str
    prefetch: int
    blobs: tuple[BlobFacts, ...]


def describe_bootstrap(bootstrap: Bootstrap) -> BootstrapFacts:
    """Summarise a bootstrap. A hard link counts once for each of its names, its content once."""
    counts = {"directories": 0, "files": 0, "symlinks": 0, "special": 0}
    content_bytes = 0
    inodes: set[int] = set()
    for _, inode in walk(bootstrap.root):
        if inode.is_dir():
            counts["directories"] += 1
        elif inode.is_regular():
            counts["files"] += 1
            content_bytes += 0 if id(inode) in inodes else inode.size
        elif inode.is_symlink():
            counts["symlinks"] += 1
        else:
            counts["special"] += 1
        inodes.add(id(inode))
    return BootstrapFacts(
        fs_version=6,
        names=bootstrap.superblock.inos,
        inodes=len(inodes),
        **counts,
        content_bytes=content_bytes,
        chunk_size=bootstrap.chunk_size,
        compressor=bootstrap.compressor,
        digester=bootstrap.digester,
        flags=f"{bootstrap.flags:#x}",
        prefetch=len(bootstrap.prefetch),
        blobs=tuple(map(_describe_blob, bootstrap.blobs)),
    )


def _describe_blob(blob: Blob) -> BlobFacts:
    return BlobFacts(
        id=blob.blob_id,
        chunks=blob.chunk_count,
        compressor=blob.compressor,
        compressed_size=blob.compressed_size,
        uncompressed_size=blob.uncompressed_size,
        features=tuple(name for bit, name in sorted(BLOB_FEATURE_NAMES.items()) if blob.features & bit),
    )
