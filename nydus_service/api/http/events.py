"""Jobs as server-sent events, for whoever follows them; the stream is told apart from a dead one by beats.

    retry: 2000                           once, at the beginning
    event: job / id: ID-REVISION / data: the job as JSON
    event: end / data: {}                 after the last value of a job that is finished
    : beat                                when nothing else was sent for a while

A client that comes again with Last-Event-ID is spared the value that it has. One that comes for a
finished job that it has seen is answered 204, which tells browsers not to come again.

Source: html.spec.whatwg.org, "Server-sent events".
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from aiohttp import web

from nydus_service.convert.encoding import encode
from nydus_service.jobs.job import Job

CONTENT_TYPE: Final = "text/event-stream"
RETRY: Final = b"retry: 2000\n\n"
BEAT: Final = b": beat\n\n"
END: Final = b"event: end\ndata: {}\n\n"


def event_id(job: Job) -> str:
    return f"{job.id}-{job.revision}"


def job_event(job: Job, fields: object) -> bytes:
    """One event. JSON from `encode` has no line ends, so that one data line will do."""
    return b"event: job\nid: %s\ndata: %s\n\n" % (event_id(job).encode(), encode(fields))


def is_gone(request: web.Request) -> bool:
    """Whether the client has closed the connection."""
    return request.transport is None or request.transport.is_closing()


async def follow(
    jobs: AsyncIterator[Job], closing: asyncio.Event, beat_s: float
) -> AsyncGenerator[Job | None, None]:
    """Pass on what a watch yields, and None whenever that takes `beat_s`; ends when the server closes.

    It is to be closed before the watch is (`aclosing`), since it waits for that in a task of its own. The
    wait for the next value outlives a beat: a cancelled `anext` would end the watch.
    """
    closed = asyncio.ensure_future(closing.wait())
    following: asyncio.Future[Job] | None = None
    try:
        while not closing.is_set():
            following = following or asyncio.ensure_future(anext(jobs))
            await asyncio.wait((following, closed), timeout=beat_s, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                done, following = following, None
                try:
                    job = done.result()
                except StopAsyncIteration:
                    return
                yield job
            elif not closing.is_set():
                yield None
    finally:
        waiting = [task for task in (following, closed) if task is not None]
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)  # unlike awaiting each, this cannot be taken for our own cancellation
