"""What a conversion did or would do, printed. It takes the JSON documents, which a daemon answers as well."""

import argparse
from collections.abc import Mapping
from typing import Any

from nydus_service.cli.output import print_json, print_line
from nydus_service.cli.table import Column, format_seconds, format_size, print_table, print_verdict


def tell_preview(args: argparse.Namespace, preview: Mapping[str, Any]) -> None:
    """
    Args:
        preview: `convert.result.Preview.as_json`.
    """
    if args.format == "json":
        print_json(preview)
    elif "reason" in preview:
        print_line(f"would be unchanged: {preview['reason']}")
    else:
        if preview["plan"]:
            _print_plan(preview["plan"], "")
        print_line(f"would become {preview['target']['name']}, built by {_builder(preview)}")


def tell_result(args: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """
    Args:
        result: `convert.result.ConvertResult.as_json`.
    """
    if args.format == "json":
        print_json(result)
        return
    for image in result["images"]:
        print_image(image)
    for kept in result["kept"]:
        print_line(f"kept {kept['descriptor']['digest']}: {kept['reason']}")
    time = format_seconds(result["duration_s"])
    if result["status"] == "unchanged":
        print_verdict("unchanged", f"in {time}: {result['reason']}", "ok")
    else:
        print_verdict("converted", f"in {time} by {_builder(result)}", "ok")
    print_line(f"{result['target']['name']}@{result['target']['descriptor']['digest']}")


def print_image(image: Mapping[str, Any]) -> None:
    """A table of an image's layers, and how it was verified."""
    columns = [Column("layer"), Column("in", True), Column("out", True), Column("ratio", True)]
    columns.append(Column("time", True))
    rows = [
        [
            layer["source"]["digest"],
            format_size(layer["source"]["size"]),
            format_size(layer["blob"]["size"]),
            _ratio(layer["source"]["size"], layer["blob"]["size"]),
            format_seconds(layer["duration_s"]),
        ]
        for layer in image["layers"]
    ]
    bootstrap_size = image["bootstrap"]["size"]
    merged = format_seconds(image["merge_duration_s"])
    rows.append(["bootstrap", "", format_size(bootstrap_size), "", merged])
    total_in = sum(layer["source"]["size"] for layer in image["layers"])
    total_out = sum(layer["blob"]["size"] for layer in image["layers"]) + bootstrap_size
    total = [image["platform"] or "image", format_size(total_in), format_size(total_out)]
    print_table(columns, rows, [*total, _ratio(total_in, total_out), ""])
    _print_verification(image["verification"])


def _print_verification(verification: Mapping[str, Any] | None) -> None:
    if verification is None:
        print_verdict("not verified", "as --verify none asked", "warn")
        return
    told = f"{verification['entries']:,} names, {format_size(verification['bytes'])} of content"
    if verification["bytes_read"]:
        told += f", {format_size(verification['bytes_read'])} read back"
    print_verdict("verified", f"{told}, in {format_seconds(verification['duration_s'])}", "ok")
    for aside in verification["legitimate"]:
        print_line(f"  not compared: {aside['count']} x {aside['reason']}")


def _print_plan(plan: Mapping[str, Any], indent: str) -> None:
    digest = plan["descriptor"]["digest"]
    if plan["action"] in ("keep", "drop"):
        print_line(f"{indent}{plan['action']} {digest}: {plan['reason']}")
    elif plan["action"] == "walk":
        print_line(f"{indent}index {digest}")
        for entry in plan["entries"]:
            _print_plan(entry, f"{indent}  ")
    else:
        layers = plan["layers"]
        sizes = format_size(sum(layer["size"] for layer in layers))
        print_line(f"{indent}convert {digest}: {plan['platform']}, {len(layers)} layers, {sizes}")
        for layer in layers:
            print_line(f"{indent}  {layer['digest']} {format_size(layer['size'])}")


def _builder(document: Mapping[str, Any]) -> str:
    return f"{document['builder']['name']} {document['builder']['version']}"


def _ratio(size_in: int, size_out: int) -> str:
    return f"{size_out / size_in:.2f}" if size_in else ""
