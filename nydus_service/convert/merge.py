"""Merge the bootstraps of an image's layers into one, and commit the layer that carries it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from nydus_service.builder.builder import (
    BlobToMerge,
    BootstrapLayerOutcome,
    BootstrapLayerRequest,
    Builder,
    BuilderFailed,
    MergeOutcome,
    MergeRequest,
)
from nydus_service.content.store import PIECE_SIZE, Ingester
from nydus_service.convert.chunkdict import ChunkDictionary
from nydus_service.convert.layer import PackedLayer
from nydus_service.convert.rewrite import BootstrapLayer
from nydus_service.errors import FormatError, UnsupportedError, from_os_error
from nydus_service.oci.annotations import UNCOMPRESSED
from nydus_service.oci.descriptor import Descriptor
from nydus_service.options.build import BuildOptions


@dataclass(frozen=True, slots=True)
class MergedImage:
    """An image's bootstrap.

    Attributes:
        bootstrap: the bootstrap's file.
        duration_s: seconds that the merge took.
        warnings: the end of the builder's stderr.
        dict_blobs: the blobs of the chunk dictionary to which the bootstrap refers.
        unmatched: prefetch patterns that match nothing.
    """

    bootstrap: Path
    duration_s: float
    warnings: str
    dict_blobs: tuple[Descriptor, ...] = ()
    unmatched: tuple[str, ...] = ()


async def merge_layers(
    builder: Builder,
    layers: Sequence[PackedLayer],
    build: BuildOptions,
    directory: Path,
    chunk_dict: ChunkDictionary | None = None,
) -> MergedImage:
    """Merge an image's layers.

    Args:
        layers: lowest first; a layer may occur more than once.
        directory: for the files of this merge.
        chunk_dict: the dictionary whose bootstrap `build` names.
    Raises:
        BuilderFailed: the builder failed, or its result names blobs that are not in `layers`.
        ContentNotFound: the chunk dictionary does not have a blob to which the result refers.
        NydusServiceError: as `Builder.merge`.
    """
    started = anyio.current_time()
    bootstrap = directory / "image.boot"
    request = MergeRequest(
        bootstraps=tuple(layer.metadata.bootstrap for layer in layers),
        target=bootstrap,
        output_json=directory / "merge.json",
        build=build,
        blobs=_blobs_to_merge(layers),
        single_layer=len(layers) == 1 and layers[0].single_layer and not layers[0].refers,
    )
    with _naming_layers(layers):
        outcome = await builder.merge(request)
    foreign = _foreign_blobs(outcome, layers)
    if foreign and chunk_dict is None:
        raise BuilderFailed(
            f"the merged bootstrap refers to blobs that are no layers: {', '.join(foreign)}",
            outcome.stderr_tail,
        )
    dict_blobs = await chunk_dict.describe(foreign) if chunk_dict is not None else []
    duration_s = anyio.current_time() - started
    return MergedImage(bootstrap, duration_s, outcome.stderr_tail, tuple(dict_blobs), outcome.unmatched)


async def commit_bootstrap_layer(
    builder: Builder,
    store: Ingester,
    layers: Sequence[PackedLayer],
    merged: MergedImage,
    directory: Path,
    job_id: str,
    appended: Sequence[tuple[str, Path]] = (),
) -> BootstrapLayer:
    """Make and commit the last layer of an image, from its bootstrap and its blobs' chunk tables.

    Args:
        directory: as in `merge_layers`; its name distinguishes this image from others of the job.
        appended: name and path of each file to append to the layer.
    Raises:
        NydusServiceError: as `Builder.bootstrap_layer`, and by the store.
    """
    # Keyed by blob: layers may share a blob, whose table must be in the bootstrap layer once.
    tables = {
        layer.blob.digest.hex: layer.metadata.chunk_table for layer in layers if layer.metadata.chunk_table
    }
    packed = directory / "bootstrap-layer.tar.gz"
    written = await builder.bootstrap_layer(
        BootstrapLayerRequest(
            bootstrap=merged.bootstrap,
            blob_metas=tuple(tables.items()),
            output=packed,
            output_json=directory / "bootstrap-layer.json",
            appended=tuple(appended),
        )
    )
    await _commit(store, packed, written, f"{job_id}-{directory.name}")
    return BootstrapLayer(written.digest, written.size, written.diff_id)


def _blobs_to_merge(layers: Sequence[PackedLayer]) -> tuple[BlobToMerge, ...]:
    """The blobs as the merge records them, if one refers to its layer. Readers find its tables by the record.

    Raises: BuilderFailed: a blob has no table of contents.
    """
    if not any(layer.refers for layer in layers):
        return ()
    blobs = []
    for layer in layers:
        toc_digest, toc_size = layer.metadata.toc_digest, layer.metadata.toc_size
        if toc_digest is None:
            raise BuilderFailed(f"the nydus blob {layer.blob.digest} has no table of contents")
        blobs.append(BlobToMerge(layer.blob.digest, layer.blob.size, toc_digest, toc_size))
    return tuple(blobs)


@contextmanager
def _naming_layers(layers: Sequence[PackedLayer]) -> Iterator[None]:
    """Replace the paths of bootstraps in an error by the digests of their layers."""
    try:
        yield
    except (FormatError, UnsupportedError) as exc:
        message = exc.message
        for layer in layers:
            message = message.replace(str(layer.metadata.bootstrap), layer.source.digest)
        exc.args = (message, *exc.args[1:])
        raise


def _foreign_blobs(outcome: MergeOutcome, layers: Sequence[PackedLayer]) -> list[str]:
    """The hex ids of the blobs of a bootstrap that are not in the layers, in its order."""
    own = {layer.blob_id.hex for layer in layers}
    return [blob_id for blob_id in outcome.blobs if blob_id not in own]


async def _commit(store: Ingester, path: Path, written: BootstrapLayerOutcome, unique: str) -> None:
    async with store.open_ingest(f"nydus-service-bootstrap-{written.digest}-{unique}") as ingest:
        try:
            async with await anyio.open_file(path, "rb") as file:
                while piece := await file.read(PIECE_SIZE):
                    await ingest.write(piece)
        except OSError as exc:
            raise from_os_error(exc, f"read {path}") from exc
        await ingest.commit(
            expected_size=written.size,
            expected_digest=written.digest,
            labels={UNCOMPRESSED: written.diff_id},
        )
