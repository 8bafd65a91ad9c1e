"""Tar files read in place: what is taken, what is damage."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_service.content.tarindex import TarIndex
from nydus_service.errors import FormatError, UnsupportedError, UsageError
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import DOCUMENT_SIZE_MAX
from tests.unit.content.tars import tar

FILES = {"a": b"first", "dir/b": bytes(5000), "empty": b"", "x" * 150: b"long name"}


def contents(path: Path) -> dict[str, bytes]:
    files = TarIndex.open(path)
    try:
        return {name: files.read(span, 0, span.size) for name, span in files.files.items()}
    finally:
        files.close()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_files(tmp_path: Path, form: int) -> None:
    assert contents(tar(tmp_path / "t", FILES, format=form)) == FILES


def test_without_end_mark(tmp_path: Path) -> None:
    path = tar(tmp_path / "t", FILES)
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data + bytes(-len(data) % 512))
    assert contents(path) == FILES


def test_names_are_cleaned(tmp_path: Path) -> None:
    assert contents(tar(tmp_path / "t", {"./a": b"1", "d//b": b"2", "d/../c": b"3"})) == {
        "a": b"1",
        "d/b": b"2",
        "c": b"3",
    }


def test_the_last_of_two_counts(tmp_path: Path) -> None:
    path = tar(tmp_path / "t", {"a": b"first"})
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("a")
        member.size = 6
        archive.addfile(member, io.BytesIO(b"second"))
    assert contents(path) == {"a": b"second"}


def test_hard_links_are_followed_and_the_rest_left_out(tmp_path: Path) -> None:
    path = tar(tmp_path / "t", {"a": b"1"})
    with tarfile.open(path, "a") as archive:
        for name, kind, target in [
            ("hard", tarfile.LNKTYPE, "./a"),
            ("dangling", tarfile.LNKTYPE, "missing"),
            ("soft", tarfile.SYMTYPE, "/etc/passwd"),
            ("dir", tarfile.DIRTYPE, ""),
            ("fifo", tarfile.FIFOTYPE, ""),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    assert contents(path) == {"a": b"1", "hard": b"1"}


def test_parts_of_a_file(tmp_path: Path) -> None:
    files = TarIndex.open(tar(tmp_path / "t", {"before": b"xxx", "a": b"0123456789"}))
    span = files.files["a"]
    assert files.read(span, 2, 3) == b"234"
    assert files.read(span, 8, 100) == b"89"
    assert files.read(span, 10, 1) == files.read(span, 99, 1) == b""
    assert files.digest(span) == Digest.of(b"0123456789")
    files.close()


def test_it_is_read_as_it_was_opened(tmp_path: Path) -> None:
    path = tar(tmp_path / "t", {"a": b"old"})
    files = TarIndex.open(path)
    assert files.is_current()
    tar(tmp_path / "new", {"a": b"new"}).rename(path)
    assert not files.is_current()
    assert files.document("a") == b"old"
    path.unlink()
    assert not files.is_current()
    files.close()


def test_documents(tmp_path: Path) -> None:
    files = TarIndex.open(tar(tmp_path / "t", {"a": b"{}", "big": bytes(DOCUMENT_SIZE_MAX + 1)}))
    assert files.document("a") == b"{}"
    with pytest.raises(FormatError, match="'b' is missing"):
        files.document("b")
    with pytest.raises(FormatError, match=r"'big'.* too many"):
        files.document("big")
    files.close()


@pytest.mark.parametrize(
    ("data", "tool"), [(gzip.compress(b"x", mtime=0), "gzip"), (b"\x28\xb5\x2f\xfd....", "zstd")]
)
def test_compressed_ones_say_how_to_unpack_them(tmp_path: Path, data: bytes, tool: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match=f"{tool} -dc {path}"):
        TarIndex.open(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TarIndex.open(tmp_path / "missing")
    with pytest.raises(UsageError, match=f"write oci:{tmp_path}"):
        TarIndex.open(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="not a regular file"):
        TarIndex.open(tmp_path / "fifo")


@pytest.mark.parametrize("data", [b"", b"x", b"not a tar" * 1000])
def test_what_is_no_tar(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=str(path)):
        TarIndex.open(path)


def test_a_cut_file_is_damage(tmp_path: Path) -> None:
    path = tar(tmp_path / "t", {"a": bytes(3000), "b": bytes(3000)})
    os.truncate(path, 512 + 3072 + 512 + 100)
    with pytest.raises(FormatError, match="'b'"):
        TarIndex.open(path)


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    path = tar(tmp_path / "t", {"a": b"1", "b": b"2"})
    data = bytearray(path.read_bytes())
    data[1024] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(FormatError, match="offset 1024"):
        TarIndex.open(path)


@given(st.integers(0, 2047), st.integers(1, 255))
def test_any_flipped_byte_gives_files_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    path = tar(tmp_path_factory.mktemp("flipped") / "t", {"a": b"1", "b": b"2"})
    data = bytearray(path.read_bytes())
    data[at] ^= flip
    path.write_bytes(data)
    try:
        contents(path)
    except (FormatError, UnsupportedError):
        pass
