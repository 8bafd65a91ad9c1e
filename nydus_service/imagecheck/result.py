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


class Entry(Struct, frozen=True):
    """A manifest, or other content, that an image lists.

    Attributes:
        kind: in words, `manifests.Kind`.
        platform: as text; None if neither index nor config has one.
    """

    kind: str
    platform: str | None
    descriptor: Descriptor


class CheckResult(Struct, frozen=True, kw_only=True):
    """The result of the check of an image.

    Attributes:
        image: reference of the nydus image; `target` is the descriptor that its name points to.
        against: reference of the image that it was compared with.
        verdict: "differs" if an entry has no source; else that of the first manifest that is not good; else
            "equal" with a source, "sound" without one.
        images: the nydus images that were read.
        kept: entries with the digest of an entry of the source, whose content was not read.
        without_source: entries that the source has no manifest for.
        not_examined: entries that were not checked: they are no nydus images and there is no source, or
            the store does not have them.
        not_converted: entries of the source that the image has neither a nydus image nor a copy of. They do
            not change the verdict, since a conversion may leave out platforms.
    """

    image: str
    target: Descriptor
    against: str | None
    verdict: str
    images: tuple[Checked, ...]
    kept: tuple[Entry, ...] = ()
    without_source: tuple[Entry, ...] = ()
    not_examined: tuple[Entry, ...] = ()
    not_converted: tuple[Entry, ...] = ()

    @property
    def is_good(self) -> bool:
        return self.verdict in GOOD


def verdict_of(images: Sequence[Checked], without_source: Sequence[Entry], *, compared: bool) -> str:
    """The verdict of an image, from those of its manifests. `compared`: whether there is a source."""
    if without_source:
        return "differs"
    bad = (each.verdict for each in images if not each.is_good)
    return next(bad, "equal" if compared else "sound")
