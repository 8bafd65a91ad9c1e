"""What the tests of containerd run in processes of their own.

`python -m tests.contract.containerd_process stall|nobody SOCKET NAMESPACE JOBS_DIR`
"""

import os
import sys
from pathlib import Path

import anyio

from nydus_service.content.containerd.stores import open_containerd
from nydus_service.errors import NydusServiceError
from tests.contract.location import write

NOBODY = 65534


async def stall(address: Path, namespace: str, jobs_dir: Path) -> None:
    """Write, commit, and write some more; then say so and wait to be killed."""
    async with open_containerd(address, namespace, jobs_dir) as stores:
        async with stores.leases.open_lease("stalled") as lease:
            await write(lease.content, b"committed, not named")
            async with lease.content.open_ingest("stalled") as ingest:
                await ingest.write(bytes(5 << 20))
                print("ready", flush=True)
                await anyio.sleep_forever()


async def use_as_nobody(address: Path, namespace: str, jobs_dir: Path) -> None:
    """Try to use the socket as another user, and print what is said."""
    os.seteuid(NOBODY)
    try:
        async with open_containerd(address, namespace, jobs_dir):
            print("allowed", flush=True)
    except NydusServiceError as exc:
        print(type(exc).__name__, exc, flush=True)


if __name__ == "__main__":
    what, *place = sys.argv[1:]
    work = {"stall": stall, "nobody": use_as_nobody}[what]
    anyio.run(work, Path(place[0]), place[1], Path(place[2]))
