import json
from pathlib import Path

from tests.unit.cli.command import run, run_json

SMALL = ("--size-mb", "4")


def test_writes_an_image_and_ends_with_its_name_and_digest(tmp_path: Path) -> None:
    done = run("sample", tmp_path / "s", *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    (entry,) = json.loads((tmp_path / "s" / "index.json").read_text())["manifests"]
    assert done.stdout.splitlines()[-1] == f"oci:{tmp_path}/s:sample@{entry['digest']}"


def test_the_same_digests_every_time(tmp_path: Path) -> None:
    first = run_json("sample", tmp_path / "1", *SMALL)
    second = run_json("sample", tmp_path / "2", "--tag", "other", *SMALL)
    assert first["target"] == second["target"]
    assert first["layers"] == second["layers"]
    assert second["image"].endswith(":other")


def test_a_place_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    done = run("sample", tmp_path, *SMALL)
    assert done.returncode == 2
    assert "neither empty nor an OCI layout" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_bad_tag(tmp_path: Path) -> None:
    assert run("sample", tmp_path / "s", "--tag", "a\nb").returncode == 2
    assert not (tmp_path / "s").exists()
