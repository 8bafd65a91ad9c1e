"""Errors on their way up: each says what it is about."""

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
