"""What the process is asked to do: one JSON object, or two, a line each.

    {"mode": "tree",                                    or "full", or "read"
     "layers": [{"digest": "sha256:…", "tar_split": "1.tar-split"}, …],
     "bootstrap": "merged.boot",
     "blobs": {"<hex>": "/proc/self/fd/9", "<hex>": null, …},
     "blob_id": "<hex>"}

tree: compare the bootstrap with the layers, lowest first. full: read every chunk back, too. read: only
read the bootstrap, and if `blobs` have paths, every chunk; there is no source, so no `layers`. `blobs`, if
given, names all that the image may use; the paths may be null where they are not read: all of them in a
request to read, any in mode tree. `blob_id` is the id of a blob whose metadata is inlined in the bootstrap
of a single layer.

Without `bootstrap`, the rest of the keys follows in a second object, when there is a result. Until then
the tar-splits may still be growing, or not be there yet; they are read as they come.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nydus_service.errors import UsageError

MODES: Final = ("tree", "full", "read")
_SOURCE_KEYS: Final = {"mode", "layers"}
_RESULT_KEYS: Final = {"bootstrap", "blobs", "blob_id"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the source: its digest, for messages, and the path of its tar-split."""

    digest: str
    tar_split: str


@dataclass(frozen=True, slots=True)
class Source:
    """How to verify, and against what; see the module."""

    mode: str
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What is verified; see the module. `blobs` is None where it was not given."""

    bootstrap: str
    blobs: Mapping[str, str | None] | None = None
    blob_id: str | None = None

    def is_read_back(self, mode: str) -> bool:
        """Whether what is stored in the blobs is looked at, too."""
        return mode == "full" or (mode == "read" and any((self.blobs or {}).values()))


def parse_request(value: object) -> tuple[Source, Result | None]:
    """The first object; None: the result follows in another one.

    Raises: UsageError: it is no request; the message says why.
    """
    fields = _object(value, "the request", _SOURCE_KEYS | _RESULT_KEYS)
    mode = fields.get("mode")
    if mode not in MODES:
        raise UsageError(f"mode {mode!r} is none of {', '.join(MODES)}")
    layers = fields.pop("layers", None)
    if (mode == "read") != (layers is None) or not isinstance(layers, list | None):
        raise UsageError(f"mode {mode} takes {'no layers' if mode == 'read' else 'a list of layers'}")
    source = Source(fields.pop("mode"), tuple(_layer(layer) for layer in layers or ()))
    return source, parse_result(fields, mode) if fields or mode == "read" else None


def parse_result(value: object, mode: str) -> Result:
    """The second object, or what the first has of it. Raises: UsageError: as `parse_request`."""
    fields = _object(value, "the result", _RESULT_KEYS)
    blobs = fields.get("blobs")
    if blobs is not None:
        blobs = {
            hex_id: path if path is None else _text(path, hex_id)
            for hex_id, path in _object(blobs, "blobs").items()
        }
    elif mode == "full":
        raise UsageError("mode full takes the paths of the blobs")
    blob_id = fields.get("blob_id")
    return Result(
        _text(fields.get("bootstrap"), "bootstrap"),
        blobs,
        None if blob_id is None else _text(blob_id, "blob_id"),
    )


def _layer(value: object) -> Layer:
    fields = _object(value, "a layer")
    return Layer(
        _text(fields.get("digest"), "a layer's digest"), _text(fields.get("tar_split"), "a layer's tar_split")
    )


def _object(value: object, what: str, keys: set[str] | None = None) -> dict[str, Any]:
    """A copy of an object; with `keys`, of one that has no others."""
    if not isinstance(value, dict):
        raise UsageError(f"{what} is no JSON object")
    unknown = sorted(value.keys() - keys) if keys else []
    if unknown:
        raise UsageError(f"{what} has unknown keys: {', '.join(unknown)}")
    return {**value}


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{what} is no string, or an empty one")
    return value
