"""The gRPC server of the daemon: a Unix socket, and TCP with mutual TLS where that is configured."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from nydus_service.api.interceptor import StatusInterceptor
from nydus_service.api.listening import binding, placed
from nydus_service.api.requests import DEFAULT_NAMESPACE, RequestReader
from nydus_service.api.service import SERVICE, ConverterService
from nydus_service.api.v1.converter_pb2_grpc import add_ConverterServicer_to_server
from nydus_service.errors import NotAllowedError, UnreachableError, UsageError, from_os_error
from nydus_service.jobs.service import JobService, Runner
from nydus_service.options.convert import ConvertOptions

REQUEST_SIZE_MAX: Final = 1 << 20
"""Bytes of a request: references and a few options."""

CALLS_MAX: Final = 1024
"""Of all clients together. Watches are bounded further, so that they leave room for others."""

STREAMS_MAX: Final = 256
"""Calls at a time on one connection; the client's gRPC lets others wait."""

_KEEPALIVE_MS = 60_000
_SERVICES = (SERVICE.full_name, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
_OPTIONS = (
    ("grpc.max_receive_message_length", REQUEST_SIZE_MAX),
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),  # a machine that vanished holds no watch for ever
    ("grpc.so_reuseport", 0),
)

_log = logging.getLogger("nydus_service.api")


@dataclass(frozen=True, slots=True)
class TlsListener:
    """TCP, for clients that show a certificate.

    Attributes:
        address: HOST:PORT; port 0: any that is free.
        certificate, key: of this server, PEM.
        client_ca: whose certificates clients must have, PEM.
    """

    address: str
    certificate: Path
    key: Path
    client_ca: Path


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """
    Attributes:
        socket: absolute path.
        group: that may use the socket, by name or number; empty: the process's own.
        defaults: options of conversions that a request leaves open.
        namespace: of containerd, likewise.
        grace_s: how long calls may still take when the server ends.
    """

    socket: Path
    group: str = ""
    tls: TlsListener | None = None
    defaults: ConvertOptions = field(default_factory=ConvertOptions)
    namespace: str = DEFAULT_NAMESPACE
    grace_s: float = 5.0


class ApiServer:
    """A server that listens. Made by `open_api_server`."""

    def __init__(self, port: int, service: ConverterService, health: Any) -> None:
        """
        Args:
            port: of TCP; 0: there is none.
        """
        self.port = port
        self._service = service
        self._health = health

    def set_defaults(self, defaults: ConvertOptions) -> None:
        """Have conversions that come from now on use other options where they leave them open."""
        self._service.reader = replace(self._service.reader, defaults=defaults)

    async def begin_drain(self) -> None:
        """Say to health checks that no requests are taken any more. Jobs can still be watched."""
        await self._health.enter_graceful_shutdown()

    async def end_watches(self) -> None:
        """End the streams of all who watch, who are told that the daemon ends."""
        await self.begin_drain()
        self._service.end_watches()


@asynccontextmanager
async def open_api_server(
    job_service: JobService, runner: Runner, settings: ApiSettings
) -> AsyncIterator[ApiServer]:
    """Serve while the block lasts; then end it: watches at once, other calls after a grace.

    Raises:
        AlreadyRunning: a daemon listens at the socket.
        UsageError: a setting cannot be: no such group, a path too long, no certificate.
        NotAllowedError, NotFoundError: of the files that the settings name.
        UnreachableError: the TCP address is not free.
    """
    service = ConverterService(job_service, runner, RequestReader(settings.defaults, settings.namespace))
    server = grpc.aio.server(
        interceptors=[StatusInterceptor(SERVICE)], options=_OPTIONS, maximum_concurrent_rpcs=CALLS_MAX
    )
    add_ConverterServicer_to_server(service, server)
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    await checks.set(SERVICE.full_name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*_SERVICES, reflection.SERVICE_NAME), server)
    port = await _add_tls(server, settings.tls) if settings.tls else 0
    with binding(settings.socket, settings.group) as bound:
        try:
            server.add_insecure_port(f"unix:{bound}")
        except RuntimeError as exc:
            raise NotAllowedError(f"cannot listen at {settings.socket}: {exc}") from exc
    socket = placed(settings.socket)
    try:
        await server.start()
        _log.info("listening at %s%s", settings.socket, f" and port {port}" if port else "")
        api = ApiServer(port, service, checks)
        try:
            yield api
        finally:
            with anyio.CancelScope(shield=True):
                await api.end_watches()
                await server.stop(settings.grace_s)
    finally:
        socket.remove()


async def _add_tls(server: grpc.aio.Server, tls: TlsListener) -> int:
    """Returns: the port."""
    key, certificate, client_ca = await anyio.to_thread.run_sync(_read_all, tls)
    credentials = grpc.ssl_server_credentials([(key, certificate)], client_ca, require_client_auth=True)
    try:
        return server.add_secure_port(tls.address, credentials)
    except RuntimeError as exc:
        raise UnreachableError(f"cannot listen at {tls.address} with {tls.certificate}: {exc}") from exc


def _read_all(tls: TlsListener) -> list[bytes]:
    return [_read(each) for each in (tls.key, tls.certificate, tls.client_ca)]


def _read(path: Path) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise from_os_error(exc, f"read {path}") from exc
    if b"-----BEGIN " not in text:
        raise UsageError(f"{path} is no PEM file")
    return text
