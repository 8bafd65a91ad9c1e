"""Reads the records of a bootstrap: tables, inodes, directories.

The size of the file bounds the work: each byte may belong to one record only. So a hostile image that points
to one record a million times is refused after reading at most as many bytes as the file has.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import lt
from struct import Struct
from typing import NamedTuple

from nydus_service.errors import FormatError
from nydus_service.rafs.constants import (
    BLOB_ENTRY_SIZE,
    BLOCK_SIZE,
    DEVICE_SLOT_SIZE,
    DEVICE_SLOTS_OFFSET,
    LAYOUT_CHUNK_BASED,
    LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN,
    MAX_BLOBS,
    MAX_NAME,
    SLOT_SIZE,
    SUPERBLOCK_OFFSET,
)
from nydus_service.rafs.erofs import (
    COMPACT_INODE,
    COMPACT_INODE_SIZE,
    DIRENT,
    DIRENT_SIZE,
    FILE_TYPES,
    INODE,
    INODE_SIZE,
    MARK_MAGIC,
    Superblock,
    unpack_xattrs,
)
from nydus_service.rafs.tree import MARK_LOWER_LINK, Blob, Inode
from nydus_service.rafs.v6 import ExtendedSuperblock, check_device_slots, unpack_blob

PLAIN_FILE = Struct("<IHxxq8xIIqIQ12xQ")
"""The most common inode: an extended inode of a regular file without xattrs, followed by its only chunk.

The variable fields of erofs.INODE, 72 bytes with the chunk: PLAIN_HEAD, i_mode, i_size, i_uid, i_gid,
i_mtime, i_mtime_nsec, SINGLE, and the chunk's address. In an empty file, the address is part of the next
record.
"""
PLAIN_HEAD = 1 | LAYOUT_CHUNK_BASED << 1
"""i_format and i_xattr_icount."""
SINGLE = 1
"""i_nlink and the mark of an unmarked file with one name."""
REGULAR = 8
"""The top four bits of st_mode."""
REGULAR_TYPE = FILE_TYPES[REGULAR]
DIRECTORY_TYPE = FILE_TYPES[4]

_FIRST_NAME_OFFSET = Struct("<8xH")
_ADDRESS = Struct("<Q")
_MAX_TARGET = 4096


class Tables(NamedTuple):
    """The superblocks and the blob table."""

    superblock: Superblock
    extended: ExtendedSuperblock
    blobs: list[Blob]


class Directory(NamedTuple):
    """A directory whose entries are not read yet: whole blocks at `blocks_at`, the rest at `tail_at`."""

    path: bytes
    nid: int
    parent_nid: int
    size: int
    blocks_at: int
    tail_at: int

    def path_of(self, name: bytes) -> bytes:
        return self.path.rstrip(b"/") + b"/" + name


class Dirents(NamedTuple):
    """The entries of a directory, in order, without "." and "..". `kinds` are file types."""

    names: list[bytes]
    nids: list[int]
    kinds: list[int]


def read_tables(data: bytes | memoryview, blob_id: str | None) -> Tables:
    """Read the superblocks and the blob table.

    Args:
        blob_id: replaces the placeholder id of a blob with inlined metadata.
    Raises: FormatError: the bootstrap is damaged. UnsupportedError: it is in TARFS mode.
    """
    size = len(data)
    if size < BLOCK_SIZE or size % BLOCK_SIZE:
        raise FormatError(f"a bootstrap of {size} bytes is not a whole number of {BLOCK_SIZE}-byte blocks")
    superblock = Superblock.unpack(data, SUPERBLOCK_OFFSET)
    extended = ExtendedSuperblock.unpack(data, size)
    count = extended.blob_table_size // BLOB_ENTRY_SIZE
    if count != superblock.devices or count > MAX_BLOBS + 1:
        raise FormatError(f"{superblock.devices} devices, but {count} blobs")
    if DEVICE_SLOTS_OFFSET + count * DEVICE_SLOT_SIZE > size:
        raise FormatError(f"{count} device slots do not fit a bootstrap of {size} bytes")
    check_device_slots(data, DEVICE_SLOTS_OFFSET, count)
    blobs = []
    for index in range(count):
        offset = extended.blob_table_offset + index * BLOB_ENTRY_SIZE
        blob = unpack_blob(data, offset, index, extended.chunk_size)
        if blob_id is not None and blob.has_inlined_id():
            blob.blob_id = blob_id
        blobs.append(blob)
    return Tables(superblock, extended, blobs)


class RecordReader(ABC):
    """Reads the requested records. `budget` is the number of the file's bytes not yet spent on records.

    Its methods raise FormatError for damaged records, and struct.error for offsets outside of the file.
    """

    def __init__(self, data: bytes | memoryview, tables: Tables) -> None:
        self.data = data
        self.blobs = tables.blobs
        self.base = tables.superblock.meta_block * BLOCK_SIZE
        self.shared_xattrs = tables.superblock.xattr_block * BLOCK_SIZE
        self.chunk_size = tables.extended.chunk_size
        start, size = tables.extended.chunk_table_offset, tables.extended.chunk_table_size
        self.chunk_table = memoryview(data)[start : start + size]
        self.budget = len(data)
        self.has_lower_links = False
        self.linked: dict[int, Inode] = {}
        """Files with several names, by nid: hard links share an inode object."""
        self.reached: set[int] = set()
        """The nids of directories read so far."""
        self.named = self.no_names()
        """By nid: 1 for a file with one link whose name was read."""
        # The directory data of the last inode read.
        self._blocks_at = self._tail_at = 0

    @abstractmethod
    def take_chunks(self, inode: Inode, addresses: Sequence[int]) -> list[int]:
        """Assign the chunks of a file. Returns the sizes of its chunks.

        Args:
            addresses: the eight-byte address of each chunk in the inode.
        Raises: KeyError: the chunk table does not have an address.
        """

    def no_names(self) -> bytearray:
        return bytearray(max(len(self.data) - self.base, 0) // SLOT_SIZE + 1)

    def read_root(self, nid: int) -> tuple[Inode, Directory]:
        root = self.read_inode(nid, b"/")
        if root.children is None:
            raise FormatError("the root is not a directory")
        self.reached.add(nid)
        return root, Directory(b"/", nid, nid, root.size, self._blocks_at, self._tail_at)

    def read_entry(
        self, directory: Directory, name: bytes, nid: int, kind: int
    ) -> tuple[Inode, Directory | None]:
        """Read the inode of a directory entry and, if it is a directory, the place of its entries."""
        inode = self.linked.get(nid)
        below = None
        if inode is None:
            if kind == DIRECTORY_TYPE and nid in self.reached:
                raise FormatError(f"directory {name!r} in {directory.path!r} is reached twice")
            inode = self.read_inode(nid, name)
            if inode.children is not None:
                self.reached.add(nid)
                path = directory.path_of(name)
                below = Directory(path, nid, directory.nid, inode.size, self._blocks_at, self._tail_at)
            elif nid not in self.linked:
                if self.named[nid]:
                    path = directory.path_of(name)
                    raise FormatError(f"{path!r} is one more name of a file that should have but one")
                self.named[nid] = 1
        if kind != FILE_TYPES[inode.mode >> 12]:
            raise FormatError(f"{name!r} in {directory.path!r}: file type {kind} for mode {inode.mode:o}")
        return inode, below

    def spend(self, size: int, what: str, name: bytes) -> None:
        self.budget -= size
        if self.budget < 0:
            raise FormatError(f"{what} of {name!r}: more bytes than the bootstrap has, its records overlap")

    def read_inode(self, nid: int, name: bytes) -> Inode:
        """Read an inode of any kind; a directory without its entries."""
        data = self.data
        offset = self.base + nid * SLOT_SIZE
        if offset >= len(data):
            raise FormatError(f"inode of {name!r} at {offset} leaves the bootstrap")
        if data[offset] & 1:
            (layout, icount, mode, size, union, _, uid, gid, mtime, nsec, nlink, magic, mark) = (
                INODE.unpack_from(data, offset)
            )
            inode = Inode(mode, uid, gid, mtime, nsec)
            if magic == MARK_MAGIC:
                inode.mark = mark
                if mark & MARK_LOWER_LINK:
                    self.has_lower_links = True
            end = offset + INODE_SIZE
        else:
            layout, icount, mode, nlink, size, union, _, uid, gid = COMPACT_INODE.unpack_from(data, offset)
            inode = Inode(mode, uid, gid)
            end = offset + COMPACT_INODE_SIZE
        if size < 0 or not FILE_TYPES[mode >> 12]:
            raise FormatError(f"inode of {name!r} at {offset} has mode {mode:o} and size {size}")
        inode.size = size
        self.budget -= end - offset
        if icount:
            xattr_size = 12 + 4 * (icount - 1)
            self.spend(xattr_size, "extended attributes", name)
            if end + xattr_size > len(data):
                raise FormatError(f"extended attributes of {name!r} leave the bootstrap")
            inode.xattrs = unpack_xattrs(data, end, xattr_size, self.shared_xattrs)
            end += xattr_size
        layout = layout >> 1 & 7
        kind = mode >> 12
        if kind == REGULAR:
            self._read_file(inode, layout, end, name)
        elif kind == 4 or kind == 10:
            self._read_flat(inode, layout, union, end, name)
        else:
            inode.rdev = union
        if nlink > 1 and kind != 4:
            self.linked[nid] = inode
        return inode

    def _read_file(self, inode: Inode, layout: int, end: int, name: bytes) -> None:
        if layout != LAYOUT_CHUNK_BASED:
            raise FormatError(f"file {name!r} has data layout {layout}, not chunks")
        size, chunk_size = inode.size, self.chunk_size
        if not size:
            return
        at = (end + 7) & -8
        if size <= chunk_size:
            self.spend(8, "chunks", name)
            addresses = _ADDRESS.unpack_from(self.data, at)
        else:
            count = (size + chunk_size - 1) // chunk_size
            self.spend(8 * count, "chunks", name)
            addresses = Struct(f"<{count}Q").unpack_from(self.data, at)
        try:
            sizes = self.take_chunks(inode, addresses)
        except KeyError as exc:
            raise FormatError(
                f"file {name!r} has chunk {exc.args[0]:#018x}, not in the chunk table"
            ) from None
        last = len(sizes) - 1
        if sizes[last] != size - last * chunk_size:
            raise FormatError(f"file {name!r} of {size} bytes ends with a chunk of another size")
        for inside in sizes[:-1]:
            if inside != chunk_size:
                raise FormatError(f"file {name!r} has a chunk of {inside} bytes inside")

    def _read_flat(self, inode: Inode, layout: int, union: int, end: int, name: bytes) -> None:
        """Locate the data of a directory or symlink: whole blocks, and for FLAT_INLINE a tail."""
        size = inode.size
        self.spend(size, "data", name)
        blocks_at = union * BLOCK_SIZE
        blocks = size // BLOCK_SIZE * BLOCK_SIZE
        if layout == LAYOUT_FLAT_INLINE:
            tail_at = end
            if (end - 1) // BLOCK_SIZE != (end + size - blocks - 1) // BLOCK_SIZE:
                raise FormatError(f"inline data of {name!r} crosses a block")
        elif layout == LAYOUT_FLAT_PLAIN:
            tail_at = blocks_at + blocks
        else:
            raise FormatError(f"{name!r} has unknown data layout {layout}")
        if tail_at + size - blocks > len(self.data) or (blocks and blocks_at + blocks > len(self.data)):
            raise FormatError(f"data of {name!r} leaves the bootstrap")
        if inode.children is not None:
            self._blocks_at, self._tail_at = blocks_at, tail_at
            return
        if not 0 < size <= _MAX_TARGET:
            raise FormatError(f"symlink {name!r} has a target of {size} bytes")
        head = bytes(self.data[blocks_at : blocks_at + blocks]) if blocks else b""
        inode.target = head + bytes(self.data[tail_at : tail_at + size - blocks])
        if b"\0" in inode.target:
            raise FormatError(f"symlink {name!r} has a target with a zero byte")
        inode.size = 0

    def read_dirents(self, directory: Directory) -> Dirents:
        path, nid, parent_nid, size, blocks_at, tail_at = directory
        names: list[bytes] = []
        nids: list[int] = []
        kinds: list[int] = []
        for start in range(0, size, BLOCK_SIZE):
            length = min(BLOCK_SIZE, size - start)
            at = tail_at if length < BLOCK_SIZE else blocks_at + start
            block = bytes(self.data[at : at + length])
            first = _FIRST_NAME_OFFSET.unpack_from(block)[0]
            if not first or first % DIRENT_SIZE or first >= length:
                raise FormatError(f"directory {path!r} has a block with {first} bytes of entries")
            block_nids, begins, block_kinds = zip(*DIRENT.iter_unpack(block[:first]), strict=True)
            ends = (*begins[1:], len(block.rstrip(b"\0")))
            names += [block[begin:end] for begin, end in zip(begins, ends, strict=True)]
            nids += block_nids
            kinds += block_kinds
        _check_names(path, names)
        for name, wanted in ((b"..", parent_nid), (b".", nid)):
            at = names.index(name) if name in names else len(names)
            if nids[at : at + 1] != [wanted]:
                raise FormatError(f'directory {path!r} lacks "." or "..", or they point elsewhere')
            del names[at], nids[at], kinds[at]
        return Dirents(names, nids, kinds)


def _check_names(path: bytes, names: Sequence[bytes]) -> None:
    """Raises: FormatError: a name is invalid, or the names are not in ascending order."""
    joined = b"".join(names)
    if (
        b"/" not in joined
        and b"\0" not in joined
        and max(map(len, names), default=0) <= MAX_NAME
        and all(map(lt, (b"", *names), names))
    ):
        return
    last = b""
    for name in names:
        if not last < name or len(name) > MAX_NAME or b"/" in name or b"\0" in name:
            raise FormatError(f"directory {path!r}: {name!r} after {last!r} is no name, or out of order")
        last = name


def chunk_bounds(blobs: Sequence[Blob]) -> list[tuple[int, int]]:
    """For each blob, the exclusive bound of its chunks' index, and the bound of the end of their content."""
    return [(blob.chunk_count, blob.uncompressed_size) for blob in blobs]


def misplaced_chunk(blob_index: int, index: int, blobs: Sequence[Blob]) -> FormatError:
    """Make the error for a row of the chunk table that violates `chunk_bounds`."""
    if blob_index >= len(blobs) or index >= blobs[blob_index].chunk_count:
        return FormatError(f"chunk table names chunk {index} of blob {blob_index}, which is not there")
    return FormatError(f"chunk {index} of blob {blob_index} lies outside of its blob")
