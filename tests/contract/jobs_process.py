"""A process that does what a daemon does with jobs, to be killed. Run as a script: see `main`.

    python -m tests.contract.jobs_process JOURNAL submit NUMBER     submits image after image from NUMBER on
    python -m tests.contract.jobs_process JOURNAL STAGE             works up to this stage, and stays there

It prints a line when a job is acknowledged, or when it is at its stage: what it printed is a promise.
"""

import asyncio
import sys
from pathlib import Path

import anyio

from nydus_service.convert.progress import (
    Event,
    LayerFinished,
    LayerStarted,
    MergeFinished,
    MergeStarted,
    Planned,
    Progress,
    VerifyFinished,
    VerifyStarted,
)
from nydus_service.jobs.job import Job
from nydus_service.jobs.journal import open_journal
from nydus_service.jobs.queue import JobQueue, QueueLimits
from tests.unit.jobs.runner import PLENTY, Script, descriptor, request

LAYER, IMAGE = descriptor(1000), "linux/amd64"
STAGES: dict[str, list[Event]] = {
    "preparing": [],
    "packing": [Planned((IMAGE,), (LAYER,)), LayerStarted(LAYER.digest, 1000)],
    "merging": [LayerFinished(LAYER.digest, LAYER.digest, 1000, 600, 1.0), MergeStarted(IMAGE)],
    "verifying": [MergeFinished(IMAGE, 0.5), VerifyStarted(IMAGE, "tree")],
    "finishing": [VerifyFinished(IMAGE, 7, 0.5)],
}


async def submit_on_and_on(path: Path, number: int) -> None:
    """Jobs are done meanwhile; four callers at a time share the journal's transactions."""

    async def caller(own: int) -> None:
        for count in range(own, 1 << 30, 4):
            submitted = await queue.submit(request(f"image{number + count}"), origin="cli")
            print(submitted.job.id, flush=True)

    async with open_journal(path) as journal:
        limits = QueueLimits(running=2, queue=1 << 30, history=1 << 30)
        queue = JobQueue(journal, Script(), limits, measure=lambda _: PLENTY)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.run)
            for own in range(4):
                tasks.start_soon(caller, own)


async def stay_at(path: Path, stage: str) -> None:
    async def act(job: Job, progress: Progress) -> None:
        for events in list(STAGES.values())[: list(STAGES).index(stage) + 1]:
            for event in events:
                progress(event)
        await journal.flush()
        print(job.id, flush=True)
        await anyio.sleep_forever()

    async with open_journal(path) as journal:
        runner = Script({"app": act})
        queue = JobQueue(journal, runner, QueueLimits(running=1), measure=lambda _: PLENTY)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.run)
            await queue.submit(request("app"), origin="cli")


def main() -> None:
    path, what = Path(sys.argv[1]), sys.argv[2]
    asyncio.run(submit_on_and_on(path, int(sys.argv[3])) if what == "submit" else stay_at(path, what))


if __name__ == "__main__":
    main()
