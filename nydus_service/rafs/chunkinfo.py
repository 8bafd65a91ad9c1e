"""The chunk-info table of a blob (`blob.meta`, "CI") and its 4096-byte header."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct, error
from types import MappingProxyType
from typing import ClassVar, NamedTuple

from nydus_service.errors import FormatError
from nydus_service.rafs.batch import BATCH_ENTRY_SIZE, BatchPlace, unpack_batches
from nydus_service.rafs.cipher import cipher_of, encrypted_size
from nydus_service.rafs.codecs import decompress
from nydus_service.rafs.constants import (
    BLOB_BATCH,
    BLOB_CHUNK_INFO_V2,
    BLOB_ENCRYPTED,
    BLOB_SEPARATE,
    BLOB_ZRAN,
    CHUNK_BATCH,
    CHUNK_COMPRESSED,
    CHUNK_ENCRYPTED,
    CHUNK_HAS_CRC32,
    CHUNK_V2_BATCH,
    CHUNK_V2_COMPRESSED,
    CHUNK_V2_ENCRYPTED,
    CHUNK_V2_HAS_CRC32,
    CHUNK_V2_ZRAN,
    COMPRESSORS,
    MAX_CHUNKS,
    align,
)
from nydus_service.rafs.tree import Blob, Chunk

HEADER_SIZE = 4096
MAGIC = 0xB10BB10B
ENTRY_V1_SIZE = 16
ENTRY_V2_SIZE = 24
_MAX_CHUNK_BYTES = 1 << 24
_MAX_ZRAN_SIZE = 40 + 32768
"""Bytes of a zran context with its window; there are not more contexts than chunks."""


@dataclass(frozen=True, slots=True)
class ChunkInfoHeader:
    """The header after the stored table: 4096 bytes, little-endian. Columns: offset, size, field.

       0    4  magic                   0xB10BB10B
       4    4  features                constants.BLOB_*
       8    4  ci_compressor           0 none, 1 lz4_block, 2 gzip, 3 zstd
      12    4  chunk_count
      16    8  ci_offset               bytes, from the start of the blob
      24    8  ci_compressed_size      bytes
      32    8  ci_uncompressed_size    bytes
      40    8  contexts_offset         of zran or batch contexts in the uncompressed table, or 0
      48    8  contexts_size           bytes
      56    4  contexts_count
      60 4032  zero
    4092    4  magic

    Source: nydus storage/src/meta/mod.rs, `BlobCompressionContextHeader`.
    """

    LAYOUT: ClassVar[Struct] = Struct("<IIIIQQQQQI4032xI")

    features: int
    ci_compressor: str
    chunk_count: int
    ci_offset: int
    ci_compressed_size: int
    ci_uncompressed_size: int
    contexts_offset: int = 0
    contexts_size: int = 0
    contexts_count: int = 0

    def pack(self) -> bytes:
        return self.LAYOUT.pack(
            MAGIC,
            self.features,
            COMPRESSORS.index(self.ci_compressor),
            self.chunk_count,
            self.ci_offset,
            self.ci_compressed_size,
            self.ci_uncompressed_size,
            self.contexts_offset,
            self.contexts_size,
            self.contexts_count,
            MAGIC,
        )

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> "ChunkInfoHeader":
        """Raises: FormatError: the data is not a chunk-info header, or contradicts itself."""
        if len(data) != HEADER_SIZE:
            raise FormatError(f"a chunk-info header has {HEADER_SIZE} bytes, not {len(data)}")
        first, features, compressor, *rest, last = cls.LAYOUT.unpack(data)
        if first != MAGIC or last != MAGIC:
            raise FormatError("no chunk-info header: its magic is missing")
        if compressor >= len(COMPRESSORS):
            raise FormatError(f"chunk-info header with unknown compressor {compressor}")
        header = cls(features, COMPRESSORS[compressor], *rest)
        header.validate()
        return header

    def validate(self) -> None:
        """Raises: FormatError: counts and sizes contradict each other."""
        if not 0 < self.chunk_count <= MAX_CHUNKS + 1:
            raise FormatError(f"chunk-info table of {self.chunk_count} chunks")
        check_table_size(self.features, self.chunk_count, self.ci_uncompressed_size)
        if self.ci_compressed_size > self.ci_uncompressed_size:
            raise FormatError("chunk-info table that grows when it is compressed")
        if self.contexts_offset + self.contexts_size > self.ci_uncompressed_size:
            raise FormatError("contexts of the chunk-info table lie outside of it")
        if self.features & BLOB_ZRAN and (
            self.contexts_offset != ENTRY_V2_SIZE * self.chunk_count
            or not 0 < self.contexts_count <= self.chunk_count
        ):
            raise FormatError(f"{self.contexts_count} contexts at {self.contexts_offset} of the table")
        if self.features & BLOB_BATCH and self.contexts_count > self.chunk_count:
            raise FormatError(f"{self.contexts_count} batches for {self.chunk_count} chunks")


def check_table_size(features: int, chunk_count: int, size: int) -> None:
    """Compare a table's size with its number of chunks. Raises: FormatError: they do not match."""
    if not features & BLOB_CHUNK_INFO_V2:
        if features & (BLOB_ZRAN | BLOB_BATCH | BLOB_ENCRYPTED):
            raise FormatError(f"blob features {features:#x} need version 2 of the chunk-info table")
        if size != ENTRY_V1_SIZE * chunk_count:
            raise FormatError(f"chunk-info table of {size} bytes for {chunk_count} chunks")
    elif features & (BLOB_ZRAN | BLOB_BATCH | BLOB_ENCRYPTED):
        context_size = _MAX_ZRAN_SIZE if features & BLOB_ZRAN else BATCH_ENTRY_SIZE
        if not 0 <= size - ENTRY_V2_SIZE * chunk_count <= context_size * chunk_count:
            raise FormatError(f"chunk-info table of {size} bytes for {chunk_count} chunks")
    elif size != ENTRY_V2_SIZE * chunk_count:
        raise FormatError(f"chunk-info table of {size} bytes for {chunk_count} chunks")


def pack_v1(chunks: Sequence[Chunk]) -> bytes:
    """Pack the version 1 table: 16 bytes per chunk, two little-endian words. Columns: word, bits, field.

    0  8-11   uncompressed_size - 1, bits 20-23
    0 12-43   uncompressed_offset, bits 12-43
    0 44-63   uncompressed_size - 1, bits 0-19
    1  0-39   compressed_offset
    1 40-43   compressed_size - 1, bits 20-23
    1 44-63   compressed_size - 1, bits 0-19

    A chunk counts as compressed if the two sizes differ. Raises: FormatError: a value does not fit.
    """
    words: list[int] = []
    for chunk in chunks:
        plain = chunk.uncompressed_size - 1
        stored = chunk.compressed_size - 1
        words.append((plain & 0xFFFFF) << 44 | chunk.uncompressed_offset | (plain >> 20) << 8)
        words.append((stored & 0xFFFFF) << 44 | (stored >> 20) << 40 | chunk.compressed_offset)
    return _pack_words(words)


def pack_v2(
    chunks: Sequence[Chunk],
    places: Sequence[tuple[int, int]] = (),
    batched: Mapping[int, BatchPlace] = MappingProxyType({}),
) -> bytes:
    """Pack the version 2 table: 24 bytes per chunk, three little-endian words. Columns: word, bits, field.

    0  0-31   uncompressed_offset >> 12
    0 32-55   uncompressed_size - 1
    0 56-63   flags, constants.CHUNK_V2_*
    1  0-39   compressed_offset; of a batched chunk: that of its batch
    1 40-63   compressed_size; of a batched chunk: 0
    2  0-63   zran: context << 32 | offset in its plain bytes; batch: the same with the index of the batch;
              CRC-32C with its flag; otherwise 0

    A CRC of 0 is stored without its flag, because readers refuse the flag with a zero value. A batched chunk
    has the flag of a compressed one even if its batch is stored plain.

    Args:
        places: for zran chunks, the context and the offset of each.
        batched: the places of batched chunks, by index.
    Raises:
        FormatError: a value does not fit.
    """
    words: list[int] = []
    for number, chunk in enumerate(chunks):
        flags = CHUNK_V2_COMPRESSED if chunk.flags & CHUNK_COMPRESSED else 0
        if chunk.flags & CHUNK_ENCRYPTED:
            flags |= CHUNK_V2_ENCRYPTED
        stored_at = chunk.compressed_offset
        data = 0
        if places:
            flags |= CHUNK_V2_ZRAN
            context, offset = places[number]
            data = context << 32 | offset
        elif place := batched.get(number):
            flags |= CHUNK_V2_COMPRESSED | CHUNK_V2_BATCH
            stored_at = place.batch.compressed_offset
            data = place.batch.index << 32 | place.offset
        elif chunk.flags & CHUNK_HAS_CRC32 and chunk.crc32:
            flags |= CHUNK_V2_HAS_CRC32
            data = chunk.crc32
        words.append(flags << 56 | (chunk.uncompressed_size - 1) << 32 | chunk.uncompressed_offset >> 12)
        words.append(chunk.compressed_size << 40 | stored_at)
        words.append(data)
    return _pack_words(words)


def _pack_words(words: list[int]) -> bytes:
    try:
        return Struct(f"<{len(words)}Q").pack(*words)
    except error:
        raise FormatError("a chunk's size or offset is too large for the chunk-info table") from None


def unpack_table(table: bytes | memoryview, header: ChunkInfoHeader, blob: Blob) -> list[Chunk]:
    """Read the chunks of an uncompressed table, version 1 or 2. The table has no digests; they are empty.

    Args:
        table: `header.ci_uncompressed_size` bytes.
        header: the header of the table.
        blob: the blob of the chunks, whose sizes bound them.
    Raises:
        FormatError: a chunk lies outside of the blob, or overlaps the slot of another chunk.
    """
    if len(table) != header.ci_uncompressed_size:
        raise FormatError(f"chunk-info table of {len(table)} bytes, not {header.ci_uncompressed_size}")
    if header.features & BLOB_CHUNK_INFO_V2:
        chunks = _unpack_v2(table, header.chunk_count, blob)
    else:
        chunks = _unpack_v1(table, header.chunk_count, blob)
    data_size = blob.compressed_size if header.features & BLOB_SEPARATE else header.ci_offset
    end = 0
    for chunk in chunks:
        if chunk.compressed_offset + chunk.compressed_size > data_size:
            raise FormatError(f"chunk {chunk.index} is stored beyond the blob's {data_size} bytes of data")
        if chunk.uncompressed_offset != end:
            raise FormatError(f"chunk {chunk.index} begins at {chunk.uncompressed_offset}, not at {end}")
        if not 0 < chunk.uncompressed_size <= _MAX_CHUNK_BYTES:
            raise FormatError(f"chunk {chunk.index} has {chunk.uncompressed_size} bytes")
        plain_size = 0 if chunk.flags & CHUNK_BATCH else chunk.uncompressed_size
        if chunk.flags & CHUNK_ENCRYPTED:
            plain_size = encrypted_size(plain_size)
        if not chunk.flags & CHUNK_COMPRESSED and chunk.compressed_size != plain_size:
            raise FormatError(f"chunk {chunk.index} is stored plain, in another size")
        end = align(chunk.uncompressed_offset + chunk.uncompressed_size, 4096)
    return chunks


def unpack_places(table: bytes | memoryview, header: ChunkInfoHeader) -> list[tuple[int, int]]:
    """Read the context of each zran chunk, and its offset in the plain bytes of that.

    Raises: FormatError: a chunk is not a zran chunk, or its context does not exist.
    """
    words = Struct(f"<{3 * header.chunk_count}Q").unpack_from(table)
    places = [(word >> 32, word & 0xFFFFFFFF) for word in words[2::3]]
    for index, (context, _) in enumerate(places):
        if not words[3 * index] >> 56 & CHUNK_V2_ZRAN or context >= header.contexts_count:
            raise FormatError(f"chunk {index} is in context {context} of {header.contexts_count}, or in none")
    return places


def unpack_batched(
    table: bytes | memoryview, header: ChunkInfoHeader, chunks: Sequence[Chunk]
) -> dict[int, BatchPlace]:
    """Read the places of the batched chunks of a version 2 table, by index.

    Args:
        chunks: those of the table.
    Raises:
        FormatError: a chunk lies outside of its batch, or the batch does not exist or has several places.
    """
    rows = memoryview(table)[header.contexts_offset : header.contexts_offset + header.contexts_size]
    batches = unpack_batches(rows, header.contexts_count)
    words = Struct(f"<{3 * header.chunk_count}Q").unpack_from(table)
    found: dict[int, BatchPlace] = {}
    begun: set[int] = set()
    for chunk in chunks:
        if not chunk.flags & CHUNK_BATCH:
            continue
        number, offset = divmod(words[3 * chunk.index + 2], 1 << 32)
        if number >= len(batches):
            raise FormatError(f"chunk {chunk.index} is in batch {number} of {len(batches)}")
        batch = batches[number]
        if number not in begun:
            begun.add(number)
            batch.compressed_offset = chunk.compressed_offset
        if chunk.compressed_offset != batch.compressed_offset:
            raise FormatError(f"batch {number} is at {batch.compressed_offset} and {chunk.compressed_offset}")
        if batch.compressed_offset + batch.compressed_size > header.ci_offset:
            raise FormatError(f"batch {number} is stored beyond the blob's {header.ci_offset} bytes of data")
        if offset + chunk.uncompressed_size > batch.uncompressed_size:
            raise FormatError(f"chunk {chunk.index} lies outside of its batch {number}")
        found[chunk.index] = BatchPlace(batch, offset)
    return found


class StoredTable(NamedTuple):
    """A chunk-info table as it was read from a blob: its header, its uncompressed bytes, and its chunks."""

    header: ChunkInfoHeader
    data: bytes
    chunks: list[Chunk]


def read_table(blob: Blob, read: Callable[[int, int], bytes]) -> StoredTable:
    """Read the chunk-info table of a blob.

    Args:
        blob: its row of the blob table.
        read: reads `size` bytes at `offset` of the nydus blob (`read(offset, size)`).
    Raises:
        FormatError: the table is damaged, or differs from the row.
        UnsupportedError: as for `cipher_of`.
    """
    cipher = cipher_of(blob)
    stored_header = read(blob.ci_offset + blob.ci_compressed_size, HEADER_SIZE)
    header = ChunkInfoHeader.unpack(cipher.decrypt(stored_header) if cipher else stored_header)
    row = (blob.ci_compressor, blob.chunk_count, blob.ci_offset, blob.ci_compressed_size)
    if (*row, blob.ci_uncompressed_size) != (
        header.ci_compressor,
        header.chunk_count,
        header.ci_offset,
        header.ci_compressed_size,
        header.ci_uncompressed_size,
    ):
        raise FormatError(f"the chunk-info table of blob {blob.blob_id} is not the one of its row")
    stored = read(blob.ci_offset, blob.ci_compressed_size)
    packed = cipher.decrypt(stored) if cipher else stored
    table = decompress(blob.ci_compressor, packed, blob.ci_uncompressed_size)
    return StoredTable(header, table, unpack_table(table, header, blob))


def _unpack_v1(table: bytes | memoryview, count: int, blob: Blob) -> list[Chunk]:
    words = Struct(f"<{2 * count}Q").unpack_from(table)
    chunks = []
    for index, (first, second) in enumerate(zip(words[::2], words[1::2], strict=True)):
        plain = (first >> 44 | (first >> 8 & 0xF) << 20) + 1
        stored = (second >> 44 | (second >> 40 & 0xF) << 20) + 1
        flags = CHUNK_COMPRESSED if plain != stored else 0
        chunk = Chunk(
            blob, index, b"", flags, stored, plain, second & 0xFF_FFFF_FFFF, first & 0xFFF_FFFF_F000, 0, 0
        )
        chunks.append(chunk)
    return chunks


def _unpack_v2(table: bytes | memoryview, count: int, blob: Blob) -> list[Chunk]:
    words = Struct(f"<{3 * count}Q").unpack_from(table)
    chunks = []
    for index in range(count):
        first, second, data = words[3 * index : 3 * index + 3]
        flags = CHUNK_COMPRESSED if first >> 56 & CHUNK_V2_COMPRESSED else 0
        if first >> 56 & CHUNK_V2_BATCH:
            flags |= CHUNK_BATCH
        if first >> 56 & CHUNK_V2_ENCRYPTED:
            flags |= CHUNK_ENCRYPTED
        crc = 0
        if first >> 56 & CHUNK_V2_HAS_CRC32:
            flags |= CHUNK_HAS_CRC32
            crc = data & 0xFFFFFFFF
        plain = (first >> 32 & 0xFFFFFF) + 1
        offset = (first & 0xFFFFFFFF) << 12
        chunks.append(
            Chunk(blob, index, b"", flags, second >> 40, plain, second & 0xFF_FFFF_FFFF, offset, 0, crc)
        )
    return chunks
