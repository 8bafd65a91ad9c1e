"""`convert`: convert an image to a nydus image, between any two stores."""

import argparse
from typing import Any

import anyio

from nydus_service.builder.limits import Limits
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.cli.builders import choose_builder, choose_work_dir
from nydus_service.cli.options import (
    REFERENCES,
    OptionGroups,
    add_append_file,
    add_builder,
    add_common,
    add_containerd,
    add_later,
    add_socket,
    add_work_dir,
    available_cores,
    positive_count,
)
from nydus_service.cli.progress import open_progress
from nydus_service.cli.results import tell_preview, tell_result
from nydus_service.cli.stores import choose_daemon, choose_namespace
from nydus_service.content.open_stores import open_chunk_dict, open_pair
from nydus_service.convert.image import convert_image, preview_image
from nydus_service.convert.references import check_target
from nydus_service.errors import UsageError
from nydus_service.oci.reference import ImageReference
from nydus_service.options.arguments import add_argument
from nydus_service.options.convert import TABLE, ConvertOptions

LATER = (
    "--encrypt-recipient", "--decryption-key",
    "--keep-estargz-index",
    "--backend-type", "--backend-config", "--backend-config-file", "--backend-force-push",
    "--cache", "--hosts-dir", "--insecure-registry",
)  # fmt: skip

GIVEN = [row for name, row in TABLE.items() if name != "platforms"]
"""The options that map to one argument each; `--platform` also has the opposite `--all-platforms`."""

NOT_REMOTE = ("address", "nydus_image", "builder_timeout", "work_dir", "jobs")
ONLY_REMOTE = ("socket", "priority")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the image to convert")
    parser.add_argument("target", metavar="DST", help="the name of the nydus image, in this or another store")
    groups = OptionGroups(parser)
    which = groups.group("what").add_mutually_exclusive_group()
    add_argument(which, TABLE["platforms"], action="append", default=[], type=str)
    which.add_argument("--all-platforms", action="store_true", help="convert all of them (the default)")
    for title in ("what", "nydus blobs", "prefetch", "how"):
        groups.add(row for row in GIVEN if row.option.group == title)
    add_append_file(groups.group("nydus blobs"))
    group = groups.group("how")
    group.add_argument("--dry-run", action="store_true", help="print what would be done, and write nothing")
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
    async with (
        open_pair(source, target, daemon, sweep=not args.dry_run) as locations,
        open_chunk_dict(options.build.chunk_dict, daemon) as chunk_dict,
    ):
        if args.dry_run:
            preview = await preview_image(
                *locations, builder, options, chunk_dict=chunk_dict, append_files=args.append_file
            )
            tell_preview(args, preview)
            return 0
        with open_progress(args, verifies=options.verify != "none") as progress:
            result = await convert_image(
                *locations,
                builder,
                VerifierProcess(limits=Limits(args.builder_timeout)),
                options,
                work_root=choose_work_dir(args),
                chunk_dict=chunk_dict,
                append_files=args.append_file,
                progress=progress,
            )
    tell_result(args, result)
    return 0


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the result that the command line sets, in the form of `ConvertOptions.from_json`."""
    values = ((row.name, getattr(args, row.name)) for row in GIVEN)
    given = {name: value for name, value in values if value is not None}
    if args.platforms or args.all_platforms:
        given["platforms"] = args.platforms
    return given


def options_of(args: argparse.Namespace) -> ConvertOptions:
    """Raises: UsageError, UnsupportedError: a value is invalid or not supported yet."""
    return ConvertOptions.from_json(
        given_options(args), base=ConvertOptions(jobs=args.jobs or available_cores())
    )


async def _run_remote(args: argparse.Namespace, source: ImageReference, target: ImageReference) -> int:
    """Have the daemon convert the image. An interrupt only ends the watching, not the job."""
    from nydus_service.cli import remote  # gRPC: slow to import

    for name in NOT_REMOTE:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} does not go with --remote: the daemon's configuration says it")
    if args.append_file:
        raise UsageError("--append-file does not go with --remote: the daemon appends no files")
    options = given_options(args)
    if args.chunk_dict:
        options["chunk_dict"] = remote.absolute_dict(args.chunk_dict)
    request: dict[str, Any] = {"namespace": choose_namespace(args), "options": options}
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
