"""Prints the result or the preview of a conversion, whether local or the daemon's."""

import argparse

from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.table import Column, format_seconds, format_size, print_table, print_verdict
from nydus_service.convert.encoding import as_json
from nydus_service.convert.result import (
    UNCHANGED,
    ConvertResult,
    DropStep,
    ImageResult,
    KeepStep,
    PlanStep,
    Preview,
    WalkStep,
)
from nydus_service.convert.verification import Verification


def tell_preview(args: argparse.Namespace, preview: Preview) -> None:
    if args.format == "json":
        print_json(as_json(preview))
    elif preview.reason:
        print_line(f"would be unchanged: {preview.reason}")
    else:
        if preview.plan:
            _print_plan(preview.plan, "")
        print_line(f"would become {preview.target.name}, built by {preview.builder}")


def tell_result(args: argparse.Namespace, result: ConvertResult) -> None:
    if args.format == "json":
        print_json(result.as_json())
        return
    for image in result.images:
        print_image(image)
    for kept in result.kept:
        print_line(f"kept {kept.descriptor.digest}: {kept.reason}")
    time = format_seconds(result.duration_s)
    if result.status == UNCHANGED:
        print_verdict("unchanged", f"in {time}: {result.reason}", "ok")
    else:
        print_verdict("converted", f"in {time} by {result.builder}", "ok")
    print_line(f"{result.target.name}@{result.target.digest}")


def print_image(image: ImageResult) -> None:
    """Print a table of an image's layers, and its verification."""
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
    total = [image.platform or "image", format_size(total_in), format_size(total_out)]
    print_table(columns, rows, [*total, _ratio(total_in, total_out), ""])
    if in_dict := sum(layer.dict_bytes for layer in image.layers):
        print_line(f"{format_size(in_dict)} of content not stored again: the chunk dictionary has it")
    for pattern in image.unmatched_prefetch:
        print_verdict("not prefetched", f"{pattern}: nothing has this path", "warn")
    _print_verification(image.verification)


def _print_verification(verification: Verification | None) -> None:
    if verification is None:
        print_verdict("not verified", "as --verify none asked", "warn")
        return
    text = f"{verification.entries:,} names, {format_size(verification.content_bytes)} of content"
    if verification.bytes_read:
        text += f", {format_size(verification.bytes_read)} read back"
    print_verdict("verified", f"{text}, in {format_seconds(verification.duration_s)}", "ok")
    for aside in verification.legitimate:
        print_line(f"  not compared: {aside.count} x {aside.reason}")


def _print_plan(step: PlanStep, indent: str) -> None:
    digest = step.descriptor.digest
    if isinstance(step, KeepStep | DropStep):
        action = "keep" if isinstance(step, KeepStep) else "drop"
        print_line(f"{indent}{action} {digest}: {step.reason}")
    elif isinstance(step, WalkStep):
        print_line(f"{indent}index {digest}")
        for entry in step.entries:
            _print_plan(entry, f"{indent}  ")
    else:
        sizes = format_size(sum(layer.size for layer in step.layers))
        print_line(f"{indent}convert {digest}: {step.platform}, {len(step.layers)} layers, {sizes}")
        for layer in step.layers:
            print_line(f"{indent}  {layer.digest} {format_size(layer.size)}")


def _ratio(size_in: int, size_out: int) -> str:
    return f"{size_out / size_in:.2f}" if size_in else ""
