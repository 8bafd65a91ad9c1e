"""Compute a job's progress from the events of its conversion. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

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
from nydus_service.jobs.job import ImageStage, ImageStatus, JobProgress, LayerState, LayerStatus

_LEAST_RATIO = 0.01
_UNFINISHED_AT_MOST = 0.99
"""An estimate never reports a layer as complete."""


@dataclass(slots=True)
class _PackedBytes:
    """Bytes of a layer that is being packed. Updated for every piece of data, so it must be cheap."""

    size: int
    bytes_in: int | None = 0
    bytes_out: int = 0


class ProgressTracker:
    """Follows one try of a job: `take` notes an event, `progress` returns the current progress."""

    def __init__(self, *, verifies: bool, clock: Callable[[], float]) -> None:
        """
        Args:
            verifies: whether images are verified after they are merged.
            clock: seconds, monotonic.
        """
        self._verifies = verifies
        self._clock = clock
        self._layers: dict[str, LayerStatus] = {}
        self._images: dict[str, ImageStatus] = {}
        self._flows: dict[str, _PackedBytes] = {}
        self._planned = self._named = False
        self._begun: float | None = None
        self._finished_in = self._finished_out = 0
        self.stage = "preparing"

    def take(self, event: Event) -> bool:
        """Note an event. Returns whether it began another stage."""
        if isinstance(event, LayerProgress):
            flow = self._flows[event.digest]
            flow.bytes_in, flow.bytes_out = event.bytes_in, event.bytes_out
            return False
        self._note(event)
        before, self.stage = self.stage, self._find_stage()
        return before != self.stage

    def progress(self) -> JobProgress:
        layers = tuple(map(self._layer, self._layers.values()))
        bytes_in = sum(layer.bytes_in for layer in layers)
        total = sum(layer.size for layer in layers)
        return JobProgress(
            stage=self.stage,
            layers=layers,
            images=tuple(self._images.values()),
            bytes_in=bytes_in,
            bytes_total=total,
            bytes_out=sum(layer.bytes_out for layer in layers),
            eta_s=self._eta_s(bytes_in, total),
        )

    def _note(self, event: Event) -> None:
        if isinstance(event, Planned):
            self._planned = True
            self._layers = {
                each.digest: LayerStatus(digest=str(each.digest), size=each.size) for each in event.layers
            }
            self._images = {image: ImageStatus(image=image) for image in event.images}
        elif isinstance(event, LayerStarted):
            self._begun = self._clock() if self._begun is None else self._begun
            self._flows[event.digest] = _PackedBytes(event.size)
            self._layers[event.digest] = replace(self._layers[event.digest], state=LayerState.PACKING)
        elif isinstance(event, LayerFinished):
            self._finish_layer(event)
        elif isinstance(event, MergeStarted):
            self._change_image(event.image, stage=ImageStage.MERGING)
        elif isinstance(event, MergeFinished):
            self._change_image(event.image, stage=ImageStage.MERGED, merge_duration_s=event.duration_s)
        elif isinstance(event, VerifyStarted):
            self._change_image(event.image, stage=ImageStage.VERIFYING)
        elif isinstance(event, VerifyFinished):
            self._change_image(
                event.image,
                stage=ImageStage.VERIFIED,
                verify_duration_s=event.duration_s,
                entries=event.entries,
            )
        elif isinstance(event, Named):
            self._named = True

    def _finish_layer(self, event: LayerFinished) -> None:
        self._flows.pop(event.digest, None)
        self._finished_in += event.bytes_in
        self._finished_out += event.bytes_out
        self._layers[event.digest] = replace(
            self._layers[event.digest],
            state=LayerState.PACKED,
            bytes_in=event.bytes_in,
            bytes_out=event.bytes_out,
            blob=str(event.blob),
            duration_s=event.duration_s,
        )

    def _change_image(self, image: str, **fields: object) -> None:
        self._images[image] = replace(self._images[image], **fields)

    def _find_stage(self) -> str:
        """The earliest stage that is not complete; the images of an index may be in several at a time."""
        if self._named:
            return "finishing"
        if not self._planned:
            return "preparing"
        if any(layer.state is not LayerState.PACKED for layer in self._layers.values()):
            return "packing"
        stages = {image.stage for image in self._images.values()}
        if stages & {ImageStage.WAITING, ImageStage.MERGING}:
            return "merging"
        return "verifying" if self._verifies and stages - {ImageStage.VERIFIED} else "finishing"

    def _layer(self, layer: LayerStatus) -> LayerStatus:
        flow = self._flows.get(layer.digest)
        if flow is None:
            return layer
        bytes_in = self._estimate(flow) if flow.bytes_in is None else flow.bytes_in
        return replace(layer, bytes_in=bytes_in, bytes_out=flow.bytes_out)

    def _estimate(self, flow: _PackedBytes) -> int:
        """Estimate the input of a builder that reads the file itself, from its output and earlier layers."""
        ratio = self._finished_out / self._finished_in if self._finished_in else 1.0
        return int(min(flow.bytes_out / max(ratio, _LEAST_RATIO), flow.size * _UNFINISHED_AT_MOST))

    def _eta_s(self, bytes_in: int, total: int) -> float | None:
        if self._planned and self.stage != "packing":
            return 0.0
        if self._begun is None or not bytes_in:
            return None
        return (self._clock() - self._begun) * (total - bytes_in) / bytes_in
