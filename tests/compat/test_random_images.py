"""Random images against containerd: the right tree or refusal, by the rule in equality.py, is ours as well.

`RANDOM_IMAGES` in the environment says how many, `RANDOM_SEED` which; a failure says how to make its images
again.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from nydus_service.errors import FormatError
from tests.compat.converted import converted_tree
from tests.compat.equality import UnsettledError, differences, right_answer
from tests.compat.randomstacks import Stack, random_stack, shrunk
from tests.compat.recorded import noted_tree
from tests.compat.stacks import tar_of
from tests.compat.unpacking import Unpacker, unpacking
from tests.containerd import running_daemon

IMAGES = int(os.environ.get("RANDOM_IMAGES", "600"))
SEED = int(os.environ.get("RANDOM_SEED", "1"))
BATCHES = 10
SHOWN = 5
"""How many failing images of a batch are made smaller and shown."""
OURS = {"verification expects": noted_tree, "the image has": converted_tree}


@pytest.fixture(scope="module")
def unpacker() -> Iterator[Unpacker]:
    with TemporaryDirectory(prefix="ctrd") as work, running_daemon("1.6", Path(work)) as daemon:
        with unpacking(daemon) as started:
            yield started


def faults(unpacker: Unpacker, stack: Stack) -> list[str]:
    """What is wrong with what we make of an image. Raises: UnsettledError: nobody knows what is right."""
    right = right_answer(unpacker, stack)
    layers = [tar_of(entries) for entries in stack]
    found = []
    for who, make in OURS.items():
        try:
            tree = make(layers)
        except FormatError as exc:
            if right.tree is not None:
                found.append(f"{who}: refused: {exc}")
        except Exception as exc:
            found.append(f"{who}: {exc!r}")
        else:
            if right.tree is None:
                found.append(f"{who}: not refused")
            else:
                found.extend(f"{who}: {line}" for line in differences(tree, right))
    return found


def is_wrong(unpacker: Unpacker, stack: Stack) -> bool:
    try:
        return bool(faults(unpacker, stack))
    except UnsettledError:
        return False


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_stacks(batch: int, unpacker: Unpacker) -> None:
    random = Random(f"{SEED} {batch}")
    done, failing = 0, []
    while done < IMAGES / BATCHES:
        stack = random_stack(random)
        try:
            wrong = faults(unpacker, stack)
        except UnsettledError:
            continue
        done += 1
        if wrong:
            failing.append(stack)
    shown = [shrunk(stack, lambda one: is_wrong(unpacker, one)) for stack in failing[:SHOWN]]
    lines = ["\n".join([f"{stack!r}:", *faults(unpacker, stack)]) for stack in shown]
    assert not failing, f"RANDOM_SEED={SEED}: {len(failing)} of {done} images\n" + "\n".join(lines)
