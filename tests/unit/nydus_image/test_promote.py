"""`promote` writes what a merge of that one layer writes, to the byte, whenever `create` says that it may."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from nydus_service.errors import FormatError, NotFoundError
from nydus_service.nydus_image.create import CreateOptions, CreateResult, create
from nydus_service.nydus_image.merge import MergeOptions, merge
from nydus_service.nydus_image.promote import promote
from nydus_service.rafs import blob as sections
from nydus_service.rafs.blob import locate, run
from tests.layers import char_device, directory, fifo, file, hardlink, layer, opaque, symlink, whiteout
from tests.options import grouped

BLOB_ID = "ab" * 32
XATTRS = {"security.capability": b"\1\0"}


def built(directory: Path, *entries: bytes, **options: Any) -> tuple[CreateResult, Path]:
    """A layer's bootstrap, named by an id; and what `create` says of it."""
    tar, bootstrap = directory / "tar", directory / BLOB_ID
    tar.write_bytes(layer(*entries))
    result = create(
        CreateOptions(str(tar), directory / "blob", bootstrap=bootstrap, blob_toc=True, **grouped(options))
    )
    return result, bootstrap


def assert_as_merged(directory: Path, bootstrap: Path, prefetch: tuple[tuple[bytes, ...], ...] = ()) -> None:
    by_merge = merge(MergeOptions((bootstrap,), directory / "merged", prefetch=prefetch))
    by_promote = promote(bootstrap, directory / "promoted")
    assert (directory / "promoted").read_bytes() == (directory / "merged").read_bytes()
    assert (by_promote.blob_ids, by_promote.compressor) == (by_merge.blob_ids, by_merge.compressor)


@pytest.mark.parametrize("root", [(), (directory("", mode=0o700, uid=7, xattrs=XATTRS),)])
@pytest.mark.parametrize("prefetch", [(), ((),), ((b"d",), (b"d", b"f"))])
def test_a_layer_of_all_kinds(
    tmp_path: Path, root: tuple[bytes, ...], prefetch: tuple[tuple[bytes, ...], ...]
) -> None:
    result, bootstrap = built(
        tmp_path,
        *root,
        directory("d", mode=0o2755, xattrs=XATTRS),
        file("d/f", b"data" * 4000, uid=1000, xattrs=XATTRS),
        hardlink("d/g", "d/f"),
        directory("d", mode=0o700),
        symlink("s", "d/f"),
        char_device("c", 1, 3),
        fifo("p"),
        file("empty"),
        prefetch=prefetch,
    )
    assert result.single_layer
    assert_as_merged(tmp_path, bootstrap, prefetch)


@pytest.mark.parametrize("entries", [(), (directory("d"),), (file("empty"),)])
def test_a_layer_without_content(tmp_path: Path, entries: tuple[bytes, ...]) -> None:
    result, bootstrap = built(tmp_path, *entries)
    assert result.single_layer
    assert_as_merged(tmp_path, bootstrap)


@pytest.mark.parametrize(
    "entries",
    [
        (whiteout("f"),),
        (directory("d"), opaque("d")),
        (file("d/f", b"x"),),
        (hardlink("l", "below"),),
        (file("f", b"gone"), file("f")),
        (symlink("f", "g"), directory("f")),
    ],
    ids=["whiteout", "opaque", "implied", "lower link", "unused content", "replaced by a directory"],
)
def test_what_needs_a_merge_does_not_stand_alone(tmp_path: Path, entries: tuple[bytes, ...]) -> None:
    result, _ = built(tmp_path, *entries)
    assert not result.single_layer


KINDS = st.sampled_from(["directory", "file", "symlink", "hardlink", "fifo"])


@st.composite
def entries_of_one_layer(draw: st.DrawFn) -> list[bytes]:
    """Entries that come after the ones they name, and replace directories only: most others need a merge."""
    entries: list[bytes] = []
    directories, files, others = [""], [], []
    for kind in draw(st.lists(KINDS, max_size=8)):
        path = draw(st.sampled_from(directories)) + draw(st.sampled_from("abcd"))
        if path in files or path in others or (kind != "directory" and f"{path}/" in directories):
            continue
        match kind:
            case "directory":
                entries.append(directory(path))
                directories.append(f"{path}/")
            case "file":
                entries.append(file(path, draw(st.binary(max_size=3))))
                files.append(path)
            case "hardlink" if files:
                entries.append(hardlink(path, draw(st.sampled_from(files))))
                others.append(path)
            case "symlink":
                entries.append(symlink(path, "a"))
                others.append(path)
            case _:
                entries.append(fifo(path))
                others.append(path)
    return entries


@given(entries_of_one_layer())
@example([directory("a"), file("a/a", b"x"), hardlink("a/b", "a/a")])
def test_any_single_layer(entries: list[bytes]) -> None:
    with TemporaryDirectory() as name:
        try:
            result, bootstrap = built(Path(name), *entries)
        except FormatError:
            assume(False)
        assume(result.single_layer)
        assert_as_merged(Path(name), bootstrap)


def test_an_inlined_bootstrap(tmp_path: Path) -> None:
    """As it comes out of a blob: its rows have a placeholder for the id."""
    tar, blob = tmp_path / "tar", tmp_path / "blob"
    tar.write_bytes(layer(directory("d"), file("d/f", b"data")))
    options = CreateOptions(str(tar), blob, inline_meta=True)
    assert create(options).single_layer
    data = blob.read_bytes()
    place = run(locate(sections.BOOTSTRAP, len(data)), lambda offset, size: data[offset : offset + size])
    bootstrap = tmp_path / BLOB_ID
    bootstrap.write_bytes(data[place.offset : place.offset + place.size])
    assert_as_merged(tmp_path, bootstrap)


def cut(data: bytearray) -> bytearray:
    return data[:-1]


def without_magic(data: bytearray) -> bytearray:
    data[1024] ^= 1
    return data


def root_elsewhere(data: bytearray) -> bytearray:
    data[1024 + 40 : 1024 + 44] = b"\xff\xff\xff\x00"
    return data


@pytest.mark.parametrize("damage", [cut, without_magic, root_elsewhere, lambda data: bytearray()])
def test_a_damaged_bootstrap(tmp_path: Path, damage: Callable[[bytearray], bytearray]) -> None:
    _, bootstrap = built(tmp_path, file("f", b"x"))
    bootstrap.write_bytes(damage(bytearray(bootstrap.read_bytes())))
    with pytest.raises(FormatError, match=BLOB_ID):
        promote(bootstrap, tmp_path / "promoted")
    assert not (tmp_path / "promoted").exists()


def test_no_bootstrap(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no-such"):
        promote(tmp_path / "no-such", tmp_path / "promoted")
