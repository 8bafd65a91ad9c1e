"""The base class of this project's errors, the kinds shared by all packages, and their exit codes.

An error that only one package raises is defined in that package, as a subclass of one of these kinds.
"""

import errno
from enum import StrEnum
from typing import ClassVar, Protocol


class Surface(StrEnum):
    """A place that shows errors. Each has its own way to set an option, so advice differs."""

    COMMAND_LINE = "command line"
    LABEL = "label"
    """The labels of an image in containerd."""
    REQUEST = "request"
    """gRPC, and rules in the configuration: options by their names."""
    HTTP = "HTTP"
    """As `REQUEST`, without the names of existing images."""


class Hint(Protocol):
    """Advice that names an option."""

    def text(self, surface: Surface) -> str:
        """The advice for the readers of a surface, as the end of a sentence; empty if it is not for them."""
        ...


class NydusServiceError(Exception):
    """Base class of all errors that this project raises on purpose: show the text, not a traceback.

    `str` is the text for the command line.

    Attributes:
        hint: advice after the message; None without one.
        details: lines after the advice, each of which begins with a newline.
    """

    code: ClassVar[str] = "internal"
    """A stable identifier for the API, the JSON output and the logs."""
    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False
    """Whether the same request may succeed later, so that a job is retried."""

    def __init__(self, message: str = "", *, hint: Hint | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.details = ""

    @property
    def message(self) -> str:
        """The text without advice and details, as it was raised: secrets in it are not hidden."""
        return str(self.args[0]) if self.args else ""

    def add_subject(self, subject: str) -> None:
        """Put the subject after the message. Class, advice and details stay."""
        self.args = (with_subject(self.message, subject),)

    def text(self, surface: Surface) -> str:
        """The whole text, with advice for a surface and without secrets."""
        from nydus_service.redaction import redact  # not needed to start a builder

        advice = self.hint.text(surface) if self.hint else ""
        return redact(f"{self.message}{'; ' if advice else ''}{advice}{self.details}")

    def __str__(self) -> str:
        return self.text(Surface.COMMAND_LINE)


class UsageError(NydusServiceError):
    """The request itself is invalid: an option, a reference, a combination."""

    code, exit_code = "usage", 2


class DiffersError(NydusServiceError):
    """A result is wrong: it differs from its source, or it is damaged."""

    code, exit_code = "differs", 3


class NotFoundError(NydusServiceError):
    """A requested image, blob or file does not exist."""

    code, exit_code = "not_found", 4


class UnsupportedError(NydusServiceError):
    """The input is valid, but this program cannot handle it; the message names the missing feature."""

    code, exit_code = "unsupported", 5


class FormatError(NydusServiceError):
    """The bytes violate their format: they are truncated, out of bounds, or contradict themselves."""

    code, exit_code = "corrupt_input", 6


class SourceDiffersError(FormatError):
    """The bytes of a layer do not match its descriptor: the copy is damaged or the wrong one."""

    code = "source_differs"


class NotAllowedError(NydusServiceError):
    """The operating system, a server or the configuration denies permission."""

    code, exit_code = "not_allowed", 7


class UnreachableError(NydusServiceError):
    """A server or socket does not answer."""

    code, exit_code = "unreachable", 8
    transient = True


class ExhaustedError(NydusServiceError):
    """This process or the machine has no open files, processes or memory left for now."""

    code, exit_code = "exhausted", 8
    transient = True


EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""The values of `errno` that mean `ExhaustedError`."""


class NoSpaceError(NydusServiceError):
    """A file system is full or over quota."""

    code, exit_code = "no_space", 9
    transient = True


EXIT_INTERRUPTED = 130


def with_subject(message: str, subject: str) -> str:
    """Put the subject of a message after its first line, in brackets: "gzip stream ends [layer sha256:…]".

    The reason comes first, since lists, labels and narrow terminals cut the end of a line.
    """
    reason, line_end, rest = message.partition("\n")
    return f"{reason} [{subject}]{line_end}{rest}"


def from_os_error(exc: OSError, doing: str) -> NydusServiceError:
    """Translate an OSError into a kind of error that a caller can act on.

    Args:
        exc: the error of the operating system.
        doing: the attempted action, for the beginning of the message: "write blobs/sha256/ab…".
    """
    reason = exc.strerror or str(exc)
    where = f" ({exc.filename!r})" if exc.filename and repr(exc.filename) not in doing else ""
    message = f"cannot {doing}: {reason}{where}"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"{message}; free some space there and run it again")
    if exc.errno in EXHAUSTED:
        return ExhaustedError(f"{message}; run it again when the machine is less busy")
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NotAllowedError(message)
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(message)
    return NydusServiceError(message)


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that made a task group fail; the others result from the cancellation, or came later."""
    first = group.exceptions[0]
    return first_cause(first) if isinstance(first, BaseExceptionGroup) else first
