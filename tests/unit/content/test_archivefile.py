"""Archives of images: which kind, which blobs, and the bytes of the one that we write."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nydus_service.content.archivefile import ArchiveFile, BlobSource, write_archive
from nydus_service.content.store import UnexpectedContent
from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.oci.digest import Digest
from nydus_service.oci.document import Index
from nydus_service.oci.mediatypes import OCI_INDEX
from tests.unit.content.tars import docker_files, tar

MARKER = b'{"imageLayoutVersion":"1.0.0"}'
INDEX = b'{"schemaVersion":2,"manifests":[]}'
CONTENT = b"content" * 1000
BLOB = f"blobs/sha256/{Digest.of(CONTENT).hex}"


def test_a_layout(tmp_path: Path) -> None:
    path = tar(tmp_path / "t", {"./oci-layout": MARKER, "./index.json": INDEX, f"./{BLOB}": CONTENT})
    archive = ArchiveFile(path)
    blob = archive.blobs[Digest.of(CONTENT)]
    assert archive.size(blob) == len(CONTENT)
    assert archive.read(blob, 7, 7) == b"content"
    assert not archive.is_docker
    archive.close()


def test_other_files_are_no_blobs(tmp_path: Path) -> None:
    others = {"blobs/sha256/short": b"", "blobs/x": b"", f"other/sha256/{'a' * 64}": b"", f"{BLOB}/x": b""}
    archive = ArchiveFile(tar(tmp_path / "t", {"oci-layout": MARKER, "index.json": INDEX, **others}))
    assert archive.blobs == {}
    archive.close()


def test_a_docker_archive(tmp_path: Path) -> None:
    archive = ArchiveFile(tar(tmp_path / "t", docker_files()))
    assert archive.is_docker
    assert len(archive.blobs) == 4
    for digest, blob in archive.blobs.items():
        assert Digest.of(archive.read(blob, 0, archive.size(blob))) == digest
    archive.close()


def test_what_docker_saves_today_is_a_layout(tmp_path: Path) -> None:
    archive = ArchiveFile(tar(tmp_path / "t", {**docker_files(), "oci-layout": MARKER, "index.json": INDEX}))
    assert not archive.is_docker
    archive.close()


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"a": b""}, "not an archive of images: it has neither oci-layout nor manifest"),
        ({"oci-layout": MARKER}, r"'index\.json' is missing"),
        ({"index.json": INDEX}, "neither"),
        ({"oci-layout": MARKER, "index.json": b"[]"}, "not a JSON object"),
        ({"oci-layout": b"", "index.json": INDEX}, "not a JSON document"),
    ],
)
def test_what_is_no_archive(tmp_path: Path, files: dict[str, bytes], what: str) -> None:
    with pytest.raises(FormatError, match=what):
        ArchiveFile(tar(tmp_path / "t", files))


def test_a_later_version(tmp_path: Path) -> None:
    later = {"oci-layout": json.dumps({"imageLayoutVersion": "2"}).encode(), "index.json": INDEX}
    with pytest.raises(UnsupportedError, match="version '2'"):
        ArchiveFile(tar(tmp_path / "t", later))


def source(data: bytes, size: int | None = None) -> BlobSource:
    def pieces() -> Iterator[bytes]:
        yield data[:100]
        yield data[100:]

    return BlobSource(Digest.of(data), len(data) if size is None else size, pieces)


def written(*blobs: BlobSource) -> bytes:
    target = io.BytesIO()
    write_archive(target, Index.new((), OCI_INDEX), blobs)
    return target.getvalue()


def test_written_ones_are_read_back(tmp_path: Path) -> None:
    contents = [b"", b"x" * 512, CONTENT]
    path = tmp_path / "t"
    path.write_bytes(written(*map(source, contents)))
    archive = ArchiveFile(path)
    assert {archive.read(blob, 0, archive.size(blob)) for blob in archive.blobs.values()} == set(contents)
    archive.close()


def test_the_same_bytes_in_any_order() -> None:
    contents = [b"1", b"2", b"3"]
    assert written(*map(source, contents)) == written(*map(source, reversed(contents)))


def test_nothing_of_this_machine_is_in_it() -> None:
    data = written(source(CONTENT))
    assert len(data) % tarfile.RECORDSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["blobs", "blobs/sha256", BLOB, "index.json", "oci-layout"]
    assert {(member.uid, member.gid, member.mtime, member.uname, member.gname) for member in members} == {
        (0, 0, 0, "", "")
    }
    assert [member.mode for member in members] == [0o755, 0o755, 0o644, 0o644, 0o644]
    # If a new Python's tarfile changes this, archives differ by the Python that wrote them.
    assert Digest.of(data) == "sha256:e506880bd8756d7ca38d522ba34d1175598c69d5a7d66fcd946c9bdfcb45e3fc"


def test_a_blob_of_another_size_is_refused() -> None:
    with pytest.raises(UnexpectedContent, match="7000 bytes were written, not 7001"):
        written(source(CONTENT, len(CONTENT) + 1))
