"""The daemon's API: what every client may rely on, over a real socket.

The client here is ours; `test_api_clients.py` has one that knows the API from reflection alone.
"""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from nydus_service.api.client import TlsServer, open_client
from nydus_service.api.listening import AlreadyRunning
from nydus_service.api.server import REQUEST_SIZE_MAX, ApiSettings, TlsListener, open_api_server
from nydus_service.api.service import SERVICE, WATCHERS_MAX
from nydus_service.api.v1 import converter_pb2 as pb
from nydus_service.api.v1.converter_pb2_grpc import ConverterStub
from nydus_service.builder.builder import BuilderFailed
from nydus_service.content.store import ContentNotFound
from nydus_service.convert.result import ImageName
from nydus_service.errors import (
    DiffersError,
    FormatError,
    NotAllowedError,
    NotFoundError,
    NydusServiceError,
    UnreachableError,
    UnsupportedError,
    UsageError,
)
from nydus_service.imagecheck.result import CheckResult
from nydus_service.jobs.job import JobState
from nydus_service.jobs.queue import QueueFull, ShuttingDown
from nydus_service.options.build import BuildOptions
from nydus_service.options.convert import ConvertOptions
from tests.contract.apiserver import (
    DEFAULTS,
    AnsweringRunner,
    Served,
    make_certificates,
    serving,
)
from tests.unit.api.jobservice import MemoryBoard, a_job

SOURCE, TARGET = "docker.io/library/app:1", "docker.io/library/app:1-nydus"
METHODS = "/nydus_service.v1.Converter/"


async def test_submit_fills_in_what_the_configuration_says(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        job, joined = await served.client.submit(SOURCE, TARGET, options={"chunk_size": 0x10000, "oci": True})
        assert not joined
        options = ConvertOptions(
            build=BuildOptions(compressor="lz4_block", chunk_size=0x10000), with_referrer=True, oci=True
        )
        assert job.request.options.as_json() == options.as_json()
        assert (job.request.source, job.request.target, job.request.namespace) == (SOURCE, TARGET, "default")
        assert (job.state, job.origin) == (JobState.QUEUED, "grpc")
        assert [each[1:] for each in served.job_service.submitted] == [("grpc", 0)]


async def test_what_is_said_wins_over_the_configuration_even_if_it_is_a_default(tmp_path: Path) -> None:
    said = {"compressor": "zstd", "with_referrer": False, "platforms": [], "prefetch_patterns": []}
    async with serving(tmp_path) as served:
        job, _ = await served.client.submit(SOURCE, TARGET, options=said)
    options = job.request.options.as_json()
    assert {key: options[key] for key in said} == said


async def test_an_equal_request_is_joined(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        first = await served.client.submit(SOURCE, TARGET)
        again = await served.client.submit(SOURCE, TARGET, priority=7)
        assert (again.job.id, again.joined) == (first.job.id, True)
        assert [each[2] for each in served.job_service.submitted] == [0, 7]


async def test_a_namespace_counts_only_where_containerd_is_meant(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        for source, target, wanted in (
            (SOURCE, "oci:/images:app", "k8s.io"),
            ("oci:/images:app", "oci:/images:nydus", ""),
        ):
            job, _ = await served.client.submit(source, target, namespace="k8s.io")
            assert job.request.namespace == wanted


@pytest.mark.parametrize("state", JobState)
async def test_a_job_comes_as_it_is(tmp_path: Path, state: JobState) -> None:
    job = a_job(3, state, priority=-4, not_before=1_795_000_100.125, retries=2, interruptions=1)
    async with serving(tmp_path, job_service=MemoryBoard(job)) as served:
        got = await served.client.get(job.id)
    assert got.request.options.as_json() == job.request.options.as_json()
    assert got == type(job)(
        **{each: getattr(job, each) for each in job.__struct_fields__} | {"request": got.request}
    )


@pytest.mark.parametrize(
    ("source", "target", "options", "named"),
    [
        ("", TARGET, {}, "source"),
        (SOURCE, "", {}, "target"),
        ("oci:images:app", TARGET, {}, "absolute"),
        (SOURCE, "oci-archive:app.tar:1", {}, "absolute"),
        (SOURCE, "oci:/images", {}, "needs a name"),
        (SOURCE, f"{TARGET}@sha256:{'0' * 64}", {}, "digest"),
        (SOURCE, TARGET, {"compressor": "brotli"}, "brotli"),
        (SOURCE, TARGET, {"chunk_size": 4097}, "0x1001"),
        (SOURCE, TARGET, {"platforms": ["linux/amd64/v3/x"]}, "linux/amd64/v3/x"),
        (SOURCE, TARGET, {"prefetch_patterns": ["etc"]}, "etc"),
        (SOURCE, TARGET, {"verify": "some"}, "some"),
    ],
)
async def test_a_wrong_request_is_refused_by_name(
    tmp_path: Path, source: str, target: str, options: dict[str, object], named: str
) -> None:
    async with serving(tmp_path) as served:
        with pytest.raises(UsageError, match=named):
            await served.client.submit(source, target, options=options)
        with pytest.raises(UsageError, match=named):
            await served.client.plan(source, target, options=options)
        assert not served.job_service.submitted
        assert not served.runner.asked


async def test_a_priority_has_bounds(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with pytest.raises(UsageError, match="1001"):
            await served.client.submit(SOURCE, TARGET, priority=1001)


async def test_an_id_can_be_given_by_its_first_digits(tmp_path: Path) -> None:
    jobs = [a_job(number, id=f"{digits}{'0' * 27}") for number, digits in enumerate(("abcd0", "abcd1"))]
    async with serving(tmp_path, job_service=MemoryBoard(*jobs)) as served:
        assert (await served.client.get("abcd1")).id == jobs[1].id
        with pytest.raises(UsageError, match="several"):
            await served.client.get("abcd")
        with pytest.raises(UsageError, match="at least"):
            await served.client.get("ab")
        with pytest.raises(NotFoundError, match="abcf"):
            await served.client.get("abcf")


async def test_lists_come_in_pages_without_what_is_large(tmp_path: Path) -> None:
    states = list(JobState)
    jobs = [a_job(number, states[number % 6]) for number in range(1, 12)]
    async with serving(tmp_path, job_service=MemoryBoard(*jobs)) as served:
        listed, token = [], ""
        while True:
            page = await served.client.list(page_size=4, page_token=token)
            listed += page.jobs
            token = page.next_token
            if not token:
                break
        assert [job.id for job in listed] == [job.id for job in reversed(jobs)]
        assert not any(job.result or job.progress.layers for job in listed)
        done = await served.client.list(states=[JobState.DONE, JobState.FAILED])
        assert {job.state for job in done.jobs} == {JobState.DONE, JobState.FAILED}
        one = await served.client.list(image=jobs[0].request.target)
        assert [job.id for job in one.jobs] == [jobs[0].id]
        with pytest.raises(UsageError, match="page token"):
            await served.client.list(page_token="f" * 32)


async def test_a_page_is_never_too_big_for_a_client(tmp_path: Path) -> None:
    jobs = [a_job(number, JobState.FAILED) for number in range(1, 60)]
    for number, job in enumerate(jobs):
        jobs[number] = a_job(number + 1, request=job.request, origin="x" * 100_000)
    async with serving(tmp_path, job_service=MemoryBoard(*jobs)) as served:
        page = await served.client.list(page_size=1000)
        assert 8 <= len(page.jobs) < 20
        assert page.next_token == page.jobs[-1].id


async def test_watching_ends_with_the_job(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        job, _ = await served.client.submit(SOURCE, TARGET)
        seen = []
        async with aclosing(served.client.watch(job.id)) as jobs:
            async for each in jobs:
                seen.append(each.state)
                if each.state is JobState.QUEUED:
                    served.job_service.move(job.id, JobState.RUNNING)
                    served.job_service.move(job.id, JobState.DONE)
        assert seen == [JobState.QUEUED, JobState.RUNNING, JobState.DONE]
        await served.job_service.until_watched_by(0)


async def test_who_hangs_up_watches_no_longer(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        job, _ = await served.client.submit(SOURCE, TARGET)
        async with aclosing(served.client.watch(job.id)) as jobs:
            async for _ in jobs:
                break
        await served.job_service.until_watched_by(0)
        with anyio.move_on_after(0.01):
            async for _ in served.client.watch(job.id):
                pass
        await served.job_service.until_watched_by(0)


async def test_all_jobs_can_be_watched(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_submit_when_watched, served)
            seen = []
            async for job in served.client.watch():
                seen.append(job.request.source)
                if len(seen) == 3:
                    break
        assert seen == ["app:0", "app:1", "app:2"]


async def _submit_when_watched(served: Served) -> None:
    await served.job_service.until_watched_by(1)
    for number in range(3):
        await served.client.submit(f"app:{number}", TARGET)


async def test_watches_are_limited(tmp_path: Path) -> None:
    async with serving(tmp_path, job_service=MemoryBoard(a_job())) as served:
        async with grpc.aio.insecure_channel(f"unix:{served.socket}") as channel:
            calls = [ConverterStub(channel).Watch(pb.WatchRequest()) for _ in range(WATCHERS_MAX)]
            await served.job_service.until_watched_by(WATCHERS_MAX)
            with pytest.raises(NydusServiceError, match="watch already") as info:
                async for _ in served.client.watch():
                    pass
            assert info.value.code == "too_many_calls"
            assert (await served.client.list()).jobs
            for call in calls:
                call.cancel()
            await served.job_service.until_watched_by(0)


async def test_cancel_and_retry(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        job, _ = await served.client.submit(SOURCE, TARGET)
        assert (await served.client.cancel(job.id)).state is JobState.CANCELLED
        assert (await served.client.retry(job.id)).state is JobState.QUEUED
        with pytest.raises(UsageError, match="queued"):
            await served.client.retry(job.id)
        for ask in (served.client.cancel, served.client.retry, served.client.get):
            with pytest.raises(NotFoundError):
                await ask("f" * 32)
            with pytest.raises(UsageError):
                await ask("")


async def test_plan(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        preview = await served.client.plan(SOURCE, TARGET, namespace="k8s.io", options={"force": True})
        assert (preview.status, preview.reason) == ("would be unchanged", "it is a nydus image")
        assert preview.target == ImageName(TARGET)
        (request,) = served.runner.asked[0]
        assert (request.namespace, request.options.force, request.options.build.compressor) == (
            "k8s.io",
            True,
            DEFAULTS.build.compressor,
        )


async def test_check(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        result = await served.client.check(TARGET, against=SOURCE, verify="full", platforms=["linux/arm64"])
        assert result.verdict == "equal"
        assert served.runner.asked == [(TARGET, SOURCE, "default", "full", ("linux/arm64",))]
        served.runner.verdict = "differs"
        assert (await served.client.check(TARGET)).verdict == "differs"
        for wrong, options in (("none", {"verify": "none"}), ("x/y/z/w", {"platforms": ["x/y/z/w"]})):
            with pytest.raises(UsageError, match=wrong):
                await served.client.check(TARGET, **options)


async def test_reconvert_is_refused_by_name(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, grpc.aio.insecure_channel(f"unix:{served.socket}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as info:
            await ConverterStub(channel).Reconvert(pb.ReconvertRequest(source=TARGET, target=SOURCE))
        assert info.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert info.value.details() == "reconvert is not there yet"


ERRORS = [
    (UsageError("a"), grpc.StatusCode.INVALID_ARGUMENT),
    (ContentNotFound("b"), grpc.StatusCode.NOT_FOUND),
    (UnsupportedError("c"), grpc.StatusCode.UNIMPLEMENTED),
    (NotAllowedError("d"), grpc.StatusCode.PERMISSION_DENIED),
    (UnreachableError("e"), grpc.StatusCode.UNAVAILABLE),
    (QueueFull("f"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ShuttingDown("g"), grpc.StatusCode.UNAVAILABLE),
    (FormatError("h"), grpc.StatusCode.DATA_LOSS),
    (DiffersError("i"), grpc.StatusCode.FAILED_PRECONDITION),
    (BuilderFailed("j\nwith its last words"), grpc.StatusCode.ABORTED),
    (NydusServiceError("k"), grpc.StatusCode.INTERNAL),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda each: getattr(each, "code", ""))
async def test_errors_come_as_they_are(
    tmp_path: Path, error: NydusServiceError, code: grpc.StatusCode
) -> None:
    async with serving(tmp_path) as served:
        served.job_service.refusal = error
        with pytest.raises(NydusServiceError) as info:
            await served.client.submit(SOURCE, TARGET)
        assert isinstance(error, type(info.value))  # ContentNotFound is as good as its kind
        assert (info.value.code, info.value.exit_code) == (error.code, error.exit_code)
        assert str(error) in str(info.value)
        cause = info.value.__cause__
        assert isinstance(cause, grpc.aio.AioRpcError)
        assert cause.code() is code
        status = await rpc_status.aio.from_call(_Failed(cause))
        details = ErrorInfo()
        assert status.details[0].Unpack(details)
        assert (details.reason, details.domain) == (error.code, "nydus-service")
        assert any(each.Is(RetryInfo.DESCRIPTOR) for each in status.details) == (error.code == "queue_full")


class _Failed:
    """What `rpc_status` wants of a call, of the error that it ended with."""

    def __init__(self, exc: grpc.aio.AioRpcError) -> None:
        self._exc = exc

    async def code(self) -> grpc.StatusCode:
        return self._exc.code()

    async def details(self) -> str:
        return self._exc.details() or ""

    async def trailing_metadata(self) -> object:
        return self._exc.trailing_metadata()


async def test_an_error_names_the_job(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        with pytest.raises(NotFoundError) as info:
            await served.client.cancel("c" * 32)
        assert isinstance(info.value.__cause__, grpc.aio.AioRpcError)
        status = await rpc_status.aio.from_call(_Failed(info.value.__cause__))
        details = ErrorInfo()
        assert status.details[0].Unpack(details)
        assert dict(details.metadata) == {"job": "c" * 32}


async def test_a_bug_is_told_without_its_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path) as served:
        served.runner.failure = KeyError("a secret")
        with pytest.raises(NydusServiceError) as info:
            await served.client.plan(SOURCE, TARGET)
        assert info.value.code == "internal"
        assert "secret" not in str(info.value)
        assert "secret" in caplog.text
        assert await served.client.list()


class TestBadMessages:
    @pytest.mark.parametrize(
        "message",
        [
            pb.SubmitRequest(request=pb.ConvertRequest(source=SOURCE, target=TARGET)).SerializeToString()
            + b"\xf8\x07\x01",
            b"\x0a\x03\xf8\x07\x01",
            b"\x0a\x05\x22\x03\xf8\x07\x01",
        ],
        ids=["request", "conversion", "options"],
    )
    async def test_a_field_that_is_not_known(self, tmp_path: Path, message: bytes) -> None:
        async with serving(tmp_path) as served:
            code, said = await _raw(served.socket, "Submit", message)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "number 127" in said
            assert not served.job_service.submitted

    @pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
    async def test_bytes_that_are_no_message(self, tmp_path: Path, method: str) -> None:
        async with serving(tmp_path) as served:
            code, said = await _raw(served.socket, method, b"\x0a\xff\xff\xff\xff\x0f\x00")
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert f"nydus_service.v1.{method}Request" in said
            assert await served.client.list()

    async def test_too_many_bytes(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served:
            message = pb.SubmitRequest(request=pb.ConvertRequest(source="x" * REQUEST_SIZE_MAX))
            code, _ = await _raw(served.socket, "Submit", message.SerializeToString())
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await served.client.list()

    async def test_a_state_that_there_is_not(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served:
            for state in (0, 99):
                code, said = await _raw(
                    served.socket,
                    "List",
                    pb.ListRequest(states=[state]).SerializeToString(),  # type: ignore[list-item]  # no state of ours
                )
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                assert "state" in said

    async def test_a_method_that_there_is_not(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served:
            code, _ = await _raw(served.socket, "Destroy", b"")
            assert code is grpc.StatusCode.UNIMPLEMENTED

    @pytest.mark.parametrize(
        ("kind", "method"),
        [
            ("unary_unary", "/grpc.health.v1.Health/Check"),
            ("unary_stream", "/grpc.health.v1.Health/Watch"),
            ("stream_stream", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
        ],
    )
    async def test_bytes_that_are_no_message_of_grpc_s_own_services(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, method: str
    ) -> None:
        async with serving(tmp_path) as served:
            async with grpc.aio.insecure_channel(f"unix:{served.socket}") as channel:
                call = getattr(channel, kind)(method)
                call = call(iter([b"\xff"])) if kind == "stream_stream" else call(b"\xff")
                assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "Traceback" not in caplog.text

    async def test_who_does_not_speak_grpc(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served:
            stream = await anyio.connect_unix(served.socket)
            async with stream:
                await stream.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
                with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    while True:
                        await stream.receive()
            assert await served.client.list()


class TestSocket:
    async def test_its_mode_and_its_end(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served:
            status = served.socket.lstat()
            assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, os.getegid())
            assert os.listdir(tmp_path) == ["sock"]
        assert not os.listdir(tmp_path)

    async def test_its_directory_is_made(self, tmp_path: Path) -> None:
        async with serving(tmp_path / "run" / "service"):
            assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755

    async def test_the_group_that_may_use_it(self, tmp_path: Path) -> None:
        if os.geteuid():
            pytest.skip("needs root to give a file to a group that one is not in")
        async with serving(tmp_path, group="daemon") as served:
            assert served.socket.group() == "daemon"
        async with serving(tmp_path, group="4711") as served:
            assert served.socket.lstat().st_gid == 4711

    async def test_a_group_that_there_is_not(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no-such-group"):
            async with serving(tmp_path, group="no-such-group"):
                pass
        assert not os.listdir(tmp_path)

    async def test_what_a_dead_daemon_left_is_replaced(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "sock"))
        async with serving(tmp_path) as served:
            assert (await served.client.list()).jobs == []

    async def test_a_daemon_that_runs_is_left_alone(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served:
            with pytest.raises(AlreadyRunning, match="running already"):
                async with serving(tmp_path):
                    pass
            assert (await served.client.list()).jobs == []
            assert os.listdir(tmp_path) == ["sock"]

    async def test_of_two_that_start_at_once_one_is_refused(self, tmp_path: Path) -> None:
        outcomes: list[str] = []
        held = asyncio.Event()

        async def start() -> None:
            try:
                async with serving(tmp_path) as served:
                    outcomes.append("serves")
                    await held.wait()
                    assert (await served.client.list()).jobs == []
            except AlreadyRunning:
                outcomes.append("refused")
            if len(outcomes) == 2:
                held.set()

        async with asyncio.timeout(100):
            first, second = asyncio.create_task(start()), asyncio.create_task(start())
            await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
            held.set()
            await asyncio.gather(first, second)
        assert sorted(outcomes) == ["refused", "serves"]

    async def test_what_is_no_socket_stays(self, tmp_path: Path) -> None:
        (tmp_path / "sock").write_text("precious")
        with pytest.raises(UsageError, match="no socket"):
            async with serving(tmp_path):
                pass
        assert (tmp_path / "sock").read_text() == "precious"

    async def test_a_socket_that_another_daemon_has_put_there_stays(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served:
            served.socket.unlink()
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(served.socket))
        assert served.socket.is_socket()

    async def test_a_path_that_is_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="too long"):
            async with serving(tmp_path / ("x" * 100)):
                pass

    async def test_nobody_is_there(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "dead"))
        for name in ("dead", "never"):
            with pytest.raises(UnreachableError, match=r"no daemon listens at .*start it"):
                async with open_client(tmp_path / name):
                    pass


class TestEnd:
    async def test_health_while_it_drains(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as served, grpc.aio.insecure_channel(f"unix:{served.socket}") as channel:
            for name in ("", "nydus_service.v1.Converter"):
                assert await _health(channel, name) == health_pb2.HealthCheckResponse.SERVING
            listed = await _listed_health(channel)
            assert {"", "nydus_service.v1.Converter", "liveness"} <= listed.keys()
            assert set(listed.values()) == {health_pb2.HealthCheckResponse.SERVING}
            await served.server.begin_drain()
            for name in ("", "nydus_service.v1.Converter"):
                assert await _health(channel, name) == health_pb2.HealthCheckResponse.NOT_SERVING
                assert (await _listed_health(channel))[name] == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await served.client.list()).jobs == []

    async def test_who_watches_is_told(self, tmp_path: Path) -> None:
        async with serving(tmp_path, job_service=MemoryBoard(a_job())) as served:
            jobs = served.client.watch(a_job().id)
            assert (await anext(jobs)).id == a_job().id
            await served.server.end_watches()
            with pytest.raises(ShuttingDown, match="jobs go on"):
                await anext(jobs)
            with pytest.raises(ShuttingDown):
                await anext(served.client.watch())
            assert (await served.client.get(a_job().id)).id == a_job().id

    async def test_calls_that_take_long_do_not_hold_it(self, tmp_path: Path) -> None:
        hanging = HangingRunner()
        settings = ApiSettings(tmp_path / "sock", grace_s=0.1)
        async with anyio.create_task_group() as tasks:
            async with (
                open_api_server(MemoryBoard(), hanging, settings),
                open_client(settings.socket) as client,
            ):
                tasks.start_soon(_expect_unreachable, client.check(TARGET))
                await hanging.began.wait()
        assert hanging.ended.is_set()


class HangingRunner(AnsweringRunner):
    """A check never ends by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.ended = asyncio.Event(), asyncio.Event()

    async def check(self, *_: object, **__: object) -> CheckResult:
        self.began.set()
        try:
            return await asyncio.Future()
        finally:
            self.ended.set()


async def _expect_unreachable(call: Awaitable[object]) -> None:
    with pytest.raises((UnreachableError, NydusServiceError)):
        await call


class TestTls:
    async def test_clients_show_a_certificate(self, tmp_path: Path) -> None:
        ours = make_certificates(tmp_path / "ours", "server", "client")
        others = make_certificates(tmp_path / "others", "server", "client")
        listener = TlsListener(
            "localhost:0", ours.certificate("server"), ours.key("server"), ours.certificate("ca")
        )
        async with serving(tmp_path, tls=listener) as served:
            address = f"localhost:{served.server.port}"
            right = TlsServer(address, ours.certificate("ca"), ours.certificate("client"), ours.key("client"))
            async with open_client(right) as client:
                assert (await client.submit(SOURCE, TARGET)).job.request.source == SOURCE
            for wrong in (
                TlsServer(
                    address, ours.certificate("ca"), others.certificate("client"), others.key("client")
                ),
                TlsServer(address, others.certificate("ca"), ours.certificate("client"), ours.key("client")),
            ):
                async with open_client(wrong) as client:
                    with pytest.raises(UnreachableError):
                        await client.list()
            for credentials in (
                None,
                grpc.ssl_channel_credentials(ours.certificate("ca").read_bytes()),
            ):
                code = await _refused(address, credentials)
                assert code is grpc.StatusCode.UNAVAILABLE

    async def test_files_that_are_not_there_or_no_certificates(self, tmp_path: Path) -> None:
        ours = make_certificates(tmp_path / "ours", "server")
        (tmp_path / "text").write_text("hello")
        for certificate, kind in ((tmp_path / "none", NotFoundError), (tmp_path / "text", UsageError)):
            listener = TlsListener("localhost:0", certificate, ours.key("server"), ours.certificate("ca"))
            with pytest.raises(kind, match=certificate.name):
                async with serving(tmp_path, tls=listener):
                    pass
            assert not (tmp_path / "sock").exists()

    async def test_an_address_that_is_taken(self, tmp_path: Path) -> None:
        ours = make_certificates(tmp_path / "ours", "server")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            files = ours.certificate("server"), ours.key("server"), ours.certificate("ca")
            with pytest.raises(UnreachableError, match=str(port)):
                async with serving(tmp_path, tls=TlsListener(f"127.0.0.1:{port}", *files)):
                    pass


async def _raw(path: Path, method: str, message: bytes) -> tuple[grpc.StatusCode, str]:
    """Send bytes; the status that they are answered with."""
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        make: Any = channel.unary_stream if method == "Watch" else channel.unary_unary
        call = make(METHODS + method)(message)
        code, details = await call.code(), await call.details()
        return code, details or ""


async def _health(channel: grpc.aio.Channel, service: str) -> int:
    call = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return int((await call(health_pb2.HealthCheckRequest(service=service))).status)


async def _listed_health(channel: grpc.aio.Channel) -> dict[str, int]:
    call = channel.unary_unary(
        "/grpc.health.v1.Health/List",
        request_serializer=health_pb2.HealthListRequest.SerializeToString,
        response_deserializer=health_pb2.HealthListResponse.FromString,
    )
    statuses = (await call(health_pb2.HealthListRequest())).statuses
    return {name: int(each.status) for name, each in statuses.items()}


async def _refused(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    channel = (
        grpc.aio.secure_channel(address, credentials) if credentials else grpc.aio.insecure_channel(address)
    )
    async with channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{METHODS}List")
        return await method(b"").code()
