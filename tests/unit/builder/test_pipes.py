"""Pipes: pieces, ends, and what is left in them."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator

import anyio
import pytest

from nydus_service.builder.pipes import (
    PIECE_SIZE,
    PipeReader,
    StillOpen,
    copy_in,
    copy_out,
    open_input,
    open_pipe,
)
from tests.unit.builder.fakes import Collected, nothing_left, stream

DATA = os.urandom(3 * PIECE_SIZE + 12345)


async def test_copy() -> None:
    sink = Collected()
    with nothing_left(), open_pipe() as pipe:
        async with anyio.create_task_group() as tg:
            tg.start_soon(copy_in, stream(DATA), pipe.writer)
            assert await copy_out(PipeReader(pipe.reader), sink) == len(DATA)
    assert sink.data == DATA
    assert [len(piece) for piece in sink.pieces] == [PIECE_SIZE] * 3 + [12345]


@pytest.mark.parametrize("size", [0, 1, PIECE_SIZE - 1, PIECE_SIZE, PIECE_SIZE + 1])
async def test_sizes_around_a_piece(size: int) -> None:
    sink = Collected()
    with open_pipe() as pipe:
        async with anyio.create_task_group() as tg:
            tg.start_soon(copy_in, stream(DATA[:size]), pipe.writer)
            assert await copy_out(PipeReader(pipe.reader), sink) == size
    assert sink.data == DATA[:size]
    assert b"" not in sink.pieces


async def test_pieces_are_the_sinks_to_keep() -> None:
    kept: list[bytes | memoryview] = []

    async def keep(piece: bytes | memoryview) -> None:
        kept.append(piece)

    with open_pipe() as pipe:
        async with anyio.create_task_group() as tg:
            tg.start_soon(copy_in, stream(DATA), pipe.writer)
            await copy_out(PipeReader(pipe.reader), keep)
    assert b"".join(kept) == DATA


async def test_an_end_that_does_not_come() -> None:
    with open_pipe() as pipe:
        reader = PipeReader(pipe.reader)
        os.write(pipe.writer.fileno(), b"x")
        reader.expect_end(0.01)
        assert await reader.read(10) == b"x"
        with pytest.raises(StillOpen):
            await reader.read(10)


async def test_patience_may_end_while_it_waits() -> None:
    with open_pipe() as pipe:
        reader = PipeReader(pipe.reader)
        ended = anyio.Event()

        async def read() -> None:
            with pytest.raises(StillOpen):
                await reader.fill(bytearray(10))
            ended.set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            assert not ended.is_set()
            reader.expect_end(0.01)


def test_what_is_left_in_a_pipe() -> None:
    with open_pipe() as pipe:
        assert pipe.unread() == 0
        os.write(pipe.writer.fileno(), bytes(70_000))
        assert pipe.unread() == 70_000
        assert pipe.has_writer()
        pipe.writer.close()
        assert not pipe.has_writer()
        assert pipe.unread() == 70_000


def test_input_text() -> None:
    with open_input("/usr/bin\n/ö\n") as text:
        read = subprocess.run(["cat"], stdin=text.fileno(), capture_output=True, check=True)
    assert read.stdout == "/usr/bin\n/ö\n".encode()


async def test_a_generator_is_closed_when_it_fails() -> None:
    closed = False

    async def source() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            yield b"x"
        finally:
            await anyio.lowlevel.checkpoint()
            closed = True

    with open_pipe() as pipe:
        os.write(pipe.writer.fileno(), bytes(1 << 16))
        pipe.reader.close()
        with pytest.raises(BrokenPipeError):
            await copy_in(source(), pipe.writer)
    assert closed


WITHOUT_STANDARD_FILES = """
import os
for fd in range(3): os.close(fd)
from nydus_service.builder.pipes import open_input, open_pipe
with open_pipe() as pipe, open_input("x") as text:
    fds = [end.fileno() for end in (pipe.reader, pipe.writer, text)]
os._exit(0 if min(fds) > 2 and len(set(fds)) == 3 else 1)
"""


def test_descriptors_are_never_standard_ones() -> None:
    """A daemon may run with its standard files closed; a pipe must not be taken for one."""
    subprocess.run([sys.executable, "-c", WITHOUT_STANDARD_FILES], check=True, timeout=60)
