"""A client of the daemon. It returns jobs and raises this project's errors, which keep their exit status."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nydus_service.api.errors import error_from
from nydus_service.api.messages import job_from, options_message, outage_from, state_name
from nydus_service.api.v1 import converter_pb2 as pb
from nydus_service.api.v1.converter_pb2_grpc import ConverterStub
from nydus_service.convert.encoding import decode
from nydus_service.convert.result import Preview
from nydus_service.errors import NotAllowedError, NydusServiceError, UnreachableError, from_os_error
from nydus_service.imagecheck.result import CheckResult
from nydus_service.jobs.dependencies import Outage
from nydus_service.jobs.job import Job, JobState
from nydus_service.jobs.service import Submitted
from nydus_service.rpc.cancellation import await_rpc
from nydus_service.rpc.channel import open_tls_channel, open_unix_channel

ANSWER_SIZE_MAX: Final = 64 << 20
"""Largest answer, in bytes. The whole result of a job with thousands of layers has a few MiB."""

CALL_S: Final = 60.0
"""Timeout of a call, in seconds. Plans and checks have none."""

_CHANNEL_OPTIONS = (("grpc.max_receive_message_length", ANSWER_SIZE_MAX),)
_Q = TypeVar("_Q")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A daemon that listens on TCP.

    Attributes:
        address: HOST:PORT.
        ca: the authority that must have issued the daemon's certificate, a PEM file.
        certificate, key: this client's, PEM files.
    """

    address: str
    ca: Path
    certificate: Path
    key: Path


class JobPage(NamedTuple):
    """Jobs without their layers and results, the newest first. `next_token` is empty on the last page.

    `outages` are what the daemon lacks now.
    """

    jobs: list[Job]
    next_token: str
    outages: list[Outage]


class ApiClient:
    """A connection to a daemon. Made by `open_client`.

    All methods raise the error that the daemon reports, or UnreachableError if it does not answer.
    """

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        """
        Args:
            address: the daemon's, for error messages.
        """
        self._stub = ConverterStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
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
        """Submit a conversion.

        Args:
            options: some of the fields of `ConvertOptions.as_json`; the daemon's configuration sets the rest.
        """
        request = _convert_request(source, target, namespace, options)
        answer = await self._call(self._stub.Submit, pb.SubmitRequest(request=request, priority=priority))
        return Submitted(job_from(answer.job), answer.joined)

    async def get(self, job_id: str) -> Job:
        """Look up a job.

        Args:
            job_id: the whole id or its first digits.
        """
        return job_from(await self._call(self._stub.Get, pb.GetRequest(id=job_id)))

    async def list(
        self, *, image: str = "", states: Sequence[JobState] = (), page_size: int = 0, page_token: str = ""
    ) -> JobPage:
        request = pb.ListRequest(
            image=image, states=map(state_name, states), page_size=page_size, page_token=page_token
        )
        answer = await self._call(self._stub.List, request)
        outages = list(map(outage_from, answer.outages))
        return JobPage(list(map(job_from, answer.jobs)), answer.next_page_token, outages)

    async def watch(self, job_id: str = "") -> AsyncGenerator[Job, None]:
        """Follow one job until it is finished, or all jobs without end. Close the generator to stop early."""
        call = self._stub.Watch(pb.WatchRequest(id=job_id))
        messages = aiter(call)
        try:
            while (message := await await_rpc(anext(messages, None))) is not None:
                yield job_from(message)
        except grpc.aio.AioRpcError as exc:
            raise self._failure(exc) from exc
        finally:
            call.cancel()

    async def cancel(self, job_id: str) -> Job:
        return job_from(await self._call(self._stub.Cancel, pb.CancelRequest(id=job_id)))

    async def retry(self, job_id: str) -> Job:
        return job_from(await self._call(self._stub.Retry, pb.RetryRequest(id=job_id)))

    async def plan(
        self, source: str, target: str, *, namespace: str = "", options: Mapping[str, Any] | None = None
    ) -> Preview:
        request = pb.PlanRequest(request=_convert_request(source, target, namespace, options))
        answer = await self._call(self._stub.Plan, request, timeout_s=None)
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
        answer = await self._call(self._stub.Check, request, timeout_s=None)
        return decode(answer.json, CheckResult)

    async def serves(self, service: str) -> bool:
        """Whether a service of the health checks is serving.

        Raises: NotFoundError: the daemon does not know the service.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await self._call(self._health.Check, request)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[_Q, _R]",
        request: _Q,
        *,
        timeout_s: float | None = CALL_S,
    ) -> _R:
        try:
            return await await_rpc(method(request, timeout=timeout_s))
        except grpc.aio.AioRpcError as exc:
            raise self._failure(exc) from exc

    def _failure(self, exc: grpc.aio.AioRpcError) -> Exception:
        error = error_from(exc)
        if type(error) is UnreachableError:
            error.add_subject(f"the daemon at {self.address}")
        return error


@asynccontextmanager
async def open_client(server: Path | TlsServer) -> AsyncIterator[ApiClient]:
    """Connect to a daemon.

    Args:
        server: the path of a Unix socket, or a TCP address with its certificates.
    Raises:
        UnreachableError: no daemon answers; the message says what to do.
        NotAllowedError: this user may not use the socket.
        NotFoundError: a certificate or key file does not exist.
    """
    if isinstance(server, TlsServer):
        texts = await anyio.to_thread.run_sync(_read_files, server)
        credentials = grpc.ssl_channel_credentials(*texts)
        async with open_tls_channel(server.address, credentials, _CHANNEL_OPTIONS) as channel:
            yield ApiClient(channel, server.address)
    else:
        path = await anyio.to_thread.run_sync(server.absolute)
        async with open_unix_channel(path, _CHANNEL_OPTIONS, partial(_explain, path)) as channel:
            yield ApiClient(channel, str(path))


def _convert_request(
    source: str, target: str, namespace: str, options: Mapping[str, Any] | None
) -> pb.ConvertRequest:
    return pb.ConvertRequest(
        source=source, target=target, namespace=namespace, options=options_message(options or {})
    )


def _read_files(server: TlsServer) -> list[bytes]:
    """Returns: the PEM text of the authority, the key and the certificate."""
    texts = []
    for path in (server.ca, server.key, server.certificate):
        try:
            texts.append(path.read_bytes())
        except OSError as exc:
            raise from_os_error(exc, f"read {path}") from exc
    return texts


def _explain(path: Path, exc: OSError) -> NydusServiceError:
    """Make the error that explains why no daemon can be reached at a socket."""
    match exc:
        case PermissionError():
            return NotAllowedError(
                f"this user may not use the daemon's socket {path}: run it as root, or as a member of the "
                "group that `[daemon] group` of its configuration names"
            )
        case FileNotFoundError() | ConnectionRefusedError():
            return UnreachableError(
                f"no daemon listens at {path}: start it (`systemctl start nydus-service`, or `nydus-service "
                "serve`), or let --socket name another one's"
            )
    reason = exc.strerror or str(exc)
    return UnreachableError(f"the daemon does not answer at {path} ({reason}): is it running?")
