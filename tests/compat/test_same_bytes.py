"""With `--compressor none` our builder writes, byte for byte, what the reference writes.

Two things are set aside: our marks in a layer's bootstrap, in bytes that the format reserves, and
of a bootstrap inside a blob its zstd frame, which depends on the version of libzstd.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.compat.builders import (
    INLINE,
    OURS,
    TOC,
    Builder,
    Packed,
    assert_same,
    clear_marks,
    framed,
    save_layer,
)
from tests.compat.catalogue import LAYERS, STACKS, many_sizes, mixed, random_tree
from tests.layers import directory, file, layer

PLAIN = ("--compressor", "none")
SHA256 = ("--digester", "sha256")


def assert_same_layer(tmp_path: Path, oracle: Builder, tar: bytes, *options: str) -> Packed:
    """Build a layer with both and compare; returns ours."""
    ours = OURS.create(tmp_path / "ours", tar, *PLAIN, *options)
    theirs = oracle.create(tmp_path / "theirs", tar, *PLAIN, *options)
    assert_same(clear_marks(ours.bootstrap) if ours.bootstrap else b"", theirs.bootstrap)
    if "--blob-inline-meta" in options and "--features" in options:
        assert framed(ours.blob) == framed(theirs.blob)
    elif "--blob-inline-meta" in options:
        assert_same(without_marks_inside(ours.blob), theirs.blob)
    else:
        assert_same(ours.blob, theirs.blob)
        assert ours.ids == theirs.ids
    return ours


def without_marks_inside(blob: bytes) -> bytes:
    """An inline blob without a TOC, its bootstrap, which is stored as it is, without marks."""
    end = len(blob) - 512
    start = end - int(blob[end + 124 : end + 135], 8)
    return blob[:start] + clear_marks(blob[start:end]) + blob[end:]


@pytest.mark.parametrize("name", LAYERS)
def test_layer_with_separate_bootstrap(name: str, tmp_path: Path, oracle: Builder) -> None:
    assert_same_layer(tmp_path, oracle, LAYERS[name](), *SHA256)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_with_inlined_bootstrap_and_toc(name: str, tmp_path: Path, oracle: Builder) -> None:
    assert_same_layer(tmp_path, oracle, LAYERS[name](), *INLINE, *TOC)


@pytest.mark.parametrize("name", ["mixed", "missing-parents", "metadata-only", "empty"])
def test_layer_with_inlined_bootstrap_alone(name: str, tmp_path: Path, oracle: Builder) -> None:
    assert_same_layer(tmp_path, oracle, LAYERS[name](), *INLINE)


@pytest.mark.parametrize("name", ["mixed", "metadata-only", "empty"])
def test_layer_with_toc_alone(name: str, tmp_path: Path, oracle: Builder) -> None:
    """The id is given: the reference's own is not the blob's digest, see test_deviations.py."""
    assert_same_layer(tmp_path, oracle, LAYERS[name](), *TOC, "--blob-id", "of-my-choice")


@pytest.mark.parametrize("chunk_size", [4096, 65536, 1 << 21, 1 << 24])
@pytest.mark.parametrize("digester", ["blake3", "sha256"])
def test_chunk_sizes(chunk_size: int, digester: str, tmp_path: Path, oracle: Builder) -> None:
    options = ("--chunk-size", hex(chunk_size), "--digester", digester)
    assert_same_layer(tmp_path, oracle, many_sizes(), *options)
    assert_same_layer(tmp_path / "mixed", oracle, mixed(), *options, *INLINE, *TOC)


def test_without_owners(tmp_path: Path, oracle: Builder) -> None:
    assert_same_layer(tmp_path, oracle, mixed(), "--repeatable")


@pytest.mark.parametrize("spec", ["oci", "overlayfs", "none"])
def test_whiteout_specs(spec: str, tmp_path: Path, oracle: Builder) -> None:
    """Without a parent bootstrap the kind of whiteouts makes no difference to a tar's layer."""
    tar = LAYERS["whiteouts"]()
    ours, theirs = (
        builder.create(tmp_path / name, tar, *PLAIN, "--whiteout-spec", spec)
        for name, builder in (("ours", OURS), ("theirs", oracle))
    )
    assert_same(clear_marks(ours.bootstrap), theirs.bootstrap)


PATTERNS = {
    "root": "/\n",
    "nothing": "",
    "unknown": "/no/such/path\n",
    "files": "/d/f\n/ping\n",
    "directory": "/acl\n/acl/f\n",
    "child-then-parent": "/acl/f\n/acl\n",
    "spellings": "  //acl/./f/  \n\n/d//\n",
    "relative": "d/f\n",
    "empty-file": "/empty\n/null\n/s\n",
    "twice": "/ping\n/ping\n",
    "hard-links": "/d/h\n/a-link\n",
}


@pytest.mark.parametrize("name", PATTERNS)
def test_prefetch_patterns(name: str, tmp_path: Path, oracle: Builder) -> None:
    patterns = PATTERNS[name]
    packed = [
        builder.create(tmp_path / side, mixed(), *PLAIN, prefetch=patterns)
        for side, builder in (("ours", OURS), ("theirs", oracle))
    ]
    assert_same(clear_marks(packed[0].bootstrap), packed[1].bootstrap)
    merged = [
        builder.merge(tmp_path / side, [save_layer(packed[1], tmp_path)], prefetch=patterns)[0]
        for side, builder in (("ours", OURS), ("theirs", oracle))
    ]
    assert_same(*merged)


def assert_same_merge(
    tmp_path: Path, oracle: Builder, sources: Sequence[Path], *options: str, prefetch: str | None = None
) -> bytes:
    """Merge with both and compare; returns the merged bootstrap."""
    ours = OURS.merge(tmp_path / "ours", sources, *options, prefetch=prefetch)
    theirs = oracle.merge(tmp_path / "theirs", sources, *options, prefetch=prefetch)
    assert_same(ours[0], theirs[0])
    assert ours[1] == theirs[1]
    return ours[0]


@pytest.mark.parametrize("name", STACKS)
def test_merge(name: str, tmp_path: Path, oracle: Builder) -> None:
    tars = STACKS[name]()
    packed = [oracle.create(tmp_path / f"{n}", tar, *PLAIN, *SHA256) for n, tar in enumerate(tars)]
    assert_same_merge(tmp_path, oracle, [save_layer(layer_, tmp_path) for layer_ in packed])


@pytest.mark.parametrize("name", STACKS)
def test_merge_of_inlined_bootstraps(name: str, tmp_path: Path, oracle: Builder) -> None:
    """As a converter does it: bootstraps out of zstd blobs, with what it knows of the blobs."""
    tars = STACKS[name]()
    packed = [oracle.create(tmp_path / f"{n}", tar, *INLINE, *TOC) for n, tar in enumerate(tars)]
    sources = [save_layer(layer_, tmp_path) for layer_ in packed]
    digests = ",".join(layer_.blob_id for layer_ in packed)
    sizes = ",".join(str(len(layer_.blob)) for layer_ in packed)
    assert_same_merge(
        tmp_path, oracle, sources, "--blob-digests", digests, "--blob-sizes", sizes, prefetch="/\n"
    )


@pytest.fixture(scope="module")
def small_layers(oracle: Builder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """254 layers of one file each: as many blobs as an image can have."""
    work = tmp_path_factory.mktemp("small")
    tars = [layer(file(f"f{n}", b"%d" % n), directory("shared", mtime=n)) for n in range(254)]
    return [save_layer(oracle.create(work / "layer", tar, *PLAIN), work) for tar in tars]


@pytest.mark.parametrize("count", [21, 22, 53, 54, 254])
def test_merge_of_many_layers(count: int, tmp_path: Path, oracle: Builder, small_layers: list[Path]) -> None:
    """The device slots grow into the next block behind 21 and 53 blobs."""
    assert_same_merge(tmp_path, oracle, small_layers[:count])


def test_lists_of_blob_properties(tmp_path: Path, oracle: Builder) -> None:
    tars = [mixed(), random_tree()]
    sources = [
        save_layer(oracle.create(tmp_path / f"{n}", tar, *PLAIN, *INLINE, *TOC), tmp_path)
        for n, tar in enumerate(tars)
    ]
    digests = ",".join([f"{n:064x}" for n in (10, 11)])
    lists = [
        ("--original-blob-ids", "first,second"),
        ("--blob-digests", digests),
        ("--blob-sizes", "111,222"),
        ("--blob-toc-digests", ",".join([f"{n:064x}" for n in (12, 13)])),
        ("--blob-toc-sizes", "640,768"),
    ]
    for n, (option, items) in enumerate(lists):
        assert_same_merge(tmp_path / f"only{n}", oracle, sources, option, items)
    assert_same_merge(tmp_path / "all", oracle, sources, *(word for pair in lists for word in pair))


@pytest.mark.parametrize(
    ("options", "status"),
    [(("--blob-sizes", "1"), 1), (("--blob-digests", "ab"), 1), (("--no-such-option",), 2)],
)
def test_exit_status_of_a_merge_that_cannot_be(
    options: tuple[str, ...], status: int, tmp_path: Path, oracle: Builder
) -> None:
    sources = [
        save_layer(oracle.create(tmp_path / f"{n}", tar, *PLAIN), tmp_path)
        for n, tar in enumerate([mixed(), random_tree()])
    ]
    for builder in (OURS, oracle):
        done = builder.run("merge", "--bootstrap", str(tmp_path / "out"), *options, *map(str, sources))
        assert done.returncode == status, done.stderr.decode()


def test_exit_status_of_layers_that_do_not_fit(tmp_path: Path, oracle: Builder) -> None:
    sources = [
        save_layer(oracle.create(tmp_path / size, mixed(), *PLAIN, "--chunk-size", size), tmp_path)
        for size in ("0x1000", "0x2000")
    ]
    for builder in (OURS, oracle):
        done = builder.run("merge", "--bootstrap", str(tmp_path / "out"), *map(str, sources))
        assert done.returncode == 2, done.stderr.decode()
