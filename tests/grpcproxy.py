"""A proxy before containerd's socket that tells the test of each step, before it is done and after."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from nydus_service.content._pb.containerd.services.content.v1.content_pb2 import (
    WriteAction,
    WriteContentRequest,
)
from nydus_service.content.containerd.rpc import MESSAGE_SIZE_MAX, Exchange, StreamEnded

OnStep = Callable[[str, str], Awaitable[None]]
"""Called with "before" and "after" and the step's name: "Leases/Create", "Content/Write COMMIT"."""

CHANGES: Final = (
    "Content/Abort",
    "Content/Delete",
    "Content/Update",
    "Content/Write COMMIT",
    "Images/Create",
    "Images/Delete",
    "Images/Update",
    "Leases/AddResource",
    "Leases/Create",
    "Leases/Delete",
)
"""Steps that change what the daemon has, for good."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX + 4096),
    ("grpc.max_send_message_length", MESSAGE_SIZE_MAX + 4096),
)


class _Forwarder(grpc.GenericRpcHandler):
    """Takes every method: a unary call is a stream of one message on the wire."""

    def __init__(self, channel: Any, on_step: OnStep) -> None:
        self._channel = channel
        self._on_step = on_step

    def service(self, details: Any) -> Any:
        method: str = details.method

        async def forward(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for reply in self._forward(method, requests, context):
                yield reply

        return grpc.stream_stream_rpc_method_handler(forward)

    async def _forward(
        self, method: str, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        metadata = [each for each in context.invocation_metadata() if each[0].startswith("containerd-")]
        call: Exchange[Any, Any] = Exchange(self._channel.stream_stream(method)(metadata=metadata))
        asked: deque[str] = deque()
        sending = asyncio.ensure_future(self._send(method, requests, call, asked))
        try:
            while True:
                reply = await call.read()
                if asked:
                    await self._on_step("after", asked.popleft())
                yield reply
        except StreamEnded:
            code, details = await call.status()
            if code != grpc.StatusCode.OK:
                await context.abort(code, details)
        finally:
            sending.cancel()
            call.cancel()

    async def _send(
        self, method: str, requests: AsyncIterator[bytes], call: Exchange[Any, Any], asked: deque[str]
    ) -> None:
        async for request in requests:
            name = _name(method, request)
            await self._on_step("before", name)
            asked.append(name)
            await call.write(request)
        await call.end_writing()


def _name(method: str, request: bytes) -> str:
    service, _, name = method.rpartition("/")
    short = f"{service.rpartition('.')[2]}/{name}"
    if short == "Content/Write":
        return f"{short} {WriteAction.Name(WriteContentRequest.FromString(request).action)}"
    return short


@asynccontextmanager
async def running_proxy(upstream: Path, address: Path, on_step: OnStep) -> AsyncIterator[None]:
    """Listen at `address`, and pass on to `upstream`, while the block lasts."""
    async with grpc.aio.insecure_channel(f"unix:{upstream}", options=_OPTIONS) as channel:
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((_Forwarder(channel, on_step),))
        server.add_insecure_port(f"unix:{address}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)
