"""One try of a job: its scope, its progress, and when the progress is published."""

import asyncio
from collections.abc import Callable
from typing import Final

import anyio

from nydus_service.convert.progress import Event
from nydus_service.jobs.job import Job, JobProgress
from nydus_service.jobs.progress import ProgressTracker

PUBLISH_S: Final = 0.1
"""Shortest interval in seconds between two published values of a job in the same stage."""


class JobRun:
    """A try of a job, created when it begins. Call `end` last."""

    def __init__(self, job: Job, publish: Callable[[str, str | None], None]) -> None:
        """
        Args:
            publish: called with the job's id when its progress is to be published, and with the stage if a
                new one has begun, else None.
        """
        self.scope = anyio.CancelScope()
        self._job_id = job.id
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        verifies = job.request.options.verify != "none"
        self._tracker = ProgressTracker(verifies=verifies, clock=self._loop.time)
        self._published = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False

    def take(self, event: Event) -> None:
        """Take an event of the conversion."""
        if self._ended:
            return
        if self._tracker.take(event):
            self._publish_now(self._tracker.stage)
        elif self._timer is None:
            self._timer = self._loop.call_at(self._published + PUBLISH_S, self._publish_now)

    def progress(self) -> JobProgress:
        return self._tracker.progress()

    def end(self) -> None:
        """Stop publishing."""
        self._ended = True
        self._stop_timer()

    def _publish_now(self, stage: str | None = None) -> None:
        self._stop_timer()
        self._published = self._loop.time()
        self._publish(self._job_id, stage)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
