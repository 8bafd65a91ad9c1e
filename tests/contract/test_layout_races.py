"""A layout that several processes create and read at once: nobody sees a part of it."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from nydus_service.content.layout import open_layout
from nydus_service.content.layoutdir import LayoutDir
from nydus_service.errors import FormatError, NotFoundError
from tests.contract.faults import PROJECT
from tests.contract.interleaving import create, named
from tests.contract.location import write
from tests.processes import killed_at_the_end

LAYOUTS = 150
"""As many as the many processes create; each is created with the others at the same time."""
STEPS_MIN = {
    "slow_reader": 4,
    "slow_writer": 40,
    "leaving_writer": 25,
    "killed_writer": 40,
    "removed_directories": 40,
}
"""What is done, and how many calls of the operating system it at least takes."""


def other_process(*arguments: object) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "tests.contract.interleaving", *map(str, arguments)]
    return subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("what", STEPS_MIN)
def test_one_process_is_stopped_before_each_step(tmp_path: Path, what: str) -> None:
    with killed_at_the_end(other_process(what, tmp_path)) as process:
        steps, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert int(steps) > STEPS_MIN[what]


def test_many_processes_create_and_read_the_same_layouts(tmp_path: Path) -> None:
    writers = [("create", tmp_path, LAYOUTS, f"app-{number}") for number in range(2)]
    readers = [("read", tmp_path, LAYOUTS)] * 2
    with ExitStack() as stack:
        processes = [
            stack.enter_context(killed_at_the_end(other_process(*arguments)))
            for arguments in (*writers, *readers)
        ]
        for process in processes:
            assert process.communicate()[1] == ""
            assert process.returncode == 0
    for number in range(LAYOUTS):
        layout = tmp_path / str(number) / "layout"
        assert named(layout) == {"app-0", "app-1"}
        assert sorted(path.name for path in layout.iterdir()) == ["index.json", "oci-layout"]


@pytest.mark.parametrize("marker", ["", '{"imageLayoutVersion":"1.0.0"}'])
def test_a_marker_alone_is_completed(tmp_path: Path, marker: str) -> None:
    """As writers of earlier versions left it that were killed, or a machine that lost its power."""
    (tmp_path / "oci-layout").write_text(marker)
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / "blobs" / "sha256" / ("0" * 64)).touch()
    assert named(tmp_path) == set()
    create(tmp_path)
    assert named(tmp_path) == {"app"}


def test_content_of_others_without_an_index_stays_an_error(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "precious").touch()
    for use in (named, create):
        with pytest.raises(FormatError, match=r"index\.json is missing"):
            use(tmp_path)
    assert not (tmp_path / "index.json").exists()


async def test_a_dangling_link_is_no_layout(tmp_path: Path) -> None:
    link = tmp_path / "layout"
    link.symlink_to(tmp_path / "nothing" / "here")
    assert LayoutDir(link).read_index() is None
    with pytest.raises(NotFoundError, match="layout"):
        await write(open_layout(link).content, b"content")
