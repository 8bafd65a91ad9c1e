"""A bounded queue between two threads that either side can end."""

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The other side has gone; its own error says why."""


class Channel(Generic[T]):
    """Hands items over in order. `put` waits while `size` items are waiting, `get` while none are."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> None:
        """Raises: Closed: nobody will take it."""
        with self._changed:
            while len(self._items) >= self._size and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Raises: Closed: nothing more will come, and what came has been taken."""
        with self._changed:
            while not self._items:
                if self._closed:
                    raise Closed
                self._changed.wait()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Wake both sides: no more `put`; `get` only what is there."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
