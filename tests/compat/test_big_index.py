"""An index with many entries: the processes of the daemon have a bound, and it answers meanwhile."""

import json
from hashlib import sha256
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nydus_service.api.client import open_client
from nydus_service.jobs.job import JobState
from tests.compat.images import CONFIG, LAYER, MANIFEST, write_blob
from tests.layers import file, layer
from tests.serving import NOWHERE, Service, serving

INDEX = "application/vnd.oci.image.index.v1+json"
BUILDERS = 2
HEALTH_S = 30
"""The watchdog ends a daemon whose loop stands still for this long."""


def write_index(layout: Path, entries: int, *, distinct: bool) -> str:
    """An index in a layout. Its manifests are all different, or all the same. Returns a reference to it."""
    (layout / "blobs" / "sha256").mkdir(parents=True)
    manifests = []
    for number in range(entries):
        tar = layer(file("f", str(number if distinct else 0).encode()))
        config = {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(tar).hexdigest()}"]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": write_blob(layout, CONFIG, json.dumps(config).encode()),
            "layers": [write_blob(layout, LAYER, tar)],
        }
        entry = write_blob(layout, MANIFEST, json.dumps(manifest).encode())
        manifests.append(entry | {"platform": {"os": "linux", "architecture": f"a{number}"}})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
    root = write_blob(layout, INDEX, json.dumps(index).encode())
    root["annotations"] = {"org.opencontainers.image.ref.name": "x"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [root]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{layout}:x"


@pytest.mark.long
async def test_all_that_are_allowed(place: Path) -> None:
    """At no moment there are more children than builders, verifiers, and the fork server."""
    source = write_index(place / "layout", 40, distinct=True)
    config = f"version = 1\n[jobs]\nbuilders = {BUILDERS}\n[triggers]\nlabels = false\nevents = false\n"
    with serving(place, NOWHERE, config=config) as service:
        async with open_client(service.socket) as client:
            job = (await client.submit(source, f"oci:{place}/out:x")).job
            most = 0
            while not (job := await client.get(job.id)).is_finished:
                most = max(most, len(service.children()))
                await answer_of_health(service)
        assert job.state is JobState.DONE, job.error
        assert 2 <= most <= 2 * BUILDERS + 1
        assert service.stop() == 0
        service.assert_nothing_left()


@pytest.mark.parametrize("distinct", [True, False])
async def test_more_than_allowed(place: Path, distinct: bool) -> None:
    """Refused before any process is started, whether the manifests differ or not."""
    source = write_index(place / "layout", 300, distinct=distinct)
    with serving(place, NOWHERE) as service:
        before = service.children()
        done = service.run("convert", "--remote", source, f"oci:{place}/out:x", "-q")
        assert done.returncode == 5
        assert "300 manifests" in done.stderr
        (job,) = service.jobs("list")
        assert job["error"]["code"] == "too_many_manifests"
        assert job["error"]["retryable"] is False
        assert job["attempts"] == 1
        assert service.children() == before
        assert not (place / "out").exists()
        assert service.stop() == 0


async def test_as_many_as_the_configuration_says(place: Path) -> None:
    source = write_index(place / "layout", 300, distinct=False)
    config = "version = 1\n[convert]\nmax_manifests = 300\n"
    with serving(place, NOWHERE, config=config) as service:
        done = service.run("convert", "--remote", source, f"oci:{place}/out:x", "-q")
        assert (done.returncode, done.stderr) == (0, "")
        assert service.stop() == 0


async def answer_of_health(service: Service) -> None:
    """Ask for the daemon's health. Raises: AioRpcError: the loop does not turn."""
    options = [("grpc.default_authority", "localhost")]
    async with grpc.aio.insecure_channel(f"unix:{service.socket}", options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=HEALTH_S)
