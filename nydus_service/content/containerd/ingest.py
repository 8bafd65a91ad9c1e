"""Writing to containerd's content store: one stream of messages for each ingest.

    small     STAT │ COMMIT with data, labels, expected
    larger    STAT │ WRITE with offset 0 │ WRITE … │ COMMIT with labels

- STAT opens the ingest with only its ref. With `total`, the daemon would mix the bytes that an earlier
  process left under the ref with the new ones; so it would with `expected`, if another namespace has the
  content.
- An ingest is never resumed: the first offset of 0 discards bytes left under the ref.
- A COMMIT that `expects` an existing digest does not lease it. So the content is leased afterwards, and
  written again if it was collected in between. A larger COMMIT expects nothing: the daemon finds existing
  content by itself, and leases it in the same transaction. Before that, the daemon's running digest is
  compared with the digest of the written bytes.
- Answers come in the order of the messages. A few messages are in flight at a time, for speed.

Source: containerd `services/content/contentserver`, `Write`; `metadata/content.go`, `Writer`, `Commit`.
"""

import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

import anyio
import anyio.lowlevel
import grpc

from nydus_service.content._pb.containerd.services.content.v1.content_pb2 import (
    COMMIT,
    STAT,
    WRITE,
    AbortRequest,
    WriteContentRequest,
    WriteContentResponse,
)
from nydus_service.content.blocking import in_thread
from nydus_service.content.containerd.rpc import (
    AlreadyThere,
    Connection,
    Exchange,
    PreconditionFailed,
    RefLocked,
    StreamEnded,
    retry,
)
from nydus_service.content.store import ContentNotFound, UnexpectedContent
from nydus_service.errors import NotFoundError, NydusServiceError, UnreachableError, UnsupportedError
from nydus_service.oci.digest import Digest, Digester

MESSAGE_SIZE: Final = 2 << 20
"""Bytes of content in a message. Messages may have 16 MiB, but larger ones leave the cache and are slower."""
IN_FLIGHT: Final = 4
"""Messages sent and not yet answered. An ingest then needs up to 12 MiB of memory."""

_ANSWER_S = 120.0
"""Seconds to wait for an answer: the commit of a large blob syncs it."""
_LOCK_PATIENCE_S = 5.0
"""Seconds to wait for a locked ref. The daemon frees that of a killed process within milliseconds."""
_TURNS = 3
"""How often existing content may be collected before the lease holds it."""
_END_S = 5.0
_ABORT_PAUSE_S = 0.02
_SMALL_HASH = 64 << 10

_Stream = Exchange[WriteContentRequest, WriteContentResponse]

MakeRight = Callable[[Digest, Mapping[str, str]], Awaitable[None]]
"""Adds existing content to the lease, and sets its labels. Raises: ContentNotFound."""


class ContainerdIngest:
    """One write. The owner must call `end` in any case."""

    def __init__(self, connection: Connection, ref: str, lease: str, make_right: MakeRight) -> None:
        self._connection = connection
        self._stub = connection.content
        self._ref = ref
        self._lease = lease
        self._make_right = make_right
        self._doing = f"write {ref}"
        self._digester = Digester()
        self._buffer = bytearray()
        self._call: _Stream | None = None
        self._sent = 0
        self._unanswered = 0
        self._last = WriteContentResponse()
        self._holds_ref = False

    @property
    def size(self) -> int:
        return self._digester.size

    @property
    def digest(self) -> Digest:
        return self._digester.digest()

    async def write(self, data: bytes | memoryview) -> None:
        await anyio.lowlevel.checkpoint()
        with memoryview(data).cast("B") as view:
            if len(view) <= _SMALL_HASH:
                self._digester.update(view)
            else:
                await in_thread(self._doing, self._digester.update, view)
            self._buffer += view
        while len(self._buffer) >= MESSAGE_SIZE:
            await self._send(MESSAGE_SIZE)

    async def commit(
        self,
        *,
        expected_size: int | None = None,
        expected_digest: Digest | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Digest:
        digest = self.digest
        if expected_digest is not None and expected_digest.algorithm != digest.algorithm:
            raise UnsupportedError(
                f"content is written by sha256 only, not {expected_digest} [ingest {self._ref}]"
            )
        if expected_size not in (None, self.size):
            raise UnexpectedContent(
                f"{self.size} bytes were written, not the {expected_size} expected [ingest {self._ref}]"
            )
        if expected_digest not in (None, digest):
            raise UnexpectedContent(
                f"other content was written: {digest}, not {expected_digest} [ingest {self._ref}]"
            )
        if self._call is None:
            await self._commit_small(digest, labels or {})
        else:
            await self._commit_stream(digest, labels or {})
        self._holds_ref = False
        return digest

    async def end(self) -> None:
        """End the stream, and abort the ingest if it was not committed. Errors are ignored."""
        await self._hang_up()
        with anyio.move_on_after(_END_S):
            while self._holds_ref:
                await self._try_abort()

    async def _commit_small(self, digest: Digest, labels: Mapping[str, str]) -> None:
        request = WriteContentRequest(
            action=COMMIT, total=self.size, expected=digest, data=bytes(self._buffer), labels=labels
        )

        async def attempt() -> None:
            await self._open()
            try:
                await self._put(request)
                await self._answer()
            except AlreadyThere:
                self._holds_ref = False
                await self._make_right(digest, labels)

        for _ in range(_TURNS - 1):
            with suppress(ContentNotFound):  # it existed, but was collected: write it again
                await retry(attempt)
                return
        await retry(attempt)

    async def _commit_stream(self, digest: Digest, labels: Mapping[str, str]) -> None:
        if self._buffer:
            await self._send(len(self._buffer))
        for _ in range(self._unanswered):
            self._last = await self._answer()
        if (self._last.digest, self._last.offset) != (digest, self.size):
            raise UnexpectedContent(
                f"{self._connection} has {self._last.offset} bytes {self._last.digest}, "
                f"not the {self.size} bytes {digest} that were sent [ingest {self._ref}]"
            )
        request = WriteContentRequest(action=COMMIT, offset=self.size, total=self.size, labels=labels)
        try:
            await self._put(request)
            await self._answer()
        except AlreadyThere:
            self._holds_ref = False
            await self._make_right(digest, labels)
        except UnreachableError as lost:
            await self._find_committed(digest, labels, lost)

    async def _find_committed(
        self, digest: Digest, labels: Mapping[str, str], lost: UnreachableError
    ) -> None:
        """Accept a commit whose answer was lost. Raises: `lost`, if the content was not committed."""
        try:
            await self._make_right(digest, labels)
        except ContentNotFound:
            raise lost from None

    async def _send(self, size: int) -> None:
        """Send the first `size` bytes of the buffer, and wait if too many messages are in flight."""
        if self._call is None:
            await retry(self._open)
        request = WriteContentRequest(action=WRITE, offset=self._sent, data=bytes(self._buffer[:size]))
        del self._buffer[:size]
        await self._put(request)
        self._sent += size
        self._unanswered += 1
        while self._unanswered >= IN_FLIGHT:
            self._last = await self._answer()
            self._unanswered -= 1

    async def _open(self) -> None:
        """Begin the stream; retry for a while if another stream holds the ref."""
        deadline = anyio.current_time() + _LOCK_PATIENCE_S
        while True:
            await self._hang_up()
            self._call = self._connection.exchange(self._stub.Write, lease=self._lease)
            self._holds_ref = True  # assumed, unless the daemon reports the ref as locked
            try:
                await self._put(WriteContentRequest(action=STAT, ref=self._ref))
                await self._answer()
            except RefLocked:
                self._holds_ref = False  # so it must not be aborted here
                if anyio.current_time() > deadline:
                    raise
            else:
                return
            await anyio.sleep(random.uniform(0.005, 0.1))

    async def _put(self, request: WriteContentRequest) -> None:
        call = self._stream()
        try:
            with anyio.fail_after(_ANSWER_S):
                await call.write(request)
        except (StreamEnded, TimeoutError) as exc:
            raise await self._failure(call, exc) from exc

    async def _answer(self) -> WriteContentResponse:
        call = self._stream()
        try:
            with anyio.fail_after(_ANSWER_S):
                return await call.read()
        except (StreamEnded, TimeoutError) as exc:
            raise await self._failure(call, exc) from exc

    def _stream(self) -> _Stream:
        assert self._call is not None, "no stream is open"
        return self._call

    async def _failure(self, call: _Stream, exc: Exception) -> NydusServiceError:
        """Make the error that explains why the stream ended, from its status."""
        if isinstance(exc, TimeoutError):
            return self._connection.failure(grpc.StatusCode.DEADLINE_EXCEEDED, None, self._doing)
        code, details = await call.status()
        if code == grpc.StatusCode.OK:
            return UnreachableError(f"cannot {self._doing}: {self._connection} ended the stream too early")
        failure = self._connection.failure(code, details, self._doing)
        return UnexpectedContent(str(failure)) if isinstance(failure, PreconditionFailed) else failure

    async def _hang_up(self) -> None:
        """End the stream, and wait until the daemon has also ended it, so that the ref is free."""
        call, self._call = self._call, None
        if call is None or call.is_done:
            return  # reading a cancelled stream would raise its own cancellation
        with anyio.move_on_after(_END_S), suppress(StreamEnded):
            await call.end_writing()
            while True:
                await call.read()
        call.cancel()

    async def _try_abort(self) -> None:
        """Abort once. This fails while the daemon still closes the ingest of a cancelled stream."""
        try:
            await self._connection.call(
                self._stub.Abort,
                AbortRequest(ref=self._ref),
                f"abort {self._ref}",
                patience_s=0,
                timeout_s=_END_S,
            )
        except (NotFoundError, UnreachableError):
            pass  # nothing is left, or the daemon removes it with its lease or within a day
        except NydusServiceError:
            await anyio.sleep(_ABORT_PAUSE_S)
            return
        self._holds_ref = False
