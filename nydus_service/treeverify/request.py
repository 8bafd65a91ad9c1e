"""Parses the request to the process: one JSON object or two, on one line each.

    {"mode": "tree",                                    a builder.verification.VerificationRequest
     "layers": [{"digest": "sha256:…", "tar_split": "1.tar-split"}, …],
     "bootstrap": "merged.boot",                        a VerifiedImage
     "blobs": {"<hex>": "/proc/self/fd/9", "<hex>": null, …},
     "blob_id": "<hex>"}

Mode read takes no `layers`; the other modes require them. Keys of the image may be missing or null if the
dataclass has a default.

If the first object has no key of the image, the image follows in a second object as soon as it exists. Until
then the tar-splits may be missing or still growing; they are read as they are written.
"""

from typing import Any, Final

from nydus_service.builder.verification import SourceLayer, VerificationRequest, VerifiedImage
from nydus_service.errors import UsageError

MODES: Final = ("tree", "full", "read")
_REQUEST_KEYS: Final = {"mode", "layers"}
_IMAGE_KEYS: Final = {"bootstrap", "blobs", "blob_id"}


def parse_request(value: object) -> tuple[VerificationRequest, VerifiedImage | None]:
    """Read the first object. The image is None if it follows in a second object.

    Raises: UsageError: the object is not a valid request; the message names the fault.
    """
    fields = _object(value, "the request", _REQUEST_KEYS | _IMAGE_KEYS)
    mode = fields.pop("mode", None)
    if mode not in MODES:
        raise UsageError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    layers = fields.pop("layers", None)
    if (mode == "read") != (layers is None) or not isinstance(layers, list | None):
        raise UsageError(f"mode {mode} takes {'no layers' if mode == 'read' else 'a list of layers'}")
    request = VerificationRequest(mode, tuple(_layer(layer) for layer in layers or ()))
    return request, parse_image(fields, mode) if fields or mode == "read" else None


def parse_image(value: object, mode: str) -> VerifiedImage:
    """Read the second object, or the rest of the first. Raises: UsageError: as for `parse_request`."""
    fields = _object(value, "the image", _IMAGE_KEYS)
    blobs = fields.get("blobs")
    if blobs is not None:
        blobs = {
            hex_id: path if path is None else _text(path, hex_id)
            for hex_id, path in _object(blobs, "blobs").items()
        }
    elif mode == "full":
        raise UsageError("mode full takes the paths of the blobs")
    blob_id = fields.get("blob_id")
    return VerifiedImage(
        _text(fields.get("bootstrap"), "bootstrap"),
        blobs,
        None if blob_id is None else _text(blob_id, "blob_id"),
    )


def _layer(value: object) -> SourceLayer:
    fields = _object(value, "a layer")
    return SourceLayer(
        _text(fields.get("digest"), "a layer's digest"), _text(fields.get("tar_split"), "a layer's tar_split")
    )


def _object(value: object, what: str, keys: set[str] | None = None) -> dict[str, Any]:
    """Copy a JSON object; with `keys`, it must not have other keys."""
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
