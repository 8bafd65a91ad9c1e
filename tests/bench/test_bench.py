"""The benchmark at a tiny scale: that its parts run and tell what they should, never how fast."""

import json
import os
import sys
import tarfile
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.__main__ import main
from bench.contenders import ENVIRONMENT
from bench.inputs import RECIPES, make_input
from bench.measure import CommandFailedError, measure

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
        assert image.raw_bytes == sum(tar.stat().st_size for tar in image.tars)
        assert image.gzip_bytes == sum(layer.stat().st_size for layer in image.compressed_layers)
        entries = 0
        for tar, stored in zip(image.tars, image.compressed_layers, strict=True):
            assert sha256(stored.read_bytes()).hexdigest() == stored.name
            with tarfile.open(tar) as plain, tarfile.open(stored, "r:gz") as packed:
                names = plain.getnames()
                assert packed.getnames() == names
                # The Go converter makes damage of layers whose directories are only implied.
                assert {parent for name in names if (parent := os.path.dirname(name))} <= set(names)
            entries += len(names)
        assert entries == image.entries > 0


def test_memory_and_time_of_descendants_count(tmp_path: Path) -> None:
    child = ALLOCATE.format(more="sum(range(3_000_000)); import time; time.sleep(0.3)")
    parent = ALLOCATE.format(more=f"sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))")
    one = measure([sys.executable, "-c", child], tmp_path, ENVIRONMENT)
    both = measure([sys.executable, "-c", parent], tmp_path, ENVIRONMENT)
    assert one.stdout == "50000000\n"
    assert one.peak_rss > 50_000_000
    assert both.peak_rss > one.peak_rss + 50_000_000
    assert 0 < both.cpu_s


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
    told = {(row["input"], row["race"], row["contender"]) for row in results["rows"]}
    for name in ("one-liners", "five-layers"):
        for key in ("floor", "ours", "ours-unverified"):
            assert (name, "convert", key) in told
        assert {(name, "create", "embedded"), (name, "merge", "embedded")} < told
    for row in results["rows"]:
        assert len(row["runs"]) == 2
        assert row["output_bytes"] > 0 or row["contender"] == "floor"
        peer = "go" if row["race"] == "convert" else "native"
        has_peer = (row["input"], row["race"], peer) in told
        assert (row["ratio"] is not None) == (has_peer and row["contender"] != peer)
    page = (docs / "benchmarks.md").read_text()
    assert "scaled to 0.001" in page
    assert "## Where it loses" in page
    plot = ElementTree.fromstring((docs / "benchmarks.svg").read_text())
    bars = [row for row in results["rows"] if row["race"] == "convert"]
    assert len(plot.findall("{http://www.w3.org/2000/svg}rect")) == len(bars)
    assert "one layer of one-line files" in capsys.readouterr().out


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
