"""The structures that only nydus reads: extended superblock, device slots, blob and chunk table.

All are little-endian. Source: nydus rafs/src/metadata/layout/v6.rs.
"""

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.rafs.chunkinfo import check_table_size
from nydus_service.rafs.constants import (
    BLOB_ALIGNED,
    BLOB_ENTRY_SIZE,
    BLOB_REJECTED,
    BLOCK_SIZE,
    CHUNK_ENTRY_SIZE,
    COMPRESSORS,
    DEVICE_ALIGNMENT,
    DIGESTERS,
    FLAG_COMPRESSION,
    FLAG_DIGEST,
    FLAG_TARFS,
    FLAGS_KNOWN,
    MAX_CHUNK_SIZE,
    MAX_CHUNKS,
    MAX_COMPRESSED_BLOB_SIZE,
    MAX_UNCOMPRESSED_BLOB_SIZE,
    MIN_CHUNK_SIZE,
    align,
)
from nydus_service.rafs.tree import Blob

EXTENDED_SUPERBLOCK_OFFSET = 1152
_EXTENDED_SUPERBLOCK = Struct("<QQIIQQQI204x")
_DEVICE_SLOT = Struct("<64sII56x")
_BLOB = Struct("<64sIIIIIIQQIIQQQ32s32sQQI36x")
CHUNK = Struct("<32sIIIIQQQII")
"""Chunk table entry, 80 bytes. Columns: offset, size, field.

   0 32  digest               of the uncompressed chunk
  32  4  blob_index
  36  4  flags                constants.CHUNK_*
  40  4  compressed_size      bytes
  44  4  uncompressed_size    bytes
  48  8  compressed_offset    bytes, in the blob
  56  8  uncompressed_offset  bytes, in the blob's uncompressed address space
  64  8  file_offset          bytes, in one of the files that use the chunk
  72  4  index                in the blob's chunk-info table
  76  4  crc32                CRC-32C of the uncompressed chunk, with its flag
"""
assert CHUNK.size == CHUNK_ENTRY_SIZE


class ExtendedSuperblock(NamedTuple):
    """256 bytes at offset 1152. Columns: offset, size, field.

     0   8  flags                  constants.FLAG_*
     8   8  blob_table_offset
    16   4  blob_table_size
    20   4  chunk_size             bytes
    24   8  chunk_table_offset
    32   8  chunk_table_size
    40   8  prefetch_table_offset  or 0
    48   4  prefetch_table_size    bytes
    52 204  reserved, zero
    """

    flags: int
    blob_table_offset: int
    blob_table_size: int
    chunk_size: int
    chunk_table_offset: int
    chunk_table_size: int
    prefetch_table_offset: int
    prefetch_table_size: int

    def pack(self) -> bytes:
        return _EXTENDED_SUPERBLOCK.pack(*self)

    @classmethod
    def unpack(cls, data: bytes | memoryview, file_size: int) -> "ExtendedSuperblock":
        """Raises:
        FormatError: a flag is unknown, the chunk size is invalid, or a table lies outside of the file.
        UnsupportedError: the bootstrap is in TARFS mode.
        """
        self = cls(*_EXTENDED_SUPERBLOCK.unpack_from(data, EXTENDED_SUPERBLOCK_OFFSET))
        if self.flags & FLAG_TARFS:
            raise UnsupportedError("TARFS mode is not there yet")
        if self.flags & ~FLAGS_KNOWN:
            raise FormatError(f"unknown RAFS flags {self.flags:#x}")
        if not is_chunk_size(self.chunk_size):
            raise FormatError(f"chunk size {self.chunk_size} is no power of two from 4 KiB to 16 MiB")
        self._check_table("blob", self.blob_table_offset, self.blob_table_size, BLOB_ENTRY_SIZE, file_size)
        if self.blob_table_offset % BLOCK_SIZE or self.blob_table_offset < BLOCK_SIZE:
            raise FormatError(f"blob table at {self.blob_table_offset}: not a whole block behind the first")
        self._check_table(
            "chunk", self.chunk_table_offset, self.chunk_table_size, CHUNK_ENTRY_SIZE, file_size
        )
        self._check_table("prefetch", self.prefetch_table_offset, self.prefetch_table_size, 4, file_size)
        return self

    @staticmethod
    def _check_table(name: str, offset: int, size: int, unit: int, file_size: int) -> None:
        if size and (size % unit or offset < BLOCK_SIZE or offset + size > file_size):
            raise FormatError(f"{name} table of {size} bytes at {offset} does not fit a file of {file_size}")

    @property
    def compressor(self) -> str:
        """Raises: FormatError: the flags name no or several compressors."""
        return _single_flag(self.flags, FLAG_COMPRESSION, "compressor")

    @property
    def digester(self) -> str:
        """Raises: FormatError: the flags name no or several digest algorithms."""
        return _single_flag(self.flags, FLAG_DIGEST, "digest algorithm")


def is_chunk_size(size: int) -> bool:
    return MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE and size & (size - 1) == 0


def _single_flag(flags: int, names: dict[str, int], what: str) -> str:
    found = [name for name, flag in names.items() if flags & flag]
    if len(found) != 1:
        raise FormatError(f"RAFS flags {flags:#x} name {len(found)} {what}s, not one")
    return found[0]


def pack_device_slots(blobs: Sequence[Blob], bootstrap_size: int) -> tuple[bytes, int]:
    """Pack the device table, 128 bytes per blob. Returns it and the total number of blocks of all blobs.

     0 64  tag              the blob's id, NUL padded
    64  4  blocks           blocks of the uncompressed blob
    68  4  mapped_blkaddr   its first block in a flat image, 512 KiB aligned
    72 56  reserved, zero
    """
    slots = []
    total = 0
    position = bootstrap_size
    for blob in blobs:
        blocks = blob.uncompressed_size // BLOCK_SIZE
        address = align(position, DEVICE_ALIGNMENT) // BLOCK_SIZE
        position = (address + blocks) * BLOCK_SIZE
        # The field cannot represent addresses beyond 16 TiB; no reader checks it.
        slots.append(_DEVICE_SLOT.pack(blob.blob_id.encode(), blocks, address & 0xFFFFFFFF))
        total += blocks
    return b"".join(slots), total


def check_device_slots(data: bytes | memoryview, offset: int, count: int) -> None:
    """Raises: FormatError: a slot is empty, or its tag is repeated or not text; every reader refuses it."""
    tags = set()
    for index in range(count):
        tag, blocks, _ = _DEVICE_SLOT.unpack_from(data, offset + index * _DEVICE_SLOT.size)
        if not blocks or tag in tags:
            raise FormatError(f"device slot {index} is empty or repeats another one")
        _text(tag, f"tag of device slot {index}")
        tags.add(tag)


def pack_blob(blob: Blob, index: int) -> bytes:
    """Pack one row of the blob table, 256 bytes. Columns: offset, size, field.

      0 64  blob_id               ASCII, NUL padded
     64  4  blob_index
     68  4  chunk_size
     72  4  chunk_count
     76  4  compressor            0 none, 1 lz4_block, 2 gzip, 3 zstd
     80  4  digester              0 blake3, 1 sha256
     84  4  features              constants.BLOB_*
     88  8  compressed_size
     96  8  uncompressed_size
    104  4  toc_size
    108  4  ci_compressor
    112  8  ci_offset
    120  8  ci_compressed_size
    128  8  ci_uncompressed_size
    136 32  toc_digest
    168 32  meta_digest           or cipher key
    200  8  meta_size             or IV, low half
    208  8  cipher_iv             high half
    216  4  cipher
    220 36  reserved, zero

    Raises: FormatError: the id does not have 1 to 64 bytes.
    """
    blob_id = blob.blob_id.encode()
    if not 0 < len(blob_id) <= 64:
        raise FormatError(f"blob id {blob.blob_id!r} has {len(blob_id)} bytes; 1 to 64 fit")
    return _BLOB.pack(
        blob_id,
        index,
        blob.chunk_size,
        blob.chunk_count,
        COMPRESSORS.index(blob.compressor),
        DIGESTERS.index(blob.digester),
        blob.features,
        blob.compressed_size,
        blob.uncompressed_size,
        blob.toc_size,
        COMPRESSORS.index(blob.ci_compressor),
        blob.ci_offset,
        blob.ci_compressed_size,
        blob.ci_uncompressed_size,
        blob.toc_digest,
        blob.meta_digest,
        blob.meta_size,
        blob.cipher_iv,
        blob.cipher,
    )


def unpack_blob(data: bytes | memoryview, offset: int, index: int, chunk_size: int) -> Blob:
    """Read row `index` of the blob table of an image with this chunk size.

    Raises: FormatError: the row is damaged, or every reader would refuse it.
    """
    fields = _BLOB.unpack_from(data, offset)
    blob_id, own_index, own_chunk_size, chunk_count, compressor, digester, features = fields[:7]
    ci_compressor = fields[10]
    if own_index != index or own_chunk_size != chunk_size:
        raise FormatError(f"blob {index} says index {own_index} and chunk size {own_chunk_size}")
    if max(compressor, ci_compressor) >= len(COMPRESSORS) or digester >= len(DIGESTERS):
        raise FormatError(f"blob {index} has an unknown compressor or digest algorithm")
    if features & BLOB_REJECTED or not features & BLOB_ALIGNED:
        raise FormatError(f"blob {index} has features {features:#x}, which no reader takes")
    blob = Blob(
        _text(blob_id, f"id of blob {index}"),
        chunk_size,
        COMPRESSORS[compressor],
        DIGESTERS[digester],
        features,
    )
    blob.chunk_count = chunk_count
    blob.compressed_size, blob.uncompressed_size, blob.toc_size = fields[7:10]
    blob.ci_compressor = COMPRESSORS[ci_compressor]
    blob.ci_offset, blob.ci_compressed_size, blob.ci_uncompressed_size = fields[11:14]
    blob.toc_digest, blob.meta_digest, blob.meta_size, blob.cipher_iv, blob.cipher = fields[14:]
    if not 0 < chunk_count <= MAX_CHUNKS + 1 or blob.compressed_size > MAX_COMPRESSED_BLOB_SIZE:
        raise FormatError(f"blob {index} has {chunk_count} chunks in {blob.compressed_size} bytes")
    if blob.uncompressed_size > MAX_UNCOMPRESSED_BLOB_SIZE or blob.uncompressed_size % BLOCK_SIZE:
        raise FormatError(f"blob {index} has {blob.uncompressed_size} uncompressed bytes")
    if blob.ci_compressed_size > blob.ci_uncompressed_size:
        raise FormatError(f"blob {index} has a chunk-info table that grows when it is compressed")
    check_table_size(features, chunk_count, blob.ci_uncompressed_size)
    return blob


def _text(field: bytes, what: str) -> str:
    text = field.rstrip(b"\0")
    try:
        if text and b"\0" not in text:
            return text.decode()
    except UnicodeDecodeError:
        pass
    raise FormatError(f"{what} is no text: {text!r}")
