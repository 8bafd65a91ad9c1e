"""What is made of each status that a containerd, or a connection to one, may answer with."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from nydus_service.content._pb.containerd.services.content.v1.content_pb2 import (
    COMMIT,
    InfoRequest,
    WriteContentRequest,
    WriteContentResponse,
)
from nydus_service.content.containerd.content import ContainerdContent
from nydus_service.content.containerd.ingest import MESSAGE_SIZE
from nydus_service.content.containerd.rpc import (
    MESSAGE_SIZE_MAX,
    AlreadyThere,
    Connection,
    RefLocked,
    connect,
)
from nydus_service.errors import (
    FormatError,
    NoSpaceError,
    NotAllowedError,
    NotFoundError,
    NydusServiceError,
    UnreachableError,
    UnsupportedError,
    UsageError,
)
from nydus_service.oci.digest import Digester

LARGE = b"\xa5" * (6 * MESSAGE_SIZE)

STATUSES = [
    ("UNAVAILABLE", "Socket closed", UnreachableError),
    ("UNAVAILABLE", "ref n/1/r locked for 3s (since then): unavailable", RefLocked),
    ("CANCELLED", "context canceled", UnreachableError),
    ("DEADLINE_EXCEEDED", "", UnreachableError),
    ("INTERNAL", "Received RST_STREAM with error code 2", UnreachableError),
    ("UNKNOWN", "write ingest/data: no space left on device: unknown", NoSpaceError),
    ("UNKNOWN", "rename ingest/data: no such file or directory: unknown", NydusServiceError),
    ("NOT_FOUND", 'lease "job": not found', NotFoundError),
    ("FAILED_PRECONDITION", "unexpected commit size 3, expected 7: failed precondition", FormatError),
    ("INVALID_ARGUMENT", "label too long: invalid argument", UsageError),
    ("ALREADY_EXISTS", "content: already exists", AlreadyThere),
    ("UNIMPLEMENTED", "unknown service", UnsupportedError),
    ("PERMISSION_DENIED", "permission denied", NotAllowedError),
]


class Failing(grpc.GenericRpcHandler):
    """Has nothing, and fails: in a write after a number of messages or at its end; without one, in all."""

    def __init__(self, code: str, details: str, messages: int) -> None:
        self._status = (getattr(grpc.StatusCode, code), details)
        self._messages = messages

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]

        async def answer(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            if method == "Abort":
                yield b""
                return
            if method == "Write":
                async for reply in self._written(requests):
                    yield reply
            elif self._messages:
                await context.abort(grpc.StatusCode.NOT_FOUND, "not found")
            await context.abort(*self._status)

        return grpc.stream_stream_rpc_method_handler(answer)

    async def _written(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        digester, answered = Digester(), 0
        async for message in requests:
            request = WriteContentRequest.FromString(message)
            if answered == self._messages or request.action == COMMIT:
                return
            digester.update(request.data)
            answered += 1
            yield WriteContentResponse(offset=digester.size, digest=digester.digest()).SerializeToString()


@asynccontextmanager
async def failing(address: Path, code: str, details: str, messages: int = 0) -> AsyncIterator[Connection]:
    """A connection to somebody who fails."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MESSAGE_SIZE_MAX)])
    server.add_generic_rpc_handlers((Failing(code, details, messages),))
    server.add_insecure_port(f"unix:{address}")
    await server.start()
    try:
        async with connect(address, "test") as connection:
            yield connection
    finally:
        await server.stop(0)


@pytest.mark.parametrize(("code", "details", "kind"), STATUSES)
async def test_a_call(tmp_path: Path, code: str, details: str, kind: type[NydusServiceError]) -> None:
    async with failing(tmp_path / "sock", code, details) as connection:
        with pytest.raises(kind) as caught:
            await connection.call(connection.content.Info, InfoRequest(), "look for it", patience_s=0)
    assert str(caught.value).startswith("cannot look for it: ")


async def write(connection: Connection) -> None:
    async with ContainerdContent(connection, None).open_ingest("it") as ingest:
        await ingest.write(LARGE)
        await ingest.commit()


@pytest.mark.parametrize("messages", [1, 3, 5, 8])
@pytest.mark.parametrize(
    ("code", "details", "kind"), [each for each in STATUSES if each[2] is not AlreadyThere]
)
async def test_a_write_wherever_it_fails(
    tmp_path: Path, code: str, details: str, kind: type[NydusServiceError], messages: int
) -> None:
    """While messages are under way, which makes gRPC hide the reason for a moment, or at the commit."""
    async with failing(tmp_path / "sock", code, details, messages) as connection:
        with pytest.raises(kind) as caught:
            await write(connection)
    assert str(caught.value).startswith("cannot ")
    assert details in str(caught.value) or code == "INTERNAL"  # which gRPC's own may replace
