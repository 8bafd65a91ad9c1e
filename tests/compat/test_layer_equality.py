"""What an image's tree is, row by row: containerd's snapshotters, the rule, verification, and conversion.

Each case has layers, lowest first, the tree that is right (see `described`; None where the image is refused),
and which of containerd's snapshotters leaves it. Where just one does, or none, the rule in equality.py says
why that tree is the right one.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from stat import S_IMODE, S_ISBLK, S_ISCHR, S_ISDIR, S_ISFIFO, S_ISLNK
from typing import Literal

import pytest

from nydus_service.errors import FormatError
from tests.compat.converted import converted_tree
from tests.compat.equality import differences, right_answer
from tests.compat.recorded import noted_tree
from tests.compat.stacks import Entry, Layer, tar_of
from tests.compat.unpacking import SNAPSHOTTERS, Snapshotter, Unpacker, unpacking
from tests.containerd import Daemon
from tests.layers import char_device, entry, gnu_sparse, layer, pax_header, pax_records
from tests.layers import directory as raw_directory
from tests.layers import file as raw_file
from tests.trees import Node, Tree

Left = Literal["both", "overlayfs", "native", "neither"]


@dataclass(frozen=True)
class Case:
    """One input. `stack` has entries, or for what an `Entry` cannot say, layer tars."""

    stack: Sequence[Layer | bytes]
    right: list[str] | None
    left: Left

    @property
    def layers(self) -> list[bytes]:
        return [part if isinstance(part, bytes) else tar_of(part) for part in self.stack]

    @property
    def entries(self) -> list[Layer]:
        """The stack for the rule, which knows entries only; empty where there are layer tars."""
        entries = [part for part in self.stack if not isinstance(part, bytes)]
        return entries if len(entries) == len(self.stack) else []


def d(path: str, mode: int = 0o755, uid: int = 0, gid: int = 0, **more: int) -> Entry:
    return Entry("directory", path, mode=mode, uid=uid, gid=gid, mtime=more.get("mtime", 7))


def f(path: str, data: bytes = b"", mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    return Entry("file", path, data=data, mode=mode, uid=uid, gid=gid, mtime=7)


def s(path: str, target: str) -> Entry:
    return Entry("symlink", path, target, mode=0o777, mtime=7)


def h(path: str, target: str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    return Entry("hardlink", path, target, mode=mode, uid=uid, gid=gid, mtime=7)


def w(path: str) -> Entry:
    return Entry("whiteout", path)


def o(path: str) -> Entry:
    return Entry("opaque", path)


def with_xattr(entry_: Entry, name: str, value: bytes = b"1") -> Entry:
    return Entry(
        entry_.kind, entry_.path, mode=entry_.mode, uid=entry_.uid, gid=entry_.gid, xattrs=((name, value),)
    )


OWN = d("d", 0o700, 1)
"""A directory with metadata of its own."""
LIB = [d("usr"), d("usr/lib", 0o710, 2), f("usr/lib/old"), s("lib", "usr/lib")]
LIB_STAYS = ["usr/", "usr/lib/ 0710 2:0", "usr/lib/old"]

ROWS: dict[int, dict[str, Case]] = {
    1: {
        "inside": Case([LIB, [f("lib/new")]], ["lib/ 0710 2:0", "lib/new", *LIB_STAYS], "overlayfs"),
        "in the lowest layer but one": Case(
            [[f("q")], LIB, [f("lib/new")]], ["lib/ 0710 2:0", "lib/new", "q", *LIB_STAYS], "overlayfs"
        ),
        "with an empty layer between": Case(
            [LIB, [], [f("lib/new")]], ["lib/ 0710 2:0", "lib/new", *LIB_STAYS], "overlayfs"
        ),
        "dangling": Case([[s("a", "gone")], [f("a/f")]], ["a/", "a/f"], "overlayfs"),
        "absolute": Case(
            [[OWN, s("a", "/d")], [f("a/f")]], ["a/ 0700 1:0", "a/f", "d/ 0700 1:0"], "overlayfs"
        ),
        "outside": Case(
            [[OWN, s("a", "../../d")], [f("a/f")]], ["a/ 0700 1:0", "a/f", "d/ 0700 1:0"], "overlayfs"
        ),
        "a chain": Case(
            [[OWN, s("b", "d"), s("a", "/b")], [f("a/f")]],
            ["a/ 0700 1:0", "a/f", "b -> d", "d/ 0700 1:0"],
            "overlayfs",
        ),
        "to the root": Case([[s("a", "/")], [f("a/f")]], ["a/", "a/f"], "overlayfs"),
        "to itself": Case([[s("a", "a")], [f("a/f")]], None, "both"),
        "a loop": Case([[s("a", "b"), s("b", "a")], [f("a/f")]], None, "both"),
        "a loop below a directory": Case(
            [[s("a", "b"), s("b", "a")], [d("a", 0o711)], [f("a/f")]], ["a/ 0711", "a/f", "b -> a"], "both"
        ),
        "a loop below an own directory": Case(
            [[s("a", "a")], [d("a", 0o711), f("a/b/f")]], ["a/ 0711", "a/b/", "a/b/f"], "native"
        ),
        "a loop below a whiteout": Case(
            [[s("a", "b"), s("b", "a")], [w("a")], [f("a/f")]], ["a/", "a/f", "b -> a"], "both"
        ),
        "of the same layer is followed": Case(
            [[d("d"), s("a", "d"), f("a/f")]], ["a -> d", "d/", "d/f"], "both"
        ),
        "of the same layer over a lower one is followed": Case(
            [[d("d"), d("e"), s("a", "d")], [s("a", "e"), f("a/f")]],
            ["a -> e", "d/", "e/", "e/f"],
            "both",
        ),
        "of the same layer to a lower directory is followed": Case(
            [[OWN], [s("a", "d"), f("a/n/f")]], ["a -> d", "d/ 0700 1:0", "d/n/", "d/n/f"], "both"
        ),
        "of the same layer to a lower link": Case(
            [[OWN, s("b", "d")], [s("a", "b"), f("a/f")]],
            ["a -> b", "b/ 0700 1:0", "b/f", "d/ 0700 1:0"],
            "overlayfs",
        ),
        "explicit, then children": Case(
            [LIB, [d("lib", 0o733), f("lib/f")]], ["lib/ 0733", "lib/f", *LIB_STAYS], "both"
        ),
        "children, then explicit": Case(
            [LIB, [f("lib/f"), d("lib", 0o733)]], ["lib/ 0733", "lib/f", *LIB_STAYS], "overlayfs"
        ),
        "an explicit directory below": Case(
            [LIB, [d("lib/sub", 0o733)]], ["lib/ 0710 2:0", "lib/sub/ 0733", *LIB_STAYS], "overlayfs"
        ),
        "implied, then a link of that name, then below": Case(
            [[OWN], [f("a/f"), s("a", "d"), f("a/g")]], ["a -> d", "d/ 0700 1:0", "d/g"], "both"
        ),
        "implied over a link, then a link of that name, then below": Case(
            [[OWN, s("a", "d")], [f("a/f"), s("a", "d"), f("a/g")]],
            ["a -> d", "d/ 0700 1:0", "d/g"],
            "overlayfs",
        ),
        "a whiteout below it and a file of that name": Case(
            [LIB, [w("lib/old"), f("lib/new")]], ["lib/ 0710 2:0", "lib/new", *LIB_STAYS], "overlayfs"
        ),
    },
    2: {
        "of the lower directory": Case([[OWN], [f("d/f")]], ["d/ 0700 1:0", "d/f"], "both"),
        "all permission bits": Case([[d("d", 0o7751, 3, 4)], [f("d/f")]], ["d/ 7751 3:4", "d/f"], "both"),
        "xattrs": Case([[with_xattr(OWN, "user.a")], [f("d/f")]], ["d/ 0700 1:0 user.a=31", "d/f"], "both"),
        "xattrs through a link": Case(
            [[with_xattr(OWN, "user.a"), s("a", "d")], [f("a/f")]],
            ["a/ 0700 1:0 user.a=31", "a/f", "d/ 0700 1:0 user.a=31"],
            "overlayfs",
        ),
        "xattrs, implied before described": Case(
            [[with_xattr(OWN, "user.a")], [f("d/f"), with_xattr(d("d"), "user.b")]],
            ["d/ user.a=31 user.b=31", "d/f"],
            "both",
        ),
        "xattrs, described before implied": Case(
            [[with_xattr(OWN, "user.a")], [with_xattr(d("d"), "user.b"), f("d/f")]],
            ["d/ user.b=31", "d/f"],
            "overlayfs",
        ),
        "of the topmost layer that has it": Case(
            [[d("a", 0o711)], [d("a", 0o722)], [f("q")], [f("a/f")]], ["a/ 0722", "a/f", "q"], "both"
        ),
        "two levels, each of its own layer": Case(
            [[d("a", 0o711)], [d("a/b", 0o722)], [f("a/b/f")]], ["a/ 0711", "a/b/ 0722", "a/b/f"], "both"
        ),
        "two levels through a link": Case(
            [[OWN, d("d/b", 0o711), s("a", "d")], [f("a/b/f")]],
            ["a/ 0700 1:0", "a/b/ 0711", "a/b/f", "d/ 0700 1:0", "d/b/ 0711"],
            "overlayfs",
        ),
        "two levels through two links": Case(
            [[OWN, d("e", 0o711), s("d/b", "../e"), s("a", "d")], [f("a/b/f")]],
            ["a/ 0700 1:0", "a/b/ 0711", "a/b/f", "d/ 0700 1:0", "d/b -> ../e", "e/ 0711"],
            "overlayfs",
        ),
        "two levels, the first described over a link": Case(
            [[d("d"), d("d/b", 0o700, 1), s("a", "d")], [d("a", 0o711), f("a/b/f")]],
            ["a/ 0711", "a/b/ 0700 1:0", "a/b/f", "d/", "d/b/ 0700 1:0"],
            "overlayfs",
        ),
        "a link to what another layer has": Case(
            [[OWN], [s("a", "d")], [f("a/f")]], ["a/", "a/f", "d/ 0700 1:0"], "overlayfs"
        ),
        "a dangling link over a directory": Case(
            [[d("a", 0o750, 5)], [s("a", "gone")], [f("a/f")]], ["a/ 0750 5:0", "a/f"], "overlayfs"
        ),
        "implied in a middle layer": Case(
            [[d("a", 0o711, 1)], [f("a/x")], [f("a/f")]], ["a/ 0711 1:0", "a/f", "a/x"], "both"
        ),
        "implied in a middle layer, without one below": Case(
            [[f("q")], [f("a/x")], [f("a/f")]], ["a/", "a/f", "a/x", "q"], "both"
        ),
        "implied after a whiteout in a middle layer": Case(
            [[d("a", 0o711, 1)], [w("a")], [f("a/x")], [f("a/f")]], ["a/", "a/f", "a/x"], "both"
        ),
        "a whiteout between": Case([[d("a", 0o711, 1)], [w("a")], [f("a/f")]], ["a/", "a/f"], "both"),
        "a whiteout of its parent between": Case(
            [[d("a", 0o711), d("a/b", 0o722)], [w("a")], [f("a/b/f")]], ["a/", "a/b/", "a/b/f"], "native"
        ),
        "a whiteout of the inner one between": Case(
            [[d("a", 0o711), d("a/b", 0o722)], [w("a/b")], [f("a/b/f")]], ["a/ 0711", "a/b/", "a/b/f"], "both"
        ),
        "a file between": Case([[d("a", 0o711)], [f("a")], [f("a/f")]], ["a/", "a/f"], "overlayfs"),
        "set-group-ID is copied": Case([[d("a", 0o2750, 0, 9)], [f("a/f")]], ["a/ 2750 0:9", "a/f"], "both"),
        "set-group-ID through a link": Case(
            [[d("d", 0o2750, 0, 9), s("a", "d")], [f("a/n/f")]],
            ["a/ 2750 0:9", "a/n/ 0755 0:9", "a/n/f", "d/ 2750 0:9"],
            "overlayfs",
        ),
        "set-group-ID reaches one level": Case(
            [[d("a", 0o2750, 0, 9)], [f("a/n/m/f")]],
            ["a/ 2750 0:9", "a/n/ 0755 0:9", "a/n/m/", "a/n/m/f"],
            "both",
        ),
        "set-group-ID of the own entry after children": Case(
            [[d("d", 0o2755, 0, 7)], [f("d/x/f"), d("d", 0o755, 0, 8)]],
            ["d/ 0755 0:8", "d/x/ 0755 0:7", "d/x/f"],
            "both",
        ),
        "set-group-ID of the own entry before children": Case(
            [[d("d", 0o2755, 0, 7)], [d("d", 0o755, 0, 8), f("d/x/f")]],
            ["d/ 0755 0:8", "d/x/", "d/x/f"],
            "both",
        ),
        "set-group-ID described after children": Case(
            [[f("d/x/f"), d("d", 0o2755, 0, 7)]], ["d/ 2755 0:7", "d/x/", "d/x/f"], "both"
        ),
    },
    3: {
        "a file": Case([[f("a", b"1")], [f("a/f")]], ["a/", "a/f"], "overlayfs"),
        "a FIFO": Case([[Entry("fifo", "a")], [f("a/f")]], ["a/", "a/f"], "overlayfs"),
        "a link to a file": Case([[f("t"), s("a", "t")], [f("a/f")]], ["a/", "a/f", "t"], "overlayfs"),
        "a file, then above": Case([[f("a")], [f("a/x")], [f("a/f")]], ["a/", "a/f", "a/x"], "overlayfs"),
        "an opaque mark below a file": Case([[f("a")], [o("a")]], ["a/"], "overlayfs"),
        "a whiteout below a file": Case([[f("a")], [w("a/x")]], ["a/"], "overlayfs"),
        "two levels": Case([[f("a", b"1")], [f("a/b/f")]], None, "both"),
        "two levels below a link": Case([[f("t"), s("a", "t")], [f("a/b/f")]], None, "both"),
        "two levels, the first described": Case(
            [[f("a")], [d("a", 0o711), f("a/b/f")]], ["a/ 0711", "a/b/", "a/b/f"], "native"
        ),
        "two levels, the first in a layer between": Case(
            [[f("a")], [f("a/x")], [f("a/b/f")]], ["a/", "a/b/", "a/b/f", "a/x"], "neither"
        ),
        "two levels below a link, the first described": Case(
            [[f("t"), s("a", "t")], [d("a", 0o711), f("a/b/f")]], ["a/ 0711", "a/b/", "a/b/f", "t"], "native"
        ),
        "a file of the same layer": Case([[f("a"), f("a/f")]], None, "both"),
    },
    4: {
        "a whiteout alone": Case([LIB, [w("lib/old")]], ["lib/ 0710 2:0", *LIB_STAYS], "overlayfs"),
        "in a middle layer": Case(
            [LIB, [w("lib/old")], [f("lib/new")]], ["lib/ 0710 2:0", "lib/new", *LIB_STAYS], "overlayfs"
        ),
        "a whiteout of nothing": Case([[f("q")], [w("n/x")]], ["n/", "q"], "both"),
        "through an own link": Case([[f("d/x")], [s("a", "d"), w("a/x")]], ["a -> d", "d/"], "both"),
    },
    5: {
        "in a lower layer": Case(
            [[f("a", b"1")], [h("b", "a", 0o600, 4)]], ["a 0600 4:0 1 byte", "b 0600 4:0 = a"], "native"
        ),
        "in a lower layer, with another name there": Case(
            [[f("a", b"1"), h("a2", "a")], [h("b", "a", 0o600)]],
            ["a 0600 1 byte", "a2 0600 = a", "b 0600 = a"],
            "native",
        ),
        "again two layers above": Case(
            [[f("a", b"1"), h("a2", "a")], [h("b", "a", 0o600)], [h("c", "a2", 0o611)]],
            ["a 0611 1 byte", "a2 0611 = a", "b 0611 = a", "c 0611 = a"],
            "native",
        ),
        "through a lower link": Case(
            [[d("d"), f("d/a", b"1"), s("l", "d")], [h("b", "l/a")]],
            ["b 1 byte", "d/", "d/a = b", "l -> d"],
            "native",
        ),
        "through a lower link to a file of the same layer": Case(
            [[d("d"), s("l", "d")], [f("d/a", b"1"), h("b", "l/a")]],
            ["b 1 byte", "d/", "d/a = b", "l -> d"],
            "native",
        ),
        "through an own link to a lower file": Case(
            [[d("d"), f("d/a", b"1")], [s("l", "d"), h("b", "l/a")]],
            ["b 1 byte", "d/", "d/a = b", "l -> d"],
            "native",
        ),
        "below what was a lower link": Case(
            [[d("d"), f("d/a", b"22"), s("l", "d")], [f("l/a", b"1"), h("b", "l/a")]],
            ["b 1 byte", "d/", "d/a 2 bytes", "l/", "l/a = b"],
            "overlayfs",
        ),
        "to where a lower link would have led": Case(
            [[d("d"), s("l", "d")], [f("l/a", b"1"), h("b", "d/a")]], None, "overlayfs"
        ),
        "itself below what was a lower link": Case(
            [[d("d"), f("d/a", b"1"), s("l", "d")], [h("l/b", "d/a")]],
            ["d/", "d/a 1 byte", "l/", "l/b = d/a"],
            "neither",
        ),
        "whited out afterwards": Case([[f("a", b"1")], [h("b", "a"), w("a")]], ["b 1 byte"], "native"),
        "whited out before": Case([[f("a", b"1")], [w("a"), h("b", "a")]], None, "native"),
        "whited out in a layer between": Case([[f("a", b"1")], [w("a")], [h("b", "a")]], None, "both"),
        "hidden by an opaque mark afterwards": Case(
            [[f("d/a", b"1")], [h("d/b", "d/a"), o("d")]], ["d/", "d/b 1 byte"], "native"
        ),
        "to a lower symlink": Case(
            [[f("t"), s("a", "t")], [h("b", "a")]], ["a -> t", "b -> t = a", "t"], "native"
        ),
        "to a lower FIFO": Case(
            [[Entry("fifo", "a")], [h("b", "a", 0o600)]], ["a fifo 0600", "b fifo 0600 = a"], "native"
        ),
        "to a lower directory": Case([[d("a")], [h("b", "a")]], None, "both"),
        "to itself": Case([[f("a", b"1")], [h("a", "a")]], None, "both"),
        "to nothing": Case([[f("q")], [h("b", "gone")]], None, "both"),
        "over another lower file": Case(
            [[f("a", b"1"), f("b", b"22")], [h("b", "a")]], ["a 1 byte", "b = a"], "native"
        ),
        "over a lower directory": Case(
            [[f("a", b"1"), f("b/c")], [h("b", "a")]], ["a 1 byte", "b = a"], "native"
        ),
        "over the directory of its target": Case([[f("b/c")], [h("b", "b/c")]], None, "both"),
        "xattrs are added": Case(
            [
                [with_xattr(f("a"), "user.a")],
                [Entry("hardlink", "b", "a", xattrs=(("user.b", b"2"),))],
            ],
            ["a user.a=31 user.b=32", "b user.a=31 user.b=32 = a"],
            "native",
        ),
    },
    6: {
        "mark, then below": Case(
            [[d("a", 0o711), d("a/b", 0o722), f("a/b/x")], [o("a"), f("a/b/f")]],
            ["a/ 0711", "a/b/ 0722", "a/b/f"],
            "overlayfs",
        ),
        "below, then mark": Case(
            [[d("a", 0o711), d("a/b", 0o722), f("a/b/x")], [f("a/b/f"), o("a")]],
            ["a/ 0711", "a/b/ 0722", "a/b/f"],
            "overlayfs",
        ),
        "in a middle layer": Case(
            [[d("a", 0o711), d("a/b", 0o722), f("a/b/x")], [o("a"), f("a/b/f")], [f("a/g")]],
            ["a/ 0711", "a/b/ 0722", "a/b/f", "a/g"],
            "overlayfs",
        ),
        "in a middle layer, implied above": Case(
            [[d("a", 0o711), d("a/b", 0o722), f("a/b/x")], [o("a")], [f("a/b/f")]],
            ["a/ 0711", "a/b/ 0722", "a/b/f"],
            "overlayfs",
        ),
        "the topmost directory counts": Case(
            [[d("a/b", 0o711)], [d("a/b", 0o722), f("a/b/x")], [o("a"), f("a/b/f")]],
            ["a/", "a/b/ 0722", "a/b/f"],
            "overlayfs",
        ),
        "a whiteout between": Case(
            [[d("a", 0o711), d("a/b", 0o722)], [w("a/b")], [o("a"), f("a/b/f")]],
            ["a/ 0711", "a/b/", "a/b/f"],
            "both",
        ),
        "nothing but the mark": Case([[OWN, f("d/x")], [o("d")]], ["d/ 0700 1:0"], "both"),
        "with the directory's entry": Case([[OWN, f("d/x")], [o("d"), d("d", 0o711)]], ["d/ 0711"], "both"),
        "of nothing": Case([[f("q")], [o("d")]], ["d/", "q"], "both"),
        "one in the other": Case([[f("d/s/x"), f("d/y")], [o("d/s"), o("d")]], ["d/", "d/s/"], "overlayfs"),
        "in the lowest layer, before": Case([[o("d"), f("d/s/f")]], ["d/", "d/s/", "d/s/f"], "both"),
        "in the lowest layer, after": Case([[f("d/s/f"), o("d")]], ["d/", "d/s/", "d/s/f"], "neither"),
    },
    7: {
        "files": Case([[f("a"), f("b/c")], [o(""), f("n")]], ["n"], "native"),
        "files, then the mark": Case([[f("a"), f("b/c")], [f("n"), o("")]], ["n"], "native"),
        "in a middle layer": Case([[f("a")], [o(""), f("n")], [f("m")]], ["m", "n"], "native"),
        "implied directories": Case(
            [[d("b", 0o700), f("b/c")], [o(""), f("b/d")]], ["b/ 0700", "b/d"], "neither"
        ),
        "in the lowest layer": Case([[f("a/b"), o("")]], ["a/", "a/b"], "neither"),
    },
    8: {
        "the mark alone": Case([LIB, [o("lib")]], ["lib/ 0710 2:0", *LIB_STAYS], "overlayfs"),
        "mark, then below": Case(
            [LIB, [o("lib"), f("lib/new")]], ["lib/ 0710 2:0", "lib/new", *LIB_STAYS], "overlayfs"
        ),
        "below, then mark": Case(
            [LIB, [f("lib/new"), o("lib")]], ["lib/ 0710 2:0", "lib/new", *LIB_STAYS], "overlayfs"
        ),
        "a link to the root": Case([[f("q"), s("l", "/")], [o("l")]], ["l/", "q"], "overlayfs"),
        "an own link": Case([[f("d/x")], [s("a", "d"), o("a")]], ["a -> d", "d/"], "both"),
    },
    9: {
        "a file, then the whiteout": Case([[f("a", b"22")], [f("a", b"1"), w("a")]], ["a 1 byte"], "neither"),
        "the whiteout, then a file": Case([[f("a", b"22")], [w("a"), f("a", b"1")]], ["a 1 byte"], "both"),
        "a directory, then the whiteout": Case(
            [[f("a/old")], [d("a", 0o711), f("a/new"), w("a")]], ["a/ 0711", "a/new"], "neither"
        ),
        "a symlink, then the whiteout": Case([[f("a")], [s("a", "t"), w("a")]], ["a -> t"], "neither"),
        "a hard link, then the whiteout": Case(
            [[f("a")], [f("b", b"1"), h("a", "b"), w("a")]], ["a 1 byte", "b = a"], "neither"
        ),
        "in the lowest layer": Case([[f("a"), w("a")]], ["a"], "neither"),
        "in the lowest layer, the whiteout first": Case([[w("a"), f("a")]], ["a"], "both"),
        "in a middle layer": Case([[f("a/x")], [d("a"), w("a")], [f("a/y")]], ["a/", "a/y"], "neither"),
    },
    10: {
        "a directory with an entry": Case(
            [[f("a/old")], [w("a"), d("a", 0o711), f("a/new")]], ["a/ 0711", "a/new"], "native"
        ),
        "two levels": Case(
            [[f("a/s/old")], [w("a/s"), d("a/s", 0o711), f("a/s/new")]],
            ["a/", "a/s/ 0711", "a/s/new"],
            "native",
        ),
        "in a middle layer": Case(
            [[f("a/old")], [w("a"), d("a", 0o711)], [f("a/new")]], ["a/ 0711", "a/new"], "native"
        ),
        "without a whiteout, a file before the directory": Case(
            [[f("a/old")], [f("a"), d("a", 0o711), f("a/new")]], ["a/ 0711", "a/new", "a/old"], "overlayfs"
        ),
    },
    11: {
        "the same whiteout twice": Case([[f("a"), f("q")], [w("a"), w("a")]], ["q"], "native"),
        "a whiteout, then an implied directory": Case(
            [[d("a", 0o711), f("a/old")], [w("a"), f("a/new")]], ["a/", "a/new"], "native"
        ),
        "an implied directory, then a whiteout": Case(
            [[d("a", 0o711), f("a/old")], [f("a/new"), w("a")]], ["a/", "a/new"], "neither"
        ),
        "a whiteout of a file, then an implied directory": Case(
            [[f("a", b"1")], [w("a"), f("a/f")]], ["a/", "a/f"], "native"
        ),
        "a whiteout of a link, then an implied directory": Case(
            [[OWN, s("a", "d")], [w("a"), f("a/f")]], ["a/", "a/f", "d/ 0700 1:0"], "native"
        ),
        "an implied directory, then a whiteout of a link": Case(
            [[OWN, s("a", "d")], [f("a/f"), w("a")]], ["a/", "a/f", "d/ 0700 1:0"], "neither"
        ),
    },
    12: {
        "the link": Case([LIB, [w("lib")]], LIB_STAYS, "both"),
        "the link, dangling": Case([[s("a", "gone"), f("q")], [w("a")]], ["q"], "both"),
        "the link, and an entry for its target": Case(
            [LIB, [w("lib"), f("usr/lib/new")]], [*LIB_STAYS[:2], "usr/lib/new", "usr/lib/old"], "both"
        ),
    },
    13: {
        "a file": Case([[f("a", uid=-1, gid=-1)]], ["a"], "both"),
        "2^32 - 1": Case([[f("a", uid=2**32 - 1, gid=2**32 - 1)]], ["a"], "both"),
        "below a set-group-ID directory": Case(
            [[d("d", 0o2755, 0, 7)], [f("d/x", uid=-1, gid=-1), d("d/y", 0o755, -1, -1)]],
            ["d/ 2755 0:7", "d/x 0644 0:7", "d/y/ 0755 0:7"],
            "both",
        ),
        "over a lower file": Case([[f("a", uid=5, gid=6)], [f("a", uid=-1, gid=-1)]], ["a"], "both"),
        "over a lower directory": Case(
            [[d("d", 0o755, 6, 7)], [d("d", 0o700, -1, -1)]], ["d/ 0700"], "overlayfs"
        ),
        "a directory's second entry": Case(
            [[d("d", 0o755, 6, 7), d("d", 0o700, -1, -1)]], ["d/ 0700 6:7"], "both"
        ),
        "a hard link": Case(
            [[f("a", uid=5, gid=6), h("b", "a", uid=-1, gid=-1)]], ["a 0644 5:6", "b 0644 5:6 = a"], "both"
        ),
        "a hard link to a lower file": Case(
            [[f("a", uid=5, gid=6)], [h("b", "a", uid=-1, gid=-1)]],
            ["a 0644 5:6", "b 0644 5:6 = a"],
            "native",
        ),
        "a directory implied before": Case(
            [[d("d", 0o755, 6, 7)], [f("d/f"), d("d", 0o700, -1, -1)]], ["d/ 0700 6:7", "d/f"], "both"
        ),
    },
    14: {
        "base 256": Case([[f("a", uid=-2, gid=-(2**31))]], ["a 0644 4294967294:2147483648"], "both"),
        "PAX": Case(
            [layer(raw_file("a", pax={"uid": b"-5", "gid": b"-6"}))], ["a 0644 4294967291:4294967290"], "both"
        ),
        "base 256, too large": Case(
            [layer(entry("a", b"0", style="gnu", uid=2**32 + 5))], ["a 0644 5:0"], "both"
        ),
        "PAX, too large": Case([layer(raw_file("a", pax={"uid": b"4294967301"}))], ["a 0644 5:0"], "both"),
    },
    15: {
        "a file": Case([layer(entry("./", b"0", b"x"), raw_file("q"))], ["q"], "both"),
        "a symlink": Case([layer(entry("/", b"2", target="q"), raw_file("q"))], ["q"], "both"),
        "a hard link to nothing": Case(
            [layer(entry("..", b"1", target="gone"), raw_file("q"))], ["q"], "both"
        ),
        "a FIFO and a device": Case(
            [layer(entry("a/..", b"6"), entry(".", b"3"), raw_file("q"))], ["q"], "both"
        ),
        "in an upper layer": Case([layer(raw_file("q")), layer(entry("./", b"0", b"x"))], ["q"], "both"),
    },
    16: {
        "a file": Case([layer(entry("", b"0", b"x"), raw_file("q"))], ["q"], "both"),
        "a directory": Case([layer(entry("", b"5"), raw_file("q"))], ["q"], "both"),
        "a symlink": Case([layer(raw_file("q"), entry("", b"2", target="q"))], ["q"], "both"),
        "in an upper layer": Case([layer(raw_file("q")), layer(entry("", b"0", b"x"))], ["q"], "both"),
    },
    17: {
        "alone": Case([layer(char_device("c", 0, 0))], ["c c0:0"], "both"),
        "over a lower file": Case(
            [layer(raw_file("a")), layer(char_device("a", 0, 0))], ["a c0:0"], "native"
        ),
        "below an upper layer": Case(
            [layer(char_device("a", 0, 0)), layer(raw_file("b"))], ["a c0:0", "b"], "native"
        ),
    },
    18: {
        "AUFS's directory of links": Case(
            [layer(raw_directory(".wh..wh.plnk"), raw_file(".wh..wh.plnk/1.2", b"x"))],
            [".wh..wh.plnk/", ".wh..wh.plnk/1.2 1 byte"],
            "both",
        ),
        "AUFS's directory of links in an upper layer": Case(
            [
                layer(raw_file("q")),
                layer(raw_directory(".wh..wh.plnk", mode=0o700), raw_file(".wh..wh.plnk/1.2")),
            ],
            [".wh..wh.plnk/", ".wh..wh.plnk/1.2", "q"],
            "both",
        ),
        "a hard link into it": Case(
            [[f("q")], [f(".wh..wh.plnk/1.2", b"x"), h("a", ".wh..wh.plnk/1.2")]],
            [".wh..wh.plnk/", ".wh..wh.plnk/1.2 1 byte", "a = .wh..wh.plnk/1.2", "q"],
            "both",
        ),
        "implied": Case(
            [layer(raw_file("x/keep")), layer(raw_file("x/.wh.keep/f"))],
            ["x/", "x/.wh.keep/", "x/.wh.keep/f", "x/keep"],
            "both",
        ),
        "with an entry": Case(
            [
                layer(raw_file("x/keep")),
                layer(raw_directory("x/.wh.keep", mode=0o700), raw_file("x/.wh.keep/f")),
            ],
            ["x/", "x/.wh.keep/", "x/.wh.keep/f"],
            "both",
        ),
        "without content": Case(
            [layer(raw_file("x/keep")), layer(raw_directory("x/.wh.keep"))], ["x/"], "both"
        ),
        "whited out": Case([layer(raw_file("x/.wh.k/f")), layer(raw_file("x/.wh..wh.k"))], ["x/"], "both"),
        "an opaque mark as a directory": Case(
            [layer(raw_file("d/x")), layer(raw_directory("d/.wh..wh..opq"))], ["d/"], "both"
        ),
        "an opaque mark with content": Case(
            [layer(raw_file("d/x")), layer(raw_file("d/.wh..wh..opq/f"))],
            ["d/", "d/.wh..wh..opq/", "d/.wh..wh..opq/f", "d/x"],
            "both",
        ),
        "a name of nothing but the prefix": Case(
            [layer(raw_file("q")), layer(raw_file("a/.wh./f"))], ["a/", "a/.wh./", "a/.wh./f", "q"], "both"
        ),
    },
    19: {
        "garbage": Case([layer(raw_file("a")) + b"garbage" * 99], ["a"], "both"),
        "another archive": Case([layer(raw_file("a")) + layer(raw_file("b"))], ["a"], "both"),
        "half a block": Case([layer(raw_file("a")) + bytes(100)], ["a"], "both"),
        "none": Case([layer(raw_file("a"), end=b"")], ["a"], "both"),
        "one zero block": Case([layer(raw_file("a"), end=bytes(512))], ["a"], "both"),
        "two zero blocks before an archive": Case([bytes(1024) + layer(raw_file("a"))], [], "both"),
        "in an upper layer": Case(
            [layer(raw_file("q")), layer(raw_file("a")) + layer(raw_file("b"))], ["a", "q"], "both"
        ),
    },
    20: {
        "between entries": Case([layer(raw_file("a"), bytes(512), raw_file("b"))], None, "both"),
        "before the first": Case([layer(bytes(512), raw_file("b"))], None, "both"),
        "then garbage": Case([layer(raw_file("a"), end=bytes(512)) + b"x" * 512], None, "both"),
        "in an upper layer": Case(
            [layer(raw_file("q")), layer(raw_file("a"), bytes(512), raw_file("b"))], None, "both"
        ),
    },
    21: {
        "zero bytes": Case([layer(raw_file("a")), b""], ["a"], "both"),
        "zero bytes, lowest": Case([b"", layer(raw_file("a"))], ["a"], "both"),
        "the end mark alone": Case([layer(raw_file("a")), bytes(1024)], ["a"], "both"),
        "one zero block": Case([layer(raw_file("a")), bytes(512)], ["a"], "both"),
        "many zero blocks": Case([layer(raw_file("a")), bytes(10240)], ["a"], "both"),
        "no layer with entries": Case([b"", bytes(1024)], [], "both"),
    },
    22: {},
}


def extension_cases() -> Iterator[tuple[str, Case]]:
    """Extension headers that come twice, or without an entry."""
    pax = [pax_header(pax_records({"path": b"p%d" % n, "uid": b"%d" % n})) for n in (1, 2)]
    long = [entry("././@LongLink", b"L", b"n%d\0" % n) for n in (1, 2)]
    target = [entry("././@LongLink", b"K", b"t%d\0" % n) for n in (1, 2)]
    yield "two PAX headers", Case([layer(*pax, raw_file("f"))], ["p2 0644 2:0"], "both")
    other = pax_header(pax_records({"gid": b"3"}))
    yield (
        "two PAX headers of different records",
        Case([layer(pax[0], other, raw_file("f"))], ["f 0644 0:3"], "both"),
    )
    yield "two GNU long names", Case([layer(*long, raw_file("f"))], ["n2"], "both")
    yield "two GNU long targets", Case([layer(*target, entry("s", b"2", target="x"))], ["s -> t2"], "both")
    yield "a PAX header at the end", Case([layer(raw_file("f"), pax[0])], ["f"], "both")
    yield (
        "a PAX header at the end without an end mark",
        Case([layer(raw_file("f"), pax[0], end=b"")], ["f"], "both"),
    )
    yield "a GNU long name at the end", Case([layer(raw_file("f"), long[0])], ["f"], "both")
    yield "a PAX header alone", Case([layer(pax[0])], [], "both")
    yield "a GNU long name, then PAX", Case([layer(long[0], pax[1], raw_file("f"))], ["n1 0644 2:0"], "both")
    yield "PAX, then a GNU long name", Case([layer(pax[1], long[0], raw_file("f"))], ["n1 0644 2:0"], "both")
    glob = pax_header(pax_records({"path": b"g", "uid": b"9"}), b"g")
    yield "a global header between", Case([layer(pax[1], glob, raw_file("f"))], ["f"], "both")
    yield "a global header", Case([layer(glob, raw_file("f"))], ["f"], "both")


ROWS[22] |= dict(extension_cases())
ROWS[23] = {
    "an upper layer replaces one name": Case(
        [[f("a", b"1"), h("b", "a"), h("c", "a")], [f("a", b"22")]],
        ["a 2 bytes", "b 1 byte", "c = b"],
        "both",
    ),
    "an upper layer removes one name": Case(
        [[f("a", b"1"), h("b", "a"), h("c", "a")], [w("a")]], ["b 1 byte", "c = b"], "both"
    ),
    "an opaque mark hides one name": Case(
        [[f("d/a", b"1"), h("b", "d/a")], [o("d")]], ["b 1 byte", "d/"], "both"
    ),
}
CASES = {f"row {row}: {name}": case for row, cases in ROWS.items() for name, case in cases.items()}


@pytest.fixture(scope="module")
def unpacker(daemon: Daemon) -> Iterator[Unpacker]:
    """With each version of containerd."""
    with unpacking(daemon) as started:
        yield started


def described(tree: Tree) -> list[str]:
    """A tree in words, without the root and without times.

    A line a path: directories end in a slash; permissions and owner are left out where they are 0755 or 0644
    and 0:0; the name of a hard link is followed by `=` and the first name of the same file.
    """
    return sorted(_line(path, node) for path, node in tree.items() if path != b"/")


def _line(path: bytes, node: Node) -> str:
    words = [os.fsdecode(path[1:])]
    mode, usual = S_IMODE(node.mode), 0o644
    if S_ISDIR(node.mode):
        words[0] += "/"
        usual = 0o755
    elif S_ISLNK(node.mode):
        words += ["->", os.fsdecode(node.target)]
        mode = usual
    elif S_ISFIFO(node.mode):
        words.append("fifo")
    elif S_ISCHR(node.mode) or S_ISBLK(node.mode):
        kind = "c" if S_ISCHR(node.mode) else "b"
        words.append(f"{kind}{os.major(node.rdev)}:{os.minor(node.rdev)}")
    owner = (node.uid, node.gid)
    if mode != usual or owner != (0, 0):
        words.append(f"{mode:04o}")
    if owner != (0, 0):
        words.append(f"{node.uid}:{node.gid}")
    words += [f"{name}={value}" for name, value in sorted(node.xattrs.items())]
    if node.inode != path:
        words += ["=", os.fsdecode(node.inode[1:])]
    elif node.size:
        words.append(f"{node.size} byte{'s' if node.size > 1 else ''}")
    return " ".join(words)


def answered(make: Callable[[], Tree]) -> list[str] | None:
    """What comes of an image: a tree in words, or that it is refused."""
    try:
        return described(make())
    except FormatError:
        return None


def in_order(lines: list[str] | None) -> list[str] | None:
    return None if lines is None else sorted(lines)


@pytest.mark.parametrize("name", CASES)
def test_containerd_leaves_it(name: str, unpacker: Unpacker) -> None:
    case = CASES[name]
    trees = {one: answered(partial(unpacker.tree, case.layers, one)) for one in SNAPSHOTTERS}
    leaving = {one for one, tree in trees.items() if tree == in_order(case.right)}
    named: Mapping[Left, set[Snapshotter]] = {
        "both": {"overlayfs", "native"},
        "overlayfs": {"overlayfs"},
        "native": {"native"},
        "neither": set(),
    }
    assert leaving == named[case.left]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.entries])
def test_the_rule_says_so(name: str, unpacker: Unpacker) -> None:
    case = CASES[name]
    right = right_answer(unpacker, case.entries)
    assert (None if right.tree is None else described(right.tree)) == in_order(case.right)


@pytest.mark.parametrize("name", CASES)
def test_verification_expects_it(name: str) -> None:
    case = CASES[name]
    assert answered(lambda: noted_tree(case.layers)) == in_order(case.right)


@pytest.mark.parametrize("name", CASES)
def test_it_is_converted_so(name: str) -> None:
    case = CASES[name]
    assert answered(lambda: converted_tree(case.layers)) == in_order(case.right)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.right and case.entries])
def test_times_and_all_else_are_right(name: str, unpacker: Unpacker) -> None:
    case = CASES[name]
    right = right_answer(unpacker, case.entries)
    assert differences(noted_tree(case.layers), right) == []
    assert differences(converted_tree(case.layers), right) == []


@pytest.mark.parametrize("make", [noted_tree, converted_tree])
def test_row_15_a_directory_as_the_root_sets_its_metadata(make: Callable[[list[bytes]], Tree]) -> None:
    """A deviation: Docker and the native nydus-image do so, containerd passes over the entry."""
    own = layer(raw_directory(".", mode=0o750, uid=3, gid=4, mtime=9), raw_file("q"))
    root = make([own, layer(raw_file("r"))])[b"/"]
    assert (S_IMODE(root.mode), root.uid, root.gid, root.mtime) == (0o750, 3, 4, 9)


def test_row_15_containerd_passes_over_it(unpacker: Unpacker) -> None:
    root = unpacker.tree([layer(raw_directory(".", mode=0o750, uid=3), raw_file("q"))])[b"/"]
    assert (S_IMODE(root.mode), root.uid) == (0o755, 0)


ESTARGZ = layer(
    raw_file(".prefetch.landmark", b"\xf0"), raw_file("q"), raw_file("stargz.index.json", b'{"version":1}')
)


@pytest.mark.parametrize("make", [noted_tree, converted_tree])
def test_row_24_the_index_of_estargz_is_left_out(make: Callable[[list[bytes]], Tree]) -> None:
    """A deviation: the files are about the layer, and not of the image."""
    assert described(make([ESTARGZ])) == ["q"]


def test_row_24_containerd_unpacks_it(unpacker: Unpacker) -> None:
    assert len(described(unpacker.tree([ESTARGZ]))) == 3


ACL = bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff 20000500ffffffff")
"""A default ACL of u::rwx,g::r-x,o::r-x."""
DEVIATIONS: dict[str, tuple[bytes, list[str] | None, list[str]]] = {
    "contiguous file": (layer(entry("f", b"7", b"x")), None, ["f 1 byte"]),
    "old GNU sparse file": (layer(gnu_sparse("f", 9, [(0, b"x")])), None, ["f 9 bytes"]),
    "default ACL": (
        layer(raw_directory("d", xattrs={"system.posix_acl_default": ACL}), raw_directory("d/e")),
        [f"d/ system.posix_acl_default={ACL.hex()}", f"d/e/ system.posix_acl_default={ACL.hex()}"],
        [f"d/ system.posix_acl_default={ACL.hex()}", "d/e/"],
    ),
}
"""Layers that have no row: the layer, what containerd leaves (None if it refuses it), what is right."""


@pytest.mark.parametrize("name", DEVIATIONS)
def test_deviation(name: str, unpacker: Unpacker) -> None:
    data, theirs, ours = DEVIATIONS[name]
    for one in SNAPSHOTTERS:
        assert answered(partial(unpacker.tree, [data], one)) == theirs
    assert answered(lambda: noted_tree([data])) == ours
    assert answered(lambda: converted_tree([data])) == ours


def test_deviation_time_of_a_directory_that_is_replaced(unpacker: Unpacker) -> None:
    layers = [layer(raw_directory("d", mtime=5), raw_file("d", mtime=7))]
    assert unpacker.tree(layers)[b"/d"].mtime == 5
    assert [make(layers)[b"/d"].mtime for make in (noted_tree, converted_tree)] == [7, 7]


def test_deviation_unknown_typeflag_of_the_root(unpacker: Unpacker) -> None:
    layers = [layer(entry(".", b"9"), raw_file("f"))]
    assert described(unpacker.tree(layers)) == ["f"]
    assert [answered(partial(make, layers)) for make in (noted_tree, converted_tree)] == [None, None]
