"""One layer on another: the rules that no single tar can show are here; stacks of tars in compat."""

from stat import S_IFDIR, S_IFLNK, S_IFREG

import pytest

from nydus_service.errors import FormatError
from nydus_service.rafs.overlay import OPAQUE, apply_layer, empty_root
from nydus_service.rafs.tree import (
    MARK_DESCRIBED_LATE,
    MARK_IMPLIED,
    MARK_LOWER_LINK,
    MARK_NO_GID,
    MARK_WHITEOUT,
    Inode,
    walk,
)


def file(mode: int = 0o644, uid: int = 0) -> Inode:
    return Inode(S_IFREG | mode, uid)


def directory(mode: int = 0o755, uid: int = 0, **children: Inode) -> Inode:
    inode = Inode(S_IFDIR | mode, uid)
    inode.children = named(children)
    return inode


def named(children: dict[str, Inode]) -> dict[bytes, Inode]:
    return {name.replace("wh_", ".wh.").encode(): child for name, child in children.items()}


def implied(**children: Inode) -> Inode:
    inode = Inode(S_IFDIR | 0o755, mark=MARK_IMPLIED)
    inode.children = named(children)
    return inode


def symlink(target: bytes) -> Inode:
    inode = Inode(S_IFLNK | 0o777)
    inode.target = target
    return inode


def lower_link(target: bytes, mode: int = 0o644, uid: int = 0) -> Inode:
    inode = symlink(target)
    inode.mode, inode.uid, inode.mark = S_IFLNK | mode, uid, MARK_LOWER_LINK
    return inode


def merged(*layers: Inode) -> Inode:
    root = empty_root()
    for index, layer in enumerate(layers):
        apply_layer(root, layer, layers[:index], has_lower_links=True)
    return root


def paths(root: Inode) -> list[bytes]:
    return [path for path, _ in walk(root)][1:]


def at(root: Inode, path: str) -> Inode:
    return dict(walk(root))[path.encode()]


def test_whiteouts_of_the_lowest_layer_vanish() -> None:
    assert paths(merged(directory(wh_a=file(), b=file(), d=directory(wh_x=file())))) == [b"/b", b"/d"]


def test_an_implied_directory_changes_nothing_below_it() -> None:
    root = merged(directory(etc=directory(mode=0o700, uid=7)), implied(etc=implied(passwd=file())))
    assert at(root, "/etc").mode & 0o7777 == 0o700
    assert at(root, "/etc").uid == 7
    assert at(root, "/etc/passwd")


def test_the_root_keeps_its_metadata_below_an_implied_root() -> None:
    assert merged(directory(mode=0o711, uid=5), implied(a=file())).mode & 0o7777 == 0o711


def test_an_implied_directory_that_is_new_is_root_s_0755_and_unmarked() -> None:
    root = merged(implied(a=implied(b=file())))
    assert (at(root, "/a").mode, at(root, "/a").uid, at(root, "/a").mark) == (S_IFDIR | 0o755, 0, 0)


def test_an_implied_directory_inherits_the_group_of_a_setgid_parent() -> None:
    parent = directory(mode=0o2775)
    parent.gid = 42
    new = implied(f=file())
    new.mark |= MARK_NO_GID
    root = merged(directory(srv=parent), implied(srv=implied(new=new)))
    assert (at(root, "/srv/new").gid, at(root, "/srv/new").mode & 0o7777) == (42, 0o755)


def test_an_opaque_mark_hides_the_lower_and_keeps_its_own() -> None:
    lower = directory(d=directory(a=file(), b=directory(c=file())))
    for upper in (directory(wh_=file(), own=file()), directory(own=file(), wh_=file())):
        assert upper.children is not None
        upper.children[b".wh..wh..opq"] = upper.children.pop(b".wh.")
        assert paths(merged(lower, directory(d=upper))) == [b"/d", b"/d/own"]


def test_a_name_removed_and_there_again_in_one_layer_is_the_new_one() -> None:
    root = merged(directory(d=directory(old=file())), directory(wh_d=file(), d=directory(new=file())))
    assert paths(root) == [b"/d", b"/d/new"]


def test_directory_file_directory_shows_nothing_of_the_first() -> None:
    root = merged(directory(d=directory(a=file())), directory(d=file()), directory(d=directory(b=file())))
    assert paths(root) == [b"/d", b"/d/b"]


@pytest.mark.parametrize("target", [b"usr/bin", b"/usr/bin", b"../../usr/bin"])
def test_an_implied_directory_replaces_a_lower_symlink_and_looks_like_its_target(target: bytes) -> None:
    lower = directory(bin=symlink(target), usr=directory(bin=directory(0o711, 7, sh=file())))
    root = merged(lower, implied(bin=implied(tool=file())))
    assert paths(root) == [b"/bin", b"/bin/tool", b"/usr", b"/usr/bin", b"/usr/bin/sh"]
    assert (at(root, "/bin").mode & 0o7777, at(root, "/bin").uid, at(root, "/bin").mark) == (0o711, 7, 0)


@pytest.mark.parametrize("target", [b"gone", b"/", b"f"])
def test_an_implied_directory_over_a_link_to_no_directory_has_the_default(target: bytes) -> None:
    root = merged(directory(link=symlink(target), f=file()), implied(link=implied(new=file())))
    assert (at(root, "/link").mode, at(root, "/link").uid) == (S_IFDIR | 0o755, 0)


def test_an_implied_directory_looks_like_the_hidden_one() -> None:
    lower = directory(a=directory(0o711, 1, b=directory(0o722, 2, old=file())))
    hiding = directory(a=directory(0o700, 3))
    assert hiding.children is not None
    assert hiding.children[b"a"].children is not None
    hiding.children[b"a"].children[OPAQUE] = file()
    root = merged(lower, hiding, implied(a=implied(b=implied(new=file()))))
    assert paths(root) == [b"/a", b"/a/b", b"/a/b/new"]
    assert (at(root, "/a").uid, at(root, "/a/b").uid) == (3, 2)


def test_a_whiteout_or_a_file_ends_the_search_for_what_an_implied_directory_looks_like() -> None:
    lower = directory(a=directory(0o711, 1, b=directory(0o722, 2)))
    for between in (directory(wh_a=file()), directory(a=file())):
        upper = implied(a=implied(b=implied(f=file()), f=file()))
        assert at(merged(lower, between, upper), "/a/b").mode == S_IFDIR | 0o755


def test_the_metadata_of_an_implied_directory_counts_for_the_layers_above() -> None:
    lower = directory(a=directory(0o711, 1))
    middle = implied(a=implied(x=file()))
    hidden = directory(a=directory())
    assert hidden.children is not None
    root = merged(lower, middle, directory(b=file()), implied(a=implied(y=file())))
    assert at(root, "/a").uid == 1


def test_a_directory_described_after_its_entries_keeps_what_its_entry_does_not_set() -> None:
    lower = directory(0o2775, d=directory(0o2711, 1))
    assert lower.children is not None
    lower.children[b"d"].gid = 7
    lower.children[b"d"].xattrs = {b"user.a": b"1"}
    late = directory(0o700, 9, new=implied(f=file()))
    late.mark = MARK_DESCRIBED_LATE | MARK_NO_GID
    late.xattrs = {b"user.b": b"2"}
    assert late.children is not None
    late.children[b"new"].mark |= MARK_NO_GID
    root = merged(lower, implied(d=late))
    d = at(root, "/d")
    assert (d.mode & 0o7777, d.uid, d.gid, d.xattrs) == (0o700, 9, 7, {b"user.a": b"1", b"user.b": b"2"})
    assert at(root, "/d/new").gid == 7


def test_a_directory_with_the_name_of_a_whiteout_stays() -> None:
    both = implied(f=file())
    both.mark |= MARK_WHITEOUT
    root = merged(directory(d=file(), e=file()), directory(wh_d=both, wh_e=implied(f=file())))
    assert paths(root) == [b"/.wh.d", b"/.wh.d/f", b"/.wh.e", b"/.wh.e/f", b"/e"]


def test_an_explicit_directory_replaces_a_lower_symlink() -> None:
    root = merged(directory(bin=symlink(b"usr/bin")), directory(bin=directory(tool=file())))
    assert paths(root) == [b"/bin", b"/bin/tool"]


def test_entries_below_a_file_and_symlink_loops_are_refused() -> None:
    assert paths(merged(directory(a=file()), implied(a=implied(b=file())))) == [b"/a", b"/a/b"]
    for lower in (directory(a=file()), directory(a=symlink(b"f"), f=file())):
        with pytest.raises(FormatError, match="'/a' is no directory"):
            merged(lower, implied(a=implied(b=implied(c=file()))))
    with pytest.raises(FormatError, match="loop"):
        merged(directory(a=symlink(b"b"), b=symlink(b"a")), implied(a=implied(f=file())))


def test_a_hard_link_reaches_down_and_sets_the_shared_metadata() -> None:
    app = file(0o644, uid=1)
    app.xattrs = {b"user.a": b"1"}
    link = lower_link(b"/usr/app", 0o755, uid=9)
    link.xattrs = {b"user.b": b"2"}
    root = merged(directory(usr=directory(app=app)), implied(link=link))
    assert at(root, "/link") is at(root, "/usr/app")
    assert (at(root, "/usr/app").mode, at(root, "/usr/app").uid) == (S_IFREG | 0o755, 9)
    assert at(root, "/usr/app").xattrs == {b"user.a": b"1", b"user.b": b"2"}


def test_a_hard_link_gets_the_lower_inode_though_its_layer_replaces_the_target() -> None:
    old = file(uid=1)
    root = merged(directory(a=old), implied(link=lower_link(b"/a"), a=file(uid=2)))
    assert at(root, "/link") is old
    assert at(root, "/a").uid == 2


def test_a_hard_link_s_target_can_go_through_lower_links_but_not_in_place_of_its_own_directories() -> None:
    def lower() -> Inode:
        return directory(lib=symlink(b"usr/lib"), usr=directory(lib=directory(so=file())))

    root = merged(lower(), implied(h=lower_link(b"/lib/so")))
    assert at(root, "/h") is at(root, "/usr/lib/so")
    with pytest.raises(FormatError, match="not there"):
        merged(lower(), implied(lib=implied(x=file()), h=lower_link(b"/lib//so")))
    own = implied(usr=implied(lib=implied(own=file())), h=lower_link(b"/lib/own"))
    root = merged(lower(), own)
    assert at(root, "/h") is at(root, "/usr/lib/own")


@pytest.mark.parametrize(
    ("target", "what"), [(b"/missing", "not there"), (b"/d", "directory"), (b"/d/x/y", "not there")]
)
def test_a_hard_link_to_nothing_or_a_directory_is_refused(target: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        merged(directory(d=directory()), implied(link=lower_link(target)))
