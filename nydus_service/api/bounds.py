"""Bounds of requests and connections. The texts and lists of a request are checked before any work. Pure.

The total size of a request is bounded where it is received. These bounds keep the work for each text or
entry, and the part of it that is stored, small.
"""

from collections.abc import Iterable
from typing import Final

from google.protobuf.message import Message

from nydus_service.errors import UsageError
from nydus_service.oci.names import REFERENCE_SIZE_MAX, check_size, excerpt

TEXT_SIZE_MAX: Final = REFERENCE_SIZE_MAX
"""Maximum bytes of a text: a reference, a path or the name of something."""

LIST_LENGTH_MAX: Final = 4096
"""Maximum entries of a list. Options may have lower limits of their own."""

CONNECTIONS_MAX: Final = 512
"""Maximum connections of a listener at a time."""

_JOB_ID_MAX: Final = 64
_DEPTH_MAX: Final = 8


def check_message(message: Message, where: str = "") -> None:
    """Check all texts and lists of a message.

    Args:
        where: the field of the message in its parent, with a dot at the end.
    Raises:
        UsageError: one is too large; the error has the field's name and the size.
    """
    for field, value in message.ListFields():
        _check(f"{where}{field.name}", value, 0)


def check_json(fields: dict[str, object]) -> None:
    """Check all texts and lists of a decoded JSON object. Raises: UsageError: as `check_message`."""
    _check("", fields, 0)


def job_field(job_id: str) -> dict[str, str]:
    """The field `job` of log lines and errors. It is left out for a text that is too long to be an id."""
    return {"job": job_id} if 0 < len(job_id) <= _JOB_ID_MAX else {}


def _check(name: str, value: object, depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise UsageError(f"{name} is nested too deeply")
    if isinstance(value, Message):
        check_message(value, f"{name}.")
    elif isinstance(value, str):
        check_size(name, value, TEXT_SIZE_MAX)
    elif isinstance(value, dict):
        _check_length(name or "the object", len(value))
        for key, each in value.items():
            check_size("a key", key, TEXT_SIZE_MAX)
            _check(f"{name}.{excerpt(key)[1:-1]}" if name else excerpt(key)[1:-1], each, depth + 1)
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        entries = list(value)
        _check_length(name, len(entries))
        for each in entries:
            _check(name, each, depth + 1)


def _check_length(name: str, length: int) -> None:
    if length > LIST_LENGTH_MAX:
        raise UsageError(f"{name} has {length} entries, at most {LIST_LENGTH_MAX} are allowed")
