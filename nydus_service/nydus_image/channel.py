"""A bounded queue between threads, which either side can close."""

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The channel was closed; the error of the closing side has the reason."""


class Channel(Generic[T]):
    """Passes items in order. `put` waits while the channel has `size` items, `get` while it is empty."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> None:
        """Add an item. Raises: Closed: the channel was closed."""
        with self._changed:
            while len(self._items) >= self._size and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Remove the next item. Raises: Closed: the channel was closed and is empty."""
        with self._changed:
            while not self._items:
                if self._closed:
                    raise Closed
                self._changed.wait()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Refuse further `put`s and wake both sides; `get` still returns the items left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
