"""From events to progress."""

import pytest

from nydus_service.convert.progress import (
    Event,
    LayerFinished,
    LayerProgress,
    LayerStarted,
    MergeFinished,
    MergeStarted,
    Named,
    Planned,
    VerifyFinished,
    VerifyStarted,
)
from nydus_service.jobs.job import ImageStage, LayerState
from nydus_service.jobs.progress import ProgressTracker
from tests.unit.jobs.runner import descriptor

BIG, SMALL = descriptor(3000), descriptor(1000)
BLOB = descriptor(1).digest
IMAGES = ("linux/amd64", "linux/arm64")


class Clock:
    """Time that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def stages(tracker: ProgressTracker, *events: Event) -> list[str]:
    """The stages that these events begin."""
    return [tracker.stage for event in events if tracker.take(event)]


PACKED = (
    LayerFinished(BIG.digest, BLOB, 3000, 600, 0.5),
    LayerFinished(SMALL.digest, BLOB, 1000, 200, 0.25),
)


def test_stages_of_an_index() -> None:
    """Its images go at their own pace: the stage is that of the last one."""
    tracker = ProgressTracker(verifies=True, clock=Clock())
    assert tracker.stage == "preparing"
    assert stages(tracker, Planned(IMAGES, (BIG, SMALL))) == ["packing"]
    assert stages(tracker, LayerStarted(BIG.digest, 3000), LayerStarted(SMALL.digest, 1000)) == []
    assert stages(tracker, PACKED[1], MergeStarted(IMAGES[0]), MergeFinished(IMAGES[0], 0.1)) == []
    assert stages(tracker, VerifyStarted(IMAGES[0], "tree"), PACKED[0]) == ["merging"]
    assert stages(tracker, VerifyFinished(IMAGES[0], 9, 0.1), MergeStarted(IMAGES[1])) == []
    assert stages(tracker, MergeFinished(IMAGES[1], 0.1), VerifyStarted(IMAGES[1], "tree")) == ["verifying"]
    assert stages(tracker, VerifyFinished(IMAGES[1], 8, 0.2)) == ["finishing"]
    assert stages(tracker, Named("app", descriptor())) == []
    first, second = tracker.progress().images
    assert (first.stage, second.stage) == (ImageStage.VERIFIED, ImageStage.VERIFIED)
    assert (first.entries, second.entries, second.verify_duration_s) == (9, 8, 0.2)


def test_without_verification() -> None:
    tracker = ProgressTracker(verifies=False, clock=Clock())
    events = (Planned(IMAGES[:1], (BIG, SMALL)), *PACKED, MergeStarted(IMAGES[0]))
    assert stages(tracker, *events) == ["packing", "merging"]
    assert stages(tracker, MergeFinished(IMAGES[0], 0.1)) == ["finishing"]


def test_bytes_and_time_to_go() -> None:
    clock = Clock()
    tracker = ProgressTracker(verifies=True, clock=clock)
    tracker.take(Planned(IMAGES[:1], (BIG, SMALL)))
    assert tracker.progress().eta_s is None
    tracker.take(LayerStarted(BIG.digest, 3000))
    clock.now += 2
    tracker.take(LayerProgress(BIG.digest, 1000, 250))
    progress = tracker.progress()
    assert (progress.bytes_in, progress.bytes_out, progress.bytes_total) == (1000, 250, 4000)
    assert progress.eta_s == pytest.approx(6)
    assert [layer.state for layer in progress.layers] == [LayerState.PACKING, LayerState.WAITING]
    for event in PACKED:
        tracker.take(event)
    progress = tracker.progress()
    assert (progress.bytes_in, progress.bytes_out, progress.eta_s) == (4000, 800, 0)
    assert {layer.blob for layer in progress.layers} == {BLOB}


def test_a_builder_that_reads_the_file_itself() -> None:
    """How much it has read is estimated by what became of other layers, and never all of it."""
    tracker = ProgressTracker(verifies=True, clock=Clock())
    for event in (Planned(IMAGES[:1], (BIG, SMALL)), LayerStarted(BIG.digest, 3000), PACKED[1]):
        tracker.take(event)
    tracker.take(LayerProgress(BIG.digest, None, 100))
    assert tracker.progress().layers[0].bytes_in == 500
    tracker.take(LayerProgress(BIG.digest, None, 5000))
    assert tracker.progress().layers[0].bytes_in == 2970


def test_a_layer_of_no_bytes() -> None:
    tracker = ProgressTracker(verifies=True, clock=Clock())
    empty = descriptor(0)
    tracker.take(Planned(IMAGES[:1], (empty,)))
    tracker.take(LayerStarted(empty.digest, 0))
    tracker.take(LayerProgress(empty.digest, None, 0))
    assert tracker.progress().eta_s is None
    tracker.take(LayerFinished(empty.digest, BLOB, 0, 100, 0.1))
    assert tracker.progress().eta_s == 0
