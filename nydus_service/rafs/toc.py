"""The table of contents (TOC) of a nydus blob: section `rafs.blob.toc`, one entry per stored piece."""

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar

from nydus_service.errors import FormatError

TOC_FLAGS = {"none": 0x1, "zstd": 0x2, "lz4_block": 0x4}
ENTRY_SIZE = 128
MAX_TOC_SIZE = 1 << 20
_COMPRESSOR_MASK = 0xF
_COMPRESSORS = {flag: name for name, flag in TOC_FLAGS.items()}


@dataclass(frozen=True, slots=True)
class TocEntry:
    """One TOC entry: 128 bytes, little-endian. Columns: offset, size, field.

      0   4  flags                0x1 none, 0x2 zstd, 0x4 lz4_block; exactly one
      4   4  reserved
      8  16  name                 UTF-8, NUL padded; "blob.meta.header" uses all 16
     24  32  uncompressed_digest  sha256, all zero: unknown
     56   8  compressed_offset    bytes, from the start of the blob
     64   8  compressed_size      bytes
     72   8  uncompressed_size    bytes
     80  48  reserved, zero

    Source: nydus storage/src/meta/toc.rs, `TocEntry`.
    """

    LAYOUT: ClassVar[Struct] = Struct("<I4x16s32sQQQ48x")

    name: str
    compressor: str
    uncompressed_digest: bytes
    compressed_offset: int
    compressed_size: int
    uncompressed_size: int

    def pack(self) -> bytes:
        """Raises: FormatError: the name has more than 16 bytes."""
        name = self.name.encode()
        if len(name) > 16:  # Struct would truncate it silently
            raise FormatError(f"TOC name {self.name!r} is {len(name)} bytes, at most 16 fit")
        return self.LAYOUT.pack(
            TOC_FLAGS[self.compressor],
            name,
            self.uncompressed_digest,
            self.compressed_offset,
            self.compressed_size,
            self.uncompressed_size,
        )

    @classmethod
    def unpack(cls, data: bytes | memoryview, offset: int = 0) -> "TocEntry":
        """Raises: FormatError: the compressor is unknown, or the name is not UTF-8."""
        flags, name, digest, start, compressed, uncompressed = cls.LAYOUT.unpack_from(data, offset)
        compressor = _COMPRESSORS.get(flags & _COMPRESSOR_MASK)
        if compressor is None:
            raise FormatError(f"TOC entry {offset // ENTRY_SIZE} has unknown compressor flags {flags:#x}")
        try:
            text = name.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise FormatError(f"TOC entry {offset // ENTRY_SIZE} has a name that is not UTF-8") from None
        return cls(text, compressor, digest, start, compressed, uncompressed)


def unpack_toc(data: bytes | memoryview) -> list[TocEntry]:
    """Read the data of section `rafs.blob.toc`.

    Raises: FormatError: its size is not a positive multiple of 128, or an entry is damaged.
    """
    if not len(data) or len(data) % ENTRY_SIZE:
        raise FormatError(f"a TOC of {len(data)} bytes is not a whole number of {ENTRY_SIZE}-byte entries")
    return [TocEntry.unpack(data, offset) for offset in range(0, len(data), ENTRY_SIZE)]
