"""The service `nydus_service.v1.Converter`: it checks arguments, calls the job service, and answers.

protos/nydus_service/v1/converter.proto documents each method. `StatusInterceptor` checks the requests first,
and turns the errors that a method raises into statuses.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio

from nydus_service.api.errors import TooManyCalls
from nydus_service.api.messages import (
    builder_message,
    job_message,
    named_image,
    outage_message,
    state_from,
    to_json,
)
from nydus_service.api.requests import RequestReader, reference
from nydus_service.api.v1 import converter_pb2 as pb
from nydus_service.api.v1.converter_pb2_grpc import ConverterServicer
from nydus_service.errors import UnsupportedError, UsageError
from nydus_service.jobs.dependencies import Dependencies
from nydus_service.jobs.job import Job, JobNotFound
from nydus_service.jobs.queue import ShuttingDown
from nydus_service.jobs.service import JobService, Runner
from nydus_service.observe.logs import log_context
from nydus_service.oci.platform import Platform
from nydus_service.options.convert import PLATFORMS_MAX, VERIFY_MODES
from nydus_service.rpc.cancellation import await_rpc

if TYPE_CHECKING:
    import grpc.aio

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Converter"]

PAGE_SIZE: Final = 100
PAGE_SIZE_MAX: Final = 1000
PAGE_BYTES_MAX: Final = 1 << 20
"""Largest List answer, in bytes: far below the 4 MiB that clients accept by default."""

PRIORITY_MAX: Final = 1000
PREFIX_MIN: Final = 4
ID_LENGTH: Final = 32
WATCHERS_MAX: Final = 256
CHECKS_MAX: Final = 4
"""Concurrent checks and plans; others wait. The runner limits the processes that they start."""

_log = logging.getLogger("nydus_service.api")


class ConverterService(ConverterServicer):
    """The methods, over a job service and a runner. `end_watches` ends the open watches."""

    def __init__(
        self, job_service: JobService, runner: Runner, reader: RequestReader, dependencies: Dependencies
    ) -> None:
        self._dependencies = dependencies
        self._job_service = job_service
        self._runner = runner
        self.reader = reader
        """May be replaced while the service runs."""
        self._checks = anyio.CapacityLimiter(CHECKS_MAX)
        self._watches: set[anyio.CancelScope] = set()
        self._ending = False

    def end_watches(self) -> None:
        """End all current and later watches with ShuttingDown."""
        self._ending = True
        for scope in self._watches:
            scope.cancel()

    async def Submit(self, request: pb.SubmitRequest, context: object) -> pb.SubmitResponse:
        if abs(request.priority) > PRIORITY_MAX:
            raise UsageError(f"priority {request.priority} is not from {-PRIORITY_MAX} to {PRIORITY_MAX}")
        asked = self.reader.read(request.request)
        submitted = await self._job_service.submit(asked, origin="grpc", priority=request.priority)
        with log_context(job=submitted.job.id, image=asked.source):
            _log.info("joined" if submitted.joined else "accepted")
        return pb.SubmitResponse(job=job_message(submitted.job), joined=submitted.joined)

    async def Get(self, request: pb.GetRequest, context: object) -> pb.Job:
        if len(request.id) >= ID_LENGTH:
            return job_message(self._job_service.get(request.id))
        return job_message(self._find(request.id))

    async def List(self, request: pb.ListRequest, context: object) -> pb.ListResponse:
        limit = min(request.page_size or PAGE_SIZE, PAGE_SIZE_MAX)
        try:
            jobs = self._job_service.list(
                image=request.image,
                states=[state_from(value) for value in request.states],
                limit=limit + 1,  # one extra shows whether there are more
                before=request.page_token,
            )
        except JobNotFound as exc:
            raise UsageError("this page token is no longer good: begin with the first page") from exc
        page = pb.ListResponse(outages=map(outage_message, self._dependencies.outages))
        size = 0
        for job in jobs[:limit]:
            message = job_message(job, brief=True)
            size += message.ByteSize()
            if page.jobs and size > PAGE_BYTES_MAX:
                break
            page.jobs.append(message)
        if len(page.jobs) < len(jobs):
            page.next_page_token = page.jobs[-1].id
        return page

    async def Watch(  # type: ignore[override]  # it writes itself, so `end_watches` also ends a slow write
        self, request: pb.WatchRequest, context: "grpc.aio.ServicerContext[Any, pb.Job]"
    ) -> None:
        with self._watching() as scope:
            async with self._job_service.watch(request.id or None) as jobs:
                async for job in jobs:
                    await await_rpc(context.write(job_message(job)))
        if scope.cancelled_caught:
            raise _ending()

    async def Cancel(self, request: pb.CancelRequest, context: object) -> pb.Job:
        job = await self._job_service.cancel(_whole(request.id))
        _log.info("a client cancels the job")
        return job_message(job)

    async def Retry(self, request: pb.RetryRequest, context: object) -> pb.Job:
        job = await self._job_service.retry(_whole(request.id))
        _log.info("a client retries the job")
        return job_message(job)

    async def Plan(self, request: pb.PlanRequest, context: object) -> pb.PlanResponse:
        asked = self.reader.read(request.request)
        async with self._checks:
            preview = await self._runner.preview(asked)
        return pb.PlanResponse(
            unchanged=bool(preview.reason),
            reason=preview.reason,
            source=named_image(preview.source),
            target=preview.target.name,
            builder=builder_message(preview.builder),
            fingerprint=preview.fingerprint,
            json=to_json(preview),
        )

    async def Check(self, request: pb.CheckRequest, context: object) -> pb.CheckResponse:
        images = [reference("image", request.image)]
        if request.against:
            images.append(reference("against", request.against))
        verify = request.verify or "tree"
        if verify == "none" or verify not in VERIFY_MODES:
            raise UsageError(f"verification {verify!r} is neither tree nor full")
        if len(request.platforms) > PLATFORMS_MAX:
            raise UsageError(f"{len(request.platforms)} platforms, at most {PLATFORMS_MAX} are allowed")
        for text in request.platforms:
            Platform.parse(text)
        async with self._checks:
            found = await self._runner.check(
                str(images[0]),
                str(images[1]) if request.against else "",
                self.reader.namespace_of(request.namespace, *images),
                verify=verify,
                platforms=list(request.platforms),
            )
        return pb.CheckResponse(good=found.is_good, verdict=found.verdict, json=to_json(found))

    async def Reconvert(self, request: pb.ReconvertRequest, context: object) -> pb.ReconvertResponse:
        raise UnsupportedError("reconvert is not there yet")

    def _find(self, prefix: str) -> Job:
        """Find the job whose id begins with these digits.

        Raises:
            UsageError: there are too few digits, or several ids begin with them.
            JobNotFound: no id begins with them.
        """
        if len(prefix) < PREFIX_MIN:
            raise UsageError(f"job {prefix!r}: give the id, or at least {PREFIX_MIN} of its first digits")
        found = [job for job in self._all() if job.id.startswith(prefix)]
        if not found:
            raise JobNotFound(f"no job's id begins with {prefix!r}")
        if len(found) > 1:
            raise UsageError(f"job {prefix!r}: several ids begin so, {found[0].id} and {found[1].id} of them")
        return found[0]

    def _all(self) -> Iterator[Job]:
        before = ""
        while jobs := self._job_service.list(limit=PAGE_SIZE_MAX, before=before):
            yield from jobs
            before = jobs[-1].id

    @contextmanager
    def _watching(self) -> Iterator[anyio.CancelScope]:
        """Count a watch, and let `end_watches` end it.

        Raises:
            TooManyCalls: the maximum number of watches is open already.
            ShuttingDown: the daemon ends.
        """
        if self._ending:
            raise _ending()
        if len(self._watches) >= WATCHERS_MAX:
            raise TooManyCalls(f"{WATCHERS_MAX} clients watch already; end one, or ask again later")
        with anyio.CancelScope() as scope:
            self._watches.add(scope)
            try:
                yield scope
            finally:
                self._watches.discard(scope)


def _ending() -> ShuttingDown:
    return ShuttingDown("the daemon ends; jobs go on when it is started again")


def _whole(job_id: str) -> str:
    if not job_id:
        raise UsageError("the request names no job")
    return job_id
