"""Watchers of jobs. A slow watcher may skip intermediate values but always receives the latest."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import anyio

from nydus_service.jobs.job import Job


class _Subscription:
    def __init__(self, job_id: str | None) -> None:
        self.job_id = job_id
        self._pending: dict[str, Job] = {}
        self._changed = anyio.Event()

    def tell(self, job: Job) -> None:
        if self.job_id is None or job.id == self.job_id:
            self._pending[job.id] = job
            self._changed.set()

    async def values(self) -> AsyncGenerator[Job, None]:
        while True:
            await self._changed.wait()
            job = self._pending.pop(next(iter(self._pending)))
            if not self._pending:
                self._changed = anyio.Event()
            yield job
            if self.job_id is not None and job.is_finished:
                return


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
