"""`inspect`: show the contents of an image in a store, or of a nydus blob or bootstrap on disk."""

import argparse
from pathlib import Path

import anyio
import anyio.to_thread
from msgspec import Struct

from nydus_service.cli.builders import choose_work_dir
from nydus_service.cli.files import digest_file
from nydus_service.cli.options import REFERENCES, add_common, add_containerd, add_work_dir
from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.stores import choose_daemon
from nydus_service.cli.table import Column, format_size, print_table
from nydus_service.content.open_stores import open_locations
from nydus_service.content.store import Provider
from nydus_service.convert.bootstraplayer import extract_bootstrap
from nydus_service.convert.encoding import as_json
from nydus_service.convert.failures import about
from nydus_service.convert.workdir import open_work_dir
from nydus_service.imagecheck.bootstraps import BootstrapFacts, describe_bootstrap
from nydus_service.imagecheck.manifests import FoundManifest, find_manifests
from nydus_service.nydus_image.check import load
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.document import JsonMap
from nydus_service.oci.reference import ImageReference


class LayerFacts(Struct, frozen=True):
    """A layer of a manifest. `kind`: bootstrap, nydus blob, tar or other."""

    kind: str
    descriptor: Descriptor
    diff_id: str | None


class ManifestFacts(Struct, frozen=True, kw_only=True):
    """The facts shown about a manifest, in the order of the JSON document."""

    descriptor: Descriptor
    platform: str | None
    kind: str
    config: Descriptor | None
    history: tuple[JsonMap, ...]
    layers: tuple[LayerFacts, ...]
    bootstrap: BootstrapFacts | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMG", help="an image, or the path of a nydus blob or a bootstrap")
    add_work_dir(parser)
    add_containerd(parser)
    add_common(parser)
    parser.epilog = REFERENCES


async def run(args: argparse.Namespace) -> int:
    if await anyio.Path(args.image).is_file():
        bootstrap = await anyio.to_thread.run_sync(_describe_file, Path(args.image))
        if args.format == "json":
            print_json({"path": args.image, "bootstrap": as_json(bootstrap)})
        else:
            _print_bootstrap(bootstrap)
        return 0
    reference = ImageReference.parse(args.image)
    async with open_locations([reference], choose_daemon(args)) as (location,):
        image = await location.find()
        provider = location.stores.content
        manifests = [
            await _describe(provider, found, choose_work_dir(args))
            for found in await find_manifests(provider, image.target)
        ]
    if args.format == "json":
        document = {"image": str(reference), "target": image.target, "manifests": manifests}
        print_json(as_json(document))
        return 0
    for manifest in manifests:
        _print_manifest(manifest)
    print_line(f"{reference}@{image.target.digest}")
    return 0


def _describe_file(path: Path) -> BootstrapFacts:
    with about(str(path)):
        bootstrap = load(path)
        for blob in bootstrap.blobs:
            if blob.has_inlined_id():
                blob.blob_id = digest_file(path)[0].hex
        return describe_bootstrap(bootstrap)


async def _describe(provider: Provider, found: FoundManifest, work_dir: Path | None) -> ManifestFacts:
    layers = found.manifest.layers if found.manifest else ()
    diff_ids = found.config.diff_ids if found.config else ()
    bootstrap = None
    if found.bootstrap_layer:
        async with open_work_dir(work_dir) as directory:
            file = directory / "image.boot"
            await extract_bootstrap(provider, found.bootstrap_layer, file)
            bootstrap = describe_bootstrap(await anyio.to_thread.run_sync(load, file))
    return ManifestFacts(
        descriptor=found.descriptor,
        platform=str(found.platform) if found.platform else None,
        kind=found.kind,
        config=found.manifest.config if found.manifest else None,
        history=found.config.history if found.config else (),
        layers=tuple(
            LayerFacts(_layer_kind(layer), layer, str(diff_ids[i]) if i < len(diff_ids) else None)
            for i, layer in enumerate(layers)
        ),
        bootstrap=bootstrap,
    )


def _layer_kind(layer: Descriptor) -> str:
    if keys.NYDUS_BOOTSTRAP in layer.annotations:
        return "bootstrap"
    if mediatypes.is_nydus_blob(layer.media_type):
        return "nydus blob"
    return "tar" if mediatypes.is_tar_layer(layer.media_type) else "other"


def _print_manifest(manifest: ManifestFacts) -> None:
    print_line(f"{manifest.kind} for {manifest.platform}: {manifest.descriptor.digest}")
    if manifest.layers:
        print_line()
        rows = [
            [layer.kind, format_size(layer.descriptor.size), layer.descriptor.digest]
            for layer in manifest.layers
        ]
        total = format_size(sum(layer.descriptor.size for layer in manifest.layers))
        print_table([Column("layer"), Column("size", True), Column("digest")], rows, ["", total, ""])
    print_line()
    if manifest.bootstrap:
        _print_bootstrap(manifest.bootstrap)
        print_line()


def _print_bootstrap(facts: BootstrapFacts) -> None:
    counts = (
        f"{facts.directories} directories, {facts.files} files, {facts.symlinks} symlinks, "
        f"{facts.special} special"
    )
    print_line(f"RAFS v{facts.fs_version}: {facts.names} names: {counts}")
    print_line(
        f"content {format_size(facts.content_bytes)} in chunks of {facts.chunk_size:#x}, "
        f"{facts.compressor}, {facts.digester}; flags {facts.flags}, {facts.prefetch} in the prefetch table"
    )
    if facts.blobs:
        print_line()
        columns = [Column("chunks", True), Column("stored", True), Column("content", True), Column("blob")]
        rows = [
            [
                str(blob.chunks),
                format_size(blob.compressed_size),
                format_size(blob.uncompressed_size),
                blob.id,
            ]
            for blob in facts.blobs
        ]
        print_table(columns, rows)
