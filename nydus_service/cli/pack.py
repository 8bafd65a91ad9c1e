"""`pack`: convert one layer, a tar on disk, to one nydus blob on disk."""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio.to_thread

from nydus_service.builder.builder import BuilderIdentity, PackOutcome, PackRequest
from nydus_service.cli.builders import choose_builder
from nydus_service.cli.files import digest_file, open_replacement
from nydus_service.cli.options import (
    OptionGroups,
    add_builder,
    add_common,
    build_rows,
    check_bootstrap_file,
)
from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.table import Column, format_seconds, format_size, print_table
from nydus_service.errors import from_os_error
from nydus_service.oci.compression import HEAD_SIZE, sniff
from nydus_service.oci.digest import Digester
from nydus_service.options.arguments import build_options_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", type=Path, help="the layer: a tar, plain, gzip or zstd")
    parser.add_argument(
        "target", metavar="DST", type=Path, help="where the nydus blob goes; replaced if there"
    )
    OptionGroups(parser).add(build_rows())
    add_builder(parser)
    add_common(parser)


async def run(args: argparse.Namespace) -> int:
    build = build_options_of(args)
    check_bootstrap_file(build)
    builder = choose_builder(args)
    identity = await builder.identify()
    begun = time.monotonic()
    source_digest, source_size = await anyio.to_thread.run_sync(digest_file, args.source)
    digester = Digester()
    with TemporaryDirectory(prefix="nydus-service-") as scratch, open_replacement(args.target) as file:
        output_json = Path(scratch, "create.json")
        refers = await anyio.to_thread.run_sync(_refers, build.oci_ref, args.source)
        request = PackRequest(source_digest, source_size, output_json, build, refers=refers)

        def keep(piece: bytes | memoryview) -> None:
            digester.update(piece)
            file.write(piece)

        async def sink(piece: bytes | memoryview) -> None:
            await anyio.to_thread.run_sync(keep, piece)

        outcome = await builder.pack(request, args.source, sink)
    _report(args, request, digester, identity, outcome, time.monotonic() - begun)
    return 0


def _refers(oci_ref: str, source: Path) -> bool:
    """Whether the blob is to refer to the layer; with "auto", if that is gzip."""
    if oci_ref != "auto":
        return oci_ref == "yes"
    try:
        with source.open("rb") as file:
            return sniff(file.read(HEAD_SIZE)) == "gzip"
    except OSError as exc:
        raise from_os_error(exc, f"read the layer {source}") from exc


def _report(
    args: argparse.Namespace,
    request: PackRequest,
    blob: Digester,
    identity: BuilderIdentity,
    outcome: PackOutcome,
    duration_s: float,
) -> None:
    if args.format == "json":
        print_json(
            {
                "source": {
                    "path": str(args.source),
                    "digest": request.source_digest,
                    "size": request.source_size,
                    "diff_id": outcome.diff_id,
                },
                "blob": {"path": str(args.target), "digest": blob.digest(), "size": blob.size},
                "builder": {"name": identity.name, "version": identity.version},
                "warnings": outcome.stderr_tail,
                "duration_s": round(duration_s, 3),
            }
        )
        return
    columns = [Column("in", True), Column("out", True), Column("time", True), Column("builder")]
    sizes = [format_size(request.source_size), format_size(blob.size)]
    print_table(columns, [[*sizes, format_seconds(duration_s), str(identity)]])
    print_line(f"{args.target}@{blob.digest()}")
