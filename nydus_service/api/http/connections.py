"""Limits the connections of HTTP clients. Each connection takes an open file, which jobs may need.

Anyone may connect, and only a request shows the token. So at most half of the connections may be without it:
one more closes the oldest of them. A client with the token shows it soon after it connects, before its
connection is the oldest.
"""

import asyncio
import logging
import time
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

_WARN_S: Final = 60.0
"""Seconds between two warnings."""

_log = logging.getLogger("nydus_service.api")


class Connections:
    """Makes the protocol of each new connection, for `loop.create_server`."""

    def __init__(self, server: web.Server, limit: int) -> None:
        """
        Args:
            limit: maximum number of connections at a time.
        """
        self._server = server
        self._limit = limit
        self._trusted: set[object] = set()
        self._coming = 0
        """Accepted connections whose protocol is not connected yet. asyncio accepts many at once."""
        self._warned = -_WARN_S

    def __call__(self) -> asyncio.BaseProtocol:
        self._trusted.intersection_update(self._server.connections)
        connected = [each for each in self._server.connections if _is_open(each)]
        untrusted = [each for each in connected if each not in self._trusted]
        excess = len(untrusted) + self._coming + 1 - self._limit // 2
        closed = untrusted[: max(excess, 0)]
        for each in closed:
            assert each.transport is not None
            each.transport.abort()
        is_full = len(connected) - len(closed) + self._coming >= self._limit
        if closed or is_full:
            self._warn()
        if is_full:
            return _Refusal()
        self._coming += 1
        asyncio.get_running_loop().call_soon(self._arrive)  # just before `connection_made`
        return self._server()

    def trust(self, request: web.Request) -> None:
        """Record that the client of a request has shown the token."""
        self._trusted.add(request.protocol)

    def _arrive(self) -> None:
        self._coming -= 1

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned >= _WARN_S:
            self._warned = now
            _log.warning(
                "too many HTTP connections, some are closed: at most %d, half of them without the token",
                self._limit,
            )


class _Refusal(asyncio.Protocol):
    """Closes its connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _is_open(handler: RequestHandler) -> bool:
    return handler.transport is not None and not handler.transport.is_closing()
