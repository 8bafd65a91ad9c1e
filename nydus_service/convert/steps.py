"""Single steps of a conversion, for callers with their own walk over images.

    each layer ──convert_layer──► its blob ─┐
    each manifest, its blobs ◄──────────────┘ ──convert_document──► the new manifest ─┐
    each index, its entries ◄─────────────────────────────────────────────────────────┘ ──► the new index

The results are byte for byte those of convert/image.py. Nothing is verified or named here: only the lease
keeps the results, and the caller decides when to name them. Unchanged content is not copied from one store to
another; content/transfer.py does that.

Source: containerd core/images/converter and nydus-snapshotter pkg/converter, `LayerConvertFunc`,
`ConvertHookFunc`, `MergeLayers`, which these functions replace.
"""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio.to_thread

from nydus_service.builder.builder import Builder
from nydus_service.content.documents import read_document, write_document
from nydus_service.content.store import Lease, Provider
from nydus_service.convert import merge
from nydus_service.convert.assemble import NewDocument
from nydus_service.convert.classify import is_nydus
from nydus_service.convert.failures import about
from nydus_service.convert.fingerprint import layer_fingerprint
from nydus_service.convert.layer import LayerPacker, PackedLayer
from nydus_service.convert.nydusblob import BlobTail, extract
from nydus_service.convert.plan import ImagePlan, make_plan
from nydus_service.convert.progress import Progress, silent
from nydus_service.convert.rewrite import (
    BootstrapLayer,
    NydusLayers,
    content_digest,
    rewrite_config,
    rewrite_index,
    rewrite_manifest,
)
from nydus_service.convert.workdir import open_work_dir
from nydus_service.errors import UnsupportedError, UsageError, from_os_error
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import Index
from nydus_service.options.convert import ConvertOptions


async def convert_layer(
    source: Provider,
    lease: Lease,
    layer: Descriptor,
    builder: Builder,
    options: ConvertOptions,
    *,
    work_root: Path | None = None,
    progress: Progress = silent,
) -> Descriptor | None:
    """Convert one layer to a nydus blob, and commit it with the labels of converters.

    Args:
        source: provider of the layer.
        lease: in the store to write to; a lease allows one conversion of a layer at a time.
        options: those about documents and verification are ignored.
        work_root: parent of the work directory; None for the system's directory for temporary files.
    Returns:
        The blob's descriptor; None if `layer` is not a tar layer, or a nydus blob or bootstrap already.
    Raises:
        FormatError, UnsupportedError, BuilderFailed: as `convert_image` does; messages name the layer.
        NydusServiceError: by the stores and the operating system.
    """
    _refuse_chunk_dict(options)
    if is_nydus(layer) or not mediatypes.is_tar_layer(layer.media_type):
        return None
    identity = await builder.identify()
    async with open_work_dir(work_root) as work_dir:
        packer = LayerPacker(
            builder,
            source,
            lease,
            replace(options, verify="none"),
            fingerprint=layer_fingerprint(options.build, identity),
            work_dir=work_dir,
            progress=progress,
        )
        async with packer.pack(layer, f"layer {layer.digest}") as packed:
            return packed.blob


async def merge_layers(
    lease: Lease,
    blobs: Sequence[Descriptor],
    builder: Builder,
    options: ConvertOptions,
    *,
    work_root: Path | None = None,
) -> BootstrapLayer:
    """Merge an image's blobs, and commit the layer that carries the image's bootstrap.

    Args:
        lease: in the store that has the blobs and is written to.
        blobs: of the image's layers, lowest first; a blob may occur more than once.
    Raises:
        FormatError: a blob is damaged or not a nydus blob, or the layers do not match each other.
        BuilderFailed, NydusServiceError: as `convert_layer`.
    """
    _refuse_chunk_dict(options)
    async with open_work_dir(work_root) as work_dir:
        taken: dict[Descriptor, PackedLayer] = {}
        for blob in blobs:
            if blob not in taken:
                taken[blob] = await _take_apart(lease.content, blob, work_dir)
        layers = [taken[blob] for blob in blobs]
        # A random name makes the ingest's ref unique: a lease may have several concurrent merges.
        directory = await _make_directory(work_dir / uuid.uuid4().hex)
        merged = await merge.merge_layers(builder, layers, options.build, directory)
        return await merge.commit_bootstrap_layer(builder, lease.content, layers, merged, directory, lease.id)


async def convert_document(
    source: Provider,
    lease: Lease,
    document: Descriptor,
    children: Sequence[Descriptor],
    builder: Builder,
    options: ConvertOptions,
    *,
    work_root: Path | None = None,
) -> Descriptor:
    """Convert a manifest or an index, whose children are converted already.

    Args:
        source: provider of the document, and of a manifest's config and layers.
        document: the old manifest or index.
        children: new descriptors of all the manifest's layers, or of the index's entries, in their order.
            Leave out the entries that the new index is not to have.
        options: `platforms` and `verify` are ignored. `os_features` and `merge_platform` are refused.
    Returns:
        The new document's descriptor. The old descriptor if nothing changes: for images without layers,
        nydus images, attestations, or an index without changed entries. For an index with one remaining
        entry, that entry.
    Raises:
        UsageError: the number of children differs from the manifest's layers; or as `convert_image`.
        UnsupportedError: the options need the whole image; or as `convert_image`.
        NydusServiceError: of every kind that `convert_image` raises.
    """
    if options.marks_entries:
        raise UnsupportedError("os features and merge platform go with `convert_image` only")
    if mediatypes.is_index(document.media_type):
        index = await read_document(source, document, Index)
        descriptor, new = rewrite_index(document, index, children, oci=options.oci)
        if new is not None:
            await _write(source, lease, NewDocument.of(document.digest, new))
        return descriptor
    plan = await make_plan(source, document, replace(options, platforms=(), verify="none"))
    if not isinstance(plan, ImagePlan):
        return document
    if len(children) != len(plan.layers):
        raise UsageError(
            f"the manifest has {len(plan.layers)} layers, not {len(children)} [{document.digest}]"
        )
    bootstrap = await merge_layers(lease, children, builder, options, work_root=work_root)
    return await _convert_manifest(
        source, lease, plan, NydusLayers(tuple(children), bootstrap), builder, options
    )


async def _convert_manifest(
    source: Provider,
    lease: Lease,
    plan: ImagePlan,
    layers: NydusLayers,
    builder: Builder,
    options: ConvertOptions,
) -> Descriptor:
    config = rewrite_config(plan.config, layers)
    descriptor, manifest = rewrite_manifest(
        plan.descriptor,
        plan.manifest,
        config,
        layers,
        fs_version=options.build.fs_version,
        builder=await builder.identify(),
        oci=options.oci,
        with_referrer=options.with_referrer,
    )
    await _write(source, lease, NewDocument.of(plan.manifest.config.digest, config))
    await _write(source, lease, NewDocument.of(plan.descriptor.digest, manifest))
    return descriptor


def _refuse_chunk_dict(options: ConvertOptions) -> None:
    if options.build.chunk_dict:
        raise UnsupportedError("chunk dictionaries are supported by `convert_image` only")


async def _write(source: Provider, lease: Lease, new: NewDocument) -> None:
    labels = new.labels((await source.info(new.source)).labels)
    await write_document(lease.content, new.data, new.digest, labels=labels, job_id=lease.id)


async def _take_apart(store: Provider, blob: Descriptor, work_dir: Path) -> PackedLayer:
    directory = await _make_directory(work_dir / blob.digest.hex)
    with about(f"blob {blob.digest}"):
        async with store.open_reader(blob) as reader:
            metadata = await extract(reader, BlobTail(), content_digest(blob).hex, directory)
    return PackedLayer(blob, blob, metadata, 0, "")


async def _make_directory(path: Path) -> Path:
    try:
        await anyio.to_thread.run_sync(path.mkdir)
    except OSError as exc:
        raise from_os_error(exc, f"make {path}") from exc
    return path
