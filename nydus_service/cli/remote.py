"""Access to the daemon: connects to it, adapts requests to it, and follows its jobs."""

import argparse
import os.path
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Final

import anyio

from nydus_service.api.client import ApiClient, open_client
from nydus_service.api.errors import error_of
from nydus_service.cli.output import note
from nydus_service.cli.progress import open_drawing
from nydus_service.cli.table import format_seconds
from nydus_service.config.environment import load_settings
from nydus_service.convert.result import ConvertResult
from nydus_service.errors import EXIT_INTERRUPTED, NydusServiceError, UnreachableError, with_subject
from nydus_service.jobs.job import Job, JobState
from nydus_service.jobs.queue import ShuttingDown
from nydus_service.oci.reference import ImageReference
from nydus_service.options.option import bootstrap_of

PATIENCE_S: Final = 60.0
"""Seconds to wait for a daemon that has gone: after a restart it continues its jobs."""

_PAUSE_S = 0.5

Note = Callable[[str], None]


class JobCancelled(NydusServiceError):
    """The awaited job was cancelled."""

    code, exit_code = "cancelled", EXIT_INTERRUPTED


def open_daemon(args: argparse.Namespace) -> AbstractAsyncContextManager[ApiClient]:
    """Connect to the daemon that `--socket` or $NYDUS_SERVICE_SOCKET names, or the usual one."""
    return open_client(Path(args.socket) if args.socket else load_settings().service_socket)


def absolute(reference: ImageReference) -> str:
    """Format a reference with an absolute path, because the daemon has another working directory."""
    return str(replace(reference, path=os.path.abspath(reference.path)) if reference.path else reference)


def absolute_dict(text: str) -> str:
    """Format the value of `--chunk-dict` with an absolute path. Raises: UsageError: it is not a reference."""
    path = bootstrap_of(text)
    return absolute(ImageReference.parse(text)) if path is None else f"bootstrap={path.absolute()}"


def make_note(args: argparse.Namespace) -> Note:
    """Return the function that prints notes about a job on stderr; silent if progress is not shown there."""
    silent = args.quiet or (args.format == "json" and not sys.stderr.isatty())
    return _ignore if silent else note


async def follow(args: argparse.Namespace, client: ApiClient, job_id: str) -> Job:
    """Show a job while it runs, like a local conversion. Returns the finished job.

    If the daemon ends, this waits for it to come back, and the job continues.

    Raises:
        UnreachableError: the daemon did not come back.
    """
    note = make_note(args)
    with ExitStack() as shown:
        draw, attempt, waiting = None, -1, ""
        async with aclosing(watch_patiently(client, job_id, note)) as jobs:
            async for job in jobs:
                if job.attempts != attempt:
                    shown.close()
                    draw, attempt = shown.enter_context(open_drawing(args)), job.attempts
                if draw is not None:
                    draw(job.progress)
                if job.is_finished:
                    return job
                now = _waiting(job)
                if now != waiting:
                    waiting = now
                    if now:
                        note(f"job {job.id}: {now}")
    raise UnreachableError(f"the daemon at {client.address} stopped telling of job {job_id}")


async def watch_patiently(client: ApiClient, job_id: str, note: Note) -> AsyncGenerator[Job, None]:
    """`ApiClient.watch` that survives restarts of the daemon of up to `PATIENCE_S`."""
    gone_at: float | None = None
    while True:
        try:
            async with aclosing(client.watch(job_id)) as jobs:
                async for job in jobs:
                    gone_at = None
                    yield job
            return
        except (UnreachableError, ShuttingDown) as exc:
            if gone_at is None:
                gone_at = anyio.current_time()
                note(f"{exc}; waiting for it to come back")
            elif anyio.current_time() > gone_at + PATIENCE_S:
                raise
        await anyio.sleep(_PAUSE_S)


def result_of(job: Job) -> ConvertResult:
    """The result of a finished job.

    Raises:
        NydusServiceError: the job failed; the kind of error is that of the job.
        JobCancelled: the job was cancelled.
    """
    if job.state is JobState.CANCELLED:
        raise JobCancelled(f"job {job.id} was cancelled")
    if job.error is not None and job.state is JobState.FAILED:
        raise error_of(job.error.code, with_subject(job.error.message, f"job {job.id}"))
    if job.result is None:
        raise NydusServiceError(f"job {job.id} is {job.state}, and has no result")
    return job.result


def _ignore(text: str) -> None:
    """Print nothing."""


def _waiting(job: Job) -> str:
    """The reason why a job waits; empty if it does not."""
    if job.state is not JobState.QUEUED:
        return ""
    if job.error is not None:
        pause = max(job.not_before - time.time(), 0)
        reason = job.error.message.splitlines()[0]
        return f"try {job.attempts} failed, the next one is in {format_seconds(pause)}: {reason}"
    return job.progress.stage or "waiting for its turn"
