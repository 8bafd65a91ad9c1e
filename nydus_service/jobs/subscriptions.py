"""Watchers of jobs. A slow watcher may skip intermediate values but receives the latest.

Of finished jobs, it receives the last `FINISHED_MAX` that it has not taken. So a watcher that takes nothing
keeps no more memory than the queue and a part of the history.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from nydus_service.jobs.job import Job

FINISHED_MAX: Final = 1000


class _Subscription:
    def __init__(self, job_id: str | None) -> None:
        self.job_id = job_id
        self._pending: dict[str, Job] = {}
        self._finished: dict[str, None] = {}
        """The ids of finished jobs in `_pending`, the oldest first."""
        self._changed = anyio.Event()

    def tell(self, job: Job) -> None:
        if self.job_id is None or job.id == self.job_id:
            self._pending[job.id] = job
            self._finished.pop(job.id, None)
            if job.is_finished:
                self._finished[job.id] = None
            if len(self._finished) > FINISHED_MAX:
                self._take(next(iter(self._finished)))
            self._changed.set()

    async def values(self) -> AsyncGenerator[Job, None]:
        while True:
            await self._changed.wait()
            job = self._take(next(iter(self._pending)))
            if not self._pending:
                self._changed = anyio.Event()
            yield job
            if self.job_id is not None and job.is_finished:
                return

    def _take(self, job_id: str) -> Job:
        self._finished.pop(job_id, None)
        return self._pending.pop(job_id)


class Subscriptions:
    """The subscriptions of all watchers."""

    def __init__(self) -> None:
        self._subscriptions: set[_Subscription] = set()

    def __len__(self) -> int:
        return len(self._subscriptions)

    def tell(self, job: Job) -> None:
        """Notify the watchers of a changed job."""
        for watcher in self._subscriptions:
            watcher.tell(job)

    @contextmanager
    def follow(self, first: Job | None) -> Iterator[AsyncGenerator[Job, None]]:
        """Watch this job, or all jobs if None, as `service.JobService.watch` does."""
        watcher = _Subscription(first.id if first else None)
        if first:
            watcher.tell(first)
        self._subscriptions.add(watcher)
        try:
            yield watcher.values()
        finally:
            self._subscriptions.discard(watcher)
