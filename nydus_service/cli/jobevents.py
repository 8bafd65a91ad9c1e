"""A job that is watched from afar, as the events that its conversion tells where it runs.

Who watches sees some of a job's values, never all: what has happened between two of them is told by what
differs. Everything is told in its order, whatever was missed.
"""

from collections.abc import Callable
from typing import Final

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
from nydus_service.jobs.job import ImageStage, ImageStatus, Job, LayerState, LayerStatus
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest

_STAGES: Final = tuple(ImageStage)
_ANY_TYPE: Final = "application/octet-stream"
"""Of a layer whose media type a job does not tell; nobody shows it."""


class JobEvents:
    """Tells of one try of a job."""

    def __init__(self, show: Progress) -> None:
        self._show = show
        self._planned = False
        self._layers: dict[str, LayerState] = {}
        self._images: dict[str, int] = {}

    def tell(self, job: Job) -> None:
        """Show what is new since the value before."""
        progress = job.progress
        if not self._planned and (progress.layers or progress.images):
            self._planned = True
            layers = [Descriptor.of(_ANY_TYPE, Digest(each.digest), each.size) for each in progress.layers]
            self._show(Planned(tuple(each.image for each in progress.images), tuple(layers)))
        for layer in progress.layers:
            self._tell_layer(layer)
        for image in progress.images:
            self._tell_image(image, job.request.options.verify)

    def _tell_layer(self, layer: LayerStatus) -> None:
        before = self._layers.get(layer.digest, LayerState.WAITING)
        if layer.state is LayerState.WAITING or before is LayerState.PACKED:
            return
        digest = Digest(layer.digest)
        if before is LayerState.WAITING:
            self._show(LayerStarted(digest, layer.size))
        if layer.state is LayerState.PACKING:
            self._show(LayerProgress(digest, layer.bytes_in, layer.bytes_out))
        else:
            sizes = layer.bytes_in, layer.bytes_out
            self._show(LayerFinished(digest, Digest(layer.blob), *sizes, layer.duration_s))
        self._layers[layer.digest] = layer.state

    def _tell_image(self, image: ImageStatus, mode: str) -> None:
        before, now = self._images.get(image.image, 0), _STAGES.index(image.stage)
        for stage in _STAGES[before + 1 : now + 1]:
            self._show(_EVENTS[stage](image, mode))
        self._images[image.image] = now


_EVENTS: Final[dict[ImageStage, Callable[[ImageStatus, str], Event]]] = {
    ImageStage.MERGING: lambda image, _: MergeStarted(image.image),
    ImageStage.MERGED: lambda image, _: MergeFinished(image.image, image.merge_duration_s),
    ImageStage.VERIFYING: lambda image, mode: VerifyStarted(image.image, mode),
    ImageStage.VERIFIED: lambda image, _: VerifyFinished(image.image, image.entries, image.verify_duration_s),
}
