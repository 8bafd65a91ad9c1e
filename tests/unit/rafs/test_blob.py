"""The blob's framing, its TOC and its chunk-info table."""

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_service.errors import FormatError
from nydus_service.rafs import blob as sections
from nydus_service.rafs.batch import BATCH_ENTRY_SIZE, Batch, BatchPlace, pack_batches
from nydus_service.rafs.chunkinfo import (
    ENTRY_V2_SIZE,
    ChunkInfoHeader,
    pack_v1,
    pack_v2,
    unpack_batched,
    unpack_table,
)
from nydus_service.rafs.codecs import WRITABLE, decompress, open_compressor
from nydus_service.rafs.constants import BLOB_ALIGNED, BLOB_CHUNK_INFO_V2
from nydus_service.rafs.toc import TocEntry, unpack_toc
from nydus_service.rafs.tree import Chunk
from tests.unit.rafs.trees import add_chunk, make_blob


def framed(**parts: bytes) -> bytes:
    return b"".join(data + sections.pack_header(name, len(data)) for name, data in parts.items())


def reader(blob: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: blob[offset : offset + size]


def with_toc(name: str, plain: bytes, compressor: str = "none", digest: bytes | None = None) -> bytes:
    stored = bytes(open_compressor(compressor)([plain])[0])
    kind = compressor if len(stored) < len(plain) else "none"
    digest = hashlib.sha256(plain).digest() if digest is None else digest
    toc = TocEntry(name, kind, digest, 0, len(stored), len(plain)).pack()
    return (
        stored + sections.pack_header(name, len(stored)) + toc + sections.pack_header(sections.TOC, len(toc))
    )


def test_header_bytes_are_the_native_ones() -> None:
    header = sections.pack_header("image.boot", 3793)
    assert header[124:165] == b"00000007321\0" + b"00000000000\0" + b"0005661\0" + b"0" + bytes(8)
    assert header[257:265] == b"ustar  \0"
    assert sections.unpack_header(header, 0) == ("image.boot", 3793)


def test_a_size_beyond_octal_is_base_256() -> None:
    size = 1 << 40
    assert sections.unpack_header(sections.pack_header("image.blob", size), 0).size == size


def test_sections_are_found_from_the_tail() -> None:
    blob = framed(**{"image.blob": b"data", "blob.meta": b"", "image.boot": b"boot"})
    assert sections.run(sections.locate("image.blob", len(blob)), reader(blob)) == (0, 4)
    assert sections.run(sections.read_entry("image.boot", len(blob)), reader(blob)) == b"boot"
    assert sections.run(sections.read_entry("blob.meta", len(blob)), reader(blob)) == b""
    with pytest.raises(FormatError, match="no section 'other'"):
        sections.run(sections.locate("other", len(blob)), reader(blob))


@pytest.mark.parametrize("compressor", WRITABLE)
def test_an_entry_is_read_by_the_toc(compressor: str) -> None:
    blob = with_toc("image.boot", b"a" * 5000, compressor)
    assert sections.run(sections.read_entry("image.boot", len(blob)), reader(blob)) == b"a" * 5000


def test_an_entry_of_another_digest_is_refused() -> None:
    blob = with_toc("image.boot", b"a" * 5000, "zstd", digest=b"\1" * 32)
    with pytest.raises(FormatError, match="digest"):
        sections.run(sections.read_entry("image.boot", len(blob)), reader(blob))


def test_an_entry_may_not_grow_beyond_what_is_allowed() -> None:
    blob = with_toc("image.boot", b"a" * 5000, "zstd")
    with pytest.raises(FormatError, match="5000 bytes, more than 4999"):
        sections.run(sections.read_entry("image.boot", len(blob), max_size=4999), reader(blob))


@given(st.integers(0, 2000), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_changed_blob_gives_the_entry_or_an_error(at: int, value: int) -> None:
    blob = bytearray(with_toc("image.boot", bytes(range(256)) * 2, "zstd"))
    if at < len(blob):
        blob[at] = value
    try:
        found = sections.run(sections.read_entry("image.boot", len(blob)), reader(bytes(blob)))
    except FormatError:
        return
    assert len(found) == 512


def test_a_toc_name_of_16_bytes_has_no_terminator_and_longer_ones_do_not_fit() -> None:
    entry = TocEntry("blob.meta.header", "none", bytes(32), 1, 2, 3)
    assert unpack_toc(entry.pack()) == [entry]
    with pytest.raises(FormatError, match="17 bytes"):
        TocEntry("x" * 17, "none", bytes(32), 0, 0, 0).pack()


@pytest.mark.parametrize("data", [b"", b"x" * 127, bytes(128), b"\7" + bytes(127)])
def test_a_damaged_toc_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_toc(data)


def chunks_of(*sizes: tuple[int, int]) -> tuple[list[Chunk], int]:
    """Chunks of (stored, plain) sizes, one behind the other."""
    blob = make_blob()
    chunks, offset = [], 0
    for stored, plain in sizes:
        chunk = add_chunk(blob, plain)
        chunk.compressed_size, chunk.compressed_offset = stored, offset
        chunk.flags = 0x10 | (stored != plain)
        offset += stored
        chunks.append(chunk)
    return chunks, offset


@pytest.mark.parametrize("version", [1, 2])
def test_chunk_info_is_read_as_it_was_written(version: int) -> None:
    chunks, size = chunks_of((10, 20), (1, 1), (1 << 20, 1 << 20), ((1 << 24) - 1, 1 << 24))
    table = pack_v1(chunks) if version == 1 else pack_v2(chunks)
    features = BLOB_ALIGNED | (BLOB_CHUNK_INFO_V2 if version == 2 else 0)
    header = ChunkInfoHeader(features, "none", len(chunks), size, len(table), len(table))
    assert ChunkInfoHeader.unpack(header.pack()) == header
    found = unpack_table(table, header, chunks[0].blob)
    places = [
        (c.compressed_offset, c.compressed_size, c.uncompressed_offset, c.uncompressed_size) for c in chunks
    ]
    assert [
        (c.compressed_offset, c.compressed_size, c.uncompressed_offset, c.uncompressed_size) for c in found
    ] == places
    if version == 2:
        # A CRC of 0 goes without its flag, or readers would refuse the chunk.
        assert [c.crc32 for c in found] == [c.crc32 for c in chunks]
        assert not found[0].flags & 0x10


def test_places_in_batches_are_read_as_they_were_written() -> None:
    chunks, size = chunks_of((0, 20), (30, 40), (0, 7))
    chunks[0].flags = chunks[2].flags = 0x10  # such chunks have no size and flag of their own
    batches = [Batch(0, 27)]
    batches[0].compressed_offset, batches[0].compressed_size = 30, 25
    batched = {0: BatchPlace(batches[0], 0), 2: BatchPlace(batches[0], 20)}
    rows = pack_v2(chunks, batched=batched)
    table = rows + pack_batches(batches)
    sizes = (len(table), len(table), len(rows), len(table) - len(rows))
    header = ChunkInfoHeader(0x85, "none", 3, size + 25, *sizes, 1)
    assert ChunkInfoHeader.unpack(header.pack()) == header
    found = unpack_table(table, header, chunks[0].blob)
    assert [(c.compressed_offset, c.compressed_size) for c in found] == [(30, 0), (0, 30), (30, 0)]
    places = unpack_batched(table, header, found)
    assert {index: (place.batch.index, place.offset) for index, place in places.items()} == {
        0: (0, 0),
        2: (0, 20),
    }
    batch = places[0].batch
    assert (batch.compressed_offset, batch.compressed_size, batch.uncompressed_size) == (30, 25, 27)


@pytest.mark.parametrize("contexts", [4, 65])
def test_a_table_has_not_more_batches_than_chunks(contexts: int) -> None:
    size = 3 * ENTRY_V2_SIZE + contexts * BATCH_ENTRY_SIZE
    header = ChunkInfoHeader(0x85, "none", 3, 100, size, size, 72, contexts * BATCH_ENTRY_SIZE, contexts)
    with pytest.raises(FormatError, match=r"chunk-info table of \d+ bytes for 3 chunks"):
        ChunkInfoHeader.unpack(header.pack())


@given(st.integers(0, 4095), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_changed_chunk_info_header_gives_itself_or_an_error(at: int, value: int) -> None:
    chunks, size = chunks_of((10, 20), (5, 5))
    table = pack_v1(chunks)
    raw = bytearray(ChunkInfoHeader(1, "none", 2, size, len(table), len(table)).pack())
    raw[at] = value
    try:
        unpack_table(table, ChunkInfoHeader.unpack(bytes(raw)), chunks[0].blob)
    except FormatError:
        pass


@given(st.binary(max_size=5000), st.sampled_from(WRITABLE))
@settings(max_examples=100, deadline=None)
def test_codecs_give_back_what_they_took(data: bytes, compressor: str) -> None:
    stored = open_compressor(compressor)([data])[0]
    if stored is not data:
        assert len(stored) < len(data)
        assert decompress(compressor, stored, len(data)) == data
        with pytest.raises(FormatError):
            decompress(compressor, stored, len(data) - 1)


@given(st.binary(max_size=200), st.sampled_from(["lz4_block", "zstd", "gzip"]), st.integers(0, 1 << 20))
@settings(max_examples=200, deadline=None)
def test_codecs_refuse_rubbish(data: bytes, compressor: str, size: int) -> None:
    try:
        assert len(decompress(compressor, data, size)) == size
    except FormatError:
        pass
