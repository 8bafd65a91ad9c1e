"""A bootstrap's bytes to a tree.

Everything is bounded by the size of the file: each byte of it may belong to one record only, so a
hostile image that points at one record a million times is refused after reading the file once.
"""

from collections.abc import Callable
from struct import Struct
from struct import error as StructError

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
from nydus_service.rafs.tree import MARK_LOWER_LINK, Blob, Chunk, Inode
from nydus_service.rafs.v6 import CHUNK, ExtendedSuperblock, check_device_slots, unpack_blob

_FIRST_NAME_OFFSET = Struct("<8xH")
_ADDRESS = Struct("<Q")
_MAX_TARGET = 4096
_INODE_WITH_CHUNK = Struct(INODE.format + "Q")
_PLAIN_FILE = 1 | LAYOUT_CHUNK_BASED << 1


class Bootstrap:
    """What a bootstrap holds.

    `flags` are the extended superblock's; `prefetch` lists the inodes of the prefetch table in its
    order, `inode_count` the names in the tree, `has_lower_links` whether an inode is marked
    MARK_LOWER_LINK.
    """

    def __init__(self, superblock: Superblock, extended: ExtendedSuperblock, blobs: list[Blob]) -> None:
        self.superblock = superblock
        self.flags = extended.flags
        self.chunk_size = extended.chunk_size
        self.compressor = extended.compressor
        self.digester = extended.digester
        self.blobs = blobs
        self.root = Inode(0)
        self.prefetch: list[Inode] = []
        self.inode_count = 0
        self.has_lower_links = False


def read_bootstrap(
    data: bytes | memoryview, blob_id: str | None = None, adopt: Callable[[Blob], Blob] | None = None
) -> Bootstrap:
    """Read a whole bootstrap.

    Args:
        data: its bytes, decompressed.
        blob_id: what replaces the placeholder id of a blob whose metadata is inlined in it; by
            convention the name of the bootstrap's file up to the first dot.
        adopt: called with each row of the blob table; chunks will name what it returns.
    Raises:
        FormatError: it is damaged, or hostile; the message names the place.
        UnsupportedError: TARFS mode.
    """
    size = len(data)
    if size < BLOCK_SIZE or size % BLOCK_SIZE:
        raise FormatError(f"a bootstrap of {size} bytes is not a whole number of {BLOCK_SIZE}-byte blocks")
    superblock = Superblock.unpack(data, SUPERBLOCK_OFFSET)
    extended = ExtendedSuperblock.unpack(data, size)
    blobs = _read_blobs(data, superblock, extended, blob_id)
    bootstrap = Bootstrap(superblock, extended, [adopt(blob) for blob in blobs] if adopt else blobs)
    try:
        _TreeReader(data, bootstrap, extended).read()
    except StructError as exc:  # an offset that leaves the file
        raise FormatError(f"a record leaves the bootstrap of {size} bytes: {exc}") from exc
    return bootstrap


def _read_blobs(
    data: bytes | memoryview, superblock: Superblock, extended: ExtendedSuperblock, blob_id: str | None
) -> list[Blob]:
    count = extended.blob_table_size // BLOB_ENTRY_SIZE
    if count != superblock.devices or count > MAX_BLOBS + 1:
        raise FormatError(f"{superblock.devices} devices, but {count} blobs")
    if DEVICE_SLOTS_OFFSET + count * DEVICE_SLOT_SIZE > len(data):
        raise FormatError(f"{count} device slots do not fit a bootstrap of {len(data)} bytes")
    check_device_slots(data, DEVICE_SLOTS_OFFSET, count)
    blobs = []
    for index in range(count):
        offset = extended.blob_table_offset + index * BLOB_ENTRY_SIZE
        blob = unpack_blob(data, offset, index, extended.chunk_size)
        if blob_id is not None and blob.has_inlined_id():
            blob.blob_id = blob_id
        blobs.append(blob)
    return blobs


class _TreeReader:
    """Walks the directories from the root; `budget` is what is left of the file's bytes."""

    def __init__(self, data: bytes | memoryview, bootstrap: Bootstrap, extended: ExtendedSuperblock) -> None:
        self.data = data
        self.bootstrap = bootstrap
        self.base = bootstrap.superblock.meta_block * BLOCK_SIZE
        self.shared_xattrs = bootstrap.superblock.xattr_block * BLOCK_SIZE
        self.chunk_size = extended.chunk_size
        self.budget = len(data)
        self.chunks = self._read_chunks(extended)
        self.prefetch_nids = self._read_prefetch(extended)
        self.linked: dict[int, Inode] = {}
        # Directory data of the inode read last: whole blocks at `blocks_at`, the rest at `tail_at`.
        self.blocks_at = self.tail_at = 0

    def _read_chunks(self, extended: ExtendedSuperblock) -> dict[int, Chunk]:
        """The chunk table, keyed by the eight bytes that stand in an inode for the chunk."""
        offset, size = extended.chunk_table_offset, extended.chunk_table_size
        self.budget -= size
        blobs = self.bootstrap.blobs
        table: dict[int, Chunk] = {}
        for (
            digest,
            blob_index,
            flags,
            stored,
            plain,
            at,
            plain_at,
            file_offset,
            index,
            crc,
        ) in CHUNK.iter_unpack(self.data[offset : offset + size]):
            if blob_index >= len(blobs) or index >= blobs[blob_index].chunk_count:
                raise FormatError(f"chunk table names chunk {index} of blob {blob_index}, which is not there")
            if plain_at % BLOCK_SIZE or plain_at + plain > blobs[blob_index].uncompressed_size:
                raise FormatError(f"chunk {index} of blob {blob_index} lies outside of its blob")
            address = (
                index & 0xFFFF | (blob_index + 1) << 16 | index >> 16 << 24 | plain_at // BLOCK_SIZE << 32
            )
            table[address] = Chunk(
                blobs[blob_index], index, digest, flags, stored, plain, at, plain_at, file_offset, crc
            )
        return table

    def _read_prefetch(self, extended: ExtendedSuperblock) -> list[int]:
        offset, size = extended.prefetch_table_offset, extended.prefetch_table_size
        if not offset:
            return []
        self.budget -= size
        nids = [nid for (nid,) in Struct("<I").iter_unpack(self.data[offset : offset + size])]
        return nids[: nids.index(0)] if 0 in nids else nids

    def read(self) -> None:
        root_nid = self.bootstrap.superblock.root_nid
        root = self._read_inode(root_nid, b"/")
        if root.children is None:
            raise FormatError("the root is not a directory")
        wanted = set(self.prefetch_nids)
        found: dict[int, Inode] = {root_nid: root} if root_nid in wanted else {}
        directories = {root_nid}
        pending = [(root, root_nid, root_nid, b"/", self.blocks_at, self.tail_at)]
        count = 1
        linked = self.linked
        while pending:
            directory, nid, parent_nid, path, blocks_at, tail_at = pending.pop()
            children = directory.children
            assert children is not None
            for name, child_nid, kind in self._read_dirents(
                path, nid, parent_nid, directory.size, blocks_at, tail_at
            ):
                child = linked.get(child_nid)
                if child is None:
                    if child_nid in directories:
                        raise FormatError(f"directory {name!r} in {path!r} is reached twice")
                    child = self._read_inode(child_nid, name)
                    if child.children is not None:
                        directories.add(child_nid)
                        pending.append(
                            (
                                child,
                                child_nid,
                                nid,
                                path.rstrip(b"/") + b"/" + name,
                                self.blocks_at,
                                self.tail_at,
                            )
                        )
                    if child_nid in wanted:
                        found[child_nid] = child
                if kind != FILE_TYPES[child.mode >> 12]:
                    raise FormatError(f"{name!r} in {path!r}: file type {kind} for mode {child.mode:o}")
                children[name] = child
                count += 1
            directory.size = 0
        self.bootstrap.root = root
        self.bootstrap.inode_count = count
        self.bootstrap.prefetch = [found[nid] for nid in self.prefetch_nids if nid in found]

    def _spend(self, size: int, what: str, name: bytes) -> None:
        self.budget -= size
        if self.budget < 0:
            raise FormatError(f"{what} of {name!r}: more bytes than the bootstrap has, its records overlap")

    def _read_inode(self, nid: int, name: bytes) -> Inode:
        data = self.data
        offset = self.base + nid * SLOT_SIZE
        if offset + _INODE_WITH_CHUNK.size <= len(data) and data[offset] == _PLAIN_FILE:
            small = self._read_small_file(nid, offset)
            if small is not None:
                return small
        if data[offset : offset + 1] and data[offset] & 1:
            (layout, icount, mode, size, union, _, uid, gid, mtime, nsec, nlink, magic, mark) = (
                INODE.unpack_from(data, offset)
            )
            inode = Inode(mode, uid, gid, mtime, nsec)
            if magic == MARK_MAGIC:
                inode.mark = mark
                if mark & MARK_LOWER_LINK:
                    self.bootstrap.has_lower_links = True
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
            self._spend(xattr_size, "extended attributes", name)
            if end + xattr_size > len(data):
                raise FormatError(f"extended attributes of {name!r} leave the bootstrap")
            inode.xattrs = unpack_xattrs(data, end, xattr_size, self.shared_xattrs)
            end += xattr_size
        layout = layout >> 1 & 7
        kind = mode >> 12
        if kind == 8:
            self._read_file(inode, layout, end, name)
        elif kind == 4 or kind == 10:
            self._read_flat(inode, layout, union, end, name)
        else:
            inode.rdev = union
        if nlink > 1 and kind != 4:
            self.linked[nid] = inode
        return inode

    def _read_small_file(self, nid: int, offset: int) -> Inode | None:
        """The shortest way to what most inodes are: a file of one chunk, without xattrs."""
        (layout, icount, mode, size, _, _, uid, gid, mtime, nsec, nlink, magic, _, address) = (
            _INODE_WITH_CHUNK.unpack_from(self.data, offset)
        )
        chunk = self.chunks.get(address)
        if (
            chunk is None
            or layout != _PLAIN_FILE
            or icount
            or magic
            or mode >> 12 != 8
            or size != chunk.uncompressed_size
            or size > self.chunk_size
        ):
            return None
        self.budget -= _INODE_WITH_CHUNK.size
        inode = Inode(mode, uid, gid, mtime, nsec)
        inode.size = size
        inode.chunks = [chunk]
        if nlink > 1:
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
            self._spend(8, "chunks", name)
            addresses = _ADDRESS.unpack_from(self.data, at)
        else:
            count = (size + chunk_size - 1) // chunk_size
            self._spend(8 * count, "chunks", name)
            addresses = Struct(f"<{count}Q").unpack_from(self.data, at)
        try:
            inode.chunks = chunks = [self.chunks[address] for address in addresses]
        except KeyError as exc:
            raise FormatError(
                f"file {name!r} has chunk {exc.args[0]:#018x}, not in the chunk table"
            ) from None
        last = len(chunks) - 1
        if chunks[last].uncompressed_size != size - last * chunk_size:
            raise FormatError(f"file {name!r} of {size} bytes ends with a chunk of another size")
        for chunk in chunks[:-1]:
            if chunk.uncompressed_size != chunk_size:
                raise FormatError(f"file {name!r} has a chunk of {chunk.uncompressed_size} bytes inside")

    def _read_flat(self, inode: Inode, layout: int, union: int, end: int, name: bytes) -> None:
        """Find the data of a directory or symlink: whole blocks, and for FLAT_INLINE a tail."""
        size = inode.size
        self._spend(size, "data", name)
        self.blocks_at = union * BLOCK_SIZE
        blocks = size // BLOCK_SIZE * BLOCK_SIZE
        if layout == LAYOUT_FLAT_INLINE:
            self.tail_at = end
            if (end - 1) // BLOCK_SIZE != (end + size - blocks - 1) // BLOCK_SIZE:
                raise FormatError(f"inline data of {name!r} crosses a block")
        elif layout == LAYOUT_FLAT_PLAIN:
            self.tail_at = self.blocks_at + blocks
        else:
            raise FormatError(f"{name!r} has unknown data layout {layout}")
        if self.tail_at + size - blocks > len(self.data) or (
            blocks and self.blocks_at + blocks > len(self.data)
        ):
            raise FormatError(f"data of {name!r} leaves the bootstrap")
        if inode.children is None:
            if not 0 < size <= _MAX_TARGET:
                raise FormatError(f"symlink {name!r} has a target of {size} bytes")
            head = bytes(self.data[self.blocks_at : self.blocks_at + blocks]) if blocks else b""
            inode.target = head + bytes(self.data[self.tail_at : self.tail_at + size - blocks])
            if b"\0" in inode.target:
                raise FormatError(f"symlink {name!r} has a target with a zero byte")
            inode.size = 0

    def _read_dirents(
        self, path: bytes, nid: int, parent_nid: int, size: int, blocks_at: int, tail_at: int
    ) -> list[tuple[bytes, int, int]]:
        """The (name, nid, file type) of a directory, in order, without "." and ".."."""
        data = self.data
        entries: list[tuple[bytes, int, int]] = []
        last = b""
        dots = 0
        for start in range(0, size, BLOCK_SIZE):
            length = min(BLOCK_SIZE, size - start)
            at = tail_at if length < BLOCK_SIZE else blocks_at + start
            block = bytes(data[at : at + length])
            first = _FIRST_NAME_OFFSET.unpack_from(block)[0]
            if not first or first % DIRENT_SIZE or first >= length:
                raise FormatError(f"directory {path!r} has a block with {first} bytes of entries")
            fields = list(DIRENT.iter_unpack(block[:first]))
            ends = [entry[1] for entry in fields[1:]]
            ends.append(length)
            for (child, name_at, kind), name_end in zip(fields, ends, strict=True):
                name = block[name_at:name_end]
                if name_end == length:
                    name = name.rstrip(b"\0")
                if not last < name or len(name) > MAX_NAME or b"/" in name or b"\0" in name:
                    raise FormatError(
                        f"directory {path!r}: {name!r} after {last!r} is no name, or out of order"
                    )
                last = name
                if name == b".":
                    dots += child == nid
                elif name == b"..":
                    dots += child == parent_nid
                else:
                    entries.append((name, child, kind))
        if dots != 2:
            raise FormatError(f'directory {path!r} lacks "." or "..", or they point elsewhere')
        return entries
