"""The stores of one namespace of one containerd, and facts about the daemon."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from nydus_service.content._pb.containerd.services.introspection.v1.introspection_pb2 import (
    PluginsRequest,
)
from nydus_service.content.blocking import in_thread
from nydus_service.content.containerd.content import ContainerdContent
from nydus_service.content.containerd.images import ContainerdImages
from nydus_service.content.containerd.leases import ContainerdLeases
from nydus_service.content.containerd.rpc import CALL_S, PATIENCE_S, Connection, connect
from nydus_service.content.store import Stores

_FIRST_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class ContainerdInfo:
    """Facts that a containerd reports about itself.

    Attributes:
        content_root: the daemon's content directory; None if the daemon does not report it.
        root_readable: whether this user may read the content directory.
    """

    version: str
    namespaces: tuple[str, ...]
    content_root: Path | None
    root_readable: bool


@asynccontextmanager
async def open_containerd(
    address: Path, namespace: str, jobs_dir: Path, *, sweep: bool = False
) -> AsyncIterator[Stores]:
    """Open the stores over a containerd, which must be running.

    Args:
        address: path of its Unix socket.
        jobs_dir: directory of the locks of this user's processes (leases.py).
        sweep: remove leases of dead processes at once, not only when the first lease is opened.
    Raises:
        UnreachableError, NotAllowedError, UsageError: as `connect`.
    """
    async with connect(address, namespace) as connection:
        await _version(connection)
        root = await content_root(connection)
        files = root if await _is_readable(root) else None
        content = ContainerdContent(connection, files)
        images = ContainerdImages(connection, content)
        leases = ContainerdLeases(connection, files, jobs_dir)
        if sweep:
            await leases.sweep()
        yield Stores(str(connection), content, images, leases, collects=True)


async def sweep_namespace(
    address: Path, namespace: str, jobs_dir: Path, other_jobs_dirs: Sequence[Path] = ()
) -> list[str]:
    """Delete the leases of this project's dead processes, and their ingests. Returns the leases' ids.

    Args:
        other_jobs_dirs: as for `ContainerdLeases.sweep`.
    Raises: as `connect`.
    """
    async with connect(address, namespace) as connection:
        return await ContainerdLeases(connection, None, jobs_dir).sweep(other_jobs_dirs)


async def introspect(address: Path) -> ContainerdInfo:
    """Ask a containerd about itself. Raises: as `connect`."""
    async with connect(address, "default") as connection:
        version = await _version(connection)
        root = await content_root(connection)
        namespaces = tuple(await connection.list_namespaces())
        return ContainerdInfo(version, namespaces, root, await _is_readable(root))


async def _version(connection: Connection) -> str:
    """The first call of a connection. Its short timeout quickly reports a daemon that does not answer."""
    reply = await connection.call(
        connection.version.Version, Empty(), "ask for its version", patience_s=0, timeout_s=_FIRST_ANSWER_S
    )
    return reply.version


async def content_root(
    connection: Connection, *, patience_s: float = PATIENCE_S, timeout_s: float = CALL_S
) -> Path | None:
    """The content directory of a containerd; None if it does not report one. Raises: as `Connection.call`."""
    request = PluginsRequest(filters=["type==io.containerd.content.v1"])
    reply = await connection.call(
        connection.introspection.Plugins,
        request,
        "find its content directory",
        patience_s=patience_s,
        timeout_s=timeout_s,
    )
    roots = [plugin.exports["root"] for plugin in reply.plugins if "root" in plugin.exports]
    return Path(roots[0]) if len(roots) == 1 else None


async def _is_readable(root: Path | None) -> bool:
    if root is None:
        return False
    return await in_thread(f"look at {root}", os.access, root / "blobs", os.R_OK | os.X_OK)
