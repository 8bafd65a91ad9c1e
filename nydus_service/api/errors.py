"""Our errors as gRPC statuses, and back: `google.rpc.Status` with an `ErrorInfo` that has our stable word.

The table is the one at the top of protos/nydus_service/v1/converter.proto.

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
from nydus_service.errors import (
    DiffersError,
    FormatError,
    NoSpaceError,
    NotAllowedError,
    NotFoundError,
    NydusServiceError,
    SourceDiffersError,
    UnreachableError,
    UnsupportedError,
    UsageError,
)
from nydus_service.jobs.queue import QueueFull, ShuttingDown

DOMAIN: Final = "nydus-service"

RETRY_S: Final = 5
"""When to ask again where too much waits: a job seldom takes less."""


class TooManyCalls(NydusServiceError):
    """The daemon answers as many long calls as it will."""

    code, exit_code = "too_many_calls", UnreachableError.exit_code


_STATUS: Final = {
    "usage": StatusCode.INVALID_ARGUMENT,
    "not_found": StatusCode.NOT_FOUND,
    "unsupported": StatusCode.UNIMPLEMENTED,
    "not_allowed": StatusCode.PERMISSION_DENIED,
    "unreachable": StatusCode.UNAVAILABLE,
    "shutting_down": StatusCode.UNAVAILABLE,
    "queue_full": StatusCode.RESOURCE_EXHAUSTED,
    "too_many_calls": StatusCode.RESOURCE_EXHAUSTED,
    "no_space": StatusCode.RESOURCE_EXHAUSTED,
    "corrupt_input": StatusCode.DATA_LOSS,
    "differs": StatusCode.FAILED_PRECONDITION,
    "builder_failed": StatusCode.ABORTED,
}
"""By the code of an error, or of the kind that it is below."""

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
        BuilderFailed,
        QueueFull,
        ShuttingDown,
        TooManyCalls,
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
    StatusCode.CANCELLED: UnreachableError,  # by the daemon, when it ends: our own cancels never get here
    StatusCode.RESOURCE_EXHAUSTED: TooManyCalls,
}
"""What gRPC itself says, of a call that did not get as far as the service."""

_DETAILS_KEY: Final = "grpc-status-details-bin"


def error_of(code: str, message: str) -> NydusServiceError:
    """The error that a stable word means. One that is not known here keeps the word in its message."""
    kind = _KINDS.get(code)
    if kind is not None:
        return kind(message)
    return NydusServiceError(message if code == NydusServiceError.code else f"{message} ({code})")


def status_of(error: NydusServiceError, **metadata: str) -> Status:
    """
    Args:
        metadata: what else ErrorInfo is to say: the job.
    """
    details: list[ErrorInfo | RetryInfo] = [ErrorInfo(reason=error.code, domain=DOMAIN, metadata=metadata)]
    if isinstance(error, _ASK_AGAIN):
        details.append(RetryInfo(retry_delay={"seconds": RETRY_S}))
    status = Status(code=_grpc_code(error).value[0], message=str(error))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def error_from(exc: grpc.aio.AioRpcError) -> NydusServiceError:
    """What the status of a call means."""
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
    """By its own code, else by those of the kinds above it."""
    codes = [kind.__dict__["code"] for kind in type(error).__mro__ if "code" in kind.__dict__]
    return next((_STATUS[code] for code in codes if code in _STATUS), StatusCode.INTERNAL)
