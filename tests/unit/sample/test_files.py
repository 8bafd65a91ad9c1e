import os
from pathlib import Path

import pytest

from nydus_service.sample.files import Root, take_files


def paths(root: Path, budget: int = 1 << 20) -> list[str]:
    return [file.path for file in take_files([Root(str(root), "x")], budget)]


def test_takes_files_sorted_a_directory_after_its_siblings(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/z", "b/a", "c", "a"):
        (tmp_path / name).write_text("x")
    assert paths(tmp_path) == ["x/a", "x/c", "x/b/a", "x/b/z"]


@pytest.mark.parametrize(
    "name", ["shadow", "gshadow-", "id_rsa", "server.key", ".netrc", "credentials.json", "private"]
)
def test_never_takes_what_may_be_secret(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert paths(tmp_path) == []


def test_takes_only_what_everybody_may_read(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    (tmp_path / "mine").chmod(0o640)
    (tmp_path / "ours").write_text("x")
    (tmp_path / "ours").chmod(0o644)
    assert paths(tmp_path) == ["x/ours"]


def test_leaves_out_compiled_python_which_the_next_import_would_change(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.cpython-311.pyc").write_text("x")
    (tmp_path / "a.pyc").write_text("x")
    assert paths(tmp_path) == []


def test_stays_within_the_budget_and_passes_over_a_giant(tmp_path: Path) -> None:
    for name, size in (("a", 1000), ("b", 50_000), ("c", 1000), ("d", 30_000), ("e", 20_000)):
        (tmp_path / name).write_bytes(bytes(size))
    taken = take_files([Root(str(tmp_path), "x")], 100_000)
    assert [file.path for file in taken] == ["x/a", "x/c", "x/e"]


def test_keeps_links_inside_the_system_and_drops_those_that_show_the_machine(tmp_path: Path) -> None:
    (tmp_path / "relative").symlink_to("a")
    (tmp_path / "system").symlink_to("/usr/bin/env")
    (tmp_path / "home").symlink_to("/home/somebody/a")
    assert {file.path: file.target for file in take_files([Root(str(tmp_path), "x")], 10_000)} == {
        "x/relative": "a",
        "x/system": "/usr/bin/env",
    }


def test_knows_the_names_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").write_text("x")
    first, second, other = take_files([Root(str(tmp_path), "x")], 10_000)
    assert first.identity == second.identity is not None
    assert other.identity is None


def test_a_missing_or_closed_root_gives_nothing(tmp_path: Path) -> None:
    assert paths(tmp_path / "nowhere") == []
    assert take_files([Root("/proc/1/fd", "x")] if os.geteuid() else [], 1000) == []


def test_a_name_that_is_not_utf8_is_taken(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).write_text("x")
    assert paths(tmp_path) == ["x/\udcff"]
