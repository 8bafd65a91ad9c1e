"""Entries as their headers describe them: kinds, numbers, names, times, xattrs; the stream around them."""

import os

import pytest

from nydus_service.errors import FormatError
from nydus_service.layertar.reader import (
    BLOCK,
    CHAR,
    DIRECTORY,
    FIFO,
    GLOBAL_HEADER,
    HARDLINK,
    ID_KEPT,
    REGULAR,
    SYMLINK,
    ZEROS,
    LayerTarReader,
    TarEntry,
)
from tests.layers import (
    END,
    Style,
    block_device,
    char_device,
    directory,
    entry,
    fifo,
    file,
    gnu_long,
    hardlink,
    header,
    layer,
    padded,
    pax_header,
    pax_records,
    symlink,
)
from tests.unit.layertar.reading import PIECES, open_reader, read_all, read_one

STYLES: list[Style] = ["pax", "gnu", "ustar"]
LONG = b"a" * 90 + b"/" + b"b" * 90


@pytest.mark.parametrize("piece", PIECES)
def test_reads_every_kind(piece: int) -> None:
    data = layer(
        directory("d", mode=0o1777, uid=1, gid=2, mtime=3),
        file("d/f", b"hello\n", mode=0o4755, uid=2**31, gid=2**32 - 1, mtime=1_700_000_000),
        hardlink("d/h", "./d//f"),
        symlink("d/s", "../x//y/."),
        char_device("c", 0x123, 0x45678),
        block_device("b", 8, 1),
        fifo("p", blank=True),
    )
    found = read_all(data, piece)
    assert [(e.path, e.kind) for e, _ in found] == [
        (b"d", DIRECTORY),
        (b"d/f", REGULAR),
        (b"d/h", HARDLINK),
        (b"d/s", SYMLINK),
        (b"c", CHAR),
        (b"b", BLOCK),
        (b"p", FIFO),
    ]
    d, f, h, s, c, b, p = (e for e, _ in found)
    assert (d.mode, d.uid, d.gid, d.mtime, d.size) == (0o1777, 1, 2, 3, 0)
    assert (f.mode, f.uid, f.gid, f.mtime, f.size) == (0o4755, 2**31, 2**32 - 1, 1_700_000_000, 6)
    assert found[1].content == b"hello\n"
    assert (h.target, s.target) == (b"d/f", b"../x//y/.")
    assert c.rdev == os.makedev(0x123, 0x45678)
    assert b.rdev == os.makedev(8, 1)
    assert p.rdev == 0
    assert all(e.xattrs == {} and e.sparse is None and e.mtime_nsec == 0 for e, _ in found)


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("chunk_size", [1, 512, 700, 100_000])
def test_cuts_content_into_chunks(piece: int, chunk_size: int) -> None:
    content = bytes(range(256)) * 8 + b"tail"
    found = read_all(layer(file("a", content), file("b"), file("c", b"c" * 512)), piece, chunk_size)
    assert [got for _, got in found] == [content, b"", b"c" * 512]


def test_chunks_are_views_of_the_piece_where_they_can_be() -> None:
    reader = open_reader(layer(file("a", b"x" * 2000)))
    next(iter(reader))
    first, second = reader.chunks(1024)
    assert isinstance(first, memoryview)
    assert isinstance(second, memoryview)
    assert first.obj is second.obj


@pytest.mark.parametrize("piece", PIECES)
def test_skips_content_that_nobody_reads(piece: int) -> None:
    data = layer(file("a", b"1" * 1500), directory("d"), file("b", b"2" * 512), file("c", b"3"))
    assert [e.path for e in open_reader(data, piece)] == [b"a", b"d", b"b", b"c"]


def test_content_is_there_once_and_only_for_its_own_entry() -> None:
    reader = open_reader(layer(file("a", b"1" * 1500), directory("d"), file("b", b"2")))
    entries = iter(reader)
    next(entries)
    assert next(reader.chunks(1000)) == b"1" * 1000
    next(entries)
    assert reader.read_whole() == b""
    assert list(reader.chunks(10)) == []
    next(entries)
    assert reader.read_whole() == b"2"
    assert reader.read_whole() == b""


def test_nothing_to_read_before_the_first_entry() -> None:
    reader = open_reader(layer(file("a", b"1")))
    assert reader.read_whole() == b""
    assert list(reader.chunks(10)) == []


def test_pieces_may_be_memoryviews() -> None:
    data = memoryview(layer(file("a", b"1" * 1500), file("b", b"2")))
    pieces = iter([data[:700], data[700:1800], data[1800:]])
    reader = LayerTarReader(lambda: next(pieces, b""))
    assert [reader.read_whole() for _ in reader] == [b"1" * 1500, b"2"]


class TestStream:
    @pytest.mark.parametrize("data", [b"", bytes(512), END, bytes(10240)])
    def test_an_archive_can_have_no_entries(self, data: bytes) -> None:
        assert read_all(data, piece=100) == []

    @pytest.mark.parametrize("piece", PIECES)
    @pytest.mark.parametrize("behind", [b"\n", b"garbage" * 300, layer(file("b", b"2"))])
    def test_nothing_behind_the_end_mark_is_read(self, behind: bytes, piece: int) -> None:
        archive = layer(file("a", b"1"))
        reader = open_reader(archive + behind, piece)
        assert [e.path for e in reader] == [b"a"]
        assert reader.end == len(archive)

    @pytest.mark.parametrize("piece", PIECES)
    def test_a_single_zero_block_before_an_entry_is_refused(self, piece: int) -> None:
        with pytest.raises(FormatError, match="one zero block at offset 1024"):
            read_all(file("a", b"1") + bytes(512) + layer(file("b")), piece)

    def test_the_end_mark_may_be_missing_or_half(self) -> None:
        whole = layer(file("a", b"1"), end=b"")
        for end in (b"", bytes(512), bytes(1024), bytes(1025)):
            assert [e.path for e, _ in read_all(whole + end)] == [b"a"]
            reader = open_reader(whole + end)
            assert [e.path for e in reader] == [b"a"]
            assert reader.end == len(whole) + min(len(end), 1024)

    def test_an_end_mark_cut_inside_a_block_is_refused(self) -> None:
        with pytest.raises(FormatError, match="inside the header at offset 1536"):
            read_all(layer(file("a", b"1"), end=bytes(700)))

    def test_the_last_padding_may_be_missing(self) -> None:
        data = layer(file("a", b"1" * 600), end=b"")
        for size in range(512 + 600, len(data)):
            assert read_all(data[:size])[0].content == b"1" * 600

    @pytest.mark.parametrize("size", [1, 100, 511])
    def test_less_than_a_header_is_refused(self, size: int) -> None:
        data = layer(file("a", b"1"), file("b", b"2"), end=b"")
        with pytest.raises(FormatError, match="inside the header at offset 1024: the layer is truncated"):
            read_all(data[: 1024 + size])
        with pytest.raises(FormatError, match="inside the header at offset 0"):
            read_all(bytes(size))

    @pytest.mark.parametrize("piece", [100, 1 << 20])
    @pytest.mark.parametrize("size", [512, 513, 1000, 512 + 599])
    def test_content_cut_short_is_refused_however_it_is_read(self, piece: int, size: int) -> None:
        data = layer(file("d/a", b"1" * 600), end=b"")[:size]
        message = "tar entry 'd/a' at offset 0: the tar ends inside it"
        with pytest.raises(FormatError, match=message):
            read_all(data, piece)
        with pytest.raises(FormatError, match=message):
            read_all(data, piece, chunk_size=64)
        with pytest.raises(FormatError, match=message):
            list(open_reader(data, piece))

    def test_offsets_are_of_the_first_header_of_an_entry(self) -> None:
        parts = [file("a", b"1" * 600), file(LONG, style="gnu"), file("x", xattrs={"user.a": b"1"})]
        parts.append(symlink("s", LONG, style="gnu"))
        offsets = [len(b"".join(parts[:index])) for index in range(len(parts))]
        assert [e.offset for e, _ in read_all(layer(*parts))] == offsets

    def test_an_error_has_name_and_offset(self) -> None:
        bad = entry(LONG, b"?", style="pax")
        with pytest.raises(FormatError, match=r"tar entry 'a{90}/b{90}' at offset 1024: its typeflag b'\?'"):
            read_all(layer(file("a", b"1"), bad))

    def test_a_long_name_is_cut_in_an_error(self) -> None:
        with pytest.raises(FormatError) as caught:
            read_all(layer(file(b"n\n" * 40_000)))
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "dangling",
        [pax_header(pax_records({"path": b"lost"})), gnu_long(b"lost", b"L"), gnu_long(b"lost", b"K")],
        ids=["x", "L", "K"],
    )
    @pytest.mark.parametrize("end", [b"", END, END + file("later")])
    def test_an_extension_header_without_an_entry_is_ignored(self, dangling: bytes, end: bytes) -> None:
        assert [e.path for e, _ in read_all(file("a", b"1") + dangling + end)] == [b"a"]

    def test_of_two_extension_headers_of_one_type_the_last_counts(self) -> None:
        pax = [pax_header(pax_records(records)) for records in ({"path": b"1", "uid": b"5"}, {"path": b"2"})]
        e = read_one(layer(*pax, file("own", uid=7)))
        assert (e.path, e.uid) == (b"2", 7)
        assert read_one(layer(gnu_long(b"1", b"L"), gnu_long(b"2", b"L"), file("own"))).path == b"2"
        links = (gnu_long(b"1", b"K"), gnu_long(b"2", b"K"))
        assert read_one(layer(*links, symlink("s", "own"))).target == b"2"

    def test_an_extension_header_cut_inside_its_body_is_refused(self) -> None:
        data = file(LONG)
        for size in range(513, 512 + len(LONG), 50):
            with pytest.raises(FormatError):
                read_all(data[:size])

    @pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
    def test_a_huge_extension_header_is_refused_unread(self, flag: bytes) -> None:
        with pytest.raises(FormatError, match="at most 8388608 are read"):
            read_all(header(b"big", flag, size=(8 << 20) + 1) + bytes(512))


class TestKinds:
    @pytest.mark.parametrize("flag", [b"0", b"\0", b"7"])
    def test_regular_files(self, flag: bytes) -> None:
        ((e, content),) = read_all(layer(entry("f", flag, b"data")))
        assert (e.kind, content) == (REGULAR, b"data")

    def test_an_old_header_with_a_trailing_slash_is_a_directory(self) -> None:
        assert read_one(layer(entry("d/", b"\0"))).kind == DIRECTORY
        assert read_one(layer(entry(LONG + b"/", b"\0", style="pax"))).kind == DIRECTORY
        assert read_one(layer(entry(LONG + b"/", b"\0", style="gnu"))).kind == DIRECTORY

    def test_a_trailing_slash_alone_makes_no_directory(self) -> None:
        assert read_one(layer(entry("f/", b"0"))).kind == REGULAR

    @pytest.mark.parametrize("flag", b"123456")
    def test_the_size_of_what_has_no_content_is_ignored(self, flag: int) -> None:
        data = layer(entry("e", bytes([flag]), target=b"t", size=5000), file("after", b"1"))
        first, after = read_all(data)
        assert (first.entry.size, first.content) == (0, b"")
        assert (after.entry.path, after.content) == (b"after", b"1")

    @pytest.mark.parametrize("flag", [b"V", b"M", b"D", b"N", b"X", b"8", b" ", b"\xff"])
    def test_other_typeflags_are_refused_by_name(self, flag: bytes) -> None:
        with pytest.raises(FormatError, match="typeflag"):
            read_all(layer(entry("e", flag)))

    def test_only_a_directory_can_be_the_root(self) -> None:
        for name in ("./", "/", ".", "a/.."):
            root = read_one(layer(entry(name, b"5", mode=0o750)))
            assert (root.path, root.mode) == (b"", 0o750)
            for other in (file(name, b"1" * 600), symlink(name, ""), hardlink(name, "")):
                assert read_one(layer(other, file("after"))).path == b"after"

    @pytest.mark.parametrize("flag", b"0123456")
    def test_an_entry_with_an_empty_name_is_left_out(self, flag: int) -> None:
        data = layer(entry("", bytes([flag]), b"1" if flag == ord("0") else b""), file("after"))
        assert read_one(data).path == b"after"

    def test_device_numbers_are_those_of_devices_only(self) -> None:
        assert read_one(layer(file("f", b"1"))).rdev == 0
        assert read_one(layer(entry("p", b"6", device=(1, 2)))).rdev == 0
        assert read_one(layer(entry("c", b"3", device=None))).rdev == 0
        old = header(b"c", b"3", device=(1, 2), magic=bytes(8))  # before POSIX, there is no such field
        assert read_one(layer(old)).rdev == 0

    @pytest.mark.parametrize("target", [b"", b"t" * 4096])
    def test_a_symlink_needs_a_target_that_linux_takes(self, target: bytes) -> None:
        with pytest.raises(FormatError, match="target"):
            read_all(layer(symlink("s", target)))

    def test_the_longest_symlink_target(self) -> None:
        target = b"t" * 4095
        assert read_one(layer(symlink("s", target))).target == target
        assert read_one(layer(symlink("s", target, style="gnu"))).target == target

    def test_a_hard_link_needs_a_target(self) -> None:
        with pytest.raises(FormatError, match="without a target"):
            read_all(layer(hardlink("h", "")))


class TestNames:
    @pytest.mark.parametrize(
        ("name", "path"),
        [
            (b"./a", b"a"),
            (b".//a", b"a"),
            (b"/a//b/", b"a/b"),
            (b"a/./b/.", b"a/b"),
            (b"a/../b", b"b"),
            (b"../../a", b"a"),
            (b"/../a/../../b/..c/.d/...", b"b/..c/.d/..."),
            (b".hidden", b".hidden"),
            (b"..", b""),
            (b"a\nb", b"a\nb"),
            (b"caf\xe9/\xff", b"caf\xe9/\xff"),
            ("d/ü".encode(), "d/ü".encode()),
        ],
    )
    def test_are_cleaned(self, name: bytes, path: bytes) -> None:
        for style in STYLES:
            assert read_one(layer(entry(name, b"5", style=style))).path == path
        if path:
            assert read_one(layer(hardlink("h", name))).target == path
        assert read_one(layer(symlink("s", name))).target == name

    @pytest.mark.parametrize("style", STYLES[:2])
    def test_up_to_what_linux_takes(self, style: Style) -> None:
        component = b"\xe9" * 255
        path = b"/".join([component] * 16)
        assert len(path) == 4095
        for name in (component, path, path[:-256] + b"/b" * 128 + b"c"):
            assert read_one(layer(file(name, style=style))).path == name

    @pytest.mark.parametrize(
        ("name", "message"),
        [(b"d/" + b"n" * 256, "component of its path has 256 bytes"), (b"d/" * 2048 + b"e", "4097 bytes")],
    )
    def test_no_longer(self, name: bytes, message: str) -> None:
        with pytest.raises(FormatError, match=message):
            read_all(layer(file(name)))
        with pytest.raises(FormatError, match=message):
            read_all(layer(hardlink("h", name)))

    def test_with_a_prefix(self) -> None:
        assert read_one(layer(file(LONG, style="ustar"))).path == LONG
        full = b"p" * 155 + b"/" + b"n" * 100
        assert read_one(layer(file(full, style="ustar"))).path == full

    def test_the_prefix_field_has_other_uses_in_other_formats(self) -> None:
        times = b"14000000000\x0014000000000\x00"
        assert read_one(layer(header(b"n", b"0", magic=b"ustar  \0", prefix=times))).path == b"n"
        assert read_one(layer(header(b"n", b"0", magic=bytes(8), prefix=b"p"))).path == b"n"
        # Go before 1.8 wrote a prefix into headers that it called GNU's.
        assert read_one(layer(header(b"n", b"0", magic=b"ustar  \0", prefix=b"dir/sub"))).path == b"dir/sub/n"
        assert read_one(layer(header(b"n", b"0", magic=b"ustar  \0", prefix=b"\xff\xfe"))).path == b"n"

    def test_stars_prefix_is_shorter(self) -> None:
        made = bytearray(header(b"n", b"0", prefix=b"p" * 131 + b"14000000000\x0014000000000\x00"))
        made[508:512] = b"tar\0"
        made[148:156] = b" " * 8
        made[148:156] = b"%06o\0 " % sum(made)
        assert read_one(layer(bytes(made))).path == b"p" * 131 + b"/n"

    def test_a_gnu_name_goes_before_a_pax_path_before_the_header(self) -> None:
        pax = pax_header(pax_records({"path": b"pax", "linkpath": b"paxlink"}))
        own = header(b"own", b"2", linkname=b"ownlink")
        gnu = gnu_long(b"gnu", b"L") + gnu_long(b"gnulink", b"K")
        for before, path, target in (
            (b"", b"own", b"ownlink"),
            (pax, b"pax", b"paxlink"),
            (gnu, b"gnu", b"gnulink"),
            (gnu + pax, b"gnu", b"gnulink"),
            (pax + gnu, b"gnu", b"gnulink"),
            (pax + gnu_long(b"", b"L") + gnu_long(b"\0x", b"K"), b"pax", b"paxlink"),
        ):
            e = read_one(layer(before, own))
            assert (e.path, e.target) == (path, target)

    def test_a_gnu_name_ends_at_its_nul(self) -> None:
        body = b"name\0rest"
        data = header(b"././@LongLink", b"L", size=len(body), magic=b"ustar  \0") + padded(body)
        assert read_one(layer(data, header(b"own", b"0"))).path == b"name"


def with_field(at: int, field: bytes) -> bytes:
    """A file's header with one field set to any bytes, and a right checksum."""
    made = bytearray(header(b"n", b"0", mtime=7, uid=7, gid=7))
    made[at : at + len(field)] = field
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


UID, MTIME = 108, 136


class TestNumbers:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            (b"0000644\0", 0o644),
            (b"   644 \0", 0o644),
            (b"644 \0   ", 0o644),
            (b"\0\0 644\0\0", 0o644),
            (b"00000644", 0o644),
            (b"12\0zzzzz", 0o12),
            (b"        ", 0),
            (bytes(8), 0),
            (b"\x80\0\0\0\0\0\0\x05", 5),
            (b"\x80\0\0\0\xff\xff\xff\xff", 2**32 - 1),
        ],
    )
    def test_in_a_field(self, field: bytes, value: int) -> None:
        assert read_one(layer(with_field(UID, field))).uid == value

    @pytest.mark.parametrize(
        "field",
        [
            b"0000688\0",
            b"-000001\0",
            b"+000001\0",
            b"0o00001\0",
            b"1_0\0\0\0\0\0",
            b"0 1\0\0\0\0\0",
            b"0x12\0\0\0\0",
            b"abcdefgh",
        ],
    )
    def test_no_owner(self, field: bytes) -> None:
        with pytest.raises(FormatError, match=r"tar entry 'n' at offset 0: b'"):
            read_all(layer(with_field(UID, field)))

    @pytest.mark.parametrize(
        ("field", "uid"),
        [
            (b"\xff" * 8, ID_KEPT),  # -1
            (b"\xff" * 7 + b"\xfe", 2**32 - 2),  # -2
            (b"\x80\0\0\x01\0\0\0\x05", 5),  # 2**32 + 5
            (b"\x80\0\0\0\xff\xff\xff\xff", ID_KEPT),
        ],
    )
    def test_owners_are_taken_as_the_kernel_takes_them(self, field: bytes, uid: int) -> None:
        assert read_one(layer(with_field(UID, field))).uid == uid
        decimal = str(int.from_bytes(field[4:], "big") - 2**32 if field[0] == 0xFF else uid).encode()
        assert read_one(layer(file("f", pax={"uid": decimal}))).uid == uid

    @pytest.mark.parametrize(
        ("field", "mtime"),
        [
            (b"\xff" * 12, 0),  # -1
            (b"\x80" + bytes(6) + b"\x01\0\0\0\0", 2**32),
            (b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7, 0),  # year 292277026596
            (b"77777777777\0", 8**11 - 1),
            (b"777777777777", 0),  # in 4147
        ],
    )
    def test_of_times_outside_of_what_containerd_sets(self, field: bytes, mtime: int) -> None:
        e = read_one(layer(with_field(MTIME, field)))
        assert (e.mtime, e.mtime_nsec) == (mtime, 0)

    def test_larger_than_64_bits_are_refused(self) -> None:
        with pytest.raises(FormatError, match="not a number"):
            read_all(layer(with_field(MTIME, b"\x80\0\0\x01" + bytes(8))))

    def test_a_negative_size_is_refused(self) -> None:
        with pytest.raises(FormatError, match="size of -1 bytes"):
            read_all(layer(with_field(124, b"\xff" * 12)))

    def test_a_huge_size_is_truncation(self) -> None:
        with pytest.raises(FormatError, match="truncated"):
            read_all(layer(with_field(124, b"\x80\0\0\0\x7f" + b"\xff" * 7)))


class TestChecksum:
    def test_a_changed_byte_is_noticed(self) -> None:
        good = file("n", b"1")
        for at in range(512):
            bad = bytearray(good)
            bad[at] ^= 0x10
            if at not in range(148, 156):
                with pytest.raises(FormatError, match=r"at offset 0: its checksum is \d+, not \d+"):
                    read_all(bytes(bad))

    def test_each_header_is_checked_even_with_a_known_checksum_field(self) -> None:
        good = header(b"n", b"0")
        bad = good.replace(b"n", b"m", 1)
        assert len(read_all(layer(good, good))) == 2
        with pytest.raises(FormatError, match="at offset 512: its checksum"):
            read_all(layer(good, bad))

    def test_the_sum_of_signed_bytes_is_taken_too(self) -> None:
        made = bytearray(header(b"caf\xe9", b"0"))
        made[148:156] = b" " * 8
        made[148:156] = b"%06o\0 " % (sum(made) - 256)
        assert read_one(layer(bytes(made))).path == b"caf\xe9"
        assert [e.path for e, _ in read_all(layer(bytes(made), bytes(made)))] == [b"caf\xe9"] * 2

    def test_garbage_is_not_a_header(self) -> None:
        for garbage in (b"\xff" * 512, b"#!/bin/sh\n".ljust(512, b"x"), bytes(511) + b"\1"):
            with pytest.raises(FormatError, match="at offset 0"):
                read_all(garbage)


class TestPax:
    def read(self, body: bytes, own: bytes | None = None) -> TarEntry:
        return read_one(layer(pax_header(body), own or header(b"own", b"0", uid=7, gid=7, mtime=7)))

    def test_values_may_hold_anything(self) -> None:
        values = {
            "security.capability": b"\x01\0\0\x02\n12 path=evil\n\0",
            "user.big": b"\n\0=" * 21845 + b"\n",
            "user.empty": b"",
            "user.name=with\nnewline and space": b"1",
            "user.\xe9": b"2",
            "other.namespace": b"3",
        }
        (e, content) = read_all(layer(file("f", b"data", xattrs=values)), piece=1000)[0]
        assert content == b"data"
        # A key ends at its first "=".
        del values["user.name=with\nnewline and space"]
        expected = {key.encode(): value for key, value in values.items()}
        expected[b"user.name"] = b"with\nnewline and space=1"
        assert e.xattrs == expected
        assert e.path == b"f"

    def test_many_large_xattrs(self) -> None:
        values = {f"user.{n}": bytes([n]) * 65536 for n in range(20)}
        assert read_one(layer(file("f", xattrs=values))).xattrs == {k.encode(): v for k, v in values.items()}

    def test_records_replace_the_headers_fields(self) -> None:
        body = pax_records(
            {"path": b"p/q", "uid": b"3000000", "gid": b"4294967295", "size": b"3", "mtime": b"1.5"}
        )
        ((e, content),) = read_all(layer(pax_header(body), header(b"own", b"0", size=0), padded(b"abc")))
        assert (e.path, e.uid, e.gid, e.size, e.mtime, e.mtime_nsec) == (
            b"p/q", 3_000_000, 2**32 - 1, 3, 1, 500_000_000,
        )  # fmt: skip
        assert content == b"abc"

    def test_empty_values_keep_the_headers(self) -> None:
        body = pax_records({"path": b"", "uid": b"", "gid": b"", "size": b"", "mtime": b"", "linkpath": b""})
        e = self.read(body)
        assert (e.path, e.uid, e.gid, e.size, e.mtime) == (b"own", 7, 7, 0, 7)

    def test_the_last_of_equal_keys_counts(self) -> None:
        e = self.read(pax_records([("path", b"a"), ("path", b"b"), ("uid", b"1"), ("uid", b"2")]))
        assert (e.path, e.uid) == (b"b", 2)

    def test_an_empty_header_says_nothing(self) -> None:
        assert self.read(b"").path == b"own"

    def test_other_records_are_ignored(self) -> None:
        e = self.read(
            pax_records(
                {
                    "LIBARCHIVE.xattr.user.a": b"MQ==",
                    "SCHILY.devmajor": b"x",
                    "atime": b"1.5",
                    "uname": b"root",
                    "GNU.sparse.name": b"not sparse",
                    "comment": b"\0",
                }
            )
        )
        assert (e.path, e.xattrs) == (b"own", {})

    def test_global_records_are_read_and_ignored(self) -> None:
        g = pax_header(pax_records({"path": b"evil", "uid": b"5", "comment": b"x" * 600}), b"g")
        x = pax_header(pax_records({"gid": b"9"}))
        for data, gid in (
            (layer(g, file("f", b"1")), 0),
            (layer(g, x, file("f", b"1")), 9),
            (layer(x, g, file("f", b"1")), 0),  # the records before a global header are lost
        ):
            (global_header, _), (e, content) = read_all(data)
            assert (global_header.kind, global_header.path) == (GLOBAL_HEADER, b"evil")
            assert (e.path, e.uid, e.gid, content) == (b"f", 0, gid, b"1")
        assert [e.kind for e, _ in read_all(layer(file("f"), g))] == [REGULAR, GLOBAL_HEADER]
        with pytest.raises(FormatError, match="PAX record"):
            read_all(layer(pax_header(b"garbage", b"g"), file("f")))

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (b"0", (0, 0)),
            (b"12", (12, 0)),
            (b"12.", (12, 0)),
            (b"12.000000001", (12, 1)),
            (b"12.1234567899", (12, 123456789)),
            (b"-0", (0, 0)),
            (b"-0.5", (0, 0)),
            (b"-1", (0, 0)),
            (b"-1.5", (0, 0)),
            (b"9223372036.854775807", (9223372036, 854775807)),
            (b"9223372036.854775808", (0, 0)),
            (b"99999999999", (0, 0)),
        ],
    )
    def test_times(self, value: bytes, expected: tuple[int, int]) -> None:
        e = self.read(pax_records({"mtime": value}))
        assert (e.mtime, e.mtime_nsec) == expected

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("mtime", b"x"),
            ("atime", b"x"),
            ("ctime", b"1.x"),
            ("mtime", b"1e-05"),
            ("mtime", b"1.x"),
            ("mtime", b".5"),
            ("mtime", b"--1"),
            ("mtime", b"1" * 30),
            ("uid", b"--1"),
            ("uid", b"9223372036854775808"),
            ("gid", b"0x1"),
            ("gid", b" 1"),
            ("gid", b"1_0"),
            ("size", b"-1"),
            ("size", b"9223372036854775808"),
            ("path", b"a\0b"),
            ("linkpath", b"a\0b"),
            ("uname", b"a\0b"),
            ("SCHILY.xattr.user.\0", b"a"),
            ("SCHILY.xattr.user.\0", b""),
        ],
    )
    def test_bad_values_are_refused(self, key: str, value: bytes) -> None:
        with pytest.raises(FormatError, match="tar entry"):
            self.read(pax_records({key: value}))

    @pytest.mark.parametrize(
        "body",
        [
            b"x",
            b"\n",
            b" path=a\n",
            b"9 path=a",
            b"9 path=a\0",
            b"99 path=a\n",
            b"3 path=a\n",
            b"0 path=a\n",
            b"-9 path=a\n",
            b"+9 path=a\n",
            b"9  path=a\n",
            b"7 path\n",
            b"5 =a\n",
            b"4 =\n",
            b"2 ",
            b"1",
            b"12345678901234567890123456789 a=b\n",
            b"10 path=a\n\0",
            b"10 path=a\n\n",
            b"9path=abc\n",
        ],
    )
    def test_malformed_records_are_refused(self, body: bytes) -> None:
        with pytest.raises(FormatError, match="at offset 0: its PAX record at byte"):
            self.read(body)


def test_zeros_are_zeros() -> None:
    assert ZEROS == bytes(1 << 20)
