"""Everything fails at once: random images and clients, while processes die, disks fill and names vanish.

`CHAOS_SECONDS` in the environment says how long, `CHAOS_SEED` which images, requests and faults, and
`CHAOS_CONTAINERD` which version of containerd ("1.6" or "2"). A seed fixes what happens, but not its timing.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.compat.chaos.clients import asking
from tests.compat.chaos.faults import run_faults
from tests.compat.chaos.finalcheck import (
    answers_of_quiet_run,
    assert_answered,
    assert_log_is_clean,
    assert_metrics_are_true,
    assert_nothing_left,
    assert_stopped_clean,
    at_rest,
)
from tests.compat.chaos.images import write_samples
from tests.compat.chaos.world import World, kept_up, open_world
from tests.tools import find_libfaketime

SECONDS = int(os.environ.get("CHAOS_SECONDS", "300"))
SEED = os.environ.get("CHAOS_SEED", "1")
CONTAINERD = os.environ.get("CHAOS_CONTAINERD", "1.6")
_LOG_LINES = 100


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The processes. Their logs are copied to `tmp_path`; after a failure, pytest prints the end of them."""
    with tempfile.TemporaryDirectory(prefix="nyd") as name:
        place = Path(name)
        samples = write_samples(Random(f"images {SEED}"), place / "samples")
        with open_world(CONTAINERD, place, samples, find_libfaketime()) as opened:
            try:
                yield opened
            finally:
                for log in (place / "log", place / "c" / "log"):
                    print(f"{log}, the end of it:", *log.read_text().splitlines()[-_LOG_LINES:], sep="\n")
                shutil.copy(place / "log", tmp_path / "daemon.log")
                shutil.copy(place / "c" / "log", tmp_path / "containerd.log")


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 1200)
def test_chaos(world: World) -> None:
    print(f"CHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS} CHAOS_CONTAINERD={CONTAINERD}")
    answers = answers_of_quiet_run(world)
    rest = at_rest(world)
    with kept_up(world):
        with asking(world, SEED):
            run_faults(world, SEED, SECONDS)
        healthy = time.monotonic()
        assert_answered(world, answers)
        took_s = time.monotonic() - healthy
        print(f"{len(world.asks)} requests are answered {took_s:.0f} s after the last fault")
        assert_nothing_left(world, rest)
    assert_metrics_are_true(world)
    assert not world.wrong, world.wrong
    assert_log_is_clean(world)
    assert_stopped_clean(world)
