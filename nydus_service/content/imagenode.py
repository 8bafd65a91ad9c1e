"""The images of all namespaces of one containerd, their events, and the daemons that follow them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from nydus_service.content.store import Image
from nydus_service.errors import NydusServiceError


class EventKind(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"
    UNREADABLE = "unreadable"
    """A change of an image whose name or labels cannot be decoded."""


@dataclass(frozen=True, slots=True)
class UnreadableImage:
    """An image that containerd has, but this program cannot use: its other images are not affected.

    Attributes:
        name: the image's name, or a description of several images; bytes that are not UTF-8 are escaped.
        error: the reason.
        digest: the digest that the name points to; empty if unknown.
        labels: empty if they cannot be decoded.
    """

    name: str
    error: NydusServiceError
    digest: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageEvent:
    """A change of an image's name.

    Attributes:
        name: empty if the event is unreadable.
        labels: all labels of the name after the event; empty if the name is deleted or the event unreadable.
    """

    namespace: str
    kind: EventKind
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DaemonSign:
    """A sign of life of a daemon that answers requests in labels of images and by rules.

    Attributes:
        id: of the daemon; it survives a restart.
        beat: differs from that of the daemon's earlier signs.
        host, socket: where the daemon is, for users.
        lock: the file that the daemon locks while it lives (locks.py).
        follows: what the daemon answers: "label", "event", or both.
        namespaces: namespaces of the images that it follows; empty for all.
        shown_at: Unix seconds, by containerd's clock; 0 if it is not published yet.
    """

    id: str
    beat: int
    host: str
    socket: str
    lock: Path
    follows: frozenset[str]
    namespaces: tuple[str, ...] = ()
    shown_at: float = 0.0

    def __str__(self) -> str:
        """The daemon's name in messages."""
        return f"{self.id[:12]} ({self.socket} on {self.host})"


class ImageNode(Protocol):
    """Images of all namespaces. Every method may raise UnreachableError."""

    async def namespaces(self) -> list[str]:
        """All namespaces, in order."""

    def images(self, namespace: str) -> AsyncIterator[Image | UnreadableImage]:
        """All images of a namespace, in no order; none if the namespace does not exist.

        Only a part of them is in memory at a time.
        """

    async def find(self, namespace: str, name: str) -> Image | UnreadableImage | None:
        """The image of this name, or None."""

    async def set_labels(
        self, namespace: str, name: str, labels: Mapping[str, str | None]
    ) -> Image | UnreadableImage:
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

    async def daemons(self) -> list[DaemonSign]:
        """The last sign of each daemon, including those of killed daemons that nothing has removed yet."""

    async def exchange(self, sign: DaemonSign) -> list[DaemonSign]:
        """Publish a sign of this daemon, and remove its earlier ones.

        Returns: the last signs of the other daemons.
        """

    async def hide(self, daemon_id: str) -> None:
        """Remove the signs and claims of a daemon, because it ends, restarts or is dead."""

    async def claim(self, namespace: str, claim: str, sign: DaemonSign) -> str:
        """Claim the right to answer a request, which only one daemon can hold, until `unclaim`.

        Args:
            claim: letters and digits that identify what is claimed in the namespace.
        Returns: the id of the daemon that holds the claim: that of `sign`, or another.
        """

    async def unclaim(self, namespace: str, claim: str) -> None:
        """Give a claim back."""
