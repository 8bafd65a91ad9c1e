"""Magics, flag bits, sizes and limits of RAFS v6.

Source: the Linux EROFS on-disk format; nydus rafs/src/metadata/layout/v6.rs and storage/src/meta.
"""

BLOCK_SIZE = 4096
SLOT_SIZE = 32
"""An inode number (nid) counts slots of this many bytes from the metadata base."""

# Superblock, at 1024.
SUPERBLOCK_OFFSET = 1024
EROFS_MAGIC = 0xE0F5E1E2
COMPAT_RAFS_V6 = 0x4000_0000
INCOMPAT_CHUNKED_FILE = 0x4
INCOMPAT_DEVICE_TABLE = 0x8
BLOCK_BITS = 12
ROOT_NID = BLOCK_SIZE // SLOT_SIZE
DEVICE_SLOTS_OFFSET = 1408
DEVICE_SLOT_SIZE = 128
BLOB_ENTRY_SIZE = 256
CHUNK_ENTRY_SIZE = 80
DEVICE_ALIGNMENT = 0x80000
"""Devices are mapped at multiples of this many bytes after the bootstrap."""

# Flags of the extended superblock.
FLAG_COMPRESSION = {"none": 0x1, "lz4_block": 0x2, "gzip": 0x40, "zstd": 0x80}
FLAG_DIGEST = {"blake3": 0x4, "sha256": 0x8}
FLAG_EXPLICIT_UID_GID = 0x10
FLAG_HAS_XATTR = 0x20
FLAG_INLINED_CHUNK_DIGEST = 0x100
FLAG_TARFS = 0x200
FLAG_ENCRYPTION_NONE = 0x0100_0000
FLAG_ENCRYPTION_AES_XTS = 0x0200_0000
FLAGS_KNOWN = 0xFF00_03FF

# Algorithms as numbered in blob tables and CI headers.
COMPRESSORS = ("none", "lz4_block", "gzip", "zstd")
DIGESTERS = ("blake3", "sha256")

# Blob features.
BLOB_ALIGNED = 0x1
BLOB_INLINED_FS_META = 0x2
BLOB_CHUNK_INFO_V2 = 0x4
BLOB_ZRAN = 0x8
BLOB_SEPARATE = 0x10
BLOB_INLINED_CHUNK_DIGEST = 0x20
BLOB_TARFS = 0x40
BLOB_BATCH = 0x80
BLOB_ENCRYPTED = 0x100
BLOB_CHUNKDICT_GENERATED = 0x200
BLOB_SEPARATED_PREFETCH = 0x400
BLOB_EXTERNAL = 0x800
BLOB_HAS_TAR_HEADER = 0x1000_0000
BLOB_HAS_TOC = 0x2000_0000
BLOB_CAP_TAR_TOC = 0x4000_0000
BLOB_REJECTED = 0x8000_F000
"""Bits that make every reader refuse the image."""

BLOB_FEATURE_NAMES = {
    BLOB_ALIGNED: "aligned",
    BLOB_INLINED_FS_META: "fs-meta",
    BLOB_CHUNK_INFO_V2: "chunk-v2",
    BLOB_ZRAN: "zran",
    BLOB_SEPARATE: "separate",
    BLOB_INLINED_CHUNK_DIGEST: "chunk-digest",
    BLOB_TARFS: "tarfs",
    BLOB_BATCH: "batch",
    BLOB_ENCRYPTED: "encrypted",
    BLOB_CHUNKDICT_GENERATED: "is-chunkdict-generated",
    BLOB_SEPARATED_PREFETCH: "is-separated-with-prefetch-files",
    BLOB_EXTERNAL: "external",
    BLOB_HAS_TAR_HEADER: "tar-header",
    BLOB_HAS_TOC: "toc",
    BLOB_CAP_TAR_TOC: "cap_toc",
}

CIPHER_AES_128_XTS = 1

# Chunk flags, in the chunk table and (CHUNK_V2_*) in version 2 of the chunk-info table.
CHUNK_COMPRESSED = 0x1
CHUNK_ENCRYPTED = 0x4
CHUNK_BATCH = 0x8
CHUNK_HAS_CRC32 = 0x10
CHUNK_V2_COMPRESSED = 0x1
CHUNK_V2_ZRAN = 0x2
CHUNK_V2_BATCH = 0x4
CHUNK_V2_ENCRYPTED = 0x8
CHUNK_V2_HAS_CRC32 = 0x10

# Inode data layouts.
LAYOUT_FLAT_PLAIN = 0
LAYOUT_FLAT_INLINE = 2
LAYOUT_CHUNK_BASED = 4
CHUNK_FORMAT_INDEXES = 0x20

XATTR_PREFIXES = (
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
)

# Limits.
MIN_CHUNK_SIZE = 0x1000
MAX_CHUNK_SIZE = 0x100_0000
DEFAULT_CHUNK_SIZE = 0x10_0000
MAX_BLOBS = 254
MAX_CHUNKS = 0xFF_FFFF
"""Chunks of one blob: their index has 24 bits, the last value is not used."""
MAX_COMPRESSED_BLOB_SIZE = 1 << 40
MAX_UNCOMPRESSED_BLOB_SIZE = 1 << 44
MAX_NAME = 255
MAX_SYMLINK = 4095
"""4096 bytes pass the native check, but the kernel and nydusd cannot serve them."""
MAX_XATTR_VALUE = 65535
MAX_XATTRS_SIZE = 12 + 4 * (65535 - 1)
"""Bytes of all extended attributes of an inode, since `i_xattr_icount` has 16 bits."""


def align(value: int, to: int) -> int:
    """Round up to a multiple of `to`, a power of two."""
    return (value + to - 1) & -to
