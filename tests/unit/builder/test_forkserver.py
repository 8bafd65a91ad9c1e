"""The fork server: its children are as those that are started without it, and nothing hangs on it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from nydus_service.builder.builder import BuilderKilled
from nydus_service.builder.embedded import EmbeddedBuilder
from nydus_service.builder.forking import ForkServer, open_fork_server
from nydus_service.builder.limits import UNLIMITED, Limits
from nydus_service.builder.pipes import open_input, open_pipe
from nydus_service.builder.process import Command
from nydus_service.builder.supervisor import Output, Spawn, supervise
from nydus_service.errors import FormatError
from tests.trees import PROJECT
from tests.unit.builder.fakes import (
    GZIP,
    TAR,
    Collected,
    children,
    nothing_left,
    request_for,
    stream,
    wait_until_gone,
)

MANY = 100
"""Calls for which there is a fork server."""
PATIENCE_S = 100
"""A fork server that is slow on a busy machine must answer where a test looks at what it forks."""

ABOUT_ITSELF = """
import json, os, sys
print(json.dumps({
    "parent": os.getppid(), "session": os.getsid(0) == os.getpid(), "nice": os.nice(0),
    "open": sorted(os.listdir("/proc/self/fd"), key=int), "stdin": sys.stdin.read(),
    "loaded": "nydus_service.nydus_image.create" in sys.modules,
    "directory": os.getcwd(), "path": os.environ["PATH"],
    "signals": [line.split() for line in open("/proc/self/status") if line.startswith("Sig")],
}))
"""


async def tell(fork_server: ForkServer | None, limits: Limits = UNLIMITED) -> dict[str, Any]:
    """What a child says of itself, or without a fork server a program. `timeit` runs any code."""
    code = ("-n1", "-r1", ABOUT_ITSELF)
    own, program = Command(None, code, module="timeit"), Command(Path(sys.executable), ("-mtimeit", *code))
    printed = Collected()
    with open_input("patterns") as stdin, open_pipe() as pipe, open_pipe() as inherited:
        spawn = Spawn(
            own if fork_server is not None else program,
            stdin,
            stdout=pipe.writer,
            inherited=(inherited.writer,),
            fork_server=fork_server,
        )
        await supervise(spawn, output=Output(pipe, printed), limits=limits)
        report: dict[str, Any] = json.loads(printed.data.partition(b"\n")[0])
        # The listing has a descriptor of its own, with the lowest number that is free.
        assert report.pop("open") == ["0", "1", "2", "3", str(inherited.writer.fileno())]
    return report


@pytest.mark.conditions
async def test_a_child_is_as_one_started_without_it() -> None:
    limits = Limits(nice=3, io_priority="idle")
    with nothing_left():
        with open_fork_server(MANY, PATIENCE_S) as fork_server:
            forked = await tell(fork_server, limits)
        started = await tell(None, limits)
    assert (forked.pop("loaded"), started.pop("loaded")) == (True, False)
    assert forked["parent"] == os.getpid()
    assert forked["session"]
    assert forked["stdin"] == "patterns"
    assert forked == started


async def test_packs_the_same(tmp_path: Path) -> None:
    """Several at once, from files and streams."""
    expected, layer = Collected(), tmp_path / "layer"
    await EmbeddedBuilder().pack(request_for(GZIP), stream(GZIP), expected)
    layer.write_bytes(GZIP)
    sinks = [Collected() for _ in range(6)]
    with nothing_left():
        async with EmbeddedBuilder().several(MANY) as builder, anyio.create_task_group() as tasks:
            for number, sink in enumerate(sinks):
                tasks.start_soon(builder.pack, request_for(GZIP), layer if number % 2 else stream(GZIP), sink)
    assert [sink.data for sink in sinks] == [expected.data] * len(sinks)


async def test_for_a_few_calls_there_is_one_when_the_first_layer_is_packed() -> None:
    before, sink = children(), Collected()
    async with EmbeddedBuilder().several(3) as builder:

        async def source() -> AsyncIterator[bytes]:
            assert len(children()) == len(before) + 1  # the builder
            yield TAR

        await builder.pack(request_for(TAR), source(), sink)
        assert len(children()) == len(before) + 1  # the fork server
    assert children() == before


async def test_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kind of machine whose system call is not known."""
    sinks = (Collected(), Collected())
    with monkeypatch.context() as patch:
        patch.setattr(os, "uname", lambda: SimpleNamespace(machine="vax"))
        async with EmbeddedBuilder().several(MANY) as builder:
            await builder.pack(request_for(TAR), stream(TAR), sinks[0])
    async with EmbeddedBuilder().several(3) as builder:
        await builder.pack(request_for(TAR), stream(TAR), sinks[1])
    assert sinks[0].data == sinks[1].data


async def test_a_request_that_is_larger_than_what_a_socket_holds() -> None:
    """Its end is still to be sent when the fork server, which loads its modules first, begins to read."""
    arguments = (
        "-n1",
        "-r1",
        *(f"# {number:01000}" for number in range(2000)),
        "import sys; print(sys.argv)",
    )
    printed = Collected()
    with open_fork_server(MANY, PATIENCE_S) as fork_server:
        with open_input("") as stdin, open_pipe() as pipe:
            command = Command(None, arguments, module="timeit")
            spawn = Spawn(command, stdin, stdout=pipe.writer, fork_server=fork_server)
            await supervise(spawn, output=Output(pipe, printed))
    assert len(printed.data) > 2_000_000


async def test_errors_are_told() -> None:
    damaged = GZIP[:-100]
    async with EmbeddedBuilder().several(MANY) as builder:
        with nothing_left(), pytest.raises(FormatError, match="truncated"):
            await builder.pack(request_for(damaged), stream(damaged), Collected())
        sink = Collected()
        await builder.pack(request_for(TAR), stream(TAR), sink)
    assert sink.data


async def endless() -> AsyncIterator[bytes]:
    """A layer that goes on when its first bytes have been read."""
    yield TAR[:1024]
    await anyio.sleep_forever()


async def test_cancelled() -> None:
    async with EmbeddedBuilder().several(MANY) as builder:
        with nothing_left(), anyio.move_on_after(0.5) as scope:
            await builder.pack(request_for(TAR), endless(), Collected())
        assert scope.cancelled_caught


async def test_a_child_that_is_killed() -> None:
    async with EmbeddedBuilder().several(MANY) as builder:
        before = children()

        async def source() -> AsyncIterator[bytes]:
            yield TAR[:1024]
            (pid,) = set(children()) - set(before)
            os.kill(pid, signal.SIGKILL)
            await anyio.sleep_forever()

        with nothing_left(), pytest.raises(BuilderKilled, match=r"was killed by SIGKILL \(out of memory\?\)"):
            await builder.pack(request_for(TAR), source(), Collected())


async def test_killed_itself() -> None:
    """What it has started goes on, what is started later is started without it."""
    before, sinks = children(), (Collected(), Collected())
    with nothing_left():
        async with EmbeddedBuilder().several(MANY) as builder:
            (server,) = set(children()) - set(before)

            async def source() -> AsyncIterator[bytes]:
                yield GZIP[:100]
                os.kill(server, signal.SIGKILL)
                wait_until_gone(server)
                yield GZIP[100:]

            await builder.pack(request_for(GZIP), source(), sinks[0])
            await builder.pack(request_for(GZIP), stream(GZIP), sinks[1])
    assert sinks[0].data == sinks[1].data


@pytest.mark.long
async def test_that_does_not_answer() -> None:
    """What it was asked for is started without it, and nothing comes of it later."""
    before, sink = children(), Collected()
    with nothing_left():
        async with EmbeddedBuilder().several(MANY) as builder:
            (server,) = set(children()) - set(before)
            os.kill(server, signal.SIGSTOP)
            await builder.pack(request_for(GZIP), stream(GZIP), sink)
    assert sink.data


SERVICE = """
import anyio, os, sys
from tests.unit.builder.fakes import Collected, TAR, children, request_for
from nydus_service.builder.embedded import EmbeddedBuilder

async def source():
    yield TAR[:1024]
    print(*children(), flush=True)
    await anyio.sleep_forever()

async def main():
    async with EmbeddedBuilder().several(100) as builder:
        await builder.pack(request_for(TAR), source(), Collected())

anyio.run(main)
"""


def test_service_killed() -> None:
    """Not even SIGKILL of the service leaves the fork server or its children."""
    command = [sys.executable, "-c", SERVICE]
    service = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE)
    try:
        assert service.stdout is not None
        pids = [int(pid) for pid in service.stdout.readline().split()]
    finally:
        service.kill()
        service.communicate()
    assert len(pids) == 2
    for pid in pids:
        wait_until_gone(pid)
