"""`merge` as a function: ids, lists, what does not fit; how layers overlay is in rafs/test_overlay."""

from pathlib import Path
from typing import Any

import pytest

from nydus_service.errors import FormatError, UnsupportedError
from nydus_service.nydus_image.check import answer, load, report
from nydus_service.nydus_image.create import CreateOptions, create
from nydus_service.nydus_image.merge import InconsistentError, MergeOptions, blob_name, merge
from nydus_service.rafs.constants import BLOB_INLINED_FS_META
from nydus_service.rafs.reader import Bootstrap, read_bootstrap
from nydus_service.rafs.tree import walk
from tests.layers import directory, file, hardlink, layer
from tests.options import grouped

IDS = [f"{n}" * 64 for n in range(10)]


def make_layer(tmp_path: Path, index: int, *entries: bytes, **options: Any) -> Path:
    """A layer bootstrap as a converter keeps it: named by the blob's id."""
    tar = tmp_path / f"{index}.tar"
    tar.write_bytes(layer(*entries))
    bootstrap = tmp_path / IDS[index]
    create(
        CreateOptions(
            str(tar), tmp_path / f"{index}.blob", bootstrap=bootstrap, blob_toc=True, **grouped(options)
        )
    )
    return bootstrap


def merged(tmp_path: Path, *sources: Path, **lists: Any) -> Bootstrap:
    target = tmp_path / "merged"
    result = merge(MergeOptions(sources, target, **lists))
    bootstrap = read_bootstrap(target.read_bytes())
    assert result.blob_ids == [blob.blob_id for blob in bootstrap.blobs]
    return bootstrap


def test_blobs_are_named_by_their_bootstraps_files(tmp_path: Path) -> None:
    sources = [make_layer(tmp_path, n, file(f"f{n}", b"%d" % n)) for n in range(2)]
    image = merged(tmp_path, *sources)
    assert [blob.blob_id for blob in image.blobs] == IDS[:2]
    assert not any(blob.features & BLOB_INLINED_FS_META for blob in image.blobs)


@pytest.mark.parametrize(
    ("name", "blob_id"), [("ab", "ab"), ("ab.boot", "ab"), ("a.b.c", "a"), (".a.b", ".a"), (".a", ".a")]
)
def test_a_file_s_name_counts_up_to_its_first_dot(name: str, blob_id: str) -> None:
    assert blob_name(Path("/x.y") / name) == blob_id


def test_lists_overwrite_what_the_layers_say(tmp_path: Path) -> None:
    sources = [make_layer(tmp_path, n, file(f"f{n}", b"%d" % n)) for n in range(2)]
    image = merged(
        tmp_path,
        *sources,
        blob_digests=(b"\xaa" * 32, b"\xbb" * 32),
        blob_sizes=(11, 12),
        blob_toc_digests=(b"\1" * 32, b"\2" * 32),
        blob_toc_sizes=(5, 6),
    )
    rows = [(blob.blob_id, blob.compressed_size, blob.toc_digest, blob.toc_size) for blob in image.blobs]
    assert rows == [("aa" * 32, 11, b"\1" * 32, 5), ("bb" * 32, 12, b"\2" * 32, 6)]


def test_a_list_of_another_length_is_refused(tmp_path: Path) -> None:
    source = make_layer(tmp_path, 0, file("f"))
    with pytest.raises(FormatError, match="--blob-sizes has 2 items for 1 sources"):
        merged(tmp_path, source, blob_sizes=(1, 2))


def test_the_same_layer_twice_is_one_blob(tmp_path: Path) -> None:
    source = make_layer(tmp_path, 0, file("f", b"x"))
    upper = make_layer(tmp_path, 1, file(".wh.f"))
    image = merged(tmp_path, source, upper, source)
    assert [blob.blob_id for blob in image.blobs] == [IDS[0]]
    assert [path for path, _ in walk(image.root)] == [b"/", b"/f"]


def test_different_blobs_of_one_id_are_refused(tmp_path: Path) -> None:
    sources = [make_layer(tmp_path, n, file(f"f{n}", b"%d" % n * (n + 1))) for n in range(2)]
    with pytest.raises(FormatError, match="different blobs of the same id"):
        merged(tmp_path, *sources, original_blob_ids=("same", "same"))
    with pytest.raises(FormatError, match="1 to 64 bytes fit"):
        merged(tmp_path, *sources, original_blob_ids=("x" * 65, "y"))


def test_layers_of_different_chunk_sizes_or_owners_do_not_fit(tmp_path: Path) -> None:
    sources = [
        make_layer(tmp_path, 0, file("a", b"x")),
        make_layer(tmp_path, 1, file("b", b"x"), chunk_size=0x1000),
        make_layer(tmp_path, 2, file("c", b"x"), repeatable=True),
    ]
    for other in sources[1:]:
        with pytest.raises(InconsistentError):
            merged(tmp_path, sources[0], other)


def test_a_merged_image_is_no_layer(tmp_path: Path) -> None:
    sources = [make_layer(tmp_path, n, file(f"f{n}", b"%d" % n)) for n in range(2)]
    merged(tmp_path, *sources)
    with pytest.raises(UnsupportedError, match=r"layer 1 of 1, .*several blobs"):
        merge(MergeOptions((tmp_path / "merged",), tmp_path / "again"))


def test_an_error_names_the_layer_and_the_path(tmp_path: Path) -> None:
    lower, upper = make_layer(tmp_path, 0, file("a")), make_layer(tmp_path, 1, hardlink("l", "missing"))
    with pytest.raises(FormatError, match=rf"layer 2 of 2, .*{IDS[1]}: hard link '/l' to '/missing'"):
        merged(tmp_path, lower, upper)
    (tmp_path / IDS[1]).write_bytes(b"rubbish" * 1000)
    with pytest.raises(FormatError, match=r"layer 2 of 2"):
        merged(tmp_path, lower, upper)
    assert not (tmp_path / "merged").exists()


def test_marks_pass_through_files_and_leave_none_behind(tmp_path: Path) -> None:
    lower = make_layer(tmp_path, 0, directory("etc", mode=0o700, uid=3), file("etc/app", b"x", uid=4))
    upper = make_layer(tmp_path, 1, file("etc/new"), hardlink("link", "etc/app", uid=5))
    image = merged(tmp_path, lower, upper)
    found = dict(walk(image.root))
    assert (found[b"/etc"].mode & 0o7777, found[b"/etc"].uid) == (0o700, 3)
    assert found[b"/link"] is found[b"/etc/app"]
    assert found[b"/link"].uid == 5
    assert not any(inode.mark for inode in found.values())


def test_check_and_inspect_read_bootstraps_and_blobs(tmp_path: Path) -> None:
    tar = tmp_path / "tar"
    tar.write_bytes(layer(directory("d"), file("d/f", b"x")))
    create(CreateOptions(str(tar), tmp_path / (IDS[7] + ".blob"), inline_meta=True, blob_toc=True))
    bootstrap = load(tmp_path / (IDS[7] + ".blob"))
    assert list(report(bootstrap))[1].startswith(f"\t 0: {IDS[7]}, compressed size 5")
    assert answer(bootstrap, "stats") == {"inodes_count": 3}
    assert answer(bootstrap, "ls /d") == ["f"]
    stat = answer(bootstrap, "stat /d/f")
    assert isinstance(stat, dict)
    assert stat["size"] == 1
