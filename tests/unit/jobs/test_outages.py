"""Outages and the queue: what waits, what goes on, what counts, and how work begins again."""

from pathlib import Path

import anyio
import pytest

from nydus_service.convert.progress import Progress
from nydus_service.errors import NoSpaceError, NydusServiceError, UnreachableError
from nydus_service.jobs.dependencies import CONTAINERD, SPACE, Dependencies, Lack, Probe
from nydus_service.jobs.job import Job, JobRequest, JobState
from nydus_service.jobs.queue import JobQueue
from nydus_service.options.convert import ConvertOptions
from tests.unit.jobs.runner import Gate, Script, open_queue, request, running_queue, until

DONE, FAILED, QUEUED, RUNNING = JobState.DONE, JobState.FAILED, JobState.QUEUED, JobState.RUNNING


class Outside:
    """Dependencies whose states the test sets."""

    def __init__(self) -> None:
        self.lacks: dict[str, Lack | None] = {CONTAINERD: None, SPACE: None}
        self.known = Dependencies({name: self._probe(name) for name in self.lacks})

    def _probe(self, name: str) -> Probe:
        async def probe() -> Lack | None:
            return self.lacks[name]

        return probe

    async def lose(self, name: str = CONTAINERD) -> None:
        self.lacks[name] = Lack(f"{name} does not answer")
        await self.known.check()

    async def restore(self, name: str = CONTAINERD) -> None:
        self.lacks[name] = None
        await self.known.check()


async def submit(queue: JobQueue, name: str = "app") -> str:
    return (await queue.submit(request(name), origin="cli")).job.id


def of_layouts(name: str) -> JobRequest:
    """A request that needs no containerd."""
    return JobRequest(
        source=f"oci:/{name}:1", target=f"oci:/{name}:2", namespace="", options=ConvertOptions()
    )


async def test_nothing_begins_while_containerd_is_away(tmp_path: Path) -> None:
    outside, runner = Outside(), Script()
    await outside.lose()
    async with running_queue(tmp_path / "jobs.db", runner, dependencies=outside.known) as queue:
        ids = [await submit(queue, f"app{number}") for number in range(5)]
        await anyio.wait_all_tasks_blocked()
        assert runner.begun == []
        for job in [*queue.list(), *map(queue.get, ids)]:
            assert (job.state, job.progress.stage) == (QUEUED, "waiting for containerd")
        await outside.restore()
        for job_id in ids:
            job = await until(queue, job_id)
            assert (job.state, job.attempts, job.retries) == (DONE, 1, 0)


async def test_who_watches_hears_of_it(tmp_path: Path) -> None:
    outside = Outside()
    async with open_queue(tmp_path / "jobs.db", Script(), dependencies=outside.known) as queue:
        job_id = await submit(queue)
        async with anyio.create_task_group() as tasks, queue.watch(job_id) as values:
            tasks.start_soon(queue._follow_dependencies)
            assert (await anext(values)).progress.stage == ""
            await outside.lose()
            assert (await anext(values)).progress.stage == "waiting for containerd"
            await outside.restore()
            assert (await anext(values)).progress.stage == ""
            tasks.cancel_scope.cancel()


async def test_what_needs_no_containerd_goes_on(tmp_path: Path) -> None:
    outside = Outside()
    await outside.lose()
    async with running_queue(tmp_path / "jobs.db", Script(), dependencies=outside.known) as queue:
        waiting = await submit(queue)
        other = (await queue.submit(of_layouts("x"), origin="cli")).job.id
        assert (await until(queue, other)).state is DONE
        assert queue.get(waiting).state is QUEUED


@pytest.mark.parametrize(
    ("name", "error"), [(CONTAINERD, UnreachableError("gone")), (SPACE, NoSpaceError("full"))]
)
async def test_a_try_that_fails_in_an_outage_does_not_count(
    tmp_path: Path, name: str, error: NydusServiceError
) -> None:
    """However often: here ten times as often as tries are allowed."""
    outside = Outside()
    left = 10

    async def fail_in_an_outage(job: Job, progress: Progress) -> None:
        nonlocal left
        if left:
            left -= 1
            outside.lacks[name] = Lack("away")
            raise error

    runner = Script({"app": fail_in_an_outage})
    async with running_queue(tmp_path / "jobs.db", runner, dependencies=outside.known, retries=1) as queue:
        job_id = await submit(queue)
        for _ in range(10):
            changed = outside.known.changed
            while not outside.known.away:
                await changed.wait()
                changed = outside.known.changed
            while queue.get(job_id).state is not QUEUED:  # noqa: ASYNC110 - the end of the try follows
                await anyio.sleep(0.001)
            assert queue.get(job_id).progress.stage.startswith("waiting for ")
            await outside.restore(name)
        job = await until(queue, job_id)
        assert (job.state, job.retries, job.error) == (DONE, 0, None)


async def test_a_try_that_fails_without_an_outage_counts(tmp_path: Path) -> None:
    """An image that is too big for the disk fails at last: when its try has ended, space is free again."""
    outside = Outside()

    async def fail(job: Job, progress: Progress) -> None:
        raise NoSpaceError("full")

    runner = Script({"app": fail})
    async with running_queue(tmp_path / "jobs.db", runner, dependencies=outside.known, retries=2) as queue:
        job = await until(queue, await submit(queue))
        assert (job.state, job.attempts, job.retries) == (FAILED, 3, 2)


async def test_work_begins_slowly_after_an_outage(tmp_path: Path) -> None:
    """One job; two after its end; then as many as may run."""
    gates = {f"app{number}": Gate() for number in range(8)}
    outside, runner = Outside(), Script(dict(gates))
    await outside.lose()
    async with running_queue(tmp_path / "jobs.db", runner, dependencies=outside.known, running=4) as queue:
        ids = [await submit(queue, name) for name in gates]
        await outside.restore()
        for running in (1, 2, 4, 4):
            while len(runner.begun) - opened(gates) < running:  # noqa: ASYNC110 - polled in a test
                await anyio.sleep(0.001)
            await anyio.sleep(0.01)  # more could begin now
            assert queue.count(RUNNING) == running
            gates[runner.begun[opened(gates)]].open.set()
        for gate in gates.values():
            gate.open.set()
        for job_id in ids:
            assert (await until(queue, job_id)).state is DONE


def opened(gates: dict[str, Gate]) -> int:
    return sum(gate.open.is_set() for gate in gates.values())


async def test_retry_by_hand_waits_too(tmp_path: Path) -> None:
    outside = Outside()

    async def fail(job: Job, progress: Progress) -> None:
        raise NydusServiceError("broken")

    runner = Script({"app": fail})
    async with running_queue(tmp_path / "jobs.db", runner, dependencies=outside.known) as queue:
        job_id = await submit(queue)
        assert (await until(queue, job_id)).state is FAILED
        runner.actions.clear()
        await outside.lose()
        job = await queue.retry(job_id)
        assert queue.get(job_id).progress.stage == "waiting for containerd"
        assert job.state is QUEUED
        await outside.restore()
        assert (await until(queue, job_id)).state is DONE
