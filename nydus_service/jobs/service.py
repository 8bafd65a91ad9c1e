"""Protocols: the job service that API and triggers use, and the runner that the job queue uses."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from nydus_service.convert.progress import Progress
from nydus_service.convert.result import ConvertResult, Preview
from nydus_service.imagecheck.result import CheckResult
from nydus_service.jobs.job import Job, JobRequest, JobState


class Submitted(NamedTuple):
    """The job of a request. `joined`: the job existed before, for an equal request."""

    job: Job
    joined: bool


class JobService(Protocol):
    """Submits, queries and follows jobs. Implemented by `queue.JobQueue`."""

    async def submit(self, request: JobRequest, *, origin: str, priority: int = 0) -> Submitted:
        """Accept a request. When this returns, the job is on disk, synced.

        An equal request joins the unfinished job, which gets the higher priority of the two.

        Raises:
            UsageError, UnsupportedError: the request is invalid or not supported.
            QueueFull: too many jobs wait already; try again later.
            ShuttingDown: the daemon accepts no more jobs.
        """
        ...

    def get(self, job_id: str) -> Job:
        """Raises: JobNotFound: no job has this id."""
        ...

    def list(
        self, *, image: str = "", states: Sequence[JobState] = (), limit: int = 100, before: str = ""
    ) -> list[Job]:
        """List jobs, the newest first.

        Args:
            image: source or target, with or without the digest; empty for all.
            states: only jobs in one of these states; empty for all.
            limit: maximum number of returned jobs.
            before: id of a job; only jobs accepted before it are returned, for the next page.
        Raises:
            JobNotFound: no job has the id `before`.
        """
        ...

    def watch(self, job_id: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[Job]]:
        """Follow a job until it is finished, or all jobs without end.

        With an id, the first value is the job's current one. Without, only later changes are received. A slow
        watcher may skip intermediate values but always receives the latest: a watcher's backlog holds at most
        one value of each job.

        Raises:
            JobNotFound: no job has this id.
        """
        ...

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job. Returns its value; a running job ends soon after. A finished job does not change.

        Raises: JobNotFound.
        """
        ...

    async def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again, under its id. A job that waits for a try is due at once.

        Raises:
            JobNotFound: no job has this id.
            UsageError: the job is done or running, or another job does the same.
            QueueFull, ShuttingDown: as `submit`.
        """
        ...


class Runner(Protocol):
    """Runs jobs, previews and checks. Implemented by `daemon.worker.Worker`, with stores and builders."""

    async def convert(self, job: Job, progress: Progress) -> ConvertResult:
        """Run a job, under a lease and a lock with the job's id.

        Raises: NydusServiceError: as `convert.image.convert_image` and the stores do.
        """
        ...

    async def preview(self, request: JobRequest) -> Preview:
        """Compute what `convert` would do. Raises: as `convert`, before it writes."""
        ...

    async def check(
        self, image: str, against: str, namespace: str, *, verify: str, platforms: Sequence[str]
    ) -> CheckResult:
        """Check a nydus image, and compare it with the image `against` if given, as `check` does.

        Raises: as `convert`. A difference is not raised, but returned in the result.
        """
        ...

    async def sweep(self) -> None:
        """Remove leases, ingests and work directories that dead processes of this project left."""
        ...
