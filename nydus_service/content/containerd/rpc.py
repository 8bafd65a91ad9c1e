"""One connection to containerd: calls, their deadlines, and the errors of failed calls.

- Every call has a deadline. A unary call on a broken connection is retried for a while, with growing pauses,
  since a restarted daemon comes back. So every unary call must be idempotent.
- A daemon that does not run at the start is reported at once (`connect`), without retries.
- UNAVAILABLE is containerd's status for a locked ref, and gRPC's for a dead connection. INTERNAL is gRPC's
  for an answer that it cannot encode, and for a broken connection. Only the text distinguishes them, and a
  full disk from other failures (UNKNOWN). No other texts are examined.

Source: containerd `errdefs/grpc.go`; `content/helpers.go`, `OpenWriter`; `defaults/defaults.go`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from copy import copy
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeAlias, TypeVar

import anyio
import grpc
import grpc.aio

from nydus_service.content._pb.containerd.services.content.v1.content_pb2_grpc import ContentStub
from nydus_service.content._pb.containerd.services.events.v1.events_pb2_grpc import EventsStub
from nydus_service.content._pb.containerd.services.images.v1.images_pb2_grpc import ImagesStub
from nydus_service.content._pb.containerd.services.introspection.v1.introspection_pb2_grpc import (
    IntrospectionStub,
)
from nydus_service.content._pb.containerd.services.leases.v1.leases_pb2_grpc import LeasesStub
from nydus_service.content._pb.containerd.services.namespaces.v1.namespace_pb2 import ListNamespacesRequest
from nydus_service.content._pb.containerd.services.version.v1.version_pb2_grpc import VersionStub
from nydus_service.content.containerd.records import RecordStub, UnsendableAnswer, name_of
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
from nydus_service.oci.names import check_namespace
from nydus_service.options.hint import SettingHint
from nydus_service.rpc.cancellation import await_rpc, await_settled
from nydus_service.rpc.channel import open_unix_channel

Q = TypeVar("Q")
R = TypeVar("R")
T = TypeVar("T")

MESSAGE_SIZE_MAX: Final = 16 << 20
"""Bytes of a message in either direction: the daemon's own limit. gRPC's default of 4 MiB is too small for
lists."""

CALL_S: Final = 60.0
"""Timeout of a call, in seconds. The slowest calls wait for the daemon's database during a large commit."""

PATIENCE_S: Final = 10.0
"""Seconds to retry on a broken connection; a restart of the daemon takes less."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0
_STATUS_S, _STATUS_TURNS = 2.0, 50
"""Limits of the wait for the status of an ended stream, which takes some turns of the event loop."""
_ENDED = (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError)
"""Errors that gRPC raises when an ended stream is used: after a failure, just now, or before."""

_KEEPALIVE_MS: Final = 310_000
"""A server of gRPC for Go closes connections that ping more often than every five minutes."""
_KEEPALIVE_TIMEOUT_MS: Final = 20_000

_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX),
    ("grpc.max_send_message_length", MESSAGE_SIZE_MAX),
)


class AlreadyThere(NydusServiceError):
    """The content, image or lease to be created exists already."""


class RefLocked(NydusServiceError):
    """Another stream writes under this ref."""

    transient = True


class PreconditionFailed(FormatError):
    """Content has an unexpected size or digest, or the request is not valid in the current state."""


class StreamEnded(Exception):
    """The stream has ended; its status has the reason. Internal: never shown to users."""


class Connection:
    """A channel, and the namespace of its calls. Made by `connect`."""

    def __init__(self, channel: grpc.aio.Channel, address: Path, namespace: str) -> None:
        self.address = address
        self.namespace = namespace
        self.content = ContentStub(channel)
        self.events = EventsStub(channel)
        self.images = ImagesStub(channel)
        self.introspection = IntrospectionStub(channel)
        self.leases = LeasesStub(channel)
        self.records = RecordStub(channel)
        self.version = VersionStub(channel)

    def __str__(self) -> str:
        """The name in error messages."""
        return f"containerd (namespace {self.namespace})"

    def within(self, namespace: str) -> "Connection":
        """The same connection with another namespace."""
        other = copy(self)
        other.namespace = namespace
        return other

    async def call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Q, R]",
        request: Q,
        doing: str,
        *,
        namespace: str = "",
        patience_s: float = PATIENCE_S,
        timeout_s: float = CALL_S,
    ) -> R:
        """Make a unary call, which must be idempotent.

        Args:
            method: of a stub of this connection, such as `connection.content.Info`.
            doing: the action, for error messages, such as "look for sha256:…".
            namespace: instead of the connection's.
            patience_s: seconds to retry on a broken connection.
            timeout_s: of each attempt, in seconds.
        Raises:
            NydusServiceError: as `failure` returns.
        """

        async def attempt() -> R:
            call = method(request, metadata=self._metadata(namespace), timeout=timeout_s)
            try:
                reply = await await_settled(call)
            except grpc.aio.AioRpcError as exc:
                raise self.failure(exc.code(), exc.details(), doing) from exc
            if reply is None:  # gRPC's way to report that its deserializer failed
                raise FormatError(f"cannot {doing}: {self}: the answer has text that is not UTF-8")
            return reply

        return await retry(attempt, patience_s)

    async def list_namespaces(self) -> list[str]:
        """The names of all namespaces, in order. Raises: NydusServiceError: as `failure` returns."""
        found = await self.call(self.records.list_namespaces, ListNamespacesRequest(), "list namespaces")
        return sorted(map(name_of, found.records))  # their labels, which may not be UTF-8, are not decoded

    async def stream(
        self,
        method: "grpc.aio.UnaryStreamMultiCallable[Q, R]",
        request: Q,
        doing: str,
        *,
        timeout_s: float | None,
    ) -> AsyncGenerator[R, None]:
        """Make a call that returns any number of messages. It is not retried.

        Args:
            timeout_s: of the whole call, in seconds; None for no limit.
        Raises:
            NydusServiceError: as `failure` returns.
        """
        call = method(request, metadata=self._metadata(), timeout=timeout_s)
        replies = aiter(call)
        try:
            while (reply := await await_rpc(anext(replies, None))) is not None:
                yield reply
        except grpc.aio.AioRpcError as exc:
            raise self.failure(exc.code(), exc.details(), doing) from exc
        finally:
            call.cancel()

    def exchange(
        self, method: "grpc.aio.StreamStreamMultiCallable[Q, R]", *, lease: str = ""
    ) -> "Exchange[Q, R]":
        """Open a stream of messages both ways.

        Args:
            lease: id of the lease that keeps the written content.
        """
        return Exchange(method(metadata=self._metadata(lease=lease)))

    def failure(self, code: grpc.StatusCode | None, details: str | None, doing: str) -> NydusServiceError:
        """Make the error of a failed call from its status."""
        text = details or "no reason given"
        message = f"cannot {doing}: {self}: {text}"
        if "no space left on device" in text:
            return NoSpaceError(f"{message}; free some space there and run it again")
        if code == grpc.StatusCode.UNAVAILABLE and (" locked for " in text or text.endswith(": unavailable")):
            return RefLocked(message)
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED or "error while marshaling" in text:
            return UnsendableAnswer(message)
        if code in _UNREACHABLE:
            said = "no answer in time" if code == grpc.StatusCode.DEADLINE_EXCEEDED else text
            return UnreachableError(
                f"cannot {doing}: containerd at {self.address} does not answer ({said}); is it running?"
            )
        kind = _KINDS.get(code) if code else None
        return (kind or NydusServiceError)(message)

    def _metadata(self, namespace: str = "", *, lease: str = "") -> tuple[tuple[str, str], ...]:
        metadata = (("containerd-namespace", namespace or self.namespace),)
        return (*metadata, ("containerd-lease", lease)) if lease else metadata


_UNREACHABLE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # by a daemon that stops; this client's own cancellation never gets here
    grpc.StatusCode.INTERNAL,  # by gRPC, for a broken connection
)
_KINDS: Final[dict[grpc.StatusCode, type[NydusServiceError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: UsageError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyThere,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailed,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowedError,
    grpc.StatusCode.UNAUTHENTICATED: NotAllowedError,
}


@asynccontextmanager
async def connect(address: Path, namespace: str) -> AsyncIterator[Connection]:
    """Open a connection, and make sure that a containerd answers.

    Args:
        address: path of the Unix socket.
    Raises:
        UsageError: the namespace is not a valid name.
        UnreachableError: the socket does not exist, or no daemon answers.
        NotAllowedError: this user may not use the socket.
    """
    check_namespace(namespace)
    async with open_unix_channel(address, _CHANNEL_OPTIONS, partial(_explain, address)) as channel:
        yield Connection(channel, address, namespace)


Status: TypeAlias = tuple[grpc.StatusCode | None, str | None]
"""Code and details of an ended call; None while the call goes on."""


class Exchange(Generic[Q, R]):
    """A bidirectional stream, which its owner ends: a `grpc.aio` call with a reliable final status.

    gRPC knows the status of a failed stream only once all earlier answers are read. A write that fails before
    or after that sets INTERNAL instead, and gRPC refuses `read` of the call from then on. So answers are read
    by iteration, which continues until the real status replaces INTERNAL. The first status is noted when it
    is set, so that a later INTERNAL does not replace it.

    Source: grpcio `aio/_call.py`, `_StreamRequestMixin._write`, `_StreamResponseMixin.read`.
    """

    def __init__(self, call: "grpc.aio.StreamStreamCall[Q, R]") -> None:
        self._call = call
        self._answers = aiter(call)
        self._first: Status = (None, None)
        call.add_done_callback(self._note)

    @property
    def is_done(self) -> bool:
        """Whether the stream has ended, by its owner or with a status."""
        return self._call.done()

    async def write(self, request: Q) -> None:
        """Raises: StreamEnded."""
        try:
            await await_rpc(self._call.write(request))
        except _ENDED as exc:
            raise StreamEnded from exc

    async def read(self) -> R:
        """Raises: StreamEnded."""
        try:
            return await await_rpc(anext(self._answers))
        except (StopAsyncIteration, *_ENDED) as exc:
            raise StreamEnded from exc

    async def end_writing(self) -> None:
        """Raises: StreamEnded."""
        try:
            await await_rpc(self._call.done_writing())
        except _ENDED as exc:
            raise StreamEnded from exc

    def cancel(self) -> None:
        self._call.cancel()

    async def status(self) -> Status:
        """Wait for the final code and details. Unread answers are discarded."""
        with anyio.move_on_after(_STATUS_S), suppress(StreamEnded):
            while True:
                await self.read()
        for _ in range(_STATUS_TURNS):
            for code, details in (self._first, self._current):
                if code not in (None, grpc.StatusCode.INTERNAL):
                    return code, details
            await anyio.sleep(_FIRST_PAUSE_S)
        return self._current

    @property
    def _current(self) -> Status:
        """The current status; None for both values while the stream goes on."""
        return (
            (_result_of(self._call.code()), _result_of(self._call.details()))
            if self.is_done
            else (None, None)
        )

    def _note(self, _: object) -> None:
        self._first = self._current


def _result_of(known: Coroutine[object, None, T]) -> T:
    """The result of a coroutine that does not wait."""
    try:
        known.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    known.close()
    raise AssertionError("gRPC tells of a status that it does not have")


async def retry(attempt: Callable[[], Awaitable[T]], patience_s: float = PATIENCE_S) -> T:
    """Retry `attempt` while it raises UnreachableError.

    Raises:
        UnreachableError: the attempt still failed after `patience_s` seconds.
    """
    deadline = anyio.current_time() + patience_s
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return await attempt()
        except UnreachableError:
            if anyio.current_time() + pause > deadline:
                raise
        await anyio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


_OTHER_SOCKET = SettingHint(
    "or let {} name another one",
    "--address",
    "address in the section containerd of the daemon's configuration",
)


def _explain(address: Path, exc: OSError) -> NydusServiceError:
    """Make the error that explains why no containerd can be reached at a socket."""
    match exc:
        case PermissionError():
            return NotAllowedError(
                f"this user may not use containerd's socket {address}: run it as root", hint=_OTHER_SOCKET
            )
        case FileNotFoundError():
            return UnreachableError(
                f"there is no containerd socket {address}: start containerd, or use oci:DIR:TAG, which needs "
                "none",
                hint=_OTHER_SOCKET,
            )
    reason = exc.strerror or str(exc)
    return UnreachableError(f"containerd does not answer at {address} ({reason}): is it running?")
