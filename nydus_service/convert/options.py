"""What a conversion is asked for, which combinations make sense, and their fingerprints. Pure."""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.oci.platform import Platform, PlatformMatcher, match_everything, match_strictly
from nydus_service.version import VERSION

COMPRESSORS: Final = ("none", "lz4_block", "zstd")
DIGESTERS: Final = ("blake3", "sha256")
PREFETCH_POLICIES: Final = ("fs", "none")
VERIFY_MODES: Final = ("none", "tree", "full")
"""How much is verified, the least first."""

CHUNK_SIZE_MIN: Final = 0x1000
CHUNK_SIZE_MAX: Final = 0x1000000


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How an image is converted. The defaults are those of nydus-snapshotter's `pkg/converter`.

    Attributes:
        platforms: which manifests of an index to convert; none named: all of them.
        fs_version: of RAFS.
        compressor: of chunks: none, lz4_block or zstd.
        chunk_size: bytes; a power of two from 0x1000 to 0x1000000.
        digester: of chunks: blake3 or sha256.
        prefetch_policy: fs, or none; with none the patterns do not count.
        prefetch_patterns: absolute paths.
        oci: turn documents of Docker types into those of OCI.
        with_referrer: name the source manifest as the `subject` of the new one.
        verify: none, tree or full; see treeverify/.
        force: convert even if the target is there already, and right.
        jobs: how many builder processes run at the same time.
    """

    platforms: tuple[Platform, ...] = ()
    fs_version: str = "6"
    compressor: str = "zstd"
    chunk_size: int = 0x100000
    digester: str = "blake3"
    prefetch_policy: str = "fs"
    prefetch_patterns: tuple[str, ...] = ("/",)
    oci: bool = False
    with_referrer: bool = False
    verify: str = "tree"
    force: bool = False
    jobs: int = field(default_factory=_cores)

    def __post_init__(self) -> None:
        """Raises:
        UsageError: a value that there is not; the message names it.
        UnsupportedError: a version of RAFS that is not there.
        """
        _one_of("compressor", self.compressor, COMPRESSORS)
        _one_of("digester", self.digester, DIGESTERS)
        _one_of("prefetch policy", self.prefetch_policy, PREFETCH_POLICIES)
        _one_of("verification", self.verify, VERIFY_MODES)
        if self.fs_version != "6":
            raise UnsupportedError(f"RAFS version {self.fs_version!r} is not supported: only 6 is written")
        size = self.chunk_size
        if not CHUNK_SIZE_MIN <= size <= CHUNK_SIZE_MAX or size & (size - 1):
            raise UsageError(f"chunk size {size:#x} is not a power of two from 0x1000 to 0x1000000")
        for path in self.prefetch_patterns:
            if not path.startswith("/") or "\n" in path or "\0" in path:
                raise UsageError(f"prefetch pattern {path!r} is not an absolute path on one line")
        if self.jobs < 1:
            raise UsageError(f"{self.jobs} jobs: at least one has to run")

    @property
    def matcher(self) -> PlatformMatcher:
        """Which entries of an index are wanted: the platforms themselves, not what else they could run."""
        return match_strictly(self.platforms) if self.platforms else match_everything()

    def as_json(self) -> dict[str, Any]:
        """All that is about the result: by the attributes' names, without `jobs`, which is not."""
        fields = asdict(self)
        del fields["jobs"]
        lists = {
            "prefetch_patterns": list(self.prefetch_patterns),
            "platforms": list(map(str, self.platforms)),
        }
        return fields | lists

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], base: Self) -> Self:
        """Read what `as_json` writes.

        Args:
            base: has what `fields` do not say.
        Raises:
            UsageError: a name or a value that there is not; the message has the nearest name.
            UnsupportedError: as the constructor.
        """
        values = {}
        for name, value in fields.items():
            if name not in _READERS:
                nearest = difflib.get_close_matches(name, _READERS, n=1)
                hint = f", did you mean {nearest[0]!r}?" if nearest else f"; there are {', '.join(_READERS)}"
                raise UsageError(f"no option {name!r}{hint}")
            values[name] = _READERS[name](name, value)
        return replace(base, **values)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"option {name}: {value!r} is no text")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"option {name}: {value!r} is neither true nor false")
    return value


def _number(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"option {name}: {value!r} is no whole number")
    return value


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"option {name}: {value!r} is no list")
    return tuple(_text(name, each) for each in value)


def _platforms(name: str, value: object) -> tuple[Platform, ...]:
    return tuple(map(Platform.parse, _texts(name, value)))


_READERS: Final[dict[str, Callable[[str, object], Any]]] = {
    "platforms": _platforms,
    "fs_version": _text,
    "compressor": _text,
    "chunk_size": _number,
    "digester": _text,
    "prefetch_policy": _text,
    "prefetch_patterns": _texts,
    "oci": _flag,
    "with_referrer": _flag,
    "verify": _text,
    "force": _flag,
}
"""How each option that a request may name is read from JSON."""


def layer_fingerprint(options: ConvertOptions, builder: BuilderIdentity) -> str:
    """Names all that decides a nydus blob's bytes beside the layer: sha256 in hex.

    It is part of the names of ingests, so that two conversions of a layer with different options never
    share one. What cannot be chosen yet is in it with the value that it has, so that the fingerprints
    stay when it can be.
    """
    return _digest(_layer_fields(options, builder))


def image_fingerprint(options: ConvertOptions, builder: BuilderIdentity) -> str:
    """Names all that decides a whole result beside the source image: sha256 in hex.

    Recorded with the result's name: the same source and the same fingerprint need no work. How much is
    verified is recorded beside it, since it changes no byte.
    """
    platforms = sorted(str(platform.normalised()) for platform in options.platforms)
    return _digest(
        _layer_fields(options, builder)
        | {
            "converter": VERSION,  # the rules by which documents are rewritten
            "oci": options.oci,
            "platforms": platforms or None,
            "with_referrer": options.with_referrer,
        }
    )


def _layer_fields(options: ConvertOptions, builder: BuilderIdentity) -> dict[str, Any]:
    prefetch = options.prefetch_patterns if options.prefetch_policy != "none" else ()
    return {
        "batch_size": 0,
        "builder": {"name": builder.name, "version": builder.version},
        "chunk_dict": None,
        "chunk_size": options.chunk_size,
        "compressor": options.compressor,
        "digester": options.digester,
        "encrypt": False,
        "fs_version": options.fs_version,
        "oci_ref": False,
        "prefetch": list(prefetch),  # a layer's own bootstrap, inside its blob, lists what it has of these
    }


def _digest(fields: dict[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{what} {value!r} is none of {', '.join(known)}")
