"""What is drawn of a conversion: the same steps, whatever values a watcher missed."""

import argparse
from collections.abc import Sequence
from itertools import combinations

import pytest
from msgspec.structs import replace
from rich.progress import Progress as Bars

from nydus_service.cli import progress as drawing
from nydus_service.cli.progress import open_drawing, open_progress
from nydus_service.convert.progress import (
    LayerFinished,
    LayerProgress,
    LayerStarted,
    MergeFinished,
    MergeStarted,
    Planned,
    VerifyFinished,
    VerifyStarted,
)
from nydus_service.jobs.job import ImageStage, ImageStatus, JobProgress, LayerState, LayerStatus
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from tests.unit.api.jobservice import digest_of

LAYER = LayerStatus(digest=digest_of(1), size=1000)
PACKING = replace(LAYER, state=LayerState.PACKING, bytes_in=300, bytes_out=200)
PACKED = replace(
    LAYER, state=LayerState.PACKED, bytes_in=1000, bytes_out=700, blob=digest_of(2), duration_s=1.5
)
IMAGE = ImageStatus(image="linux/amd64")
PACKED_ALL = JobProgress(bytes_in=1000, bytes_out=700, bytes_total=1000, layers=(PACKED,))
STEPS = [
    JobProgress(),
    JobProgress(stage="packing", layers=(LAYER,), images=(IMAGE,), bytes_total=1000),
    JobProgress(
        stage="packing", layers=(PACKING,), images=(IMAGE,), bytes_total=1000, bytes_in=300, bytes_out=200
    ),
    replace(PACKED_ALL, stage="merging", images=(replace(IMAGE, stage=ImageStage.MERGING),)),
    replace(
        PACKED_ALL,
        stage="verifying",
        images=(replace(IMAGE, stage=ImageStage.VERIFYING, merge_duration_s=0.5),),
    ),
    replace(
        PACKED_ALL,
        stage="finishing",
        images=(
            replace(
                IMAGE, stage=ImageStage.VERIFIED, merge_duration_s=0.5, verify_duration_s=0.25, entries=99
            ),
        ),
    ),
]
LINES = [
    "linux/amd64: 1 layers, 1.0 kB",
    f"layer 1/1 {digest_of(1)}: 1.0 kB to 700 B in 1.50 s",
    "linux/amd64: merged in 0.50 s",
    "linux/amd64: verified, 99 names in 0.25 s",
]
BARS = {
    "[bold]all layers": (1000, "1/1 to 700 B"),
    digest_of(1)[: drawing.SHORT_DIGEST]: (1000, "1.0 kB to 700 B in 1.50 s"),
    "merge linux/amd64": (1, "0.50 s"),
    "verify linux/amd64": (1, "99 names, 0.25 s"),
}
SEEN = [[*seen, STEPS[-1]] for count in range(len(STEPS)) for seen in combinations(STEPS[:-1], count)]


def arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"quiet": False, "verbose": 0, "format": "text"} | given)


def draw_all(steps: Sequence[JobProgress], **given: object) -> None:
    with open_drawing(arguments(**given)) as draw:
        for step in steps:
            if draw is not None:
                draw(step)
                draw(step)


@pytest.mark.parametrize("steps", SEEN)
def test_a_line_for_each_step_even_if_values_are_missed(
    steps: list[JobProgress], capsys: pytest.CaptureFixture[str]
) -> None:
    draw_all(steps)
    assert capsys.readouterr().err.splitlines() == LINES


@pytest.mark.parametrize("steps", SEEN)
def test_bars_for_each_step_even_if_values_are_missed(
    steps: list[JobProgress], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = Bars(disable=True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(drawing, "_open_bars", lambda: bars)
    draw_all(steps)
    shown = {task.description: (task.completed, task.fields["detail"]) for task in bars.tasks}
    assert shown == BARS
    assert next(iter(shown)) == "[bold]all layers"


@pytest.mark.parametrize("given", [{"quiet": True}, {"format": "json"}])
def test_nothing_is_drawn(given: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    draw_all(STEPS, **given)
    assert capsys.readouterr().err == ""


def test_a_conversion_in_this_process_is_drawn_like_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    digest, image = Digest(digest_of(1)), "linux/amd64"
    with open_progress(arguments(), verifies=True) as take:
        for event in (
            Planned((image,), (Descriptor.of("application/x", digest, 1000),)),
            LayerStarted(digest, 1000),
            LayerProgress(digest, None, 200),
            LayerFinished(digest, Digest(digest_of(2)), 1000, 700, 1.5),
            MergeStarted(image),
            MergeFinished(image, 0.5),
            VerifyStarted(image, "tree"),
            VerifyFinished(image, 99, 0.25),
        ):
            take(event)
    assert capsys.readouterr().err.splitlines() == LINES
