"""The HTTP server: acceld's paths, so that Harbor's webhook works unchanged, jobs, metrics and the page.

    access                    paths
    open                      /, /app.js, /style.css, the OpenAPI document (no data in them),
                              health checks (HEALTH_PATHS)
    with the token            all others, including those that do not exist

A client has limited time to send each head (`Timeouts.head_s`) and body, and to receive what it was sent. The
kernel closes the connection of a client that does not receive in time (TCP_USER_TIMEOUT). The number of
connections has a limit, see connections.py.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from nydus_service.api.bounds import CONNECTIONS_MAX, job_field
from nydus_service.api.http import answers, openapi
from nydus_service.api.http.access import AllowedSources, AllowedTargets, TokenFile
from nydus_service.api.http.connections import Connections
from nydus_service.api.http.conversions import Conversions, json_response
from nydus_service.api.http.events import is_gone
from nydus_service.api.http.page import Page
from nydus_service.api.http.submissions import MatchRule, SubmissionReader
from nydus_service.config.sections import HttpSection
from nydus_service.convert.encoding import encode
from nydus_service.errors import NydusServiceError, UsageError, from_os_error
from nydus_service.jobs.service import JobService
from nydus_service.observe.logs import log_context
from nydus_service.options.convert import ConvertOptions

METRICS_TYPE: Final = "text/plain; version=1.0.0; charset=utf-8"
"""`prometheus_client.CONTENT_TYPE_LATEST`, the format of `generate_latest`."""

HEALTH_PATHS: Final = ("/livez", "/readyz", "/healthz", "/api/v1/health")
"""Whether the daemon answers; whether it is ready, by dependency, in a word, and as acceld says it."""

_CLIENT_GONE: Final = 499
"""The status of a request whose client has closed the connection. It is sent to no one. If the error were
raised, aiohttp would log it with a traceback."""

_LINGERING_S: Final = 2
"""Seconds to read the rest of a refused body; without that the client might miss the answer."""

_SECURITY: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger("nydus_service.api")

_PROTOCOL_LOG: Final = logging.getLogger("nydus_service.api.http")
"""Of aiohttp's server, see `_log_briefly`."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts in seconds.

    Attributes:
        head_s: for a request's head, counted from the connection or the last answer.
        body_s: for a request's body.
        unread_s: for a client to receive what it was sent.
        beat_s: between beats of a stream, and between checks that a client that waits for a job is connected.
        shutdown_s: for answers in progress when the server ends.
    """

    head_s: float = 30
    body_s: float = 30
    unread_s: float = 30
    beat_s: float = 15
    shutdown_s: float = 5


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A running server.

    Attributes:
        addresses: those it listens on, as HOST:PORT.
        app: has the routes.
    """

    addresses: tuple[str, ...]
    app: web.Application
    token: TokenFile
    conversions: Conversions

    def reload(self, settings: HttpSection, defaults: ConvertOptions, match_rule: MatchRule) -> None:
        """Read the token file again. Replace the allowed names, the default options and the rules.

        Raises: as `TokenFile.reload`; then nothing changes.
        """
        self.token.reload()
        self.conversions.reader = _reader(settings, defaults, match_rule)


@asynccontextmanager
async def open_http_server(
    job_service: JobService,
    settings: HttpSection,
    *,
    metrics_text: Callable[[], bytes],
    ready: Callable[[], str],
    states: Callable[[], Mapping[str, str]],
    defaults: ConvertOptions,
    match_rule: MatchRule,
    timeouts: Timeouts = Timeouts(),
    connections: int = CONNECTIONS_MAX,
) -> AsyncIterator[HttpServer]:
    """Serve until the block ends, which also ends requests that wait for a job or follow jobs.

    Args:
        settings: with an address and a token file.
        metrics_text: returns the metrics in the format of `prometheus_client.generate_latest`.
        ready: returns why the daemon cannot work, empty if it can; must not block. The text is public.
        states: returns what is wrong with each dependency, empty if nothing; as `ready`.
        defaults: options where a request sets none.
        match_rule: finds the rule for a source.
        connections: maximum number of connections at a time; half of them may be without the token.
    Raises:
        UsageError: no token file is configured, or its token is invalid.
        NydusServiceError: the address is in use, or not one of this machine.
    """
    if settings.token_file is None:
        raise UsageError("[http] address needs a token_file: a file with the token that clients have to show")
    token = TokenFile(settings.token_file)
    conversions = Conversions(
        job_service,
        _reader(settings, defaults, match_rule),
        max_body=settings.max_body,
        body_timeout_s=timeouts.body_s,
        beat_s=timeouts.beat_s,
    )
    access = Access(token)
    app = web.Application(
        middlewares=[_name_job, _answer_errors, access.demand_token, _bound_unread(timeouts.unread_s)],
        client_max_size=settings.max_body,
    )
    app.on_response_prepare.append(_add_headers)
    access.add_open_routes(app, Page(), ready, states)
    conversions.add_routes(app)
    app.router.add_get("/metrics", _metrics(metrics_text))
    async with _listening(app, settings.address, timeouts, access, connections) as addresses:
        _log.info("HTTP on %s", ", ".join(addresses))
        try:
            yield HttpServer(addresses, app, token, conversions)
        finally:
            conversions.closing.set()


def _reader(settings: HttpSection, defaults: ConvertOptions, match_rule: MatchRule) -> SubmissionReader:
    sources = AllowedSources(settings.allowed_sources)
    targets = AllowedTargets(settings.allowed_targets, settings.namespaces)
    return SubmissionReader(sources, targets, defaults, match_rule)


@asynccontextmanager
async def _listening(
    app: web.Application, address: str, timeouts: Timeouts, access: "Access", connections: int
) -> AsyncIterator[tuple[str, ...]]:
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        logger=_PROTOCOL_LOG,
        auto_decompress=False,
        keepalive_timeout=timeouts.head_s,
        lingering_time=_LINGERING_S,
        shutdown_timeout=timeouts.shutdown_s,
    )
    _PROTOCOL_LOG.addFilter(_log_briefly)
    await runner.setup()
    try:
        assert runner.server is not None  # made by `setup`
        access.connections = Connections(runner.server, connections)
        host, _, port = address.rpartition(":")
        try:
            listener = await asyncio.get_running_loop().create_server(
                access.connections, host.strip("[]"), int(port)
            )
        except OSError as exc:
            raise from_os_error(exc, f"listen for HTTP on {address}") from exc
        try:
            yield tuple(_printed(each.getsockname()) for each in listener.sockets)
        finally:
            listener.close()
    finally:
        await runner.cleanup()


def _log_briefly(record: logging.LogRecord) -> bool:
    """Reduce what aiohttp logs of a malformed request: its text and traceback quote the client's bytes."""
    exc = record.exc_info[1] if record.exc_info else None
    if isinstance(exc, HttpProcessingError):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg = f"{record.msg}: malformed request: {type(exc).__name__}"
        record.exc_info = None
        return record.levelno >= _PROTOCOL_LOG.getEffectiveLevel()
    return True


def _printed(address: Sequence[Any]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Access:
    """Serves the open routes to all clients, and all others to clients with the token."""

    def __init__(self, token: TokenFile) -> None:
        self._token = token
        self._open: set[Any] = set()
        self.connections: Connections | None = None
        """Set once the server listens."""

    def add_open_routes(
        self,
        app: web.Application,
        page: Page,
        ready: Callable[[], str],
        states: Callable[[], Mapping[str, str]],
    ) -> None:
        health = (_livez, _readyz(ready, states), _healthz(ready), _acceld_health(ready))
        handlers: list[tuple[str, _Handler]] = [(path, page.send) for path in page.paths]
        handlers += zip(HEALTH_PATHS, health, strict=True)
        handlers.append((openapi.PATH, _send_json(openapi.describe_api())))
        for path, handler in handlers:
            self._open.add(app.router.add_get(path, handler).resource)

    @web.middleware
    async def demand_token(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        is_open = (
            request.match_info.http_exception is None and request.match_info.route.resource in self._open
        )
        has_token = self._token.matches(request.headers.get("Authorization", ""))
        if has_token and self.connections is not None:
            self.connections.trust(request)
        if is_open or has_token:
            return await handler(request)
        response = _refuse(401)
        response.headers["WWW-Authenticate"] = "Bearer"
        return response


async def _livez(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def _readyz(ready: Callable[[], str], states: Callable[[], Mapping[str, str]]) -> _Handler:
    async def readyz(_: web.Request) -> web.Response:
        reason = ready()
        lines = [f"{name}: {fault or 'ok'}\n" for name, fault in states().items()]
        return web.Response(text="".join([f"{reason or 'ok'}\n", *lines]), status=503 if reason else 200)

    return readyz


def _healthz(ready: Callable[[], str]) -> _Handler:
    async def healthz(_: web.Request) -> web.Response:
        reason = ready()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    return healthz


def _acceld_health(ready: Callable[[], str]) -> _Handler:
    async def health(_: web.Request) -> web.Response:
        reason = ready()
        if reason:
            return json_response(answers.http_error(answers.UNHEALTHY, reason), status=500)
        return web.Response(text="Ok")

    return health


def _send_json(value: object) -> _Handler:
    body = encode(value)

    async def send(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    return send


def _metrics(metrics_text: Callable[[], bytes]) -> _Handler:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics_text(), headers={"Content-Type": METRICS_TYPE})

    return metrics


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in _SECURITY.items():
        response.headers[name] = value
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Server"] = "nydus-service"


def _bound_unread(unread_s: float) -> Any:
    """Have the kernel close connections whose client does not receive what it was sent, tcp(7)."""

    @web.middleware
    async def bound(request: web.Request, handler: _Handler) -> web.StreamResponse:
        connection = request.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):  # the client is gone already
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unread_s * 1000))
        return await handler(request)

    return bound


@web.middleware
async def _name_job(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Give the log lines of a request the job in its path."""
    with log_context(**job_field(request.match_info.get("id", ""))):
        return await handler(request)


@web.middleware
async def _answer_errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Answer all errors as JSON. An unexpected error is logged and its text is kept from the client."""
    try:
        return await handler(request)
    except web.HTTPException as exc:
        return _of_http(exc)
    except NydusServiceError as exc:
        status = answers.http_status(type(exc))
        _log.log(
            logging.WARNING if status >= 500 else logging.INFO,
            "%s %s of %s: %d %s",
            request.method,
            request.path,
            request.remote,
            status,
            exc,
        )
        response = json_response(answers.error_answer(exc), status=status)
        if status == 503:
            response.headers["Retry-After"] = "5"
        return response
    except Exception as exc:
        if isinstance(exc, ConnectionError | TimeoutError) and is_gone(request):
            return web.Response(status=_CLIENT_GONE)
        _log.exception("%s %s failed", request.method, request.path)
        return _refuse(500)


def _of_http(exc: web.HTTPException) -> web.Response:
    response = _refuse(exc.status, exc.reason)
    if "Allow" in exc.headers:
        response.headers["Allow"] = exc.headers["Allow"]
    if exc.status in (408, 413):
        response.force_close()  # the rest of the body is not waited for
    return response


def _refuse(status: int, reason: str = "") -> web.Response:
    """Answer an error of HTTP itself; `reason` is the phrase of a status that has no answer of its own."""
    code, message = answers.HTTP_REFUSALS.get(status, (reason.lower().replace(" ", "_"), reason))
    return json_response(answers.http_error(code, message), status=status)
