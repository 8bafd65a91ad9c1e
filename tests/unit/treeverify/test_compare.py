"""Every way in which a result can differ from its source is found, and named where it is."""

from collections.abc import Callable
from stat import S_IFDIR, S_IFIFO, S_IFREG

import pytest

from nydus_service.errors import FormatError
from nydus_service.rafs.listing import Listing
from nydus_service.rafs.tree import Inode
from nydus_service.treeverify.apply import Overlay
from nydus_service.treeverify.compare import Comparison
from nydus_service.treeverify.report import KEPT_MAX, Difference, Report
from tests.layers import char_device, directory, fifo, file, hardlink, layer, symlink
from tests.unit.treeverify.results import TreeResult, at, listing_of, result_of
from tests.unit.treeverify.trees import overlay_of

BIG = bytes(range(256)) * 64
LAYERS = ["sha256:lower", "sha256:upper"]


def source() -> Overlay:
    return overlay_of(
        layer(
            directory("d", mode=0o750, uid=1, gid=2, mtime=3),
            file("d/f", b"content", mode=0o4755, uid=4, gid=5, pax={"mtime": b"6.000000007"}),
            file("d/big", BIG, xattrs={"user.a": b"1", "user.b": b"2"}),
            symlink("d/l", "f"),
            char_device("d/c", 1, 300),
            fifo("d/p"),
        ),
        layer(
            hardlink("d/h", "d/f", mode=0o4755, uid=4, gid=5, mtime=6), file("top", b""), file("implied/x")
        ),
    )


def compared(
    overlay: Overlay, result: Inode | Listing, *, content: bool = True
) -> tuple[Report, list[Difference]]:
    report = Report("tree")
    found = TreeResult(result) if isinstance(result, Inode) else result
    Comparison(overlay.merge(), found, LAYERS, report, content=content).run()
    return report, report.differences


def test_a_right_result_is_equal() -> None:
    overlay = source()
    report, differences = compared(overlay, result_of(overlay.merge()))
    assert (differences, report.total, report.verdict) == ([], 0, "equal")
    assert report.entries == 11
    assert report.content_bytes == len(b"content") + len(BIG)


def remove(path: str) -> Callable[[Inode], None]:
    def change(root: Inode) -> None:
        parent, _, name = path.rpartition("/")
        directory = at(root, parent) if parent else root
        assert directory.children is not None
        del directory.children[name.encode()]

    return change


def put(path: str, inode: Inode) -> Callable[[Inode], None]:
    def change(root: Inode) -> None:
        parent, _, name = path.rpartition("/")
        directory = at(root, parent) if parent else root
        assert directory.children is not None
        directory.children[name.encode()] = inode

    return change


def set_(path: str, **fields: object) -> Callable[[Inode], None]:
    def change(root: Inode) -> None:
        for name, value in fields.items():
            setattr(at(root, path) if path else root, name, value)

    return change


LOWER, UPPER = LAYERS


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (remove("d/c"), ("/d/c", "path", "character device", None, LOWER)),
        (remove("top"), ("/top", "path", "file", None, UPPER)),
        (remove("implied"), ("/implied", "path", "directory", None, None)),
        (put("d/new", Inode(S_IFIFO)), ("/d/new", "path", None, "fifo", None)),
        (put("d/.wh.x", Inode(S_IFREG)), ("/d/.wh.x", "path", None, "file", None)),
        (put("top", Inode(S_IFDIR)), ("/top", "type", "file", "directory", UPPER)),
        (put("d/l", Inode(S_IFREG)), ("/d/l", "type", "symlink", "file", LOWER)),
        (set_("d", mode=S_IFDIR | 0o755), ("/d", "mode", "0750", "0755", LOWER)),
        (set_("d/f", mode=S_IFREG | 0o755), ("/d/f", "mode", "4755", "0755", LOWER)),
        (set_("implied", mode=S_IFDIR | 0o700), ("/implied", "mode", "0755", "0700", None)),
        (set_("", uid=7), ("/", "owner", "0:0", "7:0", None)),
        (set_("d/f", gid=7), ("/d/f", "owner", "4:5", "4:7", LOWER)),
        (set_("d", mtime=0), ("/d", "mtime", "3.000000000", "0.000000000", LOWER)),
        (set_("d/p", mtime_nsec=1), ("/d/p", "mtime", "0.000000000", "0.000000001", LOWER)),
        (set_("d/l", target=b"\xff"), ("/d/l", "target", "f", "\\xff", LOWER)),
        (set_("d/c", rdev=0x103), ("/d/c", "device", "1:300", "1:3", LOWER)),
        (set_("d/f", size=8), ("/d/f", "size", 7, 8, LOWER)),
        (set_("d/big", xattrs={b"user.a": b"1"}), ("/d/big", "xattr user.b", "32", None, LOWER)),
        (set_("d/f", xattrs={b"user.\xff": b"\0"}), ("/d/f", "xattr user.\\xff", None, "00", LOWER)),
    ],
)
def test_one_difference_is_found(
    change: Callable[[Inode], None], wanted: tuple[str, str, str | int | None, str | int | None, str | None]
) -> None:
    overlay = source()
    result = result_of(overlay.merge())
    change(result)
    report, [found] = compared(overlay, result)
    assert (found.path.decode(), *found[1:]) == wanted
    assert (report.total, report.verdict) == (1, "differs")


def test_a_changed_chunk_is_found() -> None:
    overlay = source()
    result = result_of(overlay.merge())
    at(result, "d/big").chunks[2].digest = bytes(32)
    _, [found] = compared(overlay, result)
    assert (found.path, found.field, found.found) == (b"/d/big", "content of chunk 2", "00" * 32)
    assert found.wanted is not None


@pytest.mark.parametrize("path", ["d/f", "d/big"])
def test_missing_and_extra_chunks_are_found(path: str) -> None:
    overlay = source()
    result = result_of(overlay.merge())
    *others, last = at(result, path).chunks
    at(result, path).chunks = tuple(others)
    assert compared(overlay, result)[1][0].found is None
    at(result, path).chunks = (*others, last, last)
    assert compared(source(), result)[1][0].wanted is None


def test_without_content_digests_are_not_compared() -> None:
    overlay = source()
    result = result_of(overlay.merge())
    at(result, "d/big").chunks[2].digest = bytes(32)
    assert compared(overlay, result, content=False)[1] == []


def test_permissions_of_symlinks_are_not_compared() -> None:
    overlay = source()
    result = result_of(overlay.merge())
    at(result, "d/l").mode &= ~0o777
    assert compared(overlay, result)[1] == []


def test_a_fifos_device_number_is_not_compared() -> None:
    overlay = source()
    result = result_of(overlay.merge())
    at(result, "d/p").rdev = 5
    assert compared(overlay, result)[1] == []


def copy(inode: Inode) -> Inode:
    other = Inode(inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_nsec)
    other.size, other.chunks, other.xattrs = inode.size, inode.chunks, inode.xattrs
    return other


def test_a_link_that_became_a_copy_is_found() -> None:
    overlay = source()
    result = result_of(overlay.merge())
    put("d/h", copy(at(result, "d/f")))(result)
    report, [found] = compared(overlay, result)
    assert found == Difference(b"/d/h", "hard links", "/d/f, /d/h", "/d/h", LOWER)
    assert report.total == 1


def test_equal_files_that_became_links_are_found() -> None:
    overlay = overlay_of(layer(file("a", b"1"), file("b", b"1"), file("c", b"1")))
    result = result_of(overlay.merge())
    put("b", at(result, "a"))(result)
    report, [found] = compared(overlay, result)
    assert found == Difference(b"/b", "hard links", "/b", "/a, /b", LOWER)
    assert report.total == 1


def test_groups_of_links_that_were_cut_otherwise_are_found() -> None:
    overlay = overlay_of(layer(file("a"), hardlink("b", "a"), file("c"), hardlink("d", "c")))
    result = result_of(overlay.merge())
    first, second = at(result, "b"), at(result, "d")
    put("b", second)(result)
    put("d", first)(result)
    _, differences = compared(overlay, result)
    assert [(found.path, found.wanted, found.found) for found in differences] == [
        (b"/b", "/a, /b", "/b, /c"),
        (b"/d", "/c, /d", "/a, /d"),
    ]


def test_only_so_many_are_kept_and_all_are_counted() -> None:
    overlay = overlay_of(
        layer(*(file(f"f{n}") for n in range(500)), *(hardlink(f"l{n}", "f0") for n in range(500)))
    )
    result = result_of(overlay.merge())
    for n in range(500):
        put(f"l{n}", Inode(S_IFREG | 0o644))(result)
        at(result, f"f{n}").uid = 1
    report, differences = compared(overlay, result)
    assert len(differences) == KEPT_MAX
    assert report.total == 1000  # 500 owners, 500 links


class TestListings:
    """The same of results that are read while they are compared."""

    def test_a_right_result_is_equal(self) -> None:
        overlay = source()
        report, differences = compared(overlay, listing_of(result_of(overlay.merge())))
        assert (differences, report.entries) == ([], 11)
        assert report.content_bytes == len(b"content") + len(BIG)

    @pytest.mark.parametrize(
        ("change", "wanted"),
        [
            (remove("top"), ("/top", "path", "file", None, UPPER)),
            (remove("plain"), ("/plain", "path", "file", None, LOWER)),
            (put("d/new", Inode(S_IFREG)), ("/d/new", "path", None, "file", None)),
            (put("plain", Inode(S_IFDIR)), ("/plain", "type", "file", "directory", LOWER)),
            (set_("plain", mode=S_IFREG | 0o755), ("/plain", "mode", "0644", "0755", LOWER)),
            (set_("plain", uid=7), ("/plain", "owner", "0:0", "7:0", LOWER)),
            (set_("plain", mtime=5), ("/plain", "mtime", "0.000000000", "5.000000000", LOWER)),
            (set_("plain", size=6), ("/plain", "size", 5, 6, LOWER)),
            (set_("d/l", target=b"x"), ("/d/l", "target", "f", "x", LOWER)),
            (set_("d/f", gid=7), ("/d/f", "owner", "4:5", "4:7", LOWER)),
            (
                set_("plain", xattrs={b"user.a": b"1"}),
                ("/plain", "xattr user.a", None, "31", LOWER),
            ),
        ],
    )
    def test_one_difference_is_found(
        self,
        change: Callable[[Inode], None],
        wanted: tuple[str, str, str | int | None, str | int | None, str | None],
    ) -> None:
        overlay = overlay_of(
            layer(
                *(directory("d"), file("d/f", b"content", uid=4, gid=5), symlink("d/l", "f")),
                *(hardlink("d/h", "d/f", uid=4, gid=5), file("plain", b"plain")),
            ),
            layer(file("top", b"")),
        )
        result = result_of(overlay.merge())
        change(result)
        report, [found] = compared(overlay, listing_of(result))
        assert (found.path.decode(), *found[1:]) == wanted
        assert report.total == 1

    @pytest.mark.parametrize(("path", "index"), [("plain", 0), ("d/f", 0), ("d/big", 2)])
    def test_a_changed_chunk_is_found(self, path: str, index: int) -> None:
        overlay = overlay_of(
            layer(file("plain", b"1"), file("d/f", b"2"), hardlink("d/h", "d/f"), file("d/big", BIG))
        )
        result = result_of(overlay.merge())
        at(result, path).chunks[index].digest = bytes(32)
        _, [found] = compared(overlay, listing_of(result))
        assert (found.path, found.field) == (f"/{path}".encode(), f"content of chunk {index}")
        assert found.found == "00" * 32

    def test_without_content_digests_are_not_compared(self) -> None:
        overlay = overlay_of(layer(file("a", b"1"), file("b", BIG)))
        result = result_of(overlay.merge())
        at(result, "a").chunks[0].digest = at(result, "b").chunks[1].digest = bytes(32)
        report, differences = compared(overlay, listing_of(result), content=False)
        assert (differences, report.content_bytes) == ([], 1 + len(BIG))

    def test_a_link_that_became_a_copy_is_found(self) -> None:
        overlay = overlay_of(layer(file("a", b"1"), hardlink("b", "a"), hardlink("c", "a")))
        result = result_of(overlay.merge())
        put("b", at(result_of(overlay.merge()), "a"))(result)
        report, [found] = compared(overlay, listing_of(result))
        assert found == Difference(b"/b", "hard links", "/a, /b, /c", "/b", LOWER)
        assert report.total == 1

    def test_equal_files_that_became_links_are_found(self) -> None:
        overlay = overlay_of(layer(file("a", b"1"), file("b", b"1"), file("c", b"1")))
        result = result_of(overlay.merge())
        put("b", at(result, "a"))(result)
        report, [found] = compared(overlay, listing_of(result))
        assert found == Difference(b"/b", "hard links", "/b", "/a, /b", LOWER)
        assert report.total == 1

    def test_damage_is_found_on_the_way(self) -> None:
        overlay = overlay_of(layer(file("a", b"1"), file("d/b", b"1")))
        listing = listing_of(result_of(overlay.merge()))
        listing.budget = 200
        with pytest.raises(FormatError, match="overlap"):
            compared(overlay, listing)
