"""Errors on their way up: told what they are about, and taken out of their groups."""

from collections.abc import Iterator
from contextlib import contextmanager

from nydus_service.errors import NydusServiceError


@contextmanager
def about(what: str) -> Iterator[None]:
    """Put before an error's message what it is about; its class, code and exit status stay."""
    try:
        yield
    except NydusServiceError as exc:
        exc.args = (f"{what}: {exc}", *exc.args[1:])
        raise


@contextmanager
def one_cause() -> Iterator[None]:
    """Raise, of a group of exceptions, the one that made a task group fail: others came of its cancel."""
    cause: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        cause = _first(group)
    if cause is not None:  # outside the handler, or the group would become its context
        raise cause


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
