"""Verification's idea of what applying layers leaves, against containerd itself, subject by subject.

What becomes of entries that meet across layers is in test_layer_equality.py.
"""

import time
from collections.abc import Sequence

import pytest

from nydus_service.errors import FormatError
from tests.compat.equality import Right, differences
from tests.compat.recorded import noted_tree
from tests.compat.unpacking import SNAPSHOTTERS, Snapshotter, Unpacker
from tests.layers import (
    block_device,
    char_device,
    directory,
    entry,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    pax_sparse,
    symlink,
    whiteout,
)

Layers = Sequence[bytes]

ACL = bytes.fromhex(
    "0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000000ffffffff"
)
CAPABILITY = {"security.capability": b"\x01\0\0\x02\0 \n\0\0\0\0\0\0\0\0\0\0\0\0\0"}
LONG = "d" * 150 + "/" + "n" * 200

CASES: dict[str, Layers] = {
    "every type": [
        layer(
            directory("d", mode=0o1777, uid=1, gid=2, mtime=3),
            file("d/f", b"content", mode=0o6755, uid=4, gid=5, mtime=6),
            symlink("d/s", "../x", uid=7),
            char_device("c", 5, 300, mode=0o600),
            block_device("b", 259, 70000),
            fifo("p", blank=True),
            entry("p2", b"6", device=(1, 2)),
            file(LONG, b"long"),
            file(b"\xff\xfe\n", b"no text"),
        )
    ],
    "paths": [layer(file("./a//b/./c"), file("../../x"), file("p/../y"), file("/abs"), entry("z/", b"0"))],
    "times": [
        layer(
            file("a", pax={"mtime": b"1.25"}),
            file("b", pax={"mtime": b"-1.5"}),
            file("c", pax={"mtime": b"9223372037"}),
            file("d", mtime=-5, style="gnu"),
            directory("e", pax={"mtime": b"7.000000009"}),
        )
    ],
    "sparse": [layer(*(pax_sparse(f"f{v}", 30000, [(9000, b"data")], v) for v in ("0.0", "0.1", "1.0")))],
    "implied directories": [
        layer(directory("d", mode=0o700, uid=1, mtime=2, xattrs={"user.a": b"1"}), file("n/o/f", uid=9)),
        layer(file("d/f"), whiteout("m/x"), opaque("q/r"), file("n/o/g")),
    ],
    "implied below setgid": [
        layer(directory("s", mode=0o2755, gid=7), file("s/a/b/f"), directory("s/d"), file("s/g"))
    ],
    "implied, then described": [layer(file("d/f"), directory("d", mode=0o700, mtime=4))],
    "symlinks in paths": [
        layer(
            directory("usr/lib"),
            symlink("lib", "usr/lib"),
            symlink("a/b/l", "/x/y"),
            symlink("up", "../../etc"),
        ),
        layer(file("lib/f"), file("lib/n/g"), file("a/b/l/f"), file("up/f"), whiteout("lib/none")),
        layer(directory("lib"), file("lib/own")),
    ],
    "symlinks and dots": [layer(symlink("l", "gone/../d"), file("l/f"), symlink("m", "l/../e"), file("m/g"))],
    "same path": [
        layer(
            file("a/b/c"), file("d"), directory("e", mode=0o700), file("e/f"), file("g"), hardlink("h", "g")
        ),
        layer(file("a", b"1"), directory("d"), directory("e", uid=3, mtime=4), symlink("g", "h")),
    ],
    "directory, file, directory": [
        layer(file("d/lower"), file("e/f")),
        layer(directory("d"), file("d/f"), file("d"), directory("d"), file("e")),
        layer(directory("e")),
    ],
    "whiteouts": [
        layer(
            file("a"),
            file("d/b/c"),
            file("e"),
            symlink("l", "a"),
            file("r", b"old"),
            directory("k", mode=0o700),
        ),
        layer(
            whiteout("a"),
            whiteout("d"),
            whiteout("l"),
            whiteout("r"),
            file("r", b"new"),
        ),
        layer(whiteout("k")),
        layer(file("k/new")),
    ],
    "whiteouts as other types": [layer(file("d/x")), layer(directory("d/.wh.x"), file(".wh..wh.aufs"))],
    "opaque marks": [
        layer(file("d/low"), file("d/sub/low"), file("e/low"), directory("d/keep", mode=0o700)),
        layer(opaque("d"), file("d/own"), file("d/sub/own"), file("e/own"), directory("e/sub"), opaque("e")),
    ],
    "an opaque root": [layer(file("a"), file("d/b")), layer(file("n"), opaque())],
    "hard links": [
        layer(
            file("a", b"1", mode=0o600, uid=1, mtime=1, xattrs={"user.a": b"1"}),
            hardlink("b", "a", mode=0o4711, uid=2, gid=3, mtime=4, xattrs={"user.b": b"2"}),
            hardlink("d/c", "/a", mode=0o644, uid=5, gid=6, mtime=7),
            symlink("s", "a"),
            hardlink("t", "s", mode=0o600, uid=4, mtime=44),
            fifo("p"),
            hardlink("q", "p", mode=0o600),
            file("r", b"1"),
            hardlink("r2", "r"),
            file("r", b"22"),
        )
    ],
    "hard links into lower layers": [
        layer(file("a", b"1", mode=0o600), file("d/x"), symlink("l", "d")),
        layer(hardlink("b", "a", mode=0o640, uid=9, mtime=8), hardlink("y", "l/x"), whiteout("a")),
    ],
    "hard links and opaque marks": [layer(file("d/a", b"1")), layer(hardlink("d/b", "d/a"), opaque("d"))],
    "xattrs": [
        layer(
            file("f", xattrs={"user.a": b"\n\0", "trusted.t": b"1", "com.apple.q": b"2", **CAPABILITY}),
            symlink("l", "f", xattrs={"user.a": b"1", "security.b": b"2"}),
            fifo("p", xattrs={"user.a": b"1"}),
            file("acl", mode=0o640, xattrs={"system.posix_acl_access": ACL}),
            directory("d", xattrs={"user.a": b"1"}),
            directory("d", xattrs={"user.b": b"2"}),
        )
    ],
    "capabilities of hard links": [
        layer(
            file("a", xattrs=CAPABILITY),
            hardlink("b", "a"),
            file("c", xattrs=CAPABILITY),
            hardlink("d", "c", xattrs=CAPABILITY),
        )
    ],
}

REFUSED: dict[str, Layers] = {
    "below a file": [layer(file("a"), file("a/b"))],
    "below a fifo": [layer(fifo("a"), file("a/b/c"))],
    "a loop of symlinks": [layer(symlink("a", "b"), symlink("b", "a"), file("a/f"))],
    "a hard link to nothing": [layer(hardlink("h", "gone"))],
    "a hard link to what comes later": [layer(hardlink("h", "f"), file("f"))],
    "a hard link to a directory": [layer(directory("d"), hardlink("h", "d"))],
    "a hard link to itself": [layer(file("f"), hardlink("f", "f"))],
    "a hard link to what it replaces": [layer(file("d/f"), hardlink("d", "d/f"))],
    "a hard link below a file": [layer(file("f"), hardlink("h", "f/x"))],
    "a whiteout without a name": [layer(file("d/.wh."))],
    "a whiteout of the directory": [layer(file("d/.wh.."))],
    "a whiteout of the parent": [layer(file("d/.wh..."))],
    "a long name": [layer(file("n" * 256))],
    "a long target": [layer(symlink("l", "t" * 4096))],
    "an empty target": [layer(entry("l", b"2"))],
    "a cut file": [layer(file("f", bytes(5000)))[:3000]],
    "a damaged header": [layer(file("f"))[:100] + b"x" + layer(file("f"))[101:]],
    "an owner that is no number": [layer(file("f", pax={"uid": b"x"}))],
    "a time that is no number": [layer(file("f", pax={"mtime": b"1.x"}))],
    "an unknown type": [layer(entry("f", b"Z"))],
}


NATIVE = {"an opaque root", "hard links into lower layers", "hard links and opaque marks"}
"""What overlayfs cannot apply, or the kernel does not show: the native snapshotter's tree is right."""


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_is_what_we_say(case: str, unpacker: Unpacker) -> None:
    snapshotter: Snapshotter = "native" if case in NATIVE else "overlayfs"
    since = int(time.time())
    right = Right(unpacker.tree(CASES[case], snapshotter), since)
    assert differences(noted_tree(CASES[case]), right) == []


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_we_refuse(case: str, unpacker: Unpacker) -> None:
    for snapshotter in SNAPSHOTTERS:
        with pytest.raises(FormatError):
            unpacker.tree(REFUSED[case], snapshotter)
    with pytest.raises(FormatError):
        noted_tree(REFUSED[case])
