"""The error of a job's failed try, and the pause before the next one. Pure."""

from typing import Final

from nydus_service.errors import EXHAUSTED, NydusServiceError, Surface, from_os_error
from nydus_service.jobs.job import JobError
from nydus_service.redaction import redact

LONGEST_PAUSE_S: Final = 600.0
"""Longest pause in seconds, after which a job notices that a server is back or space is free."""


_SURFACES: Final = {"label": Surface.LABEL, "cli": Surface.COMMAND_LINE, "http": Surface.HTTP}
"""The surfaces on which jobs of these origins show their errors; others are shown as requests."""


def known_error(exc: Exception) -> Exception:
    """Translate an error of the operating system that may happen anywhere; other errors stay as they are."""
    if isinstance(exc, OSError) and exc.errno in EXHAUSTED:
        return from_os_error(exc, "go on with the job")
    return exc


def describe(exc: Exception, origin: str) -> JobError:
    """Make the job's error from the exception that ended its try, in the words of the job's origin.

    An exception that was not raised on purpose is a bug in this project: its code is `internal`.
    """
    if isinstance(exc, NydusServiceError):
        text = exc.text(_SURFACES.get(origin, Surface.REQUEST))
        return JobError(code=exc.code, message=text, retryable=exc.transient)
    if isinstance(exc, MemoryError):
        return JobError(code="no_memory", message="the daemon had no memory left for it", retryable=True)
    described = redact(f"{type(exc).__name__}: {exc}".rstrip(": "))
    message = f"{described}; this is a defect of nydus-service, its log has the traceback"
    return JobError(code=NydusServiceError.code, message=message, retryable=False)


def pause_s(retries: int, first_s: float, chance: float) -> float:
    """Seconds until the next try: exponential backoff with jitter, so that jobs do not retry together.

    Args:
        retries: further tries so far, from 0.
        first_s: approximate length of the first pause, in seconds.
        chance: random number from 0 to 1.
    Returns:
        From half to the whole of `first_s * 2**retries`, or of `LONGEST_PAUSE_S` if that is less.
    """
    longest = min(first_s * 2.0 ** min(retries, 32), LONGEST_PAUSE_S)
    return longest * (0.5 + chance / 2)
