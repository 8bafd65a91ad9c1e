"""The queue over a real journal, with a runner that does what each test says."""

import asyncio
import gc
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from nydus_service.convert.progress import (
    Event,
    LayerFinished,
    LayerProgress,
    LayerStarted,
    MergeFinished,
    MergeStarted,
    Planned,
    Progress,
    VerifyFinished,
    VerifyStarted,
)
from nydus_service.errors import (
    FormatError,
    NoSpaceError,
    UnreachableError,
    UnsupportedError,
    UsageError,
)
from nydus_service.jobs.admission import Free
from nydus_service.jobs.dependencies import (
    WAITING_FOR_MEMORY,
    WAITING_FOR_SPACE,
)
from nydus_service.jobs.job import Job, JobNotFound, JobState
from nydus_service.jobs.journal import Journal, open_journal
from nydus_service.jobs.queue import (
    JobQueue,
    QueueFull,
    QueueLimits,
    ShuttingDown,
)
from nydus_service.jobs.record import Record, pack
from nydus_service.jobs.run import PUBLISH_S
from tests.unit.jobs.disks import fill
from tests.unit.jobs.runner import (
    PLENTY,
    Action,
    Gate,
    Script,
    descriptor,
    open_queue,
    request,
    running_queue,
    until,
)

DONE, FAILED, CANCELLED, QUEUED = JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED
RUNNING, VERIFYING = JobState.RUNNING, JobState.VERIFYING


async def submit(queue: JobQueue, name: str = "app", priority: int = 0) -> str:
    """The id of a new job."""
    submitted = await queue.submit(request(name), origin="cli", priority=priority)
    assert not submitted.joined
    return submitted.job.id


def raising(*errors: BaseException | None) -> Action:
    """An action that raises these one after the other, and None stands for success, as does the end."""
    left = list(errors)

    async def act(job: Job, progress: Progress) -> None:
        await anyio.lowlevel.checkpoint()
        if left and (error := left.pop(0)) is not None:
            raise error

    return act


def telling(*events: Event) -> Action:
    async def act(job: Job, progress: Progress) -> None:
        for event in events:
            progress(event)

    return act


class TestSubmit:
    async def test_a_job_is_done(self, tmp_path: Path) -> None:
        runner = Script()
        async with running_queue(tmp_path / "jobs.db", runner, clock=lambda: 1234.5) as queue:
            submitted = await queue.submit(request(), origin="grpc", priority=3)
            job = submitted.job
            assert not submitted.joined
            assert (job.origin, job.priority, job.state) == ("grpc", 3, QUEUED)
            ended = await until(queue, job.id)
            assert ended.state is DONE
            assert ended.result
            assert ended.result.job == job.id
            assert (ended.created_at, ended.started_at, ended.finished_at) == (1234.5,) * 3
            assert queue.get(job.id) == ended
            assert runner.begun == ["app"]

    async def test_equal_requests_are_one_job(self, tmp_path: Path) -> None:
        gate = Gate()
        async with running_queue(tmp_path / "jobs.db", Script({"app": gate})) as queue:
            first, second = await asyncio.gather(
                queue.submit(request(jobs=1), origin="cli"), queue.submit(request(jobs=2), origin="http")
            )
            assert first.job.id == second.job.id
            assert {first.joined, second.joined} == {False, True}
            await gate.reached.wait()
            third = await queue.submit(request(), origin="cli")
            assert third.joined
            assert third.job.id == first.job.id
            assert third.job.state is RUNNING
            gate.open.set()
            await until(queue, first.job.id)
            again = await queue.submit(request(), origin="cli")
            assert not again.joined

    async def test_the_higher_priority_wins(self, tmp_path: Path) -> None:
        runner = Script()
        async with open_queue(tmp_path / "jobs.db", runner) as queue:
            ids = [await submit(queue, name, priority) for name, priority in (("a", 0), ("b", 1), ("c", 1))]
            assert (await queue.submit(request("a"), origin="cli", priority=2)).job.priority == 2
            assert (await queue.submit(request("b"), origin="cli", priority=-1)).job.priority == 1
            await do_all(queue, ids)
        assert runner.begun == ["a", "b", "c"]

    async def test_no_more_than_may_wait(self, tmp_path: Path) -> None:
        async with open_queue(tmp_path / "jobs.db", Script(), queue=2) as queue:
            results = await asyncio.gather(*(submit(queue, name) for name in "abc"), return_exceptions=True)
            assert [type(each) for each in results] == [str, str, QueueFull]
            assert (await queue.submit(request("a"), origin="cli")).joined

    @pytest.mark.parametrize(
        ("source", "target", "error"),
        [("a\nb", "c", UsageError), ("ostree:a", "b", UnsupportedError), ("a", "oci:/dir", UsageError)],
    )
    async def test_what_never_can_be_done(
        self, tmp_path: Path, source: str, target: str, error: type[Exception]
    ) -> None:
        async with open_queue(tmp_path / "jobs.db", Script()) as queue:
            with pytest.raises(error):
                await queue.submit(replace(request(), source=source, target=target), origin="cli")
            assert queue.list() == []

    async def test_whoever_submits_may_give_up(self, tmp_path: Path) -> None:
        async with open_queue(tmp_path / "jobs.db", Script()) as queue:
            task = asyncio.create_task(submit(queue))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            joined = await queue.submit(request(), origin="cli")
            assert [job.id for job in queue.list()] == [joined.job.id]

    async def test_an_equal_request_comes_just_when_the_first_is_on_disk(self, tmp_path: Path) -> None:
        """It is to wait for a turn of the event loop, not to keep the loop from taking one."""
        journal = PendingJournal(tmp_path / "jobs.db")
        queue = JobQueue(journal, Script(), QueueLimits())
        first = asyncio.create_task(queue.submit(request(), origin="cli"))
        await asyncio.sleep(0)
        journal.written.set_result(None)
        second = await queue.submit(request(), origin="cli")
        assert second.joined
        assert second.job.id == (await first).job.id

    async def test_nobody_knows_this_job(self, tmp_path: Path) -> None:
        async with open_queue(tmp_path / "jobs.db", Script()) as queue:
            with pytest.raises(JobNotFound):
                queue.get("x")
            for ask in (queue.cancel, queue.retry):
                with pytest.raises(JobNotFound):
                    await ask("x")
            with pytest.raises(JobNotFound):
                async with queue.watch("x"):
                    pass


class PendingJournal(Journal):
    """Writes a job when the test says so: `written` is the future of the one that was added last."""

    def add(self, record: Record) -> asyncio.Future[None]:
        self.written = asyncio.get_running_loop().create_future()
        return self.written


async def do_all(queue: JobQueue, ids: list[str]) -> None:
    """Run the queue until these jobs are finished."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.run)
        with anyio.fail_after(100):
            for job_id in ids:
                await until(queue, job_id)
        tasks.cancel_scope.cancel()


class TestErrors:
    @pytest.mark.parametrize("error", [UnreachableError("away"), NoSpaceError("full"), MemoryError()])
    async def test_what_may_pass_is_tried_again(self, tmp_path: Path, error: Exception) -> None:
        runner = Script({"app": raising(error, error)})
        async with running_queue(tmp_path / "jobs.db", runner) as queue:
            seen: list[Job] = []
            queue.add_listener(lambda _, new: seen.append(new))
            job = await until(queue, await submit(queue))
        assert (job.state, job.attempts, job.retries, job.error) == (DONE, 3, 2, None)
        waits = [each for each in seen if each.state is QUEUED and each.attempts]
        assert [each.error.retryable for each in waits if each.error] == [True, True]
        assert all(each.not_before > 0 for each in waits)

    async def test_not_for_ever(self, tmp_path: Path) -> None:
        runner = Script({"app": raising(*[UnreachableError("away")] * 9)})
        async with running_queue(tmp_path / "jobs.db", runner, retries=2) as queue:
            job = await until(queue, await submit(queue))
        assert (job.state, job.attempts) == (FAILED, 3)
        assert job.error
        assert job.error.code == "unreachable"

    async def test_what_stays_is_not(self, tmp_path: Path) -> None:
        runner = Script({"app": raising(FormatError("layer sha256:1: damaged"))})
        async with running_queue(tmp_path / "jobs.db", runner) as queue:
            job = await until(queue, await submit(queue))
        assert (job.state, job.attempts) == (FAILED, 1)
        assert job.error
        assert (job.error.code, job.error.message) == ("corrupt_input", "layer sha256:1: damaged")

    @pytest.mark.parametrize(
        "bug", [KeyError("x"), RecursionError(), ExceptionGroup("two", [OSError()]), asyncio.CancelledError()]
    )
    async def test_a_bug_ends_its_own_job(
        self, tmp_path: Path, bug: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = Gate()
        runner = Script({"app": raising(bug), "other": other})
        async with running_queue(tmp_path / "jobs.db", runner, running=2) as queue:
            beside = await submit(queue, "other")
            await other.reached.wait()
            job = await until(queue, await submit(queue))
            assert (job.state, job.attempts) == (FAILED, 1)
            assert job.error
            assert job.error.code == "internal"
            other.open.set()
            assert (await until(queue, beside)).state is DONE
        traced = [record for record in caplog.records if record.exc_info]
        assert [record.exc_info[1] for record in traced if record.exc_info] == [bug]

    async def test_sweeping_may_fail(self, tmp_path: Path) -> None:
        for number, error in enumerate((UnreachableError("away"), ValueError("a bug"))):
            runner = Script(fail_sweep=error)
            async with running_queue(tmp_path / f"jobs{number}.db", runner) as queue:
                assert (await until(queue, await submit(queue))).state is DONE
            assert runner.swept == [0], "once, before the first job"

    async def test_a_listener_may_fail(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        def listener(old: Job | None, new: Job) -> None:
            raise ValueError("listener")

        async with running_queue(tmp_path / "jobs.db", Script()) as queue:
            queue.add_listener(listener)
            assert (await until(queue, await submit(queue))).state is DONE
        assert "a listener failed" in caplog.text


class TestCancel:
    async def test_one_that_waits(self, tmp_path: Path) -> None:
        runner = Script()
        async with open_queue(tmp_path / "jobs.db", runner) as queue:
            job_id = await submit(queue)
            cancelled = await queue.cancel(job_id)
            assert cancelled.state is CANCELLED
            assert cancelled.finished_at
            assert await queue.cancel(job_id) == cancelled
            await do_all(queue, [await submit(queue, "other")])
        assert runner.begun == ["other"]

    async def test_one_that_runs(self, tmp_path: Path) -> None:
        gate = Gate()
        async with running_queue(tmp_path / "jobs.db", Script({"app": gate})) as queue:
            job_id = await submit(queue)
            await gate.reached.wait()
            asked = await queue.cancel(job_id)
            assert asked.cancel_requested
            ended = await until(queue, job_id)
            assert ended.state is CANCELLED
            assert ended.error is None
            assert gate.cancelled

    async def test_an_error_on_the_way_out_is_of_no_interest(self, tmp_path: Path) -> None:
        gate = Gate()

        async def act(job: Job, progress: Progress) -> None:
            try:
                await gate(job, progress)
            except anyio.get_cancelled_exc_class():
                raise UnreachableError("killed") from None

        async with running_queue(tmp_path / "jobs.db", Script({"app": act})) as queue:
            job_id = await submit(queue)
            await gate.reached.wait()
            await queue.cancel(job_id)
            ended = await until(queue, job_id)
            assert (ended.state, ended.error) == (CANCELLED, None)

    async def test_too_late(self, tmp_path: Path) -> None:
        """A job that names its result meanwhile is done."""
        gate = Gate()

        async def act(job: Job, progress: Progress) -> None:
            with anyio.CancelScope(shield=True):
                await gate(job, progress)

        async with running_queue(tmp_path / "jobs.db", Script({"app": act})) as queue:
            job_id = await submit(queue)
            await gate.reached.wait()
            await queue.cancel(job_id)
            gate.open.set()
            assert (await until(queue, job_id)).state is DONE

    async def test_nobody_joins_a_job_that_ends(self, tmp_path: Path) -> None:
        """Who asks for the same while it is cancelled gets a job, and not that one's end."""
        gate = Gate()

        async def act(job: Job, progress: Progress) -> None:
            with anyio.CancelScope(shield=True):
                await gate(job, progress)
            await anyio.lowlevel.checkpoint()

        async with running_queue(tmp_path / "jobs.db", Script({"app": act})) as queue:
            first = await submit(queue)
            await gate.reached.wait()
            await queue.cancel(first)
            second = await submit(queue)
            assert (await queue.submit(request(), origin="cli")).job.id == second
            gate.open.set()
            assert (await until(queue, first)).state is CANCELLED
            assert (await until(queue, second)).state is DONE


class TestRetry:
    async def test_a_failed_one(self, tmp_path: Path) -> None:
        runner = Script({"app": raising(FormatError("x"))})
        async with running_queue(tmp_path / "jobs.db", runner) as queue:
            job_id = await submit(queue)
            await until(queue, job_id)
            again = await queue.retry(job_id)
            assert (again.id, again.state, again.error) == (job_id, QUEUED, None)
            ended = await until(queue, job_id)
            assert (ended.state, ended.attempts) == (DONE, 2)
            with pytest.raises(UsageError, match="is done"):
                await queue.retry(job_id)

    async def test_one_that_waits_for_a_later_try(self, tmp_path: Path) -> None:
        runner = Script({"app": raising(UnreachableError("x"))})
        async with running_queue(tmp_path / "jobs.db", runner, first_pause_s=500) as queue:
            job_id = await submit(queue)
            async with queue.watch(job_id) as values:
                async for job in values:
                    if job.error:
                        break
            await queue.retry(job_id)
            assert (await until(queue, job_id)).state is DONE

    async def test_what_cannot_be(self, tmp_path: Path) -> None:
        gate = Gate()
        runner = Script({"app": gate})
        async with running_queue(tmp_path / "jobs.db", runner, queue=1) as queue:
            job_id = await submit(queue)
            await gate.reached.wait()
            with pytest.raises(UsageError, match="under way"):
                await queue.retry(job_id)
            waiting = await submit(queue, "other")
            await queue.cancel(waiting)
            second = await submit(queue, "other")
            with pytest.raises(UsageError, match=second):
                await queue.retry(waiting)
            await queue.cancel(second)
            await submit(queue, "third")
            with pytest.raises(QueueFull):
                await queue.retry(waiting)

    async def test_two_at_once_are_one(self, tmp_path: Path) -> None:
        async with open_queue(tmp_path / "jobs.db", Script(), history=1) as queue:
            job_id = await submit(queue)
            await queue.cancel(job_id)
            first, second, third = await asyncio.gather(
                queue.retry(job_id), queue.retry(job_id), queue.submit(request(), origin="cli")
            )
            assert first == second == third.job
            assert third.joined
            assert queue.list() == [first]


class TestWatch:
    async def test_each_state_in_its_order(self, tmp_path: Path) -> None:
        layer, image = descriptor(1000), "linux/amd64"
        runner = Script()
        runner.actions["app"] = telling(
            Planned((image,), (layer,)),
            LayerStarted(layer.digest, 1000),
            LayerFinished(layer.digest, layer.digest, 1000, 600, 1.0),
            MergeStarted(image),
            MergeFinished(image, 0.5),
            VerifyStarted(image, "tree"),
            VerifyFinished(image, 7, 0.5),
        )
        changes: list[tuple[JobState | None, JobState, str]] = []
        async with running_queue(tmp_path / "jobs.db", runner) as queue:
            queue.add_listener(
                lambda old, new: changes.append((old.state if old else None, new.state, new.progress.stage))
            )
            job = await until(queue, await submit(queue))
        assert changes == [
            (None, QUEUED, ""),
            (QUEUED, RUNNING, "preparing"),
            (RUNNING, RUNNING, "packing"),
            (RUNNING, RUNNING, "merging"),
            (RUNNING, VERIFYING, "verifying"),
            (VERIFYING, VERIFYING, "finishing"),
            (VERIFYING, DONE, "finishing"),
        ]
        assert job.progress.layers[0].bytes_out == 600
        assert job.progress.images[0].entries == 7

    async def test_numbers_come_seldom_and_the_last_ones_always(self, tmp_path: Path) -> None:
        layer, observed = descriptor(100000), asyncio.Event()

        async def act(job: Job, progress: Progress) -> None:
            progress(Planned(("linux/amd64",), (layer,)))
            progress(LayerStarted(layer.digest, 100000))
            for number in range(1, 10001):
                progress(LayerProgress(layer.digest, number, number))
                if number % 100 == 0:
                    await anyio.lowlevel.checkpoint()
            await observed.wait()

        values: list[int] = []

        def listener(old: Job | None, new: Job) -> None:
            values.append(new.progress.bytes_out)
            if new.progress.bytes_out == 10000:
                observed.set()

        async with running_queue(tmp_path / "jobs.db", Script({"app": act})) as queue:
            queue.add_listener(listener)
            started = anyio.current_time()
            await until(queue, await submit(queue))
            elapsed = anyio.current_time() - started
        assert len(values) <= elapsed / PUBLISH_S + 6
        assert 10000 in values

    async def test_who_is_slow_misses_values_but_the_last(self, tmp_path: Path) -> None:
        runner = Script()
        async with running_queue(tmp_path / "jobs.db", runner) as queue, queue.watch() as values:
            ids = [await submit(queue, name) for name in "abc"]
            for job_id in ids:
                await until(queue, job_id)
            seen = [await anext(values) for _ in ids]
            assert [job.id for job in seen] == ids
            assert {job.state for job in seen} == {DONE}

    async def test_it_begins_with_what_is_and_ends_with_the_job(self, tmp_path: Path) -> None:
        async with running_queue(tmp_path / "jobs.db", Script()) as queue:
            job_id = await submit(queue)
            await until(queue, job_id)
            async with queue.watch(job_id) as values:
                assert [job.state async for job in values] == [DONE]

    async def test_nobody_is_told_any_more_who_has_left(self, tmp_path: Path) -> None:
        async with open_queue(tmp_path / "jobs.db", Script()) as queue:
            job_id = await submit(queue)
            for _ in range(3):
                async with queue.watch(job_id) as values:
                    assert (await anext(values)).state is QUEUED
            assert len(queue._subscriptions) == 0


class Measured:
    """What is free, as a test says; `asked` once that was asked for."""

    def __init__(self, free: Free) -> None:
        self.free = free

    def __call__(self, directory: Path) -> Free:
        return self.free


async def until_stage(queue: JobQueue, job_id: str, stage: str) -> Job:
    async with queue.watch(job_id) as values:
        async for job in values:
            if job.progress.stage == stage:
                return job
    raise AssertionError(f"the job ended as {job.state}")


class TestAdmission:
    async def test_space(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        measured = Measured(Free(space=0, memory=PLENTY.memory))
        runner = Script()
        async with running_queue(tmp_path / "jobs.db", runner, free=measured) as queue:
            job_id = await submit(queue)
            waiting = await until_stage(queue, job_id, WAITING_FOR_SPACE)
            assert waiting.state is QUEUED
            await anyio.sleep(0.05)  # it is measured again meanwhile, which nobody is told
            assert queue.get(job_id) == waiting
            measured.free = PLENTY
            assert (await until(queue, job_id)).state is DONE
        assert caplog.text.count(WAITING_FOR_SPACE) == 1

    async def test_memory_is_asked_for_beside_others_only(self, tmp_path: Path) -> None:
        measured = Measured(Free(space=PLENTY.space, memory=0))
        gate = Gate()
        settings = {"free": measured, "running": 2, "admission_pause_s": 500}
        async with running_queue(tmp_path / "jobs.db", Script({"first": gate}), **settings) as queue:
            await submit(queue, "first")
            await gate.reached.wait()
            second = await submit(queue, "second")
            await until_stage(queue, second, WAITING_FOR_MEMORY)
            gate.open.set()  # the end of a job is reason enough to look again
            assert (await until(queue, second)).state is DONE

    async def test_who_waits_for_space_can_be_cancelled(self, tmp_path: Path) -> None:
        measured = Measured(Free(space=0, memory=0))
        async with running_queue(tmp_path / "jobs.db", Script(), free=measured) as queue:
            job_id = await submit(queue)
            await until_stage(queue, job_id, WAITING_FOR_SPACE)
            assert (await queue.cancel(job_id)).state is CANCELLED

    async def test_as_many_as_may_run(self, tmp_path: Path) -> None:
        gates = [Gate() for _ in range(4)]
        runner = Script({f"image{number}": gate for number, gate in enumerate(gates)})
        async with running_queue(tmp_path / "jobs.db", runner, running=3) as queue:
            ids = [await submit(queue, name) for name in runner.actions]
            for gate in gates[:3]:
                await gate.reached.wait()
            assert len(queue.list(states=[RUNNING])) == 3
            assert queue.queued == 1
            for gate in gates:
                gate.open.set()
            for job_id in ids:
                assert (await until(queue, job_id)).state is DONE

    async def test_a_clock_that_is_set_back(self, tmp_path: Path) -> None:
        """Nobody waits for years until the clock says again what it said."""
        now = [2e9]
        runner = Script({"app": raising(UnreachableError("x"))})
        settings = {"clock": lambda: now[0], "first_pause_s": 500}
        async with running_queue(tmp_path / "jobs.db", runner, **settings) as queue:
            job_id = await submit(queue)
            async with queue.watch(job_id) as values:
                async for job in values:
                    if job.error:
                        break
            now[0] = 1e9
            await until(queue, await submit(queue, "other"))
            assert (await until(queue, job_id)).state is DONE


class TestEnd:
    async def test_what_runs_may_end(self, tmp_path: Path) -> None:
        gate, path = Gate(), tmp_path / "jobs.db"
        async with running_queue(path, Script({"app": gate})) as queue:
            first, second = await submit(queue), await submit(queue, "other")
            await gate.reached.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(queue.drain, 30)
                await anyio.lowlevel.checkpoint()
                with pytest.raises(ShuttingDown):
                    await submit(queue, "third")
                gate.open.set()
            assert queue.get(first).state is DONE
            assert queue.get(second).state is QUEUED
            with pytest.raises(ShuttingDown):
                await queue.submit(request("other"), origin="cli")
        async with open_queue(path, Script()) as queue:
            assert queue.get(first).state is DONE
            assert queue.get(second).state is QUEUED

    async def test_what_does_not_end_is_put_back(self, tmp_path: Path) -> None:
        gate, path = Gate(), tmp_path / "jobs.db"
        for _ in range(4):
            async with running_queue(path, Script({"app": gate})) as queue:
                job_id = (await queue.submit(request(), origin="cli")).job.id
                await gate.reached.wait()
                gate.reached.clear()
                await queue.drain(0)
                assert gate.cancelled
                job = queue.get(job_id)
                assert (job.state, job.interruptions, job.progress.stage) == (QUEUED, 0, "")
        async with running_queue(path, Script()) as queue:
            job = await until(queue, job_id)
            assert (job.state, job.attempts) == (DONE, 5)

    async def test_cut_short(self, tmp_path: Path) -> None:
        """Cancelled with no drain before it, `run` puts back what it did."""
        gate, path = Gate(), tmp_path / "jobs.db"
        async with running_queue(path, Script({"app": gate})) as queue:
            job_id = await submit(queue)
            await gate.reached.wait()
        assert gate.cancelled
        async with open_queue(path, Script()) as queue:
            assert queue.get(job_id).state is QUEUED

    async def test_a_task_that_is_cancelled(self, tmp_path: Path) -> None:
        gate = Gate()
        async with open_queue(tmp_path / "jobs.db", Script({"app": gate})) as queue:
            task = asyncio.create_task(queue.run())
            job_id = await submit(queue)
            await gate.reached.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert queue.get(job_id).state is QUEUED

    async def test_a_full_disk(self, small_disk: Path) -> None:
        """Nothing is accepted then; what runs goes on, and how it ended is written when there is space."""
        gate, path = Gate(), small_disk / "jobs.db"
        async with running_queue(path, Script({"app": gate})) as queue:
            job_id = await submit(queue)
            await gate.reached.wait()
            filler, accepted = fill(small_disk), 0
            with pytest.raises(NoSpaceError):  # noqa: PT012 - how many fit the log is not known
                while True:
                    await submit(queue, f"other{accepted}")
                    accepted += 1
            assert len(queue.list(limit=10000)) == accepted + 1
            gate.open.set()
            assert (await until(queue, job_id)).state is DONE
            filler.unlink()
            await submit(queue, "later")
        async with open_queue(path, Script()) as queue:
            assert queue.get(job_id).state is DONE
            assert len(queue.list(limit=10000)) == accepted + 2

    async def test_history_has_its_limit(self, tmp_path: Path) -> None:
        path = tmp_path / "jobs.db"
        async with running_queue(path, Script(), history=3) as queue:
            ids = []
            for number in range(6):
                ids.append(await submit(queue, f"image{number}"))
                await until(queue, ids[-1])
            assert [job.id for job in queue.list()] == ids[:2:-1]
        async with running_queue(path, Script(), history=1) as queue:
            await until(queue, await submit(queue, "last"))
            assert len(queue.list()) == 1
        async with open_queue(path, Script()) as queue:
            assert [job.request.source for job in queue.list()] == [request("last").source]

    async def test_nothing_grows(self, tmp_path: Path) -> None:
        async def batch(begin: int) -> tuple[int, int, int]:
            ids = [await submit(queue, f"image{number}") for number in range(begin, begin + 100)]
            for job_id in ids[-4:]:
                await until(queue, job_id)
            gc.collect()
            jobs = sum(isinstance(each, Job) for each in gc.get_objects())
            return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")), jobs

        async with running_queue(tmp_path / "jobs.db", Script(), running=4, history=10) as queue:
            await batch(500)
            first = await batch(0)
            for begin in range(100, 500, 100):
                assert await batch(begin) == first

    async def test_at_rest_nothing_happens(self, tmp_path: Path) -> None:
        """The loop's own callbacks are counted: none but those of this test."""
        async with running_queue(tmp_path / "jobs.db", Script()) as queue:
            await until(queue, await submit(queue))
            await anyio.wait_all_tasks_blocked()
            loop = asyncio.get_running_loop()
            assert scheduled(loop) == 1, "the deadline that this test's own block has"


def scheduled(loop: asyncio.AbstractEventLoop) -> int:
    """Timers of an event loop."""
    timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]  # asyncio's own
    return sum(not timer.cancelled() for timer in timers)


async def test_a_job_whose_record_is_damaged_cannot_be_tried_again(tmp_path: Path) -> None:
    """Nobody knows its options any more."""
    path = tmp_path / "jobs.db"
    asked = Job(id="a", request=request(compressor="none"), origin="cli", created_at=1)
    async with open_journal(path) as journal:
        await journal.add(pack(asked))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE jobs SET data = x'7b'")
    script = Script()
    async with running_queue(path, script) as queue:
        assert queue.get("a").state is FAILED
        with pytest.raises(UsageError, match="lost its options: submit the request again"):
            await queue.retry("a")
        again = await queue.submit(asked.request, origin="cli")
        assert not again.joined
        await until(queue, again.job.id, DONE)
    assert script.begun == ["app"]
