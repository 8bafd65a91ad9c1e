"""Leases in containerd, and the sweep of leases that dead processes of this project left.

A lease has no expiry, so that a job may take any time. Instead its labels name a lock of its process
(locks.py), which ends with the process:

    nydus-service/lock      the lock file      nydus-service/boot-id    the boot id at the time of locking

A process that opens a lease first deletes those that are stale by the rule of locks.py. Leases without these
labels belong to other programs and are never touched. Several leases may name one lock, in several
namespaces: those of a daemon (daemons.py) do. So the file of a free lock stays until no lease names it.
"""

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, TypedDict

import anyio

from nydus_service.content._pb.containerd.services.content.v1.content_pb2 import AbortRequest
from nydus_service.content._pb.containerd.services.leases.v1.leases_pb2 import (
    CreateRequest,
    DeleteRequest,
    ListRequest,
    ListResourcesRequest,
)
from nydus_service.content._pb.containerd.services.leases.v1.leases_pb2 import Lease as LeaseMessage
from nydus_service.content.blocking import in_thread
from nydus_service.content.containerd.content import ContainerdContent
from nydus_service.content.containerd.records import BY_LEASE, UnsendableAnswer, decode, read_in_parts
from nydus_service.content.containerd.rpc import CALL_S, PATIENCE_S, AlreadyThere, Connection
from nydus_service.content.store import ContentStore, Lease
from nydus_service.errors import FormatError, NotFoundError, NydusServiceError, UsageError
from nydus_service.locks import acquire_nowait, boot_id, is_stale, make_lock_dir, release
from nydus_service.oci.annotations import OWN_PREFIX
from nydus_service.oci.digest import Digest

LOCK: Final = f"{OWN_PREFIX}lock"
BOOT_ID: Final = f"{OWN_PREFIX}boot-id"

_END_S = 2.0
"""Timeout in seconds to end a lease after a failure. If it fails, the next sweep ends the lease."""


class ContainerdLease:
    """An open lease."""

    def __init__(self, lease_id: str, content: ContainerdContent) -> None:
        self.id = lease_id
        self.content: ContentStore = content
        self._content = content

    async def hold(self, digest: Digest) -> None:
        await self._content.hold(digest)


class ContainerdLeases:
    """Leases of a namespace."""

    def __init__(self, connection: Connection, root: Path | None, jobs_dir: Path) -> None:
        """
        Args:
            root: as for `ContainerdContent`.
            jobs_dir: directory of the locks of this user's processes; created if missing.
        """
        self._connection = connection
        self._stub = connection.leases
        self._root = root
        self._jobs_dir = jobs_dir.absolute()

    @asynccontextmanager
    async def open_lease(self, lease_id: str) -> AsyncIterator[Lease]:
        lock = self._jobs_dir / lease_id
        fd = await in_thread(f"lock {lock}", self._acquire, lock)
        ended = False
        try:
            await self.sweep()
            await self._create(lease_id, lock)
            yield ContainerdLease(lease_id, ContainerdContent(self._connection, self._root, lease_id))
            await self._delete(lease_id)
            ended = True
        finally:
            with anyio.CancelScope(shield=True):
                ended = ended or await self._try_end(lease_id, lock)
                await in_thread(f"unlock {lock}", _release, fd, lock if ended else None)

    async def sweep(self, other_jobs_dirs: Sequence[Path] = ()) -> list[str]:
        """Delete the leases of this project's dead processes, and their ingests. Returns the leases' ids.

        Args:
            other_jobs_dirs: further directories whose locks are visible here, as those of a daemon with
                another run directory.
        """
        visible = {self._jobs_dir, *(each.absolute() for each in other_jobs_dirs)}
        stale: list[tuple[LeaseMessage, Path | None]] = []
        for lease in await list_leases(self._connection, f'labels."{LOCK}"'):
            named = Path(lease.labels[LOCK])
            lock = named if named.parent in visible else None
            if await in_thread(f"look at the lock of lease {lease.id}", _is_stale, lease, lock):
                stale.append((lease, lock))
        swept = []
        for lease, _ in stale:
            with suppress(NotFoundError):  # another sweep was faster
                await self._abort_ingests(lease.id)
                await self._delete(lease.id)
                swept.append(lease.id)
        for lock in {lock for _, lock in stale if lock is not None}:
            if not await self._is_named(lock):
                lock.unlink(missing_ok=True)
        return swept

    async def _create(self, lease_id: str, lock: Path) -> None:
        """Raises: UsageError: another program has a lease of this id."""
        request = CreateRequest(id=lease_id, labels={LOCK: str(lock), BOOT_ID: boot_id()})
        try:
            await self._connection.call(self._stub.Create, request, f"make lease {lease_id}")
        except AlreadyThere as exc:
            # This process holds the lock, so it owns a lease that names it. Either the lease was created just
            # now, before the connection broke, or a dead process left it. Then it is taken over as it is.
            if not await self._is_ours(lease_id, lock):
                raise UsageError(f"another program has a lease {lease_id} [{self._connection}]") from exc

    async def _is_ours(self, lease_id: str, lock: Path, *, hurry: bool = False) -> bool:
        found = await list_leases(self._connection, f'id=="{lease_id}"', **_limits(hurry))
        return any(each.labels.get(LOCK) == str(lock) for each in found)

    async def _is_named(self, lock: Path) -> bool:
        """Whether a lease names a lock, in any namespace: a daemon has leases in several.

        Without the file, a sweep of those would take their process for one that is not visible here.
        """
        selected = f'labels."{LOCK}"=={json.dumps(str(lock))}'
        try:
            for namespace in await self._connection.list_namespaces():
                if await list_leases(self._connection.within(namespace), selected):
                    return True
        except NydusServiceError:
            return True  # unknown, so the file stays
        return False

    async def _delete(self, lease_id: str, *, hurry: bool = False) -> None:
        with suppress(NotFoundError):
            await self._connection.call(
                self._stub.Delete, DeleteRequest(id=lease_id), f"end lease {lease_id}", **_limits(hurry)
            )

    async def _try_end(self, lease_id: str, lock: Path) -> bool:
        """End a lease after a failure. Returns whether it is gone; its own errors do not hide the failure."""
        try:
            if await self._is_ours(lease_id, lock, hurry=True):
                await self._delete(lease_id, hurry=True)
        except NydusServiceError:
            return False
        return True

    async def _abort_ingests(self, lease_id: str) -> None:
        request = ListResourcesRequest(id=lease_id)
        found = await self._connection.call(
            self._stub.ListResources, request, f"list what lease {lease_id} keeps"
        )
        for resource in found.resources:
            if resource.type == "ingests":
                with suppress(NotFoundError):
                    await self._connection.call(
                        self._connection.content.Abort, AbortRequest(ref=resource.id), "abort a dead ingest"
                    )

    def _acquire(self, lock: Path) -> int:
        make_lock_dir(self._jobs_dir)
        try:
            return acquire_nowait(lock)
        except FileExistsError:
            raise UsageError(f"job {lock.name} is under way in another process ({lock})") from None


async def list_leases(
    connection: Connection, selected: str, *, patience_s: float = PATIENCE_S, timeout_s: float = CALL_S
) -> list[LeaseMessage]:
    """The leases of a filter. Leases that cannot be decoded are other programs', and left out."""

    async def read(part: str) -> Sequence[bytes]:
        method, request = connection.records.list_leases, ListRequest(filters=[part])
        reply = await connection.call(
            method, request, "list leases", patience_s=patience_s, timeout_s=timeout_s
        )
        return reply.records

    found = []
    async for part in read_in_parts(read, BY_LEASE, selected):
        for record in () if isinstance(part, UnsendableAnswer) else part:
            with suppress(FormatError):
                found.append(decode(record, LeaseMessage))
    return found


def _is_stale(lease: LeaseMessage, lock: Path | None) -> bool:
    age_s = time.time() - lease.created_at.seconds
    return is_stale(lock, lease.labels.get(BOOT_ID), age_s)


def _release(fd: int, lock: Path | None) -> None:
    """Release the lock. Its file stays if the lease does, so that the next sweep finds it stale."""
    if lock is not None:
        lock.unlink(missing_ok=True)
    release(fd)


class _Limits(TypedDict):
    patience_s: float
    timeout_s: float


def _limits(hurry: bool) -> _Limits:
    """The timeout of a call, and how long it is retried."""
    if hurry:
        return _Limits(patience_s=0, timeout_s=_END_S)
    return _Limits(patience_s=PATIENCE_S, timeout_s=CALL_S)
