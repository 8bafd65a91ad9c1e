"""Jobs of a process that is killed: what was acknowledged is there afterwards, and goes on as it should."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO

import pytest

from nydus_service.jobs.job import Job, JobState
from nydus_service.jobs.transitions import INTERRUPTIONS_MAX
from tests.unit.jobs.runner import Script, open_queue, running_queue, until

PROJECT = Path(__file__).parents[2]


@contextmanager
def process(*args: object) -> Iterator[Callable[[int], list[str]]]:
    """Gives a function that reads so many lines of a process, kills it, and returns all that it has said."""
    argv = [sys.executable, "-m", "tests.contract.jobs_process", *map(str, args)]
    with Popen(argv, stdout=PIPE, text=True, cwd=PROJECT) as started:
        assert started.stdout
        try:
            yield partial(kill_after, started, started.stdout)
        finally:
            started.kill()


def kill_after(started: "Popen[str]", output: IO[str], lines: int) -> list[str]:
    said = [output.readline() for _ in range(lines)]
    started.kill()
    return [line.strip() for line in (*said, *output)]


async def jobs_after(path: Path) -> list[Job]:
    async with open_queue(path, Script(), history=1 << 30) as queue:
        return queue.list(limit=1 << 30)


async def test_no_acknowledged_job_is_lost(tmp_path: Path) -> None:
    """Killed at some moment under load, again and again over the same journal."""
    chance = random.Random(7)
    acknowledged: set[str] = set()
    for number in range(6):
        with process(tmp_path / "jobs.db", "submit", number * 100_000) as read_and_kill:
            acknowledged.update(read_and_kill(chance.randrange(1, 200)))
        jobs = await jobs_after(tmp_path / "jobs.db")
        assert acknowledged <= {job.id for job in jobs}
        assert len({job.request.source for job in jobs}) == len(jobs)
        assert {job.state for job in jobs} <= {JobState.QUEUED, JobState.RUNNING, JobState.DONE}
    async with running_queue(tmp_path / "jobs.db", Script(), running=8, history=1 << 30) as queue:
        for job_id in acknowledged:
            assert (await until(queue, job_id)).state is JobState.DONE


@pytest.mark.parametrize(
    ("stage", "state"),
    [
        ("preparing", JobState.RUNNING),
        ("packing", JobState.RUNNING),
        ("verifying", JobState.VERIFYING),
    ],
)
async def test_what_was_under_way_goes_on(tmp_path: Path, stage: str, state: JobState) -> None:
    path = tmp_path / "jobs.db"
    with process(path, stage) as read_and_kill:
        [job_id] = read_and_kill(1)
    [job] = await jobs_after(path)
    assert (job.id, job.state, job.progress.stage) == (job_id, state, stage)
    runner = Script()
    async with running_queue(path, runner) as queue:
        job = await until(queue, job_id)
    assert (job.state, job.attempts) == (JobState.DONE, 2)
    assert job.interruptions == (stage != "preparing")
    assert runner.swept == [0], "what the dead left goes before anything begins"


async def test_a_job_that_kills_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    for _ in range(INTERRUPTIONS_MAX):
        with process(path, "merging") as read_and_kill:
            [job_id] = read_and_kill(1)
    runner = Script()
    async with running_queue(path, runner) as queue:
        job = await until(queue, job_id)
        assert job.state is JobState.FAILED
        assert job.error
        assert job.error.code == "interrupted_repeatedly"
        assert runner.begun == []
        await queue.retry(job_id)
        assert (await until(queue, job_id)).state is JobState.DONE
    assert [each.state for each in await jobs_after(path)] == [JobState.DONE]
