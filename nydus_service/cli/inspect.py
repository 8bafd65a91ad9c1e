"""`inspect`: what is in an image of a store, or in a nydus blob or bootstrap on disk."""

import argparse
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from nydus_service.cli.builders import choose_work_dir
from nydus_service.cli.files import digest_file
from nydus_service.cli.options import REFERENCES, add_common, add_containerd, add_work_dir
from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.stores import choose_daemon
from nydus_service.cli.table import Column, format_size, print_table
from nydus_service.content.open_stores import open_locations
from nydus_service.content.store import Provider
from nydus_service.convert.failures import about
from nydus_service.convert.workdir import open_work_dir
from nydus_service.imagecheck.bootstraps import describe_bootstrap, extract_bootstrap
from nydus_service.imagecheck.manifests import FoundManifest, find_manifests
from nydus_service.nydus_image.check import load
from nydus_service.oci import annotations as keys
from nydus_service.oci import mediatypes
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.reference import ImageReference


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
            print_json({"path": args.image, "bootstrap": bootstrap})
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
        print_json({"image": str(reference), "target": image.target.to_json(), "manifests": manifests})
        return 0
    for manifest in manifests:
        _print_manifest(manifest)
    print_line(f"{reference}@{image.target.digest}")
    return 0


def _describe_file(path: Path) -> dict[str, object]:
    with about(str(path)):
        bootstrap = load(path)
        for blob in bootstrap.blobs:
            if blob.has_inlined_id():
                blob.blob_id = digest_file(path)[0].hex
        return describe_bootstrap(bootstrap)


async def _describe(provider: Provider, found: FoundManifest, work_dir: Path | None) -> dict[str, Any]:
    layers = found.manifest.layers if found.manifest else ()
    diff_ids = found.config.diff_ids if found.config else ()
    bootstrap = None
    if found.bootstrap_layer:
        async with open_work_dir(work_dir) as directory:
            file = directory / "image.boot"
            await extract_bootstrap(provider, found.bootstrap_layer, file)
            bootstrap = describe_bootstrap(await anyio.to_thread.run_sync(load, file))
    return {
        "descriptor": found.descriptor.to_json(),
        "platform": found.platform and str(found.platform),
        "kind": found.kind,
        "config": found.manifest and found.manifest.config.to_json(),
        "history": list(found.config.history) if found.config else [],
        "layers": [
            {
                "kind": _layer_kind(layer),
                "descriptor": layer.to_json(),
                "diff_id": diff_ids[i] if i < len(diff_ids) else None,
            }
            for i, layer in enumerate(layers)
        ],
        "bootstrap": bootstrap,
    }


def _layer_kind(layer: Descriptor) -> str:
    if keys.NYDUS_BOOTSTRAP in layer.annotations:
        return "bootstrap"
    if mediatypes.is_nydus_blob(layer.media_type):
        return "nydus blob"
    return "tar" if mediatypes.is_tar_layer(layer.media_type) else "other"


def _print_manifest(manifest: dict[str, Any]) -> None:
    print_line(f"{manifest['kind']} for {manifest['platform']}: {manifest['descriptor']['digest']}")
    if manifest["layers"]:
        print_line()
        rows = [
            [layer["kind"], format_size(layer["descriptor"]["size"]), layer["descriptor"]["digest"]]
            for layer in manifest["layers"]
        ]
        total = format_size(sum(layer["descriptor"]["size"] for layer in manifest["layers"]))
        print_table([Column("layer"), Column("size", True), Column("digest")], rows, ["", total, ""])
    print_line()
    if manifest["bootstrap"]:
        _print_bootstrap(manifest["bootstrap"])
        print_line()


def _print_bootstrap(bootstrap: dict[str, Any]) -> None:
    counts = ", ".join(
        f"{bootstrap[kind]} {kind}" for kind in ("directories", "files", "symlinks", "special")
    )
    print_line(f"RAFS v{bootstrap['fs_version']}: {bootstrap['names']} names: {counts}")
    algorithms = f"{bootstrap['compressor']}, {bootstrap['digester']}"
    print_line(
        f"content {format_size(bootstrap['content_bytes'])} in chunks of {bootstrap['chunk_size']:#x}, "
        f"{algorithms}; flags {bootstrap['flags']}, {bootstrap['prefetch']} in the prefetch table"
    )
    if bootstrap["blobs"]:
        print_line()
        columns = [Column("chunks", True), Column("stored", True), Column("content", True), Column("blob")]
        rows = [
            [
                str(blob["chunks"]),
                format_size(blob["compressed_size"]),
                format_size(blob["uncompressed_size"]),
                blob["id"],
            ]
            for blob in bootstrap["blobs"]
        ]
        print_table(columns, rows)
