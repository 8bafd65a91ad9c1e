"""Writes to stdout: one JSON document, or plain lines and tables. A closed pipe is not an error.

Characters that could control a terminal are written as escapes; foreign names may have some.
"""

import contextlib
import os
import re
import sys
from typing import Final

from nydus_service.errors import from_os_error
from nydus_service.oci.visible import visible
from nydus_service.redaction import redact

_NOT_ASCII: Final = re.compile(r"[^\n -~]")
"""What may have to be escaped in JSON, beyond what the encoder escapes."""


def print_json(document: object) -> None:
    """Print one JSON document. It is serialized completely before any of it is written."""
    _write(_json(document, indent=2) + "\n")


def print_json_line(document: object) -> None:
    """Print one JSON document on one line."""
    _write(_json(document, indent=None) + "\n")


def print_line(line: str = "") -> None:
    _write(visible(line) + "\n")


def note(text: str) -> None:
    """Print on stderr, without secrets."""
    print(visible(redact(text)), file=sys.stderr, flush=True)


def _json(document: object, *, indent: int | None) -> str:
    import json

    text = json.dumps(document, indent=indent, ensure_ascii=False)
    return _NOT_ASCII.sub(
        lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text
    )


def open_closed_streams() -> None:
    """Let the standard streams that the caller has closed discard what is written, and be at their end.

    Otherwise the next file or socket would get the number of such a stream, and receive the output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue  # the caller left a descriptor that Python could not use
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def finish_output(status: int) -> int:
    """Flush stdout before the interpreter does. Returns the exit status: `status`, unless flushing fails."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    except OSError as exc:
        _discard_stdout()
        error = from_os_error(exc, "write to stdout")
        note(f"nydus-service: {error}")
        return status or error.exit_code
    return status


def _write(text: str) -> None:
    """Raises: NydusServiceError: stdout cannot be written."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()  # keeps the order relative to stderr
    except BrokenPipeError:
        _discard_stdout()
    except OSError as exc:
        _discard_stdout()
        raise from_os_error(exc, "write to stdout") from exc


def _discard_stdout() -> None:
    """Discard buffered and later output, because the interpreter flushes stdout again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
