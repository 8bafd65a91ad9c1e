"""The result of a check. The structs have the fields of the JSON document, in their order."""

from collections.abc import Sequence

from msgspec import Struct, field

from nydus_service.builder.verification import GOOD, ReportedDifference, SetAside, VerificationReport
from nydus_service.oci.descriptor import Descriptor


class Checked(Struct, frozen=True, kw_only=True):
    """The result of one manifest.

    Attributes:
        platform: as text; None if neither index nor config has one.
        target: the nydus manifest.
        source: the manifest that it was compared with, if any.
        duration_s: seconds, to the millisecond.

    All other fields are those of `builder.verification.VerificationReport`.
    """

    platform: str | None
    target: Descriptor
    source: Descriptor | None
    verdict: str
    mode: str
    entries: int
    content_bytes: int = field(name="bytes")
    bytes_read: int
    differences: tuple[ReportedDifference, ...]
    differences_total: int
    legitimate: tuple[SetAside, ...]
    duration_s: float

    @classmethod
    def of(
        cls,
        report: VerificationReport,
        target: Descriptor,
        source: Descriptor | None,
        *,
        platform: str | None,
        duration_s: float,
    ) -> "Checked":
        return cls(
            platform=platform,
            target=target,
            source=source,
            verdict=report.verdict,
            mode=report.mode,
            entries=report.entries,
            content_bytes=report.bytes,
            bytes_read=report.bytes_read,
            differences=report.differences,
            differences_total=report.differences_total,
            legitimate=report.legitimate,
            duration_s=round(duration_s, 3),
        )

    @property
    def is_good(self) -> bool:
        return self.verdict in GOOD


class CheckResult(Struct, frozen=True, kw_only=True):
    """The result of the check of an image.

    Attributes:
        image: reference of the nydus image; `target` is the descriptor that its name points to.
        against: reference of the image that it was compared with.
        verdict: that of the first manifest that is not good, or of all: equal, sound, differs, damaged.
        images: the manifests that were checked; never empty.
    """

    image: str
    target: Descriptor
    against: str | None
    verdict: str
    images: tuple[Checked, ...]

    @property
    def is_good(self) -> bool:
        return self.verdict in GOOD


def verdict_of(images: Sequence[Checked]) -> str:
    """The verdict of an image, from the verdicts of its manifests."""
    return next((each.verdict for each in images if not each.is_good), images[0].verdict)
