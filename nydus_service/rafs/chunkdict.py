"""A chunk dictionary: the chunks of an image to which other images refer instead of storing them again."""

from dataclasses import dataclass, field

from nydus_service.errors import UsageError
from nydus_service.rafs.constants import BLOB_INLINED_FS_META, FLAG_EXPLICIT_UID_GID
from nydus_service.rafs.reader import read_chunk_table
from nydus_service.rafs.records import read_tables
from nydus_service.rafs.tree import Blob, Chunk


@dataclass(frozen=True, slots=True)
class ChunkDict:
    """The chunks of a dictionary by digest. Of equal chunks in several blobs, the first blob's counts.

    `blobs` are the rows of the dictionary's blob table by id.
    """

    chunk_size: int
    digester: str
    explicit_uid_gid: bool
    blobs: dict[str, Blob] = field(default_factory=dict)
    chunks: dict[bytes, Chunk] = field(default_factory=dict)

    def check(self, chunk_size: int, digester: str, explicit_uid_gid: bool) -> None:
        """Check that an image can refer to the chunks of this dictionary.

        Raises: UsageError: the image and the dictionary differ in a property that must be equal.
        """
        for name, own, wanted in (
            ("chunk size", f"{self.chunk_size:#x}", f"{chunk_size:#x}"),
            ("digester", self.digester, digester),
            ("explicit owners", str(self.explicit_uid_gid), str(explicit_uid_gid)),
        ):
            if own != wanted:
                raise UsageError(f"{name} of the chunk dictionary is {own}, that of the image is {wanted}")


def read_chunk_dict(data: bytes | memoryview, blob_id: str | None = None) -> ChunkDict:
    """Read the chunk dictionary that a bootstrap is.

    Args:
        data: the bootstrap of an image, decompressed.
        blob_id: replaces the placeholder id of a blob with inlined metadata.
    Raises:
        FormatError: the bootstrap is damaged.
        UnsupportedError: it is in TARFS mode.
    """
    tables = read_tables(data, blob_id)
    extended = tables.extended
    start, size = extended.chunk_table_offset, extended.chunk_table_size
    chunks = read_chunk_table(memoryview(data)[start : start + size], tables.blobs)
    found = ChunkDict(extended.chunk_size, extended.digester, bool(extended.flags & FLAG_EXPLICIT_UID_GID))
    for blob in tables.blobs:
        blob.features &= ~BLOB_INLINED_FS_META
        found.blobs[blob.blob_id] = blob
    order = {blob: index for index, blob in enumerate(tables.blobs)}
    for chunk in sorted(chunks.values(), key=lambda chunk: (order[chunk.blob], chunk.index)):
        found.chunks.setdefault(chunk.digest, chunk)
    return found
