"""What the process is asked to do: one JSON object.

    {"mode": "tree",                                    or "full", or "read"
     "bootstrap": "merged.boot",
     "layers": [{"digest": "sha256:…", "notes": "1.notes"}, …],
     "blobs": {"<hex>": "/proc/self/fd/9", "<hex>": null, …},
     "blob_id": "<hex>"}

tree: compare the bootstrap with the layers, lowest first. full: read every chunk back, too. read: only
read the bootstrap, and if `blobs` have paths, every chunk; there is no source, so no `layers`. `blobs`, if
given, names all that the image may use; the paths may be null where they are not read: all of them in a
request to read, any in mode tree. `blob_id` is the id of a blob whose metadata is inlined in the bootstrap
of a single layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nydus_service.errors import UsageError

MODES: Final = ("tree", "full", "read")
_KEYS: Final = {"mode", "bootstrap", "layers", "blobs", "blob_id"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the source: its digest, for messages, and the path of its notes."""

    digest: str
    notes: str


@dataclass(frozen=True, slots=True)
class Request:
    """See the module. `blobs` is None where it was not given."""

    mode: str
    bootstrap: str
    layers: tuple[Layer, ...] = ()
    blobs: Mapping[str, str | None] | None = None
    blob_id: str | None = None

    @property
    def reads_chunks(self) -> bool:
        """Whether what is stored in the blobs is looked at, too."""
        return self.mode == "full" or (self.mode == "read" and any((self.blobs or {}).values()))


def parse_request(value: object) -> Request:
    """A request from its JSON value. Raises: UsageError: it is none; the message says why."""
    fields = _object(value, "the request")
    unknown = sorted(fields.keys() - _KEYS)
    if unknown:
        raise UsageError(f"the request has unknown keys: {', '.join(unknown)}")
    mode = fields.get("mode")
    if mode not in MODES:
        raise UsageError(f"mode {mode!r} is none of {', '.join(MODES)}")
    layers = fields.get("layers", [])
    if not isinstance(layers, list) or (mode == "read") != (fields.get("layers") is None):
        raise UsageError(f"mode {mode} takes {'no layers' if mode == 'read' else 'a list of layers'}")
    blobs = fields.get("blobs")
    if blobs is not None:
        blobs = {
            hex_id: path if path is None else _text(path, hex_id)
            for hex_id, path in _object(blobs, "blobs").items()
        }
    elif mode == "full":
        raise UsageError("mode full takes the paths of the blobs")
    blob_id = fields.get("blob_id")
    return Request(
        mode,
        _text(fields.get("bootstrap"), "bootstrap"),
        tuple(_layer(layer) for layer in layers),
        blobs,
        None if blob_id is None else _text(blob_id, "blob_id"),
    )


def _layer(value: object) -> Layer:
    fields = _object(value, "a layer")
    return Layer(
        _text(fields.get("digest"), "a layer's digest"), _text(fields.get("notes"), "a layer's notes")
    )


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{what} is no JSON object")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{what} is no string, or an empty one")
    return value
