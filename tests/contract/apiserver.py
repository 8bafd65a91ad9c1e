"""A gRPC server over jobs in memory, at a real socket, and a runner that answers what a test says."""

import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nydus_service.api.client import ApiClient, open_client
from nydus_service.api.server import ApiServer, ApiSettings, TlsListener, open_api_server
from nydus_service.builder.builder import BuilderIdentity
from nydus_service.convert.progress import Progress
from nydus_service.convert.result import (
    WOULD_CHANGE_NOTHING,
    ConvertResult,
    ImageName,
    KeepStep,
    NamedImage,
    Preview,
)
from nydus_service.errors import UnsupportedError
from nydus_service.imagecheck.result import CheckResult
from nydus_service.jobs.job import Job, JobRequest
from nydus_service.oci.descriptor import Descriptor
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from tests.tools import require_tool
from tests.unit.api.jobservice import MemoryBoard, descriptor

DEFAULTS = ConvertOptions(build=BuildOptions(compressor="lz4_block"), with_referrer=True, jobs=1)
"""Options of the daemon's configuration, other than anybody's own defaults."""


@dataclass
class AnsweringRunner:
    """Implements `jobs.service.Runner`. `failure` is raised instead of an answer."""

    failure: Exception | None = None
    verdict: str = "equal"
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    async def convert(self, job: Job, progress: Progress) -> ConvertResult:
        raise UnsupportedError("jobs of this job_service are moved by the test")

    async def preview(self, request: JobRequest) -> Preview:
        self.asked.append((request,))
        if self.failure:
            raise self.failure
        source = Descriptor(descriptor(1, 1234))
        builder = BuilderIdentity("nydus-image-py", "0.1.0")
        reason = "it is a nydus image"
        return Preview(
            status=WOULD_CHANGE_NOTHING,
            reason=reason,
            source=NamedImage(request.source, source),
            target=ImageName(request.target),
            builder=builder,
            fingerprint="ab" * 32,
            plan=KeepStep(source, reason),
        )

    async def check(
        self, image: str, against: str, namespace: str, *, verify: str, platforms: Sequence[str]
    ) -> CheckResult:
        self.asked.append((image, against, namespace, verify, tuple(platforms)))
        if self.failure:
            raise self.failure
        return CheckResult(
            image=image,
            target=Descriptor(descriptor(1, 1234)),
            against=against or None,
            verdict=self.verdict,
            images=(),
        )

    async def sweep(self) -> None:
        return None


@dataclass
class Served:
    """A server that runs, and what is behind it."""

    server: ApiServer
    job_service: MemoryBoard
    runner: AnsweringRunner
    socket: Path
    client: ApiClient


@asynccontextmanager
async def serving(
    directory: Path,
    *,
    group: str = "",
    tls: TlsListener | None = None,
    job_service: MemoryBoard | None = None,
) -> AsyncIterator[Served]:
    """Serve at `directory`/sock, with a client that is connected to it."""
    job_service, runner, socket = job_service or MemoryBoard(), AnsweringRunner(), directory / "sock"
    settings = ApiSettings(socket, group, tls, DEFAULTS, grace_s=2)
    async with open_api_server(job_service, runner, settings) as server, open_client(socket) as client:
        yield Served(server, job_service, runner, socket, client)


@dataclass(frozen=True)
class Certificates:
    """Files of an authority, and of a server and a client that it vouches for; PEM."""

    directory: Path

    def certificate(self, name: str) -> Path:
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"


def make_certificates(directory: Path, *names: str) -> Certificates:
    """Make an authority "ca", and certificates of these names for the host localhost."""
    require_tool("openssl")
    made = Certificates(directory)
    directory.mkdir()
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
        *("-subj", "/CN=test authority", "-keyout", made.key("ca"), "-out", made.certificate("ca")),
    )
    for name in names:
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-CA", made.certificate("ca"), "-CAkey", made.key("ca"), "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"),
            *("-keyout", made.key(name), "-out", made.certificate(name)),
        )
    return made


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
