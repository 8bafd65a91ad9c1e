"""Reads what another process is still writing: lines from a pipe, and a file that grows."""

import os
import select
from collections.abc import Callable
from io import FileIO
from typing import Final

_READ_SIZE: Final = 1 << 16
_POLL_S: Final = 0.02

HasEnded = Callable[[float], bool]
"""Whether the writing has come to its end; waits for that, up to some seconds."""


class Lines:
    """The lines of a pipe, taken one by one: what follows the line at hand need not be there yet."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = b""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def next(self) -> bytes:
        """Wait for a line, or for the end: b"" is there, or what the last line lacks a newline behind."""
        while b"\n" not in self._held and (data := os.read(self._fd, _READ_SIZE)):
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line

    def wait(self, seconds: float) -> bool:
        """Wait for more, or for the end. Returns whether one of them is there."""
        return bool(self._held) or bool(self._poll.poll(seconds * 1000))


class GrowingFile(FileIO):
    """A file that is read while it is written; at its end, `read` waits for more of it."""

    def __init__(self, path: str, has_ended: HasEnded) -> None:
        """Wait until it is there. Raises: OSError: it cannot be opened, or the writing ended without it."""
        self._has_ended = has_ended
        ended = False
        while True:
            try:
                super().__init__(path)
            except FileNotFoundError:
                if ended:
                    raise
                ended = has_ended(_POLL_S)
            else:
                return

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes, `size` at most; b"" only when nothing more can come."""
        data = super().read(size)
        while not data:
            ended = self._has_ended(_POLL_S)
            data = super().read(size)  # once more: it may have grown until then
            if ended:
                break
        return data
