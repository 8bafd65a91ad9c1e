"""What happens to directories, for the tests of stores on disk: other processes, kills; and what is left."""

import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from nydus_service.content.store import Stores
from nydus_service.content.transfer import closure
from nydus_service.oci.digest import Digest
from tests.contract.location import read
from tests.processes import killed_at_the_end

PROJECT = Path(__file__).parents[2]
STEPS_MIN, STEPS_MAX = 20, 80
"""How many changes of files a small job is: enough to be worth the test, and few enough for it."""


def other_process(*arguments: object) -> AbstractContextManager["subprocess.Popen[str]"]:
    """Start one; it does not outlive the block."""
    argv = [sys.executable, "-m", "tests.contract.other_process", *map(str, arguments)]
    return killed_at_the_end(subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.PIPE, text=True))


def files(directory: Path) -> set[str]:
    """Everything in a directory, by its path in there."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


async def sweep(stores: Stores) -> None:
    """Do what the next job does first and last."""
    async with stores.leases.open_lease("sweeper"):
        pass


async def verify(stores: Stores) -> set[Digest]:
    """Read all images, whole. Returns the digests of all their content."""
    found = set()
    for image in await stores.images.list():
        for desc in await closure(stores.content, image.target):
            assert Digest.of(await read(stores.content, desc)) == desc.digest
            found.add(desc.digest)
    return found


def blobs(directory: Path) -> set[Digest]:
    return {Digest(f"sha256:{path.name}") for path in directory.glob("blobs/sha256/*")}


def kill_at_every_step(directory: Path, what: str) -> int:
    """Work in the directories 1, 2, 3 …, killed at another step in each. Returns how many it takes."""
    with other_process("kill", directory, what) as process:
        assert process.stdout is not None
        steps = int(process.stdout.read())
    assert STEPS_MIN < steps < STEPS_MAX
    return steps
