"""JSON of results, plans and jobs, with hooks that let msgspec encode descriptors and digests."""

from typing import Any, TypeVar

import msgspec

from nydus_service.errors import FormatError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.gojson import readable

T = TypeVar("T")


def encode(value: object) -> bytes:
    """Encode a value as JSON, in UTF-8 without spaces. Raises: TypeError: a part of it has no JSON form."""
    return msgspec.json.encode(value, enc_hook=_to_json)


def as_json(value: object) -> Any:
    """Convert a value to JSON's own types, for callers that change or print it. Raises: as `encode`."""
    return msgspec.json.decode(encode(value))


def decode(data: bytes | str, kind: type[T]) -> T:
    """Read the output of `encode`. Unknown fields are ignored.

    Raises:
        FormatError, UnsupportedError: the data is not the JSON of a `kind`; the message has the path.
    """
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_from_json)
    except msgspec.DecodeError as exc:
        raise FormatError(f"it is no {kind.__name__}: {exc}") from exc


def from_json(value: object, kind: type[T]) -> T:
    """Read the output of `as_json`. Raises: as `decode`."""
    try:
        return msgspec.convert(value, kind, dec_hook=_from_json)
    except msgspec.ValidationError as exc:
        raise FormatError(f"it is no {kind.__name__}: {exc}") from exc


def _to_json(value: object) -> object:
    if isinstance(value, Descriptor):
        return readable(value.to_json())
    if isinstance(value, str):  # a digest: msgspec does not accept subclasses
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


def _from_json(kind: type, value: Any) -> object:
    if issubclass(kind, Descriptor):
        return kind(value)
    raise TypeError(f"{kind.__name__} has no JSON")
