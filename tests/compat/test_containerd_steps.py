"""A conversion in containerd, killed or swept of garbage at each step that changes something."""

import asyncio
import json
import os
import random
import signal
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.compat.images import archive_layout, write_layout
from tests.containerd import VERSIONS, Daemon, new_namespace, running_daemon
from tests.grpcproxy import CHANGES, running_proxy
from tests.layers import file, layer
from tests.unit.cli.command import ARGV, environment, run, run_json

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

APP, NYDUS = "docker.io/library/app:1", "docker.io/library/app:1-nydus"
FEW = 5
"""Disturbances of the newer daemon, which has to behave like the older one."""


@dataclass
class Disturbed:
    """A namespace that has the sample, behind a proxy."""

    daemon: Daemon
    namespace: str
    socket: Path
    temporary: Path
    steps: list[str] = field(default_factory=list)
    process: "asyncio.subprocess.Process | None" = None

    def environment(self, address: Path) -> dict[str, str]:
        return environment(
            self.temporary, CONTAINERD_ADDRESS=str(address), CONTAINERD_NAMESPACE=self.namespace
        )

    async def convert(self, target: str = NYDUS) -> tuple[int, str, str]:
        """Convert through the proxy. Returns status, stdout, stderr."""
        argv = [*ARGV, "convert", APP, target, "-q", "--force", "--format", "json"]
        self.process = await asyncio.create_subprocess_exec(
            *argv,
            env=self.environment(self.socket),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            stdout, stderr = await self.process.communicate()
        finally:
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()
        assert self.process.returncode is not None
        return self.process.returncode, stdout.decode(), stderr.decode()

    async def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        await asyncio.Event().wait()  # the step is not done, or not answered

    def convert_again(self) -> str:
        """As the next user would, without a proxy. Returns the target's digest."""
        result = run_json("convert", APP, NYDUS, "-q", env=self.environment(self.daemon.address))
        return str(result["target"]["descriptor"]["digest"])

    def assert_nothing_left(self) -> None:
        assert self.daemon.lines(self.namespace, "leases", "ls", "-q") == []
        assert self.daemon.ctr(self.namespace, "content", "active").splitlines()[1:] == []
        assert list(self.temporary.iterdir()) == []

    def forget(self) -> list[str]:
        """Remove the target and all garbage. Returns what content is left."""
        self.daemon.ctr(self.namespace, "images", "rm", "--sync", NYDUS)
        self.daemon.collect(self.namespace)
        return sorted(self.daemon.lines(self.namespace, "content", "ls", "-q"))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of a small image."""
    directory = tmp_path_factory.mktemp("sample")
    assert run("sample", directory / "layout", "--size-mb", "1", "--tag", "1").returncode == 0
    with tarfile.open(directory / "image.tar", "w") as tar:
        tar.add(directory / "layout", arcname=".")
    return directory / "image.tar"


def disturb(daemon: Daemon, sample: Path, tmp_path: Path) -> Disturbed:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    here = Disturbed(daemon, new_namespace(), tmp_path / "proxy", temporary)
    argv = ("images", "import", "--no-unpack", "--base-name", "docker.io/library/app", str(sample))
    daemon.ctr(here.namespace, *argv)
    daemon.collect(here.namespace)
    return here


def chosen(daemon: Daemon, count: int) -> range:
    """At which of a number of steps to disturb: all; on the newer daemon a few."""
    return range(0, count, 1 if daemon.version == "1.6" else count // FEW)


@pytest.fixture
def disturbed(daemon: Daemon, sample: Path, tmp_path: Path) -> Disturbed:
    return disturb(daemon, sample, tmp_path)


async def test_killed_at_every_change(disturbed: Disturbed) -> None:
    before = sorted(disturbed.daemon.lines(disturbed.namespace, "content", "ls", "-q"))
    steps: list[tuple[str, str]] = []
    kill_at = -1

    async def on_step(when: str, name: str) -> None:
        if name in CHANGES:
            steps.append((when, name))
            if len(steps) - 1 == kill_at:
                await disturbed.kill()

    async with running_proxy(disturbed.daemon.address, disturbed.socket, on_step):
        status, stdout, stderr = await disturbed.convert()
        assert (status, stderr) == (0, "")
        digest = json.loads(stdout)["target"]["descriptor"]["digest"]
        assert disturbed.forget() == before
        count = len(steps)
        names = {name for _, name in steps}
        assert names >= {"Leases/Create", "Leases/Delete", "Content/Write COMMIT", "Images/Create"}
        assert count >= 25
        for kill_at in chosen(disturbed.daemon, count):
            steps.clear()
            status, _, stderr = await disturbed.convert()
            assert (status, stderr) == (-signal.SIGKILL, ""), (kill_at, steps)
            assert await asyncio.to_thread(disturbed.convert_again) == digest
            disturbed.assert_nothing_left()
            assert disturbed.forget() == before


async def test_killed_in_the_middle_of_a_stream(daemon: Daemon, tmp_path: Path) -> None:
    """The layer is too large for one message, and too random to become smaller."""
    tar = layer(file("random", random.Random(1).randbytes(9 << 20)), file("text", b"text"))
    write_layout(tmp_path / "layout", [tar], "1", gzip=True)
    archive_layout(tmp_path / "layout", tmp_path / "image.tar")
    here = disturb(daemon, tmp_path / "image.tar", tmp_path)
    before = sorted(daemon.lines(here.namespace, "content", "ls", "-q"))
    count, kill_at = 0, -1

    async def on_step(when: str, name: str) -> None:
        nonlocal count
        if name == "Content/Write WRITE":
            count += 1
            if count - 1 == kill_at:
                await here.kill()

    async with running_proxy(daemon.address, here.socket, on_step):
        status, stdout, stderr = await here.convert()
        assert (status, stderr) == (0, "")
        digest = json.loads(stdout)["target"]["descriptor"]["digest"]
        assert here.forget() == before
        assert count >= 8
        for kill_at in chosen(daemon, count):
            count = 0
            status, _, stderr = await here.convert()
            assert (status, stderr) == (-signal.SIGKILL, ""), kill_at
            assert daemon.ctr(here.namespace, "content", "active").splitlines()[1:], kill_at
            assert await asyncio.to_thread(here.convert_again) == digest
            here.assert_nothing_left()
            assert here.forget() == before


async def test_interrupted_at_every_change(disturbed: Disturbed) -> None:
    """Ctrl-C: within two seconds all is gone, and no other run has to clear up. Also once all is done."""
    before = sorted(disturbed.daemon.lines(disturbed.namespace, "content", "ls", "-q"))
    steps, interrupt_at = 0, -1
    interrupted = ended = 0.0

    async def on_step(when: str, name: str) -> None:
        nonlocal steps, interrupted
        if name in CHANGES:
            steps += 1
            if steps - 1 == interrupt_at:
                assert disturbed.process is not None
                disturbed.process.send_signal(signal.SIGINT)
                interrupted = time.monotonic()

    async with running_proxy(disturbed.daemon.address, disturbed.socket, on_step):
        assert (await disturbed.convert())[0] == 0
        assert disturbed.forget() == before
        for interrupt_at in chosen(disturbed.daemon, steps):
            steps, interrupted = 0, 0.0
            status, stdout, stderr = await disturbed.convert()
            ended = time.monotonic()
            if status == 0:
                assert json.loads(stdout)["status"] == "converted"
            else:
                assert (status, stdout, stderr) == (130, "", "nydus-service: interrupted\n")
            assert interrupted, interrupt_at
            assert ended - interrupted < 2, interrupt_at
            disturbed.assert_nothing_left()
            if disturbed.daemon.lines(disturbed.namespace, "images", "ls", "-q") != [APP]:
                assert disturbed.convert_again()
                assert disturbed.forget() == before
            disturbed.daemon.collect(disturbed.namespace)
            assert sorted(disturbed.daemon.lines(disturbed.namespace, "content", "ls", "-q")) == before


async def test_garbage_collected_at_every_change(disturbed: Disturbed) -> None:
    before = sorted(disturbed.daemon.lines(disturbed.namespace, "content", "ls", "-q"))
    collections = 0

    async def on_step(when: str, name: str) -> None:
        nonlocal collections
        if name in CHANGES:
            await asyncio.to_thread(disturbed.daemon.collect, disturbed.namespace)
            collections += 1

    async with running_proxy(disturbed.daemon.address, disturbed.socket, on_step):
        status, stdout, stderr = await disturbed.convert()
    assert (status, stderr) == (0, "")
    assert collections >= 25
    disturbed.assert_nothing_left()
    disturbed.daemon.collect(disturbed.namespace)
    env = disturbed.environment(disturbed.daemon.address)
    result = run_json("check", NYDUS, "--against", APP, "--verify", "full", env=env)
    assert result["verdict"] == "equal"
    assert disturbed.convert_again() == json.loads(stdout)["target"]["descriptor"]["digest"]
    assert disturbed.forget() == before


async def test_a_source_that_is_removed_while_it_is_converted_elsewhere(disturbed: Disturbed) -> None:
    target = f"oci:{disturbed.temporary.parent}/layout:1-nydus"
    digest = disturbed.convert_again()
    removed = 0

    async def on_step(when: str, name: str) -> None:
        nonlocal removed
        if (when, name) == ("after", "Leases/AddResource") and not removed:
            removed = 1
            for image in (APP, NYDUS):
                await asyncio.to_thread(
                    disturbed.daemon.ctr, disturbed.namespace, "images", "rm", "--sync", image
                )

    async with running_proxy(disturbed.daemon.address, disturbed.socket, on_step):
        status, stdout, stderr = await disturbed.convert(target)
    assert (status, stderr, removed) == (0, "", 1)
    assert json.loads(stdout)["target"]["descriptor"]["digest"] == digest
    disturbed.assert_nothing_left()
    disturbed.daemon.collect(disturbed.namespace)
    assert disturbed.daemon.lines(disturbed.namespace, "content", "ls", "-q") == []


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_daemon_that_is_killed_and_comes_back(version: str, sample: Path, tmp_path: Path) -> None:
    """Wherever the daemon is killed, the job goes on or says why not, and the next one is right."""
    with running_daemon(version, tmp_path) as daemon:
        here = disturb(daemon, sample, tmp_path)
        digest = here.convert_again()
        before = here.forget()

        def restart() -> None:
            daemon.kill()
            daemon.start()

        for kill_at in range(0, 26, 2 if version == "1.6" else FEW):
            steps = 0
            restarts: list[asyncio.Future[None]] = []

            async def on_step(
                when: str, name: str, kill_at: int = kill_at, restarts: list[asyncio.Future[None]] = restarts
            ) -> None:
                nonlocal steps
                if name in CHANGES and steps <= kill_at:
                    steps += 1
                    if steps > kill_at:
                        restarts.append(asyncio.ensure_future(asyncio.to_thread(restart)))
                        await asyncio.shield(restarts[-1])  # the job may give up meanwhile

            async with running_proxy(daemon.address, here.socket, on_step):
                status, stdout, stderr = await here.convert()
            assert steps == kill_at + 1
            await restarts[0]
            if status:
                assert (status, stdout) == (8, ""), (kill_at, stderr)
                assert "does not answer" in stderr
            else:
                assert json.loads(stdout)["target"]["descriptor"]["digest"] == digest
            assert here.convert_again() == digest
            here.assert_nothing_left()
            assert here.forget() == before
