"""Converts content to stored chunks.

Content is digested and deduplicated in the order of the tar, compressed by threads, and written in order.

    add() ─► bundle ─┬─► Channel of work ─► threads "compress"
                     └─► Channel in order ─► thread "store" waits for each bundle in turn, writes it

`add` runs in one thread, so deduplication does not depend on timing: the same input gives the same blob.
Small pieces are bundled, so that a file of one line does not cost a thread switch. The channels' sizes bound
the memory.

A piece is the content of a chunk, or of a batch (rafs/batch.py): several small files that are compressed
together. `add` also decides about the batches.
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
from nydus_service.rafs.batch import Batch, BatchPlace
from nydus_service.rafs.cipher import PADDED_SIZE, Cipher, encryptable
from nydus_service.rafs.codecs import ZSTD_LEVEL, open_compressor
from nydus_service.rafs.constants import (
    BLOB_ENCRYPTED,
    BLOCK_SIZE,
    CHUNK_COMPRESSED,
    CHUNK_ENCRYPTED,
    CHUNK_HAS_CRC32,
    MAX_CHUNKS,
    MAX_COMPRESSED_BLOB_SIZE,
    MAX_UNCOMPRESSED_BLOB_SIZE,
)
from nydus_service.rafs.tree import Blob, Chunk

_BUNDLE_BYTES = 1 << 19
_BUNDLE_PIECES = 512
_STUCK_S = 0.5

Data = bytes | memoryview

_HASHERS: dict[str, Callable[[Data], Any]] = {"blake3": blake3, "sha256": hashlib.sha256}
"""Hashers by digester name. Not shared with the recorder (`tarsplit.chunkdigests`), so that mistakes show."""


class _Bundle:
    """Pieces that one thread compresses to `packed` and encrypts to `stored`, and their chunks or batches.

    `done` is held until `stored` or `error` is set.
    """

    __slots__ = ("done", "error", "owners", "packed", "pieces", "size", "stored")

    def __init__(self) -> None:
        self.owners: list[Chunk | Batch] = []
        self.pieces: list[Data] = []
        self.packed: list[Data] = []
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
        self._flags = CHUNK_HAS_CRC32 | (CHUNK_ENCRYPTED if blob.features & BLOB_ENCRYPTED else 0)
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
        chunk = Chunk(blob, index, digest, self._flags, 0, size, 0, offset, file_offset, checksum)
        blob.chunk_count = index + 1
        blob.uncompressed_size = (offset + size + BLOCK_SIZE - 1) & -BLOCK_SIZE
        self._known[digest] = chunk
        self.chunks.append(chunk)
        return chunk, True


class _Batching:
    """The batches of a blob. Collects the contents of small files for the next one."""

    def __init__(self, batch_size: int, is_encrypted: bool) -> None:
        """
        Args:
            batch_size: a batch has less bytes; a file that is collected has less than half of it.
            is_encrypted: whether the batches are encrypted.
        """
        self._batch_size = batch_size
        self._least = PADDED_SIZE + 1 if is_encrypted else 1
        self._collected: list[tuple[Chunk, Data]] = []
        self._filled = 0
        self._batch = Batch(0)
        self.batches: list[Batch] = []
        self.batched: dict[int, BatchPlace] = {}

    def takes(self, size: int, file_offset: int) -> bool:
        """Whether a new chunk belongs to a batch: it is a whole file, and a small one.

        A larger file begins with a chunk of the chunk size, which is never less than the batch size.
        """
        return size < self._batch_size // 2 and not file_offset

    def has_room(self, size: int) -> bool:
        return self._filled + size < self._batch_size

    def add(self, chunk: Chunk, data: Data) -> None:
        self.batched[chunk.index] = BatchPlace(self._batch, self._filled)
        self._collected.append((chunk, data))
        self._filled += len(data)

    def end(self) -> list[tuple[Chunk | Batch, Data]]:
        """Close the open batch. Returns it with its plain bytes.

        Returns the chunks instead if they are too small together: readers compare the two sizes of a batch,
        to which padding must not add.
        """
        collected, filled = self._collected, self._filled
        self._collected, self._filled = [], 0
        if filled < self._least:
            for chunk, _ in collected:
                del self.batched[chunk.index]
            return [*collected]
        batch, data = self._batch, b"".join(data for _, data in collected)
        batch.uncompressed_size = filled
        self.batches.append(batch)
        self._batch = Batch(len(self.batches))
        return [(batch, data)]


class ChunkPipeline(ChunkList):
    """Converts pieces of content to chunks of one blob.

    Args of the constructor:
        blob: the row of the chunks; its chunk count and uncompressed size are updated.
        write: receives the stored bytes, in order, in a thread of the pipeline.
        level: level of the compressor, if it is zstd.
        threads: number of compressing threads; by default one per core.
        known: as in `ChunkList`.
        cipher: the blob's, if it is encrypted.
        batch_size: size below which batches stay, in bytes, up to the chunk size; 0: no batches.

    `batches` and `batched` are complete after `finish`: the batches by index, and the places of their chunks.

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
        cipher: Cipher | None = None,
        batch_size: int = 0,
    ) -> None:
        super().__init__(blob, known)
        self._cipher = cipher
        self._batching = _Batching(batch_size, cipher is not None) if batch_size else None
        self._level = level
        self._write = write
        self._bundle = _Bundle()
        self._last: tuple[Data, Chunk] | None = None
        self._error: BaseException | None = None
        self.stored_size = 0
        count = threads or len(os.sched_getaffinity(0))
        self._work: Channel[_Bundle] = Channel(count + 2)
        self._order: Channel[_Bundle] = Channel(count + 2)
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
            if self._batching is None:
                self._queue(chunk, data, size)
            else:
                self._queue_or_batch(self._batching, chunk, data, size)
        if size == self._blob.chunk_size:
            self._last = (data, chunk)
        return chunk

    @property
    def batches(self) -> list[Batch]:
        return self._batching.batches if self._batching else []

    @property
    def batched(self) -> Mapping[int, BatchPlace]:
        return self._batching.batched if self._batching else {}

    def _queue_or_batch(self, batching: _Batching, chunk: Chunk, data: Data, size: int) -> None:
        if not batching.takes(size, chunk.file_offset):
            self._end_batch(batching)
            self._queue(chunk, data, size)
            return
        if not batching.has_room(size):
            self._end_batch(batching)
        batching.add(chunk, data)

    def _end_batch(self, batching: _Batching) -> None:
        for owner, piece in batching.end():
            self._queue(owner, piece, len(piece))

    def _queue(self, owner: Chunk | Batch, piece: Data, size: int) -> None:
        bundle = self._bundle
        bundle.owners.append(owner)
        bundle.pieces.append(piece)
        bundle.size += size
        if bundle.size >= _BUNDLE_BYTES or len(bundle.owners) >= _BUNDLE_PIECES:
            self._send()

    def _send(self) -> None:
        bundle, self._bundle = self._bundle, _Bundle()
        try:
            self._work.put(bundle)
            self._order.put(bundle)
        except Closed:
            raise self._error or Closed from None

    def finish(self) -> None:
        """Write the rest and wait for it. Raises the first error of any thread of the pipeline."""
        if self._batching is not None:
            self._end_batch(self._batching)
        if self._bundle.owners:
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
                bundle = self._work.get()
            except Closed:
                return
            try:
                if self._error is None:
                    bundle.packed = bundle.stored = compress(bundle.pieces)
                    if self._cipher is not None:
                        bundle.packed = list(map(encryptable, bundle.pieces, bundle.packed))
                        bundle.stored = list(map(self._cipher.encrypt, bundle.packed))
            except BaseException as exc:
                bundle.error = exc
            finally:
                bundle.done.release()

    def _store_all(self) -> None:
        try:
            while True:
                try:
                    bundle = self._order.get()
                except Closed:
                    return
                bundle.done.acquire()
                if bundle.error is not None:
                    raise bundle.error
                if self._error is not None:
                    return
                self._store(bundle)
        except BaseException as exc:
            self._fail(exc)

    def _store(self, bundle: _Bundle) -> None:
        offset = self.stored_size
        for owner, piece, packed, stored in zip(
            bundle.owners, bundle.pieces, bundle.packed, bundle.stored, strict=True
        ):
            owner.compressed_offset = offset
            owner.compressed_size = size = len(stored)
            if packed is not piece:
                owner.flags |= CHUNK_COMPRESSED
            offset += size
        if offset > MAX_COMPRESSED_BLOB_SIZE:
            raise FormatError(f"one layer of {offset} stored bytes does not fit a blob")
        self.stored_size = offset
        self._write(bundle.stored[0] if len(bundle.stored) == 1 else b"".join(bundle.stored))
