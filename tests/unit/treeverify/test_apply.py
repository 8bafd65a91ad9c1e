"""What applying layers leaves: a test for each rule, as containerd 1.6 was seen to do it."""

from collections.abc import Callable
from stat import S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IMODE

import pytest

from nydus_service.errors import FormatError
from nydus_service.treeverify.apply import SourceInode
from tests.layers import (
    char_device,
    directory,
    entry,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    pax_header,
    pax_records,
    symlink,
    whiteout,
)
from tests.unit.treeverify.trees import files, names, overlay_of

CAPABILITY = {"security.capability": b"\x01\0\0\x02\0 \n\0\0\0\0\0\0\0\0\0\0\0\0\0"}


def owner(node: SourceInode) -> tuple[int, int, int]:
    return S_IMODE(node.mode), node.uid, node.gid


def content_of(node: SourceInode) -> tuple[int, bytes]:
    return node.size, node.digests


class TestPaths:
    def test_are_cleaned_and_stay_below_the_root(self) -> None:
        tree = overlay_of(
            layer(file("./a//b/./c"), file("../../x"), file("p/../y"), file("/abs"), directory("d/./"))
        )
        assert names(tree) == ["a", "a/b", "a/b/c", "abs", "d", "x", "y"]

    def test_the_same_place_written_differently_is_one(self) -> None:
        tree = overlay_of(layer(file("d/a"), file("./d/b"), file("/d/c"), file("d//e"), file("x/../d/f")))
        assert names(tree) == ["d", "d/a", "d/b", "d/c", "d/e", "d/f"]

    def test_of_any_bytes_are_kept(self) -> None:
        assert names(overlay_of(layer(file(b"\xff\xfe\n")))) == ["\udcff\udcfe\n"]

    def test_with_names_of_255_bytes_fit_and_of_256_do_not(self) -> None:
        assert names(overlay_of(layer(file("n" * 255)))) == ["n" * 255]
        for name in ("n" * 256, "n" * 256 + "/f", ".wh." + "n" * 252):
            with pytest.raises(FormatError, match="256 bytes"):
                overlay_of(layer(file(name)))

    def test_may_be_very_deep(self) -> None:
        deep = "/".join("d" * 2000)
        assert len(names(overlay_of(layer(file(deep), opaque("d")), layer(whiteout("d"))))) == 0

    def test_a_file_written_with_a_trailing_slash_is_a_file(self) -> None:
        assert files(overlay_of(layer(entry("a/", b"0"))))["a"].mode & 0o170000 == S_IFREG


class TestRoot:
    def test_without_an_entry_is_a_plain_directory(self) -> None:
        root = overlay_of(layer(file("f"))).merge()
        assert (root.mode, root.uid, root.gid, root.mtime) == (S_IFDIR | 0o755, 0, 0, 0)

    @pytest.mark.parametrize("name", [".", "./", "/", "a/..", ".."])
    def test_takes_what_its_entry_says(self, name: str) -> None:
        root = overlay_of(layer(entry(name, b"5", mode=0o711, uid=1, gid=2, mtime=3), file("f"))).merge()
        assert (owner(root), root.mtime) == ((0o711, 1, 2), 3)

    def test_keeps_it_when_an_upper_layer_does_not_mention_it(self) -> None:
        root = overlay_of(
            layer(directory(".", mode=0o711, xattrs={"user.a": b"1"})), layer(file("f"))
        ).merge()
        assert (owner(root), root.xattrs) == ((0o711, 0, 0), {b"user.a": b"1"})

    def test_other_entries_of_it_and_those_without_a_name_are_counted_and_left_out(self) -> None:
        root_entries = [file(".", b"x"), symlink("/", ""), file("", b"x"), entry("", b"5", mode=0o700)]
        tree = overlay_of(layer(*root_entries, file("f")))
        assert names(tree) == ["f"]
        assert tree.merge().mode & 0o7777 == 0o755
        assert tree.set_aside == {"entries without a name, or for the root but no directory": 4}


class TestImpliedDirectories:
    def test_are_plain_where_nothing_is_below(self) -> None:
        node = files(overlay_of(layer(file("a/b/f", mtime=5, uid=3))))["a/b"]
        assert (owner(node), node.mtime, node.xattrs) == ((0o755, 0, 0), 0, {})

    def test_change_nothing_of_a_lower_layers_directory(self) -> None:
        lower = layer(directory("d", mode=0o700, uid=1, gid=2, mtime=9, xattrs={"user.a": b"1"}))
        node = files(overlay_of(lower, layer(file("d/f"))))["d"]
        assert (owner(node), node.mtime, node.xattrs) == ((0o700, 1, 2), 9, {b"user.a": b"1"})

    def test_change_nothing_that_the_same_layer_said(self) -> None:
        assert owner(files(overlay_of(layer(directory("d", mode=0o700), file("d/f"))))["d"]) == (0o700, 0, 0)

    def test_get_the_group_of_a_setgid_directory_but_not_its_bit(self) -> None:
        found = files(overlay_of(layer(directory("s", mode=0o2755, gid=7), file("s/a/b/f"))))
        assert owner(found["s/a"]) == (0o755, 0, 7)
        assert owner(found["s/a/b"]) == (0o755, 0, 0)

    def test_are_described_by_an_entry_that_comes_later(self) -> None:
        node = files(overlay_of(layer(file("d/f"), directory("d", mode=0o700, mtime=4))))["d"]
        assert (owner(node), node.mtime) == ((0o700, 0, 0), 4)

    def test_are_made_by_whiteouts_and_opaque_marks_too(self) -> None:
        assert names(overlay_of(layer(whiteout("a/x"), opaque("b/c")))) == ["a", "b", "b/c"]


class TestSymlinksInAPath:
    def test_of_a_lower_layer_are_replaced_by_directories_like_their_targets(self) -> None:
        lower = layer(directory("usr/lib", mode=0o711, uid=7), symlink("lib", "usr/lib"))
        tree = overlay_of(lower, layer(file("lib/f"), file("lib/n/g")))
        assert names(tree) == ["lib", "lib/f", "lib/n", "lib/n/g", "usr", "usr/lib"]
        assert owner(files(tree)["lib"]) == (0o711, 7, 0)
        assert owner(files(tree)["lib/n"]) == (0o755, 0, 0)

    def test_of_the_same_layer_are_followed(self) -> None:
        assert names(overlay_of(layer(symlink("l", "d"), file("l/f")))) == ["d", "d/f", "l"]

    def test_that_are_absolute_begin_at_the_root(self) -> None:
        tree = overlay_of(layer(symlink("a/b/l", "/d/e"), file("a/b/l/f")))
        assert "d/e/f" in names(tree)

    def test_do_not_lead_out_of_the_root(self) -> None:
        assert "etc/f" in names(overlay_of(layer(symlink("l", "../../../etc"), file("l/f"))))

    def test_lead_through_one_another(self) -> None:
        tree = overlay_of(layer(symlink("a", "b/c"), symlink("b", "x"), symlink("x/c", "../y"), file("a/f")))
        assert "y/f" in names(tree)

    def test_do_not_make_what_dots_take_back(self) -> None:
        assert names(overlay_of(layer(symlink("l", "gone/../d"), file("l/f")))) == ["d", "d/f", "l"]

    def test_that_turn_in_circles_are_refused(self) -> None:
        with pytest.raises(FormatError, match="more than 255 symlinks"):
            overlay_of(layer(symlink("a", "b"), symlink("b", "a"), file("a/f")))

    def test_are_replaced_by_a_directory_entry_of_that_path(self) -> None:
        tree = overlay_of(layer(directory("d"), symlink("l", "d")), layer(directory("l"), file("l/f")))
        assert names(tree) == ["d", "l", "l/f"]

    def test_are_not_followed_by_the_last_component(self) -> None:
        found = files(overlay_of(layer(file("f", b"1"), symlink("l", "f")), layer(file("l", b"22"))))
        assert (found["f"].size, found["l"].size) == (1, 2)

    def test_that_are_replaced_are_not_followed_any_more(self) -> None:
        tree = overlay_of(layer(symlink("l", "d"), file("l/a"), directory("l"), file("l/b")))
        assert names(tree) == ["d", "d/a", "l", "l/b"]


class TestBelowAFile:
    @pytest.mark.parametrize("make", [file, fifo])
    def test_nothing_can_be(self, make: Callable[..., bytes]) -> None:
        with pytest.raises(FormatError, match=r"^'/a' is in its path.* \[tar entry 'a/b' at offset "):
            overlay_of(layer(make("a"), file("a/b")))

    @pytest.mark.parametrize("lower", [[file("a")], [fifo("a")], [file("f"), symlink("a", "f")]])
    def test_of_a_lower_layer_a_directory_can_be_made_but_none_in_it(self, lower: list[bytes]) -> None:
        assert "a/b" in names(overlay_of(layer(*lower), layer(file("a/b"))))
        with pytest.raises(FormatError, match=r"^'/.*' is no directory \[tar entry 'a/b/c' at offset 0"):
            overlay_of(layer(*lower), layer(file("a/b/c")))
        made_before = layer(file("a/x"), file("a/b/c"))
        assert "a/b/c" in names(overlay_of(layer(*lower), made_before))


class TestSamePath:
    def test_directory_over_directory_keeps_the_children(self) -> None:
        tree = overlay_of(
            layer(directory("d", mode=0o700), file("d/f")), layer(directory("d", uid=5, mtime=6))
        )
        node = files(tree)["d"]
        assert names(tree) == ["d", "d/f"]
        assert (owner(node), node.mtime) == ((0o755, 5, 0), 6)

    def test_an_upper_layers_directory_replaces_the_xattrs(self) -> None:
        tars = layer(directory("d", xattrs={"user.a": b"1"})), layer(directory("d", xattrs={"user.b": b"2"}))
        assert files(overlay_of(*tars))["d"].xattrs == {b"user.b": b"2"}

    def test_a_second_directory_of_a_layer_adds_to_the_xattrs(self) -> None:
        one, two, three = ({"user.a": b"1"}, {"user.b": b"2"}, {"user.b": b"3"})
        tar = layer(directory("d", xattrs=one), directory("d", xattrs=two), directory("d", xattrs=three))
        assert files(overlay_of(tar))["d"].xattrs == {b"user.a": b"1", b"user.b": b"3"}

    def test_file_over_file_is_another_file(self) -> None:
        lower = layer(file("f", b"old", mode=0o600, xattrs={"user.a": b"1"}), hardlink("g", "f"))
        found = files(overlay_of(lower, layer(file("f", b"new!", mtime=3))))
        assert (found["f"].size, found["f"].xattrs, found["f"].mtime) == (4, {}, 3)
        assert found["g"].size == 3

    def test_file_over_directory_removes_the_subtree(self) -> None:
        assert names(overlay_of(layer(file("d/a/b")), layer(file("d")))) == ["d"]

    def test_directory_over_file_is_empty(self) -> None:
        assert names(overlay_of(layer(file("d")), layer(directory("d")))) == ["d"]

    def test_directory_then_file_then_directory_shows_the_lower_one_again(self) -> None:
        same = layer(directory("d"), file("d/f"), file("d"), directory("d"))
        assert names(overlay_of(layer(file("d/lower")), same)) == ["d", "d/lower"]

    def test_directory_then_file_then_directory_in_three_layers_is_empty(self) -> None:
        assert names(overlay_of(layer(file("d/f")), layer(file("d")), layer(directory("d")))) == ["d"]

    def test_a_directory_that_went_away_is_not_written_to(self) -> None:
        tree = overlay_of(layer(file("d/a/f"), file("d"), symlink("d", "e"), file("d/h")))
        assert names(tree) == ["d", "e", "e/h"]

    def test_a_file_takes_its_own_time_whatever_was_there(self) -> None:
        # containerd sets the directory's time on whatever is at its path in the end; by mistake
        assert files(overlay_of(layer(directory("d", mtime=5), file("d", mtime=77))))["d"].mtime == 77


class TestWhiteouts:
    def test_remove_what_is_below_with_all_that_is_in_it(self) -> None:
        tree = overlay_of(
            layer(file("d/a/b"), file("e"), symlink("l", "e")), layer(whiteout("d"), whiteout("l"))
        )
        assert names(tree) == ["e"]

    def test_never_show(self) -> None:
        assert names(overlay_of(layer(whiteout("a"), opaque(), file("d/.wh.x"), directory("d/.wh.y")))) == [
            "d"
        ]

    @pytest.mark.parametrize("order", [1, -1])
    def test_leave_their_own_layer(self, order: int) -> None:
        lower = layer(file("a", b"1"), file("d/x"))
        entries = [*[whiteout("a"), file("a", b"22")][::order], *[whiteout("d"), file("d/y")][::order]]
        tree = overlay_of(lower, layer(*entries))
        assert names(tree) == ["a", "d", "d/y"]
        assert files(tree)["a"].size == 2
        assert names(overlay_of(layer(*entries))) == ["a", "d", "d/y"]

    @pytest.mark.parametrize("order", [1, -1])
    def test_may_be_directories_as_well(self, order: int) -> None:
        lower = layer(file("d/k"), file("d/l"))
        entries = [directory("d/.wh.k", mode=0o700, uid=3), file("d/.wh.k/f")][::order]
        tree = overlay_of(lower, layer(*entries, file("d/.wh.l/f")))
        assert names(tree) == ["d", "d/.wh.k", "d/.wh.k/f", "d/.wh.l", "d/.wh.l/f", "d/l"]
        assert owner(files(tree)["d/.wh.k"]) == (0o755, 0, 0)

    def test_followed_by_the_directory_again_leave_it_empty(self) -> None:
        tree = overlay_of(
            layer(directory("d", mode=0o700), file("d/old")), layer(whiteout("d"), file("d/new"))
        )
        assert names(tree) == ["d", "d/new"]
        assert owner(files(tree)["d"]) == (0o755, 0, 0)

    def test_remove_one_name_of_a_hard_link(self) -> None:
        assert names(overlay_of(layer(file("a"), hardlink("b", "a")), layer(whiteout("a")))) == ["b"]

    def test_of_what_is_not_there_do_nothing(self) -> None:
        assert names(overlay_of(layer(file("a"), whiteout("b")))) == ["a"]

    def test_below_a_lower_link_make_it_a_directory(self) -> None:
        tree = overlay_of(layer(file("d/f"), symlink("l", "d")), layer(whiteout("l/f")))
        assert names(tree) == ["d", "d/f", "l"]
        assert files(tree)["l"].children == {}

    @pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh..."])
    def test_that_name_no_file_are_refused(self, name: str) -> None:
        with pytest.raises(FormatError, match="whiteout that names no file"):
            overlay_of(layer(file(f"d/{name}")))

    def test_of_aufs_have_no_effect(self) -> None:
        tree = overlay_of(
            layer(file("x")), layer(file(".wh..wh.aufs"), directory(".wh..wh.plnk"), file("d/.wh..wh.orph"))
        )
        assert names(tree) == ["d", "x"]


class TestOpaqueMarks:
    LOWER = layer(file("d/low"), file("d/sub/low"), symlink("d/l", "low"), file("e"))

    def test_hide_what_is_below(self) -> None:
        assert names(overlay_of(self.LOWER, layer(opaque("d")))) == ["d", "e"]

    @pytest.mark.parametrize("order", [1, -1])
    def test_keep_their_own_layers_entries_wherever_they_stand(self, order: int) -> None:
        entries = [file("d/own"), directory("d/sub"), file("d/sub/own"), opaque("d")][::order]
        assert names(overlay_of(self.LOWER, layer(*entries))) == ["d", "d/own", "d/sub", "d/sub/own", "e"]

    @pytest.mark.parametrize("order", [1, -1])
    def test_keep_what_is_in_a_directory_that_is_only_implied(self, order: int) -> None:
        lower = layer(directory("d/sub", mode=0o700, uid=4, xattrs={"user.a": b"1"}), file("d/sub/low"))
        tree = overlay_of(lower, layer(*[file("d/sub/own"), opaque("d")][::order]))
        assert names(tree) == ["d", "d/sub", "d/sub/own"]
        node = files(tree)["d/sub"]
        assert (owner(node), node.xattrs) == ((0o700, 4, 0), {b"user.a": b"1"})

    def test_keep_the_directorys_own_metadata(self) -> None:
        assert owner(files(overlay_of(layer(directory("d", mode=0o700)), layer(opaque("d"))))["d"]) == (
            0o700,
            0,
            0,
        )

    def test_keep_a_link_of_their_layer_to_a_lower_file(self) -> None:
        tree = overlay_of(layer(file("d/a", b"1")), layer(hardlink("d/b", "d/a"), opaque("d")))
        assert names(tree) == ["d", "d/b"]

    def test_of_the_root_hide_everything(self) -> None:
        assert names(overlay_of(self.LOWER, layer(file("n"), opaque()))) == ["n"]

    def test_in_the_lowest_layer_hide_nothing(self) -> None:
        assert names(overlay_of(layer(file("d/a"), opaque("d"), file("d/b")))) == ["d", "d/a", "d/b"]

    def test_below_a_lower_link_make_it_a_directory(self) -> None:
        tree = overlay_of(layer(file("d/f"), symlink("l", "d")), layer(opaque("l")))
        assert names(tree) == ["d", "d/f", "l"]
        assert files(tree)["l"].children == {}


class TestHardLinks:
    def test_are_one_file(self) -> None:
        found = files(overlay_of(layer(file("a", b"1"), hardlink("d/b", "a"), hardlink("c", "/d/b"))))
        assert found["a"] is found["d/b"] is found["c"]

    def test_set_the_metadata_of_the_file_last_one_wins(self) -> None:
        tar = layer(
            file("a", b"1", mode=0o600, uid=1, mtime=1, xattrs={"user.a": b"1"}),
            hardlink("b", "a", mode=0o4711, uid=2, gid=3, mtime=4, xattrs={"user.b": b"2"}),
            hardlink("c", "a", mode=0o644, uid=5, gid=6, mtime=7),
        )
        node = files(overlay_of(tar))["a"]
        assert (owner(node), node.mtime, node.size) == ((0o644, 5, 6), 7, 1)
        assert node.xattrs == {b"user.a": b"1", b"user.b": b"2"}

    def test_take_capabilities_away_unless_they_bring_them(self) -> None:
        tar = layer(
            file("a", xattrs=CAPABILITY),
            hardlink("b", "a"),
            file("c", xattrs=CAPABILITY),
            hardlink("d", "c", xattrs=CAPABILITY),
        )
        found = files(overlay_of(tar))
        assert found["a"].xattrs == {}
        assert found["c"].xattrs == {b"security.capability": CAPABILITY["security.capability"]}

    def test_reach_into_lower_layers(self) -> None:
        tars = layer(file("a", b"1", mode=0o600)), layer(hardlink("b", "a", mode=0o640, uid=9, mtime=8))
        found = files(overlay_of(*tars))
        assert found["a"] is found["b"]
        assert (owner(found["a"]), found["a"].mtime) == ((0o640, 9, 0), 8)

    def test_follow_symlinks_in_the_way_but_not_the_last(self) -> None:
        tar = layer(
            file("d/f", b"1"),
            symlink("l", "d"),
            symlink("d/s", "f"),
            hardlink("h", "l/f"),
            hardlink("t", "l/s"),
        )
        found = files(overlay_of(tar))
        assert found["h"] is found["d/f"]
        assert found["t"] is found["d/s"]

    def test_to_a_symlink_leave_its_permissions(self) -> None:
        found = files(overlay_of(layer(symlink("s", "x", mode=0o777), hardlink("h", "s", mode=0o600, uid=4))))
        assert found["s"].mode == S_IFLNK | 0o777
        assert found["s"].uid == 4

    def test_to_devices_and_fifos_are_fine(self) -> None:
        found = files(
            overlay_of(layer(fifo("p"), hardlink("q", "p"), char_device("c", 1, 3), hardlink("e", "c")))
        )
        assert found["p"] is found["q"]
        assert found["p"].mode & 0o170000 == S_IFIFO
        assert found["e"].rdev == 0x103

    def test_stay_when_the_target_is_replaced(self) -> None:
        found = files(overlay_of(layer(file("a", b"1"), hardlink("b", "a"), file("a", b"22"))))
        assert (found["a"].size, found["b"].size) == (2, 1)

    def test_replace_what_is_at_their_path(self) -> None:
        tree = overlay_of(layer(file("d/f"), file("a", b"1")), layer(hardlink("d", "a")))
        assert names(tree) == ["a", "d"]

    @pytest.mark.parametrize(
        ("entries", "problem"),
        [
            ([hardlink("h", "gone")], "'gone', which is not there"),
            ([hardlink("h", "gone/a")], "'gone/a', which is not there"),
            ([hardlink("h", "later"), file("later")], "'later', which is not there"),
            ([directory("d"), hardlink("h", "d")], "'d', which is a directory"),
            ([file("f"), hardlink("h", "f/x")], "'f' in its path is no directory"),
            ([file("f"), hardlink("f", "f")], "'f', which is not there"),
            ([file("f/g"), hardlink("f", "f/g")], "'f/g', which is not there"),
            ([whiteout("f"), hardlink("h", "f")], "'f', which is not there"),
            ([hardlink("h", ".")], "'.', which is a directory"),
        ],
    )
    def test_that_cannot_be_made_are_refused(self, entries: list[bytes], problem: str) -> None:
        with pytest.raises(FormatError, match=problem):
            overlay_of(layer(*entries))


class TestXattrs:
    def test_that_containerd_sets_are_kept(self) -> None:
        given = {"user.a": b"1", "security.capability": b"\n\0", "system.posix_acl_access": b"acl"}
        assert files(overlay_of(layer(file("f", xattrs=given))))["f"].xattrs == {
            name.encode(): value for name, value in given.items()
        }

    def test_that_containerd_does_not_set_are_counted_and_left_out(self) -> None:
        others = {"trusted.a": b"1", "com.apple.quarantine": b"2", "system.nfs4_acl": b"3"}
        tree = overlay_of(
            layer(file("f", xattrs=others), directory(".", xattrs={"trusted.overlay.opaque": b"y"}))
        )
        assert (files(tree)["f"].xattrs, tree.merge().xattrs) == ({}, {})
        assert tree.set_aside == {"extended attributes that containerd does not set": 4}

    def test_of_the_user_are_for_files_and_directories_only(self) -> None:
        given = {"user.a": b"1", "security.b": b"2"}
        tar = layer(
            symlink("l", "x", xattrs=given), fifo("p", xattrs=given), hardlink("h", "p", xattrs=given)
        )
        found = files(overlay_of(tar))
        assert found["l"].xattrs == found["h"].xattrs == {b"security.b": b"2"}

    def test_too_large_for_a_file_system_are_refused(self) -> None:
        assert files(overlay_of(layer(file("f", xattrs={"user.a": bytes(65535)}))))
        for xattrs in ({"user.a": bytes(65536)}, {"user." + "n" * 251: b""}):
            with pytest.raises(FormatError, match=r"^extended attribute 'user.* \[tar entry 'f' at offset 0"):
                overlay_of(layer(file("f", xattrs=xattrs)))


class TestBookkeeping:
    def test_of_estargz_is_set_aside_at_the_top_only(self) -> None:
        entries = [
            file("stargz.index.json", b"{}"),
            file("./.prefetch.landmark", b"\x0f"),
            file(".no.prefetch.landmark"),
        ]
        tree = overlay_of(layer(*entries, file("d/.prefetch.landmark"), file("keep")))
        assert names(tree) == ["d", "d/.prefetch.landmark", "keep"]
        assert tree.set_aside == {"eStargz bookkeeping files": 3}

    def test_of_pax_for_all_entries_changes_nothing(self) -> None:
        comment = pax_header(pax_records({"comment": b"hello", "uid": b"7"}), b"g")
        assert files(overlay_of(layer(comment + file("f"))))["f"].uid == 0
        found = overlay_of(layer(file("pax_global_header"), comment))
        assert names(found) == []  # containerd removes what is at the path of the header
