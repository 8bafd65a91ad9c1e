"""Reads a bootstrap's directories one by one, for callers that examine each file once and keep nothing.

Reading is bounded and detects damage as in `reader`, but only in the parts that are read. If two rows of the
chunk table have the same index, which no builder writes, the first row is ignored.

Files in a bootstrap are in the order of their chunks' indexes, but the chunk table is in the order of the
digests. Looking up consecutive chunks in the table would access memory at random, which is slow. So the
required fields of the table are first copied into the order of the indexes.
"""

from collections.abc import Mapping, Sequence
from struct import Struct
from struct import error as StructError

from nydus_service.errors import FormatError
from nydus_service.rafs.constants import BLOCK_SIZE, CHUNK_ENTRY_SIZE, SLOT_SIZE
from nydus_service.rafs.records import (
    PLAIN_FILE,
    PLAIN_HEAD,
    REGULAR,
    REGULAR_TYPE,
    SINGLE,
    Directory,
    RecordReader,
    chunk_bounds,
    misplaced_chunk,
    read_tables,
)
from nydus_service.rafs.tree import Inode

PlainFile = tuple[int, int, int, int, int, int, bytes]
"""A regular file with one name, at most one chunk and no xattrs: mode, uid, gid, mtime, its nanoseconds,
size, digest of the chunk or b""."""

_ROW = Struct("<32sI8xI8xQ8xI4x")
"""The fields read from a row of the chunk table: digest, blob_index, plain size and offset, index."""
_CONTENT = Struct("<II32s")
"""The fields kept of a row: plain block and size, digest. All zero: the row does not exist."""
_PART = 1 << 16
"""Chunks per part: the low 16 bits of an address. The next 16 are the blob and the rest of the index."""
_SPARSE = 4
"""The maximum ratio of the copy to the chunk table, in rows; the copy also has rows for unused chunks."""


class Listing(RecordReader):
    """The tree of a bootstrap. Each directory can be read once; `rewind` starts again.

    Hard links share an inode object. Inodes have no children and chunks; `entries` and `digests` return them.
    """

    def __init__(self, data: bytes | memoryview, blob_id: str | None = None) -> None:
        """Read everything except the tree. Arguments and errors are as for `reader.read_bootstrap`."""
        tables = read_tables(data, blob_id)
        super().__init__(data, tables)
        self.compressor = tables.extended.compressor
        self.digester = tables.extended.digester
        self._root_nid = tables.superblock.root_nid
        # _CONTENT of the chunks of each part, in order. Blobs of which the image uses too few chunks have no
        # parts; size and digest of their chunks are kept by address.
        self._parts = self._make_parts()
        self._scattered: dict[int, tuple[int, bytes]] = {}
        self._digests: dict[Inode, bytes] = {}
        self._places: dict[Inode, Directory] = {}
        try:
            self._read_rows()
        except StructError as exc:
            raise self._left_file(exc) from exc
        self.rewind()

    def rewind(self) -> None:
        """Forget which directories have been read. `root` is a new inode object afterwards."""
        self.budget = len(self.data) - len(self.chunk_table)
        self.reached.clear()
        self.named = self.no_names()
        try:
            self.root, place = self.read_root(self._root_nid)
        except StructError as exc:
            raise self._left_file(exc) from exc
        self._places = {self.root: place}

    def entries(self, directory: Inode) -> Mapping[bytes, Inode | PlainFile]:
        """The entries of a directory, by name. Raises: FormatError: the directory is damaged."""
        try:
            return self._read_entries(self._places.pop(directory))
        except StructError as exc:
            raise self._left_file(exc) from exc

    def digests(self, file: Inode) -> bytes:
        """The digests of a file's chunks, concatenated."""
        return self._digests.get(file, b"")

    def take_chunks(self, inode: Inode, addresses: Sequence[int]) -> list[int]:
        found = [self._find(address) for address in addresses]
        self._digests[inode] = b"".join(digest for _, digest in found)
        return [size for size, _ in found]

    def _find(self, address: int) -> tuple[int, bytes]:
        """Size and digest of a chunk. Raises: KeyError: the chunk table does not have the chunk."""
        part = self._parts.get(address >> 16 & 0xFFFF)
        if part is None:
            return self._scattered[address]
        at = (address & 0xFFFF) * _CONTENT.size
        if at < len(part):
            block, size, digest = _CONTENT.unpack_from(part, at)
            if size and block == address >> 32:
                return size, digest
        raise KeyError(address)

    def _left_file(self, exc: StructError) -> FormatError:
        return FormatError(f"a record leaves the bootstrap of {len(self.data)} bytes: {exc}")

    def _make_parts(self) -> dict[int, bytearray]:
        parts = {}
        room = _SPARSE * len(self.chunk_table) // CHUNK_ENTRY_SIZE
        for blob_index, blob in enumerate(self.blobs):
            if blob.chunk_count <= room:
                room -= blob.chunk_count
                for first in range(0, blob.chunk_count, _PART):
                    size = min(blob.chunk_count - first, _PART) * _CONTENT.size
                    parts[first >> 16 << 8 | blob_index + 1] = bytearray(size)
        return parts

    def _read_rows(self) -> None:
        """Copy the chunk table."""
        blobs, parts, pack, content_size = self.blobs, self._parts, _CONTENT.pack_into, _CONTENT.size
        bounds = chunk_bounds(blobs)
        for digest, blob_index, plain, plain_at, index in _ROW.iter_unpack(self.chunk_table):
            count, end = bounds[blob_index] if blob_index < len(bounds) else (0, 0)
            if index >= count or plain_at % BLOCK_SIZE or plain_at + plain > end:
                raise misplaced_chunk(blob_index, index, blobs)
            number = index >> 16 << 8 | blob_index + 1
            if number in parts:
                pack(parts[number], (index & 0xFFFF) * content_size, plain_at // BLOCK_SIZE, plain, digest)
            else:
                address = index & 0xFFFF | number << 16 | plain_at // BLOCK_SIZE << 32
                self._scattered[address] = plain, digest

    def _read_entries(self, place: Directory) -> dict[bytes, Inode | PlainFile]:
        data, base, parts, chunk_size = self.data, self.base, self._parts, self.chunk_size
        unpack, last = PLAIN_FILE.unpack_from, len(data) - PLAIN_FILE.size
        unpack_content, content_size = _CONTENT.unpack_from, _CONTENT.size
        found: dict[bytes, Inode | PlainFile] = {}
        named = self.named
        plain_files = 0
        for name, nid, kind in zip(*self.read_dirents(place), strict=True):
            at = base + nid * SLOT_SIZE
            if kind == REGULAR_TYPE and at <= last:
                head, mode, size, uid, gid, mtime, nsec, links, address = unpack(data, at)
                if head == PLAIN_HEAD and links == SINGLE and mode >> 12 == REGULAR:
                    try:
                        part = parts[address >> 16 & 0xFFFF]
                        block, plain, digest = unpack_content(part, (address & 0xFFFF) * content_size)
                    except (KeyError, StructError):
                        block = plain = 0
                    if 0 < size <= chunk_size and size == plain and block == address >> 32 and not named[nid]:
                        named[nid] = 1
                        plain_files += 1
                        found[name] = mode, uid, gid, mtime, nsec, size, digest
                        continue
            inode, below = self.read_entry(place, name, nid, kind)
            found[name] = inode
            if below is not None:
                self._places[inode] = below
        self.spend(plain_files * PLAIN_FILE.size, "inodes", place.path)
        return found
