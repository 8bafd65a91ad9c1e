"""Opens gRPC channels and closes them with their block. No other code of this project creates channels."""

import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

import anyio
import anyio.to_thread
import grpc
import grpc.aio

from nydus_service.errors import NydusServiceError

ChannelOptions: TypeAlias = Sequence[tuple[str, int | str]]
"""Names and values of gRPC's channel arguments (`grpc/impl/channel_arg_names.h`)."""

Explain: TypeAlias = Callable[[OSError], NydusServiceError]
"""Makes the error that explains why no server is reachable at a socket, and what to do."""

_PROBE_S: Final = 5.0
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a channel does not wait for the back-off of another channel
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # the time of an attempt: a busy server answers late
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_UNIX_OPTIONS: Final = (*_OPTIONS, ("grpc.default_authority", "localhost"))


@asynccontextmanager
async def open_unix_channel(
    path: Path, options: ChannelOptions, explain: Explain
) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to a server that listens at a Unix socket.

    Args:
        options: options in addition to the common ones.
        explain: converts the operating system's error, which is clearer than gRPC's, to the error to raise.
    Raises:
        NydusServiceError: no server listens, or this user may not connect; `explain` decides the kind.
    """
    try:
        await anyio.to_thread.run_sync(_probe, path)
    except OSError as exc:
        raise explain(exc) from exc
    async with _closing(grpc.aio.insecure_channel(f"unix:{path}", [*_UNIX_OPTIONS, *options])) as channel:
        yield channel


@asynccontextmanager
async def open_tls_channel(
    address: str, credentials: grpc.ChannelCredentials, options: ChannelOptions
) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to HOST:PORT. The first call shows whether a server answers.

    Args:
        options: options in addition to the common ones.
    """
    async with _closing(grpc.aio.secure_channel(address, credentials, [*_OPTIONS, *options])) as channel:
        yield channel


@asynccontextmanager
async def _closing(channel: grpc.aio.Channel) -> AsyncIterator[grpc.aio.Channel]:
    try:
        yield channel
    finally:
        with anyio.CancelScope(shield=True):
            await channel.close()


def _probe(path: Path) -> None:
    """Connect once. Raises: OSError: no server listens, or this user may not connect."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_S)
        probe.connect(os.fspath(path))
