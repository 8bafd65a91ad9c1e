"""`python -m bench`: makes inputs, lets the contenders run in turn, tells and writes the results."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.contenders import Race, Run, compile_ours, races, races_for
from bench.inputs import Input, make_input
from bench.machine import describe_machine
from bench.measure import CommandFailedError
from bench.plot import format_plot
from bench.recipes import RECIPES
from bench.report import format_page, format_table
from bench.results import Row, rows_of
from bench.startup import format_starts, measure_starts
from nydus_service.cli.options import positive_count

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
BUILT = CACHE / "nydus-service-ci"
NATIVE = Path(os.environ.get("NYDUS_REFERENCE") or BUILT / "oracle" / "release" / "rafs-reference")
PEER = Path(os.environ.get("NYDUS_GO_CONVERTER") or BUILT / "go" / "bin" / "go-converter")

ROUNDS = 3
EPILOG = """\
Without the native builder (cargo builds it, see tests/reference) or the Go converter (see bench/peer) their
rows are left out. At the full scale the inputs take some 9 GB of disk, their conversion 8 GB more, and the
whole about 35 minutes on two cores; let nothing else run meanwhile. The inputs that are there for memory,
large-file and many-layers, are converted once, whatever --rounds says.
For a quick look: --scale 0.01 --rounds 1."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [recipe.name for recipe in RECIPES]
    parser.add_argument("--scale", type=float, default=1.0, help="size of the inputs (default: %(default)s)")
    parser.add_argument("--rounds", type=positive_count, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--input", action="append", choices=names, help="only this one; repeatable")
    parser.add_argument(
        "--race", action="append", choices=("convert", "create", "merge"), help="only this one; repeatable"
    )
    parser.add_argument("--native", type=Path, default=NATIVE, help="the native builder")
    parser.add_argument("--peer", type=Path, default=PEER, help="the Go converter")
    parser.add_argument(
        "--inputs-dir", type=Path, default=CACHE / "nydus-service-bench", help="where inputs are kept"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="DIR",
        help="where benchmarks.md, .svg and .json go\n(default: docs, if all is measured at the full scale)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    native, peer = (_if_runnable(path) for path in (args.native, args.peer))
    facts = describe_machine(native, peer)
    compile_ours()
    rows: list[Row] = []
    failures: list[str] = []
    for recipe in RECIPES:
        if args.input and recipe.name not in args.input:
            continue
        _tell(f"making {recipe.name}")
        image = make_input(recipe, args.scale, args.inputs_dir)
        for race in races_for(image, races(native, peer)):
            if not args.race or race.name in args.race:
                found, failed = run_race(image, race, 1 if image.for_memory else args.rounds)
                rows += found
                failures += failed
    print(format_table(rows))
    starts = measure_starts()
    print(f"\nstart\n{format_starts(starts)}")
    is_whole = args.scale == 1 and not args.input and not args.race
    docs = args.docs or (Path("docs") if is_whole else None)
    if docs:
        page = format_page(
            rows,
            starts,
            failures,
            facts,
            scale=args.scale,
            rounds=args.rounds,
            cores=len(os.sched_getaffinity(0)),
            command=_shown_command(args),
        )
        results = {
            "facts": facts,
            "scale": args.scale,
            "rows": [row.as_json() for row in rows],
            "starts": [row.as_json() for row in starts],
            "failures": failures,
        }
        docs.mkdir(parents=True, exist_ok=True)
        (docs / "benchmarks.md").write_text(page)
        (docs / "benchmarks.svg").write_text(format_plot(rows))
        (docs / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
    return 1 if failures else 0


def _shown_command(args: argparse.Namespace) -> str:
    """What was run, but for where things are on this machine."""
    words = ["python -m bench"]
    if args.scale != 1:
        words.append(f"--scale {args.scale:g}")
    if args.rounds != ROUNDS:
        words.append(f"--rounds {args.rounds}")
    words += [f"--input {name}" for name in args.input or ()]
    words += [f"--race {name}" for name in args.race or ()]
    return " ".join(words)


def run_race(image: Input, race: Race, rounds: int) -> tuple[list[Row], list[str]]:
    """Let the contenders run in turn, round by round, each in an empty directory.

    Returns:
        The rows of those who did all rounds, and in words how others failed, who then are out of the race.
    """
    failures: list[str] = []
    if race.prepare:
        with _work_dir(image) as work:
            race.prepare(image, Path(work))
    taken: list[dict[str, Run]] = [{} for _ in range(rounds)]
    running = list(race.contenders)
    for number in range(rounds):
        for contender in [*running]:
            _tell(f"{image.name}, {race.name}, round {number + 1}: {contender.title}")
            try:
                with _work_dir(image) as work:
                    taken[number][contender.key] = contender.run(image, Path(work))
            except CommandFailedError as exc:
                _tell(str(exc))
                failures.append(f"{race.name}, {image.title}, {contender.title}: {exc}")
                running.remove(contender)
    return rows_of(image, replace(race, contenders=tuple(running)), taken), failures


def _work_dir(image: Input) -> "tempfile.TemporaryDirectory[str]":
    """On the same file system as the inputs."""
    return tempfile.TemporaryDirectory(prefix="run-", dir=image.path)


def _if_runnable(path: Path) -> Path | None:
    found = shutil.which(path)
    if found is None:
        _tell(f"no {path}: its rows are left out")
    return Path(found) if found else None


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CommandFailedError as exc:
        sys.exit(str(exc))
