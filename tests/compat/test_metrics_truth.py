"""Each metric is what is really so: with jobs that wait, after a kill, a cancel, under load, at rest."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from nydus_service.api.client import open_client
from tests.compat.serving import metrics, with_http
from tests.compat.test_serve import write_images
from tests.serving import NOWHERE, Service, serving

STATES = ("queued", "running", "verifying")


def config(min_free_space: str) -> str:
    return (
        f"version = 1\n[jobs]\nmin_free_space = '{min_free_space}'\nrunning = 2\nbuilders = 2\nqueue = 77\n"
        "[triggers]\nlabels = false\nevents = false\n"
    )


def submit_all(service: Service, pairs: list[tuple[str, str]], **options: Any) -> list[str]:
    async def submit() -> list[str]:
        async with open_client(service.socket) as client:
            return [(await client.submit(source, target, options=options)).job.id for source, target in pairs]

    return anyio.run(submit)


def states(service: Service) -> Counter[str]:
    return Counter(job["state"] for job in service.jobs("list", "--limit", "1000"))


def steady(service: Service) -> tuple[dict[str, float], Counter[str]]:
    """The metrics, and the states of the jobs, which are the same before and after."""
    while True:
        before = states(service)
        reported = metrics(service)
        if before == states(service):
            return reported, before


def assert_gauges_are_true(service: Service) -> None:
    reported, real = steady(service)
    assert {state: reported[f"jobs {state}"] for state in STATES} == {state: real[state] for state in STATES}
    assert reported["queue_depth"] == real["queued"]
    assert reported["builders_running"] <= reported["builders_limit"] == 2
    assert reported["verifiers_running"] <= 2
    assert reported["queue_limit"] == 77


def until_ended(service: Service) -> None:
    while any(states(service)[state] for state in STATES):
        assert service.is_running(), service.log
        time.sleep(0.1)


def counts(reported: dict[str, float], name: str) -> dict[str, float]:
    """The series of a metric that are not zero, by their label."""
    return {
        key.removeprefix(name).strip(): value
        for key, value in reported.items()
        if value and key.partition(" ")[0] == name
    }


@pytest.mark.long
@pytest.mark.timeout(300)
def test_each_metric(place: Path) -> None:
    sources = write_images(place / "layout", 8, size=20_000)
    pairs = [(source, f"{source}-n") for source in sources]
    settings = with_http(place)
    with serving(place, NOWHERE, config=config("100TiB"), **settings) as service:
        ids = submit_all(service, pairs)
        assert_gauges_are_true(service)
        reported = metrics(service)
        assert (reported["jobs queued"], reported["dependency_up space"]) == (8, 0)
        assert counts(reported, "trigger_requests_total") == {"grpc": 8}

        service.kill()
        service.start()
        assert_gauges_are_true(service)
        reported = metrics(service)
        assert reported["jobs queued"] == 8
        assert counts(reported, "trigger_requests_total") == {}, "counted from the start of the process"

        service.jobs("cancel", *ids[:2])
        assert_gauges_are_true(service)
        reported = metrics(service)
        assert reported["jobs queued"] == 6
        assert counts(reported, "job_duration_seconds_count") == {"cancelled": 2}

        assert service.stop() == 0
        service.config = config("1MiB")
        service.start()
        while any(states(service)[state] for state in STATES):
            assert_gauges_are_true(service)
        assert_the_work_is_counted(service, ids[2:])

        submit_all(service, pairs[2:3])
        until_ended(service)
        reported = metrics(service)
        assert counts(reported, "job_duration_seconds_count") == {"done": 6, "unchanged": 1}
        assert counts(reported, "cache_hits_total") == {"result": 1}
        assert counts(reported, "trigger_requests_total") == {"grpc": 1}

        missing = f"oci:{place}/layout:no-such-image"
        submit_all(service, [(missing, f"{missing}-n")])
        until_ended(service)
        reported = metrics(service)
        assert counts(reported, "job_duration_seconds_count") == {"done": 6, "unchanged": 1, "failed": 1}
        assert_at_rest(service)
        assert service.stop() == 0


def assert_the_work_is_counted(service: Service, ids: list[str]) -> None:
    """Bytes and stages are those of the jobs' results."""
    reported = metrics(service)
    jobs = [service.jobs("show", job) for job in ids]
    images = [image for job in jobs for image in job["result"]["images"]]
    layers = [layer for image in images for layer in image["layers"]]
    assert counts(reported, "job_duration_seconds_count") == {"done": len(jobs)}
    assert counts(reported, "bytes_total") == {
        "in": sum(layer["source"]["size"] for layer in layers),
        "out": sum(layer["blob"]["size"] for layer in layers),
    }
    stages = {"pack": len(layers), "merge": len(images), "verify": len(images)}
    assert counts(reported, "stage_duration_seconds_count") == stages
    assert counts(reported, "retries_total") == {}
    assert reported["verification_failures_total"] == 0
    assert reported["event_stream_restarts_total"] == 0


def assert_at_rest(service: Service) -> None:
    reported = metrics(service)
    assert {reported[name] for name in ("builders_running", "verifiers_running", "queue_depth")} == {0}
    assert service.children() == set()
    assert reported["builder_peak_memory_bytes"] > 1 << 20
    assert counts(reported, "dependency_up") == {"space": 1, "journal": 1}
    assert abs(reported["process_open_fds"] - len(os.listdir(f"/proc/{service.pid}/fd"))) <= 3
    assert abs(reported["process_resident_memory_bytes"] / (1 << 20) - service.memory_mb()) < 20
