"""The gRPC server of the daemon: on a Unix socket, and on TCP with mutual TLS if configured."""

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

from nydus_service.api.bounds import CONNECTIONS_MAX
from nydus_service.api.health import CONFIGURATION, LIVENESS
from nydus_service.api.interceptor import StatusInterceptor
from nydus_service.api.listening import binding, placed
from nydus_service.api.requests import DEFAULT_NAMESPACE, RequestReader
from nydus_service.api.service import SERVICE, ConverterService
from nydus_service.api.tls import read_tls
from nydus_service.api.v1.converter_pb2_grpc import add_ConverterServicer_to_server
from nydus_service.errors import NotAllowedError, UnreachableError
from nydus_service.jobs.dependencies import Dependencies
from nydus_service.jobs.service import JobService, Runner
from nydus_service.options.convert import ConvertOptions

REQUEST_SIZE_MAX: Final = 1 << 20
"""Largest request, in bytes. A request has references and a few options."""

CALLS_MAX: Final = 1024
"""Concurrent calls of all clients. Watches have a lower limit, so that they leave room for other calls."""

STREAMS_MAX: Final = 256
"""Concurrent calls on one connection; the client's gRPC queues further ones."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_KEEPALIVE_MS = 60_000
_HANDSHAKE_MS = 10_000
"""For TLS and the first bytes of HTTP/2. A connection without them is closed."""
_IDLE_MS = 300_000
"""Without a call. The client's gRPC connects again for its next call."""
_SERVICES = (SERVICE.full_name, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
_OPTIONS = (
    ("grpc.max_receive_message_length", REQUEST_SIZE_MAX),
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
    ("grpc.max_connection_idle_ms", _IDLE_MS),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),  # ends the watches of a vanished machine
    ("grpc.so_reuseport", 0),
)

_log = logging.getLogger("nydus_service.api")


@dataclass(frozen=True, slots=True)
class TlsListener:
    """TCP, for clients with a certificate.

    Attributes:
        address: HOST:PORT; port 0 for any free port.
        certificate, key: this server's, PEM files.
        client_ca: the authority that must have issued a client's certificate, a PEM file.
    """

    address: str
    certificate: Path
    key: Path
    client_ca: Path


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The settings of the gRPC server.

    Attributes:
        socket: absolute path.
        group: name or number of the group that may use the socket; empty for the process's own.
        defaults: options where a request sets none.
        namespace: containerd namespace where a request sets none.
        grace_s: seconds that calls in progress may still take when the server ends.
        connections: maximum number of connections of each listener at a time. gRPC closes one more at once,
            and its client tries again.
    """

    socket: Path
    group: str = ""
    tls: TlsListener | None = None
    defaults: ConvertOptions = field(default_factory=ConvertOptions)
    namespace: str = DEFAULT_NAMESPACE
    grace_s: float = 5.0
    connections: int = CONNECTIONS_MAX


class _HealthService(health.HealthServicer):  # type: ignore[misc]  # it has no types
    """Health checks with List, which the base class does not implement."""

    def __init__(self) -> None:
        super().__init__()
        self._names = {""}

    async def set(self, service: str, status: Any) -> None:
        self._names.add(service)
        await super().set(service, status)

    async def List(self, request: object, context: object) -> Any:
        checks = {name: health_pb2.HealthCheckRequest(service=name) for name in self._names}
        statuses = {name: await self.Check(check, context) for name, check in checks.items()}
        return health_pb2.HealthListResponse(statuses=statuses)


class ApiServer:
    """A listening server. Made by `open_api_server`."""

    def __init__(self, port: int, service: ConverterService, health: Any, dependencies: Dependencies) -> None:
        """
        Args:
            port: the TCP port; 0 without TCP.
        """
        self.port = port
        self._service = service
        self._health = health
        self._dependencies = dependencies

    async def report_health(self) -> None:
        """Report the current states of the dependencies to health checks."""
        states = dict(self._dependencies.states)
        ready = all(states.values())
        for name, serves in ({LIVENESS: True, "": ready, SERVICE.full_name: ready} | states).items():
            await self._health.set(name, _SERVING if serves else _NOT_SERVING)

    async def follow_health(self) -> None:
        """Report each change of the dependencies to health checks, until cancelled."""
        while True:
            changed = self._dependencies.changed
            await self.report_health()
            await changed.wait()

    async def report_reload(self, *, well: bool) -> None:
        """Report to health checks whether the last reload of the configuration was applied."""
        await self._health.set(CONFIGURATION, _SERVING if well else _NOT_SERVING)

    def set_defaults(self, defaults: ConvertOptions) -> None:
        """Replace the default options of later conversions."""
        self._service.reader = replace(self._service.reader, defaults=defaults)

    async def begin_drain(self) -> None:
        """Report to health checks that no more requests are accepted. Jobs can still be watched."""
        await self._health.enter_graceful_shutdown()

    async def end_watches(self) -> None:
        """End all watch streams with an error which reports that the daemon ends."""
        await self.begin_drain()
        self._service.end_watches()


@asynccontextmanager
async def open_api_server(
    job_service: JobService,
    runner: Runner,
    settings: ApiSettings,
    dependencies: Dependencies | None = None,
) -> AsyncIterator[ApiServer]:
    """Serve until the block ends; then end watches at once, and other calls after `grace_s`.

    Args:
        dependencies: of the daemon, for health checks; None: all is always available.
    Raises:
        AlreadyRunning: a daemon listens at the socket.
        UsageError: a setting is invalid: an unknown group, a path that is too long, a file that is not PEM.
        NotAllowedError, NotFoundError: a file that the settings name may not be used, or does not exist.
        UnreachableError: the server cannot listen at the TCP address with its certificate.
    """
    dependencies = dependencies or Dependencies()
    reader = RequestReader(settings.defaults, settings.namespace)
    service = ConverterService(job_service, runner, reader, dependencies)
    server = grpc.aio.server(
        interceptors=[StatusInterceptor(SERVICE)],
        options=(*_OPTIONS, ("grpc.max_allowed_incoming_connections", settings.connections)),
        maximum_concurrent_rpcs=CALLS_MAX,
    )
    add_ConverterServicer_to_server(service, server)
    checks = _HealthService()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((*_SERVICES, reflection.SERVICE_NAME), server)
    port = await _add_tls(server, settings.tls) if settings.tls else 0
    with binding(settings.socket, settings.group) as bound:
        try:
            server.add_insecure_port(f"unix:{bound}")
        except RuntimeError as exc:
            raise NotAllowedError(f"cannot listen at {settings.socket}: {exc}") from exc
    socket = placed(settings.socket)
    try:
        api = ApiServer(port, service, checks, dependencies)
        await api.report_health()
        await api.report_reload(well=True)
        await server.start()
        _log.info("listening at %s%s", settings.socket, f" and port {port}" if port else "")
        try:
            yield api
        finally:
            with anyio.CancelScope(shield=True):
                await api.end_watches()
                await server.stop(settings.grace_s)
    finally:
        socket.remove()


async def _add_tls(server: grpc.aio.Server, tls: TlsListener) -> int:
    """Returns: the bound TCP port."""
    files = await anyio.to_thread.run_sync(read_tls, tls.certificate, tls.key, tls.client_ca)
    pair = (files.key, files.certificate)
    credentials = grpc.ssl_server_credentials([pair], files.client_ca, require_client_auth=True)
    try:
        return server.add_secure_port(tls.address, credentials)
    except RuntimeError as exc:
        raise UnreachableError(f"cannot listen at {tls.address} with {tls.certificate}: {exc}") from exc
