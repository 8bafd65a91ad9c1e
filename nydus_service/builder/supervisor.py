"""One run of a builder from its start to the verdict, with everything that hangs on it.

    source ──copy_in──► [feeder ──►] builder ──copy_out──► sink        tails of what both say

- Success is: exit status 0, and the end of its output, and nothing of its input left. A feeder's
  failure comes first in the verdict: it is why the builder complains of a truncated tar.
- The builder's exit ends the feeding: what has not been read by then will not be.
- A pipe ends when the last process with its writing end is gone. So the end of the output is waited
  for after the builder's whole process group has been killed, and then not for long.
- Whatever goes wrong, in here or in source and sink, leaves as one exception, when the processes and
  pipes are gone.
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
    """A process to start, with the descriptors it gets; as `process.open_child` takes it."""

    command: Command
    stdin: FileDescriptor
    stdout: FileDescriptor | None = None
    inherited: tuple[FileDescriptor, ...] = ()
    fork_server: ForkServer | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """Bytes for the first process, and the pipe that it reads them from."""

    source: AsyncIterable[bytes]
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Feeder:
    """A process in front of the builder, and the pipe between the two."""

    spawn: Spawn
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Output:
    """The pipe that the builder writes, and who takes what comes out."""

    pipe: Pipe
    sink: Sink


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that succeeded. Bytes are those that went through `Input` and `Output`."""

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
        limits: of each process.
    Raises:
        BuilderFailed: there was no success as defined above.
        NydusServiceError: of the kind that a process of our own tells.
        Whatever `input.source` or `output.sink` raise.
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
    """What is known of a run while it lasts, for the verdict."""

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
        """The builder, then the feeder if there is one."""
        self.bytes_in = 0
        self.bytes_out = 0
        self._all_given = input is None
        self._output_ended = output is None
        self._left_unread = 0

    async def run(self, deadline: anyio.CancelScope) -> None:
        """Start, feed, drain, wait, stop. The verdict is `check`'s."""
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
        # Their writing ends must be theirs alone, or the pipes would not end with them.
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
            with anyio.move_on_after(GRACE_S):  # it is exiting, if not a zombie yet
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
        """If the feeder fails nothing can come of the builder, which may not even notice."""
        await self.children[1].wait()
        if self.children[1].returncode != 0:
            waiting.cancel()

    def check(self) -> None:
        """The verdict, after the run. Raises: see `supervise`."""
        for child in reversed(self.children):
            failure = child.failure()
            if failure is not None:
                raise failure
        builder, *feeders = self.children
        if not self._all_given or self._left_unread or any(feeder.was_stopped for feeder in feeders):
            raise builder.failed("exited with success before it had read its whole input")
        if not self._output_ended:
            raise builder.failed("exited, but a process that it left behind keeps its output open")
