"""Whether a merged image holds what its layers hold: the request, and what the answer means.

The work is done by a process of its own (verify/), which a `Verifier` runs. It sees the notes that were
taken of the plain tars, and the result; never anything that a builder says of them.
"""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import anyio.to_thread

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.content.store import Provider, read_pieces
from nydus_service.convert.layer import PackedLayer
from nydus_service.errors import DiffersError, from_os_error
from nydus_service.oci.descriptor import Descriptor

_EMBEDDED: Final = "nydus-image-py"
_SHOWN: Final = 5
"""Differences in a message; the report has more."""


class Verifier(Protocol):
    """Runs verifications in processes of their own."""

    async def verify(self, request: Mapping[str, object]) -> Mapping[str, Any]:
        """Verify as a request of verify/request.py says.

        Returns:
            The report, whatever its verdict.
        Raises:
            DiffersError: the result is so damaged that there was nothing to compare.
            NydusServiceError: the source side cannot be read, or the process did not do its work.
        """
        ...


@dataclass(frozen=True, slots=True)
class Verification:
    """A verification that found no difference.

    Attributes:
        mode: tree or full.
        entries: names that were compared.
        content_bytes: of the files that were compared, by their chunks' digests.
        bytes_read: of chunks that were read back from blobs (full).
        legitimate: reason and count of what rightly differs, and was not compared.
        duration_s: of the process.
    """

    mode: str
    entries: int
    content_bytes: int
    bytes_read: int
    legitimate: tuple[tuple[str, int], ...]
    duration_s: float

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": "equal",
            "mode": self.mode,
            "entries": self.entries,
            "bytes": self.content_bytes,
            "bytes_read": self.bytes_read,
            "legitimate": [{"reason": reason, "count": count} for reason, count in self.legitimate],
            "duration_s": round(self.duration_s, 3),
        }


class ResultDiffers(DiffersError):
    """A result is not what its source is. `report` is the verification's own."""

    def __init__(self, message: str, report: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.report = report


async def verify_image(
    verifier: Verifier,
    store: Provider,
    mode: str,
    bootstrap: Path,
    layers: Sequence[PackedLayer],
    *,
    builder: BuilderIdentity,
    work_dir: Path,
) -> Verification:
    """Hold a merged image against the layers it was made of.

    Args:
        store: has the blobs; read by mode full alone.
        mode: tree or full.
        layers: lowest first; each was converted here, so there are notes of it.
        work_dir: for copies of blobs that the process cannot read where they are.
    Raises:
        ResultDiffers: they differ; the message has the first differences and, where there is one, a way out.
        DiffersError: the bootstrap is damaged.
        NydusServiceError: as `Verifier.verify`.
    """
    started = anyio.current_time()
    async with AsyncExitStack() as readers:
        blobs: dict[str, str | None] = {}
        for layer in {layer.blob.digest: layer.blob for layer in layers}.values():
            blobs[layer.digest.hex] = (
                str(await _readable(store, layer, readers, work_dir)) if mode == "full" else None
            )
        try:
            report = await verifier.verify(_request(mode, bootstrap, layers, blobs))
        except DiffersError as exc:
            exc.args = (f"{exc}{_way_out(builder)}",)
            raise
    if report["verdict"] != "equal":
        raise ResultDiffers(f"{_told(report)}{_way_out(builder)}", report)
    return Verification(
        mode,
        report["entries"],
        report["bytes"],
        report["bytes_read"],
        tuple((each["reason"], each["count"]) for each in report["legitimate"]),
        anyio.current_time() - started,
    )


def _request(
    mode: str, bootstrap: Path, layers: Sequence[PackedLayer], blobs: Mapping[str, str | None]
) -> dict[str, object]:
    return {
        "mode": mode,
        "bootstrap": str(bootstrap),
        "layers": [{"digest": layer.source.digest, "notes": str(layer.notes)} for layer in layers],
        "blobs": blobs,
    }


async def _readable(store: Provider, blob: Descriptor, readers: AsyncExitStack, work_dir: Path) -> Path:
    """A file with a blob's bytes: the store's own, or a copy."""
    reader = await readers.enter_async_context(store.open_reader(blob))
    if reader.local_path is not None:
        return reader.local_path
    path = work_dir / f"{blob.digest.hex}.blob"
    try:
        async with await anyio.open_file(path, "wb") as file:
            async for piece in read_pieces(reader):
                await file.write(piece)
    except OSError as exc:
        raise from_os_error(exc, f"copy blob {blob.digest} to {path}") from exc
    return path


def _told(report: Mapping[str, Any]) -> str:
    """The first differences, a line each."""
    total, differences = report["differences_total"], report["differences"][:_SHOWN]
    lines = [f"the result differs from its source in {total} place{'s' if total > 1 else ''}:"]
    for each in differences:
        layer = f" (from layer {each['layer']})" if each.get("layer") else ""
        subject = f"{each['path'] or 'image'}: {each['field']}"
        lines.append(f"  {subject} should be {each['wanted']!r}, and is {each['found']!r}{layer}")
    if total > len(differences):
        lines.append(f"  and {total - len(differences)} more")
    return "\n".join(lines)


def _way_out(builder: BuilderIdentity) -> str:
    if builder.name == _EMBEDDED:
        return ""
    return f"\n  built by {builder}; --nydus-image embedded builds without it"
