"""Reads the entries of a layer tar as a stream: ustar, v7, GNU, PAX and star, as in containerd.

    reader = LayerTarReader(pieces.read)
    for entry in reader:
        if entry.kind == REGULAR:
            content = reader.read_whole()   # or: for chunk in reader.chunks(1 << 20)

The position: `_view` is the current piece, `_base` the offset of its first byte in the stream, and `_pos` the
current position in it. `_next` is the offset in the stream of the next header, which is known as soon as an
entry's own header is, so that unread content is skipped at no cost. Pieces are not copied; only data that
spans two pieces is joined.

The end of the archive is its end mark, two zero blocks, or the end of the stream, whichever comes first. A
single zero block before an entry is refused. Extension headers without an entry are ignored, and of two of
one type before one entry the last counts. Entries that name no file are left out: those with an empty name,
and those of the root that are no directory. All of this follows Go's archive/tar and containerd.

Old GNU sparse files and contiguous files (typeflag 7), which containerd refuses, are read.
"""

from collections.abc import Callable, Iterator
from typing import Final
from zlib import adler32

from nydus_service.errors import FormatError
from nydus_service.layertar.entry import (
    BLOCK,
    CHAR,
    DIRECTORY,
    FIFO,
    GLOBAL_HEADER,
    HARDLINK,
    NO_XATTRS,
    REGULAR,
    SYMLINK,
    Extensions,
    TarEntry,
)
from nydus_service.layertar.header import (
    BLOCK_SIZE,
    CHECKSUM,
    HEADER,
    ID_KEPT,
    LINKNAME,
    MAGIC,
    PATH_MAX,
    ZERO_BLOCK,
    BadEntryError,
    adler_of_checksum,
    bound_time,
    clean_path,
    parse_devices,
    parse_number,
    parse_pax,
    prefix_of,
    text,
    verify_checksum,
)
from nydus_service.layertar.sparse import Runs, SparseMap, read_old_gnu, read_pax

__all__ = [
    "BLOCK", "CHAR", "DIRECTORY", "EXTENSION_MAX", "FIFO", "GLOBAL_HEADER", "HARDLINK", "ID_KEPT", "REGULAR",
    "SYMLINK", "ZEROS", "LayerTarReader", "TarEntry",
]  # fmt: skip

ZEROS: Final = bytes(1 << 20)
"""The object that `chunks` yields for each whole chunk of a hole, if chunks have this size."""

EXTENSION_MAX: Final = 8 << 20
"""Maximum bytes of a PAX header or a GNU long name, which are held in memory; larger ones are refused."""

_KINDS = {
    b"0": REGULAR,
    b"\0": REGULAR,
    b"7": REGULAR,
    b"S": REGULAR,
    b"1": HARDLINK,
    b"2": SYMLINK,
    b"3": CHAR,
    b"4": BLOCK,
    b"5": DIRECTORY,
    b"6": FIFO,
}
_EXTENSIONS = frozenset((b"x", b"g", b"L", b"K"))
_FIELDS_KEPT = 1 << 14
"""The number of distinct numeric fields whose values a reader caches."""
_TIME_USUAL = 1 << 33
"""Seconds since 1970 below which a time needs no bounds check."""
_NAME_SHOWN = 200
_TRUNCATED = "the tar ends inside it: the layer is truncated"

Fields = tuple[bytes, bytes, bytes, bytes, bytes, bytes, int, bytes, int]
"""A header as unpacked by `HEADER`."""


class LayerTarReader:
    """Iterates over the entries of one layer. An entry's content can be read once, before the next entry.

    `end` is set when the iteration has ended: the offset in the stream behind the archive's end mark.

    Args:
        read: returns the next piece of the stream, b"" at its end. A piece must not change while chunks from
            `chunks` are in use, because chunks are views of it where possible.
    Raises (all of its methods):
        FormatError: the stream is not a tar, is damaged or ends too early.
    """

    def __init__(self, read: Callable[[], bytes | memoryview]) -> None:
        self.end = 0
        self._read = read
        self._view = memoryview(b"")
        self._end = 0  # length of _view
        self._base = 0
        self._pos = 0
        self._next = 0
        self._data_end = 0  # offset in the stream; the padding lies between it and _next
        self._unread = 0  # stored bytes of the current entry's content
        self._entry: TarEntry | None = None
        self._zeros = ZEROS
        self._numbers: dict[bytes, int] = {}
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._adlers: dict[bytes, int] = {}
        self._devices: dict[bytes, tuple[int, int]] = {}

    def __iter__(self) -> Iterator[TarEntry]:
        extensions: Extensions | None = None
        while True:
            offset = self._next
            at = offset - self._base
            self._pos = stop = at + BLOCK_SIZE
            block = self._view[at:stop] if stop <= self._end else self._next_header()
            if block is None:
                break
            self._next = self._data_end = offset + BLOCK_SIZE
            fields: Fields = HEADER.unpack(block)
            try:
                if self._adlers.get(fields[4]) != adler32(block) & 0xFFFF and not self._is_header(block):
                    self._check_end(offset)
                    break
                if fields[5] == b"g":
                    entry = self._make_global_header(block, fields, offset)
                elif fields[5] in _EXTENSIONS:
                    extensions = extensions or Extensions(offset)
                    extensions.add(fields[5], self._extension(fields))
                    continue
                else:
                    entry = self._make_entry(block, fields, offset, extensions)
            except BadEntryError as exc:
                name, first = fields[0], offset
                if extensions is not None:
                    name, first = extensions.path() or name, extensions.offset
                raise _error(text(name), first, str(exc)) from exc
            extensions = None
            if entry is not None:
                yield entry
        self.end = min(self._next, self._base + self._end)

    @property
    def wanted(self) -> int:
        """Bytes from the end of the last piece to the end of the header, of the entry's data, or of the
        padding that the reader is in. A source that returns no more is not read beyond that part.
        """
        reached = self._base + self._end
        if reached < self._data_end:
            return self._data_end - reached
        return self._next - reached or BLOCK_SIZE

    def read_whole(self) -> bytes:
        """Read the rest of the current entry's content into memory; holes become zeros."""
        entry = self._entry
        if entry is None or entry.sparse is not None:
            return b"".join(self.chunks(len(ZEROS)))
        at = self._pos
        stop = at + self._unread
        if stop > self._end:
            return bytes(self._content(self._unread))
        self._pos, self._unread = stop, 0
        return self._view[at:stop].tobytes()

    def chunks(self, chunk_size: int) -> Iterator[bytes | memoryview]:
        """Read the current entry's content in chunks of `chunk_size` bytes; the last may be shorter.

        A chunk that is entirely a hole is always the same object (`ZEROS`, if it has that size).
        """
        entry = self._entry
        if entry is None:
            return
        if entry.sparse is not None:
            yield from self._sparse_chunks(entry.size, entry.sparse, chunk_size)
        while self._unread:
            yield self._content(min(chunk_size, self._unread))

    # Headers

    def _next_header(self) -> memoryview | bytes | None:
        """Read the block at `_next`, which spans pieces; None if the stream has ended there."""
        if not self._seek(self._next):
            if self._data_end > self._base and self._entry is not None:
                raise _error(self._entry.path, self._entry.offset, _TRUNCATED)
            return None
        block = self._gather(BLOCK_SIZE)
        if len(block) == BLOCK_SIZE:
            return block
        if block:
            raise FormatError(
                f"the layer's tar ends inside the header at offset {self._next}: the layer is truncated"
            )
        return None

    def _check_end(self, offset: int) -> None:
        """Read the second block of an end mark, whose first block is at `offset`.

        Raises: FormatError: something else follows. Go's archive/tar refuses it as well.
        """
        block = self._next_header()
        if block is None:
            return
        if block != ZERO_BLOCK:
            raise FormatError(
                f"the layer's tar has one zero block at offset {offset} between entries: "
                "two of them end an archive, and containerd refuses a single one"
            )
        self._next += BLOCK_SIZE

    def _is_header(self, block: memoryview | bytes) -> bool:
        """Verify a header; False for a zero block. Caches the checksum, so that a look-up is enough later."""
        if block == ZERO_BLOCK:
            return False
        block = bytes(block)
        verify_checksum(block)
        if len(self._adlers) >= _FIELDS_KEPT:
            self._adlers.clear()
        checksum = block[CHECKSUM]
        self._adlers[checksum] = adler_of_checksum(checksum)
        return True

    def _number(self, field: bytes) -> int:
        """`parse_number` with a cache, because a layer has few different modes, sizes and times."""
        if (value := self._numbers.get(field)) is not None:
            return value
        if len(self._numbers) >= _FIELDS_KEPT:
            self._numbers.clear()
        value = self._numbers[field] = parse_number(field)
        return value

    def _owner(self, field: bytes) -> tuple[int, int, int]:
        """Read permission bits, uid and gid, with a cache."""
        mode, uid, gid = (parse_number(field[at : at + 8]) for at in (0, 8, 16))
        if len(self._owners) >= _FIELDS_KEPT:
            self._owners.clear()
        owner = self._owners[field] = mode & 0o7777, uid & ID_KEPT, gid & ID_KEPT
        return owner

    def _device(self, field: bytes, block: memoryview | bytes) -> tuple[int, int]:
        """Read the device numbers, with a cache for the formats that have them."""
        magic = bytes(block[MAGIC])
        device = parse_devices(field, magic)
        if magic[:5] == b"ustar":
            if len(self._devices) >= _FIELDS_KEPT:
                self._devices.clear()
            self._devices[field] = device
        return device

    def _extension(self, fields: Fields) -> bytes:
        """Read the body of an extension header, whose other numbers only have to be valid."""
        size = self._number(fields[2])
        self._owner(fields[1])
        self._number(fields[3])
        if not 0 <= size <= EXTENSION_MAX:
            raise BadEntryError(f"its extension header has {size} bytes, at most {EXTENSION_MAX} are read")
        body = self._take(size)
        self._next += size + (-size & BLOCK_SIZE - 1)
        return body

    def _make_global_header(self, block: memoryview | bytes, fields: Fields, offset: int) -> TarEntry | None:
        """Read a PAX global header. Only its own path matters, not extension headers before it."""
        records = parse_pax(self._extension(fields))
        self._unread = 0
        path = clean_path(records.get(b"path") or _stored_path(block, fields))
        if not path:
            return None
        self._entry = TarEntry(path, GLOBAL_HEADER, 0, 0, 0, 0, 0, 0, b"", 0, NO_XATTRS, offset, None)
        return self._entry

    def _make_entry(
        self, block: memoryview | bytes, fields: Fields, offset: int, extensions: Extensions | None
    ) -> TarEntry | None:
        """Make an entry of its headers; None if it names no file."""
        name, owner_field, size_field, mtime_field, _, flag, link_begin, device_field, prefix_begin = fields
        if (kind := _KINDS.get(flag)) is None:
            raise BadEntryError(f"its typeflag {flag!r} is of no kind of file")
        # In most headers these fields equal those of an earlier header, so that no call is needed.
        if (owner := self._owners.get(owner_field)) is None:
            owner = self._owner(owner_field)
        if (size := self._numbers.get(size_field)) is None:
            size = self._number(size_field)
        if (mtime := self._numbers.get(mtime_field)) is None:
            mtime = self._number(mtime_field)
        if (device := self._devices.get(device_field)) is None:
            device = self._device(device_field, block)
        mode, uid, gid = owner
        path = _stored_path(block, fields) if prefix_begin else name.partition(b"\0")[0]
        target = text(bytes(block[LINKNAME])) if link_begin else b""
        entry = TarEntry(path, kind, mode, uid, gid, size, mtime, 0, target, 0, NO_XATTRS, offset, None)
        if not 0 <= mtime < _TIME_USUAL:
            entry.mtime, entry.mtime_nsec = bound_time(mtime)
        if extensions is not None:
            extensions.apply(entry)
        if flag == b"\0" and entry.path.endswith(b"/"):
            entry.kind = kind = DIRECTORY
        self._unread = 0
        self._entry = entry
        stored = entry.path
        entry.path = clean_path(stored)
        names_file = bool(entry.path or (stored and kind == DIRECTORY))
        if kind == REGULAR:
            if entry.size or extensions is not None or flag == b"S":
                self._place_content(entry, block, flag, extensions)
        elif extensions is not None and extensions.sparse:
            raise BadEntryError("it has a sparse map, and is no regular file")
        elif names_file:
            _settle_special(entry, device)
        return entry if names_file else None

    def _place_content(
        self, entry: TarEntry, block: memoryview | bytes, flag: bytes, extensions: Extensions | None
    ) -> None:
        """Locate a regular file's data, and read the map of a sparse file."""
        size = entry.size
        if size < 0:
            raise BadEntryError(f"it has a size of {size} bytes")
        old_gnu = read_old_gnu(bytes(block), self._block_between) if flag == b"S" else None
        self._unread = size
        self._data_end += size
        self._next = self._data_end + (-size & BLOCK_SIZE - 1)
        if old_gnu is not None:
            self._expand(entry, old_gnu)
        elif extensions is not None and extensions.sparse:
            self._expand(entry, read_pax(extensions.pax or {}, size, self._block_of_content))

    def _expand(self, entry: TarEntry, sparse: SparseMap) -> None:
        stored = sum(length for _, length in sparse.runs)
        if stored != self._unread:
            raise BadEntryError(f"its sparse map tells of {stored} data bytes, {self._unread} are there")
        entry.size, entry.sparse = sparse

    def _block_between(self) -> bytes:
        """Read a block between a header and the entry's data, which the header's size does not include."""
        block = self._take(BLOCK_SIZE)
        self._next = self._data_end = self._next + BLOCK_SIZE
        return block

    def _block_of_content(self) -> bytes:
        if self._unread < BLOCK_SIZE:
            raise BadEntryError("its sparse map is longer than its data")
        self._unread -= BLOCK_SIZE
        return self._take(BLOCK_SIZE)

    # Content

    def _sparse_chunks(self, size: int, runs: Runs, chunk_size: int) -> Iterator[bytes | memoryview]:
        if len(self._zeros) != chunk_size:
            self._zeros = bytes(chunk_size)
        zeros = memoryview(self._zeros)
        rest = iter(runs)
        offset, length = next(rest, (size, 0))
        for start in range(0, size, chunk_size):
            at, stop = start, min(start + chunk_size, size)
            if offset >= stop and stop - start == chunk_size:
                yield self._zeros
                continue
            parts: list[bytes | memoryview] = []
            while at < stop:
                if at < offset:
                    part: bytes | memoryview = zeros[: min(offset, stop) - at]
                else:
                    part = self._content(min(offset + length, stop) - at)
                parts.append(part)
                at += len(part)
                if at == offset + length:
                    offset, length = next(rest, (size, 0))
            yield parts[0] if len(parts) == 1 else b"".join(parts)

    def _content(self, size: int) -> bytes | memoryview:
        """Read the next bytes of the current entry's data; a view if they are in one piece."""
        at = self._pos
        stop = at + size
        self._unread -= size
        if stop <= self._end:
            self._pos = stop
            return self._view[at:stop]
        try:
            return self._take(size)
        except BadEntryError as exc:
            assert self._entry is not None
            raise _error(self._entry.path, self._entry.offset, str(exc)) from exc

    # Stream

    def _pull(self) -> bool:
        """Go to the next piece; False at the end of the stream, where `_base` is its length."""
        self._base += self._end
        self._end = 0  # for `wanted`
        self._view = memoryview(self._read())
        self._end = len(self._view)
        self._pos = 0
        return self._end > 0

    def _seek(self, offset: int) -> bool:
        """Move forward in the stream; False if it ends before `offset`."""
        while offset > self._base + self._end:
            if not self._pull():
                return False
        self._pos = offset - self._base
        return True

    def _gather(self, size: int) -> bytes:
        """Read the next `size` bytes; fewer at the end of the stream."""
        parts = []
        while True:
            part = self._view[self._pos : self._pos + size]
            self._pos += len(part)
            size -= len(part)
            parts.append(part)
            if not size or not self._pull():
                return b"".join(parts)

    def _take(self, size: int) -> bytes:
        stop = self._pos + size
        if stop <= self._end:
            at, self._pos = self._pos, stop
            return self._view[at:stop].tobytes()
        data = self._gather(size)
        if len(data) < size:
            raise BadEntryError(_TRUNCATED)
        return data


def _stored_path(block: memoryview | bytes, fields: Fields) -> bytes:
    """The path in an entry's own header, with its prefix."""
    path = fields[0].partition(b"\0")[0]
    if fields[8] and (before := prefix_of(bytes(block))):
        return before + b"/" + path
    return path


def _settle_special(entry: TarEntry, device: tuple[int, int]) -> None:
    """Complete an entry other than a regular file. It has no content, regardless of its size field."""
    kind = entry.kind
    entry.size = 0
    if kind == SYMLINK:
        if not 0 < len(entry.target) < PATH_MAX:
            raise BadEntryError(f"its target has {len(entry.target)} bytes, 1..{PATH_MAX - 1} fit")
        return
    if kind == HARDLINK:
        if not entry.target:
            raise BadEntryError("it is a hard link without a target")
        entry.target = clean_path(entry.target)
        return
    entry.target = b""
    if kind in (CHAR, BLOCK):
        major, minor = device  # of which the kernel takes the lowest bits
        entry.rdev = (minor & 0xFF) | ((major & 0xFFF) << 8) | ((minor & 0xFFF00) << 12)


def _error(path: bytes, offset: int, what: str) -> FormatError:
    name = repr(path.decode("utf-8", "backslashreplace"))
    if len(name) > _NAME_SHOWN:
        name = f"{name[:_NAME_SHOWN]}…"
    return FormatError(f"tar entry {name} at offset {offset}: {what}")
