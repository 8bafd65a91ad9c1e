import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import zstandard

from nydus_service.errors import NydusServiceError
from nydus_service.sample.files import MachineFile, Root, take_files
from nydus_service.sample.tarwriter import (
    Compression,
    Entry,
    machine_entries,
    make_directory,
    make_entry,
    with_parents,
    write_layer,
)


def written(entries: list[Entry], compression: Compression) -> tuple[bytes, str]:
    pieces: list[bytes] = []
    summary = write_layer(entries, compression, pieces.append)
    return b"".join(pieces), summary.diff_hex


def opened(entries: list[Entry]) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(written(entries, "none")[0]))


def decompressed(data: bytes, compression: Compression) -> bytes:
    if compression == "gzip":
        return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if compression == "zstd" else data


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_compresses_and_tells_the_digest_of_the_plain_tar(compression: Compression) -> None:
    stored, diff_hex = written([make_entry("a", content=bytes(1 << 20))], compression)
    plain = decompressed(stored, compression)
    assert hashlib.sha256(plain).hexdigest() == diff_hex
    assert tarfile.open(fileobj=io.BytesIO(plain)).getnames() == ["a"]


def test_the_same_entries_give_the_same_bytes() -> None:
    xattrs = {"user.b": "1", "user.a": "2"}
    entries = [make_directory("d"), make_entry("d/a", content=b"x" * 100_000, xattrs=xattrs)]
    assert written(entries, "gzip") == written(entries, "gzip")


def test_xattrs_are_pax_records_whatever_bytes_they_hold() -> None:
    capability = "\x01\x00\x00\x02\x00\x20" + "\x00" * 14
    tar = opened([make_entry("a", xattrs={"security.capability": capability, "user.n": "two\nlines"})])
    headers = tar.getmember("a").pax_headers
    assert headers["SCHILY.xattr.security.capability"] == capability
    assert headers["SCHILY.xattr.user.n"] == "two\nlines"


def test_machine_files_get_their_directories_hard_links_and_owner(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("content")
    (tmp_path / "d" / "b").hardlink_to(tmp_path / "d" / "a")
    (tmp_path / "d" / "c").symlink_to("a")
    tar = opened(list(with_parents(machine_entries(take_files([Root(str(tmp_path), "usr/x")], 10_000)))))
    assert tar.getnames() == ["usr", "usr/x", "usr/x/d", "usr/x/d/a", "usr/x/d/b", "usr/x/d/c"]
    assert tar.getmember("usr/x/d/b").islnk()
    assert tar.getmember("usr/x/d/c").linkname == "a"
    assert {(member.uid, member.gid, member.uname) for member in tar} == {(0, 0, "")}
    content = tar.extractfile("usr/x/d/b")
    assert content is not None
    assert content.read() == b"content"


def test_parents_come_first_unless_they_are_described_or_to_be_implied() -> None:
    entries = [make_directory("./"), make_entry("a/b/c"), make_directory("d", 0o700), make_entry("d/e/f")]
    tar = opened(list(with_parents(entries, implied=frozenset({"d/e"}))))
    assert tar.getnames() == [".", "a", "a/b", "a/b/c", "d", "d/e/f"]
    assert tar.getmember("d").mode == 0o700


def test_times_to_the_nanosecond_are_pax_records() -> None:
    file = MachineFile("", "a", 0o644, 0, 1_600_000_000_123_456_789, "b", None)
    (plain,) = machine_entries([file])
    assert plain.info.pax_headers == {}
    (exact,) = machine_entries([file], nanoseconds=True)
    assert exact.info.pax_headers == {"mtime": "1600000000.123456789"}


@pytest.mark.parametrize("change", ["removed", "shorter"])
def test_a_file_that_changes_meanwhile_is_told_by_its_name(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a"
    path.write_text("content")
    files = take_files([Root(str(tmp_path), "x")], 10_000)
    path.unlink() if change == "removed" else path.write_text("")
    with pytest.raises(NydusServiceError, match=r"copy '.*/a'"):
        written(list(machine_entries(files)), "none")
