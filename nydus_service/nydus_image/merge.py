"""`merge`: merge the bootstraps of an image's layers, lowest first, into the image's bootstrap."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nydus_service.errors import FormatError, UnsupportedError, UsageError, from_os_error
from nydus_service.nydus_image.output import write_file
from nydus_service.nydus_image.prefetch import find_inodes, find_unmatched
from nydus_service.rafs.chunkdict import ChunkDict
from nydus_service.rafs.constants import (
    BLOB_INLINED_FS_META,
    BLOB_SEPARATE,
    FLAG_ENCRYPTION_AES_XTS,
    FLAG_EXPLICIT_UID_GID,
)
from nydus_service.rafs.overlay import apply_layer, empty_root
from nydus_service.rafs.reader import Bootstrap, read_bootstrap
from nydus_service.rafs.tree import Blob, Inode
from nydus_service.rafs.writer import ImageFormat, write_bootstrap

_BLOB_FIELDS = tuple(field for field in Blob.__slots__ if field != "blob_id")


class InconsistentError(UsageError):
    """The layers do not match; the native builder exits with status 2 for this."""


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """The options of `nydus-image merge`. Each list is empty or has one item per source."""

    sources: tuple[Path, ...]
    bootstrap: Path | None = None
    blob_dir: Path | None = None
    original_blob_ids: tuple[str, ...] = ()
    blob_digests: tuple[bytes, ...] = ()
    blob_sizes: tuple[int, ...] = ()
    blob_toc_digests: tuple[bytes, ...] = ()
    blob_toc_sizes: tuple[int, ...] = ()
    prefetch: tuple[tuple[bytes, ...], ...] = ()
    chunk_dict: ChunkDict | None = None


@dataclass(frozen=True, slots=True)
class MergeResult:
    """Blob ids in the order of the blob table, the bootstrap's path, and the root of its tree if built.

    `unmatched` has the prefetch patterns that match nothing.
    """

    blob_ids: list[str]
    bootstrap: Path
    compressor: str
    root: Inode | None = None
    unmatched: tuple[str, ...] = ()


def merge(options: MergeOptions) -> MergeResult:
    """Merge layers.

    Raises:
        InconsistentError: the layers differ in chunk size or ownership mode.
        FormatError: a bootstrap is damaged, a layer cannot be applied to those below it, or a list does not
            have one item per source.
        UnsupportedError: a source has several blobs that are not in the chunk dictionary.
        NotFoundError, NotAllowedError, NoSpaceError: files cannot be read or written.
    """
    _check_lists(options)
    blobs = _BlobTable(options)
    root = empty_root()
    lowers: list[Inode] = []
    first: Bootstrap | None = None
    encrypted = False
    for index, source in enumerate(options.sources):
        try:
            layer = read_bootstrap(_read(source), adopt=partial(blobs.adopt, index))
            first = first or layer
            _check_consistency(first, layer, source)
            if options.chunk_dict is not None:
                options.chunk_dict.check(layer.chunk_size, layer.digester, _explicit_uid_gid(layer))
            apply_layer(root, layer.root, lowers, layer.has_lower_links)
            lowers.append(layer.root)
            encrypted |= bool(layer.flags & FLAG_ENCRYPTION_AES_XTS)
        except FormatError as exc:
            raise FormatError(f"layer {index + 1} of {len(options.sources)}, {source}: {exc}") from exc
        except UnsupportedError as exc:
            raise UnsupportedError(f"layer {index + 1} of {len(options.sources)}, {source}: {exc}") from exc
    del lowers  # before the bootstrap is built, when memory use is at its peak
    image = ImageFormat(
        chunk_size=layer.chunk_size,
        compressor=layer.compressor,
        digester=layer.digester,
        explicit_uid_gid=_explicit_uid_gid(layer),
        merged=True,
        encrypted=encrypted,
    )
    data, used = write_bootstrap(root, image, None, find_inodes(root, options.prefetch))
    path = write_file(options.bootstrap, options.blob_dir, data, "bootstrap")
    unmatched = tuple(find_unmatched(root, options.prefetch))
    return MergeResult([blob.blob_id for blob in used], path, layer.compressor, root, unmatched)


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as exc:
        raise from_os_error(exc, f"read the bootstrap {source}") from exc


def _check_lists(options: MergeOptions) -> None:
    lists: dict[str, tuple[object, ...]] = {
        "--original-blob-ids": options.original_blob_ids,
        "--blob-digests": options.blob_digests,
        "--blob-sizes": options.blob_sizes,
        "--blob-toc-digests": options.blob_toc_digests,
        "--blob-toc-sizes": options.blob_toc_sizes,
    }
    for name, items in lists.items():
        if items and len(items) != len(options.sources):
            raise FormatError(f"{name} has {len(items)} items for {len(options.sources)} sources")


def _check_consistency(first: Bootstrap, layer: Bootstrap, source: Path) -> None:
    if layer.chunk_size != first.chunk_size:
        raise InconsistentError(
            f"Inconsistent RAFS Filesystem: {source} has chunk size {layer.chunk_size:#x}, "
            f"the layers below it {first.chunk_size:#x}"
        )
    if (layer.flags ^ first.flags) & FLAG_EXPLICIT_UID_GID:
        raise InconsistentError(f"Inconsistent RAFS Filesystem: {source} keeps owners where others do not")


def _explicit_uid_gid(layer: Bootstrap) -> bool:
    return bool(layer.flags & FLAG_EXPLICIT_UID_GID)


def blob_name(source: Path) -> str:
    """The blob id in the name of a bootstrap's file: the name up to its first dot."""
    name = source.name
    return name[: name.find(".", 1)] if "." in name[1:] else name


class _BlobTable:
    """Assigns each layer's blobs their final rows. Layers with the same blob share a row."""

    def __init__(self, options: MergeOptions) -> None:
        self._options = options
        self._dict = options.chunk_dict.blobs if options.chunk_dict is not None else {}
        self._by_id = dict(self._dict)
        self._sources: set[int] = set()

    def adopt(self, index: int, blob: Blob) -> Blob:
        """The row for a blob of source `index`: of the chunk dictionary, or the layer's own.

        Raises:
            UnsupportedError: the source has several blobs that are not in the chunk dictionary.
            FormatError: the id is invalid, or belongs to a different blob of another layer.
        """
        if not blob.features & BLOB_INLINED_FS_META and blob.blob_id in self._dict:
            return self._share(blob)
        if index in self._sources:
            raise UnsupportedError(
                "it has several blobs of its own: a merged image is no layer, and a layer that was built "
                "with a chunk dictionary needs --chunk-dict"
            )
        self._sources.add(index)
        options = self._options
        blob.features &= ~BLOB_INLINED_FS_META
        separate = blob.features & BLOB_SEPARATE
        blob.blob_id = (
            options.original_blob_ids[index]
            if options.original_blob_ids
            else blob_name(options.sources[index])
        )
        if options.blob_digests:
            if separate:
                blob.meta_digest = options.blob_digests[index]
            else:
                blob.blob_id = options.blob_digests[index].hex()
        if options.blob_sizes:
            if separate:
                blob.meta_size = options.blob_sizes[index]
            else:
                blob.compressed_size = options.blob_sizes[index]
        if options.blob_toc_digests:
            blob.toc_digest = options.blob_toc_digests[index]
        if options.blob_toc_sizes:
            blob.toc_size = options.blob_toc_sizes[index]
        if not 0 < len(blob.blob_id.encode()) <= 64:
            raise FormatError(f"{blob.blob_id!r} is no blob id: 1 to 64 bytes fit")
        return self._share(blob)

    def _share(self, blob: Blob) -> Blob:
        known = self._by_id.setdefault(blob.blob_id, blob)
        if any(getattr(known, field) != getattr(blob, field) for field in _BLOB_FIELDS):
            raise FormatError(f"two layers have different blobs of the same id {blob.blob_id}")
        return known
