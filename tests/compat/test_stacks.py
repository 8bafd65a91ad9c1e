"""Random stacks of layers: our layers, merged by us, are what containerd would have on disk.

The expected tree is that of the model in stacks.py. Ours is read by our reader and, where it was
built, by the reference; where there is a kernel to do it, the long test mounts it as well.
"""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings

from nydus_service.errors import FormatError
from nydus_service.rafs.reader import read_bootstrap
from tests.compat.containerd import Containerd, assert_left_by
from tests.compat.converted import convert
from tests.compat.recorded import noted_tree
from tests.compat.stacks import (
    ANY_STACKS,
    Entry,
    Layer,
    Overlay,
    PlainOverlay,
    is_refused,
    tar_of,
    without_refused,
)
from tests.trees import expand_blobs, image_tree, mounted_tree, oracle_tree

MANY = settings(max_examples=1000, phases=[Phase.explicit, Phase.generate, Phase.shrink])


def check_stack(stack: list[Layer], *readers: Callable[[Path, Path], object]) -> None:
    """Convert what containerd accepts of a stack and compare what each reader finds."""
    accepted, overlay = without_refused(stack)
    expected = overlay.tree()
    with tempfile.TemporaryDirectory() as work:
        image, blobs = convert([tar_of(entries) for entries in accepted], Path(work))
        for read in readers:
            assert read(image, blobs) == expected


def our_tree(image: Path, blobs: Path) -> object:
    """What our reader finds."""
    return image_tree(read_bootstrap(image.read_bytes()), blobs)


def kernel_tree(image: Path, blobs: Path) -> object:
    """What the kernel finds."""
    mountpoint = blobs.parent / "mount"
    mountpoint.mkdir()
    return mounted_tree(image, expand_blobs(image.read_bytes(), blobs, blobs.parent), mountpoint)


def check_notes(stack: list[Layer]) -> None:
    """Compare verification's own overlay of what containerd accepts."""
    accepted, overlay = without_refused(stack, Overlay())
    assert noted_tree([tar_of(entries) for entries in accepted]) == overlay.tree()


def check_containerd(containerd: Containerd, stack: list[Layer]) -> None:
    """Compare the model with the original."""
    accepted, overlay = without_refused(stack, PlainOverlay())
    assert_left_by(containerd, [tar_of(entries) for entries in accepted], overlay.tree())


@given(ANY_STACKS)
@settings(max_examples=150)
def test_merged_tree(stack: list[Layer]) -> None:
    check_stack(stack, our_tree)


@pytest.mark.usefixtures("oracle")
@given(ANY_STACKS)
@settings(max_examples=60)
def test_merged_tree_as_the_reference_reads_it(stack: list[Layer]) -> None:
    check_stack(stack, our_tree, oracle_tree)


@given(ANY_STACKS)
@settings(max_examples=150)
def test_verification_expects_the_same_tree(stack: list[Layer]) -> None:
    check_notes(stack)


@given(ANY_STACKS)
@settings(max_examples=25)
def test_containerd_leaves_the_same_tree(containerd: Containerd, stack: list[Layer]) -> None:
    check_containerd(containerd, stack)


@pytest.mark.long
@pytest.mark.timeout(1800)
@given(ANY_STACKS)
@MANY
def test_many_trees_that_verification_expects(stack: list[Layer]) -> None:
    check_notes(stack)


@pytest.mark.long
@pytest.mark.timeout(1800)
@given(ANY_STACKS)
@settings(MANY, max_examples=150)
def test_many_trees_that_containerd_leaves(containerd: Containerd, stack: list[Layer]) -> None:
    check_containerd(containerd, stack)


@pytest.mark.long
@pytest.mark.timeout(1800)
@given(ANY_STACKS)
@MANY
def test_many_merged_trees(stack: list[Layer]) -> None:
    check_stack(stack, our_tree)


@pytest.mark.long
@pytest.mark.timeout(1800)
@given(ANY_STACKS)
@settings(MANY, max_examples=300)
def test_many_merged_trees_as_the_kernel_reads_them(stack: list[Layer]) -> None:
    check_stack(stack, kernel_tree)


@pytest.mark.parametrize(
    "stack",
    [
        [[Entry("file", "a"), Entry("file", "a/b")]],
        [[Entry("file", "a")], [Entry("file", "a/b")]],
        [[Entry("hardlink", "a", "b")]],
        [[Entry("file", "b")], [Entry("whiteout", "b"), Entry("hardlink", "a", "b")]],
        [[Entry("directory", "b")], [Entry("hardlink", "a", "b")]],
        [[Entry("symlink", "a", "a"), Entry("file", "a/b")]],
        [[Entry("symlink", "a", "/b"), Entry("symlink", "b", "a")], [Entry("file", "a/b")]],
    ],
)
def test_what_containerd_refuses_is_refused(stack: list[Layer], tmp_path: Path) -> None:
    assert is_refused(stack)
    with pytest.raises(FormatError):
        convert([tar_of(entries) for entries in stack], tmp_path)


@given(ANY_STACKS)
@settings(max_examples=150)
def test_what_containerd_takes_is_taken(stack: list[Layer]) -> None:
    """And nothing else than FormatError comes of the rest.

    What it refuses may be taken here, if a later entry of the layer removes what was wrong: the
    merge sees layers, not entries.
    """
    layers = [tar_of(entries) for entries in stack]
    with tempfile.TemporaryDirectory() as work:
        if is_refused(stack):
            with contextlib.suppress(FormatError):
                convert(layers, Path(work))
        else:
            convert(layers, Path(work))
