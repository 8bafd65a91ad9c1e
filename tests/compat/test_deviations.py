"""Each deviation from the reference that docs/format-notes.md lists, with its smallest input.

A case says what is looked at, what the reference makes of it and what ours does. Where this fails
for the reference, a newer one may have mended a defect, and the deviation can go.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import pytest

from nydus_service.errors import FormatError
from nydus_service.rafs.reader import read_bootstrap
from tests.compat.builders import INLINE, OURS, TOC, Builder, FailedError, bootstrap_of, marks, save_layer
from tests.compat.catalogue import CAPABILITY
from tests.layers import (
    char_device,
    directory,
    entry,
    expanded,
    fifo,
    file,
    gnu_long,
    gnu_sparse,
    hardlink,
    layer,
    opaque,
    pax_header,
    pax_records,
    pax_sparse,
    symlink,
    whiteout,
)
from tests.trees import Tree, image_tree

SERVICE = Builder(sys.executable, "-m", "nydus_service.cli.main")
REFUSED = "refused"
RUNS = [(8192, b"data"), (20_000, b"more")]


@dataclass(frozen=True)
class Case:
    """Layers, what to see in their tree, and what each builder's tree shows."""

    layers: list[bytes]
    see: Callable[[Tree], object]
    native: object
    ours: object


def names(tree: Tree) -> list[str]:
    """The paths of a tree, the root left out."""
    return sorted(path.decode(errors="replace") for path in tree if path != b"/")


def attribute(path: bytes, name: str) -> Callable[[Tree], object]:
    """Look at one attribute of one path."""
    return lambda tree: getattr(tree[path], name)


def owner(path: bytes) -> Callable[[Tree], object]:
    """Look at permissions, owner and group of one path."""
    return lambda tree: (oct(tree[path].mode & 0o7777), tree[path].uid, tree[path].gid)


def times(path: bytes) -> Callable[[Tree], object]:
    """Look at the time of one path."""
    return lambda tree: (tree[path].mtime, tree[path].mtime_nsec)


def digest(data: bytes) -> str:
    """What `sha256` of a node with this content is."""
    return sha256(data).hexdigest()


SPARSE = expanded(30_000, RUNS)
SPARSE_SIZES: dict[Literal["0.0", "0.1", "1.0"], int] = {"0.0": 8, "0.1": 8, "1.0": 520}
"""By version of the PAX format: bytes stored, the map of version 1.0 included."""

LAYERS: dict[str, Case] = {
    "missing parents": Case(
        [layer(directory("z"), file("a/f"))], names, ["/a", "/z", "/z/f"], ["/a", "/a/f", "/z"]
    ),
    "implied below set-group-ID": Case(
        [layer(directory("d", mode=0o2755, gid=7), file("d/z/f"))],
        owner(b"/d/z"),
        ("0o755", 0, 0),
        ("0o755", 0, 7),
    ),
    "metadata of hard links": Case(
        [layer(file("b", uid=1, mode=0o600), hardlink("a", "b", uid=2, mode=0o644))],
        owner(b"/a"),
        ("0o600", 1, 0),
        ("0o644", 2, 0),
    ),
    "xattrs of hard links": Case(
        [layer(file("a", xattrs={"user.a": b"1"}), hardlink("b", "a", xattrs={"user.b": b"2"}))],
        attribute(b"/a", "xattrs"),
        {"user.a": "31"},
        {"user.a": "31", "user.b": "32"},
    ),
    "capability of a hard link's target": Case(
        [layer(file("a", xattrs={"security.capability": CAPABILITY}), hardlink("b", "a"))],
        attribute(b"/a", "xattrs"),
        {"security.capability": CAPABILITY.hex()},
        {},
    ),
    "hard link to a symlink": Case(
        [layer(symlink("s", "t"), hardlink("h", "s"))], attribute(b"/s", "inode"), REFUSED, b"/h"
    ),
    "hard link to a FIFO": Case(
        [layer(fifo("p"), hardlink("h", "p"))], attribute(b"/p", "inode"), REFUSED, b"/h"
    ),
    "hard link to a device": Case(
        [layer(char_device("c", 1, 3), hardlink("a", "c"))], attribute(b"/a", "rdev"), REFUSED, 0x103
    ),
    "PAX time": Case(
        [layer(file("f", mtime=5, pax={"mtime": b"1600000000.25"}))],
        times(b"/f"),
        (5, 0),
        (1_600_000_000, 250_000_000),
    ),
    "time before 1970": Case([layer(file("f", mtime=-5))], times(b"/f"), (-5, 0), (0, 0)),
    "FIFO without device numbers": Case([layer(fifo("p", blank=True))], names, REFUSED, ["/p"]),
    "device without device numbers": Case(
        [layer(entry("c", b"3", device=None))], attribute(b"/c", "rdev"), REFUSED, 0
    ),
    "size of what has no data": Case(
        [layer(entry("s", b"2", target="t", size=512), file("next"))], names, ["/s"], ["/next", "/s"]
    ),
    "global PAX header": Case(
        [layer(pax_header(pax_records({"comment": b"c"}), b"g"), file("f"))], names, REFUSED, ["/f"]
    ),
    "contiguous file": Case(
        [layer(entry("f", b"7", b"data"))], attribute(b"/f", "sha256"), REFUSED, digest(b"data")
    ),
    "directory of v7": Case(
        [layer(entry("d/", b"\0", mode=0o755))],
        attribute(b"/d", "mode"),
        0o100755,
        0o040755,
    ),
    "GNU sparse": Case(
        [layer(gnu_sparse("f", 30_000, RUNS))], attribute(b"/f", "sha256"), REFUSED, digest(SPARSE)
    ),
    **{
        f"PAX sparse {version}": Case(
            [layer(pax_sparse("f", 30_000, RUNS, version))],
            lambda tree: [node.size for path, node in sorted(tree.items()) if node.sha256],
            [size],
            [30_000],
        )
        for version, size in SPARSE_SIZES.items()
    },
    "newline in a PAX value": Case(
        [layer(file("f", xattrs={"user.k": b"a\nb"}))],
        attribute(b"/f", "xattrs"),
        REFUSED,
        {"user.k": "610a62"},
    ),
    "PAX key twice": Case(
        [layer(file("f", pax=[("uid", b"1"), ("uid", b"2")]))], attribute(b"/f", "uid"), 1, 2
    ),
    "xattr that containerd leaves out": Case(
        [layer(file("f", xattrs={"trusted.t": b"1"}))], attribute(b"/f", "xattrs"), {"trusted.t": "31"}, {}
    ),
    "user xattr of a symlink": Case(
        [layer(symlink("s", "t", xattrs={"user.u": b"1"}))], attribute(b"/s", "xattrs"), {"user.u": "31"}, {}
    ),
    "xattr of no namespace": Case(
        [layer(file("f", xattrs={"com.apple.x": b"1"}))], attribute(b"/f", "xattrs"), REFUSED, {}
    ),
    "dot-dot in a path": Case([layer(file("a/../../b"))], names, REFUSED, ["/b"]),
    "entry below a symlink": Case(
        [layer(directory("d"), symlink("s", "d"), file("s/f"))], names, ["/d", "/s"], ["/d", "/d/f", "/s"]
    ),
    "entry below a file": Case([layer(file("f"), file("f/g"))], names, ["/f"], REFUSED),
    "directory, file, directory": Case(
        [layer(directory("d"), file("d/f"), file("d"), directory("d"))],
        lambda tree: b"/d/f" in tree,
        True,
        False,
    ),
    "global PAX header at the path of an entry": Case(
        [layer(file("f"), pax_header(pax_records({"path": b"f"}), b"g"))], names, REFUSED, []
    ),
    "global PAX header below a directory": Case(
        [layer(pax_header(pax_records({"path": b"d/x"}), b"g"))], names, REFUSED, ["/d"]
    ),
    "PAX header before a global one": Case(
        [layer(pax_header(pax_records({"uid": b"5"})), pax_header(b"", b"g"), file("f"))],
        attribute(b"/f", "uid"),
        REFUSED,
        0,
    ),
    "entries after the end mark": Case([layer(file("a")) + layer(file("b"))], names, ["/a", "/b"], ["/a"]),
    "one zero block between entries": Case(
        [layer(file("a"), bytes(512), file("b"))], names, ["/a", "/b"], REFUSED
    ),
    "layer of zero bytes": Case([b""], names, REFUSED, []),
    "two PAX headers before one entry": Case(
        [layer(*(pax_header(pax_records({"uid": uid})) for uid in (b"1", b"2")), file("f"))],
        attribute(b"/f", "uid"),
        REFUSED,
        2,
    ),
    "two long names before one entry": Case(
        [layer(gnu_long(b"a", b"L"), gnu_long(b"b", b"L"), file("f"))], names, REFUSED, ["/b"]
    ),
    "PAX header without an entry": Case(
        [layer(file("f"), pax_header(pax_records({"uid": b"1"})))], names, REFUSED, ["/f"]
    ),
    "entry without a name": Case([layer(entry("", b"0"), file("f"))], names, REFUSED, ["/f"]),
    "root that is a file": Case([layer(entry(".", b"0"), file("f"))], names, REFUSED, ["/f"]),
    "negative uid": Case([layer(file("f", uid=-2))], attribute(b"/f", "uid"), REFUSED, 2**32 - 2),
    "negative uid in PAX": Case(
        [layer(file("f", pax={"uid": b"-2"}))], attribute(b"/f", "uid"), 0, 2**32 - 2
    ),
    "uid of -1": Case([layer(file("f", uid=-1))], attribute(b"/f", "uid"), REFUSED, 0),
    "gid of -1 below set-group-ID": Case(
        [layer(directory("d", mode=0o2755, gid=7), file("d/f", gid=-1))],
        attribute(b"/d/f", "gid"),
        REFUSED,
        7,
    ),
    "uid of -1 for a directory that has one": Case(
        [layer(directory("d", uid=6), directory("d", uid=-1))], attribute(b"/d", "uid"), REFUSED, 6
    ),
    "negative size in PAX": Case([layer(file("f", pax={"size": b"-1"}))], names, ["/f"], REFUSED),
    "directory twice": Case(
        [layer(directory("d", xattrs={"user.a": b"1"}), directory("d", xattrs={"user.b": b"2"}))],
        attribute(b"/d", "xattrs"),
        {"user.b": "32"},
        {"user.a": "31", "user.b": "32"},
    ),
    **{
        f"whiteout named {name}": Case([layer(file(name))], names, [f"/{name}"], REFUSED)
        for name in (".wh.", ".wh..", ".wh...")
    },
    "symlink target of 4096 bytes": Case([layer(symlink("s", "t" * 4096))], names, ["/s"], REFUSED),
}

IMAGES: dict[str, Case] = {
    "whiteout of the lowest layer": Case(
        [layer(whiteout("x"), opaque(), file("f"))],
        names,
        ["/.wh..wh..opq", "/.wh.x", "/f"],
        ["/f"],
    ),
    "implied directory": Case(
        [layer(directory("d", mode=0o700, uid=5)), layer(file("d/f"))],
        owner(b"/d"),
        ("0o755", 0, 0),
        ("0o700", 5, 0),
    ),
    "implied root": Case(
        [layer(directory(".", mode=0o700, uid=5)), layer(file("f"))],
        owner(b"/"),
        ("0o755", 0, 0),
        ("0o700", 5, 0),
    ),
    "implied directory in place of a symlink": Case(
        [layer(directory("d", mode=0o700, uid=5), symlink("s", "d")), layer(file("s/f"))],
        owner(b"/s"),
        ("0o755", 0, 0),
        ("0o700", 5, 0),
    ),
    "implied directory in place of a loop": Case(
        [layer(symlink("s", "s")), layer(file("s/f"))], names, ["/s", "/s/f"], REFUSED
    ),
    "implied directories below a file": Case(
        [layer(file("f")), layer(file("f/g/h"))], names, ["/f", "/f/g", "/f/g/h"], REFUSED
    ),
    "implied directory of a hidden one": Case(
        [layer(directory("d", mode=0o700, uid=5)), layer(opaque("d"), file("d/f"))],
        owner(b"/d"),
        ("0o755", 0, 0),
        ("0o700", 5, 0),
    ),
    "implied below a set-group-ID directory": Case(
        [layer(directory("d", mode=0o2755, gid=7)), layer(file("d/a/b/f"))],
        lambda tree: (owner(b"/d/a")(tree), owner(b"/d/a/b")(tree)),
        (("0o755", 0, 0), ("0o755", 0, 0)),
        (("0o755", 0, 7), ("0o755", 0, 0)),
    ),
    "time of an implied directory": Case(
        [layer(directory("d", mtime=5)), layer(opaque("d"))], times(b"/d"), (0, 0), (5, 0)
    ),
    "implied directory with the name of a whiteout": Case(
        [layer(file("keep")), layer(file(".wh.keep/f"))],
        names,
        [],
        ["/.wh.keep", "/.wh.keep/f", "/keep"],
    ),
    "directory's entry after one below it": Case(
        [
            layer(directory("d", xattrs={"user.a": b"1"})),
            layer(file("d/f"), directory("d", xattrs={"user.b": b"2"})),
        ],
        attribute(b"/d", "xattrs"),
        {"user.b": "32"},
        {"user.a": "31", "user.b": "32"},
    ),
    "directory, file, directory": Case(
        [layer(directory("d"), file("d/f")), layer(file("d")), layer(directory("d"))],
        names,
        ["/d", "/d/f"],
        ["/d"],
    ),
    "hard link to a lower layer": Case(
        [layer(file("f", uid=1)), layer(hardlink("h", "f", uid=2))],
        lambda tree: (tree[b"/h"].inode, tree[b"/f"].uid),
        REFUSED,
        (b"/f", 2),
    ),
    "hard link to a lower layer, through a symlink": Case(
        [layer(file("d/f"), symlink("s", "d")), layer(hardlink("h", "s/f"))],
        attribute(b"/h", "inode"),
        REFUSED,
        b"/d/f",
    ),
    "hard link to a lower layer, uid of -1": Case(
        [layer(file("f", uid=3)), layer(hardlink("h", "f", uid=-1))], attribute(b"/f", "uid"), REFUSED, 3
    ),
}

MARKS: dict[str, tuple[bytes, list[int]]] = {
    "implied directory": (layer(directory("."), file("d/f")), [0x1]),
    "hard link to a lower layer": (layer(directory("."), hardlink("h", "f")), [0x2]),
    "directory with the name of a whiteout": (layer(directory("."), whiteout("k"), file(".wh.k/f")), [0x5]),
    "directory described late": (layer(directory("."), file("d/f"), directory("d")), [0x8]),
    "directory described late, without an owner": (
        layer(directory("."), file("d/f"), directory("d", uid=-1, gid=-1)),
        [0x38],
    ),
    "hard link without an owner": (layer(directory("."), hardlink("h", "f", uid=-1, gid=-1)), [0x32]),
    "file without a gid in an implied directory": (layer(directory("."), file("d/f", gid=-1)), [0x1, 0x20]),
}


def look(builder: Builder, tmp_path: Path, case: Case, *, merged: bool) -> object:
    """What the case looks at, in the tree that a builder makes."""
    try:
        packed = [builder.create(tmp_path, tar, *INLINE, *TOC) for tar in case.layers]
        sources = [save_layer(one, tmp_path) for one in packed]
        bootstrap = packed[0].layer_bootstrap()
        if merged:
            bootstrap, _ = builder.merge(tmp_path, sources)
    except FailedError:
        return REFUSED
    return case.see(image_tree(read_bootstrap(bootstrap, sources[0].name), tmp_path / "blobs"))


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, tmp_path: Path, oracle: Builder) -> None:
    case = LAYERS[name]
    assert look(OURS, tmp_path / "ours", case, merged=False) == case.ours
    assert look(oracle, tmp_path / "theirs", case, merged=False) == case.native


@pytest.mark.parametrize("name", IMAGES)
def test_image(name: str, tmp_path: Path, oracle: Builder) -> None:
    case = IMAGES[name]
    assert look(OURS, tmp_path / "ours", case, merged=True) == case.ours
    assert look(oracle, tmp_path / "theirs", case, merged=True) == case.native


def test_blob_id_with_toc_is_the_digest(tmp_path: Path, oracle: Builder) -> None:
    tar = layer(file("f", b"data"))
    ours, theirs = (
        builder.create(tmp_path / name, tar, *TOC, "--compressor", "none")
        for name, builder in (("ours", OURS), ("theirs", oracle))
    )
    assert ours.blob == theirs.blob
    assert ours.ids == [ours.blob_id]
    assert theirs.ids != [ours.blob_id]


def test_order_of_xattrs_is_that_of_names(tmp_path: Path) -> None:
    """The reference's order changes from run to run, so there is nothing to compare with."""
    xattrs = {f"user.{n}": b"v" for n in (3, 1, 2)}
    packed = [
        OURS.create(tmp_path, layer(file("f", xattrs=dict(items))))
        for items in (xattrs.items(), [*xattrs.items()][::-1])
    ]
    assert packed[0].bootstrap == packed[1].bootstrap
    places = [packed[0].bootstrap.index(b"%dv" % n) for n in (1, 2, 3)]
    assert places == sorted(places)


def test_blobless_image_keeps_the_chunk_size_of_its_layers(tmp_path: Path, oracle: Builder) -> None:
    found = []
    for builder in (OURS, oracle):
        packed = builder.create(tmp_path, layer(directory("d")), *INLINE, *TOC, "--chunk-size", "0x1000")
        bootstrap, _ = builder.merge(tmp_path, [save_layer(packed, tmp_path)])
        found.append(read_bootstrap(bootstrap).chunk_size)
    assert found == [0x1000, 0x100000]


def test_equal_ids_of_different_blobs_are_refused(tmp_path: Path, oracle: Builder) -> None:
    tars = [layer(file("f", data)) for data in (b"one", bytes(5000))]
    packed = [oracle.create(tmp_path, tar, *INLINE, *TOC) for tar in tars]
    sources = [save_layer(one, tmp_path / str(n)) for n, one in enumerate(packed)]
    same_names = [source.rename(source.with_name("same")) for source in sources]
    with pytest.raises(FailedError, match="same"):
        OURS.merge(tmp_path, same_names)
    bootstrap, ids = oracle.merge(tmp_path, same_names)
    assert ids == ["same"]
    with pytest.raises(FormatError):  # the larger file lies outside of the smaller blob
        read_bootstrap(bootstrap)


def test_marks_are_in_layers_only(tmp_path: Path, oracle: Builder) -> None:
    """And the reference merges layers that have them as if they had none."""
    packed = OURS.create(tmp_path, layer(file("a/b/f")), *INLINE, *TOC)
    source = save_layer(packed, tmp_path)
    assert len(marks(bootstrap_of(packed.blob))) == 3
    for builder in (OURS, oracle):
        bootstrap, _ = builder.merge(tmp_path, [source])
        assert marks(bootstrap) == []


@pytest.mark.parametrize("name", MARKS)
def test_mark(name: str, tmp_path: Path) -> None:
    tar, values = MARKS[name]
    assert sorted(marks(bootstrap_of(OURS.create(tmp_path, tar, *INLINE, *TOC).blob))) == values


def test_xattrs_that_do_not_fit(tmp_path: Path) -> None:
    xattrs = {f"user.{n}": bytes(65535) for n in range(4)}
    (tmp_path / "tar").write_bytes(layer(file("d/f", xattrs=xattrs)))
    done = SERVICE.run("pack", str(tmp_path / "tar"), str(tmp_path / "blob"))
    assert done.returncode == 5
    for part in (b"d/f", b"user.3 of 65535 bytes", b"262148"):
        assert part in done.stderr


def test_name_of_256_bytes(tmp_path: Path, oracle: Builder) -> None:
    tar = layer(file("n" * 256))
    oracle.create(tmp_path, tar, *INLINE, *TOC)
    with pytest.raises(FailedError, match="256 bytes"):
        OURS.create(tmp_path, tar, *INLINE, *TOC)


def test_failed_build_leaves_no_blob(tmp_path: Path, oracle: Builder) -> None:
    tar = layer(file("f", bytes(100_000)))[:70_000]
    for builder, leaves in ((OURS, False), (oracle, True)):
        work = tmp_path / str(leaves)
        with pytest.raises(FailedError):
            builder.create(work, tar, *INLINE, *TOC)
        assert (work / "blob").exists() == leaves


def test_no_case_is_about_a_node_that_is_equal(oracle: Builder) -> None:
    """A case whose two sides agree is none."""
    assert [name for name, case in {**LAYERS, **IMAGES}.items() if case.native == case.ours] == []
