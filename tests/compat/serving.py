"""What tests ask a daemon by HTTP."""

import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

from nydus_service.api.client import open_client
from nydus_service.jobs.job import Job
from tests.serving import Service

CONVERSIONS = "/api/v1/conversions"
TOKEN = "a-token-that-nobody-guesses"


def with_http(place: Path) -> dict[str, Any]:
    """Settings of a service with HTTP."""
    token = place / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    return {"options": ("--http", "127.0.0.1:0", "--http-token-file", str(token))}


def url_of(service: Service) -> str:
    """The address of the HTTP server."""
    *_, line = (record["message"] for record in service.records if record["message"].startswith("HTTP on "))
    return f"http://{line.removeprefix('HTTP on ')}"


async def finished(service: Service, source: str, target: str) -> Job:
    """Submit a request, and wait for the end of its job."""
    async with open_client(service.socket) as client:
        submitted = await client.submit(source, target)
        *_, job = [each async for each in client.watch(submitted.job.id)]
    return job


def http(
    service: Service, path: str, body: dict[str, Any] | None = None, *, method: str | None = None
) -> tuple[int, str]:
    """The status and the text of an answer. A body is posted."""
    try:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        request = Request(url_of(service) + path, data, headers, method=method)
        with urlopen(request, timeout=90) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as exc:
        return exc.code, exc.read().decode()


def metrics(service: Service) -> dict[str, float]:
    """Samples of this program by name and labels."""
    families = text_string_to_metric_families(http(service, "/metrics")[1])
    samples = [sample for family in families for sample in family.samples]
    return {
        " ".join([sample.name.removeprefix("nydus_service_"), *sample.labels.values()]): sample.value
        for sample in samples
    }
