"""Writes a tree as a bootstrap.

    0     superblocks, device slots
    B     blob table, prefetch table
    M     metadata area: one empty block, then inodes and directory blocks
    C     chunk table

B, M and C are multiples of 4096 bytes. There are two passes. The first walks the tree and places every record
(`allocator`), which determines the sizes of the tables. The second writes. Both visit directories in the same
order: all children of a directory, sorted by name, before the children of the first directory among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from struct import Struct
from typing import NamedTuple

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.rafs.allocator import Allocator
from nydus_service.rafs.constants import (
    BLOB_ENTRY_SIZE,
    BLOB_INLINED_CHUNK_DIGEST,
    BLOCK_BITS,
    BLOCK_SIZE,
    CHUNK_ENTRY_SIZE,
    CHUNK_FORMAT_INDEXES,
    DEVICE_SLOT_SIZE,
    DEVICE_SLOTS_OFFSET,
    FLAG_COMPRESSION,
    FLAG_DIGEST,
    FLAG_ENCRYPTION_AES_XTS,
    FLAG_ENCRYPTION_NONE,
    FLAG_EXPLICIT_UID_GID,
    FLAG_HAS_XATTR,
    FLAG_INLINED_CHUNK_DIGEST,
    LAYOUT_CHUNK_BASED,
    LAYOUT_FLAT_PLAIN,
    MAX_BLOBS,
    MAX_NAME,
    MAX_SYMLINK,
    SLOT_SIZE,
    SUPERBLOCK_OFFSET,
    align,
)
from nydus_service.rafs.erofs import (
    DIRENT,
    DIRENT_SIZE,
    FILE_TYPES,
    INODE,
    INODE_SIZE,
    MARK_MAGIC,
    Superblock,
    pack_xattrs,
)
from nydus_service.rafs.tree import Blob, Chunk, Inode, walk
from nydus_service.rafs.v6 import (
    CHUNK,
    EXTENDED_SUPERBLOCK_OFFSET,
    ExtendedSuperblock,
    pack_blob,
    pack_device_slots,
)

_ADDRESS = Struct("<HBBI")
"""The address of a chunk in an inode. Columns: offset, size, field.

  0  2  index in the blob's chunk-info table, bits 0-15
  2  1  blob_index + 1; 0 is the bootstrap itself
  3  1  index, bits 16-23
  4  4  uncompressed offset in the blob, in blocks

Source: nydus rafs/src/metadata/layout/v6.rs, `RafsV6InodeChunkAddr`.
"""
_INODE_WITH_CHUNK = Struct(INODE.format + _ADDRESS.format[1:])
_DIGEST_OF_ENTRY = itemgetter(slice(32))


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """Properties of a whole image: chunk size in bytes, default algorithms, explicit owners of files.

    `merged` images always have the flag for extended attributes. `encrypted` is about the layers' own blobs,
    even those without chunks, and not about those of a chunk dictionary.
    """

    chunk_size: int
    compressor: str
    digester: str
    explicit_uid_gid: bool = True
    merged: bool = False
    encrypted: bool = False


class _PlacedDirectory(NamedTuple):
    inode: Inode
    names: list[bytes]
    """Includes "." and ".."; sorted."""
    inodes: list[Inode]
    """The inodes of the names."""
    data_size: int
    data: int
    layout: int
    xattrs: bytes


class _PlacedSymlink(NamedTuple):
    data: int
    layout: int


@dataclass(slots=True)
class _Placement:
    """The result of the first pass."""

    root: Inode
    directories: list[_PlacedDirectory] = field(default_factory=list)
    others: list[Inode] = field(default_factory=list)
    symlinks: dict[int, _PlacedSymlink] = field(default_factory=dict)  # by nid
    xattrs: dict[int, bytes] = field(default_factory=dict)  # packed, by nid, if not empty
    blobs: dict[Blob, int] = field(default_factory=dict)
    names: int = 0
    end: int = 0
    has_xattrs: bool = False


def write_bootstrap(
    root: Inode,
    image: ImageFormat,
    blobs: Sequence[Blob] | None = None,
    prefetch: Sequence[Inode] = (),
) -> tuple[bytearray, list[Blob]]:
    """Lay out and write a tree.

    Args:
        root: its root directory.
        image: format of the whole image.
        blobs: the rows of the blob table. None: the blobs in use, in the order of their first use.
        prefetch: inodes for the prefetch table, which is omitted without blobs.
    Returns:
        The bootstrap, a multiple of 4096 bytes, and the rows of its blob table.
    Raises:
        FormatError: the format cannot represent the tree: too many blobs, or a name or a target too long.
        UnsupportedError: the extended attributes of one inode do not fit.
    """
    placement = _place(root)
    table = list(placement.blobs) if blobs is None else list(blobs)
    if len(table) > MAX_BLOBS:
        raise FormatError(f"{len(table)} blobs in one image; RAFS v6 holds at most {MAX_BLOBS}")
    placement.blobs = {blob: index for index, blob in enumerate(table)}
    prefetch_nids = [inode.nid for inode in prefetch] if table else []

    blob_table = align(DEVICE_SLOTS_OFFSET + DEVICE_SLOT_SIZE * len(table), BLOCK_SIZE)
    prefetch_table = blob_table + BLOB_ENTRY_SIZE * len(table)
    base = align(prefetch_table + 4 * len(prefetch_nids), BLOCK_SIZE) if table else 0
    chunk_table = align(base + placement.end, BLOCK_SIZE)

    out = bytearray(chunk_table)
    chunk_count = _TreeWriter(out, base, image.chunk_size, placement).write()
    out += bytes(-len(out) % BLOCK_SIZE)

    slots, blocks = pack_device_slots(table, len(out))
    superblock = Superblock(placement.names, blocks, base // BLOCK_SIZE, len(table))
    extended = ExtendedSuperblock(
        flags=_flags(image, table, placement.has_xattrs),
        blob_table_offset=blob_table,
        blob_table_size=BLOB_ENTRY_SIZE * len(table),
        chunk_size=image.chunk_size,
        chunk_table_offset=chunk_table,
        chunk_table_size=CHUNK_ENTRY_SIZE * chunk_count,
        prefetch_table_offset=prefetch_table if prefetch_nids else 0,
        prefetch_table_size=4 * len(prefetch_nids),
    )
    _put(out, SUPERBLOCK_OFFSET, superblock.pack())
    _put(out, EXTENDED_SUPERBLOCK_OFFSET, extended.pack())
    _put(out, DEVICE_SLOTS_OFFSET, slots)
    _put(out, blob_table, b"".join(pack_blob(blob, index) for index, blob in enumerate(table)))
    _put(out, prefetch_table, Struct(f"<{len(prefetch_nids)}I").pack(*prefetch_nids))
    return out, table


def _put(out: bytearray, offset: int, data: bytes) -> None:
    out[offset : offset + len(data)] = data


def _flags(image: ImageFormat, blobs: Sequence[Blob], has_xattrs: bool) -> int:
    flags = FLAG_COMPRESSION[image.compressor] | FLAG_DIGEST[image.digester]
    if image.explicit_uid_gid:
        flags |= FLAG_EXPLICIT_UID_GID
    if has_xattrs or image.merged:
        flags |= FLAG_HAS_XATTR
    if all(blob.features & BLOB_INLINED_CHUNK_DIGEST for blob in blobs):
        flags |= FLAG_INLINED_CHUNK_DIGEST
    return flags | (FLAG_ENCRYPTION_AES_XTS if image.encrypted else FLAG_ENCRYPTION_NONE)


def directory_size(names: Sequence[bytes]) -> int:
    """Bytes of a directory's data for its sorted names, including "." and "..".

    An entry that does not fit the rest of a block starts a new block; all blocks but the last count in full.
    """
    size = DIRENT_SIZE * len(names) + sum(map(len, names))
    if size <= BLOCK_SIZE:
        return size
    full, used = 0, 0
    for name in names:
        need = DIRENT_SIZE + len(name)
        if used + need > BLOCK_SIZE:
            full += BLOCK_SIZE
            used = 0
        used += need
    return full + used


def _place(root: Inode) -> _Placement:
    """Run the first pass: assign every inode its place, sequence number and link count."""
    placement = _Placement(root)
    allocator = Allocator()
    _forget_places(root)
    ino = root.ino = 1
    pending = [(root, root)]
    while pending:
        directory, parent = pending.pop()
        assert directory.children is not None
        entries = directory.children | {b".": directory, b"..": parent}
        names = sorted(entries)
        longest = max(names, key=len)
        if len(longest) > MAX_NAME:
            raise FormatError(f"the name {longest[:64]!r}… has {len(longest)} bytes, at most {MAX_NAME} fit")
        inodes = [entries[name] for name in names]
        _place_directory(directory, names, inodes, allocator, placement)
        below = []
        for name, child in zip(names, inodes, strict=True):
            if child.children is not None:
                if child is not directory and child is not parent:
                    ino += 1
                    child.ino = ino
                    below.append((child, directory))
            else:
                ino += 1
                child.nlink += 1
                if child.nlink == 1:
                    child.ino = ino
                    _place_child(child, name, allocator, placement)
        directory.nlink = 2 + len(below)
        pending.extend(reversed(below))
    placement.names = ino
    placement.end = allocator.end
    return placement


def _forget_places(root: Inode) -> None:
    pending = [root]
    while pending:
        inode = pending.pop()
        inode.nlink = 0
        if inode.children:
            for child in inode.children.values():
                if child.children is not None:
                    pending.append(child)
                else:
                    child.nlink = 0


def _packed_xattrs(inode: Inode, placement: _Placement) -> bytes:
    placement.has_xattrs = True
    try:
        return pack_xattrs(sorted(inode.xattrs.items()))
    except (FormatError, UnsupportedError) as exc:
        path = next(path for path, each in walk(placement.root) if each is inode)
        raise type(exc)(f"{path.decode(errors='backslashreplace')!r}: {exc}") from exc


def _place_directory(
    inode: Inode, names: list[bytes], inodes: list[Inode], allocator: Allocator, placement: _Placement
) -> None:
    xattrs = _packed_xattrs(inode, placement) if inode.xattrs else b""
    size = directory_size(names)
    offset, data, layout = allocator.place_with_data(INODE_SIZE + len(xattrs), size)
    inode.nid = offset // SLOT_SIZE
    placement.directories.append(_PlacedDirectory(inode, names, inodes, size, data, layout, xattrs))


def _place_child(inode: Inode, name: bytes, allocator: Allocator, placement: _Placement) -> None:
    placement.others.append(inode)
    xattrs = _packed_xattrs(inode, placement) if inode.xattrs else b""
    size = INODE_SIZE + len(xattrs)
    kind = inode.mode >> 12
    if kind == 8:
        if inode.chunks:
            size = (size + 7 & -8) + 8 * len(inode.chunks)
            blobs = placement.blobs
            for chunk in inode.chunks:
                if chunk.blob not in blobs:
                    blobs[chunk.blob] = len(blobs)
        else:
            size = size + 7 & -8
        inode.nid = allocator.place_record(size) // SLOT_SIZE
    elif kind == 10:
        if not 0 < len(inode.target) <= MAX_SYMLINK:
            raise FormatError(
                f"symlink {name!r} has a target of {len(inode.target)} bytes; 1 to {MAX_SYMLINK} fit"
            )
        offset, data, layout = allocator.place_with_data(size, len(inode.target))
        inode.nid = offset // SLOT_SIZE
        placement.symlinks[inode.nid] = _PlacedSymlink(data, layout)
    else:
        inode.nid = allocator.place_special(size) // SLOT_SIZE
    if xattrs:
        placement.xattrs[inode.nid] = xattrs


class _TreeWriter:
    """The second pass: writes inodes and directories to `out`, and the chunk table after them."""

    def __init__(self, out: bytearray, base: int, chunk_size: int, placement: _Placement) -> None:
        self.out = out
        self.base = base
        self.chunk_size = chunk_size
        self.chunk_format = CHUNK_FORMAT_INDEXES | (chunk_size.bit_length() - 1 - BLOCK_BITS)
        self.placement = placement
        self.blobs = placement.blobs
        self.table: dict[int, Chunk] = {}

    def write(self) -> int:
        """Write the tree. Returns the number of entries of the chunk table."""
        for placed in self.placement.directories:
            self._write_directory(placed)
        self._write_others()
        self.placement.directories.clear()
        self.placement.others.clear()
        count = len(self.table)
        self._append_chunks()
        return count

    def _append_chunks(self) -> None:
        """Append the chunk table, sorted by digest, and entries of equal digests by blob and index.

        Digests are distributed evenly, so entries are split into lists by their first byte, which sort
        faster. Entries are freed as soon as they are written: with many chunks, two copies of the table are a
        large part of the memory used.
        """
        pack = CHUNK.pack
        lists: list[list[bytes]] = [[] for _ in range(256)]
        for key in sorted(self.table):
            chunk = self.table[key]
            digest = chunk.digest
            entry = pack(
                digest,
                key >> 24,
                chunk.flags,
                chunk.compressed_size,
                chunk.uncompressed_size,
                chunk.compressed_offset,
                chunk.uncompressed_offset,
                chunk.file_offset,
                chunk.index,
                chunk.crc32,
            )
            lists[digest[0]].append(entry)
        self.table.clear()
        for entries in lists:
            entries.sort(key=_DIGEST_OF_ENTRY)
            self.out += b"".join(entries)
            entries.clear()

    def _inode_fields(
        self, inode: Inode, layout: int, xattrs: bytes, size: int, union: int
    ) -> tuple[int, ...]:
        return (
            1 | layout << 1,
            (len(xattrs) - 12) // 4 + 1 if xattrs else 0,
            inode.mode,
            size,
            union,
            inode.ino,
            inode.uid,
            inode.gid,
            inode.mtime,
            inode.mtime_nsec,
            inode.nlink,
            MARK_MAGIC if inode.mark else 0,
            inode.mark,
        )

    def _write_directory(self, placed: _PlacedDirectory) -> None:
        inode = placed.inode
        at = self.base + inode.nid * SLOT_SIZE
        union = (self.base + placed.data) // BLOCK_SIZE
        fields = self._inode_fields(inode, placed.layout, placed.xattrs, placed.data_size, union)
        INODE.pack_into(self.out, at, *fields)
        at += INODE_SIZE
        if placed.xattrs:
            _put(self.out, at, placed.xattrs)
            at += len(placed.xattrs)
        blocks = self._dirent_blocks(placed)
        self._write_data(blocks, at, placed.data, placed.layout)

    def _write_data(self, blocks: list[bytes], tail_at: int, data: int, layout: int) -> None:
        """Write whole blocks at `data`; a partial last block follows them, or the inode if inline."""
        for index, block in enumerate(blocks):
            inline = len(block) < BLOCK_SIZE and layout != LAYOUT_FLAT_PLAIN and index == len(blocks) - 1
            _put(self.out, tail_at if inline else self.base + data + index * BLOCK_SIZE, block)

    def _dirent_blocks(self, placed: _PlacedDirectory) -> list[bytes]:
        """A directory's data as blocks; all but the last are padded with zeros."""
        names, inodes = placed.names, placed.inodes
        if placed.data_size <= BLOCK_SIZE:
            return [_dirent_block(names, inodes)]
        blocks: list[bytes] = []
        first = used = 0
        for index, name in enumerate(names):
            need = DIRENT_SIZE + len(name)
            if used + need > BLOCK_SIZE:
                block = _dirent_block(names[first:index], inodes[first:index])
                blocks.append(block.ljust(BLOCK_SIZE, b"\0"))
                first, used = index, 0
            used += need
        blocks.append(_dirent_block(names[first:], inodes[first:]))
        return blocks

    def _write_others(self) -> None:
        """Write all inodes but directories. Most are files of one chunk, which take one `pack_into`."""
        out, base, table, blobs = self.out, self.base, self.table, self.blobs
        pack_into = _INODE_WITH_CHUNK.pack_into
        chunk_format = self.chunk_format
        for inode in self.placement.others:
            chunks = inode.chunks
            if len(chunks) != 1 or inode.xattrs:
                if chunks:
                    self._write_file(inode)
                else:
                    self._write_empty(inode)
                continue
            chunk = chunks[0]
            index = chunk.index
            blob_index = blobs[chunk.blob]
            table[blob_index << 24 | index] = chunk
            pack_into(
                out,
                base + inode.nid * SLOT_SIZE,
                1 | LAYOUT_CHUNK_BASED << 1,
                0,
                inode.mode,
                inode.size,
                chunk_format,
                inode.ino,
                inode.uid,
                inode.gid,
                inode.mtime,
                inode.mtime_nsec,
                inode.nlink,
                0,
                0,
                index & 0xFFFF,
                blob_index + 1,
                index >> 16,
                chunk.uncompressed_offset >> BLOCK_BITS,
            )

    def _write_empty(self, inode: Inode) -> None:
        """Write an inode without content."""
        at = self.base + inode.nid * SLOT_SIZE
        xattrs = self.placement.xattrs.get(inode.nid, b"")
        kind = inode.mode >> 12
        if kind == 10:
            placed = self.placement.symlinks[inode.nid]
            union = (self.base + placed.data) // BLOCK_SIZE
            fields = self._inode_fields(inode, placed.layout, xattrs, len(inode.target), union)
            self._write_data([inode.target], at + INODE_SIZE + len(xattrs), placed.data, placed.layout)
        elif kind == 8:
            fields = self._inode_fields(inode, LAYOUT_CHUNK_BASED, xattrs, 0, self.chunk_format)
        else:
            fields = self._inode_fields(inode, LAYOUT_FLAT_PLAIN, xattrs, inode.size, inode.rdev)
        INODE.pack_into(self.out, at, *fields)
        if xattrs:
            _put(self.out, at + INODE_SIZE, xattrs)

    def _write_file(self, inode: Inode) -> None:
        """Write a file with any number of chunks."""
        at = self.base + inode.nid * SLOT_SIZE
        xattrs = self.placement.xattrs.get(inode.nid, b"")
        fields = self._inode_fields(inode, LAYOUT_CHUNK_BASED, xattrs, inode.size, self._chunk_format(inode))
        INODE.pack_into(self.out, at, *fields)
        at += INODE_SIZE
        if xattrs:
            _put(self.out, at, xattrs)
            at += len(xattrs)
        _put(self.out, align(at, 8), b"".join(map(self._use, inode.chunks)))

    def _use(self, chunk: Chunk) -> bytes:
        """Add a chunk to the table. Returns its address."""
        index = chunk.index
        blob_index = self.blobs[chunk.blob]
        self.table[blob_index << 24 | index] = chunk
        block = chunk.uncompressed_offset >> BLOCK_BITS
        return _ADDRESS.pack(index & 0xFFFF, blob_index + 1, index >> 16, block)

    def _chunk_format(self, inode: Inode) -> int:
        """i_u: the kernel's chunk size of the file. Contiguous chunks are one chunk of the file's size."""
        chunks = inode.chunks
        if len(chunks) < 2:
            return self.chunk_format
        first = chunks[0]
        offset = first.uncompressed_offset
        for chunk in chunks:
            if chunk.uncompressed_offset != offset or chunk.blob is not first.blob:
                return self.chunk_format
            offset += self.chunk_size
        return CHUNK_FORMAT_INDEXES | ((inode.size - 1).bit_length() - BLOCK_BITS)


def _dirent_block(names: Sequence[bytes], inodes: Sequence[Inode]) -> bytes:
    pack = DIRENT.pack
    entries = []
    name_at = DIRENT_SIZE * len(names)
    for name, inode in zip(names, inodes, strict=True):
        entries.append(pack(inode.nid, name_at, FILE_TYPES[inode.mode >> 12]))
        name_at += len(name)
    return b"".join((*entries, *names))
