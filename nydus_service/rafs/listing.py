"""A bootstrap's directories, read one by one: for who looks at each file once, and keeps nothing.

Reading is bounded and what is damaged is found as in `reader`, but only where somebody looks. Of two rows
of the chunk table that claim one index, which no builder writes, the first is not found.

Files lie in a bootstrap in the order of their chunks' indexes, but the chunk table in that of the digests:
to look up one chunk after the other there would be slow, memory being slow at random places. So what is
wanted of the table is first copied into the order of the indexes.
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
"""A regular file with one name, one chunk at most and no xattrs: mode, uid, gid, mtime, its nanoseconds,
size, digest of the chunk or b""."""

_ROW = Struct("<32sI8xI8xQ8xI4x")
"""A row of the chunk table, as far as it counts: digest, blob_index, size and offset when plain, index."""
_CONTENT = Struct("<II32s")
"""What is kept of a row: block and size when plain, digest. All zero: there is no such row."""
_PART = 1 << 16
"""Chunks that the lowest bits of an address tell apart; the next 16 are the blob and more of the index."""
_SPARSE = 4
"""How many times as long as the chunk table the copy may be, by chunks that the image does not use."""


class Listing(RecordReader):
    """The tree of a bootstrap. Each directory can be read once; `rewind` begins anew.

    A hard link is the same inode again. Inodes come without children and chunks: `entries` and `digests`
    give these.
    """

    def __init__(self, data: bytes | memoryview, blob_id: str | None = None) -> None:
        """Read all that is not of the tree. Arguments and errors as of `reader.read_bootstrap`."""
        tables = read_tables(data, blob_id)
        super().__init__(data, tables)
        self.compressor = tables.extended.compressor
        self.digester = tables.extended.digester
        self._root_nid = tables.superblock.root_nid
        # _CONTENT of the chunks of a part, in order. Blobs of which the image uses too little have none:
        # size and digest of their chunks are kept by address.
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
        """Forget which directories have been read. `root` is another inode afterwards."""
        self.budget = len(self.data) - len(self.chunk_table)
        self.reached.clear()
        self.named = self.no_names()
        try:
            self.root, place = self.read_root(self._root_nid)
        except StructError as exc:
            raise self._left_file(exc) from exc
        self._places = {self.root: place}

    def entries(self, directory: Inode) -> Mapping[bytes, Inode | PlainFile]:
        """What is in a directory, by name. Raises: FormatError: it is damaged."""
        try:
            return self._read_entries(self._places.pop(directory))
        except StructError as exc:
            raise self._left_file(exc) from exc

    def digests(self, file: Inode) -> bytes:
        """The digests of a file's chunks, joined."""
        return self._digests.get(file, b"")

    def take_chunks(self, inode: Inode, addresses: Sequence[int]) -> list[int]:
        found = [self._find(address) for address in addresses]
        self._digests[inode] = b"".join(digest for _, digest in found)
        return [size for size, _ in found]

    def _find(self, address: int) -> tuple[int, bytes]:
        """Size and digest of a chunk. Raises: KeyError: it is not there."""
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
        """Take in the chunk table."""
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
