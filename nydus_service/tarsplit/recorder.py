"""Records the tar-split of a layer while its bytes pass by: the source side of verification.

A recorder receives the decompressed bytes that the builder reads, in pieces of any size. It finds the entries
itself, and writes their raw headers and the digests of their content, with holes filled, cut at the chunk
size. It shares no code with the builder's tar reader, so that a mistake of the reader shows. The headers are
interpreted later, in the verifying process (treeverify/source.py), so recording costs the builder little:
about two microseconds for a small file.

Most entries have little content and lie within one piece. `_scan` is a loop over those; `_header` handles all
others. The recorder is always in one of these states, by the input that it expects next: `_extension_left`
bytes of an extension header; more of an old GNU sparse map (`_map_goes_on`); `_stored` bytes of content, the
first of which may be a sparse map; `_padding`; nothing more, because the archive `_has_ended`; otherwise a
header. A PAX global header is an entry of its own. Extension headers without an entry are left out.

The tar-split is one zstd frame with a checksum, over this, little-endian:

      0   8  magic "TARSPLT2"
      8   4  chunk size, bytes
     12   4  digester: index in DIGESTERS
     16      records: u32 blocks, u32 count, then
               blocks > 0              an entry: 512 * blocks bytes of headers (extensions, its own, the rest
                                       of an old GNU sparse map), 32 * count bytes of digests
               blocks == count == 0    the end: u64 entries, u64 bytes of content, u64 bytes of the stream,
                                       u64 bytes after the archive's end mark that are not zero

A tar-split without the end record belongs to a tar that was not read to its end.
"""

from collections.abc import Callable
from struct import Struct
from typing import Final
from zlib import adler32

import zstandard

from nydus_service.errors import FormatError, NydusServiceError, UnsupportedError
from nydus_service.tarsplit.chunkdigests import DIGESTERS, ChunkDigests, open_hasher
from nydus_service.tarsplit.rawtar import (
    BLOCK,
    RUNS_MAX,
    ZERO_BLOCK,
    Records,
    Runs,
    StoredMap,
    check_checksum,
    check_runs,
    decimal,
    gnu_runs,
    header_number,
    is_pax_sparse,
    pax_records,
    pax_runs,
    pax_sparse_size,
)

MAGIC: Final = b"TARSPLT2"
HEAD: Final = Struct("<8sII")
RECORD: Final = Struct("<II")
END: Final = Struct("<QQQQ")

EXTENSION_MAX: Final = 8 << 20
"""Maximum bytes of one extension header: many extended attributes of 64 KiB fit."""
HEADERS_MAX: Final = 64 << 20
"""Maximum bytes of all headers of one entry, which are held in memory."""
CHUNKS_MAX: Final = 0xFF_FFFF
"""Maximum chunks of one file: no blob has more."""

_LEVEL: Final = -1  # a sixth of the time of level 3, for headers that are mostly zeros
_FLUSH_SIZE: Final = 256 << 10
_FIELDS: Final = Struct("124x12s12x8sB")
"""The fields of a header that are read: size, checksum, typeflag."""
_ADLER_PRIME: Final = 65521
_FIELDS_KEPT: Final = 1 << 14
"""The number of distinct field values whose meaning is cached."""
_ONE_BLOCK_NO_CHUNK: Final = RECORD.pack(1, 0)
_ONE_BLOCK_ONE_CHUNK: Final = RECORD.pack(1, 1)

_PLAIN_FILE, _PAX, _LONG_NAME = b"0xL"
_OLD_FILE, _SPARSE_FILE = b"\0S"
_LONG_NAME_KEY: Final = b"=L"
"""The key of a GNU long name among the PAX records, whose own keys never have an equals sign."""
_GLOBAL: Final = ord("g")
_EXTENSIONS: Final = frozenset(b"xgLK")
_FILES: Final = frozenset(b"\x0007S")
_BARE: Final = frozenset(b"123456")
"""Typeflags of entries without content, regardless of their size field."""


class TarSplitRecorder:
    """Records the tar-split of one layer. Call `finish` once, after the last byte."""

    def __init__(self, write: Callable[[bytes], object], chunk_size: int, digester: str) -> None:
        """Begin the tar-split.

        Args:
            write: receives the tar-split, in pieces.
            chunk_size: bytes of a chunk of content.
            digester: "blake3" or "sha256".
        """
        self._write = write
        self._hasher = open_hasher(digester)
        self._chunk_size = chunk_size
        self._out = bytearray(HEAD.pack(MAGIC, chunk_size, DIGESTERS.index(digester)))
        self._chunks = ChunkDigests(self._out, chunk_size, self._hasher, self._flush)
        self._frame = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()

        self._position = 0  # offset in the tar of the first byte that was not fed yet
        self._held = b""  # an incomplete block
        self._is_ending = False  # the first block of the end mark was read
        self._has_ended = False
        self._trailing_bytes = 0
        self._entries = 0
        self._content_bytes = 0

        # State of the current entry, until it is complete.
        self._headers = bytearray()
        self._offset = 0
        self._name = b""
        self._pax: Records = {}
        self._extension_left = self._extension_size = self._extension_kind = 0
        self._size = self._stored = self._padding = 0
        self._runs: Runs | None = None
        self._map_goes_on = False
        self._stored_map: StoredMap | None = None

        self._sizes = _Meanings(_plain_size)
        self._adlers = _Meanings(_plain_adler)

    def feed(self, piece: bytes) -> None:
        """Record the next bytes of the tar.

        Raises:
            FormatError: the tar is damaged; the message names the entry and its offset.
            UnsupportedError: a sparse file has an unknown version, or a file has too many chunks.
        """
        if self._held:
            piece = self._held + piece
            self._position -= len(self._held)
            self._held = b""
        try:
            end = self._take(piece)
        except NydusServiceError as exc:
            name = self._name.decode(errors="backslashreplace")[:300]
            raise type(exc)(f"tar entry {name!r} at offset {self._offset}: {exc}") from exc
        self._held = piece[end:]
        self._position += len(piece)
        if len(self._out) >= _FLUSH_SIZE:
            self._flush()

    def finish(self) -> None:
        """Complete the tar-split. Raises: FormatError: the tar ends inside an entry."""
        # Padding at the end may be missing.
        lacks_extension = self._extension_left > -self._extension_size & 511
        if self._extension_left and not lacks_extension:
            self._take_extension(bytes(self._extension_left))
        if self._held or self._stored or self._map_goes_on or lacks_extension:
            name = self._name.decode(errors="backslashreplace")[:300]
            where = f"in tar entry {name!r} at offset {self._offset}" if name else "in the header of an entry"
            raise FormatError(f"the tar is cut off after {self._position} bytes, {where}")
        self._out += RECORD.pack(0, 0)
        self._out += END.pack(self._entries, self._content_bytes, self._position, self._trailing_bytes)
        self._flush()
        self._write(self._frame.flush())

    def _flush(self) -> None:
        packed = self._frame.compress(self._out)
        self._out.clear()
        if packed:
            self._write(packed)

    def _take(self, piece: bytes) -> int:
        """Process a piece, except for an incomplete block at its end. Returns the offset of that block."""
        at, end = 0, len(piece)
        while at < end:
            if self._has_ended:
                self._trailing_bytes += end - at - piece.count(0, at)
                at = end
            elif self._extension_left:
                at += self._take_extension(piece[at : at + self._extension_left])
            elif self._map_goes_on or not (self._stored or self._padding):
                if not (self._headers or self._is_ending):
                    at = self._scan(piece, at)
                if end - at < BLOCK:
                    return at
                self._header(piece[at : at + BLOCK], self._position + at)
                at += BLOCK
            elif self._stored:
                at += self._take_content(piece, at)
            else:
                skipped = min(self._padding, end - at)
                self._padding -= skipped
                at += skipped
        return at

    def _scan(self, piece: bytes, at: int) -> int:
        """Record the plain entries that lie within this piece. Returns the offset of the next other entry."""
        out, hasher, chunk_size, adler, fields = (
            self._out, self._hasher, self._chunk_size, adler32, _FIELDS.unpack_from
        )  # fmt: skip
        sizes, adlers = self._sizes, self._adlers
        view = memoryview(piece)
        end = len(piece)
        entries = content = 0
        first = at
        while end - at >= BLOCK:
            begin = at + BLOCK
            size_field, sum_field, kind = fields(piece, at)
            size = sizes[size_field]
            header = view[at:begin]
            if size < 0 or adler(header) & 0xFFFF != adlers[sum_field]:
                break  # not a plain entry; `_header` checks it exactly
            if kind in _BARE:
                size = 0
            stop = begin + size
            following = stop + (-size & 511)
            if following > end:
                break
            if kind == _PLAIN_FILE or kind in _BARE:
                if size > chunk_size:
                    break
                if at != first:
                    out += RECORD.pack((begin - first) // BLOCK, 1 if size else 0)
                    header = view[first:begin]
                else:
                    out += _ONE_BLOCK_ONE_CHUNK if size else _ONE_BLOCK_NO_CHUNK
                out += header
                if size:
                    out += hasher(view[begin:stop]).digest()
                    content += size
                entries += 1
                first = following
            elif (
                kind not in _EXTENSIONS
                or kind == _GLOBAL
                or (kind == _PAX and self._changes_size(piece[begin:stop]))
            ):
                break
            at = following
        self._entries += entries
        self._content_bytes += content
        return first

    @staticmethod
    def _changes_size(extension: bytes) -> bool:
        """Whether a PAX header may change the size of its entry's content."""
        return b"size=" in extension or b"GNU.sparse." in extension

    def _header(self, block: bytes, offset: int) -> None:
        """Process one header block: an extension, an entry's own, or more of its sparse map."""
        if self._map_goes_on:
            assert self._runs is not None
            self._headers += block
            self._runs += gnu_runs(block[:504])
            self._map_goes_on = block[504] != 0
            if len(self._runs) > RUNS_MAX:
                raise FormatError(f"a sparse map of more than {RUNS_MAX} runs")
            if not self._map_goes_on:
                self._begin_content()
            return
        if block == ZERO_BLOCK:
            self._has_ended = self._is_ending
            self._is_ending = True
            return
        if not self._headers:
            self._offset = offset
            self._name = block[:100].partition(b"\0")[0]
        if self._is_ending:
            raise FormatError("a single zero block comes before it: two end an archive, one is not allowed")
        check_checksum(block)
        self._headers += block
        if len(self._headers) > HEADERS_MAX:
            raise FormatError(f"more than {HEADERS_MAX} bytes of headers")
        kind = block[156]
        if kind not in _EXTENSIONS:
            self._name = (
                self._pax.get(_LONG_NAME_KEY) or self._pax.get(b"path") or block[:100].partition(b"\0")[0]
            )
        if kind in _EXTENSIONS:
            self._begin_extension(kind, header_number(block[124:136]))
        elif kind in _BARE or (kind == _OLD_FILE and self._name.endswith(b"/")):
            # Before POSIX, a directory had no typeflag of its own, only a trailing slash in its name.
            header_number(block[124:136])  # it has no content, but Go refuses an invalid size
            self._begin_record(0)
            self._end_entry()
        elif kind in _FILES:
            self._begin_file(block, kind)
        else:
            raise FormatError(f"unknown typeflag {chr(kind)!r}")

    def _begin_extension(self, kind: int, size: int) -> None:
        if not 0 <= size <= EXTENSION_MAX:
            raise FormatError(f"an extension header of {size} bytes, at most {EXTENSION_MAX} are read")
        self._extension_kind = kind
        self._extension_size = size
        self._extension_left = size + (-size & 511)
        if not size:
            self._end_extension(b"")

    def _take_extension(self, piece: bytes) -> int:
        self._headers += piece
        self._extension_left -= len(piece)
        if not self._extension_left:
            padded = self._extension_size + (-self._extension_size & 511)
            begin = len(self._headers) - padded
            self._end_extension(bytes(self._headers[begin : begin + self._extension_size]))
        return len(piece)

    def _end_extension(self, body: bytes) -> None:
        """Keep the records that decide the size of the entry's content, and its name."""
        if self._extension_kind == _LONG_NAME:
            self._pax[_LONG_NAME_KEY] = body.partition(b"\0")[0]
        elif self._extension_kind == _PAX:
            # Of several PAX headers, the last one applies.
            records = {key: value for key, value in pax_records(body).items() if value}
            if long_name := self._pax.get(_LONG_NAME_KEY):
                records[_LONG_NAME_KEY] = long_name
            self._pax = records
        elif self._extension_kind == _GLOBAL:
            pax_records(body)
            self._begin_record(0)
            self._end_entry()

    def _begin_file(self, block: bytes, kind: int) -> None:
        size = self._pax.get(b"size")
        self._stored = self._size = header_number(block[124:136]) if size is None else decimal(size)
        if self._stored < 0:
            raise FormatError(f"a size of {self._stored} bytes")
        self._padding = -self._stored & 511
        if kind == _SPARSE_FILE:
            self._size = header_number(block[483:495])
            self._runs = gnu_runs(block[386:482])
            self._map_goes_on = block[482] != 0
        elif is_pax_sparse(self._pax):
            self._name = self._pax.get(b"GNU.sparse.name", self._name)
            self._size = pax_sparse_size(self._pax, self._stored)
            if self._pax.get(b"GNU.sparse.major") == b"1":
                self._stored_map = StoredMap()
            else:
                self._runs = pax_runs(self._pax)
        if not self._map_goes_on:
            self._begin_content()

    def _begin_content(self) -> None:
        """Begin the content of a file whose headers are complete, or first the sparse map stored with it."""
        if self._stored_map is not None:
            if not self._stored:
                raise FormatError("its sparse map is missing")
            return
        if self._runs is not None:
            check_runs(self._runs, self._size, self._stored)
        chunks = -(-self._size // self._chunk_size)
        if chunks > CHUNKS_MAX:
            raise UnsupportedError(
                f"a file of {self._size} bytes has {chunks} chunks, at most {CHUNKS_MAX} fit: "
                "choose a larger chunk size"
            )
        self._begin_record(chunks)
        self._content_bytes += self._size
        self._chunks.begin(self._size, self._runs)
        if not self._stored:
            self._end_entry()

    def _take_content(self, piece: bytes, at: int) -> int:
        """Process the stored bytes that the piece has. Returns their number."""
        length = min(self._stored, len(piece) - at)
        if self._stored_map is not None:
            length = min(length, self._stored_map.room())
            self._stored -= length
            self._runs = self._stored_map.take(piece[at : at + length])
            if self._runs is not None:
                self._stored_map = None
                self._begin_content()
            elif not self._stored:
                raise FormatError("its sparse map is cut off")
            return length
        self._stored -= length
        self._chunks.take(memoryview(piece)[at : at + length])
        if not self._stored:
            self._end_entry()
        return length

    def _begin_record(self, chunks: int) -> None:
        self._out += RECORD.pack(len(self._headers) // BLOCK, chunks)
        self._out += self._headers
        self._entries += 1

    def _end_entry(self) -> None:
        self._headers.clear()
        self._name = b""
        self._pax = {}
        self._runs = None


class _Meanings(dict[bytes, int]):
    """A cache of parsed header fields by their bytes, which repeat in most headers."""

    def __init__(self, parse: Callable[[bytes], int]) -> None:
        self._parse = parse

    def __missing__(self, field: bytes) -> int:
        if len(self) >= _FIELDS_KEPT:
            self.clear()
        value = self[field] = self._parse(field)
        return value


def _plain_size(field: bytes) -> int:
    """Read a size of eleven digits; -1 for any other form, which `header_number` reads."""
    return _octal(field[:11]) if field[11] <= 0x20 else -1


def _plain_adler(field: bytes) -> int:
    """The low half of Adler-32 of a header with this checksum of six digits; -1 for any other form.

    It is the sum of all bytes plus one, modulo a prime near 2**16, which few headers exceed. The checksum
    counts its own field as spaces.
    """
    checksum = _octal(field[:6]) if field[6] <= 0x20 else -1
    adler = 1 + checksum - 8 * 0x20 + sum(field)
    return adler if checksum >= 0 and adler < _ADLER_PRIME else -1


def _octal(digits: bytes) -> int:
    return -1 if digits.strip(b"01234567") else int(digits, 8)
