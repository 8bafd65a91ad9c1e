"""Converts requests to the arguments of a builder. Pure.

The arguments of the build options derive from their table (options/build.py). features.py has the features
that flags require of a builder.
"""

import os
from pathlib import Path

from nydus_service.builder.builder import BootstrapLayerRequest, MergeRequest, PackRequest
from nydus_service.builder.features import BLOB_TOC, TAR_RAFS, Feature
from nydus_service.options.build import BUILD_ROWS, BuildOptions

_QUIET = ("--log-level", "warn")
JSON_ERRORS = ("--error-format", "json")
"""For this project's own commands: the last line of a failure is machine-readable."""


def features_needed(request: PackRequest | MergeRequest) -> tuple[Feature, ...]:
    """The features that a request requires of a builder, the most basic first."""
    if isinstance(request, MergeRequest):
        rows = request.build.beyond_basics
        return tuple(Feature(f"--{row.flag}") for row in rows if row.option.merges)
    basic = (TAR_RAFS, BLOB_TOC) if request.build.fs_version == "6" else (TAR_RAFS,)
    return (*basic, *(Feature(f"--{row.flag}") for row in _pack_options(request).beyond_basics))


def _pack_options(request: PackRequest) -> BuildOptions:
    return request.build.without_content() if request.refers else request.build


def pack_arguments(request: PackRequest, source: str, blob: str) -> list[str]:
    """`create` as every builder accepts it. `source` and `blob` are paths as the builder sees them."""
    options = _pack_options(request)
    first, version = ("prefetch_policy", "fs_version")
    rest = [name for name in BUILD_ROWS if name not in (first, version)]
    arguments = ["create", *_QUIET, *options.argv(first), "--blob", blob, "--whiteout-spec", "none"]
    kind = "targz-ref" if request.refers else "tar-rafs"
    arguments += [*options.argv(version), "--type", kind, "--blob-inline-meta"]
    if options.fs_version == "6":
        arguments += ["--features", "blob-toc"]
    return [*arguments, *options.argv(*rest), source]


def embedded_pack_arguments(request: PackRequest, source: str, blob: str) -> list[str]:
    """`create` of the embedded builder, which checks the stored layer and records its tar-split itself."""
    *arguments, operand = pack_arguments(request, source, blob)
    return [*arguments, *JSON_ERRORS, *_source_check(request), operand]


def feed_arguments(request: PackRequest, source: str) -> list[str]:
    """`feed`, which does the same checks and recording for an external builder. `source` may be "-"."""
    arguments = ["feed", *_QUIET, *JSON_ERRORS, *_source_check(request)]
    if request.tar_split is not None:
        arguments += request.build.argv("chunk_size", "digester")
    return [*arguments, source]


def merge_arguments(request: MergeRequest) -> list[str]:
    """`merge` as every builder accepts it."""
    first, *rest = (name for name, row in BUILD_ROWS.items() if row.option.merges)
    return [
        *("merge", *_QUIET, *request.build.argv(first)),
        *("--output-json", os.fspath(request.output_json), "--bootstrap", os.fspath(request.target)),
        *request.build.argv(*rest),
        *map(operand, request.bootstraps),
        *_blob_lists(request),
    ]


def _blob_lists(request: MergeRequest) -> list[str]:
    blobs = request.blobs
    if not blobs:
        return []
    lists = {
        "--blob-digests": [blob.digest.hex for blob in blobs],
        "--blob-sizes": [str(blob.size) for blob in blobs],
        "--blob-toc-digests": [blob.toc_digest.hex for blob in blobs],
        "--blob-toc-sizes": [str(blob.toc_size) for blob in blobs],
    }
    return [argument for name, items in lists.items() for argument in (name, ",".join(items))]


def promote_arguments(request: MergeRequest) -> list[str]:
    """`promote`, an own command, for the bootstrap of a single layer that needs no merge."""
    (bootstrap,) = request.bootstraps
    written = ("--output-json", os.fspath(request.output_json), "--bootstrap", os.fspath(request.target))
    return ["promote", *_QUIET, *JSON_ERRORS, *written, operand(bootstrap)]


def bootstrap_layer_arguments(request: BootstrapLayerRequest) -> list[str]:
    """`bootstrap-layer`, an own command."""
    files = [f"--blob-meta={hex_digest}={os.fspath(path)}" for hex_digest, path in request.blob_metas]
    files += [f"--append-file={name}={os.fspath(path)}" for name, path in request.appended]
    return [
        *("bootstrap-layer", *_QUIET, *JSON_ERRORS, "--bootstrap", os.fspath(request.bootstrap), *files),
        *("--output", os.fspath(request.output), "--output-json", os.fspath(request.output_json)),
    ]


def prefetch_input(options: BuildOptions) -> str:
    """The prefetch patterns for a builder's standard input, one per line. Policy "none" reads no input."""
    return "".join(f"{pattern}\n" for pattern in options.patterns)


def operand(path: Path) -> str:
    """Format a path so that no builder parses it as an option."""
    text = os.fspath(path)
    return f"./{text}" if text.startswith("-") else text


def _source_check(request: PackRequest) -> list[str]:
    arguments = ["--output-json", os.fspath(request.output_json)]
    arguments += ["--source-digest", str(request.source_digest), "--source-size", str(request.source_size)]
    if request.tar_split is not None:
        arguments += ["--source-tar-split", os.fspath(request.tar_split)]
    return arguments
