"""Converts content to stored chunks.

Content is digested and deduplicated in the order of the tar, compressed by threads, and written in order.

    add() ─► batch ─┬─► Channel of work ─► threads "compress"
                    └─► Channel in order ─► thread "store" waits for each batch in turn, writes it

`add` runs in one thread, so deduplication does not depend on timing: the same input gives the same blob.
Small chunks are batched, so that a file of one line does not cost a thread switch. The channels' sizes bound
the memory.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from blake3 import blake3
from google_crc32c import value as crc32c

from nydus_service.errors import FormatError
from nydus_service.nydus_image.channel import Channel, Closed
from nydus_service.rafs.codecs import ZSTD_LEVEL, open_compressor
from nydus_service.rafs.constants import (
    BLOCK_SIZE,
    CHUNK_COMPRESSED,
    CHUNK_HAS_CRC32,
    MAX_CHUNKS,
    MAX_COMPRESSED_BLOB_SIZE,
    MAX_UNCOMPRESSED_BLOB_SIZE,
)
from nydus_service.rafs.tree import Blob, Chunk

_BATCH_BYTES = 1 << 19
_BATCH_CHUNKS = 512
_STUCK_S = 0.5

Data = bytes | memoryview

_HASHERS: dict[str, Callable[[Data], Any]] = {"blake3": blake3, "sha256": hashlib.sha256}
"""Hashers by digester name. Not shared with the recorder (`tarsplit.chunkdigests`), so that mistakes show."""


class _Batch:
    """A batch of chunks. `done` is held until `stored` or `error` is set."""

    __slots__ = ("chunks", "done", "error", "pieces", "size", "stored")

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.pieces: list[Data] = []
        self.stored: list[Data] = []
        self.size = 0
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()


class ChunkList:
    """The chunks of one blob: content is digested, and chunks with the same content are one.

    `chunks` lists all chunks by index.
    """

    def __init__(self, blob: Blob, known: Mapping[bytes, Chunk] = MappingProxyType({})) -> None:
        """
        Args:
            blob: the row of the chunks; its chunk count and uncompressed size are updated.
            known: chunks of other blobs by digest, to refer to instead of making equal ones.
        """
        self._blob = blob
        self._hasher = _HASHERS[blob.digester]
        self._known = dict(known)
        self.chunks: list[Chunk] = []
        self.reused_elsewhere = False
        """Whether a chunk was reused at another offset of a file than its first one."""

    def find(self, data: Data, file_offset: int) -> tuple[Chunk, bool]:
        """Find or make the chunk of some content. Returns it, and whether it is new.

        Args:
            data: 1 byte up to the chunk size.
            file_offset: its offset in the file, in bytes.
        Raises:
            FormatError: the blob has too many chunks, or is too large.
        """
        digest: bytes = self._hasher(data).digest()
        size = len(data)
        blob = self._blob
        known = self._known.get(digest)
        if known is not None and known.uncompressed_size == size:
            self.reused_elsewhere |= known.file_offset != file_offset
            return known, False
        index = blob.chunk_count
        offset = blob.uncompressed_size
        if index >= MAX_CHUNKS or offset + size > MAX_UNCOMPRESSED_BLOB_SIZE:
            raise FormatError(
                f"one layer with more than {index} chunks or {offset} bytes does not fit a blob"
            )
        checksum = crc32c(bytes(data))  # it does not accept views
        chunk = Chunk(blob, index, digest, CHUNK_HAS_CRC32, 0, size, 0, offset, file_offset, checksum)
        blob.chunk_count = index + 1
        blob.uncompressed_size = (offset + size + BLOCK_SIZE - 1) & -BLOCK_SIZE
        self._known[digest] = chunk
        self.chunks.append(chunk)
        return chunk, True


class ChunkPipeline(ChunkList):
    """Converts pieces of content to chunks of one blob.

    Args of the constructor:
        blob: the row of the chunks; its chunk count and uncompressed size are updated.
        write: receives the stored bytes, in order, in a thread of the pipeline.
        level: level of the compressor, if it is zstd.
        threads: number of compressing threads; by default one per core.
        known: as in `ChunkList`.

    `finish` waits until everything is written. `close` ends the threads in any state; without `finish`, the
    output is incomplete.
    """

    def __init__(
        self,
        blob: Blob,
        write: Callable[[Data], object],
        *,
        level: int = ZSTD_LEVEL,
        threads: int | None = None,
        known: Mapping[bytes, Chunk] = MappingProxyType({}),
    ) -> None:
        super().__init__(blob, known)
        self._level = level
        self._write = write
        self._batch = _Batch()
        self._last: tuple[Data, Chunk] | None = None
        self._error: BaseException | None = None
        self.stored_size = 0
        count = threads or len(os.sched_getaffinity(0))
        self._work: Channel[_Batch] = Channel(count + 2)
        self._order: Channel[_Batch] = Channel(count + 2)
        self._threads = [
            threading.Thread(target=self._compress_all, name="compress", daemon=True) for _ in range(count)
        ]
        self._threads.append(threading.Thread(target=self._store_all, name="store", daemon=True))
        for thread in self._threads:
            thread.start()

    def add(self, data: Data, file_offset: int) -> Chunk:
        """Add content. Returns its chunk, new or known.

        Args:
            data: 1 byte up to the chunk size; must not change afterwards.
            file_offset: its offset in the file, in bytes.
        Raises:
            FormatError: the blob has too many chunks, or is too large.
        """
        last = self._last
        if last is not None and last[0] is data:  # repeated zeros of a hole
            chunk = last[1]
            self.reused_elsewhere |= chunk.file_offset != file_offset
            return chunk
        chunk, is_new = self.find(data, file_offset)
        size = len(data)
        if is_new:
            batch = self._batch
            batch.chunks.append(chunk)
            batch.pieces.append(data)
            batch.size += size
            if batch.size >= _BATCH_BYTES or len(batch.chunks) >= _BATCH_CHUNKS:
                self._send()
        if size == self._blob.chunk_size:
            self._last = (data, chunk)
        return chunk

    def _send(self) -> None:
        batch, self._batch = self._batch, _Batch()
        try:
            self._work.put(batch)
            self._order.put(batch)
        except Closed:
            raise self._error or Closed from None

    def finish(self) -> None:
        """Write the rest and wait for it. Raises the first error of any thread of the pipeline."""
        if self._batch.chunks:
            self._send()
        self._work.close()
        self._order.close()
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the threads. A thread that is blocked on an unread pipe ends with the process."""
        self._fail(Closed())
        for thread in self._threads:
            thread.join(_STUCK_S)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._work.close()
        self._order.close()

    def _compress_all(self) -> None:
        compress = open_compressor(self._blob.compressor, self._level)
        while True:
            try:
                batch = self._work.get()
            except Closed:
                return
            try:
                if self._error is None:
                    batch.stored = compress(batch.pieces)
            except BaseException as exc:
                batch.error = exc
            finally:
                batch.done.release()

    def _store_all(self) -> None:
        try:
            while True:
                try:
                    batch = self._order.get()
                except Closed:
                    return
                batch.done.acquire()
                if batch.error is not None:
                    raise batch.error
                if self._error is not None:
                    return
                self._store(batch)
        except BaseException as exc:
            self._fail(exc)

    def _store(self, batch: _Batch) -> None:
        offset = self.stored_size
        for chunk, piece, stored in zip(batch.chunks, batch.pieces, batch.stored, strict=True):
            chunk.compressed_offset = offset
            chunk.compressed_size = size = len(stored)
            if stored is not piece:
                chunk.flags |= CHUNK_COMPRESSED
            offset += size
        if offset > MAX_COMPRESSED_BLOB_SIZE:
            raise FormatError(f"one layer of {offset} stored bytes does not fit a blob")
        self.stored_size = offset
        self._write(batch.stored[0] if len(batch.stored) == 1 else b"".join(batch.stored))
