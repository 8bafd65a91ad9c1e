"""The stores over containerd keep what every store promises. Each test has a namespace of its own."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nydus_service.content.containerd.stores import open_containerd
from nydus_service.content.store import Stores
from tests.containerd import VERSIONS, Daemon, new_namespace, running_daemon
from tests.contract.content import IngestContract, ProviderContract
from tests.contract.images import ImagesContract
from tests.contract.leases import LeasesContract
from tests.contract.place import Place


@dataclass(frozen=True)
class ContainerdPlace:
    daemon: Daemon
    namespace: str
    jobs_dir: Path

    def open(self) -> AbstractAsyncContextManager[Stores]:
        return open_containerd(self.daemon.address, self.namespace, self.jobs_dir)


@pytest.fixture(scope="module", params=VERSIONS)
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(request.param, tmp_path_factory.mktemp("containerd")) as daemon:
        yield daemon


@pytest.fixture
def place(daemon: Daemon, tmp_path: Path) -> Place:
    return ContainerdPlace(daemon, new_namespace(), tmp_path / "jobs")


@pytest.fixture
async def stores(place: Place) -> AsyncIterator[Stores]:
    async with place.open() as stores:
        yield stores


class TestContainerdIngest(IngestContract):
    pass


class TestContainerdProvider(ProviderContract):
    pass


class TestContainerdImages(ImagesContract):
    pass


class TestContainerdLeases(LeasesContract):
    pass
