"""All jobs in memory: unfinished ones as objects, history packed as it is on disk. Pure.

History may have a thousand results with all their layers. As JSON it takes a tenth of the memory of objects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nydus_service.jobs.job import Job, JobNotFound, JobState
from nydus_service.jobs.record import Record, pack, request_key, unpack


@dataclass(slots=True)
class _Entry:
    """A job's place in the order of acceptance, and either the job or its record."""

    number: int
    key: str
    value: Job | Record


class JobIndex:
    """Jobs by id, in the order of acceptance, and the unfinished job of each request key."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._unfinished: dict[str, str] = {}
        self._history: dict[str, float] = {}
        self._next_number = 0

    def load(self, record: Record) -> Job | None:
        """Add a job from disk, in the order of acceptance. Returns the job unless it is finished."""
        if record.finished is not None:
            self._entries[record.id] = _Entry(self._take_number(), record.request_key, record)
            self._history[record.id] = record.finished
            return None
        job = unpack(record.id, record.data)
        self.put(job)
        return job

    def put(self, job: Job) -> Record | None:
        """Add a job or its next value. Returns the job's packed record if it is finished, else None."""
        entry = self._entries.get(job.id)
        if entry is None:
            entry = _Entry(self._take_number(), request_key(job.request), job)
            self._entries[job.id] = entry
        self._history.pop(job.id, None)
        if self._unfinished.get(entry.key) == job.id:
            del self._unfinished[entry.key]
        if job.finished_at is None:
            entry.value = job
            if not job.cancel_requested:
                self._unfinished[entry.key] = job.id
            return None
        record = pack(job)
        entry.value = record
        self._history[job.id] = job.finished_at
        return record

    def hold(self, job_id: str) -> None:
        """Keep a finished job from being pruned until its next value is put. Raises: JobNotFound."""
        self._entry(job_id)
        self._history.pop(job_id, None)

    def release(self, job_id: str) -> None:
        """Return a held job to the history. An id that is unknown, or not finished, changes nothing."""
        entry = self._entries.get(job_id)
        if entry and isinstance(entry.value, Record) and entry.value.finished is not None:
            self._history[job_id] = entry.value.finished

    def get(self, job_id: str) -> Job:
        """Raises: JobNotFound."""
        value = self._entry(job_id).value
        return unpack(value.id, value.data) if isinstance(value, Record) else value

    def number(self, job_id: str) -> int:
        """The job's number in the order of acceptance; lower came first. Raises: JobNotFound."""
        return self._entry(job_id).number

    def find(self, job_id: str) -> Job | None:
        return self.get(job_id) if job_id in self._entries else None

    def doing(self, key: str) -> Job | None:
        """The unfinished job with this `record.request_key`, unless it is being cancelled."""
        job_id = self._unfinished.get(key)
        return self.get(job_id) if job_id else None

    def unfinished(self) -> list[Job]:
        return [entry.value for entry in self._entries.values() if isinstance(entry.value, Job)]

    def select(self, image: str, states: Sequence[JobState], limit: int, before: str) -> list[Job]:
        """As `service.JobService.list`."""
        older = self._older(self._entry(before).number if before else self._next_number)
        found: list[Job] = []
        for entry in older:
            if len(found) >= limit:
                break
            value = entry.value
            if (not states or value.state in states) and (not image or _is_about(value, image)):
                found.append(self.get(value.id))
        return found

    def prune(self, history: int) -> list[str]:
        """Forget finished jobs except the latest `history`. Returns the ids of the forgotten."""
        excess = len(self._history) - history
        if excess <= 0:
            return []
        gone = sorted(self._history, key=self._history.__getitem__)[:excess]
        for job_id in gone:
            del self._history[job_id]
            del self._entries[job_id]
        return gone

    def _older(self, number: int) -> Iterator[_Entry]:
        return (entry for entry in reversed(self._entries.values()) if entry.number < number)

    def _entry(self, job_id: str) -> _Entry:
        try:
            return self._entries[job_id]
        except KeyError:
            raise JobNotFound(
                f"no job {job_id!r}: there was none, or it is no longer in the history"
            ) from None

    def _take_number(self) -> int:
        self._next_number += 1
        return self._next_number - 1


def _is_about(value: Job | Record, image: str) -> bool:
    asked = value.request if isinstance(value, Job) else value
    return any(image in (name, name.partition("@")[0]) for name in (asked.source, asked.target))
