"""`check`: check that a nydus image is sound, or equal to its source image. Changes nothing."""

import argparse
from collections.abc import Sequence

from nydus_service.builder.verifier import VerifierProcess
from nydus_service.cli.builders import choose_work_dir
from nydus_service.cli.options import (
    REFERENCES,
    add_common,
    add_containerd,
    add_work_dir,
    available_cores,
    positive_count,
)
from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.stores import choose_daemon
from nydus_service.cli.table import Column, format_seconds, format_size, print_table, print_verdict
from nydus_service.content.open_stores import open_locations
from nydus_service.convert.encoding import as_json
from nydus_service.convert.turns import Turns
from nydus_service.errors import DiffersError
from nydus_service.imagecheck.image import check_image
from nydus_service.imagecheck.result import Checked, CheckResult, Entry
from nydus_service.oci.platform import Platform
from nydus_service.oci.reference import ImageReference

SHOWN = 20
"""The number of differences that the text form lists; JSON has up to a hundred."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMG", help="the nydus image")
    parser.add_argument("--against", metavar="SRC", help="the image that it was made of")
    parser.add_argument(
        "--verify",
        choices=("tree", "full"),
        default="tree",
        help="tree: metadata, and content by digests (default); full: read every chunk back, too",
    )
    parser.add_argument(
        "--platform", action="append", default=[], metavar="OS/ARCH", help="only this; repeatable"
    )
    parser.add_argument(
        "--jobs", type=positive_count, default=available_cores(), metavar="N", help="layers read at a time"
    )
    add_work_dir(parser)
    add_containerd(parser)
    add_common(parser)
    parser.epilog = REFERENCES


async def run(args: argparse.Namespace) -> int:
    references = map(ImageReference.parse, [args.image, args.against] if args.against else [args.image])
    platforms = [Platform.parse(text) for text in args.platform]
    async with open_locations([*references], choose_daemon(args)) as locations:
        result = await check_image(
            *locations,
            verifier=VerifierProcess(),
            mode=args.verify,
            platforms=platforms,
            turns=Turns(args.jobs),
            work_root=choose_work_dir(args),
        )
    _tell(args, result)
    return 0 if result.is_good else DiffersError.exit_code


def _tell(args: argparse.Namespace, result: CheckResult) -> None:
    if args.format == "json":
        print_json(as_json(result))
        return
    if result.images:
        print_checked(result.images)
    _print_entries("kept from the source, compared by descriptor", result.kept)
    _print_entries("not examined", result.not_examined)
    _print_entries("not converted", result.not_converted)
    _print_entries(f"without a source in {result.against}", result.without_source)
    shown = f"{result.image}@{result.target.digest}"
    print_verdict(result.verdict, shown, "ok" if result.is_good else "bad")


def _print_entries(what: str, entries: Sequence[Entry]) -> None:
    for entry in entries:
        platform = f" for {entry.platform}" if entry.platform else ""
        print_line(f"{what}: {entry.kind}{platform}, {entry.descriptor.digest}")


def print_checked(checked: Sequence[Checked]) -> None:
    columns = [Column("platform"), Column("verdict"), Column("names", True), Column("content", True)]
    columns += [Column("read back", True), Column("time", True)]
    rows = [
        [
            str(each.platform),
            each.verdict,
            f"{each.entries:,}",
            format_size(each.content_bytes),
            format_size(each.bytes_read),
            format_seconds(each.duration_s),
        ]
        for each in checked
    ]
    print_table(columns, rows)
    for each in checked:
        for difference in each.differences[:SHOWN]:
            print_line(f"  {difference}")
        rest = each.differences_total - SHOWN
        if rest > 0:
            print_line(f"  and {rest} more differences")
        for aside in each.legitimate:
            print_line(f"  not compared: {aside.count} x {aside.reason}")
