"""Work directories: there while they are needed, gone however it ends, swept if a process was killed."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from nydus_service.convert.workdir import LOCK, PREFIX, open_work_dir, sweep
from nydus_service.errors import NydusServiceError
from tests.processes import killed_at_the_end

HOUR_AGO = 4000
HOLDER = """
import anyio, sys
from pathlib import Path
from nydus_service.convert.workdir import open_work_dir

async def hold():
    async with open_work_dir(Path(sys.argv[1])) as directory:
        (directory / "half").write_text("written")
        print(directory, flush=True)
        await anyio.sleep_forever()

anyio.run(hold)
"""


def names(root: Path) -> list[str]:
    return sorted(os.listdir(root))


@contextmanager
def holding(root: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has a work directory, and that directory."""
    argv = [sys.executable, "-c", HOLDER, str(root)]
    with killed_at_the_end(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)) as holder:
        assert holder.stdout is not None
        directory = Path(holder.stdout.readline().strip())
        assert (directory / "half").exists()
        yield holder, directory


def make_old(path: Path) -> None:
    then = path.stat().st_mtime - HOUR_AGO
    os.utime(path, (then, then))


async def test_it_is_private_and_vanishes_with_its_content(tmp_path: Path) -> None:
    async with open_work_dir(tmp_path) as directory:
        assert directory.parent == tmp_path
        assert directory.name.startswith("nydus-converter-")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o750
        (directory / "deep").mkdir()
        (directory / "deep" / "file").write_text("x")
    assert names(tmp_path) == []


async def test_it_vanishes_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_work_dir(tmp_path):
            _ = 1 // 0
    assert names(tmp_path) == []


async def test_it_vanishes_when_the_work_is_cancelled(tmp_path: Path) -> None:
    entered = anyio.Event()

    async def work() -> None:
        async with open_work_dir(tmp_path):
            entered.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await entered.wait()
        assert len(names(tmp_path)) == 1
        tasks.cancel_scope.cancel()
    assert names(tmp_path) == []


async def test_parents_that_are_missing_are_made_and_go_again(tmp_path: Path) -> None:
    async with open_work_dir(tmp_path / "a" / "b"):
        assert len(names(tmp_path / "a" / "b")) == 1
    assert names(tmp_path) == []


async def test_a_parent_that_somebody_else_uses_by_then_stays(tmp_path: Path) -> None:
    async with open_work_dir(tmp_path / "a" / "b"):
        (tmp_path / "a" / "other").write_text("x")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["other"]


async def test_a_parent_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NydusServiceError, match="cannot make a work directory in"):
        async with open_work_dir(tmp_path / "file"):
            pass


async def test_that_of_a_killed_process_is_swept_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    with holding(tmp_path) as (holder, directory):
        async with open_work_dir(tmp_path) as own:
            assert sweep(tmp_path) == []
            assert set(names(tmp_path)) == {directory.name, own.name}
        holder.kill()
    assert names(tmp_path) == [directory.name]
    async with open_work_dir(tmp_path) as own:
        assert names(tmp_path) == [own.name]


def test_directories_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / f"{PREFIX}123456"
    foreign.mkdir()
    make_old(foreign)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).write_bytes(b"")
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    assert sweep(tmp_path) == []
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize(("old", "swept"), [(False, 0), (True, 1)])
def test_one_from_before_a_restart_or_from_elsewhere_goes_after_an_hour(
    tmp_path: Path, old: bool, swept: int
) -> None:
    directory = tmp_path / f"{PREFIX}other-boot"
    directory.mkdir()
    (directory / LOCK).write_bytes(b"00000000-0000-0000-0000-000000000000")
    if old:
        make_old(directory)
    assert len(sweep(tmp_path)) == swept


@pytest.mark.parametrize(("old", "swept"), [(False, 0), (True, 1)])
def test_one_that_was_never_finished_goes_after_an_hour(tmp_path: Path, old: bool, swept: int) -> None:
    directory = tmp_path / f".{PREFIX}half-made"
    directory.mkdir()
    if old:
        make_old(directory)
    assert len(sweep(tmp_path)) == swept
