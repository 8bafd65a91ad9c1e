"""Clients of a real daemon that connect and say nothing, read nothing, or go away; and its own files."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from nydus_service.api.client import ApiClient, open_client
from nydus_service.api.v1 import converter_pb2 as pb
from nydus_service.api.v1.converter_pb2_grpc import ConverterStub
from nydus_service.jobs.job import JobState
from tests.compat.serving import CONVERSIONS, TOKEN, http, metrics, url_of, with_http
from tests.compat.test_serve import write_images
from tests.contract.apiserver import make_certificates
from tests.serving import NOWHERE, QUIET, Service, serving
from tests.unit.cli.command import ARGV, environment

FILES = 256
WAIT_S = 60


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have as many open files as it may."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def until(is_so: Callable[[], Any], service: Service) -> Any:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        assert service.is_running(), service.log
        if value := is_so():
            return value
        time.sleep(0.05)
    raise AssertionError(service.log)


def http_address(service: Service) -> tuple[str, int]:
    host, _, port = url_of(service).removeprefix("http://").rpartition(":")
    return host, int(port)


def connect_unix(service: Service) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(service.socket))
    return client


async def submit_all(client: ApiClient, sources: list[str], target: str = "n") -> list[str]:
    return [(await client.submit(each, f"{each}-{target}")).job.id for each in sources]


async def ended(client: ApiClient, job_id: str) -> Any:
    async with contextlib.aclosing(client.watch(job_id)) as jobs:
        async for job in jobs:
            if job.is_finished:
                return job
    raise AssertionError(f"the watch of {job_id} ended")


async def first_failure(client: ApiClient, job_id: str) -> Any:
    async with contextlib.aclosing(client.watch(job_id)) as jobs:
        async for job in jobs:
            if job.error:
                return job
    raise AssertionError(f"the watch of {job_id} ended")


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("many_files")
async def test_connections_without_a_token_take_nothing_from_jobs(place: Path) -> None:
    sources = write_images(place / "layout", 4)
    limits = ("sh", "-c", f'ulimit -Sn {FILES // 2} && ulimit -Hn {FILES} && exec "$@"', "sh")
    with serving(place, NOWHERE, config=QUIET, wrapper=limits, **with_http(place)) as service:
        soft = next(each for each in limits_of(service) if each.startswith("Max open files")).split()[3]
        assert int(soft) == FILES, "the daemon raises its limit"
        _, before = service.counts()
        with contextlib.ExitStack() as opened:
            for _ in range(2000):
                opened.enter_context(socket.create_connection(http_address(service)))
            async with open_client(service.socket) as client:
                jobs = [await ended(client, each) for each in await submit_all(client, sources)]
            for _ in range(300):
                opened.enter_context(connect_unix(service))
            assert service.counts()[1] < FILES // 2
            assert http(service, "/livez")[0] == 200
            assert http(service, CONVERSIONS)[0] == 200
            series = metrics(service)
            assert series["process_open_fds"] < series["process_max_fds"] / 2
        assert [(job.state, job.attempts) for job in jobs] == [(JobState.DONE, 1)] * len(jobs)
        until(lambda: service.run("jobs", "list").returncode == 0, service)
        until(lambda: service.counts()[1] <= before + 4, service)
        assert service.problems == []
        assert service.stop() == 0


def limits_of(service: Service) -> list[str]:
    return Path(f"/proc/{service.pid}/limits").read_text().splitlines()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_connection_that_says_nothing_is_closed(place: Path) -> None:
    """On the Unix socket, where gRPC closes it after the time for its handshake."""
    with serving(place, NOWHERE, config=QUIET) as service:
        with connect_unix(service) as client:
            client.settimeout(WAIT_S)
            while client.recv(1 << 16):
                pass
        assert service.problems == []
        assert service.stop() == 0


@pytest.mark.timeout(300)
async def test_jobs_and_connections_go_on_when_files_are_free_again(place: Path) -> None:
    (source,) = write_images(place / "layout", 1)
    with serving(place, NOWHERE, config=QUIET, **with_http(place)) as service:
        async with open_client(service.socket) as client:
            await client.list()
            _, most = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (service.counts()[1] + 1, most))
            with socket.create_connection(http_address(service)) as waiting:
                waiting.sendall(b"GET /livez HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
                job = (await client.submit(source, f"{source}-n")).job
                job = await first_failure(client, job.id)
                assert (job.state, job.error.code, job.error.retryable) == (
                    JobState.QUEUED,
                    "exhausted",
                    True,
                )
                resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (most, most))
                await client.retry(job.id)
                assert (await ended(client, job.id)).state is JobState.DONE
                waiting.settimeout(WAIT_S)
                assert waiting.recv(100).startswith(b"HTTP/1.1 200 ")
        assert service.stop() == 0


def test_a_stall_of_the_loop_is_measured(place: Path) -> None:
    """With a daemon that is stopped for a while, so that its loop does not turn."""
    with serving(place, NOWHERE, config=QUIET, **with_http(place)) as service:
        until(lambda: metrics(service)["event_loop_lag_seconds_count"], service)
        service.signal(signal.SIGSTOP)
        time.sleep(2.0)
        service.signal(signal.SIGCONT)

        def late() -> float:
            series = metrics(service)
            return series["event_loop_lag_seconds_count"] - series["event_loop_lag_seconds_bucket 1.0"]

        assert until(late, service) >= 1
        assert service.stop() == 0


@pytest.mark.timeout(300)
async def test_watchers_that_read_nothing_or_go_leave_no_traceback(place: Path) -> None:
    sources = write_images(place / "layout", 6)
    head = f"GET {CONVERSIONS}/events HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    with serving(place, NOWHERE, config=QUIET, **with_http(place)) as service:
        with contextlib.ExitStack() as opened:
            pages = [opened.enter_context(socket.create_connection(http_address(service))) for _ in range(20)]
            for page in pages:
                page.sendall(head.encode())
                assert page.recv(1000)
            options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
            channels = [grpc.aio.insecure_channel(f"unix:{service.socket}", options) for _ in range(4)]
            calls = [ConverterStub(each).Watch(pb.WatchRequest()) for each in channels for _ in range(5)]
            async with open_client(service.socket) as client:
                first = await submit_all(client, sources[:3])
                for call in calls:
                    await call.read()
                for page in pages[:10]:  # with unread data, which resets the connection
                    page.close()
                for call in calls[:10]:
                    call.cancel()
                for channel in channels[2:3]:
                    await channel.close()
                last = await submit_all(client, sources[3:])
                jobs = [await ended(client, each) for each in (*first, *last)]
            for channel in channels:
                await channel.close()
        assert {job.state for job in jobs} == {JobState.DONE}
        until(lambda: http(service, "/livez")[0] == 200, service)
        assert service.problems == []
        assert service.stop() == 0
    assert "Traceback" not in service.log


def test_the_core_of_grpc_writes_into_neither_log_nor_terminal(place: Path) -> None:
    """Its notices are about the other side: a client without TLS, a server that ends."""
    made = make_certificates(place / "tls", "server")
    files = {
        "certificate": made.certificate("server"),
        "key": made.key("server"),
        "client_ca": made.certificate("ca"),
    }
    config = f"{QUIET}[grpc]\naddress = '127.0.0.1:0'\n" + "".join(
        f"{key} = '{path}'\n" for key, path in files.items()
    )
    with serving(place, NOWHERE, config=config) as service:
        said = until(lambda: [each for each in service.records if " and port " in each["message"]], service)
        port = int(said[0]["message"].rpartition(" ")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            client.settimeout(WAIT_S)
            with contextlib.suppress(ConnectionError):
                while client.recv(1 << 16):
                    pass
        words = [*ARGV, "jobs", "watch", "--format", "json"]
        env = environment(NYDUS_SERVICE_SOCKET=str(service.socket))
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        ) as watch:
            time.sleep(1)
            assert service.stop() == 0
            watch.send_signal(signal.SIGINT)
            _, stderr = watch.communicate(timeout=WAIT_S)
        assert ".cc:" not in stderr
    assert all(json.loads(line) for line in service.log.splitlines())


async def test_log_lines_of_the_api_carry_the_job(place: Path) -> None:
    sources = write_images(place / "layout", 2)
    config = f"{QUIET}[jobs]\nmin_free_space = '100TiB'\n"
    with serving(place, NOWHERE, config=config, **with_http(place)) as service:
        async with open_client(service.socket) as client:
            (by_grpc,) = await submit_all(client, sources[:1])
            await client.submit(sources[0], f"{sources[0]}-n")
            await client.cancel(by_grpc)
            await client.retry(by_grpc)
        for action in ("cancel", "retry"):
            assert http(service, f"{CONVERSIONS}/{by_grpc}/{action}", method="POST")[0] < 300
        assert http(service, f"{CONVERSIONS}/{'0' * 32}/cancel", method="POST")[0] == 404
        assert service.stop() == 0
    said = [
        (each["message"].rpartition("127.0.0.1")[2].strip() or each["message"], each.get("job"))
        for each in service.records
        if each["logger"] == "nydus_service.api" and "job" in each
    ]
    assert said[:6] == [
        ("accepted", by_grpc),
        ("joined", by_grpc),
        ("a client cancels the job", by_grpc),
        ("a client retries the job", by_grpc),
        ("cancels the job", by_grpc),
        ("retries the job", by_grpc),
    ]
    assert said[6][1] == "0" * 32


def test_doctor_says_that_a_reload_failed(place: Path) -> None:
    with serving(place, NOWHERE, config=QUIET) as service:

        def settings() -> list[str]:
            done = service.run("doctor", "--address", str(NOWHERE), "--format", "json")
            findings = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
            assert findings["daemon"]["status"] == "ok"
            return [each["status"] for name, each in findings.items() if name == "daemon's settings"]

        assert settings() == []
        (place / "config.toml").write_text("version = 1\n[triggers]\nnamespaces = ['a b']\n")
        service.signal(signal.SIGHUP)
        until(lambda: "stays as it was" in service.log, service)
        assert settings() == ["warning"]
        (place / "config.toml").write_text(QUIET)
        service.signal(signal.SIGHUP)
        until(lambda: "are reloaded" in service.log, service)
        assert settings() == []
        assert service.stop() == 0
    done = service.run("doctor", "--address", str(NOWHERE), "--format", "json")
    (daemon,) = (each for each in json.loads(done.stdout)["findings"] if each["name"] == "daemon")
    assert daemon["status"] == "missing"
    assert os.fspath(service.socket) in daemon["detail"]
