"""Files appended to bootstrap layers: their names, and what is read."""

import os
from pathlib import Path

import pytest

from nydus_service.convert.appended import APPENDED_SIZE_MAX, AppendedFile, read_appended
from nydus_service.errors import NotFoundError, UnsupportedError, UsageError
from nydus_service.oci.digest import Digest


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("/etc/backend.json", "backend.json", "/etc/backend.json"),
        ("notes", "notes", "notes"),
        ("b.json=/etc/a=b", "b.json", "/etc/a=b"),
        ("/odd=dir/notes", "notes", "/odd=dir/notes"),
        (f"{'a' * 94}=x", "a" * 94, "x"),
    ],
)
def test_a_name_is_given_or_the_last_part_of_the_path(text: str, name: str, path: str) -> None:
    assert AppendedFile.parse(text) == AppendedFile(name, Path(path))


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "a/b", "-x", ".hidden", "a b", "ü", "a\n", "a\0", "a" * 95),
        *("image.boot", f"{0:064}.blob.meta"),
    ],
)
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError):
        AppendedFile(name, Path("x"))


async def test_what_is_read_is_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "two").write_bytes(b"2")
    files = [AppendedFile("b", tmp_path / "one"), AppendedFile("a", tmp_path / "two")]
    content = await read_appended(files)
    (tmp_path / "one").write_bytes(b"later")
    (tmp_path / "work").mkdir()
    written = await content.write(tmp_path / "work")
    assert [(name, path.read_bytes()) for name, path in written] == [("b", b"1"), ("a", b"2")]
    assert content.digests == {"b": Digest.of(b"1"), "a": Digest.of(b"2")}


async def test_what_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(APPENDED_SIZE_MAX)
    (tmp_path / "small").write_bytes(b"x")
    for name, error in (("absent", NotFoundError), ("fifo", UnsupportedError), (".", UnsupportedError)):
        with pytest.raises(error, match=str(tmp_path)):
            await read_appended([AppendedFile("x", tmp_path / name)])
    large, small = (AppendedFile(name, tmp_path / name) for name in ("large", "small"))
    assert await read_appended([large])
    with pytest.raises(UnsupportedError, match=r"more than 16777216 bytes together \[.*small\]"):
        await read_appended([large, small])
    with pytest.raises(UsageError, match="two files to append have one name"):
        await read_appended([small, small])
