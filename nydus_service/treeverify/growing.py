"""Reads data that another process is still writing: lines from a pipe, and a growing file."""

import os
import select
from collections.abc import Callable
from io import FileIO
from typing import Final

_READ_SIZE: Final = 1 << 16
_POLL_S: Final = 0.02

HasEnded = Callable[[float], bool]
"""Waits up to the given seconds for the writing to end. Returns whether it has ended."""


class Lines:
    """Reads the lines of a pipe one by one, without waiting for the lines after the current one."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = b""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def next(self) -> bytes:
        """Wait for a line, returned without its newline. At the end: an unterminated last line, then b""."""
        while b"\n" not in self._held and (data := os.read(self._fd, _READ_SIZE)):
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line

    def wait(self, seconds: float) -> bool:
        """Wait for more data or for the end. Returns whether either has come."""
        return bool(self._held) or bool(self._poll.poll(seconds * 1000))


class GrowingFile(FileIO):
    """A file that is read while it is written; at its end, `read` waits for more data."""

    def __init__(self, path: str, has_ended: HasEnded) -> None:
        """Wait until the file exists. Raises: OSError: it cannot be opened, or was not written at all."""
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
        """Read the next bytes, at most `size`; b"" only when the writing has ended."""
        data = super().read(size)
        while not data:
            ended = self._has_ended(_POLL_S)
            data = super().read(size)  # again: the file may have grown before the end
            if ended:
                break
        return data
