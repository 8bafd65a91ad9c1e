"""No secret of a request, a label or a builder's output is in anything that a run writes."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nydus_service.api.client import open_client
from nydus_service.errors import NydusServiceError
from tests.compat.requests import CONVERT, import_image, labels_of, until_answered
from tests.compat.serving import CONVERSIONS, TOKEN, http, with_http
from tests.containerd import Daemon, new_namespace, running_daemon
from tests.serving import Service, serving
from tests.unit.builder.fakes import fake_program

PASSWORD = "hunter2-0123456789"
BEARER = "another-secret-987654321"
SECRETS = (TOKEN, PASSWORD, BEARER)
IMAGE = f"docker://user:{PASSWORD}@registry.example/app:1"
TALKATIVE = f"""
echo "GET https://user:{PASSWORD}@registry.example/v2/ failed" >&2
echo "  Authorization: Bearer {BEARER}" >&2
echo '  {{"auths": {{"registry.example": {{"password": "{PASSWORD}"}}}}, "seen": "{TOKEN}"}}' >&2
exit 7
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="ctrd") as work, running_daemon("1.6", Path(work)) as started:
        yield started


async def grpc_error(service: Service, source: str, target: str) -> str:
    async with open_client(service.socket) as client:
        with pytest.raises(NydusServiceError) as refused:
            await client.submit(source, target)
    return str(refused.value)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_no_secret_is_in_what_a_run_writes(place: Path, daemon: Daemon) -> None:
    namespace = new_namespace()
    good, bad = (import_image(daemon, namespace, name, place) for name in ("good", "bad"))
    settings = with_http(place)
    builder = fake_program(place, TALKATIVE)
    config = f"version = 1\n[builder]\nnydus_image = '{builder}'\n[jobs]\nretries = 0\n"
    options = (*settings["options"], "--log-level", "debug")
    with serving(place, daemon.address, config=config, options=options) as service:
        daemon.ctr(namespace, "images", "label", good, f"{CONVERT}={good}-nydus")
        daemon.ctr(namespace, "images", "label", bad, f"{CONVERT}=x y {IMAGE}")
        assert until_answered(daemon, namespace, good, bad) == ["failed", "failed"]
        answers = labels_of(daemon, namespace, bad)
        del answers[CONVERT]
        (job,) = service.jobs("list")
        said = {
            "labels": json.dumps([labels_of(daemon, namespace, good), answers]),
            "jobs": json.dumps(service.jobs("show", job["id"])),
            "jobs for people": service.run("jobs", "show", job["id"]).stdout,
            "HTTP job": http(service, f"{CONVERSIONS}/{job['id']}")[1],
            "HTTP error": http(service, CONVERSIONS, {"source": f"x y {IMAGE}", "target": "a:1"})[1],
            "HTTP error in the query": http(service, f"{CONVERSIONS}?token={TOKEN}")[1],
            "metrics": http(service, "/metrics")[1],
            "gRPC": await grpc_error(service, f"x y {IMAGE}", "a:1"),
            "command line": service.run("convert", f"x y {IMAGE}", "a:1", "--remote").stderr,
        }
        assert service.stop() == 0
    for what in ("labels", "jobs", "HTTP job", "HTTP error", "gRPC", "command line"):
        assert "[hidden]" in said[what], what
    files = {path.name: path.read_bytes().decode(errors="replace") for path in written(place)}
    assert files.keys() >= {"log", "jobs.sqlite"}
    for secret in SECRETS:
        assert [what for what, text in {**said, **files}.items() if secret in text] == []


def written(place: Path) -> list[Path]:
    """The files that the daemon has written."""
    given = ("token", "fake-builder")
    return [path for path in place.rglob("*") if path.is_file() and path.name not in given]
