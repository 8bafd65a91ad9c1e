"""Turns bound the child processes of all conversions together.

    work       a process that packs, merges, or compares; the bound is `--jobs`
    verifier   a verifying process from its start to its report; the same bound, counted separately

A verifying process starts early and reads what the packers of its own layers record. If both had one count,
all turns could belong to verifiers that wait for packers without a turn. With two counts there is an order:
the holder of a verifier's turn may wait for a turn of work, but never the reverse. So work always ends, and
with it every wait.

While memory is short, a turn waits until another process has ended. The only process of a kind never waits,
so that each kind goes on.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import anyio
import anyio.to_thread

_MEMORY_PAUSE_S: Final = 1.0
"""Seconds until memory is measured again, if no process ends before."""


class Turns:
    """The turns of one daemon, or of one command."""

    def __init__(self, limit: int, *, lacks_memory: Callable[[], bool] | None = None) -> None:
        """
        Args:
            limit: maximum number of processes of each kind.
            lacks_memory: whether too little memory is free for another process; called in a thread.
        """
        self.limit = limit
        self._work = _Kind(limit, lacks_memory)
        self._verifiers = _Kind(limit, lacks_memory)

    @property
    def working(self) -> int:
        """Number of turns of work that are taken now."""
        return self._work.running

    @property
    def verifiers(self) -> int:
        """Number of verifiers' turns that are taken now."""
        return self._verifiers.running

    def work(self) -> AbstractAsyncContextManager[None]:
        """Take a turn for a process at work. Waiters are served in order."""
        return self._work.turn()

    def verifier(self) -> AbstractAsyncContextManager[None]:
        """Take a turn for a verifying process. Never call it within a turn of work."""
        return self._verifiers.turn()


class _Kind:
    """The turns of one kind of processes."""

    def __init__(self, limit: int, lacks_memory: Callable[[], bool] | None) -> None:
        self.running = 0
        self._limiter = anyio.CapacityLimiter(limit)
        self._lacks_memory = lacks_memory
        self._ended = anyio.Event()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        async with self._limiter:
            await self._until_memory()
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1
                self._ended.set()
                self._ended = anyio.Event()

    async def _until_memory(self) -> None:
        while self.running and self._lacks_memory and await anyio.to_thread.run_sync(self._lacks_memory):
            with anyio.move_on_after(_MEMORY_PAUSE_S):
                await self._ended.wait()
