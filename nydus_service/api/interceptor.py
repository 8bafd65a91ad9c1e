"""An interceptor of all API methods: it decodes and checks requests, and turns errors into statuses."""

import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from nydus_service.api.bounds import check_message, job_field
from nydus_service.api.errors import status_of
from nydus_service.api.messages import refuse_unknown
from nydus_service.errors import NydusServiceError, UsageError
from nydus_service.observe.logs import log_context

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MaybeHandler: TypeAlias = "_Handler | None"
_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, Any]"

_log: Final = logging.getLogger("nydus_service.api")


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of one service, and guards those of the others: health checks and reflection.

    It receives a request as bytes and decodes it itself: to a request that does not decode, gRPC would answer
    UNKNOWN and log a traceback.
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
        if handler is None:
            return None
        if method is None:
            return _guard(handler)
        return _wrap(handler, method.name, method.input_type.full_name)


def _wrap(handler: _Handler, method: str, request_name: str) -> _Handler:
    behaviour: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary
    decode: Any = handler.request_deserializer

    async def answer(data: bytes, context: _Context) -> Any:
        about: dict[str, str] = {}
        try:
            request = _decode(decode, data, request_name)
            about = job_field(getattr(request, "id", ""))
            with log_context(**about):
                check_message(request)
                refuse_unknown(request)
                return await behaviour(request, context)
        except NydusServiceError as exc:
            status = status_of(exc, **about)
        except Exception:
            _log.exception("%s failed unexpectedly", method, extra=about)
            status = status_of(NydusServiceError("an unexpected error; the daemon's log has more"))
        return await _abort(context, status)

    make = (
        grpc.unary_stream_rpc_method_handler
        if handler.response_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make(answer, response_serializer=handler.response_serializer)


def _guard(handler: _Handler) -> _Handler:
    """Decode and check the requests of a method of gRPC's own services. The method does the rest."""
    kind = "_".join(
        "stream" if each else "unary" for each in (handler.request_streaming, handler.response_streaming)
    )
    behaviour: Any = getattr(handler, kind)
    decode: Any = handler.request_deserializer

    def read(data: bytes) -> Message:
        request = _decode(decode, data, "message of this method")
        check_message(request)
        return request

    async def answer(received: Any, context: _Context) -> Any:
        try:
            request = _read_all(received, read) if handler.request_streaming else read(received)
            return await _respond(behaviour(request, context), context)
        except UsageError as exc:
            return await _abort(context, status_of(exc))

    make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
    guarded: _Handler = make(answer, response_serializer=handler.response_serializer)
    return guarded


async def _read_all(
    received: AsyncIterable[bytes], read: Callable[[bytes], Message]
) -> AsyncIterator[Message]:
    async for data in received:
        yield read(data)


async def _respond(answer: Any, context: _Context) -> Any:
    """Send the responses that a method yields. A method that yields none returns or writes its responses."""
    if not isinstance(answer, AsyncGenerator):
        return await answer
    async with aclosing(answer) as responses:
        async for response in responses:
            await context.write(response)


def _decode(decode: Callable[[bytes], Message], data: bytes, name: str) -> Message:
    try:
        return decode(data)
    except DecodeError as exc:
        raise UsageError(f"the request is no {name}: {exc}") from exc


async def _abort(context: _Context, status: Status) -> None:
    await context.abort_with_status(rpc_status.to_status(status))
