"""A runner that does what each test says, and what the tests of the jobs share."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import anyio

from nydus_service.builder.builder import BuilderIdentity
from nydus_service.convert.progress import Progress
from nydus_service.convert.result import CONVERTED, ConvertResult, NamedImage, Preview
from nydus_service.errors import UnsupportedError
from nydus_service.imagecheck.result import CheckResult
from nydus_service.jobs.admission import Free
from nydus_service.jobs.dependencies import Dependencies
from nydus_service.jobs.job import Job, JobRequest, JobState
from nydus_service.jobs.journal import open_journal
from nydus_service.jobs.queue import JobQueue, QueueLimits
from nydus_service.oci.descriptor import Descriptor
from nydus_service.options.convert import ConvertOptions
from tests.options import grouped

Action: TypeAlias = Callable[[Job, Progress], Awaitable[None]]

PLENTY = Free(space=1 << 50, memory=1 << 50)


def request(name: str = "app", **options: Any) -> JobRequest:
    """A request to convert an image of this name."""
    return JobRequest(
        source=f"docker.io/library/{name}:1",
        target=f"docker.io/library/{name}:1-nydus",
        namespace="default",
        options=ConvertOptions(**grouped(options)),
    )


def descriptor(size: int = 7) -> Descriptor:
    digest = f"sha256:{size:064x}"
    return Descriptor(
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size}
    )


def result(job: Job) -> ConvertResult:
    """Of a job that there was nothing much to do for."""
    return ConvertResult(
        status=CONVERTED,
        reason="",
        source=NamedImage(job.request.source, descriptor()),
        target=NamedImage(job.request.target, descriptor()),
        builder=BuilderIdentity("tests", "1"),
        fingerprint="f" * 64,
        job=job.id,
        images=(),
        kept=(),
        dropped=(),
        verified="tree",
        duration_s=0.25,
    )


@dataclass
class Script:
    """The `Runner` of the tests. An image does what is in `actions` for its name, or succeeds at once."""

    actions: dict[str, Action] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    swept: list[int] = field(default_factory=list)
    fail_sweep: Exception | None = None

    async def convert(self, job: Job, progress: Progress) -> ConvertResult:
        name = job.request.source.rpartition("/")[2].partition(":")[0]
        self.begun.append(name)
        if name in self.actions:
            await self.actions[name](job, progress)
        return result(job)

    async def preview(self, request: JobRequest) -> Preview:
        raise UnsupportedError("the tests preview nothing")

    async def check(
        self, image: str, against: str, namespace: str, *, verify: str, platforms: Sequence[str]
    ) -> CheckResult:
        raise UnsupportedError("the tests check nothing")

    async def sweep(self) -> None:
        self.swept.append(len(self.begun))
        if self.fail_sweep:
            raise self.fail_sweep


class Gate:
    """An action that tells that it has begun, and waits until the test lets it go."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self.cancelled = False

    async def __call__(self, job: Job, progress: Progress) -> None:
        self.reached.set()
        try:
            await self.open.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise


@asynccontextmanager
async def open_queue(
    path: Path,
    runner: Script,
    *,
    free: Callable[[Path], Free] = lambda _: PLENTY,
    clock: Callable[[], float] | None = None,
    dependencies: Dependencies | None = None,
    **limits: Any,
) -> AsyncIterator[JobQueue]:
    """A queue over the journal at this path, which does not run yet."""
    given: dict[str, Any] = {"running": 1, "first_pause_s": 0.001, "admission_pause_s": 0.01}
    clocks: dict[str, Any] = {"clock": clock} if clock else {}
    async with open_journal(path) as journal:
        yield JobQueue(
            journal, runner, QueueLimits(**given | limits), dependencies=dependencies, measure=free, **clocks
        )


@asynccontextmanager
async def running_queue(path: Path, runner: Script, **settings: Any) -> AsyncIterator[JobQueue]:
    """A queue that does jobs, cut short at the end as by the end of the daemon."""
    async with open_queue(path, runner, **settings) as queue, anyio.create_task_group() as tasks:
        tasks.start_soon(queue.run)
        with anyio.fail_after(100):
            yield queue
        tasks.cancel_scope.cancel()


async def until(queue: JobQueue, job_id: str, *states: JobState) -> Job:
    """Wait for a job to be in one of these states, or in the end."""
    async with queue.watch(job_id) as values:
        async for job in values:
            if job.state in states:
                return job
    return job
