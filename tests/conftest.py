"""Settings that all tests share."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from nydus_service.config.environment import quiet_grpc
from tests.containerd import VERSIONS, Daemon, running_daemon
from tests.processes import let_children_have_signals, let_children_keep_bytecode

quiet_grpc()

# No deadline: a busy machine is no failure. Derandomised: the suite that runs on every change gives
# the same verdict for the same code; the long tests are the ones that look for new examples.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", settings.get_profile("tests"), derandomize=False, print_blob=True)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def children() -> None:
    """Give all processes that tests start the same signals and environment."""
    let_children_have_signals()
    let_children_keep_bytecode()


@pytest.fixture(scope="session", params=VERSIONS)
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A containerd for all tests that have a namespace of their own in it."""
    with running_daemon(request.param, tmp_path_factory.mktemp("containerd")) as running:
        yield running
