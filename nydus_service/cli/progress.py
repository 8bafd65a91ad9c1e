"""Shows the progress of a conversion on stderr: live on a terminal, otherwise one line per step.

A local conversion and a job of a daemon use the same display, which takes values of `JobProgress`. Each value
is compared with the steps already shown, so that no step is lost if intermediate values are skipped.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from nydus_service.cli.output import note
from nydus_service.cli.table import format_seconds, format_size
from nydus_service.convert.progress import Event, LayerProgress, Progress, silent
from nydus_service.jobs.job import ImageStage, ImageStatus, JobProgress, LayerState, LayerStatus
from nydus_service.jobs.progress import ProgressTracker
from nydus_service.oci.visible import on_one_line

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

SHORT_DIGEST = len("sha256:") + 12

Drawing: TypeAlias = Callable[[JobProgress], None]
"""Shows the progress of a conversion; called with each new value."""

_STAGES: Final = tuple(ImageStage)
_NARROW: Final = 80
"""Width of a terminal, in columns, below which percentages take the place of bars and times."""
_REDRAW_S = 0.1
"""Seconds between redraws if only the numbers of bytes have changed."""


@contextmanager
def open_progress(args: argparse.Namespace, *, verifies: bool) -> Iterator[Progress]:
    """Provide the callback for the events of a conversion in this process.

    Args:
        verifies: whether the result is verified.
    """
    with open_drawing(args) as draw:
        yield silent if draw is None else _Follower(draw, verifies=verifies).take


@contextmanager
def open_drawing(args: argparse.Namespace) -> Iterator[Drawing | None]:
    """Provide the display that the options and the terminal select; None: no display."""
    if args.quiet:
        yield None
    elif sys.stderr.isatty() and not args.verbose:  # log lines and live bars do not mix
        with _open_bars() as bars:
            yield _Live(bars).draw
    elif args.format == "json":
        yield None
    else:
        yield _Lines().draw


class _Follower:
    """Draws the progress that events report."""

    def __init__(self, draw: Drawing, *, verifies: bool) -> None:
        self._draw = draw
        self._tracker = ProgressTracker(verifies=verifies, clock=time.monotonic)
        self._drawn_at = 0.0

    def take(self, event: Event) -> None:
        self._tracker.take(event)
        now = time.monotonic()
        if isinstance(event, LayerProgress) and now < self._drawn_at + _REDRAW_S:
            return
        self._drawn_at = now
        self._draw(self._tracker.progress())


class _Lines:
    """Prints one line for each completed step, for logs."""

    def __init__(self) -> None:
        self._planned = False
        self._packed: set[str] = set()
        self._stages: dict[str, int] = {}

    def draw(self, progress: JobProgress) -> None:
        if not self._planned and progress.images:
            self._planned = True
            images = ", ".join(each.image for each in progress.images)
            note(f"{images}: {len(progress.layers)} layers, {format_size(progress.bytes_total)}")
        for layer in progress.layers:
            if layer.state is LayerState.PACKED and layer.digest not in self._packed:
                self._packed.add(layer.digest)
                count = f"{len(self._packed)}/{len(progress.layers)}"
                note(f"layer {count} {layer.digest}: {_change(layer)}")
        for image in progress.images:
            for stage in _passed(self._stages, image):
                if stage is ImageStage.MERGED:
                    note(f"{image.image}: merged in {format_seconds(image.merge_duration_s)}")
                elif stage is ImageStage.VERIFIED:
                    note(f"{image.image}: verified, {_verified(image, ' in ')}")


def _passed(known: dict[str, int], image: ImageStatus) -> tuple[ImageStage, ...]:
    """The stages that an image has reached since the last call, in order. Updates `known`."""
    before, now = known.get(image.image, 0), _STAGES.index(image.stage)
    known[image.image] = now
    return _STAGES[before + 1 : now + 1]


def _change(layer: LayerStatus) -> str:
    sizes = f"{format_size(layer.bytes_in)} to {format_size(layer.bytes_out)}"
    return f"{sizes} in {format_seconds(layer.duration_s)}"


def _verified(image: ImageStatus, between: str) -> str:
    return f"{image.entries:,} names{between}{format_seconds(image.verify_duration_s)}"


class _Live:
    """Draws a bar for all layers together, and a line for each layer that is being built."""

    def __init__(self, bars: "Bars") -> None:
        self._bars = bars
        self._all: TaskID | None = None
        self._layers: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}
        self._packed: set[str] = set()
        self._stages: dict[str, int] = {}
        self._steps: dict[str, TaskID] = {}

    def draw(self, progress: JobProgress) -> None:
        if not progress.images:
            return
        self._draw_all(progress)
        for layer in progress.layers:
            if layer.state is not LayerState.WAITING and layer.digest not in self._packed:
                self._draw_layer(layer)
        for image in progress.images:
            for stage in _passed(self._stages, image):
                self._draw_stage(stage, image)

    def _draw_all(self, progress: JobProgress) -> None:
        count, total = len(progress.layers), progress.bytes_total
        detail = f"0/{count}, {format_size(total)}"
        if progress.bytes_out:
            packed = [layer.bytes_out for layer in progress.layers if layer.state is LayerState.PACKED]
            detail = f"{len(packed)}/{count} to {format_size(sum(packed))}"
        if self._all is None:
            self._all = self._bars.add_task("[bold]all layers", total=total, detail=detail)
        self._bars.update(self._all, completed=progress.bytes_in, detail=detail)

    def _draw_layer(self, layer: LayerStatus) -> None:
        if layer.digest not in self._layers:
            self._begun[layer.digest] = time.monotonic()
            self._layers[layer.digest] = self._bars.add_task(
                layer.digest[:SHORT_DIGEST], total=layer.size, detail=format_size(layer.size)
            )
        task = self._layers[layer.digest]
        if layer.state is LayerState.PACKED:
            self._packed.add(layer.digest)
            size = layer.bytes_in
            self._bars.update(task, completed=size, total=size or 1, detail=_change(layer))
            self._bars.stop_task(task)
        elif layer.bytes_out:
            rate = layer.bytes_out / max(time.monotonic() - self._begun[layer.digest], 0.001)
            sizes = f"{format_size(layer.size)} to {format_size(layer.bytes_out)}"
            self._bars.update(task, completed=layer.bytes_in, detail=f"{sizes}, {format_size(rate)}/s")

    def _draw_stage(self, stage: ImageStage, image: ImageStatus) -> None:
        if stage is ImageStage.MERGING:
            self._begin_step(f"merge {image.image}")
        elif stage is ImageStage.MERGED:
            self._end_step(f"merge {image.image}", format_seconds(image.merge_duration_s))
        elif stage is ImageStage.VERIFYING:
            self._begin_step(f"verify {image.image}")
        elif stage is ImageStage.VERIFIED:
            self._end_step(f"verify {image.image}", _verified(image, ", "))

    def _begin_step(self, step: str) -> None:
        from rich.markup import escape

        self._steps[step] = self._bars.add_task(escape(on_one_line(step)), total=None, detail="")

    def _end_step(self, step: str, detail: str) -> None:
        self._bars.update(self._steps[step], completed=1, total=1, detail=detail)


def _open_bars() -> "Bars":
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    ]
    if console.width < _NARROW:
        columns[1:] = [TextColumn("{task.percentage:.0f}% {task.fields[detail]}")]
    return Bars(*columns, console=console, transient=True)
