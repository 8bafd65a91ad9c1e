"""Layer tars, and stacks of them, for which our builder and the reference write the same bytes.

What the two do not agree on, because the reference is wrong there, is not here but in
test_deviations.py, case by case. That is also why these cases keep to rules: every parent has an
entry before its children, files have one xattr at most, the lowest layer has no whiteout.
"""

import random
import struct
from collections.abc import Callable, Mapping

from tests.layers import (
    END,
    block_device,
    char_device,
    directory,
    fifo,
    file,
    hardlink,
    layer,
    opaque,
    symlink,
    whiteout,
)

T0 = 1_600_000_000

ACL = struct.pack("<IHHiHHiHHiHHi", 2, 1, 6, -1, 2, 7, 1000, 4, 4, -1, 16, 7, -1) + struct.pack(
    "<HHi", 32, 4, -1
)
"""A well-formed POSIX ACL: the kernel answers EINVAL for any other."""
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""security.capability of version 2: cap_net_bind_service."""


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress and repeat nowhere."""
    return random.Random(seed).randbytes(size)


def mixed() -> bytes:
    """A bit of everything."""
    return layer(
        directory(".", mode=0o751, uid=3, gid=4, mtime=T0),
        directory("d", mode=0o1777, mtime=T0),
        file("d/f", b"hello\n", uid=1000, gid=100, mtime=T0 + 1, xattrs={"user.k": b"v1"}),
        hardlink("d/h", "d/f", uid=1000, gid=100, mtime=T0 + 1),
        hardlink("a-link", "d/f", uid=1000, gid=100, mtime=T0 + 1),
        symlink("s", "d/f", mtime=T0),
        symlink("d/s", "/etc/../x", xattrs={"security.t": b"on a link"}),
        char_device("null", 1, 3, mode=0o666),
        block_device("disk", 259, 70000, mode=0o660, gid=6, xattrs={"security.x": b""}),
        fifo("pipe", mode=0o600),
        directory("acl", xattrs={"system.posix_acl_default": ACL}),
        file("acl/f", b"x", xattrs={"system.posix_acl_access": ACL}),
        file("ping", b"\x7fELF", mode=0o4755, xattrs={"security.capability": CAPABILITY}),
        file("empty"),
        file("zeros", bytes(10_000)),
        file("again", b"hello\n"),
        file("three-chunks", content(2 * 65536 + 100)),
        file("three-equal", bytes(3 * 65536)),
        *(file(f"{first}sorts-before-dot", first.encode()) for first in "!#+-"),
        directory("d/-empty", mode=0o700),
        file(b"latin-\xe9", b"not UTF-8"),
        file("日本語", b"UTF-8"),
    )


def wide() -> bytes:
    """Many names of many lengths: every way in which the allocator fills a block."""
    pick = random.Random(7)
    names = [b"%03d-" % n + b"n" * pick.randrange(252) for n in range(700)]
    return layer(
        directory("many"),
        *(file(b"many/" + name, name[:3]) for name in names),
        directory("links"),
        *(symlink(f"links/{n:03}", "t" * pick.randrange(1, 1500)) for n in range(300)),
        directory("x" * 255),
        file("x" * 255 + "/" + "y" * 255, b"deep"),
        directory("dev"),
        *(char_device(f"dev/tty{n}", 4, n) for n in range(40)),
    )


def long_symlinks() -> bytes:
    """Targets that do not fit beside their inode."""
    return layer(
        *(symlink(f"l{size}", b"t" * size) for size in (1, 3000, 4000, 4031, 4032, 4033, 4094, 4095))
    )


def replaced() -> bytes:
    """Paths that come twice, or change their type."""
    return layer(
        directory("d", mode=0o700),
        file("d/inside", b"kept"),
        file("f", b"first"),
        file("f", b"second", mode=0o600),
        directory("d", mode=0o750, uid=9, mtime=T0),
        directory("gone"),
        file("gone/child", b"no longer to be seen", xattrs={"user.unseen": b"1"}),
        file("gone", b"now a file"),
        symlink("s", "one"),
        symlink("s", "two"),
        file("linked", b"old data"),
        hardlink("link", "linked"),
        file("linked", b"new data"),
        file("p"),
        fifo("p"),
    )


def long_names() -> bytes:
    """Names beyond their 100 bytes in each style, 255 bytes and non-ASCII ones among them."""
    return layer(
        *(directory("/".join(["n" * 60] * depth), style="ustar") for depth in (1, 2, 3)),
        file("/".join(["n" * 60] * 3 + ["ustar"]), b"1", style="ustar"),
        file("g" * 255, b"2", style="gnu"),
        file("p" * 255, b"3"),
        file(b"\xff" * 101, b"4", style="gnu"),
        file("é" * 60, b"5"),
        symlink("gnu-link", "t" * 300, style="gnu"),
        symlink("pax-link", "t" * 301),
        hardlink("gnu-hard", "g" * 255, style="gnu"),
        hardlink("pax-hard", "p" * 255),
    )


def large_ids() -> bytes:
    """Owners that octal fields cannot hold, as base-256 and as PAX records."""
    return layer(
        file("gnu", b"1", uid=3_000_000, gid=4_294_967_294, style="gnu"),
        file("pax", b"2", uid=3_000_000, gid=4_294_967_293),
        file("both", b"3", uid=77, pax={"uid": b"88", "gid": b"99"}),
    )


def absolute_paths() -> bytes:
    """Spellings of a path that mean the same."""
    return layer(
        directory("/abs"),
        file("/abs/f", b"1"),
        directory("./dot"),
        file("./dot//double", b"2"),
        file("./dot/./inner", b"3"),
        hardlink("./dot/link", "/abs/f"),
        hardlink("abs/link", "./abs/f"),
        symlink("abs/verbatim", "./f"),
    )


def whiteouts() -> bytes:
    """The marks of an upper layer, which a layer's own bootstrap keeps as files."""
    return layer(
        directory("d"),
        whiteout("d/gone"),
        opaque("d"),
        file("d/own", b"1"),
        whiteout("top"),
        whiteout("with-data", mode=0o600),
    )


def estargz() -> bytes:
    """Bookkeeping of eStargz at the top: left out, and kept where it is none."""
    return layer(
        file("stargz.index.json", b"{}"),
        file(".prefetch.landmark", b"\x0f"),
        file(".no.prefetch.landmark", b"\x0f"),
        directory("d"),
        file("d/stargz.index.json", b"kept"),
        file("f", b"1"),
    )


def full_directories() -> bytes:
    """Directories whose data ends at, just before and just behind the end of a block."""
    sizes = {4096: [52] * 63 + [25], 4050: [52] * 62 + [43], 4097: [52] * 63 + [26], 8192: [52] * 127}
    return layer(
        *(
            piece
            for size, lengths in sizes.items()
            for piece in (
                directory(f"d{size}"),
                *(
                    file(f"d{size}/{n:03}".ljust(len(f"d{size}/") + length, "n"))
                    for n, length in enumerate(lengths)
                ),
            )
        )
    )


def large_xattr() -> bytes:
    """The largest value, and the longest name."""
    value = content(65535).replace(b"\n", b"\0")  # the reference takes a newline for a record's end
    return layer(
        file("value", b"1", xattrs={"user.large": value}),
        file("name", b"2", xattrs={"user." + "n" * 250: b"v"}),
        file("short", b"3", xattrs={"user.n": b"v"}),
        directory("d", xattrs={"user.large": value[:60000]}),
        file("d/f", b"4"),
        symlink("s", "t", xattrs={"security.large": value[:5000]}),
    )


def many_sizes() -> bytes:
    """Files around multiples of every chunk size in use; contiguous ones and ones that are not."""
    sizes = [1, 4095, 4096, 4097, 65535, 65536, 65537, 200_000, 1 << 20, (1 << 20) + 1, 2_500_000]
    return layer(
        *(file(f"f{size}", content(size, size)) for size in sizes),
        file("zeros", bytes(3 << 20)),
        file("part-again", content(65536, 65536) + content(100, 5)),
        file("swapped", content(200_000, 200_000)[4096:8192] + content(200_000, 200_000)[:4096]),
    )


def random_tree() -> bytes:
    """About 1,400 entries of all kinds, shuffled by a fixed seed."""
    pick = random.Random(1436)
    directories = [""]
    entries = []
    regular: list[str] = []
    for n in range(1400):
        name = f"{pick.choice(directories)}{pick.choice('aZ.-~é')}{n}{'n' * pick.choice([0, 3, 30, 90])}"
        meta = (pick.choice([0o644, 0o755, 0o4711]), pick.randrange(70000), pick.randrange(2 << 31))
        kind = pick.random()
        if kind < 0.12:
            entries.append(directory(name, mode=meta[0], uid=meta[1], mtime=meta[2]))
            directories.append(name + "/")
        elif kind < 0.2:
            entries.append(symlink(name, "../" * pick.randrange(9) + "x" * pick.choice([1, 40, 900])))
        elif kind < 0.25:
            entries.append(char_device(name, pick.randrange(500), pick.randrange(100_000)))
        elif kind < 0.3 and regular:
            entries.append(hardlink(name, pick.choice(regular), mode=0o640))
        else:
            data = content(pick.choice([0, 1, 100, 5000, 9000]), pick.randrange(300))
            entries.append(file(name, data, mode=0o640, xattrs={"user.n": b"%d" % n} if kind > 0.95 else {}))
            regular.append(name)
    return layer(*entries)


LAYERS: Mapping[str, Callable[[], bytes]] = {
    "mixed": mixed,
    "wide": wide,
    "long-symlinks": long_symlinks,
    "replaced": replaced,
    "long-names": long_names,
    "large-ids": large_ids,
    "absolute-paths": absolute_paths,
    "whiteouts": whiteouts,
    "estargz": estargz,
    "full-directories": full_directories,
    "large-xattr": large_xattr,
    "many-sizes": many_sizes,
    "random-tree": random_tree,
    "missing-parents": lambda: layer(file("a/b/c", b"1"), file("a/b/d", b"2"), symlink("a/x/y", "z")),
    "metadata-only": lambda: layer(directory("d"), file("d/empty"), symlink("s", "d"), fifo("p")),
    "no-end-mark": lambda: layer(file("f", b"1"), end=b""),
    "empty": lambda: END,
}
"""By name: a layer tar of §21 of the format's verification log, and a few more."""


def four_layers() -> list[bytes]:
    """Whiteouts, an opaque directory, changes of type, hard links, a layer without data."""
    return [
        layer(
            directory(".", mode=0o711, mtime=T0),
            directory("d"),
            file("d/one", b"one"),
            file("d/two", b"two", xattrs={"user.k": b"v"}),
            hardlink("d/two-again", "d/two"),
            directory("opaque"),
            file("opaque/lower", b"hidden"),
            directory("opaque/sub"),
            file("opaque/sub/deep", b"hidden too"),
            directory("dir-to-file"),
            file("dir-to-file/child", b"gone"),
            file("file-to-dir", b"gone"),
            symlink("link-to-file", "d"),
            file("kept", content(100_000)),
            file("deleted", content(70_000, 1)),
            char_device("null", 1, 3),
        ),
        layer(
            directory(".", mode=0o711, mtime=T0),
            directory("d", mode=0o700, uid=5, mtime=T0 + 1, xattrs={"user.upper": b"1"}),
            whiteout("d/one"),
            file("d/two", b"replaced here"),
            directory("opaque"),
            opaque("opaque"),
            file("opaque/upper", b"seen"),
            file("dir-to-file", b"now a file"),
            directory("file-to-dir", mode=0o500),
            file("file-to-dir/child", b"new"),
            file("link-to-file", b"now a file too"),
            whiteout("deleted"),
        ),
        layer(
            directory("d", mode=0o711), symlink("only-metadata", "d"), whiteout("null"), directory("no-data")
        ),
        layer(
            directory(".", mode=0o751, mtime=T0 + 3),
            directory("new"),
            file("new/f", content(100_000)),
            hardlink("new/h1", "new/f"),
            hardlink("h2", "new/f"),
            directory("file-to-dir"),
            whiteout("file-to-dir/child"),
            whiteout("never-was"),
            directory("d", mode=0o711),
            whiteout("d/one"),
            file("d/one", b"back"),
        ),
    ]


def whiteout_and_again() -> list[bytes]:
    """Names that one layer removes and makes anew."""
    return [
        layer(directory("d"), file("d/a", b"old"), directory("d/sub"), file("d/sub/x", b"old")),
        layer(directory("d"), whiteout("d/a"), file("d/a", b"new"), opaque("d")),
        layer(directory("d"), file("d/sub", b"now a file")),
    ]


STACKS: Mapping[str, Callable[[], list[bytes]]] = {
    "four-layers": four_layers,
    "whiteout-and-again": whiteout_and_again,
    "single": lambda: [mixed()],
    "twice-the-same": lambda: [mixed(), mixed()],
    "unreferenced": lambda: [layer(file("f", b"only"), file("g")), layer(whiteout("f"), file("h", b"2"))],
    "becomes-blobless": lambda: [layer(file("f", b"only")), layer(whiteout("f"), directory("d"))],
    "blobless": lambda: [layer(directory("d")), layer(symlink("s", "d"))],
    "big-and-small": lambda: [many_sizes(), random_tree(), layer(file("f1", b"later"))],
    "small-and-big": lambda: [layer(file("f1", b"earlier")), random_tree(), many_sizes()],
    "wide-over-wide": lambda: [wide(), layer(directory("many"), opaque("many")), wide()],
}
"""By name: the layers of an image, lowest first."""
