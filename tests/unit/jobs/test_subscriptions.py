"""Watchers that read late or never."""

from msgspec.structs import replace

from nydus_service.jobs.job import Job, JobState
from nydus_service.jobs.subscriptions import FINISHED_MAX, Subscriptions
from tests.unit.jobs.runner import request


def a_job(number: int, state: JobState = JobState.QUEUED) -> Job:
    return Job(id=f"{number:032x}", request=request("app"), origin="cli", created_at=1.0, state=state)


async def test_a_watcher_that_takes_nothing_keeps_a_bounded_number_of_finished_jobs() -> None:
    subscriptions = Subscriptions()
    with subscriptions.follow(None) as values:
        for number in range(2 * FINISHED_MAX):
            for state in (JobState.QUEUED, JobState.RUNNING, JobState.DONE):
                subscriptions.tell(a_job(number, state))
        subscriptions.tell(a_job(2 * FINISHED_MAX))
        seen = [await anext(values) for _ in range(FINISHED_MAX + 1)]
        assert [job.id for job in seen] == [a_job(FINISHED_MAX + n).id for n in range(FINISHED_MAX + 1)]
        assert {job.state for job in seen[:-1]} == {JobState.DONE}
        subscriptions.tell(replace(seen[-1], state=JobState.DONE))
        assert (await anext(values)).state is JobState.DONE


async def test_a_job_that_is_retried_is_not_dropped_as_finished() -> None:
    subscriptions = Subscriptions()
    with subscriptions.follow(None) as values:
        subscriptions.tell(a_job(0, JobState.FAILED))
        subscriptions.tell(a_job(0, JobState.QUEUED))
        for number in range(1, FINISHED_MAX + 2):
            subscriptions.tell(a_job(number, JobState.DONE))
        assert await anext(values) == a_job(0, JobState.QUEUED)


async def test_a_watcher_of_one_job_gets_its_last_value() -> None:
    subscriptions = Subscriptions()
    with subscriptions.follow(a_job(7)) as values:
        for number in range(2 * FINISHED_MAX):
            subscriptions.tell(a_job(number, JobState.DONE))
        assert [job async for job in values] == [a_job(7, JobState.DONE)]
