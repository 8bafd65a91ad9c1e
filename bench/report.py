"""Rows to a table for the terminal, and to the page docs/benchmarks.md."""

from collections.abc import Mapping, Sequence

from bench.breakdown import format_breakdown
from bench.contenders import CONVERT
from bench.inputs import Input
from bench.results import Row, Spread
from bench.startup import StartRow, format_starts
from bench.table import markdown_table

COLUMNS = ("", "wall", "spread", "CPU", "peak RSS", "out", "ratio", "target")

METHOD = """\
In each round every contender ran once, in turn. *Spread* is the lowest and the
highest wall time. *Ratio* is wall time to the peer's in the same round, as median and spread over the rounds;
the peer is the last line of each table. *CPU* is user and system time of all processes. *Peak RSS* is the
highest sum of resident sizes over the process tree, sampled every 20 ms. *Out* is all that was written: blobs
and documents, or the merged bootstrap. Ours is timed from the start of the interpreter to its end, with
everything that it writes; the Go converter from its first read to its last commit, without its start, import
and export. The floor is the CPU time of inflating, digesting and compressing alone, divided by the cores.

The stages of ours are told apart by the lines that it prints when they are done. They add up to the whole;
what runs beside a stage counts in it. *Cores busy* is CPU by wall time. With `--verify none` the bootstrap
layer is part of the rest. The last two inputs are there for their memory: they were converted once. In the
plot the ratio stands in brackets."""


def format_table(rows: Sequence[Row]) -> str:
    """A table of plain text, a block for each input and race."""
    blocks = []
    for image, race, group in _grouped(rows):
        lines = [COLUMNS, *map(_cells, group)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
        table = [
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        blocks.append("\n".join([f"{race}: {describe_input(image)}", *table]))
    return "\n\n".join(blocks)


def format_page(
    rows: Sequence[Row],
    starts: Sequence[StartRow],
    failures: Sequence[str],
    facts: Mapping[str, str],
    *,
    scale: float,
    rounds: int,
    cores: int,
    command: str,
) -> str:
    """The page in Markdown.

    Args:
        failures: in words, contenders that have no row since they failed.
    """
    parts = [
        "# Benchmarks\n",
        f"Made by `{command}`, like its plot and `benchmarks.json`, which has every run. Do not edit.\n",
        "![wall time of conversions](benchmarks.svg)\n",
        f"Values are medians of {rounds} round{'s' if rounds > 1 else ''}. {METHOD}\n",
    ]
    if scale != 1:
        parts.append(f"**The inputs were scaled to {scale:g} of their size; the targets are for 1.**\n")
    for image, race, group in _grouped(rows):
        parts.append(f"## {race.capitalize()}: {describe_input(image)}\n")
        parts.append(markdown_table([COLUMNS, *map(_cells, group)]))
        if race == CONVERT and (breakdown := format_breakdown(group, cores)):
            parts.append(f"### Where the time goes\n\n{breakdown}")
    parts.append(f"## Start: the CPU time of help\n\n{format_starts(starts)}")
    parts.append("## Where it loses\n")
    losses = [
        f"- {row.race.name}, {row.image.title}, {row.contender.title}: {miss}."
        for row in rows
        for miss in row.misses
    ]
    losses += [f"- `{row.start.title}`: {miss}." for row in starts for miss in row.misses]
    parts.append("\n".join(losses or ["- Nowhere in these rows."]) + "\n")
    if failures:
        parts.append("## What failed\n")
        parts.append("\n".join(f"- {failure.splitlines()[0]}" for failure in failures) + "\n")
    parts.append("## Measured on\n")
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n")
    return "\n".join(parts)


def describe_input(image: Input) -> str:
    sizes = f"{image.raw_bytes / 1e6:,.0f} MB raw, {image.gzip_bytes / 1e6:,.0f} MB gzip"
    layers = f"{image.layers} layers, " if image.layers > 1 else ""
    return f"{image.title} ({layers}{sizes}, {image.entries:,} entries)"


def _grouped(rows: Sequence[Row]) -> list[tuple[Input, str, list[Row]]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.image.name, row.race.name), []).append(row)
    return [(group[0].image, group[0].race.name, group) for group in groups.values()]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.contender.title,
        f"{row.wall_s.median:.2f} s",
        f"{row.wall_s.low:.2f}-{row.wall_s.high:.2f}",
        f"{row.cpu_s.median:.2f} s",
        f"{row.peak_rss / 1e6:.0f} MB",
        f"{row.output_bytes / 1e6:.1f} MB",
        _ratio(row.ratio) if row.ratio else "",
        _targets(row),
    )


def _targets(row: Row) -> str:
    ratio = f"{row.target:.2f}" if row.target else ""
    memory = f"{row.memory_target / 1e6:.0f} MB" if row.memory_target else ""
    return ", ".join(filter(None, (ratio, memory)))


def _ratio(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
