"""Leases in containerd, and the sweep of those that dead processes of ours left.

A lease has no expiry, so that a job may take as long as it takes. Instead it says where its process holds
a lock (locks.py), which ends with the process:

    nydus-service/lock      the lock file      nydus-service/boot-id    that the lock was taken under

A process that opens a lease first deletes those that are stale by the rule of locks.py. Leases without our
label belong to others and are never touched.
"""

import time
from collections.abc import AsyncIterator
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
from nydus_service.content.containerd.rpc import CALL_S, PATIENCE_S, AlreadyThere, Connection
from nydus_service.content.store import ContentStore, Lease
from nydus_service.errors import NotFoundError, NydusServiceError, UsageError
from nydus_service.locks import acquire_nowait, boot_id, is_stale, make_lock_dir, release
from nydus_service.oci.annotations import OWN_PREFIX
from nydus_service.oci.digest import Digest

LOCK: Final = f"{OWN_PREFIX}lock"
BOOT_ID: Final = f"{OWN_PREFIX}boot-id"

_END_S = 2.0
"""For the end of a lease after a failure: the next sweep does it if the daemon does not."""


class ContainerdLease:
    """A lease that lasts."""

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
            jobs_dir: where processes of this user hold their locks; made if it is missing.
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

    async def sweep(self) -> list[str]:
        """Delete leases of dead processes of ours, and what they were writing. Returns their ids."""
        request = ListRequest(filters=[f'labels."{LOCK}"'])
        found = await self._connection.call(self._stub.List, request, "list leases")
        swept = []
        for lease in found.leases:
            if await in_thread(f"look at the lock of lease {lease.id}", self._is_stale, lease):
                with suppress(NotFoundError):  # another sweep was faster
                    await self._abort_ingests(lease.id)
                    await self._delete(lease.id)
                    swept.append(lease.id)
                with suppress(FileNotFoundError):
                    (self._jobs_dir / lease.id).unlink()
        return swept

    async def _create(self, lease_id: str, lock: Path) -> None:
        """Raises: UsageError: another program has a lease of this id."""
        request = CreateRequest(id=lease_id, labels={LOCK: str(lock), BOOT_ID: boot_id()})
        try:
            await self._connection.call(self._stub.Create, request, f"make lease {lease_id}")
        except AlreadyThere as exc:
            # The lock is ours: so is a lease that names it. Either it was made just now, before the
            # connection broke, or a dead process left it, and it is taken over with what it keeps.
            if not await self._is_ours(lease_id, lock):
                raise UsageError(f"{self._connection}: another program has a lease {lease_id}") from exc

    async def _is_ours(self, lease_id: str, lock: Path, *, hurry: bool = False) -> bool:
        request = ListRequest(filters=[f'id=="{lease_id}"'])
        found = await self._connection.call(self._stub.List, request, "list leases", **_limits(hurry))
        return any(each.labels.get(LOCK) == str(lock) for each in found.leases)

    async def _delete(self, lease_id: str, *, hurry: bool = False) -> None:
        with suppress(NotFoundError):
            await self._connection.call(
                self._stub.Delete, DeleteRequest(id=lease_id), f"end lease {lease_id}", **_limits(hurry)
            )

    async def _try_end(self, lease_id: str, lock: Path) -> bool:
        """End a lease after a failure. Returns whether it is gone; why not is not told, but the failure."""
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

    def _is_stale(self, lease: LeaseMessage) -> bool:
        lock = self._jobs_dir / lease.id
        seen = lease.labels[LOCK] == str(lock)  # else its process has another directory for locks
        age_s = time.time() - lease.created_at.seconds
        return is_stale(lock if seen else None, lease.labels.get(BOOT_ID), age_s)


def _release(fd: int, lock: Path | None) -> None:
    """Give the lock back. Its file stays if the lease does, so that the next sweep finds it dead."""
    if lock is not None:
        lock.unlink(missing_ok=True)
    release(fd)


class _Limits(TypedDict):
    patience_s: float
    timeout_s: float


def _limits(hurry: bool) -> _Limits:
    """How long a call may take, and be tried."""
    if hurry:
        return _Limits(patience_s=0, timeout_s=_END_S)
    return _Limits(patience_s=PATIENCE_S, timeout_s=CALL_S)
