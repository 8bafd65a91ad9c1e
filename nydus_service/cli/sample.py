"""`sample`: make a real image of this machine's own files, in an OCI layout."""

import argparse
import time
from pathlib import Path

from nydus_service.cli.options import add_common, positive_count
from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.table import Column, format_seconds, format_size, print_table
from nydus_service.content.layout import open_layout
from nydus_service.oci.reference import ImageReference, check_tag
from nydus_service.sample.image import DEFAULT_SIZE, Sample, write_sample

DEFAULT_TAG = "sample"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="OCI layout to write into; made if it is not there")
    parser.add_argument(
        "--tag", default=DEFAULT_TAG, help=f"name of the image there (default: {DEFAULT_TAG})"
    )
    add_size(parser)
    add_common(parser)


def add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size-mb",
        type=positive_count,
        default=DEFAULT_SIZE // 10**6,
        metavar="N",
        help="all layers before compression, in 10^6 bytes, about (default: %(default)s)",
    )


async def run(args: argparse.Namespace) -> int:
    check_tag(args.tag)
    reference = ImageReference.parse(f"oci:{args.directory}:{args.tag}")
    begun = time.monotonic()
    sample = await write_sample(open_layout(Path(reference.path)), reference.name, args.size_mb * 10**6)
    duration_s = time.monotonic() - begun
    if args.format == "json":
        print_json(describe_sample(sample, reference) | {"duration_s": round(duration_s, 3)})
        return 0
    print_sample(sample, duration_s)
    print_line(f"{reference}@{sample.image.target.digest}")
    return 0


def describe_sample(sample: Sample, reference: ImageReference) -> dict[str, object]:
    return {
        "image": str(reference),
        "target": sample.image.target.to_json(),
        "layers": [
            {
                "descriptor": layer.descriptor.to_json(),
                "diff_id": layer.diff_id,
                "tar_size": layer.tar_size,
                "created_by": layer.created_by,
            }
            for layer in sample.layers
        ],
    }


def print_sample(sample: Sample, duration_s: float) -> None:
    columns = [Column("layer"), Column("tar", True), Column("stored", True), Column("compression")]
    rows = [
        [
            layer.created_by,
            format_size(layer.tar_size),
            format_size(layer.descriptor.size),
            layer.descriptor.media_type.partition(".tar")[2].removeprefix("+") or "none",
        ]
        for layer in sample.layers
    ]
    tar_size = sum(layer.tar_size for layer in sample.layers)
    stored = sum(layer.descriptor.size for layer in sample.layers)
    print_table(columns, rows, ["", format_size(tar_size), format_size(stored), format_seconds(duration_s)])
