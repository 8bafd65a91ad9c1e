"""The paths under /api/v1/conversions: submit, list, follow, cancel and retry jobs."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from nydus_service.api.http import answers, events
from nydus_service.api.http.submissions import Submission, SubmissionReader
from nydus_service.convert.encoding import encode
from nydus_service.errors import UsageError
from nydus_service.jobs.job import Job, JobState
from nydus_service.jobs.queue import ShuttingDown
from nydus_service.jobs.service import JobService, Submitted
from nydus_service.observe.logs import log_context

LIMIT_DEFAULT: Final = 1000
"""Jobs in an answer. acceld returns all its jobs; few daemons have more than this."""

LIMIT_MAX: Final = 10_000

PATH: Final = "/api/v1/conversions"

TRUE: Final = ("1", "t", "T", "TRUE", "true", "True")
FALSE: Final = ("", "0", "f", "F", "FALSE", "false", "False")
_LIST_QUERY: Final = ("image", "state", "limit", "before")

_log = logging.getLogger("nydus_service.api")


class Conversions:
    """Handlers of the paths.

    Attributes:
        closing: set when the server ends, so that waiting requests end too.
    """

    def __init__(
        self,
        job_service: JobService,
        reader: SubmissionReader,
        *,
        max_body: int,
        body_timeout_s: float,
        beat_s: float,
    ) -> None:
        self._job_service = job_service
        self.reader = reader
        """May be replaced while the server runs."""
        self._max_body = max_body
        self._body_timeout_s = body_timeout_s
        self._beat_s = beat_s
        self.closing = asyncio.Event()

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post(PATH, self.submit)
        app.router.add_get(PATH, self.list)
        app.router.add_get(f"{PATH}/events", self.follow_all, allow_head=False)
        app.router.add_get(f"{PATH}/{{id}}", self.show)
        app.router.add_get(f"{PATH}/{{id}}/events", self.follow_one, allow_head=False)
        app.router.add_post(f"{PATH}/{{id}}/cancel", self.cancel)
        app.router.add_post(f"{PATH}/{{id}}/retry", self.retry)

    async def submit(self, request: web.Request) -> web.Response:
        """Submit the jobs that the body asks for; with `sync=true` answer when they are finished."""
        wait = _sync(_query(request, ("sync",)).get("sync", ""))
        submission = self.reader.read(await self._body(request))
        origin = "http"
        submitted = [
            await self._job_service.submit(each, origin=origin, priority=submission.priority)
            for each in submission.requests
        ]
        for each in submitted:
            with log_context(job=each.job.id, image=each.job.request.source):
                _log.info("%s for %s", "joined" if each.joined else "accepted", request.remote)
        if submission.webhook:
            _log.info("event %r of %s: nothing to convert", submission.event, request.remote)
        jobs = [await self._finished(request, each.job) for each in submitted] if wait else []
        return _submitted(submission, submitted, jobs)

    async def list(self, request: web.Request) -> web.Response:
        """List jobs, the newest first; the Link header has the next page, if any."""
        query = _query(request, _LIST_QUERY)
        limit = _limit(query.get("limit", ""))
        jobs = self._job_service.list(
            image=query.get("image", ""),
            states=_states(request.query.getall("state", [])),
            limit=limit + 1,  # one extra shows whether there are more
            before=query.get("before", ""),
        )
        response = json_response([answers.job_summary(job) for job in jobs[:limit]])
        if len(jobs) > limit:
            more = [(name, value) for name, value in request.query.items() if name != "before"]
            target = f"{PATH}?{urlencode([*more, ('before', jobs[limit - 1].id)])}"
            response.headers["Link"] = f'<{target}>; rel="next"'
        return response

    async def show(self, request: web.Request) -> web.Response:
        _query(request, ())
        return json_response(answers.job_details(self._job_service.get(request.match_info["id"])))

    async def cancel(self, request: web.Request) -> web.Response:
        _query(request, ())
        job = await self._job_service.cancel(request.match_info["id"])
        _log.info("%s cancels the job", request.remote)
        return json_response(answers.job_details(job))

    async def retry(self, request: web.Request) -> web.Response:
        _query(request, ())
        try:
            job = await self._job_service.retry(request.match_info["id"])
        except UsageError as exc:  # the request is valid, but not in this state of the job
            return json_response(answers.error_answer(exc), status=409)
        _log.info("%s retries the job", request.remote)
        return json_response(answers.job_details(job), status=202)

    async def follow_all(self, request: web.Request) -> web.StreamResponse:
        """Stream every change of any job from now on, without end, with the fields of lists."""
        _query(request, ())
        async with self._follow() as jobs:
            response = await _open_stream(request)
            async for job in jobs:
                await response.write(events.job_event(job, answers.job_summary(job)) if job else events.BEAT)
        return response

    async def follow_one(self, request: web.Request) -> web.StreamResponse:
        """Stream a job with all its fields: its current value, then each change until it is finished."""
        _query(request, ())
        job_id, seen = request.match_info["id"], request.headers.get("Last-Event-ID", "")
        now = self._job_service.get(job_id)
        if now.is_finished and events.event_id(now) == seen:
            return web.Response(status=204)
        async with self._follow(job_id) as jobs:
            response = await _open_stream(request)
            async for job in jobs:
                if job is None:
                    await response.write(events.BEAT)
                elif events.event_id(job) != seen:
                    await response.write(events.job_event(job, answers.job_details(job)))
                if job is not None and job.is_finished:
                    await response.write(events.END)
                    break
        return response

    @asynccontextmanager
    async def _follow(self, job_id: str | None = None) -> AsyncIterator[AsyncIterator[Job | None]]:
        """Watch the job service, with a beat; see `events.follow`."""
        async with self._job_service.watch(job_id) as jobs:
            async with aclosing(events.follow(jobs, self.closing, self._beat_s)) as following:
                yield following

    async def _body(self, request: web.Request) -> bytes:
        """Raises: HTTPRequestTimeout, HTTPRequestEntityTooLarge, HTTPUnsupportedMediaType."""
        limit = self._max_body
        if request.content_length is not None and request.content_length > limit:
            raise web.HTTPRequestEntityTooLarge(limit, request.content_length)
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise web.HTTPUnsupportedMediaType
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await request.read()
        except TimeoutError as exc:
            raise web.HTTPRequestTimeout from exc

    async def _finished(self, request: web.Request, job: Job) -> Job:
        """Wait until a job is finished.

        Raises:
            ShuttingDown: the daemon ends first.
            ConnectionResetError: the client closed the connection.
        """
        async with self._follow(job.id) as jobs:
            async for latest in jobs:
                if latest is not None and latest.is_finished:
                    return latest
                if events.is_gone(request):
                    raise ConnectionResetError
        raise ShuttingDown(f"the daemon ends; job {job.id} goes on when it is started again")


def json_response(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=encode(value), content_type="application/json", status=status)


def _submitted(submission: Submission, submitted: list[Submitted], finished: list[Job]) -> web.Response:
    """Answer a webhook as acceld does, and any other request with the job."""
    failed = next((job for job in finished if job.state is not JobState.DONE), None)
    if failed is not None:
        return json_response(answers.failed_job(failed), status=500)
    if submission.webhook:
        return json_response("Ok")
    job, joined = finished[0] if finished else submitted[0].job, submitted[0].joined
    response = json_response(
        answers.submitted_job(job, joined=joined), status=200 if finished or joined else 202
    )
    response.headers["Location"] = f"{PATH}/{job.id}"
    return response


async def _open_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"Content-Type": events.CONTENT_TYPE, "X-Accel-Buffering": "no"}  # the latter is for nginx
    )
    await response.prepare(request)
    await response.write(events.RETRY)
    return response


def _query(request: web.Request, known: Iterable[str]) -> dict[str, str]:
    """The query's parameters; the last of equal names wins. Raises: UsageError: a name is unknown."""
    for name in request.query:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "this path has none"
            raise UsageError(f"no query parameter {name!r}; {there}")
    return dict(request.query)


def _sync(text: str) -> bool:
    if text not in TRUE + FALSE:
        raise UsageError(f"query parameter sync: {text!r} is neither true nor false")
    return text in TRUE


def _limit(text: str) -> int:
    if not text:
        return LIMIT_DEFAULT
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= LIMIT_MAX):
        raise UsageError(f"query parameter limit: {text!r} is no whole number from 1 to {LIMIT_MAX}")
    return int(text)


def _states(values: list[str]) -> list[JobState]:
    """Parse `state=a,b` and `state=a&state=b`."""
    words = [word for value in values for word in value.split(",") if word]
    try:
        return [JobState(word) for word in words]
    except ValueError as exc:
        raise UsageError(f"query parameter state: {exc}; there are {', '.join(JobState)}") from exc
