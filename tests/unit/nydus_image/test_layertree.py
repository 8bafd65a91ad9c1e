"""A layer's entries to its tree. Each rule here is one of containerd's; docs/format-notes.md lists
those that the native builder breaks."""

from stat import S_IFMT, S_IFREG

import pytest

from nydus_service.errors import FormatError
from nydus_service.layertar.reader import LayerTarReader
from nydus_service.nydus_image.layertree import LayerTree
from nydus_service.rafs.tree import (
    MARK_DESCRIBED_LATE,
    MARK_IMPLIED,
    MARK_LOWER_LINK,
    MARK_NO_GID,
    MARK_NO_UID,
    MARK_WHITEOUT,
    Inode,
    walk,
)
from tests.layers import (
    char_device,
    directory,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    pax_header,
    symlink,
    whiteout,
)


def tree_of(*entries: bytes) -> Inode:
    pieces = [layer(*entries), b""]
    tree = LayerTree()
    for entry in LayerTarReader(lambda: pieces.pop(0)):
        tree.add(entry, ())
    return tree.root


def paths(root: Inode) -> list[str]:
    return [path.decode() for path, _ in walk(root)][1:]


def at(root: Inode, path: str) -> Inode:
    return dict(walk(root))[path.encode()]


def test_missing_parents_are_implied_and_marked() -> None:
    root = tree_of(directory("zdir"), file("a/b/c"))
    assert paths(root) == ["/a", "/a/b", "/a/b/c", "/zdir"]
    marks = [at(root, path).mark for path in ("/", "/a", "/a/b", "/zdir")]
    assert marks == [MARK_IMPLIED, MARK_IMPLIED | MARK_NO_GID, MARK_IMPLIED | MARK_NO_GID, 0]
    assert at(root, "/a/b").mode & 0o7777 == 0o755


def test_an_entry_for_an_implied_directory_describes_it_late() -> None:
    root = tree_of(file("a/b"), directory("a", mode=0o700, uid=3), directory("./", mode=0o711))
    a = at(root, "/a")
    assert (a.mark, a.mode & 0o7777, a.uid) == (MARK_DESCRIBED_LATE, 0o700, 3)
    assert (root.mark, root.mode & 0o7777) == (0, 0o711)
    assert paths(root) == ["/a", "/a/b"]


def test_ids_that_are_not_set_come_from_the_creation_or_the_merge() -> None:
    kept = {"uid": b"-1", "gid": b"-1"}
    root = tree_of(
        *(directory("./"), directory("s", mode=0o2755, gid=7), file("s/f", pax=kept)),
        *(file("d/f", pax=kept), directory("d", pax=kept), hardlink("l", "lower", pax=kept)),
        *(directory("e", uid=3, gid=4), directory("e", pax=kept)),
    )
    assert (at(root, "/s/f").uid, at(root, "/s/f").gid, at(root, "/s/f").mark) == (0, 7, 0)
    assert at(root, "/d/f").mark == MARK_NO_GID
    assert at(root, "/d").mark == MARK_DESCRIBED_LATE | MARK_NO_UID | MARK_NO_GID
    assert at(root, "/l").mark == MARK_LOWER_LINK | MARK_NO_UID | MARK_NO_GID
    assert (at(root, "/e").uid, at(root, "/e").gid) == (3, 4)


def test_a_global_header_implies_its_parents_and_removes_what_has_its_path() -> None:
    root = tree_of(file("tmp/x"), pax_header(b"", b"g"), file("pax_global_header"), pax_header(b"", b"g"))
    assert paths(root) == ["/tmp", "/tmp/x"]


@pytest.mark.parametrize("marker", [file("d/.wh.k", mode=0o700), directory("d/.wh.k", mode=0o700)])
@pytest.mark.parametrize("order", [1, -1])
def test_a_directory_with_the_name_of_a_whiteout_is_both(marker: bytes, order: int) -> None:
    root = tree_of(*[marker, file("d/.wh.k/f")][::order])
    assert paths(root) == ["/d", "/d/.wh.k", "/d/.wh.k/f"]
    both = at(root, "/d/.wh.k")
    assert both.mark == MARK_IMPLIED | MARK_NO_GID | MARK_WHITEOUT
    assert both.mode & 0o7777 == 0o755


def test_two_entries_of_one_directory_keep_its_content_and_add_their_xattrs() -> None:
    root = tree_of(
        directory("d", mode=0o700, xattrs={"user.a": b"1", "user.b": b"1"}),
        file("d/f"),
        directory("d", mode=0o711, xattrs={"user.b": b"2"}),
    )
    assert paths(root) == ["/d", "/d/f"]
    assert at(root, "/d").mode & 0o7777 == 0o711
    assert at(root, "/d").xattrs == {b"user.a": b"1", b"user.b": b"2"}


def test_a_directory_that_was_a_file_in_between_has_only_what_came_later() -> None:
    root = tree_of(file("d/a"), file("d"), directory("d"), file("d/b"))
    assert paths(root) == ["/d", "/d/b"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_whiteout_removes_nothing_of_its_own_layer(order: int) -> None:
    root = tree_of(*[file("d/f"), whiteout("d/f")][::order])
    assert paths(root) == ["/d", "/d/.wh.f", "/d/f"]


def test_a_directory_implied_after_its_whiteout_takes_nothing_from_the_lower_one() -> None:
    root = tree_of(whiteout("d"), file("d/e/f"), file("g/h/i"), whiteout("g"), file("j/k"))
    implied = [path for path, inode in walk(root) if inode.mark & MARK_IMPLIED]
    assert implied == [b"/", b"/j"]


def test_an_opaque_mark_removes_nothing_of_its_own_layer() -> None:
    assert paths(tree_of(file("d/f"), opaque("d"), file("d/g"))) == ["/d", "/d/.wh..wh..opq", "/d/f", "/d/g"]


@pytest.mark.parametrize("name", [".wh.", "d/.wh..", "d/.wh..."])
def test_a_whiteout_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="whiteout without a name"):
        tree_of(file(name))


def test_a_hard_link_s_entry_sets_the_shared_metadata() -> None:
    root = tree_of(
        file("a", mode=0o644, uid=1, xattrs={"user.a": b"1"}),
        hardlink("b", "a", mode=0o600, uid=2, mtime=9, xattrs={"user.b": b"2"}),
    )
    assert at(root, "/a") is at(root, "/b")
    assert (at(root, "/a").mode, at(root, "/a").uid, at(root, "/a").mtime) == (S_IFREG | 0o600, 2, 9)
    assert at(root, "/a").xattrs == {b"user.a": b"1", b"user.b": b"2"}


def test_a_hard_link_to_a_symlink_or_a_device_shares_it() -> None:
    root = tree_of(
        symlink("s", "x"), char_device("c", 1, 3), fifo("p"), *(hardlink(f"l{n}", n) for n in "scp")
    )
    for name in "scp":
        assert at(root, f"/{name}") is at(root, f"/l{name}")


def test_a_replaced_target_leaves_the_link_with_the_old_inode() -> None:
    root = tree_of(file("a", uid=1), hardlink("b", "a", uid=1), file("a", uid=2))
    assert (at(root, "/a").uid, at(root, "/b").uid) == (2, 1)


def test_the_placeholder_of_a_lower_link_names_the_directories_of_its_own_layer() -> None:
    root = tree_of(symlink("l", "usr"), directory("usr/lib"), hardlink("h", "l/lib/x/y"), hardlink("i", "z"))
    assert at(root, "/h").target == b"/usr/lib//x/y"
    assert at(root, "/i").target == b"/z"


def test_a_hard_link_to_what_this_tar_lacks_is_one_to_a_lower_layer() -> None:
    root = tree_of(hardlink("b", "./usr/app", uid=5), hardlink("c", "b"), file("usr/app"))
    for name in ("/b", "/c"):
        assert at(root, name).mark == MARK_LOWER_LINK
        assert at(root, name).target == b"/usr/app"
    assert S_IFMT(at(root, "/usr/app").mode) == S_IFREG


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([directory("d"), hardlink("l", "d")], "is a directory"),
        ([whiteout("a"), hardlink("l", "a")], "removes"),
        ([opaque("d"), hardlink("l", "d/a")], "removes"),
        ([hardlink("l", "l")], "which it replaces"),
        ([file("l/f"), hardlink("l", "l/f")], "which it replaces"),
        ([file("f"), file("f/g")], "'/f' is no directory"),
        ([symlink("a", "b"), symlink("b", "a"), file("a/f")], "loop"),
        ([file("f", xattrs={"user.x": bytes(65536)})], "65536"),
        ([file("f", xattrs={"": b"1"})], "has no name"),
        ([file("f", xattrs={"user.": b"1"})], "has no name"),
    ],
)
def test_what_containerd_could_not_apply_is_refused_by_name(entries: list[bytes], message: str) -> None:
    with pytest.raises(FormatError, match=r"tar entry '.*' at offset \d+: .*" + message):
        tree_of(*entries)


def test_entries_below_a_symlink_go_where_it_points_inside_the_root() -> None:
    root = tree_of(
        directory("usr/lib"), symlink("lib", "usr/lib"), file("lib/a"), symlink("up", "../../x"), file("up/b")
    )
    assert paths(root) == ["/lib", "/up", "/usr", "/usr/lib", "/usr/lib/a", "/x", "/x/b"]
    assert at(root, "/x").mark & MARK_IMPLIED


def test_parents_remembered_before_a_replacement_are_forgotten() -> None:
    root = tree_of(file("d/a"), symlink("d", "e"), file("d/b"))
    assert paths(root) == ["/d", "/e", "/e/b"]


def test_a_symlink_that_was_followed_and_then_replaced_is_forgotten() -> None:
    root = tree_of(symlink("a", "../.."), symlink("a/a", "b/c"), file("a/a"))
    assert paths(root) == ["/a", "/b", "/b/c", "/b/c/a"]
    assert at(root, "/a").target == b"b/c"


def test_xattrs_that_containerd_does_not_set_are_left_out() -> None:
    given = {"user.a": b"1", "security.b": b"2", "trusted.c": b"3", "com.apple.quarantine": b"4"}
    root = tree_of(file("f", xattrs=given), symlink("s", "f", xattrs=given), fifo("p", xattrs=given))
    assert at(root, "/f").xattrs == {b"user.a": b"1", b"security.b": b"2"}
    assert at(root, "/s").xattrs == at(root, "/p").xattrs == {b"security.b": b"2"}


def test_a_hard_link_takes_capabilities_away_as_its_chown_does() -> None:
    root = tree_of(
        file("a", xattrs={"security.capability": b"cap", "user.k": b"v"}),
        hardlink("b", "a"),
        file("c", xattrs={"security.capability": b"cap"}),
        hardlink("d", "c", xattrs={"security.capability": b"new"}),
    )
    assert at(root, "/a").xattrs == {b"user.k": b"v"}
    assert at(root, "/c").xattrs == {b"security.capability": b"new"}


def test_an_implied_directory_below_a_setgid_one_gets_its_group() -> None:
    root = tree_of(directory("srv", mode=0o2775, gid=42), file("srv/new/f"))
    assert (at(root, "/srv/new").gid, at(root, "/srv/new").mode & 0o7777) == (42, 0o755)
