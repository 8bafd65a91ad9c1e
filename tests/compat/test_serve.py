"""The daemon as a process: ready, drained, killed, at rest; its jobs over layouts and a real containerd."""

import json
import os
import random
import signal
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

from nydus_service.api.client import ApiClient, open_client
from nydus_service.jobs.job import Job, JobState
from tests.compat.images import archive_layout, write_layout
from tests.compat.requests import until
from tests.compat.serving import TOKEN
from tests.containerd import Daemon, new_namespace, once_is_enough
from tests.layers import directory, file, layer
from tests.serving import NOWHERE, QUIET, Service, serving
from tests.unit.cli.command import environment, run, run_json


def write_images(layout: Path, count: int, *, size: int = 1000) -> list[str]:
    """Small images, all different, in a layout. Returns references to them."""
    for number in range(count):
        content = random.Random(number).randbytes(size)
        write_layout_image(layout, layer(directory("d"), file("d/f", content)), f"t{number}")
    return [f"oci:{layout}:t{number}" for number in range(count)]


def write_layout_image(layout: Path, tar: bytes, tag: str) -> None:
    """Add an image of one layer to a layout."""
    with tempfile.TemporaryDirectory(dir=layout.parent) as name:
        alone = Path(name) / "layout"
        write_layout(alone, [tar], tag)
        for blob in (alone / "blobs" / "sha256").iterdir():
            (layout / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
            blob.rename(layout / "blobs" / "sha256" / blob.name)
        index = json.loads((alone / "index.json").read_text())
        there = layout / "index.json"
        if there.exists():
            index["manifests"] += json.loads(there.read_text())["manifests"]
        there.write_text(json.dumps(index))
        (layout / "oci-layout").write_text((alone / "oci-layout").read_text())


async def wait_until_finished(client: ApiClient, ids: list[str]) -> dict[str, Job]:
    """Jobs, once all of them have ended."""
    jobs = {}
    for job_id in ids:
        async for job in client.watch(job_id):
            jobs[job_id] = job
        assert jobs[job_id].is_finished
    return jobs


async def wait_until_packing(client: ApiClient, job_id: str) -> None:
    async for job in client.watch(job_id):
        if job.progress.stage == "packing":
            return
    raise AssertionError(f"{job_id} ended without packing anything")


# Start and end.


async def test_a_job_by_the_client_is_the_command_s_own(place: Path) -> None:
    (source,) = write_images(place / "layout", 1)
    with serving(place, NOWHERE) as service:
        done = service.run(
            "convert", source, f"oci:{place}/layout:remote", "--remote", "--format", "json", "-q"
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert service.stop() == 0
        service.assert_nothing_left()
    remote = json.loads(done.stdout)
    local = run_json("convert", source, f"oci:{place}/layout:local", "-q")
    assert remote["status"] == local["status"] == "converted"
    assert remote["target"]["descriptor"] == local["target"]["descriptor"]
    assert remote["fingerprint"] == local["fingerprint"]


async def start_big_job(service: Service, place: Path, size_mb: int) -> Job:
    """Have it convert an image that takes seconds, and wait until it is at it."""
    assert run("sample", str(place / "layout"), "--size-mb", str(size_mb), "--tag", "big").returncode == 0
    async with open_client(service.socket) as client:
        job = (await client.submit(f"oci:{place}/layout:big", f"oci:{place}/layout:nydus")).job
        await wait_until_packing(client, job.id)
    return job


async def test_a_drained_daemon_ends_its_job_first(place: Path) -> None:
    with serving(place, NOWHERE) as service:
        job = await start_big_job(service, place, 30)
        assert service.stop() == 0
        service.assert_nothing_left()
        service.start()
        assert service.jobs("show", job.id)["state"] == "done"
        assert service.stop() == 0


async def test_a_job_that_takes_too_long_is_put_back_and_done_by_the_next(place: Path) -> None:
    config = "version = 1\n[daemon]\ndrain_timeout = 0\n"
    with serving(place, NOWHERE, config=config) as service:
        job = await start_big_job(service, place, 60)
        assert service.stop() == 0
        service.assert_nothing_left()
        service.start()
        async with open_client(service.socket) as client:
            jobs = await wait_until_finished(client, [job.id])
        assert jobs[job.id].state is JobState.DONE
        assert jobs[job.id].attempts == 2
        assert jobs[job.id].interruptions == 0


async def test_a_second_signal_does_not_wait(place: Path) -> None:
    config = "version = 1\n[daemon]\ndrain_timeout = '1h'\n"
    with serving(place, NOWHERE, config=config) as service:
        await start_big_job(service, place, 60)
        service.signal(signal.SIGTERM)
        service.signal(signal.SIGINT)
        assert service.wait() == 0
        service.assert_nothing_left()


def test_one_daemon_over_one_journal(place: Path) -> None:
    with serving(place, NOWHERE) as service:
        words = service.words()
        words[words.index("--socket") + 1] = str(place / "other.sock")
        other = run("serve", *words)
        assert other.returncode == 8
        assert "jobs.sqlite" in other.stderr
        assert other.stderr.count("\n") <= 2
        assert service.stop() == 0


def test_a_configuration_that_is_wrong_is_told_whole(place: Path) -> None:
    (place / "config.toml").write_text("version = 1\n[job]\nx = 1\n[jobs]\nrunnig = 2\nbuilders = 'many'\n")
    done = run("serve", "--config", str(place / "config.toml"), env=environment(place))
    assert done.returncode == 2
    for named in ("job", "did you mean", "runnig", "builders"):
        assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_rules_that_are_wrong_leave_the_old_ones(place: Path) -> None:
    with serving(place, NOWHERE) as service:
        (place / "config.toml").write_text("version = 2\n")
        service.signal(signal.SIGHUP)
        while not any(record["level"] == "error" for record in service.records):
            assert service.is_running()
            time.sleep(0.01)
        assert any("stays as it was" in record["message"] for record in service.records)
        assert service.stop() == 0


def test_a_reload_while_the_daemon_starts(place: Path) -> None:
    """It takes effect after the start; the default of SIGHUP would end the daemon."""
    service = Service(place, place / "containerd")
    with ThreadPoolExecutor() as pool, socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(service.containerd))
        frozen.listen()
        started = pool.submit(service.start)
        try:
            frozen.accept()[0].close()  # the daemon asks whether containerd is available, and is not ready
            service.signal(signal.SIGHUP)
            frozen.close()
            started.result()
            until(lambda: "are reloaded" in service.log)
            assert service.stop() == 0
        finally:
            if service.is_running():
                service.kill()


async def test_other_options_by_a_reload(place: Path) -> None:
    (source,) = write_images(place / "layout", 1)
    with serving(place, NOWHERE) as service:
        (place / "config.toml").write_text("version = 1\n[convert]\ncompressor = 'lz4_block'\n")
        service.signal(signal.SIGHUP)
        while not any("are reloaded" in record["message"] for record in service.records):
            assert service.is_running()
            await anyio.sleep(0.01)
        async with open_client(service.socket) as client:
            job = (await client.submit(source, f"oci:{place}/layout:n")).job
        assert job.request.options.build.compressor == "lz4_block"
        assert service.stop() == 0


@pytest.mark.parametrize(("follows", "health"), [("true", 503), ("false", 200)])
def test_the_http_server(place: Path, follows: str, health: int) -> None:
    """It is not healthy as long as it should follow a containerd that is not there."""
    config = f"version = 1\n[triggers]\nlabels = {follows}\nevents = false\n"
    token = place / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    options = ("--http", "127.0.0.1:0", "--http-token-file", str(token))
    with serving(place, NOWHERE, config=config, options=options) as service:
        (listening,) = (record for record in service.records if record["message"].startswith("HTTP on "))
        assert anyio.run(_ask, listening["message"].removeprefix("HTTP on ")) == (health, 401, 200)
        assert service.memory_mb() < 90
        assert service.stop() == 0


async def _ask(address: str) -> tuple[int, int, int]:
    import aiohttp

    async with aiohttp.ClientSession(f"http://{address}") as session:
        async with session.get("/healthz") as healthz, session.get("/metrics") as refused:
            statuses = healthz.status, refused.status
        async with session.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}) as metrics:
            assert "nydus_service_build_info" in await metrics.text()
            return *statuses, metrics.status


# At rest, and after many jobs.


def test_at_rest(place: Path) -> None:
    """Memory and processor time of a daemon that nobody asks for anything."""
    with serving(place, NOWHERE, config=QUIET) as service:
        time.sleep(3)
        before = service.cpu_s()
        time.sleep(5)
        assert service.cpu_s() - before <= 0.005  # 0.1 %
        assert service.memory_mb() <= 70
        assert service.stop() == 0


@pytest.mark.long
@pytest.mark.timeout(500)
async def test_500_small_jobs_leave_nothing_behind(place: Path) -> None:
    sources = write_images(place / "layout", 20)
    options = {"verify": "tree"}
    with serving(place, NOWHERE) as service:
        async with open_client(service.socket) as client:

            async def convert(first: int, count: int) -> None:
                targets = [f"oci:{place}/layout:n{number}" for number in range(first, first + count)]
                ids = [
                    (await client.submit(sources[number % 20], target, options=options)).job.id
                    for number, target in enumerate(targets)
                ]
                jobs = await wait_until_finished(client, ids)
                assert {job.state for job in jobs.values()} == {JobState.DONE}

            await convert(0, 100)
            memory, (threads, files) = service.memory_mb(), service.counts()
            await convert(100, 400)
            assert service.memory_mb() <= memory + 15
            later = service.counts()
            assert later[0] <= threads + 2
            assert later[1] <= files + 2
            assert service.children() == set()
        assert service.stop() == 0
        service.assert_nothing_left()


# Asked by `ctr` alone.


def import_all(daemon: Daemon, namespace: str, layout: Path) -> list[str]:
    """Have the images of a layout in containerd. Returns their names."""
    archive = layout.with_name(f"{layout.name}.tar")
    archive_layout(layout, archive)
    words = ("images", "import", "--no-unpack", "--base-name", "example.com/app")
    daemon.ctr(namespace, *words, str(archive))
    return sorted(daemon.lines(namespace, "images", "ls", "-q"))


def labels_of(daemon: Daemon, namespace: str) -> dict[str, dict[str, str]]:
    """Names of images, and their labels."""
    header, *rows = daemon.ctr(namespace, "images", "ls").splitlines()
    column = header.index("LABELS")
    pairs = {row.split()[0]: row[column:].strip() for row in rows}
    return {
        name: dict(label.partition("=")[::2] for label in said.split(",") if "=" in label)
        for name, said in pairs.items()
    }


def wait_for_answers(service: Service, daemon: Daemon, namespace: str, names: list[str]) -> None:
    """Wait until all of these images say that they are done."""
    while True:
        labels = labels_of(daemon, namespace)
        answers = {name: labels[name].get("nydus-service/status", "") for name in names}
        assert "failed" not in answers.values(), labels
        if set(answers.values()) == {"done"}:
            return
        assert service.is_running(), service.log
        time.sleep(0.2)


def test_asked_by_ctr_alone(place: Path, daemon: Daemon) -> None:
    namespace = new_namespace()
    write_images(place / "layout", 1)
    (name,) = import_all(daemon, namespace, place / "layout")
    with serving(place, daemon.address) as service:
        options = "nydus-service/convert.options=compressor=lz4_block,verify=full"
        daemon.ctr(namespace, "images", "label", name, f"nydus-service/convert={name}-nydus", options)
        wait_for_answers(service, daemon, namespace, [name])
        labels = labels_of(daemon, namespace)[name]
        job = service.jobs("show", labels["nydus-service/job"])
        assert job["origin"] == "label"
        assert service.stop() == 0
        service.assert_nothing_left()
    env = environment(place, CONTAINERD_ADDRESS=str(daemon.address), CONTAINERD_NAMESPACE=namespace)
    checked = run_json("check", f"{name}-nydus", "--against", name, env=env)
    assert checked["verdict"] == "equal"
    assert labels["nydus-service/result"] == f"{name}-nydus@{checked['target']['digest']}"
    assert daemon.lines(namespace, "leases", "ls", "-q") == []


@pytest.mark.long
@pytest.mark.timeout(400)
def test_200_images_at_once(place: Path, daemon: Daemon) -> None:
    """All are done, with bounded memory and processes, though the daemon is killed in between."""
    once_is_enough(daemon)
    namespace = new_namespace()
    write_images(place / "layout", 200)
    names = import_all(daemon, namespace, place / "layout")
    assert len(names) == 200
    with serving(place, daemon.address, options=("--jobs", "2")) as service:
        for name in names:
            daemon.ctr(namespace, "images", "label", name, f"nydus-service/convert={name}-nydus")
        most, peak = 0, 0.0
        for killed in range(4):
            for _ in range(20):
                most, peak = max(most, len(service.children())), max(peak, service.memory_mb())
                time.sleep(0.1)
            if killed < 2:
                service.kill()
                service.start()
        wait_for_answers(service, daemon, namespace, names)
        assert most <= 6  # two builders, two that verify, and for each of two jobs who forks
        assert peak <= 130
        assert service.stop() == 0
        service.assert_nothing_left()
    labels = labels_of(daemon, namespace)
    assert {f"{name}-nydus" for name in names} <= set(labels)
    assert {labels[name]["nydus-service/result"].partition("@")[0] for name in names} == {
        f"{name}-nydus" for name in names
    }
    assert daemon.lines(namespace, "leases", "ls", "-q") == []


# Killed under load.


async def submit_all(service: Service, pairs: list[tuple[str, str]], namespace: str) -> list[str]:
    async with open_client(service.socket) as client:
        return [(await client.submit(source, target, namespace=namespace)).job.id for source, target in pairs]


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_killed_under_load_again_and_again(place: Path, daemon: Daemon) -> None:
    """No job is lost, none is done with another result, nothing is left over."""
    once_is_enough(daemon)
    namespace = new_namespace()
    for number in range(10):
        layout = place / f"layout{number}"
        tar = layer(directory("d"), *(file(f"d/{n}", os.urandom(200_000)) for n in range(20)))
        write_layout(layout, [tar], f"{number}")
        archive_layout(layout, place / "image.tar")
        daemon.ctr(
            namespace,
            "images",
            "import",
            "--no-unpack",
            "--base-name",
            "example.com/app",
            str(place / "image.tar"),
        )
    names = sorted(daemon.lines(namespace, "images", "ls", "-q"))
    assert len(names) == 10
    pairs = [(name, f"{name}-nydus") for name in names]
    chance = random.Random(7)
    with serving(place, daemon.address, options=("--jobs", "2")) as service:
        ids = await submit_all(service, pairs, namespace)
        for _ in range(8):
            await anyio.sleep(chance.uniform(0.1, 2.0))
            service.kill()
            service.start()
            assert (
                await submit_all(service, pairs[:3], namespace) != []
            )  # more of the same joins, or is unchanged
        async with open_client(service.socket) as client:
            jobs = await wait_until_finished(client, ids)
            # A job that failed is not retried while a later one does the same.
            await wait_until_finished(client, [job.id for job in (await client.list(page_size=1000)).jobs])
            for job in jobs.values():
                if job.error and job.error.code == "interrupted_repeatedly":
                    await client.retry(job.id)
                    await wait_until_finished(client, [job.id])
            jobs = await wait_until_finished(client, ids)
            assert {(job.state, job.error) for job in jobs.values()} == {(JobState.DONE, None)}
            everything = (await client.list(page_size=1000)).jobs
            await wait_until_finished(client, [job.id for job in everything])
        assert service.stop() == 0
        service.assert_nothing_left()
    assert daemon.lines(namespace, "leases", "ls", "-q") == []
    assert daemon.ctr(namespace, "content", "active").splitlines()[1:] == []
    env = environment(place, CONTAINERD_ADDRESS=str(daemon.address), CONTAINERD_NAMESPACE=namespace)
    for source, target in pairs:
        again: Any = run_json("convert", source, f"{target}-again", "-q", "--force", env=env)
        result = run_json("check", target, "--against", source, "--verify", "full", env=env)
        assert result["verdict"] == "equal"
        assert again["target"]["descriptor"]["digest"] == result["target"]["digest"]
