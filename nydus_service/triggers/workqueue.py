"""Images that are to be looked at: each once, however often it is named, and in a fair order."""

from typing import Final, TypeAlias

import anyio

ImageKey: TypeAlias = tuple[str, str]
"""Namespace and name of an image in containerd."""

_TURNS: Final = 4
"""Of so many that are taken, one is not urgent, if there is one."""


class Lanes:
    """A set of images in the order in which they came, the urgent ones apart.

    Neither lane has to wait for the other to be empty.
    """

    def __init__(self) -> None:
        self._urgent: dict[ImageKey, None] = {}
        self._others: dict[ImageKey, None] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._urgent) + len(self._others)

    def add(self, key: ImageKey, *, urgent: bool) -> None:
        """Add an image, or make it urgent; once urgent it stays so."""
        if urgent:
            self._others.pop(key, None)
            self._urgent[key] = None
        elif key not in self._urgent:
            self._others[key] = None

    def pop(self) -> tuple[ImageKey, bool]:
        """Take the next. Returns whether it is urgent, too. Raises: IndexError: there is none."""
        if not self:
            raise IndexError("no image")
        self._turn = (self._turn + 1) % _TURNS
        urgent = bool(self._urgent) and not (self._others and self._turn == 0)
        lane = self._urgent if urgent else self._others
        key = next(iter(lane))
        del lane[key]
        return key, urgent


class ImageWorkQueue:
    """Images that wait to be looked at, by several tasks, but each by one at a time.

    Bounded by the number of images that there are.
    """

    def __init__(self) -> None:
        self._waiting = Lanes()
        self._looked_at: dict[ImageKey, bool | None] = {}
        """Whether it is to be looked at again, and then whether that is urgent."""
        self._some = anyio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: ImageKey, *, urgent: bool) -> None:
        """Have an image looked at: from now on, if somebody looks at it already."""
        if key in self._looked_at:
            self._looked_at[key] = urgent or bool(self._looked_at[key])
            return
        self._waiting.add(key, urgent=urgent)
        self._some.set()

    async def take(self) -> tuple[ImageKey, bool]:
        """The next image, and whether it is urgent. Who takes it says when it is `done`."""
        while not self._waiting:
            self._some = anyio.Event() if self._some.is_set() else self._some
            await self._some.wait()
        key, urgent = self._waiting.pop()
        self._looked_at[key] = None
        return key, urgent

    def done(self, key: ImageKey) -> None:
        """Nobody looks at it any more."""
        again = self._looked_at.pop(key)
        if again is not None:
            self.add(key, urgent=again)
