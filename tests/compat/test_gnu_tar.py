"""Tars written by GNU tar in each of its formats are read as what is on the disk."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from nydus_service.layertar.reader import DIRECTORY, FIFO, HARDLINK, REGULAR, SYMLINK
from tests.tools import require_tool
from tests.unit.layertar.reading import read_all

LONG = b"n" * 90 + b"/" + b"caf\xe9 \n" * 13
HOLES = 3 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that every format can hold but for the long names, which v7 cannot."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "dir").mkdir(mode=0o1775)
    (root / "dir/file").write_bytes(bytes(range(256)) * 100)
    (root / "dir/hard").hardlink_to(root / "dir/file")
    (root / "dir/soft").symlink_to("../some/where")
    (root / "empty").touch(mode=0o4711)
    os.mkfifo(root / "pipe", 0o640)
    with (root / "holes").open("wb") as file:
        file.write(b"begin")
        for at in range(1 << 16, HOLES, 1 << 17):
            file.seek(at)
            file.write(b"x" * 5000)
        file.truncate(HOLES)
    os.utime(root / "dir/file", ns=(0, 1_600_000_000_123_456_789))
    os.utime(root / "empty", (0, 5))
    return root


def add_long_names(root: Path) -> None:
    path = os.path.join(os.fsencode(root), LONG)
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(b"long")
    os.symlink(b"t" * 200, path + b".link")


def pack(root: Path, *options: str) -> bytes:
    tar = require_tool("tar", (1, 29))
    argv = [str(tar.path), "-C", str(root), "-c", *options, "."]
    return subprocess.run(argv, check=True, capture_output=True).stdout


def compare(root: Path, data: bytes, piece: int, *, sparse: bool = False, fractions: bool = False) -> None:
    """Hold every entry against the file on disk, and see that no file is missing."""
    seen = set()
    kinds = {
        stat.S_IFREG: REGULAR, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: SYMLINK, stat.S_IFIFO: FIFO
    }  # fmt: skip
    first_of_inode: dict[int, bytes] = {}
    for entry, content in read_all(data, piece):
        path = os.path.join(os.fsencode(root), entry.path)
        on_disk = os.lstat(path)
        seen.add(entry.path)
        assert (entry.mode, entry.uid, entry.gid) == (
            stat.S_IMODE(on_disk.st_mode),
            on_disk.st_uid,
            on_disk.st_gid,
        )
        mtime = divmod(on_disk.st_mtime_ns, 10**9)
        assert (entry.mtime, entry.mtime_nsec) == (mtime if fractions else (mtime[0], 0))
        if entry.kind == HARDLINK:
            assert first_of_inode[on_disk.st_ino] == entry.target
            continue
        first_of_inode[on_disk.st_ino] = entry.path
        assert entry.kind == kinds[stat.S_IFMT(on_disk.st_mode)]
        if entry.kind == SYMLINK:
            assert entry.target == os.readlink(path)
        if entry.kind == REGULAR:
            assert content == Path(os.fsdecode(path)).read_bytes()
        assert (entry.sparse is not None) == (sparse and entry.path == b"holes")
    assert seen == walk(root)


def walk(root: Path) -> set[bytes]:
    base = os.fsencode(root)
    found = {b""}
    for at, directories, files in os.walk(base):
        found |= {os.path.relpath(os.path.join(at, name), base) for name in directories + files}
    return found


@pytest.mark.parametrize("piece", [1000, 1 << 20])
@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu", "posix"])
def test_formats(tree: Path, form: str, piece: int) -> None:
    if form == "v7":
        (tree / "pipe").unlink()  # this format has no FIFOs
    if form in ("oldgnu", "gnu", "posix"):
        add_long_names(tree)
    compare(tree, pack(tree, f"--format={form}"), piece, fractions=form == "posix")


@pytest.mark.parametrize("piece", [1000, 1 << 20])
@pytest.mark.parametrize(
    "options",
    [
        ("--format=oldgnu",),
        ("--format=gnu",),
        *(("--format=posix", f"--sparse-version={version}") for version in ("0.0", "0.1", "1.0")),
    ],
)
def test_sparse_files(tree: Path, options: tuple[str, ...], piece: int) -> None:
    data = pack(tree, "--sparse", *options)
    if len(data) >= HOLES:
        pytest.skip("the file system of the temporary directory keeps no holes")
    compare(tree, data, piece, sparse=True, fractions="--format=posix" in options)


def test_xattrs(tree: Path) -> None:
    values = {"user.text": b"value", "user.binary": b"\n\0=\xff" * 100, "user.empty": b""}
    try:
        for name, value in values.items():
            os.setxattr(tree / "empty", name, value)
    except OSError as exc:
        pytest.skip(f"no user xattrs in the temporary directory: {exc}")
    data = pack(tree, "--format=posix", "--xattrs", "--xattrs-include=user.*")
    (found,) = [entry for entry, _ in read_all(data) if entry.path == b"empty"]
    assert found.xattrs == {name.encode(): value for name, value in values.items()}


def test_of_appended_archives_only_the_first_counts(tree: Path) -> None:
    one, two = pack(tree, "--format=gnu"), pack(tree, "--format=posix")
    assert len(read_all(one + two)) == len(read_all(one))
