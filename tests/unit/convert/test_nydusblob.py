"""The end of a nydus blob: kept while it goes by, checked before it is committed, taken apart."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.convert.nydusblob import BlobTail, check_end, extract
from nydus_service.errors import FormatError
from nydus_service.oci.descriptor import Descriptor
from nydus_service.oci.digest import Digest
from nydus_service.rafs.blob import pack_header, read_entry, read_toc, run
from nydus_service.rafs.reader import read_bootstrap
from tests.unit.convert.memory import Memory

SAMPLES = Path(__file__).parents[2] / "samples"
BLOBS = ["lower-zstd.blob", "lower-lz4.blob", "upper-zstd.blob"]
WITHOUT_TOC = "lower-none.blob"
CHUNK_TABLE_MAGIC = 0xB10BB10B


def tail_of(data: bytes, limit: int = 1 << 20, piece: int = 700) -> BlobTail:
    tail = BlobTail(limit)
    for start in range(0, len(data), piece):
        tail.add(data[start : start + piece])
    return tail


@given(st.binary(min_size=1, max_size=400), st.integers(1, 60), st.integers(1, 500), st.data())
def test_the_tail_has_the_last_bytes(data: bytes, piece: int, limit: int, draw: st.DataObject) -> None:
    tail = tail_of(data, limit, piece)
    assert tail.size == len(data)
    start = draw.draw(st.integers(max(0, len(data) - limit), len(data)))
    size = draw.draw(st.integers(0, len(data) - start))
    assert tail.read(start, size) == data[start : start + size]


def test_the_tail_says_what_it_has_not() -> None:
    tail = tail_of(bytes(1000), limit=100, piece=10)
    for offset, size in ((0, 10), (990, 20)):
        with pytest.raises(FormatError, match="not at the end"):
            tail.read(offset, size)


@pytest.mark.parametrize("name", BLOBS)
def test_blobs_of_the_reference_end_as_they_should(name: str) -> None:
    check_end(tail_of((SAMPLES / name).read_bytes(), limit=4096))


def test_a_blob_without_a_table_of_contents_is_no_result() -> None:
    with pytest.raises(FormatError, match="no table of contents"):
        check_end(tail_of((SAMPLES / WITHOUT_TOC).read_bytes()))


def cut(data: bytes) -> bytes:
    return data[:-1]


def without_toc(data: bytes) -> bytes:
    return data + b"x" + pack_header("image.boot", 1)


def toc_of_other_things(data: bytes) -> bytes:
    entry = struct.pack("<I4x16s32sQQQ48x", 1, b"blob.meta", bytes(32), 0, 1, 1)
    return data + entry + pack_header("rafs.blob.toc", len(entry))


def moved_bootstrap(data: bytes) -> bytes:
    entry = struct.pack("<I4x16s32sQQQ48x", 1, b"image.boot", bytes(32), 0, 1, 1)
    return data + entry + pack_header("rafs.blob.toc", len(entry))


def short_bootstrap(data: bytes) -> bytes:
    boot = b"xyz" + pack_header("image.boot", 3)
    entry = struct.pack("<I4x16s32sQQQ48x", 1, b"image.boot", bytes(32), len(data) + 1, 3, 3)
    return data + boot + entry + pack_header("rafs.blob.toc", len(entry))


def nothing(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage", [cut, without_toc, toc_of_other_things, moved_bootstrap, short_bootstrap, nothing]
)
def test_an_end_that_is_not_a_nydus_blob_s_is_refused(damage: Callable[[bytes], bytes]) -> None:
    data = damage((SAMPLES / "upper-zstd.blob").read_bytes())
    with pytest.raises(FormatError):
        check_end(tail_of(data))


@pytest.mark.parametrize("limit", [1, 1 << 20])
@pytest.mark.parametrize("name", BLOBS)
async def test_bootstrap_and_chunk_table_come_out(name: str, limit: int, tmp_path: Path) -> None:
    """From memory or from the store alike; the table is laid out as the runtime caches it."""
    data = (SAMPLES / name).read_bytes()
    memory = Memory({Digest.of(data): data})
    blob = Descriptor.of("application/x", Digest.of(data), len(data))
    async with memory.stores().content.open_reader(blob) as reader:
        metadata = await extract(reader, tail_of(data, limit), blob.digest.hex, tmp_path)
    assert metadata.bootstrap == tmp_path / blob.digest.hex
    bootstrap = read_bootstrap(metadata.bootstrap.read_bytes(), blob.digest.hex)
    (row,) = bootstrap.blobs
    assert metadata.chunk_table == tmp_path / f"{blob.digest.hex}.blob.meta"
    table = metadata.chunk_table.read_bytes()
    header = table[-4096:]
    assert len(table) % 4096 == 0
    magics = struct.unpack_from("<I", header, 0) + struct.unpack_from("<I", header, 4092)
    assert magics == (CHUNK_TABLE_MAGIC, CHUNK_TABLE_MAGIC)
    (count,) = struct.unpack_from("<I", header, 12)
    (plain_size,) = struct.unpack_from("<Q", header, 32)
    assert count == row.chunk_count

    def read(offset: int, size: int) -> bytes:
        return data[offset : offset + size]

    assert table[:plain_size] == run(read_entry("blob.meta", len(data)), read)
    assert not any(table[plain_size:-4096])


async def test_an_older_blob_gives_its_bootstrap_alone(tmp_path: Path) -> None:
    data = (SAMPLES / WITHOUT_TOC).read_bytes()
    memory = Memory({Digest.of(data): data})
    blob = Descriptor.of("application/x", Digest.of(data), len(data))
    async with memory.stores().content.open_reader(blob) as reader:
        metadata = await extract(reader, BlobTail(), blob.digest.hex, tmp_path)
    assert read_bootstrap(metadata.bootstrap.read_bytes(), blob.digest.hex).blobs
    assert metadata.chunk_table is None


async def test_a_damaged_bootstrap_is_found(tmp_path: Path) -> None:
    data = bytearray((SAMPLES / "upper-zstd.blob").read_bytes())
    toc = run(read_toc(len(data)), lambda offset, size: bytes(data[offset : offset + size]))
    (boot,) = (entry for entry in toc if entry.name == "image.boot")
    data[boot.compressed_offset + boot.compressed_size // 2] ^= 1
    digest = Digest.of(bytes(data))
    memory = Memory({digest: bytes(data)})
    blob = Descriptor.of("application/x", digest, len(data))
    check_end(tail_of(bytes(data)))
    async with memory.stores().content.open_reader(blob) as reader:
        with pytest.raises(FormatError, match=r"image\.boot"):
            await extract(reader, BlobTail(), digest.hex, tmp_path)
