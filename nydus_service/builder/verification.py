"""The protocol of verification: the verifier's interface, the request and the report.

These are plain dataclasses, because the verifying process also imports them, and msgspec would add a fifth to
its start time.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

GOOD: Final = ("equal", "sound")
"""The verdicts of a correct image: "equal" to its source; "sound" if there is no source to compare with."""


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """One layer of the source: its digest, for messages, and the path of its tar-split."""

    digest: str
    tar_split: str


@dataclass(frozen=True, slots=True)
class VerificationRequest:
    """The mode of a verification, and the source to verify against.

    Attributes:
        mode: "tree" compares the bootstrap with the layers; "full" also reads every chunk back. "read" has no
            source: it reads the bootstrap and, if the paths of the blobs are given, every chunk of them.
        layers: lowest first; empty in mode read.
    """

    mode: str
    layers: tuple[SourceLayer, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """The image to verify.

    Attributes:
        bootstrap: path of the merged bootstrap.
        blobs: hex id and path of all blobs that the image may use; None: any. A path may be None if the
            blob is not read: in mode tree, and in mode read for all blobs together.
        blob_id: hex id of the blob whose metadata is inlined in the bootstrap of a single layer.
    """

    bootstrap: str
    blobs: Mapping[str, str | None] | None = None
    blob_id: str | None = None


Value: TypeAlias = str | int | None
"""A wanted or found value; None if it is absent."""


@dataclass(frozen=True, slots=True)
class ReportedDifference:
    """One difference between the image and its source.

    Attributes:
        path: absolute; empty if the difference is about the whole image.
        layer: digest of the layer that the wanted value comes from, if known.
    """

    path: str
    field: str
    wanted: Value
    found: Value
    layer: str | None

    def __str__(self) -> str:
        layer = f" (from layer {self.layer})" if self.layer else ""
        subject = f"{self.path or 'image'}: {self.field}"
        return f"{subject} should be {self.wanted!r}, and is {self.found!r}{layer}"


@dataclass(frozen=True, slots=True)
class SetAside:
    """A reason for legitimate differences, which are not compared, and their number."""

    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """The result of a verification.

    Attributes:
        verdict: "equal" or "differs" with a source, "sound" or "damaged" without one.
        mode: the mode of the request.
        entries: number of names examined.
        bytes: size of their files; hard links count once.
        bytes_read: size of the chunks read back from blobs.
        differences: the first differences, by path; `differences_total` counts all.
        legitimate: the legitimate differences.
    """

    verdict: str
    mode: str
    entries: int
    bytes: int
    bytes_read: int
    differences: tuple[ReportedDifference, ...]
    differences_total: int
    legitimate: tuple[SetAside, ...]

    @property
    def is_good(self) -> bool:
        return self.verdict in GOOD


Later: TypeAlias = Callable[[], Awaitable[VerifiedImage]]
"""Waits for the image to verify, and returns it."""


class Verifier(Protocol):
    """Runs each verification in a separate process."""

    async def verify(self, request: VerificationRequest, image: VerifiedImage | Later) -> VerificationReport:
        """Verify an image.

        Args:
            image: the image, or a function that waits for it; the source is read meanwhile.
        Returns:
            The report, whatever its verdict.
        Raises:
            DiffersError: the image is too damaged to compare.
            NydusServiceError: the source cannot be read, or the process failed.
        """
        ...
