"""`convert`: an image to a nydus image, in any two stores."""

import argparse
from contextlib import AsyncExitStack
from typing import Any

import anyio

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
    add_socket,
    add_work_dir,
    available_cores,
    positive_count,
)
from nydus_service.cli.progress import open_progress
from nydus_service.cli.results import tell_preview, tell_result
from nydus_service.cli.stores import choose_daemon
from nydus_service.config.environment import load_settings
from nydus_service.content.open_stores import fetch_advice, open_stores
from nydus_service.convert.image import Location, convert_image, preview_image
from nydus_service.convert.options import ConvertOptions
from nydus_service.convert.references import check_target
from nydus_service.errors import UsageError
from nydus_service.oci.reference import ImageReference

LATER = (
    "--oci-ref", "--chunk-dict", "--batch-size", "--encrypt", "--encrypt-recipient", "--decryption-key",
    "--merge-platform", "--os-features", "--append-file", "--keep-estargz-index",
    "--backend-type", "--backend-config", "--backend-config-file", "--backend-force-push",
    "--cache", "--hosts-dir", "--insecure-registry",
)  # fmt: skip

OPTIONS = (
    "fs_version", "compressor", "chunk_size", "prefetch_policy", "prefetch_patterns", "oci", "with_referrer",
    "verify", "force",
)  # fmt: skip
"""What is said of the result; the names are those of `ConvertOptions`, whose defaults these have."""

NOT_REMOTE = ("address", "nydus_image", "builder_timeout", "work_dir", "jobs")
ONLY_REMOTE = ("socket", "priority")


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
        help="before the name moves: metadata, and content by digests (tree, the default), "
        "or every chunk read back, too (full)",
    )
    group.add_argument("--dry-run", action="store_true", help="tell what would be done, and write nothing")
    group.add_argument("--force", action="store_true", help="convert even if the target is there and right")
    group.add_argument(
        "--jobs",
        type=positive_count,
        metavar="N",
        help=f"builder processes at a time (default: {available_cores()}, the cores)",
    )
    add_builder(parser)
    add_work_dir(parser)
    add_containerd(parser)
    group = parser.add_argument_group("daemon")
    group.add_argument(
        "--remote", action="store_true", help="let the daemon do it; what is not said here, its settings say"
    )
    group.add_argument(
        "--priority", type=int, metavar="N", help="in the daemon's queue: higher ones first (default: 0)"
    )
    add_socket(group)
    add_common(parser)
    parser.set_defaults(**dict.fromkeys(OPTIONS))  # to tell what was not said from what is said
    parser.epilog = REFERENCES
    add_later(parser, *LATER)


async def run(args: argparse.Namespace) -> int:
    options = options_of(args)
    source, target = ImageReference.parse(args.source), ImageReference.parse(args.target)
    check_target(target)
    if args.remote:
        return await _run_remote(args, source, target)
    for name in ONLY_REMOTE:
        if getattr(args, name) is not None:
            raise UsageError(f"--{name} goes with --remote only")
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
            Location(source_stores, source.name, source.digest, str(source)),
            Location(target_stores, target.name, None, str(target)),
        )
        if args.dry_run:
            tell_preview(args, await preview_image(*places, builder, options))
            return 0
        with open_progress(args, verifies=options.verify != "none") as progress:
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


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the result, as `ConvertOptions.from_json` reads it; the rest is open."""
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if args.platform or args.all_platforms:
        given["platforms"] = args.platform
    return given


def options_of(args: argparse.Namespace) -> ConvertOptions:
    """Raises: UsageError, UnsupportedError: a value is wrong, or not there yet."""
    return ConvertOptions.from_json(
        given_options(args), base=ConvertOptions(jobs=args.jobs or available_cores())
    )


async def _run_remote(args: argparse.Namespace, source: ImageReference, target: ImageReference) -> int:
    """Let the daemon do it. Who is interrupted only watches no longer."""
    from nydus_service.cli import remote  # gRPC: slow to import

    for name in NOT_REMOTE:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} does not go with --remote: the daemon's configuration says it")
    request: dict[str, Any] = {
        "namespace": args.namespace or load_settings().containerd_namespace,
        "options": given_options(args),
    }
    names = remote.absolute(source), remote.absolute(target)
    async with remote.open_daemon(args) as client:
        if args.dry_run:
            tell_preview(args, await client.plan(*names, **request))
            return 0
        job, joined = await client.submit(*names, priority=args.priority or 0, **request)
        note = remote.make_note(args)
        note(f"job {job.id}{': it was there already' if joined else ''}")
        try:
            job = await remote.follow(args, client, job.id)
        except anyio.get_cancelled_exc_class():
            note(
                f"job {job.id} goes on\n"
                f"  to see it: nydus-service jobs watch {job.id}\n"
                f"  to end it: nydus-service jobs cancel {job.id}"
            )
            raise
    tell_result(args, remote.result_of(job))
    return 0
