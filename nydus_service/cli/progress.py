"""Shows a conversion while it runs: live on a terminal, else a line for each step. All on stderr."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nydus_service.cli.table import format_seconds, format_size
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
    silent,
)

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from nydus_service.oci.digest import Digest

SHORT_DIGEST = len("sha256:") + 12


@contextmanager
def open_progress(args: argparse.Namespace) -> Iterator[Progress]:
    """Give the callback that shows events, in the way that the options and the terminal ask for."""
    if args.quiet:
        yield silent
    elif sys.stderr.isatty() and not args.verbose:  # log lines and live bars do not mix
        with _open_bars() as bars:
            yield _Live(bars).show
    elif args.format == "json":
        yield silent
    else:
        yield _Lines().show


class _Lines:
    """A line for each step that is done; only what a log needs."""

    def __init__(self) -> None:
        self._layers = 0
        self._done = 0

    def show(self, event: Event) -> None:
        line = self._line(event)
        if line:
            print(line, file=sys.stderr, flush=True)

    def _line(self, event: Event) -> str:
        if isinstance(event, Planned):
            self._layers = len(event.layers)
            sizes = format_size(sum(layer.size for layer in event.layers))
            return f"{', '.join(event.images)}: {self._layers} layers, {sizes}"
        if isinstance(event, LayerFinished):
            self._done += 1
            return f"layer {self._done}/{self._layers} {event.digest}: {_change(event)}"
        if isinstance(event, MergeFinished):
            return f"{event.image}: merged in {format_seconds(event.duration_s)}"
        if isinstance(event, VerifyFinished):
            return f"{event.image}: verified, {event.entries:,} names in {format_seconds(event.duration_s)}"
        return ""


def _change(event: LayerFinished) -> str:
    sizes = f"{format_size(event.bytes_in)} to {format_size(event.bytes_out)}"
    return f"{sizes} in {format_seconds(event.duration_s)}"


class _Live:
    """A bar for all layers together, and a line for each one that is being built.

    A builder that reads a layer's file itself does not tell how far it is: its blob's size, held
    against what the finished layers became, stands for that.
    """

    def __init__(self, bars: "Bars") -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._sizes: dict[Digest, int] = {}
        self._begun: dict[Digest, float] = {}
        self._finished_in = self._finished_out = 0
        self._all: TaskID | None = None

    def show(self, event: Event) -> None:
        if isinstance(event, Planned):
            total = sum(layer.size for layer in event.layers)
            self._all = self._bars.add_task(
                "[bold]all layers", total=total, detail=f"0/{len(event.layers)}, {format_size(total)}"
            )
            self._count = len(event.layers)
            self._done = 0
        elif isinstance(event, LayerStarted):
            self._sizes[event.digest] = event.size
            self._begun[event.digest] = time.monotonic()
            self._tasks[event.digest] = self._bars.add_task(
                event.digest[:SHORT_DIGEST], total=event.size, detail=format_size(event.size)
            )
        elif isinstance(event, LayerProgress):
            self._show_layer(event)
        elif isinstance(event, LayerFinished):
            self._finish_layer(event)
        elif isinstance(event, MergeStarted):
            self._begin_step("merge", event.image)
        elif isinstance(event, VerifyStarted):
            self._begin_step("verify", event.image)
        elif isinstance(event, MergeFinished):
            self._end_step("merge", event.image, format_seconds(event.duration_s))
        elif isinstance(event, VerifyFinished):
            told = f"{event.entries:,} names, {format_seconds(event.duration_s)}"
            self._end_step("verify", event.image, told)

    def _show_layer(self, event: LayerProgress) -> None:
        task = self._tasks.get(event.digest)
        if task is None:
            return
        rate = event.bytes_out / max(time.monotonic() - self._begun[event.digest], 0.001)
        size = self._sizes[event.digest]
        ratio = self._finished_out / self._finished_in if self._finished_in else 1.0
        estimate = min(int(event.bytes_out / max(ratio, 0.01)), int(size * 0.99))
        self._bars.update(
            task,
            completed=estimate if event.bytes_in is None else event.bytes_in,
            detail=f"{format_size(size)} to {format_size(event.bytes_out)}, {format_size(rate)}/s",
        )
        self._show_all()

    def _finish_layer(self, event: LayerFinished) -> None:
        self._finished_in += event.bytes_in
        self._finished_out += event.bytes_out
        self._done += 1
        task = self._tasks.pop(event.digest, None)
        if task is not None:
            self._bars.update(
                task, completed=event.bytes_in, total=event.bytes_in or 1, detail=_change(event)
            )
            self._bars.stop_task(task)
        self._show_all()

    def _show_all(self) -> None:
        if self._all is None:
            return
        running = sum(task.completed for task in self._bars.tasks if task.id in self._tasks.values())
        detail = f"{self._done}/{self._count} to {format_size(self._finished_out)}"
        self._bars.update(self._all, completed=self._finished_in + running, detail=detail)

    def _begin_step(self, step: str, image: str) -> None:
        self._tasks[f"{step} {image}"] = self._bars.add_task(f"{step} {image}", total=None, detail="")

    def _end_step(self, step: str, image: str, told: str) -> None:
        task = self._tasks.pop(f"{step} {image}", None)
        if task is not None:
            self._bars.update(task, completed=1, total=1, detail=told)


def _open_bars() -> "Bars":
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    )
