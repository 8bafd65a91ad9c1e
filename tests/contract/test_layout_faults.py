"""A layout through what happens to directories: killed writers, full disks, flipped bytes, crowds."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from nydus_service.content.documents import read_bytes
from nydus_service.content.layout import open_layout
from nydus_service.content.store import ContentNotFound, Image, UnexpectedContent
from nydus_service.errors import FormatError, NoSpaceError, UnsupportedError, UsageError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from tests.contract.faults import STEPS_MAX, blobs, files, kill_at_every_step, other_process, sweep, verify
from tests.contract.location import add_image, blob, names, read, write, write_manifest
from tests.tools import require_root

WORK = ".nydus-service"


async def test_a_failed_job_leaves_no_directory(tmp_path: Path) -> None:
    stores = open_layout(tmp_path / "a" / "b")

    async def fail() -> None:
        async with stores.leases.open_lease("job") as lease:
            await write(lease.content, b"content")
            raise RuntimeError("ours")

    with pytest.raises(RuntimeError):
        await fail()
    assert files(tmp_path) == set()


async def test_a_failed_job_leaves_an_existing_layout_as_it_was(tmp_path: Path) -> None:
    stores = open_layout(tmp_path)
    await add_image(stores, "app")
    garbage = await write(stores.content, b"of nobody")
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path) if "." in name}
    there = files(tmp_path)

    async def fail() -> None:
        async with stores.leases.open_lease("job") as lease:
            await write(lease.content, b"new")
            await write(lease.content, b"of nobody")  # there before, and not ours to remove
            raise RuntimeError("ours")

    with pytest.raises(RuntimeError):
        await fail()
    assert files(tmp_path) == there
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    assert await read(stores.content, garbage) == b"of nobody"


async def test_a_job_that_ends_leaves_only_the_layout(tmp_path: Path) -> None:
    stores = open_layout(tmp_path / "layout")
    image = await add_image(stores, "app")
    wanted = {"oci-layout", "index.json", "blobs", "blobs/sha256"}
    wanted |= {f"blobs/sha256/{digest.hex}" for digest in (image.target.digest, Digest.of(b"{}"))}
    assert files(tmp_path / "layout") == wanted


async def test_directories_that_others_use_by_now_stay(tmp_path: Path) -> None:
    stores = open_layout(tmp_path / "a" / "b")
    async with stores.leases.open_lease("job"):
        (tmp_path / "a" / "theirs").touch()
    assert files(tmp_path) == {"a", "a/theirs"}


async def test_a_killed_writer_is_swept(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    with other_process("stall", layout) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        stores = open_layout(layout)
        await sweep(stores)
        assert blobs(layout) == {Digest.of(b"committed, not named")}  # it lives: nothing is taken from it
        assert list(layout.glob(f"{WORK}/ingest-*")) != []
        writer.send_signal(signal.SIGKILL)
    assert list(layout.glob(f"{WORK}/ingest-*")) != []
    await sweep(stores)
    assert files(tmp_path) == set()


async def test_a_killed_writers_blobs_stay_while_a_job_may_count_on_them(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    stores = open_layout(layout)
    desc = blob(b"committed, not named")
    with other_process("stall", layout) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        async with stores.leases.open_lease("ours") as lease:
            await lease.hold(desc.digest)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            await sweep(stores)
            assert await read(stores.content, desc) == b"committed, not named"
            await stores.images.put(Image("app", desc))
    await sweep(stores)
    assert await read(stores.content, desc) == b"committed, not named"


async def test_many_processes_name_images_at_once(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    stores = open_layout(layout)
    with ExitStack() as stack:
        running = [stack.enter_context(other_process("add", layout, 8 * number, 8)) for number in range(4)]
        while any(process.poll() is None for process in running):
            for image in await stores.images.list():
                assert b"schemaVersion" in await read_bytes(stores.content, image.target)
        assert [process.wait() for process in running] == [0] * 4
    assert sorted(await names(stores.images)) == sorted(f"app-{number}" for number in range(32))
    assert await verify(stores) == blobs(layout)
    assert not (layout / WORK).exists()


@pytest.mark.parametrize("there_before", [False, True])
async def test_killed_at_every_step(tmp_path: Path, there_before: bool) -> None:
    old = None
    if there_before:
        old = await add_image(open_layout(tmp_path / "before"), "app")
        for step in range(1, STEPS_MAX):
            shutil.copytree(tmp_path / "before", tmp_path / str(step))
    steps = kill_at_every_step(tmp_path, "layout")

    async def check(directory: Path) -> None:
        stores = open_layout(directory)
        found = {image.name for image in await stores.images.list()}
        assert found == {"app"} if there_before else found <= {"app"}
        await sweep(stores)
        kept = await verify(stores)
        assert blobs(directory) <= kept | ({old.target.digest} if old else set())
        wanted = {"oci-layout", "index.json", "blobs", "blobs/sha256"} if kept else set()
        assert files(directory) == wanted | {f"blobs/sha256/{digest.hex}" for digest in blobs(directory)}

    async with anyio.create_task_group() as tasks:
        for step in range(1, steps):
            tasks.start_soon(check, tmp_path / str(step))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    require_root()
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


async def test_a_full_disk(small_disk: Path) -> None:
    stores = open_layout(small_disk / "layout")
    image = await add_image(stores, "app")
    before = files(small_disk)

    async def fill() -> None:
        async with stores.leases.open_lease("job") as lease, lease.content.open_ingest("big") as ingest:
            for _ in range(5):
                await ingest.write(os.urandom(1 << 20))

    with pytest.raises(NoSpaceError, match="big"):
        await fill()
    assert files(small_disk) == before
    assert (await stores.images.get("app")).target.digest == image.target.digest
    await verify(stores)


async def test_a_disk_too_full_for_another_name(small_disk: Path) -> None:
    stores = open_layout(small_disk / "layout")
    await add_image(stores, "app")
    before = (small_disk / "layout" / "index.json").read_bytes()
    async with stores.leases.open_lease("job") as lease:
        target = await write_manifest(lease.content, "other")
        free = os.statvfs(small_disk)
        (small_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize))
        with pytest.raises(NoSpaceError, match="other"):
            await stores.images.put(Image("other", target))
    assert (small_disk / "layout" / "index.json").read_bytes() == before
    assert await names(stores.images) == ["app"]
    assert not (small_disk / "layout" / WORK).exists()


async def test_a_disk_too_full_to_begin(small_disk: Path) -> None:
    free = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize))
    with pytest.raises(NoSpaceError):
        await write(open_layout(small_disk / "a" / "b").content, b"content")
    assert files(small_disk) == {"ballast"}


async def test_nothing_is_removed_while_the_index_is_unreadable(tmp_path: Path) -> None:
    stores = open_layout(tmp_path)
    async with stores.leases.open_lease("job") as lease:
        target = await write_manifest(lease.content, "app")
        await stores.images.put(Image("app", target))
        index = (tmp_path / "index.json").read_bytes()
        (tmp_path / "index.json").write_bytes(index[:20])  # as another tool may, which writes it in place
    (tmp_path / "index.json").write_bytes(index)
    await verify(stores)
    await sweep(stores)
    assert await verify(stores) == blobs(tmp_path)
    assert not (tmp_path / WORK).exists()


async def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    stores = open_layout(tmp_path)
    image = await add_image(stores, "app")
    path = tmp_path / "blobs" / "sha256" / image.target.digest.hex
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(UnexpectedContent, match=image.target.digest):
        await read_bytes(stores.content, image.target)
    await write_manifest(stores.content, "app")  # whoever makes it again mends it
    await verify(stores)


async def test_a_cut_blob_is_noticed(tmp_path: Path) -> None:
    stores = open_layout(tmp_path)
    desc = await write(stores.content, bytes(1000))
    path = tmp_path / "blobs" / "sha256" / desc.digest.hex
    async with stores.content.open_reader(desc) as reader:
        os.truncate(path, 500)
        with pytest.raises(UnexpectedContent, match="500 of 1000"):
            await reader.read_at(0, 1000)
    with pytest.raises(UnexpectedContent, match="500 bytes"):
        await read(stores.content, desc)


async def test_what_is_no_blob_is_not_read(tmp_path: Path) -> None:
    stores = open_layout(tmp_path)
    desc = await write(stores.content, b"content")
    path = tmp_path / "blobs" / "sha256" / desc.digest.hex
    path.unlink()
    os.mkfifo(path)  # opened without care it would wait for ever
    with anyio.fail_after(100), pytest.raises(FormatError, match="not a regular file"):
        await read(stores.content, desc)
    path.unlink()
    path.mkdir()
    with pytest.raises(FormatError, match="not a regular file"):
        await stores.content.info(desc.digest)


INDEXES = [
    b"",
    b"not JSON",
    b"[]",
    b'{"manifests":2}',
    b'{"schemaVersion":2,"manifests":{}}',
    b'{"schemaVersion":2,"manifests":[{"digest":"sha256:x"}]}',
    b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}',
    b"[" * 100_000,
    b'{"schemaVersion":2,"manifests":[],"x":"' + b"x" * (8 << 20) + b'"}',
]


@pytest.mark.parametrize("data", INDEXES, ids=range(len(INDEXES)))
async def test_a_malformed_index_is_an_error_and_stays(tmp_path: Path, data: bytes) -> None:
    stores = open_layout(tmp_path)
    image = await add_image(stores, "app")
    (tmp_path / "index.json").write_bytes(data)
    with pytest.raises(FormatError, match=r"index\.json"):
        await stores.images.list()
    with pytest.raises(FormatError, match=r"index\.json"):
        await stores.images.put(image)
    assert (tmp_path / "index.json").read_bytes() == data
    assert not (tmp_path / WORK).exists()


@pytest.mark.parametrize("missing", ["index.json", "oci-layout"])
async def test_half_a_layout(tmp_path: Path, missing: str) -> None:
    stores = open_layout(tmp_path)
    image = await add_image(stores, "app")
    (tmp_path / missing).unlink()
    (tmp_path / "something else").touch()
    with pytest.raises(FormatError, match=missing):
        await stores.images.list()
    with pytest.raises((FormatError, UsageError), match=str(tmp_path)):
        await stores.images.put(image)


async def test_a_layout_of_a_later_version(tmp_path: Path) -> None:
    stores = open_layout(tmp_path)
    await add_image(stores, "app")
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    with pytest.raises(UnsupportedError, match=r"'2\.0\.0'"):
        await stores.images.get("app")


async def test_nothing_is_written_to_other_directories(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    stores = open_layout(tmp_path)
    with pytest.raises(UsageError, match="neither empty nor an OCI layout"):
        await write(stores.content, b"content")
    with pytest.raises(UsageError, match="not an OCI layout"):
        await stores.images.list()
    assert files(tmp_path) == {"precious"}


async def test_a_file_is_not_a_layout(tmp_path: Path) -> None:
    path = tmp_path / "images.tar"
    path.touch()
    with pytest.raises(UsageError, match=f"oci-archive:{path}"):
        await open_layout(path).images.list()


async def test_a_name_needs_its_content(tmp_path: Path) -> None:
    stores = open_layout(tmp_path / "layout")
    with pytest.raises(ContentNotFound, match="app"):
        await stores.images.put(Image("app", blob(b"missing")))
    assert files(tmp_path) == set()


async def test_foreign_fields_of_the_index_survive(tmp_path: Path) -> None:
    stores = open_layout(tmp_path)
    image = await add_image(stores, "app")
    entry = {
        "mediaType": "x/y",
        "digest": image.target.digest,
        "size": 1,
        "x": [1],
        "annotations": {"k": "v"},
    }
    index = json.loads((tmp_path / "index.json").read_text())
    index = {"x-first": 1, **index, "annotations": {"a": "b"}}
    index["manifests"].insert(0, entry)
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "index.json").chmod(0o600)
    await add_image(stores, "other")
    after = json.loads((tmp_path / "index.json").read_text())
    assert {**after, "manifests": after["manifests"][:2]} == index
    assert (tmp_path / "index.json").stat().st_mode & 0o777 == 0o600


async def test_content_of_other_digests_is_read(tmp_path: Path) -> None:
    digest = Digest(f"sha512:{hashlib.sha512(b'content').hexdigest()}")
    path = tmp_path / "blobs" / "sha512" / digest.hex
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")
    desc = Descriptor.of("x/y", digest, 7)
    assert await read_bytes(open_layout(tmp_path).content, desc) == b"content"
