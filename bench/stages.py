"""Where a run's time goes: the stages of a conversion, the codecs of the floor.

A conversion says a line when a step is done, so the lines on its standard error part its time. What runs
beside a stage (the bootstrap layer beside verification) counts in that stage.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.measure import Measurement

START, PACK, MERGE, VERIFY, REST = "start", "pack", "merge", "verify", "rest"

_ENDS = (
    (START, re.compile(r": \d+ layers, ")),
    (PACK, re.compile(r"layer \d+/\d+ ")),
    (MERGE, re.compile(r"\S+: merged in ")),
    (VERIFY, re.compile(r"\S+: verified, ")),
)
"""Stages in their order, and what the line says that ends them: the last such line, if there are several."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a run. `cpu_s` is what all processes took in it, or its codec alone."""

    name: str
    wall_s: float
    cpu_s: float


def stages_of(taken: Measurement) -> tuple[Part, ...]:
    """The stages of `nydus-service convert`; they add up to the whole. One that says nothing has no part."""
    parts = []
    wall_s = cpu_s = 0.0
    for name, pattern in _ENDS:
        ends = [line for line in taken.stderr if pattern.search(line.text)]
        if ends:
            parts.append(Part(name, ends[-1].at_s - wall_s, ends[-1].cpu_s - cpu_s))
            wall_s, cpu_s = ends[-1].at_s, ends[-1].cpu_s
    parts.append(Part(REST, taken.wall_s - wall_s, taken.cpu_s - cpu_s))
    return tuple(parts)


def median_parts(runs: Sequence[Sequence[Part]]) -> list[Part]:
    """Part by part over several runs, which have the same ones."""
    columns = zip(*runs, strict=True)
    return [
        Part(same[0].name, median(p.wall_s for p in same), median(p.cpu_s for p in same)) for same in columns
    ]
