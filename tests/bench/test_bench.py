"""The benchmark at a tiny scale: that its parts run and tell what they should, never how fast."""

import gzip
import io
import itertools
import json
import os
import sys
import tarfile
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.__main__ import main
from bench.breakdown import format_breakdown
from bench.contenders import ENVIRONMENT, Contender, Race, Run
from bench.inputs import Input, make_input
from bench.measure import CommandFailedError, Measurement, Said, measure
from bench.recipes import RECIPES
from bench.results import Row, Spread
from bench.stages import MERGE, PACK, REST, START, VERIFY, Part, stages_of

pytestmark = pytest.mark.long

ALLOCATE = "import subprocess, sys; kept = bytearray(50_000_000); print(len(kept)); {more}"


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Where inputs are made."""
    path = tmp_path / "inputs"
    path.mkdir()
    return path


def test_an_input_is_what_it_says(inputs: Path) -> None:
    for recipe in RECIPES:
        image = make_input(recipe, 0.001, inputs)
        assert make_input(recipe, 0.001, inputs) == image
        assert image.gzip_bytes == sum(layer.stat().st_size for layer in image.compressed_layers)
        assert len(image.compressed_layers) == image.layers
        assert len(image.tars) == (0 if recipe.for_memory else image.layers)
        entries = raw_bytes = 0
        for number, stored in enumerate(image.compressed_layers):
            data = stored.read_bytes()
            assert sha256(data).hexdigest() == stored.name
            plain = gzip.decompress(data)
            if image.tars:
                assert image.tars[number].read_bytes() == plain
            with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
                names = tar.getnames()
            # The Go converter makes damage of layers whose directories are only implied.
            assert {parent for name in names if (parent := os.path.dirname(name))} <= set(names)
            entries += len(names)
            raw_bytes += len(plain)
        assert entries == image.entries > 0
        assert raw_bytes == image.raw_bytes


def test_a_large_file_is_no_easy_one(inputs: Path) -> None:
    (recipe,) = (recipe for recipe in RECIPES if recipe.name == "large-file")
    image = make_input(recipe, 0.004, inputs)
    assert 0.4 < image.gzip_bytes / image.raw_bytes < 0.8
    plain = gzip.decompress(image.compressed_layers[0].read_bytes())
    chunks = [plain[start : start + (1 << 20)] for start in range(0, len(plain), 1 << 20)]
    assert len(set(chunks)) == len(chunks) > 15


def test_many_layers_lie_upon_each_other(inputs: Path) -> None:
    (recipe,) = (recipe for recipe in RECIPES if recipe.name == "many-layers")
    image = make_input(recipe, 0.03, inputs)
    names = []
    for stored in image.compressed_layers:
        with tarfile.open(stored) as tar:
            names.append({member.name for member in tar if member.isreg()})
    for lower, upper in itertools.pairwise(names):
        assert lower & upper
        removed = {name.replace(".wh.", "") for name in upper if ".wh." in name}
        assert removed
        assert removed <= lower


def test_memory_and_time_of_descendants_count(tmp_path: Path) -> None:
    child = ALLOCATE.format(more="sum(range(3_000_000)); import time; time.sleep(0.3)")
    parent = ALLOCATE.format(more=f"sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))")
    one = measure([sys.executable, "-c", child], tmp_path, ENVIRONMENT)
    both = measure([sys.executable, "-c", parent], tmp_path, ENVIRONMENT)
    assert one.stdout == "50000000\n"
    assert one.peak_rss > 50_000_000
    assert both.peak_rss > one.peak_rss + 50_000_000
    assert 0 < both.cpu_s


def test_lines_come_with_their_moments(tmp_path: Path) -> None:
    child = "import sys; sum(range(2_000_000)); print('child', file=sys.stderr)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); sys.exit('parent')"
    with pytest.raises(CommandFailedError, match="child\nparent"):
        measure([sys.executable, "-c", parent], tmp_path, ENVIRONMENT)
    taken = measure([sys.executable, "-c", parent.replace("sys.exit", "print")], tmp_path, ENVIRONMENT)
    (line,) = taken.stderr
    assert line.text == "child"
    assert 0 < line.at_s <= taken.wall_s
    assert 0 <= line.cpu_s


def test_stages_end_with_their_last_lines_and_add_up() -> None:
    lines = (
        Said(1.0, 0.5, "linux/amd64: 2 layers, 5 MB"),
        Said(2.0, 2.0, "layer 1/2 sha256:aa: 3 MB to 2 MB in 1.0 s"),
        Said(4.0, 5.0, "layer 2/2 sha256:bb: 2 MB to 1 MB in 3.0 s"),
        Said(4.5, 5.5, "linux/amd64: merged in 0.4 s"),
        Said(6.0, 6.0, "linux/amd64: verified, 12 names in 1.5 s"),
    )
    expected = (
        Part(START, 1.0, 0.5),
        Part(PACK, 3.0, 4.5),
        Part(MERGE, 0.5, 0.5),
        Part(VERIFY, 1.5, 0.5),
        Part(REST, 1.0, 1.0),
    )
    assert stages_of(Measurement(7.0, 7.0, 0, "", lines)) == expected
    unverified = stages_of(Measurement(7.0, 7.0, 0, "", lines[:-1]))
    assert unverified == (*expected[:3], Part(REST, 2.5, 1.5))


def test_a_failure_says_what_the_command_said(tmp_path: Path) -> None:
    with pytest.raises(CommandFailedError, match=r"status 3(.|\n)*no such luck"):
        measure(["sh", "-c", "echo no such luck >&2; exit 3"], tmp_path, ENVIRONMENT)


def test_a_run_writes_its_page_plot_and_numbers(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "docs"
    scaled = ["--scale", "0.001", "--rounds", "2", "--inputs-dir", str(inputs), "--docs", str(docs)]
    assert main([*scaled, "--input", "one-liners", "--input", "five-layers"]) == 0
    results = json.loads((docs / "benchmarks.json").read_text())
    raced = {(row["input"], row["race"], row["contender"]) for row in results["rows"]}
    for name in ("one-liners", "five-layers"):
        for key in ("floor", "ours", "ours-unverified"):
            assert (name, "convert", key) in raced
        assert {(name, "create", "embedded"), (name, "merge", "embedded")} < raced
    for row in results["rows"]:
        assert len(row["runs"]) == 2
        assert row["output_bytes"] > 0 or row["contender"] == "floor"
        peer = "go" if row["race"] == "convert" else "native"
        has_peer = (row["input"], row["race"], peer) in raced
        assert (row["ratio"] is not None) == (has_peer and row["contender"] != peer)
        parts = {part["name"] for run in row["runs"] for part in run["parts"]}
        if row["contender"] in ("ours", "ours-native"):
            assert parts == {START, PACK, MERGE, VERIFY, REST}
        elif row["contender"] == "ours-unverified":
            assert parts == {START, PACK, MERGE, REST}
        elif row["contender"] == "floor":
            assert {"inflate", "blake3", "zstd"} < parts
        else:
            assert not parts
        for run in row["runs"] if row["contender"].startswith("ours") else ():
            assert sum(part["wall_s"] for part in run["parts"]) == pytest.approx(run["wall_s"])
            assert sum(part["cpu_s"] for part in run["parts"]) == pytest.approx(run["cpu_s"])
            assert run["parts"][1]["name"] == PACK
            assert run["parts"][1]["cpu_s"] > 0
    page = (docs / "benchmarks.md").read_text()
    assert "scaled to 0.001" in page
    assert "Made by `python -m bench --scale 0.001 --rounds 2" in page
    assert str(tmp_path) not in page
    assert page.count("### Where the time goes") == 2
    assert page.count("The largest stage of ours is") == 2
    assert "| verification; beside it the bootstrap layer |" in page
    assert "| all codecs |" in page
    assert "## Where it loses" in page
    assert [row["command"] for row in results["starts"]] == ["nydus-image-py -h", "nydus-service --help"]
    assert all(0 < row["cpu_s"] for row in results["starts"])
    assert "| `nydus-image-py -h` |" in page
    plot = ElementTree.fromstring((docs / "benchmarks.svg").read_text())
    bars = [row for row in results["rows"] if row["race"] == "convert"]
    assert len(plot.findall("{http://www.w3.org/2000/svg}rect")) == len(bars)
    assert "one layer of one-line files" in capsys.readouterr().out


def test_inputs_for_memory_are_converted_once_and_not_plotted(inputs: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    words = ["--scale", "0.001", "--rounds", "3", "--inputs-dir", str(inputs), "--docs", str(docs)]
    assert main([*words, "--input", "large-file", "--input", "many-layers"]) == 0
    rows = json.loads((docs / "benchmarks.json").read_text())["rows"]
    assert {row["input"] for row in rows} == {"large-file", "many-layers"}
    assert {row["race"] for row in rows} == {"convert"}
    assert {row["contender"] for row in rows} - {"go"} == {"ours"}
    assert all(len(row["runs"]) == 1 for row in rows)
    page = (docs / "benchmarks.md").read_text()
    assert page.count("400 MB") == 2
    assert page.count("### Where the time goes") == 2
    assert "| all codecs |" not in page
    plot = ElementTree.fromstring((docs / "benchmarks.svg").read_text())
    assert not plot.findall("{http://www.w3.org/2000/svg}rect")


def test_a_contender_that_fails_is_out_and_told(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    native = tmp_path / "native"
    native.write_text("#!/bin/sh\necho 1.0; echo no such luck >&2; [ $1 = -V ]\n")
    native.chmod(0o755)
    docs = tmp_path / "docs"
    words = ["--scale", "0.001", "--rounds", "2", "--inputs-dir", str(inputs), "--docs", str(docs)]
    words += ["--input", "one-liners", "--race", "create", "--native", str(native)]
    assert main(words) == 1
    results = json.loads((docs / "benchmarks.json").read_text())
    assert [row["contender"] for row in results["rows"]] == ["embedded-gzip", "embedded"]
    (failure,) = results["failures"]
    assert "native create" in failure
    assert "no such luck" in failure
    assert "## What failed" in (docs / "benchmarks.md").read_text()
    assert "no such luck" in capsys.readouterr().err


def test_why_targets_are_missed() -> None:
    image = Input("one", "one layer", False, Path("nowhere"), 1, 1, 1, 1)

    def row(key: str, wall_s: float, target: float | None, *parts: Part) -> Row:
        contender = Contender(key, key, lambda _image, _work: run)
        run = Run(wall_s, 1.5 * wall_s, 0, 0, parts)
        ratio = None if target is None else Spread.of([wall_s / 10])
        return Row(image, Race("convert", (contender,), "go"), contender, (run,), ratio, target, None)

    rows = [
        row("floor", 1, None, Part("zstd", 1, 2), Part("inflate", 0.5, 1)),
        row("ours", 4, 0.3, Part(PACK, 3, 5), Part(MERGE, 1, 1)),
        row("ours-native", 6, 0.5, Part(PACK, 2, 5), Part(MERGE, 4, 4)),
        row("go", 10, None),
    ]
    text = format_breakdown(rows, 2)
    assert "The target, 0.30 of the peer's time, is 3.00 s: 6.00 s CPU with no core ever idle" in text
    assert "the codecs leave 3.00 s for all else; ours takes 3.00 s for that." in text
    assert "takes 4.00 s: 0.40 of the peer's whole time" in text
    reached = [*rows[:1], row("ours", 2, 0.3, Part(PACK, 2, 3)), *rows[3:]]
    assert "The target" not in format_breakdown(reached, 2)
