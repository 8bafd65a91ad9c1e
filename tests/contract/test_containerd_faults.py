"""containerd's own ways: garbage collection, left-over ingests, leases of the dead, other namespaces."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from nydus_service.content._pb.containerd.services.content.v1.content_pb2 import WRITE, WriteContentRequest
from nydus_service.content.containerd.content import ContainerdContent
from nydus_service.content.containerd.ingest import MESSAGE_SIZE
from nydus_service.content.containerd.leases import BOOT_ID, LOCK, ContainerdLeases
from nydus_service.content.containerd.rpc import Connection, RefLocked, StreamEnded, connect
from nydus_service.content.containerd.stores import introspect, open_containerd
from nydus_service.content.store import ContentNotFound, Image, ImageNotFound, Stores
from nydus_service.errors import UnreachableError, UsageError
from nydus_service.oci.digest import Digest
from tests.containerd import VERSIONS, Daemon, new_namespace, running_daemon
from tests.contract.location import add_image, blob, read, write, write_manifest
from tests.grpcproxy import running_proxy
from tests.processes import killed_at_the_end

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
PROJECT = Path(__file__).parents[2]
SMALL = b"one message"
LARGE = bytes(range(256)) * (MESSAGE_SIZE // 128) + b"and a bit"
"""Two messages and a part of one."""


@dataclass(frozen=True)
class Here:
    """One namespace of a daemon, and a directory for locks."""

    daemon: Daemon
    namespace: str
    jobs_dir: Path

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Stores]:
        async with open_containerd(self.daemon.address, self.namespace, self.jobs_dir) as stores:
            yield stores

    def connect(self) -> Any:
        return connect(self.daemon.address, self.namespace)

    def listed(self, *argv: str) -> list[str]:
        return self.daemon.lines(self.namespace, *argv)

    def ingests(self) -> list[str]:
        lines = self.daemon.ctr(self.namespace, "content", "active").splitlines()[1:]
        return [line.split()[0] for line in lines]

    def labels(self, digest: Digest) -> str:
        lines = self.daemon.ctr(self.namespace, "content", "ls").splitlines()
        return next(line.split()[-1] for line in lines if line.startswith(digest))

    def collect(self) -> None:
        self.daemon.collect(self.namespace)

    def process(self, what: str) -> AbstractContextManager["subprocess.Popen[str]"]:
        argv = [sys.executable, "-m", "tests.contract.containerd_process", what]
        argv += [str(self.daemon.address), self.namespace, str(self.jobs_dir)]
        return killed_at_the_end(subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.PIPE, text=True))


@pytest.fixture
def here(daemon: Daemon, tmp_path: Path) -> Here:
    return Here(daemon, new_namespace(), tmp_path / "jobs")


async def open_foreign_ingest(connection: Connection, ref: str, data: bytes, total: int = 0) -> Any:
    """Begin to write under a ref as another program. Returns the stream, which holds the ref."""
    call = connection.exchange(connection.content.Write)
    await call.write(WriteContentRequest(action=WRITE, ref=ref, data=data, total=total))
    await call.read()
    return call


async def leave_ingest(connection: Connection, ref: str, data: bytes, total: int) -> None:
    """Leave an ingest that was not committed."""
    call = await open_foreign_ingest(connection, ref, data, total)
    await call.end_writing()
    with contextlib.suppress(StreamEnded):
        while True:
            await call.read()


@pytest.mark.parametrize("total", [0, 3, 7_000_000])
@pytest.mark.parametrize("left", [b"x", b"foreign bytes", LARGE[1:]], ids=["1 B", "13 B", "large"])
@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
async def test_what_is_left_under_a_ref_has_no_effect(
    here: Here, data: bytes, left: bytes, total: int
) -> None:
    async with here.open() as stores, here.connect() as connection:
        ref = f"test-{blob(data).digest}"
        await leave_ingest(connection, ref, left, total)
        assert here.ingests() == [ref]
        async with stores.leases.open_lease("job") as lease:
            assert await read(stores.content, await write(lease.content, data)) == data
        assert here.ingests() == []


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_content_that_is_there_gets_labels_and_lease(here: Here, data: bytes) -> None:
    async with here.open() as stores:
        await write(stores.content, data, labels={"kept": "a", "changed/by.us": "b"})
        async with stores.leases.open_lease("job") as lease:
            desc = await write(lease.content, data, "other", {"changed/by.us": "c", "new": "d"})
            here.collect()
            info = await stores.content.info(desc.digest)
            assert info.labels == {"kept": "a", "changed/by.us": "c", "new": "d"}
        here.collect()
        with pytest.raises(ContentNotFound):
            await stores.content.info(desc.digest)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_content_of_another_namespace(here: Here, tmp_path: Path, data: bytes) -> None:
    other = Here(here.daemon, new_namespace(), tmp_path / "jobs")
    async with here.open() as stores, other.open() as others:
        async with others.leases.open_lease("there") as theirs, stores.leases.open_lease("here") as ours:
            desc = await write(theirs.content, data, labels={"of": "theirs"})
            with pytest.raises(ContentNotFound):
                await read(stores.content, desc)
            await write(ours.content, data, labels={"of": "ours"})
            assert await read(stores.content, desc) == data
            assert (await stores.content.info(desc.digest)).labels == {"of": "ours"}
            assert (await others.content.info(desc.digest)).labels == {"of": "theirs"}


async def test_a_ref_is_waited_for_while_another_stream_holds_it(here: Here) -> None:
    async with here.open() as stores, here.connect() as connection:
        holder = await open_foreign_ingest(connection, f"test-{blob(SMALL).digest}", b"foreign")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write, stores.content, SMALL)
            for _ in range(5):
                with pytest.raises(ContentNotFound):
                    await stores.content.info(blob(SMALL).digest)
            holder.cancel()
        assert await read(stores.content, blob(SMALL)) == SMALL


@pytest.mark.long
async def test_a_ref_that_stays_locked_is_left_alone(here: Here) -> None:
    async with here.open() as stores, here.connect() as connection:
        ref = f"test-{blob(SMALL).digest}"
        holder = await open_foreign_ingest(connection, ref, b"foreign")
        with pytest.raises(RefLocked, match=ref):
            await write(stores.content, SMALL)
        assert here.ingests() == [ref]
        holder.cancel()


@pytest.mark.parametrize("size", [10, MESSAGE_SIZE + 10])
async def test_an_ingest_that_fails_is_aborted(here: Here, size: int) -> None:
    async with here.open() as stores:
        with contextlib.suppress(RuntimeError):
            async with stores.content.open_ingest("fails") as ingest:
                await ingest.write(bytes(size))
                raise RuntimeError
        assert here.ingests() == []


@pytest.mark.parametrize("messages", range(6))
async def test_a_write_that_is_cancelled_in_the_middle(here: Here, messages: int) -> None:
    piece = bytes(MESSAGE_SIZE)
    ended = False
    async with here.open() as stores:
        async with anyio.create_task_group() as tasks:

            async def write_on() -> None:
                nonlocal ended
                try:
                    async with stores.content.open_ingest("endless") as ingest:
                        while True:
                            await ingest.write(piece)
                            if ingest.size > messages * MESSAGE_SIZE:
                                begun.set()
                finally:
                    ended = True

            begun = anyio.Event()
            tasks.start_soon(write_on)
            await begun.wait()
            for _ in range(messages):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert ended
        assert here.ingests() == []


async def cancel_soon(scope: anyio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("steps", range(1, 12))
async def test_a_call_that_is_cancelled(here: Here, steps: int) -> None:
    """gRPC raises a cancellation of its own: it must not pass through the scope that was cancelled."""
    async with (
        here.open() as stores,
        here.connect() as connection,
        stores.leases.open_lease("job") as lease,  # or garbage collection may take the content any time
    ):
        desc = await write(lease.content, LARGE)
        remote = ContainerdContent(connection, None)
        for call in (
            stores.images.list,
            partial(stores.content.info, desc.digest),
            partial(read, remote, desc),
            partial(write, lease.content, LARGE, f"cancelled-{steps}"),
        ):
            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as scope:
                    tasks.start_soon(cancel_soon, scope, steps)
                    await call()
        assert here.ingests() == []


async def test_a_lease_keeps_what_an_image_takes_over(here: Here) -> None:
    async with here.open() as stores:
        async with stores.leases.open_lease("job") as lease:
            target = await write_manifest(lease.content, "app")
            other = await write(lease.content, LARGE)
            here.collect()
            assert await read(stores.content, other) == LARGE
            await stores.images.put(Image("app", target))
        here.collect()
        assert b"app" in await read(stores.content, target)
        assert await read(stores.content, blob(b"{}")) == b"{}"
        with pytest.raises(ContentNotFound):
            await stores.content.info(other.digest)
        await stores.images.delete("app")
        here.collect()
        assert here.listed("content", "ls", "-q") == []


async def test_an_open_reader_outlives_its_blob(here: Here) -> None:
    async with here.open() as stores:
        async with stores.leases.open_lease("job") as lease:
            desc = await write(lease.content, LARGE)
        async with stores.leases.open_lease("job") as lease:
            await write(lease.content, LARGE)
            async with lease.content.open_reader(desc) as reader:
                here.daemon.ctr(here.namespace, "content", "rm", desc.digest)
                here.collect()
                assert await reader.read_at(0, desc.size) == LARGE
                assert reader.local_path is not None
                assert await anyio.Path(reader.local_path).read_bytes() == LARGE


async def test_leases_of_the_dead_are_swept(here: Here) -> None:
    here.daemon.ctr(here.namespace, "leases", "create", "--id", "foreign")
    with here.process("stall") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        async with here.open() as stores:
            async with stores.leases.open_lease("living"):
                assert sorted(here.listed("leases", "ls", "-q")) == ["foreign", "living", "stalled"]
            assert here.ingests() == ["stalled"]
            process.kill()
            process.wait()
            assert sorted(here.listed("leases", "ls", "-q")) == ["foreign", "stalled"]
            async with stores.leases.open_lease("next"):
                assert sorted(here.listed("leases", "ls", "-q")) == ["foreign", "next"]
                assert here.ingests() == []
            here.collect()
            assert here.listed("content", "ls", "-q") == []
    assert list(here.jobs_dir.iterdir()) == []


async def test_a_job_of_the_same_id_takes_over_from_a_dead_one(here: Here) -> None:
    with here.process("stall") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        async with here.open() as stores:
            with pytest.raises(UsageError, match="under way in another process"):
                async with stores.leases.open_lease("stalled"):
                    raise AssertionError("two leases of one id")
            process.kill()
            process.wait()
            async with stores.leases.open_lease("stalled") as lease:
                await write(lease.content, bytes(5 << 20), "stalled")
    assert here.listed("leases", "ls", "-q") == []
    assert list(here.jobs_dir.iterdir()) == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["Leases/Create", "Leases/AddResource", "Leases/Delete"])
async def test_a_lease_is_not_left_wherever_its_owner_is_cancelled(
    here: Here, tmp_path: Path, step: str, when: str
) -> None:
    scope = anyio.CancelScope()

    async def cancel_at(now: str, name: str) -> None:
        if (now, name) == (when, step):
            scope.cancel()

    address = tmp_path / "proxy"
    async with running_proxy(here.daemon.address, address, cancel_at):
        async with open_containerd(address, here.namespace, here.jobs_dir) as stores:
            with scope:
                async with stores.leases.open_lease("job") as lease:
                    await lease.hold((await write(lease.content, SMALL)).digest)
    assert scope.cancel_called
    assert here.listed("leases", "ls", "-q") == []
    assert list(here.jobs_dir.iterdir()) == []


async def test_a_lease_of_another_program_is_not_taken(here: Here) -> None:
    here.daemon.ctr(here.namespace, "leases", "create", "--id", "foreign")
    async with here.open() as stores:
        with pytest.raises(UsageError, match="another program"):
            async with stores.leases.open_lease("foreign"):
                raise AssertionError("taken")
    assert here.listed("leases", "ls", "-q") == ["foreign"]
    assert list(here.jobs_dir.iterdir()) == []


@pytest.mark.parametrize("boot_id", ["another boot", None], ids=["another boot", "lock not seen"])
async def test_young_leases_whose_lock_cannot_be_seen_stay(here: Here, boot_id: str | None) -> None:
    labels = [f"{LOCK}=/elsewhere/young"]
    labels.append(f"{BOOT_ID}={boot_id or BOOT}")
    here.daemon.ctr(here.namespace, "leases", "create", "--id", "young", *labels)
    async with here.connect() as connection:
        assert await ContainerdLeases(connection, None, here.jobs_dir).sweep() == []
    assert here.listed("leases", "ls", "-q") == ["young"]


async def test_labels_of_an_image_that_others_set_stay(here: Here) -> None:
    async with here.open() as stores:
        await add_image(stores, "app")
        here.daemon.ctr(here.namespace, "images", "label", "app", "io.example/theirs=1")
        async with stores.leases.open_lease("job") as lease:
            target = await write_manifest(lease.content, "new")
            await stores.images.put(Image("app", target, {"nydus-service/source": "x"}))
        image = await stores.images.get("app")
        assert image.target.digest == target.digest
        assert image.labels == {"io.example/theirs": "1", "nydus-service/source": "x"}


async def test_a_name_needs_its_content(here: Here) -> None:
    async with here.open() as stores:
        with pytest.raises(ContentNotFound, match=blob(b"missing").digest):
            await stores.images.put(Image("app", blob(b"missing")))
        assert await stores.images.list() == []


async def test_unknown_images_are_explained(here: Here, tmp_path: Path) -> None:
    other = Here(here.daemon, new_namespace(), tmp_path / "jobs")
    name = f"docker.io/library/{other.namespace}:1"
    async with here.open() as stores, other.open() as others:
        with pytest.raises(ImageNotFound, match=f"namespace {here.namespace}.*no images in it"):
            await stores.images.get(name)
        await add_image(others, name)
        with pytest.raises(ImageNotFound, match=f"add --namespace {other.namespace}"):
            await stores.images.get(name)
        with pytest.raises(ImageNotFound, match=f"there are: {name}"):
            await others.images.get(other.namespace)
        with pytest.raises(UsageError, match="which image"):
            await stores.images.get("")


async def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="no containerd socket"):
        await introspect(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(UnreachableError, match="is it running"):
        await introspect(tmp_path / "file")


@pytest.mark.parametrize("namespace", ["", "a/b", "-a", "a..b", "a" * 77])
async def test_names_that_are_no_namespaces(tmp_path: Path, namespace: str) -> None:
    with pytest.raises(UsageError, match="not a namespace"):
        async with open_containerd(tmp_path / "sock", namespace, tmp_path):
            raise AssertionError("opened")


def test_no_permission(here: Here) -> None:
    with here.process("nobody") as process:
        assert process.stdout is not None
        said = process.stdout.read()
    assert said.startswith(f"NotAllowedError this user may not use containerd's socket {here.daemon.address}")


async def test_what_a_daemon_says_of_itself(here: Here) -> None:
    async with here.open() as stores:
        await add_image(stores, "app")
    facts = await introspect(here.daemon.address)
    assert facts.version.removeprefix("v").startswith(here.daemon.version)
    assert here.namespace in facts.namespaces
    assert facts.content_root == here.daemon.work / "root" / "io.containerd.content.v1.content"
    assert facts.root_readable


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_daemon_that_is_killed_and_comes_back(version: str, tmp_path: Path) -> None:
    with running_daemon(version, tmp_path) as daemon:
        here = Here(daemon, "default", tmp_path / "jobs")
        async with here.open() as stores, stores.leases.open_lease("job") as lease:
            desc = await write(lease.content, LARGE)
            daemon.kill()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write, lease.content, SMALL)
                tasks.start_soon(stores.content.info, desc.digest)
                await asyncio.to_thread(daemon.start)
            assert await read(lease.content, blob(SMALL)) == SMALL
            here.collect()
            assert await read(stores.content, desc) == LARGE
            async with lease.content.open_ingest("cut off") as ingest:
                await ingest.write(LARGE)
                daemon.kill()
                with pytest.raises(UnreachableError, match="cut off"):
                    await ingest.commit()
            await asyncio.to_thread(daemon.start)
            assert await read(stores.content, desc) == LARGE
        assert here.listed("leases", "ls", "-q") == []
