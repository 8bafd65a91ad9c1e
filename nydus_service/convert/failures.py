"""Context for error messages."""

from collections.abc import Iterator
from contextlib import contextmanager

from nydus_service.errors import NydusServiceError


@contextmanager
def about(what: str) -> Iterator[None]:
    """Add the subject to an error's message. Class, code and exit status stay."""
    try:
        yield
    except NydusServiceError as exc:
        exc.add_subject(what)
        raise
