"""An archive through what happens to files: killed writers, others that write it, damage."""

import os
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from nydus_service.content.archive import open_archive
from nydus_service.content.documents import read_bytes
from nydus_service.content.store import ContentNotFound, Image, Stores, UnexpectedContent
from nydus_service.content.transfer import copy_image
from nydus_service.errors import FormatError, UnsupportedError, UsageError
from nydus_service.oci import mediatypes
from nydus_service.oci.document import Manifest
from tests.contract.faults import STEPS_MAX, files, kill_at_every_step, other_process, verify
from tests.contract.location import add_image, blob, names, read, write
from tests.unit.content.tars import docker_files, tar


async def test_an_archive_killed_at_every_step(tmp_path: Path) -> None:
    for step in range(1, STEPS_MAX):
        (tmp_path / str(step)).mkdir()
    steps = kill_at_every_step(tmp_path, "archive")

    async def check(directory: Path) -> None:
        async with open_archive(directory / "images.tar") as stores:
            await verify(stores)
            await add_image(stores, "next")
            assert await names(stores.images) in (["next"], ["app", "next"])
        assert files(directory) == {"images.tar"}

    async with anyio.create_task_group() as tasks:  # at once, since each mostly waits for the disk
        for step in range(1, steps):
            tasks.start_soon(check, tmp_path / str(step))


async def test_a_failed_job_leaves_nothing(tmp_path: Path) -> None:
    async with open_archive(tmp_path / "a" / "images.tar") as stores:

        async def fail() -> None:
            async with stores.leases.open_lease("job") as lease:
                await write(lease.content, b"content")
                raise RuntimeError("ours")

        with pytest.raises(RuntimeError):
            await fail()
        await write(stores.content, b"without a lease, and without a name")
    assert files(tmp_path) == set()


async def test_reading_leaves_nothing(tmp_path: Path) -> None:
    async with open_archive(tmp_path / "missing" / "images.tar") as stores:
        with pytest.raises(ContentNotFound):
            await read(stores.content, blob(b"content"))
    assert files(tmp_path) == set()


async def test_other_images_are_kept_and_garbage_is_not(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    for name in ("app", "other"):
        async with open_archive(path) as stores:
            image = await add_image(stores, name)
            garbage = await write(stores.content, b"of nobody")
            await stores.images.put(Image("app", image.target, {"nydus-service/moved": "yes"}))
    async with open_archive(path) as stores:
        assert await names(stores.images) == ["app", "other"]
        assert len(await verify(stores)) == 2  # what "app" was before is nobody's now
        with pytest.raises(ContentNotFound):
            await read(stores.content, garbage)


async def test_many_processes_name_images_at_once(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    with ExitStack() as stack:
        running = [stack.enter_context(other_process("add", path, 4 * number, 4)) for number in range(3)]
        assert [process.wait() for process in running] == [0] * 3
    async with open_archive(path) as stores:
        assert sorted(await names(stores.images)) == sorted(f"app-{number}" for number in range(12))
        await verify(stores)
    assert files(tmp_path) == {"images.tar"}


async def test_readers_keep_what_they_opened(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    async with open_archive(path) as stores:
        image = await add_image(stores, "app")
    async with open_archive(path) as stores, stores.content.open_reader(image.target) as reader:
        async with open_archive(path) as other:
            await other.images.delete("app")
            assert await names(other.images) == []
        assert b"schemaVersion" in await reader.read_at(0, reader.size)
        assert await names(stores.images) == []


async def test_the_mode_of_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    for name in ("app", "other"):
        async with open_archive(path) as stores:
            await add_image(stores, name)
        if name == "app":
            path.chmod(0o600)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_writing_a_large_archive_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    async with open_archive(path) as stores, stores.leases.open_lease("job") as lease:
        image = await add_image(stores, "app")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stores.images.put(Image("other", image.target))
        assert await names(stores.images) == ["app"]
        await write(lease.content, b"more")
    assert files(tmp_path) == {"images.tar"}


async def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    async with open_archive(path) as stores:
        image = await add_image(stores, "app")
    data = path.read_bytes()
    at = data.index(b'"name":"app"')
    path.write_bytes(data[:at] + b'"nAme' + data[at + 5 :])
    async with open_archive(path) as stores:
        with pytest.raises(UnexpectedContent, match=image.target.digest):
            await read_bytes(stores.content, image.target)


async def test_a_cut_archive_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    async with open_archive(path) as stores:
        image = await add_image(stores, "app")
        async with stores.content.open_reader(image.target.replace()) as reader:
            assert await reader.read_at(0, 1)
    os.truncate(path, 1600)
    async with open_archive(path) as stores:
        with pytest.raises(FormatError, match=str(path)):
            await stores.images.get("app")


async def test_a_directory_is_not_an_archive(tmp_path: Path) -> None:
    async with open_archive(tmp_path) as stores:
        with pytest.raises(UsageError, match=f"oci:{tmp_path}"):
            await stores.images.list()


async def copy(source: Stores, target: Stores, name: str) -> None:
    image = await source.images.get(name)
    async with target.leases.open_lease("copying") as lease:
        await copy_image(source.content, lease, image.target)
        await target.images.put(Image("copy", image.target))


async def test_a_docker_archive_is_read_only(tmp_path: Path) -> None:
    path = tar(tmp_path / "saved.tar", docker_files())
    before = path.read_bytes()
    async with open_archive(path) as stores:
        with pytest.raises(UnsupportedError, match="docker-archive"):
            await add_image(stores, "app")
        async with open_archive(tmp_path / "images.tar") as other:
            await copy(stores, other, "app:1")
            assert len(await verify(other)) == 4
    assert path.read_bytes() == before


async def test_a_layer_that_may_be_missing(tmp_path: Path) -> None:
    foreign = blob(b"licensed").replace(media_type=mediatypes.OCI_FOREIGN_LAYER_GZIP)
    async with open_archive(tmp_path / "images.tar") as stores:
        async with stores.leases.open_lease("job") as lease:
            config = await write(lease.content, b"{}")
            data = Manifest.new(config, [foreign], mediatypes.OCI_MANIFEST).encode()
            target = (await write(lease.content, data)).replace(media_type=mediatypes.OCI_MANIFEST)
            await stores.images.put(Image("app", target))
            data = Manifest.new(config, [blob(b"missing")], mediatypes.OCI_MANIFEST).encode()
            target = (await write(lease.content, data)).replace(media_type=mediatypes.OCI_MANIFEST)
            with pytest.raises(ContentNotFound, match=blob(b"missing").digest):
                await stores.images.put(Image("other", target))
        assert await names(stores.images) == ["app"]
