"""The identity of a daemon: an id that survives restarts, and the lock of the process that has it.

The id is in the state directory, next to the jobs whose answers in containerd name it. So a daemon that is
started again takes up its own requests at once, and one with another state directory is another daemon.
"""

import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio.to_thread

from nydus_service.config.sections import DaemonSection
from nydus_service.content.imagenode import DaemonSign
from nydus_service.errors import NydusServiceError, from_os_error
from nydus_service.locks import acquire_nowait, make_lock_dir, release

ID_FILE: Final = "daemon-id"


@asynccontextmanager
async def open_identity(daemon: DaemonSection) -> AsyncIterator[DaemonSign]:
    """Read the id, or make one, and hold the lock that the daemon's leases name.

    Returns: a sign without a beat.
    Raises: NydusServiceError: the directories cannot be used.
    """
    sign, fd = await anyio.to_thread.run_sync(_acquire, daemon)
    try:
        yield sign
    finally:
        sign.lock.unlink(missing_ok=True)
        release(fd)


def _acquire(daemon: DaemonSection) -> tuple[DaemonSign, int]:
    locks = (daemon.run_dir / "jobs").absolute()
    try:
        daemon_id = _read_id(daemon.state_dir / ID_FILE)
        lock = locks / f"daemon-{daemon_id}"
        make_lock_dir(locks)
        fd = acquire_nowait(lock)
    except FileExistsError as exc:
        raise NydusServiceError(
            f"another process has the identity in {daemon.state_dir}: end it, or configure another state_dir"
        ) from exc
    except OSError as exc:
        raise from_os_error(exc, f"take the identity in {daemon.state_dir}") from exc
    sign = DaemonSign(
        id=daemon_id,
        beat=0,
        host=socket.gethostname(),
        socket=str(daemon.socket),
        lock=lock,
        follows=frozenset(),
    )
    return sign, fd


def _read_id(path: Path) -> str:
    """The id in a file; a new one if there is no valid one."""
    try:
        return uuid.UUID(hex=path.read_text().strip()).hex
    except (FileNotFoundError, ValueError):
        pass
    daemon_id = uuid.uuid4().hex
    new = path.with_name(f"{path.name}.new")
    new.write_text(f"{daemon_id}\n")
    new.replace(path)
    return daemon_id
