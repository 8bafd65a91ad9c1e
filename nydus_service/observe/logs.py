"""Where log records go: to stderr, one line each, as JSON or for people.

Records carry what they are about as fields, which `log_context` binds for the tasks and calls inside it:

    with log_context(job=job.id, image=job.request.source):
        async with anyio.create_task_group() as layers:   # tasks begun here inherit it
            ...
            with log_context(layer=str(layer.digest)):
                log.error("cannot pack the layer: %s", exc)

JSON has, in this order: time (RFC 3339, UTC), level, logger, message, the bound fields, exc (a
traceback) where there is one. What a call passes as `extra` joins the fields.

Secrets never come this far: whoever knows one has it in a type that does not print it; and fields whose
names say that they are secret are left out.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TextIO

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("auto", "json", "console")
CONTEXT_FIELDS: Final = ("job", "image", "layer")
"""Fields that come first, in this order."""

_ROOT: Final = "nydus_service"
_HIDDEN: Final = frozenset(("token", "password", "secret", "authorization", "credentials"))
_SHORT_DIGEST: Final = 12
_VISIBLE: Final = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}
"""Control characters, which a foreign name could play tricks on a terminal with."""
_COLOURS: Final = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}
_OF_EVERY_RECORD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

_context: ContextVar[Mapping[str, Any] | None] = ContextVar("log_context", default=None)


@contextlib.contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Add these fields to all records made inside: in this task, in calls, in tasks begun there."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def set_up_logs(*, verbose: bool) -> None:
    """Logs of the command line: warnings for people, or with `verbose` all."""
    configure_logs("console", "debug" if verbose else "warning")


def configure_logs(format: str, level: str, stream: TextIO | None = None) -> None:
    """Send the records of this package from `level` on, and warnings of others, to one stream.

    Args:
        format: json, console, or auto: console on a terminal, else json.
        level: debug, info, warning or error.
        stream: None: stderr.
    """
    on_terminal = (stream or sys.stderr).isatty()
    handler = _LineHandler(stream)
    handler.addFilter(_bind_context)
    if format == "json" or (format == "auto" and not on_terminal):
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(ConsoleFormatter(coloured=on_terminal))
    root = logging.getLogger()
    root.handlers[:] = [each for each in root.handlers if not isinstance(each, _LineHandler)] + [handler]
    logging.getLogger(_ROOT).setLevel(level.upper())  # the root logger's own level is for all others: warning


class _LineHandler(logging.StreamHandler[TextIO]):
    """Ours among the handlers of the root logger. Without a stream it writes to what is stderr then."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self._follows_stderr = stream is None

    def emit(self, record: logging.LogRecord) -> None:
        if self._follows_stderr:
            self.stream = sys.stderr
        super().emit(record)


def _bind_context(record: logging.LogRecord) -> bool:
    """Put the bound fields into a record while it is made, in the task that makes it."""
    for name, value in (_context.get() or {}).items():
        record.__dict__.setdefault(name, value)
    return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

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
        return json.dumps(line, default=str)  # ASCII alone: no character ends a line but the last


class ConsoleFormatter(logging.Formatter):
    """Time, level, message, and the fields after it; digests cut short, since they are for the eye."""

    def __init__(self, *, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = f"{record.levelname.lower():7}"
        if self._coloured and record.levelno in _COLOURS:
            level = f"\x1b[{_COLOURS[record.levelno]}m{level}\x1b[0m"
        fields = "".join(f" {name}={_short(value)}" for name, value in _fields_of(record).items())
        text = f"{time} {level} " + f"{record.getMessage()}{fields}".translate(_VISIBLE)
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


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
