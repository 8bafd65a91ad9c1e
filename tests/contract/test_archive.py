"""The stores over a tar archive keep what every store promises."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from nydus_service.content.archive import open_archive
from nydus_service.content.store import Stores
from tests.contract.content import IngestContract, ProviderContract
from tests.contract.images import ImagesContract, SmallImagesContract
from tests.contract.leases import LeasesContract
from tests.contract.location import Location


class ArchivePlace:
    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> AbstractAsyncContextManager[Stores]:
        return open_archive(self.path)


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return ArchivePlace(tmp_path / "not" / "yet.tar")


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with open_archive(tmp_path / "not" / "yet.tar") as stores:
        yield stores


class TestArchiveIngest(IngestContract):
    pass


class TestArchiveProvider(ProviderContract):
    pass


class TestArchiveImages(ImagesContract):
    pass


class TestArchiveSmallImages(SmallImagesContract):
    pass


class TestArchiveLeases(LeasesContract):
    pass
