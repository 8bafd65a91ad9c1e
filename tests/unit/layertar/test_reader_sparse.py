"""Sparse files: old GNU, PAX 0.0, 0.1 and 1.0."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.errors import FormatError
from nydus_service.layertar.reader import ZEROS
from tests.layers import (
    Runs,
    entry,
    expanded,
    file,
    gnu_sparse,
    layer,
    padded,
    pax_header,
    pax_records,
    pax_sparse,
    symlink,
)
from tests.unit.layertar.reading import PIECES, open_reader, read_all, read_one

Maker = Callable[[str, int, Runs], bytes]

MAKERS: dict[str, Maker] = {
    "gnu": gnu_sparse,
    "0.0": lambda name, size, runs: pax_sparse(name, size, runs, "0.0"),
    "0.1": lambda name, size, runs: pax_sparse(name, size, runs, "0.1"),
    "1.0": lambda name, size, runs: pax_sparse(name, size, runs, "1.0"),
}

SCATTERED: Runs = [
    (0, b"a" * 5000),
    (9000, b"b"),
    (9001, b"c" * 700),
    *((20_000 + 10 * i, b"d") for i in range(40)),
]

makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@makers
@pytest.mark.parametrize("piece", PIECES)
def test_is_expanded(make: Maker, piece: int) -> None:
    data = layer(make("d/s", 50_000, SCATTERED), file("after", b"1"))
    for chunk_size in (None, 512, 4096, 100_000):
        (s, content), (after, _) = read_all(data, piece, chunk_size)
        assert (s.path, s.size, after.path) == (b"d/s", 50_000, b"after")
        assert s.sparse is not None
        assert sum(length for _, length in s.sparse) == 5741
        assert content == expanded(50_000, SCATTERED)


@makers
def test_unread_content_is_skipped(make: Maker) -> None:
    data = layer(make("s", 50_000, SCATTERED), file("after", b"1"))
    assert [e.path for e in open_reader(data)] == [b"s", b"after"]


@makers
def test_without_data(make: Maker) -> None:
    # GNU tar ends the map of such a file with an empty run.
    (s, content), after = read_all(layer(make("s", 5000, [(5000, b"")]), file("after", b"1")))
    assert (s.sparse, content, after.content) == ([], bytes(5000), b"1")


@pytest.mark.parametrize("make", [MAKERS["gnu"], MAKERS["1.0"]], ids=["gnu", "1.0"])
def test_with_an_empty_map(make: Maker) -> None:
    assert read_one(layer(make("s", 5000, []))).sparse == []


@pytest.mark.parametrize("version", ["0.0", "0.1"])
def test_without_a_version_only_a_map_makes_it_sparse(version: str) -> None:
    plain = read_one(layer(MAKERS[version]("s", 5000, [])))
    assert (plain.sparse, plain.size) == (None, 0)
    explicit = {"GNU.sparse.major": b"0", "GNU.sparse.minor": b"1", "GNU.sparse.size": b"9"}
    assert read_one(layer(file("s", pax=explicit | {"GNU.sparse.numblocks": b"0"}))).sparse == []


@makers
def test_of_no_size(make: Maker) -> None:
    ((s, content),) = read_all(layer(make("s", 0, [(0, b"")])), chunk_size=10)
    assert (s.size, content) == (0, b"")


@makers
def test_of_ten_gigabytes_is_zeros_of_one_object(make: Maker) -> None:
    size, middle = 10 << 30, 5 << 30
    reader = open_reader(layer(make("s", size, [(middle + 5, b"x")])))
    (s,) = [entry for entry in reader if entry.path == b"s"]
    assert s.size == size
    reader = open_reader(layer(make("s", size, [(middle + 5, b"x")])))
    next(iter(reader))
    kinds: dict[bool, int] = {True: 0, False: 0}
    for chunk in reader.chunks(1 << 20):
        kinds[chunk is ZEROS] += 1
    assert kinds == {True: 10239, False: 1}


def test_the_zeros_of_other_chunk_sizes_are_one_object_too() -> None:
    reader = open_reader(layer(pax_sparse("s", 10_000, [(0, b"x")])))
    next(iter(reader))
    chunks = list(reader.chunks(1000))
    assert bytes(chunks[0]) == b"x" + bytes(999)
    assert all(chunk is chunks[1] for chunk in chunks[1:])


sparse_files = st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=3000)), max_size=30).map(
    lambda gaps: place(gaps)
)


def place(gaps: list[tuple[int, bytes]]) -> Runs:
    """Runs from what lies before each of them, and what they hold."""
    runs, end = [], 0
    for gap, data in gaps:
        runs.append((end + gap, data))
        end += gap + len(data)
    return runs


@given(
    sparse_files,
    st.integers(0, 5000),
    st.sampled_from(sorted(MAKERS)),
    st.integers(1, 5000),
    st.integers(1, 5000) | st.none(),
)
def test_any_map_in_any_pieces(runs: Runs, tail: int, how: str, piece: int, chunk_size: int | None) -> None:
    end = runs[-1][0] + len(runs[-1][1]) if runs else 0
    size = end + tail
    runs.append((size, b""))
    data = layer(MAKERS[how]("s", size, runs), file("after", b"1"))
    (s, content), after = read_all(data, piece, chunk_size)
    assert content == expanded(size, runs)
    assert s.sparse == [(offset, len(data)) for offset, data in runs if data]
    assert after.content == b"1"


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
@pytest.mark.parametrize("stored", ["header", "L", "path"])
def test_the_sparse_name_is_the_name(version: str, stored: str) -> None:
    records = {"GNU.sparse.name": b"real", "GNU.sparse.size": b"5", "GNU.sparse.numblocks": b"1"}
    records["GNU.sparse.map"] = b"5,0"
    if stored == "path":
        records["path"] = b"GNUSparseFile.0/x"
    name = b"n" * 200 if stored == "L" else b"n"
    assert read_one(layer(pax_header(pax_records(records)), entry(name, b"0", style="gnu"))).path == b"real"


def old_gnu(size: int, *runs: tuple[int, int]) -> bytes:
    """An old GNU header with runs of any offset and length, over one block of data."""
    made = bytearray(gnu_sparse("s", size, [(0, b"x" * 512)])[:512])
    made[386:482] = b"".join(b"%011o\0%011o\0" % run for run in runs).ljust(96, b"\0")
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made) + b"x" * 512


def pax(records: dict[str, bytes], data: bytes = b"") -> bytes:
    return pax_header(pax_records(records)) + entry("s", b"0", data)


V0 = {"GNU.sparse.size": b"1000"}
V1 = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"1000"}


@pytest.mark.parametrize(
    "data",
    [
        old_gnu(1000, (500, 256), (0, 256)),
        old_gnu(1000, (0, 256), (255, 256)),
        old_gnu(1000, (900, 512)),
        old_gnu(1000, (0, 511)),
        old_gnu(1000, (0, 513)),
        old_gnu(1000),
        pax(V0 | {"GNU.sparse.numblocks": b"1", "GNU.sparse.map": b"0,5,6,7"}, b"12345"),
        pax(V0 | {"GNU.sparse.numblocks": b"2", "GNU.sparse.map": b"0,5"}, b"12345"),
        pax(V0 | {"GNU.sparse.numblocks": b"1", "GNU.sparse.map": b"0"}, b"12345"),
        pax(V0 | {"GNU.sparse.numblocks": b"1", "GNU.sparse.map": b"0,-5"}),
        pax(V0 | {"GNU.sparse.numblocks": b"1", "GNU.sparse.map": b"-5,5"}, b"12345"),
        pax(V0 | {"GNU.sparse.numblocks": b"1", "GNU.sparse.map": b"0,x"}, b"12345"),
        pax(V0 | {"GNU.sparse.numblocks": b"x", "GNU.sparse.map": b"0,5"}, b"12345"),
        pax(V0 | {"GNU.sparse.numblocks": b"-1", "GNU.sparse.map": b"0,5"}),
        pax(V0 | {"GNU.sparse.numblocks": b"2097152", "GNU.sparse.map": b"0,0," * 2097151 + b"0,0"}),
        pax(V0 | {"GNU.sparse.map": b"0,5"}, b"12345"),
        pax({"GNU.sparse.numblocks": b"1", "GNU.sparse.map": b"0,0", "GNU.sparse.size": b"-1"}),
        pax({"GNU.sparse.numblocks": b"1", "GNU.sparse.map": b"0,0", "GNU.sparse.size": b"%d" % 2**62}),
        pax(V1),
        pax(V1, b"1\n0\n5\n".ljust(512, b"\0") + b"1234"),
        pax(V1, b"1\n0\n5\n"),
        pax(V1, b"1\n0\n".ljust(1024, b"5")),
        pax(V1, b"x\n0\n5\n".ljust(512, b"\0")),
        pax(V1, b"-1\n0\n5\n".ljust(512, b"\0")),
        pax(V1, b"1\n0\n0x5\n".ljust(512, b"\0")),
        pax(V1, b"1" * 512),
        pax(V1, b"1048577\n".ljust(512, b"\n")),
        pax(V1, b"".ljust(512, b"\n")),
        pax_header(pax_records([("GNU.sparse.numbytes", b"1"), ("GNU.sparse.offset", b"0")])) + file("s"),
        pax_header(pax_records([("GNU.sparse.offset", b"0"), ("GNU.sparse.offset", b"0")])) + file("s"),
        pax_header(pax_records([("GNU.sparse.offset", b"0,1"), ("GNU.sparse.numbytes", b"0")])) + file("s"),
        entry("s", b"S", padded(b"x")),
    ],
)
def test_a_bad_map_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"tar entry '(s|PaxHeaders\.0/x)' at offset 0: "):
        read_all(layer(data))


@pytest.mark.parametrize("version", [{"major": b"2", "minor": b"0"}, {"major": b"1"}, {"minor": b"x"}])
def test_of_an_unknown_version_it_is_a_plain_file_as_for_go(version: dict[str, bytes]) -> None:
    records = {f"GNU.sparse.{key}": value for key, value in version.items()}
    more = {"GNU.sparse.size": b"99", "GNU.sparse.name": b"other"}
    ((s, content),) = read_all(layer(pax(records | more, b"stored")))
    assert (s.path, s.sparse, content) == (b"s", None, b"stored")


def test_without_its_size_it_is_as_large_as_its_data() -> None:
    ((s, content),) = read_all(layer(pax({"GNU.sparse.numblocks": b"1", "GNU.sparse.map": b"0,3"}, b"abc")))
    assert (s.size, content) == (3, b"abc")


def test_a_map_cut_short_is_refused() -> None:
    for make in MAKERS.values():
        data = make("s", 50_000, SCATTERED)
        whole = read_all(data)
        for size in (*range(513, 2600, 200), len(data) - 512):
            try:
                assert read_all(data[:size]) in ([], whole)  # cut between headers, or in padding
            except FormatError:
                continue


def test_only_a_regular_file_can_be_sparse() -> None:
    plain = {"GNU.sparse.numblocks": b"0", "GNU.sparse.size": b"5"}
    e = read_one(layer(symlink("s", "t", pax=plain)))
    assert (e.size, e.sparse) == (0, None)
    with pytest.raises(FormatError, match="no regular file"):
        read_all(layer(symlink("s", "t", pax=plain | {"GNU.sparse.map": b"0,1"})))
