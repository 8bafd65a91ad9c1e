"""An interceptor of all API methods: it decodes and checks requests, and turns errors into statuses."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from nydus_service.api.bounds import check_message
from nydus_service.api.errors import status_of
from nydus_service.api.messages import refuse_unknown
from nydus_service.errors import NydusServiceError, UsageError

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MaybeHandler: TypeAlias = "_Handler | None"
_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, Any]"

_JOB_ID_MAX: Final = 64

_log: Final = logging.getLogger("nydus_service.api")


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of one service; calls of other services pass unchanged.

    It receives a request as bytes and decodes it itself: gRPC would answer INTERNAL, without a reason, to a
    request that does not decode.
    """

    def __init__(self, service: ServiceDescriptor) -> None:
        self._methods = {f"/{service.full_name}/{each.name}": each for each in service.methods}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _MaybeHandler:
        handler = await continuation(handler_call_details)
        method = self._methods.get(handler_call_details.method)
        if handler is None or method is None:
            return handler
        return _wrap(handler, method.name, method.input_type.full_name)


def _wrap(handler: _Handler, method: str, request_name: str) -> _Handler:
    behaviour: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary
    decode: Any = handler.request_deserializer

    async def answer(data: bytes, context: _Context) -> Any:
        request: Message | None = None
        try:
            request = _decode(decode, data, request_name)
            check_message(request)
            refuse_unknown(request)
            return await behaviour(request, context)
        except NydusServiceError as exc:
            status = status_of(exc, **_metadata(request))
        except Exception:
            _log.exception("%s failed unexpectedly", method)
            status = status_of(NydusServiceError("an unexpected error; the daemon's log has more"))
        return await _abort(context, status)

    make = (
        grpc.unary_stream_rpc_method_handler
        if handler.response_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make(answer, response_serializer=handler.response_serializer)


def _decode(decode: Callable[[bytes], Message], data: bytes, name: str) -> Message:
    try:
        return decode(data)
    except DecodeError as exc:
        raise UsageError(f"the request is no {name}: {exc}") from exc


async def _abort(context: _Context, status: Status) -> None:
    await context.abort_with_status(rpc_status.to_status(status))


def _metadata(request: Message | None) -> dict[str, str]:
    """The metadata of ErrorInfo: the job that a request names. A text too long for an id is left out."""
    job_id = getattr(request, "id", "")
    return {"job": job_id} if 0 < len(job_id) <= _JOB_ID_MAX else {}
