"""The order in which queued jobs begin. Pure."""

import math
from bisect import bisect_left, insort
from typing import TypeAlias

from nydus_service.jobs.job import Job

_Key: TypeAlias = tuple[float, int, str]


class WaitingJobs:
    """Queued jobs: due ones by priority, then age; the others by the time when they become due."""

    def __init__(self) -> None:
        self._due: list[_Key] = []
        self._later: list[_Key] = []
        self._keys: dict[str, _Key] = {}
        self._numbers: dict[str, tuple[int, int]] = {}
        self._needs: dict[str, frozenset[str]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._keys

    def needs(self, job_id: str) -> frozenset[str]:
        """What a waiting job depends on."""
        return self._needs[job_id]

    def put(self, job: Job, number: int, needs: frozenset[str] = frozenset()) -> None:
        """Add a job, or update its place.

        Args:
            number: of the job's acceptance; jobs of equal priority begin in this order.
            needs: names of what the job depends on.
        """
        self.remove(job.id)
        self._needs[job.id] = needs
        self._numbers[job.id] = (job.priority, number)
        if job.not_before:
            self._insert(self._later, (job.not_before, number, job.id))
        else:
            self._insert(self._due, (-job.priority, number, job.id))

    def remove(self, job_id: str) -> None:
        """Remove a job, if it is present."""
        key = self._keys.pop(job_id, None)
        if key is None:
            return
        del self._numbers[job_id], self._needs[job_id]
        for order in (self._due, self._later):
            at = bisect_left(order, key)
            if at < len(order) and order[at] == key:
                del order[at]

    def first(self, now: float, away: frozenset[str] = frozenset()) -> str | None:
        """The id of the job that begins next; None if no job is due.

        Args:
            away: names of what is unavailable; jobs that depend on one of them are passed over.
        """
        while self._later and self._later[0][0] <= now:
            _, number, job_id = self._later.pop(0)
            self._insert(self._due, (-self._numbers[job_id][0], number, job_id))
        return next((key[2] for key in self._due if not self._needs[key[2]] & away), None)

    def next_due(self) -> float | None:
        """When the next job becomes due, in Unix seconds; None if no job waits for its time."""
        return self._later[0][0] if self._later else None

    def hurry(self) -> None:
        """Make all jobs due."""
        self.first(math.inf)

    def _insert(self, order: list[_Key], key: _Key) -> None:
        self._keys[key[2]] = key
        insort(order, key)
