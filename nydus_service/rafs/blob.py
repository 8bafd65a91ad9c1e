"""The framing of a nydus blob: a tar read from its end, with each 512-byte header after its data.

    data 0 | header 0 | data 1 | header 1 | … | data n | header n

There is no padding, and there are no end-of-archive blocks. If the blob has a TOC, the last section is
`rafs.blob.toc`. A blob may be remote and large, so the searches do not read by themselves: they are
generators that yield the `Range` they need and receive its bytes. `run` drives one with a read function.

Source: nydus builder/src/core/blob.rs; the tar header is GNU's, with a checksum of seven octal digits.
"""

import hashlib
from collections.abc import Callable, Generator
from struct import Struct
from typing import NamedTuple, TypeVar

from nydus_service.errors import FormatError
from nydus_service.rafs.cipher import Cipher
from nydus_service.rafs.codecs import decompress
from nydus_service.rafs.toc import MAX_TOC_SIZE, TocEntry, unpack_toc

T = TypeVar("T")

HEADER_SIZE = 512
DATA = "image.blob"
META = "blob.meta"
META_HEADER = "blob.meta.header"
CHUNK_DIGESTS = "blob.digest"
BOOTSTRAP = "image.boot"
TOC = "rafs.blob.toc"

MAX_BOOTSTRAP_SIZE = 1 << 31
"""Maximum bytes of a layer's metadata: 2^24 chunks and as many inodes fit."""

_HEADER = Struct("<100s24s12s12s8sc100s8s247s")
_MAX_OCTAL = 0o77777777777
# Maximum sections in a search through the headers, which a blob with a TOC does not need.
_MAX_SECTIONS = 64


class Range(NamedTuple):
    """Bytes [offset, offset + size) of a blob."""

    offset: int
    size: int


class Section(NamedTuple):
    """A tar header of the framing: name and size of the data before it."""

    name: str
    size: int


def pack_header(name: str, size: int) -> bytes:
    """The 512-byte header that follows `size` bytes of section `name`."""
    if size > _MAX_OCTAL:
        field = b"\x80" + size.to_bytes(11, "big")
    else:
        field = b"%011o\0" % size
    fields = (name.encode(), b"", field, b"00000000000\0", b" " * 8, b"0", b"", b"ustar  \0", b"")
    checksum = sum(_HEADER.pack(*fields))
    return _HEADER.pack(*fields[:4], b"%07o\0" % checksum, *fields[5:])


def unpack_header(data: bytes | memoryview, at: int) -> Section:
    """Read one header.

    Args:
        data: its 512 bytes.
        at: its offset in the blob, for the message.
    Raises:
        FormatError: the data is not a section header.
    """
    raw = bytes(data)
    if len(raw) != HEADER_SIZE:
        raise FormatError(f"section header at {at} has {len(raw)} bytes of {HEADER_SIZE}")
    name, _, size_field, _, checksum_field, kind, _, magic, _ = _HEADER.unpack(raw)
    try:
        checksum = int(checksum_field.rstrip(b" \0") or b"0", 8)
        if size_field[0] == 0x80:
            size = int.from_bytes(size_field[1:], "big")
        else:
            size = int(size_field.rstrip(b" \0"), 8)
        text = name.rstrip(b"\0").decode("ascii")
    except (ValueError, UnicodeDecodeError):
        raise FormatError(f"no section header at {at}: this is not a nydus blob, or it is damaged") from None
    if checksum != sum(raw) - sum(checksum_field) + 8 * 0x20 or not magic.startswith(b"ustar"):
        raise FormatError(f"no section header at {at}: this is not a nydus blob, or it is damaged")
    if kind not in (b"0", b"\0"):
        raise FormatError(f"section header {text!r} at {at} has type {kind!r}, not a regular file's")
    return Section(text, size)


def locate(name: str, blob_size: int) -> Generator[Range, bytes, Range]:
    """Find a section by walking back from the blob's end. Returns the range of its data.

    Raises: FormatError: the section does not exist, or the framing is damaged.
    """
    end = blob_size
    for _ in range(_MAX_SECTIONS):
        if end < HEADER_SIZE:
            break
        section = unpack_header((yield Range(end - HEADER_SIZE, HEADER_SIZE)), at=end - HEADER_SIZE)
        start = end - HEADER_SIZE - section.size
        if start < 0:
            raise FormatError(
                f"section {section.name!r} claims {section.size} bytes; {end - HEADER_SIZE} precede it"
            )
        if section.name == name:
            return Range(start, section.size)
        end = start
    raise FormatError(f"no section {name!r} in this blob of {blob_size} bytes")


def read_toc(blob_size: int) -> Generator[Range, bytes, list[TocEntry]]:
    """Read the TOC. Returns an empty list for a blob without a TOC; entries lie inside the blob.

    Raises: FormatError: the blob's last section is damaged, or an entry points out of the blob.
    """
    if blob_size < HEADER_SIZE:
        raise FormatError(f"a blob of {blob_size} bytes is too small to be a nydus blob")
    at = blob_size - HEADER_SIZE
    last = unpack_header((yield Range(at, HEADER_SIZE)), at=at)
    if last.name != TOC:
        return []
    if last.size > min(MAX_TOC_SIZE, at):
        raise FormatError(f"a TOC of {last.size} bytes does not fit this blob of {blob_size} bytes")
    entries = unpack_toc((yield Range(at - last.size, last.size)))
    for entry in entries:
        if entry.compressed_offset + entry.compressed_size > at - last.size:
            raise FormatError(f"TOC entry {entry.name!r} points out of the blob")
    return entries


def read_entry(
    name: str,
    blob_size: int,
    max_size: int = MAX_BOOTSTRAP_SIZE,
    cipher: Cipher | None = None,
) -> Generator[Range, bytes, bytes]:
    """Read one entry completely, by the TOC or, without a TOC, by the headers; decompress and check it.

    Args:
        name: an entry of the TOC or a section, such as `image.boot`; not `image.blob`, whose TOC
            entry has the size of the runtime's cache instead of its own.
        blob_size: bytes of the whole blob.
        max_size: maximum bytes of the entry.
        cipher: decrypts the entry, whose digest in the TOC is that of the plain bytes.
    Raises:
        FormatError: the entry is missing, damaged, or larger than `max_size`.
    """
    toc = yield from read_toc(blob_size)
    if not toc:
        where = yield from locate(name, blob_size)
        if where.size > max_size:
            raise FormatError(f"section {name!r} has {where.size} bytes, more than {max_size}")
        return (yield where) if where.size else b""
    entry = next((entry for entry in toc if entry.name == name), None)
    if entry is None:
        raise FormatError(f"no entry {name!r} in the blob's TOC")
    if max(entry.uncompressed_size, entry.compressed_size) > max_size:
        raise FormatError(f"entry {name!r} has {entry.uncompressed_size} bytes, more than {max_size}")
    stored = (yield Range(entry.compressed_offset, entry.compressed_size)) if entry.compressed_size else b""
    try:
        packed = cipher.decrypt(stored) if cipher else stored
        data = decompress(entry.compressor, packed, entry.uncompressed_size)
    except FormatError as exc:
        raise FormatError(f"entry {name!r} of the blob: {exc}") from exc
    if any(entry.uncompressed_digest) and hashlib.sha256(data).digest() != entry.uncompressed_digest:
        raise FormatError(f"entry {name!r} of the blob does not have the digest that the TOC gives it")
    return data


def run(search: Generator[Range, bytes, T], read: Callable[[int, int], bytes]) -> T:
    """Run a search with `read(offset, size)`, which must return exactly `size` bytes."""
    try:
        wanted = next(search)
        while True:
            wanted = search.send(read(wanted.offset, wanted.size))
    except StopIteration as stop:
        result: T = stop.value
        return result
