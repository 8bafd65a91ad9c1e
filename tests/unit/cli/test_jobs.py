"""`jobs` and `convert --remote` as processes, against a server of the API in this one."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nydus_service.errors import UnsupportedError
from nydus_service.jobs.job import JobError, JobState
from nydus_service.jobs.queue import QueueFull
from tests.contract.apiserver import Served, serving
from tests.unit.api.jobservice import MemoryBoard, a_job
from tests.unit.cli.command import ARGV, environment
from tests.unit.cli.terminal import Shown, run_on_terminal

SOURCE, TARGET = "docker.io/library/app:1", "docker.io/library/app:1-nydus"


class Done:
    """How a command ended."""

    def __init__(self, status: int, stdout: str, stderr: str) -> None:
        self.status, self.stdout, self.stderr = status, stdout, stderr

    @property
    def json(self) -> Any:
        assert (self.status, self.stderr) == (0, "")
        return json.loads(self.stdout)


@asynccontextmanager
async def running(socket: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command that asks the daemon at `socket`. It does not outlive the block."""
    env = environment(None, NYDUS_SERVICE_SOCKET=str(socket))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*ARGV, *words, stdout=pipe, stderr=pipe, env=env)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ended(process: asyncio.subprocess.Process) -> Done:
    stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, stdout.decode(), stderr.decode())


async def run(socket: Path, *words: str) -> Done:
    async with running(socket, *words) as process:
        return await ended(process)


@pytest.fixture
async def socket(tmp_path: Path) -> Path:
    return tmp_path / "sock"


def full_board() -> MemoryBoard:
    return MemoryBoard(*(a_job(number, state) for number, state in enumerate(JobState, 1)))


async def test_list(tmp_path: Path, socket: Path) -> None:
    job_service = full_board()
    async with serving(tmp_path, job_service=job_service):
        done = await run(socket, "jobs", "list")
        assert (done.status, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].split()[:5] == ["JOB", "STATE", "AGE", "SOURCE", "TARGET"]
        assert [line.split()[1] for line in lines[1:]] == [state.value for state in reversed(JobState)]
        listed = (await run(socket, "jobs", "list", "--format", "json")).json
        assert [each["id"] for each in listed] == [job.id for job in reversed(job_service.jobs.values())]
        assert not any("result" in each or "layers" in each["progress"] for each in listed)
        failed = await run(socket, "jobs", "list", "--state", "failed", "--state", "done", "--format", "json")
        assert {each["state"] for each in failed.json} == {"failed", "done"}
        image = a_job(2).request.target
        assert len((await run(socket, "jobs", "list", "--image", image, "--format", "json")).json) == 1
        limited = await run(socket, "jobs", "list", "--limit", "2")
        assert limited.stdout.splitlines()[3:] == ["and older ones: --limit 4 shows more"]


@pytest.mark.parametrize("columns", [20, pytest.param(59, marks=pytest.mark.long)])
async def test_a_narrow_terminal(tmp_path: Path, socket: Path, columns: int) -> None:
    """No text is cut, and what draws over itself fits, so that the terminal wraps none of it."""
    job_service = full_board()
    environ = {"NYDUS_SERVICE_SOCKET": str(socket)}
    running = next(job for job in job_service.jobs.values() if job.state is JobState.RUNNING)
    async with serving(tmp_path, job_service=job_service) as served, asyncio.TaskGroup() as tasks:

        async def show(*words: str) -> Shown:
            return await asyncio.to_thread(run_on_terminal, columns, "jobs", *words, **environ)

        listed = await show("list")
        assert listed.status == 0
        for job in job_service.jobs.values():
            assert f"source     {job.request.source}" in listed.lines
            assert f"target     {job.request.target}" in listed.lines
        shown = await show("show", running.id)
        assert shown.status == 0
        assert [line for line in shown.lines if line.startswith("layer  ")] == [
            f"layer  {layer.digest}" for layer in running.progress.layers
        ]
        watching = tasks.create_task(show("watch", running.id))
        await until_watched(served)
        done = served.job_service.move(running.id, JobState.DONE)
        watched = await watching
        assert watched.status == 0
        drawn = [line for line in watched.lines if "% " in line]
        assert drawn
        assert max(map(len, drawn)) <= columns
        assert done.result
        assert watched.text.rstrip().endswith(done.result.target.digest)
        for each in (listed, shown):
            assert "…" not in each.text


async def test_show(tmp_path: Path, socket: Path) -> None:
    job_service = full_board()
    async with serving(tmp_path, job_service=job_service):
        for job in job_service.jobs.values():
            done = await run(socket, "jobs", "show", job.id)
            assert (done.status, done.stderr) == (0, "")
            assert job.request.source in done.stdout
            verdict = job.state.value if job.state is not JobState.FAILED else "failed layer sha256:"
            assert f"\n{verdict}" in done.stdout
            for layer in job.progress.layers:
                assert layer.digest in done.stdout
            shown = (await run(socket, "jobs", "show", job.id, "--format", "json")).json
            result = job.result and job.result.as_json()
            assert (shown["result"], len(shown["progress"]["layers"])) == (result, len(job.progress.layers))
            assert shown["created_at"].endswith("Z")


async def test_an_id_by_its_first_digits(tmp_path: Path, socket: Path) -> None:
    jobs = [a_job(0x10), a_job(0x20)]
    both, first, second = "0" * 30, "0" * 30 + "1", "0" * 30 + "2"
    async with serving(tmp_path, job_service=MemoryBoard(*jobs)) as served:
        done = await run(socket, "jobs", "cancel", second)
        assert (done.status, done.stdout) == (0, f"{jobs[1].id} cancelled\n")
        states = [served.job_service.get(job.id).state for job in jobs]
        assert states == [JobState.QUEUED, JobState.CANCELLED]
        many = await run(socket, "jobs", "cancel", both)
        assert (many.status, many.stdout) == (2, "")
        assert "several" in many.stderr
        none = await run(socket, "jobs", "cancel", first, "ffff")
        assert (none.status, none.stdout) == (4, "")
        assert served.job_service.get(jobs[0].id).state is JobState.QUEUED
        again = await run(socket, "jobs", "retry", jobs[1].id, "--format", "json")
        assert [each["state"] for each in again.json] == ["queued"]


async def until_watched(served: Served, count: int = 1) -> None:
    await served.job_service.until_watched_by(count)


async def test_watch_one(tmp_path: Path, socket: Path) -> None:
    job = a_job(1, JobState.QUEUED)
    async with (
        serving(tmp_path, job_service=MemoryBoard(job)) as served,
        running(socket, "jobs", "watch", job.id) as process,
    ):
        await until_watched(served)
        for state in (JobState.RUNNING, JobState.VERIFYING, JobState.DONE):
            served.job_service.move(job.id, state)
        done = await ended(process)
        assert done.status == 0
        assert "layer 4/4" in done.stderr
        assert "linux/amd64: verified, 3,211 names" in done.stderr
        result = served.job_service.get(job.id).result
        assert result is not None
        digest = result.target.digest
        assert done.stdout.endswith(f"app-nydus@{digest}\n")


@pytest.mark.conditions
async def test_watch_all(tmp_path: Path, socket: Path) -> None:
    async with (
        serving(tmp_path, job_service=MemoryBoard(a_job(1))) as served,
        running(socket, "jobs", "watch", "--format", "json") as process,
    ):
        await until_watched(served)
        served.job_service.move(a_job(1).id, JobState.RUNNING)
        served.job_service.move(a_job(1).id, JobState.RUNNING)
        served.job_service.move(a_job(1).id, JobState.DONE)
        assert process.stdout
        states = [json.loads(await process.stdout.readline())["state"] for _ in range(2)]
        assert states == ["running", "done"]
        process.send_signal(signal.SIGINT)
        assert (await ended(process)).status == 130


async def test_a_job_that_failed_ends_with_its_status(tmp_path: Path, socket: Path) -> None:
    for code, status in (("corrupt_input", 6), ("no_space", 9), ("builder_failed", 20), ("something_new", 1)):
        error = JobError(code=code, message="layer sha256:ab is cut", retryable=False)
        async with serving(tmp_path, job_service=MemoryBoard(a_job(1, JobState.FAILED, error=error))):
            done = await run(socket, "jobs", "watch", a_job(1).id, "-q")
            assert (done.status, done.stdout) == (status, "")
            assert "layer sha256:ab is cut" in done.stderr


async def test_a_job_that_was_cancelled(tmp_path: Path, socket: Path) -> None:
    async with serving(tmp_path, job_service=MemoryBoard(a_job(1, JobState.CANCELLED))):
        done = await run(socket, "jobs", "watch", a_job(1).id)
        assert done.status == 130
        assert "was cancelled" in done.stderr


class TestConvertRemote:
    async def test_the_daemon_does_it(self, tmp_path: Path, socket: Path) -> None:
        words = ("convert", "--remote", "oci:lay:a", TARGET, "-n", "k8s.io", "--oci", "--compressor", "zstd")
        async with (
            serving(tmp_path) as served,
            running(socket, *words, "--priority", "5", "--format", "json") as process,
        ):
            await until_watched(served)
            ((request, origin, priority),) = served.job_service.submitted
            assert (origin, priority, request.namespace) == ("grpc", 5, "k8s.io")
            assert request.source == f"oci:{os.getcwd()}/lay:a"
            options = request.options
            assert (options.oci, options.build.compressor, options.with_referrer) == (True, "zstd", True)
            (job_id,) = served.job_service.jobs
            served.job_service.move(job_id, JobState.DONE)
            printed = (await ended(process)).json
            result = served.job_service.get(job_id).result
            assert result
            assert printed == result.as_json()

    async def test_what_is_not_said_the_configuration_says(self, tmp_path: Path, socket: Path) -> None:
        async with serving(tmp_path) as served, running(socket, "convert", "--remote", SOURCE, TARGET):
            await until_watched(served)
            assert served.job_service.submitted[0][0].options.build.compressor == "lz4_block"

    @pytest.mark.conditions
    async def test_who_is_interrupted_watches_no_longer(self, tmp_path: Path, socket: Path) -> None:
        async with (
            serving(tmp_path) as served,
            running(socket, "convert", "--remote", SOURCE, TARGET) as process,
        ):
            await until_watched(served)
            (job_id,) = served.job_service.jobs
            process.send_signal(signal.SIGINT)
            done = await ended(process)
            assert done.status == 130
            assert f"job {job_id} goes on" in done.stderr
            assert f"nydus-service jobs cancel {job_id}" in done.stderr
            assert served.job_service.get(job_id).state is JobState.QUEUED
            await until_watched(served, 0)

    async def test_a_daemon_that_is_restarted_is_waited_for(self, tmp_path: Path, socket: Path) -> None:
        job_service = MemoryBoard()
        async with AsyncExitStack() as stack:
            async with serving(tmp_path, job_service=job_service) as served:
                converting = running(socket, "convert", "--remote", SOURCE, TARGET)
                process = await stack.enter_async_context(converting)
                await until_watched(served)
            async with serving(tmp_path, job_service=job_service) as served:
                await until_watched(served)
                (job_id,) = job_service.jobs
                job_service.move(job_id, JobState.DONE)
                done = await ended(process)
        assert done.status == 0
        assert "waiting for it to come back" in done.stderr
        assert len(job_service.submitted) == 1

    async def test_a_dry_run(self, tmp_path: Path, socket: Path) -> None:
        async with serving(tmp_path) as served:
            done = await run(socket, "convert", "--remote", "--dry-run", SOURCE, TARGET)
            assert (done.status, done.stdout) == (0, "would be unchanged: it is a nydus image\n")
            assert not served.job_service.submitted
            served.runner.failure = UnsupportedError("a layer of another kind")
            assert (await run(socket, "convert", "--remote", "--dry-run", SOURCE, TARGET)).status == 5

    async def test_a_refusal_ends_with_its_status(self, tmp_path: Path, socket: Path) -> None:
        async with serving(tmp_path) as served:
            served.job_service.refusal = QueueFull("10000 jobs wait already; ask again later")
            done = await run(socket, "convert", "--remote", SOURCE, TARGET)
            assert done.status == QueueFull.exit_code
            assert done.stderr == "nydus-service: 10000 jobs wait already; ask again later\n"

    @pytest.mark.parametrize(
        "words",
        [
            ["--remote", "--jobs", "2"],
            ["--remote", "--append-file", "/etc/hostname"],
            ["--remote", "--work-dir", "/tmp"],
            ["--remote", "--nydus-image", "embedded"],
            ["--remote", "--builder-timeout", "3"],
            ["--remote", "-a", "/run/x.sock"],
            ["--socket", "/run/x.sock"],
            ["--priority", "3"],
        ],
    )
    async def test_options_that_do_not_go_with_it(self, socket: Path, words: list[str]) -> None:
        done = await run(socket, "convert", SOURCE, TARGET, *words)
        assert done.status == 2
        assert "--remote" in done.stderr


@pytest.mark.parametrize(
    "words", [("jobs", "list"), ("jobs", "watch"), ("convert", "--remote", SOURCE, TARGET)], ids=" ".join
)
async def test_no_daemon(socket: Path, words: tuple[str, ...]) -> None:
    done = await run(socket, *words)
    assert (done.status, done.stdout) == (8, "")
    assert done.stderr.startswith(f"nydus-service: no daemon listens at {socket}: start it")
    assert done.stderr.count("\n") == 1


def test_help_needs_no_grpc() -> None:
    code = (
        "import sys; from nydus_service.cli.main import main; main(['jobs', 'list', '--help']);"
        "print('grpc' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.stderr == "False\n"
