"""The images of all namespaces of one daemon, and the events of their names, as a protocol."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from nydus_service.content.store import Image


class EventKind(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class ImageEvent:
    """A change of an image's name.

    Attributes:
        labels: all labels of the name after the event; empty if the name is deleted.
    """

    namespace: str
    kind: EventKind
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class ImageNode(Protocol):
    """Images of all namespaces. Every method may raise UnreachableError."""

    async def namespaces(self) -> list[str]:
        """All namespaces, in order."""

    async def images(self, namespace: str) -> list[Image]:
        """All images of a namespace; empty if the namespace does not exist."""

    async def find(self, namespace: str, name: str) -> Image | None:
        """The image of this name, or None."""

    async def set_labels(self, namespace: str, name: str, labels: Mapping[str, str | None]) -> Image:
        """Set some labels of a name, and remove those whose value is None; other labels stay.

        Returns: the image after the change.
        Raises:
            ImageNotFound: no image has the name.
            UsageError: a label is too long: key and value have over 4096 bytes.
        """

    def subscribe(
        self, namespaces: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[AsyncIterator[ImageEvent]]:
        """Follow the changes of images. No event inside the block is missed.

        Args:
            namespaces: of the images; empty for all, including those created later.
        Raises:
            UnreachableError: the subscription failed; from the iterator, it has ended, and events may be
                missed.
        """
