"""Requests to the arguments of a builder. Pure.

Chunk and batch sizes go out in hexadecimal with 0x: nydus-image 2.2.0 takes any number for
hexadecimal, later ones take a bare one for decimal. What a flag needs of the builder is in features.py.
"""

import os
from pathlib import Path

from nydus_service.builder.builder import BootstrapLayerRequest, MergeRequest, PackRequest
from nydus_service.builder.features import Feature

_QUIET = ("--log-level", "warn")
JSON_ERRORS = ("--error-format", "json")
"""For our own commands: a failure's last line is machine-readable."""


def features_needed(request: PackRequest) -> tuple[Feature, ...]:
    """What a builder must be capable of, the most basic first."""
    needed = [Feature.TAR_RAFS]
    if request.fs_version == "6":
        needed.append(Feature.BLOB_TOC)
    if request.batch_size:
        needed.append(Feature.BATCH)
    if request.encrypt:
        needed.append(Feature.ENCRYPT)
    if request.chunk_dict is not None:
        needed.append(Feature.CHUNK_DICT)
    return tuple(needed)


def pack_arguments(request: PackRequest, source: str, blob: str) -> list[str]:
    """`create` as every builder takes it. `source` and `blob` are paths as the builder sees them."""
    arguments = ["create", *_QUIET, *_prefetch(request), "--blob", blob, "--whiteout-spec", "none"]
    arguments += ["--fs-version", request.fs_version, "--type", "tar-rafs", "--blob-inline-meta"]
    if request.fs_version == "6":
        arguments += ["--features", "blob-toc"]
    arguments += _chunk_dict(request.chunk_dict)
    arguments += ["--compressor", request.compressor, "--digester", request.digester]
    arguments += ["--chunk-size", hex(request.chunk_size)]
    if request.batch_size:
        arguments += ["--batch-size", hex(request.batch_size)]
    if request.encrypt:
        arguments.append("--encrypt")
    return [*arguments, source]


def embedded_pack_arguments(request: PackRequest, source: str, blob: str) -> list[str]:
    """`create` of the embedded builder, which checks the stored layer and records its tar-split itself."""
    *arguments, operand = pack_arguments(request, source, blob)
    if request.output_json is not None:
        arguments += ["--output-json", os.fspath(request.output_json)]
    return [*arguments, *JSON_ERRORS, *_source_check(request), operand]


def feed_arguments(request: PackRequest, source: str) -> list[str]:
    """`feed`: the same checks and recording, in front of an external builder. `source` may be "-"."""
    arguments = ["feed", *_QUIET, *JSON_ERRORS, *_source_check(request)]
    if request.tar_split is not None:
        arguments += ["--chunk-size", hex(request.chunk_size), "--digester", request.digester]
    return [*arguments, source]


def merge_arguments(request: MergeRequest) -> list[str]:
    """`merge` as every builder takes it."""
    return [
        *("merge", *_QUIET, *_prefetch(request)),
        *("--output-json", os.fspath(request.output_json), "--bootstrap", os.fspath(request.target)),
        *_chunk_dict(request.chunk_dict),
        *map(operand, request.bootstraps),
    ]


def promote_arguments(request: MergeRequest) -> list[str]:
    """`promote`, a command of our own, for the one bootstrap of a layer that stands alone."""
    (bootstrap,) = request.bootstraps
    written = ("--output-json", os.fspath(request.output_json), "--bootstrap", os.fspath(request.target))
    return ["promote", *_QUIET, *JSON_ERRORS, *written, operand(bootstrap)]


def bootstrap_layer_arguments(request: BootstrapLayerRequest) -> list[str]:
    """`bootstrap-layer`, a command of our own."""
    metas = [f"--blob-meta={hex_digest}={os.fspath(path)}" for hex_digest, path in request.blob_metas]
    return [
        *("bootstrap-layer", *_QUIET, *JSON_ERRORS, "--bootstrap", os.fspath(request.bootstrap), *metas),
        *("--output", os.fspath(request.output), "--output-json", os.fspath(request.output_json)),
    ]


def prefetch_input(request: PackRequest | MergeRequest) -> str:
    """What the builder reads on standard input: a path a line. Without a policy it does not look."""
    if request.prefetch_policy == "none":
        return ""
    return "".join(f"{pattern}\n" for pattern in request.prefetch_patterns)


def operand(path: Path) -> str:
    """A path that no builder takes for an option."""
    text = os.fspath(path)
    return f"./{text}" if text.startswith("-") else text


def _prefetch(request: PackRequest | MergeRequest) -> tuple[str, ...]:
    return ("--prefetch-policy", request.prefetch_policy)


def _chunk_dict(bootstrap: Path | None) -> list[str]:
    return [] if bootstrap is None else ["--chunk-dict", f"bootstrap={os.fspath(bootstrap)}"]


def _source_check(request: PackRequest) -> list[str]:
    arguments = ["--source-digest", str(request.source_digest), "--source-size", str(request.source_size)]
    if request.tar_split is not None:
        arguments += ["--source-tar-split", os.fspath(request.tar_split)]
    return arguments
