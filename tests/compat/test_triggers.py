"""Requests in labels and new images, in a real containerd, asked for by its own `ctr`.

The jobs are the real ones. What they run is a stand-in that names a target, or, where it says so, the
converter itself.
"""

import tarfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from nydus_service.config.environment import Settings
from nydus_service.config.sections import (
    ContainerdSection,
    DaemonConfig,
    DaemonSection,
    RuleEntry,
    TriggersSection,
)
from nydus_service.content.containerd.events import open_image_node
from nydus_service.content.containerd.stores import open_containerd
from nydus_service.content.imagenode import ImageNode
from nydus_service.content.store import Image
from nydus_service.convert.progress import Progress
from nydus_service.convert.uptodate import record
from nydus_service.daemon.identity import open_identity
from nydus_service.daemon.worker import Worker
from nydus_service.errors import FormatError
from nydus_service.jobs.job import Job, JobState
from nydus_service.jobs.journal import open_journal
from nydus_service.jobs.queue import JobQueue, QueueLimits
from nydus_service.jobs.service import Runner
from nydus_service.observe.metrics import Metrics
from nydus_service.observe.traces import NoTracing
from nydus_service.oci.reference import ImageReference
from nydus_service.triggers.images import ImageTriggers
from nydus_service.triggers.labels import CONVERT, OPTIONS
from nydus_service.triggers.rules import RuleBook
from tests.containerd import VERSIONS, Daemon, new_namespace, running_daemon
from tests.contract.location import add_image, write_manifest
from tests.unit.cli.command import run
from tests.unit.jobs.runner import PLENTY, Script, descriptor

STATUS, RESULT, ERROR = "nydus-service/status", "nydus-service/result", "nydus-service/error"
JOB, REQUEST = "nydus-service/job", "nydus-service/request"
RULE_STATUS, RULE_RESULT = "nydus-service/rule.status", "nydus-service/rule.result"
PATIENCE_S = 60

Labels = Mapping[str, str]


@dataclass
class Naming(Script):
    """Does a job by giving the target's name to the source, with the labels of a result."""

    address: Path = Path()
    jobs_dir: Path = Path()

    async def convert(self, job: Job, progress: Progress) -> Any:
        done = await super().convert(job, progress)
        source, target = ImageReference.parse(job.request.source), job.request.target
        async with open_containerd(self.address, job.request.namespace, self.jobs_dir) as stores:
            image = await stores.images.get(source.name)
            digest = image.target.digest
            labels = record(target, digest, source=digest, fingerprint="f" * 64, verified="tree")
            await stores.images.put(Image(target, image.target, labels))
        return done


@dataclass(frozen=True)
class Location:
    """A namespace of a containerd, and where the daemon of ours has its files."""

    daemon: Daemon
    namespace: str
    directory: Path

    async def ctr(self, *argv: str) -> str:
        return await anyio.to_thread.run_sync(self.daemon.ctr, self.namespace, *argv)

    async def label(self, name: str, **labels: str) -> None:
        """As users do it: `ctr images label NAME KEY=VALUE`; an empty value removes a label."""
        keys = {"convert": CONVERT, "options": OPTIONS, "status": STATUS}
        await self.ctr("images", "label", name, *(f"{keys[key]}={value}" for key, value in labels.items()))

    async def add(self, *names: str) -> None:
        async with open_containerd(self.daemon.address, self.namespace, self.directory / "jobs") as stores:
            for name in names:
                await add_image(stores, name)

    async def move(self, name: str, content: str) -> None:
        """Have a name point to something else, as a pull does, but with its labels."""
        async with open_containerd(self.daemon.address, self.namespace, self.directory / "jobs") as stores:
            async with stores.leases.open_lease("moving") as lease:
                await stores.images.put(Image(name, await write_manifest(lease.content, content)))

    def section(self) -> DaemonSection:
        return DaemonSection(state_dir=self.directory, run_dir=self.directory / "run")

    def runner(self) -> Naming:
        return Naming(address=self.daemon.address, jobs_dir=self.directory / "jobs")

    async def labels(self, name: str) -> Labels:
        async with open_image_node(self.daemon.address) as node:
            return await self._labels(node, name)

    async def _labels(self, node: ImageNode, name: str) -> Labels:
        image = await node.find(self.namespace, name)
        return image.labels if image else {}

    async def until(self, is_there: Callable[[Labels], bool], *names: str) -> dict[str, Labels]:
        """Wait until the labels of all these images are so. Returns them."""
        found: dict[str, Labels] = {}
        async with open_image_node(self.daemon.address) as node, node.subscribe([self.namespace]) as events:
            with anyio.fail_after(PATIENCE_S):
                for name in names:
                    while not is_there(found.setdefault(name, await self._labels(node, name))):
                        async for event in events:
                            if event.name == name:
                                break
                        found[name] = await self._labels(node, name)
        return found

    async def until_status(self, status: str, *names: str) -> dict[str, Labels]:
        return await self.until(lambda labels: labels.get(STATUS) == status, *names)


@dataclass(frozen=True)
class Service:
    """Queue and triggers at work."""

    queue: JobQueue
    triggers: ImageTriggers

    def jobs(self, *states: JobState) -> list[Job]:
        return self.queue.list(states=states, limit=100000)


@asynccontextmanager
async def serving(
    place: Location,
    runner: Runner,
    *,
    rules: Sequence[RuleEntry] = (),
    everywhere: bool = False,
    **limits: Any,
) -> AsyncIterator[Service]:
    """Work inside the block, over the journal that earlier blocks have left; then end as if killed."""
    settings = TriggersSection(namespaces=() if everywhere else (place.namespace,))
    book = RuleBook.of(DaemonConfig(rules=tuple(rules)))
    place.directory.mkdir(exist_ok=True)
    async with (
        open_journal(place.directory / "journal") as journal,
        open_identity(place.section()) as sign,
        anyio.create_task_group() as tasks,
    ):
        given = QueueLimits(**{"running": 2, "first_pause_s": 0.01} | limits)
        queue = JobQueue(journal, runner, given, measure=lambda _: PLENTY)
        open_node = partial(open_image_node, place.daemon.address)
        triggers = ImageTriggers(queue, open_node, book, settings, sign)
        tasks.start_soon(queue.run)
        tasks.start_soon(triggers.run)
        yield Service(queue, triggers)
        tasks.cancel_scope.cancel()


@pytest.fixture
def place(daemon: Daemon, tmp_path: Path) -> Location:
    return Location(daemon, new_namespace(), tmp_path / "state")


async def test_a_label_alone(place: Location) -> None:
    await place.add("app:1")
    async with serving(place, place.runner()) as service:
        await place.label("app:1", convert="app:1-nydus", options="compressor=none,chunk-size=0x1000")
        labels = (await place.until_status("done", "app:1"))["app:1"]
        (job,) = service.jobs()
    image = (await place.ctr("images", "ls", "-q")).split()
    assert image == ["app:1", "app:1-nydus"]
    assert labels[RESULT] == f"app:1-nydus@{descriptor().digest}"
    assert labels[JOB] == job.id
    assert ERROR not in labels
    assert (job.origin, job.request.namespace) == ("label", place.namespace)
    assert (job.request.options.build.compressor, job.request.options.build.chunk_size) == ("none", 0x1000)
    assert job.request.source.startswith("app:1@sha256:")


async def test_labels_set_while_nobody_looked(place: Location) -> None:
    await place.add("app:1")
    await place.label("app:1", convert="app:1-nydus")
    async with serving(place, place.runner()):
        await place.until_status("done", "app:1")


async def test_an_answer_outlives_what_gave_it(place: Location) -> None:
    """Ended with the job accepted: the next one does it, and it is the same job."""
    await place.add("app:1")
    runner = place.runner()
    stuck = anyio.Event()

    async def wait(job: Job, progress: Progress) -> None:
        stuck.set()
        await anyio.sleep_forever()

    runner.actions["app"] = wait
    async with serving(place, runner):
        await place.label("app:1", convert="app:1-nydus")
        await stuck.wait()
        labels = (await place.until(lambda labels: JOB in labels, "app:1"))["app:1"]
    assert labels[STATUS] in ("queued", "running")
    async with serving(place, place.runner()) as service:
        after = (await place.until_status("done", "app:1"))["app:1"]
        assert [job.id for job in service.jobs()] == [labels[JOB]]
    assert (after[JOB], after[REQUEST]) == (labels[JOB], labels[REQUEST])


async def test_without_its_journal_a_request_is_asked_again(place: Location) -> None:
    await place.add("app:1")
    async with serving(place, place.runner()):
        await place.label("app:1", convert="app:1-nydus")
        before = (await place.until_status("done", "app:1"))["app:1"]
    (place.directory / "journal").rename(place.directory / "lost")
    await place.ctr("images", "label", "app:1", f"{STATUS}=running")
    async with serving(place, place.runner()):
        after = (await place.until_status("done", "app:1"))["app:1"]
    assert after[JOB] != before[JOB]
    assert after[RESULT] == before[RESULT]


async def test_removing_the_status_asks_again(place: Location) -> None:
    await place.add("app:1")
    async with serving(place, place.runner()) as service:
        await place.label("app:1", convert="app:1-nydus")
        before = (await place.until_status("done", "app:1"))["app:1"]
        await place.label("app:1", status="")
        after = (await place.until(lambda labels: labels.get(JOB) != before[JOB], "app:1"))["app:1"]
        assert after[REQUEST] == before[REQUEST]
        await place.until_status("done", "app:1")
        assert len(service.jobs()) == 2


async def test_another_request_is_another_job(place: Location) -> None:
    await place.add("app:1")
    async with serving(place, place.runner()) as service:
        await place.label("app:1", convert="app:1-nydus")
        first = (await place.until_status("done", "app:1"))["app:1"]
        await place.label("app:1", options="compressor=none")
        second = (await place.until(_done_after(first), "app:1"))["app:1"]
        await place.label("app:1", convert="app:1-other")
        third = (await place.until(_done_after(second), "app:1"))["app:1"]
        await place.move("app:1", "new content")
        await place.until(_done_after(third), "app:1")
        sources = {job.request.source for job in service.jobs()}
        assert (len(service.jobs()), len(sources)) == (4, 2)


async def test_our_own_changes_ask_for_nothing(place: Location) -> None:
    await place.add("docker.io/library/app:1")
    rules = [RuleEntry("docker.io/library/*", "{name}:{tag}-nydus")]
    async with serving(place, place.runner(), rules=rules) as service:
        await place.until(lambda labels: labels.get(RULE_STATUS) == "done", "docker.io/library/app:1")
        await place.label("docker.io/library/app:1", convert="docker.io/library/else:1")
        await place.until_status("done", "docker.io/library/app:1")
        await place.add("docker.io/library/last:1")  # what comes after all our changes
        await place.until(lambda labels: labels.get(RULE_STATUS) == "done", "docker.io/library/last:1")
        assert len(service.jobs()) == 3
    async with serving(place, place.runner(), rules=rules) as service:
        await place.add("docker.io/library/marker:1")
        await place.until(lambda labels: labels.get(RULE_STATUS) == "done", "docker.io/library/marker:1")
        assert len(service.jobs()) == 4


async def test_new_images_by_rule(place: Location) -> None:
    rules = [RuleEntry("docker.io/library/*", "{name}:{tag}-nydus", options={"compressor": "none"})]
    await place.add("docker.io/library/before:1", "quay.io/other/app:1")
    async with serving(place, place.runner(), rules=rules) as service:
        await place.add("docker.io/library/new:1")
        names = ("docker.io/library/before:1", "docker.io/library/new:1")
        found = await place.until(lambda labels: labels.get(RULE_STATUS) == "done", *names)
        jobs = service.jobs()
    assert {job.request.options.build.compressor for job in jobs} == {"none"}
    assert {job.origin for job in jobs} == {"event"}
    assert {labels[RULE_RESULT].partition("@")[0] for labels in found.values()} == {
        f"{name}-nydus" for name in names
    }
    assert not await place.labels("quay.io/other/app:1")


async def test_other_rules_hold_for_images_that_are_there(place: Location) -> None:
    await place.add("docker.io/library/app:1")
    async with serving(place, place.runner()) as service:
        await place.add("marker:1")
        await place.label("marker:1", convert="marker:1-nydus")
        await place.until_status("done", "marker:1")
        assert RULE_STATUS not in await place.labels("docker.io/library/app:1")
        book = RuleBook.of(DaemonConfig(rules=(RuleEntry("docker.io/*", "{name}:{tag}-nydus"),)))
        service.triggers.reload(book, TriggersSection(namespaces=(place.namespace,)))
        await place.until(lambda labels: labels.get(RULE_STATUS) == "done", "docker.io/library/app:1")


async def test_requests_that_cannot_be_done(place: Location) -> None:
    asked = {
        "options:1": {"convert": "x:1", "options": "compresor=zstd"},
        "self:1": {"convert": "self:1"},
        "file:1": {"convert": "oci:/tmp/x:1"},
        "rafs:1": {"convert": "x:2", "options": "fs-version=5"},
    }
    await place.add(*asked)
    async with serving(place, place.runner()) as service:
        for name, labels in asked.items():
            await place.label(name, **labels)
        failed = await place.until_status("failed", "options:1", "self:1", "file:1")
        await place.until_status("unsupported", "rafs:1")
        assert service.jobs() == []
        assert "'compressor'" in failed["options:1"][ERROR]
        await place.label("options:1", options="compressor=zstd")
        assert ERROR not in (await place.until_status("done", "options:1"))["options:1"]


async def test_a_job_that_fails(place: Location) -> None:
    await place.add("app:1")
    runner = place.runner()

    async def fail(job: Job, progress: Progress) -> None:
        raise FormatError("layer 1 of 1:\n  it is damaged " + "é" * 5000)

    runner.actions["app"] = fail
    async with serving(place, runner) as service:
        await place.label("app:1", convert="app:1-nydus")
        labels = (await place.until_status("failed", "app:1"))["app:1"]
        assert labels[ERROR].startswith("layer 1 of 1: it is damaged éé")
        assert labels[ERROR].endswith("é…")
        del runner.actions["app"]
        await service.queue.retry(labels[JOB])
        assert (await place.until_status("done", "app:1"))["app:1"][JOB] == labels[JOB]


async def test_a_source_that_is_deleted_meanwhile(place: Location) -> None:
    await place.add("app:1", "marker:1")
    runner = place.runner()
    begun = anyio.Event()

    async def delete(job: Job, progress: Progress) -> None:
        await place.ctr("images", "rm", "app:1")
        begun.set()
        raise FormatError("gone")

    runner.actions["app"] = delete
    async with serving(place, runner) as service:
        await place.label("app:1", convert="app:1-nydus")
        await begun.wait()
        await place.label("marker:1", convert="marker:1-nydus")
        await place.until_status("done", "marker:1")
        assert len(service.jobs(JobState.FAILED)) == 1
        assert service.triggers.waiting == 0


async def test_two_hundred_at_once(place: Location) -> None:
    names = [f"app:{number}" for number in range(200)]
    await place.add("app:0")
    await place.ctr("images", "tag", "app:0", *names[1:])
    async with serving(place, place.runner(), queue=20) as service:
        async with open_image_node(place.daemon.address) as node, anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(node.set_labels, place.namespace, name, {CONVERT: f"{name}-nydus"})
        found = await place.until_status("done", *names)
        assert len(service.jobs(JobState.DONE)) == 200
        assert len({labels[JOB] for labels in found.values()}) == 200
        assert len({labels[RESULT] for labels in found.values()}) == 200
        assert service.triggers.waiting == 0


@pytest.mark.parametrize("version", VERSIONS)
async def test_containerd_killed_and_started_again(version: str, tmp_path: Path) -> None:
    (tmp_path / "containerd").mkdir()
    with running_daemon(version, tmp_path / "containerd") as daemon:
        place = Location(daemon, "first", tmp_path / "state")
        await place.add("app:1", "while-away:1", "late:1")
        async with serving(place, place.runner(), everywhere=True) as service:
            await place.label("app:1", convert="app:1-nydus")
            await place.until_status("done", "app:1")
            for _ in range(3):
                await anyio.to_thread.run_sync(daemon.kill)
                await anyio.to_thread.run_sync(daemon.start)
                await place.label("app:1", status="")
                await place.until_status("done", "app:1")
            later = Location(daemon, "later", tmp_path / "state")  # a namespace that was not there
            await later.add("app:1")
            await later.label("app:1", convert="app:1-nydus")
            await later.until_status("done", "app:1")
            assert len(service.jobs(JobState.DONE)) == 5


async def test_a_real_conversion(place: Location, tmp_path: Path) -> None:
    layout, archive = tmp_path / "layout", tmp_path / "image.tar"
    assert run("sample", layout, "--size-mb", "1", "--tag", "1").returncode == 0
    with tarfile.open(archive, "w") as tar:
        tar.add(layout, arcname=".")
    await place.ctr("images", "import", "--no-unpack", "--base-name", "docker.io/library/app", str(archive))
    config = DaemonConfig(
        containerd=ContainerdSection(place.daemon.address),
        daemon=DaemonSection(run_dir=tmp_path / "run", work_dir=tmp_path),
    )
    worker = Worker(config, Settings(), 2, Metrics(), NoTracing())
    async with serving(place, worker):
        await place.label("docker.io/library/app:1", convert="docker.io/library/app:1-nydus")
        labels = (await place.until_status("done", "docker.io/library/app:1"))["docker.io/library/app:1"]
    async with open_image_node(place.daemon.address) as node:
        target = await node.find(place.namespace, "docker.io/library/app:1-nydus")
    assert isinstance(target, Image)
    assert labels[RESULT] == f"{target.name}@{target.target.digest}"
    assert not target.labels.keys() & {CONVERT, STATUS}


def _done_after(before: Labels) -> Callable[[Labels], bool]:
    """Whether another request than that of `before` is done."""
    return lambda labels: labels.get(STATUS) == "done" and labels.get(REQUEST) != before[REQUEST]
