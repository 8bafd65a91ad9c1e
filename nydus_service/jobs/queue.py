"""The job queue of a daemon: it accepts jobs, begins them in order, and reports their changes.

    submit ─► journal.add ─► waiting ─► admitted? ─► job_run ─► runner.convert
                                ▲           │ no: checked again when a job ends, or after a pause
                                └───────────┴─── put off after a transient error

- All state is in memory here, and changes only on the event loop, in `_change`. It notifies the journal, the
  listeners and the watchers, in this order. Nothing is awaited between a decision and its change.
- A job becomes visible when it is on disk. Other changes are written behind. A crash loses at most the
  changes of the last moment, and jobs that were running are tried again.
- A try runs in a scope of its own: an error, even a bug, ends that job only, and a cancel ends its
  builders before the job.
- Nothing polls: the loop in `run` sleeps until a job is queued, ends or becomes due, or a dependency changes
  (dependencies.py). Only while a job waits for space or memory are these measured every few seconds, since
  nothing announces them.
- An outage uses up no tries. While something is unavailable, no job that needs it begins. A try that fails
  meanwhile does not count. Afterwards one job begins, then two, then four, since what has just come back may
  still be slow.
"""

import asyncio
import logging
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec.structs import replace

from nydus_service.config.environment import temporary_root
from nydus_service.convert.references import check_target
from nydus_service.convert.result import ConvertResult
from nydus_service.errors import NydusServiceError, UsageError
from nydus_service.jobs import transitions
from nydus_service.jobs.admission import Free, measure, scratch_estimate
from nydus_service.jobs.cancellation import is_cancelled
from nydus_service.jobs.dependencies import (
    WAITING_FOR_MEMORY,
    WAITING_FOR_SPACE,
    Dependencies,
    Outage,
    needs_of,
)
from nydus_service.jobs.index import JobIndex
from nydus_service.jobs.job import UNDER_WAY, Job, JobError, JobRequest, JobState
from nydus_service.jobs.journal import Journal
from nydus_service.jobs.record import pack, request_key
from nydus_service.jobs.retry import LONGEST_PAUSE_S, describe, known_error, pause_s
from nydus_service.jobs.run import JobRun
from nydus_service.jobs.service import Runner, Submitted
from nydus_service.jobs.subscriptions import Subscriptions
from nydus_service.jobs.waiting import WaitingJobs
from nydus_service.observe.logs import log_context
from nydus_service.oci.reference import ImageReference

log = logging.getLogger(__name__)

_PRIORITIES: Final = range(-(1 << 31), 1 << 31)
_PERSISTED_STAGES: Final = frozenset(("packing", "verifying"))
"""Stages that are saved, so that `transitions.recovered` knows whether builders were at work."""

Listener: TypeAlias = Callable[[Job | None, Job], None]
_Outcome: TypeAlias = ConvertResult | JobError | Outage | None
"""Outcome of a try: its result, its error, the outage that ended it, or None if it was cancelled."""


class QueueFull(NydusServiceError):
    """The maximum number of jobs wait; no more are accepted."""

    code, exit_code = "queue_full", 8


class ShuttingDown(NydusServiceError):
    """The daemon is shutting down."""

    code, exit_code = "shutting_down", 8


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The limits of a job queue.

    Attributes:
        running: maximum number of concurrent jobs.
        queue: maximum number of waiting jobs; more are refused.
        history: finished jobs that are kept.
        retries: further tries after transient errors.
        min_free_space: bytes that stay free in `work_dir`, in addition to what running jobs may take.
        min_free_memory: free bytes of memory that a job needs to begin while another job runs.
        work_dir: where work directories are created; None for the system's directory for temporary files.
        first_pause_s: approximate seconds that a job waits before the first further try.
        admission_pause_s: seconds until space and memory are measured again.
    """

    running: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    queue: int = 10000
    history: int = 1000
    retries: int = 5
    min_free_space: int = 1 << 30
    min_free_memory: int = 256 << 20
    work_dir: Path | None = None
    first_pause_s: float = 5.0
    admission_pause_s: float = 5.0


class JobQueue:
    """The `service.JobService` over a journal and a runner. `run` does the work; `drain` ends it."""

    def __init__(
        self,
        journal: Journal,
        runner: Runner,
        limits: QueueLimits,
        *,
        dependencies: Dependencies | None = None,
        clock: Callable[[], float] = time.time,
        measure: Callable[[Path], Free] = measure,
    ) -> None:
        """
        Args:
            dependencies: of the jobs; another task runs them. None: all is always available.
            clock: returns Unix seconds.
            measure: returns what is free for a work directory at this path; called in a thread.
        """
        self._journal = journal
        self._runner = runner
        self._limits = limits
        self._dependencies = dependencies or Dependencies()
        self._clock = clock
        self._measure = measure
        self._running_max = limits.running
        self._index = JobIndex()
        self._waiting = WaitingJobs()
        self._runs: dict[str, JobRun] = {}
        self._accepting: dict[str, asyncio.Future[None]] = {}
        self._subscriptions = Subscriptions()
        self._listeners: list[Listener] = []
        self._draining = False
        self._wake = anyio.Event()
        self._ended = anyio.Event()
        for record in journal.records:
            job = self._index.load(record)
            if job and job.state is JobState.QUEUED:
                self._wait(job)
        journal.records.clear()

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` on the event loop for each change, in order, with the old value and the new.

        The old value of a new job is None. The listener must not block. Its errors are logged and ignored.
        """
        self._listeners.append(listener)

    @property
    def queued(self) -> int:
        """The number of waiting jobs."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether the maximum of jobs wait, so that no more are accepted."""
        return len(self._waiting) + len(self._accepting) >= self._limits.queue

    def hold(self, job_id: str) -> None:
        """Keep a finished job in addition to the history until `release`, because its end is still reported.

        A listener may hold the job that it is called for. Raises: JobNotFound.
        """
        self._index.hold(job_id)

    def release(self, job_id: str) -> None:
        """End `hold`. A job that is unknown, or not finished, changes nothing."""
        self._index.release(job_id)
        self._prune()

    def count(self, state: JobState) -> int:
        """The number of unfinished jobs in this state."""
        return sum(job.state is state for job in self._index.unfinished())

    # For the API and triggers.

    async def submit(self, request: JobRequest, *, origin: str, priority: int = 0) -> Submitted:
        self._refuse_at_end()
        if priority not in _PRIORITIES:
            raise UsageError(f"priority {priority} does not fit into 32 bits")
        ImageReference.parse(request.source)
        check_target(ImageReference.parse(request.target))
        key = request_key(request)
        await self._until_accepted(key)
        doing = self._index.doing(key)
        if doing:
            return Submitted(self._raise_priority(doing, priority), joined=True)
        self._refuse_more()
        job = Job(
            id=uuid.uuid4().hex, request=request, origin=origin, priority=priority, created_at=self._clock()
        )
        await self._accept(job, key)
        return Submitted(self._shown(self._index.find(job.id) or job), joined=False)

    def get(self, job_id: str) -> Job:
        return self._shown(self._index.get(job_id))

    def list(
        self, *, image: str = "", states: Sequence[JobState] = (), limit: int = 100, before: str = ""
    ) -> list[Job]:
        return list(map(self._shown, self._index.select(image, states, limit, before)))

    @asynccontextmanager
    async def watch(self, job_id: str | None = None) -> AsyncIterator[AsyncIterator[Job]]:
        first = self.get(job_id) if job_id is not None else None
        with self._subscriptions.follow(first) as values:
            async with aclosing(values):
                yield values

    async def cancel(self, job_id: str) -> Job:
        job = self._index.get(job_id)
        if job.is_finished:
            return job
        if job.state is JobState.QUEUED:
            job = transitions.cancelled(job, self._clock())
        elif not job.cancel_requested:
            job = transitions.changed(job, cancel_requested=True)
        self._change(job)
        if job_id in self._runs:
            self._runs[job_id].scope.cancel()
        await self._journal.flush()
        return job

    async def retry(self, job_id: str) -> Job:
        job = self._index.get(job_id)
        if job.state is JobState.QUEUED:
            return await self._hurry(job)
        if job.state is JobState.DONE:
            raise UsageError(f"job {job_id} is done: submit its request with the option force to repeat it")
        if not job.is_finished:
            raise UsageError(f"job {job_id} is under way: cancel it first")
        if job.is_lost:
            raise UsageError(f"job {job_id} has lost its options: submit the request again")
        key = request_key(job.request)
        await self._until_accepted(key)
        doing = self._index.doing(key)
        if doing and doing.id != job_id:
            raise UsageError(f"job {doing.id} does what job {job_id} should")
        if doing:
            return doing  # another call was faster
        self._refuse_more()
        self._index.hold(job_id)
        again = transitions.asked_again(job)
        await self._accept(again, key)
        return self._index.find(job_id) or again

    # For the daemon.

    async def run(self) -> None:
        """Run jobs until cancelled. Jobs that are running then are queued again."""
        self._recover()
        self._prune()
        await self._sweep()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow_dependencies)
            while True:
                self._wake = anyio.Event()
                pause = await self._start_due(tasks)
                with anyio.move_on_after(pause):
                    await self._wake.wait()

    async def drain(self, timeout_s: float) -> None:
        """Accept and begin no more jobs. Jobs that still run after `timeout_s` seconds are queued again.

        All jobs are on disk then, unless the disk is full. `run` goes on, with nothing to do.
        """
        self._draining = True
        with anyio.move_on_after(timeout_s):
            await self._until_idle()
        for job_run in self._runs.values():
            job_run.scope.cancel()
        await self._until_idle()
        await self._journal.flush()

    async def _until_idle(self) -> None:
        while self._runs:
            await self._ended.wait()

    def _recover(self) -> None:
        for job in self._index.unfinished():
            if job.state in UNDER_WAY and job.id not in self._runs:
                recovered = transitions.recovered(job, self._clock())
                with log_context(job=job.id, image=job.request.source):
                    log.warning("the daemon had ended while it was %s: now %s", job.state, recovered.state)
                self._change(recovered)

    async def _sweep(self) -> None:
        try:
            await self._runner.sweep()
        except NydusServiceError as exc:
            log.warning("what dead processes left could not be removed, the next job tries it again: %s", exc)
        except Exception:
            log.exception("what dead processes left could not be removed")

    # Acceptance.

    def _refuse_at_end(self) -> None:
        if self._draining:
            raise ShuttingDown("the daemon ends and accepts no jobs; ask again when it is back")

    def _refuse_more(self) -> None:
        self._refuse_at_end()
        if self.is_full:
            raise QueueFull(f"{self._limits.queue} jobs wait already, no more may; ask again later")

    async def _accept(self, job: Job, key: str) -> None:
        """Write a queued job to disk, then add it to the queue, even if this call is cancelled meanwhile."""
        accepting = self._journal.add(pack(job))
        self._accepting[key] = accepting
        accepting.add_done_callback(partial(self._accepted, job, key))
        await asyncio.shield(accepting)

    async def _until_accepted(self, key: str) -> None:
        """Wait until no equal request is being accepted. Raises: the error of that request, if it fails."""
        while accepting := self._accepting.get(key):
            await asyncio.shield(accepting)
            # A callback removes the future after it is done. Awaiting a done future does not yield to the
            # event loop, so without this checkpoint the loop would find the future here forever.
            await anyio.lowlevel.checkpoint()

    def _accepted(self, job: Job, key: str, accepting: "asyncio.Future[None]") -> None:
        del self._accepting[key]
        if accepting.cancelled() or accepting.exception():
            self._index.release(job.id)
        else:
            self._change(job, persist=False)

    def _raise_priority(self, job: Job, priority: int) -> Job:
        if priority > job.priority:
            job = transitions.changed(job, priority=priority)
            self._change(job)
        return job

    async def _hurry(self, job: Job) -> Job:
        if job.not_before:
            job = transitions.changed(job, not_before=0, error=None)
            self._change(job)
            await self._journal.flush()
        return job

    # Work.

    async def _follow_dependencies(self) -> None:
        """Reconsider what may begin whenever a dependency changes, and begin slowly after an outage."""
        away = self._dependencies.away
        while True:
            await self._dependencies.changed.wait()
            before, away = away, self._dependencies.away
            if before - away:
                self._running_max = 1
            self._wake.set()
            for job in self._index.unfinished():
                if job.id in self._waiting:
                    self._subscriptions.tell(self._shown(job))

    async def _start_due(self, tasks: TaskGroup) -> float | None:
        """Begin the jobs that may begin. Returns seconds until the next check; None to wait for a change."""
        while not self._draining and len(self._runs) < self._running_max:
            now = self._clock()
            job_id = self._waiting.first(now, self._dependencies.away)
            if job_id is None:
                return self._pause(now)
            lacking = await self._find_lack(self._index.get(job_id))
            if self._draining or self._waiting.first(self._clock(), self._dependencies.away) != job_id:
                continue  # the queue changed during the measurement
            if lacking:
                self._hold_up(self._index.get(job_id), lacking)
                return self._limits.admission_pause_s
            self._begin(tasks, self._index.get(job_id))
        return None

    def _pause(self, now: float) -> float | None:
        due = self._waiting.next_due()
        if due is None:
            return None
        if due - now > LONGEST_PAUSE_S:  # the clock was set back: no pause is this long
            self._waiting.hurry()
            return 0
        return due - now

    async def _find_lack(self, job: Job) -> str:
        """Returns: the stage of a job that lacks space or memory to begin; empty if it may begin."""
        work_dir = self._limits.work_dir or temporary_root()
        free = await anyio.to_thread.run_sync(self._measure, work_dir)
        taking = [job, *map(self._index.get, self._runs)]
        if free.space < self._limits.min_free_space + sum(map(scratch_estimate, taking)):
            return WAITING_FOR_SPACE
        if self._runs and free.memory < self._limits.min_free_memory:
            return WAITING_FOR_MEMORY
        return ""

    def _hold_up(self, job: Job, lacking: str) -> None:
        if job.progress.stage != lacking:
            with log_context(job=job.id, image=job.request.source):
                log.warning("%s: too little is free to begin", lacking)
            self._change(
                transitions.changed(job, progress=replace(job.progress, stage=lacking)), persist=False
            )

    def _begin(self, tasks: TaskGroup, job: Job) -> None:
        job = transitions.begun(job, self._clock())
        self._runs[job.id] = JobRun(job, self._publish)
        self._change(job)
        tasks.start_soon(self._work, job, self._runs[job.id], name=f"job {job.id}")

    async def _work(self, job: Job, job_run: JobRun) -> None:
        outcome: _Outcome = None
        with log_context(job=job.id, image=job.request.source):
            try:
                log.info("begins, try %d", job.attempts)
                with job_run.scope:
                    outcome = await self._convert(job, job_run)
            finally:
                self._end(job.id, job_run, outcome)

    async def _convert(self, job: Job, job_run: JobRun) -> _Outcome:
        try:
            return await self._runner.convert(job, job_run.take)
        except Exception as exc:
            if is_cancelled():  # meanwhile, so the error does not matter
                return None
            cause = known_error(exc)
            if not isinstance(cause, NydusServiceError):
                log.exception("a defect of nydus-service")
            error = describe(cause, job.origin)
            outage = await self._dependencies.check(needs_of(job.request)) if error.retryable else None
            if outage:
                log.warning("the try does not count, because %s: %s", outage.reason, error.message)
            return outage or error
        except anyio.get_cancelled_exc_class():
            if is_cancelled():
                raise
            # gRPC cancels the calls of a closed channel. The queue did not cancel this job, so it fails.
            log.exception("a defect of nydus-service")
            return describe(RuntimeError("the work was cancelled, but by nobody"), job.origin)

    def _end(self, job_id: str, job_run: JobRun, outcome: _Outcome) -> None:
        job_run.end()
        del self._runs[job_id]
        job = replace(self._index.get(job_id), progress=job_run.progress())
        if not isinstance(outcome, Outage):
            self._running_max = min(2 * self._running_max, self._limits.running)
        job = self._next(job, outcome)
        log.log(
            logging.WARNING if job.error else logging.INFO,
            "%s after try %d%s",
            job.state,
            job.attempts,
            f": {job.error.message}" if job.error else "",
        )
        self._change(job)
        ended, self._ended = self._ended, anyio.Event()
        ended.set()
        self._wake.set()

    def _next(self, job: Job, outcome: _Outcome) -> Job:
        """The next value of a job whose try has ended."""
        now = self._clock()
        if isinstance(outcome, ConvertResult):
            return transitions.done(job, now, outcome)
        if job.cancel_requested:
            return transitions.cancelled(job, now)
        if outcome is None or isinstance(outcome, Outage):
            return transitions.put_back(job)
        if outcome.retryable and job.retries < self._limits.retries:
            pause = pause_s(job.retries, self._limits.first_pause_s, random.random())
            return transitions.put_off(job, outcome, now + pause)
        return transitions.failed(job, now, outcome)

    def _publish(self, job_id: str, stage: str | None) -> None:
        job = self._index.get(job_id)
        state = JobState.VERIFYING if stage == "verifying" else job.state
        progress = self._runs[job_id].progress()
        self._change(
            transitions.changed(job, state=state, progress=progress), persist=stage in _PERSISTED_STAGES
        )

    # Every change.

    def _change(self, job: Job, *, persist: bool = True) -> None:
        old = self._index.find(job.id)
        record = self._index.put(job)
        if persist:
            self._journal.save(record or pack(job))
        if job.state is JobState.QUEUED:
            self._wait(job)
            self._wake.set()
        else:
            self._waiting.remove(job.id)
        self._tell(old, job)
        if job.is_finished:
            self._prune()

    def _wait(self, job: Job) -> None:
        needs = needs_of(job.request)
        self._dependencies.require(needs)
        self._waiting.put(job, self._index.number(job.id), needs)

    def _shown(self, job: Job) -> Job:
        """The job as clients see it: while it waits for a dependency, its stage says so."""
        if job.state is not JobState.QUEUED or job.id not in self._waiting:
            return job
        outage = self._dependencies.outage(self._waiting.needs(job.id))
        return replace(job, progress=replace(job.progress, stage=outage.stage)) if outage else job

    def _prune(self) -> None:
        for job_id in self._index.prune(self._limits.history):
            self._journal.forget(job_id)

    def _tell(self, old: Job | None, new: Job) -> None:
        for listener in self._listeners:
            try:
                listener(old, new)
            except Exception:
                log.exception("a listener failed on job %s", new.id)
        self._subscriptions.tell(self._shown(new))
