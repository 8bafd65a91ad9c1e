"""Outages of what the daemon depends on, with real processes and disks: what it says, how jobs end."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nydus_service.jobs.job import JobError
from nydus_service.jobs.journal import open_journal
from nydus_service.jobs.record import pack
from nydus_service.jobs.transitions import failed
from tests.compat.serving import http, metrics, with_http
from tests.compat.test_serve import import_all, wait_for_answers, write_images
from tests.containerd import Daemon, new_namespace, running_daemon
from tests.serving import NO_TRIGGERS, NOWHERE, Service, serving
from tests.unit.jobs.disks import fill

CONVERTER = "nydus_service.v1.Converter"
SMALL = "version = 1\n[jobs]\nmin_free_space = '1MiB'\nrunning = 2\nbuilders = 2\n"

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture
def own(place: Path) -> Iterator[Daemon]:
    """A containerd for one test, which may stop it."""
    (place / "c").mkdir()
    with running_daemon("1.6", place / "c") as daemon:
        try:
            yield daemon
        finally:
            daemon.process.send_signal(signal.SIGCONT)


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[None]:
    """A tmpfs at a new directory."""
    directory.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def serves(service: Service, name: str) -> bool:
    """What gRPC's health check says of a service."""
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix:{service.socket}", options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def until(condition: Callable[[], bool], service: Service) -> None:
    while not condition():
        assert service.is_running(), service.log
        time.sleep(0.1)


def assert_all_say(service: Service, lacking: set[str]) -> None:
    """gRPC, HTTP, metrics and the list of jobs agree on what is lacking."""
    ready = not lacking
    assert [serves(service, name) for name in ("liveness", "", CONVERTER)] == [True, ready, ready]
    states = {name: name not in lacking for name in ("containerd", "containerd-space", "space", "journal")}
    assert {name: serves(service, name) for name in states} == states
    assert http(service, "/livez") == (200, "ok\n")
    status = 200 if ready else 503
    assert http(service, "/healthz")[0] == status
    assert http(service, "/api/v1/health")[0] == (200 if ready else 500)
    code, text = http(service, "/readyz")
    assert code == status
    lines = dict(line.split(": ", 1) for line in text.splitlines()[1:])
    assert {name: fault == "ok" for name, fault in lines.items()} == states
    told = metrics(service)
    assert {name: told[f"dependency_up {name}"] == 1 for name in states} == states
    head = service.run("jobs", "list").stdout.splitlines()
    assert len([line for line in head if line.startswith("not ready ")]) == len(lacking)


# Health.


def test_health_tells_the_truth(place: Path, own: Daemon) -> None:
    """containerd stopped, going on, killed, and back with another root."""
    namespace = new_namespace()
    write_images(place / "layout", 1)
    (name,) = import_all(own, namespace, place / "layout")
    with serving(place, own.address, config=SMALL, **with_http(place)) as service:
        until(lambda: serves(service, ""), service)
        assert_all_say(service, set())

        own.process.send_signal(signal.SIGSTOP)
        until(lambda: not serves(service, ""), service)
        assert_all_say(service, {"containerd"})
        job = submit(service, name, f"{name}-stopped", namespace)
        assert stage_of(service, job) == "waiting for containerd"
        assert service.jobs("show", job)["attempts"] == 0

        own.process.send_signal(signal.SIGCONT)
        until(lambda: serves(service, ""), service)
        assert_all_say(service, set())
        until(lambda: state_of(service, job) == "done", service)

        own.kill()
        until(lambda: not serves(service, ""), service)
        assert_all_say(service, {"containerd"})

        (own.work / "root").rename(own.work / "old-root")
        own.start()
        import_all(own, namespace, place / "layout")
        own.ctr(namespace, "images", "label", name, f"nydus-service/convert={name}-nydus")
        wait_for_answers(service, own, namespace, [name])
        assert_all_say(service, set())
        assert service.stop() == 0


def test_a_daemon_without_containerd(place: Path) -> None:
    """One that converts layouts only is ready, and not once somebody asks it for an image in containerd."""
    (source,) = write_images(place / "layout", 1)
    with serving(place, NOWHERE, config=SMALL + NO_TRIGGERS, **with_http(place)) as service:
        assert serves(service, "")
        assert http(service, "/healthz") == (200, "ok\n")
        waiting = submit(service, "docker.io/library/a:1", "docker.io/library/a:2", "default")
        until(lambda: not serves(service, ""), service)
        assert not serves(service, "containerd")
        assert http(service, "/healthz")[0] == 503
        assert stage_of(service, waiting) == "waiting for containerd"
        done = service.run("convert", "--remote", source, f"oci:{place}/layout:n", "-q")
        assert (done.returncode, done.stderr) == (0, "")
        assert service.stop() == 0


# Jobs.


def submit(service: Service, source: str, target: str, namespace: str) -> str:
    """Submit a job, without waiting for it. Returns its id."""
    import anyio

    from nydus_service.api.client import open_client

    async def ask() -> str:
        async with open_client(service.socket) as client:
            return (await client.submit(source, target, namespace=namespace)).job.id

    return anyio.run(ask)


def stage_of(service: Service, job: str) -> str:
    return str(service.jobs("show", job)["progress"]["stage"])


def state_of(service: Service, job: str) -> str:
    return str(service.jobs("show", job)["state"])


def test_an_outage_uses_up_no_tries(place: Path, own: Daemon) -> None:
    """containerd dies while 40 labelled images wait, stays away, is stopped for a while, and comes back."""
    namespace = new_namespace()
    write_images(place / "layout", 1)
    (first,) = import_all(own, namespace, place / "layout")
    names = [f"example.com/c:{number}" for number in range(40)]
    for name in names:
        own.ctr(namespace, "images", "tag", first, name)
        words = (f"nydus-service/convert={name}-n", "nydus-service/convert.options=force")
        own.ctr(namespace, "images", "label", name, *words)
    with serving(place, own.address, config=SMALL) as service:
        until(lambda: any(job["state"] == "done" for job in listed(service)), service)
        own.kill()
        until(lambda: all(waits_for_containerd(job) for job in unfinished(service)), service)
        assert len(unfinished(service)) >= 30
        tries = {job["id"]: job["attempts"] for job in listed(service)}
        time.sleep(12)  # longer than the pauses between three tries
        assert {job["id"]: job["attempts"] for job in listed(service)} == tries
        assert {job["state"] for job in listed(service)} == {"done", "queued"}
        own.start()
        own.process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        own.process.send_signal(signal.SIGCONT)
        wait_for_answers(service, own, namespace, names)
        jobs = listed(service)
        assert {(job["state"], job["retries"]) for job in jobs} == {("done", 0)}
        assert service.stop() == 0
        service.assert_nothing_left()
    assert own.lines(namespace, "leases", "ls", "-q") == []


def listed(service: Service) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = service.jobs("list", "--limit", "1000")
    return jobs


def unfinished(service: Service) -> list[dict[str, Any]]:
    return [job for job in listed(service) if job["finished_at"] is None]


def waits_for_containerd(job: dict[str, Any]) -> bool:
    return bool(job["state"] == "queued" and job["progress"]["stage"] == "waiting for containerd")


def test_a_full_disk_of_containerd(place: Path) -> None:
    """It fills up while jobs run, and again has room later."""
    work = place / "c"
    work.mkdir()
    with small_disk(work / "root", "64m"), running_daemon("1.6", work) as daemon:
        namespace = new_namespace()
        write_images(place / "layout", 6, size=3_000_000)
        names = import_all(daemon, namespace, place / "layout")
        filler = fill(work / "root")
        for name in names:
            # A label needs a page of the database, which has free ones.
            daemon.ctr(namespace, "images", "label", name, f"nydus-service/convert={name}-n")
        with serving(place, daemon.address, config=SMALL, **with_http(place)) as service:
            until(lambda: not serves(service, "containerd-space"), service)
            assert_all_say(service, {"containerd-space"})
            until(lambda: len(unfinished(service)) == len(names), service)
            assert {job["progress"]["stage"] for job in listed(service)} == {
                "waiting for space in containerd"
            }
            filler.unlink()
            wait_for_answers(service, daemon, namespace, names)
            assert {(job["state"], job["retries"]) for job in listed(service)} == {("done", 0)}
            assert_all_say(service, set())
            assert service.stop() == 0
            service.assert_nothing_left()
        assert daemon.lines(namespace, "leases", "ls", "-q") == []


def test_a_full_disk_of_work_directories(place: Path) -> None:
    sources = write_images(place / "layout", 3)
    with small_disk(place / "work", "128m"):
        filler = fill(place / "work")
        with serving(place, NOWHERE, config=SMALL + NO_TRIGGERS) as service:
            jobs = [submit(service, source, f"{source}-n", "") for source in sources]
            assert {stage_of(service, job) for job in jobs} == {"waiting for space"}
            assert not serves(service, "space")
            filler.unlink()
            until(lambda: not unfinished(service), service)
            assert {(job["state"], job["retries"]) for job in listed(service)} == {("done", 0)}
            assert serves(service, "space")
            assert service.stop() == 0


def test_a_full_disk_of_the_journal(place: Path) -> None:
    (source,) = write_images(place / "layout", 1)
    with small_disk(place / "state", "4m"):
        config = SMALL + NO_TRIGGERS
        with serving(place, NOWHERE, config=config, **with_http(place)) as service:
            assert serves(service, "journal")
            filler = fill(place / "state")
            until(lambda: not serves(service, "journal"), service)
            assert not serves(service, "")
            assert "journal: the journal" in http(service, "/readyz")[1]
            filler.unlink()
            until(lambda: serves(service, "journal"), service)
            done = service.run("convert", "--remote", source, f"oci:{place}/layout:n", "-q")
            assert (done.returncode, done.stderr) == (0, "")
            assert service.stop() == 0


async def test_many_are_retried_at_once(place: Path) -> None:
    """As after an outage under an older version, which failed them."""
    from nydus_service.jobs.job import JobRequest
    from nydus_service.options.convert import ConvertOptions
    from tests.unit.jobs.runner import Script, open_queue

    sources = write_images(place / "layout", 6)
    codes = ["unreachable"] * 4 + ["corrupt_input"] * 2
    (place / "state").mkdir()
    journal = place / "state" / "jobs.sqlite"
    async with open_queue(journal, Script()) as queue:
        for source in sources:
            request = JobRequest(source=source, target=f"{source}-n", namespace="", options=ConvertOptions())
            await queue.submit(request, origin="cli")
        jobs = queue.list()
    async with open_journal(journal) as opened:
        for job, code in zip(jobs, codes, strict=True):
            error = JobError(code=code, message="away", retryable=code == "unreachable")
            opened.save(pack(failed(job, time.time(), error)))
    with serving(place, NOWHERE, config=SMALL + NO_TRIGGERS) as service:
        retried = service.jobs("retry", "--state", "failed", "--code", "unreachable")
        assert len(retried) == 4
        until(lambda: not unfinished(service), service)
        states = [(job["state"], (job["error"] or {}).get("code")) for job in listed(service)]
        assert sorted(states, key=str) == [("done", None)] * 4 + [("failed", "corrupt_input")] * 2
        assert service.run("jobs", "retry").returncode == 2
        assert service.run("jobs", "retry", "--code", "unreachable", "0000").returncode == 2
        assert service.jobs("retry", "--code", "no_such_code") == []
        assert service.stop() == 0
