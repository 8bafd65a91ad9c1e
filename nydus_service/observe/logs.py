"""Writes log records to stderr, one line each, as JSON or for people.

Records have their subject in fields, which `log_context` binds for the tasks and calls inside it:

    with log_context(job=job.id, image=job.request.source):
        async with anyio.create_task_group() as layers:   # tasks started here inherit the fields
            ...
            with log_context(layer=str(layer.digest)):
                log.error("cannot pack the layer: %s", exc)

JSON has, in this order: time (RFC 3339, UTC), level, logger, message, the bound fields, and exc (a
traceback) if present. The `extra` of a call is added to the fields.

Secrets must not reach the logs: code keeps them in types that do not print them, fields with the name of
a secret are left out, and the handler passes each line through `redaction.redact`.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from nydus_service.oci.visible import visible
from nydus_service.redaction import redact

LEVELS: Final = ("debug", "info", "warning", "error")
CONTEXT_FIELDS: Final = ("job", "image", "layer")
"""The fields that come first, in this order."""

_ROOT: Final = "nydus_service"
_HIDDEN: Final = frozenset(("token", "password", "secret", "authorization", "credentials"))
_SHORT_DIGEST: Final = 12
_COLOURS: Final = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}
_OF_EVERY_RECORD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

_context: ContextVar[Mapping[str, Any] | None] = ContextVar("log_context", default=None)


@contextlib.contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Add these fields to all records made inside the block: in this task, and in tasks started there."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def set_up_logs(*, verbose: bool) -> None:
    """Set up the logs of the command line, for people: warnings, or everything with `verbose`."""
    configure_logs("console", "debug" if verbose else "warning")


def configure_logs(format: str, level: str, stream: TextIO | None = None) -> None:
    """Send the records of this package from `level` on, and warnings of other packages, to one stream.

    Args:
        format: json, console, or auto: console on a terminal, otherwise json.
        level: debug, info, warning or error.
        stream: the target; None: stderr.
    """
    on_terminal = (stream or sys.stderr).isatty()
    handler = _LineHandler(stream)
    handler.addFilter(_bind_context)
    if format == "json" or (format == "auto" and not on_terminal):
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(ConsoleFormatter(coloured=on_terminal))
    root = logging.getLogger()
    for before in _line_handlers():
        root.removeHandler(before)
    root.addHandler(handler)
    logging.getLogger(_ROOT).setLevel(level.upper())  # for other packages, the root logger has level warning


def _line_handlers() -> list["_LineHandler"]:
    return [each for each in logging.getLogger().handlers if isinstance(each, _LineHandler)]


class _LineHandler(logging.StreamHandler[TextIO]):
    """This package's handler of the root logger. Without a stream it writes to the current stderr."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._follows_stderr = stream is None

    def emit(self, record: logging.LogRecord) -> None:
        if self._follows_stderr:
            self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _bind_context(record: logging.LogRecord) -> bool:
    """Add the bound fields to a record, in the task that makes it."""
    for name, value in (_context.get() or {}).items():
        record.__dict__.setdefault(name, value)
    return True


class JsonFormatter(logging.Formatter):
    """Formats records as one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["exc"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # ASCII only, so a record never contains a line end


class ConsoleFormatter(logging.Formatter):
    """Formats records as time, level, message and fields, with shortened digests, for people."""

    def __init__(self, *, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = f"{record.levelname.lower():7}"
        if self._coloured and record.levelno in _COLOURS:
            level = f"\x1b[{_COLOURS[record.levelno]}m{level}\x1b[0m"
        fields = "".join(f" {name}={_short(value)}" for name, value in _fields_of(record).items())
        text = f"{time} {level} " + visible(f"{record.getMessage()}{fields}")
        return f"{text}\n{visible(self.formatException(record.exc_info))}" if record.exc_info else text


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    own = {
        name: value
        for name, value in record.__dict__.items()
        if name not in _OF_EVERY_RECORD and name.lower() not in _HIDDEN
    }
    return {name: own.pop(name) for name in CONTEXT_FIELDS if name in own} | own


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _short(value: object) -> str:
    algorithm, colon, hexadecimal = str(value).partition(":")
    if colon and algorithm in ("sha256", "sha512"):
        return f"{algorithm}:{hexadecimal[:_SHORT_DIGEST]}"
    return str(value)
