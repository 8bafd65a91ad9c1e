"""What we write the reference and the kernel read; what the reference writes we read: equal trees.

Compressed bytes may differ between versions of a library, so here trees and content are compared,
every chunk of every file decompressed and checked against its digest.
"""

import subprocess
from pathlib import Path

import pytest

from nydus_service.rafs.reader import read_bootstrap
from tests.compat.builders import INLINE, OURS, TOC, Builder, Packed, save_layer
from tests.compat.catalogue import LAYERS, STACKS
from tests.tools import require_kernel_erofs, require_tool
from tests.trees import Tree, expand_blobs, image_tree, mounted_tree, oracle_tree

COMPRESSORS = ["none", "lz4_block", "zstd"]


def our_tree(bootstrap: Path, blob_dir: Path) -> Tree:
    """The tree as our reader finds it."""
    return image_tree(read_bootstrap(bootstrap.read_bytes(), bootstrap.name), blob_dir)


def merged_image(builder: Builder, tmp_path: Path, packed: list[Packed]) -> Path:
    """Merge layers as a converter does; the blobs are in `tmp_path/blobs`."""
    sources = [save_layer(layer, tmp_path) for layer in packed]
    digests = ",".join(layer.blob_id for layer in packed)
    sizes = ",".join(str(len(layer.blob)) for layer in packed)
    bootstrap, _ = builder.merge(tmp_path, sources, "--blob-digests", digests, "--blob-sizes", sizes)
    path = tmp_path / "image.boot"
    path.write_bytes(bootstrap)
    return path


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_read_by_either(name: str, compressor: str, tmp_path: Path, oracle: Builder) -> None:
    trees = []
    for side, builder in (("ours", OURS), ("theirs", oracle)):
        packed = builder.create(tmp_path / side, LAYERS[name](), *INLINE, *TOC, "--compressor", compressor)
        bootstrap = save_layer(packed, tmp_path / side)
        trees += [read(bootstrap, tmp_path / side / "blobs") for read in (oracle_tree, our_tree)]
    assert all(tree == trees[0] for tree in trees[1:])


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("name", STACKS)
def test_image_is_read_by_either(name: str, compressor: str, tmp_path: Path, oracle: Builder) -> None:
    trees = []
    for side, builder in (("ours", OURS), ("theirs", oracle)):
        work = tmp_path / side
        packed = [
            builder.create(work, tar, *INLINE, *TOC, "--compressor", compressor) for tar in STACKS[name]()
        ]
        image = merged_image(builder, work, packed)
        trees += [read(image, work / "blobs") for read in (oracle_tree, our_tree)]
    assert all(tree == trees[0] for tree in trees[1:])


@pytest.mark.parametrize("chunk_size", ["0x1000", "0x1000000"])
def test_layers_of_both_builders_make_one_image(chunk_size: str, tmp_path: Path, oracle: Builder) -> None:
    tars = STACKS["four-layers"]()
    options = (*INLINE, *TOC, "--chunk-size", chunk_size)
    packed = [
        builder.create(tmp_path, tar, *options)
        for builder, tar in zip((OURS, oracle, OURS, oracle), tars, strict=True)
    ]
    only_ours = [OURS.create(tmp_path, tar, *options) for tar in tars]
    trees = [
        oracle_tree(merged_image(builder, tmp_path / side, layers), tmp_path / side / "blobs")
        for side, builder, layers in (
            ("a", OURS, packed),
            ("b", oracle, packed),
            ("c", OURS, only_ours),
        )
    ]
    assert trees[0] == trees[1] == trees[2]


@pytest.mark.parametrize("name", [*LAYERS, *STACKS])
def test_kernel_mounts_what_we_write(name: str, tmp_path: Path) -> None:
    require_kernel_erofs()
    image, blob_dir = build(name, tmp_path)
    devices = expand_blobs(image.read_bytes(), blob_dir, tmp_path)
    mountpoint = tmp_path / "mount"
    mountpoint.mkdir()
    assert mounted_tree(image, devices, mountpoint) == our_tree(image, blob_dir)


@pytest.mark.parametrize("name", [*LAYERS, *STACKS])
def test_fsck_finds_nothing_wrong(name: str, tmp_path: Path) -> None:
    fsck = require_tool("fsck.erofs", (1, 5))
    image, blob_dir = build(name, tmp_path)
    devices = expand_blobs(image.read_bytes(), blob_dir, tmp_path)
    argv = [str(fsck.path), *(f"--device={device}" for device in devices), str(image)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def build(name: str, tmp_path: Path) -> tuple[Path, Path]:
    """Our image of a layer or stack of the catalogue: its bootstrap, and the blobs' directory."""
    tars = STACKS[name]() if name in STACKS else [LAYERS[name]()]
    packed = [OURS.create(tmp_path, tar, *INLINE, *TOC, "--chunk-size", "0x10000") for tar in tars]
    return merged_image(OURS, tmp_path, packed), tmp_path / "blobs"
