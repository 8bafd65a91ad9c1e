"""Platforms of images, and matchers that select them.

    strict      only the platform itself, after normalising
    runnable    the platform and those that its processor can also run, best first
    everything  all platforms, including `unknown/unknown` of attestations

Source: containerd/platforms, `Normalize`, `OnlyStrict`, `Only`, `All`, `Parse`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from nydus_service.errors import UsageError
from nydus_service.oci import gojson

PLATFORM_FIELDS: Final[dict[str, gojson.Kind]] = {
    **dict.fromkeys(("architecture", "os", "os.version", "variant"), gojson.TEXT),
    "os.features": gojson.TEXTS,
}
PLATFORM: Final = gojson.Struct(PLATFORM_FIELDS, is_pointer=True)
"""The `platform` of a descriptor, as in specs-go/v1."""

_ARCHITECTURES = {
    "i386": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
"""Normalised architecture and implied variant (None: as given) by alternative name."""

_PLAIN_VARIANTS = {("amd64", "v1"), ("arm64", "v8")}
"""Default variants, which are omitted."""

_OLDEST_ARM = 5
_OLDEST_ARM64 = 8
_ONE_WORD = {"386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x"}
_PART = r"[A-Za-z0-9_.-]+"
_SPECIFIER = re.compile(
    rf"(?P<os>{_PART})(?:\((?P<version>[A-Za-z0-9_.-]*)(?P<features>(?:\+{_PART})*)\))?"
    rf"/(?P<arch>{_PART})(?:/(?P<variant>{_PART}))?"
)


@dataclass(frozen=True, slots=True)
class Platform:
    """The platform of an image or of an entry of an index; unspecified fields are empty.

    `os_version` and `os_features` are `os.version` and `os.features` in documents.
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], where: str) -> Self:
        """Read the `platform` object of a descriptor, or the same fields of a config.

        Args:
            where: the document of the fields, for messages.
        Raises:
            FormatError: a field has the wrong type.
        """
        known = PLATFORM.settle([dict(fields)], where, "platform")
        system, architecture, variant, version = (
            gojson.text(gojson.get(known, key) or "")
            for key in ("os", "architecture", "variant", "os.version")
        )
        return cls(system, architecture, variant, version, gojson.texts(gojson.get(known, "os.features")))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a platform from a command line, and normalise it.

        The forms are `os/arch`, `os/arch/variant`, a bare `arch` for Linux, and the system with version and
        features, as in `windows(10.0.17763)/amd64` or `linux(+erofs)/amd64`.

        Raises:
            UsageError: the text does not have one of these forms.
        """
        if text.lower() in _ONE_WORD | _ARCHITECTURES.keys():
            return cls("linux", text).normalised()
        found = _SPECIFIER.fullmatch(text)
        if not found:
            raise UsageError(f"{text!r} is not a platform: wanted os/arch or os/arch/variant, as linux/arm64")
        features = tuple(filter(None, (found["features"] or "").split("+")))
        given = cls(found["os"], found["arch"], found["variant"] or "", found["version"] or "", features)
        return given.normalised()

    def to_json(self) -> dict[str, Any]:
        """The `platform` object of a descriptor, without unspecified fields."""
        fields: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            fields["os.version"] = self.os_version
        if self.os_features:
            fields["os.features"] = list(self.os_features)
        if self.variant:
            fields["variant"] = self.variant
        return fields

    def normalised(self) -> Self:
        """The normalised form of this platform: for example, `x86_64` is amd64, and arm64/v8 is arm64."""
        system = self.os.lower()
        architecture, variant = self.architecture.lower(), self.variant.lower()
        architecture, implied = _ARCHITECTURES.get(architecture, (architecture, None))
        variant = variant if implied is None else implied
        if architecture == "arm" and not variant:
            variant = "v7"
        if variant.isdigit() and architecture in ("arm", "arm64"):
            variant = f"v{variant}"
        if (architecture, variant) in _PLAIN_VARIANTS:
            variant = ""
        return replace(
            self, os="darwin" if system == "macos" else system, architecture=architecture, variant=variant
        )

    def __str__(self) -> str:
        inside = self.os_version + "".join(f"+{feature}" for feature in self.os_features)
        system = f"{self.os}({inside})" if inside else self.os
        return "/".join(filter(None, (system, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class PlatformMatcher:
    """Selects platforms. `wanted` lists them, best first; None matches everything."""

    wanted: tuple[Platform, ...] | None

    def match(self, platform: Platform) -> bool:
        return self.rank(platform) is not None

    def rank(self, platform: Platform) -> int | None:
        """The rank of a platform, 0 for the best; None if it does not match."""
        if self.wanted is None:
            return 0
        normal = platform.normalised()
        for rank, wanted in enumerate(self.wanted):
            if _fits(wanted, normal):
                return rank
        return None

    def __str__(self) -> str:
        return "all platforms" if self.wanted is None else ", ".join(map(str, self.wanted))


def match_everything() -> PlatformMatcher:
    return PlatformMatcher(None)


def match_strictly(platforms: Iterable[Platform]) -> PlatformMatcher:
    """Match these platforms, but no others that their processors could also run."""
    return PlatformMatcher(tuple(platform.normalised() for platform in platforms))


def match_runnable(platform: Platform) -> PlatformMatcher:
    """Match a platform and others that the same machine runs: older variants, the 32-bit predecessor."""
    return PlatformMatcher(tuple(_runnable(platform.normalised())))


def _runnable(platform: Platform) -> Iterable[Platform]:
    yield platform
    level = int(platform.variant[1:]) if re.fullmatch(r"v\d{1,3}", platform.variant) else 0
    if platform.architecture == "amd64":
        for lower in range(level - 1, 0, -1):
            yield replace(platform, variant=f"v{lower}").normalised()
        yield replace(platform, architecture="386", variant="")
    elif platform.architecture == "arm64":
        for lower in range(level - 1, _OLDEST_ARM64 - 1, -1):
            yield replace(platform, variant=f"v{lower}").normalised()
        yield from _runnable(replace(platform, architecture="arm", variant="v8"))
    elif platform.architecture == "arm":
        for lower in range(level - 1, _OLDEST_ARM - 1, -1):
            yield replace(platform, variant=f"v{lower}")


def _fits(wanted: Platform, platform: Platform) -> bool:
    """Whether a normalised platform satisfies a wanted one."""
    if any(getattr(wanted, part) != getattr(platform, part) for part in ("os", "architecture", "variant")):
        return False
    if wanted.os == "windows" and not _is_prefix(wanted.os_version, platform.os_version):
        return False
    return set(wanted.os_features) <= set(platform.os_features)


def _is_prefix(wanted: str, version: str) -> bool:
    """Whether `wanted` is a prefix by whole numbers: not 10.0.1776 of 10.0.17763. "" is a prefix of all."""
    return not wanted or f"{version}.".startswith(f"{wanted}.")
