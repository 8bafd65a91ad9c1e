"""The recorder against tars made by hand and by tarfile, in pieces of any size, cut and damaged."""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Sequence
from contextlib import suppress

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.errors import FormatError, NydusServiceError, UnsupportedError, UsageError
from nydus_service.tarsplit.recorder import EXTENSION_MAX, TarSplitRecorder
from nydus_service.treeverify.tarsplit import TarSplitReader
from tests.layers import (
    BLOCK,
    END,
    char_device,
    directory,
    entry,
    expanded,
    fifo,
    file,
    gnu_long,
    gnu_sparse,
    hardlink,
    header,
    layer,
    padded,
    pax_header,
    pax_records,
    pax_sparse,
    symlink,
)

CHUNK = 4096
Noted = list[tuple[bytes, bytes]]
"""Headers and digests of each entry."""


def record(pieces: Iterable[bytes], chunk_size: int = CHUNK, digester: str = "blake3") -> bytes:
    out = bytearray()
    recorder = TarSplitRecorder(out.extend, chunk_size, digester)
    for piece in pieces:
        recorder.feed(piece)
    recorder.finish()
    return bytes(out)


def recorded(tar: bytes, chunk_size: int = CHUNK, digester: str = "blake3") -> Noted:
    return list(TarSplitReader(io.BytesIO(record([tar], chunk_size, digester))))


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def digests(content: bytes, chunk_size: int = CHUNK) -> bytes:
    return b"".join(blake3(chunk).digest() for chunk in cut(content, chunk_size))


BIG = bytes(range(256)) * 100
RUNS = [(512, b"one" * 300), (9000, b"two" * 1000), (20000, b"three")]
MANY_RUNS = [(at * 1000, b"%04d" % at) for at in range(60)]
PAX_1_0 = {"GNU.sparse.major": b"1", "GNU.sparse.minor": b"0", "GNU.sparse.realsize": b"5"}

EVERYTHING = [
    entry("d/", b"5", size=77),
    file("d/small", b"hello\n"),
    file("d/empty"),
    file("d/chunk", b"x" * CHUNK),
    file("d/big", BIG),
    entry("d/link", b"1", size=1000, target="d/small"),
    symlink("d/symlink", "small"),
    char_device("d/null", 1, 3),
    fifo("d/fifo"),
    file("d/pax", b"pax", pax={"mtime": b"1.5"}, xattrs={"user.a": b"line\nsize=7\n"}),
    file("n" * 180, b"long", style="gnu"),
    entry("d/resized", b"0", b"data", size=0, pax={"size": b"4"}),
    gnu_sparse("d/gnu", 30000, RUNS),
    gnu_sparse("d/many", 60000, MANY_RUNS),
    pax_sparse("d/0.0", 30000, RUNS, "0.0"),
    pax_sparse("d/0.1", 30000, RUNS, "0.1"),
    pax_sparse("d/1.0", 30000, RUNS, "1.0"),
    pax_sparse("d/1.0-many", 60000, MANY_RUNS, "1.0"),
    entry("old/", b"\0", size=512),
    entry("old/file", b"\0", b"old"),
    entry("contiguous", b"7", b"seven"),
    pax_header(pax_records({"comment": b"c"}), b"g"),
    file("last", BIG),
]


def test_notes_hold_each_header_as_it_is() -> None:
    entries = [directory("d"), file("d/f", b"x"), symlink("s", "d"), file("p", pax={"mtime": b"2.5"})]
    wanted = [entries[0], entries[1][:BLOCK], entries[2], entries[3]]
    assert [headers for headers, _ in recorded(layer(*entries))] == wanted


def test_content_is_digested_in_chunks() -> None:
    for content in (b"", b"x", bytes(CHUNK), BIG, BIG[: 2 * CHUNK], BIG[: 2 * CHUNK + 1]):
        assert recorded(layer(file("f", content)))[0][1] == digests(content)


def test_content_can_be_digested_with_sha256() -> None:
    [(_, found)] = recorded(layer(file("f", BIG)), digester="sha256")
    assert found == b"".join(hashlib.sha256(chunk).digest() for chunk in cut(BIG, CHUNK))


def test_an_unknown_digester_is_refused() -> None:
    with pytest.raises(UsageError, match="md5"):
        TarSplitRecorder(bytes, CHUNK, "md5")


@pytest.mark.parametrize(
    ("sparse", "size", "runs"),
    [
        (gnu_sparse("f", 30000, RUNS), 30000, RUNS),
        (gnu_sparse("f", 60000, MANY_RUNS), 60000, MANY_RUNS),
        (gnu_sparse("f", 30000, []), 30000, []),
        (pax_sparse("f", 30000, RUNS, "0.0"), 30000, RUNS),
        (pax_sparse("f", 30000, RUNS, "0.1"), 30000, RUNS),
        (pax_sparse("f", 30000, [], "0.1"), 0, []),
        (pax_sparse("f", 30000, RUNS, "1.0"), 30000, RUNS),
        (pax_sparse("f", 60000, MANY_RUNS, "1.0"), 60000, MANY_RUNS),
        (pax_sparse("f", 30000, [], "1.0"), 30000, []),
        (pax_sparse("f", 0, [], "1.0"), 0, []),
        (pax_sparse("f", 6, [(0, b""), (0, b"abc"), (3, b""), (6, b"")], "1.0"), 6, [(0, b"abc")]),
        (pax_sparse("f", 30000, [(0, BIG), (29999, b"!")], "1.0"), 30000, [(0, BIG), (29999, b"!")]),
    ],
)
@pytest.mark.parametrize("piece", [1 << 20, 1000, 511])
def test_holes_of_sparse_files_are_filled(
    sparse: bytes, size: int, runs: list[tuple[int, bytes]], piece: int
) -> None:
    tar = layer(sparse, file("next", b"next"))
    entries = list(TarSplitReader(io.BytesIO(record(cut(tar, piece)))))
    assert [found for _, found in entries] == [digests(expanded(size, runs)), digests(b"next")]


def test_a_hole_of_many_gigabytes_is_quick() -> None:
    chunk_size = 1 << 20
    [(_, found)] = recorded(layer(pax_sparse("f", 10 << 30, [(5 << 30, b"middle")])), chunk_size)
    zeros = blake3(bytes(chunk_size)).digest()
    middle = blake3(b"middle".ljust(chunk_size, b"\0")).digest()
    assert found == zeros * 5120 + middle + zeros * 5119


def test_more_chunks_than_a_blob_can_have_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"'f' at offset 0: .* larger chunk size"):
        recorded(layer(pax_sparse("f", CHUNK << 24, [])))


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40))
def test_pieces_of_any_sizes_give_the_same_notes(sizes: Sequence[int]) -> None:
    tar = layer(*EVERYTHING)
    pieces, at, turn = [], 0, 0
    while at < len(tar):
        pieces.append(tar[at : at + sizes[turn % len(sizes)]])
        at, turn = at + len(pieces[-1]), turn + 1
    assert list(TarSplitReader(io.BytesIO(record(pieces)))) == recorded(tar)


def test_single_bytes_give_the_same_notes() -> None:
    tar = layer(*EVERYTHING[:12])
    assert list(TarSplitReader(io.BytesIO(record(cut(tar, 1))))) == recorded(tar)


def test_everything_is_noted_once_and_in_order() -> None:
    apart = [recorded(layer(one)) for one in EVERYTHING]
    assert recorded(layer(*EVERYTHING)) == [one for entries in apart for one in entries]
    tar_split = TarSplitReader(io.BytesIO(record([layer(*EVERYTHING)])))
    assert len(list(tar_split)) == tar_split.entries == len(EVERYTHING)
    assert tar_split.trailing_bytes == 0
    assert tar_split.tar_bytes == len(layer(*EVERYTHING))


def test_sizes_of_entries_without_content_are_ignored() -> None:
    bare = [directory("d"), hardlink("h", "f"), symlink("s", "t"), char_device("c", 1, 2), fifo("p")]
    sized = [one[:124] + b"00000001000\0" + one[136:] for one in bare]
    sized = [one[:148] + b"%06o\0 " % (sum(one) - sum(one[148:156]) + 256) + one[156:] for one in sized]
    assert len(recorded(layer(*sized, file("f", b"x")))) == 6


def test_a_pax_size_goes_before_the_header() -> None:
    tar = layer(entry("f", b"0", b"12345", size=0, pax={"size": b"5"}), file("g", b"g"))
    assert [found for _, found in recorded(tar)] == [digests(b"12345"), digests(b"g")]


def test_of_two_pax_headers_the_last_counts() -> None:
    first, second = (pax_header(pax_records({"size": size})) for size in (b"2000", b"5"))
    tar = layer(first + second + header(b"f", b"0") + padded(b"12345"), file("g", b"g"))
    assert [found for _, found in recorded(tar)] == [digests(b"12345"), digests(b"g")]


def test_an_empty_pax_size_keeps_the_headers() -> None:
    assert recorded(layer(entry("f", b"0", b"12345", pax={"size": b""})))[0][1] == digests(b"12345")


def test_a_size_in_base_256() -> None:
    plain = file("f", b"12345")
    sized = plain[:124] + b"\x80" + bytes(10) + b"\x05" + plain[136:]
    sized = sized[:148] + b"%06o\0 " % (sum(sized[:BLOCK]) - sum(sized[148:156]) + 256) + sized[156:]
    assert recorded(layer(sized))[0][1] == digests(b"12345")


def test_an_old_directory_is_known_by_its_slash_whatever_gives_its_name() -> None:
    plain = header(b"d", b"\0", size=512)
    named = [
        pax_header(pax_records({"path": b"long/"})) + plain,
        gnu_long(b"long/", b"L") + plain,
        header(b"d/", b"\0", size=512),
    ]
    for one in named:
        assert [found for _, found in recorded(layer(one, file("f", b"f")))] == [b"", digests(b"f")]


def test_signed_checksums_of_old_programs_are_accepted() -> None:
    block = header("é".encode(), b"0")
    unsigned = sum(block) - sum(block[148:156]) + 256
    signed = unsigned - 256 * sum(byte > 127 for byte in block)
    assert len(recorded(layer(block[:148] + b"%06o\0 " % signed + block[156:]))) == 1


@pytest.mark.parametrize("behind", [b"\n", b"x" * 700 + bytes(9), layer(file("b", b"b"))])
def test_what_follows_the_end_mark_is_counted_and_no_more(behind: bytes) -> None:
    tar = layer(file("a", b"a")) + bytes(3 * BLOCK) + behind
    for size in (1, 100, BLOCK, len(tar)):
        tar_split = TarSplitReader(io.BytesIO(record(cut(tar, size))))
        assert len(list(tar_split)) == 1
        assert tar_split.trailing_bytes == len(behind) - behind.count(0)
        assert tar_split.tar_bytes == len(tar)


def test_a_single_zero_block_between_entries_is_refused() -> None:
    with pytest.raises(FormatError, match=r"'b'.*a single zero block comes before"):
        record([file("a", b"a") + bytes(BLOCK) + layer(file("b", b"b"))])


def test_the_mark_of_the_end_may_be_missing_or_half() -> None:
    assert len(recorded(layer(file("a", b"a"), end=b""))) == 1
    assert len(recorded(layer(file("a", b"a"), end=bytes(BLOCK)))) == 1
    with pytest.raises(FormatError, match="cut off"):
        record([layer(file("a", b"a"), end=bytes(BLOCK + 1))])


@pytest.mark.parametrize("tar", [b"", bytes(BLOCK), END])
def test_a_layer_may_have_no_entries(tar: bytes) -> None:
    assert recorded(tar) == []


def test_extension_headers_without_an_entry_are_left_out() -> None:
    stray = pax_header(pax_records({"path": b"lost"})) + gnu_long(b"lost", b"L")
    for end in (b"", END, END + file("later")):
        assert len(recorded(file("a", b"a") + stray + end)) == 1


def test_what_python_writes_is_read() -> None:
    for tar_format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tar_format) as tar:
            for name, content in (("a/é" if tar_format else "a/e", b"1"), ("b" * 90 + "/" + "c" * 90, BIG)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                info.mtime = 1.5 if tar_format == tarfile.PAX_FORMAT else 1
                tar.addfile(info, io.BytesIO(content))
        assert [found for _, found in recorded(out.getvalue())] == [digests(b"1"), digests(BIG)]


@pytest.mark.parametrize("one", EVERYTHING[:-2], ids=range(len(EVERYTHING) - 2))
def test_a_cut_inside_an_entry_is_refused(one: bytes) -> None:
    content_end = max(len(one.rstrip(b"\0")), BLOCK)
    for size in {1, BLOCK - 1, content_end // 2, content_end - 1}:
        with suppress(FormatError):
            assert recorded(one[:size]) == []  # nothing but extension headers
    assert record([one[:content_end]])  # only padding is missing: Go's reader does not mind


def test_a_cut_names_the_entry_and_its_place() -> None:
    tar = layer(file("a", b"a"), file("dir/b", BIG))
    with pytest.raises(FormatError, match=r"cut off after 9000 bytes, in tar entry 'dir/b' at offset 1024"):
        record([tar[:9000]])


def test_a_cut_header_is_refused_too() -> None:
    with pytest.raises(FormatError, match="cut off after 1100 bytes, in the header of an entry"):
        record([layer(file("a", b"a"))[:1100]])


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (b"no tar at all".ljust(BLOCK, b"."), "checksum is missing"),
        (header(b"f", b"0")[:-1] + b"x", "checksum is .*, and it says"),
        (header(b"f", b"Z"), "unknown typeflag 'Z'"),
        (header(b"f", b"x", size=EXTENSION_MAX + 1), "extension header of 8388609 bytes"),
        (pax_header(b"12 size=abc\n") + header(b"f", b"0"), "'abc' is no decimal"),
        (pax_header(b"11 size=-1\n") + header(b"f", b"0"), "'-1' is no decimal"),
        (pax_header(b"99 size=1\n") + header(b"f", b"0"), "PAX record at byte 0"),
        (pax_header(b"10 size=1x") + header(b"f", b"0"), "PAX record"),
        (pax_header(b"size=1\n") + header(b"f", b"0"), "PAX record"),
        (pax_header(b"9 =size=\n") + header(b"f", b"0"), "PAX record"),
        (pax_header(b"5 a=\n") + bytes(BLOCK), "single zero block"),
        (pax_sparse("f", 5, [(3, b"abc")]), "outside of 5"),
        (pax_sparse("f", 50, [(3, b"abc"), (4, b"def")]), "out of order"),
        (pax_sparse("f", 5, [(0, b"abc")], "0.1", pax={"GNU.sparse.map": b"0,2"}), "2 bytes of data, and 3"),
        (pax_sparse("f", 5, [(0, b"abc")], "0.1", pax={"GNU.sparse.map": b"0"}), "1 numbers for 1 runs"),
        (pax_sparse("f", 5, [(0, b"abc")], "0.1", pax={"GNU.sparse.size": b"-5"}), "'-5' is no decimal"),
        (pax_sparse("f", 5, [], pax={"size": b"0"}), "map is missing"),
        (pax_sparse("f", 5, [(0, b"abc")] * 2000, pax={"size": b"512"}), "map is cut off"),
        (entry("f", b"0", padded(b"9999999\n1\n"), pax=PAX_1_0), "sparse map of 9999999 runs"),
        (entry("f", b"0", b"1\n" + b"0" * 2000, pax=PAX_1_0), "does not end|no decimal"),
        (entry("f", b"0", padded(b"x\n"), pax=PAX_1_0), "no decimal"),
        (gnu_sparse("f", 3, [(0, b"abcd")]), "outside of 3"),
    ],
)
def test_what_breaks_the_format_is_refused_by_name(broken: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=rf"tar entry '.*' at offset 1024: .*({problem})"):
        record([layer(file("before", b"1"), broken, file("after"))])


def test_a_sparse_file_of_an_unknown_version_is_a_plain_one() -> None:
    more = {"GNU.sparse.major": b"2", "GNU.sparse.size": b"99"}
    ((_, found),) = recorded(layer(file("f", b"stored", pax=more)))
    assert found == digests(b"stored")


@given(st.integers(0, len(layer(*EVERYTHING)) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_noted(at: int, value: int) -> None:
    tar = bytearray(layer(*EVERYTHING))
    tar[at] = value
    try:
        record(cut(bytes(tar), 4000))
    except NydusServiceError as exc:
        assert exc.code in ("corrupt_input", "unsupported")  # noqa: PT017 - both outcomes are right
