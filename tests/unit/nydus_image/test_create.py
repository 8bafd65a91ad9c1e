"""`create` as a function: what it stores, what it refuses, what it leaves behind."""

import gzip
import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_service.errors import FormatError, NotFoundError, SourceDiffersError
from nydus_service.nydus_image.create import CreateOptions, CreateResult, create
from nydus_service.nydus_image.pipeline import ChunkPipeline
from nydus_service.nydus_image.recording import TarSplitOptions
from nydus_service.nydus_image.source import SourceCheck
from nydus_service.options.build import BuildOptions
from nydus_service.rafs import blob as sections
from nydus_service.rafs.codecs import decompress
from nydus_service.rafs.reader import Bootstrap, read_bootstrap
from nydus_service.rafs.tree import Blob, walk
from tests.layers import directory, file, hardlink, layer, pax_sparse
from tests.options import grouped

CHUNK = 0x1000


def build(tmp_path: Path, data: bytes, **options: Any) -> tuple[bytes, Bootstrap]:
    """Make an inline blob of a layer; returns it and the bootstrap in it."""
    source, blob = tmp_path / "layer", tmp_path / "blob"
    source.write_bytes(data)
    create(
        CreateOptions(
            str(source),
            blob,
            inline_meta=True,
            blob_toc=True,
            **grouped(options, BuildOptions(chunk_size=CHUNK)),
        )
    )
    stored = blob.read_bytes()
    boot = sections.run(
        sections.read_entry(sections.BOOTSTRAP, len(stored)), lambda at, size: stored[at : at + size]
    )
    return stored, read_bootstrap(boot)


def content(blob: bytes, bootstrap: Bootstrap, path: str) -> bytes:
    inode = dict(walk(bootstrap.root))[path.encode()]
    parts = []
    for chunk in inode.chunks:
        stored = blob[chunk.compressed_offset : chunk.compressed_offset + chunk.compressed_size]
        compressor = chunk.blob.compressor if chunk.flags & 1 else "none"
        parts.append(decompress(compressor, stored, chunk.uncompressed_size))
    return b"".join(parts)


@pytest.mark.parametrize("compressor", ["none", "lz4_block", "zstd"])
@pytest.mark.parametrize("digester", ["blake3", "sha256"])
def test_content_comes_back(tmp_path: Path, compressor: str, digester: str) -> None:
    texts = {f"/d/{size}": b"line\n" * size for size in (0, 1, 819, 820, 5000)}
    tar = layer(directory("d"), *(file(name[1:], text) for name, text in texts.items()))
    blob, bootstrap = build(tmp_path, tar, compressor=compressor, digester=digester)
    assert {name: content(blob, bootstrap, name) for name in texts} == texts
    assert (bootstrap.compressor, bootstrap.digester) == (compressor, digester)


def test_the_same_layer_gives_the_same_blob_however_it_is_compressed(tmp_path: Path) -> None:
    tar = layer(directory("d"), *(file(f"d/{n}", bytes([n % 7]) * n * 97) for n in range(300)))
    packed = [
        tar,
        gzip.compress(tar, mtime=0),
        zstandard.compress(tar),
        gzip.compress(tar[:5000]) + gzip.compress(tar[5000:]),
    ]
    assert len({build(tmp_path, data)[0] for data in packed}) == 1


@given(st.lists(st.binary(max_size=3 * CHUNK), max_size=12), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_threads_have_no_say_in_the_bytes(pieces: list[bytes], threads: int) -> None:
    def run(threads: int) -> tuple[bytes, list[tuple[int, int]]]:
        blob = Blob("", CHUNK, "zstd", "blake3", 1)
        stored: list[bytes] = []
        pipeline = ChunkPipeline(blob, lambda data: stored.append(bytes(data)), threads=threads)
        for piece in pieces:
            for at in range(0, len(piece), CHUNK):
                pipeline.add(piece[at : at + CHUNK], at)
        pipeline.finish()
        return b"".join(stored), [(c.compressed_offset, c.compressed_size) for c in pipeline.chunks]

    assert run(threads) == run(1)


def test_equal_content_is_stored_once(tmp_path: Path) -> None:
    text = bytes(range(256)) * 16
    _, bootstrap = build(tmp_path, layer(file("a", text), file("b", text + b"x"), hardlink("c", "a")))
    chunks = {path: [c.index for c in inode.chunks] for path, inode in walk(bootstrap.root)}
    assert chunks == {b"/": [], b"/a": [0], b"/b": [0, 1], b"/c": [0]}


def test_a_sparse_file_of_128_gib_costs_one_chunk_of_zeros(tmp_path: Path) -> None:
    source, blob = tmp_path / "layer", tmp_path / "blob"
    source.write_bytes(layer(pax_sparse("big", 1 << 37, [(1 << 36, b"data")])))
    result = create(
        CreateOptions(
            str(source), blob, inline_meta=True, blob_toc=True, build=BuildOptions(chunk_size=0x100_0000)
        )
    )
    assert result.counters["chunks"] == 2


def test_a_layer_without_content_has_no_blob_row(tmp_path: Path) -> None:
    blob, bootstrap = build(tmp_path, layer(directory("d"), file("empty")))
    assert bootstrap.blobs == []
    toc = sections.run(sections.read_toc(len(blob)), lambda at, size: blob[at : at + size])
    assert [entry.name for entry in toc] == ["image.boot"]


def test_the_bootstrap_may_be_separate_and_named_by_digest(tmp_path: Path) -> None:
    source, blobs = tmp_path / "layer", tmp_path / "blobs"
    source.write_bytes(layer(file("a", b"content")))
    blobs.mkdir()
    result = create(CreateOptions(str(source), blob_dir=blobs, blob_toc=True))
    (blob_id,) = result.blob_ids
    assert hashlib.sha256((blobs / blob_id).read_bytes()).hexdigest() == blob_id
    assert result.bootstrap is not None
    assert read_bootstrap(result.bootstrap.read_bytes()).blobs[0].blob_id == blob_id
    assert sorted(path.name for path in blobs.iterdir()) == sorted([blob_id, result.bootstrap.name])


def failing(tmp_path: Path, data: bytes, **options: Any) -> CreateResult:
    source = tmp_path / "layer"
    source.write_bytes(data)
    return create(
        CreateOptions(str(source), tmp_path / "blob", inline_meta=True, blob_toc=True, **grouped(options))
    )


TAR = layer(*(file(f"f{n}", bytes([n % 251]) * 3000) for n in range(500)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TAR[:-20_000], "."),
        (gzip.compress(TAR, mtime=0)[:-1], "."),
        (gzip.compress(TAR, mtime=0)[:-900], "."),
        (zstandard.compress(TAR)[:-1], "."),
        (b"no tar at all" * 100, "."),
    ],
)
def test_a_damaged_layer_is_refused_and_leaves_nothing(tmp_path: Path, data: bytes, message: str) -> None:
    # Of a size that is known, and so small that no process is forked: this one has other threads.
    check = SourceCheck(size=len(data))
    with pytest.raises(FormatError, match=message):
        failing(
            tmp_path,
            data,
            check=check,
            tar_split=TarSplitOptions(str(tmp_path / "tar_split"), CHUNK, "blake3"),
        )
    assert not (tmp_path / "blob").exists()
    assert [
        thread.name for thread in threading.enumerate() if thread.name in ("read", "compress", "store")
    ] == []


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_flipped_byte_of_a_gzip_layer_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    packed = bytearray(gzip.compress(TAR, mtime=0))
    at = data.draw(st.integers(10, len(packed) - 1))
    packed[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FormatError):
        failing(tmp_path_factory.mktemp("flip"), bytes(packed))


def test_a_layer_that_is_not_the_one_described_is_refused(tmp_path: Path) -> None:
    digest = "sha256:" + hashlib.sha256(TAR).hexdigest()
    failing(tmp_path, TAR, check=SourceCheck(digest, len(TAR)))
    with pytest.raises(SourceDiffersError, match="more than the 5 bytes of its descriptor"):
        failing(tmp_path, TAR, check=SourceCheck(digest, 5))
    other = "sha256:" + "0" * 64
    with pytest.raises(SourceDiffersError, match=f"{digest}, not {other}"):
        failing(tmp_path, TAR, check=SourceCheck(other))
    cut = gzip.compress(TAR)[:-100]
    with pytest.raises(SourceDiffersError, match="reading it as gzip fails, too"):
        failing(tmp_path, cut, check=SourceCheck(other))


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no-such-layer"):
        create(CreateOptions(str(tmp_path / "no-such-layer"), tmp_path / "blob", inline_meta=True))
    assert list(tmp_path.iterdir()) == []


def test_the_level_is_of_chunks_only(tmp_path: Path) -> None:
    """Tables and bootstrap are compressed as ever, so that a layer without content stays the same."""
    text = b"".join(b"line %d of a text that compresses well\n" % (number % 977) for number in range(20_000))
    sizes = []
    for level in (1, 19):
        options = {"chunk_size": 0x100000, "compression_level": level}
        blob, bootstrap = build(tmp_path, layer(file("f", text)), **options)
        ((_, _), (_, inode)) = walk(bootstrap.root)
        (chunk,) = inode.chunks
        stored = blob[chunk.compressed_offset :][: chunk.compressed_size]
        assert decompress("zstd", stored, len(text)) == text
        sizes.append(chunk.compressed_size)
    assert sizes[1] < sizes[0]
    empty = [build(tmp_path, layer(directory("d")), compression_level=level)[0] for level in (1, 19)]
    assert empty[0] == empty[1]
