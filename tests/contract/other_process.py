"""What the fault tests run in processes of their own: `python -m tests.contract.other_process WHAT DIR …`."""

import itertools
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path

import anyio

from nydus_service.content.archive import open_archive
from nydus_service.content.layout import open_layout
from nydus_service.content.store import Image
from tests.contract.location import add_image, write, write_manifest

CHANGES = {"os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
"""What Python tells of calls that change files (audit events), besides "open". Between two of these a
kill leaves the same directory, whenever it comes; save for bytes within one file."""


AT_ONCE = 8
"""Processes that are killed at the same time, as they mostly wait for the disk."""


async def stall(path: Path) -> None:
    """Write, commit, and write some more; then say so and wait to be killed."""
    async with open_layout(path).leases.open_lease("stalled") as lease:
        await write(lease.content, b"committed, not named")
        async with lease.content.open_ingest("stalled") as ingest:
            await ingest.write(bytes(3 << 20))
            print("ready", flush=True)
            await anyio.sleep_forever()


async def add(path: Path, first: str, count: str) -> None:
    """Add images to a layout or, if it is a .tar, to an archive, one by one."""
    async with open_archive(path) if path.suffix == ".tar" else nullcontext(open_layout(path)) as stores:
        for number in range(int(first), int(first) + int(count)):
            await add_image(stores, f"app-{number}")


async def name_in_layout(path: Path) -> None:
    """A small conversion: some content, two documents, a name that moves."""
    stores = open_layout(path)
    async with stores.leases.open_lease("job") as lease:
        await write(lease.content, b"a blob", "job")
        await stores.images.put(Image("app", await write_manifest(lease.content, "new")))


async def name_in_archive(path: Path) -> None:
    async with open_archive(path / "images.tar") as stores:
        async with stores.leases.open_lease("job") as lease:
            await write(lease.content, b"a blob", "job")
            await stores.images.put(Image("app", await write_manifest(lease.content, "new")))


def kill_at_every_step(path: Path, what: str) -> None:
    """Do something in one directory after the other, killed before its first, second, … change of files.

    The directories are `path/1`, `path/2` and so on; what is there already is found there. Prints how
    many it took.
    """
    work = {"layout": name_in_layout, "archive": name_in_archive}[what]
    anyio.run(anyio.sleep, 0)  # imports the event loop once, not in every child
    for first in itertools.count(1, AT_ONCE):
        children = {}
        for step in range(first, first + AT_ONCE):
            children[step] = os.fork()
            if not children[step]:
                run_until(step, work, path / str(step))
        statuses = {step: os.waitpid(child, 0)[1] for step, child in children.items()}
        done = [step for step, status in statuses.items() if not os.WIFSIGNALED(status)]
        if done:
            print(done[0] if not any(statuses[step] for step in done) else f"failed: {statuses}", flush=True)
            return


def run_until(step: int, work: Callable[[Path], Awaitable[None]], path: Path) -> None:
    """Work in this process, which was forked for it, until step number `step`."""
    steps = itertools.count(1)

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if changes(event, arguments) and str(path) in str(arguments[0]) and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    anyio.run(work, path)
    os._exit(0)


def changes(event: str, arguments: tuple[object, ...]) -> bool:
    if event == "open":
        flags = arguments[2]
        return isinstance(flags, int) and bool(flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR))
    return event in CHANGES


if __name__ == "__main__":
    name, directory, *rest = sys.argv[1:]
    if name == "kill":
        kill_at_every_step(Path(directory), rest[0])
    elif name == "add":
        anyio.run(add, Path(directory), rest[0], rest[1])
    else:
        anyio.run(stall, Path(directory))
