"""Supervises one run of a builder from its start to the verdict, with its source, feeder and sink.

    source ──copy_in──► [feeder ──►] builder ──copy_out──► sink        tails of both error outputs

- A run succeeds if the builder exits with status 0, its output has ended, and its input was read completely.
  The feeder's failure takes precedence: it is the cause of the builder's complaint about a truncated tar.
- The builder's exit ends the feeding, because unread input will no longer be read.
- A pipe ends when the last process that holds its writing end is gone. So the end of the output is awaited
  after the builder's whole process group has been killed, and only for a short time.
- Any failure, here or in source and sink, leaves as one exception after the processes and pipes are gone.
"""

import math
from collections.abc import AsyncIterable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import anyio
import anyio.abc

from nydus_service.builder.builder import Sink
from nydus_service.builder.forking import ForkServer
from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.pipes import FileDescriptor, Pipe, PipeReader, StillOpen, copy_in, copy_out
from nydus_service.builder.process import GRACE_S, Child, Command, open_child
from nydus_service.errors import first_cause


@dataclass(frozen=True, slots=True)
class Spawn:
    """A process to start, with its descriptors: the arguments of `process.open_child`."""

    command: Command
    stdin: FileDescriptor
    stdout: FileDescriptor | None = None
    inherited: tuple[FileDescriptor, ...] = ()
    fork_server: ForkServer | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """The bytes for the first process, and the pipe from which it reads them."""

    source: AsyncIterable[bytes]
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Feeder:
    """A process in front of the builder, and the pipe between the two."""

    spawn: Spawn
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Output:
    """The pipe that the builder writes, and the sink that receives its bytes."""

    pipe: Pipe
    sink: Sink


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that succeeded. The bytes are those passed through `Input` and `Output`."""

    bytes_in: int
    bytes_out: int
    duration_s: float
    stderr_tail: str


async def supervise(
    builder: Spawn,
    *,
    input: Input | None = None,
    feeder: Feeder | None = None,
    output: Output | None = None,
    limits: Limits = UNLIMITED,
) -> Finished:
    """Run a builder to its end.

    Args:
        limits: limits of each process.
    Raises:
        BuilderFailed: the run did not succeed as defined in the module docstring.
        NydusServiceError: the error that a process of this project reports.
        Exceptions of `input.source` and `output.sink` pass through.
    """
    timeout_s = limits.timeout_s
    run = _Run(builder, input, feeder, output, limits)
    cause: BaseException | None = None
    started = anyio.current_time()
    try:
        with anyio.CancelScope(deadline=math.inf if timeout_s is None else started + timeout_s) as deadline:
            await run.run(deadline)
    except BaseExceptionGroup as group:
        cause = first_cause(group)
    if cause is not None:  # outside the handler, or the group would become its context
        raise cause
    if deadline.cancelled_caught:
        raise run.children[0].failed(f"did not finish within {timeout_s:g} s and was ended")
    run.check()
    tails = filter(None, (child.stderr_tail for child in reversed(run.children)))
    return Finished(run.bytes_in, run.bytes_out, anyio.current_time() - started, "\n".join(tails))


class _Run:
    """The state of a run, from which the verdict follows."""

    def __init__(
        self,
        builder: Spawn,
        input: Input | None,
        feeder: Feeder | None,
        output: Output | None,
        limits: Limits,
    ) -> None:
        self._builder = builder
        self._input = input
        self._feeder = feeder
        self._output = output
        self._limits = limits
        self.children: list[Child] = []
        """The builder, then the feeder if the run has one."""
        self.bytes_in = 0
        self.bytes_out = 0
        self._all_given = input is None
        self._output_ended = output is None
        self._left_unread = 0

    async def run(self, deadline: anyio.CancelScope) -> None:
        """Start, feed, drain, wait, stop. `check` gives the verdict."""
        async with anyio.create_task_group() as draining:
            async with AsyncExitStack() as processes:
                await self._start(processes)
                reader = None
                if self._output is not None:
                    reader = PipeReader(self._output.pipe.reader)
                    draining.start_soon(self._copy_out, reader, self._output.sink)
                async with anyio.create_task_group() as feeding:
                    await self._feed_until_exit(feeding)
                deadline.deadline = math.inf
                pipes = [end.pipe for end in (self._input, self._feeder) if end is not None]
                self._left_unread = sum(pipe.unread() for pipe in pipes)
            if reader is not None:
                reader.expect_end(GRACE_S)

    async def _start(self, processes: AsyncExitStack) -> None:
        spawns = [self._builder, *([self._feeder.spawn] if self._feeder is not None else [])]
        for spawn in spawns:
            child = open_child(
                spawn.command,
                stdin=spawn.stdin,
                stdout=spawn.stdout,
                inherited=spawn.inherited,
                limits=self._limits,
                fork_server=spawn.fork_server,
            )
            self.children.append(await processes.enter_async_context(child))
        # Only the children may hold these writing ends, or the pipes would not end with them.
        for side in (self._output, self._feeder):
            if side is not None:
                side.pipe.writer.close()

    async def _feed_until_exit(self, feeding: anyio.abc.TaskGroup) -> None:
        for child in self.children:
            feeding.start_soon(child.keep_tail)
        if self._input is not None:
            feeding.start_soon(self._copy_in, self._input)
        if self._feeder is not None:
            feeding.start_soon(self._give_up_with_feeder, feeding.cancel_scope)
        await self.children[0].wait()
        if self._feeder is not None and not self._feeder.pipe.has_writer():
            with anyio.move_on_after(GRACE_S):  # it is exiting, but may not be a zombie yet
                await self.children[1].wait()
        feeding.cancel_scope.cancel()

    async def _copy_in(self, input: Input) -> None:
        self.bytes_in = await copy_in(input.source, input.pipe.writer)
        self._all_given = True

    async def _copy_out(self, reader: PipeReader, sink: Sink) -> None:
        try:
            self.bytes_out = await copy_out(reader, sink)
            self._output_ended = True
        except StillOpen:
            pass

    async def _give_up_with_feeder(self, waiting: anyio.CancelScope) -> None:
        """Stop the run if the feeder fails: the builder cannot succeed, and may not notice the failure."""
        await self.children[1].wait()
        if self.children[1].returncode != 0:
            waiting.cancel()

    def check(self) -> None:
        """Give the verdict after the run. Raises: see `supervise`."""
        for child in reversed(self.children):
            failure = child.failure()
            if failure is not None:
                raise failure
        builder, *feeders = self.children
        if not self._all_given or self._left_unread or any(feeder.was_stopped for feeder in feeders):
            raise builder.failed("exited with success before it had read its whole input")
        if not self._output_ended:
            raise builder.failed("exited, but a process that it left behind keeps its output open")
