"""What API and triggers may ask of the jobs, and what the jobs ask of the rest: protocols."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from nydus_service.convert.progress import Progress
from nydus_service.convert.result import ConvertResult, Preview
from nydus_service.imagecheck.result import CheckResult
from nydus_service.jobs.job import Job, JobRequest, JobState


class Submitted(NamedTuple):
    """`joined`: a job that was there already does what was asked for."""

    job: Job
    joined: bool


class JobService(Protocol):
    """All jobs, to ask and to follow. Implemented by `queue.JobQueue`."""

    async def submit(self, request: JobRequest, *, origin: str, priority: int = 0) -> Submitted:
        """Accept a request. When this returns the job is on disk, synced.

        An equal request that is not finished is joined, and gets the higher priority of the two.

        Raises:
            UsageError, UnsupportedError: the request can never be done.
            QueueFull: too many wait already; ask again later.
            ShuttingDown: the daemon accepts nothing any more.
        """
        ...

    def get(self, job_id: str) -> Job:
        """Raises: JobNotFound: none has this id."""
        ...

    def list(
        self, *, image: str = "", states: Sequence[JobState] = (), limit: int = 100, before: str = ""
    ) -> list[Job]:
        """Jobs, the newest first.

        Args:
            image: source or target, with or without the digest; empty: all.
            states: any of them; empty: all.
            limit: at most so many.
            before: the id of a job: only those that came before it, for the next page.
        Raises:
            JobNotFound: no job has the id `before`.
        """
        ...

    def watch(self, job_id: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[Job]]:
        """Follow a job until it is finished, or all jobs for ever.

        The first value is the job as it is; then it comes whenever it has changed. Who is slow misses
        values in between, never the last: what waits for a watcher is bounded by the number of jobs that
        change. With no id, only jobs that change from now on come.

        Raises:
            JobNotFound: none has this id.
        """
        ...

    async def cancel(self, job_id: str) -> Job:
        """End a job. Returns it as it is then; one that works ends soon after. A finished one stays as it is.

        Raises: JobNotFound.
        """
        ...

    async def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job anew, under its id, at once even if it waits for a later try.

        Raises:
            JobNotFound: none has this id.
            UsageError: it is done, or under way.
            QueueFull, ShuttingDown: as `submit`.
        """
        ...


class Runner(Protocol):
    """Does what a job asks for. Implemented by `daemon.worker.Worker`, which knows stores and builders."""

    async def convert(self, job: Job, progress: Progress) -> ConvertResult:
        """Do a job, under a lease and a lock with the job's id.

        Raises: NydusServiceError: as `convert.image.convert_image` and the stores do.
        """
        ...

    async def preview(self, request: JobRequest) -> Preview:
        """What `convert` would do. Raises: as `convert`, before it writes."""
        ...

    async def check(
        self, image: str, against: str, namespace: str, *, verify: str, platforms: Sequence[str]
    ) -> CheckResult:
        """Check a nydus image, against its source if one is named, as the command `check` does.

        Raises: as `convert`; that the image differs is in the value, not raised.
        """
        ...

    async def sweep(self) -> None:
        """Remove what dead processes of ours left: leases, ingests, work directories."""
        ...
