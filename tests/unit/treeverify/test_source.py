"""How headers are understood: names, owners, times, devices, PAX; and what is refused by name."""

import io
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IMODE

import pytest
import zstandard
from blake3 import blake3

from nydus_service.errors import FormatError
from nydus_service.tarsplit.recorder import END, HEAD, MAGIC, RECORD
from nydus_service.treeverify.apply import Overlay, SourceInode
from nydus_service.treeverify.source import apply_layer
from nydus_service.treeverify.tarsplit import TarSplitReader
from tests.layers import (
    BLOCK,
    Style,
    block_device,
    char_device,
    directory,
    entry,
    fifo,
    file,
    gnu_long,
    gnu_sparse,
    hardlink,
    header,
    layer,
    number,
    padded,
    pax_header,
    pax_records,
    pax_sparse,
    symlink,
)
from tests.unit.treeverify.trees import CHUNK, files, names, overlay_of, tar_split_of


def only(*entries: bytes) -> SourceInode:
    """The one file that a layer of these entries makes."""
    [node] = files(overlay_of(layer(*entries))).values()
    return node


def with_field(block: bytes, at: int, field: bytes) -> bytes:
    """A header with one field changed and the checksum made right."""
    changed = block[:at] + field + block[at + len(field) :]
    return changed[:148] + b"%06o\0 " % (sum(changed[:BLOCK]) - sum(changed[148:156]) + 256) + changed[156:]


def test_every_type() -> None:
    tar = layer(
        directory("d", mode=0o1777),
        file("f", b"abc", mode=0o4755),
        symlink("s", "../x"),
        char_device("c", 5, 300),
        block_device("b", 0xFFF, 0xFFFFF),
        fifo("p"),
    )
    found = files(overlay_of(tar))
    kinds = {name: node.mode & 0o170000 for name, node in found.items()}
    assert kinds == {"d": S_IFDIR, "f": S_IFREG, "s": S_IFLNK, "c": S_IFCHR, "b": S_IFBLK, "p": S_IFIFO}
    assert (S_IMODE(found["d"].mode), S_IMODE(found["f"].mode)) == (0o1777, 0o4755)
    assert (found["f"].size, found["f"].digests) == (3, blake3(b"abc").digest())
    assert found["s"].target == b"../x"
    assert found["c"].rdev == 300 % 256 | 5 << 8 | 300 // 256 << 20
    assert found["b"].rdev == 0xFFFFFFFF


def test_a_fifo_has_no_device_number() -> None:
    assert only(entry("p", b"6", device=(1, 2))).rdev == 0


def test_blank_device_numbers_are_zero() -> None:
    assert only(entry("c", b"3", device=None)).rdev == 0


def test_v7_has_no_device_numbers() -> None:
    block = header(b"c", b"3", device=(1, 3))
    assert only(block).rdev == 0x103
    assert only(with_field(block, 257, bytes(8))).rdev == 0


class TestNames:
    LONG = "d" * 120 + "/" + "n" * 120

    @pytest.mark.parametrize("style", ["pax", "gnu", "ustar"])
    def test_that_are_long(self, style: Style) -> None:
        name = self.LONG if style != "ustar" else self.LONG[30:-30]
        tar = entry(name, b"0", b"x", style=style)
        assert names(overlay_of(layer(tar)))[-1] == name

    def test_of_star_have_a_shorter_prefix(self) -> None:
        block = header(b"n", b"0", prefix=b"p".ljust(131, b"\0") + b"00000000000\0")
        assert names(overlay_of(layer(with_field(block, 508, b"tar\0")))) == ["p", "p/n"]

    def test_of_gnu_have_times_in_place_of_a_prefix(self) -> None:
        block = header(b"n", b"0", prefix=b"14000000000\0", magic=b"ustar  \0")
        assert names(overlay_of(layer(block))) == ["n"]

    def test_of_gnu_have_a_prefix_if_old_go_wrote_them(self) -> None:
        block = header(b"n", b"0", prefix=b"some/long/path", magic=b"ustar  \0")
        assert "some/long/path/n" in names(overlay_of(layer(block)))
        block = header(b"n", b"0", prefix="é".encode() * 10, magic=b"ustar  \0")
        assert names(overlay_of(layer(block))) == ["n"]

    def test_of_v7_have_no_prefix(self) -> None:
        assert names(overlay_of(layer(header(b"n", b"0", prefix=b"p", magic=bytes(8))))) == ["n"]

    def test_gnu_goes_before_pax_before_the_header(self) -> None:
        gnu, pax, own = (
            gnu_long(b"gnu", b"L"),
            pax_header(pax_records({"path": b"pax"})),
            header(b"own", b"0"),
        )
        assert names(overlay_of(layer(gnu + pax + own))) == ["gnu"]
        assert names(overlay_of(layer(pax + gnu + own))) == ["gnu"]
        assert names(overlay_of(layer(pax + own))) == ["pax"]

    def test_of_targets_likewise(self) -> None:
        gnu, pax = gnu_long(b"gnu", b"K"), pax_header(pax_records({"linkpath": b"pax"}))
        own = header(b"l", b"2", linkname=b"own")
        assert [only(before + own).target for before in (gnu + pax, pax, b"")] == [b"gnu", b"pax", b"own"]

    def test_that_are_empty_change_nothing(self) -> None:
        assert names(overlay_of(layer(pax_header(pax_records({"path": b""})) + header(b"own", b"0")))) == [
            "own"
        ]

    def test_end_at_a_nul(self) -> None:
        assert names(overlay_of(layer(header(b"a\0b", b"0")))) == ["a"]

    def test_with_a_nul_in_pax_are_refused(self) -> None:
        with pytest.raises(FormatError, match="NUL in its path"):
            overlay_of(layer(pax_header(pax_records({"path": b"a/b\0c/d"})) + header(b"own", b"0")))


class TestOwners:
    def test_of_the_header(self) -> None:
        node = only(file("f", uid=1000, gid=2**32 - 2, style="gnu"))
        assert (node.uid, node.gid) == (1000, 2**32 - 2)

    @pytest.mark.parametrize(("uid", "found"), [(-2, 2**32 - 2), (2**32 + 5, 5), (-1, 0), (2**32 - 1, 0)])
    def test_are_taken_as_the_kernel_takes_them(self, uid: int, found: int) -> None:
        assert only(with_field(file("f"), 108, number(uid, 8))).uid == found
        assert only(file("f", uid=3, pax={"uid": b"%d" % uid})).uid == found

    def test_of_pax_go_first(self) -> None:
        node = only(file("f", uid=5, gid=6, pax={"uid": b"3000000000", "gid": b""}))
        assert (node.uid, node.gid) == (3000000000, 6)

    def test_may_be_padded_in_any_way(self) -> None:
        for field in (b"  17 \0\0\0", b"0000017\0", b"00000017", b"17\0junk\0", b"\x80\0\0\0\0\0\0\x0f"):
            assert only(with_field(file("f"), 108, field)).uid == 0o17

    def test_that_are_blank_are_root(self) -> None:
        assert only(with_field(with_field(file("f"), 108, bytes(8)), 116, b" " * 8)).uid == 0

    @pytest.mark.parametrize(
        "broken",
        [
            with_field(file("f"), 108, b"000008\0\0"),
            with_field(file("f"), 108, b"0x10\0\0\0\0"),
            with_field(file("f"), 108, b"-0000001"),
            with_field(file("f"), 108, b"1_0\0\0\0\0\0"),
            file("f", pax={"uid": b"--1"}),
            file("f", pax={"gid": b"one"}),
            with_field(file("f"), 136, b"\x80" + b"\xff" * 11),
        ],
    )
    def test_and_numbers_that_are_none_are_refused(self, broken: bytes) -> None:
        with pytest.raises(FormatError, match=r" \[tar entry 'f' at offset 0, layer layer0\]$"):
            overlay_of(layer(broken))


class TestTimes:
    @pytest.mark.parametrize(
        ("pax", "wanted"),
        [
            (b"1.5", (1, 500000000)),
            (b"1700000000.123456789", (1700000000, 123456789)),
            (b"1.1234567891111", (1, 123456789)),
            (b"7", (7, 0)),
            (b"7.", (7, 0)),
            (b"", (9, 0)),
            (b"0.000000001", (0, 1)),
            (b"-1", (0, 0)),
            (b"-0.5", (0, 0)),
            (b"-1.5", (0, 0)),
            (b"9223372036.854775807", (9223372036, 854775807)),
            (b"9223372036.854775808", (0, 0)),
            (b"99999999999999", (0, 0)),
        ],
    )
    def test_of_pax(self, pax: bytes, wanted: tuple[int, int]) -> None:
        node = only(file("f", mtime=9, pax={"mtime": pax}))
        assert (node.mtime, node.mtime_nsec) == wanted

    @pytest.mark.parametrize("pax", [b"one", b".5", b"1.x", b"1e9", b"--1", b"1.-5"])
    def test_of_pax_that_are_none_are_refused(self, pax: bytes) -> None:
        for key in ("mtime", "atime", "ctime"):
            with pytest.raises(FormatError, match=r"no decimal number|no time"):
                overlay_of(layer(file("f", pax={key: pax})))

    @pytest.mark.parametrize(("mtime", "wanted"), [(8**11 - 1, 8**11 - 1), (-1, 0), (9223372037, 0)])
    def test_of_the_header(self, mtime: int, wanted: int) -> None:
        assert only(file("f", mtime=mtime, style="gnu")).mtime == wanted


class TestPax:
    def test_of_repeated_records_the_last_counts(self) -> None:
        twice = [
            ("mtime", b"1"),
            ("mtime", b"2"),
            ("SCHILY.xattr.user.a", b"1"),
            ("SCHILY.xattr.user.a", b"2"),
        ]
        node = only(file("f", pax=twice))
        assert (node.mtime, node.xattrs) == (2, {b"user.a": b"2"})

    def test_of_several_headers_the_last_counts(self) -> None:
        first = pax_header(pax_records({"mtime": b"5", "SCHILY.xattr.user.a": b"1"}))
        second = pax_header(pax_records({"uid": b"6"}))
        node = only(first + second + header(b"f", b"0"))
        assert (node.mtime, node.uid, node.xattrs) == (0, 6, {})

    def test_values_may_hold_anything(self) -> None:
        value = b"\0\n9 uid=1\n=" + bytes(range(256))
        assert only(file("f", xattrs={"user.a": value})).xattrs == {b"user.a": value}

    def test_values_may_be_empty(self) -> None:
        assert only(file("f", xattrs={"user.a": b""})).xattrs == {b"user.a": b""}

    def test_holds_for_one_entry_only(self) -> None:
        found = files(overlay_of(layer(file("a", pax={"mtime": b"5.5", "uid": b"7"}), file("b"))))
        assert (found["b"].mtime, found["b"].mtime_nsec, found["b"].uid) == (0, 0, 0)


class TestSparse:
    @pytest.mark.parametrize(
        "sparse",
        [
            gnu_sparse("f", 20000, [(9000, b"data")]),
            pax_sparse("f", 20000, [(9000, b"data")], "0.0"),
            pax_sparse("f", 20000, [(9000, b"data")], "0.1"),
            pax_sparse("f", 20000, [(9000, b"data")], "1.0"),
        ],
    )
    def test_files_are_as_large_as_they_say(self, sparse: bytes) -> None:
        content = bytes(9000) + b"data" + bytes(10996)
        found = files(overlay_of(layer(sparse, file("g", b"g"))))
        assert sorted(found) == ["f", "g"]
        chunks = [content[at : at + CHUNK] for at in range(0, 20000, CHUNK)]
        assert found["f"].size == 20000
        assert found["f"].digests == b"".join(blake3(chunk).digest() for chunk in chunks)


class TestRefused:
    @pytest.mark.parametrize("target", [b"", b"t" * 4096])
    def test_symlinks_that_no_reader_can_serve(self, target: bytes) -> None:
        with pytest.raises(
            FormatError, match=rf"^a symlink with a target of {len(target)} .*\[tar entry 'l' at offset 0"
        ):
            overlay_of(layer(entry("l", b"2", target=target)))

    def test_the_message_has_layer_entry_and_offset(self) -> None:
        with pytest.raises(
            FormatError, match=r"^a hard link to 'gone'.* \[tar entry 'd/h' at offset 4096, layer layer1\]$"
        ):
            overlay_of(
                layer(file("ok")),
                layer(file("a", bytes(3000)), directory("d"), hardlink("d/h", "gone")),
            )


def crafted(*records: bytes, entries: int = 1, content: int = 0) -> bytes:
    """A tar-split that no recorder writes."""
    body = (
        HEAD.pack(MAGIC, CHUNK, 0)
        + b"".join(records)
        + RECORD.pack(0, 0)
        + END.pack(entries, content, 1024, 0)
    )
    return zstandard.ZstdCompressor(write_checksum=True).compress(body)


def recorded(headers: bytes, chunks: int = 0) -> bytes:
    return RECORD.pack(len(headers) // BLOCK, chunks) + headers + bytes(32 * chunks)


@pytest.mark.parametrize(
    ("tar_split", "problem"),
    [
        (crafted(recorded(bytes(BLOCK))), "its checksum is"),
        (crafted(recorded(b"x" * BLOCK)), "its checksum is missing"),
        (crafted(recorded(with_field(file("f"), 124, b"00000000089\0"))), "'00000000089'"),
        (crafted(recorded(with_field(file("f"), 156, b"Z"))), "unknown typeflag"),
        (crafted(recorded(file("f", b"x")[:BLOCK])), "0 chunks recorded for 1 bytes"),
        (crafted(recorded(file("f"), 1)), "1 chunks recorded for 0 bytes"),
        (crafted(recorded(pax_header(b"")[:BLOCK])), "unknown typeflag b'x'"),
        (
            crafted(recorded(header(b"x", b"x", size=5000) + file("f"))),
            "extension header of 5000 bytes leaves",
        ),
        (crafted(recorded(header(b"x", b"x", size=5) + padded(b"junk!") + file("f"))), "PAX record"),
        (
            crafted(recorded(file("f")), entries=2),
            "counts 2 entries with 0 bytes, their headers say 1 with 0",
        ),
        (
            crafted(recorded(file("f", b"x")[:BLOCK], 1), content=2),
            "with 2 bytes, their headers say 1 with 1",
        ),
    ],
)
def test_notes_that_contradict_themselves_are_refused(tar_split: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=rf"{problem}.*layer sha256:1\]$"):
        apply_layer(Overlay(), TarSplitReader(io.BytesIO(tar_split)), "sha256:1")


@pytest.mark.parametrize("at", range(0, BLOCK, 7))
def test_any_changed_byte_of_a_header_is_noticed(at: int) -> None:
    block = bytearray(file("name", mtime=5)[:BLOCK])
    block[at] ^= 0x40
    with pytest.raises(FormatError, match="checksum"):
        apply_layer(Overlay(), TarSplitReader(io.BytesIO(crafted(recorded(bytes(block))))), "x")


def test_notes_of_a_real_layer_are_as_many_as_its_entries() -> None:
    tar_split = TarSplitReader(io.BytesIO(tar_split_of(layer(*(file(str(n)) for n in range(50))))))
    apply_layer(overlay := Overlay(), tar_split, "x")
    assert len(names(overlay)) == tar_split.entries == 50
