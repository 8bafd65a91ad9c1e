"""The life cycle of one builder process: start, error output, end.

    open_child ──► running ──────wait──────► exited, a zombie ──end──► reaped
                      └────────────────end: stopped────────────────────┘

- The child leads its own session and process group. Until it is reaped, the kernel cannot reuse its pid and
  the id of its group, so signals are sent only before that.
- The block of `open_child` calls `end` whenever it is left. `end` stops the whole group: the child with
  SIGTERM, after a grace period with SIGKILL; the child's own children with SIGKILL.
- launch.py ensures that the child dies with this process.
- A fork server (forkserver.py) may fork this project's own commands; the states are the same.
- A separate thread starts the processes, since a start takes milliseconds, and longer on a busy machine.
  The thread lives as long as this process: the kernel kills a child when the thread that started it ends.
"""

import asyncio
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread

from nydus_service import errors
from nydus_service.builder import launch
from nydus_service.builder.builder import BuilderFailed, BuilderKilled
from nydus_service.builder.forking import ForkServer
from nydus_service.builder.limits import IO_PRIORITIES, UNLIMITED, Limits
from nydus_service.builder.pipes import FileDescriptor, PipeReader, open_pipe

GRACE_S = 1.0
"""Seconds that a process may take to end after SIGTERM, and a pipe to end after its processes."""
TAIL_SIZE = 64 << 10
_SAID_LENGTH = 4 << 10
"""Characters of the tail that go into a message."""
_ANSI_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LAUNCHER = os.path.abspath(launch.__file__)
_MODULE = "nydus_service.nydus_image"
_STARTER = ThreadPoolExecutor(1, "start")
"""Its thread starts with the first process."""
_KINDS: dict[str, type[errors.NydusServiceError]] = {
    kind.code: kind
    for kind in (
        errors.UsageError,
        errors.DiffersError,
        errors.NotFoundError,
        errors.UnsupportedError,
        errors.FormatError,
        errors.NotAllowedError,
        errors.NoSpaceError,
        errors.ExhaustedError,
        errors.SourceDiffersError,
    )
} | {"killed": BuilderKilled}
"""Errors by the codes that this project's own commands report; "killed" is about their child processes."""


@dataclass(frozen=True, slots=True)
class Command:
    """A builder's command line. `program` None: a `module` of this project, by default `nydus-image-py`."""

    program: Path | None
    arguments: tuple[str, ...]
    module: str = _MODULE

    @property
    def argv(self) -> list[str]:
        """The command as a person would type it, for messages."""
        own = [sys.executable, "-m", self.module]
        return [*(own if self.program is None else [os.fspath(self.program)]), *self.arguments]

    def launch(self, limits: Limits) -> list[str]:
        """The command as it is started. Own modules need the site directories, the launcher does not."""
        step_back = [str(limits.nice), str(IO_PRIORITIES[limits.io_priority])]
        if self.program is None:
            options, what = ["-P"], ["module", self.module]
        else:
            options, what = ["-I", "-S"], ["exec", os.fspath(self.program)]
        return [sys.executable, *options, _LAUNCHER, str(os.getpid()), *step_back, *what, *self.arguments]


class Child:
    """A process in one of the states of the module docstring. `returncode` is set when it has ended."""

    def __init__(self, command: Command, process: "_Process", stderr: FileDescriptor) -> None:
        self.command = command
        self.returncode: int | None = None
        """As in `subprocess`: negative for a signal. None: it is running, or its status is unknown."""
        self.was_stopped = False
        """Whether it was still running when `end` was called, so that its returncode has no meaning."""
        self._process = process
        self._exited = False
        self._stderr = PipeReader(stderr)
        self._tail = bytearray()

    async def keep_tail(self) -> None:
        """Read the error output, so that the child does not block. The pipe may never end: cancel this."""
        while data := await self._stderr.read(TAIL_SIZE):
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        self._tail += data
        if len(self._tail) > 2 * TAIL_SIZE:
            del self._tail[:-TAIL_SIZE]

    @property
    def stderr_tail(self) -> str:
        """The last 64 KiB of error output, without colours, which the native builder writes even to pipes."""
        text = self._tail[-TAIL_SIZE:].decode(errors="replace")
        return _ANSI_ESCAPE.sub("", text).strip()

    async def wait(self) -> None:
        """Wait until the child itself has exited; its own children may still run."""
        if not self._exited:
            # In a thread, because not all kernels and sandboxes have pidfds. After a cancel the thread
            # stays until the process ends, which is soon because `end` follows.
            await anyio.to_thread.run_sync(
                self._look, 0, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
            )

    def _look(self, option: int) -> None:
        """Record the exit status once it has exited, without reaping it. WNOHANG: do not wait."""
        try:
            status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | option)
        except ChildProcessError:
            self._exited = True  # reaped by someone else, with its status
            return
        if status is not None:
            by_itself = status.si_code == os.CLD_EXITED
            self.returncode = status.si_status if by_itself else -status.si_status
            self._exited = True

    async def end(self) -> None:
        """Stop the child if it still runs, kill its own children, reap it, and read its last output."""
        self._look(os.WNOHANG)
        if not self._exited:
            self.was_stopped = True
            self._signal_group(signal.SIGTERM)
            with anyio.move_on_after(GRACE_S):
                await self.wait()
        self._signal_group(signal.SIGKILL)
        await self.wait()
        self._process.wait()
        for data in self._stderr.read_ready():
            self._keep(data)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def failure(self) -> errors.NydusServiceError | None:
        """The child's failure; None if it succeeded or was stopped. Call after `end`."""
        if self.returncode == 0 or self.was_stopped:
            return None
        tail = self.stderr_tail
        own = parse_error(tail) if self.command.program is None else None
        return own or self.failed(how_it_ended(self.returncode))

    def failed(self, how: str) -> BuilderFailed:
        """Construct an error with the tail and the command. `how` continues the words "the builder"."""
        tail = self.stderr_tail
        command = shlex.join(self.command.argv)
        kind = BuilderKilled if self.returncode == -signal.SIGKILL and not self.was_stopped else BuilderFailed
        return kind(f"the builder {how}: {last_words(tail)}\n  command: {command}", tail)


@asynccontextmanager
async def open_child(
    command: Command,
    *,
    stdin: FileDescriptor,
    stdout: FileDescriptor | None,
    inherited: Sequence[FileDescriptor] = (),
    limits: Limits = UNLIMITED,
    fork_server: ForkServer | None = None,
) -> AsyncIterator[Child]:
    """Start a builder process, and end it when the block is left.

    Args:
        stdin: its standard input; see `pipes.open_input`.
        stdout: the target of its standard output; None: its error output.
        inherited: descriptors that it inherits under the same numbers.
        limits: its priorities; the caller enforces the timeout.
        fork_server: starts the command if it is one of this project; None: a new interpreter starts.
    Raises:
        ExhaustedError: the machine has no files, processes or memory left for it.
        BuilderFailed: no process can be started. A program that cannot be executed fails later, with
            exit status 126.
    """
    with open_pipe() as pipe:
        standard = {0: stdin, 1: stdout or pipe.writer, 2: pipe.writer}
        process = None
        if fork_server is not None and command.program is None:
            process = await _fork(fork_server, command, standard, inherited, limits)
        if process is None:
            process = await _start(command, standard, inherited, limits)
        child = Child(command, process, pipe.reader)
        pipe.writer.close()
        try:
            yield child
        finally:
            with anyio.CancelScope(shield=True):
                await child.end()


async def _fork(
    fork_server: ForkServer,
    command: Command,
    standard: Mapping[int, FileDescriptor],
    inherited: Sequence[FileDescriptor],
    limits: Limits,
) -> "_Process | None":
    descriptors = {**standard, **{descriptor.fileno(): descriptor for descriptor in inherited}}
    pid = await fork_server.fork(command.module, command.arguments, descriptors, limits)
    return None if pid is None else _Forked(pid)


async def _start(
    command: Command,
    standard: Mapping[int, FileDescriptor],
    inherited: Sequence[FileDescriptor],
    limits: Limits,
) -> "_Process":
    start = partial(
        subprocess.Popen[bytes],
        command.launch(limits),
        stdin=standard[0].fileno(),
        stdout=standard[1].fileno(),
        stderr=standard[2].fileno(),
        pass_fds=[descriptor.fileno() for descriptor in inherited],
        start_new_session=True,
    )
    # Shielded: if cancelled halfway, the child would run unnoticed.
    started = asyncio.wrap_future(_STARTER.submit(start))
    with anyio.CancelScope(shield=True):
        await asyncio.wait({started})
    try:
        return started.result()
    except OSError as exc:
        doing = f"start a process for {shlex.join(command.argv)}"
        if exc.errno in errors.EXHAUSTED or exc.errno == errno.EAGAIN:  # the latter: too many processes
            raise errors.ExhaustedError(f"cannot {doing}: {exc.strerror}") from exc
        raise BuilderFailed(f"cannot {doing}: {exc.strerror}") from exc


class _Process(Protocol):
    """A child of this process that has to be reaped."""

    @property
    def pid(self) -> int: ...

    def wait(self) -> object: ...


class _Forked:
    """A child that a fork server started, without `subprocess`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self) -> None:
        with suppress(ChildProcessError):  # as `subprocess` does
            os.waitpid(self.pid, 0)


def parse_error(stderr_tail: str) -> errors.NydusServiceError | None:
    """Read the error in the last line of an own command with `--error-format json`; None: it has none."""
    try:
        told = json.loads(stderr_tail.rpartition("\n")[2])["error"]
        kind, message = _KINDS[told["code"]], told["message"]
    except (ValueError, LookupError, TypeError):
        return None  # it crashed, or a caller cannot act on this kind of error
    return kind(str(message))


def how_it_ended(returncode: int | None) -> str:
    """Describe a returncode, as a continuation of "the builder"."""
    if returncode is None:
        return "has ended, but how is lost: something else in this process waits for its children"
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = " (out of memory?)" if returncode == -signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def last_words(stderr_tail: str) -> str:
    """The end of a tail, short enough for a message and cut at a line."""
    if len(stderr_tail) <= _SAID_LENGTH:
        return stderr_tail or "(nothing on its error output)"
    end = stderr_tail[-_SAID_LENGTH:]
    return f"…{end.partition(chr(10))[2] or end}"
