"""A queue of images to process: without duplicates, and in a fair order."""

from typing import Final, TypeAlias

import anyio

ImageKey: TypeAlias = tuple[str, str]
"""Namespace and name of an image in containerd."""

_TURNS: Final = 4
"""One in this many images is taken from the lane that is not urgent, unless that is empty."""


class Lanes:
    """A set of images in the order of arrival, with urgent ones in a lane of their own.

    Neither lane waits until the other is empty.
    """

    def __init__(self) -> None:
        self._urgent: dict[ImageKey, None] = {}
        self._others: dict[ImageKey, None] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._urgent) + len(self._others)

    def __contains__(self, key: ImageKey) -> bool:
        return key in self._urgent or key in self._others

    def add(self, key: ImageKey, *, urgent: bool) -> None:
        """Add an image, or make it urgent. An urgent image stays urgent."""
        if urgent:
            self._others.pop(key, None)
            self._urgent[key] = None
        elif key not in self._urgent:
            self._others[key] = None

    def pop(self) -> tuple[ImageKey, bool]:
        """Take the next image. Returns it, and whether it is urgent. Raises: IndexError: the set is empty."""
        if not self:
            raise IndexError("no image")
        self._turn = (self._turn + 1) % _TURNS
        urgent = bool(self._urgent) and not (self._others and self._turn == 0)
        lane = self._urgent if urgent else self._others
        key = next(iter(lane))
        del lane[key]
        return key, urgent


class ImageWorkQueue:
    """Images that wait to be processed by several tasks, but each by one task at a time.

    The queue is bounded by the number of existing images.
    """

    def __init__(self) -> None:
        self._waiting = Lanes()
        self._looked_at: dict[ImageKey, bool | None] = {}
        """Images in progress. None: not requested again; otherwise whether the new request is urgent."""
        self._some = anyio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: ImageKey) -> bool:
        """Whether an image waits or is being processed."""
        return key in self._waiting or key in self._looked_at

    def add(self, key: ImageKey, *, urgent: bool) -> None:
        """Queue an image. If a task processes it already, queue it again once that task is done."""
        if key in self._looked_at:
            self._looked_at[key] = urgent or bool(self._looked_at[key])
            return
        self._waiting.add(key, urgent=urgent)
        self._some.set()

    async def take(self) -> tuple[ImageKey, bool]:
        """Wait for the next image. Returns it, and whether it is urgent. Call `done` when it is processed."""
        while not self._waiting:
            self._some = anyio.Event() if self._some.is_set() else self._some
            await self._some.wait()
        key, urgent = self._waiting.pop()
        self._looked_at[key] = None
        return key, urgent

    def done(self, key: ImageKey) -> None:
        """Mark an image as processed."""
        again = self._looked_at.pop(key)
        if again is not None:
            self.add(key, urgent=again)
