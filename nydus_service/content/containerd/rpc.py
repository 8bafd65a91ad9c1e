"""One connection to containerd: calls, their deadlines, and what their failures mean.

- Every call has a deadline. A unary call that finds the connection broken is made again for a while, with
  growing pauses, since a daemon that is restarted comes back: so each one must be of the kind that may be
  made twice.
- A daemon that was never there is told at once (`connect`), not waited for.
- containerd says UNAVAILABLE of a locked ref, and gRPC says it of a dead connection. Text alone tells
  them apart, and a full disk from other failures (UNKNOWN): these two texts are the only ones looked at.

Source: containerd `errdefs/grpc.go`; `content/helpers.go`, `OpenWriter`; `defaults/defaults.go`.
"""

import asyncio
import re
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
from nydus_service.content._pb.containerd.services.namespaces.v1.namespace_pb2_grpc import NamespacesStub
from nydus_service.content._pb.containerd.services.version.v1.version_pb2_grpc import VersionStub
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
from nydus_service.rpc.cancellation import await_rpc, await_settled
from nydus_service.rpc.channel import open_unix_channel

Q = TypeVar("Q")
R = TypeVar("R")
T = TypeVar("T")

MESSAGE_SIZE_MAX: Final = 16 << 20
"""Bytes of a message, either way: the daemon's own limit. gRPC's default is 4 MiB, too few for lists."""

CALL_S: Final = 60.0
"""Until a call is given up. The slowest ones wait for the daemon's database behind a large commit."""

PATIENCE_S: Final = 10.0
"""How long a broken connection is tried again: a restart of the daemon takes less."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0
_STATUS_S, _STATUS_TURNS = 2.0, 50
"""For the status of a stream that has ended, which is there in some turns of the event loop."""
_ENDED = (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError)
"""What gRPC raises when a stream is used that has ended: by a failure, just now, or before."""
_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_NAMESPACE_LENGTH_MAX = 76

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX),
    ("grpc.max_send_message_length", MESSAGE_SIZE_MAX),
)


class AlreadyThere(NydusServiceError):
    """What was to be made is there: content, an image, a lease."""


class RefLocked(NydusServiceError):
    """Another stream writes under this ref."""

    transient = True


class PreconditionFailed(FormatError):
    """Content is not of the size or digest that it should have; or the request does not fit the state."""


class StreamEnded(Exception):
    """Nothing more goes through this stream: its status says why. Not for users."""


class Connection:
    """A channel, and the namespace that calls are about. Made by `connect`."""

    def __init__(self, channel: grpc.aio.Channel, address: Path, namespace: str) -> None:
        self.address = address
        self.namespace = namespace
        self.content = ContentStub(channel)
        self.events = EventsStub(channel)
        self.images = ImagesStub(channel)
        self.introspection = IntrospectionStub(channel)
        self.leases = LeasesStub(channel)
        self.namespaces = NamespacesStub(channel)
        self.version = VersionStub(channel)

    def __str__(self) -> str:
        """As messages name it."""
        return f"containerd (namespace {self.namespace})"

    def within(self, namespace: str) -> "Connection":
        """The same connection, for calls about another namespace."""
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
        """Make a unary call, one that may be made twice.

        Args:
            method: of a stub of this connection: `connection.content.Info`.
            doing: what is tried, for messages: "look for sha256:…".
            namespace: another one than the connection's.
        Raises:
            NydusServiceError: of the kind that `failure` says.
        """

        async def attempt() -> R:
            call = method(request, metadata=self._metadata(namespace), timeout=timeout_s)
            try:
                return await await_settled(call)
            except grpc.aio.AioRpcError as exc:
                raise self.failure(exc.code(), exc.details(), doing) from exc

        return await retry(attempt, patience_s)

    async def stream(
        self,
        method: "grpc.aio.UnaryStreamMultiCallable[Q, R]",
        request: Q,
        doing: str,
        *,
        timeout_s: float | None,
    ) -> AsyncGenerator[R, None]:
        """Make a call that is answered by any number of messages. It is not made again.

        Args:
            timeout_s: None: it may last for ever.
        Raises:
            NydusServiceError: of the kind that `failure` says.
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
            lease: keeps what is written.
        """
        return Exchange(method(metadata=self._metadata(lease=lease)))

    def failure(self, code: grpc.StatusCode | None, details: str | None, doing: str) -> NydusServiceError:
        """What a status means."""
        text = details or "no reason given"
        message = f"cannot {doing}: {self}: {text}"
        if "no space left on device" in text:
            return NoSpaceError(f"{message}; free some space there and run it again")
        if code == grpc.StatusCode.UNAVAILABLE and (" locked for " in text or text.endswith(": unavailable")):
            return RefLocked(message)
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
    grpc.StatusCode.CANCELLED,  # by the daemon, when it stops: our own cancellation never gets here
    grpc.StatusCode.INTERNAL,  # by gRPC, of a connection in disorder: the daemon's services never say it
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
        address: of the Unix socket.
    Raises:
        UsageError: that is no name of a namespace.
        UnreachableError: no socket, or nobody answers there.
        NotAllowedError: this user may not use it.
    """
    if not _NAMESPACE.fullmatch(namespace) or len(namespace) > _NAMESPACE_LENGTH_MAX:
        raise UsageError(f"{namespace!r} is not a namespace: letters and digits, parted by single . _ or -")
    async with open_unix_channel(address, _CHANNEL_OPTIONS, partial(_explain, address)) as channel:
        yield Connection(channel, address, namespace)


Status: TypeAlias = tuple[grpc.StatusCode | None, str | None]
"""Code and details that a call ended with; None while it goes on."""


class Exchange(Generic[Q, R]):
    """A stream of messages both ways, for its owner to end: a call of `grpc.aio` that tells why it ended.

    gRPC has the status of a stream that failed once all answers before it are read. A write that fails
    before or after sets INTERNAL in its place, and calls of `read` are refused from then on. So answers are
    iterated over, which goes on until the real status replaces that; and the first one is noted as it is
    set, lest INTERNAL replaces it.

    Source: grpcio `aio/_call.py`, `_StreamRequestMixin._write`, `_StreamResponseMixin.read`.
    """

    def __init__(self, call: "grpc.aio.StreamStreamCall[Q, R]") -> None:
        self._call = call
        self._answers = aiter(call)
        self._first: Status = (None, None)
        call.add_done_callback(self._note)

    @property
    def is_done(self) -> bool:
        """Whether it has ended, by its owner or by a status."""
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
        """The code and the details that it ended with. What was not read yet is lost."""
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
        """The status that it has. None: it goes on."""
        return (
            (_result_of(self._call.code()), _result_of(self._call.details()))
            if self.is_done
            else (None, None)
        )

    def _note(self, _: object) -> None:
        self._first = self._current


def _result_of(known: Coroutine[object, None, T]) -> T:
    """What a coroutine returns that has nothing to wait for."""
    try:
        known.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    known.close()
    raise AssertionError("gRPC tells of a status that it does not have")


async def retry(attempt: Callable[[], Awaitable[T]], patience_s: float = PATIENCE_S) -> T:
    """Do something again while it finds the connection broken.

    Raises:
        UnreachableError: it still was, after that time.
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


def _explain(address: Path, exc: OSError) -> NydusServiceError:
    """Why no containerd can be reached at a socket."""
    match exc:
        case PermissionError():
            return NotAllowedError(
                f"this user may not use containerd's socket {address}: run it as root, "
                "or let --address name another one"
            )
        case FileNotFoundError():
            return UnreachableError(
                f"there is no containerd socket {address}: start containerd, let --address name "
                "another one, or use oci:DIR:TAG, which needs none"
            )
    reason = exc.strerror or str(exc)
    return UnreachableError(f"containerd does not answer at {address} ({reason}): is it running?")
