"""Convert errors to gRPC statuses and back: `google.rpc.Status` whose `ErrorInfo` holds the stable code.

The table matches the one at the top of protos/nydus_service/v1/converter.proto.

Sources: google/rpc/error_details.proto; google.aip.dev/193; gRPC's `grpc-status-details-bin`.
"""

from collections.abc import Iterable
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from nydus_service.builder.builder import BuilderFailed
from nydus_service.content.store import UnexpectedContent
from nydus_service.convert.bounds import TooManyManifests
from nydus_service.convert.uptodate import TargetExists
from nydus_service.errors import (
    DiffersError,
    ExhaustedError,
    FormatError,
    NoSpaceError,
    NotAllowedError,
    NotFoundError,
    NydusServiceError,
    SourceDiffersError,
    Surface,
    UnreachableError,
    UnsupportedError,
    UsageError,
)
from nydus_service.jobs.queue import QueueFull, ShuttingDown

DOMAIN: Final = "nydus-service"

RETRY_S: Final = 5
"""Seconds until a refused client should retry; a job seldom takes less."""


MESSAGE_SIZE_MAX: Final = 1600
"""Largest message of a status, in bytes. It is sent twice, in base64 and with up to three bytes for each, and
gRPC refuses trailers over 8 KiB."""


class TooManyCalls(NydusServiceError):
    """The daemon already serves its maximum number of long calls."""

    code, exit_code = "too_many_calls", UnreachableError.exit_code


_STATUS: Final = {
    "usage": StatusCode.INVALID_ARGUMENT,
    "not_found": StatusCode.NOT_FOUND,
    "unsupported": StatusCode.UNIMPLEMENTED,
    "not_allowed": StatusCode.PERMISSION_DENIED,
    "target_exists": StatusCode.ALREADY_EXISTS,
    "unreachable": StatusCode.UNAVAILABLE,
    "shutting_down": StatusCode.UNAVAILABLE,
    "queue_full": StatusCode.RESOURCE_EXHAUSTED,
    "too_many_calls": StatusCode.RESOURCE_EXHAUSTED,
    "no_space": StatusCode.RESOURCE_EXHAUSTED,
    "exhausted": StatusCode.RESOURCE_EXHAUSTED,
    "corrupt_input": StatusCode.DATA_LOSS,
    "differs": StatusCode.FAILED_PRECONDITION,
    "builder_failed": StatusCode.ABORTED,
}
"""Keyed by the code of an error or of one of its base classes."""

_ASK_AGAIN: Final = (QueueFull, TooManyCalls)

_KINDS: Final[dict[str, type[NydusServiceError]]] = {
    kind.code: kind
    for kind in (
        UsageError,
        DiffersError,
        NotFoundError,
        UnsupportedError,
        FormatError,
        SourceDiffersError,
        UnexpectedContent,
        NotAllowedError,
        UnreachableError,
        NoSpaceError,
        ExhaustedError,
        BuilderFailed,
        QueueFull,
        ShuttingDown,
        TooManyCalls,
        TooManyManifests,
        TargetExists,
    )
}

_OF_GRPC: Final[dict[StatusCode, type[NydusServiceError]]] = {
    StatusCode.INVALID_ARGUMENT: UsageError,
    StatusCode.NOT_FOUND: NotFoundError,
    StatusCode.UNIMPLEMENTED: UnsupportedError,
    StatusCode.PERMISSION_DENIED: NotAllowedError,
    StatusCode.UNAUTHENTICATED: NotAllowedError,
    StatusCode.UNAVAILABLE: UnreachableError,
    StatusCode.DEADLINE_EXCEEDED: UnreachableError,
    StatusCode.CANCELLED: UnreachableError,  # by a daemon that ends; the client's own cancels never get here
    StatusCode.RESOURCE_EXHAUSTED: TooManyCalls,
}
"""For statuses of gRPC itself, when a call did not reach the service."""

_DETAILS_KEY: Final = "grpc-status-details-bin"


def error_of(code: str, message: str) -> NydusServiceError:
    """Make the error for a stable code. An unknown code is kept in the message."""
    kind = _KINDS.get(code)
    if kind is not None:
        return kind(message)
    return NydusServiceError(message if code == NydusServiceError.code else f"{message} ({code})")


def status_of(error: NydusServiceError, **metadata: str) -> Status:
    """Make the status of an error.

    Args:
        metadata: further fields of the ErrorInfo, such as the job.
    """
    details: list[ErrorInfo | RetryInfo] = [ErrorInfo(reason=error.code, domain=DOMAIN, metadata=metadata)]
    if isinstance(error, _ASK_AGAIN):
        details.append(RetryInfo(retry_delay={"seconds": RETRY_S}))
    status = Status(code=_grpc_code(error).value[0], message=_cut(error.text(Surface.REQUEST)))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _cut(message: str) -> str:
    """The beginning of a message that is too large for a status, and how much is missing."""
    data = message.encode("utf-8", "backslashreplace")
    if len(data) <= MESSAGE_SIZE_MAX:
        return data.decode()
    return f"{data[:MESSAGE_SIZE_MAX].decode(errors='ignore')}… ({len(data) - MESSAGE_SIZE_MAX} more bytes)"


def error_from(exc: grpc.aio.AioRpcError) -> NydusServiceError:
    """Make the error that the status of a failed call stands for."""
    for key, value in exc.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            info = _error_info(Status.FromString(value).details)
            if info is not None:
                return error_of(info.reason, exc.details() or info.reason)
    said = exc.details() or "no reason given"
    return _OF_GRPC.get(exc.code(), NydusServiceError)(f"{exc.code().name.lower()}: {said}")


def _error_info(details: Iterable[Any]) -> ErrorInfo | None:
    info = ErrorInfo()
    for detail in details:
        if detail.Is(ErrorInfo.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            return info
    return None


def _grpc_code(error: NydusServiceError) -> StatusCode:
    """Look up the error's own code, then those of its base classes."""
    codes = [kind.__dict__["code"] for kind in type(error).__mro__ if "code" in kind.__dict__]
    return next((_STATUS[code] for code in codes if code in _STATUS), StatusCode.INTERNAL)
