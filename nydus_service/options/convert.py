"""The options of a conversion: the build options, and those of documents and verification. Pure."""

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Final, Self

from nydus_service.errors import UsageError
from nydus_service.oci.names import excerpt
from nydus_service.oci.platform import Platform, PlatformMatcher, match_everything, match_strictly
from nydus_service.options.build import BUILD_ROWS, BuildOptions
from nydus_service.options.option import Choice, Flag, ListOf, Number, Option, Row, has_needs, rows_of

PLATFORMS_MAX: Final = 128
"""Maximum number of platforms that a request may name; an index seldom has more than a dozen."""

VERIFY_MODES: Final = ("none", "tree", "full")
"""The verification modes, from the least to the most thorough."""


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """The options of the conversion of an image.

    Attributes:
        build: the options that decide the bytes of blobs and bootstraps.
        jobs: how many builder processes run at the same time; does not affect the result.
    """

    build: BuildOptions = BuildOptions()
    platforms: Annotated[
        tuple[Platform, ...],
        Option(
            ListOf("OS/ARCH", Platform.parse, most=PLATFORMS_MAX),
            "platforms of an index to convert; without any, all of them",
            "repeatable",
            number=1,
            group="what",
            flag="platform",
            from_start=True,
        ),
    ] = ()
    oci: Annotated[
        bool,
        Option(
            Flag(),
            "turn documents of Docker types into those of OCI types",
            number=8,
            group="what",
            acceld="docker2oci",
            from_start=True,
        ),
    ] = False
    with_referrer: Annotated[
        bool,
        Option(
            Flag(),
            "name the source's manifest as the subject of the new one",
            number=9,
            group="what",
            acceld="with_referrer",
            from_start=True,
        ),
    ] = False
    verify: Annotated[
        str,
        Option(
            Choice(*VERIFY_MODES, noun="verification"),
            "what is compared before the name moves: nothing (none), metadata and digests of content (tree), "
            "or every chunk, read back (full)",
            number=10,
            group="how",
            from_start=True,
        ),
    ] = "tree"
    force: Annotated[
        bool,
        Option(
            Flag(),
            "convert even if the target is there and right",
            number=11,
            group="how",
            from_start=True,
            is_configurable=False,
        ),
    ] = False
    replace: Annotated[
        bool,
        Option(
            Flag(),
            "replace an image that has the target's name and is not the result of an earlier conversion",
            number=13,
            group="how",
        ),
    ] = False
    max_manifests: Annotated[
        int,
        Option(
            Number(1, 4096),
            "how many manifests the indexes of an image may list; an image with more is refused",
            number=14,
            group="what",
        ),
    ] = 128
    os_features: Annotated[
        bool,
        Option(
            Flag(),
            "mark nydus images in an index by nydus.remoteimage.v1 in os.features; some registries refuse it",
            number=19,
            group="what",
        ),
    ] = False
    merge_platform: Annotated[
        bool,
        Option(
            Flag(),
            "make one index of the images and their nydus images",
            number=20,
            group="what",
            acceld="merge_manifest",
        ),
    ] = False
    jobs: int = field(default_factory=_cores)

    def __post_init__(self) -> None:
        """Raises:
        UsageError: a value is out of bounds or contradicts another; the message names it.
        UnsupportedError: as for `BuildOptions.check`.
        """
        self.build.check()
        for name, row in _OWN_ROWS.items():
            row.option.kind.check(name, getattr(self, name))
        if self.jobs < 1:
            raise UsageError(f"{self.jobs} jobs: at least one has to run")

    @property
    def matcher(self) -> PlatformMatcher:
        """Matches the wanted entries of an index: the exact platforms, not others that they could run."""
        return match_strictly(self.platforms) if self.platforms else match_everything()

    @property
    def marks_entries(self) -> bool:
        """Whether nydus images in an index get marks, for which their platform must be known."""
        return self.os_features or self.merge_platform

    def as_json(self) -> dict[str, Any]:
        """The options that affect the result, flat, by name, without those whose required option is unset."""
        return {
            name: row.option.kind.to_json(self._get(name))
            for name, row in TABLE.items()
            if has_needs(row, self._get)
        }

    def identity(self) -> dict[str, Any]:
        """As `as_json`, without options added later (`Option.from_start`) that have their default.

        So a request from an older version keeps its identity.
        """
        values = self.as_json()
        return {
            name: value
            for name, value in values.items()
            if TABLE[name].option.from_start or self._get(name) != TABLE[name].default
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any], base: Self) -> Self:
        """Read the output of `as_json`.

        Args:
            base: provides the values that `given` does not have.
        Raises:
            UsageError: a name does not exist, or a value is invalid; the message has the nearest name.
            UnsupportedError: as for the constructor.
        """
        values = {name: find_row(name).option.kind.read(name, value) for name, value in given.items()}
        own = {name: value for name, value in values.items() if name in _OWN_ROWS}
        build = {name: value for name, value in values.items() if name in BUILD_ROWS}
        return replace(base, build=BuildOptions.of(build, base.build), **own)

    def _get(self, name: str) -> Any:
        return getattr(self.build if name in BUILD_ROWS else self, name)


_OWN_ROWS: Final = rows_of(
    ConvertOptions.__annotations__,
    {each.name: each.default for each in fields(ConvertOptions)},
)


def _numbered(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.option.number)


TABLE: Final = {row.name: row for row in _numbered([*BUILD_ROWS.values(), *_OWN_ROWS.values()])}
"""The options that requests may have, by name, in the order in which they were added to the API."""


_NAME_LENGTH_MAX: Final = 64
"""Characters of a name up to which the nearest option is looked for, which takes quadratic time."""


def find_row(name: str) -> Row:
    """Look up an option. Raises: UsageError: no such option exists; the message has the nearest name."""
    if name not in TABLE:
        nearest = difflib.get_close_matches(name, TABLE, n=1) if len(name) <= _NAME_LENGTH_MAX else []
        hint = f", did you mean {nearest[0]!r}?" if nearest else f"; there are {', '.join(TABLE)}"
        raise UsageError(f"no option {excerpt(name)}{hint}")
    return TABLE[name]
