"""Compression of layers: detects it, decompresses piece by piece, and compresses with gzip reproducibly.

A decompressor receives stored bytes, in pieces of any size, and yields plain bytes in pieces of at most
`PIECE_SIZE`. It holds about one such piece at most (and a zstd frame's window), however much the input
expands. The input must be complete and valid: checksums are verified, and a stream that ends early or has
trailing data is an error, with an offset in the stored bytes.

    gzip    any number of concatenated members, as in containerd; then zeros, if any
    zstd    any number of frames, including skippable ones
    none    bytes as they are, unless they begin like another known format, which is refused by name
"""

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast

from nydus_service.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from isal.igzip_lib import IgzipDecompressor

Compression = Literal["gzip", "zstd", "none"]

PIECE_SIZE: Final = 1 << 20
"""Maximum plain bytes of one piece."""

WINDOW_MAX: Final = 1 << 29
"""Maximum bytes of a zstd window, as in containerd (klauspost/compress, `MaxWindowSize`); frames with larger
ones are refused. Only the filled part of a window uses memory."""

GZIP_LEVEL: Final = 6
"""libdeflate's level for `gzip_deterministic`; another level changes the digests of all results."""

GZIP_MAGIC = b"\x1f\x8b\x08"
_GZIP_FIXED = 10
_GZIP_HEADER_CRC, _GZIP_EXTRA, _GZIP_NAME, _GZIP_COMMENT, _GZIP_RESERVED = 0x02, 0x04, 0x08, 0x10, 0xE0
_GZIP_HEADER_MAX = 1 << 17

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_HEADER_MAX = 18
_ZSTD_CHECKSUM, _ZSTD_SINGLE = 0x04, 0x20
_ZSTD_BLOCK_MAX = 128 << 10
_ZSTD_RLE, _ZSTD_RESERVED = 1, 3
_SKIPPABLE_FIRST = 0x50
_SKIPPABLE_TAIL = b"\x2a\x4d\x18"
_SKIPPABLE_HEADER = 8
_SLICE_MIN = 4 << 10

_OTHER_FORMATS = {
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"LZIP\1": "lzip",
    b"\x89LZO\0\r\n\x1a\n": "lzop",
    b"\xff\x06\0\0sNaPpY": "snappy",
    b"\x1f\x9d": "compress (.Z)",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
"""Formats that no runtime unpacks as a layer, by their first bytes."""
_BZIP2_BLOCKS = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")
_LZMA_DICT_MIN = 1 << 12
_LZMA_PROPERTIES_MAX = 9 * 5 * 5
_LZMA_HEADER = 14
"""Bytes of the header, and the first byte of the data, which is 0."""
_UNKNOWN_SIZE = (1 << 64) - 1
HEAD_SIZE: Final = _LZMA_HEADER
"""Bytes that identify any of these formats."""


def sniff(head: bytes) -> Compression:
    """Detect the compression of a stream by its first bytes, at least four; "none" if unknown."""
    if head[:3] == GZIP_MAGIC:
        return "gzip"
    if head[:4] == _ZSTD_MAGIC or _is_skippable(head):
        return "zstd"
    return "none"


def name_other_format(head: bytes) -> str | None:
    """Name a compression or an archive that is no layer; None for a tar, or if it is unknown.

    Args:
        head: the first `HEAD_SIZE` bytes or more.
    Source: the headers in xz, bzip2, lz4_Frame_format, lzip, lzop, framing_format of snappy, APPNOTE of zip;
        lzma-file-format.txt.
    """
    found = next((name for magic, name in _OTHER_FORMATS.items() if head.startswith(magic)), None)
    if found == "bzip2" and head[4:10] not in _BZIP2_BLOCKS:  # a tar may begin with a name like this
        return None
    return "lzma" if found is None and _is_lzma(head) else found


def _is_lzma(head: bytes) -> bool:
    """Whether a file of lzma begins here: it has no magic, but a dictionary of 2**n or 3 * 2**n bytes."""
    if len(head) < _LZMA_HEADER or head[0] >= _LZMA_PROPERTIES_MAX or head[13]:
        return False
    dictionary, size = int.from_bytes(head[1:5], "little"), int.from_bytes(head[5:13], "little")
    odd = dictionary >> ((dictionary & -dictionary).bit_length() - 1) if dictionary else 0
    return dictionary >= _LZMA_DICT_MIN and odd in (1, 3) and (size == _UNKNOWN_SIZE or size < 1 << 48)


class Decompressor(Protocol):
    """Decompresses stored bytes."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next stored bytes and yield their plain bytes, in pieces of 1..`PIECE_SIZE` bytes.

        Exhaust the iterator before the next call.

        Raises:
            FormatError: the data is corrupt.
            UnsupportedError: a zstd frame has a window larger than `WINDOW_MAX`, or the data is of another
                known format, as xz.
        """
        ...

    def finish(self) -> None:
        """Check that the stream is complete, after its last bytes were fed.

        Raises:
            FormatError: the stream is not complete.
        """
        ...


def open_decompressor(kind: Compression) -> Decompressor:
    """Make a decompressor for one stream."""
    if kind == "gzip":
        return _Gzip()
    if kind == "zstd":
        return _Zstd()
    return _Plain()


def gzip_deterministic(data: bytes) -> bytes:
    """Compress with gzip reproducibly: equal data gives equal bytes on every machine.

    libdeflate's output does not depend on the CPU; its header has neither a time nor a name.
    """
    import deflate

    return bytes(deflate.gzip_compress(data, GZIP_LEVEL))


class _Plain:
    """Passes plain bytes through, unless they are of a format that is not plain."""

    def __init__(self) -> None:
        self._head = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        if len(self._head) < HEAD_SIZE:
            self._head += data[: HEAD_SIZE - len(self._head)]
            found = name_other_format(self._head)
            if found:
                raise UnsupportedError(
                    f"the data is {found}, not a tar, plain or with gzip or zstd, which is all that runtimes "
                    "unpack; build the image again with one of these"
                )
        for at in range(0, len(data), PIECE_SIZE):
            yield data[at : at + PIECE_SIZE]

    def finish(self) -> None:
        pass


class _Gzip:
    """Decompresses gzip members.

    `gzip_header_size` parses headers; isal decompresses the rest, and verifies CRC and length. isal can also
    parse headers, but loses its position in a header that has, for example, a name and is split between two
    pieces. At a member's end, isal copies all input after it. Layers of eStargz have one member per small
    file, so a member after another one first gets a small slice, then larger ones.
    """

    def __init__(self) -> None:
        from isal import igzip_lib

        self._lib = igzip_lib
        self._error = cast("type[Exception]", igzip_lib.error)  # typed as an instance
        self._member: IgzipDecompressor | None = None
        self._header = b""  # the incomplete header of the next member
        self._members = 0
        self._offset = 0  # of the next stored byte to process
        self._slice = PIECE_SIZE
        self._padding = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        start = self._offset - len(self._header)
        data = self._header + data if self._header else data
        self._header, self._offset = b"", start
        view, end = memoryview(data), start + len(data)
        parts: list[bytes] = []
        room = PIECE_SIZE
        while self._offset < end or self._holds_back():
            rest = view[self._offset - start :]
            if self._member is None:
                self._begin(rest)
                continue
            part = self._decompress(rest[: self._slice], room)
            parts.append(part)
            room -= len(part)
            if not room:
                yield b"".join(parts)
                parts, room = [], PIECE_SIZE
        if room < PIECE_SIZE:
            yield b"".join(parts)

    def finish(self) -> None:
        if self._member is not None or self._header or not self._members:
            raise FormatError(f"gzip data ends early, after {self._offset} bytes: it is truncated")

    def _holds_back(self) -> bool:
        """Whether the member has more output for its current input."""
        return self._member is not None and not self._member.needs_input

    def _begin(self, rest: memoryview) -> None:
        """Start a member, or keep the beginning of its header, or skip the zeros after the last member."""
        self._padding = self._padding or (self._members > 0 and not rest[0])
        if self._padding:
            if rest.tobytes().strip(b"\0"):
                raise FormatError(f"gzip data goes on with something else after offset {self._offset}")
            self._offset += len(rest)
            return
        size = gzip_header_size(bytes(rest[:_GZIP_HEADER_MAX]), self._offset)
        if size == 0:
            self._header = bytes(rest)
            self._offset += len(rest)
            return
        self._offset += size
        self._members += 1
        self._member = self._lib.IgzipDecompressor(flag=self._lib.DECOMP_GZIP_NO_HDR_VER)

    def _decompress(self, given: memoryview, room: int) -> bytes:
        """Decompress some input, or only pending output if the member holds any back."""
        member = self._member
        assert member is not None
        if not member.needs_input:
            given = given[:0]
        self._offset += len(given)
        self._slice = min(2 * self._slice, PIECE_SIZE)
        try:
            part = member.decompress(given, room)
        except self._error as exc:
            raise FormatError(f"gzip data is corrupt before offset {self._offset}: {exc}") from exc
        if member.eof:
            self._offset -= len(member.unused_data)
            self._member = None
            self._slice = _SLICE_MIN
        return part


def gzip_header_size(data: bytes, offset: int) -> int:
    """Bytes of a member's header; 0 if `data` has too little of it.

    Args:
        offset: the offset of `data`, for messages.
    Raises:
        FormatError: no member begins here, or its header is invalid.
    Source: RFC 1952, section 2.3.
    """
    if data[:3] != GZIP_MAGIC[: len(data)]:
        raise FormatError(f"gzip data goes on with something else at offset {offset}")
    if len(data) < _GZIP_FIXED:
        return 0
    flags = data[3]
    if flags & _GZIP_RESERVED:
        raise FormatError(f"gzip header at offset {offset} has unknown flags {flags:#x}")
    size = _GZIP_FIXED
    if flags & _GZIP_EXTRA:
        size += 2 + int.from_bytes(data[size : size + 2], "little")
    for text in (_GZIP_NAME, _GZIP_COMMENT):
        if flags & text and size <= len(data):
            size = data.find(b"\0", size) + 1 or _GZIP_HEADER_MAX + 1
    if flags & _GZIP_HEADER_CRC:
        size += 2
        found = int.from_bytes(data[size - 2 : size], "little")
        if size <= len(data) and found != zlib.crc32(data[: size - 2]) & 0xFFFF:
            raise FormatError(f"gzip header at offset {offset} has a wrong checksum")
    if size > len(data) >= _GZIP_HEADER_MAX:
        raise FormatError(f"gzip header at offset {offset} has more than {_GZIP_HEADER_MAX} bytes")
    return size if size <= len(data) else 0


class _Zstd:
    """Decompresses zstd frames, a few whole blocks at a time, which bounds the output of each step.

    `_pending` has the stored bytes from `_offset` on, never more than an incomplete block. libzstd verifies
    frames' checksums and content sizes. The output of small frames is joined, because layers of zstd:chunked
    have one frame per file.
    """

    def __init__(self) -> None:
        import zstandard

        self._lib = zstandard
        self._context = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._checksum = 0  # bytes of the checksum after the frame's last block
        self._frames = 0
        self._skip = 0  # bytes left of a skippable frame
        self._pending = b""
        self._offset = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        data = self._pending + data if self._pending else data
        at = 0
        parts: list[bytes] = []
        room = PIECE_SIZE
        while True:
            if self._skip:
                skipped = min(self._skip, len(data) - at)
                self._skip -= skipped
                stop, expands = at + skipped, False
            elif self._frame is None:
                stop, expands = at + self._begin(data[at : at + _ZSTD_HEADER_MAX]), self._frame is not None
            else:
                stop, expands = self._whole_blocks(data, at), True
            if stop == at:
                break
            if expands and (part := self._decompress(data[at:stop])):
                if len(part) > room:
                    yield b"".join(parts)
                    parts, room = [], PIECE_SIZE
                parts.append(part)
                room -= len(part)
            self._offset += stop - at
            at = stop
        self._pending = data[at:]
        if parts:
            yield b"".join(parts)

    def finish(self) -> None:
        if self._pending or self._skip or self._frame is not None or not self._frames:
            ended = self._offset + len(self._pending)
            raise FormatError(f"zstd data ends early, after {ended} bytes: it is truncated")

    def _begin(self, head: bytes) -> int:
        """Start a frame, skippable or not. Returns the size of its header; 0 if `head` is too short."""
        if len(head) < 4:
            return 0
        if _is_skippable(head):
            if len(head) < _SKIPPABLE_HEADER:
                return 0
            self._skip = int.from_bytes(head[4:_SKIPPABLE_HEADER], "little")
            self._frames += 1
            return _SKIPPABLE_HEADER
        if head[:4] != _ZSTD_MAGIC:
            raise FormatError(f"zstd data goes on with something else at offset {self._offset}")
        size = _zstd_header_size(head)
        if size == 0 or size > len(head):
            return 0
        _check_window(head, self._offset)
        self._checksum = 4 if head[4] & _ZSTD_CHECKSUM else 0
        self._frames += 1
        self._frame = self._context.decompressobj(write_size=PIECE_SIZE)
        return size

    def _whole_blocks(self, data: bytes, start: int) -> int:
        """The end of the next blocks that are complete in `data` and decompress to at most one piece.

        Source: RFC 8878, section 3.1.1.2.
        """
        stop = start
        for _ in range(PIECE_SIZE // _ZSTD_BLOCK_MAX):
            if stop + 3 > len(data):
                break
            header = int.from_bytes(data[stop : stop + 3], "little")
            last, kind, size = header & 1, header >> 1 & 3, header >> 3
            if kind == _ZSTD_RESERVED or size > _ZSTD_BLOCK_MAX:
                offset = self._offset + stop - start
                raise FormatError(
                    f"zstd data is corrupt at offset {offset}: no block has header {header:#08x}"
                )
            end = stop + 3 + (1 if kind == _ZSTD_RLE else size) + (self._checksum if last else 0)
            if end > len(data):
                break
            stop = end
            if last:
                break
        return stop

    def _decompress(self, data: bytes) -> bytes:
        frame = self._frame
        assert frame is not None
        try:
            piece = frame.decompress(data)
        except self._lib.ZstdError as exc:
            end = self._offset + len(data)
            raise FormatError(f"zstd data is corrupt at offset {self._offset}..{end}: {exc}") from exc
        if frame.eof:
            self._frame = None
        return piece


def _is_skippable(head: bytes) -> bool:
    """Whether a skippable frame begins here: its magic is 0x184D2A50..0x184D2A5F, little-endian."""
    return len(head) >= 4 and head[0] & 0xF0 == _SKIPPABLE_FIRST and head[1:4] == _SKIPPABLE_TAIL


def _zstd_header_size(head: bytes) -> int:
    """Bytes of a frame's header, including its magic; 0 if `head` is too short.

    Source: RFC 8878, section 3.1.1.1.
    """
    if len(head) < 5:
        return 0
    descriptor = head[4]
    single = descriptor & _ZSTD_SINGLE
    content_size = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    return 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3] + content_size


def _check_window(head: bytes, offset: int) -> None:
    """Refuse a frame whose window would use too much memory.

    Raises:
        UnsupportedError: the window is larger than `WINDOW_MAX`.
    """
    if head[4] & _ZSTD_SINGLE:  # the window is the whole content
        field = head[5 + (0, 1, 2, 4)[head[4] & 3] : _zstd_header_size(head)]
        window = int.from_bytes(field, "little") + (256 if len(field) == 2 else 0)
    else:
        base = 1 << (10 + (head[5] >> 3))
        window = base + base // 8 * (head[5] & 7)
    if window > WINDOW_MAX:
        raise UnsupportedError(
            f"zstd frame at offset {offset}: its window is {window} bytes, at most {WINDOW_MAX} are supported"
        )
