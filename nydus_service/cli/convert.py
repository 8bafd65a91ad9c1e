"""`convert`: an image to a nydus image, in any two stores."""

import argparse
from contextlib import AsyncExitStack

from nydus_service.builder.limits import Limits
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.cli.builders import choose_builder, choose_work_dir
from nydus_service.cli.options import (
    REFERENCES,
    VERIFY_MODES,
    add_builder,
    add_common,
    add_containerd,
    add_later,
    add_layer_format,
    add_prefetch,
    add_work_dir,
    available_cores,
    positive_count,
)
from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.progress import open_progress
from nydus_service.cli.stores import choose_daemon
from nydus_service.cli.table import Column, format_seconds, format_size, print_table, print_verdict
from nydus_service.content.places import fetch_advice, open_stores
from nydus_service.convert.image import Place, convert_image, preview_image
from nydus_service.convert.options import ConvertOptions
from nydus_service.convert.plan import Dropped, ImagePlan, IndexPlan, Kept, Plan
from nydus_service.convert.result import ConvertResult, ImageResult, Preview
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.oci.platform import Platform
from nydus_service.oci.reference import ImageReference, Transport

LATER = (
    "--oci-ref", "--chunk-dict", "--batch-size", "--encrypt", "--encrypt-recipient", "--decryption-key",
    "--merge-platform", "--os-features", "--append-file", "--keep-estargz-index",
    "--backend-type", "--backend-config", "--backend-config-file", "--backend-force-push",
    "--cache", "--remote", "--hosts-dir", "--insecure-registry",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the image to convert")
    parser.add_argument("target", metavar="DST", help="the name of the nydus image, in this or another store")
    group = parser.add_argument_group("what")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--platform", action="append", default=[], metavar="OS/ARCH", help="convert only this; repeatable"
    )
    which.add_argument("--all-platforms", action="store_true", help="convert all of them (the default)")
    group.add_argument("--oci", action="store_true", help="make OCI types of Docker types")
    group.add_argument(
        "--with-referrer", action="store_true", help="name the source's manifest as subject of the new one"
    )
    add_layer_format(parser)
    add_prefetch(parser)
    group = parser.add_argument_group("how")
    group.add_argument(
        "--verify",
        choices=VERIFY_MODES,
        default="tree",
        help="before the name moves: metadata, and content by digests (tree, the default), "
        "or every chunk read back, too (full)",
    )
    group.add_argument("--dry-run", action="store_true", help="tell what would be done, and write nothing")
    group.add_argument("--force", action="store_true", help="convert even if the target is there and right")
    group.add_argument(
        "--jobs",
        type=positive_count,
        default=available_cores(),
        metavar="N",
        help="builder processes at a time (default: %(default)s, the cores)",
    )
    add_builder(parser)
    add_work_dir(parser)
    add_containerd(parser)
    add_common(parser)
    parser.epilog = REFERENCES
    add_later(parser, *LATER)


async def run(args: argparse.Namespace) -> int:
    options = options_of(args)
    source, target = ImageReference.parse(args.source), ImageReference.parse(args.target)
    check_target(target)
    builder = choose_builder(args)
    daemon = choose_daemon(args)
    async with AsyncExitStack() as stack:
        stack.enter_context(fetch_advice(source, daemon))
        same = source.store == target.store
        sweep = not args.dry_run
        source_stores = await stack.enter_async_context(open_stores(source, daemon, sweep=same and sweep))
        target_stores = source_stores
        if not same:
            target_stores = await stack.enter_async_context(open_stores(target, daemon, sweep=sweep))
        places = (
            Place(source_stores, source.name, source.digest, str(source)),
            Place(target_stores, target.name, None, str(target)),
        )
        if args.dry_run:
            tell_preview(args, await preview_image(*places, builder, options))
            return 0
        with open_progress(args) as progress:
            result = await convert_image(
                *places,
                builder,
                VerifierProcess(limits=Limits(args.builder_timeout)),
                options,
                work_root=choose_work_dir(args),
                progress=progress,
            )
    tell_result(args, result)
    return 0


def options_of(args: argparse.Namespace) -> ConvertOptions:
    """Raises: UsageError, UnsupportedError: a value is wrong, or not there yet."""
    return ConvertOptions(
        platforms=tuple(map(Platform.parse, args.platform)),
        fs_version=args.fs_version,
        compressor=args.compressor,
        chunk_size=args.chunk_size,
        prefetch_policy=args.prefetch_policy,
        prefetch_patterns=args.prefetch_patterns,
        oci=args.oci,
        with_referrer=args.with_referrer,
        verify=args.verify,
        force=args.force,
        jobs=args.jobs,
    )


def check_target(target: ImageReference) -> None:
    """Refuse at once what cannot be named.

    Raises:
        UsageError: the reference has no name, or a digest, which nobody can know before.
        UnsupportedError: a store that is only read.
    """
    if target.transport is Transport.DOCKER_ARCHIVE:
        raise UnsupportedError(f"{target}: docker-archive is only read; write oci-archive:{target.path}:TAG")
    if target.digest is not None:
        raise UsageError(f"{target}: the digest of the result is not known before; give a name alone")
    if not target.name:
        raise UsageError(f"{target}: the result needs a name; write {target}:TAG")


def tell_preview(args: argparse.Namespace, preview: Preview) -> None:
    if args.format == "json":
        print_json(preview.as_json())
    elif preview.unchanged:
        print_line(f"would be unchanged: {preview.unchanged}")
    else:
        if preview.plan:
            _print_plan(preview.plan, "")
        print_line(f"would become {preview.target_name}, built by {preview.builder}")


def _print_plan(plan: Plan, indent: str) -> None:
    digest = plan.descriptor.digest
    if isinstance(plan, Kept | Dropped):
        print_line(f"{indent}{'keep' if isinstance(plan, Kept) else 'drop'} {digest}: {plan.reason}")
    elif isinstance(plan, IndexPlan):
        print_line(f"{indent}index {digest}")
        for entry in plan.entries:
            _print_plan(entry, f"{indent}  ")
    else:
        _print_image_plan(plan, indent)


def _print_image_plan(plan: ImagePlan, indent: str) -> None:
    sizes = format_size(sum(layer.size for layer in plan.layers))
    print_line(
        f"{indent}convert {plan.descriptor.digest}: {plan.platform}, {len(plan.layers)} layers, {sizes}"
    )
    for layer in plan.layers:
        print_line(f"{indent}  {layer.digest} {format_size(layer.size)}")


def tell_result(args: argparse.Namespace, result: ConvertResult) -> None:
    if args.format == "json":
        print_json(result.as_json())
        return
    for image in result.images:
        print_image(image)
    for kept in result.kept:
        print_line(f"kept {kept.descriptor.digest}: {kept.reason}")
    if result.status == "unchanged":
        print_verdict("unchanged", f"in {format_seconds(result.duration_s)}: {result.reason}", "ok")
    else:
        print_verdict("converted", f"in {format_seconds(result.duration_s)} by {result.builder}", "ok")
    print_line(f"{result.target_name}@{result.target.digest}")


def print_image(image: ImageResult) -> None:
    """A table of an image's layers, and how it was verified."""
    columns = [Column("layer"), Column("in", True), Column("out", True), Column("ratio", True)]
    columns.append(Column("time", True))
    rows = [
        [
            layer.source.digest,
            format_size(layer.source.size),
            format_size(layer.blob.size),
            _ratio(layer.source.size, layer.blob.size),
            format_seconds(layer.duration_s),
        ]
        for layer in image.layers
    ]
    merged = format_seconds(image.merge_duration_s)
    rows.append(["bootstrap", "", format_size(image.bootstrap.size), "", merged])
    total_in = sum(layer.source.size for layer in image.layers)
    total_out = sum(layer.blob.size for layer in image.layers) + image.bootstrap.size
    total = [str(image.platform or "image"), format_size(total_in), format_size(total_out)]
    print_table(columns, rows, [*total, _ratio(total_in, total_out), ""])
    if image.verification is None:
        print_verdict("not verified", "as --verify none asked", "warn")
        return
    verification = image.verification
    told = f"{verification.entries:,} names, {format_size(verification.content_bytes)} of content"
    if verification.bytes_read:
        told += f", {format_size(verification.bytes_read)} read back"
    print_verdict("verified", f"{told}, in {format_seconds(verification.duration_s)}", "ok")
    for reason, count in verification.legitimate:
        print_line(f"  not compared: {count} x {reason}")


def _ratio(size_in: int, size_out: int) -> str:
    return f"{size_out / size_in:.2f}" if size_in else ""
