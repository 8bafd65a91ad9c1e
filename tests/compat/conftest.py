"""What the tests against other programs share."""

import pytest

from tests.compat.builders import Builder
from tests.tools import require_tool


@pytest.fixture(scope="session")
def oracle() -> Builder:
    """The reference builder; a test that asks for it skips where it was not built."""
    return Builder(str(require_tool("rafs-reference", (0, 1)).path), "--log-level", "error")
