"""A client of the daemon: its answers as jobs, its errors as ours, so that they end with the same status."""

import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.message import Message

from nydus_service.api.errors import error_from
from nydus_service.api.messages import job_from, options_message, state_name
from nydus_service.api.v1 import converter_pb2 as pb
from nydus_service.content.containerd.rpc import of_grpc
from nydus_service.convert.encoding import decode
from nydus_service.convert.result import Preview
from nydus_service.errors import NotAllowedError, UnreachableError, from_os_error
from nydus_service.imagecheck.result import CheckResult
from nydus_service.jobs.job import Job, JobState
from nydus_service.jobs.service import Submitted

ANSWER_SIZE_MAX: Final = 64 << 20
"""Bytes of an answer: the whole result of a job with thousands of layers has a few MiB."""

CALL_S: Final = 60.0
"""Until a call is given up that works nothing off."""

_CONNECT_S = 5.0
_OPTIONS = (
    ("grpc.max_receive_message_length", ANSWER_SIZE_MAX),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_SERVICE: Final = pb.DESCRIPTOR.services_by_name["Converter"]
_T = TypeVar("_T", bound=Message)


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A daemon that listens on TCP.

    Attributes:
        address: HOST:PORT.
        ca: whose certificate the daemon must have, PEM.
        certificate, key: of this client, PEM.
    """

    address: str
    ca: Path
    certificate: Path
    key: Path


class Page(NamedTuple):
    """Jobs without their layers and results, the newest first. `next_token` is empty on the last page."""

    jobs: list[Job]
    next_token: str


class ApiClient:
    """A connection to a daemon. Made by `open_client`.

    All methods raise what the daemon says, and UnreachableError if it does not answer.
    """

    def __init__(self, channel: Any, address: str) -> None:
        """
        Args:
            address: as messages name it.
        """
        self._channel = channel
        self.address = address

    async def submit(
        self,
        source: str,
        target: str,
        *,
        namespace: str = "",
        options: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Submitted:
        """
        Args:
            options: some of what `ConvertOptions.as_json` has; the daemon's configuration says the others.
        """
        request = _convert_request(source, target, namespace, options)
        answer = await self._call(
            "Submit", pb.SubmitRequest(request=request, priority=priority), pb.SubmitResponse
        )
        return Submitted(job_from(answer.job), answer.joined)

    async def get(self, job_id: str) -> Job:
        """
        Args:
            job_id: or the first digits of it.
        """
        return job_from(await self._call("Get", pb.GetRequest(id=job_id), pb.Job))

    async def list(
        self, *, image: str = "", states: Sequence[JobState] = (), page_size: int = 0, page_token: str = ""
    ) -> Page:
        request = pb.ListRequest(
            image=image, states=map(state_name, states), page_size=page_size, page_token=page_token
        )
        answer = await self._call("List", request, pb.ListResponse)
        return Page(list(map(job_from, answer.jobs)), answer.next_page_token)

    async def watch(self, job_id: str = "") -> AsyncGenerator[Job, None]:
        """Follow a job until it is finished, or all jobs for ever. Close it if you leave it before."""
        call = self._method("Watch")(pb.WatchRequest(id=job_id))
        try:
            while isinstance(message := await of_grpc(call.read()), pb.Job):
                yield job_from(message)
        except grpc.aio.AioRpcError as exc:
            raise self._failure(exc) from exc
        finally:
            call.cancel()

    async def cancel(self, job_id: str) -> Job:
        return job_from(await self._call("Cancel", pb.CancelRequest(id=job_id), pb.Job))

    async def retry(self, job_id: str) -> Job:
        return job_from(await self._call("Retry", pb.RetryRequest(id=job_id), pb.Job))

    async def plan(
        self, source: str, target: str, *, namespace: str = "", options: Mapping[str, Any] | None = None
    ) -> Preview:
        request = pb.PlanRequest(request=_convert_request(source, target, namespace, options))
        answer = await self._call("Plan", request, pb.PlanResponse, timeout_s=None)
        return decode(answer.json, Preview)

    async def check(
        self,
        image: str,
        *,
        against: str = "",
        namespace: str = "",
        verify: str = "tree",
        platforms: Sequence[str] = (),
    ) -> CheckResult:
        request = pb.CheckRequest(
            image=image, against=against, namespace=namespace, verify=verify, platforms=platforms
        )
        answer = await self._call("Check", request, pb.CheckResponse, timeout_s=None)
        return decode(answer.json, CheckResult)

    async def _call(
        self, name: str, request: Message, answer: type[_T], *, timeout_s: float | None = CALL_S
    ) -> _T:
        try:
            reply: _T = await of_grpc(self._method(name)(request, timeout=timeout_s))
        except grpc.aio.AioRpcError as exc:
            raise self._failure(exc) from exc
        return reply

    def _method(self, name: str) -> Any:
        method = _SERVICE.methods_by_name[name]
        make = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        return make(
            f"/{_SERVICE.full_name}/{name}",
            request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )

    def _failure(self, exc: grpc.aio.AioRpcError) -> Exception:
        error = error_from(exc)
        if type(error) is UnreachableError:
            error.args = (f"the daemon at {self.address}: {error}",)
        return error


@asynccontextmanager
async def open_client(server: Path | TlsServer) -> AsyncIterator[ApiClient]:
    """Connect to a daemon.

    Args:
        server: the path of a socket, or where TCP is.
    Raises:
        UnreachableError: nobody is there; the message says what to do.
        NotAllowedError: this user may not use the socket.
        NotFoundError: a file of a certificate is not there.
    """
    if isinstance(server, TlsServer):
        texts = await anyio.to_thread.run_sync(_read_files, server)
        credentials = grpc.ssl_channel_credentials(*texts)
        channel = grpc.aio.secure_channel(server.address, credentials, options=_OPTIONS)
        address = server.address
    else:
        path = await anyio.to_thread.run_sync(_probe, server)
        options = (*_OPTIONS, ("grpc.default_authority", "localhost"))
        channel, address = grpc.aio.insecure_channel(f"unix:{path}", options=options), str(path)
    try:
        yield ApiClient(channel, address)
    finally:
        with anyio.CancelScope(shield=True):
            await channel.close()


def _convert_request(
    source: str, target: str, namespace: str, options: Mapping[str, Any] | None
) -> pb.ConvertRequest:
    return pb.ConvertRequest(
        source=source, target=target, namespace=namespace, options=options_message(options or {})
    )


def _read_files(server: TlsServer) -> list[bytes]:
    """Returns: authority, key, certificate."""
    texts = []
    for path in (server.ca, server.key, server.certificate):
        try:
            texts.append(path.read_bytes())
        except OSError as exc:
            raise from_os_error(exc, f"read {path}") from exc
    return texts


def _probe(path: Path) -> Path:
    """Connect once, because the operating system's reasons are clearer than gRPC's. Returns: absolute."""
    path = path.absolute()
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(os.fspath(path))
        except PermissionError as exc:
            raise NotAllowedError(
                f"this user may not use the daemon's socket {path}: run it as root, or as a member of the "
                "group that `[daemon] group` of its configuration names"
            ) from exc
        except (FileNotFoundError, ConnectionRefusedError) as exc:
            raise UnreachableError(
                f"no daemon listens at {path}: start it (`systemctl start nydus-service`, or `nydus-service "
                "serve`), or let --socket name another one's"
            ) from exc
        except OSError as exc:
            reason = exc.strerror or str(exc)
            raise UnreachableError(
                f"the daemon does not answer at {path} ({reason}): is it running?"
            ) from exc
    return path
