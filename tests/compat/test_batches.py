"""Small files that are stored in batches, against the reference builder's bytes, and read back by both."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from nydus_service.errors import DiffersError
from nydus_service.rafs.reader import Bootstrap, read_bootstrap
from nydus_service.treeverify.report import Report
from nydus_service.treeverify.stored import check_stored
from tests.compat.builders import (
    INLINE,
    OURS,
    TOC,
    Builder,
    FailedError,
    Packed,
    assert_same,
    clear_marks,
    framed,
    save_layer,
    sections,
)
from tests.compat.test_chunk_dict import SMALL, both
from tests.layers import directory, file, layer

PLAIN = ("--compressor=none", SMALL, "--batch-size=0x1000")
HALF = 0x800
EDGES = layer(
    directory("d"),
    file("d/a", b"a" * 100),
    file("d/b", b"b" * (HALF - 1)),
    file("d/half", b"c" * HALF),
    file("d/same", b"a" * 100),
    file("d/large", bytes(range(256)) * 40),
    file("d/tail", b"t" * 4097),
    file("d/like a tail", b"t"),
    file("d/empty", b""),
    file("d/5", b"5" * 5),
    file("d/6", b"6" * (HALF - 1)),
    file("d/full", b"7" * (0x1000 - HALF + 1 - 5)),
    file("d/last", b"8" * (HALF - 1)),
)
LARGE = layer(file("x", b"x" * 9000))
ONE = layer(file("one", b"1"))


def random_layer(seed: int, least: int = 0) -> bytes:
    """Files of at least so many bytes, with sizes around the limits, many of them equal."""
    source = random.Random(seed)
    sizes = (0, 1, 5, 100, HALF - 1, HALF, HALF + 1, 4095, 4096, 4097)
    files = []
    for number in range(60):
        size = max(least, source.choice((*sizes, source.randrange(20_000))))
        content = bytes([source.randrange(8)]) * size if number % 2 else source.randbytes(size)
        files.append(file(f"f{number:02}", content))
    return layer(*files)


LAYERS = {"edges": EDGES, "large files": LARGE, "one file": ONE, "random": random_layer(1)}


@pytest.mark.parametrize("name", LAYERS)
def test_separate_bootstrap(oracle: Builder, tmp_path: Path, name: str) -> None:
    ours, theirs = (
        builder.create(tmp_path / place, LAYERS[name], *PLAIN)
        for builder, place in ((OURS, "ours"), (oracle, "theirs"))
    )
    assert ours.ids == theirs.ids
    assert_same(ours.blob, theirs.blob)
    assert_same(clear_marks(ours.bootstrap), theirs.bootstrap)


@pytest.mark.parametrize("chunk_size", ["0x1000", "0x4000"])
@pytest.mark.parametrize("name", LAYERS)
def test_inline_bootstrap(oracle: Builder, tmp_path: Path, name: str, chunk_size: str) -> None:
    options = ("--compressor=none", f"--chunk-size={chunk_size}", "--batch-size=0x1000", *INLINE, *TOC)
    ours, theirs = (
        builder.create(tmp_path / place, LAYERS[name], *options)
        for builder, place in ((OURS, "ours"), (oracle, "theirs"))
    )
    assert framed(ours.blob) == framed(theirs.blob)


@pytest.mark.parametrize("compressor", ["none", "lz4_block", "zstd"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_chunk_is_read_back(oracle: Builder, tmp_path: Path, name: str, compressor: str) -> None:
    options = (f"--compressor={compressor}", SMALL, "--batch-size=0x1000", *INLINE, *TOC)
    packed = OURS.create(tmp_path, LAYERS[name], *options)
    blobs = save_layer(packed, tmp_path).parent.parent / "blobs"
    oracle.succeed("check", str(blobs / packed.blob_id), "--blob-dir", str(blobs))
    report = read_back(packed, tmp_path)
    assert report.differences == []
    assert report.read_bytes == len(sections(packed.blob)[0].data)


def opened(packed: Packed) -> Bootstrap:
    return read_bootstrap(packed.layer_bootstrap(), packed.blob_id)


def read_back(packed: Packed, work: Path) -> Report:
    path = work / "blob to read"
    path.write_bytes(packed.blob)
    report = Report("read")
    check_stored(opened(packed), {packed.blob_id: str(path)}, report)
    return report


def test_text_is_smaller_in_batches(tmp_path: Path) -> None:
    """The compressor finds what the files of a batch have in common."""
    tar = layer(*(file(f"f{number:03}", b"the same words, number %03d" % number) for number in range(500)))
    alone, together = (
        OURS.create(tmp_path, tar, "--batch-size", size, *INLINE, *TOC) for size in ("0", "0x100000")
    )
    assert len(sections(together.blob)[0].data) < len(sections(alone.blob)[0].data) // 5


def test_merge(oracle: Builder, tmp_path: Path) -> None:
    packed = [
        oracle.create(tmp_path / name, tar, *options, *INLINE, *TOC)
        for name, tar, options in (("1", EDGES, PLAIN), ("2", ONE, PLAIN), ("3", LARGE, PLAIN[:2]))
    ]
    sources = [save_layer(each, tmp_path) for each in packed]
    found, ids = OURS.merge(tmp_path / "ours", sources)
    wanted, wanted_ids = oracle.merge(tmp_path / "theirs", sources)
    assert ids == wanted_ids
    assert_same(found, wanted)


def test_a_dictionary_with_batches(oracle: Builder, tmp_path: Path) -> None:
    """Chunks in batches of a dictionary are found, too; the image's own files go to batches of its own."""
    source = save_layer(oracle.create(tmp_path / "1", EDGES, *PLAIN), tmp_path)
    dict_path = tmp_path / "dict"
    dict_path.write_bytes(oracle.merge(tmp_path / "merged", [source])[0])
    user = layer(file("copy", b"a" * 100), file("new", b"new" * 9), file("more", b"more"))
    found, wanted = both(oracle, tmp_path, user, dict_path, *PLAIN)
    assert found.ids == wanted.ids
    assert_same(found.blob, wanted.blob)
    assert_same(clear_marks(found.bootstrap), wanted.bootstrap)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch-size=0x2000", SMALL), "batch size 0x2000 exceeds the chunk size 0x1000"),
        (("--batch-size=0x1800",), "batch size 0x1800 is not 0 or a power of two"),
        (("--batch-size=0x800",), "batch size 0x800 is not 0 or a power of two"),
    ],
)
def test_sizes_that_are_refused(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(FailedError, match=message):
        OURS.create(tmp_path, ONE, *options)


def damaged_tables(packed: Packed) -> Iterator[tuple[str, bytes]]:
    """A blob with one field of its chunk-info table wrong each time, and a word of the reason."""
    blob = packed.blob
    table = sections(blob)[1].data
    at = len(sections(blob)[0].data) + 512
    count = struct.unpack_from("<I", table, len(table) - 4096 + 12)[0]
    contexts = 24 * count

    def wrong(reason: str, offset: int, form: str, value: int) -> tuple[str, bytes]:
        changed = bytearray(blob)
        struct.pack_into(form, changed, at + offset, value)
        return reason, bytes(changed)

    yield wrong("is in batch 77 of", 20, "<I", 77)
    yield wrong("lies outside of its batch 0", 16, "<I", 0xFFF)
    yield wrong("has 2147 stored bytes that become 0", contexts + 4, "<I", 0)
    yield wrong("stored bytes that become", contexts, "<I", 1 << 31)
    yield wrong("batch 0 is at 0 and 1", 24 + 8, "<Q", 1)
    yield wrong("is not the one of the bootstrap", 4, "<I", 0x05000000 | 50)
    yield wrong("batches for", len(table) - 4096 + 56, "<I", 1 << 20)
    yield wrong("batches do not fit", len(table) - 4096 + 56, "<I", 1)


def test_a_damaged_table_is_noticed(tmp_path: Path) -> None:
    packed = OURS.create(tmp_path, EDGES, *PLAIN, *INLINE, *TOC)
    for reason, blob in damaged_tables(packed):
        path = tmp_path / "damaged"
        path.write_bytes(blob)
        bootstrap = opened(packed)
        with pytest.raises(DiffersError, match=reason):
            check_stored(bootstrap, {packed.blob_id: str(path)}, Report("read"))


def test_damage_in_a_batch_is_reported_for_its_files(tmp_path: Path) -> None:
    packed = OURS.create(tmp_path, EDGES, "--compressor=zstd", *PLAIN[1:], *INLINE, *TOC)
    blob = bytearray(packed.blob)
    blob[6] ^= 0xFF
    path = tmp_path / "damaged"
    path.write_bytes(blob)
    report = Report("read")
    check_stored(opened(packed), {packed.blob_id: str(path)}, report)
    assert {each.path for each in report.differences} == {b"/d/a", b"/d/b"}
