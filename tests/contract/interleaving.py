"""Two processes in one new layout, one of them stopped: `python -m tests.contract.interleaving WHAT DIR …`.

A process is stopped before each of its calls of the operating system in turn. While it stands still, this
process does its own part. Then the other one goes on, or is killed.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from nydus_service.content.layoutdir import WORK, LayoutDir
from nydus_service.content.layoutindex import all_images, point
from nydus_service.content.store import Image
from nydus_service.locks import is_held
from nydus_service.oci.document import Index
from tests.contract.location import blob

SYSTEM = frozenset({"posix", "_io", "io", "fcntl"})
"""Modules whose functions call the operating system."""


def create(path: Path, name: str = "app") -> None:
    """Name an image in a layout, which need not exist."""
    image = Image(name, blob(name.encode()))
    LayoutDir(path).change_index(lambda index: point(index, image, str(path)))


def named(path: Path) -> set[str]:
    """The images that a reader without a lock finds."""
    index = LayoutDir(path).read_index()
    return {image.name for image in all_images(index)} if index else set()


def fail(path: Path) -> None:
    """A writer that leaves the layout without an image."""

    def refuse(index: Index) -> Index:
        raise LookupError

    try:
        LayoutDir(path).change_index(refuse)
    except LookupError:
        return


def stopped_before_each_step(path: Path, work: Callable[[Path], object]) -> Iterator[tuple[int, Path]]:
    """Yields pid and layout of a process that works there and is stopped, one step later each time.

    Each has a new layout. What comes back is a process that still stands or was killed; what stands goes on
    to its end, which must be a success.
    """
    step = 0
    while True:
        step += 1
        layout = path / str(step) / "layout"
        layout.parent.mkdir()
        pid = os.fork()
        if pid == 0:
            work_until(step, work, layout)
        if not os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]):
            return
        try:
            yield pid, layout
        finally:
            os.kill(pid, signal.SIGCONT)
            _, status = os.waitpid(pid, 0)
        if status not in (0, signal.SIGKILL):
            raise AssertionError(f"step {step}: status {status}")


def work_until(step: int, work: Callable[[Path], object], path: Path) -> None:
    """Work in this process, which was forked for it; it stops itself before a step."""
    left = step

    def count(frame: FrameType, event: str, function: Any) -> None:
        nonlocal left
        if event == "c_call" and function.__module__ in SYSTEM:
            left -= 1
            if left == 0:
                sys.setprofile(None)
                os.kill(os.getpid(), signal.SIGSTOP)

    status = 1
    try:
        sys.setprofile(count)
        work(path)
        sys.setprofile(None)
        status = 0
    finally:
        sys.stderr.flush()
        if status:
            sys.excepthook(*sys.exc_info())
        os._exit(status)


def locked(layout: Path) -> bool:
    return is_held(layout / WORK / "lock")


def slow_reader(path: Path) -> None:
    """A layout is created while a reader stands between two of its looks."""
    for _, layout in stopped_before_each_step(path, named):
        create(layout)


def slow_writer(path: Path) -> None:
    """A writer stands; readers see no layout or all of it, and writers with the lock free go on."""
    for _, layout in stopped_before_each_step(path, create):
        assert named(layout) <= {"app"}, layout
        if not locked(layout):
            create(layout, "other")
            assert "other" in named(layout), layout
    assert all("app" in named(layout) for layout in path.glob("*/layout"))


def leaving_writer(path: Path) -> None:
    """A writer that fails stands on its way out, or in; others create the layout."""
    for _, layout in stopped_before_each_step(path, fail):
        assert named(layout) == set(), layout
        if not locked(layout):
            create(layout, "other")
            assert named(layout) == {"other"}, layout


def killed_writer(path: Path) -> None:
    """A writer is killed; what it leaves is no damage, and the next one completes it."""
    for pid, layout in stopped_before_each_step(path, create):
        os.kill(pid, signal.SIGKILL)
        before = named(layout)
        create(layout, "later")
        assert named(layout) == before | {"later"}, layout
        assert sorted(os.listdir(layout)) == ["index.json", "oci-layout"], layout


def removed_directories(path: Path) -> None:
    """A writer stands; another one removes the directories that are empty, as the last to leave does."""
    for _, layout in stopped_before_each_step(path, create):
        for directory in (layout / WORK, layout, layout.parent):
            with suppress(OSError):
                directory.rmdir()
    assert all(named(path / number / "layout") == {"app"} for number in os.listdir(path))


def create_many(path: Path, count: int, name: str) -> None:
    for number in range(count):
        create(path / str(number) / "layout", name)


def read_many(path: Path, count: int) -> None:
    """Look for each layout until it is there, without a pause."""
    for number in range(count):
        while not named(path / str(number) / "layout"):
            pass


if __name__ == "__main__":
    what, directory, *rest = sys.argv[1:]
    if what == "create":
        create_many(Path(directory), int(rest[0]), rest[1])
    elif what == "read":
        read_many(Path(directory), int(rest[0]))
    else:
        parts = (slow_reader, slow_writer, leaving_writer, killed_writer, removed_directories)
        {part.__name__: part for part in parts}[what](Path(directory))
        print(len(os.listdir(directory)))
