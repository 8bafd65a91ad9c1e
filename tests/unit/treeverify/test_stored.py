"""Chunks read back from blobs: files and pipes, sound, damaged and cut off."""

import os
import threading
from pathlib import Path

import pytest

from nydus_service.errors import NotFoundError, UnsupportedError
from nydus_service.rafs.constants import CHUNK_COMPRESSED, CHUNK_ENCRYPTED
from nydus_service.rafs.reader import Bootstrap
from nydus_service.treeverify.report import Report
from nydus_service.treeverify.stored import check_stored
from tests.unit.treeverify.results import BLOB_ID, CHUNK, Image

CONTENTS = {
    "a": b"some text " * 1000,
    "b": os.urandom(3 * CHUNK + 5),
    "c": b"",
    "d": bytes(5 * CHUNK),
    **{f"small{n}": b"%d" % n for n in range(300)},
}


def checked(bootstrap: Bootstrap, path: Path | str) -> Report:
    report = Report("full")
    check_stored(bootstrap, {BLOB_ID: str(path)}, report)
    return report


@pytest.fixture(params=["zstd", "none"])
def image(request: pytest.FixtureRequest) -> Image:
    return Image(CONTENTS, request.param)


def test_a_sound_blob(image: Image, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(image.stored)
    report = checked(image.read(), tmp_path / "blob")
    assert report.differences == []
    assert report.read_bytes == sum(chunk.compressed_size for chunk in image.chunks)


def test_a_blob_from_a_pipe(image: Image) -> None:
    read_end, write_end = os.pipe()

    def write() -> None:
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(image.stored)

    writer = threading.Thread(target=write)
    writer.start()
    report = checked(image.read(), f"/proc/self/fd/{read_end}")
    os.close(read_end)
    writer.join()
    assert report.differences == []


def test_every_changed_byte_of_a_chunk_is_noticed(image: Image, tmp_path: Path) -> None:
    chunk = image.chunks[0]
    for at in (0, chunk.compressed_size // 2, chunk.compressed_size - 1):
        stored = bytearray(image.stored)
        stored[chunk.compressed_offset + at] ^= 0x10
        (tmp_path / "blob").write_bytes(stored)
        [found] = checked(image.read(), tmp_path / "blob").differences
        assert found.path == b"/a"
        assert found.field.endswith(f"of chunk 0 in blob {BLOB_ID}")


def test_damage_is_reported_with_the_file_that_has_it(image: Image, tmp_path: Path) -> None:
    bootstrap = image.read()
    damaged = next(chunk for chunk in image.chunks if chunk.uncompressed_size == 3)
    stored = bytearray(image.stored)
    stored[damaged.compressed_offset] ^= 1
    (tmp_path / "blob").write_bytes(stored)
    [found] = checked(bootstrap, tmp_path / "blob").differences
    assert found.path == b"/small100"
    assert found.field == f"digest of chunk {damaged.index} in blob {BLOB_ID}"
    assert found.wanted == damaged.digest.hex()


def test_a_wrong_crc_is_noticed(image: Image, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(image.stored)
    image.chunks[3].crc32 ^= 1
    [found] = checked(image.read(), tmp_path / "blob").differences
    assert found.field.startswith("CRC-32C of chunk 3 ")


def test_a_cut_blob_lacks_the_chunks_behind_the_cut(image: Image, tmp_path: Path) -> None:
    last = image.chunks[-1]
    (tmp_path / "blob").write_bytes(image.stored[: last.compressed_offset])
    [found] = checked(image.read(), tmp_path / "blob").differences
    assert (found.path, found.found) == (b"/small299", "0 bytes")
    (tmp_path / "blob").write_bytes(b"")
    assert checked(image.read(), tmp_path / "blob").total == len(image.chunks)


def test_chunks_that_share_bytes_are_read_from_a_file_and_not_from_a_pipe(tmp_path: Path) -> None:
    image = Image({"a": b"text" * 500, "b": b"text" * 500})
    image.chunks[1].compressed_offset = image.chunks[0].compressed_offset
    (tmp_path / "blob").write_bytes(image.stored)
    assert checked(image.read(), tmp_path / "blob").differences == []
    read_end, write_end = os.pipe()
    os.write(write_end, image.stored)
    os.close(write_end)
    assert checked(image.read(), f"/proc/self/fd/{read_end}").total == 1
    os.close(read_end)


def test_a_chunk_that_claims_to_be_larger_stored_than_plain_is_not_read(tmp_path: Path) -> None:
    image = Image({"a": b"text" * 500})
    image.chunks[0].compressed_size = 1 << 31
    image.blob.compressed_size = 1 << 32
    (tmp_path / "blob").write_bytes(image.stored)
    [found] = checked(image.read(), tmp_path / "blob").differences
    assert found.wanted == "at most 2000 bytes"


def test_stored_data_that_is_no_frame_is_noticed(tmp_path: Path) -> None:
    image = Image({"a": os.urandom(100)})
    image.chunks[0].flags |= CHUNK_COMPRESSED
    (tmp_path / "blob").write_bytes(image.stored)
    [found] = checked(image.read(), tmp_path / "blob").differences
    assert "zstd" in str(found.found)


def test_a_blob_that_is_not_given_or_not_there(image: Image, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"blob {BLOB_ID} is used by the image"):
        check_stored(image.read(), {}, Report("full"))
    with pytest.raises(NotFoundError, match=f"cannot read blob {BLOB_ID}"):
        checked(image.read(), tmp_path / "none")


def test_a_blob_that_no_file_uses_need_not_be_there() -> None:
    check_stored(Image({"a": b""}).read(), {}, Report("full"))


def test_blobs_that_need_more_than_themselves_are_refused(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"")
    image = Image({"a": b"1"})
    image.chunks[0].flags |= CHUNK_ENCRYPTED
    with pytest.raises(UnsupportedError, match=BLOB_ID):
        checked(image.read(), tmp_path / "blob")
