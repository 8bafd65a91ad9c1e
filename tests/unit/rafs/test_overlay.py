"""One layer on another: the rules that no single tar can show are here; stacks of tars in compat."""

from stat import S_IFDIR, S_IFLNK, S_IFREG

import pytest

from nydus_service.errors import FormatError
from nydus_service.rafs.overlay import apply_layer, empty_root
from nydus_service.rafs.tree import MARK_IMPLIED, MARK_LOWER_LINK, Inode, walk


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
    for layer in layers:
        apply_layer(root, layer, has_lower_links=True)
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
    root = merged(directory(srv=parent), implied(srv=implied(new=implied(f=file()))))
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


def test_an_implied_directory_follows_a_lower_symlink() -> None:
    lower = directory(bin=symlink(b"usr/bin"), usr=directory(bin=directory(sh=file())))
    root = merged(lower, implied(bin=implied(tool=file())))
    assert paths(root) == [b"/bin", b"/usr", b"/usr/bin", b"/usr/bin/sh", b"/usr/bin/tool"]


@pytest.mark.parametrize("target", [b"/new/place", b"../../new/place", b"x/../new/place"])
def test_what_a_followed_symlink_lacks_is_made_inside_the_root(target: bytes) -> None:
    root = merged(directory(link=symlink(target)), implied(link=implied(f=file())))
    assert at(root, "/new/place/f")
    assert at(root, "/new").mark == 0


def test_an_explicit_directory_replaces_a_lower_symlink() -> None:
    root = merged(directory(bin=symlink(b"usr/bin")), directory(bin=directory(tool=file())))
    assert paths(root) == [b"/bin", b"/bin/tool"]


def test_entries_below_a_file_and_symlink_loops_are_refused() -> None:
    with pytest.raises(FormatError, match="'/a' is no directory"):
        merged(directory(a=file()), implied(a=implied(b=file())))
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


@pytest.mark.parametrize(
    ("target", "what"), [(b"/missing", "not there"), (b"/d", "directory"), (b"/d/x/y", "not there")]
)
def test_a_hard_link_to_nothing_or_a_directory_is_refused(target: bytes, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        merged(directory(d=directory()), implied(link=lower_link(target)))
