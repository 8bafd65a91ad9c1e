"""The HTTP server, asked as Harbor, acceld's clients, Prometheus and people ask it."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from nydus_service.api.http import answers
from nydus_service.api.http.answers import job_details
from nydus_service.api.http.server import Timeouts, open_http_server
from nydus_service.config.sections import HttpSection
from nydus_service.content.store import ImageNotFound
from nydus_service.errors import (
    FormatError,
    NoSpaceError,
    NydusServiceError,
    UnreachableError,
    UnsupportedError,
    UsageError,
)
from nydus_service.jobs.job import Job, JobError, JobState
from nydus_service.jobs.queue import QueueFull, ShuttingDown
from nydus_service.jobs.retry import describe
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from nydus_service.options.hint import ExistingHint
from nydus_service.triggers.rules import RuleBook
from tests.unit.api.jobservice import MemoryBoard, a_job
from tests.unit.api.serving import CONVERSIONS, METRICS, TOKEN, Served, served

HARBOR = Path(__file__).parents[2] / "samples" / "harbor-push-artifact.json"
REQUEST = {"source": "registry.example.com/app:1", "target": "registry.example.com/app:1-nydus"}
OPEN = ("/", "/app.js", "/style.css", "/livez", "/readyz", "/healthz", "/api/v1/health")
CLOSED = (
    ("GET", "/metrics"),
    ("GET", CONVERSIONS),
    ("POST", CONVERSIONS),
    ("POST", f"{CONVERSIONS}?sync=true"),
    ("GET", f"{CONVERSIONS}/events"),
    ("GET", f"{CONVERSIONS}/{1:032x}"),
    ("GET", f"{CONVERSIONS}/{1:032x}/events"),
    ("POST", f"{CONVERSIONS}/{1:032x}/cancel"),
    ("POST", f"{CONVERSIONS}/{1:032x}/retry"),
    ("DELETE", f"{CONVERSIONS}/{1:032x}"),
    ("GET", "/nothing/here"),
    ("GET", "/index.html"),
    ("GET", "//app.js"),
    ("GET", "/app.js/../metrics"),
    ("GET", "/app.js/%2e%2e/metrics"),
    ("POST", "/"),
    ("POST", "/healthz"),
    ("OPTIONS", CONVERSIONS),
)


# Who is let in.


@pytest.mark.parametrize("header", [None, "Bearer nonsense-0123456789", TOKEN[:-1], "Basic dTpw"])
async def test_every_other_path_demands_the_token(tmp_path: Path, header: str | None) -> None:
    job_service = MemoryBoard(a_job(1, JobState.RUNNING))
    headers = {"Authorization": header} if header else {}
    async with served(job_service, tmp_path) as at, aiohttp.ClientSession() as stranger:
        for method, path in CLOSED:
            async with stranger.request(method, at.url + path, headers=headers, json=REQUEST) as response:
                assert response.status == 401, (method, path)
                assert response.headers["WWW-Authenticate"] == "Bearer"
                answer = await response.json()
                assert answer["code"] == "ERR_UNAUTHORIZED"
    assert job_service.submitted == []
    assert job_service.jobs[f"{1:032x}"].state is JobState.RUNNING


async def test_the_shell_and_health_are_for_anybody(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at, aiohttp.ClientSession() as stranger:
        for path in OPEN:
            async with stranger.get(at.url + path) as response:
                assert response.status == 200, path
            async with stranger.head(at.url + path) as response:
                assert response.status == 200, path


async def test_the_bare_token_is_taken_as_harbor_sends_it(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at, aiohttp.ClientSession() as harbor:
        async with harbor.get(at.url + CONVERSIONS, headers={"Authorization": TOKEN}) as response:
            assert response.status == 200


async def test_a_new_token_replaces_the_old_one(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at:
        at.token_file.unlink()
        at.token_file.write_text("another-token-0123456789")
        at.token_file.chmod(0o400)
        assert (await at.call("GET", CONVERSIONS))[0] == 200
        at.server.reload(HttpSection(), ConvertOptions(), RuleBook().match)
        assert (await at.call("GET", CONVERSIONS))[0] == 401
        fresh = {"Authorization": "Bearer another-token-0123456789"}
        assert (await at.call("GET", CONVERSIONS, headers=fresh))[0] == 200


async def test_the_token_is_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with served(MemoryBoard(), tmp_path) as at:
            await at.call("POST", CONVERSIONS, json=REQUEST)
            await at.call("GET", "/nothing")
    assert TOKEN not in caplog.text


# Headers.


async def test_all_answers_have_the_headers_that_keep_browsers_careful(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at, aiohttp.ClientSession() as stranger:
        for client, path in ((at.client, at.url + "/"), (at.client, CONVERSIONS), (stranger, at.url + "/x")):
            async with client.get(path) as response:
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'self'" in policy
                assert "unsafe" not in policy
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Referrer-Policy"] == "no-referrer"
                assert "aiohttp" not in response.headers["Server"].lower()
                assert "Access-Control-Allow-Origin" not in response.headers


async def test_what_has_data_is_not_stored(tmp_path: Path) -> None:
    async with served(MemoryBoard(a_job()), tmp_path) as at:
        for path in (CONVERSIONS, f"{CONVERSIONS}/{1:032x}", "/metrics", "/api/v1/health"):
            async with at.client.get(path) as response:
                assert response.headers["Cache-Control"] == "no-store", path


async def test_the_shell_is_asked_for_again_but_sent_once(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at:
        async with at.client.get("/app.js") as response:
            assert response.content_type == "text/javascript"
            assert response.headers["Cache-Control"] == "no-cache"
            etag = response.headers["ETag"]
        async with at.client.get("/app.js", headers={"If-None-Match": etag}) as response:
            assert response.status == 304


# acceld's paths.


async def test_a_recorded_webhook_gets_as_far_as_the_registry(tmp_path: Path) -> None:
    job_service = MemoryBoard()
    async with served(job_service, tmp_path) as at:
        status, answer = await at.call(
            "POST",
            f"{CONVERSIONS}?sync=false",
            data=HARBOR.read_bytes(),
            headers={"Content-Type": "application/json", "Authorization": TOKEN},
        )
    assert status == 501
    assert answer["code"] == "ERR_UNSUPPORTED"
    assert answer["error"] == "unsupported"
    assert "docker://harbor.example.com/library/alpine:3.17" in answer["message"]
    assert job_service.submitted == []


async def test_other_events_are_answered_ok(tmp_path: Path) -> None:
    event = json.loads(HARBOR.read_bytes()) | {"type": "PULL_ARTIFACT"}
    async with served(MemoryBoard(), tmp_path) as at:
        assert await at.call("POST", f"{CONVERSIONS}?sync=true", json=event) == (200, "Ok")


async def test_a_source_that_is_not_allowed_is_refused(tmp_path: Path) -> None:
    job_service = MemoryBoard()
    async with served(job_service, tmp_path, allowed_sources=("docker.io/*",)) as at:
        for body in (REQUEST, json.loads(HARBOR.read_bytes())):
            status, answer = await at.call("POST", CONVERSIONS, json=body)
            assert (status, answer["code"]) == (403, "ERR_NOT_ALLOWED")
    assert job_service.submitted == []


async def test_what_may_be_asked_for_is_reloaded(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path, allowed_targets=()) as at:
        status, answer = await at.call("POST", CONVERSIONS, json=REQUEST)
        assert (status, answer["error"]) == (403, "not_allowed")
        settings = HttpSection(allowed_targets=("*-nydus",), namespaces=("k8s.io",))
        at.server.reload(settings, ConvertOptions(), RuleBook().match)
        status, job = await at.call("POST", CONVERSIONS, json=REQUEST)
        assert (status, job["namespace"]) == (202, "k8s.io")
        at.server.reload(HttpSection(allowed_sources=("other/*",)), ConvertOptions(), RuleBook().match)
        assert (await at.call("POST", CONVERSIONS, json=REQUEST))[0] == 403


async def test_the_names_of_other_images_are_in_no_answer(tmp_path: Path) -> None:
    error = ImageNotFound("there is no image 'x'", hint=ExistingHint("there are: pause:3.9"))
    assert "pause:3.9" in str(error)
    assert answers.error_answer(error).message == describe(error, "http").message == "there is no image 'x'"
    assert "pause:3.9" in describe(error, "grpc").message


async def test_health_as_acceld_has_it(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at:
        async with at.client.get("/api/v1/health") as response:
            assert (response.status, await response.text()) == (200, "Ok")
        at.unready.append("containerd does not answer")
        status, answer = await at.call("GET", "/api/v1/health")
    assert (status, answer["code"]) == (500, "ERR_UNHEALTHY")
    assert answer["message"] == "containerd does not answer"


async def test_healthz(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at:
        async with at.client.get("/healthz") as response:
            assert (response.status, await response.text()) == (200, "ok\n")
        at.unready.append("starting")
        async with at.client.get("/healthz") as response:
            assert (response.status, await response.text()) == (503, "starting\n")


async def test_readiness_by_dependency_apart_from_liveness(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at:
        async with at.client.get("/readyz") as response:
            assert (response.status, await response.text()) == (200, "ok\ncontainerd: ok\njournal: ok\n")
        at.unready.append("it is away")
        async with at.client.get("/readyz") as response:
            text = "it is away\ncontainerd: it is away\njournal: ok\n"
            assert (response.status, await response.text()) == (503, text)
        async with at.client.get("/livez") as response:
            assert (response.status, await response.text()) == (200, "ok\n")


async def test_metrics(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at, at.client.get("/metrics") as response:
        assert await response.read() == METRICS
        assert response.headers["Content-Type"].startswith("text/plain; version=")


async def test_the_list_has_acceld_s_fields(tmp_path: Path) -> None:
    job_service = MemoryBoard(a_job(1, JobState.DONE), a_job(2, JobState.FAILED), a_job(3))
    async with served(job_service, tmp_path) as at:
        status, jobs = await at.call("GET", CONVERSIONS)
    assert status == 200
    waiting, failed, done = jobs
    assert [waiting["status"], failed["status"], done["status"]] == ["PROCESSING", "FAILED", "COMPLETED"]
    assert done["id"] == f"{1:032x}"
    assert done["source"] == "registry.example.com/team/app-1:1.1"
    assert done["created"] == "2026-11-18T11:06:41.000Z"
    assert done["finished"] == "2026-11-18T11:06:53.500Z"
    assert done["reason"] == ""
    assert done["source_size"] == 210_000_004
    assert done["target_size"] == 189_000_000 + 40_000
    assert "gzip stream ends" in failed["reason"]
    assert failed["error"]["code"] == "corrupt_input"
    assert waiting["finished"] is None
    assert waiting["target_size"] == 0


# Ours.


async def test_a_request_by_hand_becomes_a_job(tmp_path: Path) -> None:
    job_service = MemoryBoard()
    body = REQUEST | {"namespace": "k8s.io", "options": {"oci": True}, "priority": 7}
    async with served(job_service, tmp_path) as at:
        async with at.client.post(CONVERSIONS, json=body) as response:
            assert response.status == 202
            job = await response.json()
            assert response.headers["Location"] == f"{CONVERSIONS}/{job['id']}"
        status, again = await at.call("POST", CONVERSIONS, json=body)
        assert (status, again["id"], again["joined"]) == (200, job["id"], True)
        status, shown = await at.call("GET", f"{CONVERSIONS}/{job['id']}")
    ((request, origin, priority), _) = job_service.submitted
    assert (request.source, request.target, request.namespace) == (
        REQUEST["source"],
        REQUEST["target"],
        "k8s.io",
    )
    assert request.options == ConvertOptions(build=BuildOptions(compressor="lz4_block"), oci=True, jobs=1)
    assert (origin, priority) == ("http", 7)
    assert job["joined"] is False
    assert shown["options"]["compressor"] == "lz4_block"
    assert shown["state"] == "queued"


async def test_whoever_asks_to_wait_is_answered_when_the_job_is_done(tmp_path: Path) -> None:
    job_service = MemoryBoard()
    async with served(job_service, tmp_path) as at:
        waiting = asyncio.create_task(at.call("POST", f"{CONVERSIONS}?sync=true", json=REQUEST))
        await job_service.accepted.wait()
        job_service.move(f"{1:032x}", JobState.RUNNING)
        job_service.move(f"{1:032x}", JobState.DONE)
        status, job = await waiting
        assert job_service.watchers == 0
    assert (status, job["state"], job["result"]["status"]) == (200, "done", "converted")


@pytest.mark.parametrize("end", [JobState.FAILED, JobState.CANCELLED])
async def test_whoever_waits_is_told_of_a_failure_as_acceld_does(tmp_path: Path, end: JobState) -> None:
    job_service = MemoryBoard()
    async with served(job_service, tmp_path) as at:
        waiting = asyncio.create_task(at.call("POST", f"{CONVERSIONS}?sync=1", json=REQUEST))
        await job_service.accepted.wait()
        job_service.move(f"{1:032x}", end)
        status, answer = await waiting
    assert (status, answer["code"]) == (500, "ERR_CONVERT_FAILED")
    assert answer["error"] == ("corrupt_input" if end is JobState.FAILED else "cancelled")
    assert answer["job"]["id"] == f"{1:032x}"


async def test_who_goes_away_is_not_waited_for(tmp_path: Path) -> None:
    job_service = MemoryBoard()
    async with served(job_service, tmp_path, timeouts=Timeouts(beat_s=0.05)) as at:
        waiting = asyncio.create_task(at.call("POST", f"{CONVERSIONS}?sync=true", json=REQUEST))
        await job_service.accepted.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        await job_service.until_watched_by(0)
    assert job_service.get(f"{1:032x}").state is JobState.QUEUED


async def test_whoever_waits_is_told_when_the_server_ends(tmp_path: Path) -> None:
    job_service = MemoryBoard()
    async with served(job_service, tmp_path) as at:
        client = aiohttp.ClientSession(headers={"Authorization": TOKEN})
        waiting = asyncio.create_task(client.post(f"{at.url}{CONVERSIONS}?sync=true", json=REQUEST))
        await job_service.accepted.wait()
    async with client, await waiting as response:
        answer = await response.json()
        assert (response.status, answer["error"]) == (503, "shutting_down")


async def test_the_list_is_filtered_and_paged(tmp_path: Path) -> None:
    jobs = [a_job(number, JobState.FAILED if number % 2 else JobState.QUEUED) for number in range(1, 8)]
    async with served(MemoryBoard(*jobs), tmp_path) as at:

        async def ids(query: str) -> list[int]:
            status, found = await at.call("GET", f"{CONVERSIONS}?{query}")
            assert status == 200
            return [int(job["id"], 16) for job in found]

        assert await ids("") == [7, 6, 5, 4, 3, 2, 1]
        assert await ids("state=failed") == [7, 5, 3, 1]
        assert await ids("state=failed,queued&state=done&limit=2") == [7, 6]
        assert await ids("image=registry.example.com/team/app-3:1.3-nydus") == [3]
        assert await ids(f"before={4:032x}") == [3, 2, 1]
        seen, path = [], f"{CONVERSIONS}?limit=3&state=failed"
        while path:
            async with at.client.get(path) as response:
                seen.append([int(job["id"], 16) for job in await response.json()])
                link = response.headers.get("Link", "")
                path = link.removeprefix("<").removesuffix('>; rel="next"')
        assert seen == [[7, 5, 3], [1]]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("?limit=0", 400, "limit"),
        ("?limit=-1", 400, "limit"),
        ("?limit=many", 400, "limit"),
        ("?limit=\u0661", 400, "limit"),
        ("?limit=99999999999999999999", 400, "limit"),
        ("?state=running,lost", 400, "'lost' is not a valid JobState; there are queued"),
        ("?stat=failed", 400, "'stat'"),
        (f"?before={9:032x}", 404, "no job"),
        (f"/{9:032x}", 404, "no job"),
        ("/nonsense", 404, "no job"),
        (f"/{9:032x}/events", 404, "no job"),
        (f"/{1:032x}?token=secret", 400, "this path has none"),
        (f"/{1:032x}/nothing", 404, "Endpoint not found"),
    ],
)
async def test_bad_questions(tmp_path: Path, path: str, status: int, said: str) -> None:
    async with served(MemoryBoard(a_job()), tmp_path) as at:
        got, answer = await at.call("GET", CONVERSIONS + path)
    assert got == status
    assert said in answer["message"]


async def test_cancel_and_retry(tmp_path: Path) -> None:
    path = f"{CONVERSIONS}/{1:032x}"
    async with served(MemoryBoard(a_job(1, JobState.RUNNING)), tmp_path) as at:
        status, answer = await at.call("POST", f"{path}/retry")
        assert (status, answer["error"]) == (409, "usage")
        status, job = await at.call("POST", f"{path}/cancel")
        assert (status, job["state"], job["status"], job["reason"]) == (
            200,
            "cancelled",
            "FAILED",
            "cancelled",
        )
        status, job = await at.call("POST", f"{path}/retry")
        assert (status, job["state"]) == (202, "queued")
        for action in ("cancel", "retry"):
            assert (await at.call("POST", f"{CONVERSIONS}/{9:032x}/{action}"))[0] == 404


# Errors.


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UsageError("x"), 400, "ERR_ILLEGAL_PARAMETER"),
        (UnsupportedError("x"), 501, "ERR_UNSUPPORTED"),
        (FormatError("x"), 422, "ERR_CORRUPT_INPUT"),
        (UnreachableError("x"), 503, "ERR_UNREACHABLE"),
        (NoSpaceError("x"), 507, "ERR_NO_SPACE"),
        (QueueFull("x"), 503, "ERR_QUEUE_FULL"),
        (ShuttingDown("x"), 503, "ERR_SHUTTING_DOWN"),
        (NydusServiceError("x"), 500, "ERR_INTERNAL"),
    ],
)
async def test_errors_have_the_status_of_their_kind(
    tmp_path: Path, error: NydusServiceError, status: int, code: str
) -> None:
    job_service = MemoryBoard()
    job_service.refusal = error
    async with served(job_service, tmp_path) as at, aiohttp.ClientSession() as unchecked:
        headers = {"Authorization": TOKEN}  # the document has only the kinds that a queue may raise
        async with unchecked.post(at.url + CONVERSIONS, json=REQUEST, headers=headers) as response:
            answer = await response.json()
        assert (response.status, answer["code"]) == (status, code)
        assert (answer["message"], answer["error"]) == ("x", error.code)
        assert ("Retry-After" in response.headers) == (status == 503)


async def test_what_nobody_foresaw_is_logged_and_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MemoryBoard):
        def get(self, job_id: str) -> Job:
            raise ZeroDivisionError("a secret")

    async with served(Broken(), tmp_path) as at:
        status, answer = await at.call("GET", f"{CONVERSIONS}/{1:032x}")
    assert (status, answer["code"]) == (500, "ERR_INTERNAL")
    assert "secret" not in answer["message"]
    assert "a secret" in caplog.text


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"source": 1}', b"[" * 5000])
async def test_malformed_bodies(tmp_path: Path, body: bytes) -> None:
    async with served(MemoryBoard(), tmp_path) as at:
        status, answer = await at.call("POST", CONVERSIONS, data=body)
    assert (status, answer["code"]) == (400, "ERR_ILLEGAL_PARAMETER")


async def test_sync_is_true_or_false(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at:
        status, answer = await at.call("POST", f"{CONVERSIONS}?sync=maybe", json=REQUEST)
    assert (status, "sync" in answer["message"]) == (400, True)


async def test_methods_that_a_path_has_not(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at, at.client.delete(CONVERSIONS) as response:
        assert response.status == 405
        assert "GET" in response.headers["Allow"]
        assert (await response.json())["code"] == "ERR_METHOD_NOT_ALLOWED"


# Sizes and times.


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * 1024


async def test_large_bodies_are_refused_with_a_length_and_without(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path, max_body=4096) as at:
        status, answer = await at.call("POST", CONVERSIONS, data=b" " * 4097)
        assert (status, answer["code"]) == (413, "ERR_BODY_TOO_LARGE")
        status, answer = await at.call("POST", CONVERSIONS, data=pieces(5))
        assert (status, answer["code"]) == (413, "ERR_BODY_TOO_LARGE")
        status, _ = await at.call("POST", CONVERSIONS, data=json.dumps(REQUEST).ljust(4096).encode())
        assert status == 202


async def test_compressed_bodies_are_not_taken(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at:
        status, _ = await at.call("POST", CONVERSIONS, data=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert status == 415


@asynccontextmanager
async def raw(at: Served) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = at.server.addresses[0].rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


def head(method: str, path: str, *fields: str) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: here", f"Authorization: {TOKEN}", *fields, "", "")
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: he"], ids=["nothing", "half a head"])
async def test_a_client_that_is_slow_to_ask_is_sent_away(tmp_path: Path, sent: bytes) -> None:
    async with (
        served(MemoryBoard(), tmp_path, timeouts=Timeouts(head_s=0.2)) as at,
        raw(at) as (reader, writer),
    ):
        writer.write(sent)
        async with asyncio.timeout(100):
            assert await reader.read() == b""


async def test_a_client_that_is_slow_to_send_a_body_is_sent_away(tmp_path: Path) -> None:
    job_service = MemoryBoard()
    async with (
        served(job_service, tmp_path, timeouts=Timeouts(body_s=0.2)) as at,
        raw(at) as (reader, writer),
    ):
        writer.write(head("POST", CONVERSIONS, "Content-Length: 100") + b'{"source":')
        async with asyncio.timeout(100):
            answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert job_service.submitted == []


async def test_a_client_that_reads_nothing_is_sent_away(tmp_path: Path) -> None:
    """It stops taking what a stream sends: the kernel ends the connection, and the watch ends with it."""
    job_service = MemoryBoard(a_job(1, JobState.RUNNING))
    async with served(job_service, tmp_path, timeouts=Timeouts(unread_s=0.5, beat_s=0.05)) as at:
        host, port = at.server.addresses[0].rsplit(":", 1)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((host, int(port)))
            client.sendall(head("GET", f"{CONVERSIONS}/events"))
            large = JobError(code="internal", message="x" * 100_000, retryable=False)
            await job_service.until_watched_by(1)
            for _ in range(100):  # 10 MB: more than the kernel keeps for both sides
                job_service.move(f"{1:032x}", JobState.FAILED, error=large)
            await job_service.until_watched_by(0)


async def test_a_closing_server_ends_its_streams(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at:
        client = aiohttp.ClientSession(headers={"Authorization": TOKEN})
        response = await client.get(f"{at.url}{CONVERSIONS}/events")
    async with client, response, asyncio.timeout(100):
        assert await response.read() == b"retry: 2000\n\n"


# Where it listens.


async def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    async with served(MemoryBoard(), tmp_path) as at:
        taken = HttpSection(at.server.addresses[0], at.token_file)
        with pytest.raises(NydusServiceError, match=at.server.addresses[0]):
            async with open_server(taken):
                pass


async def test_no_token_file_no_server() -> None:
    with pytest.raises(UsageError, match="token_file"):
        async with open_server(HttpSection("127.0.0.1:0")):
            pass


def open_server(settings: HttpSection) -> Any:
    return open_http_server(
        MemoryBoard(),
        settings,
        metrics_text=lambda: b"",
        ready=lambda: "",
        states=dict,
        defaults=ConvertOptions(jobs=1),
        match_rule=RuleBook().match,
    )


def test_a_job_of_the_journal_is_shown_whole() -> None:
    """Whatever a job can hold has a place in the answers."""
    shown = job_details(a_job(1, JobState.DONE))
    fields = set(msgspec.structs.asdict(a_job()))
    renamed = {"request", "created_at", "started_at", "finished_at"}
    assert fields - renamed <= set(shown.__struct_fields__)
