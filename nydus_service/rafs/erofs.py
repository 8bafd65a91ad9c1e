"""The structures that the kernel's EROFS driver reads: superblock, inode, directory entry, xattr.

All are little-endian. Offsets are from the start of the bootstrap unless noted otherwise.
"""

from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.rafs.constants import (
    BLOCK_BITS,
    COMPAT_RAFS_V6,
    DEVICE_SLOTS_OFFSET,
    EROFS_MAGIC,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE,
    MAX_NAME,
    MAX_XATTR_VALUE,
    MAX_XATTRS_SIZE,
    ROOT_NID,
    XATTR_PREFIXES,
)

INODE = Struct("<HHHxxqIIIIqIIHH12x")
"""Extended inode, 64 bytes. Columns: offset, size, field.

   0  2  i_format        bit 0 set: extended; bits 1-3: data layout
   2  2  i_xattr_icount  0, or (bytes of xattrs - 12) / 4 + 1
   4  2  i_mode          st_mode
   6  2  reserved
   8  8  i_size          bytes
  16  4  i_u             directory, symlink: block address; regular: chunk format; special: rdev
  20  4  i_ino           sequence number of the first name
  24  4  i_uid
  28  4  i_gid
  32  8  i_mtime         seconds
  40  4  i_mtime_nsec
  44  4  i_nlink
  48  2  mark magic      reserved for readers; MARK_MAGIC if `tree.Inode.mark` is set
  50  2  mark
  52 12  reserved
"""
INODE_SIZE = 64
MARK_MAGIC = 0x504E

COMPACT_INODE = Struct("<HHHHI4xIIHH4x")
"""Compact inode, 32 bytes, only read. Columns: offset, size, field.

   0  2  i_format        bit 0 clear
   2  2  i_xattr_icount
   4  2  i_mode
   6  2  i_nlink
   8  4  i_size
  12  4  reserved
  16  4  i_u
  20  4  i_ino
  24  2  i_uid
  26  2  i_gid
  28  4  reserved
"""
COMPACT_INODE_SIZE = 32

DIRENT = Struct("<QHBx")
"""Directory entry, 12 bytes: nid, offset of the name in its block, file type, zero."""
DIRENT_SIZE = 12

FILE_TYPES = (0, 5, 3, 0, 2, 0, 4, 0, 1, 0, 7, 0, 6, 0, 0, 0)
"""A directory entry's file type by the top four bits of st_mode; 0: not a file type."""

XATTR_HEADER_SIZE = 12
_XATTR_HEADER = Struct("<IB7x")
_XATTR_ENTRY = Struct("<BBH")
_XATTRS_SHOWN = 20
_PREFIX_BY_INDEX = dict(XATTR_PREFIXES)
_WHOLE_NAMES = (2, 3)

_SUPERBLOCK = Struct("<IIIBBHQQIIII16s16sIHHH38x")


class Superblock(NamedTuple):
    """The variable fields of an EROFS superblock, 128 bytes at offset 1024. Columns: offset, size, field.

      0  4  magic             0xE0F5E1E2
      4  4  checksum          0
      8  4  feature_compat    0x40000000
     12  1  blkszbits         12
     13  1  ext_slots         0
     14  2  root_nid          128
     16  8  inos              names in the tree, each hard link counted
     24  8  build_time        0, then 4 bytes of nanoseconds, 0
     36  4  blocks            blocks of all blobs together
     40  4  meta_blkaddr      block of the metadata base
     44  4  xattr_blkaddr     0: no shared xattrs
     48 32  uuid, volume name 0
     80  4  feature_incompat  0xC
     84  2  union             0
     86  2  extra_devices     number of blobs
     88  2  devt_slotoff      11
     90 38  reserved          0

    Source: the Linux kernel's fs/erofs/erofs_fs.h, `struct erofs_super_block`.
    """

    inos: int
    blocks: int
    meta_block: int
    devices: int
    root_nid: int = ROOT_NID
    xattr_block: int = 0

    def pack(self) -> bytes:
        return _SUPERBLOCK.pack(
            EROFS_MAGIC,
            0,
            COMPAT_RAFS_V6,
            BLOCK_BITS,
            0,
            self.root_nid,
            self.inos,
            0,
            0,
            self.blocks,
            self.meta_block,
            self.xattr_block,
            bytes(16),
            bytes(16),
            INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE,
            0,
            self.devices,
            DEVICE_SLOTS_OFFSET // 128,
        )

    @classmethod
    def unpack(cls, data: bytes | memoryview, offset: int) -> "Superblock":
        """Raises: FormatError: the data is not RAFS v6. UnsupportedError: it is the TARFS variant."""
        fields = _SUPERBLOCK.unpack_from(data, offset)
        magic, checksum, compat, block_bits, ext_slots, root_nid, inos = fields[:7]
        blocks, meta_block, xattr_block, _, _, incompat, union, devices, slot_offset = fields[9:]
        if magic != EROFS_MAGIC:
            raise FormatError("not a RAFS v6 bootstrap: it has no EROFS superblock")
        if not compat & COMPAT_RAFS_V6:
            raise FormatError("an EROFS image, but not RAFS v6: the feature bit is missing")
        if block_bits == 9:
            raise UnsupportedError("blocks of 512 bytes (TARFS mode) are not there yet")
        if block_bits != BLOCK_BITS:
            raise FormatError(f"blocks of 2**{block_bits} bytes; RAFS v6 has 4096")
        if incompat != INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE:
            raise FormatError(f"incompatible features {incompat:#x} in the superblock; RAFS v6 has 0xc")
        if checksum or ext_slots or union:
            raise FormatError("a superblock field is set that RAFS v6 leaves zero")
        if slot_offset != DEVICE_SLOTS_OFFSET // 128:
            raise FormatError(f"device slots at {slot_offset * 128}, not at {DEVICE_SLOTS_OFFSET}")
        if not inos:
            raise FormatError("a file system without inodes")
        return cls(inos, blocks, meta_block, devices, root_nid, xattr_block)


def split_xattr_name(name: bytes) -> tuple[int, bytes] | None:
    """Split a full name into prefix index and rest; None: EROFS cannot represent the name."""
    for index, prefix in XATTR_PREFIXES:
        if index in _WHOLE_NAMES:
            if name == prefix:
                return index, b""
        elif name.startswith(prefix):
            return index, name[len(prefix) :]
    return None


def pack_xattrs(xattrs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Pack the bytes after an inode for these (full name, value) pairs, in the order given.

      0  4  name filter  0
      4  1  shared_count 0
      5  7  reserved
    then per xattr, padded to 4 bytes: u8 length of the name's rest, u8 prefix index,
    u16 length of the value, rest of the name, value.

    Returns b"" without xattrs.
    Raises:
        FormatError: EROFS cannot represent a name or a value.
        UnsupportedError: the xattrs of one inode do not fit together.
    """
    parts: list[bytes] = []
    sizes: list[str] = []
    for name, value in xattrs:
        split = split_xattr_name(name)
        if split is None:
            raise FormatError(f"extended attribute {name!r} is in no namespace that EROFS knows")
        if len(name) > MAX_NAME or len(value) > MAX_XATTR_VALUE:
            raise FormatError(
                f"extended attribute {name[:64]!r}: a name of {len(name)} bytes (at most {MAX_NAME}) "
                f"and a value of {len(value)} (at most {MAX_XATTR_VALUE})"
            )
        index, rest = split
        parts.append(_XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value)
        parts.append(bytes(-len(parts[-1]) % 4))
        sizes.append(f"{name.decode(errors='backslashreplace')} of {len(value)} bytes")
    if not parts:
        return b""
    packed = b"".join((bytes(XATTR_HEADER_SIZE), *parts))
    if len(packed) > MAX_XATTRS_SIZE:
        raise UnsupportedError(
            f"its extended attributes take {len(packed)} bytes, at most {MAX_XATTRS_SIZE} fit: "
            f"{', '.join(sizes[:_XATTRS_SHOWN])}{', …' if len(sizes) > _XATTRS_SHOWN else ''}"
        )
    return packed


def unpack_xattrs(data: bytes | memoryview, start: int, size: int, shared_at: int) -> dict[bytes, bytes]:
    """Read the xattrs of one inode.

    Args:
        data: the bootstrap.
        start: offset of the 12-byte header, after the inode.
        size: bytes up to the end of the last entry, header included; inside `data`.
        shared_at: offset of the area of shared xattrs; ids count units of 4 bytes from there.
    Raises:
        FormatError: an entry exceeds its area, has an unknown prefix or appears twice.
    """
    _, shared_count = _XATTR_HEADER.unpack_from(data, start)
    end = start + size
    at = start + XATTR_HEADER_SIZE + 4 * shared_count
    if at > end:
        raise FormatError(f"{shared_count} shared extended attributes in {size} bytes")
    xattrs: dict[bytes, bytes] = {}
    for slot in range(start + XATTR_HEADER_SIZE, at, 4):
        shared = shared_at + 4 * int.from_bytes(data[slot : slot + 4], "little")
        _unpack_xattr(data, shared, len(data), xattrs)
    while at < end:
        at += -(-_unpack_xattr(data, at, end, xattrs) // 4) * 4
    return xattrs


def _unpack_xattr(data: bytes | memoryview, at: int, end: int, into: dict[bytes, bytes]) -> int:
    """Read one entry at `at` into `into`. Returns its unpadded size."""
    if at + 4 > end:
        raise FormatError(f"extended attribute at {at} leaves its place")
    name_size, index, value_size = _XATTR_ENTRY.unpack_from(data, at)
    size: int = 4 + name_size + value_size
    prefix = _PREFIX_BY_INDEX.get(index)
    if prefix is None or at + size > end:
        raise FormatError(f"extended attribute at {at}: prefix {index}, {size} bytes, {end - at} left")
    name = prefix + bytes(data[at + 4 : at + 4 + name_size])
    if name in into or b"\0" in name:
        raise FormatError(f"extended attribute {name!r} at {at} is there twice or is no name")
    into[name] = bytes(data[at + 4 + name_size : at + size])
    return size
