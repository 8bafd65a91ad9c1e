"""Runs commands on a pseudo-terminal of a given width."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from dataclasses import dataclass
from pathlib import Path

from tests.unit.cli.command import ARGV, environment

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Shown:
    """The output of a command on its terminal: stdout and stderr.

    Attributes:
        lines: without colours; each frame of a progress display has lines of its own.
    """

    status: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def run_on_terminal(columns: int, *words: str | Path, **environ: str) -> Shown:
    """Run the command on a terminal of this width."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        env = environment(None, TERM="xterm-256color", **environ)
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            env.pop(name, None)
        argv = [*ARGV, *map(str, words)]
        process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    finally:
        os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        pieces = []
        while True:
            try:
                piece = terminal.read(1 << 16)
            except OSError:  # EIO: no process has the other end any more
                break
            if not piece:
                break
            pieces.append(piece)
    text = _CONTROL.sub("", b"".join(pieces).decode())
    return Shown(process.wait(60), [line.rstrip() for line in re.split("[\\r\\n]+", text)])
