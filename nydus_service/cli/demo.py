"""`demo`: convert, verify and check a sample image of this machine's own files, without any simulation."""

import argparse
import tempfile
import time
from pathlib import Path

from nydus_service.builder.limits import Limits
from nydus_service.builder.verifier import VerifierProcess
from nydus_service.cli import check, sample
from nydus_service.cli.builders import choose_builder, choose_work_dir
from nydus_service.cli.options import add_builder, add_common, add_work_dir
from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.progress import open_progress
from nydus_service.cli.results import tell_result
from nydus_service.cli.table import format_seconds, print_heading, print_verdict
from nydus_service.config.environment import temporary_root
from nydus_service.content.layout import open_layout
from nydus_service.content.store import Location, Stores
from nydus_service.convert.encoding import as_json
from nydus_service.convert.image import convert_image
from nydus_service.convert.result import ConvertResult
from nydus_service.convert.turns import Turns
from nydus_service.convert.workdir import open_work_dir
from nydus_service.errors import DiffersError, from_os_error
from nydus_service.imagecheck.manifestcheck import ManifestCheck
from nydus_service.imagecheck.manifests import find_manifests
from nydus_service.imagecheck.result import Checked
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.reference import ImageReference
from nydus_service.options.convert import ConvertOptions
from nydus_service.sample.image import write_sample

SAMPLE, NYDUS = "sample", "sample-nydus"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", metavar="DIR", help="keep the images there (default: a temporary directory)")
    sample.add_size(parser)
    add_builder(parser)
    add_work_dir(parser)
    add_common(parser)


async def run(args: argparse.Namespace) -> int:
    if args.dir:
        return await _demonstrate(args, Path(args.dir))
    try:
        root = choose_work_dir(args) or temporary_root()
        directory = tempfile.TemporaryDirectory(prefix="nydus-service-demo-", dir=root)
    except OSError as exc:
        raise from_os_error(exc, "make a directory for the demo") from exc
    with directory as path:
        return await _demonstrate(args, Path(path))


async def _demonstrate(args: argparse.Namespace, directory: Path) -> int:
    stores = open_layout(directory)
    source, target = (ImageReference.parse(f"oci:{directory}:{tag}") for tag in (SAMPLE, NYDUS))
    builder = choose_builder(args)
    begun = time.monotonic()
    _head(args, f"1. A sample image of this machine's own files: {source}")
    made = await write_sample(stores, SAMPLE, args.size_mb * 10**6)
    sample_s = time.monotonic() - begun
    if args.format != "json":
        sample.print_sample(made, sample_s)
    _head(args, f"2. Converted to nydus: {target}")
    with open_progress(args, verifies=True) as progress:
        result = await convert_image(
            Location(stores, SAMPLE, None, str(source)),
            Location(stores, NYDUS, None, str(target)),
            builder,
            VerifierProcess(limits=Limits(args.builder_timeout)),
            ConvertOptions(),
            work_root=choose_work_dir(args),
            progress=progress,
        )
    if args.format != "json":
        tell_result(args, result)
    _head(args, "3. Checked again, with every chunk read back from the blobs and compared with the sample")
    checked = await _check(args, stores, result.source.descriptor, result.target.descriptor)
    _tell(args, sample.describe_sample(made, source), result, checked, time.monotonic() - begun)
    return 0 if all(each.is_good for each in checked) else DiffersError.exit_code


def _head(args: argparse.Namespace, text: str) -> None:
    if args.format != "json":
        print_heading(text)


async def _check(
    args: argparse.Namespace, stores: Stores, source: Descriptor, target: Descriptor
) -> list[Checked]:
    """Check the result as `check --against --verify full` does, which reads the layers again."""
    sources = await find_manifests(stores.content, source)
    manifests = await find_manifests(stores.content, target)
    async with open_work_dir(choose_work_dir(args)) as work_dir:
        turns = Turns(ConvertOptions().jobs)
        image_check = ManifestCheck(
            stores.content, stores.content, VerifierProcess(), "full", turns, work_dir
        )
        pairs = zip(manifests, sources, strict=True)
        return [await image_check.run(manifest, against) for manifest, against in pairs]


def _tell(
    args: argparse.Namespace,
    made: dict[str, object],
    result: ConvertResult,
    checked: list[Checked],
    duration_s: float,
) -> None:
    if args.format == "json":
        print_json(
            {
                "sample": made,
                "conversion": result.as_json(),
                "check": as_json(checked),
                "duration_s": round(duration_s, 3),
            }
        )
        return
    check.print_checked(checked)
    print_line()
    good = all(each.is_good for each in checked)
    outcome = "the nydus image holds what the sample holds" if good else "the images differ"
    print_verdict(
        "done" if good else "failed", f"in {format_seconds(duration_s)}: {outcome}", "ok" if good else "bad"
    )
    if args.dir:
        print_line(f"images: oci:{args.dir}:{SAMPLE} and oci:{args.dir}:{NYDUS}")
