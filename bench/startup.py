"""What it takes to start: the CPU time of help, which converters ask a builder for before they run it."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.contenders import ENVIRONMENT
from bench.measure import measure
from bench.results import Spread
from bench.table import markdown_table

_RUNS: Final = 20


@dataclass(frozen=True, slots=True)
class Start:
    """A command that does next to nothing.

    Attributes:
        title: as a person types it.
        argv: what is run.
        target_s: CPU seconds that are wanted.
    """

    title: str
    argv: tuple[str, ...]
    target_s: float


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", name, *arguments)


STARTS: Final = (
    Start("nydus-image-py -h", _module("nydus_service.nydus_image", "-h"), 0.08),
    Start("nydus-service --help", _module("nydus_service.cli.main", "--help"), 0.2),
)


@dataclass(frozen=True, slots=True)
class StartRow:
    """All runs of one command: CPU and wall time in seconds."""

    start: Start
    cpu_s: Spread
    wall_s: Spread

    @property
    def misses(self) -> list[str]:
        """In words, the target if it is not reached."""
        if self.cpu_s.median <= self.start.target_s:
            return []
        return [f"{self.cpu_s.median:.3f} s of CPU time; the target is {self.start.target_s:.2f} s"]

    def as_json(self) -> dict[str, Any]:
        return {
            "command": self.start.title,
            "cpu_s": self.cpu_s.median,
            "wall_s": self.wall_s.median,
            "target_s": self.start.target_s,
        }


def measure_starts(runs: int = _RUNS) -> list[StartRow]:
    """Run each command several times, in turn, after a run that does not count.

    Raises:
        CommandFailedError: a command fails.
    """
    taken: dict[str, list[tuple[float, float]]] = {start.title: [] for start in STARTS}
    with tempfile.TemporaryDirectory() as directory:
        for number in range(runs + 1):
            for start in STARTS:
                run = measure(start.argv, Path(directory), ENVIRONMENT)
                if number:
                    taken[start.title].append((run.cpu_s, run.wall_s))
    return [
        StartRow(start, *(Spread.of(values) for values in zip(*taken[start.title], strict=True)))
        for start in STARTS
    ]


def format_starts(rows: Sequence[StartRow]) -> str:
    """The table of the page, in Markdown."""
    cells = [
        (
            f"`{row.start.title}`",
            f"{row.cpu_s.median:.3f} s",
            f"{row.cpu_s.low:.3f}-{row.cpu_s.high:.3f}",
            f"{row.wall_s.median:.3f} s",
            f"{row.start.target_s:.2f} s",
        )
        for row in rows
    ]
    return markdown_table([("", "CPU", "spread", "wall", "target"), *cells])
