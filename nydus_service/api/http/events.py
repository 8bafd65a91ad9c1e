"""Jobs as server-sent events. Beats show that an idle stream is alive.

    retry: 2000                           once, at the beginning
    event: job / id: ID-REVISION / data: the job as JSON
    event: end / data: {}                 after the last value of a job that is finished
    : beat                                when nothing else was sent for a while

A client that reconnects with Last-Event-ID does not get the value that it already has. If that value is the
last of a finished job, the answer is 204, which makes browsers stop reconnecting.

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
    """Format one event. JSON from `encode` has no line ends, so one data line suffices."""
    return b"event: job\nid: %s\ndata: %s\n\n" % (event_id(job).encode(), encode(fields))


def is_gone(request: web.Request) -> bool:
    """Whether the client has closed the connection."""
    return request.transport is None or request.transport.is_closing()


async def follow(
    jobs: AsyncIterator[Job], closing: asyncio.Event, beat_s: float
) -> AsyncGenerator[Job | None, None]:
    """Yield the values of a watch, and None after each `beat_s` seconds without one, until the server closes.

    Close it before the watch (`aclosing`): a task of its own waits for the watch. The wait for the next value
    outlives a beat, because a cancelled `anext` would end the watch.
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
        await asyncio.wait(waiting)  # awaiting each would raise its CancelledError here
