"""`merge`: nydus blobs on disk, one a layer, to an image's bootstrap or its bootstrap layer."""

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from nydus_service.builder.builder import BootstrapLayerRequest, Builder, MergeOutcome, MergeRequest
from nydus_service.cli.builders import choose_builder
from nydus_service.cli.files import READ_SIZE, digest_file, make_work_dir, open_replacement
from nydus_service.cli.options import (
    add_builder,
    add_common,
    add_later,
    add_prefetch,
    add_work_dir,
)
from nydus_service.cli.output import print_json, print_line
from nydus_service.errors import FormatError, from_os_error
from nydus_service.oci.digest import Digest
from nydus_service.rafs import blob as sections
from nydus_service.rafs.constants import BLOCK_SIZE, align


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A nydus blob on disk, and what of it a merge needs, in files of the work directory."""

    path: Path
    digest: Digest
    size: int
    bootstrap: Path
    meta: Path | None


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
    add_prefetch(parser)
    add_builder(parser)
    add_work_dir(parser)
    add_common(parser)
    add_later(parser, "--chunk-dict", "--append-file", "--encrypt", "--oci-ref")


async def run(args: argparse.Namespace) -> int:
    builder = choose_builder(args)
    with make_work_dir(args.work_dir) as work_dir:
        blobs = [await anyio.to_thread.run_sync(take_apart, path, work_dir) for path in args.blobs]
        merged = work_dir / "merged.boot"
        request = MergeRequest(
            bootstraps=tuple(blob.bootstrap for blob in blobs),
            target=merged,
            output_json=work_dir / "merge.json",
            prefetch_policy=args.prefetch_policy,
            prefetch_patterns=args.prefetch_patterns,
        )
        outcome = await builder.merge(request)
        if args.bootstrap_layer:
            merged = await _bootstrap_layer(builder, merged, blobs, work_dir)
        digest = await anyio.to_thread.run_sync(_move, merged, args.output)
    if args.format == "json":
        print_json(_report(args.output, digest, blobs, outcome))
    else:
        print_line(f"{args.output}@{digest}")
    return 0


def take_apart(path: Path, work_dir: Path) -> LayerBlob:
    """Hash a nydus blob, and put its bootstrap and chunk-info table in files named by its digest.

    Raises:
        FormatError: it is not a nydus blob, or it is damaged.
        NydusServiceError: it cannot be read, or the files cannot be written.
    """
    digest, size = digest_file(path)
    bootstrap, meta = work_dir / digest.hex, work_dir / f"{digest.hex}.blob.meta"
    try:
        with path.open("rb") as file:

            def entry(name: str) -> bytes:
                return sections.run(sections.read_entry(name, size), read)

            def read(offset: int, length: int) -> bytes:
                return os.pread(file.fileno(), length, offset)

            bootstrap.write_bytes(entry(sections.BOOTSTRAP))
            has_meta = any(each.name == sections.META for each in sections.run(sections.read_toc(size), read))
            if has_meta:
                table = entry(sections.META)
                meta.write_bytes(
                    table + bytes(align(len(table), BLOCK_SIZE) - len(table)) + entry(sections.META_HEADER)
                )
    except FormatError as exc:
        raise FormatError(f"{path}: {exc}") from exc
    except OSError as exc:
        raise from_os_error(exc, f"take {str(path)!r} apart in {str(work_dir)!r}") from exc
    return LayerBlob(path, digest, size, bootstrap, meta if has_meta else None)


async def _bootstrap_layer(
    builder: Builder, merged: Path, blobs: Sequence[LayerBlob], work_dir: Path
) -> Path:
    metas = {blob.digest.hex: blob.meta for blob in blobs if blob.meta is not None}
    output = work_dir / "bootstrap-layer.tar.gz"
    await builder.bootstrap_layer(
        BootstrapLayerRequest(merged, tuple(metas.items()), output, work_dir / "bootstrap-layer.json")
    )
    return output


def _move(written: Path, output: Path) -> Digest:
    """Copy a file of the work directory to where it was asked for."""
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
        "duration_s": round(outcome.duration_s, 3),
    }
