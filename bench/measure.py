"""Runs a command and tells what it and all its descendants took: time, CPU, memory.

CPU is the kernel's account of the command and of the descendants that were waited for. Memory is sampled:
the resident sizes of all processes of the tree, added up at one moment; pages that processes share count
for each of them. (The kernel's own peak would not do: it is of one process, and begins with what the
parent had when it forked.)

What the command says on standard error is read while it runs, with the moment and the CPU time so far of
each line: a command that tells when its steps are done thereby tells what each of them took.
"""

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SAMPLE_INTERVAL_S = 0.02
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
LAST_WORDS = 2000
"""Characters of standard error that go into a message."""

END_OF_WORDS_S = 5.0
"""How long to wait for the end of standard error, which a process left behind may keep open."""


class CommandFailedError(Exception):
    """A command that is measured did not succeed; the message has its last words."""


@dataclass(frozen=True, slots=True)
class Said:
    """A line on standard error: when it came, and what the process tree had taken by then."""

    at_s: float
    cpu_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run took. `peak_rss` in bytes, of the process tree; `stdout`, `stderr` are what was said."""

    wall_s: float
    cpu_s: float
    peak_rss: int
    stdout: str
    stderr: tuple[Said, ...]


def measure(
    argv: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    stdin: Path | None = None,
    timeout_s: float = 1800,
) -> Measurement:
    """Run a command to its end.

    Args:
        cwd: where it runs, and where its output goes in files meanwhile.
        stdin: a file for its standard input; without, that is empty.
    Raises:
        CommandFailedError: its exit status is not 0, or it took longer than `timeout_s`.
    """
    out = cwd / "stdout"
    os.sync()  # what earlier runs wrote is not to be written at this one's cost
    with open(stdin or os.devnull, "rb") as into, out.open("wb") as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            argv,
            stdin=into,
            stdout=said,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=env,
            text=True,
            errors="replace",
        )
        assert process.stderr
        listener = _Listener(process.stderr, process.pid, started)
        sampler = _Sampler(process.pid)
        deadline = threading.Timer(timeout_s, process.terminate)
        deadline.daemon = True
        deadline.start()
        listener.start()
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        deadline.cancel()
        peak = sampler.finish()
        lines = listener.finish()
    if process.returncode:
        last_words = "\n".join(line.text for line in lines)[-LAST_WORDS:]
        raise CommandFailedError(f"exit status {process.returncode}: {' '.join(argv)}\n{last_words}")
    return Measurement(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss=peak,
        stdout=out.read_text(errors="replace"),
        stderr=tuple(lines),
    )


class _Listener(threading.Thread):
    """Reads what a process says, and keeps for each line the time and the CPU time until then."""

    def __init__(self, stream: IO[str], root: int, started: float) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._root = root
        self._begun = started
        self._lines: list[Said] = []

    def run(self) -> None:
        cpu_s = 0.0
        with self._stream:
            for line in self._stream:
                at_s = time.perf_counter() - self._begun
                # It never falls; only what has just ended can be missed.
                cpu_s = max(cpu_s, sum(map(_cpu, _tree(self._root))))
                self._lines.append(Said(at_s, cpu_s, line.rstrip("\n")))

    def finish(self) -> list[Said]:
        """Returns all that was said."""
        self.join(END_OF_WORDS_S)
        return self._lines.copy()


class _Sampler(threading.Thread):
    """Adds up resident sizes of a process and its descendants, again and again."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root = root
        self._done = threading.Event()
        self._peak = 0

    def run(self) -> None:
        while True:
            self._peak = max(self._peak, sum(map(_resident, _tree(self._root))))
            if self._done.wait(SAMPLE_INTERVAL_S):
                return

    def finish(self) -> int:
        """Returns the peak in bytes."""
        self._done.set()
        self.join()
        return self._peak


def _tree(root: int) -> Iterator[int]:
    pending = [root]
    while pending:
        pid = pending.pop()
        yield pid
        for task in _listed(f"/proc/{pid}/task"):
            pending += map(int, _read(f"/proc/{pid}/task/{task}/children").split())


def _resident(pid: int) -> int:
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * PAGE_SIZE if fields else 0


def _cpu(pid: int) -> float:
    """What a process has taken, and those of its children that it has waited for."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * TICK_S


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:  # it has ended meanwhile
        return []


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:  # it has ended meanwhile
        return ""
