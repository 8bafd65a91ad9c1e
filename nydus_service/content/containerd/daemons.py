"""The daemons of this project that follow one containerd: their signs of life, and their claims, as leases.

    lease                                  labels nydus-service/…            in
    nydus-service.daemon.ID.BEAT           daemon, daemon.* of `DaemonSign`  one namespace of the daemon
    nydus-service.claim.CLAIM              daemon                            the namespace of the claim

containerd creates a lease of an id only once, so one of several daemons gets a claim. A lease cannot be
changed, so a sign with a new beat is a new lease. All these leases name the lock of the daemon's process
(leases.py), so that a sweep removes what a killed daemon left.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from nydus_service.content._pb.containerd.services.leases.v1.leases_pb2 import (
    CreateRequest,
    DeleteRequest,
)
from nydus_service.content._pb.containerd.services.leases.v1.leases_pb2 import Lease as LeaseMessage
from nydus_service.content.containerd.leases import BOOT_ID, LOCK, list_leases
from nydus_service.content.containerd.rpc import AlreadyThere, Connection
from nydus_service.content.imagenode import DaemonSign
from nydus_service.errors import NotFoundError
from nydus_service.locks import boot_id
from nydus_service.oci.annotations import OWN_PREFIX
from nydus_service.oci.names import LABEL_SIZE_MAX

DAEMON: Final = f"{OWN_PREFIX}daemon"
_BEAT: Final = f"{DAEMON}.beat"
_HOST: Final = f"{DAEMON}.host"
_SOCKET: Final = f"{DAEMON}.socket"
_FOLLOWS: Final = f"{DAEMON}.follows"
_NAMESPACES: Final = f"{DAEMON}.namespaces"

_SIGN_ID: Final = "nydus-service.daemon"
_CLAIM_ID: Final = "nydus-service.claim"


class DaemonLeases:
    """Signs and claims in all namespaces of one containerd. Its methods are those of `ImageNode`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def signs(self) -> list[DaemonSign]:
        return _latest([_sign(lease) for _, lease in await self._shown()])

    async def exchange(self, sign: DaemonSign) -> list[DaemonSign]:
        namespaces = await self._connection.list_namespaces()
        before = await self._shown()
        followed = [each for each in sign.namespaces or namespaces if each in namespaces]
        if followed:  # else nothing is there to answer, and a lease would make a namespace
            with suppress(AlreadyThere):  # from this call's first attempt, whose answer was lost
                await self._create(followed[0], f"{_SIGN_ID}.{sign.id}.{sign.beat}", _labels(sign))
        for namespace, lease in before:
            if lease.labels[DAEMON] == sign.id:
                await self._delete(namespace, lease.id)
        return _latest([_sign(lease) for _, lease in before if lease.labels[DAEMON] != sign.id])

    async def hide(self, daemon_id: str) -> None:
        for namespace in await self._connection.list_namespaces():
            for lease in await self._leases(namespace, f'labels."{DAEMON}"=={json.dumps(daemon_id)}'):
                await self._delete(namespace, lease.id)

    async def claim(self, namespace: str, claim: str, sign: DaemonSign) -> str:
        lease_id = f"{_CLAIM_ID}.{claim}"
        labels = {DAEMON: sign.id, LOCK: str(sign.lock), BOOT_ID: boot_id()}
        while True:
            try:
                await self._create(namespace, lease_id, labels)
            except AlreadyThere:
                held = await self._leases(namespace, f'id=="{lease_id}"')
                if not held:
                    continue  # given back in between
                return str(held[0].labels.get(DAEMON, ""))
            return sign.id

    async def unclaim(self, namespace: str, claim: str) -> None:
        await self._delete(namespace, f"{_CLAIM_ID}.{claim}")

    async def _shown(self) -> list[tuple[str, LeaseMessage]]:
        """The leases of signs, with their namespaces."""
        return [
            (namespace, lease)
            for namespace in await self._connection.list_namespaces()
            for lease in await self._leases(namespace, f'labels."{_BEAT}"')
        ]

    async def _leases(self, namespace: str, selected: str) -> list[LeaseMessage]:
        return await list_leases(self._connection.within(namespace), selected)

    async def _create(self, namespace: str, lease_id: str, labels: dict[str, str]) -> None:
        request = CreateRequest(id=lease_id, labels=labels)
        await self._connection.call(
            self._connection.leases.Create, request, f"make lease {lease_id}", namespace=namespace
        )

    async def _delete(self, namespace: str, lease_id: str) -> None:
        with suppress(NotFoundError):
            await self._connection.call(
                self._connection.leases.Delete,
                DeleteRequest(id=lease_id),
                f"end lease {lease_id}",
                namespace=namespace,
            )


def _labels(sign: DaemonSign) -> dict[str, str]:
    labels = {
        DAEMON: sign.id,
        LOCK: str(sign.lock),
        BOOT_ID: boot_id(),
        _BEAT: str(sign.beat),
        _HOST: sign.host,
        _SOCKET: sign.socket,
        _FOLLOWS: ",".join(sorted(sign.follows)),
    }
    namespaces = ",".join(sign.namespaces)
    if namespaces and len(_NAMESPACES) + len(namespaces) <= LABEL_SIZE_MAX:  # else the sign is for all
        labels[_NAMESPACES] = namespaces
    return labels


def _latest(signs: Iterable[DaemonSign | None]) -> list[DaemonSign]:
    """The last sign of each daemon."""
    known = sorted((sign for sign in signs if sign), key=lambda sign: sign.shown_at)
    return list({sign.id: sign for sign in known}.values())


def _sign(lease: LeaseMessage) -> DaemonSign | None:
    """The sign in a lease; None if another program made the lease."""
    labels = lease.labels
    if not labels.get(DAEMON) or not labels[_BEAT].isdecimal() or LOCK not in labels:
        return None
    return DaemonSign(
        id=labels[DAEMON],
        beat=int(labels[_BEAT]),
        host=labels.get(_HOST, ""),
        socket=labels.get(_SOCKET, ""),
        lock=Path(labels[LOCK]),
        follows=frozenset(filter(None, labels.get(_FOLLOWS, "").split(","))),
        namespaces=tuple(filter(None, labels.get(_NAMESPACES, "").split(","))),
        shown_at=lease.created_at.seconds + lease.created_at.nanos / 1e9,
    )
