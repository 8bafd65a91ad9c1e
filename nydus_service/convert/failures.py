"""Context for error messages."""

from collections.abc import Iterator
from contextlib import contextmanager

from nydus_service.errors import NydusServiceError


@contextmanager
def about(what: str) -> Iterator[None]:
    """Prefix an error's message with its subject. Class, code and exit status stay."""
    try:
        yield
    except NydusServiceError as exc:
        exc.prefix(what)
        raise
