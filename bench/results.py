"""What was measured, as values: runs by input, race and contender; medians, spreads, ratios."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.contenders import Contender, Race, Run
from bench.inputs import Input
from bench.stages import Part, median_parts


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and between what the single values lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Row:
    """All runs of one contender on one input.

    Attributes:
        ratio: wall time to the peer's in the same round, pair by pair; None for want of a peer, and for
            the peer itself.
        target: the ratio that is wanted (design, section on speed); None where none is set.
        memory_target: likewise the peak in bytes.
    """

    image: Input
    race: Race
    contender: Contender
    runs: tuple[Run, ...]
    ratio: Spread | None
    target: float | None
    memory_target: int | None

    @property
    def wall_s(self) -> Spread:
        return Spread.of([run.wall_s for run in self.runs])

    @property
    def cpu_s(self) -> Spread:
        return Spread.of([run.cpu_s for run in self.runs])

    @property
    def peak_rss(self) -> int:
        """The highest of all runs, in bytes."""
        return max(run.peak_rss for run in self.runs)

    @property
    def output_bytes(self) -> int:
        return self.runs[-1].output_bytes

    @property
    def parts(self) -> list[Part]:
        """Medians, part by part."""
        return median_parts([run.parts for run in self.runs])

    @property
    def misses(self) -> list[str]:
        """In words, the targets that this row does not reach, and whether it loses to the peer."""
        told = []
        if self.ratio and self.target and self.ratio.median > self.target:
            told.append(f"{self.ratio.median:.2f} of the peer's time; the target is {self.target:.2f}")
        elif self.ratio and self.ratio.median > 1:
            told.append(f"slower than the peer: {self.ratio.median:.2f} of its time")
        if self.memory_target and self.peak_rss > self.memory_target:
            told.append(
                f"{self.peak_rss / 1e6:.0f} MB at its peak; the target is {self.memory_target / 1e6:.0f} MB"
            )
        return told

    def as_json(self) -> dict[str, Any]:
        return {
            "input": self.image.name,
            "race": self.race.name,
            "contender": self.contender.key,
            "runs": [asdict(run) for run in self.runs],
            "wall_s": asdict(self.wall_s),
            "cpu_s": asdict(self.cpu_s),
            "peak_rss": self.peak_rss,
            "output_bytes": self.output_bytes,
            "ratio": self.ratio and asdict(self.ratio),
            "target": self.target,
            "misses": self.misses,
        }


TARGETS = {
    ("libraries", "convert", "ours"): 0.30,
    ("five-layers", "convert", "ours"): 0.30,
    ("one-liners", "convert", "ours"): 0.40,
    ("small-files", "convert", "ours"): 0.25,
    ("libraries", "convert", "ours-native"): 0.50,
    ("five-layers", "convert", "ours-native"): 0.50,
    ("one-liners", "convert", "ours-native"): 0.50,
    ("small-files", "convert", "ours-native"): 0.50,
    ("one-liners", "merge", "embedded"): 0.30,
}
"""Wall time to the peer's, verification included, that is wanted at the full scale."""

MEMORY_TARGETS = {
    ("one-liners", "convert", "ours"): 400_000_000,
    ("large-file", "convert", "ours"): 400_000_000,
    ("many-layers", "convert", "ours"): 400_000_000,
}
"""The design names the first; neither a file's size nor the number of layers is to raise it."""


def rows_of(image: Input, race: Race, rounds: Sequence[dict[str, Run]]) -> list[Row]:
    """The rows of one race.

    Args:
        rounds: what each contender of the race took in each round, by its key.
    """
    rows = []
    for contender in race.contenders:
        key = (image.name, race.name, contender.key)
        ratio = None
        if contender.key != race.peer and race.peer in rounds[-1]:
            pairs = [(each[contender.key], each[race.peer]) for each in rounds]
            ratio = Spread.of([ours.wall_s / peer.wall_s for ours, peer in pairs])
        runs = tuple(each[contender.key] for each in rounds)
        rows.append(Row(image, race, contender, runs, ratio, TARGETS.get(key), MEMORY_TARGETS.get(key)))
    return rows
