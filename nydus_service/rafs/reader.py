"""Reads a bootstrap into a tree."""

from collections.abc import Callable, Sequence
from struct import Struct
from struct import error as StructError

from nydus_service.errors import FormatError
from nydus_service.rafs.constants import BLOCK_SIZE, SLOT_SIZE
from nydus_service.rafs.records import (
    PLAIN_FILE,
    PLAIN_HEAD,
    REGULAR,
    REGULAR_TYPE,
    SINGLE,
    Directory,
    RecordReader,
    Tables,
    chunk_bounds,
    misplaced_chunk,
    read_tables,
)
from nydus_service.rafs.tree import Blob, Chunk, Inode
from nydus_service.rafs.v6 import CHUNK


class Bootstrap:
    """The contents of a bootstrap.

    `flags` are those of the extended superblock. `prefetch` lists the inodes of the prefetch table in its
    order. `inode_count` is the number of names in the tree. `has_lower_links` is True if an inode is marked
    MARK_LOWER_LINK.
    """

    def __init__(self, tables: Tables) -> None:
        extended = tables.extended
        self.superblock = tables.superblock
        self.flags = extended.flags
        self.chunk_size = extended.chunk_size
        self.compressor = extended.compressor
        self.digester = extended.digester
        self.blobs = tables.blobs
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
        blob_id: replaces the placeholder id of a blob with inlined metadata; by convention the name of
            the bootstrap's file up to the first dot.
        adopt: called with each row of the blob table; chunks refer to the row that it returns.
    Raises:
        FormatError: the bootstrap is damaged or hostile; the message names the place.
        UnsupportedError: the bootstrap is in TARFS mode.
    """
    tables = read_tables(data, blob_id)
    if adopt is not None:
        tables = tables._replace(blobs=[adopt(blob) for blob in tables.blobs])
    bootstrap = Bootstrap(tables)
    try:
        _TreeReader(data, tables).read_into(bootstrap)
    except StructError as exc:  # an offset points outside of the file
        raise FormatError(f"a record leaves the bootstrap of {len(data)} bytes: {exc}") from exc
    return bootstrap


def read_chunk_table(table: bytes | memoryview, blobs: Sequence[Blob]) -> dict[int, Chunk]:
    """Read the chunk table, keyed by the eight-byte chunk address in inodes.

    Raises: FormatError: a chunk lies outside of its blob.
    """
    bounds = chunk_bounds(blobs)
    chunks: dict[int, Chunk] = {}
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
    ) in CHUNK.iter_unpack(table):
        count, end = bounds[blob_index] if blob_index < len(bounds) else (0, 0)
        if index >= count or plain_at % BLOCK_SIZE or plain_at + plain > end:
            raise misplaced_chunk(blob_index, index, blobs)
        address = index & 0xFFFF | (blob_index + 1) << 16 | index >> 16 << 24 | plain_at // BLOCK_SIZE << 32
        chunks[address] = Chunk(
            blobs[blob_index], index, digest, flags, stored, plain, at, plain_at, file_offset, crc
        )
    return chunks


class _TreeReader(RecordReader):
    """Reads the directories from the root."""

    def __init__(self, data: bytes | memoryview, tables: Tables) -> None:
        super().__init__(data, tables)
        self.budget -= len(self.chunk_table)
        self._chunks = read_chunk_table(self.chunk_table, self.blobs)
        self._prefetch_nids = self._read_prefetch(tables)
        self._wanted = {*self._prefetch_nids} - {tables.superblock.root_nid}
        self._prefetched: dict[int, Inode] = {}

    def take_chunks(self, inode: Inode, addresses: Sequence[int]) -> list[int]:
        inode.chunks = tuple(self._chunks[address] for address in addresses)
        return [chunk.uncompressed_size for chunk in inode.chunks]

    def _read_prefetch(self, tables: Tables) -> list[int]:
        offset, size = tables.extended.prefetch_table_offset, tables.extended.prefetch_table_size
        if not offset:
            return []
        self.budget -= size
        nids = [nid for (nid,) in Struct("<I").iter_unpack(self.data[offset : offset + size])]
        return nids[: nids.index(0)] if 0 in nids else nids

    def read_into(self, bootstrap: Bootstrap) -> None:
        root_nid = bootstrap.superblock.root_nid
        bootstrap.root, place = self.read_root(root_nid)
        count = 1
        pending = [(bootstrap.root, place)]
        while pending:
            directory, place = pending.pop()
            below = self._read_children(directory, place)
            assert directory.children is not None
            count += len(directory.children)
            directory.size = 0
            pending += below
        found = self._prefetched | {root_nid: bootstrap.root}
        bootstrap.inode_count = count
        bootstrap.prefetch = [found[nid] for nid in self._prefetch_nids if nid in found]
        bootstrap.has_lower_links = self.has_lower_links

    def _read_children(self, directory: Inode, place: Directory) -> list[tuple[Inode, Directory]]:
        """Read the entries of a directory. Returns the directories among them, still empty."""
        children = directory.children
        assert children is not None
        data, base, chunks, chunk_size = self.data, self.base, self._chunks, self.chunk_size
        unpack, last, named = PLAIN_FILE.unpack_from, len(self.data) - PLAIN_FILE.size, self.named
        below: list[tuple[Inode, Directory]] = []
        plain_files = 0
        dirents = self.read_dirents(place)
        for name, nid, kind in zip(*dirents, strict=True):
            at = base + nid * SLOT_SIZE
            if kind == REGULAR_TYPE and at <= last:
                head, mode, size, uid, gid, mtime, nsec, links, address = unpack(data, at)
                chunk = chunks.get(address)
                if (
                    chunk is not None
                    and head == PLAIN_HEAD
                    and links == SINGLE
                    and mode >> 12 == REGULAR
                    and size == chunk.uncompressed_size
                    and size <= chunk_size
                    and not named[nid]
                ):
                    named[nid] = 1
                    plain_files += 1
                    children[name] = inode = Inode(mode, uid, gid, mtime, nsec)
                    inode.size = size
                    inode.chunks = (chunk,)
                    continue
            children[name], inside = self.read_entry(place, name, nid, kind)
            if inside is not None:
                below.append((children[name], inside))
        self.spend(plain_files * PLAIN_FILE.size, "inodes", place.path)
        if self._wanted:
            for name, nid, _ in zip(*dirents, strict=True):
                if nid in self._wanted:
                    self._prefetched[nid] = children[name]
        return below
