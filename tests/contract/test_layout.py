"""The stores over an OCI layout directory keep what every store promises."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nydus_service.content.layout import open_layout
from nydus_service.content.store import Stores
from tests.contract.content import IngestContract, ProviderContract
from tests.contract.images import ImagesContract, SmallImagesContract
from tests.contract.leases import LeasesContract
from tests.contract.location import Location


class LayoutPlace:
    def __init__(self, path: Path) -> None:
        self.path = path

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Stores]:
        yield open_layout(self.path)


@pytest.fixture
def place(tmp_path: Path) -> Location:
    return LayoutPlace(tmp_path / "not" / "there" / "yet")


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return open_layout(tmp_path / "not" / "there" / "yet")


class TestLayoutIngest(IngestContract):
    pass


class TestLayoutProvider(ProviderContract):
    pass


class TestLayoutImages(ImagesContract):
    pass


class TestLayoutSmallImages(SmallImagesContract):
    pass


class TestLayoutLeases(LeasesContract):
    pass
