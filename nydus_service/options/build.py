"""The options that, together with the layer, decide the bytes of a blob and of a bootstrap. Pure."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, NamedTuple

from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.options.option import (
    AbsolutePaths,
    Choice,
    Flag,
    ImageOrBootstrap,
    Number,
    Option,
    PowerOfTwo,
    Row,
    check_needs,
    has_needs,
    rows_of,
    spoken,
)

_LAYERS: Final = "nydus blobs"
_PREFETCH: Final = "prefetch"

OF_CONTENT: Final = ("chunk_dict", "batch_size", "encrypt")
"""Options about the content in a blob, which a blob that refers to its layer does not have."""


class BuildOptions(NamedTuple):
    """Options of building and merging layers. The defaults are those of nydus-snapshotter's `pkg/converter`.

    Construction does not check the values; `check` does. Builders refuse what they do not support. The
    arguments of a builder have the order of these fields.
    """

    prefetch_policy: Annotated[
        str,
        Option(
            Choice("fs", "none"),
            "what a node reads ahead: the patterns (fs) or nothing (none)",
            number=6,
            group=_PREFETCH,
            from_start=True,
            argv="always",
            merges=True,
        ),
    ] = "fs"
    prefetch_patterns: Annotated[
        tuple[str, ...],
        Option(
            AbsolutePaths(),
            "absolute paths in the image that a node reads ahead",
            "with commas between, or - for one a line on stdin",
            number=7,
            group=_PREFETCH,
            acceld="prefetch_patterns",
            from_start=True,
            argv="never",  # builders read them from standard input
            merges=True,
        ),
    ] = ("/",)
    fs_version: Annotated[
        str,
        Option(
            Choice("5", "6"),
            "version of RAFS; 5 is not there yet",
            number=2,
            group=_LAYERS,
            from_start=True,
            argv="always",
        ),
    ] = "6"
    chunk_dict: Annotated[
        str,
        Option(
            ImageOrBootstrap(),
            "nydus image whose chunks are not stored again",
            number=16,
            group=_LAYERS,
            merges=True,
        ),
    ] = ""
    compressor: Annotated[
        str,
        Option(
            Choice("none", "lz4_block", "zstd"),
            "compressor of chunks",
            number=3,
            group=_LAYERS,
            acceld="compressor",
            from_start=True,
            argv="always",
        ),
    ] = "zstd"
    digester: Annotated[
        str,
        Option(
            Choice("blake3", "sha256"),
            "digester of chunks",
            number=5,
            group=_LAYERS,
            from_start=True,
            argv="always",
        ),
    ] = "blake3"
    chunk_size: Annotated[
        int,
        Option(
            PowerOfTwo(0x1000, 0x1000000),
            "bytes of a chunk",
            number=4,
            group=_LAYERS,
            acceld="fs_chunk_size",
            from_start=True,
            argv="always",
        ),
    ] = 0x100000
    batch_size: Annotated[
        int,
        Option(
            PowerOfTwo(0x1000, 0x1000000, or_zero=True),
            "compress small files together, in batches below this number of bytes, which must not exceed the "
            "chunk size; 0: each file alone",
            number=17,
            group=_LAYERS,
            acceld="batch_size",
        ),
    ] = 0
    encrypt: Annotated[
        bool,
        Option(
            Flag(),
            "encrypt the content of blobs; the keys are in the bootstraps, which are not encrypted",
            number=18,
            group=_LAYERS,
        ),
    ] = False
    compression_level: Annotated[
        int,
        Option(
            Number(1, 19),
            "zstd level of chunks",
            number=12,
            group=_LAYERS,
            needs=("compressor", "zstd"),
        ),
    ] = 3

    oci_ref: Annotated[
        str,
        Option(
            Choice("no", "yes", "auto", implied="yes"),
            "leave gzip layers as they are, and refer to them instead of storing their content again; yes "
            "refuses other layers, auto packs them",
            "alone it means yes",
            number=15,
            group=_LAYERS,
            acceld="oci_ref",
            argv="never",  # the request for a layer says what becomes of it
            needs=("digester", "sha256"),
        ),
    ] = "no"

    @classmethod
    def of(cls, given: Mapping[str, Any], base: "BuildOptions | None" = None) -> "BuildOptions":
        """Construct options from the given values, and check them.

        Args:
            given: values by name. A value whose required option is not set is refused, even at its default.
                `oci_ref` sets the digester that it requires, unless one is given.
            base: provides the other values; None: the defaults. An option of `base` whose required option
                is no longer set, or which does not go with a given one, is reset to its default.
        Raises: as for `check`.
        """
        if given.get("oci_ref", "no") != "no" and "digester" not in given:
            given = {"digester": "sha256", **given}
        options = (base or cls())._replace(**given)
        rest = [row for name, row in BUILD_ROWS.items() if name not in given]
        lost = {row.name: row.default for row in rest if not has_needs(row, options.__getattribute__)}
        lost |= {row.name: row.default for row in rest if row.name in options._conflicts()}
        options = options._replace(**lost)
        options.check()
        for name in given:
            check_needs(BUILD_ROWS[name], options.__getattribute__)
        return options

    def check(self) -> None:
        """Check that the values are in bounds and go together.

        Raises:
            UsageError: a value is out of bounds, or its required option is not set; the message names it.
            UnsupportedError: this project does not write that version of RAFS.
        """
        if self.fs_version != "6":
            raise UnsupportedError(
                f"RAFS version {self.fs_version!r} is not there yet: only version 6 is written"
            )
        for name, row in BUILD_ROWS.items():
            value = getattr(self, name)
            row.option.kind.check(name, value)
            if value != row.default:
                check_needs(row, self.__getattribute__)
        for reason in self._conflicts().values():
            raise UsageError(reason)

    def _conflicts(self) -> dict[str, str]:
        """The options that do not go with another one, and the reason, which names both."""
        conflicts = {}
        if self.oci_ref == "yes":
            conflicts = {
                name: f"{spoken(name)} does not go with oci ref yes: layers that are referred to store no "
                "content; with oci ref auto, the other layers use it"
                for name in OF_CONTENT
                if getattr(self, name) != BUILD_ROWS[name].default
            }
        if self.batch_size > self.chunk_size:
            conflicts["batch_size"] = (
                f"batch size {self.batch_size:#x} exceeds the chunk size {self.chunk_size:#x}"
            )
        return conflicts

    def without_content(self) -> "BuildOptions":
        """The options for a layer that is referred to, whose blob stores no content."""
        return self._replace(**{name: BUILD_ROWS[name].default for name in OF_CONTENT})

    @property
    def patterns(self) -> tuple[str, ...]:
        """The prefetch patterns in effect: none if the policy is "none"."""
        return () if self.prefetch_policy == "none" else self.prefetch_patterns

    @property
    def beyond_basics(self) -> Iterator[Row]:
        """The options in use that not every builder supports."""
        rows = (row for row in BUILD_ROWS.values() if row.option.argv == "if set")
        return (row for row in rows if getattr(self, row.name) != row.default)

    def argv(self, *names: str) -> list[str]:
        """Format the named options as arguments of a builder."""
        arguments = []
        for name in names:
            row, value = BUILD_ROWS[name], getattr(self, name)
            if row.option.argv == "always" or (row.option.argv == "if set" and value != row.default):
                arguments += row.option.kind.argv(f"--{row.flag}", value)
        return arguments

    def fingerprint_fields(self) -> dict[str, Any]:
        """The options as the fields of a fingerprint."""
        fields = {
            name: row.option.kind.to_json(getattr(self, name))
            for name, row in BUILD_ROWS.items()
            if row.option.from_start or getattr(self, name) != row.default
        }
        del fields["prefetch_policy"], fields["prefetch_patterns"]
        # A layer's own bootstrap, inside its blob, lists the patterns that exist in the layer.
        return fields | {"prefetch": list(self.patterns), "chunk_dict": self.chunk_dict or None}


BUILD_ROWS: Final = rows_of(BuildOptions.__annotations__, BuildOptions._field_defaults)
"""The options by name, in the order of the fields."""

FEATURES: Final = tuple(f"--{row.flag}" for row in BUILD_ROWS.values() if row.option.argv == "if set")
"""Options that only some builders support; each is a feature to probe for."""
