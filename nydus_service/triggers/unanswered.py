"""Finished jobs that images may wait for. They are held in the queue, however short the history is.

Without this, a job could be forgotten before its end was written into the labels of its image. The request
would then look as if it had never been accepted, and would be submitted again, without end.
"""

from collections.abc import Callable

from nydus_service.jobs.queue import JobQueue
from nydus_service.triggers.workqueue import ImageKey


class UnansweredJobs:
    """Held jobs by the image whose labels may have to report their end."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._held: dict[ImageKey, set[str]] = {}

    def hold(self, key: ImageKey, job_id: str) -> None:
        """Hold a finished job until the image was looked at."""
        self._queue.hold(job_id)
        self._held.setdefault(key, set()).add(job_id)

    def of(self, key: ImageKey) -> frozenset[str]:
        """The ids of the held jobs of an image. A look at the image that begins now reports their end."""
        return frozenset(self._held.get(key, ()))

    def release(self, key: ImageKey, job_ids: frozenset[str]) -> None:
        """Give jobs of an image back to the history, since their end is reported or concerns nobody."""
        held = self._held.pop(key, set())
        for job_id in held & job_ids:
            self._queue.release(job_id)
        if held - job_ids:
            self._held[key] = held - job_ids

    def release_unless(self, is_due: Callable[[ImageKey], bool]) -> None:
        """Release the jobs of all images that need not be looked at."""
        for key in [each for each in self._held if not is_due(each)]:
            self.release(key, self.of(key))
