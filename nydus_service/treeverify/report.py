"""The result of a comparison: the first differences, and the number of all."""

from typing import Final, NamedTuple

from nydus_service.builder.verification import ReportedDifference, SetAside, Value, VerificationReport

KEPT_MAX: Final = 100


class Difference(NamedTuple):
    """One difference.

    `path` is absolute; b"" if the difference is about the whole image. `layer` is the digest of the layer
    that the wanted value comes from, if known.
    """

    path: bytes
    field: str
    wanted: Value
    found: Value
    layer: str | None = None


class Report:
    """Collects the result during a comparison; `close` makes the report that the process prints.

    `entries` counts the names examined, `content_bytes` the bytes of their files (hard links once),
    `read_bytes` those read from blobs. `set_aside` counts the legitimate differences, which are not compared,
    by reason.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.entries = 0
        self.content_bytes = 0
        self.read_bytes = 0
        self.set_aside: dict[str, int] = {}
        self.total = 0
        self._kept: list[Difference] = []

    def add(self, difference: Difference) -> None:
        """Count a difference, and keep it if there are fewer than `KEPT_MAX`."""
        self.total += 1
        if len(self._kept) < KEPT_MAX:
            self._kept.append(difference)

    @property
    def differences(self) -> list[Difference]:
        """The kept differences, by path."""
        return sorted(self._kept, key=_order)

    @property
    def verdict(self) -> str:
        """With a source "equal" or "differs", without one "sound" or "damaged"."""
        if self.mode == "read":
            return "damaged" if self.total else "sound"
        return "differs" if self.total else "equal"

    def summary(self) -> str:
        """Summarize the differences in one line, for an error."""
        first = self.differences[0]
        where = f"{text_of(first.path)}: " if first.path else ""
        more = f"; {self.total - 1} more differences" if self.total > 1 else ""
        return f"{where}{first.field} should be {first.wanted!r}, and is {first.found!r}{more}"

    def close(self) -> VerificationReport:
        """Make the final report. Bytes that are not UTF-8 are escaped."""
        return VerificationReport(
            verdict=self.verdict,
            mode=self.mode,
            entries=self.entries,
            bytes=self.content_bytes,
            bytes_read=self.read_bytes,
            differences=tuple(map(_reported, self.differences)),
            differences_total=self.total,
            legitimate=tuple(SetAside(*each) for each in sorted(self.set_aside.items())),
        )


def text_of(name: bytes) -> str:
    """Decode a name; bytes that are not UTF-8 are escaped."""
    return name.decode(errors="backslashreplace")


def _reported(difference: Difference) -> ReportedDifference:
    path, field, wanted, found, layer = difference
    return ReportedDifference(text_of(path), field, wanted, found, layer)


def _order(difference: Difference) -> tuple[bytes, str]:
    return difference.path, difference.field
