"""What a watcher tells of a job: the same events, whatever it missed."""

from itertools import combinations

import pytest
from msgspec.structs import replace

from nydus_service.cli.jobevents import JobEvents
from nydus_service.convert.progress import (
    Event,
    LayerFinished,
    LayerProgress,
    LayerStarted,
    MergeFinished,
    MergeStarted,
    Planned,
    VerifyFinished,
    VerifyStarted,
)
from nydus_service.jobs.job import (
    ImageStage,
    ImageStatus,
    Job,
    JobProgress,
    JobState,
    LayerState,
    LayerStatus,
)
from tests.unit.api.jobservice import a_job, digest_of

LAYER = LayerStatus(digest=digest_of(1), size=1000)
PACKING = replace(LAYER, state=LayerState.PACKING, bytes_in=300, bytes_out=200)
PACKED = replace(
    LAYER, state=LayerState.PACKED, bytes_in=1000, bytes_out=700, blob=digest_of(2), duration_s=1.5
)
IMAGE = ImageStatus(image="linux/amd64")
STEPS = [
    JobProgress(),
    JobProgress(stage="packing", layers=(LAYER,), images=(IMAGE,)),
    JobProgress(stage="packing", layers=(PACKING,), images=(IMAGE,)),
    JobProgress(stage="merging", layers=(PACKED,), images=(replace(IMAGE, stage=ImageStage.MERGING),)),
    JobProgress(
        stage="verifying",
        layers=(PACKED,),
        images=(replace(IMAGE, stage=ImageStage.VERIFYING, merge_duration_s=0.5),),
    ),
    JobProgress(
        stage="finishing",
        layers=(PACKED,),
        images=(
            replace(
                IMAGE, stage=ImageStage.VERIFIED, merge_duration_s=0.5, verify_duration_s=0.25, entries=99
            ),
        ),
    ),
]
KINDS = [Planned, LayerStarted, LayerFinished, MergeStarted, MergeFinished, VerifyStarted, VerifyFinished]


def told_of(steps: list[JobProgress]) -> list[Event]:
    events: list[Event] = []
    watcher = JobEvents(events.append)
    job: Job = a_job(1, JobState.RUNNING)
    for step in steps:
        watcher.tell(replace(job, progress=step))
        watcher.tell(replace(job, progress=step))
    return events


def test_every_step() -> None:
    told = told_of(STEPS)
    assert LayerProgress in map(type, told)
    finished = next(event for event in told if isinstance(event, LayerFinished))
    assert (finished.bytes_in, finished.bytes_out, finished.duration_s) == (1000, 700, 1.5)
    verified = next(event for event in told if isinstance(event, VerifyFinished))
    assert (verified.image, verified.entries, verified.duration_s) == ("linux/amd64", 99, 0.25)


@pytest.mark.parametrize("count", range(len(STEPS)))
def test_who_misses_steps_hears_of_all_that_has_happened(count: int) -> None:
    for seen in combinations(STEPS[:-1], count):
        told = told_of([*seen, STEPS[-1]])
        assert [type(event) for event in told if not isinstance(event, LayerProgress)] == KINDS
