"""Random images against containerd: the right tree or refusal, by the rule in equality.py, is ours as well.

`RANDOM_IMAGES` in the environment says how many of each kind, `RANDOM_SEED` which. A failure says how to make
its images again.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import pytest

from nydus_service.errors import FormatError
from tests.compat.converted import converted_tree
from tests.compat.equality import Right, UnsettledError, differences, right_answer
from tests.compat.randomheaders import Archive, random_archive, shrunk_archive
from tests.compat.randomstacks import Stack, random_stack, shrunk
from tests.compat.recorded import noted_tree
from tests.compat.setaside import is_archive_set_aside, is_stack_set_aside
from tests.compat.stacks import tar_of
from tests.compat.unpacking import SNAPSHOTTERS, Unpacker

IMAGES = int(os.environ.get("RANDOM_IMAGES", "400"))
SEED = int(os.environ.get("RANDOM_SEED", "1"))
BATCHES = 10
SHOWN = 5
"""How many failing images of a batch are made smaller and shown."""
OURS = {"verification expects": noted_tree, "the image has": converted_tree}


def faults(
    right: Right,
    layers: Sequence[bytes],
    *,
    merge_sees_it: bool = True,
    may_refuse: Callable[[], bool] = lambda: False,
) -> list[str]:
    """What is wrong with what we make of an image.

    The merge sees layers as a whole, not their entries one by one, so that it may take an image that
    verification refuses: `merge_sees_it` is false where that is no fault. `may_refuse` says whether an image
    with a right tree may be refused.
    """
    found = []
    for who, make in OURS.items():
        try:
            tree = make(layers)
        except FormatError as exc:
            if right.tree is not None and not may_refuse():
                found.append(f"{who}: refused: {exc}")
        except Exception as exc:
            found.append(f"{who}: {exc!r}")
        else:
            if right.tree is not None:
                found.extend(f"{who}: {line}" for line in differences(tree, right))
            elif merge_sees_it or make is noted_tree:
                found.append(f"{who}: not refused")
    return found


def faults_of_stack(unpacker: Unpacker, stack: Stack) -> list[str]:
    """Raises: UnsettledError: nobody knows what is right."""
    if is_stack_set_aside(stack):
        raise UnsettledError("set aside")
    right = right_answer(unpacker, stack)
    layers = [tar_of(entries) for entries in stack]
    refused = partial(is_refused_as_a_whole, unpacker, layers)
    return faults(right, layers, merge_sees_it=False, may_refuse=refused)


def is_refused_as_a_whole(unpacker: Unpacker, layers: Sequence[bytes]) -> bool:
    """Whether both snapshotters refuse an image as it is, though the rule has a tree entry by entry."""
    for snapshotter in SNAPSHOTTERS:
        try:
            unpacker.tree(layers, snapshotter)
        except FormatError:
            continue
        return False
    return True


def is_wrong(unpacker: Unpacker, stack: Stack) -> bool:
    try:
        return bool(faults_of_stack(unpacker, stack))
    except UnsettledError:
        return False


def answer_to_archive(unpacker: Unpacker, archive: Archive) -> Right:
    since = int(time.time())
    try:
        return Right(unpacker.tree([archive.tar()]), since)
    except FormatError:
        return Right(None, since)


def faults_of_archive(unpacker: Unpacker, archive: Archive) -> list[str]:
    return faults(answer_to_archive(unpacker, archive), [archive.tar()])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_stacks(batch: int, unpacker: Unpacker) -> None:
    random = Random(f"stacks {SEED} {batch}")
    done, failing = 0, []
    while done < IMAGES // BATCHES:
        stack = random_stack(random)
        try:
            wrong = faults_of_stack(unpacker, stack)
        except UnsettledError:
            continue
        done += 1
        if wrong:
            failing.append(stack)
    shown = [shrunk(stack, partial(is_wrong, unpacker)) for stack in failing[:SHOWN]]
    assert not failing, report(failing, [(one, faults_of_stack(unpacker, one)) for one in shown])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_headers(batch: int, unpacker: Unpacker) -> None:
    random = Random(f"headers {SEED} {batch}")
    done, failing = 0, []
    while done < IMAGES // BATCHES:
        archive = random_archive(random)
        if is_archive_set_aside(archive):
            continue
        right = answer_to_archive(unpacker, archive)
        if right.tree is None and random.random() < 0.8:
            continue  # most are refused, for few reasons
        done += 1
        if faults(right, [archive.tar()]):
            failing.append(archive)
    fails = partial(faults_of_archive, unpacker)
    shown = [
        shrunk_archive(archive, lambda one: not is_archive_set_aside(one) and bool(fails(one)))
        for archive in failing[:SHOWN]
    ]
    assert not failing, report(failing, [(one, fails(one)) for one in shown])


def report(failing: Sequence[object], shown: Sequence[tuple[object, list[str]]]) -> str:
    """A message with the seed, and some failing images as Python, with what is wrong."""
    lines = [f"RANDOM_SEED={SEED}: {len(failing)} images, such as"]
    for image, wrong in shown:
        lines += [repr(image), *(f"    {line}" for line in wrong[:8])]
    return "\n".join(lines)
