"""`promote`: make the bootstrap of a single-layer image from the layer's own bootstrap, without a merge.

For such a layer (`layertree.LayerTree.single_layer`), a merge does not change the tree. It only changes the
blob's row and device slot, which get its id; a flag that all merged images have; and the mark of a root
directory that has no entry in the tar. The rest is copied. Tests compare the result with that of a merge.
"""

from pathlib import Path
from struct import Struct

from nydus_service.errors import FormatError, from_os_error
from nydus_service.nydus_image.merge import MergeResult, blob_name
from nydus_service.nydus_image.output import write_file
from nydus_service.rafs.constants import (
    BLOB_ENTRY_SIZE,
    BLOB_INLINED_FS_META,
    BLOCK_SIZE,
    DEVICE_SLOTS_OFFSET,
    FLAG_HAS_XATTR,
    SLOT_SIZE,
    SUPERBLOCK_OFFSET,
)
from nydus_service.rafs.erofs import MARK_MAGIC, Superblock
from nydus_service.rafs.v6 import (
    EXTENDED_SUPERBLOCK_OFFSET,
    ExtendedSuperblock,
    pack_blob,
    pack_device_slots,
    unpack_blob,
)

_MARK_OFFSET = 48
_MARK = Struct("<HH")


def promote(source: Path, target: Path) -> MergeResult:
    """Convert a layer's bootstrap to that of the image.

    Args:
        source: the bootstrap of a layer with `single_layer`; named by its blob's id, as for a merge.
        target: file to write the image's bootstrap to.
    Raises:
        FormatError: the bootstrap is damaged, or has several blobs.
        NotFoundError, NotAllowedError, NoSpaceError: files cannot be read or written.
    """
    try:
        data = bytearray(source.read_bytes())
    except OSError as exc:
        raise from_os_error(exc, f"read the bootstrap {source}") from exc
    try:
        blob_ids, compressor = _promote(data, blob_name(source))
    except FormatError as exc:
        raise FormatError(f"{source}: {exc}") from exc
    return MergeResult(blob_ids, write_file(target, None, data, "bootstrap"), compressor)


def _promote(data: bytearray, blob_id: str) -> tuple[list[str], str]:
    if len(data) < BLOCK_SIZE or len(data) % BLOCK_SIZE:
        raise FormatError(f"a bootstrap of {len(data)} bytes is not a whole number of blocks")
    view = memoryview(data)
    superblock = Superblock.unpack(view, SUPERBLOCK_OFFSET)
    extended = ExtendedSuperblock.unpack(view, len(data))
    if superblock.devices > 1 or extended.blob_table_size != superblock.devices * BLOB_ENTRY_SIZE:
        raise FormatError(f"{superblock.devices} blobs: that is not one layer's")
    _put(data, EXTENDED_SUPERBLOCK_OFFSET, extended._replace(flags=extended.flags | FLAG_HAS_XATTR).pack())
    _clear_mark(data, superblock.meta_block * BLOCK_SIZE + superblock.root_nid * SLOT_SIZE + _MARK_OFFSET)
    if not superblock.devices:
        return [], extended.compressor
    blob = unpack_blob(view, extended.blob_table_offset, 0, extended.chunk_size)
    blob.blob_id = blob_id
    blob.features &= ~BLOB_INLINED_FS_META
    slots, _ = pack_device_slots([blob], len(data))
    _put(data, DEVICE_SLOTS_OFFSET, slots)
    _put(data, extended.blob_table_offset, pack_blob(blob, 0))
    return [blob_id], extended.compressor


def _clear_mark(data: bytearray, offset: int) -> None:
    if offset + _MARK.size > len(data):
        raise FormatError(f"the root directory at {offset} leaves a bootstrap of {len(data)} bytes")
    magic, _ = _MARK.unpack_from(data, offset)
    if magic == MARK_MAGIC:
        _MARK.pack_into(data, offset, 0, 0)


def _put(data: bytearray, offset: int, packed: bytes) -> None:
    data[offset : offset + len(packed)] = packed
