"""A job_service of jobs in memory, whose jobs move when a test says so, and the jobs to put on it."""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from nydus_service.convert.encoding import from_json
from nydus_service.convert.result import ConvertResult
from nydus_service.errors import NydusServiceError, UsageError
from nydus_service.jobs.job import (
    ImageStage,
    ImageStatus,
    Job,
    JobError,
    JobNotFound,
    JobProgress,
    JobRequest,
    JobState,
    LayerState,
    LayerStatus,
)
from nydus_service.jobs.service import Submitted
from nydus_service.options.convert import ConvertOptions

BEGIN = 1_795_000_000.0
"""When the first job of a job_service comes, Unix seconds."""


def digest_of(number: int) -> str:
    return f"sha256:{hashlib.sha256(str(number).encode()).hexdigest()}"


def a_job(number: int = 1, state: JobState = JobState.QUEUED, **fields: Any) -> Job:
    """A job like those that there are, the fuller the further it is."""
    name = f"registry.example.com/team/app-{number}:1.{number}"
    request = JobRequest(
        source=name, target=f"{name}-nydus", namespace="k8s.io", options=ConvertOptions(jobs=1)
    )
    made: dict[str, Any] = {
        "id": f"{number:032x}",
        "request": request,
        "origin": ("grpc", "http", "label", "event", "cli")[number % 5],
        "state": state,
        "created_at": BEGIN + number,
        "progress": progress_of(number, state),
    }
    if state is not JobState.QUEUED:
        made |= {"started_at": BEGIN + number + 0.25, "attempts": 1, "revision": 5}
    if state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED):
        made |= {"finished_at": BEGIN + number + 12.5}
    if state is JobState.FAILED:
        made |= {"error": JobError(code="corrupt_input", message=_FAILED, retryable=False)}
    if state is JobState.DONE:
        made |= {"result": result_of(number)}
    return Job(**made | fields)


_FAILED = f"layer {digest_of(77)}: gzip stream ends after 1048576 bytes\n  pull the image again"


def progress_of(number: int, state: JobState, layers: int = 4) -> JobProgress:
    """Of the layers the lower half is packed in a running job."""
    if state is JobState.QUEUED:
        return JobProgress()
    packed = layers // 2 if state in (JobState.RUNNING, JobState.FAILED, JobState.CANCELLED) else layers
    statuses = tuple(_layer(number, index, packed) for index in range(layers))
    verified = state is JobState.DONE
    image = ImageStatus(
        image="linux/amd64",
        stage=ImageStage.VERIFIED if verified else ImageStage.WAITING,
        merge_duration_s=0.21 if verified else 0,
        verify_duration_s=0.87 if verified else 0,
        entries=3211 if verified else 0,
    )
    return JobProgress(
        stage={"verifying": "verifying", "done": "finishing"}.get(state.value, "packing"),
        layers=statuses,
        images=(image,),
        bytes_in=sum(each.bytes_in for each in statuses),
        bytes_total=sum(each.size for each in statuses),
        bytes_out=sum(each.bytes_out for each in statuses),
        eta_s=7.5 if state is JobState.RUNNING else None,
    )


def _layer(number: int, index: int, packed: int) -> LayerStatus:
    size = (index + 1) * 21_000_000 + number
    if index > packed:
        return LayerStatus(digest=digest_of(number * 100 + index), size=size)
    done = index < packed
    return LayerStatus(
        digest=digest_of(number * 100 + index),
        size=size,
        state=LayerState.PACKED if done else LayerState.PACKING,
        bytes_in=size if done else size // 3,
        bytes_out=size * 9 // 10 if done else size // 4,
        blob=digest_of(number * 100 + index + 50) if done else "",
        duration_s=1.5 + index if done else 0,
    )


def result_of(number: int) -> ConvertResult:
    return from_json(result_json(number), ConvertResult)


def result_json(number: int) -> dict[str, Any]:
    layers = progress_of(number, JobState.DONE).layers
    return {
        "status": "converted",
        "source": {"name": "app", "descriptor": descriptor(number + 1000, 1234)},
        "target": {"name": "app-nydus", "descriptor": descriptor(number + 2000, 1711)},
        "job": f"{number:032x}",
        "builder": {"name": "nydus-image-py", "version": "0.1.0"},
        "fingerprint": "ab" * 32,
        "verified": "tree",
        "images": [
            {
                "platform": "linux/amd64",
                "source": descriptor(number + 3000, 1000),
                "target": descriptor(number + 4000, 1500),
                "config": descriptor(number + 5000, 2000),
                "layers": [
                    {
                        "source": descriptor_of(layer.digest, layer.size),
                        "blob": descriptor_of(layer.blob, layer.bytes_out),
                        "duration_s": layer.duration_s,
                    }
                    for layer in layers
                ],
                "bootstrap": descriptor(number + 6000, 40_000) | {"diff_id": digest_of(number + 7000)},
                "merge_duration_s": 0.21,
                "verification": {
                    "verdict": "equal",
                    "mode": "tree",
                    "entries": 3211,
                    "bytes": 210_000_000,
                    "bytes_read": 0,
                    "legitimate": [{"reason": "symlink mode", "count": 12}],
                    "duration_s": 0.87,
                },
            }
        ],
        "kept": [],
        "dropped": [],
        "duration_s": 12.25,
    }


def descriptor(number: int, size: int) -> dict[str, Any]:
    return descriptor_of(digest_of(number), size)


def descriptor_of(digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size}


class MemoryBoard:
    """Implements `jobs.service.JobService`. `refusal` is raised by whatever would change something."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.refusal: NydusServiceError | None = None
        self.submitted: list[tuple[JobRequest, str, int]] = []
        self.accepted = asyncio.Event()
        self._numbers = itertools.count(len(jobs) + 1)
        self._watchers: list[tuple[str | None, asyncio.Queue[Job]]] = []
        self._watchers_changed = asyncio.Event()

    async def submit(self, request: JobRequest, *, origin: str, priority: int = 0) -> Submitted:
        self._refuse()
        self.submitted.append((request, origin, priority))
        self.accepted.set()
        for job in self.jobs.values():
            if job.request == request and not job.is_finished:
                return Submitted(job, True)
        job = a_job(next(self._numbers), request=request, origin=origin, priority=priority)
        self.put(job)
        return Submitted(job, False)

    def get(self, job_id: str) -> Job:
        try:
            return self.jobs[job_id]
        except KeyError as exc:
            raise JobNotFound(f"no job {job_id!r}") from exc

    def list(
        self, *, image: str = "", states: Sequence[JobState] = (), limit: int = 100, before: str = ""
    ) -> list[Job]:
        jobs = sorted(self.jobs.values(), key=lambda job: job.created_at, reverse=True)
        if before:
            jobs = jobs[jobs.index(self.get(before)) + 1 :]
        return [
            job
            for job in jobs
            if (not image or image in (job.request.source, job.request.target))
            and (not states or job.state in states)
        ][:limit]

    @asynccontextmanager
    async def watch(self, job_id: str | None = None) -> AsyncIterator[AsyncIterator[Job]]:
        entry: tuple[str | None, asyncio.Queue[Job]] = (job_id, asyncio.Queue())
        if job_id is not None:
            entry[1].put_nowait(self.get(job_id))
        self._watchers.append(entry)
        self._watchers_changed.set()
        try:
            yield self._follow(*entry)
        finally:
            self._watchers.remove(entry)
            self._watchers_changed.set()

    async def _follow(self, job_id: str | None, queue: asyncio.Queue[Job]) -> AsyncIterator[Job]:
        while True:
            job = await queue.get()
            yield job
            if job_id is not None and job.is_finished:
                return

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    async def until_watched_by(self, count: int) -> None:
        """Wait until so many watch."""
        async with asyncio.timeout(100):
            while len(self._watchers) != count:
                self._watchers_changed.clear()
                await self._watchers_changed.wait()

    async def cancel(self, job_id: str) -> Job:
        self._refuse()
        job = self.get(job_id)
        return job if job.is_finished else self.move(job_id, JobState.CANCELLED)

    async def retry(self, job_id: str) -> Job:
        self._refuse()
        job = self.get(job_id)
        if job.state not in (JobState.FAILED, JobState.CANCELLED):
            raise UsageError(f"job {job_id} is {job.state}")
        return self.put(
            msgspec.structs.replace(
                job,
                state=JobState.QUEUED,
                error=None,
                finished_at=None,
                progress=JobProgress(),
                revision=job.revision + 1,
            )
        )

    def move(self, job_id: str, state: JobState, **fields: Any) -> Job:
        """Put a job into a state, with what belongs to that."""
        old = self.get(job_id)
        number = int(job_id, 16)
        new = a_job(
            number,
            state,
            request=old.request,
            origin=old.origin,
            created_at=old.created_at,
            revision=old.revision + 1,
            **fields,
        )
        return self.put(new)

    def put(self, job: Job) -> Job:
        self.jobs[job.id] = job
        for job_id, queue in self._watchers:
            if job_id in (None, job.id):
                queue.put_nowait(job)
        return job

    def _refuse(self) -> None:
        if self.refusal is not None:
            raise self.refusal
