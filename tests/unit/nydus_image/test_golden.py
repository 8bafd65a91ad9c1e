"""Bytes that do not change: the format's worked example, and files written by the reference builder."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from nydus_service.nydus_image.command import main
from nydus_service.nydus_image.merge import MergeOptions, merge
from nydus_service.rafs.reader import read_bootstrap
from tests.compat.builders import assert_same, bootstrap_of, clear_marks, framed
from tests.layers import directory, file, layer, symlink
from tests.samples.make import lower
from tests.trees import image_tree, tree_of

SAMPLES = Path(__file__).parents[2] / "samples"

WORKED_EXAMPLE = layer(
    directory("d", mtime=1_600_000_000),
    file("d/f", b"hello\n", uid=1000, gid=100, mtime=1_700_000_000, xattrs={"user.k": b"v1"}),
    symlink("s", "d/f", mtime=1_700_000_000),
)

EXPECTED_LINES = """\
0400 e2 e1 f5 e0 00 00 00 00 00 00 00 40 0c 00 80 00
0410 04 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
0420 00 00 00 00 01 00 00 00 02 00 00 00 00 00 00 00
0450 0c 00 00 00 00 00 01 00 0b 00 00 00 00 00 00 00
0480 39 00 00 01 00 00 00 00 00 10 00 00 00 00 00 00
0490 00 01 00 00 00 00 10 00 00 40 00 00 00 00 00 00
04a0 50 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
05c0 01 00 00 00 80 00 00 00 00 00 00 00 00 00 00 00
1040 00 00 00 00 00 00 10 00 01 00 00 00 00 00 00 00
1050 01 00 00 00 01 00 00 40 16 10 00 00 00 00 00 00
1060 00 10 00 00 00 00 00 00 00 00 00 00 00 00 00 00
1070 06 00 00 00 00 00 00 00 10 00 00 00 00 00 00 00
1080 10 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
3000 05 00 00 00 ed 41 00 00 35 00 00 00 00 00 00 00
3010 03 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00
3020 00 00 00 00 00 00 00 00 00 00 00 00 03 00 00 00
3040 80 00 00 00 00 00 00 00 30 00 02 00 80 00 00 00
3050 00 00 00 00 31 00 02 00 87 00 00 00 00 00 00 00
3060 33 00 02 00 84 00 00 00 00 00 00 00 34 00 07 00
3070 2e 2e 2e 64 73 00 00 00 00 00 00 00 00 00 00 00
30c0 64 2f 66 00 00 00 00 00 00 00 00 00 00 00 00 00
3160 09 00 03 00 a4 81 00 00 06 00 00 00 00 00 00 00
3170 28 00 00 00 04 00 00 00 e8 03 00 00 64 00 00 00
3180 00 f1 53 65 00 00 00 00 00 00 00 00 01 00 00 00
31b8 00 00 01 00 00 00 00 00
4020 00 00 00 00 10 00 00 00 06 00 00 00 06 00 00 00
4048 00 00 00 00 be d8 3d 35
"""


def create(tmp_path: Path, tar: bytes, *options: str) -> None:
    """Run `create` in this process; the output goes to `blob` and, if separate, `boot`."""
    (tmp_path / "tar").write_bytes(tar)
    where = ["--blob", str(tmp_path / "blob")]
    if "--blob-inline-meta" not in options:
        where += ["--bootstrap", str(tmp_path / "boot")]
    argv = ["--log-level", "error", "create", "--type", "tar-rafs", *where, *options, str(tmp_path / "tar")]
    assert main(argv) == 0


def test_worked_example(tmp_path: Path) -> None:
    create(tmp_path, WORKED_EXAMPLE, "--compressor", "none", "--digester", "sha256")
    blob, bootstrap = (tmp_path / "blob").read_bytes(), clear_marks((tmp_path / "boot").read_bytes())
    assert sha256(blob).hexdigest() == "350fea00b001c21bc5901eeb0cf2a04ab7a282b23fefce94b5b01c809a0fd779"
    for line in EXPECTED_LINES.splitlines():
        at, *expected = line.split()
        found = bootstrap[int(at, 16) :][: len(expected)]
        assert f"{at} {found.hex(' ')}" == line
    assert bootstrap[0x1000:0x1040].decode() == sha256(blob).hexdigest()
    assert bootstrap[0x4000:0x4020] == sha256(b"hello\n").digest()
    assert len(bootstrap) == 20480
    assert sha256(bootstrap).hexdigest() == "79fe1850f3d631fb3d3090218338a4ee2baafc29ab8a404258e2b71e7efd534f"


def test_layer_as_the_reference_writes_it(tmp_path: Path) -> None:
    """Every byte: the root is in the tar, so there is no mark, and the bootstrap is not compressed."""
    options = ["--compressor", "none", "--digester", "sha256", "--chunk-size", "0x1000"]
    create(tmp_path, lower(), "--blob-inline-meta", *options)
    assert_same((tmp_path / "blob").read_bytes(), (SAMPLES / "lower-none.blob").read_bytes())


@pytest.mark.parametrize("compressor", ["zstd", "lz4_block"])
def test_compressed_layer_of_the_reference_has_our_metadata(compressor: str, tmp_path: Path) -> None:
    """Chunks may be compressed otherwise by other versions of a library; what they hold may not."""
    sample = (SAMPLES / f"lower-{compressor.removesuffix('_block')}.blob").read_bytes()
    options = ["--compressor", compressor, "--chunk-size", "0x1000", "--features", "blob-toc"]
    create(tmp_path, lower(), "--blob-inline-meta", *options)
    trees = []
    for number, blob in enumerate([(tmp_path / "blob").read_bytes(), sample]):
        blob_dir = tmp_path / f"blobs{number}"
        blob_dir.mkdir()
        (blob_dir / "id").write_bytes(blob)
        trees.append(image_tree(read_bootstrap(bootstrap_of(blob), "id"), blob_dir))
        assert [part.name for part in framed(blob).data] == ["image.blob", "blob.meta", "blob.digest"]
    assert trees[0] == trees[1]


def sample_blobs(tmp_path: Path) -> list[tuple[str, bytes]]:
    """The two zstd layers of the reference, stored by their ids; returns ids and contents."""
    blobs = [(SAMPLES / f"{name}-zstd.blob").read_bytes() for name in ("lower", "upper")]
    for blob in blobs:
        (tmp_path / sha256(blob).hexdigest()).write_bytes(blob)
    return [(sha256(blob).hexdigest(), blob) for blob in blobs]


def test_image_as_the_reference_merges_it(tmp_path: Path) -> None:
    sources = []
    for blob_id, blob in sample_blobs(tmp_path):
        sources.append(tmp_path / f"{blob_id}.boot")
        sources[-1].write_bytes(bootstrap_of(blob))
    merged = tmp_path / "merged"
    merge(MergeOptions(tuple(sources), bootstrap=merged, prefetch=((b"bin",),)))
    assert_same(merged.read_bytes(), (SAMPLES / "image.boot").read_bytes())


def test_image_of_the_reference_is_read_as_the_reference_reads_it(tmp_path: Path) -> None:
    sample_blobs(tmp_path)
    image = read_bootstrap((SAMPLES / "image.boot").read_bytes())
    expected = tree_of(map(json.loads, (SAMPLES / "image.jsonl").read_text().splitlines()))
    assert image_tree(image, tmp_path) == expected
    assert [inode.is_dir() for inode in image.prefetch] == [True]
