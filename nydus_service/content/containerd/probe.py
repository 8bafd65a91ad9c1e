"""Asks a containerd whether it answers."""

from contextlib import AsyncExitStack
from pathlib import Path

from nydus_service.content.containerd.rpc import Connection, connect
from nydus_service.content.containerd.stores import content_root

_ANY_NAMESPACE = "default"
"""Namespace for calls that concern none. It need not exist."""


class ContainerdProbe:
    """One connection for all probes, which gRPC restores when containerd is back.

    Attributes:
        content_root: directory of the content, as containerd reported it last; None if unknown.
    """

    def __init__(self, address: Path) -> None:
        """
        Args:
            address: path of its Unix socket.
        """
        self.content_root: Path | None = None
        self._address = address
        self._resources = AsyncExitStack()
        self._connection: Connection | None = None

    async def ask(self, timeout_s: float) -> None:
        """Make a small call.

        Raises:
            UnreachableError, NotAllowedError: containerd does not answer, or not this user.
        """
        if self._connection is None:
            self._connection = await self._resources.enter_async_context(
                connect(self._address, _ANY_NAMESPACE)
            )
        self.content_root = await content_root(self._connection, patience_s=0, timeout_s=timeout_s)

    async def close(self) -> None:
        await self._resources.aclose()
