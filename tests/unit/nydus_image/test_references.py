"""`create --type targz-ref`: tables about a gzip layer, and refusals of what cannot be referred to."""

import gzip
import hashlib
import io
import itertools
import random
import tarfile
from pathlib import Path

import pytest
import zstandard

from nydus_service.nydus_image.command import main
from nydus_service.rafs import blob as sections
from nydus_service.rafs.blob import read_entry, read_toc, run
from nydus_service.rafs.reader import Bootstrap, read_bootstrap
from nydus_service.rafs.tree import Blob, walk
from nydus_service.rafs.zran import read_chunk, read_zran_table
from tests.compat.builders import (
    INLINE,
    OURS,
    TOC,
    Builder,
    Packed,
    assert_same,
    bootstrap_of,
    clear_marks,
)
from tests.layers import directory, file, gnu_sparse, layer, symlink
from tests.tools import require_tool

SHA256 = ("--digester", "sha256")
OPTIONS = ("--type", "targz-ref", "--blob-inline-meta", "--features", "blob-toc", "--log-level", "warn")


def text(seed: int, size: int) -> bytes:
    source = random.Random(seed)
    return b"".join(b"%d lines\n" % source.randrange(10**6) for _ in range(size // 12 + 1))[:size]


CONTENTS = {
    "d/a": b"x",
    "d/b": text(1, 300_000),
    "d/c": random.Random(2).randbytes(1_500_000),
    "d/again": text(1, 300_000),
    "d/big": text(3, 2_500_000),
    "empty": b"",
    "zeros": bytes(5_000_000),
    "z": text(4, 100),
}
TAR = layer(
    directory("d"), symlink("s", "d/a"), *(file(name, data, mode=0o640) for name, data in CONTENTS.items())
)


def members(tar: bytes, size: int) -> bytes:
    return b"".join(gzip.compress(tar[at : at + size], 6, mtime=0) for at in range(0, len(tar), size))


def members_by_file(tar: bytes) -> bytes:
    """Headers and contents in members of their own, and an empty one at the end, as in eStargz layers."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        cuts = sorted({0, len(tar), *(at for each in opened for at in (each.offset, each.offset_data))})
    parts = [tar[start:end] for start, end in itertools.pairwise(cuts)]
    return b"".join(gzip.compress(part, 6, mtime=0) for part in [*parts, b""])


STORED = {
    "level 1": gzip.compress(TAR, 1, mtime=0),
    "level 6": gzip.compress(TAR, 6, mtime=0),
    "level 9": gzip.compress(TAR, 9, mtime=0),
    "stored": gzip.compress(TAR, 0, mtime=0),
    "members": members(TAR, 300_001),
    "many members": members(TAR, 50_000),
    "members by file": members_by_file(TAR),
}


def create(stored: bytes, work: Path, *options: str) -> bytes:
    (work / "layer").write_bytes(stored)
    assert main(["create", *OPTIONS, *options, "--blob", str(work / "blob"), str(work / "layer")]) == 0
    return (work / "blob").read_bytes()


def open_blob(data: bytes) -> tuple[Bootstrap, Blob]:
    def read(offset: int, size: int) -> bytes:
        return data[offset : offset + size]

    bootstrap = read_bootstrap(run(read_entry(sections.BOOTSTRAP, len(data)), read))
    (blob,) = bootstrap.blobs
    return bootstrap, blob


def contents(bootstrap: Bootstrap, blob: bytes, stored: bytes) -> dict[str, bytes]:
    """The content of all files, each chunk read at random from the gzip layer."""
    table = read_zran_table(bootstrap.blobs[0], lambda offset, size: blob[offset : offset + size])
    found = {}
    for path, inode in walk(bootstrap.root):
        if inode.is_regular():
            parts = [
                read_chunk(table, chunk, lambda offset, size: stored[offset : offset + size])
                for chunk in inode.chunks
            ]
            for chunk, part in zip(inode.chunks, parts, strict=True):
                assert hashlib.sha256(part).digest() == chunk.digest
            found[path.decode().lstrip("/")] = b"".join(parts)
    return found


@pytest.mark.parametrize("kind", STORED)
def test_content_is_read_from_the_gzip_layer(kind: str, tmp_path: Path) -> None:
    stored = STORED[kind]
    data = create(stored, tmp_path)
    bootstrap, blob = open_blob(data)
    assert blob.blob_id == hashlib.sha256(stored).hexdigest()
    assert blob.compressed_size == len(stored)
    assert (bootstrap.compressor, bootstrap.digester) == ("gzip", "sha256")
    assert contents(bootstrap, data, stored) == CONTENTS
    toc = run(read_toc(len(data)), lambda offset, size: data[offset : offset + size])
    assert [entry.name for entry in toc] == ["blob.meta", "blob.meta.header", "blob.digest", "image.boot"]


@pytest.mark.parametrize("kind", ["level 1", "level 6", "level 9", "stored", "members"])
def test_tables_equal_those_of_the_reference(kind: str, tmp_path: Path) -> None:
    oracle = Builder(str(require_tool("rafs-reference").path), "--log-level", "error")
    ours = create(STORED[kind], tmp_path)
    theirs = tmp_path / "theirs"
    oracle.succeed("create", *OPTIONS[:-2], "--blob", str(theirs), str(tmp_path / "layer"))
    data = theirs.read_bytes()
    for name in (sections.META, sections.CHUNK_DIGESTS):
        found, wanted = (
            run(read_entry(name, len(each)), lambda offset, size, each=each: each[offset : offset + size])  # type: ignore[misc]
            for each in (ours, data)
        )
        assert found == wanted
    row, their_row = open_blob(ours)[1], open_blob(data)[1]
    fields = [field for field in Blob.__slots__ if field not in ("ci_compressed_size", "ci_compressor")]
    assert [getattr(row, each) for each in fields] == [getattr(their_row, each) for each in fields]
    assert hashed(open_blob(ours)[0]) == hashed(open_blob(data)[0])


def hashed(bootstrap: Bootstrap) -> list[object]:
    """The tree with the places of its chunks."""
    return [
        (
            path,
            inode.mode,
            inode.size,
            [(c.index, c.flags, c.compressed_offset, c.crc32) for c in inode.chunks],
        )
        for path, inode in walk(bootstrap.root)
    ]


@pytest.mark.parametrize("kind", STORED)
def test_the_reference_reads_every_chunk(kind: str, tmp_path: Path) -> None:
    oracle = Builder(str(require_tool("rafs-reference").path), "--log-level", "error")
    stored = STORED[kind]
    packed = Packed(create(stored, tmp_path), b"", [])
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / hashlib.sha256(stored).hexdigest()).write_bytes(stored)
    (blobs / packed.blob_id).write_bytes(packed.blob)
    oracle.succeed("check", str(blobs / packed.blob_id), "--blob-dir", str(blobs))


def test_merged_bootstraps_equal_those_of_the_reference(tmp_path: Path) -> None:
    """Of a layer that is referred to, one that is packed, and one that is referred to and has no content."""
    oracle = Builder(str(require_tool("rafs-reference").path), "--log-level", "error")
    plain = OURS.create(
        tmp_path / "plain", layer(directory(""), file("p", b"packed")), *SHA256, *INLINE, *TOC
    )
    nothing = gzip.compress(layer(directory(""), directory("e")), mtime=0)
    blobs = [create(STORED["level 6"], tmp_path), plain.blob, create(nothing, tmp_path)]
    ids = [hashlib.sha256(each).hexdigest() for each in (STORED["level 6"], plain.blob, nothing)]
    sources = [tmp_path / f"{blob_id}.boot" for blob_id in ids]
    for source, blob in zip(sources, blobs, strict=True):
        source.write_bytes(clear_marks(bootstrap_of(blob)))
    digests = [hashlib.sha256(blob).hexdigest() for blob in blobs]
    lists = ["--blob-digests", ",".join(digests), "--blob-sizes", ",".join(str(len(blob)) for blob in blobs)]
    lists += ["--blob-toc-digests", ",".join(digests), "--blob-toc-sizes", "1,2,3"]
    ours, found = OURS.merge(tmp_path / "ours", sources, *lists)
    theirs, wanted = oracle.merge(tmp_path / "theirs", sources, *lists)
    assert found == wanted
    assert {*found} == {*ids[:2]}
    assert_same(ours, theirs)


def test_a_separate_bootstrap_names_the_tables(tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(STORED["level 6"])
    where = ["--blob", str(tmp_path / "blob"), "--bootstrap", str(tmp_path / "boot")]
    assert main(["create", "-l", "warn", "--type", "targz-ref", *where, str(tmp_path / "layer")]) == 0
    blob = (tmp_path / "blob").read_bytes()
    bootstrap = read_bootstrap((tmp_path / "boot").read_bytes())
    (row,) = bootstrap.blobs
    assert (row.meta_digest, row.meta_size) == (hashlib.sha256(blob).digest(), len(blob))
    assert contents(bootstrap, blob, STORED["level 6"]) == CONTENTS


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (TAR, "the layer is plain, and only a gzip layer can be referred to"),
        (zstandard.compress(TAR), "the layer is zstd, and only a gzip layer"),
        (
            gzip.compress(layer(gnu_sparse("hole", 9000, [(0, b"x")])), mtime=0),
            "'hole' at offset 0: a sparse file",
        ),
        (STORED["level 6"][:-9], "gzip data ends early"),
        (STORED["level 6"] + b"more", "goes on with something else"),
    ],
)
def test_what_cannot_be_referred_to_is_refused(
    stored: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "layer").write_bytes(stored)
    assert main(["create", *OPTIONS, "--blob", str(tmp_path / "blob"), str(tmp_path / "layer")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "blob").exists()


def test_a_damaged_copy_is_told_from_a_damaged_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = bytearray(STORED["level 6"])
    digest = hashlib.sha256(stored).hexdigest()
    stored[len(stored) // 2] ^= 0xFF
    (tmp_path / "layer").write_bytes(stored)
    options = (*OPTIONS, "--source-digest", f"sha256:{digest}")
    assert main(["create", *options, "--blob", str(tmp_path / "blob"), str(tmp_path / "layer")]) == 1
    assert f"not sha256:{digest}" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--blob-id", "x"], ["--prefetch-policy", "blob"]])
def test_options_that_contradict_the_type_are_refused(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--blob", str(tmp_path / "blob"), "--bootstrap", str(tmp_path / "boot")]
    assert main(["create", "--type", "targz-ref", *wrong, *where, "layer"]) == 2
    assert "conflicts with " + wrong[0] in capsys.readouterr().err


def test_a_layer_without_content_has_no_tables(tmp_path: Path) -> None:
    data = create(gzip.compress(layer(directory("d"))), tmp_path)
    toc = run(read_toc(len(data)), lambda offset, size: data[offset : offset + size])
    assert [entry.name for entry in toc] == ["image.boot"]
