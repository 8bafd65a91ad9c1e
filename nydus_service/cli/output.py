"""Writes to stdout: one JSON document, or plain lines and tables. A closed pipe is not an error."""

import os
import sys

from nydus_service.errors import from_os_error


def print_json(document: object) -> None:
    """Print one JSON document. It is serialized completely before any of it is written."""
    import json

    _write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_line(line: str = "") -> None:
    _write(line + "\n")


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
        print(f"nydus-service: {error}", file=sys.stderr)
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
