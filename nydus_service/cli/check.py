"""`check`: whether a nydus image is sound, or the very image that it was made of. Changes nothing."""

import argparse
from collections.abc import Sequence
from contextlib import AsyncExitStack

from nydus_service.cli.builders import choose_work_dir
from nydus_service.cli.imagecheck import Checked, ImageCheck
from nydus_service.cli.images import FoundManifest, find_manifests, resolve
from nydus_service.cli.options import (
    REFERENCES,
    add_common,
    add_containerd,
    add_work_dir,
    available_cores,
    positive_count,
)
from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.stores import choose_daemon, open_stores
from nydus_service.cli.table import Column, format_seconds, format_size, print_table, print_verdict
from nydus_service.content.store import Provider
from nydus_service.convert.workdir import open_work_dir
from nydus_service.errors import DiffersError, NotFoundError, UsageError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.platform import Platform, match_everything, match_strictly
from nydus_service.oci.reference import ImageReference

SHOWN = 20
"""Differences that the text form lists; JSON has up to a hundred."""


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
    reference = ImageReference.parse(args.image)
    against = ImageReference.parse(args.against) if args.against else None
    platforms = [Platform.parse(text) for text in args.platform]
    daemon = choose_daemon(args)
    async with open_stores(reference, daemon) as stores, AsyncExitStack() as sources:
        image = await resolve(stores, reference)
        manifests = await _nydus_manifests(stores.content, image.target, str(reference), platforms)
        pairs: list[tuple[FoundManifest, FoundManifest | None]] = [(each, None) for each in manifests]
        provider = None
        if against:
            source_stores = await sources.enter_async_context(open_stores(against, daemon))
            provider = source_stores.content
            source = await resolve(source_stores, against)
            found = await find_manifests(provider, source.target)
            pairs = [(each, _source_of(each, found, len(manifests), str(against))) for each in manifests]
        async with open_work_dir(choose_work_dir(args)) as work_dir:
            check = ImageCheck(stores.content, provider, args.verify, args.jobs, work_dir)
            checked = [await check.run(*pair) for pair in pairs]
    _tell(args, reference, against, image.target, checked)
    return 0 if all(each.is_good for each in checked) else DiffersError.exit_code


async def _nydus_manifests(
    provider: Provider, root: Descriptor, name: str, platforms: Sequence[Platform]
) -> list[FoundManifest]:
    """The nydus images among the manifests of an image.

    Raises:
        UsageError: there is none.
        NotFoundError: none is for a platform that was asked for.
    """
    found = [each for each in await find_manifests(provider, root) if each.bootstrap_layer]
    if not found:
        raise UsageError(f"{name} is not a nydus image; `nydus-service convert` makes one of it")
    matcher = match_strictly(platforms) if platforms else match_everything()
    wanted = [each for each in found if each.platform is None or matcher.match(each.platform)]
    if not wanted:
        raise NotFoundError(f"{name} has no nydus image for {matcher}; it has {_platforms(found)}")
    return wanted


def _source_of(
    manifest: FoundManifest, sources: Sequence[FoundManifest], count: int, name: str
) -> FoundManifest:
    """The source that a nydus image is to be held against: that of its platform, or the only one there is.

    Args:
        count: of the nydus images that are checked.
    Raises:
        NotFoundError: there is none.
    """
    images = [each for each in sources if each.kind == "OCI image"]
    for source in images:
        if (
            source.platform
            and manifest.platform
            and source.platform.normalised() == manifest.platform.normalised()
        ):
            return source
    if len(images) == count == 1:
        return images[0]
    raise NotFoundError(
        f"{name} has no OCI image for {manifest.platform}; it has {_platforms(images) or 'none'}"
    )


def _platforms(manifests: Sequence[FoundManifest]) -> str:
    return ", ".join(sorted(str(each.platform) for each in manifests))


def _tell(
    args: argparse.Namespace,
    reference: ImageReference,
    against: ImageReference | None,
    target: Descriptor,
    checked: Sequence[Checked],
) -> None:
    good = all(each.is_good for each in checked)
    verdict = next(each.report["verdict"] for each in checked if good or not each.is_good)
    if args.format == "json":
        print_json(
            {
                "image": str(reference),
                "target": target.to_json(),
                "against": against and str(against),
                "verdict": verdict,
                "images": [each.as_json() for each in checked],
            }
        )
        return
    print_checked(checked)
    print_verdict(verdict, f"{reference}@{target.digest}", "ok" if good else "bad")


def print_checked(checked: Sequence[Checked]) -> None:
    columns = [Column("platform"), Column("verdict"), Column("names", True), Column("content", True)]
    columns += [Column("read back", True), Column("time", True)]
    rows = [
        [
            str(each.manifest.platform),
            each.report["verdict"],
            f"{each.report['entries']:,}",
            format_size(each.report["bytes"]),
            format_size(each.report["bytes_read"]),
            format_seconds(each.duration_s),
        ]
        for each in checked
    ]
    print_table(columns, rows)
    for each in checked:
        for difference in each.report["differences"][:SHOWN]:
            where = f"{difference['path'] or 'image'}: {difference['field']}"
            layer = f" (from layer {difference['layer']})" if difference["layer"] else ""
            print_line(f"  {where} should be {difference['wanted']!r}, and is {difference['found']!r}{layer}")
        rest = each.report["differences_total"] - SHOWN
        if rest > 0:
            print_line(f"  and {rest} more differences")
        for aside in each.report["legitimate"]:
            print_line(f"  not compared: {aside['count']} x {aside['reason']}")
