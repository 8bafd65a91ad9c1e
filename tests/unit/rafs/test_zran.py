"""Random access to gzip layers: contexts of any gzip stream decode to the right bytes."""

import gzip
import random
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.nydus_image.gzipscan import GzipScanner, Place
from nydus_service.rafs import libz
from nydus_service.rafs.zran import CONTEXT_SIZE, decode_context, pack_contexts, unpack_contexts

STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED)
FLUSHES = (zlib.Z_NO_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH)
CHUNK = 1 << 16
GAP = 100
"""Bytes before each chunk, as headers in a tar are."""


def plain_of(seed: int, size: int) -> bytes:
    """Bytes of which some shrink and some do not."""
    source = random.Random(seed)
    parts = []
    while size > 0:
        length = source.randrange(1, 200_000)
        kind = source.randrange(3)
        if kind == 0:
            part = source.randbytes(length)
        elif kind == 1:
            part = bytes(length)
        else:
            part = b"".join(b"%d lines\n" % source.randrange(10**6) for _ in range(length // 12))
        parts.append(part[:size])
        size -= len(parts[-1])
    return b"".join(parts)


@st.composite
def gzip_streams(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A plain stream of up to 1 MiB, and a gzip of it by any settings, in one or several members."""
    plain = plain_of(draw(st.integers(0, 1 << 30)), draw(st.integers(1, 1 << 20)))
    cuts = draw(st.lists(st.integers(0, len(plain)), max_size=5))
    stored = []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), len(plain)], strict=True):
        level, memory = draw(st.integers(0, 9)), draw(st.integers(1, 9))
        packer = zlib.compressobj(level, zlib.DEFLATED, 31, memory, draw(st.sampled_from(STRATEGIES)))
        step, flush = draw(st.sampled_from((777, 40_000, 1 << 20))), draw(st.sampled_from(FLUSHES))
        for at in range(start, stop, step):
            stored += [packer.compress(plain[at : min(at + step, stop)]), packer.flush(flush)]
        stored.append(packer.flush())
    return plain, b"".join(stored) + bytes(draw(st.sampled_from((0, 1, 5000))))


def pieces_of(data: bytes, size: int) -> Callable[[], bytes]:
    pieces = iter([data[at : at + size] for at in range(0, len(data), size)])
    return lambda: next(pieces, b"")


def scan(stored: bytes, size: int = CHUNK, piece: int = 50_000) -> tuple[GzipScanner, list[Place], bytes]:
    """Scan a stream in chunks of one size, with a gap before each."""
    scanner = GzipScanner(pieces_of(stored, piece), CHUNK)
    places, parts = [], [scanner.read(GAP)]
    while True:
        scanner.begin()
        data = scanner.read(size)
        if not data:
            break
        places.append(scanner.end())
        parts += [data, scanner.read(GAP)]
    scanner.close()
    return scanner, places, b"".join(parts)


@given(gzip_streams(), st.sampled_from((500, 5000, CHUNK)), st.sampled_from((7, 1000, 1 << 18)), st.data())
@settings(max_examples=25, deadline=None)
def test_chunks_are_read_at_random(
    stream: tuple[bytes, bytes], size: int, piece: int, data: st.DataObject
) -> None:
    plain, stored = stream
    if piece == 7 and len(stored) > 1 << 18:
        piece = 1000
    scanner, places, found = scan(stored, size, piece)
    assert found == plain
    packed = pack_contexts(scanner.contexts)
    contexts = unpack_contexts(packed, len(scanner.contexts), len(stored))
    assert contexts == scanner.contexts
    for number in data.draw(st.lists(st.integers(0, len(places) - 1), max_size=8)) if places else ():
        context = contexts[places[number].context]
        decoded = decode_context(context, stored[context.in_offset : context.in_offset + context.in_size])
        assert decoded == plain[context.out_offset : context.out_offset + context.out_size]
        at = GAP + number * (size + GAP)
        offset = places[number].offset
        assert decoded[offset : offset + size][: len(plain) - at] == plain[at : at + size]


def test_contexts_are_small_and_few() -> None:
    plain = plain_of(1, 6 << 20)
    scanner, _, _ = scan(gzip.compress(plain, 6, mtime=0))
    sizes = [context.out_size for context in scanner.contexts]
    assert max(sizes) < 6 << 20
    assert len(sizes) <= 2 * len(plain) // 0x100000


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 500])
def test_a_truncated_stream_is_noticed(cut: int) -> None:
    with pytest.raises(FormatError, match=r"truncated|corrupt"):
        scan(gzip.compress(plain_of(2, 100_000))[:-cut])


@pytest.mark.parametrize("more", [b"x", b"\0\0x", b"\x1f\x8b\x07" + bytes(20)])
def test_trailing_garbage_is_refused(more: bytes) -> None:
    with pytest.raises(FormatError, match=r"goes on with something else|corrupt"):
        scan(gzip.compress(plain_of(3, 100_000)) + more)


@pytest.mark.parametrize("at", [0, 3, 20, 5000, -7, -2])
def test_a_flipped_byte_is_noticed(at: int) -> None:
    stored = bytearray(gzip.compress(plain_of(4, 100_000), mtime=0))
    stored[at] ^= 0xFF
    with pytest.raises(FormatError, match=r"gzip data"):
        scan(bytes(stored))


def test_a_block_that_no_reader_takes_is_refused() -> None:
    # One block with fixed codes: a zero, and matches of 258 bytes at distance 1.
    bits = "1" + "10" + "00110000" + ("11000101" + "00000") * 66_000 + "0000000"
    bits += "0" * (-len(bits) % 8)
    data = int(bits[::-1], 2).to_bytes(len(bits) // 8, "little")
    plain = zlib.decompress(data, -15)
    assert len(plain) > 1 << 24
    header, trailer = gzip.compress(b"")[:10], zlib.crc32(plain).to_bytes(4, "little")
    with pytest.raises(UnsupportedError, match="deflate block at offset 10 has more than"):
        scan(header + data + trailer + len(plain).to_bytes(4, "little"))


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_damaged_contexts_give_other_bytes_or_an_error(data: st.DataObject) -> None:
    stored = gzip.compress(plain_of(5, 400_000), 1, mtime=0)
    scanner, _, _ = scan(stored)
    packed = bytearray(pack_contexts(scanner.contexts))
    at = data.draw(st.integers(0, CONTEXT_SIZE * len(scanner.contexts) - 1))
    packed[at] = data.draw(st.integers(0, 255))
    try:
        for context in unpack_contexts(bytes(packed), len(scanner.contexts), len(stored)):
            decode_context(context, stored[context.in_offset : context.in_offset + context.in_size])
    except FormatError:
        pass


def test_a_context_with_too_little_data_is_refused() -> None:
    stored = gzip.compress(plain_of(6, 300_000), mtime=0)
    scanner, _, _ = scan(stored)
    (context, *_) = scanner.contexts
    data = stored[context.in_offset : context.in_offset + context.in_size]
    with pytest.raises(FormatError, match="its data ends after"):
        decode_context(context, data[:-1000])
    with pytest.raises(FormatError):
        decode_context(replace(context, bits=5, byte=0xFF), data)


def test_a_machine_without_zlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    libz._load.cache_clear()
    monkeypatch.setattr(libz, "LIBRARY", "libz-that-is-nowhere.so.1")
    try:
        with pytest.raises(UnsupportedError, match=r"need zlib 1\.2\.8 .* as libz-that-is-nowhere"):
            GzipScanner(lambda: b"", CHUNK)
    finally:
        libz._load.cache_clear()
