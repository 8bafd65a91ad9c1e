"""Any sequence of requests, endings, drains and crashes, over a real journal, against a plain model."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
)

from nydus_service.convert.progress import Planned, Progress
from nydus_service.errors import FormatError, UnreachableError, UsageError
from nydus_service.jobs.job import FINISHED, UNDER_WAY, Job, JobState
from nydus_service.jobs.record import request_key
from nydus_service.jobs.transitions import INTERRUPTIONS_MAX
from tests.unit.jobs.runner import Script, descriptor, open_queue, request

T = TypeVar("T")
NAMES = ["a", "b", "c", "d"]
RUNNING_MAX = 2
ENDINGS = {
    "done": None,
    "failed": FormatError("damaged"),
    "bug": KeyError("bug"),
    "passing": UnreachableError("away"),
}

STEPS = {
    JobState.QUEUED: {JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED},
    JobState.RUNNING: set(JobState),
    JobState.DONE: set[JobState](),
    JobState.FAILED: {JobState.QUEUED},
    JobState.CANCELLED: {JobState.QUEUED},
}


class Hand:
    """An action that plans its layers, then ends as the test says, whenever it says so."""

    def __init__(self) -> None:
        self.waiting: dict[str, asyncio.Future[Exception | None]] = {}

    async def __call__(self, job: Job, progress: Progress) -> None:
        assert job.id not in self.waiting, "tried twice at the same time"
        self.waiting[job.id] = asyncio.get_running_loop().create_future()
        progress(Planned(("linux/amd64",), (descriptor(),)))
        try:
            error = await self.waiting[job.id]
        finally:
            del self.waiting[job.id]
        if error:
            raise error


class Jobs(RuleBasedStateMachine):
    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp())
        self.generation = 0
        self.known: dict[str, Job] = {}
        self.do(self.start())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    @property
    def path(self) -> Path:
        return self.directory / f"jobs{self.generation}.db"

    async def start(self) -> None:
        self.stack = AsyncExitStack()
        self.hand = Hand()
        runner = Script(dict.fromkeys(NAMES, self.hand))
        opening = open_queue(self.path, runner, running=RUNNING_MAX, retries=1, first_pause_s=1e-6)
        self.queue = await self.stack.enter_async_context(opening)
        self.queue.add_listener(self.listen)
        self.run = asyncio.create_task(self.queue.run())
        await self.settle()

    async def stop(self) -> None:
        self.run.cancel()
        await asyncio.wait([self.run])
        await self.stack.aclose()

    async def settle(self) -> None:
        """Until all that can go on has: then as many run as may, and the others wait their turn."""
        while True:
            states = [job.state for job in self.queue.list(limit=1000)]
            under_way = sum(state in UNDER_WAY for state in states)
            if len(self.hand.waiting) == under_way == min(RUNNING_MAX, under_way + self.queue.queued):
                return
            await asyncio.sleep(0.001)

    def listen(self, old: Job | None, new: Job) -> None:
        assert old == self.known.get(new.id)
        if old:
            assert new.revision > old.revision
            assert new.state in STEPS.get(old.state, set(JobState))
        self.known[new.id] = new

    @rule(target=ids, name=st.sampled_from(NAMES), priority=st.integers(-1, 1))
    def submit(self, name: str, priority: int) -> Any:
        before = {job.id for job in self.queue.list(limit=1000)}
        submitted = self.do(self.queue.submit(request(name), origin="cli", priority=priority))
        assert submitted.joined == (submitted.job.id in before)
        assert not submitted.job.is_finished
        assert submitted.job.priority >= priority
        self.do(self.settle())
        return multiple() if submitted.joined else submitted.job.id

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        before = self.queue.get(job_id)
        self.do(self.queue.cancel(job_id))
        self.do(self.settle())
        job = self.queue.get(job_id)
        assert job == before if before.state in FINISHED else job.state is JobState.CANCELLED

    @rule(job_id=ids)
    def retry(self, job_id: str) -> None:
        before = self.queue.get(job_id)
        doing = self.queue._index.doing(request_key(before.request))
        try:
            self.do(self.queue.retry(job_id))
        except UsageError:
            assert before.state in UNDER_WAY | {JobState.DONE} or doing
        else:
            assert before.state in (JobState.QUEUED, JobState.FAILED, JobState.CANCELLED)
        self.do(self.settle())

    @precondition(lambda self: self.hand.waiting)
    @rule(data=st.data(), ending=st.sampled_from(sorted(ENDINGS)))
    def end(self, data: st.DataObject, ending: str) -> None:
        job_id = data.draw(st.sampled_from([job.id for job in self.running()]))
        before = self.queue.get(job_id)
        self.hand.waiting[job_id].set_result(ENDINGS[ending])
        self.do(self.until_ended(job_id))
        job = self.queue.get(job_id)
        if ending == "done":
            assert job.state is JobState.DONE
        elif ending == "passing" and not before.retries:
            assert job.state in UNDER_WAY | {JobState.QUEUED}
        else:
            assert job.state is JobState.FAILED

    async def until_ended(self, job_id: str) -> None:
        async with self.queue.watch(job_id) as values:
            async for job in values:
                if job.state not in UNDER_WAY:
                    break
        await self.settle()

    @rule()
    def drain(self) -> None:
        """Ends in order: everything is as it was, but nothing is under way."""
        self.do(self.queue.drain(0))
        assert self.running() == []
        before = self.queue.list(limit=1000)
        self.do(self.stop())
        self.do(self.start_to_see(before))

    @rule()
    def crash(self) -> None:
        """What is on disk now is all that a new process finds."""
        self.do(self.queue._journal.flush())
        before = self.queue.list(limit=1000)
        crashed, self.generation = self.path, self.generation + 1
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{crashed}{suffix}", f"{self.path}{suffix}")
        self.queue._listeners.clear()
        self.do(self.stop())
        self.do(self.start_to_see(before))
        for old in before:
            new = self.queue.get(old.id)
            assert new.interruptions == old.interruptions + (old.state in UNDER_WAY)
            assert (new.interruptions < INTERRUPTIONS_MAX) or new.state is JobState.FAILED

    async def start_to_see(self, before: list[Job]) -> None:
        await self.start()
        after = self.queue.list(limit=1000)
        assert [job.id for job in after] == [job.id for job in before]
        assert [job for job in after if job.is_finished and self.known[job.id] != job] == []

    def running(self) -> list[Job]:
        return self.queue.list(states=list(UNDER_WAY), limit=1000)

    @invariant()
    def the_queue_is_what_was_told(self) -> None:
        jobs = self.queue.list(limit=1000)
        assert {job.id: job for job in jobs} == self.known
        assert len(self.running()) <= RUNNING_MAX
        unfinished = [request_key(job.request) for job in jobs if not job.is_finished]
        assert len(set(unfinished)) == len(unfinished)
        for job in jobs:
            assert (job.finished_at is not None) == job.is_finished
            assert (job.result is not None) == (job.state is JobState.DONE)
            assert job.is_finished or not job.cancel_requested

    @invariant()
    def nobody_idles(self) -> None:
        assert len(self.running()) == min(RUNNING_MAX, len(self.running()) + self.queue.queued)

    def teardown(self) -> None:
        self.do(self.stop())
        self.loop.close()
        shutil.rmtree(self.directory)


TestJobs = Jobs.TestCase
TestJobs.settings = settings(max_examples=30, stateful_step_count=25)
