"""An HTTP server over a job_service in memory, and a client that checks its answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from nydus_service.api.bounds import CONNECTIONS_MAX
from nydus_service.api.http.server import HttpServer, Timeouts, open_http_server
from nydus_service.config.sections import HttpSection
from nydus_service.jobs.service import JobService
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from nydus_service.triggers.rules import RuleBook
from tests.unit.api.openapi import checking

TOKEN = "0123456789abcdef-token"
METRICS = b"# TYPE nydus_jobs gauge\nnydus_jobs 3\n"
CONVERSIONS = "/api/v1/conversions"


@dataclass(slots=True)
class Served:
    """A server that runs. `unready` is what its health tells."""

    server: HttpServer
    client: aiohttp.ClientSession
    token_file: Path
    unready: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.server.addresses[0]}"

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Status and JSON of a request with the token."""
        async with self.client.request(method, path, **options) as response:
            return response.status, await response.json()


@asynccontextmanager
async def served(
    job_service: JobService,
    folder: Path,
    *,
    address: str = "127.0.0.1:0",
    allowed_sources: tuple[str, ...] = (),
    max_body: int = 1 << 20,
    allowed_targets: tuple[str, ...] = ("*",),
    rules: RuleBook | None = None,
    timeouts: Timeouts | None = None,
    connections: int = CONNECTIONS_MAX,
) -> AsyncIterator[Served]:
    token_file = folder / "token"
    token_file.write_text(f"{TOKEN}\n")
    token_file.chmod(0o400)
    unready: list[str] = []
    async with open_http_server(
        job_service,
        HttpSection(
            address, token_file, allowed_sources, max_body, allowed_targets, namespaces=("default", "k8s.io")
        ),
        metrics_text=lambda: METRICS,
        ready=lambda: unready[0] if unready else "",
        states=lambda: {"containerd": unready[0] if unready else "", "journal": ""},
        defaults=ConvertOptions(build=BuildOptions(compressor="lz4_block"), jobs=1),
        match_rule=(rules or RuleBook()).match,
        timeouts=timeouts or Timeouts(),
        connections=connections,
    ) as server:
        url = f"http://{server.addresses[0]}"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with aiohttp.ClientSession(url, headers=headers, trace_configs=[checking()]) as client:
            yield Served(server, client, token_file, unready)
