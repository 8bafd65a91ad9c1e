"""The file tree of a RAFS image in memory, between reader, builder and writer.

Hard links are names of the same `Inode` object; nothing else records them. A directory has exactly one name.
All files with the same content share `Chunk` objects.
"""

from collections.abc import Iterator
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG

from nydus_service.rafs.constants import BLOB_INLINED_FS_META, BLOB_SEPARATE

MARK_IMPLIED = 0x1
"""A directory without an entry in the layer, which only the paths of other entries imply."""
MARK_LOWER_LINK = 0x2
"""A hard link to a path of a lower layer, stored as a symlink. Its target is "/DIRECTORIES//PATH", or
"/PATH": `DIRECTORIES` are also directories of this layer, so that they must not be links of a lower one. The
merge sets the link's own metadata on the inode that it resolves to."""
MARK_WHITEOUT = 0x4
"""A directory with the name of a whiteout, for which the layer also has the whiteout itself."""
MARK_DESCRIBED_LATE = 0x8
"""A directory whose entry comes after entries below it: its extended attributes are added to those that the
implied directory had."""
MARK_NO_UID = 0x10
"""An inode with `MARK_DESCRIBED_LATE` or `MARK_LOWER_LINK` that sets no uid: it keeps that of its base."""
MARK_NO_GID = 0x20
"""The same for the gid. On any other inode: it was made in an implied directory, whose group it inherits if
the directory's base is set-group-ID."""


class Blob:
    """One row of the blob table: the place and the format of chunks.

    Sizes and offsets are in bytes. `compressor`, `digester` and `ci_compressor` are names
    (`constants.COMPRESSORS`, `DIGESTERS`). Digests are raw bytes. Empty fields are zero.
    """

    __slots__ = (
        "blob_id",
        "chunk_count",
        "chunk_size",
        "ci_compressed_size",
        "ci_compressor",
        "ci_offset",
        "ci_uncompressed_size",
        "cipher",
        "cipher_iv",
        "compressed_size",
        "compressor",
        "digester",
        "features",
        "meta_digest",
        "meta_size",
        "toc_digest",
        "toc_size",
        "uncompressed_size",
    )

    def __init__(self, blob_id: str, chunk_size: int, compressor: str, digester: str, features: int) -> None:
        self.blob_id = blob_id
        self.chunk_size = chunk_size
        self.chunk_count = 0
        self.compressor = compressor
        self.digester = digester
        self.features = features
        self.compressed_size = 0
        self.uncompressed_size = 0
        self.toc_size = 0
        self.toc_digest = bytes(32)
        self.ci_compressor = "none"
        self.ci_offset = 0
        self.ci_compressed_size = 0
        self.ci_uncompressed_size = 0
        self.meta_digest = bytes(32)
        self.meta_size = 0
        self.cipher = 0
        self.cipher_iv = 0

    def has_inlined_id(self) -> bool:
        """Whether the stored id is a placeholder for the name of the bootstrap's file."""
        return self.features & (BLOB_INLINED_FS_META | BLOB_SEPARATE) == BLOB_INLINED_FS_META


class Chunk:
    """The place of one piece of content in a blob.

    `compressed_offset` is in the stored blob, `uncompressed_offset` in the blob's uncompressed address space
    (a multiple of 4096), `file_offset` in one of the files that use the chunk. All are in bytes.
    """

    __slots__ = (
        "blob",
        "compressed_offset",
        "compressed_size",
        "crc32",
        "digest",
        "file_offset",
        "flags",
        "index",
        "uncompressed_offset",
        "uncompressed_size",
    )

    def __init__(
        self,
        blob: Blob,
        index: int,
        digest: bytes,
        flags: int,
        compressed_size: int,
        uncompressed_size: int,
        compressed_offset: int,
        uncompressed_offset: int,
        file_offset: int,
        crc32: int,
    ) -> None:
        self.blob = blob
        self.index = index
        self.digest = digest
        self.flags = flags
        self.compressed_size = compressed_size
        self.uncompressed_size = uncompressed_size
        self.compressed_offset = compressed_offset
        self.uncompressed_offset = uncompressed_offset
        self.file_offset = file_offset
        self.crc32 = crc32


NO_CHUNKS: tuple[Chunk, ...] = ()
NO_XATTRS: dict[bytes, bytes] = {}
"""Shared by all inodes without extended attributes: replace it, never change it."""


class Inode:
    """A file of any type. `mode` is a full st_mode; `children` is None unless it is a directory.

    `rdev` is the kernel's 32-bit device number. `xattrs` maps full names to values. `chunks` cover the `size`
    bytes of a regular file; all but the last have the image's chunk size. `mark` holds `MARK_` bits, only in
    the bootstrap of a layer. `nid`, `ino` and `nlink` are used only by the writer.
    """

    __slots__ = (
        "children",
        "chunks",
        "gid",
        "ino",
        "mark",
        "mode",
        "mtime",
        "mtime_nsec",
        "nid",
        "nlink",
        "rdev",
        "size",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(
        self, mode: int, uid: int = 0, gid: int = 0, mtime: int = 0, mtime_nsec: int = 0, mark: int = 0
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.mtime_nsec = mtime_nsec
        self.mark = mark
        self.nid = self.ino = self.nlink = 0
        self.size = 0
        self.rdev = 0
        self.target = b""
        self.xattrs = NO_XATTRS
        self.chunks = NO_CHUNKS
        self.children: dict[bytes, Inode] | None = {} if mode & 0o170000 == S_IFDIR else None

    def is_dir(self) -> bool:
        return self.children is not None

    def is_regular(self) -> bool:
        return S_IFMT(self.mode) == S_IFREG

    def is_symlink(self) -> bool:
        return S_IFMT(self.mode) == S_IFLNK


def implied_directory() -> Inode:
    """Make a directory that an entry's path implies, but that has no entry of its own."""
    return Inode(S_IFDIR | 0o755, mark=MARK_IMPLIED)


def walk(root: Inode) -> Iterator[tuple[bytes, Inode]]:
    """Yield (absolute path, inode) of every name, sorted, each directory before its entries."""
    pending: list[tuple[bytes, Inode]] = [(b"", root)]
    while pending:
        path, inode = pending.pop()
        yield path or b"/", inode
        if inode.children:
            names = sorted(inode.children, reverse=True)
            pending.extend((path + b"/" + name, inode.children[name]) for name in names)
