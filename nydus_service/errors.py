"""The root of all errors raised on purpose, the kinds that every room shares, and their exit codes.

An error that only one room raises lives in that room, below one of these kinds.
"""

import errno
from typing import ClassVar


class NydusServiceError(Exception):
    """Root of every error raised on purpose: show its message, not a traceback."""

    code: ClassVar[str] = "internal"
    """Stable word, in the API, the JSON output and the logs."""
    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False
    """Whether the same request may succeed later, so that a job is tried again."""


class UsageError(NydusServiceError):
    """The request itself is wrong: an option, a reference, a combination."""

    code, exit_code = "usage", 2


class DiffersError(NydusServiceError):
    """A result is not what it should be: it differs from its source, or it is damaged."""

    code, exit_code = "differs", 3


class NotFoundError(NydusServiceError):
    """An image, a blob or a file that was asked for is not there."""

    code, exit_code = "not_found", 4


class UnsupportedError(NydusServiceError):
    """The input is sound, but this program cannot handle it; the message names what it lacks."""

    code, exit_code = "unsupported", 5


class FormatError(NydusServiceError):
    """Bytes that break their format: truncated, out of bounds, contradicting themselves."""

    code, exit_code = "corrupt_input", 6


class SourceDiffersError(FormatError):
    """The bytes of a layer are not those that its descriptor names: a damaged or a wrong copy."""

    code = "source_differs"


class NotAllowedError(NydusServiceError):
    """The operating system or a server refuses it: permissions."""

    code, exit_code = "not_allowed", 7


class UnreachableError(NydusServiceError):
    """A server or socket that does not answer."""

    code, exit_code = "unreachable", 8
    transient = True


class NoSpaceError(NydusServiceError):
    """A file system is full or over quota."""

    code, exit_code = "no_space", 9
    transient = True


EXIT_INTERRUPTED = 130


def from_os_error(exc: OSError, doing: str) -> NydusServiceError:
    """Translate an OSError met at the edge into the kind a caller can act on.

    Args:
        exc: what the operating system said.
        doing: what was tried, to begin the message: "write blobs/sha256/ab…".
    """
    reason = exc.strerror or str(exc)
    where = f" ({exc.filename!r})" if exc.filename and repr(exc.filename) not in doing else ""
    message = f"cannot {doing}: {reason}{where}"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"{message}; free some space there and run it again")
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NotAllowedError(message)
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(message)
    return NydusServiceError(message)


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that made a task group fail: the others came of the same cancel, or with it."""
    first = group.exceptions[0]
    return first_cause(first) if isinstance(first, BaseExceptionGroup) else first
