"""`merge`: merge nydus blobs on disk, one per layer, into an image's bootstrap or its bootstrap layer."""

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from nydus_service.builder.builder import BootstrapLayerRequest, Builder, MergeOutcome, MergeRequest
from nydus_service.cli.builders import choose_builder, choose_work_dir
from nydus_service.cli.files import READ_SIZE, digest_file, open_replacement
from nydus_service.cli.options import (
    OptionGroups,
    add_append_file,
    add_builder,
    add_common,
    add_later,
    add_work_dir,
    build_rows,
    check_bootstrap_file,
)
from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.table import print_verdict
from nydus_service.content.layout import LayoutReader
from nydus_service.convert.appended import AppendedContent, read_appended
from nydus_service.convert.failures import about
from nydus_service.convert.nydusblob import BlobMetadata, BlobTail, extract
from nydus_service.convert.workdir import open_work_dir
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.oci.digest import Digest
from nydus_service.options.arguments import build_options_of
from nydus_service.rafs.constants import BLOB_SEPARATE
from nydus_service.rafs.records import read_tables


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A nydus blob on disk, and the metadata that a merge needs, in files of the work directory."""

    path: Path
    digest: Digest
    size: int
    metadata: BlobMetadata


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "blobs", metavar="BLOB", nargs="+", type=Path, help="nydus blobs, the lowest layer first"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help="where it goes; replaced if there"
    )
    parser.add_argument(
        "--bootstrap-layer",
        action="store_true",
        help="write the tar.gz that is an image's last layer, not the bare bootstrap",
    )
    add_append_file(parser)
    OptionGroups(parser).add(build_rows(merge=True))
    add_builder(parser)
    add_work_dir(parser)
    add_common(parser)
    add_later(parser, "--encrypt", "--oci-ref")


async def run(args: argparse.Namespace) -> int:
    build = build_options_of(args)
    check_bootstrap_file(build)
    if args.append_file and not args.bootstrap_layer:
        raise UsageError("--append-file goes with --bootstrap-layer only")
    appended = await read_appended(args.append_file)
    builder = choose_builder(args)
    async with open_work_dir(choose_work_dir(args)) as work_dir:
        blobs = [await take_apart(path, work_dir) for path in args.blobs]
        merged = work_dir / "merged.boot"
        request = MergeRequest(
            bootstraps=tuple(blob.metadata.bootstrap for blob in blobs),
            target=merged,
            output_json=work_dir / "merge.json",
            build=build,
        )
        outcome = await builder.merge(request)
        if args.bootstrap_layer:
            merged = await _bootstrap_layer(builder, merged, blobs, work_dir, appended)
        digest = await anyio.to_thread.run_sync(_move, merged, args.output)
    if args.format == "json":
        print_json(_report(args.output, digest, blobs, outcome))
    else:
        for pattern in outcome.unmatched:
            print_verdict("not prefetched", f"{pattern}: nothing has this path", "warn")
        print_line(f"{args.output}@{digest}")
    return 0


async def take_apart(path: Path, work_dir: Path) -> LayerBlob:
    """Hash a nydus blob, and extract its bootstrap and chunk-info table to files named by its digest.

    Raises:
        FormatError: the file is not a nydus blob, or is damaged.
        UnsupportedError: it refers to a gzip layer.
        NydusServiceError: the blob cannot be read, or the files cannot be written.
    """
    digest, size = await anyio.to_thread.run_sync(digest_file, path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with about(str(path)):
            metadata = await extract(LayoutReader(fd, path, size), BlobTail(), digest.hex, work_dir)
            await anyio.to_thread.run_sync(_require_content, metadata.bootstrap)
    finally:
        os.close(fd)
    return LayerBlob(path, digest, size, metadata)


def _require_content(bootstrap: Path) -> None:
    """Raises: UnsupportedError: the blob of a bootstrap refers to a gzip layer."""
    blobs = read_tables(bootstrap.read_bytes(), None).blobs
    if any(blob.features & BLOB_SEPARATE for blob in blobs):
        raise UnsupportedError(
            "the blob refers to a gzip layer, and merging such blobs is not there yet; `nydus-service "
            "convert --oci-ref` merges them"
        )


async def _bootstrap_layer(
    builder: Builder, merged: Path, blobs: Sequence[LayerBlob], work_dir: Path, appended: AppendedContent
) -> Path:
    metas = {blob.digest.hex: table for blob in blobs if (table := blob.metadata.chunk_table)}
    output = work_dir / "bootstrap-layer.tar.gz"
    files = await appended.write(work_dir)
    await builder.bootstrap_layer(
        BootstrapLayerRequest(merged, tuple(metas.items()), output, work_dir / "bootstrap-layer.json", files)
    )
    return output


def _move(written: Path, output: Path) -> Digest:
    """Copy a file of the work directory to the output path. Returns its digest."""
    with open_replacement(output) as target, written.open("rb") as source:
        shutil.copyfileobj(source, target, READ_SIZE)
    return digest_file(output)[0]


def _report(
    output: Path, digest: Digest, blobs: Sequence[LayerBlob], outcome: MergeOutcome
) -> dict[str, object]:
    return {
        "output": {"path": str(output), "digest": digest},
        "layers": [{"path": str(blob.path), "digest": blob.digest, "size": blob.size} for blob in blobs],
        "blobs": [f"sha256:{hex_id}" for hex_id in outcome.blobs],
        "warnings": outcome.stderr_tail,
        "unmatched_prefetch": outcome.unmatched,
        "duration_s": round(outcome.duration_s, 3),
    }
