"""The protocol of verification: who verifies, what is asked, and what is answered.

Plain dataclasses: the verifying process imports them as well, and msgspec would add a fifth to the time of
its start.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

GOOD: Final = ("equal", "sound")
"""Verdicts of images that are what they should be: with a source to compare with, and without one."""


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """One layer of the source: its digest, for messages, and the path of its tar-split."""

    digest: str
    tar_split: str


@dataclass(frozen=True, slots=True)
class VerificationRequest:
    """How to verify, and against what.

    Attributes:
        mode: "tree" compares the bootstrap with the layers, "full" also reads every chunk back. "read" has no
            source: it only reads the bootstrap and, if their paths are given, every chunk of the blobs.
        layers: lowest first; empty in mode read.
    """

    mode: str
    layers: tuple[SourceLayer, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """The image that is verified.

    Attributes:
        bootstrap: path of the merged bootstrap.
        blobs: hex id and path of all blobs that the image may use; None: any. A path may be None where the
            blob is not read: in mode tree, and for all blobs together in mode read.
        blob_id: hex id of the blob whose metadata is inlined in the bootstrap of a single layer.
    """

    bootstrap: str
    blobs: Mapping[str, str | None] | None = None
    blob_id: str | None = None


Value: TypeAlias = str | int | None
"""What was wanted or found; None where there is nothing."""


@dataclass(frozen=True, slots=True)
class ReportedDifference:
    """One thing that is not as it should be.

    Attributes:
        path: absolute; empty if this is about the image as a whole.
        layer: digest of the layer that what is wanted comes from, if that is known.
    """

    path: str
    field: str
    wanted: Value
    found: Value
    layer: str | None


@dataclass(frozen=True, slots=True)
class SetAside:
    """Why something rightly differs and was not compared, and how often."""

    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What a verification found.

    Attributes:
        verdict: with a source equal or differs, without one sound or damaged.
        mode: of the request.
        entries: names that were looked at.
        bytes: of their files; those of a hard link count once.
        bytes_read: of chunks that were read back from blobs.
        differences: the first ones, by path; `differences_total` counts all.
        legitimate: what rightly differs.
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
"""Waits until there is an image to verify."""


class Verifier(Protocol):
    """Runs verifications in processes of their own."""

    async def verify(self, request: VerificationRequest, image: VerifiedImage | Later) -> VerificationReport:
        """Verify an image.

        Args:
            image: or a function that waits for it; until then the source is read.
        Returns:
            The report, whatever its verdict.
        Raises:
            DiffersError: the image is so damaged that there was nothing to compare.
            NydusServiceError: the source side cannot be read, or the process did not do its work.
        """
        ...
