"""The stores over containerd keep what every store promises. Each test has a namespace of its own."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nydus_service.content.containerd.content import ContainerdContent
from nydus_service.content.containerd.rpc import connect
from nydus_service.content.containerd.stores import open_containerd
from nydus_service.content.store import Image, Stores
from nydus_service.errors import UsageError
from tests.containerd import Daemon, new_namespace
from tests.contract.content import IngestContract, ProviderContract
from tests.contract.images import ImagesContract
from tests.contract.leases import LeasesContract
from tests.contract.location import names, write_manifest


@dataclass(frozen=True)
class ContainerdPlace:
    daemon: Daemon
    namespace: str
    jobs_dir: Path

    def open(self) -> AbstractAsyncContextManager[Stores]:
        return open_containerd(self.daemon.address, self.namespace, self.jobs_dir)


@pytest.fixture
def place(daemon: Daemon, tmp_path: Path) -> ContainerdPlace:
    return ContainerdPlace(daemon, new_namespace(), tmp_path / "jobs")


@pytest.fixture
async def stores(place: ContainerdPlace) -> AsyncIterator[Stores]:
    async with place.open() as stores:
        yield stores


class TestContainerdIngest(IngestContract):
    pass


class TestContainerdProvider(ProviderContract):
    pass


class TestRemoteProvider(ProviderContract):
    """Reading by gRPC, as where the content directory is not ours to read."""

    @pytest.fixture
    async def stores(self, daemon: Daemon, place: ContainerdPlace) -> AsyncIterator[Stores]:
        async with place.open() as stores, connect(daemon.address, place.namespace) as connection:
            yield replace(stores, content=ContainerdContent(connection, None))


class TestContainerdImages(ImagesContract):
    async def test_a_label_that_containerd_would_refuse(self, stores: Stores) -> None:
        """The largest one is taken; one byte more is refused by key and size, and nothing is named."""
        async with stores.leases.open_lease("large") as lease:
            target = await write_manifest(lease.content, "app")
            with pytest.raises(UsageError, match=r"4097 bytes, at most 4096 .*\[label 'key'\]"):
                await stores.images.put(Image("large", target, {"key": "v" * 4094}))
            assert await names(stores.images) == []
            await stores.images.put(Image("large", target, {"key": "v" * 4093}))
        assert await names(stores.images) == ["large"]


class TestContainerdLeases(LeasesContract):
    pass
