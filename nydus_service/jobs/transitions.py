"""State transitions of a job: pure functions from a job to its next value.

Each returned value has the next revision. The queue decides which transition applies.
"""

from typing import Any, Final

from msgspec.structs import replace

from nydus_service.convert.result import ConvertResult
from nydus_service.jobs.job import Job, JobError, JobProgress, JobState

INTERRUPTIONS_MAX: Final = 3
"""A job fails when the daemon has ended this many times while the job's builders worked."""

_BUILDERS_AT_WORK: Final = frozenset(("packing", "merging", "verifying"))


def changed(job: Job, **fields: Any) -> Job:
    return replace(job, revision=job.revision + 1, **fields)


def begun(job: Job, now: float) -> Job:
    """Begin a try."""
    return changed(
        job,
        state=JobState.RUNNING,
        started_at=now if job.started_at is None else job.started_at,
        not_before=0,
        attempts=job.attempts + 1,
        error=None,
        progress=JobProgress(stage="preparing", bytes_total=job.progress.bytes_total),
    )


def done(job: Job, now: float, result: ConvertResult) -> Job:
    return changed(job, state=JobState.DONE, finished_at=now, result=result)


def failed(job: Job, now: float, error: JobError) -> Job:
    return changed(job, state=JobState.FAILED, finished_at=now, error=error)


def cancelled(job: Job, now: float) -> Job:
    return changed(job, state=JobState.CANCELLED, finished_at=now, not_before=0, cancel_requested=True)


def put_off(job: Job, error: JobError, not_before: float) -> Job:
    """Queue the job again after a transient error."""
    queued = put_back(job)
    return replace(queued, retries=job.retries + 1, error=error, not_before=not_before)


def put_back(job: Job) -> Job:
    """Queue the job again because the daemon ends. The size of its layers is kept for admission."""
    known = JobProgress(bytes_total=job.progress.bytes_total)
    return changed(job, state=JobState.QUEUED, progress=known)


def asked_again(job: Job) -> Job:
    """Queue the job again on request. Earlier errors, retries and interruptions no longer count."""
    return changed(
        job,
        state=JobState.QUEUED,
        started_at=None,
        finished_at=None,
        not_before=0,
        interruptions=0,
        retries=0,
        cancel_requested=False,
        error=None,
        result=None,
        progress=JobProgress(),
    )


def recovered(job: Job, now: float) -> Job:
    """Recover a job that was running when the daemon died: queue it again, unless it may be the cause."""
    if job.cancel_requested:
        return cancelled(job, now)
    if job.progress.stage not in _BUILDERS_AT_WORK:
        return put_back(job)
    interruptions = job.interruptions + 1
    if interruptions < INTERRUPTIONS_MAX:
        return replace(put_back(job), interruptions=interruptions)
    message = (
        f"the daemon ended {interruptions} times while builders worked on this job, the last time while "
        f"{job.progress.stage}; look for the reason in the system's log (out of memory?), then retry it"
    )
    error = JobError(code="interrupted_repeatedly", message=message, retryable=False)
    return replace(failed(job, now, error), interruptions=interruptions)
