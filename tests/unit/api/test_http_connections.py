"""The limit of HTTP connections, and which connections the server closes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.api.jobservice import MemoryBoard
from tests.unit.api.serving import CONVERSIONS, TOKEN, Served, served

pytestmark = pytest.mark.conditions

LIMIT = 8
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Clients:
    """A server and its connections, which are closed at the end."""

    at: Served
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> Streams:
        host, port = self.at.server.addresses[0].rsplit(":", 1)
        streams = await asyncio.open_connection(host, int(port))
        self._writers.append(streams[1])
        return streams

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(each.wait_closed() for each in self._writers), return_exceptions=True)


@asynccontextmanager
async def clients(tmp_path: Path) -> AsyncIterator[Clients]:
    async with served(MemoryBoard(), tmp_path, connections=LIMIT) as at, asyncio.timeout(100):
        opened = Clients(at)
        try:
            yield opened
        finally:
            await opened.close()


async def ask(streams: Streams, path: str = "/livez", *fields: str) -> int:
    """The status of a request."""
    reader, writer = streams
    lines = (f"GET {path} HTTP/1.1", "Host: here", *fields, "", "")
    writer.write("\r\n".join(lines).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(line for line in head.splitlines() if line.lower().startswith("content-length"))
    await reader.readexactly(int(length.partition(":")[2]))
    return int(head.split()[1])


async def closes(streams: Streams) -> bool:
    """Whether the server closes the connection."""
    try:
        return await streams[0].read(1) == b""
    except ConnectionError:
        return True


async def test_one_more_without_the_token_closes_the_oldest(tmp_path: Path) -> None:
    async with clients(tmp_path) as at:
        strangers = [await at.connect() for _ in range(LIMIT // 2)]
        for each in strangers:
            assert await ask(each) == 200
        later = await at.connect()
        assert await ask(later) == 200
        assert await closes(strangers[0])
        assert [await ask(each) for each in strangers[1:]] == [200] * (LIMIT // 2 - 1)


async def test_a_client_that_has_shown_the_token_stays(tmp_path: Path) -> None:
    token = f"Authorization: Bearer {TOKEN}"
    async with clients(tmp_path) as at:
        ours = [await at.connect() for _ in range(3)]
        for each in ours:
            assert await ask(each, CONVERSIONS, token) == 200
        strangers = await asyncio.gather(*(at.connect() for _ in range(10 * LIMIT)))
        assert [await ask(each, CONVERSIONS, token) for each in ours] == [200] * 3
        assert await ask(await at.connect(), CONVERSIONS, token) == 200
        closed = asyncio.as_completed([closes(each) for each in strangers])
        assert [await next(closed) for _ in range(9 * LIMIT)] == [True] * 9 * LIMIT


async def test_no_more_than_the_limit_even_with_the_token(tmp_path: Path) -> None:
    token = f"Authorization: Bearer {TOKEN}"
    async with clients(tmp_path) as at:
        ours = []
        for _ in range(LIMIT):
            ours.append(await at.connect())
            assert await ask(ours[-1], CONVERSIONS, token) == 200
        assert await closes(await at.connect())
        ours.pop()[1].close()
        while True:
            try:
                assert await ask(await at.connect()) == 200
                break
            except (ConnectionError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.01)  # the server has not noticed yet
