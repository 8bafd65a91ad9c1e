"""`python -m nydus_service.verify REQUEST.json`, or `-` for standard input.

Prints the report, one JSON object, on standard output. Exit status as in errors.py: 0 equal or sound,
3 differs or damaged, 6 the notes are corrupt. Whatever is not 0 ends with {"error": {"code", "message"}}
as the last line on standard error.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence

from nydus_service.errors import (
    EXIT_INTERRUPTED,
    DiffersError,
    NydusServiceError,
    UsageError,
    from_os_error,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verification; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        if len(arguments) != 1:
            raise UsageError("usage: python -m nydus_service.verify REQUEST.json|-")
        _run(arguments[0])
    except NydusServiceError as exc:
        return _fail(exc.code, str(exc), exc.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", "interrupted", EXIT_INTERRUPTED)
    except Exception as exc:
        traceback.print_exc()
        return _fail(NydusServiceError.code, f"{type(exc).__name__}: {exc}", NydusServiceError.exit_code)
    return 0


def _run(path: str) -> None:
    from nydus_service.verify.request import parse_request
    from nydus_service.verify.verifier import verify

    report = verify(parse_request(_read_json(path)))
    print(json.dumps(report.as_json()), flush=True)
    if report.total:
        raise DiffersError(report.summary())


def _read_json(path: str) -> object:
    try:
        if path == "-":
            return json.load(sys.stdin)
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as exc:
        raise from_os_error(exc, f"read the request {path}") from exc
    except ValueError as exc:
        raise UsageError(f"the request {path} is no JSON: {exc}") from exc


def _fail(code: str, message: str, status: int) -> int:
    print(json.dumps({"error": {"code": code, "message": message}}), file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    # The trees are hundreds of thousands of objects, none of them in a cycle, and live until the end:
    # looking for garbage among them, and taking them apart at the end, would take longer than comparing.
    gc.disable()
    os._exit(main())
