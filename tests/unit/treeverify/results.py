"""Results made by hand: trees of inodes, and whole bootstraps with their blobs."""

from collections.abc import Mapping
from stat import S_IFDIR

import zstandard
from blake3 import blake3
from google_crc32c import value as crc32c

from nydus_service.rafs.constants import BLOB_ALIGNED, BLOB_CAP_TAR_TOC, CHUNK_COMPRESSED, CHUNK_HAS_CRC32
from nydus_service.rafs.listing import Listing
from nydus_service.rafs.reader import Bootstrap, read_bootstrap
from nydus_service.rafs.tree import Blob, Chunk, Inode, walk
from nydus_service.rafs.writer import ImageFormat, write_bootstrap
from nydus_service.treeverify.apply import SourceInode

CHUNK = 4096
BLOB_ID = "ab" * 32
FEATURES = BLOB_ALIGNED | BLOB_CAP_TAR_TOC


def inode_of(node: SourceInode, blob: Blob, made: dict[int, Inode]) -> Inode:
    """A file as a right result has it; `made` by id, so that hard links stay."""
    if id(node) in made:
        return made[id(node)]
    inode = made[id(node)] = Inode(node.mode, node.uid, node.gid, node.mtime, node.mtime_nsec)
    inode.size, inode.rdev, inode.target, inode.xattrs = node.size, node.rdev, node.target, node.xattrs
    inode.chunks = tuple(
        Chunk(blob, at // 32, node.digests[at : at + 32], 0, 0, 0, 0, 0, 0, 0)
        for at in range(0, len(node.digests), 32)
    )
    for name, child in (node.children or {}).items():
        assert inode.children is not None
        inode.children[name] = inode_of(child, blob, made)
    return inode


def result_of(root: SourceInode) -> Inode:
    """The right result for a source's tree."""
    return inode_of(root, Blob(BLOB_ID, CHUNK, "none", "blake3", FEATURES), {})


def listing_of(root: Inode) -> Listing:
    """A result as it is read from a bootstrap; its chunks, of CHUNK bytes each, get places in one blob."""
    blob = Blob(BLOB_ID, CHUNK, "none", "blake3", FEATURES)
    chunks = 0
    for inode in dict.fromkeys(inode for _, inode in walk(root)):
        for chunk in inode.chunks:
            chunk.blob, chunk.index, chunk.uncompressed_offset = blob, chunks, chunks * CHUNK
            chunk.compressed_size = chunk.uncompressed_size = CHUNK
            chunks += 1
        if inode.chunks:
            inode.chunks[-1].uncompressed_size = (inode.size - 1) % CHUNK + 1
    describe(blob, chunks, chunks * CHUNK)
    data, _ = write_bootstrap(root, ImageFormat(CHUNK, "none", "blake3"), [blob] if chunks else [])
    return Listing(bytes(data))


def describe(blob: Blob, chunks: int, stored: int) -> None:
    """Fill in the row of a blob with so many chunks, each in an aligned place of its own."""
    blob.chunk_count = chunks
    blob.compressed_size = stored
    blob.uncompressed_size = chunks * CHUNK
    blob.ci_compressed_size = blob.ci_uncompressed_size = chunks * 16


def at(root: Inode, path: str) -> Inode:
    """The inode at a path."""
    for name in path.encode().split(b"/"):
        assert root.children is not None
        root = root.children[name]
    return root


class Image:
    """A bootstrap and its one blob, of files given by name and content."""

    def __init__(self, contents: Mapping[str, bytes], compressor: str = "zstd") -> None:
        self.blob = Blob(BLOB_ID, CHUNK, compressor, "blake3", FEATURES)
        self.stored = bytearray(b"before the first chunk")
        self.chunks: list[Chunk] = []
        root = Inode(S_IFDIR | 0o755)
        assert root.children is not None
        for name, content in contents.items():
            inode = root.children[name.encode()] = Inode(0o100644)
            inode.size = len(content)
            pieces = (content[at : at + CHUNK] for at in range(0, len(content), CHUNK))
            inode.chunks = tuple(map(self._store, pieces))
        describe(self.blob, len(self.chunks), len(self.stored))
        self._root = root

    def _store(self, plain: bytes) -> Chunk:
        packed = zstandard.ZstdCompressor().compress(plain) if self.blob.compressor == "zstd" else plain
        flags = CHUNK_HAS_CRC32
        if len(packed) < len(plain):
            flags |= CHUNK_COMPRESSED
        else:
            packed = plain
        index = len(self.chunks)
        chunk = Chunk(
            self.blob,
            index,
            blake3(plain).digest(),
            flags,
            len(packed),
            len(plain),
            len(self.stored),
            index * CHUNK,
            0,
            crc32c(plain),
        )
        self.stored += packed + b"gap"
        self.chunks.append(chunk)
        return chunk

    def bytes(self) -> bytearray:
        """The bootstrap's."""
        blobs = [self.blob] if self.chunks else []
        written, _ = write_bootstrap(self._root, ImageFormat(CHUNK, self.blob.compressor, "blake3"), blobs)
        return written

    def read(self) -> Bootstrap:
        """The bootstrap, written and read again."""
        return read_bootstrap(bytes(self.bytes()))


class TreeResult:
    """A tree in memory as a result: one that no bootstrap could hold, too."""

    def __init__(self, root: Inode) -> None:
        self.root = root

    def entries(self, directory: Inode) -> Mapping[bytes, Inode]:
        return directory.children or {}

    def digests(self, file: Inode) -> bytes:
        return b"".join([chunk.digest for chunk in file.chunks])

    def rewind(self) -> None:
        pass
