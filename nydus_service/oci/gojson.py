"""JSON as Go's encoding/json reads it, so that a document means the same here as in containerd.

Go is more lenient than the JSON standard, and stricter than Python about types:

    text          a byte that is not UTF-8, and half of a surrogate pair, count as U+FFFD
    keys          match a field without regard to case, too
    repeated key  the later value counts; an object or a map is merged into the earlier one
    null          leaves a field as it was: missing, or what an earlier key said
    types         a known field has its exact type: 2.0 is no integer

Decoded objects are dicts. Their texts keep what Go replaces, so that it is written again as it was: a byte
that is not UTF-8 becomes two characters, `_MARK` and a low surrogate. No other JSON decodes to this pair,
because a decoder combines surrogates that are escaped. `text` returns what Go reads. A number that Python
cannot hold exactly becomes a `Number`.

`Kind` describes a type of Go. `settle` checks a value against it, and leaves each known field once.

Source: Go encoding/json `Unmarshal`, `foldName`, `checkValid`; `time.Time.UnmarshalJSON`.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol, TypeAlias

from nydus_service.errors import FormatError

JsonMap: TypeAlias = dict[str, Any]

DEPTH_MAX: Final = 64
"""Maximum nesting of objects and lists; real documents have about six levels."""

_INT64: Final = range(-(1 << 63), 1 << 63)
_DIGITS_MAX: Final = 1000

_MARK: Final = "\udbff"
_BYTES: Final = 0xDC00
"""A byte that is not UTF-8 is the character `_BYTES + byte`, after a `_MARK`."""
_NUMBER: Final = _MARK + chr(_BYTES)
"""Marks a text that is the digits of a `Number`, on its way through the encoder. No byte 0 needs a mark."""

_BYTE: Final = "[\udc80-\udcff]"
_KEPT_BYTES: Final = re.compile(_BYTE)
_TO_REPLACE: Final = re.compile(f"{_MARK}{_BYTE}|[\ud800-\udfff]")
_TO_ESCAPE: Final = re.compile(f'"{_NUMBER}([^"]*)"|{_MARK}({_BYTE})|(?:(?!{_MARK}{_BYTE})[^\\x00-\\x7e])+')
_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,]\d+)?(?:Z|[+-](?:[01]\d|2[0-4]):[0-5]\d)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written, which an int or a float cannot hold exactly."""

    digits: str


class Repeated(list[Any]):
    """The values of a key that one object has several times, in their order."""


def parse(data: bytes, name: str) -> Any:
    """Decode a JSON value. A repeated key has a `Repeated` value, until `settle`.

    Args:
        name: the name of the document, for messages.
    Raises:
        FormatError: the data is not one JSON value, or is nested too deeply.
    """
    try:
        value = json.loads(
            _KEPT_BYTES.sub(_MARK + r"\g<0>", data.decode("utf-8", "surrogateescape")),
            parse_constant=_refuse_constant,
            parse_float=_float,
            parse_int=_int,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as exc:
        raise FormatError(f"not a JSON document: {exc} [{name}]") from exc
    _check_depth(value, name)
    return value


def encode(fields: Mapping[str, Any]) -> bytes:
    """Encode a JSON object: the same fields in the same order give the same bytes.

    There is no white space. Characters beyond ASCII are escaped; bytes that are not UTF-8 are as they were.
    """
    written = json.dumps(
        fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_mark_number
    )
    return _TO_ESCAPE.sub(_escape, written).encode("latin-1")


def text(raw: str) -> str:
    """A text as Go reads it. It has no surrogates, so any other encoder takes it."""
    return _TO_REPLACE.sub("\ufffd", raw)


def readable(value: Any) -> Any:
    """A decoded value as Go reads it, for other encoders; a `Number` becomes a text."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {text(key): readable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [readable(each) for each in value]
    return value.digits if isinstance(value, Number) else value


def fold(key: str) -> str:
    """The form in which Go compares keys. Two characters beyond ASCII match "s" and "k"."""
    return key.replace("\u017f", "s").replace("\u212a", "k").lower()


def key_of(fields: Mapping[str, Any], name: str) -> str:
    """The key of a field in a settled object: the spelling that is there, else `name`."""
    if name in fields:
        return name
    wanted, length = fold(name), len(name)
    return next((key for key in fields if len(key) == length and fold(key) == wanted), name)


def get(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a field of a settled object; None if it is missing."""
    return fields.get(key_of(fields, name))


def edit(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> JsonMap:
    """A copy with some fields set in their places, under the keys that are there; None removes a field."""
    changed = {key_of(fields, name): value for name, value in changes.items()}
    removed = {key for key, value in changed.items() if value is None}
    return {key: value for key, value in {**fields, **changed}.items() if key not in removed}


class Kind(Protocol):
    """A type of Go."""

    def settle(self, values: Sequence[Any], name: str, path: str) -> Any:
        """Check the values of one field, and combine them to the one that counts.

        Args:
            values: in their order in the document; one, unless the key is repeated.
            name: the name of the document, for messages.
            path: of the field in the document: "layers[1].size"; empty for the document itself.
        Returns: a new value without `Repeated` ones.
        Raises:
            FormatError: a value has another type; the message has the path.
        """


@dataclass(frozen=True, slots=True)
class Anything:
    """A field that Go does not know: its last value."""

    def settle(self, values: Sequence[Any], name: str, path: str) -> Any:
        value = values[-1]
        if isinstance(value, Repeated):
            return self.settle(value, name, path)
        if isinstance(value, dict):
            return {key: self.settle([each], name, path) for key, each in value.items()}
        if isinstance(value, list):
            return [self.settle([each], name, path) for each in value]
        return value


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text, a truth value or an integer."""

    type: type
    wanted: str

    def settle(self, values: Sequence[Any], name: str, path: str) -> Any:
        for value in values:
            if value is not None and not self._takes(value):
                raise _mismatch(name, path, value, self.wanted)
        return next((value for value in reversed(values) if value is not None), None)

    def _takes(self, value: Any) -> bool:
        if self.type is int:
            return isinstance(value, int) and not isinstance(value, bool) and value in _INT64
        return isinstance(value, self.type)


@dataclass(frozen=True, slots=True)
class Form:
    """A text of a certain form."""

    is_valid: Callable[[str], bool]
    wanted: str

    def settle(self, values: Sequence[Any], name: str, path: str) -> Any:
        for value in values:
            if value is not None and not (isinstance(value, str) and self.is_valid(value)):
                raise _mismatch(name, path, value, self.wanted)
        return values[-1]


@dataclass(frozen=True, slots=True)
class List:
    """A list of values of one kind."""

    item: Kind

    def settle(self, values: Sequence[Any], name: str, path: str) -> Any:
        result = None
        for value in values:
            if value is not None and not isinstance(value, list):
                raise _mismatch(name, path, value, "a list")
            result = value and [
                self.item.settle([each], name, f"{path}[{i}]") for i, each in enumerate(value)
            ]
        return result


@dataclass(frozen=True, slots=True)
class Map:
    """A map from any texts to values of one kind."""

    item: Kind

    def settle(self, values: Sequence[Any], name: str, path: str) -> Any:
        result: JsonMap | None = None
        for value in values:
            if value is None:
                result = None
                continue
            if not isinstance(value, dict):
                raise _mismatch(name, path, value, "a map")
            result = {} if result is None else result
            for key, each in value.items():
                result[key] = self.item.settle(_occurrences(each)[-1:], name, _join(path, key))
        return result


@dataclass(frozen=True, slots=True)
class Struct:
    """An object with known fields, and others, which are kept.

    Attributes:
        fields: the known fields by name.
        is_pointer: whether null removes what an earlier key said.
    """

    fields: Mapping[str, Kind]
    is_pointer: bool = False
    _names: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_names", {fold(name): name for name in self.fields})

    def settle(self, values: Sequence[Any], name: str, path: str) -> Any:
        found: dict[str, list[Any]] | None = None
        for value in values:
            if value is None:
                found = None if self.is_pointer else found
                continue
            if not isinstance(value, dict):
                raise _mismatch(name, path, value, "an object")
            found = self._collect(value, found or {})
        return found and {
            key: self._kind(key).settle(each, name, _join(path, self._name(key) or key))
            for key, each in found.items()
        }

    def _collect(self, value: JsonMap, found: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Add the members of an object to the values found so far, by key.

        Of several spellings of a field, the field's own name stays, else the first one.
        """
        kept = {known: key for key in found if (known := self._name(key))}
        for key, each in value.items():
            known = self._name(key)
            place = kept.setdefault(known, key) if known else key
            if known == key != place:
                found[key] = found.pop(place)
                kept[known] = place = key
            found.setdefault(place, []).extend(_occurrences(each))
        return found

    def _name(self, key: str) -> str | None:
        return key if key in self.fields else self._names.get(fold(key))

    def _kind(self, key: str) -> Kind:
        known = self._name(key)
        return Anything() if known is None else self.fields[known]


def _is_time(value: str) -> bool:
    found = _TIME.fullmatch(value)
    if not found:
        return False
    year, month, day, hour, minute, second = map(int, found.groups())
    try:
        datetime(year or 4, month, day, hour, minute, second)  # Python has no year 0, a leap year
    except ValueError:
        return False
    return True


def _is_base64(value: str) -> bool:
    try:
        base64.b64decode(value.translate({ord("\r"): None, ord("\n"): None}), validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


TEXT: Final = Scalar(str, "a string")
FLAG: Final = Scalar(bool, "true or false")
INTEGER: Final = Scalar(int, "an integer of 64 bits")
TIME: Final = Form(_is_time, "a time as 2006-01-02T15:04:05Z")
BASE64: Final = Form(_is_base64, "base64")
TEXTS: Final = List(TEXT)
TEXT_MAP: Final = Map(TEXT)
SET: Final = Map(Struct({}))


def texts(value: Iterable[str | None] | None) -> tuple[str, ...]:
    """A settled list of texts as Go reads it."""
    return tuple(text(each or "") for each in value or ())


def text_map(value: Mapping[str, str | None] | None) -> dict[str, str]:
    """A settled map of texts as Go reads it."""
    return {text(key): text(each or "") for key, each in (value or {}).items()}


def _occurrences(value: Any) -> list[Any]:
    return value if isinstance(value, Repeated) else [value]


def _join(path: str, key: str) -> str:
    return f"{path}.{text(key)}" if path else text(key)


def _mismatch(name: str, path: str, value: Any, wanted: str) -> FormatError:
    subject = f"{path} is" if path else "it is"
    return FormatError(f"{subject} not {wanted}: {_shown(value):.100} [{name}]")


def _shown(value: Any) -> str:
    if isinstance(value, Number):
        return value.digits
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return repr(text(value)) if isinstance(value, str) else json.dumps(value)


def _object(pairs: list[tuple[str, Any]]) -> JsonMap:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    values: dict[str, Repeated] = {}
    for key, value in pairs:
        values[key] = Repeated([*values.pop(key, ()), value])  # where it is last: other spellings may follow
    return {key: each if len(each) > 1 else each[0] for key, each in values.items()}


def _int(digits: str) -> int | Number:
    return int(digits) if len(digits) <= _DIGITS_MAX else Number(digits)


def _float(digits: str) -> float | Number:
    value = float(digits)
    return value if math.isfinite(value) and repr(value) == digits else Number(digits)


def _mark_number(value: Any) -> str:
    if not isinstance(value, Number):
        raise TypeError(f"{value!r:.100} is not JSON")
    return _NUMBER + value.digits


def _escape(found: re.Match[str]) -> str:
    digits, byte = found.groups()
    if digits is not None:
        return digits
    return chr(ord(byte) - _BYTES) if byte else json.dumps(found[0])[1:-1]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: Any, name: str) -> None:
    level: list[Any] = [value]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep(name)


def _too_deep(name: str) -> FormatError:
    return FormatError(f"objects and lists are nested deeper than {DEPTH_MAX} [{name}]")
