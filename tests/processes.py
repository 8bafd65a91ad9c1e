"""Processes of tests: the signals and the environment of children, and that the children end."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, AnyStr

if TYPE_CHECKING:
    import subprocess

INHERITED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Signals that a program keeps ignoring if whoever starts it does, such as nohup or `trap '' INT`."""


def let_children_have_signals() -> None:
    """Have children begin with the default for all of `INHERITED`, whatever this process began with.

    What this process ignores it goes on to ignore, by a handler that does nothing: a new program starts with
    the default for a signal with a handler, but keeps ignoring one that is ignored. SIGPIPE is left alone:
    Python ignores it, and `subprocess` gives children the default.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INHERITED)
    for number in INHERITED:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _ignore)


def let_children_keep_bytecode() -> None:
    """Have children write the bytecode of the modules that they import, even if this process does not.

    Otherwise each of the thousands of processes compiles the package again, a third of its work.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def children_that_run(module: str) -> list[int]:
    """The pids of this process's children that run a module of this project, whatever thread started them."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found += map(int, (task / "children").read_text().split())
    return [pid for pid in found if module.encode() in _command_of(pid)]


def _command_of(pid: int) -> bytes:
    """Empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


@contextmanager
def killed_at_the_end(process: "subprocess.Popen[AnyStr]") -> Iterator["subprocess.Popen[AnyStr]"]:
    """Kill a process with the end of the block, if it still runs; without, Popen would wait for it."""
    with process:
        try:
            yield process
        finally:
            process.kill()
