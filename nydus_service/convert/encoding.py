"""JSON of results, plans and jobs: what msgspec does not know itself is how descriptors and digests look."""

from typing import Any, TypeVar

import msgspec

from nydus_service.errors import FormatError
from nydus_service.oci.descriptor import Descriptor

T = TypeVar("T")


def encode(value: object) -> bytes:
    """The JSON of a value, in UTF-8 without spaces. Raises: TypeError: something in it has no JSON."""
    return msgspec.json.encode(value, enc_hook=_to_json)


def as_json(value: object) -> Any:
    """The same in types that JSON has, for callers that change or print it."""
    return msgspec.json.decode(encode(value))


def decode(data: bytes | str, kind: type[T]) -> T:
    """Read what `encode` wrote. Fields that are not known here are ignored.

    Raises:
        FormatError, UnsupportedError: it is not the JSON of a `kind`; the message has the path.
    """
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_from_json)
    except msgspec.DecodeError as exc:
        raise FormatError(f"it is no {kind.__name__}: {exc}") from exc


def from_json(value: object, kind: type[T]) -> T:
    """Read what `as_json` gave. Raises: as `decode`."""
    try:
        return msgspec.convert(value, kind, dec_hook=_from_json)
    except msgspec.ValidationError as exc:
        raise FormatError(f"it is no {kind.__name__}: {exc}") from exc


def _to_json(value: object) -> object:
    if isinstance(value, Descriptor):
        return value.to_json()
    if isinstance(value, str):  # a digest: msgspec takes no subclasses
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


def _from_json(kind: type, value: Any) -> object:
    if issubclass(kind, Descriptor):
        return kind(value)
    raise TypeError(f"{kind.__name__} has no JSON")
