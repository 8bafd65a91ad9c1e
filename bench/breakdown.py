"""Rows of one input to the part of the page that tells where the time of its conversion goes."""

from collections.abc import Sequence

from bench.results import Row
from bench.stages import MERGE, PACK, REST, START, VERIFY, Part
from bench.table import markdown_table

TITLES = {
    START: "start and plan",
    PACK: "packing",
    MERGE: "merge",
    VERIFY: "verification; beside it the bootstrap layer",
    REST: "the rest",
}

KEY = "ours"
NATIVE = "ours-native"
OTHERS = {"ours-unverified": "--verify none", NATIVE: "native builder"}
"""Contenders whose stages stand beside those of `KEY`, and how their columns are called."""

MOST = 0.85
"""With this share of all cores busy there is hardly anything to gain by waiting less."""

ONE_CORE = 1.15


def format_breakdown(rows: Sequence[Row], cores: int) -> str:
    """Stages against the floor, and what the numbers say; empty if ours is not among the rows.

    Args:
        rows: of one input and race.
    """
    by_key = {row.contender.key: row for row in rows}
    ours = by_key.get(KEY)
    if ours is None:
        return ""
    others = [row for key, row in by_key.items() if key in OTHERS]
    tables = [_stages(ours, others)]
    floor = by_key.get("floor")
    if floor:
        tables.append(_codecs(floor, cores))
    told = [_explain(ours, floor, cores)]
    peer = by_key.get(ours.race.peer)
    native = by_key.get(NATIVE)
    if peer and floor and _is_late(ours):
        told.append(_explain_miss(ours, peer, floor, cores))
    if peer and native and _is_late(native):
        told.append(_explain_native(native, peer))
    return "\n".join([*tables, " ".join(told) + "\n"])


def _stages(ours: Row, others: Sequence[Row]) -> str:
    head = ["ours", "wall", "share", "CPU", "cores busy"]
    head += [f"{OTHERS[row.contender.key]}: wall" for row in others]
    beside = [{part.name: part.wall_s for part in row.parts} for row in others]
    lines = [
        [
            TITLES[part.name],
            f"{part.wall_s:.2f} s",
            f"{part.wall_s / _wall(ours.parts):.0%}",
            f"{part.cpu_s:.2f} s",
            f"{_busy(part):.1f}",
            *(f"{walls[part.name]:.2f} s" if part.name in walls else "" for walls in beside),
        ]
        for part in ours.parts
    ]
    return markdown_table([head, *lines])


def _codecs(floor: Row, cores: int) -> str:
    lines = [[part.name, f"{part.cpu_s:.2f} s", f"{part.wall_s:.2f} s"] for part in floor.parts]
    cpu_s = sum(part.cpu_s for part in floor.parts)
    return markdown_table(
        [
            ["floor", "CPU", f"over {cores} cores"],
            *lines,
            ["all codecs", f"{cpu_s:.2f} s", f"{cpu_s / cores:.2f} s"],
        ]
    )


def _explain(ours: Row, floor: Row | None, cores: int) -> str:
    """What is the largest stage, and what bounds it, as far as the numbers of the run show that."""
    largest = max(ours.parts, key=lambda part: part.wall_s)
    told = [
        f"The largest stage of ours is {TITLES[largest.name].partition(';')[0]}: {largest.wall_s:.2f} s, "
        f"{largest.wall_s / _wall(ours.parts):.0%} of the time, with {_busy(largest):.1f} of {cores} cores "
        f"busy: {_bound(largest, cores)}."
    ]
    if floor:
        codecs_s = sum(part.cpu_s for part in floor.parts)
        if largest.name == PACK:
            told.append(
                f"Of its {largest.cpu_s:.2f} s CPU the codecs need {codecs_s:.2f} s; what is left is Python "
                "(tar headers, tables, what verification reads meanwhile) and the start of processes."
                if codecs_s < largest.cpu_s
                else f"Its {largest.cpu_s:.2f} s CPU are no more than the {codecs_s:.2f} s of the floor."
            )
        costly = max(floor.parts, key=lambda part: part.cpu_s)
        told.append(
            f"Of the codecs {costly.name} takes the most, {costly.cpu_s / codecs_s:.0%}. "
            f"The whole conversion takes {_wall(ours.parts) / (codecs_s / cores):.1f} times the floor."
        )
    return " ".join(told)


def _explain_miss(ours: Row, peer: Row, floor: Row, cores: int) -> str:
    """What the target would leave for all that is no codec."""
    wanted_s = (ours.target or 0) * peer.wall_s.median
    cpu_s = wanted_s * cores
    codecs_s = sum(part.cpu_s for part in floor.parts)
    return (
        f"The target, {ours.target:.2f} of the peer's time, is {wanted_s:.2f} s: {cpu_s:.2f} s CPU with no "
        f"core ever idle, of which the codecs leave {cpu_s - codecs_s:.2f} s for all else; ours takes "
        f"{ours.cpu_s.median - codecs_s:.2f} s for that."
    )


def _explain_native(native: Row, peer: Row) -> str:
    """What of the time with the native builder is not ours to shorten."""
    merge_s = next(part.wall_s for part in native.parts if part.name == MERGE)
    return (
        f"With the native builder its merge, one thread with nothing to do beside it, takes {merge_s:.2f} s: "
        f"{merge_s / peer.wall_s.median:.2f} of the peer's whole time, which has it, too."
    )


def _is_late(row: Row) -> bool:
    return row.ratio is not None and row.target is not None and row.ratio.median > row.target


def _bound(part: Part, cores: int) -> str:
    busy = _busy(part)
    if busy >= MOST * cores:
        return "the processors bound it"
    if busy <= ONE_CORE:
        return "it does not get beyond one core"
    return "it keeps more than one core busy, but not all"


def _wall(parts: Sequence[Part]) -> float:
    return sum(part.wall_s for part in parts)


def _busy(part: Part) -> float:
    """Cores that worked at a time, on average."""
    return part.cpu_s / part.wall_s if part.wall_s else 0.0
