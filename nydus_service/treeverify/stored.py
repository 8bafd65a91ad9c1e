"""Reads the chunks of an image back from its blobs, decompresses them and checks their digests.

A blob is read once, front to back, so that it may be a pipe. These must be files: a blob with batches, since
the places of its chunks are only in the table at its end; a blob that refers to a gzip layer, and that layer,
since the ranges of contexts overlap. Threads decompress and digest: both release the GIL for large chunks,
and small pieces are bundled.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from os import cpu_count
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from nydus_service.errors import DiffersError, FormatError, NotFoundError, UnsupportedError, from_os_error
from nydus_service.rafs.chunkinfo import StoredTable, read_table, unpack_batched
from nydus_service.rafs.cipher import PADDED_SIZE, Cipher, cipher_of
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

if TYPE_CHECKING:
    from nydus_service.rafs.batch import Batch

_BUNDLE_SIZE: Final = 2 << 20
_SKIP_SIZE: Final = 1 << 20


class _Piece(NamedTuple):
    """A stored piece of a blob: a chunk, or a batch. Offsets and sizes are in bytes.

    `chunks` are the chunks to check that are in it, with their offsets in its plain bytes.
    """

    offset: int
    size: int
    plain_size: int
    is_compressed: bool
    chunks: list[tuple[Chunk, int]]


Bundle = list[tuple[_Piece, bytes]]
"""Pieces with their stored bytes."""
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
        DiffersError: the table about a gzip layer, or of a blob with batches, is damaged.
        UnsupportedError: the chunks of a blob are in a tar, or encrypted while the package for this is not
            installed.
    """
    problems: list[Problem] = []
    for blob, chunks in _used_chunks(bootstrap).items():
        reader: _BlobReader | _ReferenceReader
        if blob.features & BLOB_ZRAN:
            reader = _ReferenceReader(_read_zran(blob, paths), blob, chunks)
        else:
            reader = _BlobReader(blob, _pieces_of(blob, chunks, paths), bootstrap.digester)
        with _open_blob(paths, blob.blob_id) as file:
            problems += reader.read(file)
        report.read_bytes += reader.read_bytes
    _report(bootstrap, problems, report)


def _pieces_of(blob: Blob, chunks: list[Chunk], paths: Mapping[str, str]) -> Iterable[_Piece]:
    """The pieces in which chunks of a blob are stored, by offset.

    Raises:
        DiffersError: the blob's table is damaged, or contradicts the bootstrap.
        UnsupportedError: the chunks are in a tar.
    """
    unread = CHUNK_BATCH if blob.features & BLOB_ENCRYPTED else CHUNK_BATCH | CHUNK_ENCRYPTED
    if blob.features & BLOB_TARFS or any(chunk.flags & unread for chunk in chunks):
        raise UnsupportedError(
            f"cannot read the chunks of blob {blob.blob_id}: in a tar, or of a kind that its row lacks"
        )
    if blob.features & BLOB_BATCH:
        with _open_table(paths, blob.blob_id) as read:
            return _pieces_in(read_table(blob, read), chunks)
    return (
        _Piece(
            chunk.compressed_offset,
            chunk.compressed_size,
            chunk.uncompressed_size,
            bool(chunk.flags & CHUNK_COMPRESSED),
            [(chunk, 0)],
        )
        for chunk in chunks
    )


def _pieces_in(table: StoredTable, chunks: list[Chunk]) -> list[_Piece]:
    """The pieces of a blob whose places are only in its table. Raises: FormatError: it is damaged."""
    batched = unpack_batched(table.data, table.header, table.chunks)
    batches: dict[Batch, _Piece] = {}
    pieces: list[_Piece] = []
    for chunk in chunks:
        stored = table.chunks[chunk.index]
        if (stored.uncompressed_offset, stored.uncompressed_size) != (
            chunk.uncompressed_offset,
            chunk.uncompressed_size,
        ):
            raise FormatError(f"chunk {chunk.index} is not the one of the bootstrap")
        place = batched.get(chunk.index)
        if place is None:
            is_compressed = bool(stored.flags & CHUNK_COMPRESSED)
            sizes = stored.compressed_size, chunk.uncompressed_size
            pieces.append(_Piece(stored.compressed_offset, *sizes, is_compressed, [(chunk, 0)]))
            continue
        batch, offset = place
        if batch not in batches:
            sizes = batch.compressed_size, batch.uncompressed_size
            batches[batch] = _Piece(batch.compressed_offset, *sizes, sizes[0] != sizes[1], [])
            pieces.append(batches[batch])
        batches[batch].chunks.append((chunk, offset))
    return sorted(pieces, key=lambda piece: piece.offset)


def _read_zran(blob: Blob, paths: Mapping[str, str]) -> ZranTable:
    """Read the table about a gzip layer. Raises: DiffersError: it is damaged."""
    with _open_table(paths, blob.meta_digest.hex()) as read:
        return read_zran_table(blob, read)


@contextmanager
def _open_table(paths: Mapping[str, str], blob_id: str) -> Iterator[Callable[[int, int], bytes]]:
    """Open a blob to read its table by ranges. Raises: DiffersError: for a FormatError inside."""
    with _open_blob(paths, blob_id) as file:
        try:
            yield partial(_read_at, file)
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
    def __init__(self, blob: Blob, pieces: Iterable[_Piece], digester: str) -> None:
        """
        Args:
            pieces: by offset.
        """
        self.read_bytes = 0
        self._blob = blob
        self._pieces = pieces
        self._cipher = _cipher_of(blob)
        self._hasher = open_hasher(digester)

    def read(self, file: IO[bytes]) -> list[Problem]:
        """Check all chunks. Returns the problems."""
        threads = cpu_count() or 1
        problems: list[Problem] = []
        waiting: deque[Future[list[Problem]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for bundle in self._bundles(file, problems):
                waiting.append(pool.submit(self._check, bundle))
                if len(waiting) > 2 * threads:
                    problems += waiting.popleft().result()
            while waiting:
                problems += waiting.popleft().result()
        return problems

    def _bundles(self, file: IO[bytes], problems: list[Problem]) -> Iterator[Bundle]:
        bundle: Bundle = []
        size = position = 0
        seekable = file.seekable()
        for piece in self._pieces:
            wanted = f"{piece.size} bytes at {piece.offset}"
            most = max(piece.plain_size, PADDED_SIZE if self._cipher else 0)
            if piece.size > most:  # builders store a piece plain that compression does not make smaller
                problems += _fault(piece, f"at most {most} bytes", wanted)
                continue
            if piece.offset != position:
                position = _go_to(file, position, piece.offset, seekable)
            stored = _read_exactly(file, piece.size) if position == piece.offset else b""
            position += len(stored)
            self.read_bytes += len(stored)
            if len(stored) != piece.size:
                problems += _fault(piece, wanted, f"{len(stored)} bytes")
                continue
            bundle.append((piece, stored))
            size += len(stored)
            if size >= _BUNDLE_SIZE:
                yield bundle
                bundle, size = [], 0
        if bundle:
            yield bundle

    def _check(self, bundle: Bundle) -> list[Problem]:
        problems: list[Problem] = []
        for piece, stored in bundle:
            try:
                packed = self._cipher.decrypt(stored) if self._cipher else stored
                compressor = self._blob.compressor if piece.is_compressed else "none"
                plain = decompress(compressor, packed, piece.plain_size)
            except FormatError as exc:
                problems += _fault(piece, f"{piece.plain_size} bytes when plain", str(exc))
                continue
            for chunk, offset in piece.chunks:
                content = plain[offset : offset + chunk.uncompressed_size]
                problems += _compare(chunk, content, self._hasher)
        return problems


def _cipher_of(blob: Blob) -> Cipher | None:
    """Raises: DiffersError: the blob's row has an invalid key. UnsupportedError: as for `cipher_of`."""
    try:
        return cipher_of(blob)
    except FormatError as exc:
        raise DiffersError(f"damaged: blob {blob.blob_id}: {exc}") from exc


def _fault(piece: _Piece, wanted: str, found: str) -> list[Problem]:
    """The problem of all chunks of a piece that cannot be read."""
    return [(chunk, "stored bytes", wanted, found) for chunk, _ in piece.chunks]


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
    while size and (part := file.read(min(size, _BUNDLE_SIZE * 8))):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
