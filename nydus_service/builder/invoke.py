"""Requests that are the same for all builders: merge, the bootstrap layer, help and version."""

import json
import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from nydus_service.builder.builder import (
    BootstrapLayerOutcome,
    BootstrapLayerRequest,
    BuilderFailed,
    MergeOutcome,
    MergeRequest,
)
from nydus_service.builder.command import (
    JSON_ERRORS,
    bootstrap_layer_arguments,
    merge_arguments,
    prefetch_input,
    promote_arguments,
)
from nydus_service.builder.forking import ForkServer
from nydus_service.builder.limits import Limits
from nydus_service.builder.pipes import open_input, open_pipe
from nydus_service.builder.process import Command
from nydus_service.builder.supervisor import Output, Spawn, supervise
from nydus_service.errors import from_os_error
from nydus_service.oci.digest import Digest

_ANSWER_LIMIT = 1 << 20
_PROBE_TIMEOUT_S = 30.0
_ALWAYS_MATCHED = ((), ("/",))
"""Prefetch patterns that a merge need not look for, so that the bootstrap of a single layer can be copied."""
_BLOB_ID = re.compile(r"[0-9a-f]{64}")


async def merge(
    program: Path | None, request: MergeRequest, limits: Limits, fork_server: ForkServer | None = None
) -> MergeOutcome:
    """See `Builder.merge`. `program` None: the embedded builder."""
    if program is None and request.single_layer and request.build.patterns in _ALWAYS_MATCHED:
        arguments = promote_arguments(request)
    elif program is None:
        arguments = [*merge_arguments(request), *JSON_ERRORS]
    else:
        arguments = merge_arguments(request)
    with open_input(prefetch_input(request.build)) as stdin:
        spawn = Spawn(Command(program, tuple(arguments)), stdin, fork_server=fork_server)
        done = await supervise(spawn, limits=limits)
    output_json = _read(request.output_json)
    blobs = parse_blobs(output_json, str(request.output_json))
    # A key of the embedded builder.
    unmatched = json.loads(output_json).get("unmatched_prefetch", ()) if program is None else ()
    return MergeOutcome(blobs, done.duration_s, done.stderr_tail, tuple(unmatched))


async def bootstrap_layer(
    request: BootstrapLayerRequest, limits: Limits, fork_server: ForkServer | None = None
) -> BootstrapLayerOutcome:
    """See `Builder.bootstrap_layer`."""
    command = Command(None, tuple(bootstrap_layer_arguments(request)))
    with open_input("") as stdin:
        await supervise(Spawn(command, stdin, fork_server=fork_server), limits=limits)
    written = json.loads(_read(request.output_json))
    return BootstrapLayerOutcome(
        Digest.parse(written["diff_id"]), Digest.parse(written["digest"]), written["size"]
    )


class LayerReport(NamedTuple):
    """The report of the embedded `create`, or of `feed`, on a layer.

    The attributes are as in `builder.PackOutcome`. `feed` only knows the diffID.
    """

    diff_id: Digest
    single_layer: bool
    dict_bytes: int


def read_layer(output_json: Path) -> LayerReport:
    """Read the report on a layer. Raises: BuilderFailed: the report is missing or unreadable."""
    try:
        report = json.loads(_read(output_json))
        counters = report.get("trace", {}).get("registered_events", {})
        return LayerReport(
            diff_id=Digest.parse(report["diff_id"]),
            single_layer=report.get("single_layer") is True,
            dict_bytes=int(counters.get("dict_uncompressed_size", 0)),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        raise BuilderFailed(f"the builder's {output_json} does not describe the layer") from exc


async def ask(program: Path | None, *arguments: str) -> str:
    """Run a builder and return its standard output.

    Raises: BuilderFailed: it does not start, fails, or prints more than 1 MiB.
    """
    answer = bytearray()
    command = Command(program, arguments)

    async def keep(piece: bytes | memoryview) -> None:
        if len(answer) + len(piece) > _ANSWER_LIMIT:
            raise BuilderFailed(f"{' '.join(command.argv)} prints more than {_ANSWER_LIMIT} bytes")
        answer.extend(piece)

    with ExitStack() as descriptors:
        stdin = descriptors.enter_context(open_input(""))
        pipe = descriptors.enter_context(open_pipe())
        spawn = Spawn(command, stdin, stdout=pipe.writer)
        await supervise(spawn, output=Output(pipe, keep), limits=Limits(_PROBE_TIMEOUT_S))
    return answer.decode(errors="replace")


def parse_blobs(output_json: bytes, name: str) -> tuple[str, ...]:
    """Read the blob ids of a bootstrap from the builder's output JSON.

    Args:
        name: the name of the file, for messages.
    Raises:
        BuilderFailed: the file does not list blob ids, though the builder exited with success.
    """
    try:
        document = json.loads(output_json)
        # Go's decoder, the reference for builders, ignores the case of keys.
        (blobs,) = (value for key, value in document.items() if key.lower() == "blobs")
    except (ValueError, AttributeError) as exc:
        raise BuilderFailed(f"the builder's {name} does not list blobs: {output_json[:200]!r}") from exc
    if not isinstance(blobs, list) or not all(isinstance(b, str) and _BLOB_ID.fullmatch(b) for b in blobs):
        raise BuilderFailed(f"the builder's {name} lists blobs that are no digests: {blobs!r:.200}")
    return tuple(blobs)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise BuilderFailed(
            f"the builder exited with success, but: {from_os_error(exc, f'read {os.fspath(path)}')}"
        ) from exc
