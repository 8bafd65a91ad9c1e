"""Streams are told apart, decompressed in bounded pieces, and refused where they are not sound."""

import bz2
import gzip
import io
import lzma
import random
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.oci.compression import (
    PIECE_SIZE,
    WINDOW_MAX,
    Compression,
    gzip_deterministic,
    name_other_format,
    open_decompressor,
    sniff,
)

WORDS = random.Random(1).randbytes(1000)
TEXT = b"".join(WORDS[n % 900 : n % 900 + 40] + b"%d" % n for n in range(3000))
"""Some 130 KB that compress, but not to nothing."""
SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\0\0\0hello"

Compress = Callable[[bytes], bytes]


def zstd(data: bytes, level: int = 3, *, checksum: bool = True, size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level, write_checksum=checksum, write_content_size=size).compress(data)


COMPRESS: dict[Compression, Compress] = {
    "gzip": lambda data: gzip.compress(data, 6, mtime=0),
    "zstd": zstd,
    "none": bytes,
}
compressed = pytest.mark.parametrize("kind", ["gzip", "zstd"])


def decompress(kind: Compression, data: bytes, piece: int = 1 << 18) -> bytes:
    """Feed it in pieces; see that nothing that comes out is too large, or empty."""
    decompressor = open_decompressor(kind)
    out = []
    for at in range(0, len(data), piece):
        for part in decompressor.feed(data[at : at + piece]):
            assert 0 < len(part) <= PIECE_SIZE
            out.append(part)
    decompressor.finish()
    return b"".join(out)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x1f\x8b\x09\0", "none"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x50\x2a\x4d\x18", "zstd"),
        (b"\x5f\x2a\x4d\x18more", "zstd"),
        (b"\x60\x2a\x4d\x18", "none"),
        (b"\x50\x2a\x4d", "none"),
        (b"BZh9", "none"),
        (b"", "none"),
        (bytes(512), "none"),
    ],
)
def test_sniff(head: bytes, kind: str) -> None:
    assert sniff(head) == kind


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("piece", [1, 13, 4096, 1 << 18])
@pytest.mark.parametrize("data", [b"", b"x", TEXT], ids=["empty", "byte", "text"])
def test_round_trip(kind: Compression, piece: int, data: bytes) -> None:
    stored = COMPRESS[kind](data)
    assert decompress(kind, stored, piece) == data


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.binary(max_size=3000), st.integers(1, 300)), max_size=5),
    st.sampled_from(["gzip", "zstd"]),
    st.integers(1, 4000),
)
def test_members_and_frames_follow_one_another(
    drawn: list[tuple[bytes, int]], kind: Compression, piece: int
) -> None:
    parts = [data * times for data, times in drawn] or [b""]
    stored = b"".join(COMPRESS[kind](part) for part in parts)
    assert decompress(kind, stored, piece) == b"".join(parts)


@compressed
def test_many_tiny_members_come_out_in_large_pieces(kind: Compression) -> None:
    stored = b"".join(COMPRESS[kind](b"%d" % n) for n in range(5000))
    decompressor = open_decompressor(kind)
    pieces = list(decompressor.feed(stored))
    assert b"".join(pieces) == b"".join(b"%d" % n for n in range(5000))
    assert len(pieces) == 1  # eStargz and zstd:chunked layers are like this


@compressed
@pytest.mark.parametrize("piece", [100, 1 << 18])
def test_a_bomb_takes_little_memory(kind: Compression, piece: int) -> None:
    stored = COMPRESS[kind](bytes(64 << 20))
    decompressor = open_decompressor(kind)
    total = 0
    tracemalloc.start()
    for at in range(0, len(stored), piece):
        for part in decompressor.feed(stored[at : at + piece]):
            total += len(part)
            del part
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    decompressor.finish()
    assert total == 64 << 20
    assert peak < 8 << 20


@compressed
def test_every_cut_is_noticed(kind: Compression) -> None:
    stored = COMPRESS[kind](TEXT[:5000])
    for size in range(len(stored)):
        with pytest.raises(FormatError, match=f"{kind} data ends early, after {size} bytes"):
            decompress(kind, stored[:size])
    if kind == "zstd":
        with pytest.raises(FormatError, match="ends early"):
            decompress(kind, stored + stored[:-1])
        for size in range(1, len(SKIPPABLE)):
            with pytest.raises(FormatError, match="ends early"):
                decompress(kind, stored + SKIPPABLE[:size], 7)
    else:
        for size in range(1, len(stored), 7):
            with pytest.raises(FormatError, match="ends early"):
                decompress(kind, stored + stored[:size], 50)


@compressed
def test_every_flipped_bit_of_it_is_noticed_or_harmless(kind: Compression) -> None:
    data = TEXT[:2000]
    stored = COMPRESS[kind](data)
    harmless = 0
    for at in range(len(stored)):
        bad = bytearray(stored)
        bad[at] ^= 1 << at % 8
        try:
            assert decompress(kind, bytes(bad), 300) == data
            harmless += 1
        except (FormatError, UnsupportedError) as exc:
            assert "offset" in str(exc) or "ends early" in str(exc)  # noqa: PT017 - both outcomes are right
    # Of gzip's header: time, system, hints. Of zstd's: what only says how large the window should be.
    assert harmless <= 8


@compressed
def test_an_error_has_the_offset(kind: Compression) -> None:
    stored = COMPRESS[kind](TEXT)
    with pytest.raises(
        FormatError, match=f"{kind} data goes on with something else at offset {len(stored)}$"
    ):
        decompress(kind, stored + b"garbage" * 3, 1000)
    with pytest.raises(FormatError, match=f"{kind} data goes on with something else at offset 0"):
        decompress(kind, b"garbage " * 100)


@compressed
def test_nothing_is_not_a_stream(kind: Compression) -> None:
    with pytest.raises(FormatError, match="ends early, after 0 bytes"):
        decompress(kind, b"")


OTHERS = {
    "xz": lzma.compress(TEXT),
    "lzma": lzma.compress(TEXT, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress(TEXT),
    "lz4": lz4.frame.compress(TEXT),
    "zip": b"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0",
    "7z": b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(24),
    "lzip": b"LZIP\x01\x0c" + bytes(20),
    "compress (.Z)": b"\x1f\x9d\x90" + bytes(20),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("piece", [1, 5, 1 << 18])
def test_another_format_is_refused_by_name(name: str, piece: int) -> None:
    assert sniff(OTHERS[name]) == "none"
    with pytest.raises(UnsupportedError, match=f"the data is {re.escape(name)}, not a tar"):
        decompress("none", OTHERS[name], piece)


def test_empty_bzip2_and_lzma_of_any_level_are_recognised() -> None:
    assert name_other_format(bz2.compress(b"")) == "bzip2"
    for preset in range(10):
        packed = lzma.compress(TEXT, lzma.FORMAT_ALONE, preset=preset)
        assert name_other_format(packed) == "lzma"


@pytest.mark.parametrize("name", [b"]", b"BZh9", b"BZh91", b"PK", b"7z", b"LZIP", b"Rar!", b"m\xff", b"\x01"])
def test_a_tar_is_a_tar_whatever_its_first_name(name: bytes) -> None:
    tar = name.ljust(100, b"\0") + b"0000644\0" * 3
    assert name_other_format(tar) is None
    assert decompress("none", tar) == tar


class TestGzip:
    def header(self, flags: int) -> bytes:
        """A header with all the optional fields that the flags name."""
        made = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6)
        if flags & 4:
            made += struct.pack("<H", 300) + b"e" * 300
        made += b"file name\0" if flags & 8 else b""
        made += b"comment\0" if flags & 16 else b""
        return made + struct.pack("<H", zlib.crc32(made) & 0xFFFF) if flags & 2 else made

    @pytest.mark.parametrize("flags", range(32))
    def test_optional_fields_of_a_header_cut_anywhere(self, flags: int) -> None:
        member = self.header(flags) + COMPRESS["gzip"](b"data")[10:]
        for piece in (1, 5, 11, 1000):
            assert decompress("gzip", member + member, piece) == b"datadata"

    def test_a_header_with_a_wrong_checksum(self) -> None:
        bad = bytearray(self.header(2 | 8))
        bad[12] ^= 1
        with pytest.raises(FormatError, match="offset 0 has a wrong checksum"):
            decompress("gzip", bytes(bad), 3)

    def test_a_header_with_unknown_flags(self) -> None:
        with pytest.raises(FormatError, match="unknown flags 0x20"):
            decompress("gzip", b"\x1f\x8b\x08\x20" + bytes(20))

    def test_a_header_without_end(self) -> None:
        with pytest.raises(FormatError, match="header at offset 0 has more than"):
            decompress("gzip", b"\x1f\x8b\x08\x08" + b"n" * 300_000)

    def test_zeros_may_follow(self) -> None:
        stored = COMPRESS["gzip"](TEXT)
        assert decompress("gzip", stored + bytes(10_000), 1000) == TEXT
        with pytest.raises(FormatError, match="goes on with something else"):
            decompress("gzip", stored + bytes(10_000) + stored, 1000)
        with pytest.raises(FormatError, match="at offset 0"):
            decompress("gzip", bytes(10) + stored)

    @pytest.mark.parametrize("at", [-1, -4, -5, -8])
    def test_a_wrong_trailer(self, at: int) -> None:
        bad = bytearray(COMPRESS["gzip"](TEXT))
        bad[at] ^= 1
        for piece in (1, 1000, 1 << 20):
            with pytest.raises(FormatError, match="gzip data is corrupt before offset"):
                decompress("gzip", bytes(bad), piece)


class TestZstd:
    @pytest.mark.parametrize("level", [-5, 1, 19])
    @pytest.mark.parametrize("checksum", [True, False])
    @pytest.mark.parametrize("size", [True, False])
    @pytest.mark.parametrize("data", [b"", TEXT, bytes(3 << 20), random.Random(2).randbytes(300_000)])
    def test_frames_of_all_kinds(self, level: int, checksum: bool, size: bool, data: bytes) -> None:
        stored = zstd(data, level, checksum=checksum, size=size)
        assert decompress("zstd", stored, 9999) == data

    def test_frames_written_as_a_stream(self) -> None:
        out = io.BytesIO()
        with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as writer:
            for at in range(0, len(TEXT), 1000):
                writer.write(TEXT[at : at + 1000])
                writer.flush()
        assert decompress("zstd", out.getvalue(), 777) == TEXT

    @pytest.mark.parametrize("piece", [1, 3, 1000])
    def test_skippable_frames_are_skipped(self, piece: int) -> None:
        empty = b"\x50\x2a\x4d\x18\0\0\0\0"
        assert (
            decompress("zstd", SKIPPABLE + zstd(b"a") + empty + SKIPPABLE + zstd(b"b") + empty, piece)
            == b"ab"
        )
        assert decompress("zstd", SKIPPABLE) == b""

    def test_a_wrong_checksum(self) -> None:
        bad = bytearray(zstd(TEXT))
        bad[-1] ^= 1
        with pytest.raises(FormatError, match=r"zstd data is corrupt at offset \d+\.\."):
            decompress("zstd", bytes(bad))

    @pytest.mark.parametrize("block", [b"\x07\0\0", b"\x05\0\x18\0", b"\xfd\xff\xff"])
    def test_a_block_that_cannot_be(self, block: bytes) -> None:
        frame = zstd(b"", size=False, checksum=False)
        head = frame[:-3]
        with pytest.raises(FormatError, match=f"corrupt at offset {len(head)}"):
            decompress("zstd", head + block + bytes(100))

    def test_large_windows(self) -> None:
        # 2**29 bytes are allowed; a window of 2**30 is refused before memory is taken for it.
        for log, fits in ((29, True), (30, False), (41, False)):
            frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + b"\x0b\0\0x"
            if fits:
                assert WINDOW_MAX == 1 << log
                assert decompress("zstd", frame) == b"x"
            else:
                with pytest.raises(UnsupportedError, match="at offset 0: its window is"):
                    decompress("zstd", frame)
        single = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + b"\x0b\0\0x"
        with pytest.raises(UnsupportedError, match="its window is"):
            decompress("zstd", single)

    def test_a_content_size_that_is_wrong(self) -> None:
        single = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 5) + b"\x09\0\0x"
        with pytest.raises(FormatError, match="zstd data is corrupt"):
            decompress("zstd", single)

    def test_a_frame_that_needs_a_dictionary(self) -> None:
        with pytest.raises(FormatError, match="zstd data is corrupt"):
            decompress("zstd", b"\x28\xb5\x2f\xfd\x21\x07\x01\x09\0\0x")


@settings(max_examples=300)
@given(
    st.sampled_from(["gzip", "zstd"]),
    st.integers(0, 400),
    st.binary(min_size=1, max_size=8),
    st.integers(1, 500),
)
def test_damage_is_a_format_error_or_harmless(kind: Compression, at: int, value: bytes, piece: int) -> None:
    stored = COMPRESS[kind](WORDS[:300] * 4)
    bad = stored[:at] + value + stored[at + len(value) :]
    try:
        decompress(kind, bad, piece)
    except (FormatError, UnsupportedError):
        pass


class TestGzipDeterministic:
    def test_has_no_time_and_no_name(self) -> None:
        made = gzip_deterministic(TEXT)
        assert made[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
        assert gzip.decompress(made) == TEXT
        assert decompress("gzip", made) == TEXT
        assert gzip.decompress(gzip_deterministic(b"")) == b""
