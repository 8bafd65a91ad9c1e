"""Random stacks of layers: whoever reads our image of them finds what verification expects of it.

That this is the right tree is what test_random_images.py compares with containerd. Ours is read by our reader
and, where it was built, by the reference; where there is a kernel to do it, the long test mounts it as well.
"""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings

from nydus_service.errors import FormatError
from nydus_service.rafs.reader import read_bootstrap
from tests.compat.converted import convert
from tests.compat.recorded import noted_tree
from tests.compat.stacks import ANY_STACKS, Entry, Layer, tar_of
from tests.trees import Tree, expand_blobs, image_tree, mounted_tree, oracle_tree

MANY = settings(max_examples=600, phases=[Phase.explicit, Phase.generate, Phase.shrink])


def expected_tree(stack: list[Layer]) -> Tree | None:
    """What verification expects of a stack; None if it refuses it."""
    try:
        return noted_tree([tar_of(entries) for entries in stack])
    except FormatError:
        return None


def check_stack(stack: list[Layer], *readers: Callable[[Path, Path], object]) -> None:
    """Convert a stack and compare what each reader finds.

    What verification refuses may be converted, if a later entry of the layer removes what was wrong: the
    merge sees layers, not entries. Nothing else than FormatError comes of it.
    """
    layers = [tar_of(entries) for entries in stack]
    expected = expected_tree(stack)
    with tempfile.TemporaryDirectory() as work:
        if expected is None:
            with contextlib.suppress(FormatError):
                convert(layers, Path(work))
            return
        image, blobs = convert(layers, Path(work))
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


@given(ANY_STACKS)
@settings(max_examples=300)
def test_merged_tree(stack: list[Layer]) -> None:
    check_stack(stack, our_tree)


@pytest.mark.usefixtures("oracle")
@given(ANY_STACKS)
@settings(max_examples=100)
def test_merged_tree_as_the_reference_reads_it(stack: list[Layer]) -> None:
    check_stack(stack, our_tree, oracle_tree)


@pytest.mark.long
@pytest.mark.timeout(1800)
@given(ANY_STACKS)
@MANY
def test_many_merged_trees(stack: list[Layer]) -> None:
    check_stack(stack, our_tree)


@pytest.mark.long
@pytest.mark.timeout(1800)
@given(ANY_STACKS)
@settings(MANY, max_examples=200)
def test_many_merged_trees_as_the_kernel_reads_them(stack: list[Layer]) -> None:
    check_stack(stack, kernel_tree)


@pytest.mark.parametrize(
    "stack",
    [
        [[Entry("file", "a"), Entry("file", "a/b")]],
        [[Entry("file", "a")], [Entry("file", "a/b/c")]],
        [[Entry("hardlink", "a", "b")]],
        [[Entry("file", "b")], [Entry("whiteout", "b"), Entry("hardlink", "a", "b")]],
        [[Entry("directory", "b")], [Entry("hardlink", "a", "b")]],
        [[Entry("symlink", "a", "a"), Entry("file", "a/b")]],
        [[Entry("symlink", "a", "/b"), Entry("symlink", "b", "a")], [Entry("file", "a/b")]],
    ],
)
def test_what_containerd_refuses_is_refused(stack: list[Layer], tmp_path: Path) -> None:
    assert expected_tree(stack) is None
    with pytest.raises(FormatError):
        convert([tar_of(entries) for entries in stack], tmp_path)
