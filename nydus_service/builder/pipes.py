"""The pipes that a builder reads and writes: anonymous, passed by descriptor, named /proc/self/fd/N.

A builder opens the path like a file. Unlike a FIFO, the pipe needs no directory, is gone with the processes
that hold it, and opening it does not wait for the other side. The ends are held as follows:

    pipe          this process                          the builder
    source        writer; reader, which is never read   reader
    blob          reader                                writer
    error output  reader                                writer

- The native builder also opens the reading end of its own `--blob`. So it gets no SIGPIPE when this process
  stops reading, and must be killed; end of file comes only when it exits.
- This process keeps the reading end of the source to check at the end that the pipe is empty. So the writing
  end never breaks: the writer is stopped when the builder has exited.
- The ends of this process do not block. O_NONBLOCK belongs to the open file, so the builder's ends keep
  their mode.
"""

import fcntl
import math
import os
import select
import struct
import termios
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

import anyio
import anyio.lowlevel

from nydus_service.builder.builder import Sink

PIPE_SIZE = 1 << 20
PIECE_SIZE = 1 << 20
_INT = struct.Struct("i")
_FIRST_FREE = 3
"""Lower descriptors are standard input, output and error; a pipe must not use their numbers."""


class FileDescriptor:
    """An open file descriptor that is closed once, at the latest by the block that opened it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    @property
    def path(self) -> str:
        """Its name in a process that inherits it."""
        return f"/proc/self/fd/{self._fd}"

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _own(fd: int) -> FileDescriptor:
    """Take over a descriptor. It is moved up if it has the number of a standard one that was closed."""
    if fd >= _FIRST_FREE:
        return FileDescriptor(fd)
    try:
        return FileDescriptor(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE))
    finally:
        os.close(fd)


class Pipe:
    """Both ends of a pipe."""

    def __init__(self, reader: FileDescriptor, writer: FileDescriptor) -> None:
        self.reader = reader
        self.writer = writer

    def unread(self) -> int:
        """The number of bytes in the pipe. `reader` must be open."""
        (count,) = _INT.unpack(fcntl.ioctl(self.reader.fileno(), termios.FIONREAD, bytes(_INT.size)))
        return int(count)

    def has_writer(self) -> bool:
        """Whether any process still holds the writing end. `reader` must be open."""
        poll = select.poll()
        poll.register(self.reader.fileno(), 0)  # POLLHUP is always reported
        return not poll.poll(0)


@contextmanager
def open_pipe() -> Iterator[Pipe]:
    """Make a pipe of the largest size that an unprivileged process may set by default, 1 MiB."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with _own(reader) as own_reader, _own(writer) as own_writer:
        with suppress(OSError):  # the user's limit of pipe memory is reached: works, with more wake-ups
            fcntl.fcntl(own_writer.fileno(), fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        yield Pipe(own_reader, own_writer)


def open_input(text: str) -> FileDescriptor:
    """Make a standard input that holds a short text. It is a memory file, so no task has to write it."""
    descriptor = _own(os.memfd_create("stdin", os.MFD_CLOEXEC))
    os.write(descriptor.fileno(), os.fsencode(text))
    os.lseek(descriptor.fileno(), 0, os.SEEK_SET)
    return descriptor


class StillOpen(Exception):
    """No more bytes came in time, but a process still holds the writing end."""


class PipeReader:
    """Reads the parent's end of a pipe. One task at a time."""

    def __init__(self, end: FileDescriptor) -> None:
        os.set_blocking(end.fileno(), False)
        self._end = end
        self._patience_s = math.inf
        self._waiting: anyio.CancelScope | None = None

    def expect_end(self, within_s: float) -> None:
        """Limit the wait for more bytes to `within_s` from now on, because the writer has exited."""
        self._patience_s = within_s
        if self._waiting is not None:
            self._waiting.deadline = anyio.current_time() + within_s

    async def fill(self, buffer: bytearray) -> int:
        """Read until `buffer` is full or the pipe ends. Returns the number of bytes read.

        Raises:
            StillOpen: see `expect_end`. Bytes read before are lost.
        """
        await anyio.lowlevel.checkpoint()
        filled = 0
        with memoryview(buffer) as view:
            while filled < len(view):
                try:
                    count = os.readv(self._end.fileno(), [view[filled:]])
                except BlockingIOError:
                    await self._wait()
                    continue
                if not count:
                    break
                filled += count
        return filled

    async def read(self, limit: int) -> bytes:
        """Read the available bytes, up to `limit`; wait if there are none. b"" at the end.

        Raises:
            StillOpen: see `expect_end`.
        """
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                return os.read(self._end.fileno(), limit)
            except BlockingIOError:
                await self._wait()

    def read_ready(self) -> Iterator[bytes]:
        """Read the bytes in the pipe now. The total is bounded, because a writer may still be active."""
        left = 2 * PIPE_SIZE
        with suppress(BlockingIOError):
            while left > 0 and (data := os.read(self._end.fileno(), left)):
                left -= len(data)
                yield data

    async def _wait(self) -> None:
        with anyio.CancelScope(deadline=anyio.current_time() + self._patience_s) as self._waiting:
            try:
                await anyio.wait_readable(self._end.fileno())
                return
            finally:
                self._waiting = None
        raise StillOpen


async def copy_out(reader: PipeReader, sink: Sink) -> int:
    """Pass everything from a pipe to a sink, piece by piece. Returns the number of bytes.

    Raises:
        StillOpen: see `PipeReader.expect_end`.
    """
    total = 0
    filled = PIECE_SIZE
    while filled == PIECE_SIZE:
        piece = bytearray(PIECE_SIZE)  # a new one each time: the sink may keep it
        filled = await reader.fill(piece)
        if filled:
            await sink(memoryview(piece)[:filled])
        total += filled
    return total


async def copy_in(source: AsyncIterable[bytes], end: FileDescriptor) -> int:
    """Write a source into a pipe, then close the writing end. Returns the number of bytes.

    A generator is always closed, so that its resources are released now and not by the garbage collector.
    """
    os.set_blocking(end.fileno(), False)
    total = 0
    try:
        async for piece in source:
            await _write(end, piece)
            total += len(piece)
    finally:
        if isinstance(source, AsyncGenerator):
            with anyio.CancelScope(shield=True):
                await source.aclose()
    end.close()
    return total


async def _write(end: FileDescriptor, piece: bytes) -> None:
    await anyio.lowlevel.checkpoint()
    with memoryview(piece) as view:
        written = 0
        while written < len(view):
            try:
                written += os.write(end.fileno(), view[written:])
            except BlockingIOError:
                await anyio.wait_writable(end.fileno())
