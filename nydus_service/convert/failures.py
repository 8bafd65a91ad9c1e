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


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that made a task group fail: the others came of the same cancel, or with it."""
    first = group.exceptions[0]
    return first_cause(first) if isinstance(first, BaseExceptionGroup) else first
