"""Batches: the contents of small files, one after the other, which are compressed and stored as one piece.

    plain   | file | file | file |    no padding; less than the batch size
    stored  | batch ...... | chunk | chunk | batch .. |

In the chunk-info table of a blob, the batches follow the chunks, 40 bytes each, little-endian. Columns:
offset, size, field.

    0  4  compressed_size
    4  4  uncompressed_size
    8 32  zero

A batch was compressed if the two sizes differ; so an encrypted one has more plain bytes than the padding of
encryption can give it (rafs/cipher.py). Its offset in the blob is in its chunks.

Source: nydus storage/src/meta/batch.rs, `BatchInflateContext` and `BatchContextGenerator`.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from nydus_service.errors import FormatError
from nydus_service.rafs.constants import MAX_CHUNK_SIZE

BATCH_ENTRY_SIZE: Final = 40

_BATCH: Final = Struct("<II32x")


class Batch:
    """One batch of a blob. Offsets and sizes are in bytes.

    `flags` has `constants.CHUNK_COMPRESSED` as a chunk has it.
    """

    __slots__ = ("compressed_offset", "compressed_size", "flags", "index", "uncompressed_size")

    def __init__(self, index: int, uncompressed_size: int = 0) -> None:
        self.index = index
        self.flags = 0
        self.compressed_offset = 0
        self.compressed_size = 0
        self.uncompressed_size = uncompressed_size


class BatchPlace(NamedTuple):
    """The place of a chunk: its batch, and the offset in the plain bytes of that."""

    batch: Batch
    offset: int


def pack_batches(batches: Sequence[Batch]) -> bytes:
    """Pack the batches of a blob, in the order of their indexes."""
    return b"".join(_BATCH.pack(each.compressed_size, each.uncompressed_size) for each in batches)


def unpack_batches(data: bytes | memoryview, count: int) -> list[Batch]:
    """Read the batches of a blob, without their offsets.

    Raises: FormatError: the data does not have that many batches, or a batch has an impossible size.
    """
    if len(data) != count * BATCH_ENTRY_SIZE:
        raise FormatError(f"{count} batches do not fit the {len(data)} bytes of their table")
    batches = []
    for index, (stored, plain) in enumerate(_BATCH.iter_unpack(data)):
        if not 0 < stored <= plain <= MAX_CHUNK_SIZE:
            raise FormatError(f"batch {index} has {stored} stored bytes that become {plain}")
        batch = Batch(index, plain)
        batch.compressed_size = stored
        batches.append(batch)
    return batches
