"""What every store promises, as suites that each store's tests inherit."""

import pytest

pytest.register_assert_rewrite("tests.contract.content", "tests.contract.images", "tests.contract.leases")
