"""Reads the chunks of an image back from its blobs, decompresses them and checks their digests.

A blob is read once, front to back, so that it may be a pipe. Only a blob that refers to a gzip layer, and
that layer, must be files: the ranges of contexts overlap. Threads decompress and digest: both release the GIL
for large chunks, and small chunks are batched.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from os import cpu_count
from typing import IO, Final

from nydus_service.errors import DiffersError, FormatError, NotFoundError, UnsupportedError, from_os_error
from nydus_service.rafs.codecs import decompress
from nydus_service.rafs.constants import (
    BLOB_BATCH,
    BLOB_ENCRYPTED,
    BLOB_TARFS,
    BLOB_ZRAN,
    CHUNK_BATCH,
    CHUNK_COMPRESSED,
    CHUNK_ENCRYPTED,
    CHUNK_HAS_CRC32,
)
from nydus_service.rafs.reader import Bootstrap
from nydus_service.rafs.tree import Blob, Chunk, walk
from nydus_service.rafs.zran import Context, ZranTable, cut_chunk, decode_context, read_zran_table
from nydus_service.tarsplit.chunkdigests import Hasher, open_hasher
from nydus_service.treeverify.report import Difference, Report

_BATCH_SIZE: Final = 2 << 20
_SKIP_SIZE: Final = 1 << 20

Batch = list[tuple[Chunk, bytes]]
"""Chunks with their stored bytes."""
Problem = tuple[Chunk, str, str, str]
"""A damaged chunk, with the field, the wanted and the found value."""


def check_stored(bootstrap: Bootstrap, paths: Mapping[str, str], report: Report) -> None:
    """Read every chunk that a file of the image uses.

    Args:
        bootstrap: has the places of the chunks.
        paths: paths of the blobs by id; files or pipes.
        report: receives the damaged chunks.
    Raises:
        NotFoundError: `paths` does not have a blob, or its file does not exist.
        DiffersError: the table about a gzip layer is damaged.
        UnsupportedError: the chunks of a blob are encrypted, batched or in a tar.
    """
    problems: list[Problem] = []
    for blob, chunks in _used_chunks(bootstrap).items():
        reader: _BlobReader | _ReferenceReader
        if blob.features & BLOB_ZRAN:
            reader = _ReferenceReader(_read_table(blob, paths), blob, chunks)
        else:
            reader = _BlobReader(blob, chunks, bootstrap.digester)
        with _open_blob(paths, blob.blob_id) as file:
            problems += reader.read(file)
        report.read_bytes += reader.read_bytes
    _report(bootstrap, problems, report)


def _read_table(blob: Blob, paths: Mapping[str, str]) -> ZranTable:
    """Read the table about a gzip layer. Raises: DiffersError: it is damaged."""
    blob_id = blob.meta_digest.hex()
    with _open_blob(paths, blob_id) as file:
        try:
            return read_zran_table(blob, partial(_read_at, file))
        except FormatError as exc:
            raise DiffersError(f"damaged: blob {blob_id}: {exc}") from exc


@contextmanager
def _open_blob(paths: Mapping[str, str], blob_id: str) -> Iterator[IO[bytes]]:
    """Open a blob. Errors of the operating system while it is open are reported about it."""
    path = paths.get(blob_id)
    if path is None:
        raise NotFoundError(f"blob {blob_id} is used by the image, but not among the blobs given")
    try:
        with open(path, "rb", buffering=0) as file:
            yield file
    except OSError as exc:
        raise from_os_error(exc, f"read blob {blob_id}") from exc


def _read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    """Read a range of a blob. Raises: FormatError: the blob is shorter."""
    data = b"".join(_pread_all(file, offset, size))
    if len(data) != size:
        raise FormatError(f"it ends at {offset + len(data)}, within its chunk-info table")
    return data


def _pread_all(file: IO[bytes], offset: int, size: int) -> Iterator[bytes]:
    while size and (part := os.pread(file.fileno(), size, offset)):
        yield part
        offset += len(part)
        size -= len(part)


def _used_chunks(bootstrap: Bootstrap) -> dict[Blob, list[Chunk]]:
    """The chunks of all files by blob, each once, in the order in which they are stored."""
    chunks = {chunk for _, inode in walk(bootstrap.root) for chunk in inode.chunks}
    by_blob: dict[Blob, list[Chunk]] = {blob: [] for blob in bootstrap.blobs}
    for chunk in chunks:
        by_blob[chunk.blob].append(chunk)
    for listed in by_blob.values():
        listed.sort(key=lambda chunk: (chunk.compressed_offset, chunk.index))
    return {blob: listed for blob, listed in by_blob.items() if listed}


def _report(bootstrap: Bootstrap, problems: list[Problem], report: Report) -> None:
    """Report each damaged chunk with the first file that uses it."""
    users: dict[int, bytes] = {id(chunk): b"" for chunk, _, _, _ in problems}
    if users:
        for path, inode in walk(bootstrap.root):
            for chunk in inode.chunks:
                if users.get(id(chunk)) == b"":
                    users[id(chunk)] = path
    for chunk, field, wanted, found in problems:
        where = f"{field} of chunk {chunk.index} in blob {chunk.blob.blob_id}"
        report.add(Difference(users[id(chunk)], where, wanted, found))


class _BlobReader:
    def __init__(self, blob: Blob, chunks: list[Chunk], digester: str) -> None:
        """Raises: UnsupportedError: the chunks are encrypted, batched or in a tar."""
        special = BLOB_BATCH | BLOB_ENCRYPTED | BLOB_TARFS
        if blob.features & special or any(chunk.flags & (CHUNK_BATCH | CHUNK_ENCRYPTED) for chunk in chunks):
            raise UnsupportedError(
                f"cannot read the chunks of blob {blob.blob_id}: encrypted, batched or in a tar"
            )
        self.read_bytes = 0
        self._blob = blob
        self._chunks = chunks
        self._hasher = open_hasher(digester)

    def read(self, file: IO[bytes]) -> list[Problem]:
        """Check all chunks. Returns the problems."""
        threads = cpu_count() or 1
        problems: list[Problem] = []
        waiting: deque[Future[list[Problem]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for batch in self._batches(file, problems):
                waiting.append(pool.submit(self._check, batch))
                if len(waiting) > 2 * threads:
                    problems += waiting.popleft().result()
            while waiting:
                problems += waiting.popleft().result()
        return problems

    def _batches(self, file: IO[bytes], problems: list[Problem]) -> Iterator[Batch]:
        batch: Batch = []
        size = position = 0
        seekable = file.seekable()
        for chunk in self._chunks:
            wanted = f"{chunk.compressed_size} bytes at {chunk.compressed_offset}"
            if chunk.compressed_size > chunk.uncompressed_size:  # builders store such a chunk plain
                problems.append((chunk, "stored bytes", f"at most {chunk.uncompressed_size} bytes", wanted))
                continue
            if chunk.compressed_offset != position:
                position = _go_to(file, position, chunk.compressed_offset, seekable)
            stored = (
                _read_exactly(file, chunk.compressed_size) if position == chunk.compressed_offset else b""
            )
            position += len(stored)
            self.read_bytes += len(stored)
            if len(stored) != chunk.compressed_size:
                problems.append((chunk, "stored bytes", wanted, f"{len(stored)} bytes"))
                continue
            batch.append((chunk, stored))
            size += len(stored)
            if size >= _BATCH_SIZE:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _check(self, batch: Batch) -> list[Problem]:
        problems: list[Problem] = []
        for chunk, stored in batch:
            try:
                compressor = self._blob.compressor if chunk.flags & CHUNK_COMPRESSED else "none"
                plain = decompress(compressor, stored, chunk.uncompressed_size)
            except FormatError as exc:
                problems.append(
                    (chunk, "stored bytes", f"{chunk.uncompressed_size} bytes when plain", str(exc))
                )
                continue
            problems += _compare(chunk, plain, self._hasher)
        return problems


class _ReferenceReader:
    """Reads the chunks of a blob from the gzip layer to which it refers: each context is decoded once."""

    def __init__(self, table: ZranTable, blob: Blob, chunks: list[Chunk]) -> None:
        self.read_bytes = 0
        self._table = table
        self._hasher = open_hasher(blob.digester)
        self._groups: dict[int, list[Chunk]] = {}
        for chunk in chunks:
            self._groups.setdefault(table.places[chunk.index][0], []).append(chunk)

    def read(self, file: IO[bytes]) -> list[Problem]:
        """Check all chunks. Returns the problems."""
        problems: list[Problem] = []
        waiting: deque[Future[list[Problem]]] = deque()
        with ThreadPoolExecutor(cpu_count() or 1) as pool:
            for number, chunks in self._groups.items():
                context = self._table.contexts[number]
                stored = b"".join(_pread_all(file, context.in_offset, context.in_size))
                self.read_bytes += len(stored)
                waiting.append(pool.submit(self._check, context, stored, chunks))
                if len(waiting) > 2:
                    problems += waiting.popleft().result()
            while waiting:
                problems += waiting.popleft().result()
        return problems

    def _check(self, context: Context, stored: bytes, chunks: list[Chunk]) -> list[Problem]:
        problems: list[Problem] = []
        try:
            plain = decode_context(context, stored)
        except FormatError as exc:
            wanted = f"{context.in_size} bytes at {context.in_offset} that become {context.out_size}"
            return [(chunk, "stored bytes", wanted, str(exc)) for chunk in chunks]
        for chunk in chunks:
            try:
                problems += _compare(chunk, cut_chunk(self._table, chunk, plain), self._hasher)
            except FormatError as exc:
                problems.append((chunk, "place", "inside its context", str(exc)))
        return problems


def _compare(chunk: Chunk, plain: bytes, hasher: Callable[[bytes], Hasher]) -> list[Problem]:
    """Compare the plain bytes of a chunk with its digest and its checksum."""
    digest = hasher(plain).digest()
    if digest != chunk.digest:
        return [(chunk, "digest", chunk.digest.hex(), digest.hex())]
    if chunk.flags & CHUNK_HAS_CRC32 and chunk.crc32 and _crc32c(plain) != chunk.crc32:
        return [(chunk, "CRC-32C", f"{chunk.crc32:08x}", f"{_crc32c(plain):08x}")]
    return []


def _crc32c(data: bytes) -> int:
    from google_crc32c import value as crc32c

    checksum: int = crc32c(data)
    return checksum


def _go_to(file: IO[bytes], position: int, wanted: int, seekable: bool) -> int:
    """Seek to an offset, on a pipe by reading the bytes before it. Returns the position reached."""
    if seekable:
        return file.seek(wanted)
    while position < wanted:
        skipped = len(_read_exactly(file, min(wanted - position, _SKIP_SIZE)))
        if not skipped:
            break
        position += skipped
    return position


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    """Read the next `size` bytes; fewer only at the end of the file."""
    parts = []
    while size and (part := file.read(min(size, _BATCH_SIZE * 8))):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
