"""What the tests against other programs share."""

from collections.abc import Iterator

import pytest

from tests.compat.builders import Builder
from tests.compat.containerd import Containerd, running_containerd
from tests.tools import require_tool


@pytest.fixture(scope="session")
def oracle() -> Builder:
    """The reference builder; a test that asks for it skips where it was not built."""
    return Builder(str(require_tool("rafs-reference", (0, 1)).path), "--log-level", "error")


@pytest.fixture(scope="session")
def containerd() -> Iterator[Containerd]:
    """A containerd for all tests of a run."""
    with running_containerd() as started:
        yield started
