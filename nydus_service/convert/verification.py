"""Verify that a merged image has the content of its layers: make the request and interpret the report.

A `Verifier` runs a separate process (treeverify/) for the work. The process sees the recorded tar-splits of
the layers and the result, but no statement of a builder about them.
"""

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from msgspec import Struct, field

from nydus_service.builder.builder import BuilderIdentity, embedded_hint
from nydus_service.builder.verification import (
    SetAside,
    SourceLayer,
    VerificationReport,
    VerificationRequest,
    VerifiedImage,
    Verifier,
)
from nydus_service.content.store import Provider
from nydus_service.convert.workdir import provide_file
from nydus_service.errors import DiffersError, Hint, NydusServiceError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.options.hint import SettingHint

_EMBEDDED: Final = "nydus-image-py"
_SHOWN: Final = 5
"""Number of differences in a message; the report has more."""


class Verification(Struct, frozen=True, kw_only=True):
    """A verification that found no difference.

    Attributes:
        verdict: equal.
        mode: tree or full.
        entries: number of directory entries that were compared.
        content_bytes: bytes of the files that were compared, by their chunks' digests.
        bytes_read: bytes of chunks that were read back from blobs (full).
        legitimate: expected differences.
        duration_s: seconds since the merged image existed, to the millisecond.
    """

    verdict: str
    mode: str
    entries: int
    content_bytes: int = field(name="bytes")
    bytes_read: int
    legitimate: tuple[SetAside, ...]
    duration_s: float


class ResultDiffers(DiffersError):
    """A result differs from its source; `report` has the differences."""

    def __init__(self, message: str, report: VerificationReport, *, hint: Hint | None = None) -> None:
        super().__init__(message, hint=hint)
        self.report = report


class ImageVerification:
    """Compares one merged image with the layers that it was made from.

    `run` reads the tar-splits while they are still recorded, in a task of its own. Its errors are raised by
    `conclude`, when all layers are packed: if a layer is invalid, its packer reports the better error.
    """

    def __init__(self, verifier: Verifier, mode: str, layers: Sequence[tuple[Digest, Path]]) -> None:
        """
        Args:
            mode: tree or full.
            layers: digests of the layers and the files of their tar-splits, lowest first.
        """
        self._verifier = verifier
        self._mode = mode
        self._layers = layers
        self._image: VerifiedImage | None = None
        self._outcome: VerificationReport | NydusServiceError | None = None
        self._has_begun = anyio.Event()
        self._has_image = anyio.Event()
        self._has_ended = anyio.Event()

    async def run(self) -> None:
        """Verify, from the first tar-split to the report."""
        self._has_begun.set()
        layers = tuple(SourceLayer(str(digest), str(tar_split)) for digest, tar_split in self._layers)
        try:
            self._outcome = await self._verifier.verify(
                VerificationRequest(self._mode, layers), self._wait_for_image
            )
        except NydusServiceError as exc:
            self._outcome = exc
        self._has_ended.set()

    async def until_begun(self) -> None:
        """Wait until `run` is called."""
        await self._has_begun.wait()

    async def _wait_for_image(self) -> VerifiedImage:
        await self._has_image.wait()
        assert self._image is not None
        return self._image

    async def conclude(
        self,
        store: Provider,
        bootstrap: Path,
        blobs: Iterable[Descriptor],
        *,
        builder: BuilderIdentity,
        work_dir: Path,
    ) -> Verification:
        """Pass on the merged image and wait for the verdict. All layers must be packed.

        Args:
            store: provider of the blobs; only read in mode full.
            blobs: of the layers.
            builder: of the image.
            work_dir: for copies of blobs that the store does not have as files.
        Raises:
            ResultDiffers: the image differs; the message has the first differences and, if there is one, a
                workaround.
            DiffersError: the bootstrap is damaged.
            NydusServiceError: as `Verifier.verify`.
        """
        started = anyio.current_time()
        async with AsyncExitStack() as readers:
            paths: dict[str, str | None] = {}
            for blob in {blob.digest: blob for blob in blobs}.values():
                paths[blob.digest.hex] = (
                    str(await provide_file(store, blob, readers, work_dir)) if self._mode == "full" else None
                )
            self._image = VerifiedImage(str(bootstrap), paths)
            self._has_image.set()
            await self._has_ended.wait()
        report = self._outcome
        assert report is not None
        if isinstance(report, DiffersError):
            report.args, report.hint = (f"{report.message}{_built_by(builder)}",), _way_out(builder)
        if isinstance(report, NydusServiceError):
            raise report
        if not report.is_good:
            raise ResultDiffers(f"{_describe(report)}{_built_by(builder)}", report, hint=_way_out(builder))
        return Verification(
            verdict=report.verdict,
            mode=report.mode,
            entries=report.entries,
            content_bytes=report.bytes,
            bytes_read=report.bytes_read,
            legitimate=report.legitimate,
            duration_s=round(anyio.current_time() - started, 3),
        )


def _describe(report: VerificationReport) -> str:
    """Format the first differences, one on a line."""
    total, differences = report.differences_total, report.differences[:_SHOWN]
    lines = [f"the result differs from its source in {total} place{'s' if total > 1 else ''}:"]
    lines += [f"  {each}" for each in differences]
    if total > len(differences):
        lines.append(f"  and {total - len(differences)} more")
    return "\n".join(lines)


def _built_by(builder: BuilderIdentity) -> str:
    return "" if builder.name == _EMBEDDED else f"\n  built by {builder}"


def _way_out(builder: BuilderIdentity) -> SettingHint | None:
    if builder.name == _EMBEDDED:
        return None
    return embedded_hint("{} builds without it")
