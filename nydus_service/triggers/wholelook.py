"""Look at all images of a containerd, namespace by namespace. What cannot be read is left out alone.

Neither an image nor a namespace that cannot be read keeps the others from being followed. Both are counted
for the metrics, and logged when that changes.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import anyio.lowlevel

from nydus_service.content.imagenode import ImageNode, UnreadableImage
from nydus_service.content.store import Image
from nydus_service.errors import NydusServiceError, UnreachableError

log = logging.getLogger(__name__)

See: TypeAlias = Callable[[str, Image | UnreadableImage], None]
"""Takes the namespace and one image."""

_IMAGES_AT_ONCE: Final = 100
_NAMED: Final = 5
"""Skipped images that a message names."""
ALL: Final = "all namespaces"


@dataclass(slots=True)
class Skipped:
    """Images of a namespace that cannot be used.

    Attributes:
        named: the first of them, with the reasons.
    """

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, name: str, reason: object) -> None:
        self.count += 1
        if len(self.named) < _NAMED:
            self.named.append(f"{name if name.isprintable() else repr(name)}: {reason}")

    def __str__(self) -> str:
        more = "; …" if self.count > len(self.named) else ""
        return "; ".join(self.named) + more


class WholeLook:
    """Looks at all images, and knows what could not be read the last time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._whole_at = clock()
        self._unread: dict[str, str] = {}
        self._skipped: dict[str, Skipped] = {}
        self._read = 0

    @property
    def age_s(self) -> float:
        """Seconds since all namespaces were read, or since the start."""
        return self._clock() - self._whole_at

    @property
    def read(self) -> int:
        """Namespaces that the last look has read."""
        return self._read

    @property
    def unread(self) -> frozenset[str]:
        """Namespaces that the last look could not read; `ALL` if it could not list them."""
        return frozenset(self._unread)

    @property
    def skipped(self) -> int:
        """Images that the last looks could not read."""
        return sum(each.count for each in self._skipped.values())

    async def take(self, node: ImageNode, wanted: Sequence[str], see: See) -> bool:
        """Look at all images.

        Args:
            wanted: namespaces; empty for all.
            see: is called for each image; its errors concern that image alone.
        Returns: whether all namespaces were read.
        Raises: UnreachableError: the namespaces cannot be listed, because containerd is away.
        """
        try:
            names = list(wanted) or await node.namespaces()
        except UnreachableError:
            raise
        except NydusServiceError as exc:
            self._fail(ALL, exc)
            self._read = 0
            return False
        self._forget(names)
        for name in names:
            try:
                self._note(name, await look_at(node, name, see))
            except NydusServiceError as exc:
                self._fail(name, exc)
        self._read = len(names) - len(self._unread)
        if not self._unread:
            self._whole_at = self._clock()
        return not self._unread

    def _note(self, namespace: str, skipped: Skipped) -> None:
        if self._unread.pop(namespace, None):
            log.info("namespace %s can be read again", namespace)
        before = self._skipped.pop(namespace, Skipped())
        if skipped.count:
            self._skipped[namespace] = skipped
        if skipped == before:
            return
        if skipped.count:
            log.warning(
                "namespace %s has images that cannot be used and are skipped, %d of them: %s",
                namespace,
                skipped.count,
                skipped,
            )
        else:
            log.info("namespace %s has no image that is skipped any more", namespace)

    def _fail(self, namespace: str, exc: NydusServiceError) -> None:
        if namespace not in self._unread:
            log.warning(
                "namespace %s cannot be read, and is tried again; others are followed: %s", namespace, exc
            )
        self._unread[namespace] = str(exc)

    def _forget(self, names: Sequence[str]) -> None:
        """Drop what is known of namespaces that no longer exist or are no longer wanted."""
        self._unread = {name: reason for name, reason in self._unread.items() if name in names}
        self._skipped = {name: skipped for name, skipped in self._skipped.items() if name in names}


async def look_at(node: ImageNode, namespace: str, see: See) -> Skipped:
    """Look at all images of a namespace; an error of `see` concerns one image alone. Returns those skipped.

    Raises: NydusServiceError: the namespace cannot be read.
    """
    skipped, number = Skipped(), 0
    async for image in node.images(namespace):
        if isinstance(image, UnreadableImage):
            skipped.add(image.name, image.error)
        try:
            see(namespace, image)
        except Exception:
            log.exception("image %s in namespace %s", image.name, namespace)
            skipped.add(image.name, "a defect of nydus-service; the log has it")
        number += 1
        if number % _IMAGES_AT_ONCE == 0:
            await anyio.lowlevel.checkpoint()
    return skipped
