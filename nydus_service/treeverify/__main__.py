"""`python -m nydus_service.treeverify REQUEST.json`, or `-` for stdin; the request has one or two lines.

Prints the report, one JSON object, on standard output. The exit status is as in errors.py: 0 equal or sound,
3 differs or damaged, 6 the tar-split is corrupt. If it is not 0, the last line on standard error is
{"error": {"code", "message"}}.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict

from nydus_service.errors import (
    EXIT_INTERRUPTED,
    DiffersError,
    NydusServiceError,
    UsageError,
    from_os_error,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verification. Returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        if len(arguments) != 1:
            raise UsageError("usage: python -m nydus_service.treeverify REQUEST.json|-")
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
    from nydus_service.builder.verification import VerifiedImage
    from nydus_service.treeverify.growing import Lines
    from nydus_service.treeverify.request import parse_image, parse_request
    from nydus_service.treeverify.verifier import verify

    fd = sys.stdin.fileno() if path == "-" else _open(path)
    lines = Lines(fd)
    request, known = parse_request(_decode(lines.next(), "request"))

    def image() -> VerifiedImage:
        return known or parse_image(_decode(lines.next(), "image"), request.mode)

    report = verify(request, image, lines.wait if known is None else lambda _: True)
    print(json.dumps(asdict(report.close())), flush=True)
    if report.total:
        raise DiffersError(report.summary())


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise from_os_error(exc, f"read the request {path}") from exc


def _decode(line: bytes, what: str) -> object:
    if not line:
        raise UsageError(f"there is no {what}")
    try:
        return json.loads(line)
    except ValueError as exc:
        raise UsageError(f"the {what} is no JSON: {exc}") from exc


def _fail(code: str, message: str, status: int) -> int:
    print(json.dumps({"error": {"code": code, "message": message}}), file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    # The trees have hundreds of thousands of objects without cycles, which live until the end. Collecting
    # garbage among them, and freeing them at the end, would take longer than the comparison.
    gc.disable()
    os._exit(main())
