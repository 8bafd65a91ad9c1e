import gzip
import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
import zstandard

from nydus_service.content.layout import open_layout
from nydus_service.content.store import ContentStore, ImageStore, LeaseStore, Stores
from nydus_service.sample.image import Sample, write_sample

SIZE = 6_000_000


async def written(directory: Path) -> Sample:
    return await write_sample(open_layout(directory), "sample", SIZE)


def blob(directory: Path, digest: str) -> bytes:
    return (directory / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


def document(directory: Path, digest: str) -> Any:
    return json.loads(blob(directory, digest))


def layer_tar(directory: Path, descriptor: dict[str, Any]) -> tarfile.TarFile:
    data = blob(directory, descriptor["digest"])
    if descriptor["mediaType"].endswith("gzip"):
        data = gzip.decompress(data)
    elif descriptor["mediaType"].endswith("zstd"):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return tarfile.open(fileobj=io.BytesIO(data))


async def test_two_runs_give_the_same_layout(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    assert await written(first) == await written(second)
    names = sorted(path.relative_to(first) for path in first.rglob("*"))
    assert names == sorted(path.relative_to(second) for path in second.rglob("*"))
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in names if (first / n).is_file())


async def test_the_image_is_complete_and_near_its_size(tmp_path: Path) -> None:
    sample = await written(tmp_path)
    (entry,) = document(tmp_path, sample.image.target.digest)["manifests"]
    manifest = document(tmp_path, entry["digest"])
    config = document(tmp_path, manifest["config"]["digest"])
    assert entry["platform"]["os"] == config["os"] == "linux"
    assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in sample.layers]
    assert len([each for each in config["history"] if not each.get("empty_layer")]) == len(sample.layers) == 6
    assert SIZE / 2 < sum(layer.tar_size for layer in sample.layers) < SIZE + 5_000_000
    kinds = [layer["mediaType"].rpartition("tar")[2] for layer in manifest["layers"]]
    assert sorted(kinds) == ["", "+gzip", "+gzip", "+gzip", "+gzip", "+zstd"]


async def test_layers_hold_what_layers_may_do_to_each_other(tmp_path: Path) -> None:
    sample = await written(tmp_path)
    (entry,) = document(tmp_path, sample.image.target.digest)["manifests"]
    tars = [layer_tar(tmp_path, layer) for layer in document(tmp_path, entry["digest"])["layers"]]
    *lower, top = [{member.name: member for member in tar} for tar in tars]
    application = lower[-1]
    assert "srv/app/.wh.old.py" in top
    assert "srv/app/old.py" in application
    assert "srv/app/config/.wh..wh..opq" in top
    assert "srv/app/main.py" in top.keys() & application.keys()
    assert "srv/app/cache" not in top, "a parent that is only implied"
    assert application["srv/app/cache"].mode == 0o2750
    assert any(member.islnk() for member in top.values())
    assert "SCHILY.xattr.user.sample.author" in application["srv/app/static/index.html"].pax_headers
    assert any("SCHILY.xattr.security.capability" in m.pax_headers for layer in lower for m in layer.values())


class Telling:
    """Stores that tell when the first piece arrives, and keep none."""

    def __init__(self) -> None:
        self.arrived = anyio.Event()
        self.id = "lease"
        self.size = 0
        self.content: ContentStore = cast("ContentStore", self)

    @asynccontextmanager
    async def open_lease(self, lease_id: str) -> AsyncIterator["Telling"]:
        yield self

    @asynccontextmanager
    async def open_ingest(self, ref: str) -> AsyncIterator["Telling"]:
        yield self

    async def write(self, data: bytes | memoryview) -> None:
        self.arrived.set()
        async with anyio.Lock():  # a checkpoint of the kind that waits to be cancelled
            self.size += len(data)


async def test_a_cancel_ends_the_thread_that_makes_a_layer() -> None:
    store = Telling()
    stores = Stores("nowhere", store.content, cast("ImageStore", store), cast("LeaseStore", store))
    with anyio.fail_after(100):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write_sample, stores, "sample", 200_000_000)
            await store.arrived.wait()
            tasks.cancel_scope.cancel()
    assert store.size < 30_000_000


@pytest.mark.parametrize("name", ["etc/shadow", "etc/gshadow", "etc/ssh"])
async def test_no_secrets_are_taken(tmp_path: Path, name: str) -> None:
    sample = await written(tmp_path)
    (entry,) = document(tmp_path, sample.image.target.digest)["manifests"]
    for layer in document(tmp_path, entry["digest"])["layers"]:
        assert not any(member.startswith(name) for member in layer_tar(tmp_path, layer).getnames())
