"""Whatever is done to a tar: it is read, or refused with FormatError, never anything else."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_service.errors import FormatError
from tests.layers import (
    block_device,
    directory,
    file,
    gnu_sparse,
    hardlink,
    header,
    layer,
    opaque,
    pax_header,
    pax_records,
    pax_sparse,
    symlink,
    whiteout,
)
from tests.unit.layertar.reading import read_all

RUNS = [(0, b"a"), (600, b"b" * 600), *((2000 + 10 * i, b"c") for i in range(30))]

PARTS = [
    directory("d", uid=10**9, mtime=-5),
    file("d/f", b"content" * 200, xattrs={"user.a": b"1\n\0"}, pax={"mtime": b"1.25"}),
    gnu_sparse("g", 5000, RUNS),
    pax_sparse("p0", 5000, RUNS, "0.0"),
    pax_sparse("p1", 5000, RUNS, "0.1"),
    pax_sparse("p2", 5000, RUNS, "1.0"),
    hardlink("d/h", b"n" * 150, style="gnu"),
    symlink("s", "t" * 150),
    block_device("b", 8, 1),
    pax_header(pax_records({"comment": b"c"}), b"g"),
    whiteout("d/gone"),
    opaque("d"),
]
WHOLE = layer(*PARTS)


KEYS = [
    *("path", "linkpath", "size", "uid", "mtime", "SCHILY.xattr.user.a"),
    *("GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.size", "GNU.sparse.realsize", "GNU.sparse.name"),
    *("GNU.sparse.numblocks", "GNU.sparse.map", "GNU.sparse.offset", "GNU.sparse.numbytes"),
]


def survives(data: bytes, piece: int = 1 << 20) -> bool:
    """Whether it is read; a size may be damaged into a huge one, so content is read in chunks."""
    try:
        read_all(data, piece, 1 << 16)
    except FormatError as exc:
        assert "offset" in str(exc) or "empty" in str(exc)  # noqa: PT017 - both outcomes are right
        return False
    return True


def test_every_cut() -> None:
    whole = [(found.entry.path, found.content) for found in read_all(WHOLE, chunk_size=1 << 16)]
    for size in range(0, len(WHOLE), 64):
        data = WHOLE[:size]
        if survives(data):
            # What is lost are whole entries, or padding.
            rest = [(found.entry.path, found.content) for found in read_all(data, chunk_size=1 << 16)]
            assert rest == whole[: len(rest)]


def test_every_flipped_byte_of_a_header() -> None:
    rng = random.Random(4)
    starts = [len(b"".join(PARTS[:count])) for count in range(len(PARTS))]
    for start in starts:
        for at in range(start, start + 512, 7):
            data = bytearray(WHOLE)
            data[at] ^= 1 << rng.randrange(8)
            survives(bytes(data))


def resummed(data: bytearray, at: int) -> bytes:
    """The same with a right checksum in the header at `at`, so that it gets past the first check."""
    block = data[at : at + 512]
    block[148:156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(data)


@settings(max_examples=700)
@given(
    st.integers(0, len(PARTS) - 1),
    st.integers(0, 511),
    st.binary(min_size=1, max_size=14),
    st.sampled_from([1 << 20, 700]),
)
def test_headers_that_lie(index: int, at: int, value: bytes, piece: int) -> None:
    start = len(b"".join(PARTS[:index]))
    data = bytearray(WHOLE)
    data[start + at : start + min(at + len(value), 512)] = value[: 512 - at]
    survives(resummed(data, start), piece)


@settings(max_examples=500)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(KEYS),
            st.sampled_from([b"", b"0", b"1", b"-1", b"0,1", b"0,0", b"512", b"5.5", b"a/b", b"\0"])
            | st.binary(),
        ),
        max_size=8,
    ),
    st.binary(max_size=600),
    st.sampled_from([b"0", b"1", b"2", b"5", b"S", b"\0"]),
)
def test_records_that_lie(records: list[tuple[str, bytes]], content: bytes, flag: bytes) -> None:
    own = header(b"n", flag, size=len(content), linkname=b"t")
    survives(layer(pax_header(pax_records(records)), own, content + bytes(-len(content) % 512)))


@settings(max_examples=500)
@given(st.binary(max_size=2000))
def test_pax_bodies_of_any_bytes(body: bytes) -> None:
    survives(layer(pax_header(body), file("n", b"1")))


@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=3000), st.integers(1, 600))
def test_any_bytes(data: bytes, piece: int) -> None:
    if any(data[:1024]):
        with pytest.raises(FormatError):
            read_all(data, piece)
