"""Makes calls of `grpc.aio` work with the cancel scopes of anyio."""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    import grpc.aio

Q = TypeVar("Q")
R = TypeVar("R")
T = TypeVar("T")

_SETTLE_S: Final = 1.0


async def await_rpc(awaitable: Awaitable[T]) -> T:
    """Await an object of gRPC so that a cancel scope recognises its own cancellation.

    A cancelled call raises a CancelledError of gRPC. anyio's scopes do not recognise it, and would let it
    pass. The scope's own error is raised at the next checkpoint, which this function adds.
    """
    try:
        return await awaitable
    except asyncio.CancelledError:
        await anyio.lowlevel.checkpoint_if_cancelled()
        raise


async def await_settled(call: "grpc.aio.UnaryUnaryCall[Q, R]") -> R:
    """Await the reply to a unary call. If the caller is cancelled, wait up to one more second for the reply.

    A server may still execute a request that its client has cancelled, even after the client has cleaned up.
    The client would miss a lease created that late, or release the content of a name that appears afterwards.
    """
    reply = asyncio.ensure_future(await_rpc(call))
    try:
        return await asyncio.shield(reply)
    except asyncio.CancelledError:
        with anyio.move_on_after(_SETTLE_S, shield=True):
            await asyncio.wait({reply})
        call.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({reply})
        if not reply.cancelled():
            reply.exception()  # retrieve it, or asyncio logs that it was never retrieved
        raise
