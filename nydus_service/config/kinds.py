"""The kinds of configuration values, and the readers of each from TOML and from variables. Pure."""

import ipaddress
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from nydus_service.errors import UsageError
from nydus_service.oci.names import check_namespace
from nydus_service.options import option

_SIZE_UNITS: Final = {
    "": 1,
    "B": 1,
    **{f"{letter}iB": 1 << 10 * power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
}
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER_AND_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


@dataclass(frozen=True, slots=True)
class SettingKind:
    """One kind of value.

    Attributes:
        says: a description of valid values that completes the sentence "… is not".
        read: converts a value from TOML; raises TypeError, ValueError or OverflowError if it is invalid, or
            UsageError with the whole reason.
        from_text: converts the text of a variable or an option to a value as in TOML; raises ValueError.
    """

    says: str
    read: Callable[[Any], Any]
    from_text: Callable[[str], Any] = str

    def parse(self, value: object) -> Any:
        """Read a value from TOML. Raises: ValueError: the value is invalid; the text describes valid ones."""
        try:
            return self.read(value)
        except UsageError as exc:
            raise ValueError(str(exc)) from exc
        except (TypeError, ValueError, OverflowError) as exc:
            raise ValueError(f"{value!r} is not {self.says}") from exc

    def parse_text(self, text: str) -> Any:
        """Read the text of a variable or an option. Raises: ValueError: as for `parse`."""
        try:
            value = self.from_text(text)
        except ValueError as exc:
            raise ValueError(f"{text!r} is not {self.says}") from exc
        return self.parse(value)


def _exactly(wanted: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not wanted:  # not isinstance: true is an int, too
            raise TypeError
        return value

    return read


_read_text = _exactly(str)
_read_whole = _exactly(int)


def _read_path(value: Any) -> Path:
    path = Path(_read_text(value))
    if not path.is_absolute() or "\0" in value:
        raise ValueError
    return path


def _read_socket(value: Any) -> Path:
    return _read_path(_read_text(value).removeprefix("unix://"))


def _read_optional_path(value: Any) -> Path | None:
    return _read_path(value) if value != "" else None


def _read_texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) and each for each in value):
        raise TypeError
    return tuple(value)


def _read_namespaces(value: Any) -> tuple[str, ...]:
    namespaces = _read_texts(value)
    for each in namespaces:
        check_namespace(each)
    return namespaces


def parse_size(value: object) -> int:
    """Read a size in bytes from a number, or from text like "1GiB" or "500 MB".

    Raises: ValueError: the value is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _NUMBER_AND_UNIT.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found or found[2] not in _SIZE_UNITS:
        raise ValueError(f"{value!r} is not a size")
    return int(float(found[1]) * _SIZE_UNITS[found[2]])


def parse_duration(value: object) -> float:
    """Read a duration in seconds from a number, or from text like "60s" or "1h30m".

    Raises: ValueError: the value is neither.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    parts = _DURATION_PART.findall(value) if isinstance(value, str) else []
    if not parts or "".join(map("".join, parts)) != value:
        raise ValueError(f"{value!r} is not a duration")
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)


def _number_or_text(text: str) -> Any:
    try:
        return int(text, 0)
    except ValueError:
        return text


def _flag(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return known[text.strip().lower()]
    except KeyError:
        raise ValueError from None


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _read_listen(value: Any) -> str:
    """Read HOST:PORT, with brackets around an IPv6 address; an empty text is valid."""
    text: str = _read_text(value)
    if not text:
        return ""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not port.isascii() or int(port) > 65535:
        raise ValueError
    if host.startswith("["):
        ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    elif not host or ":" in host or "/" in host:
        raise ValueError
    return text


def _read_url(value: Any) -> str:
    text: str = _read_text(value)
    parts = urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError
    return text


TEXT: Final = SettingKind("a text", _read_text)
PATH: Final = SettingKind("an absolute path", _read_path)
SOCKET: Final = SettingKind("the absolute path of a socket", _read_socket)
OPTIONAL_PATH: Final = SettingKind("an absolute path, or empty", _read_optional_path)
FLAG: Final = SettingKind("true or false", _exactly(bool), _flag)
TEXTS: Final = SettingKind("a list of texts that are not empty", _read_texts, _split)
NAMESPACES: Final = SettingKind("a list of namespaces", _read_namespaces, _split)
SIZE: Final = SettingKind('a number of bytes, or a size like "64MiB"', parse_size, _number_or_text)
DURATION: Final = SettingKind('a number of seconds, or a duration like "60s" or "1h30m"', parse_duration)
LISTEN: Final = SettingKind('an address to listen on, as "127.0.0.1:8080" or "[::1]:8080"', _read_listen)
URL: Final = SettingKind('a URL, as "http://127.0.0.1:4318"', _read_url)


def whole(least: int, most: int | None = None) -> SettingKind:
    """The kind of whole numbers within bounds, both inclusive."""

    def read(value: Any) -> int:
        number: int = _read_whole(value)
        if number < least or (most is not None and number > most):
            raise ValueError
        return number

    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    return SettingKind(f"a whole number {bounds}", read, lambda text: int(text, 0))


def one_of(choices: Sequence[str]) -> SettingKind:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return SettingKind(f"one of {', '.join(choices)}", read)


def kind_of(kind: option.Kind[Any]) -> SettingKind:
    """The configuration's kind for the kind of a conversion option."""
    if isinstance(kind, option.Flag):
        return FLAG
    if isinstance(kind, option.Size):
        return SIZE
    if isinstance(kind, option.Number):
        return whole(kind.least, kind.most)
    return TEXTS if kind.is_list else TEXT
