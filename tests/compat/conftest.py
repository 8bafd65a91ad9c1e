"""What the tests against other programs share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat.builders import Builder
from tests.compat.unpacking import Unpacker, unpacking
from tests.containerd import running_daemon
from tests.tools import require_tool


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for the path of a socket in it."""
    with tempfile.TemporaryDirectory(prefix="nyd") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def oracle() -> Builder:
    """The reference builder; a test that asks for it skips where it was not built."""
    return Builder(str(require_tool("rafs-reference", (0, 1)).path), "--log-level", "error")


@pytest.fixture(scope="session")
def unpacker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unpacker]:
    """A containerd that unpacks images, for all tests of a run."""
    with running_daemon("1.6", tmp_path_factory.mktemp("unpacking")) as daemon, unpacking(daemon) as started:
        yield started
