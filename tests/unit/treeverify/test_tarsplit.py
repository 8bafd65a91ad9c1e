"""The reader of tar-splits: what a recorder wrote, cut off and damaged in every way."""

import io
from struct import pack

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.errors import FormatError
from nydus_service.tarsplit.recorder import CHUNKS_MAX, END, HEAD, MAGIC, RECORD
from nydus_service.treeverify.tarsplit import TarSplitReader
from tests.layers import BLOCK, directory, file, layer, symlink
from tests.unit.treeverify.trees import CHUNK, tar_split_of

TAR = layer(directory("d"), *(file(f"d/{n}", b"%d" % n * 3000) for n in range(300)), symlink("s", "d"))
TAR_SPLIT = tar_split_of(TAR)
WINDOW_DESCRIPTOR = 5
"""Offset of a byte that changes how much memory decompression may take, and nothing of the content."""
CHECKSUM = 4
"""Bytes at the end of a frame: without them all is there, if not proven."""


def read(tar_split: bytes) -> list[tuple[bytes, bytes]]:
    return list(TarSplitReader(io.BytesIO(tar_split)))


def framed(*parts: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(b"".join(parts))


def head(magic: bytes = MAGIC, chunk_size: int = CHUNK, digester: int = 0) -> bytes:
    return HEAD.pack(magic, chunk_size, digester)


END_OF_NOTHING = RECORD.pack(0, 0) + END.pack(0, 0, 1024, 0)


def test_what_was_written_is_read() -> None:
    tar_split = TarSplitReader(io.BytesIO(tar_split_of(TAR, 8192, "sha256")))
    assert (tar_split.chunk_size, tar_split.digester) == (8192, "sha256")
    assert len(list(tar_split)) == tar_split.entries == 302
    assert tar_split.tar_bytes == len(TAR)
    assert tar_split.content_bytes == sum(len(b"%d" % n) * 3000 for n in range(300))


def test_a_record_may_be_larger_than_what_is_read_at_once() -> None:
    content = bytes(range(256)) * 200
    tar_split = tar_split_of(layer(*(file("n" * 2000 + str(n), content) for n in range(2))), 1)
    assert [len(digests) for _, digests in read(tar_split)] == [len(content) * 32] * 2


@given(st.integers(0, len(TAR_SPLIT) - 1 - CHECKSUM))
def test_cut_notes_are_refused(size: int) -> None:
    with pytest.raises(FormatError, match="cut off"):
        read(TAR_SPLIT[:size])


@given(st.integers(0, len(TAR_SPLIT) - 1).filter(lambda at: at != WINDOW_DESCRIPTOR), st.integers(1, 255))
def test_changed_tar_splits_are_refused(at: int, change: int) -> None:
    tar_split = bytearray(TAR_SPLIT)
    tar_split[at] ^= change
    with pytest.raises(FormatError):
        read(bytes(tar_split))


@pytest.mark.parametrize(
    ("tar_split", "problem"),
    [
        (b"", "cut off"),
        (b"something else entirely", "damaged"),
        (framed(head()), "cut off"),
        (framed(head(b"NOTNOTES"), END_OF_NOTHING), "no tar-split of a layer"),
        (framed(head(chunk_size=0), END_OF_NOTHING), "no tar-split of a layer"),
        (framed(head(digester=2), END_OF_NOTHING), "no tar-split of a layer"),
        (framed(head(), END_OF_NOTHING, b"more"), "goes on behind its end"),
        (framed(head(), pack("<II", 1 << 31, 0), bytes(BLOCK)), "2147483648 header blocks"),
        (framed(head(), pack("<II", 1, CHUNKS_MAX + 1), bytes(BLOCK)), "16777216 chunks"),
        (framed(head(), pack("<II", 1, 5), bytes(BLOCK)), "cut off"),
    ],
)
def test_hostile_tar_splits_are_refused(tar_split: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        read(tar_split)
