"""Check the end of a nydus blob, and extract its bootstrap and chunk table.

Both are at the blob's end, which is kept in memory while the blob is written to the store. So the store is
rarely read. rafs/blob.py knows the layout.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import anyio.to_thread

from nydus_service.content.store import ReaderAt
from nydus_service.errors import FormatError, from_os_error
from nydus_service.oci.digest import Digest
from nydus_service.rafs import blob as sections
from nydus_service.rafs.blob import Range, Section
from nydus_service.rafs.cipher import Cipher, cipher_of
from nydus_service.rafs.constants import BLOB_INLINED_FS_META, BLOCK_SIZE, FLAG_ENCRYPTION_AES_XTS, align
from nydus_service.rafs.records import read_tables
from nydus_service.rafs.toc import ENTRY_SIZE

T = TypeVar("T")

TAIL_SIZE: Final = 2 << 20
"""Bytes of a blob's end to keep in memory: enough for bootstrap and chunk table of most layers."""


class BlobTail:
    """The end of a blob that is being written. Holds the pieces themselves, not copies."""

    def __init__(self, limit: int = TAIL_SIZE) -> None:
        self._limit = limit
        self._pieces: deque[bytes | memoryview] = deque()
        self._start = 0
        self.size = 0
        """Bytes of the blob so far."""

    def add(self, piece: bytes | memoryview) -> None:
        """Add the next piece. The caller must not change it afterwards."""
        self._pieces.append(piece)
        self.size += len(piece)
        while self.size - self._start - len(self._pieces[0]) >= self._limit:
            self._start += len(self._pieces.popleft())

    def has(self, where: Range) -> bool:
        return self._start <= where.offset and where.offset + where.size <= self.size

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes of the blob at `offset`.

        Raises:
            FormatError: the bytes are not in the kept end.
        """
        if not self.has(Range(offset, size)):
            raise FormatError(f"bytes {offset} to {offset + size} are not at the end of the blob")
        parts = []
        at = self._start
        for piece in self._pieces:
            part = piece[max(0, offset - at) : max(0, offset + size - at)]
            parts.append(bytes(part))
            at += len(piece)
        return b"".join(parts)


def check_end(tail: BlobTail) -> bool:
    """Check that a blob ends as nydus blobs with inline metadata do: with a bootstrap and a TOC.

    Returns:
        Whether all that `extract` reads is in the kept end.
    Raises:
        FormatError: the blob has no table of contents, or no bootstrap in front of it.
    """
    toc = sections.run(sections.read_toc(tail.size), tail.read)
    if not toc:
        raise FormatError("the blob has no table of contents")
    boot = next((entry for entry in toc if entry.name == sections.BOOTSTRAP), None)
    if boot is None:
        raise FormatError(f"the blob's table of contents has no {sections.BOOTSTRAP}")
    toc_start = tail.size - sections.HEADER_SIZE - ENTRY_SIZE * len(toc)
    at = toc_start - sections.HEADER_SIZE
    header = sections.unpack_header(tail.read(at, sections.HEADER_SIZE), at)
    if header != Section(sections.BOOTSTRAP, boot.compressed_size):
        raise FormatError(f"the blob's {sections.BOOTSTRAP} is not where its table of contents says")
    if boot.compressed_offset + boot.compressed_size != at:
        raise FormatError(f"the blob's {sections.BOOTSTRAP} is not where its table of contents says")
    return all(
        tail.has(Range(entry.compressed_offset, entry.compressed_size))
        for entry in toc
        if entry.name in (sections.BOOTSTRAP, sections.META, sections.META_HEADER)
    )


@dataclass(frozen=True, slots=True)
class BlobMetadata:
    """Files with the metadata of a blob.

    Attributes:
        bootstrap: named by the hex digest of the blob, or of the gzip layer to which it refers, as `merge`
            requires.
        chunk_table: as the runtime caches it: `blob.meta`, padded to whole blocks of 4096 bytes, then
            `blob.meta.header`, both decrypted. None for a blob without chunks.
        toc_digest, toc_size: of the table of contents with its header, in bytes; None and 0 without one.
    """

    bootstrap: Path
    chunk_table: Path | None
    toc_digest: Digest | None = None
    toc_size: int = 0


async def extract(reader: ReaderAt | None, tail: BlobTail, hex_digest: str, directory: Path) -> BlobMetadata:
    """Extract bootstrap and chunk table of a blob. Digests and sizes are checked against its TOC.

    Args:
        reader: of the blob; None if all needed bytes are in the tail.
        tail: the kept end of the blob; may be empty.
        hex_digest: the name of the bootstrap's file.
        directory: for the files of this blob.
    Raises:
        FormatError: the blob is damaged, or not a nydus blob.
        UnsupportedError: the blob is encrypted, and the package for this is not installed.
        NoSpaceError, NydusServiceError: the files cannot be written.
    """
    blob = _Blob(reader, tail)
    toc = await blob.search(sections.read_toc(blob.size))
    bootstrap, table = directory / hex_digest, None
    data = await blob.search(sections.read_entry(sections.BOOTSTRAP, blob.size))
    await anyio.to_thread.run_sync(_write, bootstrap, [data])
    if any(entry.name == sections.META for entry in toc):
        table = directory / f"{hex_digest}.blob.meta"
        cipher = await anyio.to_thread.run_sync(_cipher_of, data)
        chunks = await blob.search(sections.read_entry(sections.META, blob.size, cipher=cipher))
        header = await blob.search(sections.read_entry(sections.META_HEADER, blob.size, cipher=cipher))
        padding = bytes(align(len(chunks), BLOCK_SIZE) - len(chunks))
        await anyio.to_thread.run_sync(_write, table, [chunks, padding, header])
    if not toc:
        return BlobMetadata(bootstrap, table)
    toc_size = ENTRY_SIZE * len(toc) + sections.HEADER_SIZE
    stored_toc = await blob.read(Range(blob.size - toc_size, toc_size))
    return BlobMetadata(bootstrap, table, Digest.of(stored_toc), toc_size)


async def unpack_entry(reader: ReaderAt, name: str) -> bytes:
    """Read and decompress one entry of a nydus blob in a store, such as `image.boot`.

    Raises:
        FormatError: the entry is missing, damaged or differs from the blob's TOC; or it is not a nydus blob.
        NydusServiceError: by the store.
    """
    return await _Blob(reader, BlobTail()).search(sections.read_entry(name, reader.size))


class _Blob:
    """Answers the searches of rafs/blob.py from memory, else from the store."""

    def __init__(self, reader: ReaderAt | None, tail: BlobTail) -> None:
        self._reader = reader
        self._tail = tail
        self.size = tail.size if reader is None else reader.size

    async def search(self, search: Generator[Range, bytes, T]) -> T:
        """Drive a search. The search itself, such as decompression, runs in a thread."""
        data = None
        while True:
            step = await anyio.to_thread.run_sync(_advance, search, data)
            if not isinstance(step, Range):
                return step.value
            data = await self.read(step)

    async def read(self, where: Range) -> bytes:
        if self._reader is None or self._tail.has(where):
            return self._tail.read(where.offset, where.size)
        data = await self._reader.read_at(where.offset, where.size)
        if len(data) != where.size:
            raise FormatError(f"the blob ends at {where.offset + len(data)}, within its metadata")
        return data


@dataclass(frozen=True, slots=True)
class _Found(Generic[T]):
    value: T


def _advance(search: Generator[Range, bytes, T], data: bytes | None) -> Range | _Found[T]:
    # A future cannot hold StopIteration, so it must not leave the thread.
    try:
        return next(search) if data is None else search.send(data)
    except StopIteration as stop:
        return _Found(stop.value)


def _cipher_of(bootstrap: bytes) -> Cipher | None:
    """The cipher of the blob that contains a bootstrap; None if it is not encrypted."""
    tables = read_tables(bootstrap, None)
    if not tables.extended.flags & FLAG_ENCRYPTION_AES_XTS:
        return None
    own = next((blob for blob in tables.blobs if blob.features & BLOB_INLINED_FS_META), None)
    return None if own is None else cipher_of(own)


def _write(path: Path, parts: list[bytes]) -> None:
    try:
        with path.open("wb") as file:
            file.writelines(parts)
    except OSError as exc:
        raise from_os_error(exc, f"write {path}") from exc
